"""Sorting, choosing by order, and counting."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ....ir.errors import UnsupportedError
from ....ir.trees import is_float
from ...builder import Value
from ..arrays import dtype_of
from ..builder import MAX_INT64, Size, TorchBuilder
from .registry import aten
from .sizes import along_one_axis, at_least_1d, is_one, ordered_dtype, positions, sizes_of

# --- sorting


def _ordered(op: TorchBuilder, x: Value, k: Size, axis: int, descending: bool) -> tuple[Value, Value]:
    """The first k elements in order and their positions; of equals the first comes first, as in a stable sort."""
    rank = op.rank_of(x)
    axis = op.axis(axis, max(rank, 1))
    x = at_least_1d(op, x)
    kind = x.dtype
    if is_float(kind):
        where = _float_order(op, x, k, axis, descending)
        values = op.GatherElements(x, where, axis=axis)
    else:
        wide = op.cast(x, ordered_dtype(kind))
        values, where = op.TopK(wide, op.size(k), axis=axis, largest=int(descending), sorted=1, outputs=2)
        values = op.cast(values, kind)
    return (op.Squeeze(values, op.ints(0)), op.Squeeze(where, op.ints(0))) if rank == 0 else (values, where)


def _float_order(op: TorchBuilder, x: Value, k: Size, axis: int, descending: bool) -> Value:
    """The positions of the first k floats in order, NaN above infinity. TopK of onnxruntime has no place for NaN, so
    that it sorts keys: wider numbers, among which one lies above infinity's key."""
    largest = int(descending)
    if x.dtype.itemsize == 8:  # no wider type: by number, then by being none
        lost = op.IsNaN(x)
        plain = op.Where(lost, op.const(np.inf, like=x), x)
        size = op.Shape(x, start=axis, end=axis + 1)
        first = op.TopK(plain, size, axis=axis, largest=largest, sorted=1, outputs=2)[1]
        flags = op.GatherElements(op.cast(lost, np.int32), first, axis=axis)
        second = op.TopK(flags, op.size(k), axis=axis, largest=largest, sorted=1, outputs=2)[1]
        return op.GatherElements(first, second, axis=axis)
    wide, top = (np.float64, 1e300) if x.dtype.itemsize == 4 else (np.float32, 1e38)
    numbers = op.cast(x, wide)
    key = op.Clip(numbers, op.const(-top, like=numbers), op.const(top, like=numbers))
    key = op.Where(op.IsNaN(numbers), op.const(2 * top, like=numbers), key)
    return op.TopK(key, op.size(k), axis=axis, largest=largest, sorted=1, outputs=2)[1]


def _size_along(op: TorchBuilder, axis: int) -> Size:
    sizes = sizes_of(op, 0) or [1]
    return sizes[axis]


@aten("sort", "sort.stable")
def sort(
    op: TorchBuilder, x: Value, dim: int = -1, descending: bool = False, *, stable: bool | None = None
) -> tuple[Value, Value]:
    return _ordered(op, x, _size_along(op, dim), dim, descending)


@aten("argsort", "argsort.stable")
def argsort(op: TorchBuilder, x: Value, dim: int = -1, descending: bool = False, *, stable: bool = False) -> Value:
    return _ordered(op, x, _size_along(op, dim), dim, descending)[1]


@aten("msort")
def msort(op: TorchBuilder, x: Value) -> Value:
    return _ordered(op, x, _size_along(op, 0), 0, False)[0]


@aten("topk")
def topk(
    op: TorchBuilder, x: Value, k: Size, axis: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Value, Value]:
    return _ordered(op, x, k, axis, largest)  # an order is as good as none


@aten("kthvalue")
def kthvalue(op: TorchBuilder, x: Value, k: Size, axis: int = -1, keepdim: bool = False) -> tuple[Value, Value]:
    if op.rank_of(x) == 0:
        return _ordered(op, x, 1, axis, False)
    last = op.Sub(op.size(k), op.ints(1)) if keepdim else op.value(k - 1, np.int64)
    axis = op.axis(axis, op.rank_of(x))
    values, where = _ordered(op, x, k, axis, False)
    return op.Gather(values, last, axis=axis), op.Gather(where, last, axis=axis)


# --- what occurs


def _described_by_result(op: TorchBuilder, values: Value, inverse: Value, counts: Value) -> tuple[Value, ...]:
    """What torch returns: the inverse and counts are empty where they were not asked for."""
    op.bind_symbols(values, op.result[0].shape)
    empty = op.const(np.zeros(0, np.int64))
    known = [r.dim() == 1 and isinstance(r.shape[0], int) and r.shape[0] == 0 for r in op.result]
    inverse = empty if known[1] else op.reshape(inverse, op.result[1].shape)
    return values, inverse, empty if known[2] else counts


@aten("_unique2")
def unique(
    op: TorchBuilder, x: Value, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False
) -> tuple[Value, ...]:
    wide = op.cast(op.Reshape(x, op.ints(-1)), _unique_dtype(x.dtype))
    values, _, inverse, counts = op.Unique(wide, sorted=1, outputs=4)
    return _described_by_result(op, op.cast(values, x.dtype), inverse, counts)


@aten("unique_dim")
def unique_dim(
    op: TorchBuilder,
    x: Value,
    axis: int,
    sorted: bool = True,
    return_inverse: bool = False,
    return_counts: bool = False,
) -> tuple[Value, ...]:
    wide = op.cast(x, _unique_dtype(x.dtype))
    axis = op.axis(axis, op.rank_of(x))
    values, _, inverse, counts = op.Unique(wide, sorted=1, axis=axis, outputs=4)
    return _described_by_result(op, op.cast(values, x.dtype), inverse, counts)


def _unique_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return ordered_dtype(dtype) if is_float(dtype) else np.dtype(np.int64)


@aten("unique_consecutive")
def unique_consecutive(
    op: TorchBuilder, x: Value, return_inverse: bool = False, return_counts: bool = False, axis: int | None = None
) -> tuple[Value, ...]:
    if axis is None:
        x, axis = op.Reshape(x, op.ints(-1)), 0
        rank = 1
    else:
        rank = op.rank_of(x)
        axis = op.axis(axis, rank)
    wide = op.cast(x, ordered_dtype(x.dtype))
    before = op.Slice(wide, op.ints(0), op.ints(-1), op.ints(axis))
    after = op.Slice(wide, op.ints(1), op.ints(MAX_INT64), op.ints(axis))
    differs = op.cast(op.Not(op.Equal(before, after)), np.int32)
    others = [a for a in range(rank) if a != axis]
    if others:
        differs = op.ReduceMax(differs, op.ints(*others), keepdims=0)
    # the first element is new, if there is one
    first = op.Slice(op.Expand(op.const(np.array([1], np.int32)), op.Shape(x, start=axis, end=axis + 1)), *_one(op))
    new = op.Concat(first, differs, axis=0)
    values = op.Compress(x, op.cast(new, bool), axis=axis)
    numbers = op.Sub(op.CumSum(op.cast(new, np.int64), op.value(0)), op.const(np.array(1, np.int64)))
    starts = op.Squeeze(op.NonZero(op.cast(new, bool)), op.ints(0))
    ends = op.Concat(op.Slice(starts, op.ints(1), op.ints(MAX_INT64)), op.Shape(numbers), axis=0)
    return _described_by_result(op, values, numbers, op.Sub(ends, starts))


def _one(op: TorchBuilder) -> tuple[Value, Value]:
    return op.ints(0), op.ints(1)


# --- places in an order


def _places(op: TorchBuilder, borders: Value, x: Value, right: bool, apart: bool) -> Value:
    """How many borders lie below each x (or at it, if `right`); of a NaN all.

    Arguments:
        borders: [..., n], ascending along the last axis.
        x: any shape; if `apart`, [..., m] with the borders' leading axes.
    """
    last = op.rank_of(x)
    x = op.Unsqueeze(x, op.ints(last))
    if apart:
        borders = op.Unsqueeze(borders, op.ints(last - 1))
    beyond = op.Greater(borders, x) if right else op.GreaterOrEqual(borders, x)
    below = op.cast(op.Not(beyond), np.int64)
    return op.cast(op.ReduceSum(below, op.ints(last), keepdims=0), op.result_dtype)


def _given(op: TorchBuilder, position: int) -> Any:
    """An argument as torch describes it: a tensor without data, or a number."""
    argument = op.fx_node.args[position]
    return argument.meta["val"] if isinstance(argument, torch.fx.Node) else argument


def _meet(op: TorchBuilder, a: Value, x: Any, dtypes: tuple[Any, Any]) -> tuple[Value, Value]:
    common = ordered_dtype(dtype_of(torch.result_type(*dtypes)))
    return op.cast(a, common), op.value(x, common)


@aten("searchsorted.Tensor", "searchsorted.Scalar")
def searchsorted(
    op: TorchBuilder,
    borders: Value,
    x: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Value | None = None,
) -> Value:
    rank = op.rank_of(borders)
    if sorter is not None:
        borders = op.GatherElements(borders, sorter, axis=rank - 1)
    borders, x = _meet(op, borders, x, (_given(op, 0), _given(op, 1)))
    return _places(op, borders, x, right or side == "right", rank > 1)


@aten("bucketize.Tensor", "bucketize.Scalar")
def bucketize(op: TorchBuilder, x: Any, borders: Value, *, out_int32: bool = False, right: bool = False) -> Value:
    borders, x = _meet(op, borders, x, (_given(op, 1), _given(op, 0)))
    return _places(op, borders, x, right, False)


# --- counting


@aten("bincount")
def bincount(op: TorchBuilder, x: Value, weights: Value | None = None, minlength: Size = 0) -> Value:
    x = op.cast(x, np.int64)
    least = op.Sub(op.size(minlength), op.ints(1))
    size = op.Add(op.ReduceMax(op.Concat(x, least, axis=0), op.ints(0), keepdims=1), op.ints(1))
    zero = op.const(np.zeros((), op.result_dtype))
    ones = op.const(np.ones((), op.result_dtype))
    updates = op.Expand(ones, op.Shape(x)) if weights is None else op.cast(weights, op.result_dtype)
    found = op.ScatterElements(op.Expand(zero, size), x, updates, axis=0, reduction="add")
    op.bind_symbols(found, op.result.shape)
    return found


@aten("histc")
def histc(op: TorchBuilder, x: Value, bins: int = 100, low: Any = 0, high: Any = 0) -> Value:
    if not is_float(x.dtype):
        raise UnsupportedError(f"histc of {x.dtype}{op.where()}; convert it to a float first")
    wide = ordered_dtype(x.dtype)
    x = op.cast(op.Reshape(x, op.ints(-1)), wide)
    if low == high:  # the data's own range; of one value, a range around it
        first, last = op.ReduceMin(x, keepdims=0), op.ReduceMax(x, keepdims=0)
        if low != 0 or high != 0:
            first = last = op.value(float(low), wide)
        single, one = op.Equal(first, last), op.const(1, like=x)
        first, last = (
            op.Where(single, op.Sub(first, one), first),
            op.Where(single, op.Add(last, one), last),
        )
    else:
        first, last = op.value(float(low), wide), op.value(float(high), wide)
    inside = op.And(op.GreaterOrEqual(x, first), op.LessOrEqual(x, last))
    place = op.Div(op.Mul(op.Sub(x, first), op.const(bins, like=x)), op.Sub(last, first))
    number = op.cast(op.Where(inside, place, op.const(0, like=x)), np.int64)  # truncated
    number = op.Min(number, op.const(np.array(bins - 1, np.int64)))  # the upper end belongs to the last
    zeros = op.const(np.zeros(bins, wide))
    return op.cast(op.ScatterElements(zeros, number, op.cast(inside, wide), axis=0, reduction="add"), op.result_dtype)


# --- repeated as often as a tensor says


def repeated_positions(op: TorchBuilder, repeats: Value, count: Size | None) -> Value:
    """The position of each repeat, repeats[i] times i.

    Arguments:
        repeats: [n].
        count: their sum, None where the data says it.
    """
    repeats = op.cast(repeats, np.int64)
    ends = op.CumSum(repeats, op.value(0))
    if count is None:
        total = op.ReduceSum(repeats, op.ints(0), keepdims=0)
        numbers = op.Range(op.value(0), total, op.value(1))
    else:
        numbers = positions(op, count)
    passed = op.LessOrEqual(op.Unsqueeze(ends, op.ints(0)), op.Unsqueeze(numbers, op.ints(1)))
    return op.ReduceSum(op.cast(passed, np.int64), op.ints(1), keepdims=0)


@aten("repeat_interleave.Tensor")
def repeat_interleave_positions(op: TorchBuilder, repeats: Value, *, output_size: Size | None = None) -> Value:
    found = repeated_positions(op, repeats, output_size)
    op.bind_symbols(found, op.result.shape)
    return found


@aten("repeat_interleave.self_Tensor")
def repeat_interleave_rows(
    op: TorchBuilder, x: Value, repeats: Value, axis: int | None = None, *, output_size: Size | None = None
) -> Value:
    x, axis, sizes = along_one_axis(op, x, axis)
    if all(is_one(s) for s in sizes_of(op, 1)):  # one number for all
        repeats = op.Expand(repeats, op.size(sizes[axis]))
    size = op.result.shape[axis]
    count = size if isinstance(size, int) else output_size
    found = op.Gather(x, repeated_positions(op, repeats, count), axis=axis)
    op.bind_symbols(found, op.result.shape)
    return found
