"""Measurements that come with qkit, for readers who have not the card: microseconds of one layer, by format and tokens.

They lie in `data/measured`, a file a machine and shape, as `python benchmarks/gpu.py --out` writes them, and whole models in
`data/measured/models`, as `qkit bench gpu --model --out` does. Each says on what, when and with which versions; how they were
measured stands in `benchmarks/results`. What other libraries made of qkit's files is in `qkit.bench.judged`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qkit.bench.record import GpuModelRecord, Roof, write_json
from qkit.bench.roofline import Layer
from qkit.text.resources import folder

PLACE = "measured"
BITS = {"NF4": 4, "LLM.int8": 8, "bf16": 16, "fp32": 32}  # of names that have no W and a number
NF4_BLOCK = 64


@dataclass(frozen=True)
class Recorded:
    """One shape on one machine.

    Attributes:
        machine: the card or the processor.
        date: of the run, or of the last run that changed a row.
        versions: by package.
        rows, features: of the weight.
        baseline: the name of the plain product in `microseconds`, "bf16" or "torch fp32".
        microseconds: of a product, by the name of its format, then by tokens.
        floors: microseconds of a kernel that only reads the bytes of a format, by its name; where they were measured.
        peaks: 10^9 bytes, 10^9 float operations and, if it is known, 10^9 INT8 operations a second, where they were measured
            apart; else `best` takes what the baseline reached.
    """

    machine: str
    date: str
    versions: Mapping[str, str]
    rows: int
    features: int
    baseline: str
    microseconds: Mapping[str, Mapping[int, float]]
    floors: Mapping[str, float] = field(default_factory=dict)
    peaks: tuple[float, ...] | None = None

    def layer(self, name: str, tokens: int) -> Layer:
        """What format `name` has to read and compute.

        Raises:
            ValueError: the name says no number of bits.
        """
        known = next((bits for word, bits in BITS.items() if word in name), None)
        width = re.search(r"W(\d)", name)
        if width is None and known is None:
            raise ValueError(f"{name!r} says no number of bits; name a row such as {', '.join(self.microseconds)}")
        bits = int(width[1]) if width else known
        size = re.search(r"\bg(\d+)", name)
        group_size = int(size[1]) if size else NF4_BLOCK if "NF4" in name else None
        number = BITS[self.baseline.rpartition(" ")[2]] // 8
        return Layer(self.rows, self.features, bits, group_size, tokens, number)

    def gops(self, name: str, tokens: int) -> float:
        """10^9 operations a second that `name` reached."""
        return self.layer(name, tokens).operations / self.microseconds[name][tokens] / 1e3

    def ratio(self, name: str, tokens: int) -> float:
        """Its time over that of the baseline in the same run: below 1 it is faster."""
        return self.microseconds[name][tokens] / self.microseconds[self.baseline][tokens]

    @property
    def best(self) -> Roof:
        """What the machine does at best: what was measured apart, or reached by the baseline, which reads, computes, and no more.

        Of INT8, where it was not measured apart, what the fastest row with INT8 activations reached.
        """
        times = self.microseconds[self.baseline]
        reading = max(self.layer(self.baseline, tokens).bytes / us for tokens, us in times.items()) / 1e3
        computing = max(self.gops(self.baseline, tokens) for tokens in times)
        gigabytes, gops, *apart = self.peaks or (reading, computing)
        integers = [self.gops(name, m) for name, row in self.microseconds.items() if "A8" in name for m in row]
        return Roof(0, gigabytes, gops, apart[0] if apart else max(integers, default=gops))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Recorded":
        """The inverse of `to_dict`; JSON has made the numbers of tokens words."""
        times = {name: {int(m): float(us) for m, us in row.items()} for name, row in record["microseconds"].items()}
        peaks = record.get("peaks")
        return cls(**{**record, "microseconds": times, "peaks": None if peaks is None else tuple(peaks)})


def recorded(name: str) -> Recorded:
    """The file `name` of `data/measured`, e.g. "h100-14336x4096".

    Raises:
        ValueError: there is none of that name.
    """
    return Recorded.from_dict(_read(folder("data") / PLACE, name))


def recorded_model(name: str) -> GpuModelRecord:
    """The file `name` of `data/measured/models`, e.g. "h100-llama-8b".

    Raises:
        ValueError: there is none of that name.
    """
    return GpuModelRecord.from_dict(_read(folder("data") / PLACE / "models", name))


def _read(place: Path, name: str) -> dict[str, Any]:
    names = sorted(
        path.stem for path in place.glob("*-*.json")
    )  # a machine and what it ran; other records have no hyphen
    if name not in names:
        raise ValueError(f"{name!r} was not recorded; there are {', '.join(names)}")
    return json.loads((place / f"{name}.json").read_text(encoding="utf-8"))


def write(record: Recorded, path: Path) -> Path:
    """As a file that `recorded` reads."""
    return write_json(record.to_dict(), path)
