"""SRC: what can be opened, as a model and as the reference that the model is compared with."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import UsageError

from ..api import needs
from ..ir.errors import InvalidModelError, UnsupportedError
from ..ir.model import Model

if TYPE_CHECKING:
    import numpy as np

    from ..runtime.verify import Source

READ = ".onnx, .pt2, .pt or .safetensors with --arch, the folder of a saved model, or package.module:function"
KERAS = (".keras", ".h5", ".hdf5")
WEIGHTS = (".pt", ".pth", ".bin", ".safetensors")
_EXAMPLE = re.compile(r"(?P<name>[^=\s]+)=(?P<dtype>\w+)\[(?P<shape>[^\[\]]*)\]")
_SIZE = re.compile(r"(?P<name>[^\W\d]\w*)?(=)?(?P<size>\d+)?")
# The size at which a dynamic dimension is exported: not 1, which torch would take as fixed
BATCH, LENGTH = 2, 16
MAX_EXAMPLE_BYTES = 1 << 32

Arrays = Mapping[str, "np.ndarray"]


@dataclass(frozen=True)
class Opened:
    """A source that was imported.

    Arguments:
        text: SRC as the user gave it.
        model: what it was imported as.
        source: makes the reference that the model is compared with.
        path: the file or folder, None for a Python function.
    """

    text: str
    model: Model
    source: Callable[[], Source]
    path: Path | None = None


def open_source(
    text: str,
    arch: str | None = None,
    examples: Sequence[str] | Arrays = (),
    name: str | None = None,
    trust: bool = False,
) -> Opened:
    """Imports SRC.

    Arguments:
        text: a path or `package.module:function`.
        arch: the function that makes the network of a file that holds weights only.
        examples: inputs of a PyTorch module: `name=dtype[shape]`, or arrays by name.
        name: of the model.
        trust: whether a .pt, .pth or .bin file may hold a whole pickled module: loading one runs code that is in it.

    Raises InvalidModelError if there is no such file or it is damaged, UnsupportedError for other kinds of files.
    """
    from ..converters.functions import names_function

    path = Path(text)
    if trust and path.suffix.lower() not in WEIGHTS[:-1]:
        raise UsageError(f"--trust is for .pt, .pth and .bin files; {text} is read without running code")
    if not path.exists() and names_function(text):
        _no_arch(arch, text)
        return _from_function(text, examples, name)
    if not path.exists():
        raise InvalidModelError(f"{text}: there is no such file or folder")
    if path.is_dir():
        _no_arch(arch, text)
        return _from_folder(path, text)
    ending = path.suffix.lower()
    if ending in KERAS:
        raise UnsupportedError(
            f"{text}: import from Keras is not part of this version; export the model to ONNX and convert that"
        )
    if ending in WEIGHTS:
        return _from_weights(path, text, arch, examples, name, trust)
    _no_arch(arch, text)
    if ending == ".onnx":
        return _from_onnx(path, text, name)
    if ending == ".pt2":
        return _from_pt2(path, text, name)
    raise UnsupportedError(f"{text}: files with the ending {ending or '(none)'!r} cannot be read; what can: {READ}")


def _no_arch(arch: str | None, text: str) -> None:
    if arch is not None:
        raise UsageError(f"--arch is for {', '.join(WEIGHTS)} files; {text} holds the whole network")


def _from_onnx(path: Path, text: str, name: str | None) -> Opened:
    with needs("onnx"):
        from ..converters.onnx import OnnxSource, from_onnx
    return Opened(text, from_onnx(path, name=name), lambda: OnnxSource(path), path)


def _from_pt2(path: Path, text: str, name: str | None) -> Opened:
    with needs("torch"):
        from ..converters.torch import TorchSource, from_torch
        from ..converters.torch.pt2 import load_exported_program
    program = load_exported_program(path)
    model = from_torch(program, name=name or path.stem)
    return Opened(text, model, lambda: TorchSource(program, model), path)


def _from_folder(path: Path, text: str) -> Opened:
    from ..ir.storage import load

    model = load(path)
    return Opened(text, model, lambda: _saved(model), path)


def _saved(model: Model) -> Source:
    with needs("jax"):
        import jax  # noqa: F401  # so that its absence is an error here

        from ..runtime.verify import ModelSource
    return ModelSource(model)


def _from_weights(
    path: Path, text: str, arch: str | None, examples: Sequence[str] | Arrays, name: str | None, trust: bool
) -> Opened:
    if arch is None and not trust:
        raise UsageError(f"{text} holds weights only: say with --arch package.module:function what makes the network")
    with needs("torch"):
        from ..converters.torch.state_files import filled, module_from_file, read_state_dict
    if arch is None:
        module, own, _ = module_from_file(path, None, trust)
        return _from_module(module, text, own, None, examples, name, path)
    made, origin = _call(arch)
    module, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    module, notes = filled(module, read_state_dict(path, trust), arch, path)
    opened = _from_module(module, text, own, origin, examples, name, path)
    return replace(opened, model=replace(opened.model, notes=(*notes, *opened.model.notes)))


def _from_function(text: str, examples: Sequence[str] | Arrays, name: str | None) -> Opened:
    made, origin = _call(text)
    if isinstance(made, Model):
        return Opened(text, made, lambda: _saved(made))
    with needs("torch"):
        import torch

        from ..converters.torch import TorchSource, from_torch
    if isinstance(made, torch.export.ExportedProgram):
        model = from_torch(made, name=name)
        return Opened(text, model, lambda: TorchSource(made, model))
    module, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, torch.nn.Module):
        raise InvalidModelError(
            f"{text} returned a {type(module).__name__}; it must return a torch.nn.Module or (module, example inputs)"
        )
    return _from_module(module, text, own, origin, examples, name, None)


def _from_module(
    module: Any,
    text: str,
    own: Any,
    origin: Any,
    examples: Sequence[str] | Arrays,
    name: str | None,
    path: Path | None,
) -> Opened:
    """A module with its example inputs: those given, else its function's own, else `example_inputs` beside that."""
    from ..converters.torch import TorchSource, from_torch

    dynamic: Any = "batch"
    if examples:
        own, dynamic = _call_of(module, examples)
    elif own is None:
        own = getattr(origin, "example_inputs", None)
        own = own() if callable(own) else own
    if own is None:
        raise UsageError(
            f"{type(module).__name__} needs example inputs: give --input 'NAME=float32[batch,3,224,224]' for each, "
            "return (module, inputs), or define example_inputs beside the function"
        )
    model = from_torch(module, own, dynamic, name=name)
    return Opened(text, model, lambda: TorchSource(module, model), path)


def _call(text: str) -> tuple[Any, Any]:
    """Calls `package.module:function`. Returns the result, and the Python module that the function is in."""
    import sys

    from ..converters.functions import call_function, names_function

    if not names_function(text):
        raise UsageError(f"{text!r} is not of the form package.module:function")
    if os.getcwd() not in sys.path:  # as `python -m` has it
        sys.path.insert(0, os.getcwd())
    return call_function(text)


def _call_of(module: Any, examples: Sequence[str] | Arrays) -> tuple[Any, Any]:
    """Example inputs as a call of the module's forward, and which of their sizes are dynamic in torch's form."""
    import inspect

    import torch

    from ..converters.torch.arrays import to_torch

    dims: dict[str, Any] = {}
    if isinstance(examples, Mapping):
        tensors = {name: to_torch(array) for name, array in examples.items()}
        shapes: dict[str, Any] = dict.fromkeys(tensors)
    else:
        tensors, shapes = {}, {}
        sizes: dict[str, int] = {}
        for text in examples:
            name, array, named = parse_example(text, sizes)
            if name in tensors:
                raise UsageError(f"--input {name} is given twice")
            tensors[name] = to_torch(array)
            for label in named.values():
                dims.setdefault(label, torch.export.Dim(label, min=1))
            shapes[name] = {axis: dims[label] for axis, label in named.items()}
    try:
        bound = inspect.signature(module.forward).bind(**tensors)
    except TypeError as error:
        takes = ", ".join(inspect.signature(module.forward).parameters)
        raise InvalidModelError(
            f"inputs {', '.join(tensors)} don't fit {type(module).__name__}.forward, which takes {takes}: {error}"
        ) from None
    return (bound.args, bound.kwargs), {name: shapes[name] for name in bound.arguments} if dims else None


def parse_example(text: str, known: dict[str, int]) -> tuple[str, np.ndarray, dict[int, str]]:
    """`images=float32[batch,1,32,32]` as name, array and the names of dynamic axes; `batch=4` also says the size.

    Numbers are drawn from a normal distribution, integers are 0, booleans are true.

    Arguments:
        text: of one input.
        known: sizes of dynamic dimensions by name, from the inputs before; those met here are added.
    """
    import math

    import numpy as np

    from ..ir.dtypes import dtype_named

    form = f"--input {text!r} is not of the form NAME=DTYPE[SHAPE], e.g. 'images=float32[batch,1,32,32]'"
    found = _EXAMPLE.fullmatch(text)
    if found is None:
        raise UsageError(form)
    try:
        dtype = dtype_named(found["dtype"])
    except InvalidModelError as error:
        raise UsageError(f"--input {text!r}: {error}") from None
    sizes, names = [], {}
    for axis, part in enumerate(found["shape"].split(",") if found["shape"].strip() else ()):
        size = _SIZE.fullmatch(part.strip())
        if size is None or not part.strip() or bool(size["name"] and size["size"]) != bool(size[2]):
            raise UsageError(form)
        number = int(size["size"]) if size["size"] else BATCH if axis == 0 else LENGTH
        if size["name"]:
            names[axis] = size["name"]
            number = known.setdefault(size["name"], number)
        sizes.append(number)
    if math.prod(sizes) * dtype.itemsize > MAX_EXAMPLE_BYTES:
        raise UsageError(f"--input {text!r} would take more than {MAX_EXAMPLE_BYTES >> 30} GiB")
    if dtype.kind == "b":
        return found["name"], np.ones(sizes, dtype), names
    if dtype.kind in "iu":
        return found["name"], np.zeros(sizes, dtype), names
    return found["name"], np.asarray(np.random.default_rng(0).standard_normal(sizes)).astype(dtype), names
