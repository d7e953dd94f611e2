"""Statistics of inputs against hooks on the whole model and sums in float64, and the chunks they are taken from."""

import numpy as np
import pytest
import torch
from torch import nn

from qkit import search_scales
from qkit.methods.awq import AWQ
from qkit.methods.statistics import SAMPLE, InputStatistics, magnitude_edges
from qkit.model.blocks import Block, capture
from qkit.model.calibration import batches_of, collect, gather, input_groups
from qkit.model.replay import Replay
from qkit.model.surgery import find_targets
from qkit.text.tokens import calibration_chunks


@pytest.fixture
def tokens():
    return torch.randint(0, 97, (5, 30), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def heard(model, batches, names):
    found = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, n=name: found[n].append(args[0].flatten(0, -2))
        )
        for name in names
    ]
    for batch in batches:
        model(input_ids=batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(x) for name, x in found.items()}


@torch.no_grad()
def test_statistics_are_those_of_hooks_on_the_whole_model(make_model, any_kind, tokens):
    model, batches = make_model(any_kind), tokens.split(2)
    names = [target.name for target in find_targets(model)[0]]
    truth = heard(model, batches, names)
    blocks, hidden = capture(model, batches)
    edges = magnitude_edges().double().numpy()
    for block in blocks:
        mine = [name.removeprefix(f"{block.name}.") for name in names if name.startswith(f"{block.name}.")]
        for stop in (True, False):
            found = collect(block, block.module, hidden, mine, stop=stop)
            assert found.keys() == set(mine)
            for name, statistics in found.items():
                x = truth[f"{block.name}.{name}"]
                assert statistics.tokens == len(x) == 150
                assert torch.equal(statistics.absmax, x.abs().amax(0))
                assert torch.equal(statistics.sample, x[:60])  # the first batch
                x = x.double()
                torch.testing.assert_close(statistics.mean.double(), x.abs().mean(0), rtol=1e-5, atol=0)
                size = x.square().mean(0).sqrt().clamp(min=1e-9)
                torch.testing.assert_close(
                    statistics.hessian.double() / size / size[:, None],
                    x.T @ x / 150 / size / size[:, None],
                    rtol=0,
                    atol=1e-5,
                )
                counts = np.histogram(x.abs().clamp(min=2.0**-24).numpy(), edges)[0]
                assert np.array_equal(statistics.magnitudes.numpy(), counts)
                assert statistics.magnitudes.sum() == x.numel()
        hidden = [block.run(states, batch) for batch, states in enumerate(hidden)]


def test_the_same_twice(make_model, tokens):
    def gather():
        blocks, hidden = capture(make_model("llama"), batches_of(tokens))
        return collect(blocks[0], blocks[0].module, hidden, ["mlp.down_proj"])["mlp.down_proj"]

    a, b = gather(), gather()
    assert (
        torch.equal(a.square, b.square) and torch.equal(a.abssum, b.abssum) and torch.equal(a.magnitudes, b.magnitudes)
    )


@torch.no_grad()
def test_the_drift_is_between_the_two_streams(make_model, tokens):
    original, changed = make_model("llama"), make_model("llama")
    for parameter in changed.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    (first, *_), hidden = capture(original, tokens.split(2))
    _, other = capture(changed, tokens.split(2))
    copy = changed.model.layers[0]
    wants = frozenset({"square", "drift"})
    replays = Replay(first, copy, other), Replay(first, first.module, hidden)
    found = gather(replays[0], ["mlp.down_proj"], wants, replays[1])["mlp.down_proj"]
    name = ["model.layers.0.mlp.down_proj"]
    x0, x = (heard(m, tokens.split(2), name)[name[0]].double() for m in (original, changed))
    torch.testing.assert_close(found.drift.double(), (x0 - x).T @ x, rtol=1e-4, atol=1e-3 * float((x * x).sum(0).max()))
    assert found.magnitudes is None and found.sample is None


GROUPS = {
    "llama": ["q k v", "o", "gate up", "down"],
    "gpt2": ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"],
    "opt": ["q k v", "out_proj", "fc1", "fc2"],
    "neox": ["query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h"],
    "bloom": ["query_key_value", "self_attention.dense", "dense_h_to_4h", "dense_4h_to_h"],
    "phi": ["q k v", "dense", "fc1", "fc2"],
}


def test_layers_that_share_an_input_are_grouped_in_the_order_they_run(make_model, any_kind, tokens):
    model = make_model(any_kind)
    blocks, (hidden,) = capture(model, [tokens[:1]])
    names = [n for n, m in blocks[0].module.named_modules() if type(m).__name__ in ("Linear", "Conv1D")]
    groups = input_groups(blocks[0], hidden, names[::-1])
    expected = GROUPS.get(any_kind, GROUPS["llama"])
    assert sorted(name for group in groups for name in group) == sorted(names)
    if any_kind == "phi":  # attention and MLP read the same norm
        assert [name.split(".")[-1] for name in groups[0][:3]] == ["q_proj", "k_proj", "v_proj"]
        return
    assert len(groups) == len(expected)
    for group, words in zip(groups, expected, strict=True):
        assert len(group) == len(words.split())
        assert all(word in " ".join(group) for word in words.split())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.twice, self.never, self.once = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, hidden):
        return self.once(self.twice(self.twice(hidden)))


@pytest.mark.parametrize("stop", [True, False])
def test_layers_that_run_twice_or_never(stop):
    block = Block("b", Twice(), (((), {}), ((), {})))
    hidden = [torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    assert input_groups(block, hidden[0], ["never", "once", "twice"]) == [["once"], ["never"], ["twice"]]
    for names in (["twice"], ["never"], ["once"], ["twice", "once", "never"]):
        found = collect(block, block.module, hidden, names, stop=stop)
        assert {name: one.tokens for name, one in found.items()} == {
            name: count for name, count in (("twice", 24), ("once", 12)) if name in names
        }
    assert not any(m._forward_pre_hooks for m in block.module.modules())


def test_what_nobody_needs_is_not_computed():
    block = Block("b", Twice(), (((), {}),) * 3)
    ran = []
    block.module.once.register_forward_hook(lambda *_: ran.append(1))
    collect(block, block.module, [torch.randn(1, 6, 4)] * 3, ["twice"])
    assert len(ran) == 1  # the first batch tells how often the layers run


def test_only_what_is_wanted_is_gathered():
    for want in ("square", "drift", "magnitudes", "sample"):
        statistics = InputStatistics.empty(4, wants=frozenset({want}))
        statistics.add(torch.randn(3, 4), torch.randn(3, 4))
        assert [
            name for name in ("square", "drift", "magnitudes", "sample") if getattr(statistics, name) is not None
        ] == [want]


def test_a_sample_holds_the_first_inputs_and_no_more():
    statistics = InputStatistics.empty(3)
    x = torch.randn(SAMPLE + 50, 3)
    statistics.add(x[:0])
    statistics.add(x)
    statistics.add(x)
    assert torch.equal(statistics.sample, x[:SAMPLE]) and statistics.tokens == 2 * len(x)


def test_scaled_statistics_are_those_of_scaled_inputs():
    x, original = torch.randn(50, 8).double(), torch.randn(50, 8).double()
    scale = torch.rand(8).double() + 0.5
    one, other = (InputStatistics.empty(8) for _ in range(2))
    one.add(x, original)
    other.add(x / scale, original / scale)
    scaled = one.scaled(scale.float())
    assert scaled.tokens == 50 and scaled.magnitudes is None
    for name in ("absmax", "abssum", "square", "drift", "sample"):
        torch.testing.assert_close(getattr(scaled, name), getattr(other, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e-30, 2.0**-24, 1.0, 3.0, 65504.0, 2.0**24, 1e30])
def test_every_magnitude_has_a_bin(value):
    statistics = InputStatistics.empty(1)
    statistics.add(torch.tensor([[-value]]))
    (place,) = statistics.magnitudes.nonzero()[0].tolist()
    low, high = magnitude_edges()[place : place + 2].tolist()
    assert low * (1 - 1e-6) <= min(max(value, 2.0**-24), 2.0**24) <= high * (1 + 1e-6)
    assert 1 + 1 / 128 < high / low <= 1 + 1 / 64


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_inputs_that_are_not_finite_are_refused_by_name(bad):
    statistics = InputStatistics.empty(4)
    x = torch.randn(3, 4)
    x[1, 2] = bad
    statistics.add(x)
    with pytest.raises(
        ValueError, match=r"the calibration statistics of h\.3\.fc \(sums of \|x\| by input channel\) holds"
    ):
        statistics.check("h.3.fc")


# --- chunks -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def words(word_tokenizer):
    return word_tokenizer(bos_token="w01")


def text(numbers):
    return " ".join(f"w{n % 95 + 2:02}" for n in numbers)


def starts(chunks):
    assert (chunks[:, 0] == 1).all()
    return chunks[:, 1].tolist()


def test_chunks_are_spread_evenly_over_the_text(words):
    chunks = calibration_chunks(text(range(95)), words, length=5, max_chunks=4)
    assert chunks.shape == (4, 6)
    assert starts(chunks) == [2, 32, 62, 92]  # chunks 0, 6, 12, 18 of 19
    assert chunks[1].tolist() == [1, 32, 33, 34, 35, 36]


def test_fewer_chunks_than_asked_for_are_all_taken_once(words):
    assert starts(calibration_chunks(text(range(23)), words, length=5, max_chunks=100)) == [2, 7, 12, 17]


def test_several_texts_get_equal_shares(words):
    parts = [text(range(95)), text([7] * 95), text([9] * 500)]
    found = starts(calibration_chunks(parts, words, length=5, max_chunks=8))
    assert found == [2, 47, 92, 9, 9, 9, 11, 11]


def test_many_short_texts_are_one(words):
    found = calibration_chunks([text([i, i]) for i in range(20)], words, length=5, max_chunks=3)
    assert len(found) == 3 and found[0].tolist() == [1, 2, 2, 3, 3, 4]


def test_token_ids_are_taken_as_they_are(tokens):
    assert torch.equal(calibration_chunks(tokens, max_chunks=2), tokens)


def test_batches_hold_all_tokens_in_order():
    ids = torch.arange(40 * 512).reshape(40, 512)
    batches = batches_of(ids)
    assert {len(batch) for batch in batches} == {8}
    assert torch.equal(torch.cat(batches), ids)
    assert len(batches_of(torch.zeros(3, 9000))) == 3


@pytest.mark.parametrize("empty", ["", "  \n", [], ["", " "]])
def test_an_empty_text_is_refused(words, empty):
    with pytest.raises(ValueError, match=r"calibration is empty; give a text of the kind the model will read"):
        calibration_chunks(empty, words)


@pytest.mark.parametrize(
    ("calibration", "match"),
    [
        ("w03 w04", "the text has 2 tokens, one chunk takes 511; give a longer text"),
        (["w03 " * 600, "w04"], "the text has 1 tokens, one chunk takes 511"),
        (torch.zeros(5, dtype=torch.long), r"token ids are torch\.int64 \(5,\); give integers \[sequences, length\]"),
        (torch.zeros(2, 5), r"token ids are torch\.float32 \(2, 5\); give integers"),
        (torch.zeros(0, 5, dtype=torch.long), "give integers"),
    ],
)
def test_calibration_that_cannot_be_used_is_refused(words, calibration, match):
    with pytest.raises(ValueError, match=match):
        calibration_chunks(calibration, words)


def test_a_text_needs_a_tokenizer(llama):
    with pytest.raises(ValueError, match="a text needs a tokenizer; give tokenizer="):
        search_scales(llama, AWQ(4, 4), calibration="some text")


@pytest.mark.parametrize("width", [1, 127, 128, 129, 300, 513, 700])
def test_the_square_is_summed_by_strips_and_is_whole(width):
    """Whole numbers: exact, in whatever order they are added; two batches, the second of one token."""
    x = torch.randint(-9, 10, (201, width), generator=torch.Generator().manual_seed(width)).float()
    statistics = InputStatistics.empty(width, wants=frozenset({"square"}))
    for batch in (x[:200], x[200:]):
        statistics.add(batch)
    assert torch.equal(statistics.known("square").double(), x.double().T @ x.double())
