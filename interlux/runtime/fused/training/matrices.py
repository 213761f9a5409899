"""Products of matrices that both depend on the sample, as in attention: forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..kernels.schedule import Blocks, access_of
from ..llvm import Index, Value
from ..steps import MatMul
from ..tensors import Access, Source, Tensor, contiguous
from .products import unseen
from .schedule import Gradients, TrainingSchedule


@dataclass(frozen=True)
class _Stack:
    """Matrices [count, rows, columns] and where their elements lie."""

    source: Source
    access: Access

    @classmethod
    def of(cls, t: Tensor) -> _Stack:
        return cls(t.source, access_of(t))

    def turned(self) -> _Stack:
        """All of them transposed."""
        count, rows, columns = self.access.strides
        return _Stack(self.source, Access(self.access.offset, (count, columns, rows)))


def matmul(s: TrainingSchedule, step: MatMul) -> None:
    a, b = step.operands
    result = contiguous(step.shape)

    def finish(c: Index, i: Index, j: Index, value: Value) -> None:
        s.put(value, s.at(step.output, s.index(result, [c, i, j])))

    _products(s, step.shape, a.shape[2], _Stack.of(a), _Stack.of(b), finish)


def matmul_backward(s: TrainingSchedule, g: Gradients, step: MatMul) -> None:
    """dA = dY · Bᵀ, dB = Aᵀ · dY."""
    a, b = step.operands
    count, m, n = step.shape
    inner = a.shape[2]
    delta = _Stack(g.of(step.output), contiguous(step.shape))
    if g.wanted(a):
        _to_operand(s, g, a, (count, m, inner), n, delta, _Stack.of(b).turned())
    if g.wanted(b):
        _to_operand(s, g, b, (count, inner, n), m, _Stack.of(a).turned(), delta)


def _to_operand(
    s: TrainingSchedule, g: Gradients, t: Tensor, shape: tuple[int, ...], inner: int, left: _Stack, right: _Stack
) -> None:
    sink, access = g.sink(t), access_of(t)

    def finish(c: Index, i: Index, j: Index, value: Value) -> None:
        sink.put(value, s.index(access, [c, i, j]))

    _products(s, shape, inner, left, right, finish, once=sink.adds)


def _products(
    s: TrainingSchedule, shape: tuple[int, ...], inner: int, left: _Stack, right: _Stack,
    finish: Callable[[Index, Index, Index, Value], None], once: bool = False,
) -> None:  # fmt: skip
    """left · right, in blocks that stay in registers.

    Arguments:
        shape: of the results [count, rows, columns].
        finish: is given a result's coordinates and one vector of samples.
        once: where blocks overlap, a result that another block has made is 0, for results that are added.
    """
    f = s.f
    count, m, n = shape
    rows = Blocks.of(m, 4)
    columns = Blocks.of(n, max(1, s.accumulators // rows.size))
    apart = [stack.access.strides[axis] * s.tile for stack, axis in ((left, 1), (left, 2), (right, 1), (right, 2))]
    with f.loop(0, count) as c, f.loop(0, rows.count) as i, f.loop(0, columns.count) as j, s.groups():
        row, column = rows.first(f, i), columns.first(f, j)
        a = s.at(left.source, s.index(left.access, [c, row, 0]))
        b = s.at(right.source, s.index(right.access, [c, 0, column]))
        sums = [[f.variable(s.constant(0.0)) for _ in range(columns.size)] for _ in range(rows.size)]

        def accumulate(k: Index, offset: int) -> None:
            at_a = f.offset(f.offset(a, f.mul(k, apart[1])), offset * apart[1])
            at_b = f.offset(f.offset(b, f.mul(k, apart[2])), offset * apart[2])
            factors = [s.vector(f.offset(at_b, q * apart[3])) for q in range(columns.size)]
            for p in range(rows.size):
                value = s.vector(f.offset(at_a, p * apart[0]))
                for q, factor in enumerate(factors):
                    sums[p][q].set(f.fma(value, factor, sums[p][q].get()))

        f.unrolled(inner, 2, accumulate)
        for p in range(rows.size):
            for q in range(columns.size):
                value = sums[p][q].get()
                if once:
                    value = unseen(s, unseen(s, value, p, row, i, rows), q, column, j, columns)
                finish(c, f.add(row, p), f.add(column, q), value)
