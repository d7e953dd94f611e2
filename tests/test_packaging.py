"""The package: what the wheel carries, and what importing it costs."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import qkit
from grids import thinned

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


LESSONS = sorted(path.name for path in (ROOT / "lessons").glob("*.ipynb"))


@pytest.mark.parametrize("lesson", thinned(LESSONS, (LESSONS[1],)))  # the one that computes least
def test_every_lesson_runs_from_the_wheel_in_an_empty_folder(lesson, wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    site = tmp_path / "site"
    notebook = json.loads((site / "qkit" / "lessons" / lesson).read_text(encoding="utf-8"))
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    first["source"] = [f"import qkit; assert qkit.__file__.startswith({str(site)!r})\n", *first["source"]]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / lesson).write_text(json.dumps(notebook), encoding="utf-8")
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--stdout", lesson]
    done = subprocess.run(
        [*command, "--ExecutePreprocessor.timeout=1800"],
        **{"cwd": tmp_path / "empty", "env": _environment(str(site)), "capture_output": True, "text": True},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _names(requirements: str) -> set[str]:
    """Of the packages in quotes, by their names."""
    return {name.lower() for name in re.findall(r'"([A-Za-z][\w-]*)(?=[>=<;\[" ])', requirements)}


def test_what_lessons_import_is_installed_with_them():
    """By the wheel and its extra `lab`: pip, and nothing else, is what Binder and Colab have."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = _names(re.search(r"^dependencies = \[\n(.*?)^\]", project, re.M | re.S)[1])
    extras = dict(re.findall(r"^(\w+) = \[(.*?)\](?=  #|\n)", project, re.M))
    lab = _names(extras["lab"])
    for extra in re.findall(r"qkit\[(\w+)\]", extras["lab"]):
        lab |= _names(extras[extra])
    known = needed | lab | {"qkit", "qkit_kernels"} | set(sys.stdlib_module_names) | {"pydoc_data"}
    for lesson in LESSONS:
        notebook = json.loads((ROOT / "lessons" / lesson).read_text(encoding="utf-8"))
        code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for cell in code:
            asked = set(
                re.findall(r'find_spec\("(\w+)"\)', "\n".join(code))
            )  # what a lesson looks for, it can do without
            assert {name.lower() for name in imported(cell)} <= known | asked, lesson


def imported(code: str) -> set[str]:
    """First words of all that a cell imports; its magics are no Python."""
    lines = ["" if line.startswith(("%", "!")) else line for line in code.splitlines()]
    found: set[str] = set()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_binder_installs_the_lessons_with_the_versions_that_are_tested():
    place = ROOT / "binder" / "requirements.txt"
    lines = [line for line in place.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    torch = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)[1]
    assert lines[0] == "--extra-index-url https://download.pytorch.org/whl/cpu"  # a build without CUDA
    assert (place.parent / lines[1].removeprefix("--constraint ")).resolve() == ROOT / "constraints.txt"
    assert lines[2:] == [f"torch=={torch}+cpu", ".[lab]"]
    version = (place.parent / "runtime.txt").read_text(encoding="utf-8").strip().removeprefix("python-")
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    assert tuple(map(int, version.split("."))) >= tuple(map(int, oldest.split(".")))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"OWNER/NAME/(?:HEAD\?urlpath=lab/tree|blob/main)/(\S+?)\)", readme):
        assert (ROOT / target).is_file(), target
    assert f"qkit-{qkit.__version__}-py3-none-any.whl[lab]" in readme


def test_importing_qkit_imports_neither_transformers_nor_matplotlib_nor_numba_nor_a_compiler():
    heavy = "{'transformers', 'matplotlib', 'numba', 'ipywidgets', 'typer', 'torch._dynamo'}"
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
