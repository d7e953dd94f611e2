"""The Triton kernels under Triton's interpreter, on small shapes: what they compute, not how fast.

In float16 only: the interpreter multiplies bfloat16 numbers as if they were integers, silently. Assembly it cannot run; its plain
twin (`words.plain`) stands in, and `tests/gpu` holds the two equal on a card.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grids import ALL_BITS
from products import KINDS, random, weight
from qkit import FP4, NF4, quantize_tensor
from qkit.backends import torch as plain
from qkit.methods.int8 import int8_rows

pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")

from qkit.backends.triton import integer, layout, tiles
from qkit.backends.triton import linear as adapter
from qkit_kernels.triton import assembly

HALF = 2.0**-11  # the largest relative error of a number rounded to float16
SHAPES = ((24, 256, 128), (17, 160, 16), (9, 200, None), (16, 320, 64), (33, 96, 32), (16, 192, 48), (8, 512, 256))
CARD = tiles.Card(units=4, shared=227 * 1024, major=9)
TABLES = (NF4(), NF4(32, double_quant=False), FP4(), FP4(128))


def bound(x, w, features):
    """What the roundings can make: three of each weight, one of each float32 sum, one of the result."""
    terms = x.double().abs() @ w.abs().T
    return terms * (3 * HALF + features * 2.0**-24) + HALF * (x.double() @ w.T).abs() + 2.0**-14


def poisoned(*shape, dtype=torch.float16):
    return torch.full(shape, torch.nan, dtype=dtype)


def check_products(q):
    laid, w = layout.lay(q, torch.float16), q.dequantize().double()
    rows, features = q.shape
    made = adapter.floats(laid, ptx=False)
    assert bool(((made.double() - w).abs() <= 2 * HALF * w.abs() + 2.0**-14 * laid.rows[:, None]).all())
    for tokens in (1, 11):
        x = random(tokens, features).half()
        few, many = poisoned(tokens, rows), poisoned(tokens, rows)
        adapter.few(adapter.aligned(x), laid, few, tiles.few(rows, laid.blocks, 1), ptx=False)
        adapter.many(adapter.aligned(x), laid, many, tiles.Many(64, 32, 4, 2, parts=2), ptx=False, drain=False)
        for y in (few, many):
            assert bool(((y.double() - x.double() @ w.T).abs() <= bound(x, w, features)).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", ALL_BITS)
def test_codes_times_floats(bits, kind):
    check_products(weight(bits, *SHAPES[(bits + KINDS.index(kind)) % len(SHAPES)], kind, real=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_groups_and_shapes_that_fill_no_block(shape):
    check_products(weight(4, *shape, "zero points", real=True))


@pytest.mark.parametrize("scheme", TABLES, ids=repr)
def test_places_in_a_table_times_floats(scheme):
    check_products(quantize_tensor(random(20, 256), scheme))


def test_scales_that_float16_has_no_room_for():
    for factor in (1e-9, 1e7):
        check = weight(4, 16, 256, 128, "zero points", torch.float32, real=True)
        laid = layout.lay(
            type(check)(check.packed, check.scales * factor, 4, check.shape, check.zero_points), torch.float16
        )
        assert bool(laid.rows.log2().frac().eq(0).all())
        assert bool((laid.grid >> 16).to(torch.int16).view(torch.float16).isfinite().all())


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_words_turn_back_into_the_codes(bits, table):
    if table and bits != 4:
        pytest.skip("a table has 16 numbers")
    for shape in ((1, 1), (7, 129), (130, 300), (128, 128)):
        codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
        words = layout.pack_words(codes, bits, table)
        assert words.numel() * 32 == -(-shape[0] // 128) * 128 * -(-shape[1] // 128) * 128 * bits
        assert torch.equal(layout.unpack_words(words, bits, shape, table), codes)


def test_a_layout_is_made_once_and_anew_when_the_weight_is_written_into():
    q = weight(4, 8, 128, 128)
    first = layout.laid(q, torch.float16)
    assert layout.laid(q, torch.float16) is first and layout.laid(q, torch.bfloat16).words is first.words
    q.scales.mul_(2)
    assert layout.laid(q, torch.float16) is not first
    kept = len(layout._KEPT)
    del q
    layout.laid(weight(4, 8, 128, 64), torch.float16)
    assert len(layout._KEPT) < kept + 1


@pytest.mark.parametrize("threshold", [0.0, 6.0, 1.5])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("shape", [(1, 20, 130), (5, 16, 256), (9, 40, 200), (17, 70, 130), (40, 64, 384)], ids=str)
def test_integers_times_integers(shape, static, threshold):
    tokens, rows, features = shape
    q, scale = int8_rows(random(rows, features)), torch.tensor(0.02) if static else None
    x = random(tokens, features)
    x[:, 3] *= 5
    x[:, 77] *= 8
    x[tokens - 1, 5:] = 0
    for bias in (None, random(rows)):
        y = poisoned(tokens, rows, dtype=torch.float32)
        integer.launch(x.half(), integer.lay(q), scale, threshold, bias, y, CARD)
        expected = plain.int8_linear(x.half(), q, scale, threshold, bias, torch.float32)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_no_code_can_say_comes_out_as_nan():
    q, x = int8_rows(random(20, 130)), random(3, 130).half()
    x[0, 1], x[1, 5] = torch.nan, torch.inf
    for threshold in (0.0, 6.0):
        for scale in (None, torch.tensor(0.02)):
            y = poisoned(3, 20, dtype=torch.float32)
            integer.launch(x, integer.lay(q), scale, threshold, None, y, CARD)
            expected = plain.int8_linear(x, q, scale, threshold, None, torch.float32)
            assert torch.equal(y.isnan(), expected.isnan()) and torch.equal(y.isinf(), expected.isinf())


@pytest.mark.parametrize("blocks", [1, 2, 7, 32, 86, 112])
@pytest.mark.parametrize("rows", [1, 1000, 4096, 14336, 128256])
def test_a_cut_covers_all_columns_and_no_more_than_it_must(rows, blocks):
    cut = tiles.few(rows, blocks, 132)
    covered = cut.warps * cut.steps * cut.unroll * cut.turns
    assert blocks <= covered < blocks + 8 * cut.warps and cut.warps in (4, 8, 16)


@pytest.mark.parametrize("shared", [99, 163, 227])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_cut_fits_into_the_card(bits, shared):
    card = tiles.Card(units=84, shared=shared * 1024, major=8)
    for group in (16, 128):
        laid = layout.lay(weight(bits, 256, 512, group, "offsets"), torch.float16)
        for tokens in (17, 64, 128, 200, 500):
            cut = tiles.many(tokens, laid, card)
            x, words = cut.stages * cut.bm * 256, (cut.stages - 1) * cut.bn * 16 * bits
            assert x + words <= card.shared and cut.stages >= 2 and cut.bm >= 32
            integers = tiles.many_integers(tokens, 4096, card)
            assert integers.stages * (integers.bm + integers.bn) * integers.bk <= card.shared


# ---- compiled for cards that are not here


def jobs(target):
    def affine(bits, kind, groups, **more):
        a, b, c = (*assembly.PLANES[bits], 0, 0)[:3]
        text = assembly.affine(bits, kind, False)
        flags = {"OFFSET": False, "TABLE": False, "BF16": kind == "bf16", "PTX": text}
        return {"A": a, "B": b, "C": c, "S": groups, "SPAN": 1, "BIAS": assembly.bias(bits, kind), **flags, **more}

    few = {"WARPS": 4, "TOKENS": 8, "STEPS": 1, "UNROLL": 2, "TURNS": 2, "RAGGED": True}
    many = {"WARPS": 4, "BN": 128, "BM": 128, "STAGES": 4, "TOGETHER": 8, "DRAIN": target == "sm_90"}
    numbers = {"WARPS": 4, "TOKENS": 16, "STEPS": 1, "TURNS": 4, "RAGGED": False, "BIAS": True, "WILD": True}
    tile = {
        "BM": 64,
        "BN": 64,
        "BK": 128,
        "TOGETHER": 8,
        "STAGES": 4,
        "SWAP": True,
        "BIAS": False,
        "WILD": False,
        "ROOM": 64,
    }
    for dtype, kind in (("fp16", "f16"), ("bf16", "bf16")):
        yield "few", dtype, affine(4, kind, 1, **few), {}, 4, 1
        yield "few", dtype, affine(3, kind, 4, **few), {}, 4, 1
        yield "floats", dtype, affine(8, kind, 1, WARPS=4), {}, 4, 3
        yield "many", dtype, affine(4, kind, 1, **many), {"x_ptr": f"tensordesc<{dtype}[128, 128]>"}, 4, 3
    yield "few_integers", "bf16", numbers, {}, 4, 1
    blocks = {"codes_ptr": "tensordesc<i8[64, 128]>", "weight_ptr": "tensordesc<i8[64, 128]>"}
    yield "many_integers", "bf16", tile, blocks, 4, 3
    yield "quantize_tokens", "bf16", {"STATIC": False, "WIDTH": 4096}, {}, 8, 3
    yield "round_block", "fp16", {"ROWS": 4, "WIDTH": 128}, {}, 1, 3
    yield "split_tokens", "bf16", {"FLAGGED": True, "STATIC": False, "WIDTH": 4096}, {}, 8, 3


# Bytes of shared memory that a program may have; sm_80 stands for itself, and not for the smaller sm_86 and sm_89
ROOM = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}


@pytest.mark.parametrize(
    "target", ["sm_90", *(pytest.param(t, marks=pytest.mark.exhaustive) for t in ("sm_80", "sm_100"))]
)
def test_kernels_compile_for_cards_within_their_memory_and_without_spills(target):
    order = [
        {
            "name": name,
            "target": target,
            "dtype": dtype,
            "constants": constants,
            "blocks": blocks,
            "options": {"num_warps": warps, "num_stages": stages},
        }
        for name, dtype, constants, blocks, warps, stages in jobs(target)
    ]
    script = Path(__file__).parents[1] / "support" / "compiled.py"
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps([{"build": job} for job in order]), capture_output=True, text=True,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(order)
    for job, usage in zip(order, found, strict=True):
        assert usage["shared"] <= ROOM[target], job["name"]
        assert usage["stack"] <= 16 * (job["name"] not in ("few", "many", "few_integers", "many_integers")), job["name"]
        if job["name"] in ("few", "few_integers"):
            assert usage["products"] == ["mma.sync"]
        if job["name"] in ("many", "many_integers"):
            assert usage["products"] == {"sm_80": ["mma.sync"], "sm_90": ["wgmma.mma_async"]}.get(
                target, usage["products"]
            )
