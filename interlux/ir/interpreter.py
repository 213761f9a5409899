"""What a layer's `forward` is written against: an interpreter of primitives.

    op.Conv(x, w, b, strides=(2, 2))        a primitive: inputs by position (None = absent), attributes by keyword
    op.Split(x, sizes, axis=0, outputs=4)   several results
    op.const(array)                         a constant; numpy arrays among the inputs become constants by themselves
    op.layer(layer, params, states, x, train=train, name="conv1")    another layer

The JAX interpreter computes, the ONNX interpreter emits nodes, the importers' interpreter records a graph. Values are
whatever the interpreter makes them: layers only pass them on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from . import dtypes, vocabulary
from .errors import UnsupportedError

if TYPE_CHECKING:
    from .foreign import Foreign
    from .graph import Node, ValueInfo
    from .layer import Layer
    from .layers.control import Control

Value = Any
TRAIN, EVAL = "train", "eval"


@dataclass(frozen=True)
class Override:
    """A backend's own form of a whole layer.

    Arguments:
        forward: `(op, layer, params, states, *inputs, train) -> (outputs, states)`, or None where the general form is
            the better one for these inputs.
        modes: the modes that it covers; outside them the layer's own `forward` is used.
    """

    forward: Callable[..., tuple[Value, Any] | None]
    modes: frozenset[str]


class Interpreter:
    """Base of all interpreters: checks primitives against the vocabulary and keeps track of the place."""

    name: ClassVar[str] = "an interpreter"
    overrides: ClassVar[Mapping[type[Layer], Override]] = {}
    known: Mapping[str, ValueInfo] = {}  # what the graph that is being executed says of its values

    def __init__(self) -> None:
        self.place: tuple[str, ...] = ()  # names of the layers that are being executed, outermost first

    # What an interpreter defines.

    def call(self, op_type: str, inputs: Sequence[Value | None], attributes: dict[str, Any], outputs: int) -> Any:
        """Executes one primitive. Returns a value, or a tuple of values if `outputs` is more than 1."""
        raise NotImplementedError

    def const(self, array: Any, like: Value | None = None) -> Value:
        """A constant; with `like`, in that value's dtype."""
        raise NotImplementedError

    def dtype_of(self, value: Value) -> np.dtype[Any]:
        raise NotImplementedError

    def shape_of(self, value: Value) -> tuple[int | str | None, ...] | None:
        """Sizes, or names of dynamic dimensions, None for an unknown size; None as a whole if the rank is unknown."""
        raise NotImplementedError

    def control(self, layer: Control, inputs: Sequence[Value | None], *, train: bool) -> tuple[Value, ...]:
        """Executes a layer of control flow (`layers.control`)."""
        raise UnsupportedError(f"{self.name} has no control flow{self.where()}")

    def foreign(
        self,
        layer: Foreign,
        params: Mapping[str, Any],
        states: Mapping[str, Any],
        inputs: Sequence[Value],
        *,
        train: bool,
    ) -> tuple[Any, Mapping[str, Any]]:
        """Executes a layer that is code of another framework."""
        raise UnsupportedError(f"{self.name} cannot hold {layer!r}: only JAX calls back into its framework")

    # What they share.

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)

        def primitive(*inputs: Value | None, outputs: int = 1, **attributes: Any) -> Any:
            return self.primitive(op_type, inputs, attributes, outputs)

        return primitive

    def primitive(
        self, op_type: str, inputs: Sequence[Value | None], attributes: dict[str, Any], outputs: int = 1
    ) -> Any:
        """One primitive by its name, checked; numpy arrays among the inputs become constants."""
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        try:
            vocabulary.signature(op_type).check(len(inputs), attributes, outputs)
        except UnsupportedError as error:
            raise UnsupportedError(f"{error}{self.where()}") from None
        values = [self.const(i) if isinstance(i, np.ndarray | np.generic) else i for i in inputs]
        return self.call(op_type, values, attributes, outputs)

    def ints(self, *numbers: int) -> Value:
        """A vector of int64, as shapes and axes are given."""
        return self.const(np.array(numbers, np.int64))

    def cast(self, value: Value, dtype: Any) -> Value:
        """The value in another dtype; itself if it has that one."""
        return value if self.dtype_of(value) == np.dtype(dtype) else self.Cast(value, to=dtypes.to_onnx(dtype))

    def rank_of(self, value: Value) -> int:
        shape = self.shape_of(value)
        if shape is None:
            raise UnsupportedError(f"the rank of a value must be known here{self.where()}")
        return len(shape)

    def layer(
        self,
        layer: Layer,
        params: Mapping[str, Any],
        states: Mapping[str, Any],
        *inputs: Value,
        train: bool,
        name: str | None = None,
    ) -> tuple[Any, Mapping[str, Any]]:
        """Executes a layer, in the backend's own form where it has one for this mode."""
        outer = self.place
        if name is not None:
            self.place = (*outer, name)
        try:
            override = self.overrides.get(type(layer))
            if override is not None and (TRAIN if train else EVAL) in override.modes:
                result = override.forward(self, layer, params, states, *inputs, train=train)
                if result is not None:
                    return result
            return layer.forward(self, params, states, *inputs, train=train)
        finally:
            self.place = outer

    def node(
        self, node: Node, params: Mapping[str, Any], states: Mapping[str, Any], inputs: Sequence[Value], *, train: bool
    ) -> tuple[tuple[Value, ...], Mapping[str, Any]]:
        """Executes one node of a Graph; emitters extend this to keep its names."""
        outputs, new = self.layer(node.layer, params, states, *inputs, train=train, name=node.name)
        return outputs if isinstance(outputs, tuple) else (outputs,), new

    def where(self) -> str:
        """The present place, for error messages."""
        return f" (in {'/'.join(self.place)})" if self.place else ""
