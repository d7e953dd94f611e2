"""What was measured, as tables for a terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from qkit.bench.doctor import Finding
from qkit.bench.goals import outcomes
from qkit.bench.linear import spell
from qkit.bench.record import GpuModelRecord, GpuRecord, LinearRecord, Measurement, ModelRecord


def _table(title: str, columns: list[str], words: int = 1) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < words else "right", no_wrap=True)
    return table


def case_table(record: LinearRecord, shape: tuple[int, int], threads: int) -> Table:
    """Every contender at one shape: milliseconds for each number of tokens, half of all calls within so many percent."""
    case, roof = record.case(shape, threads), record.roof(threads)
    tokens = sorted({m.tokens for m in case})
    title = f"{spell(shape)}, {_count(threads)}: ms (spread); the machine reads {roof.gigabytes_per_second:.1f} GB/s"
    table = _table(title, ["", "MB", "error", f"GB/s\nM={tokens[0]}", *(f"M={count}" for count in tokens)])
    by_label: dict[str, dict[int, Measurement]] = {}
    libraries = list(dict.fromkeys(("qkit", *(m.library for m in case))))
    for m in sorted(case, key=lambda m: libraries.index(m.library)):
        by_label.setdefault(m.label, {})[m.tokens] = m
    library = libraries[0]
    for label, row in by_label.items():
        first = row[tokens[0]]
        if first.library != library:
            table.add_section()
            library = first.library
        times = [_time(row[count]) for count in tokens]
        numbers = [f"{first.nbytes / 1e6:.1f}", f"{first.error:.4f}", f"{first.gigabytes_per_second:.1f}"]
        table.add_row(label, *numbers, *times)
    return table


def _time(m: Measurement) -> str:
    low, high = m.quartiles
    return f"{m.median:.3g} ±{50 * (high - low) / m.median:.0f}%"


def target_table(record: LinearRecord, shape: tuple[int, int], threads: int) -> Table | None:
    """The goals at one shape: our time over the peer's; None where no such pair of layers was measured."""
    rows = outcomes(record.case(shape, threads))
    if not rows:
        return None
    title = f"{spell(shape)}, {_count(threads)}: time over that of a peer"
    table = _table(title, ["qkit", "peer", "M", "ratio", "target", ""], 2)
    for row in rows:
        mark, style = ("reached", "green") if row.reached else ("missed", "red")
        numbers = [str(row.goal.tokens), f"{row.ratio:.2f}", f"{row.goal.limit:.3g}"]
        table.add_row(row.goal.ours.removeprefix("qkit "), row.goal.peer, *numbers, f"[{style}]{mark}")
    return table


def model_table(record: ModelRecord) -> Table:
    """Every model in every format, and how much faster than FP32 it writes."""
    columns = ["", "", "threads", "MB", "peak MB", "prefill\ntokens/s", "generation\ntokens/s", "x FP32"]
    table = _table("models: prefill and generation", columns, 2)
    plain = {(m.model, m.threads): m.generation_rate for m in record.measurements if m.row == "FP32"}
    model = None
    for m in record.measurements:
        if model not in (None, m.model):
            table.add_section()
        model, base = m.model, plain.get((m.model, m.threads))
        peak = "" if m.peak_bytes is None else f"{m.peak_bytes / 1e6:,.0f}"
        rates = [f"{m.prefill_rate:,.0f}", f"{m.generation_rate:.1f}"]
        gain = "" if base is None else f"{m.generation_rate / base:.2f}"
        table.add_row(m.model, m.row, str(m.threads), f"{m.nbytes / 1e6:,.0f}", peak, *rates, gain)
    return table


def gpu_table(record: GpuRecord, shape: tuple[int, int]) -> Table:
    """Every row at one shape: microseconds for each number of tokens, and as a share of the float product's."""
    case = record.case(shape)
    dense = next(iter(case.values()))
    title = f"{spell(shape)}, {next(iter(dense.values())).dtype}: us (x the float product)"
    table = _table(title, ["", "MB", "largest\nerror", "read\nonly", *(f"M={count}" for count in dense)])
    for row, measured in case.items():
        first = next(iter(measured.values()))
        errors = [m.error for m in measured.values() if m.error is not None]
        times = [
            f"{m.microseconds:.1f} ({m.microseconds / dense[count].microseconds:.2f})" for count, m in measured.items()
        ]
        error = f"{max(errors):.1e}" if errors else ""
        table.add_row(row, f"{first.nbytes / 1e6:.1f}", error, f"{first.floor:.1f}", *times)
    return table


def gpu_model_table(record: GpuModelRecord) -> Table:
    """Every format at every batch: tokens a second, how many times as fast as bfloat16 it is, and the memory."""
    columns = [
        "",
        "",
        "batch",
        "ms\na step",
        "tokens/s",
        "x BF16",
        "stored\nGB",
        "held\nGB",
        "peak\nGB",
        "error",
        "launched",
    ]
    table = _table("models: generation", columns, 2)
    plain = {(m.model, m.batch): m.rate for m in record.measurements if m.row == "BF16"}
    for m in record.measurements:
        base = plain.get((m.model, m.batch))
        sizes = [f"{count / 1e9:.2f}" for count in (m.nbytes, m.held_bytes, m.peak_bytes)]
        gain, error = "" if base is None else f"{m.rate / base:.2f}", "" if m.error is None else f"{m.error:.1e}"
        table.add_row(
            m.model, m.row, str(m.batch), f"{1e3 * m.batch / m.rate:.2f}", f"{m.rate:,.0f}", gain, *sizes, error, m.way
        )
    return table


def notes(record: LinearRecord | ModelRecord | GpuRecord | GpuModelRecord) -> list[str]:
    """What a careful reader should know."""
    machine = record.machine
    lines = [f"{machine['cpu']}, {machine['cores']} cores; {_versions(machine['versions'])}"]
    if card := machine.get("card"):
        lines[0] = f"{card['name']}, driver {card['driver'] or 'unknown'}, CUDA {card['cuda']}; {lines[0]}"
    if machine["load"] is not None and machine["load"] > 0.5:
        lines.append(
            f"other programs kept {machine['load']:.1f} cores busy at the start: measure again on a quiet machine"
        )
    if isinstance(record, LinearRecord) and record.unsettled:
        lines.append(f"{record.unsettled} turns began while other threads of the process still computed")
    lines += [f"missing: {name} ({why})" for name, why in getattr(record, "missing", {}).items()]
    return lines


def _versions(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items() if number is not None)


def _count(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def doctor_table(findings: Sequence[Finding]) -> Table:
    """What is here, a section a part."""
    table = _table("", ["", "found", "what it is for"], words=3)
    part = findings[0].part
    for finding in findings:
        if finding.part != part:
            table.add_section()
            part = finding.part
        row = (finding.name, "not there" if finding.found is None else finding.found, finding.note)
        table.add_row(*row, style="dim" if finding.found is None else None)
    return table


def doctor_notes(findings: Sequence[Finding]) -> list[str]:
    """The commands for what is missing, each once, with all that it brings."""
    brings: dict[str, list[str]] = {}
    for finding in findings:
        if finding.command:
            brings.setdefault(finding.command, []).append(finding.name)
    if not brings:
        return ["Nothing is missing."]
    width = max(map(len, (", ".join(names) for names in brings.values())))
    lines = [f"  {', '.join(names):{width}}  {command}" for command, names in brings.items()]
    return ["What is not there, and what brings it:", *lines]
