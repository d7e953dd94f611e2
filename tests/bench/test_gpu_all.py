"""benchmarks/gpu_all.py with parts that need no card: what one of them does hurts no other, and all is told."""

import importlib.util
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("gpu_all", ROOT / "benchmarks" / "gpu_all.py")
gpu_all = importlib.util.module_from_spec(_spec)
sys.modules["gpu_all"] = gpu_all
_spec.loader.exec_module(gpu_all)

LONG = 600.0  # seconds; no part of these tests takes so many
SLEEPS = "import time; print('begun', flush=True); time.sleep(600)"


def part(name, code, seconds=LONG, record=None):
    return gpu_all.Part(name, "log", (sys.executable, "-c", code, "{out}"), seconds, record)


def test_what_fails_or_is_not_there_stops_nothing(tmp_path):
    writes = "import pathlib, sys; pathlib.Path(sys.argv[1], 'r.json').write_text('{\"a\": 1}'); print('written')"
    found = gpu_all.run_all(
        [
            part("right", writes, LONG, "r.json"),
            part("wrong", "print('FAILED here'); [print(i) for i in range(99)]; raise SystemExit('that is why')"),
            gpu_all.Part("absent", "log", ("a-tool-of-nobody",), LONG),
            part("again", writes, LONG, "r.json"),
        ],
        LONG,
        tmp_path,
    )
    assert [one.word for one in found] == ["ok", "ended with 1", "a-tool-of-nobody is not here", "ok"]
    lines = (tmp_path / "summary.txt").read_text().splitlines()
    assert lines[0] == "2 of 4 parts are not ok" and "    FAILED here" in lines and "    that is why" in lines
    told = [line for line in lines[1:] if not line.startswith(" ")]
    assert [line.split()[0] for line in told] == ["wrong", "absent", "right", "again"]
    assert (tmp_path / "log.log").read_text().count("\nwritten\n") == 2
    assert json.loads((tmp_path / "records.json").read_text()) == {"right": {"a": 1}, "again": {"a": 1}}


def test_a_table_that_lacks_rows_is_not_ok(tmp_path):
    writes = (
        'import pathlib, sys; pathlib.Path(sys.argv[1], \'r.json\').write_text(\'{"missing": {"NF4": "it is wrong"}}\')'
    )
    found = gpu_all.run(part("model", writes, LONG, "r.json"), LONG, tmp_path)
    assert gpu_all.summary([found]).splitlines()[1:] == [
        f"model {found.seconds:12.0f} s  ok, but for NF4",
        "    it is wrong",
    ]


def test_what_was_left_out_is_shown_too(tmp_path):
    found = gpu_all.run(
        part("tests", "print('SKIPPED [9] no transformers'); print(1); print('3 passed')"), LONG, tmp_path
    )
    assert found.word == "ok" and found.lines == ("SKIPPED [9] no transformers", "3 passed")


def test_what_outlasts_its_time_is_ended_and_what_has_none_left_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_all, "LEAST", 0.0)
    sleeps, right = part("sleeps", SLEEPS, 1.0), part("right", "print(1)")
    found = gpu_all.run_all([sleeps, right], LONG, tmp_path)
    assert [one.word for one in found] == ["not done after 1 s", "ok"]
    assert gpu_all.run_all([right], -1.0, tmp_path)[0].word == "not begun: no time is left"
    assert "1 of 1 parts are not ok" in (tmp_path / "summary.txt").read_text()


def test_what_hangs_says_where(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        code = (
            f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS!r}])"  # its own child, as a tool's
        )
        with gpu_all.started([sys.executable, "-c", code], log, {}) as process:
            while b"begun" not in (tmp_path / "log").read_bytes():
                assert process.poll() is None
            gpu_all.told(process, 600.0)
            assert process.returncode != 0
    said = (tmp_path / "log").read_text()
    # Two processes write into one file, and a name letter by letter: only what is written at one go is surely whole.
    assert said.count("Fatal Python error") == 2 and said.count("(most recent call first)") >= 2


def test_all_that_is_run_is_there():
    """Scripts, options and names that a machine with a card would meet first."""
    from qkit.bench import gpu_generation

    commands = [one.command for one in gpu_all.parts()]
    for command in commands:
        for word in command:
            if word.endswith(".py") or word.startswith("tests/"):
                assert (ROOT / word).exists(), word
    rows = {row for command in commands for option, row in pairwise(command) if option == "--scheme"}
    assert rows == set(gpu_generation.ROWS)  # every one is measured, and is one
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert " ".join(commands[0][1:7]) in recipe  # `make test-gpu` runs no others
    assert [one.name for one in gpu_all.chosen(["layers"])] == [f"{n}x{k}" for n, k in gpu_all.SHAPES]
    with pytest.raises(ValueError, match="part 'layer' is not one of tests, sanitizer"):
        gpu_all.chosen(["layer"])


@pytest.mark.parametrize("name", ["layers", "models"])
def test_a_machine_without_a_card_is_told_by_each_part(name, tmp_path):
    """So far each of them comes: its options are understood, and what it imports is there."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")
    first = gpu_all.chosen([name])[0]
    blind = gpu_all.Part(**{**vars(first), "environment": {**first.environment, "CUDA_VISIBLE_DEVICES": ""}})
    assert gpu_all.run(blind, LONG, tmp_path).word != "ok"
    assert "no CUDA card is here" in (tmp_path / f"{name}.log").read_text()


def test_a_dry_run_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("the work has begun"))
    assert gpu_all.main([str(tmp_path / "out"), "--dry", "--parts", "tests"]) == 0
    assert "tests/gpu" in capsys.readouterr().out and not (tmp_path / "out").exists()
