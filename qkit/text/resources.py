"""Where files lie: those that come with qkit (the embedded model and the lessons), and those that a user names."""

import os
from pathlib import Path


def expanded(path: str | os.PathLike) -> Path:
    """A path with the home of a user in the place of "~".

    Raises:
        ValueError: no such user, or a name that is no text (an undecodable byte in it): other libraries cannot open it.
    """
    try:
        whole = Path(path).expanduser()
        os.fspath(whole).encode()
    except (RuntimeError, UnicodeEncodeError) as error:
        why = "names no user who has a home here" if isinstance(error, RuntimeError) else "is not UTF-8"
        raise ValueError(f"path {os.fspath(path)!r} {why}; give another") from error
    return whole


def folder(name: str) -> Path:
    """The folder "data" or "lessons": inside the package when qkit came as a wheel, beside it in a checkout."""
    here = Path(__file__).parents[1]
    return next(path for path in (here / name, here.parent / name) if path.is_dir())
