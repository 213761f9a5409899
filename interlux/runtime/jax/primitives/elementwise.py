"""Element by element: arithmetic, comparison, activation, casts.

Where a derivative is a matter of choice (a kink), it is PyTorch's: 0 for relu and abs at 0, 1 for clip at its edges.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir import dtypes
from ....ir.trees import is_float
from .low_precision import converted
from .registry import Value, define, is_static, library, moving, primitive


def _unary(numpy_name: str) -> Any:
    return lambda x: getattr(library(x), numpy_name)(x)


def _binary(numpy_name: str) -> Any:
    return lambda x, y: getattr(library(x, y), numpy_name)(x, y)


define(
    **{
        name: _unary(function)
        for name, function in {
            "Neg": "negative",
            "Sqrt": "sqrt",
            "Exp": "exp",
            "Log": "log",
            "Sin": "sin",
            "Cos": "cos",
            "Tan": "tan",
            "Asin": "arcsin",
            "Acos": "arccos",
            "Atan": "arctan",
            "Sinh": "sinh",
            "Cosh": "cosh",
            "Asinh": "arcsinh",
            "Acosh": "arccosh",
            "Atanh": "arctanh",
            "Tanh": "tanh",
            "Floor": "floor",
            "Ceil": "ceil",
            "Round": "round",  # half to even, as ONNX's
            "Sign": "sign",
            "IsNaN": "isnan",
            "Not": "logical_not",
            "BitwiseNot": "bitwise_not",
        }.items()
    },
    **{
        name: _binary(function)
        for name, function in {
            "Add": "add",
            "Sub": "subtract",
            "Mul": "multiply",
            "And": "logical_and",
            "Or": "logical_or",
            "Xor": "logical_xor",
            "Equal": "equal",
            "Less": "less",
            "LessOrEqual": "less_equal",
            "Greater": "greater",
            "GreaterOrEqual": "greater_equal",
            "BitwiseAnd": "bitwise_and",
            "BitwiseOr": "bitwise_or",
            "BitwiseXor": "bitwise_xor",
        }.items()
    },
    Identity=lambda x: x,
    Reciprocal=lambda x: 1 / x,
    Relu=lambda x: jax.nn.relu(x),
    Sigmoid=lambda x: jax.nn.sigmoid(x),
    Softsign=lambda x: x / (1 + Abs(x)),
    Softplus=lambda x: jax.nn.softplus(x),
    Erf=lambda x: lax.erf(jnp.asarray(x)),
    Mish=lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    Max=lambda *xs: reduce(library(*xs).maximum, xs),
    Min=lambda *xs: reduce(library(*xs).minimum, xs),
    Sum=lambda *xs: reduce(library(*xs).add, xs),
    Mean=lambda *xs: reduce(library(*xs).add, xs) / np.asarray(len(xs), xs[0].dtype),
    CastLike=lambda x, like, **attributes: _converted(x, np.dtype(like.dtype), **attributes),
)


def _converted(x: Value, dtype: np.dtype[Any], saturate: int = 1, round_mode: str = "up") -> Value:
    """x in another dtype, as ONNX's Cast."""
    return converted(x, dtype, saturate=bool(saturate), round_mode=round_mode)


@primitive
def Abs(x: Value) -> Value:
    if is_static(x) or not is_float(x.dtype):
        return library(x).abs(x)
    return x * jnp.sign(x)  # the derivative of lax.abs at 0 is 1


@primitive
def Div(x: Value, y: Value) -> Value:
    if not np.issubdtype(x.dtype, np.integer):
        return library(x, y).true_divide(x, y)
    if is_static(x, y):  # integers divide towards zero
        quotient = np.abs(x) // np.abs(y)
        return np.where((x < 0) != (y < 0), -quotient, quotient).astype(x.dtype)
    return lax.div(*jnp.broadcast_arrays(x, jnp.asarray(y, x.dtype)))


@primitive
def Mod(x: Value, y: Value, *, fmod: int = 0) -> Value:
    return library(x, y).fmod(x, y) if fmod else library(x, y).mod(x, y)


@primitive
def Pow(x: Value, y: Value) -> Value:
    if not jnp.issubdtype(x.dtype, np.inexact) and not jnp.issubdtype(y.dtype, np.inexact):
        return _integer_power(x, y)
    if is_static(x, y):
        return np.power(x, y).astype(x.dtype)
    if is_static(y) and y.size == 1 and float(y.reshape(-1)[0]).is_integer() and abs(float(y.reshape(-1)[0])) <= 64:
        # the derivative of a power with a traced exponent is NaN for bases at or below 0
        shape = jnp.broadcast_shapes(x.shape, y.shape)
        return jnp.broadcast_to(lax.integer_pow(jnp.asarray(x), int(y.reshape(-1)[0])), shape).astype(x.dtype)
    return jnp.power(x, y).astype(x.dtype)


def _integer_power(x: Value, y: Value) -> Value:
    """Of integers. A negative power is a fraction, which is cut to 0, except of 1 and -1."""
    xp = library(x, y)
    negative = y < 0
    one = np.asarray(1, x.dtype)
    result = xp.power(x, xp.where(negative, np.asarray(0, y.dtype), y)).astype(x.dtype)
    if np.dtype(y.dtype).kind != "i":
        return result
    unit = xp.where(y % 2 == 0, one, x) if np.dtype(x.dtype).kind == "i" else one
    return xp.where(negative, xp.where(xp.abs(x) == 1, unit, np.asarray(0, x.dtype)), result).astype(x.dtype)


@primitive
def BitShift(x: Value, y: Value, *, direction: str) -> Value:
    return library(x, y).left_shift(x, y) if direction == "LEFT" else library(x, y).right_shift(x, y)


@primitive
def IsInf(x: Value, *, detect_negative: int = 1, detect_positive: int = 1) -> Value:
    positive, negative = library(x).isposinf(x), library(x).isneginf(x)
    return (positive & bool(detect_positive)) | (negative & bool(detect_negative))


@primitive
@moving
def Where(condition: Value, x: Value, y: Value) -> Value:
    return library(condition, x, y).where(condition, x, y)


@primitive
def Cast(x: Value, *, to: int, saturate: int = 1, round_mode: str = "up") -> Value:
    return _converted(x, dtypes.from_onnx(to), saturate, round_mode)


@primitive
def Clip(x: Value, low: Value | None = None, high: Value | None = None) -> Value:
    xp = library(x, low, high)
    if low is not None:
        x = xp.where(x < low, low, x)
    return x if high is None else xp.where(x > high, high, x)


@primitive
def LeakyRelu(x: Value, *, alpha: float = 0.01) -> Value:
    return jnp.where(x > 0, x, x * np.asarray(alpha, x.dtype))


@primitive
def PRelu(x: Value, slope: Value) -> Value:
    return jnp.where(x > 0, x, x * slope)


def _below_zero(x: Value) -> Value:
    """x where it is not positive, else 0: keeps exp from overflowing where its result is not used."""
    return jnp.where(x > 0, np.asarray(0, x.dtype), x)


@primitive
def Elu(x: Value, *, alpha: float = 1.0) -> Value:
    return jnp.where(x > 0, x, jnp.expm1(_below_zero(x)) * np.asarray(alpha, x.dtype))


@primitive
def Celu(x: Value, *, alpha: float = 1.0) -> Value:
    a = np.asarray(alpha, x.dtype)
    return jnp.where(x > 0, x, jnp.expm1(_below_zero(x) / a) * a)


@primitive
def Selu(x: Value, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Value:
    return np.asarray(gamma, x.dtype) * Elu(x, alpha=alpha)


@primitive
def ThresholdedRelu(x: Value, *, alpha: float = 1.0) -> Value:
    return jnp.where(x > np.asarray(alpha, x.dtype), x, np.asarray(0, x.dtype))


@primitive
def HardSigmoid(x: Value, *, alpha: float = 0.2, beta: float = 0.5) -> Value:
    y = x * np.asarray(alpha, x.dtype) + np.asarray(beta, x.dtype)
    zero, one = np.asarray(0, x.dtype), np.asarray(1, x.dtype)
    return jnp.where(y <= zero, zero, jnp.where(y >= one, one, y))


@primitive
def HardSwish(x: Value) -> Value:
    three = np.asarray(3, x.dtype)
    middle = x * (x / np.asarray(6, x.dtype) + np.asarray(0.5, x.dtype))
    nothing = x * np.asarray(0, x.dtype)  # NaN for -inf, as the product that it stands for
    return jnp.where(x <= -three, nothing, jnp.where(x >= three, x, middle))


@primitive
def Gelu(x: Value, *, approximate: str = "none") -> Value:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


@primitive
def Swish(x: Value, *, alpha: float = 1.0) -> Value:
    return x * jax.nn.sigmoid(x * np.asarray(alpha, x.dtype))


@primitive
def StopGradient(x: Value) -> Value:
    return x if is_static(x) else lax.stop_gradient(x)


@jax.custom_jvp
def _straight_through(value: Value, estimate: Value) -> Value:
    return value


@_straight_through.defjvp
def _straight_through_tangent(primals: tuple[Value, Value], tangents: tuple[Value, Value]) -> tuple[Value, Value]:
    return primals[0], tangents[1]


@primitive
def StraightThrough(value: Value, estimate: Value) -> Value:
    return value if is_static(value) and is_static(estimate) else _straight_through(value, estimate)
