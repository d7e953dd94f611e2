"""What every lesson on the shelf has in common. (That its cells run and print what is stored is nbval's to check.)"""

import inspect
import re
from functools import cache
from html.parser import HTMLParser

import pytest

import shelf
from qkit.exercises import ALL
from qkit.exercises.kernels import KernelExercise
from qkit.plots.lesson_page import lesson_page

LESSONS = shelf.paths()
page_of = cache(lesson_page)  # it takes seconds


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def lesson(request):
    return request.param, shelf.notebook(request.param)


def sources(notebook, kind):
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def outputs(notebook):
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def test_the_shelf_holds_notebooks_the_pages_beside_them_and_nothing_else():
    assert [path.name for path in LESSONS] == [
        "00_start_here.ipynb",
        "01_fp32_to_int8.ipynb",
        "02_int4_and_groups.ipynb",
        "03_bitsandbytes.ipynb",
        "04_gptq.ipynb",
        "05_awq.ipynb",
        "06_smoothquant_and_static.ipynb",
        "07_choosing_a_method.ipynb",
        "08_inside_a_cpu_kernel.ipynb",
        "09_inside_a_gpu_kernel.ipynb",
        "10_five_minutes_and_beyond.ipynb",
    ]
    others = {path.name for path in shelf.SHELF.iterdir() if not path.name.startswith(".")} - {
        path.name for path in LESSONS
    }
    assert others == {"README.md", "claims.md", "glossary.md", "notation.md"}


def test_it_says_what_one_can_do_after_it_how_long_it_takes_and_what_it_needs(lesson):
    beginning = sources(lesson[1], "markdown")[0]
    assert re.search(r"\*\*After these \d+ minutes you can\*\*", beginning) and "**You need**" in beginning


def test_it_has_a_prediction_a_widget_asserts_its_exercises_and_a_summary(lesson):
    path, notebook = lesson
    code = "\n".join(sources(notebook, "code"))
    predictions = code.count("my_guess = None")
    assert predictions and len(re.findall(r"guesses\.reveal\(\"[^\"]+\",\s*my_guess\b", code)) == predictions
    assert "guesses = exercises.Guesses()" in code and "guesses.all()" in code  # what is kept is shown at the end
    assert "Explorer(model" in code
    assert code.count("assert ") >= 3
    asked = re.findall(r'exercises\.check\("([\d.]+)"', code)
    assert asked == [name for name in ALL if name.startswith(path.stem[:2])] and len(asked) >= 3
    assert "## Summary" in "\n".join(sources(notebook, "markdown"))


def test_a_grader_calls_the_arguments_what_the_cell_calls_them(lesson):
    """Its sentences speak of them ("it changes `f`"), and so does the solution that it shows."""
    for code in sources(lesson[1], "code"):
        for name, function in re.findall(r'exercises\.check\("([\d.]+)", (\w+)\)', code):
            if not isinstance(ALL[name], KernelExercise):  # whose cell has the kernel, and whose solution calls one
                asked = re.search(rf"def {function}\(([^)]*)\)", code)[1].split(", ")
                assert asked == list(inspect.signature(ALL[name].solution).parameters), name


def test_a_task_asks_for_no_type_that_its_grader_does_not_look_at(lesson):
    """Numbers may come in whatever holds them; bytes are asked for, and looked at (`qkit.exercises.compare.same`)."""
    for text in sources(lesson[1], "markdown"):
        for task in re.findall(r"^\*\*\d\d\.\d\*\*.+", text, re.M):
            asked = re.search(r"[Rr]eturn(.+)", task)
            assert not asked or not re.search(r"dtype|torch\.(?!uint8)\w*\d", asked[1]), task


def test_it_was_run_from_top_to_bottom_and_every_figure_is_stored_with_its_description(lesson):
    _, notebook = lesson
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not [o for o in outputs(notebook) if o["output_type"] == "error" or o.get("name") == "stderr"]
    pictures = [o for o in outputs(notebook) if "image/png" in o.get("data", {})]
    assert pictures and all(o["metadata"]["image/png"]["alt"] for o in pictures)


def test_it_stores_no_widget_state_which_would_blank_the_page_for_readers_without_a_kernel(lesson):
    assert "widgets" not in lesson[1]["metadata"]


def test_it_reads_complete_as_html_without_a_kernel(lesson):
    path, notebook = lesson
    html = page_of(path)
    pictures = [o for o in outputs(notebook) if "image/png" in o.get("data", {})]
    assert len(re.findall(r"<img[^>]+data:image/png", html)) == len(pictures)
    assert "application/vnd.jupyter.widget-view+json" not in html


def test_its_formulas_are_read_without_a_network(lesson):
    """JupyterLab brings MathJax, and `make test-browser` looks; on a page of HTML they are pictures (`make html`)."""
    path, notebook = lesson
    texts = [re.sub(r"`[^`]*`", "", text) for text in sources(notebook, "markdown")]
    asked = sum(len(re.findall(r"\$\$.+?\$\$|\$[^$\n]+\$", text, re.S)) for text in texts)
    page = page_of(path)
    assert page.count('src="data:image/svg+xml;base64') == asked
    assert not re.search(r"\ssrc=.https?:|import .*https?:", page)


class Images(HTMLParser):
    """The attributes of all images of a page."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.found.append(dict(attrs))


def test_on_its_page_every_figure_has_the_description_that_is_stored_with_it(lesson):
    """Who cannot see a figure reads that; nbconvert's own page says "No description has been provided" instead."""
    path, notebook = lesson
    stored = [o["metadata"]["image/png"]["alt"] for o in outputs(notebook) if "image/png" in o.get("data", {})]
    images = Images(page_of(path)).found
    figures = [image["alt"] for image in images if image["src"].startswith("data:image/png")]
    assert figures == stored and len(figures) > 5
    assert all(
        len(alt) >= 40 and re.search(r"\d|no guess", alt) for alt in figures
    )  # what is there, and how much of it
    assert all(image["alt"].strip() and "No description" not in image["alt"] for image in images)


def test_what_needs_triton_says_so_and_nothing_else_may_raise(lesson):
    """A cell that may raise goes on where there is no Triton, and must not hide what else goes wrong."""
    needs = re.compile(r"triton\.(jit|cdiv)|\btl\.|backends\.triton import|qkit_kernels\.triton import few")
    for cell in lesson[1]["cells"]:
        if "raises-exception" in cell["metadata"].get("tags", ()):
            assert needs.search("".join(cell["source"]))
    defining = [
        cell for cell in lesson[1]["cells"] if "@triton.jit" in "".join(cell["source"]) and cell["cell_type"] == "code"
    ]
    assert all("raises-exception" in cell["metadata"].get("tags", ()) for cell in defining)


def test_links_to_other_lessons_and_pages_lead_somewhere(lesson):
    for target in re.findall(r"\]\(([^)#:]+\.(?:ipynb|md))[)#]", "\n".join(sources(lesson[1], "markdown"))):
        assert (shelf.SHELF / target).is_file(), target


def test_no_cell_installs_anything_and_no_line_runs_off_the_page(lesson):
    for code in sources(lesson[1], "code"):
        assert not re.search(r"^\s*[!%]", code, re.M)
        assert max(map(len, code.splitlines())) <= 110, code
