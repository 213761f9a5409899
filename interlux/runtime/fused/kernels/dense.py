"""Fully connected layers and products of matrices."""

from __future__ import annotations

import numpy as np

from ..llvm import Index, Value, Variable
from ..steps import Dense, MatMul
from ..tensors import Access
from .elementwise import Epilogue
from .schedule import Blocks, Schedule, access_of


def dense(s: Schedule, step: Dense) -> None:
    """x · weightᵀ + bias, the epilogue applied in registers."""
    if s.by_sample and s.width > 1:
        _features_in_lanes(s, step)
    else:
        _samples_in_lanes(s, step)


def packed(weight: np.ndarray, blocks: Blocks) -> np.ndarray:
    """Rows of [out, in] in blocks, each [in, rows of the block]."""
    return np.concatenate([weight[start : start + blocks.size].T.ravel() for start in blocks.starts()])


def _samples_in_lanes(s: Schedule, step: Dense) -> None:
    """Blocks of outputs times `blocks` vectors of samples."""
    f = s.f
    rows, outs = step.shape
    (x,) = step.operands
    access = access_of(x)
    features = x.shape[1]
    blocks = Blocks.of(outs, s.accumulators // s.blocks)
    size = blocks.size
    weights = s.matrix(packed(step.weight, blocks), (step, "samples", blocks))
    bias = s.weights(step.bias, (step, "bias"))
    finish = Epilogue(s, step.epilogue, step.shape)
    with f.loop(0, rows) as row, f.loop(0, blocks.count) as block:
        out = blocks.first(f, block)
        w = weights + f.mul(block, size * features)
        sums = [_started(s, bias + f.add(out, o)) for o in range(size)]
        begin = s.at(x.source, s.index(access, [row, 0]))

        def accumulate(k: Index, offset: int) -> None:
            distance = access.strides[1] * s.stride(x.source)
            values = s.load(begin + f.mul(k, distance) + offset * distance)
            at = w + f.mul(k, size) + offset * size
            for o in range(size):
                weight = s.broadcast(at + o)
                for total, value in zip(sums[o], values, strict=True):
                    total.set(f.fma(weight, value, total.get()))

        f.unrolled(features, 2 if size * s.blocks >= 16 else 4 if size * s.blocks >= 8 else 8, accumulate)
        target = s.at(step.output, f.add(f.mul(row, outs), out))
        for o in range(size):
            values = finish([total.get() for total in sums[o]], [row, f.add(out, o)])
            s.store(values, target + o * s.tile)


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
    many = s.samples if step.shape[0] == 1 else 1  # then rows are samples
    together = Blocks.of(rows * many, 8 if many > 1 else 6)
    blocks = Blocks.of_vectors(
        outs, width, max(1, s.accumulators // 3 if together.size == 1 else min(4, s.accumulators // together.size))
    )
    rest = outs if outs < width else None
    size = blocks.size // width
    # A single row sums several parts of the inputs at a time, so that sums don't wait for each other.
    parts = max(1, min(s.accumulators // size, 4, features)) if together.size == 1 else 1
    weight = np.pad(step.weight, ((0, max(0, width - outs)), (0, 0)))
    weights = s.matrix(packed(weight, blocks), (step, "features", blocks))
    bias = s.weights(np.pad(step.bias, (0, max(0, width - outs))), (step, "bias"))
    finish = Epilogue(s, step.epilogue, step.shape)
    with f.loop(0, together.count) as i, f.loop(0, blocks.count) as block:
        w = weights + f.mul(block, blocks.size * features)
        out, row = blocks.first(f, block), together.first(f, i)
        _block(s, step, access, w, bias, finish, row, together.size, out, size, parts, rest)


def _block(
    s: Schedule,
    step: Dense,
    access: Access,
    w: Value,
    bias: Value,
    finish: Epilogue,
    row: Index,
    rows: int,
    out: Index,
    size: int,
    parts: int,
    rest: int | None,
) -> None:
    """`rows` rows by `size` vectors of outputs, from row and out on."""
    f, width = s.f, s.width
    outs, features = step.shape[1], step.operands[0].shape[1]
    bytes_ = width * s.element.bytes
    zero = f.const(0, s.element.vector(width))
    start = [f.load(bias + f.add(out, v * width), width) for v in range(size)]
    sums = [
        [[f.variable(start[v] if part == 0 else zero) for v in range(size)] for _ in range(rows)]
        for part in range(parts)
    ]
    x = step.operands[0]
    numbers = [f.add(row, r) for r in range(rows)]
    by_rows = s.samples == 1 or step.shape[0] > 1
    if by_rows:
        begins = [s.at(x.source, s.index(access, [number, 0])) for number in numbers]
    else:
        begins = [s.at(x.source, s.index(access, [0, 0])) + f.mul(number, x.source.size) for number in numbers]
    distance = access.strides[1] * s.stride(x.source)

    def accumulate(k: Index, offset: int) -> None:
        at = w + f.mul(k, size * width)
        loaded = [f.load(at + (offset * size + v) * width, width, bytes_) for v in range(size)]
        for r in range(rows):
            value = f.broadcast(begins[r] + f.mul(k, distance) + offset * distance, width)
            for v in range(size):
                total = sums[offset % parts][r][v]
                total.set(f.fma(loaded[v], value, total.get()))

    unroll = max(parts, 4 if rows * size >= 8 else 8)
    f.unrolled(features, unroll - unroll % parts, accumulate)
    for r in range(rows):
        at_row: Index = numbers[r]
        if not by_rows:
            s.sample, at_row = at_row, 0
        target = s.at(step.output, f.add(f.mul(at_row, outs), out))
        for v in range(size):
            totals = [sums[part][r][v].get() for part in range(parts)]
            while len(totals) > 1:  # in pairs
                totals = [a + b for a, b in zip(totals[::2], totals[1::2], strict=False)] + totals[len(totals) & ~1 :]
            value = finish.vector(totals[0], [at_row, f.add(out, v * width)], rest)
            f.store(value, target + v * width, count=rest)
        if not by_rows:
            s.sample = 0


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
    rows = Blocks.of(m, 4)
    columns = Blocks.of(n, max(1, s.accumulators // s.blocks // rows.size))
    with f.loop(0, count) as c, f.loop(0, rows.count) as i, f.loop(0, columns.count) as j:
        row, column = rows.first(f, i), columns.first(f, j)
        zero = s.constant(0.0)
        sums = [[[f.variable(zero) for _ in range(s.blocks)] for _ in range(columns.size)] for _ in range(rows.size)]
        with f.loop(0, inner) as k:
            left = [s.read(a, access_a, [c, f.add(row, r), k]) for r in range(rows.size)]
            right = [s.read(b, access_b, [c, k, f.add(column, q)]) for q in range(columns.size)]
            for r in range(rows.size):
                for q in range(columns.size):
                    for block, total in enumerate(sums[r][q]):
                        total.set(f.fma(left[r][block], right[q][block], total.get()))
        for r in range(rows.size):
            for q in range(columns.size):
                values = [total.get() for total in sums[r][q]]
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
    rows = Blocks.of(m, s.accumulators // size // 2)

    def block(c: Index, row: Index, column: Index, size: int, rest: int | None) -> None:
        zero = f.const(0.0, s.element.vector(width))
        sums = [[f.variable(zero) for _ in range(size)] for _ in range(rows.size)]
        counts = [rest if v == size - 1 else None for v in range(size)]
        with f.loop(0, a.shape[2]) as k:
            right = [
                read_along(s, b, access_b, [c, k, f.add(column, v * width)], width, counts[v]) for v in range(size)
            ]
            for r in range(rows.size):
                left = f.broadcast(s.at(a.source, s.index(access_a, [c, f.add(row, r), k])), width)
                for v in range(size):
                    sums[r][v].set(f.fma(left, right[v], sums[r][v].get()))
        for r in range(rows.size):
            for v in range(size):
                value = sums[r][v].get()
                at = [c, f.add(row, r), f.add(column, v * width)]
                value = finish.vector(value, at, counts[v])
                index = f.add(f.mul(f.add(f.mul(c, m), at[1]), n), at[2])
                f.store(value, s.at(step.output, index), count=counts[v])

    whole = n // width
    with f.loop(0, count) as c, f.loop(0, rows.count) as i:
        row = rows.first(f, i)
        with f.loop(0, whole // size) as j:
            block(c, row, f.mul(j, size * width), size, None)
        for v in range(whole // size * size, vectors):
            block(c, row, v * width, 1, n - v * width if v == whole else None)
