"""What stands between `qkit.linear` and the Triton kernels, on the interpreter: which weights fit, which inputs, which card.

Whole numbers, wherever it can be: a kernel then has to return the very same number.
"""

import pytest
import torch

from grids import ALL_BITS, thinned
from products import KINDS, exact, random, weight, whole
from qkit import FP4, NF4, RTN, QLinear, linear, ops, quantize_tensor
from qkit.backends import torch as plain
from qkit.methods.int8 import int8_rows
from qkit.nn.int8_linear import Int8Linear
from qkit.ops import int8_linear

pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")

from qkit.backends.triton import integer, layout, tiles
from qkit.backends.triton import linear as gpu

TOKENS = (0, 1, 8, 9, 16, 17, 300)
SHAPES = ((24, 160, 32), (9, 129, None), (1, 48, 48), (40, 1, None), (1, 1, None))
HOPPER = tiles.Card(units=4, shared=227 * 1024, major=9, ptx=False)


@pytest.fixture(autouse=True)
def on_a_card(monkeypatch):
    """Every operation that has a Triton kernel takes it; the card is one that does not speak PTX, as the interpreter does not."""
    asked = []
    here = {"linear": gpu.linear, "int8_linear": integer.int8_linear}
    select = ops.select
    monkeypatch.setattr(tiles, "card", lambda device: asked.append(device) or HOPPER)
    monkeypatch.setattr(ops, "select", lambda op, *where: here.get(op) or select(op, *where))
    return asked


@pytest.mark.parametrize("tokens", thinned(TOKENS, [0, 1, 16, 17]))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers_of_tokens_and_shapes_that_fill_nothing(shape, tokens):
    q, x = weight(4, *shape, "zero points"), whole(tokens, shape[1]).half()
    y = linear(x, q)
    assert y.dtype == torch.float16 and torch.equal(y, exact(x, q).half())


@pytest.mark.parametrize(
    "group", thinned([16, 32, 48, 64, 80, 96, 112, 128, 144, 256, 384, None], [16, 48, 128, 144, 256, None])
)
@pytest.mark.parametrize("kind", thinned(KINDS, ["zero points"]))
def test_groups_of_any_multiple_of_16(group, kind):
    q = weight(4, 20, 3 * (group or 67), group, kind)
    assert layout.fits(q)
    for tokens in (3, 18):
        x = whole(tokens, q.shape[1]).half()
        assert torch.equal(linear(x, q), exact(x, q).half())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", ALL_BITS)
def test_every_number_of_bits(bits, kind):
    q = weight(bits, 17, 192, (64, 16, 192, 96)[bits % 4], kind)
    for tokens in (1, 17):
        x = whole(tokens, 192).half()
        x[:, 40:] = 0  # so that 255 times 4 add up to what float16 holds
        torch.testing.assert_close(linear(x, q), exact(x, q).half(), rtol=2**-10, atol=0)


@pytest.mark.parametrize(
    "q",
    [
        weight(4, 6, 40, 8, "zero points"),
        weight(4, 6, 72, 24, "offsets"),
        quantize_tensor(random(6, 72), NF4()),
        quantize_tensor(random(6, 48), FP4(32)),
    ],
    ids=repr,
)
def test_other_groups_take_the_plain_way(q):
    assert not layout.fits(q)
    x = random(3, q.shape[1]).half()
    assert torch.equal(linear(x, q), plain.linear(x, q, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_of_more_bits_take_the_plain_way(dtype, on_a_card):
    x, q = random(3, 64).to(dtype), weight(4, 6, 64, 32)
    assert torch.equal(linear(x, q), plain.linear(x, q, None))
    q = int8_rows(random(6, 64))
    assert torch.equal(int8_linear(x, q, threshold=6.0), plain.int8_linear(x, q, None, 6.0, None, dtype))
    assert not on_a_card


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::2],
        lambda x: x[::3, 5:101],
        lambda x: x.T[:96].T,
        lambda x: x[:1, :96].expand(5, 96),
        lambda x: x[:1, :1].expand(18, 96),
        lambda x: x[2, 1:97],
        lambda x: x[:, :96].unfold(0, 2, 1).transpose(1, 2),
        lambda x: x[:, :96].reshape(2, 5, 96).transpose(0, 1),
        lambda x: x[:0, :96].reshape(0, 7, 96),
    ],
    ids=[
        "columns",
        "rows and columns",
        "transposed",
        "expanded",
        "one number",
        "one row",
        "overlapping",
        "3 axes",
        "none",
    ],
)
def test_inputs_that_are_views(view):
    q, x = weight(4, 7, 96, 32, "zero points"), view(random(10, 192).half())
    copy = x.clone(memory_format=torch.contiguous_format)
    assert torch.equal(linear(x, q), linear(copy, q)) and linear(x, q).shape == (*x.shape[:-1], 7)
    rows = int8_rows(random(7, 96))
    for limit in (0.0, 1.0):
        assert torch.equal(int8_linear(x, rows, threshold=limit), int8_linear(copy, rows, threshold=limit))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("tokens", [1, 20])
def test_a_bias_of_any_dtype_and_stride(tokens, dtype):
    bias, x = whole(2 * 9).to(dtype)[::2], whole(tokens, 64).half()
    q = weight(4, 9, 64, 32)
    assert torch.equal(linear(x, q, bias), (exact(x, q) + bias).half())
    rows = int8_rows(random(9, 64))
    found, expected = int8_linear(x, rows, bias), plain.int8_linear(x, rows, None, 0.0, bias, torch.float16)
    torch.testing.assert_close(found, expected, rtol=2**-10, atol=1e-3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("tokens", thinned([3, 20], [3]))
@pytest.mark.parametrize("bad", thinned([torch.nan, torch.inf, -torch.inf], [torch.nan, torch.inf]))
def test_what_is_no_number_stays_none_and_in_its_token(bad, tokens):
    for q in (
        weight(4, 9, 160, 32, "zero points"),
        weight(3, 5, 200, kind="offsets"),
        quantize_tensor(random(6, 640), NF4()),
    ):
        for place in (0, q.shape[1] - 1):
            x = random(tokens, q.shape[1]).half()
            x[1, place] = bad
            y, others = linear(x, q), [0, *range(2, tokens)]
            assert not y[1].isfinite().any() or bool(q.dequantize()[:, place].eq(0).any())
            assert y[others].isfinite().all() and torch.equal(y[others], linear(x[others], q))
    rows = int8_rows(random(9, 160))
    for limit in (0.0, 6.0):
        x = random(tokens, 160).half()
        x[1, 159] = bad
        y = int8_linear(x, rows, threshold=limit)
        expected = plain.int8_linear(x, rows, None, limit, None, torch.float16)
        assert torch.equal(y.isnan(), expected.isnan()) and torch.equal(y.isinf(), expected.isinf())


@pytest.mark.parametrize("tokens", [2, 17])
@pytest.mark.parametrize(
    "scheme",
    [RTN(4, 32), RTN(3, 16, symmetric=True), RTN(8, None), RTN(4, 64, include_zero=False), NF4(), FP4(32)],
    ids=repr,
)
def test_groups_of_zeros_are_worth_nothing_and_those_of_one_sign_what_they_are(scheme, tokens):
    w = random(12, 128)
    w[3], w[5, 64:] = 0, 0
    w[7] = w[7].abs() + 0.5
    w[8] = -w[8].abs() - 0.5
    w[9, 77] = 1000.0  # an outlier, with its group
    q = quantize_tensor(w, scheme)
    x = (random(tokens, 128) * 20).half()
    x[:, :64][:, 1::2] = 30.0
    y, stored = linear(x, q), q.dequantize().double()
    assert torch.equal(y[:, 3], torch.zeros(tokens, dtype=torch.float16))
    x[:, :64] = 0
    assert torch.equal(linear(x, q)[:, 5], torch.zeros(tokens, dtype=torch.float16))
    found, expected = linear(x, q).double(), x.double() @ stored.T
    assert ((found - expected).norm(dim=0) <= 2e-3 * (x.double().abs() @ stored.abs().T).norm(dim=0)).all()


@pytest.mark.parametrize("make", ["floats", "integers"])
def test_who_asks_for_derivatives_gets_those_of_the_float_layer(make):
    bias = torch.nn.Parameter(random(9))
    layer = (
        QLinear(quantize_tensor(random(9, 64), RTN(4, 32)), bias)
        if make == "floats"
        else Int8Linear(int8_rows(random(9, 64)), bias)
    )
    x = random(5, 64).half().requires_grad_()
    y = layer.half()(x)
    y.sum().backward()
    assert y.requires_grad and torch.equal(layer.bias.grad, torch.full((9,), 5.0).half())
    torch.testing.assert_close(x.grad, torch.ones(5, 9).half() @ layer.weight.half(), rtol=2**-9, atol=2**-9)
    with torch.no_grad():
        assert torch.equal(layer(x), y)
    assert torch.equal(torch.func.vmap(layer)(x[:, None].detach())[:, 0], y)


def test_a_step_for_all_tokens_and_tokens_that_are_integers_only_for_the_product():
    x, q = random(5, 64).half(), weight(4, 9, 64, 32)
    found, expected = linear(x, q, activations="int8"), plain.linear(x.float(), q, "int8")
    torch.testing.assert_close(found.float(), expected, rtol=5e-3, atol=0.2)
    rows = int8_rows(random(9, 64))
    step = torch.tensor(0.03)
    torch.testing.assert_close(
        int8_linear(x, rows, input_scale=step), plain.int8_linear(x, rows, step, 0.0, None, torch.float16)
    )


def test_another_device_is_refused_in_a_sentence():
    q, x = weight(4, 9, 64, 32), random(2, 64)
    for wrong in ((x.to("meta"), q), (x, q, random(9).to("meta"))):
        with pytest.raises(ValueError, match="is on meta and the weight on cpu; move"):
            linear(*wrong)
    with pytest.raises(ValueError, match="input_scale is on meta"):
        int8_linear(x, int8_rows(random(9, 64)), input_scale=torch.tensor(0.1, device="meta"))


def test_so_many_tokens_that_the_weight_becomes_floats():
    q, x = weight(4, 3, 32, 16), whole(gpu.MOST, 32).half()
    assert torch.equal(linear(x, q), exact(x, q).half())


@pytest.mark.parametrize(
    "card", [tiles.Card(40, 64 * 1024, 7), tiles.Card(304, 64 * 1024, 9, False)], ids=["sm_75", "AMD"]
)
def test_cards_with_less(card, monkeypatch):
    monkeypatch.setattr(tiles, "card", lambda device: card)
    x, q = whole(20, 64), weight(4, 9, 64, 32)
    rows = int8_rows(random(9, 64))
    if card.ptx:
        made = []
        monkeypatch.setattr(gpu, "floats", lambda laid, ptx: made.append(ptx) or q.dequantize().half())
        assert torch.equal(linear(x.half(), q), exact(x, q).half()) and made == [True]
        assert torch.equal(linear(x.bfloat16(), q), plain.linear(x.bfloat16(), q, None))  # there is no bfloat16
        found = int8_linear(x.half(), rows)
        assert torch.equal(found, plain.int8_linear(x.half(), rows, None, 0.0, None, torch.float16))
    else:
        for tokens in (3, 20):
            assert torch.equal(linear(x[:tokens].half(), q), exact(x[:tokens], q).half())
            found = int8_linear(x[:tokens].half(), rows)
            torch.testing.assert_close(
                found, plain.int8_linear(x[:tokens].half(), rows, None, 0.0, None, torch.float16)
            )
