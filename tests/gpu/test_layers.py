"""Layers on a card: graphs of CUDA and of the compiler, streams, threads, cards; weights that move and are written into."""

import copy
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from products import random, weight
from qkit import NF4, linear, quantize_tensor
from qkit.backends import torch as plain
from qkit.methods.int8 import int8_rows
from qkit.nn.int8_linear import Int8Linear
from qkit.nn.qlinear import QLinear
from qkit.ops import int8_linear

pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")
if not torch.cuda.is_available():
    pytest.skip("no CUDA card is here", allow_module_level=True)

from qkit.backends.triton import layout

pytestmark = pytest.mark.gpu
DTYPES = (torch.float16, torch.bfloat16)


def network(dtype=torch.bfloat16, device="cuda", seed=0, features=512):
    """Between the layers what is the same however it is computed: the compiler's GELU may round otherwise than torch's."""
    w = [random(features, features, seed=seed + i) / 20 for i in range(4)]
    bias = [nn.Parameter(random(features)) for _ in range(2)]
    layers = (
        QLinear(quantize_tensor(w[0], bits=4, group_size=128), bias[0]),
        nn.ReLU(),
        Int8Linear(int8_rows(w[1]), bias[1], threshold=6.0),
        QLinear(quantize_tensor(w[2], NF4())),
        Int8Linear(int8_rows(w[3]), None, "per-tensor", torch.tensor(0.03)),
    )
    return nn.Sequential(*layers).to(device).to(dtype)


def inputs(tokens, dtype=torch.bfloat16, features=512, seed=0):
    return random(tokens, features, seed=seed).to("cuda", dtype)


# ---- the compiler


def compiled(net, **options):
    """One graph, and none of an earlier test: of one piece of code the compiler keeps eight, and then gives up."""
    torch.compiler.reset()
    return torch.compile(net, fullgraph=True, **options)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_graph_of_the_compiler_and_one_of_cuda(dtype):
    net, x = network(dtype), inputs(3, dtype)
    expected = net(x)
    assert torch.equal(compiled(net)(x), expected)
    graph, held = torch.cuda.CUDAGraph(), x.clone()
    with torch.cuda.graph(graph):
        y = net(held)
    for factor in (1, 3):  # more outliers, and the graph is the same
        held.copy_(x * factor)
        graph.replay()
        assert torch.equal(y, net(x * factor))


@torch.no_grad()
def test_the_operation_is_what_the_compiler_may_take_it_for():
    for layer in network().eval():
        if isinstance(layer, QLinear):
            parts = [getattr(layer, name) for name in layer.parts]
            integers = type(layer) is Int8Linear
            more = (layer.input_scale, layer.threshold) if integers else (None, 0.0)
            word = "integers" if integers else None
            for x in (inputs(3), inputs(6).reshape(2, 3, 512), inputs(40)[::2], inputs(1)[:0]):
                torch.library.opcheck(torch.ops.qkit.layer.default, (x, parts, layer.record, layer.bias, word, *more))


@torch.no_grad()
def test_numbers_of_tokens_that_change_compile_once_or_twice():
    net, graphs = network(), []
    net_compiled = compiled(net, dynamic=True, backend=lambda module, _: graphs.append(1) or module)
    for tokens in (5, 1, 3, 16, 17, 40, 300, 1300):
        assert torch.equal(net_compiled(inputs(tokens)), net(inputs(tokens)))
    assert len(graphs) <= 3  # one token is a case of its own


@torch.no_grad()
def test_graphs_that_the_compiler_records_before_anything_else_ran():
    """Layouts are made in its warming up; they must not lie in the memory of its graphs, which it uses again."""
    net, twin = network(), network()
    recorded = compiled(net, mode="reduce-overhead")
    for turn in range(4):
        for tokens in (2, 7, 33):
            x = inputs(tokens, seed=turn)
            found = recorded(x).clone()
            assert torch.equal(found, twin(x)), (turn, tokens)
            junk = [torch.full((1 << 16,), 7.0, device="cuda") for _ in range(20)]
            del junk
    assert torch.equal(net(inputs(5)), twin(inputs(5)))


# ---- CUDA graphs


@torch.no_grad()
def test_what_is_not_laid_out_yet_cannot_be_recorded():
    layer, x = network()[0], inputs(3)
    with pytest.raises(RuntimeError, match="run the model once before"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        layer(x)
    torch.cuda.synchronize()
    assert layer(x).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 12, 100, 300, 1300])
def test_a_graph_sees_a_weight_that_was_written_into_once_it_is_used_outside(tokens):
    net, other, x = network(), network(seed=50), inputs(tokens)
    net(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = net(x)
    graph.replay()
    assert torch.equal(y, net(x))
    net.load_state_dict(other.state_dict())
    expected = net(x)
    assert torch.equal(expected, other(x))
    graph.replay()
    assert torch.equal(y, expected)


# ---- weights


@torch.no_grad()
def test_layers_that_move_are_copied_and_change_their_dtype():
    net, x = network(device="cpu", dtype=torch.float32), inputs(5)
    cpu = net(x.float().cpu())
    net = net.to("cuda").bfloat16()
    first = net(x)
    assert (first.float().cpu() - cpu).norm() < 0.05 * cpu.norm()
    assert torch.equal(copy.deepcopy(net)(x), first)
    assert torch.equal(net.cpu().cuda()(x), first)
    other = network(seed=9)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), first)
    other.load_state_dict(network(seed=9).state_dict(), assign=True)
    assert not torch.equal(other(x), first)
    assert torch.equal(net.half().bfloat16()(x), first)
    with torch.inference_mode():
        assert torch.equal(net(x), first)
        assert torch.equal(network()(x), first)


@torch.no_grad()
def test_the_memory_of_what_was_laid_out_comes_back_with_the_weight():
    gc.collect()
    before, kept = torch.cuda.memory_allocated(), len(layout._KEPT)
    net = network(features=2048)
    net(inputs(3, features=2048))
    assert len(layout._KEPT) == kept + 4
    del net
    gc.collect()
    assert len(layout._KEPT) == kept and torch.cuda.memory_allocated() <= before + (1 << 20)


def test_autocast_vmap_and_derivatives():
    net, x = network(), inputs(6)
    y = net(x.clone().requires_grad_())
    assert (y - net(x)).norm() <= 0.01 * y.norm()  # a bias that the kernel adds itself is rounded once less
    y.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    layer = net[0]
    q, learning = layer.qtensor, x.clone().requires_grad_()
    layer(learning).sum().backward()
    expected = torch.ones(6, 512, device="cuda", dtype=x.dtype) @ q.dequantize().to(x.dtype)
    torch.testing.assert_close(learning.grad, expected)
    assert torch.equal(torch.func.vmap(layer)(x[:, None])[:, 0].detach(), layer(x).detach())
    with torch.autocast("cuda", torch.float16), torch.no_grad():
        assert layer(x).dtype == torch.bfloat16  # a layer computes in the dtype of x


# ---- streams, threads, cards


@torch.no_grad()
def test_two_streams_at_once_a_hundred_times():
    """Sums that are shared among programs, while another stream does the same: a number that moves is a race."""
    net, split = network(), QLinear(quantize_tensor(random(256, 4096), bits=4, group_size=128)).cuda()
    streams = [torch.cuda.Stream() for _ in range(2)]
    for tokens in (4, 16, 48, 100, 256, 300):
        xs, wide = [inputs(tokens, seed=i) for i in range(2)], [inputs(tokens, seed=i, features=4096) for i in range(2)]
        expected = [(net(x), split(w)) for x, w in zip(xs, wide, strict=True)]
        wrong = [torch.zeros((), dtype=torch.int64, device="cuda") for _ in streams]
        torch.cuda.synchronize()
        for _ in range(100):
            for i, stream in enumerate(streams):
                with torch.cuda.stream(stream):
                    wrong[i] += (net(xs[i]) != expected[i][0]).sum() + (split(wide[i]) != expected[i][1]).sum()
        torch.cuda.synchronize()
        assert [int(count) for count in wrong] == [0, 0], tokens


@torch.no_grad()
def test_several_threads_with_streams_of_their_own_lay_out_and_multiply():
    """Threads that Triton's interpreter does not bear: its place in the grid is one for all of them."""
    for seed in range(5):
        net, x = network(seed=seed), inputs(5)
        expected = network(seed=seed)(x)
        torch.cuda.synchronize()

        def work(_, net=net, x=x, expected=expected):
            with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
                return bool(torch.equal(net(x), expected))

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(16)))


@torch.no_grad()
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one card is here")
def test_a_card_that_is_not_the_current_one():
    x, net = inputs(5), network()
    for tokens in (5, 40, 1300):
        x = inputs(tokens)
        expected = net(x)
        assert torch.cuda.current_device() == 0
        there = copy.deepcopy(net).to("cuda:1")
        found = there(x.to("cuda:1"))
        assert found.device.index == 1 and torch.equal(found.to(0), expected)
    with pytest.raises(ValueError, match="x is on cuda:0 and the weight on cuda:1"):
        there(x)


@torch.no_grad()
def test_what_is_on_the_host_is_refused():
    q = weight(4, 64, 128, 32).to("cuda")
    with pytest.raises(ValueError, match="x is on cpu and the weight on cuda:0; move"):
        linear(random(2, 128).half(), q)
    rows = int8_rows(random(64, 128)).to("cuda")
    with pytest.raises(ValueError, match="input_scale is on cpu"):
        int8_linear(inputs(2, features=128), rows, input_scale=torch.tensor(0.1))


# ---- numbers that are none


@torch.no_grad()
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_token_that_has_what_is_no_number(dtype, bits):
    q = weight(bits, 130, 1184, 32, "zero points").to("cuda")
    for bad in (torch.nan, torch.inf, -torch.inf):
        for place in (0, 700, 1183):
            x = inputs(1, dtype, 1184)
            x[0, place] = bad
            assert not linear(x, q)[0][q.dequantize()[:, place] != 0].isfinite().any()
    assert linear(inputs(1, dtype, 1184), q).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [3, 20, 200, 1300])
def test_what_is_no_number_stays_none_and_in_its_token(tokens, dtype):
    for q in (
        weight(4, 130, 1184, 32, "zero points"),
        weight(8, 40, 200, kind="offsets"),
        quantize_tensor(random(64, 640), NF4()),
    ):
        q = q.to("cuda")
        for bad in (torch.nan, torch.inf):
            for place in (0, q.shape[1] // 2, q.shape[1] - 1):
                x = inputs(tokens, dtype, q.shape[1])
                x[1, place] = bad
                y = linear(x, q)
                assert not y[1][q.dequantize()[:, place] != 0].isfinite().any()
                assert y[torch.arange(tokens) != 1].isfinite().all()
    rows = int8_rows(random(70, 160))
    for bad in (torch.nan, torch.inf):
        for limit in (0.0, 6.0):
            x = inputs(tokens, dtype, 160)
            x[1, 159] = bad
            y = int8_linear(x, rows.to("cuda"), threshold=limit).cpu()
            expected = plain.int8_linear(x.cpu(), rows, None, limit, None, dtype)
            assert torch.equal(y.isnan(), expected.isnan()) and torch.equal(y.isinf(), expected.isinf())
