"""Recurrent operators (RNN, GRU, LSTM) as one scan over time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.errors import InvalidModelError, UnsupportedError
from .linear import EXACT
from .registry import Value, primitive

Floats = tuple[float, ...]
Names = tuple[str, ...]
Activation = Callable[[Value], Value]
# (the inputs' part of the gates [batch, gates·hidden], the states) -> the new states; the first state is the output
Cell = Callable[[Value, tuple[Value, ...]], tuple[Value, ...]]

_SIMPLE: dict[str, Activation] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "softsign": jax.nn.soft_sign,
    "softplus": jax.nn.softplus,
}
# alpha, beta and their defaults: those of the ONNX operators of these names (None: it has none)
_SCALED: dict[str, tuple[Callable[..., Value], tuple[float | None, ...]]] = {
    "affine": (lambda x, alpha, beta: alpha * x + beta, (1.0, 0.0)),
    "leakyrelu": (lambda x, alpha: jnp.where(x >= 0, x, alpha * x), (0.01,)),
    "thresholdedrelu": (lambda x, alpha: jnp.where(x >= alpha, x, jnp.zeros_like(x)), (1.0,)),
    "scaledtanh": (lambda x, alpha, beta: alpha * jnp.tanh(beta * x), (None, None)),
    "hardsigmoid": (lambda x, alpha, beta: jnp.clip(alpha * x + beta, 0, 1), (0.2, 0.5)),
    "elu": (lambda x, alpha: jnp.where(x >= 0, x, alpha * jnp.expm1(jnp.minimum(x, 0))), (1.0,)),
}


def _activation(name: str, alphas: Iterator[float], betas: Iterator[float], clip: float | None) -> Activation:
    """A named activation behind a clip; takes its parameters from those that are left."""
    key = name.lower()
    if key in _SIMPLE:
        function = _SIMPLE[key]
    elif key in _SCALED:
        function = _with_parameters(key, alphas, betas)
    else:
        raise UnsupportedError(f"{name!r} is not an activation of ONNX's recurrent operators")
    return lambda x: function(_clipped(x, clip))


def _clipped(x: Value, clip: float | None) -> Value:
    return x if clip is None else jnp.clip(x, np.asarray(-clip, x.dtype), np.asarray(clip, x.dtype))


def _with_parameters(key: str, alphas: Iterator[float], betas: Iterator[float]) -> Activation:
    function, defaults = _SCALED[key]
    given = [next(left, default) for left, default in zip((alphas, betas), defaults, strict=False)]
    if None in given:
        raise UnsupportedError(f"the activation {key} has no default parameters; give activation_alpha and _beta")
    return lambda x: function(x, *(np.asarray(value, x.dtype) for value in given))


def _activations(
    names: Names | None,
    default: Names,
    directions: int,
    alphas: Floats | None,
    betas: Floats | None,
    clip: float | None,
) -> list[list[Activation]]:
    """The activations of every direction. Parameters are consumed in order, by those activations that have any."""
    size = len(default)
    names = names or default * directions
    if len(names) < size * directions:
        raise InvalidModelError(f"{directions} direction(s) need {size * directions} activations, not {names}")
    left = iter(alphas or ()), iter(betas or ())
    # The third one, of LSTM's cell, has no clip, as in onnxruntime: its argument is not a gate.
    made = [_activation(name, *left, clip if i % size < 2 else None) for i, name in enumerate(names)]
    return [made[d * size : (d + 1) * size] for d in range(directions)]


def _recur(
    x: Value,
    w: Value,
    bias: Value | None,
    sequence_lens: Value | None,
    initial: tuple[Value | None, ...],
    cells: list[Cell],
    hidden: int,
    direction: str,
    layout: int,
) -> tuple[Value, ...]:
    """Runs a cell over time in every direction.

    Arguments:
        x: [time, batch, features], with `layout` 1 [batch, time, features].
        w: [directions, gates·hidden, features].
        bias: [directions, gates·hidden], added to x·wᵀ, or None.
        sequence_lens: steps of every batch item [batch]. A state stays as it is outside a sequence, and the output is
            zero there: reversed, a sequence so begins at its own last step. The last states of an empty sequence are
            zeros, as in onnxruntime.
        initial: the states at the beginning [directions, batch, hidden]; None: zeros.
        cells: one for each direction.
        hidden: size of the states.

    Returns:
        the output of all steps [time, directions, batch, hidden] and the last states [directions, batch, hidden], with
        `layout` 1 [batch, time, directions, hidden] and [batch, directions, hidden].
    """
    if direction not in ("forward", "reverse", "bidirectional") or len(cells) != 1 + (direction == "bidirectional"):
        raise InvalidModelError(f"direction {direction!r} with weights for {len(cells)} direction(s)")
    if layout:
        x = jnp.swapaxes(x, 0, 1)
        initial = tuple(None if state is None else jnp.swapaxes(state, 0, 1) for state in initial)
    time, batch = x.shape[:2]
    valid = None if sequence_lens is None else (np.arange(time)[:, None] < sequence_lens[None, :])[..., None]
    zeros = jnp.zeros((batch, hidden), x.dtype)
    outputs, last = [], []
    for d, cell in enumerate(cells):
        gates = jnp.matmul(x, w[d].T, precision=EXACT)
        if bias is not None:
            gates = gates + bias[d]
        start = tuple(zeros if state is None else jnp.asarray(state[d]) for state in initial)
        final, y = lax.scan(
            partial(_step, cell),
            start,
            (gates, None if valid is None else jnp.asarray(valid)),
            reverse=direction == "reverse" or d == 1,
        )
        if sequence_lens is not None:
            final = tuple(jnp.where(sequence_lens[:, None] > 0, state, zeros) for state in final)
        outputs.append(y)
        last.append(final)
    y = jnp.stack(outputs, 1)
    states = tuple(jnp.stack(state) for state in zip(*last, strict=True))
    if layout:
        return jnp.transpose(y, (2, 0, 1, 3)), *(jnp.swapaxes(state, 0, 1) for state in states)
    return y, *states


def _step(cell: Cell, states: tuple[Value, ...], now: tuple[Value, Value | None]) -> tuple[tuple[Value, ...], Value]:
    gates, valid = now
    new = cell(gates, states)
    if valid is None:
        return new, new[0]
    kept = tuple(jnp.where(valid, after, before) for after, before in zip(new, states, strict=True))
    return kept, jnp.where(valid, new[0], jnp.zeros_like(new[0]))


def _folded(b: Value | None, gates: int, apart: int = 0) -> Value | None:
    """Wb + Rb of every direction [directions, gates]; the last `apart` elements of Rb are left out."""
    if b is None:
        return None
    wb, rb = b[:, :gates], b[:, gates:]
    if not apart:
        return wb + rb
    return jnp.concatenate([wb[:, :-apart] + rb[:, :-apart], wb[:, -apart:]], 1)


def _product(h: Value, recurrent: Value) -> Value:
    """h·Rᵀ."""
    return jnp.matmul(h, recurrent.T, precision=EXACT)


@primitive
def RNN(
    x: Value,
    w: Value,
    r: Value,
    b: Value | None = None,
    sequence_lens: Value | None = None,
    initial_h: Value | None = None,
    *,
    hidden_size: int | None = None,
    activations: Names | None = None,
    activation_alpha: Floats | None = None,
    activation_beta: Floats | None = None,
    clip: float | None = None,
    direction: str = "forward",
    layout: int = 0,
) -> tuple[Value, ...]:
    directions, hidden = w.shape[0], _hidden(r, hidden_size)
    chosen = _activations(activations, ("Tanh",), directions, activation_alpha, activation_beta, clip)

    def cell(d: int) -> Cell:
        (f,) = chosen[d]
        return lambda gates, states: (f(gates + _product(states[0], r[d])),)

    cells = [cell(d) for d in range(directions)]
    return _recur(x, w, _folded(b, hidden), sequence_lens, (initial_h,), cells, hidden, direction, layout)


@primitive
def GRU(
    x: Value,
    w: Value,
    r: Value,
    b: Value | None = None,
    sequence_lens: Value | None = None,
    initial_h: Value | None = None,
    *,
    hidden_size: int | None = None,
    activations: Names | None = None,
    activation_alpha: Floats | None = None,
    activation_beta: Floats | None = None,
    clip: float | None = None,
    direction: str = "forward",
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Value, ...]:
    """w [directions, 3·hidden, features], r [directions, 3·hidden, hidden]; gates: update, reset, hidden."""
    directions, hidden = w.shape[0], _hidden(r, hidden_size)
    chosen = _activations(activations, ("Sigmoid", "Tanh"), directions, activation_alpha, activation_beta, clip)

    def cell(d: int) -> Cell:
        f, g = chosen[d]
        both, candidate = r[d][: 2 * hidden], r[d][2 * hidden :]

        def step(gates: Value, states: tuple[Value, ...]) -> tuple[Value, ...]:
            (h,) = states
            z, reset = jnp.split(f(gates[:, : 2 * hidden] + _product(h, both)), 2, -1)
            if linear_before_reset:
                linear = _product(h, candidate)
                inner = reset * (linear if b is None else linear + b[d, 5 * hidden :])
            else:
                inner = _product(reset * h, candidate)
            return ((1 - z) * g(gates[:, 2 * hidden :] + inner) + z * h,)

        return step

    cells = [cell(d) for d in range(directions)]
    bias = _folded(b, 3 * hidden, hidden if linear_before_reset else 0)
    return _recur(x, w, bias, sequence_lens, (initial_h,), cells, hidden, direction, layout)


@primitive
def LSTM(
    x: Value,
    w: Value,
    r: Value,
    b: Value | None = None,
    sequence_lens: Value | None = None,
    initial_h: Value | None = None,
    initial_c: Value | None = None,
    peepholes: Value | None = None,
    *,
    hidden_size: int | None = None,
    activations: Names | None = None,
    activation_alpha: Floats | None = None,
    activation_beta: Floats | None = None,
    clip: float | None = None,
    direction: str = "forward",
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Value, ...]:
    """w [directions, 4·hidden, features], r [directions, 4·hidden, hidden]; gates: iofc; peepholes
    [directions, 3·hidden]: iof."""
    directions, hidden = w.shape[0], _hidden(r, hidden_size)
    default = ("Sigmoid", "Tanh", "Tanh")
    chosen = _activations(activations, default, directions, activation_alpha, activation_beta, clip)

    def cell(d: int) -> Cell:
        f, g, h_activation = chosen[d]
        peep = None if peepholes is None else [peepholes[d, k * hidden : (k + 1) * hidden] for k in range(3)]

        def step(gates: Value, states: tuple[Value, ...]) -> tuple[Value, ...]:
            h, c = states
            i, o, forget, new = jnp.split(gates + _product(h, r[d]), 4, -1)
            if peep is not None:
                i, forget = i + peep[0] * c, forget + peep[2] * c
            i = f(i)
            c = (1 - i if input_forget else f(forget)) * c + i * g(new)
            o = f(o if peep is None else o + peep[1] * c)
            return o * h_activation(c), c

        return step

    cells = [cell(d) for d in range(directions)]
    bias = _folded(b, 4 * hidden)
    return _recur(x, w, bias, sequence_lens, (initial_h, initial_c), cells, hidden, direction, layout)


def _hidden(r: Value, declared: int | None) -> int:
    hidden = int(r.shape[-1])
    if declared is not None and declared != hidden:
        raise InvalidModelError(f"hidden_size is {declared}, but the recurrent weights have shape {tuple(r.shape)}")
    return hidden
