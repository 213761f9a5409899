"""The functions behind `import interlux as ix`: they import what they need when they are called."""

from __future__ import annotations

import inspect
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .ir.errors import InvalidModelError, UnsupportedError
from .ir.layer import Layer
from .ir.model import Model, check_model

if TYPE_CHECKING:
    from .runtime.fused.training import FusedGradient, FusedTrainer
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


def optimizer_from_torch(
    optimizer: Any,
    module: Any,
    model: Model,
    *,
    learning_rate: Any = None,
    kind: str | None = None,
    parameter_names: Sequence[Sequence[str]] | None = None,
) -> tuple[Any, Any]:
    """An optimiser of PyTorch as one of optax, so that a training run continues in JAX on the same trajectory.

        tx, opt_state = ix.optimizer_from_torch(optimizer, module, model)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)

    Arguments:
        optimizer: torch.optim.SGD, Adam, AdamW or RMSprop with all their options, before or after its first step; or
            its state_dict, as torch.load(…, weights_only=True) gives it.
        module: the nn.Module that the optimizer trains; its names say which parameter is which.
        model: imported from that module. The arrays of a model are copies: import it when you change over.
        learning_rate: in place of the groups' own, which are numbers: a number, a function of the updates made since
            this conversion (0 at the first; any schedule of optax), or a list with one of these, or None, per group.
        kind: sgd, adam, adamw or rmsprop, for a state_dict. For a subclass of the four it says that its steps are
            those of its base.
        parameter_names: for a state_dict, a list of the names of the parameters for each group; not needed if the
            state_dict has `param_names`, or one group with all the module's parameters, or all that require a gradient.

    Returns:
        An optax.GradientTransformation for trees like `model.params`, and its state, of numpy arrays. Parameters that
        are frozen, in no group, or not used by the module get no update. One that the module uses but the loss does
        not depend on has gradients of zero in JAX and none in PyTorch: freeze it if the optimizer decays weights.
        float64 needs jax.enable_x64; half precision is computed in float32 and rounded when stored, as in PyTorch's
        fused Adam. Bias corrections have all digits; PyTorch's are float32 with `capturable` or `differentiable`.

    Raises UnsupportedError for another optimizer, step hooks, and separate parameters in one memory; InvalidModelError
    if optimizer, module and model don't fit together.

    Source: the documentation of torch.optim; the papers are named in `interlux.runtime.jax.optimizers`.
    """
    with needs("torch"):
        from .converters.torch.optimizers import read_optimizer
    with needs("jax"):
        from .runtime.jax.optimizers import to_optax
    return to_optax(read_optimizer(optimizer, module, model, kind, parameter_names), model.params, learning_rate)


def torch_optimizer_state(
    opt_state: Any,
    optimizer: Any,
    module: Any,
    model: Model,
    *,
    kind: str | None = None,
    parameter_names: Sequence[Sequence[str]] | None = None,
) -> dict[str, Any]:
    """The state_dict to go back into an optimiser of PyTorch.

        module.load_state_dict(ix.torch_state_dict(model.replace(params, states)))
        optimizer.load_state_dict(ix.torch_optimizer_state(opt_state, optimizer, module, model))

    Arguments:
        opt_state: the state of `optimizer_from_torch`'s transformation after any number of updates; of an optax.chain
            with that transformation only its part.
        optimizer: the one that was converted, a new one with the same groups and options, or a state_dict.
        module, model, kind, parameter_names: as for `optimizer_from_torch`.

    Returns:
        A dict with the structure, dtypes and devices of `optimizer.state_dict()` after as many steps as were made. The
        groups (learning rates, flags, what schedulers add) and the state of parameters that were not trained are the
        optimizer's; a learning rate that was given for JAX is not among them.

    Raises InvalidModelError if the state is of another transformation, or its groups or options are others.
    """
    with needs("torch"):
        from .converters.torch.optimizers import write_optimizer
    with needs("jax"):
        from .runtime.jax.optimizers import from_optax
    return write_optimizer(*from_optax(opt_state), optimizer, module, model, kind, parameter_names)


def to_onnx(model: Model, path: Path, opset: int | None = None) -> None:
    """Writes a model as an ONNX file. See `interlux.runtime.onnx.to_onnx`."""
    with needs("onnx"):
        from .runtime.onnx import to_onnx as convert
    convert(model, path, opset)


def compile(model: Model, backend: str = "jax", device: str = "cpu", **options: Any) -> Runner:
    """A model compiled for a backend: numpy in, a tuple of numpy out.

    Arguments:
        model: any model with a signature.
        backend: jax, onnxruntime or fused.
        device: cpu or cuda.
        options: of the backend: `threads` of onnxruntime and fused; of fused also `target` (avx512, avx2, sse2, neon,
            scalar), `weights="bfloat16"`, which halves their memory (the runner's `notes` state the error), and
            `fallback="onnxruntime"`, which computes the layers that the engine does not take.

    Raises UnsupportedError for what the backend does not know: a layer, a device, an option; InvalidModelError if this
    is no model.
    """
    check_model(model, "compile")
    make = _maker(backend)
    known = list(inspect.signature(make).parameters)[2:]  # behind model and device
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise UnsupportedError(
            f"backend {backend!r} has no option {unknown[0]!r}; it has {', '.join(known) or 'none beside device'}"
        )
    return make(model, device, **options)


def _maker(backend: str) -> Callable[..., Runner]:
    """What makes a backend's runners."""
    if backend == "jax":
        with needs("jax"):
            from .runtime.jax import JaxRunner
        return JaxRunner
    if backend == "onnxruntime":
        with needs("onnx"):
            from .runtime.onnx import OnnxRunner
        return OnnxRunner
    if backend == "fused":
        with needs("fused"):
            from .runtime.fused.engine import runner_of
        return runner_of
    raise UnsupportedError(f"there is no backend {backend!r}; choose jax, onnxruntime or fused")


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
        backends: jax, onnxruntime, fused: one or several.
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


def to_c(
    model: Model,
    folder: Path,
    target: str | None = None,
    *,
    name: str | None = None,
    source: bool = False,
    weights: str | None = None,
) -> tuple[pathlib.Path, ...]:
    """Writes a model as C: an object file and a shared library for a processor, or C99, with a header and an example.

        ix.to_c(model, "lenet")                  # for this machine
        ix.to_c(model, "lenet", target="neon")   # host, avx512, avx2, sse2, neon or scalar
        ix.to_c(model, "lenet", source=True)     # C source, for any processor

    Arguments:
        model: any model that backend="fused" takes.
        folder: a new or empty one, or an earlier export.
        name: that all C names begin with; by default like the folder's.
        weights: bfloat16, to round large weights to it and halve their size; None: they stay as they are.

    Returns the files written. See `interlux.runtime.fused.export.to_c`.
    """
    with needs("fused"):
        from .runtime.fused.export import to_c as convert
    return convert(model, folder, target, name=name, source=source, weights=weights)


def to_fused(
    layer: Layer,
    input_shape: Sequence[int] | Sequence[Sequence[int]],
    params: Mapping[str, Any] | None = None,
    states: Mapping[str, Any] | None = None,
    threads: int | None = None,
    dtype: Any = None,
) -> Layer:
    """A layer that runs as one native function on the CPU. See `interlux.runtime.fused.layer.to_fused`."""
    with needs("fused"):
        from .runtime.fused.layer import to_fused as convert
    return convert(layer, input_shape, params, states, threads, dtype)


def fused_trainer(model: Model, loss: Any = "mse", optimizer: Any = "adam", **options: Any) -> FusedTrainer:
    """Trains a model on the CPU: forward pass, backward pass and optimiser are one native function.

        trainer = ix.fused_trainer(model, "cross_entropy", "adam", learning_rate=1e-3, threads=2)
        losses = trainer.run(x, y, epochs=10, batch_size=128, shuffle=0)
        trained = trainer.model()

    See `interlux.runtime.fused.training.fused_trainer`.
    """
    with needs("fused"):
        from .runtime.fused.training import fused_trainer as make
    return make(model, loss, optimizer, **options)


def fused_gradient(model: Model, loss: Any = None, **options: Any) -> FusedGradient:
    """Gradients of a model by its parameters and inputs (a tuple of several) as a native function on the CPU.

        y, by_params, by_x = ix.fused_gradient(model).vjp(x, cotangent)
        value, by_params, by_x = ix.fused_gradient(model, "mse").value_and_grad(x, y)

    See `interlux.runtime.fused.training.fused_gradient`.
    """
    with needs("fused"):
        from .runtime.fused.training import fused_gradient as make
    return make(model, loss, **options)


def bundle(model: Model, folder: Path, targets: Sequence[str] = (), verify: bool = True) -> None:
    """Writes a deployment bundle (not yet)."""
    raise _later("deployment bundles", "use ix.to_onnx and ix.save")
