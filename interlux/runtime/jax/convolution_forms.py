"""Convolutions and pools channels-last, in the forms that XLA computes fastest on a CPU.

XLA's own convolution is fast only for dense ones: depthwise and grouped ones run 10 to 50 times below what the
processor can do, and small kernels on three channels or on tiny images little better. Each form here is the same sum
in another order. `form_of` is the rule that chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import product
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ...ir.windows import Ints, Window
from .primitives.linear import EXACT
from .primitives.registry import Value

MOST_TAPS = 64  # elements of a kernel that are written out as shifted slices
STEM_CHANNELS = 4
TINY_IMAGE = 64  # pixels


def _slices(x: Value, window: Window, fill: Any = 0) -> Iterator[Value]:
    """For every element of the kernel, in row-major order, what it meets: [batch, *sizes, channels].

    Arguments:
        x: [batch, *spatial, channels].
        fill: the value of the padding.
    """
    if window.is_padded:  # once: XLA would compute a padding of every slice's own again and again
        x = lax.pad(x, jnp.asarray(fill, x.dtype), [(0, 0, 0), *((b, e, 0) for b, e in window.pads), (0, 0, 0)])
    for tap in product(*map(range, window.kernel)):
        places = window.slices(tap)
        begins, ends = ([getattr(place, side) for place in places] for side in ("start", "stop"))
        yield lax.slice(x, (0, *begins, 0), (x.shape[0], *ends, x.shape[-1]), (1, *window.strides, 1))


def form_of(channels: int, features: int, group: int, window: Window) -> str:
    """The name in `FORMS` of the form that a convolution is computed in.

    Arguments:
        channels, features: of the input and of the result.
    """
    if group == channels and group > 1 and window.taps <= MOST_TAPS:
        return "depthwise"
    if group > 1:
        return "grouped" if window.taps <= MOST_TAPS else "general"
    if window.taps == 1 and not window.is_padded:
        return "pointwise"
    if window.kernel == window.strides and not window.is_padded and prod(window.dilations) == 1:
        return "patches"
    small_stem = channels <= STEM_CHANNELS and window.taps <= 9
    tiny_image = prod(window.sizes) <= TINY_IMAGE and window.taps <= 9
    return "columns" if small_stem or tiny_image else "general"


# Every form packs the weight [features, channels / group, *kernel] with numpy, and then applies it to
# x [batch, *spatial, channels]; the result is [batch, *sizes, features].


def _pack_spatial_first(weight: np.ndarray, group: int) -> np.ndarray:
    """[*kernel, channels / group, features]"""
    return np.moveaxis(weight, (0, 1), (-1, -2))


def _general(x: Value, packed: Value, window: Window, group: int) -> Value:
    spatial = "DHW"[3 - len(window.kernel) :]
    return lax.conv_general_dilated(
        x,
        packed,
        window.strides,
        window.pads,
        rhs_dilation=window.dilations,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=group,
        precision=EXACT,
    )


def _pack_matrix(weight: np.ndarray, group: int) -> np.ndarray:
    """[kernel·channels, features], channels fastest"""
    return _pack_spatial_first(weight, group).reshape(-1, weight.shape[0])


def _dot(rows: Value, packed: Value, shape: Ints) -> Value:
    return lax.dot(rows.reshape(-1, packed.shape[0]), packed, precision=EXACT).reshape(shape)


def _pointwise(x: Value, packed: Value, window: Window, group: int) -> Value:
    """A matrix product."""
    (picked,) = _slices(x, window)
    return _dot(picked, packed, (x.shape[0], *window.sizes, packed.shape[1]))


def _columns(x: Value, packed: Value, window: Window, group: int) -> Value:
    """im2col: the slices side by side, then a matrix product."""
    rows = jnp.concatenate(list(_slices(x, window)), -1)
    return _dot(rows, packed, (x.shape[0], *window.sizes, packed.shape[1]))


def _patches(x: Value, packed: Value, window: Window, group: int) -> Value:
    """Windows that don't overlap: a transposition, then a matrix product."""
    batch, channels, n = x.shape[0], x.shape[-1], len(window.kernel)
    ends = [m * k for m, k in zip(window.sizes, window.kernel, strict=True)]
    covered = lax.slice(x, (0,) * x.ndim, (batch, *ends, channels))
    split = [size for pair in zip(window.sizes, window.kernel, strict=True) for size in pair]
    order = (0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    rows = covered.reshape(batch, *split, channels).transpose(order)
    return _dot(rows, packed, (batch, *window.sizes, packed.shape[1]))


def _pack_depthwise(weight: np.ndarray, group: int) -> np.ndarray:
    """[kernel, channels, features / channels]"""
    return np.moveaxis(weight.reshape(group, weight.shape[0] // group, -1), -1, 0)


def _depthwise(x: Value, packed: Value, window: Window, group: int) -> Value:
    """A sum of shifted slices times weights."""
    multiplier = packed.shape[-1]
    total = None
    for number, part in enumerate(_slices(x, window)):
        term = part * packed[number, :, 0] if multiplier == 1 else part[..., None] * packed[number]
        total = term if total is None else total + term
    assert total is not None
    return total.reshape(x.shape[0], *window.sizes, group * multiplier)


def _pack_grouped(weight: np.ndarray, group: int) -> np.ndarray:
    """[group, kernel·channels / group, features / group]"""
    apart = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
    return apart.transpose(0, 3, 2, 1).reshape(group, -1, apart.shape[1])


def _grouped(x: Value, packed: Value, window: Window, group: int) -> Value:
    """im2col in every group, then one batched matrix product."""
    parts = [part.reshape(-1, group, x.shape[-1] // group) for part in _slices(x, window)]
    rows = jnp.concatenate(parts, -1) if len(parts) > 1 else parts[0]
    y = lax.dot_general(rows, packed, (((2,), (1,)), ((1,), (0,))), precision=EXACT)
    return y.transpose(1, 0, 2).reshape(x.shape[0], *window.sizes, -1)


Pack = Callable[[np.ndarray, int], np.ndarray]
Form = Callable[[Value, Value, Window, int], Value]
FORMS: dict[str, tuple[Pack, Form]] = {
    "general": (_pack_spatial_first, _general),
    "pointwise": (_pack_matrix, _pointwise),
    "columns": (_pack_matrix, _columns),
    "patches": (_pack_matrix, _patches),
    "depthwise": (_pack_depthwise, _depthwise),
    "grouped": (_pack_grouped, _grouped),
}


def largest(x: Value, window: Window) -> Value:
    """The maximum of every window of x [batch, *spatial, channels], which holds floats."""
    return reduce(jnp.maximum, _slices(x, window, -np.inf))


def average(x: Value, window: Window, count_include_pad: bool) -> Value:
    """The mean of every window of x [batch, *spatial, channels]; what `ceil_mode` adds never counts."""
    counts = window.counts(count_include_pad)
    total = reduce(jnp.add, _slices(x, window))
    if (counts == counts.reshape(-1)[0]).all():
        return total / counts.reshape(-1)[0].astype(x.dtype)
    return total / counts[..., None].astype(x.dtype)
