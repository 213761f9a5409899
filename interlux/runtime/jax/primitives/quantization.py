"""Quantisation, and matrix products and convolutions of quantised integers.

Integers are multiplied and summed in float64, which is exact up to 2^37 products of two bytes and which every device
has kernels for. Quotients that are to be rounded are computed in float64 as well and then rounded to their precision:
XLA would multiply with the reciprocal of a scale, and move numbers off the ties.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from jax import lax

from ....ir import dtypes
from ....ir.errors import InvalidModelError, UnsupportedError
from .linear import Conv, MatMul
from .low_precision import converted, is_narrow_float
from .registry import Value, is_static, library, primitive

DType = np.dtype[Any]


def _rounded(x: Value, precision: DType) -> Value:
    """x as float64, rounded to a precision."""
    narrow = x.astype(precision)
    if not is_static(narrow):
        narrow = lax.optimization_barrier(narrow)  # XLA would drop a pair of casts
    return narrow.astype(np.float64)


def _quotient(x: Value, y: Value, precision: DType) -> Value:
    """x / y in a floating-point precision, as float64."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return _rounded(_rounded(x, precision) / _rounded(y, precision), precision)


def _spread(value: Value, shape: tuple[int, ...], axis: int, block_size: int) -> Value:
    """A scale or zero point, of a tensor, along an axis or of blocks, shaped to broadcast against a shape."""
    if value.size == 1:
        return value.reshape(())
    if not -len(shape) <= axis < len(shape):
        raise InvalidModelError(f"the axis {axis} of a quantisation is out of range for the shape {shape}")
    axis %= len(shape)
    if not block_size:
        if value.shape != (shape[axis],):
            raise InvalidModelError(f"a scale or zero point of shape {value.shape} for axis {axis} of {shape}")
        return value.reshape(tuple(-1 if i == axis else 1 for i in range(len(shape))))
    blocks = -(-shape[axis] // block_size) if block_size > 0 else 0
    if value.shape != (*shape[:axis], blocks, *shape[axis + 1 :]):
        raise InvalidModelError(
            f"a scale or zero point of shape {value.shape} for blocks of {block_size} on axis {axis} of {shape}"
        )
    repeated = library(value).repeat(value, block_size, axis)
    return repeated[(slice(None),) * axis + (slice(shape[axis]),)]


def _is_integer(dtype: DType) -> bool:
    return np.issubdtype(dtype, np.integer) or dtype.name in ("int4", "uint4", "int2", "uint2")


def _saturated(y: Value, zero_point: Value | None, dtype: DType, saturate: bool = True) -> Value:
    """y (float64) + zero point, rounded into a quantised dtype."""
    xp = library(y, zero_point)
    if not _is_integer(dtype):
        if zero_point is not None:
            offset = zero_point.astype(np.float32).astype(np.float64)
            y = xp.where(offset == 0, y, y + offset)  # adding zero would turn -0 into 0
        return converted(y, dtype, saturate=saturate)
    limits = ml_dtypes.iinfo(dtype)
    offset = np.zeros((), np.int32) if zero_point is None else zero_point.astype(np.int32)
    low, high = np.int32(limits.min) - offset, np.int32(limits.max) - offset
    y = xp.where(xp.isnan(y), low.astype(np.float64), xp.clip(xp.rint(y), low, high))  # NaN: as ONNX's reference
    return converted(y.astype(np.int32) + offset, dtype)


@primitive
def QuantizeLinear(
    x: Value,
    scale: Value,
    zero_point: Value | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Value:
    """round(x / scale) + zero_point. The division has the precision of the scale, unless `precision` is given."""
    dtype = np.dtype(np.uint8) if zero_point is None else np.dtype(zero_point.dtype)
    if output_dtype:
        wanted = dtypes.from_onnx(output_dtype)
        if zero_point is not None and wanted != dtype:
            raise InvalidModelError(f"output_dtype {wanted.name} with a zero point of {dtype.name}")
        dtype = wanted
    if precision:
        inner = dtypes.from_onnx(precision)
    elif np.issubdtype(scale.dtype, np.integer):
        inner = np.dtype(np.float64)  # exact enough to find the ties between int32
    elif is_narrow_float(scale.dtype):  # a power of two has no precision of its own
        inner = np.dtype(np.float32) if np.issubdtype(x.dtype, np.integer) else np.dtype(x.dtype)
    else:
        inner = np.dtype(scale.dtype)
    if is_narrow_float(scale.dtype):
        scale = scale.astype(np.float32)
    y = _quotient(x, _spread(scale, x.shape, axis, block_size), inner)
    if zero_point is not None:
        wide = zero_point.astype(np.int32 if _is_integer(dtype) else np.float32)
        zero_point = _spread(wide, x.shape, axis, block_size)
    return _saturated(y, zero_point, dtype, bool(saturate))


@primitive
def DequantizeLinear(
    x: Value,
    scale: Value,
    zero_point: Value | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Value:
    """(x - zero_point) * scale, in float32 (float64 for a float64 scale), cast to `output_dtype` or the scale's."""
    if not output_dtype and is_narrow_float(scale.dtype):
        raise InvalidModelError(f"DequantizeLinear with a scale of {scale.dtype.name} needs an output_dtype")
    dtype = dtypes.from_onnx(output_dtype) if output_dtype else scale.dtype
    wide = np.float64 if scale.dtype == np.float64 else np.float32
    exact = np.int32 if _is_integer(x.dtype) else np.float32
    number = x.astype(exact)
    if zero_point is not None:
        number = number - _spread(zero_point.astype(exact), x.shape, axis, block_size)
    with np.errstate(over="ignore"):
        return (number.astype(wide) * _spread(scale.astype(wide), x.shape, axis, block_size)).astype(dtype)


@primitive
def DynamicQuantizeLinear(x: Value) -> Any:
    """x in uint8, its scale and its zero point, from the range of x together with 0."""
    xp, single = library(x), np.dtype(np.float32)
    zero, levels = np.float32(0), np.asarray(255, np.float32)
    high, low = xp.maximum(zero, xp.max(x)), xp.minimum(zero, xp.min(x))
    span = xp.where(high == low, np.float32(1), high - low)
    scale = _quotient(span, levels, single).astype(single)
    offset = xp.rint(xp.clip(-_quotient(low, scale, single), 0, 255)).astype(np.uint8)
    return _saturated(_quotient(x, scale, single), offset, np.dtype(np.uint8)), scale.astype(x.dtype), offset


def _per_row(value: Value) -> Value:
    """A scale or zero point for rows: scalar, [rows] or [..., rows, 1]."""
    if value.size == 1:
        return value.reshape(())
    return value.reshape(-1, 1) if value.ndim == 1 else value


def _per_column(value: Value) -> Value:
    return value.reshape(()) if value.size == 1 else value


def _per_output(value: Value, rank: int) -> Value:
    """A scale or zero point for output channels (axis 0 of a weight of a rank)."""
    return value.reshape(()) if value.size == 1 else value.reshape((-1,) + (1,) * (rank - 1))


def _centred(x: Value, zero_point: Value | None) -> Value:
    """x - zero_point as float64."""
    exact = np.int32 if _is_integer(x.dtype) else np.float32
    wide = x.astype(exact).astype(np.float64)
    return wide if zero_point is None else wide - zero_point.astype(exact).astype(np.float64)


def _as_int32(y: Value) -> Value:
    """Whole numbers in float64 as int32, overflowing as a sum in 32 bits does."""
    return y.astype(np.int64).astype(np.int32)


@primitive
def MatMulInteger(a: Value, b: Value, a_zero: Value | None = None, b_zero: Value | None = None) -> Value:
    a = _centred(a, None if a_zero is None else _per_row(a_zero))
    b = _centred(b, None if b_zero is None else _per_column(b_zero))
    return _as_int32(MatMul(a, b))


@primitive
def ConvInteger(
    x: Value, weight: Value, x_zero: Value | None = None, w_zero: Value | None = None, **attributes: Any
) -> Value:
    """x [batch, channels, ...], weight [outputs, channels / group, ...]; the attributes are Conv's."""
    x = _centred(x, None if x_zero is None else x_zero.reshape(()))
    weight = _centred(weight, None if w_zero is None else _per_output(w_zero, weight.ndim))
    return _as_int32(Conv(x, weight, **attributes))


def _factor(x_scale: Value, w_scale: Value, y_scale: Value) -> Value:
    """x_scale * w_scale / y_scale in float32, as float64: what a product of quantised numbers is multiplied by."""
    single = np.dtype(np.float32)
    return _quotient(_rounded(x_scale, single) * _rounded(w_scale, single), y_scale, single)


@primitive
def QLinearMatMul(
    a: Value,
    a_scale: Value,
    a_zero: Value,
    b: Value,
    b_scale: Value,
    b_zero: Value,
    y_scale: Value,
    y_zero: Value,
) -> Value:
    """The product of two quantised matrices, quantised. Scales: scalars, or per row of a, per column of b."""
    if y_scale.ndim == 1 and y_scale.size > 1:
        raise UnsupportedError(
            "QLinearMatMul with a vector as scale of y; ONNX leaves its axis open, use a scalar or [..., rows, 1]"
        )
    product = MatMul(_centred(a, _per_row(a_zero)), _centred(b, _per_column(b_zero)))
    if _is_integer(a.dtype) and _is_integer(b.dtype):
        product = _as_int32(product).astype(np.float64)
    factor = _factor(_per_row(a_scale), _per_column(b_scale), _per_row(y_scale))
    return _saturated(product * factor, _per_row(y_zero), np.dtype(y_zero.dtype))


@primitive
def QLinearConv(
    x: Value,
    x_scale: Value,
    x_zero: Value,
    weight: Value,
    w_scale: Value,
    w_zero: Value,
    y_scale: Value,
    y_zero: Value,
    bias: Value | None = None,
    **attributes: Any,
) -> Value:
    """A convolution of quantised numbers, quantised. The weight's scale may be per output channel, bias is int32."""
    y = ConvInteger(x, weight, x_zero, w_zero, **attributes)
    if bias is not None:
        y = y + bias.reshape((1, -1) + (1,) * (weight.ndim - 2))
    factor = _factor(x_scale.reshape(()), _per_output(w_scale, weight.ndim - 1), y_scale.reshape(()))
    return _saturated(y.astype(np.float64) * factor, y_zero.reshape(()), np.dtype(y_zero.dtype))
