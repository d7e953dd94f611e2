import json
from dataclasses import FrozenInstanceError, fields

import pytest

from qkit import RTN
from qkit.schemes import parse_scheme, scheme_from_dict


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        (RTN(8), "RTN W8 per channel"),
        (RTN(4, 128), "RTN W4 g128"),
        (RTN(3, "tensor"), "RTN W3 per tensor"),
        (RTN(bits=2, group_size=64, symmetric=True), "RTN W2 g64 sym"),
    ],
)
def test_the_name_says_bits_grouping_and_symmetry(scheme, name):
    assert scheme.name == name


VARIANTS = [
    {"bits": 3},
    {"group_size": 32},
    {"group_size": "tensor"},
    {"symmetric": True},
    {"include_zero": False},
    {"scale_dtype": "float32"},
]


def test_schemes_that_differ_have_names_that_differ():
    schemes = [RTN(), *(RTN(**variant) for variant in VARIANTS)]
    names = [scheme.name for scheme in schemes]
    assert len(set(names)) == len(names), names


@pytest.mark.parametrize("variant", [{}, *VARIANTS])
def test_a_scheme_survives_json(variant):
    scheme = RTN(**variant)
    assert scheme_from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme


def test_the_record_holds_every_field_and_the_name():
    assert set(RTN().to_dict()) == {"scheme"} | {field.name for field in fields(RTN)}


def test_a_scheme_is_frozen_and_hashable():
    with pytest.raises(FrozenInstanceError):
        RTN().bits = 8
    assert len({RTN(), RTN(), RTN(8)}) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 16}, r"bits=16 is outside 2\.\.8; use"),
        ({"group_size": 0}, "group_size=0 is not a group size; use"),
        ({"group_size": "row"}, "group_size='row' is not a group size; use"),
        ({"scale_dtype": "bfloat16"}, "scale_dtype='bfloat16' is not one of float16, float32; use"),
        ({"symmetric": True, "include_zero": False}, "contradict each other: .* leave one of them out"),
    ],
)
def test_a_scheme_is_checked_when_it_is_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        RTN(**arguments)


def test_an_unknown_scheme_in_a_record_is_refused():
    with pytest.raises(ValueError, match="scheme='GGUF' is not one of RTN; was it written by a newer qkit"):
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
    ],
)
def test_a_scheme_is_read_as_the_command_line_spells_it(text, scheme):
    assert parse_scheme(text) == scheme


@pytest.mark.parametrize("text", ["", "w", "4", "int4", "w4g", "w4 g128", "w4g128asym", "w-4", "xw4"])
def test_a_spelling_that_is_not_understood_is_refused_with_examples(text):
    with pytest.raises(
        ValueError, match=f"scheme '{text}' is not understood; write bits, group .* w8, w4g128, w4g128sym"
    ):
        parse_scheme(text)


def test_a_spelled_scheme_is_checked_too():
    with pytest.raises(ValueError, match=r"bits=16 is outside 2\.\.8"):
        parse_scheme("w16")
