"""Reductions: sums, extremes, statistics, norms, scans along an axis, order statistics; softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ....ir.errors import UnsupportedError
from ....ir.trees import is_float
from ...builder import Value
from ..builder import Size, TorchBuilder
from .registry import aten
from .terms import Axes, Term, formula, product, sizes_of, working_dtype


def _summed_in(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of a sum's terms: small integers in int64, which wraps to the same."""
    return working_dtype(dtype) if is_float(dtype) else np.dtype(np.int64)


def _reduction(primitive: str) -> Callable[..., Value]:
    def lowering(op: TorchBuilder, x: Value, axes: Axes = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
        result = op.result_dtype
        term = Term.of(op, op.cast(x, result), _summed_in(result))
        term.rank = op.rank_of(x)
        if primitive == "Mean" and any(sizes_of(op, 0)[a] == 0 for a in term.axes(axes)):
            return op.cast((term.total(axes, bool(keepdim)) / 0).value, result)  # onnxruntime's mean of nothing is 0
        return op.cast(term.reduced(primitive, axes, bool(keepdim)).value, result)

    return lowering


for _names, _primitive in (
    ("mean mean.dim", "Mean"),
    ("sum sum.dim_IntList", "Sum"),
    ("logsumexp special_logsumexp", "LogSumExp"),
    ("prod prod.dim_int", "Prod"),
):
    aten(*_names.split())(_reduction(_primitive))


@aten("amax", "amin", "max", "min")
def extreme_value(op: TorchBuilder, x: Value, axes: Axes = None, keepdim: bool = False) -> Value:
    return _extreme_value(op, x, "Max" if "max" in op.operator else "Min", axes, keepdim)


def _extreme_value(op: TorchBuilder, x: Value, which: str, axes: Axes, keepdim: bool) -> Value:
    term = Term.of(op, x, np.int32 if x.dtype.name in ("int16", "uint16", "bool") else working_dtype(x.dtype))
    return op.cast(term.reduced(which, axes, bool(keepdim)).value, x.dtype)


@aten("aminmax")
def aminmax(op: TorchBuilder, x: Value, *, dim: int | None = None, keepdim: bool = False) -> tuple[Value, Value]:
    return _extreme_value(op, x, "Min", dim, keepdim), _extreme_value(op, x, "Max", dim, keepdim)


@aten("max.dim", "min.dim")
def extreme(op: TorchBuilder, x: Value, axis: int, keepdim: bool = False) -> tuple[Value, Value]:
    if op.rank_of(x) == 0:
        return op.Identity(x), op.const(np.array(0, np.int64))
    axis = op.axis(axis, op.rank_of(x))
    position = _position(op, x, op.operator, axis, True)
    value = op.GatherElements(x, position, axis=axis)  # the gradient goes to one of equal values, as in torch
    if keepdim:
        return value, position
    return op.Squeeze(value, op.ints(axis)), op.Squeeze(position, op.ints(axis))


def _position(op: TorchBuilder, x: Value, name: str, axis: int, keepdim: bool) -> Value:
    primitive = "ArgMax" if "max" in name else "ArgMin"
    x = op.cast(x, np.int32) if x.dtype.name in ("int16", "uint16", "bool") else x
    return op.primitive(primitive, (x,), {"axis": axis, "keepdims": int(keepdim)})


@aten("argmax", "argmin")
def arg_extreme(op: TorchBuilder, x: Value, axis: int | None = None, keepdim: bool = False) -> Value:
    rank = op.rank_of(x)
    if axis is not None and rank > 0:
        return _position(op, x, op.operator, op.axis(axis, rank), keepdim)
    flat = _position(op, op.Reshape(x, op.ints(-1)), op.operator, 0, False)
    return op.reshape(flat, list(op.result.shape)) if keepdim and rank else flat


@aten("any", "any.dim", "any.dims", "all", "all.dim", "all.dims", "_is_all_true", "_is_any_true")
def quantifier(op: TorchBuilder, x: Value, axes: Axes = None, keepdim: bool = False) -> Value:
    negated = op.operator in ("all", "_is_all_true")
    term = Term.of(op, x, bool)
    term.rank = op.rank_of(x)
    if isinstance(axes, Sequence) and not axes and "dims" in str(op.fx_node.target):
        return op.cast(term.value, op.result_dtype)  # along no axis at all
    # counted, because over no elements `any` is False and `all` True
    hits = (~term if negated else term).any(axes, bool(keepdim))
    return op.cast((~hits if negated else hits).value, op.result_dtype)


@aten("count_nonzero", "count_nonzero.dim_IntList")
def count_nonzero(op: TorchBuilder, x: Value, axes: Axes = None) -> Value:
    return Term.of(op, x, bool).cast(np.int64).total(axes).value


@aten("nansum", "nanmean")
def of_numbers(op: TorchBuilder, x: Value, axes: Axes = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    result = op.result_dtype
    term = Term.of(op, op.cast(x, result), _summed_in(result))
    term.rank = op.rank_of(x)
    if not is_float(result):
        return op.cast(term.total(axes, keepdim).value, result)
    known = ~term.is_nan()
    total = known.where(term, 0).total(axes, keepdim)
    if op.operator == "nanmean":
        total = total / known.cast(term.dtype).total(axes, keepdim)
    return op.cast(total.value, result)


# --- variance


def _moments(x: Term, sizes: Sequence[Size], axes: Axes, less: float, keepdim: bool) -> tuple[Term, Term]:
    """Variance and mean; `less` is taken from the number of elements."""
    along = x.axes(axes)
    count = x.like(product([sizes[a] for a in along]))
    mean = x.total(along, True) / count
    centred = x - mean
    total = (centred * centred).total(along, keepdim)
    variance = total / (count - less).Max(0)
    return variance, mean if keepdim else x.reduced("Mean", along)


def _root(variance: Term) -> Term:
    """The square root with derivative 0 at 0, as torch's std has."""
    zero = variance.equals(0)
    return zero.where(0, zero.where(1, variance).Sqrt())


@aten("var", "std", "var.correction", "std.correction", "var.dim", "std.dim")
@aten("var_mean", "std_mean", "var_mean.correction", "std_mean.correction", "var_mean.dim", "std_mean.dim")
def variance(op: TorchBuilder, x: Value, *arguments: Any, **options: Any) -> Any:
    overload = str(op.fx_node.target).rpartition(".")[2]
    names = {"default": ["unbiased"], "dim": ["dim", "unbiased", "keepdim"], "correction": ["dim"]}[overload]
    given = {**dict(zip(names, arguments, strict=False)), **options}
    less = given.get("correction") if overload == "correction" else int(given.get("unbiased", True))
    both = isinstance(op.result, tuple | list)
    dtype = x.dtype
    term = Term.of(op, x, working_dtype(dtype))
    term.rank = op.rank_of(x)
    found, mean = _moments(
        term, sizes_of(op, 0), given.get("dim"), 1 if less is None else less, given.get("keepdim", False)
    )
    if op.operator.startswith("std"):
        found = _root(found)
    values = op.cast(found.value, dtype), op.cast(mean.value, dtype)
    return values if both else values[0]


# --- norms


def norm(x: Term, order: float, axes: Axes = None, keepdim: bool = False) -> Term:
    """The vector norm of an order along axes, with torch's derivatives: 0 at 0, and shared by equal extremes."""
    if order == 2:
        return x.reduced("L2", axes, keepdim)
    if order == 1:
        return x.reduced("L1", axes, keepdim)
    if order == 0:
        return x.differs(0).cast(x.dtype).total(axes, keepdim)
    if math.isinf(order):
        return x.Abs().reduced("Max" if order > 0 else "Min", axes, keepdim)
    zero = x.equals(0)
    if order < 0:  # 0 if any is 0, for its power is infinite
        powers = zero.where(math.inf, zero.where(1, x).Abs().Pow(order))
    else:
        powers = zero.where(0, zero.where(1, x).Abs().Pow(order))
    total = powers.total(axes, keepdim)
    nothing = total.equals(0)
    return nothing.where(0 if order > 0 else math.inf, nothing.where(1, total).Pow(1 / order))


def _order(op: TorchBuilder, order: Any) -> float:
    if isinstance(order, str):
        raise UnsupportedError(f"the {order!r} norm{op.where()}; 'fro' and the vector norms can be imported")
    return 2.0 if order is None else float(order)


@formula("linalg_vector_norm")
@formula("norm.Scalar", "norm.ScalarOpt_dim", "norm.ScalarOpt_dtype", "norm.ScalarOpt_dim_dtype")
def vector_norm(x: Term, order: Any = 2, axes: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Term:
    if not isinstance(axes, int | Sequence | None):  # ScalarOpt_dtype
        axes = None
    return norm(x, _order(x.op, order), axes, keepdim)


@formula("frobenius_norm.dim")
def frobenius_norm(x: Term, axes: Axes, keepdim: bool = False) -> Term:
    return norm(x, 2, axes, keepdim)


def _matrix_norm(x: Term, order: Any, axes: Sequence[int], keepdim: bool) -> Term:
    rows, columns = x.axes(axes)
    if order == "fro":
        return norm(x, 2, (rows, columns), keepdim)
    if isinstance(order, str) or abs(order) not in (1, math.inf):
        raise UnsupportedError(
            f"the matrix norm of order {order!r}, which takes singular values{x.op.where()}; "
            "'fro', ±1 and ±inf can be imported"
        )
    first, second = (rows, columns) if abs(order) == 1 else (columns, rows)
    sums = x.reduced("L1", first, True).reduced("Max" if order > 0 else "Min", second, True)
    return sums if keepdim else sums.squeezed(max(rows, columns)).squeezed(min(rows, columns))


@formula("linalg_matrix_norm", "linalg_matrix_norm.str_ord")
def matrix_norm(
    x: Term, order: Any = "fro", axes: Sequence[int] = (-2, -1), keepdim: bool = False, *, dtype: Any = None
) -> Term:
    return _matrix_norm(x, order, axes, keepdim)


@formula("linalg_norm", "linalg_norm.ord_str")
def linalg_norm(x: Term, order: Any = None, axes: Axes = None, keepdim: bool = False, *, dtype: Any = None) -> Term:
    if order is None:
        return norm(x, 2, axes, keepdim)
    along = x.axes(axes)
    if len(along) == 2:
        return _matrix_norm(x, order, along, keepdim)
    return norm(x, _order(x.op, order), along, keepdim)


@formula("dist")
def dist(x: Term, y: Term, order: float = 2) -> Term:
    return norm(x - y, float(order))


@formula("renorm")
def renorm(x: Term, order: float, axis: int, largest: float) -> Term:
    """Every part along an axis scaled down to a norm where that is larger."""
    axis = x.op.axis(axis, x.rank)
    lengths = norm(x, float(order), [a for a in range(x.rank) if a != axis], True)
    beyond = lengths > largest
    return x * beyond.where(largest / (beyond.where(lengths, 1) + 1e-7), 1)


@aten("_weight_norm")
def weight_norm(op: TorchBuilder, v: Value, g: Value, axis: int = 0) -> Value:
    axes = op.ints(*(a for a in range(op.rank_of(v)) if a != op.axis(axis, op.rank_of(v))))
    length = op.ReduceL2(v, axes, keepdims=1) if axis != -1 else op.ReduceL2(v, None, keepdims=1)
    return op.Mul(v, op.Div(g, length))


# --- scans


@aten("cumsum")
def cumsum(op: TorchBuilder, x: Value, axis: int, *, dtype: Any = None) -> Value:
    result = op.result_dtype
    if op.rank_of(x) == 0:
        return op.cast(x, result)
    wide = op.cast(op.cast(x, result), _summed_in(result))
    return op.cast(op.CumSum(wide, op.value(op.axis(axis, op.rank_of(x)))), result)


Scanned = tuple[Term, ...]


def _scan(op: TorchBuilder, terms: Scanned, axis: int, combine: Callable[[Scanned, Scanned], Scanned]) -> Scanned:
    """Running results of an associative function along an axis: log2(n) steps, each over twice the distance."""
    size = sizes_of(op, 0)[axis]
    if not isinstance(size, int):
        raise UnsupportedError(f"{op.operator} along an axis of dynamic size{op.where()}; fix that size")
    distance = 1
    while distance < size:
        earlier = tuple(t.sliced(axis, 0, size - distance) for t in terms)
        later = tuple(t.sliced(axis, distance) for t in terms)
        made = combine(earlier, later)
        terms = tuple(t.sliced(axis, 0, distance).joined(m, axis=axis) for t, m in zip(terms, made, strict=True))
        distance *= 2
    return terms


@aten("cumprod")
def cumprod(op: TorchBuilder, x: Value, axis: int, *, dtype: Any = None) -> Value:
    result = op.result_dtype
    if op.rank_of(x) == 0:
        return op.cast(x, result)
    term = Term(op, op.cast(op.cast(x, result), _summed_in(result)), op.rank_of(x))
    (running,) = _scan(op, (term,), op.axis(axis, term.rank), lambda a, b: (a[0] * b[0],))
    return op.cast(running.value, result)


@aten("logcumsumexp")
def logcumsumexp(op: TorchBuilder, x: Value, axis: int) -> Value:
    if op.rank_of(x) == 0:
        return op.Identity(x)

    def combine(a: Scanned, b: Scanned) -> Scanned:
        same = a[0].equals(b[0])
        distance = same.where(0, same.where(0, a[0]) - same.where(0, b[0])).Abs()
        return (a[0].Max(b[0]) + (-distance).Softplus(),)

    term = Term.of(op, x, working_dtype(x.dtype))
    (running,) = _scan(op, (term,), op.axis(axis, term.rank), combine)
    return op.cast(running.value, x.dtype)


@aten("cummax", "cummin")
def running_extreme(op: TorchBuilder, x: Value, axis: int) -> tuple[Value, Value]:
    """Running extremes and where they are: of equal ones the last, and a NaN stays."""
    rank = op.rank_of(x)
    if rank == 0:
        return op.Identity(x), op.const(np.array(0, np.int64))
    axis, largest = op.axis(axis, rank), op.operator == "cummax"
    wide = x.dtype if is_float(x.dtype) else np.dtype(np.int64)
    term = Term(op, op.cast(x, working_dtype(wide)), rank)

    def combine(a: Scanned, b: Scanned) -> Scanned:
        later = b[0] >= a[0] if largest else b[0] <= a[0]
        if is_float(x.dtype):
            later = b[0].is_nan() | (later & ~a[0].is_nan())
        return later.where(b[0], a[0]), later.where(b[1], a[1])

    ones = op.Expand(op.const(np.array(1, np.int64)), op.Shape(x))
    places = Term(op, op.Sub(op.CumSum(ones, op.value(axis)), op.const(np.array(1, np.int64))), rank)
    _, found = _scan(op, (term.stopped(), places), axis, combine)
    return op.GatherElements(x, found.value, axis=axis), found.value  # the gradient goes to the found places


# --- order statistics


def _sorted(x: Term, axis: int, size: Size) -> tuple[Term, Term]:
    """Ascending values along an axis, and their places."""
    values, places = x.op.TopK(x.value, x.op.size(size), axis=axis, largest=0, sorted=1, outputs=2)
    return Term(x.op, values, x.rank), Term(x.op, places, x.rank)


def _median_place(x: Term, axis: int, size: Size, skip_nan: bool) -> Term:
    """Where the lower median along an axis is; the axis is kept. A NaN is the median unless it is to be skipped."""
    if not is_float(x.dtype):
        _, places = _sorted(x, axis, size)
        return places.sliced(axis, (size - 1) // 2, (size + 1) // 2)
    unknown = x.is_nan()
    _, places = _sorted(unknown.where(math.inf, x).stopped(), axis, size)
    if skip_nan:
        count = (~unknown).cast(np.int64).total(axis, True)
        return places.taken(((count - 1) / 2).Max(0), axis)
    middle = places.sliced(axis, (size - 1) // 2, (size + 1) // 2)
    first = Term(x.op, x.op.ArgMax(unknown.cast(np.int32).value, axis=axis, keepdims=1), x.rank)
    return unknown.any(axis, True).where(first, middle)


def _orderable(op: TorchBuilder, x: Value) -> Term:
    return Term(op, op.cast(x, working_dtype(x.dtype) if is_float(x.dtype) else np.int64), op.rank_of(x))


@aten("median.dim", "nanmedian.dim")
def median(op: TorchBuilder, x: Value, axis: int = -1, keepdim: bool = False) -> tuple[Value, Value]:
    rank = op.rank_of(x)
    if rank == 0:
        return op.Identity(x), op.const(np.array(0, np.int64))
    axis = op.axis(axis, rank)
    place = _median_place(_orderable(op, x), axis, sizes_of(op, 0)[axis], op.operator == "nanmedian")
    value = Term(op, x, rank).taken(place, axis)
    return (value.value, place.value) if keepdim else (value.squeezed(axis).value, place.squeezed(axis).value)


@aten("median", "nanmedian")
def median_of_all(op: TorchBuilder, x: Value) -> Value:
    sizes = sizes_of(op, 0)
    flat = Term(op, op.Reshape(_orderable(op, x).value, op.ints(-1)), 1)
    place = _median_place(flat, 0, product(sizes), op.operator == "nanmedian")
    found = flat.taken(place, 0).squeezed(0)
    if not is_float(x.dtype):
        return op.cast(found.value, x.dtype)
    # the largest of those that are not above it: all that equal it share the gradient
    limit = found.stopped()
    shared = (flat <= limit).where(flat, -math.inf).reduced("Max")
    return op.cast(limit.is_nan().where(found, shared).value, x.dtype)


@aten("quantile", "quantile.scalar", "nanquantile", "nanquantile.scalar")
def quantile(
    op: TorchBuilder,
    x: Value,
    q: Any,
    axis: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
) -> Value:
    term, sizes = Term(op, x, op.rank_of(x)), sizes_of(op, 0)
    rank = term.rank
    if axis is None or rank == 0:
        term, sizes, place = Term(op, op.Reshape(x, op.ints(-1)), 1), [product(sizes)], 0
    else:
        place = op.axis(axis, rank)
    last = term.rank - 1
    order = [a for a in range(term.rank) if a != place] + [place]
    rows = term if place == last else term.transposed(order)
    unknown = rows.is_nan()
    values, _ = _sorted(unknown.where(math.inf, rows), last, sizes[place])
    wanted = Term.of(op, q, x.dtype)
    several = wanted.rank == 1
    if not several:
        wanted = wanted.unsqueezed(0)
    if op.operator == "nanquantile":
        count = (~unknown).cast(x.dtype).total(last, True)
        none = count.equals(0)
        ranks = (wanted * (count - 1)).Max(0)
    else:
        none = unknown.any(last, True)
        ranks = wanted * (none.cast(x.dtype) * 0 + rows.like(sizes[place]) - 1)
    if interpolation in ("lower", "higher", "nearest"):
        ranks = ranks.primitive({"lower": "Floor", "higher": "Ceil", "nearest": "Round"}[interpolation])
    below = ranks.Floor()
    result = values.taken(below.cast(np.int64), last)
    if interpolation in ("linear", "midpoint"):
        weight = ranks - below if interpolation == "linear" else ranks.like(0.5)
        above = values.taken(ranks.Ceil().cast(np.int64), last)
        near = weight < 0.5
        step = above - result
        result = near.where(result + step * weight, above - step * (1 - weight))
    result = none.where(math.nan, result)
    if several:  # the quantiles come first
        result = result.transposed([last, *range(last)])
    return op.reshape(result.value, list(op.result.shape))


# --- softmax


@aten("softmax.int", "log_softmax.int", "_softmax", "_log_softmax", "special_softmax", "special_log_softmax")
@aten("_safe_softmax")
def softmax(op: TorchBuilder, x: Value, axis: int, dtype: Any = None) -> Value:
    primitive = "LogSoftmax" if "log_softmax" in op.operator else "Softmax"
    result = op.result_dtype
    rank = op.rank_of(x)
    given = op.cast(op.cast(x, result), working_dtype(result))
    if 0 in (x.shape or ()):
        return op.cast(op.Identity(given), result)
    whole = op.Reshape(given, op.ints(1)) if rank == 0 else given
    made = op.primitive(primitive, (whole,), {"axis": 0 if rank == 0 else op.axis(axis, rank)})
    if op.operator == "_safe_softmax":
        hidden = Term(op, whole, rank).equals(-math.inf).cast(np.int32)
        made = hidden.reduced("Min", axis, True).cast(bool).where(0, Term(op, made, rank)).value
    return op.cast(op.Squeeze(made, op.ints(0)) if rank == 0 else made, result)


# --- differences and integrals


@aten("diff")
def diff(
    op: TorchBuilder,
    x: Value,
    n: int = 1,
    axis: int = -1,
    prepend: Value | None = None,
    append: Value | None = None,
) -> Value:
    axis = op.axis(axis, op.rank_of(x))
    parts = [op.cast(p, op.result_dtype) for p in (prepend, x, append) if p is not None]
    if len(parts) > 1:
        x = op.Concat(*parts, axis=axis)
    for _ in range(n):
        later = op.Slice(x, op.ints(1), op.ints(2**63 - 1), op.ints(axis))
        earlier = op.Slice(x, op.ints(0), op.ints(-1), op.ints(axis))
        x = op.Xor(later, earlier) if x.dtype == bool else op.Sub(later, earlier)
    return x if n else op.Identity(x)


def _panels(x: Term, spacing: Any, axis: int) -> Term:
    """Twice the areas under the steps of the trapezoid rule."""
    axis = x.op.axis(axis, x.rank)
    areas = x.sliced(axis, 1) + x.sliced(axis, 0, -1)
    if isinstance(spacing, Term):
        along = axis if spacing.rank == x.rank else 0
        widths = spacing.sliced(along, 1) - spacing.sliced(along, 0, -1)
        if spacing.rank == 1 and axis != x.rank - 1:
            widths = widths.unsqueezed(*range(1, x.rank - axis))
        return areas * widths
    return areas if spacing == 1 else areas * spacing


@formula("trapezoid.dx", "trapz.dx")
def trapezoid_of_step(y: Term, *, dx: float = 1, dim: int = -1) -> Term:
    return _panels(y, dx, dim).total(dim) * 0.5


@formula("trapezoid.x", "trapz.x")
def trapezoid(y: Term, x: Term, *, dim: int = -1) -> Term:
    return _panels(y, x, dim).total(dim) * 0.5


@formula("cumulative_trapezoid.dx")
def running_trapezoid_of_step(y: Term, *, dx: float = 1, dim: int = -1) -> Term:
    return _running(_panels(y, dx, dim), dim)


@formula("cumulative_trapezoid.x")
def running_trapezoid(y: Term, x: Term, *, dim: int = -1) -> Term:
    return _running(_panels(y, x, dim), dim)


def _running(areas: Term, axis: int) -> Term:
    op = areas.op
    return Term(op, op.CumSum(areas.value, op.value(op.axis(axis, areas.rank))), areas.rank) * 0.5
