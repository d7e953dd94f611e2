"""Part of a benchmark in a fresh process: no memory, threads or compiled code of the part before.

The number of threads stands in its environment before any library is loaded: it is the one setting that all of them heed.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any


def ask(module: str, request: dict[str, Any], threads: int) -> dict[str, Any]:
    """What `answer` in `python -m module` makes of the request, with so many threads.

    Raises:
        ChildProcessError: the process ended without an answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        question, reply = Path(folder) / "request.json", Path(folder) / "reply.json"
        question.write_text(json.dumps({**request, "threads": threads}))
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        done = subprocess.run([sys.executable, "-m", module, str(question), str(reply)], env=environment)
        if done.returncode or not reply.is_file():
            why = " (killed: did memory run out?)" if done.returncode == -9 else ""
            raise ChildProcessError(
                f"the process that measured {request} with {threads} threads ended with status {done.returncode}{why}; "
                f"what it wrote above says why"
            )
        return json.loads(reply.read_text())


def answer(measure: Callable[..., dict[str, Any]]) -> None:
    """The other side: `measure(**request)`, whose result goes back. For `if __name__ == "__main__"`."""
    import torch

    question, reply = (Path(argument) for argument in sys.argv[1:])
    request = json.loads(question.read_text())
    torch.set_num_threads(request.pop("threads"))
    reply.write_text(json.dumps(measure(**request)))


def all_at_once(commands: Iterable[Sequence[str]]) -> None:
    """Python with each of the arguments, all together and silent, until the last has ended: for what they leave behind, compiled
    kernels. What fails in one of them fails again where it is measured.
    """
    started = [
        subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    for process in started:
        process.wait()
