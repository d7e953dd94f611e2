"""GGUF as one of the formats that `qkit.save` and `qkit.load` know."""

from pathlib import Path
from typing import Any

from torch import nn

from qkit.checkpoints.format import Format
from qkit.checkpoints.gguf.architecture import check_writable
from qkit.checkpoints.gguf.blocks import is_exact, why_no_block
from qkit.checkpoints.gguf.container import MAGIC
from qkit.checkpoints.gguf.read import load_gguf
from qkit.checkpoints.gguf.write import package, save_gguf
from qkit.nn.qlinear import QLinear
from qkit.nn.steps import steps

FILE = "model.gguf"  # in a folder


class GGUFFormat(Format):
    """One file for llama.cpp: codes in blocks of 32, the rest in F16, the tokenizer too."""

    name = "gguf"
    suffix = ".gguf"
    holds = "4 bits, and 8 bits symmetric, in groups of whole blocks of 32"
    floats = True

    def recognizes(self, path: Path) -> bool:
        """A file of that name or with that beginning, or a folder in which there is one and no config.json."""
        if path.is_dir():
            return not (path / "config.json").exists() and len(list(path.glob("*.gguf"))) == 1
        return path.suffix == self.suffix or (path.is_file() and _begins(path))

    def read(self, path: Path) -> tuple[nn.Module, Any]:
        """Codes stay codes where they are ours."""
        return load_gguf(next(path.glob("*.gguf")) if path.is_dir() else path)

    def why_not(self, layer: QLinear) -> str | None:
        """By its weight."""
        return why_no_block(layer.qtensor)

    def check(self, model: nn.Module, layers: dict[str, QLinear]) -> None:
        """A model that llama.cpp computes, and the package that writes."""
        check_writable(model)
        package()

    def lost(self, layers: dict[str, QLinear]) -> tuple[str, ...]:
        """Minima, activations, floats."""
        rounded = [name for name, layer in layers.items() if not is_exact(steps(layer))]
        own = sum(layer.activations is not None for layer in layers.values())
        return (
            *(
                [f"{len(rounded)} layers have zero points; their minima -s z are rounded to float16 there"]
                if rounded
                else []
            ),
            *(["llama.cpp rounds what goes into quantized layers to 8 bits, in blocks of 32"] if layers else []),
            *([f"{own} layers round it to INT8 per token here"] if own else []),
            "what is in float becomes F16 there, vectors F32",
        )

    def write(self, model: nn.Module, path: Path, tokenizer: Any) -> Path:
        """The file of that name, or one in a folder."""
        file = path if path.suffix == self.suffix and not path.is_dir() else path / FILE
        save_gguf(model, file, tokenizer)
        return file


def _begins(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False  # whoever reads it says why
