"""Tiles that are found by trying: with a clock that is made up, since no test knows how fast a card is."""

import dataclasses
import itertools
import json

import pytest
import torch

from products import exact, random, weight, whole
from qkit import NF4, QLinear, quantize_tensor
from qkit.engine.warm import tune_tiles

pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")

from qkit.backends.triton import clock, layout, tiles, tuning
from qkit.backends.triton import linear as gpu

CARD = tiles.Card(units=4, shared=227 * 1024, major=9, ptx=False, name="a card")
HOPPER = tiles.Card(units=132, shared=227 * 1024, major=9)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tiles, "card", lambda device: CARD)
    tuning.found.cache_clear()
    yield tmp_path / "qkit" / "tiles.json"
    tuning.found.cache_clear()


@pytest.fixture
def launched(monkeypatch):
    """The cuts that products are launched with; nothing is computed."""
    cuts = []
    monkeypatch.setattr(gpu, "launch", lambda x, weight, y, cut, card: cuts.append(cut))
    return cuts


def clock_of(times):
    """What takes how long, in the order in which it is asked."""
    times = itertools.chain(times, itertools.repeat(9.0))
    return lambda call, device: call() or next(times)


def test_without_a_file_the_table_is_taken(launched, cache):
    q = weight(4, 32, 2048, 128)
    gpu.linear(torch.zeros(3, 2048).half(), q, None)
    assert launched == [tiles.few(layout.laid(q, torch.float16), CARD, 3)] and not cache.exists()


def test_the_fastest_is_kept_and_taken_in_its_region_on_its_card(launched, cache, monkeypatch):
    q = weight(4, 32, 2048, 128)
    made = clock.tune(q, torch.float16, (8, 32), clock_of([3.0, 1.0]))
    laid = layout.laid(q, torch.float16)
    second = tiles.candidates(8, laid, CARD)[1]
    assert next(iter(made.values())) == second and len(made) == 2
    tuning.found.cache_clear()  # another process
    launched.clear()
    for tokens in (1, 8, 9, 31):
        gpu.linear(torch.zeros(tokens, 2048).half(), q, None)
    by_table = [tiles.few(laid, CARD, tokens) for tokens in (1, 9)]
    assert launched == [by_table[0], second, by_table[1], list(made.values())[1]]
    for other in (weight(4, 32, 2048, 64), weight(3, 32, 2048, 128), weight(4, 48, 2048, 128)):
        assert tuning.chosen(3, layout.laid(other, torch.float16), CARD) is None
    assert tuning.chosen(3, layout.laid(q, torch.bfloat16), CARD) is None
    assert tuning.chosen(3, laid, HOPPER) is None and tuning.chosen(300, laid, CARD) is None
    monkeypatch.setattr(tuning, "kernels", lambda: "other kernels")
    tuning.found.cache_clear()
    assert tuning.chosen(3, laid, CARD) is None


def test_what_is_known_is_kept_beside_what_is_new(launched, cache):
    for group in (64, 128):
        clock.tune(weight(4, 32, 2048, group), torch.float16, (8,), clock_of([1.0]))
    kept = json.loads(cache.read_text())
    assert len(kept[tuning.kernels()]["a card"]) == 2 and [path.name for path in cache.parent.iterdir()] == [
        "tiles.json"
    ]


def test_what_is_hardly_faster_changes_nothing():
    assert tuning.fastest(["table", "other"], {"table": 1.0, "other": 0.99}.get) == "table"
    assert tuning.fastest(["table", "other"], {"table": 1.0, "other": 0.97}.get) == "other"


@pytest.mark.parametrize("damage", ["", "[1]", "{", "null", "cut", "kind", "numbers"])
def test_a_damaged_file_is_a_warning_and_the_table(damage, launched, cache):
    q = weight(4, 32, 2048, 128)
    clock.tune(q, torch.float16, (8,), clock_of([1.0]))
    text = cache.read_text()
    cache.write_text({"cut": text.replace('"unroll"', '"unrol"'), "kind": text.replace("Few", "Fewer"),
                      "numbers": text.replace('"warps": ', '"warps": 0.')}.get(damage, damage))  # fmt: skip
    tuning.found.cache_clear()
    launched.clear()
    with pytest.warns(UserWarning, match="cannot be read.*tiles are chosen by the table; remove the file"):
        gpu.linear(torch.zeros(3, 2048).half(), q, None)
    gpu.linear(torch.zeros(3, 2048).half(), q, None)  # said once
    assert launched == 2 * [tiles.few(layout.laid(q, torch.float16), CARD, 3)]
    clock.tune(q, torch.float16, (8,), clock_of([1.0]))
    tuning.found.cache_clear()
    assert tuning.chosen(3, layout.laid(q, torch.float16), CARD) is not None


@pytest.mark.parametrize(
    ("tokens", "features"), [(5, 2080), pytest.param(12, 2080, marks=pytest.mark.exhaustive), (40, 544)]
)
def test_whatever_is_tried_computes_the_same(tokens, features):
    q, x = weight(4, 20, features, 32, "zero points"), whole(tokens, features).half()
    x[:, 512:-32] = 0  # so that sums are what float16 holds
    laid, expected = layout.laid(q, torch.float16), exact(x, q)
    cuts = tiles.candidates(tokens, laid, CARD)
    assert len(cuts) > 1 and len(set(cuts)) == len(cuts)
    for cut in cuts:
        y = torch.full((tokens, 20), torch.nan, dtype=torch.float16)
        gpu.launch(gpu.aligned(x), laid, y, cut, CARD)
        assert torch.equal(y, expected.half()), cut


@pytest.mark.parametrize("tokens", tuning.REGIONS)
def test_the_first_that_is_tried_is_the_tables(tokens):
    laid = dataclasses.replace(layout.lay(weight(4, 256, 2048, 128), torch.float16), shape=(8192, 4096))
    first = tiles.candidates(tokens, laid, HOPPER)[0]
    if tokens == 1:
        assert first == tiles.one(laid, HOPPER) is not None
    elif tokens <= tiles.few_tokens(laid, HOPPER):
        assert first == tiles.few(laid, HOPPER, tokens)
    else:
        assert first == (tiles.hopper(tokens, laid, HOPPER) or tiles.many(tokens, laid, HOPPER))
    assert {type(cut) for cut in tiles.candidates(64, laid, HOPPER)} == {tiles.Many, tiles.Hopper}


def test_a_model_is_asked_for_on_a_gpu():
    net = torch.nn.Sequential(QLinear(quantize_tensor(random(32, 64), NF4())))
    with pytest.raises(ValueError, match="no weight of this model is on a GPU"):
        tune_tiles(net)
