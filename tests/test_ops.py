import warnings
from importlib import import_module

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from grids import thinned
from products import off, off_int8, values, weight
from qkit import RTN, W8A8, LLMInt8, QLinear, SmoothQuant, linear, ops, quantize_tensor
from qkit.dispatch import TABLE, missing, rows_of, select
from qkit.methods.codebook import FP4, NF4, codebook_quantize
from qkit.methods.int8 import int8_rows
from qkit.methods.statistics import InputStatistics
from qkit.numerics.packing import pack
from qkit.ops import (
    dequantize,
    int8_codes,
    int8_linear,
    int8_matmul,
    outlier_columns,
    quantize_activations,
    quantize_activations_int8,
)

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


def forget():
    """What the table has found out about this machine."""
    missing.cache_clear()
    select.cache_clear()


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


@pytest.mark.parametrize("op", sorted({kernel.op for kernel in TABLE if kernel.backend == "numba"}))
def test_the_automatic_backend_is_the_fast_one_on_a_cpu_and_torch_elsewhere(op):
    for device, backend in (("cpu", "numba"), ("meta", "torch")):
        assert select(op, None, device) is select(op, backend, device)


def test_every_operation_has_a_specification_that_runs_anywhere():
    for op in {kernel.op for kernel in TABLE}:
        last = rows_of(op)[-1]
        assert last.backend == "torch" and last.devices == () and callable(last.load())


@pytest.mark.parametrize("backend", ["cuda", "triton2", ""])
def test_a_backend_that_does_not_exist_is_refused_with_those_that_do(backend):
    q = quantize_tensor(normal(2, 8), bits=4)
    with pytest.raises(
        ValueError, match=rf"backend='{backend}' cannot be used: .* use one of: torch, triton, numba, or None"
    ):
        linear(normal(1, 8), q, backend=backend)


@pytest.mark.parametrize("error", [ImportError("No module named 'numba'"), RuntimeError("cannot cache function")])
def test_where_the_kernel_cannot_be_imported_numba_is_refused_and_the_automatic_choice_is_torch(monkeypatch, error):
    def fail(module):
        if "numba" in module:
            raise error
        return import_module(module)

    monkeypatch.setattr("qkit.dispatch.import_module", fail)
    forget()
    q = quantize_tensor(normal(2, 8), bits=4)
    with pytest.raises(
        ValueError, match=rf"backend='numba' cannot be used: its kernel cannot be imported \({error}\); pip"
    ):
        dequantize(q, "numba")
    assert torch.equal(dequantize(q), q.dequantize())
    assert torch.equal(pack(q.codes(), 4), q.packed)  # whatever is chosen by the table falls back alike
    forget()


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
    weight, sizes = values(q)
    expected = x.double() @ weight.T + bias.double()
    terms = x.double().abs() @ sizes.T + bias.double().abs()
    # K products summed in float32 (float64 for float64), and what a zero point shifts: at most 2 K + 2 roundings. torch
    # rounds the weight to the dtype of x first. A 16-bit result is rounded once, or twice where the bias is added after
    # that. finfo.eps is two roundings.
    accumulator = torch.finfo(torch.float32 if dtype != torch.float64 or backend == "numba" else dtype).eps / 2
    result = torch.finfo(dtype).eps * (1 + (backend == "torch"))
    assert ((found.double() - expected).abs() <= (202 * accumulator + result) * terms).all()


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


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_linear_with_int8_activations_multiplies_the_quantized_ones(backend):
    """torch as floats and to the last bit, numba as integers and to rounding."""
    q, x = quantize_tensor(normal(7, 12), bits=8), normal(5, 12, seed=1)
    found = linear(x, q, backend=backend, activations="int8")
    assert off_int8(found, x, q) < 1
    assert off(linear(x, q, backend=backend), x, q) < 1 < off(found, x, q)
    if backend == "torch":
        assert torch.equal(found, linear(quantize_activations(x), q, backend="torch"))


@pytest.mark.parametrize("q", [weight(4, 7, 96, 32, real=True), codebook_quantize(normal(7, 128), NF4())], ids=repr)
def test_the_torch_backend_is_the_product_with_the_weight_as_floats_to_the_last_bit(q):
    x = normal(3, q.shape[1])
    assert torch.equal(linear(x, q, backend="torch"), x @ q.dequantize().T)


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


# ---- codebooks


@pytest.mark.parametrize("scheme", [NF4(), NF4(32, double_quant=False), FP4()], ids=repr)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_codebook_weight_is_dequantized_and_multiplied(scheme, shape):
    q, x = codebook_quantize(normal(*shape), scheme), normal(2, shape[1], seed=1)
    assert torch.equal(dequantize(q), q.dequantize())
    assert torch.equal(linear(x, q), x @ q.dequantize().T)


def test_a_codebook_weight_has_no_numba_kernel():
    q = codebook_quantize(normal(2, 8), NF4())
    with pytest.raises(ValueError, match="backend='numba' cannot be used: there is no such kernel; use one of: torch,"):
        dequantize(q, "numba")


# ---- INT8 times INT8


@pytest.mark.parametrize("k", [0, 1, 2, 3, 7, 8, 9, 31, 64, 100])
def test_the_integer_product_is_exact_in_every_shape(k):
    generator = torch.Generator().manual_seed(k)
    for m in (0, 1, 2, 5, 16, 33):
        for n in (1, 2, 3, 8, 17):
            a, b = (torch.randint(-128, 128, (rows, k), generator=generator, dtype=torch.int8) for rows in (m, n))
            found = int8_matmul(a, b)
            assert found.dtype == torch.int32
            assert torch.equal(found.double(), a.double() @ b.double().T), (m, n, k)


def test_the_largest_sums_do_not_overflow():
    a = torch.full((1, ops.INT8_MAX_FEATURES), -128, dtype=torch.int8)
    assert int8_matmul(a, torch.full_like(a, 127)).item() == -128 * 127 * ops.INT8_MAX_FEATURES


def test_int8_codes_of_activations_are_those_of_the_fake_quantization():
    x = normal(6, 13) * torch.tensor([1e-30, 1e-3, 1, 50, 1e30, 0])[:, None]
    codes, scales = quantize_activations_int8(x)
    assert codes.dtype == torch.int8 and scales.shape == (6, 1)
    assert codes[:5].abs().amax(1).tolist() == [127] * 5 and scales[5] == 1
    assert torch.equal(codes * scales, quantize_activations(x))


def test_a_fixed_scale_clamps_what_is_larger():
    codes, scales = quantize_activations_int8(torch.tensor([[0.24, -0.26, 100.0, -float("inf")]]), torch.tensor(0.5))
    assert codes.tolist() == [[0, -1, 127, -127]]
    assert scales.tolist() == [[0.5]]


def test_int8_codes_of_a_weight_are_the_stored_ones_less_128():
    q = int8_rows(normal(5, 7))
    assert int8_codes(q).dtype == torch.int8
    assert torch.equal(int8_codes(q).int(), q.codes().int() - 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 5), (0,)])
@pytest.mark.parametrize("columns", [1, 13, 100])
def test_int8_linear_is_the_product_of_both_fake_quantizations(dtype, leading, columns):
    q, bias = int8_rows(normal(7, columns)), normal(7, seed=2)
    x = normal(*leading, columns, seed=1).to(dtype)
    found = int8_linear(x, q, bias.to(dtype))
    assert found.dtype == dtype and found.shape == (*leading, 7)
    codes, scales = quantize_activations_int8(x.reshape(-1, columns))
    exact = (codes.double() * scales.double()) @ (int8_codes(q).double() * q.scales.double()).T
    expected = exact.reshape(*leading, 7) + bias.to(dtype).double()
    # The sum is exact; int32 to float32, two scales and the bias are four roundings, and the result is a fifth.
    limit = 4 * 2**-24 * (exact.abs().reshape(*leading, 7) + bias.abs()) + torch.finfo(dtype).eps * expected.abs()
    assert ((found.double() - expected).abs() <= limit + 1e-12).all()


def test_a_fixed_scale_that_fits_every_token_gives_nearly_the_dynamic_result():
    q, x = int8_rows(normal(7, 100)), normal(20, 100, seed=1)
    exact = x @ q.dequantize().T
    static, dynamic = int8_linear(x, q, input_scale=x.abs().max() / 127), int8_linear(x, q)
    errors = [((y - exact).square().mean() / exact.square().mean()).sqrt() for y in (dynamic, static)]
    assert errors[0] < errors[1] < 0.02


def test_outliers_stay_floats_and_the_rest_keeps_its_precision():
    q, x = int8_rows(normal(7, 100)), normal(20, 100, seed=1).clamp(-3, 3)
    x[3, 5], x[8, 60] = 80, -6
    assert outlier_columns(x.reshape(4, 5, 100), 6.0).nonzero().flatten().tolist() == [5, 60]
    exact = x @ q.dequantize().T
    with_outliers, without = int8_linear(x, q, threshold=6.0), int8_linear(x, q)
    assert (with_outliers - exact).abs()[3].max() < (without - exact).abs()[3].max() / 10
    calm = torch.where(outlier_columns(x, 6.0), 0, x)
    expected = int8_linear(calm, q) + (x - calm) @ q.dequantize().T
    torch.testing.assert_close(with_outliers, expected, rtol=1e-5, atol=1e-5)


def test_a_threshold_that_nothing_reaches_changes_no_bit():
    q, x = int8_rows(normal(7, 100)), normal(20, 100, seed=1)
    assert torch.equal(int8_linear(x, q, threshold=100.0), int8_linear(x, q))


def test_when_every_column_is_an_outlier_nothing_is_rounded():
    q, x = int8_rows(normal(7, 10)), normal(3, 10, seed=1) + 100
    torch.testing.assert_close(int8_linear(x, q, threshold=6.0), x @ q.dequantize().T)


@pytest.mark.parametrize("options", [{}, {"threshold": 6.0}, {"input_scale": torch.tensor(0.1)}], ids=str)
def test_nan_comes_out_of_its_own_token_and_of_no_other(options):
    x = normal(4, 8)
    x[1, 2] = float("nan")
    found = int8_linear(x, int8_rows(normal(3, 8, seed=1)), **options)
    assert found.isnan().all(1).tolist() == [False, True, False, False]
    assert not found[[0, 2, 3]].isnan().any()


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_infinity_never_comes_out_as_a_finite_number(threshold):
    x = normal(4, 8)
    x[1, 2] = float("inf")
    found = int8_linear(x, int8_rows(normal(3, 8, seed=1)), threshold=threshold)
    assert found.isfinite().all(1).tolist() == [True, False, True, True]
    assert not found[1].isfinite().any()


@pytest.mark.parametrize(
    ("q", "message"),
    [
        (quantize_tensor(normal(3, 8), RTN(4, symmetric=True)), r"takes 8 bits, symmetric, .* 4 bits.*; use int8_rows"),
        (quantize_tensor(normal(3, 8), RTN(8)), "zero points.*; use int8_rows"),
        (quantize_tensor(normal(3, 8), RTN(8, 4, symmetric=True)), "g4.*; use int8_rows"),
        (codebook_quantize(normal(3, 8), FP4()), "CodebookQTensor.*; use int8_rows"),
        (
            int8_rows(torch.ones(1, 2**17 + 1)),
            "in_features=131073 may overflow int32; the limit is 131072: use QLinear",
        ),
    ],
    ids=["4 bits", "zero points", "groups", "codebook", "too wide"],
)
def test_a_weight_that_integers_cannot_take_is_refused(q, message):
    with pytest.raises(ValueError, match=message):
        int8_linear(torch.ones(1, q.shape[1]), q)


@pytest.mark.parametrize("name", ["qkit_kernels.numba.weight_only", "numba"])
def test_a_kernel_that_is_broken_is_an_error_and_one_that_is_not_installed_is_none(monkeypatch, name):
    def refuse(_module):
        raise ImportError(f"cannot import {name}", name=name)

    monkeypatch.setattr("qkit.dispatch.import_module", refuse)
    why = missing.__wrapped__
    if name == "numba":
        assert why("qkit.backends.numba") == "cannot import numba"
    else:
        with pytest.raises(ImportError, match="cannot import"):
            why("qkit.backends.numba")


# ---- gradients and torch.compile: nothing is cut off the graph, and nothing dies inside the compiler

LAYERS = [
    RTN(4, 16),
    RTN(4, 16, activations="int8"),
    RTN(3, "tensor", include_zero=False),
    NF4(),
    FP4(32, double_quant=False),
    LLMInt8(),
    LLMInt8(0.5),
    W8A8(),
    W8A8("per-tensor"),
    SmoothQuant(),
]


def a_layer(scheme, dtype=torch.float32):
    """(the layer, the float layer of the same weight) with 48 inputs, not a whole block of a codebook, and 5 outputs."""
    weight, inputs = normal(5, 48), InputStatistics.empty(48)
    inputs.add(normal(64, 48, seed=3))
    q = scheme.round(weight, inputs).q
    plain = torch.nn.Linear(48, 5)
    plain.weight = torch.nn.Parameter(q.dequantize(), requires_grad=False)
    layer = scheme.layer(q, plain.bias, inputs)
    return layer.to(dtype), plain.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scheme", LAYERS, ids=lambda scheme: scheme.name)
def test_gradients_go_straight_through_as_in_the_float_layer(scheme, dtype):
    layer, plain = a_layer(scheme, dtype=dtype)
    grads = []
    for module in (layer, plain):
        x = normal(2, 3, 48, seed=1).to(dtype).requires_grad_()
        module.zero_grad()
        y = module(x)
        assert y.requires_grad and y.shape == (2, 3, 5) and y.dtype == dtype
        y.backward(torch.arange(30, dtype=dtype).reshape(2, 3, 5) / 8)
        grads.append((x.grad, module.bias.grad))
    for found, expected in zip(*grads, strict=True):
        # one rounding to the dtype in either, and 5 products summed in it; INT8 layers compute in float32 at best
        eps = torch.finfo(dtype if type(layer) is QLinear or dtype == torch.bfloat16 else torch.float32).eps
        torch.testing.assert_close(found, expected, rtol=8 * eps, atol=8 * eps)


@pytest.mark.parametrize("scheme", LAYERS, ids=lambda scheme: scheme.name)
def test_what_is_computed_does_not_depend_on_whether_a_gradient_is_asked_for(scheme):
    layer, _ = a_layer(scheme)
    x = normal(3, 48, seed=1)
    with torch.no_grad():
        expected = layer(x)
    assert torch.equal(layer(x.clone().requires_grad_()).detach(), expected)
    assert not layer.requires_grad_(False)(x).requires_grad


def squares(module):
    return lambda x: module(x).square().sum()


TRANSFORMS = {
    "grad": lambda module: torch.func.grad(squares(module)),
    "vmap": torch.func.vmap,
    "grad of each": lambda module: torch.func.vmap(torch.func.grad(squares(module))),
    "jvp": lambda module: lambda x: torch.func.jvp(module, (x,), (x.flip(0),))[1],
    "jacrev": torch.func.jacrev,
    "jacfwd": torch.func.jacfwd,
    "hessian": lambda module: torch.func.hessian(squares(module)),
}


@pytest.mark.parametrize("scheme", LAYERS, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_of_torch_see_the_derivatives_of_the_float_layer(transform, scheme):
    layer, plain = a_layer(scheme)
    x = normal(3, 48, seed=1)
    found, expected = transform(layer)(x), transform(plain)(x)
    assert found.shape == expected.shape
    assert (found - expected).norm() <= 0.05 * expected.norm()  # INT8 activations err by a percent or two
    assert torch.equal(layer(x), torch.func.vmap(layer, in_dims=1, out_dims=1)(x[:, None])[:, 0])


@pytest.mark.parametrize("scheme", LAYERS, ids=lambda scheme: scheme.name)
def test_tangents_go_through_in_forward_mode(scheme):
    layer, plain = a_layer(scheme)
    x, tangent = normal(3, 48, seed=1), normal(3, 48, seed=2)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent)))
    torch.testing.assert_close(found.tangent, tangent @ plain.weight.T)
    assert torch.equal(found.primal, layer(x))


@pytest.mark.parametrize("record", [torch.jit.trace, lambda m, x: torch.export.export(m, (x,))], ids=["jit", "export"])
@pytest.mark.parametrize("scheme", LAYERS, ids=lambda scheme: scheme.name)
@pytest.mark.filterwarnings("ignore")
def test_what_writes_a_model_down_is_refused(record, scheme):
    layer, _ = a_layer(scheme)
    with pytest.raises(TypeError, match=r"computed by kernels.*cannot write down; use torch\.compile"):
        record(layer.requires_grad_(False), normal(3, 48))


def test_a_backend_of_another_device_is_refused():
    with pytest.raises(
        ValueError, match="backend='triton' cannot be used: it runs on CUDA devices and the weight is on cpu"
    ):
        linear(normal(1, 8), quantize_tensor(normal(2, 8), bits=4), backend="triton")


@torch.no_grad()
@pytest.mark.parametrize("scheme", LAYERS, ids=lambda scheme: scheme.name)
def test_a_layer_as_one_operation_of_a_graph_that_does_not_break(scheme):
    """What a layer puts into a compiled graph on a GPU; the operation itself runs anywhere."""
    torch.compiler.reset()
    layer, _ = a_layer(scheme)
    x = normal(2, 3, 48, seed=1)
    integers = type(layer) is not QLinear
    word = "integers" if integers else "int8" if layer.activations else None
    rest = (layer.input_scale, layer.threshold) if integers else (None, 0.0)
    compiled = torch.compile(lambda x: layer.operation(x, word, *rest), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))
    parts = [getattr(layer, name) for name in layer.parts]
    torch.library.opcheck(torch.ops.qkit.layer.default, (x, parts, layer.record, layer.bias, word, *rest))


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize(
    "scheme", thinned(LAYERS, [RTN(4, 16), NF4(), LLMInt8(), W8A8()]), ids=lambda scheme: scheme.name
)
def test_compiled_layers_compute_what_they_compute(scheme, learns):
    torch.compiler.reset()
    layer, _ = a_layer(scheme)
    model = torch.nn.Sequential(layer, torch.nn.ReLU())
    x = normal(3, 48, seed=1).requires_grad_(learns)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the compiler warns where it looks into what it should not
        y = torch.compile(model, backend="eager")(x)
    assert torch.equal(y, model(x))
    if learns:
        y.sum().backward()
        assert x.grad.abs().max() > 0
