"""Compiles what the Triton adapters launch for cards that this machine does not have, and prints what each kernel takes of one.

The adapters run as they are, on tensors without memory, beside a driver that says it is the card; each launch is compiled
instead, with just the constants and the divisibilities that it would have on the card. Nothing is listed twice: a tile that
`tiles.py` chooses anew is compiled anew.

A process of its own: TRITON_INTERPRET must not be set in it. Reads {"target": ..., "jobs": [...]} from standard input, prints a
line of JSON for each kernel.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from qkit.backends.triton import between, columns, integer, layout, linear, tiles
from qkit.numerics.codebook_qtensor import CodebookQTensor
from qkit.numerics.packing import packed_length
from qkit.numerics.qtensor import QTensor

KB = 1024
# What the cards say of themselves: multiprocessors, bytes of shared memory that a program may have, compute capability
CARDS = {
    "sm_75": (40, 64 * KB, 7),
    "sm_80": (108, 163 * KB, 8),
    "sm_89": (128, 99 * KB, 8),
    "sm_90": (132, 227 * KB, 9),
    "sm_100": (148, 227 * KB, 10),
    "sm_120": (170, 99 * KB, 12),
    "gfx90a": (104, 64 * KB, 9),
    "gfx942": (304, 64 * KB, 9),
    "gfx1100": (96, 64 * KB, 11),
}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Driver:
    """A card that is not here."""

    def __init__(self, target: str) -> None:
        nvidia = target.startswith("sm_")
        warp = 64 if target.startswith("gfx9") else 32
        self.target = GPUTarget("cuda", int(target[3:]), 32) if nvidia else GPUTarget("hip", target, warp)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling(target: str) -> Iterator[dict[str, Any]]:
    """Inside, a launch compiles, and what it made is in the dictionary: a kernel's name, its constants, itself, its arguments."""
    made: dict[str, Any] = {}
    launch = JITFunction.run

    def compiled(self, *arguments, grid, warmup, **options):
        kernel = launch(self, *arguments, grid=grid, warmup=True, **options)
        short = {n: v for n, v in options.items() if n != "PTX"}
        made.setdefault(kernel.hash, (self.__name__, short, kernel, arguments))
        return kernel

    triton.runtime.driver.set_active(Driver(target))
    JITFunction.run = compiled
    units, shared, major = CARDS[target]
    tiles.card = lambda device: tiles.Card(units, shared, major, target.startswith("sm_"))
    try:
        yield made
    finally:
        JITFunction.run = launch


def weight(kind: str, bits: int, shape: tuple[int, int], group: int | None) -> Any:
    """A weight without memory."""
    rows, features = shape
    packed = torch.empty(rows, packed_length(features, bits), dtype=torch.uint8, device="meta")
    if kind in ("nf4", "fp4"):
        scales = torch.empty(1, rows * features // (group or features), device="meta")
        return CodebookQTensor(packed, scales, 4, shape, kind, group or features)
    groups = 1 if group is None else features // group
    scales = torch.empty(rows, groups, dtype=torch.float16, device="meta")
    zeros = torch.empty(packed_length(rows * groups, bits), dtype=torch.uint8, device="meta")
    return QTensor(
        packed,
        scales,
        bits,
        shape,
        zeros if kind == "zero points" else None,
        scales if kind == "offsets" else None,
    )


def run(job: dict[str, Any]) -> None:
    """What one layer launches, `tokens` of `dtype` times a weight; what stands between layers; a block of GPTQ's columns."""
    if job["kind"] == "columns":
        w, upper = (torch.empty(n, job["shape"][1], dtype=torch.float64, device="meta") for n in job["shape"])
        columns.round_block(w, upper, w, w, 15)
        return
    shape, dtype = tuple(job["shape"]), DTYPES[job["dtype"]]
    x = torch.empty(job["tokens"], shape[1], dtype=dtype, device="meta")
    if job["kind"] == "between":  # in a block with heads of 128 numbers, four to a key
        between.add_norm(x, x, x[0], 1e-5)
        between.gated(x, x)
        cached = x.new_empty(job["tokens"] * shape[1] // 512, 256, 128)
        between.attend(x.view(-1, 4, 128), cached, cached, torch.empty(256, dtype=torch.bool, device="meta"), 0.1)
        return
    if job["kind"] != "integers":
        laid = layout.lay(weight(job["kind"], job["bits"], shape, job["group"]), dtype)
        if job.get("tried"):  # every tile that `tuning` would try
            for cut in tiles.candidates(job["tokens"], laid, tiles.card(0)):
                linear.launch(
                    x, laid, torch.empty(job["tokens"], shape[0], dtype=dtype, device="meta"), cut, tiles.card(0)
                )
        else:
            linear.product(x, laid)
        return
    codes = torch.empty(shape[0], -(-shape[1] // 128) * 128, dtype=torch.int8, device="meta")
    laid = integer.Bytes(codes, torch.empty(shape[0], device="meta"))
    step = torch.empty((), device="meta") if job["static"] else None
    bias = torch.empty(shape[0], dtype=dtype, device="meta") if job["bias"] else None
    y = torch.empty(job["tokens"], shape[0], dtype=dtype, device="meta")
    integer.launch(x, laid, step, job["threshold"], bias, y, tiles.card(0))


def usage(kernel: Any) -> dict[str, Any]:
    """Registers, bytes of stack (spills) and of shared memory of one kernel, and its matrix instructions."""
    text = kernel.asm.get("ptx") or kernel.asm["amdgcn"]
    words = sorted(set(re.findall(r"(wgmma\.mma_async|mma\.sync|tcgen05\.mma|v_mfma|v_wmma)", text)))
    found = {"shared": kernel.metadata.shared, "warps": kernel.metadata.num_warps, "products": words}
    if "cubin" not in kernel.asm:
        numbers = {name: re.search(rf"\.{name}:\s+(\d+)", text) for name in ("vgpr_count", "vgpr_spill_count")}
        return {**found, **{name: int(number[1]) for name, number in numbers.items() if number}}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tool = next(Path(triton.__file__).parent.rglob("cuobjdump"))
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {**found, **{key.lower(): int(number) for key, number in re.findall(r"(REG|STACK):(\d+)", said)}}


def main() -> None:
    """Compiles each kernel once, however many jobs launch it."""
    order = json.load(sys.stdin)
    with compiling(order["target"]) as made:
        for job in order["jobs"]:
            run(job)
    for name, constants, kernel, _ in made.values():
        print(
            json.dumps({"kernel": name, "room": CARDS[order["target"]][1], **usage(kernel), "constants": constants}),
            flush=True,
        )


if __name__ == "__main__":
    main()
