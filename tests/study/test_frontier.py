"""The frontier is what nothing beats."""

from hypothesis import given
from hypothesis import strategies as st

from qkit.study.frontier import best_that_fits, frontier

POINTS = {
    "RTN W3 g128": (8.1, 1.9),
    "GPTQ W4 g128": (9.7, 0.2),
    "NF4 b64 dq": (9.7, 0.3),
    "LLM.int8": (15.9, 0.006),
    "RTN W8 per channel": (15.8, 0.002),
}


def test_the_frontier_leaves_out_what_another_beats():
    assert frontier(POINTS) == ["RTN W3 g128", "GPTQ W4 g128", "RTN W8 per channel"]


@given(st.dictionaries(st.text(max_size=3), st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1))
def test_the_frontier_is_what_nothing_dominates(points):
    kept = {points[name] for name in frontier(points)}
    for a in points.values():
        dominated = any(b[0] <= a[0] and b[1] <= a[1] and b != a for b in points.values())
        assert (a in kept) != dominated


def test_the_best_that_fits_may_just_fit():
    sizes = (5, 8.1, 15, 99)
    assert [best_that_fits(POINTS, size) for size in sizes] == [
        None,
        "RTN W3 g128",
        "GPTQ W4 g128",
        "RTN W8 per channel",
    ]
