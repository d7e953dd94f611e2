"""What `make test` takes of a large grid of cases; `make test-all` takes all of it.

The rule: each *kind* of case is tested in both, and what differs from a case that is tested only in size is `exhaustive`.
"""

from collections.abc import Iterable

import pytest

# A code that lies in one byte, whole codes in a byte, codes across the edge of bytes. Kernels are compiled for each width
# apart, which takes most of the time of testing them; 2 bits are a kind of 4, and 5, 6 and 7 a kind of 3.
WIDTHS = (3, 4, 8)


def thinned(values: Iterable, quick: Iterable) -> list:
    """The values of one parameter, those marked `exhaustive` that are not among `quick`; all of `quick` must be there."""
    values, quick = list(values), list(quick)
    assert all(value in values for value in quick), "a value that is to be quick is none"
    return [value if value in quick else pytest.param(value, marks=pytest.mark.exhaustive) for value in values]


ALL_BITS = thinned(range(2, 9), WIDTHS)  # for a test that compiles or computes much for each width
