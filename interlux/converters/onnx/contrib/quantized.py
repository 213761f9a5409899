"""Operators on quantized tensors, and products with quantized weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...builder import GraphBuilder, Value
from ..upgrades import Form
from .rules import (
    REQUIRED,
    Rules,
    channels_first,
    channels_last,
    counting,
    entering,
    inputs,
    refuse,
    scalar,
    settings,
    shaped,
    size,
)

RULES: Rules = {}
rule = entering(RULES)


def dequantized(op: GraphBuilder, x: Value, scale: Value, zero: Value | None) -> Value:
    """A tensor with one scale as floats."""
    zero = None if zero is None else scalar(op, zero)
    return shaped(op.DequantizeLinear(x, scalar(op, scale), zero), x)


def quantized(op: GraphBuilder, y: Value, scale: Value, zero: Value | None, dtype: np.dtype[Any]) -> Value:
    """Floats as integers of a dtype, with one scale."""
    zero = op.const(np.zeros((), dtype)) if zero is None else scalar(op, zero)
    return shaped(op.QuantizeLinear(y, scalar(op, scale), zero), y)


Quantize = Callable[[Value], Value]


def _elementwise(op: GraphBuilder, form: Form) -> tuple[Value, Quantize]:
    """For an operator on X, its scale and zero point, and the result's: X as floats, and what quantizes the result."""
    _, _, zero, _, y_zero = inputs(form, 5)
    y_scale, kind = form.input(3), form.input(0).dtype

    def result(y: Value) -> Value:
        return quantized(op, y, y_scale, y_zero, kind)

    return dequantized(op, form.input(0), form.input(1), zero), result


@rule("QLinearAdd", "QLinearMul")
def _pairwise(op: GraphBuilder, form: Form) -> Value:
    settings(form)
    a, a_scale, a_zero, b, b_scale, b_zero, scale, zero = inputs(form, 8)
    if a is None or b is None or a_scale is None or b_scale is None or scale is None:
        raise refuse(form, "absent inputs")
    one, other = dequantized(op, a, a_scale, a_zero), dequantized(op, b, b_scale, b_zero)
    y = op.Add(one, other) if form.op_type.endswith("Add") else op.Mul(one, other)
    return quantized(op, y, scale, zero, a.dtype)


@rule("QLinearLeakyRelu")
def _leaky_relu(op: GraphBuilder, form: Form) -> Value:
    alpha = settings(form, alpha=0.009999999776482582)
    x, result = _elementwise(op, form)
    return result(op.LeakyRelu(x, alpha=alpha))


@rule("QLinearSigmoid")
def _sigmoid(op: GraphBuilder, form: Form) -> Value:
    settings(form)
    x, result = _elementwise(op, form)
    return result(op.Sigmoid(x))


@rule("QLinearSoftmax")
def _softmax(op: GraphBuilder, form: Form) -> Value:
    """`opset` is that of the Softmax that was quantized: before 13, all axes from `axis` on were one."""
    axis, opset = settings(form, axis=-1, opset=REQUIRED)
    x, result = _elementwise(op, form)
    if opset >= 13 or axis == -1:
        return shaped(result(op.Softmax(x, axis=axis)), form.input(0))
    axis = axis % op.rank_of(form.input(0))
    rows = op.Softmax(op.Flatten(x, axis=axis), axis=-1)
    return shaped(result(op.Reshape(rows, op.Shape(x))), form.input(0))


@rule("QLinearReduceMean")
def _mean(op: GraphBuilder, form: Form) -> Value:
    axes, keep = settings(form, axes=REQUIRED, keepdims=REQUIRED)
    x, result = _elementwise(op, form)
    return result(op.ReduceMean(x, op.ints(*axes) if axes else None, keepdims=keep))


@rule("QLinearGlobalAveragePool")
def _global_average(op: GraphBuilder, form: Form) -> Value:
    last = settings(form, channels_last=0)
    x, result = _elementwise(op, form)
    if last:
        y = op.ReduceMean(x, op.ints(*range(1, op.rank_of(form.input(0)) - 1)), keepdims=1)
    else:
        y = op.GlobalAveragePool(x)
    return result(y)


@rule("QLinearAveragePool")
def _average(op: GraphBuilder, form: Form) -> Value:
    names = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")
    last, *window = settings(form, channels_last=0, **dict.fromkeys(names))
    attributes = {name: value for name, value in zip(names, window, strict=True) if value is not None}
    if "kernel_shape" not in attributes:
        raise refuse(form, "no kernel_shape")
    x, result = _elementwise(op, form)
    rank = len(attributes["kernel_shape"]) + 2
    y = op.AveragePool(channels_first(op, x, rank) if last else x, **attributes)
    return result(channels_last(op, y, rank) if last else y)


@rule("QLinearConcat")
def _concat(op: GraphBuilder, form: Form) -> Value:
    axis = settings(form, axis=REQUIRED)
    scale, zero, *parts = (form.input(i) for i in range(len(form.inputs)))
    if len(parts) % 3:
        raise refuse(form, "inputs that are not triples of tensor, scale and zero point")
    floats = [dequantized(op, *parts[i : i + 3]) for i in range(0, len(parts), 3)]
    return quantized(op, op.Concat(*floats, axis=axis), scale, zero, zero.dtype)


@rule("QLinearWhere")
def _where(op: GraphBuilder, form: Form) -> Value:
    settings(form)
    condition, x, x_scale, x_zero, y, y_scale, y_zero, scale, zero = (form.input(i) for i in range(9))
    chosen = op.Where(condition, dequantized(op, x, x_scale, x_zero), dequantized(op, y, y_scale, y_zero))
    return quantized(op, chosen, scale, zero, zero.dtype)


@rule("QLinearConv")
def _conv(op: GraphBuilder, form: Form) -> Value:
    """ai.onnx's operator, with the channels last on request; the weight has the same layout in both."""
    names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    last, *window = settings(form, channels_last=0, **dict.fromkeys(names))
    attributes = {name: value for name, value in zip(names, window, strict=True) if value is not None}
    values = inputs(form, 9)
    for i in (1, 2, 6, 7):
        values[i] = scalar(op, form.input(i))
    for i in (4, 5):  # one scale, or one for each output channel
        values[i] = scalar(op, form.input(i)) if form.input(i).shape == (1,) else form.input(i)
    if not last:
        made: Value = op.QLinearConv(*values, **attributes)
        return made
    weight, x = form.input(3), form.input(0)
    rank = op.rank_of(weight if weight.shape is not None else x)
    return channels_last(op, op.QLinearConv(channels_first(op, x, rank), *values[1:], **attributes), rank)


@rule("NhwcMaxPool")
def _max_pool(op: GraphBuilder, form: Form) -> Value:
    names = ("auto_pad", "ceil_mode", "dilations", "pads", "strides")
    kernel, *window = settings(form, kernel_shape=REQUIRED, **dict.fromkeys(names))
    attributes = {name: value for name, value in zip(names, window, strict=True) if value is not None}
    rank = len(kernel) + 2
    y = op.MaxPool(channels_first(op, form.input(0), rank), kernel_shape=kernel, **attributes)
    return channels_last(op, y, rank)


# --- QuantizeLinear and DequantizeLinear with more types than ai.onnx once had


@rule("QuantizeLinear", "DequantizeLinear")
def _linear(op: GraphBuilder, form: Form) -> Value:
    """One scale for all, or with `axis` one for each index along it."""
    axis = settings(form, axis=None)
    x, scale, zero = inputs(form, 3)
    if axis is None:
        scale = scalar(op, form.input(1))
        zero = None if zero is None else scalar(op, zero)
        axis = 1
    made = op.primitive(form.op_type.rpartition(".")[2], [x, scale, zero], {"axis": axis})
    return shaped(made, form.input(0))


# --- products


def integer_product(
    op: GraphBuilder, a: Value | None, b: Value | None, a_zero: Value | None, b_zero: Value | None
) -> Value:
    """The product of 8-bit integers less their zero points, in int32. That of B may be one for each column."""
    a_zero = None if a_zero is None else scalar(op, a_zero)
    if b_zero is not None and b_zero.shape == (1,):
        b_zero = scalar(op, b_zero)
    made: Value = op.MatMulInteger(a, b, a_zero, b_zero)
    return made


def _one_scale(op: GraphBuilder, form: Form, scale: Value) -> Value:
    if scale.shape is None or scale.shape not in ((), (1,)):
        raise refuse(form, "a scale of A that is not one number")
    return scalar(op, scale)


@rule("MatMulIntegerToFloat")
def _integers_to_float(op: GraphBuilder, form: Form) -> Value:
    settings(form)
    _, _, _, b_scale, a_zero, b_zero, bias = inputs(form, 7)
    scale = op.Mul(_one_scale(op, form, form.input(2)), b_scale)
    y = op.Mul(op.cast(integer_product(op, form.input(0), form.input(1), a_zero, b_zero), scale.dtype), scale)
    return y if bias is None else op.Add(y, bias)


@rule("DynamicQuantizeMatMul")
def _dynamic(op: GraphBuilder, form: Form) -> Value:
    """A is quantized with the range that it has."""
    settings(form)
    a, _, b_scale, b_zero, bias = inputs(form, 5)
    integers, scale, zero = op.DynamicQuantizeLinear(a, outputs=3)
    sums = op.cast(integer_product(op, integers, form.input(1), zero, b_zero), np.float32)
    y = op.Mul(sums, op.Mul(scale, b_scale))
    return y if bias is None else op.Add(y, bias)


@rule("QGemm")
def _gemm(op: GraphBuilder, form: Form) -> Value:
    """alpha · (A · B + C), floats, or quantized where y_scale and y_zero_point are given. C has the products' scale."""
    alpha, trans_a, trans_b = settings(form, alpha=1.0, transA=0, transB=0)
    a, _, a_zero, b, b_scale, b_zero, c, y_scale, y_zero = inputs(form, 9)
    a = op.Transpose(a, perm=(1, 0)) if trans_a else form.input(0)
    b = op.Transpose(b, perm=(1, 0)) if trans_b else form.input(3)
    sums = integer_product(op, a, b, a_zero, b_zero)
    sums = sums if c is None else op.Add(sums, c)
    scale = op.Mul(scalar(op, form.input(1)), b_scale)
    scale = scale if alpha == 1 else op.Mul(scale, op.const(alpha, like=scale))
    y = op.Mul(op.cast(sums, np.float32), scale)
    if y_scale is None:
        if y_zero is not None:
            raise refuse(form, "y_zero_point and no y_scale")
        return y
    if y_zero is None:
        raise refuse(form, "y_scale and no y_zero_point")
    return quantized(op, y, y_scale, y_zero, y_zero.dtype)


def unpacked(op: GraphBuilder, x: Value, bits: int) -> Value:
    """Numbers of 2, 4 or 8 bits from bytes, the lower bits first, along a new last axis."""
    places = np.arange(0, 8, bits, dtype=np.uint8)
    shifted = op.BitShift(op.Unsqueeze(x, op.ints(-1)), op.const(places), direction="RIGHT")
    return op.BitwiseAnd(shifted, op.const(np.array(2**bits - 1, np.uint8)))


@rule("MatMulNBits")
def _matrix_of_bits(op: GraphBuilder, form: Form) -> Value:
    """A · weightᵀ + bias. The weight [N, K] is stored in blocks along K, each with its scale and zero point."""
    size_k, size_n, block, bits, accuracy, packed = settings(
        form, K=REQUIRED, N=REQUIRED, block_size=REQUIRED, bits=4, accuracy_level=0, weight_prepacked=0
    )
    del accuracy  # the least that is asked for: floats are more
    if bits not in (2, 4, 8):
        raise refuse(form, f"bits={bits}")
    if packed:
        raise refuse(form, f"weight_prepacked={packed}", "write the model without prepacking")
    a, b, scales, zeros, groups, bias = inputs(form, 6)
    kind, blocks = form.input(0).dtype, -(-size_k // block)
    numbers = b if bits == 8 else op.Reshape(unpacked(op, form.input(1), bits), op.ints(size_n, blocks, block))
    numbers = op.Reshape(op.cast(numbers, kind), op.ints(size_n, blocks, block))
    scales = op.Reshape(scales, op.ints(size_n, blocks))
    if zeros is None:
        zero: Value = op.const(np.full((1, 1), 2 ** (bits - 1)).astype(kind))
    elif zeros.dtype == np.uint8:
        rows = op.Reshape(zeros if bits == 8 else unpacked(op, zeros, bits), op.ints(size_n, -1))
        zero = op.cast(op.Slice(rows, op.ints(0), op.ints(blocks), op.ints(1)), kind)
    else:
        zero = op.Reshape(zeros, op.ints(size_n, blocks))
    if groups is None:
        last = op.ints(2)
        weight = op.Mul(op.Sub(numbers, op.Unsqueeze(zero, last)), op.Unsqueeze(scales, last))
        weight = op.Reshape(weight, op.ints(size_n, blocks * block))
        weight = weight if blocks * block == size_k else op.Slice(weight, op.ints(0), op.ints(size_k), op.ints(1))
    else:  # the block of each column
        if zeros is not None:
            raise refuse(form, "both g_idx and zero_points", "onnxruntime does not compute what is defined")
        columns = op.Slice(op.Reshape(numbers, op.ints(size_n, -1)), op.ints(0), op.ints(size_k), op.ints(1))
        weight = op.Mul(op.Sub(columns, zero), op.Gather(scales, groups, axis=1))
    y = op.MatMul(a, op.Transpose(weight, perm=(1, 0)))
    if form.input(0).shape is not None:
        y.shape = (*form.input(0).shape[:-1], size_n)  # type: ignore[index]
    return y if bias is None else shaped(op.Add(y, bias), y)


@rule("GatherBlockQuantized")
def _gather_blocks(op: GraphBuilder, form: Form) -> Value:
    """Rows of a table that is stored in blocks, as floats; an index outside gives zeros."""
    bits, block, along, axis = settings(form, bits=4, block_size=128, quantize_axis=1, gather_axis=0)
    _, indices, scales, zeros = inputs(form, 4)
    table, rank = form.input(0), op.rank_of(form.input(0))
    along, axis = along % rank, axis % rank
    name = table.dtype.name
    if name not in ("uint8", "int4", "uint4") or block < 1:
        raise refuse(form, f"data of dtype {name} and block_size={block}")
    if along == axis:
        raise refuse(form, "gather_axis equal to quantize_axis")
    if name == "uint8" and (bits not in (4, 8) or along != rank - 1):
        raise refuse(form, f"bits={bits} and quantize_axis={along}")
    kind = form.input(2).dtype
    count = op.cast(op.Shape(table, start=axis, end=axis + 1), form.input(1).dtype)
    inside = op.And(op.GreaterOrEqual(indices, op.Neg(count)), op.Less(indices, count))
    found = op.Where(inside, indices, op.const(0, like=form.input(1)))

    def rows(values: Value) -> Value:
        """What is stored for the indices, as one number per element."""
        wide = op.cast(values, np.int8 if name == "int4" else np.uint8) if name != "uint8" else values
        taken = op.Gather(wide, found, axis=axis)
        if name == "uint8" and bits == 4:
            taken = op.Reshape(unpacked(op, taken, 4), _joined_last(op, form, rank))
        return op.cast(taken, kind)

    index_rank = op.rank_of(form.input(1))
    place = along + (index_rank - 1 if axis < along else 0)
    numbers = rows(table)
    owner = op.Div(counting(op, size(op, numbers, place)), op.const(np.array(block, np.int64)))

    def spread(values: Value) -> Value:
        """What there is for each block, for each of its elements."""
        return op.Gather(values, owner, axis=place)

    if zeros is None:
        offset = 2 ** (bits - 1) if name == "uint8" else 0
        y = numbers if not offset else op.Sub(numbers, op.const(offset, like=numbers))
    else:
        y = op.Sub(numbers, spread(rows(zeros)))
    y = op.Mul(y, spread(op.Gather(scales, found, axis=axis)))
    behind = range(index_rank, index_rank + rank - 1 - axis)
    return op.Where(op.Unsqueeze(inside, op.ints(*behind)) if behind else inside, y, op.const(0, like=y))


def _joined_last(op: GraphBuilder, form: Form, rank: int) -> Value:
    return op.ints(*[0] * (op.rank_of(form.input(1)) + rank - 2), -1)
