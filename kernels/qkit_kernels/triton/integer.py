"""INT8 activations times INT8 weights: whole numbers on the tensor cores, exact in int32, scales at the end.

    y[m, n] = s_x[m] s_w[n] sum_k xq[m, k] wq[n, k]  (+ sum over outliers j of x[m, j] s_w[n] wq[n, j])  (+ bias[n])
    xq = clamp(round(x / s_x), -127, 127),   s_x = absmax / 127 of the token, or one step for all

LLM.int8() (2208.07339, eq. 8) takes columns with any |x| >= threshold out of the integers. How many there are is known on the
card only, and stays there: the host never waits, the number of launches is fixed, and a CUDA graph can hold them.

few tokens    an outlier is a whole number too, of more than eight bits: its three bytes are three more rows of codes, each with
              a scale of its own, and the product of one token is that of four. It reads the weight once, and nothing else. Which
              columns they are each token finds by itself, or, where registers do not hold all tokens, a kernel in front.
many          the outliers stand in a list, and the last kernel multiplies them as floats, up to a count that it reads.

With EARLY (sm_90) a kernel may begin while the one before it still runs, and waits before it reads what that one writes. The
small ones in front tell the next that it may, when they have waited themselves; a product does not: programs that come while
others still work find room on some multiprocessors only, and these then have more to do than the others.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from qkit_kernels.triton.pieces import tile_of
from qkit_kernels.triton.words import store_total, total


@triton.jit
def nearest(x):
    """The nearest whole number, the even one of two, where |x| <= 2^22: the last bit of 1.5 2^23 is worth 1."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def rounded(x, scale):
    """round(x / scale) to the nearest even within -127 .. 127, int8; the division is the exact one. NaN becomes 0."""
    q = tl.math.div_rn(x, scale)
    q = tl.where(q == q, tl.minimum(tl.maximum(q, -127.0), 127.0), 0.0)
    return nearest(q).to(tl.int8)


@triton.jit
def step_of(largest, bad, scale_ptr, STATIC: tl.constexpr):
    """What one step of a token's codes is worth: to divide by, and to say."""
    if STATIC:
        scale = tl.load(scale_ptr)
    else:
        scale = tl.math.div_rn(largest, 127.0)
        scale = tl.where(scale > 0, scale, 1.0)
    return scale, tl.where(bad > 0, float("nan"), scale)


@triton.jit
def unsayable(x, STATIC: tl.constexpr):
    """1 where a token holds what a code cannot say, else 0."""
    if STATIC:
        return tl.max((x != x).to(tl.int32), 0)
    else:
        return tl.max((tl.abs(x) < float("inf")).to(tl.int32) ^ 1, 0)


@triton.jit
def quantize_tokens(
    x_ptr, codes_ptr, token_scale_ptr, scale_ptr, K, KP, stride_xm,
    STATIC: tl.constexpr, WIDTH: tl.constexpr, TURNS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One token: codes int8 [M, KP] with zeros behind K, and its scale float32 [M]; NaN where a code could not say it.

    Args:
        x_ptr: [M, K].
        scale_ptr: float32 [1], with STATIC.
        WIDTH: columns at a time, a power of two; TURNS of them are at least KP. A token of one turn stays in registers.
    """
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    m, k = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    largest, bad = 0.0, 0
    for turn in tl.static_range(TURNS):
        at = turn * WIDTH + k
        x = tl.load(x_ptr + m * stride_xm + at, mask=at < K, other=0.0).to(tl.float32)
        largest, bad = tl.maximum(largest, tl.max(tl.abs(x), 0)), bad | unsayable(x, STATIC)
    scale, said = step_of(largest, bad, scale_ptr, STATIC)
    for turn in tl.static_range(TURNS):
        at = turn * WIDTH + k
        if TURNS > 1:
            x = tl.load(x_ptr + m * stride_xm + at, mask=at < K, other=0.0).to(tl.float32)
        tl.store(codes_ptr + m * KP + at, rounded(x, scale), mask=at < KP)
    tl.store(token_scale_ptr + m, said)


@triton.jit
def with_outliers(x_ptr, k, M, K, stride_xm, threshold, TOKENS: tl.constexpr):
    """Columns k of this program's token, float32, and which of them hold an outlier of any of the M tokens, TOKENS at most."""
    m = tl.program_id(0)
    x = tl.load(x_ptr + m.to(tl.int64) * stride_xm + k, mask=k < K, other=0.0).to(tl.float32)
    largest = tl.abs(x)
    for further in tl.static_range(1, TOKENS):  # all of them are on their way at once
        at = x_ptr + tl.minimum(m ^ further, M - 1).to(tl.int64) * stride_xm + k
        other = tl.abs(tl.load(at, mask=k < K, other=0.0).to(tl.float32))
        largest = tl.maximum(largest, other)  # of a number and NaN, the number
    return x, largest >= threshold


@triton.jit
def take_apart(
    x_ptr, flags_ptr, codes_ptr, token_scale_ptr, scale_ptr, M, K, KP, stride_xm, threshold,
    TOKENS: tl.constexpr, STATIC: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One of a few tokens as four rows of codes, int8 [4 M, KP], and their scales, float32 [4 M]: their sum is the token.

    The first row is `quantize_tokens` of the columns that are no outliers. Those that are become t = round(x / s), s = 2^e such
    that |t| < 2^22, which is exact for all that are at least 2^-15 of the token's largest in bfloat16, and 2^-11 in float16; and
    t = t0 + 256 t1 + 65536 t2, each within -128 .. 127.

    A token with an infinite outlier has signs instead of t, whose step is infinite: its products are infinite, and NaN for 0.

    Args:
        flags_ptr: of `outlier_columns`, where TOKENS is 0: else this looks into all tokens itself, of which there are TOKENS at
            most.
    """
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    m, k = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    if TOKENS:
        x, out = with_outliers(x_ptr, k, M, K, stride_xm, threshold, TOKENS)
    else:
        x = tl.load(x_ptr + m * stride_xm + k, mask=k < K, other=0.0).to(tl.float32)
        out = tl.load(flags_ptr + k, mask=k < K, other=0) > 0
    low = tl.where(out, 0.0, x)
    highest = tl.max(tl.abs(x - low), 0)
    bad = unsayable(low, STATIC) | tl.max((x != x).to(tl.int32), 0)
    scale, said = step_of(tl.max(tl.abs(low), 0), bad, scale_ptr, STATIC)
    endless = highest == float("inf")
    # the exponent of s, whose inverse is a float too
    place = tl.maximum((highest.to(tl.int32, bitcast=True) >> 23) - 21, 1)
    step, inverse = (place << 23).to(tl.float32, bitcast=True), ((254 - place) << 23).to(tl.float32, bitcast=True)
    sign = tl.where(x == float("inf"), 1.0, tl.where(x == float("-inf"), -1.0, 0.0))
    t = nearest(tl.where(out & (x == x), tl.where(endless, sign, x * inverse), 0.0)).to(tl.int32)
    row = codes_ptr + 4 * m * KP + k
    tl.store(row, rounded(low, scale), mask=k < KP)
    for byte in tl.static_range(3):
        digit = ((t + 128) & 255) - 128
        tl.store(row + (byte + 1) * KP, digit.to(tl.int8), mask=k < KP)
        t = (t - digit) >> 8
    tl.store(token_scale_ptr + 4 * m, said)
    tl.store(token_scale_ptr + 4 * m + 1, tl.where(endless, float("inf"), step))
    tl.store(token_scale_ptr + 4 * m + 2, tl.where(endless, 0.0, step * 256))
    tl.store(token_scale_ptr + 4 * m + 3, tl.where(endless, 0.0, step * 65536))


@triton.jit
def outlier_columns(
    x_ptr, flags_ptr, M, K, stride_xm, threshold, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    """flags int8 [ceil(M / HEIGHT), K]: 1 where a column of the stretch holds any |x| >= threshold; 64 tokens at a time."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    k = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    found = tl.zeros((WIDTH,), tl.int32)
    for step in tl.range(0, HEIGHT, 64):
        m = tl.program_id(1) * HEIGHT + step + tl.arange(0, 64)
        live = (m < M)[:, None] & (k < K)[None, :]
        x = tl.load(x_ptr + m.to(tl.int64)[:, None] * stride_xm + k[None, :], mask=live, other=0.0).to(tl.float32)
        found = tl.maximum(found, tl.max((tl.abs(x) >= threshold).to(tl.int32), 0))
    tl.store(flags_ptr + tl.program_id(1) * K + k, found.to(tl.int8), mask=k < K)


@triton.jit
def outlying(flags_ptr, k, end, K, stretches):
    """1 where one of columns k before `end` is an outlier by any stretch's flags."""
    out = k * 0
    for stretch in tl.range(0, stretches):
        out |= tl.load(flags_ptr + stretch * K + k, mask=k < end, other=0).to(tl.int32)
    return out


@triton.jit
def list_outliers(
    flags_ptr, all_ptr, columns_ptr, count_ptr, K, stretches, CHUNK: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    """Of CHUNK columns which are outliers: flags of all tokens, int8 [K]; and their numbers in order, int32 [K].

    A program counts those before its own, WIDTH columns at a time; a running sum over its own gives each its place. The last one
    writes how many there are, int32 [1].
    """
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    first, count = tl.program_id(0) * CHUNK, 0
    for start in tl.range(0, first, WIDTH):
        count += tl.sum(outlying(flags_ptr, start + tl.arange(0, WIDTH), first, K, stretches), 0)
    k = first + tl.arange(0, CHUNK)
    out = outlying(flags_ptr, k, K, K, stretches)
    tl.store(all_ptr + k, out.to(tl.int8), mask=k < K)
    tl.store(columns_ptr + count + tl.cumsum(out, 0) - 1, k, mask=out > 0)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        tl.store(count_ptr, count + tl.sum(out, 0))


@triton.jit
def calm(x_ptr, flags_ptr, k, K):
    """Columns k of a token, float32, with 0 for outliers."""
    out = tl.load(flags_ptr + k, mask=k < K, other=1)
    return tl.where(out > 0, 0.0, tl.load(x_ptr + k, mask=k < K, other=0.0).to(tl.float32))


@triton.jit
def split_tokens(
    x_ptr, flags_ptr, codes_ptr, token_scale_ptr, scale_ptr, wild_ptr, columns_ptr, count_ptr, weight_ptr, gathered_ptr,
    M, N, K, KP, stride_xm,
    STATIC: tl.constexpr, WIDTH: tl.constexpr, TURNS: tl.constexpr, ROOM: tl.constexpr, R: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The first M programs: `quantize_tokens` of the columns that are no outliers; those that are, in order, in wild [M, K].

    The others: the first ROOM outlier columns of R rows of the weight side by side, int8 [N, ROOM]. Each tile of tokens would
    fetch them anew, a byte out of every sector of 32.
    """
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    count = tl.load(count_ptr)
    if tl.program_id(0) < M:
        m, k = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
        largest, bad = 0.0, 0
        for turn in tl.static_range(TURNS):
            x = calm(x_ptr + m * stride_xm, flags_ptr, turn * WIDTH + k, K)
            largest, bad = tl.maximum(largest, tl.max(tl.abs(x), 0)), bad | unsayable(x, STATIC)
        scale, said = step_of(largest, bad, scale_ptr, STATIC)
        for turn in tl.static_range(TURNS):
            if TURNS > 1:
                x = calm(x_ptr + m * stride_xm, flags_ptr, turn * WIDTH + k, K)
            tl.store(codes_ptr + m * KP + turn * WIDTH + k, rounded(x, scale), mask=turn * WIDTH + k < KP)
        tl.store(token_scale_ptr + m, said)
        for start in tl.range(0, count, ROOM):
            j = start + tl.arange(0, ROOM)
            column = tl.load(columns_ptr + j, mask=j < count, other=0)
            tl.store(wild_ptr + m * K + j, tl.load(x_ptr + m * stride_xm + column), mask=j < count)
    elif count > 0:
        row, j = (tl.program_id(0) - M) * R + tl.arange(0, R), tl.arange(0, ROOM)
        column = tl.load(columns_ptr + j, mask=j < count, other=0)
        live = (row < N)[:, None] & (j < count)[None, :]
        w = tl.load(weight_ptr + row.to(tl.int64)[:, None] * KP + column[None, :], mask=live, other=0)
        tl.store(gathered_ptr + row[:, None] * ROOM + j[None, :], w, mask=(row < N)[:, None])


@triton.jit
def fours_added(y, ROWS: tl.constexpr, CODES: tl.constexpr):
    """[rows of the weight, rows of codes] as [rows of the weight, tokens]: the four of each token added up."""
    return tl.sum(tl.reshape(y, (ROWS, CODES // 4, 4)), 2)


@triton.jit
def few_integers(
    codes_ptr, token_scale_ptr, weight_ptr, rows_ptr, bias_ptr, y_ptr,
    M, N, KP, stride_ym,
    WARPS: tl.constexpr, TOKENS: tl.constexpr, TURNS: tl.constexpr, RAGGED: tl.constexpr,
    BIAS: tl.constexpr, APART: tl.constexpr, EARLY: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Rows 16 pid .. 16 pid + 15 of y for M up to 16 rows of codes: the weight on the left, as in `few`; blocks of 64 columns.

    A lane of `mma.m16n8k32` wants four neighbours of every 16 columns of rows g and g + 8; it takes 16 neighbours of every 64,
    four instructions' worth, in one load, and so it does of x.
    """
    first = tl.program_id(0) * 16
    g4, b4, r4 = (
        tl.arange(0, 8)[:, None, None, None],
        tl.arange(0, WARPS)[None, :, None, None],
        tl.arange(0, 2)[None, None, :, None],
    )
    token, b3, c3 = tl.arange(0, 8)[:, None, None], tl.arange(0, WARPS)[None, :, None], tl.arange(0, 64)[None, None, :]
    row, column = first + tl.arange(0, 16)[None, :, None], tl.arange(0, TOKENS)
    source = tl.minimum(first + r4 * 8 + g4, N - 1)
    weights = weight_ptr + source.to(tl.int64) * KP + b4 * 64 + tl.arange(0, 64)[None, None, None, :]
    low = codes_ptr + tl.minimum(token, M - 1) * KP + b3 * 64 + c3
    high = codes_ptr + tl.minimum(token + 8, M - 1) * KP + b3 * 64 + c3
    factor = tl.load(rows_ptr + row, mask=row < N, other=0.0)
    if EARLY:
        gdc_wait()
    acc = tl.zeros((WARPS, 16, TOKENS), tl.int32)
    for turn in tl.range(0, TURNS, num_stages=1):
        base = turn * (WARPS * 64)
        if RAGGED:
            w = tl.load(weights + base, mask=base + b4 * 64 < KP, other=0, eviction_policy="evict_first")
        else:
            w = tl.load(weights + base, eviction_policy="evict_first")
        across = base
        if RAGGED:
            across = tl.minimum(base + b3 * 64, KP - 64) - b3 * 64
        x = tl.load(low + across)  # token block (t s j)
        x = tl.reshape(
            tl.permute(tl.reshape(x, (8, WARPS, 4, 4, 4)), (1, 3, 2, 4, 0)), (WARPS, 64, 8)
        )  # block, s t j, token
        if TOKENS == 16:
            more = tl.load(high + across)
            more = tl.reshape(tl.permute(tl.reshape(more, (8, WARPS, 4, 4, 4)), (1, 3, 2, 4, 0)), (WARPS, 64, 8))
            x = tl.reshape(tl.permute(tl.join(x, more), (0, 1, 3, 2)), (WARPS, 64, 16))
        left = tl.permute(tl.reshape(w, (8, WARPS, 2, 4, 4, 4)), (1, 2, 0, 4, 3, 5))  # block, r g, s t j
        acc = tl.dot(tl.reshape(left, (WARPS, 16, 64)), x, acc, out_dtype=tl.int32)
    y = total(acc, SUM).to(tl.float32) * tl.load(token_scale_ptr + column, mask=column < M, other=0.0)[None, None, :]
    if APART:
        y, M, column = fours_added(y, WARPS * 16, TOKENS), M // 4, tl.arange(0, TOKENS // 4)
        y = tl.reshape(y, (WARPS, 16, TOKENS // 4))
    y *= factor
    if BIAS:
        y += tl.load(bias_ptr + row, mask=row < N, other=0.0).to(tl.float32)
    store_total(y, y_ptr, row, column[None, None, :], M, N, stride_ym)


@triton.jit
def many_integers(
    codes_ptr, weight_ptr, token_scale_ptr, rows_ptr, bias_ptr, wild_ptr, bytes_ptr, gathered_ptr, columns_ptr, count_ptr, y_ptr,
    M, N, K, KP, stride_ym,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TOGETHER: tl.constexpr, STAGES: tl.constexpr, SWAP: tl.constexpr,
    BIAS: tl.constexpr, APART: tl.constexpr, WILD: tl.constexpr, ROOM: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One tile of y, BM tokens (rows of codes) by BN rows of the weight.

    Args:
        codes_ptr, weight_ptr: tensor descriptors of int8 [M, KP] and [N, KP], in blocks [BM, BK] and [BN, BK].
        gathered_ptr: int8 [N, ROOM], its first outlier columns (`split_tokens`); bytes_ptr: the weight again, for the others.
        SWAP: the weight is the left operand, which is at least 64 high; the tokens may then be as few as 8. APART wants it so.
    """
    m, n = tile_of(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), TOGETHER)
    token, row = m * BM + tl.arange(0, BM), n * BN + tl.arange(0, BN)
    at, of = token.to(tl.int64), tl.minimum(row, N - 1).to(tl.int64)
    if EARLY:
        gdc_wait()
    if WILD:  # the first of them are on their way while the integers are multiplied
        count = tl.load(count_ptr)
        j = tl.arange(0, 32)
        live = (token < M)[:, None] & (j < count)[None, :]
        first_x = tl.load(wild_ptr + at[:, None] * K + j[None, :], mask=live, other=0.0)
        first_w = tl.load(gathered_ptr + of[:, None] * ROOM + j[None, :], mask=(j < count)[None, :], other=0)
    if SWAP:
        acc = tl.zeros((BN, BM), tl.int32)
    else:
        acc = tl.zeros((BM, BN), tl.int32)
    for k in tl.range(0, KP, BK, num_stages=STAGES):
        x = codes_ptr.load([m * BM, k])
        w = weight_ptr.load([n * BN, k])
        if SWAP:
            acc = tl.dot(w, x.T, acc, out_dtype=tl.int32)
        else:
            acc = tl.dot(x, w.T, acc, out_dtype=tl.int32)
    s_x = tl.load(token_scale_ptr + token, mask=token < M, other=0.0)
    s_w = tl.load(rows_ptr + row, mask=row < N, other=0.0)
    if SWAP:
        y = acc.to(tl.float32) * s_x[None, :]
    else:
        y = acc.to(tl.float32) * s_x[:, None]
    if WILD:
        if SWAP:
            y = tl.dot(first_w.to(first_x.dtype), first_x.T, y)
        else:
            y = tl.dot(first_x, first_w.to(first_x.dtype).T, y)
        for start in tl.range(32, count, 32, num_stages=1):
            j = start + tl.arange(0, 32)
            live = (token < M)[:, None] & (j < count)[None, :]
            x = tl.load(wild_ptr + at[:, None] * K + j[None, :], mask=live, other=0.0)
            if start < ROOM:
                w = tl.load(gathered_ptr + of[:, None] * ROOM + j[None, :])
            else:
                column = tl.load(columns_ptr + j, mask=j < count, other=0)
                w = tl.load(bytes_ptr + of[:, None] * KP + column[None, :])
            if SWAP:
                y = tl.dot(w.to(x.dtype), x.T, y)
            else:
                y = tl.dot(x, w.to(x.dtype).T, y)
    if APART:
        y, M = fours_added(y, BN, BM), M // 4
        token = m * (BM // 4) + tl.arange(0, BM // 4)
        at = token.to(tl.int64)
    if SWAP:
        y *= s_w[:, None]
    else:
        y *= s_w[None, :]
    if BIAS:
        b = tl.load(bias_ptr + row, mask=row < N, other=0.0).to(tl.float32)
        if SWAP:
            y += b[:, None]
        else:
            y += b[None, :]
    if SWAP:
        live = (token < M)[None, :] & (row < N)[:, None]
        tl.store(y_ptr + at[None, :] * stride_ym + row[:, None], y.to(y_ptr.dtype.element_ty), mask=live)
    else:
        live = (token < M)[:, None] & (row < N)[None, :]
        tl.store(y_ptr + at[:, None] * stride_ym + row[None, :], y.to(y_ptr.dtype.element_ty), mask=live)
