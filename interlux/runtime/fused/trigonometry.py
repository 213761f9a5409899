"""Sine, cosine and arc tangent; as in `vectormath`, but that large angles take a branch of their own."""

from __future__ import annotations

import math

from . import coefficients
from .llvm import F64, I1, Function, Value
from .pairs import Pair, quick_two_sum, square, two_product, two_sum
from .turns import large_turns
from .vectormath import FLOAT, format_of, in_double, polynomial

ATAN_LIMIT = math.tan(math.pi / 8)


def atan(f: Function, x: Value) -> Value:
    """The arc tangent, of a number reduced by atan(a) = atan((a - 1) / (a + 1)) + π/4 = atan(-1 / a) + π/2."""
    if format_of(x) is FLOAT:
        return in_double(f, lambda f, wide: _atan(f, wide, short=True), x)
    return _atan(f, x, short=False)


def _atan(f: Function, x: Value, short: bool, more: Value | None = None) -> Value:
    """The arc tangent of a float64.

    Arguments:
        short: to the precision of float32.
        more: a small number that is to be added to the result.
    """
    a = f.abs(x)
    far, near = a > 1 / ATAN_LIMIT, a <= ATAN_LIMIT
    zero, one = f.const(0.0, x.type), f.const(1.0, x.type)
    numerator = f.select(near, a, f.select(far, -one, a - 1.0))
    denominator = f.select(near, one, f.select(far, a, a + 1.0))
    quotient = numerator / denominator
    z = quotient * quotient
    series = quotient * z * polynomial(f, z, coefficients.ATAN["float" if short else "double"])
    high = f.select(near, zero, f.select(far, f.const(math.pi / 2, x.type), math.pi / 4))
    if short:
        return f.copysign(high + (series + quotient), x)
    # what π/2 and the quotient lack
    low = f.select(near, zero, f.select(far, f.const(6.123233995736766e-17, x.type), 3.061616997868383e-17))
    outside = near | far
    lost_n = f.select(outside, zero, a - (numerator + 1.0))
    lost_d = f.select(outside, zero, f.select(a > 1.0, 1.0 - (denominator - a), a - (denominator - 1.0)))
    product, error = two_product(f, quotient, denominator)
    rest = (((numerator - product) - error) + f.fma(-quotient, lost_d, lost_n)) / denominator
    if more is not None:
        rest = rest + f.select(x < 0.0, -more, more)
    rest = f.select(a < math.inf, rest, zero)
    total, lost = quick_two_sum(high, quotient)
    direct = quotient + (series + rest)
    return f.copysign(f.select(near, direct, total + (lost + (series + (rest + low)))), x)


def asin(f: Function, x: Value) -> Value:
    """atan(x / sqrt(1 - x²))."""
    if format_of(x) is FLOAT:
        return in_double(f, asin, x)
    root, low = _cathetus(f, x)
    quotient = x / root
    high, error = two_product(f, quotient, root)
    return _atan(f, quotient, short=False, more=(((x - high) - error) - quotient * low) * root)


def acos(f: Function, x: Value) -> Value:
    """atan(sqrt(1 - x²) / x), and π more for negative numbers."""
    if format_of(x) is FLOAT:
        return in_double(f, acos, x)
    root, low = _cathetus(f, x)
    quotient = root / x
    high, error = two_product(f, quotient, x)
    negative = f.copysign(f.const(1.0, x.type), x) < 0.0
    offset = f.select(negative, f.const(1.2246467991473532e-16, x.type), 0.0)
    angle = _atan(f, quotient, short=False, more=f.fma((root - high) - error + low, x, offset))
    return angle + f.select(negative, f.const(math.pi, x.type), 0.0)


def _cathetus(f: Function, x: Value) -> Pair:
    """sqrt(1 - x²) as a pair."""
    high, low = square(f, x)
    rest, lost = two_sum(1.0, -high)
    root = f.sqrt(rest + (lost - low))
    product, error = two_product(f, root, root)
    low = (((rest - product) - error) + (lost - low)) / (root * 2.0)
    return root, f.select(root > 0.0, low, f.const(0.0, x.type))


# π/2 in parts of 33 bits, whose products with numbers below 2^20 are exact, and the rest
PARTS = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487111665e-21, 8.4784276603689e-32)
LARGE = 2.0**20  # beyond, the quotient by π/2 has too many digits for the parts


def sin(f: Function, x: Value) -> Value:
    return f.select(f.eq(x, 0.0), x, _wave(f, x, 0))  # -0 stays


def cos(f: Function, x: Value) -> Value:
    return _wave(f, x, 1)


def tan(f: Function, x: Value) -> Value:
    if format_of(x) is FLOAT:
        return in_double(f, tan, x)
    high, low, quadrant = reduced(f, x)
    quotient = _of_reduced(f, high, low, quadrant) / _of_reduced(f, high, low, quadrant + 1)
    return f.select(f.eq(x, 0.0), x, quotient)  # -0 stays


def _wave(f: Function, x: Value, quarters: int) -> Value:
    """sin(x + quarters · π/2)."""
    if format_of(x) is FLOAT:
        wide = f.cast("fpext", x, F64)
        high, _, quadrant = reduced(f, wide)
        return f.cast("fptrunc", _of_reduced(f, high, None, quadrant + quarters), x.type.scalar)
    high, low, quadrant = reduced(f, x)
    return _of_reduced(f, high, low, quadrant + quarters)


def _of_reduced(f: Function, r: Value, low: Value | None, quadrant: Value) -> Value:
    """sin(r + low + quadrant · π/2) for |r| <= π/4; without low, to the precision of float32."""
    z = r * r
    kind = "float" if low is None else "double"
    sine = r * z * polynomial(f, z, coefficients.SIN[kind])
    if low is not None:
        sine = f.fma(low, f.fma(z, -0.5, 1.0), sine)
    sine = r + sine
    half = z * 0.5
    whole = 1.0 - half
    rest = z * z * polynomial(f, z, coefficients.COS[kind])
    if low is not None:
        rest = ((1.0 - whole) - half) + (rest - r * low)
    cosine = whole + rest
    odd = f.ne(quadrant & 1, 0)
    result = f.select(odd, cosine, sine)
    return f.from_bits(f.bits(result) ^ ((quadrant & 2) << 62), r.type.scalar)


def reduced(f: Function, x: Value) -> tuple[Value, Value, Value]:
    """r, low and an integer q (modulo 4 it counts) with x = r + low + q π/2, for float64."""
    kind = format_of(x)
    shifted = f.fma(x, 2 / math.pi, kind.magic)
    n = shifted - kind.magic
    first = x - n * PARTS[0]  # exact, as are both products
    product = n * PARTS[1]
    high = first - product
    low = ((first - high) - product) - n * PARTS[2] - n * PARTS[3]
    r = high + low
    low = (high - r) + low
    quadrant = f.bits(shifted)
    # NaN for infinities, as x - x is
    a = f.abs(x)
    large = a >= LARGE
    results = f.variable(r), f.variable(low), f.variable(quadrant)
    with f.when(_any(f, large)):
        parts = [large_turns(f, f.extract(x, i)) for i in range(x.type.lanes)]
        for variable, exact in zip(results, zip(*parts, strict=True), strict=True):
            variable.set(f.select(large, f.join(list(exact)), variable.get()))
    nothing = x - x
    return results[0].get() + nothing, results[1].get(), results[2].get()


def _any(f: Function, condition: Value) -> Value:
    """Whether a condition holds in any lane."""
    if condition.type.lanes == 1:
        return condition
    return f.call(f"llvm.vector.reduce.or.v{condition.type.lanes}i1", I1, condition)
