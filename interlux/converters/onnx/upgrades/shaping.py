"""Older operators that move elements around: attributes that became inputs, above all."""

from __future__ import annotations

import numpy as np

from ....ir.errors import InvalidModelError, UnsupportedError
from ...builder import GraphBuilder
from .form import Form, before


@before(2, "Split")
def _sizes_in_floats(op: GraphBuilder, form: Form) -> None:
    """Sizes could be an input, of the type of the data."""
    if "axis" not in form.attributes:
        raise UnsupportedError("Split of opset 1 without an axis is not defined; set the attribute axis")
    if len(form.inputs) > 1 and form.inputs[1] is not None:
        if "split" in form.attributes:
            raise InvalidModelError("Split with its sizes both as an attribute and as an input")
        form.set_input(1, op.cast(form.inputs[1], np.int64))


@before(13, "Split")
def _sizes_as_input(op: GraphBuilder, form: Form) -> None:
    sizes = form.attributes.pop("split", ())
    if sizes:
        form.set_input(1, op.ints(*sizes))


@before(18, "Split")
def _equal_parts(op: GraphBuilder, form: Form) -> None:
    if len(form.inputs) < 2 or form.inputs[1] is None:
        form.attributes["num_outputs"] = len(form.outputs)


@before(4, "Concat")
def _second_axis(op: GraphBuilder, form: Form) -> None:
    form.attributes.setdefault("axis", 1)


@before(5, "Reshape")
def _shape_as_input(op: GraphBuilder, form: Form) -> None:
    form.attributes.pop("consumed_inputs", None)
    if "shape" not in form.attributes:
        raise InvalidModelError("Reshape without a shape")
    form.set_input(1, op.ints(*form.attributes.pop("shape")))


@before(6, "Tile")
def _one_axis(op: GraphBuilder, form: Form) -> None:
    """One axis was repeated; its number and that of the copies were inputs of the data's type."""
    x, copies, axis = (form.input(i) for i in range(3))
    count, along = (op.Reshape(op.cast(value, np.int64), op.ints(1)) for value in (copies, axis))
    axes = op.ints(*range(op.rank_of(x)))
    form.become("Tile", x, op.Where(op.Equal(axes, along), count, op.ints(1)))


@before(10, "Slice")
def _bounds_as_inputs(op: GraphBuilder, form: Form) -> None:
    for index, name in enumerate(("starts", "ends", "axes"), 1):
        numbers = form.attributes.pop(name, None)
        if numbers is not None:
            form.set_input(index, op.ints(*numbers))


@before(2, "Pad")
def _order_of_paddings(op: GraphBuilder, form: Form) -> None:
    raise UnsupportedError("Pad of opset 1: its definition and its example order the paddings differently")


@before(11, "Pad")
def _pads_as_input(op: GraphBuilder, form: Form) -> None:
    value = form.attributes.pop("value", 0.0)
    form.set_input(1, op.ints(*form.attributes.pop("pads")))
    if value and form.attributes.get("mode", "constant") == "constant":
        form.set_input(2, op.const(np.array(value), like=form.input(0)))


@before(10, "TopK")
def _count_as_input(op: GraphBuilder, form: Form) -> None:
    form.set_input(1, op.ints(form.attributes.pop("k")))


@before(11, "OneHot")
def _nothing_below_zero(op: GraphBuilder, form: Form) -> None:
    """An index below zero marked nothing; today it counts from the end, and one that is too large marks nothing."""
    indices, depth = form.input(0), form.input(1)
    if indices.dtype.kind == "u":
        return
    whole = op.cast(indices, np.int64)
    beyond = op.Reshape(op.cast(depth, np.int64), op.ints(1))
    form.set_input(0, op.Where(op.Less(whole, op.ints(0)), beyond, whole))


@before(11, "Scatter")
def _scatter_elements(op: GraphBuilder, form: Form) -> None:
    form.op_type = "ScatterElements"
