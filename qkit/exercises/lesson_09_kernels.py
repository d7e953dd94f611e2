"""The kernels that lesson 09 asks for, written. (Apart from lesson_09.py, because Triton exists for Linux only.)"""

import triton
import triton.language as tl


@triton.jit
def token_scales(x_ptr, scales_ptr, M, K, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """scales[m] = max over k of |x[m, k]|, over 127; x is [M, K], WIDTH a power of two, at least K."""
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, WIDTH)
    inside = (m < M)[:, None] & (k < K)[None, :]
    x = tl.load(x_ptr + m[:, None] * K + k[None, :], mask=inside, other=0.0)
    tl.store(scales_ptr + m, tl.max(tl.abs(x), 1) / 127, mask=m < M)


@triton.jit
def w4_zeros(x_ptr, packed_ptr, scales_ptr, zeros_ptr, y_ptr, N, K, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """y[n] = sum over k of x[k] s (q - z), two codes to a byte, the even one low; s and z of a group of GROUP columns."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = n < N
    pair = tl.arange(0, GROUP // 2)
    y = tl.zeros((ROWS,), tl.float32)
    for g in range(K // GROUP):
        at = n[:, None] * (K // 2) + g * (GROUP // 2) + pair[None, :]
        byte = tl.load(packed_ptr + at, mask=live[:, None], other=0)
        s = tl.load(scales_ptr + n * (K // GROUP) + g, mask=live, other=0.0).to(tl.float32)
        z = tl.load(zeros_ptr + n * (K // GROUP) + g, mask=live, other=0).to(tl.float32)[:, None]
        even = tl.load(x_ptr + g * GROUP + 2 * pair)[None, :]
        odd = tl.load(x_ptr + g * GROUP + 2 * pair + 1)[None, :]
        low, high = (byte & 15).to(tl.float32) - z, (byte >> 4).to(tl.float32) - z
        y += s * tl.sum(low * even + high * odd, 1)
    tl.store(y_ptr + n, y, mask=live)


@triton.jit
def w8a8_one(x_ptr, codes_ptr, scales_ptr, x_scale, y_ptr, N, K, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """y[n] = scales[n] x_scale sum over k of x[k] codes[n, k], for int8 x [K] and codes [N, K]; the sum is exact."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS,), tl.int32)
    for first in range(0, K, BLOCK):
        k = first + tl.arange(0, BLOCK)
        inside = (n < N)[:, None] & (k < K)[None, :]
        w = tl.load(codes_ptr + n[:, None] * K + k[None, :], mask=inside, other=0).to(tl.int32)
        x = tl.load(x_ptr + k, mask=k < K, other=0).to(tl.int32)
        total += tl.sum(w * x[None, :], 1)
    scale = tl.load(scales_ptr + n, mask=n < N, other=0.0)
    tl.store(y_ptr + n, total.to(tl.float32) * scale * x_scale, mask=n < N)
