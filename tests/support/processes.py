"""Processes of their own, for tests that need another processor, or another state, than this one has."""

import os
import subprocess
import sys
from pathlib import Path


def run_python(*arguments, cache, timeout=1800, **environment):
    """A process of its own, with its own folder for compiled code; returns what it said if it failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_CACHE_DIR": str(cache), **environment}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return (
        "" if done.returncode == 0 else f"exit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    )
