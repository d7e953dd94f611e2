"""Models through GGUF: what was written comes back with the same codes and logits; a golden that others made; refusals."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from qkit import GPTQ, NF4, RTN, W8A8, QLinear, load, quantize, save
from qkit.checkpoints.gguf.architecture import gguf_name, llama3_divisors, to_halves, to_pairs
from qkit.checkpoints.gguf.blocks import block_type
from qkit.checkpoints.gguf.container import open_container
from qkit.checkpoints.gguf.read import load_gguf
from qkit.checkpoints.gguf.write import save_gguf
from qkit.nn.layers import quantized_layers

HERE = Path(__file__).parent
SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}  # whole blocks of 32
SYMMETRIC = RTN(4, 32, symmetric=True)


def test_a_model_that_the_package_wrote_gives_the_logits_of_transformers():
    pytest.importorskip("gguf", reason="gguf is not installed: pip install qkit[gguf]")
    expected = json.loads((HERE / "tiny.json").read_text())
    model, tokenizer = load_gguf(HERE / "tiny.gguf")
    kinds = {name: block_type(layer.qtensor) for name, layer in quantized_layers(model).items()}
    assert kinds == {
        "model.layers.0.self_attn.q_proj": "Q4_0",
        "model.layers.0.self_attn.k_proj": "Q4_1",
        "model.layers.0.self_attn.v_proj": "Q8_0",
        "model.layers.1.self_attn.k_proj": "Q8_0",
        "model.layers.1.self_attn.o_proj": "Q4_1",
        "model.layers.1.mlp.gate_proj": "Q4_0",
        "lm_head": "Q8_0",
    }
    floats, _ = load_gguf(HERE / "tiny.gguf", floats=True)
    assert not quantized_layers(floats)
    for name, total in expected["sums"].items():
        assert floats.state_dict()[name].double().sum().item() == pytest.approx(total, rel=1e-12)
    ids = torch.tensor(expected["ids"])
    for one in (model, floats):
        with torch.no_grad():
            logits = one(ids).logits[0, -1, : len(expected["logits"])]
        torch.testing.assert_close(logits, torch.tensor(expected["logits"]), rtol=1e-4, atol=1e-5)
    assert tokenizer.convert_ids_to_tokens(tokenizer("abab ba\n").input_ids) == ["<s>", "▁abab", "▁", "ba", "<0x0A>"]
    assert model.config.rms_norm_eps == 1e-5 and model.config.rope_parameters["rope_theta"] == 50000


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
)
@pytest.mark.parametrize("scheme", [None, SYMMETRIC, RTN(4, 32, include_zero=False), RTN(8, symmetric=True)])
def test_what_was_written_comes_back(kind, changes, scheme, make_model, ids, logits, tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed: pip install qkit[gguf]")
    changes = dict(changes)
    model = make_model(kind, changes.pop("tie_word_embeddings", None), **SIZES, **changes)
    if scheme is not None:
        quantize(model, scheme)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.half().float()
    save_gguf(model, tmp_path / "model.gguf")
    again, tokenizer = load_gguf(tmp_path / "model.gguf")
    assert tokenizer is None
    assert torch.equal(logits(again, ids), logits(model, ids))
    layers, before = quantized_layers(again), quantized_layers(model)
    assert layers.keys() == before.keys() and bool(layers) == (scheme is not None)
    for name, layer in layers.items():
        assert torch.equal(layer.qtensor.codes(), before[name].qtensor.codes())
        assert torch.equal(layer.qtensor.dequantize(), before[name].qtensor.dequantize())
    assert list(tmp_path.iterdir()) == [tmp_path / "model.gguf"]  # no draft is left
    first = (tmp_path / "model.gguf").read_bytes()
    save_gguf(again, tmp_path / "again.gguf")
    ours, theirs = open_container(tmp_path / "again.gguf"), open_container(tmp_path / "model.gguf")
    assert {n: ours._octets(e).tobytes() for n, e in ours.tensors.items()} == {
        n: theirs._octets(e).tobytes() for n, e in theirs.tensors.items()
    }
    assert len(first) == (tmp_path / "again.gguf").stat().st_size or kind == "mistral"


def test_a_head_in_codes_is_written_and_read_even_where_the_embedding_was_tied(make_model, ids, logits, tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed: pip install qkit[gguf]")
    model = make_model("llama", True, **SIZES)
    quantize(model, {"lm_head": RTN(8, 32, symmetric=True), "*": SYMMETRIC}, include=["*_proj", "lm_head"])
    model.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data.half().float()
    save_gguf(model, tmp_path / "model.gguf")
    again, _ = load_gguf(tmp_path / "model.gguf")
    assert isinstance(again.lm_head, QLinear) and isinstance(again.model.embed_tokens, nn.Embedding)
    assert torch.equal(logits(again, ids), logits(model, ids))


def test_zero_points_are_rounded_to_minima_and_it_is_said(make_model, ids, logits, tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed: pip install qkit[gguf]")
    model = make_model("llama", **SIZES)
    quantize(model, GPTQ(4, 32), calibration=ids)
    report = save(model, tmp_path / "out", format="gguf")
    assert report.path == tmp_path / "out" / "model.gguf" and report.layers == 14
    assert "14 layers have zero points; their minima -s z are rounded to float16 there" in report.notes
    again, _ = load(tmp_path / "out")
    error = (logits(again, ids) - logits(model, ids)).norm() / logits(model, ids).norm()
    assert 0 < error < 2e-3
    for name, layer in quantized_layers(again).items():
        assert torch.equal(layer.qtensor.codes(), model.get_submodule(name).qtensor.codes())


@pytest.mark.parametrize(
    ("change", "scheme", "why"),
    [
        ({}, NF4(), "q_proj has codes that are places in a table"),
        ({}, RTN(3, 32), "q_proj has 3 bits"),
        ({}, W8A8(), "q_proj has scales that float16 does not hold"),
        ({"intermediate_size": 100}, RTN(4, None, symmetric=True), "down_proj has in_features=100, no multiple of 32"),
        ({"hidden_act": "gelu"}, None, "hidden_act='gelu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, None, "rope_type='dynamic'"),
    ],
)
def test_what_llama_cpp_cannot_hold_is_refused_and_nothing_is_written(change, scheme, why, make_model, tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed: pip install qkit[gguf]")
    model = make_model("llama", **{**SIZES, **change})
    if scheme is not None:
        quantize(model, scheme)
    with pytest.raises(ValueError, match=why) as caught:
        save(model, tmp_path / "there" / "model.gguf", format="gguf")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_other_models_are_refused_by_name(make_model, tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed: pip install qkit[gguf]")
    for kind, changes, why in (
        ("gpt2", {}, "GPT2LMHeadModel has no counterpart here"),
        ("mistral", {"sliding_window": 16}, "sliding_window=16"),
    ):
        with pytest.raises(ValueError, match=why):
            save(make_model(kind, **changes), tmp_path / "model.gguf", format="gguf")


def test_without_the_package_nothing_is_written_and_it_is_said(make_model, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'qkit\[gguf\]'"):
        save(make_model("llama", **SIZES), tmp_path / "model.gguf", format="gguf")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def altered(make_model, tmp_path):
    """Writes a file with other entries or other tensors than a Llama's, and loads it."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install qkit[gguf]")
    save_gguf(make_model("llama", **SIZES), tmp_path / "whole.gguf")
    whole = open_container(tmp_path / "whole.gguf")

    def load(entries: dict, tensors: dict | None = None):
        writer = gguf.GGUFWriter(tmp_path / "other.gguf", entries.get("general.architecture", "llama"))
        for key, value in {**whole.metadata, **entries}.items():
            if value is None or key == "general.architecture":
                continue
            kinds = {bool: writer.add_bool, int: writer.add_int32, float: writer.add_float32, str: writer.add_string}
            kinds.get(type(value), writer.add_array)(key, value)
        own = {name: whole.floats(name) for name in whole.tensors}
        for name, tensor in {**own, **(tensors or {})}.items():
            if tensor is not None:
                writer.add_tensor(name, tensor.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return load_gguf(tmp_path / "other.gguf")

    return load


@pytest.mark.parametrize(
    ("entries", "tensors", "why"),
    [
        ({"general.architecture": "gemma"}, {}, "architecture 'gemma', qkit reads llama, qwen2, qwen3"),
        ({"llama.block_count": None}, {}, "lacks llama.block_count"),
        ({"llama.block_count": "two"}, {}, "llama.block_count='two', which is no whole number"),
        ({"llama.block_count": 3}, {}, "block_count=3 and holds tensors of 2 blocks"),
        ({"llama.block_count": 1}, {}, "block_count=1 and holds tensors of 2 blocks"),
        ({"llama.block_count": 2**30}, {}, "holds tensors of 2 blocks"),
        ({"llama.embedding_length": 128}, {}, "token_embd.weight the shape"),
        ({"llama.attention.head_count": 0}, {}, "head_count=0, at least 1"),
        ({"llama.attention.head_count": 5}, {}, "gives blk.0.attn_q.weight 64 rows"),
        ({"llama.feed_forward_length": 10**9}, {}, "gives blk.0.ffn_up.weight 96 rows"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, {}, "epsilon=nan, no number above 0"),
        ({"llama.expert_count": 8}, {}, "llama.expert_count=8"),
        ({"llama.rope.scaling.type": "yarn"}, {}, "rope.scaling.type='yarn'"),
        ({"llama.rope.dimension_count": 8}, {}, "turns 8 of the 16 numbers"),
        ({"llama.vocab_size": 99}, {}, "vocab_size=99 and holds 97 rows"),
        ({"tokenizer.ggml.model": "bert"}, {}, "tokenizer.ggml.model='bert', qkit reads gpt2"),
        ({"tokenizer.ggml.model": "gpt2"}, {}, "lacks tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.bos_token_id": 97}, {}, "bos_token_id=97, the model knows 97 tokens"),
        ({}, {"blk.1.ffn_up.weight": None}, "missing are blk.1.ffn_up.weight"),
        ({}, {"blk.1.attn_q.bias": torch.zeros(64)}, "left over are blk.1.attn_q.bias"),
        ({}, {"blk.1.ffn_norm.weight": torch.zeros(63)}, "of another shape are blk.1.ffn_norm.weight"),
        ({}, {"token_embd.weight": None}, "has no tensor token_embd.weight"),
        ({}, {"rope_freqs.weight": torch.ones(8) * 3}, "are not those of Llama 3"),
    ],
)
def test_a_file_that_lies_or_is_of_something_else_is_refused(entries, tensors, why, altered):
    with pytest.raises(ValueError, match=why) as caught:
        altered(entries, tensors)
    assert "\n" not in str(caught.value)


def test_the_frequencies_of_llama_3_are_those_of_transformers(make_model, ids, logits, tmp_path):
    """Written as divisors, as llama.cpp has them; read back as a factor."""
    pytest.importorskip("gguf", reason="gguf is not installed: pip install qkit[gguf]")
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    model = make_model("llama", **SIZES, rope_parameters={**rope, "original_max_position_embeddings": 8192})
    plain = 500000.0 ** (-torch.arange(0, 16, 2) / 16)
    divisors = llama3_divisors(500000.0, 16, 8.0)
    assert divisors.max() == 8 and divisors.min() == 1
    torch.testing.assert_close(plain / divisors, model.model.rotary_emb.inv_freq, rtol=1e-5, atol=0)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    save_gguf(model, tmp_path / "model.gguf")
    again, _ = load_gguf(tmp_path / "model.gguf")
    assert again.config.rope_parameters == model.config.rope_parameters
    assert torch.equal(logits(again, ids), logits(model, ids))


def test_names_and_rows():
    assert gguf_name("model.layers.12.self_attn.o_proj.weight") == "blk.12.attn_output.weight"
    assert gguf_name("lm_head.weight") == "output.weight"
    assert gguf_name("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    assert to_pairs(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(torch.arange(48)[to_pairs(48, 4)][to_halves(48, 4)], torch.arange(48))


def test_a_file_is_known_by_its_name_its_beginning_or_its_folder(make_model, tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed: pip install qkit[gguf]")
    model = make_model("llama", **SIZES)
    quantize(model, SYMMETRIC)
    path = save(model, tmp_path / "model.gguf", format="gguf").path
    other = path.rename(tmp_path / "blob")
    for place in (other, path.parent / "folder" / "model.gguf", path.parent / "folder"):
        place.parent.mkdir(exist_ok=True)
        if not place.exists():
            place.write_bytes(other.read_bytes())
        assert len(quantized_layers(load(place)[0])) == 14
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path / "missing.gguf")
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(ValueError, match="does not begin with the letters GGUF"):
        load(tmp_path / "text.gguf")
    with pytest.raises(ValueError, match="set format='gguf'"):
        save(model, tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=r"format 'gguf' holds 4 bits.*down_proj has codes that are places in a table"):
        mixed = make_model("llama", **SIZES)
        quantize(mixed, {"*.down_proj": NF4(), "*": SYMMETRIC})
        save(mixed, path, format="gguf")


def test_a_file_that_cannot_be_written_leaves_the_one_before(make_model, tmp_path, monkeypatch):
    pytest.importorskip("gguf", reason="gguf is not installed: pip install qkit[gguf]")
    from qkit.checkpoints.gguf import write

    model = make_model("llama", **SIZES)
    path = save(model, tmp_path / "model.gguf", format="gguf").path
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "publish", full)
    with pytest.raises(OSError, match="could not be written"):
        save(model, path, format="gguf")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
