"""`qkit bench gpu --model` where there is no card: a toy that writes on the CPU, one step at a time and by the compiler."""

import io
import json
import re

import pytest
import torch
from rich.console import Console
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from qkit.bench import gpu_generation as bench
from qkit.bench import tables
from qkit.bench.generation import synthetic_llama
from qkit.bench.record import GpuModelMeasurement, GpuModelRecord
from qkit.nn.qlinear import QLinear

TOY = {
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WORDS = ("bf16", "w4g32", "nf4", "w8a8", "llm.int8")


def toy(word):
    return synthetic_llama(TOY, bench.row_of(word).what, dtype=torch.bfloat16)


@pytest.fixture
def ids():
    return torch.randint(0, 100, (3, bench.FORCED), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("word", WORDS)
def test_what_is_written_is_what_the_whole_model_says(word, ids):
    network = toy(word)
    expected = bench.logits_of_float32(network, ids)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16} and expected.dtype == torch.float32
    writer = bench.Writer(network, len(ids), 32, compiled=False)
    assert bench.error(writer, writer.step, ids, expected) < bench.LIMIT / 4
    assert writer.position.item() == ids.shape[1] and torch.equal(writer.ids, writer.logits.argmax(-1, keepdim=True))


@torch.no_grad()
def test_the_head_is_quantized_where_it_is_asked_for(ids):
    network = synthetic_llama(TOY, bench.row_of("w4g32").what, dtype=torch.bfloat16, head=True)
    assert isinstance(network.lm_head, QLinear) and not isinstance(toy("w4g32").lm_head, QLinear)
    expected = bench.logits_of_float32(network, ids)
    writer = bench.Writer(network, len(ids), 32, compiled=False)
    assert bench.error(writer, writer.step, ids, expected) < bench.LIMIT / 4


@torch.no_grad()
def test_where_there_is_no_room_for_float32_nothing_is_compared_and_all_is_as_it_was(ids, monkeypatch):
    network = toy("bf16")

    def full(**_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(network, "forward", full)
    assert bench.logits_of_float32(network, ids) is None
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}


@torch.no_grad()
def test_a_step_reads_the_token_that_the_step_before_found(ids):
    network = toy("bf16")
    writer, written = bench.Writer(network, 3, 32, compiled=False), []
    writer.ids.copy_(ids[:, :1])
    for _ in range(5):
        written.append(writer.ids.clone())
        writer.step()
    network.config._attn_implementation = "sdpa"  # of all tokens at once
    logits = network(input_ids=torch.cat(written, 1), use_cache=False).logits
    network.config._attn_implementation = bench.GROUPED
    torch.testing.assert_close(writer.logits, logits[:, -1], rtol=0.05, atol=0.05)
    writer.rewind()
    writer.ids.copy_(ids[:, :1])
    writer.step()
    assert torch.equal(writer.ids, written[1]), "what an earlier run left in the cache is seen"


@torch.no_grad()
def test_all_blocks_are_one_graph_of_the_compiler(ids, monkeypatch):
    """As on a card, where a layer is one operation: nothing breaks (fullgraph) and no block is compiled anew."""
    counters, compiler = {}, torch.compile

    def count(part, options, **more):
        known = {"combo_kernels", "triton.enable_pdl"}  # of torch's own compiler, which is not the one here
        assert set(options or ()) <= known and all((options or {}).values())
        counters[part.__name__] = CompileCounterWithBackend("eager")
        return compiler(part, backend=counters[part.__name__], **more)

    monkeypatch.setattr(torch, "compile", count)
    monkeypatch.setattr(QLinear, "is_operation", lambda self, x: torch.compiler.is_compiling())
    torch.compiler.reset()
    network = toy("w4g32")
    expected = bench.logits_of_float32(network, ids)
    writer = bench.Writer(network, 3, 32, compiled=True)
    assert bench.error(writer, writer.step, ids, expected) < bench.LIMIT / 4
    assert [counter.frame_count for counter in counters.values()] == [1, 1, 1]


@torch.no_grad()
@pytest.mark.parametrize("damage", [lambda y: y.roll(1, -1), lambda y: y * torch.nan], ids=["off", "nan"])
def test_logits_that_are_wrong_end_a_row(ids, damage):
    network = toy("w4g32")
    expected = bench.logits_of_float32(network, ids)
    network.lm_head.register_forward_hook(lambda module, x, y: damage(y))
    writer = bench.Writer(network, 3, 32, compiled=False)
    with pytest.raises(ArithmeticError, match="its logits are off by"):
        bench.error(writer, writer.step, ids, expected)


def test_layers_of_others_take_the_place_of_linear_ones():
    made = []

    def make(weight):
        made.append(weight.shape)
        layer = nn.Linear(*reversed(weight.shape), bias=False, dtype=weight.dtype)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return layer

    network = synthetic_llama(TOY, make, dtype=torch.bfloat16)
    assert len(made) == 7 * TOY["num_hidden_layers"] and not any(p.is_meta for p in network.parameters())
    plain = synthetic_llama(TOY, torch.bfloat16, dtype=torch.bfloat16)
    assert [p.shape for p in network.parameters()] == [p.shape for p in plain.parameters()]


def test_a_way_that_fails_gives_way_to_the_next(monkeypatch, capsys):
    tried = []

    def launcher(writer, way):
        tried.append(way)
        if way != bench.EAGER:
            raise RuntimeError(f"cannot be {way}\nand more")
        return writer.step

    monkeypatch.setattr(bench, "launcher", launcher)
    _, _, way = bench._launched(toy("bf16"), 1, 16, bench.Row("any", torch.bfloat16).ways)
    assert tried == ["compiled, one graph", "one graph", "eager"] and way == "eager"
    assert "not one graph: cannot be one graph\n" in capsys.readouterr().err


@pytest.mark.parametrize("config", [TOY, {**TOY, "num_key_value_heads": 4, "intermediate_size": 192}])
def test_parameters_are_counted_from_the_shapes(config, monkeypatch):
    monkeypatch.setitem(bench.SIZES, "toy", config)
    assert bench.parameters_of("toy") == sum(p.numel() for p in synthetic_llama(config, torch.bfloat16).parameters())
    assert bench.parameters_of("8B") == 8_030_261_248  # as Llama 3.1 8B's card says
    assert bench.needed("8B") == pytest.approx(1.15 * 2 * 8_030_261_248)


@pytest.mark.parametrize(("free", "size"), [(80e9, "8B"), (16e9, "1.1B"), (2e9, "160M")])
def test_the_model_is_as_large_as_the_card_lets_it_be(free, size, monkeypatch):
    monkeypatch.setattr(bench, "_free", lambda: free)
    assert bench.size_of_card() == size


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": "9B"}, "params='9B' is not one of 8B, "),
        ({"batches": [0]}, "batch=0 is no number of sequences"),
        ({"new": 300}, "new=300 steps do not fit a cache of length=256"),
        ({"new": 8}, "give more than 8"),
        ({"rows": ["fp32"]}, "row 'fp32'"),
        ({"rows": ["awq-w4g128"]}, "learns from data"),
    ],
)
def test_what_cannot_be_measured_is_said_before_a_card_is_looked_for(changes, words, monkeypatch):
    monkeypatch.setattr(bench, "check_card", lambda: pytest.fail("the work has begun"))
    with pytest.raises(ValueError, match=words):
        bench.run(**changes)


def test_how_far_it_is_is_told_into_a_file_too(monkeypatch, capsys):
    """No terminal is here. A table takes minutes: without a word until its end, slow and hanging look alike."""

    def measure(size, row, *_):
        raise ArithmeticError(f"{row.name} is wrong")

    for name, found in (("check_card", None), ("describe_card", {}), ("needed", 1), ("_free", 2)):
        monkeypatch.setattr(bench, name, lambda *_, found=found: found)
    monkeypatch.setattr(bench, "measure", measure)
    record = bench.run("1.1B", ["bf16", "nf4"])
    assert record.missing == {"BF16": "BF16 is wrong", "NF4 b64 dq": "NF4 b64 dq is wrong"}
    told = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[1] for line in told] == ["1 of 2: 1.1B, BF16", "2 of 2: 1.1B, NF4 b64 dq"]


def test_a_model_that_does_not_fit_is_refused_with_the_sizes(monkeypatch):
    monkeypatch.setattr(bench, "check_card", lambda: None)
    monkeypatch.setattr(bench, "_free", lambda: 8e9)
    with pytest.raises(ValueError, match=r"params='8B' takes 18 GB in bfloat16, and 8 GB are free.*1\.1B"):
        bench.run("8B")


def a_record():
    def measured(row, batch, seconds, wrong):
        return GpuModelMeasurement(
            "8B", row, batch, bench.GRAPH, 256, 8 * 10**9, 5 * 10**9, 10**9, 7 * 10**9, 9 * 10**9, wrong, (seconds,) * 3
        )

    rows = (measured("BF16", 1, 0.006, None), measured("RTN W4 g128", 1, 0.002, 0.01), measured("NF4", 16, 0.01, 0.02))
    machine = {"cpu": "beads", "cores": 2, "versions": {"torch": "9.9"}, "load": 0.1}
    return GpuModelRecord(machine, rows, {"bitsandbytes NF4": "not here"})


def test_the_table_counts_tokens_of_the_whole_batch():
    file = io.StringIO()
    Console(file=file, width=200).print(tables.gpu_model_table(a_record()))
    text = file.getvalue()
    assert re.search(r"8B +BF16 +1 +6\.00 +167 +1\.00 +5\.00 +7\.00 +9\.00 +compiled, one graph", text)
    assert re.search(r"8B +RTN W4 g128 +1 +2\.00 +500 +3\.00 .* 1\.0e-02 ", text)
    assert re.search(r"8B +NF4 +16 +10\.00 +1,600 +5\.00", text), "beside no bfloat16 of its batch there is no ratio"


def test_a_record_comes_back_from_json():
    record = a_record()
    assert GpuModelRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
