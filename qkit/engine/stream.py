"""A model quantized block by block: what enters a block is known, so it can be solved; what leaves it feeds the next.

Two streams of hidden states run through the model side by side: what the original puts out, and what the quantized blocks
put out. In memory are one block, its copies and the two streams, however deep the model is; with GPTQ also what spares it
runs of the block (`qkit.model.replay`): the output of the attention and of the MLP in either stream, and for a while the inputs
of the attention's and of the MLP's last layer. In a Llama that makes five to six streams more, at the widest place. The
model itself is not touched: all work is done on copies of its blocks that share every tensor they do not replace.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qkit.engine.scale_search import scale_block
from qkit.engine.scaling import LayerScale
from qkit.engine.solve import NOTHING, Solution, rounder, solve_layer, wants
from qkit.methods.schemes import GPTQ, Scheme
from qkit.model.blocks import SAMPLE_TOKENS, Block, capture
from qkit.model.calibration import InputStatistics, batches_of, gather, input_groups
from qkit.model.replay import Replay, find_closings
from qkit.model.surgery import clone, swap, weight_of


@dataclass(frozen=True, eq=False)
class SolvedBlock:
    """What became of one block; names are those in the model."""

    name: str
    solutions: dict[str, Solution]
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
    on_layer: Callable[[], None] = lambda: None,
    finished: Mapping[str, SolvedBlock] | None = None,
) -> Iterator[SolvedBlock]:
    """Solve one block after the other.

    Args:
        model: in eval mode; it is left as it is.
        schemes: a scheme for each layer, by its name in the model. Layers outside the blocks are ignored.
        ids: calibration tokens [sequences, length].
        on_layer: called after each layer.
        finished: blocks that were solved before: they are run, not solved again.
    """
    sample_blocks, sample = capture(model, [ids[:1, :SAMPLE_TOKENS]])
    blocks, hidden = capture(model, batches_of(ids))
    original_hidden = list(hidden) if any("drift" in wants(s) for s in schemes.values()) else []
    sample = sample[0]
    last = max((i for i, b in enumerate(blocks) if any(n.startswith(f"{b.name}.") for n in schemes)), default=-1)
    for number, block in enumerate(blocks[: last + 1]):  # nothing after them needs to be known
        mine = {
            name.removeprefix(f"{block.name}."): scheme
            for name, scheme in schemes.items()
            if name.startswith(f"{block.name}.")
        }
        copy = Replay(block, clone(block.module), hidden)
        original = Replay(block, clone(block.module), original_hidden, fixed=True)
        if finished and block.name in finished:
            solved = finished[block.name]
            _install(copy.module, solved)
            for _ in solved.solutions:
                on_layer()
        else:
            solver = _BlockSolver(block, copy, original, mine, sample_blocks[number], sample, number == last, on_layer)
            solved = solver.solve()
        yield solved
        if number < last:
            copy.advance()  # `hidden` is its list
            # Folding rounds. What the original hands on is what it puts out as it is.
            (Replay(block, block.module, original_hidden) if solved.scales else original).advance()
            sample = sample_blocks[number].run(sample, 0)


def _install(copy: nn.Module, solved: SolvedBlock) -> None:
    prefix = f"{solved.name}."
    for name, parameter in solved.parameters.items():
        owner, _, leaf = name.removeprefix(prefix).rpartition(".")
        setattr(copy.get_submodule(owner), leaf, parameter)
    swap(copy, {name.removeprefix(prefix): solution.layer for name, solution in solved.solutions.items()})


@dataclass(eq=False)
class _BlockSolver:
    """The state of one block's solution.

    The module of `copy` is what becomes quantized. In `original` the same scales are folded in: its layers put out what they
    did, for inputs in the same units.
    """

    block: Block
    copy: Replay
    original: Replay
    schemes: dict[str, Scheme]
    sample_block: Block
    sample: Tensor
    last: bool  # nobody needs the outputs
    on_layer: Callable[[], None]

    def solve(self) -> SolvedBlock:
        copy = self.copy.module
        folded, known, left = scale_block(
            self.block, copy, self.original.module, self.schemes, self.copy.hidden, self.sample_block, self.sample
        )
        weights = {name: weight_of(copy.get_submodule(name)).detach() for name in self.schemes}
        solutions: dict[str, Solution] = {}
        tokens: dict[str, int] = {}

        direct = [name for name, scheme in self.schemes.items() if not isinstance(rounder(scheme), GPTQ)]
        unknown = [name for name in direct if name not in known or wants(self.schemes[name]) - {"square"}]
        known = {**known, **self._collect(self._groups(unknown))}
        self._solve(direct, known, weights, solutions, tokens)

        self._solve_in_order([name for name in self.schemes if name not in solutions], weights, solutions, tokens)

        prefix = f"{self.block.name}."
        before = dict(self.block.module.named_parameters())
        replaced = {
            prefix + name: parameter
            for name, parameter in copy.named_parameters()
            if name in before and parameter is not before[name]
        }
        return SolvedBlock(
            self.block.name,
            {prefix + name: solutions[name] for name in self.schemes},
            {prefix + name: weight for name, weight in weights.items()},
            replaced,
            folded,
            {prefix + name: count for name, count in tokens.items()},
            {prefix + name: why for name, why in left.items()},
        )

    def _groups(self, names: list[str]) -> list[list[str]]:
        return input_groups(self.sample_block, self.sample, names) if names else []

    def _collect(self, groups: list[list[str]], runs: Mapping[str, int] | None = None) -> dict[str, InputStatistics]:
        """The statistics of the layers of `groups`; those that share an input share the work and the statistics."""
        if not groups:
            return {}
        needed = NOTHING.union(*(wants(self.schemes[name]) for group in groups for name in group))
        found = gather(self.copy, [group[0] for group in groups], needed, self.original, runs)
        return {name: found[group[0]] for group in groups for name in group if group[0] in found}

    def _solve_in_order(
        self, names: list[str], weights: dict[str, Tensor], solutions: dict[str, Solution], tokens: dict[str, int]
    ) -> None:
        """Solve each group of layers on the inputs that it has when all that run before it are solved."""
        if not names:
            return
        runs = {name: len(inputs) for name, inputs in self.copy.hear(0, names, {}).items()}
        closings = find_closings(self.sample_block, self.sample, list(self.schemes))
        groups = self._groups(names)
        outlive = groups[:-1] if self.last else groups  # those that something runs after
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
        solutions: dict[str, Solution],
        tokens: dict[str, int],
    ) -> None:
        for name in names:
            layer = self.copy.module.get_submodule(name)
            full_name = f"{self.block.name}.{name}"
            solutions[name] = solve_layer(weights[name], layer.bias, self.schemes[name], inputs.get(name), full_name)
            solutions[name].layer.train(layer.training)
            tokens[name] = inputs[name].tokens if name in inputs else 0
            self.on_layer()
        swap(self.copy.module, {name: solutions[name].layer for name in names})
