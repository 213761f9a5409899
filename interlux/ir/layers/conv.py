"""Convolution and pooling over any number of spatial axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..errors import InvalidModelError
from ..interpreter import Interpreter, Value
from ..layer import Layer, positive, uniform
from ..trees import Tree
from .basic import Operator

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Conv(Layer):
    """A convolution (cross-correlation), channels first.

    Arguments:
        in_channels, out_channels: both multiples of `groups`.
        kernel: size along each spatial axis.
        strides, dilations: along each spatial axis; () means 1.
        pads: zeros at the begin of every spatial axis, then at the end of every one (ONNX's order); () means 0.
        groups: independent groups of channels; in_channels for a depthwise convolution.
        use_bias: whether there is a bias.

    Inputs: x [batch, in_channels, *spatial]
    Returns: [batch, out_channels, *spatial']
    Parameters: weight [out_channels, in_channels / groups, *kernel], bias [out_channels]

    Source: ONNX Conv, aten.conv1d, conv2d, conv3d.
    """

    in_channels: int
    out_channels: int
    kernel: Ints
    strides: Ints = ()
    pads: Ints = ()
    dilations: Ints = ()
    groups: int = 1
    use_bias: bool = True

    def __post_init__(self) -> None:
        positive("Conv", in_channels=self.in_channels, out_channels=self.out_channels, groups=self.groups)
        if not isinstance(self.kernel, tuple | list) or not self.kernel:
            raise InvalidModelError(f"Conv: kernel must be a tuple such as (3, 3), not {self.kernel!r}")
        n = len(self.kernel)
        object.__setattr__(self, "kernel", tuple(self.kernel))
        for name, length in (("strides", n), ("dilations", n), ("pads", 2 * n)):
            value = getattr(self, name) or ((0,) if name == "pads" else (1,)) * length
            object.__setattr__(self, name, tuple(value))
            if len(value) != length:
                raise InvalidModelError(f"Conv: {name} {value} needs {length} entries for a kernel of {n} axes")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise InvalidModelError(
                f"Conv: {self.in_channels} and {self.out_channels} channels don't divide into {self.groups} groups"
            )

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {"weight": (self.out_channels, self.in_channels // self.groups, *self.kernel)}
        return shapes | ({"bias": (self.out_channels,)} if self.use_bias else {})

    def init_params(self, rng: np.random.Generator) -> Tree:
        fan_in = self.in_channels // self.groups * prod(self.kernel)
        return {name: uniform(rng, shape, fan_in) for name, shape in self.param_shapes().items()}

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        bias = params["bias"] if self.use_bias else None
        y = op.Conv(
            inputs[0],
            params["weight"],
            bias,
            kernel_shape=self.kernel,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            group=self.groups,
        )
        return y, states


def max_pool(kernel: Ints, strides: Ints = (), pads: Ints = ()) -> Operator:
    """Maximum over windows of [batch, channels, *spatial]; strides default to the kernel. ONNX MaxPool."""
    n = len(kernel)
    return Operator.of("MaxPool", kernel_shape=kernel, strides=strides or kernel, pads=pads or (0,) * 2 * n)


def mean_pool(kernel: Ints, strides: Ints = (), pads: Ints = ()) -> Operator:
    """Mean over windows, padding not counted; strides default to the kernel. ONNX AveragePool."""
    n = len(kernel)
    return Operator.of("AveragePool", kernel_shape=kernel, strides=strides or kernel, pads=pads or (0,) * 2 * n)


global_mean_pool = Operator("GlobalAveragePool")
flatten = Operator.of("Flatten", axis=1)
