"""Tensors under a sum: no damage passes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from qkit.checkpoints.tensors import apart, bytes_of, read_tensors, write_tensors

RECORD = {"b": [1, 2.5, None], "a": "é"}


@pytest.fixture
def tensors():
    return {
        "half": torch.tensor([1, 2], dtype=torch.bfloat16),
        "codes": torch.arange(5, dtype=torch.uint8).reshape(1, 5),
        "scalar": torch.tensor(3.0),
        "nothing": torch.empty(0, 3),
    }


def read(path):
    return read_tensors(path, "finished block", "delete it")


def same(found, expected):
    return found.keys() == expected.keys() and all(
        t.dtype == expected[n].dtype and t.shape == expected[n].shape and bytes_of(t) == bytes_of(expected[n])
        for n, t in found.items()
    )


def test_what_is_written_is_read(tensors, tmp_path):
    write_tensors(tmp_path / "x.safetensors", tensors, RECORD)
    found, record = read(tmp_path / "x.safetensors")
    assert same(found, tensors) and record == RECORD
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_every_flipped_bit_is_refused_or_changes_nothing(tensors, tmp_path):
    """Of a header some bits say nothing: blanks at its end."""
    path = tmp_path / "x.safetensors"
    write_tensors(path, tensors, RECORD)
    raw, harmless = path.read_bytes(), 0
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found, record = read(path)
        except ValueError as error:
            assert "delete it" in str(error) and "\n" not in str(error)
        else:
            harmless += 1
            assert same(found, tensors) and record == RECORD
    assert harmless < 8 * 16


def test_every_truncation_is_refused(tensors, tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, tensors, RECORD)
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(ValueError, match=r"x\.safetensors is not whole \(.*\); delete it$"):
            read(path)


def test_a_file_of_something_else_is_refused(tensors, tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors", {"qkit.block": json.dumps(RECORD)})
    with pytest.raises(ValueError, match=r"x\.safetensors holds no finished block; delete it"):
        read(tmp_path / "x.safetensors")


def test_records_of_before_there_were_sums(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors", {"qkit.old": json.dumps(RECORD)})
    found, record = read_tensors(tmp_path / "x.safetensors", "scales", "go", older="qkit.old")
    assert list(found) == ["a"] and record == RECORD


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    base = torch.arange(8.0)
    views = {"all": base, "twice": base, "left": base[:5], "right": base[3:], "across": base.reshape(2, 4).T}
    save_file(apart(views), tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], view) for name, view in views.items())
    assert apart(views)["all"] is base or apart(views)["all"].data_ptr() == base.data_ptr()  # nothing copied in vain
