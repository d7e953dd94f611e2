"""Wrong answers as students write them, from the words of the task alone: each is refused, with a sentence that helps.

Those of test_exercises.py were written beside the graders, for the mistakes that they know; these were not.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from qkit import exercises
from qkit.exercises.core import Exercise
from qkit.exercises.lesson_08 import careless_dot


def first_within(rows, budget):
    for row in sorted(rows, key=lambda row: row[2]):
        if row[1] < budget:
            return row[0]
    return rows[0][0]


def sorts_in_place(rows, budget):
    rows.sort(key=lambda row: row[2])
    return next(row[0] for row in rows if row[1] <= budget)


def the_whole_row(rows, budget):
    return min((row for row in rows if row[1] <= budget), key=lambda row: row[2])


def zero_point_half_up(lo, hi, bits):
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    s = (hi - lo) / (2**bits - 1)
    return s, math.floor(-lo / s + 0.5)


def widens_up_only(lo, hi, bits):
    lo = min(lo, 0.0)
    s = (hi - lo) / (2**bits - 1)
    return s, round(-lo / s)


def codes_in_place(w, s, z, b):
    w /= s
    return (w.round() + z).clamp(0, 2**b - 1)


def codes_in_int8(w, s, z, b):
    return ((w / s).round() + z).clamp(0, 2**b - 1).to(torch.int8)


def pack_by_neighbours_only(codes):
    out = torch.zeros((len(codes) + 1) // 2, dtype=torch.uint8)
    for i in range(len(codes) - 1):
        out[i // 2] = codes[i] + 16 * codes[i + 1] if i % 2 == 0 else out[i // 2]
    return out


def pack_with_odd_end_high(codes):
    codes = torch.cat([codes.new_zeros(len(codes) % 2), codes])
    return (codes[0::2] | codes[1::2] << 4).to(torch.uint8)


def three_bits_without_straddling(codes):
    """The code that would lie in two bytes is cut off at the end of the first."""
    out = torch.zeros((3 * len(codes) + 7) // 8, dtype=torch.uint8)
    for i, code in enumerate(codes.tolist()):
        at = 3 * i
        out[at // 8] |= code << at % 8 & 255
    return out


def three_bits_in_words(codes):
    """Ten codes in a word of 32 bits, two bits empty, as the lesson says that others do."""
    codes = torch.nn.functional.pad(codes.long(), (0, -len(codes) % 10)).reshape(-1, 10)
    words = (codes << 3 * torch.arange(10)).sum(1, keepdim=True)
    return (words >> 8 * torch.arange(4) & 255).flatten().to(torch.uint8)


def three_bits_by_eights(codes):
    """Right for whole eights of codes; what is left is thrown away."""
    eights = codes[: len(codes) // 8 * 8].long().reshape(-1, 8)
    words = (eights << 3 * torch.arange(8)).sum(1, keepdim=True)
    return (words >> 8 * torch.arange(3) & 255).flatten().to(torch.uint8)


def groups_without_guard(w, bits, g):
    groups = w.reshape(len(w), -1, g)
    s = groups.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((groups / s).round() * s).reshape(w.shape)


def groups_by_epsilon(w, bits, g):
    groups = w.reshape(len(w), -1, g)
    s = (groups.abs().amax(-1, keepdim=True) + 1e-3) / (2 ** (bits - 1) - 1)
    return ((groups / s).round() * s).reshape(w.shape)


def groups_in_place(w, bits, g):
    groups = w.view(len(w), -1, g)
    s = groups.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    s[s == 0] = 1
    groups.div_(s).round_().mul_(s)
    return w.clone()


def groups_half_up(w, bits, g):
    groups = w.reshape(len(w), -1, g)
    s = groups.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    s[s == 0] = 1
    return ((groups / s + 0.5).floor() * s).reshape(w.shape)


def product_without_guard(x, w):
    sx, sw = x.abs().amax(1, keepdim=True) / 127, w.abs().amax(1, keepdim=True) / 127
    return ((x / sx).round() @ (w / sw).round().T) * sx * sw.T


def product_of_int8_that_wraps(x, w):
    sx, sw = x.abs().amax(1, keepdim=True).clamp(1e-9) / 127, w.abs().amax(1, keepdim=True).clamp(1e-9) / 127
    return (((x / sx).round().to(torch.int8)) @ (w / sw).round().to(torch.int8).T) * sx * sw.T


def right_product(x, w):
    sx, sw = x.abs().amax(1, keepdim=True) / 127, w.abs().amax(1, keepdim=True) / 127
    sx[sx == 0], sw[sw == 0] = 1, 1
    return ((x / sx).round() @ (w / sw).round().T) * sx * sw.T


def outliers_in_place(x, w, threshold):
    large = (x.abs() >= threshold).any(0)
    floats = x[:, large] @ w[:, large].T
    x[:, large] = 0
    return floats + right_product(x, w)


def outliers_by_row(x, w, threshold):
    large = (x.abs() >= threshold).any(1)
    out = right_product(x, w)
    out[large] = x[large] @ w.T
    return out


def outliers_by_mean(x, w, threshold):
    large = x.abs().mean(0) >= threshold
    return x[:, large] @ w[:, large].T + right_product(x * ~large, w)


def table_by_bucketize(w, table, size):
    blocks = w.reshape(-1, size)
    absmax = blocks.abs().amax(1, keepdim=True).clamp(min=1e-30)
    at = torch.bucketize(blocks / absmax, table).clamp(max=len(table) - 1)
    return (table[at] * absmax).reshape(w.shape)


def table_of_all(w, table, size):
    absmax = w.abs().max()
    return table[(w[:, None] / absmax - table).abs().argmin(1)] * absmax


def table_in_place(w, table, size):
    blocks = w.view(-1, size)
    absmax = blocks.abs().amax(1, keepdim=True)
    blocks /= torch.where(absmax == 0, 1, absmax)
    return (table[(blocks[..., None] - table).abs().argmin(-1)] * absmax).reshape(w.shape)


def column_in_place(w, upper, j, step):
    rounded = (w[:, j] / step).round() * step
    w[:, j + 1 :] -= ((w[:, j] - rounded) / upper[j, j])[:, None] * upper[j, j + 1 :]
    w[:, j] = rounded
    return w


def column_after_rounding(w, upper, j, step):
    w = w.clone()
    w[:, j] = (w[:, j] / step).round() * step
    w[:, j + 1 :] -= ((w[:, j] - w[:, j]) / upper[j, j])[:, None] * upper[j, j + 1 :]
    return w


def column_from_j(w, upper, j, step):
    w = w.clone()
    rounded = (w[:, j] / step).round() * step
    w[:, j:] -= ((w[:, j] - rounded) / upper[j, j])[:, None] * upper[j, j:] * 1.1
    return w


def column_half_up(w, upper, j, step):
    out = w.clone()
    rounded = (w[:, j] / step + 0.5).floor() * step
    out[:, j + 1 :] -= ((w[:, j] - rounded) / upper[j, j])[:, None] * upper[j, j + 1 :]
    out[:, j] = rounded
    return out


def factor_of_mean(x, damp):
    h = x @ x.T
    return torch.linalg.cholesky(torch.linalg.inv(h + damp * h.mean() * torch.eye(len(h))), upper=True)


def factor_damps_all(x, damp):
    h = x @ x.T
    return torch.linalg.cholesky(torch.linalg.inv(h + damp * h.diag().mean()), upper=True)


def factor_flipped(x, damp):
    h = x @ x.T + damp * (x @ x.T).diag().mean() * torch.eye(len(x))
    return torch.linalg.inv(torch.linalg.cholesky(h)).T


def loop(w, x, step, bits, damp, limited=True, least=0):
    """The loop by plain inverses: `limited`, is the error that is passed on that of the limited codes; `least`, of the codes."""
    h = x.double().T @ x.double()
    h = h + damp * h.diag().mean() * torch.eye(len(h))
    left, out = w.double().clone(), []
    for k in range(w.shape[1]):
        row = torch.linalg.inv(h[k:, k:])[0]
        free = torch.round(left[:, k] / step)
        codes = free.clamp(-(2 ** (bits - 1)) + least, 2 ** (bits - 1) - 1)
        error = left[:, k] - (codes if limited else free) * step
        left[:, k:] -= error[:, None] * row / row[0]
        out.append(codes * step)
    return torch.stack(out, 1).to(w.dtype)


def loop_in_place(w, x, step, bits, damp):
    w[:] = loop(w, x, step, bits, damp)
    return w


def loop_limits_last(w, x, step, bits, damp):
    return loop(w, x, step, bits, damp, limited=False)


def loop_both_limits_alike(w, x, step, bits, damp):
    return loop(w, x, step, bits, damp, least=1)


def loop_damps_all(w, x, step, bits, damp):
    return loop(w, torch.cat([x, (damp * (x * x).sum(0).mean()).sqrt() * torch.ones(1, x.shape[1])]), step, bits, 1e-9)


def channels_of_weightless_max(x, k):
    return sorted(x.abs().sum(0).argsort()[:k].tolist())


def fold_in_place(gain, weight, s):
    gain /= s
    weight *= s
    return gain, weight


def fold_rows(gain, weight, s):
    return gain / s, (weight.T * s[:, None]).T * s


def integers_in_float16(xc, xs, wc, ws):
    return (xc.half() @ wc.half().T).float() * xs[:, None] * ws


def integers_in_int16(xc, xs, wc, ws):
    return (xc[:, None].short() * wc[None].short()).sum(-1, dtype=torch.int16) * xs[:, None] * ws


def beats_by_size_only(rows):
    best = {}
    for name, size, loss in rows:
        if size not in best or loss < best[size][1]:
            best[size] = (name, loss)
    return [best[size][0] for size in sorted(best)]


def drops_equals(rows):
    kept = []
    for row in sorted(rows, key=lambda row: row[1:]):
        if not kept or row[2] < kept[-1][2]:
            kept.append(row)
    return [row[0] for row in kept]


def unbeaten_in_place(rows):
    rows.sort(key=lambda row: row[1])
    return [a[0] for a in rows if not any(b[1] <= a[1] and b[2] <= a[2] and b[1:] != a[1:] for b in rows)]


def spends_once(layers, budget):
    return [name for name, n, a, b in sorted(layers, key=lambda x: (x[3] - x[2]) / x[1]) if n <= budget]


def spends_in_place(layers, budget):
    layers.sort(key=lambda x: (x[3] - x[2]) / x[1])
    bought = []
    for name, n, _, _ in layers:
        if n <= budget:
            bought.append(name)
            budget -= n
    return bought


def spends_below(layers, budget):
    bought = []
    for name, n, _, _ in sorted(layers, key=lambda x: (x[3] - x[2]) / x[1]):
        if n < budget:
            bought.append(name)
            budget -= n
    return bought


def dot_in_float32(codes, x, scale, x_scale):
    total = np.float32(0)
    for q, v in zip(codes.tolist(), x.tolist(), strict=True):
        total += np.float32((q - 128) * v)
    return float(total) * scale * x_scale


def dot_of_numpy_bytes(codes, x, scale, x_scale):
    return int((codes.numpy().astype(np.int16) - 128).dot(x.numpy().astype(np.int16))) * scale * x_scale


def searches_at_random(n, largest_code, largest_x):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        codes = torch.randint(0, largest_code + 1, (n,), generator=generator).to(torch.uint8)
        x = torch.randint(-largest_x, largest_x + 1, (n,), generator=generator).to(torch.int8)
        if careless_dot(codes, x) != int((codes.int() * x.int()).sum()):
            return codes, x
    return ()


def word_by_string(word):
    bits = format(word & 0xFFFFFFFF, "032b")
    places = [int(bits[4 * i : 4 * i + 4], 2) for i in range(8)]
    return [places[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]


def zero_of_a_row(weight, codes, scales, zeros):
    steps = codes.float() - weight / scales.repeat_interleave(weight.shape[1] // zeros.shape[1], 1)
    off = steps.mean(1) - zeros.float().mean(1)
    row = int(off.abs().argmax())
    return row, 0, int((zeros[row, 0] + off[row]).round())


def zero_in_bytes(weight, codes, scales, zeros):
    size = weight.shape[1] // zeros.shape[1]
    back = scales.repeat_interleave(size, 1) * (codes - zeros.repeat_interleave(size, 1))
    wrong = ((back - weight).abs() / scales.repeat_interleave(size, 1)).unflatten(1, (-1, size)).mean(-1)
    row, group = divmod(int(wrong.argmax()), zeros.shape[1])
    part = slice(group * size, (group + 1) * size)
    return row, group, round(float((codes[row, part] - weight[row, part] / scales[row, group]).mean()))


def block_of_python(w):
    d = max(w.tolist(), key=abs) / -8
    codes = [min(15, round(v / d + 8)) if d else 8 for v in w.tolist()]
    return bytes(np.float16(d).tobytes()) + bytes(codes[j] | codes[j + 16] << 4 for j in range(16))


def block_that_divides_by_zero(w):
    d = w[w.abs().argmax()] / -8
    codes = (w / d + 8.5).floor().clamp(0, 15).nan_to_num(0).to(torch.uint8)
    return torch.cat([d.half().reshape(1).view(torch.uint8), codes[:16] | codes[16:] << 4])


def block_of_big_end(w):
    d = float(w[w.abs().argmax()] / -8)
    codes = (w / d + 8.5).floor().clamp(0, 15).to(torch.uint8) if d else torch.full((32,), 8, dtype=torch.uint8)
    head = np.array([d], dtype=">f2").tobytes()
    return torch.tensor([*head, *(codes[:16] | codes[16:] << 4).tolist()], dtype=torch.uint8)


# (exercise, answer, words of the sentence)
def search_with(steps=10, relative=False, tokens=False, last_of_equals=False):
    """AWQ's search of 05.4: an error that is divided by something, a finer grid, the last of equals."""

    def search(weight, x, rounding):
        mean = x.abs().mean(0)
        mean = torch.where(mean > 0, mean, 1.0)
        best, least = 0.0, math.inf
        for i in range(steps + 1):
            f = mean ** (i / steps)
            error = float((x @ (rounding(weight * f) / f - weight).T).square().sum())
            error /= float((x @ weight.T).square().sum()) or 1.0 if relative else 1.0
            error /= len(x) if tokens else 1
            if error < least or (last_of_equals and error == least):
                best, least = i / steps, error
        return best, least

    return search


WRONG = [
    ("00.1", lambda n, b: n * (b // 8) / 1e6, "expected"),
    ("00.1", lambda n, b: round(n * b / 8 / 1e6), "expected"),
    ("00.1", lambda n, b: n * b / 8 / 1024 / 1000, "expected"),
    ("00.1", lambda n, b: n * b // 8 / 1e6, "half a byte too many"),
    ("00.2", lambda p: math.prod(p) ** (-1 / 2), "expected"),
    ("00.2", lambda p: math.exp(-sum(math.log(v) for v in p) / (len(p) - 1)) if len(p) > 1 else 1 / p[0], "expected"),
    ("00.2", lambda p: 2 ** (-sum(math.log(v) for v in p) / len(p)), "expected"),
    ("00.2", lambda p: math.exp(-math.log(sum(p) / len(p))), "one over the mean probability"),
    ("00.3", first_within, "<="),
    ("00.3", sorts_in_place, "changes `rows`"),
    ("00.3", the_whole_row, "expected 'E'"),
    ("00.3", lambda rows, budget: sorted(rows, key=lambda r: (r[1], r[2]))[-1][0], "expected 'E'"),
    ("01.1", zero_point_half_up, "a zero point that lies halfway"),
    ("01.1", widens_up_only, "expected"),
    ("01.1", lambda lo, hi, b: ((hi - lo) / 2**b - 1, round(-lo)), "expected"),
    ("01.1", lambda lo, hi, b: (max(hi, 0) / (2**b - 1), 0), "expected"),
    ("01.2", codes_in_place, "changes `w`"),
    ("01.2", codes_in_int8, "expected"),
    ("01.2", lambda w, s, z, b: (w / s + z).int().clamp(0, 2**b - 1), "that truncates"),
    ("01.2", lambda w, s, z, b: ((w / s).round() + z).clamp(0, 2**b), "expected"),
    ("01.2", lambda w, s, z, b: ((w / s).round() + z).clamp(max=2**b - 1), "expected"),
    ("01.3", lambda lo, hi, t: math.ceil(math.log2((hi - lo) / t)), "expected"),
    ("01.3", lambda lo, hi, t: math.ceil(math.log2((hi - lo) / (2 * t) - 1)) if hi - lo > 2.1 * t else 1, "expected"),
    ("01.3", lambda lo, hi, t: math.ceil(math.log2(hi / t + 1)) if hi else 1, "expected"),
    ("01.3", lambda lo, hi, t: math.log2((hi - lo) / (2 * t) + 1), "expected"),
    ("02.1", lambda b, g, sym: b + (16 if sym else 16 + b) // g, "fraction"),
    ("02.1", lambda b, g, sym: (b + 16 + (0 if sym else b)) / g, "expected"),
    ("02.1", lambda b, g, sym: b + 16 * g + (0 if sym else b), "expected"),
    ("02.1", lambda b, g, sym: b + (16 + b * (not sym)) / 128, "expected"),
    ("02.2", pack_by_neighbours_only, "expected"),
    ("02.2", pack_with_odd_end_high, "expected"),
    ("02.2", lambda c: (torch.nn.functional.pad(c, (0, len(c) % 2)).reshape(-1, 2) @ torch.tensor([1, 16])).int(), "bytes"),
    ("02.2", lambda c: [int(a) + 16 * int(b) for a, b in zip(c[::2], [*c[1::2], 0], strict=False)], "bytes"),
    ("02.4", three_bits_without_straddling, "expected"),
    ("02.4", three_bits_in_words, "expected"),
    ("02.4", three_bits_by_eights, "expected"),
    ("02.3", groups_without_guard, "a group of zeros"),
    ("02.3", groups_by_epsilon, "expected"),
    ("02.3", groups_in_place, "changes `w`"),
    ("02.3", groups_half_up, "numbers that lie halfway"),
    ("03.1", product_without_guard, "a token of zeros"),
    ("03.1", product_of_int8_that_wraps, "expected"),
    ("03.1", lambda x, w: right_product(w, x), "expected"),
    ("03.1", lambda x, w: right_product(x, w).round(), "expected"),
    ("03.2", outliers_in_place, "changes `x`"),
    ("03.2", outliers_by_row, "expected"),
    ("03.2", outliers_by_mean, "expected"),
    ("03.2", lambda x, w, t: x @ w.T, "expected"),
    ("03.3", table_by_bucketize, "expected"),
    ("03.3", table_of_all, "each block has its own"),
    ("03.3", table_in_place, "changes `w`"),
    ("03.3", lambda w, t, b: t[(w[:, None] - t).abs().argmin(1)], "expected"),
    ("04.1", lambda w, v, h: float(((w - v) @ h @ (w - v).T).norm()), "expected"),
    ("04.1", lambda w, v, h: (((w - v) @ h) * (w - v)).sum(1), "expected"),
    ("04.1", lambda w, v, h: float(((w - v) @ torch.linalg.cholesky(h)).norm()), "that is the root"),
    ("04.2", column_in_place, "changes `w`"),
    ("04.2", column_after_rounding, "that only rounds"),
    ("04.2", column_from_j, "expected"),
    ("04.2", column_half_up, "expected"),
    ("04.3", factor_of_mean, "expected"),
    ("04.3", factor_damps_all, "it raises"),
    ("04.3", factor_flipped, "expected"),
    ("04.4", loop_in_place, "changes `w`"),
    ("04.4", loop_limits_last, "expected"),
    ("04.4", loop_both_limits_alike, "expected"),
    ("04.4", loop_damps_all, "expected"),
    ("05.1", channels_of_weightless_max, "smallest"),
    ("05.1", lambda x, k: x.abs().mean(0).topk(k).values.sort().values, "expected"),
    ("05.1", lambda x, k: sorted((x**4).mean(0).topk(k).indices.tolist()), "expected [3, 5]"),
    ("05.1", lambda x, k: sorted(x.abs().median(0).values.topk(k).indices.tolist()), "expected"),
    ("05.1", lambda x, k: x.abs().mean(0) >= x.abs().mean(0).topk(k).values.min(), "expected"),
    ("05.2", lambda x, a: (s := x.abs().mean() ** a) / s, "expected"),
    ("05.2", lambda x, a: (s := x.abs().mean(0)) / (s.max() * s.min()).sqrt() * a, "expected"),
    ("05.2", lambda x, a: (s := x.abs().mean(0) ** a) / (s.max() * s.min()), "expected"),
    ("05.2", lambda x, a: (s := x.mean(0).abs() ** a) / (s.max() * s.min()).sqrt(), "expected"),
    ("05.3", fold_in_place, "changes `gain`"),
    ("05.3", fold_rows, "expected"),
    ("05.3", lambda g, w, s: (w * s, g / s), "expected"),
    ("05.3", lambda g, w, s: g / s, "expected"),
    ("05.4", search_with(relative=True), "expected"),
    ("05.4", search_with(tokens=True), "expected"),
    ("05.4", search_with(steps=20), "expected"),
    ("05.4", search_with(last_of_equals=True), "inputs that are all zero"),
    ("06.1", lambda x, w, a: (x.abs().amax(0) / w.abs().amax(0)) ** (1 - a), "expected"),
    ("06.1", lambda x, w, a: x.abs().amax() ** a / w.abs().amax(0) ** (1 - a), "expected"),
    ("06.1", lambda x, w, a: x.abs().amax(0) ** a / w.abs().amax(1).max() ** (1 - a), "expected"),
    ("06.1", lambda x, w, a: a * x.abs().amax(0) / ((1 - a) * w.abs().amax(0) + 1e-9), "expected"),
    ("06.2", integers_in_float16, "expected"),
    ("06.2", integers_in_int16, "expected"),
    ("06.2", lambda xc, xs, wc, ws: (xc.int() @ wc.int().T) * xs * ws, "raises"),
    ("06.2", lambda xc, xs, wc, ws: ((xc.int() @ wc.int().T) * xs[:, None] * ws).round(), "expected"),
    ("06.3", lambda x, p: float(x.abs().quantile(p)) / 127, "expected"),
    ("06.3", lambda x, p: float(x.abs().flatten().sort().values[int(p * x.numel()) - 1]) / 127, "expected"),
    ("06.3", lambda x, p: float(x.abs().flatten().sort(descending=True).values[math.ceil(p * x.numel()) - 1]) / 127, "expected"),
    ("07.1", beats_by_size_only, "expected"),
    ("07.1", drops_equals, "equal in both"),
    ("07.1", unbeaten_in_place, "changes `rows`"),
    ("07.1", lambda rows: [r[0] for r in rows if not any(o[1] < r[1] and o[2] < r[2] for o in rows)], "expected"),
    ("07.2", lambda p, b, m, w: w / (p * b / 8e9) if p * b / 8 < m * 2**30 else 0, "expected"),
    ("07.2", lambda p, b, m, w: int(w / (p * b / 8e9)) if p * b / 8e9 <= m else 0, "expected"),
    ("07.2", lambda p, b, m, w: w / (p * b / 8e9) if p * b / 8e9 <= m else None, "expected"),
    ("07.2", lambda p, b, m, w: min(w, m) / (p * b / 8e9), "expected"),
    ("07.3", spends_once, "expected"),
    ("07.3", spends_in_place, "changes `layers`"),
    ("07.3", spends_below, "expected"),
    ("08.1", dot_in_float32, "expected"),
    ("08.1", dot_of_numpy_bytes, "their sum does not"),
    ("08.1", lambda q, x, s, r: round(int(((q.int() - 128) * x.int()).sum()) * s * r, 2), "expected"),
    ("08.1", lambda q, x, s, r: int(((q.int() - 128) * x.int()).sum() * s * r), "expected"),
    ("08.2", searches_at_random, "expected"),
    ("08.2", lambda n, c, x: (torch.tensor([c] * n), torch.tensor([x] * n)) if 2 * c * x > 32767 else (), "codes of"),
    ("08.2", lambda n, c, x: ([c] * n, [x] * n) if 2 * c * x > 32767 else (), "expected 'a wrong sum'"),
    ("08.2", lambda n, c, x: ((c,), (x,)) if 2 * c * x > 32767 else None, "expected"),
    ("08.3", lambda b, c, g, n, r, f: (f + n * n * (b + 16 / g) / 8 / r) / (f + n * n * (c + 16 / g) / 8 / r), "not one"),
    ("08.3", lambda b, c, g, n, r, f: (f + n * (b + 16 / g) / 8e3 / r) / (f + n * (c + 16 / g) / 8e3 / r), "expected"),
    ("08.3", lambda b, c, g, n, r, f: (f + n * n * (b + 16 / g) / 8e3 / r) / (n * n * (c + 16 / g) / 8e3 / r), "expected"),
    ("09.3", lambda n, k, b, p: round(2 * n * k / b / (2 * n * k / p - 2 * (n + k) / b)), "expected"),
    ("09.3", lambda n, k, b, p: math.ceil(2 * n * k / b / (2 * n * k / p - 2 * n / b)), "expected"),
    ("09.3", lambda n, k, b, p: math.ceil(2 * n * k / b / abs(2 * n * k / p - 2 * (n + k) / b or 1)), "expected inf"),
    ("10.1", word_by_string, "not in the highest"),
    ("10.1", lambda word: [word >> p & 15 for p in (0, 4, 1, 5, 2, 6, 3, 7)], "expected"),
    ("10.1", lambda word: [word >> 4 * p & 7 for p in (0, 4, 1, 5, 2, 6, 3, 7)], "expected"),
    ("10.2", zero_of_a_row, "expected"),
    ("10.2", zero_in_bytes, "expected"),
    ("10.2", lambda w, q, s, z: (0, 0, int(z[0, 0])), "expected"),
    ("10.3", block_of_python, "halves are rounded to even"),
    ("10.3", block_that_divides_by_zero, "its codes are 8"),
    ("10.3", block_of_big_end, "little-endian"),
]  # fmt: skip

NAMES = sorted(name for name, exercise in exercises.ALL.items() if type(exercise) is Exercise)


def test_there_are_three_for_each_exercise():
    for name in NAMES:
        assert sum(name == wrong for wrong, _, _ in WRONG) >= 3, name


@pytest.mark.parametrize(("name", "answer", "words"), WRONG, ids=[f"{w[0]}-{at}" for at, w in enumerate(WRONG)])
def test_it_is_refused_with_a_sentence_that_helps(name, answer, words):
    verdict = exercises.check(name, answer)
    assert verdict.passed is False
    assert words in verdict.message and len(verdict.message) < 700


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("01.2", lambda codes: codes.numpy().astype(np.uint8)),
        ("01.2", lambda codes: codes.tolist()),
        ("02.1", lambda bits: Fraction(bits).limit_denominator(10**9)),
        ("02.2", lambda packed: packed.numpy()),
        ("02.2", lambda packed: bytes(packed.tolist())),
        ("02.3", lambda w: w.double().numpy()),
        ("02.4", lambda packed: packed.numpy()),
        ("02.4", lambda packed: bytes(packed.tolist())),
        ("04.1", lambda error: np.float32(error)),
        ("05.1", lambda channels: torch.tensor(channels)),
        ("05.3", list),
        ("07.1", list),
        ("08.1", lambda product: torch.tensor(product)),
        ("08.2", lambda found: [part.numpy() for part in found]),
        ("10.1", lambda codes: np.array(codes, dtype=np.uint8)),
        ("10.2", lambda found: torch.tensor(found)),
        ("10.3", lambda block: bytearray(block.tolist())),
    ],
)
def test_a_right_answer_may_come_in_any_type_that_holds_it(name, change):
    solution = exercises.ALL[name].solution
    verdict = exercises.check(name, lambda *arguments: change(solution(*arguments)))
    assert verdict.passed is True, verdict.message
