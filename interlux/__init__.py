"""interlux moves trained neural networks between frameworks and proves that nothing was lost on the way.

    import interlux as ix
    model = ix.from_torch(module, (torch.randn(2, 3, 224, 224),))
    ix.verify(module, model, backends=("jax", "onnxruntime")).raise_if_failed()
    ix.to_onnx(model, "model.onnx")

Frameworks are imported when something needs them: `import interlux` alone imports numpy.
"""

from __future__ import annotations

from .api import (
    assign_keras_weights,
    bundle,
    compile,
    from_keras,
    from_onnx,
    from_torch,
    to_c,
    to_fused,
    to_onnx,
    to_stablehlo,
    torch_state_dict,
    verify,
)
from .ir import layers, trees
from .ir.errors import (
    InterluxError,
    InvalidModelError,
    ResourceLimitError,
    UnsafeInputError,
    UnsupportedError,
    VerificationError,
)
from .ir.graph import Graph
from .ir.layer import Layer, setup
from .ir.layer import set_evaluator as _set_evaluator
from .ir.model import Dimension, Model, Signature, TensorSpec
from .ir.storage import load, save

__version__ = "0.1.0"

__all__ = [
    "Dimension",
    "Graph",
    "InterluxError",
    "InvalidModelError",
    "Layer",
    "Model",
    "ResourceLimitError",
    "Signature",
    "TensorSpec",
    "UnsafeInputError",
    "UnsupportedError",
    "VerificationError",
    "__version__",
    "assign_keras_weights",
    "bundle",
    "compile",
    "from_keras",
    "from_onnx",
    "from_torch",
    "layers",
    "load",
    "save",
    "setup",
    "to_c",
    "to_fused",
    "to_onnx",
    "to_stablehlo",
    "torch_state_dict",
    "trees",
    "verify",
]


def _evaluator():  # type: ignore[no-untyped-def]
    from .api import needs

    with needs("jax"):
        from .runtime.jax import apply
    return apply


_set_evaluator(_evaluator)
