"""What stands between the products of a model's step, on a card, against float64; each kernel begins while others still run."""

import pytest
import torch

import exact_step
from exact_step import off
from products import random

pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")
if not torch.cuda.is_available():
    pytest.skip("no CUDA card is here", allow_module_level=True)

from qkit.bench.gpu_step import add_norm, attend, gated

pytestmark = pytest.mark.gpu
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
EPS = 1e-5


def here(rows, columns, dtype, seed=0):
    return random(rows, columns, seed=seed).to("cuda", dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 4096), (16, 4096), (3, 100), (2, 16384), (2, 16400)], ids=str)
def test_a_sum_and_its_norm(shape, dtype):
    x, more, weight = here(*shape, dtype, 1), here(*shape, dtype, 2), here(1, shape[1], dtype, 3)[0]
    total, norm = add_norm(x, more, weight, EPS)
    assert torch.equal(total, x + more)
    assert off(norm, exact_step.normed(total, weight, EPS)) < 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 14336), (16, 14336), (3, 100)], ids=str)
def test_a_gate(shape, dtype):
    gate, up = here(shape[0], 2 * shape[1], dtype).chunk(2, 1)
    assert off(gated(gate, up), exact_step.gated(gate, up)) < 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(8, 4, 256, 128), (128, 4, 256, 128), (3, 17, 70, 64), (2, 2, 1100, 64)], ids=str)
def test_attention(shape, dtype):
    groups, heads, length, dim = shape
    query = here(groups * heads, dim, dtype).view(groups, heads, dim)
    keys, values = (here(groups * length, dim, dtype, seed).view(groups, length, dim) for seed in (2, 3))
    seen = torch.arange(length, device="cuda") < 65
    assert off(attend(query, keys, values, seen, 0.1), exact_step.attended(query, keys, values, seen, 0.1)) < 8


def test_one_after_the_other_with_nothing_in_between():
    """A kernel that read what the one ahead has not written yet would see NaN, or what an earlier replay left."""

    def chain(x, between=lambda: None):
        more = x
        for _ in range(12):
            x, norm = add_norm(x, more, weight, EPS)
            between()
            gate = gated(norm, x)
            between()
            more = attend(gate.view(8, 4, 128), keys, keys, seen, 0.1).view(1, 4096)
            between()
        return more

    weight, keys = here(1, 4096, torch.bfloat16, 1)[0], here(8 * 256, 128, torch.bfloat16, 2).view(8, 256, 128)
    seen, x = torch.arange(256, device="cuda") < 200, here(1, 4096, torch.bfloat16, 3)
    expected = chain(x, torch.cuda.synchronize)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = chain(x)
    for turn in range(100):
        x.copy_(here(1, 4096, torch.bfloat16, 3 if turn % 2 else 4))
        graph.replay()
        if turn % 2:
            assert torch.equal(found, expected), turn


@pytest.mark.parametrize("make", [
    lambda: (add_norm, (here(2, 256, torch.bfloat16), here(2, 256, torch.bfloat16), here(1, 256, torch.bfloat16)[0], EPS)),
    lambda: (gated, tuple(here(2, 512, torch.bfloat16).chunk(2, 1))),
    lambda: (attend, (here(4, 64, torch.bfloat16).view(2, 2, 64), *2 * [here(80, 64, torch.bfloat16).view(2, 40, 64)],
                      torch.arange(40, device="cuda") < 9, 0.1)),
], ids=["add_norm", "gated", "attend"])  # fmt: skip
def test_they_are_operations(make):
    operation, arguments = make()
    torch.library.opcheck(operation, arguments)
