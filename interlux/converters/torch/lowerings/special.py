"""Functions of single elements that ONNX has no operator for, or none that is exact: logarithms and exponentials near
1, the error function's complement and inverse, gamma functions, and the rarer activations.

A formula that divides into cases computes each on arguments that are harmless to the others, so that no NaN of an
unused case reaches the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.polynomial import chebyshev

from ....ir.errors import UnsupportedError
from ....ir.layers import HardTanh
from ...builder import Value
from ..builder import TorchBuilder
from .registry import LOWERINGS, aten
from .terms import Term, formula, working_dtype

LN2 = math.log(2)


# --- exponentials and logarithms


@formula("log1p", "special_log1p")
def log1p(x: Term) -> Term:
    """log(1 + x), exact near 0."""
    near = (x > -0.5) & (x < 1)
    small = near.where(x, 0)
    return near.where((small / (small + 2)).Atanh() * 2, (near.where(0, x) + 1).Log())


@formula("expm1", "special_expm1")
def expm1(x: Term) -> Term:
    """exp(x) - 1, exact near 0."""
    near = x.Abs() < 1
    small = near.where(x, 0)
    return near.where((small.Exp() + 1) * (small * 0.5).Tanh(), near.where(0, x).Exp() - 1)


@formula("exp2", "special_exp2")
def exp2(x: Term) -> Term:
    return x.like(2).Pow(x)


@formula("log2")
def log2(x: Term) -> Term:
    return x.Log() / LN2


@formula("log10")
def log10(x: Term) -> Term:
    return x.Log() / math.log(10)


@formula("logaddexp")
def logaddexp(x: Term, y: Term) -> Term:
    distance = _distance(x, y)
    return x.Max(y) + (-distance).Softplus()


@formula("logaddexp2")
def logaddexp2(x: Term, y: Term) -> Term:
    distance = _distance(x, y)
    return x.Max(y) + (distance * -LN2).Softplus() / LN2


def _distance(x: Term, y: Term) -> Term:
    """|x - y|, 0 for equal infinities."""
    same = x.equals(y)
    return same.where(0, same.where(0, x) - same.where(0, y)).Abs()


@formula("logit", "special_logit")
def logit(x: Term, eps: float | None = None) -> Term:
    if eps is not None:
        x = x.Clip(eps, 1 - eps)
    return (x / (1 - x)).Log()


@formula("log_sigmoid")
def log_sigmoid(x: Term) -> Term:
    return -(-x).Softplus()


def _no_logarithm(x: Term, y: Term, bound: float) -> Term:
    """Where x log y is 0 because x is, though the logarithm is not finite; y is not NaN."""
    return x.equals(0) & ((y <= bound) | y.equals(math.inf))


@formula("xlogy.Tensor", "xlogy.Scalar_Self", "xlogy.Scalar_Other")
@formula("special_xlogy", "special_xlogy.self_scalar", "special_xlogy.other_scalar")
def xlogy(x: Any, y: Any) -> Term:
    x, y = _terms(x, y)
    nothing = _no_logarithm(x, y, 0)
    return nothing.where(0, x * nothing.where(1, y).Log())


@formula("special_xlog1py", "special_xlog1py.self_scalar", "special_xlog1py.other_scalar")
def xlog1py(x: Any, y: Any) -> Term:
    x, y = _terms(x, y)
    nothing = _no_logarithm(x, y, -1)
    return nothing.where(0, x * log1p(nothing.where(1, y)))


def _terms(x: Any, y: Any) -> tuple[Term, Term]:
    return (x if isinstance(x, Term) else y.like(x)), (y if isinstance(y, Term) else x.like(y))


@formula("special_entr")
def entr(x: Term) -> Term:
    """-x log x; 0 at 0 and -inf below."""
    positive = x > 0
    within = positive.where(x, 1)
    outside = (x < 0).where(-math.inf, x * 0)  # NaN stays
    return positive.where(-within * within.Log(), outside)


# --- the error function


@cache
def _erfcx_coefficients(dtype: str) -> tuple[float, ...]:
    """(1 + 2x) exp(x²) erfc(x) for x >= 0 as a Chebyshev series in (x - 3.75) / (x + 3.75).

    Source: Shepherd and Laframboise, "Chebyshev approximation of (1 + 2x) exp(x²) erfc x in 0 <= x < inf", 1981.
    """

    degree = 15 if dtype == "float32" else 30
    nodes = chebyshev.chebpts1(degree + 1)
    x = 3.75 * (1 + nodes) / (1 - nodes)
    values = (1 + 2 * x) * torch.special.erfcx(torch.from_numpy(x)).numpy()
    return tuple(float(c) for c in chebyshev.chebfit(nodes, values, degree))  # through all of them


def _erfcx_above_zero(x: Term) -> Term:
    """exp(x²) erfc(x) for x >= 0; the sum of the series by Clenshaw's recurrence."""
    u = 1 - 7.5 / (x + 3.75)  # without the quotient of infinities
    coefficients = _erfcx_coefficients(x.dtype.name)
    last: Any = coefficients[-1]
    before: Any = 0.0
    for c in coefficients[-2:0:-1]:
        last, before = u * 2 * last - before + c, last
    return (u * last - before + coefficients[0]) / (1 + 2 * x)


def _gaussian(x: Term) -> Term:
    """exp(-x²), split so that the rounding of x² does not grow with it (Cody)."""
    coarse = (x * 16).Floor() * 0.0625
    return (-coarse * coarse).Exp() * ((coarse - x) * (x + coarse)).Exp()


@formula("erfc", "special_erfc")
def erfc(x: Term) -> Term:
    """1 - erf(x), exact where that vanishes."""
    far = x > 0.5
    beyond = x > 30
    tail = far.where(beyond.where(30, x), 1)
    return far.where(_gaussian(tail) * _erfcx_above_zero(tail), 1 - far.where(0, x).Erf())


@formula("special_erfcx")
def erfcx(x: Term) -> Term:
    """exp(x²) erfc(x)."""
    negative = x < 0
    above = _erfcx_above_zero(negative.where(-x, x))
    below = negative.where(x, 0)
    return negative.where((below * below).Exp() * 2 - above, above)


@formula("special_ndtr")
def ndtr(x: Term) -> Term:
    return erfc(x * -math.sqrt(0.5)) * 0.5


@formula("special_log_ndtr")
def log_ndtr(x: Term) -> Term:
    """The logarithm of the normal distribution function, exact in both tails."""
    left = x < 1
    low, high = left.where(x, 0), left.where(1, x)
    scaled = low * -math.sqrt(0.5)
    return left.where((erfcx(scaled) * 0.5).Log() - scaled * scaled, log1p(erfc(high * math.sqrt(0.5)) * -0.5))


# Rational approximations of the inverse error function in the middle and in the tails; two steps of Newton's method
# follow. Source: the classical pair (BSD's and Boost's `erfinv`).
_MIDDLE = (
    (0.886226899, -1.645349621, 0.914624893, -0.140543331),
    (1.0, -2.118377725, 1.442710462, -0.329097515, 0.012229801),
)
_TAIL = ((-1.970840454, -1.624906493, 3.429567803, 1.641345311), (1.0, 3.543889200, 1.637067800))


def _polynomial(x: Term, coefficients: tuple[float, ...]) -> Any:
    """Σ c_k x^k."""
    result: Any = coefficients[-1]
    for c in coefficients[-2::-1]:
        result = x * result + c
    return result


@formula("erfinv", "special_erfinv")
def erfinv(y: Term) -> Term:
    """The x with erf(x) = y: infinite at ±1, NaN beyond."""
    inside = y.Abs() < 1
    safe = inside.where(y, 0)
    middle = safe.Abs() <= 0.7
    inner = middle.where(safe, 0)
    square = inner * inner
    first = inner * _polynomial(square, _MIDDLE[0]) / _polynomial(square, _MIDDLE[1])
    outer = middle.where(0.8, safe.Abs())
    depth = (-((1 - outer) / 2).Log()).Sqrt()
    second = safe.Sign() * _polynomial(depth, _TAIL[0]) / _polynomial(depth, _TAIL[1])
    x = middle.where(first, second)
    for _ in range(2):
        # erf(x) - y as the difference of complements: near ±1 they are exact where erf is not
        error = safe.Sign() * ((1 - safe.Abs()) - erfc(x.Abs()))
        error = middle.where(x.Erf() - safe, error)
        x = x - error / ((-x * x).Exp() * (2 / math.sqrt(math.pi)))
    return inside.where(x, y.equals(1).where(math.inf, y.equals(-1).where(-math.inf, y.like(math.nan))))


# --- gamma functions: the recurrence up to 8, then Stirling's series; by reflection below 1/2

_SHIFT = 8
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)  # B_2, B_4, …


def _in_float64(function: Callable[[Term], Term]) -> Callable[[Term], Term]:
    """The sums of the recurrence cancel near the zeros: float32 is computed in float64."""

    def wide(x: Term) -> Term:
        return function(x.cast(np.float64)).cast(x.dtype)

    return wide


def _shifted(x: Term) -> tuple[Term, list[Term]]:
    """x moved to 8 and above where it is below, and the steps in between; steps that were not made are 1."""
    low = x < _SHIFT
    start = low.where(x, 1)
    return x + low.where(x * 0 + _SHIFT, 0), [start + k for k in range(_SHIFT)]


def _sine(x: Term) -> tuple[Term, Term]:
    """sin(pi x) and cos(pi x), from the distance to the nearest integer; the sign of both is that at this distance."""
    distance = (x - x.Round().stopped()) * math.pi
    return distance.Sin(), distance.Cos()


def _reflected(x: Term) -> tuple[Term, Term]:
    """Where to reflect, and what to compute with instead of x."""
    low = x < 0.5
    return low, low.where(1 - x, x)


@formula("lgamma", "special_gammaln")
@_in_float64
def lgamma(x: Term) -> Term:
    """log |gamma(x)|."""
    infinite = x.is_infinite()
    x = infinite.where(1, x)
    low, y = _reflected(x)
    z, steps = _shifted(y)
    size = y < _SHIFT
    factor = steps[0]
    for step in steps[1:]:
        factor = factor * step
    inverse = 1 / z
    series = _polynomial(inverse * inverse, tuple(b / (2 * k * (2 * k - 1)) for k, b in enumerate(_BERNOULLI, start=1)))
    above = (z - 0.5) * z.Log() - z + 0.5 * math.log(2 * math.pi) + inverse * series
    above = size.where(above - size.where(factor, 1).Log(), above)
    sine, _ = _sine(low.where(x, 0.5))
    value = low.where(math.log(math.pi) - sine.Abs().Log() - above, above)
    return infinite.where(math.inf, value)


@formula("digamma", "special_digamma", "special_psi")
@_in_float64
def digamma(x: Term) -> Term:
    """The derivative of lgamma: NaN at the negative integers, -inf at 0 (+inf at -0)."""
    low, y = _reflected(x)
    z, steps = _shifted(y)
    inverse = 1 / z
    square = inverse * inverse
    series = _polynomial(square, tuple(-b / (2 * k) for k, b in enumerate(_BERNOULLI, start=1)))
    above = z.Log() - inverse * 0.5 + square * series
    moved = y < _SHIFT
    for step in steps:
        above = above - moved.where(1 / step, 0)
    sine, cosine = _sine(low.where(x, 0.5))
    pole = low & sine.equals(0)
    below = above - cosine / pole.where(1, sine) * math.pi
    at_pole = x.equals(0).where(-1 / x, math.nan)
    return low.where(pole.where(at_pole, below), above)


@_in_float64
def _trigamma(x: Term) -> Term:
    low, y = _reflected(x)
    z, steps = _shifted(y)
    inverse = 1 / z
    square = inverse * inverse
    above = inverse + square * 0.5 + inverse * square * _polynomial(square, _BERNOULLI)
    moved = y < _SHIFT
    for step in steps:
        above = above + moved.where(1 / (step * step), 0)
    sine, _ = _sine(low.where(x, 0.5))
    return low.where(math.pi**2 / (sine * sine) - above, above)


@aten("polygamma", "special_polygamma")
def polygamma(op: TorchBuilder, order: Any, x: Any) -> Value:
    if isinstance(order, Value):  # polygamma_ has them the other way round
        order, x = x, order
    if order not in (0, 1):
        raise UnsupportedError(f"polygamma of order {order}; 0 and 1 can be imported{op.where()}")
    term = Term.of(op, x, working_dtype(op.result_dtype))
    return op.cast((digamma if order == 0 else _trigamma)(term).value, op.result_dtype)


@formula("mvlgamma", "special_multigammaln")
def mvlgamma(x: Term, order: int) -> Term:
    result = lgamma(x)
    for j in range(1, order):
        result = result + lgamma(x - j / 2)
    return result + order * (order - 1) / 4 * math.log(math.pi)


# --- trigonometry


for _name, _primitive in (("asinh", "Asinh"), ("acosh", "Acosh"), ("atanh", "Atanh")):

    def _hyperbolic(x: Term, _primitive: str = _primitive) -> Term:
        return x.primitive(_primitive)

    formula(_name)(_hyperbolic)


@formula("atan2")
def atan2(y: Term, x: Term) -> Term:
    """The angle of the point (x, y), of signed zeros and infinities too."""
    steep = y.Abs() > x.Abs()
    both = x.is_infinite() & y.is_infinite()
    origin = x.equals(0) & y.equals(0)
    special = both | origin
    numerator = special.where(0, steep.where(x, y))
    denominator = special.where(1, steep.where(y, x))
    ratio = (numerator / denominator).Atan()
    high = y.is_negative()
    turned = steep.where(high.where(-math.pi / 2, x.like(math.pi / 2)) - ratio, ratio)
    half_turn = x.is_negative() & ~steep
    angle = half_turn.where(high.where(-math.pi, x.like(math.pi)) + ratio, turned)
    # equal infinities: as for (±1, ±1); zeros: as for (±1, ±0)
    size = both.where(
        x.is_negative().where(0.75 * math.pi, x.like(0.25 * math.pi)), x.is_negative().where(math.pi, x * 0)
    )
    fixed = high.where(-size, size)
    unknown = x.is_nan() | y.is_nan()
    return unknown.where(math.nan, special.where(fixed, angle))


@formula("hypot")
def hypot(x: Term, y: Term) -> Term:
    """sqrt(x² + y²) without overflow; infinite if one is, even beside NaN."""
    largest = x.Abs().Max(y.Abs()).stopped()
    scale = ((largest > 0) & (largest < math.inf)).where(largest, 1)
    a, b = x / scale, y / scale
    return (x.is_infinite() | y.is_infinite()).where(math.inf, (a * a + b * b).Sqrt() * scale)


@formula("sinc", "special_sinc")
def sinc(x: Term) -> Term:
    zero = x.equals(0)
    angle = zero.where(1, x) * math.pi
    return zero.where(1, angle.Sin() / angle)


@formula("deg2rad")
def deg2rad(x: Term) -> Term:
    return x * (math.pi / 180)


@formula("rad2deg")
def rad2deg(x: Term) -> Term:
    return x * (180 / math.pi)


# --- activations


@formula("silu")
def silu(x: Term) -> Term:
    return x * x.Sigmoid()


@formula("glu")
def glu(x: Term, axis: int = -1) -> Term:
    op, axis = x.op, x.op.axis(axis, x.rank)
    half = op.result.shape[axis]
    values, gates = op.Split(x.value, op.sizes([half, half]), axis=axis, outputs=2)
    return Term(op, values, x.rank) * Term(op, gates, x.rank).Sigmoid()


@formula("celu")
def celu(x: Term, alpha: float = 1) -> Term:
    return _elu(x, float(alpha), 1.0, 1 / float(alpha))


def _elu(x: Term, alpha: float, scale: float, input_scale: float) -> Term:
    positive = x > 0
    below = positive.where(0, x)
    return positive.where(x * scale, expm1(below * input_scale) * (alpha * scale))


@aten("elu")
def elu(op: TorchBuilder, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    dtype = op.result_dtype
    if scale == 1 and input_scale == 1 and dtype == np.float32:
        return op.Elu(x, alpha=float(alpha))
    term = Term.of(op, x, working_dtype(dtype))
    return op.cast(_elu(term, float(alpha), float(scale), float(input_scale)).value, dtype)


@formula("selu")
def selu(x: Term) -> Term:
    # ONNX's defaults are rounded to float32
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    return _elu(x, alpha, scale, 1.0) if x.dtype == np.float64 else x.Selu(alpha=alpha, gamma=scale)


@formula("rrelu")
def rrelu(x: Term, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None) -> Term:
    if training:
        raise UnsupportedError(f"rrelu in training, whose slopes are random{x.op.where()}; export it in evaluation")
    return x.LeakyRelu(alpha=(lower + upper) / 2)


@formula("hardsigmoid")
def hardsigmoid(x: Term) -> Term:
    if x.op.result_dtype == np.float32:
        return x.HardSigmoid(alpha=1 / 6, beta=0.5)
    limited = x.op.add(HardTanh(0.0, 6.0), (x + 3).value)  # an attribute would round 1/6 to float32
    return Term(x.op, limited, x.rank) / 6


@formula("threshold")
def threshold(x: Term, limit: float, value: float) -> Term:
    return (x <= limit).where(value, x)


@formula("hardshrink")
def hardshrink(x: Term, limit: float = 0.5) -> Term:
    return ((x >= -limit) & (x <= limit)).where(0, x)


@formula("softshrink")
def softshrink(x: Term, limit: float = 0.5) -> Term:
    middle = (x * 0).stopped()  # NaN stays
    return (x > limit).where(x - limit, (x < -limit).where(x + limit, middle))


@formula("softplus")
def softplus(x: Term, beta: float = 1, threshold: float = 20) -> Term:
    scaled = x if beta == 1 else x * beta
    soft = scaled.Softplus()
    return (scaled > threshold).where(x, soft if beta == 1 else soft / beta)


# --- other names of the same

for _name, _same in {
    "special_erf": "erf",
    "special_expit": "sigmoid",
    "special_round": "round.decimals",
    "special_round.decimals": "round.decimals",
    "arcsinh": "asinh",
    "arccosh": "acosh",
    "arctanh": "atanh",
    "arctan2": "atan2",
}.items():
    _key, _target = (n if "." in n else f"{n}.default" for n in (_name, _same))

    def _alias(op: TorchBuilder, *args: Any, _target: str = _target, **kwargs: Any) -> Any:
        return LOWERINGS[_target](op, *args, **kwargs)

    aten(_key)(_alias)
