"""What the ATen operators mean in terms of layers and primitives: one small function each.

A lowering takes the builder, then the operator's arguments as torch passes them: tensors as builder values, numbers and
sizes as Python ones. `op.result` is torch's description of the result.
"""

from .registry import LOWERINGS, Mode

from . import creation, indexing, layers, pointwise, reductions, shapes  # isort: skip  # they fill the table

__all__ = ["LOWERINGS", "Mode", "creation", "indexing", "layers", "pointwise", "reductions", "shapes"]
