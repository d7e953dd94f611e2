"""What theory promises, on the embedded model: which method beats which, with room to spare."""

from pydoc_data.topics import topics

import pytest
import torch

import qkit
from qkit import AWQ, FP4, GPTQ, NF4, RTN, W8A8, LLMInt8, SmoothQuant, plant_outliers, quantize
from qkit.methods.gptq import gptq
from qkit.model.blocks import capture
from qkit.model.calibration import collect
from qkit.model.surgery import clone
from qkit.study.evaluate import evaluate
from qkit.text.corpora import held_out
from qkit.text.tokens import calibration_chunks, token_chunks

OUTLIERS = [5, 60, 131]
LAYERS = ["model.layers.0.*", "model.layers.1.mlp.*"]


@pytest.fixture(scope="module")
def calibration(tokenizer):
    """6 chunks from 6 places of the topics that are python-docs' first part (reading all of it takes longer)."""
    text = "\n\n".join(text.strip() for topic, text in sorted(topics.items()) if not held_out(topic))
    places = range(0, len(text) - 5000, len(text) // 6)
    return torch.cat([calibration_chunks(text[i : i + 5000], tokenizer, max_chunks=1) for i in list(places)[:6]])


@pytest.fixture(scope="module")
def measured(embedded, calibration):
    """KL from the original on 2 chunks of python-docs-heldout, of the plain and of the planted model."""
    model, tokenizer = embedded
    planted = clone(model)
    plant_outliers(planted, OUTLIERS, 64.0)
    schemes = {
        "RTN 3": (model, RTN(3, 128)),
        "GPTQ 3": (model, GPTQ(3, 128)),
        "AWQ 3": (model, AWQ(3, 128)),
        "NF4": (model, NF4()),
        "FP4": (model, FP4()),
        "planted W8A8 dynamic": (planted, W8A8()),
        "planted W8A8 static": (planted, W8A8("per-tensor")),
        "planted SmoothQuant dynamic": (planted, SmoothQuant(None)),
        "planted SmoothQuant static": (planted, SmoothQuant(None, "per-tensor")),
        "planted LLM.int8": (planted, LLMInt8()),
    }
    models = {"original": model, "planted": planted}
    for name, (source, scheme) in schemes.items():
        models[name] = clone(source)
        some = LAYERS if name.endswith(" 3") else None  # solving all of them would take a minute
        quantize(models[name], scheme, calibration=calibration, include=some)
    ids = token_chunks(qkit.texts("python-docs-heldout")[:20_000], tokenizer, max_chunks=2)
    assert len(ids) == 2
    return {name: one.kl for name, one in evaluate(models, tokenizer, ids).items()}


@pytest.mark.exhaustive
def test_gptq_and_awq_beat_rounding_at_3_bits(measured):
    assert measured["GPTQ 3"] < 0.75 * measured["RTN 3"]
    assert measured["AWQ 3"] < 0.75 * measured["RTN 3"]


@pytest.mark.exhaustive
def test_nf4_beats_fp4(measured):
    assert measured["NF4"] < 0.75 * measured["FP4"]


@pytest.mark.exhaustive
def test_planting_outliers_changes_nothing(measured):
    assert abs(measured["planted"]) < 1e-6


@pytest.mark.exhaustive
def test_outliers_ruin_w8a8_and_smoothquant_repairs_it(measured):
    assert measured["planted SmoothQuant dynamic"] < 0.2 * measured["planted W8A8 dynamic"]
    assert measured["planted SmoothQuant static"] < 0.2 * measured["planted W8A8 static"]


@pytest.mark.exhaustive
def test_llm_int8_hardly_notices_outliers(measured):
    assert measured["planted LLM.int8"] < 0.05
    assert measured["planted LLM.int8"] < 0.1 * measured["planted W8A8 dynamic"]


def test_act_order_lowers_the_output_error(embedded, calibration):
    """Of the layers whose inputs are most uneven, without groups."""
    model = embedded[0]
    blocks, hidden = capture(model, [calibration[:4]])
    inputs = collect(blocks[0], blocks[0].module, hidden, ["mlp.down_proj"], frozenset({"square"}))["mlp.down_proj"]
    weight = blocks[0].module.mlp.down_proj.weight.detach()
    errors = []
    for act_order in (True, False):
        error = (gptq(weight, inputs, GPTQ.paper(3, None, True, act_order)).q.dequantize() - weight).double()
        errors.append(float(((error @ inputs.square.double()) * error).sum()))
    assert errors[0] < 0.8 * errors[1]
