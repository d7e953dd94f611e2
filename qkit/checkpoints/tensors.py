"""Tensors and a record for JSON in one safetensors file, under one sum: what a flipped bit changes is not read.

safetensors itself notices a file that is too short and a header that is no JSON; a flipped bit in a number, in a name or in
the record passes. The sum is taken over the record and over name, dtype, shape and bytes of every tensor.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qkit.checkpoints.files import draft_folder, line_of, publish

RECORD = "qkit.record"  # one entry: safetensors writes several in any order


def bytes_of(tensor: Tensor) -> bytes:
    """The numbers of a tensor as they lie in memory, row after row."""
    return tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes()


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the CPU, dense, and no two in one memory: safetensors refuses those, and views that overlap."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        dense = tensor.detach().contiguous().cpu()
        memory = dense.untyped_storage().data_ptr()
        result[name] = dense.clone() if memory in seen else dense
        seen.add(memory)
    return result


def narrowest(tensor: Tensor) -> Tensor:
    """`tensor` in a 16-bit float format that holds every one of its numbers exactly, if there is one."""
    if tensor.dtype == torch.float32:
        for dtype in (torch.float16, torch.bfloat16):
            narrow = tensor.to(dtype)
            if torch.equal(narrow.float(), tensor):
                return narrow
    return tensor


def write_tensors(path: Path, tensors: dict[str, Tensor], record: Any) -> None:
    """Write one file, whole or not at all. Its folder exists."""
    record, tensors = json.loads(json.dumps(record)), apart(tensors)
    sealed = json.dumps({"sha256": _sum(tensors, record), "record": record})
    with draft_folder(path.parent) as draft:
        save_file(tensors, draft / path.name, {RECORD: sealed})
        publish(draft / path.name, path)


def read_tensors(path: Path, what: str, mend: str, older: str | None = None) -> tuple[dict[str, Tensor], Any]:
    """The tensors and the record that `write_tensors` wrote.

    Args:
        what: that the file is to hold, and
        mend: what to do if it does not, for the error's sentence.
        older: the name under which records were kept before they had a sum; None: those are refused.

    Raises:
        ValueError: the file is truncated, altered, or of something else.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder and holds no {what}; {mend}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is not a mapping)
        if RECORD in metadata:
            sealed = json.loads(metadata[RECORD])
            if _sum(tensors, sealed["record"]) != sealed["sha256"]:
                raise ValueError("its sha256 is not the one that it names")
            return tensors, sealed["record"]
        if older in metadata:
            return tensors, json.loads(metadata[older])
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not whole ({line_of(error, 0)}); {mend}") from error
    raise ValueError(f"{path} holds no {what}; {mend}")


def _sum(tensors: dict[str, Tensor], record: Any) -> str:
    digest = hashlib.sha256(json.dumps(record).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()
