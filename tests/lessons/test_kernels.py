"""The kernels of lesson 09 compile for a card: the interpreter takes what a compiler may refuse. Without Triton the rest runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")

SUPPORT = Path(__file__).parents[1] / "support"
LESSON = Path(__file__).parents[2] / "lessons" / "09_inside_a_gpu_kernel.ipynb"


@pytest.mark.parametrize(
    "target", ["sm_90", *(pytest.param(t, marks=pytest.mark.exhaustive) for t in ("sm_80", "sm_100"))]
)
def test_the_lessons_kernels_and_the_exercises_compile_for_a_card(target):
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    paths = [str(SUPPORT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, str(SUPPORT / "compiled_lesson.py"), target]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {use["kernel"] for use in found} == {
        *("add", "sign", "w4_one", "who_reads", "squares", "w4_many"),
        *("token_scales", "w4_zeros", "w8a8_one", "dealt_out"),
    }
    assert not [use for use in found if use["stack"]]
    # a product of 16 rows: with wgmma, 64 rows high, Triton's own pipelining of a left operand in registers is a race
    assert [use["products"] for use in found if use["kernel"] == "w4_many"] == [["mma.sync"]]


@pytest.mark.exhaustive
def test_where_there_is_no_triton_it_says_so_and_every_other_cell_runs(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['triton'] = None\n")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    notebook = nbformat.read(LESSON, as_version=4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(LESSON.parent)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "Triton exists for Linux only" in code[0].outputs[0].text
    failed = {cell.id: o.evalue for cell in code for o in cell.outputs if o.output_type == "error"}
    allowed = {cell.id for cell in code if "raises-exception" in cell.metadata.get("tags", ())}
    assert set(failed) == allowed
    assert all("is not defined" in words or "triton" in words for words in failed.values())
    assert sum("image/png" in o.get("data", {}) for cell in code for o in cell.outputs) >= 6
