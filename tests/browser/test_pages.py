"""The lessons as pages, opened in a browser that has no network: all of it is there, fits, and can be heard.

Run by `make test-browser`; whole pages are kept in tests/browser/screenshots: look at them.
"""

import pytest

import shelf
from qkit.plots.lesson_page import main

WIDTHS = (1300, 1000, 700)
pytestmark = pytest.mark.browser

# What a reader would miss: images that are not there, and what reaches over the right edge of the window (code scrolls)
MISSED = """() => {
    const width = document.documentElement.clientWidth;
    const off = [...document.querySelectorAll('body *')].filter(one => {
        const box = one.getBoundingClientRect();
        return box.width && box.right > width + 1 && !one.closest('pre');
    });
    const broken = [...document.images].filter(image => !image.complete || !image.naturalWidth);
    return [...off, ...broken].map(one => `${one.tagName}: ${(one.alt || one.innerText || '').slice(0, 60)}`);
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    main(str(shelf.SHELF), str(folder))
    return folder


@pytest.mark.parametrize("name", [path.stem for path in shelf.paths()])
def test_a_lesson_reads_without_a_network(pages, browser, screenshots, name):
    asked = []

    def route(request):
        if request.request.url.startswith(("file:", "data:")):
            return request.continue_()
        asked.append(request.request.url)
        return request.abort()

    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 1000})
    page.route("**/*", route)
    page.goto((pages / f"{name}.html").as_uri())
    page.screenshot(path=screenshots / f"{name}.png", full_page=True)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(300)
        assert page.evaluate(MISSED) == [], width
    assert not asked and "$" not in page.locator(".jp-RenderedMarkdown p").first.inner_text()
    images = page.get_by_role("img")  # as a screen reader finds them
    assert images.count() == page.locator("img").count() > 10
    names = page.evaluate("[...document.images].map(image => image.alt)")
    assert all(names) and page.get_by_role("img", name=names[-1]).count()
    page.close()
