"""Parts of a batch on several cores: a small pool of threads, written in LLVM IR because it must know no Python.

One job at a time: a function that is called with the numbers of its chunks. The threads of the pool and the caller
claim chunks one after the other, so that a core that is busy with something else delays nobody by more than a chunk.
Whoever finds the pool at work for another caller computes alone. Idle threads spin for some microseconds, since waking
one takes 50 to 100, and then sleep.

Which thread computes a chunk is chance; what the chunks are is not, so results don't depend on it.

    pool memory: owner | state = (number of the job << 32) + unclaimed chunks | finished | job | stop, threads | slots

A thread reads the job, then takes a chunk by replacing the state that it read before: if that succeeds no other job has
begun in between. One that comes too late finds no chunk and touches nothing of the caller's.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading

from . import atomic
from .llvm import I1, I32, I64, PTR, VOID, Function, Library, Module, Value

MOST = 64  # threads of a job, the caller included
SPINS = 2000  # rounds of waiting before a thread sleeps: about 40 µs
YIELD_AFTER = 1000  # rounds of waiting for the others before the caller lets another process run

# Byte offsets in the pool's memory, on cache lines of their own.
_OWNER, _STATE, _DONE, _JOB, _STOP, _SLOTS = 0, 128, 256, 384, 512, 640
THREADS = _STOP + 8  # how many there are for a job, the caller included; 0 before the first is started
_FUNCTION, _CONTEXT, _LIMIT = _JOB, _JOB + 8, _JOB + 16
# … and in a thread's slot.
_SLEEPING, _POOL, _INDEX, _MUTEX, _CONDITION, _SLOT = 0, 8, 16, 64, 128, 256
_UNCLAIMED = 0xFFFFFFFF


def emit_pool(module: Module) -> None:
    """Adds the functions of the pool to a module: `pool_start`, `pool_stop`, `pool_run`."""
    _drain(module)
    _worker(module)
    _start(module)
    _stop(module)
    _run(module)


def _drain(module: Module) -> None:
    """`i64 drain(pool)`: claims and computes chunks until there are none. Returns how many."""
    f = module.function("pool_drain", [("pool", PTR)], I64, noalias=False)
    pool = f["pool"]
    count = f.variable(0, I64)
    state = f.variable(0, I64)

    def unclaimed() -> Value:
        state.set(atomic.load(f, atomic.place(f, pool, _STATE), I64, "acquire"))
        return f.ne(state.get() & _UNCLAIMED, 0)

    with f.repeat(unclaimed):
        function = atomic.load(f, atomic.place(f, pool, _FUNCTION), PTR, "monotonic")
        context = atomic.load(f, atomic.place(f, pool, _CONTEXT), PTR, "monotonic")
        old = state.get()
        with f.when(atomic.replace(f, atomic.place(f, pool, _STATE), old, old - 1)):
            f.statement(f"call void {function.text}(ptr {context.text}, i64 {((old & _UNCLAIMED) - 1).text})")
            atomic.add(f, atomic.place(f, pool, _DONE), f.const(1, I64))
            count.set(count.get() + 1)
    f.ret(count.get())


def _work(f: Function, pool: Value, index: Value) -> Value:
    """Whether there is something to do for a thread (i1)."""
    unclaimed = atomic.load(f, atomic.place(f, pool, _STATE), I64) & _UNCLAIMED
    limit = atomic.load(f, atomic.place(f, pool, _LIMIT), I64, "monotonic")
    return f.ne(unclaimed, 0) & (index < limit)


def _worker(module: Module) -> None:
    """`void *pool_worker(slot)`: what a thread of the pool executes until it is told to stop."""
    f = module.function("pool_worker", [("slot", PTR)], PTR, noalias=False)
    slot = f["slot"]
    pool, index = atomic.pointer_at(f, slot, _POOL), atomic.field(f, slot, _INDEX)
    mutex, condition = atomic.place(f, slot, _MUTEX), atomic.place(f, slot, _CONDITION)
    sleeping = atomic.place(f, slot, _SLEEPING)
    stop = atomic.place(f, pool, _STOP)
    spins = f.variable(0, I64)

    def running() -> Value:
        return f.eq(atomic.load(f, stop, I64), 0)

    with f.repeat(running):

        def spin() -> None:
            atomic.pause(f)
            spins.set(spins.get() + 1)
            with f.when(spins.get() > SPINS):
                f.call("pthread_mutex_lock", I32, mutex)
                atomic.store(f, f.const(1, I64), sleeping)
                # whoever brings work writes the state, then looks for sleepers; here it is the other way round
                idle = f.variable(True, I1)
                idle.set(f.not_(_work(f, pool, index)) & running())
                with f.repeat(idle.get):
                    f.call("pthread_cond_wait", I32, condition, mutex)
                    idle.set(f.not_(_work(f, pool, index)) & running())
                atomic.store(f, f.const(0, I64), sleeping)
                f.call("pthread_mutex_unlock", I32, mutex)
                spins.set(0)

        def work() -> None:
            f.call("pool_drain", I64, pool)
            spins.set(0)

        f.branch(_work(f, pool, index), work, spin)
    f.ret(f.const(0, PTR))


def _slot(f: Function, pool: Value, index: Value) -> Value:
    return atomic.place(f, pool, index * _SLOT + _SLOTS)


def _wake(f: Function, slot: Value) -> None:
    """Wakes a thread that sleeps."""
    with f.when(f.ne(atomic.load(f, atomic.place(f, slot, _SLEEPING), I64), 0)):
        mutex = atomic.place(f, slot, _MUTEX)
        f.call("pthread_mutex_lock", I32, mutex)
        f.call("pthread_cond_signal", I32, atomic.place(f, slot, _CONDITION))
        f.call("pthread_mutex_unlock", I32, mutex)


def _start(module: Module) -> None:
    """`i64 pool_start(pool, index, thread)`: starts thread number `index`, from 1; `*thread` is its handle.

    Returns 0, or an error number.
    """
    f = module.function("pool_start", [("pool", PTR), ("index", I64), ("thread", PTR)], I64, noalias=False)
    slot = _slot(f, f["pool"], f["index"])
    f.store(f.const(0, I64), atomic.place(f, slot, _SLEEPING).of(I64))
    f.store(f["pool"], atomic.place(f, slot, _POOL).of(PTR))
    f.store(f["index"], atomic.place(f, slot, _INDEX).of(I64))
    null = f.const(0, PTR)
    f.call("pthread_mutex_init", I32, atomic.place(f, slot, _MUTEX), null)
    f.call("pthread_cond_init", I32, atomic.place(f, slot, _CONDITION), null)
    error = f.call("pthread_create", I32, f["thread"], null, Value(f, "@pool_worker", PTR), slot)
    f.ret(f.cast("sext", error, I64))


def _stop(module: Module) -> None:
    """`void pool_stop(pool, threads)`: tells the threads 1 … `threads` to return."""
    f = module.function("pool_stop", [("pool", PTR), ("threads", I64)], VOID, noalias=False)
    atomic.store(f, f.const(1, I64), atomic.place(f, f["pool"], _STOP))
    with f.loop(1, f["threads"] + 1) as i:
        _wake(f, _slot(f, f["pool"], i))
    f.ret()


def _run(module: Module) -> None:
    """`i64 pool_run(pool, function, context, chunks, limit)`: calls function(context, i) for i < chunks.

    At most `limit` threads take part, this one included. Returns 1 when all is done, 0 if the pool is occupied.
    """
    arguments = [("pool", PTR), ("function", PTR), ("context", PTR), ("chunks", I64), ("limit", I64)]
    f = module.function("pool_run", arguments, I64, noalias=False)
    pool, chunks = f["pool"], f["chunks"]
    zero, one = f.const(0, I64), f.const(1, I64)
    f.exit_when(f.not_(atomic.replace(f, atomic.place(f, pool, _OWNER), zero, one)), zero)
    limit = f.select(f["limit"] < chunks, f["limit"], chunks)
    atomic.store(f, f["function"], atomic.place(f, pool, _FUNCTION), "monotonic")
    atomic.store(f, f["context"], atomic.place(f, pool, _CONTEXT), "monotonic")
    atomic.store(f, limit, atomic.place(f, pool, _LIMIT), "monotonic")
    atomic.store(f, zero, atomic.place(f, pool, _DONE), "monotonic")
    job = f.op("lshr", atomic.load(f, atomic.place(f, pool, _STATE), I64, "monotonic"), 32)
    atomic.store(f, ((job + 1) << 32) | chunks, atomic.place(f, pool, _STATE))
    with f.loop(1, limit) as i:
        _wake(f, _slot(f, pool, i))
    f.call("pool_drain", I64, pool)
    waited = f.variable(0, I64)
    with f.repeat(lambda: f.ne(atomic.load(f, atomic.place(f, pool, _DONE), I64, "acquire"), chunks)):
        atomic.pause(f)
        waited.set(waited.get() + 1)
        with f.when(waited.get() > YIELD_AFTER):
            f.call("sched_yield", I32)
    atomic.store(f, zero, atomic.place(f, pool, _OWNER))
    f.ret(one)


def cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(MOST, len(affinity(0)) if affinity else os.cpu_count() or 1)


class Pool:
    """The threads of this process, started when they are first needed.

    After a fork the child has none of them: the pool is emptied and filled again on demand.
    """

    def __init__(self, library: Library):
        """`library`: machine code of a module with `emit_pool`; it is kept as long as the pool's threads live."""
        self._library = library
        self._memory = ctypes.create_string_buffer(_SLOTS + MOST * _SLOT + 128)
        self.address = -(-ctypes.addressof(self._memory) // 128) * 128
        self._start = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)(
            library.address("pool_start")
        )
        self._handles: list[int] = []
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._empty)
        atexit.register(self._close)

    def grow(self, threads: int) -> int:
        """Starts threads until a job of that many can run. Returns how many there are, the caller included."""
        with self._lock:
            while len(self._handles) + 1 < min(threads, MOST):
                handle = ctypes.c_size_t()
                if self._start(self.address, len(self._handles) + 1, ctypes.addressof(handle)):
                    break  # the system has no more
                self._handles.append(handle.value)
            ctypes.c_int64.from_address(self.address + THREADS).value = len(self._handles) + 1
            return len(self._handles) + 1

    def _empty(self) -> None:
        """In a forked child: no thread is left, nor whoever used the pool at that moment."""
        self._handles = []
        self._lock = threading.Lock()
        ctypes.memset(self.address, 0, _SLOTS + MOST * _SLOT)

    def _close(self) -> None:
        """Ends the threads before the process unloads the code that they execute."""
        with self._lock:
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(self._library.address("pool_stop"))(
                self.address, len(self._handles)
            )
            join = ctypes.CDLL(None).pthread_join
            for handle in self._handles:
                join(ctypes.c_size_t(handle), None)
            self._handles = []
