"""The range of integer inputs: they are row numbers where they reach a table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...ir.graph import Graph, Node, graph_of
from ...ir.layer import Layer
from ...ir.layers import Chain, Constant, Embedding, Operator, Parallel, Stored
from ...ir.model import Model

# primitives whose output holds values of their first input (Concat: of any input), nothing computed
_MOVES = {
    *("Identity", "Reshape", "Flatten", "Unsqueeze", "Squeeze", "Transpose", "Cast", "CastLike", "Slice", "Concat"),
    *("Split", "Expand", "Tile", "Gather"),
}


def integer_bounds(model: Model) -> dict[str, tuple[int, int]]:
    """(0, rows - 1) of the smallest table that each integer input indexes, by the input's name.

    Inputs that reach no table, or only through arithmetic, are left out.
    """
    signature = model.require_signature()
    names = [spec.name for spec in signature.inputs]
    graph = graph_of(model.layer)
    if graph is not None:
        by_value = dict(_tables(model, graph))
        rows = {spec: by_value.get(value) for spec, value in zip(names, graph.inputs, strict=True)}
    else:
        rows = dict(zip(names, _rows_of_layer(model.layer, len(names)), strict=True))
    integers = {spec.name for spec in signature.inputs if np.dtype(_plain(spec.dtype)).kind in "iu"}
    return {name: (0, n - 1) for name, n in rows.items() if n and name in integers}


def _plain(dtype: str) -> str:
    """The dtypes of ml_dtypes are no concern here."""
    return dtype if dtype.startswith(("int", "uint")) and dtype not in ("int4", "uint4", "int2", "uint2") else "float32"


def _tables(model: Model, graph: Graph) -> Iterator[tuple[str, int]]:
    """(input, rows of the smallest table that it indexes) for each graph input that reaches one."""
    origins: dict[str | None, frozenset[str]] = {name: frozenset([name]) for name in graph.inputs}
    makers = {output: node for node in graph.nodes for output in node.outputs}
    found: dict[str, int] = {}
    for node in graph.nodes:
        index, rows = _lookup(model, graph, makers, node)
        for name in origins.get(index, ()) if index is not None and rows else ():
            found[name] = min(found.get(name, rows), rows)
        if isinstance(node.layer, Operator) and node.layer.op_type in _MOVES:
            moved = node.inputs if node.layer.op_type == "Concat" else node.inputs[:1]
            reached = frozenset().union(*(origins.get(value, frozenset()) for value in moved))
            origins.update(dict.fromkeys(node.outputs, reached))
    yield from found.items()


def _lookup(model: Model, graph: Graph, makers: dict[str, Node], node: Node) -> tuple[str | None, int]:
    """The value that a node takes as row numbers, and how many rows its table has (0 if unknown)."""
    layer = node.layer
    if isinstance(layer, Embedding):
        return node.inputs[0], layer.rows
    if isinstance(layer, Operator) and layer.op_type in ("Gather", "GatherElements"):
        axis = dict(layer.attributes).get("axis", 0)
        shape = _shape(model, graph, makers, node.inputs[0])
        size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
        return node.inputs[1], size if isinstance(size, int) else 0
    return None, 0


def _shape(
    model: Model, graph: Graph, makers: dict[str, Node], value: str | None
) -> tuple[int | str | None, ...] | None:
    maker = makers.get(value) if value is not None else None
    if maker is not None and isinstance(maker.layer, Stored):
        array = model.array((*maker.params, *maker.states)[0][1])
        return None if array is None else tuple(np.shape(array))
    if maker is not None and isinstance(maker.layer, Constant):
        return maker.layer.value.shape
    info = graph.values.get(value) if value is not None else None
    return None if info is None else info.shape


def _rows_of_layer(layer: Layer, inputs: int) -> list[int | None]:
    """The rows of the table that each input of a layer built by hand goes into."""
    if isinstance(layer, Embedding):
        return [layer.rows]
    if isinstance(layer, Parallel) and len(layer.layers) == inputs:
        return [_rows_of_layer(child, 1)[0] for child in layer.layers]
    if isinstance(layer, Chain):
        for child in layer.layers:
            if not (isinstance(child, Operator) and child.op_type in _MOVES):
                return _rows_of_layer(child, inputs)
    return [None] * inputs
