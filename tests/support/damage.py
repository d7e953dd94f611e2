"""Ways to damage a saved model, and the way `load` has to answer."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qkit import load
from qkit.checkpoints.manifest import seal


def refused(folder: Path, match: str) -> None:
    """`load` says no, in one sentence."""
    with pytest.raises(ValueError, match=match) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def edit_manifest(folder: Path, change: Callable[[dict], object], sign: bool = True) -> None:
    """Change the manifest of a saved model; `sign`: so that its own sum is right again, and only its sense is not."""
    path = folder / "qkit.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    if sign:
        manifest.pop("sha256", None)
        manifest = seal(manifest)
    path.write_text(json.dumps(manifest))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
