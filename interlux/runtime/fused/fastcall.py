"""The entry from Python: a METH_FASTCALL function in LLVM IR that reads array objects itself.

    PyObject *entry(Call-object self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)

takes the inputs by position and perhaps `out=`, exactly as the native function needs them: arrays (no sub-class) of the
right dtype and shape, aligned, in C order, `out` writeable and apart from the inputs. It makes the outputs, runs, and
returns the tuple of outputs. Whatever else it is given goes to the Python function `call->slow`, as it came.
"""

from __future__ import annotations

from . import atomic
from .abi import READABLE, WRITEABLE, Layout
from .descriptor import at, port_at
from .dispatch import pointers, port
from .llvm import I32, I64, PTR, VOID, Function, Module, Value
from .threads import THREADS

_MOST_DIMENSIONS = 64  # of an array


def emit_entry(module: Module, layout: Layout) -> None:
    """Adds `entry` to a module that has `dispatch`."""
    _fits(module, layout)
    _attempt(module, layout)
    arguments = [("self", PTR), ("args", PTR), ("nargs", I64), ("names", PTR)]
    f = module.function("entry", arguments, PTR, noalias=False)
    # `self`, which is never a result, says that the arguments are not understood
    result = f.call("attempt", PTR, *(f[name] for name, _ in arguments))
    f.exit_when(f.ne(result, f["self"]), result)
    slow = atomic.pointer_at(f, atomic.pointer_at(f, f["self"], layout.memory), at("slow"))
    f.ret(f.call("PyObject_Vectorcall", PTR, slow, f["args"], f["nargs"], f["names"]))


def _symbol(f: Function, name: str) -> Value:
    return f.module.external(f, name)


def _fits(module: Module, layout: Layout) -> None:
    """`int64_t fits(object, port, flags)`: the batch of an array that is as its port wants it, else -1."""
    f = module.function("fits", [("object", PTR), ("port", PTR), ("flags", I64)], I64, noalias=False)
    array, no = f["object"], f.const(-1, I64)
    f.exit_when(f.ne(atomic.pointer_at(f, array, layout.type), _symbol(f, "interlux_array_type")), no)
    dtype = atomic.pointer_at(f, f["port"], port_at("dtype"))
    f.exit_when(f.ne(atomic.pointer_at(f, array, layout.dtype), dtype), no)
    flags = f.cast("zext", atomic.field(f, array, layout.flags, I32), I64)
    f.exit_when(f.ne(flags & f["flags"], f["flags"]), no)
    ndim = f.cast("sext", atomic.field(f, array, layout.ndim, I32), I64)
    f.exit_when(f.ne(ndim, atomic.field(f, f["port"], port_at("ndim"))), no)
    shape = atomic.pointer_at(f, array, layout.shape, I64)
    wanted = atomic.pointer_at(f, f["port"], port_at("shape"), I64)
    with f.loop(1, ndim) as i:
        f.exit_when(f.ne(f.load(shape + i), f.load(wanted + i)), no)
    f.ret(f.load(shape))


def _attempt(module: Module, layout: Layout) -> None:
    """`PyObject *attempt(…)`: the result of `entry`, null with an exception, or `self` for the slow way."""
    arguments = [("self", PTR), ("args", PTR), ("nargs", I64), ("names", PTR)]
    f = module.function("attempt", arguments, PTR, noalias=False)
    self, args, null = f["self"], f["args"].of(PTR), f.const(0, PTR)
    call = atomic.pointer_at(f, self, layout.memory)

    def refuse_when(condition: Value) -> None:
        f.exit_when(condition, self)

    given, made = atomic.field(f, call, at("inputs")), atomic.field(f, call, at("outputs"))
    refuse_when(f.ne(f["nargs"], given))
    out = f.variable(null)
    with f.when(f.ne(f["names"], null)):
        refuse_when(f.ne(made, 1))
        refuse_when(f.ne(f.call("PyTuple_Size", I64, f["names"]), 1))
        name = f.call("PyTuple_GetItem", PTR, f["names"], f.const(0, I64))
        refuse_when(f.ne(name, atomic.pointer_at(f, call, at("out"))))
        out.set(f.load(args + given))

    readable = f.const(READABLE, I64)
    batch = f.call("fits", I64, f.load(args), port(f, call, 0), readable)
    refuse_when(batch < atomic.field(f, call, at("smallest")))
    refuse_when(batch > atomic.field(f, call, at("largest")))
    inputs, outputs = pointers(f, given), pointers(f, made)
    with f.loop(0, given) as i:
        array = f.load(args + i)
        refuse_when(f.ne(f.call("fits", I64, array, port(f, call, i), readable), batch))
        f.store(atomic.pointer_at(f, array, layout.data), inputs + i)
    split = batch >= atomic.field(f, call, at("split_from"))
    with f.when(split):  # the threads are started by the slow way
        pool = atomic.pointer_at(f, call, at("pool"))
        refuse_when(atomic.field(f, pool, THREADS) < atomic.field(f, call, at("threads")))
    reuse = f.ne(out.get(), null)
    with f.when(reuse):
        writeable = f.const(READABLE | WRITEABLE, I64)
        target = port(f, call, given)
        refuse_when(f.ne(f.call("fits", I64, out.get(), target, writeable), batch))
        data = atomic.pointer_at(f, out.get(), layout.data)
        size = batch * atomic.field(f, target, port_at("bytes"))
        with f.loop(0, given) as i:
            refuse_when(
                _overlap(f, data, size, f.load(inputs + i), batch * atomic.field(f, port(f, call, i), port_at("bytes")))
            )
        f.store(data, outputs)

    results = f.call("PyTuple_New", PTR, made)
    f.exit_when(f.eq(results, null), null)

    def keep() -> None:
        f.call("Py_IncRef", VOID, out.get())
        f.call("PyTuple_SetItem", I32, results, f.const(0, I64), out.get())

    def create() -> None:
        shape = f.scratch(I64, _MOST_DIMENSIONS, 8)
        f.store(batch, shape)
        with f.loop(0, made) as i:
            target = port(f, call, i + given)
            ndim = atomic.field(f, target, port_at("ndim"))
            wanted = atomic.pointer_at(f, target, port_at("shape"), I64)
            with f.loop(1, ndim) as axis:
                f.store(f.load(wanted + axis), shape + axis)
            dtype = atomic.pointer_at(f, target, port_at("dtype"))
            f.call("Py_IncRef", VOID, dtype)  # the next function takes the reference over
            kind, zero = _symbol(f, "interlux_array_type"), f.const(0, I32)
            array = f.call(
                "interlux_new_array", PTR, kind, dtype, f.cast("trunc", ndim, I32), shape, null, null, zero, null
            )
            with f.when(f.eq(array, null)):
                f.call("Py_DecRef", VOID, results)
                f.ret(null)
            f.store(atomic.pointer_at(f, array, layout.data), outputs + i)
            f.call("PyTuple_SetItem", I32, results, i, array)

    f.branch(reuse, keep, create)
    f.exit_when(f.eq(batch, 0), results)
    failed = f.variable(0, I64)
    parameters = atomic.pointer_at(f, call, at("parameters"))

    def run() -> None:
        failed.set(f.call("dispatch", I64, call, inputs, outputs, parameters, batch))

    def run_released() -> None:
        state = f.call("PyEval_SaveThread", PTR)
        run()
        f.call("PyEval_RestoreThread", VOID, state)

    f.branch(batch >= atomic.field(f, call, at("release_from")), run_released, run)
    with f.when(f.ne(failed.get(), 0)):  # there is no memory for the arena: the slow way says so
        f.call("Py_DecRef", VOID, results)
        f.ret(self)
    f.ret(results)


def _overlap(f: Function, a: Value, size_a: Value, b: Value, size_b: Value) -> Value:
    """Whether two pieces of memory have a byte in common (i1)."""
    start_a, start_b = f.cast("ptrtoint", a, I64), f.cast("ptrtoint", b, I64)
    return (start_a < start_b + size_b) & (start_b < start_a + size_a)
