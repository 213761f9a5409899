"""Older layers of networks: normalisation, dropout, pooling, recurrent layers."""

from __future__ import annotations

import numpy as np

from ....ir.errors import InvalidModelError, UnsupportedError
from ...builder import GraphBuilder
from .form import Form, before, like_shape


@before(7, "BatchNormalization", "Dropout")
def _for_inference(op: GraphBuilder, form: Form) -> None:
    """An attribute said that it does not train, which is what it means today."""
    if not form.attributes.pop("is_test", 0):
        raise UnsupportedError(
            f"{form.op_type} in training mode (is_test=0) before opset 7; set is_test=1 for inference"
        )


@before(9, "BatchNormalization")
def _by_channel(op: GraphBuilder, form: Form) -> None:
    """It could have statistics for every place of an image."""
    if form.attributes.pop("spatial", 1):
        return
    _training_by_outputs(op, form)
    x = form.input(0)
    arrays = [op.Reshape(form.input(i), op.ints(-1)) for i in range(1, 5)]
    flat = op.primitive("BatchNormalization", [op.Flatten(x, axis=1), *arrays], form.attributes)
    like_shape(op, form, flat, x)


@before(14, "BatchNormalization")
def _training_by_outputs(op: GraphBuilder, form: Form) -> None:
    """It was the number of outputs that said whether it trains, and they were other ones."""
    if any(form.outputs[1:]):
        raise UnsupportedError("BatchNormalization in training mode needs opset 14; export the model for inference")
    del form.outputs[1:]


@before(10, "Dropout")
def _mask_of_the_data(op: GraphBuilder, form: Form) -> None:
    """The mask had the type of the data."""
    if any(form.outputs[1:]):
        x = form.input(0)
        _ratio_as_input(op, form)
        y, mask = op.Dropout(*form.inputs, outputs=2)
        form.made = (y, op.cast(mask, x.dtype))


@before(12, "Dropout")
def _ratio_as_input(op: GraphBuilder, form: Form) -> None:
    if "ratio" in form.attributes:
        form.set_input(1, op.const(np.array(form.attributes.pop("ratio"), np.float32)))


@before(21, "GroupNormalization")
def _scale_by_channel(op: GraphBuilder, form: Form) -> None:
    """Scale and bias had one entry for each group, now for each channel."""
    x, groups = form.input(0), form.attributes.get("num_groups")
    if not isinstance(groups, int) or groups < 1:
        raise InvalidModelError("GroupNormalization needs num_groups")
    channels = x.shape[1] if x.shape is not None and len(x.shape) > 1 else None
    if isinstance(channels, int):
        repeats = op.ints(1, channels // groups)
    else:
        repeats = op.Concat(op.ints(1), op.Div(op.Shape(x, start=1, end=2), op.ints(groups)), axis=0)
    for index in (1, 2):
        by_group = op.Unsqueeze(form.inputs[index], op.ints(1))
        form.set_input(index, op.Reshape(op.Tile(by_group, repeats), op.ints(-1)))


@before(2, "LpPool", "GlobalLpPool")
def _whole_power(op: GraphBuilder, form: Form) -> None:
    """The power was a float, and the kernel could be left out, which was not defined."""
    power = form.attributes.get("p", 2.0)
    if power != int(power):
        raise UnsupportedError(f"{form.op_type} with p={power}: only whole numbers are possible since opset 2")
    form.attributes["p"] = int(power)
    if form.op_type == "LpPool" and "kernel_shape" not in form.attributes:
        raise UnsupportedError("LpPool of opset 1 without kernel_shape is not defined")


@before(3, "GRU")
def _misspelt_direction(op: GraphBuilder, form: Form) -> None:
    if form.attributes.get("direction") == "foward":
        form.attributes["direction"] = "forward"


@before(7, "GRU", "LSTM", "RNN")
def _outputs_by_name(op: GraphBuilder, form: Form) -> None:
    """It said that the first output may be left out."""
    form.attributes.pop("output_sequence", None)
