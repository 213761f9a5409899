"""What a conversion is judged against: something that runs in its own dtype, and once more in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ...ir import trees
from ...ir.model import Model


class Source(Protocol):
    """The model that was converted. Importers implement this by its form alone.

    A source may have a third method, `run_float32`, of the same form as `run_float64`: it measures the rounding error
    of a source that is float64 itself.

    Attributes:
        description: one line that names it, e.g. "torch model LeNet (digits_lenet.pt2)".
    """

    @property
    def description(self) -> str: ...

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """The outputs, in the source's own dtypes.

        Arguments:
            arrays: in the order of `model.signature.inputs`, with their dtypes and shapes.

        Returns:
            Arrays in the order of `model.signature.outputs`.

        Raises InterluxError if the source cannot be run on these inputs (a size that it does not take).
        """
        ...

    def run_float64(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """The same computation with every floating-point value in float64.

        Arguments and errors as of `run`: the arrays are those of `run`; the floating-point ones are to be widened,
        integers and booleans stay as they are.
        """
        ...


class ModelSource:
    """A model of interlux as the source, run by the JAX interpreter.

    Arguments:
        model: any model with a signature.
    """

    def __init__(self, model: Model):
        self._model = model
        self._runs: dict[str, Callable[[list[np.ndarray]], list[np.ndarray]]] = {}
        self.description = f"interlux model {model.metadata.get('name', type(model.layer).__name__)}"

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        if "own" not in self._runs:
            from ..jax import JaxRunner

            runner = JaxRunner(self._model)
            self._runs["own"] = lambda given: list(runner.run(given))
        return self._runs["own"](arrays)

    def run_float64(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return self._run_in(np.float64, arrays)

    def run_float32(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return self._run_in(np.float32, arrays)

    def _run_in(self, dtype: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
        name = np.dtype(dtype).name
        if name not in self._runs:
            from .precision import program

            self._runs[name] = program(self._model, np.dtype(dtype))
        return self._runs[name]([a.astype(dtype) if trees.is_float(a.dtype) else a for a in arrays])
