"""Normalisation and dropout."""

from __future__ import annotations

from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.dtypes import ONNX_DTYPES, dtype_named
from ....ir.errors import UnsupportedError
from .registry import Value, concrete, primitive

Ints = tuple[int, ...]


def _column(vector: Value, rank: int) -> Value:
    """A vector over channels (axis 1), shaped to broadcast against an array of a rank; rank 1 is a single channel."""
    return vector.reshape((1, -1) + (1,) * (rank - 2)) if rank > 1 else vector


def _wide(x: Value) -> Value:
    """Half precision in float32."""
    return jnp.asarray(x).astype(jnp.promote_types(x.dtype, jnp.float32))


@primitive
def BatchNormalization(
    x: Value,
    weight: Value,
    bias: Value,
    mean: Value,
    variance: Value,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Any:
    wide = _wide(x)
    used_mean, used_variance = mean, variance
    new_mean, new_variance = mean, variance
    if training_mode:  # ONNX keeps the biased variance
        axes = (0, *range(2, x.ndim))
        used_mean, used_variance = (s.reshape(mean.shape) for s in (jnp.mean(wide, axes), jnp.var(wide, axes)))
        new_mean, new_variance = (
            (_wide(old) * momentum + lax.stop_gradient(now) * (1 - momentum)).astype(old.dtype)
            for old, now in ((mean, used_mean), (variance, used_variance))
        )
    used_variance = _wide(used_variance)
    factor = weight / jnp.sqrt(used_variance + np.asarray(epsilon, used_variance.dtype))
    y = (wide - _column(used_mean, x.ndim)) * _column(factor, x.ndim) + _column(bias, x.ndim)
    y = y.astype(x.dtype)
    return (y, new_mean, new_variance) if training_mode else y


def _normalised(x: Value, axes: Ints, epsilon: float) -> tuple[Value, Value, Value]:
    """(x - mean) / √(variance + epsilon), the mean, and the inverse standard deviation."""
    mean = jnp.mean(x, axes, keepdims=True)
    centred = x - mean
    inverse = lax.rsqrt(jnp.mean(centred * centred, axes, keepdims=True) + np.asarray(epsilon, x.dtype))
    return centred * inverse, mean, inverse


def _stashed(x: Value, stash_type: int) -> Value:
    """The input in the dtype that statistics are computed in. float64 stays as it is: it is there to be exact."""
    return jnp.asarray(x) if x.dtype == np.float64 else jnp.asarray(x).astype(dtype_named(ONNX_DTYPES[stash_type]))


@primitive
def LayerNormalization(
    x: Value, weight: Value, bias: Value | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Any:
    axes = tuple(range(axis % x.ndim, x.ndim))
    normal, *statistics = _normalised(_stashed(x, stash_type), axes, epsilon)
    y = normal.astype(x.dtype) * weight
    stash = dtype_named(ONNX_DTYPES[stash_type])
    return (y if bias is None else y + bias), *(s.astype(stash) for s in statistics)


@primitive
def RMSNormalization(x: Value, weight: Value, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Value:
    inner = _stashed(x, stash_type)
    square = jnp.mean(inner * inner, tuple(range(axis % x.ndim, x.ndim)), keepdims=True)
    normal = inner * lax.rsqrt(square + np.asarray(epsilon, inner.dtype))
    return (normal.astype(x.dtype) * weight).astype(weight.dtype)


@primitive
def InstanceNormalization(x: Value, weight: Value, bias: Value, *, epsilon: float = 1e-5) -> Value:
    normal, _, _ = _normalised(_wide(x), tuple(range(2, x.ndim)), epsilon)
    return (normal * _column(weight, x.ndim) + _column(bias, x.ndim)).astype(x.dtype)


@primitive
def GroupNormalization(
    x: Value, weight: Value, bias: Value, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Value:
    shape = (x.shape[0], num_groups, x.shape[1] // num_groups * prod(x.shape[2:]))
    normal, _, _ = _normalised(_stashed(x, stash_type).reshape(shape), (2,), epsilon)
    return normal.reshape(x.shape).astype(x.dtype) * _column(weight, x.ndim) + _column(bias, x.ndim)


@primitive
def Dropout(x: Value, ratio: Value | None = None, training: Value | None = None, *, seed: int | None = None) -> Any:
    active = training is not None and bool(concrete(training, "whether Dropout trains"))
    if active and (ratio is None or float(concrete(ratio, "the ratio of Dropout"))):
        raise UnsupportedError(
            "ONNX's Dropout draws other numbers in every run; interlux draws from a seed in the states"
        )
    return x, jnp.ones(x.shape, bool)
