"""The table of rules that bring older operators to their newest meaning, and what the rules share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ....ir.errors import InvalidModelError
from ...builder import GraphBuilder, Value


@dataclass
class Form:
    """A node while it is brought up to date.

    Arguments:
        op_type: the operator.
        inputs: its inputs, None for absent ones.
        attributes: its attributes.
        outputs: the names of its outputs, "" for absent ones.
        made: the outputs, where a rule has recorded them itself because they are not those of one newer node.
    """

    op_type: str
    inputs: list[Value | None]
    attributes: dict[str, Any]
    outputs: list[str] = field(default_factory=list)
    made: tuple[Value, ...] | None = None

    def input(self, index: int) -> Value:
        """An input that must be there. Raises InvalidModelError if it is not."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise InvalidModelError(f"{self.op_type} lacks input {index}")
        return value

    def set_input(self, index: int, value: Value) -> None:
        """Sets an input, padding absent ones before it."""
        self.inputs += [None] * (index + 1 - len(self.inputs))
        self.inputs[index] = value

    def become(self, op_type: str, *inputs: Value | None, **attributes: Any) -> None:
        """Turns the node into one of another operator with the same outputs."""
        self.op_type, self.inputs, self.attributes = op_type, list(inputs), attributes


Rule = Callable[[GraphBuilder, Form], None]
UPGRADES: dict[str, list[tuple[int, Rule]]] = {}


def before(version: int, *op_types: str) -> Callable[[Rule], Rule]:
    """Enters a rule for the versions of the opset below one. An operator has at most one rule for each version."""

    def enter(rule: Rule) -> Rule:
        for op_type in op_types:
            rules = UPGRADES.setdefault(op_type, [])
            if any(known == version for known, _ in rules):
                raise ValueError(f"two rules bring {op_type} to version {version}")
            rules.append((version, rule))
            rules.sort(key=lambda entry: entry[0])
        return rule

    return enter


def upgradable(op_type: str, opset: int) -> bool:
    """Whether a rule applies to an operator as it is in an opset."""
    return any(opset < version for version, _ in UPGRADES.get(op_type, ()))


def upgrade(op: GraphBuilder, form: Form, opset: int) -> None:
    """Brings a node of an opset to the newest one, in place. After a rule, the node is one of that rule's version.

    Raises UnsupportedError for what an older version could do and no newer one can, or what it left undefined.
    """
    while form.made is None:
        step = next((entry for entry in UPGRADES.get(form.op_type, ()) if opset < entry[0]), None)
        if step is None:
            return
        opset, rule = step
        rule(op, form)


def like_shape(op: GraphBuilder, form: Form, flat: Value, x: Value) -> None:
    """Turns the node into the Reshape of a value to the shape of another, of as many elements."""
    form.become("Reshape", flat, op.Shape(x), allowzero=1)


def lead(op: GraphBuilder, value: Value, x: Value, axis: int) -> Value:
    """The value with axes of size 1 behind its own, so that its first axis lies along `axis` of `x`."""
    if value.shape is not None and x.shape is not None:
        behind = range(len(value.shape), len(x.shape) - axis)
        return op.Unsqueeze(value, op.ints(*behind)) if behind else value
    shape = op.Shape(value)
    missing = op.Sub(op.Sub(op.Shape(op.Shape(x)), op.ints(axis)), op.Shape(shape))
    return op.Reshape(value, op.Concat(shape, op.Expand(op.ints(1), op.Max(missing, op.ints(0))), axis=0), allowzero=1)


def float32(number: float) -> float:
    """A number as an attribute holds it."""
    return float(np.float32(number))
