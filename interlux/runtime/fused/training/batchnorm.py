"""BatchNorm in training: statistics of the whole batch, so that all tiles wait for each other between two passes.

Among the statistics each layer has four vectors of its channels' numbers: mean, 1 / √(variance + epsilon), and backward
the means of d and of d z, with d the gradient and z the normalised value.
"""

from __future__ import annotations

from collections.abc import Callable

from ..kernels.schedule import access_of
from ..llvm import F64, Function, Index, Value
from ..target import Target
from ..tensors import Access
from .context import get
from .schedule import Gradients, TrainingSchedule
from .steps import BatchNormalization, Tape

Emit = Callable[[TrainingSchedule], None]
Combine = Callable[[Function], None]


def statistic(s: TrainingSchedule, step: BatchNormalization, which: int, channel: Index) -> Value:
    """One of the layer's four numbers of a channel, in all lanes."""
    f = s.f
    place = f.offset(f["statistics"].of(s.element), f.add(channel, step.number[0] + which * step.shape[0]))
    return s.broadcast(place)


def _summed(
    s: TrainingSchedule, step: BatchNormalization, sums: int, what: Callable[[Index, Index], list[Value]]
) -> None:
    """Adds sums over positions and samples of `what(channel, position)` to those of the layer."""
    f = s.f
    channels, count = step.shape
    with f.loop(0, channels) as channel:
        totals = [f.variable(s.constant(0.0)) for _ in range(sums)]
        with s.groups(), f.loop(0, count) as i:
            for total, value in zip(totals, what(channel, i), strict=True):
                total.set(total.get() + value)
        for n, total in enumerate(totals):
            s.add_to_sum(1 + step.number[1] + n * channels, channel, total.get())


def forward(step: BatchNormalization, valid: Callable[[TrainingSchedule], Value]) -> list[Emit | Combine]:
    """What tiles do, and what is done between: tiles, combine, tiles, combine, tiles.

    Arguments:
        valid: 1 for samples of the batch, 0 for what a tile is filled up with.
    """
    (x,) = step.operands
    access = access_of(x)
    channels, count = step.shape

    def value(s: TrainingSchedule, channel: Index, i: Index) -> Value:
        return s.vector(s.at(x.source, s.index(access, [channel, i])))

    def sums(s: TrainingSchedule) -> None:
        _summed(s, step, 1, lambda c, i: [value(s, c, i) * valid(s)])

    def squares(s: TrainingSchedule) -> None:
        def square(c: Index, i: Index) -> list[Value]:
            centred = (value(s, c, i) - statistic(s, step, 0, c)) * valid(s)
            return [centred * centred]

        _summed(s, step, 1, square)

    def apply(s: TrainingSchedule) -> None:
        f = s.f
        with f.loop(0, channels) as channel:
            mean, factor = statistic(s, step, 0, channel), statistic(s, step, 1, channel)
            weight, bias = parameters(s, step, channel)
            with f.loop(0, count) as i, s.groups():
                z = (value(s, channel, i) - mean) * factor
                z = z if weight is None else z * weight
                s.put(z if bias is None else z + bias, s.at(step.output, f.add(f.mul(channel, count), i)))

    return [sums, squares, apply]


def parameters(s: TrainingSchedule, step: BatchNormalization, channel: Index) -> tuple[Value | None, Value | None]:
    def read(t: object) -> Value | None:
        if t is None:
            return None
        return s.broadcast(s.at(t.source, s.index(access_of(t), [channel])))  # type: ignore[attr-defined, arg-type]

    return read(step.weight), read(step.bias)


def backward(
    step: BatchNormalization, g: Callable[[], Gradients], valid: Callable[[TrainingSchedule], Value]
) -> list[Emit]:
    """Sums of the gradient, then the input's gradient."""
    (x,) = step.operands
    access: Access = access_of(x)
    channels, count = step.shape

    def pair(s: TrainingSchedule, channel: Index, i: Index) -> tuple[Value, Value]:
        gradient = s.vector(s.at(g().of(step.output), s.f.add(s.f.mul(channel, count), i)))
        own = s.vector(s.at(x.source, s.index(access, [channel, i])))
        return gradient, (own - statistic(s, step, 0, channel)) * statistic(s, step, 1, channel)

    def sums(s: TrainingSchedule) -> None:
        def both(c: Index, i: Index) -> list[Value]:
            gradient, z = pair(s, c, i)
            return [gradient, gradient * z]

        _summed(s, step, 2, both)

    def apply(s: TrainingSchedule) -> None:
        f = s.f
        if not g().wanted(x):
            return
        sink = g().sink(x)
        with f.loop(0, channels) as channel:
            weight, _ = parameters(s, step, channel)
            factor = statistic(s, step, 1, channel)
            factor = factor if weight is None else factor * weight
            with f.loop(0, count) as i, s.groups():
                gradient, z = pair(s, channel, i)
                value = gradient - statistic(s, step, 2, channel) - z * statistic(s, step, 3, channel)
                sink.put(value * factor * valid(s), s.index(access, [channel, i]))

    return [sums, apply]


# Between passes, once for the batch


def _combined(
    f: Function, tape: Tape, target: Target, step: BatchNormalization, sums: int, use: Callable[..., None]
) -> None:
    """Adds the chunks' sums up, sets them to 0, and gives the totals to `use(channel, count, totals)`."""
    channels, positions = step.shape
    samples = f.cast("sitofp", get(f, "batch"), F64) * float(positions)
    chunks = get(f, "chunks")
    stride = tape.sums + 1
    with f.loop(0, channels) as channel:
        totals = [f.variable(f.const(0.0, F64)) for _ in range(sums)]
        with f.loop(0, chunks) as chunk:
            for n, total in enumerate(totals):
                index = f.add(f.mul(chunk, stride), f.add(channel, 1 + step.number[1] + n * channels))
                place = f.offset(get(f, "sums").of(F64), index)
                total.set(total.get() + f.load(place))
                f.store(f.const(0.0, F64), place)
        use(channel, samples, [total.get() for total in totals])


def _place(f: Function, tape: Tape, offset: int, channel: Index) -> Value:
    from ..llvm import type_of

    return f.offset(get(f, "statistics").of(type_of(tape.dtype)), f.add(channel, offset))


def _store(f: Function, tape: Tape, offset: int, channel: Index, value: Value) -> None:
    place = _place(f, tape, offset, channel)
    f.store(value if place.to == F64 else f.cast("fptrunc", value, place.to), place)  # type: ignore[arg-type]


def combine_mean(f: Function, tape: Tape, target: Target, step: BatchNormalization) -> None:
    def use(channel: Index, samples: Value, totals: list[Value]) -> None:
        mean = totals[0] / samples
        _store(f, tape, step.number[0], channel, mean)
        if step.running is not None:
            _mix(f, tape, step, step.running[0], channel, mean)

    _combined(f, tape, target, step, 1, use)


def combine_variance(f: Function, tape: Tape, target: Target, step: BatchNormalization) -> None:
    def use(channel: Index, samples: Value, totals: list[Value]) -> None:
        variance = totals[0] / samples
        factor = 1.0 / f.sqrt(variance + step.epsilon)
        _store(f, tape, step.number[0] + step.shape[0], channel, factor)
        if step.running is not None:
            _mix(f, tape, step, step.running[1], channel, totals[0] / (samples - 1.0))  # unbiased, as PyTorch keeps it

    _combined(f, tape, target, step, 1, use)


def _mix(f: Function, tape: Tape, step: BatchNormalization, offset: int, channel: Index, new: Value) -> None:
    place = _place(f, tape, offset, channel)
    old = f.load(place)
    old = old if old.type == F64 else f.cast("fpext", old, F64)
    _store(f, tape, offset, channel, f.fma(new - old, step.momentum, old))


def combine_gradients(f: Function, tape: Tape, target: Target, step: BatchNormalization) -> None:
    """The means that the input's gradient needs; the sums are the gradients of weight and bias."""

    def use(channel: Index, samples: Value, totals: list[Value]) -> None:
        for n, total in enumerate(totals):
            _store(f, tape, step.number[0] + (2 + n) * step.shape[0], channel, total / samples)
        for t, total in ((step.bias, totals[0]), (step.weight, totals[1])):
            if t is None or t.index.min() >= tape.trained:
                continue
            access = access_of(t)
            place = f.offset(
                get(f, "gradients").of(_place(f, tape, 0, 0).to),  # type: ignore[arg-type]
                f.add(f.mul(channel, access.strides[0]), access.offset),
            )
            own = total if place.to == F64 else f.cast("fptrunc", total, place.to)  # type: ignore[arg-type]
            f.store(f.load(place) + own, place)

    _combined(f, tape, target, step, 2, use)
