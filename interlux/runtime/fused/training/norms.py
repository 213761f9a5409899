"""Norms and products: what inference has as one reduction, training has as steps whose derivatives are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..builder import Value
from ..operators import _axes, _not_batch
from ..tensors import Tensor

if TYPE_CHECKING:
    from .recorder import Recorder


def reduce_l1(b: Recorder, x: Tensor, *axes: Value, **attributes: Any) -> Tensor:
    return b.call("ReduceSum", [b.elementwise("Abs", [x], {}), *axes], attributes, 1)


def reduce_squares(b: Recorder, x: Tensor, *axes: Value, **attributes: Any) -> Tensor:
    return b.call("ReduceSum", [b.elementwise("Mul", [x, x], {}), *axes], attributes, 1)


def reduce_l2(b: Recorder, x: Tensor, *axes: Value, **attributes: Any) -> Tensor:
    """Of zeros the gradient is 0, as in PyTorch."""
    squares = reduce_squares(b, x, *axes, **attributes)
    zero, one = (np.asarray(number, b.dtype) for number in (0, 1))
    none = b.elementwise("Equal", [squares, zero], {})
    root = b.elementwise("Sqrt", [b.elementwise("Where", [none, one, squares], {})], {})
    return b.elementwise("Where", [none, zero, root], {})


def reduce_product(
    b: Recorder, x: Tensor, axes: Value | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Halves times halves: no derivative divides, so that zeros are no exception."""
    over = _axes(b, x, axes, noop_with_empty_axes, "ReduceProd")
    _not_batch(b, x, over, "ReduceProd")
    for axis in over:
        rests = []
        while x.shape[axis] > 1:
            low, high, rest = np.split(x.index, [x.shape[axis] // 2, x.shape[axis] // 2 * 2], axis)
            if rest.size:
                rests.append(x.moved(rest, x.axis))
            x = b.elementwise("Mul", [x.moved(low, x.axis), x.moved(high, x.axis)], {})
        for part in rests:
            x = b.elementwise("Mul", [x, part], {})
    return x if keepdims else b.call("Squeeze", [x, np.asarray(over)], {}, 1)
