"""A new scheme is one file and one line: the one that CONTRIBUTING.md prints, walked through all that schemes go through."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import qkit
from qkit import plots
from qkit.cli import app
from qkit.methods.registry import SCHEMES, parse_scheme, scheme_from_dict

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def ternary(tmp_path, monkeypatch):
    """The module, as if it lay in qkit/methods and stood in the registry."""
    path = tmp_path / "ternary.py"
    path.write_text(re.search(r"```python\n(.*?)```", CONTRIBUTING.read_text(encoding="utf-8"), re.S)[1])
    spec = importlib.util.spec_from_file_location("qkit.methods.ternary", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(SCHEMES, "Ternary", module.Ternary)
    return module


def test_it_is_spelled_named_and_written_down(ternary):
    scheme = parse_scheme("ternary")
    assert scheme == ternary.Ternary() and scheme.name == "Ternary"
    other = ternary.Ternary(0.5)
    assert other.name != scheme.name and scheme_from_dict(json.loads(json.dumps(other.to_dict()))) == other
    with pytest.raises(ValueError, match=r"write e.g. .*ternary"):
        parse_scheme("quaternary")


def test_it_rounds_as_the_paper_says_and_takes_the_bits_it_names(ternary):
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    q = qkit.quantize_tensor(weight, ternary.Ternary())
    large = weight.abs() > 0.7 * weight.abs().mean(1, keepdim=True)
    for row, kept, found in zip(weight, large, q.dequantize(), strict=True):
        mean = row[kept].abs().mean() if kept.any() else torch.tensor(0.0)
        torch.testing.assert_close(found, row.sign() * kept * mean, rtol=2**-10, atol=0)
    assert 8 * q.nbytes / weight.numel() == ternary.Ternary().stored_bits((5, 64))


def test_a_model_is_quantized_saved_loaded_and_multiplied(ternary, make_model, tmp_path):
    model = make_model("llama")
    report = qkit.quantize(model, {"*.down_proj": qkit.RTN(4), "*": ternary.Ternary()})
    assert {layer.scheme for layer in report.layers if "q_proj" in layer.name} == {"Ternary"}
    ids = torch.arange(12)[None]
    expected = model(ids).logits
    qkit.save(model, tmp_path)
    back, _ = qkit.load(tmp_path)
    assert torch.equal(back(ids).logits, expected)


def test_it_is_compared_drawn_and_called_from_the_command_line(ternary, tmp_path):
    comparison = qkit.compare("bookworm-14m", [ternary.Ternary(), qkit.RTN(2)], max_chunks=1)
    assert comparison.rows[1].name == "Ternary" and comparison.rows[1].perplexity > comparison.rows[0].perplexity
    assert "Ternary" in plots.perplexity_against_bytes(comparison).alt
    weight = torch.randn(8, 32)
    assert plots.WeightHistogram(weight, qkit.quantize_tensor(weight, ternary.Ternary())).alt
    arguments = ["quantize", "bookworm-14m", str(tmp_path / "out"), "--scheme", "ternary", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0 and json.loads(result.stdout)["scheme"]["scheme"] == "Ternary"


def test_it_stands_in_a_sweep_of_sensitivity(ternary, make_model):
    model = make_model("llama")
    ids = torch.arange(64)[None].repeat(2, 1)
    found = qkit.sensitivity(model, [ternary.Ternary(), qkit.RTN(4)], calibration=ids)
    assert {choice.scheme.name for choice in found.choices} == {"Ternary", "RTN W4 per channel"}
