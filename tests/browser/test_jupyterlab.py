"""A reader's JupyterLab: open a lesson, run it, move a slider, and see the picture follow.

Run by `make test-browser`. It prints the time from key to picture and keeps screenshots in tests/browser/screenshots:
look at them.
"""

import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Notes when a key goes down, and when an image in an output has been decoded after it.
WATCH = """
window.qkit = {pressed: 0, painted: []};
document.addEventListener('keydown', () => { window.qkit.pressed = performance.now(); }, true);
document.addEventListener('load', event => {
  if (event.target.tagName === 'IMG' && event.target.closest('.jp-OutputArea'))
    window.qkit.painted.push(performance.now());
}, true);
"""
# A lesson's kernel holds a gigabyte or two, which the next lesson may want.
END_KERNELS = """async () => {
    const headers = {'X-XSRFToken': (document.cookie.match(/_xsrf=([^;]+)/) || [])[1]};
    for (const session of await (await fetch('/api/sessions')).json())
        await fetch(`/api/sessions/${session.id}`, {method: 'DELETE', headers});
}"""
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on a copy of the lessons."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "lessons", folder / "lessons")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = [
        f"--port={port}",
        "--no-browser",
        "--allow-root",
        "--IdentityProvider.token=",
        f"--notebook-dir={folder}",
    ]
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(folder / "config"), "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api")
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture
def open_lesson(lab, browser):
    pages = []

    def open_(name):
        page = browser.new_page(viewport={"width": 1300, "height": 1100})
        page.add_init_script(WATCH)
        page.goto(f"{lab}/lab/tree/lessons/{name}.ipynb?reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        page.wait_for_timeout(2000)
        for button in page.locator("text='No'").all():  # JupyterLab asks whether it may fetch news
            button.click()
        pages.append(page)
        return page

    yield open_
    for page in pages:
        page.evaluate(END_KERNELS)
        page.close()


def run_all(page, widget_line):
    """Run every cell, wait until the last has run, and bring the widget of `widget_line` into view."""
    page.click(".jp-Notebook .jp-Cell >> nth=0", position={"x": 200, "y": 24})  # its title: there may be links below
    page.click("text=Run >> nth=0")
    page.click("text=Run All Cells")
    page.wait_for_function(
        """() => {
            const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].map(p => p.innerText);
            return document.querySelectorAll('.noUi-handle').length && !prompts.some(p => p.includes('[*]'));
        }""",
        timeout=420_000,
    )
    cell = page.locator(".jp-CodeCell", has_text=widget_line).first
    cell.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    return cell


def settle(page):
    """Wait until no picture has come for a second."""
    page.evaluate("window.qkit.painted = [performance.now()]")
    page.wait_for_function("performance.now() - window.qkit.painted.at(-1) > 1000", timeout=60_000)


def picture_of(image):
    """What is drawn, pixel by pixel, as text."""
    return image.evaluate(
        """image => {
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext('2d').drawImage(image, 0, 0);
            return canvas.toDataURL();
        }"""
    )


@pytest.mark.parametrize(
    ("lesson", "widget"),
    [
        ("00_start_here", "HistogramExplorer("),
        ("01_fp32_to_int8", "ErrorExplorer("),
        ("02_int4_and_groups", "HistogramExplorer("),
        ("03_bitsandbytes", "OutlierExplorer("),
        ("03_bitsandbytes", "CodebookExplorer("),
        ("04_gptq", "CompensationExplorer("),
        ("05_awq", "AWQExplorer("),
        ("06_smoothquant_and_static", "SmoothQuantExplorer("),
        ("07_choosing_a_method", "ChooserExplorer("),
        ("08_inside_a_cpu_kernel", "RooflineExplorer("),
        ("09_inside_a_gpu_kernel", "WordExplorer("),
        ("10_five_minutes_and_beyond", "FileExplorer("),
    ],
)
def test_the_picture_follows_the_slider(open_lesson, screenshots, lesson, widget):
    page = open_lesson(lesson)
    cell = run_all(page, widget)
    image, slider = cell.locator("img").first, cell.locator(".noUi-handle").first
    cell.screenshot(path=screenshots / f"{lesson}_{widget[:-1]}_before.png")

    slider.focus()
    seen, latencies = {image.get_attribute("src")}, []
    for key in ("ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowRight") * 4:  # every slider begins inside its range
        page.evaluate("window.qkit.painted = []")
        slider.press(key)
        page.wait_for_function("window.qkit.painted.length > 0", timeout=10_000, polling=5)
        latencies.append(page.evaluate("window.qkit.painted[0] - window.qkit.pressed"))
        seen.add(image.get_attribute("src"))
        page.wait_for_timeout(150)
    assert len(seen) >= 3, "the picture does not change with the slider"

    box = slider.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.evaluate("window.qkit.painted = []")
    page.mouse.move(x, y)
    page.mouse.down()
    started = time.time()
    for step in range(40):
        page.mouse.move(x + (60 - abs(step * 6 - 120)), y)
        page.wait_for_timeout(33)
    seconds = time.time() - started
    updates = page.evaluate("window.qkit.painted.length")
    page.mouse.up()
    settle(page)
    cell.screenshot(path=screenshots / f"{lesson}_{widget[:-1]}_after.png")
    assert updates >= 3, "the picture does not follow a drag"
    described, shown = image.get_attribute("title"), picture_of(image)
    for key in ("ArrowRight", "ArrowLeft"):  # the drag ended left of its middle: there is room on the right
        slider.press(key)
        settle(page)
    assert picture_of(image) == shown, "after a drag the picture is not that of where the slider stands"
    assert image.get_attribute("title") == described and len(described) > 40
    assert described[:30] in cell.aria_snapshot(), "the picture has no name for those who cannot see it"

    latencies.sort()
    print(
        f"\n{lesson} {widget}: key to picture median {statistics.median(latencies):.0f} ms, "
        f"p90 {latencies[int(0.9 * len(latencies))]:.0f} ms; {updates} pictures in a drag of {seconds:.1f} s"
    )


def test_before_anything_is_run_the_stored_picture_of_the_widget_is_there(open_lesson):
    page = open_lesson("02_int4_and_groups")
    cell = page.locator(".jp-CodeCell", has_text="HistogramExplorer(").first
    cell.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    image = cell.locator(".jp-OutputArea img").first
    assert image.is_visible() and image.bounding_box()["width"] > 300


def test_formulas_are_set_without_a_network(open_lesson, screenshots):
    """MathJax is JupyterLab's own; nothing is asked of any other machine."""
    page = open_lesson("09_inside_a_gpu_kernel")
    page.route("**/*", lambda route: route.continue_() if "127.0.0.1" in route.request.url else route.abort())
    page.reload()
    page.wait_for_selector(".jp-Notebook mjx-container", timeout=60_000)
    cell = page.locator(".jp-MarkdownCell", has_text="The product from codes").first
    cell.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    assert cell.locator("mjx-container").count() == 1 and "$" not in cell.inner_text()
    cell.screenshot(path=screenshots / "09_formula.png")


def test_an_exercise_answered_in_the_notebook_is_checked(open_lesson):
    page = open_lesson("01_fp32_to_int8")
    run_all(page, "ErrorExplorer(")
    cell = page.locator(".jp-CodeCell", has_text='exercises.check("01.2"').first
    cell.scroll_into_view_if_needed()
    page.wait_for_function("document.body.innerText.includes('01.2 not attempted')", timeout=20_000)
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+A")
    page.keyboard.type(
        "exercises.check('01.2', lambda w, s, z, b: (torch.floor(w / s) + z).clamp(0, 2**b - 1))", delay=5
    )
    page.keyboard.press("Shift+Enter")
    page.wait_for_function("document.body.innerText.includes('takes the floor')", timeout=20_000)
