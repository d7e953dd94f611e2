"""Ways to damage a saved model, and the way `load` has to answer."""

from pathlib import Path

import pytest

from qkit import load


def refused(folder: Path, match: str) -> None:
    """`load` says no, in one sentence."""
    with pytest.raises(ValueError, match=match) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
