"""How fast a layer can be at best: its bytes and operations, counted, against what the machine reads and computes, measured.

The roofline model (Williams, Waterman and Patterson, Communications of the ACM 52(4), 2009): a layer that moves B bytes and
does W operations takes at least

    max(B / bandwidth, W / peak)        seconds, whichever is longer,

since the memory delivers while the arithmetic runs. W / B, its operations a byte, says on which side of the ridge it is.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.bench.record import Roof
from qkit.bench.roof import PAGE, READ_BYTES, measure_roof, read, read_rows
from qkit.bench.timing import Rotation, interleave
from qkit.numerics.packing import packed_length
from qkit.numerics.qtensor import QTensor
from qkit.ops import linear
from qkit_kernels.numba.threads import run

ROTATED_BYTES = READ_BYTES  # copies of a weight take turns until so much has been read: more than most caches keep


@dataclass(frozen=True)
class Layer:
    """y = x ŵᵀ: what has to be read, written and computed, counted.

    Attributes:
        out_features, in_features: of the weight.
        bits: of a code, 2 .. 8, with a 16-bit scale a group; or 16 or 32, plain floats.
        group_size: codes that share a scale; None: a row.
        tokens: rows of x.
        number_bytes: of a number of x and of y; 2 where these are in 16 bits.
    """

    out_features: int
    in_features: int
    bits: int = 32
    group_size: int | None = None
    tokens: int = 1
    number_bytes: int = 4

    def __post_init__(self) -> None:
        if self.group_size is not None and self.in_features % self.group_size:
            raise ValueError(
                f"group_size={self.group_size} does not divide in_features={self.in_features}; use a divisor or None"
            )
        if self.bits not in (*range(2, 9), 16, 32):
            raise ValueError(f"bits={self.bits} is no weight of qkit's; use 2 .. 8, or 16 or 32 for plain floats")

    @property
    def weight_bytes(self) -> int:
        """Codes and scales as a symmetric `QTensor` stores them; or floats."""
        codes = self.out_features * packed_length(self.in_features, self.bits)
        return codes if self.bits > 8 else codes + 2 * self.out_features * self.groups

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return 1 if self.group_size is None else self.in_features // self.group_size

    @property
    def bytes(self) -> int:
        """The weight, and what comes in and goes out."""
        return self.weight_bytes + self.number_bytes * self.tokens * (self.in_features + self.out_features)

    @property
    def operations(self) -> int:
        """A multiplication and an addition for each weight and token."""
        return 2 * self.tokens * self.in_features * self.out_features

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.operations / self.bytes

    def seconds_to_read(self, roof: Roof) -> float:
        """bytes / bandwidth."""
        return self.bytes / (1e9 * roof.gigabytes_per_second)

    def seconds_to_compute(self, roof: Roof, integers: bool = False) -> float:
        """operations / peak: that of float32, or that of INT8."""
        return self.operations / (1e9 * (roof.int8_gops if integers else roof.float_gops))

    def floor(self, roof: Roof, integers: bool = False) -> float:
        """The fewest seconds it can take."""
        return max(self.seconds_to_read(roof), self.seconds_to_compute(roof, integers))

    def random_weight(self) -> Tensor | QTensor:
        """A weight of this kind with random codes: its time is that of any other."""
        if self.bits > 8:
            return torch.randn(
                self.out_features, self.in_features, dtype=torch.float32 if self.bits == 32 else torch.bfloat16
            )
        packed = torch.randint(
            0, 256, (self.out_features, packed_length(self.in_features, self.bits)), dtype=torch.uint8
        )
        scales = torch.rand(self.out_features, self.groups).half() + 0.5
        return QTensor(packed, scales, self.bits, (self.out_features, self.in_features))


def attainable(roof: Roof, intensity: float, integers: bool = False) -> float:
    """10^9 operations a second: what memory feeds or what the arithmetic does, whichever is less."""
    return min(intensity * roof.gigabytes_per_second, roof.int8_gops if integers else roof.float_gops)


def best_roof(turns: int = 3) -> Roof:
    """`measure_roof` several times, the best of each peak; and the bandwidth of memory as PyTorch's tensors have it.

    NumPy asks for pages of 2 MB, of which some machines read up to twice as much a second as of PyTorch's 4 KB.
    """
    roofs = [measure_roof() for _ in range(turns)]
    data, sums = torch.ones(READ_BYTES, dtype=torch.uint8).numpy(), np.zeros(READ_BYTES // PAGE, np.int32)
    seconds = best_seconds(lambda: run(read, read_rows, (data, sums), len(sums)))
    peaks = (max(roof.float_gops for roof in roofs), max(roof.int8_gops for roof in roofs))
    return Roof(roofs[0].threads, READ_BYTES / seconds / 1e9, *peaks)


def raised(roof: Roof, measured: Iterable[tuple[Layer, float]], integers: bool = False) -> Roof:
    """A roof that nobody of `measured`, (layer, seconds), is above: what reads or computes faster shows what the machine can.

    Args:
        integers: whether they multiplied INT8.
    """
    for layer, seconds in measured:
        if seconds < layer.seconds_to_read(roof):
            roof = replace(roof, gigabytes_per_second=layer.bytes / seconds / 1e9)
        if seconds < layer.seconds_to_compute(roof, integers):
            rate = layer.operations / seconds / 1e9
            roof = replace(roof, int8_gops=rate) if integers else replace(roof, float_gops=rate)
    return roof


def best_seconds(call: Callable[[], Any], block: int = 8) -> float:
    """The shortest of `block` calls in each of two turns; what disturbs a call never makes it shorter."""
    return min(interleave({"": call}, rounds=2, block=block, warm=2)[""].seconds)


def rotated(weights: Sequence[Any], use: Callable[[Any], Any]) -> Callable[[], Any]:
    """A function that calls `use` with the next of `weights` each time."""
    return Rotation([lambda _, weight=weight: use(weight) for weight in weights], None)


@torch.no_grad()
def measure(layer: Layer, block: int = 8) -> dict[str, float]:
    """Seconds of one layer, its weights taking turns so that they come from memory.

    Returns:
        {"floats": ...} for torch's `linear` on 16 or 32 bits; {"floats": ..., "INT8": ...} for `qkit.linear` on codes, with
        float activations and with INT8 ones.
    """
    weights = [layer.random_weight() for _ in range(-(-ROTATED_BYTES // layer.weight_bytes))]
    x = torch.randn(layer.tokens, layer.in_features)
    if layer.bits > 8:
        x = x.to(weights[0].dtype)
        return {"floats": best_seconds(rotated(weights, lambda w: F.linear(x, w)), block)}
    ways = {"floats": None, "INT8": "int8"}
    calls = {name: rotated(weights, lambda q, way=way: linear(x, q, activations=way)) for name, way in ways.items()}
    return {name: best_seconds(call, block) for name, call in calls.items()}
