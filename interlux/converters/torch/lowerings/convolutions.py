"""Convolutions, transposed ones, and the sliding blocks of fold and unfold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....ir import layers as ir
from ....ir.errors import UnsupportedError
from ...builder import Value
from ..builder import Size, TorchBuilder
from .registry import aten
from .spatial import Ints, all_axes, sizes_before, static_shape, with_batch


@aten("conv1d", "conv2d", "conv3d")
def conv(
    op: TorchBuilder,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Ints = (1,),
    padding: Ints = (0,),
    dilation: Ints = (1,),
    groups: int = 1,
) -> Value:
    return _conv(op, x, weight, bias, stride, lambda _, n: all_axes(padding, n) * 2, dilation, groups)


@aten("conv1d.padding", "conv2d.padding", "conv3d.padding")
def conv_named_padding(
    op: TorchBuilder,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Ints = (1,),
    padding: str = "valid",
    dilation: Ints = (1,),
    groups: int = 1,
) -> Value:
    def pads(kernel: Ints, n: int) -> tuple[int, ...]:
        reach = [d * (k - 1) if padding == "same" else 0 for d, k in zip(all_axes(dilation, n), kernel, strict=True)]
        begin = [r // 2 for r in reach]  # of an odd number, torch pads the end more
        return (*begin, *(r - b for r, b in zip(reach, begin, strict=True)))

    return _conv(op, x, weight, bias, stride, pads, dilation, groups)


def _conv(
    op: TorchBuilder,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Ints,
    pads: Callable[[Ints, int], tuple[int, ...]],
    dilation: Ints,
    groups: int,
) -> Value:
    outs, ins, *kernel = static_shape(op, weight, "a convolution's weight")
    n = len(kernel)
    strides, dilations = all_axes(stride, n), all_axes(dilation, n)
    layer = ir.Conv(ins * groups, outs, tuple(kernel), strides, pads(kernel, n), dilations, groups, bias is not None)
    return with_batch(op, x, n, lambda x: op.add(layer, x, params={"weight": weight, "bias": bias}))


@aten("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input")
def conv_transpose(
    op: TorchBuilder,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Ints = (1,),
    padding: Ints = (0,),
    output_padding: Ints = (0,),
    groups: int = 1,
    dilation: Ints = (1,),
) -> Value:
    ins, outs, *kernel = static_shape(op, weight, "a transposed convolution's weight")
    n = len(kernel)
    more = all_axes(output_padding, n)
    if not all(isinstance(m, int) for m in more):
        raise UnsupportedError(
            f"a transposed convolution whose output_size depends on a dynamic size{op.where()}; give output_padding"
        )
    strides, begin = all_axes(stride, n), all_axes(padding, n)
    end = begin
    if any(m >= s for m, s in zip(more, strides, strict=True)):  # less cut off instead: onnxruntime wants m < s
        end = tuple(max(p - m, 0) for p, m in zip(begin, more, strict=True))
        more = tuple(max(m - p, 0) for p, m in zip(begin, more, strict=True))
    layer = ir.ConvTranspose(
        ins,
        outs * groups,
        tuple(kernel),
        strides,
        (*begin, *end),
        all_axes(dilation, n),
        more,
        groups,
        bias is not None,
    )
    return with_batch(op, x, n, lambda x: op.add(layer, x, params={"weight": weight, "bias": bias}))


@aten("convolution")
def convolution(
    op: TorchBuilder,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
    groups: int,
) -> Value:
    if transposed:
        return conv_transpose(op, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(op, x, weight, bias, stride, padding, dilation, groups)


@aten("conv_tbc")
def conv_tbc(op: TorchBuilder, x: Value, weight: Value, bias: Value, pad: int = 0) -> Value:
    """x [time, batch, channels], weight [kernel, channels, outputs]."""
    turned = op.Conv(
        op.Transpose(x, perm=(1, 2, 0)),
        op.Transpose(weight, perm=(2, 1, 0)),
        bias,
        pads=(pad, pad),
        kernel_shape=static_shape(op, weight, "a convolution's weight")[:1],
    )
    return op.Transpose(turned, perm=(2, 0, 1))


def _starts(op: TorchBuilder, count: Size, stride: int) -> Value:
    """Where the blocks along an axis begin, int64 [count]."""
    if isinstance(count, int):
        return op.const(np.arange(count) * stride)
    zero, one = op.const(np.array(0)), op.const(np.array(1))
    return op.Mul(op.Range(zero, op.value(count), one), op.ints(stride))


@aten("im2col")
def im2col(op: TorchBuilder, x: Value, kernel: Ints, dilation: Ints, padding: Ints, stride: Ints) -> Value:
    """[batch, channels, height, width] to [batch, channels · kernel, blocks]."""
    kernels, dilations, pads, strides = (all_axes(v, 2) for v in (kernel, dilation, padding, stride))
    sizes = sizes_before(op, 2)

    def blocks(x: Value) -> Value:
        if any(pads):
            x = op.Pad(x, op.ints(*pads, *pads), None, op.ints(2, 3))
        for i, axis in enumerate((2, 4)):  # each axis becomes [kernel, blocks]
            count = (sizes[i] + 2 * pads[i] - dilations[i] * (kernels[i] - 1) - 1) // strides[i] + 1
            taps = op.const((np.arange(kernels[i]) * dilations[i])[:, None])
            x = op.Gather(x, op.Add(taps, _starts(op, count, strides[i])), axis=axis)
        x = op.Transpose(x, perm=(0, 1, 2, 4, 3, 5))
        channels = op.result.shape[-2]
        if not isinstance(channels, int):
            raise UnsupportedError(f"unfold of an unknown number of channels{op.where()}")
        return op.Reshape(x, op.ints(0, channels, -1))

    return with_batch(op, x, 2, blocks)


@aten("col2im")
def col2im(
    op: TorchBuilder, x: Value, size: list[Size], kernel: Ints, dilation: Ints, padding: Ints, stride: Ints
) -> Value:
    """[batch, channels · kernel, blocks] to [batch, channels, height, width]; what overlaps is added."""
    kernels, dilations, pads, strides = (all_axes(v, 2) for v in (kernel, dilation, padding, stride))

    def image(x: Value) -> Value:
        return op.Col2Im(x, op.sizes(size), op.ints(*kernels), dilations=dilations, pads=pads * 2, strides=strides)

    return with_batch(op, x, 1, image)
