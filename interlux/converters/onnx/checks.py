"""What is established about a model before it is imported: it is valid, its functions are inlined, and types are known.

All of it works on an outline of the model, in which large initialisers are inputs: onnx's own tools copy a model
several times, end at 2 GiB, and would look for external data by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, TensorProto, checker, defs, helper, inliner, shape_inference

from ...ir import dtypes, vocabulary
from ...ir.errors import InvalidModelError, ResourceLimitError, UnsupportedError
from ...ir.graph import ValueInfo
from ..archive import shown
from .upgrades import OLDEST_OPSET, UPGRADES

OUTLINE_ELEMENTS = 1024  # larger initialisers are no shapes
MAX_NODES = 1_000_000  # after inlining: a function that calls another twice, and so on, doubles each time
_STRING_OPERATORS = frozenset(("StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "TfIdfVectorizer"))
_COLLECTION_OPERATORS = frozenset(("ConcatFromSequence", "SplitToSequence"))


@dataclass(frozen=True)
class Outline:
    """A valid model without its large initialisers.

    Arguments:
        graph: with functions inlined; nodes are in topological order.
        opset: version of ai.onnx.
        dtypes: of values, as far as they follow from the inputs.
        values: dtype and shape of values, likewise.
    """

    graph: onnx.GraphProto
    opset: int
    dtypes: Mapping[str, str]
    values: Mapping[str, ValueInfo]


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
    opset = _opset(proto, name)
    model = _without_large_tensors(proto, name)
    if model.functions:
        model = _inlined(model, name)
    items = list(_unsupported(model.graph, opset))
    if items:
        raise UnsupportedError(f"{name} has parts that are not supported yet", items)
    checked = _for_checks(model, opset)
    try:
        checker.check_model(_with_all_types(checked))
    except (checker.ValidationError, RuntimeError, ValueError, TypeError) as error:
        raise InvalidModelError(f"{name} is not a valid ONNX model: {_one_line(error)}") from error
    inferred = _inferred(checked, name)
    kinds, values = {}, {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        if tensor.elem_type in dtypes.ONNX_DTYPES:
            kinds[value.name] = dtypes.ONNX_DTYPES[tensor.elem_type]
            if tensor.HasField("shape"):
                values[value.name] = ValueInfo(kinds[value.name], shape_of(tensor.shape))
    return Outline(model.graph, opset, kinds, values)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return shown(text, 400)[1:-1]


def _opset(proto: onnx.ModelProto, name: str) -> int:
    """The version of ai.onnx. Raises UnsupportedError outside the range that is read."""
    versions = {entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")}
    if len(versions) > 1:
        raise InvalidModelError(f"{name} names several versions of ai.onnx: {', '.join(map(str, sorted(versions)))}")
    if not versions:
        domains = ", ".join(shown(entry.domain) for entry in proto.opset_import)
        raise UnsupportedError(f"{name} uses no operators of ONNX itself, only of {domains}")
    (opset,) = versions
    if opset < OLDEST_OPSET:
        raise UnsupportedError(
            f"{name} has opset {opset}; re-export with opset >= {OLDEST_OPSET}, or use onnx.version_converter"
        )
    if opset > defs.onnx_opset_version():
        raise UnsupportedError(
            f"{name} has opset {opset}, the installed onnx knows {defs.onnx_opset_version()}: upgrade onnx"
        )
    if proto.ir_version > onnx.IR_VERSION:
        raise UnsupportedError(
            f"{name} has IR version {proto.ir_version}, the installed onnx knows {onnx.IR_VERSION}: upgrade onnx"
        )
    return opset


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
    graph.sparse_initializer.extend(source.sparse_initializer)
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
            sizes[key] = size(_nodes(bodies[key].node))
        found = sizes[key]
        if found is None:
            raise InvalidModelError(f"{name}: function {shown(key[1])} calls itself")
        return found

    try:
        total = size(_nodes(model.graph.node))
    except RecursionError:
        raise ResourceLimitError(f"{name}: functions call each other too deeply") from None
    if total > MAX_NODES:
        raise ResourceLimitError(f"{name}: its functions expand into {total} nodes; at most {MAX_NODES} are read")
    try:
        return inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InvalidModelError(f"{name}: its functions cannot be inlined: {_one_line(error)}") from error


def _nodes(nodes: object) -> Iterator[onnx.NodeProto]:
    """The nodes and those of their sub-graphs."""
    for node in nodes:  # type: ignore[attr-defined]
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def place(node: onnx.NodeProto) -> str:
    """A node in words: its operator and its name, or its first output if it has none."""
    name = node.name or next(iter(node.output), "")
    return f"{shown(node.op_type)[1:-1]} {shown(name)}"


def _unsupported(graph: onnx.GraphProto, opset: int) -> Iterator[str]:
    """What the importer cannot take, one string each."""
    for value in (*graph.input, *graph.output):
        kind = value.type.WhichOneof("value")
        if kind is not None and kind != "tensor_type":
            yield f"{kind.removesuffix('_type')} {shown(value.name)} among the inputs and outputs"
        elif value.type.tensor_type.elem_type == TensorProto.STRING:
            yield f"strings {shown(value.name)} among the inputs and outputs"
    for sparse in graph.sparse_initializer:
        yield f"sparse initialiser {shown(sparse.values.name)}"
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.STRING:
            yield f"initialiser {shown(tensor.name)} of strings"
    for node in graph.node:
        reason = _refusal(node, opset)
        if reason:
            yield f"{place(node)}{reason}"


def _refusal(node: onnx.NodeProto, opset: int) -> str:
    """Why a node is not supported; "" if it is."""
    if node.domain not in ("", "ai.onnx"):
        return f" of domain {shown(node.domain)}"
    kinds = {attribute.type for attribute in node.attribute}
    if kinds & {AttributeProto.GRAPH, AttributeProto.GRAPHS}:
        return " (a sub-graph)"
    if node.op_type.startswith(("Sequence", "Optional")) or node.op_type in _COLLECTION_OPERATORS:
        return " (sequences and optional values)"
    if node.op_type in _STRING_OPERATORS or any(
        attribute.name in ("value_string", "value_strings")
        or (attribute.name == "to" and attribute.i == TensorProto.STRING)
        or attribute.t.data_type == TensorProto.STRING
        for attribute in node.attribute
    ):
        return " (strings)"
    if kinds & {AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS, AttributeProto.TYPE_PROTO}:
        return " (sparse tensors and types as attributes)"
    try:
        schema = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return f" (no operator of ONNX in opset {opset})"
    if schema.deprecated and node.op_type not in UPGRADES:
        return f" (deprecated in opset {schema.since_version})"
    if not vocabulary.known(node.op_type) or schema.since_version > vocabulary.signature(node.op_type).since:
        return f" (version {schema.since_version} is newer than this interlux)"
    return ""


def _for_checks(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A copy without operators that onnx's tools refuse in some opset although their meaning is defined.

    GroupNormalization was deprecated in opset 18 and came back in 21 with other scales; for types, it is like
    InstanceNormalization.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type == "GroupNormalization" and opset < 21:
            node.op_type = "InstanceNormalization"
            kept = [attribute for attribute in node.attribute if attribute.name != "num_groups"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return copy


def _with_all_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose inputs and outputs all have a type and a shape, as the checker demands and runtimes do not."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for value in (*whole.graph.input, *whole.graph.output):
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
