"""Fully connected layers and products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..llvm import Index, Value, Variable
from ..steps import Dense, MatMul
from ..tensors import Access
from .elementwise import Epilogue
from .schedule import Schedule, access_of, split


def dense(s: Schedule, step: Dense) -> None:
    """x · weightᵀ + bias, the epilogue applied in registers."""
    if s.by_sample and s.width > 1:
        _features_in_lanes(s, step)
    else:
        _samples_in_lanes(s, step)


def packed(weight: np.ndarray, blocks: list[tuple[int, int]]) -> np.ndarray:
    """Rows of [out, in] in blocks, each [in, rows of the block]."""
    parts = []
    row = 0
    for size, count in blocks:
        for _ in range(count):
            parts.append(weight[row : row + size].T.ravel())
            row += size
    return np.concatenate(parts)


def _samples_in_lanes(s: Schedule, step: Dense) -> None:
    """Blocks of outputs times `blocks` vectors of samples."""
    f = s.f
    rows, outs = step.shape
    (x,) = step.operands
    access = access_of(x)
    features = x.shape[1]
    blocks = split(outs, max(1, s.accumulators // s.blocks))
    weights = s.weights(packed(step.weight, blocks), (step, "samples", tuple(blocks)))
    bias = s.weights(step.bias, (step, "bias"))
    finish = Epilogue(s, step.epilogue, step.shape)
    first = 0
    for size, count in blocks:
        with f.loop(0, rows) as row, f.loop(0, count) as block:
            out = f.add(f.mul(block, size), first)
            w = weights + f.add(f.mul(block, size * features), first * features)
            sums = [_started(s, bias + f.add(out, o)) for o in range(size)]

            def accumulate(k: Index, offset: int, row: Index = row, w: Value = w, sums: Any = sums, size: int = size) -> None:
                values = s.read(x, access, [row, f.add(k, offset)])
                at = w + f.add(f.mul(k, size), offset * size)
                for o in range(size):
                    weight = s.broadcast(at + o)
                    for total, value in zip(sums[o], values, strict=True):
                        total.set(f.fma(weight, value, total.get()))

            f.unrolled(features, 4 if size * s.blocks >= 12 else 8, accumulate)
            for o in range(size):
                values = finish([total.get() for total in sums[o]], [row, f.add(out, o)])
                s.store(values, s.at(step.output, f.add(f.mul(row, outs), f.add(out, o))))
        first += size * count


def _started(s: Schedule, bias: Value) -> list[Variable]:
    start = s.broadcast(bias)
    return [s.f.variable(start) for _ in range(s.blocks)]


def _features_in_lanes(s: Schedule, step: Dense) -> None:
    """One sample: vectors of outputs times rows; a single row sums several parts of the inputs at a time."""
    f, width = s.f, s.width
    rows, outs = step.shape
    (x,) = step.operands
    access = access_of(x)
    features = x.shape[1]
    vectors = -(-outs // width)
    together = 1 if rows == 1 else min(rows, 6)
    blocks = split(vectors, max(1, min(8 if rows == 1 else 4, s.accumulators // together)))
    weight = np.zeros((vectors * width, features))
    weight[:outs] = step.weight
    lanes = [(size * width, count) for size, count in blocks]
    weights = s.weights(packed(weight, lanes), (step, "features", tuple(blocks)))
    bias = s.weights(np.pad(step.bias, (0, vectors * width - outs)), (step, "bias"))
    finish = Epilogue(s, step.epilogue, step.shape)
    first = 0
    for size, count in blocks:
        parts = max(1, min(s.accumulators // 3 // size, features)) if together == 1 else 1
        # The last vector may be partly filled: it is then a block of its own, so that the others need no masks.
        whole = count - 1 if (first + size * count) * width > outs else count
        for start, number in ((0, whole), (whole, count - whole)):
            if not number:
                continue
            for row_start, row_size, row_count in _row_blocks(rows, together):
                with f.loop(0, row_count) as row_block, f.loop(start, start + number) as block:
                    row = f.add(f.mul(row_block, row_size), row_start)
                    vector = f.add(f.mul(block, size), first)
                    _block(s, step, access, weights, bias, finish, row, row_size, vector, size, parts, start + number == count)
        first += size * count


def _row_blocks(rows: int, together: int) -> list[tuple[int, int, int]]:
    """(first row, rows of a block, number of blocks)."""
    found = []
    start = 0
    for size, count in split(rows, together):
        found.append((start, size, count))
        start += size * count
    return found


def _block(
    s: Schedule, step: Dense, access: Access, weights: Value, bias: Value, finish: Epilogue, row: Index, rows: int,
    vector: Index, size: int, parts: int, last: bool,
) -> None:
    """`rows` rows by `size` vectors of outputs, from row and vector on."""
    f, width = s.f, s.width
    outs, features = step.shape[1], step.operands[0].shape[1]
    bytes_ = width * s.element.bytes
    sums = [
        [
            [f.variable(f.load(bias + f.mul(f.add(vector, v), width), width, bytes_) if part == 0 else
                        f.const(0, s.element.vector(width))) for v in range(size)]
            for _ in range(rows)
        ]
        for part in range(parts)
    ]
    w = weights + f.mul(vector, width * features)

    def accumulate(k: Index, offset: int) -> None:
        loaded = [f.load(w + f.add(f.mul(k, size * width), (offset * size + v) * width), width, bytes_) for v in range(size)]
        for r in range(rows):
            value = f.broadcast(
                s.at(step.operands[0].source, s.index(access, [f.add(row, r), f.add(k, offset)])), width
            )
            for v in range(size):
                total = sums[offset % parts][r][v]
                total.set(f.fma(loaded[v], value, total.get()))

    unroll = max(parts, 4 if rows * size >= 8 else 16)
    f.unrolled(features, unroll - unroll % parts, accumulate)
    for r in range(rows):
        for v in range(size):
            totals = [sums[part][r][v].get() for part in range(parts)]
            while len(totals) > 1:
                totals = [f.add(*totals[i : i + 2]) if i + 1 < len(totals) else totals[i] for i in range(0, len(totals), 2)]  # type: ignore[misc]
            column = f.mul(f.add(vector, v), width)
            count = (outs - 1) % width + 1 if last and v == size - 1 else None
            at = [f.add(row, r), column]
            value = finish.vector(totals[0], at, count)
            f.store(value, s.at(step.output, f.add(f.mul(at[0], outs), column)), count=count)


def matmul(s: Schedule, step: MatMul) -> None:
    """Products of matrices that belong to a sample."""
    f = s.f
    count, m, n = step.shape
    a, b = step.operands
    access_a, access_b = access_of(a), access_of(b)
    finish = Epilogue(s, step.epilogue, step.shape)
    inner = a.shape[2]
    if s.by_sample and s.width > 1 and access_b.strides[2] in (0, 1):
        _matmul_columns(s, step, access_a, access_b, finish)
        return
    room = max(1, s.accumulators // s.blocks)
    rows, columns = min(m, 4), 1
    columns = min(n, max(1, room // rows))
    for row_start, row_size, row_count in _row_blocks(m, rows):
        for column_start, column_size, column_count in _row_blocks(n, columns):
            with f.loop(0, count) as c, f.loop(0, row_count) as i, f.loop(0, column_count) as j:
                row, column = f.add(f.mul(i, row_size), row_start), f.add(f.mul(j, column_size), column_start)
                zero = s.constant(0.0)
                sums = [[[f.variable(zero) for _ in range(s.blocks)] for _ in range(column_size)] for _ in range(row_size)]
                with f.loop(0, inner) as k:
                    left = [s.read(a, access_a, [c, f.add(row, r), k]) for r in range(row_size)]
                    right = [s.read(b, access_b, [c, k, f.add(column, q)]) for q in range(column_size)]
                    for r in range(row_size):
                        for q in range(column_size):
                            for n_, total in enumerate(sums[r][q]):
                                total.set(f.fma(left[r][n_], right[q][n_], total.get()))
                for r in range(row_size):
                    for q in range(column_size):
                        values = [total.get() for total in sums[r][q]]
                        if step.scale != 1.0:
                            values = [v * step.scale for v in values]
                        at = [c, f.add(row, r), f.add(column, q)]
                        index = f.add(f.mul(f.add(f.mul(c, m), at[1]), n), at[2])
                        s.store(finish(values, at), s.at(step.output, index))


def _matmul_columns(s: Schedule, step: MatMul, access_a: Access, access_b: Access, finish: Epilogue) -> None:
    """One sample, columns of the right matrix in the lanes."""
    from .elementwise import read_along

    f, width = s.f, s.width
    count, m, n = step.shape
    a, b = step.operands
    vectors = -(-n // width)
    size = min(vectors, 2)
    rows = max(1, min(m, s.accumulators // size // 2))

    def block(c: Index, row: Index, row_size: int, column: Index, size: int, rest: int | None) -> None:
        zero = f.const(0.0, s.element.vector(width))
        sums = [[f.variable(zero) for _ in range(size)] for _ in range(row_size)]
        counts = [rest if v == size - 1 else None for v in range(size)]
        with f.loop(0, a.shape[2]) as k:
            right = [read_along(s, b, access_b, [c, k, f.add(column, v * width)], width, counts[v]) for v in range(size)]
            for r in range(row_size):
                left = f.broadcast(s.at(a.source, s.index(access_a, [c, f.add(row, r), k])), width)
                for v in range(size):
                    sums[r][v].set(f.fma(left, right[v], sums[r][v].get()))
        for r in range(row_size):
            for v in range(size):
                value = sums[r][v].get()
                at = [c, f.add(row, r), f.add(column, v * width)]
                value = finish.vector(value if step.scale == 1.0 else value * step.scale, at, counts[v])
                index = f.add(f.mul(f.add(f.mul(c, m), at[1]), n), at[2])
                f.store(value, s.at(step.output, index), count=counts[v])

    whole = n // width
    with f.loop(0, count) as c:
        for row_start, row_size, row_count in _row_blocks(m, rows):
            with f.loop(0, row_count) as i:
                row = f.add(f.mul(i, row_size), row_start)
                if whole // size:
                    with f.loop(0, whole // size) as j:
                        block(c, row, row_size, f.mul(j, size * width), size, None)
                for v in range(whole // size * size, vectors):
                    block(c, row, row_size, v * width, 1, n - v * width if v == whole else None)
