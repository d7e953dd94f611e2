"""Kernels are compiled when they first run: here they run once on next to nothing, before a clock starts."""

import torch

from qkit import ops
from qkit.engine.plan import Plan, schemes_of
from qkit.engine.solve import solve_layer
from qkit.methods.statistics import WANTS, InputStatistics

FEATURES = 256
OUTPUTS = (16, 512)  # few numbers are worked on by one thread, many by all
TOKENS = (1, 2, 4, 16, 24, 300)  # few tokens and many are multiplied by different kernels, in tiles of different sizes


@torch.no_grad()
def warm_up(plan: Plan) -> None:
    """Have everything compiled that quantizing by `plan` runs, and that the quantized layers run."""
    for scheme in schemes_of(plan):
        group_size = getattr(scheme, "group_size", None)
        features = -(-FEATURES // group_size) * group_size if isinstance(group_size, int) else FEATURES
        x = torch.linspace(-9, 9, max(TOKENS) * features, dtype=torch.float32).reshape(-1, features).roll(1, 0)
        inputs = InputStatistics.empty(features, wants=WANTS)
        inputs.add(x, x)
        inputs.add(x[:1], x[:1])
        for outputs in OUTPUTS:
            weight = torch.linspace(-1, 1, features, dtype=torch.float32).repeat(outputs, 1)  # scales that 16 bits hold
            solved = solve_layer(weight, None, scheme, inputs, "a layer to warm up with")
            ops.dequantize(solved.q)
            solved.q.codes()
            for tokens in TOKENS:
                solved.layer(x[:tokens])
