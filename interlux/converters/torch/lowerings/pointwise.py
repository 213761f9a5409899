"""Arithmetic, comparison, activation and casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ....ir.layers import HardTanh
from ....ir.trees import is_float
from ...builder import Value
from ..arrays import dtype_of
from ..builder import TorchBuilder
from .registry import aten
from .sizes import either
from .terms import Term, formula, working_dtype


def _common_dtype(op: TorchBuilder) -> np.dtype[Any]:
    """The dtype in which the two first arguments meet."""
    arguments = [*op.fx_node.args, *(op.fx_node.kwargs[k] for k in ("other", "exponent") if k in op.fx_node.kwargs)]
    operands = [a.meta["val"] if isinstance(a, torch.fx.Node) else a for a in arguments[:2]]
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


_OF_BOOLS = {"Add": "Or", "Mul": "And", "Max": "Or", "Min": "And"}


def _binary(primitive: str) -> Callable[..., Value]:
    def lowering(op: TorchBuilder, x: Any, y: Any, *, alpha: Any = 1) -> Value:
        result = _common_dtype(op)  # in place, the result takes the first operand's dtype afterwards
        if result.kind == "b":
            y = op.const(np.array(False)) if alpha == 0 else op.value(y, result)
            return op.cast(op.primitive(_OF_BOOLS[primitive], (op.value(x, result), y), {}), op.result_dtype)
        if result.name in ("int16", "uint16") and primitive in ("Max", "Min"):  # onnxruntime has no kernel
            x, y = op.value(x, np.int32), op.value(y, np.int32)
            return op.cast(op.primitive(primitive, (x, y), {}), op.result_dtype)
        wide = _wide(result, x, y) if primitive == "Mul" else _wide(result, alpha) if alpha != 1 else result
        if primitive != "Mul":
            x, y = op.value(x, result), op.value(y, result)
        y = op.value(y, wide)
        if alpha != 1:
            y = op.Mul(y, op.cast(op.const(np.array(alpha, result)), wide))
        made = op.cast(op.primitive(primitive, (op.value(x, wide), y), {}), result)
        return op.cast(made, op.result_dtype)

    return lowering


for _names, _primitive in (
    ("add.Tensor add.Scalar", "Add"),
    ("sub.Tensor sub.Scalar subtract.Tensor subtract.Scalar", "Sub"),
    ("mul.Tensor mul.Scalar multiply.Tensor multiply.Scalar", "Mul"),
    ("maximum max.other", "Max"),
    ("minimum min.other", "Min"),
):
    aten(*_names.split())(_binary(_primitive))


@aten("rsub.Scalar", "rsub.Tensor")
def rsub(op: TorchBuilder, x: Any, y: Any, alpha: Any = 1) -> Value:
    return _binary("Sub")(op, y, x, alpha=alpha)


@aten(*(f"__{n}__.{kind}" for n in ("and", "or", "xor") for kind in ("Tensor", "Scalar")))
@aten(*(f"bitwise_{n}.{kind}" for n in ("and", "or", "xor") for kind in ("Tensor", "Scalar", "Scalar_Tensor")))
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


@aten("bitwise_left_shift.Tensor", "bitwise_left_shift.Tensor_Scalar", "bitwise_left_shift.Scalar_Tensor")
@aten("__lshift__.Tensor", "__lshift__.Scalar")
def left_shift(op: TorchBuilder, x: Any, y: Any) -> Value:
    """Bits shifted out are lost; a shift by a negative number, or by the width and more, gives 0."""
    dtype = op.result_dtype
    if is_float(dtype):
        return op.Mul(op.value(x, dtype), op.Pow(op.const(np.array(2, dtype)), op.value(y, dtype)))
    amount = Term.of(op, y, np.int64)
    out = (amount < 0) | (amount >= 8 * dtype.itemsize)
    bits = op.BitShift(op.value(x, np.uint64), out.where(0, amount).cast(np.uint64).value, direction="LEFT")
    shifted = Term(op, op.cast(bits, np.int64), 0)
    return op.cast(out.where(0, shifted).value, dtype)


@aten("bitwise_right_shift.Tensor", "bitwise_right_shift.Tensor_Scalar", "bitwise_right_shift.Scalar_Tensor")
@aten("__rshift__.Tensor", "__rshift__.Scalar")
def right_shift(op: TorchBuilder, x: Any, y: Any) -> Value:
    """The sign is kept: of a negative number the complement's bits are shifted."""
    dtype = op.result_dtype
    if is_float(dtype):
        return op.Div(op.value(x, dtype), op.Pow(op.const(np.array(2, dtype)), op.value(y, dtype)))
    number, amount = Term.of(op, x, np.int64), Term.of(op, y, np.int64)
    last = 8 * dtype.itemsize - (1 if dtype.kind == "i" else 0)
    out = (amount < 0) | (amount > last)
    below = number < 0
    positive = below.where(number.BitwiseNot(), number).cast(np.uint64)
    bits = positive.BitShift(out.where(last, amount).cast(np.uint64), direction="RIGHT").cast(np.int64)
    return op.cast(below.where(bits.BitwiseNot(), bits).value, dtype)


@aten("div.Tensor", "div.Scalar", "true_divide.Tensor", "true_divide.Scalar", "divide.Tensor", "divide.Scalar")
def div(op: TorchBuilder, x: Any, y: Any) -> Value:
    dtype = _common_dtype(op)
    dtype = dtype if is_float(dtype) else op.result_dtype  # integers are divided in torch's default dtype
    wide = _wide(dtype, x, y)
    return op.cast(op.cast(op.Div(op.value(x, wide), op.value(y, wide)), dtype), op.result_dtype)


@aten("div.Tensor_mode", "div.Scalar_mode", "divide.Tensor_mode", "divide.Scalar_mode")
def div_mode(op: TorchBuilder, x: Any, y: Any, *, rounding_mode: str | None = None) -> Value:
    if rounding_mode is None:
        return div(op, x, y)
    dtype = _common_dtype(op)
    x, y = op.value(x, dtype), op.value(y, dtype)
    if rounding_mode == "floor":
        return op.cast(_floor_div(op, x, y), op.result_dtype)
    quotient = op.Div(x, y)
    return op.cast(_truncated(op, quotient) if is_float(dtype) else quotient, op.result_dtype)


def _truncated(op: TorchBuilder, x: Value) -> Value:
    return op.Where(op.Less(x, op.const(0, like=x)), op.Ceil(x), op.Floor(x))


@aten("floor_divide", "floor_divide.Scalar", "floor_divide.Tensor")
def floor_divide(op: TorchBuilder, x: Any, y: Any) -> Value:
    dtype = _common_dtype(op)
    return op.cast(_floor_div(op, op.value(x, dtype), op.value(y, dtype)), op.result_dtype)


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


@aten("remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor")
def remainder(op: TorchBuilder, x: Any, y: Any) -> Value:
    dtype = _common_dtype(op)
    x, y = op.value(x, dtype), op.value(y, dtype)
    if not is_float(dtype):
        return op.cast(op.Mod(x, y), op.result_dtype)
    rest = op.Mod(x, y, fmod=1)  # has the sign of x; torch's has that of y
    zero = op.const(0, like=rest)
    differs = op.And(op.Not(op.Equal(rest, zero)), op.Xor(op.Less(rest, zero), op.Less(y, zero)))
    return op.cast(op.Where(differs, op.Add(rest, y), rest), op.result_dtype)


@aten("fmod.Tensor", "fmod.Scalar")
def fmod(op: TorchBuilder, x: Any, y: Any) -> Value:
    dtype = _common_dtype(op)
    return op.cast(op.Mod(op.value(x, dtype), op.value(y, dtype), fmod=1), op.result_dtype)


@aten("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "pow.Tensor")  # the last in place
@aten("float_power.Tensor_Scalar", "float_power.Tensor_Tensor", "float_power.Scalar", "float_power.Tensor")
def power(op: TorchBuilder, x: Any, y: Any) -> Value:
    dtype = op.result_dtype if "float" in op.operator else _common_dtype(op)
    base = op.value(x, dtype)
    if _number(y) and y == 2:
        made = op.Mul(base, base)
    elif _number(y) and y == 0.5:
        made = op.Sqrt(base)
    elif isinstance(y, int) and not is_float(dtype):
        made = _integer_power(op, base, y)
    else:
        made = op.Pow(base, op.value(y, dtype))
    return op.cast(made, op.result_dtype)


def _integer_power(op: TorchBuilder, base: Value, exponent: int) -> Value:
    """By squaring; onnxruntime would go through float64."""
    if exponent == 0:
        return op.Add(op.Mul(base, op.const(0, like=base)), op.const(1, like=base))
    result: Value | None = None
    while True:
        if exponent & 1:
            result = base if result is None else op.Mul(result, base)
        exponent >>= 1
        if not exponent and result is not None:
            return result
        base = op.Mul(base, base)


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
    _long = {"eq": "eq", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal"}
    for _each in {_name, _long[_name]}:
        aten(f"{_each}.Tensor", f"{_each}.Scalar")(_comparison(_primitive, _negated))


def _unary(primitive: str) -> Callable[..., Value]:
    def lowering(op: TorchBuilder, x: Value) -> Value:
        return op.primitive(primitive, (op.cast(x, op.result_dtype),), {})

    return lowering


for _name, _primitive in (
    ("tanh", "Tanh"),
    ("sigmoid", "Sigmoid"),
    ("exp", "Exp"),
    ("log", "Log"),
    ("sqrt", "Sqrt"),
    ("sin", "Sin"),
    ("cos", "Cos"),
    ("tan", "Tan"),
    ("asin", "Asin"),
    ("acos", "Acos"),
    ("atan", "Atan"),
    ("arcsin", "Asin"),
    ("arccos", "Acos"),
    ("arctan", "Atan"),
    ("sinh", "Sinh"),
    ("cosh", "Cosh"),
    ("erf", "Erf"),
    ("reciprocal", "Reciprocal"),
):
    aten(_name)(_unary(_primitive))


@formula("hardswish")
def hardswish(x: Term) -> Term:
    return x.HardSwish()


@formula("mish")
def mish(x: Term) -> Term:
    return x.Mish()


def _of_numbers(primitive: str) -> Callable[..., Value]:
    """What changes floats only: integers are whole."""

    def lowering(op: TorchBuilder, x: Value) -> Value:
        return op.primitive(primitive, (x,), {}) if is_float(op.result_dtype) else op.Identity(x)

    return lowering


for _name, _primitive in (("floor", "Floor"), ("ceil", "Ceil"), ("round", "Round")):
    aten(_name)(_of_numbers(_primitive))


@aten("trunc", "fix")
def trunc(op: TorchBuilder, x: Value) -> Value:
    return _truncated(op, x) if is_float(x.dtype) else op.Identity(x)


@formula("frac")
def frac(x: Term) -> Term:
    return x - Term(x.op, _truncated(x.op, x.value), x.rank)


@formula("round.decimals")
def round_decimals(x: Term, *, decimals: int = 0) -> Term:
    if not is_float(x.dtype):
        return x
    scale = 10.0 ** abs(decimals)
    return (x * scale).Round() / scale if decimals >= 0 else (x / scale).Round() * scale


@aten("relu")
def relu(op: TorchBuilder, x: Value) -> Value:
    return op.Relu(x) if is_float(x.dtype) else op.Max(x, op.const(0, like=x))


@aten("neg", "negative")
def neg(op: TorchBuilder, x: Value) -> Value:
    return op.Sub(op.const(0, like=x), x) if x.dtype.kind == "u" else op.Neg(x)


@aten("abs", "absolute")
def absolute(op: TorchBuilder, x: Value) -> Value:
    return op.Identity(x) if x.dtype.kind in "bu" else op.Abs(x)


@aten("sign", "sgn")
def sign(op: TorchBuilder, x: Value) -> Value:
    if x.dtype.kind == "b":
        return op.Identity(x)
    made = op.Sign(x)
    return op.Where(op.IsNaN(x), op.const(0, like=x), made) if is_float(x.dtype) else made  # torch's of NaN is 0


@aten("positive")
def positive(op: TorchBuilder, x: Value) -> Value:
    return op.Identity(x)


def _is(op: TorchBuilder, x: Value, kind: str, **attributes: int) -> Value:
    """IsNaN or IsInf, for integers too."""
    if not is_float(x.dtype):
        return op.Less(x, x) if x.dtype.kind != "b" else op.Xor(x, x)
    return op.primitive(kind, (op.cast(x, working_dtype(x.dtype)),), attributes)


@aten("isnan")
def isnan(op: TorchBuilder, x: Value) -> Value:
    return _is(op, x, "IsNaN")


@aten("isinf")
def isinf(op: TorchBuilder, x: Value) -> Value:
    return _is(op, x, "IsInf")


@aten("isposinf")
def isposinf(op: TorchBuilder, x: Value) -> Value:
    return _is(op, x, "IsInf", detect_negative=0)


@aten("isneginf")
def isneginf(op: TorchBuilder, x: Value) -> Value:
    return _is(op, x, "IsInf", detect_positive=0)


@aten("isfinite")
def isfinite(op: TorchBuilder, x: Value) -> Value:
    return op.Not(op.Or(isinf(op, x), isnan(op, x)))


@aten("isreal")
def isreal(op: TorchBuilder, x: Value) -> Value:
    return op.Not(_is(op, op.cast(x, bool), "IsNaN"))


@aten("isin.Tensor_Tensor", "isin.Tensor_Scalar", "isin.Scalar_Tensor")
def isin(op: TorchBuilder, x: Any, among: Any, *, assume_unique: bool = False, invert: bool = False) -> Value:
    dtype = _common_dtype(op)
    wide = np.dtype(np.int32) if dtype.kind == "b" else dtype
    elements = Term.of(op, x, wide)
    members = Term(op, op.Reshape(op.value(among, wide), op.ints(-1)), 1)
    found = elements.unsqueezed(-1).equals(members).any(-1)
    return (~found if invert else found).value


@aten("angle")
def angle(op: TorchBuilder, x: Value) -> Value:
    """Of real numbers: pi below 0."""
    number = Term.of(op, x, op.result_dtype)
    return (number < 0).where(math.pi, number.is_nan().where(math.nan, number.like(0))).value


@aten("isclose")
def isclose(
    op: TorchBuilder, x: Value, y: Value, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Value:
    dtype = x.dtype if is_float(x.dtype) else np.dtype(np.float32)
    a, b = Term.of(op, x), Term.of(op, y)
    close = a.equals(b)
    if equal_nan and is_float(x.dtype):
        close = close | (a.is_nan() & b.is_nan())
    if rtol == 0 and atol == 0:
        return close.value
    difference = a.cast(np.int32) - b.cast(np.int32) if x.dtype.kind == "b" else a - b
    distance = difference.cast(dtype).Abs() if is_float(x.dtype) else difference.Abs().cast(dtype)
    allowed = (b.cast(dtype) * rtol).Abs() + atol
    return (close | ((distance < math.inf) & (distance <= allowed))).value


@aten("nan_to_num")
def nan_to_num(
    op: TorchBuilder, x: Value, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Value:
    if not is_float(x.dtype):
        return op.Identity(x)
    largest = torch.finfo(op.result.dtype).max
    kept = Term.of(op, x)
    kept = kept.is_nan().where(0 if nan is None else nan, kept)
    kept = kept.equals(math.inf).where(largest if posinf is None else posinf, kept)
    return kept.equals(-math.inf).where(-largest if neginf is None else neginf, kept).value


@aten("signbit")
def signbit(op: TorchBuilder, x: Value) -> Value:
    """Of a NaN False, whose sign nothing else shows."""
    if x.dtype.kind == "b":
        return op.Xor(x, x)
    return Term.of(op, x).is_negative().value


@formula("copysign.Tensor", "copysign.Scalar")
def copysign(x: Term, y: Any) -> Term:
    size = x.Abs()
    if not isinstance(y, Term):
        return -size if math.copysign(1, y) < 0 else size
    return y.is_negative().where(-size, size)


@aten("heaviside")
def heaviside(op: TorchBuilder, x: Value, at_zero: Value) -> Value:
    number = Term.of(op, x)
    return number.equals(0).where(Term.of(op, at_zero), (number > 0).cast(x.dtype)).value


@formula("ldexp.Tensor", "ldexp")
def ldexp(x: Term, exponent: Term) -> Term:
    return x * exponent.like(2).Pow(exponent)


@aten("fmax", "fmin")
def of_numbers(op: TorchBuilder, x: Value, y: Value) -> Value:
    """The extreme of two, where a NaN loses against a number; the gradient of equal ones goes to the first."""
    dtype = op.result_dtype
    a, b = Term.of(op, x, dtype), Term.of(op, y, dtype)
    first = a >= b if op.operator == "fmax" else a <= b
    if dtype.kind == "b":
        return op.primitive("Or" if op.operator == "fmax" else "And", (a.value, b.value), {})
    return (first | b.is_nan() if is_float(dtype) else first).where(a, b).value


@formula("rsqrt")
def rsqrt(x: Term) -> Term:
    return x.Sqrt().Reciprocal()


@aten("square")
def square(op: TorchBuilder, x: Value) -> Value:
    x = op.cast(x, op.result_dtype)
    return op.Mul(x, x)


@formula("gelu")
def gelu(x: Term, *, approximate: str = "none") -> Term:
    return x.Gelu(approximate=approximate)


@aten("relu6")
def relu6(op: TorchBuilder, x: Value) -> Value:
    return op.add(HardTanh(0.0, 6.0), x)


@aten("hardtanh")
def hardtanh(op: TorchBuilder, x: Value, low: float = -1, high: float = 1) -> Value:
    return op.add(HardTanh(float(low), float(high)), x)


@aten("leaky_relu")
def leaky_relu(op: TorchBuilder, x: Value, slope: float = 0.01) -> Value:
    return op.LeakyRelu(x, alpha=float(slope))


@aten("prelu")
def prelu(op: TorchBuilder, x: Value, slope: Value) -> Value:
    rank = op.rank_of(x)
    if rank > 2 and slope.shape != (1,):  # one slope for each channel, axis 1
        slope = op.Reshape(slope, op.ints(-1, *(1,) * (rank - 2)))
    return op.PRelu(x, slope)


@aten("clamp", "clamp.Tensor", "clip", "clip.Tensor")
def clamp(op: TorchBuilder, x: Value, min: Any = None, max: Any = None) -> Value:
    dtype = op.result_dtype
    x = op.cast(x, dtype)
    if isinstance(min, Value) or isinstance(max, Value) or dtype.name in ("int16", "uint16"):
        for end, beyond in ((min, op.Less), (max, op.Greater)):  # at the ends the gradient goes to x
            if end is not None:
                limit = op.value(end, dtype)
                over = beyond(x, limit)
                if isinstance(end, Value) and is_float(dtype):
                    over = op.Or(over, op.IsNaN(limit))
                x = either(op, over, limit, x)
        return x
    return op.Clip(x, *(None if end is None else op.value(end, dtype) for end in (min, max)))


@aten("clamp_min", "clamp_min.Tensor")
def clamp_min(op: TorchBuilder, x: Value, min: Any) -> Value:
    return clamp(op, x, min)


@aten("clamp_max", "clamp_max.Tensor")
def clamp_max(op: TorchBuilder, x: Value, max: Any) -> Value:
    return clamp(op, x, None, max)


@aten("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def where(op: TorchBuilder, condition: Value, x: Any, y: Any) -> Value:
    return either(op, op.cast(condition, bool), op.value(x, op.result_dtype), op.value(y, op.result_dtype))


@aten("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(op: TorchBuilder, x: Value, mask: Value, fill: Any) -> Value:
    return either(op, mask, op.value(fill, op.result_dtype), op.cast(x, op.result_dtype))


@formula("addcmul")
def addcmul(x: Term, a: Term, b: Term, *, value: float = 1) -> Term:
    return x + (a if value == 1 else a * value) * b


@formula("addcdiv")
def addcdiv(x: Term, a: Term, b: Term, *, value: float = 1) -> Term:
    return x + (a if value == 1 else a * value) / b


@formula("lerp.Scalar", "lerp.Tensor")
def lerp(x: Term, y: Term, weight: Any) -> Term:
    """From the nearer end, so that weights 0 and 1 give the ends themselves."""
    if not isinstance(weight, Term):
        return x + (y - x) * weight if abs(weight) < 0.5 else y - (y - x) * (1 - weight)
    near = weight.Abs() < 0.5
    return near.where(x + (y - x) * weight, y - (y - x) * (1 - weight))


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
