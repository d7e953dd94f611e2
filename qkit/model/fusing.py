"""Which layers of a model read the same input, and have them compute as one product on a GPU."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from qkit.model.facts import read
from qkit.model.hooks import evaluating, input_of, instead
from qkit.nn.fused import alike, fuse
from qkit.nn.layers import quantized_layers
from qkit.nn.qlinear import QLinear


@torch.no_grad()
def fuse_projections(model: nn.Module) -> list[tuple[str, ...]]:
    """Have layers that read the same input compute as one product on a GPU (`qkit.nn.fused`): q, k and v, gate and up.

    Names, buffers and what is saved stay as they are, and so does what each layer returns, but for the order of sums. Call it
    when the model is on its card and has its weights; a model that is moved then is as it was before.

    Args:
        model: a model of transformers, quantized.

    Returns:
        the names of those that are together. Layers on a CPU, and of forms that differ, are not.
    """
    layers, found = quantized_layers(model), []
    for names in shared_inputs(model):
        several = [layers[name] for name in names]
        if alike(several) and several[0].packed.is_cuda:
            fuse(several)
            found.append(names)
    return found


def shared_inputs(model: nn.Module) -> list[tuple[str, ...]]:
    """Quantized layers, by name, that are called one after the other with the same tensor, in that order; each but once.

    The model reads one token, and its quantized layers put out zeros: none computes, and nothing is laid out for a kernel.
    """
    runs: list[tuple[Tensor, list[str]]] = []

    def listen(name: str, layer: QLinear) -> Callable[..., Tensor]:
        def hear(*args, **kwargs) -> Tensor:
            x = input_of(args, kwargs)
            if not runs or runs[-1][0] is not x:
                runs.append((x, []))
            runs[-1][1].append(name)
            return x.new_zeros(*x.shape[:-1], layer.out_features)

        return hear

    heard = [(layer, listen(name, layer)) for name, layer in quantized_layers(model).items()]
    if heard:
        with torch.no_grad(), evaluating(model), instead(heard):
            read(model, torch.zeros(1, 1, dtype=torch.long))
    calls = Counter(name for _, together in runs for name in together)
    return [tuple(names) for _, names in runs if len(names) > 1 and all(calls[name] == 1 for name in names)]
