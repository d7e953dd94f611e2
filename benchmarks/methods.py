"""Keep what `qkit compare --json` printed: as data/measured/methods.json, and as a table in benchmarks/results.

    qkit compare --all --json > all.json       # a quarter of an hour and more on two quiet cores
    python benchmarks/methods.py all.json

    qkit compare --json --calibration-chunks 32 --scheme w4g128 ... > some.json
    python benchmarks/methods.py some.json --command "qkit compare --json --calibration-chunks 32 ..." --chunks 32

README's table and lesson 07 are made of the first file; `tests/test_readme.py` holds README against it. Numbers of passages are
kept to six digits, of which the last ones depend on the processor.
"""

import argparse
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from qkit.bench.methods import methods, table
from qkit.bench.record import describe_machine, write_json
from qkit.study.paired import TIE
from qkit.text.tokens import CHUNKS

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "transformers", "numba")


def record(printed: dict[str, Any], command: str, chunks: int) -> dict[str, Any]:
    """What is kept: how, where and when it was measured, and what was printed, shortened."""
    machine = describe_machine()
    comparison = {key: value for key, value in printed.items() if key != "ties"}  # computed anew from the passages
    return {
        "command": command,
        "learned": f"{chunks} chunks of 511 tokens of python-docs",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "cpu": machine["cpu"],
        "versions": {"python": machine["python"], **{name: machine["versions"][name] for name in PACKAGES}},
        "comparison": _short(comparison),
    }


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    return [_short(one) for one in value] if isinstance(value, list) else value


def page() -> str:
    """The record in words and one table, for benchmarks/results."""
    kept = methods()
    found, versions = kept.comparison, ", ".join(f"{name} {version}" for name, version in kept.versions.items())
    return f"""# Methods and settings on the tales, {kept.date}

{kept.cpu}; {versions}. One run:

    {kept.command}

{found.caption}, in chunks of 511 tokens. The tales were written when the
model had been trained, and are of no kind that a method learned from: what is calibrated read {kept.learned}.
FP32 has perplexity {found.rows[0].perplexity:.2f}.

KL is to FP32, in nats a token; ± is one standard error over the passages, of the ratio and of the last column a paired one. Rows
of one width are in the order of KL; the last column says how much more a row loses than the one above it, and "a tie" where that
is within {TIE} standard errors of nothing.

{table(found)}
Every passage of every row is in `data/measured/methods.json`, which `python benchmarks/methods.py` wrote.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("printed", type=Path, help="what the command printed")
    parser.add_argument("--command", default="qkit compare --all --json", help="which command that was")
    parser.add_argument("--chunks", type=int, default=CHUNKS, help="of python-docs that it learned from")
    given = parser.parse_args()
    printed = json.loads(given.printed.read_text(encoding="utf-8"))
    write_json(record(printed, given.command, given.chunks), ROOT / "data" / "measured" / "methods.json")
    date = methods().date
    (ROOT / "benchmarks" / "results" / f"methods-{date}.md").write_text(page(), encoding="utf-8")
