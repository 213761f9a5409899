"""Conditions on the sizes of dynamic dimensions under which a model is what its source is.

A program is traced with example sizes; where the source's own code decides by a size, the trace holds one way, and
the condition says for which sizes it was taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Any

Tree = Any  # a number, the name of a dimension, or [operation, *trees]

LARGEST_POWER = 64
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda *x: sum(x),
    "mul": lambda *x: math.prod(x),
    "fraction": Fraction,
    "div": lambda a, b: a / b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "pow": lambda a, b: _power(a, b),
    "float": float,
    "trunc": math.trunc,
    "floor": math.floor,
    "ceil": math.ceil,
    "round": round,
    "abs": abs,
    "min": min,
    "max": max,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "and": lambda *x: all(x),
    "or": lambda *x: any(x),
    "not": lambda a: not a,
    "xor": lambda *x: reduce(lambda a, b: bool(a) != bool(b), x),
}
OPERATIONS = frozenset(_OPERATIONS)


def _power(a: Any, b: Any) -> Any:
    if abs(b) > LARGEST_POWER:  # a file could ask for numbers that fill the memory
        raise OverflowError(f"{a} to the power {b}")
    return a**b


@dataclass(frozen=True)
class Condition:
    """A condition on sizes.

    Arguments:
        text: how a person reads it.
        tree: what is computed: a number, the name of a dimension, or a tuple (operation, *trees).
    """

    text: str
    tree: Tree

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it holds for sizes by name; where it cannot be computed (a division by zero) it does not."""
        try:
            return bool(_value(self.tree, sizes))
        except (ArithmeticError, ValueError):
            return False

    def names(self) -> frozenset[str]:
        """The dimensions that it speaks of."""
        return frozenset(_names(self.tree))


def _value(tree: Tree, sizes: Mapping[str, int]) -> Any:
    if isinstance(tree, str):
        return sizes[tree]
    if not isinstance(tree, tuple):
        return tree
    return _OPERATIONS[tree[0]](*(_value(part, sizes) for part in tree[1:]))


def _names(tree: Tree) -> set[str]:
    if isinstance(tree, str):
        return {tree}
    return set().union(*(_names(part) for part in tree[1:])) if isinstance(tree, tuple) else set()


def from_lists(tree: Any) -> Tree:
    """A tree that was read from JSON. Raises ValueError if it is none."""
    if isinstance(tree, list):
        if not tree or not isinstance(tree[0], str) or tree[0] not in OPERATIONS:
            raise ValueError(f"{str(tree)[:60]} is no condition on sizes")
        return (tree[0], *(from_lists(part) for part in tree[1:]))
    if isinstance(tree, bool | int | float | str):
        return tree
    raise ValueError(f"{str(tree)[:60]} is no condition on sizes")
