"""What is established about a model before it is imported: it is valid, its functions are inlined, and types are known.

All of it works on an outline of the model, in which large initialisers are inputs: onnx's own tools copy a model
several times, end at 2 GiB, and would look for external data by themselves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, checker, defs, helper, inliner, numpy_helper, shape_inference

from ...ir import dtypes, vocabulary
from ...ir.containers import OPTIONAL, OPTIONAL_SEQUENCE, SEQUENCE
from ...ir.errors import InvalidModelError, ResourceLimitError, UnsupportedError
from ...ir.graph import ValueInfo
from ..archive import shown
from . import classical, contrib
from .upgrades import OLDEST_OPSET, upgradable

OUTLINE_ELEMENTS = 1024  # larger initialisers are no shapes
MAX_NODES = 1_000_000  # after inlining: a function that calls another twice, and so on, doubles each time
DOMAINS = ("", classical.DOMAIN, "ai.onnx.preview", "ai.onnx.preview.training")  # whose operators are primitives
_GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
SUBGRAPHS = frozenset(("If", "Loop", "Scan", "SequenceMap"))
EXPANDED = frozenset((("ai.onnx.preview", "FlexAttention"),))
GraphPath = tuple[tuple[int, str], ...]  # (index of the node, name of its attribute) from the outermost graph inwards


@dataclass(frozen=True)
class Kinds:
    """What is known of the values of one graph.

    Arguments:
        dtypes: of values, as far as they follow from the inputs; of containers, the dtype of their tensors.
        values: dtype and shape of tensors, likewise.
        containers: which values are sequences or optional, as in `TensorSpec.container`.
    """

    dtypes: Mapping[str, str]
    values: Mapping[str, ValueInfo]
    containers: Mapping[str, str]


@dataclass(frozen=True)
class Outline:
    """A valid model without its large initialisers.

    Arguments:
        graph: with functions inlined; nodes are in topological order.
        versions: of the operators by domain; "" is ai.onnx.
        kinds: of the values of the graph (at the empty path) and of those inside it.
    """

    graph: onnx.GraphProto
    versions: Mapping[str, int]
    kinds: Mapping[GraphPath, Kinds]

    @property
    def opset(self) -> int:
        return self.versions[""]


def outline(proto: onnx.ModelProto, name: str) -> Outline:
    """Checks a model.

    Arguments:
        proto: the model; not changed.
        name: of the file, for messages.

    Raises:
        UnsupportedError: an opset, domain, operator or type that is not supported; all of them at once.
        InvalidModelError: onnx's checker or type inference refuse the model.
        ResourceLimitError: its functions expand into more than a million nodes.
    """
    versions = _versions(proto, name)
    model = _without_large_tensors(proto, name)
    if model.functions:
        model = _inlined(model, name)
    model = _expanded(model, name)
    items = list(_unsupported(model.graph, versions))
    if items:
        raise UnsupportedError(f"{name} has parts that are not supported yet", items)
    checked = _for_checks(model, versions[""])
    try:
        checker.check_model(_with_all_types(checked))
    except (checker.ValidationError, RuntimeError, ValueError, TypeError) as error:
        raise InvalidModelError(f"{name} is not a valid ONNX model: {_one_line(error)}") from error
    return Outline(model.graph, versions, dict(_kinds(_inferred(checked, name))))


def _kinds(graph: onnx.GraphProto, path: GraphPath = ()) -> Iterator[tuple[GraphPath, Kinds]]:
    """What type inference says of a graph's values, and of those of the graphs inside it."""
    found, values, containers = {}, {}, {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor, container = tensor_of(value.type)
        if container:
            containers[value.name] = container
        if tensor is not None and tensor.elem_type in dtypes.ONNX_DTYPES:
            found[value.name] = dtypes.ONNX_DTYPES[tensor.elem_type]
            if tensor.HasField("shape") and not container:
                values[value.name] = ValueInfo(found[value.name], shape_of(tensor.shape))
    yield path, Kinds(found, values, containers)
    for i, node in enumerate(graph.node):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _kinds(attribute.g, (*path, (i, attribute.name)))


def tensor_of(kind: onnx.TypeProto) -> tuple[onnx.TypeProto.Tensor | None, str]:
    """The tensor in a type, and the container around it ("" if there is none), as in `TensorSpec.container`.

    None for a type that is not supported.
    """
    match kind.WhichOneof("value"):
        case "tensor_type" | None:
            return kind.tensor_type, ""
        case "sequence_type":
            inner = kind.sequence_type.elem_type
            if inner.WhichOneof("value") == "tensor_type":
                return inner.tensor_type, SEQUENCE
            if inner.WhichOneof("value") == "map_type":
                tensor, container = tensor_of(inner)
                return tensor, container.replace("map", "sequence of maps", 1)
        case "optional_type":
            tensor, container = tensor_of(kind.optional_type.elem_type)
            if container in ("", SEQUENCE):
                return tensor, OPTIONAL_SEQUENCE if container else OPTIONAL
        case "map_type":
            if kind.map_type.value_type.WhichOneof("value") == "tensor_type":
                return kind.map_type.value_type.tensor_type, f"map from {dtypes.ONNX_DTYPES[kind.map_type.key_type]}"
    return None, ""


def type_text(kind: onnx.TypeProto) -> str:
    """A type in ONNX's own words: `tensor(float)`, `seq(tensor(float))`, `optional(…)`."""
    match kind.WhichOneof("value"):
        case "sequence_type":
            return f"seq({type_text(kind.sequence_type.elem_type)})"
        case "optional_type":
            return f"optional({type_text(kind.optional_type.elem_type)})"
        case "tensor_type" if kind.tensor_type.elem_type in dtypes.ONNX_DTYPES:
            name = dtypes.ONNX_DTYPES[kind.tensor_type.elem_type]
            return next(text for text, known in dtypes.TYPE_STRINGS.items() if known == name)
    raise UnsupportedError(f"the type {kind.WhichOneof('value')} is not supported")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return shown(text, 400)[1:-1]


def _versions(proto: onnx.ModelProto, name: str) -> dict[str, int]:
    """The versions of the operators by domain. Raises UnsupportedError outside the range that is read."""
    found: dict[str, set[int]] = {}
    for entry in proto.opset_import:
        found.setdefault("" if entry.domain == "ai.onnx" else entry.domain, set()).add(entry.version)
    for domain, versions in found.items():
        if len(versions) > 1:
            listed = ", ".join(map(str, sorted(versions)))
            raise InvalidModelError(f"{name} names several versions of {shown(domain or 'ai.onnx')}: {listed}")
    result = {domain: next(iter(versions)) for domain, versions in found.items()}
    opset = result.setdefault("", defs.onnx_opset_version())  # without one, it uses no operator of ai.onnx
    if opset < OLDEST_OPSET:
        raise InvalidModelError(f"{name} has opset {opset}; there is none below {OLDEST_OPSET}")
    if opset > defs.onnx_opset_version():
        raise UnsupportedError(
            f"{name} has opset {opset}, the installed onnx knows {defs.onnx_opset_version()}: upgrade onnx"
        )
    if proto.ir_version > onnx.IR_VERSION:
        raise UnsupportedError(
            f"{name} has IR version {proto.ir_version}, the installed onnx knows {onnx.IR_VERSION}: upgrade onnx"
        )
    return result


def _without_large_tensors(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy of the model in which large and external initialisers are inputs."""
    model = onnx.ModelProto(ir_version=proto.ir_version)
    model.opset_import.extend(
        helper.make_opsetid("" if entry.domain == "ai.onnx" else entry.domain, entry.version)
        for entry in proto.opset_import
    )
    model.functions.extend(proto.functions)
    source, graph = proto.graph, model.graph
    graph.name = source.name or "graph"
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    for sparse in source.sparse_initializer:  # onnx's tools know them half; they become dense
        kind = helper.make_tensor_value_info(sparse.values.name, sparse.values.data_type, sparse.dims)
        graph.input.append(kind)
    inputs = {value.name for value in source.input}
    seen: set[str] = set()
    for tensor in source.initializer:
        if not tensor.name or tensor.name in seen:
            what = f"two initialisers named {shown(tensor.name)}" if tensor.name else "an initialiser without a name"
            raise InvalidModelError(f"{name} has {what}")
        seen.add(tensor.name)
        small = math.prod(tensor.dims) <= OUTLINE_ELEMENTS and tensor.data_location != TensorProto.EXTERNAL
        if small:
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


def _inlined(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with its functions replaced by their bodies."""
    bodies = {(f.domain, f.name, f.overload): f for f in model.functions}
    sizes: dict[tuple[str, str, str], int | None] = {}

    def size(nodes: Iterator[onnx.NodeProto]) -> int:
        return sum(expanded((n.domain, n.op_type, n.overload)) for n in nodes)

    def expanded(key: tuple[str, str, str]) -> int:
        if key not in bodies:
            return 1
        if key not in sizes:
            sizes[key] = None
            sizes[key] = size(all_nodes(bodies[key].node))
        found = sizes[key]
        if found is None:
            raise InvalidModelError(f"{name}: function {shown(key[1])} calls itself")
        return found

    for nodes in (model.graph.node, *(body.node for body in bodies.values())):
        for node in all_nodes(nodes):
            body = bodies.get((node.domain, node.op_type, node.overload))
            given = {attribute.name for attribute in node.attribute}
            # the inliner would take the operator's own default where a function has one
            node.attribute.extend(a for a in (body.attribute_proto if body else ()) if a.name not in given)
    for body in bodies.values():
        _brought_to(body, {entry.domain: entry.version for entry in model.opset_import})
    try:
        total = size(all_nodes(model.graph.node))
    except RecursionError:
        raise ResourceLimitError(f"{name}: functions call each other too deeply") from None
    if total > MAX_NODES:
        raise ResourceLimitError(f"{name}: its functions expand into {total} nodes; at most {MAX_NODES} are read")
    try:
        return inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InvalidModelError(f"{name}: its functions cannot be inlined: {_one_line(error)}") from error


def _brought_to(body: onnx.FunctionProto, versions: Mapping[str, int]) -> None:
    """Gives a function the model's opset where its operators mean the same there; the inliner leaves others alone, and
    they are refused."""
    for entry in body.opset_import:
        domain, wanted = "" if entry.domain == "ai.onnx" else entry.domain, versions.get(entry.domain, entry.version)
        if wanted == entry.version:
            continue
        used = {node.op_type for node in all_nodes(body.node) if node.domain in (entry.domain, domain)}
        try:
            since = [
                [defs.get_schema(op_type, version, domain).since_version for op_type in used]
                for version in (entry.version, wanted)
            ]
        except defs.SchemaError:
            continue
        if since[0] == since[1]:
            entry.version = wanted


def _expanded(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with those operators written out that take graphs and that ONNX itself defines by other operators."""
    present = {(node.domain, node.op_type) for node in all_nodes(model.graph.node)} & EXPANDED
    if not present:
        return model
    try:
        return inliner.inline_selected_functions(model, sorted(present), False, True)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InvalidModelError(f"{name}: {sorted(present)[0][1]} cannot be expanded: {_one_line(error)}") from error


def all_nodes(nodes: object) -> Iterator[onnx.NodeProto]:
    """The nodes and those of their sub-graphs."""
    for node in nodes:  # type: ignore[attr-defined]
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from all_nodes(graph.node)


def place(node: onnx.NodeProto) -> str:
    """A node in words: its operator and its name, or its first output if it has none."""
    name = node.name or next(iter(node.output), "")
    return f"{shown(node.op_type)[1:-1]} {shown(name)}"


def _unsupported(graph: onnx.GraphProto, versions: Mapping[str, int]) -> Iterator[str]:
    """What the importer cannot take, one string each."""
    for value in (*graph.input, *graph.output):
        tensor, _ = tensor_of(value.type)
        if tensor is None:
            yield f"{value.type.WhichOneof('value')} {shown(value.name)} among the inputs and outputs"
    for node in all_nodes(graph.node):
        reason = _refusal(node, versions)
        if reason:
            yield f"{place(node)}{reason}"


def _refusal(node: onnx.NodeProto, versions: Mapping[str, int]) -> str:
    """Why a node is not supported; "" if it is."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    own = contrib.known(domain, node.op_type, versions[""])
    if (domain not in DOMAINS and not own) or domain not in versions:
        return f" of domain {shown(node.domain)}"
    kinds = {attribute.type for attribute in node.attribute}
    if kinds & {AttributeProto.GRAPH, AttributeProto.GRAPHS} and node.op_type not in SUBGRAPHS:
        return " (a sub-graph)"
    if kinds & {AttributeProto.SPARSE_TENSORS, AttributeProto.TYPE_PROTOS}:
        return " (sparse tensors and types as attributes)"
    if own:
        return ""
    version = versions[domain]
    try:
        schema = defs.get_schema(node.op_type, version, domain)
    except defs.SchemaError:
        return f" (no operator of {domain or 'ONNX'} in opset {version})"
    primitive = f"{domain}.{node.op_type}" if domain else node.op_type
    old = upgradable(primitive, version)
    if schema.deprecated and not old:
        return f" (deprecated in opset {schema.since_version})"
    if not vocabulary.known(primitive):
        return "" if old else " (no primitive of this interlux)"
    if schema.since_version > vocabulary.signature(primitive).since:
        return f" (version {schema.since_version} is newer than this interlux)"
    return ""


def _for_checks(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A copy without what onnx's tools refuse or misunderstand although its meaning is defined.

    - GroupNormalization was deprecated in opset 18 and came back in 21 with other scales; for types, it is like
      InstanceNormalization.
    - Without `onesided`, STFT is one-sided; inference has it otherwise.
    - Resize multiplies a size by a scale in 32 bits (10 · 0.7 is 7), inference in more (6).
    - Tensors inside nodes and inner graphs are copied at every step, and looked for if they are external.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _move_tensors_out(copy.graph)
    scales = {node.input[2 if node.op_type == "Resize" else 1] for node in _resizing(copy.graph)}
    for tensor in copy.graph.initializer:
        if tensor.name in scales and tensor.data_type == TensorProto.FLOAT:
            raised = np.nextafter(numpy_helper.to_array(tensor), np.float32(np.inf))
            tensor.CopyFrom(numpy_helper.from_array(raised, tensor.name))
    for node in all_nodes(copy.graph.node):
        if node.op_type == "STFT" and not any(a.name == "onesided" for a in node.attribute):
            node.attribute.append(helper.make_attribute("onesided", 1))
        if node.op_type == "GroupNormalization" and opset < 21:
            node.op_type = "InstanceNormalization"
            kept = [attribute for attribute in node.attribute if attribute.name != "num_groups"]
            del node.attribute[:]
            node.attribute.extend(kept)
    contrib.for_checks(copy, opset)
    return copy


def _resizing(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes that resize by scales."""
    for node in all_nodes(graph.node):
        if (node.op_type == "Resize" and len(node.input) > 2) or (node.op_type == "Upsample" and len(node.input) > 1):
            yield node


def _move_tensors_out(root: onnx.GraphProto) -> None:
    """Makes inputs of the outermost graph of the large and external tensors of inner graphs and Constant nodes."""
    nodes = list(all_nodes(root.node))
    inner = [g for n in nodes for a in n.attribute for g in (a.g, *a.graphs) if a.type in _GRAPHS]
    taken = Counter(
        name
        for graph in (root, *inner)
        for name in (
            *(value.name for value in graph.input),
            *(tensor.name for tensor in graph.initializer),
            *(name for node in graph.node for name in node.output),
        )
    )

    def outside(tensor: TensorProto) -> bool:
        return math.prod(tensor.dims) > OUTLINE_ELEMENTS or tensor.data_location == TensorProto.EXTERNAL

    for graph in inner:
        for i in reversed(range(len(graph.initializer))):
            tensor = graph.initializer[i]
            if outside(tensor) and taken[tensor.name] == 1:
                root.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
                del graph.initializer[i]
    for node in nodes:
        values = [a.t for a in node.attribute if a.name == "value" and a.type == AttributeProto.TENSOR]
        if node.op_type == "Constant" and values and outside(values[0]):
            name = f"{node.output[0]}_value"
            while taken[name]:
                name += "_"
            taken[name] += 1
            root.input.append(helper.make_tensor_value_info(name, values[0].data_type, values[0].dims))
            node.op_type = "Identity"
            del node.attribute[:]
            node.input.append(name)


def _with_all_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose inputs and outputs all have a type and a shape, as the checker demands and runtimes do not."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for value in (*whole.graph.input, *whole.graph.output):
        if value.type.WhichOneof("value") not in (None, "tensor_type"):
            continue
        tensor = value.type.tensor_type
        tensor.elem_type = tensor.elem_type or TensorProto.FLOAT
        tensor.shape.SetInParent()
    return whole


def _inferred(model: onnx.ModelProto, name: str) -> onnx.GraphProto:
    """The graph with the types of all values that follow from the inputs.

    What the file says itself of values inside and of the shapes of outputs is left out: nothing checks it.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for value in bare.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    try:
        return shape_inference.infer_shapes(bare, check_type=True, strict_mode=False, data_prop=True).graph
    except (shape_inference.InferenceError, RuntimeError, ValueError, TypeError) as error:
        raise InvalidModelError(f"{name}: the types of its values contradict each other: {_one_line(error)}") from error


def shape_of(shape: onnx.TensorShapeProto) -> tuple[int | str | None, ...]:
    """Sizes, names of dynamic dimensions, None for unknown ones."""
    return tuple(map(_dimension, shape.dim))


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    # onnx's inference names sizes that it cannot follow unk__0, unk__1, …
    return None if not dim.dim_param or dim.dim_param.startswith("unk__") else dim.dim_param
