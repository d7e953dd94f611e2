"""Several functions timed side by side, so that none has an advantage and none is disturbed by another.

What disturbs
    Threads that have done their work do not sleep at once. They turn in a loop and wait for the next call: about 8 ms in the
    OpenMP library that torch, bitsandbytes and qkit share, 40 ms in onnxruntime's pool. Between calls of one library that is
    good, because to wake a thread takes as long as a small layer. But the next library then has a core less. Called in turn
    on two cores, A B C A B C, onnxruntime takes twice as long as alone, 1.7 ms instead of 0.85, and the others wait for a
    whole slice of the scheduler, 4 ms and more instead of 0.4. To forbid spinning would not be fair either: it costs
    onnxruntime 10 % and more where it runs alone, as it does in real use.

What is done here
    Each contender gets a block of calls, as a model would call its layers one after the other. Before the block, all threads
    of the process must have gone to sleep: `settle` looks at the process's CPU time, which stands still only then, so that it
    need not know whose threads they are. The first calls of the block wake the contender's own threads and are not counted:
    everybody is measured as it runs alone. Blocks go round robin, so that a slow minute of the machine falls on all.

What is called is a `Rotation`: the next of several equal layers each time, together larger than the caches.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

NAP = 0.002  # seconds: several times what the clock of CPU time resolves
QUIET = 0.1  # share of a core that may be busy: the interpreter's own threads


def settle(limit: float = 1.0) -> bool:
    """Sleep until no thread of this process computes; False: some still did after `limit` seconds."""
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        wall, busy = time.perf_counter(), time.process_time()
        time.sleep(NAP)
        if time.process_time() - busy < QUIET * (time.perf_counter() - wall):
            return True
    return False


class Rotation:
    """Calls the next of several layers each time, with the same input."""

    def __init__(self, layers: Sequence[Callable[[Any], Any]], x: Any) -> None:
        self._turn = cycle(layers)
        self._x = x

    def __call__(self) -> Any:
        """What the layer whose turn it is puts out."""
        return next(self._turn)(self._x)


@dataclass
class Timing:
    """What one contender took."""

    seconds: list[float] = field(default_factory=list)  # one for each counted call
    busy: float = 0.0  # CPU seconds of the whole process in the counted calls
    unsettled: int = 0  # blocks that began while threads of others still ran

    @property
    def cores(self) -> float:
        """How many cores were busy on average: more than the threads allowed means that somebody cheats."""
        return self.busy / sum(self.seconds)


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    block: int,
    warm: int = 1,
    on_block: Callable[[], Any] = lambda: None,
) -> dict[str, Timing]:
    """Time every function in each of several rounds.

    Args:
        calls: what to call, by name.
        rounds: how often each one's turn comes.
        block: counted calls in a turn.
        warm: calls before them that are not counted.
        on_block: called after each turn.
    """
    timings = {name: Timing() for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            timing = timings[name]
            timing.unsettled += not settle()
            for _ in range(warm):
                call()
            busy = time.process_time()
            for _ in range(block):
                start = time.perf_counter()
                call()
                timing.seconds.append(time.perf_counter() - start)
            timing.busy += time.process_time() - busy
            on_block()
    return timings
