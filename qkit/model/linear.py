"""Which modules compute x Wᵀ + b and nothing else, so that a quantized layer can stand for them.

Linear and Conv1D do. Whether a subclass does is not said by its name but by what it computes: a copy of it, with other
numbers for a weight, is given an input. The same is asked of a layer on whose instance somebody has set another forward.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from qkit.model.copies import copy_module

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_TRIED: WeakKeyDictionary[nn.Module, tuple[tuple, str | None]] = WeakKeyDictionary()  # what was asked, and the answer


def weight_of(module: nn.Module) -> Tensor | None:
    """The weight of a layer that QLinear can stand for, as [out, in]; None for any other module."""
    if not is_linear(module) or why_not(module) is not None:
        return None
    return module.weight.T if output_axis(module) else module.weight


def matrix_of(module: nn.Module) -> Tensor:
    """The same of a module that is known to be such a layer.

    Raises:
        TypeError: it is not.
    """
    if (weight := weight_of(module)) is None:
        raise TypeError(
            f"{type(module).__name__} has no weight [out, in] that QLinear can stand for; give a linear layer"
        )
    return weight


def bias_of(module: nn.Module) -> nn.Parameter | None:
    """The bias of such a layer, or None."""
    return module._parameters.get("bias")


def is_linear(module: nn.Module) -> bool:
    """Whether it is a Linear, a Conv1D or of a subclass of these, whatever that computes."""
    return isinstance(module, (nn.Linear, _conv1d()))


def output_axis(module: nn.Module) -> int:
    """Which axis of its `weight` the output channels of a layer have: 1 in a Conv1D, which stores [in, out], else 0."""
    return int(isinstance(module, _conv1d()))


def why_not(module: nn.Module) -> str | None:
    """Why QLinear cannot stand for a layer of which `is_linear` is true; None: it can."""
    plain = type(module) in (nn.Linear, _conv1d())
    kind = type(module).__name__
    kind += "" if plain else f", a subclass of {'Conv1D' if output_axis(module) else 'Linear'}"
    own = [name for name, _ in [*module.named_parameters(), *module.named_buffers()] if name not in ("weight", "bias")]
    if own:  # an adapter that is 0 when it begins to learn cannot be told by what it computes
        return f"{kind}: it holds {', '.join(own)} beside a weight and a bias"
    weight = module._parameters.get("weight")
    if weight is None or is_lazy(weight) or weight.dim() != 2:
        return f"{kind}: its weight is no parameter [out, in] of its own"
    if weight.dtype not in FLOATING:
        return f"{kind}: its weight is {weight.dtype}, so it is quantized already"
    if (plain and "forward" not in vars(module)) or weight.is_meta:  # of what has no data nothing can be computed
        return None
    question = (type(module), vars(module).get("forward"), weight.shape, weight.dtype)
    if module not in _TRIED or _TRIED[module][0] != question:
        _TRIED[module] = question, _difference(module)
    difference = _TRIED[module][1]
    return None if difference is None else f"{kind}: {difference}"


def _conv1d() -> type[nn.Module]:
    from transformers.pytorch_utils import Conv1D  # GPT-2's Linear

    return Conv1D


@torch.no_grad()
def _difference(module: nn.Module) -> str | None:
    """What a layer does other than x Wᵀ + b, or None, found by running a copy of it on other numbers."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device="cpu").uniform_(-1, 1, generator=generator)

    def stand_in(p: Tensor) -> nn.Parameter:  # in a matrix each row is the one before moved on by one: it may be large
        numbers = draw(*p.shape) if p.dim() < 2 else draw(len(p) + p.shape[1]).unfold(0, p.shape[1], 1)[: len(p)]
        return nn.Parameter(numbers.to(p).contiguous())

    memo: dict[int, Any] = {id(p): stand_in(p) for p in module.parameters()}
    weight, bias = memo[id(module.weight)], None if module.bias is None else memo[id(module.bias)]
    weight = weight.T if output_axis(module) else weight
    layer = copy_module(module, memo)
    scales = torch.tensor([[1.0], [100.0], [0.01]], dtype=torch.float32, device="cpu")  # what clips is found out
    x = (draw(2, 3, weight.shape[1]) * scales).to(weight)
    expected = F.linear(x, weight, bias)
    sizes = F.linear(x.abs(), weight.abs(), None if bias is None else bias.abs())
    for training in (False, True):
        try:
            output = layer.train(training).forward(x.clone())  # without its hooks: they go with the place
        except Exception as error:  # whatever a forward that we do not know may raise
            return f"it takes other inputs than x [..., in] ({type(error).__name__})"
        # Summed in any order it may be, and rounded before the bias is added; anything more is something else.
        same = isinstance(output, Tensor) and output.shape == expected.shape and output.dtype == expected.dtype
        if not same or not ((output - expected).abs() <= 4 * torch.finfo(x.dtype).eps * sizes).all():
            return "it computes something else than x Wᵀ + b"
    return None
