"""Rows of a matrix over the cores: the threads that torch already has, so that nobody competes with it.

Numba's own `parallel=True` was not used, for three measured reasons: its default layer ends a process that was forked after
its first use (a data loader), the `workqueue` layer ends one in which two Python threads meet, and a pool beside torch's
makes two pools of spinning threads on the same cores.

torch's CPU threads are those of an OpenMP library that is already in the process. Its one function that starts a team,
`GOMP_parallel(function, data, threads, flags)`, can be called from compiled code: `fork_join` does that, and deals out rows a
chunk at a time, so that a core that was interrupted gets fewer. Where there is no such library (macOS, Windows), Python threads
do the same, since kernels run without the interpreter's lock. (Not those of `concurrent.futures`: Ctrl-C in the middle of its
`wait` leaves locks taken, and the next wait is for ever.)
"""

import ctypes
import os
import sys
import time
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread

import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

CHUNKS_PER_THREAD = 4

_forked = False


def _after_fork() -> None:
    """A forked child has none of its parent's threads, and OpenMP would wait for them for ever: it works alone."""
    global _forked
    _forked = True
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def thread_count() -> int:
    """As many as torch uses (`torch.set_num_threads`); one in a forked child."""
    return 1 if _forked else torch.get_num_threads()


@cache
def team_address() -> int:
    """The address of `GOMP_parallel` in the OpenMP library that torch has loaded; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    mapped = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()}
    libraries = [path for path in mapped if "omp" in Path(path).name and ".so" in Path(path).name]
    for path in sorted(libraries, key=lambda path: "torch" not in path):
        start = getattr(ctypes.CDLL(path), "GOMP_parallel", None)
        if start is not None:
            return ctypes.cast(start, ctypes.c_void_p).value
    return 0


class _Deal:
    """One call's chunks, taken by whichever thread is free.

    Only pool threads change what is here, and Python interrupts none of them: the caller may be interrupted anywhere.
    """

    def __init__(self, body, args: tuple, rows: int, chunk: int) -> None:
        self.starts = iter(range(0, rows, chunk))  # two threads never get the same
        self.body, self.args, self.rows, self.chunk = body, args, rows, chunk
        self.over, self.bell = False, SimpleQueue()  # nothing is being computed any more; rings when that is so
        self.error: BaseException | None = None
        self._at_work, self._lock = 0, Lock()

    def work(self) -> None:
        """Take chunks until there are none; the last thread to leave rings."""
        with self._lock:
            self._at_work += 1
        try:
            for first in self.starts:
                self.body(*self.args, first, min(first + self.chunk, self.rows))
        except BaseException as error:
            self.error = error
            self.close()
        with self._lock:
            self._at_work -= 1
            if not self._at_work:
                self.over = True
                self.bell.put(None)

    def close(self) -> None:
        """Nobody begins another chunk."""
        for _ in self.starts:
            pass


@cache
def _pool() -> SimpleQueue:
    """Where deals are left for Python threads, as many as there are cores."""
    deals: SimpleQueue[_Deal] = SimpleQueue()

    def serve() -> None:
        while True:
            deals.get().work()

    for number in range(os.cpu_count() or 1):
        Thread(target=serve, name=f"qkit {number}", daemon=True).start()
    return deals


def chunk_size(rows: int, threads: int, multiple: int = 1) -> int:
    """Rows that are dealt out at a time: a multiple of `multiple`, about `CHUNKS_PER_THREAD` a thread."""
    parts = threads * CHUNKS_PER_THREAD if threads > 1 else 1
    return max(1, -(-rows // (parts * multiple))) * multiple


def team_of(rows: int, serial: bool) -> tuple[int, int, int] | None:
    """(address, threads, chunk) of the team that shares so many rows, for a kernel that starts it by itself; one thread needs
    no address. None: the threads are Python's, see `run`.
    """
    threads = 1 if serial else thread_count()
    if threads == 1 or (chunk := chunk_size(rows, threads)) >= rows:
        return 0, 1, rows
    address = team_address()
    return (address, threads, chunk) if address else None


def run(team, body, args: tuple, rows: int, multiple: int = 1, serial: bool = False, chunk: int | None = None) -> None:
    """Call `body(*args, first, last)` until all rows 0 .. rows - 1 are done.

    Args:
        team: the compiled caller of `body` through `fork_join`: team(address, threads, chunk, rows, *args).
        body: the same, directly.
        args: what both take.
        rows: how many there are.
        multiple: only whole multiples of so many rows are dealt out, but for the last.
        serial: there is too little to do for two threads to be worth waking.
        chunk: how many are dealt out at a time; None: so many that each thread comes about four times.
    """
    threads = 1 if serial else thread_count()
    chunk = chunk or chunk_size(rows, threads, multiple)
    if chunk >= rows or threads == 1:
        body(*args, 0, rows)
    elif address := team_address():
        team(address, threads, chunk, rows, *args)
    else:
        _run_in_python_threads(body, args, rows, chunk, threads)


def _run_in_python_threads(body, args: tuple, rows: int, chunk: int, threads: int) -> None:
    deal = _Deal(body, args, rows, chunk)
    try:
        for _ in range(threads):
            _pool().put(deal)
        deal.bell.get()
    except BaseException:  # an interrupt: what has begun still writes into the output, which must not be freed under it
        deal.close()
        _pool().put(deal)  # however far we came: a thread that finds nothing left to do says so
        while not deal.over:
            time.sleep(0.001)
        raise
    if deal.error is not None:
        raise deal.error


@intrinsic
def fork_join(typing_context, body, args, rows, chunk, threads, team):
    """body(*args, first, last) for all chunks of rows, by a team of threads; returns when all are done.

    What is compiled here is
        def worker(shared):
            while (first := atomic_add(shared.next, chunk)) < rows:
                body(*shared.args, first, min(first + chunk, rows))
        GOMP_parallel(worker, shared, threads, 0)
    """
    body_types = (*args.types, types.intp, types.intp)
    body_signature = body.get_call_type(typing_context, body_types, {})
    signature = types.void(body, args, *[types.intp] * 4)

    def codegen(context, builder, signature, values):
        _, args_value, rows, chunk, threads, team = values
        overload = body.dispatcher.get_compile_result(body_signature)
        context.active_code_library.add_linking_library(overload.library)
        intp = rows.type
        shared_type = ir.LiteralStructType([intp, intp, intp, args_value.type])
        shared = cgutils.alloca_once(builder, shared_type)
        for place, part in enumerate((ir.Constant(intp, 0), rows, chunk, args_value)):
            builder.store(part, cgutils.gep_inbounds(builder, shared, 0, place))
        void_pointer = cgutils.voidptr_t
        worker_type = ir.FunctionType(ir.VoidType(), [void_pointer])
        name = builder.module.get_unique_name(f"worker.{overload.fndesc.mangled_name}")
        worker = ir.Function(builder.module, worker_type, name)
        worker.linkage = "internal"
        _build_worker(context, worker, shared_type, args, body_signature, overload.fndesc)
        team_type = ir.FunctionType(
            ir.VoidType(), [worker_type.as_pointer(), void_pointer, ir.IntType(32), ir.IntType(32)]
        )
        start = builder.inttoptr(team, team_type.as_pointer())
        count = builder.trunc(threads, ir.IntType(32))
        builder.call(start, [worker, builder.bitcast(shared, void_pointer), count, ir.Constant(ir.IntType(32), 0)])
        return context.get_dummy_value()

    return signature, codegen


def _build_worker(context, worker, shared_type, args_type, body_signature, descriptor) -> None:
    builder = ir.IRBuilder(worker.append_basic_block("entry"))
    shared = builder.bitcast(worker.args[0], shared_type.as_pointer())
    rows, chunk, packed = (builder.load(cgutils.gep_inbounds(builder, shared, 0, place)) for place in (1, 2, 3))
    counter = cgutils.gep_inbounds(builder, shared, 0, 0)
    args = cgutils.unpack_tuple(builder, packed, len(args_type.types))
    deal, work, done = (worker.append_basic_block(name) for name in ("deal", "work", "done"))
    builder.branch(deal)
    builder.position_at_end(deal)
    first = builder.atomic_rmw("add", counter, chunk, "monotonic")
    builder.cbranch(builder.icmp_signed("<", first, rows), work, done)
    builder.position_at_end(work)
    last = builder.add(first, chunk)
    last = builder.select(builder.icmp_signed("<", last, rows), last, rows)
    context.call_internal_no_propagate(builder, descriptor, body_signature, [*args, first, last])
    builder.branch(deal)
    builder.position_at_end(done)
    builder.ret_void()


@njit(inline="always")
def deal_out(body, args, rows, chunk, threads, team):
    """body(*args, first, last) for all rows: by a team of threads, or here where one is enough (`team_of`).

    Inlined where it is called, since Numba keeps no machine code of a function that was handed another.
    """
    if threads == 1:
        body(*args, 0, rows)
    else:
        fork_join(body, args, rows, chunk, threads, team)
