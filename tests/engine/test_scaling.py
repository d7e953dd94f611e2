"""Scales that are searched, kept, and folded into another copy of the model: the function stays."""

import json

import pytest
import torch
from safetensors.torch import save_file

from qkit import AWQ, SmoothQuant, quantize, search_scales
from qkit.engine.scaling import Scaling, pack_scales

SCHEMES = [AWQ(3, 4), SmoothQuant(0.7), SmoothQuant(None, "per-tensor")]
named = {"ids": lambda scheme: scheme.name}


@pytest.fixture
def tokens():
    return torch.randint(0, 97, (8, 48), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scheme", SCHEMES, **named)
def test_applying_them_keeps_the_function(make_model, any_kind, scheme, tokens, ids, logits):
    model = make_model(any_kind).double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scaling = search_scales(model, scheme, calibration=tokens)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    expected = logits(model, ids)
    scaling.apply(model)
    assert (logits(model, ids) - expected).abs().max() <= 1e-10 * expected.abs().max()
    changed = [name for name, p in model.named_parameters() if not torch.equal(before[name], p)]
    assert len(changed) > 2 * len(scaling) > 0


@pytest.mark.parametrize("scheme", SCHEMES, **named)
def test_they_are_those_that_quantize_folds_into_the_first_block(make_model, kind, scheme, tokens):
    """Later blocks are searched behind quantized ones."""
    model = make_model(kind)
    searched = search_scales(model, scheme, calibration=tokens)
    report = quantize(model, scheme, calibration=tokens)
    assert [repr(one).split(",")[0] for one in searched] == [repr(one).split(",")[0] for one in report.scaling]
    first = [(a, b) for a, b in zip(searched, report.scaling, strict=True) if ".0:" in repr(a)]
    assert first and all(torch.equal(a.scale, b.scale) and a.losses == b.losses for a, b in first)


@pytest.mark.parametrize("scheme", SCHEMES, **named)
def test_saved_and_loaded(make_model, scheme, tokens, tmp_path):
    model = make_model("llama")
    scaling = search_scales(model, scheme, calibration=tokens)
    path = scaling.save(tmp_path / "scales.safetensors")
    back = Scaling.load(path)
    assert [p.name for p in tmp_path.iterdir()] == ["scales.safetensors"]
    assert len(back) == len(scaling) == 8 and repr(back) == repr(scaling) == "Scaling(8 scales in 2 blocks)"
    for one, other in zip(scaling, back, strict=True):
        assert (one.block, one.alpha, one.alphas, one.losses) == (other.block, other.alpha, other.alphas, other.losses)
        assert (one.fold.producer, one.fold.consumers) == (other.fold.producer, other.fold.consumers)
        pairs = ((one.scale, other.scale), (one.salience, other.salience))
        pairs += ((one.fold.index, other.fold.index), (one.fold.rows, other.fold.rows))
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)
    models = make_model("llama"), make_model("llama")
    scaling.apply(models[0])
    back.apply(models[1])
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))


def test_alphas_searched_and_given(make_model, tokens):
    model = make_model("llama")
    given = search_scales(model, SmoothQuant(0.7), calibration=tokens)
    assert {(one.alpha, one.alphas, one.losses) for one in given} == {(0.7, (), ())}
    for scaling in (search_scales(model, s, calibration=tokens) for s in (AWQ(3, 4), SmoothQuant(None))):
        for one in scaling:
            assert one.losses[one.alphas.index(one.alpha)] == min(one.losses)


def test_only_included_layers_are_scaled(make_model, tokens):
    scaling = search_scales(make_model("llama"), AWQ(3, 4), calibration=tokens, include="model.layers.1.mlp.*")
    assert [(one.block, one.fold.consumers[-1]) for one in scaling] == [
        ("model.layers.1", "mlp.up_proj"),
        ("model.layers.1", "mlp.down_proj"),
    ]


@pytest.mark.parametrize(
    "other", [("llama", {"num_hidden_layers": 1}), ("llama", {"intermediate_size": 96}), ("gpt2", {})]
)
def test_another_model_is_refused_and_left_as_it_was(make_model, tokens, other):
    kind, changes = other
    scaling = search_scales(make_model("llama"), AWQ(3, 4), calibration=tokens)
    model = make_model(kind, **changes)
    before = dict(model.named_parameters())
    with pytest.raises(ValueError, match=r"does not fit this model|needs one number per channel"):
        scaling.apply(model)
    assert all(p is before[name] for name, p in model.named_parameters())


def test_a_file_that_was_altered_is_refused(make_model, tokens, tmp_path):
    path = search_scales(make_model("llama"), AWQ(3, 4), calibration=tokens).save(tmp_path / "scales.safetensors")
    raw = path.read_bytes()
    for damaged in (raw[:-1] + bytes([raw[-1] ^ 1]), raw[:-9], raw.replace(b"up_proj", b"up_porj", 1)):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"scales\.safetensors is not whole \(.*\); give a file that Scaling\.save"
        ):
            Scaling.load(path)


def test_a_file_of_before_there_were_sums_is_read(make_model, tokens, tmp_path):
    scaling = search_scales(make_model("llama"), AWQ(3, 4), calibration=tokens)
    tensors, records = pack_scales(scaling)
    save_file(tensors, tmp_path / "old.safetensors", {"qkit.scaling": json.dumps(records)})
    assert [repr(one) for one in Scaling.load(tmp_path / "old.safetensors")] == [repr(one) for one in scaling]


def test_a_file_of_something_else_is_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"holds no scales; give a file that Scaling\.save wrote"):
        Scaling.load(tmp_path / "other.safetensors")


def test_what_is_quantized_cannot_be_scaled_and_stays(make_model, tokens):
    scaling = search_scales(make_model("llama"), AWQ(4, 4), calibration=tokens)
    model = make_model("llama")
    quantize(model, AWQ(4, 4), calibration=tokens)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"q_proj is quantized already; apply scales to the model in float, then"):
        scaling.apply(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(TypeError, match="model is a str; give a module"):
        scaling.apply("bookworm-14m")


def test_they_are_saved_with_their_folder_and_never_onto_one(make_model, tokens, tmp_path):
    scaling = search_scales(make_model("llama"), AWQ(4, 4), calibration=tokens)
    assert len(Scaling.load(scaling.save(tmp_path / "a" / "scales"))) == len(scaling)
    with pytest.raises(IsADirectoryError, match="a is a folder; give the name of a file"):
        scaling.save(tmp_path / "a")
    with pytest.raises(ValueError, match="a is a folder and holds no scales; give a file that"):
        Scaling.load(tmp_path / "a")
