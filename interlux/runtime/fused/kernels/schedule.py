"""What generators write for: where values lie and how they are read and written.

Two schedules share all generators. With samples in the lanes, a feature is `blocks` vectors of samples that lie one
behind the other, and every step is scalar code on these. For one sample, a feature is one number; then generators that
can put neighbouring features into the lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..llvm import BF16, I8, I32, PTR, VOID, Function, Index, Value, type_of
from ..target import Target
from ..tensors import Access, Buffer, Constant, Shape, Source, Tensor

ALIGNMENT = 64  # bytes: of the parameters, of the arena, and of each array in them


class Parameters:
    """The one block of memory that holds weights in the order in which code reads them."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._places: dict[Any, tuple[int, Any]] = {}
        self.size = 0

    def add(self, array: np.ndarray, dtype: Any, key: Any = None) -> int:
        """Stores an array; returns its offset in bytes. With a key only once."""
        if key is not None and key in self._places:
            return self._places[key][0]
        raw = np.ascontiguousarray(array, dtype).tobytes()
        offset = self.size
        self._parts.append(raw + bytes(-len(raw) % ALIGNMENT))
        self.size += len(self._parts[-1])
        if key is not None:
            self._places[key] = offset, key  # holds what the key's identity belongs to
        return offset

    def bytes(self) -> bytes:
        return b"".join(self._parts)


class Schedule:
    """Where and how one function of a program keeps its values.

    Arguments:
        f: the function; its arguments `parameters` and `arena` are pointers.
        target: what it is compiled for.
        dtype: of the program.
        lanes: samples in a vector; 1 for one sample at a time.
        blocks: vectors of samples that are handled together.
        parameters: collects the weights.
        arena: where buffers lie, in elements of one sample.
        external: pointers of buffers that lie outside of the arena.
        samples: rows of samples that lie behind every pointer where there are none in the lanes.
        stored: dtype of large weights in memory, if it is not that of the program: bfloat16.
        end: elements of one sample that buffers in the arena take; what steps use for themselves lies behind them.
    """

    def __init__(
        self,
        f: Function,
        target: Target,
        dtype: np.dtype[Any],
        lanes: int,
        blocks: int,
        parameters: Parameters,
        arena: dict[Buffer, int],
        external: dict[Buffer, Value],
        samples: int = 1,
        end: int = 0,
        stored: np.dtype[Any] | None = None,
    ):
        self.f, self.target, self.dtype = f, target, dtype
        self.element = type_of(dtype)
        self.lanes, self.blocks, self.tile = lanes, blocks, lanes * blocks
        self.width = target.lanes(dtype)
        self.samples, self._stored = samples, stored
        self._passed: dict[Any, tuple[Callable[[], Value], Value]] | None = None  # to the function apart
        self._end = end * self.tile * samples
        self.spare = 0  # elements behind the buffers that steps use for themselves
        self.parameters, self._arena, self._external = parameters, arena, external
        self.by_sample = lanes == 1
        self.shifts: dict[Source, Index] = {}  # in a loop: by how many elements a source begins later
        self.sample: Index = 0  # which of the samples behind the pointers, where one sample is handled after the other

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is written inside becomes a function of its own, which others that compute the same share.

        It gets the addresses that it uses as arguments.
        """
        outer, self.f = self.f, self.f.module.part()
        self._passed = {}
        yield
        part, self.f = self.f, outer
        part.ret()
        pointers, self._passed = list(self._passed.values()), None
        outer.call(outer.module.settle(part), VOID, *(make() for make, _ in pointers))

    def _address(self, key: Any, make: Callable[[], Value]) -> Value:
        """An address that is computed outside of the function that is being written, if it is one apart."""
        if self._passed is None:
            return make()
        if key not in self._passed:
            self._passed[key] = make, self.f.argument(PTR)
        return self._passed[key][1].of(self.element)

    # Addresses

    def weights(self, array: np.ndarray, key: Any = None) -> Value:
        """A pointer to numbers among the parameters."""
        return self._parameter(self.parameters.add(array, self.dtype, key))

    def matrix(self, array: np.ndarray, key: Any) -> Value:
        """As `weights`, for what the large weights of a step are packed into."""
        if self._stored is None:
            return self.weights(array, key)
        offset = self.parameters.add(array, self._stored, key)
        return self._address(("stored", offset), lambda: self.f.offset(self.f["parameters"].of(BF16), offset // 2)).of(
            BF16
        )

    def table(self, array: np.ndarray) -> Value:
        """A pointer to int32 numbers among the parameters."""
        offset = self.parameters.add(array, np.int32)
        return self._address(("table", offset), lambda: self.f.offset(self.f["parameters"].of(I8), offset)).of(I32)

    def _parameter(self, offset: int) -> Value:
        count = offset // self.element.bytes
        return self._address(offset, lambda: self.f.offset(self.f["parameters"].of(self.element), count))

    def base(self, source: Source) -> Value:
        """The first element of a source."""
        if isinstance(source, Constant):
            return self._parameter(self.parameters.add(source.data, self.dtype, source))
        if source in self._external:
            return self._address(source, lambda: self._external[source]).of(type_of(source.dtype))
        place = self._arena[source] * self.tile * self.samples
        return self._address(source, lambda: self.f.offset(self.f["arena"].of(self.element), place))

    def scratch(self, count: int) -> Value:
        """A pointer to numbers that only one step uses."""
        self.spare = max(self.spare, -(-count // 16) * 16)
        return self._address("scratch", lambda: self.f.offset(self.f["arena"].of(self.element), self._end))

    def stride(self, source: Source) -> int:
        """Elements of memory between two features."""
        return 1 if isinstance(source, Constant) else self.tile

    def at(self, source: Source, index: Index) -> Value:
        """The address of a feature."""
        f = self.f
        if not isinstance(source, Constant):
            index = f.add(index, f.mul(self.sample, source.size))
            index = f.add(index, self.shifts.get(source, 0))
        return f.offset(self.base(source), f.mul(index, self.stride(source)))

    def index(self, access: Access, coordinates: Sequence[Index]) -> Index:
        """offset + Σ coordinate · stride."""
        f = self.f
        result: Any = 0
        for coordinate, stride in zip(coordinates, access.strides, strict=True):
            if stride:
                result = f.add(result, f.mul(coordinate, stride))
        return f.add(result, access.offset)

    @property
    def accumulators(self) -> int:
        """How many vectors a kernel may keep in registers beside what it works with."""
        return self.target.registers * 3 // 4

    # Values: a feature is a list of `blocks` values

    def load(self, pointer: Value) -> list[Value]:
        """A feature."""
        f = self.f
        if self.by_sample:
            return [f.load(pointer)]
        align = self.lanes * self.element.bytes
        return [f.load(pointer + n * self.lanes, self.lanes, align) for n in range(self.blocks)]

    def store(self, values: Sequence[Value], pointer: Value) -> None:
        f = self.f
        align = 0 if self.by_sample else self.lanes * self.element.bytes
        for n, value in enumerate(values):
            f.store(f.splat(value, self.lanes), pointer + n * self.lanes, align)

    def read(self, tensor: Tensor, access: Access, coordinates: Sequence[Index]) -> list[Value]:
        """A feature of a tensor; a constant is the same for all samples."""
        pointer = self.at(tensor.source, self.index(access, coordinates))
        if tensor.is_constant:
            return [self.f.broadcast(pointer, self.lanes)] * self.blocks
        return self.load(pointer)

    def broadcast(self, pointer: Value) -> Value:
        """One number for all samples."""
        return self.f.broadcast(pointer, self.lanes)

    def constant(self, number: float) -> Value:
        return self.f.const(number, self.element.vector(self.lanes))

    @contextmanager
    def nest(self, shape: Shape) -> Iterator[list[Index]]:
        """Loops over all coordinates of a shape."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.f.loop(0, size)) for size in shape]


def access_of(tensor: Tensor, shape: Shape | None = None) -> Access:
    """How a step reads a tensor that the passes have made affine."""
    access = tensor.access(shape)
    assert access is not None, "passes.settle makes all operands affine"
    return access


def coalesced(shape: Shape, accesses: Sequence[Access]) -> tuple[Shape, list[Access]]:
    """Axes of size 1 left out and neighbouring ones joined where every access allows it."""
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in accesses]
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        own = [a.strides[axis] for a in accesses]
        if sizes and all(s[-1] == o * size for s, o in zip(strides, own, strict=True)):
            sizes[-1] *= size
            for s, o in zip(strides, own, strict=True):
                s[-1] = o
        else:
            sizes.append(size)
            for s, o in zip(strides, own, strict=True):
                s.append(o)
    return tuple(sizes), [Access(a.offset, tuple(s)) for a, s in zip(accesses, strides, strict=True)]


@dataclass(frozen=True)
class Blocks:
    """A number of things cut into equal blocks; the last one overlaps the one before it where they don't fit.

    One piece of code serves all blocks, which matters for the time to compile it.
    """

    total: int
    size: int
    count: int

    @classmethod
    def of(cls, total: int, most: int) -> Blocks:
        """Blocks of at most `most`, as few and as small as they can be."""
        count = -(-total // max(1, min(most, total)))
        return cls(total, -(-total // count), count)

    @classmethod
    def of_vectors(cls, total: int, width: int, most: int) -> Blocks:
        """Blocks of whole vectors, at most `most` each, the fewest vectors in all. One that is partly filled if there
        is less than a vector."""
        if total < width:
            return cls(total, width, 1)
        sizes = [g * width for g in range(1, most + 1) if g * width <= total]
        size = min(sizes, key=lambda size: (-(-total // size) * size, -size))
        return cls(total, size, -(-total // size))

    def first(self, f: Function, block: Index) -> Index:
        """Where a block begins."""
        start = f.mul(block, self.size)
        last = max(0, self.total - self.size)
        if isinstance(start, Value):
            return start if self.count * self.size == self.total else f.min(start, last)
        return min(start, last)

    def starts(self) -> list[int]:
        return [max(0, min(i * self.size, self.total - self.size)) for i in range(self.count)]
