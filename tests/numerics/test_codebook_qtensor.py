import pytest
import torch

from qkit.numerics.codebook_qtensor import CodebookQTensor
from qkit.numerics.codebooks import codebook, dynamic_map
from qkit.numerics.kinds import stored_from
from qkit.numerics.packing import pack
from qkit.numerics.qtensor import QTensor
from qkit.numerics.stored import StoredWeight


def random(out, columns, block=64, double=False, table="nf4", seed=0):
    """Random codes and absmax values."""
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-out * columns // block)
    codes = torch.randint(0, 16, (out, columns), generator=generator)
    parts = {"scales": torch.rand(1, blocks, generator=generator)}
    if double:
        parts = {
            "scales": torch.randint(0, 256, (1, blocks), generator=generator).to(torch.uint8),
            "nested_scales": torch.rand(-(-blocks // 256), generator=generator),
            "scale_offset": torch.tensor(0.75),
        }
    q = CodebookQTensor(pack(codes, 4), bits=4, shape=(out, columns), codebook=table, block_size=block, **parts)
    return q, codes


@pytest.mark.parametrize("table", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("out", "columns", "block"), [(1, 1, 64), (3, 7, 4), (5, 33, 32), (2, 64, 64), (300, 3, 1)])
def test_dequantize_is_the_formula_one_weight_at_a_time(out, columns, block, double, table):
    q, codes = random(out, columns, block, double, table)
    values = q.dequantize()
    assert isinstance(q, StoredWeight) and values.dtype == torch.float32 and values.shape == (out, columns)
    assert torch.equal(q.codes().long(), codes)
    for i in range(out * columns):
        absmax = q.scales[0, i // block]
        if double:
            absmax = dynamic_map()[absmax.long()] * q.nested_scales[i // block // 256] + q.scale_offset
        assert values.reshape(-1)[i] == codebook(table)[codes.reshape(-1)[i]] * absmax
        assert q.absmax()[i // block] == absmax


@pytest.mark.parametrize(
    ("out", "columns", "block", "double", "nbytes"),
    [
        (64, 128, 64, False, 64 * 64 + 128 * 4),
        (64, 128, 64, True, 64 * 64 + 128 + 4 + 4),
        (256, 256, 64, True, 256 * 128 + 1024 + 4 * 4 + 4),
        (3, 7, 64, False, 3 * 4 + 4),  # 7 codes of a row are 4 bytes
    ],
)
def test_nbytes_are_those_counted_by_hand(out, columns, block, double, nbytes):
    q, _ = random(out, columns, block, double)
    assert q.nbytes == nbytes
    assert q.bits_per_weight == 8 * nbytes / (out * columns)


@pytest.mark.parametrize("double", [False, True])
def test_parts_and_meta_make_the_same_weight_again(double):
    q, _ = random(5, 33, 32, double, "fp4")
    again = stored_from(q.tensors(), q.meta())
    assert type(again) is CodebookQTensor
    assert torch.equal(again.dequantize(), q.dequantize())
    assert again.meta() == q.meta() == {"bits": 4, "shape": [5, 33], "codebook": "fp4", "block_size": 32}


def test_the_parts_of_a_qtensor_make_a_qtensor():
    q = QTensor.from_codes(torch.zeros(2, 4), torch.ones(2, 1), 4)
    assert type(stored_from(q.tensors(), q.meta())) is QTensor


def test_to_moves_every_part_and_keeps_the_kind():
    moved = random(5, 33, 32, double=True)[0].to("meta")
    assert type(moved) is CodebookQTensor
    assert {tensor.device.type for tensor in moved.tensors().values()} == {"meta"}
    assert len(moved.tensors()) == 4


def test_zero_has_a_code_and_the_group_is_the_block():
    for table, code in (("nf4", 7), ("fp4", 0)):
        q, _ = random(2, 8, 32, table=table)
        assert q.zeros().tolist() == [[code]]
        assert codebook(table)[code] == 0
        assert q.group_size == 32
        assert q.symmetric == (table == "fp4")


def test_repr_is_one_line_with_shape_table_blocks_and_bytes():
    assert repr(random(64, 128)[0]) == (
        "CodebookQTensor(64x128, nf4, blocks of 64, 4,608 bytes = 4.500 bits per weight)"
    )
    assert "fp4, blocks of 32 with 8-bit absmax, " in repr(random(8, 8, 32, True, "fp4")[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packed": torch.zeros(2, 5, dtype=torch.uint8)}, r"packed is torch\.uint8 \(2, 5\) .* \(2, 4\)"),
        ({"scales": torch.zeros(1, 3, dtype=torch.uint8)}, r"scales is .* \(1, 3\) .* torch\.uint8 \(1, 4\)"),
        ({"scales": torch.zeros(1, 4)}, r"scales is torch\.float32 .* torch\.uint8 \(1, 4\)"),
        ({"nested_scales": torch.zeros(2)}, r"nested_scales is .* \(2,\) .* \(1,\)"),
        ({"scale_offset": torch.zeros(1)}, r"scale_offset is .* \(1,\) .* \(\)"),
        ({"scale_offset": None}, "nested_scales and scale_offset come together"),
        ({"nested_scales": None, "scale_offset": None}, r"scales is torch\.uint8 .* torch\.float32 \(1, 4\)"),
        ({"codebook": "nf5"}, "codebook='nf5' is not one of"),
        ({"block_size": 0}, "block_size=0 is not a number of weights; use 64"),
        ({"block_size": 8}, r"scales is .* \(1, 4\) .* \(1, 2\)"),
        ({"bits": 8}, "has 4 bits, not 8"),
        ({"shape": (2, 10)}, r"packed is .* \(2, 5\)"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(changes, message):
    parts = {
        "packed": torch.zeros(2, 4, dtype=torch.uint8),
        "scales": torch.zeros(1, 4, dtype=torch.uint8),
        "nested_scales": torch.zeros(1),
        "scale_offset": torch.tensor(0.0),
        "bits": 4,
        "shape": (2, 8),
        "block_size": 4,
    }
    assert CodebookQTensor(**parts).shape == (2, 8)
    with pytest.raises(ValueError, match=message):
        CodebookQTensor(**{**parts, **changes})
