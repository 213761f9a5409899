"""What lowerings share that work with sizes, dynamic ones among them.

Sizes are never compared: a comparison of torch's symbols would answer for the example's sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir.errors import UnsupportedError
from ....ir.trees import is_float
from ...builder import Value
from ..builder import Size, TorchBuilder


def sizes_of(op: TorchBuilder, argument: Any) -> list[Size]:
    """The sizes of a tensor among the arguments of the fx node.

    Arguments:
        argument: its position, or the fx node that it is.
    """
    node: Any = op.fx_node.args[argument] if isinstance(argument, int) else argument
    return list(node.meta["val"].shape)


def is_one(size: Size) -> bool:
    return isinstance(size, int) and size == 1


def common_size(a: Size, b: Size) -> Size:
    """What two sizes broadcast to; a dynamic one is known not to be 1 where torch exported it beside another."""
    if is_one(a):
        return b
    return b if isinstance(b, int) and not is_one(b) else a


def common_sizes(*shapes: Sequence[Size]) -> list[Size]:
    """What shapes broadcast to."""
    rank = max(map(len, shapes))
    result: list[Size] = [1] * rank
    for shape in shapes:
        for i, size in enumerate(shape):
            place = rank - len(shape) + i
            result[place] = common_size(result[place], size)
    return result


def product(sizes: Sequence[Size]) -> Size:
    total: Size = 1
    for size in sizes:
        total = total * size
    return total


def same_sizes(op: TorchBuilder, a: Sequence[Size], b: Sequence[Size]) -> bool:
    """Whether shapes are the same as expressions."""
    return op.shape(a) == op.shape(b)


def expanded(op: TorchBuilder, x: Value, have: Sequence[Size], wanted: Sequence[Size]) -> Value:
    """x, of the sizes `have`, broadcast to `wanted`."""
    return x if same_sizes(op, have, wanted) else op.Expand(x, op.sizes(wanted))


def positions(op: TorchBuilder, count: Size, step: Size = 1, start: Size = 0) -> Value:
    """start, start + step, …: `count` numbers, int64."""
    if all(isinstance(s, int) for s in (count, step, start)) and int(count) <= 64:
        return op.const(start + step * np.arange(int(count), dtype=np.int64))
    numbers = op.Range(*(op.value(s, np.int64) for s in (0, count, 1)))
    if not (isinstance(step, int) and step == 1):
        numbers = op.Mul(numbers, op.value(step, np.int64))
    return numbers if isinstance(start, int) and start == 0 else op.Add(numbers, op.value(start, np.int64))


def transposed(op: TorchBuilder, x: Value, perm: Sequence[int]) -> Value:
    return x if list(perm) == list(range(len(perm))) else op.Transpose(x, perm=tuple(perm))


def inverse(perm: Sequence[int]) -> list[int]:
    return [list(perm).index(i) for i in range(len(perm))]


def to_front(axes: Sequence[int], rank: int) -> list[int]:
    """The permutation that brings axes to the front, in this order."""
    return [*axes, *(a for a in range(rank) if a not in axes)]


def at_least_1d(op: TorchBuilder, x: Value) -> Value:
    """torch takes a scalar as a vector of one element where an axis is named."""
    return op.Reshape(x, op.ints(1)) if op.rank_of(x) == 0 else x


def along_one_axis(op: TorchBuilder, x: Value, axis: int | None) -> tuple[Value, int, list[Size]]:
    """The first argument where an operator works along one axis: flat without one, a scalar as a vector. Returns it,
    the axis counted from 0, its sizes."""
    sizes = sizes_of(op, 0)
    if axis is None:
        return op.Reshape(x, op.ints(-1)), 0, [product(sizes)]
    if not sizes:
        x, sizes = at_least_1d(op, x), [1]
    return x, op.axis(axis, len(sizes)), sizes


def is_mask(index: Value) -> bool:
    """Whether an index chooses by truth (torch takes bytes so too)."""
    return index.dtype in (np.dtype(bool), np.dtype(np.uint8))


def ordered_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """A dtype for the same values that operators which sort, sum or compare know on every backend."""
    if is_float(dtype):
        return np.dtype(np.float32) if dtype.itemsize < 4 else dtype
    return np.dtype(np.int32) if dtype.itemsize < 4 else np.dtype(dtype)


def either(op: TorchBuilder, mask: Value, a: Value, b: Value) -> Value:
    """a where the mask is true, else b, both of one dtype; onnxruntime's Where lacks bool and some
    integers."""
    if a.dtype == bool:
        return op.Or(op.And(mask, a), op.And(op.Not(mask), b))
    wide = a.dtype
    if wide.kind in "iu":
        wide = np.dtype(np.int64) if wide == np.uint64 else ordered_dtype(wide)
    return op.cast(op.Where(mask, op.cast(a, wide), op.cast(b, wide)), a.dtype)


def lowest(dtype: np.dtype[Any]) -> Any:
    """The identity of max."""
    if is_float(dtype):
        return -np.inf
    return False if dtype.kind == "b" else np.iinfo(dtype).min


def highest(dtype: np.dtype[Any]) -> Any:
    """The identity of min."""
    if is_float(dtype):
        return np.inf
    return True if dtype.kind == "b" else np.iinfo(dtype).max


def static(op: TorchBuilder, size: Size, what: str) -> int:
    """A size that must be known. Raises UnsupportedError for a dynamic one."""
    if not isinstance(size, int):
        raise UnsupportedError(f"{what} of dynamic size{op.where()}; export with that size fixed")
    return size
