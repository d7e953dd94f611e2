"""Processor seconds of a lesson, cell by cell: what a shelf that promises a minute on two quiet cores is held to.

    OMP_NUM_THREADS=1 python tests/support/lesson_seconds.py [lessons/05_awq.ipynb ...]        all of them without arguments

They are the kernel's, user and system, of all its threads and of processes it waited for, from its start on. Unlike the minutes
on a clock they hardly depend on what else the machine does; how long they last is at most this, on more cores less. The Numba
kernels should be compiled already (qkit warmup): the first run on a machine pays for that. Nothing is written.
"""

import sys
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient

from shelf import paths

SHOWN = 1.5  # seconds from which on a cell gets a line of its own


def seconds(path: Path) -> list[tuple[int, float]]:
    """The cells that were run, by their places in the file, each with its processor seconds; -1 is the kernel's start."""
    book = nbformat.read(path, as_version=4)
    spent: list[tuple[int, float]] = []
    total = 0.0

    def note(place: int) -> None:
        nonlocal total
        now = _of_process(client.km.provisioner.pid)
        spent.append((place, now - total))
        total = now

    client = NotebookClient(
        book,
        timeout=None,
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_start=lambda cell, cell_index: None if spent else note(-1),
        on_cell_executed=lambda cell, cell_index, execute_reply: note(cell_index),
    )
    client.execute()
    return spent


def _of_process(pid: int) -> float:
    """Of a process, of those it started that still run, and of those that have ended."""
    root = psutil.Process(pid)
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return sum(one.user + one.system + one.children_user + one.children_system for one in times)


def main() -> None:
    """Run the lessons one after the other, and print."""
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else paths():
        spent = seconds(path)
        print(f"{path.name}: {sum(value for _, value in spent):.1f} s", flush=True)
        for place, value in sorted(spent, key=lambda one: -one[1]):
            if value >= SHOWN:
                print(f"    {'start' if place < 0 else f'[{place}]':6} {value:5.1f} s")


if __name__ == "__main__":
    main()
