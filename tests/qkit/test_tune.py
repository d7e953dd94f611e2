import copy

import pytest
import torch

import qkit
from qkit.modules import quantized_layers
from qkit.surgery import clone


@pytest.fixture
def ids():
    return torch.randint(2, 97, (6, 24), generator=torch.Generator().manual_seed(1))


def spread(original, model, ids):
    return qkit.kl_divergence(original, model, None, ids)


@pytest.mark.parametrize("scheme", [qkit.RTN(2, 12), qkit.RTN(3, 4, include_zero=False), qkit.RTN(3, symmetric=True)])
def test_it_lowers_the_divergence_and_keeps_codes_and_bytes(make_model, ids, scheme):
    original = make_model("qwen2", intermediate_size=96)
    model = clone(original)
    qkit.quantize(model, scheme)
    before = {name: layer.qtensor for name, layer in quantized_layers(model).items()}
    loss, size = spread(original, model, ids), qkit.memory_bytes(model)
    untouched = {name: p.clone() for name, p in original.named_parameters()}
    report = qkit.tune(model, original, calibration=ids, epochs=12, learning_rate=5e-3)
    assert spread(original, model, ids) < 0.8 * loss
    assert report.losses[-1] < report.losses[0] and report.parameters > 0
    assert qkit.memory_bytes(model) == size
    for name, layer in quantized_layers(model).items():
        q = layer.qtensor
        assert torch.equal(q.packed, before[name].packed) and q.scales.dtype == before[name].scales.dtype
        assert not torch.equal(q.scales, before[name].scales)
    for name, parameter in original.named_parameters():
        assert torch.equal(parameter, untouched[name]), name  # the original shares tensors with its clone


def test_tied_embeddings_stay_tied_and_frozen(make_model, ids):
    original = make_model("gpt2")
    model = clone(original)
    qkit.quantize(model, qkit.RTN(3))
    qkit.tune(model, original, calibration=ids, epochs=1)
    assert model.lm_head.weight is model.transformer.wte.weight is original.transformer.wte.weight


def test_an_interrupt_leaves_the_model_as_it_was(llama, ids, monkeypatch):
    original = copy.deepcopy(llama)
    qkit.quantize(llama, qkit.RTN(3))
    state = {name: tensor.clone() for name, tensor in llama.state_dict().items()}

    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.Adam, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        qkit.tune(llama, original, calibration=ids)
    assert all(torch.equal(tensor, state[name]) for name, tensor in llama.state_dict().items())


def test_what_has_no_scales_to_tune_is_refused(llama, ids):
    with pytest.raises(ValueError, match="no weight-only quantized layer"):
        qkit.tune(llama, copy.deepcopy(llama), calibration=ids)
    original = copy.deepcopy(llama)
    qkit.quantize(llama, qkit.NF4())
    with pytest.raises(ValueError, match="codebooks and INT8"):
        qkit.tune(llama, original, calibration=ids)


def test_a_loss_that_is_not_finite_is_refused(llama, ids):
    original = copy.deepcopy(llama)
    qkit.quantize(llama, qkit.RTN(4))
    llama.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="the loss became nan"):
        qkit.tune(llama, original, calibration=ids)
