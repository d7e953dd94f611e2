"""The benchmark: it compares like with like, counts right, and says what it could not do. No test looks at a real clock."""

import io
import itertools
import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import qkit
from qkit import cli
from qkit.bench import (
    GOALS,
    Goal,
    LinearRecord,
    Measurement,
    ModelMeasurement,
    ModelRecord,
    Roof,
    child,
    generation,
    linear,
    outcomes,
    peers,
    record,
    roof,
    tables,
    timing,
    write_json,
)
from qkit.bench.contender import BuiltLayer, Contender
from qkit.plots import roofline as figure

EPS = torch.finfo(torch.float32).eps
LABELS = [contender.label for contender in linear.CONTENDERS]
MACHINE = {"cpu": "abacus", "cores": 2, "versions": {"torch": "9.9", "onnx": None}, "load": 0.1}


def measurement(library="qkit", name="W4 g128", milliseconds=(1.0,), tokens=1, nbytes=10**6, **changes):
    fields = {"shape": (1000, 2000), "threads": 1, "copies": 2, "error": 0.1, "cores": 1.0}
    return Measurement(
        library=library, name=name, tokens=tokens, nbytes=nbytes, milliseconds=milliseconds, **{**fields, **changes}
    )


def a_record():
    """Every layer of the figure and of the goals, at two numbers of tokens; the n-th takes n ms."""
    measured = [
        measurement(*label.split(" ", 1), (float(n),), tokens, 10**6 * n)
        for tokens in (1, 128)
        for n, label in enumerate(LABELS, 1)
    ]
    return LinearRecord(MACHINE, (Roof(1, 25.0, 100.0, 400.0),), tuple(measured), {"abacus beads": "none left"}, 3)


# ---- timing


class Clock:
    """Time that passes only when somebody sleeps or works; threads in the background are busy until `until`."""

    def __init__(self, until=0.0):
        self.now, self.mine, self.until = 0.0, 0.0, until

    def perf_counter(self):
        return self.now

    def process_time(self):
        return self.mine + min(self.now, self.until)

    def sleep(self, seconds):
        self.now += seconds

    def work(self, seconds, threads=1):
        self.now += seconds
        self.mine += threads * seconds


@pytest.fixture
def clock(monkeypatch):
    def install(until=0.0):
        fake = Clock(until)
        monkeypatch.setattr(timing, "time", fake)
        return fake

    return install


def test_settling_waits_until_no_thread_computes_and_no_longer(clock):
    time = clock(until=0.04)
    assert timing.settle()
    assert 0.04 <= time.now <= 0.04 + 2 * timing.NAP


def test_settling_gives_up_on_threads_that_never_sleep(clock):
    time = clock(until=100)
    assert not timing.settle(limit=0.5)
    assert time.now == pytest.approx(0.5, abs=2 * timing.NAP)


def test_contenders_take_turns_warm_up_alike_and_are_timed_call_by_call(clock):
    time, order = clock(), []

    def worker(name, seconds, threads):
        def call():
            order.append(name)
            time.work(seconds, threads)

        return call

    timings = timing.interleave({"a": worker("a", 0.5, 1), "b": worker("b", 0.25, 2)}, rounds=2, block=3, warm=2)
    assert order == (["a"] * 5 + ["b"] * 5) * 2
    assert timings["a"].seconds == pytest.approx([0.5] * 6) and timings["b"].seconds == pytest.approx([0.25] * 6)
    assert timings["a"].cores == pytest.approx(1) and timings["b"].cores == pytest.approx(2)
    assert timings["a"].unsettled == timings["b"].unsettled == 0


def test_turns_that_began_in_unrest_are_counted(clock, monkeypatch):
    time = clock()
    answers = iter([True, False, False, True])
    monkeypatch.setattr(timing, "settle", lambda: next(answers))
    timings = timing.interleave({"a": lambda: time.work(1), "b": lambda: time.work(1)}, rounds=2, block=1)
    assert [timings[name].unsettled for name in "ab"] == [1, 1]


def test_a_rotation_calls_every_layer_in_turn_with_the_same_input():
    called = []
    turn = timing.Rotation([lambda x, n=n: called.append((n, x)) for n in range(3)], "x")
    for _ in range(7):
        turn()
    assert called == [(n, "x") for n in (0, 1, 2, 0, 1, 2, 0)]


# ---- what takes part


@given(st.integers(1, 2**30))
def test_copies_fill_128_mb_with_none_to_spare(nbytes):
    count = linear.copies(nbytes)
    assert count >= 2 and count * nbytes >= 128 * 2**20
    assert count == 2 or (count - 1) * nbytes < 128 * 2**20


def test_the_weights_that_take_turns_fill_128_mb_of_their_own():
    weight, held = linear.draw_weight((2048, 1024)), []

    def make(weight):
        def layer():
            held.append(weight.clone())
            return BuiltLayer(lambda x: x, weight.nbytes)

        return layer

    assert len(linear.fill(Contender("any", "fp32", make), weight)) == 16
    assert sum(one.nbytes for one in held) == 128 * 2**20 and len({one.data_ptr() for one in held}) == 16


@pytest.mark.parametrize("scheme", [qkit.RTN(4, 128), qkit.RTN(8, 64, symmetric=True), qkit.NF4()], ids=str)
def test_a_copy_of_a_weight_shares_no_memory_with_it(scheme):
    q = qkit.quantize_tensor(linear.draw_weight((8, 256)), scheme)
    copy = linear._copy(q)
    assert type(copy) is type(q) and copy.meta() == q.meta()
    for name, part in q.tensors().items():
        assert torch.equal(copy.tensors()[name], part) and copy.tensors()[name].data_ptr() != part.data_ptr()


def make(contender, weight):
    """A layer of the contender; skips where its library is not installed or cannot do it."""
    try:
        with torch.inference_mode():
            return contender.make(weight)()
    except Exception as error:
        if contender.library == "qkit":
            raise
        pytest.skip(f"{contender.label}: {error}")


def product(contender, layer, x):
    with torch.inference_mode():
        return torch.as_tensor(layer.call(contender.native(x))).double()


def rounding(contender, weight):
    """How far rounding may move each weight [out, in], double: a share of the largest of its group, block or row.

    RTN: a step (half of one, and another half where the rounded zero point shifts the grid); NF4: half of the widest gap;
    INT8: half a step. Added are 2^-8 where there is bfloat16, and 2^-10 for scales in float16. With double quantization
    the absmax moves too, by half of what lies between two of the 64 numbers from 0.1 to 1 of its table.
    """
    size = {"W4 g128": 128, "W4 g32": 32, "W3 g128": 128, "W2 g64": 64, "W8 g128": 128, "NF4 b64": 64}
    group = next((size[start] for start in size if contender.name.startswith(start)), weight.shape[1])
    absmax = weight.double().reshape(len(weight), -1, group).abs().amax(-1, keepdim=True).expand(-1, -1, group)
    if bits := re.match(r"W(\d) g", contender.name):
        share = 2 / (2 ** int(bits[1]) - 1)
    elif contender.name.startswith("NF4"):
        share = (1 - 0.6961928) / 2  # between the two lowest levels
    else:
        share = 0 if contender.name in ("fp32", "bf16") else 1 / 254
    coarse = "bf16" in contender.name or contender.library == "bitsandbytes"
    moved = absmax.reshape(weight.shape) * (share + (2**-8 if coarse else 2**-10))
    return moved + absmax.max() * 0.9 / 64 / 2 if contender.name.endswith("dq") else moved


@pytest.mark.parametrize("contender", linear.CONTENDERS, ids=lambda contender: contender.label)
def test_every_contender_multiplies_by_the_weight_it_was_given(contender):
    """Inputs of one number in one place show the weight itself; they are exact in INT8 too, also with the fixed step."""
    weight = linear.draw_weight((64, 256))
    layer = make(contender, weight)
    shown = product(contender, layer, linear.OUTLIER * torch.eye(256)).T / linear.OUTLIER
    assert ((shown - weight).abs() <= rounding(contender, weight)).all()
    assert 0 < layer.nbytes <= 1.1 * weight.nbytes


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("contender", linear.CONTENDERS, ids=lambda contender: contender.label)
def test_every_contender_computes_the_product_of_that_weight(contender, tokens):
    weight = linear.draw_weight((64, 256))
    layer = make(contender, weight)
    shown = product(contender, layer, linear.OUTLIER * torch.eye(256)).T / linear.OUTLIER
    x = linear.draw_inputs(tokens, 256)
    reach = x.double().abs() @ shown.abs().T  # no sum of products can be larger
    # Rounding to float32 at each of 256 additions; to bfloat16 of x, w and y; to INT8, by at most a step of the largest x.
    tolerance = 256 * EPS * reach
    if any(word in contender.name for word in ("bf16", "NF4")) and contender.library != "qkit":
        tolerance = tolerance + 4 * 2**-8 * reach
    if any(word in contender.name for word in ("A8", "level 4", "INT8", "int8")):
        tolerance = tolerance + x.abs().max() / 127 * shown.abs().sum(1)
    away = (product(contender, layer, x) - x.double() @ shown.T).abs()
    assert (away <= tolerance).all()
    if contender.library == "qkit" and "A8" in contender.name:
        assert (away > 256 * EPS * reach).any(), "these activations were not rounded"
    assert linear.checked_error(contender, layer, x, weight) < linear.WRONG


@pytest.mark.parametrize("contender", [c for c in linear.OURS if re.match(r"W\d g", c.name)], ids=lambda c: c.name)
def test_a_name_says_what_is_stored(contender):
    bits, size = map(int, re.match(r"W(\d) g(\d+)", contender.name).groups())
    weight = linear.draw_weight((64, 256))
    zero_points = 0 if "sym" in contender.name else bits / 8
    groups = weight.numel() / size
    assert make(contender, weight).nbytes == weight.numel() * bits / 8 + groups * (2 + zero_points)


def test_llm_int8_keeps_the_outliers_in_floating_point():
    weight, x = linear.draw_weight((64, 256)), linear.draw_inputs(5, 256)
    by_name = {contender.name: contender for contender in linear.OURS}
    errors = {
        name: linear.checked_error(by_name[name], make(by_name[name], weight), x, weight)
        for name in ("LLM.int8", "W8A8 dynamic", "W8A8 static")
    }
    assert errors["LLM.int8"] < 0.8 * errors["W8A8 dynamic"]  # the step of its activations is 5 / 127, not 8 / 127
    assert errors["W8A8 static"] == pytest.approx(errors["W8A8 dynamic"], rel=1e-3)  # its step is that of these inputs


def test_the_inputs_have_one_column_of_outliers_and_are_the_same_each_time():
    x = linear.draw_inputs(300, 512)
    assert torch.equal(x, linear.draw_inputs(300, 512))
    assert ((x.abs() >= linear.THRESHOLD).any(0)).nonzero().tolist() == [[256]]
    assert float(x.abs().max()) == linear.OUTLIER


def broken(weight):
    return lambda: BuiltLayer(lambda x: torch.randn(len(x), len(weight)), 1000)


def absent(weight):
    import no_such_library  # noqa: F401


@pytest.fixture
def known_roof(monkeypatch):
    found = iter([Roof(1, 20.0, 100.0, 300.0), Roof(1, 25.0, 90.0, 310.0)])
    monkeypatch.setattr(roof, "measure_roof", lambda: next(found))


def small(*contenders, rounds=1):
    return linear.measure([(64, 256)], [1, 20], rounds, contenders, working_set=2**17, progress=False)


def test_everything_that_was_timed_is_recorded(known_roof):
    ours = next(c for c in linear.OURS if c.name == "W4 g128")
    plain = next(c for c in peers.PEERS if c.name == "fp32")
    measured = small(ours, plain, rounds=2)
    assert [(m.label, m.tokens) for m in measured.measurements] == list(
        itertools.chain(*([("qkit W4 g128", n), ("torch fp32", n)] for n in (1, 20)))
    )
    few, *_, many = measured.measurements
    assert len(few.milliseconds) == 2 * 3 * 8 and len(many.milliseconds) == 2 * 3
    assert all(t > 0 for m in measured.measurements for t in (*m.milliseconds, m.cores))
    assert many.nbytes == 64 * 256 * 4 and many.copies == 2 and few.copies == -(-(2**17) // few.nbytes) > 2
    assert many.error < 1e-6 and 0.05 < few.error < 0.2
    assert measured.roofs == (Roof(1, 25.0, 100.0, 310.0),)  # the best of before and after
    assert measured.cases == [((64, 256), torch.get_num_threads())] and not measured.missing


def test_a_peer_that_is_missing_or_wrong_is_named_with_the_reason(known_roof):
    plain = next(c for c in peers.PEERS if c.name == "fp32")
    measured = small(Contender("abacus", "beads", absent), Contender("abacus", "guess", broken), plain)
    assert {m.label for m in measured.measurements} == {"torch fp32"}
    assert "no_such_library" in measured.missing["abacus beads"]
    assert "away from that of float32" in measured.missing["abacus guess"]


def test_a_layer_of_qkit_that_is_wrong_stops_the_benchmark(known_roof):
    with pytest.raises(ArithmeticError, match="away from that of float32"):
        small(Contender("qkit", "guess", broken))


@pytest.mark.parametrize("library", ["onnxruntime", "bitsandbytes"])
def test_a_library_that_is_not_installed_is_missing(library, known_roof, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    mine = [contender for contender in peers.PEERS if contender.library == library]
    measured = small(*mine)
    assert not measured.measurements and list(measured.missing) == [contender.label for contender in mine]
    assert all(library in why for why in measured.missing.values())


def test_no_two_contenders_have_one_name_and_the_targets_and_the_figure_know_them():
    assert len(set(LABELS)) == len(LABELS) == len(linear.OURS) + len(peers.PEERS)
    named = {label for goal in GOALS for label in (goal.ours, goal.peer)}
    named |= {f"qkit {name}" for name in figure.PAIRS} | {peer for _, peer in figure.PAIRS.values()} | {figure.FLOAT}
    assert named <= set(LABELS)
    assert all(goal.ours.startswith("qkit ") and not goal.peer.startswith("qkit ") for goal in GOALS)


# ---- what follows from the times


def test_medians_rates_and_intensity_follow_from_the_times():
    m = measurement(milliseconds=(1.0, 2.0, 4.0, 8.0, 100.0), tokens=3, nbytes=2_000_000)
    assert m.label == "qkit W4 g128" and m.median == 4.0 and m.quartiles == (2.0, 8.0)
    assert m.gigabytes_per_second == pytest.approx(0.5)  # 2 MB in 4 ms
    assert m.operations == 2 * 3 * 1000 * 2000 and m.gops == pytest.approx(3.0)  # 12 million in 4 ms
    assert m.operations_per_byte == pytest.approx(6.0)
    assert measurement(milliseconds=(5.0,)).quartiles == (5.0, 5.0)


def test_ratios_are_of_the_medians_of_one_case_and_one_number_of_tokens():
    case = [
        measurement("qkit", "W4", (1.0, 2.0, 90.0)),
        measurement("peer", "W4", (4.0, 4.0, 5.0)),
        measurement("qkit", "W4", (30.0,), tokens=128),
        measurement("peer", "W4", (20.0,), tokens=128),
    ]
    goals = [Goal("qkit W4", "peer W4", m, limit) for m, limit in ((1, 0.5), (128, 1.4), (128, 1.5), (16, 1.0))]
    found = outcomes(case, [*goals, Goal("qkit W4", "absent", 1, 1.0)])
    assert [(o.goal.tokens, o.ratio, o.reached) for o in found] == [
        (1, 0.5, True),
        (128, 1.5, False),
        (128, 1.5, True),
    ]
    assert (found[0].milliseconds, found[0].peer_milliseconds) == (2.0, 4.0)


def test_a_record_is_the_same_after_json(tmp_path):
    path = write_json(a_record().to_dict(), tmp_path / "made" / "cpu.json")
    stored = json.loads(path.read_text())
    assert LinearRecord.from_dict(stored) == a_record()
    assert stored["measurements"][1]["median_ms"] == 2.0 and stored["measurements"][1]["GB/s"] == pytest.approx(1.0)
    assert [one.name for one in path.parent.iterdir()] == ["cpu.json"]


def test_a_record_of_models_is_the_same_after_json():
    measured = ModelMeasurement("1.1B", "FP32", 2, 11, 44, 128, 0.5, (0.1, 0.2, 0.9), None, None)
    stored = json.loads(json.dumps(ModelRecord(MACHINE, (measured,)).to_dict()))
    assert ModelRecord.from_dict(stored) == ModelRecord(MACHINE, (measured,))
    assert stored["measurements"][0]["prefill_rate"] == 256 and stored["measurements"][0]["generation_rate"] == 5


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = write_json({"a": 1}, tmp_path / "cpu.json")
    monkeypatch.setattr(type(path), "replace", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="full"):
        write_json({"a": 2}, path)
    assert json.loads(path.read_text()) == {"a": 1}


def test_the_machine_is_described():
    machine = record.describe_machine()
    assert json.loads(json.dumps(machine)) == machine
    assert machine["cpu"] and machine["cores"] >= 1 and machine["versions"]["torch"] == torch.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", machine["date"])


def test_records_of_several_threads_become_one():
    one, two = (
        LinearRecord({"of": n}, (Roof(n, 1, 1, 1),), (measurement(threads=n),), {f"{n}": "x"}, n) for n in (1, 2)
    )
    both = record.merged([one, two])
    assert both.machine == {"of": 1} and both.missing == {"1": "x", "2": "x"} and both.unsettled == 3
    assert both.cases == [((1000, 2000), 1), ((1000, 2000), 2)] and both.roof(2).threads == 2
    assert both.case((1000, 2000), 2) == [measurement(threads=2)]


# ---- the machine's best


def test_the_roof_kernels_do_all_the_work_that_they_are_paid_for():
    data, sums = torch.ones(2 * roof.PAGE, dtype=torch.uint8).numpy(), torch.zeros(2, dtype=torch.int32).numpy()
    roof.run(roof.read, roof.read_rows, (data, sums), 2)
    assert sums.tolist() == [roof.PAGE // 4 * 0x01010101 - 2**32 * (roof.PAGE // 4 * 0x01010101 >> 32)] * 2
    data[roof.PAGE + 7] = 0
    roof.run(roof.read, roof.read_rows, (data, sums), 2)
    assert sums[0] - sums[1] == 1 << 24  # byte 7 is the last of its word
    vectors, ones = roof.tile(roof.TOKENS), torch.ones(roof.SUMS * roof.STRETCH)
    steps, lanes = roof.TURNS * roof.STRETCH * roof.tile_rows(), 16 * len(vectors)
    totals = torch.zeros(roof.SUMS).numpy()
    roof.run(roof.multiply_floats, roof.multiply_floats_rows, (ones.numpy(), totals, vectors), 1)
    assert totals.tolist() == [steps] * lanes + [0] * (roof.SUMS - lanes)
    totals, ones = torch.zeros(roof.SUMS, dtype=torch.int32).numpy(), torch.ones(4 * len(ones), dtype=torch.uint8)
    roof.run(roof.multiply_bytes, roof.multiply_bytes_rows, (ones.numpy(), totals, vectors), 1)
    assert totals.tolist() == [4 * steps] * lanes + [0] * (roof.SUMS - lanes)


def test_the_roof_is_work_over_time(monkeypatch):
    monkeypatch.setattr(
        roof, "_seconds", lambda team, rows, args, count: {roof.read: 0.5, roof.multiply_floats: 2}.get(team, 4)
    )
    found = roof.measure_roof()
    vectors = roof.tile_rows() * len(roof.tile(roof.TOKENS))
    work = 2 * vectors * roof.TURNS * roof.STRETCH * roof.CHUNKS / 1e9
    assert found.threads == torch.get_num_threads()
    assert found.gigabytes_per_second == pytest.approx(roof.READ_BYTES / 0.5 / 1e9)
    assert (found.float_gops, found.int8_gops) == pytest.approx((16 * work / 2, 64 * work / 4))


# ---- tables, figures


def printed(table):
    file = io.StringIO()
    Console(file=file, width=200).print(table)
    return file.getvalue()


def test_the_table_shows_every_contender_with_its_times():
    text = printed(tables.case_table(a_record(), (1000, 2000), 1))
    assert all(re.search(rf"^ {re.escape(label)} .* {n} ±0%", text, re.M) for n, label in enumerate(LABELS, 1))
    assert "1000x2000, 1 thread" in text and "25.0 GB/s" in text and "M=128" in text
    quarter = measurement(milliseconds=(9.0, 10.0, 10.0, 11.0, 11.0))
    assert "10 ±5%" in printed(tables.case_table(LinearRecord(MACHINE, a_record().roofs, (quarter,)), (1000, 2000), 1))


def test_the_targets_are_marked_reached_and_missed():
    text = printed(tables.target_table(a_record(), (1000, 2000), 1))
    for outcome in outcomes(a_record().case((1000, 2000), 1)):
        mark = "reached" if outcome.reached else "missed"
        row = rf"{outcome.goal.ours[5:]} +{outcome.goal.peer} +{outcome.goal.tokens} +{outcome.ratio:.2f} .*{mark}"
        assert re.search(row, text), row
    assert "reached" in text and "missed" in text
    alone = LinearRecord(MACHINE, a_record().roofs, (measurement(),))
    assert tables.target_table(alone, (1000, 2000), 1) is None


def test_models_are_compared_with_their_own_fp32():
    rows = [("a", "FP32", 0.1), ("a", "NF4", 0.02), ("b", "NF4", 0.05), ("b", "FP32", 0.2)]
    measured = tuple(ModelMeasurement(m, row, 1, 1, 10**6, 128, 0.5, (s,), 0, 3 * 10**6) for m, row, s in rows)
    text = printed(tables.model_table(ModelRecord(MACHINE, measured)))
    assert re.search(r"a +NF4 +1 +1 +3 +256 +50\.0 +5\.00", text) and re.search(r"b +NF4 .* 20\.0 +4\.00", text)


def test_notes_name_what_is_missing_and_a_machine_that_was_not_quiet():
    quiet = tables.notes(a_record())
    assert "abacus, 2 cores; torch 9.9" in quiet[0] and "missing: abacus beads (none left)" in quiet
    assert any("3 turns" in line for line in quiet) and not any("other programs" in line for line in quiet)
    busy = ModelRecord({**MACHINE, "load": 1.7}, ())
    assert any("1.7 cores busy" in line for line in tables.notes(busy))


def test_the_figure_draws_what_was_measured_under_the_roofs():
    picture = figure.roofline(a_record(), (1000, 2000), 1)
    bars, lines = picture.axes
    widths = {text.get_text(): bar.get_width() for text, bar in zip(bars.get_yticklabels(), bars.patches, strict=True)}
    case = a_record().case((1000, 2000), 1)
    assert widths == {m.label: m.gigabytes_per_second for m in case if m.tokens == 1}
    assert list(widths.values()) == sorted(widths.values())
    assert bars.lines[0].get_xdata()[0] == 25.0
    drawn = {line.get_label(): line.get_xydata().tolist() for line in lines.lines}
    for label in (f"qkit {name}" for name in figure.PAIRS):
        mine = sorted([m.operations_per_byte, m.gops] for m in case if m.label == label)
        assert drawn[label] == mine and len(mine) == 2
    roofs = [line.get_xydata() for line in lines.lines if line.get_label().startswith("_")]
    for points, peak in zip(roofs, (100.0, 400.0), strict=True):
        assert points[0][1] == pytest.approx(25.0 * points[0][0]) and points[-1][1] == peak
    assert "25.0 GB/s" in picture.alt and all(m.label in picture.alt for m in case)
    assert Image.open(io.BytesIO(picture.png())).size[0] > 1000


# ---- models


TINY = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("row", ["fp32", "bf16", "w8", "w4g128", "w4a8g128", "nf4", "w8a8", "llm.int8"])
def test_a_synthetic_llama_is_whole_and_in_the_format_of_its_row(row):
    what = generation.parse_row(row)
    network = generation.synthetic_llama(TINY, what)
    assert not any(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])
    layers = qkit.nn.layers.quantized_layers(network)
    assert len(layers) == (0 if isinstance(what, torch.dtype) else 2 * 7) and "lm_head" not in layers
    floats = {p.dtype for p in network.parameters()}
    assert floats == {what if isinstance(what, torch.dtype) else torch.float32}
    rounded = {"w4a8g128": "int8", "w8a8": "per-token", "llm.int8": "per-token"}.get(row)
    assert all(layer.settings().get("activations") == rounded for layer in layers.values())
    logits = network(torch.arange(5)[None]).logits
    assert logits.isfinite().all() and logits.std() > 0


@pytest.mark.parametrize("model", ["tiny", "bookworm-14m"])
def test_the_head_is_quantized_where_it_is_asked_for(model, monkeypatch):
    monkeypatch.setitem(generation.SIZES, "tiny", TINY)
    for head in (False, True):
        network = generation.build(model, "w8", head)
        assert ("lm_head" in qkit.nn.layers.quantized_layers(network)) == head
    found = generation.measure("tiny", "w8", prompt=4, new=2, head=True)
    assert found.row == "RTN W8 per channel, head too"
    assert generation.measure("tiny", "fp32", prompt=4, new=2, head=True).row == "FP32"


def test_only_one_layer_at_a_time_is_in_float32(monkeypatch):
    seen = []

    def watch(model, layers):
        seen.append(sum(p.nbytes for p in model.parameters() if not p.is_meta))
        qkit.model.surgery.swap(model, layers)

    monkeypatch.setattr(generation, "swap", watch)
    generation.synthetic_llama(TINY, qkit.RTN(4, 128))
    assert seen == [0] * 14


@pytest.mark.parametrize(("name", "parameters"), [("1.1B", 1.1e9), ("160M", 160e6)])
def test_a_size_is_what_its_name_says(name, parameters):
    with torch.device("meta"):
        network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**generation.SIZES[name]))
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, rel=0.02)


class Listener(nn.Module):
    """A model that notes what it is asked, and whose cache counts its calls."""

    config = SimpleNamespace(vocab_size=50)

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, input_ids, past_key_values, use_cache, logits_to_keep):
        assert use_cache and logits_to_keep == 1
        self.asked.append((input_ids.shape[1], past_key_values))
        logits = torch.zeros(1, 1, 50)
        logits[..., len(self.asked)] = 1
        return SimpleNamespace(logits=logits, past_key_values=len(self.asked))


def test_prefill_reads_the_prompt_afresh_and_generation_goes_token_by_token_on_the_cache():
    listener = Listener()
    prefill, tokens = generation.time_model(listener, prompt=40, before=7, new=5, repeats=3)
    assert prefill > 0 and len(tokens) == 5 and all(seconds > 0 for seconds in tokens)
    assert listener.asked[:5] == [(40, None)] * 4 + [(7, None)]
    assert listener.asked[5:] == [(1, 5 + n) for n in range(6)]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much was resident")
def test_resident_memory_is_counted_in_bytes():
    before, peak = generation.resident_bytes()
    assert 2**24 < before <= peak
    block = torch.ones(2**26, dtype=torch.uint8)
    assert generation.resident_bytes()[0] - before > 0.9 * 2**26
    del block
    assert generation.resident_bytes()[1] - before > 0.9 * 2**26


# ---- processes and the command line


def test_a_fresh_process_measures_with_the_threads_it_was_given():
    answer = child.ask("qkit.bench.linear", {"shapes": [], "tokens": [1], "rounds": 1}, threads=1)
    found = LinearRecord.from_dict(answer)
    assert found.measurements == () and [one.threads for one in found.roofs] == [1]
    assert found.roofs[0].gigabytes_per_second > 0.1


def test_the_number_of_threads_stands_in_the_environment_before_any_library_is_loaded(monkeypatch):
    seen = []
    monkeypatch.setattr(child.subprocess, "run", lambda *_, env: seen.append(env) or SimpleNamespace(returncode=-9))
    with pytest.raises(OSError, match=r"status -9 \(killed: did memory run out"):
        child.ask("qkit.bench.linear", {}, threads=3)
    assert seen[0]["OMP_NUM_THREADS"] == seen[0]["MKL_NUM_THREADS"] == "3"


def test_a_process_that_dies_is_an_error_in_one_sentence(capfd):
    with pytest.raises(OSError, match=r"'model': 'nothing'.* with 1 threads ended with status 1"):
        child.ask("qkit.bench.generation", {"model": "nothing", "row": "fp32"}, threads=1)
    assert "KeyError" in capfd.readouterr().err


def test_the_embedded_model_is_measured_in_a_process_of_its_own(tmp_path):
    arguments = ["bench", "model", "--params", "bookworm-14m", "--scheme", "w4g128", "--threads", "1"]
    result = CliRunner().invoke(
        cli.app, [*arguments, "--prompt", "8", "--new", "3", "--out", str(tmp_path)], catch_exceptions=False
    )
    assert result.exit_code == 0 and re.search(r"bookworm-14m +RTN W4 g128 +1 +13 ", result.stdout)
    (measured,) = ModelRecord.from_dict(json.loads((tmp_path / "model.json").read_text())).measurements
    assert measured.parameters == 14_162_304 and measured.prompt == 8 and len(measured.token_seconds) == 3
    assert measured.peak_bytes is None or measured.peak_bytes > measured.idle_bytes + measured.nbytes


@pytest.fixture
def asked(monkeypatch):
    """What `qkit bench cpu` asks `linear.run` for; it answers with `a_record`."""
    seen = []
    monkeypatch.setattr(linear, "run", lambda *arguments: seen.append(arguments) or a_record())
    return seen


def test_the_command_prints_the_tables_whole_and_writes_json_and_figures(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    result = CliRunner().invoke(cli.app, ["bench", "cpu", "--quick", "--out", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0 and "…" not in result.stdout
    assert all(label in result.stdout for label in LABELS) and "missed" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu.json", "roofline-1000x2000-1.png"]
    assert LinearRecord.from_dict(json.loads((tmp_path / "cpu.json").read_text())) == a_record()
    assert asked == [(((4096, 4096),), (1, 128), [min(2, record.core_count())], 3)]


def test_the_command_takes_shapes_tokens_and_threads(asked):
    arguments = ["--shape", "64x256", "--shape", "128X128", "--tokens", "3", "--threads", "1"]
    assert CliRunner().invoke(cli.app, ["bench", "cpu", *arguments], catch_exceptions=False).exit_code == 0
    assert asked == [([(64, 256), (128, 128)], [3], [1], linear.ROUNDS)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cpu", "--shape", "4096"], "shape '4096' is not understood"),
        (["cpu", "--shape", "64x100"], "shape=64x100 does not divide into groups of 128"),
        (["cpu", "--shape", "0x128"], "shape=0x128"),
        (["cpu", "--tokens", "0"], "tokens=0 is no number of tokens"),
        (["cpu", "--threads", "1000"], "threads=1000 on"),
        (["cpu", "--threads", "0"], "threads=0 on"),
        (["model", "--params", "7Z"], "params='7Z' is not one of bookworm-14m, 1.1B, 160M"),
        (["model", "--scheme", "w9"], "bits=9 is outside 2..8"),
        (["model", "--scheme", "gptq-w4g128"], "'gptq-w4g128' learns from data"),
        (["model", "--threads", "1000"], "threads=1000 on"),
    ],
)
def test_an_error_is_one_sentence_on_stderr_and_nothing_is_measured(arguments, words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(child.subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    monkeypatch.setattr(sys, "argv", ["qkit", "bench", *arguments, "--out", "here"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capsys.readouterr()
    assert stopped.value.code == 2 and captured.out == "" and not list(tmp_path.iterdir())
    assert captured.err.startswith("qkit: ") and words in captured.err and "Traceback" not in captured.err


def test_the_benchmark_is_not_imported_with_qkit():
    script = "import sys, qkit, qkit.cli; print([name for name in sys.modules if name.startswith('qkit.bench')])"
    done = child.subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
