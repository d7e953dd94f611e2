"""INT8 products by Intel's AMX: whole numbers exactly, and to the last bit what the other kernel computes."""

import pytest
import torch
from llvmlite import binding

from processes import run_python
from products import exact, random, weight, whole_codes
from qkit.backends.numba import linear as cpu
from qkit.methods.int8 import int8_rows
from qkit.ops import outlier_columns
from qkit_kernels.numba import amx
from qkit_kernels.numba.tiles import BAND_ROWS, TOKENS

here = pytest.mark.skipif(not amx.usable(), reason="no AMX here, or Linux does not let this process use it")
# Panels of 32 rows, stretches of 1024 features, registers of 64 bytes: around each of them.
SHAPES = ((1, 1), (3, 63), (31, 64), (32, 65), (33, 129), (7, 1023), (40, 1024), (65, 1025), (BAND_ROWS + 1, 2084))


@here
@pytest.mark.parametrize("bits", [8, 4])
def test_whole_numbers_are_multiplied_exactly_whatever_the_shape(bits):
    for rows, features in SHAPES:
        for tokens in (17, 32, 33, TOKENS + 2):
            q, x = weight(bits, rows, features, seed=rows), whole_codes(tokens, features, seed=tokens)
            assert torch.equal(cpu.integer_linear(x, q).double(), exact(x, q)), (tokens, q)


@here
@pytest.mark.parametrize("threshold", [0.0, 2.5])
def test_the_bits_are_those_of_the_kernel_for_every_processor(threshold, monkeypatch):
    q, x = int8_rows(random(BAND_ROWS + 5, 1100)), random(70, 1100)
    x[3, 7], x[69, 1099], x[5, 0] = torch.nan, torch.inf, 20.0
    outliers = outlier_columns(x, threshold) if threshold else None
    found = cpu.integer_linear(x, q, outliers=outliers)
    monkeypatch.setattr(amx, "usable", lambda: False)
    torch.testing.assert_close(found, cpu.integer_linear(x, q, outliers=outliers), rtol=0, atol=0, equal_nan=True)


@here
def test_the_largest_sums_do_not_wrap_around():
    features = 2**16  # of 255 times 127: two parts in a hundred below 2^31
    for code in (0, 255):
        q = weight(8, 1, features)
        q.packed.fill_(code)
        x = torch.full((17, features), 127.0)
        assert torch.equal(cpu.integer_linear(x, q), (127.0 * features * (code - 128) * q.scales.float()).expand(17, 1))


COMPILED = """
import sys
sys.path.insert(0, "tests/support")
from numba import njit, types
from qkit_kernels.numba import amx, steps
from qkit_kernels.numba.vector import pointer

@njit
def tile(exact, panel, x, steps):
    amx.begin()
    amx.add_tile(pointer(exact), 0, 256, pointer(panel), pointer(x), steps)
    amx.end()

tile.compile((types.int32[::1], types.uint8[::1], types.int8[::1], types.intp))
text = tile.inspect_asm(tile.signatures[0])
loop = steps.instructions(steps.inner_loop(text, "tdpbusd"))
assert loop["tdpbusd"] == loop["tileloadd"] == 4 and not loop["tilestored"] and sum(loop.values()) < 24, loop
count = steps.instructions(text)
assert count["ldtilecfg"] == count["tilerelease"] == 1 and count["tilestored"] == 4, count
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(not binding.get_default_triple().startswith("x86_64"), reason="instructions of x86")
def test_its_inner_loop_is_four_loads_and_four_products(tmp_path):
    """Compiled and looked at, not run: this process may not have them."""
    features = "+amx-tile,+amx-int8,+avx512f,+avx512bw,+avx512vl,+avx512vnni"
    said = run_python("-c", COMPILED, cache=tmp_path, NUMBA_CPU_NAME="sapphirerapids", NUMBA_CPU_FEATURES=features)
    assert not said, said
