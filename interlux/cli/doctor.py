"""`interlux doctor`: what is installed, what works, and how to get the rest."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from ..ir.errors import InterluxError
from .backends import BACKENDS
from .state import State
from .text import table

CORE = ("numpy", "ml_dtypes", "safetensors", "click", "rich")
# extra: what it is for, and its packages
EXTRAS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "torch": ("import from PyTorch", ("torch",)),
    "onnx": ("ONNX in and out, onnxruntime", ("onnx", "onnxruntime", "pillow")),
    "jax": ("run on JAX; the reference of saved models", ("jax", "jaxlib", "optax")),
    "fused": ("small networks as one native function", ("llvmlite",)),
    "report": ("HTML reports", ("jinja2",)),
}
# other names under which a package is distributed
_OTHER = {"onnxruntime": ("onnxruntime-gpu",), "jaxlib": ()}


def version_of(package: str) -> str | None:
    """The installed version by the package's metadata, without importing it."""
    for name in (package, *_OTHER.get(package, ())):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "?" if importlib.util.find_spec(package) is not None else None


def works(backend: str, device: str) -> str:
    """Runs a small network on a backend and device. Returns what is wrong, nothing if it works."""
    import numpy as np

    from ..api import compile
    from ..ir.layer import setup
    from ..ir.layers import Dense, relu
    from ..ir.model import Model, Signature, TensorSpec

    layer = Dense(3, 2, activation=relu)
    params, states = setup(layer, 0)
    tensors = TensorSpec("x", "float32", ("batch", 3)), TensorSpec("y", "float32", ("batch", 2))
    model = Model(layer, params, states, Signature(tensors[:1], tensors[1:]))
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    try:
        (y,) = compile(model, backend, device)(x)
    except InterluxError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  # a broken installation may raise anything; it is what is looked for
        return f"{type(error).__name__}: {error}"
    wanted = np.maximum(x @ params["weight"].T + params["bias"], 0)
    return "" if np.allclose(y, wanted, rtol=1e-3, atol=1e-3) else f"gives wrong numbers: {y.tolist()}"


def details(backend: str) -> str:
    """The backend's own words for its devices."""
    try:
        if backend == "onnxruntime":
            import onnxruntime

            return ", ".join(onnxruntime.get_available_providers())
        if backend == "fused":
            from ..runtime.fused.target import executable

            return ", ".join(target.name for target in executable())
        import jax

        return ", ".join(map(str, jax.devices()))
    except Exception as error:  # noqa: BLE001  # as above
        return f"{type(error).__name__}: {error}"


def doctor(state: State) -> None:
    """`interlux doctor`."""
    from .. import __version__

    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    state.line(f"interlux {__version__}, Python {platform.python_version()}, {system}")
    state.line()
    versions = {name: version_of(name) for name in (*CORE, *(p for _, names in EXTRAS.values() for p in names))}
    rows = [[", ".join(f"{n} {versions[n]}" for n in CORE), "core", "needed always"]]
    missing = []
    for extra, (purpose, packages) in EXTRAS.items():
        absent = [n for n in packages if versions[n] is None]
        missing += [extra] * bool(absent)
        rows.append([", ".join(f"{n} {versions[n] or 'MISSING'}" for n in packages), extra, purpose])
    state.line(table(["packages", "extra", "for"], rows))
    state.line()
    backends: dict[str, Any] = {}
    found = []
    for backend, (extra, _, possible, _) in BACKENDS.items():
        if extra in missing:
            backends[backend] = {"installed": False}
            found.append([backend, "-", f"not installed: pip install 'interlux[{extra}]'"])
            continue
        devices = {}
        for device in possible:
            with state.step(f"try {backend} on {device}"):
                problem = " ".join(works(backend, device).split())
            devices[device] = {"works": not problem} | ({"problem": problem} if problem else {})
            found.append([backend, device, problem or "works"])
        backends[backend] = {"installed": True, "devices": devices, "details": details(backend)}
    state.line(table(["backend", "device", "state"], found))
    for backend, about in backends.items():
        if about["installed"]:
            state.line(f"{backend}: {about['details']}")
    command = f"pip install 'interlux[{','.join(missing)}]'" if missing else None
    state.line()
    state.line(f"to get what is missing: {command}" if command else "nothing is missing")
    state.result |= {
        "interlux": __version__,
        "python": platform.python_version(),
        "platform": system,
        "packages": versions,
        "backends": backends,
        "missing": missing,
        "install": command,
    }
