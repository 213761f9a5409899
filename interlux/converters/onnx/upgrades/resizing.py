"""Older operators that sample images: Upsample, Resize, RoiAlign, GridSample."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir.errors import InvalidModelError
from ...builder import GraphBuilder, Value
from .form import Form, before

_FROM_THE_CORNER: dict[str, Any] = {"coordinate_transformation_mode": "asymmetric"}


@before(7, "Upsample")
def _scales_of_images(op: GraphBuilder, form: Form) -> None:
    get = form.attributes.get
    form.attributes = {
        "scales": (1.0, 1.0, get("height_scale"), get("width_scale")),
        "mode": {"bilinear": "linear"}.get(get("mode", "nearest"), get("mode", "nearest")),
    }


@before(9, "Upsample")
def _scales_as_input(op: GraphBuilder, form: Form) -> None:
    form.set_input(1, op.const(np.array(form.attributes.pop("scales"), np.float32)))


@before(10, "Upsample")
def _upsample(op: GraphBuilder, form: Form) -> None:
    form.op_type = "Resize"


@before(11, "Resize")
def _from_the_corner(op: GraphBuilder, form: Form) -> None:
    """Places were counted from the first element: `i / scale`. The nearest element was the one before where an axis
    grows and the one behind where it shrinks, as onnx's tests of opset 10 and onnxruntime have it.
    """
    x, scales, mode = form.input(0), form.input(1), form.attributes.get("mode", "nearest")
    if mode != "nearest":
        form.become("Resize", x, None, scales, mode=mode, **_FROM_THE_CORNER)
        return
    one, known = np.ones(1, np.float32), scales.array
    if known is None or (known > 1).any():
        grown = scales if known is not None and (known >= 1).all() else op.Max(scales, one)
        form.become("Resize", x, None, grown, nearest_mode="floor", **_FROM_THE_CORNER)
        if grown is scales:
            return
        x = op.primitive("Resize", form.inputs, form.attributes)
        scales = op.Min(scales, one)
    form.become("Resize", x, None, scales, nearest_mode="ceil", **_FROM_THE_CORNER)


@before(13, "Resize")
def _absent_if_empty(op: GraphBuilder, form: Form) -> None:
    """Region and scales had to be there; without elements, they said nothing."""
    for index in (1, 2):
        if index < len(form.inputs) and _is_empty(form.inputs[index]):
            form.inputs[index] = None
    if all(value is None for value in form.inputs[2:]):
        raise InvalidModelError("Resize without scales or sizes")


def _is_empty(value: Value | None) -> bool:
    return value is not None and value.shape is not None and 0 in value.shape


@before(16, "RoiAlign")
def _unshifted_boxes(op: GraphBuilder, form: Form) -> None:
    form.attributes.setdefault("coordinate_transformation_mode", "output_half_pixel")


@before(20, "GridSample")
def _modes_of_any_rank(op: GraphBuilder, form: Form) -> None:
    mode = form.attributes.get("mode", "bilinear")
    form.attributes["mode"] = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
