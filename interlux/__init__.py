"""interlux moves trained neural networks between frameworks and proves that nothing was lost on the way.

    import interlux as ix
    model = ix.from_torch(module, (torch.randn(2, 3, 224, 224),))
    ix.verify(module, model, backends=("jax", "onnxruntime")).raise_if_failed()
    ix.to_onnx(model, "model.onnx")

Everything is imported when it is first used: `import interlux` alone imports neither a framework nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .ir.evaluation import set_evaluator as _set_evaluator

if TYPE_CHECKING:
    from .api import (
        assign_keras_weights,
        bundle,
        compile,
        from_keras,
        from_onnx,
        from_torch,
        fused_gradient,
        fused_trainer,
        optimizer_from_torch,
        to_c,
        to_fused,
        to_onnx,
        to_stablehlo,
        torch_optimizer_state,
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
    from .ir.model import Dimension, Model, Signature, TensorSpec
    from .ir.storage import load, save

__version__ = "0.1.0"

# where each public name is defined
_HOMES = {
    "api": (
        *("assign_keras_weights", "bundle", "compile", "from_keras", "from_onnx", "from_torch", "to_c", "to_fused"),
        *("fused_gradient", "fused_trainer"),
        *("optimizer_from_torch", "to_onnx", "to_stablehlo", "torch_optimizer_state", "torch_state_dict", "verify"),
    ),
    "ir.errors": (
        *("InterluxError", "InvalidModelError", "ResourceLimitError", "UnsafeInputError", "UnsupportedError"),
        "VerificationError",
    ),
    "ir.graph": ("Graph",),
    "ir.layer": ("Layer", "setup"),
    "ir.model": ("Dimension", "Model", "Signature", "TensorSpec"),
    "ir.storage": ("load", "save"),
}
_MODULES = {"api": "api", "layers": "ir.layers", "trees": "ir.trees"}

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
    "fused_gradient",
    "fused_trainer",
    "layers",
    "load",
    "optimizer_from_torch",
    "save",
    "setup",
    "to_c",
    "to_fused",
    "to_onnx",
    "to_stablehlo",
    "torch_optimizer_state",
    "torch_state_dict",
    "trees",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = import_module(f".{_MODULES[name]}", __name__)
    else:
        home = next((module for module, names in _HOMES.items() if name in names), None)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _apply() -> Any:
    from .api import needs

    with needs("jax"):
        from .runtime.jax import apply
    return apply


_set_evaluator(_apply)
