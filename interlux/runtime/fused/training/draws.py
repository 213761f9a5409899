"""Dropout: which elements are kept follows from seed, number of the step, sample and element; not from the tile."""

from __future__ import annotations

from ..kernels.schedule import access_of
from ..llvm import I32, Function, Index, Value
from .schedule import Gradients, TrainingSchedule
from .steps import Draws

_ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B))


def following(seed: int) -> int:
    """The seed of the next batch: mixed(seed + 1), as native code computes it between the steps of a trainer."""
    x = seed + 1 & 0xFFFFFFFF
    for shift, factor in _ROUNDS:
        x = (x ^ x >> shift) * factor & 0xFFFFFFFF
    return x ^ x >> 16


def mixed(f: Function, x: Value) -> Value:
    """All bits of 32-bit numbers depend on all bits of the argument.

    Source: the finaliser `lowbias32` of C. Wellons's hash prospector.
    """
    for shift, factor in _ROUNDS:
        x = f.op("xor", x, f.op("lshr", x, shift))
        x = f.op("mul", x, factor - (1 << 32) if factor >= 1 << 31 else factor)
    return f.op("xor", x, f.op("lshr", x, 16))


def _factor(s: TrainingSchedule, step: Draws, element: Index) -> Value:
    """What an element of the current samples is multiplied by: 0 or 1 / (1 - probability)."""
    f = s.f
    scale = 1 / (1 - step.probability) if step.probability < 1 else 0.0
    number = f.const(element, I32) if isinstance(element, int) else f.cast("trunc", element, I32)
    if step.shared > 1:
        number = f.op("udiv", number, step.shared)
    seed = mixed(f, f.op("add", f["seed"], step.number * 0x61C88647))
    key = mixed(f, f.op("xor", f.op("mul", number, 0x2545F491), seed))
    start = f.cast("trunc", f["tile"] * s.tile, I32)
    group = f.const(s.group, I32) if isinstance(s.group, int) else f.cast("trunc", s.group, I32)
    samples = f.op("add", f.vector(list(range(s.lanes)), I32), f.splat(f.op("add", start, group), s.lanes))
    bits = mixed(f, f.op("add", mixed(f, samples), f.splat(key, s.lanes)))
    kept = f.op("lshr", bits, 1) > (round(step.probability * 2**31) - 1)
    return f.select(kept, f.const(scale, s.element.vector(s.lanes)), s.constant(0.0))


def draws(s: TrainingSchedule, step: Draws) -> None:
    f = s.f
    (x,) = step.operands
    access = access_of(x)
    with f.loop(0, step.size) as i, s.groups():
        value = s.vector(s.at(x.source, s.index(access, [i])))
        factor = _factor(s, step, i)
        kept = f.select(f.compare("ne", factor, 0.0), value * factor, s.constant(0.0))
        s.put(kept, s.at(step.output, i))


def draws_backward(s: TrainingSchedule, g: Gradients, step: Draws) -> None:
    f = s.f
    (x,) = step.operands
    if not g.wanted(x):
        return
    access = access_of(x)
    sink = g.sink(x)
    with f.loop(0, step.size) as i, s.groups():
        sink.put(s.vector(s.at(g.of(step.output), i)) * _factor(s, step, i), s.index(access, [i]))
