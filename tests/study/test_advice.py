"""The chooser: sizes that agree with stored tensors, ranks that agree with what was measured, and refusals in a sentence."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qkit
from qkit.study.advice import HARDWARE, QUALITY, gigabytes, recommend, stored_bits


@pytest.mark.parametrize(
    "scheme",
    [
        qkit.RTN(8),
        qkit.RTN(4, 32),
        qkit.RTN(4, 128, symmetric=True),
        qkit.RTN(3, 64, scale_dtype="float32"),
        qkit.GPTQ(4, 128),
        qkit.GPTQ(3, 128),
        qkit.AWQ(4, 64),
        qkit.AWQ(3, 128, rounding=qkit.GPTQ(3, 128)),
        qkit.NF4(),
        qkit.NF4(128, double_quant=False),
        qkit.FP4(),
        qkit.LLMInt8(),
        qkit.W8A8(),
        qkit.SmoothQuant(),
    ],
    ids=lambda scheme: scheme.name,
)
def test_bits_are_those_of_a_stored_tensor(scheme):
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    q = qkit.quantize_tensor(weight, scheme)
    assert stored_bits(scheme, 1024) == pytest.approx(q.bits_per_weight, rel=2e-3)


def test_gigabytes_of_the_embedded_model_are_those_on_disk(embedded):
    model, _ = embedded
    parameters = sum(p.numel() for p in model.parameters())
    rest = sum(p.numel() for name, p in model.named_parameters() if "_proj" not in name)
    small, _ = qkit.load("bookworm-14m")
    qkit.quantize(small, qkit.RTN(4, 32))
    assert gigabytes(parameters, qkit.RTN(4, 32), rest) == pytest.approx(qkit.disk_bytes(small) / 1e9, rel=0.01)


def test_a_7b_model_on_the_machines_of_the_lesson():
    assert recommend(7e9, 16, quality="best").scheme is None
    assert recommend(7e9, 8, quality="best").scheme == qkit.RTN(8)
    assert recommend(7e9, 8, "gpu", "best").scheme == qkit.SmoothQuant()
    assert recommend(7e9, 8, "cpu-vnni", "best", calibration=False).scheme == qkit.W8A8()
    assert recommend(7e9, 8).scheme == qkit.GPTQ(4, 128)
    assert recommend(7e9, 8, calibration=False).scheme == qkit.NF4()
    assert recommend(7e9, 8, "phone", calibration=False).scheme == qkit.RTN(4, 32)
    assert recommend(7e9, 3.6).scheme == qkit.GPTQ(3, 128)
    assert recommend(7e9, 8, quality="smallest").scheme == qkit.GPTQ(3, 128)
    assert recommend(7e9, 8, quality="smallest", calibration=False).scheme == qkit.NF4()


def test_the_embeddings_are_counted_in_16_bits():
    without, with_many = (recommend(8e9, 16, embeddings=count) for count in (0, 1.05e9))
    bits = 4 + 20 / 128
    assert without.gigabytes == pytest.approx(8e9 * bits / 8e9)
    assert with_many.gigabytes == pytest.approx((6.95e9 * bits + 1.05e9 * 16) / 8e9)
    assert without.bits_per_weight == with_many.bits_per_weight == bits


def test_what_cannot_fit_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match=r"7e\+09 parameters take 3\.\d+ GB at least .*at most .* parameters, or more"):
        recommend(7e9, 2)
    with pytest.raises(ValueError, match=r"with calibration=True GPTQ W3 g128 takes 3\.\d+ GB"):
        recommend(7e9, 3.6, calibration=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"parameters": 0}, "parameters=0 is not a number of parameters"),
        ({"parameters": math.inf}, "parameters=inf"),
        ({"memory_gb": -1}, "memory_gb=-1 is no memory"),
        ({"hardware": "tpu"}, "hardware='tpu' is not one of 'cpu', 'cpu-vnni', 'gpu', 'phone'"),
        ({"quality": "good"}, "quality='good' is not one of 'best', 'balanced', 'smallest'"),
        ({"embeddings": 8e9}, r"embeddings=8e\+09 are not a part of 7e\+09 parameters"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        recommend(**{"parameters": 7e9, "memory_gb": 8, **arguments})


@given(
    st.floats(1e6, 1e12),
    st.floats(0.001, 1e4),
    st.sampled_from(HARDWARE),
    st.sampled_from(QUALITY),
    st.booleans(),
)
def test_whatever_is_recommended_fits_and_says_why(parameters, memory, hardware, quality, calibration):
    try:
        advice = recommend(parameters, memory, hardware, quality, calibration)
    except ValueError as error:
        assert "GB at least" in str(error)
        return
    assert advice.gigabytes <= memory and 3 < advice.bits_per_weight <= 16
    assert calibration or advice.scheme is None or not advice.scheme.calibrated
    assert advice.why and advice.cautions and advice.name in repr(advice)
    more = recommend(parameters, 2 * memory, hardware, quality, calibration)
    assert more.bits_per_weight >= advice.bits_per_weight  # memory never makes it worse
