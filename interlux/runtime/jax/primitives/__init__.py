"""The ONNX operators on JAX: one small function each, named like the operator.

A function takes the inputs by position (None = absent) and the attributes by keyword, and returns a value or the tuple
of
all outputs. Values that depend on shapes and constants only are numpy arrays and stay so: they are the static part of
the computation (sizes, axes, pads). All others are JAX values.
"""

from .registry import PRIMITIVES

from . import spectral  # isort: skip

from . import elementwise, linear, neural, recurrent, reductions, shaping  # isort: skip  # they fill the table
from . import attention, convolution, pooling, resizing, sampling, vision  # isort: skip

__all__ = ["PRIMITIVES", "elementwise", "linear", "neural", "recurrent", "reductions", "shaping"]
__all__ += ["attention", "convolution", "pooling", "resizing", "sampling", "vision"]
