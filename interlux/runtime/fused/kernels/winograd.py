"""Convolutions by 3x3 kernels with 16 multiplications for 4 results in place of 36 (Winograd's F(2x2, 3x3)).

For one sample, channels in the lanes. Some rows of 2x2 tiles at a time: their 4x4 neighbourhoods are transformed, each
of the 16 places is a product of matrices [tile, in] · [in, out], and the results are transformed back.

Source: Lavin and Gray 2015, https://arxiv.org/abs/1509.09308.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from ..llvm import Function, Index, Value
from ..steps import Conv
from ..tensors import Access
from .elementwise import Epilogue
from .schedule import Blocks, Schedule, access_of

PLACES = 16
TILES = 16  # at a time: what they need stays in the nearest cache
_WEIGHTS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def fits(s: Schedule, step: Conv) -> bool:
    """Whether a convolution can be computed in this way, and gains by it."""
    outs, channels, *kernel = step.weight.shape
    return (
        kernel == [3, 3]
        and (step.strides, step.dilations, step.groups, step.pool) == ((1, 1), (1, 1), 1, ())
        and s.by_sample
        and s.width > 1
        and step.channels_last
        and min(step.shape[:2]) >= 2
        and outs % s.width == 0
        and channels % s.width == 0
        and access_of(step.operands[0]).strides[0] == 1
        and bool(np.all(np.isfinite(step.weight)))
    )


def winograd(s: Schedule, step: Conv, target: Access) -> None:
    """The convolution; where a result is not finite, all of them a second time, by sums of nine products.

    Differences of infinities are NaN: they would spread to results that don't depend on them.

    Arguments:
        target: where element (out, row, column) goes.
    """
    f = s.f
    height, width, outs = step.shape
    rows, columns = (Blocks(size, 2, -(-size // 2)) for size in (height, width))
    together = Blocks.of(rows.count, max(1, TILES // columns.count))
    tiles = together.size * columns.count
    channels = step.weight.shape[1]
    changed = s.scratch(PLACES * tiles * (channels + outs))
    made = changed + PLACES * tiles * channels
    finish = Epilogue(s, step.epilogue, step.shape)
    wrong = f.variable(0.0, s.element.vector(s.width))
    with f.loop(0, together.count) as i:
        first = together.first(f, i)

        def corner(row: Index, column: Index, first: Index = first) -> list[Any]:
            """The first row and column of a tile's results."""
            return [rows.first(f, f.add(first, row)), columns.first(f, column)]

        with f.loop(0, together.size) as row, f.loop(0, columns.count) as column:
            tile = f.add(f.mul(row, columns.count), column)
            _change(s, step, corner(row, column), changed + f.mul(tile, channels), tiles * channels)
        _multiply(s, step, changed, made, tiles)
        with f.loop(0, together.size) as row, f.loop(0, columns.count) as column:
            tile = f.add(f.mul(row, columns.count), column)
            source = made + f.mul(tile, outs)
            with f.loop(0, outs, s.width) as out:
                results = _results(s, step, out, source, tiles * outs)
                for (y, x), value in zip(product(range(2), range(2)), results, strict=True):
                    wrong.set(f.fma(value, 0.0, wrong.get()))
                    where = [f.add(a, b) for a, b in zip(corner(row, column), (y, x), strict=True)]
                    value = finish.vector(value, [*where, out])
                    f.store(value, s.at(step.output, s.index(target, [out, *where])))
    total = f.reduce(lambda a, b: a + b, wrong.get())
    with f.when(f.is_nan(total)):
        _plainly(s, step, target, finish)


def _change(s: Schedule, step: Conv, corner: Sequence[Index], to: Value, stride: int) -> None:
    """Bᵀ d B of the neighbourhood of a tile, for all channels; the 16 places are `stride` apart."""
    f = s.f
    (x,) = step.operands
    access = access_of(x)
    with f.loop(0, step.weight.shape[1], s.width) as channel:
        begin = s.at(x.source, s.index(access, [channel, *corner]))
        d = [
            [f.load(begin + (i * access.strides[1] + j * access.strides[2]), s.width) for j in range(4)]
            for i in range(4)
        ]
        columns = [_differences([d[i][j] for i in range(4)]) for j in range(4)]
        for i in range(4):
            for j, value in enumerate(_differences([columns[j][i] for j in range(4)])):
                f.store(value, to + f.add(channel, (4 * i + j) * stride))


def _differences(d: list[Value]) -> list[Value]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _multiply(s: Schedule, step: Conv, changed: Value, made: Value, tiles: int) -> None:
    """A product [tile, in] · [in, out] for each of the 16 places."""
    f, width = s.f, s.width
    outs, channels = step.weight.shape[:2]
    blocks = Blocks.of_vectors(outs, width, 4)
    size = blocks.size // width
    parts = Blocks.of(tiles, max(1, s.accumulators // size))
    turned = np.einsum("ia,ocab,jb->ijco", _WEIGHTS, step.weight, _WEIGHTS)
    packed = np.stack([turned[..., start : start + blocks.size] for start in blocks.starts()], axis=2)
    weights = s.weights(packed, (step, "winograd", blocks))
    with f.loop(0, PLACES) as place, f.loop(0, blocks.count) as block, f.loop(0, parts.count) as part:
        w = weights + f.mul(f.add(f.mul(place, blocks.count), block), channels * blocks.size)
        tile = f.add(f.mul(place, tiles), parts.first(f, part))
        rows = changed + f.mul(tile, channels)
        zero = f.const(0.0, s.element.vector(width))
        sums = [[f.variable(zero) for _ in range(size)] for _ in range(parts.size)]

        def accumulate(k: Index, offset: int, w: Value = w, rows: Value = rows, sums: Any = sums) -> None:
            at = w + f.mul(k, blocks.size)
            loaded = [f.load(at + (offset * size + v) * width, width, width * s.element.bytes) for v in range(size)]
            for r in range(parts.size):
                value = f.broadcast(rows + k + (r * channels + offset), width)
                for v in range(size):
                    sums[r][v].set(f.fma(loaded[v], value, sums[r][v].get()))

        f.unrolled(channels, 2, accumulate)
        target = made + f.add(f.mul(tile, outs), blocks.first(f, block))
        for r in range(parts.size):
            for v in range(size):
                f.store(sums[r][v].get(), target + (r * outs + v * width))


def _results(s: Schedule, step: Conv, out: Index, source: Value, stride: int) -> list[Value]:
    """Aᵀ m A and the bias: the four results of a tile, for a vector of channels."""
    f = s.f
    m = [[f.load(source + f.add(out, (4 * i + j) * stride), s.width) for j in range(4)] for i in range(4)]
    columns = [_sums([m[i][j] for i in range(4)]) for j in range(4)]
    bias = f.load(s.weights(step.bias, (step, "bias")) + out, s.width)
    return [y + bias for i in range(2) for y in _sums([columns[j][i] for j in range(4)])]


def _sums(m: list[Value]) -> list[Value]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _plainly(s: Schedule, step: Conv, target: Access, finish: Epilogue) -> None:
    """The convolution as it is defined, in little code."""
    f: Function = s.f
    (x,) = step.operands
    access = access_of(x)
    outs, channels = step.weight.shape[:2]
    weights = s.matrix(np.moveaxis(step.weight, 0, -1), (step, "plain"))
    bias = s.weights(step.bias, (step, "bias"))
    with s.nest(step.shape[:2]) as where, f.loop(0, outs, s.width) as out:
        total = f.variable(f.load(bias + out, s.width))
        with s.nest((channels, 3, 3)) as (c, *tap):
            index = f.add(f.mul(f.add(f.mul(c, 3), tap[0]), 3), tap[1])
            at = [c, *(f.add(a, k) for a, k in zip(where, tap, strict=True))]
            value = f.broadcast(s.at(x.source, s.index(access, at)), s.width)
            total.set(f.fma(f.load(weights + f.add(f.mul(index, outs), out), s.width), value, total.get()))
        value = finish.vector(total.get(), [*where, out])
        f.store(value, s.at(step.output, s.index(target, [out, *where])))
