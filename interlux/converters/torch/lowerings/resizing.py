"""Resizing of images, sequences and volumes, and sampling at positions of a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ....ir.errors import UnsupportedError
from ...builder import Value
from ..builder import Size, TorchBuilder
from .registry import aten
from .spatial import sizes_after, sizes_before, spatial_rank

Factors = Sequence[float | None] | None


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized.

    Arguments:
        size, output: its sizes before and after.
        factor: output / size as the module said it, None if it said the output size.
        align: whether the first and last elements' centres stay at the ends.
    """

    size: Size
    output: Size
    factor: float | None
    align: bool

    @property
    def static(self) -> tuple[int, int] | None:
        return (self.size, self.output) if isinstance(self.size, int) and isinstance(self.output, int) else None

    @property
    def multiple(self) -> int | None:
        """By what integer the axis is repeated, if by one."""
        if self.static is not None:
            ratio = self.static[1] / max(self.static[0], 1)
            whole = ratio if self.factor is None or self.factor == ratio else 0.0
        else:
            whole = self.factor or 0.0
        return int(whole) if whole >= 1 and whole == int(whole) else None

    def step(self, size: int, output: int) -> float:
        """How far neighbours of the result are apart in the input."""
        if self.align:
            return (size - 1) / (output - 1) if output > 1 else 0.0
        return 1 / self.factor if self.factor else size / output

    def positions(self, size: int, output: int) -> np.ndarray:
        """Where the elements of the result lie in the input."""
        offset = 0.0 if self.align else 0.5
        return self.step(size, output) * (np.arange(output) + offset) - offset


def _axes(op: TorchBuilder, factors: Factors, align: bool) -> list[_Axis]:
    n = spatial_rank(op)
    given = [None] * n if factors is None else [f if f else None for f in factors]
    return [_Axis(*item, align=align) for item in zip(sizes_before(op, n), sizes_after(op, n), given, strict=True)]


def _vector_forms(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.vec" for name in names)


# --- nearest


@aten(*_vector_forms("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"))
@aten(*_vector_forms("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"))
def nearest(op: TorchBuilder, x: Value, size: Any, factors: Factors = None) -> Value:
    axes = _axes(op, factors, False)
    first = op.rank_of(x) - len(axes)
    repeats = [a.multiple for a in axes]
    if all(repeats):
        scales = np.array([*(1,) * first, *(r for r in repeats if r is not None)], np.float32)
        return _resize(op, x, scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    exact = "exact" in op.operator
    kind = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)  # of torch's own positions
    for i, a in enumerate(axes):
        index = _dynamic_nearest(op, a, kind, exact) if a.static is None else op.const(_nearest(a, kind, exact))
        x = op.Gather(x, index, axis=first + i)
    return x


@aten("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
@aten("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d")
def nearest_by_axis(op: TorchBuilder, x: Value, size: Any, *factors: float | None) -> Value:
    return nearest(op, x, size, factors if any(factors) else None)


def _nearest(a: _Axis, kind: np.dtype[Any], exact: bool) -> np.ndarray:
    """Which element each element of the result takes, in torch's arithmetic: rounding decides between neighbours."""
    size, output = a.static or (1, 1)
    step = kind.type(1 / a.factor) if a.factor else kind.type(size) / kind.type(output)
    places = np.arange(output).astype(kind)
    if exact:
        half = kind.type(0.5)
        position = np.maximum(step * (places + half) - half, kind.type(0)) + half
    else:
        position = step * places
    return np.minimum(np.floor(position.astype(np.float32)).astype(np.int64), size - 1)


def _dynamic_nearest(op: TorchBuilder, a: _Axis, kind: np.dtype[Any], exact: bool) -> Value:
    """As `_nearest`, computed where the sizes are known: when the model runs."""
    size, output = op.value(a.size, np.int64), op.value(a.output, np.int64)
    ratio = op.Div(op.cast(size, kind), op.cast(output, kind))
    step = op.const(np.asarray(1 / a.factor, kind)) if a.factor else ratio
    position = op.cast(op.Range(op.const(np.array(0)), output, op.const(np.array(1))), kind)
    if exact:
        half = op.const(np.asarray(0.5, kind))
        position = op.Sub(op.Mul(step, op.Add(position, half)), half)
        position = op.Add(op.Max(position, op.const(np.asarray(0, kind))), half)
    else:
        position = op.Mul(step, position)
    index = op.cast(op.Floor(op.cast(position, np.float32)), np.int64)
    return op.Min(index, op.Sub(size, op.const(np.array(1))))


# --- linear and cubic


@aten(*_vector_forms("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"))
def smooth(op: TorchBuilder, x: Value, size: Any, align: bool, factors: Factors = None) -> Value:
    _refuse_integers(op, x)
    cubic = "cubic" in op.operator
    axes = _axes(op, factors, align)
    settings = {
        "mode": "cubic" if cubic else "linear",
        "coordinate_transformation_mode": "align_corners" if align else "half_pixel",
        **({"cubic_coeff_a": -0.75} if cubic else {}),
    }
    lead = op.rank_of(x) - len(axes)
    if not align and all(_is_exact(a) for a in axes):
        return _resize(op, x, _scales(axes, lead), **settings)
    if align or not any(_is_coarser(a) for a in axes):
        if align or all(_is_ratio(a) for a in axes):
            return _resize(op, x, op.sizes(op.result.shape), **settings)
        if all(_is_exact(a) or _rounds_alike(a) for a in axes):
            return _resize(op, x, _scales(axes, lead), **settings)
    taps = _cubic_taps if cubic else _linear_taps
    return _weighted(op, x, axes, taps)


@aten("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d")
def smooth_by_axis(op: TorchBuilder, x: Value, size: Any, align: bool, *factors: float | None) -> Value:
    return smooth(op, x, size, align, factors if any(factors) else None)


def _refuse_integers(op: TorchBuilder, x: Value) -> None:
    if x.dtype.kind in "iu":
        raise UnsupportedError(
            f"{op.operator} of {x.dtype}, which torch computes in fixed point{op.where()}; use float"
        )


def _is_ratio(a: _Axis) -> bool:
    """Whether the factor, if any, is that of the sizes, so that these say everything."""
    return a.factor is None or (a.static is not None and a.static[0] * a.factor == a.static[1])


def _factor(a: _Axis) -> float:
    if a.factor:
        return a.factor
    return a.static[1] / a.static[0] if a.static is not None else 0.0


def _is_exact(a: _Axis) -> bool:
    """Whether the factor has so few digits that its product with a size is the same in any precision."""
    return _is_short(_factor(a))


def _is_short(number: float) -> bool:
    return 0 < number <= 64 and number * 16 == int(number * 16)


def _is_coarser(a: _Axis) -> bool:
    """Whether ONNX's factor is rounded where torch's, output to input, is not: onnxruntime would be less precise."""
    return a.static is not None and not _is_exact(a) and _is_short(a.step(*a.static))


def _rounds_alike(a: _Axis) -> bool:
    """Whether the output size follows from the factor in float32, as ONNX has it, in every runtime's arithmetic."""
    if a.static is None or not a.factor:
        return False
    size, output = a.static
    short = np.float32(a.factor)
    return int(np.float32(size) * short) == output == int(size * float(short))


def _scales(axes: Sequence[_Axis], lead: int) -> np.ndarray:
    return np.array([*(1,) * lead, *map(_factor, axes)], np.float32)


def _resize(op: TorchBuilder, x: Value, extent: np.ndarray | Value, **settings: Any) -> Value:
    """ONNX's Resize by factors (float32) or to sizes."""
    if isinstance(extent, Value):
        return op.Resize(x, None, None, extent, **settings)
    return op.Resize(x, None, op.const(extent), None, **settings)


Taps = Callable[[_Axis, int, int], tuple[np.ndarray, np.ndarray]]  # -> index [output, taps], weights [output, taps]


def _linear_taps(a: _Axis, size: int, output: int) -> tuple[np.ndarray, np.ndarray]:
    position = np.maximum(a.positions(size, output), 0)
    low = np.minimum(np.floor(position).astype(np.int64), size - 1)
    upper = np.clip(position - low, 0, 1)
    return np.stack([low, np.minimum(low + 1, size - 1)], 1), np.stack([1 - upper, upper], 1)


def _cubic_filter(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution (1981, equation 4)."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _cubic_taps(a: _Axis, size: int, output: int) -> tuple[np.ndarray, np.ndarray]:
    position = a.positions(size, output)
    low = np.minimum(np.floor(position).astype(np.int64), size - 1)
    t = np.clip(position - low, 0, 1)[:, None]
    steps = np.arange(-1, 3)
    return np.clip(low[:, None] + steps, 0, size - 1), _cubic_filter(t - steps, -0.75)


def _antialiased_taps(a: _Axis, size: int, output: int, cubic: bool) -> tuple[np.ndarray, np.ndarray]:
    """A filter as wide as the result's elements are in the input; weights of what lies outside are left out."""
    step = a.step(size, output)
    stretch = max(step, 1.0)
    support = (2.0 if cubic else 1.0) * stretch
    centre = step * (np.arange(output) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), size)
    index = first[:, None] + np.arange((last - first).max())
    distance = (index - centre[:, None] + 0.5) / stretch
    weights = _cubic_filter(distance, -0.5) if cubic else np.clip(1 - np.abs(distance), 0, 1)
    weights = np.where(index < last[:, None], weights, 0)
    return np.minimum(index, size - 1), weights / weights.sum(1, keepdims=True)


@aten(*_vector_forms("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"))
def antialiased(op: TorchBuilder, x: Value, size: Any, align: bool, factors: Factors = None) -> Value:
    _refuse_integers(op, x)
    cubic = "cubic" in op.operator
    return _weighted(op, x, _axes(op, factors, align), partial(_antialiased_taps, cubic=cubic))


@aten("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
def antialiased_by_axis(op: TorchBuilder, x: Value, size: Any, align: bool, *factors: float | None) -> Value:
    return antialiased(op, x, size, align, factors if any(factors) else None)


def _weighted(op: TorchBuilder, x: Value, axes: Sequence[_Axis], taps: Taps) -> Value:
    """Axis by axis, weighted sums of elements."""
    first = op.rank_of(x) - len(axes)
    y = op.cast(x, np.promote_types(x.dtype, np.float32)) if x.dtype.itemsize == 2 else x
    for i, a in enumerate(axes):
        if a.static is None:
            raise UnsupportedError(
                f"{op.operator} of an axis of dynamic size by {a.factor or 'size'}{op.where()}; fix the size, or give "
                "a factor such as 2 or 0.5 without antialias"
            )
        index, weights = taps(a, *a.static)
        column = weights.reshape(*weights.shape, *(1,) * (len(axes) - i - 1))
        product = op.Mul(op.Gather(y, op.const(index), axis=first + i), op.const(column, like=y))
        y = op.ReduceSum(product, op.ints(first + i + 1), keepdims=0)
    return op.cast(y, x.dtype)


# --- grids

_SAMPLINGS = ("linear", "nearest", "cubic")
_PADDINGS = ("zeros", "border", "reflection")


@aten("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sample(op: TorchBuilder, x: Value, grid: Value, sampling: int, padding: int, align: bool) -> Value:
    return op.GridSample(x, grid, mode=_SAMPLINGS[sampling], padding_mode=_PADDINGS[padding], align_corners=int(align))


@aten("affine_grid_generator")
def affine_grid(op: TorchBuilder, theta: Value, size: Sequence[Size], align: bool) -> Value:
    spatial = list(size[2:])
    # with aligned corners ONNX puts the only element of an axis at -1, torch at 0
    if align and not all(isinstance(s, int) and s > 1 for s in spatial):
        raise UnsupportedError(
            f"affine_grid with align_corners over the sizes {spatial}, which must be fixed and above 1{op.where()}; "
            "use align_corners=False"
        )
    return op.AffineGrid(theta, op.sizes(size), align_corners=int(align))
