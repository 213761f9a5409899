"""Containers for building by hand, after Lux.jl. Their trees hold one branch for each layer that has arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidModelError
from ..interpreter import Interpreter, Value
from ..layer import Layer
from ..trees import Tree
from .basic import Operator


class _Container(Layer):
    """What containers share: fresh arrays for each child, and running a child on its branch of the trees."""

    def init_params(self, rng: np.random.Generator) -> Tree:
        return {name: tree for name, child in self.children() if (tree := child.init_params(rng))}

    def init_states(self, rng: np.random.Generator) -> Tree:
        return {name: tree for name, child in self.children() if (tree := child.init_states(rng))}

    @staticmethod
    def run(
        op: Interpreter,
        name: str,
        child: Layer,
        params: Mapping[str, Any],
        states: Mapping[str, Any],
        inputs: tuple[Value, ...],
        train: bool,
    ) -> tuple[Any, Mapping[str, Any]]:
        branch = states.get(name, {})
        y, new = op.layer(child, params.get(name, {}), branch, *inputs, train=train, name=name)
        return y, states if new is branch else {**states, name: new}


def _tuple(values: Any) -> tuple[Any, ...]:
    return values if isinstance(values, tuple) else (values,)


@dataclass(frozen=True, init=False)
class _Several(_Container):
    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer):
        object.__setattr__(self, "layers", _flat(layers))

    def children(self) -> tuple[tuple[str, Layer], ...]:
        return tuple((str(i), child) for i, child in enumerate(self.layers))


def _flat(layers: tuple[Any, ...]) -> tuple[Layer, ...]:
    """Accepts `Chain(a, b)` and `Chain((a, b))`, the form that saved models use."""
    found = layers[0] if len(layers) == 1 and isinstance(layers[0], tuple | list) else layers
    for layer in found:
        if not isinstance(layer, Layer):
            raise InvalidModelError(f"a container takes layers, not {type(layer).__name__}")
    return tuple(found)


@dataclass(frozen=True, init=False)
class Chain(_Several):
    """Layers one after the other; several outputs of one are the inputs of the next. Branches are named "0", "1", …"""

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        values: Any = inputs
        for name, child in self.children():
            values, states = self.run(op, name, child, params, states, _tuple(values), train)
        return values[0] if isinstance(values, tuple) and len(values) == 1 else values, states


@dataclass(frozen=True, init=False)
class BranchLayer(_Several):
    """The same inputs into every layer; returns the tuple of their outputs."""

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        outputs = []
        for name, child in self.children():
            y, states = self.run(op, name, child, params, states, inputs, train)
            outputs.append(y)
        return tuple(outputs), states


@dataclass(frozen=True, init=False)
class Parallel(_Several):
    """Input i into layer i; returns the tuple of their outputs."""

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        if len(inputs) != len(self.layers):
            raise InvalidModelError(f"Parallel of {len(self.layers)} layers takes as many inputs, not {len(inputs)}")
        outputs = []
        for (name, child), x in zip(self.children(), inputs, strict=True):
            y, states = self.run(op, name, child, params, states, _tuple(x), train)
            outputs.append(y)
        return tuple(outputs), states


@dataclass(frozen=True, init=False)
class Maxout(BranchLayer):
    """The element-wise maximum of the outputs of several layers (Goodfellow et al. 2013)."""

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        outputs, states = super().forward(op, params, states, *inputs, train=train)
        return op.Max(*outputs), states


_ADD = Operator("Add")


@dataclass(frozen=True)
class SkipConnection(_Container):
    """connection(layer(x), x): a residual block if the connection adds.

    Arguments:
        layer: the inner layer, branch "layer".
        connection: an operator of two inputs, e.g. Operator("Add") or Operator.of("Concat", axis=1).
    """

    layer: Layer
    connection: Operator = _ADD

    def children(self) -> tuple[tuple[str, Layer], ...]:
        return (("layer", self.layer),)

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        y, states = self.run(op, "layer", self.layer, params, states, inputs, train)
        return op.layer(self.connection, {}, {}, y, inputs[0], train=train)[0], states


@dataclass(frozen=True, init=False)
class PairwiseFusion(_Several):
    """y₁ = layer₁(x₁), then yᵢ = layerᵢ(connection(yᵢ₋₁, xᵢ)) over the inputs x₁ … xₙ. Returns the last.

    Arguments:
        connection: an operator of two inputs.
        layers: one for each input.
    """

    connection: Operator

    def __init__(self, connection: Operator, *layers: Layer):
        object.__setattr__(self, "connection", connection)
        object.__setattr__(self, "layers", _flat(layers))

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        if len(inputs) != len(self.layers):
            raise InvalidModelError(
                f"PairwiseFusion of {len(self.layers)} layers takes as many inputs, not {len(inputs)}"
            )
        y: Any = None
        for (name, child), x in zip(self.children(), inputs, strict=True):
            if y is not None:
                x = op.layer(self.connection, {}, {}, y, x, train=train)[0]
            y, states = self.run(op, name, child, params, states, _tuple(x), train)
        return y, states


@dataclass(frozen=True)
class RepeatedLayer(_Container):
    """One layer applied several times with the same parameters; its states go from one application to the next.

    Arguments:
        layer: takes and gives the same number of values, branch "layer".
        repeats: how often it is applied.
    """

    layer: Layer
    repeats: int

    def children(self) -> tuple[tuple[str, Layer], ...]:
        return (("layer", self.layer),)

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        values: Any = inputs
        for _ in range(self.repeats):
            values, states = self.run(op, "layer", self.layer, params, states, _tuple(values), train)
        return values[0] if isinstance(values, tuple) and len(values) == 1 else values, states
