"""The functions behind `import interlux as ix`: they import what they need when they are called."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .ir.errors import InvalidModelError, UnsupportedError
from .ir.layer import Layer
from .ir.model import Model

if TYPE_CHECKING:
    from .runtime.runner import Runner
    from .runtime.verify import Report

Path = str | os.PathLike[str]


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turns a missing framework into one line that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("interlux"):
            raise
        raise UnsupportedError(f"this needs {error.name}: pip install 'interlux[{extra}]'") from None


def from_torch(source: Any, example_inputs: Any = None, dynamic_shapes: Any = "batch", **options: Any) -> Model:
    """Imports a PyTorch module, exported program or .pt2 file. See `interlux.converters.torch.from_torch`."""
    with needs("torch"):
        from .converters.torch import from_torch as convert
    return convert(source, example_inputs, dynamic_shapes, **options)


def from_onnx(source: Any, **options: Any) -> Model:
    """Imports an ONNX file or ModelProto. See `interlux.converters.onnx.from_onnx`."""
    with needs("onnx"):
        from .converters.onnx import from_onnx as convert
    return convert(source, **options)


def torch_state_dict(model: Model) -> Any:
    """The `state_dict` to go back into the PyTorch module. See `interlux.converters.torch.torch_state_dict`."""
    with needs("torch"):
        from .converters.torch import torch_state_dict as convert
    return convert(model)


def to_onnx(model: Model, path: Path, opset: int | None = None) -> None:
    """Writes a model as an ONNX file. See `interlux.runtime.onnx.to_onnx`."""
    with needs("onnx"):
        from .runtime.onnx import to_onnx as convert
    convert(model, path, opset)


def compile(model: Model, backend: str = "jax", device: str = "cpu", **options: Any) -> Runner:
    """A model compiled for a backend: numpy in, a tuple of numpy out.

    Arguments:
        model: any model with a signature.
        backend: jax or onnxruntime.
        device: cpu or cuda.
        options: of the backend: `threads` of onnxruntime.
    """
    if backend == "jax":
        with needs("jax"):
            from .runtime.jax import JaxRunner
        return JaxRunner(model, device, **options)
    if backend == "onnxruntime":
        with needs("onnx"):
            from .runtime.onnx import OnnxRunner
        return OnnxRunner(model, device, **options)
    if backend == "fused":
        raise UnsupportedError("the fused CPU engine is not part of this version; use backend='jax' or 'onnxruntime'")
    raise UnsupportedError(f"there is no backend {backend!r}; choose jax or onnxruntime")


def verify(
    source: Any,
    model: Model,
    backends: Sequence[str] | str = ("jax", "onnxruntime"),
    inputs: Mapping[str, Any] | Path | None = None,
    **options: Any,
) -> Report:
    """Compares a model on several backends with its source run in float64.

    Arguments:
        source: what the model was imported from: an nn.Module, an exported program, an ONNX model, a path of a .pt2 or
            .onnx file or of a saved model, or a Model.
        model: the conversion.
        backends: jax, onnxruntime.
        inputs: your own inputs by name, or the path of an .npz; generated ones by default.

    Returns:
        A report: `passed`, `raise_if_failed()`, `to_html(path)`, `to_json()`.
    """
    from .runtime.verify import verify as check

    return check(source_of(source, model), model, backends, inputs=inputs, **options)


def source_of(source: Any, model: Model) -> Any:
    """What the verifier runs as the reference."""
    from .ir.storage import load

    if isinstance(source, Model):
        with needs("jax"):
            from .runtime.verify import ModelSource
        return ModelSource(source)
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        if os.path.isdir(text):
            return source_of(load(text), model)
        if text.endswith(".pt2"):
            with needs("torch"):
                from .converters.torch import TorchSource
                from .converters.torch.pt2 import load_exported_program
            return TorchSource(load_exported_program(text), model)
        if text.endswith(".onnx"):
            with needs("onnx"):
                from .converters.onnx import OnnxSource
            return OnnxSource(text)
        raise UnsupportedError(f"{text} cannot serve as a source: give a .pt2, an .onnx or a saved model's folder")
    kind = type(source).__module__.partition(".")[0]
    if kind == "onnx":
        with needs("onnx"):
            from .converters.onnx import OnnxSource
        return OnnxSource(source)
    if "torch" in sys.modules:
        import torch

        if isinstance(source, torch.nn.Module | torch.export.ExportedProgram):
            from .converters.torch import TorchSource

            return TorchSource(source, model)
    if hasattr(source, "run_float64"):
        return source
    raise InvalidModelError(f"a {type(source).__name__} cannot serve as a source")


def _later(what: str, instead: str) -> UnsupportedError:
    return UnsupportedError(f"{what} is not part of this version of interlux; {instead}")


def from_keras(source: Any, **options: Any) -> Model:
    """Imports a Keras 3 model (not yet)."""
    raise _later("import from Keras", "export the Keras model to ONNX and use ix.from_onnx")


def assign_keras_weights(keras_model: Any, model: Model) -> None:
    """Puts weights back into a Keras model (not yet)."""
    raise _later("writing weights into Keras", "model.params holds them by name")


def to_stablehlo(model: Model, path: Path) -> None:
    """Writes a model as StableHLO (not yet)."""
    raise _later("StableHLO", "use jax.export on model.layer.apply")


def to_c(model: Model, folder: Path) -> None:
    """Writes a model as C (not yet)."""
    raise _later("export to C", "use ix.to_onnx")


def to_fused(layer: Layer, input_shape: Sequence[int]) -> Layer:
    """A layer that runs as one native function (not yet)."""
    raise _later("the fused CPU engine", "use ix.compile(model, backend='jax')")


def bundle(model: Model, folder: Path, targets: Sequence[str] = (), verify: bool = True) -> None:
    """Writes a deployment bundle (not yet)."""
    raise _later("deployment bundles", "use ix.to_onnx and ix.save")
