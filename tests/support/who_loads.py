"""README's table of who loads what: a row a format, judge and direction of data/measured/judges.json, the worst of its schemes.

python tests/support/who_loads.py          writes it into README.md (make claims, make judges)
"""

import re
from pathlib import Path

from qkit.bench.judged import READS_OURS, Judge, Judged, Judgement, judged

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- judges: made by `make judges` -->\n", "<!-- judges end -->\n"
HEAD = """| format | written by | read by | what | weights | logits differ by | KL (nats) | text |
|---|---|---|---|---|---|---|---|
"""


def table(record: Judged) -> str:
    """The rows, and when and where they were measured, in Markdown."""
    rows: dict[tuple[str, str, bool, bool], list[Judgement]] = {}
    for one in record.verdicts:
        key = (one.format, one.judge, one.direction != READS_OURS, _rounds_inputs(one))
        rows.setdefault(key, []).append(one)
    lines = [_row(record.judge(key[1]), rows[key]) for key in sorted(rows)]
    return HEAD + "".join(lines) + "\n" + _where(record)


def _rounds_inputs(one: Judgement) -> bool:
    """Whether qkit or the judge does, so that a last bit may tip a step."""
    return bool(re.search("W8A8|LLM.int8|SmoothQuant", one.scheme)) or (one.format == "gguf" and one.scheme != "F16")


def _row(judge: Judge, verdicts: list[Judgement]) -> str:
    first = verdicts[0]
    writer, reader = ("qkit", judge.label) if first.direction == READS_OURS else (judge.name, "qkit")
    cells = (
        *(f"`{first.format}`", writer, reader, _what(verdicts), _weights(verdicts)),
        *(f"{max(one.error for one in verdicts):.1g}", f"{max(one.kl for one in verdicts):.1g}", _text(verdicts)),
    )
    return "| " + " | ".join(cells) + " |\n"


def _what(verdicts: list[Judgement]) -> str:
    """Schemes, by model where it is not the embedded one."""
    models: dict[str, list[str]] = {}
    for one in verdicts:
        models.setdefault(one.model, []).append(one.scheme.removeprefix("RTN "))
    parts = [", ".join(names) + ("" if model == "bookworm-14m" else f" ({model})") for model, names in models.items()]
    return "; ".join(parts)


def _weights(verdicts: list[Judgement]) -> str:
    """Whether they are the same, and in which dtype the judge gives them out."""
    given = [one for one in verdicts if one.weights_dtype]
    if not given:
        return "not told"
    if not all(one.weights_equal for one in given):
        return "the last bit differs"
    return f"equal, {' and '.join(sorted({one.weights_dtype or '' for one in given}))}"


def _text(verdicts: list[Judgement]) -> str:
    """Of models that were trained: the text of a random one turns with the last bit."""
    told = [one for one in verdicts if "random" not in one.model]
    same = sum(one.same_text for one in told)
    return "–" if not told else "the same" if same == len(told) else f"the same in {same} of {len(told)}"


def _where(record: Judged) -> str:
    dates = sorted({judge.date for judge in record.judges})
    processors = " and ".join(sorted({judge.cpu for judge in record.judges}))
    return f"Measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))} on {processors}.\n"


def written(page: str, record: Judged) -> str:
    """README with the table in its place."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table(record) + END + rest.split(END)[1]


def quoted(page: str) -> str:
    """The table as a page has it."""
    found = re.search(re.escape(BEGIN) + "(.*?)" + re.escape(END), page, re.S)
    return found[1] if found else ""


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8"), judged()), encoding="utf-8")
