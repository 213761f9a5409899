"""Resize, nearest and linear, one axis after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from .builder import Builder, Value
from .operators import operator
from .tensors import BATCH, Tensor

_ROUND: dict[str, Any] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _places(mode: str, size: int, out: int, scale: float) -> np.ndarray | None:
    """Where each of `out` elements lies on an axis of `size`; None for a mode that is not known."""
    i = np.arange(out, dtype=np.float64)
    match mode:
        case "half_pixel":
            return (i + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (i + 0.5) / scale - 0.5 if out > 1 else np.zeros(1)
        case "half_pixel_symmetric":
            centre = size / 2 * (1 - out / (size * scale))
            return centre + (i + 0.5) / scale - 0.5
        case "asymmetric":
            return i / scale
        case "align_corners":
            return i * (size - 1) / (out - 1) if out > 1 else np.zeros(1)
    return None


@operator
def Resize(
    b: Builder,
    x: Tensor,
    roi: Value | None = None,
    scales: Value | None = None,
    sizes: Value | None = None,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
    axes: Any = None,
    antialias: int = 0,
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
) -> Tensor:
    """ONNX Resize."""
    if mode not in ("nearest", "linear") or antialias or keep_aspect_ratio_policy != "stretch":
        raise b.refuse(f"Resize with mode {mode}, antialias {antialias} and {keep_aspect_ratio_policy}")
    b.check_float(x)
    over = list(range(len(x.shape))) if axes is None else [int(a) % len(x.shape) for a in axes]
    factors = np.zeros(0) if scales is None else b.numbers_of(scales, "Resize with scales")
    by_size = factors.size == 0
    given = b.sizes_of(sizes, "Resize with sizes") if by_size else factors
    for axis, number in zip(over, given, strict=True):
        size = x.shape[axis]
        if axis == x.axis:
            if int(number) != (size * BATCH if by_size else 1):
                raise b.refuse("Resize along the batch's axis")
            continue
        out = int(number) if by_size else int(np.floor(size * float(number)))
        scale = out / size if by_size else float(number)
        if out == size and scale == 1:
            continue
        where = _places(coordinate_transformation_mode, size, out, scale)
        if where is None:
            raise b.refuse(f"Resize with {coordinate_transformation_mode}")
        if mode == "nearest":
            picks = np.clip(_ROUND[nearest_mode](where), 0, size - 1).astype(np.int64)
            x = x.moved(np.take(x.index, picks, axis), x.axis)
        else:
            x = _linear(b, x, axis, where)
    return x


def _linear(b: Builder, x: Tensor, axis: int, where: np.ndarray) -> Tensor:
    size = x.shape[axis]
    below = np.floor(where)
    weight = (where - below).reshape(-1, *(1,) * (len(x.shape) - 1 - axis))
    low, high = (
        x.moved(np.take(x.index, np.clip(below + step, 0, size - 1).astype(np.int64), axis), x.axis) for step in (0, 1)
    )
    part = b.elementwise("Mul", [low, 1 - weight], {}, x.dtype)
    return b.elementwise("ScaleShift", [high, weight, part], {}, x.dtype)
