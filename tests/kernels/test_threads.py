"""Threads: as many as torch uses, the same bits with any number, and no process that hangs or dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from products import random, weight
from qkit import NF4, quantize_tensor
from qkit.methods.int8 import int8_rows
from qkit.ops import int8_linear, linear
from qkit_kernels.numba import threads

# Each large enough (tokens * rows * features >= 2^17) for threads to be woken; rows that no chunk divides.
Q4, Q3, NF = (
    weight(4, 1003, 256, 32, "zero points", real=True),
    weight(3, 533, 264),
    quantize_tensor(random(517, 256), NF4()),
)
W8 = int8_rows(random(521, 256))


def products():
    """One token and many with every kernel."""
    found = []
    for tokens in (1, 33):
        x = random(tokens, 264)
        x[-1, 5] = 20
        found += [linear(x, Q3), linear(x, Q3, activations="int8")]
        x = x[:, :256]
        found += [linear(x, Q4), linear(x, Q4, activations="int8"), linear(x, NF)]
        found += [int8_linear(x, W8), int8_linear(x, W8, threshold=6.0)]
    return found


def all_equal(one, other):
    """Asked of numpy: torch's own operations may hang in a forked child."""
    return all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def without_a_team(monkeypatch):
    """As on macOS and Windows: no OpenMP library is found."""
    monkeypatch.setattr(threads, "team_address", lambda: 0)


def test_any_number_of_threads_computes_the_same_bits(set_threads):
    set_threads(1)
    alone = products()
    for count in (2, 5):
        set_threads(count)
        assert threads.thread_count() == count
        assert all_equal(products(), alone)


def test_python_threads_compute_the_same_bits(set_threads, without_a_team, monkeypatch):
    set_threads(1)
    alone = products()
    calls, inner = [], threads._run_in_python_threads
    monkeypatch.setattr(threads, "_run_in_python_threads", lambda *args: (calls.append(args), inner(*args)))
    for count in (2, 5):
        set_threads(count)
        calls.clear()
        assert all_equal(products(), alone)
        assert len(calls) >= 14  # each product


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's threads are not used")
def test_on_linux_the_threads_are_those_of_torch():
    assert threads.team_address() != 0


@pytest.mark.parametrize("rows", [1, 2, 3, 15, 16, 17, 31, 32, 33, 100, 1003])
@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_row_is_dealt_out_once_and_chunks_are_whole_multiples(rows, multiple, count, set_threads, without_a_team):
    set_threads(count)
    seen, dealt = [0] * rows, []

    def body(first, last):
        dealt.append((first, last))
        for row in range(first, last):
            seen[row] += 1

    threads.run(None, body, (), rows, multiple)
    assert seen == [1] * rows
    assert all(first % multiple == 0 and (last % multiple == 0 or last == rows) for first, last in dealt)
    assert count == 1 or rows <= multiple or len(dealt) > 1


def test_what_is_too_little_for_two_threads_is_done_by_one(set_threads):
    set_threads(5)
    dealt = []
    threads.run(None, lambda *rows: dealt.append(rows), (), 1000, serial=True)
    assert dealt == [(0, 1000)]


def test_an_error_in_a_python_thread_is_raised_to_the_caller(set_threads, without_a_team):
    def body(first, last):
        if first:
            raise ZeroDivisionError

    set_threads(2)
    with pytest.raises(ZeroDivisionError):
        threads.run(None, body, (), 100)


@pytest.mark.parametrize("team", [True, False], ids=["team", "Python threads"])
def test_two_python_threads_at_once(team, set_threads, monkeypatch):
    if not team:
        monkeypatch.setattr(threads, "team_address", lambda: 0)
    set_threads(2)
    expected, right = products(), []

    def work():
        right.extend(all_equal(products(), expected) for _ in range(5))

    both = [threading.Thread(target=work) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert right == [True] * 10


@pytest.mark.skipif(sys.platform == "win32", reason="no signal can be sent to one thread there")
def test_an_interrupt_waits_for_what_has_begun_and_starts_nothing_more(monkeypatch):
    """What has begun writes into the output, which the caller is about to free. No chunk ends before its caller waits."""
    begun, finished, deals, heard, waiting = [], [], [], threading.Event(), threading.Event()

    def stop(*_):
        if not heard.is_set():
            heard.set()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    close = threads._Deal.close
    monkeypatch.setattr(threads._Deal, "close", lambda deal: (deals.append(deal), close(deal)))
    nap = SimpleNamespace(sleep=lambda seconds: (waiting.set(), time.sleep(seconds)))
    monkeypatch.setattr(threads, "time", nap)

    def body(first, last):
        begun.append(first)
        # A caller that is on its way to sleep hears no signal before it is woken: it is sent again until it is heard.
        while first == 0 and not heard.wait(0.01):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        waiting.wait()
        finished.append(first)

    try:
        with pytest.raises(KeyboardInterrupt):
            threads._run_in_python_threads(body, (), 100, 1, 2)
        assert sorted(begun) == sorted(finished) and len(begun) <= os.cpu_count()
        assert not list(deals[0].starts), "a thread that comes late would find work"
    finally:
        waiting.set()  # a thread that nobody waited for goes home
        signal.signal(signal.SIGINT, before)


# ---- in a process of its own, because it may die or hang

PROCESS = """
import os, signal, sys, threading
import torch
from torch.utils.data import DataLoader, Dataset
from test_threads import all_equal, products
from qkit_kernels.numba import threads

if sys.argv[1] == "Python threads":
    threads.team_address = lambda: 0
torch.set_num_threads(2)

# Two Python threads are the first to use the kernels.
found = []
both = [threading.Thread(target=lambda: found.append(products())) for _ in range(2)]
for thread in both:
    thread.start()
for thread in both:
    thread.join()
expected = products()
assert len(found) == 2 and all(all_equal(one, expected) for one in found), "the first use"

# A forked child works alone, and its parent goes on.
if hasattr(os, "fork"):
    assert threads.thread_count() == 2
    child = os.fork()
    if not child:
        os._exit(0 if threads.thread_count() == 1 and all_equal(products(), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child"
    assert threads.thread_count() == 2 and all_equal(products(), expected), "the parent"

    class Products(Dataset):
        def __len__(self):
            return 3
        def __getitem__(self, _):
            return products()

    for found in DataLoader(Products(), batch_size=None, num_workers=2, multiprocessing_context="fork"):
        assert all_equal(found, expected), "the data loader"
    assert all_equal(products(), expected), "the parent of the data loader"

# JupyterLab's stop button, one a round. Python drops an interrupt in a place that may raise nothing: so it leaves a note.
arrived = 0
def stop(*_):
    global arrived
    arrived += 1
    raise KeyboardInterrupt
signal.signal(signal.SIGINT, stop)
for pressed in range(20):
    try:
        print("ready", flush=True)
        while arrived == pressed:
            products()
    except KeyboardInterrupt:
        assert all_equal(products(), expected), "after an interrupt"
print("done", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent otherwise there")
@pytest.mark.parametrize("kind", ["team", "Python threads"])
def test_a_process_survives_two_threads_at_once_forks_and_interrupts(kind):
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n{PROCESS}",
        kind,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **pipes) as process:
        alarm = threading.Timer(600, os.killpg, (process.pid, signal.SIGKILL))  # a hang is a failure, a child's too
        alarm.start()
        said = ""
        while (line := process.stdout.readline()) == "ready\n":
            said += line
            time.sleep(0.003 * (len(said) % 17))  # somewhere else in a product each time; nothing depends on where
            process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
        alarm.cancel()
    assert process.returncode == 0 and said + line == "ready\n" * 20 + "done\n", errors or "it hung"
