"""The floor: a kernel that reads the bytes of a weight and does nothing with them."""

import triton
import triton.language as tl


@triton.jit
def read(words_ptr, out_ptr, n, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """Reads int32 [n]; what it writes keeps the compiler from leaving the reading out."""
    pid = tl.program_id(0)
    seen = tl.zeros((BLOCK,), tl.int32)
    for step in tl.static_range(STEPS):
        i = (pid * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        seen |= tl.load(words_ptr + i, mask=i < n, other=0)
    tl.store(out_ptr + pid, tl.max(seen, 0))
