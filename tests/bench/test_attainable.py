"""What a machine can reach at an intensity: fed by its memory up to the peak of its arithmetic."""

from qkit.bench.record import Roof
from qkit.bench.roofline import attainable

ROOF = Roof(threads=2, gigabytes_per_second=32.0, float_gops=256.0, int8_gops=1024.0)


def test_memory_feeds_up_to_the_peak():
    assert attainable(ROOF, 2) == attainable(ROOF, 2, integers=True) == 64
    assert attainable(ROOF, 8) == attainable(ROOF, 100) == 256
    assert attainable(ROOF, 100, integers=True) == 1024
