"""Reading ONNX files as hostile input: the protobuf, and the bytes of every tensor.

Nothing here trusts a length, an offset or a name. Tensors that live outside the file are read by us, not by onnx: the
location must lead to a regular file inside the model's folder without passing through a link, and the bytes that it
names must be there and be as many as dtype and shape need. They are mapped, not copied.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, numpy_helper

from ...ir import dtypes
from ...ir.errors import InvalidModelError, ResourceLimitError, UnsafeInputError, UnsupportedError
from ..archive import shown

MAX_PROTOBUF = 2**31 - 1  # bytes; what protobuf can hold, larger models keep their tensors outside
MAX_RANK = 64  # numpy's
_TEXT = frozenset(b"\t\n\r" + bytes(range(32, 127)))
_FIELDS: dict[
    int, str
] = {  # where a tensor that has no raw bytes keeps its elements, and how many bits of an element one entry holds
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
}
_TEXTS_AND_MESSAGES = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE)
_BITS = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}  # several elements share a byte

Source = str | os.PathLike[str] | bytes | onnx.ModelProto


@dataclass(frozen=True)
class OnnxFile:
    """A parsed model.

    Arguments:
        proto: as it was given; tensors stored outside are not loaded.
        name: of the file, or words for where the bytes came from; for messages.
        path: of the file, None for bytes and protos.
    """

    proto: onnx.ModelProto
    name: str
    path: Path | None = None


def read(source: Source) -> OnnxFile:
    """Parses a model.

    Arguments:
        source: path of a `.onnx` file, its bytes, or a parsed model.

    Raises InvalidModelError if there is no such file or it is not an ONNX model, ResourceLimitError beyond 2 GiB.
    """
    if isinstance(source, onnx.ModelProto):
        return OnnxFile(_complete(source, "the model"), "the model")
    if isinstance(source, bytes | bytearray | memoryview):
        return OnnxFile(_parse(bytes(source), "the model"), "the model")
    if not isinstance(source, str | os.PathLike):
        raise InvalidModelError(f"an ONNX model is a path, bytes or a ModelProto, not {type(source).__name__}")
    path = Path(source)
    name = shown(str(path), 200)
    try:
        with open(path, "rb", opener=_no_wait) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InvalidModelError(f"{name} is not a regular file; give the path of a .onnx file")
            if status.st_size > MAX_PROTOBUF:
                raise ResourceLimitError(
                    f"{name} has {status.st_size} bytes, protobuf holds at most {MAX_PROTOBUF}: "
                    "save the model with external data"
                )
            content = file.read(MAX_PROTOBUF + 1)
    except FileNotFoundError:
        raise InvalidModelError(f"there is no file {name}") from None
    except IsADirectoryError:
        raise InvalidModelError(f"{name} is a folder; give the path of the .onnx file in it") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InvalidModelError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return OnnxFile(_parse(content, name), name, path)


def _no_wait(path: str, flags: int) -> int:
    """Opens without waiting for a writer, as opening a named pipe would."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))


def _parse(content: bytes, name: str) -> onnx.ModelProto:
    if not content:
        raise InvalidModelError(f"{name} is empty; an ONNX model was expected")
    try:
        proto = onnx.ModelProto.FromString(content)
    except DecodeError:
        what = "is text" if _TEXT.issuperset(content[:4096]) else "is truncated or not protobuf"
        raise InvalidModelError(f"{name} {what}; a binary ONNX model was expected") from None
    return _complete(proto, name)


def _complete(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Bytes of another format can parse as a protobuf with unknown fields only."""
    if not proto.ir_version or not proto.opset_import or not proto.HasField("graph"):
        raise InvalidModelError(f"{name} is not an ONNX model, or is truncated: it has no version or no graph")
    _check_texts(proto, name)
    return proto


def _check_texts(message: Message, name: str) -> None:
    """Raises InvalidModelError for a text that is not UTF-8: protobuf hands it out as bytes."""
    if isinstance(message, TensorProto):  # its fields, without copying its elements
        inner = [(field, getattr(message, field)) for field in ("name", "doc_string", "external_data")]
    else:
        inner = [(field.name, value) for field, value in message.ListFields() if field.type in _TEXTS_AND_MESSAGES]
    for field, value in inner:
        for item in (value,) if isinstance(value, str | bytes | Message) else value:
            if isinstance(item, Message):
                _check_texts(item, name)
            elif isinstance(item, bytes):
                raise InvalidModelError(f"{name} is damaged: a {field} of its {message.DESCRIPTOR.name} is not UTF-8")


class TensorReader:
    """Turns the tensors of one model into arrays.

    Arguments:
        file: the model; its folder is where external data may lie.
    """

    def __init__(self, file: OnnxFile):
        self._file = file
        self._maps: dict[str, np.ndarray] = {}

    def array(self, tensor: TensorProto, what: str = "") -> np.ndarray:
        """The tensor as an array, read-only and without a copy where the bytes allow it.

        Arguments:
            tensor: of an initialiser or an attribute.
            what: words for it in messages; None for its name.

        Raises:
            InvalidModelError: the elements don't fit dtype and shape.
            UnsafeInputError: the location of external data leads out of the model's folder or is no regular file.
            UnsupportedError: texts that are not UTF-8.
        """
        what = f"{self._file.name}: {what or 'tensor ' + shown(tensor.name)}"
        dtype = self._dtype(tensor, what)
        shape = tuple(tensor.dims)
        if len(shape) > MAX_RANK or any(d < 0 or d >= 2**63 for d in shape):
            raise InvalidModelError(f"{what} has the impossible shape {shown(shape)}")
        count = math.prod(shape)
        if tensor.data_type == TensorProto.STRING:
            return self._texts(tensor, shape, what)
        bits = _BITS.get(dtype.name, 8 * dtype.itemsize)
        needed = -(-count * bits // 8)
        if tensor.data_location == TensorProto.EXTERNAL:
            data = self._external(tensor, needed, what)
        elif tensor.HasField("raw_data"):
            data = np.frombuffer(tensor.raw_data, np.uint8)
            if data.size != needed:
                raise InvalidModelError(f"{what} has {data.size} bytes, {dtype.name}{list(shape)} needs {needed}")
        else:
            return self._from_fields(tensor, dtype, shape, count, bits, what)
        if bits < 8:
            return self._by_onnx(TensorProto(data_type=tensor.data_type, dims=shape, raw_data=data.tobytes()), what)
        array = data.view(dtype) if data.size else np.zeros(0, dtype)
        if not array.flags.aligned:
            array = array.copy()
        return array.reshape(shape)

    @staticmethod
    def _dtype(tensor: TensorProto, what: str) -> np.dtype[Any]:
        if tensor.data_type not in dtypes.ONNX_DTYPES:
            raise InvalidModelError(f"{what} has the unknown element type {tensor.data_type}")
        if tensor.HasField("segment"):
            raise InvalidModelError(f"{what} is stored in segments, which ONNX does not define")
        return dtypes.from_onnx(tensor.data_type)

    def _from_fields(
        self, tensor: TensorProto, dtype: np.dtype[Any], shape: tuple[int, ...], count: int, bits: int, what: str
    ) -> np.ndarray:
        stored = len(getattr(tensor, _FIELDS.get(tensor.data_type, "int32_data")))
        entries = count * 2 if dtype.kind == "c" else -(-count * bits // 8) if bits < 8 else count
        if stored != entries:
            raise InvalidModelError(f"{what} has {stored} entries, {dtype.name}{list(shape)} needs {entries}")
        return self._by_onnx(tensor, what)

    @staticmethod
    def _texts(tensor: TensorProto, shape: tuple[int, ...], what: str) -> np.ndarray:
        if len(tensor.string_data) != math.prod(shape):
            raise InvalidModelError(f"{what} has {len(tensor.string_data)} texts, its shape {list(shape)} needs others")
        array = np.empty(len(tensor.string_data), object)
        try:
            array[:] = [text.decode() for text in tensor.string_data]
        except UnicodeDecodeError:
            raise UnsupportedError(f"{what} holds bytes that are not UTF-8") from None
        return array.reshape(shape)

    def dense(self, tensor: onnx.SparseTensorProto) -> np.ndarray:
        """A sparse tensor as an array, with zeros where it has no values.

        Raises InvalidModelError if its indices do not fit its shape, ResourceLimitError if it is too large to be dense.
        """
        values, indices = self.array(tensor.values), self.array(tensor.indices, "the indices of a sparse tensor")
        shape = tuple(tensor.dims)
        what = f"{self._file.name}: sparse tensor {shown(tensor.values.name)}"
        if any(d < 0 for d in shape) or values.ndim != 1 or indices.shape[:1] != values.shape:
            raise InvalidModelError(f"{what} has the impossible shape {shown(shape)}")
        if math.prod(shape) > MAX_PROTOBUF:
            raise ResourceLimitError(f"{what} has {math.prod(shape)} elements when dense")
        try:
            flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
            array = np.zeros(math.prod(shape), values.dtype)
            array[flat] = values
        except (ValueError, IndexError, TypeError):
            raise InvalidModelError(f"{what} has indices outside its shape {shown(shape)}") from None
        return array.reshape(shape)

    @staticmethod
    def _by_onnx(tensor: TensorProto, what: str) -> np.ndarray:
        try:
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidModelError(f"{what} cannot be read: {error}") from error

    def _external(self, tensor: TensorProto, needed: int, what: str) -> np.ndarray:
        """The bytes of a tensor that is stored in another file, mapped."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        content = self._mapped(location, what)
        offset = _number(entries.get("offset", "0"), "offset", what)
        length = _number(entries["length"], "length", what) if "length" in entries else needed
        if length != needed:
            raise InvalidModelError(f"{what} takes {length} bytes of {shown(location)}, dtype and shape need {needed}")
        if offset + length > content.size:
            raise InvalidModelError(
                f"{what} takes bytes {offset} to {offset + length} of {shown(location)}, which has {content.size}"
            )
        return content[offset : offset + length]

    def _mapped(self, location: str, what: str) -> np.ndarray:
        if location not in self._maps:
            if self._file.path is None:
                raise InvalidModelError(
                    f"{what} is stored in another file; give the path of the model, not its content"
                )
            path = external_path(self._file.path, location, what)
            try:
                with open(path, "rb", opener=_no_wait) as file:
                    status = os.fstat(file.fileno())
                    if not stat.S_ISREG(status.st_mode):
                        raise UnsafeInputError(f"{what}: {shown(location)} is not a regular file")
                    if not os.path.samestat(status, os.lstat(path)):
                        raise UnsafeInputError(f"{what}: {shown(location)} was replaced while it was opened")
                    if status.st_nlink > 1:
                        raise UnsafeInputError(
                            f"{what}: {shown(location)} has several names (hard links) and may be "
                            "something else's file; copy the model's folder"
                        )
                    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if status.st_size else b""
            except OSError as error:
                raise InvalidModelError(f"{what}: {shown(location)} cannot be read: {error.strerror}") from error
            self._maps[location] = np.frombuffer(content, np.uint8)
        return self._maps[location]


def external_path(model: Path, location: str, what: str) -> Path:
    """The path of a file with external data.

    Arguments:
        model: path of the model.
        location: what the tensor says: a path relative to the model's folder, with forward slashes.
        what: words for the tensor.

    Raises UnsafeInputError unless the location stays inside the folder and no part of it is a link, InvalidModelError
    if there is no such file.
    """
    parts = PurePosixPath(location).parts
    if (
        not parts
        or location.startswith("/")
        or "\\" in location
        or ":" in parts[0]
        or ".." in parts
        or any(ord(letter) < 32 or ord(letter) == 127 for letter in location)
    ):
        raise UnsafeInputError(f"{what} is stored in {shown(location)}; only relative paths inside the folder are read")
    path = model.parent
    for part in parts:
        path = path / part
        try:
            status = os.lstat(path)
        except OSError:
            raise InvalidModelError(f"{what} is stored in {shown(location)}, which is not beside the model") from None
        if stat.S_ISLNK(status.st_mode):
            raise UnsafeInputError(f"{what} is stored in {shown(location)}, which leads through a link; copy the file")
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeInputError(f"{what} is stored in {shown(location)}, which is not a regular file")
    return path


def _number(text: str, key: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InvalidModelError(f"{what}: the {key} of its external data is {shown(text)}, not a number of bytes")
    return int(text)
