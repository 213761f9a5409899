"""Sums and products with their rounding errors: numbers as unevaluated pairs high + low, |low| <= ulp(high) / 2.

What differs by target: with fused multiply-add the error of a product is one instruction; without, the factors are
split in halves (Dekker, Veltkamp), 16 more operations. Both are exact unless something over- or underflows.
"""

from __future__ import annotations

from .llvm import Function, Operand, Value

Pair = tuple[Value, Value]


def mantissa_bits(x: Value) -> int:
    """The stored bits of a type's significand: 23 or 52."""
    return 23 if x.type.bits == 32 else 52


def two_sum(a: Operand, b: Operand) -> Pair:
    """a + b as a pair, for any a and b."""
    high = _plus(a, b)
    other = high - a
    return high, (a - (high - other)) + (b - other)


def quick_two_sum(a: Operand, b: Operand) -> Pair:
    """a + b as a pair, for |a| >= |b| (or a 0)."""
    high = _plus(a, b)
    return high, b - (high - a)


def _plus(a: Operand, b: Operand) -> Value:
    return a + b if isinstance(a, Value) else b + a  # type: ignore[return-value]


def two_product(f: Function, a: Value, b: Operand) -> Pair:
    """a · b as a pair."""
    high = a * b
    if f.target.fma:
        return high, f.fma(a, b, -high)
    a_high, a_low = split(f, a)
    b_high, b_low = split(f, f.value(b, a.type))
    return high, ((a_high * b_high - high) + a_high * b_low + a_low * b_high) + a_low * b_low


def split(f: Function, a: Value) -> Pair:
    """a number as the sum of two with half of its digits each, whose products are exact."""
    keep = -1 << ((mantissa_bits(a) + 2) // 2)
    high = f.from_bits(f.bits(a) & keep, a.type.scalar)
    return high, a - high


def square(f: Function, a: Value) -> Pair:
    """a² as a pair; without fused multiply-add the low part is up to 2^-11 (2^-25) of the high one."""
    if f.target.fma:
        high = a * a
        return high, f.fma(a, a, -high)
    high, low = split(f, a)
    return high * high, low * (a + high)


def residual(f: Function, a: Value, b: Value) -> Value:
    """1 - a · b, for b near 1 / a: the relative error of the quotient b."""
    if f.target.fma:
        return f.fma(-a, b, 1.0)
    high, low = two_product(f, a, b)
    return (1.0 - high) - low


def multiply_add(f: Function, a: Value, b: Operand, c: Operand) -> Value:
    """a · b + c without loss where the sum cancels: one rounding, or nearly so."""
    if f.target.fma:
        return f.fma(a, b, c)
    high, low = two_product(f, a, b)
    total, error = two_sum(high, c)
    # an overflowing product has no error that is a number
    exact = total + (low + error)
    return f.select(f.abs(total) < float("inf"), exact, high + c)


def pair_times(f: Function, a: Pair, b: Pair) -> Pair:
    """The product of two pairs, a few units of the squared precision off."""
    high, low = two_product(f, a[0], b[0])
    return quick_two_sum(high, low + f.fma(a[0], b[1], a[1] * b[0]))


def pair_plus(a: Pair, b: Pair) -> Pair:
    """The sum of two pairs, |a| >= |b|."""
    high, low = quick_two_sum(a[0], b[0])
    return quick_two_sum(high, low + (a[1] + b[1]))
