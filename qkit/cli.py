"""qkit on the command line: compare, quantize, convert, eval, warmup, lab, doctor, bench."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

import qkit
from qkit.checkpoints.files import check_folder, write_bytes
from qkit.checkpoints.format import SaveReport
from qkit.checkpoints.formats import FORMATS, format_named
from qkit.engine.plan import fitted
from qkit.engine.report import QuantizationReport
from qkit.methods.registry import parse_scheme, spellings
from qkit.methods.rtn import RTN
from qkit.methods.scheme import Scheme
from qkit.model.surgery import find_targets
from qkit.nn.layers import quantized_layers
from qkit.study.compare import ALL, TOUR
from qkit.study.comparison import Comparison
from qkit.text.resources import expanded
from qkit.text.resources import folder as resource_folder
from qkit.text.tokens import CHUNKS

app = typer.Typer(
    help="Make language models small, and see what it costs.", no_args_is_help=True, pretty_exceptions_enable=False
)

bench = typer.Typer(help="Measure how fast layers and models are here, beside other libraries.", no_args_is_help=True)
app.add_typer(bench, name="bench")

Model = Annotated[str, typer.Argument(help="The embedded model, a folder, or a hub id.")]
Text = Annotated[str, typer.Option(help="tales, python-docs-heldout, python-docs, wikitext-2, or a file.")]
Chunks = Annotated[int | None, typer.Option(min=1, help="Evaluate on the first so many chunks of 511 tokens.")]
SPELLINGS = spellings()
Calibration = Annotated[
    list[str] | None, typer.Option(help="What methods that need data learn from: python-docs or a file; repeat it.")
]
CalibrationChunks = Annotated[int, typer.Option(min=1, help="At most so many chunks of 511 tokens of it.")]
USUAL = RTN(bits=4, group_size=128)
OUTLIER_CHANNELS = [7, 200]  # of the embedded model's 384: any two would do
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def compare(
    model: Model = "bookworm-14m",
    scheme: Annotated[list[str] | None, typer.Option(help=f"{SPELLINGS}; repeat it.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every method at every setting that the lessons speak of.")
    ] = False,
    calibration: Calibration = None,
    calibration_chunks: CalibrationChunks = CHUNKS,
    planted: Annotated[
        float | None, typer.Option(help="First multiply two channels of every block's norms: outliers, same function.")
    ] = None,
    text: Text = "tales",
    chunks: Chunks = None,
    out: Annotated[Path | None, typer.Option(help="Folder for compare.html and compare.png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Quantize a model by several schemes and put all of them in one table."""
    chosen = [parse_scheme(one) for one in scheme or ()]
    if out is not None:
        check_folder(out)
    network, tokenizer = qkit.load(model)
    schemes = chosen or _fitted(network, ALL if every else TOUR)
    if planted is not None:
        qkit.plant_outliers(network, OUTLIER_CHANNELS, planted)
    comparison = qkit.compare(
        network,
        schemes,
        qkit.passages(text),
        tokenizer=tokenizer,
        name=model if planted is None else f"{model} with outliers planted (x{planted:g})",
        text_name=text,
        max_chunks=chunks,
        calibration=_calibration(calibration, schemes),
        calibration_chunks=calibration_chunks,
    )
    if as_json:
        print(json.dumps(comparison.to_dict(), indent=1))
    else:
        _print_comparison(comparison)
    if out is not None:
        from qkit.plots.page import write_page

        page, picture = write_page(comparison, out)
        print(f"\nwrote {page} and {picture}", file=sys.stderr)


@app.command()
def quantize(
    model: Model,
    folder: Annotated[Path, typer.Argument(help="Where to save the quantized model.")],
    scheme: Annotated[
        str | None, typer.Option(help=f"{SPELLINGS}; if not given w4g128, or w4g64 where 128 does not divide the rows.")
    ] = None,
    calibration: Calibration = None,
    calibration_chunks: CalibrationChunks = CHUNKS,
    include: Annotated[list[str] | None, typer.Option(help="Globs on layer names, instead of the rule.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Globs on layer names that stay in float.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Folder that keeps finished blocks, to go on after Ctrl-C.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Quantize a model and save it."""
    given = parse_scheme(scheme) if scheme else None
    check_folder(folder)
    network, tokenizer = qkit.load(model)
    chosen = given or _fitted(network, [USUAL], include, exclude)[0]
    report = qkit.quantize(
        network,
        chosen,
        calibration=_calibration(calibration, [chosen]),
        tokenizer=tokenizer,
        max_chunks=calibration_chunks,
        include=include,
        exclude=exclude,
        resume=resume,
    )
    qkit.save(network, folder, tokenizer=tokenizer)
    if as_json:
        print(json.dumps(report.to_dict(), indent=1))
    else:
        _print_report(report)
        for warning in report.warnings:
            print(f"note: {warning}")
        print(f"\nsaved in {folder}; qkit.load({str(folder)!r}) brings it back")


@app.command()
def convert(
    model: Annotated[
        str, typer.Argument(help="A quantized model: a folder of any format that qkit reads, or a GGUF file.")
    ],
    folder: Annotated[Path, typer.Argument(help="Where to write it; for gguf a folder or the name of a file.")],
    format: Annotated[str, typer.Option(help=f"{', '.join(FORMATS)}, or qkit.")],
    as_json: AsJson = False,
) -> None:
    """Write a quantized model in a format that other libraries read: the same codes, nothing is quantized again."""
    chosen = None if format == "qkit" else format_named(format).name
    _check_apart(expanded(model), expanded(folder))
    check_folder(folder.parent if folder.suffix and chosen and folder.suffix == FORMATS[chosen].suffix else folder)
    network, tokenizer = qkit.load(model)
    if chosen is None:
        report = SaveReport(qkit.save(network, folder, tokenizer), "qkit", len(quantized_layers(network)))
    else:
        report = qkit.save(network, folder, tokenizer, format=chosen)
    if as_json:
        print(json.dumps(report.to_dict(), indent=1))
    else:
        print(repr(report))


def _check_apart(source: Path, target: Path) -> None:
    """Refuse to convert a model into its own place."""
    if any(path.exists() and source.exists() and path.samefile(source) for path in (target, target / "model.gguf")):
        raise ValueError(f"{target} is where the model to be converted lies; give another name, so that it is kept")


@app.command(name="eval")
def evaluate(model: Model, text: Text = "tales", chunks: Chunks = None, as_json: AsJson = False) -> None:
    """Print the perplexity of a model, quantized or not."""
    network, tokenizer = qkit.load(model)
    value = qkit.perplexity(network, tokenizer, qkit.passages(text), max_chunks=chunks)
    print(
        json.dumps({"model": model, "text": text, "perplexity": value})
        if as_json
        else f"{model} on {text}: {value:.3f}"
    )


@app.command()
def warmup(
    model: Model = "bookworm-14m",
    scheme: Annotated[
        list[str] | None,
        typer.Option(help=f"For a model that is not quantized yet, {SPELLINGS}; repeat it; w4g128 if not given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compile the CPU kernels that a model needs, for all processes that come later, and say how long it took."""
    from qkit.engine.warm import warm_model

    chosen = [parse_scheme(one) for one in scheme or ()]
    network, _ = qkit.load(model)
    is_quantized = bool(quantized_layers(network))
    if is_quantized and chosen:
        raise ValueError(f"{model} is quantized, and its layers say which kernels they need; leave out --scheme")
    schemes = [] if is_quantized else chosen or _fitted(network, [USUAL])
    warmth = warm_model(network, schemes)
    if as_json:
        print(json.dumps({"model": model, "schemes": [one.name for one in schemes], **warmth.to_dict()}, indent=1))
    else:
        kinds = f" by {', '.join(one.name for one in schemes)}" if schemes else ""
        print(
            f"{model}{kinds}: {warmth.compiled} kernels compiled, {warmth.found} were compiled already, "
            f"{warmth.seconds:.1f} s"
        )


@app.command()
def lab(
    folder: Annotated[Path, typer.Argument(help="Where your copy of the lessons is, or is to be.")] = Path(
        "qkit-lessons"
    ),
) -> None:
    """Open the lessons in JupyterLab: a copy of your own, made once and never overwritten."""
    if find_spec("jupyterlab") is None:
        raise ImportError("the lessons open in JupyterLab, which is not installed; pip install 'qkit[lab]'")
    folder.mkdir(parents=True, exist_ok=True)
    for page in sorted(resource_folder("lessons").glob("*.*")):  # lessons, and the pages that they link to
        if page.suffix in (".ipynb", ".md") and not (folder / page.name).exists():
            shutil.copy(page, folder)
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0  # as in a container: JupyterLab refuses unless it is told
    command = [sys.executable, "-m", "jupyterlab", str(folder), *["--allow-root"] * is_root]
    raise typer.Exit(subprocess.call(command))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is here: versions, processor, card, which kernels are used, which extras and judges are there, what to install."""
    from qkit.bench import tables
    from qkit.bench.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([finding.to_dict() for finding in findings], indent=1))
        return
    _print_whole(tables.doctor_table(findings))
    _print_notes(tables.doctor_notes(findings), [])


Threads = Annotated[list[int] | None, typer.Option(help="Threads that everybody gets; repeat it.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the JSON file and the figures.")]


@bench.command(name="cpu")
def bench_cpu(
    quick: Annotated[
        bool, typer.Option("--quick", help="One shape, 1 and 128 tokens, few rounds: under a minute.")
    ] = False,
    shape: Annotated[list[str] | None, typer.Option(help="out x in, e.g. 4096x4096; repeat it.")] = None,
    tokens: Annotated[list[int] | None, typer.Option(help="Tokens at once, M; repeat it.")] = None,
    threads: Threads = None,
    out: Out = None,
) -> None:
    """Time one linear layer in every format, beside torch, onnxruntime and bitsandbytes where they are installed."""
    from qkit.bench import linear, tables, write_json
    from qkit.bench.record import core_count
    from qkit.plots.roofline import roofline

    if out is not None:
        check_folder(out)
    usual = [count for count in linear.THREADS if count <= core_count()]
    record = linear.run(
        [linear.parse_shape(text) for text in shape] if shape else linear.QUICK_SHAPES if quick else linear.SHAPES,
        tokens or (linear.QUICK_TOKENS if quick else linear.TOKENS),
        threads or (usual[-1:] if quick else usual),
        linear.QUICK_ROUNDS if quick else linear.ROUNDS,
    )
    written = [] if out is None else [write_json(record.to_dict(), out / "cpu.json")]
    for case in record.cases:
        for table in (tables.case_table(record, *case), tables.target_table(record, *case)):
            if table is not None:
                _print_whole(table)
        if out is not None:
            name = f"roofline-{linear.spell(case[0])}-{case[1]}.png"
            written.append(write_bytes(out / name, roofline(record, *case).png()))
    _print_notes(tables.notes(record), written)


@bench.command(name="model")
def bench_model(
    params: Annotated[
        list[str] | None, typer.Option(help="1.1B, 160M (random weights) or bookworm-14m; repeat it.")
    ] = None,
    scheme: Annotated[
        list[str] | None, typer.Option(help="fp32, bf16, w8, w4g128, w4a8g128 (INT8 activations), nf4, ...; repeat it.")
    ] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prefill.")] = 128,
    new: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 32,
    threads: Annotated[int | None, typer.Option(help="Threads, as many as cores if not given.")] = None,
    head: Annotated[bool, typer.Option("--head", help="Quantize the output head too.")] = False,
    out: Out = None,
) -> None:
    """Time whole models, reading a prompt and writing, and the memory that they take."""
    from qkit.bench import generation, tables, write_json

    if out is not None:
        check_folder(out)
    record = generation.run(
        params or generation.MODELS, scheme or generation.ROWS, threads=threads, prompt=prompt, new=new, head=head
    )
    written = [] if out is None else [write_json(record.to_dict(), out / "model.json")]
    _print_whole(tables.model_table(record))
    _print_notes(tables.notes(record), written)


@bench.command(name="gpu")
def bench_gpu(
    model: Annotated[
        bool, typer.Option("--model", help="A whole model that writes, instead of single layers.")
    ] = False,
    shape: Annotated[list[str] | None, typer.Option(help="Of a layer, out x in, e.g. 4096x4096; repeat it.")] = None,
    tokens: Annotated[list[int] | None, typer.Option(help="Tokens that a layer is given, M; repeat it.")] = None,
    scheme: Annotated[
        list[str] | None,
        typer.Option(help="bf16, w4g128, nf4, w8a8, llm.int8, ...; with --model bitsandbytes-nf4 too; repeat it."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of a layer's activations: bf16 or fp16.")] = "bf16",
    params: Annotated[
        str | None, typer.Option(help="Of the model: 8B, 1.1B or 160M; the largest that fits if not given.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Sequences that the model writes at once; repeat it.")] = None,
    new: Annotated[int, typer.Option(min=1, help="Tokens of each that it writes.")] = 64,
    length: Annotated[int, typer.Option(min=1, help="Positions of its cache, over all of which each step goes.")] = 256,
    head: Annotated[bool, typer.Option("--head", help="Quantize the model's output head too.")] = False,
    out: Out = None,
) -> None:
    """Time one linear layer, or a model, in every format on a CUDA card: each result is checked first."""
    from qkit.bench import gpu, gpu_generation, linear, tables, write_json

    layers, models = {"shape": shape, "tokens": tokens}, {"params": params, "batch": batch, "head": head}
    if strange := [name for name, value in (layers if model else models).items() if value]:
        what, mend = ("layer", "leave out") if model else ("model", "add")
        raise ValueError(f"--{strange[0]} belongs to a {what}; {mend} --model")
    if out is not None:
        check_folder(out)
    if model:
        record = gpu_generation.run(
            params, scheme or gpu_generation.ROWS, batch or gpu_generation.BATCHES, length=length, new=new, head=head
        )
        shown, name = [tables.gpu_model_table(record)], "gpu-model.json"
    else:
        shapes = [linear.parse_shape(text) for text in shape] if shape else gpu.SHAPES
        record = gpu.run(shapes, tokens or gpu.TOKENS, scheme or gpu.ROWS, dtype)
        shown, name = [tables.gpu_table(record, one) for one in record.shapes], "gpu.json"
    files = [] if out is None else [write_json(record.to_dict(), out / name)]
    for table in shown:
        _print_whole(table)
    _print_notes(tables.notes(record), files)


def _print_whole(table: Table) -> None:
    """A table as wide as it is: what is cut off cannot be copied."""
    Console(width=max(Console().width, Console(width=1000).measure(table).maximum)).print(table)


def _print_notes(notes: Sequence[str], written: Sequence[Path]) -> None:
    for note in notes:
        print(note)
    if written:
        print(f"\nwrote {', '.join(map(str, written))}", file=sys.stderr)


def _fitted(
    network: nn.Module, schemes: Sequence[Scheme], include: list[str] | None = None, exclude: list[str] | None = None
) -> list[Scheme]:
    """Schemes that nobody named, with groups that go into the rows of this model, each once; what was changed is said."""
    made = fitted(schemes, find_targets(network, include, exclude)[0])
    for before, after in zip(schemes, made, strict=True):
        if before != after:
            print(f"note: groups of {before.name} do not go into all rows; {after.name} instead", file=sys.stderr)
    return list(dict.fromkeys(made))


def _calibration(names: list[str] | None, schemes: Sequence[Scheme]) -> list[str] | None:
    """The texts by these names; by default python-docs where a scheme needs data, which takes seconds to read."""
    if names is None and not any(scheme.calibrated for scheme in schemes):
        return None
    return [qkit.texts(name) for name in names or ["python-docs"]]


def _print_comparison(comparison: Comparison) -> None:
    table = Table(title=comparison.caption, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column, title in enumerate(comparison.header):
        table.add_column(title.replace(" ", "\n"), justify="right" if column else "left", no_wrap=column > 0)
    for row in comparison.rows:
        table.add_row(*row.cells(), style="bold" if row.report is None else None)
    Console().print(table)
    for note in comparison.notes:
        print(note)


def _print_report(report: QuantizationReport) -> None:
    table = Table(title=repr(report))
    for title in ("layer", "out x in", "bits/weight", "SQNR (dB)"):
        table.add_column(title, justify="left" if title == "layer" else "right")
    for layer in report.layers:
        shape = f"{layer.shape[0]} x {layer.shape[1]}"
        table.add_row(layer.name, shape, f"{layer.bits_per_weight:.3f}", f"{layer.error.sqnr_db:.1f}")
    for name, why in report.skipped:
        table.add_row(name, "", "", why, style="dim")
    Console().print(table)


def main() -> None:
    """The entry point: an error that qkit explains is one sentence on stderr and exit status 2, not a traceback."""
    try:
        app()
    except (ValueError, ImportError, OSError, MemoryError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror and not error.filename else error
        Console(stderr=True, soft_wrap=True).print(f"qkit: {said}", style="red", markup=False, highlight=False)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
