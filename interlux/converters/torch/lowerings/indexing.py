"""Gathering, scattering and indexing by tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ....ir.errors import UnsupportedError
from ...builder import Value
from ..builder import TorchBuilder
from .registry import aten


@aten("gather")
def gather(op: TorchBuilder, x: Value, axis: int, index: Value, *, sparse_grad: bool = False) -> Value:
    return op.GatherElements(x, index, axis=op.axis(axis, op.rank_of(x)))


@aten("index_select")
def index_select(op: TorchBuilder, x: Value, axis: int, index: Value) -> Value:
    return op.Gather(x, index, axis=op.axis(axis, op.rank_of(x)))


@aten("index.Tensor")
def index(op: TorchBuilder, x: Value, indices: Sequence[Value | None]) -> Value:
    used = [(axis, i) for axis, i in enumerate(indices) if i is not None]
    if any(i.dtype == bool for _, i in used):
        raise UnsupportedError(f"indexing by a mask: the size of the result depends on the data{op.where()}")
    if len(used) == 1:
        ((axis, only),) = used
        return op.Gather(x, only, axis=axis)
    axes = [axis for axis, _ in used]
    if axes != list(range(len(axes))):
        raise UnsupportedError(
            f"indexing by several tensors on the axes {axes}; only the leading axes are supported{op.where()}"
        )
    given = [n.meta["val"].shape for n in op.fx_node.args[1] if isinstance(n, torch.fx.Node)]  # type: ignore[union-attr]
    common = list(torch.broadcast_shapes(*given))
    rank = len(common)
    columns = [
        op.Unsqueeze(i if list(s) == common else op.Expand(i, op.sizes(common)), op.ints(rank))
        for (_, i), s in zip(used, given, strict=True)
    ]
    return op.GatherND(x, op.Concat(*columns, axis=rank))


@aten("scatter.src", "scatter.value")
def scatter(op: TorchBuilder, x: Value, axis: int, index: Value, source: object) -> Value:
    if not isinstance(source, Value):
        source = op.Expand(op.value(source, x.dtype), op.Shape(index))
    elif source.shape != index.shape:
        raise UnsupportedError(f"scatter whose index is smaller than its source{op.where()}")
    return op.ScatterElements(x, index, source, axis=op.axis(axis, op.rank_of(x)))
