"""The Triton kernels compiled for cards that are not here: they fit into the card, spill nothing and reach its tensor cores.

What is compiled is what the adapters launch, tile by tile (tests/support/compiled.py). No GPU, no driver, no toolkit: Triton's
wheel brings ptxas, and LLVM for AMD.
"""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from products import KINDS

pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")

DTYPES = ("float16", "bfloat16")
GROUPS = (16, 32, 64, 128, 256, None)
REGIONS = (
    1,
    9,
    17,
    64,
    128,
    150,
    300,
    2048,
)  # numbers of tokens that are cut in ways of their own; 300 is two products
PRODUCTS = {  # the matrix instructions of the kernels for few tokens, and for many
    "sm_80": ({"mma.sync"}, {"mma.sync"}),
    "sm_89": ({"mma.sync"}, {"mma.sync"}),
    "sm_90": ({"mma.sync"}, {"wgmma.mma_async"}),
    "sm_100": ({"mma.sync"}, {"tcgen05.mma"}),
    "sm_120": ({"mma.sync"}, {"mma.sync"}),
}
OLDER = ("sm_75",)  # Triton does not reach their tensor cores
# Bytes of the stack that a kernel may have: a few addresses or factors that wait there for the end of the loop, or for its next
# turn (on an H100 looked at in the machine code). What spills in earnest has hundreds.
WAITING = 64
AMD = ("gfx90a", "gfx942", "gfx1100")


def floats(kind="zero points", bits=4, group=128, tokens=REGIONS, dtypes=DTYPES, shape=(4096, 4096)):
    """Jobs that multiply floats with codes."""
    for m, dtype in product(tokens, dtypes):
        yield {"kind": kind, "bits": bits, "group": group, "tokens": m, "dtype": dtype, "shape": shape}


def integers(tokens=REGIONS, threshold=(0.0, 6.0), plain=(False, True), shape=(4096, 4096), dtype="bfloat16"):
    """Jobs that multiply integers with integers: static and without a bias, or neither."""
    for m, limit, bare in product(tokens, threshold, plain):
        options = {"threshold": limit, "static": bare, "bias": not bare}
        yield {"kind": "integers", "tokens": m, "dtype": dtype, "shape": shape, **options}


def one_of_each():
    yield from floats(tokens=(1, 17, 300), dtypes=DTYPES[1:])
    yield from floats("offsets", 3, 32, (9, 2048), DTYPES[:1], (1000, 1312))
    yield from floats("zero points", 4, 16, (300,), DTYPES[:1])  # no groups of 16 in `many_hopper`
    yield from floats("nf4", 4, 64, (1, 8, 64), DTYPES[:1])
    yield from integers((1, 17, 300), (6.0,), (False,))
    yield {"kind": "columns", "shape": (4096, 128)}
    yield {"kind": "between", "tokens": 1, "dtype": "bfloat16", "shape": (4096, 4096)}


def every_weight():
    """Every number of bits with every kind, and every size of a group: for few tokens, small tiles, the largest, and floats."""
    tokens = (1, 8, 17, 150, 2048)
    for i, (bits, kind) in enumerate(product(range(2, 9), KINDS)):
        yield from floats(kind, bits, GROUPS[i % len(GROUPS)], tokens, [DTYPES[i % 2]])
    for i, group in enumerate(GROUPS):
        yield from floats("offsets", 8, group, tokens, [DTYPES[i % 2]])  # takes most room
        yield from floats(("nf4", "fp4")[i % 2], 4, group, tokens, [DTYPES[i // 2 % 2]])


def every_cut():
    """Shapes of models, from one row to a vocabulary, and numbers of tokens beside every border."""
    tokens = (1, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 200, 256, 257, 300, 385, 512, 600, 1023, 1024, 1300)
    for i, shape in enumerate(
        (
            (1, 128),
            (256, 1),
            (512, 300),
            (4096, 1024),
            (4096, 4096),
            (14336, 4096),
            (5120, 13824),
            (8192, 28672),
            (128256, 4096),
        )
    ):
        yield from floats(
            group=128 if shape[1] % 128 == 0 else None, tokens=tokens, dtypes=[DTYPES[i % 2]], shape=shape
        )
        yield from integers(tokens, (0.0, 6.0)[i % 2 :][:1], (False,), shape)
    yield from integers(tokens)


def everything_that_is_tried():
    """The tiles that `tuning` tries, of a weight that takes little and of one that takes much."""
    for i, job in enumerate(floats(tokens=(8, 16, 32, 64, 128, 256), dtypes=DTYPES[:1])):
        yield {**job, "tried": True, "dtype": DTYPES[i % 2]}
    for job in floats("offsets", 8, 32, (16, 64, 256), DTYPES[1:]):
        yield {**job, "tried": True}


def compiled(target, jobs):
    """What the kernels take that a card would be given for these jobs."""
    script = Path(__file__).parents[1] / "support" / "compiled.py"
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps({"target": target, "jobs": list(jobs)}), capture_output=True, text=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def wrong(target, usage):
    """What a kernel must not take or lack, in words."""
    kernel, products = usage["kernel"], set(usage["products"])
    few, many = kernel in ("one", "eight", "few", "few_integers"), kernel in ("many", "many_hopper", "many_integers")
    if usage["shared"] > usage["room"]:
        yield "shared memory"
    if usage.get("stack", 0) > WAITING or usage.get("vgpr_spill_count", 0):
        yield "spills"
    wanted = PRODUCTS.get(target, (set(), set()))[many]
    if (target, kernel) == ("sm_100", "many_integers"):
        wanted = {"mma.sync"}  # Triton (3.7) has no tcgen05 of int8
    if (few or many) and not products >= wanted:
        yield "no product on tensor cores"
    if target in AMD and (few or many) and not products & {"v_mfma", "v_wmma"}:
        yield "no product on tensor cores"


def check(target, found):
    assert found
    assert [(word, usage) for usage in found for word in wrong(target, usage)] == []


@pytest.mark.parametrize(
    "target", ["sm_90", *(pytest.param(t, marks=pytest.mark.exhaustive) for t in PRODUCTS if t != "sm_90")]
)
def test_one_launch_of_each_kernel_for(target):
    found = compiled(target, one_of_each())
    check(target, found)
    names = {"few", "reorder", "many", "floats", "outlier_columns", "list_outliers", "few_integers"}
    names |= {"split_tokens", "many_integers", "round_block", "add_norm", "gated", "attend", "combine"}
    names |= (
        {"one", "eight", "many_hopper", "add_up"} if target == "sm_90" else set()
    )  # small tiles are enough of them: nothing to add up
    assert {usage["kernel"] for usage in found} >= names


GRID = [("sm_80", every_cut), ("sm_90", every_cut), ("sm_90", everything_that_is_tried)]
REST = [("sm_89", every_cut), ("sm_100", every_cut), *product(("sm_80", "sm_90", "sm_100"), [every_weight])]
MARKED = [pytest.param(*case, marks=pytest.mark.exhaustive) for case in GRID]
MARKED += [pytest.param(*case, marks=pytest.mark.compiled) for case in REST]  # a quarter of an hour: before a release


@pytest.mark.parametrize(("target", "jobs"), MARKED, ids=lambda value: getattr(value, "__name__", value))
def test_every_launch_that_the_table_can_ask_for(target, jobs):
    check(target, compiled(target, jobs()))


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", AMD)
def test_the_plain_twins_compile_for_amd(target):
    check(target, compiled(target, one_of_each()))


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", OLDER)
def test_float16_on_cards_before_sm_80(target):
    found = compiled(target, floats(tokens=REGIONS, dtypes=DTYPES[:1]))
    check(target, found)
    assert {usage["kernel"] for usage in found} == {"few", "floats"}
