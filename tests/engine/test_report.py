import json

import pytest
from torch import nn

from qkit import RTN, LayerReport, QuantizationReport, quantize
from qkit.engine.report import html_table
from qkit.numerics.error import ErrorStatistics
from qkit.study.comparison import Comparison, ComparisonRow
from qkit.study.evaluate import Passage


def layer(name="a<b>", out=4, into=8, nbytes=20, sqnr=20.0):
    error = ErrorStatistics(sqnr, 0.1, 0.25, 0.0, 0.1)
    return LayerReport(name, "Linear", (out, into), "RTN W4", 8 * nbytes / (out * into), nbytes, error)


def row(name="RTN W4 g128", perplexity=9.2, **changes):
    passages = tuple(Passage(nll, 0.3, 511) for nll in (2.0, 2.4))
    fields = {
        "scheme": RTN().to_dict(),
        "kl": 0.3,
        "kl_error": 0.0123,
        "ratio": perplexity / 6.4,
        "ratio_error": 0.02,
        "passages": passages,
        "disk_bytes": 9_550_000,
        "memory_bytes": 12_000_000,
        "bits_per_weight": 4.156,
        "compression": 5.9,
    }
    return ComparisonRow(name, perplexity=perplexity, **{**fields, "seconds": 0.5, "report": None, **changes})


@pytest.fixture
def report():
    layers = (layer(), layer("c", 2, 8, 12, sqnr=7.5))
    return QuantizationReport(RTN().to_dict(), layers, (("lm_head", "output <head>"),), 0.5)


def test_bytes_and_bits_are_summed_over_the_layers(report):
    assert report.nbytes == 32
    assert report.bits_per_weight == 8 * 32 / (4 * 8 + 2 * 8)


def test_the_repr_of_a_report_is_one_line_with_its_worst_layer(report):
    assert repr(report) == (
        "QuantizationReport(RTN W4: 2 layers, 5.33 bits per weight, worst c at 7.5 dB, 1 left as they were; "
        "100% of all weights quantized)"
    )


def test_a_report_survives_json(report):
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert record["skipped"] == [["lm_head", "output <head>"]]
    assert [row["name"] for row in record["layers"]] == ["a<b>", "c"]
    assert record["layers"][0]["shape"] == [4, 8]
    assert record["layers"][0]["error"]["sqnr_db"] == 20.0
    assert (record["nbytes"], record["seconds"]) == (32, 0.5)


def test_an_exact_layer_has_a_report_that_json_can_hold():
    model = nn.Sequential(nn.Linear(4, 4))
    nn.init.zeros_(model[0].weight)
    report = quantize(model, RTN(4))
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["layers"][0]["error"]["sqnr_db"] is None
    assert "inf dB" in repr(report)


def test_the_html_of_a_report_escapes_names_and_reasons(report):
    html = report._repr_html_()
    assert "a&lt;b&gt;" in html
    assert "left: output &lt;head&gt;" in html
    assert "<b>" not in html
    assert "<head>" not in html
    assert html.count("<tr>") == 1 + 2 + 1


def test_a_table_escapes_header_cells_and_caption():
    html = html_table(["<h>"], [["<c>"]], "<caption & more>")
    for text in ("&lt;h&gt;", "&lt;c&gt;", "&lt;caption &amp; more&gt;"):
        assert text in html
    assert "<c>" not in html


def test_the_first_column_reads_left_and_the_numbers_right():
    html = html_table(["name", "number"], [["a", "1"]], "")
    assert html.count("text-align:left") == html.count("text-align:right") == 2


@pytest.mark.parametrize(
    ("ratio", "error", "text"),
    [
        (1.43474, 0.0211, "1.435±0.021"),
        (9999.9991, 3, "9999.999±3.000"),
        (123456.0, 1, "1.2e+05"),
        (float("inf"), float("nan"), "inf"),
        (1.5, float("nan"), "1.500"),
    ],
)
def test_a_ratio_is_printed_with_its_error_and_a_large_one_in_powers_of_ten(ratio, error, text):
    cells = row(ratio=ratio, ratio_error=error).cells()
    assert cells == ["RTN W4 g128", "0.3000±0.0123", f"×{text}", "9.6", "4.16", "5.9x", "0.50"]


def test_the_original_is_what_the_others_are_measured_by():
    assert row("FP32", scheme=None).cells()[:3] == ["FP32", "0", "9.20"]


def test_a_row_with_infinite_numbers_survives_json():
    record = json.loads(json.dumps(row(perplexity=float("inf"), kl=float("nan")).to_dict(), allow_nan=False))
    assert (record["perplexity"], record["kl"]) == (None, None)
    assert "report" not in record


def test_a_comparison_is_one_line_a_table_and_a_record():
    comparison = Comparison("tiny<b>", "your text", 12345, (row("FP32", 6.4, scheme=None), row(), row("W2", 3774.0)))
    assert repr(comparison) == (
        "Comparison(tiny<b> on your text, 12,345 tokens in 2 passages: 3 models, perplexity 6.40 (FP32) to 3774.00 (W2))"
    )
    html = comparison._repr_html_()
    assert "tiny&lt;b&gt; on your text, 12,345 tokens" in html
    assert html.count("<tr>") == 4
    record = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert [entry["name"] for entry in record["rows"]] == ["FP32", "RTN W4 g128", "W2"]
    assert (record["model"], record["tokens"]) == ("tiny<b>", 12345)


def test_a_table_without_seconds_is_the_same_however_long_it_took():
    quick, slow = (Comparison("tiny", "text", 12, (row("FP32", scheme=None), row(seconds=s))) for s in (0.5, 60.0))
    table = quick.without_seconds()
    assert quick.table != slow.table and table == slow.without_seconds()
    assert table.header == Comparison.header[:-1] and table.rows[1] == tuple(row().cells()[:-1])
    assert repr(table).splitlines()[0] == quick.caption and "60.00" not in repr(table)
    head, first, second = repr(table).splitlines()[1:4]
    assert len(head) == len(first) == len(second) and second.startswith("RTN W4 g128  0.3000±0.0123")
    assert table._repr_html_().count("<tr>") == 3 and "60.00" in slow._repr_html_()
