"""The graph: a flat DAG of named nodes, the form of everything imported, and the nested view that people read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

from . import trees
from .errors import InvalidModelError, UnsupportedError
from .interpreter import Interpreter, Value
from .layer import Composite, Layer
from .trees import Path


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module of the source: its path, which call of that module it is (from 0), and its class."""

    path: str
    number: int
    module_class: str


@dataclass(frozen=True)
class ValueInfo:
    """The dtype and shape of a value; an entry of the shape is a size, a dynamic dimension's expression, or None."""

    dtype: str
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


@dataclass(frozen=True)
class Node:
    """One layer at its place in a graph.

    Arguments:
        name: unique within the graph.
        layer: what is computed.
        inputs: names of values, None for an absent optional input.
        outputs: names of the values made.
        params, states: (slot, path) pairs: which stored arrays the layer finds under which name, which is dotted if
            the layer is made of layers. A path under `params` that is not among the model's parameters (a frozen
            weight) is taken from its states.
        scope: the module calls that the node came from, outermost first.
        source: the source's own words for it: an operator, a line of code.
    """

    name: str
    layer: Layer
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    params: tuple[tuple[str, Path], ...] = ()
    states: tuple[tuple[str, Path], ...] = ()
    scope: tuple[ModuleCall, ...] = ()
    source: str = ""

    def place(self) -> str:
        """The node in words for an error: its module path, name and source."""
        module = self.scope[-1].path if self.scope else ""
        return " ".join(part for part in (module, f"({self.name})", self.source and f"at {self.source}") if part)


@dataclass(frozen=True, eq=False)
class Graph(Composite):
    """A layer made of nodes in topological order. Parameters and states are found by their global paths.

    Arguments:
        inputs, outputs: names of values.
        nodes: each after those whose outputs it reads.
        values: what is known of values, by name.

    Returns: the value of `outputs`, a tuple if there are several.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    values: Mapping[str, ValueInfo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        made = set(self.inputs)
        names: set[str] = set()
        for node in self.nodes:
            missing = [i for i in node.inputs if i is not None and i not in made]
            if missing:
                raise InvalidModelError(f"node {node.name!r} reads {missing[0]!r}, which no earlier node makes")
            if node.name in names:
                raise InvalidModelError(f"two nodes are named {node.name!r}")
            names.add(node.name)
            for output in node.outputs:
                if output in made:
                    raise InvalidModelError(f"value {output!r} is made twice (node {node.name!r})")
                made.add(output)
        missing = [o for o in self.outputs if o not in made]
        if missing:
            raise InvalidModelError(f"no node makes the output {missing[0]!r}")

    @cached_property
    def _key(self) -> tuple[Any, ...]:
        return (self.inputs, self.outputs, self.nodes, tuple(self.values.items()))

    @cached_property
    def _hash(self) -> int:
        return hash(self._key)

    def __hash__(self) -> int:
        return self._hash  # thousands of nodes: computed once, a graph is a key of compiled functions

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Graph) and self._hash == other._hash and self._key == other._key)

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        if len(inputs) != len(self.inputs):
            raise InvalidModelError(
                f"{len(self.inputs)} inputs are needed ({', '.join(self.inputs)}), not {len(inputs)}"
            )
        environment: dict[str | None, Value] = {None: None, **dict(zip(self.inputs, inputs, strict=True))}
        outer, op.known = op.known, self.values
        try:
            written = execute(self.nodes, op, params, states, environment, train=train)
        finally:
            op.known = outer
        results = tuple(environment[o] for o in self.outputs)
        return (results[0] if len(results) == 1 else results), trees.updated(states, written) if written else states

    def paths(self) -> dict[Path, None]:
        """The paths of all parameters and states that nodes use, in order."""
        return dict.fromkeys(path for node in self.nodes for _, path in (*node.params, *node.states))

    def pruned(self) -> Graph:
        """Without the nodes whose results nothing reads; writes to states are kept, but for the seeds of random
        numbers."""
        live, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if live.intersection(node.outputs) or any(slot != "seed" for slot, _ in node.states):
                live.update(i for i in node.inputs if i is not None)
                kept.append(node)
        names = {name for node in kept for name in node.outputs} | set(self.inputs)
        return replace(self, nodes=tuple(reversed(kept)), values={k: v for k, v in self.values.items() if k in names})

    def depth(self) -> int:
        """The number of computing nodes on the longest path from an input to an output."""
        level: dict[str, int] = dict.fromkeys(self.inputs, 0)
        for node in self.nodes:
            below = max((level.get(i, 0) for i in node.inputs if i is not None), default=0)
            level.update(dict.fromkeys(node.outputs, below + bool(node.inputs)))
        return max((level[o] for o in self.outputs), default=0)

    def children(self) -> tuple[tuple[str, Layer], ...]:
        return tuple((node.name, node.layer) for node in self.nodes)

    def with_children(self, layers: Sequence[Layer]) -> Self:
        pairs = zip(self.nodes, layers, strict=True)
        return replace(self, nodes=tuple(replace(node, layer=layer) for node, layer in pairs))

    def binds_one(self) -> bool:
        return len(self.nodes) == 1 and (self.inputs, self.outputs) == (self.nodes[0].inputs, self.nodes[0].outputs)

    def nested(self) -> tuple[Node | Call, ...]:
        """The nodes grouped by the module calls they came from; `flattened` reverses it."""
        return _nested(self.nodes, 0)


def execute(
    nodes: Iterable[Node],
    op: Interpreter,
    params: Mapping[str, Any],
    states: Mapping[str, Any],
    environment: dict[str | None, Value],
    *,
    train: bool,
) -> dict[Path, Value]:
    """Executes nodes in their order.

    Arguments:
        op: the interpreter.
        params, states: trees of all arrays.
        environment: values by name; the nodes' outputs are entered.

    Returns: the states that were written, by path.
    """
    written: dict[Path, Value] = {}

    def stored(path: Path, *collections: Mapping[str, Any]) -> Value:
        if path in written:
            return written[path]
        for collection in collections:
            if (value := trees.find(collection, path)) is not None:
                return value
        raise InvalidModelError(f"there is no parameter or state {trees.name_of(path)!r}")

    for node in nodes:
        own_params: Mapping[str, Any] = {slot: stored(path, params, states) for slot, path in node.params}
        own_states: Mapping[str, Any] = {slot: stored(path, states, params) for slot, path in node.states}
        is_nested = isinstance(node.layer, Composite)
        if is_nested:
            own_params, own_states = (_tree_of(slots) for slots in (own_params, own_states))
        arguments = [environment[i] for i in node.inputs]
        outputs, new = op.node(node, own_params, own_states, arguments, train=train)
        for slot, path in node.states:
            place = trees.path_of(slot) if is_nested else (slot,)
            value = trees.find(new, place)
            if value is not None and value is not trees.find(own_states, place):
                written[path] = value
        environment.update(zip(node.outputs, outputs, strict=True))
    return written


def _tree_of(slots: Mapping[str, Value]) -> trees.Tree:
    return trees.from_leaves((trees.path_of(slot), value) for slot, value in slots.items())


@dataclass(frozen=True)
class Call:
    """A module call of the nested view: what it called, and its nodes and inner calls."""

    module: ModuleCall
    body: tuple[Node | Call, ...]


def _nested(nodes: Iterable[Node], depth: int) -> tuple[Node | Call, ...]:
    """Consecutive nodes of one module call become one Call."""
    runs: list[tuple[ModuleCall | None, list[Node]]] = []
    for node in nodes:
        call = node.scope[depth] if len(node.scope) > depth else None
        if call is not None and runs and runs[-1][0] == call:
            runs[-1][1].append(node)
        else:
            runs.append((call, [node]))
    return tuple(body[0] if call is None else Call(call, _nested(body, depth + 1)) for call, body in runs)


def flattened(view: Iterable[Node | Call]) -> tuple[Node, ...]:
    """The nodes of a nested view in their order."""
    return tuple(node for item in view for node in (flattened(item.body) if isinstance(item, Call) else (item,)))


@dataclass(frozen=True)
class ByMode(Composite):
    """Two layers of the same inputs, outputs and arrays: a source whose code differs between training and
    evaluation."""

    training: Layer
    evaluation: Layer

    def children(self) -> tuple[tuple[str, Layer], ...]:
        return (("training", self.training), ("evaluation", self.evaluation))

    def with_children(self, layers: Sequence[Layer]) -> Self:
        return type(self)(*layers)

    def __getitem__(self, key: str | int) -> Layer:
        """The layer at a key in evaluation, unless it is the name of a mode."""
        if key in ("training", "evaluation") or not isinstance(self.evaluation, Composite):
            return super().__getitem__(key)
        return self.evaluation[key]

    def replaced(self, key: str | int, layer: Layer) -> Self:
        """As in every composite layer; in both modes, unless the key is the name of one."""
        if key in ("training", "evaluation"):
            return super().replaced(key, layer)
        both = (self.training, self.evaluation)
        return self.with_children([mode.replaced(key, layer) if isinstance(mode, Composite) else mode for mode in both])

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        return op.layer(self.training if train else self.evaluation, params, states, *inputs, train=train)


@dataclass(frozen=True)
class Unavailable(Layer):
    """In place of a layer that a source has only in the other mode: refuses, with the reason."""

    reason: str

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        raise UnsupportedError(self.reason)


def graph_of(layer: Layer) -> Graph | None:
    """The graph of an imported model in evaluation; None for layers built by hand."""
    if isinstance(layer, ByMode):
        layer = layer.evaluation
    return layer if isinstance(layer, Graph) else None
