"""Compiles the kernels of lesson 09, and those that its exercises ask for, for a card that this machine does not have.

A process of its own, as `compiled.py` is: TRITON_INTERPRET must not be set in it. Reads the target from the command line, and
prints a line of JSON for each kernel.
"""

import ast
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from compiled import compiling, usage
from kernel_mutants import HEAD
from qkit.exercises import ALL, lesson_09_kernels
from qkit.exercises.kernels import KernelExercise

LESSON = Path(__file__).parents[2] / "lessons" / "09_inside_a_gpu_kernel.ipynb"


def defined() -> dict[str, Any]:
    """The kernels that cells of the lesson define, by name; Triton reads their source from a file."""
    parts = [HEAD]
    for cell in json.loads(LESSON.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "@triton.jit" in source:
            nodes = [
                node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.decorator_list
            ]
            parts += [ast.unparse(node) for node in nodes]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.py"
        path.write_text("\n\n\n".join(parts), encoding="utf-8")
        sys.path.insert(0, folder)
        import cells  # type: ignore[import-not-found]

        found = {
            name: value for name, value in vars(cells).items() if hasattr(value, "run") and name not in ("triton", "tl")
        }
        for kernel in found.values():
            kernel.src  # noqa: B018  (read while the file is there)
        return found


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def main(target: str) -> None:
    """As the cells launch them, and as the checks do."""
    n, k = 300, 1024
    packed, scales = meta(n, k // 2, dtype=torch.uint8), meta(n, k // 128, dtype=torch.float16)
    whole, row, half = meta(64, dtype=torch.int32), meta(k), meta(11, k, dtype=torch.float16)
    kernels = defined()
    launches = {
        "add": ((meta(1000), meta(1000), meta(1000), 1000), {"BLOCK": 256}),
        "sign": ((whole, 50), {"BLOCK": 16}),
        "w4_one": ((row, packed, scales, meta(n), n, k), {"GROUP": 128, "ROWS": 64}),
        "who_reads": ((whole, whole, 21), {"BYTES": 32, "PART": 8, "ROWS": 8}),
        "squares": ((meta(4, dtype=torch.bfloat16), meta(4, dtype=torch.bfloat16)), {}),
        "dealt_out": ((meta(11, k), packed, scales, meta(11, n), 11, n, k), {"GROUP": 128, "ROWS": 64}),
        "w4_many": ((half, packed, scales, meta(11, n), 11, n, k), {"GROUP": 128, "ROWS": 16, "TOKENS": 16}),
    }
    asked = {exercise.kernel for exercise in ALL.values() if isinstance(exercise, KernelExercise)}
    assert set(kernels) == set(launches) | asked, set(kernels) ^ (set(launches) | asked)
    with compiling(target) as made:
        for name, (arguments, constants) in launches.items():
            kernels[name][(1, 1)](*arguments, **constants)
        for exercise in ALL.values():
            if not isinstance(exercise, KernelExercise):
                continue
            for arguments in exercise.cases:
                given = [value.to("meta") if isinstance(value, torch.Tensor) else value for value in arguments]
                for kernel in (getattr(lesson_09_kernels, exercise.kernel), kernels[exercise.kernel]):
                    exercise.launch(kernel, *given, exercise.solution(*arguments).to("meta"))
    for name, _, kernel, _ in made.values():
        print(json.dumps({"kernel": name, **usage(kernel)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
