"""What comes with qkit as measured is read as it was written, and says what it must."""

import json

import pytest

from qkit.bench import recorded
from qkit.bench.recorded import Recorded
from qkit.bench.roofline import Layer
from qkit.text.resources import folder

NAMES = sorted(path.stem for path in (folder("data") / "measured").glob("*-*.json"))
TIMES = {
    "bf16": {1: 40.0, 4096: 600.0},
    "W4 g128 bf16": {1: 10.0, 4096: 660.0},
    "W8A8 dynamic bf16": {1: 20.0, 4096: 400.0},
}
RECORD = Recorded("a card", "2026-11-28", {"torch": "2.11"}, 4096, 4096, "bf16", TIMES, {"W4 g128 bf16": 9.0})


@pytest.mark.parametrize("name", NAMES)
def test_every_file_says_on_what_when_and_with_what(name):
    record = recorded.recorded(name)
    assert record.machine and record.versions and len(record.date.split("-")) == 3
    assert name.endswith(f"{record.rows}x{record.features}")
    assert record.baseline == next(iter(record.microseconds))
    for row, times in record.microseconds.items():
        assert times and min(times.values()) > 0 and set(times) <= set(record.microseconds[record.baseline]), row
        assert record.layer(row, 1).weight_bytes > 0, row
    assert set(record.floors) <= set(record.microseconds)


def test_every_model_says_on_what_when_and_with_what():
    names = sorted(path.stem for path in (folder("data") / "measured" / "models").glob("*.json"))
    assert names
    for name in names:
        record = recorded.recorded_model(name)
        assert {"card", "versions", "date"} <= set(record.machine) and record.machine["card"]["name"]
        assert record.measurements[0].row == "BF16"
        for one in record.measurements:
            assert one.rate > 0 and one.held_bytes >= one.nbytes > one.head_bytes > 0, one.row
    with pytest.raises(ValueError, match="'gpt' was not recorded; there are h100-llama-8b"):
        recorded.recorded_model("gpt")


def test_a_record_comes_back_from_its_file(tmp_path):
    recorded.write(RECORD, tmp_path / "one.json")
    assert Recorded.from_dict(json.loads((tmp_path / "one.json").read_text())) == RECORD


def test_one_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="'h300' was not recorded; there are cpu-4096x4096, "):
        recorded.recorded("h300")


@pytest.mark.parametrize(
    ("name", "bits", "group_size"),
    [
        ("bf16", 16, None),
        ("W4 g128 bf16", 4, 128),
        ("W8A8 dynamic bf16", 8, None),
        ("LLM.int8 21 bf16", 8, None),
        ("NF4 dq bf16", 4, 64),
        ("gemlite W4 g128", 4, 128),
    ],
)
def test_a_name_says_what_is_read(name, bits, group_size):
    assert RECORD.layer(name, 3) == Layer(4096, 4096, bits, group_size, 3, number_bytes=2)


def test_a_name_without_bits_is_refused():
    with pytest.raises(ValueError, match="'marlin' says no number of bits; name a row such as bf16"):
        RECORD.layer("marlin", 1)


def test_ratios_rates_and_the_best_follow():
    assert RECORD.ratio("W4 g128 bf16", 1) == 0.25 and RECORD.ratio("W4 g128 bf16", 4096) == 1.1
    assert RECORD.gops("bf16", 4096) == pytest.approx(2 * 4096**3 / 600e-6 / 1e9)
    best = RECORD.best
    assert best.float_gops == RECORD.gops("bf16", 4096) and best.int8_gops == RECORD.gops("W8A8 dynamic bf16", 4096)
    assert best.gigabytes_per_second == pytest.approx(Layer(4096, 4096, 16, None, 1, 2).bytes / 40e-6 / 1e9)
    assert Recorded(**{**vars(RECORD), "peaks": (5.0, 7.0)}).best.gigabytes_per_second == 5.0


def test_the_lessons_row_names_are_those_of_the_benchmark():
    """`benchmarks/gpu.py` needs a card; what it writes is held to what is read here by its text."""
    script = (folder("data").parent / "benchmarks" / "gpu.py").read_text(encoding="utf-8")
    for key in Recorded.__dataclass_fields__:
        assert key == "peaks" or f'"{key}": ' in script, key
