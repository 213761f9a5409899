"""Values at fractional positions: GridSample, DeformConv, RoiAlign, and the grids they take."""

from __future__ import annotations

from itertools import product
from math import prod

import jax.numpy as jnp
import numpy as np

from ....ir.errors import InvalidModelError, UnsupportedError
from .linear import EXACT
from .registry import Value, concrete, integers, library, primitive

Ints = tuple[int, ...]


def _wide(dtype: np.dtype) -> np.dtype:
    """The dtype that positions and weights are computed in."""
    return jnp.promote_types(dtype, np.float32)


@primitive
def AffineGrid(theta: Value, size: Value, *, align_corners: int = 0) -> Value:
    """theta [batch, n, n + 1], size (batch, channels, ...) -> [batch, ..., n]."""
    spatial = integers(size, "size of AffineGrid")[2:]
    axes = []
    for length in spatial:
        step = np.arange(length, dtype=np.float64)
        if align_corners:  # a single pixel is the first one, as in ONNX's implementations
            axes.append(2 * step / max(length - 1, 1) - 1)
        else:
            axes.append((2 * step + 1) / length - 1)
    corners = np.meshgrid(*axes, indexing="ij")[::-1]  # x first
    wide = _wide(theta.dtype)
    base = np.stack([*corners, np.ones(spatial)], -1).reshape(-1, len(spatial) + 1).astype(wide)
    grid = jnp.matmul(base, jnp.swapaxes(jnp.asarray(theta).astype(wide), 1, 2), precision=EXACT)
    return jnp.reshape(grid, (theta.shape[0], *spatial, len(spatial))).astype(theta.dtype)


def _reflected(x: Value, low: float, high: float) -> Value:
    """x mirrored at both borders until it lies between them."""
    xp, span = library(x), high - low
    if span == 0:
        return xp.full_like(x, low)
    turn = xp.mod(xp.abs(x - low), 2 * span)
    return low + xp.where(turn <= span, turn, 2 * span - turn)


def _cubic_weights(t: Value) -> list[Value]:
    """Weights of the elements at -1, 0, 1, 2 for a position t in [0, 1) (Keys 1981, a = -0.75)."""
    a = -0.75

    def near(d: Value) -> Value:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Value) -> Value:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def _at(flat: Value, index: Value) -> Value:
    """Elements of flat [batch, channels, elements] at index [batch, points] -> [batch, channels, points]."""
    return library(flat, index).take_along_axis(flat, index[:, None, :], axis=2)


Tap = tuple[Value, Value | None, Value | None]  # index; weight (None: 1); whether it is inside (None: it always is)


def _gathered(x: Value, taps: list[list[Tap]]) -> Value:
    """Σ weight · element over all combinations of the axes' taps -> [batch, channels, points]."""
    sizes = x.shape[2:]
    flat = x.reshape((*x.shape[:2], prod(sizes)))
    result = None
    for combination in product(*taps):
        index, weight, inside = 0, None, None
        for size, (i, w, valid) in zip(sizes, combination, strict=True):
            index = index * size + i
            weight = w if weight is None or w is None else weight * w
            inside = valid if inside is None or valid is None else inside & valid
        part = _at(flat, index)
        if inside is not None:
            outside = np.asarray("", object) if part.dtype.kind == "O" else np.zeros((), part.dtype)
            part = library(part, inside).where(inside[:, None], part, outside)
        if weight is not None:
            part = part * weight[:, None]
        result = part if result is None else result + part
    return result


def _linear_taps(x: Value, size: int) -> list[Tap]:
    """The two neighbours of a position on an axis; outside there are zeros."""
    base = library(x).floor(x)
    return [_tap(base + step, (1 - (x - base)) if step == 0 else (x - base), size) for step in (0, 1)]


def _tap(place: Value, weight: Value | None, size: int) -> Tap:
    inside = (place >= 0) & (place <= size - 1)
    xp = library(place)
    return xp.where(inside, place, xp.zeros_like(place)).astype(np.int64), weight, inside


def _grid_taps(x: Value, size: int, mode: str, padding_mode: str, align_corners: int) -> list[Tap]:
    """The elements on an axis that a normalised position takes."""
    xp = library(x)
    x = (x + 1) / 2 * (size - 1) if align_corners else ((x + 1) * size - 1) / 2
    low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
    if mode == "nearest":
        x = xp.rint(x)
    outside = (x < low) | (x > high)
    if padding_mode == "border" and mode != "cubic":  # a cubic's neighbours are moved one by one, below
        x = xp.where(outside, xp.clip(x, 0, size - 1), x)
    elif padding_mode == "reflection":
        x = xp.where(outside, _reflected(x, low, high), x)
    base = x if mode == "nearest" else xp.floor(x)
    t = x - base
    weights = [None] if mode == "nearest" else [1 - t, t] if mode == "linear" else _cubic_weights(t)
    taps: list[Tap] = []
    for step, weight in enumerate(weights, -1 if mode == "cubic" else 0):
        place = base + step
        if padding_mode == "zeros":
            taps.append(_tap(place, weight, size))
            continue
        if padding_mode == "reflection":
            place = _reflected(place, low, high)
        taps.append((xp.clip(place, 0, size - 1).astype(np.int64), weight, None))
    return taps


@primitive
def GridSample(
    x: Value, grid: Value, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Value:
    """x [batch, channels, ...], grid [batch, ..., n] with the last axis' position first."""
    if mode not in ("nearest", "linear", "cubic") or padding_mode not in ("zeros", "border", "reflection"):
        raise InvalidModelError(f"GridSample with mode {mode!r} and padding_mode {padding_mode!r}")
    n = x.ndim - 2
    if grid.shape[-1] != n or grid.ndim != x.ndim:
        raise InvalidModelError(f"GridSample of {tuple(x.shape)} with a grid of {tuple(grid.shape)}")
    output = (*x.shape[:2], *grid.shape[1:-1])
    if x.dtype.kind == "O":
        if mode != "nearest":
            raise UnsupportedError(f"GridSample of texts in mode {mode!r}; use nearest")
        grid = concrete(grid, "grid of GridSample")
    wide = _wide(grid.dtype)
    if x.dtype.kind not in "iubO":
        wide = jnp.promote_types(wide, jnp.finfo(x.dtype).dtype)
    points = grid.reshape((grid.shape[0], -1, n)).astype(wide)
    taps = [
        _grid_taps(points[:, :, n - 1 - i], size, mode, padding_mode, align_corners)
        for i, size in enumerate(x.shape[2:])
    ]
    if mode == "nearest":
        return _gathered(x, taps).reshape(output)
    exact = x.dtype.kind in "iub"
    values = jnp.asarray(x).astype(wide if exact else jnp.promote_types(x.dtype, wide))
    return _gathered(values, taps).reshape(output).astype(x.dtype)


@primitive
def DeformConv(
    x: Value,
    weight: Value,
    offset: Value,
    bias: Value | None = None,
    mask: Value | None = None,
    *,
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    offset_group: int = 1,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Value:
    """A convolution whose kernel elements are moved by offsets [batch, offset_group·kernel·n, ...]."""
    n = x.ndim - 2
    kernel, sizes, output = tuple(weight.shape[2:]), tuple(x.shape[2:]), tuple(offset.shape[2:])
    strides, dilations, pads = strides or (1,) * n, dilations or (1,) * n, pads or (0,) * 2 * n
    expected = tuple(
        (sizes[i] + pads[i] + pads[i + n] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in range(n)
    )
    if output != expected:
        raise InvalidModelError(f"DeformConv gives {expected} elements, the offsets are for {output}")
    batch, channels, outputs = x.shape[0], x.shape[1], weight.shape[0]
    taps, places = prod(kernel), prod(output)
    wide = _wide(x.dtype)
    moved = jnp.asarray(offset).astype(wide).reshape((batch * offset_group, *kernel, n, *output))
    positions = []
    for i in range(n):
        at_rest = (
            np.arange(kernel[i]).reshape((-1,) + (1,) * (n - 1 - i + n)) * dilations[i]
            + np.arange(output[i]).reshape((-1,) + (1,) * (n - 1 - i)) * strides[i]
            - pads[i]
        ).astype(wide)
        axis = moved[(slice(None),) * (n + 1) + (i,)]  # [batch·offset_group, kernel, output]
        positions.append((axis + at_rest).reshape((batch * offset_group, taps * places)))
    values = jnp.asarray(x).astype(wide).reshape((batch * offset_group, channels // offset_group, *sizes))
    found = _gathered(values, [_linear_taps(p, size) for p, size in zip(positions, sizes, strict=True)])
    found = found.reshape((batch, offset_group, channels // offset_group, taps, places))
    if mask is not None:
        found = found * mask.reshape((batch, offset_group, 1, taps, places)).astype(wide)
    y = jnp.einsum(
        "bgckp,gock->bgop",
        found.reshape((batch, group, channels // group, taps, places)),
        jnp.asarray(weight).astype(wide).reshape((group, outputs // group, channels // group, taps)),
        precision=EXACT,
    ).reshape((batch, outputs, *output))
    if bias is not None:
        y = y + bias.reshape((1, -1) + (1,) * n)
    return y.astype(x.dtype)


def _bin_samples(
    start: Value, length: Value, size: int, bins: int, counts: Value, most: int
) -> tuple[Value, Value, Value, Value, Value]:
    """The sampling points of every box on one axis, [boxes, bins, samples] each.

    Arguments:
        start, length: of the boxes [boxes].
        size: of the axis.
        counts: how many points a bin has [boxes], `most` at most.

    Returns:
        the lower and the upper neighbour, their weights (zero for points far outside), and which points count.
    """
    step = jnp.arange(most)
    share = (step + 0.5).astype(start.dtype) / jnp.maximum(counts, 1).astype(start.dtype)[:, None]  # [boxes, samples]
    begin = jnp.arange(bins).astype(start.dtype)[:, None]
    width = (length / bins)[:, None, None]
    place = start[:, None, None] + begin * width + share[:, None, :] * width
    outside = (place < -1) | (place > size)
    place = jnp.clip(place, 0, size - 1)
    low = jnp.floor(place)
    upper = place - low
    lower = 1 - upper
    used = jnp.broadcast_to((step < counts[:, None])[:, None, :], place.shape)
    zero = jnp.zeros_like(place)
    low = low.astype(np.int64)
    return (
        low,
        jnp.minimum(low + 1, size - 1),
        jnp.where(outside, zero, lower),
        jnp.where(outside, zero, upper),
        used,
    )


@primitive
def RoiAlign(
    x: Value,
    rois: Value,
    batch_indices: Value,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Value:
    """x [batch, channels, height, width], rois [boxes, 4] as x1, y1, x2, y2. With sampling_ratio 0 the number of points
    depends on the boxes: they must be known.

    In mode max the greatest of the four weighted neighbours of all points is taken, as in ONNX's tests.
    """
    if mode not in ("avg", "max") or coordinate_transformation_mode not in ("half_pixel", "output_half_pixel"):
        raise InvalidModelError(f"RoiAlign with mode {mode!r} and {coordinate_transformation_mode!r}")
    wide = _wide(x.dtype)
    half = coordinate_transformation_mode == "half_pixel"
    if not sampling_ratio:
        rois = concrete(rois, "the boxes of RoiAlign with sampling_ratio 0")
    xp = library(rois)
    boxes = xp.asarray(rois).astype(wide) * np.asarray(spatial_scale, wide) - np.asarray(0.5 if half else 0, wide)
    boxes_count, (height, width) = boxes.shape[0], x.shape[2:]
    parts = []
    for axis, size, bins in ((1, height, output_height), (0, width, output_width)):
        start, length = boxes[:, axis], boxes[:, axis + 2] - boxes[:, axis]
        if not half:
            length = xp.maximum(length, np.asarray(1, wide))
        if sampling_ratio:
            counts, most = np.full(boxes_count, sampling_ratio), sampling_ratio
        else:
            counts = np.maximum(np.ceil(length / np.asarray(bins, wide)), 0).astype(np.int64)
            most = max(int(counts.max(initial=0)), 1)
        parts.append((*_bin_samples(start, length, size, bins, counts, most), counts))
    (y_low, y_high, wy_low, wy_high, y_used, y_counts), (x_low, x_high, wx_low, wx_high, x_used, x_counts) = parts
    rows = jnp.transpose(jnp.asarray(x).astype(wide), (0, 2, 3, 1)).reshape((-1, x.shape[1]))

    def by_y(part: Value) -> Value:
        return part[:, :, None, :, None]

    def by_x(part: Value) -> Value:
        return part[:, None, :, None, :]

    image = batch_indices.astype(np.int64).reshape((-1, 1, 1, 1, 1)) * height
    corners = [
        jnp.take(rows, (image + by_y(row)) * width + by_x(column), axis=0)
        * (by_y(row_weight) * by_x(column_weight))[..., None]
        for row, row_weight in ((y_low, wy_low), (y_high, wy_high))
        for column, column_weight in ((x_low, wx_low), (x_high, wx_high))
    ]  # [boxes, bins, bins, points, points, channels] each
    used = (by_y(y_used) & by_x(x_used))[..., None]
    if mode == "avg":
        total = jnp.sum(jnp.where(used, sum(corners), np.zeros((), wide)), (3, 4))
        result = total / np.maximum(y_counts * x_counts, 1).astype(wide).reshape((-1, 1, 1, 1))
    else:
        greatest = jnp.maximum(jnp.maximum(corners[0], corners[1]), jnp.maximum(corners[2], corners[3]))
        result = jnp.max(jnp.where(used, greatest, np.asarray(-np.inf, wide)), (3, 4))
        result = jnp.where(jnp.any(used, (3, 4)), result, np.zeros((), wide))
    return jnp.transpose(result, (0, 3, 1, 2)).astype(x.dtype)
