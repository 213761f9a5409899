"""The ONNX interpreter: emits nodes for the primitives a model consists of.

Parameters become initialisers under their own names, values keep the names of the graph, and every node carries the
module call that it came from in its metadata (`interlux.scope`, a JSON list of [path, call, class]).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper

from ...ir import dtypes, trees, vocabulary
from ...ir.errors import InvalidModelError, UnsupportedError
from ...ir.graph import Node, ValueInfo, graph_of
from ...ir.inference import output_dtype
from ...ir.interpreter import EVAL, TRAIN, Interpreter, Override
from ...ir.layer import Layer
from ...ir.layers import Dense, HardTanh
from ...ir.model import Model, TensorSpec
from ..runner import refuse_written_states
from . import opsets
from .opsets import NeedsOpset

OLDEST_OPSET = 13
DEFAULT_OPSET = 20  # every runtime in use reads it; raised to what a model needs
SCOPE_KEY, SOURCE_KEY = "interlux.scope", "interlux.source"


_TYPE_STRINGS = {name: text for text, name in dtypes.TYPE_STRINGS.items()}


def type_string(dtype: np.dtype[Any]) -> str:
    """A dtype as ONNX's operator signatures spell it."""
    return _TYPE_STRINGS.get(dtype.name, f"tensor({dtype.name})")


@dataclass(eq=False)
class Emitted:
    """A value of the graph being emitted. Its name is settled when the graph is complete."""

    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None = None
    name: str = ""
    array: np.ndarray | None = None  # of a constant or an initialiser
    made_by: EmittedNode | None = None


@dataclass(eq=False)
class EmittedNode:
    op_type: str
    inputs: list[Emitted | None]
    outputs: list[Emitted]
    attributes: dict[str, Any]
    place: tuple[str, ...]
    node: Node | None = field(default=None)


def _dense(
    op: Interpreter, layer: Dense, params: Mapping[str, Any], states: Mapping[str, Any], x: Emitted, *, train: bool
) -> tuple[Emitted, Mapping[str, Any]] | None:
    """One Gemm instead of Transpose, MatMul and Add; Gemm takes matrices only."""
    if x.shape is None or len(x.shape) != 2 or not layer.use_bias:
        return None
    y = op.Gemm(x, params["weight"], params["bias"], transB=1)
    return layer.activate(op, y, train=train), states


def _hard_tanh(
    op: Interpreter, layer: HardTanh, params: Mapping[str, Any], states: Mapping[str, Any], x: Emitted, *, train: bool
) -> tuple[Emitted, Mapping[str, Any]]:
    """Clip alone: no gradient flows through an ONNX graph."""
    return layer.limited(op, x), states


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
        self._constants: dict[tuple[Any, ...], Emitted] = {}
        self._node: Node | None = None
        self.known: Mapping[str, ValueInfo] = {}  # shapes of a graph's values by name

    def const(self, array: Any, like: Emitted | None = None) -> Emitted:
        array = np.asarray(array) if like is None else np.asarray(array).astype(like.dtype)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = Emitted(array.dtype, array.shape, array=array)
        return self._constants[key]

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
        kept = self._checked(op_type, inputs, attributes)
        given = [None if value is None else value.dtype for value in inputs]
        made = [Emitted(output_dtype(op_type, i, given, attributes)) for i in range(outputs)]
        node = EmittedNode(op_type, list(inputs), made, kept, self.place, self._node)
        for value in made:
            value.made_by = node
        self.nodes.append(node)
        return made[0] if outputs == 1 else tuple(made)

    def _checked(self, op_type: str, inputs: Sequence[Emitted | None], attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes that the operator of the target opset has. Raises UnsupportedError if others are needed."""
        newest = vocabulary.signature(op_type)
        if newest.domain:
            raise UnsupportedError(f"ONNX has no operator {op_type}{self.where()}")
        try:
            schema = defs.get_schema(op_type, self.opset, "")
        except defs.SchemaError:
            raise NeedsOpset(
                f"{op_type} needs opset {newest.since}, {self.opset} is asked for{self.where()}", newest.since
            ) from None
        problem = None
        kept = {}
        for name, value in attributes.items():
            if name in schema.attributes:
                kept[name] = value
            elif value != (newest.attributes.get(name) or (None, None, None))[2]:
                problem = f"no {name!r}"
        if len(inputs) > schema.max_input:
            problem = f"{schema.max_input} inputs only"
        for i, value in enumerate(inputs):
            formal = schema.inputs[min(i, len(schema.inputs) - 1)]
            if value is not None and type_string(value.dtype) not in formal.types:
                problem = f"no {value.dtype.name} for {formal.name!r}"
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
    newest = defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise UnsupportedError(f"opset {opset} cannot be emitted; choose {OLDEST_OPSET} to {newest}")
    version = DEFAULT_OPSET if opset is None else opset
    while True:
        try:
            return _emit(model, version)
        except NeedsOpset as error:
            if opset is not None or version >= newest:
                raise
            version = min(max(error.opset, version + 1), newest)


def _emit(model: Model, opset: int) -> onnx.ModelProto:
    signature = model.require_signature()
    op = OnnxInterpreter(opset)
    inputs = [Emitted(dtypes.dtype_named(s.dtype), s.shape, s.name) for s in signature.inputs]
    stored = {
        path: Emitted(leaf.dtype, leaf.shape, trees.name_of(path), np.asarray(leaf))
        for tree in (model.params, model.states)
        for path, leaf in trees.leaves(tree)
    }
    params, states = (trees.map_with_path(lambda path, _: stored[path], t) for t in (model.params, model.states))
    graph = graph_of(model.layer)
    if graph is not None:
        op.known = graph.values
    y, new = op.layer(model.layer, params, states, *inputs, train=False)
    refuse_written_states(states, new)
    results = list(y) if isinstance(y, tuple) else [y]
    outputs = []
    for spec, value in zip(signature.outputs, results, strict=True):
        if value.made_by is None or value in outputs:  # an input, a parameter, or one value returned twice
            value = op.emit("Identity", [value], {})
        value.name = spec.name
        outputs.append(value)
    proto = _assemble(model, op, inputs, list(stored.values()), outputs)
    try:
        onnx.checker.check_model(proto, full_check=proto.ByteSize() < 2**31 - 1)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InvalidModelError(f"the emitted ONNX model is not valid in opset {opset}: {error}") from error
    return proto


class _Names:
    """Unique names within one graph."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, wish: str) -> str:
        name, k = wish, 1
        while name in self._taken:
            name, k = f"{wish}_{k}", k + 1
        self._taken.add(name)
        return name


def _assemble(
    model: Model, op: OnnxInterpreter, inputs: list[Emitted], stored: list[Emitted], outputs: list[Emitted]
) -> onnx.ModelProto:
    names, signature = _Names(), model.require_signature()
    used = {id(value) for node in op.nodes for value in node.inputs if value is not None}
    initialisers = [value for value in stored if id(value) in used]
    constants = [value for value in op._constants.values() if id(value) in used]
    for value in (*inputs, *outputs, *initialisers):
        value.name = names.take(value.name)
    for i, value in enumerate(constants):
        value.name = names.take(f"constant_{i}")
    settled = {id(value) for value in (*inputs, *outputs)}
    node_names, protos = _Names(), []
    keep_metadata = op.opset >= 18  # metadata of nodes came with IR version 10, which runtimes of older opsets refuse
    for node in op.nodes:
        scope = node.node.scope if node.node is not None else ()
        module = scope[-1].path.replace(".", "/") if scope else "/".join(node.place)
        name = node_names.take(f"/{module}/{node.op_type}" if module else f"/{node.op_type}")
        for value in node.outputs:
            if id(value) not in settled:
                value.name = names.take(value.name or f"{name}_output")
                settled.add(id(value))
        attributes = {k: _attribute(v) for k, v in node.attributes.items() if v is not None}
        names_in = ["" if value is None else value.name for value in node.inputs]
        proto = helper.make_node(node.op_type, names_in, [v.name for v in node.outputs], name=name, **attributes)
        if keep_metadata and node.node is not None:
            calls = [[c.path, c.number, c.module_class] for c in scope]
            for key, text in ((SCOPE_KEY, json.dumps(calls) if calls else ""), (SOURCE_KEY, node.node.source)):
                if text:
                    proto.metadata_props.add(key=key, value=text)
        protos.append(proto)

    def info(spec: TensorSpec, name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtypes.to_onnx(dtypes.dtype_named(spec.dtype)), spec.shape)

    graph = helper.make_graph(
        protos,
        str(model.metadata.get("name", "model")),
        [info(spec, value.name) for spec, value in zip(signature.inputs, inputs, strict=True)],
        [info(spec, value.name) for spec, value in zip(signature.outputs, outputs, strict=True)],
        [numpy_helper.from_array(np.asarray(v.array), v.name) for v in (*initialisers, *constants)],
    )
    imports = [helper.make_opsetid("", op.opset)]
    version = max(10 if keep_metadata else 8, helper.find_min_ir_version_for(imports))
    return helper.make_model(graph, opset_imports=imports, ir_version=version, producer_name="interlux")


def _attribute(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return numpy_helper.from_array(value)
    return list(value) if isinstance(value, tuple) else value
