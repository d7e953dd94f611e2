"""What goes into the layers: the values themselves, and their maxima."""

import pytest
import torch
from torch import nn

import qkit
from qkit.model.inputs import input_maxima, layer_inputs, layer_statistics
from qkit.model.surgery import find_targets


def test_the_inputs_are_those_that_reproduce_what_the_layers_compute(model, ids):
    inputs = layer_inputs(model, ids)
    assert sorted(inputs) == sorted(target.name for target in find_targets(model)[0])
    outputs = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, a, y, name=name: outputs.update({name: y}))
        for name in inputs
    ]
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    for name, x in inputs.items():
        layer = model.get_submodule(name)
        assert x.shape[0] == ids.numel() and x.dtype == torch.float32
        assert torch.allclose(layer(x), outputs[name].flatten(0, -2), atol=1e-5)


def test_the_model_is_left_without_hooks_also_when_it_fails(llama, ids):
    layer_inputs(llama, ids)
    llama.model.norm.forward = lambda _x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        layer_inputs(llama, ids)
    assert not any(module._forward_pre_hooks for module in llama.modules())


def test_only_the_named_layers_are_listened_to(llama, ids):
    name = "model.layers.1.mlp.down_proj"
    assert list(layer_inputs(llama, ids, [name])) == [name]


def test_nothing_is_computed_behind_the_last_named_layer(model):
    ids = torch.randint(2, 97, (5, 20), generator=torch.Generator().manual_seed(1))
    whole = layer_inputs(model, ids)
    ran = []
    for name in whole:
        model.get_submodule(name).register_forward_hook(lambda _m, x, _y, name=name: ran.append((name, len(x[0]))))
    for place, name in enumerate(whole):
        ran.clear()
        found = layer_inputs(model, ids, [name])
        assert list(found) == [name] and torch.equal(found[name], whole[name])
        five = {name for name, sequences in ran if sequences == 5 or sequences == 5 * 20}
        assert five <= set(list(whole)[: place + 1]), (name, five)
    first, *_, last = whole
    both = layer_inputs(model, ids, [last, first])
    assert all(torch.equal(both[name], whole[name]) for name in (first, last))


class Twice(nn.Module):
    """A layer that runs twice, and one that runs only where some token is large."""

    def __init__(self):
        super().__init__()
        self.embed, self.twice, self.expert = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, input_ids):
        x = self.twice(self.twice(self.embed(input_ids)))
        large = input_ids > 5
        return x + self.expert(x[large]).sum() if large.any() else x


def test_a_layer_that_runs_twice_gives_its_last_input_and_an_expert_is_waited_for():
    torch.manual_seed(0)
    model, ids = Twice().eval(), torch.tensor([[1, 2, 3], [4, 5, 6], [7, 2, 8]])
    with torch.no_grad():
        once = model.twice(model.embed(ids)).flatten(0, 1)
        expected = model.twice(once)[(ids > 5).flatten()]
    assert torch.equal(layer_inputs(model, ids, ["twice"])["twice"], once)
    found = layer_inputs(model, ids, ["twice", "expert"])  # no token of the first sequence is the expert's
    assert torch.equal(found["twice"], once) and torch.equal(found["expert"], expected)


def test_a_quantized_model_can_be_listened_to(llama, ids):
    before = layer_inputs(llama, ids)
    qkit.quantize(llama, qkit.RTN(8))
    assert list(layer_inputs(llama, ids)) == list(before)


def test_the_maxima_are_those_of_the_inputs(model, ids):
    inputs, maxima = layer_inputs(model, ids), input_maxima(model, ids)
    assert [name for names in maxima.layers for name in names] == list(inputs)
    for names, token, channel in zip(maxima.layers, maxima.by_token, maxima.by_channel, strict=True):
        for name in names:
            assert torch.equal(inputs[name].abs().amax(1), token)
            assert torch.equal(inputs[name].abs().amax(0), channel)


def test_layers_that_share_an_input_share_a_row(llama, ids):
    layers = input_maxima(llama, ids).layers
    assert len(layers) == 2 * 4
    assert layers[0] == tuple(f"model.layers.0.self_attn.{x}_proj" for x in "qkv")
    assert layers[2] == ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj")


@pytest.mark.filterwarnings("ignore:40 calibration tokens")
def test_outlier_columns_are_counted_as_llm_int8_does(llama, ids):
    maxima = input_maxima(llama, ids)
    report = qkit.quantize(llama, qkit.LLMInt8(threshold=2.0), calibration=ids)
    assert report.layers[0].outlier_columns == maxima.outlier_columns(2.0)[0] > 0


def test_planted_channels_are_found(llama, ids):
    before = input_maxima(llama, ids).by_channel[0]
    qkit.plant_outliers(llama, [5], 64.0)
    after = input_maxima(llama, ids).by_channel[0]
    assert torch.allclose(after / before, torch.where(torch.arange(48) == 5, 64.0, 1.0), rtol=1e-3)


def test_wrong_ids_and_names_are_refused(llama, ids):
    with pytest.raises(ValueError, match=r"token ids are torch\.float32 \(2, 20\); give integers"):
        layer_inputs(llama, ids.float())
    with pytest.raises(ValueError, match=r"token id 1\d\d\d is not in the vocabulary of LlamaForCausalLM, 0 to 96"):
        layer_inputs(llama, ids + 1000)
    with pytest.raises(ValueError, match=r"'layers\.9' is no layer of LlamaForCausalLM"):
        layer_inputs(llama, ids, ["layers.9"])


def test_a_layer_that_sees_only_some_tokens_has_no_row():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.linear = nn.Embedding(9, 4), nn.Linear(4, 4)

        def forward(self, input_ids, use_cache):
            return self.linear(self.embedding(input_ids)[:, ::2])

    with pytest.raises(ValueError, match="linear does not see all 8 tokens"):
        input_maxima(Half(), torch.ones(2, 4, dtype=torch.int64))


def test_the_statistics_are_sums_over_the_inputs(llama, ids):
    name = "model.layers.1.mlp.down_proj"
    x = layer_inputs(llama, ids, [name])[name]
    statistics = layer_statistics(llama, ids, [name])[name]
    assert statistics.tokens == ids.numel()
    assert torch.allclose(statistics.hessian, x.T @ x / len(x), atol=1e-5)
    assert torch.equal(statistics.absmax, x.abs().amax(0))
