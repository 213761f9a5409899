"""Activations and other operators on single elements, by ONNX's names and attributes.

    ACTIVATIONS["LeakyRelu"](f, x, alpha=0.1)

Functions take a `Function` under construction and Values of one type, scalars or vectors. Semantics are those of
`runtime.jax.primitives.elementwise`; NaN is propagated. Layers that are not operators (HardTanh) are in the table by
the names of their classes.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from functools import reduce

import numpy as np

from ...ir.errors import UnsupportedError
from . import gaussian, hyperbolic, logarithms
from . import trigonometry as trig
from . import vectormath as vm
from .llvm import F64, Function, Operand, Value
from .pairs import Pair, multiply_add, pair_times, square, two_product, two_sum
from .vectormath import format_of

Emitter = Callable[..., Value]
SQRT_2_PI = math.sqrt(2 / math.pi)
# ONNX's defaults are float32 numbers
SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def rounded_attribute(x: Value, number: float) -> float:
    """An attribute as a number of the type of x, as the operators use it."""
    return float(np.float32(number)) if x.type.bits == 32 else float(number)


# --- piecewise linear


def relu(f: Function, x: Value) -> Value:
    return f.max(0.0, x)


def leaky_relu(f: Function, x: Value, *, alpha: float = 0.01) -> Value:
    return f.select(x > 0.0, x, x * float(alpha))


def prelu(f: Function, x: Value, slope: Operand) -> Value:
    return f.select(x > 0.0, x, x * slope)


def thresholded_relu(f: Function, x: Value, *, alpha: float = 1.0) -> Value:
    return f.select(x > float(alpha), x, f.const(0.0, x.type))


def clip(f: Function, x: Value, low: Operand | None = None, high: Operand | None = None) -> Value:
    """x limited to low … high; high wins where low > high."""
    if low is not None:
        x = f.max(low, x)
    return x if high is None else f.min(high, x)


def hard_tanh(f: Function, x: Value, *, low: float = -1.0, high: float = 1.0) -> Value:
    return clip(f, x, float(low), float(high))


def hard_sigmoid(f: Function, x: Value, *, alpha: float = 0.2, beta: float = 0.5) -> Value:
    # x · alpha + beta with one rounding: near -beta / alpha the sum cancels
    return clip(f, multiply_add(f, x, rounded_attribute(x, alpha), rounded_attribute(x, beta)), 0.0, 1.0)


def hard_swish(f: Function, x: Value) -> Value:
    # x (x + 3) / 6 with the rounding error of the sum; x · 0 is NaN for -inf, as the product that it stands for
    plus = x + 3.0
    middle = f.fma(x, plus, x * (x - (plus - 3.0))) / 6.0
    return f.select(x <= -3.0, x * 0.0, f.select(x >= 3.0, x, middle))


def softsign(f: Function, x: Value) -> Value:
    return x / (f.abs(x) + 1.0)


def shrink(f: Function, x: Value, *, bias: float = 0.0, lambd: float = 0.5) -> Value:
    middle = f.select(f.is_nan(x), x, f.const(0.0, x.type))
    bias, lambd = float(bias), float(lambd)
    return f.select(x < -lambd, x + bias, f.select(x > lambd, x - bias, middle))


# --- exponential


def elu(f: Function, x: Value, *, alpha: float = 1.0) -> Value:
    below = vm.expm1_nonpositive(f, f.min(0.0, x), factor=rounded_attribute(x, alpha))
    return f.select(x > 0.0, x, below)


def selu(f: Function, x: Value, *, alpha: float = SELU_ALPHA, gamma: float = SELU_GAMMA) -> Value:
    alpha, gamma = rounded_attribute(x, alpha), rounded_attribute(x, gamma)
    return f.select(x > 0.0, x * gamma, vm.expm1_nonpositive(f, f.min(0.0, x), factor=alpha * gamma))


def celu(f: Function, x: Value, *, alpha: float = 1.0) -> Value:
    if alpha == 1:
        return elu(f, x)
    a = rounded_attribute(x, alpha)
    # x / alpha and what the quotient lacks; below the limit the result is -alpha
    below = f.max(abs(a) * format_of(x).least, f.min(0.0, x))
    z = below / a
    product, error = two_product(f, z, a)
    rest = ((below - product) - error) / a
    return f.select(x > 0.0, x, vm.expm1_nonpositive(f, z, rest, a))


def softplus(f: Function, x: Value, *, beta: float = 1.0, threshold: float = math.inf) -> Value:
    """log(1 + exp(beta x)) / beta; x itself where beta x > threshold (PyTorch: 20)."""
    z = x if beta == 1 else x * float(beta)
    y = f.max(0.0, z) + logarithms.log1p_unit(f, vm.exp_nonpositive(f, -f.abs(z)))
    if beta == 1 and threshold == math.inf:
        return y
    # from 40 on they are the same number; z may be infinite where x is not
    return f.select(z > min(float(threshold), 40.0), x, y / float(beta))


def log_sigmoid(f: Function, x: Value) -> Value:
    return -softplus(f, -x)


def swish(f: Function, x: Value, *, alpha: float = 1.0) -> Value:
    """x · sigmoid(alpha x)."""
    alpha = rounded_attribute(x, alpha)
    if alpha == 1:
        return vm.gated(f, x, x)
    if not 1e-9 <= abs(alpha) <= 1e9:
        return x * vm.sigmoid(f, x * alpha)
    z, low = two_product(f, x, alpha)
    low = f.select(f.abs(z) < 1000.0, low, f.const(0.0, x.type))  # NaN for infinities
    # beyond this x · exp(-|z|) is 0
    limit = least = -format_of(x).least
    for _ in range(5):
        limit = least + max(0.0, math.log(limit / abs(alpha)))
    return vm.gated(f, x, z, low, limit + 1.0)


def mish(f: Function, x: Value) -> Value:
    """x · tanh(log(1 + exp(x))).

    With e = exp(-|x|): x e (1 - (e + e²) / (2 + 2e + e²)) below 0, x (1 - 2e² / (1 + 2e + 2e²)) above.
    """
    if x.type.bits == 32 and not f.target.fma:
        return vm.in_double(f, mish, x)
    negative = x < 0.0

    def share(e: Value) -> Value | Pair:
        zero, one, two = (f.const(c, x.type) for c in (0.0, 1.0, 2.0))
        factor, constant = f.select(negative, e, e + e), f.select(negative, two, one)
        numerator = multiply_add(f, factor, e, f.select(negative, e, zero))
        summed = e + constant
        denominator = multiply_add(f, factor, summed, constant)
        h = numerator / denominator
        if not f.target.fma:
            return h
        # what the quotient and its denominator lost; for e near 1, where it matters, h = 2/5 and the denominator is 5
        lost = f.fma(factor, summed, constant - denominator)
        return h, f.fma(f.fma(-h, denominator, numerator), 0.2, lost * -0.08)

    return vm.sheltered(f, x, x, None, None, share)


def gelu(f: Function, x: Value, *, approximate: str = "none") -> Value:
    if approximate == "none":
        return gaussian.normal_times(f, x)
    if approximate != "tanh":
        raise UnsupportedError(f"Gelu has no approximation {approximate!r}, only 'none' and 'tanh'")
    z, low, _ = gelu_argument(f, x)
    return vm.gated(f, x, z, low, 112.0 if x.type.bits == 32 else 780.0)


def gelu_argument(f: Function, x: Value) -> tuple[Value, Value, Value]:
    """2 sqrt(2/π) (x + 0.044715 x³) as a pair, for |x| limited to where it matters, and that x.

    x (1 + tanh(z / 2)) / 2 = x sigmoid(z); exp(-z) would amplify the rounding errors of z.
    """
    limit = 11.0 if x.type.bits == 32 else 22.0
    x = f.max(-limit, f.min(limit, x))
    linear, cubic = 1.5957691216057308, 0.07135481627260025
    if x.type.bits == 32:
        wide = f.cast("fpext", x, F64)
        z = wide * f.fma(wide * wide, cubic, linear)
        high = f.cast("fptrunc", z, x.type.scalar)
        return high, f.cast("fptrunc", z - f.cast("fpext", high, F64), x.type.scalar), x
    constant = (f.const(cubic, x.type), f.const(-6.175149918155315e-19, x.type))
    part = pair_times(f, square(f, x), constant)
    total, error = two_sum(linear, part[0])
    error = error + (part[1] - 9.96930880911092e-17)
    high, low = two_product(f, x, total)
    return high, f.fma(x, error, low), x


# --- several inputs


def maximum(f: Function, *xs: Value) -> Value:
    return reduce(f.maximum, xs)


def minimum(f: Function, *xs: Value) -> Value:
    return reduce(f.minimum, xs)


def total(f: Function, *xs: Value) -> Value:
    return reduce(lambda a, b: a + b, xs)


def mean(f: Function, *xs: Value) -> Value:
    return total(f, *xs) / float(len(xs))


def power(f: Function, x: Value, exponent: Operand) -> Value:
    """x to a power: a number, for which there may be a shorter form, or a Value."""
    known = _known(exponent) if isinstance(exponent, Value) else float(exponent)
    return logarithms.power(f, x, known) if known is not None else logarithms.power_of(f, x, exponent)  # type: ignore[arg-type]


def _known(value: Value) -> float | None:
    """The number that a constant is, the same in all lanes; None for what is known at run time only."""
    if value.text == "zeroinitializer":
        return 0.0
    literal = re.fullmatch(r"(?:splat \((?:float|double) )?0x([0-9A-F]{16})\)?", value.text)
    return struct.unpack(">d", bytes.fromhex(literal[1]))[0] if literal else None


ACTIVATIONS: dict[str, Emitter] = {
    "Identity": lambda f, x: x,
    "Neg": lambda f, x: -x,
    "Abs": lambda f, x: f.abs(x),
    "Sign": vm.sign,
    "Floor": lambda f, x: vm.rounded(f, x, "floor"),
    "Ceil": lambda f, x: vm.rounded(f, x, "ceil"),
    "Round": lambda f, x: vm.rounded(f, x, "roundeven"),
    "Sqrt": logarithms.sqrt,
    "Reciprocal": logarithms.reciprocal,
    "Exp": vm.exp,
    "Log": logarithms.log,
    "Erf": gaussian.erf,
    "Sin": trig.sin,
    "Cos": trig.cos,
    "Tan": trig.tan,
    "Asin": trig.asin,
    "Acos": trig.acos,
    "Atan": trig.atan,
    "Sinh": hyperbolic.sinh,
    "Cosh": hyperbolic.cosh,
    "Asinh": hyperbolic.asinh,
    "Acosh": hyperbolic.acosh,
    "Atanh": hyperbolic.atanh,
    "Tanh": vm.tanh,
    "Sigmoid": vm.sigmoid,
    "Relu": relu,
    "LeakyRelu": leaky_relu,
    "PRelu": prelu,
    "ThresholdedRelu": thresholded_relu,
    "Clip": clip,
    "HardTanh": hard_tanh,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Shrink": shrink,
    "Softsign": softsign,
    "Elu": elu,
    "Selu": selu,
    "Celu": celu,
    "Softplus": softplus,
    "Swish": swish,
    "Mish": mish,
    "Gelu": gelu,
    "Max": maximum,
    "Min": minimum,
    "Sum": total,
    "Mean": mean,
    "Pow": power,
    # no operators of ONNX; what importers write in several is recognised as these
    "Expm1": vm.expm1,
    "Exp2": vm.exp2,
    "Log1p": logarithms.log1p,
    "Log2": logarithms.log2,
    "Log10": logarithms.log10,
    "Erfc": gaussian.erfc,
    "Rsqrt": logarithms.rsqrt,
    "LogSigmoid": log_sigmoid,
}
