"""Folders that older versions of qkit wrote (`saved/make.py`) are read, bit for bit."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from damage import refused
from qkit import load, save
from qkit.checkpoints.tensors import bytes_of

SAVED = Path(__file__).parent / "saved"
EXPECTED = json.loads((SAVED / "expected.json").read_text())
TEXT = "w03 w07 w11 <s> w19 zz"


def check(folder: Path, expected: dict) -> None:
    expected = dict(expected)
    model, tokenizer = load(folder)
    ids = expected.pop("ids", None)
    assert (tokenizer and tokenizer(TEXT)["input_ids"]) == ids
    tensors = {**model.state_dict(), **dict(model.named_buffers())}
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        found = [str(tensor.dtype), list(tensor.shape), hashlib.sha256(bytes_of(tensor)).hexdigest()[:16]]
        assert found == expected[name], name


@pytest.mark.parametrize("name", EXPECTED)
def test_an_older_folder_is_read(name):
    check(SAVED / name, EXPECTED[name])


@pytest.mark.parametrize("name", EXPECTED)
def test_saved_again_it_is_of_the_present_version_with_the_same_weights_file(name, tmp_path):
    folder = shutil.copytree(SAVED / name, tmp_path / name)
    before = {path.name: path.read_bytes() for path in folder.glob("weights-*")}
    model, tokenizer = load(folder)
    save(model, folder, tokenizer=tokenizer)
    manifest = json.loads((folder / "qkit.json").read_text())
    assert manifest["version"] == 3
    assert {record["kind"] for record in manifest["layers"].values()} == {"codebook" if "nf4" in name else "affine"}
    assert {path.name: path.read_bytes() for path in folder.glob("weights-*")} == before
    check(folder, EXPECTED[name])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", '{"tokenizer_class": 5}', '{"model": {"type": "?"}}', "[" * 100_000])
def test_a_damaged_tokenizer_of_an_older_folder_is_one_sentence_or_none(name, text, tmp_path):
    """Its files have no sums; what transformers makes of them is told in a sentence."""
    folder = shutil.copytree(SAVED / "v2-rtn", tmp_path / "saved")
    (folder / name).write_text(text)
    if name == "tokenizer_config.json" and text in ("{", "", "[]", "[" * 100_000):
        refused(folder, "the tokenizer of .*saved' cannot be loaded .*; copy or save it again")
    else:
        try:
            load(folder)
        except ValueError as error:
            assert "\n" not in str(error)
