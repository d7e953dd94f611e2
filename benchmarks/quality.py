"""Quality of every method on bookworm-14m: perplexity and KL on two texts, plain and with planted outliers.

    python benchmarks/quality.py --books books.txt [--device cuda] [--chunks 128] [--out results.json]

Calibration is the first 128 chunks of 511 tokens of the book text, evaluation 100 chunks spread over the rest of it and all
of python-docs-heldout: `--books` takes any long English text, and the figures compare only within one text. Each row is
printed as soon as it is measured, with its ratio to FP32. `--mixed` calibrates on half books, half python-docs instead;
`--tune 3` measures only GPTQ at 3 bits and what `qkit.tune` makes of it.
"""

import argparse
import json
import time
from pathlib import Path

import torch

import qkit
from qkit.model.surgery import clone
from qkit.study.compare import ALL
from qkit.study.reference import Reference
from qkit.text.tokens import calibration_chunks, token_chunks
from qkit.train.tune import own_text

SHAPES = ((4, 128), (3, 128), (2, 64))
INGREDIENTS = {  # GPTQ without one of them at a time
    "without zero points": {"symmetric": True},
    "without scale search": {"scale_search": False},
    "without act-order": {"act_order": False},
    "without matching the original": {"match_original": False},
    "without refitting scales": {"refit_scales": False},
    "without shrinking": {"shrink": 0.0, "damp": 0.01},
}
TUNED = {  # bits: learning rates of scales and of codes
    4: {"learning_rate": 1e-3, "code_rate": 1e-3},
    3: {"learning_rate": 2e-3, "code_rate": 2e-3},
    2: {"learning_rate": 4e-3, "code_rate": 2e-3},
}
OWN_CHUNKS = 512  # written by the original, beside the calibration text


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--books", required=True, help="a long text, e.g. some novels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--chunks", type=int, default=128, help="calibration chunks")
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--ingredients", action="store_true")
    parser.add_argument(
        "--tune", type=int, nargs="+", default=(), metavar="BITS", help="only GPTQ of these bits, tuned"
    )
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
    originals = {text: Reference.of(model, tokenizer, ids, limit=None, progress=False) for text, ids in texts.items()}
    rows: list[dict] = []

    def measure(name: str, quantized, seconds: float) -> None:
        row = {"name": name, "seconds": round(seconds, 2)}
        for text, original in originals.items():
            found = original.evaluate({name: quantized}, progress=False)[name]
            ratio = found.perplexity / original.evaluation.perplexity
            row[text] = {"perplexity": found.perplexity, "ratio": ratio, "kl": found.kl}
        rows.append(row)
        cells = (f"{t} {row[t]['perplexity']:9.3f} x{row[t]['ratio']:.4f} KL {row[t]['kl']:.4f}" for t in texts)
        print(f"{name:40} {'  '.join(cells)}  {seconds:7.2f} s", flush=True)

    def run(scheme, name: str | None = None):
        copy = clone(model)
        report = qkit.quantize(copy, scheme, calibration=calibration, progress=False)
        measure(name or scheme.name, copy, report.seconds)
        return copy

    measure("FP32", clone(model), 0.0)

    def tuned(quantized, name: str, ids: torch.Tensor, **settings) -> None:
        copy, start = clone(quantized), time.perf_counter()
        print(qkit.tune(copy, model, calibration=ids, progress=False, **settings))
        measure(name, copy, time.perf_counter() - start)

    if arguments.ingredients:
        for bits, group_size in SHAPES:
            for name, change in INGREDIENTS.items():
                run(qkit.GPTQ(bits, group_size, **change), f"GPTQ W{bits} g{group_size} {name}")
    elif not arguments.tune:
        for scheme in ALL:
            run(scheme)
    start = time.perf_counter()
    more = torch.cat([calibration, own_text(model, tokenizer, OWN_CHUNKS, progress=False)])
    print(f"{OWN_CHUNKS} chunks of own text in {time.perf_counter() - start:.1f} s", flush=True)
    for bits, group_size in SHAPES:
        if arguments.tune and bits not in arguments.tune:
            continue
        name = f"GPTQ W{bits} g{group_size}"
        copy = run(qkit.GPTQ(bits, group_size), f"{name} (again)")
        tuned(copy, f"{name} + tune, codes fixed", calibration, codes=False, epochs=6, **TUNED[bits])
        tuned(copy, f"{name} + tune", calibration, **TUNED[bits])
        tuned(copy, f"{name} + tune, own text too", more, epochs=6, **TUNED[bits])
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
