"""The record of methods on the tales: it holds every passage, and its table says what the passages say."""

import pytest

from qkit.bench.methods import methods, ranked, table, width
from qkit.study.paired import TIE

RECORD = methods()
FOUND = RECORD.comparison


def test_it_says_how_it_was_made_and_holds_every_passage_of_every_row():
    assert RECORD.command.startswith("qkit compare") and "python-docs" in RECORD.learned
    assert FOUND.model == "bookworm-14m" and FOUND.text == "tales" and FOUND.rows[0].name == "FP32"
    tokens = [passage.tokens for passage in FOUND.rows[0].passages]
    assert sum(tokens) == FOUND.tokens
    for row in FOUND.rows:
        assert [passage.tokens for passage in row.passages] == tokens
        mean = sum(passage.kl * n for passage, n in zip(row.passages, tokens, strict=True)) / FOUND.tokens
        assert row.kl == pytest.approx(mean, abs=1e-5)


def test_rows_are_compared_with_those_of_as_many_bits():
    order = ranked(FOUND)
    assert list(order) == ["8 bits", "4 bits", "3 bits", "2 bits"]
    for name, rows in order.items():
        assert [row.kl for row in rows] == sorted(row.kl for row in rows)
        assert all(abs(row.bits_per_weight - int(name[0])) < 0.8 and width(row) == name for row in rows)
    assert sum(map(len, order.values())) == len(FOUND.rows) - 1
    assert [row.name for row in ranked(FOUND, ["RTN W3 g128"])["3 bits"]] == ["RTN W3 g128"]


def test_its_table_calls_a_tie_what_two_standard_errors_do_not_part():
    names = ["NF4 b64 dq", "AWQ W4 g128", "RTN W4 g128", "RTN W2 g64"]
    lines = table(FOUND, names).splitlines()[2:]
    rows = [row for of_width in ranked(FOUND, names).values() for row in of_width]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == [row.name for row in rows]
    assert lines[0].endswith("|  |") and lines[3].endswith("|  |")  # nothing of its width is above it
    for line, row, above in zip(lines[1:3], rows[1:3], rows, strict=False):
        more = FOUND.difference(row.name, above.name)
        assert f"{more.mean:.4f} ± {more.error:.4f}" in line
        assert ("a tie" in line) == (abs(more.mean) <= TIE * more.error)
