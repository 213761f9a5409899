"""Writing ONNX files, all or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import onnx

from ...ir.errors import InvalidModelError
from ...ir.model import Model
from .emitter import emit

EXTERNAL_ABOVE = 1 << 30  # bytes; protobuf ends at 2 GiB


def to_onnx(model: Model, path: str | os.PathLike[str], opset: int | None = None) -> None:
    """Writes a model as an ONNX file, its weights in a second file `NAME.data` if they exceed 1 GiB.

    Arguments:
        model: any model with a signature.
        path: the file; an existing one is replaced once the new one is complete.
        opset: version of ai.onnx, 13 to the newest; None for 20, or what the model needs above that.
    """
    write(emit(model, opset), Path(path))


def write(proto: onnx.ModelProto, target: Path) -> None:
    if target.is_dir():
        raise InvalidModelError(f"{target} is a folder, an ONNX model is written to a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        data = f"{target.name}.data"
        external = proto.ByteSize() >= EXTERNAL_ABOVE
        onnx.save_model(proto, str(folder / target.name), save_as_external_data=external, location=data)
        if external:
            os.replace(folder / data, target.parent / data)
        os.replace(folder / target.name, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
