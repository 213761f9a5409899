"""Reductions, and softmax."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .elementwise import Abs
from .registry import Value, define, integers, library, primitive, widened


def _reduce(function: Callable[[Any, Value, tuple[int, ...], bool], Value]) -> Callable[..., Value]:
    """A reduction from `function(library, x, axes, keepdims)`."""

    def reduction(x: Value, axes: Value | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Value:
        along = () if axes is None else integers(axes, "the axes of a reduction")
        if not along:
            if noop_with_empty_axes:
                return function(library(x), x, (), True)
            along = tuple(range(x.ndim))
        return function(library(x), x, along, bool(keepdims))

    return reduction


def _sum(xp: Any, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    return xp.sum(x, axis=axes, keepdims=keep, dtype=x.dtype)


def _largest(xp: Any, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    if any(x.shape[a] == 0 for a in axes):
        lowest = False if x.dtype == bool else -np.inf if jnp.issubdtype(x.dtype, np.inexact) else np.iinfo(x.dtype).min
        return xp.max(x, axis=axes, keepdims=keep, initial=lowest)
    return xp.max(x, axis=axes, keepdims=keep)


def _smallest(xp: Any, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    if any(x.shape[a] == 0 for a in axes):
        highest = True if x.dtype == bool else np.inf if jnp.issubdtype(x.dtype, np.inexact) else np.iinfo(x.dtype).max
        return xp.min(x, axis=axes, keepdims=keep, initial=highest)
    return xp.min(x, axis=axes, keepdims=keep)


def _length(xp: Any, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    """The Euclidean norm; its derivative at 0 is 0, as in PyTorch."""
    wide = widened(x)
    square = _sum(xp, wide * wide, axes, keep)
    zero = square == 0
    root = xp.sqrt(xp.where(zero, np.asarray(1, square.dtype), square))
    return xp.where(zero, np.asarray(0, root.dtype), root).astype(x.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softmax(x: Value, axis: int) -> Value:
    if x.size == 0:  # there is no largest element
        return x
    largest = jnp.max(x, axis, keepdims=True)
    # The largest element is 1 by comparison, not by subtraction: XLA may compute x again inside a fused multiply-add,
    # and for large x the difference of one rounding is far below 0. All would be 0 then, and the result NaN.
    is_largest = (x >= largest) & jnp.isfinite(largest)  # of infinite ones the result is NaN
    unnormalised = jnp.where(is_largest, np.asarray(1, x.dtype), jnp.exp(x - largest))
    return unnormalised / jnp.sum(unnormalised, axis, keepdims=True)


@_softmax.defjvp
def _softmax_jvp(axis: int, primals: tuple[Value], tangents: tuple[Value]) -> tuple[Value, Value]:
    y = _softmax(primals[0], axis)
    return y, y * (tangents[0] - jnp.sum(y * tangents[0], axis, keepdims=True))


def _without_overflow(x: Value) -> Value:
    return widened(x) if x.dtype == np.float16 else x


define(
    ReduceSum=_reduce(_sum),
    ReduceMean=_reduce(lambda xp, x, axes, keep: xp.mean(x, axis=axes, keepdims=keep).astype(x.dtype)),
    ReduceProd=_reduce(lambda xp, x, axes, keep: xp.prod(x, axis=axes, keepdims=keep, dtype=x.dtype)),
    ReduceMax=_reduce(_largest),
    ReduceMin=_reduce(_smallest),
    ReduceL1=_reduce(lambda xp, x, axes, keep: _sum(xp, Abs(x), axes, keep)),
    ReduceL2=_reduce(_length),
    ReduceSumSquare=_reduce(lambda xp, x, axes, keep: _sum(xp, widened(x) ** 2, axes, keep).astype(x.dtype)),
    ReduceLogSum=_reduce(lambda xp, x, axes, keep: xp.log(_sum(xp, x, axes, keep)).astype(x.dtype)),
    ReduceLogSumExp=_reduce(
        lambda xp, x, axes, keep: jax.nn.logsumexp(jnp.asarray(widened(x)), axis=axes, keepdims=keep).astype(x.dtype)
    ),
    # the sum of a float16 softmax may overflow; in bfloat16 ONNX's tests want every step rounded
    Softmax=lambda x, *, axis=-1: _softmax(jnp.asarray(_without_overflow(x)), axis).astype(x.dtype),
    LogSoftmax=lambda x, *, axis=-1: jax.nn.log_softmax(_without_overflow(x), axis).astype(x.dtype),
)


def _position(which: str) -> Callable[..., Value]:
    def find(x: Value, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Value:
        xp = library(x)
        if not select_last_index:
            return getattr(xp, which)(x, axis=axis, keepdims=bool(keepdims)).astype(np.int64)
        reversed_index = getattr(xp, which)(xp.flip(x, axis), axis=axis, keepdims=bool(keepdims))
        return (x.shape[axis] - 1 - reversed_index).astype(np.int64)

    return find


define(ArgMax=_position("argmax"), ArgMin=_position("argmin"))


@primitive
def TopK(x: Value, k: Value, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> Any:
    (count,) = integers(k, "the k of TopK")
    moved = jnp.moveaxis(jnp.asarray(x), axis, -1)
    order = jnp.argsort(moved, axis=-1, stable=True, descending=bool(largest))[..., :count]
    values = jnp.take_along_axis(moved, order, -1)
    return jnp.moveaxis(values, -1, axis), jnp.moveaxis(order.astype(np.int64), -1, axis)
