"""What the figures of lesson 05 draw is what the library computes."""

import numpy as np
import pytest

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
