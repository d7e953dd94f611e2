"""Compiles the Triton kernels for cards that this machine does not have, and prints what they take of one, as JSON.

python compiled.py sm_90 few '{"BITS": 4, ...}' ...   (a process of its own: TRITON_INTERPRET must not be set in it)
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qkit_kernels.triton import columns as column_kernels
from qkit_kernels.triton import few as few_kernels
from qkit_kernels.triton import floats as floats_kernels
from qkit_kernels.triton import integer as integer_kernels
from qkit_kernels.triton import many as many_kernels

KERNELS = {
    name: getattr(module, name)
    for module, names in (
        (column_kernels, ("round_block",)),
        (few_kernels, ("few",)),
        (floats_kernels, ("floats",)),
        (many_kernels, ("many", "reorder")),
        (integer_kernels, ("quantize_tokens", "few_integers", "many_integers", "outlier_columns", "split_tokens")),
    )
    for name in names
}
FLOATS = ("rows_ptr", "scale_ptr", "token_scale_ptr", "threshold")
BYTES = ("codes_ptr", "weight_ptr")
TYPES = {  # where the name of an argument does not say it
    "round_block": {"w_ptr": "*fp64", "upper_ptr": "*fp64", "errors_ptr": "*fp64", "zero_ptr": "*fp32", "codes_ptr": "*u8",
                    "q_max": "fp32"},
}  # fmt: skip


def signature(kernel, dtype: str, constants: dict, blocks: dict) -> dict[str, str]:
    """The types of a kernel's arguments, by their names."""

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in blocks:
            return blocks[name]
        if name == "threshold":
            return "fp32"
        if name.endswith("_ptr"):
            sixteen = name in ("x_ptr", "y_ptr", "out_ptr", "wild_ptr")
            return "*" + (dtype if sixteen else "fp32" if name in FLOATS else "i8" if name in BYTES else "i32")
        return "i32"

    return {name: kind(name) for name in kernel.arg_names}


def build(name: str, target: str, dtype: str, constants: dict, blocks: dict, options: dict) -> dict:
    """Registers, bytes of stack (spills) and shared memory of one kernel, and its matrix instructions."""
    kernel = KERNELS[name]
    signed = signature(kernel, dtype, constants, {**TYPES.get(name, {}), **blocks})
    even = [n for n in signed if n.endswith("_ptr") or n in ("K", "N8", "KB", "stride_xm", "stride_ym")]
    attrs = {(kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in even if signed[n][0] in "*i"}
    source = ASTSource(fn=kernel, signature=signed, constexprs=constants, attrs=attrs)
    done = triton.compile(source, target=GPUTarget("cuda", int(target[3:]), 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(done.asm["cubin"])
        file.flush()
        tool = next(Path(triton.__file__).parent.rglob("cuobjdump"))
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    words = set(re.findall(r"(wgmma\.mma_async|mma\.sync|tcgen05\.mma)", done.asm["ptx"]))
    usage = {key.lower(): int(number) for key, number in re.findall(r"(REG|STACK):(\d+)", said)}
    return {**usage, "shared": done.metadata.shared, "products": sorted(words)}


def main() -> None:
    """Reads a list of jobs from standard input."""
    for job in json.load(sys.stdin):
        print(json.dumps({**job, **build(**job["build"])}), flush=True)


if __name__ == "__main__":
    main()
