"""Where a code lies in the words that the Triton kernels read: found by packing, not by saying it again.

A pattern of bits goes through `qkit.backends.triton.layout.pack_words`, a bit of each code's address at a time; what comes out
says of every bit of every word which code it belongs to.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from qkit.backends.triton.layout import BLOCK, ROWS, pack_words
from qkit_kernels.triton.assembly import PLANES

LANES = 32  # of a warp


@dataclass(frozen=True)
class Places:
    """One block of 128 rows and 128 columns.

    Attributes:
        row, column, bit: int64 [words, 32]: whose bit, and which of the code's, stands at each bit of each word.
        plane: int64 [words], the plane that a word belongs to; lowest bits first.
        lane: int64 [words], the lane of a warp that loads it, 4 g + t.
    """

    row: np.ndarray
    column: np.ndarray
    bit: np.ndarray
    plane: np.ndarray
    lane: np.ndarray

    def of(self, row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
        """(words, bits): where the bits of one code lie, its lowest first."""
        words, bits = np.nonzero((self.row == row) & (self.column == column))
        order = np.argsort(self.bit[words, bits])
        return words[order], bits[order]


@cache
def code_places(bits: int, table: bool = False) -> Places:
    """The map for codes of so many bits; `table`: in the order in which a codebook's bytes are looked up."""
    address = torch.arange(ROWS * BLOCK).view(ROWS, BLOCK)
    found = np.zeros((ROWS * BLOCK * bits // 32, 32), np.int64)
    bit = np.full_like(found, -1)
    for place in range(bits):
        mine = _spread(torch.ones_like(address) << place, bits, table)
        bit[mine] = place
        for digit in range((ROWS * BLOCK - 1).bit_length()):
            found |= _spread((address >> digit & 1) << place, bits, table).astype(np.int64) << digit
    widths = np.repeat(PLANES[bits], [ROWS * BLOCK * width // 32 for width in PLANES[bits]])
    plane = np.repeat(np.arange(len(PLANES[bits])), [ROWS * BLOCK * width // 32 for width in PLANES[bits]])
    inside = np.concatenate([np.arange(ROWS * BLOCK * width // 32) for width in PLANES[bits]])
    return Places(found // BLOCK, found % BLOCK, bit, plane, inside // widths % LANES)


def _spread(codes: torch.Tensor, bits: int, table: bool) -> np.ndarray:
    """The bits of the packed words, bool [words, 32]."""
    words = pack_words(codes.to(torch.uint8), bits, table).numpy().view(np.uint32)
    return (words[:, None] >> np.arange(32, dtype=np.uint32) & 1).astype(bool)


def operand_order() -> np.ndarray:
    """Which of 32 columns each lane and instruction of the tensor core takes: int64 [2 (u), 4 (t), 4 (h l)].

    The order in which `qkit_kernels.triton.few` hands a quarter of a block on: columns are t h u l, 8 consecutive a lane, and
    one instruction takes u = 0, the next u = 1. x is put in the same order, so that the sum over columns is the same.
    """
    columns = np.arange(32).reshape(4, 2, 2, 2)  # t h u l
    return columns.transpose(2, 0, 1, 3).reshape(2, 4, 4)
