"""Kernels are compiled when they first run: here they run once on next to nothing, before a clock starts. On a GPU they can be
tried with several tiles too, of which the fastest are kept for good.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from qkit import ops
from qkit.dispatch import missing
from qkit.engine.plan import Plan, schemes_of
from qkit.engine.solve import solve_layer
from qkit.methods.scheme import Scheme
from qkit.methods.statistics import WANTS, InputStatistics
from qkit.nn.int8_linear import Int8Linear
from qkit.nn.layers import quantized_layers
from qkit.nn.qlinear import QLinear

FEATURES = 256
OUTPUTS = (16, 512)  # few numbers are worked on by one thread, many by all
# Few tokens and many are multiplied by different kernels, in tiles of different sizes; outliers of very many are searched by all
TOKENS = (1, 2, 4, 16, 24, 600)


@torch.no_grad()
def warm_up(plan: Plan, dtype: torch.dtype = torch.float32) -> None:
    """Have everything compiled that quantizing by `plan` runs, and that the quantized layers run on activations of `dtype`."""
    for scheme in schemes_of(plan):
        group_size = getattr(scheme, "group_size", None)
        features = -(-FEATURES // group_size) * group_size if isinstance(group_size, int) else FEATURES
        x = _inputs(features)
        inputs = InputStatistics.empty(features, wants=WANTS)
        inputs.add(x, x)
        inputs.add(x[:1], x[:1])
        for outputs in OUTPUTS:
            weight = torch.linspace(-1, 1, features, dtype=torch.float32).repeat(outputs, 1)  # scales that 16 bits hold
            solved = solve_layer(weight, None, scheme, inputs, "a layer to warm up with")
            ops.dequantize(solved.q)
            solved.q.codes()
            _call(solved.layer, x.to(dtype))


def _inputs(features: int) -> Tensor:
    """float32 [tokens, features], some large enough for outliers."""
    return torch.linspace(-9, 9, max(TOKENS) * features, dtype=torch.float32).reshape(-1, features).roll(1, 0)


def _call(layer: nn.Module, x: Tensor) -> None:
    """The layer with few tokens and many."""
    calm = x / 9  # without outliers LLM.int8() is another call
    for tokens in TOKENS:
        for given in (x, calm):
            layer(given[:tokens])


@dataclass(frozen=True)
class Warmth:
    """What it took until the kernels of a model were compiled.

    Attributes:
        seconds: all of it.
        compiled: kernels that were compiled, each for the types that it is given.
        found: kernels that an earlier process had compiled and Numba had kept on disk.
    """

    seconds: float
    compiled: int
    found: int

    def to_dict(self) -> dict[str, float | int]:
        """For JSON."""
        return asdict(self)


@torch.no_grad()
def warm_model(model: nn.Module, schemes: Sequence[Scheme] = ()) -> Warmth:
    """Have everything compiled that a model's quantized layers run on the CPU, and, for one that is yet to be quantized, what the
    schemes and its layers by them run. Numba keeps it on disk, so that later processes on such a processor find it.

    Raises:
        ValueError: there is nothing to compile for, or nothing to compile with.
    """
    if why := missing("qkit.backends.numba.linear"):
        raise ValueError(
            f"the CPU's kernels are compiled by Numba, which cannot be used ({why}); pip install qkit, or set NUMBA_CACHE_DIR"
        )
    from qkit.backends.numba.compiled import counting

    layers = {(type(layer), repr(layer.qtensor)): layer for layer in quantized_layers(model).values()}
    if not layers and not schemes:
        raise ValueError("no layer of this model is quantized; name the schemes by which it will be")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    start = time.perf_counter()
    with counting() as count:
        for scheme in schemes:
            warm_up(scheme, dtype)
        for layer in layers.values():
            _call(layer, _inputs(layer.in_features).to(dtype))
    return Warmth(time.perf_counter() - start, count.compiled, count.found)


def tune_tiles(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> int:
    """Try the tiles that may be good for the weights of a model on its GPU, and keep the fastest for good; seconds a shape.

    They are taken from then on by all that runs on such a card (`qkit.backends.triton.tuning`); results may differ in their last
    bit, since other tiles add up in another order. INT8 products have one table, and are not tried.

    Args:
        dtype: of the activations, float16 or bfloat16.

    Returns:
        how many shapes were tried.

    Raises:
        ValueError: no Triton, or no weight on a GPU.
    """
    if why := missing("qkit.backends.triton.clock"):
        raise ValueError(
            f"tiles are those of Triton's kernels, which cannot be imported ({why}); pip install 'qkit[gpu]'"
        )
    from qkit.backends.triton import clock, layout

    layers = [m for m in model.modules() if isinstance(m, QLinear) and not isinstance(m, Int8Linear)]
    weights = {repr(layer.qtensor): layer.qtensor for layer in layers if layer.packed.is_cuda}
    weights = {name: q for name, q in weights.items() if layout.fits(q)}
    if not weights or dtype not in layout.KIND:
        raise ValueError(
            f"no weight of this model is on a GPU in a form that has kernels for {dtype}; quantize it, move it with .to('cuda'), "
            "and name torch.float16 or torch.bfloat16"
        )
    for q in weights.values():
        clock.tune(q, dtype)
    return len(weights)
