"""`qkit bench gpu` on a card: layers and a toy of a model, checked, timed and written down."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA card is here", allow_module_level=True)

from qkit.bench import gpu, gpu_generation
from qkit.bench.gpu_generation import EAGER, GRAPH, LAUNCHED

pytestmark = pytest.mark.gpu
TOY = {
    "vocab_size": 1000,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def test_layers_are_checked_and_timed(monkeypatch):
    monkeypatch.setattr(gpu, "rotated_bytes", lambda: 2**20)  # of layers so small, six times the L2 are thousands
    record = gpu.run([(256, 512)], [1, 20], ["w4g128", "nf4", "w8a8", "llm.int8"])
    assert not record.missing and set(record.case((256, 512))) == {
        "BF16",
        "RTN W4 g128",
        "NF4 b64 dq",
        "W8A8 dynamic",
        "LLM.int8",
    }
    for m in record.measurements:
        assert m.microseconds > 0 and m.floor > 0 and (m.error is None) == (m.row == "BF16")


def test_a_result_comes_into_memory_that_was_full_of_nan():
    gpu.poison((64, 512), torch.zeros(0, dtype=torch.bfloat16, device="cuda"))
    assert torch.empty(64, 512, dtype=torch.bfloat16, device="cuda").isnan().all()


@torch.no_grad()
@pytest.mark.parametrize("head", [False, True], ids=["head-float", "head-too"])
def test_a_model_writes_the_same_however_it_is_launched(head, monkeypatch):
    monkeypatch.setitem(gpu_generation.SIZES, "toy", TOY)
    errors = {}
    for way in (GRAPH, LAUNCHED, EAGER):
        row = gpu_generation.row_of("w4g128")
        one = gpu_generation.Row(row.name, row.what, (way,))
        for m in gpu_generation.measure("toy", one, (1, 16), 32, 16, head):
            errors[way, m.batch] = m.error
            assert m.way == way and len(m.step_seconds) == 16 and m.nbytes <= m.held_bytes <= m.peak_bytes
    assert max(errors.values()) < gpu_generation.LIMIT / 4


def test_a_model_is_measured_row_by_row(monkeypatch):
    monkeypatch.setitem(gpu_generation.SIZES, "toy", TOY)
    monkeypatch.setattr(gpu_generation, "needed", lambda size: 10**6)
    record = gpu_generation.run("toy", ["bf16", "nf4", "llm.int8"], [1], length=32, new=16)
    assert [m.row for m in record.measurements] == ["BF16", "NF4 b64 dq", "LLM.int8"] and not record.missing
