"""Reductions, normalisations and softmax: steps that go over an axis more than once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ..activations import ACTIVATIONS
from ..llvm import Function, Index, Value
from ..steps import Normalize, Reduce, Softmax, Step
from ..tensors import Access, whole
from .along import Combine, Map, add, folded, mapped
from .elementwise import Epilogue
from .schedule import Schedule, access_of


def _itself(f: Function, x: Value) -> Value:
    return x


_KINDS: dict[str, tuple[Map, Combine, float]] = {
    "sum": (_itself, add, 0.0),
    "mean": (_itself, add, 0.0),
    "l1": (lambda f, x: f.abs(x), add, 0.0),
    "l2": (lambda f, x: x * x, add, 0.0),
    "sum_square": (lambda f, x: x * x, add, 0.0),
    "max": (_itself, lambda f, a, b: f.maximum(a, b), float("-inf")),
    "min": (_itself, lambda f, a, b: f.minimum(a, b), float("inf")),
    "prod": (_itself, lambda f, a, b: a * b, 1.0),
}


def reduce(s: Schedule, step: Reduce) -> None:
    """One axis combined into one number."""
    f = s.f
    (x,) = step.operands
    count = x.shape[1]
    access = access_of(x)
    if step.kind in ("argmax", "argmin"):
        _extreme(s, step, access)
        return
    change, combine, neutral = _KINDS[step.kind]
    finish = Epilogue(s, step.epilogue, step.shape)
    if s.by_sample and s.width > 1 and access.strides[0] == 1 and access.strides[1] != 1:
        _columns(s, step)
        return
    with f.loop(0, x.shape[0]) as row:
        values = folded(s, x, access, [row], count, change, combine, neutral)
        s.store(finish([_final(f, step.kind, v, count) for v in values], [row]), s.at(step.output, row))


def _extreme(s: Schedule, step: Reduce, access: Access) -> None:
    """The first place of the greatest or least element; of the first NaN if there is one."""
    f = s.f
    (x,) = step.operands
    finish = Epilogue(s, step.epilogue, step.shape)
    relation = "gt" if step.kind == "argmax" else "lt"
    with f.loop(0, x.shape[0]) as row:
        best = [f.variable(value) for value in s.read(x, access, [row, 0])]
        places = [f.variable(s.constant(0.0)) for _ in best]
        count = f.variable(s.constant(0.0))
        with f.loop(1, x.shape[1]) as k:
            count.set(count.get() + 1.0)
            for value, top, place in zip(s.read(x, access, [row, k]), best, places, strict=True):
                number = f.eq(top.get(), top.get())  # once NaN, always NaN
                better = (f.compare(relation, value, top.get()) | f.is_nan(value)) & number
                top.set(f.select(better, value, top.get()))
                place.set(f.select(better, count.get(), place.get()))
        s.store(finish([place.get() for place in places], [row]), s.at(step.output, row))


def _final(f: Function, kind: str, total: Value, count: int) -> Value:
    if kind == "mean":
        return total / float(count)
    return f.sqrt(total) if kind == "l2" else total


def _columns(s: Schedule, step: Reduce) -> None:
    """One sample: the kept axis is the one whose elements are neighbours."""
    from .elementwise import read_along

    f, width = s.f, s.width
    (x,) = step.operands
    kept, count = x.shape
    turned = x.moved(x.index.T, None)
    access = access_of(turned)
    change, combine, neutral = _KINDS[step.kind]
    finish = Epilogue(s, step.epilogue, step.shape)

    def piece(column: Index, rest: int | None) -> None:
        total = f.variable(neutral, s.element.vector(width))
        with f.loop(0, count) as k:
            value = read_along(s, turned, access, [k, column], width, rest)
            total.set(combine(f, total.get(), change(f, value)))
        result = finish.vector(_final(f, step.kind, total.get(), count), [column], rest)
        f.store(result, s.at(step.output, column), count=rest)

    whole = kept // width * width
    if whole:
        with f.loop(0, whole, width) as column:
            piece(column, None)
    if kept - whole:
        piece(whole, kept - whole)


def _storer(s: Schedule, step: Step) -> Any:
    """Stores results of a step with two axes, behind its epilogue."""
    finish = Epilogue(s, step.epilogue, step.shape)

    def store(at: Sequence[Index], values: list[Value], count: int | None) -> None:
        f = s.f
        pointer = s.at(step.output, f.add(f.mul(at[0], step.shape[1]), at[1]))
        if s.by_sample:
            f.store(finish.vector(values[0], at, count), pointer, count=count)
        else:
            s.store(finish(values, at), pointer)

    return store


def normalize(s: Schedule, step: Normalize) -> None:
    """Two passes for the statistics, the mean first, and one that applies them."""
    f = s.f
    x = step.operands[0]
    groups, count = step.shape
    accesses = [access_of(t) for t in step.operands]
    store = _storer(s, step)
    with f.loop(0, groups) as group:
        head = [group]
        means: list[Value] | None = None
        if step.centred:
            means = [m / float(count) for m in folded(s, x, accesses[0], head, count, _itself, add, 0.0)]
        squares = _squares(s, step, head, means)
        factors = [1.0 / f.sqrt(q / float(count) + step.epsilon) for q in squares]

        def change(
            f: Function, n: int, value: Value, weight: Value, offset: Value, means: Any = means, factors: Any = factors
        ) -> Value:
            lanes = value.type.lanes
            centred = value if means is None else value - f.splat(means[n], lanes)
            return f.fma(centred * f.splat(factors[n], lanes), weight, offset)

        mapped(s, list(zip(step.operands, accesses, strict=True)), head, count, change, store)


def _squares(s: Schedule, step: Normalize, head: Sequence[Index], means: list[Value] | None) -> list[Value]:
    """Sums of squares, of differences to the means if there are any."""
    x = step.operands[0]
    block = itertools.count()  # `folded` goes through the blocks in turn

    def square(f: Function, value: Value) -> Value:
        if means is None:
            return value * value
        mean = means[next(block) % s.blocks]
        difference = value - f.splat(mean, value.type.lanes)
        return difference * difference

    return folded(s, x, access_of(x), head, step.shape[1], square, add, 0.0)


def softmax(s: Schedule, step: Softmax) -> None:
    """exp(x - max) / sum, or its logarithm."""
    f = s.f
    (x,) = step.operands
    access = access_of(x)
    with f.loop(0, step.shape[0]) as row:
        tops = folded(s, x, access, [row], step.shape[1], _itself, lambda f, a, b: f.maximum(a, b), float("-inf"))

        def lowered(value: Value, n: int, tops: Any = tops) -> Value:
            return _scaled(value - f.splat(tops[n], value.type.lanes), step.scale)

        (_log_softmax if step.log else _softmax)(s, step, access, row, lowered)


def _softmax(s: Schedule, step: Softmax, access: Access, row: Index, lowered: Any) -> None:
    """The powers are stored, then divided by their sum."""
    f, count = s.f, step.shape[1]
    (x,) = step.operands
    made = whole(step.output, step.shape, x.dtype, None)
    written = access_of(made)

    def keep(at: Sequence[Index], values: list[Value], rest: int | None) -> None:
        pointer = s.at(step.output, s.index(written, at))
        if s.by_sample:
            f.store(values[0], pointer, count=rest)
        else:
            s.store(values, pointer)

    mapped(s, [(x, access)], [row], count, lambda f, n, value: ACTIVATIONS["Exp"](f, lowered(value, n)), keep)
    totals = folded(s, made, written, [row], count, _itself, add, 0.0)

    def divide(f: Function, n: int, value: Value) -> Value:
        return value / f.splat(totals[n], value.type.lanes)

    mapped(s, [(made, written)], [row], count, divide, _storer(s, step))


def _log_softmax(s: Schedule, step: Softmax, access: Access, row: Index, lowered: Any) -> None:
    count = step.shape[1]
    (x,) = step.operands
    block = itertools.count()  # `folded` goes through the blocks in turn

    def power(f: Function, value: Value) -> Value:
        return ACTIVATIONS["Exp"](f, lowered(value, next(block) % s.blocks))

    logs = [ACTIVATIONS["Log"](s.f, total) for total in folded(s, x, access, [row], count, power, add, 0.0)]

    def change(f: Function, n: int, value: Value) -> Value:
        return lowered(value, n) - f.splat(logs[n], value.type.lanes)

    mapped(s, [(x, access)], [row], count, change, _storer(s, step))


def _scaled(x: Value, scale: float) -> Value:
    return x if scale == 1.0 else x * scale
