import copy

import pytest
import torch
from torch import nn

from qkit import RTN, QLinear, linear, quantize_tensor
from qkit.modules import quantized_layers

SCHEMES = [RTN(4), RTN(3, 4, symmetric=True), RTN(8, scale_dtype="float32"), RTN(2, 4, include_zero=False)]


def layer(scheme=SCHEMES[0], bias=True):
    source = nn.Linear(12, 5, bias=bias)
    return QLinear(quantize_tensor(source.weight, scheme), source.bias)


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float"])
def test_a_cast_of_the_model_keeps_codes_and_scales(scheme, cast):
    model = nn.Sequential(nn.Linear(12, 12), layer(scheme))
    before = {name: tensor.clone() for name, tensor in model[1].qtensor.tensors().items()}
    getattr(model, cast)()
    after = model[1].qtensor.tensors()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])
    assert model[1].bias.dtype == model[0].weight.dtype
    x = torch.ones(1, 12, dtype=model[0].weight.dtype)
    assert model(x).dtype == x.dtype


def test_a_cast_with_to_keeps_codes_and_scales():
    module = layer(SCHEMES[2])
    scales = module.scales.clone()
    assert torch.equal(module.to(torch.bfloat16).scales, scales)
    assert module.bias.dtype == torch.bfloat16


def test_moving_the_model_moves_every_part():
    module = layer(SCHEMES[3]).to("meta", torch.float16)
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}
    assert module.bias.dtype == torch.float16
    assert module.packed.dtype == torch.uint8


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_the_state_dict_round_trip_is_exact(scheme):
    torch.manual_seed(1)
    source, target = layer(scheme), layer(scheme)
    x = torch.randn(3, 12)
    assert not torch.equal(source(x), target(x))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(x), target(x))


def test_a_deep_copy_computes_the_same_and_shares_nothing():
    module = layer()
    twin = copy.deepcopy(module)
    assert torch.equal(twin(torch.ones(1, 12)), module(torch.ones(1, 12)))
    assert twin.packed.data_ptr() != module.packed.data_ptr()
    twin.scales.zero_()
    assert module.scales.abs().min() > 0


@pytest.mark.parametrize("bias", [True, False])
def test_forward_is_ops_linear_with_the_bias_of_the_source(bias):
    source = nn.Linear(12, 5, bias=bias)
    q = quantize_tensor(source.weight, bits=4)
    module = QLinear(q, source.bias)
    x = torch.randn(2, 3, 12)
    assert module.bias is source.bias
    assert torch.equal(module(x), linear(x, q, source.bias))


def test_the_qtensor_shares_memory_with_the_buffers():
    module = layer()
    assert module.qtensor.packed is module.packed
    assert module.qtensor.shape == (5, 12)


def test_repr_says_sizes_bias_and_bits():
    assert "in_features=12, out_features=5, bias=True, QTensor(5x12, 4 bits" in repr(layer())


def test_quantized_layers_are_found_by_name():
    model = nn.Sequential(nn.Linear(12, 12), nn.Sequential(layer()))
    assert quantized_layers(model) == {"1.0": model[1][0]}
