"""AWQ's search against brute force on real inputs."""

import numpy as np
import pytest
import torch

import qkit
from qkit import AWQ, GPTQ, RTN, quantize, quantize_tensor, search_scales
from qkit.methods.awq import awq_round, awq_scale, output_loss, relative_magnitude, round_to_nearest, search_scale
from qkit.methods.statistics import InputStatistics
from qkit.model.blocks import capture
from qkit.model.calibration import collect
from qkit.model.surgery import clone, weight_of
from qkit.text.tokens import calibration_chunks


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uneven(features=64, tokens=300, seed=0):
    """Inputs of which a few channels are loud, and their statistics."""
    x = random(tokens, features, seed=seed) @ (torch.eye(features) + random(features, features, seed=seed + 1) / 10)
    x[:, ::9] *= 12
    statistics = InputStatistics.empty(features, wants=frozenset({"square"}))
    statistics.add(x)
    return x, statistics


def rounded(weight, scheme):
    return quantize_tensor(weight, RTN(scheme.bits, scheme.group_size, scheme.symmetric)).dequantize()


def brute_force(weight, x, scale, scheme):
    """||(Q(W s) / s - W) X||² / ||W X||² from the inputs themselves, in float64."""
    error = rounded(weight * scale, scheme).double() / scale.double() - weight.double()
    x = x.double().T
    return float((error @ x).square().sum() / (weight.double() @ x).square().sum())


@pytest.mark.parametrize("scheme", [AWQ(3, 16), AWQ(4, None, symmetric=True), AWQ(2, 64)], ids=lambda s: s.name)
def test_losses_are_those_of_brute_force_and_the_least_is_taken(scheme):
    weight, (x, statistics) = random(24, 64), uneven()
    found = search_scale(weight, statistics, scheme)
    assert found.alphas == (None, *(i / 20 for i in range(21))) and len(found.losses) == 22
    magnitude = relative_magnitude(weight, scheme.group_size)
    for alpha, loss in zip(found.alphas, found.losses, strict=True):
        scale = torch.ones(64) if alpha is None else awq_scale(statistics.mean, magnitude, alpha)
        assert loss == pytest.approx(brute_force(weight, x, scale, scheme), rel=1e-4)
        if alpha == found.alpha:
            assert torch.equal(scale, found.scale)
    best = found.losses[found.alphas.index(found.alpha)]
    assert best == min(found.losses) <= found.losses[0]
    if scheme.group_size is not None:
        assert best < 0.9 * found.losses[0]


def test_on_real_inputs_of_the_embedded_model(embedded):
    model, tokenizer = embedded
    ids = calibration_chunks(qkit.texts("python-docs-heldout")[:40_000], tokenizer, max_chunks=2)
    blocks, hidden = capture(model, [ids])
    found = search_scales(model, AWQ(3), calibration=ids, include="model.layers.0.*")
    for one in found:
        x = collect(blocks[0], blocks[0].module, hidden, [one.fold.consumers[0]], frozenset({"sample"}))
        x = x[one.fold.consumers[0]].sample
        weight = torch.cat([weight_of(blocks[0].module.get_submodule(name)) for name in one.fold.consumers]).detach()
        assert one.scale.shape == (one.fold.width,)
        # later folds of a block are searched on weights as they were, but for what earlier folds did to their producers
        if one.fold.producer.endswith("layernorm"):
            loss = brute_force(weight, x, one.scale[one.fold.index], AWQ(3))
            assert loss == pytest.approx(one.losses[one.alphas.index(one.alpha)], rel=1e-3)
            assert loss < one.losses[0]
            torch.testing.assert_close(one.salience, x.abs().mean(0), rtol=1e-4, atol=1e-6)


def test_a_scale_where_nothing_helps_is_not_taken():
    """Whole numbers on a grid that holds them: rounding is exact, and any scale can only hurt."""
    weight = torch.randint(0, 8, (16, 32), generator=torch.Generator().manual_seed(0)).float()
    weight[:, 0] = 7
    found = search_scale(weight, uneven(32)[1], AWQ(3, None))
    assert found.alpha is None and torch.equal(found.scale, torch.ones(32)) and found.losses[0] == 0


def test_the_scale_is_the_published_one_around_1():
    """s = mean|X|^α / mean|W|^(1-α), divided by the root of its largest and smallest (the authors' code)."""
    x, w = torch.rand(50, generator=torch.Generator().manual_seed(0)) + 0.01, torch.rand(50) + 0.1
    for alpha in (0.0, 0.3, 0.5, 1.0):
        s = x.double().numpy() ** alpha / w.double().numpy() ** (1 - alpha)
        s /= np.sqrt(s.max() * s.min())
        np.testing.assert_allclose(awq_scale(x, w, alpha).numpy(), s, rtol=1e-5)


def test_dead_channels_are_not_scaled_and_do_not_count():
    x, w = torch.rand(8) + 0.5, torch.rand(8) + 0.5
    x[2], w[5] = 0, 0
    scale = awq_scale(x, w, 0.5)
    assert scale[2] == scale[5] == 1
    live = [0, 1, 3, 4, 6, 7]
    assert torch.equal(scale[live], awq_scale(x[live], w[live], 0.5))
    assert torch.equal(awq_scale(torch.zeros(3), torch.ones(3), 0.5), torch.ones(3))


@pytest.mark.parametrize("group_size", [8, None])
def test_relative_magnitudes_are_measured_by_the_largest_of_the_group(group_size):
    weight = random(5, 32)
    weight[2, 8:16] = 0
    size = group_size or 32
    expected = np.zeros(32)
    for row in weight.numpy():
        for j in range(32):
            group = row[j // size * size : j // size * size + size]
            expected[j] += abs(row[j]) / max(abs(group).max(), 1e-12) / 5
    np.testing.assert_allclose(relative_magnitude(weight, group_size).numpy(), expected, rtol=1e-5, atol=1e-8)


def test_the_output_loss_is_the_squared_error_of_the_output():
    error, x = random(6, 20), random(50, 20, seed=1)
    assert output_loss(error, x.T @ x) == pytest.approx(float((error @ x.T).square().sum()), rel=1e-5)


def test_rounding_is_that_of_rtn():
    weight = random(6, 32)
    for scheme in (AWQ(3, 8), AWQ(4, None, symmetric=True)):
        assert torch.equal(round_to_nearest(weight, scheme), rounded(weight, scheme))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [16, None])
def test_clipping_never_costs_and_without_it_this_is_rtn(group_size, symmetric):
    weight, (x, statistics) = random(12, 64) ** 3, uneven()
    plain = awq_round(weight, statistics, AWQ(3, group_size, symmetric, clip=False))
    expected = quantize_tensor(weight, RTN(3, group_size, symmetric))
    assert torch.equal(plain.packed, expected.packed) and torch.equal(plain.scales, expected.scales)
    assert torch.equal(awq_round(weight, None, AWQ(3, group_size, symmetric)).packed, expected.packed)
    clipped = awq_round(weight, statistics, AWQ(3, group_size, symmetric))
    size = group_size or 64
    costs = []
    for q in (clipped, plain):
        error = (q.dequantize() - weight).double().reshape(12, -1, size)
        parts = x.double().reshape(len(x), -1, size)
        costs.append(torch.einsum("ogi,tgi->ogt", error, parts).square().sum(-1))
    assert (costs[0] <= costs[1] * (1 + 1e-5)).all()
    assert costs[0].sum() < 0.9 * costs[1].sum()


def test_one_scale_for_several_inputs_is_taken_from_their_means():
    """As where one value head feeds several query heads: input k takes scale index[k]."""
    weight, (x, statistics) = random(16, 32), uneven(32)
    index = torch.arange(32) % 8
    found = search_scale(weight, statistics, AWQ(3, 16), index, 8)
    assert found.scale.shape == (8,)
    x_mean = torch.stack([x.abs().mean(0)[index == j].mean() for j in range(8)])
    w_mean = torch.stack([relative_magnitude(weight, 16)[index == j].mean() for j in range(8)])
    for alpha, loss in zip(found.alphas[1:], found.losses[1:], strict=True):
        scale = awq_scale(x_mean, w_mean, alpha)[index]
        assert loss == pytest.approx(brute_force(weight, x, scale, AWQ(3, 16)), rel=1e-3)


def test_the_grid_says_how_many_alphas():
    found = search_scale(random(4, 16), uneven(16)[1], AWQ(3, 8, grid=4))
    assert found.alphas == (None, 0, 0.25, 0.5, 0.75, 1)


def test_gptq_inside_rounds_with_its_own_settings(llama):
    ids = torch.randint(0, 97, (8, 40), generator=torch.Generator().manual_seed(0))
    for rounding in (GPTQ(3, 4), GPTQ(3, 4, damp=0.5)):
        model = clone(llama)
        report = quantize(model, AWQ(3, 4, rounding=rounding), calibration=ids)
        assert {row.damp for row in report.layers} == {rounding.damp}
