"""What the rules for onnxruntime's own operators share: reading a node, sizes, layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ....ir.errors import InvalidModelError, UnsupportedError
from ...builder import GraphBuilder, Value
from .. import layers
from ..upgrades import Form

Rule = Callable[[GraphBuilder, Form], Value | Sequence[Value | None]]
Rules = dict[str, Rule]
REQUIRED = object()


def entering(rules: Rules) -> Callable[..., Callable[[Rule], Rule]]:
    """A decorator that enters a rule in a table under the names of its operators."""

    def enter_as(*op_types: str) -> Callable[[Rule], Rule]:
        def enter(rule: Rule) -> Rule:
            rules.update(dict.fromkeys(op_types, rule))
            return rule

        return enter

    return enter_as


def name_of(form: Form) -> str:
    """The operator without its domain."""
    return form.op_type.rpartition(".")[2]


def settings(form: Form, **defaults: Any) -> Any:
    """The attributes of a node in the order of their names here, each with its default (REQUIRED: it has none).

    Raises UnsupportedError for an attribute that is not among them: none is left out silently.
    """
    unknown = sorted(form.attributes.keys() - defaults.keys())
    if unknown:
        raise UnsupportedError(f"attribute {unknown[0]} of {name_of(form)} is not supported")
    values = [form.attributes.get(name, default) for name, default in defaults.items()]
    missing = [name for name, value in zip(defaults, values, strict=True) if value is REQUIRED]
    if missing:
        raise InvalidModelError(f"{name_of(form)} lacks the attribute {missing[0]}")
    return values[0] if len(values) == 1 else values


def inputs(form: Form, count: int) -> list[Value | None]:
    """The inputs, padded with None to a number. Raises InvalidModelError if there are more."""
    if len(form.inputs) > count:
        raise InvalidModelError(f"{name_of(form)} has {len(form.inputs)} inputs, at most {count} are defined")
    return [*form.inputs, *[None] * (count - len(form.inputs))]


def wanted(form: Form, index: int) -> bool:
    """Whether something reads output `index`."""
    return index < len(form.outputs) and bool(form.outputs[index])


def refuse(form: Form, what: str, remedy: str = "") -> UnsupportedError:
    """The error for a part of an operator that is not supported."""
    return UnsupportedError(f"{name_of(form)} with {what} is not supported" + (f"; {remedy}" if remedy else ""))


def refuse_inputs(form: Form, **indices: int) -> None:
    """Raises UnsupportedError if one of these inputs is there."""
    for name, index in indices.items():
        if index < len(form.inputs) and form.inputs[index] is not None:
            raise refuse(form, f"the input {name}")


def node(op: GraphBuilder, op_type: str, *values: Value | None, **attributes: Any) -> Value:
    """A node of ai.onnx as the importer would take it: the layer that it is, where its weights are stored arrays."""
    given = {name: value for name, value in attributes.items() if value is not None}
    form = Form(op_type, list(values), given, [""])
    while form.inputs and form.inputs[-1] is None:
        form.inputs.pop()
    made = layers.recognised(op, form)
    return op.primitive(op_type, form.inputs, given) if made is None else made[0]


def shaped(value: Value, like: Value) -> Value:
    """The value, known to have the shape of another."""
    if value.shape is None:
        value.shape = like.shape
    return value


# --- sizes


def sizes(op: GraphBuilder, x: Value, axis: int) -> Value:
    """The size of one axis as a vector [1] of int64."""
    return op.Shape(x, start=axis, end=axis + 1 if axis != -1 else None)


def size(op: GraphBuilder, x: Value, axis: int) -> Value:
    """The size of one axis as a scalar of int64."""
    return op.Squeeze(sizes(op, x, axis))


def counting(op: GraphBuilder, end: Value) -> Value:
    """0, 1, … up to a scalar of int64, which is not included."""
    return op.Range(op.const(np.array(0, np.int64)), end, op.const(np.array(1, np.int64)))


def scalar(op: GraphBuilder, value: Value) -> Value:
    """A tensor of one element as a scalar."""
    return value if value.shape == () else op.Reshape(value, op.const(np.zeros(0, np.int64)))


def known_size(value: Value, axis: int) -> int | None:
    """The size of an axis if it is a number."""
    if value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    found = value.shape[axis]
    return found if isinstance(found, int) else None


# --- layouts


def channels_first(op: GraphBuilder, x: Value, rank: int) -> Value:
    """[batch, …, channels] as [batch, channels, …]."""
    return _permuted(op, x, (0, rank - 1, *range(1, rank - 1)))


def channels_last(op: GraphBuilder, x: Value, rank: int) -> Value:
    """[batch, channels, …] as [batch, …, channels]."""
    return _permuted(op, x, (0, *range(2, rank), 1))


def _permuted(op: GraphBuilder, x: Value, perm: tuple[int, ...]) -> Value:
    made: Value = op.Transpose(x, perm=perm)
    made.shape = tuple(None if x.shape is None else x.shape[i] for i in perm)
    return made


def heads(op: GraphBuilder, x: Value, count: int) -> Value:
    """[batch, sequence, count·size] as [batch, count, sequence, size]."""
    return op.Transpose(op.Reshape(x, op.ints(0, 0, count, -1)), perm=(0, 2, 1, 3))


def joined(op: GraphBuilder, x: Value) -> Value:
    """[batch, heads, sequence, size] as [batch, sequence, heads·size]."""
    return op.Reshape(op.Transpose(x, perm=(0, 2, 1, 3)), op.ints(0, 0, -1))
