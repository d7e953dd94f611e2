import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from qkit import RTN, compare, disk_bytes, kl_divergence, passages, perplexity, quantize
from qkit.model.surgery import clone
from qkit.study.compare import TOUR
from qkit.study.comparison import Comparison
from qkit.study.sizes import float32_bytes

SCHEMES = [RTN(8), RTN(4, 4), RTN(2, symmetric=True)]


@pytest.fixture
def comparison(model, ids):
    return compare(model, SCHEMES, ids)


def test_rows_stand_in_the_order_given_behind_the_original(comparison):
    assert [row.name for row in comparison.rows] == [
        "FP32",
        "RTN W8 per channel",
        "RTN W4 g4",
        "RTN W2 per channel sym",
    ]
    assert [row.scheme for row in comparison.rows] == [None, *(scheme.to_dict() for scheme in SCHEMES)]


def test_every_row_holds_what_the_functions_measure_alone(model, ids, comparison):
    for row, scheme in zip(comparison.rows[1:], SCHEMES, strict=True):
        other = clone(model)
        report = quantize(other, scheme)
        assert row.perplexity == perplexity(other, None, ids)
        assert row.kl == kl_divergence(model, other, None, ids)
        assert row.disk_bytes == disk_bytes(other)
        assert row.bits_per_weight == report.bits_per_weight
        assert row.compression == comparison.rows[0].disk_bytes / row.disk_bytes
        assert [layer.error for layer in row.report.layers] == [layer.error for layer in report.layers]


def test_the_original_is_the_row_that_the_others_are_measured_from(model, ids, comparison):
    original = comparison.rows[0]
    parameters = {id(parameter): parameter.numel() for parameter in model.parameters()}
    assert original.perplexity == perplexity(model, None, ids)
    assert (original.kl, original.bits_per_weight, original.compression) == (0, 32, 1)
    assert original.disk_bytes == float32_bytes(model) == 4 * sum(parameters.values())


def test_fewer_bits_are_smaller_and_further_from_the_original(comparison):
    _, eight, four, two = comparison.rows
    assert eight.disk_bytes > two.disk_bytes
    assert 0 < eight.kl < four.kl < two.kl


def test_the_original_is_left_as_it_was(model, ids):
    before = {name: (tensor, tensor.detach().clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    modules = list(model.modules())
    compare(model, SCHEMES, ids)
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is before[name][0]
        assert torch.equal(tensor, before[name][1])


def test_a_scheme_given_twice_is_refused(llama, ids):
    with pytest.raises(ValueError, match="scheme 'RTN W8 per channel' is given twice; leave one out"):
        compare(llama, [RTN(8), RTN(4), RTN(8)], ids)


def test_schemes_that_differ_only_in_the_range_are_compared(llama, ids):
    rows = compare(llama, [RTN(4), RTN(4, include_zero=False)], ids).rows
    assert len({row.name for row in rows}) == 3


def test_what_is_no_scheme_is_a_type_error(llama, ids):
    with pytest.raises(TypeError, match=r"scheme='int4' is not a scheme; give one such as qkit\.RTN"):
        compare(llama, ["int4"], ids)


def test_a_text_goes_through_the_tokenizer(llama, word_tokenizer):
    tokenizer = word_tokenizer(bos_token="w00")
    comparison = compare(llama, [RTN(8)], "w05 " * 130, tokenizer=tokenizer, text_name="fives")
    assert comparison.tokens == 126
    assert comparison.caption == "LlamaForCausalLM on fives, 126 tokens in 2 passages"


def test_a_comparison_survives_json(comparison):
    assert len(json.loads(json.dumps(comparison.to_dict(), allow_nan=False))["rows"]) == 4
    again = Comparison.from_dict(json.loads(json.dumps(comparison.to_dict(), allow_nan=False)))
    assert [row.cells() for row in again.rows] == [row.cells() for row in comparison.rows]
    assert [row.passages for row in again.rows] == [row.passages for row in comparison.rows]
    assert again.ties() == comparison.ties() and again.caption == comparison.caption


def test_a_row_of_one_passage_survives_json_without_an_error(llama, ids):
    alone = compare(llama, [RTN(2)], ids[:1])
    row = Comparison.from_dict(json.loads(json.dumps(alone.to_dict(), allow_nan=False))).rows[1]
    assert math.isnan(row.kl_error) and math.isnan(row.ratio_error) and row.cells() == alone.rows[1].cells()


def test_repr_is_one_line(comparison):
    assert "\n" not in repr(comparison)
    assert "4 models" in repr(comparison)


def test_errors_are_over_passages_and_those_of_the_ratio_paired(model, comparison):
    ids = torch.randint(0, 97, (7, 20), generator=torch.Generator().manual_seed(2))
    original, *rows = compare(model, SCHEMES, ids).rows
    assert len(original.passages) == 7 and (original.ratio, original.ratio_error, original.kl_error) == (1, 0, 0)
    for row in rows:
        kl = [passage.kl for passage in row.passages]
        ratios = [a.nll - b.nll for a, b in zip(row.passages, original.passages, strict=True)]
        assert row.kl == pytest.approx(np.mean(kl)) and row.ratio == pytest.approx(math.exp(np.mean(ratios)))
        assert row.kl_error == pytest.approx(np.std(kl, ddof=1) / math.sqrt(7))
        assert row.ratio_error == pytest.approx(row.ratio * np.std(ratios, ddof=1) / math.sqrt(7))


def test_differences_and_ties_are_those_of_the_passages(model):
    ids = torch.randint(0, 97, (5, 20), generator=torch.Generator().manual_seed(3))
    comparison = compare(model, [RTN(8), RTN(2), RTN(8, symmetric=True)], ids)
    eight, two, symmetric = (row.name for row in comparison.rows[1:])
    there, back = comparison.difference(two, eight), comparison.difference(eight, two)
    assert there.mean == -back.mean > 0 and there.error == back.error and not there.is_tie
    log = comparison.difference(two, "FP32", "nll")
    assert math.exp(log.mean) == pytest.approx(comparison.rows[2].ratio)
    order = sorted([eight, two, symmetric], key=lambda name: comparison.difference(name, "FP32").mean)
    expected = [pair for pair in pairwise(order) if comparison.difference(*pair).is_tie]
    assert comparison.ties() == expected and all(two not in pair for pair in expected)
    assert json.loads(json.dumps(comparison.to_dict()))["ties"] == [list(pair) for pair in expected]
    with pytest.raises(ValueError, match=r"no row is called 'RTN'; there are FP32, RTN W8"):
        comparison.difference("RTN", eight)
    with pytest.raises(ValueError, match="measure='bits' is not one of kl, nll"):
        comparison.difference(two, eight, "bits")


def test_of_one_passage_nothing_is_ranked(llama):
    comparison = compare(llama, SCHEMES[:2], torch.randint(0, 97, (1, 20)))
    assert comparison.notes == ["One passage has no standard error: give more text before ranking anything."]
    assert "±" not in "".join(cell for row in comparison.rows for cell in row.cells())
    assert comparison.to_dict()["rows"][1]["kl_error"] is None


def test_the_embedded_model_is_compared_by_name_on_the_tales(embedded):
    comparison = compare("bookworm-14m", [RTN(4, 128)], max_chunks=3)
    assert comparison.caption == "bookworm-14m on tales, 1,533 tokens in 2 passages"
    assert comparison.rows[0].perplexity == perplexity(*embedded, passages("tales"), max_chunks=3)
    assert comparison.rows[0].disk_bytes == 4 * 14_162_304
    assert comparison.rows[1].bits_per_weight == 4.15625


def test_the_tour_goes_from_8_bits_down_to_2():
    assert [scheme.bits for scheme in TOUR] == [8, 4, 4, 4, 3, 2]


def test_the_tour_goes_into_the_rows_of_any_model_and_what_is_asked_for_is_not_changed(llama, ids):
    """Its rows are of 48 and 100 numbers, which no group of the tour divides."""
    rows = compare(llama, text=ids).rows
    assert [row.name for row in rows[1:]] == [f"RTN W{bits} per channel" for bits in (8, 4, 3, 2)]
    with pytest.raises(ValueError, match=r"group_size=128 does not divide in_features=48 of .*; use a divisor"):
        compare(llama, TOUR, ids)
