"""Containers, after Lux.jl: for building by hand, and what the structure of imported models is told in.

Their trees hold one branch for each layer that has arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from .. import trees
from ..errors import InvalidModelError
from ..interpreter import Interpreter, Value
from ..layer import Composite, Layer
from ..trees import Tree
from .basic import Operator


class _Container(Composite):
    """What containers share: fresh arrays for each child, and running a child on its branch of the trees.

    The name of a child is the dotted path of its branch; the empty name is the whole tree.
    """

    def init_params(self, rng: np.random.Generator) -> Tree:
        return _joined((name, child.init_params(rng)) for name, child in self.children())

    def init_states(self, rng: np.random.Generator) -> Tree:
        return _joined((name, child.init_states(rng)) for name, child in self.children())

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
        if not name:
            return op.layer(child, params, states, *inputs, train=train)
        branch = _branch(states, name)
        y, new = op.layer(child, _branch(params, name), branch, *inputs, train=train, name=name)
        return y, states if new is branch else _with_branch(states, trees.path_of(name), new)


def _joined(branches: Iterable[tuple[str, Tree]]) -> Tree:
    """One tree of the branches that have arrays; layers of one name have the same ones."""
    whole: dict[trees.Path, Any] = {}
    for name, tree in branches:
        whole |= {((*trees.path_of(name), *path) if name else path): leaf for path, leaf in trees.leaves(tree)}
    return trees.from_leaves(whole.items())


def _branch(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The branch of a child; an operator without arrays may have the name of an array."""
    found = trees.find(tree, trees.path_of(name))
    return found if isinstance(found, Mapping) else {}


def _with_branch(tree: Mapping[str, Any], path: trees.Path, branch: Mapping[str, Any]) -> Mapping[str, Any]:
    key, *rest = path
    return {**tree, key: _with_branch(tree.get(key, {}), tuple(rest), branch) if rest else branch}


def _tuple(values: Any) -> tuple[Any, ...]:
    return values if isinstance(values, tuple) else (values,)


@dataclass(frozen=True, init=False)
class _Several(_Container):
    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer):
        object.__setattr__(self, "layers", _flat(layers))

    def children(self) -> tuple[tuple[str, Layer], ...]:
        return tuple((str(i), child) for i, child in enumerate(self.layers))

    def with_children(self, layers: Sequence[Layer]) -> Self:
        return type(self)(*layers)


def _flat(layers: tuple[Any, ...]) -> tuple[Layer, ...]:
    """Accepts `Chain(a, b)` and `Chain((a, b))`, the form that saved models use."""
    found = layers[0] if len(layers) == 1 and isinstance(layers[0], tuple | list) else layers
    for layer in found:
        if not isinstance(layer, Layer):
            raise InvalidModelError(f"a container takes layers, not {type(layer).__name__}")
    return tuple(found)


@dataclass(frozen=True, init=False)
class Chain(_Several):
    """Layers one after the other; several outputs of one are the inputs of the next.

    Arguments:
        layers: any number of them.
        names: of their branches, "0", "1", … by default. Layers of the same name share their arrays; one with an empty
            name has its arrays in the chain's own tree.
    """

    names: tuple[str, ...] = ()

    def __init__(self, *layers: Layer, names: Sequence[str] = ()):
        object.__setattr__(self, "layers", _flat(layers))
        usual = tuple(str(i) for i in range(len(self.layers)))
        if names and len(names) != len(self.layers):
            raise InvalidModelError(f"Chain: {len(names)} names for {len(self.layers)} layers")
        object.__setattr__(self, "names", () if tuple(names) == usual else tuple(names))

    def children(self) -> tuple[tuple[str, Layer], ...]:
        return tuple(zip(self.names, self.layers, strict=True)) if self.names else super().children()

    def with_children(self, layers: Sequence[Layer]) -> Self:
        return type(self)(*layers, names=self.names)

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
    """connection(layer(x), x), or connection(layer(x), shortcut(x)): a residual block if the connection adds.

    Arguments:
        layer: the inner layer, branch "layer". It gets all inputs, the shortcut the first.
        connection: an operator of two inputs, e.g. Operator("Add") or Operator.of("Concat", axis=1).
        shortcut: a layer on the way around, branch "shortcut"; None for the input itself.
        shortcut_first: whether the shortcut is the connection's first operand.
        names: other names of the two branches.
    """

    layer: Layer
    connection: Operator = _ADD
    shortcut: Layer | None = None
    shortcut_first: bool = False
    names: tuple[str, str] = ("layer", "shortcut")

    def children(self) -> tuple[tuple[str, Layer], ...]:
        around = () if self.shortcut is None else ((self.names[1], self.shortcut),)
        return ((self.names[0], self.layer), *around)

    def with_children(self, layers: Sequence[Layer]) -> Self:
        return replace(self, layer=layers[0], shortcut=layers[1] if len(layers) > 1 else None)

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        y, states = self.run(op, self.names[0], self.layer, params, states, inputs, train)
        around: Any = inputs[0]
        if self.shortcut is not None:
            around, states = self.run(op, self.names[1], self.shortcut, params, states, inputs[:1], train)
        operands = (around, y) if self.shortcut_first else (y, around)
        return op.layer(self.connection, {}, {}, *operands, train=train)[0], states


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

    def with_children(self, layers: Sequence[Layer]) -> Self:
        return type(self)(self.connection, *layers)

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

    def with_children(self, layers: Sequence[Layer]) -> Self:
        return replace(self, layer=layers[0])

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        values: Any = inputs
        for _ in range(self.repeats):
            values, states = self.run(op, "layer", self.layer, params, states, _tuple(values), train)
        return values[0] if isinstance(values, tuple) and len(values) == 1 else values, states
