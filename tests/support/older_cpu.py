"""Whole-number products of every kind of kernel, for a process that sees an older CPU than there is.

    python tests/support/older_cpu.py [quick] BITS            (with NUMBA_CPU_NAME and NUMBA_CPU_FEATURES)

"quick" compiles the kernels of one token, and of many with INT8 activations. Exits with an error where a product is not
exactly what it has to be.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch

from products import exact, off, random, weight, whole_codes
from qkit import NF4, quantize_tensor
from qkit.backends.numba import linear as cpu

*quick, bits = sys.argv[1:]
bits, few, many, extreme = int(bits), (1,) if quick else (1, 2, 3, 4), () if quick else (18,), (18,)
for i, (rows, features, size) in enumerate([(7, 777, None), (3, 5, None), (17, 480, 96), (5, 2080, 32)]):
    for kind in ("symmetric", "zero points"):
        q = weight(bits, rows, features, size, kind, seed=i)
        for tokens in (*few, *many):
            x = whole_codes(tokens, features, seed=i)
            assert torch.equal(cpu.weight_only_linear(x, q).double(), exact(x, q)), (tokens, q)
            assert torch.equal(cpu.integer_linear(x, q).double(), exact(x, q)), (tokens, q)
for size in (None, 32, 80):  # all codes and all inputs at an end: sums as large as they can be
    for code in (0, 2**bits - 1):
        shape = (13, 160 if size else 164)
        codes, scales = torch.full(shape, code), torch.ones(13, shape[1] // size if size else 1)
        for zero_points in (None, torch.full(scales.shape, 2**bits - 1 - code)):
            q = type(q).from_codes(codes, scales, bits, zero_points)
            for tokens in (*few, *extreme):
                for x in (torch.full((tokens, shape[1]), 127.0), torch.full((tokens, shape[1]), -127.0)):
                    assert torch.equal(cpu.integer_linear(x, q).double(), exact(x, q)), (tokens, code, q)
zeros = type(q).from_codes(torch.full((9, 260), 2 ** (bits - 1)), torch.ones(9, 1), bits)
for tokens in (*few, *many):
    x = 100 * random(tokens, 260)
    assert not cpu.weight_only_linear(x, zeros).any() and not cpu.integer_linear(x, zeros).any(), (tokens, bits)
for size in (1e-30, 1.0, 1e30):
    q, x = weight(bits, 7, 100, 20, real=True), random(1, 100) * size
    assert off(cpu.weight_only_linear(x, q), x, q) < 1, (size, q)
if bits == 4 and not quick:
    codebook = quantize_tensor(random(17, 192), NF4())
    for tokens in (*few, *many):
        x = random(tokens, 192)
        assert off(cpu.weight_only_linear(x, codebook), x, codebook) < 1, tokens
