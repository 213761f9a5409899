"""The importers' interpreter: executes lowerings by recording a graph.

A lowering is written against the same `op` as a layer's forward: `op.Relu(x)` records an Operator node, `op.add(layer,
…)` a node with a layer of the IR.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..ir.errors import UnsupportedError
from ..ir.graph import Graph, ModuleCall, Node, ValueInfo
from ..ir.inference import output_dtype
from ..ir.interpreter import Interpreter
from ..ir.layer import Layer
from ..ir.layers import ArrayData, Constant, Operator, Stored
from ..ir.layers.control import Control
from ..ir.trees import Path, name_of

Shape = tuple[int | str | None, ...]
LARGEST_CONSTANT = 64  # elements; larger ones become states


@dataclass(eq=False)
class Value:
    """A value of the graph being built.

    Arguments:
        dtype: numpy's.
        shape: sizes or names of dimensions; None if unknown.
        name: settled when the graph is complete.
        path: of the stored array that this is, as long as no node has read it.
        array: of a constant.
        container: "" for a tensor, else as in `TensorSpec.container`; dtype and shape are those of its tensors.
    """

    dtype: np.dtype[Any]
    shape: Shape | None = None
    name: str = ""
    path: Path | None = None
    array: np.ndarray | None = None
    container: str = ""


@dataclass(eq=False)
class _Record:
    name: str
    layer: Layer
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    params: tuple[tuple[str, Path], ...]
    states: tuple[tuple[str, Path], ...]
    scope: tuple[ModuleCall, ...]
    source: str


@dataclass(frozen=True)
class Place:
    """Where in the source the present nodes come from: a name for them, module calls, and the source's own words."""

    name: str
    scope: tuple[ModuleCall, ...] = ()
    source: str = ""


@dataclass(eq=False)
class _Body:
    head: list[_Record] = field(default_factory=list)  # constants and stored arrays, outside all scopes
    nodes: list[_Record] = field(default_factory=list)


class GraphBuilder(Interpreter):
    """Records a graph. `extra_states` collects the constants that are too large for the graph itself."""

    name: ClassVar[str] = "the graph builder"

    def __init__(self, extra_states: dict[Path, np.ndarray] | None = None, branch: str = "constants") -> None:
        """`extra_states` may be shared by the graphs of one model; `branch` is the key under which they are stored."""
        super().__init__()
        self.inputs: list[Value] = []
        self.extra_states = {} if extra_states is None else extra_states
        self._branch = branch
        self._body = _Body()
        self._constants: dict[tuple[Any, ...], Value] = {}
        self._read: dict[Path, Value] = {}
        self._rewritten: set[Path] = set()
        self._place = Place("")
        self._names: set[str] = set()

    # --- what the importer says

    def input(self, name: str, dtype: Any, shape: Shape | None, container: str = "") -> Value:
        """An input of the graph."""
        value = Value(np.dtype(dtype), shape, self._unique(name), container=container)
        self.inputs.append(value)
        return value

    @staticmethod
    def stored(path: Path, array: Any) -> Value:
        """A stored parameter or state."""
        return Value(np.dtype(array.dtype), tuple(array.shape), path=path)

    @contextmanager
    def at(self, place: Place) -> Iterator[None]:
        """Nodes recorded inside come from this place."""
        outer, self._place = self._place, place
        try:
            yield
        finally:
            self._place = outer

    def add(
        self,
        layer: Layer,
        *inputs: Value | None,
        params: Mapping[str, Value | None] | None = None,
        states: Mapping[str, Value | None] | None = None,
        outputs: int = 1,
        dtype: Any = None,
    ) -> Any:
        """Records a layer bound to stored arrays. Returns its output, a tuple if `outputs` is not 1.

        Arguments:
            params, states: stored arrays by the layer's slots; None entries are left out. If one is a computed value
                (a normalised weight), the layer's definition is recorded in primitives instead.
            dtype: of the outputs; None for that of the first input.
        """
        bound = {slot: v for slot, v in (params or {}).items() if v is not None}
        kept = {slot: v for slot, v in (states or {}).items() if v is not None}
        computed = [slot for slot, v in (*bound.items(), *kept.items()) if v.path is None]
        if computed:
            if hasattr(layer, "mode"):
                raise UnsupportedError(
                    f"{type(layer).__name__} with a computed {computed[0]} cannot keep its training mode"
                )
            values = {slot: self.read(v) for slot, v in bound.items()}
            result, _ = layer.forward(self, values, kept, *inputs, train=False)
            return result
        first = next((i for i in inputs if i is not None), None)
        kind = np.dtype(dtype) if dtype is not None else first.dtype if first is not None else np.dtype(np.float32)
        made = tuple(Value(kind) for _ in range(outputs))
        self._record(layer, [None if i is None else self.read(i) for i in inputs], made, bound, kept)
        for value in kept.values():  # the layer may write to them: who reads them later reads what it wrote
            if value.path is not None:
                self._rewritten.add(value.path)
                self._read.pop(value.path, None)
        return made[0] if outputs == 1 else made

    def read(self, value: Value) -> Value:
        """The value, as a node's output if it is a stored array."""
        if value.path is None:
            return value
        if value.path not in self._read:
            made = Value(value.dtype, value.shape, name_of(value.path))
            self._read[value.path] = made
            late = value.path in self._rewritten
            scope = self._place.scope if late else ()
            record = _Record("", Stored(), (), (made,), (("value", value.path),), (), scope, "")
            (self._body.nodes if late else self._body.head).append(record)
        return self._read[value.path]

    def named(self, value: Value, name: str, shape: Shape | None) -> Value:
        """Gives a value its name and shape, unless it has them already (it passed through unchanged)."""
        if value.path is None:
            value.name = value.name or name
            value.shape = shape if value.shape is None else value.shape
        return value

    def build(self, outputs: Sequence[Value]) -> Graph:
        """The graph of what was recorded, without what nothing reads."""
        results = [self.read(value) for value in outputs]
        records = [*self._body.head, *self._body.nodes]
        settled = {id(v) for v in self.inputs}
        for record in records:
            for i, value in enumerate(record.outputs):
                if id(value) not in settled:
                    value.name = self._unique(value.name or f"{record.name}.{i}")
                    settled.add(id(value))
        names: dict[str, int] = {}
        nodes = []
        for record in records:
            wish = record.name or (record.outputs[0].name if record.outputs else "node")
            names[wish] = names.get(wish, -1) + 1
            name = f"{wish}.{names[wish]}" if names[wish] else wish
            ins = tuple(None if v is None else v.name for v in record.inputs)
            outs = tuple(v.name for v in record.outputs)
            nodes.append(Node(name, record.layer, ins, outs, record.params, record.states, record.scope, record.source))
        known = [*self.inputs, *(v for record in records for v in record.outputs)]
        values = {v.name: ValueInfo(v.dtype.name, v.shape) for v in known if v.shape is not None and not v.container}
        graph = Graph(tuple(v.name for v in self.inputs), tuple(v.name for v in results), tuple(nodes), values)
        return graph.pruned()

    # --- the interpreter

    def const(self, array: Any, like: Value | None = None) -> Value:
        array = np.asarray(array) if like is None else np.asarray(array).astype(like.dtype)
        data = ArrayData.of(array)
        key = (data.dtype, data.shape, data.data)
        if key not in self._constants:
            made = Value(data.array().dtype, array.shape, array=data.array())
            if array.size > LARGEST_CONSTANT and data.dtype != "object":  # texts are stored in the graph
                made.path = (self._branch, str(len(self.extra_states)))
                self.extra_states[made.path] = array
            else:
                made.name = f"constant.{len(self._constants)}"
                self._body.head.append(_Record(made.name, Constant(data), (), (made,), (), (), (), ""))
            self._constants[key] = made
        return self._constants[key]

    def dtype_of(self, value: Value) -> np.dtype[Any]:
        return value.dtype

    def shape_of(self, value: Value) -> Shape | None:
        return value.shape

    def call(self, op_type: str, inputs: Sequence[Value | None], attributes: dict[str, Any], outputs: int) -> Any:
        layer = Operator.of(op_type, outputs=outputs, **{k: v for k, v in attributes.items() if v is not None})
        read = [None if v is None else self.read(v) for v in inputs]
        given = [None if v is None else v.dtype for v in read]
        made = tuple(Value(output_dtype(op_type, i, given, attributes)) for i in range(outputs))
        if op_type in ("Cast", "Identity", "StopGradient") and read[0] is not None:
            made[0].shape = read[0].shape
        self._record(layer, read, made, {}, {})
        return made[0] if outputs == 1 else made

    def control(self, layer: Control, inputs: Sequence[Value | None], *, train: bool) -> tuple[Value, ...]:
        made = self.add(layer, *inputs, outputs=layer.outputs)
        return (made,) if layer.outputs == 1 else made

    def _record(
        self,
        layer: Layer,
        inputs: Sequence[Value | None],
        outputs: tuple[Value, ...],
        params: Mapping[str, Value],
        states: Mapping[str, Value],
    ) -> None:
        def paths(bound: Mapping[str, Value]) -> tuple[tuple[str, Path], ...]:
            return tuple((slot, v.path) for slot, v in bound.items() if v.path is not None)

        place = self._place
        record = _Record(
            place.name, layer, tuple(inputs), outputs, paths(params), paths(states), place.scope, place.source
        )
        self._body.nodes.append(record)

    def _unique(self, wish: str) -> str:
        name, k = wish, 1
        while name in self._names:
            name, k = f"{wish}.{k}", k + 1
        self._names.add(name)
        return name

    def where(self) -> str:
        module = self._place.scope[-1].path if self._place.scope else ""
        words = " ".join(w for w in (module, self._place.name) if w)
        return f" (in {words})" if words else ""
