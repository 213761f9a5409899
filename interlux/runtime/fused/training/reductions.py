"""Pools, reductions, softmax and normalisations of a sample, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

from ..kernels.elementwise import FUNCTIONS
from ..kernels.normalization import reduce as _reduce
from ..kernels.normalization import softmax as _softmax
from ..kernels.pooling import _counts
from ..kernels.pooling import pool as _pool
from ..kernels.schedule import access_of
from ..llvm import I1, Index, Value
from ..steps import Pool, Reduce, Softmax
from ..tensors import Access, contiguous
from .schedule import Gradients, TrainingSchedule
from .steps import Normalization


def pool(s: TrainingSchedule, step: Pool) -> None:
    with s.groups():
        _pool(s, step)


def pool_backward(s: TrainingSchedule, g: Gradients, step: Pool) -> None:
    """Of a mean, equal parts to all; of a maximum, all to the first one in the window, as in PyTorch."""
    f = s.f
    (x,) = step.operands
    if not g.wanted(x):
        return
    access = access_of(x)
    channels = x.shape[0]
    spatial = step.shape[:-1] if step.channels_last else step.shape[1:]
    apart = all(st >= (k - 1) * d + 1 for k, st, d in zip(step.kernel, step.strides, step.dilations, strict=True))
    exact = apart and all(
        n * st == size for n, st, size in zip(spatial, step.strides, x.shape[1:], strict=True)
    ) and step.kernel == step.strides  # fmt: skip
    sink = g.sink(x, fills=exact)
    counts, uniform = _counts(s, step)
    divisors = contiguous(spatial)
    with s.nest((channels, *spatial)) as (channel, *at), s.groups():
        order = [*at, channel] if step.channels_last else [channel, *at]
        index: Any = 0
        for size, coordinate in zip(step.shape, order, strict=True):
            index = f.add(f.mul(index, size), coordinate)
        gradient = s.vector(s.at(g.of(step.output), index))
        greatest = s.vector(s.at(step.output, index))
        if step.kind == "mean":
            if uniform is not None:
                gradient = gradient / uniform if uniform != 1.0 else gradient
            elif counts is not None:
                gradient = gradient / s.broadcast(f.offset(counts, s.index(divisors, at)))
        free = f.variable(f.const(True, I1.vector(s.lanes)))

        def give(tap: Sequence[Index], at: Sequence[Index] = at, channel: Index = channel) -> None:
            where = [channel] + [
                f.add(f.mul(a, st), f.mul(k, d))
                for a, st, k, d in zip(at, step.strides, tap, step.dilations, strict=True)
            ]
            place = s.index(access, where)
            value = gradient
            if step.kind == "max":
                own = s.vector(s.at(x.source, place))
                here = (f.eq(own, greatest) | f.is_nan(own)) & free.get()
                free.set(free.get() & f.not_(here))
                value = f.select(here, gradient, f.const(0.0, gradient.type))
            sink.put(value, place)

        if prod(step.kernel) <= 16:
            for tap in product(*(range(k) for k in step.kernel)):
                give(tap)
        else:
            with s.nest(step.kernel) as taps:
                give(taps)


def reduce(s: TrainingSchedule, step: Reduce) -> None:
    with s.groups():
        _reduce(s, step)


REDUCTIONS = frozenset(["sum", "mean", "max", "min"])  # that have a derivative


def reduce_backward(s: TrainingSchedule, g: Gradients, step: Reduce) -> None:
    f = s.f
    (x,) = step.operands
    if not g.wanted(x):
        return
    access = access_of(x)
    sink = g.sink(x)
    with f.loop(0, x.shape[0]) as row, s.groups():
        gradient = s.vector(s.at(g.of(step.output), row))
        y = s.vector(s.at(step.output, row))
        if step.kind == "mean":
            gradient = gradient / float(x.shape[1])
        free = f.variable(f.const(True, I1.vector(s.lanes)))
        with f.loop(0, x.shape[1]) as i:
            place = s.index(access, [row, i])
            value = gradient
            if step.kind in ("max", "min"):
                here = f.eq(s.vector(s.at(x.source, place)), y) & free.get()
                free.set(free.get() & f.not_(here))
                value = f.select(here, gradient, f.const(0.0, gradient.type))
            sink.put(value, place)


def softmax(s: TrainingSchedule, step: Softmax) -> None:
    with s.groups():
        _softmax(s, step)


def softmax_backward(s: TrainingSchedule, g: Gradients, step: Softmax) -> None:
    """y (g - Σ g y), of its logarithm g - exp(y) Σ g."""
    f = s.f
    (x,) = step.operands
    if not g.wanted(x):
        return
    access = access_of(x)
    rows, count = step.shape
    sink = g.sink(x)
    with f.loop(0, rows) as row, s.groups():
        start = f.mul(row, count)
        total = f.variable(s.constant(0.0))
        with f.loop(0, count) as i:
            gradient, y = _pair(s, g, step, f.add(start, i))
            total.set(total.get() + gradient if step.log else f.fma(gradient, y, total.get()))
        with f.loop(0, count) as i:
            gradient, y = _pair(s, g, step, f.add(start, i))
            value = gradient - FUNCTIONS["Exp"](f, y) * total.get() if step.log else y * (gradient - total.get())
            sink.put(value * step.scale if step.scale != 1.0 else value, s.index(access, [row, i]))


def _pair(s: TrainingSchedule, g: Gradients, step: Any, index: Index) -> tuple[Value, Value]:
    """The gradient of a result, and the result."""
    return s.vector(s.at(g.of(step.output), index)), s.vector(s.at(step.output, index))


def _moments(s: TrainingSchedule, step: Normalization, access: Access, row: Index) -> tuple[Value, Value]:
    """Mean and 1 / √(variance + epsilon) of a group."""
    f = s.f
    (x,) = step.operands
    count = step.shape[1]
    mean = s.constant(0.0)
    if step.centred:
        total = f.variable(s.constant(0.0))
        with f.loop(0, count) as i:
            total.set(total.get() + s.vector(s.at(x.source, s.index(access, [row, i]))))
        mean = total.get() / float(count)
    squares = f.variable(s.constant(0.0))
    with f.loop(0, count) as i:
        centred = s.vector(s.at(x.source, s.index(access, [row, i]))) - mean
        squares.set(f.fma(centred, centred, squares.get()))
    return mean, 1.0 / f.sqrt(squares.get() / float(count) + step.epsilon)


def _weight(s: TrainingSchedule, step: Normalization, row: Index, i: Index) -> Value | None:
    if step.weight is None:
        return None
    return s.broadcast(s.at(step.weight.source, s.index(access_of(step.weight), [row, i])))


def normalize(s: TrainingSchedule, step: Normalization) -> None:
    f = s.f
    (x,) = step.operands
    groups, count = step.shape
    access = access_of(x)
    with f.loop(0, groups) as row, s.groups():
        mean, factor = _moments(s, step, access, row)
        with f.loop(0, count) as i:
            value = (s.vector(s.at(x.source, s.index(access, [row, i]))) - mean) * factor
            weight = _weight(s, step, row, i)
            value = value if weight is None else value * weight
            if step.bias is not None:
                value = value + s.broadcast(s.at(step.bias.source, s.index(access_of(step.bias), [row, i])))
            s.put(value, s.at(step.output, f.add(f.mul(row, count), i)))


def normalize_backward(s: TrainingSchedule, g: Gradients, step: Normalization) -> None:
    """With d = g · weight and z = (x - mean) · factor: factor (d - mean(d) - z mean(d z))."""
    f = s.f
    (x,) = step.operands
    groups, count = step.shape
    access = access_of(x)
    sink = g.sink(x) if g.wanted(x) else None
    trained = s.tape.trained
    with f.loop(0, groups) as row:
        if step.weight is not None and step.weight.index.min() < trained:
            places = access_of(step.weight)
            with s.groups():
                mean, factor = _moments(s, step, access, row)
                with f.loop(0, count) as i:
                    gradient, z = _normal(s, g, step, access, row, i, mean, factor)
                    s.add_to_weight(s.index(places, [row, i]), gradient * z)
        if step.bias is not None and step.bias.index.min() < trained:
            places = access_of(step.bias)
            with f.loop(0, count) as i:
                total = f.variable(s.constant(0.0))
                with s.groups():
                    total.set(total.get() + s.vector(s.at(g.of(step.output), f.add(f.mul(row, count), i))))
                s.add_to_weight(s.index(places, [row, i]), total.get())
        if g.wanted(x):
            _normalize_input(s, g, step, access, row, sink)


def _normalize_input(
    s: TrainingSchedule, g: Gradients, step: Normalization, access: Access, row: Index, sink: Any
) -> None:
    """The input's gradient for a group."""
    f = s.f
    count = step.shape[1]
    with s.groups():
        mean, factor = _moments(s, step, access, row)
        sums = [f.variable(s.constant(0.0)) for _ in range(2)]

        def slope(i: Index, mean: Value = mean, factor: Value = factor) -> tuple[Value, Value]:
            gradient, z = _normal(s, g, step, access, row, i, mean, factor)
            weight = _weight(s, step, row, i)
            return gradient if weight is None else gradient * weight, z

        with f.loop(0, count) as i:
            d, z = slope(i)
            sums[0].set(sums[0].get() + d)
            sums[1].set(f.fma(d, z, sums[1].get()))
        means = [total.get() / float(count) for total in sums]
        with f.loop(0, count) as i:
            d, z = slope(i)
            value = d - z * means[1]
            if step.centred:
                value = value - means[0]
            sink.put(value * factor, s.index(access, [row, i]))


def _normal(
    s: TrainingSchedule, g: Gradients, step: Normalization, access: Access, row: Index, i: Index, mean: Value,
    factor: Value,
) -> tuple[Value, Value]:  # fmt: skip
    (x,) = step.operands
    gradient = s.vector(s.at(g.of(step.output), s.f.add(s.f.mul(row, step.shape[1]), i)))
    return gradient, (s.vector(s.at(x.source, s.index(access, [row, i]))) - mean) * factor
