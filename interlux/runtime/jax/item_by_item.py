"""A traced program of a batch, rewritten to compute one item after the other.

The intermediate values of one large image stay in a processor's cache, those of eight don't: convolutional networks run
up to 1.6 times faster. It is done only if every operation is seen to treat the items apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

Value = Any
Params = dict[str, Any]
LARGE = 512 * 1024  # bytes of a value of one item; below that the whole batch fits into the cache


class _Mixed(Exception):
    """An operation is not known to treat the items of a batch apart."""


def item_by_item(closed: core.ClosedJaxpr, large: int = LARGE) -> Callable[..., list[Value]] | None:
    """The program of a batch as a loop over its items.

    Arguments:
        closed: a traced program; the first axis of all its inputs is the batch.
        large: bytes that a value of one item must have, for the loop to pay.

    Returns: a function (constants, inputs) -> outputs; None if the batch has fewer than two items, if they are small,
        or if they are not treated apart.
    """
    shapes = [v.aval.shape for v in closed.jaxpr.invars]
    sizes = {shape[0] if shape else 1 for shape in shapes}
    if len(sizes) != 1 or min(sizes) < 2:
        return None
    (batch,) = sizes
    largest = max((prod(v.aval.shape) * v.aval.dtype.itemsize for e in closed.jaxpr.eqns for v in e.outvars), default=0)
    if largest // batch < large:
        return None

    def one(constants: Sequence[Value], inputs: Sequence[Value]) -> list[Value]:
        items = [x[None] for x in inputs]
        outputs, axes = _evaluate(closed.jaxpr, batch, constants, items, [None] * len(constants), [0] * len(items))
        if any(axis != 0 for axis in axes):
            raise _Mixed("an output without the batch as its first axis")
        return outputs

    item = [jax.ShapeDtypeStruct(shape[1:], v.aval.dtype) for shape, v in zip(shapes, closed.jaxpr.invars, strict=True)]
    constants = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.constvars]
    try:
        jax.eval_shape(one, constants, item)
    except _Mixed:
        return None

    def loop(constants: Sequence[Value], inputs: Sequence[Value]) -> list[Value]:
        outputs = lax.map(lambda items: one(constants, items), list(inputs))
        return [y.reshape(v.aval.shape) for y, v in zip(outputs, closed.jaxpr.outvars, strict=True)]

    return loop


Axis = int | None  # the axis whose slowest part is the batch (its size is a multiple of the batch's); None: none is


def _evaluate(
    jaxpr: core.Jaxpr,
    batch: int,
    constants: Sequence[Value],
    inputs: Sequence[Value],
    constant_axes: Sequence[Axis],
    axes: Sequence[Axis],
) -> tuple[list[Value], list[Axis]]:
    """Evaluates a program of `batch` items on arrays that have one item along their axes of the batch."""
    variables = (*jaxpr.constvars, *jaxpr.invars)
    known = dict(zip(variables, zip((*constants, *inputs), (*constant_axes, *axes), strict=True), strict=True))

    made: list[Value]
    values: Sequence[Value]

    def read(atom: Any) -> tuple[Value, Axis]:
        return (atom.val, None) if isinstance(atom, core.Literal) else known[atom]

    repeated: dict[Any, set[int]] = {}  # the axes along which a value without the batch only repeats itself
    for equation in jaxpr.eqns:
        values, places = zip(*map(read, equation.invars), strict=True) if equation.invars else ((), ())
        name, params = equation.primitive.name, equation.params
        if name in _CALLS:
            inner = params[_CALLS[name]]
            made, out = _evaluate(
                inner.jaxpr, batch, inner.consts, values, [None] * len(inner.consts), places
            )  # written out
        elif all(place is None for place in places):
            made = equation.primitive.bind(*values, **params)
            made = list(made) if equation.primitive.multiple_results else [made]
            out = [None] * len(made)
            if name == "broadcast_in_dim":
                sizes = zip(params["broadcast_dimensions"], np.shape(values[0]), strict=True)
                kept = {axis for axis, size in sizes if size != 1}
                repeated[equation.outvars[0]] = set(range(len(params["shape"]))) - kept
        else:
            if name in _ELEMENTWISE:
                values = _shortened(equation.invars, values, places, batch, repeated)
            made, out = _apart(equation, values, places, batch)
        known.update(zip(equation.outvars, zip(made, out, strict=True), strict=True))
    results = [read(atom) for atom in jaxpr.outvars]
    return [value for value, _ in results], [axis for _, axis in results]


_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr", "closed_call": "call_jaxpr"}


def _shortened(
    operands: Sequence[Any], values: Sequence[Value], places: Sequence[Axis], batch: int, repeated: dict[Any, set[int]]
) -> list[Value]:
    """Operands of an elementwise operation: those without the batch, cut to the length of one item."""
    axis = next(place for place in places if place is not None)
    result = list(values)
    for i, operand in enumerate(operands):
        if places[i] is None and operand.aval.shape and operand.aval.shape[axis] != 1:
            if isinstance(operand, core.Literal) or axis not in repeated.get(operand, ()):
                raise _Mixed("an operand that is another one for every item")
            result[i] = lax.slice_in_dim(values[i], 0, values[i].shape[axis] // batch, axis=axis)
    return result


def _apart(
    equation: Any, values: Sequence[Value], places: Sequence[Axis], batch: int
) -> tuple[list[Value], list[Axis]]:
    """One operation on one item. Raises _Mixed if it is not known to treat items apart."""
    name, params = equation.primitive.name, equation.params
    changed: Params = {}
    if name in _ELEMENTWISE:
        (axis, *others) = {place for place in places if place is not None}
        if others:
            raise _Mixed("two different places of the batch")
    elif name in _RULES:
        shapes = [v.aval.shape for v in equation.invars]
        axis, changed = _RULES[name](params, shapes, places, equation.outvars[0].aval.shape, batch)
    else:
        raise _Mixed(name)
    made = equation.primitive.bind(*values, **(params | changed))
    return (list(made) if equation.primitive.multiple_results else [made]), [axis] * len(equation.outvars)


_ELEMENTWISE = frozenset(
    (
        *("abs", "acos", "acosh", "add", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "clamp"),
        *("convert_element_type", "copy", "cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1"),
        *("floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul"),
        *("ne", "neg", "not", "or", "pow", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt"),
        *("square", "stop_gradient", "sub", "tan", "tanh", "xor"),
    )
)


Shape = tuple[int, ...]
Rule = Callable[[Params, Sequence[Shape], Sequence[Axis], Shape, int], tuple[int, Params]]
_RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    """Enters (parameters, shapes of the operands, their places, shape of the result, batch) -> (place of the result,
    parameters that change). All shapes are those of the whole batch."""

    def enter(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def _only(places: Sequence[Axis]) -> int:
    """The place of the first operand; the others must not have the batch."""
    first, *rest = places
    if first is None or any(place is not None for place in rest):
        raise _Mixed("the batch in another operand")
    return first


def _of_one(sizes: Sequence[int], axis: int, batch: int) -> Shape:
    return (*sizes[:axis], sizes[axis] // batch, *sizes[axis + 1 :])


@_rule("broadcast_in_dim")
def _broadcast(params: Params, shapes: Any, places: Any, result: Shape, batch: int) -> tuple[int, Params]:
    axis = params["broadcast_dimensions"][_only(places)]
    return axis, {"shape": _of_one(params["shape"], axis, batch)}


@_rule("reshape")
def _reshape(params: Params, shapes: Any, places: Any, result: Shape, batch: int) -> tuple[int, Params]:
    """As many elements must lie before the batch as before it, then it is the slowest part of the new axis too."""
    axis = _only(places)
    before = prod(shapes[0][:axis])
    for new, size in enumerate(result):
        if prod(result[:new]) == before and size % batch == 0 and size > 0:
            return new, {"new_sizes": _of_one(params["new_sizes"], new, batch)}
    raise _Mixed("a reshape that takes the batch apart")


@_rule("transpose")
def _transpose(params: Params, shapes: Any, places: Any, result: Shape, batch: int) -> tuple[int, Params]:
    return params["permutation"].index(_only(places)), {}


@_rule("squeeze")
def _squeeze(params: Params, shapes: Any, places: Any, result: Shape, batch: int) -> tuple[int, Params]:
    axis = _only(places)
    return axis - sum(d < axis for d in params["dimensions"]), {}


@_rule("slice")
def _slice(params: Params, shapes: Any, places: Any, result: Shape, batch: int) -> tuple[int, Params]:
    axis = _only(places)
    if result[axis] != shapes[0][axis]:
        raise _Mixed("a slice of the batch")
    return axis, {"limit_indices": _of_one(params["limit_indices"], axis, batch)}


@_rule("pad")
def _pad(params: Params, shapes: Any, places: Any, result: Shape, batch: int) -> tuple[int, Params]:
    axis = _only(places)
    if tuple(params["padding_config"][axis]) != (0, 0, 0):
        raise _Mixed("padding of the batch")
    return axis, {}


@_rule("concatenate")
def _concatenate(params: Params, shapes: Any, places: Any, result: Shape, batch: int) -> tuple[int, Params]:
    (axis, *others) = set(places)
    if others or axis is None or axis == params["dimension"]:
        raise _Mixed("concatenation along the batch, or with what has none")
    return axis, {}


@_rule("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin")
def _reduce(params: Params, shapes: Any, places: Any, result: Shape, batch: int) -> tuple[int, Params]:
    axis = _only(places)
    if axis in params["axes"]:
        raise _Mixed("a reduction over the batch")
    return axis - sum(a < axis for a in params["axes"]), {}


@_rule("dot_general")
def _dot(params: Params, shapes: Any, places: Any, result: Shape, batch: int) -> tuple[int, Params]:
    """The batch is a batch axis of both factors, or a free axis of one of them."""
    contracted, batched = params["dimension_numbers"]
    if None not in places:
        if tuple(places) not in list(zip(*batched, strict=True)):
            raise _Mixed("a product of two batches")
        return batched[0].index(places[0]), {}
    side = 0 if places[1] is None else 1
    axis = places[side]
    bound = (*contracted[side], *batched[side])
    if axis in bound:
        raise _Mixed("a product over the batch")
    first = len(batched[0]) if side == 0 else len(shapes[0]) - len(contracted[0])
    return first + sum(a not in bound for a in range(axis)), {}


@_rule("conv_general_dilated")
def _convolve(params: Params, shapes: Any, places: Any, result: Shape, batch: int) -> tuple[int, Params]:
    numbers = params["dimension_numbers"]
    if _only(places) != numbers.lhs_spec[0] or params["batch_group_count"] != 1:
        raise _Mixed("a convolution over the batch")
    return numbers.out_spec[0], {}
