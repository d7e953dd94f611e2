"""Where a code of 4 bits lies in the file of another library: found by writing, not by saying it again.

Addresses of weights go, four bits at a time, as codes through the writer of a format; what comes out says of every half byte
whose code it is. The bytes themselves are read from files that `qkit.save(..., format=...)` wrote.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from qkit.checkpoints.folder import FolderFormat, quantization_of
from qkit.checkpoints.format import SaveReport
from qkit.checkpoints.formats import FORMATS
from qkit.checkpoints.gguf.architecture import gguf_name
from qkit.checkpoints.gguf.blocks import TO, block_type
from qkit.checkpoints.gguf.container import Entry, open_container
from qkit.export.graph import Graph
from qkit.export.linear import matmul_nbits
from qkit.nn.qlinear import QLinear
from qkit.numerics.qtensor import QTensor

BITS = 4
CODES_IN = {"gptq": "qweight", "awq": "qweight", "compressed-tensors": "weight_packed"}  # a tensor of words, int32
SCALE_BYTES = {"Q4_0": 2, "Q4_1": 4}  # before the codes of a block: d, or d and m
ONES = np.uint32(0x11111111)  # a one in each of eight fields
MAPPED = (*CODES_IN, "gguf", "onnx")


@dataclass(frozen=True)
class Piece:
    """The word or block of a file in which a code lies.

    Half bytes are in the file's order, the lower half of a byte first: lowest bits first, as a little-endian word has them.

    Attributes:
        form: the format.
        unit: what the piece is, in words.
        file: the name of the file.
        start: at which byte of it the piece begins.
        octets: uint8 [n], its bytes.
        row, column: int64 [2 n], of which weight each half byte is the code; -1: it is no code but part of a scale or a minimum.
    """

    form: str
    unit: str
    file: str
    start: int
    octets: np.ndarray
    row: np.ndarray
    column: np.ndarray

    @property
    def halves(self) -> np.ndarray:
        """The numbers 0 .. 15 of the half bytes, uint8 [2 n]."""
        return halves(self.octets)

    def of(self, row: int, column: int) -> int:
        """Which half byte is the code of this weight.

        Raises:
            ValueError: none is.
        """
        found = np.flatnonzero((self.row == row) & (self.column == column))
        if len(found) != 1:
            raise ValueError(
                f"no half byte of this {self.unit} is the code of row {row}, column {column}; read its piece"
            )
        return int(found[0])


@dataclass(frozen=True)
class _Codes:
    """All codes of a layer in a file: their bytes, where they begin, and in what units they are read."""

    file: Path
    start: int
    octets: np.ndarray
    unit: str
    unit_bytes: int
    places: np.ndarray  # int64 [half bytes]: row * columns + column, or -1


def halves(octets: np.ndarray) -> np.ndarray:
    """Bytes as half bytes, the lower first: uint8 [n] -> uint8 [2 n]."""
    return np.stack([octets & 15, octets >> 4], -1).reshape(-1)


def file_piece(saved: SaveReport, layer: str, row: int, column: int) -> Piece:
    """Read the piece of a file in which the code of one weight lies.

    Args:
        saved: what `qkit.save(model, ..., format=...)` returned, of a model in 4 bits.
        layer: the name of a quantized layer, "model.layers.0.mlp.down_proj".
        row, column: of the weight [out, in].

    Raises:
        ValueError: a format, layer or weight of which there is no map.
        ImportError: the package of the format is not installed.
    """
    if saved.format not in MAPPED:
        raise ValueError(
            f"of format {saved.format!r} there is no map of half bytes; there is one of {', '.join(MAPPED)}"
        )
    codes, columns = _read(saved, layer)
    rows = (int(codes.places.max()) + 1) // columns
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(f"row={row}, column={column} is no weight of {layer}, which is {rows} x {columns}")
    at = int(np.flatnonzero(codes.places == row * columns + column)[0])
    first = at // (2 * codes.unit_bytes) * codes.unit_bytes
    octets = codes.octets[first : first + codes.unit_bytes]
    places = codes.places[2 * first : 2 * (first + codes.unit_bytes)]
    r, c = (np.where(places < 0, -1, part) for part in (places // columns, places % columns))
    return Piece(saved.format, codes.unit, codes.file.name, codes.start + first, octets, r, c)


def safetensors_header(path: Path) -> tuple[dict[str, dict], int]:
    """What a safetensors file says of its tensors, and at which byte their numbers begin.

    The first eight bytes are the length of the JSON behind them, little-endian.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def gptq_version_1(saved: SaveReport, folder: Path) -> Path:
    """A folder of GPTQ's version 2 again, as AutoGPTQ and its heirs write it: version 1, one less in every field of qzeros.

    The one is taken off whole words, as GPTQModel does it: of a field that is 0 the borrow goes on into the next.

    Args:
        saved: what `qkit.save(model, ..., format="gptq")` returned, of a model in 4 bits with zero points.
        folder: a new one.

    Raises:
        ValueError: the folder is of another version or width.
    """
    said = quantization_of(saved.path) or {}
    if (said.get("checkpoint_format"), said.get("bits")) != ("gptq_v2", BITS):
        raise ValueError(
            f"{saved.path} is no folder of GPTQ's version 2 in 4 bits, which a model with zero points is saved as"
        )
    shutil.copytree(saved.path, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] |= {"checkpoint_format": "gptq", "format": "gptq"}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(".qzeros"):
            tensors[name] = torch.from_numpy((tensor.numpy().view(np.uint32) - ONES).view(np.int32))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def _read(saved: SaveReport, layer: str) -> tuple[_Codes, int]:
    """The codes of a layer, and how many columns it has."""
    if saved.format == "gguf":
        return _from_gguf(saved.path, layer)
    if saved.format == "onnx":
        return _from_onnx(saved.path / "model.onnx", layer)
    path = saved.path / "model.safetensors"
    said = quantization_of(saved.path) or {}
    _check_bits(
        path, [group["weights"]["num_bits"] for group in said.get("config_groups", {}).values()] or [said.get("bits")]
    )
    tensors, start = safetensors_header(path)
    name = f"{layer}.{CODES_IN[saved.format]}"
    if name not in tensors:
        raise ValueError(f"{path.name} has no {name}; give a quantized layer of the model that was saved")
    scales = tensors[f"{layer}.{'weight_scale' if saved.format == 'compressed-tensors' else 'scales'}"]["shape"]
    rows, groups = scales if saved.format == "compressed-tensors" else scales[::-1]
    begin, end = (start + offset for offset in tensors[name]["data_offsets"])
    octets = np.fromfile(path, np.uint8, end - begin, offset=begin)
    columns = 2 * len(octets) // rows
    places = _places(saved.format, rows, columns, groups, True)
    return _Codes(path, begin, octets, f"word of {CODES_IN[saved.format]}", 4, places), columns


def _check_bits(path: Path, widths: Sequence[int | None]) -> None:
    if set(widths) != {BITS}:
        raise ValueError(
            f"{path} has codes of {', '.join(map(str, widths))} bits, and half bytes are codes of 4 bits; save such a model"
        )


def _from_gguf(path: Path, layer: str) -> tuple[_Codes, int]:
    container = open_container(path)
    name = gguf_name(f"{layer}.weight")
    entry = container.tensors.get(name or "")
    q = container.stored(name) if entry and name else None
    if entry is None or q is None or q.bits != BITS:
        raise ValueError(
            f"{path.name} holds no codes of 4 bits of {layer}; give a quantized layer of the model that was saved"
        )
    if layer.endswith(("q_proj", "k_proj")):
        raise ValueError(f"GGUF has the rows of {layer} in another order, of which there is no map; give another layer")
    places = _places("gguf", *q.shape, q.row_groups, q.symmetric)
    kind = block_type(q)
    return _Codes(path, entry.start, _octets(path, entry), f"block {kind}", SCALE_BYTES[kind] + 16, places), q.shape[1]


def _octets(path: Path, entry: Entry) -> np.ndarray:
    return np.fromfile(path, np.uint8, entry.length, offset=entry.start)


def _from_onnx(path: Path, layer: str) -> tuple[_Codes, int]:
    import onnx

    graph = onnx.load(path).graph
    kept = {tensor.name: tensor for tensor in graph.initializer}
    if f"{layer}.codes" not in kept:
        raise ValueError(f"{path.name} has no {layer}.codes; give a quantized layer of the model that was saved")
    raw = kept[f"{layer}.codes"].raw_data
    rows, blocks, block_bytes = kept[f"{layer}.codes"].dims
    node = next(node for node in graph.node if f"{layer}.codes" in node.input)
    columns = next(attribute.i for attribute in node.attribute if attribute.name == "K")
    _check_bits(path, [attribute.i for attribute in node.attribute if attribute.name == "bits"])
    places = _places("onnx", rows, columns, blocks, f"{layer}.zeros" not in kept)
    start = path.read_bytes().index(raw)
    octets = np.frombuffer(raw, np.uint8)
    return _Codes(path, start, octets, "block of MatMulNBits", block_bytes, places), columns


@cache
def _places(form: str, rows: int, columns: int, groups: int, symmetric: bool) -> np.ndarray:
    """Of every half byte that the writer makes of a layer, whose code it is: int64, -1 where it is none."""
    address = torch.arange(rows * columns).reshape(rows, columns)
    found = None
    for digit in range(0, (rows * columns - 1).bit_length(), BITS):
        written = halves(_written(form, address >> digit & 15, groups, symmetric)).astype(np.int64) << digit
        found = written if found is None else found | written
    assert found is not None
    none, all_ = (halves(_written(form, torch.full_like(address, code), groups, symmetric)) for code in (0, 15))
    return np.where((none == 0) & (all_ == 15), found, -1)


def _written(form: str, codes: torch.Tensor, groups: int, symmetric: bool) -> np.ndarray:
    """The bytes of the codes as a format's own writer lays them out, uint8 [n]; all scales are 1."""
    scales = torch.ones(len(codes), groups, dtype=torch.float16)
    zeros = None if symmetric else torch.full((len(codes), groups), 8, dtype=torch.uint8)
    q = QTensor.from_codes(codes.to(torch.uint8), scales, BITS, zero_points=zeros)
    if form == "gguf":
        return TO[block_type(q)](q).numpy().reshape(-1)
    layer = QLinear(q)
    if form == "onnx":
        graph = Graph()
        matmul_nbits(graph, "x", layer, "layer", 0)
        raw = next(tensor.raw_data for tensor in graph.initializers if tensor.name == "layer.codes")
        return np.frombuffer(raw, np.uint8)
    writer = cast(FolderFormat, FORMATS[form])
    config = writer.config({"layer": layer}, [], [])
    return writer.tensors(layer, config)[CODES_IN[form]].contiguous().numpy().view(np.uint8).reshape(-1)
