"""What is done for a while is undone: after an error too, and to what was there, not to what the class would have."""

import functools
import threading

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from qkit import search_scales
from qkit.methods.smoothquant import SmoothQuant
from qkit.model.blocks import capture
from qkit.model.hooks import evaluating, full_products, input_of, instead, listening, uncompiled
from qkit.model.replay import Replay, find_closings


def wrapped(module):
    """Another forward on the instance, as accelerate sets one."""
    module._old_forward = module.forward
    module.forward = functools.partial(lambda module, *args, **kwargs: module._old_forward(*args, **kwargs), module)
    return module.forward


def test_listeners_hear_and_are_gone_afterwards():
    layer, heard = nn.Linear(3, 2), []
    x = torch.ones(1, 3)
    with listening([(layer, lambda *call: heard.append(call))]), torch.no_grad():
        layer(x)
        layer(input=x)
    with listening([(layer, lambda *call: heard.append(call))], after=True):
        y = layer(x)
    layer(x)
    assert [len(call) for call in heard] == [3, 3, 4]
    assert all(call[0] is layer and input_of(*call[1:3]) is x for call in heard) and heard[2][3] is y
    assert not layer._forward_pre_hooks and not layer._forward_hooks


def test_what_a_listener_returns_changes_nothing():
    layer, x = nn.Linear(3, 3), torch.ones(1, 3)
    y = layer(x)
    for after in (False, True):
        with listening([(layer, lambda *_: torch.zeros(1, 3))], after):
            assert torch.equal(layer(x), y)


def test_listeners_are_gone_after_an_error_also_where_one_could_not_be_set():
    layer = nn.Linear(3, 2)
    with pytest.raises(KeyboardInterrupt), listening([(layer, print)]):
        raise KeyboardInterrupt
    with pytest.raises(AttributeError), listening([(layer, print), (None, print)]):
        pass
    assert not layer._forward_pre_hooks


def test_another_forward_stands_instead_of_the_one_of_the_class_or_of_the_instance():
    layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    own = wrapped(layers[1])
    x = torch.ones(1, 3)
    before = [layer(x) for layer in layers]
    for error in (None, KeyboardInterrupt):
        try:
            with instead((layer, lambda x: x) for layer in layers):
                assert all(layer(x) is x for layer in layers)
                if error:
                    raise error
        except KeyboardInterrupt:
            pass
        assert "forward" not in vars(layers[0]) and vars(layers[1])["forward"] is own
        assert all(torch.equal(layer(x), y) for layer, y in zip(layers, before, strict=True))


def test_one_module_twice_gets_back_what_it_had():
    layer = nn.Linear(3, 3)
    own = wrapped(layer)
    with instead([(layer, lambda x: x), (layer, lambda x: 2 * x)]):
        assert layer(1) == 2
    assert vars(layer)["forward"] is own


def test_every_module_is_in_the_mode_it_was_in(make_model):
    first, second = make_model("llama").train(), make_model("llama")
    first.model.layers[0].eval()
    modes = [m.training for model in (first, second) for m in model.modules()]
    with pytest.raises(KeyboardInterrupt), evaluating(first, second):
        assert not any(m.training for model in (first, second) for m in model.modules())
        raise KeyboardInterrupt
    assert [m.training for model in (first, second) for m in model.modules()] == modes


@pytest.mark.filterwarnings("ignore:40 calibration tokens")
def test_whatever_runs_a_model_leaves_the_forwards_that_were_set_on_it(make_model, ids):
    model = make_model("llama")
    modules = [*model.model.layers, model.model.layers[0].self_attn, model.model.layers[1].mlp]
    forwards = [wrapped(module) for module in modules]
    search_scales(model, SmoothQuant(), calibration=ids)
    blocks, hidden = capture(model, [ids])
    replay = Replay(blocks[0], blocks[0].module, hidden)
    replay.closings = find_closings(blocks[0], hidden[0], [n for n, m in modules[0].named_modules() if "_proj" in n])
    name = "self_attn.o_proj"
    replay.hear(0, [name], {})
    replay.settle(name)
    replay.run(0)
    assert [vars(module).get("forward") for module in modules] == forwards


def legacy(precision):
    torch.set_float32_matmul_precision(precision)


def newer(precision):
    torch.backends.cuda.matmul.fp32_precision = precision


@pytest.mark.parametrize(
    ("switch", "to", "back"), [(legacy, "high", "highest"), (legacy, "medium", "highest"), (newer, "tf32", "ieee")]
)
def test_products_are_whole_inside_and_what_they_were_outside(switch, to, back):
    if switch is newer and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has the older switch only")
    switch(to)
    try:
        before = switches()
        with pytest.raises(KeyError), full_products():
            assert switches() == ("highest", False)
            raise KeyError
        assert switches() == before != ("highest", False)
    finally:
        switch(back)
    assert switches() == ("highest", False)


def switches():
    """What torch does with products of float32; it refuses to say so in words where the newer switch was set."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:
        return "newer", torch.backends.cuda.matmul.fp32_precision


def is_compiled():
    """Whether torch.compile compiles now."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    torch.compile(lambda x: x + 1, backend=counter)(torch.ones(1))
    return counter.frame_count > 0


@pytest.mark.parametrize(("context", "outside"), [(full_products, switches), (uncompiled, is_compiled)])
def test_of_two_threads_the_last_that_leaves_puts_back_what_was_before_the_first(context, outside):
    legacy("high")
    try:
        before, there, leave = outside(), threading.Event(), threading.Event()

        def stay():
            with context():
                there.set()
                leave.wait(60)

        other = threading.Thread(target=stay)
        with context():
            other.start()
            assert there.wait(60)
            inside = outside()
        assert before != inside == outside(), "the other is still inside"
        leave.set()
        other.join()
        assert outside() == before
        with context(), context():
            assert outside() == inside
        assert outside() == before
    finally:
        legacy("highest")
