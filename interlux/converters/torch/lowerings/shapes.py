"""Views and other rearrangements, and how a write through a view reaches its base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ....ir.errors import UnsupportedError
from ...builder import Value
from ..builder import MAX_INT64, Size, TorchBuilder
from .registry import aten


@aten("view", "reshape", "flatten.using_ints", "unflatten.int", "_unsafe_view", "view_as", "reshape_as")
def view(op: TorchBuilder, x: Value, *rest: Any) -> Value:
    return op.reshape(x, list(op.result.shape))


@aten("unsqueeze")
def unsqueeze(op: TorchBuilder, x: Value, axis: int) -> Value:
    return op.Unsqueeze(x, op.ints(op.axis(axis, op.rank_of(x) + 1)))


@aten("squeeze", "squeeze.dim", "squeeze.dims")
def squeeze(op: TorchBuilder, x: Value, axes: int | Sequence[int] | None = None) -> Value:
    rank = op.rank_of(x)
    wanted = range(rank) if axes is None else [axes] if isinstance(axes, int) else axes
    removed = [a for a in (op.axis(a, rank) for a in wanted) if x.shape is not None and x.shape[a] == 1]
    return op.Squeeze(x, op.ints(*removed)) if removed else op.Identity(x)


@aten("permute")
def permute(op: TorchBuilder, x: Value, order: Sequence[int]) -> Value:
    return op.Transpose(x, perm=tuple(op.axis(a, len(order)) for a in order))


@aten("transpose.int", "swapaxes")
def transpose(op: TorchBuilder, x: Value, a: int, b: int) -> Value:
    order = list(range(op.rank_of(x)))
    order[a], order[b] = order[b], order[a]
    return op.Transpose(x, perm=tuple(order))


@aten("t", "numpy_T", "mT")
def matrix_transpose(op: TorchBuilder, x: Value) -> Value:
    return transpose(op, x, -2, -1) if op.rank_of(x) >= 2 else op.Identity(x)


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
    if isinstance(start, int) and start == 0 and isinstance(end, int) and end == MAX_INT64 and step == 1:
        return op.Identity(x)
    return op.Slice(x, op.size(start), op.size(end), op.ints(op.axis(axis, op.rank_of(x))), op.ints(step))


@aten("narrow")
def narrow(op: TorchBuilder, x: Value, axis: int, start: Size, length: Size) -> Value:
    return slice_(op, x, axis, start, start + length)


@aten("select.int")
def select(op: TorchBuilder, x: Value, axis: int, index: Size) -> Value:
    return op.Gather(x, op.value(index), axis=op.axis(axis, op.rank_of(x)))


@aten("cat")
def cat(op: TorchBuilder, tensors: Sequence[Value], axis: int = 0) -> Value:
    # torch takes an empty vector as a neutral element, whatever the rank of the others
    kept = [op.cast(x, op.result_dtype) for x in tensors if x.shape != (0,) or op.result.dim() == 1]
    return op.Concat(*kept, axis=op.axis(axis, op.result.dim()))


@aten("stack")
def stack(op: TorchBuilder, tensors: Sequence[Value], axis: int = 0) -> Value:
    axis = op.axis(axis, op.result.dim())
    return op.Concat(*(op.Unsqueeze(op.cast(x, op.result_dtype), op.ints(axis)) for x in tensors), axis=axis)


@aten("split.Tensor", "split_with_sizes", "split.sizes", "chunk", "tensor_split.sections")
def split(op: TorchBuilder, x: Value, parts: Any, axis: int = 0) -> tuple[Value, ...]:
    axis = op.axis(axis, op.rank_of(x))
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


@aten("flip")
def flip(op: TorchBuilder, x: Value, axes: Sequence[int]) -> Value:
    n = len(axes)
    where = op.ints(*(op.axis(a, op.rank_of(x)) for a in axes))
    return op.Slice(x, op.ints(*(-1,) * n), op.ints(*(-MAX_INT64,) * n), where, op.ints(*(-1,) * n))


@aten("roll")
def roll(op: TorchBuilder, x: Value, shifts: Sequence[Size], axes: Sequence[int] = ()) -> Value:
    if not axes:
        flat = op.Reshape(x, op.ints(-1))
        return op.reshape(_rolled(op, flat, shifts[0], 0), list(op.result.shape))
    for shift, axis in zip(shifts, axes, strict=True):
        x = _rolled(op, x, shift, op.axis(axis, op.result.dim()))
    return x


def _rolled(op: TorchBuilder, x: Value, shift: Size, axis: int) -> Value:
    """The last `shift` rows of an axis moved to its front; a shift beyond the size would need it known."""
    sizes = op.result.shape
    if isinstance(shift, int) and isinstance(sizes[axis], int):
        shift = shift % max(int(sizes[axis]), 1)
    if not isinstance(shift, int) or (not isinstance(sizes[axis], int) and abs(shift) > 1):
        raise UnsupportedError(f"a roll by {shift} along an axis of dynamic size{op.where()}")
    if shift == 0:
        return op.Identity(x)
    end, last = op.ints(MAX_INT64), op.ints(-shift)
    return op.Concat(op.Slice(x, last, end, op.ints(axis)), op.Slice(x, op.ints(0), last, op.ints(axis)), axis=axis)


@aten("tril", "triu")
def triangle(op: TorchBuilder, x: Value, diagonal: int = 0) -> Value:
    return op.Trilu(x, op.value(diagonal), upper=int("triu" in op.operator))


@aten("constant_pad_nd")
def constant_pad(op: TorchBuilder, x: Value, pads: Sequence[Size], value: Any = 0) -> Value:
    return _pad(op, x, pads, "constant", value)


@aten("pad")
def pad(op: TorchBuilder, x: Value, pads: Sequence[Size], mode: str = "constant", value: Any = None) -> Value:
    kinds = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    return _pad(op, x, pads, kinds[mode], 0 if value is None else value)


def _pad(op: TorchBuilder, x: Value, pads: Sequence[Size], mode: str, value: Any) -> Value:
    """torch lists (begin, end) from the last axis on; ONNX all begins, then all ends."""
    rank = op.rank_of(x)
    axes = [rank - 1 - i for i in range(len(pads) // 2)]
    amounts = op.sizes([*pads[0::2], *pads[1::2]])
    fill = op.value(value, x.dtype) if mode == "constant" else None
    return op.Pad(x, amounts, fill, op.ints(*axes), mode=mode)


# --- writes through views: (op, base, written, *arguments of the view) -> the new base

ViewWrite = Callable[..., Value]
VIEW_WRITES: dict[str, ViewWrite] = {}


def _back(*names: str) -> Callable[[ViewWrite], ViewWrite]:
    def enter(function: ViewWrite) -> ViewWrite:
        VIEW_WRITES.update({(n if "." in n else f"{n}.default"): function for n in names})
        return function

    return enter


@_back("view", "reshape", "flatten.using_ints", "unflatten.int", "unsqueeze", "squeeze", "squeeze.dim", "squeeze.dims")
@_back("view_as", "reshape_as", "_unsafe_view")
def _reshape_back(op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size], *rest: Any) -> Value:
    return op.reshape(written, sizes)


@_back("alias", "contiguous", "to.dtype", "to.device", "lift_fresh")
def _same_back(op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size], *rest: Any) -> Value:
    return written


@_back("transpose.int", "swapaxes")
def _transpose_back(op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size], a: int, b: int) -> Value:
    order = list(range(len(sizes)))
    order[a], order[b] = order[b], order[a]
    return op.Transpose(written, perm=tuple(order))


@_back("t")
def _t_back(op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size]) -> Value:
    return op.Transpose(written, perm=(1, 0))


@_back("permute")
def _permute_back(op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size], order: Sequence[int]) -> Value:
    positive = [op.axis(a, len(order)) for a in order]
    return op.Transpose(written, perm=tuple(positive.index(i) for i in range(len(order))))


@_back("select.int")
def _select_back(op: TorchBuilder, base: Value, written: Value, sizes: Sequence[Size], axis: int, index: Size) -> Value:
    axis = op.axis(axis, len(sizes))
    if not isinstance(index, int):
        raise UnsupportedError(f"a write to a row that depends on the data{op.where()}")
    if index < 0:
        index = index + sizes[axis]
    return _replace(op, base, op.Unsqueeze(written, op.ints(axis)), sizes, axis, index, index + 1)


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
    if step != 1:
        raise UnsupportedError(f"a write through a slice with step {step}{op.where()}")
    axis = op.axis(axis, len(sizes))
    size = sizes[axis]

    def position(p: Size | None, absent: Size) -> Size:
        if p is None or (isinstance(p, int) and p == MAX_INT64):
            return absent
        if isinstance(p, int) and p < 0:
            return torch.sym_max(size + p, 0)
        return min(p, size) if isinstance(p, int) and isinstance(size, int) else p

    return _replace(op, base, written, sizes, axis, position(start, 0), position(end, size))


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


# May be views or copies, by strides or dtype
MAYBE_VIEWS = frozenset(
    {"reshape.default", "reshape_as.default", "flatten.using_ints", "contiguous.default"}
    | {"to.dtype", "to.device", "to.dtype_layout", "to.other", "type_as.default"}
)
# Share memory with their base, but a write through them cannot be followed
_UNFOLLOWED = frozenset(
    {"expand.default", "expand_as.default", "broadcast_to.default", "numpy_T.default", "mT.default", "narrow.default"}
    | {"split.Tensor", "split_with_sizes.default", "split.sizes", "chunk.default", "tensor_split.sections"}
    | {"unbind.int", "detach.default"}
)
VIEWS = frozenset(VIEW_WRITES) | MAYBE_VIEWS | _UNFOLLOWED
