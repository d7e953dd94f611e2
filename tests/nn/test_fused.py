"""Layers that are fused return what they return alone, and compute alone where they must."""

import copy

import pytest
import torch
from torch import Tensor, nn

from qkit import NF4, RTN, W8A8, LLMInt8, QLinear, ops, quantize_tensor
from qkit.engine.solve import solve_layer
from qkit.nn.fused import fuse
from qkit.nn.int8_linear import Int8Linear
from qkit.nn.layers import is_quantized

OUT, IN = (256, 128, 128), 96
SCHEMES = (
    RTN(bits=4, group_size=32),
    RTN(bits=3),
    RTN(bits=4, activations="int8"),
    NF4(32),
    W8A8(),
    LLMInt8(threshold=2.0),
)


def layers(scheme, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for out in OUT:
        weight = torch.randn(out, IN, generator=generator)
        offset = nn.Parameter(torch.randn(out, generator=generator), requires_grad=False) if bias else None
        made.append(solve_layer(weight, offset, scheme, None, "a layer").layer)
    assert all(map(is_quantized, made))
    return made


def alone(layer: QLinear, x: Tensor) -> Tensor:
    """By the plain way, as the fused product of a CPU goes."""
    if isinstance(layer, Int8Linear):
        y = ops.int8_linear(x, layer.qtensor, None, None, layer.threshold, backend="torch")
    else:
        y = ops.linear(x, layer.qtensor, None, "torch", layer.activations)
    return y if layer.bias is None else y + layer.bias.to(y.dtype)


def tokens(*shape):
    return torch.randn(*shape, IN, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_each_returns_its_own(scheme, bias, monkeypatch):
    made, x = layers(scheme, bias), tokens(2, 3)
    fuse(made)
    calls = []
    products = ops.products
    monkeypatch.setattr(ops, "products", lambda *args: calls.append(1) or products(*args))
    for _ in range(2):
        found = [layer(x) for layer in made]
        for layer, y in zip(made, found, strict=True):
            assert y.dtype == x.dtype and torch.equal(y, alone(layer, x))
    assert len(calls) == 2 and made[0].fused[0].kept is None


@torch.no_grad()
def test_with_another_tensor_it_computes_alone():
    made, x = layers(SCHEMES[0]), tokens(3)
    fuse(made)
    made[0](x)
    other = 2 * x
    own = QLinear(made[1].qtensor, made[1].bias)
    assert torch.equal(made[1](other), own(other)) and torch.equal(made[1](x.clone()), own(x))
    made[0](x)
    x.mul_(3)  # the tensor is the same, and what is in it is not
    assert torch.equal(made[1](x), own(x))


def test_what_learns_and_what_no_kernel_takes_goes_alone():
    made = layers(SCHEMES[0])
    fuse(made)
    x = tokens(3).requires_grad_()
    made[0](x).sum().backward()
    assert x.grad is not None and made[0].fused[0].kept is None
    made[0](tokens(3).float())
    assert made[0].fused[0].kept is None


@torch.no_grad()
def test_what_is_moved_or_replaced_is_fused_no_more():
    x = tokens(3)
    for change in (lambda layer: layer.half(), lambda layer: layer.register_buffer("packed", layer.packed ^ 1)):
        made = layers(SCHEMES[0], bias=False)
        fuse(made)
        change(made[1])
        made[0](x)
        own = QLinear(made[1].qtensor)
        assert torch.equal(made[1](x), own(x)) and made[1].fused is None
        assert torch.equal(made[2](x), alone(made[2], x))


@torch.no_grad()
def test_loaded_weights_are_those_that_are_used():
    made, others, x = layers(SCHEMES[0]), layers(SCHEMES[0], seed=5), tokens(3)
    fuse(made)
    before = [layer(x) for layer in made]
    for layer, other in zip(made, others, strict=True):
        layer.load_state_dict(other.state_dict())
    for layer, other, old in zip(made, others, before, strict=True):
        y = layer(x)
        assert torch.equal(y, alone(other, x)) and not torch.equal(y, old)


@torch.no_grad()
def test_a_copy_is_fused_with_copies():
    model, x = nn.ModuleList(layers(SCHEMES[0])), tokens(3)
    fuse(list(model))
    twin = copy.deepcopy(model)
    assert twin[0].fused[0] is twin[2].fused[0] and twin[0].fused[0] is not model[0].fused[0]
    expected = [layer(x) for layer in model]
    model[1].packed.zero_()
    assert all(torch.equal(layer(x), y) for layer, y in zip(twin, expected, strict=True))
    assert set(model.state_dict()) == set(nn.ModuleList(layers(SCHEMES[0])).state_dict())


@pytest.mark.parametrize("scheme", [SCHEMES[0], SCHEMES[4]], ids=repr)
@torch.no_grad()
def test_they_are_one_operation_of_a_compiled_graph(scheme):
    made, x = layers(scheme), tokens(3)
    fuse(made)
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    run = torch.compile(lambda x: [layer(x) for layer in made], backend=backend, fullgraph=True)
    for layer, y in zip(made, run(x), strict=True):
        assert torch.equal(y, alone(layer, x))
    (graph,) = graphs
    assert sum("layers" in str(node.target) for node in graph.graph.nodes) == 1


def test_what_cannot_be_fused_is_said():
    one, two = layers(SCHEMES[0])[1:], layers(SCHEMES[1])[1:]
    odd = [QLinear(quantize_tensor(torch.randn(100, IN), bits=4, group_size=32)) for _ in range(2)]
    for several in ([one[0], two[0]], one[:1], odd):
        with pytest.raises(ValueError, match="cannot be fused; give two or more of one kind, with the same inputs"):
            fuse(several)
