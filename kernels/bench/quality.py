"""Quality of every method on bookworm-14m: perplexity and KL on two texts, plain and with planted outliers.

    python kernels/bench/quality.py --books books.txt [--device cuda] [--chunks 128] [--out results.json]

Calibration is the first 128 chunks of 511 tokens of the book text, evaluation 100 chunks spread over the rest of it and all
of python-docs-heldout: `--books` takes any long English text, and the figures compare only within one text. Each row is
printed as soon as it is measured, with its ratio to FP32. `--mixed` calibrates on half books, half python-docs instead.
"""

import argparse
import json
import time
from pathlib import Path

import torch

import qkit
from qkit.calibration import calibration_chunks
from qkit.compare import ALL
from qkit.evaluate import evaluate
from qkit.surgery import clone
from qkit.tokens import token_chunks

SHAPES = ((4, 128), (3, 128), (2, 64))
INGREDIENTS = {  # GPTQ without one of them at a time
    "without zero points": {"symmetric": True},
    "without scale search": {"scale_search": False},
    "without act-order": {"act_order": False},
    "without matching the original": {"match_original": False},
    "without refitting scales": {"refit_scales": False},
    "without shrinking": {"shrink": 0.0, "damp": 0.01},
}
TUNED = {4: 1e-3, 3: 2e-3, 2: 4e-3}  # bits: learning rate; 6 passes over the calibration text


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", required=True, help="a long text, e.g. some novels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--chunks", type=int, default=128, help="calibration chunks")
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--ingredients", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    model, tokenizer = qkit.load("bookworm-14m")
    books = token_chunks(qkit.texts(arguments.books), tokenizer)
    calibration, rest = books[: arguments.chunks], books[128:]
    if arguments.mixed:
        docs = calibration_chunks(qkit.texts("python-docs"), tokenizer, max_chunks=arguments.chunks // 2)
        calibration = torch.cat([calibration[::2], docs])
    texts = {
        "books": rest[torch.linspace(0, len(rest) - 1, 100).round().long()],
        "docs": token_chunks(qkit.texts("python-docs-heldout"), tokenizer),
    }
    model.to(arguments.device)
    if arguments.planted:
        qkit.plant_outliers(model, [7, 200], 64.0)
    rows: list[dict] = []

    def measure(name: str, quantized, seconds: float) -> None:
        row = {"name": name, "seconds": round(seconds, 2)}
        for text, ids in texts.items():
            found = evaluate({"original": model, "quantized": quantized}, tokenizer, ids, progress=False)
            ratio = found["quantized"].perplexity / found["original"].perplexity
            row[text] = {"perplexity": found["quantized"].perplexity, "ratio": ratio, "kl": found["quantized"].kl}
        rows.append(row)
        cells = (f"{t} {row[t]['perplexity']:9.3f} x{row[t]['ratio']:.4f} KL {row[t]['kl']:.4f}" for t in texts)
        print(f"{name:40} {'  '.join(cells)}  {seconds:7.2f} s", flush=True)

    def run(scheme, name: str | None = None):
        copy = clone(model)
        report = qkit.quantize(copy, scheme, calibration=calibration, progress=False)
        measure(name or scheme.name, copy, report.seconds)
        return copy

    measure("FP32", clone(model), 0.0)
    if arguments.ingredients:
        for bits, group_size in SHAPES:
            for name, change in INGREDIENTS.items():
                run(qkit.GPTQ(bits, group_size, **change), f"GPTQ W{bits} g{group_size} {name}")
    else:
        for scheme in ALL:
            run(scheme)
    for bits, group_size in SHAPES:
        copy = run(qkit.GPTQ(bits, group_size), f"GPTQ W{bits} g{group_size} (again)")
        start = time.perf_counter()
        tuned = {"epochs": 6, "learning_rate": TUNED[bits], "progress": False}
        qkit.tune(copy, model, calibration=calibration, **tuned)
        measure(f"GPTQ W{bits} g{group_size} + tune", copy, time.perf_counter() - start)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
