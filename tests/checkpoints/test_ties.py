"""Output heads that share the embedding's numbers, or do not, whatever the config says of them: they come back as they were."""

import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import qkit
from grids import thinned
from qkit.checkpoints.formats import FORMATS
from qkit.model.facts import ties_its_head

W4 = qkit.RTN(4, 32, symmetric=True)
HEADS = ("tied", "untied", "tied by hand", "untied by hand", "quantized, of a tied model")
FORMS = (None, "gptq", "awq", "compressed-tensors", "gguf")
NO_HEAD = ("gptq", "awq")  # where it stays in floats


def with_head(make_model, head: str) -> nn.Module:
    """A Llama, the head of which multiplies with the embedding's numbers, or with numbers of its own."""
    tied = head in ("tied", "untied by hand", "quantized, of a tied model")
    model = make_model("llama", tie=tied, hidden_size=64, intermediate_size=96, head_dim=16, vocab_size=128)
    if head == "tied by hand":
        model.lm_head.weight = model.model.embed_tokens.weight
    elif head == "untied by hand":
        model.lm_head.weight = nn.Parameter(2 * model.lm_head.weight.detach())
    return model


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("form", thinned(FORMS, (None, "gptq", "compressed-tensors", "gguf")))
def test_a_head_comes_back_as_it_was(form, head, make_model, ids, logits, tmp_path):
    model = with_head(make_model, head)
    qkit.quantize(model, W4, include="*" if head.startswith("quantized") else None)
    assert ties_its_head(model) == head.startswith("tied")
    if form in NO_HEAD and head.startswith("quantized"):
        pytest.skip("it is refused")
    expected = logits(model, ids)
    report = qkit.save(model, tmp_path / "out", format=form)
    loaded, _ = qkit.load(report)
    error = (logits(loaded, ids) - expected).norm() / expected.norm()
    assert error < 2e-3 if form == "gguf" else torch.equal(logits(loaded, ids), expected)  # F16 of what is in floats
    assert ties_its_head(loaded) == ties_its_head(model)
    if form in FORMATS and not FORMATS[form].suffix:
        said = json.loads((tmp_path / "out" / "config.json").read_text())
        assert said["tie_word_embeddings"] == head.startswith("tied")


def check_transformers_finds_all(model, folder, ids, logits):
    """Saves the model, which transformers reads with nothing missing and the same logits."""
    qkit.save(model, folder)
    loaded, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert torch.equal(logits(loaded, ids), logits(model, ids))


@pytest.mark.parametrize("scheme", [None, W4, qkit.NF4()])
def test_transformers_makes_up_nothing_that_was_shared_by_hand(make_model, scheme, ids, logits, tmp_path):
    """Wherever it is: a module of two names, a parameter in two layers."""
    model = with_head(make_model, "untied")
    first, second = model.model.layers
    second.mlp = first.mlp
    second.self_attn.q_proj.weight = first.self_attn.q_proj.weight
    if scheme:
        qkit.quantize(model, scheme)
    check_transformers_finds_all(model, tmp_path, ids, logits)
    again, _ = qkit.load(tmp_path)
    assert torch.equal(logits(again, ids), logits(model, ids))


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("head", HEADS[:4])
def test_transformers_makes_up_no_head(head, quantized, make_model, ids, logits, tmp_path):
    """It ties what the config says, and fills with random numbers what it then does not find."""
    model = with_head(make_model, head)
    if quantized:
        qkit.quantize(model, W4)
    check_transformers_finds_all(model, tmp_path, ids, logits)
    assert ties_its_head(qkit.load(tmp_path)[0]) == ties_its_head(model)
