"""The JAX interpreter: computes primitives, folding with numpy what depends on shapes and constants only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from ...ir.errors import InvalidModelError, UnsupportedError
from ...ir.foreign import Foreign
from ...ir.graph import Node, ValueInfo
from ...ir.interpreter import Interpreter
from ...ir.layers.control import Control
from .control import control
from .foreign import foreign
from .primitives import PRIMITIVES

Value = Any


def fits(expected: tuple[int | str | None, ...], shape: tuple[int, ...]) -> bool:
    """Whether a shape agrees with the known rank and sizes."""
    return len(expected) == len(shape) and all(
        not isinstance(e, int) or e == s for e, s in zip(expected, shape, strict=True)
    )


class JaxInterpreter(Interpreter):
    """Values are numpy arrays (static) or JAX arrays and tracers. Runs inside jax.enable_x64(True): see `apply`."""

    name: ClassVar[str] = "JAX"

    def __init__(self, known: Mapping[str, ValueInfo] | None = None):
        """`known`: what the source says of a graph's values; a computed value of another shape is an error."""
        super().__init__()
        self._known = known or {}

    def node(
        self, node: Node, params: Mapping[str, Any], states: Mapping[str, Any], inputs: Sequence[Value], *, train: bool
    ) -> tuple[tuple[Value, ...], Mapping[str, Any]]:
        outputs, new = super().node(node, params, states, inputs, train=train)
        for name, value in zip(node.outputs, outputs, strict=True):
            info = self._known.get(name)
            if info is not None and hasattr(value, "shape") and not fits(info.shape, value.shape):
                raise InvalidModelError(
                    f"{name!r} was {info} in the source and has shape {tuple(value.shape)} here: {node.place()}"
                )
        return outputs, new

    def const(self, array: Any, like: Value | None = None) -> Value:
        return np.asarray(array) if like is None else np.asarray(array).astype(like.dtype)

    def dtype_of(self, value: Value) -> np.dtype[Any]:
        return np.dtype(value.dtype)

    @contextmanager
    def inside(self, known: Mapping[str, ValueInfo]) -> Iterator[None]:
        """Executes an inner graph: values go by its names."""
        outer, self._known = self._known, known
        try:
            yield
        finally:
            self._known = outer

    def plain(self, value: Value) -> Value:
        """The value as an array in the layout that the model gives it."""
        return value

    def control(self, layer: Control, inputs: Sequence[Value | None], *, train: bool) -> tuple[Value, ...]:
        return control(self, layer, inputs, train=train)

    def foreign(
        self,
        layer: Foreign,
        params: Mapping[str, Any],
        states: Mapping[str, Any],
        inputs: Sequence[Value],
        *,
        train: bool,
    ) -> tuple[Any, Mapping[str, Any]]:
        return foreign(layer, params, states, [self.plain(x) for x in inputs], train=train)

    def shape_of(self, value: Value) -> tuple[int | str | None, ...] | None:
        return tuple(value.shape)

    def call(self, op_type: str, inputs: Sequence[Value | None], attributes: dict[str, Any], outputs: int) -> Any:
        result = self.compute(op_type, inputs, attributes)
        results = result if isinstance(result, tuple) else (result,)
        if outputs > len(results):
            raise UnsupportedError(
                f"the JAX backend makes {len(results)} outputs of {op_type}, not {outputs}{self.where()}"
            )
        results = tuple(np.asarray(r) if isinstance(r, np.generic) else r for r in results[:outputs])
        return results[0] if outputs == 1 else results

    def compute(self, op_type: str, inputs: Sequence[Value | None], attributes: dict[str, Any]) -> Any:
        """All outputs of a primitive."""
        function = PRIMITIVES.get(op_type)
        if function is None:
            raise UnsupportedError(f"the JAX backend has no operator {op_type}{self.where()}")
        return function(*inputs, **attributes)
