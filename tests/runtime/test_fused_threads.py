"""Several threads on one batch: the same results, also after a fork, and where many ask at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from interlux.ir.errors import InvalidModelError
from interlux.runtime.fused import native, threads
from interlux.runtime.fused.entry import Entry
from tests.runtime.fused_functions import affine, through_arena


def split(entry: Entry, chunk: int = 64, count: int = 4) -> Entry:
    """Uses threads from two chunks on, whatever pays."""
    call = entry.description
    call.threads, call.chunk, call.split_from, call.release_from = count, chunk, 2 * chunk, 1
    for history in call.history:
        history.alone, history.calls = 2**40, 3  # one thread takes ages
    return entry


def test_plan() -> None:
    small = Entry(affine(nanoseconds=2.0), threads=2).description
    assert (small.release_from, small.split_from, small.chunk) == (4000, 12500, 2560)
    large = Entry(affine(nanoseconds=5e6), threads=2).description
    assert (large.release_from, large.split_from, large.chunk, large.threads) == (1, 128, 64, 2)
    one = Entry(affine(nanoseconds=5e6), threads=1).description
    assert one.split_from > 2**60
    assert Entry(affine(nanoseconds=1.0)).description.threads == min(64, len(os.sched_getaffinity(0)))
    for wrong in (0, -1, 2.0, "2"):
        with pytest.raises(InvalidModelError, match="threads"):
            Entry(affine(), threads=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [1, 63, 127, 128, 129, 191, 192, 1000, 100_003])
@pytest.mark.parametrize("form", ["fast", "slow"])
def test_same_results(batch: int, form: str) -> None:
    entry = split(Entry(affine((3,))))
    x = np.random.default_rng(batch).standard_normal((batch, 3)).astype(np.float32)
    call = entry.call if form == "fast" else entry.slow
    for _ in range(20):
        np.testing.assert_array_equal(call(x)[0], 2 * x + 1)


@pytest.mark.parametrize("words", [8, 40_000])
def test_every_thread_has_an_arena(words: int) -> None:
    entry = split(Entry(through_arena(words)), chunk=2)
    x = np.arange(33.0)
    for _ in range(20):
        np.testing.assert_array_equal(entry.call(x)[0], words * x)


def test_more_threads_than_cores() -> None:
    entry = split(Entry(affine()), count=9)
    x = np.ones((4096, 4), np.float32)
    for _ in range(50):
        assert (entry.call(x)[0] == 3).all()
    assert native.pool().grow(1) >= 9


def test_eight_threads_ask_at_once() -> None:
    entry = split(Entry(affine()))
    wrong: list[Any] = []

    def work(number: int) -> None:
        x = np.full((1000, 4), number, np.float32)
        wrong.extend(number for _ in range(100) if not (entry.call(x)[0] == 2 * number + 1).all())

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_threads_that_do_not_pay_are_given_up() -> None:
    """Where several threads lose, one is used, and they are tried again when that costs little."""
    entry = split(Entry(affine()))
    history, x = entry.description.history[2], np.ones((600, 4), np.float32)
    history.alone, history.calls, history.account = 1, 4, 0
    calls = 0
    while not history.resting:
        entry.call(x)  # in several threads: slower than one thread, which takes no time at all
        history.calls, calls = 4, calls + 1
    assert history.account < -200_000 and history.alone == 1 and calls < 10**5
    history.account, history.alone, calls = -100, 2**40, 0
    while history.resting and calls < 10**6:
        entry.call(x)  # in this thread
        calls += 1
    assert history.account >= 0 and calls >= 1
    history.calls, history.alone = 4, 2**40
    entry.call(x)
    assert history.account == 5_000_000  # they have paid, and the account is full
    history.calls, history.account = 64, 7
    entry.call(x)  # one of 64 calls measures one thread
    assert history.account == 7 and history.alone < 2**40


def test_threads_sleep_and_wake() -> None:
    """Work after a pause finds the threads again."""
    entry = split(Entry(affine()))
    x = np.ones((1000, 4), np.float32)
    for pause in (0.0, 0.002, 0.0, 0.01):
        time.sleep(pause)
        assert (entry.call(x)[0] == 3).all()


def test_a_system_without_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = split(Entry(affine()), count=threads.MOST)
    monkeypatch.setattr(native.pool(), "_start", lambda *arguments: 11)
    x = np.ones((1000, 4), np.float32)
    assert (entry.call(x)[0] == 3).all()
    assert entry.description.threads < threads.MOST
    assert (entry.call(x)[0] == 3).all()


_FORK = """
import os, sys, threading
import numpy as np
from tests.runtime.test_fused_threads import split
from tests.runtime.fused_functions import affine, through_arena
from interlux.runtime.fused.entry import Entry

entries = [split(Entry(affine()), count=2), split(Entry(through_arena(40_000)), chunk=2, count=2)]
inputs = [np.ones((1000, 4), np.float32), np.ones(100)]
expected = [3, 40_000]

def right():
    return all((e.call(x)[0] == y).all() for _ in range(4) for e, x, y in zip(entries, inputs, expected))

stop = False
def busy():
    while not stop:
        right()

assert right()
other = threading.Thread(target=busy)
if "busy" in sys.argv:  # the pool is at work while the process forks
    other.start()
for _ in range(5):
    child = os.fork()
    if child == 0:
        os._exit(0 if right() and right() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert right()
stop = True
if "busy" in sys.argv:
    other.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("while_busy", [[], ["busy"]])
def test_fork_after_use(while_busy: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORK, *while_busy]
    subprocess.run(command, check=True, env=environment, timeout=120)


def test_leaving_while_threads_spin() -> None:
    program = (
        "import numpy as np\n"
        "from tests.runtime.test_fused_threads import split\n"
        "from tests.runtime.fused_functions import affine\n"
        "from interlux.runtime.fused.entry import Entry\n"
        "import threading\n"
        "entry = split(Entry(affine()), count=8)\n"
        "x = np.ones((1000, 4), np.float32)\n"
        "def work():\n"
        "    while True: entry.call(x)\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "for _ in range(1000): entry.call(x)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    for _ in range(3):
        subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=60)
