"""What torch.export assumed of sizes while it traced."""

from __future__ import annotations

import ast
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ...ir.conditions import Condition, Tree
from ...ir.errors import UnsupportedError
from .places import TORCH, caller

# torch's classes of sympy expressions
_FUNCTIONS = {
    "Add": "add",
    "Mul": "mul",
    "Pow": "pow",
    "PowByNatural": "pow",
    "FloatPow": "pow",
    "FloorDiv": "floordiv",
    "CleanDiv": "floordiv",
    "IntTrueDiv": "div",
    "FloatTrueDiv": "div",
    "Mod": "mod",
    "PythonMod": "mod",
    "ToFloat": "float",
    "TruncToInt": "trunc",
    "FloorToInt": "floor",
    "CeilToInt": "ceil",
    "RoundToInt": "round",
    "Abs": "abs",
    "Min": "min",
    "Max": "max",
    "Equality": "eq",
    "Unequality": "ne",
    "StrictLessThan": "lt",
    "LessThan": "le",
    "StrictGreaterThan": "gt",
    "GreaterThan": "ge",
    "And": "and",
    "Or": "or",
    "Not": "not",
    "Xor": "xor",
}
# of torch, between code and the question
_SYMBOLIC = ("symbolic_shapes.py", "sym_node.py", "recording.py", "__init__.py")


def conditions(
    program: torch.export.ExportedProgram, names: Mapping[str, str], not_one: Mapping[str, str]
) -> tuple[Condition, ...]:
    """The conditions on the sizes of dynamic dimensions under which a program was traced.

    Arguments:
        names: of symbols, as the signature has them.
        not_one: symbols of sizes that must not be 1, with the place that needs it.

    Raises UnsupportedError for a condition that cannot be checked later.
    """
    found: dict[str, Condition] = {}
    for symbol, where in not_one.items():
        name = names.get(symbol, symbol)
        found[f"{name} != 1"] = Condition(f"{name} != 1 ({where})", ("ne", name, 1))
    known = {symbol for node in program.graph.find_nodes(op="placeholder") for symbol in _symbols(node)}
    for node in program.graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        environment = getattr(mode, "shape_env", None)
        if environment is None:
            continue
        for guard in environment.guards:
            if guard.expr.free_symbols <= known and guard.expr not in (sympy.true, sympy.false):
                text = _text(guard.expr, names)
                found.setdefault(text, Condition(text, _tree(guard.expr, names)))
        break
    return tuple(found.values())


def _symbols(node: torch.fx.Node) -> Iterator[sympy.Symbol]:
    val = node.meta.get("val")
    for size in val.shape if isinstance(val, torch.Tensor) else ():
        if isinstance(size, torch.SymInt):
            yield from size.node.expr.free_symbols


def _text(expr: sympy.Basic, names: Mapping[str, str]) -> str:
    return str(expr.xreplace({s: sympy.Symbol(names.get(str(s), str(s)), integer=True) for s in expr.free_symbols}))


def _tree(expr: sympy.Basic, names: Mapping[str, str]) -> Tree:
    if isinstance(expr, sympy.Symbol):
        return names.get(str(expr), str(expr))
    if isinstance(expr, sympy.Integer):
        return int(expr)
    if isinstance(expr, sympy.Rational):
        return ("fraction", int(expr.p), int(expr.q))
    if isinstance(expr, sympy.Float):
        return float(expr)
    if expr in (sympy.true, sympy.false):
        return bool(expr)
    operation = _FUNCTIONS.get(type(expr).__name__)
    if operation is None:
        raise UnsupportedError(
            f"the program holds where {_text(expr, names)}, which cannot be checked; give that size as a fixed one"
        )
    return (operation, *(_tree(part, names) for part in expr.args))


_CONVERSIONS = ("__bool__", "__int__", "__index__")
_OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "add",
    ast.Mult: "mul",
    ast.Div: "div",
    ast.FloorDiv: "floordiv",
    ast.Mod: "mod",
    ast.Pow: "pow",
    ast.Eq: "eq",
    ast.NotEq: "ne",
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
    ast.And: "and",
    ast.Or: "or",
    ast.Not: "not",
}
_CALLS = {
    "math.trunc": "trunc",
    "math.floor": "floor",
    "math.ceil": "ceil",
    "torch.sym_float": "float",
    "float": "float",
    "round": "round",
    "abs": "abs",
    "min": "min",
    "max": "max",
}
_SIZE = re.compile(r"L((?:\['\w+'\]|\[\d+\])+)\.size\(\)\[(\d+)\]")  # of a tensor by its place in the arguments


def conditions_of_code(
    codes: Iterable[str], program: torch.export.ExportedProgram, names: Mapping[str, str]
) -> tuple[Condition, ...]:
    """The conditions of a saved program, which keeps them as Python code; it is read, not run.

    Raises UnsupportedError for code that is no condition on the sizes of inputs.
    """
    shapes = {
        node.name: node.meta["val"].shape
        for node in program.graph.find_nodes(op="placeholder")
        if isinstance(node.meta.get("val"), torch.Tensor)
    }

    def size(path: str, axis: int) -> Tree:
        value = shapes["_".join(re.findall(r"\w+", path))][axis]
        return value if isinstance(value, int) else _tree(value.node.expr, names)

    def tree(node: ast.AST) -> Tree:
        text = ast.unparse(node)
        if (found := _SIZE.fullmatch(text)) is not None:
            return size(found[1], int(found[2]))
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return ("mul", -1, tree(operand))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ("not", tree(operand))
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                return ("add", tree(left), ("mul", -1, tree(right)))
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
                return (_OPERATORS[type(operator)], tree(left), tree(right))
            case ast.BoolOp(op=operator, values=values):
                return (_OPERATORS[type(operator)], *map(tree, values))
            case ast.Compare(left=left, ops=[operator], comparators=[right]) if type(operator) in _OPERATORS:
                return (_OPERATORS[type(operator)], tree(left), tree(right))
            case ast.Call(func=function, args=args, keywords=[]) if ast.unparse(function) in _CALLS:
                return (_CALLS[ast.unparse(function)], *map(tree, args))
        raise KeyError(text)

    made = []
    for code in codes:
        try:
            parsed = tree(ast.parse(code, mode="eval").body)
        except (SyntaxError, KeyError, IndexError, RecursionError, ValueError):
            raise UnsupportedError(
                f"the program holds under a condition that cannot be checked ({code[:100]!r}); import the module"
            ) from None
        text = _SIZE.sub(lambda found: str(size(found[1], int(found[2]))), code)
        made.append(Condition(text, parsed))
    return tuple(made)


@contextmanager
def decisions_on_one(module: torch.nn.Module, found: dict[str, str]) -> Iterator[None]:
    """Notes, by symbol, where code decides by whether a size is 1: torch.export assumes that a dynamic size is not,
    keeps no guard of that, and says that the program holds for 1 as well.

    Decisions inside torch itself are left out: they are about memory layouts, and what is computed is the same.
    """
    original = ShapeEnv.evaluate_expr
    thread = threading.get_ident()

    def evaluate(self: ShapeEnv, orig_expr: Any, *args: Any, **kwargs: Any) -> Any:
        before = len(self.guards)
        result = original(self, orig_expr, *args, **kwargs)
        if threading.get_ident() != thread or len(self.guards) > before:
            return result
        if isinstance(orig_expr, sympy.Basic) and len(orig_expr.free_symbols) == 1:
            (symbol,) = orig_expr.free_symbols
            if str(symbol) not in found and _by_a_network() and _at_one(orig_expr, symbol) != result:
                found[str(symbol)] = str(caller(module, sys._getframe(1)))
        return result

    # torch looks at the frame that asks (is it an assert?) and takes the first that is not of its own files
    evaluate.__code__ = evaluate.__code__.replace(co_filename=original.__code__.co_filename)
    ShapeEnv.evaluate_expr = evaluate  # type: ignore[method-assign]
    try:
        yield
    finally:
        ShapeEnv.evaluate_expr = original  # type: ignore[method-assign]


def _at_one(expr: sympy.Basic, symbol: sympy.Symbol) -> sympy.Basic | None:
    """The value for a size of 1; None if there is none."""
    try:
        return expr.xreplace({symbol: sympy.Integer(1)})
    except (ZeroDivisionError, AssertionError):  # torch's own functions assert what they need
        return None


def _by_a_network() -> bool:
    """Whether it is a network's own Python code that asks (`if x.shape[0] == 1`): it converts a symbolic number to a
    plain one. torch's operators ask without that."""
    frame, conversion = sys._getframe(2), False
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(TORCH):
            return conversion
        if os.path.basename(file) not in _SYMBOLIC:
            return False
        conversion = file == f"{TORCH}__init__.py" and frame.f_code.co_name in _CONVERSIONS
        frame = frame.f_back  # type: ignore[assignment]
    return False
