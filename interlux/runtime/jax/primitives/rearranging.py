"""Elements that are found, cut out, moved into other axes, or accumulated."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ....ir.errors import InvalidModelError
from .registry import Value, concrete, integers, library, primitive, scalar

Ints = tuple[int, ...]


# --- whose size depends on the data


@primitive
def NonZero(x: Value) -> Value:
    return np.array(np.nonzero(np.atleast_1d(concrete(x, "the number of elements that are not 0"))), np.int64)


@primitive
def Compress(x: Value, condition: Value, *, axis: int | None = None) -> Value:
    kept = np.flatnonzero(concrete(condition, "the number of elements that Compress keeps"))
    return library(x).take(x.reshape(-1) if axis is None else x, kept, axis=0 if axis is None else axis)


@primitive
def Unique(x: Value, *, axis: int | None = None, sorted: int = 1) -> Any:
    array = concrete(x, "the number of unique elements")
    kind = array.dtype
    plain = array.astype(np.float32) if kind.kind == "V" else array  # ml_dtypes have no order of numpy's
    values, first, inverse, counts = np.unique(
        plain, return_index=True, return_inverse=True, return_counts=True, axis=axis, equal_nan=False
    )
    inverse = inverse.reshape(-1)
    if not sorted:  # in the order in which they come
        order = np.argsort(first, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        values, first, counts = np.take(values, order, 0 if axis is None else axis), first[order], counts[order]
        inverse = place[inverse]
    return values.astype(kind), *(part.astype(np.int64) for part in (first, inverse, counts))


# --- blocks and windows


@primitive
def DepthToSpace(x: Value, *, blocksize: int, mode: str = "DCR") -> Value:
    batch, channels, height, width = x.shape
    depth = channels // blocksize**2
    if mode == "DCR":
        blocks, order = (batch, blocksize, blocksize, depth, height, width), (0, 3, 4, 1, 5, 2)
    else:
        blocks, order = (batch, depth, blocksize, blocksize, height, width), (0, 1, 4, 2, 5, 3)
    return x.reshape(blocks).transpose(order).reshape(batch, depth, height * blocksize, width * blocksize)


@primitive
def SpaceToDepth(x: Value, *, blocksize: int, mode: str = "DCR") -> Value:
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return blocks.transpose(order).reshape(batch, -1, height // blocksize, width // blocksize)


@primitive
def CenterCropPad(x: Value, shape: Value, *, axes: Ints | None = None) -> Value:
    wanted = integers(shape, "the shape of CenterCropPad")
    along = range(x.ndim) if axes is None else axes
    pads = [(0, 0)] * x.ndim
    index = [slice(None)] * x.ndim
    for axis, size in zip(along, wanted, strict=True):
        axis, missing = axis % x.ndim, size - x.shape[axis]
        if missing >= 0:
            pads[axis] = (missing // 2, missing - missing // 2)
        else:
            index[axis] = slice(-missing // 2, -missing // 2 + size)
    return library(x).pad(x[tuple(index)], pads)


@primitive
def Col2Im(
    columns: Value,
    image_shape: Value,
    block_shape: Value,
    *,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Value:
    """columns [batch, channels · taps, positions] -> the sums [batch, channels, *image]."""
    image = integers(image_shape, "the image of Col2Im")
    block = integers(block_shape, "the block of Col2Im")
    n = len(image)
    dilations, strides, pads = dilations or (1,) * n, strides or (1,) * n, pads or (0,) * (2 * n)
    padded = tuple(size + pads[i] + pads[i + n] for i, size in enumerate(image))
    counts = tuple((padded[i] - (block[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in range(n))
    batch, channels = columns.shape[0], columns.shape[1] // prod(block)
    taps = jnp.asarray(columns).reshape(batch, channels, *block, *counts)
    total = jnp.zeros((batch, channels, *padded), columns.dtype)
    for tap in product(*map(range, block)):
        begin = [t * d for t, d in zip(tap, dilations, strict=True)]
        place = tuple(slice(b, b + (c - 1) * s + 1, s) for b, c, s in zip(begin, counts, strides, strict=True))
        total = total.at[(slice(None), slice(None), *place)].add(taps[(slice(None), slice(None), *tap)])
    inside = tuple(slice(pads[i], pads[i] + size) for i, size in enumerate(image))
    return total[(slice(None), slice(None), *inside)]


# --- along an axis


@primitive
def ReverseSequence(x: Value, lengths: Value, *, batch_axis: int = 1, time_axis: int = 0) -> Value:
    moved = library(x).moveaxis(x, (batch_axis, time_axis), (0, 1))
    xp = library(x, lengths)
    steps = np.arange(moved.shape[1])
    length = lengths.astype(np.int64)[:, None]
    index = xp.where(steps < length, length - 1 - steps, steps)
    turned = xp.take_along_axis(moved, index.reshape(*index.shape, *(1,) * (moved.ndim - 2)), 1)
    return xp.moveaxis(turned, (0, 1), (batch_axis, time_axis))


@primitive
def TensorScatter(
    cache: Value, update: Value, write_indices: Value | None = None, *, axis: int = -2, mode: str = "linear"
) -> Value:
    axis = axis % cache.ndim
    if axis == 0:
        raise InvalidModelError("TensorScatter cannot write along the axis of the batch")
    batch, size, length = cache.shape[0], cache.shape[axis], update.shape[axis]
    start = np.zeros(batch, np.int64) if write_indices is None else write_indices.astype(np.int64)
    places = start[:, None] + np.arange(length)
    if mode == "circular":
        places = places % size
    old, new = (jnp.moveaxis(jnp.asarray(a), axis, 1) for a in (cache, update))
    written = jax.vmap(lambda row, rows, at: row.at[at].set(rows, mode="drop"))(old, new, jnp.asarray(places))
    return jnp.moveaxis(written, 1, axis)


@primitive
def CumProd(x: Value, axis: Value, *, exclusive: int = 0, reverse: int = 0) -> Value:
    along = scalar(axis, "the axis of CumProd") % x.ndim
    xp = library(x)
    y = xp.flip(x, along) if reverse else x
    if exclusive:
        ones = xp.ones_like(y[tuple(slice(1) if i == along else slice(None) for i in range(y.ndim))])
        rest = y[tuple(slice(-1) if i == along else slice(None) for i in range(y.ndim))]
        y = xp.concatenate((ones, rest), along)
    y = xp.cumprod(y, along, dtype=x.dtype)
    return xp.flip(y, along) if reverse else y


@primitive
def Det(x: Value) -> Value:
    return library(x).linalg.det(x).astype(x.dtype)
