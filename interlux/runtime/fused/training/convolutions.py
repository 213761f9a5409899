"""Convolutions forward and backward: samples in the lanes, blocks of channels and positions in registers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from math import prod
from typing import Any

from ..kernels.schedule import Blocks, access_of
from ..llvm import I64, Index, Value
from ..tensors import Access, contiguous
from .products import activated, bias_gradient, finish_gradient, outer, unseen
from .schedule import Gradients, Sink, TrainingSchedule
from .steps import Convolution


def convolution(s: TrainingSchedule, step: Convolution) -> None:
    """Blocks of output channels times neighbouring positions."""
    f = s.f
    (x,) = step.operands
    access, weight = access_of(x), access_of(step.weight)
    output = contiguous(step.shape)
    spatial, kernel = step.shape[1:], step.weight.shape[2:]
    outs, ins = step.shape[0] // step.groups, step.weight.shape[1]
    positions = Blocks.of(spatial[-1], 4 if outs >= 3 else 8)
    channels = Blocks.of(outs, max(1, s.accumulators // positions.size))
    bias = None if step.bias is None else access_of(step.bias)
    with (
        f.loop(0, step.groups) as group,
        f.loop(0, channels.count) as block,
        s.nest(spatial[:-1]) as head,
        f.loop(0, positions.count) as run,
        s.groups(),
    ):
        first = f.add(f.mul(group, outs), channels.first(f, block))
        at = positions.first(f, run)
        sums = []
        for o in range(channels.size):
            start = s.constant(0.0)
            if bias is not None:
                start = s.broadcast(s.at(s.tape.weights, s.index(bias, [f.add(first, o)])))
            sums.append([f.variable(start) for _ in range(positions.size)])
        with f.loop(0, ins) as c, s.nest(kernel[:-1]) as tap:
            corner = [f.add(f.mul(group, ins), c), *_moved(s, step, head, tap), f.mul(at, step.strides[-1])]
            place = s.at(x.source, s.index(access, corner))
            w = s.at(s.tape.weights, s.index(weight, [first, c, *tap, 0]))
            along = access.strides[-1] * s.tile

            def taps(k: Index, offset: int, place: Value = place, w: Value = w) -> None:
                start = f.offset(place, f.mul(k, step.dilations[-1] * along))
                values = [
                    s.vector(start, (offset * step.dilations[-1] + p * step.strides[-1]) * along)
                    for p in range(positions.size)
                ]
                row = f.offset(w, f.mul(k, weight.strides[-1]))
                for o in range(channels.size):
                    factor = s.broadcast(f.offset(row, offset * weight.strides[-1] + o * weight.strides[0]))
                    for p, value in enumerate(values):
                        sums[o][p].set(f.fma(factor, value, sums[o][p].get()))

            f.unrolled(kernel[-1], 5, taps)
        for o in range(channels.size):
            for p in range(positions.size):
                index = s.index(output, [f.add(first, o), *head, f.add(at, p)])
                s.put(activated(s, step.activation, sums[o][p].get()), s.at(step.output, index))


def _moved(s: TrainingSchedule, step: Convolution, head: Sequence[Index], tap: Sequence[Index]) -> list[Index]:
    """Where a tap of the outer axes reads at an output position."""
    f = s.f
    return [
        f.add(f.mul(h, stride), f.mul(k, dilation))
        for h, k, stride, dilation in zip(head, tap, step.strides, step.dilations, strict=False)
    ]


def convolution_backward(s: TrainingSchedule, g: Gradients, step: Convolution) -> None:
    f = s.f
    (x,) = step.operands
    finish_gradient(s, g, step)
    delta = g.of(step.output)
    output = contiguous(step.shape)
    spatial = step.shape[1:]
    count = prod(spatial)
    bias_gradient(s, step, delta, count, lambda position, o: f.add(f.mul(o, count), position))
    if access_of(step.weight).offset < s.tape.trained:
        _weights(s, step, delta, output)
    if g.wanted(x):
        _inputs(s, step, delta, output, g.sink(x))


def _weights(s: TrainingSchedule, step: Convolution, delta: Any, output: Access) -> None:
    """The gradient of the weights: outer products of the output's gradient and of what a row of taps has read."""
    f = s.f
    (x,) = step.operands
    access, weight = access_of(x), access_of(step.weight)
    spatial, kernel = step.shape[1:], step.weight.shape[2:]
    outs, ins = step.shape[0] // step.groups, step.weight.shape[1]
    by_taps = kernel[-1] >= 3 or kernel[-1] >= ins  # else neighbouring channels are one side of the product
    sizes = (ins, *kernel[:-1]) if by_taps else kernel
    with f.loop(0, step.groups) as group, s.nest(sizes) as fixed:
        channel = fixed[0] if by_taps else 0
        tap = [*fixed[1:], 0] if by_taps else fixed

        def places(
            position: Sequence[Index], group: Index = group, channel: Index = channel, tap: Sequence[Index] = tap
        ) -> tuple[Value, Value]:
            corner = [f.add(f.mul(group, ins), channel), *_moved(s, step, position, tap)]
            left = s.at(delta, s.index(output, [f.mul(group, outs), *position]))
            return left, s.at(x.source, s.index(access, corner))

        place = s.index(weight, [f.mul(group, outs), channel, *tap])
        left = (outs, output.strides[0] * s.tile)
        if by_taps:
            right, stride = (kernel[-1], step.dilations[-1] * access.strides[-1] * s.tile), weight.strides[-1]
        else:
            right, stride = (ins, access.strides[0] * s.tile), weight.strides[1]
        outer(s, spatial, places, left, right, place, (weight.strides[0], stride))


def _inputs(s: TrainingSchedule, step: Convolution, delta: Any, output: Access, sink: Sink) -> None:
    """The gradient of the input: rows of it in registers, into which every output that reads them is multiplied."""
    f = s.f
    (x,) = step.operands
    access, weight = access_of(x), access_of(step.weight)
    spatial, kernel = step.shape[1:], step.weight.shape[2:]
    outs, ins = step.shape[0] // step.groups, step.weight.shape[1]
    width, stride, dilation = x.shape[-1], step.strides[-1], step.dilations[-1]
    many = -(-width // s.accumulators)
    size = -(-width // many)
    channels = Blocks.of(ins, max(1, s.accumulators // size))
    for begin in range(0, width, size):
        end = min(begin + size, width)
        reads = [
            (w, [k for k in range(kernel[-1]) if begin <= w * stride + k * dilation < end]) for w in range(spatial[-1])
        ]
        with (
            f.loop(0, step.groups) as group,
            f.loop(0, channels.count) as block,
            s.nest(x.shape[1:-1]) as head,
            s.groups(),
        ):
            first = channels.first(f, block)
            sums = [[f.variable(s.constant(0.0)) for _ in range(begin, end)] for _ in range(channels.size)]
            with f.loop(0, outs) as o, s.nest(kernel[:-1]) as tap, ExitStack() as stack:
                out = f.add(f.mul(group, outs), o)
                rows: list[Index] = []
                for axis, (h, k) in enumerate(zip(head, tap, strict=True)):
                    row = _row(s, h, k, step.strides[axis], step.dilations[axis], spatial[axis], stack)
                    rows.append(row)
                factors = [
                    [
                        s.broadcast(s.at(s.tape.weights, s.index(weight, [out, f.add(first, c), *tap, k])))
                        for k in range(kernel[-1])
                    ]
                    for c in range(channels.size)
                ]
                line = s.at(delta, s.index(output, [out, *rows, 0]))
                for w, taps in reads:
                    if not taps:
                        continue
                    value = s.vector(line, w * s.tile)
                    for c in range(channels.size):
                        for k in taps:
                            total = sums[c][w * stride + k * dilation - begin]
                            total.set(f.fma(factors[c][k], value, total.get()))
            for c in range(channels.size):
                for i in range(begin, end):
                    channel = f.add(f.add(f.mul(group, ins), first), c)
                    value = sums[c][i - begin].get()
                    if sink.adds:
                        value = unseen(s, value, c, first, block, channels)
                    sink.put(value, s.index(access, [channel, *head, i]))


def _row(s: TrainingSchedule, h: Index, k: Index, stride: int, dilation: int, count: int, stack: ExitStack) -> Index:
    """The output row that reads row h with tap k; what follows in the stack is executed only if there is one."""
    f = s.f
    distance = f.value(f.sub(h, f.mul(k, dilation)), I64)
    row = f.op("sdiv", distance, stride) if stride > 1 else distance
    inside = (distance > -1) & (row < count)
    if stride > 1:
        inside = inside & f.eq(f.mul(row, stride), distance)
    stack.enter_context(f.when(inside))
    return row
