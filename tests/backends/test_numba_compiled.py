"""What is compiled and what is found compiled, counted in processes that begin with an empty cache."""

from processes import run_python

COUNTED = """
import sys
import numpy as np
from numba import njit
from qkit.backends.numba.compiled import counting
from qkit_kernels.numba import packing, streams

def call():
    packing.unpack_rows(np.zeros((2, 4), np.uint8), 4, np.zeros((2, 8), np.uint8), 0, 2)  # calls another that is kept

passing = njit(lambda x: x + 1)  # Numba keeps nothing of it
with counting() as count:
    call()
    passing(1)
assert [count.compiled, count.found] == [int(word) for word in sys.argv[1:]], vars(count)
with counting() as count:
    call()
assert (count.compiled, count.found) == (0, 0), vars(count)
"""


def test_a_kernel_is_compiled_once_and_then_found(tmp_path):
    for counts in (("1", "0"), ("0", "1")):
        said = run_python("-c", COUNTED, *counts, cache=tmp_path)
        assert not said, said
