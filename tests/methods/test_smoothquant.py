"""SmoothQuant's factor by hand, its search and its static ranges against brute force."""

import numpy as np
import pytest
import torch

from qkit.methods.int8 import fake_int8, static_reach
from qkit.methods.smoothquant import ALPHAS, search_alpha, smoothing_factor
from qkit.methods.statistics import InputStatistics


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seen(x):
    statistics = InputStatistics.empty(x.shape[1], wants=frozenset({"magnitudes"}))
    for part in x.split(100):
        statistics.add(part)
    return statistics


def test_the_factor_of_equation_4_by_hand():
    """The example of the paper's figure 5: X has maxima 16, 1, 9, 1 and W has 2, 1, 2, 1 (α = 1/2)."""
    x, w = torch.tensor([16.0, 1, 9, 1]), torch.tensor([2.0, 1, 2, 1])
    torch.testing.assert_close(smoothing_factor(x, w, 0.5), torch.tensor([8**0.5, 1, 4.5**0.5, 1]))
    torch.testing.assert_close(smoothing_factor(x, w, 0.25), torch.tensor([2 / 2**0.75, 1, 3**0.5 / 2**0.75, 1]))
    torch.testing.assert_close(smoothing_factor(x, w, 1.0), x)
    torch.testing.assert_close(smoothing_factor(x, w, 0.0), 1 / w)


def test_half_makes_the_maxima_of_both_sides_equal():
    x, w = torch.rand(50) * 30 + 0.1, torch.rand(50) + 0.1
    s = smoothing_factor(x, w, 0.5)
    torch.testing.assert_close(x / s, w * s)


def test_a_channel_of_zeros_is_left_alone():
    x, w = torch.tensor([0.0, 2, 3]), torch.tensor([1.0, 0, 3])
    assert smoothing_factor(x, w, 0.7).tolist() == [1, 1, pytest.approx(3**0.7 / 3**0.3)]


def test_fake_int8_rounds_to_255_levels():
    x = torch.tensor([0.0, 1, -1, 0.5, 2, -9, 0.003])
    expected = torch.tensor([0, 1, -1, 64 / 127, 1, -1, 0])
    torch.testing.assert_close(fake_int8(x, torch.tensor(1.0)), expected)
    assert (fake_int8(torch.zeros(3, 4), torch.zeros(3, 1)) == 0).all()


@pytest.mark.parametrize("static", [False, True])
def test_the_losses_of_the_search_are_those_of_w8a8(static):
    """Rewritten in float64 numpy: scale, quantize both sides, multiply as integers."""
    x, weight = random(60, 16), random(12, 16, seed=1)
    x[:, 3] *= 40
    index = torch.arange(16) // 2
    x_absmax = x.abs().amax(0).reshape(8, 2).amax(1)
    w_absmax = weight.abs().amax(0).reshape(8, 2).amax(1)
    losses = search_alpha(weight, x, x_absmax, w_absmax, static, lambda s: s[index])
    assert list(losses) == list(ALPHAS) == [i / 20 for i in range(21)]
    for alpha, loss in losses.items():
        s = (x_absmax.double().numpy() ** alpha / w_absmax.double().numpy() ** (1 - alpha))[index.numpy()]
        a, w = x.double().numpy() / s, weight.double().numpy() * s
        reach = (x_absmax.double().numpy()[index.numpy()] / s).max() if static else np.abs(a).max(1, keepdims=True)
        step = reach / 127
        row = np.abs(w).max(1) / 127
        product = np.rint(a / step).clip(-127, 127) @ np.rint(w / row[:, None]).T
        exact = x.double().numpy() @ weight.double().numpy().T
        expected = ((product * step * row - exact) ** 2).sum() / (exact**2).sum()
        assert loss == pytest.approx(expected, rel=0.02)
    best = min(losses, key=losses.get)
    assert 0 < best <= 1 and losses[best] < 0.3 * losses[0]


def test_min_max_reaches_the_largest():
    x = random(500, 8)
    assert static_reach(seen(x), "min-max") == x.abs().max()


@pytest.mark.parametrize("how", ["min-max", "percentile", "mse"])
@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_a_reach_lies_within_the_largest_and_follows_the_unit(how, unit):
    x = random(400, 8) ** 3
    reach, base = (float(static_reach(seen(x * u), how)) for u in (unit, 1.0))
    assert 0 < reach <= x.abs().max() * unit
    assert reach == pytest.approx(base * unit, rel=0.06)


def test_the_percentile_leaves_one_in_10_000_outside():
    x = random(4000, 50) ** 3
    x[17, 4] = 1000
    reach = float(static_reach(seen(x), "percentile"))
    exact = float(np.quantile(x.abs().numpy(), 0.9999))
    assert exact <= reach * (1 + 1e-6) and reach <= exact * 2 ** (1 / 32) * 1.001  # within a bin, never below
    assert (x.abs() > reach).float().mean() <= 1e-4


@pytest.mark.parametrize(("power", "outlier"), [(1, 3.0), (3, 3.0), (1, 20.0)])
def test_the_range_of_least_squared_error_is_that_of_brute_force(power, outlier):
    x = random(20000, 10) ** power
    x[17, 4] = outlier
    statistics = seen(x)
    values, largest = x.abs().flatten().double().numpy(), float(x.abs().max())

    def cost(reach):
        return ((np.rint(values * 127 / reach).clip(-127, 127) * reach / 127 - values) ** 2).sum()

    least = min(cost(reach) for reach in largest * np.linspace(1, 0.02, 100))
    found = float(static_reach(statistics, "mse"))
    assert cost(found) <= 1.05 * least
    if outlier == 20:
        assert found < 0.6 * largest and cost(found) < 0.7 * cost(largest)


def test_inputs_that_are_all_zero_have_no_reach():
    for how in ("min-max", "percentile", "mse"):
        assert static_reach(seen(torch.zeros(5, 4)), how) == 0


def test_the_largest_is_never_exceeded_by_an_edge():
    x = torch.full((10, 4), 3.0)
    for how in ("min-max", "percentile", "mse"):
        assert static_reach(seen(x), how) <= 3.0
