"""The driver: one tensor, or every layer of a model."""

import time

import torch
from torch import Tensor, nn
from tqdm import tqdm

from qkit import ops
from qkit.error import error_statistics
from qkit.mapping import GroupSize, check_finite, check_group_size
from qkit.methods.rtn import rtn
from qkit.modules import QLinear
from qkit.qtensor import QTensor
from qkit.report import LayerReport, QuantizationReport
from qkit.schemes import RTN
from qkit.surgery import Globs, find_targets, swap


def quantize_tensor(
    weight: Tensor,
    scheme: RTN | None = None,
    *,
    bits: int | None = None,
    group_size: GroupSize = None,
    symmetric: bool = False,
    name: str = "the weight",
) -> QTensor:
    """Quantize one weight, by a scheme or by rounding to nearest with the arguments given.

    Args:
        weight: float [out, in], finite.
        scheme: what to do; or leave it out and give `bits`.
        bits, group_size, symmetric: those of `RTN`.
        name: how errors name the weight.

    Example:
        >>> q = quantize_tensor(torch.randn(8, 256), bits=4, group_size=128)
    """
    if scheme is None:
        if bits is None:
            raise ValueError("nothing says how to quantize; give a scheme, e.g. RTN(bits=4), or bits=4")
        scheme = RTN(bits=bits, group_size=group_size, symmetric=symmetric)
    elif bits is not None or group_size is not None or symmetric:
        raise ValueError(f"both {scheme} and bits, group_size or symmetric are given; put them all in the scheme")
    check_scheme(scheme)
    check_weight(weight, scheme, name)
    return rtn(weight, scheme, name)


def check_scheme(scheme: RTN) -> None:
    """Refuse what is not a scheme."""
    if not isinstance(scheme, RTN):
        raise TypeError(f"scheme={scheme!r} is not a scheme; give one such as qkit.RTN(bits=4, group_size=128)")


def check_weight(weight: Tensor, scheme: RTN, name: str) -> None:
    """Refuse a weight that `scheme` cannot quantize."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} is a {type(weight).__name__}; give a torch tensor [out, in]")
    if weight.dim() != 2 or not weight.is_floating_point() or not weight.numel():
        raise ValueError(
            f"{name} is {weight.dtype} of shape {tuple(weight.shape)}; give a float weight [out, in] that is not empty"
        )
    check_group_size(scheme.group_size, weight.shape[1], name)
    check_finite(weight, name)
    limit = torch.finfo(torch.float32).max / 4
    if (reach := float(weight.detach().abs().max())) > limit:
        raise ValueError(
            f"{name} reaches {reach:.2g}, float32 arithmetic needs |w| <= {limit:.2g}; divide the weight by it"
        )


def quantize(
    model: nn.Module,
    scheme: RTN,
    *,
    include: Globs = None,
    exclude: Globs = None,
    progress: bool | None = None,
) -> QuantizationReport:
    """Quantize the linear layers of `model`, in place.

    Every Linear and Conv1D is swapped for a `QLinear`; embeddings, norms and the output head stay. All layers are checked
    and quantized before the first is swapped: an error, or Ctrl-C, leaves the model as it was.

    Args:
        model: a transformers model, or any module with Linear layers.
        scheme: e.g. `RTN(bits=4, group_size=128)`.
        include: globs on full layer names, instead of the rule ("*" is everything, the output head too).
        exclude: globs on full layer names that stay as they are.
        progress: show a bar; None: on a terminal only.

    Returns:
        What was swapped with which error, what was left and why.
    """
    check_scheme(scheme)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a module: model, tokenizer = qkit.load(name)")
    targets, skipped = find_targets(model, include, exclude)
    for target in targets:
        check_weight(target.weight, scheme, target.name)

    seconds = 0.0
    layers: dict[str, QLinear] = {}
    reports: list[LayerReport] = []
    twins: dict[int, QLinear] = {}  # a module that the model uses under two names is quantized once
    bar = tqdm(targets, desc=scheme.name, unit="layer", disable=None if progress is None else not progress)
    for target in bar:
        if id(target.module) not in twins:
            start = time.perf_counter()
            q = rtn(target.weight, scheme, target.name)
            seconds += time.perf_counter() - start
            twins[id(target.module)] = QLinear(q, target.module.bias).train(target.module.training)
            reports.append(_layer_report(target.name, target.kind, target.weight, q, scheme))
        layers[target.name] = twins[id(target.module)]
    swap(model, layers)
    return QuantizationReport(scheme.to_dict(), tuple(reports), tuple(skipped), seconds)


@torch.no_grad()
def _layer_report(name: str, kind: str, weight: Tensor, q: QTensor, scheme: RTN) -> LayerReport:
    error = error_statistics(weight, ops.dequantize(q))
    return LayerReport(name, kind, q.shape, scheme.name, q.bits_per_weight, q.nbytes, error)
