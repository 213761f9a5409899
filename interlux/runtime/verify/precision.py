"""A model computed in another precision than its own, by JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ...ir import dtypes, trees
from ...ir.model import Model
from ..jax import JaxInterpreter
from ..runner import run_in

Value = Any
_TYPE_ATTRIBUTES = ("to", "dtype")  # of Cast, EyeLike, random numbers, …: numbers of ONNX's element types


class PrecisionInterpreter(JaxInterpreter):
    """Computes every floating-point value in one dtype: constants, casts and generated values included.

    Arguments:
        dtype: float32 or float64.
    """

    name: ClassVar[str] = "JAX in a given precision"

    def __init__(self, dtype: np.dtype[Any]):
        super().__init__()
        self._dtype = dtype

    def _of(self, value: Value) -> Value:
        if value is None or not trees.is_float(value.dtype) or value.dtype == self._dtype:
            return value
        return value.astype(self._dtype)

    def const(self, array: Any, like: Value | None = None) -> Value:
        return self._of(super().const(array, like))

    def call(self, op_type: str, inputs: Sequence[Value | None], attributes: dict[str, Any], outputs: int) -> Any:
        changed = dict(attributes)
        for name in _TYPE_ATTRIBUTES:
            number = changed.get(name)
            if isinstance(number, int) and trees.is_float(dtypes.from_onnx(number)):
                changed[name] = dtypes.to_onnx(self._dtype)
        result = super().call(op_type, [self._of(value) for value in inputs], changed, outputs)
        return tuple(map(self._of, result)) if isinstance(result, tuple) else self._of(result)


def program(model: Model, dtype: np.dtype[Any]) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """A function of the input arrays that computes a model in evaluation mode, all floats in one dtype."""
    params, states = trees.cast(model.params, dtype), trees.cast(model.states, dtype)

    def forward(params: Any, states: Any, inputs: list[Any]) -> tuple[Any, ...]:
        y, _ = PrecisionInterpreter(dtype).layer(model.layer, params, states, *inputs, train=False)
        return tuple(map(jnp.asarray, y)) if isinstance(y, tuple) else (jnp.asarray(y),)

    compiled = jax.jit(forward)

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        with run_in("jax"), jax.enable_x64(True):
            return [np.asarray(y) for y in compiled(params, states, list(map(jnp.asarray, arrays)))]

    return run
