"""The figures of lesson 09 show what programs wrote, where codes lie, and what was recorded."""

import numpy as np
import pytest
import torch

from qkit import plots
from qkit.backends.triton.layout import pack_words
from qkit.bench.recorded import Recorded
from qkit.bench.roofline import attainable
from qkit.study.anatomy.words import code_places

TIMES = {
    "bf16": {1: 40.0, 64: 44.0, 4096: 600.0},
    "W4 g128 bf16": {1: 12.0, 4096: 660.0},
    "gemlite W4 g128": {1: 20.0},
    "W8A8 dynamic bf16": {1: 22.0, 4096: 400.0},
}
RECORD = Recorded("a card", "2026-11-28", {}, 4096, 4096, "bf16", TIMES)


def words(bits):
    codes = torch.randint(0, 2**bits, (128, 128), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return codes, pack_words(codes, bits).numpy().view(np.uint32)


def test_what_is_written_behind_the_end_is_counted_and_crossed_out():
    owners, inside = np.arange(12).reshape(3, 4) // 4, np.arange(12).reshape(3, 4) < 10
    picture = plots.written_by({"without": owners, "with": np.where(inside, owners, -1)}, inside, "ten places")
    assert picture.data["behind the end, without"] == 2 and picture.data["behind the end, with"] == 0
    assert "without, 3 programs write 12 places, 2 of them behind the end" in picture.alt
    assert "with, 3 programs write 10 places, 0 of them" in picture.alt and picture.alt.endswith(
        "belong to the result."
    )
    crosses = picture.axes[0].collections[-1].get_offsets()
    assert crosses.tolist() == [[2, 2], [3, 2]]


def test_owners_of_another_shape_are_refused():
    for owners in ({}, {"one": np.zeros((2, 2), int)}):
        with pytest.raises(ValueError, match=r"owners have shapes .*, and inside \(3, 4\); give at least one"):
            plots.written_by(owners, np.ones((3, 4), bool))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_code_is_marked_with_those_of_its_word_and_of_its_lane(bits):
    codes, laid = words(bits)
    places = code_places(bits)
    picture = plots.WordPicture(places, laid, 9, 77, "a weight")
    shares = picture.data["shares"]
    assert np.argwhere(shares == 3).tolist() == [[9, 77]]
    lane = places.lane[places.of(9, 77)[0][0]]
    mine = {
        (r, c)
        for r, c in zip(places.row[places.lane == lane].flat, places.column[places.lane == lane].flat, strict=True)
        if r < 16
    }
    assert {tuple(spot) for spot in np.argwhere(shares > 0)} == mine
    columns = [c for c in range(128) if shares[9, c] >= 2]
    assert len(columns) == {2: 16, 3: 32, 4: 8, 8: 4}[bits] and 77 in columns
    assert (picture.data["fields"] == 2).sum() + (picture.data["second fields"] == 2).sum() == bits
    assert f"The code {codes[9, 77]} of row 9, column 77 lies in bits " in picture.alt


def test_the_bits_that_are_written_are_the_words():
    _, laid = words(4)
    picture = plots.WordPicture(code_places(4), laid, 9, 77)
    digits = [text.get_text() for text in picture.axes[1].texts if text.get_text() in ("0", "1")]
    assert len(digits) == 32 and picture.data["words"].tolist() == [f"0x{laid[150]:08x}"]
    assert sum(int(digit) << bit for bit, digit in enumerate(digits)) == laid[150]
    assert not picture.axes[2].get_visible()


def test_another_code_gives_the_picture_that_is_drawn_of_it():
    _, laid = words(4)
    picture = plots.WordPicture(code_places(4), laid, 0, 0, "one")
    _, bytes_ = words(8)
    for places, own, row, column in ((code_places(8), bytes_, 3, 40), (code_places(4), laid, 15, 127)):
        fresh = plots.WordPicture(places, own, row, column, "another")
        picture.show(places, own, row, column, "another")
        assert picture.alt == fresh.alt and picture.png() == fresh.png()


def test_a_register_is_drawn_bit_by_bit():
    picture = plots.register_bits([("first", 0x80000001, "the ends"), ("second", 0, "nothing")], "two")
    assert picture.data["bits"][0].nonzero()[0].tolist() == [0, 31] and not picture.data["bits"][1].any()
    assert picture.alt == "two. first: 0x80000001, the ends; second: 0x00000000, nothing."
    with pytest.raises(ValueError, match="there is no step to draw"):
        plots.register_bits([])


def test_of_an_instruction_so_much_is_wanted_as_there_are_tokens():
    picture = plots.operand_fill((1, 8))
    assert {name: int(wanted.sum()) for name, wanted in picture.data.items()} == {
        "tokens left, 1": 8,
        "tokens left, 8": 64,
        "tokens right, 1": 16,
        "tokens right, 8": 128,
    }
    assert "M = 1 with tokens right, 16 of 128 wanted" in picture.alt


def test_times_are_those_recorded_and_bounds_those_of_the_bytes_and_operations():
    picture = plots.times_by_tokens(RECORD, list(TIMES))
    for name, row in TIMES.items():
        assert picture.data[f"tokens, {name}"].tolist() == list(row)
        assert picture.data[f"microseconds, {name}"].tolist() == list(row.values())
    assert "at best, gemlite W4 g128" not in picture.data  # the same bytes as ours
    for name in ("bf16", "W4 g128 bf16", "W8A8 dynamic bf16"):
        expected = [1e6 * RECORD.layer(name, m).floor(RECORD.best, name.startswith("W8A8")) for m in TIMES[name]]
        assert np.allclose(picture.data[f"at best, {name}"], expected)
    assert "W4 g128 bf16 12 to 660" in picture.alt and "a card (2026-11-28)" in picture.alt


def test_ratios_are_those_of_the_record_where_all_have_been_measured():
    picture = plots.ratios_to_baseline({"a card": RECORD}, ["W4 g128 bf16", "W8A8 dynamic bf16"])
    assert picture.data["a card"].tolist() == [[12 / 40, 660 / 600], [22 / 40, 400 / 600]]
    assert {"0.30", "1.10", "0.55", "0.67"} <= {text.get_text() for text in picture.axes[0].texts}
    assert "a card: 1 of 4 are slower than bf16, from 0.30 to 1.10 of its time" in picture.alt
    with pytest.raises(ValueError, match="NF4 not in the record 'a card', which has bf16, "):
        plots.ratios_to_baseline({"a card": RECORD}, ["W4 g128 bf16", "NF4"])


def test_each_machine_has_its_roof_and_its_points():
    slow = Recorded(
        "slow", "2026-11-28", {}, 64, 64, "torch fp32", {"torch fp32": {1: 10.0, 8: 20.0}}, peaks=(3.0, 7.0)
    )
    picture = plots.on_rooflines({"fast": (RECORD, ["W4 g128 bf16"]), "slow": (slow, ["torch fp32"])})
    roof = RECORD.best
    assert np.allclose(
        picture.data["attainable, fast"], [attainable(roof, i) for i in picture.data["intensities, fast"]]
    )
    assert picture.data["gops, slow, torch fp32"].tolist() == [slow.gops("torch fp32", m) for m in (1, 8)]
    layers = [RECORD.layer("W4 g128 bf16", m) for m in (1, 4096)]
    assert np.allclose(picture.data["operations a byte, fast, W4 g128 bf16"], [layer.intensity for layer in layers])
    assert "slow reads 3 GB/s and does 7 10⁹ operations a second, its ridge at 2 operations a byte" in picture.alt
