"""Maxima and means over windows."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np

from ..llvm import Index, Value
from ..steps import Pool
from ..tensors import contiguous
from .elementwise import Epilogue
from .schedule import Schedule, access_of


def pool(s: Schedule, step: Pool) -> None:
    """One window after the other; for one sample with neighbouring channels in the lanes."""
    f = s.f
    (x,) = step.operands
    access = access_of(x)
    channels = x.shape[0]
    spatial = step.shape[:-1] if step.channels_last else step.shape[1:]
    in_lanes = s.by_sample and s.width > 1 and step.channels_last and access.strides[0] == 1
    finish = Epilogue(s, step.epilogue, step.shape)
    counts, uniform = _counts(s, step)
    divisors = contiguous(spatial)

    def window(channel: Index, at: list[Index], lanes: int, rest: int | None) -> None:
        totals: list[Any] = []

        def element(tap: list[Index]) -> None:
            where = [channel] + [
                f.add(f.mul(a, st), f.mul(k, d))
                for a, st, k, d in zip(at, step.strides, tap, step.dilations, strict=True)
            ]
            pointer = s.at(x.source, s.index(access, where))
            values = [f.load(pointer, lanes, count=rest)] if in_lanes else s.load(pointer)
            if not totals:
                neutral = float("-inf") if step.kind == "max" else 0.0
                totals.extend(f.variable(f.const(neutral, v.type)) for v in values)
            for total, value in zip(totals, values, strict=True):
                total.set(f.maximum(total.get(), value) if step.kind == "max" else total.get() + value)

        if prod(step.kernel) <= 16:
            for places in product(*(range(k) for k in step.kernel)):
                element(list(places))
        else:
            totals.extend(_started(s, step, lanes if in_lanes else s.lanes))
            with s.nest(step.kernel) as tap:
                element(tap)
        results: list[Value] = [t.get() for t in totals]
        if uniform is not None:
            results = [r / uniform for r in results] if uniform != 1.0 else results
        elif counts is not None:
            divisor = f.load(counts + s.index(divisors, at))
            results = [r / f.splat(divisor, r.type.lanes) for r in results]
        order = [*at, channel] if step.channels_last else [channel, *at]
        index: Any = 0
        for size, coordinate in zip(step.shape, order, strict=True):
            index = f.add(f.mul(index, size), coordinate)
        if in_lanes:
            f.store(finish.vector(results[0], order, rest), s.at(step.output, index), count=rest)
        else:
            s.store(finish(results, order), s.at(step.output, index))

    if not in_lanes:
        with f.loop(0, channels) as channel, s.nest(spatial) as at:
            window(channel, at, s.lanes, None)
        return
    with s.nest(spatial) as at:
        whole = channels // s.width * s.width
        if whole:
            with f.loop(0, whole, s.width) as channel:
                window(channel, at, s.width, None)
        if channels - whole:
            window(whole, at, s.width, channels - whole)


def _started(s: Schedule, step: Pool, lanes: int) -> list[Any]:
    neutral = float("-inf") if step.kind == "max" else 0.0
    kind = s.element.vector(lanes)
    return [s.f.variable(neutral, kind) for _ in range(s.blocks)]


def _counts(s: Schedule, step: Pool) -> tuple[Value | None, float | None]:
    """What sums are divided by: a table, or one number."""
    if step.counts is None:
        return None, 1.0
    if np.all(step.counts == step.counts.flat[0]):
        return None, float(step.counts.flat[0])
    return s.weights(step.counts, (step, "counts")), None
