"""Blocks are found and overheard: run one by one, they must compute what the model computes."""

import pytest
import torch
import transformers
from torch import nn

from qkit import RTN, quantize
from qkit.model.blocks import Block, capture, find_blocks, first
from tiny import llava, t5, vit

NAMES = {"gpt2": "transformer.h", "bloom": "transformer.h", "opt": "model.decoder.layers", "neox": "gpt_neox.layers"}


def chain(blocks, hidden):
    """The hidden states after each block, from what `capture` gave."""
    states = [hidden]
    for block in blocks:
        states.append([block.run(x, batch) for batch, x in enumerate(states[-1])])
    return states


@torch.no_grad()
def test_block_by_block_is_the_model(make_model, any_kind, ids):
    model = make_model(any_kind)
    blocks, hidden = capture(model, ids.split(1))
    assert [b.name for b in blocks] == [f"{NAMES.get(any_kind, 'model.layers')}.{i}" for i in range(2)]
    assert all(model.get_submodule(b.name) is b.module for b in blocks)
    seen = []
    handles = [b.module.register_forward_hook(lambda _, args, out: seen.append(first(out))) for b in blocks]
    for batch in ids.split(1):
        model(input_ids=batch, use_cache=False)
    for handle in handles:
        handle.remove()
    states = chain(blocks, hidden)
    for batch in range(2):
        for layer in range(2):
            assert torch.equal(states[layer + 1][batch], seen[2 * batch + layer])


@torch.no_grad()
def test_batches_may_differ_in_length(make_model, any_kind):
    model = make_model(any_kind)
    batches = [torch.arange(5)[None], torch.arange(24).reshape(2, 12), torch.arange(7)[None] + 50]
    blocks, hidden = capture(model, batches)
    assert [h.shape for h in hidden] == [(1, 5, 48), (2, 12, 48), (1, 7, 48)]
    assert all(len(b.calls) == 3 for b in blocks)
    for batch, ids in enumerate(batches):
        alone, (entering,) = capture(model, [ids])
        assert torch.equal(hidden[batch], entering)
        assert torch.equal(blocks[1].run(entering, batch), alone[1].run(entering, 0))


@torch.no_grad()
def test_a_block_can_be_run_with_another_module_in_its_place(make_model, ids):
    blocks, (hidden,) = capture(make_model("llama"), [ids])
    assert torch.equal(blocks[0].run(hidden, 0, blocks[1].module), blocks[1].run(hidden, 0))


def test_capture_computes_no_block_for_the_batches(make_model, ids):
    model = make_model("llama")
    calls = []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    capture(model, ids.split(1))
    assert len(calls) == 1  # the two tokens from which the form of the output is learnt


def test_the_model_is_as_it_was(make_model, any_kind, ids, logits):
    model = make_model(any_kind)
    before = logits(model, ids)
    capture(model, [ids])
    assert torch.equal(logits(model, ids), before)
    assert not any("forward" in vars(m) or m._forward_hooks for m in model.modules())


def test_the_model_is_as_it_was_after_an_exception(make_model, ids, logits):
    model = make_model("llama")
    before = logits(model, ids)
    for bad in (torch.full((1, 4), 1000), ids):
        embedding = model.model.embed_tokens
        if bad is ids:
            calls = []

            def fail(*_, calls=calls):
                calls.append(1)
                if len(calls) == 3:  # after the forms are learnt and one batch is heard
                    raise KeyboardInterrupt

            handle = embedding.register_forward_hook(fail)
        with pytest.raises((ValueError, KeyboardInterrupt)):
            capture(model, [bad, bad])
    handle.remove()
    assert not any("forward" in vars(m) or m._forward_hooks for m in model.modules())
    assert torch.equal(logits(model, ids), before)


class Decoder(nn.Module):
    """A decoder as small as can be; `wire` says how its layers are called."""

    def __init__(self, layers, wire=None):
        super().__init__()
        self.embedding = nn.Embedding(97, 8)
        self.layers = nn.ModuleList(layers)
        self.wire = wire

    def forward(self, input_ids, use_cache):
        x = self.embedding(input_ids)
        if self.wire:
            return self.wire(self, x)
        for layer in self.layers:
            x = first(layer(x))
        return x


class Layer(nn.Module):
    """A block that returns a tensor, or a tuple as blocks did before transformers 5."""

    def __init__(self, as_tuple=False):
        super().__init__()
        self.linear, self.as_tuple = nn.Linear(8, 8), as_tuple

    def forward(self, hidden_states, shift=0.0, *, gain=1.0):
        out = self.linear(hidden_states) * gain + shift
        return (out, "weights") if self.as_tuple else out


@torch.no_grad()
def test_blocks_that_return_tuples(ids):
    model = Decoder([Layer(True), Layer(), Layer(True)])
    blocks, (hidden,) = capture(model, [ids])
    assert torch.equal(chain(blocks, [hidden])[-1][0], model(ids, False))
    assert torch.equal(hidden, model.embedding(ids))


@torch.no_grad()
def test_what_follows_the_hidden_state_is_overheard_for_each_block(ids):
    def wire(model, x):
        x = model.layers[0](x, 0.5, gain=2.0)
        return model.layers[1](hidden_states=x, shift=0.25)

    model = Decoder([Layer(), Layer()], wire)
    blocks, (hidden,) = capture(model, [ids])
    assert [b.calls for b in blocks] == [(((0.5,), {"gain": 2.0}),), (((), {"shift": 0.25}),)]
    assert torch.equal(chain(blocks, [hidden])[-1][0], model(ids, False))


def skip_one(model, x):
    return model.layers[1](x)


def twice(model, x):
    return model.layers[1](model.layers[0](model.layers[0](x)))


def side_by_side(model, x):
    return model.layers[0](x) + model.layers[1](x)


def changed_between(model, x):
    return model.layers[1](model.layers[0](x) * 2)


@pytest.mark.parametrize(
    ("wire", "found"),
    [
        (skip_one, r"2 blocks called in the order \[1\]"),
        (twice, r"2 blocks called in the order \[0, 0, 1\]"),
        (lambda m, x: m.layers[0](m.layers[1](x)), r"2 blocks called in the order \[1, 0\]"),
        (side_by_side, r"that layers\.1 is given something else, or more"),
        (changed_between, r"that layers\.1 is given something else, or more"),
        (lambda m, x: m.layers[1](x := m.layers[0](x), x), r"that layers\.1 is given something else, or more"),
        (lambda m, x: m.layers[1](x := m.layers[0](x), gain=[x]), r"that layers\.1 is given something else, or more"),
    ],
)
def test_blocks_that_are_no_chain_are_refused(ids, wire, found):
    model = Decoder([Layer(), Layer()], wire)
    if found.endswith("or more"):
        model.layers[1].forward = lambda hidden_states, shift=0.0, *, gain=1.0: model.layers[1].linear(hidden_states)
    with pytest.raises(ValueError, match=rf"Decoder is an unknown architecture.*found {found}.*qkit\.RTN"):
        capture(model, [ids])
    vars(model.layers[1]).pop("forward", None)
    assert not any("forward" in vars(m) or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("form", "kind"), [(lambda x: {"hidden": x}, "dict"), (lambda x: (None, x), "tuple"), (lambda x: [], "list")]
)
def test_blocks_that_put_out_no_hidden_state_are_refused(ids, form, kind):
    class Odd(Layer):
        def forward(self, hidden_states):
            return form(self.linear(hidden_states))

    with pytest.raises(ValueError, match=rf"unknown architecture.*found that layers\.0 puts out a {kind}"):
        capture(Decoder([Odd(), Layer()], lambda m, x: (m.layers[0](x), m.layers[1](x))[1]), [ids])


def test_one_module_in_two_places_is_refused(ids):
    layer = Layer()
    with pytest.raises(ValueError, match="unknown architecture"):
        capture(Decoder([layer, layer]), [ids])


@pytest.mark.parametrize("make", [t5, vit], ids=["encoder first", "pixels"])
def test_a_model_that_does_not_read_text_by_itself_is_refused(make, ids):
    model = make()
    with pytest.raises(
        ValueError, match=r"is an unknown architecture: .* reads token ids by itself, and found that .*qkit\.RTN"
    ):
        capture(model, [ids])


def test_what_a_model_raises_from_inside_is_told_in_one_sentence(ids):
    def wire(model, x):
        return model.layers[1](model.layers[0](x)) + model.no_such_input

    with pytest.raises(ValueError, match=r"Decoder is an unknown .* found AttributeError: .*no_such_input.*; quantize"):
        capture(Decoder([Layer(), Layer()], wire), [ids])


def test_memory_that_runs_out_is_no_unknown_architecture(ids):
    def wire(model, x):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        capture(Decoder([Layer(), Layer()], wire), [ids])


def test_blocks_that_hand_on_more_than_the_hidden_state_are_refused(ids):
    class WithBias(Layer):
        def forward(self, hidden_states, bias=0.0):
            return self.linear(hidden_states) + bias, hidden_states.mean(-1, keepdim=True)

    def wire(model, x):
        x, bias = model.layers[0](x)
        return model.layers[1](x, bias=bias)[0]

    with pytest.raises(
        ValueError, match=r"unknown architecture.*found that layers\.1 is given something else, or more"
    ):
        capture(Decoder([WithBias(), WithBias()], wire), [ids])


@torch.no_grad()
def test_a_tuple_is_unpacked_as_the_model_expects_it(ids):
    class Three(Layer):
        def forward(self, hidden_states):
            return self.linear(hidden_states), None, "attention"

    def wire(model, x):
        for layer in model.layers:
            x, _state, _attention = layer(x)
        return x

    model = Decoder([Three(), Three()], wire)
    blocks, (hidden,) = capture(model, [ids])
    assert torch.equal(chain(blocks, [hidden])[-1][0], model(ids, False))


def test_blocks_that_run_otherwise_on_one_of_the_batches_are_refused(ids):
    def wire(model, x):
        return model.layers[1](model.layers[0](x) if x.shape[1] < 20 else x)

    with pytest.raises(ValueError, match=r"unknown architecture.* found layers\.0 run otherwise on batch 2"):
        capture(Decoder([Layer(), Layer()], wire), [ids[:, :8], ids])


def test_of_a_model_that_sees_the_decoder_that_reads_the_text_is_taken(ids):
    model = llava()  # three blocks that see, two that read
    blocks, hidden = capture(model, [ids])
    assert [block.name for block in blocks] == [f"model.language_model.layers.{i}" for i in range(2)]
    assert hidden[0].shape == (2, 20, 48)


def test_an_encoder_whose_head_is_called_decoder_is_found(ids):
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.ModernBertConfig(vocab_size=97, pad_token_id=0, **sizes)
    model = transformers.ModernBertForMaskedLM(config).eval()
    assert [block.name for block in capture(model, [ids])[0]] == ["model.layers.0", "model.layers.1"]


def test_a_block_knows_which_of_its_modules_are_elsewhere_too(make_model, ids):
    model = make_model("llama")
    assert all(block.shared == {} for block in capture(model, [ids])[0])
    model.model.layers[1].self_attn.k_proj.weight = model.model.layers[0].self_attn.k_proj.weight
    blocks, _ = capture(model, [ids])
    assert [block.shared for block in blocks] == [
        {"self_attn.k_proj": f"model.layers.{1 - i}.self_attn.k_proj"} for i in range(2)
    ]


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU()), r"0 \(Linear\), 1 \(ReLU\)"),
        (nn.Linear(8, 8), "nothing"),
        (Decoder([nn.LayerNorm(8)]), r"embedding \(Embedding\), layers \(ModuleList\)"),
    ],
)
def test_a_model_without_a_list_of_blocks_is_refused(model, found):
    message = rf"is an unknown architecture: .* looks for a ModuleList of blocks .* and found {found}; .*qkit\.RTN"
    with pytest.raises(ValueError, match=message):
        find_blocks(model)


def test_the_list_with_the_most_linear_layers_is_taken_and_inner_lists_are_not():
    model = nn.Module()
    model.experts = nn.ModuleList([nn.Linear(8, 8)])
    model.layers = nn.ModuleList([nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]), Layer()])
    assert [name for name, _ in find_blocks(model)] == ["layers.0", "layers.1"]


def test_quantized_blocks_are_found(make_model):
    model = make_model("llama")
    quantize(model, RTN(bits=8))
    assert [name for name, _ in find_blocks(model)] == ["model.layers.0", "model.layers.1"]


def test_the_first_of_a_tuple_is_the_hidden_state():
    x = torch.ones(2)
    assert first(x) is x and first((x, 1)) is x and first([x]) is x
    assert Block("b", nn.Identity(), (((), {}),)).run(x, 0) is x
