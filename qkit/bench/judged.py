"""What other libraries made of files that qkit wrote, and qkit of theirs: `data/measured/judges.json`.

`make judges` writes it, from tests/peers: a row only where the test beside it passed. README's table of who loads what is made
of it, and lesson 10 shows it to readers who have not these libraries.

One measure for all. A judge writes greedily after a prompt; at each place it is compared with qkit's model of the same codes,
given the judge's text so far:

    error = ||l' - l|| / ||l||    l [tokens, vocabulary]: qkit's logits, l': the judge's, each less the mean of its place, which
                                  changes no probability (llama.cpp tells probabilities)
    KL    = mean over places of sum p log(p / p'),   p = softmax(l), nats
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qkit.bench.record import write_json
from qkit.text.resources import folder

READS_OURS, READ_BY_US = "reads ours", "read by us"  # the judge a file of qkit's; qkit a file of the judge's making


@dataclass(frozen=True)
class Judge:
    """A library, and where and when it was asked.

    Attributes:
        name: as people call it, "GPTQModel".
        version: its own; "" of one that has only that of what it is called by.
        through: what it was called by, with its version, "transformers 5.17.0"; "" where directly.
        date: of the run.
        cpu, python: of the machine.
        versions: of the other packages that took part.
    """

    name: str
    version: str
    through: str
    date: str
    cpu: str
    python: str
    versions: Mapping[str, str]

    @property
    def label(self) -> str:
        """With its version, and what it was called by."""
        return f"{self.name} {self.version}".rstrip() + (f" through {self.through}" if self.through else "")


@dataclass(frozen=True)
class Judgement:
    """One format and scheme, before one judge.

    Attributes:
        format: as `qkit.save` calls it.
        scheme: the scheme's name; of a file that another library made, what it holds.
        judge: the name of one of `Judged.judges`.
        direction: `READS_OURS` or `READ_BY_US`.
        model: what was in the file, "bookworm-14m" or words.
        tokens: how many the judge wrote.
        error, kl: of its logits to qkit's, as above.
        kl_original: KL of its predictions to those of the model before it was quantized; None where nobody has that model.
        same_text: whether qkit writes the same, token for token.
        weights_equal: whether each layer's ŵ is the same, bit for bit, in `weights_dtype`; None where it gives none out.
    """

    format: str
    scheme: str
    judge: str
    direction: str
    model: str
    tokens: int
    error: float
    kl: float
    kl_original: float | None
    same_text: bool
    weights_equal: bool | None = None
    weights_dtype: str | None = None


@dataclass(frozen=True)
class Judged:
    """All judges and their verdicts."""

    judges: tuple[Judge, ...]
    verdicts: tuple[Judgement, ...]

    def judge(self, name: str) -> Judge:
        """The judge of this name."""
        return next(judge for judge in self.judges if judge.name == name)

    def of(self, format: str, direction: str | None = None) -> list[Judgement]:
        """The rows of a format, in one direction or both."""
        return [one for one in self.verdicts if one.format == format and direction in (None, one.direction)]

    def replaced(self, judges: Sequence[Judge], verdicts: Sequence[Judgement]) -> "Judged":
        """With these instead of all that the same judges said before: a row whose test no longer passes does not stay."""
        new = {judge.name for judge in judges}
        kept = tuple(judge for judge in self.judges if judge.name not in new)
        rows = tuple(one for one in self.verdicts if one.judge not in new)
        order = sorted((*rows, *verdicts), key=lambda one: (one.format, one.judge, one.direction))
        return Judged(tuple(sorted((*kept, *judges), key=lambda judge: judge.name.lower())), tuple(order))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Judged":
        """The inverse of `to_dict`."""
        judges = tuple(Judge(**one) for one in record["judges"])
        return cls(judges, tuple(Judgement(**one) for one in record["verdicts"]))


def judged(path: Path | None = None) -> Judged:
    """What comes with qkit, or the file `path`."""
    return Judged.from_dict(json.loads((path or place()).read_text(encoding="utf-8")))


def place() -> Path:
    """Where the record lies."""
    return folder("data") / "measured" / "judges.json"


def write(record: Judged, path: Path) -> Path:
    """As a file that `judged` reads."""
    return write_json(record.to_dict(), path)
