"""Matrix products and convolutions, in full precision on every device."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.windows import Window
from .registry import Value, is_static, primitive

EXACT = lax.Precision.HIGHEST  # GPUs and TPUs would round float32 factors to fewer bits


@primitive
def MatMul(x: Value, y: Value) -> Value:
    return np.matmul(x, y) if is_static(x, y) else jnp.matmul(x, y, precision=EXACT)


@primitive
def Gemm(
    a: Value,
    b: Value,
    c: Value | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Value:
    y = MatMul(a.T if transA else a, b.T if transB else b)
    if alpha != 1:
        y = y * np.asarray(alpha, y.dtype)
    if c is None or beta == 0:
        return y
    return y + (c if beta == 1 else c * np.asarray(beta, y.dtype))


@primitive
def Einsum(*xs: Value, equation: str) -> Value:
    return jnp.einsum(equation, *xs, precision=EXACT)


@primitive
def Conv(
    x: Value,
    weight: Value,
    bias: Value | None = None,
    *,
    kernel_shape: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Value:
    window = Window.of(x.shape[2:], weight.shape[2:], strides, pads, dilations, auto_pad)
    y = lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(weight),
        window.strides,
        window.pads,
        rhs_dilation=window.dilations,
        feature_group_count=group,
        precision=EXACT,
    )
    return y if bias is None else y + bias.reshape((1, -1) + (1,) * (x.ndim - 2))
