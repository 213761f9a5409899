"""Logarithms, roots and powers; as in `vectormath`."""

from __future__ import annotations

import math

import numpy as np

from . import coefficients
from .llvm import Function, Value
from .pairs import Pair, pair_plus, pair_times, quick_two_sum, two_product, two_sum
from .vectormath import DOUBLE, FLOAT, LOG2E, exp_limited, format_of, in_double, polynomial, rounded

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
    result = exp_limited(f, f.min(DOUBLE.most, f.max(DOUBLE.least, z)), low)
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
