"""The map of a file's half bytes: each is the code that it says, at the byte that it says."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import qkit
from qkit.nn.layers import quantized_layers
from qkit.study.anatomy.files import MAPPED, file_piece, gptq_version_1, halves, safetensors_header

LAYER = "model.layers.0.mlp.down_proj"
UNITS = {"gptq": 4, "awq": 4, "compressed-tensors": 4, "gguf": 18, "onnx": 16}


def save(make_model, tmp_path, form, symmetric=True, intermediate=96, bits=4):
    if form == "gguf":
        pytest.importorskip("gguf", reason="the package gguf writes the file")
    if form == "onnx":
        pytest.importorskip("onnx", reason="the package onnx writes the graph")
    model = make_model("llama", hidden_size=64, intermediate_size=intermediate, head_dim=16)
    qkit.quantize(model, qkit.RTN(bits, 32, symmetric=symmetric))
    return model, qkit.save(model, tmp_path / form, format=form)


def check(model, saved, row, column):
    piece = file_piece(saved, LAYER, row, column)
    codes = model.get_submodule(LAYER).qtensor.codes().numpy()
    inside = piece.row >= 0
    assert (piece.halves[inside] == codes[piece.row[inside], piece.column[inside]]).all()
    assert piece.halves[piece.of(row, column)] == codes[row, column]
    file = saved.path if saved.path.is_file() else saved.path / piece.file
    assert file.read_bytes()[piece.start : piece.start + len(piece.octets)] == piece.octets.tobytes()
    return piece


@pytest.mark.parametrize("form", MAPPED)
@pytest.mark.parametrize(("row", "column"), [(0, 0), (9, 77), (63, 95)])
def test_every_half_byte_is_the_code_that_it_says(form, row, column, make_model, tmp_path):
    piece = check(*save(make_model, tmp_path, form), row, column)
    assert len(piece.octets) == UNITS[form] and piece.form == form
    assert int((piece.row < 0).sum()) == (4 if form == "gguf" else 0)


@pytest.mark.parametrize("form", ["gptq", "awq", "gguf", "onnx"])
def test_with_zero_points_too(form, make_model, tmp_path):
    piece = check(*save(make_model, tmp_path, form, symmetric=False), 9, 40)
    assert len(piece.octets) == (20 if form == "gguf" else UNITS[form])


@pytest.mark.parametrize("form", ["compressed-tensors", "gptq"])
def test_another_shape_has_another_map(form, make_model, tmp_path):
    check(*save(make_model, tmp_path / "a", form), 9, 90)
    check(*save(make_model, tmp_path / "b", form, intermediate=160), 9, 150)


def test_the_orders_are_those_that_the_formats_are_known_for(make_model, tmp_path):
    orders = {}
    for form in ("gptq", "awq"):
        piece = check(*save(make_model, tmp_path, form), 9, 77)
        orders[form] = (piece.row.tolist(), piece.column.tolist())
    assert orders["gptq"] == ([9] * 8, list(range(72, 80)))
    assert orders["awq"] == ([8, 10, 12, 14, 9, 11, 13, 15], [77] * 8)


def test_halves_are_low_first():
    assert halves(np.array([0xA8, 0x1F], np.uint8)).tolist() == [8, 10, 15, 1]


def test_the_header_of_safetensors_is_its_length_and_json(make_model, tmp_path):
    _, saved = save(make_model, tmp_path, "gptq")
    raw = (saved.path / "model.safetensors").read_bytes()
    tensors, start = safetensors_header(saved.path / "model.safetensors")
    assert start == 8 + struct.unpack("<Q", raw[:8])[0]
    assert json.loads(raw[8:start]) == tensors
    assert max(t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__") == len(raw) - start


def test_what_has_no_map_is_refused_by_name(make_model, tmp_path):
    _, saved = save(make_model, tmp_path, "gptq")
    with pytest.raises(ValueError, match=r"row=64, column=0 is no weight of .*down_proj, which is 64 x 96"):
        file_piece(saved, LAYER, 64, 0)
    with pytest.raises(ValueError, match=r"has no model\.norm\.qweight; give a quantized layer"):
        file_piece(saved, "model.norm", 0, 0)
    with pytest.raises(
        ValueError, match="no half byte of this word of qweight is the code of row 0, column 9; read its"
    ):
        file_piece(saved, LAYER, 0, 0).of(0, 9)
    nf4 = make_model("llama")
    qkit.quantize(nf4, qkit.NF4())
    report = qkit.save(nf4, tmp_path / "nf4", format="bitsandbytes")
    with pytest.raises(
        ValueError, match="of format 'bitsandbytes' there is no map of half bytes; there is one of gptq, awq"
    ):
        file_piece(report, LAYER, 0, 0)


def test_other_widths_are_refused(make_model, tmp_path):
    for form in ("gptq", "compressed-tensors", "gguf", "onnx"):
        _, saved = save(make_model, tmp_path / form, form, bits=8)
        with pytest.raises(ValueError, match="4 bits"):
            file_piece(saved, LAYER, 0, 0)


def test_rows_that_gguf_puts_in_another_order_are_refused(make_model, tmp_path):
    _, saved = save(make_model, tmp_path, "gguf")
    with pytest.raises(ValueError, match=r"GGUF has the rows of .*q_proj in another order"):
        file_piece(saved, "model.layers.0.self_attn.q_proj", 0, 0)


def test_version_1_holds_one_less_and_is_the_same_model(make_model, tmp_path, ids):
    model, saved = save(make_model, tmp_path, "gptq", symmetric=False)
    for layer in quantized_layers(model).values():
        layer.zero_points[:2] = 0  # the borrow of a 0 goes on into the next field
    saved = qkit.save(model, tmp_path / "zeros", format="gptq")
    again, _ = qkit.load(gptq_version_1(saved, tmp_path / "v1"))
    assert torch.equal(again(ids).logits, model(ids).logits)
    old, new = (load_file(folder / "model.safetensors") for folder in (saved.path, tmp_path / "v1"))
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        less = 0x11111111 if name.endswith("qzeros") else 0
        if less:
            assert (((tensor.long() - new[name].long()) - less) % 2**32 == 0).all()
        else:
            assert torch.equal(tensor, new[name])


def test_version_1_is_made_of_version_2_only(make_model, tmp_path):
    _, saved = save(make_model, tmp_path, "gptq")
    with pytest.raises(ValueError, match="is no folder of GPTQ's version 2 in 4 bits, which a model with zero points"):
        gptq_version_1(saved, tmp_path / "v1")
