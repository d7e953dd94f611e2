"""What is in two places: one module, one parameter, one memory."""

import torch
from torch import nn

from qkit.model.sharing import shared_modules


def test_a_model_without_sharing_has_none(make_model):
    assert shared_modules(make_model("llama")) == {}


def test_one_module_under_two_names(make_model):
    model = make_model("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    model.model.norm = model.model.layers[0].input_layernorm
    names = [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    pairs = {f"model.layers.{i}.{name}": f"model.layers.{1 - i}.{name}" for i in (0, 1) for name in names}
    norm = "model.layers.0.input_layernorm"
    assert shared_modules(model) == pairs | {norm: "model.norm", "model.norm": norm}


def test_one_parameter_in_two_modules(make_model):
    model = make_model("llama", tie=True)
    assert shared_modules(model) == {"lm_head": "model.embed_tokens", "model.embed_tokens": "lm_head"}


def test_two_parameters_on_one_memory():
    memory = torch.randn(12, 4)
    model = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in "abcd"})
    model["a"].weight = nn.Parameter(memory[:4])
    model["b"].weight = nn.Parameter(memory[3:7])  # overlaps a
    model["c"].weight = nn.Parameter(memory[8:])  # a slice of its own
    assert shared_modules(model) == {"a": "b", "b": "a"}
    model["d"].weight = nn.Parameter(memory[4:8].T)
    assert set(shared_modules(model)) == {"a", "b", "d"}


def test_a_short_one_within_a_long_one_is_seen_behind_others():
    memory = torch.randn(100)
    model = nn.ModuleDict({name: nn.Module() for name in "abc"})
    model["a"].p = nn.Parameter(memory)
    model["b"].p = nn.Parameter(memory[:10])
    model["c"].p = nn.Parameter(memory[50:60])
    assert set(shared_modules(model)) == {"a", "b", "c"}


def test_parameters_without_data_share_only_by_identity():
    with torch.device("meta"):
        model = nn.ModuleDict({name: nn.Linear(4, 4) for name in "abc"})
    assert shared_modules(model) == {}
    model["b"].weight = model["a"].weight
    assert shared_modules(model) == {"a": "b", "b": "a"}


def test_two_parameters_of_one_module_on_one_memory_are_its_own():
    module = nn.Module()
    module.p = nn.Parameter(torch.ones(3))
    module.q = nn.Parameter(module.p.data)
    assert shared_modules(nn.ModuleList([module])) == {}
