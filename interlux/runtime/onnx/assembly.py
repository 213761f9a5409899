"""From recorded nodes to an ONNX model: names are settled, graphs nested, and large arrays kept aside."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

from ...ir import dtypes, vocabulary
from ...ir.containers import OPTIONAL, OPTIONAL_SEQUENCE, SEQUENCE
from ...ir.errors import InvalidModelError
from ...ir.graph import Node
from ...ir.model import Model, TensorSpec

DESCRIPTIONS = ("doc_string", "domain", "model_version")  # of a model
SCOPE_KEY, SOURCE_KEY = "interlux.scope", "interlux.source"
LARGE = 1024  # bytes; larger initialisers are kept aside until the model is written
_METADATA_SINCE = 18  # metadata of nodes came with IR version 10, which runtimes of older opsets refuse


@dataclass(eq=False)
class Emitted:
    """A value of the graph being emitted. Its name is settled when the graph is complete."""

    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None = None
    name: str = ""
    array: np.ndarray | None = None  # of a constant or an initialiser
    made_by: EmittedNode | None = None
    container: str = ""  # as in `TensorSpec.container`


@dataclass(eq=False)
class EmittedGraph:
    """A graph inside a node: an attribute of control flow."""

    inputs: list[Emitted]
    nodes: list[EmittedNode]
    outputs: list[Emitted]


@dataclass(eq=False)
class EmittedNode:
    op_type: str
    inputs: list[Emitted | None]
    outputs: list[Emitted]
    attributes: dict[str, Any]
    place: tuple[str, ...]
    node: Node | None = field(default=None)

    def read(self) -> Iterable[Emitted]:
        """The values that the node reads, in the graphs inside it as well."""
        yield from (value for value in self.inputs if value is not None)
        for graph in self.attributes.values():
            if isinstance(graph, EmittedGraph):
                for node in graph.nodes:
                    yield from node.read()
                yield from graph.outputs


@dataclass(frozen=True)
class Emission:
    """An emitted model whose large initialisers have no data yet.

    Arguments:
        proto: the model; `arrays` holds the data of its initialisers that have none, by name.
    """

    proto: onnx.ModelProto
    arrays: dict[str, np.ndarray]

    @property
    def size(self) -> int:
        """Bytes of the whole model, about."""
        return self.proto.ByteSize() + sum(array.nbytes for array in self.arrays.values())

    def whole(self) -> onnx.ModelProto:
        """The model with all its data inside."""
        made = onnx.ModelProto()
        made.CopyFrom(self.proto)
        for tensor in made.graph.initializer:
            if tensor.name in self.arrays:
                tensor.raw_data = self.arrays[tensor.name].tobytes()
        return made

    def check(self, opset: int) -> None:
        """Raises InvalidModelError unless onnx's checker, with full shape inference, takes the model.

        It is given the large initialisers as inputs: it would copy them, and ends at 2 GiB.
        """
        outline = onnx.ModelProto()
        outline.CopyFrom(self.proto)
        del outline.graph.initializer[:]
        for tensor in self.proto.graph.initializer:
            if tensor.name in self.arrays:
                kind = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                outline.graph.input.append(kind)
            else:
                outline.graph.initializer.append(tensor)
        for value in (*outline.graph.input, *outline.graph.output):
            if value.type.WhichOneof("value") == "tensor_type":
                value.type.tensor_type.shape.SetInParent()  # the checker wants one, runtimes do not
        try:
            onnx.checker.check_model(outline, full_check=False)
            for value in outline.graph.output:
                if value.type.WhichOneof("value") == "tensor_type":
                    value.type.tensor_type.ClearField("shape")
            onnx.shape_inference.infer_shapes(outline, check_type=True, strict_mode=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise InvalidModelError(f"the emitted ONNX model is not valid in opset {opset}: {error}") from error


class _Names:
    """Unique names within one model."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, wish: str) -> str:
        name, k = wish, 1
        while name in self._taken:
            name, k = f"{wish}_{k}", k + 1
        self._taken.add(name)
        return name


class _Writer:
    """Turns recorded nodes into protobufs; every value and node gets a name that no other has."""

    def __init__(self, opset: int, keep_names: bool):
        """`keep_names` gives the nodes of the ONNX model that was imported their names again."""
        self._values, self._nodes = _Names(), _Names()
        self._keep_names = keep_names
        self._protos_of: Counter[int] = Counter()  # by the IR's node
        self._settled: set[int] = set()
        self._keep_metadata = opset >= _METADATA_SINCE
        self.domains: dict[str, int] = {"": opset}

    def settle(self, value: Emitted, wish: str) -> None:
        if id(value) not in self._settled:
            value.name = self._values.take(wish)
            self._settled.add(id(value))

    def nodes(self, nodes: Sequence[EmittedNode]) -> list[onnx.NodeProto]:
        self._protos_of.update(id(node.node) for node in nodes if node.node is not None)
        return [self._node(node) for node in nodes]

    def _node(self, node: EmittedNode) -> onnx.NodeProto:
        known = vocabulary.known(node.op_type)
        domain = vocabulary.signature(node.op_type).domain if known else ""
        op_type = node.op_type.removeprefix(f"{domain}.")
        if domain:
            self.domains[domain] = max(s.since_version for s in defs.get_all_schemas() if s.domain == domain)
        scope = node.node.scope if node.node is not None else ()
        module = scope[-1].path.replace(".", "/") if scope else "/".join(node.place)
        name = f"/{module}/{op_type}" if module else f"/{op_type}"
        if self._keep_names and node.node is not None and self._protos_of[id(node.node)] == 1:
            name = node.node.name
        name = self._nodes.take(name)
        attributes = {key: self._attribute(key, v) for key, v in node.attributes.items() if v is not None}
        for value in node.outputs:
            self.settle(value, value.name or f"{name}_output")
        inputs = ["" if value is None else value.name for value in node.inputs]
        proto = onnx.NodeProto(op_type=op_type, domain=domain, name=name)
        proto.input.extend(inputs)
        proto.output.extend(value.name for value in node.outputs)
        proto.attribute.extend(attributes.values())
        if self._keep_metadata and node.node is not None:
            calls = [[c.path, c.number, c.module_class] for c in scope]
            for key, text in ((SCOPE_KEY, json.dumps(calls) if calls else ""), (SOURCE_KEY, node.node.source)):
                if text:
                    proto.metadata_props.add(key=key, value=text)
        return proto

    def _attribute(self, name: str, value: Any) -> onnx.AttributeProto:
        if isinstance(value, EmittedGraph):
            return helper.make_attribute(name, self._graph(name, value))
        if isinstance(value, np.ndarray):
            return helper.make_attribute(name, numpy_helper.from_array(value))
        if name == "type" and isinstance(value, str):
            return helper.make_attribute(name, type_of(value))
        if isinstance(value, tuple):
            made = helper.make_attribute(name, list(value), attr_type=None if value else onnx.AttributeProto.INTS)
            return made
        return helper.make_attribute(name, value)

    def _graph(self, name: str, graph: EmittedGraph) -> onnx.GraphProto:
        """An inner graph, its inputs and outputs with their types."""
        for value in graph.inputs:
            self.settle(value, value.name)
        nodes = self.nodes(graph.nodes)
        proto = onnx.GraphProto(name=name, node=nodes)
        proto.input.extend(
            _info(TensorSpec(value.name, value.dtype.name, value.shape, None, value.container), value.name)
            for value in graph.inputs
        )
        proto.output.extend(
            _info(TensorSpec(value.name, value.dtype.name, None, None, value.container), value.name)
            for value in graph.outputs
        )
        return proto


def assemble(
    model: Model,
    opset: int,
    nodes: Sequence[EmittedNode],
    inputs: Sequence[Emitted],
    stored: Iterable[Emitted],
    constants: Iterable[Emitted],
    outputs: Sequence[Emitted],
) -> Emission:
    """The ONNX model of what was recorded.

    Arguments:
        model: what was emitted.
        opset: version of ai.onnx.
        nodes: in topological order.
        inputs, outputs: in the order of the signature.
        stored, constants: values with an array; those that nothing reads are left out.
    """
    signature, writer = model.require_signature(), _Writer(opset, model.metadata.get("source") == "onnx")
    used = {id(value) for node in nodes for value in node.read()}
    initialisers = [value for value in stored if id(value) in used]
    constants = [value for value in constants if id(value) in used]
    for value in (*inputs, *outputs, *initialisers):
        writer.settle(value, value.name)
    for i, value in enumerate(constants):
        writer.settle(value, f"constant_{i}")
    tensors, arrays = [], {}
    for value in (*initialisers, *constants):
        array = np.asarray(value.array)
        if array.nbytes > LARGE and not _packed(array.dtype):
            tensors.append(TensorProto(name=value.name, data_type=dtypes.to_onnx(array.dtype), dims=array.shape))
            arrays[value.name] = array
        else:
            tensors.append(numpy_helper.from_array(array, value.name))
    graph = helper.make_graph(
        writer.nodes(nodes),
        str(model.metadata.get("name", "model")),
        [_info(spec, value.name) for spec, value in zip(signature.inputs, inputs, strict=True)],
        [_info(spec, value.name) for spec, value in zip(signature.outputs, outputs, strict=True)],
        tensors,
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in writer.domains.items()]
    version = max(10 if opset >= _METADATA_SINCE else 8, helper.find_min_ir_version_for(imports, ignore_unknown=True))
    proto = helper.make_model(graph, opset_imports=imports, ir_version=version, producer_name="interlux")
    for attribute in DESCRIPTIONS:
        if model.metadata.get(attribute):
            setattr(proto, attribute, model.metadata[attribute])
    proto.graph.doc_string = str(model.metadata.get("graph_doc_string", ""))
    properties = model.metadata.get("properties")
    if isinstance(properties, dict):
        helper.set_model_props(proto, {str(key): str(text) for key, text in properties.items()})
    return Emission(proto, arrays)


def _packed(dtype: np.dtype[Any]) -> bool:
    """Whether ONNX stores several elements in one byte, or texts."""
    return dtype == np.dtype(object) or dtype.name in ("int4", "uint4", "int2", "uint2", "float4_e2m1fn")


def _info(spec: TensorSpec, name: str) -> onnx.ValueInfoProto:
    """The name and type of a graph's input or output."""
    if not spec.container.startswith(("map", "sequence of maps")):
        tensor = helper.make_tensor_type_proto(dtypes.to_onnx(dtypes.dtype_named(spec.dtype)), spec.shape)
        kind = tensor
        if spec.container in (SEQUENCE, OPTIONAL_SEQUENCE):
            kind = helper.make_sequence_type_proto(kind)
        if spec.container in (OPTIONAL, OPTIONAL_SEQUENCE):
            kind = helper.make_optional_type_proto(kind)
        return helper.make_value_info(name, kind)
    key = dtypes.to_onnx(dtypes.dtype_named(spec.container.rpartition(" from ")[2]))
    tensor = helper.make_tensor_type_proto(dtypes.to_onnx(dtypes.dtype_named(spec.dtype)), None)
    tensor.tensor_type.ClearField("shape")
    kind = onnx.TypeProto()
    inner = kind.map_type if spec.container.startswith("map") else kind.sequence_type.elem_type.map_type
    inner.key_type = key
    inner.value_type.CopyFrom(tensor)
    return helper.make_value_info(name, kind)


def type_of(text: str) -> onnx.TypeProto:
    """A type from its text: `tensor(float)`, `seq(tensor(float))`, `optional(…)`."""
    if text.startswith("seq("):
        return helper.make_sequence_type_proto(type_of(text[4:-1]))
    if text.startswith("optional("):
        return helper.make_optional_type_proto(type_of(text[9:-1]))
    if text not in dtypes.TYPE_STRINGS:
        raise InvalidModelError(f"unknown type {text!r}")
    kind = onnx.TypeProto()
    kind.tensor_type.elem_type = dtypes.to_onnx(dtypes.dtype_named(dtypes.TYPE_STRINGS[text]))
    return kind
