"""Hyperbolic functions and their inverses; as in `vectormath`. float32 is computed in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

from .llvm import Function, Value
from .logarithms import log1p
from .vectormath import exp_scaled, in_double, polynomial

_Unary = Callable[[Function, Value], Value]
LARGE = 2.0**60  # from here on sqrt(x² ± 1) is x, and log(1 + x) is log(x)


def _doubled(function: _Unary) -> _Unary:
    """A function of float64 for float32 as well."""
    return lambda f, x: in_double(f, function, x) if x.type.bits == 32 else function(f, x)


@_doubled
def sinh(f: Function, x: Value) -> Value:
    a = f.abs(x)
    z = a * a
    near = f.fma(x * z, polynomial(f, z, [1 / math.factorial(2 * k + 3) for k in range(9)]), x)
    half = exp_scaled(f, a, 0.5)
    return f.select(a < 1.0, near, f.copysign(half - 0.25 / half, x))


@_doubled
def cosh(f: Function, x: Value) -> Value:
    half = exp_scaled(f, f.abs(x), 0.5)
    return half + 0.25 / half


@_doubled
def asinh(f: Function, x: Value) -> Value:
    """log(a + sqrt(a² + 1)) = log1p(a + a² / (1 + sqrt(a² + 1))); log(2 a) for large numbers."""
    a = f.abs(x)
    large = a > LARGE
    square = a * a
    argument = f.select(large, a, a + square / (f.sqrt(square + 1.0) + 1.0))
    return f.copysign(log1p(f, argument) + f.select(large, f.const(math.log(2), x.type), 0.0), x)


@_doubled
def acosh(f: Function, x: Value) -> Value:
    """With t = x - 1: log1p(t + sqrt(t (t + 2))); log(2 x) for large numbers."""
    large = x > LARGE
    t = x - 1.0
    argument = f.select(large, x, t + f.sqrt(t * (t + 2.0)))
    result = log1p(f, argument) + f.select(large, f.const(math.log(2), x.type), 0.0)
    return f.select(x < 1.0, f.const(math.nan, x.type), result)


@_doubled
def atanh(f: Function, x: Value) -> Value:
    """log1p(2 a / (1 - a)) / 2."""
    a = f.abs(x)
    twice = a + a
    argument = f.select(a < 0.5, f.fma(twice, a / (1.0 - a), twice), twice / (1.0 - a))
    return f.copysign(log1p(f, argument) * 0.5, x)
