"""What the figures of lesson 05 draw is what the library computes."""

import numpy as np
import pytest
import torch

import qkit
from qkit import plots


@pytest.fixture
def searched(llama, ids):
    return llama, qkit.search_scales(llama, qkit.AWQ(bits=3, group_size=4, grid=4), calibration=ids.repeat(8, 1))


def test_it_draws_salience_in_falling_order_its_scales_and_the_losses(searched):
    model, scaling = searched
    one = scaling[0]
    picture = plots.alpha_search(model, one, alpha=0.5, group_size=4)
    salience, scale = picture.data["salience"], picture.data["scale"]
    assert (np.diff(salience) <= 0).all()
    order = one.salience.argsort(descending=True)
    expected = plots.scale_at(plots.consumers_weight(model, one), one, 0.5, 4)[order]
    assert np.allclose(scale, expected)
    alphas, losses = picture.data["alphas"], picture.data["losses"]
    assert list(alphas) == [0, 0.25, 0.5, 0.75, 1] and np.allclose(losses, 100 * np.array(one.losses[1:]))
    assert picture.data["loss_now"] == losses[2]
    assert picture.data["unscaled"] == pytest.approx(100 * one.losses[0])


def test_a_picture_given_another_fold_equals_one_drawn_of_it(searched):
    model, scaling = searched
    picture = plots.alpha_search(model, scaling[0], None, 4)
    picture.show(plots.consumers_weight(model, scaling[3]), scaling[3], 0.25, 4)
    assert picture.alt == plots.alpha_search(model, scaling[3], 0.25, 4).alt
    assert "mlp.up_proj → mlp.down_proj" in picture.alt and "0.25" in picture.alt


def test_an_alpha_that_was_not_tried_is_refused(searched):
    model, scaling = searched
    with pytest.raises(ValueError, match=r"alpha=0\.3 has no loss"):
        plots.alpha_search(model, scaling[0], 0.3, 4)


def test_dead_channels_are_drawn_too(searched):
    model, scaling = searched
    one = scaling[0]
    one.salience[:3] = 0
    assert plots.alpha_search(model, one, 0.5, 4).png().startswith(b"\x89PNG")


def layer(seed=0, out=6, channels=20, tokens=30):
    torch.manual_seed(seed)
    w, x = torch.randn(out, channels), torch.randn(tokens, channels)
    x[:, 7] *= 50
    w[:, 3] *= 50
    return w, qkit.quantize_tensor(w, bits=8).dequantize(), x


def test_the_costs_of_channels_add_up_to_the_error_where_no_two_go_together():
    w, w_hat, x = layer()
    x = torch.linalg.qr(x).Q[:, :20] * x.norm(dim=0)  # channels at right angles
    error = (x @ (w_hat - w).T).square().sum() / (x @ w.T).square().sum()
    assert float(plots.channel_errors(w, w_hat, x).sum()) == pytest.approx(float(error), rel=1e-4)


def test_channels_stand_in_the_order_of_their_activations_and_marks_count_what_they_cost():
    w, w_hat, x = layer()
    costs = plots.channel_errors(w, w_hat, x)
    picture = plots.salient_channels(w, w_hat, x, 0.05, "a layer")
    assert (np.diff(picture.data["activations"]) <= 0).all() and picture.data["weights"].max() > 20
    assert picture.data["by_activation"] == pytest.approx(float(100 * costs[7] / costs.sum()), rel=1e-4)
    assert picture.data["by_weight"] == pytest.approx(float(100 * costs[3] / costs.sum()), rel=1e-4)
    assert picture.alt.startswith("a layer, 20 input channels")


@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_marking_no_channel_or_all_of_them_is_refused(share):
    with pytest.raises(ValueError, match=r"share=.* of 20 channels marks (0|20) of them"):
        plots.salient_channels(*layer(), share)
