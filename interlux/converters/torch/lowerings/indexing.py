"""Reading by tensors of positions or masks, and writing to what they choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ....ir.errors import UnsupportedError
from ...builder import Value
from ..builder import Size, TorchBuilder
from .registry import aten
from .sizes import (
    at_least_1d,
    common_sizes,
    either,
    expanded,
    inverse,
    is_mask,
    is_one,
    positions,
    same_sizes,
    sizes_of,
    to_front,
    transposed,
)

# --- along one axis


@aten("gather")
def gather(op: TorchBuilder, x: Value, axis: int, index: Value, *, sparse_grad: bool = False) -> Value:
    found = op.GatherElements(at_least_1d(op, x), at_least_1d(op, index), axis=op.axis(axis, max(op.rank_of(x), 1)))
    return op.reshape(found, op.result.shape) if op.rank_of(index) == 0 else found


@aten("index_select")
def index_select(op: TorchBuilder, x: Value, axis: int, index: Value) -> Value:
    axis = op.axis(axis, max(op.rank_of(x), 1))
    found = op.Gather(at_least_1d(op, x), at_least_1d(op, index), axis=axis)
    return op.reshape(found, op.result.shape) if op.rank_of(x) == 0 else found


@aten("take")
def take(op: TorchBuilder, x: Value, index: Value) -> Value:
    return op.Gather(op.Reshape(x, op.ints(-1)), index, axis=0)


@aten("take_along_dim")
def take_along_dim(op: TorchBuilder, x: Value, index: Value, axis: int | None = None) -> Value:
    if axis is None:
        flat = op.Reshape(x, op.ints(-1)), op.Reshape(index, op.ints(-1))
        return op.GatherElements(*flat, axis=0)
    axis = op.axis(axis, op.result.dim())
    wanted = list(op.result.shape)
    parts = []
    for value, position in ((x, 0), (index, 1)):
        have = sizes_of(op, position)
        sizes = [have[axis] if i == axis else size for i, size in enumerate(wanted)]
        parts.append(expanded(op, value, have, sizes))
    return op.GatherElements(*parts, axis=axis)


# --- by several tensors


@dataclass
class _Choice:
    """What index tensors choose.

    Arguments:
        axes: of x that are indexed, ascending.
        columns: positions along each of them, int64, all of one shape.
        rank: of that shape.
        matrix: the columns side by side, [*shape, axes].
    """

    axes: list[int]
    columns: list[Value]
    rank: int
    matrix: Value

    @property
    def place(self) -> int:
        """How many of the other axes come first: adjacent axes are replaced where they are, others move to the
        front."""
        adjacent = self.axes == list(range(self.axes[0], self.axes[0] + len(self.axes)))
        return self.axes[0] if adjacent else 0


def _index_nodes(op: TorchBuilder) -> Sequence[Any]:
    return op.fx_node.args[1]  # type: ignore[return-value]


def _choice(op: TorchBuilder, indices: Sequence[Value | None]) -> _Choice:
    axes: list[int] = []
    columns: list[Value] = []
    ranks: list[int] = []
    shapes: set[Any] = set()
    axis = 0
    matrix = None
    for node, index in zip(_index_nodes(op), indices, strict=True):
        if index is None:
            axis += 1
            continue
        sizes = sizes_of(op, node)
        if is_mask(index):
            if not sizes:
                raise UnsupportedError(f"indexing by a mask without axes{op.where()}; write torch.where")
            found = op.NonZero(op.cast(index, bool))
            matrix = op.Transpose(found, perm=(1, 0))
            columns += [op.Gather(found, op.value(i), axis=0) for i in range(len(sizes))]
            axes += range(axis, axis + len(sizes))
            axis += len(sizes)
            ranks.append(1)
            shapes.add(("mask", len(shapes)))
        else:
            columns.append(op.cast(index, np.int64))
            axes.append(axis)
            axis += 1
            ranks.append(len(sizes))
            shapes.add(op.shape(sizes))
    rank = max(ranks)
    if len(ranks) == 1 and matrix is not None:
        return _Choice(axes, columns, rank, matrix)
    if len(shapes) > 1:
        total = columns[0]
        for column in columns[1:]:
            total = op.Add(total, column)
        common = op.Shape(total)
        columns = [op.Expand(column, common) for column in columns]
    matrix = op.Concat(*(op.Unsqueeze(column, op.ints(rank)) for column in columns), axis=rank)
    return _Choice(axes, columns, rank, matrix)


@aten("index.Tensor", "_unsafe_index.Tensor")
def index(op: TorchBuilder, x: Value, indices: Sequence[Value | None]) -> Value:
    used = [(axis, i) for axis, i in enumerate(indices) if i is not None]
    if not used:
        return op.Identity(x)
    if len(used) == 1 and not is_mask(used[0][1]):
        ((axis, only),) = used
        return op.Gather(x, only if only.dtype == np.int32 else op.cast(only, np.int64), axis=axis)
    if len(used) == 1 and op.rank_of(used[0][1]) == 1:
        ((axis, only),) = used
        found = op.Compress(x, op.cast(only, bool), axis=axis)
    else:
        chosen = _choice(op, indices)
        rank = op.rank_of(x)
        found = op.GatherND(transposed(op, x, to_front(chosen.axes, rank)), chosen.matrix)
        found = transposed(op, found, _in_place_order(chosen, rank))
    op.bind_symbols(found, op.result.shape)
    return found


def _in_place_order(chosen: _Choice, rank: int) -> list[int]:
    """The permutation from (shape of the index, other axes) to torch's order."""
    others = range(chosen.rank, chosen.rank + rank - len(chosen.axes))
    return [*others[: chosen.place], *range(chosen.rank), *others[chosen.place :]]


@aten("index_put", "_unsafe_index_put")
def index_put(
    op: TorchBuilder, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False
) -> Value:
    values = op.cast(values, x.dtype)
    sizes = sizes_of(op, 0)
    used = [(axis, i) for axis, i in enumerate(indices) if i is not None]
    if not used:
        have = op.Expand(values, op.sizes(sizes))
        return _sum(op, x, have) if accumulate else have
    if len(used) == 1 and is_mask(used[0][1]) and op.rank_of(used[0][1]):
        ((axis, mask),) = used
        return _put_where(op, x, axis, op.cast(mask, bool), values, accumulate)
    chosen = _choice(op, indices)
    rank = len(sizes)
    others = [s for a, s in enumerate(sizes) if a not in chosen.axes]
    shape = [
        op.sizes(part) if isinstance(part, list) else part
        for part in (others[: chosen.place], op.Shape(chosen.columns[0]), others[chosen.place :])
        if part != []
    ]
    values = op.Expand(values, shape[0] if len(shape) == 1 else op.Concat(*shape, axis=0))
    order = _in_place_order(chosen, rank)
    updates = transposed(op, values, inverse(order))
    perm = to_front(chosen.axes, rank)
    written = scatter_rows(op, transposed(op, x, perm), chosen.matrix, updates, "add" if accumulate else "none")
    return transposed(op, written, inverse(perm))


def scatter_rows(op: TorchBuilder, x: Value, matrix: Value, updates: Value, reduction: str = "none") -> Value:
    """x with rows replaced, or reduced with others. Narrow types are summed in wider ones."""
    if reduction == "none":
        return op.ScatterND(x, matrix, updates)
    wide = summing_dtype(x.dtype)
    return op.cast(op.ScatterND(op.cast(x, wide), matrix, op.cast(updates, wide), reduction=reduction), x.dtype)


def summing_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """In which scattered elements of a dtype meet: half precision in float32, so that the order means little."""
    if dtype.kind in "iub":
        return np.dtype(np.int32) if dtype.itemsize < 4 else dtype
    return np.dtype(np.float32) if dtype.itemsize < 4 else dtype


def _sum(op: TorchBuilder, a: Value, b: Value) -> Value:
    return op.Or(a, b) if a.dtype == bool else op.Add(a, b)


def _put_where(op: TorchBuilder, x: Value, axis: int, mask: Value, values: Value, accumulate: bool) -> Value:
    """x with values where a mask, which lies on some adjacent axes, is true: without a size that depends on data."""
    sizes, given = sizes_of(op, 0), sizes_of(op, 2)
    hit = sizes_of(op, _index_nodes(op)[axis])
    behind = len(sizes) - axis - len(hit)
    if len(given) > behind:  # one row of values for each true element, or one for all
        along = len(given) - behind - 1
        shape = [*given[:along], *((1,) * len(hit) if is_one(given[along]) else hit), *given[along + 1 :]]
        if not is_one(given[along]):
            values = _dealt(op, mask, values, along)
        if not same_sizes(op, shape, given):
            values = op.reshape(values, shape)
    if behind:
        mask = op.Unsqueeze(mask, op.ints(*range(len(hit), len(hit) + behind)))
    return either(op, mask, _sum(op, x, values) if accumulate else values, x)


def _dealt(op: TorchBuilder, mask: Value, values: Value, axis: int) -> Value:
    """The values along an axis dealt out to the true elements of the flat mask, in order; anything to the others."""
    taken = op.cast(op.Reshape(mask, op.ints(-1)), np.int64)
    number = op.Mul(op.Sub(op.CumSum(taken, op.value(0)), op.const(1, like=taken)), taken)
    # one more row, so that there is one if none is taken
    row = [op.ints(1), op.Shape(values, start=axis + 1)]
    if axis:
        row.insert(0, op.Shape(values, start=0, end=axis))
    values = op.Concat(values, op.Expand(op.const(0, like=values), op.Concat(*row, axis=0)), axis=axis)
    return op.Gather(values, number, axis=axis)


# --- by masks


@aten("masked_select")
def masked_select(op: TorchBuilder, x: Value, mask: Value) -> Value:
    given, hit = sizes_of(op, 0), sizes_of(op, 1)
    whole = common_sizes(given, hit)
    x, mask = expanded(op, x, given, whole), expanded(op, mask, hit, whole)
    found = op.Compress(op.Reshape(x, op.ints(-1)), op.Reshape(op.cast(mask, bool), op.ints(-1)), axis=0)
    op.bind_symbols(found, op.result.shape)
    return found


@aten("masked_scatter")
def masked_scatter(op: TorchBuilder, x: Value, mask: Value, source: Value) -> Value:
    wanted = list(op.result.shape)
    mask = expanded(op, op.cast(mask, bool), sizes_of(op, 1), wanted)
    values = _dealt(op, mask, op.Reshape(op.cast(source, x.dtype), op.ints(-1)), 0)
    return either(op, mask, op.reshape(values, wanted), expanded(op, x, sizes_of(op, 0), wanted))


# --- positions of what is not zero


def _nonzero(op: TorchBuilder, x: Value) -> Value:
    if op.rank_of(x) == 0:
        raise UnsupportedError(f"nonzero of a tensor without axes{op.where()}; reshape it to one element first")
    return op.NonZero(op.cast(x, bool))


@aten("nonzero", "argwhere")
def nonzero(op: TorchBuilder, x: Value) -> Value:
    found = op.Transpose(_nonzero(op, x), perm=(1, 0))
    op.bind_symbols(found, op.result.shape)
    return found


@aten("nonzero_numpy", "where")
def nonzero_by_axis(op: TorchBuilder, x: Value) -> tuple[Value, ...]:
    found = _nonzero(op, x)
    rows = tuple(op.Gather(found, op.value(i), axis=0) for i in range(op.rank_of(x)))
    op.bind_symbols(rows[0], op.result[0].shape)
    return rows


@aten("nonzero_static")
def nonzero_static(op: TorchBuilder, x: Value, *, size: Size, fill_value: int = -1) -> Value:
    found = op.Transpose(_nonzero(op, x), perm=(1, 0))
    fill = op.Expand(op.value(fill_value, np.int64), op.sizes(op.result.shape))
    return op.Slice(op.Concat(found, fill, axis=0), op.ints(0), op.size(size), op.ints(0))


# --- one-hot


@aten("one_hot")
def one_hot(op: TorchBuilder, x: Value, classes: int = -1) -> Value:
    x = op.cast(x, np.int64)
    if isinstance(op.result.shape[-1], torch.SymInt) and not isinstance(classes, torch.SymInt) and classes == -1:
        count = op.Add(op.ReduceMax(x, keepdims=0), op.value(1))
        numbers = op.Range(op.value(0), count, op.value(1))
    else:
        numbers = positions(op, op.result.shape[-1])
    found = op.cast(op.Equal(op.Unsqueeze(x, op.ints(op.rank_of(x))), numbers), np.int64)
    op.bind_symbols(found, op.result.shape)
    return found
