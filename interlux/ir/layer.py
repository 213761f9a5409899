"""The layer: an immutable description. Its parameters and states live outside it, in trees; applying it is pure.

After Lux.jl (AbstractLuxLayer: initialparameters, initialstates, apply).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import InvalidModelError, UnsupportedError
from .evaluation import evaluator
from .interpreter import Interpreter, Value
from .trees import Tree, cast

# mode of a layer that behaves differently in training: as the `train` keyword says, always as in training, never
FOLLOW, ALWAYS, NEVER = "follow", "always", "never"
MODES = (FOLLOW, ALWAYS, NEVER)


@dataclass(frozen=True)
class Layer:
    """Base of all layers. A sub-class is a frozen dataclass whose fields are hyper-parameters (never arrays).

    A layer that computes defines `forward`; one with parameters also `init_params` and `param_shapes`.
    """

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of this layer's own parameters by name; a container has none of its own."""
        return {}

    def init_params(self, rng: np.random.Generator) -> Tree:
        """Fresh parameters in float32."""
        return {}

    def init_states(self, rng: np.random.Generator) -> Tree:
        """Fresh states."""
        return {}

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        """The layer in terms of primitives. Returns its output (a tuple if several) and the new states."""
        raise UnsupportedError(f"{type(self).__name__} defines no forward")

    def apply(
        self, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Any, train: bool = False
    ) -> tuple[Any, Tree]:
        """Computes the layer on arrays; pure, and usable inside jax.jit, jax.grad and jax.vmap.

        Arguments:
            params, states: trees as `setup` makes them; leaves are numpy or JAX arrays (or JAX tracers).
            inputs: numpy or JAX arrays.
            train: whether layers behave as in training; a Python bool, never an array.

        Returns:
            The output (a tuple if the layer has several) and the new states. numpy in, numpy out; else JAX arrays.
        """
        if not isinstance(train, bool):
            raise InvalidModelError(f"train must be True or False, not {type(train).__name__}: it is a static keyword")
        return evaluator()(self, params, states, inputs, train)

    def children(self) -> tuple[tuple[str, Layer], ...]:
        """The layers inside this one with their keys in the trees."""
        return ()


def check_mode(mode: str, layer: str) -> None:
    if mode not in MODES:
        raise InvalidModelError(f"{layer}: mode must be one of {', '.join(MODES)}, not {mode!r}")


def positive(layer: str, **sizes: int) -> None:
    """Raises InvalidModelError unless all sizes are positive integers."""
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise InvalidModelError(f"{layer}: {name} must be a positive integer, not {size!r}")


def active(mode: str, train: bool) -> bool:
    """Whether a layer of this mode behaves as in training."""
    return mode == ALWAYS or (mode == FOLLOW and train)


def setup(layer: Layer, seed: int, dtype: Any = np.float32) -> tuple[Tree, Tree]:
    """Fresh parameters and states of a layer.

    Arguments:
        layer: any layer, containers included.
        seed: of numpy's default generator; the same seed gives the same arrays.
        dtype: of the floating-point arrays.

    Returns:
        (params, states), both trees of numpy arrays.
    """
    rng = np.random.default_rng(seed)
    params, states = layer.init_params(rng), layer.init_states(rng)
    return cast(params, dtype), cast(states, dtype)


def uniform(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    """PyTorch's default for weights and biases: uniform in ±1/√fan_in."""
    bound = 1 / np.sqrt(max(fan_in, 1))
    return rng.uniform(-bound, bound, shape).astype(np.float32)
