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

from . import coefficients
from .llvm import F32, F64, Function, Operand, Value
from .pairs import (
    Pair,
    mantissa_bits,
    quick_two_sum,
    two_product,
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


def scaled_integer(f: Function, x: Value, scale: float, magic: Operand) -> tuple[Value, Value]:
    """x · scale rounded to an integer, as a number and (plus the offset that is in magic) shifted to the exponent."""
    shifted = f.fma(x, scale, magic)
    return shifted - magic, f.bits(shifted) << format_of(x).mantissa


def power_of_two(f: Function, x: Value, exponent: Value) -> Value:
    """2 to the power of an exponent that is in its place, as a number of the type of x.

    To be multiplied with, not added to the bits of a number: that number may be NaN.
    """
    kind = format_of(x)
    return f.from_bits(exponent + (kind.bias << kind.mantissa), x.type.scalar)


def _rest(f: Function, x: Value, n: Value) -> Value:
    """x - n ln(2)."""
    kind = format_of(x)
    return f.fma(n, -kind.ln2_low, f.fma(n, -kind.ln2_high, x))


def expm1_near(f: Function, r: Value) -> Value:
    """exp(r) - 1 for |r| <= ln(2) / 2."""
    table, square = _exp_table(f, r), r * r
    if len(table) != 5:
        return f.fma(square, polynomial(f, r, table), r)
    # by halves: as many instructions as Horner's rule, which wait less for each other
    low, high = polynomial(f, r, table[:2]), polynomial(f, r, table[2:4])
    return f.fma(square, f.fma(f.fma(square, table[4], high), square, low), r)


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
    n, exponent = scaled_integer(f, x, LOG2E, kind.magic + kind.lift)
    r = _rest(f, x, n)
    if low is not None:
        r = r + low
    return power_of_two(f, x, exponent), expm1_near(f, r)


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
    return exp_limited(f, f.min(kind.most, f.max(kind.least, x)))


def exp_limited(f: Function, x: Value, low: Value | None = None) -> Value:
    """exp(x + low), x within the limits of exp."""
    kind = format_of(x)
    # 2^n does not exist for all n that occur: below 0 a multiple of the result is scaled down, above a fraction up
    negative = x < 0.0
    magic = f.select(negative, f.const(kind.magic + kind.lift, x.type), kind.magic - kind.lift)
    back = f.select(negative, f.const(2.0**-kind.lift, x.type), 2.0**kind.lift)
    n, exponent = scaled_integer(f, x, LOG2E, magic)
    r = _rest(f, x, n)
    if low is not None:
        r = r + low
    power = power_of_two(f, x, exponent)
    return f.fma(power, expm1_near(f, r), power) * back


def exp_scaled(f: Function, x: Value, factor: float) -> Value:
    """factor · exp(x) for x >= 0, without overflow before the product does; factor is a power of two below 1."""
    kind = format_of(x)
    x = f.min(kind.most + 1.0, x)
    n, exponent = scaled_integer(f, x, LOG2E, kind.magic - kind.lift)
    power = power_of_two(f, x, exponent)
    return f.fma(power, expm1_near(f, _rest(f, x, n)), power) * (factor * 2.0**kind.lift)


def exp2(f: Function, x: Value) -> Value:
    """2^x."""
    kind = format_of(x)
    x = f.min(kind.most / LN2, f.max(kind.least / LN2, x))
    negative = x < 0.0
    magic = f.select(negative, f.const(kind.magic + kind.lift, x.type), kind.magic - kind.lift)
    back = f.select(negative, f.const(2.0**-kind.lift, x.type), 2.0**kind.lift)
    shifted = x + magic
    rest = x - (shifted - magic)  # exact
    power = power_of_two(f, x, f.bits(shifted) << kind.mantissa)
    return f.fma(power, expm1_near(f, rest * LN2), power) * back


def expm1_nonpositive(f: Function, x: Value, low: Value | None = None, factor: float = 1.0) -> Value:
    """factor · (exp(x + low) - 1) for x <= 0; low is a correction of x that is small against 1."""
    kind = format_of(x)
    x = f.max(-2 * kind.one, x)
    n, exponent = scaled_integer(f, x, LOG2E, kind.magic)
    r = _rest(f, x, n)
    if low is not None:
        r = r + low
    power = power_of_two(f, x, exponent)
    less = power - 1.0
    if factor != 1:
        power, less = power * factor, less * factor  # the first is exact
    return f.fma(power, expm1_near(f, r), less)


def expm1(f: Function, x: Value) -> Value:
    """exp(x) - 1, exact near 0."""
    kind = format_of(x)
    x = f.min(kind.most, f.max(-2 * kind.one, x))
    # large results are computed at half their size: 2^n of the largest ones does not exist
    large = x > 1.0
    magic = f.select(large, f.const(kind.magic - 1, x.type), kind.magic)
    n, exponent = scaled_integer(f, x, LOG2E, magic)
    power = power_of_two(f, x, exponent)
    half = f.select(large, f.const(0.5, x.type), 1.0)
    result = f.fma(power, expm1_near(f, _rest(f, x, n)), power - half) * f.select(large, f.const(2.0, x.type), 1.0)
    return f.copysign(result, x)  # of -0


# --- hyperbolic tangent, logistic function


def tanh(f: Function, x: Value) -> Value:
    """With h = (exp(2|x|) - 1) / 2: h / (h + 1). One formula for all x: h is exact near 0."""
    kind = format_of(x)
    a = f.min(kind.one, f.abs(x))
    twice = a + a
    # with what has to be added to an exponent, so that the shifted integer is the bits of 2^n / 2
    magic = kind.magic + kind.bias - 1
    shifted = f.fma(a, 2 * LOG2E, magic)
    n, half = shifted - magic, f.from_bits(f.bits(shifted) << kind.mantissa, x.type.scalar)
    if f.target.fma and x.type.bits == 32:
        # n <= 29 here and the error of ln(2) in float32 is 2^-29: too small to be seen
        r = f.fma(n, -LN2, twice)
    else:
        r = f.fma(n, -kind.ln2_low, f.fma(n, -kind.ln2_high, twice))
    h = f.fma(half, expm1_near(f, r), half - 0.5)
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
            # what the sum lost, times h / d, which is 1/4 where it matters
            return h, ((d - 1.0) - e) * 0.25
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


# --- rounding, signs, extremes


def sign(f: Function, x: Value) -> Value:
    """-1, 0 or 1; NaN and zeros are returned as they are."""
    return f.select(f.ne(f.abs(x), 0.0) & f.eq(x, x), f.copysign(f.const(1.0, x.type), x), x)


def rounded(f: Function, x: Value, name: str) -> Value:
    """floor, ceil, trunc or roundeven (halves to even), by LLVM's name; by a sum where there may be no instruction."""
    if f.target.name not in ("sse2", "scalar"):
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
