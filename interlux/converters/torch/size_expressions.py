"""Expressions of sizes (sympy, as torch writes them) computed by primitives, exactly as Python computes them.

Every value is a vector of one element: int64, float64 (Python's floats) or bool.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import sympy

from ...ir.errors import UnsupportedError
from ..builder import Value

if TYPE_CHECKING:
    from .builder import TorchBuilder

LARGEST_POWER = 64


def lower_expression(op: TorchBuilder, expr: sympy.Basic, argument: Callable[[sympy.Basic], Value]) -> Value:
    """An expression that is no symbol.

    Arguments:
        argument: gives the value of an expression inside it.

    Raises UnsupportedError for a function that has no lowering.
    """
    if isinstance(expr, sympy.Integer):
        return op.ints(int(expr))
    if expr in (sympy.true, sympy.false):
        return op.const(np.array([bool(expr)]))
    if isinstance(expr, sympy.Float):
        return op.const(np.array([float(expr)], np.float64))
    kind = expr.func.__name__
    if kind == "Pow":
        return _power(op, expr, argument)
    if kind == "Piecewise":
        return _piecewise(op, expr, argument)
    if kind == "Mul" and isinstance(expr.args[0], sympy.Rational) and not expr.args[0].is_Integer:
        fraction = expr.args[0]
        if expr.is_integer:  # so that the division leaves nothing
            rest = argument(sympy.Mul(fraction.p, *expr.args[1:]))
            return op.Div(rest, op.ints(int(fraction.q)))
    if kind == "FloorDiv" and all(a.is_nonnegative for a in expr.args):  # where truncation is the floor
        return op.Div(*(argument(a) for a in expr.args))
    if kind not in _FUNCTIONS:
        raise UnsupportedError(f"the size expression {expr} ({kind}){op.where()}")
    return _FUNCTIONS[kind](op, *(argument(a) for a in expr.args))


def _alike(op: TorchBuilder, values: tuple[Value, ...]) -> tuple[Value, ...]:
    """Integers beside floats become floats."""
    dtypes = {v.dtype for v in values}
    if len(dtypes) == 1:
        return values
    widest = np.dtype(np.float64 if np.dtype(np.float64) in dtypes else np.int64)
    return tuple(op.cast(v, widest) for v in values)


Function = Callable[..., Value]


def _folded(primitive: str) -> Function:
    def function(op: TorchBuilder, *values: Value) -> Value:
        return reduce(lambda a, b: op.primitive(primitive, (a, b), {}), _alike(op, values))

    return function


def _compared(primitive: str) -> Function:
    def function(op: TorchBuilder, a: Value, b: Value) -> Value:
        return op.primitive(primitive, _alike(op, (a, b)), {})

    return function


def _floor_div(op: TorchBuilder, a: Value, b: Value) -> Value:
    """ONNX truncates; without the rest, which has the divisor's sign, the division leaves nothing."""
    return op.Div(op.Sub(a, op.Mod(a, b)), b)


def _ceil_div(op: TorchBuilder, a: Value, b: Value) -> Value:
    return op.Neg(_floor_div(op, op.Neg(a), b))


def _true_div(op: TorchBuilder, a: Value, b: Value) -> Value:
    return op.Div(op.cast(a, np.float64), op.cast(b, np.float64))


def _float_power(op: TorchBuilder, base: Value, exponent: Value) -> Value:
    base, exponent = op.cast(base, np.float64), op.cast(exponent, np.float64)
    if exponent.array is not None and float(exponent.array[0]) == 0.5:  # the square root is rounded exactly
        return op.Sqrt(base)
    return op.Pow(base, exponent)


def _power(op: TorchBuilder, expr: sympy.Basic, argument: Callable[[sympy.Basic], Value]) -> Value:
    base, exponent = expr.args
    if not (isinstance(exponent, sympy.Integer) and 0 < int(exponent) <= LARGEST_POWER):
        raise UnsupportedError(f"the size expression {expr} (a power){op.where()}")
    factor = argument(base)
    return reduce(lambda a, b: op.Mul(a, b), [factor] * int(exponent))


def _natural_power(op: TorchBuilder, base: Value, exponent: Value) -> Value:
    return op.Pow(base, exponent)


def _piecewise(op: TorchBuilder, expr: sympy.Basic, argument: Callable[[sympy.Basic], Value]) -> Value:
    *first, last = expr.args
    value = argument(last.args[0])
    if last.args[1] is not sympy.true:
        raise UnsupportedError(f"the size expression {expr} (not defined everywhere){op.where()}")
    for branch in reversed(first):
        value = _choice(op, argument(branch.args[1]), argument(branch.args[0]), value)
    return value


def _choice(op: TorchBuilder, condition: Value, a: Value, b: Value) -> Value:
    return op.Where(condition, *_alike(op, (a, b)))


def _whole(primitive: str | None) -> Function:
    """A float rounded to an integer; None truncates, as Cast does."""

    def function(op: TorchBuilder, x: Value) -> Value:
        if x.dtype == np.int64:
            return x
        return op.cast(x if primitive is None else op.primitive(primitive, (x,), {}), np.int64)

    return function


def _unary(primitive: str) -> Function:
    def function(op: TorchBuilder, x: Value) -> Value:
        return op.primitive(primitive, (op.cast(x, np.float64),), {})

    return function


def _log2(op: TorchBuilder, x: Value) -> Value:
    """Exact for powers of 2, where a rounding error would reach the next integer."""
    x = op.cast(x, np.float64)
    found = op.Div(op.Log(x), op.const(np.array([np.log(2.0)])))
    whole = op.Round(found)
    return op.Where(op.Equal(op.Pow(op.const(np.array([2.0])), whole), x), whole, found)


_FUNCTIONS: dict[str, Function] = {
    "Add": _folded("Add"),
    "Mul": _folded("Mul"),
    "Max": _folded("Max"),
    "Min": _folded("Min"),
    "And": _folded("And"),
    "Or": _folded("Or"),
    "Xor": _folded("Xor"),
    "Not": lambda op, a: op.Not(a),
    "Abs": lambda op, a: op.Abs(a),
    "Identity": lambda op, a: a,
    "FloorDiv": _floor_div,
    "CleanDiv": _floor_div,
    "CeilDiv": _ceil_div,
    "Mod": lambda op, a, b: op.Mod(a, b),
    "PythonMod": lambda op, a, b: op.Mod(a, b),
    "ModularIndexing": lambda op, a, b, c: op.Mod(_floor_div(op, a, b), c),
    "IntTrueDiv": _true_div,
    "FloatTrueDiv": _true_div,
    "FloatPow": _float_power,
    "PowByNatural": _natural_power,
    "ToFloat": lambda op, a: op.cast(a, np.float64),
    "TruncToFloat": lambda op, a: op.cast(op.cast(a, np.int64), np.float64),
    "TruncToInt": _whole(None),
    "FloorToInt": _whole("Floor"),
    "CeilToInt": _whole("Ceil"),
    "RoundToInt": _whole("Round"),
    "floor": _whole("Floor"),
    "ceiling": _whole("Ceil"),
    "Where": _choice,
    "Equality": _compared("Equal"),
    "Unequality": lambda op, a, b: op.Not(_compared("Equal")(op, a, b)),
    "StrictLessThan": _compared("Less"),
    "LessThan": _compared("LessOrEqual"),
    "StrictGreaterThan": _compared("Greater"),
    "GreaterThan": _compared("GreaterOrEqual"),
    "BitwiseFn_bitwise_and": lambda op, a, b: op.BitwiseAnd(a, b),
    "BitwiseFn_bitwise_or": lambda op, a, b: op.BitwiseOr(a, b),
    "BitwiseFn_bitwise_xor": lambda op, a, b: op.BitwiseXor(a, b),
    "LShift": lambda op, a, b: op.Mul(a, op.Pow(op.ints(2), b)),
    "RShift": lambda op, a, b: _floor_div(op, a, op.Pow(op.ints(2), b)),
    "OpaqueUnaryFn_log2": _log2,
    **{
        f"OpaqueUnaryFn_{name}": _unary(name.capitalize())
        for name in ("sqrt", "exp", "log", "sin", "cos", "tan", "sinh", "cosh", "tanh", "asin", "acos", "atan")
    },
}
