"""Control flow on JAX: XLA's own forms where shapes are the same in every turn, else turns written out one by one.

A Loop or Scan becomes `lax.scan` or `lax.while_loop`. Where a carried value changes its shape, or the body needs a
value that a tracer cannot give, the turns are executed one after the other: while tracing, if their number is fixed;
else on concrete arrays (`DataDependent` makes the runner do that).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...ir.errors import InvalidModelError, UnsupportedError
from ...ir.graph import Graph
from ...ir.layers import Gradient, If, Loop, Scan, SequenceMap
from ...ir.layers.control import Control
from .primitives.registry import NOTHING, DataDependent, concrete, is_traced, library

if TYPE_CHECKING:
    from .interpreter import JaxInterpreter

Value = Any
Body = Callable[..., tuple[Value, ...]]
MOST_TURNS = 256  # that are written out while tracing


class _Changing(DataDependent):
    """A value has another shape in another turn or branch."""


def control(op: JaxInterpreter, layer: Control, inputs: Sequence[Value | None], *, train: bool) -> tuple[Value, ...]:
    """The outputs of a layer of control flow."""
    match layer:
        case If():
            return _if(op, layer, inputs, train)
        case Loop():
            return _loop(op, layer, inputs, train)
        case Scan():
            return _scan(op, layer, inputs, train)
        case SequenceMap():
            return _sequence_map(op, layer, inputs, train)
        case Gradient():
            return _gradient(op, layer, inputs, train)
    raise UnsupportedError(f"the JAX backend has no {type(layer).__name__}{op.where()}")


def _body(op: JaxInterpreter, graph: Graph, train: bool) -> Body:
    def run(*values: Value) -> tuple[Value, ...]:
        with op.inside(graph.values):
            outputs, _ = graph.forward(op, {}, {}, *values, train=train)
        return tuple(op.plain(y) for y in (outputs if isinstance(outputs, tuple) else (outputs,)))

    return run


def _is_array(value: Value) -> bool:
    """Whether XLA can carry a value."""
    return value is not NOTHING and not isinstance(value, list) and value.dtype != np.dtype(object)


def _shapes(values: Sequence[Value]) -> list[tuple[tuple[int, ...], Any]]:
    return [(tuple(v.shape), np.dtype(v.dtype)) for v in values]


def _arrays(values: Sequence[Value]) -> tuple[jax.Array, ...]:
    if not all(map(_is_array, values)):
        raise _Changing("XLA carries no sequences, optional values or strings")
    return tuple(jnp.asarray(v) for v in values)


def _flag(value: Value, what: str) -> bool:
    return bool(concrete(value, what).reshape(-1)[0])


# --- If


def _if(op: JaxInterpreter, layer: If, inputs: Sequence[Value | None], train: bool) -> tuple[Value, ...]:
    condition: Value = inputs[0]
    captured = inputs[1:]
    branches = [_body(op, graph, train) for graph in (layer.then_branch, layer.else_branch)]
    if not is_traced(condition):
        return branches[0 if _flag(condition, "the condition of If") else 1](*captured)

    def arrays(branch: Body) -> Callable[[], tuple[jax.Array, ...]]:
        return lambda: _arrays(branch(*captured))

    made = [jax.eval_shape(arrays(branch)) for branch in branches]
    if _shapes(made[0]) != _shapes(made[1]):
        raise _Changing("what If returns depends on the data: its branches give values of different shapes")
    return tuple(lax.cond(condition.reshape(()), *map(arrays, branches)))


# --- Loop


def _loop(op: JaxInterpreter, layer: Loop, inputs: Sequence[Value | None], train: bool) -> tuple[Value, ...]:
    trips, condition = inputs[:2]
    carried, captured = list(inputs[2 : layer.own_inputs]), inputs[layer.own_inputs :]
    body = _body(op, layer.body, train)

    def turn(number: Value, going: Value, values: Sequence[Value]) -> tuple[Value, ...]:
        return body(number, going, *values, *captured)

    if is_traced(trips, condition, *carried, *captured):
        try:
            return _loop_in_xla(layer, turn, trips, condition, carried)
        except DataDependent:
            if trips is None or is_traced(trips) or int(concrete(trips, "").reshape(-1)[0]) > MOST_TURNS:
                raise
    return _loop_in_turns(layer, turn, trips, condition, carried)


def _loop_in_xla(
    layer: Loop, turn: Callable[..., tuple[Value, ...]], trips: Value, condition: Value, carried: list[Value]
) -> tuple[Value, ...]:
    start = _arrays(carried)
    always = [True]  # whether the body's condition is true whatever the data

    def step(number: Value, going: Value, values: Sequence[Value]) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
        following, *results = turn(number, going, values)
        if following is not going:
            always[0] = always[0] and not is_traced(following) and bool(np.asarray(following).reshape(-1)[0])
        new, rows = results[: layer.carried], results[layer.carried :]
        return jnp.asarray(following).reshape(()), _arrays(new), _arrays(rows)

    number = jax.ShapeDtypeStruct((), np.int64)
    going = jax.ShapeDtypeStruct((), bool)
    _, new, rows = jax.eval_shape(step, number, going, start)
    if _shapes(new) != _shapes(start):
        raise _Changing("a value that the Loop carries changes its shape")
    first = np.array(True) if condition is None else condition
    if always[0] and trips is not None and not is_traced(trips, first):
        count = int(np.asarray(trips).reshape(-1)[0]) if _flag(first, "") else 0

        def scanned(values: Any, number: Any) -> tuple[Any, Any]:
            _, values, made = step(number, np.array(True), values)
            return values, made

        last, stacked = lax.scan(scanned, start, jnp.arange(max(count, 0), dtype=np.int64))
        return (*last, *stacked)
    if rows:
        raise DataDependent("the number of turns of a Loop depends on the data, and so does the size of its output")
    most = jnp.asarray(np.iinfo(np.int64).max if trips is None else trips, np.int64).reshape(())
    state = (jnp.zeros((), np.int64), jnp.asarray(first).reshape(()), start)
    *_, last = lax.while_loop(
        lambda s: (s[0] < most) & s[1],
        lambda s: (s[0] + 1, *step(*s)[:2]),
        state,
    )
    return tuple(last)


def _loop_in_turns(
    layer: Loop, turn: Callable[..., tuple[Value, ...]], trips: Value, condition: Value, carried: list[Value]
) -> tuple[Value, ...]:
    most = None if trips is None else int(concrete(trips, "the number of turns of a Loop").reshape(-1)[0])
    going: Value = np.array(True) if condition is None else condition
    rows: list[tuple[Value, ...]] = []
    number = 0
    while (most is None or number < most) and _flag(going, "the condition of a Loop"):
        going, *results = turn(np.array(number, np.int64), going, carried)
        carried = list(results[: layer.carried])
        rows.append(tuple(results[layer.carried :]))
        number += 1
    count = layer.outputs - layer.carried
    if rows:
        return (*carried, *(_stacked([row[k] for row in rows]) for k in range(count)))
    if not count:
        return tuple(carried)
    empty = jax.eval_shape(lambda: _arrays(turn(np.array(0, np.int64), np.array(True), carried)[1 + layer.carried :]))
    return (*carried, *(np.zeros((0, *e.shape), e.dtype) for e in empty))


def _stacked(rows: list[Value]) -> Value:
    shapes = {tuple(row.shape) for row in rows}
    if len(shapes) > 1:
        raise InvalidModelError(f"the turns of a loop give elements of different shapes: {sorted(shapes)[:3]}")
    return library(*rows).stack(rows)


# --- Scan


def _scan(op: JaxInterpreter, layer: Scan, inputs: Sequence[Value | None], train: bool) -> tuple[Value, ...]:
    n, m = layer.carried, layer.scanned
    carried, sequences, captured = list(inputs[:n]), inputs[n : layer.own_inputs], inputs[layer.own_inputs :]
    body = _body(op, layer.body, train)
    xs = [
        _along(x, axis, backwards)
        for x, axis, backwards in zip(
            sequences, layer.input_axes or (0,) * m, layer.input_directions or (0,) * m, strict=True
        )
    ]
    lengths = {x.shape[0] for x in xs}
    if len(lengths) != 1:
        raise InvalidModelError(f"the scanned inputs of a Scan have different lengths: {sorted(lengths)}{op.where()}")
    count = layer.outputs - n
    (length,) = lengths

    def step(values: Sequence[Value], slices: Sequence[Value]) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
        results = body(*values, *slices, *captured)
        return _arrays(results[:n]), _arrays(results[n:])

    try:
        start = _arrays(carried)
        slices = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in xs]
        if _shapes(jax.eval_shape(step, start, slices)[0]) != _shapes(start):
            raise _Changing("a value that the Scan carries changes its shape")
        last, rows = lax.scan(step, start, list(map(jnp.asarray, xs)))
    except DataDependent:
        if is_traced(*inputs) and length > MOST_TURNS:
            raise
        made = []
        values: Sequence[Value] = carried
        for i in range(length):
            results = body(*values, *(x[i, ...] for x in xs), *captured)
            values = results[:n]
            made.append(results[n:])
        if not made and count:
            raise
        last, rows = tuple(values), tuple(_stacked([row[k] for row in made]) for k in range(count))
    axes, directions = layer.output_axes or (0,) * count, layer.output_directions or (0,) * count
    outputs = [
        library(y).moveaxis(y[::-1] if backwards else y, 0, axis)
        for y, axis, backwards in zip(rows, axes, directions, strict=True)
    ]
    return (*last, *outputs)


def _along(x: Value, axis: int, backwards: int) -> Value:
    """x with the axis to scan first, in the order of scanning."""
    first = library(x).moveaxis(x, axis, 0)
    return first[::-1] if backwards else first


# --- Gradient


def _gradient(op: JaxInterpreter, layer: Gradient, inputs: Sequence[Value | None], train: bool) -> tuple[Value, ...]:
    body = _body(op, layer.body, train)

    def total(*values: Value) -> Value:
        (y,) = body(*values, *inputs[layer.wrt :])
        return jnp.sum(y)

    return tuple(jax.grad(total, range(layer.wrt))(*_arrays(inputs[: layer.wrt])))


# --- SequenceMap


def _sequence_map(
    op: JaxInterpreter, layer: SequenceMap, inputs: Sequence[Value | None], train: bool
) -> tuple[Value, ...]:
    own, captured = inputs[: layer.own_inputs], inputs[layer.own_inputs :]
    body = _body(op, layer.body, train)
    lengths = {len(value) for value, mapped in zip(own, layer.sequences, strict=True) if mapped and value is not None}
    if len(lengths) != 1:
        raise InvalidModelError(f"the sequences of a SequenceMap have different lengths: {sorted(lengths)}{op.where()}")
    (length,) = lengths
    made = []
    for i in range(length):
        elements = [
            value[i] if mapped and value is not None else value
            for value, mapped in zip(own, layer.sequences, strict=True)
        ]
        made.append(body(*elements, *captured))
    return tuple([row[k] for row in made] for k in range(layer.outputs))
