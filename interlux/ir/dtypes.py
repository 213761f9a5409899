"""Dtypes by name, and ONNX's numbers for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import InvalidModelError, UnsupportedError

# onnx.TensorProto.DataType; names are numpy's and ml_dtypes'
ONNX_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "object",  # strings
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4_e2m1fn",
    24: "float8_e8m0fnu",
    25: "uint2",
    26: "int2",
}
_NUMBERS = {name: number for number, name in ONNX_DTYPES.items()}
_SPELLINGS = {  # where ONNX's operator signatures spell a type otherwise
    "float32": "float",
    "float64": "double",
    "object": "string",
    "float8_e4m3fn": "float8e4m3fn",
    "float8_e4m3fnuz": "float8e4m3fnuz",
    "float8_e5m2": "float8e5m2",
    "float8_e5m2fnuz": "float8e5m2fnuz",
    "float8_e8m0fnu": "float8e8m0",
    "float4_e2m1fn": "float4e2m1",
}
TYPE_STRINGS = {f"tensor({_SPELLINGS.get(name, name)})": name for name in _NUMBERS}


def dtype_named(name: str) -> np.dtype[Any]:
    """The dtype of a name, those of ml_dtypes included. Raises InvalidModelError for unknown names."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        try:
            return np.dtype(getattr(ml_dtypes, name))
        except (AttributeError, TypeError):
            raise InvalidModelError(f"unknown dtype {name!r}") from None


def from_onnx(number: int) -> np.dtype[Any]:
    if number not in ONNX_DTYPES:
        raise UnsupportedError(f"ONNX element type {number} is not known")
    return dtype_named(ONNX_DTYPES[number])


def to_onnx(dtype: Any) -> int:
    name = np.dtype(dtype).name
    if name not in _NUMBERS:
        raise UnsupportedError(f"ONNX has no element type for {name}")
    return _NUMBERS[name]
