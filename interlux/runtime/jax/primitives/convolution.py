"""The transposed convolution."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from ....ir.errors import InvalidModelError
from .linear import EXACT
from .registry import Value, primitive

Ints = tuple[int, ...]


def _cropped(
    sizes: Ints,
    reach: Ints,
    strides: Ints,
    output_padding: Ints,
    output_shape: Ints | None,
    pads: Ints | None,
    auto_pad: str,
) -> list[tuple[int, int]]:
    """How much of the full result is cut off at (begin, end) of every spatial axis; negative: zeros are added."""
    n = len(sizes)
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise InvalidModelError(f"unknown auto_pad {auto_pad!r}")
    if output_shape is None and auto_pad.startswith("SAME"):
        output_shape = tuple(size * stride for size, stride in zip(sizes, strides, strict=True))
    if output_shape is None:
        flat = (0,) * (2 * n) if pads is None or auto_pad == "VALID" else pads
        return [(flat[i], flat[i + n] - output_padding[i]) for i in range(n)]
    result = []
    for i in range(n):
        total = strides[i] * (sizes[i] - 1) + output_padding[i] + reach[i] - output_shape[-n:][i]
        small = max(total, 0) // 2
        begin = small if auto_pad == "SAME_UPPER" else max(total, 0) - small
        result.append((begin, total - begin - output_padding[i]))
    return result


@primitive
def ConvTranspose(
    x: Value,
    weight: Value,
    bias: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    output_padding: Ints | None = None,
    output_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Value:
    """x [batch, channels, ...], weight [channels, outputs / group, ...]: a convolution of the spread-out input."""
    n = x.ndim - 2
    kernel = tuple(weight.shape[2:])
    strides, dilations = strides or (1,) * n, dilations or (1,) * n
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    cropped = _cropped(x.shape[2:], reach, strides, output_padding or (0,) * n, output_shape, pads, auto_pad)
    channels, outputs = weight.shape[:2]
    apart = jnp.reshape(weight, (group, channels // group, outputs, *kernel))
    turned = jnp.reshape(jnp.swapaxes(apart, 1, 2), (group * outputs, channels // group, *kernel))
    y = lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.flip(turned, tuple(range(2, n + 2))),
        (1,) * n,
        [(r - 1 - begin, r - 1 - end) for r, (begin, end) in zip(reach, cropped, strict=True)],
        lhs_dilation=strides,
        rhs_dilation=dilations,
        feature_group_count=group,
        precision=EXACT,
    )
    return y if bias is None else y + jnp.reshape(bias, (1, -1) + (1,) * n)
