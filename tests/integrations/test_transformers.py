"""from_pretrained loads what qkit saved, quantizes while it loads, and what it saves loads nowhere without qkit."""

import copy
import json
import pickle
import re
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM
from transformers.quantizers import auto

import qkit
from grids import thinned
from qkit import integrations
from qkit.checkpoints.hub import FILE, LOCK
from qkit.integrations.transformers import QkitConfig
from qkit.nn.layers import quantized_layers

README = Path(__file__).parents[2] / "README.md"
SCHEMES = [
    qkit.RTN(4),
    qkit.RTN(3, 4, include_zero=False),
    qkit.NF4(),
    qkit.LLMInt8(),
    qkit.RTN(4, 4, activations="int8"),
    qkit.W8A8(),
]
# Every scheme with one kind of model, every kind with one scheme.
CASES = [
    *[pytest.param("llama", scheme, id=f"llama-{scheme.name}") for scheme in SCHEMES],
    *[
        pytest.param(
            kind, qkit.NF4(), id=f"{kind}-NF4", marks=() if kind in ("gpt2", "bloom") else pytest.mark.exhaustive
        )
        for kind in ("gpt2", "opt", "qwen2", "qwen3", "mistral", "neox", "bloom", "phi")
    ],
]


def read(folder, cls=AutoModelForCausalLM, **arguments):
    """The model, with nothing missing and nothing left over."""
    model, found = cls.from_pretrained(folder, output_loading_info=True, **arguments)
    assert not any(found.values()), found
    return model


def entries(folder):
    return json.loads((folder / "config.json").read_text())


def alter(folder, **entries_):
    (folder / "config.json").write_text(json.dumps({**entries(folder), **entries_}))


@pytest.fixture
def without_qkit(monkeypatch):
    """As if nobody had imported it."""
    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "qkit")
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "qkit")


# ---- being there


@pytest.mark.parametrize("first", ["qkit", "transformers.quantizers.auto", "transformers"])
def test_qkit_is_registered_whichever_is_imported_first_and_imports_nothing_itself(first):
    script = f"""
import {first}
import sys, qkit
print("transformers" in sys.modules, "peft" in sys.modules)
from transformers.quantizers import auto
print("qkit" in auto.AUTO_QUANTIZER_MAPPING, "qkit" in auto.AUTO_QUANTIZATION_CONFIG_MAPPING)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(first != "qkit"), "False", "True", "True"]


LINES = {  # by attribute or by import, of either library
    "import qkit; qkit.integrations.transformers.QkitConfig(qkit.NF4())": "transformers",
    "from qkit.integrations.transformers import QkitConfig": "transformers",
    "import qkit; qkit.integrations.peft.merge_losses": "peft",
    "from qkit.integrations import peft": "peft",
}


@pytest.mark.parametrize("line", thinned(LINES, [*LINES][::3]))
def test_an_integration_that_is_asked_for_before_its_library_was_imported(line):
    """It imports the library, in the middle of which qkit is to be registered by the same integration."""
    library = LINES[line]
    pytest.importorskip(library, reason=f"{library} is not installed")
    checks = {
        "transformers": "from transformers.quantizers import auto; assert 'qkit' in auto.AUTO_QUANTIZER_MAPPING",
        "peft": "from peft.tuners.lora import model; assert hasattr(model.dispatch_default, 'qkit')",
    }
    subprocess.run([sys.executable, "-c", f"{line}\n{checks[library]}"], check=True)


def test_registering_again_changes_nothing():
    finders = len(sys.meta_path)
    for _ in range(2):
        integrations.register()
    assert len(sys.meta_path) == finders
    assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING["qkit"] is integrations.transformers.QkitConfig is QkitConfig
    with pytest.raises(AttributeError, match="no attribute 'tensorflow'"):
        _ = integrations.tensorflow


# ---- folders that qkit.save wrote


@pytest.mark.parametrize(("kind", "scheme"), CASES)
def test_a_folder_that_qkit_saved_gives_the_logits_of_qkit_load(kind, make_model, ids, logits, scheme, tmp_path):
    model = make_model(kind)
    qkit.quantize(model, scheme)
    qkit.save(model, tmp_path)
    loaded = read(tmp_path)
    assert torch.equal(logits(loaded, ids), logits(qkit.load(tmp_path)[0], ids))
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert len(quantized_layers(loaded)) == len(quantized_layers(model)) and not loaded.training
    assert not hasattr(loaded.config, FILE)


@pytest.mark.parametrize("tie", [True, False])
def test_a_quantized_head_and_its_embedding(make_model, ids, logits, tie, tmp_path):
    model = make_model("llama", tie=tie)
    qkit.quantize(model, qkit.RTN(8), include="*")
    qkit.save(model, tmp_path / "ours")
    loaded = read(tmp_path / "ours")
    loaded.save_pretrained(tmp_path / "theirs")
    for one in (loaded, read(tmp_path / "theirs")):
        assert torch.equal(logits(one, ids), logits(model, ids)) and isinstance(one.lm_head, qkit.QLinear)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_16_bits_stays_one_and_another_dtype_may_be_asked_for(make_model, ids, logits, dtype, tmp_path):
    model = make_model("llama").to(dtype)
    qkit.quantize(model, qkit.RTN(4, 4))
    qkit.save(model, tmp_path)
    loaded = read(tmp_path)
    assert loaded.dtype == dtype and torch.equal(logits(loaded, ids), logits(model, ids))
    assert loaded.model.rotary_emb.inv_freq.dtype == model.model.rotary_emb.inv_freq.dtype
    wide = read(tmp_path, dtype=torch.float32)
    layer = wide.model.layers[0].mlp.up_proj
    assert (wide.dtype, layer.dtype, layer.weight.dtype, logits(wide, ids).dtype) == (torch.float32,) * 4
    assert layer.scales.dtype == model.model.layers[0].mlp.up_proj.scales.dtype


def test_the_decoder_alone(make_model, ids, tmp_path):
    model = make_model("llama")
    qkit.quantize(model, qkit.NF4())
    qkit.save(model, tmp_path)
    decoder = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(decoder(ids).last_hidden_state, model.model(ids).last_hidden_state)
    qkit.quantize(whole := make_model("llama"), qkit.RTN(8), include="lm_head")
    qkit.save(whole, tmp_path)
    with pytest.raises(
        ValueError, match=r"LlamaModel has none of the layers .* \(lm_head, \.\.\.\); load it as the class"
    ):
        AutoModel.from_pretrained(tmp_path)


def test_a_model_that_is_not_quantized_loads_without_qkit(llama, ids, logits, without_qkit, tmp_path):
    qkit.save(llama, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, ids), logits(llama, ids))


def test_what_was_loaded_is_saved_again_by_qkit(llama, ids, logits, tmp_path):
    qkit.quantize(llama, qkit.NF4())
    qkit.save(llama, tmp_path / "first")
    qkit.save(read(tmp_path / "first"), tmp_path / "second")
    again, _ = qkit.load(tmp_path / "second")
    assert torch.equal(logits(again, ids), logits(llama, ids)) and not hasattr(again.config, "quantization_config")
    assert torch.equal(logits(read(tmp_path / "second"), ids), logits(llama, ids))


# ---- save_pretrained


@pytest.mark.parametrize(("kind", "scheme"), CASES)
def test_save_pretrained_and_back_in_shards(kind, make_model, ids, logits, scheme, tmp_path):
    """Of a model that was just quantized, then of one that was loaded."""
    model = make_model(kind)
    qkit.quantize(model, scheme)
    model.save_pretrained(tmp_path / "one")
    assert not hasattr(model.config, "quantization_config") and not getattr(model, "hf_quantizer", None)
    read(tmp_path / "one").save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert torch.equal(logits(read(tmp_path / "many"), ids), logits(model, ids))
    assert torch.equal(logits(qkit.load(tmp_path / "many")[0], ids), logits(model, ids))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_copy_saves_itself(llama, ids, logits, copied, loaded, tmp_path):
    """Copied in memory, or as torch.save and other processes do it."""
    qkit.quantize(llama, qkit.NF4())
    llama.save_pretrained(tmp_path / "first")
    twin = copied(read(tmp_path / "first") if loaded else llama)
    with torch.no_grad():
        twin.model.norm.weight.mul_(2)
    twin.save_pretrained(tmp_path / "second")
    assert torch.equal(logits(read(tmp_path / "second"), ids), logits(twin, ids))
    assert not torch.equal(logits(twin, ids), logits(llama, ids))


def test_what_is_pushed_to_the_hub_is_locked(llama, tmp_path, monkeypatch):
    """push_to_hub saves into a folder of its own and uploads that."""
    qkit.quantize(llama, qkit.NF4())
    pushed = {}

    def upload(self, working_dir, *_, **__):
        pushed.update({path.name: path.read_bytes() for path in type(tmp_path)(working_dir).iterdir()})

    module = transformers.utils.hub
    monkeypatch.setattr(module.PushToHubMixin, "_upload_modified_files", upload)
    for name in ("create_repo", "hf_api"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, FakeHub)
    llama.push_to_hub("somebody/something")
    assert {"config.json", "model.safetensors"} <= set(pushed)
    assert json.loads(pushed["config.json"])[FILE] == LOCK


class FakeHub:
    """What push_to_hub asks of the hub before it uploads."""

    def __init__(self, *_, **__):
        self.repo_id = "somebody/something"

    def __getattr__(self, name):
        return lambda *_, **__: self


# ---- without qkit


def test_without_qkit_a_folder_says_what_is_wanting(llama, without_qkit, tmp_path):
    qkit.quantize(llama, qkit.NF4())
    qkit.save(llama, tmp_path / "ours")
    llama.save_pretrained(tmp_path / "theirs")
    llama.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    for folder in ("ours", "theirs", "shards"):
        with pytest.raises(OSError, match=r"quantized by qkit, import qkit before from_pretrained"):
            AutoModelForCausalLM.from_pretrained(tmp_path / folder)


def test_a_process_without_qkit_is_told_what_is_wanting(llama, tmp_path):
    """Whatever of transformers it asks, and however."""
    qkit.quantize(llama, qkit.NF4())
    qkit.save(llama, tmp_path / "ours")
    llama.save_pretrained(tmp_path / "theirs")
    llama.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    script = """
import sys
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM, pipeline
ways = [lambda folder: pipeline("text-generation", folder)]
for cls in (AutoModel, AutoModelForCausalLM, LlamaForCausalLM):
    for more in ({}, {"use_safetensors": True}, {"ignore_mismatched_sizes": True}, {"dtype": "auto"}):
        ways.append(lambda folder, cls=cls, more=more: cls.from_pretrained(folder, **more))
for folder in ("ours", "theirs", "shards"):
    for way in ways:
        try:
            way(folder)
        except (OSError, ValueError) as error:
            assert "this model was quantized by qkit, import qkit before from_pretrained" in str(error), error
        else:
            sys.exit(f"{folder} was loaded")
assert "qkit" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


@pytest.mark.parametrize("scheme", SCHEMES[::2], ids=lambda scheme: scheme.name)
def test_without_qkit_and_without_the_lock_of_its_config_it_still_does_not_load(llama, without_qkit, scheme, tmp_path):
    """As save_pretrained leaves it that was interrupted, or that pushes at once."""
    qkit.quantize(llama, scheme)
    llama.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({key: value for key, value in entries(tmp_path).items() if key != FILE})
    )
    with pytest.raises(RuntimeError, match="mismatched"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


# ---- on the fly


@pytest.mark.parametrize(("kind", "scheme"), CASES)
def test_on_the_fly_is_what_quantize_does(kind, make_model, ids, logits, scheme, tmp_path):
    model = make_model(kind)
    model.save_pretrained(tmp_path / "floats")
    loaded = read(tmp_path / "floats", quantization_config=QkitConfig(scheme))
    qkit.quantize(model, scheme)
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert list(quantized_layers(loaded)) == list(quantized_layers(model))
    loaded.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(read(tmp_path / "saved"), ids), logits(model, ids))


def test_on_the_fly_one_float_layer_is_in_memory_at_a_time(llama, tmp_path, monkeypatch):
    """When a weight is quantized, those before it are gone."""
    llama.save_pretrained(tmp_path)
    seen, alive = [], []
    plugin, solve = integrations.transformers, integrations.transformers.solve_layer

    def watch(weight, *others):
        alive.append(sum(one() is not None for one in seen))
        seen.append(weakref.ref(weight))
        return solve(weight, *others)

    monkeypatch.setattr(plugin, "solve_layer", watch)
    AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=QkitConfig(qkit.NF4()))
    assert len(alive) == 14 and not any(alive)


def test_the_lines_of_the_readme_run_as_they_stand(llama, tmp_path):
    """In a process that has imported nothing before."""
    llama.save_pretrained(tmp_path / "folder-of-floats")
    section = README.read_text(encoding="utf-8").split("### Hugging Face")[1]
    lines = re.search(r"```python\n(.*?)```", section, re.S)[1]
    check = "assert len(qkit.nn.layers.quantized_layers(model)) == 14"
    subprocess.run([sys.executable, "-c", f"{lines}\n{check}"], check=True, cwd=tmp_path)


def test_the_memory_that_the_readme_tells_of_is_what_was_measured():
    """The peaks of the process's own memory, in the table of `benchmarks/loading_memory.py`."""
    measured = (README.parent / "benchmarks" / "results" / "memory-2026-11-28.md").read_text(encoding="utf-8")
    peaks = {
        way: peak
        for way, peak in re.findall(r"^\| (on the fly|quantized folder|loaded, .*?) \| (\d+) ", measured, re.M)
    }
    told = README.read_text(encoding="utf-8").split("A Llama of 457M")[1].split("\n\n")[0]
    found = re.search(r"takes (\d+) MB.*?(\d+) when it is loaded and then.*? and (\d+) when the quantized", told, re.S)
    assert list(found.groups()) == [peaks["on the fly"], peaks["loaded, then quantized"], peaks["quantized folder"]]
    assert int(peaks["on the fly"]) < 913 / 2


def test_on_the_fly_by_layer_and_with_a_head_that_was_tied(make_model, ids, logits, tmp_path):
    model = make_model("llama", tie=True)
    model.save_pretrained(tmp_path)
    plan = {"*.down_proj": qkit.RTN(8), "*": qkit.NF4()}
    loaded = read(tmp_path, quantization_config=QkitConfig(plan, include="*", exclude="*.q_proj"))
    qkit.quantize(model, plan, include="*", exclude="*.q_proj")
    assert torch.equal(logits(loaded, ids), logits(model, ids)) and isinstance(loaded.lm_head, qkit.QLinear)


def test_the_config_as_a_record(llama, ids, logits, tmp_path):
    llama.save_pretrained(tmp_path)
    record = json.loads(json.dumps(QkitConfig(qkit.NF4()).to_dict()))
    assert record == {"quant_method": "qkit", "scheme": qkit.NF4().to_dict()}
    loaded = read(tmp_path, quantization_config=QkitConfig.from_dict(record))
    qkit.quantize(llama, qkit.NF4())
    assert torch.equal(logits(loaded, ids), logits(llama, ids))


@pytest.mark.parametrize("scheme", [qkit.GPTQ(4), qkit.AWQ(4), qkit.SmoothQuant(), {"*": qkit.GPTQ(3)}])
def test_a_scheme_that_learns_from_data_is_refused(llama, scheme, tmp_path):
    llama.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"learns from data and from_pretrained has none; load .* call qkit\.quantize"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=QkitConfig(scheme))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: QkitConfig(), "scheme=None is not a scheme"),
        (lambda: QkitConfig("nf4"), "scheme='nf4' is not a scheme"),
        (lambda: QkitConfig(qkit.NF4(), bits=4), "no field bits"),
        (lambda: QkitConfig({"scheme": "Nonsense"}), "scheme='Nonsense' is not one of"),
    ],
)
def test_a_config_of_nonsense_is_refused(make, match):
    with pytest.raises((TypeError, ValueError), match=match):
        make()


def test_weights_that_cannot_be_quantized_are_named(llama, tmp_path):
    llama.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    llama.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj.*NaN"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=QkitConfig(qkit.NF4()))
    with pytest.raises(ValueError, match=r"include='\*\.nothing' matches none"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=QkitConfig(qkit.NF4(), include="*.nothing"))


# ---- folders that are not whole


def test_a_file_that_was_altered_is_refused(llama, tmp_path):
    qkit.quantize(llama, qkit.RTN(4))
    qkit.save(llama, tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    with pytest.raises(ValueError, match="was altered; copy it again"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="truncated; copy it again"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (
            lambda state: state.pop("model.layers.0.mlp.up_proj.scales"),
            r"up_proj is not whole \(.*scales.* is missing\)",
        ),
        (lambda state: state["model.layers.0.mlp.up_proj.scales"].fill_(torch.nan), "up_proj is not whole .*NaN"),
        (
            lambda state: state.update({"model.layers.0.mlp.up_proj.packed": torch.zeros(3, 24, dtype=torch.uint8)}),
            "up_proj is not whole .*packed",
        ),
    ],
)
def test_layers_that_are_not_whole_are_named(llama, harm, match, tmp_path):
    qkit.quantize(llama, qkit.RTN(4))
    llama.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    harm(state)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=match + ".*save the model again"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("layers", [None, {}, {"model.layers.0.mlp.up_proj": {"bits": 4}}, [1]])
def test_a_config_that_does_not_say_how_is_refused(llama, layers, tmp_path):
    qkit.quantize(llama, qkit.RTN(4))
    llama.save_pretrained(tmp_path)
    alter(tmp_path, quantization_config={"quant_method": "qkit", "layers": layers})
    with pytest.raises(
        (TypeError, ValueError), match=r"no quantized layers|no record of a quantized layer|not a scheme"
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "weights", ["x", {}, {"file": "../secret.safetensors", "bytes": 1, "sha256": "0"}, {"file": 1}]
)
def test_a_config_that_names_another_file_is_refused(llama, weights, tmp_path):
    qkit.quantize(llama, qkit.RTN(4))
    qkit.save(llama, tmp_path)
    config = entries(tmp_path)["quantization_config"]
    alter(tmp_path, quantization_config={**config, "weights": weights})
    with pytest.raises(ValueError, match=r"no file that qkit\.save wrote; save the model again"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    alter(tmp_path, quantization_config={**config, "derived": "all"})
    with pytest.raises(ValueError, match="no list of names; save the model again"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


# ---- what one does with a model


@pytest.mark.parametrize("saved_by", ["qkit", "transformers", "on the fly"])
def test_generate_and_pipeline(embedded, saved_by, tmp_path):
    """The folder alone: the tokenizer and how to generate are found in it."""
    model, tokenizer = embedded
    model = copy.deepcopy(model)
    model.generation_config.update(max_new_tokens=4, do_sample=False)
    if saved_by == "on the fly":
        model.save_pretrained(tmp_path / "floats")
    qkit.quantize(model, qkit.NF4())
    if saved_by == "qkit":
        qkit.save(model, tmp_path, tokenizer)
    else:
        saving = model
        if saved_by == "on the fly":
            saving = read(tmp_path / "floats", quantization_config=QkitConfig(qkit.NF4()))
        saving.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
    prompt = "It was the best of times"
    expected = model.generate(**tokenizer(prompt, return_tensors="pt"))
    assert expected.shape[1] == len(tokenizer(prompt)["input_ids"]) + 4
    write = transformers.pipeline("text-generation", model=str(tmp_path))
    written = write(
        prompt, max_new_tokens=4, do_sample=False
    )  # transformers 5.0's pipeline does not ask the folder how
    assert written[0]["generated_text"] == tokenizer.decode(expected[0], skip_special_tokens=True)
    assert torch.equal(read(tmp_path).generate(**tokenizer(prompt, return_tensors="pt")), expected)


def test_device_map(llama, ids, logits, tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    llama.save_pretrained(tmp_path / "floats")
    qkit.quantize(llama, qkit.NF4())
    qkit.save(llama, tmp_path / "ours")
    for folder, more in (("ours", {}), ("floats", {"quantization_config": QkitConfig(qkit.NF4())})):
        for place in ("cpu", "auto", {"": "cpu"}):
            loaded = read(tmp_path / folder, device_map=place, **more)
            assert torch.equal(logits(loaded, ids), logits(llama, ids))


def test_a_device_map_that_leaves_codes_on_the_disk_is_refused(llama, tmp_path):
    """Given as such, or made of "auto"; of what is no quantized layer it may."""
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    llama.save_pretrained(tmp_path / "floats")
    qkit.quantize(llama, qkit.NF4())
    qkit.save(llama, tmp_path / "ours")
    for folder, more in (("ours", {}), ("floats", {"quantization_config": QkitConfig(qkit.NF4())})):
        more["offload_folder"] = tmp_path / "offloaded"
        for place in (
            {"": "disk"},
            {"": "cpu", "model.layers.1": "disk"},
            {"": "disk", "model.layers.0": "cpu", "lm_head": "cpu"},
        ):
            with pytest.raises(ValueError, match=r"device_map leaves .* on the disk, .*; give max_memory more"):
                read(tmp_path / folder, device_map=place, **more)
        with pytest.raises(ValueError, match=r"device_map leaves .* on the disk"):
            read(tmp_path / folder, device_map="auto", max_memory={"cpu": "14KB"}, **more)
        rest = dict.fromkeys(("model.layers", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
        read(tmp_path / folder, device_map={**rest, "model.embed_tokens": "disk"}, **more)


def test_room_is_made_for_codes_and_not_for_floats(llama, tmp_path):
    """Bytes that device_map="auto" counts for a model that is quantized on the fly, beside those of the codes."""
    accelerate = pytest.importorskip("transformers.integrations.accelerate", reason="accelerate is not installed")
    quantizer = integrations.transformers.QkitHfQuantizer(QkitConfig(qkit.NF4()), pre_quantized=False)
    quantizer._process_model_before_weight_loading(llama)
    counted = accelerate.compute_module_sizes(llama, quantizer)[0]["model.layers"]
    qkit.quantize(llama, qkit.NF4())
    size = sum(tensor.nbytes for tensor in (*llama.model.layers.parameters(), *llama.model.layers.buffers()))
    assert size <= counted < 1.2 * size


@pytest.mark.parametrize("scheme", [qkit.RTN(3, 4, include_zero=False), qkit.NF4()], ids=lambda scheme: scheme.name)
def test_dequantize(model, ids, logits, scheme, tmp_path):
    qkit.quantize(model, scheme)
    qkit.save(model, tmp_path)
    loaded = read(tmp_path)
    floats = copy.deepcopy(loaded).dequantize()
    assert not quantized_layers(floats) and not hasattr(floats.config, "quantization_config")
    torch.testing.assert_close(logits(floats, ids), logits(loaded, ids), rtol=1e-4, atol=1e-4)
    floats.save_pretrained(tmp_path / "floats")
    assert torch.equal(logits(read(tmp_path / "floats"), ids), logits(floats, ids))
