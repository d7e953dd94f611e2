"""Tiles that were found by trying, for whoever asks; everybody else has the table of `tiles`.

    qkit.engine.warm.tune_tiles(model)      tries the few tiles that may be good for each of its weights, and keeps the fastest

They are kept in one file of the user's cache, $XDG_CACHE_HOME/qkit/tiles.json, under the card's name, Triton's version and the
text of the kernels: what was found for others is not taken. The file is read when the first product asks, and nothing is ever
tried without being asked for. Up to 256 tokens, in regions that end at 1, 8, 16, 32, ...; for more, whole rounds of tiles decide,
and `tiles` counts them.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import get_args

from qkit.backends.triton import tiles
from qkit.backends.triton.layout import KIND, Laid
from qkit.backends.triton.new_enough import triton
from qkit.backends.triton.tiles import Cut
from qkit_kernels.triton import few as few_kernels

KINDS = {kind.__name__: kind for kind in get_args(Cut)}
REGIONS = (1, 8, 16, 32, 64, 128, 256)


def place() -> Path:
    """Where what was found is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qkit" / "tiles.json"


@cache
def kernels() -> str:
    """The kernels and the compiler that times are those of."""
    folder = Path(few_kernels.__file__).parent
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    return f"triton {triton.__version__}, kernels {hashlib.sha256(text).hexdigest()[:12]}"


def case(tokens: int, weight: Laid) -> str | None:
    """What a choice is made for, in words; None where none is."""
    region = next((region for region in REGIONS if tokens <= region), None)
    if region is None:
        return None
    codes = "table" if weight.table is not None else "codes and offsets" if weight.off is not None else "codes"
    scales = f"{weight.grid.shape[1]} x {weight.grid.shape[2]} scales"
    return f"{weight.shape[0]} x {weight.shape[1]}, {weight.bits} bits, {codes}, {scales}, {KIND[weight.dtype]}, {region} tokens"


@cache
def found() -> dict[str, dict[str, Cut]]:
    """What the file holds for these kernels: by card, by case. Nothing, and a warning, where it cannot be read."""
    try:
        kept = json.loads(place().read_text(encoding="utf-8")).get(kernels(), {})
        return {card: {name: _cut(*cut) for name, cut in cases.items()} for card, cases in kept.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        warnings.warn(
            f"{place()} cannot be read ({error!r}): tiles are chosen by the table; remove the file", stacklevel=2
        )
        return {}


def _cut(kind: str, numbers: dict[str, int]) -> Cut:
    if not all(isinstance(number, int) for number in numbers.values()):
        raise TypeError(f"{numbers} are no tiles")
    return KINDS[kind](**numbers)


def chosen(tokens: int, weight: Laid, card: tiles.Card) -> Cut | None:
    """The tiles that were found for this product; None where nothing was looked for."""
    cases = found().get(card.name)
    name = case(tokens, weight) if cases else None
    return cases.get(name) if cases and name else None


def keep(card: str, choices: dict[str, Cut]) -> None:
    """Add choices to the file, which appears whole or not at all; choices of other kernels are dropped."""
    cases = {name: dict(known) for name, known in found().items()}
    cases.setdefault(card, {}).update(choices)
    written = {
        name: {case: (type(cut).__name__, asdict(cut)) for case, cut in known.items()} for name, known in cases.items()
    }
    place().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=place().parent, delete=False) as draft:
        json.dump({kernels(): written}, draft, indent=1)
    Path(draft.name).replace(place())
    found.cache_clear()


def fastest(cuts: list[Cut], seconds: Callable[[Cut], float]) -> Cut:
    """The one that takes least; the first stays where it is not beaten by 2 %, which two runs may differ by."""
    times = {cut: seconds(cut) for cut in cuts}
    best = min(cuts, key=times.__getitem__)
    return best if times[best] < 0.98 * times[cuts[0]] else cuts[0]
