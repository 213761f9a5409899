"""Losses of classifiers, and the normalisations and activations beside the common ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ....ir import dtypes
from ....ir.errors import InvalidModelError, UnsupportedError
from .low_precision import bit_width, bits_as
from .registry import Value, library, primitive

Ints = tuple[int, ...]


def _wide(x: Value) -> Value:
    """Half precision in float32."""
    return jnp.asarray(x).astype(jnp.promote_types(x.dtype, jnp.float32))


def _class_loss(
    log_prob: Value, labels: Value, weights: Value | None, ignore_index: int | None, reduction: str
) -> Value:
    """-weight * log_prob at the labels, reduced.

    Arguments:
        log_prob: [batch, classes, ...], float.
        labels: [batch, ...], integers; those outside of the classes take the nearest class, as `take` with mode clip.
        weights: [classes] or None.
        ignore_index: the label of elements without loss and weight.
        reduction: none, sum, or mean (by the sum of the weights).
    """
    if reduction not in ("none", "sum", "mean"):
        raise InvalidModelError(f"unknown reduction {reduction!r}; ONNX has none, sum and mean")
    labels = jnp.asarray(labels)
    index = jnp.clip(labels, 0, log_prob.shape[1] - 1)
    chosen = jnp.take_along_axis(log_prob, jnp.expand_dims(index, 1), axis=1).squeeze(1)
    weight = jnp.ones_like(chosen) if weights is None else _wide(weights)[index].astype(chosen.dtype)
    if ignore_index is not None:
        ignored = labels == ignore_index
        zero = np.asarray(0, chosen.dtype)
        weight, chosen = jnp.where(ignored, zero, weight), jnp.where(ignored, zero, chosen)
    loss = -chosen * weight
    if reduction == "none":
        return loss
    return jnp.sum(loss) if reduction == "sum" else jnp.sum(loss) / jnp.sum(weight)


@primitive
def NegativeLogLikelihoodLoss(
    log_prob: Value,
    labels: Value,
    weights: Value | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Value:
    return _class_loss(_wide(log_prob), labels, weights, ignore_index, reduction).astype(log_prob.dtype)


@primitive
def SoftmaxCrossEntropyLoss(
    scores: Value,
    labels: Value,
    weights: Value | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Any:
    """The loss, and the logarithms of the probabilities in the scores' shape."""
    log_prob = jax.nn.log_softmax(_wide(scores), axis=1)
    loss = _class_loss(log_prob, labels, weights, ignore_index, reduction)
    return loss.astype(scores.dtype), log_prob.astype(scores.dtype)


@primitive
def BitCast(x: Value, *, to: int) -> Value:
    """The bits of x as another dtype of the same width."""
    dtype = dtypes.from_onnx(to)
    if x.dtype.kind == "O" or dtype.kind == "O":
        raise InvalidModelError("BitCast takes no strings")
    if bit_width(x.dtype) != bit_width(dtype):
        raise InvalidModelError(f"BitCast from {x.dtype.name} to {dtype.name}, which is of another width")
    return bits_as(x, dtype)


@primitive
def Hardmax(x: Value, *, axis: int = -1) -> Value:
    """1 at the first maximum along an axis, else 0."""
    if not x.size:
        return x
    xp = library(x)
    place = xp.arange(x.shape[axis]).reshape(tuple(-1 if i == axis % x.ndim else 1 for i in range(x.ndim)))
    return (place == xp.argmax(x, axis=axis, keepdims=True)).astype(x.dtype)


@primitive
def Shrink(x: Value, *, bias: float = 0.0, lambd: float = 0.5) -> Value:
    xp = library(x)
    inner = x.astype(np.float64) if np.issubdtype(x.dtype, np.integer) else x  # the attributes need not be whole
    offset, limit = np.asarray(bias, inner.dtype), np.asarray(lambd, inner.dtype)
    zero = np.asarray(0, inner.dtype)
    return xp.where(inner < -limit, inner + offset, xp.where(inner > limit, inner - offset, zero)).astype(x.dtype)


@primitive
def SwiGLU(gate: Value, x: Value, *, alpha: float = 1.0) -> Value:
    """gate * sigmoid(alpha * gate) * x."""
    if gate.shape != x.shape:
        raise InvalidModelError(f"SwiGLU of {gate.shape} and {x.shape}; ONNX does not broadcast them")
    return gate * jax.nn.sigmoid(gate * np.asarray(alpha, gate.dtype)) * x


@primitive
def MeanVarianceNormalization(x: Value, *, axes: Ints = (0, 2, 3)) -> Value:
    """(x - mean) / (standard deviation + 1e-9), as in ONNX's function body."""
    inner = _wide(x)
    centred = inner - jnp.mean(inner, axes, keepdims=True)
    variance = jnp.mean(centred * centred, axes, keepdims=True)
    positive = variance > 0  # the root has no derivative at 0
    deviation = jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)
    return (centred / (deviation + np.asarray(1e-9, inner.dtype))).astype(x.dtype)


@primitive
def LpNormalization(x: Value, *, axis: int = -1, p: int = 2) -> Value:
    """x / its norm along an axis; 0 where the norm is 0."""
    if p not in (1, 2):
        raise UnsupportedError(f"LpNormalization with p={p}; ONNX has 1 and 2")
    inner = _wide(x)
    total = jnp.sum(inner * jnp.sign(inner) if p == 1 else inner * inner, axis, keepdims=True)
    safe = jnp.where(total == 0, np.asarray(1, inner.dtype), total)
    return jnp.where(total == 0, np.asarray(0, inner.dtype), inner / (safe if p == 1 else jnp.sqrt(safe))).astype(
        x.dtype
    )
