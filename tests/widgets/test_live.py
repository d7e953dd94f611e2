"""What holds for every explorer: where it cannot begin it says why, and a move draws once and makes nothing anew."""

import pytest
import torch

import qkit
from qkit import plots, widgets
from qkit.bench.record import Roof

ROOF = Roof(threads=2, gigabytes_per_second=32.0, float_gops=256.0, int8_gops=1024.0)
LAYERS = ["model.layers.0.mlp.gate_proj", "model.layers.1.mlp.down_proj"]
POINTS = {"GPTQ W3 g128": (0.1, 1.0), "RTN W8 per channel": (0.2, 0.1)}


@pytest.fixture
def make(llama, ids):
    """Explorers by name, with arguments changed."""
    weights = {"first": torch.randn(8, 64), "second": torch.randn(4, 96)}

    def make_(name, **changes):
        explorer = getattr(widgets, name)
        given = {
            "HistogramExplorer": lambda: (weights,),
            "ErrorExplorer": lambda: (weights,),
            "CodebookExplorer": lambda: (weights,),
            "OutlierExplorer": lambda: (llama, ids, ["t"] * 40),
            "CompensationExplorer": lambda: (llama, ids, LAYERS),
            "AWQExplorer": lambda: (
                llama,
                qkit.search_scales(llama, qkit.AWQ(3, 4, grid=4), calibration=ids.repeat(8, 1)),
            ),
            "SmoothQuantExplorer": lambda: (llama, ids),
            "ChooserExplorer": lambda: (llama, POINTS),
            "RooflineExplorer": lambda: (llama, ROOF),
            "WordExplorer": lambda: (llama,),
        }[name]()
        usual = {
            "AWQExplorer": {"group_size": 4},
            "SmoothQuantExplorer": {"tokens": 16},
            "WordExplorer": {"column": 21},
        }.get(name, {})
        return explorer(*given, **{**usual, **changes})

    return make_


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("HistogramExplorer", "layer", "third"),
        ("HistogramExplorer", "bits", 9),
        ("ErrorExplorer", "group_size", 7),
        ("CodebookExplorer", "layer", "third"),
        ("CodebookExplorer", "block_size", 48),
        ("CompensationExplorer", "bits", 5),
        ("CompensationExplorer", "column", -1),
        ("AWQExplorer", "fold", 99),
        ("AWQExplorer", "alpha", 0.33),
        ("SmoothQuantExplorer", "layer", 99),
        ("SmoothQuantExplorer", "alpha", 0.33),
        ("SmoothQuantExplorer", "activations", "per-row"),
        ("ChooserExplorer", "quality", "good"),
        ("ChooserExplorer", "hardware", "abacus"),
        ("RooflineExplorer", "bits", 7),
        ("RooflineExplorer", "group_size", 48),
        ("RooflineExplorer", "tokens", 3),
        ("RooflineExplorer", "shape", (1, 2)),
        ("WordExplorer", "layer", "third"),
        ("WordExplorer", "bits", 5),
        ("WordExplorer", "row", 16),
        ("WordExplorer", "column", 48),
    ],
)
def test_a_control_cannot_begin_where_it_cannot_go(make, name, argument, value):
    with pytest.raises(ValueError, match=rf"^{argument}=.* is not on offer; use one of "):
        make(name, **{argument: value})


def test_nothing_to_choose_from_is_refused(llama, ids):
    for explore in (widgets.HistogramExplorer, widgets.ErrorExplorer, widgets.CodebookExplorer):
        with pytest.raises(ValueError, match="there is no weight to choose"):
            explore({})
        with pytest.raises(ValueError, match="layer"):
            explore(torch.nn.Sequential(torch.nn.ReLU()))
    with pytest.raises(ValueError, match="no block size"):
        widgets.CodebookExplorer({"odd": torch.randn(3, 5)})
    with pytest.raises(ValueError, match="there is no layer to choose"):
        widgets.CompensationExplorer(llama, ids, [])
    with pytest.raises(ValueError, match="there is no point to choose"):
        widgets.ChooserExplorer(llama, {})


MOVES = {
    "HistogramExplorer": ("bits", (2, 8, 3)),
    "ErrorExplorer": ("bits", (2, 8, 3)),
    "CodebookExplorer": ("block_size", (128, 32)),
    "OutlierExplorer": ("threshold", (1.0, 16.0)),
    "CompensationExplorer": ("column", (12, 0)),
    "AWQExplorer": ("alpha", (0.5, 1.0)),
    "SmoothQuantExplorer": ("alpha", (0.5, 1.0)),
    "ChooserExplorer": ("megabytes", (0.1, 0.2)),
    "RooflineExplorer": ("bits", (2, 8, 16)),
    "WordExplorer": ("bits", (2, 8, 3)),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_move_draws_once_makes_no_figure_and_lays_nothing_out_anew(make, name, monkeypatch):
    """What makes it follow the hand. How quickly it does hangs on the machine, and is printed by the browser test."""
    explorer = make(name)
    control, values = MOVES[name]
    assert explorer.image.tooltip == explorer.picture.alt

    def no_work(*_args, **_kwargs):
        raise AssertionError("this is not for a slider")

    for dear in ("__init__", "freeze", "subplots", "add_subplot", "legend", "draw_without_rendering"):
        monkeypatch.setattr(plots.Picture, dear, no_work)
    monkeypatch.setattr("qkit.bench.roofline.best_seconds", no_work)
    monkeypatch.setattr(torch.nn.Module, "__call__", no_work)
    drawn, draw = [], explorer.picture.canvas.draw
    monkeypatch.setattr(explorer.picture.canvas, "draw", lambda: drawn.append(draw()))
    artists = {id(artist) for artist in explorer.picture.findobj(lambda artist: hasattr(artist, "set_data"))}
    places = [axes.get_position().bounds for axes in explorer.picture.axes]
    for value in values:
        getattr(explorer, control).value = value
        assert explorer.image.tooltip == explorer.picture.alt  # who cannot see it is told what is there now
    assert len(drawn) == len(values)
    assert [axes.get_position().bounds for axes in explorer.picture.axes] == places
    assert artists <= {id(artist) for artist in explorer.picture.findobj(lambda artist: hasattr(artist, "set_data"))}
