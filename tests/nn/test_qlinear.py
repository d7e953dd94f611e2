import copy

import pytest
import torch
from torch import nn

from qkit import RTN, LLMInt8, QLinear, linear, quantize, quantize_tensor
from qkit.methods.codebook import FP4, NF4, codebook_quantize
from qkit.methods.int8 import int8_rows
from qkit.nn.int8_linear import Int8Linear
from qkit.nn.layers import is_quantized, quantized_layers
from qkit.ops import int8_linear

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


@pytest.mark.parametrize("scheme", [RTN(4), LLMInt8()])
def test_it_is_called_by_name_as_a_linear_layer_is(scheme):
    layer, x = nn.Sequential(nn.Linear(12, 5)), torch.randn(3, 12)
    quantize(layer, scheme)
    assert torch.equal(layer[0](input=x), layer[0](x))


def test_the_qtensor_shares_memory_with_the_buffers():
    module = layer()
    assert module.qtensor.packed is module.packed
    assert module.qtensor.shape == (5, 12)


def test_repr_says_sizes_bias_and_bits():
    assert "in_features=12, out_features=5, bias=True, QTensor(5x12, 4 bits" in repr(layer())


def test_quantized_layers_are_found_by_name():
    model = nn.Sequential(nn.Linear(12, 12), nn.Sequential(layer()), int8_layer())
    assert quantized_layers(model) == {"1.0": model[1][0], "2": model[2]}
    assert [is_quantized(module) for module in model] == [False, False, True]


# ---- codebooks


@pytest.mark.parametrize("scheme", [NF4(), FP4(32, double_quant=False)], ids=repr)
def test_a_layer_of_a_codebook_weight_keeps_its_kind(scheme):
    source = nn.Linear(12, 5)
    q = codebook_quantize(source.weight, scheme)
    module = QLinear(q, source.bias)
    x = torch.randn(2, 3, 12)
    assert type(module.qtensor) is type(q)
    assert torch.equal(module(x), linear(x, q, source.bias))
    before = q.tensors()
    after = module.half().qtensor.tensors()
    assert all(torch.equal(after[name], before[name]) and after[name].dtype == before[name].dtype for name in before)
    assert module(x.half()).dtype == torch.float16
    assert {tensor.device.type for tensor in module.to("meta").state_dict().values()} == {"meta"}


# ---- INT8 times INT8


def int8_layer(**options):
    source = nn.Linear(12, 5)
    return Int8Linear(int8_rows(source.weight), source.bias, **options)


STATIC = {"activations": "per-tensor", "input_scale": torch.tensor(0.03)}


@pytest.mark.parametrize("options", [{}, STATIC, {"threshold": 1.5}], ids=str)
def test_forward_is_int8_linear(options):
    module, x = int8_layer(**options), torch.randn(2, 3, 12)
    expected = int8_linear(x, module.qtensor, module.bias, options.get("input_scale"), options.get("threshold", 0.0))
    assert torch.equal(module(x), expected)


@pytest.mark.parametrize("options", [{}, STATIC], ids=str)
@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_a_cast_keeps_codes_and_both_scales(options, cast):
    module = int8_layer(**options)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    getattr(module, cast)()
    assert ("input_scale" in before) == bool(options)
    for name, buffer in module.named_buffers():
        assert buffer.dtype == before[name].dtype and torch.equal(buffer, before[name])
    assert module(torch.ones(1, 12, dtype=module.bias.dtype)).dtype == module.bias.dtype


def test_repr_says_how_activations_are_quantized():
    assert repr(int8_layer(threshold=6.0)).endswith("activations=per-token, threshold=6)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activations": "per-row"}, 'activations=\'per-row\' is not known; use "per-token" or "per-tensor"'),
        ({"activations": "per-tensor"}, "activations='per-tensor' lacks its input_scale; give one"),
        ({"input_scale": torch.tensor(1.0)}, "activations='per-token' takes no input_scale"),
        ({**STATIC, "input_scale": torch.tensor(0.0)}, r"input_scale=0\.0 is no positive float32 scalar"),
        ({**STATIC, "input_scale": torch.tensor(float("nan"))}, "is no positive float32 scalar"),
        ({**STATIC, "input_scale": torch.ones(1)}, "is no positive float32 scalar"),
        ({**STATIC, "input_scale": torch.tensor(1.0).half()}, "is no positive float32 scalar"),
        ({"threshold": -1.0}, r"threshold=-1\.0 is not a size of activations; use 6\.0"),
        ({"threshold": float("nan")}, "threshold=nan is not a size of activations"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        int8_layer(**options)


def test_a_weight_of_four_bits_is_refused():
    with pytest.raises(ValueError, match="INT8 arithmetic takes 8 bits"):
        Int8Linear(quantize_tensor(torch.ones(2, 4), bits=4))
