"""Linear layers by one thread, in its own CPU time: for a busy machine, and for the ways of processors that are older than it.

python benchmarks/one_thread.py [--without avx512 avxvnni] [--tokens 128] [--shape 4096x4096] [--row "W4 g128 A8"] [--rounds 15]
python benchmarks/one_thread.py --model bookworm-14m [--without avx512 avxvnni] [--row w4g128] [--rounds 15]

Contenders are those of `qkit bench cpu`. All take turns in one process, on weights that together no cache holds, and what is
printed of each is the least and the median CPU time of a call, and both beside the first's. CPU time leaves out the waiting
for a core; what others do to caches and memory meanwhile it does not. With --model a model writes, contenders are the rows of
`qkit bench model`, a call is a token, and a round 32 of each.

--without compiles qkit's kernels for this processor less the instruction sets whose names hold a part, and holds torch, MKL,
oneDNN and FBGEMM to AVX2. onnxruntime has no such setting: it keeps what the processor has.
"""

import argparse
import os
import subprocess
import sys
import time
from statistics import median

from qkit_kernels.numba.steps import processor_without

TO_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",  # of torch's dynamic INT8
}
ROWS = ("fp32", "W4 g128", "W4 g128 A8", "W8A8 dynamic", "dynamic INT8", "W4 g128 sym level 4", "W4 g128 sym level 0")
WORKING_SET = 2**26  # bytes
AGAIN = "QKIT_ONE_THREAD"  # set where this file has called itself


def main() -> None:
    """Measure and print, in a process that was told of its processor before it began."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without", nargs="*", default=[], help="parts of names of instruction sets")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--shape", default="4096x4096", help="out x in")
    parser.add_argument("--row", action="append", help="a contender, or library and contender; repeat it")
    parser.add_argument("--model", help="one of `qkit bench model`, which writes token by token")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if AGAIN in os.environ:
        (measure_model if arguments.model else measure)(arguments)
        return
    told = {**processor_without(*arguments.without), **(TO_AVX2 if arguments.without else {})}
    environment = {**os.environ, **told, "OMP_NUM_THREADS": "1", AGAIN: "1"}
    raise SystemExit(subprocess.call([sys.executable, *sys.argv], env=environment))


def called(name: str, known):
    """The one that is called so, alone or with its library before it.

    Raises:
        SystemExit: nothing is.
    """
    for found in known:
        if name in (found.name, found.label):
            return found
    raise SystemExit(f"--row {name!r} is no contender; give one of {', '.join(found.label for found in known)}")


def measure(arguments: argparse.Namespace) -> None:
    """All contenders in turn, and a line for each."""
    import torch

    from qkit.bench import linear
    from qkit.bench.record import describe_machine
    from qkit.bench.timing import Rotation

    torch.set_num_threads(1)
    shape = linear.parse_shape(arguments.shape)
    weight, x = linear.draw_weight(shape), linear.draw_inputs(arguments.tokens, shape[1])
    chosen = [called(name, linear.CONTENDERS) for name in arguments.row or ROWS]
    calls, seconds = {}, {contender.label: [] for contender in chosen}
    with torch.inference_mode():
        for contender in chosen:
            layers = linear.fill(contender, weight, WORKING_SET)
            linear.checked_error(contender, layers[0], x, weight)
            calls[contender.label] = Rotation([layer.call for layer in layers], contender.native(x))
        for _ in range(arguments.rounds):
            for name, call in calls.items():
                call()  # what the one before left in the caches is not its fault
                for _ in range(linear.block_of(arguments.tokens)):
                    start = time.thread_time()
                    call()
                    seconds[name].append(time.thread_time() - start)
    print(describe_machine())
    print(f"{arguments.shape}, {arguments.tokens} tokens, {arguments.rounds} rounds, CPU time of one thread")
    show(seconds)


def measure_model(arguments: argparse.Namespace) -> None:
    """All rows in turn, and a line for each: the time of a token."""
    import torch

    from qkit.bench import generation
    from qkit.bench.record import describe_machine

    torch.set_num_threads(1)
    rows = arguments.row or generation.ROWS
    networks = {row: generation.build(arguments.model, row) for row in rows}
    seconds = {generation.name_row(row): [] for row in rows}
    for _ in range(arguments.rounds):
        for row, network in networks.items():
            seconds[generation.name_row(row)] += generation.time_model(network, repeats=1, clock=time.thread_time)[1]
    print(describe_machine())
    print(f"{arguments.model}, a token, {arguments.rounds} rounds, CPU time of one thread")
    show(seconds)


def show(seconds: dict[str, list[float]]) -> None:
    """A line for each contender, and how it stands to the first."""
    first = next(iter(seconds.values()))
    least, middle = min(first), median(first)
    for name, taken in seconds.items():
        numbers = f"{1e3 * min(taken):8.2f} ms {1e3 * median(taken):8.2f} ms"
        print(f"{name:34} {numbers}   {min(taken) / least:6.3f} {median(taken) / middle:6.3f}")


if __name__ == "__main__":
    main()
