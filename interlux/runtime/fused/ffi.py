"""Native functions inside jax.jit: called by XLA without Python in between, or by a callback where it must be.

    outputs = run(entry, parameters, inputs)      # while JAX traces: arrays or tracers

Under vmap the mapped axis of the inputs is folded into the batch, so that a mapped call is one call; mapped parameters
make one call each. Nothing here is differentiable by itself: `layer` says what the derivatives are.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import native
from .entry import Entry, aligned
from .ffi_handler import MAJOR, STRUCTS

TARGET = "interlux_fused"
_WORDS = np.dtype(np.uint32)
Value = Any


@functools.cache
def supported() -> str | None:
    """None if XLA can call native functions here, else the reason why Python is called back instead.

    The declarations of the installed jaxlib are compared with what the handler reads. The environment variable
    INTERLUX_FUSED_FFI=callback says that it must not be used.
    """
    if os.environ.get("INTERLUX_FUSED_FFI") == "callback":
        return "INTERLUX_FUSED_FFI=callback"
    try:
        from jax import ffi
    except ImportError:
        return "this JAX has no foreign function interface"
    try:
        header = Path(ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text(encoding="utf-8")
    except OSError:
        return "jaxlib comes without the declarations of its foreign function interface"
    problem = compare(header)
    if problem is None:
        ffi.register_ffi_target(TARGET, _capsule(native.library().address("handler")), platform="cpu")
    return problem


def compare(header: str) -> str | None:
    """What is otherwise in XLA's c_api.h than the handler expects, None if nothing is."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", header, flags=re.DOTALL)
    major = re.search(r"#define\s+XLA_FFI_API_MAJOR\s+(\d+)", text)
    if major is None or int(major[1]) != MAJOR:
        return f"the foreign function interface of XLA has version {major[1] if major else '?'}, not {MAJOR}"
    for name, expected in STRUCTS.items():
        body = re.search(rf"struct\s+{name}\s*\{{([^}}]*)\}}", text)
        found = tuple(re.findall(r"(\w+)\s*;", body[1])) if body else ()
        if found != expected:
            return f"{name} of XLA has other members: {', '.join(found) or 'none'}"
    execute = re.search(r"XLA_FFI_ExecutionStage_EXECUTE\s*=\s*(\d+)", text)
    create = re.search(r"internal_api;\s*_XLA_FFI_API_STRUCT_FIELD\((\w+)\)", text)
    if execute is None or execute[1] != "3" or create is None or create[1] != "XLA_FFI_Error_Create":
        return "stages or functions of XLA's foreign function interface are numbered otherwise"
    return None


def _capsule(address: int) -> Any:
    new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return new(("PyCapsule_New", ctypes.pythonapi))(address, None, None)


def run(entry: Entry, parameters: Value, inputs: Sequence[Value]) -> tuple[Value, ...]:
    """Calls a native function while JAX traces.

    Arguments:
        entry: the function.
        parameters: the packed parameters, one-dimensional, of the bytes that the function wants.
        inputs: [batch, *shape] each.

    Returns the outputs.
    """
    function = _function(entry)
    outputs: tuple[Value, ...] = function(parameters, *inputs)
    return outputs


@functools.lru_cache(maxsize=256)
def _function(entry: Entry) -> Any:
    """A native function that knows what vmap does with it."""
    import jax
    import jax.numpy as jnp

    @jax.custom_batching.custom_vmap
    def function(parameters: Value, *inputs: Value) -> tuple[Value, ...]:
        return _call(entry, parameters, inputs)

    @function.def_vmap
    def mapped(size: int, batched: Sequence[bool], parameters: Value, *inputs: Value) -> Any:
        made = (True,) * len(entry.native.outputs)
        if batched[0]:  # other parameters each time: one call after the other
            moving = [x for x, yes in zip((parameters, *inputs), batched, strict=True) if yes]

            def one(values: Any) -> Any:
                rest = iter(values)
                given = [next(rest) if yes else x for x, yes in zip((parameters, *inputs), batched, strict=True)]
                return function(*given)

            return jax.lax.map(one, moving), made
        whole = [
            x if yes else jnp.broadcast_to(x[None], (size, *x.shape))
            for x, yes in zip(inputs, batched[1:], strict=True)
        ]
        batch = whole[0].shape[1]
        results = function(parameters, *(x.reshape(size * batch, *x.shape[2:]) for x in whole))
        return tuple(y.reshape(size, batch, *y.shape[1:]) for y in results), made

    return function


def _call(entry: Entry, parameters: Value, inputs: Sequence[Value]) -> tuple[Value, ...]:
    import jax

    kinds = [((inputs[0].shape[0], *kind.shape), np.dtype(kind.dtype)) for kind in entry.native.outputs]
    if supported() is None:
        native.register(entry.number, entry.description)
        if entry.description.threads > 1:
            native.pool().grow(entry.description.threads)
        results = [jax.ShapeDtypeStruct(*kind) for kind in kinds]
        made = jax.ffi.ffi_call(TARGET, results)(*inputs, parameters, function=np.int64(entry.number))
        return tuple(made)

    def compute(parameters: Any, *arrays: Any) -> tuple[np.ndarray, ...]:
        given = [_received(x, np.dtype(k.dtype)) for x, k in zip(arrays, entry.native.inputs, strict=True)]
        blob = aligned(np.asarray(parameters))
        return tuple(map(_sent, entry.run(given, parameters=blob)))

    shapes = [jax.ShapeDtypeStruct(*_as_words(*kind)) for kind in kinds]
    sent = [jax.lax.bitcast_convert_type(x, _WORDS) if x.dtype.itemsize == 8 else x for x in (parameters, *inputs)]
    received = jax.pure_callback(compute, tuple(shapes), *sent, vmap_method="sequential")
    return tuple(
        jax.lax.bitcast_convert_type(x, dtype) if dtype.itemsize == 8 else x
        for x, (_, dtype) in zip(received, kinds, strict=True)
    )


# A callback runs in a thread of XLA's, where 64-bit types are switched off whatever they are here: such arrays travel
# as pairs of 32-bit words.


def _as_words(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    return ((*shape, 2), _WORDS) if dtype.itemsize == 8 else (shape, dtype)


def _sent(array: np.ndarray) -> np.ndarray:
    return array.view(_WORDS).reshape(*array.shape, 2) if array.dtype.itemsize == 8 else array


def _received(array: Any, dtype: np.dtype[Any]) -> np.ndarray:
    words = np.ascontiguousarray(array)
    return words.view(dtype).reshape(words.shape[:-1]) if dtype.itemsize == 8 else words
