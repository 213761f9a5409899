"""The ONNX interpreter: emits nodes for the primitives a model consists of.

Parameters become initialisers under their own names, values keep the names of the graph, and every node carries the
module call that it came from in its metadata (`interlux.scope`, a JSON list of [path, call, class]).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import defs

from ...ir import dtypes, trees, vocabulary
from ...ir.containers import SEQUENCE
from ...ir.errors import UnsupportedError
from ...ir.graph import Graph, Node
from ...ir.inference import output_container, output_dtype
from ...ir.interpreter import EVAL, TRAIN, Interpreter, Override
from ...ir.layer import Layer
from ...ir.layers import ArrayData, Dense, Gradient, HardTanh, Loop, Scan, SequenceMap
from ...ir.layers.control import Control
from ...ir.model import Model
from ..runner import refuse_written_states
from . import opsets
from .assembly import Emission, Emitted, EmittedGraph, EmittedNode, assemble
from .opsets import NeedsOpset
from .tidy import tidy

OLDEST_OPSET = 13
DEFAULT_OPSET = 20  # every runtime in use reads it; raised to what a model needs

_TYPE_STRINGS = {name: text for text, name in dtypes.TYPE_STRINGS.items()}


def type_string(dtype: np.dtype[Any]) -> str:
    """A dtype as ONNX's operator signatures spell it."""
    return _TYPE_STRINGS.get(dtype.name, f"tensor({dtype.name})")


def _dense(
    op: Interpreter, layer: Dense, params: Mapping[str, Any], states: Mapping[str, Any], x: Emitted, *, train: bool
) -> tuple[Emitted, Mapping[str, Any]] | None:
    """One Gemm instead of Transpose, MatMul and Add; Gemm takes matrices only."""
    if x.shape is None or len(x.shape) != 2 or not layer.use_bias:
        return None
    y = op.Gemm(x, params["weight"], params["bias"], transB=0 if layer.in_first else 1)
    return layer.activate(op, y, train=train), states


def _hard_tanh(
    op: Interpreter, layer: HardTanh, params: Mapping[str, Any], states: Mapping[str, Any], x: Emitted, *, train: bool
) -> tuple[Emitted, Mapping[str, Any]]:
    """Clip alone: no gradient flows through an ONNX graph."""
    return layer.limited(op, x), states


# defaults that onnx's own definition of an operator forgets where the attribute is absent
_EXPLICIT: dict[str, dict[str, Any]] = {"MeanVarianceNormalization": {"axes": (0, 2, 3)}}


# values of attributes that are younger than the attribute
_VALUES_SINCE: dict[tuple[str, str, str], int] = {
    ("Pad", "mode", "wrap"): 19,
    ("Resize", "coordinate_transformation_mode", "half_pixel_symmetric"): 19,
    **{(op, "reduction", how): 18 for op in ("ScatterElements", "ScatterND") for how in ("max", "min")},
}


class OnnxInterpreter(Interpreter):
    """Records nodes. `opset` is the version of ai.onnx that they are written in."""

    name: ClassVar[str] = "ONNX"
    overrides: ClassVar[Mapping[type[Layer], Override]] = {
        Dense: Override(_dense, frozenset({TRAIN, EVAL})),
        HardTanh: Override(_hard_tanh, frozenset({EVAL})),
    }

    def __init__(self, opset: int):
        super().__init__()
        self.opset = opset
        self.nodes: list[EmittedNode] = []
        self._constants: dict[ArrayData, Emitted] = {}
        self._node: Node | None = None

    def const(self, array: Any, like: Emitted | None = None) -> Emitted:
        data = ArrayData.of(np.asarray(array) if like is None else np.asarray(array).astype(like.dtype))
        if data not in self._constants:
            array = data.array()
            self._constants[data] = Emitted(array.dtype, array.shape, array=array)
        return self._constants[data]

    def constants(self) -> list[Emitted]:
        """The constants made so far."""
        return list(self._constants.values())

    def own_outputs(self, values: Sequence[Emitted]) -> list[Emitted]:
        """Values as outputs of the present graph: each made by a node of it, and by itself."""
        outputs: list[Emitted] = []
        for value in values:
            own = value.made_by is not None and value.made_by in self.nodes and value not in outputs
            outputs.append(value if own else self.emit("Identity", [value], {}))
        return outputs

    def control(self, layer: Control, inputs: Sequence[Emitted | None], *, train: bool) -> tuple[Emitted, ...]:
        if isinstance(layer, Gradient):
            raise UnsupportedError(
                f"ONNX's Gradient goes by names of the graph around it, none is emitted{self.where()}"
            )
        own, captured = inputs[: layer.own_inputs], inputs[layer.own_inputs :]
        attributes: dict[str, Any] = {}
        if isinstance(layer, Scan):
            attributes["num_scan_inputs"] = layer.scanned
            for name in ("input_axes", "output_axes", "input_directions", "output_directions"):
                attributes[f"scan_{name}"] = getattr(layer, name) or None
        results: list[Emitted] = []
        for name, graph in layer.graphs():
            formals = [self._formal(layer, graph, i, own) for i in range(len(graph.inputs) - len(captured))]
            attributes[name] = self._inner(graph, formals, captured, train)
            results = attributes[name].outputs
        containers = [SEQUENCE if isinstance(layer, SequenceMap) else value.container for value in results]
        made = [
            Emitted(value.dtype, container=container)
            for value, container in zip(results[-layer.outputs :], containers[-layer.outputs :], strict=True)
        ]
        node = EmittedNode(type(layer).__name__, list(own), made, attributes, self.place, self._node)
        self._record(node)
        return tuple(made)

    @staticmethod
    def _formal(layer: Control, graph: Graph, index: int, given: Sequence[Emitted | None]) -> Emitted:
        """An input of an inner graph: of the dtype of what the node is given in its place."""
        name, info = graph.inputs[index], graph.values.get(graph.inputs[index])
        if isinstance(layer, Loop) and index < 2:
            return Emitted(np.dtype((np.int64, bool)[index]), (), name)
        outside = given[index]
        if outside is None:
            raise UnsupportedError(f"input {index} of {type(layer).__name__} is absent")
        container = "" if isinstance(layer, SequenceMap) and layer.sequences[index] else outside.container
        return Emitted(outside.dtype, None if info is None else info.shape, name, container=container)

    def _inner(
        self, graph: Graph, formals: Sequence[Emitted], captured: Sequence[Emitted | None], train: bool
    ) -> EmittedGraph:
        outer, self.nodes = self.nodes, []
        try:
            y, _ = graph.forward(self, {}, {}, *formals, *captured, train=train)
            outputs = self.own_outputs(y if isinstance(y, tuple) else (y,))
            return EmittedGraph(list(formals), self.nodes, outputs)
        finally:
            self.nodes = outer

    def _record(self, node: EmittedNode) -> None:
        for value in node.outputs:
            value.made_by = node
        self.nodes.append(node)

    def dtype_of(self, value: Emitted) -> np.dtype[Any]:
        return value.dtype

    def shape_of(self, value: Emitted) -> tuple[int | str | None, ...] | None:
        return value.shape

    def call(self, op_type: str, inputs: Sequence[Emitted | None], attributes: dict[str, Any], outputs: int) -> Any:
        lowered = opsets.lower(self, op_type, inputs, attributes, outputs)
        return self.emit(op_type, inputs, attributes, outputs) if lowered is None else lowered

    def emit(
        self, op_type: str, inputs: Sequence[Emitted | None], attributes: Mapping[str, Any], outputs: int = 1
    ) -> Any:
        """One node, as the target opset defines the operator."""
        given = [None if value is None else value.dtype for value in inputs]
        kinds = [output_dtype(op_type, i, given, attributes) for i in range(outputs)]
        attributes = {**_EXPLICIT.get(op_type, {}), **attributes}
        kept = self._checked(op_type, inputs, attributes, kinds)
        container = output_container(op_type, [v.container if v is not None else "" for v in inputs], attributes)
        made = [Emitted(kind, container=container) for kind in kinds]
        node = EmittedNode(op_type, list(inputs), made, kept, self.place, self._node)
        self._record(node)
        return made[0] if outputs == 1 else tuple(made)

    def _checked(
        self,
        op_type: str,
        inputs: Sequence[Emitted | None],
        attributes: Mapping[str, Any],
        outputs: Sequence[np.dtype[Any]],
    ) -> dict[str, Any]:
        """The attributes that the operator of the target opset has. Raises UnsupportedError if others are needed."""
        newest = vocabulary.signature(op_type)
        if newest.domain == vocabulary.OWN_DOMAIN:
            raise UnsupportedError(f"ONNX has no operator {op_type}{self.where()}")
        version = newest.since if newest.domain else self.opset
        try:
            schema = defs.get_schema(op_type.removeprefix(f"{newest.domain}."), version, newest.domain)
        except defs.SchemaError:
            raise NeedsOpset(
                f"{op_type} needs opset {newest.since}, {self.opset} is asked for{self.where()}", newest.since
            ) from None
        problem = None
        kept = {}
        for name, value in attributes.items():
            if name in schema.attributes:
                kept[name] = value
                if isinstance(value, str) and _VALUES_SINCE.get((op_type, name, value), 0) > self.opset:
                    problem = f"no {name}={value!r}"
            elif value != (newest.attributes.get(name) or (None, None, None))[2]:
                problem = f"no {name!r}"
        if len(inputs) > schema.max_input:
            problem = f"{schema.max_input} inputs only"
        read = [(schema.inputs, i, value.dtype) for i, value in enumerate(inputs) if value is not None]
        for formals, i, dtype in (*read, *((schema.outputs, i, dtype) for i, dtype in enumerate(outputs))):
            formal = formals[min(i, len(formals) - 1)]
            plain = any(kind.startswith("tensor(") for kind in formal.types)  # containers are left to the checker
            if plain and type_string(dtype) not in formal.types:
                problem = f"no {dtype.name} for {formal.name!r}"
        if problem is not None:
            message = f"{op_type} has {problem} in opset {self.opset}{self.where()}"
            if self.opset < newest.since:
                raise NeedsOpset(f"{message}; a later one may have it", self.opset + 1)
            raise UnsupportedError(message)
        precise = [n for n, v in kept.items() if isinstance(v, float) and float(np.float32(v)) != v]
        if precise and any(v is not None and v.dtype == np.float64 for v in inputs):
            raise UnsupportedError(
                f"{op_type} in float64 with {precise[0]}={kept[precise[0]]!r}: ONNX keeps attributes in float32"
                f"{self.where()}"
            )
        return kept

    def node(
        self, node: Node, params: Mapping[str, Any], states: Mapping[str, Any], inputs: Sequence[Any], *, train: bool
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        outer, self._node = self._node, node
        try:
            outputs, new = super().node(node, params, states, inputs, train=train)
        finally:
            self._node = outer
        for name, value in zip(node.outputs, outputs, strict=True):
            if not value.name and value.made_by is not None:
                value.name = name
            if value.shape is None and name in self.known:
                value.shape = self.known[name].shape
        return outputs, new


def emit(model: Model, opset: int | None = None) -> onnx.ModelProto:
    """A model in evaluation mode as an ONNX model, checked by onnx's checker with full shape inference.

    Arguments:
        model: any model with a signature.
        opset: version of ai.onnx, 13 to the newest; None for 20, or what the model needs above that.

    Raises UnsupportedError if an operator does not exist in that opset or ONNX has no form for a layer.
    """
    return emission(model, opset).whole()


def emission(model: Model, opset: int | None = None) -> Emission:
    """As `emit`, without copying the large arrays."""
    newest = defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise UnsupportedError(f"opset {opset} cannot be emitted; choose {OLDEST_OPSET} to {newest}")
    version = DEFAULT_OPSET if opset is None else opset
    while True:
        try:
            return _emission(model, version)
        except NeedsOpset as error:
            if opset is not None or version >= newest:
                raise
            version = min(max(error.opset, version + 1), newest)


def _emission(model: Model, opset: int) -> Emission:
    signature = model.require_signature()
    op = OnnxInterpreter(opset)
    inputs = [Emitted(dtypes.dtype_named(s.dtype), s.shape, s.name, container=s.container) for s in signature.inputs]
    stored = {
        path: Emitted(leaf.dtype, leaf.shape, trees.name_of(path), np.asarray(leaf))
        for tree in (model.params, model.states)
        for path, leaf in trees.leaves(tree)
    }
    params, states = (trees.map_with_path(lambda path, _: stored[path], t) for t in (model.params, model.states))
    y, new = op.layer(model.layer, params, states, *inputs, train=False)
    refuse_written_states(states, new)
    outputs = op.own_outputs(y if isinstance(y, tuple) else (y,))
    for spec, value in zip(signature.outputs, outputs, strict=True):
        value.name = spec.name
    nodes = op.nodes if model.metadata.get("source") == "onnx" else tidy(op, outputs)  # ONNX comes back as it was
    made = assemble(model, opset, nodes, inputs, stored.values(), op.constants(), outputs)
    made.check(opset)
    return made
