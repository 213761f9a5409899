"""Shapes, slices, gathers and what else moves elements around."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ....ir import dtypes
from ....ir.errors import InvalidModelError, UnsupportedError
from ....ir.layers.random import seeded_uniform
from .registry import Value, concrete, integers, is_static, library, moving, primitive, scalar


@primitive
def Shape(x: Value, *, start: int = 0, end: int | None = None) -> Value:
    return np.array(x.shape, np.int64)[start:end]


@primitive
def Size(x: Value) -> Value:
    return np.array(prod(x.shape), np.int64)


@primitive
def Reshape(x: Value, shape: Value, *, allowzero: int = 0) -> Value:
    sizes = integers(shape, "the shape of Reshape")
    new = tuple(x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(sizes))
    try:
        return library(x).reshape(x, new)
    except (TypeError, ValueError):
        raise InvalidModelError(f"cannot reshape {tuple(x.shape)} to {new}") from None


@primitive
def Flatten(x: Value, *, axis: int = 1) -> Value:
    axis = axis + x.ndim if axis < 0 else axis
    return library(x).reshape(x, (prod(x.shape[:axis]), prod(x.shape[axis:])))


@primitive
def Transpose(x: Value, *, perm: tuple[int, ...] | None = None) -> Value:
    return library(x).transpose(x, perm)


@primitive
def Squeeze(x: Value, axes: Value | None = None) -> Value:
    return library(x).squeeze(x, None if axes is None else integers(axes, "the axes of Squeeze"))


@primitive
def Unsqueeze(x: Value, axes: Value) -> Value:
    return library(x).expand_dims(x, integers(axes, "the axes of Unsqueeze"))


@primitive
def Concat(*xs: Value, axis: int) -> Value:
    return library(*xs).concatenate(xs, axis)


@primitive
def Split(x: Value, sizes: Value | None = None, *, axis: int = 0, num_outputs: int | None = None) -> Any:
    total = x.shape[axis]
    if sizes is not None:
        parts = integers(sizes, "the sizes of Split")
    elif num_outputs is not None:
        part = -(-total // num_outputs)  # equal parts, the last one may be smaller
        parts = tuple(min(part, max(total - i * part, 0)) for i in range(num_outputs))
    else:
        raise InvalidModelError("Split needs sizes or num_outputs")
    if sum(parts) != total:
        raise InvalidModelError(f"Split sizes {parts} don't add up to {total}")
    return tuple(library(x).split(x, np.cumsum(parts)[:-1].tolist(), axis))


@primitive
def Slice(x: Value, starts: Value, ends: Value, axes: Value | None = None, steps: Value | None = None) -> Value:
    begin, stop = integers(starts, "the starts of Slice"), integers(ends, "the ends of Slice")
    along = tuple(range(len(begin))) if axes is None else integers(axes, "the axes of Slice")
    stride = (1,) * len(begin) if steps is None else integers(steps, "the steps of Slice")
    index = [slice(None)] * x.ndim
    for b, e, axis, step in zip(begin, stop, along, stride, strict=True):
        size = x.shape[axis]
        b, e = (i + size if i < 0 else i for i in (b, e))
        if step > 0:
            index[axis] = slice(min(max(b, 0), size), min(max(e, 0), size), step)
        else:  # an end before the first element means: through it
            e = min(max(e, -1), size - 1)
            index[axis] = slice(min(max(b, 0), size - 1), None if e < 0 else e, step) if size else slice(0, 0)
    return x[tuple(index)]


@primitive
def Expand(x: Value, shape: Value) -> Value:
    wanted = integers(shape, "the shape of Expand")
    return library(x).broadcast_to(x, np.broadcast_shapes(x.shape, wanted))


@primitive
def Tile(x: Value, repeats: Value) -> Value:
    return library(x).tile(x, integers(repeats, "the repeats of Tile"))


@primitive
@moving
def Gather(x: Value, indices: Value, *, axis: int = 0) -> Value:
    if is_static(x, indices):
        try:
            return np.take(x, indices, axis)
        except IndexError as error:
            raise InvalidModelError(f"Gather: {error}") from None
    # An index out of range reads NaN (floats) or the smallest integer, never another row.
    return jnp.take(x, indices, axis, mode="fill")


@primitive
@moving
def GatherElements(x: Value, indices: Value, *, axis: int = 0) -> Value:
    # ONNX lets `indices` be smaller than x along the other axes
    other = tuple(slice(None) if i == axis % x.ndim else slice(0, n) for i, n in enumerate(indices.shape))
    if is_static(x, indices):
        try:
            return np.take_along_axis(x[other], indices, axis)
        except IndexError as error:
            raise InvalidModelError(f"GatherElements: {error}") from None
    return jnp.take_along_axis(x[other], jnp.asarray(indices), axis, mode="fill")


@primitive
@moving
def GatherND(x: Value, indices: Value, *, batch_dims: int = 0) -> Value:
    def gather(x: Value, indices: Value) -> Value:
        return x.at[tuple(indices[..., k] for k in range(indices.shape[-1]))].get(mode="fill")

    for _ in range(batch_dims):
        gather = jax.vmap(gather)
    return gather(jnp.asarray(x), jnp.asarray(indices))


@jax.custom_jvp
def _multiplied(x: Value, index: tuple[Value, ...], updates: Value) -> Value:
    return x.at[index].multiply(updates)


@_multiplied.defjvp
def _multiplied_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Value, Value]:
    """JAX's own derivative is for distinct indices only. That by an update is the product of all others that meet it:
    of all by itself, where none is 0, else of those that are not 0."""
    x, index, updates = primals
    dx, _, d_updates = tangents
    zero, nothing = updates == 0, jnp.zeros_like(x)
    factors = jnp.where(zero, np.asarray(1, x.dtype), updates)
    zeros = nothing.at[index].add(zero.astype(x.dtype))[index] - zero.astype(x.dtype)
    others = jnp.where(zeros == 0, _multiplied(x, index, factors)[index] / factors, np.asarray(0, x.dtype))
    by_x = _multiplied(jnp.ones_like(x), index, updates) * dx
    return _multiplied(x, index, updates), by_x + nothing.at[index].add(others * d_updates)


def _scatter(x: Value, index: tuple[Value, ...], updates: Value, reduction: str) -> Value:
    if reduction == "mul" and jnp.issubdtype(x.dtype, jnp.floating):
        return _multiplied(x, index, jnp.asarray(updates))
    methods = {"none": "set", "add": "add", "mul": "multiply", "max": "max", "min": "min"}
    return getattr(x.at[index], methods[reduction])(updates)


@primitive
@moving
def ScatterElements(x: Value, indices: Value, updates: Value, *, axis: int = 0, reduction: str = "none") -> Value:
    x, indices = jnp.asarray(x), jnp.asarray(indices)
    grid = list(jnp.meshgrid(*(jnp.arange(n) for n in indices.shape), indexing="ij"))
    grid[axis] = indices
    return _scatter(x, tuple(grid), updates, reduction)


@primitive
@moving
def ScatterND(x: Value, indices: Value, updates: Value, *, reduction: str = "none") -> Value:
    indices = jnp.asarray(indices)
    return _scatter(jnp.asarray(x), tuple(indices[..., k] for k in range(indices.shape[-1])), updates, reduction)


@primitive
@moving
def Pad(
    x: Value, pads: Value, constant: Value | None = None, axes: Value | None = None, *, mode: str = "constant"
) -> Value:
    amounts = integers(pads, "the pads of Pad")
    along = tuple(range(x.ndim)) if axes is None else integers(axes, "the axes of Pad")
    widths = [(0, 0)] * x.ndim
    for i, axis in enumerate(along):
        widths[axis] = (amounts[i], amounts[i + len(along)])
    xp = library(x, constant)
    # negative pads cut
    cut = tuple(slice(max(-b, 0), n - max(-e, 0)) for (b, e), n in zip(widths, x.shape, strict=True))
    x, grown = x[cut], [(max(b, 0), max(e, 0)) for b, e in widths]
    if mode == "constant":
        fill = np.asarray(0, x.dtype) if constant is None else constant.reshape(()).astype(x.dtype)
        return xp.pad(x, grown, constant_values=fill)
    if mode not in ("reflect", "edge", "wrap"):
        raise UnsupportedError(f"Pad of mode {mode!r}")
    return xp.pad(x, grown, mode=mode)


@primitive
def Range(start: Value, limit: Value, delta: Value) -> Value:
    dtype = np.dtype(start.dtype)
    first, end, step = (concrete(v, "the length of Range").reshape(()) for v in (start, limit, delta))
    return np.arange(first, end, step, dtype=dtype)  # type: ignore[call-overload]


@primitive
def ConstantOfShape(shape: Value, *, value: np.ndarray | None = None) -> Value:
    fill = np.zeros((1,), np.float32) if value is None else value
    return np.full(integers(shape, "the shape of ConstantOfShape"), fill.reshape(()), fill.dtype)


@primitive
def Constant(*, value: np.ndarray | None = None, **other: Any) -> Value:
    if value is not None:
        return value
    ((kind, content),) = other.items()
    by_kind = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if kind not in by_kind:
        raise UnsupportedError(f"Constant with {kind}")
    return np.array(content, by_kind[kind])


@primitive
def Trilu(x: Value, k: Value | None = None, *, upper: int = 1) -> Value:
    diagonal = 0 if k is None else scalar(k, "the diagonal of Trilu")
    return library(x).triu(x, diagonal) if upper else library(x).tril(x, diagonal)


@primitive
def EyeLike(x: Value, *, dtype: int | None = None, k: int = 0) -> Value:
    return np.eye(x.shape[0], x.shape[1], k=k, dtype=x.dtype if dtype is None else dtypes.from_onnx(dtype))


@primitive
@moving
def OneHot(indices: Value, depth: Value, values: Value, *, axis: int = -1) -> Value:
    n = scalar(depth, "the depth of OneHot")
    position = axis % (indices.ndim + 1)
    shape = [n if i == position else 1 for i in range(indices.ndim + 1)]
    wrapped = jnp.where(indices < 0, indices + n, indices)
    hit = jnp.expand_dims(wrapped, position) == np.arange(n).reshape(shape).astype(indices.dtype)
    return jnp.where(hit, values[1], values[0])


@primitive
def CumSum(x: Value, axis: Value, *, exclusive: int = 0, reverse: int = 0) -> Value:
    xp, along = library(x), scalar(axis, "the axis of CumSum")
    if reverse:
        x = xp.flip(x, along)
    if exclusive:  # shifted, not subtracted: a large or infinite element would leave its mark
        along = along % x.ndim
        before = tuple(slice(None, -1) if i == along else slice(None) for i in range(x.ndim))
        zero = xp.zeros_like(x[tuple(slice(0, 1) if i == along else slice(None) for i in range(x.ndim))])
        x = xp.concatenate([zero, x[before]], along) if x.shape[along] else x
    total = xp.cumsum(x, along, dtype=x.dtype)
    return xp.flip(total, along) if reverse else total


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _stop_row(table: Value, row: int) -> Value:
    return table


@_stop_row.defjvp
def _stop_row_tangent(row: int, primals: tuple[Value], tangents: tuple[Value]) -> tuple[Value, Value]:
    return primals[0], tangents[0].at[row].set(0)


@primitive
def StopRowGradient(table: Value, *, row: int) -> Value:
    return _stop_row(table, row)


@primitive
def SeededUniform(seed: Value, shape: Value) -> Any:
    return seeded_uniform(jnp.asarray(seed), integers(shape, "the shape of random numbers"), jnp.arange)
