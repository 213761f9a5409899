"""The nodes of a graph, and of the graphs inside it, as layers recorded in a builder."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto

from ...ir import dtypes, trees, vocabulary
from ...ir.containers import SEQUENCE
from ...ir.errors import InvalidModelError, UnsupportedError
from ...ir.inference import output_container, output_dtype
from ...ir.layers import Dense, Gradient, If, Loop, Operator, Scan, SequenceMap
from ...ir.layers.control import Control
from ...ir.model import Dimension
from ..archive import shown
from ..bodies import BodyBuilder
from ..builder import GraphBuilder, Place, Shape, Value
from . import contrib, layers, scopes, weights
from .checks import SUBGRAPHS, GraphPath, Kinds, Outline, place, tensor_of, type_text
from .random import RANDOM
from .reading import OnnxFile, TensorReader
from .upgrades import Form, upgrade

_WORD = re.compile(r"[^\W\d]\w*")
_EXPRESSION = re.compile(r"[\w\s+\-*/()]+")
_NOTHING_KNOWN = Kinds({}, {}, {})
_MAKE_SEQUENCES = frozenset(
    ("SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SplitToSequence")
)


@dataclass
class Context:
    """What the graphs of one model share.

    Arguments:
        file: the model as read.
        plan: the same, checked.
        reader: of its tensors.
        uses: of all values.
        dims: the named dynamic dimensions of the inputs.
        aliases: other names of stored arrays.
        refused: nodes that are not supported, in words.
        names: of the tensors of inner graphs, as they are stored: by the graph's path and the name inside.
    """

    file: OnnxFile
    plan: Outline
    reader: TensorReader
    uses: weights.Uses
    dims: dict[str, Dimension] = field(default_factory=dict)
    aliases: dict[trees.Path, trees.Path] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    names: dict[tuple[GraphPath, str], str] = field(default_factory=dict)

    def initialisers(self, graph: onnx.GraphProto) -> dict[str, np.ndarray]:
        """The initialisers of a graph by name; sparse ones are filled up with zeros."""
        found = {t.name: self.reader.array(t) for t in graph.initializer}
        return found | {t.values.name: self.reader.dense(t) for t in graph.sparse_initializer}

    def own_name(self, path: GraphPath, name: str, taken: Collection[str]) -> str:
        """A name for a tensor of an inner graph that no other tensor has."""
        unique, k = name, 1
        while unique in taken:
            unique, k = f"{name}_{k}", k + 1
        self.names[path, name] = unique
        return unique

    def constant(self, node: onnx.NodeProto) -> np.ndarray:
        """The value of a Constant node."""
        if len(node.attribute) != 1:
            raise self.invalid(node, "it must have one attribute, its value")
        (attribute,) = node.attribute
        value = self.attribute(attribute, node)
        kinds = {
            "value_float": np.float32,
            "value_floats": np.float32,
            "value_int": np.int64,
            "value_ints": np.int64,
            "value_string": object,
            "value_strings": object,
        }
        if isinstance(value, np.ndarray):
            return value
        if attribute.name not in kinds:
            raise self.invalid(node, f"attribute {shown(attribute.name)} is no value")
        return np.array(value, kinds[attribute.name])

    def attribute(self, attribute: AttributeProto, node: onnx.NodeProto) -> Any:
        """The value of an attribute: a number, a text, an array, a type in words, or a tuple of numbers or texts."""
        try:
            match attribute.type:
                case AttributeProto.FLOAT:
                    return attribute.f
                case AttributeProto.INT:
                    return attribute.i
                case AttributeProto.STRING:
                    return attribute.s.decode()
                case AttributeProto.FLOATS:
                    return tuple(attribute.floats)
                case AttributeProto.INTS:
                    return tuple(attribute.ints)
                case AttributeProto.STRINGS:
                    return tuple(text.decode() for text in attribute.strings)
                case AttributeProto.TENSOR:
                    return self.reader.array(attribute.t, f"attribute {shown(attribute.name)} of {place(node)}")
                case AttributeProto.SPARSE_TENSOR:
                    return self.reader.dense(attribute.sparse_tensor)
                case AttributeProto.TYPE_PROTO:
                    return type_text(attribute.tp)
        except UnicodeDecodeError:
            raise self.invalid(node, f"attribute {shown(attribute.name)} is not UTF-8") from None
        raise self.invalid(node, f"attribute {shown(attribute.name)} has no value")

    def invalid(self, node: onnx.NodeProto, text: str) -> InvalidModelError:
        """An error that says where, unless its text does already."""
        return InvalidModelError(
            text if text.startswith(self.file.name) else f"{self.file.name}: {place(node)}: {text}"
        )

    def named(self, shape: Shape) -> Shape:
        """A shape without the names that say nothing about the inputs' dimensions."""

        def known(size: int | str | None) -> int | str | None:
            if not isinstance(size, str) or size in self.dims:
                return size
            words = _WORD.findall(size)
            related = words and len(size) < 200 and _EXPRESSION.fullmatch(size) and self.dims.keys() >= set(words)
            return size if related else None

        return tuple(map(known, shape))


class Nodes:
    """Records the nodes of one graph.

    Arguments:
        context: of the model.
        op: the builder of this graph.
        path: of this graph, empty for the outermost one.
        outer: the graph around it.
    """

    def __init__(self, context: Context, op: GraphBuilder, path: GraphPath = (), outer: Nodes | None = None):
        self._context, self._op, self._path, self._outer = context, op, path, outer
        self._kinds = context.plan.kinds.get(path, _NOTHING_KNOWN)
        self.values: dict[str, Value | None] = {"": None}

    def run(self, graph: onnx.GraphProto) -> None:
        """Records all nodes; `values` then holds what they make. What is not supported is entered in the context."""
        self._run(list(enumerate(graph.node)), {value.name for value in graph.output})

    def _run(self, nodes: list[tuple[int, onnx.NodeProto]], outputs: set[str]) -> None:
        """Records nodes with their indices in the graph; `outputs` are kept whatever they become part of."""
        self._graph = nodes
        stored = {n: v.shape for n, v in self.values.items() if v is not None and v.path and trees.is_float(v.dtype)}
        found = layers.patterns([node for _, node in nodes], self._context.uses, stored, outputs)  # type: ignore[arg-type]
        for i, node in nodes:
            first = node.output[0] if node.output else ""
            if first in found.inside or (node.op_type == "Constant" and node.domain in ("", "ai.onnx")):
                continue
            dense = found.dense.get(first) if first else None
            try:
                if node.op_type == "Identity" and self._alias(node, outputs):
                    continue
                if dense is not None:
                    self._dense(dense, first)
                else:
                    self._node(node, i)
            except UnsupportedError as error:
                self._context.refused.append(f"{place(node)}: {error}")
                self.values.update((name, Value(self._dtype(name), None)) for name in node.output if name)
            except InvalidModelError as error:
                raise self._context.invalid(node, str(error)) from error

    def value(self, name: str) -> Value | None:
        """A value by its name, captured from the graph around if it is not of this one."""
        if name in self.values:
            return self.values[name]
        if self._outer is None or not isinstance(self._op, BodyBuilder):
            raise InvalidModelError(f"no node makes {shown(name)}")
        outside = self._outer.value(self._context.names.get((self._path, name), name))
        return None if outside is None else self._op.capture(outside)

    def _alias(self, node: onnx.NodeProto, outputs: set[str]) -> bool:
        """Whether the Identity is another name of a stored array. torch's older exporter keeps one of equal arrays and
        gives it the names of the others in this way."""
        value, name = self.value(node.input[0]), node.output[0]
        if value is None or value.path is None or name in outputs:
            return False
        self.values[name] = value
        self._context.aliases[trees.path_of(name)] = value.path
        return True

    def _node(self, node: onnx.NodeProto, index: int) -> None:
        with self._op.at(_place(node)):
            if node.op_type in SUBGRAPHS and node.domain in ("", "ai.onnx"):
                made, names = self._control(node, index), list(node.output)
            elif node.op_type == "Gradient" and node.domain == "ai.onnx.preview.training":
                made, names = self._gradient(node, index), list(node.output)
            else:
                form = self._form(node)
                made, names = self._made(form), form.outputs
        for name, value in zip(names, made, strict=False):
            if name:
                self._enter(name, value)

    def _form(self, node: onnx.NodeProto) -> Form:
        attributes = {a.name: self._context.attribute(a, node) for a in node.attribute}
        domain = "" if node.domain == "ai.onnx" else node.domain
        op_type = f"{domain}.{node.op_type}" if domain else node.op_type
        form = Form(op_type, [self.value(name) for name in node.input], attributes, list(node.output))
        upgrade(self._op, form, self._context.plan.versions[domain])
        while form.outputs and not form.outputs[-1]:
            form.outputs.pop()
        while form.inputs and form.inputs[-1] is None:
            form.inputs.pop()
        return form

    def _made(self, form: Form) -> tuple[Value, ...]:
        if form.made is not None:
            return form.made
        if contrib.takes(form):
            return contrib.lower(self._op, form)
        if form.op_type in RANDOM:
            return RANDOM[form.op_type](self._op, form)
        made = layers.recognised(self._op, form)
        return self._operator(form) if made is None else made

    def _operator(self, form: Form) -> tuple[Value, ...]:
        """The node as the operator that it is. Attributes that have their default value are left out."""
        signature = vocabulary.signature(form.op_type)
        attributes = {
            name: value
            for name, value in form.attributes.items()
            if name not in signature.attributes or not _is_default(value, signature.attributes[name][2])
        }
        count = len(form.outputs)
        signature.check(len(form.inputs), attributes, count)
        given = [None if value is None else value.dtype for value in form.inputs]
        kinds = [
            self._dtype(name) if name in self._kinds.dtypes else output_dtype(form.op_type, i, given, attributes)
            for i, name in enumerate(form.outputs)
        ]
        container = output_container(
            form.op_type, ["" if value is None else value.container for value in form.inputs], attributes
        )
        operator = Operator.of(form.op_type, outputs=count, **attributes)
        made = self._op.add(operator, *form.inputs, outputs=count)
        values: tuple[Value, ...] = (made,) if count == 1 else made
        for value, kind, name in zip(values, kinds, form.outputs, strict=True):
            value.dtype = kind
            value.container = self._kinds.containers.get(name) or container
        return values

    def _dense(self, nodes: layers.DenseNodes, output: str) -> None:
        weight = self.value(nodes.weight)
        bias = None if nodes.bias is None else self.value(nodes.bias)
        if weight is None or weight.shape is None:  # the pattern is one of stored arrays
            raise InvalidModelError("a product's weight has no shape")
        rows, columns = weight.shape[::-1] if nodes.in_first else weight.shape
        with self._op.at(_place(nodes.product)):
            layer = Dense(int(str(columns)), int(str(rows)), use_bias=bias is not None, in_first=nodes.in_first)
            value = self._op.add(layer, self.value(nodes.x), params={"weight": weight, "bias": bias})
        self._enter(output, value)

    def _enter(self, name: str, value: Value) -> None:
        info = self._kinds.values.get(name)
        shape = None if info is None or value.container else self._context.named(info.shape)
        self.values[name] = self._op.named(value, name, shape)

    def _dtype(self, name: str) -> np.dtype[Any]:
        return dtypes.dtype_named(self._kinds.dtypes.get(name, "float32"))

    # --- control flow

    def _control(self, node: onnx.NodeProto, index: int) -> tuple[Value, ...]:
        attributes = {a.name: a for a in node.attribute}
        inputs = [self.value(name) for name in node.input]

        def body(name: str, formals: Sequence[Value | None] = ()) -> tuple[BodyBuilder, list[Value]]:
            if name not in attributes or attributes[name].type != AttributeProto.GRAPH:
                raise InvalidModelError(f"it has no graph {name!r}")
            return self._body(attributes[name].g, (*self._path, (index, name)), formals)

        def numbers(name: str) -> tuple[int, ...]:
            return tuple(attributes[name].ints) if name in attributes else ()

        layer: Control
        match node.op_type:
            case "If":
                (then, then_made), (other, other_made) = body("then_branch"), body("else_branch")
                captured = list(dict.fromkeys((*then.captured, *other.captured)))
                layer = If(then.body(then_made, captured), other.body(other_made, captured))
                results = then_made
            case "Loop":
                inputs += [None] * (2 - len(inputs))
                number, going = Value(np.dtype(np.int64), ()), Value(np.dtype(bool), ())
                inner, results = body("body", [number, going, *inputs[2:]])
                captured = list(inner.captured)
                layer, results = Loop(inner.body(results, captured), len(inputs) - 2), results[1:]
            case "Scan" if self._context.plan.opset < 9:
                return self._scan_of_batches(attributes, inputs, index)
            case "Scan":
                scanned = attributes["num_scan_inputs"].i
                inner, results = body("body", inputs[: len(inputs) - scanned])
                captured = list(inner.captured)
                layer = Scan(
                    inner.body(results, captured),
                    scanned,
                    numbers("scan_input_axes"),
                    numbers("scan_output_axes"),
                    numbers("scan_input_directions"),
                    numbers("scan_output_directions"),
                    len(captured),
                )
            case _:
                elements = [Value(v.dtype, None) if v is not None and v.container == SEQUENCE else v for v in inputs]
                inner, results = body("body", elements)
                captured = list(inner.captured)
                mapped = tuple(value is not None and value.container == SEQUENCE for value in inputs)
                layer = SequenceMap(inner.body(results, captured), mapped)
                results = [Value(value.dtype, None, container=SEQUENCE) for value in results]
        made = self._op.add(layer, *inputs, *captured, outputs=layer.outputs)
        values: tuple[Value, ...] = (made,) if layer.outputs == 1 else made
        for value, result in zip(values, results, strict=True):
            value.dtype, value.container = result.dtype, result.container
        return values

    def _gradient(self, node: onnx.NodeProto, index: int) -> tuple[Value, ...]:
        """The gradient of a value with respect to others: of the graph that leads from these to it."""
        attributes = {a.name: self._context.attribute(a, node) for a in node.attribute}
        names = (*attributes["xs"], *attributes.get("zs", ()))
        inputs = [self.value(name) for name in node.input]
        if len(inputs) != len(names):
            raise InvalidModelError(f"it takes {len(names)} inputs, one for each name in xs and zs")
        wanted, needed = {attributes["y"]} - set(names), []
        for i, earlier in reversed(self._graph[: [i for i, _ in self._graph].index(index)]):
            if wanted.intersection(earlier.output):
                wanted.update(set(earlier.input) - set(names))
                needed.append((i, earlier))
        builder = BodyBuilder(self._op)
        inner = Nodes(self._context, builder, self._path, self)
        for name, value in zip(names, inputs, strict=True):
            if value is None:
                raise InvalidModelError(f"its input for {shown(name)} is absent")
            inner.values[name] = builder.input(name, value.dtype, value.shape)
        inner._run(needed[::-1], {attributes["y"]})
        result = inner.value(attributes["y"])
        captured = list(builder.captured)
        layer = Gradient(
            builder.body([result] if result is not None else [], captured), len(attributes["xs"]), len(names)
        )
        made = self._op.add(layer, *inputs, *captured, outputs=layer.outputs)
        values: tuple[Value, ...] = (made,) if layer.outputs == 1 else made
        for value, given in zip(values, inputs, strict=False):
            if given is not None:
                value.dtype = given.dtype
        return values

    def _scan_of_batches(
        self, attributes: dict[str, AttributeProto], inputs: Sequence[Value | None], index: int
    ) -> tuple[Value, ...]:
        """Scan of opset 8: over axis 1, for each element of a batch (axis 0): a Scan inside a Scan."""
        if not inputs or inputs[0] is not None:
            raise UnsupportedError(
                "Scan with sequence_lens (opset 8) is not supported; re-export with opset 9 or above"
            )
        outer = BodyBuilder(self._op)
        nodes = Nodes(self._context, outer, self._path, self)
        scanned, directions = (
            attributes["num_scan_inputs"].i,
            tuple(attributes.get("directions", AttributeProto()).ints),
        )
        formals = [outer.input(f"element {i}", v.dtype, None) for i, v in enumerate(inputs) if v is not None]
        inner, results = nodes._body(
            attributes["body"].g, (*self._path, (index, "body")), formals[: len(formals) - scanned]
        )
        captured = list(inner.captured)
        layer = Scan(inner.body(results, captured), scanned, input_directions=directions, captured=len(captured))
        made = outer.add(layer, *formals, *captured, outputs=layer.outputs)
        rows: tuple[Value, ...] = (made,) if layer.outputs == 1 else made
        captured = list(outer.captured)
        whole = Scan(outer.body(rows, captured), len(formals), captured=len(captured))
        made = self._op.add(whole, *inputs[1:], *captured, outputs=whole.outputs)
        values: tuple[Value, ...] = (made,) if whole.outputs == 1 else made
        for value, result in zip(values, results, strict=True):
            value.dtype = result.dtype
        return values

    def _body(
        self, graph: onnx.GraphProto, path: GraphPath, formals: Sequence[Value | None]
    ) -> tuple[BodyBuilder, list[Value]]:
        """Records an inner graph. Returns its builder and its outputs.

        Arguments:
            formals: values outside that have the types of the graph's inputs, as far as they are known.
        """
        builder = BodyBuilder(self._op)
        inner = Nodes(self._context, builder, path, self)
        for i, declared in enumerate(graph.input):
            given = formals[i] if i < len(formals) else None
            tensor, container = tensor_of(declared.type)
            info = inner._kinds.values.get(declared.name)
            if declared.name in inner._kinds.dtypes:
                dtype = inner._dtype(declared.name)
                container = container or inner._kinds.containers.get(declared.name, "")
            elif given is not None:
                dtype, container = given.dtype, container or given.container
            elif tensor is not None and tensor.elem_type in dtypes.ONNX_DTYPES:
                dtype = dtypes.from_onnx(tensor.elem_type)
            else:
                raise UnsupportedError(f"the type of input {shown(declared.name)} of its graph is unknown")
            shape = None if info is None or container else self._context.named(info.shape)
            inner.values[declared.name] = builder.input(declared.name, dtype, shape, container)
        inner.run(graph)
        results = [inner.value(value.name) for value in graph.output]
        return builder, [value for value in results if value is not None]


def _place(node: onnx.NodeProto) -> Place:
    return Place(node.name or next(filter(None, node.output), ""), scopes.scope_of(node), scopes.source_of(node))


def _is_default(value: Any, default: Any) -> bool:
    if default is None or isinstance(value, np.ndarray):
        return False
    return tuple(default) == value if isinstance(default, list) else type(default) is type(value) and default == value
