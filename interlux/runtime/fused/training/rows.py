"""Rows of a table of parameters by row numbers that are given as an input: forward and backward, lane by lane."""

from __future__ import annotations

from math import prod

from ..kernels.rearranging import _transposed
from ..kernels.schedule import access_of
from ..llvm import I64, Index, Value
from ..tensors import contiguous
from .schedule import Gradients, TrainingSchedule
from .steps import Rows, Weights


def rows(s: TrainingSchedule, step: Rows) -> None:
    f = s.f
    _, table = step.operands
    count, features = step.shape[0], prod(step.shape[1:])
    if not _contiguous(step):
        with f.loop(0, count) as position, s.groups(), f.loop(0, s.lanes) as lane:
            number = _number(s, step, position, lane)
            with s.nest(step.shape[1:]) as at:
                place = s.at(table.source, s.index(access_of(table), [number, *at]))
                value = f.load(place if isinstance(table.source, Weights) else f.offset(place, lane))
                f.store(value, f.offset(s.at(step.output, _feature(s, step, position, at)), lane))
        return
    with f.loop(0, count) as position, s.groups():
        starts = _starts(s, step, position, s.at(table.source, access_of(table).offset))

        def block(first: Index, many: int, starts: list[Value] = starts, position: Index = position) -> None:
            loaded = [f.load(f.offset(start, first), s.lanes, count=many) for start in starts]
            for k, feature in enumerate(_transposed(s, loaded)[:many]):
                s.put(feature, s.at(step.output, f.add(f.add(f.mul(position, features), first), k)))

        _blocks(s, features, block)


def rows_backward(s: TrainingSchedule, g: Gradients, step: Rows) -> None:
    """Adds to the row of each sample, one sample after the other: several may have the same row."""
    _, table = step.operands
    source = table.source
    if isinstance(source, Weights):
        if table.index.min() >= s.tape.trained:
            return
    elif g.wanted(table):
        g.sink(table, fills=False)  # zeros, if nothing is there yet
    else:
        return
    if _contiguous(step) and not s.by_lane:
        _whole_rows(s, g, step)
    else:
        _single_numbers(s, g, step)


def _single_numbers(s: TrainingSchedule, g: Gradients, step: Rows) -> None:
    f = s.f
    _, table = step.operands
    source, access = table.source, access_of(table)
    with f.loop(0, step.shape[0]) as position, s.groups(), f.loop(0, s.lanes) as lane:
        number = _number(s, step, position, lane)

        def add(number: Value = number, position: Index = position, lane: Index = lane) -> None:
            with s.nest(step.shape[1:]) as at:
                gradient = f.load(f.offset(s.at(g.of(step.output), _feature(s, step, position, at)), lane))
                index = s.index(access, [number, *at])
                if not isinstance(source, Weights):
                    place = f.offset(s.at(g.of(source), index), lane)  # type: ignore[arg-type]
                elif s.by_lane:
                    place = f.offset(s.lane_gradients(index), lane)
                else:
                    place = s.weight_gradient(index)
                f.store(f.load(place) + gradient, place)

        if step.still is None:
            add()
        else:
            with f.when(f.ne(number, step.still)):
                add()


def _whole_rows(s: TrainingSchedule, g: Gradients, step: Rows) -> None:
    f = s.f
    _, table = step.operands
    features = prod(step.shape[1:])
    with f.loop(0, step.shape[0]) as position, s.groups():
        starts = _starts(s, step, position, s.weight_gradient(access_of(table).offset))
        moving = None if step.still is None else _moving(s, step, position)

        def block(
            first: Index,
            many: int,
            starts: list[Value] = starts,
            moving: Value | None = moving,
            position: Index = position,
        ) -> None:
            zero = s.constant(0.0)
            loaded = []
            for k in range(many):
                place = s.at(g.of(step.output), f.add(f.add(f.mul(position, features), first), k))
                value = s.vector(place)
                loaded.append(value if moving is None else f.select(moving, value, zero))
            for start, row in zip(starts, _transposed(s, [*loaded, *[zero] * (s.lanes - many)]), strict=True):
                place = f.offset(start, first)
                f.store(f.load(place, s.lanes, count=many) + row, place, count=many)

        _blocks(s, features, block)


def _blocks(s: TrainingSchedule, features: int, block: object) -> None:
    """As many features at a time as there are lanes, then the rest."""
    whole = features // s.lanes * s.lanes
    with s.f.loop(0, whole, s.lanes) as first:
        block(first, s.lanes)  # type: ignore[operator]
    if features - whole:
        block(whole, features - whole)  # type: ignore[operator]


def _contiguous(step: Rows) -> bool:
    """Whether each row of the table is a run of neighbouring parameters."""
    _, table = step.operands
    shape = (table.shape[0], prod(table.shape[1:]))
    access = table.access(shape)
    return isinstance(table.source, Weights) and access is not None and (shape[1] == 1 or access.strides[1] == 1)


def _feature(s: TrainingSchedule, step: Rows, position: Index, at: list[Index]) -> Index:
    return s.index(contiguous(step.shape), [position, *at])


def _number(s: TrainingSchedule, step: Rows, position: Index, lane: Index) -> Value:
    """The row number of one sample; negative ones count from the table's end."""
    f = s.f
    numbers, table = step.operands
    place = f.offset(s.at(numbers.source, s.index(access_of(numbers), [position])), lane)
    number = f.cast("fptosi", f.load(place), I64)
    return f.select(number < 0, number + table.shape[0], number)


def _starts(s: TrainingSchedule, step: Rows, position: Index, begin: Value) -> list[Value]:
    """For each lane the address of its row, of a table that begins at an address."""
    f = s.f
    stride = access_of(step.operands[1]).strides[0]
    return [f.offset(begin, _number(s, step, position, lane) * stride) for lane in range(s.lanes)]


def _moving(s: TrainingSchedule, step: Rows, position: Index) -> Value:
    """In which lanes the row takes a gradient."""
    f = s.f
    numbers, table = step.operands
    number = s.vector(s.at(numbers.source, s.index(access_of(numbers), [position])))
    assert step.still is not None
    return f.compare("ne", number, float(step.still)) & f.compare("ne", number, float(step.still - table.shape[0]))
