"""The steps of lesson 08 all compute the same product, and what is read from machine code is what stands there."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from numba import float32, float64, int32, int64, njit, uint8

import qkit
from qkit_kernels.numba import steps, streams
from qkit_kernels.numba.vector import has

INTEGERS = ("INT8 activations", "asked for ahead")
FLOATS = [name for name in steps.STEPS if name not in INTEGERS]
EPS = float(np.finfo(np.float32).eps)


def stored(q):
    return q.packed.numpy(), q.scales.view(torch.uint16).numpy()


def quantized(rows, features, seed=0, spread=1.0):
    weight = torch.randn(rows, features, generator=torch.Generator().manual_seed(seed)) * spread
    return qkit.quantize_tensor(weight, qkit.RTN(bits=4, group_size=128, symmetric=True))


def extreme(rows, features):
    """Rows of the smallest code, of the largest, and of both in turn, with scales from tiny to large."""
    codes = torch.tensor([0, 15]).repeat(features // 2).repeat(rows, 1)
    codes[0], codes[1] = 0, 15
    scales = torch.logspace(-4, 3, rows * features // 128).reshape(rows, -1).half()
    return qkit.QTensor.from_codes(codes, scales, 4)


def numbers(features, seed=1):
    return np.random.default_rng(seed).normal(size=features).astype(np.float32)


WEIGHTS = [quantized(7, 384), quantized(64, 128), quantized(33, 4096, spread=1e-3), extreme(5, 256)]


def step(name, x, q):
    return steps.STEPS[name](steps.STEPS[name].lay(x), *stored(q))


def bound(q, x):
    """Of a sum of `features` products in float32, in any order: each of its additions and products is rounded once."""
    features = q.shape[1]
    return (features + features // 128) * EPS * (q.dequantize().double().abs().numpy() @ np.abs(x).astype(np.float64))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize(
    "q", [quantized(7, 384), quantized(64, 128), quantized(33, 4096, spread=1e-3), extreme(5, 256)], ids=repr
)
def test_every_step_is_the_product_with_the_dequantized_weight(name, q):
    x = numbers(q.shape[1])
    exact = q.dequantize().double().numpy() @ x.astype(np.float64)
    assert (np.abs(step(name, x, q) - exact) <= bound(q, x)).all()


@pytest.mark.parametrize("q", WEIGHTS, ids=repr)
def test_the_integer_step_rounds_once_a_group_and_is_exact_inside(q):
    x = numbers(q.shape[1])
    x_scale = np.abs(x).max() / np.float32(127)
    x_hat = np.rint(x / x_scale).astype(np.float64) * np.float64(x_scale)
    w_hat = q.dequantize().double().numpy()
    roundings = q.scales.shape[1] + 6  # a multiply-add for each group, four halvings of sixteen lanes, two scales
    slack = roundings * EPS * (np.abs(w_hat) @ np.abs(x_hat))
    assert (np.abs(step("INT8 activations", x, q) - w_hat @ x_hat) <= slack).all()


@pytest.mark.parametrize("q", WEIGHTS, ids=repr)
def test_to_ask_ahead_changes_no_bit(q):
    x = numbers(q.shape[1])
    assert np.array_equal(*(step(name, x, q) for name in INTEGERS))


def test_saturated_codes_do_not_overflow():
    q = extreme(4, 4096)
    x = np.full(4096, 3.0, np.float32)
    x[1::2] *= -1
    exact = q.dequantize().double().numpy() @ x.astype(np.float64)
    assert (np.abs(step("INT8 activations", x, q) - exact) <= bound(q, x)).all()


@pytest.mark.parametrize("name", list(steps.STEPS))
def test_a_token_of_zeros_gives_zeros(name):
    assert not step(name, np.zeros(256, np.float32), quantized(3, 256)).any()


@pytest.mark.parametrize("name", list(steps.STEPS))
def test_only_the_rows_that_are_asked_for_are_filled(name):
    q, chosen = quantized(9, 256), steps.STEPS[name]
    x, y = chosen.lay(numbers(256)), np.full(9, 777, np.float32)
    chosen.body(x, *stored(q), y, 2, 5)
    assert np.array_equal(y[2:5], chosen(x, *stored(q))[2:5])
    assert (y[:2] == 777).all() and (y[5:] == 777).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads):
    q, x, before = quantized(130, 512), numbers(512), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert np.array_equal(step("two threads", x, q), step("whole registers", x, q))
        body, laid = steps.integers, steps.as_bytes(x)
        alone = np.empty(130, np.float32)
        body(laid, *stored(q), alone, 0, 130)
        assert np.array_equal(step("INT8 activations", x, q), alone)
    finally:
        torch.set_num_threads(before)


def test_the_loop_in_the_lesson_is_the_first_step():
    assert next(iter(steps.STEPS)) == "as written" and steps.STEPS["as written"].body is steps.as_written


# ---- types and machine code


def test_what_numba_makes_of_small_numbers():
    assert steps.result_type(lambda b: b & 15, uint8) == "int64"
    assert steps.result_type(lambda a, b: a - b, int32, int32) == "int64"
    assert steps.result_type(lambda a, b: a * b, float32, int64) == "float64"
    assert steps.result_type(lambda a, b: a * b, float32, float32) == "float32"
    assert steps.result_type(lambda a: a, float64) == "float64"


X86 = """
	.text
name$1:
	pushq	%rbp
.LBB0_1:
	movq	%rax, %rbx
.LBB0_2:
	vpmaddwd	%ymm0, %ymm1, %ymm2
	addq	$1, %rcx	# one more
	.p2align	4
	jne	.LBB0_2
.LBB0_3:
	{vex}	vpdpbusd	%ymm0, %ymm1, %ymm2
	addq	$1, %rcx
	addq	$1, %rdx
	jne	.LBB0_3
.LBB0_10:
	vpmaddwd	%ymm0, %ymm1, %ymm2
	subq	$1, %rcx
	nop
	nop
	jne	.LBB0_10
	jne	.LBB0_1
	retq
"""
ARM = """
.LBB0_4:
	sdot	v0.4s, v1.16b, v2.16b
	subs	x8, x8, #1
	b.ne	.LBB0_4
	ret
"""


def test_instructions_are_counted_without_labels_directives_and_prefixes():
    assert steps.instructions(X86) == {
        "pushq": 1, "movq": 1, "vpmaddwd": 2, "addq": 3, "jne": 4, "vpdpbusd": 1, "subq": 1, "nop": 2, "retq": 1,
    }  # fmt: skip


def test_the_shortest_innermost_loop_with_the_instruction_is_found():
    assert steps.inner_loop(X86, "vpmaddwd").split("\n")[0].startswith("\tvpmaddwd")
    assert len(steps.inner_loop(X86, "vpmaddwd").split("\n")) == 3
    assert "vpdpbusd" in steps.inner_loop(X86, "missing", "vpdpbusd", "vpmaddwd")
    assert steps.inner_loop(X86, "movq") == ""  # its loop holds others
    assert steps.inner_loop(ARM, "vpdpbusd", "sdot").endswith("b.ne	.LBB0_4")


def test_products_are_known_by_name():
    vectors = (
        "vpdpbusd",
        "vpmaddwd",
        "pmaddwd",
        "vmulps",
        "mulps",
        "vfmadd231ps",
        "sdot",
        "usdot",
        "fmla",
        "smlal",
        "fmul",
    )
    assert all(map(steps.is_product, vectors))
    assert not any(map(steps.is_product, ("vmulss", "vfmadd213ss", "addq", "vpermps", "movq", "vaddps")))


def test_machine_code_is_shown_of_what_came_from_the_cache_too():
    laid, sums = np.zeros((1, 8, 1, 16), np.float32), np.zeros((1, 1, 16), np.float32)
    streams.lay_floats(np.ones((1, 128), np.float32), 1, laid, sums)
    assert sum(steps.instructions(steps.assembly(streams.lay_floats)).values()) > 50


@pytest.mark.skipif(not has("avx512vnni", "avx512dq"), reason="the processor has other instructions")
def test_the_instructions_that_the_lesson_shows_are_there():
    q = quantized(4, 256)
    for name in ("x split", "types fixed", "whole registers", "INT8 activations"):
        step(name, numbers(256), q)
    code = {
        f: steps.instructions(steps.assembly(f))
        for f in (steps.split, steps.types_fixed, steps.registers, steps.integers)
    }
    assert code[steps.split]["vcvtqq2ps"] and not code[steps.types_fixed]["vcvtqq2ps"]
    looked_up = code[steps.registers]["vpermps"] + code[steps.registers]["vpermd"]
    assert looked_up and looked_up % 8 == 0
    loop = steps.instructions(steps.inner_loop(steps.assembly(steps.integers), "vpdpbusd"))
    groups = loop["vpdpbusd"] // 2  # one, or what the compiler thinks that this processor does well in one turn
    assert groups in (1, 2, 4) and loop["vpdpbusd"] == 2 * groups and sum(loop.values()) < 24 * groups


PROGRAM = """
import numpy as np
from qkit_kernels.numba import steps
rng = np.random.default_rng(0)
packed, scales = rng.integers(0, 256, (5, 128), dtype=np.uint8), rng.random((5, 2)).astype(np.float16).view(np.uint16)
x = rng.normal(size=256).astype(np.float32)
for name, step in steps.STEPS.items():
    print(name, *step(step.lay(x), packed, scales), sep=",")
code = steps.assembly(steps.integers)
print("vpdpbusd", steps.instructions(code)["vpdpbusd"], sep=",")
print("zmm", code.count("zmm"), sep=",")
"""


def printed(parts):
    environment = {**os.environ, **steps.processor_without(*parts)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return {line.split(",")[0]: [float(part) for part in line.split(",")[1:]] for line in done.stdout.splitlines()}


@pytest.mark.exhaustive
def test_an_older_processor_gives_the_same_whole_numbers_by_other_instructions():
    here, there = printed(()), printed(("avx512", "vnni", "amx"))
    assert there.pop("vpdpbusd") == [0]
    assert there.pop("zmm") == [0]
    assert (here.pop("zmm") != [0]) == has("avx512f")
    assert (here.pop("vpdpbusd") != [0]) == (has("avx512vnni") or has("avxvnni"))
    assert list(here) == list(there) == list(steps.STEPS)
    for name in here:
        # Both are within 256 eps sum |w| |x| of the product; a code is at most 8, a scale at most 1, and |x| below 5.
        assert there[name] == pytest.approx(here[name], rel=0, abs=2 * 256 * EPS * 256 * 8 * 5), name


def test_nothing_is_taken_from_a_processor_unless_it_is_named():
    assert steps.processor_without() == {}
    features = steps.processor_without("avx512")["NUMBA_CPU_FEATURES"].split(",")
    assert features and not [name for name in features if "avx512" in name or not name.startswith("+")]


def test_machine_code_is_that_of_the_last_types():
    @njit
    def twice(x):
        return x + x

    codes = []
    for number in (np.float32(1), np.float64(1)):
        twice(number)
        codes.append(steps.instructions(steps.assembly(twice)))
    assert codes[0] != codes[1]
