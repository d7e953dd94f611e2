"""The blocks of GGUF against a slow rewrite of their description, and against the package gguf, bit for bit."""

import re
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkit import FP4, NF4, RTN, LLMInt8, quantize_tensor
from qkit.checkpoints.gguf.blocks import FROM, TO, block_type, is_exact, minimum, why_no_block
from qkit.checkpoints.gguf.read import rows_of
from qkit.numerics.qtensor import QTensor

SIZE = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}


def slow(kind: str, raw: bytes) -> list[float]:
    """One block, weight by weight, as the description says it. Products and sums are rounded to float32, as ggml's are."""

    def single(x: float) -> float:
        return struct.unpack("<f", struct.pack("<f", x))[0]

    (d,) = struct.unpack("<e", raw[:2])
    if kind == "Q8_0":
        return [single(d * q) for q in struct.unpack("<32b", raw[2:])]
    m = struct.unpack("<e", raw[2:4])[0] if kind == "Q4_1" else 0.0
    octets = raw[4:] if kind == "Q4_1" else raw[2:]
    codes = [octet % 16 for octet in octets] + [octet // 16 for octet in octets]
    return [single(d * (q - 8)) for q in codes] if kind == "Q4_0" else [single(single(d * q) + m) for q in codes]


def draw(kind: str, rows: int, blocks: int, seed: int) -> torch.Tensor:
    """Random blocks whose scales and minima are finite: of any sign, zero and subnormal too."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (rows, blocks, SIZE[kind]), dtype=torch.uint8, generator=generator)
    for place in (0, 2)[: 2 if kind == "Q4_1" else 1]:
        half = torch.randn(rows, blocks, generator=generator) * 10 ** torch.empty(rows, blocks).uniform_(
            -7, 1, generator=generator
        )
        half[torch.rand(rows, blocks, generator=generator) < 0.1] = 0
        raw[..., place : place + 2] = half.half()[..., None].view(torch.uint8)
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("kind", FROM)
@given(rows=st.integers(1, 4), blocks=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_blocks_are_their_description_and_come_back_byte_for_byte(kind, rows, blocks, seed):
    raw = draw(kind, rows, blocks, seed)
    q = FROM[kind](raw)
    expected = [x for block in raw.reshape(-1, SIZE[kind]) for x in slow(kind, bytes(block.tolist()))]
    assert q.dequantize().flatten().tolist() == expected
    assert q.bits_per_weight == SIZE[kind] * 8 / 32
    assert why_no_block(q) is None and block_type(q) == kind
    assert torch.equal(TO[kind](q), raw)


@pytest.mark.parametrize("kind", FROM)
@pytest.mark.parametrize("shape", [(1, 32), (3, 96), (5, 320)])
def test_blocks_that_the_package_quantizes_dequantize_to_its_numbers(kind, shape):
    quants = pytest.importorskip("gguf.quants", reason="gguf is not installed: pip install qkit[gguf]")
    from gguf import GGMLQuantizationType

    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(3)).numpy()
    weight[0, :32] = 0
    raw = quants.quantize(weight, GGMLQuantizationType[kind])
    theirs = torch.from_numpy(quants.dequantize(raw, GGMLQuantizationType[kind]))
    q = FROM[kind](torch.from_numpy(raw))
    assert torch.equal(q.dequantize().view(torch.int32), theirs.view(torch.int32))
    assert torch.equal(TO[kind](q), torch.from_numpy(raw))


@pytest.mark.parametrize("group_size", [32, 64, 96, None, "tensor"])
@pytest.mark.parametrize(
    ("bits", "grid", "kind"),
    [
        (4, {"symmetric": True}, "Q4_0"),
        (4, {}, "Q4_1"),
        (4, {"include_zero": False}, "Q4_1"),
        (8, {"symmetric": True}, "Q8_0"),
    ],
)
def test_codes_are_written_as_they_are(bits, grid, kind, group_size):
    weight = torch.randn(7, 192, generator=torch.Generator().manual_seed(1))
    q = quantize_tensor(weight, RTN(bits, group_size, **grid))
    assert why_no_block(q) is None and block_type(q) == kind
    raw = TO[kind](q)
    assert raw.shape == (7, 192 // 32 * SIZE[kind]) and raw.dtype == torch.uint8
    again = FROM[kind](raw)
    assert torch.equal(again.codes(), q.codes())
    if is_exact(q):
        assert torch.equal(again.dequantize(), q.dequantize())
    else:  # the minimum of a zero point, rounded to float16: half of a last digit
        assert (again.dequantize() - q.dequantize()).abs().max() <= 2**-11 * minimum(q).abs().max()
    assert is_exact(q) or grid == {}


def weight(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(2))


def far_from_zero() -> QTensor:
    return QTensor.from_codes(torch.full((2, 64), 15), torch.full((2, 2), 9000.0), 4, torch.full((2, 2), 15))


@pytest.mark.parametrize(
    ("q", "why"),
    [
        (lambda: quantize_tensor(weight(4, 64), NF4()), "has codes that are places in a table"),
        (lambda: quantize_tensor(weight(4, 64), FP4()), "has codes that are places in a table"),
        (lambda: quantize_tensor(weight(4, 64), RTN(3, 32)), "has 3 bits$"),
        (lambda: quantize_tensor(weight(4, 64), RTN(5, 32, symmetric=True)), "has 5 bits$"),
        (lambda: quantize_tensor(weight(4, 64), RTN(8, 32)), "8 bits that are not symmetric"),
        (lambda: quantize_tensor(weight(4, 40), RTN(4, 8)), "in_features=40, no multiple of 32"),
        (lambda: quantize_tensor(weight(4, 40), RTN(4, None)), "in_features=40, no multiple of 32"),
        (lambda: quantize_tensor(weight(4, 64), RTN(4, 16)), "groups of 16"),
        (lambda: quantize_tensor(weight(4, 96), RTN(4, 48)), "groups of 48"),
        (lambda: quantize_tensor(weight(4, 64), LLMInt8()), "scales that float16 does not hold"),
        (lambda: quantize_tensor(weight(4, 64) * 1e-6, RTN(4, 32)), "scales that float16 does not hold"),
        (far_from_zero, "a minimum of 135000"),
    ],
)
def test_what_no_block_holds_is_named(q, why):
    assert re.search(why, why_no_block(q())) and "\n" not in why_no_block(q())


def test_rows_in_another_order_are_the_rows_of_what_they_stand_for():
    order = torch.tensor([2, 0, 3, 1])
    for kind in FROM:
        q = FROM[kind](draw(kind, 4, 3, 9))
        assert torch.equal(rows_of(q, order).dequantize(), q.dequantize()[order])
