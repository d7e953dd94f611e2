"""The ratios that qkit's layers are to reach: their time over that of a peer in the same run.

They were set for a machine of two Zen 4 cores, 4096 x 4096 and two threads, and are held against every other case too.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from qkit.bench.record import Measurement


@dataclass(frozen=True)
class Goal:
    """`ours` is to take at most `limit` times as long as `peer`; both are labels."""

    ours: str
    peer: str
    tokens: int
    limit: float


GOALS = (
    Goal("qkit W4 g128 sym A8", "onnxruntime W4 g128 sym level 4", 1, 1.0),
    Goal("qkit W4 g128 A8", "onnxruntime W4 g128 sym level 4", 1, 1.0),
    Goal("qkit W4 g128 sym", "onnxruntime W4 g128 sym level 0", 1, 0.5),
    Goal("qkit W4 g128", "torch W4 g128 int4pack bf16", 1, 1.0),
    Goal("qkit W4 g128 sym A8", "onnxruntime W4 g128 sym level 4", 128, 1.0),
    Goal("qkit W4 g128 A8", "onnxruntime W4 g128 sym level 4", 128, 1.0),
    Goal("qkit W4 g128", "torch fp32", 128, 1.0),
    Goal("qkit NF4 b64", "bitsandbytes NF4 b64", 1, 1.0),
    Goal("qkit NF4 b64", "bitsandbytes NF4 b64 bf16", 1, 1.0),
    Goal("qkit W8A8 dynamic", "torch dynamic INT8", 1, 0.8),
    Goal("qkit W8A8 dynamic", "torch dynamic INT8", 128, 1.2),
    Goal("qkit LLM.int8", "bitsandbytes LLM.int8", 1, 0.6),
    Goal("qkit LLM.int8", "bitsandbytes LLM.int8 bf16", 1, 0.6),
    Goal("qkit LLM.int8", "bitsandbytes LLM.int8", 128, 0.8),
    Goal("qkit LLM.int8", "bitsandbytes LLM.int8 bf16", 128, 0.8),
    Goal("qkit W4 g128", "torch fp32", 1, 1 / 8),
    Goal("qkit W4 g128 A8", "torch fp32", 1, 1 / 8),
)


@dataclass(frozen=True)
class Outcome:
    """A goal and what was measured."""

    goal: Goal
    milliseconds: float
    peer_milliseconds: float

    @property
    def ratio(self) -> float:
        """Our median over the peer's."""
        return self.milliseconds / self.peer_milliseconds

    @property
    def reached(self) -> bool:
        """Whether the ratio is within the limit."""
        return self.ratio <= self.goal.limit


def outcomes(measurements: Iterable[Measurement], goals: Iterable[Goal] = GOALS) -> list[Outcome]:
    """The goals whose layers were both measured, in one case (a shape and a number of threads)."""
    medians = {(m.label, m.tokens): m.median for m in measurements}
    return [
        Outcome(goal, medians[ours], medians[peer])
        for goal in goals
        if (ours := (goal.ours, goal.tokens)) in medians and (peer := (goal.peer, goal.tokens)) in medians
    ]
