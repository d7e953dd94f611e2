"""Copies that compute by themselves, whatever functions hang on the instances."""

from functools import partial

import pytest
import torch
from torch import nn

from qkit import RTN, quantize
from qkit.model.surgery import clone


def bound(module):
    module._old_forward = module.forward
    module.forward = partial(lambda module, *args, **kwargs: module._old_forward(*args, **kwargs), module)


def closure(module):
    original = module.forward
    module.forward = lambda *args, **kwargs: original(*args, **kwargs)


def nested(module):
    original = module.forward

    def inner(*args, again=3, **kwargs):
        return inner(*args, again=again - 1, **kwargs) if again else original(*args, **kwargs)

    module.forward = partial(inner)


def defaults(module):
    def forward(*args, original=module.forward, **kwargs):
        return original(*args, **kwargs)

    module.forward = forward


def of_the_class(module):
    module.forward = type(module).forward.__get__(module)


def hook(module):
    module.register_forward_hook(lambda _module, args, output: module.weight.sum())


PATCHES = [bound, closure, nested, defaults, of_the_class]


@pytest.mark.parametrize("patch", PATCHES)
def test_a_copy_of_a_patched_model_runs_itself(make_model, ids, logits, patch):
    model = make_model("llama")
    for module in (model, model.model.layers[0], model.model.layers[1].mlp):
        patch(module)
    before, forwards = logits(model, ids), [vars(m).get("forward") for m in model.modules()]
    copied = clone(model)
    assert torch.equal(logits(copied, ids), before)
    ran = []
    for layer in (model, *model.model.layers, model.model.layers[1].mlp):
        layer.register_forward_pre_hook(lambda *_: ran.append(1))
    quantize(copied, RTN(2))
    assert not torch.equal(logits(copied, ids), before) and not ran
    assert torch.equal(logits(model, ids), before)
    assert [vars(m).get("forward") for m in model.modules()] == forwards


def test_hooks_of_a_copy_speak_of_the_copy():
    model = nn.Sequential(nn.Linear(4, 4))
    hook(model[0])
    copied = clone(model)
    for layer, value in ((model[0], 1.0), (copied[0], 2.0)):
        layer.weight = nn.Parameter(torch.full((4, 4), value))
    assert copied(torch.ones(1, 4)) == 32 and model(torch.ones(1, 4)) == 16


def test_what_refers_to_nothing_of_the_model_is_the_same_function():
    model, heard = nn.Sequential(nn.Linear(4, 4)), []
    listen = model.register_forward_hook(lambda *_: heard.append(1)) and next(iter(model._forward_hooks.values()))
    copied = clone(model)
    assert next(iter(copied._forward_hooks.values())) is listen
    copied(torch.ones(1, 4))
    assert heard == [1]


def test_tensors_that_are_no_parameters_are_shared_too():
    layer = nn.Linear(4, 4)
    layer.table = torch.ones(3)
    layer.derived = layer.table * nn.Parameter(torch.ones(3))  # deepcopy refuses what has a history
    copied = clone(layer)
    assert copied.table is layer.table and copied.derived is layer.derived


@pytest.mark.filterwarnings("ignore:40 calibration tokens")
def test_a_model_with_hooks_of_accelerate(make_model, ids, logits):
    hooks = pytest.importorskip("accelerate", reason="accelerate is not installed").hooks
    model, plain = make_model("llama"), make_model("llama")
    for module in model.modules():
        hooks.add_hook_to_module(module, hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True))
    quantize(clone(model), RTN(2))
    assert torch.equal(logits(model, ids), logits(plain, ids))
    for one in (model, plain):
        quantize(one, RTN(4))
    assert torch.equal(logits(model, ids), logits(plain, ids))
