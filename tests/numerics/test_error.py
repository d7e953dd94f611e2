import json
import math

import pytest
import torch

from qkit import error_statistics, sqnr_db
from qkit.engine.quantize import quantize_tensor


@pytest.fixture
def warn_always():
    """Torch gives most warnings once a process; here it gives them always."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


def test_statistics_are_those_computed_by_hand():
    error = error_statistics(torch.tensor([3.0, -4.0, 0.0, 0.0]), torch.tensor([3.0, -3.0, 0.5, 0.0]))
    assert error.max_abs == 1.0
    assert error.mean == (-1 - 0.5) / 4
    assert error.rmse == math.sqrt(1.25 / 4)
    assert error.relative == math.sqrt(1.25 / 25)
    assert error.sqnr_db == pytest.approx(10 * math.log10(20))


def test_a_tenth_of_the_signal_is_20_db():
    w = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    assert sqnr_db(w, 0.9 * w) == pytest.approx(20)


def test_no_error_is_infinitely_many_db_and_none_in_json():
    error = error_statistics(torch.ones(3), torch.ones(3))
    assert (error.sqnr_db, error.rmse, error.relative) == (math.inf, 0, 0)
    assert json.loads(json.dumps(error.to_dict()))["sqnr_db"] is None


def test_noise_without_a_signal_is_minus_infinity():
    assert sqnr_db(torch.zeros(3), torch.ones(3)) == -math.inf


def test_statistics_are_taken_in_float64():
    w = torch.full((2**12,), 1e30)
    assert error_statistics(w, 0 * w).rmse == pytest.approx(w[0].item())


def test_half_precision_is_widened_before_it_is_subtracted():
    assert error_statistics(torch.tensor([1.0], dtype=torch.float16), torch.tensor([1 + 2**-20])).max_abs == 2**-20


def test_a_parameter_is_compared_without_a_warning(recwarn, warn_always):
    assert error_statistics(torch.nn.Parameter(torch.ones(3)), torch.zeros(3)).rmse == 1
    assert not recwarn.list


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\) differ; compare a weight with its own copy"):
        error_statistics(torch.ones(2), torch.ones(3))


@pytest.mark.parametrize("bits", range(3, 8))
def test_a_bit_buys_6_db_on_uniform_weights(bits):
    weight = torch.rand(1, 100_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    gain = sqnr_db(weight, quantize_tensor(weight, bits=bits + 1).dequantize()) - sqnr_db(
        weight, quantize_tensor(weight, bits=bits).dequantize()
    )
    # The steps are (2^(b+1) - 1) / (2^b - 1) times finer. The mean of n uniform squares spreads by sqrt(0.8 / n) = 0.3%,
    # that is 0.012 dB; two of them, four sigma: 0.07 dB. A float16 scale rounded up costs up to 2^-10 more, 0.01 dB.
    assert gain == pytest.approx(20 * math.log10((2 ** (bits + 1) - 1) / (2**bits - 1)), abs=0.08)
