"""The operators that are layers: they stay whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ....ir import layers as ir
from ....ir.errors import UnsupportedError
from ....ir.layers.random import Dropout
from ...builder import Value
from ..builder import TorchBuilder
from .registry import aten

Ints = Sequence[int]


def _sizes(op: TorchBuilder, value: Value, what: str) -> tuple[int, ...]:
    """The static shape of a weight."""
    if value.shape is None or not all(isinstance(s, int) for s in value.shape):
        raise UnsupportedError(f"{what} of unknown shape{op.where()}")
    return tuple(int(s) for s in value.shape if isinstance(s, int))


@aten("linear")
def linear(op: TorchBuilder, x: Value, weight: Value, bias: Value | None = None) -> Value:
    outs, ins = _sizes(op, weight, "a linear layer's weight")
    return op.add(ir.Dense(ins, outs, bias is not None), x, params={"weight": weight, "bias": bias})


def _all_axes(value: int | Ints, n: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values


@aten("conv1d", "conv2d", "conv3d")
def conv(
    op: TorchBuilder,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Ints = (1,),
    padding: Ints = (0,),
    dilation: Ints = (1,),
    groups: int = 1,
) -> Value:
    return _conv(op, x, weight, bias, stride, lambda _, n: _all_axes(padding, n) * 2, dilation, groups)


@aten("conv1d.padding", "conv2d.padding", "conv3d.padding")
def conv_named_padding(
    op: TorchBuilder,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Ints = (1,),
    padding: str = "valid",
    dilation: Ints = (1,),
    groups: int = 1,
) -> Value:
    def pads(kernel: Ints, n: int) -> tuple[int, ...]:
        reach = [d * (k - 1) if padding == "same" else 0 for d, k in zip(_all_axes(dilation, n), kernel, strict=True)]
        begin = [r // 2 for r in reach]  # of an odd number, torch pads the end more
        return (*begin, *(r - b for r, b in zip(reach, begin, strict=True)))

    return _conv(op, x, weight, bias, stride, pads, dilation, groups)


def _conv(
    op: TorchBuilder,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Ints,
    pads: Callable[[Ints, int], tuple[int, ...]],
    dilation: Ints,
    groups: int,
) -> Value:
    outs, ins, *kernel = _sizes(op, weight, "a convolution's weight")
    n = len(kernel)
    strides, dilations = _all_axes(stride, n), _all_axes(dilation, n)
    layer = ir.Conv(ins * groups, outs, tuple(kernel), strides, pads(kernel, n), dilations, groups, bias is not None)
    return _with_batch(op, x, n, lambda x: op.add(layer, x, params={"weight": weight, "bias": bias}))


@aten("embedding")
def embedding(
    op: TorchBuilder, weight: Value, indices: Value, padding: int = -1, scale: bool = False, sparse: bool = False
) -> Value:
    if scale:
        raise UnsupportedError(f"embedding with gradients scaled by frequency{op.where()}")
    rows, features = _sizes(op, weight, "an embedding's weight")
    layer = ir.Embedding(rows, features, padding if padding >= 0 else None)
    return op.add(layer, indices, params={"weight": weight}, dtype=weight.dtype)


@aten("batch_norm")
def batch_norm(
    op: TorchBuilder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    var: Value | None,
    training: bool,
    momentum: float,
    epsilon: float,
    cudnn: bool,
) -> Value:
    features = (x.shape or (None, None))[1]
    if not isinstance(features, int):
        raise UnsupportedError(f"batch_norm over an unknown number of channels{op.where()}")
    if (weight is None) != (bias is None):
        raise UnsupportedError(f"batch_norm with only one of weight and bias{op.where()}")
    track = mean is not None
    counter = op.batch_counter(mean)
    layer = ir.BatchNorm(features, epsilon, momentum, weight is not None, track, counter is not None, op.mode(training))
    states = {"running_mean": mean, "running_var": var, "num_batches_tracked": counter}
    return op.add(layer, x, params={"weight": weight, "bias": bias}, states=states)


@aten("layer_norm")
def layer_norm(
    op: TorchBuilder,
    x: Value,
    shape: Ints,
    weight: Value | None = None,
    bias: Value | None = None,
    epsilon: float = 1e-5,
    cudnn: bool = True,
) -> Value:
    if weight is None and bias is not None:
        raise UnsupportedError(f"layer_norm with a bias but no weight{op.where()}")
    if weight is not None and weight.dtype != x.dtype:
        raise UnsupportedError(f"layer_norm of {x.dtype} with a weight of {weight.dtype}; cast one of them{op.where()}")
    layer = ir.LayerNorm(tuple(shape), epsilon, weight is not None, bias is not None)
    return op.add(layer, x, params={"weight": weight, "bias": bias})


@aten("group_norm")
def group_norm(
    op: TorchBuilder,
    x: Value,
    groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    epsilon: float = 1e-5,
    cudnn: bool = True,
) -> Value:
    features = (x.shape or (None, None))[1]
    if not isinstance(features, int):
        raise UnsupportedError(f"group_norm over an unknown number of channels{op.where()}")
    one = op.ConstantOfShape(op.ints(features), value=np.ones(1, x.dtype)) if weight is None else weight
    zero = op.ConstantOfShape(op.ints(features), value=np.zeros(1, x.dtype)) if bias is None else bias
    return op.GroupNormalization(x, one, zero, num_groups=groups, epsilon=epsilon)


@aten("rms_norm")
def rms_norm(
    op: TorchBuilder, x: Value, shape: Ints, weight: Value | None = None, epsilon: float | None = None
) -> Value:
    if weight is None:
        weight = op.ConstantOfShape(op.ints(*shape), value=np.ones(1, x.dtype))
    return op.RMSNormalization(
        x, weight, axis=-len(shape), epsilon=float(np.finfo(x.dtype).eps) if epsilon is None else epsilon
    )


@aten("dropout", "feature_dropout")
def dropout(op: TorchBuilder, x: Value, probability: float, training: bool) -> Value:
    if "feature" in op.operator:
        raise UnsupportedError(f"dropout of whole channels{op.where()}")
    return op.add(Dropout(probability, op.mode(training)), x, states={"seed": op.seed})


@aten("scaled_dot_product_attention")
def attention(
    op: TorchBuilder,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None = None,
    probability: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    groups = 1
    if enable_gqa:
        heads, shared = (query.shape or ())[-3], (key.shape or ())[-3]
        if not isinstance(heads, int) or not isinstance(shared, int):
            raise UnsupportedError(f"grouped attention over an unknown number of heads{op.where()}")
        groups = heads // shared
    masked = "none" if mask is None else "bool" if mask.dtype == bool else "float"
    # the probability as in training, even if evaluation passes 0
    rate, mode = op.dropout_rate(probability)
    layer = ir.Attention(scale, causal, masked, groups, rate, mode)
    arguments = [query, key, value] + ([mask] if mask is not None else [])
    return op.add(layer, *arguments, states={"seed": op.seed} if rate else None)


@aten("lstm.input")
def lstm(
    op: TorchBuilder,
    x: Value,
    initial: Sequence[Value],
    weights: Sequence[Value],
    has_biases: bool,
    num_layers: int,
    probability: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Value, ...]:
    directions = 2 if bidirectional else 1
    if len(weights) != num_layers * directions * (4 if has_biases else 2):
        raise UnsupportedError(f"LSTM with projections{op.where()}")
    features, hidden = (x.shape or (None,))[-1], (initial[0].shape or (None,))[-1]
    if not isinstance(features, int) or not isinstance(hidden, int) or op.rank_of(x) != 3:
        raise UnsupportedError(f"LSTM needs a batch of sequences with a known number of features{op.where()}")
    layer = ir.LSTM(
        features, hidden, num_layers, bidirectional, batch_first, has_biases, probability, op.mode(training)
    )
    params = dict(zip(layer.param_shapes(), weights, strict=True))
    states = {"seed": op.seed} if layer.drops else None
    return op.add(layer, x, *initial, params=params, states=states, outputs=3)


def _with_batch(op: TorchBuilder, x: Value, spatial: int, layer: Callable[[Value], Value]) -> Value:
    """A layer over [batch, channels, *spatial] applied to x, which may lack the batch."""
    if op.rank_of(x) == spatial + 2:
        return layer(x)
    lifted = op.named(op.Unsqueeze(x, op.ints(0)), "", (1, *(x.shape or ())))
    return op.Squeeze(layer(lifted), op.ints(0))


def _window(
    op: TorchBuilder, x: Value, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil: bool
) -> dict[str, Any]:
    """The attributes of a pooling; those at their defaults are left out, because older opsets lack some."""
    n = op.spatial_rank
    kernels, dilations = _all_axes(kernel, n), _all_axes(dilation, n)
    strides, pads = _all_axes(stride or kernel, n), _all_axes(padding, n)
    window: dict[str, Any] = {"kernel_shape": kernels, "strides": strides, "pads": pads * 2}
    if any(d != 1 for d in dilations):
        window["dilations"] = dilations
    made, sizes = op.result.shape[-n:], (x.shape or ())[-n:]
    floor = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1 if isinstance(size, int) else None
        for size, k, s, p, d in zip(sizes, kernels, strides, pads, dilations, strict=True)
    ]
    if ceil and floor != list(made):  # where rounding up adds no window, it need not be said
        window["ceil_mode"] = 1
    return window


@aten("max_pool1d", "max_pool2d", "max_pool3d")
def max_pool(
    op: TorchBuilder,
    x: Value,
    kernel: Ints,
    stride: Ints = (),
    padding: Ints = (0,),
    dilation: Ints = (1,),
    ceil: bool = False,
) -> Value:
    window = _window(op, x, kernel, stride, padding, dilation, ceil)
    return _with_batch(op, x, op.spatial_rank, lambda x: op.MaxPool(x, **window))


@aten("avg_pool1d", "avg_pool2d", "avg_pool3d")
def avg_pool(
    op: TorchBuilder,
    x: Value,
    kernel: Ints,
    stride: Ints = (),
    padding: Ints = (0,),
    ceil: bool = False,
    count_pads: bool = True,
    divisor: int | None = None,
) -> Value:
    if divisor is not None:
        raise UnsupportedError(f"average pooling with a divisor of its own{op.where()}")
    window = _window(op, x, kernel, stride, padding, (1,), ceil)
    return _with_batch(op, x, op.spatial_rank, lambda x: op.AveragePool(x, **window, count_include_pad=int(count_pads)))


@aten("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def adaptive_avg_pool(op: TorchBuilder, x: Value, size: Ints) -> Value:
    n = op.spatial_rank
    wanted, have = tuple(op.result.shape[-n:]), (x.shape or ())[-n:]
    if all(isinstance(w, int) and w == 1 for w in wanted):
        return _with_batch(op, x, n, op.GlobalAveragePool)
    ratios = tuple(
        h // w if isinstance(h, int) and isinstance(w, int) and h % w == 0 else 0
        for h, w in zip(have, wanted, strict=True)
    )
    if not all(ratios):
        raise UnsupportedError(f"adaptive pooling of {have} to {tuple(size)}: windows of unequal size{op.where()}")
    return _with_batch(op, x, op.spatial_rank, lambda x: op.AveragePool(x, kernel_shape=ratios, strides=ratios))
