"""A layer is told by what it computes, not by its name."""

import pytest
import torch
from torch import nn
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.models.llama4.modeling_llama4 import Llama4Router
from transformers.pytorch_utils import Conv1D

from qkit.model.linear import is_linear, output_axis, weight_of, why_not
from tiny import falcon

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


class Grouped(nn.Linear):
    """Takes groups of tokens, as transformers' DeepseekV4GroupedLinear does."""

    def forward(self, x):
        return torch.bmm(x, self.weight.reshape(4, -1, self.in_features).mT)


class Same(nn.Linear):
    """A Linear by another name."""


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Clipped(nn.Linear):
    def forward(self, x):
        return super().forward(x.clamp(-40, 40))


class Dropping(nn.Linear):
    def forward(self, x):
        return torch.dropout(super().forward(x), 0.1, self.training)


class Rounding(nn.Linear):
    def forward(self, x):
        return super().forward(x.bfloat16().to(x.dtype))


class Remembering(nn.Linear):
    """It writes into what it is given, and into itself."""

    def forward(self, x):
        self.weight.mul_(2)
        return nn.functional.linear(x.zero_(), self.weight)


class Adapted(nn.Linear):
    """A branch that is 0 until it has learned."""

    def __init__(self):
        super().__init__(8, 8)
        self.b = nn.Parameter(torch.zeros(8, 8))

    def forward(self, x):
        return super().forward(x) + x @ self.b


class Reversed(Conv1D):
    def forward(self, x):
        return super().forward(x).flip(-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_subclasses_that_compute_the_same_are_linear_layers(dtype, bias):
    for layer in (FalconLinear(48, 100, bias=bias), Same(48, 100, bias=bias)):
        nn.init.zeros_(layer.weight)  # its own numbers say nothing
        layer = layer.to(dtype)
        assert why_not(layer) is None and weight_of(layer) is layer.weight
    conv = type("Other", (Conv1D,), {})(100, 48).to(dtype)
    assert weight_of(conv).shape == (100, 48) and output_axis(conv) == 1 and output_axis(layer) == 0


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (Doubled(8, 8), "Doubled, a subclass of Linear: it computes something else than x Wᵀ + b"),
        (Clipped(8, 8), "computes something else"),
        (Dropping(8, 8), "computes something else"),
        (Rounding(8, 8), "computes something else"),
        (Remembering(8, 8), "computes something else"),
        (Reversed(8, 8), "Reversed, a subclass of Conv1D: it computes something else"),
        (Adapted(), "Adapted, a subclass of Linear: it holds b beside a weight and a bias"),
        (Grouped(8, 8), "it takes other inputs than x [..., in] (RuntimeError)"),
        (nn.LazyLinear(8), "its weight is no parameter [out, in] of its own"),
        (nn.utils.spectral_norm(nn.Linear(8, 8)), "Linear: it holds weight_orig, weight_u, weight_v beside"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), "holds parametrizations.weight.original0"),
        (nn.Linear(8, 8).to(torch.float8_e4m3fn), "its weight is torch.float8_e4m3fn, so it is quantized already"),
    ],
)
def test_what_computes_something_else_is_left_with_the_reason(layer, why):
    before = {name: tensor for name, tensor in layer.state_dict(keep_vars=True).items()}
    assert is_linear(layer) and weight_of(layer) is None
    assert why in why_not(layer)
    assert all(tensor is before[name] for name, tensor in layer.state_dict(keep_vars=True).items())


def test_a_router_is_no_linear_layer():
    config = type("Config", (), {"hidden_size": 8, "num_local_experts": 4, "num_experts_per_tok": 2})
    assert "a subclass of Linear" in why_not(Llama4Router(config))


def test_a_layer_is_tried_on_a_copy():
    layer = Remembering(8, 8)
    before = layer.weight.detach().clone()
    why_not(layer)
    assert torch.equal(layer.weight, before) and layer.training


def test_another_forward_on_the_instance_is_tried_too():
    layer = nn.Linear(8, 8)
    original = layer.forward
    layer.forward = lambda x: original(x)
    assert why_not(layer) is None
    layer.forward = lambda x: original(x) + 1
    assert why_not(layer) == "Linear: it computes something else than x Wᵀ + b"
    del layer.forward
    assert why_not(layer) is None


def test_hooks_are_not_called_when_a_layer_is_tried():
    layer, heard = Same(8, 8), []
    layer.register_forward_hook(lambda *_: heard.append(1))
    assert why_not(layer) is None and not heard


def test_a_layer_is_tried_once():
    calls = []

    class Counted(nn.Linear):
        def forward(self, x):
            calls.append(1)
            return super().forward(x)

    layer = Counted(8, 8)
    for _ in range(5):
        assert weight_of(layer) is layer.weight
    assert len(calls) == 2  # in eval mode and in training


def test_of_a_layer_without_data_nothing_is_computed():
    assert why_not(Doubled(8, 8, device="meta")) is None  # whoever wants its weight is told that there is none


def test_other_modules_are_no_layers():
    for module in (nn.Embedding(4, 4), nn.LayerNorm(4), nn.Conv1d(4, 4, 1), nn.Bilinear(2, 2, 2)):
        assert not is_linear(module) and weight_of(module) is None


def test_the_layers_of_falcon_are_found():
    assert type(falcon().transformer.h[0].mlp.dense_h_to_4h) is FalconLinear
    assert weight_of(falcon(bias=True).transformer.h[0].mlp.dense_h_to_4h) is not None
