"""What somebody else has set changes no code and no number: the default dtype, a device context, autocast, inference mode,
products in fewer bits.
"""

from contextlib import contextmanager

import pytest
import torch

import qkit
from grids import thinned
from qkit.methods.registry import SCHEMES
from qkit.model.surgery import clone
from qkit.numerics import codebooks
from qkit.numerics.kinds import stored_from

VARIANTS = [
    *(
        scheme(bits=4, group_size=4) if "group_size" in scheme.__dataclass_fields__ else scheme()
        for scheme in SCHEMES.values()
    ),
    qkit.RTN(4, 4, include_zero=False),
    qkit.RTN(4, 4, activations="int8"),
    qkit.GPTQ.paper(4, 4),
    qkit.AWQ(4, 4, rounding=qkit.GPTQ(4, 4)),
    qkit.SmoothQuant(None, "per-tensor", "mse"),
    qkit.W8A8("per-tensor", "percentile"),
]
named = {"ids": lambda scheme: scheme.name}


@pytest.fixture(params=thinned([torch.bfloat16, torch.float16, torch.float64], [torch.bfloat16, torch.float64]))
def default_dtype(request):
    before = torch.get_default_dtype()
    yield request.param
    torch.set_default_dtype(before)


@pytest.mark.parametrize("scheme", VARIANTS, **named)
def test_the_default_dtype_changes_nothing(llama, scheme, default_dtype):
    ids = torch.randint(0, 97, (4, 16), generator=torch.Generator().manual_seed(0))
    expected, found = clone(llama), clone(llama)
    report = qkit.quantize(expected, scheme, calibration=ids)
    y = expected(input_ids=ids).logits
    torch.set_default_dtype(default_dtype)
    assert qkit.quantize(found, scheme, calibration=ids).to_dict()["layers"] == report.to_dict()["layers"]
    state = found.state_dict()
    for name, tensor in expected.state_dict().items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name
    assert torch.equal(found(input_ids=ids).logits, y)


def test_the_default_dtype_changes_no_measure(llama, default_dtype):
    ids = torch.randint(0, 97, (4, 16), generator=torch.Generator().manual_seed(0))
    schemes = [qkit.RTN(4), qkit.GPTQ(4, None), qkit.NF4(32)]

    def measured():
        copy = clone(llama)
        qkit.quantize(copy, qkit.RTN(3))
        return (
            qkit.perplexity(copy, None, ids),
            qkit.kl_divergence(llama, copy, None, ids),
            qkit.sensitivity(llama, schemes, calibration=ids).to_dict(),
            [(one.scale.tolist(), one.losses) for one in qkit.search_scales(llama, qkit.AWQ(4, 4), calibration=ids)],
            repr(qkit.tune(copy, llama, calibration=ids, epochs=1)),
        )

    expected = measured()
    torch.set_default_dtype(default_dtype)
    assert measured() == expected


@contextmanager
def products_in_bfloat16():
    """As on a card products in TF32; a processor that has no such products takes no notice."""
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


AROUND = {
    "products in 16 bits": products_in_bfloat16,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("scheme", VARIANTS, **named)
def test_where_one_quantizes_changes_nothing(llama, scheme, around):
    ids = torch.randint(0, 97, (4, 16), generator=torch.Generator().manual_seed(0))
    expected, found = clone(llama), clone(llama)
    report = qkit.quantize(expected, scheme, calibration=ids)
    with around():
        assert qkit.quantize(found, scheme, calibration=ids).to_dict()["layers"] == report.to_dict()["layers"]
    state = found.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.state_dict().items())


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_where_one_searches_changes_nothing(llama, around):
    ids = torch.randint(0, 97, (4, 16), generator=torch.Generator().manual_seed(0))

    def searched():
        found = qkit.sensitivity(llama, [qkit.RTN(4), qkit.GPTQ(4, None)], calibration=ids).to_dict()
        return found, [one.losses for one in qkit.search_scales(llama, qkit.AWQ(4, 4), calibration=ids)]

    expected = searched()
    with around():
        assert searched() == expected


@pytest.mark.parametrize("scheme", VARIANTS, **named)
def test_a_device_context_changes_nothing(scheme):
    """transformers builds models inside torch.device("meta"): what is read of data there must not be made of none."""
    weight = torch.randn(6, 48, generator=torch.Generator().manual_seed(0))
    expected = scheme.round(weight).q
    for part in vars(codebooks).values():
        if hasattr(part, "cache_clear"):
            part.cache_clear()
    with torch.device("meta"):
        found = scheme.round(weight).q
        again = stored_from(found.tensors(), {"kind": found.kind, **found.meta()})
        layer = scheme.layer(again, None)
        y = layer(weight)
    assert torch.equal(found.dequantize(), expected.dequantize())
    assert torch.equal(y, scheme.layer(expected, None)(weight))
