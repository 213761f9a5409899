"""Values of a program: tensors with static shapes for one sample, and where their elements are stored.

A tensor of the model has the batch on one of its axes. Here that axis has the size that belongs to one sample, 1 as a
rule; the rank stays the model's, so that axes keep their numbers. What only rearranges elements (a transposition, a
slice, an expansion) moves nothing: it is another index into the same storage.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from ...ir.errors import UnsupportedError

BATCH = 2_147_483_629  # a prime that stands for the batch where shapes are computed as numbers

Shape = tuple[int, ...]
_numbers = itertools.count()


@dataclass(eq=False)
class Buffer:
    """Storage of `size` elements for each sample: an input of the model or what a step makes."""

    size: int
    dtype: np.dtype[Any]
    input: int | None = None  # which input of the model

    def __post_init__(self) -> None:
        self.number = next(_numbers)


@dataclass(eq=False)
class Constant:
    """Numbers that are the same for every sample: weights as they are read one by one."""

    data: np.ndarray  # flat

    @property
    def size(self) -> int:
        return int(self.data.size)


Source = Buffer | Constant


@dataclass(frozen=True)
class Access:
    """Where an element lies: offset + Σ coordinate · stride."""

    offset: int
    strides: Shape


def contiguous(shape: Shape) -> Access:
    """How elements that lie in their order are reached by their coordinates."""
    return Access(0, tuple(prod(shape[i + 1 :]) for i in range(len(shape))))


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value of the model for one sample.

    Arguments:
        source: where its elements are stored.
        index: which element of the source, int64, of the tensor's shape; -1 is `fill`.
        dtype: in the model; booleans are stored as 0.0 and 1.0.
        axis: the batch's axis; None if the model has none, or of a constant.
        outer: on that axis the batch stands between `outer` and the rest: position = (o · batch + b) · inner + i.
        fill: the number for index -1.
    """

    source: Source
    index: np.ndarray
    dtype: np.dtype[Any]
    axis: int | None = 0
    outer: int = 1
    fill: float = 0.0

    @property
    def shape(self) -> Shape:
        return self.index.shape

    @property
    def size(self) -> int:
        return int(self.index.size)

    @property
    def is_constant(self) -> bool:
        return isinstance(self.source, Constant)

    def logical(self) -> Shape:
        """The shape in the model, BATCH in place of the batch."""
        return tuple(d * BATCH if i == self.axis else d for i, d in enumerate(self.shape))

    def batch_rank(self) -> tuple[int, int]:
        """How many elements of a sample lie before and behind the batch in the model's order."""
        before = prod(self.shape[: self.axis]) * self.outer
        return before, self.size // max(before, 1)

    def moved(self, index: np.ndarray, axis: int | None, outer: int | None = None) -> Tensor:
        """The same elements in another arrangement."""
        return replace(self, index=index, axis=axis, outer=self.outer if outer is None else outer)

    def reshaped(self, shape: Shape) -> Tensor:
        """With another shape for one sample; the batch's place gets lost."""
        return replace(self, index=self.index.reshape(shape), axis=None, outer=1)

    def values(self) -> np.ndarray:
        """The numbers of a constant tensor."""
        assert isinstance(self.source, Constant)
        return self.source.data[self.index]

    def access(self, shape: Shape | None = None) -> Access | None:
        """Its elements as an affine function of the coordinates in a shape of the same size; None if they are not."""
        index = self.index if shape is None else self.index.reshape(shape)
        if index.size == 0 or (first := int(index.flat[0])) < 0:
            return None
        strides = []
        expected: Any = np.int64(first)
        for axis, size in enumerate(index.shape):
            step = 0
            if size > 1:
                step = int(index[(0,) * axis + (1,) + (0,) * (index.ndim - axis - 1)]) - first
            strides.append(step)
            expected = np.add.outer(expected, np.arange(size, dtype=np.int64) * step)
        return Access(first, tuple(strides)) if np.array_equal(index, expected) else None

    def plain(self) -> Tensor:
        """A constant whose elements are written out where its index is not affine; every other tensor as it is."""
        if not self.is_constant or self.access() is not None:
            return self
        numbers = np.where(self.index < 0, self.fill, self.values()).astype(self.values().dtype)
        return replace(constant(numbers), axis=self.axis, outer=self.outer)

    def is_whole(self) -> bool:
        """Whether it is all of its source in the source's order."""
        return self.size == self.source.size and bool(np.array_equal(self.index.ravel(), np.arange(self.size)))


def whole(source: Source, shape: Shape, dtype: Any, axis: int | None = 0, outer: int = 1) -> Tensor:
    """All elements of a source in their order."""
    return Tensor(source, np.arange(prod(shape), dtype=np.int64).reshape(shape), np.dtype(dtype), axis, outer)


def constant(array: np.ndarray) -> Tensor:
    """An array as a tensor without a batch."""
    data = np.ascontiguousarray(array)
    return whole(Constant(data.reshape(-1)), data.shape, data.dtype, None)


def broadcast(tensor: Tensor, shape: Shape) -> Tensor:
    """Repeated along axes of size 1 to a shape of the same or a higher rank."""
    lifted = len(shape) - len(tensor.shape)
    axis = None if tensor.axis is None else tensor.axis + lifted
    return tensor.moved(np.broadcast_to(tensor.index, shape), axis)


def common(tensors: list[Tensor], what: str) -> tuple[Shape, int | None, int]:
    """The shape that operands broadcast to, and the batch's place.

    Raises UnsupportedError if the batch lies on different axes.
    """
    rank = max(len(t.shape) for t in tensors)
    shape = np.broadcast_shapes(*(t.shape for t in tensors))
    places = {(t.axis + rank - len(t.shape), t.outer) for t in tensors if t.axis is not None}
    if len(places) > 1:
        raise UnsupportedError(f"{what} combines values whose batch lies on different axes")
    if not places:
        return shape, None, 1
    axis, outer = places.pop()
    for t in tensors:
        own = axis - rank + len(t.shape)
        if t.axis is None and own >= 0 and t.shape[own] != 1:
            raise UnsupportedError(f"{what} combines the batch's axis with {t.shape[own]} different numbers")
        if t.axis is not None and t.shape[own] != shape[axis]:
            raise UnsupportedError(f"{what} repeats values along the batch's axis")
    return shape, axis, outer
