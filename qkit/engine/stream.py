"""A model quantized block by block: what enters a block is known, so it can be solved; what leaves it feeds the next.

Two streams of hidden states run through the model side by side: what the original puts out, and what the quantized blocks
put out. In memory are one block, its copies and the two streams, however deep the model is; with GPTQ also what spares it
runs of the block (`qkit.model.replay`): the output of the attention and of the MLP in either stream, and for a while the inputs
of the attention's and of the MLP's last layer. In a Llama that makes five to six streams more, at the widest place. The
model itself is not touched: all work is done on copies of its blocks that share every tensor they do not replace.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from qkit.engine.scale_search import scale_block
from qkit.engine.scaling import LayerScale
from qkit.engine.solve import SolvedLayer, solve_layer
from qkit.engine.walk import Stop, walk
from qkit.methods.scheme import NOTHING, Scheme
from qkit.methods.statistics import InputStatistics
from qkit.model.blocks import capture
from qkit.model.calibration import batches_of, gather, input_groups
from qkit.model.linear import bias_of, matrix_of
from qkit.model.replay import Replay, find_closings
from qkit.model.surgery import clone, set_parameter, swap


@dataclass(frozen=True, eq=False)
class SolvedBlock:
    """What became of one block; names are those in the model."""

    name: str
    solutions: dict[str, SolvedLayer]
    weights: dict[str, Tensor]  # what each solution stands for: the weight, with the scales that were folded into it
    parameters: dict[str, nn.Parameter]  # those that folding replaced
    scales: tuple[LayerScale, ...]
    tokens: dict[str, int]  # how many calibration tokens each layer saw
    left: dict[str, str]  # layers that could not be scaled, and why


@torch.no_grad()
def solve_blocks(
    model: nn.Module,
    schemes: Mapping[str, Scheme],
    ids: Tensor,
    on_layer: Callable[[], object] = lambda: None,
    finished: Mapping[str, SolvedBlock] | None = None,
) -> Iterator[SolvedBlock]:
    """Solve one block after the other. A layer that the model uses under several names is solved once, where it first stands.

    Args:
        model: in eval mode; it is left as it is.
        schemes: a scheme for each layer, by its name in the model. Layers outside the blocks are ignored.
        ids: calibration tokens [sequences, length].
        on_layer: called after each layer.
        finished: blocks that were solved before: they are run, not solved again.
    """
    drifts = any("drift" in scheme.wants for scheme in schemes.values())
    original_hidden = capture(model, batches_of(ids))[1] if drifts else []
    twins = _Twins(model, list(schemes))
    for stop in walk(model, ids, list(schemes)):
        block = stop.block
        mine = {name: schemes[f"{block.name}.{name}"] for name in twins.own(stop)}
        copy = stop.replay = Replay(block, clone(block.module), stop.hidden)
        original = Replay(block, clone(block.module), original_hidden, fixed=True)
        if finished and block.name in finished:
            solved = finished[block.name]
            _install(copy.module, solved)
            for _ in solved.solutions:
                on_layer()
        else:
            swap(copy.module, {name: solution.layer for name, (solution, *_) in twins.known(stop).items()})
            solved = _BlockSolver(stop, copy, original, mine, twins.names(stop), on_layer).solve()
            solved = twins.complete(stop, solved)
            for _ in range(len(solved.solutions) - len(mine)):
                on_layer()
        twins.note(solved)
        yield solved
        if not stop.last:
            # Folding rounds. What the original hands on is what it puts out as it is.
            (Replay(block, block.module, original_hidden) if solved.scales else original).advance()


def _install(copy: nn.Module, solved: SolvedBlock) -> None:
    prefix = f"{solved.name}."
    for name, parameter in solved.parameters.items():
        set_parameter(copy, name.removeprefix(prefix), parameter)
    swap(copy, {name.removeprefix(prefix): solution.layer for name, solution in solved.solutions.items()})


class _Twins:
    """Names that speak of one module: what is solved under the first stands under all."""

    def __init__(self, model: nn.Module, layers: list[str]) -> None:
        first: dict[int, str] = {}
        self.layers = layers
        self.first = {name: first.setdefault(id(model.get_submodule(name)), name) for name in layers}
        self.several = {name for name, uses in Counter(self.first.values()).items() if uses > 1}
        self.solved: dict[str, tuple[SolvedLayer, Tensor, int]] = {}  # with its weight, and how many tokens it saw

    def own(self, stop: Stop) -> list[str]:
        """The layers that are solved in this block, as they are called within it."""
        return list(self.names(stop))

    def names(self, stop: Stop) -> dict[str, list[str]]:
        """Each of them with all its names within the block."""
        groups: dict[str, list[str]] = {}
        for name in stop.names(self.layers):
            groups.setdefault(self.first[f"{stop.block.name}.{name}"], []).append(name)
        return {names[0]: names for first, names in groups.items() if first not in self.solved}

    def known(self, stop: Stop) -> dict[str, tuple[SolvedLayer, Tensor, int]]:
        """The layers of this block that were solved in one before it."""
        full = {name: self.first[f"{stop.block.name}.{name}"] for name in stop.names(self.layers)}
        return {name: self.solved[first] for name, first in full.items() if first in self.solved}

    def complete(self, stop: Stop, block: SolvedBlock) -> SolvedBlock:
        """The block with what is known of the other names of its layers."""
        prefix = f"{block.name}."
        again = {prefix + name: solved for name, solved in self.known(stop).items()}
        for name, others in self.names(stop).items():
            first = prefix + name
            solved = block.solutions[first], block.weights[first], block.tokens[first]
            again |= {prefix + other: solved for other in others[1:]}
        solutions, weights, tokens = ({name: part[i] for name, part in again.items()} for i in range(3))
        return replace(
            block,
            solutions={**block.solutions, **solutions},
            weights={**block.weights, **weights},
            tokens={**block.tokens, **tokens},
        )

    def note(self, block: SolvedBlock) -> None:
        """Remember what became of the layers of a block that have more names; nothing of any other is kept."""
        for name, solution in block.solutions.items():
            if (first := self.first[name]) in self.several:
                self.solved.setdefault(first, (solution, block.weights[name], block.tokens[name]))


@dataclass(eq=False)
class _BlockSolver:
    """The state of one block's solution.

    The module of `copy` is what becomes quantized. In `original` the same scales are folded in: its layers put out what they
    did, for inputs in the same units.
    """

    stop: Stop
    copy: Replay
    original: Replay
    schemes: dict[str, Scheme]
    names: dict[str, list[str]]  # of each of its layers: all that it has in this block
    on_layer: Callable[[], object]

    def solve(self) -> SolvedBlock:
        copy = self.copy.module
        folded, known, left = scale_block(self.stop, copy, self.original.module, self.schemes)
        weights = {name: matrix_of(copy.get_submodule(name)).detach() for name in self.schemes}
        solutions: dict[str, SolvedLayer] = {}
        tokens: dict[str, int] = {}

        direct = [name for name, scheme in self.schemes.items() if not scheme.sequential]
        unknown = [name for name in direct if name not in known or not known[name].covers(self.schemes[name].wants)]
        known = {**known, **self._collect(self._groups(unknown))}
        self._solve(direct, known, weights, solutions, tokens)

        self._solve_in_order([name for name in self.schemes if name not in solutions], weights, solutions, tokens)

        block = self.stop.block
        prefix = f"{block.name}."
        before = dict(block.module.named_parameters())
        replaced = {
            prefix + name: parameter
            for name, parameter in copy.named_parameters()
            if name in before and parameter is not before[name]
        }
        return SolvedBlock(
            block.name,
            {prefix + name: solutions[name] for name in self.schemes},
            {prefix + name: weight for name, weight in weights.items()},
            replaced,
            folded,
            {prefix + name: count for name, count in tokens.items()},
            {prefix + name: why for name, why in left.items()},
        )

    def _groups(self, names: list[str]) -> list[list[str]]:
        return input_groups(self.stop.sample_block, self.stop.sample, names) if names else []

    def _collect(self, groups: list[list[str]], runs: Mapping[str, int] | None = None) -> dict[str, InputStatistics]:
        """The statistics of the layers of `groups`; those that share an input share the work and the statistics."""
        if not groups:
            return {}
        needed = NOTHING.union(*(self.schemes[name].wants for group in groups for name in group))
        found = gather(self.copy, [group[0] for group in groups], needed, self.original, runs)
        return {name: found[group[0]] for group in groups for name in group if group[0] in found}

    def _solve_in_order(
        self, names: list[str], weights: dict[str, Tensor], solutions: dict[str, SolvedLayer], tokens: dict[str, int]
    ) -> None:
        """Solve each group of layers on the inputs that it has when all that run before it are solved."""
        if not names:
            return
        runs = {name: len(inputs) for name, inputs in self.copy.hear(0, names, {}).items()}
        closings = find_closings(self.stop.sample_block, self.stop.sample, list(self.schemes))
        groups = self._groups(names)
        outlive = groups[:-1] if self.stop.last else groups  # those that something runs after
        closings = {group[0]: closings[group[0]] for group in outlive if group[0] in closings}
        self.copy.closings = self.original.closings = closings
        for group in groups:
            first = group[0]
            inputs = self._collect([group], {first: runs[first]} if runs[first] else {})
            self._solve(group, inputs, weights, solutions, tokens)
            if first in closings:
                self.copy.settle(first)
                self.original.settle(first)

    def _solve(
        self,
        names: list[str],
        inputs: dict[str, InputStatistics],
        weights: dict[str, Tensor],
        solutions: dict[str, SolvedLayer],
        tokens: dict[str, int],
    ) -> None:
        for name in names:
            layer = self.copy.module.get_submodule(name)
            full_name = f"{self.stop.block.name}.{name}"
            solutions[name] = solve_layer(
                weights[name], bias_of(layer), self.schemes[name], inputs.get(name), full_name
            )
            solutions[name].layer.train(layer.training)
            tokens[name] = inputs[name].tokens if name in inputs else 0
            self.on_layer()
        swap(self.copy.module, {other: solutions[name].layer for name in names for other in self.names[name]})
