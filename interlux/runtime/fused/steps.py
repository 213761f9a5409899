"""The steps of a program: what is computed for one sample, on tensors with static shapes."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from .tensors import Buffer, Shape, Tensor

Ints = tuple[int, ...]

# Scalar operations of one or a few instructions, and those of up to about thirty
LIGHT = frozenset(
    [
        "Abs",
        "Add",
        "And",
        "Constant",
        "Div",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "HardTanh",
        "Identity",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "PRelu",
        "Reciprocal",
        "Relu",
        "Rsqrt",
        "ScaleShift",
        "Sqrt",
        "Sub",
        "ThresholdedRelu",
        "Where",
        "Xor",
    ]
)
SHORT = frozenset(("Elu", "Exp", "Expm1", "Sigmoid", "Tanh"))


@dataclass(frozen=True)
class Instruction:
    """One scalar operation of an expression.

    Arguments:
        op: a name in `kernels.elementwise.FUNCTIONS`.
        arguments: operands by number, then results of earlier instructions.
        attributes: of the operation, (name, value) pairs.
    """

    op: str
    arguments: Ints
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(eq=False)
class Expression:
    """Scalar operations on the elements of operands that have one common shape; the last one's result is the result."""

    operands: list[Tensor]
    code: list[Instruction]

    def fused(self, position: int, inner: Expression) -> Expression:
        """With the operand at a position computed by an inner expression; equal operands are shared."""
        operands: list[Tensor] = list(inner.operands)
        places: list[int] = []
        for i, operand in enumerate(self.operands):
            if i == position:
                places.append(-1)
                continue
            same = next((k for k, o in enumerate(operands) if _same(o, operand)), None)
            if same is None:
                operands.append(operand)
                same = len(operands) - 1
            places.append(same)
        n, shift = len(operands), len(operands) - len(inner.operands)
        code = [
            Instruction(c.op, tuple(a if a < len(inner.operands) else a + shift for a in c.arguments), c.attributes)
            for c in inner.code
        ]
        last = n + len(code) - 1
        base = len(self.operands)
        for c in self.code:
            arguments = tuple(
                (last if places[a] < 0 else places[a]) if a < base else n + len(inner.code) + a - base
                for a in c.arguments
            )
            code.append(Instruction(c.op, arguments, c.attributes))
        return Expression(operands, code)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.source is b.source and a.fill == b.fill and np.array_equal(a.index.ravel(), b.index.ravel())


@dataclass(eq=False)
class Step:
    """One step.

    Arguments:
        place: the layer it comes from, for errors.
        operands: the tensors it reads, in the shapes that the step defines.
        output: where its result goes, contiguous in `shape`.
        shape: of the result.
        epilogue: what is applied to each element of the result before it is stored; operand 0 is the element itself,
            the others have as many elements as the result.
    """

    place: str
    operands: list[Tensor]
    output: Buffer
    shape: Shape
    epilogue: Expression | None = field(default=None, kw_only=True)

    def reads(self) -> list[Tensor]:
        """All tensors that are read."""
        more = self.epilogue.operands[1:] if self.epilogue else []
        return [*self.operands, *more]

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(eq=False)
class Elementwise(Step):
    """An expression for each element of `shape`; the operands have that shape and are those of the expression."""

    code: list[Instruction]

    @property
    def expression(self) -> Expression:
        return Expression(self.operands, self.code)


@dataclass(eq=False)
class Rearrange(Step):
    """A copy of elements. operand [shape].

    Arguments:
        target: where in the output they go, [shape]; None: in their order.
    """

    target: np.ndarray | None = None


@dataclass(eq=False)
class Dense(Step):
    """x · weightᵀ + bias. operand: x [rows, in]; shape [rows, out].

    Arguments:
        weight: float64 [out, in].
        bias: float64 [out].
    """

    weight: np.ndarray
    bias: np.ndarray


@dataclass(eq=False)
class MatMul(Step):
    """Products of matrices that both depend on the sample. operands: a [count, m, k], b [count, k, n]; shape
    [count, m, n]."""


@dataclass(eq=False)
class Conv(Step):
    """A convolution. operand: x [in, *spatial], padded already; shape [out, *spatial'] or [*spatial', out].

    Arguments:
        weight: float64 [out, in / groups, *kernel].
        bias: float64 [out].
        pool: size and stride of a maximum pool that follows the epilogue; () if there is none. `shape` is then that of
            the pool's result, and the epilogue has no further operands.
        channels_last: whether the result's channels are its last axis.
    """

    weight: np.ndarray
    bias: np.ndarray
    strides: Ints
    dilations: Ints
    groups: int
    channels_last: bool
    pool: Ints = ()


@dataclass(eq=False)
class Pool(Step):
    """A reduction over windows. operand: x [channels, *spatial]; shape [channels, *spatial'] or
    [*spatial', channels].

    Arguments:
        kind: max or mean.
        kernel, strides, dilations: of the windows.
        counts: float64 [*spatial'], what sums are divided by.
        channels_last: whether the result's channels are its last axis.
    """

    kind: str
    kernel: Ints
    strides: Ints
    dilations: Ints
    counts: np.ndarray | None
    channels_last: bool


@dataclass(eq=False)
class Reduce(Step):
    """A reduction. operand: x [kept, reduced]; shape [kept].

    Arguments:
        kind: sum, mean, max, min, prod, sum_square, l2, l1; argmax and argmin for the first place of the extreme.
    """

    kind: str


@dataclass(eq=False)
class Normalize(Step):
    """(x - mean) / √(variance + epsilon) · scale + shift over the last axis. operands: x [groups, n], then scale and
    shift, constants [groups, n]; shape [groups, n].

    Arguments:
        centred: whether the mean is subtracted; if not, the mean square stands for the variance.
    """

    epsilon: float
    centred: bool = True


@dataclass(eq=False)
class Softmax(Step):
    """Softmax over the last axis. operand: x [rows, n]; shape [rows, n].

    Arguments:
        log: whether the logarithm is taken.
        scale: what x is multiplied by before.
    """

    log: bool
    scale: float = 1.0


@dataclass(eq=False)
class Lookup(Step):
    """Rows of a table. operand: row numbers [count], integers; shape [count, features].

    Arguments:
        table: float64 [rows, features].
    """

    table: np.ndarray


@dataclass(eq=False)
class Convert(Step):
    """Integers or booleans of an input as floating-point numbers. operand [count]; shape [count]."""


@dataclass(frozen=True, eq=False)
class Shift:
    """In round t of a loop a source begins `start + t · stride` elements later."""

    source: Buffer
    start: int
    stride: int


@dataclass(eq=False)
class Repeat(Step):
    """Steps that are executed `count` times. operands: what they read that is made outside; output and shape: of the
    results of all rounds.

    Arguments:
        count: rounds.
        body: the steps of one round.
        shifts: which sources move from round to round.
        states: buffers that keep values from one round to the next, and behind the last one.
    """

    count: int
    body: list[Step]
    shifts: list[Shift]
    states: list[Buffer]

    def scratch(self) -> list[Buffer]:
        """All buffers that are used inside."""
        return [*self.states, *(step.output for step in self.body)]


@dataclass(eq=False)
class Program:
    """A model as steps.

    Arguments:
        dtype: of all floating-point values.
        inputs: the model's inputs as buffers, in order.
        outputs: tensors with the shapes of the model's outputs.
        steps: in an order in which they can be executed.
        batched: whether the model has a batch; if not it is one sample.
        stored: dtype of the large weights in memory, if it is not `dtype`.
    """

    dtype: np.dtype[Any]
    inputs: list[Buffer]
    outputs: list[Tensor]
    steps: list[Step]
    batched: bool
    stored: np.dtype[Any] | None = None
