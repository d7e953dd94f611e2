"""Blocks whose parts run no more than they must, against blocks that run from start to end every time."""

from importlib import import_module

import pytest
import torch
from torch import nn

from qkit import AWQ, GPTQ, W8A8, SmoothQuant, quantize
from qkit.engine.solve import solve_layer
from qkit.methods.statistics import InputStatistics
from qkit.model.blocks import Block, capture
from qkit.model.calibration import batches_of, input_groups
from qkit.model.replay import Closing, Replay, find_closings
from qkit.model.surgery import clone, swap, weight_of
from qkit.nn.layers import quantized_layers


@pytest.fixture
def tokens(monkeypatch):
    """384 of them, in four batches."""
    monkeypatch.setattr(import_module("qkit.model.calibration"), "TOKENS_AT_ONCE", 96)
    return torch.randint(0, 97, (8, 48), generator=torch.Generator().manual_seed(1))


def layers_of(block):
    return [name for name, module in block.named_modules() if weight_of(module) is not None]


CLOSINGS = {
    "llama": {"self_attn.o_proj": "self_attn", "mlp.down_proj": "mlp"},
    "gpt2": {"attn.c_proj": "attn", "mlp.c_proj": "mlp"},
    "opt": {"self_attn.out_proj": "self_attn"},  # what would be the MLP stands in the block itself
    "neox": {"attention.dense": "attention", "mlp.dense_4h_to_h": "mlp"},
    "bloom": {},  # attention and MLP add the residual themselves
    "phi": {"self_attn.dense": "self_attn", "mlp.fc2": "mlp"},
}
NORMS = {  # that only those read; Phi's is read by both, BLOOM's are not asked for
    "llama": ["input_layernorm", "post_attention_layernorm"],
    "gpt2": ["ln_1", "ln_2"],
    "opt": ["self_attn_layer_norm"],
    "bloom": [],
    "phi": [],
}


def test_attention_and_mlp_are_found_to_end_with_a_layer(make_model, any_kind, tokens):
    (block, *_), (hidden,) = capture(make_model(any_kind), [tokens[:1]])
    found = find_closings(block, hidden, layers_of(block.module))
    assert {layer: closing.name for layer, closing in found.items()} == CLOSINGS.get(any_kind, CLOSINGS["llama"])
    assert [norm for closing in found.values() for norm in closing.before] == NORMS.get(any_kind, NORMS["llama"])
    for closing in found.values():
        assert closing.nothings == (
            1 if "att" in closing.name else None
        )  # attention returns its weights too: None here
    assert not any(module._forward_hooks for module in block.module.modules())


# --- the plain way ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def solved_the_plain_way(model, scheme, ids, sample):
    """The layers by name: every group of layers hears a run of its block from the start, in both streams."""
    blocks, hidden = capture(model, batches_of(ids))
    sample_blocks, (sample,) = capture(model, [sample])
    before = list(hidden)
    solved = {}
    for block, sample_block in zip(blocks, sample_blocks, strict=True):
        copy = clone(block.module)
        for group in input_groups(sample_block, sample, layers_of(block.module)):
            statistics = InputStatistics.empty(
                weight_of(block.module.get_submodule(group[0])).shape[1], wants=frozenset({"square", "drift"})
            )
            for batch in range(len(hidden)):
                xs = []
                for module, states in ((copy, hidden), (block.module, before)):
                    heard = []
                    hook = module.get_submodule(group[0]).register_forward_pre_hook(
                        lambda _, args, heard=heard: heard.append(args[0].flatten(0, -2))
                    )
                    block.run(states[batch], batch, module)
                    hook.remove()
                    xs.append(torch.cat(heard) if heard else None)
                if xs[0] is not None:
                    paired = xs[1] is not None and xs[0].shape == xs[1].shape
                    statistics.add(xs[0], xs[1] if paired and scheme.match_original else None)
            layers = {}
            for name in group:
                layer = copy.get_submodule(name)
                seen = statistics if statistics.tokens else None
                layers[name] = solve_layer(weight_of(layer), layer.bias, scheme, seen, name).layer
            swap(copy, layers)
            solved |= {f"{block.name}.{name}": layer for name, layer in layers.items()}
        hidden = [block.run(states, batch, copy) for batch, states in enumerate(hidden)]
        before = [block.run(states, batch) for batch, states in enumerate(before)]
        sample = sample_block.run(sample, 0)
    return solved


def assert_solved_as_the_plain_way(model, original, scheme, ids):
    quantize(model, scheme, calibration=ids)
    expected = solved_the_plain_way(original, scheme, ids, ids[:1, :16])
    layers = quantized_layers(model)
    assert layers.keys() == expected.keys()
    for name, layer in layers.items():
        buffers = dict(expected[name].named_buffers())
        assert all(torch.equal(tensor, buffers[key]) for key, tensor in layer.named_buffers()), name


@pytest.mark.parametrize("scheme", [GPTQ(3, 4), GPTQ.paper(3, 4)], ids=lambda scheme: scheme.name)
def test_what_runs_no_more_changes_no_bit(make_model, any_kind, scheme, tokens):
    assert_solved_as_the_plain_way(make_model(any_kind), make_model(any_kind), scheme, tokens)


@pytest.mark.parametrize("scheme", [AWQ(3, 4, rounding=GPTQ(3, 4)), {"*.0.*": SmoothQuant(0.5), "*": GPTQ(3, 4)}])
def test_nor_behind_folded_scales_or_in_a_model_of_several_schemes(make_model, any_kind, scheme, tokens, monkeypatch):
    model, plain = make_model(any_kind), make_model(any_kind)
    quantize(model, scheme, calibration=tokens)
    monkeypatch.setattr(import_module("qkit.engine.stream"), "find_closings", lambda *_: {})
    quantize(plain, scheme, calibration=tokens)
    a, b = model.state_dict(), plain.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- how often what runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (GPTQ(3, 4), 9 + 9),  # in each block once a batch and stream; and once on the first batch, to count what runs
        (GPTQ.paper(3, 4), 5 + 5),
        (AWQ(3, 4), 8 + 4),  # in floats, and quantized where a block follows
        (SmoothQuant(0.5), 8 + 4),
        (SmoothQuant(0.5, "per-tensor"), 8 + 4),
        (SmoothQuant(0.5, "per-tensor", "mse"), 12 + 8),  # a histogram does not survive scaling
        (W8A8("per-tensor"), 8 + 4),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_attention_runs_no_more_than_it_must(make_model, scheme, expected, tokens, monkeypatch):
    runs = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def counted(query, *args, **kwargs):
        runs.append(query.shape[2] == tokens.shape[1])  # and not the small sample
        return attention(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    quantize(make_model("llama"), scheme, calibration=tokens)
    assert sum(runs) == expected


def test_norms_run_no_more_than_they_must(make_model, tokens, monkeypatch):
    """Each for the group of layers that it feeds and for the one that ends what it feeds: a batch, a block and a stream."""
    model, runs = make_model("llama"), []
    norm = type(model.model.norm)
    forward = norm.forward

    def counted(self, x):
        runs.append(x.shape[1] == tokens.shape[1])
        return forward(self, x)

    monkeypatch.setattr(norm, "forward", counted)
    quantize(model, GPTQ(3, 4), calibration=tokens)
    assert sum(runs) == 2 * (2 * 2 * 4 * 2 + 2)  # and once on the first batch, to count what runs


# --- blocks of other shapes ---------------------------------------------------------------------------------------------


class Inner(nn.Module):
    """Ends with a layer, and hands its output on in one way or another."""

    def __init__(self, returns):
        super().__init__()
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.returns = returns

    def forward(self, x):
        return self.returns(self.down(torch.tanh(self.up(x))))


class OneBlock(nn.Module):
    def __init__(self, returns, add):
        super().__init__()
        self.inner, self.outer, self.add = Inner(returns), nn.Linear(16, 16), add

    def forward(self, hidden):
        output = self.inner(hidden)
        hidden = self.add(output if isinstance(output, torch.Tensor) else output[0], hidden)
        return hidden + self.outer(hidden)


class Normed(nn.Module):
    """A norm before, which something else may read, too."""

    def __init__(self, read_again):
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(16), Inner(lambda y: y), nn.Linear(16, 16)
        self.read_again = read_again

    def forward(self, hidden):
        normed = self.norm(hidden)
        hidden = (normed if self.read_again else hidden) + self.inner(normed)
        return hidden + self.outer(hidden)


class Routed(nn.Module):
    """Two experts: each token goes to one of them, by its size, and quantizing may change to which."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(Inner(lambda y: y) for _ in range(2))
        self.gate = nn.Linear(16, 2)

    def forward(self, hidden):
        choice = self.gate(hidden).argmax(-1)
        y = torch.zeros_like(hidden)
        for i, expert in enumerate(self.experts):
            if (choice == i).any():
                y[choice == i] = expert(hidden[choice == i])
        return hidden + y


class Stack(nn.Module):
    def __init__(self, make_block):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(97, 16)
        self.blocks = nn.ModuleList(make_block() for _ in range(3))

    def forward(self, input_ids, use_cache=False):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return x


SHAPES = {
    "the output": (lambda: OneBlock(lambda y: y, torch.add), Closing("inner", None)),
    "a tuple": (lambda: OneBlock(lambda y: (y, None, None), torch.add), Closing("inner", 2)),
    "a tuple of one": (lambda: OneBlock(lambda y: (y,), torch.add), Closing("inner", 0)),
    "more than the output": (lambda: OneBlock(lambda y: (y, y.sum()), torch.add), None),
    "something else": (lambda: OneBlock(lambda y: 2 * y, torch.add), None),
    "a list": (lambda: OneBlock(lambda y: [y], torch.add), None),
    "the output, written into": (lambda: OneBlock(lambda y: y, torch.Tensor.add_), None),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_ends_otherwise_runs_every_time_to_the_same_bits(shape, tokens):
    make_block, closing = SHAPES[shape]
    (block, *_), (hidden,) = capture(Stack(make_block), [tokens[:1]])
    found = find_closings(block, hidden, layers_of(block.module))
    assert found == ({"inner.down": closing} if closing else {})
    assert_solved_as_the_plain_way(Stack(make_block), Stack(make_block), GPTQ(3, 4), tokens)


@pytest.mark.parametrize("read_again", [False, True])
def test_a_norm_runs_no_more_where_nothing_else_reads_it(read_again, tokens):
    (block, *_), (hidden,) = capture(Stack(lambda: Normed(read_again)), [tokens[:1]])
    found = find_closings(block, hidden, layers_of(block.module))
    assert found == {"inner.down": Closing("inner", None, () if read_again else ("norm",))}
    assert_solved_as_the_plain_way(
        Stack(lambda: Normed(read_again)), Stack(lambda: Normed(read_again)), GPTQ(3, 4), tokens
    )


@pytest.mark.filterwarnings("ignore:.* calibration tokens are fewer")
def test_experts_that_see_other_tokens_are_solved_as_the_plain_way(tokens):
    model = Stack(Routed)
    assert_solved_as_the_plain_way(model, Stack(Routed), GPTQ(2, 8), tokens)
    assert_solved_as_the_plain_way(
        Stack(Routed), Stack(Routed), GPTQ(2, 8), tokens[:, :3]
    )  # few: an expert may be idle


def test_where_a_layer_does_not_run_just_once_nothing_is_kept(tokens):
    block = OneBlock(lambda y: y, torch.add)
    one, hidden = Block("b", block, (((), {}),)), torch.randn(2, 6, 16)
    assert find_closings(one, hidden, ["inner.up", "inner.down"])
    block.never = nn.Linear(4, 4)
    assert find_closings(one, hidden, ["inner.up", "inner.down", "never"]) == {}
    block.add = lambda x, y: x + block.outer(y)
    assert find_closings(one, hidden, ["inner.up", "inner.down", "outer"]) == {}


# --- one replay ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_what_is_settled_is_returned_and_nothing_is_left_behind():
    block = OneBlock(lambda y: (y, None), torch.add)
    hidden = [torch.randn(1, 6, 16) for _ in range(2)]
    expected = [block(x) for x in hidden]
    for fixed in (False, True):
        replay = Replay(
            Block("b", block, (((), {}),) * 2), block, list(hidden), {"inner.down": Closing("inner", 1)}, fixed
        )
        replay.settle("inner.down")  # never heard: nothing is known of it
        runs = []
        handle = block.inner.up.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        for batch in range(2):
            replay.hear(batch, ["inner.down"], {"inner.down": 1})
        replay.settle("inner.down")
        assert len(runs) == 2
        replay.advance()
        handle.remove()
        assert len(runs) == 2
        assert all(torch.equal(a, b) for a, b in zip(replay.hidden, expected, strict=True))
        assert not any("forward" in vars(module) or module._forward_pre_hooks for module in block.modules())


@torch.no_grad()
def test_a_run_that_breaks_off_leaves_nothing_behind():
    block = OneBlock(lambda y: y, torch.add)
    replay = Replay(
        Block("b", block, (((), {}),)), block, [torch.randn(1, 6, 16)], {"inner.down": Closing("inner", None)}
    )
    replay.hear(0, ["inner.down"], {})
    replay.settle("inner.down")
    block.outer.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        replay.run(0)
    assert "forward" not in vars(block.inner)


@torch.no_grad()
def test_a_layer_that_one_batch_does_not_reach_is_not_settled():
    block = OneBlock(lambda y: y, torch.add)
    one = Block("b", block, (((), {}),) * 2)
    replay = Replay(one, block, [torch.randn(1, 6, 16)] * 2, {"inner.down": Closing("inner", None)})
    replay.hear(0, ["inner.down"], {})
    replay.settle("inner.down")
    runs = []
    block.inner.down.register_forward_hook(lambda *_: runs.append(1))
    replay.run(0)
    assert len(runs) == 1
