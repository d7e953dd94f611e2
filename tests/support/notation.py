"""The symbols that formulas use, read from their TeX, and the table of lessons/notation.md that says what each one means.

A symbol is a letter with its accent, and with a subscript that is no index: `s`, `\\hat w`, `s_x`, `q_{\\min}`. Subscripts of
indices (`w_{nk}`, `s_{n,g+1}`) ask for a place in the same thing, so that `w_{nk}` is the symbol `w` and the indices `n` and `k`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from shelf import CODE, SHELF, markdown, notebook

PAGE = SHELF / "notation.md"

INDICES = frozenset("nktgiq")  # q where a table of levels is indexed by its code
ACCENTS = frozenset({"hat", "bar", "tilde", "mathcal", "mathbf", "mathbb", "widehat", "vec", "dot"})
_GREEK = """
alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi varphi chi psi omega
Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell
"""
# Functions, operators, relations, brackets and spaces: what is no symbol of ours
_PLAIN = """
max min log ln exp arg sum prod int sqrt frac dfrac tfrac round lfloor rfloor lceil rceil left right big Big bigl bigr Bigl Bigr
top cdot cdots ldots dots times pm mp approx leq le geq ge neq ne equiv sim propto ll gg in notin to rightarrow leftarrow
Rightarrow mapsto infty partial nabla forall mid vert Vert lVert rVert langle rangle quad qquad circ odot oplus underbrace
overbrace prime star ast backslash not subset cup cap operatorname
"""
GREEK, PLAIN = frozenset(_GREEK.split()), frozenset(_PLAIN.split())
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$([^$\n]+)\$", re.S)
WORD = r"\\(?:mathrm|text|operatorname|mathit)\s*\{[^}]*\}"
TOKEN = re.compile(WORD + r"|\\[A-Za-z]+|\\.|[A-Za-z]|[{}_^]|\d+|\S")


def formulas(text: str) -> list[str]:
    """The TeX between dollars; code holds none."""
    return [display or inline for display, inline in FORMULA.findall(CODE.sub("", text))]


def symbols(tex: str) -> set[str]:
    """Every symbol of a formula; a command that is not known is one, too, so that somebody looks at it."""
    return set(_read(TOKEN.findall(tex)))


def _read(tokens: list[str]) -> Iterator[str]:
    at = 0
    while at < len(tokens):
        token = tokens[at]
        command = token[1:] if token.startswith("\\") and token[1:].isalpha() else ""
        if command in ACCENTS:
            inner, at = _group(tokens, at + 1)
            base = token + " " + "".join(inner)
        elif command in GREEK or (len(token) == 1 and token.isascii() and token.isalpha()):
            base, at = token, at + 1
        else:
            at += 1
            if command and command not in PLAIN:
                yield token
            continue
        if at < len(tokens) and tokens[at] == "_":
            below, at = _group(tokens, at + 1)
            name = [t for t in below if t not in INDICES and (t.isalpha() or len(t) > 2) and not t.isdigit()]
            yield from (t for t in below if t in INDICES)
            base += f"_{{{''.join(name)}}}" if name else ""
        yield base


def _group(tokens: list[str], at: int) -> tuple[list[str], int]:
    """What stands at `at`, one token or all between braces, and where it ends."""
    if at >= len(tokens) or tokens[at] != "{":
        return tokens[at : at + 1], at + 1
    depth, end = 1, at + 1
    while depth and end < len(tokens):
        depth += {"{": 1, "}": -1}.get(tokens[end], 0)
        end += 1
    return tokens[at + 1 : end - 1], end


def table(page: Path = PAGE) -> dict[str, str]:
    """{symbol: the number of the lesson that defines it}, of the page's rows.

    Raises:
        ValueError: a symbol stands in two rows.
    """
    found: dict[str, str] = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        row = re.match(r"\| (\$.*?) \| .* \| \[(\d\d)\]\((\d\d)_[^)]*\.ipynb\) \|$", line)
        if row is None:
            continue
        for symbol in dict.fromkeys(_last(tex) for tex in formulas(row[1])):
            if symbol in found:
                raise ValueError(f"{symbol} stands in two rows of {page.name}; one symbol is one thing")
            found[symbol] = row[2]
    return found


def _last(tex: str) -> str:
    """The symbol of a formula that is one symbol: what reading ends with, after its indices."""
    return list(_read(TOKEN.findall(tex)))[-1]


def used(lesson: Path) -> dict[str, str]:
    """{symbol: the id of the first cell whose formulas use it}."""
    found: dict[str, str] = {}
    for id, text in markdown(notebook(lesson)):
        for tex in formulas(text):
            for symbol in sorted(symbols(tex)):
                found.setdefault(symbol, id)
    return found
