"""Pools over windows, over adaptive windows, and back."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch

from ....ir.errors import UnsupportedError
from ...builder import Value
from ..builder import Size, TorchBuilder
from ..modes import arguments
from .registry import aten
from .spatial import Ints, all_axes, sizes_after, sizes_before, spatial_rank, with_batch


def _window(op: TorchBuilder, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil: bool) -> dict[str, Any]:
    """The attributes of a pooling; those at their defaults are left out, because older opsets lack some."""
    n = spatial_rank(op)
    kernels, dilations = all_axes(kernel, n), all_axes(dilation, n)
    strides, pads = all_axes(stride or kernel, n), all_axes(padding, n)
    window: dict[str, Any] = {"kernel_shape": kernels, "strides": strides, "pads": pads * 2}
    if any(d != 1 for d in dilations):
        window["dilations"] = dilations
    floor = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1 if isinstance(size, int) else None
        for size, k, s, p, d in zip(sizes_before(op, n), kernels, strides, pads, dilations, strict=True)
    ]
    if ceil and floor != sizes_after(op, n):  # where rounding up adds no window, it need not be said
        window["ceil_mode"] = 1
    return window


@aten("max_pool1d", "max_pool2d", "max_pool3d")
def max_pool(
    op: TorchBuilder,
    x: Value,
    kernel: Ints,
    stride: Ints = (),
    padding: Ints = (0,),
    dilation: Ints = (1,),
    ceil: bool = False,
) -> Value:
    window = _window(op, kernel, stride, padding, dilation, ceil)
    return with_batch(op, x, spatial_rank(op), lambda x: op.MaxPool(x, **window))


@aten("max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices")
def max_pool_with_indices(
    op: TorchBuilder,
    x: Value,
    kernel: Ints,
    stride: Ints = (),
    padding: Ints = (0,),
    dilation: Ints = (1,),
    ceil: bool = False,
) -> tuple[Value, Value]:
    n = spatial_rank(op)
    window = _window(op, kernel, stride, padding, dilation, ceil)
    result: tuple[Value, Value] = with_batch(op, x, n, lambda x: _maxima(op, x, n, window))
    return result


def _maxima(op: TorchBuilder, x: Value, n: int, window: dict[str, Any]) -> tuple[Value, Value]:
    """Maxima of windows and where they are; ONNX counts through batch and channels too, torch within each map."""
    y, place = op.MaxPool(x, **window, outputs=2)
    return y, op.Mod(place, op.size(prod(sizes_before(op, n))))


@aten("avg_pool1d", "avg_pool2d", "avg_pool3d")
def avg_pool(
    op: TorchBuilder,
    x: Value,
    kernel: Ints,
    stride: Ints = (),
    padding: Ints = (0,),
    ceil: bool = False,
    count_pads: bool = True,
    divisor: int | None = None,
) -> Value:
    n = spatial_rank(op)
    window = _window(op, kernel, stride, padding, (1,), ceil)
    if divisor is None:
        return with_batch(op, x, n, lambda x: op.AveragePool(x, **window, count_include_pad=int(count_pads)))
    kernels, strides, pads = window["kernel_shape"], window["strides"], window["pads"][:n]
    ends: list[Size] = list(pads)
    if window.get("ceil_mode"):  # up to where the last window ends
        have, made = sizes_before(op, n), sizes_after(op, n)
        ends = [(made[i] - 1) * strides[i] + kernels[i] - have[i] - pads[i] for i in range(n)]

    def divided(x: Value) -> Value:
        # of windows that all lie on the (padded) input, the mean is the sum divided by the kernel's elements
        if any(pads) or ends != list(pads):
            x = op.Pad(x, op.sizes([*pads, *ends]), None, op.ints(*range(2, n + 2)))
        mean = op.AveragePool(x, kernel_shape=kernels, strides=strides, pads=(0,) * 2 * n)
        return op.Mul(mean, op.const(prod(kernels) / divisor, like=x))

    return with_batch(op, x, n, divided)


@aten("fractional_max_pool2d", "fractional_max_pool3d")
def fractional_max_pool(op: TorchBuilder, *arguments: Any) -> Value:
    raise UnsupportedError(
        f"fractional max pooling, whose windows are drawn at random{op.where()}; use max_pool or adaptive_max_pool"
    )


@aten("max_unpool2d", "max_unpool3d")
def max_unpool(op: TorchBuilder, x: Value, indices: Value, size: list[Size], *window: Any) -> Value:
    """Elements put where their indices (within each map) say, zeros elsewhere."""
    n = spatial_rank(op)
    lead = op.result.shape[:-n]
    area = prod(size)
    rows = op.reshape(x, [*lead, prod(sizes_before(op, n))])
    places = op.reshape(indices, [*lead, prod(sizes_before(op, n))])
    empty = op.ConstantOfShape(op.sizes([*lead, area]), value=np.zeros(1, x.dtype))
    axis = len(lead)
    if _are_apart(op):
        filled = op.ScatterElements(empty, places, rows, axis=axis)
    else:
        # Overlapping windows may name an element twice. It appears once, but in torch both take its gradient: hence a
        # sum of zeros whose gradient reaches both.
        still = op.StopGradient(rows)
        nothing = op.ScatterElements(empty, places, op.Sub(rows, still), axis=axis, reduction="add")
        filled = op.Add(op.ScatterElements(empty, places, still, axis=axis), nothing)
    return op.reshape(filled, list(op.result.shape))


def _are_apart(op: TorchBuilder) -> bool:
    """Whether the indices come from a max pool whose windows do not overlap."""
    source = op.fx_node.args[1]
    while isinstance(source, torch.fx.Node) and "max_pool" not in str(source.target):
        source = source.args[0] if source.args else None  # through getitem, squeeze, …
    if not isinstance(source, torch.fx.Node) or "with_indices" not in str(source.target):
        return False
    given = arguments(source)
    kernels = all_axes(given["kernel_size"], 3)
    strides = all_axes(given["stride"] or given["kernel_size"], 3)
    apart = all(s >= k for s, k in zip(strides, kernels, strict=True))
    return apart and all(d == 1 for d in all_axes(given["dilation"], 3))


# --- adaptive pools: window i of an axis goes from floor(i · size / wanted) to ceil((i + 1) · size / wanted)


def _windows(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Which elements the windows of an axis have [wanted, longest], and which of them count."""
    start = np.arange(wanted) * size // wanted
    end = -(-(np.arange(wanted) + 1) * size // wanted)
    index = start[:, None] + np.arange((end - start).max())
    return np.minimum(index, size - 1), index < end[:, None]


def _ratios(have: list[Size], wanted: list[Size]) -> tuple[int, ...] | None:
    """The windows' sizes, if they are equal on each axis."""
    if all(isinstance(h, int) and isinstance(w, int) and h % w == 0 for h, w in zip(have, wanted, strict=True)):
        return tuple(int(h) // int(w) for h, w in zip(have, wanted, strict=True))
    return None


def _is_one(size: Size) -> bool:
    return isinstance(size, int) and size == 1


@aten("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def adaptive_avg_pool(op: TorchBuilder, x: Value, size: list[Size]) -> Value:
    n = spatial_rank(op)
    have, wanted = sizes_before(op, n), sizes_after(op, n)
    if all(map(_is_one, wanted)):
        return with_batch(op, x, n, op.GlobalAveragePool)
    if (ratios := _ratios(have, wanted)) is not None:
        return with_batch(op, x, n, lambda x: op.AveragePool(x, kernel_shape=ratios, strides=ratios))
    first = op.rank_of(x) - n
    y = op.cast(x, np.promote_types(x.dtype, np.float32)) if x.dtype.itemsize == 2 else x
    for i in range(n):
        if op.shape([have[i]]) == op.shape([wanted[i]]):
            continue
        if _is_one(wanted[i]):
            y = op.ReduceMean(y, op.ints(first + i), keepdims=1)
            continue
        index, inside = _windows(*_static(op, have[i], wanted[i]))
        column = (*inside.shape, *(1,) * (n - i - 1))
        taken = op.Gather(y, op.const(index), axis=first + i)
        kept = op.Where(op.const(inside.reshape(column)), taken, op.const(0, like=y))
        counts = inside.sum(1).reshape(column[:1] + column[2:])
        y = op.Div(op.ReduceSum(kept, op.ints(first + i + 1), keepdims=0), op.const(counts, like=y))
    return op.cast(y, x.dtype)


def _static(op: TorchBuilder, have: Size, wanted: Size) -> tuple[int, int]:
    if not isinstance(have, int) or not isinstance(wanted, int):
        raise UnsupportedError(
            f"adaptive pooling of an axis of dynamic size to {wanted}{op.where()}; fix the size, or pool to 1"
        )
    return have, wanted


@aten("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptive_max_pool(op: TorchBuilder, x: Value, size: list[Size]) -> tuple[Value, Value]:
    n = spatial_rank(op)
    have, wanted = sizes_before(op, n), sizes_after(op, n)

    def pool(x: Value) -> tuple[Value, Value]:
        if all(map(_is_one, wanted)):
            return _global_max(op, x, n)
        if (ratios := _ratios(have, wanted)) is not None:
            return _maxima(op, x, n, {"kernel_shape": ratios, "strides": ratios})
        return _unequal_max(op, x, [_static(op, h, w) for h, w in zip(have, wanted, strict=True)])

    result: tuple[Value, Value] = with_batch(op, x, n, pool)
    return result


def _global_max(op: TorchBuilder, x: Value, n: int) -> tuple[Value, Value]:
    rows = op.Reshape(x, op.ints(0, 0, -1))
    place = op.ArgMax(rows, axis=2, keepdims=1)
    value = op.GatherElements(rows, place, axis=2)  # the gradient goes to one of equal values, as in torch
    if n == 1:
        return value, place
    more = op.ints(*range(3, n + 2))
    return op.Unsqueeze(value, more), op.Unsqueeze(place, more)


def _unequal_max(op: TorchBuilder, x: Value, sizes: list[tuple[int, int]]) -> tuple[Value, Value]:
    """Maxima of x [batch, channels, *sizes] over windows of unequal size, and their places in the map."""
    n = len(sizes)
    wanted = [w for _, w in sizes]
    indices, insides = zip(*(_windows(*size) for size in sizes), strict=True)
    for i, index in enumerate(indices):
        x = op.Gather(x, op.const(index), axis=2 + 2 * i)
    x = op.Transpose(x, perm=(0, 1, *range(2, 2 + 2 * n, 2), *range(3, 3 + 2 * n, 2)))
    windows, taps = prod(wanted), prod(i.shape[1] for i in indices)
    inside, place = np.zeros((windows, taps), bool), np.zeros((windows, taps), np.int64)
    for row, at in enumerate(product(*map(range, wanted))):
        ways = [i[a] for i, a in zip(indices, at, strict=True)]
        place[row] = np.ravel_multi_index(np.meshgrid(*ways, indexing="ij"), [s for s, _ in sizes]).reshape(-1)
        marks = np.meshgrid(*(i[a] for i, a in zip(insides, at, strict=True)), indexing="ij")
        inside[row] = np.logical_and.reduce(marks).reshape(-1)
    lowest = op.const(-np.inf, like=x)
    rows = op.Where(op.const(inside), op.Reshape(x, op.ints(0, 0, windows, taps)), lowest)
    tap = op.ArgMax(rows, axis=3, keepdims=1)
    value = op.GatherElements(rows, tap, axis=3)
    number = op.Add(tap, op.const(np.arange(windows)[:, None] * taps))
    found = op.Gather(op.const(place.reshape(-1)), number, axis=0)
    shape = op.ints(0, 0, *wanted)
    return op.Reshape(value, shape), op.Reshape(found, shape)
