"""Launches each Triton kernel on shapes that fill nothing, for a tool that looks at every address:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 TRITON_INTERPRET=0 PYTHONPATH=.:kernels:tests/support \\
        compute-sanitizer --tool memcheck --error-exitcode 9 python3 tests/support/launches.py

With "integers" behind it those of INT8 only. Without torch's cache each tensor has memory of its own, so that one byte too far
is seen; "racecheck" looks at shared memory.
"""

import sys

import torch

from products import random, weight
from qkit import FP4, NF4, quantize_tensor
from qkit.backends.triton import between, columns, integer, layout, linear, tiles
from qkit.methods.int8 import int8_rows

WEIGHTS = (
    weight(4, 33, 160, 32, "zero points", real=True),
    weight(3, 17, 208, 16, "offsets", real=True),
    weight(8, 129, 385, None, "symmetric", real=True),
    weight(7, 1, 1, None, "zero points", real=True),
    quantize_tensor(random(9, 640), NF4()),
    quantize_tensor(random(130, 128), FP4(32)),
)
TOKENS = (1, 5, 9, 17, 70, 150, 300, 2 * linear.MOST)


@torch.no_grad()
def main() -> None:
    """Every kernel, twice the weights, both dtypes; what comes out is looked at too."""
    for i, q in enumerate(WEIGHTS if sys.argv[1:] != ["integers"] else ()):
        q = q.to("cuda")
        w = q.dequantize().double()
        for tokens in TOKENS:
            dtype = (torch.float16, torch.bfloat16)[(i + tokens) % 2]
            x = torch.randn(tokens, q.shape[1], device="cuda").to(dtype)
            y, expected = linear.product(x, layout.laid(q, dtype)).double(), x.double() @ w.T
            assert (y - expected).norm() <= 6e-3 * expected.norm(), (q, tokens)
    for shape in ((33, 130), (1, 7), (130, 385), (70, 2300), (17, 8210)):
        rows = integer.lay(int8_rows(random(*shape)).to("cuda"))
        for tokens in TOKENS[:-1]:
            for threshold in (0.0, 1.5):  # with it so many outliers that the last are fetched one by one
                x = torch.randn(tokens, shape[1], device="cuda").bfloat16()
                y = torch.empty(tokens, shape[0], device="cuda")
                bias = torch.randn(shape[0], device="cuda") if tokens % 2 else None
                integer.launch(x, rows, None, threshold, bias, y, tiles.card(0))
                assert y.isfinite().all(), (shape, tokens)
    for groups, heads, length, dim in ((2, 3, 70, 32), (1, 17, 33, 64)):
        query, keys = torch.randn(groups, heads, dim, device="cuda"), torch.randn(groups, length, dim, device="cuda")
        seen = torch.arange(length, device="cuda") < 40
        assert between.attend(query.half(), keys.half(), keys.half(), seen, 0.1).isfinite().all()
        x = torch.randn(heads, 2 * length, device="cuda")
        total, norm = between.add_norm(x, x, x[0].clone(), 1e-5)
        assert torch.equal(total, x + x) and norm.isfinite().all() and between.gated(*x.chunk(2, 1)).isfinite().all()
    w, upper = torch.randn(5, 37, device="cuda").double(), torch.eye(37, device="cuda").double()
    columns.round_block(w, upper, torch.ones_like(w), torch.zeros_like(w), 15)
    torch.cuda.synchronize()
    print("every kernel was launched")


if __name__ == "__main__":
    main()
