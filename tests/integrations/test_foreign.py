"""Folders and configs of others, by from_pretrained, where the library is not installed; where it is, they are left alone."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig
from transformers import GPTQConfig as TheirGPTQConfig
from transformers.quantizers import auto
from transformers.quantizers.quantizer_awq import AwqQuantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer
from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer
from transformers.quantizers.quantizer_gptq import GptqHfQuantizer
from transformers.utils.quantization_config import CompressedTensorsConfig

import qkit
from qkit.integrations import foreign
from qkit.nn.layers import quantized_layers

PEERS = Path(__file__).parents[1] / "checkpoints" / "peers"
FOLDERS = sorted(path.parent.name for path in PEERS.glob("*/config.json"))
THEIRS = {
    "gptq": GptqHfQuantizer,
    "awq": AwqQuantizer,
    "bitsandbytes_4bit": Bnb4BitHfQuantizer,
    "bitsandbytes_8bit": Bnb8BitHfQuantizer,
    "compressed-tensors": CompressedTensorsHfQuantizer,
}
NAME = "model.layers.0.mlp.up_proj"


@pytest.fixture
def tables(monkeypatch):
    """transformers' tables as they are without qkit, and given back afterwards."""
    for method, theirs in THEIRS.items():
        monkeypatch.setitem(auto.AUTO_QUANTIZER_MAPPING, method, theirs)
    monkeypatch.setitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "compressed-tensors", CompressedTensorsConfig)


@pytest.fixture
def alone(tables, monkeypatch):
    """None of the libraries is installed."""
    monkeypatch.setattr(foreign, "find_spec", lambda name: None)
    foreign.register()


def read(folder, cls=AutoModelForCausalLM, **more):
    with pytest.warns(
        UserWarning, match=r"not installed, so qkit (reads|quantizes) this .* model: its layers are qkit's"
    ):
        model, found = cls.from_pretrained(folder, output_loading_info=True, **more)
    found["unexpected_keys"] -= {"lm_head.weight"} if cls is AutoModel else set()  # it has none, as of floats
    assert not any(found.values()), found
    return model


def test_names_are_taken_where_a_library_is_wanting_and_nowhere_else(tables, monkeypatch):
    here: set[str] = {"gptqmodel", "bitsandbytes"}
    monkeypatch.setattr(foreign, "find_spec", lambda name: name if name in here else None)
    foreign.register()
    foreign.register()
    taken = {method for method, theirs in THEIRS.items() if auto.AUTO_QUANTIZER_MAPPING[method] is not theirs}
    assert taken == {"gptq", "compressed-tensors"}  # for the one transformers wants optimum besides
    monkeypatch.setitem(auto.AUTO_QUANTIZER_MAPPING, "awq", mine := type("Mine", (), {}))
    here.clear()
    foreign.register()
    assert auto.AUTO_QUANTIZER_MAPPING["awq"] is mine


@pytest.mark.parametrize("name", FOLDERS)
def test_what_a_library_wrote_is_read_as_qkit_load_reads_it(name, alone, ids, logits, tmp_path):
    ids = ids % 64
    expected, _ = qkit.load(PEERS / name)
    model = read(PEERS / name, dtype=torch.float32)
    assert torch.equal(logits(model, ids), logits(expected, ids)) and not model.training
    assert quantized_layers(model).keys() == quantized_layers(expected).keys()
    decoder = read(PEERS / name, AutoModel)  # in the file's dtype: before 5.23 no other was heeded for it
    with torch.no_grad():
        assert torch.equal(decoder(ids).last_hidden_state, read(PEERS / name).model(ids).last_hidden_state)
    model.save_pretrained(tmp_path)  # and from here on it is one of qkit's
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(again, ids), logits(model, ids))


CASES = [
    ("gptq", qkit.RTN(4, 32)),
    ("awq", qkit.RTN(4, 32)),
    ("bitsandbytes", qkit.NF4()),
    ("compressed-tensors", qkit.RTN(8, symmetric=True)),
]


@pytest.mark.parametrize(("form", "scheme"), CASES, ids=str)
def test_what_qkit_wrote_for_others(form, scheme, make_model, alone, ids, logits, tmp_path):
    """With biases that are loaded into layers which come later, in bfloat16, placed by a device_map."""
    model = make_model("qwen2", hidden_size=64, intermediate_size=96, head_dim=16)
    qkit.quantize(model, scheme)
    qkit.save(model, tmp_path, format=form)
    loaded = read(tmp_path)
    assert loaded.model.layers[0].self_attn.q_proj.bias.abs().sum() > 0
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    half = read(tmp_path, dtype=torch.bfloat16)
    layer = half.model.layers[0].self_attn.q_proj
    assert half.dtype == layer.dtype == layer.bias.dtype == torch.bfloat16
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    assert torch.equal(logits(read(tmp_path, device_map="auto"), ids), logits(model, ids))


NEWSLETTER = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float16, bnb_4bit_quant_type="nf4")


@pytest.mark.parametrize(
    ("config", "scheme"),
    [
        (NEWSLETTER, qkit.NF4(double_quant=False)),
        (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True), qkit.FP4()),
        (BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=4.0), qkit.LLMInt8(4.0)),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_newsletters_lines_quantize_floats(kind, config, scheme, make_model, alone, ids, logits, tmp_path):
    """DialoGPT is of GPT-2's kind."""
    model = make_model(kind)
    model.save_pretrained(tmp_path)
    loaded = read(tmp_path, quantization_config=config)
    qkit.quantize(model, scheme)
    assert torch.equal(logits(loaded, ids), logits(model, ids))


def test_modules_to_skip_are_left_in_floats(llama, alone, tmp_path):
    llama.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["self_attn", "layers.1", "down_proj"])
    loaded = read(tmp_path, quantization_config=config)
    assert set(quantized_layers(loaded)) == {"model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"}


def test_a_config_that_wants_data_is_refused(llama, alone, tmp_path):
    llama.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"GPTQConfig learns from data, .* call qkit\.quantize\(model, qkit\.GPTQ\(4\)"
    ):
        AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=TheirGPTQConfig(bits=4, dataset=["some text"])
        )


def change(tensors, drop=(), **put):
    for name in drop:
        del tensors[name]
    tensors.update(put)


@pytest.mark.parametrize(
    ("harm", "said", "match"),
    [
        ({"drop": [f"{NAME}.qweight"]}, {}, f"missing are {NAME}.weight"),
        ({"drop": ["model.norm.weight"]}, {}, "missing are model.norm.weight"),
        ({"drop": [f"{NAME}.scales"]}, {}, "up_proj of .* lacks scales"),
        ({"model.norm.weight": torch.full((64,), torch.nan)}, {}, "NaN or infinity is in model.norm.weight"),
        ({"model.layers.0.mlp.act.scales": torch.ones(96)}, {}, "left over are model.layers.0.mlp.act.scales"),
        ({}, {"version": "gemv"}, "version='gemv'"),
        ({}, {"bits": 3}, "says bits=3"),
    ],
)
def test_what_is_not_whole_is_refused_and_never_made_up(harm, said, match, alone, tmp_path):
    folder = shutil.copytree(PEERS / "awq", tmp_path / "awq")
    tensors = load_file(folder / "model.safetensors")
    change(tensors, **harm)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= said
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=match), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        AutoModelForCausalLM.from_pretrained(folder)


def test_what_a_class_adds_is_new_as_always(alone):
    """A head that the folder has not is transformers' to make, and to tell of."""
    with pytest.warns(UserWarning, match="not installed"):
        model, found = AutoModelForSequenceClassification.from_pretrained(PEERS / "awq", output_loading_info=True)
    assert found["missing_keys"] == {"score.weight"} and quantized_layers(model)


def test_pickled_weights_are_refused(alone, tmp_path):
    folder = shutil.copytree(PEERS / "awq", tmp_path / "awq")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no safetensors files"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        AutoModelForCausalLM.from_pretrained(folder)
