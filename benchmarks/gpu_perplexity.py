"""The same codes on the CPU and on a GPU: the perplexity of bookworm-14m by every kind of scheme.

python benchmarks/gpu_perplexity.py [--chunks 8] [--out results.json]

A model is quantized on the CPU and moved, codes and all. On the CPU it is evaluated in float32, as everywhere, and in float64,
where every layer takes the plain way: how far the two are apart is what rounding alone does to a scheme, which is much where INT8
codes of activations hang on it. On the GPU it is evaluated in float32, the plain way, and in float16 and bfloat16, which are
Triton kernels; the first row, the float model, says what these dtypes do by themselves.
"""

import argparse
import json
from copy import deepcopy
from pathlib import Path

import torch

import qkit
from qkit.methods.registry import parse_scheme

WORDS = (
    "w8", "w4", "w4g128", "w4g32", "w3g128", "w2g64", "w4a8g128", "nf4", "fp4", "llm.int8", "w8a8", "w8a8-static",
    "smoothquant-0.5", "smoothquant-0.5-static", "awq-w4g128", "gptq-w4g128",
)  # fmt: skip
COLUMNS = (
    ("CPU float32", "cpu", torch.float32),
    ("CPU float64", "cpu", torch.float64),
    ("GPU float32", "cuda", torch.float32),
    ("GPU float16", "cuda", torch.float16),
    ("GPU bfloat16", "cuda", torch.bfloat16),
)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--schemes", nargs="+", default=WORDS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text, learned, found = qkit.texts("python-docs-heldout"), qkit.texts("python-docs"), {}
    arguments.columns = COLUMNS if torch.cuda.is_available() else COLUMNS[:2]
    print("| scheme | " + " | ".join(name for name, _, _ in arguments.columns) + " |", flush=True)
    for word in (None, *arguments.schemes):
        model, tokenizer = qkit.load("bookworm-14m")
        row = "float"
        if word is not None:
            scheme = parse_scheme(word)
            row, data = scheme.name, learned if scheme.calibrated else None
            qkit.quantize(model, scheme, calibration=data, tokenizer=tokenizer, max_chunks=32, progress=False)
        found[row] = {}
        for name, device, dtype in arguments.columns:
            moved = deepcopy(model).to(device).to(dtype)
            found[row][name] = qkit.perplexity(moved, tokenizer, text, max_chunks=arguments.chunks, progress=False)
        print(f"| {row} | " + " | ".join(f"{value:.4f}" for value in found[row].values()) + " |", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
