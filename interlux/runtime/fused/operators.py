"""ONNX's operators as steps and rearrangements. Each takes the builder, its inputs and its attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from ...ir import dtypes
from ...ir.errors import InvalidModelError
from ...ir.windows import Window
from .builder import Builder, NotMade, Value, logical_shape, reshape
from .folding import Sizes, slices, unsqueezed
from .steps import Conv, Convert, Dense, Lookup, MatMul, Normalize, Pool, Reduce, Softmax
from .tensors import BATCH, Buffer, Tensor, broadcast, common, constant, whole

Ints = tuple[int, ...]
OPERATORS: dict[str, Callable[..., Any]] = {}


def operator(function: Callable[..., Any]) -> Callable[..., Any]:
    OPERATORS[function.__name__] = function
    return function


# Scalar operations: `kernels.elementwise` has the function of each name.

_SCALAR = [
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "And",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Div",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "IsNaN",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "Mish",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Where",
    "Xor",
]


def _scalar(name: str) -> Callable[..., Tensor]:
    return lambda b, *inputs, **attributes: b.elementwise(name, inputs, attributes)


OPERATORS.update({name: _scalar(name) for name in _SCALAR})


def _comparison(name: str) -> Callable[..., Tensor]:
    def compare(b: Builder, *inputs: Value) -> Tensor:
        """Integers of an input are compared as floating-point numbers, which is exact beside small known ones."""
        small = any(not isinstance(i, Tensor) and np.all(np.abs(b.numbers_of(i, name)) < _EXACT) for i in inputs)
        return b.elementwise(name, [_as_numbers(b, i) if small else i for i in inputs], {})

    return compare


def _as_numbers(b: Builder, x: Value) -> Value:
    """Integers of an input as they lie there become floating-point numbers."""
    if isinstance(x, Tensor) and isinstance(x.source, Buffer) and x.source.dtype != b.dtype:
        return replace(numbers(b, x), dtype=b.dtype)
    return x


_EXACT = 2**24  # up to there float32 has all whole numbers
OPERATORS.update({name: _comparison(name) for name in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")})


def _variadic(name: str) -> Callable[..., Value]:
    def combine(b: Builder, *inputs: Value) -> Value:
        result = inputs[0]
        for other in inputs[1:]:
            result = b.elementwise(name, [result, other], {})
        return result

    return combine


OPERATORS.update({"Sum": _variadic("Add"), "Max": _variadic("Max"), "Min": _variadic("Min")})


@operator
def Mean(b: Builder, *inputs: Value) -> Value:
    total = OPERATORS["Sum"](b, *inputs)
    return b.elementwise("Div", [total, np.asarray(len(inputs), b.dtype)], {})


@operator
def Clip(b: Builder, x: Tensor, low: Value | None = None, high: Value | None = None) -> Tensor:
    x = x if low is None else b.elementwise("Max", [x, low], {})
    return x if high is None else b.elementwise("Min", [x, high], {})


@operator
def Pow(b: Builder, x: Value, y: Value) -> Tensor:
    exponent = b.tensor(y)
    if not exponent.is_constant or exponent.size != 1 or exponent.axis is not None:
        return b.elementwise("Pow", [x, y], {}, b.tensor(x).dtype)
    return b.elementwise("Pow", [x], {"exponent": float(exponent.values().item())}, b.tensor(x).dtype)


@operator
def BatchNormalization(
    b: Builder,
    x: Tensor,
    scale: Value,
    shift: Value,
    mean: Value,
    variance: Value,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    if training_mode:
        raise b.refuse("BatchNormalization in training mode")
    s, t, m, v = (
        b.numbers_of(a, "BatchNormalization with statistics").astype(np.float64) for a in (scale, shift, mean, variance)
    )
    with np.errstate(invalid="ignore", divide="ignore"):  # of a negative variance: NaN, as everywhere
        factor = s / np.sqrt(v + epsilon)
    column = (-1,) + (1,) * (len(x.shape) - 2)
    return b.elementwise("ScaleShift", [x, factor.reshape(column), (t - m * factor).reshape(column)], {}, x.dtype)


# Values as they are


@operator
def Identity(b: Builder, x: Tensor) -> Tensor:
    return x


OPERATORS["StopGradient"] = Identity


@operator
def Dropout(b: Builder, x: Tensor, ratio: Value | None = None, training: Value | None = None, seed: int = 0) -> Tensor:
    if training is not None and bool(b.numbers_of(training, "Dropout in a mode").item()):
        raise b.refuse("Dropout in training mode")
    return x


@operator
def Cast(b: Builder, x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    dtype = np.dtype(dtypes.from_onnx(to))
    if dtype == x.dtype:
        return x
    if isinstance(x.source, Buffer) and x.source.dtype != b.dtype:
        if dtype.kind in "iu" and min(x.dtype.itemsize, dtype.itemsize) >= 4:
            return replace(x, dtype=dtype)  # row numbers: read as the integers that they are
        x = numbers(b, x)
    if x.dtype.kind in "iub" and (dtype == b.dtype or (dtype.kind == "i" and dtype.itemsize >= x.dtype.itemsize)):
        return replace(x, dtype=dtype)
    if x.dtype == b.dtype and dtype in (np.int32, np.int64):
        return replace(b.elementwise("Trunc", [x], {}, x.dtype), dtype=dtype)
    if dtype.kind == "b" and x.dtype == b.dtype:
        return b.elementwise("Not", [b.elementwise("Equal", [x, np.zeros((), b.dtype)], {})], {})
    raise b.refuse(f"Cast from {x.dtype.name} to {dtype.name}")


def numbers(b: Builder, x: Tensor) -> Tensor:
    """An integer or boolean input as floating-point numbers that stand for its elements; the dtype is still its own."""
    made = b.result(Convert, [b.reach(x, (x.size,))], (x.size,), x)
    return b.back(made, made.index.reshape(x.shape), x, x.axis)


# Shapes


@operator
def Shape(b: Builder, x: Tensor, *, start: int = 0, end: int | None = None) -> np.ndarray | Sizes:
    axes = np.arange(len(x.shape))[start:end]
    sizes = logical_shape(b, x)[axes]
    return Sizes(sizes, axes == x.axis) if x.axis in axes else sizes


@operator
def Size(b: Builder, x: Tensor) -> np.ndarray | Sizes:
    size = np.asarray(np.prod(logical_shape(b, x)))
    return size if x.axis is None else Sizes(size, np.asarray(True))


@operator
def Reshape(b: Builder, x: Tensor, shape: Value, *, allowzero: int = 0) -> Tensor:
    logical = x.logical()
    target = [int(d) for d in b.sizes_of(shape, "Reshape to sizes")]
    return reshape(b, x, [logical[i] if d == 0 and not allowzero else d for i, d in enumerate(target)])


@operator
def Flatten(b: Builder, x: Tensor, *, axis: int = 1) -> Tensor:
    logical = x.logical()
    axis = axis + len(logical) if axis < 0 else axis
    return reshape(b, x, [prod(logical[:axis]), prod(logical[axis:])])


@operator
def Unsqueeze(b: Builder, x: Tensor, axes: Value) -> Tensor:
    return reshape(b, x, unsqueezed(x.logical(), np.atleast_1d(b.numbers_of(axes, "Unsqueeze with axes"))))


@operator
def Squeeze(b: Builder, x: Tensor, axes: Value | None = None) -> Tensor:
    logical = x.logical()
    if axes is None:
        return reshape(b, x, [d for d in logical if d != 1])
    gone = {int(a) % len(logical) for a in np.atleast_1d(b.numbers_of(axes, "Squeeze with axes"))}
    return reshape(b, x, [d for i, d in enumerate(logical) if i not in gone])


@operator
def Transpose(b: Builder, x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    perm = tuple(perm) if perm is not None else tuple(range(len(x.shape)))[::-1]
    return x.moved(x.index.transpose(perm), None if x.axis is None else perm.index(x.axis))


@operator
def Expand(b: Builder, x: Value, shape: Value) -> Tensor:
    tensor = b.tensor(x)
    target = np.broadcast_shapes(tensor.logical(), tuple(int(d) for d in b.sizes_of(shape, "Expand to sizes")))
    lifted = len(target) - len(tensor.shape)
    axis = None if tensor.axis is None else tensor.axis + lifted
    if axis is None:  # a constant that is repeated for every sample
        axis = next((i for i, d in enumerate(target) if d and d % BATCH == 0), None)
    own = tuple(d // BATCH if i == axis else d for i, d in enumerate(target))
    if tensor.axis is not None and axis is not None and target[axis] != tensor.logical()[tensor.axis]:
        raise b.refuse("Expand along the batch's axis")
    return tensor.moved(np.broadcast_to(tensor.index, own), axis)


@operator
def ConstantOfShape(b: Builder, shape: Value, *, value: Any = None) -> Tensor:
    number = np.zeros(1, np.float32) if value is None else np.asarray(value)
    return Expand(b, number.reshape(()), shape)


@operator
def Tile(b: Builder, x: Tensor, repeats: Value) -> Tensor:
    x = b.tensor(x)
    times = [int(r) for r in b.sizes_of(repeats, "Tile with repeats")]
    for axis, count in enumerate(times):
        if count == BATCH and x.axis is None and x.shape[axis] == 1:  # a constant that is repeated for every sample
            x, times[axis] = x.moved(x.index, axis), 1
    if any(count >= BATCH for count in times):
        raise b.refuse("Tile by the size of the batch of more than one element")
    _not_batch(b, x, [i for i, r in enumerate(times) if r != 1], "Tile")
    return x.moved(np.tile(x.index, times), x.axis)


def _not_batch(b: Builder, x: Tensor, axes: Sequence[int], what: str) -> None:
    if x.axis is not None and x.axis in [a % len(x.shape) for a in axes]:
        raise b.refuse(f"{what} along the batch's axis")


# Parts and joins


@operator
def Slice(
    b: Builder, x: Tensor, starts: Value, ends: Value, axes: Value | None = None, steps: Value | None = None
) -> Tensor:
    known: list[Any] = [
        None if v is None else np.atleast_1d(b.sizes_of(v, "Slice with bounds")) for v in (starts, ends, axes, steps)
    ]
    logical = x.logical()
    over = range(len(np.atleast_1d(known[0]))) if axes is None else [int(a) % len(logical) for a in known[2]]
    for bound in (starts, ends):
        marks = np.atleast_1d(bound.of_batch) if isinstance(bound, Sizes) else ()
        if any(axis != x.axis for axis, marked in zip(over, marks, strict=False) if marked):
            raise b.refuse("Slice of another axis by the size of the batch")
    parts = list(slices(logical, *known))
    if x.axis is not None:
        if parts[x.axis].indices(logical[x.axis]) != (0, logical[x.axis], 1):
            raise b.refuse("Slice along the batch's axis")
        parts[x.axis] = slice(None)
    return x.moved(x.index[tuple(parts)], x.axis)


@operator
def Split(
    b: Builder, x: Tensor, split: Value | None = None, *, axis: int = 0, num_outputs: int | None = None
) -> tuple[Tensor, ...]:
    _not_batch(b, x, [axis], "Split")
    size = x.shape[axis]
    if split is not None:
        ends = np.cumsum(b.numbers_of(split, "Split with sizes"))[:-1]
    else:
        count = num_outputs or 2
        ends = np.arange(1, count) * -(-size // count)
    return tuple(x.moved(part, x.axis) for part in np.split(x.index, ends, axis))


@operator
def Concat(b: Builder, *inputs: Value, axis: int) -> Tensor:
    tensors = [b.tensor(i) for i in inputs if not (isinstance(i, np.ndarray) and i.size == 0)]
    rank = len(tensors[0].shape)
    axis %= rank
    lead = next((t for t in tensors if t.axis is not None), tensors[0])
    _not_batch(b, lead, [axis], "Concat")
    for i, t in enumerate(tensors):
        if t.axis is None and lead.axis is not None:  # a constant beside every sample
            shape = tuple(lead.shape[k] if k == lead.axis else d for k, d in enumerate(t.shape))
            tensors[i] = broadcast(t, shape).moved(np.broadcast_to(t.index, shape), lead.axis, lead.outer)
        elif (t.axis, t.outer) != (lead.axis, lead.outer):
            raise b.refuse("Concat of values whose batch lies on different axes")
    if all(t.source is lead.source and t.fill == lead.fill for t in tensors):
        return lead.moved(np.concatenate([t.index for t in tensors], axis), lead.axis)
    b.check_float(*tensors)
    shape = tuple(sum(t.shape[axis] for t in tensors) if i == axis else d for i, d in enumerate(lead.shape))
    return b.joined(tensors, axis, shape, lead)


@operator
def Gather(b: Builder, x: Value, indices: Value, *, axis: int = 0) -> Tensor:
    if isinstance(indices, Tensor) and not indices.is_constant:
        return lookup(b, b.numbers_of(x, "Gather from a table"), indices, axis)
    tensor = b.tensor(x)
    _not_batch(b, tensor, [axis], "Gather")
    picks = b.numbers_of(indices, "Gather with indices")
    axis %= len(tensor.shape)
    moved = None if tensor.axis is None else tensor.axis + (picks.ndim - 1 if tensor.axis > axis else 0)
    size = tensor.shape[axis]
    if np.any((picks < -size) | (picks >= size)):
        raise b.refuse("Gather with indices out of range")
    return tensor.moved(np.take(tensor.index, picks % size, axis), moved)


def lookup(b: Builder, table: np.ndarray, indices: Tensor, axis: int) -> Tensor:
    """Parts of a known array by row numbers that depend on the input."""
    if (
        isinstance(indices.source, Buffer)
        and indices.source.dtype.kind not in "iu"
        and indices.source.input is not None
    ):
        raise b.refuse(f'Gather with row numbers of {indices.dtype.name}; they need dtype="int64"')
    if not isinstance(indices.source, Buffer) or indices.source.input is None or indices.source.dtype.itemsize < 4:
        raise b.refuse(f"Gather with indices of {indices.dtype.name} that are computed")
    axis %= table.ndim
    if axis != 0:
        raise b.refuse("Gather with computed indices on an axis other than 0")
    if table.dtype != b.dtype:
        raise b.refuse(f"Gather from a table of {table.dtype.name} (the model's dtype is {b.dtype.name})")
    rows = table.reshape(table.shape[0], -1).astype(np.float64)
    made = b.result(
        Lookup,
        [b.reach(indices, (indices.size,))],
        (indices.size, rows.shape[1]),
        whole(indices.source, (indices.source.size,), b.dtype),
        rows,
    )
    return b.back(made, made.index.reshape(*indices.shape, *table.shape[1:]), indices, indices.axis)


@operator
def Pad(
    b: Builder, x: Tensor, pads: Value, value: Value | None = None, axes: Value | None = None, *, mode: str = "constant"
) -> Tensor:
    amounts = [int(p) for p in b.numbers_of(pads, "Pad with amounts")]
    rank = len(x.shape)
    places = list(range(rank)) if axes is None else [int(a) % rank for a in b.numbers_of(axes, "Pad with axes")]
    widths = [(0, 0)] * rank
    for i, axis in enumerate(places):
        widths[axis] = (amounts[i], amounts[i + len(places)])
    _not_batch(b, x, [i for i, w in enumerate(widths) if w != (0, 0)], "Pad")
    number = 0.0 if value is None else float(b.numbers_of(value, "Pad with a value").item())
    return padded(b, x, widths, number, mode)


def padded(b: Builder, x: Tensor, widths: Sequence[tuple[int, int]], number: float, mode: str = "constant") -> Tensor:
    """x with more elements at the ends of its axes, fewer where a width is negative."""
    if not any(map(any, widths)):
        return x
    cut = tuple(slice(max(-w[0], 0), d - max(-w[1], 0)) for w, d in zip(widths, x.shape, strict=True))
    index = x.index[cut]
    grown = [(max(w[0], 0), max(w[1], 0)) for w in widths]
    if mode == "constant":
        if x.is_constant or (np.any(x.index < 0) and x.fill != number):
            x = b.stored(x)
            index = x.index[cut]
        made = np.pad(index, grown, constant_values=-1)
        return Tensor(x.source, made, x.dtype, x.axis, x.outer, number)
    if mode not in ("edge", "reflect", "wrap"):
        raise b.refuse(f"Pad with mode {mode}")
    repeated: np.ndarray = np.pad(index, grown, mode=mode)  # type: ignore[call-overload]
    return x.moved(repeated, x.axis)


@operator
def DepthToSpace(b: Builder, x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    s = blocksize
    split, perm = (
        ((n, s, s, c // s**2, h, w), (0, 3, 4, 1, 5, 2))
        if mode == "DCR"
        else ((n, c // s**2, s, s, h, w), (0, 1, 4, 2, 5, 3))
    )
    return x.moved(x.index.reshape(split).transpose(perm).reshape(n, c // s**2, h * s, w * s), x.axis)


@operator
def SpaceToDepth(b: Builder, x: Tensor, *, blocksize: int) -> Tensor:
    n, c, h, w = x.shape
    s = blocksize
    parts = x.index.reshape(n, c, h // s, s, w // s, s).transpose(0, 3, 5, 1, 2, 4)
    return x.moved(parts.reshape(n, c * s * s, h // s, w // s), x.axis)


# Products


def dense(b: Builder, x: Tensor, weight: np.ndarray, bias: np.ndarray | None) -> Tensor:
    """x [..., in] · weightᵀ [out, in] + bias [out]."""
    b.check_float(x)
    if x.axis == len(x.shape) - 1:
        raise b.refuse("product along the batch's axis")
    rows, features = prod(x.shape[:-1]), x.shape[-1]
    if weight.shape[1] != features:
        raise InvalidModelError(f"{weight.shape[1]} features are multiplied, the input has {features}{b.where()}")
    offsets = np.zeros(len(weight)) if bias is None else np.broadcast_to(bias, (len(weight),)).astype(np.float64)
    weight = weight.astype(np.float64)
    operand = x.reshaped((rows, features))
    if operand.access() is None:
        order = np.argsort(operand.index[0], kind="stable")
        sorted_columns = operand.moved(operand.index[:, order], None)
        if operand.index.min() >= 0 and sorted_columns.access() is not None:
            operand, weight = sorted_columns, weight[:, order]  # the weights are rearranged, not the values
        else:
            operand = b.stored(operand)
    made = b.result(Dense, [operand], (rows, len(weight)), x, weight, offsets)
    return b.back(made, made.index.reshape(*x.shape[:-1], len(weight)), x, x.axis)


@operator
def Gemm(
    b: Builder,
    x: Value,
    w: Value,
    c: Value | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    left = b.tensor(x)
    left = Transpose(b, left) if transA else left
    weight = b.numbers_of(w, "Gemm with a matrix").astype(np.float64) * alpha
    product = dense(b, left, weight if transB else weight.T, None)
    if c is None:
        return product
    if isinstance(c, Tensor):
        return b.elementwise("Add", [product, c if beta == 1 else b.elementwise("Mul", [c, np.asarray(beta)], {})], {})
    return b.elementwise("Add", [product, b.numbers_of(c, "Gemm").astype(np.float64) * beta], {})


@operator
def MatMul_(b: Builder, x: Value, y: Value) -> Tensor:
    left, right = b.tensor(x), b.tensor(y)
    b.check_float(left, right)
    if right.is_constant and right.axis is None and len(right.shape) == 2:
        return dense(b, left, right.values().T, None)
    if right.is_constant and right.axis is None and len(right.shape) == 1:
        product = dense(b, left, right.values()[None, :], None)
        return reshape(b, product, product.logical()[:-1])
    if len(left.shape) < 2 or len(right.shape) < 2:
        raise b.refuse("MatMul of vectors that depend on the input")
    return matmul(b, left, right)


OPERATORS["MatMul"] = OPERATORS.pop("MatMul_")


def matmul(b: Builder, left: Tensor, right: Tensor) -> Tensor:
    """left [..., m, k] · right [..., k, n], broadcast over the leading axes."""
    (m, k), n = left.shape[-2:], right.shape[-1]
    rank = max(len(left.shape), len(right.shape))
    left, right = (_lifted(t, rank) for t in (left, right))
    if left.axis == rank - 1 or right.axis == rank - 2 or (right.axis == rank - 1 and left.axis is not None):
        raise b.refuse("product along the batch's axis")
    rows_are_samples = left.axis == rank - 2 or right.axis == rank - 1
    if rows_are_samples:
        if (left.axis if right.axis is None else right.axis) is None or (
            left.axis is not None and right.axis is not None
        ):
            raise b.refuse("product of two batches")
        carrier = left if left.axis is not None else right
        lead, axis, outer = np.broadcast_shapes(left.shape[:-2], right.shape[:-2]), carrier.axis, carrier.outer
    else:
        heads = [t.moved(t.index[..., 0, 0], t.axis) for t in (left, right)]
        lead, axis, outer = common(heads, "MatMul")
    count = prod(lead)
    operands = []
    for t, tail in ((left, (m, k)), (right, (k, n))):
        spread = t.reshaped(t.shape).moved(np.broadcast_to(t.index, (*lead, *tail)), None)
        operands.append(b.reach(spread, (count, *tail)))
    made = b.result(MatMul, operands, (count, m, n), left if left.axis is not None else right)
    return Tensor(made.source, made.index.reshape(*lead, m, n), made.dtype, axis, outer)


def _lifted(t: Tensor, rank: int) -> Tensor:
    more = rank - len(t.shape)
    return t.moved(t.index.reshape((1,) * more + t.shape), None if t.axis is None else t.axis + more)


# Reductions


def _axes(b: Builder, x: Tensor, axes: Value | None, noop: int, what: str) -> list[int]:
    if axes is None:
        return [] if noop else list(range(len(x.shape)))
    return sorted({int(a) % len(x.shape) for a in np.atleast_1d(b.numbers_of(axes, f"{what} with axes"))})


def _behind(x: Tensor, axes: Sequence[int]) -> tuple[Ints, Ints]:
    """The permutation that puts axes last, and its inverse."""
    order = (*(i for i in range(len(x.shape)) if i not in axes), *axes)
    return order, tuple(int(i) for i in np.argsort(order))


def reduction(kind: str, what: str) -> Callable[..., Tensor]:
    def reduce(
        b: Builder, x: Tensor, axes: Value | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        b.check_float(x)
        over = _axes(b, x, axes, noop_with_empty_axes, what)
        if not over:
            return x
        return reduced(b, x, kind, over, bool(keepdims), what)

    return reduce


def reduced(b: Builder, x: Tensor, kind: str, axes: Sequence[int], keepdims: bool, what: str) -> Tensor:
    _not_batch(b, x, axes, what)
    order, _ = _behind(x, axes)
    kept = [i for i in range(len(x.shape)) if i not in axes]
    count = prod(x.shape[i] for i in axes)
    moved = x.reshaped(x.shape).moved(x.index.transpose(order), None)
    operand = b.reach(moved, (x.size // count, count))
    made = b.result(Reduce, [operand], (x.size // count,), x, kind)
    shape = tuple(1 if i in axes else d for i, d in enumerate(x.shape))
    axis = x.axis
    if not keepdims:
        shape = tuple(d for i, d in enumerate(x.shape) if i not in axes)
        axis = None if axis is None else kept.index(axis)
    return b.back(made, made.index.reshape(shape), x, axis)


OPERATORS.update(
    {
        f"Reduce{name}": reduction(kind, f"Reduce{name}")
        for name, kind in (
            ("Sum", "sum"),
            ("Mean", "mean"),
            ("Max", "max"),
            ("Min", "min"),
            ("Prod", "prod"),
            ("L1", "l1"),
            ("L2", "l2"),
            ("SumSquare", "sum_square"),
        )
    }
)


@operator
def ArgMax(b: Builder, x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> NotMade:
    axis %= len(x.shape)
    made = NotMade("the index of a maximum", (x, axis) if keepdims else None)
    made.make = lambda: _place(b, x, "argmax", axis, keepdims, select_last_index)
    return made


@operator
def ArgMin(b: Builder, x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _place(b, x, "argmin", axis % len(x.shape), keepdims, select_last_index)


def _place(b: Builder, x: Tensor, kind: str, axis: int, keepdims: int, last: int) -> Tensor:
    """Where the extreme element is: a row number, stored as a floating-point one."""
    if last or x.shape[axis] > 1 << 24:
        raise b.refuse(f"{kind} of the last element, or of more than 2^24")
    b.check_float(x)
    return replace(reduced(b, x, kind, [axis], bool(keepdims), kind), dtype=np.dtype(np.int64))


@operator
def GatherElements(b: Builder, x: Tensor, indices: Any, *, axis: int = 0) -> Tensor:
    """Only of what is a maximum: the element at ArgMax's index."""
    greatest = indices.greatest if isinstance(indices, NotMade) else None
    if greatest is None or greatest[0] is not x or greatest[1] != axis % len(x.shape):
        raise b.refuse("GatherElements, other than at the index of a maximum")
    return reduced(b, x, "max", [greatest[1]], True, "ArgMax")


@operator
def GlobalAveragePool(b: Builder, x: Tensor) -> Tensor:
    return reduced(b, x, "mean", range(2, len(x.shape)), True, "GlobalAveragePool")


@operator
def GlobalMaxPool(b: Builder, x: Tensor) -> Tensor:
    return reduced(b, x, "max", range(2, len(x.shape)), True, "GlobalMaxPool")


def _softmax(b: Builder, x: Tensor, axis: int, log: bool, what: str) -> Tensor:
    b.check_float(x)
    _not_batch(b, x, [axis], what)
    order, inverse = _behind(x, [axis % len(x.shape)])
    moved = x.reshaped(x.shape).moved(x.index.transpose(order), None)
    n = x.shape[axis]
    operand = b.reach(moved, (x.size // n, n))
    made = b.result(Softmax, [operand], (x.size // n, n), x, log)
    return b.back(made, made.index.reshape(moved.shape).transpose(inverse), x, x.axis)


@operator
def Softmax_(b: Builder, x: Tensor, *, axis: int = -1) -> Tensor:
    return _softmax(b, x, axis, False, "Softmax")


@operator
def LogSoftmax(b: Builder, x: Tensor, *, axis: int = -1) -> Tensor:
    return _softmax(b, x, axis, True, "LogSoftmax")


OPERATORS["Softmax"] = OPERATORS.pop("Softmax_")


# Normalisations


def _normalized(
    b: Builder,
    x: Tensor,
    groups: int,
    scale: np.ndarray | None,
    shift: np.ndarray | None,
    epsilon: float,
    centred: bool,
) -> Tensor:
    """x normalised over consecutive elements, groups of equal size; scale and shift broadcast to x."""
    b.check_float(x)
    shape = (groups, x.size // groups)
    weights = [
        broadcast(constant(np.asarray(w, np.float64)), x.shape).reshaped(shape).plain()
        for w in (np.ones(()) if scale is None else scale, np.zeros(()) if shift is None else shift)
    ]
    operand = b.reach(x, shape)
    made = b.result(Normalize, [operand, *weights], shape, x, epsilon, centred)
    return b.back(made, made.index.reshape(x.shape), x, x.axis)


def _by_channel(b: Builder, x: Tensor, value: Value | None) -> np.ndarray | None:
    if value is None:
        return None
    return b.numbers_of(value, "normalisation with weights").reshape(-1, *(1,) * (len(x.shape) - 2))


@operator
def LayerNormalization(
    b: Builder,
    x: Tensor,
    scale: Value | None = None,
    shift: Value | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    axis %= len(x.shape)
    _not_batch(b, x, range(axis, len(x.shape)), "LayerNormalization")
    weights = [None if w is None else b.numbers_of(w, "LayerNormalization with weights") for w in (scale, shift)]
    return _normalized(b, x, prod(x.shape[:axis]), weights[0], weights[1], epsilon, True)


@operator
def RMSNormalization(
    b: Builder, x: Tensor, scale: Value, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    axis %= len(x.shape)
    _not_batch(b, x, range(axis, len(x.shape)), "RMSNormalization")
    return _normalized(b, x, prod(x.shape[:axis]), b.numbers_of(scale, "RMSNormalization"), None, epsilon, False)


@operator
def GroupNormalization(
    b: Builder, x: Tensor, scale: Value, shift: Value, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    _not_batch(b, x, range(1, len(x.shape)), "GroupNormalization")
    weights = [_by_channel(b, x, w) for w in (scale, shift)]
    return _normalized(b, x, x.shape[0] * num_groups, weights[0], weights[1], epsilon, True)


@operator
def InstanceNormalization(b: Builder, x: Tensor, scale: Value, shift: Value, *, epsilon: float = 1e-5) -> Tensor:
    _not_batch(b, x, range(1, len(x.shape)), "InstanceNormalization")
    weights = [_by_channel(b, x, w) for w in (scale, shift)]
    return _normalized(b, x, prod(x.shape[:2]), weights[0], weights[1], epsilon, True)


# Convolutions and pools


def _image(b: Builder, x: Tensor, what: str) -> Tensor:
    """One sample [channels, *spatial] of x [batch, channels, *spatial]."""
    b.check_float(x)
    if x.axis not in (0, None) or x.shape[0] != 1:
        raise b.refuse(f"{what} whose batch is not the first axis")
    return x.reshaped(x.shape[1:])


def _convolved(
    b: Builder,
    x: Tensor,
    like: Tensor,
    weight: np.ndarray,
    bias: np.ndarray,
    strides: Ints,
    dilations: Ints,
    groups: int,
) -> Tensor:
    operand = x if x.access() is not None else b.stored(x)
    spatial = tuple(
        (size - (k - 1) * d - 1) // s + 1
        for size, k, d, s in zip(x.shape[1:], weight.shape[2:], dilations, strides, strict=True)
    )
    if min(spatial) < 1:
        raise InvalidModelError(f"the kernel {weight.shape[2:]} is larger than the image {x.shape[1:]}{b.where()}")
    # Vectors of channels are worth it if they are not nearly empty; otherwise neighbours along the last axis.
    last = groups == 1 and len(weight) >= 8
    shape = (*spatial, len(weight)) if last else (len(weight), *spatial)
    made = b.result(Conv, [operand], shape, like, weight, bias, strides, dilations, groups, last)
    return b.back(made, (np.moveaxis(made.index, -1, 0) if last else made.index)[None], like, like.axis)


@operator
def Conv_(
    b: Builder,
    x: Tensor,
    w: Value,
    bias: Value | None = None,
    *,
    kernel_shape: Ints | None = None,
    strides: Ints | None = None,
    pads: Ints | None = None,
    dilations: Ints | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:
    weight = b.numbers_of(w, "Conv with weights").astype(np.float64)
    offsets = np.zeros(len(weight)) if bias is None else b.numbers_of(bias, "Conv with a bias").astype(np.float64)
    image = _image(b, x, "Conv")
    if len(image.shape) != weight.ndim - 1 or image.shape[0] != weight.shape[1] * group or len(weight) % group:
        raise InvalidModelError(
            f"weights {weight.shape} in {group} groups do not fit an input with the sizes {image.shape}{b.where()}"
        )
    window = Window.of(image.shape[1:], weight.shape[2:], strides, pads, dilations, auto_pad)
    grown = padded(b, image, [(0, 0), *window.pads], 0.0)
    return _convolved(b, grown, x, weight, offsets, tuple(window.strides), tuple(window.dilations), group)


OPERATORS["Conv"] = OPERATORS.pop("Conv_")


@operator
def ConvTranspose(
    b: Builder,
    x: Tensor,
    w: Value,
    bias: Value | None = None,
    *,
    kernel_shape: Ints | None = None,
    strides: Ints | None = None,
    pads: Ints | None = None,
    dilations: Ints | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
    output_padding: Ints | None = None,
    output_shape: Ints | None = None,
) -> Tensor:
    """A convolution of the input with zeros between its elements, by the mirrored kernel."""
    weight = b.numbers_of(w, "ConvTranspose with weights").astype(np.float64)
    if auto_pad != "NOTSET" or output_shape is not None:
        raise b.refuse("ConvTranspose with auto_pad or output_shape")
    n = weight.ndim - 2
    dilations = tuple(dilations or (1,) * n)
    grown = spread_out(b, x, weight.shape[2:], strides, pads, dilations, output_padding)
    kernel = mirrored(weight, group)
    offsets = (
        np.zeros(len(kernel)) if bias is None else b.numbers_of(bias, "ConvTranspose with a bias").astype(np.float64)
    )
    return _convolved(b, grown, x, kernel, offsets, (1,) * n, dilations, group)


def spread_out(
    b: Builder, x: Tensor, kernel: Sequence[int], strides: Ints | None, pads: Ints | None, dilations: Ints,
    output_padding: Ints | None,
) -> Tensor:  # fmt: skip
    """The image that a transposed convolution convolves: zeros between x's elements and around them."""
    n = len(kernel)
    strides, cut, more = tuple(strides or (1,) * n), tuple(pads or (0,) * 2 * n), tuple(output_padding or (0,) * n)
    image = _image(b, x, "ConvTranspose")
    spread_shape = [(d - 1) * s + 1 for d, s in zip(image.shape[1:], strides, strict=True)]
    spread = np.full((image.shape[0], *spread_shape), -1, np.int64)
    spread[(slice(None), *(slice(None, None, s) for s in strides))] = image.index
    if np.any(image.index < 0) and image.fill != 0:
        image = b.stored(image)
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    widths = [(r - cut[i], r - cut[i + n] + more[i]) for i, r in enumerate(reach)]
    return padded(b, Tensor(image.source, spread, image.dtype, None), [(0, 0), *widths], 0.0)


def mirrored(weight: np.ndarray, group: int) -> np.ndarray:
    """A kernel [in, out / groups, *sizes] of a transposed convolution as that of a plain one [out, in / groups, …]."""
    channels = weight.shape[0] // group
    parts = weight.reshape(group, channels, *weight.shape[1:])
    turned = np.flip(parts, tuple(range(3, parts.ndim))).swapaxes(1, 2)
    return turned.reshape(group * weight.shape[1], channels, *weight.shape[2:])


def _pooled(b: Builder, x: Tensor, kind: str, window: Window, counts: np.ndarray | None) -> Tensor:
    image = _image(b, x, f"{kind} pool")
    grown = padded(b, image, [(0, 0), *window.pads], -np.inf if kind == "max" else 0.0)
    operand = grown if grown.access() is not None else b.stored(grown)
    access = operand.access()
    last = access is not None and access.strides[0] == 1 and len(window.sizes) > 0
    shape = (*window.sizes, image.shape[0]) if last else (image.shape[0], *window.sizes)
    geometry = tuple(window.kernel), tuple(window.strides), tuple(window.dilations)
    made = b.result(Pool, [operand], shape, x, kind, *geometry, counts, last)
    return b.back(made, (np.moveaxis(made.index, -1, 0) if last else made.index)[None], x, x.axis)


@operator
def MaxPool(
    b: Builder,
    x: Tensor,
    *,
    kernel_shape: Ints,
    strides: Ints | None = None,
    pads: Ints | None = None,
    dilations: Ints | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    storage_order: int = 0,
) -> Tensor:
    window = Window.of(x.shape[2:], tuple(kernel_shape), strides, pads, dilations, auto_pad, ceil_mode)
    return _pooled(b, x, "max", window, None)


@operator
def AveragePool(
    b: Builder,
    x: Tensor,
    *,
    kernel_shape: Ints,
    strides: Ints | None = None,
    pads: Ints | None = None,
    dilations: Ints | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> Tensor:
    window = Window.of(x.shape[2:], tuple(kernel_shape), strides, pads, dilations, auto_pad, ceil_mode)
    return _pooled(b, x, "mean", window, window.counts(bool(count_include_pad)).astype(np.float64))
