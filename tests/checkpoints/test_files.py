"""Files appear whole or not at all, whoever is interrupted and whoever else writes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qkit.bench import write_json
from qkit.checkpoints import files
from qkit.checkpoints.files import alone, check_folder, draft_folder, make_folder, publish, write_bytes


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_its_folder_and_replaced(tmp_path):
    path = write_bytes(tmp_path / "a" / "b" / "file", b"1")
    assert write_bytes(path, b"2").read_bytes() == b"2"
    assert names(path.parent) == ["file"]


def test_it_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "ordinary").touch()
    path = write_bytes(tmp_path / "file", b"1")
    assert path.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=repr)
def test_whoever_is_interrupted_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch, error):
    path = write_bytes(tmp_path / "file", b"old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_the_numbers_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    """fsync of the file, the rename, fsync of the folder."""
    happened, fsync, replace = [], os.fsync, Path.replace

    def flush(descriptor):
        happened.append(Path(f"/proc/self/fd/{descriptor}").readlink() if sys.platform == "linux" else None)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", lambda self, target: (happened.append("rename"), replace(self, target)))
    write_bytes(tmp_path / "file", b"1")
    assert [one if isinstance(one, str) else "flush" for one in happened] == ["flush", "rename", "flush"]
    if sys.platform == "linux":
        assert (happened[0].name, happened[2]) == ("file", tmp_path)


def test_two_drafts_never_share_a_name(tmp_path):
    """Many threads write one file: it is always one of theirs, whole, and nothing else is left."""
    contents = [bytes([number]) * 10_000 for number in range(8)]
    threads = [threading.Thread(target=write_bytes, args=(tmp_path / "file", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() in contents
    assert names(tmp_path) == ["file"]


def test_a_draft_of_the_living_is_left_alone(tmp_path):
    with draft_folder(tmp_path) as mine:
        assert alone(mine)
        with draft_folder(tmp_path) as other:
            assert not alone(mine) and not alone(other)
        assert alone(mine)
    assert names(tmp_path) == []


WRITER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])  # the file alone: it needs neither torch nor the rest of qkit
from files import draft_folder
with draft_folder(Path(sys.argv[1])) as draft:
    (draft / "half").write_bytes(b"half")
    print("ready", flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


@pytest.mark.skipif(files.fcntl is None, reason="without locks nobody knows who is dead")
@pytest.mark.parametrize("fate", ["die", "live"])
def test_a_draft_of_another_process_is_removed_when_that_is_dead(tmp_path, fate):
    command = [sys.executable, "-c", WRITER, str(tmp_path), fate, str(Path(files.__file__).parent)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    writer.stdout.readline()
    if fate == "die":
        assert writer.wait() == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    write_bytes(tmp_path / "file", b"1")
    assert len(names(tmp_path)) == (1 if fate == "die" else 2)
    writer.communicate()


def test_a_draft_that_was_taken_from_its_owner_commits_nothing(tmp_path):
    """Whatever a lock is worth on some file system: a draft is removed before what it was about to name."""
    with draft_folder(tmp_path) as draft:
        (draft / "file").write_bytes(b"1")
        shutil.rmtree(draft)
        with pytest.raises(FileNotFoundError):
            publish(draft / "file", tmp_path / "file")
    assert names(tmp_path) == []


def test_an_old_draft_of_an_unknown_maker_is_left_alone(tmp_path):
    (tmp_path / ".qkit-of-an-older-version").mkdir()
    write_bytes(tmp_path / "file", b"1")
    assert names(tmp_path) == [".qkit-of-an-older-version", "file"]


def test_without_locks_drafts_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    (tmp_path / f"{files.DRAFT}x").mkdir()
    write_json({"a": 1}, tmp_path / "file")
    assert json.loads((tmp_path / "file").read_text()) == {"a": 1}
    assert names(tmp_path) == [f"{files.DRAFT}x", "file"]


@pytest.mark.parametrize("below", ["", "a", "a/b"])
def test_a_folder_where_a_file_is(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises((FileExistsError, NotADirectoryError), match="file is a file; give a folder, or a name that is"):
        make_folder(tmp_path / "file" / below)


def test_a_folder_that_may_not_be_made(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(PermissionError, match=r"x cannot be made \(Permission denied\); give a folder you may write"):
        make_folder(tmp_path / "x")


@pytest.mark.parametrize("below", ["", "a", "a/b"])
def test_a_folder_that_cannot_be_is_refused_before_the_work_in_the_same_words(tmp_path, below):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for in_the_way in ("file", "link"):
        with pytest.raises(OSError) as early:
            check_folder(tmp_path / in_the_way / below)
        with pytest.raises(OSError) as late:
            make_folder(tmp_path / in_the_way / below)
        assert early.value.strerror == late.value.strerror
    assert names(tmp_path) == ["file", "link"]


def test_a_folder_that_can_be_is_not_made_yet(tmp_path):
    check_folder(tmp_path / "a" / "b")
    assert names(tmp_path) == []
    check_folder(tmp_path)


def test_a_folder_without_rights_is_refused_before_the_work(tmp_path, monkeypatch):
    def forbidden(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "mkdtemp", forbidden)
    with pytest.raises(PermissionError, match=r"a cannot be made \(Permission denied\); give a folder you may write"):
        check_folder(tmp_path / "a")
