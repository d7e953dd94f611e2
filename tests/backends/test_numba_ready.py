"""What a weight keeps for its next product: noticed when its memory changes, shared with nobody, and of no weight with gaps."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from products import random, weight
from qkit import NF4, RTN, QLinear, linear, ops, quantize_tensor
from qkit.backends.numba import few
from qkit.backends.numba.ready import ready
from qkit.methods.int8 import int8_rows
from qkit.numerics.activations import INT8
from qkit.ops import int8_linear

WEIGHTS = [weight(4, 8, 96, 32, "zero points", real=True), quantize_tensor(random(8, 128), NF4())]
X = random(3, 96)


def other(q):
    """The same codes, all scales doubled: another product."""
    return replace(q, scales=q.scales.float().mul(2).to(q.scales.dtype))


@pytest.mark.parametrize("q", WEIGHTS, ids=repr)
def test_it_is_made_once_and_of_no_copy(q):
    linear(random(1, q.shape[1]), q)
    assert ready(q) is q.ready is ready(q)
    for twin in (copy.copy(q), copy.deepcopy(q), pickle.loads(pickle.dumps(q)), replace(q), q.to("cpu")):
        assert not hasattr(twin, "ready")
        assert torch.equal(linear(random(2, q.shape[1]), twin), linear(random(2, q.shape[1]), q))


def given_other_data(q, new):
    q.scales.data = new.scales.data


def set_to_other_memory(q, new):
    q.scales.set_(new.scales)


def written_into(q, new):
    q.scales.copy_(new.scales)


def moved_to_shared_memory(q, new):
    for part in q.tensors().values():
        part.share_memory_()
    q.scales.copy_(new.scales)


@pytest.mark.parametrize("change", [given_other_data, set_to_other_memory, written_into, moved_to_shared_memory])
@pytest.mark.parametrize("tokens", [1, 3, 9])
def test_a_weight_whose_memory_changes_multiplies_with_what_it_holds_now(change, tokens):
    q, x = copy.deepcopy(WEIGHTS[0]), random(tokens, 96)
    new = other(q)
    linear(x, q)
    change(q, new)
    assert torch.equal(linear(x, q), linear(x, new))


@pytest.mark.parametrize("change", ["replaced", "written past the module", "loaded", "moved and back"])
def test_a_layer_whose_buffers_change_multiplies_with_those_it_has_now(change):
    module = QLinear(copy.deepcopy(WEIGHTS[0]))
    new = QLinear(other(WEIGHTS[0]))
    module(X)
    if change == "replaced":
        module.scales = new.scales
    elif change == "written past the module":
        module._buffers["scales"] = new.scales
    elif change == "loaded":
        module.load_state_dict(new.state_dict())
    else:
        module.to("meta").to_empty(device="cpu").load_state_dict(new.state_dict())
    assert torch.equal(module(X), new(X))


def test_nothing_is_kept_of_a_weight_with_gaps():
    """It is copied for each product, so that what is written into it counts."""
    q = replace(WEIGHTS[0], scales=WEIGHTS[0].scales.T.contiguous().T)
    linear(X, q)
    assert not hasattr(q, "ready")
    q.scales.mul_(2)
    assert torch.equal(linear(X, q), linear(X, replace(q, scales=q.scales.contiguous())))


# ---- the one call of a few tokens, and the steps where it cannot be made


@pytest.fixture(params=["no team of threads in this process", "rows too long for the stack"])
def in_steps(request, monkeypatch):
    if request.param.startswith("no team"):
        monkeypatch.setattr(few, "team_of", lambda *_: None)
    else:
        monkeypatch.setattr(few, "MAX_LAID", 0)


PRODUCTS = {
    "floats": lambda x, bias: linear(x, WEIGHTS[0], bias),
    "integers": lambda x, bias: linear(x, WEIGHTS[0], bias, activations="int8"),
    "one scale a row": lambda x, bias: int8_linear(x, int8_rows(random(8, 96)), bias),
}
ONE_CALL = {
    (name, tokens, dtype): product(random(tokens, 96).to(dtype), random(8))
    for name, product in PRODUCTS.items()
    for tokens in (1, 2, 3, 4)
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_one_call_and_several_steps_give_the_same_bits(name, in_steps):
    for (of, tokens, dtype), expected in ONE_CALL.items():
        if of == name:
            found = PRODUCTS[name](random(tokens, 96).to(dtype), random(8))
            assert found.dtype == dtype and torch.equal(found, expected), (tokens, dtype)


CALLS = {
    "floats": (lambda: copy.deepcopy(WEIGHTS[0]), lambda *args: linear(*args)),
    "a codebook": (lambda: copy.deepcopy(WEIGHTS[1]), lambda *args: linear(*args)),
    "integers": (lambda: copy.deepcopy(WEIGHTS[0]), lambda *args: linear(*args, activations=INT8)),
    "one scale a row": (lambda: int8_rows(random(8, 96)), lambda *args: int8_linear(*args)),
    "one scale for all": (lambda: int8_rows(random(8, 96)), lambda *args: int8_linear(*args, torch.tensor(0.02))),
    "outliers": (lambda: int8_rows(random(8, 96)), lambda *args: int8_linear(*args, threshold=1.5)),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("leading", [(), (1, 1), (3,), (2, 2)], ids=str)
def test_from_the_second_time_on_nothing_is_asked(name, leading, dtype, monkeypatch):
    make, call = CALLS[name]
    q = make()
    x = random(*leading, q.shape[1]).to(dtype)
    bias = random(8) if dtype == torch.float32 else None
    expected = call(x, q, bias)
    for operation in ("_linear", "_int8_linear"):
        monkeypatch.setattr(ops, operation, lambda *_: pytest.fail("everything is asked"))
    found = call(x, q, bias)
    assert found.dtype == dtype and found.shape == (*leading, 8) and torch.equal(found, expected)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_refused_at_first_is_refused_ever_after(name):
    make, call = CALLS[name]
    q, new = make(), make()
    x = random(1, q.shape[1])
    wrong = [
        (x[:, :-1], None),
        (random(2 * q.shape[1]), None),  # as many numbers as two tokens
        (torch.zeros(()), None),
        (x.int(), None),
        (x.to("meta"), None),
        (x, random(7)),
        (x, random(8, 1)),
        (x, random(8).to("meta")),
    ]
    call(x, q, None)
    for given, bias in wrong:
        messages = []
        for one in (new, q):
            with pytest.raises(ValueError) as error:
                call(given, one, bias)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
    assert hasattr(q, "ready") and not hasattr(new, "ready")


def test_a_scale_of_the_inputs_that_is_elsewhere_is_refused_ever_after():
    q, x = int8_rows(random(8, 96)), random(1, 96)
    int8_linear(x, q)
    with pytest.raises(ValueError, match="input_scale is on meta and the weight on cpu"):
        int8_linear(x, q, None, torch.tensor(0.02, device="meta"))


def test_whoever_looks_or_learns_is_asked_every_time():
    q, x = copy.deepcopy(WEIGHTS[0]), random(1, 96)
    expected = linear(x, q)
    inputs, bias = x.clone().requires_grad_(), random(8).requires_grad_()
    y = linear(inputs, q, bias)
    assert torch.equal(y, expected + bias)
    y.sum().backward()
    assert inputs.grad is not None and torch.equal(bias.grad, torch.ones(8))
    _, tangent = torch.func.jvp(lambda x: linear(x, q), (x,), (torch.ones(1, 96),))
    torch.testing.assert_close(tangent, ops.dequantize(q).sum(1)[None])
    with pytest.raises(TypeError, match=r"torch.jit.trace and torch.export cannot write down"):
        torch.jit.trace(QLinear(q), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tokens", [1, 3, 4, 7])
def test_a_bias_is_added_to_what_has_been_rounded(tokens, dtype):
    """Whoever adds it, and however it lies."""
    x, b = random(tokens, 96).to(dtype), random(16)
    for bias in (b[:8], b[::2], b[:1].expand(8), b[:8].to(dtype), b[:8].double(), nn.Parameter(b[:8])):
        for activations in (None, "int8"):
            expected = linear(x, WEIGHTS[0], None, None, activations) + bias.detach().to(dtype)
            assert torch.equal(linear(x, WEIGHTS[0], bias, None, activations), expected)
            with torch.no_grad():
                assert torch.equal(linear(x, WEIGHTS[0], bias, None, activations), expected)


def test_inputs_that_are_not_what_their_memory_says_are_multiplied_as_what_they_are():
    """A view that is minus its memory, a parameter, a subclass."""

    class Named(torch.Tensor):
        pass

    expected = linear(-X, WEIGHTS[0])
    minus = torch.complex(torch.zeros(3, 96), X).conj().imag
    assert minus.is_neg()
    assert torch.equal(linear(minus, WEIGHTS[0]), expected)
    with torch.no_grad():
        assert torch.equal(linear(nn.Parameter(-X), WEIGHTS[0]), expected)
    assert torch.equal(linear((-X).as_subclass(Named), WEIGHTS[0]).as_subclass(torch.Tensor), expected)


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_layer_of_zeros_gives_its_bias(tokens):
    q, bias = quantize_tensor(torch.zeros(8, 96), RTN(4, 32)), random(8)
    assert torch.equal(linear(random(tokens, 96), q, bias), bias.expand(tokens, 8))
