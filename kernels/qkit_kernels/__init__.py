"""The fast paths of qkit. Each file holds one operation: jit functions on plain arrays, with the arithmetic in words.

Checks, allocation and the choice of a backend stand in `qkit.ops`; nothing here imports qkit, and nothing looks for
hardware when it is imported.
"""

from contextlib import suppress
from pathlib import Path


def _forget_stale(folder: Path) -> None:
    """Delete what Numba compiled before any of the sources in `folder` changed.

    Numba itself looks only at the file that a kernel stands in, and not at those of the functions that the kernel calls.
    """
    changed = max(source.stat().st_mtime for source in folder.glob("*.py"))
    for index in (folder / "__pycache__").glob("*.nbi"):
        with suppress(OSError):  # it may be another's, or gone already
            if index.stat().st_mtime < changed:
                index.unlink()


_forget_stale(Path(__file__).parent)
