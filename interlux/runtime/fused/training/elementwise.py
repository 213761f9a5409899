"""Scalar operations and copies, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..derivatives import DERIVATIVES
from ..kernels.elementwise import FUNCTIONS, evaluate
from ..kernels.rearranging import _box
from ..kernels.rearranging import rearrange as _rearrange
from ..kernels.schedule import access_of, coalesced
from ..llvm import I64, Index, Value
from ..steps import Elementwise, Rearrange
from ..tensors import Access, Constant, Tensor
from .schedule import Gradients, TrainingSchedule, through
from .steps import Weights

BINARY = frozenset(["Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", "Where"])


def has_derivative(op: str, position: int) -> bool:
    """Whether there is code for the derivative of a scalar operation by one of its arguments."""
    return op in BINARY or (position == 0 and op in DERIVATIVES and op in FUNCTIONS)


def elementwise(s: TrainingSchedule, step: Elementwise) -> None:
    """An expression for each element, of several vectors of samples at a time as one long vector."""
    f = s.f
    whole = Tensor(step.output, np.arange(step.size, dtype=np.int64).reshape(step.shape), step.output.dtype)
    shape, accesses = coalesced(step.shape, [access_of(x) for x in (whole, *step.operands)])
    together = min(s.vectors, 2)
    lanes = together * s.lanes

    def read(t: Tensor, access: Access, at: Sequence[Index]) -> Value:
        pointer = s.at(t.source, s.index(access, at))
        if isinstance(t.source, Constant | Weights):
            return f.broadcast(pointer, lanes)
        return f.load(pointer, lanes, s.alignment)

    with s.nest(shape) as at, f.loop(0, s.tile, lanes) as group:
        s.group = group
        values = [read(t, a, at) for t, a in zip(step.operands, accesses[1:], strict=True)]
        result = f.splat(evaluate(s, step.code, values, lanes), lanes)
        f.store(result, s.at(step.output, s.index(accesses[0], at)), s.alignment)
    s.group = 0


def elementwise_backward(s: TrainingSchedule, g: Gradients, step: Elementwise) -> None:
    """One pass for each operand."""
    whole = Tensor(step.output, np.arange(step.size, dtype=np.int64).reshape(step.shape), step.output.dtype)
    for number, t in enumerate(step.operands):
        if isinstance(t.source, Constant) or not (isinstance(t.source, Weights) or g.wanted(t)):
            continue
        tensors = [whole, *step.operands]
        shape, accesses = coalesced(step.shape, [access_of(x) for x in tensors])
        if isinstance(t.source, Weights):
            _to_weights(s, g, step, number, shape, accesses)
        else:
            _to_samples(s, g, step, number, shape, accesses)


def _to_samples(
    s: TrainingSchedule, g: Gradients, step: Elementwise, number: int, shape: Sequence[int], accesses: list[Access]
) -> None:
    sink = g.sink(step.operands[number])
    with s.nest(tuple(shape)) as at, s.groups():
        sink.put(_slope(s, g, step, number, at, accesses), s.index(accesses[number + 1], at))


def _to_weights(
    s: TrainingSchedule, g: Gradients, step: Elementwise, number: int, shape: Sequence[int], accesses: list[Access]
) -> None:
    """A parameter's gradient is the sum over samples."""
    if step.operands[number].index.min() >= s.tape.trained:
        return
    f = s.f
    with s.nest(tuple(shape)) as at:
        total = f.variable(s.constant(0.0))
        with s.groups():
            total.set(total.get() + _slope(s, g, step, number, at, accesses))
        s.add_to_weight(s.index(accesses[number + 1], at), total.get())


def _slope(
    s: TrainingSchedule, g: Gradients, step: Elementwise, number: int, at: Sequence[Index], accesses: list[Access]
) -> Value:
    """The result's gradient times the derivative by one operand."""
    f = s.f
    y = s.vector(s.at(step.output, s.index(accesses[0], at)))
    gradient = s.vector(s.at(g.of(step.output), s.index(accesses[0], at)))
    values = [s.read(t, a, at)[0] for t, a in zip(step.operands, accesses[1:], strict=True)]
    values += [f.const(dict(code.attributes)["value"], gradient.type) for code in step.code[:-1]]
    code = step.code[-1]
    arguments = [values[i] for i in code.arguments]
    position = code.arguments.index(number)
    zero = f.const(0.0, gradient.type)
    op, others = code.op, arguments[:position] + arguments[position + 1 :]
    if op == "Add":
        return gradient
    if op == "Sub":
        return -gradient if position else gradient
    if op == "Mul":
        return gradient * others[0]
    if op == "Div":
        return -(gradient * y / arguments[1]) if position else gradient / arguments[1]
    if op in ("Max", "Min"):
        return _extreme(s, op, gradient, arguments[position], others[0], number, step)
    if op == "PRelu":
        x, slope = arguments
        if position:
            return f.select(x > 0.0, zero, gradient * x)
        return f.select(x > 0.0, gradient, gradient * slope)
    if op == "Where":
        if position == 0:
            return zero
        chosen = f.compare("ne", arguments[0], 0.0)
        return f.select(chosen, gradient, zero) if position == 1 else f.select(chosen, zero, gradient)
    assert has_derivative(op, position), "checked before"
    return through(f, op, gradient, DERIVATIVES[op](f, arguments[0], y, *arguments[1:], **dict(code.attributes)))


def _extreme(
    s: TrainingSchedule, op: str, gradient: Value, own: Value, other: Value, number: int, step: Elementwise
) -> Value:
    """Of a maximum or minimum: as PyTorch's clamp beside a constant, halves to both of two equal values."""
    f = s.f
    zero = f.const(0.0, gradient.type)
    fixed = len(step.code) > 1 or any(isinstance(t.source, Constant) for t in step.operands)
    better = own > other if op == "Max" else own < other
    equal = gradient if fixed else gradient * 0.5
    return f.select(better, gradient, f.select(f.eq(own, other), equal, zero))


def rearrange(s: TrainingSchedule, step: Rearrange) -> None:
    with s.groups():
        _rearrange(s, step)


def rearrange_backward(s: TrainingSchedule, g: Gradients, step: Rearrange) -> None:
    """Every element's gradient goes back to where it came from; those of a border to nowhere."""
    f = s.f
    (x,) = step.operands
    if not g.wanted(x):
        return
    target = step.target if step.target is not None else np.arange(x.size, dtype=np.int64).reshape(x.shape)
    inside = x.index >= 0
    box = _box(inside)
    if box is None:
        return
    source, place = x.moved(x.index[box], None), x.moved(target[box], None)
    if inside[box].all() and source.access() is not None and place.access() is not None:
        sink = g.sink(source)
        shape, accesses = coalesced(source.shape, [access_of(place), access_of(source)])
        with s.nest(shape) as at, s.groups():
            sink.put(s.vector(s.at(g.of(step.output), s.index(accesses[0], at))), s.index(accesses[1], at))
        return
    kept = x.moved(x.index[inside], None)
    sink = g.sink(kept)
    sources, places = s.table(kept.index), s.table(target[inside])
    with f.loop(0, kept.size) as i, s.groups():
        index, at_ = (f.cast("sext", f.load(f.offset(table, i)), I64) for table in (sources, places))
        sink.put(s.vector(s.at(g.of(step.output), at_)), index)
