"""The one front door: a model, a plan and a calibration text are checked here, in the same words for everybody.

Nothing has been done to the model when it says no.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qkit.engine.plan import Plan, assign, check_plan
from qkit.methods.scheme import Scheme
from qkit.model.facts import check_data, check_ids, chunk_length, device_of
from qkit.model.hooks import evaluating, full_products, uncompiled
from qkit.model.linear import bias_of
from qkit.model.surgery import Globs, Target, find_targets
from qkit.numerics.mapping import check_finite
from qkit.text.tokens import CHUNKS, calibration_chunks


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be done, checked.

    Attributes:
        targets: the layers, in model order.
        schemes: of each of them, by its full name.
        skipped: (name, why) of what stays as it is.
        ids: calibration tokens [sequences, length]; None where no scheme looks at any.
    """

    targets: list[Target]
    schemes: dict[str, Scheme]
    skipped: list[tuple[str, str]]
    ids: Tensor | None


def prepare(
    model: nn.Module,
    plan: Plan,
    calibration: str | Sequence[str] | Tensor | None = None,
    tokenizer=None,
    max_chunks: int = CHUNKS,
    include: Globs = None,
    exclude: Globs = None,
) -> Work:
    """Check everything that `qkit.quantize` is given; arguments are its own.

    Raises:
        TypeError, ValueError: naming the value, the rule and the mend.
    """
    check_plan(plan)
    check_model(model)
    targets, skipped = find_targets(model, include, exclude)
    schemes, unmatched = assign(plan, targets)
    targets = [target for target in targets if target.name in schemes]
    for target in targets:
        schemes[target.name].check(target.weight, target.name)
        if (bias := bias_of(target.module)) is not None:
            check_data(f"the bias of {target.name}", bias)
            check_finite(bias, f"the bias of {target.name}")
    ids = calibration_ids(model, list(schemes.values()), calibration, tokenizer, max_chunks)
    return Work(targets, schemes, skipped + unmatched, ids)


def check_model(model: object) -> None:
    """Refuse what is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a module: model, tokenizer = qkit.load(name)")


def calibration_ids(
    model: nn.Module,
    schemes: Sequence[Scheme],
    calibration: str | Sequence[str] | Tensor | None,
    tokenizer,
    max_chunks: int,
) -> Tensor | None:
    """Token ids where a scheme needs data, or looks at what it is offered; else None."""
    needy = next((scheme for scheme in schemes if scheme.calibrated), None)
    if calibration is None and needy is not None:
        raise ValueError(
            f"{needy.name} learns from data and was given none; give calibration=qkit.texts('python-docs') and tokenizer=, "
            f"a text of the kind that the model will read"
        )
    if calibration is None or not any(scheme.calibrated or scheme.observes for scheme in schemes):
        return None
    return model_ids(model, calibration, tokenizer, max_chunks)


def model_ids(
    model: nn.Module, calibration: str | Sequence[str] | Tensor, tokenizer=None, max_chunks: int = CHUNKS
) -> Tensor:
    """Calibration tokens [sequences, length] that `model` can read."""
    ids = calibration_chunks(calibration, tokenizer, chunk_length(model), max_chunks)
    check_ids(model, ids)
    return ids


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """Inside, dropout is off, nothing is compiled, and what is computed does not depend on where one is called from: autocast
    would sum Hessians in 16 bits, TF32 of products with 10, and tensors of inference mode do not say whether they were
    written into.

    Afterwards every module has the mode it had. Memory that runs out is said in one sentence.
    """
    plain = torch.autocast(device_of(model).type, enabled=False)
    try:
        with evaluating(model), uncompiled(), full_products(), plain, torch.inference_mode(False), torch.no_grad():
            yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise MemoryError(
            f"memory ran out while quantizing ({error}); the model is as it was: give fewer calibration chunks "
            f"(max_chunks=) or shorter ones, and resume= to keep the blocks that are done"
        ) from error
