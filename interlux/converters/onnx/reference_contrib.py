"""onnxruntime's own operators for onnx's reference evaluator, in the precision of what they are given.

Written from onnxruntime's schemas and from what its CPU kernels compute, without anything of the importer, so that the
two can be compared. `CONTRIB_OPS` lists them for `ReferenceEvaluator(new_ops=…)`; `EARLY_OPS` are
those that onnxruntime writes in ONNX's domain before ONNX had them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv import _conv_implementation

Array = np.ndarray
CONTRIB_OPS: list[type[OpRun]] = []
_erf = np.vectorize(math.erf, otypes=[np.float64])


class _Contrib(OpRun):
    op_domain = "com.microsoft"

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if not cls.__name__.startswith("_"):
            CONTRIB_OPS.append(cls)

    def _load_attributes(self) -> None:
        self._schema = None  # the evaluator would add the attributes of ONNX's operator of the same name
        super()._load_attributes()


def _gelu(x: Array) -> Array:
    return (0.5 * x * (1 + _erf(x / math.sqrt(2)).reshape(x.shape))).astype(x.dtype)


def _fast_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _softmax(x: Array, axis: int = -1) -> Array:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def _activation(x: Array, name: str | None, a: float = 0.0, b: float = 0.0, c: float = 0.0) -> Array:
    match name:
        case None | "":
            return x
        case "Relu":
            return np.maximum(x, 0)
        case "Sigmoid":
            return _sigmoid(x)
        case "Tanh":
            return np.tanh(x)
        case "Softplus":
            return np.logaddexp(x, 0)
        case "Softsign":
            return x / (1 + abs(x))
        case "LeakyRelu":
            return np.where(x < 0, a * x, x)
        case "Elu":
            return np.where(x < 0, a * np.expm1(x), x)
        case "Selu":
            return c * np.where(x < 0, a * np.expm1(x), x)
        case "ThresholdedRelu":
            return np.where(x > a, x, 0)
        case "HardSigmoid":
            return np.clip(a * x + b, 0, 1)
        case "HardSwish":
            return x * np.clip(x / 6 + 0.5, 0, 1)
        case "Clip":
            return np.clip(x, a, b)
        case "Softmax":
            return _softmax(x)
    raise NotImplementedError(f"activation {name}")


def _same(y: Array, x: Array) -> Array:
    return np.asarray(y).astype(x.dtype, copy=False)


# --- activations and additions


class Gelu(_Contrib):
    def _run(self, x: Array) -> tuple[Array]:
        return (_gelu(x),)


class BiasGelu(_Contrib):
    def _run(self, x: Array, bias: Array) -> tuple[Array]:
        return (_gelu(x + bias),)


class FastGelu(_Contrib):
    def _run(self, x: Array, bias: Array | None = None) -> tuple[Array]:
        return (_same(_fast_gelu(x if bias is None else x + bias), x),)


class GemmFastGelu(_Contrib):
    def _run(self, x: Array, weight: Array, bias: Array | None = None) -> tuple[Array]:
        return (_fast_gelu(x @ weight + (0 if bias is None else bias)),)


class QuickGelu(_Contrib):
    def _run(self, x: Array, alpha: float = 1.7020000219345093) -> tuple[Array]:
        return (_same(x * _sigmoid(alpha * x), x),)


class BiasAdd(_Contrib):
    def _run(self, x: Array, bias: Array, skip: Array) -> tuple[Array]:
        return (x + bias + skip,)


class BiasSplitGelu(_Contrib):
    def _run(self, x: Array, bias: Array) -> tuple[Array]:
        y = x + bias
        half = y.shape[-1] // 2
        return (y[..., :half] * _gelu(y[..., half:]),)


def _inference(training: Array | None) -> None:
    if training is not None and training.any():
        raise NotImplementedError("training")


class BiasDropout(_Contrib):
    def _run(
        self, x: Array, bias: Array, residual: Any = None, ratio: Any = None, training: Any = None, seed: int = 0
    ) -> tuple[Array, ...]:
        _inference(training)
        return x + bias + (0 if residual is None else residual), np.ones(x.shape, bool)


class BitmaskBiasDropout(_Contrib):
    def _run(
        self, x: Array, bias: Array, residual: Any = None, ratio: Any = None, training: Any = None, seed: int = 0
    ) -> tuple[Array]:
        _inference(training)
        return (x + bias + (0 if residual is None else residual),)


class BitmaskDropout(_Contrib):
    def _run(self, x: Array, ratio: Any = None, training: Any = None, seed: int = 0) -> tuple[Array]:
        _inference(training)
        return (x,)


class BiasSoftmax(_Contrib):
    def _run(self, x: Array, bias: Array, axis: int = 1, is_inner_broadcast: int = 0) -> tuple[Array]:
        axis %= x.ndim
        y = np.broadcast_to(x + bias, x.shape)
        return (_softmax(y.reshape(*x.shape[:axis], -1)).reshape(x.shape),)


# --- products and convolutions


def _turned(x: Array, batch: int, matrix: int) -> Array:
    if x.ndim < 2:
        return x
    x = np.moveaxis(x, 0, -2) if batch else x
    return np.swapaxes(x, -1, -2) if matrix else x


class FusedMatMul(_Contrib):
    def _run(
        self,
        a: Array,
        b: Array,
        alpha: float = 1.0,
        transA: int = 0,
        transB: int = 0,
        transBatchA: int = 0,
        transBatchB: int = 0,
    ) -> tuple[Array]:
        return (_same(alpha * (_turned(a, transBatchA, transA) @ _turned(b, transBatchB, transB)), a),)


class TransposeMatMul(FusedMatMul):
    pass


class FusedMatMulActivation(_Contrib):
    def _run(
        self,
        a: Array,
        b: Array,
        activation: str,
        activation_alpha: float = 0.0,
        activation_beta: float = 0.0,
        activation_gamma: float = 0.0,
        activation_axis: int = -1,
        alpha: float = 1.0,
        transA: int = 0,
        transB: int = 0,
        transBatchA: int = 0,
        transBatchB: int = 0,
    ) -> tuple[Array]:
        y = alpha * (_turned(a, transBatchA, transA) @ _turned(b, transBatchB, transB))
        y = np.moveaxis(y, activation_axis, -1)
        y = _activation(y, activation, activation_alpha, activation_beta, activation_gamma)
        return (_same(np.moveaxis(y, -1, activation_axis), a),)


class FusedGemm(_Contrib):
    def _run(
        self,
        a: Array,
        b: Array,
        c: Array | None = None,
        activation: str = "",
        activation_alpha: float = 0.0,
        activation_beta: float = 0.0,
        activation_gamma: float = 0.0,
        alpha: float = 1.0,
        beta: float = 1.0,
        transA: int = 0,
        transB: int = 0,
    ) -> tuple[Array]:
        y = alpha * ((a.T if transA else a) @ (b.T if transB else b)) + (0 if c is None else beta * c)
        return (_same(_activation(y, activation, activation_alpha, activation_beta, activation_gamma), a),)


def _first(x: Array) -> Array:
    return np.moveaxis(x, -1, 1)


def _last(x: Array) -> Array:
    return np.moveaxis(x, 1, -1)


def _convolved(
    x: Array,
    weight: Array,
    bias: Array | None,
    auto_pad: str | None,
    dilations: Any,
    group: int | None,
    kernel_shape: Any,
    pads: Any,
    strides: Any,
) -> Array:
    return _conv_implementation(
        x, weight, bias, auto_pad or "NOTSET", dilations, group or 1, kernel_shape, pads, strides
    )


class FusedConv(_Contrib):
    def _run(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        residual: Array | None = None,
        activation: str = "",
        activation_params: Sequence[float] = (),
        auto_pad: str | None = None,
        dilations: Any = None,
        group: int | None = None,
        kernel_shape: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Array]:
        y = _convolved(x, weight, bias, auto_pad, dilations, group, kernel_shape, pads, strides)
        return (_same(_activation(y if residual is None else y + residual, activation, *activation_params), x),)


class NhwcFusedConv(_Contrib):
    def _run(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        residual: Array | None = None,
        activation: str = "",
        activation_params: Sequence[float] = (),
        auto_pad: str | None = None,
        dilations: Any = None,
        group: int | None = None,
        kernel_shape: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Array]:
        y = _last(_convolved(_first(x), weight, bias, auto_pad, dilations, group, kernel_shape, pads, strides))
        return (_same(_activation(y if residual is None else y + residual, activation, *activation_params), x),)


class NhwcConv(NhwcFusedConv):
    pass


class ComplexMul(_Contrib):
    def _run(self, a: Array, b: Array) -> tuple[Array]:
        y = (a[..., 0] + 1j * a[..., 1]) * (b[..., 0] + 1j * b[..., 1])
        return (_same(np.stack((y.real, y.imag), -1), a),)


class ComplexMulConj(_Contrib):
    def _run(self, a: Array, b: Array) -> tuple[Array]:
        y = (a[..., 0] + 1j * a[..., 1]) * (b[..., 0] - 1j * b[..., 1])
        return (_same(np.stack((y.real, y.imag), -1), a),)


class CDist(_Contrib):
    def _run(self, a: Array, b: Array, metric: str = "sqeuclidean") -> tuple[Array]:
        squares = ((a[:, None] - b[None]) ** 2).sum(-1)
        return (np.sqrt(squares) if metric == "euclidean" else squares,)


class TorchEmbedding(_Contrib):
    def _run(self, table: Array, indices: Array, padding: Any = None, by_frequency: Any = None) -> tuple[Array]:
        return (table[indices],)


class UnfoldTensor(_Contrib):
    def _run(self, x: Array, size: int, dim: int = -1, step: int = 1) -> tuple[Array]:
        windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=dim)
        return (np.take(windows, np.arange(0, windows.shape[dim % x.ndim], step), axis=dim % x.ndim),)


# --- normalisations


def _layer_norm(x: Array, gamma: Array, beta: Array | None, epsilon: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * gamma
    return _same(y if beta is None else y + beta, x)


def _rms_norm(x: Array, gamma: Array, epsilon: float) -> Array:
    return _same(x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * gamma, x)


class SimplifiedLayerNormalization(_Contrib):
    def _run(
        self, x: Array, scale: Array, axis: int = -1, epsilon: float = 9.999999747378752e-06, stash_type: int = 1
    ) -> tuple[Array, Array]:
        axes = tuple(range(axis % x.ndim, x.ndim))
        inverse = 1 / np.sqrt((x**2).mean(axes, keepdims=True) + epsilon)
        return _same(x * inverse * scale, scale), inverse


class OnnxSimplifiedLayerNormalization(SimplifiedLayerNormalization):
    """The same in ONNX's domain, where onnxruntime writes it."""

    op_domain = ""


OnnxSimplifiedLayerNormalization.__name__ = "SimplifiedLayerNormalization"  # what the evaluator goes by


class _LayerNormalization(_Contrib):
    """ONNX's operator before the opset that brought it, as onnxruntime writes it."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Any = None,
        axis: int = -1,
        epsilon: float = 9.999999747378752e-06,
        stash_type: int = 1,
    ) -> tuple[Array, ...]:
        axes = tuple(range(axis % x.ndim, x.ndim))
        mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        inverse = 1 / np.sqrt(variance + epsilon)
        y = (x - mean) * inverse * scale
        return _same(y if bias is None else y + bias, x), mean, inverse


_LayerNormalization.__name__ = "LayerNormalization"
EARLY_OPS: list[type[OpRun]] = [_LayerNormalization]  # for models of opsets before 17


class SkipLayerNormalization(_Contrib):
    def _run(
        self,
        x: Array,
        skip: Array,
        gamma: Array,
        beta: Array | None = None,
        bias: Array | None = None,
        epsilon: float = 9.999999960041972e-13,
    ) -> tuple[Any, ...]:
        total = x + skip + (0 if bias is None else bias)
        return _layer_norm(_same(total, x), gamma, beta, epsilon), x, x, _same(total, x)


class SkipSimplifiedLayerNormalization(_Contrib):
    def _run(
        self, x: Array, skip: Array, gamma: Array, bias: Array | None = None, epsilon: float = 9.999999960041972e-13
    ) -> tuple[Any, ...]:
        total = x + skip + (0 if bias is None else bias)
        return _rms_norm(_same(total, x), gamma, epsilon), x, x, _same(total, x)


def _group_norm(x: Array, gamma: Array, beta: Array, groups: int, epsilon: float, activation: int) -> Array:
    """Of x with the channels last."""
    parts = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, variance = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
    y = ((parts - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * gamma + beta
    return _same(y * _sigmoid(y) if activation else y, x)


class GroupNorm(_Contrib):
    def _run(
        self,
        x: Array,
        gamma: Array,
        beta: Array,
        activation: int,
        groups: int,
        channels_last: int = 1,
        epsilon: float = 9.999999747378752e-06,
    ) -> tuple[Array]:
        y = _group_norm(x if channels_last else _last(x), gamma, beta, groups, epsilon, activation)
        return (y if channels_last else _first(y),)


class SkipGroupNorm(_Contrib):
    def _run(
        self,
        x: Array,
        gamma: Array,
        beta: Array,
        skip: Array,
        bias: Array | None = None,
        activation: int = 0,
        groups: int = 1,
        channels_last: int = 1,
        epsilon: float = 9.999999747378752e-06,
    ) -> tuple[Array, Array]:
        total = x + (skip[:, None, None] if skip.ndim == 2 else skip) + (0 if bias is None else bias)
        return _group_norm(total, gamma, beta, groups, epsilon, activation), total


class EmbedLayerNormalization(_Contrib):
    def _run(
        self,
        ids: Array,
        segments: Any,
        words: Array,
        places: Array,
        parts: Any,
        gamma: Array,
        beta: Array,
        mask: Any = None,
        positions: Any = None,
        epsilon: float = 9.999999960041972e-13,
        mask_index_type: int = 0,
    ) -> tuple[Array, ...]:
        total = words[ids] + (places[: ids.shape[1]] if positions is None else places[positions])
        total = total if parts is None else total + parts[segments]
        count = np.zeros(len(ids)) if mask is None else (mask == 1).sum(1)
        return _layer_norm(total, gamma, beta, epsilon), count.astype(np.int32), total


# --- attention


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
    weights = _softmax(scores)
    return _same(_together(weights @ v), q), _same(weights, q)


class Attention(_Contrib):
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


class QAttention(_Contrib):
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
        projected = _floats(x, x_scale, x_zero) @ _floats(weights, weight_scale, weight_zero) + bias
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


class MultiHeadAttention(_Contrib):
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


class DecoderMaskedMultiHeadAttention(_Contrib):
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


class RotaryEmbedding(_Contrib):
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


class GroupQueryAttention(_Contrib):
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
            q, k = _rms_norm(q, q_norm, qk_norm_epsilon), _rms_norm(k, k_norm, qk_norm_epsilon)
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
                weights = _softmax(np.concatenate((scores, others)))[: len(scores)]
                y[b, head, row] = weights @ values[b, group, start:stop]
                shown[b, head, row, start:stop] = scores if qk_output == 1 else weights
        return _together(y), keys, values, shown


class RelativePositionBias(_Contrib):
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


# --- quantized tensors


def _pooled(
    x: Array, kind: Any, kernel: Any, auto_pad: str, ceil: int, dilations: Any, pads: Any, strides: Any, outside: float
) -> Array:
    """Reduces the windows of x [batch, channels, …]; `outside` fills the padding, and nothing counts beyond it."""
    count = len(kernel)
    strides, dilations = strides or [1] * count, dilations or [1] * count
    pads, width = list(pads or [0] * 2 * count), [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    lengths = []
    for i, n in enumerate(x.shape[2:]):
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            lengths.append(-(-n // strides[i]))
            total = max((lengths[-1] - 1) * strides[i] + width[i] - n, 0)
            pads[i] = total // 2 if auto_pad == "SAME_UPPER" else -(-total // 2)
            pads[count + i] = total - pads[i]
            continue
        room = n + pads[i] + pads[count + i] - width[i]
        length = (-(-room // strides[i]) if ceil else room // strides[i]) + 1
        lengths.append(length - 1 if ceil and (length - 1) * strides[i] >= n + pads[i] else length)
    ends = [(pads[i], pads[count + i]) for i in range(count)]
    wide = np.pad(x, [(0, 0), (0, 0), *ends], constant_values=outside)
    y = np.empty((*x.shape[:2], *lengths), x.dtype)
    for place in np.ndindex(*lengths):
        window = tuple(slice(p * s, p * s + w, d) for p, s, w, d in zip(place, strides, width, dilations, strict=True))
        y[(slice(None), slice(None), *place)] = kind(
            wide[(slice(None), slice(None), *window)], axis=tuple(range(2, x.ndim))
        )
    return y


def _floats(x: Array, scale: Array, zero: Array | None = None) -> Array:
    kind = scale.dtype if scale.dtype.kind == "f" else np.float32
    return (x.astype(kind) - (0 if zero is None else zero.astype(kind))) * scale


def _integers(y: Array, scale: Array, zero: Array | None, dtype: Any) -> Array:
    limits = np.iinfo(dtype)
    steps = np.rint(y / scale) + (0 if zero is None else zero.astype(y.dtype))
    return np.clip(steps, limits.min, limits.max).astype(dtype)


class QLinearAdd(_Contrib):
    def _run(self, a: Array, sa: Array, za: Any, b: Array, sb: Array, zb: Any, s: Array, z: Any = None) -> tuple[Array]:
        return (_integers(_floats(a, sa, za) + _floats(b, sb, zb), s, z, a.dtype),)


class QLinearMul(_Contrib):
    def _run(self, a: Array, sa: Array, za: Any, b: Array, sb: Array, zb: Any, s: Array, z: Any = None) -> tuple[Array]:
        return (_integers(_floats(a, sa, za) * _floats(b, sb, zb), s, z, a.dtype),)


class QLinearLeakyRelu(_Contrib):
    def _run(self, x: Array, sx: Array, zx: Any, s: Array, z: Any = None, alpha: float = 0.01) -> tuple[Array]:
        return (_integers(_activation(_floats(x, sx, zx), "LeakyRelu", alpha), s, z, x.dtype),)


class QLinearSigmoid(_Contrib):
    def _run(self, x: Array, sx: Array, zx: Any, s: Array, z: Any = None) -> tuple[Array]:
        return (_integers(_sigmoid(_floats(x, sx, zx)), s, z, x.dtype),)


class QLinearSoftmax(_Contrib):
    def _run(self, x: Array, sx: Array, zx: Any, s: Array, z: Array, opset: int, axis: int = -1) -> tuple[Array]:
        y = _floats(x, sx, zx)
        rows = y if opset >= 13 else y.reshape(*x.shape[: axis % x.ndim], -1)
        y = _softmax(rows, axis if opset >= 13 else -1).reshape(x.shape)
        return (_integers(y, s, z, x.dtype),)


class QLinearReduceMean(_Contrib):
    def _run(
        self, x: Array, sx: Array, zx: Any, s: Array, z: Any = None, axes: Any = (), keepdims: int = 1
    ) -> tuple[Array]:
        y = _floats(x, sx, zx).mean(tuple(axes) or None, keepdims=bool(keepdims))
        return (_integers(y, s, z, x.dtype),)


class QLinearGlobalAveragePool(_Contrib):
    def _run(self, x: Array, sx: Array, zx: Any, s: Array, z: Any = None, channels_last: int = 0) -> tuple[Array]:
        axes = tuple(range(1, x.ndim - 1)) if channels_last else tuple(range(2, x.ndim))
        return (_integers(_floats(x, sx, zx).mean(axes, keepdims=True), s, z, x.dtype),)


class QLinearAveragePool(_Contrib):
    def _run(
        self,
        x: Array,
        sx: Array,
        zx: Any,
        s: Array,
        z: Any = None,
        channels_last: int = 0,
        kernel_shape: Any = (),
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        count_include_pad: int = 0,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Array]:
        y = _floats(x, sx, zx)
        y = _first(y) if channels_last else y
        ones = np.ones_like(y)
        window = (np.sum, kernel_shape, auto_pad, ceil_mode, None, pads, strides)
        y = _pooled(y, *window, 0.0) / _pooled(ones, *window, float(count_include_pad))
        return (_integers(_last(y) if channels_last else y, s, z, x.dtype),)


class QLinearConcat(_Contrib):
    def _run(self, s: Array, z: Array, *parts: Array, axis: int = 0) -> tuple[Array]:
        floats = [_floats(*parts[i : i + 3]) for i in range(0, len(parts), 3)]
        return (_integers(np.concatenate(floats, axis), s, z, z.dtype),)


class QLinearWhere(_Contrib):
    def _run(
        self, condition: Array, x: Array, sx: Array, zx: Array, y: Array, sy: Array, zy: Array, s: Array, z: Array
    ) -> tuple[Array]:
        return (_integers(np.where(condition, _floats(x, sx, zx), _floats(y, sy, zy)), s, z, z.dtype),)


class QLinearConv(_Contrib):
    def _run(
        self,
        x: Array,
        sx: Array,
        zx: Array,
        w: Array,
        sw: Array,
        zw: Array,
        s: Array,
        z: Array,
        bias: Any = None,
        channels_last: int = 0,
        auto_pad: str | None = None,
        dilations: Any = None,
        group: int | None = None,
        kernel_shape: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Array]:
        column = (-1, *(1,) * (w.ndim - 1))
        sw, zw = (v.reshape(column) if v.size > 1 else v.reshape(()) for v in (sw, zw))
        floats = _floats(x, sx.reshape(()), zx.reshape(()))
        added = None if bias is None else (bias * (sx.reshape(()) * sw.reshape(-1))).astype(floats.dtype)
        y = _convolved(
            _first(floats) if channels_last else floats,
            _floats(w, sw, zw),
            added,
            auto_pad,
            dilations,
            group,
            kernel_shape,
            pads,
            strides,
        )
        return (_integers(_last(y) if channels_last else y, s, z, z.dtype),)


class NhwcMaxPool(_Contrib):
    def _run(
        self,
        x: Array,
        kernel_shape: Any,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        dilations: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Array]:
        wide = _first(x).astype(np.float64)
        y = _pooled(wide, np.max, kernel_shape, auto_pad, ceil_mode, dilations, pads, strides, -np.inf)
        return (_last(y).astype(x.dtype),)


def _along(v: Any, x: Array, axis: int | None) -> Any:
    return (
        v
        if v is None or axis is None or v.ndim == 0
        else v.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
    )


class QuantizeLinear(_Contrib):
    def _run(self, x: Array, scale: Array, zero: Any = None, axis: int | None = None) -> tuple[Array]:
        y = _integers(x, _along(scale, x, axis), _along(zero, x, axis), np.uint8 if zero is None else zero.dtype)
        return (y,)


class DequantizeLinear(_Contrib):
    def _run(self, x: Array, scale: Array, zero: Any = None, axis: int | None = None) -> tuple[Array]:
        return (_floats(x, _along(scale, x, axis), _along(zero, x, axis)),)


# --- products of quantized matrices


def _bits(x: Array, bits: int) -> Array:
    """Numbers from bytes along the last axis, the lower bits first."""
    parts = [(x >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(*x.shape[:-1], -1)


class MatMulNBits(_Contrib):
    def _run(
        self,
        a: Array,
        b: Array,
        scales: Array,
        zeros: Any = None,
        groups: Any = None,
        bias: Any = None,
        K: int = 0,
        N: int = 0,
        block_size: int = 16,
        bits: int = 4,
        accuracy_level: int = 0,
        weight_prepacked: int = 0,
    ) -> tuple[Array]:
        blocks = -(-K // block_size)
        columns = _bits(b.reshape(N, -1), bits)[:, :K].astype(a.dtype)
        owner = np.arange(K) // block_size if groups is None else groups
        if zeros is None:
            zero: Any = np.full((N, blocks), 2 ** (bits - 1))
        else:
            zero = _bits(zeros.reshape(N, -1), bits) if zeros.dtype == np.uint8 else zeros.reshape(N, blocks)
        weight = (columns - zero[:, owner].astype(a.dtype)) * scales.reshape(N, blocks)[:, owner]
        return (_same(a @ weight.T + (0 if bias is None else bias), a),)


class GatherBlockQuantized(_Contrib):
    def _run(
        self,
        data: Array,
        indices: Array,
        scales: Array,
        zeros: Any = None,
        bits: int = 4,
        block_size: int = 128,
        gather_axis: int = 0,
        quantize_axis: int = 1,
    ) -> tuple[Array]:
        packed = data.dtype == np.uint8
        numbers = _bits(data, bits) if packed else data.astype(np.int64)
        zero: Any = 2 ** (bits - 1) if packed else 0
        if zeros is not None:
            zero = _bits(zeros, bits) if packed else zeros.astype(np.int64)
        owner = np.arange(numbers.shape[quantize_axis]) // block_size
        zero = zero if zeros is None else np.take(zero, owner, quantize_axis)
        table = (numbers.astype(scales.dtype) - zero) * np.take(scales, owner, quantize_axis)
        axis, count = gather_axis % data.ndim, numbers.shape[gather_axis]
        y = np.take(table, indices % count, axis)
        inside = (indices >= -count) & (indices < count)
        return (_same(y * inside.reshape(inside.shape + (1,) * (data.ndim - 1 - axis)), scales),)


class MatMulIntegerToFloat(_Contrib):
    def _run(
        self, a: Array, b: Array, sa: Array, sb: Array, za: Any = None, zb: Any = None, bias: Any = None
    ) -> tuple[Array]:
        return (_floats(a, sa, za) @ _floats(b, sb, zb) + (0 if bias is None else bias),)


class DynamicQuantizeMatMul(_Contrib):
    def _run(self, a: Array, b: Array, sb: Array, zb: Any = None, bias: Any = None) -> tuple[Array]:
        low, high = min(a.min(), 0), max(a.max(), 0)
        scale = np.asarray((high - low) / 255 or 1, a.dtype)
        zero = np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8)
        rounded = _floats(_integers(a, scale, zero, np.uint8), scale, zero)
        return (_same(rounded @ _floats(b, sb, zb) + (0 if bias is None else bias), a),)


class QGemm(_Contrib):
    def _run(
        self,
        a: Array,
        sa: Array,
        za: Array,
        b: Array,
        sb: Array,
        zb: Array,
        c: Any = None,
        s: Any = None,
        z: Any = None,
        alpha: float = 1.0,
        transA: int = 0,
        transB: int = 0,
    ) -> tuple[Array]:
        left = a.T.astype(np.int64) - za if transA else a.astype(np.int64) - za
        right = (b.T if transB else b).astype(np.int64) - zb
        y = (left @ right + (0 if c is None else c)) * (sa * sb * alpha)
        return (y.astype(sa.dtype) if s is None else _integers(y, s, z, z.dtype),)


class MulInteger(_Contrib):
    def _run(self, a: Array, za: Any, b: Array, zb: Any = None) -> tuple[Array]:
        return ((a.astype(np.int32) - (0 if za is None else za)) * (b.astype(np.int32) - (0 if zb is None else zb)),)


class MatMulInteger16(_Contrib):
    def _run(self, a: Array, b: Array) -> tuple[Array]:
        kind = np.uint32 if a.dtype.kind == b.dtype.kind == "u" else np.int32
        return ((a.astype(np.int64) @ b.astype(np.int64)).astype(kind),)


class ReduceSumInteger(_Contrib):
    def _run(self, x: Array, axes: Any, keepdims: int) -> tuple[Array]:
        kind = np.uint32 if x.dtype.kind == "u" else np.int32
        return (x.sum(tuple(axes), keepdims=bool(keepdims), dtype=kind),)


# --- the others


class Trilu(_Contrib):
    def _run(self, x: Array, k: Any = None, upper: int = 1) -> tuple[Array]:
        return ((np.triu if upper else np.tril)(x, 0 if k is None else int(k.item())),)


class Unique(_Contrib):
    def _run(self, x: Array) -> tuple[Array, ...]:
        seen: dict[Any, int] = {}
        index = np.array([seen.setdefault(v, len(seen)) for v in x.tolist()], np.int64)
        return np.array(list(seen), x.dtype), index, np.bincount(index, minlength=len(seen)).astype(np.int64)


class Pad(_Contrib):
    def _run(self, x: Array, pads: Array, value: Any = None, mode: str = "constant") -> tuple[Array]:
        ends = pads.reshape(2, -1).T
        cut = tuple(slice(max(-a, 0), x.shape[i] - max(-b, 0)) for i, (a, b) in enumerate(ends))
        wider = np.maximum(ends, 0)
        if mode == "constant":
            return (np.pad(x[cut], wider, constant_values=0 if value is None else value.item()),)
        return (np.pad(x[cut], wider, mode="edge" if mode == "edge" else "reflect"),)


class ExpandDims(_Contrib):
    def _run(self, x: Array, axis: Array) -> tuple[Array]:
        return (np.expand_dims(x, int(axis.item())),)


class GatherND(_Contrib):
    def _run(self, x: Array, indices: Array) -> tuple[Array]:
        return (x[tuple(np.moveaxis(indices, -1, 0))],)


class Range(_Contrib):
    def _run(self, start: Array, end: Array, step: Any = None) -> tuple[Array]:
        return (np.arange(start.item(), end.item(), 1 if step is None else step.item()).astype(start.dtype),)


class IsAllFinite(_Contrib):
    def _run(self, *values: Array, isinf_only: int = 0, isnan_only: int = 0) -> tuple[Array]:
        bad = np.isinf if isinf_only else np.isnan if isnan_only else lambda x: ~np.isfinite(x)
        return (np.array(not any(bad(x).any() for x in values)),)


class Rfft(_Contrib):
    def _run(self, x: Array, signal_ndim: int = 1, normalized: int = 0, onesided: int = 1) -> tuple[Array]:
        y = np.fft.rfft(x)
        return (_same(np.stack((y.real, y.imag), -1), x),)


class Irfft(_Contrib):
    def _run(self, x: Array, signal_ndim: int = 1, normalized: int = 0, onesided: int = 1) -> tuple[Array]:
        return (_same(np.fft.irfft(x[..., 0] + 1j * x[..., 1]), x),)


class Inverse(_Contrib):
    def _run(self, x: Array) -> tuple[Array]:
        return (_same(np.linalg.inv(x), x),)


class CropAndResize(_Contrib):
    def _run(
        self,
        x: Array,
        boxes: Array,
        images: Array,
        target: Array,
        mode: str = "bilinear",
        extrapolation_value: float = 0.0,
    ) -> tuple[Array]:
        rows, columns = (int(n) for n in target)
        y = np.full((len(boxes), x.shape[1], rows, columns), extrapolation_value, x.dtype)
        for n, i, j in np.ndindex(len(boxes), rows, columns):
            at = []
            for k, (index, count) in enumerate(((i, rows), (j, columns))):
                low, high, end = boxes[n, k], boxes[n, k + 2], x.shape[2 + k] - 1
                at.append(low * end + index * (high - low) * end / (count - 1) if count > 1 else (low + high) / 2 * end)
            if not (0 <= at[0] <= x.shape[2] - 1 and 0 <= at[1] <= x.shape[3] - 1):
                continue
            image = x[images[n]]
            if mode == "nearest":
                y[n, :, i, j] = image[:, math.floor(at[0] + 0.5), math.floor(at[1] + 0.5)]
                continue
            (top, bottom), (left, right) = ((math.floor(p), math.ceil(p)) for p in at)
            down, across = at[0] - top, at[1] - left
            y[n, :, i, j] = (1 - down) * ((1 - across) * image[:, top, left] + across * image[:, top, right]) + down * (
                (1 - across) * image[:, bottom, left] + across * image[:, bottom, right]
            )
        return (y,)


class MoE(_Contrib):
    def _run(
        self,
        x: Array,
        router: Array,
        w1: Array,
        b1: Any,
        w2: Array,
        b2: Any = None,
        w3: Any = None,
        b3: Any = None,
        k: int = 1,
        activation_type: str = "relu",
        normalize_routing_weights: int = 0,
        use_sparse_mixer: int = 0,
        swiglu_fusion: int = 0,
        activation_alpha: float = 1.0,
        activation_beta: float = 0.0,
        swiglu_limit: float = math.inf,
    ) -> tuple[Array]:
        tokens, shares = x.reshape(-1, x.shape[-1]), _softmax(router)
        y = np.zeros_like(tokens)
        for t, token in enumerate(tokens):
            best = np.argsort(-shares[t], kind="stable")[:k]
            total = shares[t, best].sum() if normalize_routing_weights else 1
            for e in best:
                hidden = w1[e] @ token + (0 if b1 is None else b1[e])
                if activation_type == "swiglu":
                    half = len(hidden) // 2
                    gate, linear = (
                        (hidden[0::2], hidden[1::2]) if swiglu_fusion == 1 else (hidden[:half], hidden[half:])
                    )
                    gate, linear = np.minimum(gate, swiglu_limit), np.clip(linear, -swiglu_limit, swiglu_limit)
                    hidden = gate * _sigmoid(activation_alpha * gate) * (linear + activation_beta)
                elif activation_type == "relu":
                    hidden = np.maximum(hidden, 0)
                elif activation_type == "gelu":
                    hidden = _fast_gelu(hidden)
                elif activation_type == "silu":
                    hidden = hidden * _sigmoid(hidden)
                y[t] += shares[t, e] / total * (w2[e] @ hidden + (0 if b2 is None else b2[e]))
        return (y.reshape(x.shape),)
