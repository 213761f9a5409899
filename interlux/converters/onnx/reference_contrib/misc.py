"""The others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .common import Array, Contrib, fast_gelu, same, sigmoid, softmax


class Trilu(Contrib):
    def _run(self, x: Array, k: Any = None, upper: int = 1) -> tuple[Array]:
        return ((np.triu if upper else np.tril)(x, 0 if k is None else int(k.item())),)


class Unique(Contrib):
    def _run(self, x: Array) -> tuple[Array, ...]:
        seen: dict[Any, int] = {}
        index = np.array([seen.setdefault(v, len(seen)) for v in x.tolist()], np.int64)
        return np.array(list(seen), x.dtype), index, np.bincount(index, minlength=len(seen)).astype(np.int64)


class Pad(Contrib):
    def _run(self, x: Array, pads: Array, value: Any = None, mode: str = "constant") -> tuple[Array]:
        ends = pads.reshape(2, -1).T
        cut = tuple(slice(max(-a, 0), x.shape[i] - max(-b, 0)) for i, (a, b) in enumerate(ends))
        wider = np.maximum(ends, 0)
        if mode == "constant":
            return (np.pad(x[cut], wider, constant_values=0 if value is None else value.item()),)
        return (np.pad(x[cut], wider, mode="edge" if mode == "edge" else "reflect"),)


class ExpandDims(Contrib):
    def _run(self, x: Array, axis: Array) -> tuple[Array]:
        return (np.expand_dims(x, int(axis.item())),)


class GatherND(Contrib):
    def _run(self, x: Array, indices: Array) -> tuple[Array]:
        return (x[tuple(np.moveaxis(indices, -1, 0))],)


class Range(Contrib):
    def _run(self, start: Array, end: Array, step: Any = None) -> tuple[Array]:
        return (np.arange(start.item(), end.item(), 1 if step is None else step.item()).astype(start.dtype),)


class IsAllFinite(Contrib):
    def _run(self, *values: Array, isinf_only: int = 0, isnan_only: int = 0) -> tuple[Array]:
        bad = np.isinf if isinf_only else np.isnan if isnan_only else lambda x: ~np.isfinite(x)
        return (np.array(not any(bad(x).any() for x in values)),)


class Rfft(Contrib):
    def _run(self, x: Array, signal_ndim: int = 1, normalized: int = 0, onesided: int = 1) -> tuple[Array]:
        y = np.fft.rfft(x)
        return (same(np.stack((y.real, y.imag), -1), x),)


class Irfft(Contrib):
    def _run(self, x: Array, signal_ndim: int = 1, normalized: int = 0, onesided: int = 1) -> tuple[Array]:
        return (same(np.fft.irfft(x[..., 0] + 1j * x[..., 1]), x),)


class Inverse(Contrib):
    def _run(self, x: Array) -> tuple[Array]:
        return (same(np.linalg.inv(x), x),)


class CropAndResize(Contrib):
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


class MoE(Contrib):
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
        tokens, shares = x.reshape(-1, x.shape[-1]), softmax(router)
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
                    hidden = gate * sigmoid(activation_alpha * gate) * (linear + activation_beta)
                elif activation_type == "relu":
                    hidden = np.maximum(hidden, 0)
                elif activation_type == "gelu":
                    hidden = fast_gelu(hidden)
                elif activation_type == "silu":
                    hidden = hidden * sigmoid(hidden)
                y[t] += shares[t, e] / total * (w2[e] @ hidden + (0 if b2 is None else b2[e]))
        return (y.reshape(x.shape),)
