"""Convolutions as steps, and transposed ones, which are convolutions of a larger image."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ....ir.windows import Window
from ..builder import Value
from ..operators import mirrored, spread_out
from ..steps import Ints, MatMul
from ..tensors import Tensor
from .steps import Convolution

if TYPE_CHECKING:
    from .recorder import Recorder


def made_weights(b: Recorder, value: Value) -> Tensor | None:
    """Weights that steps make, as in weight normalisation, or that are rearranged parameters; None if they are not."""
    if not isinstance(value, Tensor) or value.is_constant:
        return None
    return value if value.source is not b.vector or value.access() is None else None


def multiplied(
    b: Recorder, grown: Tensor, like: Tensor, weight: Tensor, bias: Value | None, window: Window, group: int
) -> Tensor:
    """A convolution by weights that steps make: the product with what each tap reads."""
    if weight.axis is not None:
        raise b.refuse("Conv with weights that depend on the input")
    patches = grown.index
    for axis, (size, stride, dilation, kernel) in enumerate(
        zip(window.sizes, window.strides, window.dilations, weight.shape[2:], strict=True)
    ):
        reads = np.arange(kernel)[:, None] * dilation + np.arange(size) * stride
        # axes: channels, the taps so far, the positions so far, the axes to come
        patches = np.moveaxis(np.take(patches, reads, 1 + 2 * axis), 1 + 2 * axis, 1 + axis)
    count, outs, positions = prod(weight.shape[1:]), weight.shape[0] // group, prod(window.sizes)
    left = weight.reshaped((group, outs, count))
    right = b.stored(grown.reshaped(grown.shape).moved(patches.reshape(group, count, positions), None))
    made = b.result(MatMul, [left, right], (group, outs, positions), like)
    y = b.back(made, made.index.reshape(1, weight.shape[0], *window.sizes), like, like.axis)
    if bias is None:
        return y
    shift = b.tensor(bias)
    column = shift.moved(shift.index.reshape(-1, *(1,) * len(window.sizes)), None)
    return b.elementwise("Add", [y, column], {})


def convolved(
    b: Recorder, grown: Tensor, like: Tensor, weight: Tensor, bias: Tensor | None, strides: Ints, dilations: Ints,
    group: int,
) -> Tensor:  # fmt: skip
    """One sample [channels, *spatial] convolved."""
    sizes = zip(grown.shape[1:], weight.shape[2:], strides, dilations, strict=True)
    shape = (weight.shape[0], *((size - (k - 1) * d - 1) // s + 1 for size, k, s, d in sizes))
    return b.result(Convolution, [grown], shape, like, weight, bias, strides, dilations, group)


def conv_transpose(
    b: Recorder, x: Tensor, w: Value, bias: Value | None = None, *, kernel_shape: Any = None, strides: Any = None,
    pads: Any = None, dilations: Any = None, group: int = 1, auto_pad: str = "NOTSET", output_padding: Any = None,
    output_shape: Any = None,
) -> Tensor:  # fmt: skip
    """A convolution by the mirrored kernel: the same parameters, read backward."""
    if auto_pad != "NOTSET" or output_shape is not None:
        raise b.refuse("ConvTranspose with auto_pad or output_shape")
    weight, offsets = b.weights(w), None if bias is None else b.weights(bias)
    n = len(weight.shape) - 2
    dilations = tuple(dilations or (1,) * n)
    grown = spread_out(b, x, weight.shape[2:], strides, pads, dilations, output_padding)
    kernel = weight.moved(mirrored(weight.index, group), None)
    if kernel.access() is not None:
        made = convolved(b, grown, x, kernel, offsets, (1,) * n, dilations, group)
        return b.back(made, made.index[None], x, x.axis)
    # channels of several groups lie too far apart for one step
    grown = b.reach(grown, grown.shape)
    parts = []
    for i in range(group):
        image, own = (_part(t, group, i) for t in (grown, kernel))
        shift = None if offsets is None else _part(offsets, group, i)
        parts.append(convolved(b, image, x, own, shift, (1,) * n, dilations, 1))
    made = b.joined(parts, 0, (len(kernel.index), *parts[0].shape[1:]), parts[0])
    return b.back(made, made.index[None], x, x.axis)


def _part(t: Tensor, count: int, number: int) -> Tensor:
    """One of `count` equal parts along the first axis."""
    return t.moved(np.split(t.index, count)[number], None)
