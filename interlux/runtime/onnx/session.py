"""onnxruntime as the runner of the emitted graph."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ...ir.errors import InvalidModelError, UnsupportedError
from ...ir.model import Model
from ..runner import Runner, first_line, run_in
from .assembly import Emission
from .emitter import emission
from .files import save, stream

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
MAX_PROTOBUF = 2**31 - 1


class OnnxRunner(Runner):
    """A model emitted to ONNX and run by onnxruntime.

    Arguments:
        model: any model with a signature.
        device: cpu or cuda.
        threads: onnxruntime's threads within an operator, 0 for its own choice.
    """

    backend = "onnxruntime"

    def __init__(self, model: Model, device: str = "cpu", threads: int = 0):
        super().__init__(model, device)
        with run_in(self.backend):
            self._session = _session(emission(model), device, threads)

    def run(self, arrays: list[Any]) -> tuple[Any, ...]:
        names = [spec.name for spec in self.signature.inputs]
        feed = {name: _fed(value) for name, value in zip(names, arrays, strict=True)}
        try:
            with run_in(self.backend):
                return tuple(_result(y) for y in self._session.run(None, feed))
        except Exception as error:  # onnxruntime's own exceptions derive from Exception alone
            if isinstance(error, InvalidModelError | UnsupportedError):
                raise
            raise InvalidModelError(f"onnxruntime cannot run the model: {first_line(error)}") from error


def _fed(value: Any) -> Any:
    if value is None or isinstance(value, list):
        return value
    return np.ascontiguousarray(value).reshape(value.shape)


def _result(value: Any) -> Any:
    """Texts come as objects already; sequences and maps stay as they are."""
    return value if value is None or isinstance(value, list | dict) else np.asarray(value)


def _session(made: Emission, device: str, threads: int) -> onnxruntime.InferenceSession:
    if made.size < MAX_PROTOBUF:
        content = io.BytesIO()
        stream(made, content)
        return session(content.getvalue(), device, threads)
    with tempfile.TemporaryDirectory() as folder:  # the session has read its weights when it exists
        file = Path(folder) / "model.onnx"
        save(made, file)
        return session(str(file), device, threads)


def session(model: bytes | str, device: str, threads: int = 0) -> onnxruntime.InferenceSession:
    """An onnxruntime session.

    Arguments:
        model: an ONNX model's bytes, or the path of its file.
        device: cpu or cuda.
        threads: within an operator, 0 for onnxruntime's own choice.

    Raises UnsupportedError if the device's provider is absent or refuses an operator.
    """
    if device not in PROVIDERS:
        raise UnsupportedError(f"onnxruntime runs on {' or '.join(PROVIDERS)} here, not on {device!r}")
    provider = PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise UnsupportedError(
            f"this onnxruntime has no {provider}; pip install onnxruntime-gpu on a machine with the device, "
            "or use device='cpu'"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        made = onnxruntime.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # onnxruntime's own exceptions derive from Exception alone
        raise UnsupportedError(f"onnxruntime does not take the model: {first_line(error)}") from error
    if provider not in made.get_providers():
        raise UnsupportedError(f"{provider} could not be started (driver or CUDA libraries missing); use device='cpu'")
    return made
