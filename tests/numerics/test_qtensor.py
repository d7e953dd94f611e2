from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

from qkit import QTensor


def from_codes(out, groups, size, bits, kind="zero points", dtype=torch.float16, seed=0):
    """Random codes, scales of both parities, and zero points, offsets or neither."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randint(0, 2**bits, shape, generator=generator)

    scales = torch.rand(out, groups, generator=generator).add(0.01).to(dtype)
    offsets = torch.randn(out, groups, generator=generator).to(dtype)
    return QTensor.from_codes(
        draw(out, groups * size),
        scales,
        bits,
        zero_points=draw(out, groups) if kind == "zero points" else None,
        offsets=offsets if kind == "offsets" else None,
    )


@pytest.mark.parametrize(
    ("out", "groups", "size", "bits", "kind", "nbytes"),
    [
        (64, 2, 128, 4, "zero points", 64 * 256 // 2 + 64 * 2 * 2 + 64 * 2 // 2),
        (64, 2, 128, 4, "symmetric", 64 * 256 // 2 + 64 * 2 * 2),
        (64, 2, 128, 4, "offsets", 64 * 256 // 2 + 64 * 2 * 4),
        (3, 1, 7, 3, "zero points", 3 * 3 + 3 * 2 + 2),  # 21 bits a row are 3 bytes; 9 bits of zero points are 2
        (1, 1, 1, 2, "zero points", 1 + 2 + 1),
        (5, 3, 1, 8, "symmetric", 5 * 3 + 5 * 3 * 2),
    ],
)
def test_nbytes_are_those_counted_by_hand(out, groups, size, bits, kind, nbytes):
    q = from_codes(out, groups, size, bits, kind)
    assert q.nbytes == nbytes
    assert q.bits_per_weight == 8 * nbytes / (out * groups * size)


@pytest.mark.parametrize(
    ("bits", "kind", "expected"),
    [
        (4, "zero points", 4 + 20 / 128),
        (4, "symmetric", 4 + 16 / 128),
        (4, "offsets", 4 + 32 / 128),
        (3, "symmetric", 3.125),
    ],
)
def test_bits_per_weight_are_exact_where_the_shapes_divide(bits, kind, expected):
    assert from_codes(8, 2, 128, bits, kind).bits_per_weight == expected


def test_float32_scales_cost_twice_as_much():
    assert from_codes(8, 2, 128, 4, "symmetric", torch.float32).bits_per_weight == 4 + 32 / 128


def test_one_scale_for_the_whole_tensor_is_counted_once():
    q = QTensor.from_codes(torch.zeros(64, 64), torch.ones(1, 1, dtype=torch.float16), 4)
    assert q.nbytes == 64 * 64 // 2 + 2


@pytest.mark.parametrize("kind", ["zero points", "symmetric", "offsets"])
@pytest.mark.parametrize(("out", "groups", "size", "bits"), [(3, 2, 5, 3), (1, 1, 9, 4), (5, 3, 1, 8), (2, 4, 2, 7)])
def test_dequantize_is_the_formula_one_weight_at_a_time(out, groups, size, bits, kind):
    q = from_codes(out, groups, size, bits, kind)
    codes, values = q.codes(), q.dequantize()
    zeros = {"zero points": q.zeros(), "symmetric": torch.full((out, groups), 2.0 ** (bits - 1))}.get(kind)
    for o in range(out):
        for k in range(groups * size):
            scale = np.float32(q.scales[o, k // size])
            if kind == "offsets":
                expected = scale * np.float32(codes[o, k]) + np.float32(q.offsets[o, k // size])
            else:
                expected = scale * (np.float32(codes[o, k]) - np.float32(zeros[o, k // size]))
            assert values[o, k].item() == float(expected)


def test_codes_and_zero_points_come_back_as_they_were_given():
    codes = torch.tensor([[0, 7, 3], [5, 1, 6]])
    zeros = torch.tensor([[7, 0, 2], [1, 4, 3]])
    q = QTensor.from_codes(codes, torch.ones(2, 3), 3, zero_points=zeros)
    assert torch.equal(q.codes().long(), codes)
    assert torch.equal(q.zeros().long(), zeros)


@pytest.mark.parametrize(("scales", "group_size"), [((6, 4), 3), ((6, 1), None), ((1, 1), "tensor"), ((6, 12), 1)])
def test_the_group_size_is_read_from_the_scales(scales, group_size):
    assert QTensor.from_codes(torch.zeros(6, 12), torch.ones(scales), 4).group_size == group_size


def test_symmetric_means_that_nothing_is_stored_for_zero():
    assert from_codes(2, 1, 4, 4, "symmetric").symmetric
    assert not from_codes(2, 1, 4, 4, "zero points").symmetric
    assert not from_codes(2, 1, 4, 4, "offsets").symmetric


def test_the_parts_and_the_meta_make_the_same_weight_again():
    q = from_codes(3, 2, 5, 3)
    again = QTensor(**q.tensors(), **q.meta())
    assert torch.equal(again.dequantize(), q.dequantize())
    assert (again.shape, again.bits) == (q.shape, q.bits)


def test_a_qtensor_is_frozen():
    with pytest.raises(FrozenInstanceError):
        from_codes(2, 1, 4, 4).bits = 8


def test_to_moves_every_part():
    moved = from_codes(3, 2, 5, 3, "offsets").to("meta")
    assert {tensor.device.type for tensor in moved.tensors().values()} == {"meta"}


def test_repr_is_one_line_with_shape_bits_grouping_and_bytes():
    assert repr(from_codes(64, 2, 128, 4)) == (
        "QTensor(64x256, 4 bits, g128, zero points, 8,512 bytes = 4.156 bits per weight)"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packed": torch.zeros(3, 4, dtype=torch.uint8)}, r"packed is torch\.uint8 \(3, 4\) .* \(2, 4\)"),
        ({"packed": torch.zeros(2, 4)}, r"packed is torch\.float32 .* torch\.uint8 \(2, 4\)"),
        ({"scales": torch.ones(2, 3)}, r"scales of shape \(2, 3\) .* a divisor of 8, or \[1, 1\]"),
        ({"scales": torch.ones(2)}, r"scales of shape \(2,\) do not belong"),
        ({"scales": torch.ones(2, 2, dtype=torch.float64)}, r"scales is torch\.float64"),
        ({"zero_points": torch.zeros(3, dtype=torch.uint8)}, r"zero_points is .* \(3,\) .* \(2,\)"),
        ({"zero_points": None, "offsets": torch.zeros(2, 1)}, r"offsets is .* \(2, 1\) .* \(2, 2\)"),
        ({"offsets": torch.zeros(2, 2)}, "zero points or offsets, not both"),
        ({"bits": 9}, r"bits=9 is outside 2\.\.8"),
        ({"bits": 8}, r"packed is .* \(2, 8\)"),
        ({"shape": (2, 10)}, r"packed is .* \(2, 5\)"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(changes, message):
    parts = {
        "packed": torch.zeros(2, 4, dtype=torch.uint8),
        "scales": torch.ones(2, 2),
        "zero_points": torch.zeros(2, dtype=torch.uint8),
        "bits": 4,
        "shape": (2, 8),
    }
    with pytest.raises(ValueError, match=message):
        QTensor(**{**parts, **changes})
