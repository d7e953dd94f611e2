"""The figure of the judges draws the record, and says of each judge what its errors are like."""

import pytest

from qkit import plots
from qkit.bench.judged import READS_OURS, Judge, Judged, Judgement

JUDGES = tuple(
    Judge(name, "1.0", through, "2026-11-28", "a processor", "3.11", {}) for name, through in (("B", "c 2"), ("a", ""))
)


def verdict(judge, error, equal):
    return Judgement(
        "gptq", "RTN W4 g128", judge, READS_OURS, "bookworm-14m", 40, error, 1e-9, 0.1, True, equal, "float16"
    )


ROWS = (verdict("B", 2e-6, True), verdict("a", 0.02, None), verdict("B", 3e-4, False))
RECORD = Judged(JUDGES, ROWS)
BANDS = {"order": (1e-7, 1e-5), "half": (1e-5, 3e-3), "rounded": (3e-3, 0.1)}


def test_errors_are_those_of_the_record_and_bands_are_named():
    picture = plots.judged_errors(RECORD, ROWS, BANDS, "said")
    assert picture.data["B"].tolist() == [2e-6, 3e-4] and picture.data["a"].tolist() == [0.02]
    assert [label.get_text() for label in picture.axes[0].get_yticklabels()] == ["a 1.0", "B 1.0 through c 2"]
    assert picture.alt == "said. Each judge's errors are of the size of these: a: rounded; B: order, half."
    drawn = sorted(tuple(point) for marks in picture.axes[0].collections for point in marks.get_offsets())
    assert drawn == [(2e-6, 1), (3e-4, 1), (0.02, 0)]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="there is no verdict to draw"):
        plots.judged_errors(RECORD, (), BANDS)
    with pytest.raises(ValueError, match=r"the error 0\.5 of a with RTN W4 g128 lies in no band"):
        plots.judged_errors(RECORD, (verdict("a", 0.5, None),), BANDS)
