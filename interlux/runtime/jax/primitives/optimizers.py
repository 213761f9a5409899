"""The optimisers of ai.onnx.preview.training: one step each, for any number of tensors.

The inputs are the learning rate, the number of steps so far (int64), the tensors, their gradients, and then their
statistics, kind by kind; the outputs are the new tensors and the new statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ....ir.errors import InvalidModelError
from .registry import Value, library, primitive_of

training = primitive_of("ai.onnx.preview.training")


def _each(tensors: tuple[Value, ...], kinds: int, update: Callable[..., tuple[Value, ...]]) -> Any:
    """Updates tensor by tensor.

    Arguments:
        tensors: the tensors, their gradients and their statistics.
        kinds: how many values belong to a tensor.
        update: takes them, gives all but the gradient.
    """
    count, rest = divmod(len(tensors), kinds)
    if rest or not count:
        raise InvalidModelError(f"an optimiser of {kinds} values for each tensor has {len(tensors)}")
    updated = [update(*tensors[i::count]) for i in range(count)]
    results = tuple(value for values in zip(*updated, strict=True) for value in values)
    return results[0] if len(results) == 1 else results


def _scalar(number: Any, like: Value) -> Value:
    """A number in the dtype of a tensor."""
    return np.asarray(number, like.dtype) if isinstance(number, int | float) else number.reshape(()).astype(like.dtype)


def _pulled(x: Value, gradient: Value, norm_coefficient: float) -> Value:
    """The gradient of the loss with `norm_coefficient / 2 · ‖x‖²` added to it."""
    return _scalar(norm_coefficient, x) * x + gradient


@training
def Adagrad(
    rate: Value,
    steps: Value,
    *tensors: Value,
    decay_factor: float = 0.0,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
) -> Any:
    def update(x: Value, gradient: Value, squares: Value) -> tuple[Value, Value]:
        g = _pulled(x, gradient, norm_coefficient)
        r = _scalar(rate, x) / (1 + _scalar(steps, x) * _scalar(decay_factor, x))
        squares = squares + g * g
        return x - r * g / (library(squares).sqrt(squares) + _scalar(epsilon, x)), squares

    return _each(tensors, 3, update)


@training
def Adam(
    rate: Value,
    steps: Value,
    *tensors: Value,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> Any:
    # the powers lose too much in 32 bits: 1 - 0.999¹
    t = jnp.asarray(steps).reshape(()).astype(np.float64)
    corrected = jnp.sqrt(1 - np.float64(beta) ** t) / jnp.where(t > 0, 1 - np.float64(alpha) ** t, 1)
    correction = jnp.where(t > 0, corrected, 1)

    def update(x: Value, gradient: Value, mean: Value, square: Value) -> tuple[Value, Value, Value]:
        g = _pulled(x, gradient, norm_coefficient)
        mean = _scalar(alpha, x) * mean + _scalar(1 - alpha, x) * g
        square = _scalar(beta, x) * square + _scalar(1 - beta, x) * (g * g)
        r = _scalar(jnp.asarray(rate).astype(np.float64) * correction, x)
        moved = x - r * (mean / (library(square).sqrt(square) + _scalar(epsilon, x)))
        return _scalar(1 - norm_coefficient_post, x) * moved, mean, square

    return _each(tensors, 4, update)


@training
def Momentum(
    rate: Value, steps: Value, *tensors: Value, alpha: float, beta: float, mode: str, norm_coefficient: float
) -> Any:
    if mode not in ("standard", "nesterov"):
        raise InvalidModelError(f"Momentum has the mode {mode!r}, not standard or nesterov")

    def update(x: Value, gradient: Value, velocity: Value) -> tuple[Value, Value]:
        g = _pulled(x, gradient, norm_coefficient)
        first = _scalar(steps, x) <= 0
        weight = library(first).where(first, _scalar(1, x), _scalar(beta, x))
        velocity = _scalar(alpha, x) * velocity + weight * g
        way = velocity if mode == "standard" else g + _scalar(alpha, x) * velocity
        return x - _scalar(rate, x) * way, velocity

    return _each(tensors, 3, update)
