"""The package: what the wheel carries, and what importing it costs."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import qkit

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # setuptools would pack what an old build left
    ignored = shutil.ignore_patterns(".*", "build", "out", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(folder), str(folder / "source")], check=True)
    return next(folder.glob("qkit-*.whl"))


def test_the_wheel_carries_every_module_the_kernels_the_model_and_the_lessons(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "qkit").rglob("*.py")}
    kernels = {p.relative_to(ROOT / "kernels").as_posix() for p in (ROOT / "kernels" / "qkit_kernels").rglob("*.py")}
    shelf = [path for path in (ROOT / "lessons").iterdir() if not path.name.startswith(".")]
    lessons = {f"qkit/lessons/{path.name}" for path in shelf}
    model = {
        f"qkit/data/bookworm-14m/{name}" for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md")
    }
    measured = {f"qkit/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "data" / "measured").rglob("*.json")}
    tales = {f"qkit/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "data" / "tales").iterdir()}
    assert modules | kernels | lessons | model | measured | tales | {"qkit/plots/page.html"} <= names
    assert {name for name in names if name.endswith(".py") and not name.startswith("qkit/data/")} == modules | kernels
    assert not [name for name in names if name.startswith(("tests/", "data/", "kernels/"))]


def test_the_wheel_has_the_version_that_the_library_says(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    assert f"\nVersion: {qkit.__version__}\n" in archive.read(metadata).decode()


def test_the_wheel_works_away_from_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = """
import qkit, qkit_kernels, sys
assert qkit.__file__.startswith(sys.argv[1]) and qkit_kernels.__file__.startswith(sys.argv[1])
model, tokenizer = qkit.load("bookworm-14m")
qkit.quantize(model, qkit.RTN(bits=4, group_size=128))
print(round(qkit.perplexity(model, tokenizer, qkit.passages("tales"), max_chunks=1), 2))
"""
    site = str(tmp_path / "site")
    command = [sys.executable, "-c", script, site]
    done = subprocess.run(command, cwd=tmp_path, env=_environment(site), capture_output=True, text=True, check=True)
    assert 20 < float(done.stdout) < 100


def test_importing_qkit_imports_neither_transformers_nor_matplotlib_nor_numba():
    heavy = "{'transformers', 'matplotlib', 'numba', 'ipywidgets', 'typer'}"
    script = f"import sys, qkit; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_lessons_show_needs_no_triton():
    """It exists for Linux only; what is launched needs it, and figures, widgets and exercises are for everybody."""
    script = """
import sys
sys.modules["triton"] = None  # cannot be imported, and is not found
import qkit.plots, qkit.widgets, qkit.exercises
from qkit.backends.triton.layout import pack_words
print(qkit.exercises.check("09.1", print))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Triton exists for Linux only" in done.stdout


def _environment(site: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": site, "HF_HUB_OFFLINE": "1"}
