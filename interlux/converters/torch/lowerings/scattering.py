"""Elements and rows written to computed positions, or reduced with what lies there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ....ir.trees import is_float
from ...builder import Value
from ..builder import TorchBuilder
from .indexing import scatter_rows, summing_dtype
from .registry import aten
from .sizes import at_least_1d, highest, inverse, lowest, positions, product, sizes_of, to_front, transposed
from .views import VIEW_WRITES

# (x, source, reduction of ONNX) -> x with the source written to the positions
Scatter = Callable[[Value, Value, str], Value]
_KINDS = {"sum": "add", "add": "add", "mean": "add", "prod": "mul", "multiply": "mul", "amax": "max", "amin": "min"}


def _reduced(op: TorchBuilder, x: Value, source: Value, reduce: str, include_self: bool, scatter: Scatter) -> Value:
    """x with the source reduced into it, computed in a dtype wide enough."""
    kind, dtype = _KINDS[reduce], x.dtype
    wide = summing_dtype(dtype)
    x, source = op.cast(x, wide), op.cast(source, wide)

    def filled(number: Any, like: Value) -> Value:
        return op.Expand(op.const(number, like=like), op.Shape(like))

    if not include_self:  # what is hit starts from the neutral element
        neutral = {"add": 0, "mul": 1, "max": lowest(wide), "min": highest(wide)}[kind]
        x = scatter(x, filled(neutral, source), "none")
    total = scatter(x, source, kind)
    if kind in ("max", "min") and is_float(wide):  # onnxruntime passes over NaN
        own, new = (op.cast(op.IsNaN(v), np.int32) for v in (x, source))
        lost = scatter(own, new, "max")
        total = op.Where(op.Greater(lost, op.const(0, like=lost)), op.const(np.nan, like=total), total)
    if reduce == "mean":
        counts = scatter(filled(int(include_self), x), filled(1, source), "add")
        counts = op.Max(counts, op.const(1, like=x))
        total = op.Div(total, counts) if is_float(wide) else op.Div(op.Sub(total, op.Mod(total, counts)), counts)
    return op.cast(total, dtype)


# --- elements: an index for each


def _elements(op: TorchBuilder, axis: int, index: Value) -> Scatter:
    def scatter(x: Value, source: Value, reduction: str) -> Value:
        return op.ScatterElements(x, index, source, axis=axis, reduction=reduction)

    return scatter


def _scattered(
    op: TorchBuilder, x: Value, axis: int, index: Value, source: Any, reduce: str | None, include_self: bool = True
) -> Value:
    rank = op.rank_of(x)
    axis = op.axis(axis, max(rank, 1))
    given, index_rank = index.shape, max(op.rank_of(index), 1)
    x, index = at_least_1d(op, x), at_least_1d(op, index)
    if not isinstance(source, Value):
        source = op.Expand(op.value(source, x.dtype), op.Shape(index))
    else:
        same = source.shape is not None and source.shape == given
        source = at_least_1d(op, source)
        if not same:  # of a larger source only the part is read that the index covers
            axes = op.ints(*range(index_rank))
            source = op.Slice(source, op.ints(*(0,) * index_rank), op.Shape(index), axes)
    scatter = _elements(op, axis, index)
    if reduce is None:
        y = scatter(x, op.cast(source, x.dtype), "none")
    else:
        y = _reduced(op, x, source, reduce, include_self, scatter)
    return op.reshape(y, []) if rank == 0 else y


@aten("scatter.src", "scatter.value", "scatter.reduce", "scatter.value_reduce")
def scatter(op: TorchBuilder, x: Value, axis: int, index: Value, source: Any, *, reduce: str | None = None) -> Value:
    return _scattered(op, x, axis, index, source, reduce)


@aten("scatter_add")
def scatter_add(op: TorchBuilder, x: Value, axis: int, index: Value, source: Value) -> Value:
    return _scattered(op, x, axis, index, source, "sum")


@aten("scatter_reduce.two")
def scatter_reduce(
    op: TorchBuilder, x: Value, axis: int, index: Value, source: Value, reduce: str, *, include_self: bool = True
) -> Value:
    return _scattered(op, x, axis, index, source, reduce, include_self)


# --- rows: an index for each slice along an axis


def _rows(op: TorchBuilder, axis: int, rank: int, index: Value) -> Scatter:
    matrix = op.Unsqueeze(op.cast(at_least_1d(op, index), np.int64), op.ints(1))
    perm = to_front([axis], rank)

    def scatter(x: Value, source: Value, reduction: str) -> Value:
        written = op.ScatterND(transposed(op, x, perm), matrix, transposed(op, source, perm), reduction=reduction)
        return transposed(op, written, inverse(perm))

    return scatter


def _by_rows(
    op: TorchBuilder,
    x: Value,
    axis: int,
    index: Value,
    source: Value,
    reduce: str | None,
    include_self: bool = True,
) -> Value:
    """x with the source, [.., number of indices, ..], written or reduced into the slices that an index names."""
    rank = op.rank_of(x)
    axis = op.axis(axis, max(rank, 1))
    x = at_least_1d(op, x)
    scatter = _rows(op, axis, max(rank, 1), index)
    source = op.cast(source, x.dtype)
    y = scatter(x, source, "none") if reduce is None else _reduced(op, x, source, reduce, include_self, scatter)
    return op.reshape(y, []) if rank == 0 else y


def _slices(op: TorchBuilder, axis: int, source: Value) -> Value:
    """A source of index_add and its like; without the axis it is one slice."""
    rank = max(len(sizes_of(op, 0)), 1)
    return source if op.rank_of(source) == rank else op.Unsqueeze(source, op.ints(op.axis(axis, rank)))


@aten("index_add")
def index_add(op: TorchBuilder, x: Value, axis: int, index: Value, source: Value, *, alpha: Any = 1) -> Value:
    source = _slices(op, axis, source)
    if not (isinstance(alpha, int) and alpha == 1):
        source = op.Mul(op.cast(source, x.dtype), op.value(alpha, x.dtype))
    return _by_rows(op, x, axis, index, source, "sum")


@aten("index_copy")
def index_copy(op: TorchBuilder, x: Value, axis: int, index: Value, source: Value) -> Value:
    return _by_rows(op, x, axis, index, _slices(op, axis, source), None)


@aten("index_reduce")
def index_reduce(
    op: TorchBuilder, x: Value, axis: int, index: Value, source: Value, reduce: str, *, include_self: bool = True
) -> Value:
    return _by_rows(op, x, axis, index, _slices(op, axis, source), reduce, include_self)


@aten("index_fill.int_Scalar", "index_fill.int_Tensor")
def index_fill(op: TorchBuilder, x: Value, axis: int, index: Value, value: Any) -> Value:
    sizes = sizes_of(op, 0) or [1]
    axis = op.axis(axis, len(sizes))
    given = sizes_of(op, 2)
    rows = [*sizes[:axis], given[0] if given else 1, *sizes[axis + 1 :]]
    return _by_rows(op, x, axis, index, op.Expand(op.value(value, x.dtype), op.sizes(rows)), None)


@aten("put")
def put(op: TorchBuilder, x: Value, index: Value, source: Value, accumulate: bool = False) -> Value:
    flat = [op.Reshape(value, op.ints(-1)) for value in (x, index, op.cast(source, x.dtype))]
    matrix = op.Unsqueeze(op.cast(flat[1], np.int64), op.ints(1))
    return op.reshape(scatter_rows(op, flat[0], matrix, flat[2], "add" if accumulate else "none"), op.result.shape)


# --- the functions that write what a view would


def _as_view(view: str, operation: str) -> None:
    def lowering(op: TorchBuilder, x: Value, source: Value, *arguments: Any) -> Value:
        return VIEW_WRITES[view](op, x, op.cast(source, x.dtype), sizes_of(op, 0), *arguments)

    aten(operation)(lowering)


for _view, _operation in (
    ("select.int", "select_scatter"),
    ("slice.Tensor", "slice_scatter"),
    ("diagonal.default", "diagonal_scatter"),
):
    _as_view(_view, _operation)


@aten("fill_diagonal")
def fill_diagonal(op: TorchBuilder, x: Value, value: Any, wrap: bool = False) -> Value:
    sizes = sizes_of(op, 0)
    step, count = sum((product(sizes[i + 1 :]) for i in range(len(sizes))), 0), sizes[0]
    if len(sizes) == 2:  # below a square of a tall matrix the diagonal starts again if it wraps
        count = (product(sizes) + step - 1) // step if wrap else torch.sym_min(*sizes)
    flat = op.Reshape(x, op.ints(-1))
    matrix = op.Unsqueeze(positions(op, count, step), op.ints(1))
    updates = op.Expand(op.value(value, x.dtype), op.sizes([count]))
    return op.reshape(op.ScatterND(flat, matrix, updates), sizes)
