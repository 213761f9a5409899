"""Older operators on elements, and reductions."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from ....ir.errors import InvalidModelError
from ...builder import GraphBuilder, Shape
from .form import Form, before, float32, lead, like_shape


@before(
    6,
    *("Abs", "Add", "BatchNormalization", "Ceil", "Clip", "Div", "Dropout", "Elu", "Exp", "Floor", "HardSigmoid"),
    *("InstanceNormalization", "LeakyRelu", "Log", "Max", "Mean", "Min", "Mul", "Neg", "PRelu", "Reciprocal", "Relu"),
    *("Sigmoid", "Sqrt", "Sub", "Sum", "Tanh"),
)
def _without_hint(op: GraphBuilder, form: Form) -> None:
    """It said which buffers may be overwritten."""
    form.attributes.pop("consumed_inputs", None)


@before(6, "Selu")
def _rounded_selu(op: GraphBuilder, form: Form) -> None:
    form.attributes.pop("consumed_inputs", None)
    form.attributes.setdefault("alpha", float32(1.6732))
    form.attributes.setdefault("gamma", float32(1.0507))


@before(6, "Cast")
def _type_by_name(op: GraphBuilder, form: Form) -> None:
    name, types = form.attributes.get("to"), dict(TensorProto.DataType.items())
    if not isinstance(name, str) or name.upper() not in types:
        raise InvalidModelError(f"Cast to {name!r}, which is no type")
    form.attributes["to"] = types[name.upper()]


@before(7, "Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")
def _broadcast_on_request(op: GraphBuilder, form: Form) -> None:
    """The second input could have a contiguous part of the first one's shape, which begins at `axis`, or ones there."""
    requested, axis = form.attributes.pop("broadcast", 0), form.attributes.pop("axis", None)
    a, b = form.input(0), form.input(1)
    if not requested:
        if a.shape is not None and b.shape is not None and not _same(a.shape, b.shape):
            raise InvalidModelError(f"shapes {a.shape} and {b.shape} differ, which needs the attribute broadcast=1")
        return
    axis = None if axis == -1 else axis  # as in Caffe2, where the attribute comes from
    if axis is not None and axis < 0:
        raise InvalidModelError(f"a broadcast from axis {axis}")
    if a.shape is not None and b.shape is not None:
        if len(b.shape) <= len(a.shape) and all(size == 1 for size in b.shape):
            return  # one element: its place does not matter
        start = len(a.shape) - len(b.shape) if axis is None else axis
        if start < 0 or not _same(a.shape[start : start + len(b.shape)], b.shape, or_one=True):
            raise InvalidModelError(f"shape {b.shape} is no part of {a.shape}" + (f" at axis {axis}" if axis else ""))
    if axis is not None:
        form.set_input(1, lead(op, b, a, axis))


def _same(one: Shape, other: Shape, or_one: bool = False) -> bool:
    """Whether two shapes may be the same: where both sizes are known, they are equal, or the second one may be 1."""
    return len(one) == len(other) and all(
        a == b or (or_one and b == 1) or not isinstance(a, int) or not isinstance(b, int)
        for a, b in zip(one, other, strict=True)
    )


@before(7, "Gemm")
def _bias_broadcast_on_request(op: GraphBuilder, form: Form) -> None:
    requested, bias = form.attributes.pop("broadcast", 0), form.input(2)
    if not requested and bias.shape is not None and len(bias.shape) != 2:
        raise InvalidModelError(f"a bias of shape {bias.shape} needs the attribute broadcast=1")


@before(7, "PRelu")
def _slope_by_channel(op: GraphBuilder, form: Form) -> None:
    """A slope with one axis belonged to the channels, not to the last axis."""
    x, slope = form.input(0), form.input(1)
    if slope.shape is None or (len(slope.shape) == 1 and slope.shape != (1,)):
        form.set_input(1, lead(op, slope, x, 1))


@before(11, "Clip")
def _limits_as_inputs(op: GraphBuilder, form: Form) -> None:
    """The limits were the largest float32 by default, to which infinities were clipped."""
    x, largest = form.input(0), float(np.finfo(np.float32).max)
    with np.errstate(over="ignore"):  # a float16 has no such number
        for index, (name, limit) in enumerate((("min", -largest), ("max", largest)), 1):
            form.set_input(index, op.const(form.attributes.pop(name, limit), like=x))


@before(13, "Softmax", "LogSoftmax", "Hardmax")
def _over_all_later_axes(op: GraphBuilder, form: Form) -> None:
    """All axes from `axis` on were one."""
    x, axis = form.input(0), form.attributes.get("axis", 1)
    if x.shape is not None:
        if not -len(x.shape) <= axis < len(x.shape):
            raise InvalidModelError(f"axis {axis} of a value with {len(x.shape)} axes")
        if axis % len(x.shape) == len(x.shape) - 1:
            form.attributes["axis"] = -1
            return
    flat = op.primitive(form.op_type, [op.Flatten(x, axis=axis)], {"axis": -1})
    like_shape(op, form, flat, x)


@before(13, "ReduceSum", "Squeeze", "Unsqueeze")
@before(
    18, *(f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"))
)
def _axes_as_input(op: GraphBuilder, form: Form) -> None:
    axes = form.attributes.pop("axes", ())
    if axes:
        form.set_input(1, op.ints(*axes))


@before(20, "DFT")
def _axis_as_input(op: GraphBuilder, form: Form) -> None:
    form.set_input(2, op.const(np.array(form.attributes.pop("axis", 1), np.int64)))
