"""Which layer gets which scheme: one for all, or by globs on layer names."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from qkit.methods.scheme import Scheme
from qkit.model.surgery import Target

Plan = Scheme | Mapping[str, Scheme]


def check_plan(plan: Plan) -> None:
    """Refuse what is neither a scheme nor a mapping from globs to schemes."""
    schemes = plan.values() if isinstance(plan, Mapping) else [plan]
    for scheme in schemes:
        if not isinstance(scheme, Scheme):
            raise TypeError(
                f"scheme={scheme!r} is not a scheme; give one such as qkit.RTN(bits=4, group_size=128), "
                f'or several by layer: {{"*.down_proj": qkit.RTN(8), "*": qkit.GPTQ(4)}}'
            )
    if isinstance(plan, Mapping) and not all(isinstance(glob, str) for glob in plan):
        odd = next(glob for glob in plan if not isinstance(glob, str))
        raise TypeError(f"{odd!r} is no glob on layer names; give schemes by globs: {{'*.down_proj': scheme}}")
    if not schemes:
        raise ValueError("the mapping of schemes is empty; give at least {'*': scheme}")


def assign(plan: Plan, targets: list[Target]) -> tuple[dict[str, Scheme], list[tuple[str, str]]]:
    """The scheme of each target by name (the first glob that matches decides), and [(name, why it stays)].

    Raises:
        ValueError: a glob decides for no layer.
    """
    if isinstance(plan, Scheme):
        return {target.name: plan for target in targets}, []
    schemes, skipped, used = {}, [], set()
    for target in targets:
        glob = next((glob for glob in plan if fnmatchcase(target.name, glob)), None)
        if glob is None:
            skipped.append((target.name, "no glob of the schemes matches it"))
        else:
            schemes[target.name] = plan[glob]
            used.add(glob)
    for glob in plan:
        if glob not in used:
            matched = any(fnmatchcase(target.name, glob) for target in targets)
            why = "globs before it take all that it matches; put it first" if matched else "it matches no layer"
            raise ValueError(f"scheme for {glob!r} is used nowhere: {why} (layers: {targets[0].name}, ...)")
    return schemes, skipped


def fitted(schemes: Iterable[Scheme], targets: list[Target]) -> list[Scheme]:
    """Schemes that nobody chose for this model, each with groups that go into the rows of all `targets`."""
    widths = {target.weight.shape[1] for target in targets}
    return [scheme.fitted(widths) for scheme in schemes]


def plan_name(plan: Plan) -> str:
    """As tables print it."""
    if isinstance(plan, Scheme):
        return plan.name
    return ", ".join(f"{glob}: {scheme.name}" for glob, scheme in plan.items())


def schemes_of(plan: Plan) -> list[Scheme]:
    """The schemes that it may give to a layer, in its own order."""
    return [plan] if isinstance(plan, Scheme) else list(plan.values())


def plan_to_dict(plan: Plan) -> dict:
    """For JSON."""
    if isinstance(plan, Scheme):
        return plan.to_dict()
    return {"scheme": "by layer", "layers": {glob: scheme.to_dict() for glob, scheme in plan.items()}}


def needs_calibration(plan: Plan) -> bool:
    """Whether any of its schemes learns from data."""
    return any(scheme.calibrated for scheme in schemes_of(plan))
