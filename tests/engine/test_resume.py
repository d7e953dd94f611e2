"""Interrupted work, taken up again: bit for bit what it would have been."""

import math
import threading
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qkit import AWQ, FP4, GPTQ, NF4, RTN, W8A8, LLMInt8, SmoothQuant, quantize
from qkit.nn.layers import quantized_layers

GPTQ8 = GPTQ(8, None, symmetric=True)
SCHEMES = [GPTQ(3, 4), GPTQ.paper(4, None), AWQ(3, 4), AWQ(4, 4, rounding=GPTQ(4, 4)), LLMInt8(0.5)]
SCHEMES += [W8A8("per-tensor", "mse"), SmoothQuant(None, "per-tensor"), SmoothQuant(0.5, rounding=GPTQ8)]
SCHEMES += [
    {"*.o_proj": NF4(32), "*.v_proj": FP4(64, False), "*.up_proj": RTN(4, 4, include_zero=False), "*": AWQ(4, 4)}
]
SCHEMES += [{"*.c_proj": AWQ(4, 4), "*": RTN(3)}]


def named(scheme):
    return "by layer" if isinstance(scheme, dict) else scheme.name


@pytest.fixture
def tokens():
    return torch.randint(0, 97, (8, 48), generator=torch.Generator().manual_seed(1))


def interrupt(monkeypatch, at):
    """Ctrl-C at the `at`-th layer."""
    stream, calls = import_module("qkit.engine.stream"), []
    solve_layer = stream.solve_layer

    def interrupted(*args):
        calls.append(args)
        if len(calls) == at:
            raise KeyboardInterrupt
        return solve_layer(*args)

    monkeypatch.setattr(stream, "solve_layer", interrupted)
    return calls


def equal(a, b):
    """Two models, bit for bit, by name, and of the same classes."""
    a, b = (dict(m.state_dict()) for m in (a, b))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype and torch.equal(tensor, b[name]), name


def same_report(a, b):
    a, b = a.to_dict(), b.to_dict()
    del a["seconds"], b["seconds"]
    for one, other in zip(a.pop("layers"), b.pop("layers"), strict=True):
        errors = one.pop("error"), other.pop("error")
        assert one == other
        assert all(math.isclose(errors[0][key], errors[1][key], rel_tol=1e-12) for key in errors[0])
    assert a == b


@pytest.mark.parametrize("scheme", SCHEMES, ids=named)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_interrupted_work_goes_on_to_the_same_bits(
    make_model, kind, scheme, tokens, tmp_path, monkeypatch, ids, logits
):
    if isinstance(scheme, dict) and ("*.o_proj" in scheme) != (kind == "llama"):
        pytest.skip("globs for the other kind")
    whole, model = make_model(kind), make_model(kind)
    expected = quantize(whole, scheme, calibration=tokens)
    per_block = len(quantized_layers(whole)) // 2
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, per_block + 2)
        quantize(model, scheme, calibration=tokens, resume=tmp_path / "kept")
    assert not quantized_layers(model)
    assert [path.name.split(".")[-2] for path in (tmp_path / "kept").iterdir()] == ["0"]
    with monkeypatch.context() as patch:
        calls = interrupt(patch, -1)
        report = quantize(model, scheme, calibration=tokens, resume=tmp_path / "kept")
    assert len(calls) == per_block  # only the second block was solved
    equal(model, whole)
    same_report(report, expected)
    for one, other in zip(report.scaling, expected.scaling, strict=True):
        assert repr(one) == repr(other) and torch.equal(one.scale, other.scale)
        assert (one.alphas, one.losses) == (other.alphas, other.losses)
    assert torch.equal(logits(model, ids), logits(whole, ids))
    assert not list((tmp_path / "kept").glob(".*"))


@pytest.mark.parametrize("scheme", [AWQ(4, 4), SmoothQuant(None, "per-tensor")], ids=named)
def test_finished_work_is_only_read(make_model, scheme, tokens, tmp_path, monkeypatch):
    first, second = make_model("opt"), make_model("opt")
    quantize(first, scheme, calibration=tokens, resume=tmp_path)
    calls = interrupt(monkeypatch, -1)
    quantize(second, scheme, calibration=tokens, resume=tmp_path)
    assert not calls
    equal(first, second)
    for name, layer in quantized_layers(second).items():  # what folding replaced is one object, in the layer too
        assert layer.bias is dict(second.named_parameters())[f"{name}.bias"]
        assert layer.bias.requires_grad


def test_a_training_model_goes_on_in_training(make_model, tokens, tmp_path):
    for _ in range(2):
        model = make_model("llama").train()
        quantize(model, GPTQ(4, 4), calibration=tokens, resume=tmp_path)
        assert {module.training for module in model.modules()} == {True}


def test_a_half_precision_model(make_model, tokens, tmp_path):
    models = make_model("llama").bfloat16(), make_model("llama").bfloat16()
    for model in models:
        quantize(model, AWQ(4, 4), calibration=tokens, resume=tmp_path)
    equal(*models)


OTHER = {
    "scheme": lambda model, tokens: (model, GPTQ(4, 4, damp=0.02), tokens),
    "scheme of one layer": lambda model, tokens: (model, {"*.0.mlp.up_proj": RTN(8), "*": GPTQ(4, 4)}, tokens),
    "calibration": lambda model, tokens: (model, GPTQ(4, 4), tokens.flip(0)),
    "other sequences of the same tokens": lambda model, tokens: (model, GPTQ(4, 4), tokens.reshape(16, 24)),
    "fewer tokens": lambda model, tokens: (model, GPTQ(4, 4), tokens[:7]),
}


@pytest.mark.parametrize("other", OTHER)
def test_other_work_is_refused(make_model, tokens, tmp_path, other):
    quantize(make_model("llama"), GPTQ(4, 4), calibration=tokens, resume=tmp_path)
    model, scheme, ids = OTHER[other](make_model("llama"), tokens)
    with pytest.raises(
        ValueError, match=r"layers\.0\.safetensors was made by other work .* give another folder, or empty"
    ):
        quantize(model, scheme, calibration=ids, resume=tmp_path)
    assert not quantized_layers(model)


@pytest.mark.parametrize(
    "where", ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight", "model.norm.weight"]
)
def test_another_model_is_refused(make_model, tokens, tmp_path, where):
    """One number is different."""
    quantize(make_model("llama"), GPTQ(4, 4), calibration=tokens, resume=tmp_path)
    model = make_model("llama")
    with torch.no_grad():
        model.get_parameter(where).view(-1)[5] += 0.25
    with pytest.raises(ValueError, match="was made by other work"):
        quantize(model, GPTQ(4, 4), calibration=tokens, resume=tmp_path)


def test_layers_left_out_make_other_work(make_model, tokens, tmp_path):
    quantize(make_model("llama"), GPTQ(4, 4), calibration=tokens, resume=tmp_path, exclude="*.q_proj")
    model = make_model("llama")
    with pytest.raises(ValueError, match="was made by other work"):
        quantize(model, GPTQ(4, 4), calibration=tokens, resume=tmp_path)


def flipped(raw, byte):
    return raw[:byte] + bytes([raw[byte] ^ 1]) + raw[byte + 1 :]


FLIPS = {
    "a number": lambda raw: flipped(raw, len(raw) - 1),
    "another": lambda raw: flipped(raw, len(raw) - 2000),
    "a name": lambda raw: raw.replace(b"up_proj.packed", b"up_proj.packee", 1),
    "a field of the record": lambda raw: raw.replace(b'\\"damp\\"', b'\\"damq\\"', 1),
    "a number of the record": lambda raw: raw.replace(b'\\"tokens\\": 384', b'\\"tokens\\": 385', 1),
    "a shape": lambda raw: raw.replace(b'"shape":[100,48]', b'"shape":[48,100]', 1),
    "the sum": lambda raw: raw.replace(b'\\"sha256\\"', b'\\"sha257\\"', 1),
}


@pytest.mark.parametrize("damage", FLIPS.values(), ids=FLIPS)
def test_a_block_that_was_altered_is_refused(make_model, tokens, tmp_path, damage):
    quantize(make_model("llama"), GPTQ(4, 4), calibration=tokens, resume=tmp_path)
    path = tmp_path / "model.layers.1.safetensors"
    raw = path.read_bytes()
    assert damage(raw) != raw
    path.write_bytes(damage(raw))
    model = make_model("llama")
    before = dict(model.named_parameters())
    with pytest.raises(
        ValueError, match=r"layers\.1\.safetensors is not whole \(.*\); delete it, and its block is solved"
    ):
        quantize(model, GPTQ(4, 4), calibration=tokens, resume=tmp_path)
    assert not quantized_layers(model)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_a_block_of_before_there_were_sums_is_refused(make_model, tokens, tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model.layers.0.safetensors", {"qkit.block": "{}"})
    with pytest.raises(ValueError, match=r"layers\.0\.safetensors holds no finished block; delete it"):
        quantize(make_model("llama"), GPTQ(4, 4), calibration=tokens, resume=tmp_path)


def test_two_at_the_same_work_in_one_folder_make_the_same_blocks(make_model, tokens, tmp_path):
    """Neither writes into the other's draft, and each block is whole at any time."""
    alone = make_model("llama")
    quantize(alone, GPTQ(4, 4), calibration=tokens, resume=tmp_path / "alone")
    models, errors = [make_model("llama") for _ in range(2)], []

    def work(model):
        try:
            quantize(model, GPTQ(4, 4), calibration=tokens, resume=tmp_path / "both", progress=False)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for model in models:
        equal(model, alone)
    folders = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("alone", "both")]
    assert folders[0] == folders[1] and len(folders[0]) == 2


def test_an_interrupted_write_leaves_no_block(make_model, tokens, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            quantize(make_model("llama"), GPTQ(4, 4), calibration=tokens, resume=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_refused(make_model, tokens, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file is a file; give a folder"):
        quantize(make_model("llama"), GPTQ(4, 4), calibration=tokens, resume=tmp_path / "file")


@pytest.mark.parametrize("damage", [lambda raw: raw[:-100], lambda raw: raw[:50], lambda raw: b""])
def test_a_file_that_is_not_whole_is_refused(make_model, tokens, tmp_path, damage):
    quantize(make_model("llama"), GPTQ(4, 4), calibration=tokens, resume=tmp_path)
    path = tmp_path / "model.layers.1.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    model = make_model("llama")
    with pytest.raises(
        ValueError, match=r"layers\.1\.safetensors is not whole \(.*\); delete it, and its block is solved"
    ):
        quantize(model, GPTQ(4, 4), calibration=tokens, resume=tmp_path)
    assert not quantized_layers(model)
    path.unlink()
    quantize(model, GPTQ(4, 4), calibration=tokens, resume=tmp_path)
    assert len(quantized_layers(model)) == 14


def test_a_scheme_without_data_needs_no_folder(llama, tmp_path):
    quantize(llama, RTN(4), resume=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_blocks_under_each_others_names_are_refused(make_model, tokens, tmp_path):
    quantize(make_model("llama"), GPTQ(4, 4), calibration=tokens, resume=tmp_path)
    first, second = sorted(tmp_path.iterdir())
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    with pytest.raises(
        ValueError, match=r"layers\.0\.safetensors holds model\.layers\.1\.\S+, which is another block's"
    ):
        quantize(make_model("llama"), GPTQ(4, 4), calibration=tokens, resume=tmp_path)


def test_a_folder_in_the_place_of_a_block_is_refused(make_model, tokens, tmp_path):
    (tmp_path / "model.layers.1.safetensors").mkdir()
    with pytest.raises(ValueError, match=r"layers\.1\.safetensors is a folder and holds no finished block; delete it"):
        quantize(make_model("llama"), GPTQ(4, 4), calibration=tokens, resume=tmp_path)
