"""What a benchmark measured, as frozen records that become JSON and come back from it."""

import datetime
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from qkit.checkpoints.files import write_bytes

PACKAGES = (
    "qkit",
    "torch",
    "numba",
    "llvmlite",
    "numpy",
    "transformers",
    "onnxruntime",
    "onnx",
    "bitsandbytes",
    "triton",
)
FEATURES = ("avx2", "avxvnni", "avx512f", "avx512vnni", "avx512bf16", "amx-int8", "neon", "dotprod", "i8mm", "sve")


@dataclass(frozen=True)
class Roof:
    """The most that a machine does with so many threads."""

    threads: int
    gigabytes_per_second: float  # read from memory
    float_gops: float  # 10^9 float32 operations a second; a multiply-add is two
    int8_gops: float  # 10^9 INT8 operations a second


@dataclass(frozen=True)
class Measurement:
    """One layer of one library on one input: y = x ŵᵀ, x [tokens, in]."""

    library: str
    name: str  # the format of weight and activations, e.g. "W4 g128 A8"
    shape: tuple[int, int]  # (out, in)
    threads: int
    tokens: int
    nbytes: int  # of one weight as it is stored, scales included
    copies: int  # such weights that took turns
    error: float  # |y - y of float32| / |y of float32|, Frobenius norms
    cores: float  # that were busy on average
    milliseconds: tuple[float, ...]  # each counted call

    @property
    def label(self) -> str:
        """Library and name."""
        return f"{self.library} {self.name}"

    @property
    def median(self) -> float:
        """Milliseconds, in the middle of all calls."""
        return median(self.milliseconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Milliseconds: half of all calls lie between them."""
        if len(self.milliseconds) < 2:
            return self.median, self.median
        low, _, high = quantiles(self.milliseconds, n=4, method="inclusive")
        return low, high

    @property
    def gigabytes_per_second(self) -> float:
        """Bytes of the weight over the median."""
        return self.nbytes / self.median / 1e6

    @property
    def operations(self) -> int:
        """2 tokens out in: a multiplication and an addition for each weight and token."""
        return 2 * self.tokens * self.shape[0] * self.shape[1]

    @property
    def gops(self) -> float:
        """10^9 operations a second."""
        return self.operations / self.median / 1e6

    @property
    def operations_per_byte(self) -> float:
        """Of the weight."""
        return self.operations / self.nbytes

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields, and what follows from them."""
        derived = {"median_ms": self.median, "quartiles_ms": self.quartiles}
        return {**asdict(self), **derived, "GB/s": self.gigabytes_per_second, "GOP/s": self.gops}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Measurement":
        """The inverse of `to_dict`."""
        known = {name: record[name] for name in cls.__dataclass_fields__}
        return cls(**{**known, "shape": tuple(record["shape"]), "milliseconds": tuple(record["milliseconds"])})


@dataclass(frozen=True)
class LinearRecord:
    """All layers that were timed, and what is needed to judge them."""

    machine: dict[str, Any]
    roofs: tuple[Roof, ...]
    measurements: tuple[Measurement, ...]
    missing: dict[str, str] = field(default_factory=dict)  # contenders that could not run, and why
    unsettled: int = 0  # turns that began while other threads of the process computed

    @property
    def cases(self) -> list[tuple[tuple[int, int], int]]:
        """(shape, threads), in the order in which they were measured."""
        return list(dict.fromkeys((m.shape, m.threads) for m in self.measurements))

    def case(self, shape: tuple[int, int], threads: int) -> list[Measurement]:
        """What was measured at one shape with so many threads."""
        return [m for m in self.measurements if (m.shape, m.threads) == (tuple(shape), threads)]

    def roof(self, threads: int) -> Roof:
        """That of so many threads."""
        return next(roof for roof in self.roofs if roof.threads == threads)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "measurements": [m.to_dict() for m in self.measurements]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "LinearRecord":
        """The inverse of `to_dict`."""
        roofs = tuple(Roof(**roof) for roof in record["roofs"])
        measurements = tuple(Measurement.from_dict(one) for one in record["measurements"])
        return cls(record["machine"], roofs, measurements, record["missing"], record["unsettled"])


@dataclass(frozen=True)
class ModelMeasurement:
    """One model in one format."""

    model: str
    row: str  # "FP32", "RTN W4 g128", ...
    threads: int
    parameters: int
    nbytes: int  # of all parameters and buffers
    prompt: int  # tokens of the prefill
    prefill_seconds: float  # the median of several
    token_seconds: tuple[float, ...]  # each generated token
    idle_bytes: int | None  # resident before the model was made: Python, torch, transformers
    peak_bytes: int | None  # the most that was resident, making and running the model; None: the system does not say

    @property
    def prefill_rate(self) -> float:
        """Tokens of the prompt a second."""
        return self.prompt / self.prefill_seconds

    @property
    def generation_rate(self) -> float:
        """Generated tokens a second, at the median token."""
        return 1 / median(self.token_seconds)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields, and the rates."""
        return {**asdict(self), "prefill_rate": self.prefill_rate, "generation_rate": self.generation_rate}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "ModelMeasurement":
        """The inverse of `to_dict`."""
        known = {name: record[name] for name in cls.__dataclass_fields__}
        return cls(**{**known, "token_seconds": tuple(record["token_seconds"])})


@dataclass(frozen=True)
class ModelRecord:
    """Models that were timed."""

    machine: dict[str, Any]
    measurements: tuple[ModelMeasurement, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "measurements": [m.to_dict() for m in self.measurements]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "ModelRecord":
        """The inverse of `to_dict`."""
        measurements = tuple(ModelMeasurement.from_dict(one) for one in record["measurements"])
        return cls(record["machine"], measurements)


@dataclass(frozen=True)
class GpuMeasurement:
    """One layer on a GPU: y = x ŵᵀ, x [tokens, in]."""

    row: str  # "BF16", "RTN W4 g128", ...
    shape: tuple[int, int]  # (out, in)
    dtype: str  # of the activations: "bf16" or "fp16"
    tokens: int
    nbytes: int  # of the weight as it is stored, scales included
    floor: float  # microseconds that only reading so many bytes takes
    microseconds: float
    error: float | None  # |y - y of float64| / |y of float64|, of the same codes; None: not checked, it is torch's own

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "GpuMeasurement":
        """The inverse of `to_dict`."""
        return cls(**{**record, "shape": tuple(record["shape"])})


@dataclass(frozen=True)
class GpuRecord:
    """Layers that were timed on one card."""

    machine: dict[str, Any]
    measurements: tuple[GpuMeasurement, ...]
    missing: dict[str, str] = field(default_factory=dict)  # rows whose product was wrong, and by how much

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """In the order in which they were measured."""
        return list(dict.fromkeys(m.shape for m in self.measurements))

    def case(self, shape: tuple[int, int]) -> dict[str, dict[int, GpuMeasurement]]:
        """What was measured at one shape, by row and number of tokens; the float product is the first row."""
        rows: dict[str, dict[int, GpuMeasurement]] = {}
        for m in self.measurements:
            if m.shape == tuple(shape):
                rows.setdefault(m.row, {})[m.tokens] = m
        return rows

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "GpuRecord":
        """The inverse of `to_dict`."""
        measurements = tuple(GpuMeasurement.from_dict(one) for one in record["measurements"])
        return cls(record["machine"], measurements, record["missing"])


@dataclass(frozen=True)
class GpuModelMeasurement:
    """One model in one format on a GPU, generating."""

    model: str
    row: str  # "BF16", "RTN W4 g128", "bitsandbytes NF4", ...
    batch: int  # sequences that are written at once
    way: str  # how a step was launched: "compiled, one graph", "one graph", "eager"
    length: int  # positions of the static cache, over all of which each step attends
    parameters: int
    nbytes: int  # of all parameters and buffers as they are stored
    head_bytes: int  # of the output head, of them; read for each token
    held_bytes: int  # on the card once it generates: what is stored, what the kernels read beside it, the cache
    peak_bytes: int  # the most that was on the card while it was made and laid out
    error: float | None  # |logits - logits of float32| / |logits of float32|, of the same codes
    step_seconds: tuple[float, ...]  # each step of the whole batch

    @property
    def rate(self) -> float:
        """Tokens a second, of all sequences, at the median step."""
        return self.batch / median(self.step_seconds)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields, and the rate."""
        return {**asdict(self), "rate": self.rate}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "GpuModelMeasurement":
        """The inverse of `to_dict`."""
        known = {name: record[name] for name in cls.__dataclass_fields__}
        return cls(**{**known, "step_seconds": tuple(record["step_seconds"])})


@dataclass(frozen=True)
class GpuModelRecord:
    """Models that generated on one card."""

    machine: dict[str, Any]
    measurements: tuple[GpuModelMeasurement, ...]
    missing: dict[str, str] = field(default_factory=dict)  # rows that could not run, and why

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "measurements": [m.to_dict() for m in self.measurements]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "GpuModelRecord":
        """The inverse of `to_dict`."""
        measurements = tuple(GpuModelMeasurement.from_dict(one) for one in record["measurements"])
        return cls(record["machine"], measurements, record["missing"])


def describe_machine() -> dict[str, Any]:
    """What was measured on, and with what: processor, cores, vector instructions, versions, the date, and the load."""
    from qkit_kernels.numba.vector import has

    return {
        "cpu": _processor(),
        "cores": core_count(),
        "features": [feature for feature in FEATURES if has(feature)],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # processes that ran already
    }


def core_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    if Path("/proc/cpuinfo").is_file() and (
        name := re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    ):
        from llvmlite import binding

        return f"{name[1].strip()} ({binding.get_host_cpu_name()})"  # in a virtual machine the first may say little
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_json(record: Mapping[str, Any], path: Path) -> Path:
    """Write `record` so that the file appears whole or not at all."""
    return write_bytes(path, (json.dumps(record, indent=1) + "\n").encode())


def merged(records: Sequence[LinearRecord]) -> LinearRecord:
    """Several records of one machine as one; the first says what the machine was."""
    return LinearRecord(
        machine=records[0].machine,
        roofs=tuple(roof for record in records for roof in record.roofs),
        measurements=tuple(m for record in records for m in record.measurements),
        missing={name: why for record in records for name, why in record.missing.items()},
        unsettled=sum(record.unsettled for record in records),
    )
