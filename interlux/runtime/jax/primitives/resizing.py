"""Resize, axis by axis: which input elements an output element takes, and with what weights, is computed with numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor

import jax.numpy as jnp
import numpy as np

from ....ir.errors import InvalidModelError, UnsupportedError
from .registry import Value, concrete, library, primitive

FEW = 4  # taps that are summed one by one; more are gathered at once
Filter = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized.

    Arguments:
        axis: which one.
        size: its input size.
        output: its output size.
        scale: output / input, as it was given: `output` may be rounded.
        roi: begin and end of the part that is resized, 1 being the whole axis.
    """

    axis: int
    size: int
    output: int
    scale: float
    roi: tuple[float, float]


def _coordinates(a: _Axis, mode: str) -> np.ndarray:
    """Where every output element lies in the input [output], float64."""
    x = np.arange(a.output, dtype=np.float64)
    half_pixel = (x + 0.5) / a.scale - 0.5
    if mode == "half_pixel":
        return half_pixel
    if mode == "half_pixel_symmetric":
        return a.size / 2 * (1 - a.output / (a.scale * a.size)) + half_pixel
    if mode == "pytorch_half_pixel":
        return half_pixel if a.output > 1 else np.zeros_like(x)
    if mode == "align_corners":
        length = a.scale * a.size  # not rounded, as in ONNX's tests
        return x * (a.size - 1) / (length - 1) if length != 1 else np.zeros_like(x)
    if mode == "asymmetric":
        return x / a.scale
    if mode == "tf_crop_and_resize":
        start, end = a.roi
        if a.output > 1:
            return (start + x * (end - start) / (a.output - 1)) * (a.size - 1)
        return np.full_like(x, 0.5 * (start + end) * (a.size - 1))
    raise InvalidModelError(f"unknown coordinate_transformation_mode {mode!r}")


def _nearest(x: np.ndarray, mode: str) -> np.ndarray:
    halves = np.round(x * 2) / 2
    x = np.where(np.abs(x - halves) < 1e-9, halves, x)  # (10 + 0.5) / 0.7 - 0.5 is 14.5, and rounding makes more of it
    rounded = {
        "round_prefer_floor": lambda: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda: np.floor(x + 0.5),
        "floor": lambda: np.floor(x),
        "ceil": lambda: np.ceil(x),
    }
    if mode not in rounded:
        raise InvalidModelError(f"unknown nearest_mode {mode!r}")
    return rounded[mode]().astype(np.int64)


def _linear(x: np.ndarray) -> np.ndarray:
    return np.clip(1 - np.abs(x), 0, 1)


def _cubic(a: float) -> Filter:
    """Keys' cubic convolution (1981, equation 4)."""

    def weigh(x: np.ndarray) -> np.ndarray:
        x = np.abs(x)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0))

    return weigh


def _taps(
    x: np.ndarray, a: _Axis, filter_: Filter, support: int, antialias: int, exclude_outside: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices [output, taps] and weights [output, taps]; antialiasing widens the filter by 1 / scale."""
    stretch = min(a.scale, 1.0) if antialias else 1.0
    first = floor(-support / stretch) + 1
    steps = np.arange(first, 2 - first)
    base = np.ceil(x) - 1  # of an integer, the left neighbour: then its own weight is the second one
    weights = filter_((steps - (x - base)[:, None]) * stretch)
    index = base.astype(np.int64)[:, None] + steps
    if exclude_outside:
        weights = np.where((index >= 0) & (index < a.size), weights, 0)
    total = weights.sum(1, keepdims=True)
    return np.clip(index, 0, a.size - 1), weights / np.where(total == 0, 1, total)


def _weighted_sum(x: Value, axis: int, index: np.ndarray, weights: np.ndarray) -> Value:
    def along(vector: np.ndarray) -> np.ndarray:
        return vector.astype(x.dtype).reshape(vector.shape + (1,) * (x.ndim - axis - 1))

    if index.shape[1] > FEW:
        return jnp.sum(jnp.take(x, index, axis=axis) * along(weights), axis + 1)
    terms = [jnp.take(x, index[:, k], axis=axis) * along(weights[:, k]) for k in range(index.shape[1])]
    return sum(terms[1:], terms[0])


def _round_half_up(x: float) -> int:
    return floor(x + 0.5)


def _vector(value: Value | None, what: str) -> np.ndarray | None:
    """A vector that must be known, in float64; an empty one stands for an absent one."""
    if value is None or value.size == 0:
        return None
    return concrete(value, what).astype(np.float64).reshape(-1)


def _plan(
    shape: tuple[int, ...],
    axes: Sequence[int],
    roi: np.ndarray | None,
    scales: np.ndarray | None,
    sizes: np.ndarray | None,
    policy: str,
) -> list[_Axis]:
    if (scales is None) == (sizes is None):
        raise InvalidModelError("Resize takes either scales or sizes")
    n = len(axes)
    given = scales if sizes is None else sizes
    if given is None or len(given) != n or (roi is not None and len(roi) != 2 * n):
        raise InvalidModelError(f"Resize of {n} axes with scales, sizes or roi of another length")
    bounds = [(0.0, 1.0)] * n if roi is None else [(float(roi[i]), float(roi[i + n])) for i in range(n)]
    lengths = [shape[axis] for axis in axes]
    if sizes is None:
        # whatever the roi: ONNX's text has its extent as a factor, its implementations do not
        # multiplied in 32 bits, as scales are given: 10 · 0.7 is 7
        outputs = [
            floor(np.float32(length) * np.float32(factor)) for length, factor in zip(lengths, given, strict=True)
        ]
        factors = [float(str(np.float32(factor))) for factor in given]
    else:
        factors = [float(size) / length if length else 1.0 for size, length in zip(given, lengths, strict=True)]
        outputs = [int(size) for size in given]
        if policy != "stretch":
            if policy not in ("not_larger", "not_smaller"):
                raise InvalidModelError(f"unknown keep_aspect_ratio_policy {policy!r}")
            factors = [min(factors) if policy == "not_larger" else max(factors)] * n
            outputs = [_round_half_up(factor * s) for factor, s in zip(factors, lengths, strict=True)]
    return [_Axis(*item) for item in zip(axes, lengths, outputs, factors, bounds, strict=True)]


@primitive
def Resize(
    x: Value,
    roi: Value | None = None,
    scales: Value | None = None,
    sizes: Value | None = None,
    *,
    antialias: int = 0,
    axes: tuple[int, ...] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Value:
    if mode not in ("nearest", "linear", "cubic"):
        raise InvalidModelError(f"unknown mode {mode!r} of Resize")
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    if crop and roi is None:
        raise InvalidModelError("tf_crop_and_resize needs a roi")
    chosen = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes]
    plan = _plan(
        x.shape,
        chosen,
        _vector(roi, "roi of Resize") if crop else None,
        _vector(scales, "scales of Resize"),
        _vector(sizes, "sizes of Resize"),
        keep_aspect_ratio_policy,
    )
    plan = [a for a in plan if a.output != a.size or a.scale != 1 or a.roi != (0.0, 1.0)]
    points = [_coordinates(a, coordinate_transformation_mode) for a in plan]
    if mode == "nearest":
        y = x
        for a, point in zip(plan, points, strict=True):
            index = np.clip(_nearest(point, nearest_mode), 0, a.size - 1)
            y = library(y).take(y, index, axis=a.axis)
    else:
        filter_, support = (_linear, 1) if mode == "linear" else (_cubic(cubic_coeff_a), 2)
        y = jnp.asarray(x).astype(_computed_in(x.dtype, mode))
        for a, point in zip(plan, points, strict=True):
            y = _weighted_sum(y, a.axis, *_taps(point, a, filter_, support, antialias, exclude_outside))
        y = _back(y, x.dtype)
    if crop:
        y = _extrapolated(y, plan, points, extrapolation_value)
    return y


def _computed_in(dtype: np.dtype, mode: str) -> np.dtype:
    if dtype.kind == "O":
        raise UnsupportedError(f"Resize of texts in mode {mode!r}; use nearest")
    exact = dtype.kind in "iub"
    return np.dtype(np.float64) if exact else jnp.promote_types(dtype, np.float32)


def _back(y: Value, dtype: np.dtype) -> Value:
    """Integers are rounded to the nearest and saturated."""
    if dtype.kind == "b":
        return y != 0
    if not np.issubdtype(dtype, np.integer):
        return y.astype(dtype)
    info = np.iinfo(dtype)
    lowest, highest = float(info.min), float(info.max)
    inside = jnp.clip(jnp.rint(y), lowest, np.nextafter(highest, 0) if highest > info.max else highest)
    return inside.astype(dtype)


def _extrapolated(y: Value, plan: list[_Axis], points: list[np.ndarray], value: float) -> Value:
    """The value where an output element lies outside the input."""
    if y.dtype.kind == "O":
        raise UnsupportedError("Resize of texts with tf_crop_and_resize; use another coordinate_transformation_mode")
    for a, point in zip(plan, points, strict=True):
        outside = (point < 0) | (point > a.size - 1)
        if outside.any():
            mask = outside.reshape((-1,) + (1,) * (y.ndim - a.axis - 1))
            y = library(y).where(mask, np.asarray(value).astype(y.dtype), y)
    return y
