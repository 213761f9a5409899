"""Pooling over windows and over whole feature maps."""

from __future__ import annotations

from itertools import product
from math import prod

import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.errors import InvalidModelError
from ....ir.windows import Ints, Window
from .registry import Value, define, integers, primitive

define(
    GlobalAveragePool=lambda x: jnp.mean(x, tuple(range(2, x.ndim)), keepdims=True),
    GlobalMaxPool=lambda x: jnp.max(x, tuple(range(2, x.ndim)), keepdims=True),
)


def _lowest(dtype: np.dtype) -> np.ndarray:
    return np.asarray(-np.inf if jnp.issubdtype(dtype, np.inexact) else np.iinfo(dtype).min, dtype)


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
) -> tuple[Value, Value]:
    window = Window.of(x.shape[2:], kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    grown = jnp.pad(x, [(0, 0), (0, 0), *window.pads], constant_values=_lowest(x.dtype))
    # The maximum of shifted slices: several times faster than a window reduction on a CPU, and differentiable with
    # dilation too. Of equal values the first takes the gradient, as in PyTorch.
    result = None
    winner: Value = None  # the number of the kernel's element that is the maximum
    met: Value = None  # whether a window has had an element on the input
    for number, tap in enumerate(product(*(range(k) for k in kernel_shape))):
        part = grown[(slice(None), slice(None), *window.slices(tap))]
        inside = _inside(window, tap)
        if result is None:
            result, winner, met = part, jnp.zeros(part.shape, np.int32), inside
            continue
        keep = (result >= part) | (result != result)
        result = jnp.where(keep, result, part)
        # an element in the padding is never the one, whatever its value
        winner = jnp.where((keep & met) | ~inside, winner, np.int32(number))
        met = met | inside
    return result, _places(winner, x.shape, window, storage_order)


def _inside(window: Window, tap: Ints) -> np.ndarray:
    """In which windows the kernel's element `tap` lies on the input [*sizes], not on its padding."""
    result = np.ones((), bool)
    for axis, size in enumerate(window.spatial):
        place = window.places(axis)[:, tap[axis]]
        result = np.logical_and.outer(result, (place >= 0) & (place < size))
    return result


def _places(winner: Value, shape: Ints, window: Window, storage_order: int) -> Value:
    """The flat index in the input of every window's element number `winner`; with storage_order 1 the first spatial
    axis runs fastest."""
    n, spatial = len(window.kernel), window.spatial
    taps, rest = [], winner.astype(np.int64)
    for k in reversed(window.kernel):
        taps.append(rest % k)
        rest = rest // k
    result = jnp.arange(shape[0] * shape[1]).reshape((*shape[:2], *(1,) * n)) * prod(spatial)
    for i, tap in enumerate(reversed(taps)):
        starts = window.places(i)[:, 0].reshape((-1,) + (1,) * (n - 1 - i))
        place = tap * window.dilations[i] + starts
        result = result + place * (prod(spatial[:i]) if storage_order else prod(spatial[i + 1 :]))
    return result


def _window_sum(x: Value, window: Window) -> Value:
    """Sums over windows of the spatial axes, half precision in float32."""
    wide = jnp.asarray(x).astype(jnp.promote_types(x.dtype, np.float32))
    return lax.reduce_window(
        wide,
        np.asarray(0, wide.dtype),
        lax.add,
        (1, 1, *window.kernel),
        (1, 1, *window.strides),
        [(0, 0), (0, 0), *window.pads],
        window_dilation=(1, 1, *window.dilations),
    )


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
    window = Window.of(x.shape[2:], kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    total = _window_sum(x, window)
    return (total / window.counts(bool(count_include_pad)).astype(total.dtype)).astype(x.dtype)


def _root(total: Value, p: int) -> Value:
    """The p-th root; its gradient at zero is zero, not infinite."""
    positive = total > 0
    return jnp.where(
        positive, jnp.where(positive, total, jnp.ones_like(total)) ** np.asarray(1 / p, total.dtype), total
    )


@primitive
def LpPool(
    x: Value,
    *,
    kernel_shape: Ints,
    p: int = 2,
    strides: Ints | None = None,
    pads: Ints | None = None,
    dilations: Ints | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
) -> Value:
    window = Window.of(x.shape[2:], kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    wide = jnp.asarray(x).astype(jnp.promote_types(x.dtype, np.float32))
    return _root(_window_sum(jnp.abs(wide) ** p, window), p).astype(x.dtype)


@primitive
def GlobalLpPool(x: Value, *, p: int = 2) -> Value:
    wide = jnp.asarray(x).astype(jnp.promote_types(x.dtype, np.float32))
    return _root(jnp.sum(jnp.abs(wide) ** p, tuple(range(2, x.ndim)), keepdims=True), p).astype(x.dtype)


@primitive
def LRN(x: Value, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Value:
    wide = jnp.asarray(x).astype(jnp.promote_types(x.dtype, np.float32))
    around = ((size - 1) // 2, size // 2)
    total = lax.reduce_window(
        wide * wide,
        np.asarray(0, wide.dtype),
        lax.add,
        (1, size) + (1,) * (x.ndim - 2),
        (1,) * x.ndim,
        [(0, 0), around] + [(0, 0)] * (x.ndim - 2),
    )
    base = np.asarray(bias, wide.dtype) + np.asarray(alpha / size, wide.dtype) * total
    return (wide / base ** np.asarray(beta, wide.dtype)).astype(x.dtype)


@primitive
def MaxUnpool(
    x: Value,
    indices: Value,
    output_shape: Value | None = None,
    *,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Value:
    """Puts every element where its index says, zeros elsewhere. The indices are those of the size that kernel, strides
    and pads give; a larger output_shape adds zeros at the ends, as in ONNX's tests."""
    n = len(kernel_shape)
    strides, pads = strides or (1,) * n, pads or (0,) * 2 * n
    spatial = ((size - 1) * strides[i] - pads[i] - pads[i + n] + kernel_shape[i] for i, size in enumerate(x.shape[2:]))
    shape = (*x.shape[:2], *spatial)
    flat = jnp.zeros(prod(shape), x.dtype).at[jnp.reshape(indices, -1)].set(jnp.reshape(x, -1))
    y = flat.reshape(shape)
    if output_shape is None:
        return y
    wanted = integers(output_shape, "output_shape of MaxUnpool")
    if len(wanted) != len(shape) or any(w < s for w, s in zip(wanted, shape, strict=True)):
        raise InvalidModelError(f"MaxUnpool gives {shape}, which does not fit into output_shape {wanted}")
    return jnp.pad(y, [(0, w - s) for w, s in zip(wanted, shape, strict=True)])
