"""Activations, additions, products and convolutions that are fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .common import Array, Contrib, activated, convolved, fast_gelu, gelu, same, sigmoid, softmax, to_first, to_last


class Gelu(Contrib):
    def _run(self, x: Array) -> tuple[Array]:
        return (gelu(x),)


class BiasGelu(Contrib):
    def _run(self, x: Array, bias: Array) -> tuple[Array]:
        return (gelu(x + bias),)


class FastGelu(Contrib):
    def _run(self, x: Array, bias: Array | None = None) -> tuple[Array]:
        return (same(fast_gelu(x if bias is None else x + bias), x),)


class GemmFastGelu(Contrib):
    def _run(self, x: Array, weight: Array, bias: Array | None = None) -> tuple[Array]:
        return (fast_gelu(x @ weight + (0 if bias is None else bias)),)


class QuickGelu(Contrib):
    def _run(self, x: Array, alpha: float = 1.7020000219345093) -> tuple[Array]:
        return (same(x * sigmoid(alpha * x), x),)


class BiasAdd(Contrib):
    def _run(self, x: Array, bias: Array, skip: Array) -> tuple[Array]:
        return (x + bias + skip,)


class BiasSplitGelu(Contrib):
    def _run(self, x: Array, bias: Array) -> tuple[Array]:
        y = x + bias
        half = y.shape[-1] // 2
        return (y[..., :half] * gelu(y[..., half:]),)


def _inference(training: Array | None) -> None:
    if training is not None and training.any():
        raise NotImplementedError("training")


class BiasDropout(Contrib):
    def _run(
        self, x: Array, bias: Array, residual: Any = None, ratio: Any = None, training: Any = None, seed: int = 0
    ) -> tuple[Array, ...]:
        _inference(training)
        return x + bias + (0 if residual is None else residual), np.ones(x.shape, bool)


class BitmaskBiasDropout(Contrib):
    def _run(
        self, x: Array, bias: Array, residual: Any = None, ratio: Any = None, training: Any = None, seed: int = 0
    ) -> tuple[Array]:
        _inference(training)
        return (x + bias + (0 if residual is None else residual),)


class BitmaskDropout(Contrib):
    def _run(self, x: Array, ratio: Any = None, training: Any = None, seed: int = 0) -> tuple[Array]:
        _inference(training)
        return (x,)


class BiasSoftmax(Contrib):
    def _run(self, x: Array, bias: Array, axis: int = 1, is_inner_broadcast: int = 0) -> tuple[Array]:
        axis %= x.ndim
        y = np.broadcast_to(x + bias, x.shape)
        return (softmax(y.reshape(*x.shape[:axis], -1)).reshape(x.shape),)


def _turned(x: Array, batch: int, matrix: int) -> Array:
    if x.ndim < 2:
        return x
    x = np.moveaxis(x, 0, -2) if batch else x
    return np.swapaxes(x, -1, -2) if matrix else x


class FusedMatMul(Contrib):
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
        return (same(alpha * (_turned(a, transBatchA, transA) @ _turned(b, transBatchB, transB)), a),)


class TransposeMatMul(FusedMatMul):
    pass


class FusedMatMulActivation(Contrib):
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
        y = activated(y, activation, activation_alpha, activation_beta, activation_gamma)
        return (same(np.moveaxis(y, -1, activation_axis), a),)


class FusedGemm(Contrib):
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
        return (same(activated(y, activation, activation_alpha, activation_beta, activation_gamma), a),)


class FusedConv(Contrib):
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
        y = convolved(x, weight, bias, auto_pad, dilations, group, kernel_shape, pads, strides)
        return (same(activated(y if residual is None else y + residual, activation, *activation_params), x),)


class NhwcFusedConv(FusedConv):
    def _run(  # type: ignore[override]  # the attributes are those of FusedConv
        self, x: Array, weight: Array, bias: Array | None = None, residual: Array | None = None, **attributes: Any
    ) -> tuple[Array]:
        added = None if residual is None else to_first(residual)
        (y,) = super()._run(to_first(x), weight, bias, added, **attributes)
        return (to_last(y),)


class NhwcConv(NhwcFusedConv):
    pass


class ComplexMul(Contrib):
    def _run(self, a: Array, b: Array) -> tuple[Array]:
        y = (a[..., 0] + 1j * a[..., 1]) * (b[..., 0] + 1j * b[..., 1])
        return (same(np.stack((y.real, y.imag), -1), a),)


class ComplexMulConj(Contrib):
    def _run(self, a: Array, b: Array) -> tuple[Array]:
        y = (a[..., 0] + 1j * a[..., 1]) * (b[..., 0] - 1j * b[..., 1])
        return (same(np.stack((y.real, y.imag), -1), a),)


class CDist(Contrib):
    def _run(self, a: Array, b: Array, metric: str = "sqeuclidean") -> tuple[Array]:
        squares = ((a[:, None] - b[None]) ** 2).sum(-1)
        return (np.sqrt(squares) if metric == "euclidean" else squares,)


class TorchEmbedding(Contrib):
    def _run(self, table: Array, indices: Array, padding: Any = None, by_frequency: Any = None) -> tuple[Array]:
        return (table[indices],)


class UnfoldTensor(Contrib):
    def _run(self, x: Array, size: int, dim: int = -1, step: int = 1) -> tuple[Array]:
        windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=dim)
        return (np.take(windows, np.arange(0, windows.shape[dim % x.ndim], step), axis=dim % x.ndim),)
