"""Quantised tensors and products of quantised matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from .common import Array, Contrib, activated, convolved, dequantized, same, sigmoid, softmax, to_first, to_last


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


def _integers(y: Array, scale: Array, zero: Array | None, dtype: Any) -> Array:
    limits = np.iinfo(dtype)
    steps = np.rint(y / scale) + (0 if zero is None else zero.astype(y.dtype))
    return np.clip(steps, limits.min, limits.max).astype(dtype)


class QLinearAdd(Contrib):
    def _run(self, a: Array, sa: Array, za: Any, b: Array, sb: Array, zb: Any, s: Array, z: Any = None) -> tuple[Array]:
        return (_integers(dequantized(a, sa, za) + dequantized(b, sb, zb), s, z, a.dtype),)


class QLinearMul(Contrib):
    def _run(self, a: Array, sa: Array, za: Any, b: Array, sb: Array, zb: Any, s: Array, z: Any = None) -> tuple[Array]:
        return (_integers(dequantized(a, sa, za) * dequantized(b, sb, zb), s, z, a.dtype),)


class QLinearLeakyRelu(Contrib):
    def _run(self, x: Array, sx: Array, zx: Any, s: Array, z: Any = None, alpha: float = 0.01) -> tuple[Array]:
        return (_integers(activated(dequantized(x, sx, zx), "LeakyRelu", alpha), s, z, x.dtype),)


class QLinearSigmoid(Contrib):
    def _run(self, x: Array, sx: Array, zx: Any, s: Array, z: Any = None) -> tuple[Array]:
        return (_integers(sigmoid(dequantized(x, sx, zx)), s, z, x.dtype),)


class QLinearSoftmax(Contrib):
    def _run(self, x: Array, sx: Array, zx: Any, s: Array, z: Array, opset: int, axis: int = -1) -> tuple[Array]:
        y = dequantized(x, sx, zx)
        rows = y if opset >= 13 else y.reshape(*x.shape[: axis % x.ndim], -1)
        y = softmax(rows, axis if opset >= 13 else -1).reshape(x.shape)
        return (_integers(y, s, z, x.dtype),)


class QLinearReduceMean(Contrib):
    def _run(
        self, x: Array, sx: Array, zx: Any, s: Array, z: Any = None, axes: Any = (), keepdims: int = 1
    ) -> tuple[Array]:
        y = dequantized(x, sx, zx).mean(tuple(axes) or None, keepdims=bool(keepdims))
        return (_integers(y, s, z, x.dtype),)


class QLinearGlobalAveragePool(Contrib):
    def _run(self, x: Array, sx: Array, zx: Any, s: Array, z: Any = None, channels_last: int = 0) -> tuple[Array]:
        axes = tuple(range(1, x.ndim - 1)) if channels_last else tuple(range(2, x.ndim))
        return (_integers(dequantized(x, sx, zx).mean(axes, keepdims=True), s, z, x.dtype),)


class QLinearAveragePool(Contrib):
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
        y = dequantized(x, sx, zx)
        y = to_first(y) if channels_last else y
        ones = np.ones_like(y)
        window = (np.sum, kernel_shape, auto_pad, ceil_mode, None, pads, strides)
        y = _pooled(y, *window, 0.0) / _pooled(ones, *window, float(count_include_pad))
        return (_integers(to_last(y) if channels_last else y, s, z, x.dtype),)


class QLinearConcat(Contrib):
    def _run(self, s: Array, z: Array, *parts: Array, axis: int = 0) -> tuple[Array]:
        floats = [dequantized(*parts[i : i + 3]) for i in range(0, len(parts), 3)]
        return (_integers(np.concatenate(floats, axis), s, z, z.dtype),)


class QLinearWhere(Contrib):
    def _run(
        self, condition: Array, x: Array, sx: Array, zx: Array, y: Array, sy: Array, zy: Array, s: Array, z: Array
    ) -> tuple[Array]:
        return (_integers(np.where(condition, dequantized(x, sx, zx), dequantized(y, sy, zy)), s, z, z.dtype),)


class QLinearConv(Contrib):
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
        floats = dequantized(x, sx.reshape(()), zx.reshape(()))
        added = None if bias is None else (bias * (sx.reshape(()) * sw.reshape(-1))).astype(floats.dtype)
        y = convolved(
            to_first(floats) if channels_last else floats,
            dequantized(w, sw, zw),
            added,
            auto_pad,
            dilations,
            group,
            kernel_shape,
            pads,
            strides,
        )
        return (_integers(to_last(y) if channels_last else y, s, z, z.dtype),)


class NhwcMaxPool(Contrib):
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
        wide = to_first(x).astype(np.float64)
        y = _pooled(wide, np.max, kernel_shape, auto_pad, ceil_mode, dilations, pads, strides, -np.inf)
        return (to_last(y).astype(x.dtype),)


def _along(v: Any, x: Array, axis: int | None) -> Any:
    return (
        v
        if v is None or axis is None or v.ndim == 0
        else v.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
    )


class QuantizeLinear(Contrib):
    def _run(self, x: Array, scale: Array, zero: Any = None, axis: int | None = None) -> tuple[Array]:
        y = _integers(x, _along(scale, x, axis), _along(zero, x, axis), np.uint8 if zero is None else zero.dtype)
        return (y,)


class DequantizeLinear(Contrib):
    def _run(self, x: Array, scale: Array, zero: Any = None, axis: int | None = None) -> tuple[Array]:
        return (dequantized(x, _along(scale, x, axis), _along(zero, x, axis)),)


def _bits(x: Array, bits: int) -> Array:
    """Numbers from bytes along the last axis, the lower bits first."""
    parts = [(x >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(*x.shape[:-1], -1)


class MatMulNBits(Contrib):
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
        return (same(a @ weight.T + (0 if bias is None else bias), a),)


class GatherBlockQuantized(Contrib):
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
        return (same(y * inside.reshape(inside.shape + (1,) * (data.ndim - 1 - axis)), scales),)


class MatMulIntegerToFloat(Contrib):
    def _run(
        self, a: Array, b: Array, sa: Array, sb: Array, za: Any = None, zb: Any = None, bias: Any = None
    ) -> tuple[Array]:
        return (dequantized(a, sa, za) @ dequantized(b, sb, zb) + (0 if bias is None else bias),)


class DynamicQuantizeMatMul(Contrib):
    def _run(self, a: Array, b: Array, sb: Array, zb: Any = None, bias: Any = None) -> tuple[Array]:
        low, high = min(a.min(), 0), max(a.max(), 0)
        scale = np.asarray((high - low) / 255 or 1, a.dtype)
        zero = np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8)
        rounded = dequantized(_integers(a, scale, zero, np.uint8), scale, zero)
        return (same(rounded @ dequantized(b, sb, zb) + (0 if bias is None else bias), a),)


class QGemm(Contrib):
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


class MulInteger(Contrib):
    def _run(self, a: Array, za: Any, b: Array, zb: Any = None) -> tuple[Array]:
        return ((a.astype(np.int32) - (0 if za is None else za)) * (b.astype(np.int32) - (0 if zb is None else zb)),)


class MatMulInteger16(Contrib):
    def _run(self, a: Array, b: Array) -> tuple[Array]:
        kind = np.uint32 if a.dtype.kind == b.dtype.kind == "u" else np.int32
        return ((a.astype(np.int64) @ b.astype(np.int64)).astype(kind),)


class ReduceSumInteger(Contrib):
    def _run(self, x: Array, axes: Any, keepdims: int) -> tuple[Array]:
        kind = np.uint32 if x.dtype.kind == "u" else np.int32
        return (x.sum(tuple(axes), keepdims=bool(keepdims), dtype=kind),)
