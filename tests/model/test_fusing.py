"""Layers that read the same input are found without computing them."""

import pytest
import torch

import qkit
from qkit.model.fusing import fuse_projections, shared_inputs
from qkit.nn.qlinear import QLinear


@pytest.fixture
def model(make_model):
    network = make_model("llama")
    qkit.quantize(network, qkit.RTN(bits=4, group_size=None), progress=False)
    return network


def test_attention_and_mlp_share(model, monkeypatch):
    monkeypatch.setattr(QLinear, "forward", lambda *_: pytest.fail("a layer computes"))
    blocks = len(model.model.layers)
    expected = []
    for n in range(blocks):
        at, mlp = f"model.layers.{n}.self_attn.", f"model.layers.{n}.mlp."
        expected += [tuple(at + p for p in ("q_proj", "k_proj", "v_proj")), (mlp + "gate_proj", mlp + "up_proj")]
    assert shared_inputs(model) == expected


def test_what_runs_twice_is_left_alone(model):
    block = model.model.layers[0].self_attn
    block.k_proj = block.q_proj  # one module, called twice with the same tensor
    assert not any("layers.0.self_attn" in name for names in shared_inputs(model) for name in names)


def test_on_a_cpu_nothing_is_fused(model):
    ids = torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    assert fuse_projections(model) == [] and torch.equal(model(ids).logits, before)
