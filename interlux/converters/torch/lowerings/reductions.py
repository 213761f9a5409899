"""Reductions, softmax, products of matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ....ir.errors import UnsupportedError
from ....ir.trees import is_float
from ...builder import Value
from ..builder import TorchBuilder
from .registry import aten

Axes = int | Sequence[int] | None


def _axes(op: TorchBuilder, x: Value, axes: Axes) -> Value | None:
    """Axes as ONNX takes them; None reduces all."""
    if axes is None or (not isinstance(axes, int) and len(axes) == 0):
        return None
    return op.ints(*(op.axis(a, op.rank_of(x)) for a in ([axes] if isinstance(axes, int) else axes)))


def _reduction(primitive: str) -> Callable[..., Value]:
    def lowering(op: TorchBuilder, x: Value, axes: Axes = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
        if op.rank_of(x) == 0:
            return op.cast(x, op.result_dtype)
        x = op.cast(x, op.result_dtype)
        return op.primitive(primitive, (x, _axes(op, x, axes)), {"keepdims": int(keepdim)})

    return lowering


for _names, _primitive in (
    ("mean mean.dim", "ReduceMean"),
    ("sum sum.dim_IntList", "ReduceSum"),
    ("amax", "ReduceMax"),
    ("amin", "ReduceMin"),
    ("logsumexp", "ReduceLogSumExp"),
    ("max", "ReduceMax"),
    ("min", "ReduceMin"),
    ("prod", "ReduceProd"),
):
    aten(*_names.split())(_reduction(_primitive))


@aten("max.dim", "min.dim")
def extreme(op: TorchBuilder, x: Value, axis: int, keepdim: bool = False) -> tuple[Value, Value]:
    which = "Max" if op.operator.startswith("max") else "Min"
    axis = op.axis(axis, op.rank_of(x))
    position = op.primitive(f"Arg{which}", (x,), {"axis": axis, "keepdims": 1})
    value = op.GatherElements(x, position, axis=axis)  # the gradient goes to one of equal values, as in torch
    if keepdim:
        return value, position
    return op.Squeeze(value, op.ints(axis)), op.Squeeze(position, op.ints(axis))


@aten("any", "any.dim", "all", "all.dim")
def quantifier(op: TorchBuilder, x: Value, axes: Axes = None, keepdim: bool = False) -> Value:
    negated = op.operator == "all"
    # counted, because over no elements `any` is False and `all` True
    hits = op.cast(x, bool) if negated is False else op.Not(op.cast(x, bool))
    count = op.ReduceSum(op.cast(hits, np.int64), _axes(op, x, axes), keepdims=int(keepdim))
    none = op.Equal(count, op.const(np.array(0, np.int64)))
    return op.cast(none if negated else op.Not(none), op.result_dtype)


@aten("argmax", "argmin")
def arg_extreme(op: TorchBuilder, x: Value, axis: int | None = None, keepdim: bool = False) -> Value:
    primitive = "ArgMax" if "argmax" in op.operator else "ArgMin"
    if axis is not None:
        return op.primitive(primitive, (x,), {"axis": op.axis(axis, op.rank_of(x)), "keepdims": int(keepdim)})
    flat = op.primitive(primitive, (op.Reshape(x, op.ints(-1)),), {"axis": 0, "keepdims": 0})
    return op.reshape(flat, list(op.result.shape)) if keepdim else flat


@aten("var.correction", "std.correction", "var.dim", "std.dim")
def variance(
    op: TorchBuilder, x: Value, axes: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> Value:
    if "correction" in str(op.fx_node.target):
        keepdim = bool(op.fx_node.kwargs.get("keepdim", False))
        less = 1 if correction is None else correction
    else:
        less = 1 if unbiased is None or unbiased else 0
    where = _axes(op, x, axes)
    centred = op.Sub(x, op.ReduceMean(x, where, keepdims=1))
    total = op.ReduceSum(op.Mul(centred, centred), where, keepdims=int(keepdim))
    one = op.ReduceSum(op.Mul(centred, op.const(0, like=x)), where, keepdims=int(keepdim))
    count = op.Div(op.Size(x), op.Size(one))
    result = op.Div(total, op.Sub(op.cast(count, x.dtype), op.const(less, like=x)))
    if "std" not in op.operator:
        return result
    zero = op.Equal(result, op.const(0, like=result))  # torch's derivative at 0 is 0, that of a square root infinite
    safe = op.Sqrt(op.Where(zero, op.const(1, like=result), result))
    return op.Where(zero, op.const(0, like=result), safe)


@aten("cumsum")
def cumsum(op: TorchBuilder, x: Value, axis: int, *, dtype: Any = None) -> Value:
    return op.CumSum(op.cast(x, op.result_dtype), op.value(op.axis(axis, op.rank_of(x))))


@aten("softmax.int", "log_softmax.int", "_softmax", "_log_softmax")
def softmax(op: TorchBuilder, x: Value, axis: int, dtype: Any = None) -> Value:
    primitive = "LogSoftmax" if "log_softmax" in op.operator else "Softmax"
    return op.primitive(primitive, (op.cast(x, op.result_dtype),), {"axis": op.axis(axis, op.rank_of(x))})


@aten("linalg_vector_norm", "norm.ScalarOpt_dim")
def vector_norm(
    op: TorchBuilder, x: Value, order: Any = 2, axes: Axes = None, keepdim: bool = False, **_: Any
) -> Value:
    primitive = {1: "ReduceL1", 2: "ReduceL2"}.get(2 if order is None else order)
    if primitive is None:
        raise UnsupportedError(f"the norm of order {order}{op.where()}")
    return op.primitive(primitive, (op.cast(x, op.result_dtype), _axes(op, x, axes)), {"keepdims": int(keepdim)})


@aten("_weight_norm")
def weight_norm(op: TorchBuilder, v: Value, g: Value, axis: int = 0) -> Value:
    axes = op.ints(*(a for a in range(op.rank_of(v)) if a != op.axis(axis, op.rank_of(v))))
    length = op.ReduceL2(v, axes, keepdims=1) if axis != -1 else op.ReduceL2(v, None, keepdims=1)
    return op.Mul(v, op.Div(g, length))


@aten("matmul", "mm", "bmm", "mv", "dot")
def matmul(op: TorchBuilder, x: Value, y: Value) -> Value:
    return op.MatMul(x, y)


def _scaled(op: TorchBuilder, x: Value, factor: float) -> Value:
    if factor == 1:
        return x
    return op.Mul(x, op.const(factor, like=x))


@aten("addmm", "baddbmm")
def addmm(op: TorchBuilder, c: Value, x: Value, y: Value, *, beta: float = 1, alpha: float = 1) -> Value:
    product = _scaled(op, op.MatMul(x, y), alpha)
    return product if beta == 0 else op.Add(_scaled(op, c, beta), product)


@aten("einsum")
def einsum(op: TorchBuilder, equation: str, operands: Sequence[Value], **_: Any) -> Value:
    return op.Einsum(*operands, equation=equation.replace(" ", ""))


@aten("diff")
def diff(op: TorchBuilder, x: Value, n: int = 1, axis: int = -1, prepend: Value | None = None) -> Value:
    axis = op.axis(axis, op.rank_of(x))
    if prepend is not None:
        x = op.Concat(prepend, x, axis=axis)
    for _ in range(n):
        later = op.Slice(x, op.ints(1), op.ints(2**63 - 1), op.ints(axis))
        earlier = op.Slice(x, op.ints(0), op.ints(-1), op.ints(axis))
        x = op.Sub(later, earlier) if is_float(x.dtype) or x.dtype != bool else op.Xor(later, earlier)
    return x
