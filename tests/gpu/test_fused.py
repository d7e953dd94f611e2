"""Fused layers on a card: what each returns, in graphs of the compiler and of CUDA, and in a whole model."""

import pytest
import torch

from products import random
from qkit import NF4, RTN, W8A8, LLMInt8, fuse_projections
from qkit.bench.generation import synthetic_llama
from qkit.engine.solve import solve_layer
from qkit.nn.fused import fuse
from qkit.nn.layers import quantized_layers

pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")
if not torch.cuda.is_available():
    pytest.skip("no CUDA card is here", allow_module_level=True)

pytestmark = pytest.mark.gpu
SCHEMES = (RTN(bits=4, group_size=128), RTN(bits=3, group_size=64), RTN(bits=8), NF4(), W8A8(), LLMInt8())
OUT, IN = (512, 128, 128), 1024


def layers(scheme):
    made = [solve_layer(random(out, IN, seed=out).cuda() / 20, None, scheme, None, "a layer").layer for out in OUT]
    return [layer.cuda() for layer in made]


def near(y, expected):
    """Sums in another order: each rounded in float32, and the result in 16 bits."""
    return float((y.double() - expected.double()).norm() / expected.double().norm()) < 2 * torch.finfo(y.dtype).eps


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_each_returns_its_own(scheme, dtype):
    alone, fused = layers(scheme), layers(scheme)
    fuse(fused)
    for tokens in (1, 5, 16, 40, 300):
        x = random(tokens, IN).to("cuda", dtype)
        for one, other in zip(alone, fused, strict=True):
            assert near(other(x), one(x)), tokens
    assert fused[0].fused[0].kept is None


@torch.no_grad()
def test_they_are_captured_and_compiled():
    made, x = layers(SCHEMES[0]), random(1, IN).to("cuda", torch.bfloat16)
    fuse(made)
    expected = [layer(x) for layer in made]
    torch.compiler.reset()
    run = torch.compile(lambda x: [layer(x) for layer in made], fullgraph=True)
    assert all(map(torch.equal, run(x), expected))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = [layer(x) for layer in made]
    for y in found:
        y.fill_(torch.nan)
    graph.replay()
    assert all(map(torch.equal, found, expected))


@torch.no_grad()
def test_a_models_logits_stay():
    config = {"vocab_size": 512, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    model = synthetic_llama(config, SCHEMES[0], device="cuda", dtype=torch.bfloat16)
    ids = torch.arange(7, device="cuda")[None]
    before = model(ids).logits
    found = fuse_projections(model)
    assert [len(names) for names in found] == 2 * [3, 2] and all(
        layer.fused for name, layer in quantized_layers(model).items() if "q_proj" in name
    )
    assert float((model(ids).logits - before).norm() / before.norm()) < 0.05
    model.cpu()
    assert not any(layer.fused for layer in quantized_layers(model).values())
