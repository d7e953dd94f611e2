"""What is smoothed, by how much and with what error, is what SmoothQuant computes."""

import pytest
import torch

import qkit
from qkit.study.anatomy.smoothquant import smooth_inputs, w8a8_error


@pytest.fixture
def smooth(llama, ids):
    return smooth_inputs(llama, ids, tokens=16)


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
            assert losses[alpha] == pytest.approx(w8a8_error(one.weight, one.sample, one.factor(alpha)), rel=1e-4)
