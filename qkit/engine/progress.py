"""One kind of progress bar."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(
    progress: bool | None,
    desc: str,
    unit: str = "it",
    total: int | None = None,
    over: Iterable[Any] | None = None,
    leave: bool = True,
) -> tqdm:
    """A bar over `over`, or one of `total` units that is told of each.

    Args:
        progress: show it; None: on a terminal only.
        leave: the full bar stays behind.
    """
    return tqdm(
        over, desc=desc, unit=unit, total=total, leave=leave, disable=None if progress is None else not progress
    )
