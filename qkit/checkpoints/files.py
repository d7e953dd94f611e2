"""Files: is this the one that was meant, and does it appear whole or not at all.

Whatever qkit writes is first a draft: a folder of a unique name beside the target, in which a file has its final name
already. It is flushed to the disk and then renamed; the drafts of a process that was killed are removed by the next that
writes there. Two processes never share a draft, and none is removed whose owner still lives: the owner holds a lock on it.
"""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TypedDict

from safetensors import SafetensorError

from qkit.text.resources import expanded

try:
    import fcntl
except ImportError:  # Windows has none: drafts of the dead then stay until somebody removes them
    fcntl = None

DRAFT = ".qkit-draft-"


def sha256(path: Path) -> str:
    """The hexadecimal sha256 of a file, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file that is not the one expected, naming both sums."""
    found = sha256(path)
    if found != expected:
        raise ValueError(
            f"{path} has sha256 {found[:12]}..., expected {expected[:12]}...: it was altered; copy it again"
        )


class Record(TypedDict):
    """What a manifest says of a file."""

    bytes: int
    sha256: str


def record_of(path: Path) -> Record:
    """Size and sha256 of a file, for JSON; `check_record` compares."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def check_record(path: Path, expected: Record) -> None:
    """Refuse a file that is missing or is not the one of which `record_of` was taken."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy the whole folder again")
    size = path.stat().st_size
    if size != expected["bytes"]:
        what = "truncated" if size < expected["bytes"] else "altered"
        raise ValueError(f"{path} has {size:,} bytes where qkit.json says {expected['bytes']:,}: {what}; copy it again")
    check_sha256(path, expected["sha256"])


def line_of(error: BaseException, number: int) -> str:
    """One line of what an error says, the first (0) or the last (-1), cut where it goes on for ever."""
    text = str(error).encode(errors="backslashreplace").decode()  # half a character cannot be printed
    lines = [line.strip().rstrip(".") for line in text.splitlines() if line.strip()]
    return shorten(lines[number], 300, placeholder=" ...") if lines else type(error).__name__


def make_folder(folder: str | os.PathLike) -> Path:
    """The folder, made if need be, with "~" expanded; an OSError of the same kind, in one sentence, if that cannot be."""
    folder = expanded(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise type(error)(error.errno, _in_the_way(_nearest(folder))) from error
    except OSError as error:
        raise _not_made(folder, error) from error
    return folder


def check_folder(folder: str | os.PathLike) -> None:
    """Refuse now what `make_folder` would refuse when the work is done, in the same words. Nothing is made that stays."""
    folder = expanded(folder)
    nearest = _nearest(folder)
    if not nearest.is_dir():
        raise FileExistsError(errno.EEXIST, _in_the_way(nearest))
    try:
        with draft_folder(nearest):
            pass
    except OSError as error:
        raise _not_made(folder, error) from error


def _nearest(folder: Path) -> Path:
    """The folder, or what of the way to it there is already."""
    return next((path for path in (folder, *folder.parents) if path.is_symlink() or path.exists()), folder)


def _in_the_way(path: Path) -> str:
    return (
        f"{path} is {'a file' if path.exists() else 'a link to nothing'}; give a folder, or a name that is still free"
    )


def _not_made(folder: Path, error: OSError) -> OSError:
    return OSError(error.errno, f"{folder} cannot be made ({error.strerror}); give a folder you may write")


@contextmanager
def in_words(folder: Path, kept: str) -> Iterator[None]:
    """Say in one sentence that a folder could not be written, and what is `kept` of it; the kind of OSError stays."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = re.search(r"os error (\d+)", str(error))  # how safetensors tells it
        number = int(number[1]) if number else getattr(error, "errno", None)
        why = os.strerror(number) if number else line_of(error, 0)
        message = f"{folder} could not be written ({why}); {kept}; make room, or give another"
        raise (OSError(number, message) if number else OSError(message)) from error


@contextmanager
def draft_folder(folder: Path) -> Iterator[Path]:
    """A folder of a unique name inside `folder`, locked as ours, and gone with all that is left in it at the end."""
    while True:
        draft = Path(tempfile.mkdtemp(prefix=DRAFT, dir=folder))
        lock = _lock(draft)
        if draft.is_dir():  # else another process took it for dead before it was locked
            break
    try:
        alone(draft)
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def alone(draft: Path) -> bool:
    """Whether no other process or thread that lives has a draft beside this one. Drafts of the dead are removed."""
    others = [path for path in draft.parent.glob(f"{DRAFT}*") if path != draft]
    return all([_bury(path) for path in others])


def publish(path: Path, target: Path) -> None:
    """Rename a file of a draft to `target`, with the permissions of any new file, flushed to the disk before and after.

    Were the draft taken from its owner, there is nothing to rename: FileNotFoundError.
    """
    ordinary = path.with_name(".ordinary")
    ordinary.touch()
    shutil.copymode(ordinary, path)  # safetensors lets only the owner read what it writes
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    path.replace(target)
    _flush_folder(target.parent)


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file so that it appears whole or not at all, with its folder if need be."""
    with draft_folder(make_folder(path.parent)) as draft:
        (draft / path.name).write_bytes(content)
        publish(draft / path.name, path)
    return path


def _lock(draft: Path) -> int | None:
    """Lock a folder until the descriptor is closed or the process dies; None where another has it, or nobody can."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(draft, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _bury(draft: Path) -> bool:
    """Remove a draft whose owner is dead; whether it is gone."""
    lock = _lock(draft)
    if lock is not None:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(lock)
    return not draft.exists()


def _flush_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # a folder cannot be opened on Windows
        return
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems have no such thing
        pass
    finally:
        os.close(descriptor)
