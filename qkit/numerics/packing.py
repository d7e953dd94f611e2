"""Codes of 2 to 8 bits into bytes and back.

What
    A row of codes becomes one stream of bits, lowest bit first, little-endian: code k lies in bits b*k .. b*k + b - 1.
    Nothing is wasted between codes, so 32 codes of 3 bits take exactly 3 words of 32 bits, also when a code straddles two
    bytes. Each row is filled up to a whole byte. For 2, 4 and 8 bits this is the familiar "low nibble first" order, and
    where a row is whole words it is the order that compressed-tensors and GPTQ checkpoints use along their packed axis.

How
    8 codes of b bits are b bytes: gather 8 codes in one 64-bit word with shifts, then cut the word into bytes. On a CPU
    `qkit_kernels.numba.packing` does the same in one pass.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit import dispatch
from qkit.numerics.mapping import check_bits


def packed_length(length: int, bits: int) -> int:
    """Bytes that `length` codes of `bits` bits take: ceil(length * bits / 8)."""
    return -(-length * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack each row of `codes`.

    Args:
        codes: whole numbers 0 .. 2^bits - 1 of any dtype, [rows, length].
        bits: 2 .. 8.

    Returns:
        uint8 [rows, ceil(length * bits / 8)].

    Raises:
        ValueError: a code is no whole number, or does not fit in `bits` bits.
    """
    check_bits(bits)
    if codes.is_floating_point() and not torch.equal(codes, codes.round()):
        raise ValueError(f"codes are whole numbers 0..{2**bits - 1}, some of these are not; round them")
    if codes.numel() and not 0 <= float(codes.min()) <= float(codes.max()) < 2**bits:  # in uint8, 256 would be 0
        raise ValueError(
            f"codes run from {float(codes.min()):g} to {float(codes.max()):g}, {bits} bits hold 0..{2**bits - 1}; "
            f"clamp them, or subtract the lowest signed code first"
        )
    if not codes.numel():
        return torch.zeros(len(codes), packed_length(codes.shape[1], bits), dtype=torch.uint8, device=codes.device)
    return dispatch.select("pack", None, codes.device.type)(codes, bits)


def pack_plain(codes: Tensor, bits: int) -> Tensor:
    """`pack` without its checks, by torch on any device."""
    rows, length = codes.shape
    eights = F.pad(codes.long(), (0, -length % 8)).reshape(rows, -1, 8)
    words = (eights << (bits * torch.arange(8, device=codes.device))).sum(-1, keepdim=True)
    octets = (words >> (8 * torch.arange(bits, device=codes.device))) & 255
    return octets.to(torch.uint8).reshape(rows, -1)[:, : packed_length(length, bits)].contiguous()


def unpack(packed: Tensor, bits: int, length: int) -> Tensor:
    """The inverse of `pack`: uint8 [rows, ceil(length * bits / 8)] -> codes uint8 [rows, length]."""
    check_bits(bits)
    octets = packed.shape[1]
    if octets != packed_length(length, bits):
        raise ValueError(
            f"{octets} bytes a row do not hold {length} codes of {bits} bits, which take {packed_length(length, bits)}; "
            f"give the length and the bits that the codes were packed with"
        )
    if not packed.numel():
        return torch.zeros(len(packed), length, dtype=torch.uint8, device=packed.device)
    return dispatch.select("unpack", None, packed.device.type)(packed, bits, length)


def unpack_plain(packed: Tensor, bits: int, length: int) -> Tensor:
    """`unpack` without its checks, by torch on any device."""
    rows, octets = packed.shape
    groups = F.pad(packed, (0, -octets % bits)).reshape(rows, -1, bits).long()
    words = (groups << (8 * torch.arange(bits, device=packed.device))).sum(-1, keepdim=True)
    codes = (words >> (bits * torch.arange(8, device=packed.device))) & (2**bits - 1)
    return codes.to(torch.uint8).reshape(rows, -1)[:, :length].contiguous()
