"""The folder that qkit writes, in the hands of onnxruntime-genai: its own loop, its own tokenizer (make test-peers)."""

import copy

import numpy as np
import pytest
import torch

import qkit

genai = pytest.importorskip("onnxruntime_genai", reason="it is not installed: pip install qkit[peers]")

pytestmark = pytest.mark.peers
SCHEMES = [None, qkit.RTN(4, 128), qkit.RTN(4, 32, symmetric=True), qkit.RTN(8), qkit.RTN(2, 64)]
PROMPT = "It was the best of times, and the"


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_it_writes_our_text(embedded, tmp_path, scheme):
    model, tokenizer = copy.deepcopy(embedded[0]), embedded[1]
    if scheme is not None:
        qkit.quantize(model, scheme)
    folder = qkit.save(model, tmp_path, tokenizer, format="onnx").path
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
        written = model.generate(ids, max_new_tokens=30, do_sample=False)[0]

    config = genai.Config(str(folder))
    config.clear_providers()
    other = genai.Model(config)
    options = genai.GeneratorParams(other)
    options.set_search_options(max_length=ids.shape[1] + 30, do_sample=False)
    loop = genai.Generator(other, options)
    loop.append_tokens(ids[0].numpy().astype(np.int32))
    theirs = torch.from_numpy(np.array(loop.get_logits())[0, -1])
    assert (theirs - logits).norm() < 5e-6 * logits.norm()  # float32 sums in another order, through eight blocks
    while not loop.is_done():
        loop.generate_next_token()
    assert loop.get_sequence(0).tolist() == written.tolist()
    assert genai.Tokenizer(other).decode(loop.get_sequence(0)) == tokenizer.decode(written, skip_special_tokens=True)
