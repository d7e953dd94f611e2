"""Records in llamacpp.json beside this file what llama.cpp generates from our files: for tests that run without it.

PYTHONPATH=.:kernels:tests/support python tests/checkpoints/gguf/make_recorded.py
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import qkit
from llamacpp import llama_cpp, written
from qkit.methods.registry import parse_scheme
from verdicts import PROMPT

WORDS = ("w4g32sym", "w4g32", "w4g128sym", "w8sym")


def main() -> None:
    texts = {}
    for word in (None, *WORDS):
        model, tokenizer = qkit.load("bookworm-14m")
        if word is not None:
            qkit.quantize(model, parse_scheme(word))
        with tempfile.TemporaryDirectory() as folder:
            path = qkit.save(model, Path(folder) / "model.gguf", tokenizer, format="gguf").path
            texts[word or "F16"] = written(llama_cpp(path), PROMPT)[0]
    made = {"xllamacpp": version("xllamacpp"), "prompt": PROMPT, "texts": texts}
    (Path(__file__).parent / "llamacpp.json").write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
