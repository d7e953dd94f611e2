"""The Triton kernels on a card: every number of bits, both dtypes, shapes that fill nothing, graphs, the compiler, races.

`make test-gpu`. Needs torch, triton and pytest; nothing else of the tests' own.
"""

import pytest
import torch
from torch import nn

from products import KINDS, random, weight
from qkit import FP4, NF4, quantize_tensor
from qkit.backends import torch as plain
from qkit.methods.int8 import int8_rows
from qkit.nn.int8_linear import Int8Linear
from qkit.nn.qlinear import QLinear

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
    laid = layout.laid(weight(4, 512, 2048, 128, "zero points", real=True).to("cuda"), torch.bfloat16)
    for tokens in (4, 48, 100, 256):
        x = torch.randn(tokens, 2048, device="cuda").bfloat16()
        first = adapter.product(x, laid)
        assert all(torch.equal(adapter.product(x, laid), first) for _ in range(100))


def network(dtype):
    w, bias = [random(512, 512, seed=i) / 20 for i in range(4)], [nn.Parameter(random(512)) for _ in range(2)]
    layers = (
        QLinear(quantize_tensor(w[0], bits=4, group_size=128), bias[0]),
        nn.GELU(),
        Int8Linear(int8_rows(w[1]), bias[1], threshold=6.0),
        QLinear(quantize_tensor(w[2], NF4())),
        Int8Linear(int8_rows(w[3]), None, "per-tensor", torch.tensor(0.03)),
    )
    return nn.Sequential(*layers).to("cuda").to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_network_is_one_graph_of_the_compiler_and_one_of_cuda(dtype):
    net, x = network(dtype), torch.randn(3, 512, device="cuda", dtype=dtype)
    expected = net(x)
    assert torch.equal(torch.compile(net, fullgraph=True)(x), expected)
    graph, held = torch.cuda.CUDAGraph(), x.clone()
    with torch.cuda.graph(graph):
        y = net(held)
    for factor in (1, 3):  # more outliers, and the graph is the same
        held.copy_(x * factor)
        graph.replay()
        assert torch.equal(y, net(x * factor))
    layer = net[0]
    parts = [getattr(layer, name) for name in layer.parts]
    torch.library.opcheck(torch.ops.qkit.layer.default, (x, parts, layer.record, None, None, None, 0.0))


def test_codes_are_those_of_the_cpu():
    w = random(300, 512)
    for options in ({"bits": 4, "group_size": 128}, {"bits": 3, "group_size": 64, "symmetric": True}, {"bits": 8}):
        assert torch.equal(quantize_tensor(w.cuda(), **options).packed.cpu(), quantize_tensor(w, **options).packed)
