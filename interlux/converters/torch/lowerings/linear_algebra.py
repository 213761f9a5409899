"""Products of matrices and vectors, distances, and what can be computed from a matrix without singular values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir.errors import UnsupportedError
from ....ir.trees import is_float
from ...builder import Value
from ..builder import Size, TorchBuilder
from .reductions import norm
from .registry import aten
from .terms import Term, formula, product, sizes_of, working_dtype

LARGEST_UNROLLED = 32  # rows of a matrix whose elimination is written out step by step


# --- products


@aten("matmul", "mm", "bmm", "mv", "dot", "vdot", "linalg_matmul")
def matmul(op: TorchBuilder, x: Value, y: Value) -> Value:
    dtype = op.result_dtype
    if is_float(dtype):
        return op.MatMul(x, y)
    wide = np.dtype(np.int32) if dtype == np.int32 else np.dtype(np.int64)
    return op.cast(op.MatMul(op.cast(x, wide), op.cast(y, wide)), dtype)


def _sum_with(term: Term, product_: Term, beta: float, alpha: float) -> Term:
    """beta * term + alpha * product; a beta of 0 drops the term, NaN included."""
    scaled = product_ if alpha == 1 else product_ * alpha
    if beta == 0:
        return scaled
    return (term if beta == 1 else term * beta) + scaled


@formula("addmm", "addmv", "baddbmm")
def addmm(term: Term, x: Term, y: Term, *, beta: float = 1, alpha: float = 1) -> Term:
    return _sum_with(term, x.matmul(y), beta, alpha)


@formula("addbmm")
def addbmm(term: Term, x: Term, y: Term, *, beta: float = 1, alpha: float = 1) -> Term:
    return _sum_with(term, x.matmul(y).total(0), beta, alpha)


@formula("addr")
def addr(term: Term, x: Term, y: Term, *, beta: float = 1, alpha: float = 1) -> Term:
    return _sum_with(term, x.unsqueezed(1) * y.unsqueezed(0), beta, alpha)


@formula("outer", "ger")
def outer(x: Term, y: Term) -> Term:
    return x.unsqueezed(1) * y.unsqueezed(0)


@formula("inner")
def inner(x: Term, y: Term) -> Term:
    if x.rank == 0 or y.rank == 0:
        return x * y
    return _tensordot(x, y, sizes_of(x.op, 0), sizes_of(x.op, 1), [x.rank - 1], [y.rank - 1])


@formula("tensordot")
def tensordot(x: Term, y: Term, x_axes: Sequence[int], y_axes: Sequence[int]) -> Term:
    op = x.op
    over_x, over_y = [op.axis(a, x.rank) for a in x_axes], [op.axis(a, y.rank) for a in y_axes]
    return _tensordot(x, y, sizes_of(op, 0), sizes_of(op, 1), over_x, over_y)


def _tensordot(
    x: Term, y: Term, x_sizes: list[Size], y_sizes: list[Size], over_x: list[int], over_y: list[int]
) -> Term:
    for _i, (a, b) in enumerate(zip(over_x, over_y, strict=True)):  # an axis of size 1 meets any size
        if x_sizes[a] == 1 and y_sizes[b] != 1:
            y, y_sizes = y.total(b, True), [1 if j == b else s for j, s in enumerate(y_sizes)]
        elif y_sizes[b] == 1 and x_sizes[a] != 1:
            x, x_sizes = x.total(a, True), [1 if j == a else s for j, s in enumerate(x_sizes)]
    kept_x = [a for a in range(x.rank) if a not in over_x]
    kept_y = [b for b in range(y.rank) if b not in over_y]
    inner_size = product([x_sizes[a] for a in over_x])
    rows = x.transposed([*kept_x, *over_x]).reshaped([product([x_sizes[a] for a in kept_x]), inner_size])
    columns = y.transposed([*over_y, *kept_y]).reshaped([inner_size, product([y_sizes[b] for b in kept_y])])
    return rows.matmul(columns).reshaped([*(x_sizes[a] for a in kept_x), *(y_sizes[b] for b in kept_y)])


@formula("kron")
def kron(x: Term, y: Term) -> Term:
    rank = max(x.rank, y.rank)
    x = x.unsqueezed(*range(rank - x.rank)) if x.rank < rank else x
    y = y.unsqueezed(*range(rank - y.rank)) if y.rank < rank else y
    if rank == 0:
        return x * y
    blocks = x.unsqueezed(*range(1, 2 * rank, 2)) * y.unsqueezed(*range(0, 2 * rank, 2))
    return blocks.reshaped(list(x.op.result.shape))


@aten("chain_matmul", "linalg_multi_dot")
def chain(op: TorchBuilder, factors: Sequence[Value]) -> Value:
    """The product of a chain, from the left; where it starts or ends with a vector, in that order."""
    terms = [Term.of(op, f, op.result_dtype) for f in factors]
    if terms[-1].rank == 1:
        result = terms[-1]
        for term in reversed(terms[:-1]):
            result = term.matmul(result)
        return result.value
    result = terms[0]
    for term in terms[1:]:
        result = result.matmul(term)
    return result.value


@aten("einsum")
def einsum(op: TorchBuilder, equation: str, operands: Sequence[Value], **_: Any) -> Value:
    dtype = op.result_dtype
    wide = dtype if is_float(dtype) or dtype in (np.int32, np.int64) else np.dtype(np.int64)
    made = op.Einsum(*(op.cast(x, wide) for x in operands), equation=equation.replace(" ", ""))
    return op.cast(made, dtype)


@formula("bilinear")
def bilinear(x: Term, y: Term, weight: Term, bias: Term | None = None) -> Term:
    """x[..., i] weight[k, i, j] y[..., j], summed over i and j, plus bias[k]."""
    halves = x.unsqueezed(-2).unsqueezed(-2).matmul(weight)  # [..., k, 1, j]
    result = (halves.squeezed(-2) * y.unsqueezed(-2)).total(-1)
    return result if bias is None else result + bias


@formula("linalg_cross")
def cross(x: Term, y: Term, *, dim: int = -1) -> Term:
    return _cross(x, y, dim)


@formula("cross")
def cross_along_first(x: Term, y: Term, dim: int | None = None) -> Term:
    return _cross(x, y, dim)


def _cross(x: Term, y: Term, axis: int | None) -> Term:
    """Along an axis; None for the first of size 3."""
    op = x.op
    sizes = list(op.result.shape)
    if axis is None:
        axis = next(i for i, s in enumerate(sizes) if isinstance(s, int) and s == 3)
    axis = op.axis(axis, len(sizes))

    def part(term: Term, *rows: int) -> Term:
        return term.row(list(rows), axis - len(sizes) + term.rank)

    return part(x, 1, 2, 0) * part(y, 2, 0, 1) - part(x, 2, 0, 1) * part(y, 1, 2, 0)


@formula("linalg_vecdot")
def vecdot(x: Term, y: Term, *, dim: int = -1) -> Term:
    return (x * y).total(dim)


@aten("trace")
def trace(op: TorchBuilder, x: Value) -> Value:
    dtype = op.result_dtype
    wide = working_dtype(dtype) if is_float(dtype) else np.int64
    diagonal = _diagonal(Term.of(op, x, wide), sizes_of(op, 0))
    return op.cast(diagonal.total().value, dtype)


def _diagonal(x: Term, sizes: Sequence[Size]) -> Term:
    """Of a matrix: every (columns + 1)-th element of its rows one after another."""
    op = x.op
    rows, columns = sizes
    flat = Term(op, op.Reshape(x.value, op.ints(-1)), 1)
    end = op.Mul(op.size(rows), op.size(columns))
    end = op.Min(end, op.Mul(op.size(columns), op.size(columns)))  # a tall matrix has rows without a diagonal
    step = op.Add(op.size(columns), op.ints(1))
    return Term(op, op.Slice(flat.value, op.ints(0), end, op.ints(0), step), 1)


@aten("cartesian_prod")
def cartesian_product(op: TorchBuilder, vectors: Sequence[Value]) -> Value:
    if len(vectors) == 1:
        return op.Identity(vectors[0])
    sizes = [n.meta["val"].shape[0] for n in op.fx_node.args[0]]  # type: ignore[union-attr]
    columns = []
    for i, vector in enumerate(vectors):
        shape: list[Size] = [sizes[i] if j == i else 1 for j in range(len(sizes))]
        grid = Term(op, op.Reshape(vector, op.sizes(shape)), len(sizes)).expanded(sizes)
        columns.append(grid.unsqueezed(-1))
    grid = columns[0].joined(*columns[1:], axis=-1) if len(columns) > 1 else columns[0]
    return grid.reshaped(list(op.result.shape)).value


@formula("matrix_power", "linalg_matrix_power")
def matrix_power(x: Term, exponent: int) -> Term:
    sizes = sizes_of(x.op, 0)
    if exponent < 0:
        x, exponent = _inverse(x, sizes), -exponent
    if exponent == 0:
        return _identity(x, sizes[-1]).expanded(sizes)
    result: Term | None = None
    while True:
        if exponent & 1:
            result = x if result is None else result.matmul(x)
        exponent >>= 1
        if not exponent and result is not None:
            return result
        x = x.matmul(x)


# --- distances and similarities


@formula("cdist")
def cdist(x: Term, y: Term, p: float = 2, compute_mode: int | None = None) -> Term:
    return norm(x.unsqueezed(-2) - y.unsqueezed(-3), float(p), -1)


@formula("pdist")
def pdist(x: Term, p: float = 2) -> Term:
    rows = sizes_of(x.op, 0)[0]
    if not isinstance(rows, int):
        raise UnsupportedError(f"pdist of a dynamic number of rows{x.op.where()}; fix that size")
    first, second = np.triu_indices(rows, 1)
    return norm(x.row(first, 0) - x.row(second, 0), float(p), -1)


@formula("pairwise_distance")
def pairwise_distance(x: Term, y: Term, p: float = 2, eps: float = 1e-6, keepdim: bool = False) -> Term:
    return norm(x - y + eps, float(p), -1, keepdim)


@formula("cosine_similarity")
def cosine_similarity(x: Term, y: Term, axis: int = 1, eps: float = 1e-8) -> Term:
    """The derivative of a length goes on below eps, as in torch."""
    rank = max(x.rank, y.rank)
    axis = x.op.axis(axis, rank)

    def direction(term: Term) -> Term:
        own = axis - rank + term.rank
        length = norm(term, 2, own, True)
        return term / (length < eps).where(length + (eps - length).stopped(), length)

    x = x.unsqueezed(*range(rank - x.rank)) if x.rank < rank else x
    y = y.unsqueezed(*range(rank - y.rank)) if y.rank < rank else y
    return (direction(x) * direction(y)).total(axis)


# --- elimination, written out for matrices of a fixed size


def _unrolled(x: Term, sizes: Sequence[Size]) -> int:
    """The number of rows, if the elimination may be written out."""
    rows = sizes[-2]
    if not isinstance(rows, int) or rows > LARGEST_UNROLLED:
        raise UnsupportedError(
            f"{x.op.operator} of matrices with {rows} rows{x.op.where()}; "
            f"a fixed number up to {LARGEST_UNROLLED} can be imported"
        )
    return rows


def _identity(x: Term, rows: Size) -> Term:
    if not isinstance(rows, int):
        raise UnsupportedError(f"{x.op.operator} of matrices of dynamic size{x.op.where()}; fix that size")
    return Term(x.op, x.op.const(np.eye(rows), like=x.value), 2)


def _eliminated(a: Term, b: Term, rows: int) -> tuple[Term, list[Term], Term]:
    """Gauss-Jordan elimination with partial pivoting. Of a singular matrix the results are not finite.

    Arguments:
        a: [..., rows, rows].
        b: [..., rows, columns], of the same leading sizes or broadcast to them.

    Returns:
        a⁻¹ b; the pivots, each [..., 1, 1]; the number of exchanged rows, int64 [..., 1, 1].
    """
    op = a.op
    numbers = Term(op, op.const(np.arange(rows)), 1)
    pivots: list[Term] = []
    exchanges: Any = None
    for step in range(rows):
        column = a.row([step], -1)  # [..., rows, 1]
        waiting = (numbers >= step).unsqueezed(-1)
        sizes = waiting.where(column.Abs(), -1).stopped()
        place = Term(op, op.ArgMax(sizes.value, axis=a.rank - 2, keepdims=1), a.rank)
        exchanged = place.differs(step).cast(np.int64)
        exchanges = exchanged if exchanges is None else exchanges + exchanged
        is_pivot = numbers.unsqueezed(-1).equals(place)  # [..., rows, 1]
        is_step = numbers.equals(step).unsqueezed(-1)

        def swapped(term: Term, is_pivot: Term = is_pivot, is_step: Term = is_step, step: int = step) -> Term:
            chosen = is_pivot.where(term, 0).total(-2, True)
            return is_step.where(chosen, is_pivot.where(term.row([step], -2), term))

        a, b = swapped(a), swapped(b)
        factors, row_a = a.row([step], -1), a.row([step], -2)
        pivot = row_a.row([step], -1)
        pivots.append(pivot)
        row_a, row_b = row_a / pivot, b.row([step], -2) / pivot
        a = is_step.where(row_a, a - factors * row_a)
        b = is_step.where(row_b, b - factors * row_b)
    return b, pivots, exchanges


def _solve(a: Term, b: Term, rows: int) -> Term:
    return _eliminated(a, b, rows)[0]


def _inverse(x: Term, sizes: Sequence[Size]) -> Term:
    rows = _unrolled(x, sizes)
    return _solve(x, _identity(x, rows), rows)


@formula("linalg_inv", "inverse")
def inverse(x: Term) -> Term:
    return _inverse(x, sizes_of(x.op, 0))


@formula("linalg_solve")
def solve(a: Term, b: Term, *, left: bool = True) -> Term:
    op, sizes = a.op, sizes_of(a.op, 0)
    b_sizes = sizes_of(op, 1)
    rows = _unrolled(a, sizes)
    is_vector = b.rank == 1 or (b.rank == a.rank - 1 and list(b_sizes) == list(sizes[:-1]))
    if is_vector:
        return _solve(a, b.unsqueezed(-1), rows).squeezed(-1)
    if left:
        return _solve(a, b, rows)
    return _turned(_solve(_turned(a), _turned(b), rows))


@formula("linalg_solve_triangular")
def solve_triangular(a: Term, b: Term, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Term:
    rows = _unrolled(a, sizes_of(a.op, 0))
    if left:
        return _substituted(a, b, rows, upper, unitriangular)
    return _turned(_substituted(_turned(a), _turned(b), rows, not upper, unitriangular))


@formula("cholesky_solve")
def cholesky_solve(b: Term, factor: Term, upper: bool = False) -> Term:
    rows = _unrolled(factor, sizes_of(factor.op, 1))
    lower = _turned(factor) if upper else factor
    return _substituted(_turned(lower), _substituted(lower, b, rows, False), rows, True)


@formula("cholesky_inverse")
def cholesky_inverse(factor: Term, upper: bool = False) -> Term:
    rows = _unrolled(factor, sizes_of(factor.op, 0))
    lower = _turned(factor) if upper else factor
    half = _substituted(lower, _identity(lower, rows), rows, False)
    return _turned(half).matmul(half)


def _turned(x: Term) -> Term:
    return x.transposed([*range(x.rank - 2), x.rank - 1, x.rank - 2])


def _substituted(a: Term, b: Term, rows: int, upper: bool, unitriangular: bool = False) -> Term:
    """a⁻¹ b for a triangular a, whose other half is not read."""
    op = a.op
    numbers = Term(op, op.const(np.arange(rows)), 1)
    for step in reversed(range(rows)) if upper else range(rows):
        row = b.row([step], -2)
        if not unitriangular:
            row = row / a.row([step], -2).row([step], -1)
        later = (numbers < step if upper else numbers > step).unsqueezed(-1)
        is_step = numbers.equals(step).unsqueezed(-1)
        b = is_step.where(row, b - later.where(a.row([step], -1), 0) * row)
    return b


@formula("linalg_cholesky", "cholesky")
def cholesky(x: Term, upper: bool = False, **options: Any) -> Term:
    """Column by column; of a matrix that is not positive definite NaN, where torch raises an error."""
    upper = bool(options.get("upper", upper))
    op = x.op
    rows = _unrolled(x, sizes_of(op, 0))
    numbers = Term(op, op.const(np.arange(rows)), 1)
    columns = []
    for step in range(rows):
        column = x.row([step], -1)
        below = (numbers >= step).unsqueezed(-1)
        column = below.where(column / column.row([step], -2).Sqrt(), 0)
        columns.append(column)
        if step + 1 < rows:
            x = x - column * _turned(column)
    lower = columns[0].joined(*columns[1:], axis=-1) if rows > 1 else columns[0]
    return _turned(lower) if upper else lower


@aten("linalg_det", "det")
def determinant(op: TorchBuilder, x: Value) -> Value:
    return op.cast(op.Det(op.cast(x, working_dtype(x.dtype))), x.dtype)


def _log_determinant(x: Term, sizes: Sequence[Size]) -> tuple[Term, Term]:
    """The sign of the determinant, and the logarithm of its size."""
    rows = _unrolled(x, sizes)
    _, pivots, exchanges = _eliminated(x, _identity(x, rows).row([0], -1), rows)
    sign = 1 - exchanges.primitive("Mod", 2).cast(x.dtype) * 2
    logarithm = pivots[0].Abs().Log()
    for i, pivot in enumerate(pivots):
        sign = sign * pivot.Sign()
        logarithm = logarithm if i == 0 else logarithm + pivot.Abs().Log()
    return sign.squeezed(-1).squeezed(-1).stopped(), logarithm.squeezed(-1).squeezed(-1)


@aten("linalg_slogdet", "slogdet")
def slogdet(op: TorchBuilder, x: Value) -> tuple[Value, Value]:
    sign, logarithm = _log_determinant(Term.of(op, x), sizes_of(op, 0))
    return sign.value, logarithm.value


@formula("logdet")
def logdet(x: Term) -> Term:
    sign, logarithm = _log_determinant(x, sizes_of(x.op, 0))
    return (sign < 0).where(math.nan, logarithm)
