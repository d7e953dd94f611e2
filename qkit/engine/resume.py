"""Finished blocks on disk, so that a long quantization can be interrupted and taken up again.

One safetensors file a block, written by rename and under a sum (`qkit.checkpoints.tensors`). Its record holds a fingerprint
of everything that went in (the scheme of each layer, the calibration tokens, the model's weights), so that a file is only
used for the work it belongs to. Two processes at the same work write the same blocks.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qkit.checkpoints.files import make_folder
from qkit.checkpoints.layers import layer_from, layer_record
from qkit.checkpoints.tensors import bytes_of, read_tensors, write_tensors
from qkit.engine.scaling import pack_scales, unpack_scales
from qkit.engine.solve import SolvedLayer
from qkit.engine.stream import SolvedBlock
from qkit.model.blocks import find_blocks

RECORD_FORMAT = 2  # part of the fingerprint: what another qkit wrote down otherwise is other work


@dataclass(eq=False)
class Resume:
    """The folder, the fingerprint of this work, and what belongs to it in the folder."""

    folder: Path
    fingerprint: str
    finished: dict[str, SolvedBlock] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | os.PathLike, model: nn.Module, work: dict[str, Any], ids: Tensor) -> "Resume":
        """Make the folder, or read the blocks in it that this work left there.

        Args:
            work: for JSON, the scheme of each layer.

        Raises:
            ValueError: it holds blocks of other work, or damaged ones.
            OSError: it cannot be made.
        """
        folder = make_folder(folder)
        resume = cls(folder, _fingerprint(model, work, ids))
        for name, _ in find_blocks(model):
            path = resume._path(name)
            if path.exists():
                resume.finished[name] = _read(path, name, resume.fingerprint, model)
        return resume

    def keep(self, block: SolvedBlock) -> None:
        """Write one block."""
        if block.name in self.finished:
            return
        tensors, layers = {}, {}
        for name, solution in block.solutions.items():
            for part, tensor in solution.layer.named_buffers(recurse=False):
                tensors[f"layer.{name}.{part}"] = tensor
            layers[name] = {
                **layer_record(solution.layer),
                "notes": dict(solution.notes),
                "warnings": list(solution.warnings),
                "tokens": block.tokens[name],
            }
            tensors[f"weight.{name}"] = block.weights[name]
        tensors |= {f"parameter.{name}": parameter.detach() for name, parameter in block.parameters.items()}
        scale_tensors, scales = pack_scales(block.scales)
        tensors |= {f"scale.{name}": tensor for name, tensor in scale_tensors.items()}
        record = {"fingerprint": self.fingerprint, "layers": layers, "scales": scales, "left": block.left}
        write_tensors(self._path(block.name), tensors, record)

    def _path(self, block: str) -> Path:
        return self.folder / f"{block}.safetensors"


def _fingerprint(model: nn.Module, work: dict[str, Any], ids: Tensor) -> str:
    digest = hashlib.sha256(json.dumps([RECORD_FORMAT, work, list(ids.shape)], sort_keys=True).encode())
    digest.update(bytes_of(ids))
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def _read(path: Path, name: str, fingerprint: str, model: nn.Module) -> SolvedBlock:
    tensors, record = read_tensors(path, "finished block", "delete it, and its block is solved again")
    if record["fingerprint"] != fingerprint:
        raise ValueError(
            f"{path} was made by other work (another scheme, calibration, model, or qkit); give another folder, or empty this"
        )
    if strange := next((layer for layer in record["layers"] if not layer.startswith(f"{name}.")), None):
        raise ValueError(f"{path} holds {strange}, which is another block's: files were renamed; empty the folder")
    device = next(model.parameters()).device
    tensors = {key: tensor.to(device) for key, tensor in tensors.items()}
    weights = _under(tensors, "weight.")
    layers = _under(tensors, "layer.")
    solutions, tokens = {}, {}
    for layer, one in record["layers"].items():
        notes, warnings, tokens[layer] = one.pop("notes"), tuple(one.pop("warnings")), one.pop("tokens")
        module = layer_from(one, layers, layer)
        old = model.get_submodule(layer)
        module.bias = old.bias
        solutions[layer] = SolvedLayer(module.train(old.training), module.qtensor, notes, warnings)
    parameters = {
        key: nn.Parameter(tensor, requires_grad=model.get_parameter(key).requires_grad)
        for key, tensor in _under(tensors, "parameter.").items()
    }
    for key, parameter in parameters.items():  # a layer's bias is one object, in the layer and among the parameters
        owner, _, leaf = key.rpartition(".")
        if owner in solutions and leaf == "bias":
            solutions[owner].layer.bias = parameter
    return SolvedBlock(
        name,
        solutions,
        weights,
        parameters,
        unpack_scales(_under(tensors, "scale."), record["scales"]),
        tokens,
        record["left"],
    )


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
