"""Whole models: how fast they read a prompt (prefill) and write (generation), and the memory that it takes.

Each format is measured in a fresh process, so that its peak of memory is its own and the threads of nothing else are in the
way. Large models are synthetic: the architecture of a real one with random weights, made and quantized layer by layer, so
that no more is ever in memory than the finished model and one layer in float32. Time does not depend on the numbers.

A prompt is bound by arithmetic: all its tokens share each weight that is read. A generated token is bound by memory: to get
it, every weight is read once. What a rule of the trade leaves in float32, the output head, is read too: of 1.1 billion
parameters in 4 bits it is 66 million and a third of the bytes.
"""

import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from qkit.bench.child import answer, ask
from qkit.bench.record import ModelMeasurement, ModelRecord, core_count, describe_machine
from qkit.checkpoints.load import EMBEDDED, load
from qkit.checkpoints.skeleton import parameters_without_memory
from qkit.engine.quantize import quantize
from qkit.engine.solve import solve_layer
from qkit.methods.registry import parse_scheme
from qkit.methods.scheme import Scheme
from qkit.model.memory import give_back_memory
from qkit.model.surgery import select_layers, set_parameter, swap
from qkit.nn.layers import quantized_layers
from qkit.study.sizes import memory_bytes

_LLAMA = {"vocab_size": 32000, "max_position_embeddings": 2048, "tie_word_embeddings": False}
SIZES: dict[str, dict[str, Any]] = {  # the shapes of TinyLlama 1.1B and of a Llama of 160 million parameters
    "1.1B": {
        **_LLAMA,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "160M": {
        **_LLAMA,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
    },
}
PLAIN = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODELS = ("bookworm-14m", "1.1B")
ROWS = ("fp32", "bf16", "w8", "w4g128", "w4a8g128", "nf4")
PROMPT, BEFORE, NEW = 128, 16, 32  # tokens: of the prefill; of the prompt before generation; generated
REPEATS = 3  # of the prefill
STD = 0.02  # of random weights


def parse_row(row: str) -> torch.dtype | Scheme:
    """ "fp32", "bf16", or a scheme as `parse_scheme` takes it."""
    if row.lower() in PLAIN:
        return PLAIN[row.lower()]
    scheme = parse_scheme(row)
    if scheme.calibrated:
        raise ValueError(f"scheme {row!r} learns from data, which random weights have none of; give e.g. w4g128 or nf4")
    return scheme


def name_row(row: str) -> str:
    """As the table calls it: "FP32", "RTN W4A8 g128"."""
    what = parse_row(row)
    return what.name if isinstance(what, Scheme) else row.upper()


def with_head(name: str, network: nn.Module, head: bool) -> str:
    """A row's name, that says so where the output head is quantized too."""
    return f"{name}, head too" if head and quantized_layers(network) else name


@torch.no_grad()
def synthetic_llama(
    config: dict[str, Any],
    what: torch.dtype | Scheme | Callable[[Tensor], nn.Module],
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    head: bool = False,
) -> nn.Module:
    """A Llama with random weights, each layer made in float and then quantized, or cast, before the next is made.

    Args:
        config: arguments of transformers' `LlamaConfig`.
        what: a dtype, or a scheme that needs no data, or what makes a layer of a weight: the output head and the embedding stay
            in `dtype`.
        seed: of the weights.
        device: where they are drawn, and the model is.
        dtype: in which they are drawn.
        head: the output head is quantized too.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    with parameters_without_memory():
        model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    generator = torch.Generator(device).manual_seed(seed)

    def draw(shape: Sequence[int]) -> Tensor:
        if len(shape) == 1:
            return torch.ones(*shape, device=device, dtype=dtype)  # a norm
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype).mul_(STD)

    def layer(name: str, weight: Tensor) -> nn.Module:
        return solve_layer(weight, None, what, None, name).layer if isinstance(what, Scheme) else what(weight)

    if not isinstance(what, torch.dtype):
        for target in select_layers(model, include="*" if head else None)[0]:
            swap(model, {target.name: layer(target.name, draw(target.weight.shape))})
            give_back_memory()
    last = what if isinstance(what, torch.dtype) else dtype
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            set_parameter(model, name, nn.Parameter(draw(parameter.shape).to(last), requires_grad=False))
    return model.to(device)


def build(model: str, row: str, head: bool = False) -> nn.Module:
    """The model of a row: an embedded one by its name, or a synthetic Llama by its size; `head`: with its head quantized too."""
    what = parse_row(row)
    if model not in EMBEDDED:
        return synthetic_llama(SIZES[model], what, head=head)
    network, _ = load(model)
    if isinstance(what, Scheme):
        quantize(network, what, include="*" if head else None, progress=False)
    else:
        network.to(what)
    return network


@torch.inference_mode()
def time_model(
    network: nn.Module,
    prompt: int = PROMPT,
    before: int = BEFORE,
    new: int = NEW,
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, tuple[float, ...]]:
    """(seconds of a prefill, the median of several; seconds of each generated token).

    The tokens are generated greedily behind a short prompt, one forward pass each, with the KV cache. Only the last token's
    logits are computed in a prefill, as in real use. One token and one prefill before them are not counted.
    """
    ids = torch.arange(max(prompt, before))[None] % network.config.vocab_size

    def forward(tokens: Tensor, cache=None):
        return network(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)

    forward(ids[:, :prompt])
    reading = []
    for _ in range(repeats):
        start = clock()
        forward(ids[:, :prompt])
        reading.append(clock() - start)
    out = forward(ids[:, :before])
    writing = []
    for _ in range(new + 1):
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        start = clock()
        out = forward(token, out.past_key_values)
        writing.append(clock() - start)
    return median(reading), tuple(writing[1:])


def resident_bytes() -> tuple[int, int] | None:
    """Memory of this process now, and the most that it ever was; None where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None  # `resource` knows the peak only, and in bytes or kilobytes as the system likes
    text = status.read_text()
    now, peak = (1024 * int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) for name in ("VmRSS", "VmHWM"))
    return now, peak


def measure(model: str, row: str, prompt: int = PROMPT, new: int = NEW, head: bool = False) -> ModelMeasurement:
    """One model in one format, in this process, with as many threads as torch has."""
    import transformers.models.llama.modeling_llama  # noqa: F401  (counted as idle, not as the model's)

    idle = resident_bytes()
    network = build(model, row, head)
    parameters = sum(p.numel() for p in network.parameters())
    parameters += sum(layer.in_features * layer.out_features for layer in quantized_layers(network).values())
    prefill, tokens = time_model(network, prompt, new=new)
    return ModelMeasurement(
        model=model,
        row=with_head(name_row(row), network, head),
        threads=torch.get_num_threads(),
        parameters=parameters,
        nbytes=memory_bytes(network),
        prompt=prompt,
        prefill_seconds=prefill,
        token_seconds=tokens,
        idle_bytes=idle and idle[0],
        peak_bytes=idle and resident_bytes()[1],
    )


def run(
    models: Sequence[str] = MODELS,
    rows: Sequence[str] = ROWS,
    threads: int | None = None,
    prompt: int = PROMPT,
    new: int = NEW,
    head: bool = False,
) -> ModelRecord:
    """`measure` for each model and row, each in a fresh process; `head`: the output head is quantized too.

    Raises:
        ValueError: a model, a row or a number of threads that cannot be measured.
    """
    threads = core_count() if threads is None else threads
    if not 1 <= threads <= core_count():
        raise ValueError(f"threads={threads} on {core_count()} cores would time waiting; give 1 to {core_count()}")
    for model in models:
        if model not in EMBEDDED and model not in SIZES:
            raise ValueError(f"params={model!r} is not one of {', '.join((*EMBEDDED, *SIZES))}; give one of these")
    names = {row: name_row(row) for row in rows}
    requests = [(model, row) for model in models for row in names]
    machine, measurements = describe_machine(), []
    for number, (model, row) in enumerate(requests, 1):
        if sys.stderr.isatty():
            print(f"{number} of {len(requests)}: {model}, {names[row]}", file=sys.stderr)
        request = {"model": model, "row": row, "prompt": prompt, "new": new, "head": head}
        measurements.append(ModelMeasurement.from_dict(ask("qkit.bench.generation", request, threads)))
    return ModelRecord(machine, tuple(measurements))


def _answer(**request: Any) -> dict[str, Any]:
    return measure(**request).to_dict()


if __name__ == "__main__":
    answer(_answer)
