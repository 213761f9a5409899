"""What the ATen operators mean in terms of layers and primitives: one small function each.

A lowering takes the builder, then the operator's arguments as torch passes them: tensors as builder values, numbers and
sizes as Python ones. `op.result` is torch's description of the result.
"""

from .registry import LOWERINGS, Mode

from . import creation, indexing, layers, pointwise, reductions, shapes  # noqa: F401  # isort: skip  # they fill it
from . import ordering, scattering, views  # noqa: F401  # isort: skip
from . import convolutions, experts, normalization, pooling, recurrent, resizing  # noqa: F401  # isort: skip
from . import linear_algebra, losses, special  # noqa: F401  # isort: skip
from . import control, quantized, spectral  # noqa: F401  # isort: skip

__all__ = ["LOWERINGS", "Mode"]
