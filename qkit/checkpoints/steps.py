"""What the formats have in common that hold steps of a ruler (GPTQ, AWQ, compressed-tensors), and QTensor with them.

What a layer must be for that: `qkit.nn.steps`.
"""

from math import gcd

import torch
from torch import Tensor

from qkit.nn.qlinear import QLinear
from qkit.nn.steps import steps
from qkit.numerics.packing import pack
from qkit.numerics.qtensor import QTensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def wide_scales(layer: QLinear) -> str | None:
    """Why float16 cannot hold the scales of a layer; None: it can, exactly."""
    scales = steps(layer).scales
    if torch.equal(scales.half().float(), scales.float()):
        return None
    return "has scales that float16 does not hold exactly (schemes with INT8 activations, or scale_dtype='float32')"


def check_alike(layers: dict[str, QLinear], format: str) -> None:
    """Refuse layers of several widths, where the format has one for all.

    Raises:
        ValueError: naming two of them.
    """
    first, *others = layers.items()
    for name, layer in others:
        if layer.bits != first[1].bits:
            raise ValueError(
                f"format {format!r} has one width for all layers; {first[0]} has {first[1].bits} bits and {name} {layer.bits}"
            )


def common_group(layers: dict[str, QLinear]) -> int:
    """The group size that fits all layers, -1 for a whole row: a scale of a larger group is repeated.

    0: none fits.
    """
    weights = [steps(layer) for layer in layers.values()]
    if all(q.row_groups == 1 for q in weights):
        return -1
    sizes = [q.shape[1] // q.row_groups for q in weights]
    smallest = min(sizes)
    return smallest if all(size % smallest == 0 for size in sizes) else 0


def check_group(layers: dict[str, QLinear], format: str) -> None:
    """Refuse layers whose groups have no size in common, where the format has one for all."""
    if common_group(layers) == 0:
        sizes = sorted({steps(layer).shape[1] // steps(layer).row_groups for layer in layers.values()})
        raise ValueError(
            f"format {format!r} has one group size for all layers, and {', '.join(map(str, sizes))} have none in common; "
            f"quantize them alike"
        )


def grouped(
    packed: Tensor, scales: Tensor, zeros: Tensor | None, index: Tensor, bits: int, shape: tuple[int, int]
) -> QTensor:
    """A QTensor of a file's parts.

    Args:
        packed: uint8, as `QTensor.packed`.
        scales: float [out, groups]; bfloat16 becomes float32, which holds it.
        zeros: uint8 [out, groups], or None where all are 2^(bits - 1).
        index: int64 [in], ascending, the group of each column. Groups may be of unequal sizes (a last one that is short): each
            is cut into parts of one size, with its scale repeated.
    """
    columns = shape[1]
    size = gcd(columns, *(torch.nonzero(index.diff()) + 1).flatten().tolist())
    which = index[::size]
    scales = scales[:, which].contiguous()
    scales = scales.float() if scales.dtype == torch.bfloat16 else scales
    if zeros is None or bool((zeros == 2 ** (bits - 1)).all()):
        return QTensor(packed, scales, bits, shape)
    return QTensor(packed, scales, bits, shape, pack(zeros[:, which].reshape(1, -1), bits)[0])


def rounded_inputs(layers: dict[str, QLinear]) -> tuple[str, ...]:
    """The note for a format that leaves activations as they are."""
    count = sum(layer.activations is not None for layer in layers.values())
    if not count:
        return ()
    return (
        f"{count} layers round their inputs to INT8 here and take them as floats there: nearer to the original model",
    )


def check_known(parts: dict[str, Tensor], known: set[str]) -> None:
    """Refuse a part that nobody would read; ValueError as the end of a sentence that begins with the layer."""
    if strange := sorted(set(parts) - known):
        raise ValueError(f"has {strange[0]}, which is no part of such a layer")


def check_size(size: object, library: str) -> None:
    """Refuse a group_size that is none; ValueError as the end of a sentence that begins with the folder."""
    if isinstance(size, bool) or not isinstance(size, int) or (size != -1 and size < 1):
        raise ValueError(f"says group_size={size!r}; {library}'s files have a number of columns, or -1 for all")
