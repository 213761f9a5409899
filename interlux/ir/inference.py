"""The dtype of a primitive's output, from its signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import dtypes, vocabulary
from .containers import OPTIONAL, OPTIONAL_SEQUENCE, SEQUENCE
from .errors import UnsupportedError

# containers have the dtype of their elements
_OF_ELEMENTS = frozenset(
    (
        *("SequenceConstruct", "SequenceInsert", "SequenceErase", "SequenceAt", "SplitToSequence"),
        *("ConcatFromSequence", "Optional", "OptionalGetElement"),
    )
)


# the attribute that names the dtype, and what it is without one
_NAMED = {
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"), ("output_datatype", 1)),
    "Multinomial": ("dtype", 6),
    "RandomNormal": ("dtype", 1),
    "RandomUniform": ("dtype", 1),
}
_SEQUENCES = frozenset(("SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SplitToSequence"))


def output_container(op_type: str, inputs: Sequence[str], attributes: Mapping[str, Any]) -> str:
    """What container the outputs of an operator are ("" for tensors), from those of its inputs.

    As in `TensorSpec.container`; maps are not followed.
    """
    first = inputs[0] if inputs else ""
    match op_type:
        case _ if op_type in _SEQUENCES:
            return SEQUENCE
        case "Identity":
            return first
        case "Optional":
            of_sequence = first == SEQUENCE or str(attributes.get("type", "")).startswith("seq(")
            return OPTIONAL_SEQUENCE if of_sequence else OPTIONAL
        case "OptionalGetElement":
            return SEQUENCE if first in (SEQUENCE, OPTIONAL_SEQUENCE) else ""
        case "ai.onnx.ml.ZipMap":
            key = "object" if attributes.get("classlabels_strings") else "int64"
            return f"sequence of maps from {key}"
    return ""


def _text_of_type(op_type: str, attributes: Mapping[str, Any]) -> str:
    """The element type that an attribute names."""
    if op_type == "Optional":
        return str(attributes.get("type", "")).removeprefix("seq(").rstrip(")") + ")"
    if op_type == "ai.onnx.ml.CastMap":
        return {"TO_INT64": "tensor(int64)", "TO_STRING": "tensor(string)"}.get(
            attributes.get("cast_to", ""), "tensor(float)"
        )
    return ""


def _of_attributes(op_type: str, index: int, attributes: Mapping[str, Any]) -> np.dtype[Any] | None:
    """The dtype of an output of ai.onnx.ml that depends on which attributes are there."""
    present = {name for name, value in attributes.items() if value is not None and np.size(value)}
    if index == 0 and present & {"classlabels_strings", "values_strings", "classlabels_int64s"}:
        if op_type == "ai.onnx.ml.ZipMap":
            return np.dtype(np.float32)
        return np.dtype(np.int64 if "classlabels_int64s" in present else object)
    if "values_tensor" in present:
        return dtypes.dtype_named(str(attributes["values_tensor"].dtype))
    if "values_int64s" in present or "classlabels_ints" in present:
        return np.dtype(np.int64)
    return np.dtype(np.float32) if "values_floats" in present else None


def output_dtype(
    op_type: str, index: int, inputs: Sequence[np.dtype[Any] | None], attributes: Mapping[str, Any]
) -> np.dtype[Any]:
    """The dtype of output `index`: what an input of the same type variable has, else what the attributes say.

    Arguments:
        inputs: dtypes of the inputs, None for absent ones.
    """
    if op_type in ("Cast", "BitCast"):
        return dtypes.from_onnx(attributes["to"])
    if op_type in _NAMED:
        name, default = _NAMED[op_type]
        return dtypes.from_onnx(attributes.get(name) or default)
    if op_type == "LinearAttention" and index == 1 and inputs[0] is not None:
        return inputs[3] if len(inputs) > 3 and inputs[3] is not None else inputs[0]
    if op_type == "EyeLike" and attributes.get("dtype") is None and inputs[0] is not None:
        return inputs[0]
    if op_type in ("QuantizeLinear", "DequantizeLinear"):
        if attributes.get("output_dtype"):
            return dtypes.from_onnx(attributes["output_dtype"])
        given = inputs[1] if op_type == "DequantizeLinear" else inputs[2] if len(inputs) > 2 else None
        return np.dtype(np.uint8) if given is None else given
    if op_type in _OF_ELEMENTS and inputs and inputs[0] is not None:
        return inputs[0]
    if (text := _text_of_type(op_type, attributes)) in dtypes.TYPE_STRINGS:
        return dtypes.dtype_named(dtypes.TYPE_STRINGS[text])
    if op_type.startswith("ai.onnx.ml.") and (found := _of_attributes(op_type, index, attributes)) is not None:
        return found
    if op_type in ("ConstantOfShape", "Constant"):
        value = attributes.get("value")
        return np.dtype(np.float32) if value is None else dtypes.dtype_named(str(value.dtype))
    if op_type == "SequenceEmpty" and attributes.get("dtype") is None:
        return np.dtype(np.float32)
    if attributes.get("dtype") is not None:
        return dtypes.from_onnx(attributes["dtype"])
    signature = vocabulary.signature(op_type)
    formal = signature.formal(signature.outputs, index)
    kind = formal.type if formal is not None else ""
    for i, dtype in enumerate(inputs):
        bound = signature.formal(signature.inputs, i)
        if dtype is not None and bound is not None and bound.type == kind:
            return dtype
    if kind == "U" and "stash_type" in signature.attributes:  # the statistics of a normalisation
        return np.dtype(np.float32)
    text = signature.fixed_types.get(kind, kind)
    if text in dtypes.TYPE_STRINGS:
        return dtypes.dtype_named(dtypes.TYPE_STRINGS[text])
    raise UnsupportedError(f"the dtype of output {index} of {op_type} is unknown")
