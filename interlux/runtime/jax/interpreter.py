"""The JAX interpreter: computes primitives, folding with numpy what depends on shapes and constants only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ...ir.errors import UnsupportedError
from ...ir.interpreter import Interpreter
from .primitives import PRIMITIVES

Value = Any


class JaxInterpreter(Interpreter):
    """Values are numpy arrays (static) or JAX arrays and tracers. Runs inside jax.enable_x64(True): see `apply`."""

    name: ClassVar[str] = "JAX"

    def const(self, array: Any, like: Value | None = None) -> Value:
        return np.asarray(array) if like is None else np.asarray(array).astype(like.dtype)

    def dtype_of(self, value: Value) -> np.dtype[Any]:
        return np.dtype(value.dtype)

    def shape_of(self, value: Value) -> tuple[int | str | None, ...] | None:
        return tuple(value.shape)

    def call(self, op_type: str, inputs: Sequence[Value | None], attributes: dict[str, Any], outputs: int) -> Any:
        function = PRIMITIVES.get(op_type)
        if function is None:
            raise UnsupportedError(f"the JAX backend has no operator {op_type}{self.where()}")
        result = function(*inputs, **attributes)
        results = result if isinstance(result, tuple) else (result,)
        if outputs > len(results):
            raise UnsupportedError(
                f"the JAX backend makes {len(results)} outputs of {op_type}, not {outputs}{self.where()}"
            )
        results = tuple(np.asarray(r) if isinstance(r, np.generic) else r for r in results[:outputs])
        return results[0] if outputs == 1 else results
