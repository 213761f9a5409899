"""Products of grouped rows: mixtures of experts."""

from __future__ import annotations

import numpy as np

from ....ir.errors import UnsupportedError
from ...builder import Value
from ..builder import TorchBuilder
from .registry import aten


@aten("transformers.grouped_mm_fallback.default", "_grouped_mm.default")
def grouped_mm(
    op: TorchBuilder,
    x: Value,
    weight: Value,
    ends: Value | None = None,
    bias: Value | None = None,
    dtype: object = None,
) -> Value:
    """Rows times the matrix of their group: x [rows, features], sorted by group; weight [groups, features, units].

    Neither ONNX nor XLA on a CPU has a product whose groups are known at run time only, so every row meets every
    matrix, and the others' results are dropped: `groups` times the work of a sparse one.

    Arguments:
        ends: where each group's rows end [groups], integer; rows after the last end give zeros.
    """
    if ends is None or bias is not None or op.rank_of(x) != 2 or op.rank_of(weight) != 3:
        raise UnsupportedError(
            f"a grouped product of other than rows [rows, features] by matrices [groups, features, units]{op.where()}"
        )
    products = op.MatMul(op.Unsqueeze(x, op.ints(0)), weight)  # [groups, rows, units]
    rows = op.Squeeze(op.Shape(x, start=0, end=1), op.ints(0))
    places = op.Range(op.const(np.array(0)), rows, op.const(np.array(1)))
    column = op.Unsqueeze(op.cast(ends, np.int64), op.ints(1))
    before = op.cast(op.Less(op.Unsqueeze(places, op.ints(0)), column), np.int64)  # 1 from its group on
    first = op.Sub(before, op.Pad(op.Slice(before, op.ints(0), op.ints(-1), op.ints(0)), op.ints(1, 0, 0, 0)))
    own = op.Unsqueeze(op.Equal(first, op.const(np.array(1))), op.ints(2))
    return op.cast(op.ReduceSum(op.Where(own, products, op.const(0, like=x)), op.ints(0), keepdims=0), op.result_dtype)
