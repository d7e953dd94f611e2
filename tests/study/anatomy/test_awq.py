"""The scales at any alpha are those that AWQ tries."""

import pytest
import torch

import qkit
from qkit.study.anatomy.awq import consumers_weight, scale_at


@pytest.fixture
def searched(llama, ids):
    return llama, qkit.search_scales(llama, qkit.AWQ(bits=3, group_size=4, grid=4), calibration=ids.repeat(8, 1))


def test_the_scale_at_the_best_alpha_is_the_one_that_was_found(searched):
    model, scaling = searched
    for one in scaling:
        weight = consumers_weight(model, one)
        assert torch.allclose(scale_at(weight, one, one.alpha, 4), one.scale[one.fold.index], rtol=1e-4)


def test_no_alpha_is_no_scaling(searched):
    model, scaling = searched
    assert (scale_at(consumers_weight(model, scaling[0]), scaling[0], None, 4) == 1).all()
