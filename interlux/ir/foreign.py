"""A part of a model that stays code of the framework it came from: backends may call it, none looks inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .interpreter import Interpreter, Value
from .layer import Layer

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Kind:
    """The shape and dtype of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, eq=False)
class Foreign(Layer):
    """Base of such layers. Two are equal only if they are the same object, because code cannot be compared.

    A sub-class computes with numpy; its methods may be called from any thread. An interpreter that can call back into
    Python (JAX) executes it, all others refuse it by its `repr`.
    """

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def results(
        self, params: Mapping[str, Kind], states: Mapping[str, Kind], inputs: Sequence[Kind], train: bool
    ) -> tuple[tuple[Kind, ...], tuple[str, ...]]:
        """The shapes and dtypes of the outputs, and the names of the states that are written in this mode.

        Raises UnsupportedError if they don't follow from the arguments.
        """
        raise NotImplementedError

    def compute(
        self, params: Arrays, states: Arrays, inputs: Sequence[np.ndarray], train: bool
    ) -> tuple[tuple[np.ndarray, ...], dict[str, np.ndarray]]:
        """The outputs, and the new values of the states that are written in this mode."""
        raise NotImplementedError

    def gradients(
        self,
        params: Arrays,
        states: Arrays,
        inputs: Sequence[np.ndarray],
        cotangents: Sequence[np.ndarray | None],
        train: bool,
    ) -> tuple[dict[str, np.ndarray], list[np.ndarray | None]]:
        """The gradients of all floating-point parameters and inputs, None in place of other inputs.

        Arguments:
            params, states, inputs: those of `compute`; the same random numbers are drawn.
            cotangents: of the outputs, of their shapes and dtypes; None for outputs that are not floating-point.
        """
        raise NotImplementedError

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        return op.foreign(self, params, states, inputs, train=train)
