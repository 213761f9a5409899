"""Attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .common import Array, Contrib, dequantized, rms_norm, same, softmax


def _apart(x: Array, count: int) -> Array:
    return x.reshape(*x.shape[:2], count, x.shape[2] // count).transpose(0, 2, 1, 3)


def _together(x: Array) -> Array:
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])


def _seen(mask: Array, batch: int, keys: int) -> Array:
    """Which keys a mask leaves, [batch, 1, queries or 1, keys]."""
    if mask.ndim == 1:
        seen = np.arange(keys) < mask[:batch, None]
        if len(mask) == 2 * batch:
            seen &= np.arange(keys) >= mask[batch:, None]
        return seen[:, None, None]
    return (mask > 0)[:, None, None] if mask.ndim == 2 else (mask > 0)[:, None]


def _attend(
    q: Array,
    k: Array,
    v: Array,
    past: int,
    scale: float,
    causal: int,
    mask: Array | None,
    masked: float,
    bias: Array | None,
) -> tuple[Array, Array]:
    scores = q @ k.swapaxes(-1, -2) * (scale or 1 / math.sqrt(q.shape[-1]))
    if mask is not None:
        scores = scores + np.where(_seen(mask, len(q), k.shape[2]), 0, masked)
    if bias is not None:
        scores = scores + bias
    if causal:
        behind = np.arange(k.shape[2]) > np.arange(q.shape[2])[:, None] + past
        scores = np.where(behind, -np.inf, scores)
    weights = softmax(scores)
    return same(_together(weights @ v), q), same(weights, q)


class Attention(Contrib):
    def _run(
        self,
        x: Array,
        weights: Array,
        bias: Any = None,
        mask: Any = None,
        past: Any = None,
        added: Any = None,
        length: Any = None,
        num_heads: int = 1,
        scale: float = 0.0,
        mask_filter_value: float = -10000.0,
        unidirectional: int = 0,
        qkv_hidden_sizes: Any = None,
        rotary_embedding_dim: int = 0,
        do_rotary: int = 0,
        past_present_share_buffer: int = 0,
    ) -> tuple[Array, Array]:
        if do_rotary or past_present_share_buffer:
            raise NotImplementedError("do_rotary, past_present_share_buffer")
        projected = x @ weights + (0 if bias is None else bias)
        ends = np.cumsum(qkv_hidden_sizes)[:2] if qkv_hidden_sizes else 3
        return self._attended(projected, ends, mask, past, added, num_heads, scale, mask_filter_value, unidirectional)

    @staticmethod
    def _attended(
        projected: Array,
        ends: Any,
        mask: Any,
        past: Any,
        added: Any,
        count: int,
        scale: float,
        masked: float,
        causal: int,
    ) -> tuple[Array, Array]:
        q, k, v = (_apart(part, count) for part in np.split(projected, ends, axis=-1))
        before = 0 if past is None else past.shape[3]
        if past is not None:
            k, v = (np.concatenate((old, new), axis=2) for old, new in zip(past, (k, v), strict=True))
        y, _ = _attend(q, k, v, before, scale, causal, mask, masked, added)
        return y, np.stack((k, v)) if k.shape == v.shape else y


class QAttention(Contrib):
    def _run(
        self,
        x: Array,
        weights: Array,
        bias: Array,
        x_scale: Array,
        weight_scale: Array,
        mask: Any = None,
        x_zero: Any = None,
        weight_zero: Any = None,
        past: Any = None,
        num_heads: int = 1,
        scale: float = 0.0,
        mask_filter_value: float = -10000.0,
        unidirectional: int = 0,
    ) -> tuple[Array, Array]:
        projected = dequantized(x, x_scale, x_zero) @ dequantized(weights, weight_scale, weight_zero) + bias
        return Attention._attended(projected, 3, mask, past, None, num_heads, scale, mask_filter_value, unidirectional)


def _three(q: Array, k: Any, v: Any, bias: Any, count: int, beside: bool) -> tuple[Array, Array, Array]:
    """query, key and value by heads, from all the layouts that they come in."""
    if k is None:
        q, k, v = np.split(q, 3, axis=-1) if beside else (q[:, :, :, i].reshape(*q.shape[:2], -1) for i in range(3))
    elif v is None:
        k, v = (k[:, :, :, i].reshape(*k.shape[:2], -1) for i in range(2))
    width = q.shape[-1]
    if bias is not None:
        q = q + bias[:width]
    if k.ndim == 4:
        return _apart(q, count), k, v
    if bias is not None:
        k, v = k + bias[width : 2 * width], v + bias[2 * width :]
    return _apart(q, count), _apart(k, count), _apart(v, count)


class MultiHeadAttention(Contrib):
    def _run(
        self,
        q: Array,
        k: Any = None,
        v: Any = None,
        bias: Any = None,
        mask: Any = None,
        added: Any = None,
        past_k: Any = None,
        past_v: Any = None,
        num_heads: int = 1,
        scale: float = 0.0,
        mask_filter_value: float = -10000.0,
        unidirectional: int = 0,
    ) -> tuple[Array, ...]:
        q, k, v = _three(q, k, v, bias, num_heads, beside=False)
        before = 0 if past_k is None else past_k.shape[2]
        k, v = (new if old is None else np.concatenate((old, new), 2) for old, new in ((past_k, k), (past_v, v)))
        y, weights = _attend(q, k, v, before, scale, unidirectional, mask, mask_filter_value, added)
        return y, k, v, weights


class DecoderMaskedMultiHeadAttention(Contrib):
    def _run(
        self,
        q: Array,
        k: Any = None,
        v: Any = None,
        mask: Any = None,
        added: Any = None,
        past_k: Any = None,
        past_v: Any = None,
        length: Any = None,
        beams: Any = None,
        beam_places: Any = None,
        bias: Any = None,
        num_heads: int = 1,
        scale: float = 0.0,
        mask_filter_value: float = -10000.0,
        past_present_share_buffer: int = 0,
        output_qk: int = 0,
    ) -> tuple[Array, ...]:
        if past_present_share_buffer or beams is not None:
            raise NotImplementedError("past_present_share_buffer, beam_width")
        q, k, v = _three(q, k, v, bias, num_heads, beside=True)
        k, v = (new if old is None else np.concatenate((old, new), 2) for old, new in ((past_k, k), (past_v, v)))
        y, weights = _attend(q, k, v, 0, scale, 0, mask, mask_filter_value, added)
        return y, k, v, weights


def _rotate(x: Array, cos: Array, sin: Array, places: Array, interleaved: int) -> Array:
    """As complex numbers: a pair of features times cos + i·sin of its place."""
    pairs = cos.shape[1]
    turning = x[..., : 2 * pairs]
    if interleaved:
        numbers = turning[..., 0::2] + 1j * turning[..., 1::2]
    else:
        numbers = turning[..., :pairs] + 1j * turning[..., pairs:]
    numbers = numbers * (cos[places] + 1j * sin[places])[:, None]
    y = x.copy()
    if interleaved:
        y[..., 0 : 2 * pairs : 2], y[..., 1 : 2 * pairs : 2] = numbers.real, numbers.imag
    else:
        y[..., :pairs], y[..., pairs : 2 * pairs] = numbers.real, numbers.imag
    return y


class RotaryEmbedding(Contrib):
    def _run(
        self,
        x: Array,
        places: Array,
        cos: Array,
        sin: Array,
        interleaved: int = 0,
        num_heads: int = 0,
        rotary_embedding_dim: int = 0,
        is_packed_batching: int = 0,
        scale: float = 1.0,
    ) -> tuple[Array]:
        count = 0 if x.ndim == 4 else num_heads if rotary_embedding_dim else x.shape[2] // (2 * cos.shape[1])
        apart = _apart(x, count) if count else x
        if places.ndim == 1:
            places = np.arange(apart.shape[2])[None] + places
        y = _rotate(apart, cos, sin, places, interleaved)
        return (_together(y) if count else y,)


class GroupQueryAttention(Contrib):
    def _run(
        self,
        q: Array,
        k: Any,
        v: Any,
        past_k: Any,
        past_v: Any,
        lengths: Array,
        total: Array,
        cos: Any = None,
        sin: Any = None,
        positions: Any = None,
        added: Any = None,
        sink: Any = None,
        k_scale: Any = None,
        v_scale: Any = None,
        q_norm: Any = None,
        k_norm: Any = None,
        num_heads: int = 1,
        kv_num_heads: int = 1,
        scale: float = 0.0,
        softcap: float = 0.0,
        local_window_size: int = -1,
        causal: int = 1,
        do_rotary: int = 0,
        rotary_interleaved: int = 0,
        smooth_softmax: int = -1,
        qk_output: int = 0,
        qk_norm_epsilon: float = 1e-6,
    ) -> tuple[Array, ...]:
        if k is None:
            size = q.shape[2] // (num_heads + 2 * kv_num_heads)
            q, k, v = np.split(q, (num_heads * size, (num_heads + kv_num_heads) * size), axis=2)
        q, k, v = _apart(q, num_heads), _apart(k, kv_num_heads), _apart(v, kv_num_heads)
        if q_norm is not None:
            q, k = rms_norm(q, q_norm, qk_norm_epsilon), rms_norm(k, k_norm, qk_norm_epsilon)
        batch, _, new, size = q.shape
        whole, first = int(total.item()), new == int(total.item())
        past = np.zeros(batch, np.int64) if first else lengths.reshape(-1).astype(np.int64) + 1 - new
        if do_rotary:
            places = past[:, None] + np.arange(new)
            if positions is not None:
                places = positions if not first else np.tile(positions.flat[0] + np.arange(new), (batch, 1))
            q, k = (_rotate(x, cos, sin, places, rotary_interleaved) for x in (q, k))
        kept = max(whole, 0 if past_k is None else past_k.shape[2])
        keys, values = np.zeros((2, batch, kv_num_heads, kept, size), q.dtype)
        y = np.zeros_like(q)
        shown = np.zeros((batch, num_heads, new, whole), q.dtype)
        for b in range(batch):
            for store, old, fresh in ((keys, past_k, k), (values, past_v, v)):
                if past[b]:
                    store[b, :, : past[b]] = old[b, :, : past[b]]
                store[b, :, past[b] : past[b] + new] = fresh[b]
            end = int(lengths.flat[b]) + 1
            for head, row in np.ndindex(num_heads, new):
                stop = min(int(past[b]) + row + 1, end) if causal else end
                start = max(0, int(past[b]) + row + 1 - local_window_size) if local_window_size > 0 else 0
                if start >= stop:
                    continue
                group = head // (num_heads // kv_num_heads)
                scores = keys[b, group, start:stop] @ q[b, head, row] * (scale or 1 / math.sqrt(size))
                scores = softcap * np.tanh(scores / softcap) if softcap else scores
                if added is not None:
                    scores = scores + added[b % len(added), head % added.shape[1], row, start:stop]
                others = [0.0] if smooth_softmax == 1 else [] if sink is None else [float(sink[head])]
                weights = softmax(np.concatenate((scores, others)))[: len(scores)]
                y[b, head, row] = weights @ values[b, group, start:stop]
                shown[b, head, row, start:stop] = scores if qk_output == 1 else weights
        return _together(y), keys, values, shown


class RelativePositionBias(Contrib):
    def _run(
        self, table: Array, queries: Array, keys: Array, max_distance: int, is_bidirectional: int = 0
    ) -> tuple[Array]:
        y = np.zeros((1, table.shape[1], int(queries.item()), int(keys.item())), table.dtype)
        count = len(table) // 2 if is_bidirectional else len(table)
        for i, j in np.ndindex(y.shape[2:]):
            distance = i - j
            start = count if is_bidirectional and distance < 0 else 0
            distance = abs(distance) if is_bidirectional else max(distance, 0)
            if distance >= count // 2:
                part = np.float32(math.log(distance / (count // 2)) / math.log(max_distance / (count // 2)))
                distance = min(count // 2 + int(part * (count - count // 2)), count - 1)
            y[0, :, i, j] = table[start + distance]
        return (y,)
