"""The driver: one tensor, or every layer of a model."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from qkit import ops
from qkit.engine.plan import Plan, assign, check_plan, plan_name, plan_to_dict
from qkit.engine.report import LayerReport, QuantizationReport
from qkit.engine.resume import Resume
from qkit.engine.scaling import Scaling
from qkit.engine.solve import Solution, quantize_weight, rounder, solve_layer
from qkit.engine.stream import SolvedBlock, solve_blocks
from qkit.methods.schemes import RTN, LLMInt8, Scheme
from qkit.model.calibration import CHUNKS, calibration_chunks
from qkit.model.facts import chunk_length
from qkit.model.surgery import Globs, Target, find_targets, swap
from qkit.numerics.error import error_statistics
from qkit.numerics.mapping import GroupSize, check_finite, check_group_size
from qkit.numerics.qtensor import QTensor


def quantize_tensor(
    weight: Tensor,
    scheme: Scheme | None = None,
    *,
    bits: int | None = None,
    group_size: GroupSize = None,
    symmetric: bool = False,
    name: str = "the weight",
) -> QTensor:
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
    check_weight(weight, scheme, name)
    return quantize_weight(weight, scheme, name=name)[0]


def check_weight(weight: Tensor, scheme: Scheme, name: str) -> None:
    """Refuse a weight that `scheme` cannot quantize."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} is a {type(weight).__name__}; give a torch tensor [out, in]")
    if weight.dim() != 2 or not weight.is_floating_point() or not weight.numel():
        raise ValueError(
            f"{name} is {weight.dtype} of shape {tuple(weight.shape)}; give a float weight [out, in] that is not empty"
        )
    check_group_size(getattr(scheme, "group_size", None), weight.shape[1], name)
    check_finite(weight, name)
    limit = torch.finfo(torch.float32).max / 4
    if (reach := float(weight.detach().abs().max())) > limit:
        raise ValueError(
            f"{name} reaches {reach:.2g}, float32 arithmetic needs |w| <= {limit:.2g}; divide the weight by it"
        )


def quantize(
    model: nn.Module,
    scheme: Plan,
    *,
    calibration: str | Sequence[str] | Tensor | None = None,
    tokenizer=None,
    max_chunks: int = CHUNKS,
    include: Globs = None,
    exclude: Globs = None,
    resume: str | None = None,
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
    check_plan(scheme)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a module: model, tokenizer = qkit.load(name)")
    targets, skipped = find_targets(model, include, exclude)
    schemes, unmatched = assign(scheme, targets)
    targets = [target for target in targets if target.name in schemes]
    for target in targets:
        check_weight(target.weight, schemes[target.name], target.name)
    ids = _calibration(model, schemes, calibration, tokenizer, max_chunks)

    start = time.perf_counter()
    blocks: list[SolvedBlock] = []
    work = {name: one.to_dict() for name, one in schemes.items()}
    kept = Resume.open(resume, model, work, ids) if resume is not None and ids is not None else None
    with tqdm(
        total=len(targets), desc=plan_name(scheme), unit="layer", disable=None if progress is None else not progress
    ) as bar:
        if ids is not None:
            with _evaluating(model):
                for block in solve_blocks(model, schemes, ids, bar.update, kept.finished if kept else None):
                    blocks.append(block)
                    if kept:
                        kept.keep(block)
        solutions = {name: solution for block in blocks for name, solution in block.solutions.items()}
        solutions |= _solve_outside([t for t in targets if t.name not in solutions], schemes, bar.update)
    seconds = time.perf_counter() - start

    weights = {name: weight for block in blocks for name, weight in block.weights.items()}
    tokens = {name: count for block in blocks for name, count in block.tokens.items()}
    reports = []
    reported: set[int] = set()
    for target in targets:
        if id(target.module) not in reported:
            seen = tokens.get(target.name, 0) if ids is not None else None
            weight = weights.get(target.name, target.weight)
            reports.append(_layer_report(target, weight, solutions[target.name], schemes[target.name], seen))
            reported.add(id(target.module))
    for block in blocks:
        for name, parameter in block.parameters.items():
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, parameter)
    swap(model, {name: solution.layer for name, solution in solutions.items()})
    for target in targets:
        solutions[target.name].layer.train(
            target.module.training
        )  # while it was calibrated, the model was in eval mode
    scaling = Scaling(tuple(one for block in blocks for one in block.scales))
    notes = tuple(f"{name} could not be scaled: {why}" for block in blocks for name, why in block.left.items())
    return QuantizationReport(
        plan_to_dict(scheme), tuple(reports), tuple(skipped + unmatched), seconds, scaling, _warnings(reports) + notes
    )


def _calibration(
    model: nn.Module, schemes: Mapping[str, Scheme], calibration, tokenizer, max_chunks: int
) -> Tensor | None:
    """Token ids where a scheme needs data (or LLM.int8 is offered some, to count its outliers); else None."""
    needy = next((scheme for scheme in schemes.values() if scheme.calibrated), None)
    counting = any(isinstance(scheme, LLMInt8) for scheme in schemes.values())
    if needy is None and not (counting and calibration is not None):
        return None
    if calibration is None:
        raise ValueError(
            f"{needy.name} learns from data and was given none; give calibration=qkit.texts('python-docs') and tokenizer=, "
            f"a text of the kind that the model will read"
        )
    return calibration_chunks(calibration, tokenizer, chunk_length(model), max_chunks)


def _solve_outside(
    targets: list[Target], schemes: Mapping[str, Scheme], on_layer: Callable[[], object]
) -> dict[str, Solution]:
    """The layers that no block holds, or all of them when no scheme needs data: by their weights alone."""
    solutions: dict[str, Solution] = {}
    twins: dict[int, Solution] = {}  # a module that the model uses under two names is quantized once
    for target in targets:
        if id(target.module) not in twins:
            solution = solve_layer(target.weight, target.module.bias, schemes[target.name], None, target.name)
            twins[id(target.module)] = solution
        solutions[target.name] = twins[id(target.module)]
        on_layer()
    return solutions


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, dropout is off; afterwards every module has the mode it had. Memory that runs out is said in one sentence."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise MemoryError(
            f"memory ran out while quantizing ({error}); the model is as it was: give fewer calibration chunks "
            f"(max_chunks=) or shorter ones, and resume= to keep the blocks that are done"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def _layer_report(
    target: Target, weight: Tensor, solution: Solution, scheme: Scheme, tokens: int | None
) -> LayerReport:
    error = error_statistics(weight, ops.dequantize(solution.q))
    q = solution.q
    return LayerReport(
        target.name,
        target.kind,
        q.shape,
        scheme.name,
        q.bits_per_weight,
        q.nbytes,
        error,
        tokens if scheme.calibrated or solution.outlier_columns is not None else None,
        solution.damp,
        solution.damp is not None and solution.damp > rounder(scheme).damp,
        solution.outlier_columns,
    )


def _warnings(reports: list[LayerReport]) -> tuple[str, ...]:
    """What a careful reader should know of the calibration; the shortage of tokens is also given as a Python warning."""
    notes = [f"{r.name} was never reached by calibration: it is rounded to nearest" for r in reports if r.tokens == 0]
    short = [r for r in reports if r.tokens and r.tokens < r.shape[1] and r.outlier_columns is None]
    if short:
        worst = max(short, key=lambda r: r.shape[1])
        text = (
            f"{worst.tokens} calibration tokens are fewer than the {worst.shape[1]} inputs of {worst.name}"
            f"{f' (and of {len(short) - 1} more layers)' * (len(short) > 1)}; its statistics are incomplete: give more text"
        )
        warnings.warn(text, stacklevel=3)
        notes.append(text)
    notes += [f"the Hessian of {r.name} had to be damped by {r.damp:g}" for r in reports if r.damped_more]
    return tuple(notes)
