"""Codes in words of 32 bits, as GPTQ, AWQ and compressed-tensors keep them.

A word is four bytes of `qkit.numerics.packing` read as one little-endian int32: the bits are the same, and so are codes of
3 bits that straddle two words. What differs from format to format is the axis along which codes are packed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.numerics.packing import pack, packed_length, unpack


def words(packed: Tensor) -> Tensor:
    """Rows of bytes as rows of words, the last filled up with zeros: uint8 [rows, n] -> int32 [rows, ceil(n / 4)]."""
    return F.pad(packed, (0, -packed.shape[1] % 4)).contiguous().view(torch.int32)


def word_count(length: int, bits: int) -> int:
    """Words that `length` codes take."""
    return -(-length * bits // 32)


def octets(row_words: Tensor, bits: int, length: int) -> Tensor:
    """The inverse of `words`, as `QTensor.packed` has it: int32 [rows, words] -> uint8 [rows, ceil(length * bits / 8)]."""
    return row_words.contiguous().view(torch.uint8)[:, : packed_length(length, bits)].contiguous()


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """Codes 0 .. 2^bits - 1 [rows, length] packed along each row: int32 [rows, words]."""
    return words(pack(codes.contiguous(), bits))


def unpack_words(row_words: Tensor, bits: int, length: int) -> Tensor:
    """The inverse of `pack_words`: uint8 [rows, length]."""
    return unpack(octets(row_words, bits, length), bits, length)


def require_part(name: str, parts: dict[str, Tensor], shape: tuple[int, ...], *dtypes: torch.dtype) -> Tensor:
    """One tensor of a layer; ValueError, as the end of a sentence that begins with the layer, if it is not as expected."""
    if name not in parts:
        raise ValueError(f"lacks {name}")
    part = parts[name]
    if tuple(part.shape) != shape or part.dtype not in dtypes:
        kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(
            f"has {name} {str(part.dtype).removeprefix('torch.')} {tuple(part.shape)} where its shape and the "
            f"quantization_config give {kinds} {shape}"
        )
    if part.is_floating_point() and not part.isfinite().all():
        raise ValueError(f"has {name} with NaN or infinity in it")
    return part
