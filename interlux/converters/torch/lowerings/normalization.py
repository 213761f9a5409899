"""Normalisation over the batch, samples, channels and groups of them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from ....ir import layers as ir
from ....ir.errors import UnsupportedError
from ....ir.layer import NEVER
from ...builder import Value
from ..builder import TorchBuilder
from .registry import aten
from .spatial import Ints, channels_of


def _refuse_mixture(op: TorchBuilder, x: Value, weight: Value | None) -> None:
    if weight is not None and weight.dtype != x.dtype:
        raise UnsupportedError(
            f"{op.operator} of {x.dtype} with a weight of {weight.dtype}; cast one of them{op.where()}"
        )


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
    features = channels_of(op, x, "batch_norm")
    if (weight is None) != (bias is None):
        raise UnsupportedError(f"batch_norm with only one of weight and bias{op.where()}")
    mode = op.mode(training)
    if mode == NEVER and mean is not None and any(v is not None and v.path is None for v in (weight, bias, mean, var)):
        one = op.const(np.ones(features), like=mean) if weight is None else weight
        zero = op.const(np.zeros(features), like=mean) if bias is None else bias
        return op.BatchNormalization(x, one, zero, mean, var, epsilon=epsilon)
    counter = op.batch_counter(mean)
    layer = ir.BatchNorm(features, epsilon, momentum, weight is not None, mean is not None, counter is not None, mode)
    states = {"running_mean": mean, "running_var": var, "num_batches_tracked": counter}
    return op.add(layer, x, params={"weight": weight, "bias": bias}, states=states)


@aten("instance_norm")
def instance_norm(
    op: TorchBuilder,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    var: Value | None,
    own_statistics: bool,
    momentum: float,
    epsilon: float,
    cudnn: bool,
) -> Value:
    features = channels_of(op, x, "instance_norm")
    if (weight is None) != (bias is None):
        raise UnsupportedError(f"instance_norm with only one of weight and bias{op.where()}")
    if mean is None and any(v is not None and v.path is None for v in (weight, bias)):
        return op.InstanceNormalization(x, weight, bias, epsilon=epsilon)
    mode = op.mode(own_statistics)
    layer = ir.InstanceNorm(features, epsilon, momentum, weight is not None, mean is not None, mode)
    states = {"running_mean": mean, "running_var": var}
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
    _refuse_mixture(op, x, weight)
    layer = ir.LayerNorm(tuple(shape), epsilon, weight is not None, weight is not None and bias is not None)
    y = op.add(layer, x, params={"weight": weight, "bias": bias if weight is not None else None})
    return y if bias is None or weight is not None else op.Add(y, bias)


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
    features = channels_of(op, x, "group_norm")
    _refuse_mixture(op, x, weight)
    if weight is None and bias is not None:
        raise UnsupportedError(f"group_norm with a bias but no weight{op.where()}")
    layer = ir.GroupNorm(groups, features, epsilon, weight is not None, bias is not None)
    return op.add(layer, x, params={"weight": weight, "bias": bias})


@aten("rms_norm")
def rms_norm(
    op: TorchBuilder, x: Value, shape: Ints, weight: Value | None = None, epsilon: float | None = None
) -> Value:
    _refuse_mixture(op, x, weight)
    layer = ir.RMSNorm(tuple(shape), _smallest_step(x.dtype) if epsilon is None else epsilon, weight is not None)
    return op.add(layer, x, params={"weight": weight})


def _smallest_step(dtype: np.dtype[Any]) -> float:
    """The distance from 1 to the next number; of half precision, torch takes float32's."""
    return float(ml_dtypes.finfo(np.promote_types(dtype, np.float32)).eps)
