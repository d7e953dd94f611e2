"""Everything that wants a card, in one go: tests, addresses, layers, models, each in a process and with a time of its own.

    python benchmarks/gpu_all.py out                               all of it, for as long as --seconds allows
    python benchmarks/gpu_all.py out --parts sanitizer layers      some of it; a part by its name or by that of its log
    python benchmarks/gpu_all.py out --dry                         the commands

For a card that is there for minutes. What fails or hangs stops nothing behind it: a part that outlasts its time is made to write
down where each of its threads stands, and is ended. What does not fit into the whole is named, for the next time. Afterwards
`out` has a log for each kind of part, `records.json` with what the benchmarks measured, and `summary.txt`, failures first; all of
them are written as they come, so that they are there if this process is ended too.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHAPES = ((14336, 4096), (4096, 4096), (5120, 13824), (8192, 8192), (4096, 1024))
TOKENS = (1, 8, 16, 32, 64, 128, 256, 300, 512, 1024, 4096)
MODELS = {  # each without what may spoil it: other libraries, a large head
    "model": ("--scheme", "bf16", "--scheme", "w4g128", "--scheme", "nf4", "--scheme", "w8a8", "--scheme", "llm.int8"),
    "model-head": ("--scheme", "bf16", "--scheme", "w4g128", "--scheme", "w8a8", "--head"),
    "model-peers": ("--scheme", "bf16", "--scheme", "bitsandbytes-nf4", "--scheme", "bitsandbytes-llm.int8"),
}
# Processes that share the card in the tests, most of whose time goes into compiling; each takes some GB of the card
WORKERS = 15
HANGS = 200  # seconds after which a test is ended, and its worker with it; the others go on
LEAST = 20.0  # seconds without which nothing is begun
SHOWN = 12  # last lines of a part that failed; of one that did not, the last
# Lines that say more than the last do
WORDS = ("SKIPPED", "FAILED", "ERROR", "E  ", "========= Invalid", "========= ERROR SUMMARY")


@dataclass(frozen=True)
class Part:
    """A command and how long it may take.

    Attributes:
        log: the file that its output is added to, without its ending.
        record: what the command writes its figures to, in a folder that {out} stands for.
    """

    name: str
    log: str
    command: tuple[str, ...]
    seconds: float
    record: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a part: "ok", or in words why not; and the lines to be shown."""

    part: Part
    word: str
    seconds: float
    lines: tuple[str, ...] = ()


def parts() -> list[Part]:
    """All, in the order in which they are wanted."""
    python = sys.executable
    paths = (".", "kernels", "tests/support", *filter(None, [os.environ.get("PYTHONPATH")]))
    kernels = {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(paths)}
    tests = (
        python,
        *["-m", "pytest", "--noconftest", "-m", "gpu", "tests/gpu"],
    )  # as `make test-gpu`, make or not
    several = ("-n", str(WORKERS)) if find_spec("xdist") else ()
    one_hangs = ("-o", f"faulthandler_timeout={HANGS}", "--tb=short", "--durations=10")
    check = ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", python, "tests/support/launches.py")
    found = [
        Part(
            "tests",
            "tests",
            (*tests, *several, *one_hangs),
            540,
            None,
            {**kernels, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
        ),
        Part("sanitizer", "sanitizer", check, 240, None, {**kernels, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}),
    ]
    for rows, features in SHAPES:
        size = ("--sizes", f"{rows}x{features}", "--tokens", *map(str, TOKENS))
        command = (python, "benchmarks/gpu.py", *size, "--out", "{out}/layer.json")
        found.append(Part(f"{rows}x{features}", "layers", command, 200, "layer.json", kernels))
    for name, rest in MODELS.items():
        command = (python, "-m", "qkit.cli", "bench", "gpu", "--model", *rest, "--out", "{out}")
        found.append(Part(name, "models", command, 400, "gpu-model.json", kernels))
    return found


def chosen(names: Sequence[str]) -> list[Part]:
    """Those of the names; all where there are none.

    Raises:
        ValueError: nothing is called so.
    """
    found = parts()
    known = list(dict.fromkeys(name for part in found for name in (part.name, part.log)))
    if wrong := [name for name in names if name not in known]:
        raise ValueError(f"part {wrong[0]!r} is not one of {', '.join(known)}; give some of these")
    return [part for part in found if not names or part.name in names or part.log in names]


def run(part: Part, seconds: float, out: Path) -> Outcome:
    """One part, ended with all that it started after so many seconds; its output and figures go to the folder `out`."""
    if shutil.which(part.command[0]) is None:
        return Outcome(part, f"{part.command[0]} is not here", 0.0)
    log, start = out / f"{part.log}.log", time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [word.replace("{out}", folder) for word in part.command]
        with log.open("ab") as file:
            file.write(f"\n#### {part.name}: {' '.join(command)}\n".encode())
            file.flush()
            begun = file.tell()
            with started(command, file, part.environment) as process:
                try:
                    code = process.wait(seconds)
                    word = "ok" if code == 0 else f"ended with {code}"
                except subprocess.TimeoutExpired:
                    word = f"not done after {seconds:.0f} s"
                    told(process)
        lines = worth_showing(log.read_bytes()[begun:].decode(errors="replace"), 1 if word == "ok" else SHOWN)
        if part.record and (Path(folder) / part.record).is_file():
            record = json.loads((Path(folder) / part.record).read_text(encoding="utf-8"))
            keep(out / "records.json", part.name, record)
            if word == "ok" and (missing := record.get("missing")):
                word, lines = f"ok, but for {', '.join(missing)}", tuple(missing.values())
    return Outcome(part, word, time.monotonic() - start, lines)


@contextlib.contextmanager
def started(command: Sequence[str], file, environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A process in a group of its own, of which nothing is left afterwards."""
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **environment}
    process = subprocess.Popen(
        command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=variables, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def told(process: subprocess.Popen, patience: float = 10.0) -> None:
    """Have every Python of the group write down where its threads stand (PYTHONFAULTHANDLER), and wait until all have ended."""
    end = time.monotonic() + patience
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGABRT)
        while time.monotonic() < end:
            process.poll()
            os.killpg(process.pid, 0)  # is anybody left?
            time.sleep(0.1)


def keep(file: Path, name: str, record: dict[str, Any]) -> None:
    """Add a record to those in the file."""
    records = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps({**records, name: record}, indent=1) + "\n", encoding="utf-8")


def worth_showing(text: str, last: int) -> tuple[str, ...]:
    """Lines that name what failed or was left out, and so many of the last ones."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines[:-last] if line.startswith(WORDS)]
    return (*named[: 2 * SHOWN], *lines[-last:])


def summary(outcomes: Sequence[Outcome]) -> str:
    """Failures first, with what they said."""
    bad, good = ([one for one in outcomes if (one.word == "ok") == fine] for fine in (False, True))
    text = [f"{len(bad)} of {len(outcomes)} parts are not ok" if bad else f"all {len(outcomes)} parts are ok"]
    for one in (*bad, *good):
        text.append(f"{one.part.name:12} {one.seconds:5.0f} s  {one.word}")
        text += [f"    {line}" for line in one.lines]
    return "\n".join(text) + "\n"


def run_all(wanted: Sequence[Part], seconds: float, out: Path) -> list[Outcome]:
    """One after the other, for so many seconds in all; the summary is written anew after each."""
    out.mkdir(parents=True, exist_ok=True)
    end, outcomes = time.monotonic() + seconds, []
    for part in wanted:
        left = end - time.monotonic()
        if left < LEAST:
            outcomes.append(Outcome(part, "not begun: no time is left", 0.0))
        else:
            print(f"{part.name}: up to {min(left, part.seconds):.0f} s", flush=True)
            outcomes.append(run(part, min(left, part.seconds), out))
        (out / "summary.txt").write_text(summary(outcomes), encoding="utf-8")
    return outcomes


def main(words: Sequence[str] | None = None) -> int:
    """Run the parts, print the summary; 1 where one of them is not ok."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", nargs="+", default=[])
    parser.add_argument("--seconds", type=float, default=570.0, help="for all of it; what outlasts it is ended")
    parser.add_argument("--dry", action="store_true", help="print the commands, run none")
    arguments = parser.parse_args(words)
    wanted = chosen(arguments.parts)
    if arguments.dry:
        for part in wanted:
            print(f"{part.name:12} {part.seconds:4.0f} s  {' '.join(part.command)}")
        return 0
    outcomes = run_all(wanted, arguments.seconds, arguments.out.resolve())
    print(summary(outcomes), end="")
    return any(one.word != "ok" for one in outcomes)


if __name__ == "__main__":
    sys.exit(main())
