"""Attention and what belongs to it: rotary embedding, linear attention, the causal convolution before it."""

from __future__ import annotations

from functools import reduce
from math import sqrt
from operator import and_
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.dtypes import ONNX_DTYPES, dtype_named
from ....ir.errors import InvalidModelError, UnsupportedError
from .linear import EXACT
from .registry import Value, primitive, primitive_of


def _heads_apart(x: Value, heads: int) -> Value:
    """[batch, sequence, heads·size] as [batch, heads, sequence, size]."""
    return jnp.swapaxes(jnp.reshape(x, (*x.shape[:2], heads, x.shape[2] // heads)), 1, 2)


def _heads_packed(x: Value) -> Value:
    """[batch, heads, sequence, size] as [batch, sequence, heads·size]."""
    batch, heads, length, size = x.shape
    return jnp.reshape(jnp.swapaxes(x, 1, 2), (batch, length, heads * size))


def _grouped_product(x: Value, y: Value) -> Value:
    """x [batch, heads, m, k] times y [batch, kv heads, k, n]: head h takes y's head h // (heads // kv heads)."""
    batch, heads, m, k = x.shape
    kv_heads = y.shape[1]
    if heads % kv_heads:
        raise InvalidModelError(f"{heads} query heads are not a multiple of {kv_heads} key heads")
    rows = jnp.reshape(x, (batch, kv_heads, heads // kv_heads * m, k))
    return jnp.reshape(jnp.matmul(rows, y, precision=EXACT), (batch, heads, m, y.shape[-1]))


def _scaled_scores(q: Value, k: Value, scale: float | None) -> Value:
    """scale · q kᵀ. Both factors take the root of the scale, in their own dtype: neither overflows so easily."""
    scale = 1 / sqrt(q.shape[-1]) if scale is None else scale
    root = np.asarray(sqrt(abs(scale)), q.dtype)
    signed = root if scale >= 0 else -root
    return _grouped_product(q * signed, jnp.swapaxes(k * root, -1, -2))


def _softmax(x: Value) -> Value:
    """Softmax over the last axis; a row of -inf only becomes zeros."""
    highest = lax.stop_gradient(jnp.max(x, -1, keepdims=True, initial=-np.inf))
    powers = jnp.exp(x - jnp.where(jnp.isneginf(highest), jnp.zeros_like(highest), highest))
    total = jnp.sum(powers, -1, keepdims=True)
    return powers / jnp.where(total == 0, jnp.ones_like(total), total)


def _allowed(
    queries: int, keys: int, offset: Value, causal: int, left: int, right: int, lengths: Value | None
) -> Value | None:
    """Which query may see which key [batch or 1, 1, queries, keys], before the mask; None: all see all.

    Arguments:
        offset: how many keys precede the first query, an integer or [batch].
        causal, left, right: as in ONNX's Attention; -1 is no bound.
        lengths: how many keys are valid [batch], or None for all of them.
    """
    parts = []
    place = np.arange(queries)[:, None] + jnp.reshape(offset, (-1, 1, 1, 1))
    key = np.arange(keys)
    if causal:
        parts.append(key <= place)
    if left >= 0:
        parts.append(key >= place - left)
    if right >= 0:
        parts.append(key <= place + right)
    if lengths is not None:
        parts.append(key < jnp.reshape(lengths, (-1, 1, 1, 1)))
    return reduce(and_, parts) if parts else None


def _bias(mask: Value | None, allowed: Value | None, keys: int, dtype: Any) -> Value | None:
    """What is added to the scores: the mask, and -inf where a key is not allowed."""
    if mask is not None:
        missing = keys - mask.shape[-1]
        if missing > 0:
            fill = False if mask.dtype == bool else -np.inf
            mask = jnp.pad(
                mask if mask.dtype == bool else jnp.asarray(mask).astype(dtype),
                [(0, 0)] * (mask.ndim - 1) + [(0, missing)],
                constant_values=fill,
            )
        if mask.dtype == bool:
            allowed = mask if allowed is None else allowed & mask
            mask = None
    if allowed is None:
        return None if mask is None else jnp.asarray(mask).astype(dtype)
    inside = np.zeros((), dtype) if mask is None else jnp.asarray(mask).astype(dtype)
    return jnp.where(allowed, inside, np.asarray(-np.inf, dtype))


@primitive
def Attention(
    q: Value,
    k: Value,
    v: Value,
    attn_mask: Value | None = None,
    past_key: Value | None = None,
    past_value: Value | None = None,
    nonpad_kv_seqlen: Value | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
) -> tuple[Value, Value, Value, Value]:
    packed = q.ndim == 3
    if packed:
        if q_num_heads is None or kv_num_heads is None:
            raise InvalidModelError("Attention on 3-D inputs needs q_num_heads and kv_num_heads")
        q, k, v = _heads_apart(q, q_num_heads), _heads_apart(k, kv_num_heads), _heads_apart(v, kv_num_heads)
    if (past_key is None) != (past_value is None):
        raise InvalidModelError("Attention takes past_key and past_value together")
    if nonpad_kv_seqlen is not None and past_key is not None:
        raise InvalidModelError("Attention takes either past_key and past_value or nonpad_kv_seqlen")
    offset: Value = 0
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        k, v = jnp.concatenate([past_key, k], 2), jnp.concatenate([past_value, v], 2)
    elif nonpad_kv_seqlen is not None:
        offset = nonpad_kv_seqlen - q.shape[2]
    dtype, keys = q.dtype, k.shape[2]
    allowed = _allowed(q.shape[2], keys, offset, is_causal, left_window_size, right_window_size, nonpad_kv_seqlen)
    bias = _bias(attn_mask, allowed, keys, dtype)

    scores = shown = _scaled_scores(q, k, scale)
    if softcap:
        cap = np.asarray(softcap, dtype)
        scores = jnp.tanh(scores / cap) * cap
        shown = scores if qk_matmul_output_mode == 1 else shown
    if bias is not None:
        scores = scores + bias
    if qk_matmul_output_mode == 2:
        shown = scores
    if softmax_precision is not None:
        scores = scores.astype(dtype_named(ONNX_DTYPES[softmax_precision]))
    weights = _softmax(scores)
    if bias is not None:  # by the bias, not the scores: those may be NaN
        hopeless = jnp.isneginf(jnp.max(bias, -1, keepdims=True, initial=-np.inf))
        weights = jnp.where(hopeless, jnp.zeros_like(weights), weights)
    weights = weights.astype(dtype)
    if qk_matmul_output_mode == 3:
        shown = weights
    y = _grouped_product(weights, v).astype(dtype)
    return _heads_packed(y) if packed else y, k, v, shown


@primitive_of("ai.onnx.preview")
def FlexAttention(
    q: Value,
    k: Value,
    v: Value,
    *,
    prob_mod: Any = None,
    scale: float | None = None,
    score_mod: Any = None,
    softmax_precision: int | None = None,
) -> Value:
    if score_mod is not None or prob_mod is not None:
        raise UnsupportedError("FlexAttention with score_mod or prob_mod; write the graph without the operator")
    wide = (
        jnp.promote_types(q.dtype, jnp.float32)
        if softmax_precision is None
        else dtype_named(ONNX_DTYPES[softmax_precision])
    )
    weights = jax.nn.softmax(_scaled_scores(q, k, scale).astype(wide), axis=-1)
    return _grouped_product(weights, jnp.asarray(v).astype(wide)).astype(v.dtype)


@primitive
def RotaryEmbedding(
    x: Value,
    cos_cache: Value,
    sin_cache: Value,
    position_ids: Value | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> Value:
    packed = x.ndim == 3
    if packed:
        if not num_heads:
            raise InvalidModelError("RotaryEmbedding on a 3-D input needs num_heads")
        x = _heads_apart(x, num_heads)
    if position_ids is not None:  # a position outside the table gives NaN, not another row
        cos_cache, sin_cache = (jnp.take(table, position_ids, axis=0, mode="fill") for table in (cos_cache, sin_cache))
    size = rotary_embedding_dim or x.shape[-1]
    cos, sin = jnp.asarray(cos_cache)[:, None], jnp.asarray(sin_cache)[:, None]  # [batch, 1, sequence, size / 2]
    if cos.shape[-1] * 2 != size or sin.shape[-1] * 2 != size:
        raise InvalidModelError(f"RotaryEmbedding of {size} features with tables of {cos.shape[-1]} angles")
    turned, rest = x[..., :size], x[..., size:]
    first, second = (
        (turned[..., 0::2], turned[..., 1::2]) if interleaved else (turned[..., : size // 2], turned[..., size // 2 :])
    )
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    if interleaved:
        turned = jnp.reshape(jnp.stack([real, imaginary], -1), turned.shape)
    else:
        turned = jnp.concatenate([real, imaginary], -1)
    y = jnp.concatenate([turned, rest], -1)
    return _heads_packed(y) if packed else y


@primitive
def LinearAttention(
    query: Value,
    key: Value,
    value: Value,
    past_state: Value | None = None,
    decay: Value | None = None,
    beta: Value | None = None,
    *,
    chunk_size: int = 64,  # how fast, not what
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Value, Value]:
    """The recurrence token by token, at least in float32; the state has the dtype of past_state or else the query's."""
    if update_rule not in ("linear", "gated", "delta", "gated_delta"):
        raise InvalidModelError(f"unknown update_rule {update_rule!r}")
    gated, delta = "gated" in update_rule, "delta" in update_rule
    if gated != (decay is not None) or delta != (beta is not None):
        raise InvalidModelError(
            f"update_rule {update_rule!r} with decay: {decay is not None}, beta: {beta is not None}"
        )
    wide = jnp.promote_types(query.dtype, jnp.float32)
    batch, _, features = query.shape
    d_k, d_v, group = features // q_num_heads, value.shape[-1] // kv_num_heads, q_num_heads // kv_num_heads

    def over_time(x: Value | None, heads: int) -> Value | None:
        """[batch, time, heads·size] as [time, batch, heads, size]."""
        if x is None:
            return None
        return jnp.swapaxes(jnp.reshape(jnp.asarray(x).astype(wide), (*x.shape[:2], heads, -1)), 0, 1)

    def step(state: Value, now: tuple[Value, ...]) -> tuple[Value, Value]:
        q, k, v, g, b = now
        if g is not None:
            state = state * jnp.exp(g)[..., None]
        if b is not None:
            v = b * (v - jnp.einsum("bhkv,bhk->bhv", state, k, precision=EXACT))
        state = state + k[..., :, None] * v[..., None, :]
        grouped = jnp.reshape(q, (batch, kv_num_heads, group, d_k))
        return state, jnp.einsum("bhgk,bhkv->bhgv", grouped, state, precision=EXACT)

    start = (
        jnp.zeros((batch, kv_num_heads, d_k, d_v), wide) if past_state is None else jnp.asarray(past_state).astype(wide)
    )
    beta_heads = 1 if beta is None else beta.shape[-1]
    parts = (over_time(query, q_num_heads), over_time(key, kv_num_heads), over_time(value, kv_num_heads))
    gates = (over_time(decay, kv_num_heads), over_time(beta, beta_heads))
    state, read = lax.scan(step, start, (*parts, *gates))
    factor = np.asarray(scale or 1 / sqrt(d_k), wide)
    y = jnp.reshape(jnp.swapaxes(read, 0, 1), (batch, query.shape[1], q_num_heads * d_v)) * factor
    return y.astype(query.dtype), state.astype(query.dtype if past_state is None else past_state.dtype)


@primitive
def CausalConvWithState(
    x: Value,
    weight: Value,
    bias: Value | None = None,
    past_state: Value | None = None,
    *,
    activation: str = "none",
) -> tuple[Value, Value]:
    """x [batch, channels, length], weight [channels, 1, k], past_state and present_state [batch, channels, k - 1]."""
    if activation not in ("none", "silu", "swish"):
        raise InvalidModelError(f"unknown activation {activation!r}")
    batch, channels, length = x.shape
    before = weight.shape[2] - 1
    past: Value = jnp.zeros((batch, channels, before), x.dtype) if past_state is None else past_state
    grown = jnp.concatenate([past, x], 2)
    y = lax.conv_general_dilated(
        grown, jnp.asarray(weight), (1,), [(0, 0)], feature_group_count=channels, precision=EXACT
    )
    if bias is not None:
        y = y + jnp.reshape(bias, (1, -1, 1))
    if activation != "none":
        y = jax.nn.silu(y.astype(jnp.promote_types(y.dtype, jnp.float32))).astype(x.dtype)
    return y, grown[:, :, length:]
