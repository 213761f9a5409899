"""Detection operators, and images from files."""

from __future__ import annotations

import io

import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.errors import InvalidModelError, UnsupportedError
from .registry import Value, concrete, primitive


def _rounded(x: Value) -> Value:
    """To the nearest integer, halves away from zero (as C++'s round)."""
    return jnp.sign(x) * jnp.floor(jnp.abs(x) + 0.5)


def _bins(begin: Value, end: Value, size: int, bins: int) -> Value:
    """Which elements of an axis belong to each bin of a box [bins, size]; neighbours may share elements."""
    length = jnp.maximum(end - begin + 1, 1)
    number = np.arange(bins)
    first, last = number * length // bins + begin, -(-(number + 1) * length // bins) + begin
    place = np.arange(size)
    return (place >= first[:, None]) & (place < last[:, None])


@primitive
def MaxRoiPool(x: Value, rois: Value, *, pooled_shape: tuple[int, ...], spatial_scale: float = 1.0) -> Value:
    """x [batch, channels, height, width], rois [boxes, 5] as image, x1, y1, x2, y2. An empty bin gives zero."""
    height, width = x.shape[2:]
    lowest, zero = np.asarray(-np.inf, x.dtype), np.zeros((), x.dtype)
    wide = jnp.promote_types(x.dtype, np.float32)
    images = jnp.asarray(x)

    def pool(roi: Value) -> Value:
        corners = _rounded(roi[1:] * np.asarray(spatial_scale, wide)).astype(np.int64)
        by_y = _bins(corners[1], corners[3], height, pooled_shape[0])
        by_x = _bins(corners[0], corners[2], width, pooled_shape[1])
        image = images[roi[0].astype(np.int64)]
        rows = jnp.stack([jnp.max(jnp.where(by_y[i][:, None], image, lowest), 1) for i in range(pooled_shape[0])], 1)
        result = jnp.stack([jnp.max(jnp.where(by_x[i], rows, lowest), 2) for i in range(pooled_shape[1])], 2)
        return jnp.where(jnp.any(by_y, 1)[:, None] & jnp.any(by_x, 1), result, zero)

    return lax.map(pool, jnp.asarray(rois).astype(wide))


@primitive
def NonMaxSuppression(
    boxes: Value,
    scores: Value,
    max_output_boxes_per_class: Value | None = None,
    iou_threshold: Value | None = None,
    score_threshold: Value | None = None,
    *,
    center_point_box: int = 0,
) -> Value:
    """boxes [batch, boxes, 4], scores [batch, classes, boxes] -> [selected, 3]: batch, class, box."""
    what = "what NonMaxSuppression selects"
    boxes, scores = concrete(boxes, what), concrete(scores, what)
    most = 0 if max_output_boxes_per_class is None else int(concrete(max_output_boxes_per_class, what).reshape(()))
    overlap = np.float32(0 if iou_threshold is None else concrete(iou_threshold, what).reshape(()))
    lowest = None if score_threshold is None else concrete(score_threshold, what).reshape(())
    selected = [
        (batch, label, box)
        for batch, corners in enumerate(_corners(boxes, center_point_box))
        for label, values in enumerate(scores[batch])
        for box in _greedy(corners, values, most, overlap, lowest)
    ]
    return np.array(selected, np.int64).reshape(-1, 3)


def _corners(boxes: np.ndarray, center_point_box: int) -> np.ndarray:
    """Boxes as lower and upper corner [..., 2, 2]."""
    if center_point_box:
        middle, half = boxes[..., :2], boxes[..., 2:] / 2
        return np.stack([middle - half, middle + half], -2)
    pair = boxes.reshape(*boxes.shape[:-1], 2, 2)
    return np.stack([pair.min(-2), pair.max(-2)], -2)


def _greedy(
    corners: np.ndarray, scores: np.ndarray, most: int, overlap: np.float32, lowest: np.ndarray | None
) -> list[int]:
    """The best boxes [boxes, 2, 2] that do not overlap a better one too much; of equal scores the first."""
    order = np.argsort(-scores, kind="stable")
    if lowest is not None:
        order = order[scores[order] > lowest]
    chosen: list[int] = []
    areas = np.prod(corners[:, 1] - corners[:, 0], -1)
    for box in order:
        if len(chosen) >= most:
            break
        sides = np.minimum(corners[box, 1], corners[chosen, 1]) - np.maximum(corners[box, 0], corners[chosen, 0])
        shared = np.prod(np.maximum(sides, 0), -1)
        union = areas[box] + areas[chosen] - shared
        valid = (shared > 0) & (areas[box] > 0) & (areas[chosen] > 0) & (union > 0)
        if not (shared[valid] / union[valid] > overlap).any():
            chosen.append(int(box))
    return chosen


_MODES = {"RGB": "RGB", "BGR": "RGB", "Grayscale": "L"}


@primitive
def ImageDecoder(encoded: Value, *, pixel_format: str = "RGB") -> Value:
    """The bytes of an image file -> [height, width, channels], uint8; no pixels if it cannot be decoded."""
    if pixel_format not in _MODES:
        raise InvalidModelError(f"unknown pixel_format {pixel_format!r}")
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise UnsupportedError("ImageDecoder needs Pillow: pip install 'interlux[onnx]'") from None
    content = concrete(encoded, "a decoded image").tobytes()
    channels = 1 if pixel_format == "Grayscale" else 3
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode in ("I", "F") or image.mode.startswith("I;"):
                raise UnsupportedError(f"ImageDecoder of pixels of mode {image.mode}; use images of 8 bits per channel")
            pixels = np.asarray(image.convert(_MODES[pixel_format]))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):  # what Pillow raises for broken files
        return np.zeros((0, 0, channels), np.uint8)
    pixels = pixels.reshape((*pixels.shape[:2], channels))
    return pixels[:, :, ::-1] if pixel_format == "BGR" else pixels
