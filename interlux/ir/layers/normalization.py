"""Normalisation over the batch and over features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidModelError
from ..interpreter import Interpreter, Value
from ..layer import FOLLOW, Layer, active, check_mode, positive
from ..trees import Tree


def _scale_and_shift(shapes: Mapping[str, tuple[int, ...]]) -> Tree:
    fill = {"weight": np.ones, "bias": np.zeros}
    return {name: fill[name](shape, np.float32) for name, shape in shapes.items()}


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Normalisation of each channel by the statistics of the batch (training) or by running ones (evaluation).

    Arguments:
        features: number of channels, axis 1 of the input.
        epsilon: added to the variance.
        momentum: weight of the new statistics in the running ones.
        affine: whether there are weight and bias.
        track: whether running statistics are kept; without them the batch's are always used.
        counted: whether the number of batches is kept as well.
        mode: follow | always | never: whose statistics are used (see `interlux.ir.layer`).

    Inputs: x [batch, features, ...]
    Returns: the same shape
    Parameters: weight [features], bias [features]
    States: running_mean [features], running_var [features] (unbiased, as PyTorch keeps it), num_batches_tracked, int64

    Source: ONNX BatchNormalization (which would keep the biased variance), aten.batch_norm; Ioffe & Szegedy 2015.
    """

    features: int
    epsilon: float = 1e-5
    momentum: float = 0.1
    affine: bool = True
    track: bool = True
    counted: bool = True
    mode: str = FOLLOW

    def __post_init__(self) -> None:
        check_mode(self.mode, "BatchNorm")

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.features,), "bias": (self.features,)} if self.affine else {}

    def init_params(self, rng: np.random.Generator) -> Tree:
        return _scale_and_shift(self.param_shapes())

    def init_states(self, rng: np.random.Generator) -> Tree:
        if not self.track:
            return {}
        ones, zeros = np.ones(self.features, np.float32), np.zeros(self.features, np.float32)
        counter = {"num_batches_tracked": np.zeros((), np.int64)} if self.counted else {}
        return {"running_mean": zeros, "running_var": ones, **counter}

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        (x,) = inputs
        weight = params["weight"] if self.affine else op.const(np.ones(self.features), like=x)
        bias = params["bias"] if self.affine else op.const(np.zeros(self.features), like=x)
        if self.track and not active(self.mode, train):
            mean, variance = states["running_mean"], states["running_var"]
            return op.BatchNormalization(x, weight, bias, mean, variance, epsilon=self.epsilon), states

        rank = op.rank_of(x)
        axes = op.ints(0, *range(2, rank))
        column = op.ints(-1, *(1,) * (rank - 2))  # a vector over channels, shaped to broadcast against x
        mean = op.ReduceMean(x, axes, keepdims=1)
        centred = op.Sub(x, mean)
        variance = op.ReduceMean(op.Mul(centred, centred), axes, keepdims=1)
        scaled = op.Div(centred, op.Sqrt(op.Add(variance, op.const(self.epsilon, like=x))))
        y = op.Add(op.Mul(scaled, op.Reshape(weight, column)), op.Reshape(bias, column))
        if not self.track:
            return y, states

        vector = op.ints(-1)
        shape = op.shape_of(x)
        if shape is not None and shape[0] == 1 and all(size == 1 for size in shape[2:]):
            raise InvalidModelError(
                f"BatchNorm in training needs more than one value per channel, not {shape}{op.where()}"
            )
        wide = np.promote_types(op.dtype_of(variance), np.float32)  # half precision has no numbers above 65504
        count = op.cast(op.Div(op.Size(x), op.ints(self.features)), wide)
        factor = op.cast(op.Div(count, op.Sub(count, op.const(np.ones((), wide)))), op.dtype_of(variance))
        unbiased = op.Mul(op.Reshape(variance, vector), factor)
        new = {
            "running_mean": self._mix(op, states["running_mean"], op.Reshape(mean, vector)),
            "running_var": self._mix(op, states["running_var"], unbiased),
        }
        if self.counted:
            new["num_batches_tracked"] = op.Add(states["num_batches_tracked"], op.const(np.array(1, np.int64)))
        return y, new

    def _mix(self, op: Interpreter, old: Value, new: Value) -> Value:
        kept = op.Mul(old, op.const(1 - self.momentum, like=old))
        return op.Add(kept, op.Mul(op.StopGradient(new), op.const(self.momentum, like=old)))


@dataclass(frozen=True)
class LayerNorm(Layer):
    """Normalisation of each sample over its last axes.

    Arguments:
        shape: sizes of the axes that are normalised over, the last ones of the input.
        epsilon: added to the variance.
        affine: whether there is a weight.
        use_bias: whether there is a bias; needs a weight.

    Inputs: x [..., *shape]
    Returns: the same shape
    Parameters: weight [*shape], bias [*shape]

    Source: ONNX LayerNormalization, aten.layer_norm; Ba, Kiros & Hinton 2016.
    """

    shape: tuple[int, ...]
    epsilon: float = 1e-5
    affine: bool = True
    use_bias: bool = True

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        names = ("weight", "bias") if self.affine and self.use_bias else ("weight",) if self.affine else ()
        return dict.fromkeys(names, self.shape)

    def init_params(self, rng: np.random.Generator) -> Tree:
        return _scale_and_shift(self.param_shapes())

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        (x,) = inputs
        weight = params["weight"] if self.affine else op.const(np.ones(self.shape), like=x)
        bias = params["bias"] if "bias" in self.param_shapes() else None
        return op.LayerNormalization(x, weight, bias, axis=-len(self.shape), epsilon=self.epsilon), states


@dataclass(frozen=True)
class GroupNorm(Layer):
    """Normalisation of each sample over groups of channels and all further axes.

    Arguments:
        groups: of equally many channels.
        features: number of channels, axis 1 of the input.
        epsilon: added to the variance.
        affine: whether there is a weight.
        use_bias: whether there is a bias; needs a weight.

    Inputs: x [batch, features, ...]
    Returns: the same shape
    Parameters: weight [features], bias [features]

    Source: ONNX GroupNormalization, aten.group_norm; Wu & He 2018.
    """

    groups: int
    features: int
    epsilon: float = 1e-5
    affine: bool = True
    use_bias: bool = True

    def __post_init__(self) -> None:
        positive("GroupNorm", groups=self.groups, features=self.features)
        if self.features % self.groups:
            raise InvalidModelError(f"GroupNorm: {self.features} channels don't divide into {self.groups} groups")

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        names = ("weight", "bias") if self.affine and self.use_bias else ("weight",) if self.affine else ()
        return dict.fromkeys(names, (self.features,))

    def init_params(self, rng: np.random.Generator) -> Tree:
        return _scale_and_shift(self.param_shapes())

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        (x,) = inputs
        names = self.param_shapes()
        weight = params["weight"] if "weight" in names else op.const(np.ones(self.features), like=x)
        bias = params["bias"] if "bias" in names else op.const(np.zeros(self.features), like=x)
        return op.GroupNormalization(x, weight, bias, num_groups=self.groups, epsilon=self.epsilon), states


@dataclass(frozen=True)
class InstanceNorm(Layer):
    """Normalisation of each channel of each sample by its own statistics, or by running ones in evaluation.

    Arguments:
        features: number of channels, axis 1 of the input.
        epsilon: added to the variance.
        momentum: weight of the new statistics in the running ones.
        affine: whether there are weight and bias.
        track: whether running statistics are kept; without them each sample's own are always used.
        mode: follow | always | never: when each sample's own statistics are used in place of running ones.

    Inputs: x [batch, features, ...]
    Returns: the same shape
    Parameters: weight [features], bias [features]
    States: running_mean [features], running_var [features]: means over the samples, unbiased, as PyTorch keeps them

    Source: ONNX InstanceNormalization (which keeps no statistics), aten.instance_norm; Ulyanov et al. 2016.
    """

    features: int
    epsilon: float = 1e-5
    momentum: float = 0.1
    affine: bool = True
    track: bool = False
    mode: str = FOLLOW

    def __post_init__(self) -> None:
        check_mode(self.mode, "InstanceNorm")
        positive("InstanceNorm", features=self.features)

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.features,), "bias": (self.features,)} if self.affine else {}

    def init_params(self, rng: np.random.Generator) -> Tree:
        return _scale_and_shift(self.param_shapes())

    def init_states(self, rng: np.random.Generator) -> Tree:
        ones, zeros = np.ones(self.features, np.float32), np.zeros(self.features, np.float32)
        return {"running_mean": zeros, "running_var": ones} if self.track else {}

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        (x,) = inputs
        weight = params["weight"] if self.affine else op.const(np.ones(self.features), like=x)
        bias = params["bias"] if self.affine else op.const(np.zeros(self.features), like=x)
        if self.track and not active(self.mode, train):
            mean, variance = states["running_mean"], states["running_var"]
            return op.BatchNormalization(x, weight, bias, mean, variance, epsilon=self.epsilon), states
        y = op.InstanceNormalization(x, weight, bias, epsilon=self.epsilon)
        return y, self._updated(op, states, op.StopGradient(x)) if self.track else states

    def _updated(self, op: Interpreter, states: Mapping[str, Any], x: Value) -> Mapping[str, Any]:
        """The running statistics after one more batch x."""
        rank = op.rank_of(x)
        kind = op.dtype_of(states["running_mean"])
        x, spatial, samples = op.cast(x, kind), op.ints(*range(2, rank)), op.ints(0)
        mean = op.ReduceMean(x, spatial, keepdims=1)
        centred = op.Sub(x, mean)
        total = op.ReduceSum(op.Mul(centred, centred), spatial, keepdims=0)
        count = op.ReduceProd(op.Shape(x, start=2, end=rank), None, keepdims=0)
        degrees = op.cast(op.Sub(count, op.const(np.array(1, np.int64))), kind)
        new = {
            "running_mean": op.ReduceMean(op.Squeeze(mean, spatial), samples, keepdims=0),
            "running_var": op.ReduceMean(op.Div(total, degrees), samples, keepdims=0),
        }

        def mixed(name: str) -> Value:
            kept = op.Mul(states[name], op.const(np.asarray(1 - self.momentum, kind)))
            return op.Add(kept, op.Mul(new[name], op.const(np.asarray(self.momentum, kind))))

        return {name: mixed(name) for name in new}


@dataclass(frozen=True)
class RMSNorm(Layer):
    """Division of each sample by the root of the mean square over its last axes.

    Arguments:
        shape: sizes of the axes that are normalised over, the last ones of the input.
        epsilon: added to the mean square.
        affine: whether there is a weight.

    Inputs: x [..., *shape]
    Returns: the same shape
    Parameters: weight [*shape]

    Source: ONNX RMSNormalization, aten.rms_norm; Zhang & Sennrich 2019.
    """

    shape: tuple[int, ...]
    epsilon: float = 1e-5
    affine: bool = True

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": self.shape} if self.affine else {}

    def init_params(self, rng: np.random.Generator) -> Tree:
        return _scale_and_shift(self.param_shapes())

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        (x,) = inputs
        weight = params["weight"] if self.affine else op.const(np.ones(self.shape), like=x)
        return op.RMSNormalization(x, weight, axis=-len(self.shape), epsilon=self.epsilon), states
