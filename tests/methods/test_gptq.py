"""GPTQ against the published algorithm written apart, against OBQ, against its slow form, and on the shapes that break."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from grids import thinned
from qkit import GPTQ, RTN, ops, quantize_tensor
from qkit.dispatch import rows_of
from qkit.methods.gptq import LAZY, choose_grid, damped, gptq, gptq_slow, inverse_cholesky, matched, refit
from qkit.methods.statistics import InputStatistics
from qkit.numerics.mapping import choose_scale, grouped, value_range

WANTS = frozenset({"square", "drift"})


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs_of(features, tokens=None, seed=0, drift=0.0, dead=()):
    """Statistics of correlated inputs with channels of very different sizes, and the inputs."""
    tokens = tokens or 3 * features
    x = random(tokens, features, seed=seed) @ (torch.eye(features) + random(features, features, seed=seed + 1) / 4)
    x = x * torch.logspace(-1, 1, features)[torch.randperm(features, generator=torch.Generator().manual_seed(seed))]
    x[:, list(dead)] = 0
    statistics = InputStatistics.empty(features, wants=WANTS)
    original = x + drift * random(tokens, features, seed=seed + 2)
    for part, twin in zip(x.split(50), original.split(50), strict=True):
        statistics.add(part, twin)
    return statistics, x


def same(a, b):
    assert torch.equal(a.q.codes(), b.q.codes())
    assert torch.equal(a.q.scales, b.q.scales) and a.q.scales.dtype == b.q.scales.dtype
    assert torch.equal(a.q.zeros(), b.q.zeros())
    assert a.damp == b.damp


def output_error(weight, q, x):
    return float(((q.dequantize().double() - weight.double()) @ x.double().T).square().sum())


# --- the fast form and the slow one -------------------------------------------------------------------------------------

GRIDS = [(2, False), (3, True), (4, False), (8, True)]
GROUPINGS = [(32, True, True), (32, False, True), (32, False, False), (40, True, True), (40, False, False)]
GROUPINGS += [(None, True, True), (None, True, False), (None, False, False)]
UNLIKE = [((2, False), (32, False, False)), ((3, True), (40, True, True)), ((4, False), (32, True, True))]
UNLIKE += [((8, True), (None, False, False)), ((4, False), (40, False, False))]


@pytest.mark.parametrize("case", thinned(itertools.product(GRIDS, GROUPINGS), UNLIKE), ids=str)
def test_the_fast_form_is_the_slow_one(case):
    """On 160 inputs, more than one batch of columns; groups of 40 straddle two batches."""
    assert LAZY < 160
    (bits, symmetric), (group_size, act_order, static_groups) = case
    weight, (statistics, _) = random(5, 160), inputs_of(160, drift=0.1)
    scheme = GPTQ(bits, group_size, symmetric, act_order, static_groups=static_groups)
    if bits in (3, 4):
        scheme = replace(scheme, scale_search=False, refit_scales=False, match_original=False)
    same(gptq(weight, statistics, scheme), gptq_slow(weight, statistics, scheme))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [32, 40, 160])
@pytest.mark.parametrize("rows", [1, 9])
def test_every_backend_rounds_the_columns_to_the_same_codes(bits, size, rows):
    """On 160 inputs, more than one batch, in an order that mixes the groups."""
    weight, order = random(rows, 160).double(), torch.randperm(160, generator=torch.Generator().manual_seed(1))
    mixed = random(300, 160, seed=2).double() + 1
    upper, _ = inverse_cholesky(mixed.T @ mixed / 300, 0.01)
    scale, zero = choose_scale(*value_range(weight.reshape(rows, -1, size)), bits)
    args = (weight[:, order], upper, order // size, scale[..., 0], zero[..., 0], bits)
    here = [kernel.backend for kernel in rows_of("gptq_columns") if not kernel.devices or "cpu" in kernel.devices]
    codes = [ops.gptq_columns(*args, backend=backend) for backend in here]
    assert len(codes) == 2 and all(torch.equal(one, codes[0]) for one in codes) and codes[0].unique().numel() > 2


@pytest.mark.parametrize("size", [20, 32, 131])
def test_every_backend_takes_the_grids_of_moving_groups_from_the_same_weights(size):
    """On two batches of columns and a part of one: the codes, and the grids that were taken on the way."""
    weight, inputs = random(9, 2 * size * -(-150 // size)), random(700, 2 * size * -(-150 // size), seed=2).double() + 1
    upper, _ = inverse_cholesky(inputs.T @ inputs / 700, 0.01)
    groups, found = weight.shape[1] // size, {}

    def regrid(w, j):
        return choose_scale(w[:, j : j + size].amin(1), w[:, j : j + size].amax(1), 3) if j % size == 0 else None

    for kernel in rows_of("gptq_moving_columns"):
        if not kernel.devices or "cpu" in kernel.devices:
            scale, zero = torch.ones(9, groups), torch.zeros(9, groups)
            args = (weight.double(), upper, torch.arange(weight.shape[1]) // size, scale, zero, 3)
            found[kernel.backend] = ops.gptq_columns(*args, backend=kernel.backend, regrid=regrid), scale, zero
    assert set(found) == {"numba", "torch"} and all(map(torch.equal, *found.values()))
    assert (found["numba"][1] != 1).all() and found["numba"][0].unique().numel() == 8


ODD = {
    "one row": random(1, 48),
    "17 x 33": random(17, 33),
    "a prime": random(4, 131),
    "one input": random(5, 1),
    "one weight": random(1, 1),
    "zeros": torch.zeros(3, 32),
    "a zero row": random(3, 32) * torch.tensor([[1.0], [0.0], [1.0]]),
    "all positive": random(6, 32).abs() + 0.5,
    "all negative": -random(6, 32).abs() - 0.5,
    "one outlier": random(6, 64).index_put((torch.tensor(2), torch.tensor(11)), torch.tensor(500.0)),
    "tiny": random(4, 32) * 1e-20,
    "huge": random(4, 32) * 1e20,
    "at the end of float16": random(4, 32) * 2e5,
}


@pytest.mark.parametrize("scheme", [GPTQ(4, None), GPTQ.paper(3, None), GPTQ(2, None, symmetric=True)], ids=str)
@pytest.mark.parametrize("name", ODD)
def test_odd_weights(name, scheme):
    weight = ODD[name]
    statistics, _ = inputs_of(weight.shape[1], tokens=200, drift=0.1)
    fast = gptq(weight, statistics, scheme)
    same(fast, gptq_slow(weight, statistics, scheme))
    values = fast.q.dequantize()
    assert values.isfinite().all() and fast.q.scales.isfinite().all() and (fast.q.scales > 0).all()
    assert (values[(weight == 0).all(1)] == 0).all()


@pytest.mark.parametrize("scheme", [GPTQ(4, 16), GPTQ.paper(4, 16, symmetric=False)], ids=lambda s: s.name)
def test_moving_groups_whose_weights_leave_float16_keep_their_steps(scheme):
    """The first group is at home in float16, the others far below it."""
    weight = random(4, 64)
    weight[:, 16:] *= 1e-7
    statistics, _ = inputs_of(64)
    fast = gptq(weight, statistics, scheme)
    same(fast, gptq_slow(weight, statistics, scheme))
    assert fast.q.scales.dtype == torch.float32
    assert fast.q.dequantize().isfinite().all()


def test_a_layer_that_saw_nothing_is_rounded_to_nearest():
    weight = random(6, 64)
    scheme = GPTQ(4, 32, scale_search=False, refit_scales=False)
    expected = quantize_tensor(weight, RTN(4, 32))
    for statistics in (None, InputStatistics.empty(64, wants=WANTS)):
        q = gptq(weight, statistics, scheme).q
        assert torch.equal(q.packed, expected.packed) and torch.equal(q.scales, expected.scales)


def test_inputs_that_were_always_zero_are_rounded_to_nearest_and_move_nothing():
    weight, dead = random(6, 64), [0, 9, 40, 63]
    statistics, _ = inputs_of(64, dead=dead)
    live = [j for j in range(64) if j not in dead]
    scheme = GPTQ.paper(4, None, symmetric=True)
    q = gptq(weight, statistics, scheme).q
    rounded = quantize_tensor(weight, RTN(4, None, symmetric=True))
    assert torch.equal(q.codes()[:, dead], rounded.codes()[:, dead])
    changed = weight.clone()
    changed[:, dead] *= 0.5  # not the largest of their rows
    assert torch.equal(gptq(changed, statistics, scheme).q.codes()[:, live], q.codes()[:, live])


@pytest.mark.parametrize("scheme", [GPTQ(3, 16), GPTQ.paper(3, 16)], ids=lambda s: s.name)
@pytest.mark.parametrize("dead", [(), (3, 17)])
def test_the_unit_of_the_inputs_does_not_matter(scheme, dead):
    """Also beside inputs that were always zero, which have no unit."""
    weight = random(6, 64)
    statistics, x = inputs_of(64, dead=dead)
    reference = gptq(weight, statistics, scheme)
    for unit in (2.0**-12, 2.0**12):
        scaled = InputStatistics.empty(64, wants=WANTS)
        for part in x.split(50):
            scaled.add(part * unit)
        scaled.drift = statistics.drift * unit**2
        found = gptq(weight, scaled, scheme)
        assert torch.equal(found.q.codes(), reference.q.codes())
        assert torch.equal(found.q.scales, reference.q.scales)


def test_fewer_tokens_than_inputs():
    weight = random(8, 64)
    statistics, x = inputs_of(64, tokens=20)
    solution = gptq(weight, statistics, GPTQ(4, 32))
    assert solution.damp == 0.05  # enough
    assert output_error(weight, solution.q, x) < output_error(weight, quantize_tensor(weight, RTN(4, 32)), x)


def test_without_damping_a_hessian_of_too_few_tokens_is_damped_until_it_works_and_says_so():
    weight = random(8, 64)
    statistics, x = inputs_of(64, tokens=20)
    solution = gptq(weight, statistics, GPTQ(4, 32, damp=0.0, shrink=0.0))
    assert 0 < solution.damp <= 1e-3
    assert np.log10(solution.damp / 1e-6) == pytest.approx(round(np.log10(solution.damp / 1e-6)))
    assert solution.q.dequantize().isfinite().all()
    assert output_error(weight, solution.q, x) < output_error(weight, quantize_tensor(weight, RTN(4, 32)), x)


def test_a_hessian_of_one_token():
    weight = random(8, 32)
    statistics, _ = inputs_of(32, tokens=1)
    solution = gptq(weight, statistics, GPTQ(4, 32, damp=0.0, shrink=0.0))
    assert solution.damp > 0 and solution.q.dequantize().isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused(bad):
    statistics, _ = inputs_of(8)
    statistics.abssum[3] = bad
    with pytest.raises(
        ValueError, match=r"calibration statistics of layer 7 \(sums of .*\) holds . NaN and . infinite"
    ):
        gptq(random(2, 8), statistics, GPTQ(4, None), "layer 7")


def test_the_weight_is_not_written_into():
    weight, (statistics, _) = random(4, 32), inputs_of(32, drift=0.3)
    before = weight.clone(), statistics.square.clone(), statistics.drift.clone()
    gptq(weight, statistics, GPTQ(4, 16))
    gptq_slow(weight, statistics, GPTQ.paper(4, 16))
    after = weight, statistics.square, statistics.drift
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# --- the published algorithm, written apart in numpy --------------------------------------------------------------------


def numpy_grid(block, bits, symmetric):
    """Scale and zero point [rows] of a block [rows, g], in float32, the scale in float16 rounded up."""
    lo, hi = np.minimum(block.min(1), 0).astype(np.float32), np.maximum(block.max(1), 0).astype(np.float32)
    if symmetric:
        hi = np.maximum(-lo, hi)
        lo = -hi
    scale = (hi - lo) / np.float32(2**bits - 1)
    half = scale.astype(np.float16)
    half = np.where(half.astype(np.float32) < scale, np.nextafter(half, np.float16(np.inf)), half).astype(np.float32)
    return half, np.full_like(half, 2 ** (bits - 1)) if symmetric else np.rint(-lo / half)


def numpy_codes(w, scale, zero, bits):
    return np.clip(np.rint(w.astype(np.float32) / scale) + zero, 0, 2**bits - 1)


def published(weight, hessian, bits, group_size, symmetric, act_order, static_groups, percdamp=0.01, blocksize=128):
    """Algorithm 1 of 2210.17323 with the options of its authors' code, in float64 but for the grid.

    That code writes 1 on the diagonal for inputs that were always zero; here, as in qkit, it is the mean of the others.
    """
    w, h = weight.numpy().astype(np.float64), hessian.copy()
    rows, columns = w.shape
    size = group_size or columns
    dead = np.diag(h) == 0
    h[dead, dead] = np.diag(h)[~dead].mean()
    static = [numpy_grid(w[:, i : i + size], bits, symmetric) for i in range(0, columns, size)]
    perm = np.argsort(-np.diag(h), kind="stable") if act_order else np.arange(columns)
    w, h = w[:, perm], h[perm][:, perm]
    h[np.arange(columns), np.arange(columns)] += percdamp * np.diag(h).mean()
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    codes, scales, zeros = np.zeros((rows, columns)), {}, {}
    for i1 in range(0, columns, blocksize):
        i2 = min(i1 + blocksize, columns)
        err = np.zeros((rows, i2 - i1))
        part = w[:, i1:i2].copy()
        for i in range(i1, i2):
            group = perm[i] // size
            if static_groups:
                scale, zero = static[group]
            elif i % size == 0:
                scale, zero = numpy_grid(w[:, i : i + size], bits, symmetric)
            scales[group], zeros[group] = scale, zero
            q = numpy_codes(part[:, i - i1], scale, zero, bits)
            codes[:, perm[i]] = q
            err[:, i - i1] = (part[:, i - i1] - scale * (q - zero)) / upper[i, i]
            part[:, i - i1 :] -= err[:, i - i1, None] * upper[i, i:i2]
        w[:, i2:] -= err @ upper[i1:i2, i2:]
    groups = sorted(scales)
    return codes, np.stack([scales[g] for g in groups], 1), np.stack([zeros[g] for g in groups], 1)


@pytest.mark.parametrize(("bits", "symmetric"), [*GRIDS, (4, True), (8, False)])
@pytest.mark.parametrize(
    ("group_size", "act_order", "static_groups"),
    [
        (32, True, True),
        (32, False, False),
        (50, False, False),
        (50, False, True),
        (None, True, True),
        (None, False, False),
    ],
)
@pytest.mark.parametrize("dead", [(), (5, 177)])
def test_without_the_later_additions_it_is_the_published_algorithm(
    bits, symmetric, group_size, act_order, static_groups, dead
):
    columns = 200 if group_size == 50 else 288
    weight, (statistics, _) = random(7, columns), inputs_of(columns, dead=dead)
    scheme = replace(GPTQ.paper(bits, group_size, symmetric, act_order), static_groups=static_groups)
    q = gptq(weight, statistics, scheme).q
    hessian = statistics.hessian.double().numpy()
    codes, scales, zeros = published(weight, hessian, bits, group_size, symmetric, act_order, static_groups)
    np.testing.assert_array_equal(q.scales.float().numpy(), scales)
    np.testing.assert_array_equal(q.zeros().numpy(), zeros)
    np.testing.assert_array_equal(q.codes().numpy(), codes)


def obq(weight, hessian, order, scale, zero, bits):
    """2208.11580, eq. 3 and 4 in a given order, each row by itself, with the inverse Hessian eliminated explicitly."""
    codes = np.zeros(weight.shape)
    for row, w in enumerate(weight.numpy().astype(np.float64)):
        inverse = np.linalg.inv(hessian)
        for j in order:
            q = numpy_codes(w[j], scale[row, j], zero[row, j], bits)
            codes[row, j] = q
            w = w - (w[j] - scale[row, j] * (q - zero[row, j])) / inverse[j, j] * inverse[j]
            inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
            inverse[j, :] = inverse[:, j] = 0
    return codes


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [2, 4])
def test_it_is_optimal_brain_quantization_in_a_fixed_order(bits, act_order):
    weight, (statistics, _) = random(6, 144), inputs_of(144)
    scheme = replace(GPTQ.paper(bits, 48, False, act_order), static_groups=True)
    hessian = damped(statistics.hessian.double(), scheme.damp, 0.0).numpy()
    order = np.argsort(-np.diag(hessian), kind="stable") if act_order else range(144)
    q = gptq(weight, statistics, scheme).q
    scale, zero = (t.float().repeat_interleave(48, 1).numpy() for t in (q.scales, q.zeros()))
    np.testing.assert_array_equal(q.codes().numpy(), obq(weight, hessian, order, scale, zero, bits))


# --- its parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [500, 40])
@pytest.mark.parametrize(("damp", "shrink"), [(0.01, 0.0), (0.05, 0.3)])
def test_the_factor_is_that_of_the_inverse(tokens, damp, shrink):
    hessian = inputs_of(60, tokens)[0].hessian.double()
    upper, taken = inverse_cholesky(hessian, damp, shrink)
    full = hessian.numpy() * (1 + shrink * np.eye(60)) + damp * np.trace(hessian.numpy()) / 60 * np.eye(60)
    np.testing.assert_allclose(damped(hessian, damp, shrink).numpy(), full, rtol=1e-14)
    assert taken == damp
    assert torch.equal(upper, upper.triu())
    np.testing.assert_allclose(upper.T.numpy() @ upper.numpy() @ full, np.eye(60), atol=1e-9)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [16, None])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_its_output_error_is_less_than_that_of_rounding(bits, group_size, act_order):
    weight = random(16, 96)
    statistics, x = inputs_of(96, tokens=400)
    rounded = output_error(weight, quantize_tensor(weight, RTN(bits, group_size)), x)
    for scheme in (GPTQ.paper(bits, group_size, False, act_order), GPTQ(bits, group_size, act_order=act_order)):
        assert output_error(weight, gptq(weight, statistics, scheme).q, x) < 0.8 * rounded


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_searched_grid_costs_no_more_than_minimum_to_maximum(bits, symmetric):
    groups = grouped(random(8, 96) ** 3, 32)
    importance = random(3, 32, seed=1).square()

    def cost(scale, zero):
        codes = ((groups / scale.float()).round() + zero).clamp(0, 2**bits - 1)
        return ((scale.float() * (codes - zero) - groups).square() * importance).sum(-1).double()

    plain, searched = (
        cost(*choose_grid(groups, importance, GPTQ(bits, 32, symmetric, scale_search=s))) for s in (False, True)
    )
    assert (searched <= plain).all()
    if bits <= 4:
        assert searched.sum() < 0.97 * plain.sum()


def test_a_searched_grid_is_the_best_of_25_narrower_ranges():
    groups, importance = grouped(random(2, 16) ** 3, 8), random(2, 8, seed=1).square()
    scale, zero = choose_grid(groups, importance, GPTQ(3, 8, scale_dtype="float32"))
    for row, group in itertools.product(range(2), range(2)):
        w, weigh = groups[row, group].double(), importance[group].double()
        best = np.inf
        for share in np.linspace(1, 0.4, 25):
            lo, hi = min(float(w.min()) * share, 0), max(float(w.max()) * share, 0)
            s = (hi - lo) / 7
            z = round(-lo / s)
            values = ((w / s).round() + z).clamp(0, 7).sub(z) * s
            best = min(best, float(((values - w).square() * weigh).sum()))
        s, z = float(scale[row, group]), float(zero[row, group])
        found = float(((((w / s).round() + z).clamp(0, 7) - z) * s - w).square().mul(weigh).sum())
        assert found == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("tokens", [400, 30])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group_size", [8, 24, None])
def test_refitting_the_scales_never_costs(bits, symmetric, group_size, tokens):
    """On what it minimises, (w - ŵ) H (w - ŵ)ᵀ, row by row, but for the rounding of the scales to 11 bits."""
    weight = random(32, 96).double()
    statistics, _ = inputs_of(96, tokens)
    scheme = GPTQ(bits, group_size, symmetric, refit_scales=False)
    q = gptq(weight, statistics, scheme).q
    hessian = damped(statistics.hessian.double(), 0.05, 0.3)

    def cost(scale):
        error = weight - (scale.double()[..., None] * (q.codes().reshape(32, len(scale[0]), -1) - c)).reshape(32, 96)
        return ((error @ hessian) * error).sum(1)

    c = q.zeros().double()[..., None]
    exact = refit(weight, hessian, q.codes(), q.scales.float(), q.zeros())
    assert (cost(exact) <= cost(q.scales) * (1 + 1e-6)).all()
    stored = refit(weight, hessian, q.codes(), q.scales, q.zeros())
    assert stored.dtype == torch.float16 and ((stored.float() - exact).abs() <= exact * 2**-11 * 1.001).all()
    assert cost(stored).sum() < cost(q.scales).sum()


def test_refitted_scales_solve_the_least_squares_problem():
    weight = random(4, 32).double()
    statistics, _ = inputs_of(32)
    q = gptq(weight, statistics, GPTQ(4, 8, refit_scales=False, scale_dtype="float32")).q
    hessian = statistics.square.double()
    root = torch.linalg.cholesky(hessian)
    found = refit(weight, hessian, q.codes(), q.scales.double(), q.zeros())
    for row in range(4):
        c = (q.codes()[row].double().reshape(4, 8) - q.zeros()[row, :, None]).flatten()
        columns = torch.stack([root.T @ (c * (torch.arange(32) // 8 == g)) for g in range(4)], 1)
        expected = torch.linalg.lstsq(columns, (root.T @ weight[row])[:, None]).solution[:, 0]
        torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=0)


def test_refit_keeps_the_scale_of_a_group_of_zeros():
    weight = random(3, 32).double()
    weight[1, 8:16] = 0
    q = gptq(weight, inputs_of(32)[0], GPTQ(4, 8, scale_search=False, match_original=False)).q
    assert q.scales[1, 1] == 1


def test_a_matched_weight_is_the_least_squares_solution_for_the_inputs_it_will_see():
    """min over V of ||V x - W x₀||², with a ridge that draws V to W: torch's solver on the stacked system."""
    weight = random(5, 24, dtype=torch.float64)
    x, original = random(200, 24, seed=1, dtype=torch.float64), random(200, 24, seed=2, dtype=torch.float64)
    original = x + 0.3 * original
    ridge = random(24, seed=3, dtype=torch.float64).square()
    found = matched(weight, x.T @ x + torch.diag(ridge), (original - x).T @ x)
    system = torch.cat([x, torch.diag(ridge.sqrt())])
    target = torch.cat([original @ weight.T, ridge.sqrt()[:, None] * weight.T])
    expected = torch.linalg.lstsq(system, target, driver="gelsd").solution.T
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_matching_is_what_gptq_does_before_it_rounds():
    weight = random(6, 48)
    statistics, _ = inputs_of(48, drift=0.5)
    scheme = GPTQ(4, 16)
    hessian = damped(statistics.hessian.double(), scheme.damp, scheme.shrink)
    target = matched(weight.double(), hessian, statistics.drift.double() / statistics.tokens)
    same(gptq(weight, statistics, scheme), gptq(target, statistics, replace(scheme, match_original=False)))
    assert not torch.equal(target.float(), weight)


def test_matching_brings_the_outputs_nearer_to_the_original_ones():
    weight = random(16, 48)
    x = random(500, 48) @ (torch.eye(48) + random(48, 48, seed=1) / 4)
    original = x + 0.3 * (x @ random(48, 48, seed=2)) / 48**0.5
    statistics = InputStatistics.empty(48, wants=WANTS)
    statistics.add(x, original)
    errors = []
    for match in (True, False):
        q = gptq(weight, statistics, GPTQ(4, 16, match_original=match)).q
        errors.append(float((x @ q.dequantize().T - original @ weight.T).square().sum()))
    assert errors[0] < 0.5 * errors[1]


def test_act_order_rounds_the_loudest_input_first_when_nothing_has_been_added_to_it():
    """Its codes are then those of rounding to nearest; without the order, those of the first column are."""
    weight, (statistics, _) = random(32, 48), inputs_of(48)
    loudest = int(statistics.hessian.diagonal().argmax())
    assert loudest != 0
    rounded = quantize_tensor(weight, RTN(3, None, symmetric=True)).codes()
    for act_order, column in ((True, loudest), (False, 0)):
        codes = gptq(weight, statistics, GPTQ.paper(3, None, True, act_order)).q.codes()
        assert torch.equal(codes[:, column], rounded[:, column])
        assert not torch.equal(codes, rounded)


def test_with_one_group_a_row_moving_and_static_groups_are_the_same():
    weight, (statistics, _) = random(8, 64), inputs_of(64)
    for act_order in (False, True):
        a, b = (gptq(weight, statistics, GPTQ(3, None, act_order=act_order, static_groups=s)) for s in (True, False))
        same(a, b)


def test_damping_grows_tenfold_until_the_hessian_is_positive():
    hessian = torch.diag(torch.tensor([1.0, 1.0, 1.0, -5e-5], dtype=torch.float64))
    assert inverse_cholesky(hessian, 0.0)[1] == pytest.approx(1e-4)
    assert inverse_cholesky(hessian, 2e-5)[1] == pytest.approx(2e-4)
    assert inverse_cholesky(hessian, 1e-2)[1] == 1e-2


def test_scales_are_fitted_a_few_rows_at_a_time(monkeypatch):
    weight, (statistics, _) = random(7, 96), inputs_of(96, drift=0.1)
    whole = gptq(weight, statistics, GPTQ(4, 32))
    for rows in (0.5, 1, 3):
        monkeypatch.setattr("qkit.methods.gptq.REFIT", int(rows * 3 * 96))
        same(gptq(weight, statistics, GPTQ(4, 32)), whole)
