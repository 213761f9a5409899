"""How many roundings follow one another on the way to an output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...ir.graph import Graph, Node, graph_of
from ...ir.layer import Layer
from ...ir.layers import Constant, LayerNorm, Operator
from ...ir.model import Model

# Sums whose length no parameter shows. Products with weights are summed in blocks by all backends.
_OVER_AXES = {
    *("ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"),
    *("ReduceProd", "Softmax", "LogSoftmax", "CumSum"),
}
# What of the length counts for normalisations: their sums are those of numbers around 0, or of squares
_NORMALISED = 1 / 16


def path_lengths(model: Model, shapes: Sequence[Sequence[tuple[int, ...]]]) -> list[float]:
    """For each output: the layers on the longest path of the model, and the longest sum that it depends on.

    Arguments:
        shapes: of all inputs, for every probe.
    """
    outputs = len(model.require_signature().outputs)
    graph = graph_of(model.layer)
    if graph is None:
        return [float(_layers(model.layer))] * outputs
    sizes = _sizes(model, shapes)
    lengths = {node.outputs[0]: _summed(graph, node, sizes) for node in graph.nodes if node.outputs}
    longest: dict[str, float] = {}
    for node in graph.nodes:
        below = max((longest.get(value, 0.0) for value in node.inputs if value is not None), default=0.0)
        longest.update(dict.fromkeys(node.outputs, max(below, lengths.get(node.outputs[0], 0.0))))
    return [graph.depth() + longest.get(name, 0.0) for name in graph.outputs]


def _layers(layer: Layer) -> int:
    """All layers of one built by hand."""
    return sum(_layers(child) for _, child in layer.children()) or 1


def _sizes(model: Model, shapes: Sequence[Sequence[tuple[int, ...]]]) -> dict[str, int]:
    """The largest size of each dynamic dimension; of "" for those that only a formula gives."""
    sizes: dict[str, int] = {"": 1}
    for probe in shapes:
        for spec, shape in zip(model.require_signature().inputs, probe, strict=True):
            for name, size in zip(spec.shape or shape, shape, strict=True):
                if not isinstance(name, int):
                    sizes[""] = max(sizes[""], size)
                    sizes[name or ""] = max(sizes.get(name or "", 1), size)
    return sizes


def _summed(graph: Graph, node: Node, sizes: Mapping[str, int]) -> float:
    """How many numbers a node adds up for each of its results, 0 if it adds none."""
    layer = node.layer
    if not node.inputs or not isinstance(layer, Operator | LayerNorm):
        return 0
    info = graph.values.get(node.inputs[0] or "")
    if info is None:
        return 0
    shape = [n if isinstance(n, int) else sizes.get(n or "", sizes[""]) for n in info.shape]
    if isinstance(layer, LayerNorm):
        return _NORMALISED * math.prod(layer.shape)
    attributes: dict[str, Any] = dict(layer.attributes)
    if layer.op_type == "GroupNormalization":
        return _NORMALISED * math.prod(shape[1:]) / attributes.get("num_groups", 1)
    if layer.op_type == "InstanceNormalization":
        return _NORMALISED * math.prod(shape[2:])
    if layer.op_type == "LayerNormalization":
        return _NORMALISED * math.prod(shape[attributes.get("axis", -1) :])
    if layer.op_type.startswith("GlobalAveragePool"):
        return math.prod(shape[2:])
    if layer.op_type == "AveragePool":
        return math.prod(attributes.get("kernel_shape", ()))
    if layer.op_type not in _OVER_AXES:
        return 0
    axes = _axes(graph, node, layer.op_type, attributes)
    chosen = range(len(shape)) if axes is None else [a for a in axes if -len(shape) <= a < len(shape)]
    return math.prod(shape[a] for a in chosen)


def _axes(graph: Graph, node: Node, op_type: str, attributes: Mapping[str, Any]) -> Sequence[int] | None:
    """The axes that a node sums over; None for all, also if they are not known."""
    if op_type in ("Softmax", "LogSoftmax"):
        return (int(attributes.get("axis", -1)),)
    if "axes" in attributes:
        return tuple(attributes["axes"])
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    for maker in graph.nodes:
        if node.inputs[1] in maker.outputs and isinstance(maker.layer, Constant):
            return tuple(int(a) for a in maker.layer.value.array().reshape(-1))
    return None
