"""The error function and the normal distribution; as in `vectormath`."""

from __future__ import annotations

import math

from . import coefficients
from .llvm import F32, F64, Function, Value
from .pairs import residual, square, two_product, two_sum
from .vectormath import (
    DOUBLE,
    FLOAT,
    LN2,
    LOG2E,
    exp_lifted,
    expm1_near,
    format_of,
    polynomial,
    power_of_two,
    scaled_integer,
)


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
    power = power_of_two(f, a, f.bits(shifted) << DOUBLE.mantissa)
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
    n, exponent = scaled_integer(f, f.fma(high, scale, logarithm), LOG2E, kind.magic + kind.lift)
    # what is left of a² is exact, and the other corrections are small
    corrections = f.fma(slope, t_low, f.fma(n, -kind.ln2_low, low * scale))
    r = (f.fma(n, -kind.ln2_high, high * scale) + logarithm) + corrections
    p = expm1_near(f, r)
    p = p + f.fma(error, p, error)
    first, lost = (u, f.const(0.0, a.type)) if factor is None else two_product(f, u, factor)
    return (first + f.fma(first, p, lost)) * power_of_two(f, a, exponent)


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
