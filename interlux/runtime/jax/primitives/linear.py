"""Matrix products and convolutions, in full precision on every device."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.errors import InvalidModelError
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


def spatial_pads(
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...] | None,
    auto_pad: str,
) -> list[tuple[int, int]]:
    """(begin, end) of every spatial axis from ONNX's `pads` or `auto_pad`."""
    n = len(kernel)
    if auto_pad in ("NOTSET", "VALID"):
        flat = (0,) * (2 * n) if pads is None or auto_pad == "VALID" else pads
        return list(zip(flat[:n], flat[n:], strict=True))
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise InvalidModelError(f"unknown auto_pad {auto_pad!r}")
    result = []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        result.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
    return result


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
    kernel = tuple(weight.shape[2:])
    strides, dilations = strides or (1,) * len(kernel), dilations or (1,) * len(kernel)
    y = lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(weight),
        strides,
        spatial_pads(x.shape[2:], kernel, strides, dilations, pads, auto_pad),
        rhs_dilation=dilations,
        feature_group_count=group,
        precision=EXACT,
    )
    return y if bias is None else y + bias.reshape((1, -1) + (1,) * len(kernel))
