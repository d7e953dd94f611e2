"""Whole models on a GPU: how many tokens a second they write, and the memory that it takes (`qkit bench gpu --model`).

A Llama with random weights is made and quantized on the card, layer by layer, so that never more than one layer is there as
floats beside the finished ones. Time does not depend on the numbers. It then writes greedily with a static cache: every step is
the same launches on the same memory, each attending over all positions of the cache, the unwritten ones masked. So a step can be
one CUDA graph, that takes its own token up again, and the host does nothing but replay it. What stands between the products
would take as long as they do, left to itself: norm, gate and attention have kernels (`qkit.bench.gpu_step`), and blocks are
compiled (torch.compile, one graph of the compiler each), which fuses the rest. All that is the same for every row of the table.

qkit's layers that read the same input are one product each, q, k and v, gate and up (`qkit.fuse_projections`); bfloat16 and the
others are as their library leaves them.

To get one token for one sequence, every weight is read once. What a rule of the trade leaves as floats is read too: of 8 billion
parameters the output head, 128256 x 4096 in bfloat16, is 1.05 GB a token, in every row of the table.

Before the clock starts, the logits of a few tokens, computed as they will be timed, are compared with those of the same model in
float32, where every layer takes the plain way: the same codes, dequantized. Random weights pass on and enlarge what is rounded in
each of 32 blocks: the row of bfloat16, which is compared too, says by how much. INT8 activations round differently where a value
differs by a bit, and have four to six times that; a wrong kernel makes an error near 1.
"""

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from qkit.bench import generation
from qkit.bench.generation import name_row, parse_row, synthetic_llama, with_head
from qkit.bench.gpu import check_card, describe_card
from qkit.bench.gpu_step import Cache, attention, begin, block, end
from qkit.bench.peers import int8_on_card, nf4_on_card
from qkit.bench.record import GpuModelMeasurement, GpuModelRecord
from qkit.methods.scheme import Scheme
from qkit.model.fusing import fuse_projections
from qkit.nn.layers import quantized_layers
from qkit.study.sizes import memory_bytes

SIZES: dict[str, dict[str, Any]] = {
    "8B": {  # the shapes of Llama 3.1 8B
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    **generation.SIZES,
}
FLOAT = torch.bfloat16  # of what is not quantized, and of activations
BATCHES = (1, 16)
LENGTH, NEW = 256, 64  # positions of the cache; steps that are timed
FORCED = 8  # tokens whose logits are checked
LIMIT = 0.4  # relative error of logits; see above
GROUPED = "qkit-grouped"  # as transformers calls `attention`
ROOM = 1.15  # of the weights as floats: beside them there are a layer in the making, the cache and activations
GRAPH, LAUNCHED, EAGER = "compiled, one graph", "one graph", "eager"


@dataclass(frozen=True)
class Row:
    """A format of the table.

    Attributes:
        name: as the table calls it.
        what: of `synthetic_llama`.
        ways: how a step may be launched; the first that works is taken.
    """

    name: str
    what: torch.dtype | Scheme | Callable[[Tensor], nn.Module]
    ways: tuple[str, ...] = (GRAPH, LAUNCHED, EAGER)


ROWS = ("bf16", "w4g128", "nf4", "w8a8", "llm.int8", "bitsandbytes-nf4", "bitsandbytes-llm.int8")
PEERS = {
    "bitsandbytes-nf4": Row("bitsandbytes NF4", nf4_on_card),
    "bitsandbytes-llm.int8": Row("bitsandbytes LLM.int8", int8_on_card, (EAGER,)),  # it waits for the host
}


def row_of(word: str) -> Row:
    """ "bf16", a scheme as `parse_scheme` takes it, or one of `PEERS`."""
    if word.lower() in PEERS:
        return PEERS[word.lower()]
    what = parse_row(word)
    if what == torch.float32:
        raise ValueError("row 'fp32' is not what a GPU computes a model in; give bf16")
    return Row(name_row(word), what)


def size_of_card() -> str:
    """The larger of "8B" and "1.1B" that the card has room for in bfloat16."""
    return next((size for size in ("8B", "1.1B") if needed(size) <= _free()), "160M")


def parameters_of(size: str) -> int:
    """How many the model has: what a layer stores does not always say it."""
    config = SIZES[size]
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    block = 2 * hidden * (hidden + keys) + 3 * hidden * inner + 2 * hidden
    return config["num_hidden_layers"] * block + 2 * hidden * config["vocab_size"] + hidden


def needed(size: str) -> int:
    """Bytes of memory for the row that takes most, bfloat16."""
    return int(ROOM * FLOAT.itemsize * parameters_of(size))


def _free() -> int:
    return torch.cuda.mem_get_info()[0]


def progress(text: str) -> None:
    """Tell how far it is, and when, into a file too: a table takes minutes, and what hangs is known by what it said last."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


# ---- one step


def _compiled(part: Callable[..., Any]) -> Callable[..., Any]:
    """As one graph; kernels that do not wait for each other are one launch, and one that does is launched before the one ahead of
    it has ended, where this torch and this card can do that.
    """
    from torch import _inductor

    known = _inductor.list_options()
    options: dict[str, Any] = {name: True for name in ("combo_kernels", "triton.enable_pdl") if name in known}
    return torch.compile(part, fullgraph=True, dynamic=False, options=options or None)


class Writer:
    """Writes one token after the other, for each sequence of a batch.

    Attributes:
        ids: int64 [batch, 1], the token that is read next; a step puts there the one that it found.
        position: int64 [1], where in the sequence that is.
        logits: [batch, vocabulary] of the last step.
    """

    def __init__(self, network: nn.Module, batch: int, length: int, compiled: bool) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(GROUPED, attention)
        config, weight = network.config, network.model.embed_tokens.weight
        config._attn_implementation, device = GROUPED, weight.device
        self.network, self.length = network, length
        self.ids = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (batch, config.num_key_value_heads, length, dim)
        self.caches = [Cache(shape, self.position, weight.dtype) for _ in network.model.layers]
        self.logits = torch.zeros(batch, config.vocab_size, dtype=weight.dtype, device=device)
        for layer in network.model.layers:
            layer.self_attn.layer_idx = 0  # each has a cache of its own, and all are one graph of the compiler
        parts = (begin, block, end)
        self._parts = [_compiled(part) for part in parts] if compiled else parts

    def step(self) -> None:
        """Read `ids` at `position`, and go on to the next."""
        first, middle, last = self._parts
        x, more, *beside = first(self.network.model, self.ids, self.position, self.length)
        for one, cache in zip(self.network.model.layers, self.caches, strict=True):
            x, more = middle(one, x, more, *beside, cache)
        logits, ids = last(self.network.model.norm, self.network.lm_head, x, more)
        self.logits.copy_(logits)
        self.ids.copy_(ids)
        self.position.add_(1)

    def rewind(self) -> None:
        """To the beginning."""
        self.position.zero_()


def launcher(writer: Writer, way: str) -> Callable[[], Any]:
    """What takes one step: the writer itself, or the replay of a graph that holds a step."""
    if way == EAGER:
        return writer.step
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # compiled, laid out and warm before it is captured
        for _ in range(2):
            writer.rewind()
            writer.step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        writer.step()
    return graph.replay


# ---- the check, and the clock


def logits_of_float32(network: nn.Module, ids: Tensor) -> Tensor | None:
    """float32 [batch, tokens, vocabulary] of ids [batch, tokens]: everything in float32, and every layer the plain way; None
    where the card has no room for it.
    """
    floats = list(network.parameters())  # and no buffers: the frequencies of the rotation are float32 in any case
    attention, network.config._attn_implementation = network.config._attn_implementation, "sdpa"
    try:
        for parameter in floats:
            parameter.data = parameter.data.float()
        return network(input_ids=ids, use_cache=False).logits
    except torch.OutOfMemoryError:
        return None
    finally:
        network.config._attn_implementation = attention
        for parameter in floats:
            parameter.data = parameter.data.to(FLOAT)


def error(writer: Writer, step: Callable[[], Any], ids: Tensor, expected: Tensor) -> float:
    """||logits - expected|| / ||expected|| over all tokens of ids [batch, tokens], given one by one.

    Raises:
        ArithmeticError: it is above `LIMIT`, or NaN.
    """
    writer.rewind()
    wrong = 0.0
    for place in range(ids.shape[1]):
        writer.ids.copy_(ids[:, place : place + 1])
        writer.logits.fill_(torch.nan)
        step()
        wrong += float((writer.logits.float() - expected[:, place]).square().sum())
    found = (wrong / float(expected.square().sum())) ** 0.5
    if not found < LIMIT:
        raise ArithmeticError(
            f"its logits are off by {found:.1e} of what the same codes make in float32, where rounding explains {LIMIT}"
        )
    return found


def seconds_of(writer: Writer, step: Callable[[], Any], new: int) -> tuple[float, ...]:
    """Of each of so many steps, by the card's clock; one before them is not counted."""
    writer.rewind()
    step()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(new + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize()
    return tuple(a.elapsed_time(b) / 1e3 for a, b in pairwise(marks))


@torch.no_grad()
def measure(
    size: str, row: Row, batches: Sequence[int], length: int, new: int, head: bool = False
) -> list[GpuModelMeasurement]:
    """One model in one format, in this process, at each size of batch.

    Args:
        head: the output head is quantized too.

    Raises:
        ArithmeticError: its logits are wrong.
    """
    torch.compiler.reset()  # the graphs of the row before
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    network = synthetic_llama(SIZES[size], row.what, device="cuda", dtype=FLOAT, head=head)
    progress("  made")
    nbytes, making = memory_bytes(network), torch.cuda.max_memory_allocated()
    layers = quantized_layers(network)
    ids = torch.randint(0, network.config.vocab_size, (max(batches), FORCED), device="cuda")
    ours = layers or isinstance(row.what, torch.dtype)
    expected = logits_of_float32(network, ids) if ours else None
    fuse_projections(network)
    progress("  its logits in float32" if expected is not None else "  nothing to compare its logits with")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    found = []
    for batch in batches:
        writer, step, way = _launched(network, batch, length, row.ways)
        progress(f"  {batch} at once: {way}")
        wrong = None if expected is None else error(writer, step, ids[:batch], expected[:batch])
        seconds = seconds_of(writer, step, new)
        progress(f"  {batch} at once: timed")
        held, laying = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        found.append(
            GpuModelMeasurement(
                model=size,
                row=with_head(row.name, network, head),
                batch=batch,
                way=way,
                length=length,
                parameters=parameters_of(size),
                nbytes=nbytes,
                head_bytes=memory_bytes(network.lm_head),
                held_bytes=held - before,
                peak_bytes=max(making, laying) - before,
                error=wrong,
                step_seconds=seconds,
            )
        )
        del writer, step
    return found


def _launched(
    network: nn.Module, batch: int, length: int, ways: Sequence[str]
) -> tuple[Writer, Callable[[], Any], str]:
    """The first way that works: not every layer can be compiled or captured, and not every machine has a compiler."""
    for way in ways[:-1]:
        try:
            writer = Writer(network, batch, length, compiled=way == GRAPH)
            return writer, launcher(writer, way), way
        except Exception as why:
            print(f"not {way}: {str(why).splitlines()[0] if str(why) else type(why).__name__}", file=sys.stderr)
    writer = Writer(network, batch, length, compiled=ways[-1] == GRAPH)
    return writer, launcher(writer, ways[-1]), ways[-1]


def run(
    size: str | None = None,
    rows: Sequence[str] = ROWS,
    batches: Sequence[int] = BATCHES,
    length: int = LENGTH,
    new: int = NEW,
    head: bool = False,
) -> GpuModelRecord:
    """`measure` for each row.

    Args:
        size: of `SIZES`; None: 8B where the card has room for it.
        rows: as `row_of` takes them.
        batches: sequences at once.
        length: positions of the static cache.
        new: steps that are timed.
        head: the output head is quantized too.

    Raises:
        ValueError: no card is here, a size or row is not known, or the model does not fit.
        ImportError: Triton is not installed.
    """
    chosen = [row_of(word) for word in rows]
    if size is not None and size not in SIZES:
        raise ValueError(f"params={size!r} is not one of {', '.join(SIZES)}; give one of these")
    if wrong := [batch for batch in batches if batch < 1]:
        raise ValueError(f"batch={wrong[0]} is no number of sequences; give 1 or more")
    if not FORCED < new < length:
        raise ValueError(
            f"new={new} steps do not fit a cache of length={length}; give more than {FORCED} and fewer than that"
        )
    check_card()
    size = size_of_card() if size is None else size
    if needed(size) > _free():
        raise ValueError(
            f"params={size!r} takes {needed(size) / 1e9:.0f} GB in bfloat16, and {_free() / 1e9:.0f} GB are free on the card; "
            f"give a smaller one of {', '.join(SIZES)}"
        )
    found: list[GpuModelMeasurement] = []
    missing: dict[str, str] = {}
    machine = describe_card()
    for number, row in enumerate(chosen, 1):
        progress(f"{number} of {len(chosen)}: {size}, {row.name}")
        try:
            found += measure(size, row, batches, length, new, head)
        except (ArithmeticError, ImportError, torch.OutOfMemoryError) as why:
            missing[row.name] = str(why)
    return GpuModelRecord(machine, tuple(found), missing)
