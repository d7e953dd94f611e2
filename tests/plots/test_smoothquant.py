"""What the figures of lesson 06 draw is what the library computes."""

import numpy as np
import pytest

from qkit import plots


@pytest.fixture
def smooth(llama, ids):
    return plots.smooth_inputs(llama, ids, tokens=16)


def test_it_draws_the_maxima_before_and_after_and_the_losses(smooth):
    one = smooth[0]
    picture = plots.migration(one, 0.5)
    order = one.x_absmax.argsort(descending=True)
    x, w = one.x_absmax[order], one.weight.abs().amax(0)[order]
    data = picture.data
    assert np.allclose(data["x_before"], x) and np.allclose(data["w_before"], w)
    assert np.allclose(data["x_after"] * data["w_after"], x * w, rtol=1e-4)  # what X gives up, W takes on
    assert len(data["alphas"]) == 21 and data["losses"][10] == data["loss_now"]


def test_a_picture_given_other_data_equals_one_drawn_of_it(smooth):
    picture = plots.migration(smooth[0], None)
    picture.show(smooth[3], 1.0, True)
    assert picture.alt == plots.migration(smooth[3], 1.0, True).alt
    assert "mlp.down_proj" in picture.alt and "static" in picture.alt


def test_an_alpha_off_the_grid_is_refused(smooth):
    with pytest.raises(ValueError, match=r"alpha=0\.33 is not on the grid"):
        plots.migration(smooth[0], 0.33)
