"""What stands between `qkit.linear` and the kernels: which weights fit, which inputs, and what memory is read."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from grids import ALL_BITS, WIDTHS, thinned
from products import KINDS, exact, off, off_int8, random, weight, whole
from qkit import FP4, NF4, RTN, QTensor, linear, quantize_tensor
from qkit.backends.numba import linear as cpu
from qkit.backends.numba import ready
from qkit.methods.int8 import int8_rows
from qkit.ops import dequantize, int8_linear, quantize_activations

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 5), (0,), (2, 0), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("q", [weight(4, 7, 96, 32, "zero points"), weight(3, 7, 33, kind="offsets")], ids=repr)
def test_inputs_of_every_dtype_and_shape(q, leading, dtype):
    """Whole numbers are the same in 16 bits; the float32 result is rounded once."""
    x = whole(*leading, q.shape[1]).to(dtype)
    x[..., 0] = 127  # all codes of 8 bits are whole numbers then
    flat = x.reshape(-1, q.shape[1])
    for activations in (None, "int8"):
        found = linear(x, q, backend="numba", activations=activations)
        assert found.dtype == dtype and found.shape == (*leading, 7)
        assert torch.equal(found.reshape(-1, 7), exact(flat, q).float().to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::2],
        lambda x: x[::3, 5:101],
        lambda x: x.T[:96].T,
        lambda x: x[:1, :96].expand(5, 96),
        lambda x: x[2, 1:97],
        lambda x: x[:, :96].unfold(0, 2, 1).transpose(1, 2),
    ],
    ids=["every second", "rows and columns", "transposed", "expanded", "one row", "overlapping"],
)
def test_inputs_that_are_views(view, dtype):
    q, x = weight(4, 7, 96, 32, "zero points"), view(random(10, 192).to(dtype))
    for activations in (None, "int8"):
        found = linear(x, q, activations=activations, backend="numba")
        assert torch.equal(found, linear(x.clone(memory_format=torch.contiguous_format), q, None, "numba", activations))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("of_bias", (*DTYPES, torch.float64))
@pytest.mark.parametrize("tokens", [1, 3, 6])
def test_a_bias_may_have_another_dtype_than_x(tokens, of_bias, dtype):
    """A kernel that is given its address reads float32; whole numbers say whether it read what is there."""
    q, x, bias = weight(4, 7, 96, 32, "zero points"), whole(tokens, 96).to(dtype), whole(7).to(of_bias)
    for activations in (None, "int8"):
        y = linear(x, q, activations=activations, backend="numba")
        found = linear(x, q, bias, "numba", activations)
        assert found.dtype == dtype and torch.equal(found, (y.double() + bias.double()).to(dtype))
    q = int8_rows(random(7, 96))
    y = int8_linear(x.double(), q).float()  # the product before it is rounded to the dtype of x
    assert torch.equal(int8_linear(x, q, bias), (y + bias.float()).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_real_inputs_in_16_bits_are_rounded_only_at_the_end(dtype):
    q = weight(4, 17, 160, 32, "zero points", real=True)
    for tokens in (1, 6):
        x = random(tokens, 160).to(dtype)
        assert off(linear(x, q, backend="numba"), x, q) < 1
        assert off_int8(linear(x, q, backend="numba", activations="int8"), x, q) < 1


def test_inference_mode_and_detached_inputs_run_in_the_kernel(monkeypatch):
    q, x = weight(4, 7, 96), random(3, 96).requires_grad_()
    expected = cpu.weight_only_linear(x, q)
    monkeypatch.setattr("qkit.backends.torch.linear", None)  # the other way is closed
    with torch.inference_mode():
        assert torch.equal(linear(x, q, backend="numba"), expected)
        assert torch.equal(linear(random(3, 96), q, backend="numba"), expected)
    with torch.no_grad():
        assert torch.equal(linear(x, q, backend="numba"), expected)
    assert torch.equal(linear(x.detach(), q, backend="numba"), expected)


# ---- which weights fit


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 8, 12, 16, 20, 24, 32, 48, 96, 100, 128])
def test_groups_of_any_size_fit_and_those_of_whole_fours_fit_integers(bits, size):
    q = weight(bits, 5, 3 * size, size, "zero points")
    assert ready.fits(q) and ready.fits_integers(q) == (size % 4 == 0)
    for tokens in (2, 7, 35):
        x = whole(tokens, 3 * size)
        for activations in (None, "int8"):
            x[:, 0] = 127  # the INT8 scale of each token is 1 then
            assert torch.equal(linear(x, q, backend="numba", activations=activations).double(), exact(x, q))


def test_one_group_a_row_always_fits():
    for features in (1, 2, 3, 5, 7, 97):
        for group_size in (None, "tensor"):
            assert ready.fits(weight(4, 3, features, group_size))


@pytest.mark.parametrize("scheme", [NF4(32), FP4(64), NF4(128, double_quant=False)], ids=repr)
@pytest.mark.parametrize("features", [1, 32, 48, 64, 96, 128, 130])
def test_a_codebook_fits_where_no_block_runs_over_the_end_of_a_row(scheme, features):
    q, x = quantize_tensor(random(5, features), scheme), random(3, features)
    assert ready.fits(q) == (features % scheme.block_size == 0)
    assert off(linear(x, q, backend="numba"), x, q) < 1


@pytest.mark.parametrize(
    ("features", "group_size", "fits", "integers"),
    [
        (ready.MAX_FEATURES, None, True, True),
        (ready.MAX_FEATURES + 1, None, False, False),
        (8 * ready.MAX_GROUPS, 8, True, True),
        (8 * ready.MAX_GROUPS + 8, 8, True, False),
    ],
)
def test_a_row_is_at_most_as_long_as_a_stack_may_hold(features, group_size, fits, integers):
    """17 rows and a fifth token: the largest scratch memory."""
    q = weight(4, 17, features, group_size, "zero points", real=True)
    assert ready.fits(q) == fits and ready.fits_integers(q) == integers
    for tokens in (1, 2, 5):
        x = random(tokens, features)
        assert off(linear(x, q, backend="numba"), x, q) < 1
        assert off_int8(linear(x, q, backend="numba", activations="int8"), x, q) < 1


def test_a_weight_without_rows_or_features_has_no_kernel_and_a_product():
    for shape in ((0, 8), (3, 0)):
        q = QTensor(torch.zeros(shape[0], shape[1] // 2, dtype=torch.uint8), torch.ones(shape[0], 1), 4, shape)
        assert not ready.fits(q)
        assert torch.equal(linear(torch.ones(2, shape[1]), q, backend="numba"), torch.zeros(2, shape[0]))


# ---- what has no kernel


@pytest.mark.parametrize("activations", [None, "int8"])
@pytest.mark.parametrize(
    "q", [weight(4, 7, 96, 32, "zero points", real=True), quantize_tensor(random(7, 95), NF4(32))], ids=repr
)
def test_float64_and_what_does_not_fit_is_multiplied_as_floats(q, activations):
    x = random(3, q.shape[1]) if q.shape[1] == 95 else random(3, q.shape[1]).double()
    given = quantize_activations(x) if activations else x
    assert torch.equal(linear(x, q, None, "numba", activations), F.linear(given, dequantize(q).to(x.dtype)))


@pytest.mark.parametrize("q", [weight(4, 7, 96, 32, real=True), quantize_tensor(random(7, 128), NF4())], ids=repr)
def test_gradients_are_those_of_the_weight_as_floats(q):
    x = random(3, q.shape[1]).requires_grad_()
    gradient = random(3, 7)
    linear(x, q, backend="numba").backward(gradient)
    assert torch.equal(x.grad, gradient @ dequantize(q))


def test_a_codebook_takes_quantized_activations_as_floats():
    """A table has no integers to multiply."""
    q = quantize_tensor(random(7, 128), NF4())
    for tokens in (1, 3):
        x = random(tokens, 128)
        found = linear(x, q, backend="numba", activations="int8")
        assert torch.equal(found, cpu.weight_only_linear(quantize_activations(x), q))
        assert off_int8(found, x, q) < 1


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_weight_may_be_views(kind):
    """Columns of larger tensors, transposed ones, and one scale that stands for many."""
    q, x = weight(4, 8, 96, 32, kind, real=True), random(3, 96)
    views = [
        {"packed": torch.cat([q.packed, q.packed], 1)[:, : q.packed.shape[1]]},
        {"scales": q.scales[:1, :1].expand(8, 3)},
        {"scales": q.scales.T.contiguous().T, "offsets": None if q.offsets is None else q.offsets.T.contiguous().T},
    ]
    for parts in views:
        viewed = replace(q, **parts)
        copied = replace(q, **{name: part.contiguous() for name, part in viewed.tensors().items()})
        for activations in (None, "int8"):
            expected = linear(x, copied, None, "numba", activations)
            assert torch.equal(linear(x, viewed, None, "numba", activations), expected)


def test_scales_and_offsets_may_differ_in_their_dtypes():
    """16-bit scales beside float32 offsets."""
    q, x = weight(4, 7, 96, 32, "offsets", real=True), random(3, 96)
    mixed = replace(q, offsets=q.offsets.float() + 2.0**-20)
    assert off(cpu.weight_only_linear(x, mixed), x, mixed) < 1


# ---- memory

GUARDED = """
import ctypes, mmap
import torch
from dataclasses import replace
from products import random, weight
from qkit import NF4, quantize_tensor
from qkit.backends.numba import linear as cpu
from qkit.methods.int8 import int8_rows

libc = ctypes.CDLL(None, use_errno=True)
keep = []

def guarded(tensor):
    \"\"\"A copy whose last byte is the last of a page, before one that must not be read.\"\"\"
    pages = -(-tensor.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    keep.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(start + pages * mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    first = pages * mmap.PAGESIZE - tensor.nbytes
    return torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=first).view(tensor.shape).copy_(tensor)

def check(q):
    twin = type(q)(**{name: guarded(part) for name, part in q.tensors().items()}, **q.meta())
    assert twin.packed.data_ptr() != q.packed.data_ptr()
    for tokens in (1, 3):
        x = random(tokens, q.shape[1]).half()
        assert torch.equal(cpu.weight_only_linear(guarded(x), twin), cpu.weight_only_linear(x, q))
        if q.bits == 4 and q.scales.shape[0] == 1 and q.shape[0] > 1:
            continue  # a codebook
        assert torch.equal(cpu.integer_linear(guarded(x), twin), cpu.integer_linear(x, q))

for bits in map(int, sys.argv[1:]):
    for rows, features in [(1, 1), (3, 17), (2, 64), (5, 129), (1, 256), (2, 257), (3, 511)]:
        check(weight(bits, rows, features))
    for rows, size in [(1, 16), (3, 48), (7, 32)]:
        for kind in ("symmetric", "zero points"):
            check(weight(bits, rows, 3 * size, size, kind))
for block, features in [(64, 64), (64, 320), (32, 96)]:
    check(quantize_tensor(random(3, features), NF4(block)))
q = weight(8, 5, 129)
x, outliers = random(3, 129), torch.arange(129) > 126
for tokens in (1, 3):
    found = cpu.integer_linear(guarded(x[:tokens]), replace(q, packed=guarded(q.packed)), outliers=guarded(outliers))
    assert torch.equal(found, cpu.integer_linear(x[:tokens], q, outliers=outliers))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="pages are protected otherwise there")
@pytest.mark.parametrize("widths", thinned([WIDTHS, range(2, 9)], [WIDTHS]), ids=["quick", "all"])
def test_nothing_is_read_behind_the_end_of_a_weight_or_its_inputs(widths):
    """The next page ends the process: of every bit width, with rows that end in any byte."""
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{GUARDED}", *map(str, widths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"


def test_nothing_that_was_given_is_changed():
    q, w8, x = weight(4, 17, 96, 32, "zero points", real=True), int8_rows(random(17, 96)), random(5, 96)
    x[2, 3] = 9
    before = [part.clone() for part in (x, *q.tensors().values(), *w8.tensors().values())]
    linear(x, q), linear(x, q, activations="int8"), int8_linear(x, w8, threshold=6.0)
    linear(x[:1], q), linear(x[:1], q, activations="int8"), int8_linear(x[2:3], w8, threshold=6.0)
    after = (x, *q.tensors().values(), *w8.tensors().values())
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("group_size", [None, 4, 48, "tensor"])
@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"include_zero": False}], ids=str)
@pytest.mark.parametrize("bits", thinned([2, 3, 4, 8], [3, 4]))
def test_a_group_of_zeros_multiplies_to_zero(bits, options, group_size):
    """Exactly: no large sums are left over, whatever the inputs are."""
    q = quantize_tensor(torch.zeros(33, 96), RTN(bits, group_size, **options))
    for tokens in (1, 3, 17):
        x = 100 * torch.randn(tokens, 96, generator=torch.Generator().manual_seed(tokens))
        for backend in ("numba", "torch"):
            assert not linear(x, q, backend=backend).any()
            assert not linear(x, q, backend=backend, activations="int8").any()


@pytest.mark.parametrize("tokens", [1, 3, 20])
@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"include_zero": False}], ids=str)
@pytest.mark.parametrize("value", [1e-3, -2.5, 300.0])
def test_the_error_of_a_product_goes_by_the_weights(value, options, tokens):
    """Groups of one number all over, and groups of zeros beside one large weight: K products of float32 are summed."""
    x = torch.randn(tokens, 96, generator=torch.Generator().manual_seed(tokens))
    weight = torch.zeros(8, 96)
    weight[::2], weight[1, 95] = value, value
    q = quantize_tensor(weight, RTN(8, 48, **options))
    exact, sizes = x.double() @ q.dequantize().double().T, x.double().abs() @ q.dequantize().double().abs().T
    reach = abs(value) * x[:, 48:].double().abs().sum(1, keepdim=True)  # of the group of zeros with one weight in it
    sizes[:, 1:2] = torch.maximum(sizes[:, 1:2], reach)
    assert ((linear(x, q).double() - exact).abs() <= 2 * 96 * 2.0**-24 * sizes).all()
    assert not linear(x, q)[:, 3::2].any()
