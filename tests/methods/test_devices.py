"""Arithmetic that a card does otherwise than a processor is not used where codes are made: found without a card.

CUDA does not divide by a Python number: it multiplies with the rounded inverse, and one weight in a few thousand gets another
code. Its `pow` and its `linspace` differ from the CPU's in the last bit. (Sums differ too, by their order; those cannot be had.)
"""

import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import qkit
from qkit.methods.statistics import InputStatistics
from schemes import every_scheme

SCHEMES = [
    *every_scheme(),
    qkit.RTN(4, 4, include_zero=False),
    qkit.GPTQ.paper(4, 4),
    qkit.GPTQ(4, 4, act_order=False, static_groups=False),
    qkit.AWQ(4, 4, rounding=qkit.GPTQ(4, 4)),
    qkit.W8A8("per-tensor", "mse"),
    qkit.W8A8("per-tensor", "percentile"),
    qkit.SmoothQuant(None),
    qkit.SmoothQuant(None, "per-tensor"),
]


def exactly_inverted(number):
    """A power of two: to multiply with its inverse is to divide."""
    return abs(torch.frexp(torch.tensor(float(number))).mantissa.item()) == 0.5


def called_from(file):
    return any(frame.filename.endswith(file) for frame in traceback.extract_stack())


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, numbers = function.overloadpacket.__name__, [a for a in args[1:2] if isinstance(a, int | float)]
        floats = isinstance(args[0], torch.Tensor) and args[0].is_floating_point() if args else False
        if name.startswith("div") and floats and not all(map(exactly_inverted, numbers)):
            raise AssertionError(f"a tensor is divided by {numbers[0]}; use `qkit.numerics.arithmetic.divided`")
        if name.startswith("pow") and floats and numbers not in ([2], [0.5]) and not called_from("arithmetic.py"):
            raise AssertionError("no two libraries round powers alike; use `qkit.numerics.arithmetic.power`")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_no_scheme_uses_what_a_card_does_otherwise(scheme):
    x = torch.randn(300, 48, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(24, 48, generator=torch.Generator().manual_seed(1))
    scheme.round(weight)  # tables are made once
    with Watch(), torch.no_grad():
        inputs = InputStatistics.empty(48)
        for part, twin in zip(x.split(77), (1.1 * x).split(77), strict=True):
            inputs.add(part, twin)
        if scheme.scales:
            for index, width in ((torch.arange(48), 48), (torch.arange(48) // 3, 16)):
                scheme.search_scale(weight, inputs, index, width)
        solution = scheme.round(weight, inputs)
        scheme.layer(solution.q, None, inputs)(x)


@pytest.mark.parametrize(("operation", "word"), [(lambda x: x / 3, "divided"), (lambda x: x**0.3, "power")])
def test_the_watch_sees(operation, word):
    with pytest.raises(AssertionError, match=word), Watch():
        operation(torch.ones(3))
    with Watch():
        torch.ones(3) / 4, torch.ones(3) / torch.tensor(3.0), torch.ones(3) ** 2, torch.ones(3) ** 0.5
