"""What llama.cpp generated from our files (make_recorded.py), held against what we would; live: tests/peers/test_llamacpp.py."""

import json
from pathlib import Path

import pytest

from llamacpp import CLOSE, behind, ours
from qkit import quantize
from qkit.methods.registry import parse_scheme
from qkit.model.surgery import clone

RECORDED = json.loads((Path(__file__).parent / "llamacpp.json").read_text())


@pytest.mark.parametrize("word", RECORDED["texts"])
def test_its_text_is_ours(word, embedded):
    model, tokenizer = clone(embedded[0]), embedded[1]
    prompt, theirs = RECORDED["prompt"], RECORDED["texts"][word]
    if word == "F16":
        assert ours(model, tokenizer, prompt) == theirs
        return
    quantize(model, parse_scheme(word))
    gaps = behind(model, tokenizer, prompt, theirs)
    assert len(gaps) >= 30 and gaps.max() < CLOSE  # it rounds activations to 8 bits, so close calls fall otherwise
