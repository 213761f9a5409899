"""From a description and arrays to calls of the native function: memory for its arena, and threads where they pay.

    int64_t dispatch(Call *call, void *const *inputs, void *const *outputs, const void *parameters, int64_t batch)

returns 0, or 1 if there was no memory. Any number of threads may be in it at once.
"""

from __future__ import annotations

import ctypes
import time

from . import atomic
from .descriptor import ARENAS, PORT_BYTES, SIZES, History, at, history_at, port_at
from .llvm import I1, I32, I64, PTR, VOID, Function, Module, Value

STACK = 16384  # bytes; a smaller arena lies on the stack
_LEARNING = 3  # the first calls are made in one thread
_MEASURE = 64  # … and later one of so many, to know how long that takes now
_PAID_IN = 5  # 1/2^5 of the time in one thread is what trying threads may cost
_OVERDRAFT = 200_000  # nanoseconds that threads may lose before they rest
_MOST_SAVED = 5_000_000  # nanoseconds: what threads may lose when the machine becomes busy
_CLOCK = getattr(time, "CLOCK_MONOTONIC", 1)
_ARGUMENTS = [("call", PTR), ("inputs", PTR), ("outputs", PTR), ("parameters", PTR), ("batch", I64)]
# What the caller of a job hands to its chunks, as words: the arguments of `dispatch`, then these.
_COUNT, _SIZE, _FAILED, _WORDS = 5, 6, 7, 8


def emit_dispatch(module: Module) -> None:
    """Adds `dispatch` to a module that also has the functions of `threads.emit_pool`."""
    _acquire(module)
    _release(module)
    _serial_large(module)
    _serial(module)
    _chunk(module)
    _split(module)
    _parallel(module)
    f = module.function("dispatch", _ARGUMENTS, I64, noalias=False)
    arguments = [f[name] for name, _ in _ARGUMENTS]
    with f.when(f["batch"] >= atomic.field(f, f["call"], at("split_from"))):
        f.ret(f.call("parallel", I64, *arguments))
    f.ret(f.call("serial", I64, *arguments))


def pointers(f: Function, count: Value) -> Value:
    """Room for pointers on the stack, until the function returns."""
    return f.emit(f"alloca ptr, i64 {count.text}, align 8", PTR, PTR)


def port(f: Function, call: Value, index: int | Value) -> Value:
    """The address of an input's or output's description."""
    offset = index * PORT_BYTES
    return atomic.place(f, atomic.pointer_at(f, call, at("ports")), offset)


def _acquire(module: Module) -> None:
    """`void *acquire(call)`: an arena; null if there is no memory."""
    f = module.function("acquire", [("call", PTR)], PTR, noalias=False)
    null = f.const(0, PTR)
    with f.loop(0, ARENAS) as i:
        slot = atomic.place(f, f["call"], i * 8 + at("arenas"))
        with f.when(f.ne(atomic.load(f, slot, PTR, "monotonic"), null)):
            arena = atomic.exchange(f, slot, null)
            f.exit_when(f.ne(arena, null), arena)
    f.ret(f.call("aligned_alloc", PTR, f.const(64, I64), atomic.field(f, f["call"], at("arena"))))


def _release(module: Module) -> None:
    """`void release(call, arena)`: keeps an arena for the next call, or frees it."""
    f = module.function("release", [("call", PTR), ("arena", PTR)], noalias=False)
    with f.loop(0, ARENAS) as i:
        slot = atomic.place(f, f["call"], i * 8 + at("arenas"))
        f.exit_when(atomic.replace(f, slot, f.const(0, PTR), f["arena"]))
    f.call("free", VOID, f["arena"])
    f.ret()


def _run(f: Function, arena: Value) -> None:
    """Calls the native function on the arguments of `f`."""
    run = atomic.pointer_at(f, f["call"], at("run"))
    inputs, outputs, parameters, batch = (f[n].text for n in ("inputs", "outputs", "parameters", "batch"))
    f.statement(f"call void {run.text}(ptr {inputs}, ptr {outputs}, ptr {parameters}, ptr {arena.text}, i64 {batch})")


def _serial_large(module: Module) -> None:
    """`dispatch` in this thread alone, with an arena of any size."""
    f = module.function("serial_large", _ARGUMENTS, I64, noalias=False)
    arena = f.call("acquire", PTR, f["call"])
    f.exit_when(f.eq(arena, f.const(0, PTR)), f.const(1, I64))
    _run(f, arena)
    f.call("release", VOID, f["call"], arena)
    f.ret(f.const(0, I64))


def _serial(module: Module) -> None:
    """`dispatch` in this thread alone."""
    f = module.function("serial", _ARGUMENTS, I64, noalias=False)
    with f.when(atomic.field(f, f["call"], at("arena")) > STACK):
        f.ret(f.call("serial_large", I64, *(f[name] for name, _ in _ARGUMENTS)))
    _run(f, f.scratch(I64, STACK // 8))
    f.ret(f.const(0, I64))


def _chunk(module: Module) -> None:
    """`void chunk(job, i)`: part i of a batch; the last one takes what is left over."""
    f = module.function("chunk", [("job", PTR), ("i", I64)], noalias=False)
    call, inputs, outputs, parameters = (atomic.pointer_at(f, f["job"], 8 * i, PTR) for i in range(4))
    batch, count, size = (atomic.field(f, f["job"], 8 * i) for i in (4, _COUNT, _SIZE))
    start = f["i"] * size
    rows = f.select(f.eq(f["i"], count - 1), batch - start, size)
    given, made = atomic.field(f, call, at("inputs")), atomic.field(f, call, at("outputs"))
    parts = []
    for arrays, number, first in ((inputs, given, None), (outputs, made, given)):
        part = pointers(f, number)
        with f.loop(0, number) as i:
            index = i if first is None else i + first
            step = start * atomic.field(f, port(f, call, index), port_at("bytes"))
            f.store(atomic.place(f, f.load(arrays + i), step), part + i)
        parts.append(part)
    failed = f.call("serial", I64, call, *parts, parameters, rows)
    with f.when(f.ne(failed, 0)):
        atomic.store(f, failed, atomic.place(f, f["job"], 8 * _FAILED))
    f.ret()


def _split(module: Module) -> None:
    """`int64_t split(…)`: `dispatch` in several threads. Returns -1 where nothing was done: the pool is occupied."""
    f = module.function("split", _ARGUMENTS, I64, noalias=False)
    call, size = f["call"], atomic.field(f, f["call"], at("chunk"))
    count = f.div(f["batch"], size)
    job = f.scratch(I64, _WORDS)
    for i, value in enumerate([*(f[name] for name, _ in _ARGUMENTS), count, size, f.const(0, I64)]):
        f.store(value, (job + i).of(value.type))
    pool, threads = atomic.pointer_at(f, call, at("pool")), atomic.field(f, call, at("threads"))
    done = f.call("pool_run", I64, pool, Value(f, "@chunk", PTR), job, count, threads)
    f.exit_when(f.eq(done, 0), f.const(-1, I64))
    f.ret(f.load(job + _FAILED))


def _parallel(module: Module) -> None:
    """`int64_t parallel(…)`: `dispatch` in several threads where they have paid so far, else in this one.

    Whether they do depends on what else the machine does: a thread that waits for a core holds up the others. So there
    is an account for each size of batch. A call in several threads is credited with what it saved over one thread, or
    charged what it lost. When it is overdrawn one thread is used, and every such call pays a little in, until it is
    level and threads are tried again: some calls in a row, because the first one has to wake them. Overall they cannot
    lose more than that little.
    """
    f = module.function("parallel", _ARGUMENTS, I64, noalias=False)
    call, batch = f["call"], f["batch"]
    arguments = [f[name] for name, _ in _ARGUMENTS]
    with f.when(batch < atomic.field(f, call, at("chunk")) * 2):
        f.ret(f.call("serial", I64, *arguments))
    ratio = f.div(batch, atomic.field(f, call, at("split_from")))
    size = f.op("sub", 63, f.call("llvm.ctlz.i64", I64, ratio, f.const(False, I1)))
    size = f.select(size < SIZES - 1, size, SIZES - 1)
    history = atomic.place(f, call, size * ctypes.sizeof(History) + at("history"))
    alone, account, resting = (atomic.place(f, history, history_at(n)) for n in ("alone", "account", "resting"))
    calls = atomic.add(f, atomic.place(f, history, history_at("calls")), f.const(1, I64))
    saved = atomic.load(f, account, I64, "monotonic")
    before = atomic.load(f, alone, I64, "monotonic")
    measure = (calls < _LEARNING) | f.eq(calls & (_MEASURE - 1), 0)
    start = _now(f)
    failed = f.variable(-1, I64)
    rests = f.ne(atomic.load(f, resting, I64, "monotonic"), 0)
    with f.when(f.not_(rests | measure)):
        failed.set(f.call("split", I64, *arguments))
        with f.when(failed.get() >= 0):
            more = saved + f.op("ashr", before * batch, 10) - (_now(f) - start)
            atomic.store(f, f.select(more < _MOST_SAVED, more, _MOST_SAVED), account, "monotonic")
            with f.when(more < -_OVERDRAFT):
                atomic.store(f, f.const(1, I64), resting, "monotonic")
    with f.when(failed.get() < 0):
        failed.set(f.call("serial", I64, *arguments))
        elapsed = _now(f) - start
        sample = f.div(elapsed << 10, batch)
        sample = f.select(sample > before << 1, before << 1, sample)  # it was interrupted
        weight = f.select(calls < _LEARNING, f.const(1, I64), f.const(2, I64))
        atomic.store(f, before + f.op("ashr", sample - before, weight), alone, "monotonic")
        with f.when(rests):
            more = saved + f.op("ashr", elapsed, _PAID_IN)
            atomic.store(f, more, account, "monotonic")
            with f.when(more >= 0):
                atomic.store(f, f.const(0, I64), resting, "monotonic")
    f.ret(failed.get())


def _now(f: Function) -> Value:
    """The time in nanoseconds."""
    time = f.scratch(I64, 2, 8)
    f.call("clock_gettime", I32, f.const(_CLOCK, I32), time)
    return f.load(time) * 1_000_000_000 + f.load(time + 1)
