"""What lies beside qkit.json for others: config.json, generation_config.json and the tokenizer's files, where transformers looks.

All of them are copies of what qkit.json says or names. They come after it and decide nothing: of two files one is always first,
and a save that is interrupted between them is whole. Whoever saves next puts them right.
"""

import filecmp
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from qkit.checkpoints.files import publish
from qkit.checkpoints.manifest import NAME, OWN, files_in, read_manifest

CONFIG, GENERATION = "config.json", "generation_config.json"
APART = (NAME, CONFIG, GENERATION)  # not the tokenizer's, though a file of its folder may be called so


def renew_copies(draft: Path, written: Callable[[dict[str, Any]], dict[str, str]]) -> None:
    """Make the copies say what qkit.json says, also when somebody else saves meanwhile: the last to write looks again.

    Args:
        draft: a folder of ours inside the one that is meant.
        written: from a manifest to the text of each file that is made of it.
    """
    folder, copied = draft.parent, None
    while (manifest := read_manifest(folder)) != copied:
        for name, text in written(manifest).items():
            (draft / name).write_text(text, encoding="utf-8")
            publish(draft / name, folder / name)
        _renew_tokenizer(draft, manifest["tokenizer"])
        copied = manifest


def _renew_tokenizer(draft: Path, tokenizer: Any) -> None:
    """The files of the tokenizer, and none of another that was saved here before.

    A file is such a copy if it is, byte for byte, the one of its name in a tokenizer's folder of ours: those that are no longer
    named are removed after this.
    """
    folder = draft.parent
    current = _files(folder / tokenizer["folder"]) if isinstance(tokenizer, dict) else {}
    for own in [path for path in folder.iterdir() if path.is_dir() and OWN.fullmatch(path.name)]:
        for name, path in _files(own).items():
            if name not in current and _same(path, folder / name):
                (folder / name).unlink(missing_ok=True)
                if (folder / name).parent != folder:
                    with suppress(OSError):  # there is more in it
                        (folder / name).parent.rmdir()
    for name, path in current.items():
        if not _same(path, folder / name):
            shutil.copyfile(path, draft / "copy")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            publish(draft / "copy", folder / name)


def _files(own: Path) -> dict[str, Path]:
    return {name: path for name, path in files_in(own).items() if name not in APART}


def _same(path: Path, copy: Path) -> bool:
    try:
        return filecmp.cmp(path, copy, shallow=False)
    except FileNotFoundError:
        return False
