"""Older operators brought to their newest meaning, in which the IR's primitives are defined.

A rule is entered with the version from which it is no longer needed. It takes a node as written and gives the node that
means the same in that version, so that the rules of an operator chain; those that need other operators record them.
An operator without a rule means in all versions from 13 what it means today: newer versions added types, attributes
whose default is the old behaviour, or optional inputs (`UNCHANGED`, a reviewed list).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...ir.errors import InvalidModelError, UnsupportedError
from ..builder import GraphBuilder, Value

OLDEST_OPSET = 13


@dataclass
class Form:
    """A node while it is brought up to date: operator, inputs, attributes, and the names of its outputs ("" = none)."""

    op_type: str
    inputs: list[Value | None]
    attributes: dict[str, Any]
    outputs: list[str] = field(default_factory=list)

    def set_input(self, index: int, value: Value) -> None:
        """Sets an input, padding absent ones before it."""
        self.inputs += [None] * (index + 1 - len(self.inputs))
        self.inputs[index] = value


Rule = Callable[[GraphBuilder, Form], None]
UPGRADES: dict[str, list[tuple[int, Rule]]] = {}


def _before(version: int, *op_types: str) -> Callable[[Rule], Rule]:
    """Enters a rule for the versions of the opset below one."""

    def enter(rule: Rule) -> Rule:
        for op_type in op_types:
            UPGRADES.setdefault(op_type, []).append((version, rule))
            UPGRADES[op_type].sort(key=lambda entry: entry[0])
        return rule

    return enter


def upgrade(op: GraphBuilder, form: Form, opset: int) -> None:
    """Brings a node of an opset to the newest one, in place.

    Raises UnsupportedError for what an older version could do and no newer one can.
    """
    for version, rule in UPGRADES.get(form.op_type, ()):
        if opset < version:
            rule(op, form)


@_before(
    18, *(f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"))
)
def _axes_as_input(op: GraphBuilder, form: Form) -> None:
    axes = form.attributes.pop("axes", ())
    if axes:
        form.set_input(1, op.ints(*axes))


@_before(18, "Split")
def _equal_parts(op: GraphBuilder, form: Form) -> None:
    if len(form.inputs) < 2 or form.inputs[1] is None:
        form.attributes["num_outputs"] = len(form.outputs)


@_before(14, "BatchNormalization")
def _training_by_outputs(op: GraphBuilder, form: Form) -> None:
    """It was the number of outputs that said whether it trains, and they were other ones."""
    if any(form.outputs[1:]):
        raise UnsupportedError("BatchNormalization in training mode needs opset 14; export the model for inference")
    del form.outputs[1:]


@_before(16, "RoiAlign")
def _unshifted_boxes(op: GraphBuilder, form: Form) -> None:
    form.attributes.setdefault("coordinate_transformation_mode", "output_half_pixel")


@_before(20, "GridSample")
def _modes_of_any_rank(op: GraphBuilder, form: Form) -> None:
    mode = form.attributes.get("mode", "bilinear")
    form.attributes["mode"] = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)


@_before(20, "DFT")
def _axis_as_input(op: GraphBuilder, form: Form) -> None:
    form.set_input(2, op.const(np.array(form.attributes.pop("axis", 1), np.int64)))


@_before(21, "GroupNormalization")
def _scale_by_channel(op: GraphBuilder, form: Form) -> None:
    """Scale and bias had one entry for each group, now for each channel."""
    x, groups = form.inputs[0], form.attributes.get("num_groups")
    if x is None or not isinstance(groups, int) or groups < 1:
        raise InvalidModelError("GroupNormalization needs an input and num_groups")
    channels = x.shape[1] if x.shape is not None and len(x.shape) > 1 else None
    if isinstance(channels, int):
        repeats = op.ints(1, channels // groups)
    else:
        repeats = op.Concat(op.ints(1), op.Div(op.Shape(x, start=1, end=2), op.ints(groups)), axis=0)
    for index in (1, 2):
        by_group = op.Unsqueeze(form.inputs[index], op.ints(1))
        form.set_input(index, op.Reshape(op.Tile(by_group, repeats), op.ints(-1)))


# Operators with versions above 13 whose older nodes mean the same today. Reviewed for onnx 1.23 (opset 28); a test
# compares the list with the schemas that onnx has.
# fmt: off
UNCHANGED = frozenset(
    (
        "Acos", "Acosh", "Add", "Asin", "Asinh", "Atan", "Atanh", "Attention", "AveragePool", "Bernoulli", "BitShift",
        "Cast", "CastLike", "Celu", "Compress", "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "Cosh",
        "CumSum", "DeformConv", "DepthToSpace", "DequantizeLinear", "Det", "Div", "Dropout", "Einsum", "Elu", "Equal",
        "EyeLike", "Flatten", "GRU", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GreaterOrEqual",
        "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "IsInf", "IsNaN", "LSTM", "LeakyRelu",
        "LessOrEqual", "LpNormalization", "LpPool", "MaxPool", "MaxRoiPool", "MaxUnpool", "Mish", "Mod", "Mul",
        "Multinomial", "NegativeLogLikelihoodLoss", "OneHot", "PRelu", "Pad", "Pow", "QLinearMatMul",
        "QuantizeLinear", "RNN", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range",
        "Relu", "Reshape", "Resize", "ReverseSequence", "Round", "ScatterElements", "ScatterND", "Selu", "Shape",
        "Sin", "Sinh", "Size", "Softplus", "Softsign", "SpaceToDepth", "Squeeze", "Sub", "Tan", "ThresholdedRelu",
        "TopK", "Transpose", "Unique", "Unsqueeze", "Where",
    )
)
# fmt: on
