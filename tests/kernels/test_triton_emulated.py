"""Kernels that only read a weight, assembly that Triton's interpreter cannot run: their PTX on the CPU (tests/support/ptx.py).

Each address that they touch must be aligned and lie where a tensor is, and what comes out is compared with float64.
"""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import ptx
from grids import thinned
from products import KINDS

pytest.importorskip("triton", reason="Triton is not installed: pip install 'qkit[gpu]'")

SHAPES = (
    (32, 256, 128),
    (40, 640, 64),
    (129, 352, 32),
    (65, 200, None),
    (33, 1664, 128),
    (48, 2048, 256),
    (40, 640, 320),
    (1, 1, None),
)


PARTS = 3  # of each test's products, which take a second each: one of them is enough for the quick tests
parts = pytest.mark.parametrize("part", thinned(range(PARTS), [0]))


def emulated(jobs):
    """What `emulate.py` says of each."""
    script = Path(__file__).parents[1] / "support" / "emulate.py"
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(jobs), capture_output=True, text=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def right(jobs):
    """Each is as near to float64 as its roundings allow."""
    found = [said["share"] for said in emulated(jobs)]
    assert jobs and len(found) == len(jobs) and max(found) <= 1, list(zip(jobs, found, strict=True))


@parts
@pytest.mark.parametrize("kind", KINDS)
def test_one_token_in_every_kind_of_weight(kind, part):
    """Each number of bits with every other shape, the others with the next kind."""
    jobs = [
        {
            "kind": kind,
            "bits": bits,
            "shape": (rows, features),
            "group": group,
            "dtype": ("float16", "bfloat16")[i // 2 % 2],
        }
        for number, bits in enumerate((2, 3, 4, 8), KINDS.index(kind))
        for i, (rows, features, group) in enumerate(SHAPES)
        if (i + number) % 2 and (bits >= 4 or group != 32)
    ]
    right(jobs[part::PARTS])


@parts
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_few_tokens_of_a_codebook(kind, part):
    shapes = ((40, 640, 64), (129, 352, 32), (33, 1664, 128), (48, 2048, 256), (1, 32, 32))
    jobs = [
        {
            "kind": kind,
            "shape": (rows, k),
            "group": group,
            "dtype": ("float16", "bfloat16")[i % 2],
            "tokens": n,
            "apart": 8,
        }
        for i, (rows, k, group) in enumerate(shapes)
        for n in ((1, 8 - i) if kind == "nf4" else (2 + i,))
    ]
    right(jobs[part::PARTS])


@parts
def test_few_tokens_of_codes_that_are_numbers(part):
    """Each number of bits with each kind, in both dtypes; x that is too long for one token's own kernel."""
    jobs = []
    for (j, kind), (i, bits) in product(enumerate(KINDS), enumerate((2, 3, 4, 8))):  # so that each part has each kind
        *shape, group = SHAPES[(i + j) % 5]
        job = {"kind": kind, "bits": bits, "shape": shape, "group": None if bits < 4 and group == 32 else group}
        jobs.append({**job, "dtype": ("float16", "bfloat16")[(i + j) % 2], "tokens": 2 + (3 * i + j) % 7, "apart": 8})
    jobs.append({"kind": "zero points", "bits": 4, "shape": (17, 15104), "group": 128, "dtype": "bfloat16"})
    right(jobs[part::PARTS])


def test_what_is_added_and_taken_away_again_leaves_nothing_behind():
    """Where all x have one sign the sums of codes with their bias are large, and what the tensor core cuts off is so too."""
    job = {"kind": "zero points", "shape": (16, 4096), "group": 128, "tokens": 2, "positive": True}
    right(
        [
            {**job, "bits": 2, "dtype": "float16"},
            {**job, "bits": 4, "dtype": "float16"},
            {**job, "bits": 2, "dtype": "bfloat16"},
        ]
    )


@parts
@pytest.mark.parametrize(
    "job", [{"kind": "zero points", "bits": 4}, {"kind": "nf4"}, {"kind": "nf4", "tokens": 3}], ids=str
)
def test_however_the_work_is_shared_and_how_far_ahead_it_is_ordered(job, part):
    """Stretches that end in the middle of a tile, warps without work, more blocks ahead than there are."""
    shapes = ((120, 640, 64), (250, 256, 128), (100, 1792, 128))
    cuts = ((1, 4), (2, 2), (3, 1), (7, 4)) if "bits" in job else ((1, 2), (3, 1))
    jobs = [
        {**job, "dtype": "bfloat16", "shape": (rows, k), "group": group, "programs": programs, "depth": depth}
        for rows, k, group in shapes
        for programs, depth in cuts
        if -(-rows // 16) <= 16 * programs
    ]
    right(jobs[part::PARTS])


def test_a_token_with_what_is_no_number_has_no_result():
    job = {"kind": "zero points", "bits": 4, "shape": (40, 640), "group": 64, "dtype": "float16"}
    assert [said["finite"] for said in emulated([{**job, "bad": bad} for bad in ("nan", "inf", "-inf")])] == [0, 0, 0]
    assert emulated([job])[0]["finite"] == 40
    job = {"kind": "nf4", "shape": (40, 640), "group": 64, "dtype": "float16", "tokens": 3}
    assert [said["finite"] for said in emulated([{**job, "bad": bad} for bad in ("nan", "inf")])] == [80, 80]


def ran(body, params=(), memory=None, threads=32):
    """What a kernel of a few lines does."""
    text = f".visible .entry k()\n.reqntid {threads}\n{{\n{{ .shared .align 16 .b8 room[256]; }}\n{body}\nret;\n}}"
    ptx.launch(text, 1, list(params), memory or ptx.Memory())


def test_the_emulator_looks_at_every_address():
    memory = ptx.Memory()
    out = np.zeros(64, np.int32)
    at = memory.add(out)
    begin = "mov.u32 %r1, %tid.x;\nld.param.b64 %rd1, [k_param_0];\n"
    ran(f"{begin}mad.wide.u32 %rd2, %r1, 8, %rd1;\nst.global.b32 [%rd2], %r1;", [at], memory)
    assert out[::2].tolist() == list(range(32)) and not out[1::2].any()
    for line, what in (
        ("mad.wide.u32 %rd2, %r1, 16, %rd1;\nst.global.b32 [%rd2], %r1;", "no global memory"),
        ("mad.wide.u32 %rd2, %r1, 2, %rd1;\nst.global.b32 [%rd2], %r1;", "not aligned"),
        ("mad.lo.s32 %r2, %r1, 8, 4;\nst.shared.v2.b32 [%r2], {%r1, %r1};", "shared memory are not aligned"),
        ("shl.b32 %r2, %r1, 4;\nld.shared.b32 %r3, [%r2];", "no shared memory"),
    ):
        with pytest.raises(IndexError, match=what):
            ran(begin + line, [at], memory)


def test_the_emulator_refuses_what_a_card_would_hang_in():
    with pytest.raises(AssertionError, match="part"):
        ran("mov.u32 %r1, %tid.x;\nsetp.lt.u32 %p1, %r1, 7;\n@%p1 bra $L;\n$L: mov.u32 %r2, 0;")
    with pytest.raises(AssertionError, match="barrier"):
        ran(
            "mov.u32 %r1, %tid.x;\nsetp.lt.u32 %p1, %r1, 32;\n@%p1 bra $L;\nbar.sync 0;\n$L: mov.u32 %r2, 0;",
            threads=64,
        )


def test_the_emulators_product_is_that_of_matrices():
    memory, generator = ptx.Memory(), np.random.default_rng(2)
    a, b = generator.integers(0, 256, (16, 32)).astype(np.uint8), generator.integers(-128, 128, (32, 8)).astype(np.int8)
    words = np.zeros((32, 6), np.uint32)
    for lane in range(32):
        g, t = divmod(lane, 4)
        parts = [a[g + 8 * (i % 2), 16 * (i // 2) + 4 * t :][:4] for i in range(4)]
        parts += [b[16 * i + 4 * t : 16 * i + 4 * t + 4, g].view(np.uint8) for i in range(2)]
        words[lane] = np.stack(parts).copy().view(np.uint32).reshape(-1)
    out = np.zeros((32, 4), np.int32)
    loads = "\n".join(f"ld.global.b32 %a{i}, [%rd3+{4 * i}];" for i in range(6))
    ran(
        f"""mov.u32 %r1, %tid.x;
ld.param.b64 %rd1, [k_param_0];
ld.param.b64 %rd2, [k_param_1];
mad.wide.u32 %rd3, %r1, 24, %rd1;
mad.wide.u32 %rd4, %r1, 16, %rd2;
{loads}
mov.u32 %z, 5;
mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {{%c0, %c1, %c2, %c3}}, {{%a0, %a1, %a2, %a3}}, {{%a4, %a5}}, {{%z, %z, %z, %z}};
st.global.v4.b32 [%rd4], {{%c0, %c1, %c2, %c3}};""",
        [memory.add(words), memory.add(out)],
        memory,
    )
    expected = a.astype(np.int64) @ b.astype(np.int64) + 5
    for lane in range(32):
        g, t = divmod(lane, 4)
        assert out[lane].tolist() == [*expected[g, 2 * t : 2 * t + 2], *expected[g + 8, 2 * t : 2 * t + 2]]
