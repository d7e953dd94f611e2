"""Our compressed-tensors folders in vLLM itself, its build for processors (make test-vllm, an environment of its own).

With a fixed scale it computes what we do, to float32's rounding. A token's own scale it finds by its own order of operations, and
a last bit that falls otherwise tips a rounding. Its product for 4 bits on processors takes bfloat16 alone. For weights of 3 and 8
bits with float inputs it has none there, though its classes know the widths: for those one has to ask it on a card.
"""

import copy
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import qkit
from qkit.bench.judged import READS_OURS
from verdicts import PROMPT, TOKENS, Heard, compared

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM has an environment of its own: make test-vllm"),
]
SCRIPT = Path(__file__).parents[1] / "support" / "vllm_writes.py"
ROWS = [  # a scheme, in what dtype vLLM computes, how far logits may be off, ||l' - l|| / ||l||
    (None, "float32", 1e-5),
    (qkit.W8A8("per-tensor"), "float32", 1e-5),
    (qkit.W8A8(), "float32", 5e-2),
    (qkit.RTN(4, 32, symmetric=True), "bfloat16", 2e-2),  # 8 bits of mantissa: 4e-3 a number
    (qkit.RTN(4, 128, symmetric=True), "bfloat16", 2e-2),
    (qkit.RTN(4, symmetric=True), "bfloat16", 2e-2),
]


def asked(folder: Path, ids: torch.Tensor, dtype: str, out: Path) -> subprocess.CompletedProcess:
    """vLLM's process, ended."""
    order = [sys.executable, str(SCRIPT), str(folder), dtype, str(TOKENS), str(out)]
    return subprocess.run(order, input=json.dumps(ids[0].tolist()), capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("scheme", "dtype", "bound"), ROWS, ids=str)
def test_it_reads_our_folder_and_computes_what_we_do(embedded, verdict, tmp_path, scheme, dtype, bound):
    floats, tokenizer = embedded
    model, text = copy.deepcopy(floats), qkit.texts("python-docs")
    if scheme is None:
        model.save_pretrained(tmp_path / "folder")
        tokenizer.save_pretrained(tmp_path / "folder")
    else:
        data = {"calibration": text, "tokenizer": tokenizer, "max_chunks": 2} if scheme.calibrated else {}
        qkit.quantize(model, scheme, **data)
        qkit.save(model, tmp_path / "folder", tokenizer, format="compressed-tensors")
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    done = asked(tmp_path / "folder", ids, dtype, tmp_path / "heard")
    assert done.returncode == 0, done.stderr[-2000:]
    heard = torch.load(tmp_path / "heard")
    measured = compared(model, ids, Heard(heard["tokens"].tolist(), heard["logits"]), floats)
    assert measured["error"] < bound, measured
    if scheme is not None:
        assert measured["kl"] < 0.3 * measured["kl_original"], measured
        verdict("compressed-tensors", scheme.name, "vLLM", READS_OURS, "bookworm-14m", **measured)


def test_what_it_has_no_product_for_on_processors(embedded, tmp_path):
    """The day this fails the words above have to change."""
    model, tokenizer = copy.deepcopy(embedded[0]), embedded[1]
    qkit.quantize(model, qkit.RTN(8, 128, symmetric=True))
    folder = qkit.save(model, tmp_path / "folder", tokenizer, format="compressed-tensors").path
    done = asked(folder, tokenizer(PROMPT, return_tensors="pt").input_ids, "bfloat16", tmp_path / "heard")
    assert done.returncode and "Failed to find a kernel" in done.stderr + done.stdout
