"""Views and other rearrangements. How a write through a view reaches its base is in `views`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ....ir import dtypes
from ....ir.errors import UnsupportedError
from ...builder import Value
from ..builder import MAX_INT64, Size, TorchBuilder
from .registry import aten
from .sizes import (
    along_one_axis,
    expanded,
    inverse,
    is_one,
    ordered_dtype,
    positions,
    product,
    same_sizes,
    sizes_of,
    static,
    transposed,
)

# --- the same elements in another shape


@aten("view", "reshape", "flatten.using_ints", "unflatten.int", "_unsafe_view", "view_as", "reshape_as", "ravel")
@aten("atleast_1d", "atleast_2d", "atleast_3d")
def view(op: TorchBuilder, x: Value, *rest: Any) -> Value:
    same = op.shape(op.result.shape) == x.shape
    return op.Identity(x) if same else op.reshape(x, list(op.result.shape))


@aten("atleast_1d.Sequence", "atleast_2d.Sequence", "atleast_3d.Sequence")
def view_each(op: TorchBuilder, tensors: Sequence[Value]) -> tuple[Value, ...]:
    return tuple(op.reshape(x, list(r.shape)) for x, r in zip(tensors, op.result, strict=True))


@aten("view.dtype")
def view_as_dtype(op: TorchBuilder, x: Value, dtype: torch.dtype) -> Value:
    wanted = op.result_dtype
    if wanted == x.dtype:
        return op.Identity(x)
    if wanted.itemsize != x.dtype.itemsize or bool in (wanted, x.dtype):
        raise UnsupportedError(f"{x.dtype} read as {wanted}, of another size or bool{op.where()}")
    return op.BitCast(x, to=dtypes.to_onnx(wanted))


@aten("unsqueeze")
def unsqueeze(op: TorchBuilder, x: Value, axis: int) -> Value:
    return op.Unsqueeze(x, op.ints(op.axis(axis, op.rank_of(x) + 1)))


@aten("squeeze", "squeeze.dim", "squeeze.dims")
def squeeze(op: TorchBuilder, x: Value, axes: int | Sequence[int] | None = None) -> Value:
    rank = op.rank_of(x)
    wanted = range(rank) if axes is None else [axes] if isinstance(axes, int) else axes
    removed = [a for a in (op.axis(a, rank) for a in wanted) if x.shape is not None and x.shape[a] == 1]
    for axis in (op.axis(a, rank) for a in wanted):
        size = sizes_of(op, 0)[axis]
        if isinstance(size, torch.SymInt):  # kept, and removed where it is 1
            op.not_one.update({str(s): f"squeeze{op.where()}" for s in [size.node.expr] if s.is_Symbol})
    return op.Squeeze(x, op.ints(*removed)) if removed else op.Identity(x)


@aten("permute")
def permute(op: TorchBuilder, x: Value, order: Sequence[int]) -> Value:
    return op.Transpose(x, perm=tuple(op.axis(a, len(order)) for a in order))


@aten("transpose.int", "swapaxes", "swapdims")
def transpose(op: TorchBuilder, x: Value, a: int, b: int) -> Value:
    order = list(range(op.rank_of(x)))
    order[a], order[b] = order[b], order[a]
    return op.Transpose(x, perm=tuple(order))


@aten("t", "mT", "mH", "adjoint", "matrix_H")
def matrix_transpose(op: TorchBuilder, x: Value) -> Value:
    return transpose(op, x, -2, -1) if op.rank_of(x) >= 2 else op.Identity(x)


@aten("numpy_T")
def reversed_axes(op: TorchBuilder, x: Value) -> Value:
    return op.Transpose(x, perm=tuple(reversed(range(op.rank_of(x)))))


def moved_axes(source: int | Sequence[int], destination: int | Sequence[int], rank: int) -> list[int]:
    """The permutation of movedim."""
    sources, places = ([a] if isinstance(a, int) else list(a) for a in (source, destination))
    sources, places = ([a % rank for a in axes] for axes in (sources, places))
    rest = iter(a for a in range(rank) if a not in sources)
    return [sources[places.index(i)] if i in places else next(rest) for i in range(rank)]


@aten("movedim.int", "movedim.intlist", "moveaxis.int", "moveaxis.intlist")
def movedim(op: TorchBuilder, x: Value, source: int | Sequence[int], destination: int | Sequence[int]) -> Value:
    return op.Transpose(x, perm=tuple(moved_axes(source, destination, op.rank_of(x))))


@aten("rot90")
def rot90(op: TorchBuilder, x: Value, k: int = 1, axes: Sequence[int] = (0, 1)) -> Value:
    first, second = axes
    turned = {0: (), 1: (second,), 2: (first, second), 3: (first,)}[k % 4]
    x = _flipped(op, x, op.result.dim(), turned)
    if k % 2 == 0:
        return x
    order = list(range(op.result.dim()))
    order[first], order[second] = order[second], order[first]
    return op.Transpose(x, perm=tuple(order))


@aten("expand", "expand_as", "broadcast_to")
def expand(op: TorchBuilder, x: Value, *rest: Any, **options: Any) -> Value:
    wanted = list(op.result.shape)
    have = (1,) * (len(wanted) - op.rank_of(x)) + (x.shape or ())
    sizes: list[Size] = [1 if h == op.shape([w])[0] else w for h, w in zip(have, wanted, strict=True)]
    if len(wanted) == op.rank_of(x) and all(isinstance(s, int) and s == 1 for s in sizes):
        return op.Identity(x)
    return op.Expand(x, op.sizes(sizes))


@aten("slice.Tensor")
def slice_(
    op: TorchBuilder, x: Value, axis: int = 0, start: Size | None = None, end: Size | None = None, step: int = 1
) -> Value:
    start, end = 0 if start is None else start, MAX_INT64 if end is None else end
    if op.shape(op.result.shape) == x.shape and step == 1:  # all of it
        return op.Identity(x)
    return op.Slice(x, op.size(start), op.size(end), op.ints(op.axis(axis, op.rank_of(x))), op.ints(step))


@aten("narrow.Tensor")
def narrow_from(op: TorchBuilder, x: Value, axis: int, start: Value, length: Size) -> Value:
    rows = op.Add(op.Reshape(op.cast(start, np.int64), op.ints(1)), positions(op, length))
    return op.Gather(x, rows, axis=op.axis(axis, op.rank_of(x)))


@aten("narrow", "narrow_copy")
def narrow(op: TorchBuilder, x: Value, axis: int, start: Size, length: Size) -> Value:
    return slice_(op, x, axis, start, start + length)


@aten("select.int")
def select(op: TorchBuilder, x: Value, axis: int, index: Size) -> Value:
    return op.Gather(x, op.value(index), axis=op.axis(axis, op.rank_of(x)))


@aten("cat", "concat", "concatenate")
def cat(op: TorchBuilder, tensors: Sequence[Value], axis: int = 0) -> Value:
    # torch takes an empty vector as a neutral element, whatever the rank of the others
    kept = [op.cast(x, op.result_dtype) for x in tensors if x.shape != (0,) or op.result.dim() == 1]
    return op.Concat(*kept, axis=op.axis(axis, op.result.dim()))


@aten("stack")
def stack(op: TorchBuilder, tensors: Sequence[Value], axis: int = 0) -> Value:
    axis = op.axis(axis, op.result.dim())
    return op.Concat(*(op.Unsqueeze(op.cast(x, op.result_dtype), op.ints(axis)) for x in tensors), axis=axis)


def _joined(rank: int, axis: Callable[[int], int]) -> Callable[..., Value]:
    """torch's stacks of tensors that are brought to a rank first."""

    def lowering(op: TorchBuilder, tensors: Sequence[Value]) -> Value:
        nodes: Any = op.fx_node.args[0]
        raised = []
        for x, node in zip(tensors, nodes, strict=True):
            sizes = sizes_of(op, node)
            reshaped = _at_least(sizes, rank)
            raised.append(op.cast(x if len(reshaped) == len(sizes) else op.reshape(x, reshaped), op.result_dtype))
        return op.Concat(*raised, axis=axis(op.result.dim()))

    return lowering


def _at_least(sizes: Sequence[Size], rank: int) -> list[Size]:
    """Sizes with at least that many axes, as torch.atleast_*d adds them."""
    missing = max(rank - len(sizes), 0)
    if rank < 3 or missing == 0:
        return [*(1,) * missing, *sizes]
    return [*(() if len(sizes) == 2 else (1,)), *sizes, *(1,) * (missing - (len(sizes) < 2))]


aten("hstack")(_joined(1, lambda rank: 0 if rank == 1 else 1))
aten("vstack", "row_stack")(_joined(2, lambda rank: 0))
aten("dstack")(_joined(3, lambda rank: 2))


@aten("column_stack")
def column_stack(op: TorchBuilder, tensors: Sequence[Value]) -> Value:
    nodes: Any = op.fx_node.args[0]
    columns = []
    for x, node in zip(tensors, nodes, strict=True):
        sizes = sizes_of(op, node)
        x = op.cast(x, op.result_dtype)
        columns.append(op.reshape(x, [product(sizes), 1]) if len(sizes) < 2 else x)
    return op.Concat(*columns, axis=1)


@aten("block_diag")
def block_diag(op: TorchBuilder, tensors: Sequence[Value]) -> Value:
    nodes: Any = op.fx_node.args[0]
    shapes = [_at_least(sizes_of(op, node), 2) for node in nodes]
    zero = op.const(np.zeros((), op.result_dtype))
    rows = []
    for i, (x, (height, width)) in enumerate(zip(tensors, shapes, strict=True)):
        block = op.reshape(op.cast(x, op.result_dtype), [height, width])
        before, after = (sum((w for _, w in others), 0) for others in (shapes[:i], shapes[i + 1 :]))
        parts = [op.Expand(zero, op.sizes([height, before])), block, op.Expand(zero, op.sizes([height, after]))]
        rows.append(op.Concat(*parts, axis=1))
    return rows[0] if len(rows) == 1 else op.Concat(*rows, axis=0)


def split_axis(operator: str, axis: int, rank: int) -> int:
    """Along which axis an operator splits."""
    fixed = {"hsplit": 0 if rank == 1 else 1, "vsplit": 0, "dsplit": 2}
    return fixed.get(operator, axis + rank if axis < 0 else axis)


@aten("split.Tensor", "split_with_sizes", "split.sizes", "split", "chunk", "tensor_split.sections")
@aten("tensor_split.indices", "unsafe_split.Tensor", "unsafe_split_with_sizes", "unsafe_chunk")
@aten("hsplit.int", "hsplit.array", "vsplit.int", "vsplit.array", "dsplit.int", "dsplit.array")
def split(op: TorchBuilder, x: Value, parts: Any, axis: int = 0) -> tuple[Value, ...]:
    axis = split_axis(op.operator, axis, op.rank_of(x))
    lengths = [part.shape[axis] for part in op.result]
    made = op.Split(x, op.sizes(lengths), axis=axis, outputs=len(lengths))
    return made if isinstance(made, tuple) else (made,)


@aten("unbind.int")
def unbind(op: TorchBuilder, x: Value, axis: int = 0) -> tuple[Value, ...]:
    axis = op.axis(axis, op.rank_of(x))
    return tuple(op.Gather(x, op.value(i), axis=axis) for i in range(len(op.result)))


@aten("repeat")
def repeat(op: TorchBuilder, x: Value, repeats: Sequence[Size]) -> Value:
    missing = len(repeats) - op.rank_of(x)
    if missing:
        x = op.Unsqueeze(x, op.ints(*range(missing)))
    return op.Tile(x, op.sizes(repeats))


@aten("tile")
def tile(op: TorchBuilder, x: Value, repeats: Sequence[Size]) -> Value:
    return repeat(op, x, [*(1,) * (op.rank_of(x) - len(repeats)), *repeats])


@aten("repeat_interleave.self_int")
def repeat_interleave(
    op: TorchBuilder, x: Value, repeats: Size, axis: int | None = None, *, output_size: Size | None = None
) -> Value:
    x, axis, sizes = along_one_axis(op, x, axis)
    wanted = op.sizes([*(1,) * (axis + 1), repeats, *(1,) * (len(sizes) - axis - 1)])
    return op.reshape(op.Expand(op.Unsqueeze(x, op.ints(axis + 1)), wanted), op.result.shape)


@aten("flip", "flipud", "fliplr")
def flip(op: TorchBuilder, x: Value, axes: Sequence[int] | None = None) -> Value:
    by_name = {"flipud": (0,), "fliplr": (1,)}
    return _flipped(op, x, op.rank_of(x), by_name[op.operator] if axes is None else axes)


def _flipped(op: TorchBuilder, x: Value, rank: int, axes: Sequence[int]) -> Value:
    n = len(axes)
    if n == 0 or rank == 0:
        return op.Identity(x)
    where = op.ints(*(op.axis(a, rank) for a in axes))
    return op.Slice(x, op.ints(*(-1,) * n), op.ints(*(-MAX_INT64,) * n), where, op.ints(*(-1,) * n))


@aten("roll")
def roll(op: TorchBuilder, x: Value, shifts: Sequence[Size], axes: Sequence[int] = ()) -> Value:
    sizes = list(op.result.shape)
    if not sizes:
        return op.Identity(x)
    if not axes:
        flat = op.Reshape(x, op.ints(-1))
        return op.reshape(_rolled(op, flat, shifts[0], 0, product(sizes)), sizes)
    for shift, axis in zip(shifts, axes, strict=True):
        axis = op.axis(axis, len(sizes))
        x = _rolled(op, x, shift, axis, sizes[axis])
    return x


def _rolled(op: TorchBuilder, x: Value, shift: Size, axis: int, size: Size) -> Value:
    """The last `shift` rows of an axis moved to its front."""
    if isinstance(shift, int) and shift == 0:
        return op.Identity(x)
    if isinstance(shift, int) and isinstance(size, int):
        last = op.ints(size - shift % max(size, 1))
    else:
        whole = op.size(size)
        last = op.Sub(whole, op.Mod(op.size(shift), op.Max(whole, op.ints(1))))
    end = op.ints(MAX_INT64)
    return op.Concat(op.Slice(x, last, end, op.ints(axis)), op.Slice(x, op.ints(0), last, op.ints(axis)), axis=axis)


# --- diagonals and triangles


def flat_diagonal(
    op: TorchBuilder, sizes: Sequence[Size], offset: int, first: int, second: int, count: Size
) -> tuple[list[int], list[Size], Value]:
    """Where a diagonal lies: the permutation that brings its axes to the end, the sizes with both in one, and the
    positions in that one."""
    rank = len(sizes)
    first, second = op.axis(first, rank), op.axis(second, rank)
    others = [a for a in range(rank) if a not in (first, second)]
    columns = sizes[second]
    start = offset if offset >= 0 else -offset * columns
    flat = [*(sizes[a] for a in others), sizes[first] * columns]
    return [*others, first, second], flat, positions(op, count, columns + 1, start)


@aten("diagonal", "linalg_diagonal")
def diagonal(op: TorchBuilder, x: Value, offset: int = 0, dim1: int | None = None, dim2: int | None = None) -> Value:
    usual = (-2, -1) if op.operator == "linalg_diagonal" else (0, 1)
    dim1, dim2 = usual[0] if dim1 is None else dim1, usual[1] if dim2 is None else dim2
    return _diagonal(op, x, sizes_of(op, 0), offset, dim1, dim2, op.result.shape[-1])


def _diagonal(
    op: TorchBuilder, x: Value, sizes: Sequence[Size], offset: int, dim1: int, dim2: int, count: Size
) -> Value:
    perm, flat, where = flat_diagonal(op, sizes, offset, dim1, dim2, count)
    return op.Gather(op.reshape(transposed(op, x, perm), flat), where, axis=len(flat) - 1)


@aten("diag_embed")
def diag_embed(op: TorchBuilder, x: Value, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Value:
    """Rows of zeros, but for one element each."""
    sizes, dtype = list(op.result.shape), x.dtype
    rank = len(sizes)
    dim1, dim2 = op.axis(dim1, rank), op.axis(dim2, rank)
    if dtype.kind in "iub":
        x = op.cast(x, ordered_dtype(dtype))
    if offset:
        x = op.Pad(x, op.ints(*((0, offset) if offset > 0 else (-offset, 0))), None, op.ints(rank - 2))
        x = op.Slice(x, op.ints(0), op.ints(MAX_INT64), op.ints(rank - 2))
    numbers = positions(op, sizes[dim1])
    rows = op.Unsqueeze(numbers if offset == 0 else op.Add(numbers, op.value(offset, np.int64)), op.ints(1))
    on = op.Equal(rows, op.Unsqueeze(numbers, op.ints(0)))
    column = op.Unsqueeze(x, op.ints(rank - 1))
    square = op.cast(op.Where(on, column, op.const(0, like=x)), dtype)
    others = [a for a in range(rank) if a not in (dim1, dim2)]
    return transposed(op, square, inverse([*others, dim1, dim2]))


@aten("diag")
def diag(op: TorchBuilder, x: Value, offset: int = 0) -> Value:
    if op.rank_of(x) == 1:
        return diag_embed(op, x, offset)
    return _diagonal(op, x, sizes_of(op, 0), offset, 0, 1, op.result.shape[0])


@aten("tril", "triu")
def triangle(op: TorchBuilder, x: Value, diagonal: int = 0) -> Value:
    return op.Trilu(x, op.value(diagonal), upper=int("triu" in op.operator))


# --- windows and blocks


@aten("unfold")
def unfold(op: TorchBuilder, x: Value, axis: int, size: int, step: int) -> Value:
    rank = op.rank_of(x)
    if rank == 0:
        return op.Reshape(x, op.ints(1))
    axis = op.axis(axis, rank)
    starts = op.Unsqueeze(positions(op, op.result.shape[axis], step), op.ints(1))
    windows = op.Gather(x, op.Add(starts, op.Unsqueeze(positions(op, size), op.ints(0))), axis=axis)
    order = [a for a in range(rank + 1) if a != axis + 1]
    return transposed(op, windows, [*order, axis + 1])


@aten("as_strided")
def as_strided(
    op: TorchBuilder, x: Value, sizes: Sequence[Size], strides: Sequence[Size], offset: Size | None = None
) -> Value:
    given = op.fx_node.args[0].meta["val"]  # type: ignore[union-attr]
    have = list(given.shape)
    usual = [product(have[i + 1 :]) for i in range(len(have))]
    plain = all(is_one(n) or same_sizes(op, [a], [b]) for n, a, b in zip(have, given.stride(), usual, strict=True))
    if not plain or not same_sizes(op, [given.storage_offset()], [0]):
        raise UnsupportedError(f"as_strided of a tensor that is not contiguous{op.where()}; call contiguous() first")
    where = op.value(0 if offset is None else offset, np.int64)
    for i, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        steps = op.Reshape(positions(op, size, stride), op.ints(-1, *(1,) * (len(sizes) - 1 - i)))
        where = op.Add(where, steps)
    return op.Gather(op.Reshape(x, op.ints(-1)), where, axis=0)


@aten("pixel_shuffle")
def pixel_shuffle(op: TorchBuilder, x: Value, factor: int) -> Value:
    *batch, channels, height, width = sizes_of(op, 0)
    blocks = op.reshape(x, [*batch, channels // factor**2, factor, factor, height, width])
    n = len(batch)
    order = [*range(n), n, n + 3, n + 1, n + 4, n + 2]
    return op.reshape(op.Transpose(blocks, perm=tuple(order)), list(op.result.shape))


@aten("pixel_unshuffle")
def pixel_unshuffle(op: TorchBuilder, x: Value, factor: int) -> Value:
    *batch, channels, height, width = sizes_of(op, 0)
    blocks = op.reshape(x, [*batch, channels, height // factor, factor, width // factor, factor])
    n = len(batch)
    order = [*range(n), n, n + 2, n + 4, n + 1, n + 3]
    return op.reshape(op.Transpose(blocks, perm=tuple(order)), list(op.result.shape))


@aten("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(op: TorchBuilder, x: Value, groups: int) -> Value:
    batch, channels, *spatial = sizes_of(op, 0)
    parts = op.reshape(x, [batch, groups, channels // groups, product(spatial)])
    return op.reshape(op.Transpose(parts, perm=(0, 2, 1, 3)), list(op.result.shape))


# --- several tensors made to fit


@aten("broadcast_tensors")
def broadcast_tensors(op: TorchBuilder, tensors: Sequence[Value]) -> tuple[Value, ...]:
    nodes: Any = op.fx_node.args[0]
    wanted = op.result[0].shape
    return tuple(expanded(op, x, sizes_of(op, node), wanted) for x, node in zip(tensors, nodes, strict=True))


@aten("meshgrid", "meshgrid.indexing")
def meshgrid(op: TorchBuilder, tensors: Sequence[Value], *, indexing: str = "ij") -> tuple[Value, ...]:
    n = len(tensors)
    axes = list(range(n))
    if indexing == "xy" and n > 1:
        axes[0], axes[1] = 1, 0
    wanted = op.sizes(op.result[0].shape)
    return tuple(
        op.Expand(op.Reshape(x, op.ints(*(-1 if i == axis else 1 for i in range(n)))), wanted)
        for x, axis in zip(tensors, axes, strict=True)
    )


@aten("vander")
def vander(op: TorchBuilder, x: Value, n: int | None = None, increasing: bool = False) -> Value:
    x = op.Unsqueeze(op.cast(x, op.result_dtype), op.ints(1))
    count = static(op, op.result.shape[1], "vander")
    powers = [op.Expand(op.const(1, like=x), op.Shape(x))]
    for _ in range(count - 1):
        powers.append(op.Mul(powers[-1], x))
    powers = powers[:count]
    return op.Concat(*(powers if increasing else powers[::-1]), axis=1)


# --- padding


@aten("constant_pad_nd")
def constant_pad(op: TorchBuilder, x: Value, pads: Sequence[Size], value: Any = 0) -> Value:
    return _pad(op, x, pads, "constant", value)


@aten("pad")
def pad(op: TorchBuilder, x: Value, pads: Sequence[Size], mode: str = "constant", value: Any = None) -> Value:
    kinds = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    return _pad(op, x, pads, kinds[mode], 0 if value is None else value)


def _pad(op: TorchBuilder, x: Value, pads: Sequence[Size], mode: str, value: Any) -> Value:
    """torch lists (begin, end) from the last axis on; ONNX all begins, then all ends."""
    if all(isinstance(p, int) and p == 0 for p in pads):
        return op.Identity(x)
    rank = op.rank_of(x)
    axes = [rank - 1 - i for i in range(len(pads) // 2)]
    amounts = op.sizes([*pads[0::2], *pads[1::2]])
    fill = op.value(value, x.dtype) if mode == "constant" else None
    return op.Pad(x, amounts, fill, op.ints(*axes), mode=mode)
