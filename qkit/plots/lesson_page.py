"""The shelf as pages of HTML that need nothing from a network: formulas are pictures, set by matplotlib.

    python -m qkit.plots.lesson_page lessons out/lessons        (make html)

In JupyterLab the same formulas are MathJax's, which it brings along; a page that nbconvert makes would fetch it.
"""

import base64
import html
import io
import re
import sys
from pathlib import Path

from matplotlib import mathtext, rc_context
from matplotlib.font_manager import FontProperties

from qkit.checkpoints.files import write_bytes

# A formula of its own line, or one in the text; code between backticks holds none
FORMULA = re.compile(r"(?P<code>`[^`]*`)|\$\$(?P<display>.+?)\$\$|(?<!\\)\$(?P<inline>[^$\n]+)\$", re.S)
# Scripts that nbconvert's page fetches: require.js, MathJax; and Mermaid's, which is a module
FETCHED = re.compile(
    r"<script[^>]*\ssrc=\"https?://[^\"]*\"[^>]*>\s*</script>|<script type=\"module\">.*?</script>", re.S
)

# A link to another lesson or page of the same folder, and the place on it
NEIGHBOUR = re.compile(r"\]\(([\w.-]+)\.(?:ipynb|md)(#[^)\s]*)?\)")

# nbconvert's own page, but a figure keeps the alternative text that is stored beside it, which that page drops
TEMPLATE = """{% extends "lab/index.html.j2" %}
{% block data_png scoped %}
{%- set alt = output | get_metadata("alt", "image/png") or "" %}
{{- super() | replace('<img ', '<img alt="' ~ (alt | escape_html) ~ '" ', 1) }}
{%- endblock data_png %}"""


def formula(tex: str, size: float = 13.0) -> str:
    r"""A formula as an `<img>` that holds its picture (SVG), with its TeX as the alternative text.

    Args:
        tex: without dollars; what matplotlib's mathtext sets, so no environments.

    Raises:
        ValueError: mathtext cannot set it.
    """
    buffer = io.BytesIO()
    plain = re.sub(r"\\text\{([^}]*)\}", r"\\mathrm{\1}", tex).strip()
    try:
        looks = {"svg.fonttype": "path", "mathtext.fontset": "cm", "svg.hashsalt": "qkit", "figure.facecolor": "none"}
        with rc_context(looks):
            depth = mathtext.math_to_image(f"${plain}$", buffer, prop=FontProperties(size=size), format="svg")
    except ValueError as error:
        raise ValueError(f"the formula {tex!r} cannot be set: {error}") from error
    picture = re.sub(rb"<metadata>.*?</metadata>", b"", buffer.getvalue(), flags=re.S)  # which says when it was made
    data = base64.b64encode(picture).decode()
    on_the_line = f'style="vertical-align: -{depth:.2f}pt"'  # what hangs below the line of writing
    return f'<img alt="{html.escape(tex.strip())}" src="data:image/svg+xml;base64,{data}" {on_the_line}>'


def with_pictures(markdown: str) -> str:
    """Markdown with its formulas replaced."""

    def picture(match: re.Match) -> str:
        if match["code"]:
            return match["code"]
        return (
            f'<div style="text-align: center; margin: 0.8em 0">{formula(match["display"], 16)}</div>'
            if match["display"]
            else formula(match["inline"])
        )

    return FORMULA.sub(picture, markdown)


def lesson_page(path: Path) -> str:
    """A lesson as it is stored, or a page of Markdown beside the lessons, as one page; links lead to the other pages."""
    import nbformat
    from nbconvert import HTMLExporter

    if path.suffix == ".md":
        text = nbformat.v4.new_markdown_cell(path.read_text(encoding="utf-8"))
        cells = nbformat.v4.new_notebook(cells=[text], metadata={"title": path.stem})
    else:
        cells = nbformat.read(path, as_version=4)
    for cell in cells.cells:
        if cell.cell_type == "markdown":
            cell.source = NEIGHBOUR.sub(r"](\1.html\2)", with_pictures(cell.source))
    page, _ = HTMLExporter(raw_template=TEMPLATE).from_notebook_node(cells)
    return FETCHED.sub("", page)


def main(shelf: str, folder: str) -> None:
    """Write a page for each notebook and each page of Markdown of `shelf` into `folder`."""
    for path in sorted([*Path(shelf).glob("*.ipynb"), *Path(shelf).glob("*.md")]):
        Path(folder).mkdir(parents=True, exist_ok=True)
        print(write_bytes(Path(folder) / f"{path.stem}.html", lesson_page(path).encode()))


if __name__ == "__main__":
    main(*sys.argv[1:])
