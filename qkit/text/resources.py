"""Where the files that come with qkit lie: the embedded model and the lessons."""

from pathlib import Path


def folder(name: str) -> Path:
    """The folder "data" or "lessons": inside the package when qkit came as a wheel, beside it in a checkout."""
    here = Path(__file__).parents[1]
    return next(path for path in (here / name, here.parent / name) if path.is_dir())
