"""The number line of lesson 02 shows the marks that a grid has, and those that are taken."""

import numpy as np
import pytest
import torch

import qkit
from qkit import plots

WEIGHT = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)) * 0.1
GRIDS = {
    "8 bits": qkit.quantize_tensor(WEIGHT, bits=8),
    "2 bits": qkit.quantize_tensor(WEIGHT, bits=2),
    "NF4": qkit.quantize_tensor(WEIGHT, qkit.NF4(32, double_quant=False)),
}


def test_every_weight_goes_to_the_nearest_mark_of_each_grid():
    picture = plots.number_line(WEIGHT, GRIDS, "32 weights")
    for name, marks in (("8 bits", 256), ("2 bits", 4), ("NF4", 16)):
        grid, snapped = picture.data[f"levels of {name}"], picture.data[f"snapped {name}"]
        assert len(grid) == marks and np.array_equal(picture.data["weights"], WEIGHT[0].numpy())
        distance = np.abs(WEIGHT[0].numpy()[:, None] - grid)
        assert np.allclose(np.abs(snapped - WEIGHT[0].numpy()), distance.min(1), atol=1e-6)
        off = 100 * np.linalg.norm(snapped - WEIGHT[0].numpy()) / np.linalg.norm(WEIGHT[0].numpy())
        assert picture.data[f"percent off {name}"] == pytest.approx(off, rel=1e-4)
        assert f"{name}: {marks} marks, {len(set(snapped))} of them taken, {off:.1f} % off" in picture.alt


def test_what_has_no_one_grid_or_no_numbers_is_refused():
    with pytest.raises(ValueError, match="no grid to draw"):
        plots.number_line(WEIGHT, {})
    with pytest.raises(ValueError, match="'four' has 2 groups; give a weight that is one"):
        plots.number_line(WEIGHT, {"four": qkit.quantize_tensor(WEIGHT, bits=4, group_size=16)})
    with pytest.raises(ValueError, match="give the weight it was made from"):
        plots.number_line(WEIGHT[:, :16], GRIDS)
    with pytest.raises(ValueError, match="NaN"):
        plots.number_line(WEIGHT * torch.nan, GRIDS, "broken")


def test_zeros_can_be_drawn():
    zeros = torch.zeros(1, 4)
    assert plots.number_line(zeros, {"4 bits": qkit.quantize_tensor(zeros, bits=4)}).png().startswith(b"\x89PNG")
