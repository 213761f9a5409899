"""What generated code assumes of CPython's and NumPy's memory, found and checked with probe arrays.

The generated entry reads the fields of array objects itself. Neither CPython nor NumPy promises where they lie, so
every place is compared with what the objects say of themselves; where anything differs, `layout` returns the reason and
the calls go through ctypes.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

C_CONTIGUOUS, ALIGNED, WRITEABLE = 0x1, 0x100, 0x400  # NPY_ARRAY_… in array objects' flags
READABLE = C_CONTIGUOUS | ALIGNED

_ABI_VERSIONS = (0x1000009, 0x2000000)  # NumPy 1.x and 2.x
_GET_VERSION, _ARRAY_TYPE, _NEW_FROM_DESCR = 0, 2, 94  # slots of the table that C extensions use
_ARRAY_BYTES = 56  # from the end of the object header to the end of `flags`
_PYTHON = (
    "PyEval_RestoreThread", "PyEval_SaveThread", "PyObject_Vectorcall", "PyTuple_GetItem", "PyTuple_New",
    "PyTuple_SetItem", "PyTuple_Size", "Py_DecRef", "Py_IncRef",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Byte offsets in array objects, and the addresses that the entry needs.

    Arguments:
        type, data, ndim, shape, dtype, flags: of these fields in an array object.
        memory: of the pointer to its memory in an instance of a ctypes.Structure.
        symbols: addresses of the functions and objects of CPython and NumPy, by the names used in the code.
    """

    type: int
    data: int
    ndim: int
    shape: int
    dtype: int
    flags: int
    memory: int
    symbols: tuple[tuple[str, int], ...]


@functools.cache
def layout() -> Layout | str:
    """The layout of this process, or why the generated entry cannot be used here.

    The environment variable INTERLUX_FUSED_ENTRY=ctypes says that it must not be used.
    """
    if os.environ.get("INTERLUX_FUSED_ENTRY") == "ctypes":
        return "INTERLUX_FUSED_ENTRY=ctypes"
    if sys.implementation.name != "cpython":
        return f"this is {sys.implementation.name}, not CPython"
    if "t" in sys.abiflags:
        return "this is a free-threaded CPython, which counts references in another way"
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        return "pointers have not 8 bytes here"
    header = object.__basicsize__
    if np.ndarray.__basicsize__ < header + _ARRAY_BYTES:
        return "arrays of this NumPy are smaller than expected"
    found = Layout(
        type=header - 8,
        data=header,
        ndim=header + 8,
        shape=header + 16,
        dtype=header + 40,
        flags=header + 48,
        memory=header,
        symbols=(),
    )
    probe = _Probe(7)
    if _word(probe, found.memory) != ctypes.addressof(probe):
        return "instances of ctypes.Structure lie otherwise in memory"
    problem = next((problem for array in _probes() if (problem := _compare(found, array))), None)
    if problem is not None:
        return problem
    symbols = _symbols()
    return symbols if isinstance(symbols, str) else Layout(**{**vars(found), "symbols": tuple(symbols.items())})


class _Probe(ctypes.Structure):
    _fields_ = [("number", ctypes.c_int64)]


def _probes() -> Iterator[np.ndarray]:
    """Arrays that differ in all that the entry looks at."""
    yield np.zeros((3, 5), np.float32)
    yield np.zeros((2, 3, 4), np.float64).transpose(2, 0, 1)
    yield np.zeros(11, np.int64)[::2]
    yield np.zeros((4, 1), np.float32, order="F")
    yield np.frombuffer(bytes(25), np.uint8)[1:].view(np.float32)  # not aligned, read-only
    yield np.zeros((), np.float32)
    yield np.zeros((0, 7), np.float64)


def _compare(layout: Layout, array: np.ndarray) -> str | None:
    """What is not where it should be in an array object."""
    if _word(array, layout.type) != id(type(array)):
        return "the type of an object lies elsewhere"
    if _word(array, layout.data) != array.__array_interface__["data"][0]:
        return "the data pointer of an array lies elsewhere"
    if _word(array, layout.ndim) & 0xFFFFFFFF != array.ndim:
        return "the rank of an array lies elsewhere"
    if _word(array, layout.dtype) != id(array.dtype):
        return "the dtype of an array lies elsewhere"
    if _word(array, layout.flags) & 0xFFFF != array.flags.num & 0xFFFF:
        return "the flags of an array lie elsewhere"
    shape, strides = _word(array, layout.shape), _word(array, layout.shape + 8)
    if array.ndim:
        if strides - shape != 8 * array.ndim:  # NumPy keeps them together: a pointer that may be followed
            return "the shape of an array lies elsewhere"
        if tuple((ctypes.c_int64 * array.ndim).from_address(shape)) != array.shape:
            return "the shape of an array is written otherwise"
    return None


def _word(object: Any, offset: int) -> int:
    """Eight bytes of an object's memory, inside its size."""
    return ctypes.c_uint64.from_address(id(object) + offset).value


def _symbols() -> dict[str, int] | str:
    """The addresses of what the entry calls, or what is missing."""
    symbols = {}
    for name in _PYTHON:
        function = getattr(ctypes.pythonapi, name, None)
        if function is None:
            return f"this CPython has no {name}"
        symbols[name] = ctypes.cast(function, ctypes.c_void_p).value or 0
    core = "numpy._core" if int(np.__version__.partition(".")[0]) >= 2 else "numpy.core"
    capsule = getattr(import_module(f"{core}._multiarray_umath"), "_ARRAY_API", None)
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    if capsule is None or type(capsule).__name__ != "PyCapsule":
        return "this NumPy has no table of C functions"
    table = (ctypes.c_void_p * (_NEW_FROM_DESCR + 1)).from_address(pointer_of(capsule, None))
    version = ctypes.PYFUNCTYPE(ctypes.c_uint)(table[_GET_VERSION] or 0)()
    if version not in _ABI_VERSIONS or table[_ARRAY_TYPE] != id(np.ndarray):
        return f"the C interface of this NumPy is unknown (version {version:#x})"
    symbols["interlux_array_type"] = table[_ARRAY_TYPE] or 0
    symbols["interlux_new_array"] = table[_NEW_FROM_DESCR] or 0
    return symbols if _makes_arrays(symbols) else "NumPy's function that makes arrays is another one"


def _makes_arrays(symbols: dict[str, int]) -> bool:
    """Whether the function that makes arrays does so."""
    pointer = ctypes.c_void_p
    new = ctypes.PYFUNCTYPE(
        ctypes.py_object, pointer, ctypes.py_object, ctypes.c_int, pointer, pointer, pointer, ctypes.c_int, pointer
    )(symbols["interlux_new_array"])
    dtype, shape = np.dtype(np.float64), (ctypes.c_int64 * 2)(3, 4)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(dtype))  # the function takes the reference over
    array = new(symbols["interlux_array_type"], dtype, 2, ctypes.addressof(shape), None, None, 0, None)
    return type(array) is np.ndarray and array.shape == (3, 4) and array.dtype == dtype and array.flags.c_contiguous
