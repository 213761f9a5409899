"""Quantised numbers in exported programs: quantize and dequantize of PT2E, fake quantisation, products of integers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch

from ....ir.errors import UnsupportedError
from ....ir.trees import is_float
from ...builder import Value
from ..arrays import dtype_of
from ..builder import TorchBuilder
from .registry import aten

DType = np.dtype[Any]
_NS = "quantized_decomposed"
_QUANTIZED = tuple(np.dtype(t) for t in (np.uint8, np.int8, np.uint16, np.int16))  # what QuantizeLinear can make


def _along(op: TorchBuilder, value: Value, axis: int, rank: int) -> Value:
    """A vector shaped to broadcast along an axis."""
    axis = op.axis(axis, rank)
    return op.Reshape(value, op.ints(*(-1 if i == axis else 1 for i in range(rank))))


def _scalar(op: TorchBuilder, x: Any, dtype: Any) -> Value:
    """A number, or a tensor of one element, as a scalar."""
    value = op.value(x, dtype)
    return value if value.shape == () else op.Reshape(value, op.const(np.zeros(0, np.int64)))


def _quantized(
    op: TorchBuilder, x: Value, inverse: Value, zero_point: Value | None, low: int, high: int, dtype: DType
) -> Value:
    """clamp(round(x * inverse) + zero_point) as an integer of a dtype, in float32.

    torch multiplies by the reciprocal of the scale where ONNX's QuantizeLinear divides by it, which moves numbers off
    the ties: so the multiplication comes first, and the scale is then 1.

    Arguments:
        zero_point: integer, broadcasting against x; a scalar for QuantizeLinear.
    """
    scaled = op.Mul(op.cast(x, np.float32), inverse)
    limits = ml_dtypes.iinfo(dtype)
    if dtype in _QUANTIZED and (zero_point is None or zero_point.shape == ()):
        one = op.const(np.array(1, np.float32))
        point = op.const(np.array(0, dtype)) if zero_point is None else op.cast(zero_point, dtype)
        y = op.QuantizeLinear(scaled, one, point)
        if (low, high) == (limits.min, limits.max):
            return y
        return op.Clip(y, *(op.const(np.array(max(min(n, limits.max), limits.min), dtype)) for n in (low, high)))
    rounded = op.Round(scaled)
    if zero_point is not None:
        rounded = op.Add(rounded, op.cast(zero_point, np.float32))
    if dtype.itemsize == 4:  # the ends of int32 are no float32: clamped behind the conversion to int64
        whole = op.cast(rounded, np.int64)
        return op.cast(op.Clip(whole, *(op.const(np.array(n, np.int64)) for n in (low, high))), dtype)
    return op.cast(op.Clip(rounded, *(op.const(np.array(n, np.float32)) for n in (low, high))), dtype)


def _integer(op: TorchBuilder, dtype: torch.dtype) -> DType:
    found = dtype_of(dtype)
    if is_float(found) or found.kind not in "iu":
        raise UnsupportedError(f"quantisation to {dtype}{op.where()}; int8, uint8, int16 and int32 are supported")
    return found


def _limit(op: TorchBuilder, limit: Any) -> int:
    """A bound of quantised numbers, which some overloads give as a tensor."""
    if isinstance(limit, Value):
        if limit.array is None:
            raise UnsupportedError(f"quantisation whose bounds are computed{op.where()}")
        return int(limit.array.reshape(-1)[0])
    return int(limit)


def _in_float32(op: TorchBuilder, x: Value) -> None:
    if x.dtype == np.float64:
        raise UnsupportedError(f"quantisation of float64, which torch has not{op.where()}")


@aten(f"{_NS}.quantize_per_tensor.default", f"{_NS}.quantize_per_tensor.tensor", f"{_NS}.quantize_per_tensor.tensor2")
def quantize_per_tensor(
    op: TorchBuilder, x: Value, scale: Any, zero_point: Any, low: Any, high: Any, dtype: torch.dtype
) -> Value:
    _in_float32(op, x)
    if isinstance(scale, Value):  # torch reads it as a Python number: the reciprocal is that of a float64
        wide = _scalar(op, scale, np.float64)
        inverse = op.cast(op.Div(op.const(np.array(1, np.float64)), wide), np.float32)
    else:
        inverse = op.const(np.array(1.0 / scale, np.float32))
    point = _scalar(op, zero_point, np.int32)
    point.shape = ()
    return _quantized(op, x, inverse, point, _limit(op, low), _limit(op, high), _integer(op, dtype))


@aten(
    *(f"{_NS}.dequantize_per_tensor.{overload}" for overload in ("default", "tensor", "tensor2")),
)
def dequantize_per_tensor(
    op: TorchBuilder,
    x: Value,
    scale: Any,
    zero_point: Any,
    low: Any,
    high: Any,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> Value:
    if op.result_dtype != np.float32:
        return _dequantized(op, x, _scalar(op, scale, op.result_dtype), _scalar(op, zero_point, op.result_dtype))
    if x.dtype == np.int32:
        return _dequantized(op, x, _scalar(op, scale, np.float32), _scalar(op, zero_point, np.float32))
    return op.DequantizeLinear(x, _scalar(op, scale, np.float32), _scalar(op, zero_point, x.dtype))


def _dequantized(op: TorchBuilder, x: Value, scale: Value, zero_point: Value | None) -> Value:
    """(x - zero_point) * scale, each step in the dtype of the result, as torch computes it."""
    number = op.cast(x, op.result_dtype)
    if zero_point is not None:
        number = op.Sub(number, zero_point)
    return op.Mul(number, scale)


@aten(f"{_NS}.quantize_per_channel.default")
def quantize_per_channel(
    op: TorchBuilder,
    x: Value,
    scales: Value,
    zero_points: Value | None,
    axis: int,
    low: int,
    high: int,
    dtype: torch.dtype,
) -> Value:
    _in_float32(op, x)
    rank = op.rank_of(x)
    inverse = op.Div(op.const(np.array(1, scales.dtype)), scales)  # a tensor: in its own dtype
    points = None if zero_points is None else _along(op, op.cast(zero_points, np.int32), axis, rank)
    inverse = _along(op, op.cast(inverse, np.float32), axis, rank)
    return _quantized(op, x, inverse, points, low, high, _integer(op, dtype))


@aten(f"{_NS}.dequantize_per_channel.default")
def dequantize_per_channel(
    op: TorchBuilder,
    x: Value,
    scales: Value,
    zero_points: Value | None,
    axis: int,
    low: int,
    high: int,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> Value:
    rank = op.rank_of(x)
    if op.result_dtype == np.float32 and scales.dtype == np.float32 and x.dtype != np.int32:
        points = None if zero_points is None else op.cast(zero_points, x.dtype)
        return op.DequantizeLinear(x, scales, points, axis=op.axis(axis, rank))
    points = None if zero_points is None else _along(op, zero_points, axis, rank)
    return op.cast(_centred(op, x, points, _along(op, scales, axis, rank)), op.result_dtype)


def _centred(op: TorchBuilder, x: Value, zero_points: Value | None, scales: Value) -> Value:
    """(x - zero_points) * scales as torch promotes them: the difference of integers is exact."""
    if zero_points is not None and is_float(zero_points.dtype):
        x = op.Sub(op.cast(x, zero_points.dtype), zero_points)
    elif zero_points is not None:
        x = op.Sub(op.cast(x, np.int64), op.cast(zero_points, np.int64))
    wide = np.dtype(np.float64) if np.float64 in (x.dtype, scales.dtype) else np.dtype(np.float32)
    return op.Mul(op.cast(x, wide), op.cast(scales, wide))


# --- by token and by group: torch adds the zero point before it rounds


def _rounded_behind(
    op: TorchBuilder, x: Value, scales: Value, zero_points: Value, low: int, high: int, dtype: torch.dtype
) -> Value:
    wide = np.dtype(np.float64) if np.float64 in (x.dtype, scales.dtype) else np.dtype(np.float32)
    inverse = op.Div(op.const(np.array(1, scales.dtype)), scales)
    scaled = op.Add(op.Mul(op.cast(x, wide), op.cast(inverse, wide)), op.cast(zero_points, wide))
    whole = op.Clip(op.Round(scaled), *(op.const(np.array(n, wide)) for n in (low, high)))
    return op.cast(whole, _integer(op, dtype))


def _column(op: TorchBuilder, x: Value) -> Value:
    return op.Reshape(x, op.ints(-1, 1))


@aten(f"{_NS}.quantize_per_token.default")
def quantize_per_token(
    op: TorchBuilder, x: Value, scales: Value, zero_points: Value, low: int, high: int, dtype: torch.dtype
) -> Value:
    return _rounded_behind(op, x, scales, zero_points, low, high, dtype)


@aten(f"{_NS}.dequantize_per_token.default")
def dequantize_per_token(
    op: TorchBuilder, x: Value, scales: Value, zero_points: Value, low: int, high: int, dtype: Any, out_dtype: Any
) -> Value:
    return op.cast(_centred(op, x, zero_points, scales), op.result_dtype)


def _group_size(op: TorchBuilder, x: Value, scales: Value, size: int) -> int:
    columns = (x.shape or (None,))[-1]
    if isinstance(columns, int) and size > columns and (scales.shape or (None,))[-1] == 1:
        return columns
    return size


@aten(f"{_NS}.quantize_per_channel_group.default")
def quantize_per_group(
    op: TorchBuilder,
    x: Value,
    scales: Value,
    zero_points: Value,
    low: int,
    high: int,
    dtype: torch.dtype,
    group_size: int = 128,
) -> Value:
    rows = op.Reshape(x, op.ints(-1, _group_size(op, x, scales, group_size)))
    rows.dtype = x.dtype
    made = _rounded_behind(op, rows, _column(op, scales), _column(op, zero_points), low, high, dtype)
    return op.reshape(made, list(op.result.shape))


@aten(f"{_NS}.dequantize_per_channel_group.default")
def dequantize_per_group(
    op: TorchBuilder,
    x: Value,
    scales: Value,
    zero_points: Value | None,
    low: int,
    high: int,
    dtype: torch.dtype,
    group_size: int = 128,
    out_dtype: Any = None,
) -> Value:
    rows = op.Reshape(x, op.ints(-1, _group_size(op, x, scales, group_size)))
    points = None if zero_points is None else _column(op, zero_points)
    made = _centred(op, rows, points, _column(op, scales))
    return op.cast(op.reshape(made, list(op.result.shape)), op.result_dtype)


# --- parameters of quantisation that are computed from the data


def _range(op: TorchBuilder, x: Value, axes: Value | None = None) -> tuple[Value, Value]:
    """The lowest and highest number, with 0 between them; of one element, or along axes."""
    if x.dtype != np.float32:
        raise UnsupportedError(f"dynamic quantisation of {x.dtype}; cast the tensor to float32{op.where()}")
    zero, keep = op.const(np.array(0, x.dtype)), int(axes is not None)
    low, high = op.ReduceMin(x, axes, keepdims=keep), op.ReduceMax(x, axes, keepdims=keep)
    return op.Min(low, zero), op.Max(high, zero)


def _divided(op: TorchBuilder, x: Value, by: float) -> Value:
    """x (float32) over a constant, rounded once: of a constant, XLA would multiply by the reciprocal in float32."""
    return op.cast(op.Div(op.cast(x, np.float64), op.const(np.array(float(by)))), np.float32)


def _single(op: TorchBuilder, scale: Value, point: Value) -> tuple[Value, Value]:
    return op.Reshape(op.cast(scale, np.float64), op.ints(1)), op.Reshape(op.cast(point, np.int64), op.ints(1))


@aten(f"{_NS}.choose_qparams.tensor")
def choose_qparams(
    op: TorchBuilder, x: Value, low: int, high: int, epsilon: float, dtype: torch.dtype
) -> tuple[Value, Value]:
    """A scale (float64) and a zero point (int64) for the range of x."""
    lowest, highest = _range(op, x)
    scale = _divided(op, op.Sub(highest, lowest), high - low)
    scale = op.Max(scale, op.const(np.array(epsilon, np.float32)))
    point = op.Sub(op.value(low, np.int64), op.cast(op.Round(op.Div(lowest, scale)), np.int64))
    return _single(op, scale, op.Clip(point, op.value(low, np.int64), op.value(high, np.int64)))


@aten(f"{_NS}.choose_qparams_symmetric.tensor")
def choose_qparams_symmetric(
    op: TorchBuilder, x: Value, low: int, high: int, epsilon: float, dtype: torch.dtype
) -> tuple[Value, Value]:
    lowest, highest = _range(op, x)
    scale = _divided(op, op.Max(op.Neg(lowest), highest), (high - low) / 2)
    scale = op.Max(scale, op.const(np.array(epsilon, np.float32)))
    return _single(op, scale, op.value(128 if dtype == torch.uint8 else 0, np.int64))


@aten(f"{_NS}.choose_qparams_per_token.default")
def choose_qparams_per_token(op: TorchBuilder, x: Value, dtype: torch.dtype) -> tuple[Value, Value]:
    """Both are float32: torch's description of the operator says otherwise, its implementation does this."""
    if dtype != torch.int8 or x.dtype != np.float32:
        raise UnsupportedError(f"quantisation by token of {x.dtype} to {dtype}{op.where()}")
    most = op.ReduceMax(op.Abs(x), op.ints(-1), keepdims=1)
    scales = _divided(op, op.Max(most, op.const(np.array(1e-5, np.float32))), 127)
    return scales, op.Expand(op.const(np.array(0, np.float32)), op.Shape(scales))


@aten(f"{_NS}.choose_qparams_per_token_asymmetric.default", f"{_NS}._choose_qparams_per_token_asymmetric_impl.default")
def choose_qparams_per_token_asymmetric(op: TorchBuilder, x: Value, dtype: torch.dtype) -> tuple[Value, Value]:
    lowest, highest = _range(op, x, op.ints(-1))
    low, high = (op.const(np.array(n, np.float32)) for n in (-128, 127))
    scale = _divided(op, op.Sub(highest, lowest), 255)
    scale = op.Max(scale, op.const(np.array(torch.finfo(torch.float32).eps, np.float32)))
    least, most = op.Div(lowest, scale), op.Div(highest, scale)
    error = op.Add(op.Add(low, least), op.Add(high, most))
    point = op.Where(op.Greater(error, op.const(np.array(0, np.float32))), op.Sub(low, least), op.Sub(high, most))
    return op.cast(scale, np.float64), op.cast(op.Round(op.Clip(point, low, high)), np.int64)


# --- fake quantisation


def _fake_quantized(op: TorchBuilder, x: Value, scale: Value, zero_point: Value, low: int, high: int) -> Value:
    """Quantised and dequantised again. The gradient passes where nothing is clamped.

    Arguments:
        scale: float32, broadcasting against x.
        zero_point: of integers or whole numbers, broadcasting against x.
    """
    wide = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
    given = op.cast(x, wide)
    inverse = op.cast(op.Div(op.const(np.array(1, np.float32)), scale), wide)
    point = op.cast(zero_point, wide)
    place = op.Add(op.Round(op.Mul(given, inverse)), point)
    least, most = (op.const(np.array(n, wide)) for n in (low, high))
    product = wide if scale.shape != () else np.dtype(np.float32)  # as torch's two kernels do, of float64 too
    made = op.Mul(op.cast(op.Sub(op.Clip(place, least, most), point), product), op.cast(scale, product))
    inside = op.And(op.GreaterOrEqual(place, least), op.LessOrEqual(place, most))
    straight = op.Where(inside, op.Sub(given, op.StopGradient(given)), op.const(np.array(0, wide)))  # 0: a derivative
    return op.cast(op.Add(op.StopGradient(op.cast(made, wide)), straight), x.dtype)


@aten("fake_quantize_per_tensor_affine", "fake_quantize_per_tensor_affine.tensor_qparams")
def fake_quantize_per_tensor(op: TorchBuilder, x: Value, scale: Any, zero_point: Any, low: int, high: int) -> Value:
    return _fake_quantized(op, x, _scalar(op, scale, np.float32), _scalar(op, zero_point, np.int32), low, high)


@aten("fake_quantize_per_channel_affine", f"{_NS}.fake_quant_per_channel.default")
def fake_quantize_per_channel(
    op: TorchBuilder, x: Value, scale: Value, zero_point: Value, axis: int, low: int, high: int
) -> Value:
    rank = op.rank_of(x)
    if zero_point.dtype != np.int32 and is_float(zero_point.dtype):
        raise UnsupportedError(f"fake quantisation with zero points of {zero_point.dtype}; use int32{op.where()}")
    scales = _along(op, op.cast(scale, np.float32), axis, rank)
    return _fake_quantized(op, x, scales, _along(op, zero_point, axis, rank), low, high)


@aten(f"{_NS}.convert_element_type.no_fuse")
def convert_element_type(op: TorchBuilder, x: Value, dtype: torch.dtype) -> Value:
    return op.cast(x, dtype_of(dtype))


@aten("_int_mm")
def int_mm(op: TorchBuilder, x: Value, y: Value) -> Value:
    """A product of int8 matrices in int32."""
    return op.MatMulInteger(x, y)
