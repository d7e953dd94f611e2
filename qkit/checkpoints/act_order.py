"""Columns whose groups are not neighbours, as GPTQ's act-order leaves them: a file has them in the model's order and says the
group of each (`g_idx`), we have them sorted by group (`PermutedLinear`).
"""

import torch
from torch import Tensor, nn

from qkit.checkpoints.words import octets, pack_words, require_part, unpack_words
from qkit.nn.permuted_linear import PermutedLinear
from qkit.nn.qlinear import QLinear
from qkit.numerics.qtensor import QTensor


def group_of_each(name: str, parts: dict[str, Tensor], columns: int, size: int, *dtypes: torch.dtype) -> Tensor:
    """The group of each column, int64 [in]: as the part of this name says, or `size` after `size` where there is none.

    Raises:
        ValueError: as the end of a sentence that begins with the layer's name.
    """
    size = min(size, columns)
    if name not in parts:  # AutoGPTQ too reads files without
        return torch.arange(columns) // size
    index, groups = require_part(name, parts, (columns,), *dtypes).long(), -(-columns // size)
    if not 0 <= int(index.min()) <= int(index.max()) < groups:
        raise ValueError(f"has {name} {int(index.min())} .. {int(index.max())} where there are {groups} groups")
    if (most := int(index.bincount().max())) > size:
        raise ValueError(f"has {name} with {most} columns in a group where group_size={size}")
    return index


def sorted_by_group(words: Tensor, bits: int, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes with the columns of a group side by side.

    Args:
        words: int32 [out, words of a row], in the model's order.
        index: int64 [in], the group of each column.

    Returns:
        The codes as `QTensor.packed`; the group of each of their columns, ascending; which of the model's columns each is, or
        None where they were sorted already.
    """
    columns = len(index)
    if index.equal(index.sort().values):
        return octets(words, bits, columns), index, None
    order = index.argsort(stable=True)
    packed = octets(pack_words(unpack_words(words, bits, columns)[:, order], bits), bits, columns)
    return packed, index[order], order


def in_order(q: QTensor, bias: nn.Parameter | None, order: Tensor | None, activations: str | None = None) -> QLinear:
    """The layer of a weight whose columns `sorted_by_group` may have sorted."""
    return QLinear(q, bias, activations) if order is None else PermutedLinear(q, bias, activations, order=order)
