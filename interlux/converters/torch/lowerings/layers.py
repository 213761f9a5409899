"""Layers without spatial axes: linear ones, lookup tables, dropout, attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ....ir import layers as ir
from ....ir.errors import UnsupportedError
from ....ir.layer import ALWAYS
from ...builder import Value
from ..builder import TorchBuilder
from .registry import aten
from .spatial import static_shape


@aten("linear")
def linear(op: TorchBuilder, x: Value, weight: Value, bias: Value | None = None) -> Value:
    if op.rank_of(weight) == 1:
        y = op.MatMul(x, weight)
        return y if bias is None else op.Add(y, bias)
    outs, ins = static_shape(op, weight, "a linear layer's weight")
    return op.add(ir.Dense(ins, outs, bias is not None), x, params={"weight": weight, "bias": bias})


# --- lookup tables


@aten("embedding")
def embedding(
    op: TorchBuilder, weight: Value, indices: Value, padding: int = -1, scale: bool = False, sparse: bool = False
) -> Value:
    if scale:
        raise UnsupportedError(
            f"embedding with gradients scaled by frequency{op.where()}; set scale_grad_by_freq=False"
        )
    rows, features = static_shape(op, weight, "an embedding's weight")
    layer = ir.Embedding(rows, features, padding if padding >= 0 else None)
    return op.add(layer, indices, params={"weight": weight}, dtype=weight.dtype)


@aten("embedding_renorm")
def embedding_renorm(op: TorchBuilder, *arguments: Any) -> Value:
    raise UnsupportedError(
        f"an embedding with max_norm, which rewrites its weight in every call{op.where()}; normalise the rows once and "
        "set max_norm=None"
    )


_SUM, _MEAN, _MAX = range(3)


@aten("embedding_bag.padding_idx", "embedding_bag")
def embedding_bag(
    op: TorchBuilder,
    weight: Value,
    indices: Value,
    offsets: Value,
    scale: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    factors: Value | None = None,
    include_last: bool = False,
    padding: int | None = None,
) -> tuple[Value, ...]:
    """Rows of a table, summed up bag by bag. Of its four results only the first has a use outside torch."""
    if scale:
        raise UnsupportedError(
            f"embedding_bag with gradients scaled by frequency{op.where()}; set scale_grad_by_freq=False"
        )
    for user in op.fx_node.users:
        if user.args[1:] != (0,) and user.users:
            raise UnsupportedError(f"the bags' sizes and positions as results of embedding_bag{op.where()}")
    rows, features = static_shape(op, weight, "an embedding's weight")
    if padding is not None and padding < 0:
        padding = padding + rows if padding != -1 or "padding_idx" in str(op.fx_node.target) else None
    table = ir.Embedding(rows, features)
    length = _bag_length(op)
    if length is not None:
        indices = op.named(op.Reshape(indices, op.ints(-1, length)), "", (None, length))
    found = op.add(table, indices, params={"weight": weight}, dtype=weight.dtype)  # [bags, length, features] or flat
    if factors is not None:
        column = op.Reshape(factors, op.ints(-1, length)) if length is not None else factors
        found = op.Mul(found, op.Unsqueeze(column, op.ints(2 if length is not None else 1)))
    counted = None if padding is None else op.Not(op.Equal(indices, op.const(padding, like=indices)))
    if length is not None:
        result = _fixed_bags(op, found, counted, mode)
    else:
        result = _ragged_bags(op, found, counted, mode, indices, offsets, include_last)
    others = [Value(np.dtype(np.int64), op.shape(t.shape)) for t in op.result[1:]]
    return (result, *others)


def _bag_length(op: TorchBuilder) -> int | None:
    """How many indices every bag has, if the module was given a matrix of them: its offsets are then a range."""
    offsets = op.fx_node.args[2]
    if not isinstance(offsets, torch.fx.Node) or str(offsets.target) != "aten.arange.start_step":
        return None
    start, _, step = offsets.args
    include_last = len(op.fx_node.args) > 7 and op.fx_node.args[7]
    return step if isinstance(step, int) and start == 0 and not include_last else None


def _marked(op: TorchBuilder, found: Value, counted: Value | None, else_: float) -> Value:
    """Rows of padding replaced."""
    if counted is None:
        return found
    return op.Where(op.Unsqueeze(counted, op.ints(-1)), found, op.const(else_, like=found))


def _fixed_bags(op: TorchBuilder, found: Value, counted: Value | None, mode: int) -> Value:
    axis = op.ints(1)
    if mode == _MAX:
        rows = _marked(op, found, counted, -np.inf)
        place = op.ArgMax(rows, axis=1, keepdims=1)
        largest = op.Squeeze(op.GatherElements(rows, place, axis=1), axis)  # one of equal values takes the gradient
        if counted is None:
            return largest
        some = op.ReduceMax(op.cast(counted, np.int64), axis, keepdims=1)
        return op.Where(op.cast(some, bool), largest, op.const(0, like=found))
    if mode == _MEAN and counted is None:
        return op.ReduceMean(found, axis, keepdims=0)
    total = op.ReduceSum(_marked(op, found, counted, 0), axis, keepdims=0)
    if mode == _SUM or counted is None:
        return total
    return _mean(op, total, op.ReduceSum(op.cast(counted, np.int64), axis, keepdims=1))


def _mean(op: TorchBuilder, total: Value, count: Value) -> Value:
    """Sums [bags, features] divided by counts [bags, 1]; an empty bag gives zeros."""
    return op.Div(total, op.cast(op.Max(count, op.const(np.array(1))), total.dtype))


def _ragged_bags(
    op: TorchBuilder,
    found: Value,
    counted: Value | None,
    mode: int,
    indices: Value,
    offsets: Value,
    include_last: bool,
) -> Value:
    """Bags that begin at offsets: each row is added to the bag of the last offset before it."""
    if mode == _MAX:
        raise UnsupportedError(
            f"embedding_bag with mode='max' and offsets{op.where()}; give a matrix of indices, one row for each bag"
        )
    if include_last:
        offsets = op.Slice(offsets, op.ints(0), op.ints(-1), op.ints(0))
    offsets = op.cast(offsets, np.int64)
    count = op.Squeeze(op.Shape(indices), op.ints(0))
    place = op.Range(op.const(np.array(0)), count, op.const(np.array(1)))
    begun = op.LessOrEqual(op.Unsqueeze(offsets, op.ints(0)), op.Unsqueeze(place, op.ints(1)))
    bag = op.Sub(op.ReduceSum(op.cast(begun, np.int64), op.ints(1), keepdims=1), op.ints(1))  # [indices, 1]

    def added(rows: Value) -> Value:
        features = op.Shape(rows, start=1, end=2)
        shape = op.Concat(op.Shape(offsets), features, axis=0)
        zeros = op.ConstantOfShape(shape, value=np.zeros(1, rows.dtype))
        return op.ScatterND(zeros, bag, rows, reduction="add")

    total = added(_marked(op, found, counted, 0))
    if mode == _SUM:
        return total
    ones = op.ConstantOfShape(op.Shape(bag), value=np.ones(1, np.int64))
    if counted is not None:
        ones = op.cast(op.Unsqueeze(counted, op.ints(1)), np.int64)
    return _mean(op, total, added(ones))


# --- dropout


def dropout_of(op: TorchBuilder, probability: float, training: bool) -> tuple[float, str]:
    """The probability and mode of dropout that has both a flag and a probability: either may turn it off."""
    mode = op.mode(training)
    return op.dropout_rate(probability) if mode == ALWAYS else (probability, mode)


@aten("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def dropout(op: TorchBuilder, x: Value, probability: float, training: bool) -> Value:
    rate, mode = dropout_of(op, probability, training)
    layer = ir.Dropout(rate, mode, channels="feature" in op.operator, alpha="alpha" in op.operator)
    return op.add(layer, x, states={"seed": op.seed})


# --- attention


@aten("scaled_dot_product_attention")
def attention(
    op: TorchBuilder,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None = None,
    probability: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    groups = 1
    if enable_gqa:
        heads, shared, valued = ((x.shape or ())[-3] for x in (query, key, value))
        if not isinstance(heads, int) or not isinstance(shared, int) or not isinstance(valued, int):
            raise UnsupportedError(f"grouped attention over an unknown number of heads{op.where()}")
        if shared != valued:
            raise UnsupportedError(f"grouped attention with {shared} key but {valued} value heads{op.where()}")
        groups = heads // shared
    masked = "none" if mask is None else "bool" if mask.dtype == bool else "float"
    if mask is not None and masked == "float":
        mask = op.cast(mask, query.dtype)
    # the probability as in training, even if evaluation passes 0
    rate, mode = op.dropout_rate(probability)
    layer = ir.Attention(scale, causal, masked, groups, rate, mode)
    arguments = [query, key, value] + ([mask] if mask is not None else [])
    return op.add(layer, *arguments, states={"seed": op.seed} if rate else None)
