"""Operators on numbers that are known while a program is built: shapes, axes, weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...ir.dtypes import from_onnx


class Sizes(np.ndarray):
    """Numbers computed from the size of the batch, with `tensors.BATCH` in its place: good as shapes, not as data."""


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
    "Trilu": lambda x, k=0, upper=1: np.triu(x, int(k)) if upper else np.tril(x, int(k)),
    "CumSum": lambda x, axis, exclusive=0, reverse=0: _cumsum(x, int(axis), exclusive, reverse),
}


def _cumsum(x: Any, axis: int, exclusive: int, reverse: int) -> Any:
    x = np.flip(x, axis) if reverse else x
    y = np.cumsum(x, axis, dtype=x.dtype)
    y = y - x if exclusive else y
    return np.flip(y, axis) if reverse else y


def fold(op_type: str, inputs: list[Any], attributes: dict[str, Any]) -> Any:
    """The result on arrays (a tuple of several), None if the operator is not known here."""
    function = FOLDED.get(op_type)
    if function is None:
        return None
    from_batch = any(isinstance(i, Sizes) for i in inputs)
    with np.errstate(all="ignore"):
        result = function(*(None if i is None else np.asarray(i) for i in inputs), **attributes)
    if isinstance(result, tuple):
        return tuple(_array(r, from_batch) for r in result)
    return _array(result, from_batch)


def _array(result: Any, from_batch: bool) -> np.ndarray:
    array = np.asarray(result)
    return array.view(Sizes) if from_batch and array.dtype.kind != "b" else array
