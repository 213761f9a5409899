"""Pooling, normalisation and dropout."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.errors import UnsupportedError
from .linear import spatial_pads
from .registry import Value, define, is_static, primitive

define(
    GlobalAveragePool=lambda x: jnp.mean(x, tuple(range(2, x.ndim)), keepdims=True),
    GlobalMaxPool=lambda x: jnp.max(x, tuple(range(2, x.ndim)), keepdims=True),
)

Ints = tuple[int, ...]


def _windows(
    x: Value,
    kernel: Ints,
    strides: Ints | None,
    pads: Ints | None,
    dilations: Ints | None,
    auto_pad: str,
    ceil_mode: int,
) -> tuple[Ints, Ints, list[tuple[int, int]], Ints]:
    """strides, dilations, pads and the sizes of the result; with ceil_mode the end pads are grown to the last
    window."""
    n = len(kernel)
    strides, dilations = strides or (1,) * n, dilations or (1,) * n
    padded = spatial_pads(x.shape[2:], kernel, strides, dilations, pads, auto_pad)
    sizes = []
    for i, size in enumerate(x.shape[2:]):
        begin, end = padded[i]
        reach = (kernel[i] - 1) * dilations[i] + 1
        room = size + begin + end - reach
        count = room // strides[i] + 1
        if ceil_mode and room % strides[i] and count * strides[i] < size + begin:  # no window starts in the end padding
            count += 1
            end += (count - 1) * strides[i] - room
        padded[i] = (begin, end)
        sizes.append(count)
    return strides, dilations, padded, tuple(sizes)


@primitive
def MaxPool(
    x: Value,
    *,
    kernel_shape: Ints,
    strides: Ints | None = None,
    pads: Ints | None = None,
    dilations: Ints | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    storage_order: int = 0,
) -> Value:
    strides, dilations, padded, sizes = _windows(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    lowest = -np.inf if np.issubdtype(x.dtype, np.inexact) else np.iinfo(x.dtype).min
    grown = jnp.pad(x, [(0, 0), (0, 0), *padded], constant_values=lowest)
    # The maximum of shifted slices: several times faster than a window reduction on a CPU, and differentiable with
    # dilation too. Of equal values the first takes the gradient, as in PyTorch.
    result = None
    for tap in product(*(range(k) for k in kernel_shape)):
        begin = [t * d for t, d in zip(tap, dilations, strict=True)]
        index = tuple(slice(b, b + (m - 1) * s + 1, s) for b, m, s in zip(begin, sizes, strides, strict=True))
        part = grown[(slice(None), slice(None), *index)]
        result = part if result is None else jnp.where((result >= part) | (result != result), result, part)
    return result


@primitive
def AveragePool(
    x: Value,
    *,
    kernel_shape: Ints,
    strides: Ints | None = None,
    pads: Ints | None = None,
    dilations: Ints | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> Value:
    strides, dilations, padded, sizes = _windows(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    total = lax.reduce_window(
        jnp.asarray(x),
        np.asarray(0, x.dtype),
        lax.add,
        (1, 1, *kernel_shape),
        (1, 1, *strides),
        [(0, 0), (0, 0), *padded],
        window_dilation=(1, 1, *dilations),
    )
    counts = np.ones((), np.int64)
    declared = spatial_pads(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    for i, size in enumerate(x.shape[2:]):
        begin = padded[i][0]
        # what ceil_mode added beyond the declared padding never counts
        first, last = (-begin, size + declared[i][1]) if count_include_pad else (0, size)
        starts = np.arange(sizes[i]) * strides[i] - begin
        inside = [[first <= s + k * dilations[i] < last for k in range(kernel_shape[i])] for s in starts]
        counts = np.multiply.outer(counts, np.sum(np.array(inside).reshape(sizes[i], -1), axis=1))
    return total / counts.astype(x.dtype)


def _column(vector: Value, rank: int) -> Value:
    """A vector over channels (axis 1), shaped to broadcast against an array of a rank."""
    return vector.reshape((1, -1) + (1,) * (rank - 2))


@primitive
def BatchNormalization(
    x: Value,
    weight: Value,
    bias: Value,
    mean: Value,
    variance: Value,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Any:
    axes = (0, *range(2, x.ndim))
    new_mean, new_variance = mean, variance
    if training_mode:  # ONNX keeps the biased variance
        rest = np.asarray(1 - momentum, mean.dtype)
        batch_mean, batch_variance = jnp.mean(x, axes), jnp.var(x, axes)
        new_mean = mean * np.asarray(momentum, mean.dtype) + lax.stop_gradient(batch_mean) * rest
        new_variance = variance * np.asarray(momentum, mean.dtype) + lax.stop_gradient(batch_variance) * rest
        mean, variance = batch_mean, batch_variance
    factor = weight / jnp.sqrt(variance + np.asarray(epsilon, variance.dtype))
    y = ((x - _column(mean, x.ndim)) * _column(factor, x.ndim) + _column(bias, x.ndim)).astype(x.dtype)
    return (y, new_mean, new_variance) if training_mode else y


def _normalised(x: Value, axes: Ints, epsilon: float) -> tuple[Value, Value, Value]:
    """(x - mean) / √(variance + epsilon), the mean, and the inverse standard deviation."""
    mean = jnp.mean(x, axes, keepdims=True)
    centred = x - mean
    inverse = lax.rsqrt(jnp.mean(centred * centred, axes, keepdims=True) + np.asarray(epsilon, x.dtype))
    return centred * inverse, mean, inverse


@primitive
def LayerNormalization(
    x: Value, weight: Value, bias: Value | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Any:
    # the statistics of half-precision inputs are computed in float32 (stash_type)
    wide = jnp.asarray(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    normal, mean, inverse = _normalised(wide, tuple(range(axis % x.ndim, x.ndim)), epsilon)
    y = normal.astype(x.dtype) * weight
    return (y if bias is None else y + bias), mean, inverse


@primitive
def RMSNormalization(x: Value, weight: Value, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Value:
    wide = jnp.asarray(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.mean(wide * wide, tuple(range(axis % x.ndim, x.ndim)), keepdims=True)
    return (wide * lax.rsqrt(square + np.asarray(epsilon, wide.dtype))).astype(x.dtype) * weight


@primitive
def InstanceNormalization(x: Value, weight: Value, bias: Value, *, epsilon: float = 1e-5) -> Value:
    normal, _, _ = _normalised(x, tuple(range(2, x.ndim)), epsilon)
    return normal * _column(weight, x.ndim) + _column(bias, x.ndim)


@primitive
def GroupNormalization(
    x: Value, weight: Value, bias: Value, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Value:
    shape = (x.shape[0], num_groups, x.shape[1] // num_groups * prod(x.shape[2:]))
    wide = jnp.asarray(x).astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(shape)
    normal, _, _ = _normalised(wide, (2,), epsilon)
    return normal.reshape(x.shape).astype(x.dtype) * _column(weight, x.ndim) + _column(bias, x.ndim)


@primitive
def Dropout(x: Value, ratio: Value | None = None, training: Value | None = None, *, seed: int | None = None) -> Any:
    if training is not None and not (is_static(training) and not bool(training)):
        raise UnsupportedError(
            "ONNX's Dropout draws other numbers in every run; interlux draws from a seed in the states"
        )
    return x, jnp.ones(x.shape, bool)
