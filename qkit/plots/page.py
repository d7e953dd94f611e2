"""A comparison as files: a self-contained page and a picture."""

import base64
import platform
from importlib.metadata import version
from pathlib import Path

import jinja2
import torch

from qkit.checkpoints.files import write_bytes
from qkit.plots import comparison_picture
from qkit.study.comparison import Comparison


def write_page(comparison: Comparison, folder: Path) -> tuple[Path, Path]:
    """Write compare.html (table and figures in one file, no network needed) and compare.png into `folder`.

    Each file appears whole or not at all. Returns both paths.
    """
    picture = comparison_picture(comparison)
    png = picture.png()
    loader = jinja2.PackageLoader("qkit", package_path="plots")
    page = jinja2.Environment(loader=loader, autoescape=True).get_template("page.html")
    html = page.render(
        comparison=comparison,
        version=version("qkit"),
        python=platform.python_version(),
        torch=torch.__version__,
        png=base64.b64encode(png).decode(),
        alt=picture.alt,
    )
    paths = folder / "compare.html", folder / "compare.png"
    for path, content in zip(paths, (html.encode(), png), strict=True):
        write_bytes(path, content)
    return paths
