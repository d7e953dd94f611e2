"""A histogram by the bits of floats: |x| that share an exponent and the first bits of the mantissa share a bin.

Read as an integer, a float32 without its sign grows with its size. Shifted right, it is the number of its bin: no logarithm, no
comparison with edges. Every part of the tokens has counts of its own, so that no thread waits for another.
"""

import numpy as np
from numba import njit

from qkit_kernels.numba.threads import fork_join


@njit(nogil=True, cache=True)
def count_rows(x, shift, lowest, counts, first, last):
    """Count some parts of the tokens.

    Args:
        x: int32 [tokens, features], float32 seen as integers.
        shift: how many bits of the mantissa do not matter.
        lowest: the number of the first bin; what lies below or above the bins counts in the first or the last.
        counts: int64 [parts, bins], zeros, is filled.
        first, last: which parts.
    """
    (tokens, features), (parts, bins) = x.shape, counts.shape
    for part in range(first, last):
        for t in range(part * tokens // parts, (part + 1) * tokens // parts):
            for k in range(features):
                place = ((x[t, k] & np.int32(0x7FFFFFFF)) >> shift) - lowest
                counts[part, min(max(place, 0), bins - 1)] += 1


@njit(nogil=True, cache=True)
def count(team, threads, chunk, parts, x, shift, lowest, counts):
    """`count_rows` by a team of threads."""
    fork_join(count_rows, (x, shift, lowest, counts), parts, chunk, threads, team)
