"""Normalisations, with what is added before them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from .common import Array, Contrib, rms_norm, same, sigmoid, to_first, to_last


def _layer_norm(x: Array, gamma: Array, beta: Array | None, epsilon: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * gamma
    return same(y if beta is None else y + beta, x)


class SimplifiedLayerNormalization(Contrib):
    def _run(
        self, x: Array, scale: Array, axis: int = -1, epsilon: float = 9.999999747378752e-06, stash_type: int = 1
    ) -> tuple[Array, Array]:
        axes = tuple(range(axis % x.ndim, x.ndim))
        inverse = 1 / np.sqrt((x**2).mean(axes, keepdims=True) + epsilon)
        return same(x * inverse * scale, scale), inverse


class OnnxSimplifiedLayerNormalization(SimplifiedLayerNormalization):
    """The same in ONNX's domain, where onnxruntime writes it."""

    op_domain = ""


OnnxSimplifiedLayerNormalization.__name__ = "SimplifiedLayerNormalization"  # what the evaluator goes by


class _LayerNormalization(Contrib):
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
        return same(y if bias is None else y + bias, x), mean, inverse


_LayerNormalization.__name__ = "LayerNormalization"
EARLY_OPS: list[type[OpRun]] = [_LayerNormalization]  # for models of opsets before 17


class SkipLayerNormalization(Contrib):
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
        return _layer_norm(same(total, x), gamma, beta, epsilon), x, x, same(total, x)


class SkipSimplifiedLayerNormalization(Contrib):
    def _run(
        self, x: Array, skip: Array, gamma: Array, bias: Array | None = None, epsilon: float = 9.999999960041972e-13
    ) -> tuple[Any, ...]:
        total = x + skip + (0 if bias is None else bias)
        return rms_norm(same(total, x), gamma, epsilon), x, x, same(total, x)


def _group_norm(x: Array, gamma: Array, beta: Array, groups: int, epsilon: float, activation: int) -> Array:
    """Of x with the channels last."""
    parts = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, variance = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
    y = ((parts - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * gamma + beta
    return same(y * sigmoid(y) if activation else y, x)


class GroupNorm(Contrib):
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
        y = _group_norm(x if channels_last else to_last(x), gamma, beta, groups, epsilon, activation)
        return (y if channels_last else to_first(y),)


class SkipGroupNorm(Contrib):
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


class EmbedLayerNormalization(Contrib):
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
