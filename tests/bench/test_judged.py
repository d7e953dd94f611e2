"""The record of the judges: what comes with qkit says who, when and with what; a judge's new word replaces its old one."""

from dataclasses import replace

import pytest
import torch

from qkit.bench import judged
from qkit.bench.judged import READ_BY_US, READS_OURS, Judge, Judged, Judgement
from qkit.checkpoints.formats import FORMATS
from verdicts import PACKAGES, RECORD, Heard, along, compared, greedy, kept

JUDGE = Judge("GPTQModel", "7.6.0", "transformers 5.17.0", "2026-11-28", "a processor", "3.11.7", {"torch": "2.13.0"})
ROW = Judgement(
    "gptq", "RTN W4 g128 sym", "GPTQModel", READS_OURS, "bookworm-14m", 40, 1e-3, 1e-6, 0.1, True, True, "float16"
)


def test_every_row_says_who_judged_when_and_with_what():
    record = judged.judged()
    assert {one.format for one in record.verdicts} == set(FORMATS)
    assert {one.judge for one in record.verdicts} == {judge.name for judge in record.judges} <= set(PACKAGES)
    for judge in record.judges:
        assert (judge.version or judge.through) and judge.cpu and judge.python and len(judge.date.split("-")) == 3, (
            judge
        )
        assert {"qkit", "torch", "transformers"} <= set(judge.versions)
    keys = [(one.format, one.scheme, one.judge, one.direction) for one in record.verdicts]
    assert len(set(keys)) == len(keys)
    for one in record.verdicts:
        assert one.direction in (READS_OURS, READ_BY_US) and one.tokens >= 30, one
        assert 0 <= one.error < 0.1 and 0 <= one.kl < 0.02, one  # codes that were misread are off by 1 and more
        assert (one.weights_equal is None) == (one.weights_dtype is None), one


def test_what_a_record_says_comes_back_and_is_found(tmp_path):
    record = Judged((JUDGE,), (ROW, replace(ROW, scheme="4 act order", direction=READ_BY_US)))
    assert judged.judged(judged.write(record, tmp_path / "judges.json")) == record
    assert record.judge("GPTQModel").label == "GPTQModel 7.6.0 through transformers 5.17.0"
    assert replace(JUDGE, through="").label == "GPTQModel 7.6.0"
    assert record.of("gptq", READS_OURS) == [ROW] and len(record.of("gptq")) == 2 and record.of("awq") == []


def test_a_judge_that_is_heard_again_takes_back_what_it_said_and_others_keep_theirs():
    other = replace(JUDGE, name="llama.cpp"), replace(ROW, format="gguf", judge="llama.cpp")
    before = Judged((JUDGE, other[0]), (ROW, replace(ROW, scheme="RTN W3 g128 sym"), other[1]))
    newer = replace(JUDGE, version="7.7.0")
    after = before.replaced([newer], [ROW])  # of W3 the test failed
    assert after.judges == (newer, other[0]) and set(after.verdicts) == {ROW, other[1]}


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_a_judge_like_us_differs_by_nothing_and_one_that_is_not_by_what_it_differs(make_model, constant):
    model, ids = make_model("llama"), torch.arange(5)[None]
    heard = greedy(lambda ids: model(input_ids=ids).logits + constant, ids, 7)
    assert len(heard.tokens) == 7 and heard.logits.shape == (7, 97)
    torch.testing.assert_close(along(model, ids, heard.tokens) + constant, heard.logits)
    same = compared(model, ids, heard, model)
    assert same["same_text"] and same["error"] < 1e-6 and same["kl"] < 1e-9 and same["kl_original"] < 1e-9
    loud = compared(model, ids, Heard([*heard.tokens[:-1], (heard.tokens[-1] + 1) % 97], 1.1 * heard.logits))
    assert loud["error"] == pytest.approx(0.1, rel=0.1) and loud["kl"] > 0 and not loud["same_text"]
    assert loud["kl_original"] is None


def test_a_plain_run_writes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "judges.json"
    monkeypatch.setattr(judged, "place", lambda: path)
    monkeypatch.setattr("verdicts.judge_now", lambda name: JUDGE)
    monkeypatch.delenv(RECORD, raising=False)
    for written in (False, True):
        run = kept()
        next(run).append(ROW)
        assert next(run, None) is None
        assert path.exists() == written
        monkeypatch.setenv(RECORD, "1")
    assert judged.judged(path) == Judged((JUDGE,), (ROW,))
