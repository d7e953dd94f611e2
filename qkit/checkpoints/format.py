"""What a format of others is: a handful of questions that `save` and `load` ask, and never which format it is.

    which files are its own    `recognizes`
    what can it hold           `why_not`, asked of every quantized layer before anything is written
    how does it write          `write`, and `lost`: what the other side will do differently
    how does it read           `read`

A new one is a file with these, its tests, and a line in `qkit.checkpoints.formats`. This file knows none of them.
"""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from qkit.nn.qlinear import QLinear


@dataclass(frozen=True, repr=False)
class SaveReport:
    """What `qkit.save` wrote in a format of others. Wherever a path is wanted (`qkit.load`), it is the path.

    Attributes:
        path: the folder or file.
        format: the format's name.
        layers: how many quantized layers went over, codes and scales exactly as they were.
        notes: what is different on the other side, sentences; nothing where nothing is.
    """

    path: Path
    format: str
    layers: int
    notes: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        return os.fspath(self.path)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"path": str(self.path), "format": self.format, "layers": self.layers, "notes": list(self.notes)}

    def __repr__(self) -> str:
        lines = [f"{self.layers} quantized layers in {self.path} as {self.format}", *self.notes]
        return "\n  note: ".join(lines)


class Format(ABC):
    """A format of another library.

    Attributes:
        name: as `qkit.save(..., format=name)` has it, and config.json's quant_method where there is one.
        suffix: of a file that is one of these, ".gguf"; empty for a folder.
        holds: which schemes it holds, for sentences.
        permutes: it holds columns that are sorted by group (`qkit.nn.permuted_linear`); all others are refused those before
            they are asked.
        floats: it holds models of which no layer is quantized.
        reads: what is written is read again, too.
    """

    name: ClassVar[str]
    suffix: ClassVar[str] = ""
    holds: ClassVar[str]
    permutes: ClassVar[bool] = False
    floats: ClassVar[bool] = False
    reads: ClassVar[bool] = True

    @abstractmethod
    def recognizes(self, path: Path) -> bool:
        """Whether this file or folder says that it is of this format. True also for one that turns out damaged."""

    @abstractmethod
    def read(self, path: Path) -> tuple[nn.Module, Any]:
        """The model, its quantized layers as ours, and the tokenizer or None.

        Raises:
            ValueError: in one sentence, for whatever is missing, damaged or not supported.
        """

    @abstractmethod
    def why_not(self, layer: QLinear) -> str | None:
        """Why the format cannot hold this layer, as the end of a sentence that begins with the layer's name; None: it can."""

    @abstractmethod
    def check(self, model: nn.Module, layers: dict[str, QLinear]) -> None:
        """Refuse, before anything is written, what single layers do not show: layers that do not go together, an
        architecture that the format does not know. Each layer has passed `why_not`.

        Raises:
            ValueError: the beginning of a sentence, which goes on with the formats that can.
        """

    @abstractmethod
    def lost(self, layers: dict[str, QLinear]) -> tuple[str, ...]:
        """What the other side does differently with these layers, sentences for the report."""

    @abstractmethod
    def write(self, model: nn.Module, path: Path, tokenizer: Any) -> Path:
        """Write a model that was checked, whole or not at all; return the file or folder.

        Raises:
            OSError: it cannot be written.
        """
