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
from ...ir.model import Model, check_model
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
    check_model(model, "to_onnx")
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
    if made.size < EXTERNAL_ABOVE:
        with open(path, "wb") as file:
            stream(made, file)
        return
    location = f"{path.name}.data"
    outside = onnx.ModelProto()
    outside.CopyFrom(made.proto)
    with open(path.with_name(location), "wb") as file:
        for tensor in outside.graph.initializer:
            if tensor.name not in made.arrays:
                continue
            array = made.arrays[tensor.name]
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            offset = file.tell()
            _write(array, file)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, text in (("location", location), ("offset", offset), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(text))
    path.write_bytes(outside.SerializeToString())


def stream(made: Emission, file: IO[bytes]) -> None:
    """Writes an emitted model with its weights inside. Protobuf would hold them three times: in the message, in the
    bytes, and where they are; so its wire format is put together here, whose arrays go straight into the file.

    Source: Protocol Buffers, Encoding: a field is its number, its length and its content; fields come in any order.
    """
    whole, graph = onnx.ModelProto(), onnx.GraphProto()
    whole.CopyFrom(made.proto)
    graph.CopyFrom(whole.graph)
    whole.ClearField("graph")
    outlines = [tensor for tensor in graph.initializer if tensor.name in made.arrays]
    inside = [tensor for tensor in graph.initializer if tensor.name not in made.arrays]
    del graph.initializer[:]
    graph.initializer.extend(inside)
    parts: list[tuple[bytes, np.ndarray | None]] = [(graph.SerializeToString(), None)]
    for tensor in outlines:
        data = made.arrays[tensor.name]
        head = tensor.SerializeToString() + _field(onnx.TensorProto.RAW_DATA_FIELD_NUMBER, data.nbytes)
        parts.append((_field(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, len(head) + data.nbytes) + head, data))
    length = sum(len(head) + (0 if array is None else array.nbytes) for head, array in parts)
    file.write(whole.SerializeToString() + _field(onnx.ModelProto.GRAPH_FIELD_NUMBER, length))
    for head, array in parts:
        file.write(head)
        if array is not None:
            _write(array, file)


def _field(number: int, length: int) -> bytes:
    """The beginning of a field that has a length: numbers in groups of 7 bits, the lowest first."""
    encoded = bytearray()
    for rest in (number << 3 | 2, length):
        while rest > 0x7F:
            encoded.append(rest & 0x7F | 0x80)
            rest >>= 7
        encoded.append(rest)
    return bytes(encoded)


def _write(array: np.ndarray, file: IO[bytes]) -> None:
    """Writes an array in pieces: one that is not contiguous in memory is never copied as a whole."""
    flat = array.reshape(-1) if array.flags.c_contiguous else None
    if flat is not None:
        file.write(flat.view(np.uint8).data)
        return
    for row in array:
        file.write(np.ascontiguousarray(row).tobytes())
