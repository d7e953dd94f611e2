"""The container: what the package gguf's reader says of the same file; and damage, which is named in one sentence."""

import random
import struct
from collections import Counter
from pathlib import Path

import pytest
import torch

from mutate import mutate
from qkit.checkpoints.gguf.container import open_container
from qkit.checkpoints.gguf.read import load_gguf

TINY = Path(__file__).parent / "tiny.gguf"
MUTANTS = 150  # thousands were tried once


def refused(path: Path, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        load_gguf(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def tiny(tmp_path):
    """A copy to damage, and its bytes."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(TINY.read_bytes())
    return path, bytearray(TINY.read_bytes())


def test_it_is_read_as_the_package_reads_it():
    gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install qkit[gguf]")
    ours, theirs = open_container(TINY), gguf.GGUFReader(TINY)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata == fields
    assert set(ours.tensors) == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        entry = ours.tensors[tensor.name]
        assert (entry.shape, entry.type) == (tuple(reversed(tensor.shape.tolist())), tensor.tensor_type)
        assert (entry.start, entry.length) == (tensor.data_offset, tensor.n_bytes)
        numbers = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("f4"))
        assert torch.equal(ours.floats(tensor.name), numbers)
        if (q := ours.stored(tensor.name)) is not None:
            assert torch.equal(q.dequantize(), numbers)


@pytest.mark.parametrize(
    "kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q5_1", "IQ4_NL", "IQ2_XXS", "TQ1_0", "BF16"]
)
def test_other_blocks_are_dequantized_by_the_package(kind, tmp_path):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install qkit[gguf]")
    import numpy as np

    number = gguf.GGMLQuantizationType[kind]
    block, octets = gguf.GGML_QUANT_SIZES[number]
    raw = np.random.default_rng(0).integers(0, 60, (3, 512 // block * octets), dtype=np.uint8)  # small: finite scales
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("w", raw, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    container = open_container(tmp_path / "one.gguf")
    assert container.tensors["w"].shape == (3, 512) and container.stored("w") is None
    assert torch.equal(container.floats("w"), torch.from_numpy(gguf.quants.dequantize(raw, number)))


def test_without_the_package_codes_are_read_and_what_needs_it_is_said(tiny, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ImportError, match=r"is of GGUF's type 6, .*pip install 'qkit\[gguf\]'"):
        load_gguf(tiny[0])


@pytest.mark.parametrize("length", [0, 3, 4, 8, 20, 24, 30, 100, 1000, 9000, 40_000, 134_000])
def test_a_file_that_ends_early_is_refused(tiny, length):
    pytest.importorskip("gguf", reason="gguf is not installed: pip install qkit[gguf]")
    path, raw = tiny
    path.write_bytes(raw[:length])
    refused(path, "cut or altered|does not begin with the letters GGUF")


@pytest.mark.parametrize("tail", range(4))
def test_a_list_that_says_it_is_endless_is_refused_at_once(tiny, tail):
    path, raw = tiny
    place = raw.index(b"tokenizer.ggml.scores") + len(b"tokenizer.ggml.scores") + 8
    raw[place : place + 8] = struct.pack("<Q", 2**40)
    path.write_bytes(raw + b"\0" * tail)
    refused(path, "1,099,511,627,776 values of a list follow, and is too short")


def test_other_versions_and_the_other_order_of_bytes_are_refused(tiny):
    path, raw = tiny
    for octets, why in ((b"\1\0\0\0", "format version 1"), (b"\0\0\0\3", "is big-endian"), (b"\4\0\0\0", "version 4")):
        path.write_bytes(raw[:4] + octets + raw[8:])
        refused(path, why)


def test_a_number_that_is_none_is_named(tiny):
    pytest.importorskip("gguf", reason="gguf is not installed: pip install qkit[gguf]")
    path, raw = tiny
    container = open_container(path)
    for name, octets in (
        ("output_norm.weight", struct.pack("<f", float("nan"))),
        ("token_embd.weight", struct.pack("<e", float("inf"))),
        ("blk.0.attn_q.weight", struct.pack("<e", float("inf"))),
        ("blk.0.attn_k.weight", b"\0\0" + struct.pack("<e", float("nan"))),
        ("output.weight", struct.pack("<e", float("-inf"))),
    ):
        damaged, start = bytearray(raw), container.tensors[name].start
        damaged[start : start + len(octets)] = octets
        path.write_bytes(damaged)
        refused(path, name)


def test_a_flipped_bit_anywhere_loads_or_is_named(tiny):
    """The header is tried densely: most of the file are numbers, where a flipped bit is another number."""
    pytest.importorskip("gguf", reason="gguf is not installed: pip install qkit[gguf]")
    path, raw = tiny
    choose, header = random.Random(5), 11_000
    found: Counter[str] = Counter()
    for i in range(MUTANTS):
        whole = mutate(bytes(raw), choose) if i % 3 == 0 else mutate(bytes(raw[:header]), choose) + raw[header:]
        path.write_bytes(whole)
        try:
            load_gguf(path)
            found["loaded"] += 1
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, str(error)
            found["refused"] += 1
    assert found["loaded"] and found["refused"], found
