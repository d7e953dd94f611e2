"""Quantize and back in one pass: what every search over scales does again and again.

    ŵ = s (clamp(rint(w / s) + z, 0, q_max) - z)

The same operations in the same order as `qkit.numerics.mapping`, each rounded to float32, so that a search finds the same
scales to the last bit; but a weight is read once and written once, where torch reads and writes it for each of the six.
"""

import numpy as np
from numba import njit

from qkit_kernels.numba.threads import fork_join


@njit(nogil=True, cache=True, error_model="numpy")
def round_trip_rows(w, scale, zero, q_max, out, first, last):
    """One row a group.

    Args:
        w: float32 [groups, size].
        scale, zero: float32 [groups].
        q_max: float32, the largest code; the smallest is 0.
        out: float32 [groups, size], is filled.
        first, last: which groups.
    """
    for g in range(first, last):
        s, z = scale[g], zero[g]
        row, to = w[g], out[g]
        for k in range(row.size):
            q = np.rint(row[k] / s) + z
            q = min(max(q, np.float32(0)), q_max)
            to[k] = s * (q - z)


@njit(nogil=True, cache=True)
def round_trip(team, threads, chunk, rows, w, scale, zero, q_max, out):
    """`round_trip_rows` by a team of threads."""
    fork_join(round_trip_rows, (w, scale, zero, q_max, out), rows, chunk, threads, team)
