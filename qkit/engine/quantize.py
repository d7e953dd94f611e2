"""The driver: one tensor, or every layer of a model."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from qkit import ops
from qkit.engine.plan import Plan, plan_name, plan_to_dict
from qkit.engine.prepare import calibrating, prepare
from qkit.engine.progress import progress_bar
from qkit.engine.report import LayerReport, QuantizationReport
from qkit.engine.resume import Resume
from qkit.engine.scaling import Scaling
from qkit.engine.solve import SolvedLayer, solve_layer
from qkit.engine.stream import SolvedBlock, solve_blocks
from qkit.methods.rtn import RTN
from qkit.methods.scheme import Scheme
from qkit.model.linear import bias_of
from qkit.model.surgery import Globs, Target, largest_left, set_parameter, swap, weight_share
from qkit.numerics.error import error_statistics
from qkit.numerics.mapping import GroupSize
from qkit.numerics.stored import StoredWeight
from qkit.text.tokens import CHUNKS


@torch.no_grad()
def quantize_tensor(
    weight: Tensor,
    scheme: Scheme | None = None,
    *,
    bits: int | None = None,
    group_size: GroupSize = None,
    symmetric: bool = False,
    name: str = "the weight",
) -> StoredWeight:
    """Quantize one weight, by a scheme or by rounding to nearest with the arguments given.

    Args:
        weight: float [out, in], finite.
        scheme: what to do; or leave it out and give `bits`. One that wants calibration has none here: it rounds.
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
    if not isinstance(scheme, Scheme):
        raise TypeError(f"scheme={scheme!r} is not a scheme; give one such as qkit.RTN(bits=4, group_size=128)")
    scheme.check(weight, name)
    return scheme.round(weight, name=name).q


def quantize(
    model: nn.Module,
    scheme: Plan,
    *,
    calibration: str | Sequence[str] | Tensor | None = None,
    tokenizer=None,
    max_chunks: int = CHUNKS,
    include: Globs = None,
    exclude: Globs = None,
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> QuantizationReport:
    """Quantize the linear layers of `model`, in place.

    Every Linear and Conv1D is swapped for a quantized layer; embeddings, norms and the output head stay. All layers are
    checked and quantized before the first is swapped: an error, or Ctrl-C, leaves the model as it was.

    Args:
        model: a transformers model, or (for schemes that need no data) any module with Linear layers.
        scheme: e.g. `GPTQ(bits=4, group_size=128)`; or several by globs on layer names, the first that matches decides:
            `{"*.down_proj": RTN(8), "*": GPTQ(4)}`.
        calibration: a text, several (each gets an equal share), or token ids [sequences, length].
        tokenizer: needed for texts.
        max_chunks: how many chunks of 511 tokens are taken from the texts, spread evenly over them.
        include: globs on full layer names, instead of the rule ("*" is everything, the output head too).
        exclude: globs on full layer names that stay as they are.
        resume: a folder that keeps each finished block: interrupted, the same call goes on where it stopped.
        progress: show a bar; None: on a terminal only.

    Returns:
        What was swapped with which error, what was left and why.
    """
    work = prepare(model, scheme, calibration, tokenizer, max_chunks, include, exclude)
    targets, schemes, ids = work.targets, work.schemes, work.ids

    share, left = weight_share(model, targets), largest_left(model, targets)
    start = time.perf_counter()
    blocks: list[SolvedBlock] = []
    records = {name: one.to_dict() for name, one in schemes.items()}
    kept = Resume.open(resume, model, records, ids) if resume is not None and ids is not None else None
    with progress_bar(progress, plan_name(scheme), "layer", len(targets)) as bar:
        if ids is not None:
            with calibrating(model):
                for block in solve_blocks(model, schemes, ids, bar.update, kept.finished if kept else None):
                    blocks.append(block)
                    if kept:
                        kept.keep(block)
        solutions = {name: solution for block in blocks for name, solution in block.solutions.items()}
        twins = {id(t.module): solutions[t.name] for t in targets if t.name in solutions}
        solutions |= _solve_outside([t for t in targets if t.name not in solutions], schemes, twins, bar.update)
    seconds = time.perf_counter() - start

    weights = {name: weight for block in blocks for name, weight in block.weights.items()}
    tokens = {name: count for block in blocks for name, count in block.tokens.items()}
    reports = []
    first: dict[int, Target] = {}  # a module that the model uses under two names is reported once
    for target in targets:
        first.setdefault(id(target.module), target)
    for target in first.values():
        looked = ids is not None and (schemes[target.name].calibrated or schemes[target.name].observes)
        seen = tokens.get(target.name, 0) if looked else None
        weight = weights.get(target.name, target.weight)
        reports.append(_layer_report(target, weight, solutions[target.name], schemes[target.name], seen))
    said = [word for report in reports for word in solutions[report.name].warnings]
    for block in blocks:
        for name, parameter in block.parameters.items():
            set_parameter(model, name, parameter)
    swap(model, {name: solution.layer for name, solution in solutions.items()})
    for target in targets:  # while it was calibrated, the model was in eval mode
        solutions[target.name].layer.train(target.module.training)
    scaling = Scaling(tuple(one for block in blocks for one in block.scales))
    said += [f"{name} could not be scaled: {why}" for block in blocks for name, why in block.left.items()]
    return QuantizationReport(
        plan_to_dict(scheme),
        tuple(reports),
        tuple(work.skipped),
        seconds,
        scaling,
        (*_reach_warnings(reports, schemes), *said, *_share_warnings(share, left, include is None)),
        share,
    )


def _solve_outside(
    targets: list[Target], schemes: Mapping[str, Scheme], twins: dict[int, SolvedLayer], on_layer: Callable[[], object]
) -> dict[str, SolvedLayer]:
    """The layers that no block holds, or all of them when no scheme needs data: by their weights alone.

    Args:
        twins: modules that are solved already under another name, by their id; what is solved here is added.
    """
    solutions: dict[str, SolvedLayer] = {}
    for target in targets:
        if id(target.module) not in twins:
            solution = solve_layer(target.weight, bias_of(target.module), schemes[target.name], None, target.name)
            twins[id(target.module)] = solution
        solutions[target.name] = twins[id(target.module)]
        on_layer()
    return solutions


@torch.no_grad()
def _layer_report(
    target: Target, weight: Tensor, solution: SolvedLayer, scheme: Scheme, tokens: int | None
) -> LayerReport:
    q = solution.q
    return LayerReport(
        target.name,
        target.kind,
        q.shape,
        scheme.name,
        q.bits_per_weight,
        q.nbytes,
        error_statistics(weight, ops.dequantize(q)),
        tokens,
        dict(solution.notes),
    )


def _share_warnings(share: float, left: tuple[str, float] | None, aloud: bool) -> tuple[str, ...]:
    """Whether most of the model stays as it is; `aloud` as a Python warning too, where nobody asked for so few layers."""
    if share >= 0.5 or left is None:
        return ()
    text = f"only {share:.0%} of all weights are quantized; the most that is left, {left[1]:.0%}, is in modules of {left[0]}"
    if aloud:
        warnings.warn(text, stacklevel=3)
    return (text,)


def _reach_warnings(reports: list[LayerReport], schemes: Mapping[str, Scheme]) -> tuple[str, ...]:
    """Layers that calibration did not reach, or not often enough; the latter is also given as a Python warning."""
    learned = [report for report in reports if schemes[report.name].calibrated]
    notes = [f"{r.name} was never reached by calibration: it is rounded to nearest" for r in learned if r.tokens == 0]
    short = [r for r in learned if r.tokens and r.tokens < r.shape[1]]
    if short:
        worst = max(short, key=lambda r: r.shape[1])
        text = (
            f"{worst.tokens} calibration tokens are fewer than the {worst.shape[1]} inputs of {worst.name}"
            f"{f' (and of {len(short) - 1} more layers)' * (len(short) > 1)}; its statistics are incomplete: give more text"
        )
        warnings.warn(text, stacklevel=3)
        notes.append(text)
    return tuple(notes)
