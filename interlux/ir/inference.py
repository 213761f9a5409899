"""The dtype of a primitive's output, from its signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import dtypes, vocabulary
from .errors import UnsupportedError

# containers have the dtype of their elements
_OF_ELEMENTS = frozenset(
    (
        *("SequenceConstruct", "SequenceInsert", "SequenceErase", "SequenceAt", "SplitToSequence"),
        *("ConcatFromSequence", "Optional", "OptionalGetElement"),
    )
)


def output_dtype(
    op_type: str, index: int, inputs: Sequence[np.dtype[Any] | None], attributes: Mapping[str, Any]
) -> np.dtype[Any]:
    """The dtype of output `index`: what an input of the same type variable has, else what the attributes say.

    Arguments:
        inputs: dtypes of the inputs, None for absent ones.
    """
    if op_type == "Cast":
        return dtypes.from_onnx(attributes["to"])
    if op_type in _OF_ELEMENTS and inputs and inputs[0] is not None:
        return inputs[0]
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
