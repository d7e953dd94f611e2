"""The command line: what it prints, what it writes, and how it refuses."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import qkit
from qkit.cli import app, main


@pytest.fixture
def run():
    def invoke(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return invoke


def test_compare_prints_the_table_and_writes_the_page(run, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    printed = run("compare", "--scheme", "w8", "--scheme", "w4g128", "--chunks", "1", "--out", str(tmp_path))
    for words in ("bookworm-14m on tales, 511 tokens", "FP32", "RTN W8 per channel", "RTN W4 g128"):
        assert words in printed
    assert "…" not in printed, "a column is cut off at 80 characters"
    assert (tmp_path / "compare.html").is_file() and (tmp_path / "compare.png").is_file()


@pytest.fixture
def narrow(make_model, word_tokenizer, tmp_path):
    """A folder with a model whose rows of 48 and 96 numbers have no groups of 128, 64 or 32."""
    qkit.save(make_model("llama", intermediate_size=96), tmp_path / "narrow", word_tokenizer(bos_token="w00"))
    return tmp_path / "narrow"


def test_what_nobody_named_goes_into_the_rows_of_the_model(narrow, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("w05 w07 " * 300)
    compared = CliRunner().invoke(app, ["compare", str(narrow), "--text", str(tmp_path / "text.txt"), "--json"])
    names = [row["name"] for row in json.loads(compared.stdout)["rows"]]
    assert names[1:] == ["RTN W8 per channel", "RTN W4 per channel", "RTN W4 g16", "RTN W3 g16", "RTN W2 g16"]
    assert "note: groups of RTN W4 g128 do not go into all rows; RTN W4 g16 instead" in compared.stderr
    made = CliRunner().invoke(app, ["quantize", str(narrow), str(tmp_path / "out"), "--json"])
    assert json.loads(made.stdout)["scheme"]["group_size"] == 16 and "RTN W4 g16 instead" in made.stderr
    refused = CliRunner().invoke(app, ["quantize", str(narrow), str(tmp_path / "other"), "--scheme", "w4g128"])
    assert "group_size=128 does not divide in_features=48" in str(refused.exception)


def test_compare_as_json_says_what_the_library_says(run):
    printed = json.loads(run("compare", "--scheme", "w4g128sym", "--chunks", "1", "--json"))
    measured = qkit.compare("bookworm-14m", [qkit.RTN(4, 128, symmetric=True)], max_chunks=1).to_dict()
    for record in (printed, measured):
        del record["rows"][1]["seconds"]
    assert printed == json.loads(json.dumps(measured))


def test_quantize_saves_what_eval_and_load_read(run, tmp_path):
    report = json.loads(run("quantize", "bookworm-14m", str(tmp_path), "--scheme", "w3g64", "--json"))
    assert len(report["layers"]) == 56 and report["scheme"]["bits"] == 3
    value = json.loads(run("eval", str(tmp_path), "--chunks", "1", "--json"))["perplexity"]
    model, tokenizer = qkit.load(tmp_path)
    assert value == pytest.approx(qkit.perplexity(model, tokenizer, qkit.passages("tales"), max_chunks=1))


def test_methods_that_need_data_learn_from_the_texts_that_are_named(run, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(qkit.texts("python-docs-heldout")[:20_000])  # the other one takes long to gather
    arguments = (
        "quantize",
        "bookworm-14m",
        str(tmp_path / "out"),
        "--scheme",
        "gptq-w3g128",
        "--include",
        "model.layers.0.*",
    )
    report = json.loads(run(*arguments, "--calibration", str(text), "--calibration-chunks", "2", "--json"))
    assert report["scheme"]["scheme"] == "GPTQ" and {layer["tokens"] for layer in report["layers"]} == {1024}


def test_planted_outliers_break_plain_int8_and_not_llm_int8(run):
    arguments = ("--scheme", "w8a8", "--scheme", "llm.int8", "--planted", "64", "--chunks", "2", "--json")
    rows = json.loads(run("compare", *arguments))["rows"]
    _, plain, decomposed = (row["kl"] for row in rows)
    assert plain > 10 * decomposed > 0


def test_quantize_leaves_what_a_glob_excludes_and_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    printed = run("quantize", "bookworm-14m", str(tmp_path), "--exclude", "*.down_proj")
    assert "48 layers" in printed and "excluded" in printed and f"qkit.load({str(tmp_path)!r})" in printed


def test_convert_writes_what_others_read_and_says_what_is_lost(run, tmp_path):
    run("quantize", "bookworm-14m", str(tmp_path / "a"), "--scheme", "w4a8g128sym")
    printed = run("convert", str(tmp_path / "a"), str(tmp_path / "b"), "--format", "gptq")
    assert "56 quantized layers" in printed and "note: 56 layers round their inputs to INT8 here" in printed
    report = json.loads(run("convert", str(tmp_path / "b"), str(tmp_path / "c"), "--format", "qkit", "--json"))
    assert report == {"path": str(tmp_path / "c"), "format": "qkit", "layers": 56, "notes": []}
    assert (tmp_path / "c" / "qkit.json").is_file() and qkit.load(tmp_path / "c")[1] is not None
    (tmp_path / "link").symlink_to(tmp_path / "b")
    for source, form in (("b", "awq"), ("link", "qkit")):
        with pytest.raises(ValueError, match="is where the model to be converted lies; give another name"):
            run("convert", str(tmp_path / "b"), str(tmp_path / source), "--format", form)


def test_convert_does_not_write_over_the_one_file_that_it_reads(run, tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed: pip install qkit[gguf]")
    run("quantize", "bookworm-14m", str(tmp_path / "a"), "--scheme", "w4g32sym")
    run("convert", str(tmp_path / "a"), str(tmp_path / "d"), "--format", "gguf")
    with pytest.raises(ValueError, match="is where the model to be converted lies; give another name"):
        run("convert", str(tmp_path / "d" / "model.gguf"), str(tmp_path / "d"), "--format", "gguf")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval", "./nowhere"], "folder './nowhere' does not exist"),
        (["eval", "bookwrm-14m"], "'bookworm-14m' is; correct the name"),
        (["compare", "--scheme", "w9"], "bits=9 is outside 2..8"),
        (["warmup", "--scheme", "w9"], "bits=9 is outside 2..8"),
        (["compare", "--scheme", "four"], "scheme 'four' is not understood"),
        (["compare", "--text", "nothing-here"], "is no file and none of"),
        (["quantize", "bookworm-14m", "out", "--scheme", "w4g100"], "group_size=100 does not divide"),
        (["quantize", "bookworm-14m", "out", "--exclude", "typo*"], "exclude='typo*' matches none"),
        (["quantize", "bookworm-14m", "out", "--scheme", "nf4", "--calibration", "nothing"], "is no file and none of"),
        (["compare", "--scheme", "w8", "--planted", "-1"], "factor=-1"),
        (["convert", "bookworm-14m", "out", "--format", "gptx"], "format='gptx' is not one of gptq"),
        (["convert", "bookworm-14m", "out", "--format", "awq"], "no layer of this one is: quantize it first"),
        (["bench", "gpu", "--shape", "4096"], "shape '4096' is not understood"),
        (["bench", "gpu", "--batch", "16"], "--batch belongs to a model; add --model"),
        (["bench", "gpu", "--model", "--tokens", "16"], "--tokens belongs to a layer; leave out --model"),
    ],
)
def test_an_error_is_one_sentence_on_stderr_and_status_2(arguments, words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["qkit", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.err.startswith("qkit: ") and words in captured.err and "Traceback" not in captured.err
    assert captured.out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["quantize", "bookworm-14m", "FOLDER"],
        ["convert", "bookworm-14m", "FOLDER", "--format", "gptq"],
        ["compare", "--out", "FOLDER"],
        ["bench", "cpu", "--out", "FOLDER"],
        ["bench", "model", "--out", "FOLDER"],
        ["bench", "gpu", "--out", "FOLDER"],
        ["bench", "gpu", "--model", "--out", "FOLDER"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_folder_that_cannot_be_written_is_said_before_the_work(arguments, monkeypatch, tmp_path):
    def work(*_args, **_kwargs):
        raise AssertionError("the work has begun")

    for place in (
        "qkit.load",
        "qkit.bench.linear.run",
        "qkit.bench.generation.run",
        "qkit.bench.gpu.run",
        "qkit.bench.gpu_generation.run",
    ):
        monkeypatch.setattr(place, work)
    (tmp_path / "file").touch()
    arguments = [str(tmp_path / "file") if word == "FOLDER" else word for word in arguments]
    with pytest.raises(FileExistsError, match="file is a file; give a folder"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_warmup_compiles_once_what_a_model_needs(run, tmp_path):
    first = json.loads(run("warmup", "--scheme", "w4g128", "--json"))
    assert (first["model"], first["schemes"]) == ("bookworm-14m", ["RTN W4 g128"])
    assert first["seconds"] > 0 and first["compiled"] >= 0 and first["found"] >= 0
    again = json.loads(run("warmup", "--json"))  # the same scheme, and the same process, which has it all
    assert (again["schemes"], again["compiled"], again["found"]) == (["RTN W4 g128"], 0, 0)
    run("quantize", "bookworm-14m", str(tmp_path), "--scheme", "w4g128")
    assert json.loads(run("warmup", str(tmp_path), "--json"))["schemes"] == []
    assert "0 kernels compiled, 0 were compiled already" in run("warmup", str(tmp_path))
    with pytest.raises(
        ValueError, match="is quantized, and its layers say which kernels they need; leave out --scheme"
    ):
        run("warmup", str(tmp_path), "--scheme", "w8")


def test_lab_opens_a_copy_of_the_lessons_and_never_overwrites_it(run, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(subprocess, "call", lambda command: opened.append(command) or 0)
    (tmp_path / "00_start_here.ipynb").write_text("my notes")
    for user in (1000, 0):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user, raising=False)
        run("lab", str(tmp_path))
    command = [sys.executable, "-m", "jupyterlab", str(tmp_path)]
    assert opened == [command, [*command, "--allow-root"]]
    assert (tmp_path / "00_start_here.ipynb").read_text() == "my notes"
    assert (tmp_path / "02_int4_and_groups.ipynb").stat().st_size > 10_000
    assert (tmp_path / "notation.md").is_file()
