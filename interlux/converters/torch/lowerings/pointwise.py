"""Arithmetic, comparison, activation and casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ....ir.errors import UnsupportedError
from ....ir.layers import HardTanh
from ....ir.trees import is_float
from ...builder import Value
from ..arrays import dtype_of
from ..builder import TorchBuilder
from .registry import aten


def _common_dtype(op: TorchBuilder) -> np.dtype[Any]:
    """The dtype in which the two first arguments meet."""
    operands = [a.meta["val"] if isinstance(a, torch.fx.Node) else a for a in op.fx_node.args[:2]]
    plain: Any = [
        bool(o) if isinstance(o, torch.SymBool) else 1 if isinstance(o, torch.SymInt) else o for o in operands
    ]
    return dtype_of(torch.result_type(*plain))


def _number(x: Any) -> bool:
    return not isinstance(x, Value)


def _wide(dtype: np.dtype[Any], *operands: Any) -> np.dtype[Any]:
    """torch multiplies and divides half-precision tensors by Python numbers in float32; it rounds the number first
    where it adds, subtracts, raises to a power or compares."""
    half = dtype.itemsize == 2 and is_float(dtype)
    return np.dtype(np.float32) if half and any(_number(o) for o in operands) else dtype


def _binary(primitive: str) -> Callable[..., Value]:
    def lowering(op: TorchBuilder, x: Any, y: Any, *, alpha: Any = 1) -> Value:
        result = op.result_dtype
        wide = _wide(result, x, y, alpha) if primitive == "Mul" or alpha != 1 else result
        if primitive != "Mul":
            x, y = op.value(x, result), op.value(y, result)
        y = op.value(y, wide)
        if alpha != 1:
            y = op.Mul(y, op.cast(op.const(np.array(alpha, result)), wide))
        return op.cast(op.primitive(primitive, (op.value(x, wide), y), {}), result)

    return lowering


for _names, _primitive in (
    ("add.Tensor add.Scalar", "Add"),
    ("sub.Tensor sub.Scalar", "Sub"),
    ("mul.Tensor mul.Scalar", "Mul"),
    ("maximum max.other", "Max"),
    ("minimum min.other", "Min"),
):
    aten(*_names.split())(_binary(_primitive))


@aten("rsub.Scalar", "rsub.Tensor")
def rsub(op: TorchBuilder, x: Any, y: Any, alpha: Any = 1) -> Value:
    return _binary("Sub")(op, y, x, alpha=alpha)


@aten("__and__.Tensor", "__or__.Tensor", "__xor__.Tensor", "__and__.Scalar", "__or__.Scalar", "__xor__.Scalar")
@aten("bitwise_and.Tensor", "bitwise_or.Tensor", "bitwise_xor.Tensor", "bitwise_and.Scalar", "bitwise_or.Scalar")
def bitwise(op: TorchBuilder, x: Any, y: Any) -> Value:
    name = op.operator.strip("_").removeprefix("bitwise_").capitalize()
    dtype = op.result_dtype
    return op.primitive(name if dtype.kind == "b" else f"Bitwise{name}", (op.value(x, dtype), op.value(y, dtype)), {})


@aten("logical_and", "logical_or", "logical_xor")
def logical(op: TorchBuilder, x: Value, y: Value) -> Value:
    name = op.operator.removeprefix("logical_").capitalize()
    return op.primitive(name, (op.cast(x, bool), op.cast(y, bool)), {})


@aten("logical_not", "bitwise_not")
def invert(op: TorchBuilder, x: Value) -> Value:
    return op.Not(op.cast(x, bool)) if op.result_dtype.kind == "b" else op.BitwiseNot(x)


@aten("div.Tensor", "div.Scalar", "true_divide.Tensor")
def div(op: TorchBuilder, x: Any, y: Any) -> Value:
    dtype = _wide(op.result_dtype, x, y)
    return op.cast(op.Div(op.value(x, dtype), op.value(y, dtype)), op.result_dtype)


@aten("div.Tensor_mode", "div.Scalar_mode")
def div_mode(op: TorchBuilder, x: Any, y: Any, *, rounding_mode: str | None = None) -> Value:
    if rounding_mode is None:
        return div(op, x, y)
    dtype = op.result_dtype
    x, y = op.value(x, dtype), op.value(y, dtype)
    if rounding_mode == "floor":
        return _floor_div(op, x, y)
    if not is_float(dtype):
        return op.Div(x, y)
    quotient = op.Div(x, y)
    return op.Where(op.Less(quotient, op.const(0, like=quotient)), op.Ceil(quotient), op.Floor(quotient))


@aten("floor_divide", "floor_divide.Scalar")
def floor_divide(op: TorchBuilder, x: Any, y: Any) -> Value:
    return _floor_div(op, op.value(x, op.result_dtype), op.value(y, op.result_dtype))


def _floor_div(op: TorchBuilder, x: Value, y: Value) -> Value:
    if is_float(x.dtype):  # as torch does it: 3 // 0.3 is 9, because 0.3 is a little more than that
        zero, one = op.const(0, like=x), op.const(1, like=x)
        rest = op.Mod(x, y, fmod=1)
        quotient = op.Div(op.Sub(x, rest), y)
        other_sign = op.And(op.Not(op.Equal(rest, zero)), op.Xor(op.Less(rest, zero), op.Less(y, zero)))
        quotient = op.Where(other_sign, op.Sub(quotient, one), quotient)
        whole = op.Floor(quotient)
        whole = op.Where(op.Greater(op.Sub(quotient, whole), op.const(0.5, like=x)), op.Add(whole, one), whole)
        return op.Where(op.Equal(y, zero), op.Div(x, y), whole)
    return op.Div(op.Sub(x, op.Mod(x, y)), y)  # ONNX's Div of integers truncates; its Mod has the divisor's sign


@aten("remainder.Tensor", "remainder.Scalar")
def remainder(op: TorchBuilder, x: Any, y: Any) -> Value:
    x, y = op.value(x, op.result_dtype), op.value(y, op.result_dtype)
    if not is_float(x.dtype):
        return op.Mod(x, y)
    rest = op.Mod(x, y, fmod=1)  # has the sign of x; torch's has that of y
    zero = op.const(0, like=rest)
    differs = op.And(op.Not(op.Equal(rest, zero)), op.Xor(op.Less(rest, zero), op.Less(y, zero)))
    return op.Where(differs, op.Add(rest, y), rest)


@aten("fmod.Tensor", "fmod.Scalar")
def fmod(op: TorchBuilder, x: Any, y: Any) -> Value:
    return op.Mod(op.value(x, op.result_dtype), op.value(y, op.result_dtype), fmod=1)


@aten("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def power(op: TorchBuilder, x: Any, y: Any) -> Value:
    base = op.value(x, op.result_dtype)
    if _number(y) and y == 2:
        return op.Mul(base, base)
    if _number(y) and y == 0.5:
        return op.Sqrt(base)
    return op.Pow(base, op.value(y, op.result_dtype))


def _comparison(primitive: str, negated: bool = False) -> Callable[..., Value]:
    def lowering(op: TorchBuilder, x: Any, y: Any) -> Value:
        dtype = _common_dtype(op)
        if dtype.kind == "b" and primitive not in ("Equal",):
            dtype = np.dtype(np.int32)
        result = op.primitive(primitive, (op.value(x, dtype), op.value(y, dtype)), {})
        return op.Not(result) if negated else result

    return lowering


for _name, _primitive, _negated in (
    ("eq", "Equal", False),
    ("ne", "Equal", True),
    ("lt", "Less", False),
    ("le", "LessOrEqual", False),
    ("gt", "Greater", False),
    ("ge", "GreaterOrEqual", False),
):
    aten(f"{_name}.Tensor", f"{_name}.Scalar")(_comparison(_primitive, _negated))


def _unary(primitive: str) -> Callable[..., Value]:
    def lowering(op: TorchBuilder, x: Value) -> Value:
        return op.primitive(primitive, (op.cast(x, op.result_dtype),), {})

    return lowering


for _name, _primitive in (
    ("relu", "Relu"),
    ("tanh", "Tanh"),
    ("sigmoid", "Sigmoid"),
    ("neg", "Neg"),
    ("abs", "Abs"),
    ("exp", "Exp"),
    ("log", "Log"),
    ("sqrt", "Sqrt"),
    ("sin", "Sin"),
    ("cos", "Cos"),
    ("tan", "Tan"),
    ("asin", "Asin"),
    ("acos", "Acos"),
    ("atan", "Atan"),
    ("sinh", "Sinh"),
    ("cosh", "Cosh"),
    ("erf", "Erf"),
    ("floor", "Floor"),
    ("ceil", "Ceil"),
    ("round", "Round"),
    ("sign", "Sign"),
    ("reciprocal", "Reciprocal"),
    ("hardswish", "HardSwish"),
    ("mish", "Mish"),
):
    aten(_name)(_unary(_primitive))


@aten("isnan")
def isnan(op: TorchBuilder, x: Value) -> Value:
    return op.IsNaN(x)


@aten("rsqrt")
def rsqrt(op: TorchBuilder, x: Value) -> Value:
    return op.Reciprocal(op.Sqrt(op.cast(x, op.result_dtype)))


@aten("square")
def square(op: TorchBuilder, x: Value) -> Value:
    return op.Mul(x, x)


@aten("silu")
def silu(op: TorchBuilder, x: Value) -> Value:
    return op.Mul(x, op.Sigmoid(x))


@aten("gelu")
def gelu(op: TorchBuilder, x: Value, approximate: str = "none") -> Value:
    return op.Gelu(x, approximate=approximate)


@aten("relu6")
def relu6(op: TorchBuilder, x: Value) -> Value:
    return op.add(HardTanh(0.0, 6.0), x)


@aten("hardtanh")
def hardtanh(op: TorchBuilder, x: Value, low: float = -1, high: float = 1) -> Value:
    return op.add(HardTanh(float(low), float(high)), x)


@aten("hardsigmoid")
def hardsigmoid(op: TorchBuilder, x: Value) -> Value:
    return op.HardSigmoid(x, alpha=1 / 6, beta=0.5)


@aten("leaky_relu")
def leaky_relu(op: TorchBuilder, x: Value, slope: float = 0.01) -> Value:
    return op.LeakyRelu(x, alpha=float(slope))


@aten("prelu")
def prelu(op: TorchBuilder, x: Value, slope: Value) -> Value:
    rank = op.rank_of(x)
    if rank > 2 and slope.shape != (1,):  # one slope for each channel, axis 1
        slope = op.Reshape(slope, op.ints(-1, *(1,) * (rank - 2)))
    return op.PRelu(x, slope)


@aten("elu")
def elu(op: TorchBuilder, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    if scale != 1 or input_scale != 1:
        raise UnsupportedError(f"elu with scale {scale} and input scale {input_scale}{op.where()}")
    return op.Elu(x, alpha=float(alpha))


@aten("selu")
def selu(op: TorchBuilder, x: Value) -> Value:
    # ONNX's defaults are rounded to float32
    return op.Selu(x, alpha=1.6732632423543772848170429916717, gamma=1.0507009873554804934193349852946)


@aten("softplus")
def softplus(op: TorchBuilder, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    scaled = x if beta == 1 else op.Mul(x, op.const(beta, like=x))
    soft = op.Softplus(scaled)
    soft = soft if beta == 1 else op.Div(soft, op.const(beta, like=x))
    return op.Where(op.Greater(scaled, op.const(threshold, like=x)), x, soft)


@aten("clamp", "clamp.Tensor")
def clamp(op: TorchBuilder, x: Value, low: Any = None, high: Any = None) -> Value:
    dtype = op.result_dtype
    x = op.cast(x, dtype)
    if isinstance(low, Value) or isinstance(high, Value):
        for end, beyond in ((low, op.Less), (high, op.Greater)):  # at the ends the gradient goes to x
            if end is not None:
                limit = op.value(end, dtype)
                x = op.Where(beyond(x, limit), limit, x)
        return x
    return op.Clip(x, *(None if end is None else op.value(end, dtype) for end in (low, high)))


@aten("clamp_min", "clamp_min.Tensor")
def clamp_min(op: TorchBuilder, x: Value, low: Any) -> Value:
    return clamp(op, x, low)


@aten("clamp_max", "clamp_max.Tensor")
def clamp_max(op: TorchBuilder, x: Value, high: Any) -> Value:
    return clamp(op, x, None, high)


@aten("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def where(op: TorchBuilder, condition: Value, x: Any, y: Any) -> Value:
    return op.Where(condition, op.value(x, op.result_dtype), op.value(y, op.result_dtype))


@aten("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(op: TorchBuilder, x: Value, mask: Value, fill: Any) -> Value:
    return op.Where(mask, op.value(fill, op.result_dtype), op.cast(x, op.result_dtype))


@aten("addcmul")
def addcmul(op: TorchBuilder, x: Value, a: Value, b: Value, *, value: float = 1) -> Value:
    product = op.Mul(a, b)
    return op.Add(x, product if value == 1 else op.Mul(product, op.const(value, like=x)))


@aten("lerp.Scalar")
def lerp(op: TorchBuilder, x: Value, y: Value, weight: float) -> Value:
    return op.Add(x, op.Mul(op.Sub(y, x), op.const(weight, like=x)))


@aten("contiguous", "clone", "alias", "lift_fresh_copy", "lift_fresh")
@aten("to.dtype", "to.dtype_layout", "to.device", "to.other", "_to_copy", "type_as", "float", "half")
def as_result(op: TorchBuilder, x: Value, *rest: Any, **options: Any) -> Value:
    """The same values in the result's dtype; devices, layouts and memory formats mean nothing here."""
    return op.cast(x, op.result_dtype)


@aten("detach")
def detach(op: TorchBuilder, x: Value) -> Value:
    return op.StopGradient(x)


@aten("fill.Scalar", "fill.Tensor")
def fill(op: TorchBuilder, x: Value, value: Any) -> Value:
    return op.Expand(op.value(value, op.result_dtype), op.sizes(op.result.shape))


@aten("zero")
def zero(op: TorchBuilder, x: Value) -> Value:
    return fill(op, x, 0)


@aten("copy")
def copy_into(op: TorchBuilder, x: Value, source: Value, non_blocking: bool = False) -> Value:
    """copy_: the source in x's dtype and shape."""
    value = op.cast(source, op.result_dtype)
    if source.shape == op.shape(op.result.shape):
        return value
    return op.Expand(value, op.sizes(op.result.shape))
