"""Is the text that qkit judges on clean? Runs of 13 words in common with other texts, and each passage's perplexity.

    python benchmarks/clean_text.py [TEXT ...]     # e.g. the books that bookworm-14m was trained on, .txt or .txt.xz

writes data/tales/README.md. A word is a run of letters and digits in lower case, so that neither punctuation nor line breaks
hide a borrowed sentence; 13 of them in a row are what the papers on contamination count (T. Brown et al., Language Models are
Few-Shot Learners, 2020, appendix C). python-docs and python-docs-heldout are always compared, and so are the passages with
each other.
"""

import argparse
import lzma
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import qkit
from qkit.study.evaluate import evaluate
from qkit.text.corpora import passages

RUN = 13
TALES = Path(__file__).parents[1] / "data" / "tales"
INTRODUCTION = """# Tales

{count} passages of English prose, {words:,} words, to judge quantized models on: `qkit.passages("tales")`, or
`qkit.texts("tales")` for all of them as one text.

They were written for qkit in November 2026, when bookworm-14m and SmolLM2 had been trained: stories, letters, travel, crafts and
sciences explained, memoir, documents of places that do not exist, dialogue. A language model wrote them, in several voices and
from no source; that makes them new to every model that is older, and not a sample of what people write. Nobody and nothing in
them is real, except where something is explained. Free like the rest of the repository (MIT). Please do not train on them.

Longest run of words that a passage has in common with another text (`python benchmarks/clean_text.py`; under {run} words in a
row is what papers on contamination call clean): {longest}.

Perplexity of bookworm-14m in FP32, chunks of 511 tokens behind a BOS, each passage by itself; {whole:.2f} over all:

| passage | words | tokens | perplexity |
|---|---|---|---|
"""


def words_of(text: str) -> list[str]:
    """Letters and digits in lower case, without what stands between them."""
    return re.findall(r"[a-z0-9]+", text.lower())


def longest_run(text: list[str], others: Iterable[list[str]]) -> int:
    """How many words in a row of `text` stand, in the same order, in one of `others`; up to 13 exactly."""
    runs = [{tuple(text[i : i + n]) for i in range(len(text) - n + 1)} for n in range(RUN + 1)]
    found = 0
    for other in others:
        for i in range(len(other)):
            while found < RUN and i + found < len(other) and tuple(other[i : i + found + 1]) in runs[found + 1]:
                found += 1
    return found


def open_text(path: Path) -> str:
    """A text, unpacked where its name says that it is packed."""
    if path.suffix == ".xz":
        with lzma.open(path, "rt", encoding="utf-8") as file:
            return file.read()
    return path.read_text(encoding="utf-8")


def compared(names: list[Path]) -> Iterator[tuple[str, list[str]]]:
    """Name and words of every text that the passages are held against."""
    for name in ("python-docs", "python-docs-heldout"):
        yield name, words_of(qkit.texts(name))
    for path in names:
        yield path.name.split(".xz")[0], words_of(open_text(path))


def main() -> None:
    """Check, measure, write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="*", type=Path, help="texts that a model was trained on")
    arguments = parser.parse_args()
    tales = passages("tales")
    names = [path.stem for path in sorted(TALES.glob("*.txt"))]
    words = [words_of(tale) for tale in tales]
    together = [word for tale in words for word in [*tale, "|"]]  # no run goes from one into the next
    longest = {name: longest_run(together, [other]) for name, other in compared(arguments.texts)}
    longest["each other"] = max(longest_run(tale, words[:i]) for i, tale in enumerate(words))
    if any(run >= RUN for run in longest.values()):
        raise SystemExit(f"not clean: {longest}")
    model, tokenizer = qkit.load("bookworm-14m")
    found = evaluate({"FP32": model}, tokenizer, tales)["FP32"]
    said = ", ".join(f"{run} with {name}" for name, run in longest.items())
    card = INTRODUCTION.format(
        count=len(tales), words=sum(len(t.split()) for t in tales), run=RUN, longest=said, whole=found.perplexity
    )
    for name, tale, one in zip(names, tales, found.passages, strict=True):
        card += f"| {name} | {len(tale.split())} | {one.tokens:,} | {math.exp(one.nll):.1f} |\n"
    (TALES / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
