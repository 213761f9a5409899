"""Tiny native functions made by hand, to test what calls them."""

from __future__ import annotations

from typing import Any

import numpy as np

from interlux.ir.foreign import Kind
from interlux.runtime.fused.entry import Native
from interlux.runtime.fused.llvm import I64, PTR, Function, Module, assemble, load, type_of
from interlux.runtime.fused.target import host

ARGUMENTS = [("inputs", PTR), ("outputs", PTR), ("parameters", PTR), ("arena", PTR), ("batch", I64)]


def start(name: str = "run") -> Function:
    return Module(host()).function(name, ARGUMENTS, noalias=False)


def finish(f: Function, inputs: list[Kind], outputs: list[Kind], parameters: Any, **facts: Any) -> Native:
    f.ret()
    library = load(assemble(f.module.text(), host()), [f.name])
    return Native(library.address(f.name), tuple(inputs), tuple(outputs), parameters, owner=library, **facts)


def affine_text() -> str:
    """The code of `affine()`."""
    f = _affine((4,), np.float32)
    f.ret()
    return f.module.text()


def affine(shape: tuple[int, ...] = (4,), dtype: Any = np.float32, **facts: Any) -> Native:
    """y = 2·x + 1; 2 and 1 are the parameters."""
    ports = [Kind(shape, np.dtype(dtype))]
    return finish(_affine(shape, dtype), ports, ports, np.array([2, 1], dtype), **facts)


def _affine(shape: tuple[int, ...], dtype: Any) -> Function:
    f, kind = start(), type_of(dtype)
    x, y = (f.load(f[name].of(PTR)).of(kind) for name in ("inputs", "outputs"))
    p = f["parameters"].of(kind)
    with f.loop(0, f["batch"] * int(np.prod(shape, dtype=np.int64))) as i:
        f.store(f.load(x + i) * f.load(p) + f.load(p + 1), y + i)
    return f


def pair(**facts: Any) -> Native:
    """(u, v) of x: float32[n, 3] and k: int64[n, 2]: u = x + p, float32[n, 3], and v = 2·k, int64[n, 2]."""
    f, kind = start(), type_of(np.float32)
    given, made = f["inputs"].of(PTR), f["outputs"].of(PTR)
    x, k, u, v = f.load(given).of(kind), f.load(given + 1).of(I64), f.load(made).of(kind), f.load(made + 1).of(I64)
    with f.loop(0, f["batch"] * 3) as i:
        f.store(f.load(x + i) + f.load(f["parameters"].of(kind)), u + i)
    with f.loop(0, f["batch"] * 2) as i:
        f.store(f.load(k + i) * 2, v + i)
    ports = [Kind((3,), np.dtype(np.float32)), Kind((2,), np.dtype(np.int64))]
    return finish(f, ports, ports, np.array([10], np.float32), **facts)


def through_arena(words: int, rounds: int = 1, **facts: Any) -> Native:
    """y = sum of `words` copies of x that are first written to the arena, `rounds` times: needs an arena of its own."""
    f, kind = start(), type_of(np.float64)
    x, y = (f.load(f[name].of(PTR)).of(kind) for name in ("inputs", "outputs"))
    arena = f["arena"].of(kind)
    with f.loop(0, f["batch"]) as row:
        value = f.load(x + row)
        total = f.variable(0.0, kind)
        with f.loop(0, rounds * 2, 2):
            with f.loop(0, words) as i:
                f.store(value, arena + i)
            total.set(0.0)
            with f.loop(0, words) as i:
                total.set(total.get() + f.load(arena + i))
        f.store(total.get(), y + row)
    ports = [Kind((), np.dtype(np.float64))]
    return finish(f, ports, ports, np.zeros(1), arena=8 * words, **facts)
