"""ONNX into the IR: every node a layer, every initialiser an array under its own name."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto

from ...ir import dtypes, trees, vocabulary
from ...ir.errors import InvalidModelError, UnsupportedError
from ...ir.inference import output_dtype
from ...ir.layers import Dense, Operator
from ...ir.model import Dimension, Model, Signature, TensorSpec
from ..archive import shown
from ..builder import GraphBuilder, Place, Shape, Value
from . import layers, scopes, weights
from .checks import Outline, outline, place, shape_of
from .reading import OnnxFile, Source, TensorReader, read
from .upgrades import Form, upgrade

_WORD = re.compile(r"[^\W\d]\w*")
_EXPRESSION = re.compile(r"[\w\s+\-*/()]+")


def from_onnx(source: Source, *, name: str | None = None) -> Model:
    """Imports an ONNX model.

    Arguments:
        source: path of a `.onnx` file (external data is read from its folder), its bytes, or a parsed ModelProto.
        name: of the model; None for the graph's own.

    Returns:
        The model: a Graph with a node for each node of the source. Initialisers are stored under their names.

    Raises:
        InvalidModelError: there is no such file, or it is not a valid ONNX model.
        UnsupportedError: parts that are not supported, all of them with their nodes.
        UnsafeInputError: external data outside the model's folder.
        ResourceLimitError: a file or an expansion beyond bounds.
    """
    file = read(source)
    return _Importer(file, outline(file.proto, file.name)).model(name)


class _Importer:
    """Imports one model.

    Arguments:
        file: the model as read.
        plan: the same, checked.
    """

    def __init__(self, file: OnnxFile, plan: Outline):
        self._file, self._plan = file, plan
        self._reader = TensorReader(file)
        self._op = GraphBuilder()
        self._uses = weights.Uses(plan.graph.node)
        self._values: dict[str, Value | None] = {"": None}
        self._arrays: dict[str, tuple[str, np.ndarray]] = {}  # stored ones by name, with their kind
        self._aliases: dict[trees.Path, trees.Path] = {}
        self._notes: list[str] = []

    def model(self, name: str | None) -> Model:
        proto, graph = self._file.proto, self._file.proto.graph
        initialisers = {t.name: self._reader.array(t) for t in graph.initializer}
        self._overridable([value.name for value in graph.input if value.name in initialisers])
        inputs = [value for value in graph.input if value.name not in initialisers]
        specs, dims = self._inputs(inputs)
        for tensor_name, array in initialisers.items():
            self._tensor(tensor_name, array, initialiser=True)
        for node in self._plan.graph.node:
            if node.op_type == "Constant":
                self._tensor(node.output[0], self._constant(node), initialiser=False)
        self._store()
        self._nodes()
        if proto.training_info:
            self._notes.append("The model's own training graph (training_info) was left out.")
        outputs = [self._values[value.name] for value in graph.output]
        layer = self._op.build([value for value in outputs if value is not None])
        params, states = (
            trees.from_leaves(
                [(self._paths[n], array) for n, (kind, array) in self._arrays.items() if kind == wanted]
                + [item for item in self._op.extra_states.items() if wanted == weights.STATE]
            )
            for wanted in (weights.PARAMETER, weights.STATE)
        )
        results = tuple(self._output(value, made) for value, made in zip(graph.output, outputs, strict=True))
        return Model(
            layer,
            params,
            states,
            Signature(tuple(specs), results, dims),
            aliases=self._aliases,
            metadata=self._metadata(name),
            notes=tuple(self._notes),
        )

    def _metadata(self, name: str | None) -> dict[str, Any]:
        proto = self._file.proto
        return {
            "source": "onnx",
            "name": name or proto.graph.name or "model",
            "opset": self._plan.opset,
            "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
            "properties": {entry.key: entry.value for entry in proto.metadata_props},
        }

    # --- inputs and outputs

    def _overridable(self, names: list[str]) -> None:
        if names:
            listed = ", ".join(shown(name) for name in names[:5]) + (", …" if len(names) > 5 else "")
            self._notes.append(f"{len(names)} inputs with default values became stored arrays or constants: {listed}.")

    def _inputs(self, inputs: list[onnx.ValueInfoProto]) -> tuple[list[TensorSpec], dict[str, Dimension]]:
        """The inputs as specifications, and their dynamic dimensions. Unnamed ones get names of their own."""
        taken = {d.dim_param for value in inputs for d in value.type.tensor_type.shape.dim if d.dim_param}
        specs, dims, problems = [], {}, []
        for value in inputs:
            tensor = value.type.tensor_type
            if not tensor.HasField("shape") or tensor.elem_type not in dtypes.ONNX_DTYPES:
                problems.append(shown(value.name))
                continue
            shape = []
            for axis, declared in enumerate(tensor.shape.dim):
                size: int | str | None
                if declared.HasField("dim_value") and declared.dim_value >= 0:
                    size = declared.dim_value
                else:
                    size = declared.dim_param or _fresh(f"{value.name}_dim{axis}", taken)
                    dims[size] = Dimension()
                shape.append(size)
            dtype = dtypes.from_onnx(tensor.elem_type)
            self._values[value.name] = self._op.input(value.name, dtype, tuple(shape))
            specs.append(TensorSpec(value.name, dtype.name, tuple(shape)))
        if problems:
            raise UnsupportedError(
                f"{self._file.name} does not say of which type and rank its inputs are; declare them in the model",
                problems,
            )
        self._dims = dims
        return specs, dims

    def _output(self, declared: onnx.ValueInfoProto, made: Value | None) -> TensorSpec:
        """An output as a specification: what follows from the inputs, completed by what the file declares."""
        if made is None:
            raise InvalidModelError(f"{self._file.name}: no node makes the output {shown(declared.name)}")
        tensor = declared.type.tensor_type
        info = self._plan.values.get(declared.name)
        known = made.shape if info is None else info.shape
        said = shape_of(tensor.shape) if tensor.HasField("shape") else None
        if known is None:
            known = said
        elif said is not None and len(said) == len(known):
            known = tuple(s if k is None else k for k, s in zip(known, said, strict=True))
        if known is None:
            raise UnsupportedError(
                f"{self._file.name}: the rank of output {shown(declared.name)} is unknown; declare its shape"
            )
        return TensorSpec(declared.name, made.dtype.name, self._named(known))

    def _named(self, shape: Shape) -> Shape:
        """A shape without the names that say nothing about the inputs' dimensions."""

        def known(size: int | str | None) -> int | str | None:
            if not isinstance(size, str) or size in self._dims:
                return size
            words = _WORD.findall(size)
            related = words and len(size) < 200 and _EXPRESSION.fullmatch(size) and self._dims.keys() >= set(words)
            return size if related else None

        return tuple(map(known, shape))

    # --- tensors

    def _tensor(self, name: str, array: np.ndarray, initialiser: bool) -> None:
        """Enters an initialiser or a Constant as a constant, or among the arrays to store."""
        kind = weights.kind_of(name, array, self._uses, initialiser)
        if kind == weights.CONSTANT:
            self._values[name] = self._op.const(array)
        else:
            self._arrays[name] = (kind, array)

    def _store(self) -> None:
        self._paths = weights.paths_of(self._arrays)
        for name, (_, array) in self._arrays.items():
            self._values[name] = self._op.stored(self._paths[name], array)

    def _constant(self, node: onnx.NodeProto) -> np.ndarray:
        if len(node.attribute) != 1:
            raise self._invalid(node, "it must have one attribute, its value")
        (attribute,) = node.attribute
        value = self._attribute(attribute, node)
        kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
        if isinstance(value, np.ndarray):
            return value
        if attribute.name not in kinds:
            raise self._invalid(node, f"attribute {shown(attribute.name)} is no value")
        return np.array(value, kinds[attribute.name])

    def _attribute(self, attribute: AttributeProto, node: onnx.NodeProto) -> Any:
        """The value of an attribute: a number, a text, an array, or a tuple of numbers or texts."""
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
                    return self._reader.array(attribute.t, f"attribute {shown(attribute.name)} of {place(node)}")
        except UnicodeDecodeError:
            raise self._invalid(node, f"attribute {shown(attribute.name)} is not UTF-8") from None
        raise self._invalid(node, f"attribute {shown(attribute.name)} has no value")

    # --- nodes

    def _nodes(self) -> None:
        floats = {n: a.shape for n, (_, a) in self._arrays.items() if trees.is_float(a.dtype)}
        outputs = {value.name for value in self._plan.graph.output}
        found = layers.patterns(self._plan.graph.node, self._uses, floats, outputs)
        refused: list[str] = []
        for node in self._plan.graph.node:
            first = node.output[0] if node.output else ""
            if node.op_type == "Constant" or first in found.inside:
                continue
            dense = found.dense.get(first) if first else None
            try:
                if node.op_type == "Identity" and self._alias(node, outputs):
                    continue
                if dense is None:
                    self._node(node)
                else:
                    self._dense(dense, first)
            except UnsupportedError as error:
                refused.append(f"{place(node)}: {error}")
                self._values.update((name, Value(self._dtype(name), None)) for name in node.output if name)
            except InvalidModelError as error:
                raise self._invalid(node, str(error)) from error
        if refused:
            raise UnsupportedError(f"{self._file.name} has nodes that are not supported yet", refused)

    def _alias(self, node: onnx.NodeProto, outputs: set[str]) -> bool:
        """Whether the Identity is another name of a stored array. torch's older exporter keeps one of equal arrays and
        gives it the names of the others in this way."""
        value, name = self._values[node.input[0]], node.output[0]
        if value is None or value.path is None or name in outputs:
            return False
        self._values[name] = value
        self._aliases[trees.path_of(name)] = value.path
        return True

    def _node(self, node: onnx.NodeProto) -> None:
        attributes = {a.name: self._attribute(a, node) for a in node.attribute}
        form = Form(node.op_type, [self._values[name] for name in node.input], attributes, list(node.output))
        with self._op.at(_place(node)):
            upgrade(self._op, form, self._plan.opset)
            while form.outputs and not form.outputs[-1]:
                form.outputs.pop()
            while form.inputs and form.inputs[-1] is None:
                form.inputs.pop()
            layer = layers.recognised(self._op, form)
            made = (layer,) if layer is not None else self._operator(form)
        for name, value in zip(form.outputs, made, strict=True):
            if name:
                self._made(name, value)

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
            self._dtype(name) if name in self._plan.dtypes else output_dtype(form.op_type, i, given, attributes)
            for i, name in enumerate(form.outputs)
        ]
        operator = Operator.of(form.op_type, outputs=count, **attributes)
        made = self._op.add(operator, *form.inputs, outputs=count)
        values: tuple[Value, ...] = (made,) if count == 1 else made
        for value, kind in zip(values, kinds, strict=True):
            value.dtype = kind
        return values

    def _dense(self, nodes: layers.DenseNodes, output: str) -> None:
        weight = self._values[nodes.weight]
        bias = None if nodes.bias is None else self._values[nodes.bias]
        rows, columns = self._arrays[nodes.weight][1].shape
        with self._op.at(_place(nodes.product)):
            layer = Dense(columns, rows, use_bias=bias is not None)
            value = self._op.add(layer, self._values[nodes.x], params={"weight": weight, "bias": bias})
        self._made(output, value)

    def _made(self, name: str, value: Value) -> None:
        info = self._plan.values.get(name)
        self._values[name] = self._op.named(value, name, None if info is None else self._named(info.shape))

    def _invalid(self, node: onnx.NodeProto, text: str) -> InvalidModelError:
        """An error that says where, unless its text does already."""
        return InvalidModelError(
            text if text.startswith(self._file.name) else f"{self._file.name}: {place(node)}: {text}"
        )

    def _dtype(self, name: str) -> np.dtype[Any]:
        return dtypes.dtype_named(self._plan.dtypes.get(name, "float32"))


def _place(node: onnx.NodeProto) -> Place:
    return Place(node.name or next(filter(None, node.output), ""), scopes.scope_of(node), scopes.source_of(node))


def _is_default(value: Any, default: Any) -> bool:
    if default is None or isinstance(value, np.ndarray):
        return False
    return tuple(default) == value if isinstance(default, list) else type(default) is type(value) and default == value


def _fresh(wish: str, taken: set[str]) -> str:
    name, k = wish, 1
    while name in taken:
        name, k = f"{wish}_{k}", k + 1
    taken.add(name)
    return name
