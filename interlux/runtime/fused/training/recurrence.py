"""RNN, GRU and LSTM in training: a loop whose values of all rounds are kept for the way back.

What steps of the loop make lies one round behind the other. The states lie in a history that begins with the initial
ones: a round reads its own place and writes the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..llvm import Index
from ..recurrence import GATES, Cell, Parts, part_of, recurrent
from ..steps import Rearrange, Shift, Step
from ..tensors import Buffer, Source, Tensor, whole
from .products import linear_parameters
from .schedule import Gradients, TrainingSchedule
from .steps import Linear, Weights

if TYPE_CHECKING:
    from .recorder import Recorder


@dataclass(eq=False)
class History:
    """The values of a state in all rounds.

    Arguments:
        kept: [rounds + 1, size], the initial state first.
        before, after: a round's state, and the one that it makes; both lie in `kept`.
    """

    kept: Buffer
    before: Buffer
    after: Buffer


@dataclass(eq=False)
class Recurrence(Step):
    """Steps that are executed many times. operands: what they read that is made outside; output and shape: of the first
    history.

    Arguments:
        count: rounds.
        body: the steps of one round.
        shifts: which sources from outside move from round to round.
        histories: of the states.
    """

    count: int
    body: list[Step]
    shifts: list[Shift]
    histories: list[History]

    def strides(self) -> dict[Buffer, int]:
        """By how much each buffer of a round lies behind that of the round before."""
        found = {step.output: step.output.size for step in self.body}
        found.update((buffer, h.before.size) for h in self.histories for buffer in (h.before, h.after))
        found.update((shift.source, shift.stride) for shift in self.shifts)
        return found


def with_bodies(steps: Iterable[Step]) -> Iterator[Step]:
    """All steps, those of a round behind the recurrence that they belong to."""
    for step in steps:
        yield step
        if isinstance(step, Recurrence):
            yield from step.body


def made_by(step: Step) -> list[Buffer]:
    """What others may read of a step."""
    return [history.kept for history in step.histories] if isinstance(step, Recurrence) else [step.output]


# Recording


def _weights(b: Recorder, value: Any, what: str) -> Tensor:
    """Parameters in any order, or known numbers, which become parameters that are not trained."""
    if isinstance(value, Tensor) and value.source is b.vector:
        return value
    return b.weights(value, what)


def _product(b: Recorder, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x · weightᵀ + bias. Rows of weights that don't lie at equal distances, gates in another order than the model's
    own, make several products."""
    rows, ends = x.shape[0], _ends(weight.index[:, 0])
    made = []
    for first, end in zip((0, *ends), (*ends, len(weight.index)), strict=True):
        own = part_of(weight, slice(first, end))
        if own.access() is None:
            raise b.refuse("recurrence with rearranged weights")
        y = b.result(Linear, [x], (rows, end - first), x, own)
        made.append(y if bias is None else b.elementwise("Add", [y, part_of(bias, slice(first, end))], {}))
    return made[0] if len(made) == 1 else b.joined(made, 1, (rows, len(weight.index)), made[0])


def _ends(places: np.ndarray) -> list[int]:
    """Where runs at equal distances end, but the last one."""
    ends, first = [], 0
    for i in range(2, len(places)):
        if i - first > 1 and places[i] - places[i - 1] != places[first + 1] - places[first]:
            ends.append(i)
            first = i
    return ends


def _loop(
    b: Recorder, cell: Cell, gates: Tensor, start: Sequence[Tensor], reverse: bool
) -> tuple[Tensor, list[Tensor]]:
    count, width = gates.shape
    gates = gates if gates.is_whole() else b.stored(gates)
    size, dtype = cell.hidden, b.dtype
    histories = [History(Buffer((count + 1) * size, dtype), Buffer(size, dtype), Buffer(size, dtype)) for _ in start]
    row = np.arange(size, dtype=np.int64)[None]
    for tensor, history in zip(start, histories, strict=True):
        initial = b.own(tensor)
        b.steps.append(Rearrange(b.here, [initial.plain()], history.kept, (1, size), row))
    outside, b.steps = b.steps, []
    now = Tensor(gates.source, np.arange(width, dtype=np.int64)[None], dtype, None)
    made = cell(now, [whole(h.before, (1, size), dtype, None) for h in histories])
    for tensor, history in zip(made, histories, strict=True):
        b.steps.append(Rearrange(b.here, [tensor], history.after, (1, size)))
    body, b.steps = b.steps, outside
    assert isinstance(gates.source, Buffer)
    first, sign = (count - 1, -1) if reverse else (0, 1)
    shifts = [Shift(gates.source, first * width, sign * width)]
    inside = {step.output for step in body} | {h.before for h in histories}
    read = {t.source: t for step in body for t in step.operands if t.source not in inside}
    operands = [whole(s, (s.size,), dtype, None) for s in read if isinstance(s, Buffer) and not isinstance(s, Weights)]
    kept = histories[0].kept
    b.steps.append(Recurrence(b.here, operands, kept, (count + 1, size), count, body, shifts, histories))
    order = np.arange(count, dtype=np.int64)[::sign]
    y = Tensor(kept, (order[:, None] + 1) * size + row, dtype, None)
    return y, [Tensor(h.kept, count * size + row, dtype, None) for h in histories]


_PARTS = Parts(_weights, _product, _loop)
TRAINED = {kind: recurrent(kind, _PARTS) for kind in GATES}


# Code

Kernel = Callable[..., None]


def _round(s: TrainingSchedule, step: Recurrence, t: Index, gradients: Gradients | None = None) -> dict[Source, Index]:
    """How far everything lies behind its place in round t."""
    f = s.f
    starts = {shift.source: shift.start for shift in step.shifts}
    moved: dict[Source, Index] = {
        buffer: f.add(f.mul(t, stride), starts.get(buffer, 0)) for buffer, stride in step.strides().items()
    }
    if gradients is not None:
        kept = [*starts, *(x for h in step.histories for x in (h.before, h.after))]
        kept += [inner.output for inner in step.body if isinstance(inner, Linear)]
        moved.update((gradients.of(x), moved[x]) for x in kept if gradients.known(x))
    return moved


def recurrence(s: TrainingSchedule, step: Recurrence, kernels: dict[type, tuple[Kernel, Kernel]]) -> None:
    with s.f.loop(0, step.count) as t:
        s.shifts = _round(s, step, t)
        for inner in step.body:
            kernels[type(inner)][0](s, inner)
    s.shifts = {}


def recurrence_backward(
    s: TrainingSchedule, g: Gradients, step: Recurrence, kernels: dict[type, tuple[Kernel, Kernel]]
) -> None:
    """The rounds from the last to the first, then the gradients of their weights from what all of them have left."""
    f = s.f
    for buffer in (*made_by(step), *(t.source for t in step.operands)):
        g.begin(buffer)  # type: ignore[arg-type]
    g.given(x for h in step.histories for x in (h.before, h.after))
    with f.loop(0, step.count) as i:
        s.shifts = _round(s, step, f.sub(step.count - 1, i), g)
        for inner in reversed(step.body):
            if not g.has(inner.output):
                continue
            if isinstance(inner, Linear):
                kernels[Linear][1](s, g, inner, parameters=False)
            else:
                kernels[type(inner)][1](s, g, inner)
    s.shifts = {}
    strides = step.strides()
    for inner in step.body:
        if isinstance(inner, Linear) and g.has(inner.output):
            source = inner.operands[0].source
            linear_parameters(s, g, inner, step.count, strides[source] if isinstance(source, Buffer) else 0)
