"""Elementary functions on scalars or vectors of float32 or float64, as LLVM IR.

Every function takes a `Function` under construction and a Value and returns a Value of the same type. They have no
branches (lanes choose by select), are right at NaN, infinities, signed zeros and denormal numbers, and are within 2
units in the last place of the exact result; the tests measure each.

What differs by target: without fused multiply-add (`target.fma`) a step a·b + c rounds twice, and products that have to
be exact are computed from halves (`pairs`). The reductions below are exact in either case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from . import coefficients
from .llvm import F32, F64, Function, Operand, Value
from .pairs import (
    Pair,
    mantissa_bits,
    pair_plus,
    pair_times,
    quick_two_sum,
    residual,
    square,
    two_product,
    two_sum,
)

LOG2E = 1.4426950408889634
LN2 = math.log(2)


@dataclass(frozen=True)
class Format:
    """Constants that depend on the type.

    Arguments:
        mantissa: stored bits of the significand.
        bias: of the exponent.
        magic: adding it to a small number rounds that to an integer, which then is in the lowest bits.
        ln2_high, ln2_low: ln(2) as a number with trailing zeros, so that its products with exponents are exact, and
            the rest.
        least: below this exp(x) is 0.
        most: above this exp(x) is infinite.
        lift: results that may be denormal are computed 2^lift times too large, and brought down in the last step.
        one: from here on tanh(x) is 1.
        tiny: the smallest normal number.
    """

    mantissa: int
    bias: int
    magic: float
    ln2_high: float
    ln2_low: float
    least: float
    most: float
    lift: int
    one: float
    tiny: float


FLOAT = Format(23, 127, 1.5 * 2.0**23, 0.693145751953125, 1.4286068203094173e-06, -104.0, 89.0, 64, 10.0, 2.0**-126)
DOUBLE = Format(
    52, 1023, 1.5 * 2.0**52, 0.6931471805601177, -1.7239444525614835e-13, -746.0, 710.0, 128, 20.0, 2.0**-1022
)


def format_of(x: Value) -> Format:
    return FLOAT if x.type.bits == 32 else DOUBLE


def polynomial(f: Function, x: Value, coefficients: Sequence[float]) -> Value:
    """By Horner's rule; coefficients from the constant upwards."""
    result: Operand = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        result = f.fma(result, x, coefficient)
    return f.value(result, x.type)


def in_double(f: Function, function: Callable[..., Value], *xs: Value) -> Value:
    """A function of float32 computed in float64, where that is simpler than twice the precision of float32."""
    wide = [f.cast("fpext", x, F64) for x in xs]
    return f.cast("fptrunc", function(f, *wide), F32)


# --- powers of e


def _rounded(f: Function, x: Value, scale: float, magic: Operand) -> tuple[Value, Value]:
    """x · scale rounded to an integer, as a number and (plus the offset that is in magic) shifted to the exponent."""
    shifted = f.fma(x, scale, magic)
    return shifted - magic, f.bits(shifted) << format_of(x).mantissa


def _power_of_two(f: Function, x: Value, exponent: Value) -> Value:
    """2 to the power of an exponent that is in its place, as a number of the type of x.

    To be multiplied with, not added to the bits of a number: that number may be NaN.
    """
    kind = format_of(x)
    return f.from_bits(exponent + (kind.bias << kind.mantissa), x.type.scalar)


def _rest(f: Function, x: Value, n: Value) -> Value:
    """x - n ln(2)."""
    kind = format_of(x)
    return f.fma(n, -kind.ln2_low, f.fma(n, -kind.ln2_high, x))


def _expm1_near(f: Function, r: Value) -> Value:
    """exp(r) - 1 for |r| <= ln(2) / 2."""
    return f.fma(r * r, polynomial(f, r, _exp_table(f, r)), r)


def _exp_table(f: Function, r: Value) -> Sequence[float]:
    # without fused multiply-add more is lost elsewhere, so that less may be lost here
    return coefficients.EXP[r.type.name if f.target.fma or format_of(r) is DOUBLE else "float, long"]


def exp_parts(f: Function, x: Value, low: Value | None = None) -> tuple[Value, Value]:
    """p and r with exp(x + low) · 2^lift = p · (1 + r), p a power of two, for x <= 0.

    Arguments:
        x: not below -130 (float32) or -790 (float64), so that p is a normal number.
        low: a correction of x that is small against 1.
    """
    kind = format_of(x)
    n, exponent = _rounded(f, x, LOG2E, kind.magic + kind.lift)
    r = _rest(f, x, n)
    if low is not None:
        r = r + low
    return _power_of_two(f, x, exponent), _expm1_near(f, r)


def exp_lifted(f: Function, x: Value, low: Value | None = None) -> Value:
    """exp(x + low) · 2^lift; arguments as for `exp_parts`."""
    p, r = exp_parts(f, x, low)
    return f.fma(p, r, p)


def exp_nonpositive(f: Function, x: Value) -> Value:
    """exp(x) for x <= 0: as a softmax needs it; cheaper than `exp`."""
    kind = format_of(x)
    return exp_lifted(f, f.max(kind.least, x)) * 2.0**-kind.lift


def exp(f: Function, x: Value) -> Value:
    kind = format_of(x)
    return _exp_limited(f, f.min(kind.most, f.max(kind.least, x)))


def _exp_limited(f: Function, x: Value, low: Value | None = None) -> Value:
    """exp(x + low), x within the limits of exp."""
    kind = format_of(x)
    # 2^n does not exist for all n that occur: below 0 a multiple of the result is scaled down, above a fraction up
    negative = x < 0.0
    magic = f.select(negative, f.const(kind.magic + kind.lift, x.type), kind.magic - kind.lift)
    back = f.select(negative, f.const(2.0**-kind.lift, x.type), 2.0**kind.lift)
    n, exponent = _rounded(f, x, LOG2E, magic)
    r = _rest(f, x, n)
    if low is not None:
        r = r + low
    power = _power_of_two(f, x, exponent)
    return f.fma(power, _expm1_near(f, r), power) * back


def exp2(f: Function, x: Value) -> Value:
    """2^x."""
    kind = format_of(x)
    x = f.min(kind.most / LN2, f.max(kind.least / LN2, x))
    negative = x < 0.0
    magic = f.select(negative, f.const(kind.magic + kind.lift, x.type), kind.magic - kind.lift)
    back = f.select(negative, f.const(2.0**-kind.lift, x.type), 2.0**kind.lift)
    shifted = x + magic
    rest = x - (shifted - magic)  # exact
    power = _power_of_two(f, x, f.bits(shifted) << kind.mantissa)
    return f.fma(power, _expm1_near(f, rest * LN2), power) * back


def expm1_nonpositive(f: Function, x: Value, low: Value | None = None, factor: float = 1.0) -> Value:
    """factor · (exp(x + low) - 1) for x <= 0; low is a correction of x that is small against 1."""
    kind = format_of(x)
    x = f.max(-2 * kind.one, x)
    n, exponent = _rounded(f, x, LOG2E, kind.magic)
    r = _rest(f, x, n)
    if low is not None:
        r = r + low
    power = _power_of_two(f, x, exponent)
    less = power - 1.0
    if factor != 1:
        power, less = power * factor, less * factor  # the first is exact
    return f.fma(power, _expm1_near(f, r), less)


def expm1(f: Function, x: Value) -> Value:
    """exp(x) - 1, exact near 0."""
    kind = format_of(x)
    x = f.min(kind.most, f.max(-2 * kind.one, x))
    # large results are computed at half their size: 2^n of the largest ones does not exist
    large = x > 1.0
    magic = f.select(large, f.const(kind.magic - 1, x.type), kind.magic)
    n, exponent = _rounded(f, x, LOG2E, magic)
    power = _power_of_two(f, x, exponent)
    half = f.select(large, f.const(0.5, x.type), 1.0)
    result = f.fma(power, _expm1_near(f, _rest(f, x, n)), power - half) * f.select(large, f.const(2.0, x.type), 1.0)
    return f.copysign(result, x)  # of -0


# --- hyperbolic tangent, logistic function


def tanh(f: Function, x: Value) -> Value:
    """With h = (exp(2|x|) - 1) / 2: h / (h + 1). One formula for all x: h is exact near 0."""
    kind = format_of(x)
    a = f.min(kind.one, f.abs(x))
    n, exponent = _rounded(f, a, 2 * LOG2E, kind.magic)
    if f.target.fma and x.type.bits == 32:
        # n <= 29 here and the error of ln(2) in float32 is 2^-29: too small to be seen
        r = f.fma(n, -LN2 / 2, a)
    else:
        r = f.fma(n, -kind.ln2_low / 2, f.fma(n, -kind.ln2_high / 2, a))
    # (exp(2r) - 1) / 2 = r + r² (2 c0 + 4 c1 r + …)
    table = [c * 2.0 ** (i + 1) for i, c in enumerate(_exp_table(f, x))]
    near = f.fma(r * r, polynomial(f, r, table), r)
    power = _power_of_two(f, x, exponent)
    h = f.fma(power, near, f.fma(power, 0.5, -0.5))
    quotient = h / (h + 1.0)
    # for small x the same as h - h · quotient, where the roundings of the quotient count little
    return f.copysign(f.select(a < 0.35, f.fma(-h, quotient, h), quotient), x)


def sigmoid(f: Function, x: Value) -> Value:
    """1 / (1 + exp(-x)), without loss in the negative tail."""
    e = exp_nonpositive(f, -f.abs(x))
    share = f.select(x < 0.0, e, 1.0) / (e + 1.0)
    # for small e = exp(x) the same as e - e · share, where the roundings of the quotient count little
    return f.select(x < -0.7, f.fma(-e, share, e), share)


def gated(f: Function, x: Value, z: Value, low: Value | None = None, limit: float | None = None) -> Value:
    """x · sigmoid(z + low), with all digits where the sigmoid alone would be denormal.

    Arguments:
        z: 0 or infinite only where x is.
        low: the part of it that z has no digits for.
        limit: below minus this the result is 0.
    """

    def share(e: Value) -> Value | Pair:
        d = e + 1.0
        h = e / d
        if format_of(x) is FLOAT:
            return h
        # what the quotient and the sum lost; 1 / d = 1 - h
        product, error = two_product(f, h, d)
        return h, (((e - product) - error) - h * (e - (d - 1.0))) * (1.0 - h)

    return sheltered(f, x, z, low, limit, share)


def sheltered(
    f: Function,
    x: Value,
    z: Value,
    low: Value | None,
    limit: float | None,
    share: Callable[[Value], Value | Pair],
) -> Value:
    """x e (1 - h) for z < 0 and x (1 - h) above, where e = exp(-|z + low|) and h = share(e) is at most 1/2.

    In this form the rounding errors of h count little where h is small, and x e keeps all digits where e is denormal.
    """
    kind = format_of(x)
    limit = limit or -kind.least + 12
    negative = z < 0.0
    if low is not None:
        low = f.select(negative, low, -low)
    p, r = exp_parts(f, -f.min(limit, f.abs(z)), low)
    # 0 and not merely small: x · 0 is -0 for numbers and NaN for -inf, as in the product that this stands for
    p = f.select(z <= -limit, f.const(0.0, x.type), p)
    shared = share(f.fma(p, r, p) * 2.0**-kind.lift)
    h, h_low = shared if isinstance(shared, tuple) else (shared, None)
    whole = x * p
    first = f.fma(whole, r, whole)
    lost = f.fma(whole, r, whole - first)
    first = f.select(negative, first, x)
    lost = f.select(negative, lost, f.const(0.0, x.type))
    if h_low is not None:
        lost = f.fma(-first, h_low, lost)
    if f.target.fma:
        kept = first + f.fma(-first, h, lost)
    else:
        product, error = two_product(f, first, h)
        kept, rest = quick_two_sum(first, -product)
        kept = kept + (rest + (lost - error))
    result = kept * f.select(negative, f.const(2.0**-kind.lift, x.type), 1.0)
    return f.select(f.eq(f.abs(x), math.inf) & (z > 0.0), x, result)


# --- logarithms


def _decomposed(f: Function, x: Value) -> tuple[Value, Value]:
    """k and m with x = 2^k m and sqrt(1/2) <= m < sqrt(2), for normal positive numbers x."""
    kind = format_of(x)
    bits = f.bits(x)
    start = int(np.array(math.sqrt(0.5), np.float32 if kind is FLOAT else np.float64).view(f"i{x.type.bits // 8}"))
    exponent = f.op("ashr", bits - start, kind.mantissa)
    m = f.from_bits(bits - (exponent << kind.mantissa), x.type.scalar)
    # to a number by its bits: AVX2 and SSE have no conversion of 64-bit integers
    magic = f.const(kind.magic, x.type)
    return f.from_bits(f.bits(magic) + exponent, x.type.scalar) - magic, m


def _log_near(f: Function, fraction: Value, k: Value | float, correction: Value | None = None) -> Value:
    """k ln(2) + log(1 + fraction) + correction, sqrt(1/2) <= 1 + fraction <= sqrt(2)."""
    kind = format_of(fraction)
    half_square = fraction * fraction * 0.5
    if kind is FLOAT:
        cube = half_square * 2.0 * fraction
        small: Value = f.value(f.fma(k, kind.ln2_low, correction if correction is not None else 0.0), fraction.type)
        rest = half_square - f.fma(cube, polynomial(f, fraction, coefficients.LOG_FLOAT), small)
    else:
        s = fraction / (fraction + 2.0)
        z = s * s
        p = polynomial(f, z, coefficients.LOG_DOUBLE)
        small = f.value(f.fma(k, kind.ln2_low, correction if correction is not None else 0.0), fraction.type)
        # fdlibm's form: log(1 + f) = f - (f²/2 - s (f²/2 + z P(z)))
        rest = half_square - f.fma(s, f.fma(z, p, half_square), small)
    return f.fma(k, kind.ln2_high, fraction - rest)


def _normal(f: Function, x: Value) -> tuple[Value, Value]:
    """x scaled to a normal number if it is denormal, and the logarithm to base 2 that is to be added back."""
    kind = format_of(x)
    small = x < kind.tiny
    shift = kind.mantissa + 1
    return f.select(small, x * 2.0**shift, x), f.select(small, f.const(-float(shift), x.type), 0.0)


def _log_edges(f: Function, x: Value, result: Value) -> Value:
    """The result of a logarithm of x, with those of 0, negative numbers, infinity and NaN."""
    edge = f.select(f.eq(x, 0.0), f.const(-math.inf, x.type), math.nan)
    return f.select(f.eq(x, math.inf), x, f.select(x > 0.0, result, edge))


def log(f: Function, x: Value) -> Value:
    normal, shift = _normal(f, x)
    k, m = _decomposed(f, normal)
    return _log_edges(f, x, _log_near(f, m - 1.0, k + shift))


def log1p(f: Function, x: Value) -> Value:
    """log(1 + x), exact near 0."""
    total = x + 1.0
    k, m = _decomposed(f, total)
    # what was lost in 1 + x, relative to it; the sum's larger operand is 1 or x
    lost = f.select(x > 1.0, 1.0 - (total - x), x - (total - 1.0))
    near = f.abs(x) < 0.29
    k = f.select(near, f.const(0.0, x.type), k)
    fraction = f.select(near, x, m - 1.0)
    correction = f.select(near, f.const(0.0, x.type), lost / total)
    result = f.select(f.eq(x, 0.0), x, _log_near(f, fraction, k, correction))  # -0 stays
    return _log_edges(f, total, result)


def log1p_unit(f: Function, e: Value) -> Value:
    """log(1 + e) for 0 <= e <= 1."""
    large = e > 0.41421356
    fraction = f.select(large, (e - 1.0) * 0.5, e)  # exact
    k = f.select(large, f.const(1.0, e.type), 0.0)
    return _log_near(f, fraction, k)


def log_pair(f: Function, x: Value) -> Pair:
    """log(x) in twice the precision of float64, for positive finite float64; about 2^-68 off."""
    kind = format_of(x)
    normal, shift = _normal(f, x)
    k, m = _decomposed(f, normal)
    k = k + shift
    fraction = m - 1.0
    # s = f / (2 + f)
    d, d_low = quick_two_sum(2.0, fraction)
    s = fraction / d
    high, low = two_product(f, s, d)
    s_low = (((fraction - high) - low) - s * d_low) / d
    z = pair_times(f, (s, s_low), (s, s_low))
    tail = z[0] * polynomial(f, z[0], coefficients.LOG_PAIR)
    third, third_low = quick_two_sum(f.const(2 / 3, x.type), tail)
    series = pair_times(f, pair_times(f, z, (third, third_low + 3.700743415417188e-17)), (s, s_low))
    near = pair_plus((s * 2.0, s_low * 2.0), series)
    # the high part of ln(2) is exact in products with k
    whole, rest = quick_two_sum(k * kind.ln2_high, k * kind.ln2_low)
    sum_high, sum_low = two_sum(whole, near[0])
    return quick_two_sum(sum_high, sum_low + (rest + near[1]))


def _log_other_base(f: Function, x: Value, high: float, low: float) -> Value:
    """log(x) times a number known in twice the precision."""
    if x.type.bits == 32:
        return in_double(f, lambda f, wide: log(f, wide) * high, x)
    part, rest = log_pair(f, x)
    product, error = two_product(f, part, high)
    result = product + (error + f.fma(part, low, rest * high))
    return _log_edges(f, x, result)


def log2(f: Function, x: Value) -> Value:
    return _log_other_base(f, x, LOG2E, 2.0355273740931033e-17)


def log10(f: Function, x: Value) -> Value:
    return _log_other_base(f, x, 0.4342944819032518, 1.098319650216765e-17)


# --- error function and the normal distribution


def _tail_in_double(f: Function, a: Value, half_square: Value) -> Value:
    """Φ(-a) to the precision of float32, for float64 a >= 0; 0 beyond 37.

    Arguments:
        half_square: a² / 2.
    """
    t = 1.0 / (a + 4.0)
    mills = polynomial(f, f.fma(t, -8.0, 1.0), coefficients.NORMAL_TAIL_FLOAT) * t
    shifted = f.fma(half_square, -LOG2E, DOUBLE.magic)
    r = f.fma(shifted - DOUBLE.magic, -LN2, -half_square)
    e = f.fma(r * r, polynomial(f, r, coefficients.EXP_FLOAT_IN_DOUBLE), r)
    power = _power_of_two(f, a, f.bits(shifted) << DOUBLE.mantissa)
    result = f.fma(mills, e, mills) * power
    return f.select(a > 37.0, f.const(0.0, a.type), result)


def _tail(f: Function, a: Value, normal: bool, factor: Value | None = None) -> Value:
    """2^lift times Φ(-a) (normal) or erfc(a), for float64 a >= 0 that is not much larger than where these become 0.

    exp(-a²/2 + L) / (a + c) with a polynomial L in 1 / (a + c): Mills' ratio. The square and the reciprocal enter with
    their rounding errors, which would otherwise be amplified.

    Arguments:
        factor: of the result, multiplied in without a rounding of its own.
    """
    kind = DOUBLE
    scale, start, table = (-0.5, 4.0, coefficients.NORMAL_TAIL) if normal else (-1.0, 2.0, coefficients.ERFC_TAIL)
    d = a + start
    lost = a - (d - start)  # exact: start has few digits
    u = 1.0 / d
    error = f.fma(-u, lost, residual(f, d, u))
    share = u * (2 * start)  # exact
    t, t_low = two_sum(1.0, -share)
    t_low = f.fma(-share, error, t_low)
    logarithm = polynomial(f, t, table)
    slope = f.fma(f.fma(t, 3 * table[3], 2 * table[2]), t, table[1])
    high, low = square(f, a)
    n, exponent = _rounded(f, f.fma(high, scale, logarithm), LOG2E, kind.magic + kind.lift)
    # what is left of a² is exact, and the other corrections are small
    corrections = f.fma(slope, t_low, f.fma(n, -kind.ln2_low, low * scale))
    r = (f.fma(n, -kind.ln2_high, high * scale) + logarithm) + corrections
    p = _expm1_near(f, r)
    p = p + f.fma(error, p, error)
    first, lost = (u, f.const(0.0, a.type)) if factor is None else two_product(f, u, factor)
    return (first + f.fma(first, p, lost)) * _power_of_two(f, a, exponent)


def _erf_near(f: Function, x: Value) -> Value:
    """erf(x) for |x| <= 1."""
    return f.fma(x, polynomial(f, x * x, coefficients.ERF[x.type.name]), x)


def _erfc_float(f: Function, a: Value) -> Value:
    """erfc(a) of a float32 a >= 0, in float64."""
    wide = f.cast("fpext", a, F64)
    return _tail_in_double(f, wide * math.sqrt(2), wide * wide) * 2.0


def _erfc_double(f: Function, a: Value) -> Value:
    return _tail(f, f.min(27.5, a), normal=False) * 2.0**-DOUBLE.lift


def erf(f: Function, x: Value) -> Value:
    a = f.abs(x)
    short = format_of(x) is FLOAT
    far = f.cast("fptrunc", 1.0 - _erfc_float(f, a), F32) if short else 1.0 - _erfc_double(f, a)
    return f.select(a < 1.0, _erf_near(f, x), f.copysign(far, x))


def erfc(f: Function, x: Value) -> Value:
    """1 - erf(x), without loss in the positive tail."""
    if format_of(x) is FLOAT:
        tail = _erfc_float(f, f.abs(x))
        return f.cast("fptrunc", f.select(x < 0.0, 2.0 - tail, tail), F32)
    tail = _erfc_double(f, f.abs(x))
    return f.select(x < 0.5, 1.0 - f.copysign(f.select(x > -1.0, f.abs(_erf_near(f, x)), 1.0 - tail), x), tail)


def normal_times(f: Function, x: Value) -> Value:
    """x Φ(x), Φ the normal distribution; with all digits where Φ(x) alone would be denormal."""
    if format_of(x) is FLOAT:
        wide = f.cast("fpext", x, F64)
        tail = _tail_in_double(f, f.abs(wide), wide * wide * 0.5)
        return f.cast("fptrunc", wide * f.select(x < 0.0, tail, 1.0 - tail), F32)
    limit, down = 38.8, 2.0**-DOUBLE.lift
    a = f.min(limit, f.abs(x))
    tail = _tail(f, a, normal=True, factor=a) * down
    # 0 and not merely small: x · 0 is -0 for numbers and NaN for -inf, as in the product that this stands for
    far = f.select(x < 0.0, f.select(a >= limit, x * 0.0, -tail), x - tail)
    return f.select(a < 0.5, x * f.fma(x, normal_near(f, x), 0.5), far)


def normal_near(f: Function, x: Value) -> Value:
    """(Φ(x) - 1/2) / x for |x| <= 1."""
    table = coefficients.ERF[x.type.name]
    # erf(x / sqrt(2)) / (2 x)
    scaled = [(c + (1.0 if i == 0 else 0.0)) * 0.5**i / math.sqrt(8) for i, c in enumerate(table)]
    return polynomial(f, x * x, scaled)


def normal(f: Function, x: Value) -> Value:
    """Φ(x), the normal distribution."""
    if format_of(x) is FLOAT:
        wide = f.cast("fpext", x, F64)
        tail = _tail_in_double(f, f.abs(wide), wide * wide * 0.5)
        return f.cast("fptrunc", f.select(x < 0.0, tail, 1.0 - tail), F32)
    tail = _tail(f, f.min(38.8, f.abs(x)), normal=True) * 2.0**-DOUBLE.lift
    return f.select(x < 0.0, tail, 1.0 - tail)


def normal_density(f: Function, x: Value) -> Value:
    """exp(-x²/2) / sqrt(2π)."""
    kind = format_of(x)
    high, low = square(f, f.min(14.7 if kind is FLOAT else 39.0, f.abs(x)))
    return exp_lifted(f, high * -0.5, low * -0.5) * (1 / math.sqrt(2 * math.pi)) * 2.0**-kind.lift


# --- roots and powers


def sqrt(f: Function, x: Value) -> Value:
    return f.sqrt(x)


def rsqrt(f: Function, x: Value) -> Value:
    """1 / sqrt(x), of two exact instructions: not the processor's approximation."""
    return 1.0 / f.sqrt(x)


def reciprocal(f: Function, x: Value) -> Value:
    return 1.0 / x


_LARGE_EXPONENT = 2.0**64  # of more no fraction is left, and any base but ±1 over- or underflows


def power(f: Function, x: Value, exponent: float) -> Value:
    """x to a constant power, as C's pow: NaN for negative x unless the exponent is an integer."""
    if math.isnan(exponent):
        return f.const(math.nan, x.type)
    direct = {
        0.0: lambda: f.const(1.0, x.type),
        1.0: lambda: x,
        2.0: lambda: x * x,
        3.0: lambda: x * x * x,
        -1.0: lambda: 1.0 / x,
        0.5: lambda: _root(f, x),
        -0.5: lambda: 1.0 / _root(f, x),
    }
    if exponent in direct:
        return direct[exponent]()
    if x.type.bits == 32:
        if exponent.is_integer() and abs(exponent) <= 64:
            return in_double(f, lambda f, wide: _integer_power(wide, int(exponent)), x)
        return in_double(f, lambda f, wide: _general_power(f, wide, f.const(exponent, wide.type), short=True), x)
    return _general_power(f, x, f.const(exponent, x.type), short=False)


def _root(f: Function, x: Value) -> Value:
    """The square root as a power: +0 of -0 and inf of -inf."""
    return f.select(f.eq(x, -math.inf), -x, f.sqrt(x + 0.0))


def _integer_power(x: Value, n: int) -> Value:
    """By squaring; for float64 that becomes float32, where the roundings do not count."""
    result: Value | None = None
    square, rest = x, abs(n)
    while rest:
        if rest & 1:
            result = square if result is None else result * square
        rest >>= 1
        if rest:
            square = square * square
    if result is None:
        raise ValueError("the power 0 has no factors")
    return 1.0 / result if n < 0 else result


def power_of(f: Function, x: Value, y: Value) -> Value:
    """x to the power y, as C's pow: NaN for negative x unless y is an integer; 1 for y = 0 and for x = 1."""
    if x.type.bits == 32:
        return in_double(f, lambda f, x, y: _general_power(f, x, y, short=True), x, y)
    return _general_power(f, x, y, short=False)


def _general_power(f: Function, x: Value, y: Value, short: bool) -> Value:
    """exp(y · log|x|) in float64, the logarithm and the product in twice its precision unless `short`."""
    a = f.abs(x)
    limited = f.min(_LARGE_EXPONENT, f.max(-_LARGE_EXPONENT, y))
    if short:
        z, low = log(f, a) * limited, None
    else:
        high, rest = log_pair(f, a)
        z, error = two_product(f, high, limited)
        low = f.select(f.abs(z) < -DOUBLE.least, f.fma(rest, limited, error), f.const(0.0, x.type))
    result = _exp_limited(f, f.min(DOUBLE.most, f.max(DOUBLE.least, z)), low)
    # the parity of y: half of it is no integer
    floor = rounded(f, y, "floor")
    half = y * 0.5
    odd = f.eq(floor, y) & f.ne(rounded(f, half, "floor"), half)
    infinite, nothing, one = (f.const(c, x.type) for c in (math.inf, 0.0, 1.0))
    growing = y > 0.0
    edge = f.select(f.compare("eq", a, 0.0), f.select(growing, nothing, infinite), f.select(growing, infinite, nothing))
    result = f.select(f.eq(a, 0.0) | f.eq(a, math.inf), edge, result)
    result = f.select(odd, f.copysign(result, x), result)
    result = f.select((x < 0.0) & f.ne(floor, y) & (a < math.inf), f.const(math.nan, x.type), result)
    result = f.select(f.is_nan(x) | f.is_nan(y), x + y, result)
    unity = f.eq(a, 1.0) & (f.eq(x, 1.0) | f.eq(f.abs(y), math.inf))
    return f.select(f.eq(y, 0.0) | unity, one, result)


# --- rounding, signs, extremes


def sign(f: Function, x: Value) -> Value:
    """-1, 0 or 1; NaN and zeros are returned as they are."""
    return f.select(f.ne(f.abs(x), 0.0) & f.eq(x, x), f.copysign(f.const(1.0, x.type), x), x)


def rounded(f: Function, x: Value, name: str) -> Value:
    """floor, ceil, trunc or roundeven (halves to even), by LLVM's name; where SSE has no instruction, by a sum."""
    if f.target.name != "sse2" or x.type.lanes == 1:
        return f.intrinsic(name, x)
    big = 2.0 ** mantissa_bits(x)  # larger numbers are integers
    a = f.abs(x)
    near = (a + big) - big
    if name == "trunc":
        near = f.select(near > a, near - 1.0, near)
    near = f.copysign(near, x)
    if name == "floor":
        near = f.select(near > x, near - 1.0, near)
    if name == "ceil":
        near = f.select(near < x, near + 1.0, near)
    return f.select(a < big, f.copysign(near, x) if name != "floor" else near, x)
