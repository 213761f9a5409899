"""Where values and gradients of a tile of samples lie while it is trained on, and how they are read and written.

A feature is `tile` numbers, one for each sample, several vectors. Kernels handle one vector of samples at a time, the
one that `group` says, in a loop around them (`groups`), or read several by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..derivatives import DERIVATIVES
from ..kernels.schedule import Parameters, Schedule
from ..llvm import F64, I1, I8, I64, VOID, Function, Index, Value
from ..steps import Instruction
from ..target import Target
from ..tensors import Access, Buffer, Constant, Source, Tensor
from .steps import Tape, Weights


class TrainingSchedule(Schedule):
    """Samples in the lanes, several vectors of them.

    Arguments:
        f: the function; its arguments are pointers `parameters` (constants), `arena`, `weights`, `gradients`, `sums`
            (float64) and `statistics`.
        tile: samples.
        places: where buffers lie in the arena, in features.
        lane_gradients: where in a chunk's gradients those begin that have a number for each lane; 0: there are none.
        transposed: room for the inputs of a fully connected layer.
    """

    def __init__(
        self,
        f: Function,
        target: Target,
        tape: Tape,
        tile: int,
        parameters: Parameters,
        places: dict[Buffer, int],
        lane_gradients: int,
        transposed: Buffer,
    ):
        super().__init__(f, target, tape.dtype, target.lanes(tape.dtype), 1, parameters, places, {})
        self.tile = tile
        self.group: Index = 0  # the first sample of the vector that kernels work on
        self.tape = tape
        self._lane_gradients, self.transposed = lane_gradients, transposed

    @property
    def by_lane(self) -> bool:
        """Whether gradients have a number for each lane, which are summed when a chunk is done."""
        return self._lane_gradients > 0

    @property
    def vectors(self) -> int:
        return self.tile // self.lanes

    @property
    def alignment(self) -> int:
        return self.lanes * self.element.bytes

    def base(self, source: Source) -> Value:
        if isinstance(source, Weights):
            return self.f["weights"].of(self.element)
        if isinstance(source, Constant):
            return self._parameter(self.parameters.add(source.data, self.dtype, source))
        return self.f.offset(self.f["arena"].of(self.element), self._arena[source] * self.tile)

    def stride(self, source: Source) -> int:
        return 1 if isinstance(source, Constant | Weights) else self.tile

    def at(self, source: Source, index: Index) -> Value:
        f = self.f
        index = f.add(index, self.shifts.get(source, 0))
        pointer = f.offset(self.base(source), f.mul(index, self.stride(source)))
        return pointer if isinstance(source, Constant | Weights) else f.offset(pointer, self.group)

    def read(self, tensor: Tensor, access: Access, coordinates: Sequence[Index]) -> list[Value]:
        pointer = self.at(tensor.source, self.index(access, coordinates))
        if isinstance(tensor.source, Constant | Weights):
            return [self.f.broadcast(pointer, self.lanes)]
        return self.load(pointer)

    @contextmanager
    def groups(self) -> Iterator[Index]:
        """A loop over the vectors of samples."""
        with self.f.loop(0, self.tile, self.lanes) as group:
            self.group = group
            yield group
        self.group = 0

    def vector(self, pointer: Value, group: Index = 0) -> Value:
        """One vector of samples of the feature at a pointer."""
        return self.f.load(self.f.offset(pointer, group), self.lanes, self.alignment)

    def put(self, value: Value, pointer: Value) -> None:
        self.f.store(self.f.splat(value, self.lanes), pointer, self.alignment)

    def total(self, value: Value) -> Value:
        """The sum of a vector's lanes."""
        return self.f.reduce(lambda a, b: a + b, value)

    def add_to_sum(self, number: int, index: Index, value: Value) -> None:
        """Adds the sum of a vector's lanes to one of the float64 sums: number + index."""
        f = self.f
        total = self.total(value)
        wide = total if total.type == F64 else f.cast("fpext", total, F64)
        place = f.offset(f["sums"].of(F64), f.add(index, number))
        f.store(f.load(place) + wide, place)

    def weight_gradient(self, index: Index) -> Value:
        """The address of a parameter's gradient."""
        return self.f.offset(self.f["gradients"].of(self.element), index)

    def add_to_weight(self, index: Index, value: Value) -> None:
        """Adds the sum of a vector's lanes to a parameter's gradient."""
        if self.by_lane:
            self.add_lanes(index, value)
            return
        place = self.weight_gradient(index)
        self.f.store(self.f.load(place) + self.total(value), place)

    def add_lanes(self, index: Index, value: Value) -> None:
        """Adds a vector to a parameter's gradients of all lanes."""
        f = self.f
        place = self.lane_gradients(index)
        f.store(f.load(place, self.lanes, self.alignment) + value, place, self.alignment)

    def lane_gradients(self, index: Index) -> Value:
        """The address of a parameter's gradients of all lanes."""
        f = self.f
        return self.weight_gradient(f.add(f.mul(index, self.lanes), self._lane_gradients))

    def fill(self, pointer: Value, count: int) -> None:
        """Sets numbers in memory to 0."""
        f = self.f
        size = f.const(count * self.element.bytes, I64)
        f.call("llvm.memset.p0.i64", VOID, pointer, f.const(0, I8), size, f.const(False, I1))


# Their derivative is 1 or 0
_SELECTING = frozenset(["Relu", "Clip", "HardTanh", "ThresholdedRelu", "Shrink", "Sign", "Floor", "Ceil", "Round"])


def through(f: Function, op: str, gradient: Value, slope: Value) -> Value:
    """A gradient times the derivative of an operation.

    Where PyTorch selects, so does this: an infinite gradient times 0 would be NaN.
    """
    if op in _SELECTING or op == "HardSigmoid":
        passed = gradient if op in _SELECTING else gradient * slope
        return f.select(f.compare("ne", slope, 0.0), passed, f.const(0.0, gradient.type))
    return gradient * slope


def through_activation(s: Schedule, activation: Instruction, gradient: Value, y: Value) -> Value:
    """A gradient times the derivative of an activation that follows from its value (`fusion.FROM_VALUE`)."""
    slope = DERIVATIVES[activation.op](s.f, y, y, **dict(activation.attributes))
    return through(s.f, activation.op, gradient, slope)


class Gradients:
    """The gradients of the loss with respect to buffers, while code for the steps is made from the last to the first.

    The first contribution to a buffer is stored, the others are added; a buffer that the first one does not fill is
    set to zero before. Where there is only one, the derivative of the activation inside the step that made the buffer
    is multiplied in as it is stored.

    Arguments:
        buffers: the gradient's buffer of each buffer that has one.
        readers: how many contributions each of these gets.
        activations: of buffers, that of the step which made them.
    """

    def __init__(
        self,
        s: TrainingSchedule,
        buffers: dict[Buffer, Buffer],
        readers: dict[Any, int],
        activations: dict[Buffer, Instruction],
    ):
        self._s, self._buffers, self._readers, self._activations = s, buffers, readers, activations
        self._started: set[Any] = set()
        self.finished: set[Any] = set()  # those which the derivative is multiplied into already

    def use(self, s: TrainingSchedule) -> None:
        """From now on for another function."""
        self._s = s

    def wanted(self, t: Tensor) -> bool:
        return t.source in self._buffers

    def of(self, buffer: Buffer) -> Buffer:
        return self._buffers[buffer]

    def has(self, buffer: Buffer) -> bool:
        """Whether anything contributes to the gradient of a step's output."""
        return buffer in self._started

    def known(self, buffer: Buffer) -> bool:
        """Whether a buffer has a gradient."""
        return buffer in self._buffers

    def begin(self, buffer: Buffer) -> None:
        """Makes the gradient of a buffer zero if nothing has contributed to it; from now on contributions are added."""
        if buffer in self._buffers and buffer not in self._started:
            self._s.fill(self._whole(buffer), buffer.size * self._s.tile)
            self._started.add(buffer)

    def given(self, buffers: Iterable[Buffer]) -> None:
        """Notes that contributions are added to gradients that lie in others'."""
        self._started.update(buffer for buffer in buffers if buffer in self._buffers)

    def sink(self, t: Tensor, *, fills: bool | None = None) -> Sink:
        """Where a step's contribution to the gradient of its operand goes.

        Arguments:
            fills: whether every element of the operand gets exactly one contribution; None: it does.
        """
        source = t.source
        assert isinstance(source, Buffer)
        first = source not in self._started
        self._started.add(source)
        covers = fills is not False and t.size == source.size and bool(np.all(np.bincount(t.index.ravel()) == 1))
        if first and not covers:
            self._s.fill(self._whole(source), source.size * self._s.tile)
        activation = None
        if first and covers and self._readers.get(source) == 1 and source in self._activations:
            activation = self._activations[source]
            self.finished.add(source)
        return Sink(self._s, t, self._buffers[source], add=not (first and covers), activation=activation)

    def _whole(self, source: Buffer) -> Value:
        group, self._s.group = self._s.group, 0
        pointer = self._s.at(self._buffers[source], 0)
        self._s.group = group
        return pointer


class Sink:
    """Stores or adds contributions to one operand's gradient."""

    def __init__(self, s: TrainingSchedule, t: Tensor, buffer: Buffer, add: bool, activation: Instruction | None):
        self._s, self._t, self._buffer, self.adds, self._activation = s, t, buffer, add, activation

    def put(self, value: Value, index: Index, group: Index | None = None) -> None:
        """The contribution to an element of the operand's buffer, for the vector at `group`, else the current one."""
        s = self._s
        before = s.group
        s.group = before if group is None else group
        place = s.at(self._buffer, index)
        if self.adds:
            value = s.vector(place) + value
        elif self._activation is not None:
            y = s.vector(s.at(self._t.source, index))
            value = through_activation(s, self._activation, value, y)
        s.put(value, place)
        s.group = before
