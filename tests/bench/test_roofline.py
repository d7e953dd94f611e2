"""What a layer costs is counted as it is stored, and what the machine allows follows from that."""

import pytest
import torch

import qkit
from qkit.bench import roofline
from qkit.bench.record import Roof
from qkit.bench.roofline import Layer

ROOF = Roof(threads=2, gigabytes_per_second=32.0, float_gops=256.0, int8_gops=1024.0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 128, None])
def test_the_bytes_of_a_weight_are_those_of_a_qtensor(bits, group_size):
    weight = torch.randn(24, 384, generator=torch.Generator().manual_seed(0))
    q = qkit.quantize_tensor(weight, qkit.RTN(bits, group_size, symmetric=True))
    layer = Layer(24, 384, bits, group_size)
    assert layer.weight_bytes == q.nbytes
    random = layer.random_weight()
    assert (random.shape, random.bits, random.group_size, random.nbytes) == (q.shape, bits, q.group_size, q.nbytes)


@pytest.mark.parametrize(("bits", "dtype"), [(32, torch.float32), (16, torch.bfloat16)])
def test_floats_have_no_scales(bits, dtype):
    layer = Layer(24, 384, bits)
    assert layer.weight_bytes == 24 * 384 * bits // 8 == layer.random_weight().nbytes
    assert layer.random_weight().dtype == dtype


def test_what_comes_in_and_goes_out_is_counted_with_every_token():
    one, many = Layer(10, 64, 4, 32), Layer(10, 64, 4, 32, tokens=5)
    assert one.bytes == 10 * 32 + 2 * 10 * 2 + 4 * (10 + 64)
    assert many.bytes - one.bytes == 4 * 4 * (10 + 64)
    assert Layer(10, 64, 4, 32, 5, number_bytes=2).bytes == one.weight_bytes + 2 * 5 * (10 + 64)
    assert (one.operations, many.operations) == (2 * 640, 5 * 2 * 640)
    assert many.intensity == many.operations / many.bytes > one.intensity


def test_the_slower_of_reading_and_computing_decides():
    one, many = Layer(4096, 4096, 4, 128), Layer(4096, 4096, 4, 128, tokens=512)
    assert one.seconds_to_read(ROOF) == pytest.approx(one.bytes / 32e9)
    assert one.floor(ROOF) == one.floor(ROOF, integers=True) == one.seconds_to_read(ROOF)
    assert many.floor(ROOF) == many.seconds_to_compute(ROOF) == pytest.approx(many.operations / 256e9)
    assert many.floor(ROOF, integers=True) == pytest.approx(many.operations / 1024e9)


def test_a_roof_that_something_is_above_is_raised_to_it_and_no_other():
    layer, many = Layer(1024, 1024), Layer(1024, 1024, 4, 128, tokens=4096)
    slow, fast = 2 * layer.floor(ROOF), layer.floor(ROOF) / 2
    assert roofline.raised(ROOF, [(layer, slow)]) == ROOF
    for measured, integers, changed in (
        ((layer, fast), False, {"gigabytes_per_second": 64.0}),
        ((many, many.floor(ROOF) / 2), False, {"float_gops": 512.0}),
        ((many, many.floor(ROOF, integers=True) / 2), True, {"int8_gops": 2048.0}),
    ):
        found = vars(roofline.raised(ROOF, [(layer, slow), measured], integers))
        assert found == pytest.approx({**vars(ROOF), **changed})


def test_impossible_layers_are_refused():
    with pytest.raises(ValueError, match="group_size=100 does not divide in_features=384; use a divisor or None"):
        Layer(8, 384, 4, 100)
    with pytest.raises(ValueError, match="bits=12 is no weight"):
        Layer(8, 384, 12)


def test_the_best_roof_takes_the_best_of_each(monkeypatch):
    turns = iter([Roof(2, 30.0, 200.0, 800.0), Roof(2, 10.0, 210.0, 100.0), Roof(2, 20.0, 50.0, 900.0)])
    monkeypatch.setattr(roofline, "measure_roof", lambda: next(turns))
    monkeypatch.setattr(roofline, "READ_BYTES", 2**21)
    calls = []
    monkeypatch.setattr(roofline, "best_seconds", lambda call: calls.append(call) or 1e-4)
    assert roofline.best_roof(3) == Roof(2, 2**21 / 1e-4 / 1e9, 210.0, 900.0)


def test_all_of_the_memory_is_read(monkeypatch):
    seen = {}
    monkeypatch.setattr(roofline, "measure_roof", lambda: Roof(2, 30.0, 200.0, 800.0))
    monkeypatch.setattr(roofline, "READ_BYTES", 2**21)
    monkeypatch.setattr(roofline, "run", lambda team, body, args, rows: seen.update(args=args, rows=rows))
    roofline.best_roof(1)
    roofline.read_rows(*seen["args"], 0, seen["rows"])
    assert (seen["args"][1] == 0x01010101 * (roofline.PAGE // 64 * 16) % 2**32).all()  # every word is four ones


def test_weights_take_turns():
    seen = []
    call = roofline.rotated(["a", "b", "c"], seen.append)
    for _ in range(4):
        call()
    assert seen == ["a", "b", "c", "a"]


def test_the_best_of_several_calls_is_the_shortest(monkeypatch):
    class Fixed:
        seconds = (0.3, 0.1, 0.2)

    monkeypatch.setattr(roofline, "interleave", lambda *args, **kwargs: {"": Fixed})
    assert roofline.best_seconds(lambda: None) == 0.1


@pytest.mark.parametrize(("bits", "ways"), [(32, ["floats"]), (16, ["floats"]), (4, ["floats", "INT8"])])
def test_a_layer_is_measured_with_weights_that_take_turns(bits, ways, monkeypatch):
    monkeypatch.setattr(roofline, "ROTATED_BYTES", 100_000)
    seconds = roofline.measure(Layer(64, 128, bits, None, tokens=3), block=1)
    assert list(seconds) == ways and all(s > 0 for s in seconds.values())
