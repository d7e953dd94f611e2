"""One commit point: whoever dies or saves beside it, a folder holds one save, whole, from the first to the last moment."""

import itertools
import json
import os
import random
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch

from grids import thinned
from qkit import NF4, RTN, load, quantize, save
from qkit.checkpoints.hub import FILE, LOCK, QUANTIZATION

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "head_dim": 8}


@pytest.fixture(scope="module")
def saves(make_model, word_tokenizer):
    """Three models that differ in weights, config and tokenizer; None: no tokenizer."""
    made = {}
    for name, scheme, vocab, bos in (("A", RTN(4), 97, "w03"), ("B", NF4(), 98, None), ("C", RTN(8), 99, "w05")):
        model = make_model("llama", vocab_size=vocab, **SIZES)
        quantize(model, scheme)
        made[name] = (model, word_tokenizer(bos_token=bos) if bos else None)
    return made


def which(folder: Path, saves) -> str:
    """The name of the save that a folder holds; it is that in every tensor, in both configs and in the tokenizer."""
    model, tokenizer = load(folder)
    name = {97: "A", 98: "B", 99: "C"}[model.config.vocab_size]
    expected, words = saves[name]
    state = expected.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert (tokenizer is None) == (words is None)
    assert tokenizer is None or tokenizer.bos_token == words.bos_token
    return name


def clean(folder: Path) -> bool:
    """Nothing is left of other saves, or of drafts; what transformers reads is of this one."""
    manifest = json.loads((folder / "qkit.json").read_text())
    names = {"qkit.json", "config.json", "generation_config.json", manifest["weights"]["file"]}
    if words := manifest["tokenizer"]:
        copied = set(words["files"]) - {"config.json"}
        names |= {words["folder"], *copied}
        assert all((folder / name).read_bytes() == (folder / words["folder"] / name).read_bytes() for name in copied)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == manifest["config"]["vocab_size"]
    return names == {path.name for path in folder.iterdir()}


STEPS = ("mkdir", "touch", "replace", "unlink", "write_text", "rmdir")


def watch(before):
    """Call `before()` ahead of whatever is done to files, in this thread and in every other."""
    real = {name: getattr(Path, name) for name in STEPS} | {"rmtree": shutil.rmtree}

    def watched(name):
        def step(*args, **kwargs):
            before()
            return real[name](*args, **kwargs)

        return step

    for name in STEPS:
        setattr(Path, name, watched(name))
    shutil.rmtree = watched("rmtree")

    def undo():
        for name in STEPS:
            setattr(Path, name, real[name])
        shutil.rmtree = real["rmtree"]

    return undo


def steps_of(save_it) -> int:
    count = itertools.count()
    undo = watch(lambda: next(count))
    try:
        save_it()
    finally:
        undo()
    return next(count)


def die_before(step: int) -> None:
    count = itertools.count()
    watch(lambda: next(count) == step and os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is to die in the middle")
@pytest.mark.parametrize("first", thinned(["A", "B", None], ["A"]))
def test_killed_before_any_step_it_leaves_the_older_or_the_newer_save(saves, tmp_path, first):
    older, newer = tmp_path / "older", tmp_path / "newer"
    older.mkdir()
    if first:
        save(saves[first][0], older, tokenizer=saves[first][1])
    total = steps_of(lambda: save(saves["C"][0], shutil.copytree(older, newer), tokenizer=saves["C"][1]))
    found = []
    for step in range(total):
        folder = shutil.copytree(older, tmp_path / str(step))
        child = os.fork()
        if child == 0:
            die_before(step)
            save(saves["C"][0], folder, tokenizer=saves["C"][1])
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        found.append(which(folder, saves) if first or (folder / "qkit.json").exists() else None)
        save(saves["B"][0], folder)
        assert which(folder, saves) == "B" and clean(folder)
    assert found == sorted(found, key=lambda name: name == "C")
    assert {first, "C"} == set(found)


class Turns:
    """Threads that go on one step at a time, in an order that is given; one that is done or has no turn left runs freely."""

    def __init__(self, order: str) -> None:
        self.order = list(order)
        self.done: set[str] = set()
        self.condition = threading.Condition()

    def wait(self) -> None:
        me = threading.current_thread().name
        if me not in ("A", "C"):
            return
        with self.condition:
            while self.order and self.order[0] != me and self.order[0] not in self.done:
                self.condition.wait(10)
            if self.order:
                self.order.pop(0)
            self.condition.notify_all()

    def finish(self, me: str) -> None:
        with self.condition:
            self.done.add(me)
            while self.order and self.order[0] in self.done:
                self.order.pop(0)
            self.condition.notify_all()


def run_in_turns(order, saves, folder):
    turns, errors = Turns(order), []

    def run(name):
        try:
            save(saves[name][0], folder, tokenizer=saves[name][1])
        except BaseException as error:
            errors.append(error)
        finally:
            turns.finish(name)

    threads = [threading.Thread(target=run, args=(name,), name=name) for name in ("A", "C")]
    undo = watch(turns.wait)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        undo()
    assert not errors, errors


@pytest.mark.parametrize("seed", range(12))
def test_two_savers_in_any_order_of_steps(saves, tmp_path, seed):
    """Also where one of them, or what lay there before, has the same weights and the same tokenizer."""
    choose = random.Random(seed)
    before = choose.choice(["A", "B", "C", None])
    if before:
        save(saves[before][0], tmp_path, tokenizer=saves[before][1])
    runs = [choose.choice("AC") * choose.randrange(1, 12) for _ in range(20)]
    run_in_turns("".join(runs), saves, tmp_path)
    assert which(tmp_path, saves) in ("A", "C")
    save(saves["B"][0], tmp_path)
    assert which(tmp_path, saves) == "B" and clean(tmp_path)


@pytest.mark.parametrize("kind", ["weights", "tokenizer"])
def test_what_one_saver_is_about_to_remove_another_does_not_name(saves, tmp_path, monkeypatch, kind):
    """C has found the files of A stale and stops before it removes them; meanwhile A is saved once more, with the same."""
    save(saves["A"][0], tmp_path, tokenizer=saves["A"][1])
    unlink, rmtree, reached, go = Path.unlink, shutil.rmtree, threading.Event(), threading.Event()

    def stopping(remove):
        def stopped(path, *args, **kwargs):
            if threading.current_thread().name == "C" and Path(path).name.startswith(kind):
                reached.set()
                go.wait(60)
            return remove(path, *args, **kwargs)

        return stopped

    monkeypatch.setattr(Path, "unlink", stopping(unlink))
    monkeypatch.setattr(shutil, "rmtree", stopping(rmtree))
    thread = threading.Thread(target=save, args=(*saves["C"][:1], tmp_path), name="C")
    thread.start()
    assert reached.wait(60)
    save(saves["A"][0], tmp_path, tokenizer=saves["A"][1])
    go.set()
    thread.join()
    assert which(tmp_path, saves) == "A"
    save(saves["B"][0], tmp_path)
    assert which(tmp_path, saves) == "B" and clean(tmp_path)


def test_a_folder_is_read_while_others_save_into_it(saves, tmp_path):
    """Readers find one save or the other, however often it is replaced."""
    save(saves["A"][0], tmp_path, tokenizer=saves["A"][1])
    stop, errors = threading.Event(), []

    def saving():
        try:
            for name in "CABCABCA":
                save(saves[name][0], tmp_path, tokenizer=saves[name][1])
        except BaseException as error:
            errors.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=saving)
    thread.start()
    while not stop.is_set():
        which(tmp_path, saves)
    thread.join()
    assert not errors and which(tmp_path, saves) == "A" and clean(tmp_path)


def test_what_the_manifest_does_not_name_is_not_read(saves, tmp_path):
    model, tokenizer = saves["A"]
    save(model, tmp_path, tokenizer=tokenizer)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        (tmp_path / name).write_text("{")
    assert which(tmp_path, saves) == "A"


def test_files_that_only_look_like_ours_survive(saves, tmp_path):
    mine = [tmp_path / "weights-final.safetensors", tmp_path / "weights-of-old.bin", tmp_path / "tokenizer-notes"]
    for path in mine:
        path.write_text("mine")
    save(saves["A"][0], tmp_path)
    save(saves["B"][0], tmp_path)
    assert all(path.read_text() == "mine" for path in mine)


def test_config_json_is_what_transformers_writes_and_what_it_has_to_know(saves, tmp_path):
    model = saves["A"][0]
    save(model, tmp_path / "saved")
    model.config.to_json_file(tmp_path / "expected.json")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert written.pop(FILE) == LOCK
    assert (tmp_path / "saved" / written.pop(QUANTIZATION)["weights"]["file"]).is_file()
    expected = json.loads((tmp_path / "expected.json").read_text())
    assert written == {**expected, "dtype": "float32"}
