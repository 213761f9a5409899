"""Norms as sums: what inference has as one reduction, training has as steps whose derivatives are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..builder import Value
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
