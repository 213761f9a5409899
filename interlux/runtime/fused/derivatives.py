"""Derivatives of the activations.

    DERIVATIVES["LeakyRelu"](f, x, y, alpha=0.1)    at x, where y is the activation's value there

Each uses x or y, whichever is cheaper. At kinks they are PyTorch's: relu'(0) = 0, clamp' is 1 at its ends, hardtanh' 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from . import gaussian, hyperbolic, logarithms
from . import trigonometry as trig
from . import vectormath as vm
from .activations import SELU_ALPHA, SELU_GAMMA, gelu_argument, rounded_attribute
from .llvm import Function, Operand, Value

Derivative = Callable[..., Value]


def _constant(number: float) -> Derivative:
    return lambda f, x, y, **attributes: f.const(number, x.type)


def _step(f: Function, condition: Value, inside: float | Value, outside: float | Value, like: Value) -> Value:
    return f.select(condition, f.value(inside, like.type), f.value(outside, like.type))


def clip(f: Function, x: Value, y: Value, low: Operand | None = None, high: Operand | None = None) -> Value:
    result = f.const(1.0, x.type)
    if low is not None:
        result = f.select(x < low, f.const(0.0, x.type), result)
    return result if high is None else f.select(x > high, f.const(0.0, x.type), result)


def hard_tanh(f: Function, x: Value, y: Value, *, low: float = -1.0, high: float = 1.0) -> Value:
    return _step(f, (x > float(low)) & (x < float(high)), 1.0, 0.0, x)


def hard_sigmoid(f: Function, x: Value, y: Value, *, alpha: float = 0.2, beta: float = 0.5) -> Value:
    return _step(f, (y > 0.0) & (y < 1.0), float(alpha), 0.0, x)


def hard_swish(f: Function, x: Value, y: Value) -> Value:
    return _step(f, x <= -3.0, 0.0, _step(f, x < 3.0, f.fma(x, 1 / 3, 0.5), 1.0, x), x)


def elu(f: Function, x: Value, y: Value, *, alpha: float = 1.0) -> Value:
    return _step(f, x > 0.0, 1.0, y + float(alpha), x)


def selu(f: Function, x: Value, y: Value, *, alpha: float = SELU_ALPHA, gamma: float = SELU_GAMMA) -> Value:
    return _step(f, x > 0.0, float(gamma), y + float(alpha) * float(gamma), x)


def celu(f: Function, x: Value, y: Value, *, alpha: float = 1.0) -> Value:
    return _step(f, x > 0.0, 1.0, y / float(alpha) + 1.0, x)


def softplus(f: Function, x: Value, y: Value, *, beta: float = 1.0, threshold: float = math.inf) -> Value:
    z = x if beta == 1 else x * float(beta)
    slope = vm.sigmoid(f, z)
    return slope if threshold == math.inf else _step(f, z > float(threshold), 1.0, slope, x)


def swish(f: Function, x: Value, y: Value, *, alpha: float = 1.0) -> Value:
    alpha = rounded_attribute(x, alpha)
    s = vm.sigmoid(f, x if alpha == 1 else x * alpha)
    return f.fma(y * alpha, 1.0 - s, s)


def mish(f: Function, x: Value, y: Value) -> Value:
    """t + x s (1 - t²) with s = sigmoid(x), r = 1 - s, t = tanh(softplus(x)) = s (1 + r) / (1 + r²)."""
    s = vm.sigmoid(f, x)
    r = 1.0 - s
    inverse = 1.0 / f.fma(r, r, 1.0)
    t = s * (r + 1.0) * inverse
    twice = (r + r) * inverse  # its square is 1 - t²
    return f.fma(x * s, twice * twice, t)


def gelu(f: Function, x: Value, y: Value, *, approximate: str = "none") -> Value:
    if approximate == "none":
        limit = 15.0 if x.type.bits == 32 else 39.0
        return f.fma(f.max(-limit, f.min(limit, x)), gaussian.normal_density(f, x), gaussian.normal(f, x))
    z, _, x = gelu_argument(f, x)
    rest = vm.sigmoid(f, -f.abs(z))  # the smaller of s = sigmoid(z) and 1 - s
    slope = f.fma(x * x, 3 * 0.07135481627260025, 1.5957691216057308)
    return f.fma(x * slope, f.fma(-rest, rest, rest), f.select(z < 0.0, rest, 1.0 - rest))


def softsign(f: Function, x: Value, y: Value) -> Value:
    root = 1.0 / (f.abs(x) + 1.0)
    return root * root


def power(f: Function, x: Value, y: Value, exponent: float) -> Value:
    exponent = float(exponent)
    return f.const(0.0, x.type) if exponent == 0 else logarithms.power(f, x, exponent - 1.0) * exponent


def erf(f: Function, x: Value, y: Value) -> Value:
    return vm.exp_nonpositive(f, -(x * x)) * (2 / math.sqrt(math.pi))


DERIVATIVES: dict[str, Derivative] = {
    "Identity": _constant(1.0),
    "Neg": _constant(-1.0),
    "Abs": lambda f, x, y: vm.sign(f, x),
    **dict.fromkeys(("Sign", "Floor", "Ceil", "Round"), _constant(0.0)),
    "Sqrt": lambda f, x, y: 0.5 / y,
    "Rsqrt": lambda f, x, y: y * y * y * -0.5,
    "Reciprocal": lambda f, x, y: -(y * y),
    "Exp": lambda f, x, y: y,
    "Exp2": lambda f, x, y: y * math.log(2),
    "Expm1": lambda f, x, y: y + 1.0,
    "Log": lambda f, x, y: 1.0 / x,
    "Log1p": lambda f, x, y: 1.0 / (x + 1.0),
    "Log2": lambda f, x, y: (1 / math.log(2)) / x,
    "Log10": lambda f, x, y: (1 / math.log(10)) / x,
    "Erf": erf,
    "Erfc": lambda f, x, y: -erf(f, x, y),
    "Sin": lambda f, x, y: trig.cos(f, x),
    "Cos": lambda f, x, y: -trig.sin(f, x),
    "Tan": lambda f, x, y: f.fma(y, y, 1.0),
    "Asin": lambda f, x, y: 1.0 / f.sqrt(f.fma(-x, x, 1.0)),
    "Acos": lambda f, x, y: -1.0 / f.sqrt(f.fma(-x, x, 1.0)),
    "Sinh": lambda f, x, y: hyperbolic.cosh(f, x),
    "Cosh": lambda f, x, y: hyperbolic.sinh(f, x),
    "Asinh": lambda f, x, y: 1.0 / f.sqrt(f.fma(x, x, 1.0)),
    "Acosh": lambda f, x, y: 1.0 / f.sqrt((x - 1.0) * (x + 1.0)),
    "Atanh": lambda f, x, y: 1.0 / f.fma(-x, x, 1.0),
    "Atan": lambda f, x, y: 1.0 / f.fma(x, x, 1.0),
    "Tanh": lambda f, x, y: f.fma(-y, y, 1.0),
    "Sigmoid": lambda f, x, y: f.fma(-y, y, y),
    "Relu": lambda f, x, y: _step(f, x > 0.0, 1.0, 0.0, x),
    "LeakyRelu": lambda f, x, y, *, alpha=0.01: _step(f, x > 0.0, 1.0, float(alpha), x),
    "PRelu": lambda f, x, y, slope: _step(f, x > 0.0, 1.0, slope, x),
    "ThresholdedRelu": lambda f, x, y, *, alpha=1.0: _step(f, x > float(alpha), 1.0, 0.0, x),
    "Clip": clip,
    "HardTanh": hard_tanh,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Shrink": lambda f, x, y, *, bias=0.0, lambd=0.5: _step(f, f.abs(x) > float(lambd), 1.0, 0.0, x),
    "Softsign": softsign,
    "Elu": elu,
    "Selu": selu,
    "Celu": celu,
    "Softplus": softplus,
    "LogSigmoid": lambda f, x, y: vm.sigmoid(f, -x),
    "Swish": swish,
    "Mish": mish,
    "Gelu": gelu,
    "Pow": power,
}
