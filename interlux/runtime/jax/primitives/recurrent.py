"""Recurrent operators as scans over time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ....ir.errors import UnsupportedError
from .linear import EXACT
from .registry import Value, primitive


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
    hidden_size: int,
    direction: str = "forward",
    layout: int = 0,
    activations: tuple[str, ...] | None = None,
    clip: float | None = None,
    input_forget: int = 0,
    **other: Any,
) -> Any:
    """x [time, batch, features], w [directions, 4·hidden, features], r [directions, 4·hidden, hidden], gates iofc."""
    custom = activations is not None and tuple(a.lower() for a in activations[:3]) != ("sigmoid", "tanh", "tanh")
    refused = {
        "sequence_lens": sequence_lens is not None,
        "peepholes": peepholes is not None,
        "activations": custom,
        "clip": clip is not None,
        "input_forget": bool(input_forget),
        **{name: value is not None for name, value in other.items()},
    }
    if any(refused.values()):
        raise UnsupportedError("LSTM on JAX does not take these yet", [name for name, used in refused.items() if used])
    if layout:
        x = jnp.swapaxes(x, 0, 1)
        initial_h = None if initial_h is None else jnp.swapaxes(initial_h, 0, 1)
        initial_c = None if initial_c is None else jnp.swapaxes(initial_c, 0, 1)
    batch = x.shape[1]
    zeros = jnp.zeros((batch, hidden_size), x.dtype)
    outputs, last_h, last_c = [], [], []
    for d in range(w.shape[0]):
        gates = jnp.matmul(x, w[d].T, precision=EXACT)
        if b is not None:
            gates = gates + b[d, : 4 * hidden_size] + b[d, 4 * hidden_size :]
        recurrent = r[d].T

        def step(
            carry: tuple[Value, Value], gates_now: Value, recurrent: Value = recurrent
        ) -> tuple[tuple[Value, Value], Value]:
            h, c = carry
            i, o, f, g = jnp.split(gates_now + jnp.matmul(h, recurrent, precision=EXACT), 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        start = (
            zeros if initial_h is None else jnp.asarray(initial_h[d]),
            zeros if initial_c is None else jnp.asarray(initial_c[d]),
        )
        backwards = direction == "reverse" or d == 1
        (h, c), y = lax.scan(step, start, gates, reverse=backwards)
        outputs.append(y)
        last_h.append(h)
        last_c.append(c)
    y, h, c = jnp.stack(outputs, 1), jnp.stack(last_h), jnp.stack(last_c)
    if layout:  # [batch, time, directions, hidden], [batch, directions, hidden]
        return jnp.transpose(y, (2, 0, 1, 3)), jnp.swapaxes(h, 0, 1), jnp.swapaxes(c, 0, 1)
    return y, h, c
