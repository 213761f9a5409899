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


def _settle(layer: Any) -> None:
    """Fills the defaults of a convolution's kernel geometry in. Raises InvalidModelError for what doesn't fit."""
    name = type(layer).__name__
    positive(name, in_channels=layer.in_channels, out_channels=layer.out_channels, groups=layer.groups)
    if not isinstance(layer.kernel, tuple | list) or not layer.kernel:
        raise InvalidModelError(f"{name}: kernel must be a tuple such as (3, 3), not {layer.kernel!r}")
    n = len(layer.kernel)
    object.__setattr__(layer, "kernel", tuple(layer.kernel))
    for field, length, default in (("strides", n, 1), ("dilations", n, 1), ("pads", 2 * n, 0), ("output_pads", n, 0)):
        if not hasattr(layer, field):
            continue
        value = getattr(layer, field) or (default,) * length
        object.__setattr__(layer, field, tuple(value))
        if len(value) != length:
            raise InvalidModelError(f"{name}: {field} {value} needs {length} entries for a kernel of {n} axes")
    if layer.in_channels % layer.groups or layer.out_channels % layer.groups:
        raise InvalidModelError(
            f"{name}: {layer.in_channels} and {layer.out_channels} channels don't divide into {layer.groups} groups"
        )


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
        _settle(self)

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


@dataclass(frozen=True)
class ConvTranspose(Layer):
    """A transposed convolution (the gradient of a convolution by its input), channels first.

    Arguments:
        in_channels, out_channels: both multiples of `groups`.
        kernel: size along each spatial axis.
        strides, dilations: along each spatial axis; () means 1.
        pads: what is cut off at the begin of every spatial axis, then at the end of every one; () means 0.
        output_pads: what is added at the end of each spatial axis; () means 0.
        groups: independent groups of channels.
        use_bias: whether there is a bias.

    Inputs: x [batch, in_channels, *spatial]
    Returns: [batch, out_channels, *spatial']
    Parameters: weight [in_channels, out_channels / groups, *kernel], bias [out_channels]

    Source: ONNX ConvTranspose, aten.conv_transpose1d, conv_transpose2d, conv_transpose3d.
    """

    in_channels: int
    out_channels: int
    kernel: Ints
    strides: Ints = ()
    pads: Ints = ()
    dilations: Ints = ()
    output_pads: Ints = ()
    groups: int = 1
    use_bias: bool = True

    def __post_init__(self) -> None:
        _settle(self)

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {"weight": (self.in_channels, self.out_channels // self.groups, *self.kernel)}
        return shapes | ({"bias": (self.out_channels,)} if self.use_bias else {})

    def init_params(self, rng: np.random.Generator) -> Tree:
        fan_in = self.out_channels // self.groups * prod(self.kernel)  # as PyTorch counts it
        return {name: uniform(rng, shape, fan_in) for name, shape in self.param_shapes().items()}

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        y = op.ConvTranspose(
            inputs[0],
            params["weight"],
            params["bias"] if self.use_bias else None,
            kernel_shape=self.kernel,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            output_padding=self.output_pads,
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
