"""The door that all formats of others share: what is refused before anything is written, and what a folder says it is."""

import json
import re
from pathlib import Path

import pytest
import torch

import qkit
from damage import refused
from qkit.checkpoints.formats import FORMATS, format_of


def whole_words(make_model, kind="llama"):
    """A model every side of whose layers is a multiple of 32."""
    sizes = {
        "llama": {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16},
        "gpt2": {"n_embd": 64, "n_inner": 96},
        "opt": {"hidden_size": 64, "ffn_dim": 96, "word_embed_proj_dim": 64},
        "opt-350m": {
            "hidden_size": 64,
            "ffn_dim": 96,
            "word_embed_proj_dim": 32,
        },  # layers before and behind the blocks
        "odd": {"hidden_size": 64, "intermediate_size": 100, "head_dim": 16},
    }
    return make_model({"opt-350m": "opt", "odd": "llama"}.get(kind, kind), **sizes[kind])


@pytest.fixture
def words_model(make_model):
    return whole_words(make_model)


def test_an_unknown_format_and_what_is_not_quantized_are_refused(words_model, tmp_path):
    with pytest.raises(ValueError, match=r"format='gptx' is not one of gptq.*leave it out for qkit's own"):
        qkit.save(words_model, tmp_path / "out", format="gptx")
    with pytest.raises(ValueError, match="no layer of this one is: quantize it first; these can: gguf, onnx"):
        qkit.save(words_model, tmp_path / "out", format="gptq")
    assert not list(tmp_path.iterdir())


def test_a_scheme_that_a_format_does_not_hold_is_refused_with_those_that_do(words_model, tmp_path):
    qkit.quantize(words_model, qkit.NF4())
    match = r"'gptq' holds steps of .*q_proj has codes that are places in a table.*qkit's own \(leave format out\)"
    with pytest.raises(ValueError, match=match):
        qkit.save(words_model, tmp_path / "out", format="gptq")
    assert not list(tmp_path.iterdir())


W4 = qkit.RTN(4, 32, symmetric=True)


@pytest.mark.parametrize(
    ("form", "kind", "scheme", "include", "match"),
    [
        ("gptq", "llama", W4, "*", "lm_head is none of them: transformers would fill it with random numbers"),
        ("awq", "llama", W4, "*", "lm_head is none of them"),
        ("gptq", "opt-350m", W4, None, r"project_(in|out) is none of them"),
        ("gptq", "odd", qkit.RTN(4, symmetric=True), None, "gate_proj has out_features=100, which in 4 bits fill none"),
        ("awq", "odd", qkit.RTN(4, symmetric=True), None, "gate_proj has out_features=100"),
        ("gptq", "llama", {"*.0.*": qkit.RTN(8, 32, symmetric=True), "*": W4}, None, "has 8 bits and .* 4"),
        ("gptq", "llama", {"*.q_proj": qkit.RTN(4, 32), "*": qkit.RTN(4, 48)}, "*.[qd]*_proj", "have none in common"),
        ("awq", "llama", {"*.q_proj": qkit.RTN(4, 32), "*": qkit.RTN(4, 48)}, "*.[qd]*_proj", "have none in common"),
        ("bitsandbytes", "llama", {"*.0.*": qkit.NF4(), "*": qkit.FP4()}, None, "one kind of layer a model"),
        ("compressed-tensors", "llama", {"*.0.*": qkit.W8A8(), "*": W4}, None, "INT8 inputs or layers without"),
        ("compressed-tensors", "gpt2", W4, None, "is a Conv1D"),
        ("gguf", "opt", W4, None, "OPTForCausalLM has no counterpart"),
        ("onnx", "opt", W4, None, "this model is a opt"),
    ],
    ids=str,
)
def test_a_model_that_a_format_does_not_hold_is_refused_with_those_that_do(
    form, kind, scheme, include, match, make_model, tmp_path
):
    """Also where no single layer shows it. What the sentence advises is tried."""
    model = whole_words(make_model, kind)
    qkit.quantize(model, scheme, include=include)
    with pytest.raises(ValueError, match=match) as caught:
        qkit.save(model, tmp_path / "out", format=form)
    said = re.search(r"; (?:these can: (.+), and|only) qkit's own \(leave format out\)$", str(caught.value))
    assert said, caught.value
    able = said[1].split(", ") if said[1] else []
    for name in FORMATS:
        try:
            qkit.save(model, tmp_path / name, format=name)
        except ValueError:
            assert name not in able
        else:
            assert name in able
    qkit.save(model, tmp_path / "own")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", [None, "gptq", "onnx"])
def test_a_folder_is_not_given_the_name_of_a_file(form, words_model, tmp_path):
    qkit.quantize(words_model, W4)
    with pytest.raises(
        ValueError, match=r"is the name of a gguf file and .* is a folder; set format='gguf', or give an"
    ):
        qkit.save(words_model, tmp_path / "a.gguf", format=form)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_model_is_not_mixed_with_this_one(words_model, tmp_path):
    qkit.quantize(words_model, qkit.RTN(4, 32, symmetric=True))
    qkit.save(words_model, tmp_path)
    with pytest.raises(ValueError, match=r"holds another model already \(qkit.json.*give a new folder"):
        qkit.save(words_model, tmp_path, format="gptq")


def test_a_report_is_a_path_and_says_what_is_lost(words_model, tmp_path):
    qkit.quantize(words_model, qkit.RTN(4, 32, symmetric=True, activations="int8"))
    report = qkit.save(words_model, tmp_path / "out", format="gptq")
    assert report.layers == 14 and "14 layers round their inputs to INT8 here" in repr(report)
    assert format_of(report.path) is FORMATS["gptq"]
    qkit.load(report)


def test_saving_again_replaces_the_model(words_model, make_model, tmp_path, ids, logits):
    qkit.quantize(words_model, qkit.RTN(4, 32, symmetric=True))
    qkit.save(words_model, tmp_path, format="gptq")
    other = whole_words(make_model)
    qkit.quantize(other, qkit.RTN(2, 16))
    loaded, _ = qkit.load(qkit.save(other, tmp_path, format="gptq"))
    assert torch.equal(logits(loaded, ids), logits(other, ids))


def test_a_format_that_nobody_here_reads_is_named(words_model, tmp_path):
    qkit.quantize(words_model, qkit.RTN(4, 32, symmetric=True))
    qkit.save(words_model, tmp_path, format="gptq")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "hqq"
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, "quantized by 'hqq'; qkit reads gptq, awq, bitsandbytes, compressed-tensors, gguf: load it")


def test_a_save_that_is_interrupted_leaves_no_folder_that_looks_whole(words_model, tmp_path, monkeypatch):
    from qkit.checkpoints import folder

    qkit.quantize(words_model, qkit.RTN(4, 32, symmetric=True))
    qkit.save(words_model, tmp_path, format="gptq")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "publish", full)
    with pytest.raises(OSError, match="could not be written"):
        qkit.save(words_model, tmp_path, format="gptq")
    refused(tmp_path, "holds neither qkit.json nor config.json")


def test_a_model_of_another_kind_is_not_replaced(llama, tmp_path):
    """As a rule the floats from which all was made; what qkit wrote in the same format is."""
    llama.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    qkit.quantize(llama, qkit.NF4())
    with pytest.raises(ValueError, match=r"holds another model already \(model.safetensors\); give a new folder"):
        qkit.save(llama, tmp_path, format="bitsandbytes")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    for _ in range(2):
        qkit.save(llama, tmp_path / "new", format="bitsandbytes")
    (tmp_path / "new" / "config.json").unlink()  # as a save leaves it that was interrupted
    qkit.save(llama, tmp_path / "new", format="bitsandbytes")


def test_a_format_that_an_error_advises_exists():
    """The mend in a sentence is tried by whoever reads it."""
    advised = {
        (path.name, name)
        for room in ("checkpoints", "export", "integrations", "engine")
        for path in (Path(qkit.__file__).parent / room).rglob("*.py")
        for name in re.findall(r"format=['\"](\w[\w-]*)['\"]", path.read_text(encoding="utf-8"))
    }
    assert {name for _, name in advised} <= set(FORMATS), advised
