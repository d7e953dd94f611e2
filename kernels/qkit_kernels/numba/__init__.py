"""Kernels for CPUs. Files that hold an operation have jit functions on plain arrays, with the arithmetic in
words; `vector` (with `arm` and `processor`), `tiles`, `streams`, `grid` and `threads` are what they are written in, `steps` the
way to them (lesson 08).

Checks, allocation and the choice of a backend stand in `qkit.ops`; nothing here imports qkit, and nothing looks for
hardware when it is imported.
"""

from contextlib import suppress
from pathlib import Path


def _forget_stale(folder: Path) -> None:
    """Delete what Numba compiled before any of the sources in `folder` changed.

    Numba itself looks only at the file that a kernel stands in, and not at those of the functions that the kernel calls. (Where
    NUMBA_CACHE_DIR names another folder, a change in a source asks for a new one.)
    """
    changed = max((source.stat().st_mtime for source in folder.glob("*.py")), default=0.0)
    for index in (folder / "__pycache__").glob("*.nbi"):
        with suppress(OSError):  # it may be another's, or gone already
            if index.stat().st_mtime < changed:
                index.unlink()


_forget_stale(Path(__file__).parent)
