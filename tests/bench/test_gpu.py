"""`qkit bench gpu` where there is no card: what it refuses, checks, keeps and prints. What it times is in tests/gpu."""

import io
import json
import re
import subprocess
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from qkit import NF4, RTN, W8A8, LLMInt8
from qkit.bench import gpu, tables
from qkit.bench.record import GpuMeasurement, GpuRecord

CARD = {"name": "abacus", "driver": "1.0", "cuda": "13.0"}
MACHINE = {"cpu": "beads", "cores": 2, "versions": {"torch": "9.9", "triton": None}, "load": 0.1, "card": CARD}


def printed(table):
    file = io.StringIO()
    Console(file=file, width=200).print(table)
    return file.getvalue()


def layer(scheme, shape=(64, 256)):
    return scheme.layer(scheme.round(torch.randn(*shape)).q, None, None, torch.bfloat16)


def test_a_machine_without_a_card_is_told_what_measures_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"no CUDA card is here.*`qkit bench cpu`"):
        gpu.run()


def test_a_card_without_triton_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "missing", lambda module: "No module named 'triton'")
    with pytest.raises(ImportError, match=r"need Triton.*No module named 'triton'.*pip install 'qkit\[gpu\]'"):
        gpu.run()


def test_a_tool_that_does_not_answer_is_not_waited_for(monkeypatch):
    properties = {"name": "abacus", "multi_processor_count": 1, "total_memory": 2, "L2_cache_size": 3}

    def hangs(*command, timeout=None, **_):
        if timeout is None:
            pytest.fail("it is waited for without end")
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(**properties))
    monkeypatch.setattr(gpu.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(gpu.subprocess, "run", hangs)
    monkeypatch.setattr(gpu, "describe_machine", dict)
    assert gpu.describe_card()["card"]["driver"] is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "fp8"}, "dtype='fp8' is not one of bf16, fp16"),
        ({"tokens": [1, 0]}, "tokens=0 is no number of tokens"),
        ({"rows": ["four"]}, "scheme 'four' is not understood"),
        ({"rows": ["gptq-w4g128"]}, "learns from data"),
    ],
)
def test_what_cannot_be_measured_is_said_before_a_card_is_looked_for(changes, words, monkeypatch):
    monkeypatch.setattr(gpu, "check_card", lambda: pytest.fail("the work has begun"))
    with pytest.raises(ValueError, match=words):
        gpu.run(**changes)


@pytest.mark.parametrize("scheme", [RTN(4, 128), NF4(), W8A8(), LLMInt8()], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_layer_that_is_right_passes_and_one_that_is_not_is_named(scheme, dtype, monkeypatch):
    torch.manual_seed(0)
    right, x = layer(scheme), gpu.activations(8, 256, dtype, outliers=True, device="cpu")
    assert 0 < gpu.checked(right, x) < gpu.LIMIT[dtype]
    plain, forward = type(right).forward, right.forward
    for wrong in (lambda y: 1.01 * y, lambda y: y.fill_(torch.nan), lambda y: torch.cat([y[:-1], 0 * y[-1:]])):
        monkeypatch.setattr(
            right, "forward", lambda x, wrong=wrong: plain(right, x) if x.dtype == torch.float64 else wrong(forward(x))
        )
        with pytest.raises(ArithmeticError, match="a kernel is wrong on this card"):
            gpu.checked(right, x)


def test_every_row_is_checked_and_timed_at_every_number_of_tokens(monkeypatch):
    """The table as it is made on a card, on the CPU: the clock and the floor are others', all else is as it is."""
    made, timed = torch.randn, []

    def clock(call, copies, replays=15, graph=True):
        timed.append(copies)
        return float(sum(call(i).shape[0] for i in range(copies)) / copies)  # tokens, and every copy can be called

    monkeypatch.setattr(torch, "randn", lambda *shape, device, **rest: made(*shape, **rest))
    monkeypatch.setattr(gpu, "timed", clock)
    monkeypatch.setattr(gpu, "floor", lambda nbytes: nbytes / 1000)
    monkeypatch.setattr(gpu, "rotated_bytes", lambda: 2**17)
    found, lost = gpu.measure((64, 256), (1, 5), ["bf16", "w4g128", "nf4", "llm.int8"], "bf16")
    assert not lost and [(m.row, m.tokens) for m in found] == [
        (row, count) for row in ("BF16", "RTN W4 g128", "NF4 b64 dq", "LLM.int8") for count in (1, 5)
    ]
    assert all(m.microseconds == m.tokens and m.floor == m.nbytes / 1000 for m in found)
    assert [m.error is None for m in found] == [True, True] + [False] * 6
    assert timed[0] == 4 and min(timed) > 1, "fewer copies than fill the cache"
    monkeypatch.setitem(gpu.LIMIT, torch.bfloat16, 1e-9)
    found, lost = gpu.measure((64, 256), (1,), ["w4g128"], "bf16")
    assert [m.row for m in found] == ["BF16"] and "is off by" in lost["RTN W4 g128, 64x256"]


def test_activations_lie_out_where_they_are_asked_to():
    wild, plain = (gpu.activations(64, 4096, torch.bfloat16, outliers, "cpu") for outliers in (True, False))
    assert int((wild.abs() >= 6).any(0).sum()) == gpu.OUTLIERS and int((plain.abs() >= 6).any(0).sum()) == 0


def a_record():
    rows = [("BF16", 2000, 10.0, (40.0, 50.0), (None, None)), ("RTN W4 g128", 500, 3.0, (10.0, 60.0), (2e-3, 3e-3))]
    measured = [
        GpuMeasurement(row, (1000, 2000), "bf16", tokens, 1000 * nbytes, floor, us, wrong)
        for row, nbytes, floor, times, errors in rows
        for tokens, us, wrong in zip((1, 512), times, errors, strict=True)
    ]
    return GpuRecord(MACHINE, tuple(measured), {"NF4": "is off"})


def test_the_table_shows_times_beside_the_float_product():
    text = printed(tables.gpu_table(a_record(), (1000, 2000)))
    assert "1000x2000, bf16" in text and "M=512" in text
    assert re.search(r"^ BF16 +2\.0 +10\.0 +40\.0 \(1\.00\) +50\.0 \(1\.00\)", text, re.M)
    assert re.search(r"^ RTN W4 g128 +0\.5 +3\.0e-03 +3\.0 +10\.0 \(0\.25\) +60\.0 \(1\.20\)", text, re.M)


def test_the_notes_name_the_card_and_what_is_missing():
    first, *rest = tables.notes(a_record())
    assert first.startswith("abacus, driver 1.0, CUDA 13.0; beads, 2 cores") and rest == ["missing: NF4 (is off)"]


def test_a_record_comes_back_from_json():
    record = a_record()
    assert GpuRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert record.shapes == [(1000, 2000)]
