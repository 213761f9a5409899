"""Convolutions, with a maximum pool behind them if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from ..llvm import Index, Value
from ..steps import Conv
from ..tensors import Access
from . import winograd
from .elementwise import Epilogue
from .schedule import Blocks, Schedule, access_of


def storage(step: Conv) -> tuple[Access, tuple[int, ...]]:
    """Where element (out, *spatial) of the result lies, and the spatial sizes."""
    spatial = step.shape[:-1] if step.channels_last else step.shape[1:]
    outs = len(step.weight)
    strides = [outs if step.channels_last else 1]
    for size in reversed(spatial[1:]):
        strides.insert(0, strides[0] * size)
    return Access(0, (1 if step.channels_last else prod(spatial), *strides)), spatial


def convolution(s: Schedule, step: Conv) -> None:
    if winograd.fits(s, step):
        winograd.winograd(s, step, storage(step)[0])
    elif s.by_sample and s.width > 1 and step.channels_last and step.groups == 1:
        _channels_in_lanes(s, step)
    elif s.by_sample and s.width > 1 and _is_row(s, step):
        _row_in_lanes(s, step)
    else:
        _samples_in_lanes(s, step)


def _taps(step: Conv, most: int) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The kernel's axes that are looped over, and the taps that are written out for the others."""
    kernel = step.weight.shape[2:]
    looped = len(kernel) - 1 if kernel[-1] <= most else len(kernel)
    return kernel[:looped], list(product(*(range(k) for k in kernel[looped:])))


def _samples_in_lanes(s: Schedule, step: Conv) -> None:
    """Blocks of output channels times positions times `blocks` vectors of samples."""
    f = s.f
    (x,) = step.operands
    access = access_of(x)
    target, spatial = storage(step)
    outs, channels = step.weight.shape[:2]
    per_group = outs // step.groups
    finish = Epilogue(s, step.epilogue, step.shape)
    room = max(1, s.accumulators // s.blocks)
    if step.pool:
        positions = list(product(*(range(p) for p in step.pool)))
        along = 1
    else:
        along = min(spatial[-1], max(1, 4 // s.blocks), room)
        positions = []
    block_size = max(1, min(per_group, room // max(along, len(positions), 1)))
    looped, taps = _taps(step, 7)
    blocks = Blocks.of(per_group, block_size)
    size = blocks.size
    weights = s.matrix(_packed(step, blocks), (step, "samples", blocks))
    bias = s.weights(step.bias, (step, "bias"))
    taps_size = channels * prod(step.weight.shape[2:])
    row = Blocks.of(spatial[-1], along)
    places = positions or [(*(0,) * (len(spatial) - 1), p) for p in range(row.size)]

    def block(group: Index, out: Index, w: Value, at: list[Any]) -> None:
        """A block of output channels from `out` on, at positions `at` + each of places."""
        sums = []
        for o in range(size):
            start = s.broadcast(bias + f.add(out, o))
            sums.append([[f.variable(start) for _ in range(s.blocks)] for _ in places])
        with s.nest((channels, *looped)) as (c, *outer):
            inside = _inside(s, step, c, outer)
            begin = s.at(x.source, s.index(access, _begin(s, step, f.add(f.mul(group, channels), c), outer, at)))
            at_weights = w + f.mul(inside, size)
            for number, tap in enumerate(taps):
                distances = [_distance(step, access, len(outer), tap, place) for place in places]
                values = [s.load(begin + d * s.stride(x.source)) for d in distances]
                for o in range(size):
                    weight = s.broadcast(at_weights + (number * size + o))
                    for total, value in zip(sums[o], values, strict=True):
                        for n in range(s.blocks):
                            total[n].set(f.fma(weight, value[n], total[n].get()))
        for o in range(size):
            channel = f.add(out, o)
            results = [[t.get() for t in total] for total in sums[o]]
            if step.pool:
                best = results[0] if finish.rises else finish(results[0], [])
                for other in results[1:]:
                    made = other if finish.rises else finish(other, [])
                    best = [f.maximum(a, b) for a, b in zip(best, made, strict=True)]
                best = finish(best, []) if finish.rises else best
                s.store(best, s.at(step.output, s.index(target, [channel, *at])))
                continue
            for place, result in zip(places, results, strict=True):
                where = [f.add(a, p) for a, p in zip(at, place, strict=True)]
                order = [*where, channel] if step.channels_last else [channel, *where]
                s.store(finish(result, order), s.at(step.output, s.index(target, [channel, *where])))

    with f.loop(0, step.groups) as group, f.loop(0, blocks.count) as number:
        out = f.add(f.mul(group, per_group), blocks.first(f, number))
        w = weights + f.mul(f.add(f.mul(group, blocks.count), number), size * taps_size)
        with s.nest(spatial[:-1]) as outer, f.loop(0, row.count) as i:
            block(group, out, w, [*outer, row.first(f, i)])


def _inside(s: Schedule, step: Conv, channel: Index, outer: Sequence[Index]) -> Index:
    """Which tap a channel and the looped axes of the kernel begin with."""
    kernel = step.weight.shape[2:]
    result: Any = s.f.mul(channel, prod(kernel))
    for axis, k in enumerate(outer):
        result = s.f.add(result, s.f.mul(k, prod(kernel[axis + 1 :])))
    return result


def _begin(s: Schedule, step: Conv, channel: Index, outer: Sequence[Index], at: Sequence[Index]) -> list[Any]:
    """Coordinates in the input of the first tap for the result at `at`."""
    f = s.f
    scale = step.pool or (1,) * len(at)
    found: list[Any] = [channel]
    for axis, position in enumerate(at):
        moved = f.mul(position, scale[axis] * step.strides[axis])
        found.append(f.add(moved, f.mul(outer[axis], step.dilations[axis])) if axis < len(outer) else moved)
    return found


def _distance(step: Conv, access: Access, looped: int, tap: Sequence[int], place: Sequence[int]) -> int:
    """How far a tap of a neighbouring result lies from `_begin`, in elements."""
    total = 0
    for axis, position in enumerate(place):
        k = tap[axis - looped] if axis >= looped else 0
        total += (position * step.strides[axis] + k * step.dilations[axis]) * access.strides[1 + axis]
    return total


def _is_row(s: Schedule, step: Conv) -> bool:
    """Whether the results along the last axis fit into two vectors, and lie one behind the other in the input."""
    _, spatial = storage(step)
    length = spatial[-1] * (step.pool[-1] if step.pool else 1)
    access = access_of(step.operands[0])
    return (
        4 <= length <= 2 * s.width
        and not step.channels_last
        and step.groups == 1
        and step.strides[-1] == 1
        and access.strides[-1] == 1
        and prod(step.pool[:-1]) <= 2
    )


def _row_in_lanes(s: Schedule, step: Conv) -> None:
    """One sample: neighbours along the last axis in the lanes, times output channels; pooled in registers."""
    f, width = s.f, s.width
    (x,) = step.operands
    access = access_of(x)
    target, spatial = storage(step)
    outs, channels = step.weight.shape[:2]
    pool = step.pool or (1,) * len(spatial)
    length = spatial[-1] * pool[-1]
    starts = [0] if length <= width else [0, length - width]
    count = length if length < width else None
    window = [(*row, start) for row in product(*(range(p) for p in pool[:-1])) for start in starts]
    blocks = Blocks.of(outs, max(1, s.accumulators // len(window)))
    looped, taps = _taps(step, 7)
    weights = s.matrix(_packed(step, blocks), (step, "samples", blocks))
    bias = s.weights(step.bias, (step, "bias"))
    finish = Epilogue(s, step.epilogue, step.shape)
    with f.loop(0, blocks.count) as number, s.nest(spatial[:-1]) as where:
        out = blocks.first(f, number)
        at = [*where, 0]
        begins = [f.broadcast(bias + f.add(out, o), width) for o in range(blocks.size)]
        sums = [[f.variable(value) for _ in window] for value in begins]
        with s.nest((channels, *looped)) as (c, *outer):
            begin = s.at(x.source, s.index(access, _begin(s, step, c, outer, at)))
            w = weights + f.mul(
                f.add(f.mul(number, channels * prod(step.weight.shape[2:])), _inside(s, step, c, outer)), blocks.size
            )
            for place, tap in enumerate(taps):
                loaded = [
                    f.load(begin + _distance(step, access, len(outer), tap, shift), width, count=count)
                    for shift in window
                ]
                for o in range(blocks.size):
                    weight = f.broadcast(w + (place * blocks.size + o), width)
                    for total, value in zip(sums[o], loaded, strict=True):
                        total.set(f.fma(weight, value, total.get()))
        for o in range(blocks.size):
            channel = f.add(out, o)
            order = [channel, *where]
            if not step.pool:
                for total, start in zip(sums[o], starts, strict=True):
                    value = finish.vector(total.get(), [*order, start], count)
                    f.store(value, s.at(step.output, s.index(target, [*order, start])), count=count)
                continue
            values = [finish.vector(total.get(), []) for total in sums[o]]
            rows = values[: len(starts)]
            for first in range(len(starts), len(values), len(starts)):
                rows = [f.maximum(a, b) for a, b in zip(rows, values[first:], strict=False)]
            best = _neighbours(s, rows, starts, spatial[-1], pool[-1])
            f.store(best, s.at(step.output, s.index(target, [*order, 0])), count=spatial[-1])


def _neighbours(s: Schedule, rows: list[Value], starts: list[int], count: int, pool: int) -> Value:
    """The maxima of `pool` neighbours of numbers in one or two vectors, which begin at `starts`."""
    f, width = s.f, s.width

    def lane(position: int) -> int:
        return position if position < width else width + position - starts[-1]

    parts = []
    for k in range(pool):
        picks = [lane(i * pool + k) if i < count else -1 for i in range(width)]
        parts.append(f.shuffle(rows[0], rows[1] if len(rows) > 1 else None, picks))
    best = parts[0]
    for other in parts[1:]:
        best = f.maximum(best, other)
    return best


def _packed(step: Conv, blocks: Blocks) -> np.ndarray:
    """Weights as [group, block, in, *kernel, outputs of the block]."""
    return np.concatenate([
        np.moveaxis(group[start : start + blocks.size], 0, -1).ravel()
        for group in np.split(step.weight, step.groups)
        for start in blocks.starts()
    ])  # fmt: skip


def _channels_in_lanes(s: Schedule, step: Conv) -> None:
    """One sample: vectors of output channels times positions; the input is broadcast."""
    f, width = s.f, s.width
    (x,) = step.operands
    access = access_of(x)
    target, spatial = storage(step)
    outs, channels = step.weight.shape[:2]
    kernel = step.weight.shape[2:]
    finish = Epilogue(s, step.epilogue, step.shape)
    blocks = Blocks.of_vectors(outs, width, 4)
    size = blocks.size // width
    rest = outs if outs < width else None
    scale = step.pool or (1,) * len(spatial)
    window = list(product(*(range(p) for p in scale)))
    along = max(1, min(spatial[-1], (s.accumulators // size) // len(window)))
    looped, taps = _taps(step, 3 if along * size > 8 else 7)
    padded = np.pad(step.weight, ((0, max(0, width - outs)), *((0, 0),) * (step.weight.ndim - 1)))
    parts = [np.moveaxis(padded[v : v + blocks.size], 0, -1).ravel() for v in blocks.starts()]
    weights = s.matrix(np.concatenate(parts), (step, "channels", blocks))
    bias = s.weights(np.pad(step.bias, (0, max(0, width - outs))), (step, "bias"))
    positions = Blocks.of(spatial[-1], along)
    size_bytes = width * s.element.bytes
    inner = prod(kernel)

    def block(w: Value, out: Index, at: list[Any]) -> None:
        """`size` vectors of channels from `out` on, at a block of positions along the last axis from `at` on."""
        start = [f.load(bias + f.add(out, v * width), width) for v in range(size)]
        places = [(*(0,) * (len(spatial) - 1), p) for p in range(positions.size)]
        sums = [[[f.variable(value) for value in start] for _ in window] for _ in places]
        with s.nest((channels, *looped)) as (c, *outer):
            begin = s.at(x.source, s.index(access, _begin(s, step, c, outer, at)))
            at_weights = w + f.mul(_inside(s, step, c, outer), size * width)
            for number, tap in enumerate(taps):
                loaded = [f.load(at_weights + (number * size + v) * width, width, size_bytes) for v in range(size)]
                for p, place in enumerate(places):
                    for q, offset in enumerate(window):
                        shifted = [a * b + c for a, b, c in zip(place, scale, offset, strict=True)]
                        value = f.broadcast(begin + _distance(step, access, len(outer), tap, shifted), width)
                        for v in range(size):
                            total = sums[p][q][v]
                            total.set(f.fma(loaded[v], value, total.get()))
        for p, place in enumerate(places):
            where = [f.add(a, b) for a, b in zip(at, place, strict=True)]
            for v in range(size):
                channel = f.add(out, v * width)
                order = [*where, channel]
                value = finish.vector(sums[p][0][v].get(), order, rest)
                for q in range(1, len(window)):
                    value = f.maximum(value, finish.vector(sums[p][q][v].get(), order, rest))
                f.store(value, s.at(step.output, s.index(target, [channel, *where])), count=rest)

    with f.loop(0, blocks.count) as i, s.nest(spatial[:-1]) as outer, f.loop(0, positions.count) as j:
        w = weights + f.mul(i, blocks.size * channels * inner)
        block(w, blocks.first(f, i), [*outer, positions.first(f, j)])
