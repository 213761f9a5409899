"""ONNX into the IR: every node a layer, every initialiser an array under its own name."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto

from ...ir import dtypes, trees
from ...ir.errors import InvalidModelError, UnsupportedError
from ...ir.model import Dimension, Model, Signature, TensorSpec
from ..archive import shown
from ..builder import GraphBuilder, Value
from . import weights
from .checks import GraphPath, Outline, all_nodes, outline, shape_of, tensor_of
from .nodes import Context, Nodes
from .reading import OnnxFile, Source, TensorReader, read


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
        self._op = GraphBuilder()
        self._arrays: dict[str, tuple[str, np.ndarray]] = {}  # stored ones by name, with their kind
        self._context = Context(file, plan, TensorReader(file), weights.Uses(all_nodes(plan.graph.node)))
        self._nodes = Nodes(self._context, self._op)
        self._values = self._nodes.values
        self._notes: list[str] = []

    def model(self, name: str | None) -> Model:
        proto, graph = self._file.proto, self._file.proto.graph
        initialisers = self._context.initialisers(graph)
        self._overridable([value.name for value in graph.input if value.name in initialisers])
        inputs = [value for value in graph.input if value.name not in initialisers]
        specs, dims = self._inputs(inputs)
        for tensor_name, array in initialisers.items():
            self._tensor(tensor_name, array, initialiser=True)
        computed = {name for node in all_nodes(self._plan.graph.node) for name in node.output}
        self._inner_tensors(self._plan.graph, (), computed | {value.name for value in graph.input})
        self._store()
        self._nodes.run(self._plan.graph)
        if self._context.refused:
            raise UnsupportedError(f"{self._file.name} has nodes that are not supported yet", self._context.refused)
        if proto.training_info:
            self._notes.append("The model's own training graph (training_info) was left out.")
        outputs = [self._values.get(value.name) for value in graph.output]
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
            aliases=self._context.aliases,
            metadata=self._metadata(name),
            notes=tuple(self._notes),
        )

    def _metadata(self, name: str | None) -> dict[str, Any]:
        proto = self._file.proto
        described = {
            "doc_string": proto.doc_string,
            "domain": proto.domain,
            "model_version": proto.model_version,
            "graph_doc_string": proto.graph.doc_string,
        }
        return {
            "source": "onnx",
            "name": name or proto.graph.name or "model",
            "opset": self._plan.opset,
            "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
            "properties": {entry.key: entry.value for entry in proto.metadata_props},
            **{key: value for key, value in described.items() if value},
        }

    # --- inputs and outputs

    def _overridable(self, names: list[str]) -> None:
        if names and self._file.proto.ir_version >= 4:  # before, initialisers had to be inputs
            listed = ", ".join(shown(name) for name in names[:5]) + (", …" if len(names) > 5 else "")
            self._notes.append(f"{len(names)} inputs with default values became stored arrays or constants: {listed}.")

    def _inputs(self, inputs: list[onnx.ValueInfoProto]) -> tuple[list[TensorSpec], dict[str, Dimension]]:
        """The inputs as specifications, and their dynamic dimensions. Unnamed ones get names of their own."""
        taken = {d.dim_param for value in inputs for d in value.type.tensor_type.shape.dim if d.dim_param}
        specs, dims, problems = [], {}, []
        for value in inputs:
            tensor, container = tensor_of(value.type)
            if tensor is None or tensor.elem_type not in dtypes.ONNX_DTYPES:
                problems.append(shown(value.name))
                continue
            dtype = dtypes.from_onnx(tensor.elem_type)
            if container or not tensor.HasField("shape"):
                known = shape_of(tensor.shape) if tensor.HasField("shape") and not container else None
                self._values[value.name] = self._op.input(value.name, dtype, known, container)
                specs.append(TensorSpec(value.name, dtype.name, known, None, container))
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
            self._values[value.name] = self._op.input(value.name, dtype, tuple(shape))
            specs.append(TensorSpec(value.name, dtype.name, tuple(shape)))
        if problems:
            raise UnsupportedError(
                f"{self._file.name} does not say of which type its inputs are; declare it in the model",
                problems,
            )
        self._context.dims.update(dims)
        return specs, dims

    def _output(self, declared: onnx.ValueInfoProto, made: Value | None) -> TensorSpec:
        """An output as a specification: what follows from the inputs, completed by what the file declares."""
        if made is None:
            raise InvalidModelError(f"{self._file.name}: no node makes the output {shown(declared.name)}")
        tensor, container = tensor_of(declared.type)
        if container or made.container:
            return TensorSpec(declared.name, made.dtype.name, None, None, container or made.container)
        info = self._plan.kinds[()].values.get(declared.name)
        known = made.shape if info is None else info.shape
        said = shape_of(tensor.shape) if tensor is not None and tensor.HasField("shape") else None
        if known is None:
            known = said
        elif said is not None and len(said) == len(known):
            known = tuple(s if k is None else k for k, s in zip(known, said, strict=True))
        return TensorSpec(declared.name, made.dtype.name, None if known is None else self._context.named(known))

    # --- tensors

    def _tensor(self, name: str, array: np.ndarray, initialiser: bool) -> None:
        """Enters an initialiser or a Constant as a constant, or among the arrays to store."""
        kind = weights.kind_of(name, array, self._context.uses, initialiser)
        if kind == weights.CONSTANT:
            self._values[name] = self._op.const(array)
        else:
            self._arrays[name] = (kind, array)

    def _inner_tensors(self, graph: onnx.GraphProto, path: GraphPath, computed: Set[str]) -> None:
        """Enters the Constants of a graph, and the tensors of the graphs inside it: all arrays are stored outside.

        Arguments:
            computed: the names of all values, which no tensor of an inner graph may have: a value outside would be
                taken for it.
        """

        def own_name(name: str) -> str:
            taken = self._arrays.keys() | self._values | computed
            return self._context.own_name(path, name, taken) if path else name

        if path:
            for name, array in self._context.initialisers(graph).items():
                self._tensor(own_name(name), array, initialiser=True)
        for node in graph.node:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                self._tensor(own_name(node.output[0]), self._context.constant(node), initialiser=False)
        for i, node in enumerate(graph.node):
            for attribute in node.attribute:
                if attribute.type == AttributeProto.GRAPH:
                    self._inner_tensors(attribute.g, (*path, (i, attribute.name)), computed)

    def _store(self) -> None:
        self._paths = weights.paths_of(self._arrays)
        for name, (_, array) in self._arrays.items():
            self._values[name] = self._op.stored(self._paths[name], array)


def _fresh(wish: str, taken: set[str]) -> str:
    name, k = wish, 1
    while name in taken:
        name, k = f"{wish}_{k}", k + 1
    taken.add(name)
    return name
