"""The numbers that the lessons' sentences quote, and whether a cell of the lesson prints them or asserts them.

A number in prose is one with a decimal point, or a whole one in percent, dB, times, or a measured unit. It is shown where,
rounded to the digits that prose writes, it stands in a stored output of the lesson or in an assert of it; or lies in a range
that an assert states, where the range is narrow. Not looked at: code, formulas, quotations, the claims of others in tables.

    python tests/support/prose_numbers.py [NN ...]          which are not shown
"""

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import shelf

UNIT = r"\s?(?:%|×(?!\s?\d)|(?:percent|dB|ms|µs|[KMG]i?B|nats?|times|microseconds|milliseconds)\b)"
NUMBER = re.compile(rf"(?<![\w.,/^–-])([-−]?\d[\d,]*\.\d+|\d[\d,]*(?={UNIT}))({UNIT})?(?![\w]|\.\d)")
# Numbers that measure nothing: of papers, places and versions
PLACES = re.compile(
    r"arXiv:? ?\d{4}\.\d{4,5}(?:v\d+)?|\b\d{4}\.\d{5}\b|\b(?:eq|eqs|section|sections|table|figure|lesson|lessons|step|Python|"
    r"version|PEFT|PyTorch|Triton|NumPy|CUDA|exercise)s?\.? \d+(?:\.\d+)*|\*\*\d\d\.\d\*\*|IEEE 754",
    re.I,
)
NARROW = 1.3  # an assert of 4.6 < x < 5.4 holds "5.0"; one of 1 < x < 10 holds nothing


@dataclass(frozen=True)
class Quoted:
    """A number of prose: as it is written, its value, its digits behind the point, and where it stands."""

    text: str
    value: float
    digits: int
    percent: bool
    cell: str
    around: str


def plain(text: str) -> str:
    """Prose without code, formulas, targets of links, quotations, places, and what others claim."""
    text = shelf.plain(text)
    text = re.sub(r'"[^"\n]{1,200}"|“[^”]*”', " ", text)
    text = PLACES.sub(" ", text)
    lines, claims = [], False
    for line in text.splitlines():
        if line.startswith("|"):
            claims = claims or bool(re.match(r"\|\s*claim", line))
            if claims:
                line = line.split("|", 2)[2]
        else:
            claims = False
        lines.append(line)
    return "\n".join(lines)


def quoted(notebook: dict) -> list[Quoted]:
    """The numbers of a lesson's prose."""
    found = []
    for id, prose in shelf.markdown(notebook):
        text = plain(prose)
        for match in NUMBER.finditer(text):
            number = match[1].replace(",", "").replace("−", "-")
            digits = len(number.partition(".")[2])
            percent = bool(match[2]) and match[2].strip() in ("%", "percent")
            around = " ".join(text[max(0, match.start() - 40) : match.end() + 30].split())
            found.append(Quoted(match[0].strip(), float(number), digits, percent, id, around))
    return found


def shown(notebook: dict) -> tuple[set[float], list[tuple[float, float]]]:
    """The numbers that the outputs and asserts of a lesson hold, and the narrow ranges of its asserts."""
    numbers: set[float] = set()
    ranges: list[tuple[float, float]] = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        for output in cell["outputs"]:
            data = output.get("data", {})
            for text in (output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")):
                plain_text = re.sub(r"<[^>]+>", " ", "".join(text)).replace("−", "-")
                numbers.update(_numbers_in(plain_text))
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.Assert):
                numbers.update(_constants(node))
                ranges.extend(r for inner in ast.walk(node.test) for r in _ranges(inner))
                ranges.extend(_between(node.test))
    return numbers, ranges


def _numbers_in(text: str) -> list[float]:
    """Of an output's text the numbers with a point, and whole ones with a unit: others are shapes, counts and places."""
    found = re.findall(rf"(-?\d[\d,]*\.\d+(?:e[-+]?\d+)?|-?\d[\d,]*(?={UNIT}))", text)
    return [float(number.replace(",", "")) for number in found]


def _constants(node: ast.AST) -> list[float]:
    found = []
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and type(inner.value) in (int, float):
            found.append(float(inner.value))
        elif isinstance(inner, ast.BinOp | ast.UnaryOp):
            value = _value(inner)
            if value is not None:
                found.append(value)
    return found


def _value(node: ast.AST) -> float | None:
    """What an expression of numbers alone is worth."""
    if all(
        isinstance(n, ast.BinOp | ast.UnaryOp | ast.Constant | ast.operator | ast.unaryop) for n in ast.walk(node)
    ) and all(type(n.value) in (int, float) for n in ast.walk(node) if isinstance(n, ast.Constant)):
        try:
            return float(eval(compile(ast.Expression(node), "", "eval"), {"__builtins__": {}}))
        except (ArithmeticError, TypeError, ValueError, OverflowError):
            return None
    return None


def _ranges(node: ast.AST) -> list[tuple[float, float]]:
    """Of `a < x < b` the range; of `abs(x - a) < b` too."""
    if not isinstance(node, ast.Compare):
        return []
    sides = [_value(side) for side in (node.left, *node.comparators)]
    ends = [side for side in sides if side is not None]
    rising = all(isinstance(op, ast.Lt | ast.LtE) for op in node.ops)
    if rising and len(sides) >= 3 and sides[0] is not None and sides[-1] is not None:
        return [(sides[0], sides[-1])]
    is_distance = isinstance(node.left, ast.Call) and ast.unparse(node.left.func) == "abs" and len(ends) == 1
    if is_distance and isinstance(node.left.args[0], ast.BinOp) and isinstance(node.left.args[0].op, ast.Sub):
        centre = _value(node.left.args[0].right)
        return [] if centre is None else [(centre - ends[0], centre + ends[0])]
    return []


def _between(test: ast.AST) -> list[tuple[float, float]]:
    """The ranges of `(x > a).all() and (x < b).all()`."""
    low, high = {}, {}
    for node in ast.walk(test):
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and (value := _value(node.comparators[0])) is not None:
            ends = low if isinstance(node.ops[0], ast.Gt | ast.GtE) else high
            if isinstance(node.ops[0], ast.Gt | ast.GtE | ast.Lt | ast.LtE):
                ends[ast.unparse(node.left)] = value
    return [(low[name], high[name]) for name in low if name in high]


def is_shown(number: Quoted, numbers: set[float], ranges: list[tuple[float, float]]) -> bool:
    """Whether outputs or asserts hold a number of prose."""
    scales = (1.0, 0.01) if number.percent else (1.0,)
    for scale in scales:
        value, half = number.value * scale, 0.5000001 * 10**-number.digits * scale
        if any(abs(n - value) <= half or abs(-n - value) <= half for n in numbers):
            return True
        for low, high in ranges:
            if low <= value <= high and low > 0 and high <= NARROW * low:
                return True
    return False


def unshown(path: Path) -> list[Quoted]:
    """The numbers of a lesson's prose that no cell of it shows."""
    notebook = shelf.notebook(path)
    numbers, ranges = shown(notebook)
    return [number for number in quoted(notebook) if not is_shown(number, numbers, ranges)]


if __name__ == "__main__":
    for lesson in shelf.paths():
        if not sys.argv[1:] or lesson.name[:2] in sys.argv[1:]:
            for one in unshown(lesson):
                print(f"{one.cell:8} {one.text:>12}   …{one.around}…")
