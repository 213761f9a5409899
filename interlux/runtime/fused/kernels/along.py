"""Sums, maxima and maps along the last axis of a tensor, for both schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..llvm import Function, Index, Value
from ..tensors import Access, Tensor
from .elementwise import read_along
from .schedule import Schedule

Combine = Callable[[Function, Value, Value], Any]
Map = Callable[[Function, Value], Any]


def add(f: Function, a: Value, b: Value) -> Any:
    return f.add(a, b)


def in_vectors(s: Schedule, access: Access) -> bool:
    """Whether elements along the last axis can be put into the lanes."""
    return s.by_sample and s.width > 1 and access.strides[-1] in (0, 1)


def folded(
    s: Schedule,
    x: Tensor,
    access: Access,
    head: Sequence[Index],
    count: int,
    change: Map,
    combine: Combine,
    neutral: float,
) -> list[Value]:
    """All x[*head, 0..count] changed and combined: a value for each block of samples.

    Arguments:
        change: applied to each element.
        combine: of two partial results; `neutral` changes nothing.
    """
    f = s.f
    if in_vectors(s, access) and count >= s.width:
        return [_folded_vectors(s, x, access, head, count, change, combine, neutral)]
    parts = min(4 if s.blocks == 1 else 2, count)
    start = s.constant(neutral)
    totals = [[f.variable(start) for _ in range(s.blocks)] for _ in range(parts)]

    def element(k: Index, offset: int) -> None:
        values = s.read(x, access, [*head, f.add(k, offset)])
        for total, value in zip(totals[offset % parts], values, strict=True):
            total.set(combine(f, total.get(), change(f, value)))

    f.unrolled(count, parts * max(1, 4 // parts), element)
    results = [t.get() for t in totals[0]]
    for other in totals[1:]:
        results = [combine(f, r, t.get()) for r, t in zip(results, other, strict=True)]
    return results


def _folded_vectors(
    s: Schedule,
    x: Tensor,
    access: Access,
    head: Sequence[Index],
    count: int,
    change: Map,
    combine: Combine,
    neutral: float,
) -> Value:
    f, width = s.f, s.width
    whole = count // width
    parts = min(4, whole)
    start = f.const(neutral, s.element.vector(width))
    totals = [f.variable(start) for _ in range(parts)]

    def vector(k: Index, offset: int) -> None:
        value = read_along(s, x, access, [*head, f.mul(f.add(k, offset), width)], width)
        total = totals[offset % parts]
        total.set(combine(f, total.get(), change(f, value)))

    f.unrolled(whole, parts, vector)
    rest = count - whole * width
    if rest:
        value = change(f, read_along(s, x, access, [*head, whole * width], width, rest))
        mask = f.vector([i < rest for i in range(width)], _i1())
        totals[0].set(combine(f, totals[0].get(), f.select(mask, value, start)))
    result = totals[0].get()
    for other in totals[1:]:
        result = combine(f, result, other.get())
    return f.reduce(lambda a, b: combine(f, a, b), result)


def _i1() -> Any:
    from ..llvm import I1

    return I1


def mapped(
    s: Schedule,
    operands: Sequence[tuple[Tensor, Access]],
    head: Sequence[Index],
    count: int,
    change: Callable[..., Value],
    store: Callable[[Sequence[Index], list[Value], int | None], None],
) -> None:
    """change(f, block, *elements) for every element along the last axis.

    Arguments:
        operands: with their accesses.
        store: takes coordinates, the values, and how many lanes count (for one sample).
    """
    f = s.f
    if s.by_sample and s.width > 1 and count > 1 and all(a.strides[-1] in (0, 1) for _, a in operands):

        def piece(i: Index, rest: int | None) -> None:
            at = [*head, i]
            values = [read_along(s, t, a, at, s.width, rest) for t, a in operands]
            store(at, [f.splat(change(f, 0, *values), s.width)], rest)

        whole = count // s.width * s.width
        if whole:
            with f.loop(0, whole, s.width) as i:
                piece(i, None)
        if count - whole:
            piece(whole, count - whole)
        return
    with f.loop(0, count) as i:
        at = [*head, i]
        values = [s.read(t, a, at) for t, a in operands]
        store(at, [change(f, n, *(v[n] for v in values)) for n in range(s.blocks)], None)
