"""The groups of a quantized weight, whatever shares a scale, and the levels that each can hold."""

import numpy as np
import pytest
import torch

import qkit
from qkit.study.anatomy.weights import group_by_scale, group_errors, histogram, levels, members, plain_weight

SCHEMES = {
    "tensor": qkit.RTN(3, "tensor"),
    "row": qkit.RTN(3),
    "groups": qkit.RTN(3, 32, symmetric=True),
    "offsets": qkit.RTN(4, 32, include_zero=False),
    "8 bits": qkit.RTN(8, 32, include_zero=False),
    "NF4": qkit.NF4(64, double_quant=False),
    "NF4 over rows": qkit.NF4(128),
    "FP4": qkit.FP4(32),
}


def weights():
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(16, 96, generator=generator) * 0.1
    return {
        "whole": whole,
        "tail": whole[:5].clone(),
        "one row": whole[:1].clone(),
        "zeros": torch.zeros(4, 96),
        "far from zero": 5 + 0.1 * whole,
    }


@pytest.fixture
def weight():
    return weights()["whole"]


@pytest.mark.parametrize("group_size", ["tensor", None, 32])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_grid_is_the_values_that_the_group_can_hold(weight, group_size, symmetric):
    q = qkit.quantize_tensor(weight, bits=3, group_size=group_size, symmetric=symmetric)
    row, group = group_by_scale(q, 1.0)
    assert q.scales[row, group] == q.scales.max()
    grid = levels(q, row, group)
    members = q.dequantize().reshape(*q.scales.shape, -1)[row, group]
    assert len(grid) == 8
    assert np.abs(members.numpy()[:, None] - grid).min(1).max() < 1e-6


@pytest.fixture(params=SCHEMES)
def scheme(request):
    return SCHEMES[request.param]


@pytest.fixture(params=weights())
def any_weight(request):
    return weights()[request.param]


def test_every_weight_is_in_one_group_and_on_one_of_its_levels(any_weight, scheme):
    q = qkit.quantize_tensor(any_weight, scheme)
    rows, groups = q.stretch().shape
    places = torch.arange(any_weight.numel()).reshape(any_weight.shape)
    seen = []
    for row in range(rows):
        for group in range(groups):
            grid = levels(q, row, group)
            assert (np.diff(grid) > 0).all() and len(grid) <= 2**q.bits
            held = members(q.dequantize(), q, row, group).double().numpy()
            assert np.abs(held[:, None] - grid).min(1).max() < 1e-6
            seen.append(members(places, q, row, group))
    assert torch.cat(seen).tolist() == list(range(any_weight.numel()))


def test_the_widest_group_is_the_one_with_the_widest_range(any_weight, scheme):
    q = qkit.quantize_tensor(any_weight, scheme)
    widest, median = (levels(q, *group_by_scale(q, quantile)) for quantile in (1.0, 0.5))
    assert np.ptp(widest) >= np.ptp(median)
    row, group = group_by_scale(q, 1.0)
    assert q.stretch()[row, group] == q.stretch().max()


def test_errors_lie_under_the_sawtooth_and_within_the_bound(any_weight, scheme):
    q = qkit.quantize_tensor(any_weight, scheme)
    found = group_errors(any_weight, q, *group_by_scale(q, 1.0))
    assert len(found.sweep) == len(found.tooth) == 2 * len(found.levels)
    assert (np.diff(found.sweep) >= 0).all() and np.abs(found.tooth).max() == pytest.approx(found.bound)
    spare = 0.01 * np.abs(any_weight.numpy()).max()  # what double quantization takes off the ends
    assert np.abs(found.errors).max() <= found.bound * (1 + 1e-4) + spare
    assert np.allclose(found.tooth, np.repeat(found.levels, 2) - found.sweep)
    assert found.even == scheme.name.startswith("RTN")


def test_all_weights_are_counted(any_weight, scheme):
    counted = histogram(any_weight, qkit.quantize_tensor(any_weight, scheme))
    assert counted.before.sum() == counted.after.sum() == any_weight.numel()
    assert len(counted.edges) == len(counted.before) + 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_or_of_another_shape_is_refused(weight, bad):
    q = qkit.quantize_tensor(weight, bits=4)
    with pytest.raises(ValueError, match=r"up_proj is \(8, 96\) and its quantized form \(16, 96\)"):
        plain_weight(weight[:8], q, "up_proj")
    broken = weight.clone()
    broken[0, 0] = bad
    with pytest.raises(ValueError, match="up_proj holds"):
        plain_weight(broken, q, "up_proj")
