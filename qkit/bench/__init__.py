"""How fast it is, beside the libraries that are known to be fast: `qkit bench cpu` and `qkit bench model`.

`timing` says how several libraries are timed in one process without disturbing each other; `roof` measures what the machine
can do at best; `linear` has qkit's layers and `peers` those of other libraries; `goals` holds the ratios that qkit is to
reach; `generation` lets whole models write; `record` keeps what was measured.
"""

from qkit.bench.goals import GOALS, Goal, Outcome, outcomes
from qkit.bench.record import LinearRecord, Measurement, ModelMeasurement, ModelRecord, Roof, write_json

__all__ = [
    "GOALS",
    "Goal",
    "LinearRecord",
    "Measurement",
    "ModelMeasurement",
    "ModelRecord",
    "Outcome",
    "Roof",
    "outcomes",
    "write_json",
]
