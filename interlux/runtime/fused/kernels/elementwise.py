"""Scalar operations: what each means, expressions of them, and steps that apply one to every element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..activations import ACTIVATIONS
from ..llvm import Function, Index, Value
from ..steps import LIGHT, SHORT, Elementwise, Expression, Instruction
from ..tensors import Access, Shape, Tensor
from ..vectormath import rounded
from .schedule import Blocks, Schedule, access_of, coalesced

# Booleans are 0.0 and 1.0.


def _truth(f: Function, condition: Value, like: Value) -> Value:
    return f.select(condition, f.const(1.0, like.type), f.const(0.0, like.type))


def _comparison(relation: str) -> Callable[..., Value]:
    return lambda f, a, b: _truth(f, f.compare(relation, a, b), a)


FUNCTIONS: dict[str, Callable[..., Value]] = {
    **{name: function for name, function in ACTIVATIONS.items() if name not in ("Sum", "Mean", "Clip")},
    "Add": lambda f, a, b: a + b,
    "Sub": lambda f, a, b: a - b,
    "Mul": lambda f, a, b: a * b,
    "Div": lambda f, a, b: a / b,
    "Max": lambda f, a, b: f.maximum(a, b),
    "Min": lambda f, a, b: f.minimum(a, b),
    "Trunc": lambda f, x: rounded(f, x, "trunc"),
    "ScaleShift": lambda f, x, scale, shift: f.fma(x, scale, shift),
    "Equal": _comparison("eq"),
    "Less": _comparison("lt"),
    "LessOrEqual": _comparison("le"),
    "Greater": _comparison("gt"),
    "GreaterOrEqual": _comparison("ge"),
    "IsNaN": lambda f, x: _truth(f, f.is_nan(x), x),
    "And": lambda f, a, b: f.min(a, b),
    "Or": lambda f, a, b: f.max(a, b),
    "Xor": _comparison("ne"),
    "Not": lambda f, x: 1.0 - x,
    "Where": lambda f, c, a, b: f.select(f.compare("ne", c, 0.0), a, b),
}


def evaluate(s: Schedule, code: Sequence[Instruction], operands: Sequence[Value], lanes: int) -> Value:
    """The result of an expression's instructions on values of some lanes."""
    f = s.f
    values = list(operands)
    kind = s.element.vector(lanes)
    for instruction in code:
        attributes = dict(instruction.attributes)
        if instruction.op == "Constant":
            values.append(f.const(attributes["value"], kind))
            continue
        arguments = [values[i] for i in instruction.arguments]
        values.append(FUNCTIONS[instruction.op](f, *arguments, **attributes))
    return values[-1]


class Epilogue:
    """What a step applies to its results: activation, residual, scale.

    Arguments:
        s: the schedule.
        expression: with the result itself as operand 0; None for nothing.
        shape: in which the step counts its results.
    """

    def __init__(self, s: Schedule, expression: Expression | None, shape: Shape):
        self._s, self._expression = s, expression
        self._others: list[tuple[Tensor, Access]] = []
        if expression is not None:
            self._others = [(t, access_of(t, shape)) for t in expression.operands[1:]]

    @property
    def reads(self) -> bool:
        """Whether there are further operands."""
        return bool(self._others)

    @property
    def rises(self) -> bool:
        """Whether it may be exchanged with a maximum: NaN stays NaN, and what is greater stays so."""
        return self._expression is None or all(c.op == "Relu" for c in self._expression.code)

    def __call__(self, values: list[Value], coordinates: Sequence[Index]) -> list[Value]:
        """Applied to one feature at coordinates of the shape."""
        if self._expression is None:
            return values
        others = [self._s.read(t, access, coordinates) for t, access in self._others]
        code = self._expression.code
        return [evaluate(self._s, code, [v, *(o[n] for o in others)], self._s.lanes) for n, v in enumerate(values)]

    def vector(self, value: Value, coordinates: Sequence[Index], count: int | None = None) -> Value:
        """For one sample: applied to neighbouring results along the last axis."""
        if self._expression is None:
            return value
        lanes = value.type.lanes
        others = [read_along(self._s, t, access, coordinates, lanes, count) for t, access in self._others]
        return evaluate(self._s, self._expression.code, [value, *others], lanes)


def read_along(
    s: Schedule, tensor: Tensor, access: Access, coordinates: Sequence[Index], lanes: int, count: int | None = None
) -> Value:
    """For one sample: neighbouring elements along the last axis as a vector; only `count` are read."""
    f = s.f
    pointer = s.at(tensor.source, s.index(access, coordinates))
    stride = access.strides[-1] if access.strides else 0
    if stride == 0:
        return f.broadcast(pointer, lanes)
    if stride == 1 or lanes == 1:
        return f.load(pointer, lanes, count=count)
    used = lanes if count is None else count
    parts = [f.load(pointer + i * stride) for i in range(used)]
    return f.join(parts + [f.const(0.0, s.element)] * (lanes - used))


def elementwise(s: Schedule, step: Elementwise) -> None:
    """An expression for each element."""
    shape, accesses = coalesced(step.shape, [_contiguous(step.shape), *(access_of(t) for t in step.operands)])
    output = Tensor(step.output, np.zeros(shape, np.int64), step.output.dtype)
    apply(s, step.code, shape, output, accesses[0], step.operands, accesses[1:])


def apply(
    s: Schedule,
    code: Sequence[Instruction],
    shape: Shape,
    output: Tensor,
    target: Access,
    operands: Sequence[Tensor],
    sources: Sequence[Access],
) -> None:
    """An expression for each coordinate of a shape.

    Arguments:
        output: whose source takes the results, where `target` says.
        operands: whose elements are read where `sources` say.
    """
    f = s.f
    together = _together(s, code)
    rows = shape and target.strides[-1] == 1 and all(a.strides[-1] == 1 for a in sources)
    samples = not s.by_sample and s.blocks == 1 and not any(t.is_constant for t in operands)
    if rows and samples and min(together, shape[-1]) > 1:
        _several(s, code, shape, output, target, operands, sources, together)
        return
    if not (s.by_sample and s.width > 1 and shape and target.strides[-1] == 1):
        with s.nest(shape) as at:
            values = [s.read(t, a, at) for t, a in zip(operands, sources, strict=True)]
            results = [evaluate(s, code, [v[n] for v in values], s.lanes) for n in range(s.blocks)]
            s.store(results, s.at(output.source, s.index(target, at)))
        return

    def piece(at: list[Any], lanes: int, count: int | None) -> None:
        values = [read_along(s, t, a, at, lanes, count) for t, a in zip(operands, sources, strict=True)]
        result = f.splat(evaluate(s, code, values, lanes), lanes)
        f.store(result, s.at(output.source, s.index(target, at)), count=count)

    size = shape[-1]
    while together > 1 and size % (s.width * together):
        together //= 2
    with s.nest(shape[:-1]) as outer:
        whole = size // s.width * s.width
        if whole:
            with f.loop(0, whole, s.width * together) as i:
                piece([*outer, i], s.width * together, None)
        if size - whole == 1:
            piece([*outer, whole], 1, None)
        elif size - whole:
            piece([*outer, whole], s.width, size - whole)


def _together(s: Schedule, code: Sequence[Instruction]) -> int:
    """How many vectors long code is executed on in turn, as one long vector: its instructions wait for each other."""
    if s.target.registers < 32 or all(c.op in LIGHT for c in code):
        return 1
    return 4 if all(c.op in LIGHT or c.op in SHORT for c in code) and s.element.bits == 32 else 2


def _several(
    s: Schedule,
    code: Sequence[Instruction],
    shape: Shape,
    output: Tensor,
    target: Access,
    operands: Sequence[Tensor],
    sources: Sequence[Access],
    together: int,
) -> None:
    """Samples in the lanes: `apply` on neighbouring features as one long vector."""
    f = s.f
    while together > shape[-1]:
        together //= 2
    blocks = Blocks(shape[-1], together, -(-shape[-1] // together))
    lanes, align = s.lanes * together, s.lanes * s.element.bytes
    with s.nest(shape[:-1]) as outer, f.loop(0, blocks.count) as i:
        at = [*outer, blocks.first(f, i)]
        values = [f.load(s.at(t.source, s.index(a, at)), lanes, align) for t, a in zip(operands, sources, strict=True)]
        f.store(f.splat(evaluate(s, code, values, lanes), lanes), s.at(output.source, s.index(target, at)), align)


def _contiguous(shape: Shape) -> Access:
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return Access(0, tuple(reversed(strides)))
