"""Every checker: the right answers pass, and plausible wrong ones fail with a message that names the mistake."""

import math
import re

import numpy as np
import pytest
import torch

from qkit import exercises, ops
from qkit.exercises.core import DIFFICULTIES
from qkit.exercises.draws import Draw
from qkit.exercises.kernels import KernelExercise
from qkit.exercises.lesson_08_kernel import NumbaExercise
from qkit.methods.gptq import inverse_cholesky


def right_megabytes(n, b):
    return n / 1_000_000 * (b / 8)


def right_perplexity(ps):
    product = 1.0
    for p in ps:
        product *= p
    return product ** (-1 / len(ps))


def right_best(rows, budget):
    best = None
    for row in rows:
        if row[1] <= budget and (best is None or row[2] < best[2]):
            best = row
    return best[0]


def right_scale(lo, hi, bits):
    if lo > 0:
        lo = 0.0
    if hi < 0:
        hi = 0.0
    s = (hi - lo) / (2**bits - 1)
    return torch.tensor(s), torch.tensor(round(-lo / s))


def right_codes(w, s, z, b):
    return torch.clamp(torch.round(w / s) + z, min=0, max=2**b - 1).to(torch.uint8)


def right_bits(lo, hi, tolerance):
    bits = 1
    while (hi - lo) / (2**bits - 1) / 2 > tolerance:
        bits += 1
    return bits


def right_cost(bits, g, symmetric):
    return (bits * g + 16 + (bits if not symmetric else 0)) / g


def right_pack(codes):
    out = []
    for k in range(0, len(codes), 2):
        high = int(codes[k + 1]) if k + 1 < len(codes) else 0
        out.append(int(codes[k]) + 16 * high)
    return torch.tensor(out, dtype=torch.uint8)


def right_stream(codes):
    number = sum(int(code) << 3 * place for place, code in enumerate(codes))
    return number.to_bytes(-(-3 * len(codes) // 8), "little")


def bits_of(codes, order="little", width=3):
    text = "".join(f"{int(code):0{width}b}"[:: -1 if order == "little" else 1] for code in codes)
    return [text[at : at + 8].ljust(8, "0") for at in range(0, len(text), 8)]


def as_bytes(octets, turn=True):
    return torch.tensor([int(octet[:: -1 if turn else 1], 2) for octet in octets], dtype=torch.uint8)


def right_groups(w, bits, g):
    out = torch.empty_like(w)
    for row in range(w.shape[0]):
        for k in range(0, w.shape[1], g):
            part = w[row, k : k + g]
            s = part.abs().max() / (2 ** (bits - 1) - 1)
            out[row, k : k + g] = (part / s).round() * s if s else 0
    return out


def right_int8_product(x, w):
    out = torch.zeros(len(x), len(w))
    for i, token in enumerate(x):
        for j, row in enumerate(w):
            s, r = token.abs().max() / 127, row.abs().max() / 127
            out[i, j] = s * r * ((token / s).round() * (row / r).round()).sum() if s * r else 0
    return out


def right_llm_int8(x, w, threshold):
    rest, floats = x.clone(), torch.zeros_like(x)
    for j in range(x.shape[1]):
        if x[:, j].abs().max() >= threshold:
            floats[:, j], rest[:, j] = x[:, j], 0
    return floats @ w.T + right_int8_product(rest, w)


def right_table(w, table, block_size):
    out = []
    for block in w.split(block_size):
        reach = block.abs().max()
        out += [min(table, key=lambda level: abs(level - v / reach)) * reach for v in block]
    return torch.stack(out)


def right_unbeaten(rows):
    def beats(a, b):
        return a[1] <= b[1] and a[2] <= b[2] and a[1:] != b[1:]

    kept = [row for row in rows if not any(beats(other, row) for other in rows)]
    return [name for name, _, _ in sorted(kept, key=lambda row: row[1])]


def right_speed(parameters, bits, memory, bandwidth):
    bytes_read = parameters * bits / 8
    return 0 if bytes_read > memory * 1e9 else bandwidth * 1e9 / bytes_read


def right_spending(layers, budget):
    waiting, bought = list(layers), []
    while waiting:
        best = max(waiting, key=lambda layer: (layer[2] - layer[3]) / layer[1])
        waiting.remove(best)
        if best[1] <= budget:
            budget -= best[1]
            bought.append(best[0])
    return bought


def right_output_error(w, w_hat, h):
    return sum(float(row @ h @ row) for row in w - w_hat)


def right_column(w, upper, j, step):
    out = w.clone()
    for i in range(len(w)):
        out[i, j] = step * round(float(w[i, j]) / step)
        for k in range(j + 1, w.shape[1]):
            out[i, k] = w[i, k] - (w[i, j] - out[i, j]) * upper[j, k] / upper[j, j]
    return out


def right_factor(x, damp):
    h = sum(torch.outer(token, token) for token in x.T)
    for i, d in enumerate([damp * float(h.trace()) / len(h)] * len(h)):
        h[i, i] += d
    return torch.linalg.cholesky(torch.linalg.inv(h)).T


def right_loop(w, x, step, bits, damp):
    """By elimination (eq. 3 of the paper) instead of Cholesky, a row at a time."""
    h = (x.double().T @ x.double()).numpy()
    h = h + damp * h.trace() / len(h) * np.eye(len(h))
    rows = []
    for row, s in zip(w.double().numpy().copy(), step.double().numpy(), strict=True):
        inverse, rounded = np.linalg.inv(h), np.zeros_like(row)
        for k in range(len(row)):
            rounded[k] = s * min(max(round(row[k] / s), -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
            row = row - (row[k] - rounded[k]) / inverse[k, k] * inverse[k]
            inverse = inverse - np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
        rows.append(rounded)
    return torch.tensor(np.array(rows), dtype=w.dtype)


def right_salient(x, k):
    means = [float(sum(abs(v) for v in column)) / len(column) for column in x.T.tolist()]
    return sorted(sorted(range(len(means)), key=lambda j: -means[j])[:k])


def right_awq_scale(x, alpha):
    logs = alpha * x.abs().mean(0).log()
    return (logs - (logs.max() + logs.min()) / 2).exp()


def right_fold(gain, weight, s):
    return [torch.diag(1 / s) @ gain, weight @ torch.diag(s)]


def right_smoothing(x, w, alpha):
    return torch.exp(alpha * x.abs().max(0).values.log() - (1 - alpha) * w.abs().max(0).values.log())


def right_integers(xc, xs, wc, ws):
    return (xc.double() @ wc.double().T) * torch.outer(xs, ws)


def right_step(x, share):
    n = x.numel()
    return x.abs().flatten().kthvalue(math.ceil(share * n)).values / 127


def right_bytes_product(codes, x, scale, x_scale):
    return scale * x_scale * sum((int(q) - 128) * int(v) for q, v in zip(codes, x, strict=True))


def right_overflow(n, largest_code, largest_x):
    if largest_code * largest_x < 2**14:  # two of them reach -32768 at most, which int16 holds
        return ()
    return [
        torch.tensor([largest_code] * n, dtype=torch.uint8),
        torch.tensor([-largest_x] * n, dtype=torch.int8),
    ]


def right_gain(bits, fewer_bits, group_size, features, gigabytes, fixed):
    def seconds(b):
        codes, scales = features * features * b / 8, features * features / group_size * 2
        return fixed * 1e-6 + (codes + scales) / (gigabytes * 1e9)

    return seconds(bits) / seconds(fewer_bits)


def right_crossing(rows, features, gigabytes, gops):
    for tokens in range(1, 100_000):
        operations = 2 * tokens * rows * features
        if operations / gops >= (2 * rows * features + 2 * tokens * (rows + features)) / gigabytes:
            return tokens
    return float("inf")


def right_awq_word(word):
    octets = (word % 2**32).to_bytes(4, "little")
    halves = [half for octet in octets for half in (octet % 16, octet // 16)]
    return halves[0], halves[4], halves[1], halves[5], halves[2], halves[6], halves[3], halves[7]


def right_wrong_zero(weight, codes, scales, zeros):
    size = weight.shape[1] // zeros.shape[1]
    for row in range(len(weight)):
        for group in range(zeros.shape[1]):
            part = slice(group * size, (group + 1) * size)
            fits = [
                float((scales[row, group] * (codes[row, part].double() - z) - weight[row, part]).square().sum())
                for z in range(16)
            ]
            if (best := min(range(16), key=fits.__getitem__)) != zeros[row, group]:
                return row, group, best
    return None


def right_q4_0(w):
    largest = max(w.tolist(), key=abs)
    d = largest / -8
    codes = [min(15, int(v / d + 8.5)) if d else 8 for v in w.tolist()]
    scale = torch.tensor([d], dtype=torch.float16).view(torch.uint8).tolist()
    return torch.tensor([*scale, *(codes[j] + 16 * codes[j + 16] for j in range(16))], dtype=torch.uint8)


def right_search(weight, x, rounding):
    best = None
    sizes = x.double().abs().mean(0).tolist()
    for tenth in range(11):
        f = torch.tensor([size ** (tenth / 10) if size else 1.0 for size in sizes])
        off = rounding(weight * f).div(f).sub(weight)
        error = torch.einsum("tk,nk->tn", x, off).norm() ** 2
        if best is None or error < best[1]:
            best = [tenth / 10, error]
    return best


def searched_by(w, x, rounding, factors, tenths=range(11)):
    errors = {
        a / 10: float((x @ (rounding(w * factors(x, a / 10)) / factors(x, a / 10) - w).T).norm() ** 2) for a in tenths
    }
    alpha = min(errors, key=errors.get)
    return alpha, errors[alpha]


RIGHT = {
    "00.1": right_megabytes,
    "00.2": right_perplexity,
    "00.3": right_best,
    "01.1": right_scale,
    "01.2": right_codes,
    "01.3": right_bits,
    "02.1": right_cost,
    "02.2": right_pack,
    "02.3": right_groups,
    "02.4": right_stream,
    "03.1": right_int8_product,
    "03.2": right_llm_int8,
    "03.3": right_table,
    "04.1": right_output_error,
    "04.2": right_column,
    "04.3": right_factor,
    "04.4": right_loop,
    "05.1": right_salient,
    "05.2": right_awq_scale,
    "05.3": right_fold,
    "05.4": right_search,
    "06.1": right_smoothing,
    "06.2": right_integers,
    "06.3": right_step,
    "07.1": right_unbeaten,
    "07.2": right_speed,
    "07.3": right_spending,
    "08.1": right_bytes_product,
    "08.2": right_overflow,
    "08.3": right_gain,
    "09.3": right_crossing,
    "10.1": right_awq_word,
    "10.2": right_wrong_zero,
    "10.3": right_q4_0,
}


def two_to_a_byte(codes):
    first, second = codes[::2], [*codes[1::2], 0]
    return torch.tensor([int(code) + 8 * int(second[place]) for place, code in enumerate(first)]).byte()


def forgets_groups_of_a_row(w, bits, g):
    s = w.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (w / s).round() * s


def one_scale_for_all(w, bits, g):
    s = w.abs().max() / (2 ** (bits - 1) - 1)
    return (w / s).round() * s


def divides_by_a_code_too_many(w, bits, g):
    groups = w.reshape(-1, g)
    s = groups.abs().amax(1, keepdim=True) / 2 ** (bits - 1)
    return ((groups / s).round() * s).reshape(w.shape)


def returns_the_codes(w, bits, g):
    groups = w.reshape(-1, g)
    s = groups.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (groups / s).round().reshape(w.shape)


def lesson_01_symmetric(w, bits, g):
    groups = w.reshape(-1, g)
    s = 2 * groups.abs().amax(1, keepdim=True) / (2**bits - 1)
    return ((groups / s).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * s).reshape(w.shape)


def packs_high_first(codes):
    if len(codes) % 2:
        codes = torch.cat([codes, codes.new_zeros(1)])
    return (codes[0::2] * 16 + codes[1::2]).to(torch.uint8)


def loses_the_odd_one(codes):
    even = codes[: len(codes) - len(codes) % 2]
    return (even[0::2] + 16 * even[1::2]).to(torch.uint8)


def shifts_by_three(codes):
    if len(codes) % 2:
        codes = torch.cat([codes, codes.new_zeros(1)])
    return (codes[0::2] | codes[1::2] << 3).to(torch.uint8)


def zero_point_of(lo, hi, bits, steps=None, sign=-1, whole=True):
    lo, hi = min(lo, 0), max(hi, 0)
    s = (hi - lo) / (steps or 2**bits - 1)
    return s, round(sign * lo / s) if whole else sign * lo / s


def with_scales(x, w, sx, sw):
    return ((x / sx).round() @ (w / sw).round().T) * sx * sw.reshape(1, -1)


def row_reach(t):
    return t.abs().amax(1, keepdim=True) / 127


def splits_by(x, w, large):
    return (x * large) @ w.T + right_int8_product(x * ~large, w)


def drops_columns_of_w(x, w, t):
    o = x.abs().amax(0) >= t
    return x[:, o] @ w[:, o].T + right_int8_product(x[:, ~o], w[:, ~o])


def scales_with_outliers(x, w, t):
    o = x.abs().amax(0) >= t
    return x[:, o] @ w[:, o].T + with_scales(x * ~o, w, row_reach(x), row_reach(w))


def table_by(w, table, size, reach):
    blocks = w.reshape(-1, size)
    return (table[(blocks[..., None] / reach(blocks) - table).abs().argmin(-1)] * reach(blocks)[..., 0]).flatten()


def buys(layers, budget, order, stop=False):
    bought = []
    for name, weights, _, _ in sorted(layers, key=order):
        if weights > budget and stop:
            break
        if weights <= budget:
            bought.append(name)
            budget -= weights
    return bought


def moves_by(w, upper, j, step, factor):
    out = right_column(w, upper, j, step)
    out[:, j + 1 :] = w[:, j + 1 :] + factor * (out[:, j + 1 :] - w[:, j + 1 :])
    return out


def full(n, code, x, dtype=torch.uint8):
    return torch.full((n,), code, dtype=dtype), torch.full((n,), x, dtype=torch.int8)


def gain(b, c, g, n, r, f, scale_bits=16, rate=1e9, fixed=1e-6):
    times = [f * fixed + n**2 * (k + scale_bits / g) / 8 / (r * rate) for k in (b, c)]
    return times[0] / times[1]


def crosses(n, k, b, p, operations=2, weight=2, number=2, way=math.ceil):
    each, moved = operations * n * k / p, number * (n + k) / b
    return math.inf if each <= moved else way(weight * n * k / b / (each - moved))


def by_places(*places):
    return lambda word: [word >> 4 * place & 15 for place in places]


def zero_by(change):
    return lambda *case: change(*right_wrong_zero(*case), case[3])


def worst_group(weight, codes, scales, zeros):
    size = weight.shape[1] // zeros.shape[1]
    spread = [t.float().repeat_interleave(size, 1) for t in (scales, zeros)]
    errors = (weight - spread[0] * (codes.float() - spread[1])).square().unflatten(1, (-1, size)).sum(-1)
    row, group = divmod(int(errors.argmax()), zeros.shape[1])
    return row, group, int((codes.float() - weight / spread[0]).unflatten(1, (-1, size)).mean(-1)[row, group].round())


def block(w, d, codes, order=lambda q: q[:16] + 16 * q[16:], turn=False):
    q = torch.full((32,), 8.0) if d == 0 else codes(w / d)
    scale = torch.as_tensor(d).half().reshape(1).view(torch.uint8)
    return torch.cat([scale.flip(0) if turn else scale, order(q).to(torch.uint8)])


def q4_0_codes(steps):
    return (steps + 8.5).floor().clamp(0, 15)


def d_of(w):
    return w[w.abs().argmax()] / -8


WRONG = [
    ("00.1", lambda n, b: n * b / 10**6, "megabits"),
    ("00.1", lambda n, b: n * b / 8 / 1024 / 1024, "mebibytes"),
    ("00.1", lambda n, b: n * b / 8, "counts bytes"),
    ("00.1", lambda n, b: n * b / 8e9, "gigabytes"),
    ("00.2", lambda ps: 1 / (sum(ps) / len(ps)), "one over the mean probability"),
    ("00.2", lambda ps: math.exp(-sum(math.log(p) for p in ps)), "divide by the number of tokens"),
    ("00.2", lambda ps: -sum(math.log(p) for p in ps) / len(ps), "cross-entropy"),
    ("00.2", lambda ps: sum(1 / p for p in ps) / len(ps), "mean of 1/p"),
    ("00.2", lambda ps: math.exp(-sum(math.log2(p) for p in ps) / len(ps)), "log2"),
    ("00.3", lambda rows, budget: sorted(rows, key=lambda r: r[2])[0][0], "ignores the budget"),
    ("00.3", lambda rows, budget: sorted(rows, key=lambda r: r[1])[0][0], "smallest model"),
    ("00.3", lambda rows, budget: sorted((r for r in rows if r[1] < budget), key=lambda r: r[2])[0][0], "<="),
    (
        "00.3",
        lambda rows, budget: sorted((r for r in rows if r[1] <= budget), key=lambda r: -r[1])[0][0],
        "largest model",
    ),
    (
        "00.3",
        lambda rows, budget: sorted((r for r in rows if r[1] <= budget), key=lambda r: -r[2])[0][0],
        "lower is better",
    ),
    ("01.1", lambda lo, hi, b: zero_point_of(lo, hi, b, steps=2**b), "2^b - 1 steps"),
    ("01.1", lambda lo, hi, b: ((hi - lo) / (2**b - 1), round(-lo * (2**b - 1) / (hi - lo))), "zero must be inside"),
    ("01.1", lambda lo, hi, b: zero_point_of(lo, hi, b, sign=1), "wrong sign"),
    ("01.1", lambda lo, hi, b: zero_point_of(lo, hi, b, whole=False), "whole number"),
    ("01.1", lambda lo, hi, b: (max(abs(lo), abs(hi)) / ((2**b - 1) / 2), 2**b // 2), "symmetric"),
    ("01.2", lambda w, s, z, b: ((w / s).trunc() + z).clamp(0, 2**b - 1), "truncates"),
    ("01.2", lambda w, s, z, b: ((w / s).floor() + z).clamp(0, 2**b - 1), "floor"),
    ("01.2", lambda w, s, z, b: (w / s).round() + z, "clamp after adding"),
    ("01.2", lambda w, s, z, b: ((w / s + 0.5).floor() + z).clamp(0, 2**b - 1), "half to even"),
    ("01.2", lambda w, s, z, b: ((w / s).round() - z).clamp(0, 2**b - 1), "added when quantizing"),
    ("01.3", lambda lo, hi, t: math.ceil(math.log2((hi - lo) / t + 1)), "a bit too many"),
    ("01.3", lambda lo, hi, t: int(math.log2((hi - lo) / (2 * t) + 1)), "rounding the bits down"),
    ("01.3", lambda lo, hi, t: math.ceil(math.log2((hi - lo) / 2 / t)), "2^b - 1 steps"),
    ("01.3", lambda lo, hi, t: round(math.log2((hi - lo) / (2 * t) + 1)), "to the nearest"),
    ("02.1", lambda b, g, sym: b, "scales are missing"),
    ("02.1", lambda b, g, sym: b + 16 / g, "zero points are missing"),
    ("02.1", lambda b, g, sym: (b * g + 16 + b) / g, "no zero point"),
    ("02.1", lambda b, g, sym: b + 32 / g + (b / g if not sym else 0), "not 32"),
    ("02.1", lambda b, g, sym: b + (16 if sym else 32) / g, "not 16"),
    ("02.2", packs_high_first, "low four bits"),
    ("02.2", loses_the_odd_one, "odd length is lost"),
    ("02.2", shifts_by_three, "shift of 4"),
    ("02.2", lambda codes: codes.to(torch.uint8), "two codes share one"),
    ("02.4", lambda c: as_bytes(bits_of(c, "big")), "lowest bit comes first"),
    ("02.4", lambda c: as_bytes(bits_of(c), turn=False), "filled from its high end"),
    ("02.4", lambda c: as_bytes(bits_of(c, "big"), turn=False), "from the highest bit to the lowest"),
    ("02.4", lambda c: as_bytes(bits_of(c, width=4)), "four bits"),
    ("02.4", lambda c: as_bytes(bits_of(c))[: 3 * len(c) // 8], "bits are lost"),
    ("02.4", lambda c: as_bytes(bits_of([*c, *[0] * (-len(c) % 8)])), "whole eights"),
    ("02.4", two_to_a_byte, "two bits empty"),
    ("02.4", lambda c: c.byte(), "byte a code"),
    ("02.4", lambda c: as_bytes(bits_of(c)).int(), "return bytes"),
    ("02.3", one_scale_for_all, "whole tensor"),
    ("02.3", forgets_groups_of_a_row, "whole row"),
    ("02.3", lambda w, b, g: right_groups(w.T.contiguous(), b, g).T, "along the outputs"),
    ("02.3", divides_by_a_code_too_many, "does not exist"),
    ("02.3", returns_the_codes, "those are the codes"),
    ("00.2", lambda ps: math.prod(ps) ** (1 / len(ps)), "minus is missing"),
    ("00.3", lambda rows, budget: min([r for r in rows if r[1] <= budget])[0], "compares the names"),
    ("01.1", lambda lo, hi, b: zero_point_of(lo, hi, b)[::-1], "swapped"),
    ("01.1", lambda lo, hi, b: ((s := zero_point_of(lo, hi, b)[0]), int(-min(lo, 0) / s)), "cut off"),
    ("01.1", lambda lo, hi, b: ((s := zero_point_of(lo, hi, b)[0]), math.ceil(-min(lo, 0) / s)), "rounded up"),
    ("01.2", lambda w, s, z, b: (w / s + z).round().clamp(0, 2**b - 1), "round w / s first"),
    ("01.2", lambda w, s, z, b: (w / s + z).clamp(0, 2**b - 1), "whole numbers"),
    ("01.3", lambda lo, hi, t: next(b for b in range(1, 32) if (hi - lo) / (2**b - 1) / 2 < t), "<="),
    ("02.1", lambda b, g, sym: b + (16 + (not sym) * b) // g, "drops the fraction"),
    ("02.1", lambda b, g, sym: b + (16 + b * sym) / g, "wrong way round"),
    ("02.2", lambda codes: (codes[0::2] + 16 * codes[1::2]).to(torch.uint8), "append a 0 first"),
    ("02.2", lambda codes: right_pack(codes).int(), "return bytes"),
    ("02.3", lambda w, b, g: right_groups(w, b, g).reshape(w.shape[0], -1, g), "shape of w"),
    ("02.3", lesson_01_symmetric, "lesson 01's symmetric scale, right there"),
    ("02.3", lambda w, b, g: right_groups(w.T.contiguous(), b, g).T.contiguous(), "along the outputs"),
    ("03.1", lambda x, w: with_scales(x, w, x.abs().max() / 127, row_reach(w)), "one scale serves all tokens"),
    ("03.1", lambda x, w: with_scales(x, w, row_reach(x), w.abs().max() / 127), "one scale serves the whole weight"),
    ("03.1", lambda x, w: with_scales(x, w, row_reach(x) * 127 / 128, row_reach(w) * 127 / 128), "absmax / 127"),
    ("03.1", lambda x, w: (x / row_reach(x)).round() @ (w / row_reach(w)).round().T, "integer sum"),
    ("03.1", lambda x, w: x @ ((w / row_reach(w)).round() * row_reach(w)).T, "only w is quantized"),
    ("03.2", lambda x, w, t: right_int8_product(x, w), "nothing is kept in float"),
    ("03.2", lambda x, w, t: splits_by(x, w, (x.abs() > t).any(0)), ">=, not >"),
    ("03.2", lambda x, w, t: splits_by(x, w, x.abs() >= t), "whole columns"),
    ("03.2", drops_columns_of_w, "quantized once"),
    ("03.2", scales_with_outliers, "what is left"),
    ("03.3", lambda w, t, b: right_table(w, t, len(w)), "each block has its own"),
    ("03.3", lambda w, t, b: table_by(w, t, b, lambda x: x.amax(1)[:, None, None]), ".abs() is missing"),
    ("03.3", lambda w, t, b: table_by(w, t, b, lambda x: x.std(1)[:, None, None]), "standard deviation"),
    ("03.3", lambda w, t, b: right_table(w, t, b).reshape(-1, b), "shape of w"),
    ("04.1", lambda w, v, h: ((w - v) ** 2).sum(), "error of the weights"),
    ("04.1", lambda w, v, h: ((w - v) ** 2 * torch.diag(h)).sum(), "diagonal of h alone"),
    ("04.1", lambda w, v, h: ((w - v) @ h).pow(2).sum(), "holds X twice"),
    ("04.1", lambda w, v, h: ((w - v) @ h @ (w - v).T).sum(), "rows against other rows"),
    ("04.2", lambda w, u, j, s: moves_by(w, u, j, s, 0), "only rounds"),
    ("04.2", lambda w, u, j, s: moves_by(w, u, j, s, -1), "wrong sign"),
    ("04.2", lambda w, u, j, s: moves_by(w, u, j, s, u[j, j]), "divided by U_jj before"),
    ("04.2", lambda w, u, j, s: (w / s).round() * s, "rounds every column"),
    ("04.3", lambda x, d: right_factor(x, d * len(x)), "not its sum"),
    ("04.3", lambda x, d: right_factor(x, d).T, "lower triangular"),
    ("04.3", lambda x, d: right_factor(x, d).T @ right_factor(x, d), "that is H⁻¹"),
    ("04.3", lambda x, d: right_factor(x, d) * x.shape[1] ** 0.5, "number of tokens"),
    (
        "04.4",
        lambda w, x, s, b, d: (w / s[:, None]).round().clamp(-(2 ** (b - 1)), 2 ** (b - 1) - 1) * s[:, None],
        "that is rounding",
    ),
    ("04.4", lambda w, x, s, b, d: right_loop(w, x, s, 20, d), "the codes have limits"),
    ("04.4", lambda w, x, s, b, d: right_loop(w, x, s, b, 0), "damp is not used"),
    ("04.4", lambda w, x, s, b, d: right_loop(w, x, s, b, d * x.shape[1]), "not its sum"),
    ("04.4", lambda w, x, s, b, d: right_loop(w, x, s, b, d) / s[:, None], "those are the codes"),
    ("04.4", lambda w, x, s, b, d: right_loop(w.flip(1), x.flip(1), s, b, d).flip(1), "expected"),
    ("07.1", lambda rows: [r[0] for r in sorted(rows, key=lambda r: r[1])], "sorts all of them"),
    ("07.1", lambda rows: right_unbeaten(rows)[::-1], "begin with the smallest"),
    ("07.1", lambda rows: [min(rows, key=lambda r: r[2])[0]], "only the best of all"),
    ("07.1", lambda rows: sorted(right_unbeaten(rows)), "alphabetical"),
    ("07.2", lambda p, b, m, w: w * 1e9 / (p * b) if p * b / 8 <= m * 1e9 else 0, "gigabits"),
    ("07.2", lambda p, b, m, w: 0 if p * b / 8 > m * 1e9 else p * b / 8 / w / 1e9, "seconds a token"),
    ("07.2", lambda p, b, m, w: w * 8e9 / p / b, "does not fit"),
    ("07.2", lambda p, b, m, w: w * 8e9 / p / b if p * b < m * 8e9 else 0, "at most is <="),
    ("07.3", lambda layers, budget: buys(layers, budget, lambda x: x[3] - x[2]), "divide by its weights"),
    ("07.3", lambda layers, budget: buys(layers, budget, lambda x: -x[2]), "loss at 3 bits"),
    ("07.3", lambda layers, budget: buys(layers, budget, lambda x: (x[3] - x[2]) / x[1], True), "pass over it"),
    ("07.3", lambda layers, budget: buys(layers, budget, lambda x: x[1]), "smallest layers first"),
    ("07.3", lambda layers, budget: sorted(right_spending(layers, budget)), "order they are bought"),
    ("05.1", lambda x, k: sorted(x.abs().max(0).values.topk(k).indices.tolist()), "one strange token"),
    ("05.1", lambda x, k: sorted(x.mean(0).topk(k).indices.tolist()), "signs cancel"),
    ("05.1", lambda x, k: right_salient(x, x.shape[1])[:0] + x.abs().sum(0).topk(k).indices.tolist(), "ascending"),
    ("05.1", lambda x, k: sorted(x.abs().mean(1).topk(k).indices.tolist()), "those are tokens"),
    ("05.1", lambda x, k: sorted(x.abs().sum(0).topk(k, largest=False).indices.tolist()), "smallest"),
    ("05.2", lambda x, a: x.abs().mean(0).pow(a), "last step is missing"),
    ("05.2", lambda x, a: (s := x.abs().amax(0) ** a) / (s.max() * s.min()) ** 0.5, "largest |x|"),
    ("05.2", lambda x, a: (s := x.abs().mean(0) ** a) / s.mean(), "mean of f"),
    ("05.2", lambda x, a: 1 / right_awq_scale(x, a), "that is 1/f"),
    ("05.2", lambda x, a: right_awq_scale(x, 1 - a), "not 1 - alpha"),
    ("05.3", lambda g, w, s: (g * s, w / s), "wrong way round"),
    ("05.3", lambda g, w, s: (g, w * s), "gain is not divided"),
    ("05.3", lambda g, w, s: (g / s, w.clone()), "weight is not multiplied"),
    ("05.3", lambda g, w, s: (g / s, w / s), "both are divided"),
    ("05.3", lambda g, w, s: (g / s, torch.diag(s[: len(w)]) @ w), "multiplies rows"),
    ("05.4", lambda w, x, r: right_search(w, x, r)[::-1], "give α first"),
    ("05.4", lambda w, x, r: searched_by(w, x, r, lambda x, a: x.abs().amax(0) ** a), "takes the largest |x|"),
    ("05.4", lambda w, x, r: searched_by(w, x, r, lambda x, a: x.abs().mean(0) ** -a), "are to grow"),
    ("05.4", lambda w, x, r: searched_by(w, x, r, lambda x, a: x.abs().mean(0) ** a, range(10)), "α = 1 is missing"),
    ("05.4", lambda w, x, r: (right_search(w, x, r)[0], (x @ (r(w) - w).T).square().sum()), "not that without scaling"),
    ("05.4", lambda w, x, r: searched_by(w, x, r, lambda x, a: x.abs().mean(0) ** a), "with a dead channel"),
    ("06.1", lambda x, w, a: right_smoothing(x, w, 1 - a), "swapped"),
    ("06.1", lambda x, w, a: 1 / right_smoothing(x, w, a), "that is 1/f"),
    ("06.1", lambda x, w, a: x.abs().amax(0) ** a, "weights are missing"),
    ("06.1", lambda x, w, a: (x.abs().amax(0) / w.abs().amax(0)) ** a, "exponent 1 - α"),
    ("06.1", lambda x, w, a: x.abs().mean(0) ** a / w.abs().mean(0) ** (1 - a), "takes means"),
    ("06.2", lambda xc, xs, wc, ws: (xc @ wc.T).float() * xs[:, None] * ws, "wraps around"),
    ("06.2", lambda xc, xs, wc, ws: (xc.float() @ wc.float().T) * xs[:, None], "scales of the weight"),
    ("06.2", lambda xc, xs, wc, ws: (xc.float() @ wc.float().T) * ws, "scales of the activations"),
    ("06.2", lambda xc, xs, wc, ws: xc.float() @ wc.float().T, "sums of codes"),
    ("06.3", lambda x, p: 127 * right_step(x, p), "that is the reach"),
    ("06.3", lambda x, p: right_step(x, p) * 127 / 255, "not 255"),
    ("06.3", lambda x, p: right_step(x, p) * 127 / 128, "divide by 127"),
    ("06.3", lambda x, p: right_step(x, 1.0), "min-max"),
    ("06.3", lambda x, p: x.flatten().kthvalue(math.ceil(p * x.numel())).values / 127, "sort the magnitudes"),
    ("08.1", lambda q, x, s, r: float((q.to(torch.int8) * x).sum()) * s * r, "does not fit into int8"),
    ("08.1", lambda q, x, s, r: ((q - 128) * x).sum().item() * s * r, "-1 is 255"),
    ("08.1", lambda q, x, s, r: ((q ^ 128).view(torch.int8) * x).sum() * s * r, "int8 again, and wrap around"),
    ("08.1", lambda q, x, s, r: ((q.short() - 128) * x).cumsum(0, dtype=torch.int16)[-1] * s * r, "their sum does not"),
    ("08.1", lambda q, x, s, r: (q.float() @ x.float()) * s * r, "zero point is missing"),
    ("08.1", lambda q, x, s, r: (q.double() @ x.double() - 128) * s * r, "128 times the sum of x"),
    ("08.1", lambda q, x, s, r: ((q.int() - 127) @ x.int()) * s * r, "middle of 8 bits is 128"),
    ("08.1", lambda q, x, s, r: (q.long() - 128) @ x.long(), "scales are missing"),
    ("08.1", lambda q, x, s, r: ((q.long() - 128) @ x.long()) * s, "scale of the activations"),
    ("08.1", lambda q, x, s, r: ((q.long() - 128) @ x.long()) * r, "scale of the weight"),
    ("08.2", lambda n, c, x: full(n, c, x), "return ()"),
    ("08.2", lambda n, c, x: full(n, c, x) if c * x >= 2**15 else (), "two together need not"),
    ("08.2", lambda n, c, x: full(n, c, x) if 2 * c * x >= 2**16 else (), "signed int16; two together"),
    ("08.2", lambda n, c, x: full(n, c, x) if n * c * x >= 2**31 else (), "you find nothing at all"),
    ("08.2", lambda n, c, x: full(n, c, x) if n * c * x >= 2**15 else (), "only neighbours are added"),
    ("08.2", lambda n, c, x: full(2, c, x) if c * x >= 2**14 else (), "n of each"),
    ("08.2", lambda n, c, x: full(n, c, x, torch.int16) if c * x >= 2**14 else (), "codes of torch.int16"),
    ("08.2", lambda n, c, x: full(n, c, 127) if c * x >= 2**14 else (), "|x| of 127"),
    ("08.2", lambda n, c, x: full(n, 255, x) if c * x >= 2**14 else (), "a code of 255"),
    (
        "08.2",
        lambda n, c, x: (full(n, c, x)[0], torch.tensor([x, -x] * (n // 2)).to(torch.int8)) if c * x >= 2**14 else (),
        "cancel",
    ),
    ("08.2", lambda n, c, x: (n, c) if c * x >= 2**14 else (), "expected 'a wrong sum'"),
    ("08.3", lambda b, c, g, n, r, f: b / c, "codes alone are not all"),
    ("08.3", lambda b, c, g, n, r, f: gain(b, c, g, n, r, f, scale_bits=0), "16 bits for each group"),
    ("08.3", lambda b, c, g, n, r, f: gain(b, c, g, n, r, 0), "fixed time is missing"),
    ("08.3", lambda b, c, g, n, r, f: gain(c, b, g, n, r, f), "wrong way round"),
    ("08.3", lambda b, c, g, n, r, f: gain(b, c, g, n, r / 8, f), "a byte has 8"),
    ("08.3", lambda b, c, g, n, r, f: gain(b, c, g, n, r, f, scale_bits=32), "16 bits, not 32"),
    ("08.3", lambda b, c, g, n, r, f: gain(b, c, g, n, r, f, rate=1e6), "not one"),
    ("08.3", lambda b, c, g, n, r, f: gain(b, c, g, n, r, f, fixed=1e-3), "not a million"),
    ("08.3", lambda b, c, g, n, r, f: (b + 16 / g) / (c + 16 / g) + (f or 0), "before dividing"),
    ("09.3", lambda *a: crosses(*a, operations=1), "are two operations"),
    ("09.3", lambda *a: crosses(*a, weight=0.5), "it still beats bfloat16"),
    ("09.3", lambda *a: crosses(*a, weight=4, number=4), "bfloat16 has 2 bytes"),
    ("09.3", lambda *a: crosses(*a, number=0), "y goes out too"),
    ("09.3", lambda *a: crosses(*a, way=int), "round up"),
    ("09.3", lambda *a: crosses(*a, way=lambda m: m), "tokens are whole"),
    ("09.3", lambda *a: crosses(*a, way=lambda m: int(m) + 1), "as long is long enough"),
    ("09.3", lambda n, k, b, p: math.ceil(p / b), "the ridge in operations a byte"),
    ("09.3", lambda *a: min(crosses(*a), 10**9), "expected inf"),
    ("09.3", lambda *a: crosses(*a, weight=2 + 1 / 64), "expected"),
    ("10.1", by_places(0, 1, 2, 3, 4, 5, 6, 7), "GPTQ's order"),
    ("10.1", by_places(0, 2, 4, 6, 1, 3, 5, 7), "the other way round"),
    ("10.1", by_places(7, 6, 5, 4, 3, 2, 1, 0), "lowest bits"),
    ("10.1", by_places(7, 3, 6, 2, 5, 1, 4, 0), "not in the highest"),
    ("10.1", lambda word: [word >> 4 * p for p in (0, 4, 1, 5, 2, 6, 3, 7)], "mask each"),
    ("10.1", lambda word: [word // 16**p for p in (0, 4, 1, 5, 2, 6, 3, 7)], "mask each"),
    ("10.1", lambda word: [int(word / 16**p) % 16 for p in (0, 4, 1, 5, 2, 6, 3, 7)], "negative word"),
    ("10.1", lambda word: right_awq_word(-word if word < 0 else word), "absolute value"),
    ("10.1", lambda word: right_awq_word(word & 0x7FFFFFFF), "expected"),
    ("10.1", lambda word: right_awq_word(word)[:7], "expected"),
    ("10.2", worst_group, "compare in steps"),
    ("10.2", zero_by(lambda r, g, z, zeros: (r, g, int(zeros[r, g]))), "the one in the file"),
    ("10.2", zero_by(lambda r, g, z, zeros: (g, r, z)), "swapped"),
    ("10.2", zero_by(lambda r, g, z, zeros: (r, g, 2 * int(zeros[r, g]) - z)), "the wrong way"),
    ("10.2", zero_by(lambda r, g, z, zeros: (r, g, int(zeros[r, g]) + 1)), "by how much"),
    ("10.2", zero_by(lambda r, g, z, zeros: (r, g)), "as the third"),
    ("10.2", lambda w, q, s, z: (1, 0, 15), "expected"),
    ("10.2", lambda w, q, s, z: (*right_wrong_zero(w, q, s, z)[:2], 8), "expected"),
    ("10.3", lambda w: block(w, w.abs().max() / 7, lambda s: s.round() + 8), "absmax / 7"),
    ("10.3", lambda w: block(w, w.abs().max() / 8, q4_0_codes), "sign of the largest weight is lost"),
    ("10.3", lambda w: block(w, -w.abs().max() / 8, q4_0_codes), "no absolute value"),
    ("10.3", lambda w: block(w, w.max() / -8, q4_0_codes), "it may be negative"),
    ("10.3", lambda w: block(w, -d_of(w), q4_0_codes), "divide by -8"),
    ("10.3", lambda w: block(w, d_of(w) * 8 / 7, q4_0_codes), "not -7"),
    ("10.3", lambda w: block(w, d_of(w), q4_0_codes, lambda q: q[0::2] + 16 * q[1::2]), "not neighbours"),
    ("10.3", lambda w: block(w, d_of(w), q4_0_codes, lambda q: q[16:] + 16 * q[:16]), "in the upper"),
    ("10.3", lambda w: block(w, d_of(w), q4_0_codes, turn=True), "little-endian"),
    ("10.3", lambda w: torch.cat([right_q4_0(w)[2:], right_q4_0(w)[:2]]), "the scale comes first"),
    ("10.3", lambda w: block(w, d_of(w), lambda s: (s + 8.5).floor()), "clamp to 15"),
    ("10.3", lambda w: block(w, d_of(w), lambda s: (s.round() + 8).clamp(0, 15)), "halves are rounded to even"),
    ("10.3", lambda w: block(w, d_of(w), lambda s: (s + 8).floor().clamp(0, 15)), "add 8.5, not 8"),
    (
        "10.3",
        lambda w: block(w, d_of(w), lambda s: q4_0_codes(w / d_of(w).half().float())),
        "rounded to float16 for the",
    ),
    ("10.3", lambda w: right_q4_0(w) if w.any() else torch.zeros(18, dtype=torch.uint8), "its codes are 8"),
    ("10.3", lambda w: right_q4_0(w).long(), "return bytes"),
    ("10.3", lambda w: right_q4_0(w)[:17], "expected"),
]

# Those whose answer is a kernel are in test_kernels.py and test_numba_kernel.py
KERNELS = {name for name, exercise in exercises.ALL.items() if isinstance(exercise, KernelExercise | NumbaExercise)}


def test_there_are_three_exercises_a_lesson_and_each_has_three_wrong_answers_here():
    assert sorted(RIGHT) == sorted(set(exercises.ALL) - KERNELS)
    for name in RIGHT:
        assert sum(name == wrong for wrong, _, _ in WRONG) >= 3, name


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_a_right_answer_written_otherwise_passes(name):
    verdict = exercises.check(name, RIGHT[name])
    assert verdict.passed is True and "right" in repr(verdict)


@pytest.mark.parametrize(("name", "answer", "words"), WRONG, ids=[f"{n}-{w}" for n, _, w in WRONG])
def test_a_wrong_answer_fails_and_the_message_names_the_mistake(name, answer, words):
    verdict = exercises.check(name, answer)
    assert verdict.passed is False and not verdict
    assert words in verdict.message


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_an_empty_answer_is_not_attempted(name):
    def raises(*arguments):
        raise NotImplementedError

    for answer in (None, ..., lambda *a: None, lambda *a: ..., raises):
        verdict = exercises.check(name, answer)
        assert verdict.passed is None and "not attempted" in verdict.message


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_an_unknown_mistake_is_shown_the_first_input_where_it_differs(name):
    verdict = exercises.check(name, lambda *a: 123456)
    assert verdict.passed is False and "expected" in verdict.message and "123456" in verdict.message


def test_an_answer_that_raises_is_told_what_it_raised_on_which_input():
    verdict = exercises.check("00.2", lambda ps: math.log(-1))
    assert verdict.passed is False and "ValueError" in verdict.message and "[0.1, 0.1]" in verdict.message


def test_an_answer_that_is_no_function_is_refused():
    assert "give the function itself" in exercises.check("00.1", 28.3).message


def test_an_answer_that_writes_into_its_input_is_told_so_and_spoils_nothing():
    def in_place(w, s, z, b):
        return w.div_(s).round_().add_(z).clamp_(0, 2**b - 1)

    verdict = exercises.check("01.2", in_place)
    assert verdict.passed is False and "it changes `w`" in verdict.message and "work on a copy" in verdict.message
    assert exercises.check("01.2", right_codes).passed


def test_a_group_of_zeros_comes_back_as_zeros():
    fake_quantize = exercises.ALL["02.3"].solution
    assert fake_quantize(torch.zeros(2, 8), 4, 4).tolist() == [[0.0] * 8] * 2


def test_the_loop_of_lesson_04_is_the_librarys():
    exercise = exercises.ALL["04.4"]
    for number in range(60):
        w, x, step, bits, damp = exercise.draw(Draw(f"library/{number}"))
        upper, _ = inverse_cholesky((x.double().T @ x.double()), damp)
        zero = torch.full((len(w), 1), 2.0 ** (bits - 1))
        group = torch.zeros(w.shape[1], dtype=torch.int64)
        codes = ops.gptq_columns(w.double(), upper, group, step[:, None], zero, bits).double()
        library = (codes - zero) * step[:, None]
        assert torch.allclose(exercise.solution(w, x, step, bits, damp).double(), library.double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", sorted(exercises.ALL))
def test_it_says_how_long_it_takes_and_how_hard_it_is_and_no_hint_is_the_answer(name):
    exercise = exercises.ALL[name]
    assert 2 <= exercise.minutes <= 30 and exercise.difficulty in DIFFICULTIES
    source = re.sub(r"\s|\"\"\".*?\"\"\"", "", exercise.source(), flags=re.S)
    for hint in exercise.hints:
        hint = re.sub(r"\s", "", hint)
        shared = [hint[at : at + 26] for at in range(len(hint) - 25) if hint[at : at + 26] in source]
        assert not shared, f"a hint of {name} gives the solution away: {shared[0]}"


def test_hints_and_solutions_are_printed(capsys):
    exercises.hint("01.1")
    exercises.hint("01.1", 3)
    exercises.solution("01.1")
    printed = capsys.readouterr().out
    assert "Hint 1 of 3" in printed and "Hint 3 of 3" in printed and "def scale_and_zero_point" in printed


def test_unknown_exercises_and_hints_say_which_exist():
    with pytest.raises(ValueError, match=r"exercise '9\.9' does not exist; there are 00\.1"):
        exercises.check("9.9", None)
    with pytest.raises(ValueError, match="hint 7 of exercise"):
        exercises.hint("01.1", 7)


def test_a_search_says_what_the_inputs_that_were_found_do():
    verdict = exercises.check("08.2", lambda n, c, x: full(n, 0, 0))
    assert "gives 'the right sum', expected 'a wrong sum'" in verdict.message
    assert "for (2, 255, 127)" in verdict.message
    assert (
        "expected 'nothing'"
        in exercises.check("08.2", lambda n, c, x: full(n, c, x) if n != 2 or c == 255 else 5).message
    )


def test_the_careless_product_is_wrong_exactly_where_the_search_says():
    from qkit.exercises.lesson_08 import careless_dot, overflow

    for largest_code, largest_x in ((255, 127), (255, 65), (255, 64), (127, 127), (130, 126), (129, 127), (128, 127)):
        found = overflow(4, largest_code, largest_x)
        codes, x = found or full(4, largest_code, largest_x)
        assert (careless_dot(codes, x) != int((codes.int() * x.int()).sum())) == bool(found)
