"""SmoothQuant taken apart: the inputs of a model that can be smoothed, and what any alpha does to them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qkit.methods.smoothquant import max_by, search_alpha, smoothing_factor, w8a8_loss
from qkit.model.folding import model_folds
from qkit.model.inputs import layer_inputs
from qkit.study.anatomy.awq import label_of, stacked_weight


@dataclass(frozen=True, eq=False)
class SmoothInput:
    """An input that can be smoothed, and the layers that take it.

    Attributes:
        label: "layers.2: mlp.up_proj → mlp.down_proj".
        weight: float32 [out, in], all layers that share the input, one below the other.
        sample: float32 [tokens, in], some of the inputs.
        x_absmax, w_absmax: float32 [width], the largest |x| (of all tokens) and |w| of the channels of each factor.
        index: int64 [in], which factor each input channel takes.
    """

    label: str
    weight: Tensor
    sample: Tensor
    x_absmax: Tensor
    w_absmax: Tensor
    index: Tensor

    def factor(self, alpha: float | None) -> Tensor:
        """s_j for each input channel, [in] (eq. 4); None: ones, no smoothing."""
        if alpha is None:
            return torch.ones(len(self.index))
        return smoothing_factor(self.x_absmax, self.w_absmax, alpha)[self.index]

    def losses(self, static: bool) -> dict[float | None, float]:
        """The relative squared error of the output in W8A8 over alpha; None is no smoothing."""
        arguments = (self.weight, self.sample, self.x_absmax, self.w_absmax, static, lambda s: s[self.index])
        return {None: w8a8_error(self.weight, self.sample, self.factor(None), static)} | search_alpha(*arguments)

    def maxima(self, alpha: float | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The largest |x| and |w| of each channel, before smoothing and after, each float32 [in].

        Afterwards they are divided by what the median channel was: a factor common to all channels changes nothing in INT8.
        """
        factor = self.factor(alpha)
        factor = factor / factor.median()
        x, w = (values[self.index] for values in (self.x_absmax, self.w_absmax))
        return (x, w), (x / factor, w * factor)


def w8a8_error(weight: Tensor, sample: Tensor, factor: Tensor, static: bool = False) -> float:
    """||Y' - Y||² / ||Y||² when both sides of Y = X Wᵀ are rounded to INT8 after smoothing.

    Args:
        weight: float [out, in].
        sample: [tokens, in].
        factor: [in], what X is divided and W multiplied by.
        static: one activation scale for all these tokens, from their largest |x|.
    """
    return w8a8_loss(weight, sample, factor, (sample / factor).abs().max() if static else None)


@torch.no_grad()
def smooth_inputs(model: nn.Module, ids: Tensor, tokens: int = 512) -> list[SmoothInput]:
    """Every input of a model that a factor can be folded out of, in the order of the blocks.

    Args:
        model: a decoder of transformers.
        ids: int64 [sequences, length].
        tokens: how many of the inputs are kept as a sample, the first ones.
    """
    inputs, found = layer_inputs(model, ids), []
    for name, (folds, _) in model_folds(model, ids[:1, :16]).items():
        block = model.get_submodule(name)
        for one in folds:
            weight = stacked_weight(block, one)
            x = inputs[f"{name}.{one.consumers[0]}"]
            x_absmax, w_absmax = (max_by(values.abs().amax(0), one.index, one.width) for values in (x, weight))
            found.append(SmoothInput(label_of(name, one), weight, x[:tokens].clone(), x_absmax, w_absmax, one.index))
    return found
