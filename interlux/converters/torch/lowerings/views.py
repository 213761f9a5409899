"""How a write through a view reaches its base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ....ir.errors import UnsupportedError
from ....ir.trees import is_float
from ...builder import Value
from ..builder import MAX_INT64, Size, TorchBuilder
from ..complex import each_part
from .shapes import flat_diagonal, moved_axes, split_axis
from .sizes import inverse, positions, to_front, transposed

# (op, base, written, sizes of the base, *arguments of the view) -> the new base

ViewWrite = Callable[..., Value]
VIEW_WRITES: dict[str, ViewWrite] = {}


def _back(*names: str) -> Callable[[ViewWrite], ViewWrite]:
    def enter(function: ViewWrite) -> ViewWrite:
        VIEW_WRITES.update({(n if "." in n else f"{n}.default"): function for n in names})
        return function

    return enter


@_back("view", "reshape", "flatten.using_ints", "unflatten.int", "unsqueeze", "squeeze", "squeeze.dim", "squeeze.dims")
@_back("view_as", "reshape_as", "_unsafe_view", "ravel", "atleast_1d", "atleast_2d", "atleast_3d")
def _reshape_back(op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size], *rest: Any) -> Value:
    return op.reshape(written, sizes)


@_back("alias", "contiguous", "to.dtype", "to.device", "lift_fresh", "real")
def _same_back(
    op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size], *rest: Any, **options: Any
) -> Value:
    return written


def estimated(op: TorchBuilder, value: Any, estimate: Any) -> Any:
    """A value with the derivative of another."""
    return each_part(lambda v, e: op.StraightThrough(v, e) if is_float(v.dtype) else v, value, estimate)


@_back("detach")
def _detach_back(op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size]) -> Value:
    """Autograd does not see such a write."""
    return estimated(op, written, base)


def _reordered(op: TorchBuilder, written: Value, perm: Sequence[int]) -> Value:
    return transposed(op, written, inverse(perm))


@_back("transpose.int", "swapaxes", "swapdims")
def _transpose_back(op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size], a: int, b: int) -> Value:
    order = list(range(len(sizes)))
    order[a], order[b] = order[b], order[a]
    return _reordered(op, written, order)


@_back("t", "mT")
def _matrix_back(op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size]) -> Value:
    return written if len(sizes) < 2 else _transpose_back(op, base, written, sizes, -2, -1)


@_back("numpy_T")
def _reversed_back(op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size]) -> Value:
    return _reordered(op, written, list(reversed(range(len(sizes)))))


@_back("permute")
def _permute_back(op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size], order: Sequence[int]) -> Value:
    return _reordered(op, written, [op.axis(a, len(order)) for a in order])


@_back("movedim.int", "movedim.intlist", "moveaxis.int", "moveaxis.intlist")
def _movedim_back(
    op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size], source: Any, destination: Any
) -> Value:
    return _reordered(op, written, moved_axes(source, destination, len(sizes)))


@_back("expand", "expand_as", "broadcast_to")
def _expand_back(
    op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size], *rest: Any, **options: Any
) -> Value:
    shape, wanted = written.shape or (), op.shape(sizes)
    extra = len(shape) - len(wanted)
    if shape[extra:] != wanted or any(s != 1 for s in shape[:extra]):  # as torch does
        raise UnsupportedError(f"a write through a tensor that is expanded{op.where()}; clone it first")
    return op.reshape(written, sizes)


# --- parts along an axis


def _put_rows(op: TorchBuilder, base: Value, rows: Value, written: Value, axis: int, rank: int) -> Value:
    """base with some rows of an axis replaced, by their positions (int64, a vector)."""
    perm = to_front([axis], rank)
    updates = transposed(op, written, perm)
    return _reordered(op, op.ScatterND(transposed(op, base, perm), op.Unsqueeze(rows, op.ints(1)), updates), perm)


@_back("select.int")
def _select_back(op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size], axis: int, index: Size) -> Value:
    axis = op.axis(axis, len(sizes))
    row = op.Unsqueeze(written, op.ints(axis))
    if not isinstance(index, int):
        return _put_rows(op, base, op.size(index), row, axis, len(sizes))
    if index < 0:
        index = index + sizes[axis]
    return _replace(op, base, row, sizes, axis, index, index + 1)


@_back("slice.Tensor")
def _slice_back(
    op: TorchBuilder,
    base: Value,
    written: Value,
    sizes: Sequence[Size],
    axis: int = 0,
    start: Size | None = None,
    end: Size | None = None,
    step: int = 1,
) -> Value:
    axis = op.axis(axis, len(sizes))
    size = sizes[axis]

    def position(p: Size | None, absent: Size) -> Size:
        if p is None or (isinstance(p, int) and p == MAX_INT64):
            return absent
        if isinstance(p, int) and p < 0:
            return torch.sym_max(size + p, 0)
        return min(p, size) if isinstance(p, int) and isinstance(size, int) else p

    first = position(start, 0)
    if step != 1:
        begin = op.size(first)
        if not isinstance(first, int):  # torch takes negative ones from the end
            begin = op.Where(op.Less(begin, op.ints(0)), op.Add(begin, op.size(size)), begin)
        count = op.Squeeze(op.Shape(written, start=axis, end=axis + 1), op.ints(0))
        rows = op.Mul(op.Range(op.value(0), count, op.value(1)), op.ints(step))
        return _put_rows(op, base, op.Add(rows, begin), written, axis, len(sizes))
    last = position(end, size)
    if isinstance(first, int) and isinstance(last, int):
        last = max(first, last)
    return _replace(op, base, written, sizes, axis, first, last)


@_back("narrow")
def _narrow_back(
    op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size], axis: int, start: Size, length: Size
) -> Value:
    axis = op.axis(axis, len(sizes))
    if isinstance(start, int) and start < 0:
        start = start + sizes[axis]
    return _replace(op, base, written, sizes, axis, start, start + length)


@_back("narrow.Tensor")
def _narrow_from_back(
    op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size], axis: int, start: Value, length: Size
) -> Value:
    rows = op.Add(op.Reshape(op.cast(start, np.int64), op.ints(1)), positions(op, length))
    return _put_rows(op, base, rows, written, op.axis(axis, len(sizes)), len(sizes))


@_back("diagonal")
def _diagonal_back(
    op: TorchBuilder,
    base: Value,
    written: Value,
    sizes: Sequence[Size],
    offset: int = 0,
    dim1: int = 0,
    dim2: int = 1,
) -> Value:
    rank = len(sizes)
    height, width = sizes[op.axis(dim1, rank)], sizes[op.axis(dim2, rank)]
    count = torch.sym_min(height, width - offset) if offset >= 0 else torch.sym_min(height + offset, width)
    perm, flat, where = flat_diagonal(op, sizes, offset, dim1, dim2, count)
    rows = transposed(op, base, perm)
    written = _put_rows(op, op.reshape(rows, flat), where, written, len(flat) - 1, len(flat))
    return _reordered(op, op.reshape(written, [sizes[a] for a in perm]), perm)


def _replace(
    op: TorchBuilder, base: Value, part: Value, sizes: Sequence[Size], axis: int, start: Size, end: Size
) -> Value:
    """base with the rows start..end of an axis replaced."""
    parts = [part]
    if not (isinstance(start, int) and start == 0):
        parts.insert(0, op.Slice(base, op.ints(0), op.size(start), op.ints(axis)))
    if not (end is sizes[axis] or (isinstance(end, int) and isinstance(sizes[axis], int) and end >= sizes[axis])):
        parts.append(op.Slice(base, op.size(end), op.ints(MAX_INT64), op.ints(axis)))
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=axis)


# --- parts of a split: (op, base, written, sizes of the base, number of the part, sizes of all parts, *arguments of the
# split) -> the new base

PART_WRITES: dict[str, ViewWrite] = {}


def _split_back(
    op: TorchBuilder,
    operator: str,
    base: Value,
    written: Value,
    sizes: Sequence[Size],
    part: int,
    shapes: Sequence[Sequence[Size]],
    sections: Any,
    axis: int = 0,
) -> Value:
    axis = split_axis(operator, axis, len(sizes))
    start = sum((shape[axis] for shape in shapes[:part]), 0)
    end = sizes[axis] if part == len(shapes) - 1 else start + shapes[part][axis]
    return _replace(op, base, written, sizes, axis, start, end)


def _unbind_back(
    op: TorchBuilder,
    operator: str,
    base: Value,
    written: Value,
    sizes: Sequence[Size],
    part: int,
    shapes: Sequence[Sequence[Size]],
    axis: int = 0,
) -> Value:
    return _select_back(op, base, written, sizes, axis, part)


PART_WRITES["unbind.int"] = _unbind_back
for _names in (
    ("split.Tensor", "split.default", "split.sizes", "split_with_sizes.default", "chunk.default"),
    ("tensor_split.sections", "tensor_split.indices", "hsplit.int", "hsplit.array"),
    ("vsplit.int", "vsplit.array", "dsplit.int", "dsplit.array"),
):
    PART_WRITES.update(dict.fromkeys(_names, _split_back))

# May be views or copies, by strides or dtype
MAYBE_VIEWS = frozenset(
    {"reshape.default", "reshape_as.default", "flatten.using_ints", "contiguous.default", "ravel.default"}
    | {"to.dtype", "to.device", "to.dtype_layout", "to.other", "type_as.default"}
)
# Give back their argument itself where they have nothing to change
PASSING = frozenset(
    {"contiguous.default", "to.dtype", "to.device", "to.dtype_layout", "to.other", "type_as.default"}
    | {"real.default", "conj.default", "resolve_conj.default", "resolve_neg.default"}
)
# Share memory with their base, but a write through them cannot be followed
_UNFOLLOWED = frozenset(
    {"unfold.default", "as_strided.default", "view.dtype", "linalg_diagonal.default"}
    | {"mH.default", "adjoint.default", "matrix_H.default"}
)
# Views of several bases, each result of one
EACH_A_VIEW = frozenset(
    {"broadcast_tensors.default", "meshgrid.default", "meshgrid.indexing"}
    | {f"atleast_{n}d.Sequence" for n in (1, 2, 3)}
)
VIEWS = frozenset(VIEW_WRITES) | frozenset(PART_WRITES) | MAYBE_VIEWS | _UNFOLLOWED
