"""The embedded model's graph in onnxruntime itself (make test-peers); tests/export has its small models, in `make test`."""

import numpy as np
import pytest
import torch

import qkit
from qkit.bench.judged import READS_OURS
from qkit.bench.peers import onnx_threads
from qkit.model.surgery import clone
from verdicts import PROMPT, compared, greedy

runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'qkit[dev]'")

pytestmark = pytest.mark.peers
SCHEMES = [qkit.RTN(4, 128), qkit.RTN(4, 32, symmetric=True), qkit.RTN(8), qkit.RTN(2, 64)]
ROUNDED = [qkit.LLMInt8(), qkit.W8A8(), qkit.W8A8("per-tensor"), qkit.SmoothQuant()]  # their inputs


def in_onnxruntime(path, config):
    """Logits [1, n, vocabulary] of ids [1, n] by a graph, its memory empty."""
    onnx_threads()  # a process has one pool
    options = runtime.SessionOptions()
    options.use_per_session_threads = False
    session = runtime.InferenceSession(str(path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    empty = np.zeros((1, config.num_key_value_heads, 0, config.head_dim), np.float32)
    past = {one.name: empty for one in session.get_inputs() if one.name.startswith("past_key_values")}

    def compute(ids):
        return torch.from_numpy(
            session.run(None, {"input_ids": ids.numpy(), "attention_mask": np.ones_like(ids), **past})[0]
        )

    return compute


@pytest.mark.parametrize("scheme", [None, *SCHEMES, *ROUNDED], ids=lambda scheme: getattr(scheme, "name", "floats"))
def test_its_logits_and_its_text_are_ours(scheme, embedded, verdict, tmp_path):
    original, tokenizer = embedded
    model, ids = clone(original), tokenizer(PROMPT, return_tensors="pt").input_ids
    if scheme is not None:
        text = qkit.texts("python-docs") if scheme.calibrated else None
        qkit.quantize(model, scheme, calibration=text, tokenizer=tokenizer, max_chunks=4)
    folder = qkit.save(model, tmp_path, tokenizer, format="onnx").path
    measured = compared(model, ids, greedy(in_onnxruntime(folder, model.config), ids), original)
    if scheme not in ROUNDED:
        assert measured["error"] < 1e-5 and measured["same_text"], measured
    assert measured["error"] < 0.06, measured
    name = "floats" if scheme is None else scheme.name
    verdict("onnx", name, "onnxruntime", READS_OURS, "bookworm-14m", **measured)
