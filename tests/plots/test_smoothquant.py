"""What the figures of lesson 06 draw is what the library computes."""

import numpy as np
import pytest
import torch

import qkit
from qkit import plots


@pytest.fixture
def smooth(llama, ids):
    return plots.smooth_inputs(llama, ids, tokens=16)


def test_every_foldable_input_is_found_with_its_sample(smooth):
    assert [one.label for one in smooth[:4]] == [
        "layers.0: input_layernorm → self_attn.q_proj, self_attn.k_proj, self_attn.v_proj",
        "layers.0: self_attn.v_proj → self_attn.o_proj",
        "layers.0: post_attention_layernorm → mlp.gate_proj, mlp.up_proj",
        "layers.0: mlp.up_proj → mlp.down_proj",
    ]
    assert len(smooth) == 8 and all(one.sample.shape == (16, one.weight.shape[1]) for one in smooth)


def test_its_factor_is_the_one_that_smoothquant_folds(llama, ids, smooth):
    scaling = qkit.search_scales(llama, qkit.SmoothQuant(0.7), calibration=ids)
    for one, expected in zip(smooth, scaling, strict=True):
        assert torch.allclose(one.factor(0.7), expected.scale[one.index], rtol=1e-4)
        assert (one.factor(None) == 1).all()


@pytest.mark.parametrize("static", [False, True])
def test_losses_over_alpha_agree_with_the_error_at_each(smooth, static):
    one = smooth[3]
    losses = one.losses(static)
    assert len(losses) == 22
    if not static:  # a static reach comes from all tokens, of which the sample is a part
        for alpha in (None, 0.0, 0.5, 1.0):
            assert losses[alpha] == pytest.approx(plots.w8a8_error(one.weight, one.sample, one.factor(alpha)), rel=1e-4)


def test_it_draws_the_maxima_before_and_after_and_the_losses(smooth):
    one = smooth[0]
    picture = plots.migration(one, 0.5)
    order = one.x_absmax.argsort(descending=True)
    x, w = one.x_absmax[order], one.weight.abs().amax(0)[order]
    for stairs, values in zip(picture._before, (x, w), strict=True):
        assert np.allclose(stairs.get_data()[0], values)
    after = [stairs.get_data()[0] for stairs in picture._after]
    assert np.allclose(after[0] * after[1], x * w, rtol=1e-4)  # what X gives up, W takes on
    alphas, losses = picture._curve.get_data()
    assert len(alphas) == 21 and losses[10] == picture._marker.get_ydata()[0]


def test_a_picture_given_other_data_equals_one_drawn_of_it(smooth):
    picture = plots.migration(smooth[0], None)
    picture.show(smooth[3], 1.0, True)
    assert picture.alt == plots.migration(smooth[3], 1.0, True).alt
    assert "mlp.down_proj" in picture.alt and "static" in picture.alt


def test_an_alpha_off_the_grid_is_refused(smooth):
    with pytest.raises(ValueError, match=r"alpha=0\.33 is not on the grid"):
        plots.migration(smooth[0], 0.33)
