"""Compiled models: what follows from the inputs' shapes is one program of XLA, what depends on their data comes after.

A program is made for each combination of input shapes. Parameters are constants while it is traced, so that whatever is
computed from them alone (a transposed or packed weight, a folded scale) is computed once, with numpy; the large ones
then become arguments that stay on the device. Nodes that need concrete values (`DataDependent`: sizes that depend on
data, sequences, texts), and all that depends on them, are executed one by one afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from ...ir import trees
from ...ir.errors import UnsupportedError
from ...ir.graph import Graph, Node, execute, graph_of
from ...ir.layer import Layer
from ...ir.layers import Operator
from ...ir.layers.control import Control
from ...ir.model import Model
from ...ir.trees import Tree
from ..runner import Runner, refuse_written_states, run_in
from .inference import COMPILER_OPTIONS, WIDE_VECTORS, InferenceInterpreter, Packs, memory
from .interpreter import JaxInterpreter
from .item_by_item import item_by_item
from .primitives import PRIMITIVES
from .primitives.registry import NOTHING, DataDependent, is_text, is_traced

PROGRAMS = 64  # the last ones used are kept; each input shape has its own
LITERAL = 1024  # elements; larger constants are arguments of the program
Value = Any


class _Late:
    """In place of a value that is not known before the program has run."""

    dtype = None


_LATE = _Late()


class _Sorter:
    """Stands for the interpreter while a graph is traced: puts off the nodes that need concrete values."""

    def __init__(self, op: JaxInterpreter):
        self._op = op
        self.late: list[Node] = []

    def node(
        self, node: Node, params: Mapping[str, Any], states: Mapping[str, Any], inputs: Sequence[Value], *, train: bool
    ) -> tuple[tuple[Value, ...], Mapping[str, Any]]:
        if not any(value is _LATE for value in inputs):
            try:
                return self._op.node(node, params, states, inputs, train=train)
            except DataDependent:
                pass  # it is executed later, on concrete values
        self.late.append(node)
        return (_LATE,) * len(node.outputs), states


@dataclass
class _Program:
    """What one combination of input shapes needs.

    Arguments:
        executable: takes the arguments and the inputs.
        arguments: large constants, on the device.
        traced: names of the values that the executable returns.
        static: values that were known while tracing.
        late: the nodes that are executed afterwards.
    """

    executable: Any
    arguments: list[jax.Array]
    traced: list[str]
    static: dict[str | None, Value]
    late: list[Node] = field(default_factory=list)


class JaxRunner(Runner):
    """A model compiled by XLA, one program for each combination of input shapes. Parameters stay on the device.

    Arguments:
        model: any model with a signature.
        device: cpu or cuda.
    """

    backend = "jax"

    def __init__(self, model: Model, device: str = "cpu"):
        super().__init__(model, device)
        try:
            self._device = jax.devices("gpu" if device == "cuda" else device)[0]
        except RuntimeError:
            raise UnsupportedError(
                f"JAX has no device {device!r} here; use device='cpu', or install JAX's plugin for it"
            ) from None
        graph = graph_of(model.layer)
        if graph is None:
            graph = _graph_of_one(model)
        check_supported(graph)
        self._graph = graph
        self._params, self._states = (trees.map_leaves(np.asarray, tree) for tree in (model.params, model.states))
        self._programs: dict[Any, _Program] = {}
        self._packs = Packs()
        self._constants: dict[Any, tuple[np.ndarray, jax.Array]] = {}  # on the device, shared by the programs

    def run(self, arrays: list[Any]) -> tuple[Any, ...]:
        with run_in(self.backend), jax.enable_x64(True), np.errstate(all="ignore"):  # numpy computes here as XLA does
            program = self._program(arrays)
            inputs = [a for a in arrays if _is_tensor(a)]
            made = program.executable(program.arguments, inputs)
            values: dict[str | None, Value] = dict(zip(program.traced, made, strict=True))
            if program.late:
                values.update(program.static)
                values.update((name, _concrete(a)) for name, a in zip(self._graph.inputs, arrays, strict=True))
                self._execute(program.late, JaxInterpreter(self._graph.values), values)
                return tuple(_result(values[name]) for name in self._graph.outputs)
            return tuple(
                _result(values[name] if name in values else program.static[name]) for name in self._graph.outputs
            )

    def _execute(self, nodes: Sequence[Node], op: Any, values: dict[str | None, Value]) -> None:
        written = execute(nodes, op, self._params, self._states, values, train=False)
        refuse_written_states(self._states, trees.updated(self._states, written))

    def _program(self, arrays: list[Any]) -> _Program:
        key = tuple((a.shape, a.dtype.name) if _is_tensor(a) else None for a in arrays)
        program = self._programs.pop(key, None) or self._build(arrays)
        self._programs[key] = program  # the last one used stands last
        if len(self._programs) > PROGRAMS:
            del self._programs[next(iter(self._programs))]
        return program

    def _build(self, arrays: list[Any]) -> _Program:
        graph = self._graph
        on_cpu = self._device.platform == "cpu"
        op = InferenceInterpreter(graph.values, self._packs) if on_cpu else JaxInterpreter(graph.values)
        program = _Program(None, [], [], {})

        def trace(*tensors: Value) -> list[Value]:
            given = iter(tensors)
            values: dict[str | None, Value] = {None: None}
            values.update(
                (name, next(given) if _is_tensor(a) else _LATE) for name, a in zip(graph.inputs, arrays, strict=True)
            )
            sorter = _Sorter(op)
            self._execute(graph.nodes, sorter, values)
            program.late = sorter.late
            read = dict.fromkeys((*graph.outputs, *(i for node in sorter.late for i in node.inputs if i is not None)))
            found = {name: op.plain(values[name]) for name in read if values[name] is not _LATE}
            found = {name: value for name, value in found.items() if name not in graph.inputs or not sorter.late}
            program.static = {n: v for n, v in found.items() if not is_traced(v)} | {None: None}
            program.traced = [n for n in found if n not in program.static]
            return [found[n] for n in program.traced]

        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays if _is_tensor(a)]
        closed, returned = jax.make_jaxpr(trace, return_shape=True)(*shapes)
        structure = jax.tree.structure(returned)  # sequences are lists
        large = [i for i, c in enumerate(closed.consts) if np.size(c) > LITERAL]
        places = {i: k for k, i in enumerate(large)}
        loop = item_by_item(closed) if isinstance(op, InferenceInterpreter) and op.convolves else None

        def compute(arguments: list[Value], inputs: list[Value]) -> list[Value]:
            constants = [arguments[places[i]] if i in places else c for i, c in enumerate(closed.consts)]
            flat = loop(constants, inputs) if loop else jax.core.eval_jaxpr(closed.jaxpr, constants, *inputs)
            return jax.tree.unflatten(structure, flat)

        program.arguments = [self._on_device(closed.consts[i]) for i in large]
        place = SingleDeviceSharding(self._device)
        jitted = jax.jit(compute, in_shardings=place, out_shardings=place)
        options = None
        if isinstance(op, InferenceInterpreter):
            options = COMPILER_OPTIONS | (WIDE_VECTORS if op.wide_vectors else {})
        program.executable = jitted.lower(program.arguments, shapes).compile(options)
        return program

    def _on_device(self, constant: Any) -> jax.Array:
        array = np.asarray(getattr(constant, "val", constant))  # JAX wraps constants of numpy that it traces, in views
        key = memory(array)
        if key not in self._constants:
            self._constants[key] = array, jax.device_put(array, self._device)
        return self._constants[key][1]


def _is_tensor(value: Any) -> bool:
    """Whether an input is an array that XLA takes."""
    return isinstance(value, np.ndarray) and not is_text(value)


def _concrete(value: Any) -> Value:
    return NOTHING if value is None else value


def _result(value: Value) -> Any:
    """A value as callers get it: arrays of numpy, lists of them, None for an optional without element."""
    if value is None or value is NOTHING:
        return None
    if isinstance(value, list):
        return [_result(item) for item in value]
    return value if isinstance(value, dict) else np.asarray(value)


class _Whole(Layer):
    """A layer built by hand with its arrays, as the one node of a graph."""

    def __init__(self, layer: Layer, params: Tree, states: Tree):
        object.__setattr__(self, "_parts", (layer, params, states))

    def forward(self, op: Any, params: Any, states: Any, *inputs: Value, train: bool) -> tuple[Any, Any]:
        layer, params, own = self._parts  # type: ignore[attr-defined]
        y, new = op.layer(layer, params, own, *inputs, train=train)
        refuse_written_states(own, new)
        return y, states


def _graph_of_one(model: Model) -> Graph:
    signature = model.require_signature()
    inputs = tuple(spec.name for spec in signature.inputs)
    outputs = tuple(f"{spec.name} (output {i})" for i, spec in enumerate(signature.outputs))
    whole = _Whole(model.layer, model.params, model.states)
    return Graph(inputs, outputs, (Node("model", whole, inputs, outputs),))


def check_supported(graph: Graph) -> None:
    """Raises UnsupportedError with every operator of a graph that JAX has no primitive for."""
    missing = list(_missing(graph))
    if missing:
        raise UnsupportedError("the JAX backend has no primitive for these operators", missing)


def _missing(graph: Graph) -> list[str]:
    found = []
    for node in graph.nodes:
        if isinstance(node.layer, Operator) and node.layer.op_type not in PRIMITIVES:
            found.append(f"{node.layer.op_type} {node.place()}")
        if isinstance(node.layer, Control):
            found += [item for _, inner in node.layer.graphs() for item in _missing(inner)]
    return found
