import json
from dataclasses import FrozenInstanceError, fields

import pytest

from qkit.methods.awq import AWQ
from qkit.methods.codebook import FP4, NF4
from qkit.methods.gptq import GPTQ
from qkit.methods.llm_int8 import LLMInt8
from qkit.methods.registry import SCHEMES, parse_scheme, scheme_from_dict
from qkit.methods.rtn import RTN
from qkit.methods.smoothquant import SmoothQuant
from qkit.methods.w8a8 import W8A8


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        (RTN(8), "RTN W8 per channel"),
        (RTN(4, 128), "RTN W4 g128"),
        (RTN(3, "tensor"), "RTN W3 per tensor"),
        (RTN(bits=2, group_size=64, symmetric=True), "RTN W2 g64 sym"),
        (LLMInt8(), "LLM.int8"),
        (NF4(), "NF4 b64 dq"),
        (FP4(128, double_quant=False), "FP4 b128"),
        (GPTQ(3), "GPTQ W3 g128"),
        (GPTQ.paper(), "GPTQ paper W4 per channel"),
        (GPTQ.paper(4, 128, symmetric=True), "GPTQ paper W4 g128 sym"),
        (AWQ(4, rounding=GPTQ(4)), "AWQ W4 g128 + GPTQ"),
        (W8A8(), "W8A8 dynamic"),
        (W8A8("per-tensor", "mse"), "W8A8 static mse"),
        (SmoothQuant(None, "per-tensor"), "SmoothQuant searched static"),
    ],
)
def test_the_name_says_bits_grouping_and_symmetry(scheme, name):
    assert scheme.name == name


GPTQ8 = GPTQ(8, None, symmetric=True)
VARIANTS = {
    RTN: [
        {"bits": 3},
        {"group_size": 32},
        {"group_size": "tensor"},
        {"symmetric": True},
        {"include_zero": False},
        {"scale_dtype": "float32"},
    ],
    LLMInt8: [{"threshold": 0.0}, {"threshold": 5.5}],
    NF4: [{"block_size": 32}, {"double_quant": False}],
    FP4: [{"block_size": 4096}, {"double_quant": False}],
    GPTQ: [
        {"bits": 3},
        {"group_size": None},
        {"symmetric": True},
        {"act_order": False},
        {"act_order": False, "static_groups": False},
        {"damp": 0.02},
        {"scale_search": False},
        {"match_original": False},
        {"refit_scales": False},
        {"shrink": 0.1},
        {"scale_dtype": "float32"},
        dict(damp=0.01, shrink=0.0, scale_search=False, match_original=False, refit_scales=False),
    ],
    AWQ: [
        {"bits": 3},
        {"group_size": 64},
        {"symmetric": True},
        {"clip": False},
        {"rounding": GPTQ()},
    ],
    W8A8: [{"activations": "per-tensor"}, {"activations": "per-tensor", "activation_range": "mse"}],
    SmoothQuant: [{"alpha": 0.8}, {"alpha": None}, {"activations": "per-tensor"}, {"rounding": GPTQ8}],
}
ALL = [kind(**variant) for kind, variants in VARIANTS.items() for variant in ({}, *variants)]


def test_schemes_that_differ_have_names_that_differ():
    assert VARIANTS.keys() == set(SCHEMES.values())
    names = [scheme.name for scheme in ALL]
    assert len(set(names)) == len(names), names


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
def test_a_scheme_survives_json(scheme):
    back = scheme_from_dict(json.loads(json.dumps(scheme.to_dict())))
    assert back == scheme and type(back) is type(scheme) and back.name == scheme.name


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
def test_only_what_looks_at_inputs_is_calibrated(scheme):
    looks = isinstance(scheme, GPTQ | AWQ | SmoothQuant) or getattr(scheme, "activations", "") == "per-tensor"
    assert scheme.calibrated is looks


def test_the_gptq_of_the_paper_leaves_out_what_came_after():
    scheme = GPTQ.paper(3, 64)
    assert (scheme.bits, scheme.group_size, scheme.symmetric, scheme.damp, scheme.shrink) == (3, 64, False, 0.01, 0)
    assert not (scheme.act_order or scheme.scale_search or scheme.match_original or scheme.refit_scales)
    assert not scheme.static_groups and GPTQ.paper(act_order=True).static_groups


@pytest.mark.parametrize("kind", SCHEMES.values())
def test_the_record_holds_every_field_and_the_name(kind):
    assert set(kind().to_dict()) == {"scheme"} | {field.name for field in fields(kind)}


def test_a_scheme_is_frozen_and_hashable():
    with pytest.raises(FrozenInstanceError):
        RTN().bits = 8
    assert len({RTN(), RTN(), RTN(8)}) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RTN(bits=16), r"bits=16 is outside 2\.\.8; use"),
        (lambda: RTN(group_size=0), "group_size=0 is not a group size; use"),
        (lambda: RTN(group_size="row"), "group_size='row' is not a group size; use"),
        (lambda: RTN(scale_dtype="bfloat16"), "scale_dtype='bfloat16' is not one of float16, float32; use"),
        (lambda: RTN(symmetric=True, include_zero=False), "contradict each other: .* leave one of them out"),
        (lambda: LLMInt8(-1.0), r"threshold=-1\.0 is not a size of activations; use 6\.0"),
        (lambda: LLMInt8(float("nan")), "threshold=nan is not a size"),
        (lambda: NF4(100), "block_size=100 is not a power of two from 32 to 4096; use 64"),
        (lambda: FP4(8192), "block_size=8192 is not a power of two"),
        (lambda: GPTQ(1), r"bits=1 is outside 2\.\.8; use"),
        (lambda: GPTQ(4, "tensor"), 'group_size="tensor" is for RTN, use None'),
        (lambda: GPTQ(damp=-0.1), r"damp=-0\.1 is not a share of the Hessian's diagonal; use"),
        (lambda: GPTQ(damp=float("inf")), "damp=inf is not a share"),
        (lambda: GPTQ(shrink=-1), "shrink=-1 is not a share"),
        (lambda: GPTQ(static_groups=False), "act_order=True with static_groups=False .* leave static_groups=True"),
        (lambda: GPTQ(scale_dtype="int8"), "scale_dtype='int8' is not one of"),
        (lambda: AWQ(9), r"bits=9 is outside 2\.\.8; use"),
        (lambda: AWQ(4, "tensor"), 'group_size="tensor" is for RTN, use None'),
        (lambda: AWQ(grid=0), "grid=0 tries no alpha; use a whole number from 1"),
        (lambda: AWQ(4, rounding=GPTQ(3)), "disagree on bits, group_size or symmetric .* give both the same"),
        (lambda: AWQ(4, 64, rounding=GPTQ(4)), "disagree on bits, group_size or symmetric"),
        (lambda: AWQ(4, symmetric=True, rounding=GPTQ(4)), "disagree on bits, group_size or symmetric"),
        (lambda: W8A8("per-row"), "activations='per-row' is not one of 'per-token', 'per-tensor'; use 'per-token'"),
        (lambda: W8A8(activation_range="max"), "activation_range='max' is not one of 'min-max', 'percentile', 'mse'"),
        (lambda: SmoothQuant(1.5), r"alpha=1\.5 is outside \[0, 1\]; use 0\.5, or None"),
        (lambda: SmoothQuant(-0.1), r"alpha=-0\.1 is outside"),
        (lambda: SmoothQuant(float("nan")), "alpha=nan is outside"),
        (lambda: SmoothQuant(activations="row"), "activations='row' is not one of"),
        (
            lambda: SmoothQuant(rounding=GPTQ(8)),
            r"does not give INT8 weights by row; use GPTQ\(8, None, symmetric=True",
        ),
    ],
)
def test_a_scheme_is_checked_when_it_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [AWQ, SmoothQuant])
def test_what_rounds_is_gptq(kind):
    with pytest.raises(TypeError, match=r"rounding=RTN\(.* is no GPTQ scheme; use GPTQ\("):
        kind(rounding=RTN(8))


def test_an_unknown_scheme_in_a_record_is_refused():
    names = ", ".join(SCHEMES)
    with pytest.raises(ValueError, match=f"scheme='GGUF' is not one of {names}; was it written by a newer qkit"):
        scheme_from_dict({"scheme": "GGUF", "bits": 4})


def test_an_unknown_field_in_a_record_is_refused():
    with pytest.raises(ValueError, match="RTN has no field damp; was it written by a newer qkit"):
        scheme_from_dict({**RTN().to_dict(), "damp": 0.01})


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("w8", RTN(8)),
        ("w4g128", RTN(4, 128)),
        ("W3G64SYM", RTN(3, 64, symmetric=True)),
        ("w8sym", RTN(8, symmetric=True)),
        ("w8tensor", RTN(8, "tensor")),
        ("w2tensorsym", RTN(2, "tensor", symmetric=True)),
        ("gptq-w4g128", GPTQ()),
        ("gptq-w3", GPTQ(3, None)),
        ("AWQ-w3g64sym", AWQ(3, 64, symmetric=True)),
        ("nf4", NF4()),
        ("fp4-b128", FP4(128)),
        ("llm.int8", LLMInt8()),
        ("w8a8", W8A8()),
        ("w8a8-static", W8A8("per-tensor")),
        ("smoothquant", SmoothQuant()),
        ("smoothquant-0.8", SmoothQuant(0.8)),
        ("smoothquant-1-static", SmoothQuant(1.0, "per-tensor")),
    ],
)
def test_a_scheme_is_read_as_the_command_line_spells_it(text, scheme):
    assert parse_scheme(text) == scheme


@pytest.mark.parametrize("text", ["", "w", "4", "int4", "w4g", "w4 g128", "w4g128asym", "w-4", "xw4", "gptq", "nf4g64"])
def test_a_spelling_that_is_not_understood_is_refused_with_examples(text):
    with pytest.raises(ValueError, match=f"scheme '{text}' is not understood; write e.g. w8, w4g128, w4g128sym"):
        parse_scheme(text)


def test_a_spelled_scheme_is_checked_too():
    with pytest.raises(ValueError, match=r"bits=16 is outside 2\.\.8"):
        parse_scheme("w16")


@pytest.mark.parametrize(
    ("group_size", "widths", "made"),
    [
        (128, (576, 1536), 64),  # SmolLM2-135M
        (128, (896, 4864), 128),  # Qwen2-0.5B
        (32, (576,), 32),
        (96, (576,), 96),
        (128, (48,), 16),
        (128, (100,), None),  # groups of 4 would cost more than they gain
        (8, (100,), None),
        (128, (40,), None),
        (4, (100,), 4),
        (None, (100,), None),
    ],
)
def test_a_group_size_is_halved_until_it_divides_every_row(group_size, widths, made):
    assert RTN(4, group_size).fitted(widths) == RTN(4, made)
    nested = AWQ(4, group_size, rounding=GPTQ(4, group_size))
    assert nested.fitted(widths) == AWQ(4, made, rounding=GPTQ(4, made))


def test_one_scale_for_all_has_no_groups_to_fit():
    assert RTN(4, "tensor").fitted((7,)) == RTN(4, "tensor")
