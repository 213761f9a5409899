"""The code between callers and native functions, compiled once for a machine and loaded once in a process."""

from __future__ import annotations

import ctypes
import functools
import threading

from ...ir.errors import ResourceLimitError
from .abi import Layout, layout
from .cache import ObjectCache, key_of
from .descriptor import Call
from .dispatch import emit_dispatch
from .fastcall import emit_entry
from .ffi_handler import SLOTS, emit_handler
from .llvm import Library, Module, assemble, load
from .target import host
from .threads import Pool, emit_pool

_table = (ctypes.c_uint64 * (2 * SLOTS))()  # pairs: number, address of a Call
_registered: dict[int, Call] = {}  # executables of XLA may call them as long as the process lives
_lock = threading.Lock()


@functools.cache
def library() -> Library:
    """The functions `dispatch`, `handler`, `pool_…`, and `entry` where `abi.layout` allows it."""
    found = layout()
    symbols = {"interlux_functions": ctypes.addressof(_table)}
    places = repr(found)
    functions = ["dispatch", "handler", "pool_start", "pool_stop", "pool_run"]
    if isinstance(found, Layout):
        functions.append("entry")
        symbols.update(found.symbols)
        places = repr({**vars(found), "symbols": ()})
    objects, key = ObjectCache(), key_of(host(), "callers", places)
    cached = objects.get(key)
    if cached is not None:
        return load(cached.object, functions, symbols)
    module = Module(host())
    emit_pool(module)
    emit_dispatch(module)
    emit_handler(module)
    if isinstance(found, Layout):
        emit_entry(module, found)
    compiled = assemble(module.text(), module.target)
    objects.put(key, compiled)
    return load(compiled, functions, symbols)


@functools.cache
def pool() -> Pool:
    """The threads of this process."""
    return Pool(library())


def register(number: int, call: Call) -> None:
    """Makes a function known to the handler of XLA.

    Arguments:
        number: of 63 bits, from a hash of what the function computes and takes.
        call: its description; it lives as long as the process from now on.

    Raises ResourceLimitError if there are too many.
    """
    with _lock:
        if number in _registered:
            return
        if len(_registered) >= SLOTS - 1:
            raise ResourceLimitError(f"more than {SLOTS - 1} fused functions were used inside JAX in one process")
        slot = number % SLOTS
        while _table[2 * slot + 1]:
            slot = (slot + 1) % SLOTS
        _registered[number] = call
        _table[2 * slot] = number
        _table[2 * slot + 1] = ctypes.addressof(call)  # last: a reader looks at it first
