"""Models of which the fused engine takes a part: onnxruntime computes the rest.

The nodes of the graph are put into stages, native ones and others in turn, so that each reads only what earlier stages
made. What is known without the inputs (shapes, constants) is computed in every stage that needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...ir import trees
from ...ir.errors import UnsupportedError
from ...ir.graph import Graph, Node, execute, graph_of
from ...ir.interpreter import Interpreter
from ...ir.model import Model, Signature, TensorSpec
from .builder import Builder, is_missing
from .program import arrangement, dtype_of, kind_of, program_of
from .tensors import Buffer, Tensor, whole

NATIVE, OTHER = "fused", "onnxruntime"


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a model that one backend computes.

    Arguments:
        backend: fused or onnxruntime.
        model: its inputs and outputs are named as values of the whole graph.
        layers: its nodes, in words.
        reasons: why the fused engine does not take them, for those that it refuses.
    """

    backend: str
    model: Model
    layers: tuple[str, ...]
    reasons: tuple[str, ...] = ()


def split(model: Model) -> list[Part]:
    """The parts of a model in an order in which they can be computed; one of onnxruntime if there is nothing to split.

    Raises what `program_of` raises for a model without a signature.
    """
    signature = model.require_signature()
    graph = graph_of(model.layer)
    everything = [Part(OTHER, model, (type(model.layer).__name__,))]
    if graph is None:
        return everything
    graph = graph.pruned()
    everything = [Part(OTHER, model, tuple(node.place() for node in graph.nodes))]
    try:
        kinds = [kind_of(spec, True) for spec in signature.inputs]
        scout = _Scout(dtype_of(kinds, model.params, model.states), graph)
        inputs = [
            whole(Buffer(int(np.prod(k.shape, dtype=np.int64)), k.dtype, i), k.shape, k.dtype, 0)
            for i, k in enumerate(kinds)
        ]
    except UnsupportedError as error:
        return [replace(everything[0], reasons=(str(error),))]
    environment: dict[str | None, Any] = {None: None, **dict(zip(graph.inputs, inputs, strict=True))}
    execute(graph.nodes, scout, model.params, model.states, environment, train=False)
    found = _Splitting(model, graph, scout, environment)
    while True:
        parts = found.parts()
        if parts is None:
            return [replace(everything[0], reasons=tuple(scout.refused.values()))]
        failed = [part for part in parts if part.backend == NATIVE and not found.taken(part)]
        if not failed:
            return parts


class _Scout(Builder):
    """Records a graph and notes which nodes are refused."""

    def __init__(self, dtype: np.dtype[Any], graph: Graph):
        super().__init__(dtype, graph)
        self.refused: dict[str, str] = {}

    def node(
        self, node: Node, params: Mapping[str, Any], states: Mapping[str, Any], inputs: Sequence[Any], *, train: bool
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        self._node = node
        try:
            if any(is_missing(i) for i in inputs):
                raise UnsupportedError(f"it is not known what {node.place()} reads")
            return Interpreter.node(self, node, params, states, inputs, train=train)
        except UnsupportedError as error:
            self.refused[node.name] = f"{node.layer!r} {node.place()}: {error}"
            return self.stand_ins(node), states


class _Splitting:
    """Where the nodes of a graph are computed; nodes are refused until all native parts can be made."""

    def __init__(self, model: Model, graph: Graph, scout: _Scout, values: Mapping[str | None, Any]):
        self._model, self._graph, self._scout, self._values = model, graph, scout, values
        self._maker = {name: node for node in graph.nodes for name in node.outputs}
        self._batch = next((s.shape[0] for s in model.require_signature().inputs if s.shape), None)

    def _is_free(self, node: Node) -> bool:
        """Whether its results are known numbers, which every part computes for itself."""
        if node.name in self._scout.refused or set(node.outputs) & set(self._graph.outputs):
            return False
        return all(isinstance(self._values[name], np.ndarray) for name in node.outputs)

    def _is_native(self, node: Node) -> bool:
        return node.name not in self._scout.refused

    def _needed(self, names: Iterable[str | None]) -> tuple[set[str], set[str]]:
        """The values that parts pass to each other which values follow from, and the known nodes in between."""
        passed: set[str] = set()
        free: set[str] = set()
        open_ = [name for name in names if name is not None]
        while open_:
            name = open_.pop()
            maker = self._maker.get(name)
            if maker is None or not self._is_free(maker):
                passed.add(name)
            elif maker.name not in free:
                free.add(maker.name)
                open_ += [i for i in maker.inputs if i is not None]
        return passed, free

    def _can_leave(self, name: str) -> bool:
        """Whether a native part can have a value as its output."""
        value = self._values[name]
        if not isinstance(value, Tensor) or value.dtype != self._scout.dtype:
            return False
        return value.axis is not None and value.batch_rank()[0] == 1 and arrangement(value) is None

    def parts(self) -> list[Part] | None:
        """The parts; None if they cannot be told apart because too little is known of the values between them."""
        while True:
            stages = self._stages()
            again = False
            for node, stage in stages.items():
                crossing = [name for name in node.outputs if self._crosses(name, stage, stages)]
                if stage % 2 == 0 and not all(map(self._can_leave, crossing)):
                    self._scout.refused[node.name] = f"{node.layer!r} {node.place()}: its result cannot be passed on"
                    again = True
            if not again:
                break
        made = [self._part(number, stages) for number in sorted(set(stages.values()))]
        return None if any(part is None for part in made) else [part for part in made if part is not None]

    def _stages(self) -> dict[Node, int]:
        """The stage of each node that is not free: even ones are native."""
        stages: dict[Node, int] = {}
        for node in self._graph.nodes:
            if self._is_free(node):
                continue
            kind = 0 if self._is_native(node) else 1
            passed, _ = self._needed(node.inputs)
            before = [stages[self._maker[name]] for name in passed if name in self._maker]
            stages[node] = max((s + (s % 2 != kind) for s in before), default=kind)
        return stages

    def _crosses(self, name: str, stage: int, stages: Mapping[Node, int]) -> bool:
        if name in self._graph.outputs:
            return True
        return any(other != stage and name in self._needed(node.inputs)[0] for node, other in stages.items())

    def _part(self, number: int, stages: Mapping[Node, int]) -> Part | None:
        own = [node for node, stage in stages.items() if stage == number]
        names = {node.name for node in own}
        passed, free = self._needed(i for node in own for i in node.inputs)
        nodes = tuple(node for node in self._graph.nodes if node.name in names or node.name in free)
        made = [name for node in own for name in node.outputs]
        outputs = tuple(name for name in made if self._crosses(name, number, stages))
        inputs = tuple(name for name in self._order() if name in passed and name not in made)
        taken, given = ([s for name in port if (s := self._spec(name))] for port in (inputs, outputs))
        if len(taken) < len(inputs) or len(given) < len(outputs):
            return None
        graph = Graph(inputs, outputs, nodes, self._graph.values)
        paths = graph.paths()
        params, states = (
            trees.from_leaves((path, leaf) for path in paths if (leaf := trees.find(tree, path)) is not None)
            for tree in (self._model.params, self._model.states)
        )
        signature = Signature(tuple(taken), tuple(given), self._model.require_signature().dims)
        model = Model(graph, params, states, signature, metadata=self._model.metadata)
        reasons = tuple(self._scout.refused[node.name] for node in own if node.name in self._scout.refused)
        return Part(OTHER if number % 2 else NATIVE, model, tuple(node.place() for node in own), reasons)

    def _order(self) -> list[str]:
        return [*self._graph.inputs, *(name for node in self._graph.nodes for name in node.outputs)]

    def _spec(self, name: str) -> TensorSpec | None:
        if name in self._graph.inputs:
            own = self._model.require_signature().inputs[self._graph.inputs.index(name)]
            return replace(own, name=name)
        info, value = self._graph.values.get(name), self._values[name]
        if info is not None:
            return TensorSpec(name, info.dtype, info.shape)
        if isinstance(value, Tensor) and self._can_leave(name):
            return TensorSpec(name, value.dtype.name, (self._batch, *value.shape[1:]))
        return None

    def taken(self, part: Part) -> bool:
        """Whether the engine takes a part; if not its nodes are refused from now on."""
        try:
            program_of(part.model)
        except UnsupportedError as error:
            graph = graph_of(part.model.layer)
            for node in graph.nodes if graph is not None else ():
                if not self._is_free(node):
                    self._scout.refused[node.name] = f"{node.layer!r} {node.place()}: {error}"
            return False
        return True
