"""qkit.json: what belongs to a saved model, by name, size and sum; and what in the folder nobody names any more.

The manifest of version 3 has a sum of its own, over the rest of its fields. What it does not name is not read.
"""

import hashlib
import json
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from qkit.checkpoints.files import Record, check_record, line_of, record_of

NAME = "qkit.json"
VERSION = 3  # 1 knew QLinear and QTensor only, 2 had no sum and left the tokenizer's files unnamed; both are read
FIELDS = {
    "class": str,
    "config": dict,
    "attention": str,
    "generation_config": dict | None,
    "weights": dict,
    "tokenizer": dict | None,
    "layers": dict,
    "tied": dict,
    "widened": dict,
    "derived": list,
}
UNNAMED = {"tokenizer": bool}  # in versions 1 and 2: whether there is one
OWN = re.compile(r"(weights-[0-9a-f]{12}(-\w+)?\.safetensors|tokenizer-[0-9a-f]{12}(-\w+)?)")  # the names of our files


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest as JSON will give it back, with its sum."""
    manifest = json.loads(json.dumps(manifest))
    return {**manifest, "sha256": _sum(manifest)}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; a ValueError in one sentence if it is not whole and unaltered."""
    path = folder / NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); see that it is a file and that you may") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not JSON ({line_of(error, 0)}): truncated or altered; copy or save the model again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != "qkit":
        raise ValueError(f"{path} is not a manifest of qkit's; give a folder that qkit.save wrote")
    version = manifest.get("version")
    if version not in (1, 2, VERSION) or isinstance(version, bool | float):
        raise ValueError(
            f"{path} has format version {version!r}, this qkit reads 1 to {VERSION}; "
            f"load it with the qkit that wrote it, or save it again with this one"
        )
    fields = FIELDS | (UNNAMED if version < VERSION else {"sha256": str})
    if missing := ", ".join(sorted(set(fields) - set(manifest))):
        raise ValueError(f"{path} lacks {missing}; it was altered: save the model again")
    if (version == VERSION and manifest["sha256"] != _sum(manifest)) or (version < VERSION and "sha256" in manifest):
        raise ValueError(f"{path} was altered: its fields are not those of its sha256; copy it again")
    for name, kind in fields.items():
        if not isinstance(manifest[name], kind):
            raise ValueError(
                f"{path} was altered: its {name} is a {type(manifest[name]).__name__}; save the model again"
            )
    _check_names(path, manifest)
    return manifest


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Refuse files that are missing, altered, or lie among the tokenizer's without being named."""
    weights, tokenizer = manifest["weights"], manifest["tokenizer"]
    check_record(folder / weights["file"], weights)
    if isinstance(tokenizer, dict):
        for name, record in tokenizer["files"].items():
            check_record(folder / tokenizer["folder"] / name, record)
        if strange := sorted(set(files_in(folder / tokenizer["folder"])) - set(tokenizer["files"])):
            raise ValueError(
                f"{folder / tokenizer['folder'] / strange[0]} does not belong to the tokenizer that was saved; remove it"
            )


def files_in(folder: Path) -> dict[str, Path]:
    """All files of a folder and of those in it, by their names within it; hidden ones are the system's."""
    names = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {name.as_posix(): path for name, path in names.items() if not any(part[0] == "." for part in name.parts)}


def file_records(folder: Path) -> dict[str, Record]:
    """Size and sha256 of each of `files_in`."""
    return {name: record_of(path) for name, path in sorted(files_in(folder).items())}


def _names_of(manifest: dict[str, Any]) -> set[str]:
    """What of the folder belongs to the manifest, itself aside."""
    tokenizer = manifest["tokenizer"]
    return {manifest["weights"]["file"]} | ({tokenizer["folder"]} if isinstance(tokenizer, dict) else set())


def remove_unnamed(folder: Path, only: set[str] | None = None) -> None:
    """Remove what saves have left in the folder and its present manifest does not name.

    For whoever is alone there (`qkit.checkpoints.files.alone`): another save may be about to name what nobody names yet.

    Args:
        only: of these names; None: of all that look like ours.
    """
    named = set()
    if (folder / NAME).exists():
        try:
            named = _names_of(read_manifest(folder))
        except ValueError:  # a newer qkit's, or damaged: then nobody knows what is stale
            return
    left = {path.name for path in folder.iterdir() if OWN.fullmatch(path.name)}
    for name in (left if only is None else left & only) - named:
        with suppress(OSError):  # Windows keeps a file that a loaded model is mapped to; a later save removes it
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def _sum(manifest: dict[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check_names(path: Path, manifest: dict[str, Any]) -> None:
    """Files are named by what they are, lie in the folder, and have a size and a sum."""
    weights, tokenizer = manifest["weights"], manifest["tokenizer"]
    if not {"file", "bytes", "sha256"} <= set(weights):
        raise ValueError(f"{path} lacks parts of weights; it was altered: save the model again")
    records = [weights]
    names = [weights["file"]]
    if isinstance(tokenizer, dict):
        if not isinstance(tokenizer.get("files"), dict):
            raise ValueError(f"{path} lacks parts of tokenizer; it was altered: save the model again")
        records += tokenizer["files"].values()
        names += [tokenizer.get("folder")]
        for name in tokenizer["files"]:
            if Path(name).is_absolute() or not re.fullmatch(r"[^\\\0:]+", name) or ".." in name.split("/"):
                raise ValueError(f"{path} names a file {name!r} that is none of the tokenizer's folder; it was altered")
    for name in names:
        if not isinstance(name, str) or not OWN.fullmatch(name):
            raise ValueError(f"{path} names {name!r}, no file of its own folder that qkit.save wrote; it was altered")
    for record in records:
        size, digest = (record.get("bytes"), record.get("sha256")) if isinstance(record, dict) else (None, None)
        if type(size) is not int or not isinstance(digest, str):
            raise ValueError(
                f"{path} gives a file size {size!r} and sha256 {digest!r}; it was altered: save the model again"
            )
