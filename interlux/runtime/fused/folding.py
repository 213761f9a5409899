"""Operators on numbers that are known while a program is built: shapes, axes, weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir.dtypes import from_onnx
from ...ir.errors import UnsupportedError
from .tensors import BATCH


@dataclass(frozen=True, eq=False)
class Sizes:
    """Numbers of which some are computed from the size of the batch: good as shapes, not as data.

    Arguments:
        numbers: any shape, with `tensors.BATCH` in place of the size of the batch.
        of_batch: bool of the same shape: which are computed from it.
    """

    numbers: np.ndarray
    of_batch: np.ndarray

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.numbers.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape

    def multiples(self) -> np.ndarray:
        """Which numbers are the size of the batch or a multiple of it: what may stand in a shape."""
        return self.of_batch & (self.numbers % BATCH == 0) & (self.numbers >= BATCH)


def _divide(a: Any, b: Any) -> Any:
    return np.trunc(a / b).astype(a.dtype) if a.dtype.kind in "iu" else a / b


def _slice(x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    return x[slices(x.shape, starts, ends, axes, steps)]


def slices(shape: tuple[int, ...], starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> tuple[slice, ...]:
    """ONNX Slice as Python slices."""
    count = len(starts)
    axes = range(count) if axes is None else [int(a) % len(shape) for a in axes]
    steps = [1] * count if steps is None else [int(s) for s in steps]
    found = [slice(None)] * len(shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size, begin, stop = shape[axis], int(start), int(end)
        begin += size if begin < 0 else 0
        stop += size if stop < 0 else 0
        if step > 0:
            found[axis] = slice(min(max(begin, 0), size), min(max(stop, 0), size), step)
        else:
            last = min(max(stop, -1), size - 1)
            found[axis] = slice(min(max(begin, 0), size - 1), None if last < 0 else last, step)
    return tuple(found)


def unsqueezed(shape: tuple[int, ...], axes: Any) -> tuple[int, ...]:
    rank = len(shape) + len(axes)
    places = {int(a) % rank for a in axes}
    rest = iter(shape)
    return tuple(1 if i in places else next(rest) for i in range(rank))


def _reshape(x: Any, shape: Any, allowzero: int = 0) -> Any:
    return x.reshape([x.shape[i] if s == 0 and not allowzero else int(s) for i, s in enumerate(shape)])


def _clip(x: Any, low: Any = None, high: Any = None) -> Any:
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _split(x: Any, split: Any = None, axis: int = 0, num_outputs: int | None = None) -> tuple[Any, ...]:
    if split is None:
        part = -(-x.shape[axis] // (num_outputs or 1))
        return tuple(np.split(x, range(part, x.shape[axis], part), axis))
    return tuple(np.split(x, np.cumsum(split)[:-1], axis))


def _reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    def reduce(x: Any, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
        if axes is None and noop_with_empty_axes:
            return x
        return function(x, axis=None if axes is None else tuple(int(a) for a in axes), keepdims=bool(keepdims))

    return reduce


def _softmax(x: Any, axis: int = -1) -> Any:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


FOLDED: Mapping[str, Callable[..., Any]] = {
    "Identity": lambda x: x,
    "StopGradient": lambda x: x,
    "StopRowGradient": lambda table, row: table,
    "Transpose": lambda x, perm=None: np.transpose(x, perm),
    "Reshape": _reshape,
    "Flatten": lambda x, axis=1: x.reshape(int(np.prod(x.shape[: axis % (x.ndim + 1)])), -1),
    "Concat": lambda *xs, axis: np.concatenate(xs, axis),
    "Unsqueeze": lambda x, axes: x.reshape(unsqueezed(x.shape, axes)),
    "Squeeze": lambda x, axes=None: np.squeeze(x, None if axes is None else tuple(int(a) for a in axes)),
    "Gather": lambda x, indices, axis=0: np.take(x, indices, axis),
    "Slice": _slice,
    "Split": _split,
    "Expand": lambda x, shape: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(s) for s in shape))),
    "Shape": lambda x, start=0, end=None: np.array(x.shape[start:end], np.int64),
    "Size": lambda x: np.array(x.size, np.int64),
    "Range": lambda start, limit, delta: np.arange(start, limit, delta, dtype=np.asarray(start).dtype),
    "ConstantOfShape": lambda shape, value=None: np.full(
        [int(s) for s in shape],
        0 if value is None else np.asarray(value).item(),
        np.float32 if value is None else np.asarray(value).dtype,
    ),
    "Cast": lambda x, to, saturate=1, round_mode="up": x.astype(from_onnx(to)),
    "Tile": lambda x, repeats: np.tile(x, [int(r) for r in repeats]),
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _divide,
    "Mod": lambda a, b, fmod=0: np.fmod(a, b) if fmod else np.mod(a, b),
    "Pow": lambda a, b: np.power(a, b).astype(a.dtype),
    "Neg": np.negative,
    "Abs": np.abs,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Exp": np.exp,
    "Log": np.log,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": np.round,
    "Sin": np.sin,
    "Cos": np.cos,
    "Tanh": np.tanh,
    "Sigmoid": lambda x: (1 / (1 + np.exp(-x))).astype(x.dtype),
    "Relu": lambda x: np.maximum(x, 0),
    "Softmax": _softmax,
    "Min": lambda *xs: np.minimum.reduce(np.broadcast_arrays(*xs)),
    "Max": lambda *xs: np.maximum.reduce(np.broadcast_arrays(*xs)),
    "Clip": _clip,
    "Where": np.where,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Not": np.logical_not,
    "MatMul": np.matmul,
    "ReduceSum": _reduction(np.sum),
    "ReduceProd": _reduction(np.prod),
    "ReduceMean": _reduction(np.mean),
    "ReduceMax": _reduction(np.max),
    "ReduceMin": _reduction(np.min),
    "ReduceL2": _reduction(lambda x, axis, keepdims: np.sqrt(np.sum(np.square(x), axis=axis, keepdims=keepdims))),
    "Trilu": lambda x, k=0, upper=1: np.triu(x, int(k)) if upper else np.tril(x, int(k)),
    "CumSum": lambda x, axis, exclusive=0, reverse=0: _cumsum(x, int(axis), exclusive, reverse),
}


def _cumsum(x: Any, axis: int, exclusive: int, reverse: int) -> Any:
    x = np.flip(x, axis) if reverse else x
    y = np.cumsum(x, axis, dtype=x.dtype)
    y = y - x if exclusive else y
    return np.flip(y, axis) if reverse else y


# what sizes of the batch go through: operators that move elements of their first input (Concat: of all), that compute
# each element from those in its place, that compare, and that combine several elements
_MOVING = frozenset(
    [
        "Identity",
        "Transpose",
        "Reshape",
        "Flatten",
        "Concat",
        "Unsqueeze",
        "Squeeze",
        "Gather",
        "Slice",
        "Split",
        "Expand",
    ]
)
_ELEMENTWISE = frozenset(["Add", "Sub", "Mul", "Div", "Mod", "Neg", "Cast"])
_COMPARING = frozenset(["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"])
_COMBINING = frozenset(["ReduceSum", "ReduceProd"])


def fold(op_type: str, inputs: list[Any], attributes: dict[str, Any]) -> Any:
    """The result on arrays and sizes (a tuple of several), None if the operator is not known here.

    Raises UnsupportedError where the result would depend on the batch in another way than a size does.
    """
    function = FOLDED.get(op_type)
    if function is None:
        return None
    if any(isinstance(i, Sizes) for i in inputs):
        return _folded_sizes(op_type, function, inputs, attributes)
    with np.errstate(all="ignore"):
        result = function(*(None if i is None else np.asarray(i) for i in inputs), **attributes)
    return tuple(map(np.asarray, result)) if isinstance(result, tuple) else np.asarray(result)


def _folded_sizes(op_type: str, function: Callable[..., Any], inputs: list[Any], attributes: dict[str, Any]) -> Any:
    numbers: list[Any] = [i.numbers if isinstance(i, Sizes) else i if i is None else np.asarray(i) for i in inputs]
    marks = [i.of_batch if isinstance(i, Sizes) else np.zeros(np.shape(i), bool) for i in inputs if i is not None]
    if op_type in ("Shape", "Size"):
        return np.asarray(function(*numbers, **attributes))
    moved = len(inputs) if op_type == "Concat" else 1
    if op_type in _MOVING and not any(isinstance(i, Sizes) for i in inputs[moved:]):
        made, marked = (function(*a[:moved], *numbers[moved:], **attributes) for a in (numbers, marks))
        pairs = zip(made, marked, strict=True) if isinstance(made, tuple) else [(made, marked)]
        results = tuple(_sizes(*pair) for pair in pairs)
        return results if isinstance(made, tuple) else results[0]
    if op_type in _ELEMENTWISE:
        with np.errstate(all="ignore"):
            made = np.asarray(function(*numbers, **attributes))
        return _sizes(made, np.logical_or.reduce(np.broadcast_arrays(*marks)))
    if op_type in _COMPARING and _are_decided(inputs):
        return np.asarray(function(*numbers))
    if op_type == "Where" and not isinstance(inputs[0], Sizes):
        condition, *values = numbers
        return _sizes(np.where(condition, *values), np.where(condition, *marks[1:]))
    if op_type in _COMBINING:
        combine = _reduction(np.any)
        return _sizes(function(*numbers, **attributes), combine(marks[0], *numbers[1:], **attributes))
    raise UnsupportedError(f"the fused engine has no {op_type} of numbers computed from the size of the batch")


def _sizes(numbers: Any, of_batch: Any) -> np.ndarray | Sizes:
    numbers, of_batch = np.asarray(numbers), np.asarray(of_batch)
    return Sizes(numbers, of_batch) if of_batch.any() else numbers


def _are_decided(pair: list[Any]) -> bool:
    """Whether a comparison is the same for every batch: sizes stand beside numbers that are not positive only."""
    for one, other in (pair, pair[::-1]):
        if isinstance(one, Sizes):
            if isinstance(other, Sizes) or np.any(one.of_batch & ~one.multiples()):
                return False
            if np.any(one.of_batch & (np.asarray(other) > 0)):
                return False
    return True
