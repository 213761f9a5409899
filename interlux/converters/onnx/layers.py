"""Nodes that become layers of the IR with their parameters, so that an imported graph reads like a network.

A function of the table takes a node in its newest form and returns the layer's output, or None where the layer could
not say exactly what the node does: then the node becomes an `Operator`. Stored arrays stay as they are, under their
names; nothing is transposed, scaled or merged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from ...ir import trees
from ...ir.errors import InvalidModelError
from ...ir.layer import NEVER
from ...ir.layers import BatchNorm, Conv, Dense, Dropout, Embedding, LayerNorm, Recurrent
from ...ir.layers.recurrent import GATES
from ..builder import GraphBuilder, Value
from .upgrades import Form
from .weights import Uses

Recogniser = Callable[[GraphBuilder, Form], Value | tuple[Value, ...] | None]


def _stored(*values: Value | None) -> bool:
    """Whether all are stored floating-point arrays of one dtype, none of them empty."""
    return (
        all(v is not None and v.path is not None and trees.is_float(v.dtype) and 0 not in _sizes(v) for v in values)
        and len({v.dtype for v in values if v is not None}) == 1
    )


def _inputs(form: Form, count: int) -> list[Value | None]:
    return [*form.inputs, *[None] * (count - len(form.inputs))]


def _sizes(value: Value | None) -> tuple[Any, ...]:
    return () if value is None or value.shape is None else value.shape


def _gemm(op: GraphBuilder, form: Form) -> Value | None:
    x, weight, bias = _inputs(form, 3)
    get = form.attributes.get
    in_first = not get("transB", 0)
    if get("transA", 0) or get("alpha", 1.0) != 1 or (bias is not None and get("beta", 1.0) != 1):
        return None
    if not _stored(weight) or (bias is not None and not _stored(weight, bias)):
        return None
    rows, columns = _sizes(weight)[::-1] if in_first else _sizes(weight)
    if bias is not None and _sizes(bias) != (rows,):
        return None  # it broadcasts
    return op.add(
        Dense(columns, rows, use_bias=bias is not None, in_first=in_first),
        x,
        params={"weight": weight, "bias": bias},
    )


def _conv(op: GraphBuilder, form: Form) -> Value | None:
    x, weight, bias = _inputs(form, 3)
    get = form.attributes.get
    auto_pad = get("auto_pad", "NOTSET")
    if auto_pad not in ("NOTSET", "VALID") or not _stored(weight) or (bias is not None and not _stored(weight, bias)):
        return None  # SAME pads depend on the input's size
    outputs, inputs, *kernel = _sizes(weight)
    groups = get("group", 1)
    if tuple(get("kernel_shape", kernel)) != tuple(kernel) or (bias is not None and _sizes(bias) != (outputs,)):
        return None
    channels = x.shape[1] if x is not None and x.shape is not None and len(x.shape) > 1 else None
    if isinstance(channels, int) and channels != inputs * groups:
        raise InvalidModelError(f"{channels} channels don't fit a weight of {groups} groups of {inputs}")
    layer = Conv(
        inputs * groups,
        outputs,
        tuple(kernel),
        strides=get("strides", ()),
        pads=() if auto_pad == "VALID" else get("pads", ()),
        dilations=get("dilations", ()),
        groups=groups,
        use_bias=bias is not None,
    )
    return op.add(layer, x, params={"weight": weight, "bias": bias})


def _batch_norm(op: GraphBuilder, form: Form) -> Value | None:
    x, weight, bias, mean, variance = _inputs(form, 5)
    if form.attributes.get("training_mode", 0) or x is None or not _stored(weight, bias, mean, variance):
        return None
    if weight is None or weight.dtype != x.dtype or len({_sizes(v) for v in (weight, bias, mean, variance)}) != 1:
        return None
    layer = BatchNorm(
        _sizes(weight)[0],
        epsilon=form.attributes.get("epsilon", 1e-5),
        momentum=shortest(1 - form.attributes.get("momentum", 0.9)),
        counted=False,
        mode=NEVER,
    )
    return op.add(
        layer, x, params={"weight": weight, "bias": bias}, states={"running_mean": mean, "running_var": variance}
    )


def _layer_norm(op: GraphBuilder, form: Form) -> Value | None:
    x, weight, bias = _inputs(form, 3)
    if form.attributes.get("stash_type", 1) != 1 or x is None or not _stored(*filter(None, (weight, bias))):
        return None
    shape, axis = _sizes(weight), form.attributes.get("axis", -1)
    if axis >= 0:
        if x.shape is None:
            return None
        axis -= len(x.shape)
    if weight is None or weight.dtype != x.dtype or len(shape) != -axis or (bias is not None and _sizes(bias) != shape):
        return None
    if x.shape is None or x.shape[axis:] != shape:
        return None  # it may broadcast
    layer = LayerNorm(shape, epsilon=form.attributes.get("epsilon", 1e-5), use_bias=bias is not None)
    return op.add(layer, x, params={"weight": weight, "bias": bias})


def _gather(op: GraphBuilder, form: Form) -> Value | None:
    table, indices = _inputs(form, 2)
    if table is None or not _stored(table) or form.attributes.get("axis", 0) != 0 or len(_sizes(table)) != 2:
        return None
    return op.add(Embedding(*_sizes(table)), indices, params={"weight": table}, dtype=table.dtype)


def _dropout(op: GraphBuilder, form: Form) -> Value | None:
    x, ratio, training = _inputs(form, 3)
    if training is not None and (training.array is None or training.array.any()):
        return None
    if ratio is not None and (ratio.array is None or ratio.array.size != 1):
        return None
    probability = 0.5 if ratio is None or ratio.array is None else shortest(ratio.array.item())
    return op.add(Dropout(probability, NEVER), x) if 0 <= probability <= 1 else None


def shortest(number: float) -> float:
    """The shortest decimal that is the same float32, for numbers that are read but not computed with."""
    return float(str(np.float32(number)))


def _recurrent(op: GraphBuilder, form: Form) -> tuple[Value, ...] | None:
    x, weight, recurrence, bias, lengths, h0, c0, peepholes = _inputs(form, 8)
    arrays = [value for value in (weight, recurrence, bias, peepholes) if value is not None]
    if x is None or weight is None or not _stored(*arrays) or weight.dtype != x.dtype:
        return None
    attributes = dict(form.attributes)
    direction, hidden = attributes.pop("direction", "forward"), _sizes(recurrence)[-1]
    if attributes.pop("hidden_size", hidden) != hidden:
        return None
    layer = Recurrent(
        form.op_type,
        _sizes(weight)[-1],
        hidden,
        direction,
        bias is not None,
        peepholes is not None,
        tuple(sorted(attributes.items())),
        len(form.outputs),
    )
    params = {"weight": weight, "recurrence": recurrence, "bias": bias, "peepholes": peepholes}
    if any(value is not None and _sizes(value) != layer.param_shapes()[slot] for slot, value in params.items()):
        return None
    made = op.add(layer, x, lengths, h0, c0, params=params, outputs=layer.outputs)
    return (made,) if layer.outputs == 1 else made


RECOGNISERS: dict[str, Recogniser] = {
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "Dropout": _dropout,
    "Gather": _gather,
    "Gemm": _gemm,
    "LayerNormalization": _layer_norm,
    **dict.fromkeys(GATES, _recurrent),
}


def recognised(op: GraphBuilder, form: Form) -> tuple[Value, ...] | None:
    """The outputs of the richer layer that a node is, None if there is none."""
    recognise = RECOGNISERS.get(form.op_type)
    if recognise is None or (any(form.outputs[1:]) and form.op_type not in GATES):
        return None
    made = recognise(op, form)
    return (made,) if isinstance(made, Value) else made


# --- several nodes that are one layer


@dataclass(frozen=True)
class DenseNodes:
    """MatMul(x, weight) or MatMul(x, Transpose(weight)) and, if there is one, the Add of a bias.

    Arguments:
        product: the MatMul node.
        x, weight, bias: names of values.
        in_first: whether the weight is not transposed.
    """

    product: onnx.NodeProto
    x: str
    weight: str
    bias: str | None
    in_first: bool


@dataclass(frozen=True)
class Patterns:
    """Groups of nodes that become one layer: by the output of their last node; and the outputs of the nodes before."""

    dense: Mapping[str, DenseNodes]
    inside: Collection[str]


def patterns(
    nodes: Sequence[onnx.NodeProto], uses: Uses, shapes: Mapping[str, tuple[int, ...]], outputs: Collection[str]
) -> Patterns:
    """Finds the groups.

    Arguments:
        nodes: of the graph.
        uses: of the graph.
        shapes: of the stored floating-point arrays by name.
        outputs: names of the graph's outputs.
    """
    dense: dict[str, DenseNodes] = {}
    inside: set[str] = set()
    here = set(map(id, nodes))
    for node in nodes:
        if node.op_type != "MatMul" or len(node.input) != 2:
            continue
        weight, transpose = node.input[1], uses.producer.get(node.input[1])
        in_first = weight in shapes
        if not in_first and transpose is not None and transpose.op_type == "Transpose":
            perm = next((list(a.ints) for a in transpose.attribute if a.name == "perm"), [1, 0])
            weight = transpose.input[0] if perm == [1, 0] else ""
        if len(shapes.get(weight, ())) != 2 or 0 in shapes[weight] or node.input[0] in shapes:
            continue
        units = shapes[weight][1 if in_first else 0]
        product = node.output[0]
        readers = [reader for reader in uses.readers.get(product, []) if id(reader) in here]
        if len(readers) != len(uses.readers.get(product, [])):
            readers = []  # read inside another graph: it stays a value of its own
        # before opset 7, attributes of an Add could align its inputs otherwise
        if len(readers) == 1 and readers[0].op_type == "Add" and not readers[0].attribute and product not in outputs:
            (other,) = [name for name in readers[0].input if name != product]
            if shapes.get(other) == (units,):
                dense[readers[0].output[0]] = DenseNodes(node, node.input[0], weight, other, in_first)
                inside.add(product)
                continue
        dense[product] = DenseNodes(node, node.input[0], weight, None, in_first)
    return Patterns(dense, inside)
