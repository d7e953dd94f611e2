import numpy as np
import pytest
import torch

from qkit import RTN, linear, ops, quantize_tensor
from qkit.ops import dequantize, quantize_activations, select

SHAPES = [(1, 1), (1, 12), (7, 1), (5, 36), (3, 100)]
SCHEMES = [
    {"group_size": None},
    {"group_size": None, "symmetric": True},
    {"group_size": None, "scale_dtype": "float32"},
    {"group_size": "tensor"},
    {"group_size": 4},
    {"group_size": 4, "include_zero": False},
    {"group_size": None, "include_zero": False, "scale_dtype": "float32"},
    {"group_size": "tensor", "include_zero": False},
]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", SCHEMES, ids=str)
@pytest.mark.parametrize("bits", range(2, 9))
def test_numba_and_torch_dequantize_to_the_same_bits(bits, options):
    for shape in SHAPES:
        if options["group_size"] == 4 and shape[1] % 4:
            continue
        q = quantize_tensor(normal(*shape), RTN(bits, **options))
        expected = q.dequantize()
        for backend in ("torch", "numba", None):
            found = dequantize(q, backend)
            assert found.dtype == torch.float32
            assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


def test_the_automatic_backend_is_the_fast_one_on_a_cpu():
    assert select("dequantize", None, torch.device("cpu")) is select("dequantize", "numba", torch.device("cpu"))


def test_the_automatic_backend_is_torch_elsewhere():
    assert select("dequantize", None, torch.device("meta")) is select("dequantize", "torch", torch.device("meta"))


@pytest.mark.parametrize("backend", ["triton", "cuda", ""])
def test_a_backend_that_does_not_exist_is_refused_with_those_that_do(backend):
    q = quantize_tensor(normal(2, 8), bits=4)
    with pytest.raises(ValueError, match=rf"backend='{backend}' cannot be used: .* use one of: torch, numba, or None"):
        linear(normal(1, 8), q, backend=backend)


@pytest.mark.parametrize("error", [ImportError("No module named 'numba'"), RuntimeError("cannot cache function")])
def test_where_the_kernel_cannot_be_imported_numba_is_refused_and_the_automatic_choice_is_torch(monkeypatch, error):
    def fail(module):
        raise error

    monkeypatch.setattr("qkit.ops.import_module", fail)
    ops._why_not_importable.cache_clear()
    q = quantize_tensor(normal(2, 8), bits=4)
    with pytest.raises(
        ValueError, match=rf"backend='numba' cannot be used: its kernel cannot be imported \({error}\); pip"
    ):
        dequantize(q, "numba")
    assert torch.equal(dequantize(q), q.dequantize())
    ops._why_not_importable.cache_clear()


def test_numba_is_refused_for_a_weight_that_is_not_on_the_cpu():
    q = quantize_tensor(normal(2, 8), bits=4).to("meta")
    with pytest.raises(ValueError, match=r'runs on the CPU and the weight is on meta; use backend="torch"'):
        dequantize(q, "numba")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 5), (0,)])
@pytest.mark.parametrize("backend", ["torch", "numba", None])
def test_linear_is_the_product_with_the_dequantized_weight(dtype, leading, backend):
    q = quantize_tensor(normal(7, 100), bits=3, group_size=20)
    x, bias = normal(*leading, 100, seed=1).to(dtype), normal(7, seed=2).to(dtype)
    found = linear(x, q, bias, backend=backend)
    assert found.dtype == dtype
    assert found.shape == (*leading, 7)
    weight = q.dequantize().to(dtype).double()
    expected = x.double() @ weight.T + bias.double()
    terms = x.double().abs() @ weight.abs().T + bias.double().abs()
    # K products summed in float32 (float64 for float64): at most K + 1 roundings. A 16-bit result is rounded once, or
    # twice where the bias is added after that. finfo.eps is two roundings.
    accumulator = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2
    result = torch.finfo(dtype).eps
    assert ((found.double() - expected).abs() <= (101 * accumulator + result) * terms).all()


def test_linear_without_a_bias_adds_nothing():
    q = quantize_tensor(normal(3, 8), bits=4)
    assert linear(torch.zeros(2, 8), q).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_int8_activations_are_quantized_token_by_token(dtype):
    x = normal(2, 5, 12).to(dtype)
    x[0, 0] = 0
    x[1, 2, 3] = 50
    wide = x.float().numpy()
    reach = np.abs(wide).max(-1, keepdims=True)
    scale = np.where(reach == 0, np.float32(1), reach / np.float32(127))
    expected = np.clip(np.rint(wide / scale), -127, 127) * scale
    assert torch.equal(quantize_activations(x), torch.from_numpy(expected).to(dtype))


def test_linear_with_int8_activations_multiplies_the_quantized_ones():
    q, x = quantize_tensor(normal(7, 12), bits=8), normal(5, 12, seed=1)
    assert torch.equal(linear(x, q, activations="int8"), linear(quantize_activations(x), q))
    assert not torch.equal(linear(x, q, activations="int8"), linear(x, q))


def test_gradients_flow_to_the_input():
    q = quantize_tensor(normal(7, 12), bits=4)
    x = normal(5, 12).requires_grad_()
    linear(x, q).sum().backward()
    # The gradient of the sum is the sum of 7 rows: at most 7 roundings.
    torch.testing.assert_close(
        x.grad[0], q.dequantize().sum(0), rtol=0, atol=7 * 2**-23 * q.dequantize().abs().sum(0).max().item()
    )


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.ones(2, 9), {}, r"x has shape \(2, 9\), the weight takes \[\.\.\., 8\]; check which layer"),
        (torch.tensor(1.0), {}, r"x has shape \(\), the weight takes \[\.\.\., 8\]"),
        (torch.ones(2, 8, dtype=torch.long), {}, r"x is torch\.int64, linear takes floats; call x\.float\(\)"),
        (torch.ones(2, 8), {"bias": torch.ones(8)}, r"bias has shape \(8,\), the weight has 3 outputs; give \[3\]"),
        (torch.ones(2, 8), {"activations": "int4"}, "activations='int4' is not known; use None or \"int8\""),
    ],
)
def test_a_wrong_call_is_refused_in_one_sentence(x, options, message):
    with pytest.raises(ValueError, match=message):
        linear(x, quantize_tensor(normal(3, 8), bits=4), **options)
