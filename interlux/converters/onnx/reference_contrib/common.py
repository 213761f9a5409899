"""What the references of onnxruntime's own operators share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv import _conv_implementation

Array = np.ndarray
CONTRIB_OPS: list[type[OpRun]] = []
_erf = np.vectorize(math.erf, otypes=[np.float64])


class Contrib(OpRun):
    op_domain = "com.microsoft"

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if not cls.__name__.startswith("_"):
            CONTRIB_OPS.append(cls)

    def _load_attributes(self) -> None:
        self._schema = None  # the evaluator would add the attributes of ONNX's operator of the same name
        super()._load_attributes()


def gelu(x: Array) -> Array:
    return (0.5 * x * (1 + _erf(x / math.sqrt(2)).reshape(x.shape))).astype(x.dtype)


def fast_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array, axis: int = -1) -> Array:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def activated(x: Array, name: str | None, a: float = 0.0, b: float = 0.0, c: float = 0.0) -> Array:
    match name:
        case None | "":
            return x
        case "Relu":
            return np.maximum(x, 0)
        case "Sigmoid":
            return sigmoid(x)
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
            return softmax(x)
    raise NotImplementedError(f"activation {name}")


def same(y: Array, x: Array) -> Array:
    return np.asarray(y).astype(x.dtype, copy=False)


def to_first(x: Array) -> Array:
    return np.moveaxis(x, -1, 1)


def to_last(x: Array) -> Array:
    return np.moveaxis(x, 1, -1)


def convolved(
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


def rms_norm(x: Array, gamma: Array, epsilon: float) -> Array:
    return same(x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * gamma, x)


def dequantized(x: Array, scale: Array, zero: Array | None = None) -> Array:
    kind = scale.dtype if scale.dtype.kind == "f" else np.float32
    return (x.astype(kind) - (0 if zero is None else zero.astype(kind))) * scale
