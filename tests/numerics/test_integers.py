"""Products of INT8 are whole numbers, on processors without the instruction for them too."""

import pytest
import torch

from processes import run_python
from qkit.numerics.integers import FLOAT32_FEATURES, int8_matmul, matmul_in_floats

PROGRAM = """
import torch
from qkit.numerics.integers import int8_matmul
for m, k, n in ((1, 8, 5), (3, 7, 1), (64, 384, 384), (33, 1024, 40), (256, 1000, 64)):
    a, b = (torch.randint(-128, 128, (rows, k), generator=torch.Generator().manual_seed(rows)).to(torch.int8) for rows in (m, n))
    a[0], b[0] = 127, 127
    assert torch.equal(int8_matmul(a, b).long(), a.long() @ b.long().T), (m, k, n)
    compiled = torch.compile(int8_matmul, fullgraph=True, backend="eager")
    assert torch.equal(compiled(a, b), int8_matmul(a, b))
"""


def test_sums_are_whole_where_onednn_has_no_vnni_and_adds_two_products_in_16_bits(tmp_path):
    """Of ±127 it gets nearly every sum wrong there; on an Arm the name of an x86 says nothing."""
    said = run_python("-c", PROGRAM, cache=tmp_path, ONEDNN_MAX_CPU_ISA="AVX2")
    assert not said, said


@pytest.mark.parametrize("k", [1, 7, FLOAT32_FEATURES, FLOAT32_FEATURES + 1, 3 * FLOAT32_FEATURES])
def test_floats_add_them_exactly(k):
    a = torch.full((2, k), -128, dtype=torch.int8)
    a[1] = torch.randint(-128, 128, (k,), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    assert torch.equal(matmul_in_floats(a, a).long(), a.long() @ a.long().T)
    assert torch.equal(int8_matmul(a, a).long(), a.long() @ a.long().T)


def test_of_nothing_there_is_nothing():
    assert matmul_in_floats(torch.zeros(0, 4, dtype=torch.int8), torch.ones(3, 4, dtype=torch.int8)).shape == (0, 3)
    assert not matmul_in_floats(torch.ones(2, 0, dtype=torch.int8), torch.ones(3, 0, dtype=torch.int8)).any()
