"""Writing ONNX files, all or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

import numpy as np
import onnx

from ...ir.errors import InvalidModelError
from ...ir.model import Model
from .assembly import Emission
from .emitter import emission

EXTERNAL_ABOVE = 1 << 30  # bytes; protobuf ends at 2 GiB
ALIGNMENT = 4096  # of arrays in the file, so that they can be mapped into memory


def to_onnx(model: Model, path: str | os.PathLike[str], opset: int | None = None) -> None:
    """Writes a model as an ONNX file, its weights in a second file `NAME.data` if they exceed 1 GiB.

    Arguments:
        model: any model with a signature.
        path: the file; an existing one is replaced once the new one is complete.
        opset: version of ai.onnx, 13 to the newest; None for 20, or what the model needs above that.
    """
    write(emission(model, opset), Path(path))


def write(made: Emission, target: Path) -> None:
    """Writes an emitted model, all or nothing; arrays go from where they are into the file, one after the other."""
    if target.is_dir():
        raise InvalidModelError(f"{target} is a folder, an ONNX model is written to a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        save(made, folder / target.name)
        data = f"{target.name}.data"
        if (folder / data).exists():
            os.replace(folder / data, target.parent / data)
        os.replace(folder / target.name, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save(made: Emission, path: Path) -> None:
    """Writes an emitted model to a path, its weights beside it in `NAME.data` if it is large."""
    proto = made.proto
    if made.size < EXTERNAL_ABOVE:
        path.write_bytes(made.whole().SerializeToString())
        return
    location = f"{path.name}.data"
    outside = onnx.ModelProto()
    outside.CopyFrom(proto)
    with open(path.with_name(location), "wb") as file:
        for tensor in outside.graph.initializer:
            array = made.arrays.get(tensor.name)
            if array is None:
                continue
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            offset = file.tell()
            _write(array, file)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, text in (("location", location), ("offset", offset), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(text))
    path.write_bytes(outside.SerializeToString())


def _write(array: np.ndarray, file: IO[bytes]) -> None:
    """Writes an array in pieces: one that is not contiguous in memory is never copied as a whole."""
    flat = array.reshape(-1) if array.flags.c_contiguous else None
    if flat is not None:
        file.write(flat.view(np.uint8).data)
        return
    for row in array:
        file.write(np.ascontiguousarray(row).tobytes())
