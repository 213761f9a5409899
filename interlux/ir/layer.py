"""The layer: an immutable description. Its parameters and states live outside it, in trees; applying it is pure.

After Lux.jl (AbstractLuxLayer: initialparameters, initialstates, apply).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

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


class Composite(Layer):
    """Base of layers made of other layers, which are found and replaced by name.

        layer["features"][0]                    by name, or by position
        layer["features.0"]                     by the dotted path of a module
        layer.replaced("features.0", other)     the same layer with another one at that place

    A child without a name (a residual connection within a module) is only a level of the structure: its arrays lie in
    its parent's branch, and the layers inside it are found as if they were the parent's.
    """

    def with_children(self, layers: Sequence[Layer]) -> Self:
        """The same layer with other children, in the order of `children`."""
        raise UnsupportedError(f"the layers inside a {type(self).__name__} cannot be replaced")

    def binds_one(self) -> bool:
        """Whether this only says where its one layer finds its arrays."""
        return False

    def __getitem__(self, key: str | int) -> Layer:
        """The layer at a name, dotted path or position. Raises InvalidModelError if there is none."""
        return _at(self, self.places(key))

    def __len__(self) -> int:
        return len(self.children())

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Layer]:
        return (self[place] for place in range(len(self)))

    def replaced(self, key: str | int, layer: Layer) -> Self:
        """The same layer with another one in the place of `self[key]`; this one stays as it is.

        Arguments:
            key: name, dotted path or position.
            layer: finds its arrays where the present one does, under the same names.
        """
        return _exchanged(self, self.places(key), layer)

    def places(self, key: str | int) -> tuple[int, ...]:
        """The positions among the children, level by level, that lead to a key."""
        children = self.children()
        if isinstance(key, int):
            if not -len(children) <= key < len(children):
                raise InvalidModelError(f"{type(self).__name__} has {len(children)} layers, none is number {key}")
            return _settled(self, (key % len(children),))
        found = _search(self, key)
        if found is None:
            names = ", ".join(name for name, _ in children if not is_level(name)) or "none with a name"
            raise InvalidModelError(f"{type(self).__name__} has no layer {key!r}; it has {names}")
        return _settled(self, found)


def is_level(name: str) -> bool:
    """Whether a child of this name is a level of the structure only, without a branch of its own in the trees."""
    return name == "" or name.startswith("(")


def _search(layer: Layer, name: str) -> tuple[int, ...] | None:
    """The positions that lead to a name."""
    children = layer.children()
    for i, (own, _) in enumerate(children):
        if own == name:
            return (i,)
    for i, (own, child) in enumerate(children):
        rest = name if is_level(own) else name.removeprefix(f"{own}.") if name.startswith(f"{own}.") else ""
        if rest and (found := _search(child, rest)) is not None:
            return (i, *found)
    return None


def _settled(layer: Layer, places: tuple[int, ...]) -> tuple[int, ...]:
    """The positions of what is meant by a place: of the layer itself, not of what binds its arrays."""
    child = _at(layer, places)
    while isinstance(child, Composite) and child.binds_one():
        places = (*places, 0)
        child = _at(child, (0,))
    return places


def _at(layer: Layer, places: tuple[int, ...]) -> Layer:
    for place in places:
        layer = layer.children()[place][1]
    return layer


def _exchanged(layer: Any, places: tuple[int, ...], new: Layer) -> Any:
    if not places:
        return new
    layers = [child for _, child in layer.children()]
    layers[places[0]] = _exchanged(layers[places[0]], places[1:], new)
    return layer.with_children(layers)


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
