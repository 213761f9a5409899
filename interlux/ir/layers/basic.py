"""Any ONNX operator as a layer, constants, and stored arrays read as plain values."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import dtypes, vocabulary
from ..dtypes import dtype_named
from ..errors import UnsupportedError
from ..interpreter import Interpreter, Value
from ..layer import FOLLOW, Layer, active


@dataclass(frozen=True)
class ArrayData:
    """A small array as an immutable, hashable value: shapes, scalars, attributes that are tensors.

    Arguments:
        dtype: numpy's or ml_dtypes' name of the dtype.
        shape: of the array.
        data: its bytes, C-contiguous and little-endian; texts are UTF-8, each behind its length (int64).
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: Any) -> ArrayData:
        array = np.asarray(array)
        if array.dtype.kind in "OSU":
            return cls("object", array.shape, _packed(array.reshape(-1).tolist()))
        return cls(array.dtype.name, array.shape, array.tobytes())

    def array(self) -> np.ndarray:
        if self.dtype == "object":
            return _unpacked(self.data, self.shape)
        return np.frombuffer(self.data, dtype_named(self.dtype)).reshape(self.shape)

    def __repr__(self) -> str:
        return f"{self.array().tolist()}: {self.dtype}"


def _packed(texts: list[Any]) -> bytes:
    if not all(isinstance(text, str) for text in texts):
        raise UnsupportedError("a constant of Python objects other than texts cannot be stored")
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<q", len(text)) + text for text in encoded)


def _unpacked(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    texts = []
    position = 0
    while position < len(data):
        (length,) = struct.unpack_from("<q", data, position)
        position += 8
        texts.append(data[position : position + length].decode())
        position += length
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.reshape(shape)


Attribute = Any  # int, float, str, bool, ArrayData, or a tuple of ints, floats or strings


def _freeze(value: Any) -> Attribute:
    if isinstance(value, np.ndarray):
        return ArrayData.of(value)
    if isinstance(value, list | tuple):
        return tuple(_freeze(v) for v in value)
    return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True)
class Operator(Layer):
    """One ONNX operator without parameters.

    Arguments:
        op_type: the operator's name in the newest opset, e.g. `MaxPool`.
        attributes: (name, value) pairs, sorted by name; `Operator.of` makes them from keywords.
        outputs: how many of its outputs are made.

    Source: the ONNX operator of that name.
    """

    op_type: str
    attributes: tuple[tuple[str, Attribute], ...] = ()
    outputs: int = 1

    def __post_init__(self) -> None:
        vocabulary.signature(self.op_type)

    @classmethod
    def of(cls, op_type: str, *, outputs: int = 1, **attributes: Any) -> Operator:
        return cls(op_type, tuple(sorted((k, _freeze(v)) for k, v in attributes.items())), outputs)

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        attributes = {k: v.array() if isinstance(v, ArrayData) else v for k, v in self.attributes}
        return op.primitive(self.op_type, inputs, attributes, self.outputs), states

    def __repr__(self) -> str:
        def show(name: str, value: Attribute) -> str:
            is_type = self.op_type == "Cast" and name == "to"
            return f"{name}={dtypes.ONNX_DTYPES.get(value, value) if is_type else repr(value)}"

        return f"{self.op_type}({', '.join(show(*pair) for pair in self.attributes)})"


identity = Operator("Identity")
relu = Operator("Relu")
tanh = Operator("Tanh")
sigmoid = Operator("Sigmoid")
gelu = Operator("Gelu")


@dataclass(frozen=True)
class Constant(Layer):
    """A small constant: a shape, an axis, a scalar. Large ones are states."""

    value: ArrayData

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        return op.const(self.value.array()), states

    def __repr__(self) -> str:
        return f"Constant({self.value!r})"


@dataclass(frozen=True)
class Stored(Layer):
    """A stored parameter or state (slot `value`) as a plain value: weights that a graph computes with directly."""

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        return (params["value"] if "value" in params else states["value"]), states


@dataclass(frozen=True)
class Assign(Layer):
    """Writes its input into a state (slot `value`), as a buffer that a module's forward assigns to.

    Arguments:
        mode: when the write is kept. A buffer that only training updates follows; a counter that every call
            increments always does.
    """

    mode: str = FOLLOW

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        return (), ({"value": inputs[0]} if active(self.mode, train) else states)
