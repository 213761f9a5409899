"""The ONNX operators on JAX: one small function each, named like the operator.

A function takes the inputs by position (None = absent) and the attributes by keyword, and returns a value or the tuple
of all outputs. Values that depend on shapes and constants only are numpy arrays and stay so: they are the static part
of the computation (sizes, axes, pads). All others are JAX values.
"""

# Importing a module enters its functions into the table.
from . import (
    attention,
    classical,
    convolution,
    elementwise,
    linear,
    losses,
    low_precision,
    neural,
    optimizers,
    pooling,
    quantization,
    rearranging,
    recurrent,
    reductions,
    resizing,
    sampling,
    sequences,
    shaping,
    spectral,
    strings,
    vision,
)
from .registry import PRIMITIVES

__all__ = [
    "PRIMITIVES",
    "attention",
    "classical",
    "convolution",
    "elementwise",
    "linear",
    "losses",
    "low_precision",
    "neural",
    "optimizers",
    "pooling",
    "quantization",
    "rearranging",
    "recurrent",
    "reductions",
    "resizing",
    "sampling",
    "sequences",
    "shaping",
    "spectral",
    "strings",
    "vision",
]
