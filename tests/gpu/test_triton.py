"""The Triton kernels on a card: every number of bits, both dtypes, shapes that fill nothing, graphs, the compiler, races.

`make test-gpu`. Needs torch, triton and pytest; nothing else of the tests' own.
"""

from itertools import product

import pytest
import torch

from products import KINDS, off_where_read, random, weight
from qkit import FP4, NF4, RTN, quantize_tensor
from qkit.backends import torch as plain
from qkit.methods.int8 import int8_rows
from qkit.numerics.activations import outlier_columns, quantize_activations_int8
from qkit.numerics.qtensor import QTensor

pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")
if not torch.cuda.is_available():
    pytest.skip("no CUDA card is here", allow_module_level=True)

from qkit.backends.triton import integer, layout, tiles
from qkit.backends.triton import linear as adapter

pytestmark = pytest.mark.gpu
DTYPES = (torch.float16, torch.bfloat16)
SHAPES = (
    (256, 512, 128),
    (136, 1024, 128),
    (200, 640, 64),
    (129, 352, 32),
    (72, 304, 16),
    (72, 336, 48),
    (65, 200, None),
)
TOKENS = (1, 5, 8, 11, 16, 17, 64, 100, 200, 300)


def off(y, x, w):
    """The largest error as a share of what the roundings can make: three of each weight, one of each sum, one of the result."""
    half = torch.finfo(y.dtype).eps / 2
    expected, terms = x.double() @ w.T, x.double().abs() @ w.abs().T
    limit = terms * (3 * half + x.shape[1] * 2.0**-24) + half * expected.abs() + 2.0**-14
    return float(((y.double() - expected).abs() / limit).max())


def check_products(q, dtype):
    q = q.to("cuda")
    laid, w = layout.laid(q, dtype), q.dequantize().double()
    made, twin = adapter.floats(laid), adapter.floats(laid, ptx=False)
    assert torch.equal(made.view(torch.int16), twin.view(torch.int16)), "assembly and its plain twin differ"
    for tokens in TOKENS:
        x = torch.randn(tokens, q.shape[1], device="cuda").to(dtype)
        y = torch.full((tokens, q.shape[0]), torch.nan, dtype=dtype, device="cuda")
        assert off(adapter.product(x, laid, y), x, w) < 1, (tokens, q)
    assert adapter.product(x[:0], laid).shape == (0, q.shape[0])
    x = torch.randn(20, 2 * q.shape[1], device="cuda").to(dtype)[:, ::2]
    assert off(adapter.product(x, laid), x, w) < 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_times_floats(bits, kind, dtype):
    check_products(weight(bits, *SHAPES[(2 * bits + KINDS.index(kind)) % len(SHAPES)], kind, real=True), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", (*SHAPES, (33, 1664, 128), (48, 2048, 256)), ids=str)
def test_groups_and_shapes(shape, dtype):
    check_products(weight(4, *shape, "zero points", real=True), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(136, 1024), (40, 2048), (72, 288)], ids=str)
def test_pairs_of_a_table_are_its_numbers(shape, dtype):
    """Looked up two at a time in shared memory, and by their bytes in registers: the same to the last bit."""
    laid = layout.laid(quantize_tensor(random(*shape), NF4(32)).to("cuda"), dtype)
    if not tiles.card(0).hopper:
        pytest.skip("only on Hopper are numbers looked up in pairs")
    for tokens in (1, 8, 11):
        x = adapter.aligned(torch.randn(tokens, shape[1], device="cuda").to(dtype))
        pairs, octets = (torch.full((tokens, shape[0]), torch.nan, dtype=dtype, device="cuda") for _ in range(2))
        cut = tiles.few(laid, tiles.card(0), tokens)
        adapter.few(x, laid, pairs, cut, paired=True)
        adapter.few(x, laid, octets, cut, paired=False)
        assert torch.equal(pairs, octets) and not pairs.isnan().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scheme", [NF4(), NF4(32, double_quant=False), FP4(128)], ids=repr)
def test_tables(scheme, dtype):
    check_products(quantize_tensor(random(136, 1024), scheme), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(256, 512), (130, 200), (72, 1111)], ids=str)
def test_integers(shape, dtype):
    q = int8_rows(random(*shape))
    laid = integer.lay(q.to("cuda"))
    for tokens in (1, 3, 8, 13, 17, 33, 100, 300):
        for threshold in (0.0, 6.0, 1.0):
            for scale in (None, torch.tensor(0.03)):
                x = random(tokens, shape[1], seed=tokens)
                x[:, 3], x[:, -1] = 5 * x[:, 3], 8 * x[:, -1]
                x = x.to(dtype)
                y = torch.full((tokens, shape[0]), torch.nan, device="cuda")
                on_card = None if scale is None else scale.cuda()
                integer.launch(x.cuda(), laid, on_card, threshold, None, y, tiles.card(0))
                expected = plain.int8_linear(x, q, scale, threshold, None, torch.float32)
                torch.testing.assert_close(y.cpu(), expected, rtol=1e-5, atol=2e-6 * float(expected.abs().max()))


def test_the_same_product_a_hundred_times_is_the_same():
    """A result that moves is a race: instructions that still read registers which are written anew."""
    for q in (weight(4, 512, 2048, 128, "zero points", real=True), quantize_tensor(random(512, 2048), NF4())):
        laid = layout.laid(q.to("cuda"), torch.bfloat16)
        for tokens in (1, 4, 48, 100, 256):
            x = torch.randn(tokens, 2048, device="cuda").bfloat16()
            first = adapter.product(x, laid)
            assert all(torch.equal(adapter.product(x, laid), first) for _ in range(100))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 64, 128, 256, None])
@pytest.mark.parametrize("kind", KINDS)
def test_one_token_however_its_work_is_shared(kind, group, bits):
    """Beside float64, with the roundings of the result and of the scales alone."""
    card = tiles.card(0)
    if not card.hopper:
        pytest.skip("only Hopper has a kernel for one token")
    for dtype in DTYPES:
        q = weight(bits, 1000, 1792, group, kind, real=True).to("cuda")
        laid = layout.laid(q, dtype)
        x = (torch.randn(1, 1792, device="cuda") / 64).to(dtype)  # so that float16 has room for the result
        x[:, 3] *= 300
        if (by_table := tiles.one(laid, card)) is None:
            assert bits < 4 and group == 32
            continue
        for cut in (by_table, tiles.One(5, 4), tiles.One(5, 2), tiles.One(20, 1)):
            y = torch.full((1, 1000), torch.nan, dtype=dtype, device="cuda")
            adapter.launch(x, laid, y, cut, card)
            assert off_where_read(y, x, q) <= 1, (cut, dtype)


@pytest.mark.parametrize(
    "q",
    [
        *(
            lambda s=s: quantize_tensor(random(1000, 1792), s)
            for s in (NF4(), NF4(32, double_quant=False), FP4(128), FP4(256))
        ),
        *(
            lambda bits=bits, group=group, kind=kind: weight(bits, 1000, 1792, group, kind, real=True)
            for bits, group in ((2, 64), (3, 128), (4, 32), (4, 128), (8, 64), (8, None))
            for kind in KINDS
        ),
    ],
)
def test_up_to_eight_tokens_however_their_work_is_shared(q):
    """Beside float64, with the roundings of the result, the numbers and the scales alone."""
    card = tiles.card(0)
    if not card.hopper:
        pytest.skip("only Hopper has a kernel for up to eight tokens")
    q = q().to("cuda")
    for dtype, tokens in product(DTYPES, (1, 2, 3, 8)):
        laid = layout.laid(q, dtype)
        x = (torch.randn(tokens, 1800, device="cuda") / 64).to(dtype)[:, :1792]
        x[:, 3] *= 300
        by_table = tiles.eight(tokens, laid, card)
        assert by_table is not None
        for cut in (by_table, tiles.Eight(5, 4), tiles.Eight(20, 1)):
            y = torch.full((tokens, 1000), torch.nan, dtype=dtype, device="cuda")
            adapter.launch(x, laid, y, cut, card)
            assert off_where_read(y, x, q) <= 1, (cut, dtype)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_where_all_x_have_one_sign_nothing_is_lost(bits):
    """Sums of codes with what stands in front of them are large there, and the tensor core cuts off what is below."""
    q = weight(bits, 512, 16384, 128, "zero points", real=True).to("cuda")
    for dtype, tokens in product(DTYPES, (1, 2, 8)):
        x = (torch.randn(tokens, 16384, device="cuda").abs() / 64).to(dtype)
        y = adapter.product(x, layout.laid(q, dtype))
        assert off_where_read(y, x, q) <= 1, (dtype, tokens)


@pytest.mark.parametrize("scheme", [RTN(bits=4, group_size=128), NF4()], ids=repr)
def test_kernels_that_begin_early_wait_for_what_they_read(scheme):
    """Products of one token, each of the last one's result with nothing between them, launched in a row and each alone."""
    weights = [random(2048, 2048, seed=seed) / 2048**0.5 for seed in range(2)]  # so that 40 products keep their size
    laid = [layout.laid(quantize_tensor(w, scheme).to("cuda"), torch.float16) for w in weights]
    x = torch.randn(1, 2048, device="cuda").half()

    def chain(x, alone):
        for i in range(40):
            x = adapter.product(x, laid[i % 2])
            if alone:
                torch.cuda.synchronize()
        return x

    expected = chain(x, alone=True)
    assert expected.isfinite().all()
    for _ in range(30):
        assert torch.equal(chain(x, alone=False), expected)


@pytest.mark.parametrize("tokens", [20, 70, 200, 400])
def test_tiles_that_programs_share_are_the_same_on_two_streams_at_once(tokens):
    """Parts are handed over in memory: what is read too early, or from another product, makes another sum."""
    laid = layout.laid(weight(4, 1200, 4096, 128, "zero points", real=True).to("cuda"), torch.bfloat16)
    card = tiles.card(0)
    cuts = [cut for cut in tiles.candidates(tokens, laid, card) if getattr(cut, "split", False)]
    inputs = [torch.randn(tokens, 4096, device="cuda").bfloat16() for _ in range(2)]
    assert cuts

    def product(x, cut):
        y = torch.full((tokens, 1200), torch.nan, device="cuda", dtype=x.dtype)
        adapter.launch(x, laid, y, cut, card)
        return y

    for cut in cuts:
        first = [product(x, cut) for x in inputs]
        assert all(off(y, x, w) <= 1 for y, x, w in zip(first, inputs, 2 * [laid_floats(laid)], strict=True)), cut
        torch.cuda.synchronize()
        streams, found = [torch.cuda.Stream() for _ in inputs], []
        for _ in range(50):
            for stream, x, y in zip(streams, inputs, first, strict=True):
                with torch.cuda.stream(stream):
                    found.append((product(x, cut) != y).any())
        torch.cuda.synchronize()
        assert not any(bool(wrong) for wrong in found), cut


def laid_floats(laid):
    """The weight that a laid one stands for, float64."""
    return adapter.floats(laid).double()


def large(rows, features, group, bits=4):
    """A weight as models have them, made on the card."""
    groups = 1 if group is None else features // group
    codes = torch.randint(0, 2**bits, (rows, features), device="cuda")
    scales = (torch.rand(rows, groups, device="cuda") + 0.5) / 100
    return QTensor.from_codes(codes, scales.half(), bits, torch.randint(0, 2**bits, (rows, groups), device="cuda"))


@pytest.mark.parametrize("group", [32, 64, 128, None], ids=str)
@pytest.mark.parametrize("shape", [(5120, 13824), (8192, 8192), (4096, 1024), (14336, 4096)], ids=str)
def test_weights_as_large_as_those_of_models(shape, group):
    """The relative error against float64 that the benchmark holds too."""
    q = large(*shape, group)
    w = q.dequantize().double()
    for dtype, limit in ((torch.float16, 1e-3), (torch.bfloat16, 4e-3)):
        laid = layout.laid(q, dtype)
        for tokens in (1, 8, 16, 17, 64, 128, 150, 300, 512, 1300):
            x = torch.randn(tokens, shape[1], device="cuda").to(dtype)
            y, expected = adapter.product(x, laid).double(), x.double() @ w.T
            assert float((y - expected).norm() / expected.norm()) < limit, (tokens, dtype)
            assert float(((y - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 2 * limit, (tokens, dtype)


@pytest.mark.parametrize("shape", [(5120, 13824), (8192, 8192), (4096, 1024)], ids=str)
def test_integers_as_large_as_those_of_models(shape):
    q = int8_rows(torch.randn(*shape, device="cuda"))
    exactly = q.dequantize().double()
    laid = integer.lay(q)
    for tokens in (1, 8, 16, 17, 64, 300, 1300):
        for threshold in (0.0, 6.0):
            x = torch.randn(tokens, shape[1], device="cuda").bfloat16()
            x[:, 7 : shape[1] if tokens == 16 else 600 : 29] *= 30  # 21 outliers, or up to 477
            y = torch.full((tokens, shape[0]), torch.nan, device="cuda")
            integer.launch(x, laid, None, threshold, None, y, tiles.card(0))
            wild = (
                outlier_columns(x, threshold) if threshold else torch.zeros(shape[1], dtype=torch.bool, device="cuda")
            )
            codes, scales = quantize_activations_int8(x.masked_fill(wild, 0))
            expected = codes.double() * scales.double() @ exactly.T + x.double()[:, wild] @ exactly.T[wild]
            assert float((y.double() - expected).norm() / expected.norm()) < 1e-5, (tokens, threshold)


def test_codes_are_those_of_the_cpu():
    w = random(300, 512)
    for options in ({"bits": 4, "group_size": 128}, {"bits": 3, "group_size": 64, "symmetric": True}, {"bits": 8}):
        assert torch.equal(quantize_tensor(w.cuda(), **options).packed.cpu(), quantize_tensor(w, **options).packed)
