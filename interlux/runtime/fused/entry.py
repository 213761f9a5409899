"""Calling native functions from Python: the fast entry, and the way for all that it does not take.

    entry = Entry(native, signature, threads=None)
    y, = entry.call(x)               # a builtin: about 0.1 µs above the function itself
    y, = entry.call(x, out=y)

Inputs may be arrays of NumPy, JAX or PyTorch, and whatever has `__dlpack__`, `__array__` or the buffer protocol. What
lies in this machine's memory in C order is read where it is, without a copy; all else is copied first. Outputs are
arrays of NumPy.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir.errors import InvalidModelError, ResourceLimitError
from ...ir.foreign import Kind
from ...ir.model import Dimension, Signature
from ..runner import first_line
from . import native
from .abi import layout
from .descriptor import Call, Port
from .threads import cores

RELEASE = 8_000  # nanoseconds of work from which Python's lock is released; doing so costs 50
SPLIT = 25_000  # nanoseconds of work from which threads are tried; less could never pay
CHUNK = 5_000  # nanoseconds of work in a chunk
NEVER = 2**62
_WORK = 10_000  # steps after which two arrays between the same addresses are taken to have elements in common
_METH_FASTCALL, _METH_KEYWORDS = 0x80, 0x02
_XLA_TYPES = {  # XLA_FFI_DataType
    "bool": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint8": 6, "uint16": 7, "uint32": 8, "uint64": 9,
    "float16": 10, "float32": 11, "float64": 12, "bfloat16": 16,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Native:
    """A compiled function `run(inputs, outputs, parameters, arena, batch)` and what its callers must know.

    Arguments:
        address: of `run`.
        inputs, outputs: shape of one sample (without the batch) and dtype of each.
        parameters: the packed parameters.
        arena: bytes of scratch memory for a call.
        grain: batches are split at multiples of it, so that every part is computed as the whole would be.
        nanoseconds: of work per sample in a large batch; measured on zeros if it is not known.
        key: a hash of what is computed, without the parameters; it names the function in executables of XLA.
        owner: kept as long as the function may be called: the machine code.
        arranged: for each output None, or, where the model's is not [batch, …], its shape with -1 on the batch's axis;
            then the function gives it as [batch, n]. () if none is such.
    """

    address: int
    inputs: tuple[Kind, ...]
    outputs: tuple[Kind, ...]
    parameters: np.ndarray
    arena: int = 0
    grain: int = 64
    nanoseconds: float | None = None
    key: bytes = b""
    owner: Any = None
    arranged: tuple[tuple[int, ...] | None, ...] = ()


def aligned(array: np.ndarray, alignment: int = 64) -> np.ndarray:
    """The bytes of an array at an aligned address: itself, or a copy as uint8."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if flat.size and flat.ctypes.data % alignment == 0:
        return flat
    room = np.zeros(flat.size + alignment, np.uint8)
    start = -room.ctypes.data % alignment
    room[start : start + flat.size] = flat
    return room[start : start + flat.size]


def checked_threads(threads: Any) -> int | None:
    """How many threads are wanted. Raises InvalidModelError unless that is a positive integer or None."""
    if threads is None or (isinstance(threads, int | np.integer) and not isinstance(threads, bool) and threads > 0):
        return None if threads is None else int(threads)
    raise InvalidModelError(f"threads must be a positive integer or None, not {threads!r}")


class Entry:
    """A native function as Python calls it.

    Arguments:
        native: the function.
        signature: how it is called; None: by the inputs in order, with any batch.
        threads: at most so many compute one batch; None is all cores that this process may use.

    `call` is what users call: it takes the inputs, and `out=` for an array (or a tuple of them) that the outputs are
    written to, and returns the tuple of outputs. Raises InvalidModelError for arguments that don't fit. Of a model that
    has an input named out, `out=` is that input, unless all inputs are given by position.
    """

    def __init__(self, native_function: Native, signature: Signature | None = None, threads: int | None = None):
        threads = checked_threads(threads)
        self.native = native_function
        self.signature = signature
        self._names = dict.fromkeys(spec.name for spec in signature.inputs).keys() if signature else ()
        structure = (signature and signature.in_structure) or {"args": {}, "kwargs": {}}
        self._has_out = "out" in {*self._names, *structure["args"], *structure["kwargs"]}
        self._parameters = aligned(native_function.parameters)
        self._dispatch = _dispatch()
        self.description = self._describe()
        self.number = _number_of(native_function)
        self.fast = not isinstance(layout(), str)
        self.call: Callable[..., tuple[np.ndarray, ...]] = _builtin(self.description) if self.fast else self.slow
        self._plan(cores() if threads is None else threads)

    def attach(self, runner: Any) -> None:
        """Makes an object call this entry when it is called, without Python in between.

        The object gets a class of its own, derived from its present one.
        """
        kind = type(runner)
        own = {"__call__": self.call, "__doc__": kind.__doc__, "__module__": kind.__module__, "__slots__": ()}
        runner.__class__ = type(kind.__name__, (kind,), own)

    def _describe(self) -> Call:
        own, call = self.native, Call()
        kinds = (*own.inputs, *own.outputs)
        ports = (Port * len(kinds))()
        kept: list[Any] = [own, self._parameters, ports]
        for port, kind in zip(ports, kinds, strict=True):
            dtype = np.dtype(kind.dtype)
            shape = (ctypes.c_int64 * (1 + len(kind.shape)))(0, *kind.shape)
            kept += [dtype, shape]
            port.dtype, port.ndim, port.shape = id(dtype), len(shape), ctypes.addressof(shape)
            port.bytes = dtype.itemsize * math.prod(kind.shape)
            port.xla_type = _XLA_TYPES.get(dtype.name, 0)
        call.run, call.parameters, call.blob = own.address, self._parameters.ctypes.data, self._parameters.size
        call.arena = -(-own.arena // 64) * 64
        call.inputs, call.outputs, call.ports = len(own.inputs), len(own.outputs), ports
        call.slow, call.out = self.slow, "out"
        call.smallest, call.largest = self._batches()
        call.release_from = call.split_from = NEVER
        call.threads, call.chunk, call.pool = 1, own.grain, native.pool().address
        call.kept = kept
        return call

    def _batches(self) -> tuple[int, int]:
        """The batches that need no further look at the signature."""
        if self.signature is None:
            return 0, NEVER
        low, high = 0, NEVER
        for spec in self.signature.inputs:
            size = (spec.shape or (None,))[0]
            if isinstance(size, int):
                low, high = max(low, size), min(high, size)
            elif size is not None:
                range = self.signature.dims.get(size, Dimension())
                if range.multiple_of != 1:
                    return NEVER, 0
                low = max(low, range.minimum)
                high = high if range.maximum is None else min(high, range.maximum)
        return low, high

    def _plan(self, threads: int) -> None:
        """Decides from which batch the lock is released and threads are used."""
        own, call = self.native, self.description
        self.nanoseconds = max(0.01, measured(own) if own.nanoseconds is None else own.nanoseconds)
        call.release_from = max(1, math.ceil(RELEASE / self.nanoseconds))
        if threads > 1:
            call.threads = threads
            for history in call.history:
                history.alone = math.ceil(self.nanoseconds * 1024)
            call.chunk = own.grain * math.ceil(CHUNK / (self.nanoseconds * own.grain))
            call.split_from = max(math.ceil(SPLIT / self.nanoseconds), 2 * call.chunk)

    def _outputs(self, batch: int) -> tuple[np.ndarray, ...]:
        return tuple(np.empty((batch, *kind.shape), kind.dtype) for kind in self.native.outputs)

    def _compute(self, arrays: Sequence[np.ndarray], outputs: Sequence[np.ndarray], parameters: int = 0) -> None:
        """Runs on arrays that lie as the function wants them."""
        batch = len(arrays[0])
        if batch == 0:
            return
        call = self.description
        if batch >= call.split_from:
            call.threads = min(call.threads, native.pool().grow(call.threads))
        given, made = ((ctypes.c_void_p * len(a))(*(x.ctypes.data for x in a)) for a in (arrays, outputs))
        if self._dispatch(call, given, made, parameters or call.parameters, batch):
            raise ResourceLimitError(f"there is no memory for the arena of {call.arena} bytes")

    def slow(self, *args: Any, out: Any = None, **kwargs: Any) -> tuple[np.ndarray, ...]:
        """What `call` does, for all arguments: converts and checks them."""
        if out is not None and self._has_out and len(args) < len(self._names):
            return self.run(self._bind(args, {**kwargs, "out": out}))
        if self.fast and not args and kwargs.keys() == self._names:
            inputs = tuple(kwargs[name] for name in self._names)
            return self.call(*inputs) if out is None else self.call(*inputs, out=out)
        if self.fast and not kwargs:
            arrays = tuple(map(_plain, args))
            if any(array is not given for array, given in zip(arrays, args, strict=True)):
                return self.call(*arrays) if out is None else self.call(*arrays, out=out)
        return self.run(self._bind(args, kwargs), out)

    def run(self, arrays: Sequence[np.ndarray], out: Any = None, parameters: np.ndarray | None = None) -> Any:
        """Runs on arrays that fit the signature, in any memory layout.

        Arguments:
            out: an array, or a tuple of them, for the outputs.
            parameters: packed parameters at an aligned address (see `aligned`) in place of the model's.

        Returns the tuple of outputs; those given as `out` are the same objects.
        """
        arrays = [_in_order(array) for array in arrays]
        batch = len(arrays[0])
        for i, array in enumerate(arrays):
            if len(array) != batch:
                raise InvalidModelError(
                    f"the inputs are batches of different sizes: {batch} in {self._name(0)}, {len(array)} in "
                    f"{self._name(i)}"
                )
        outputs = self._outputs(batch)
        wanted = outputs if out is None else self._targets(out, batch)
        used = tuple(
            target if _is_direct(target, arrays) and target is not made else made
            for target, made in zip(wanted, outputs, strict=True)
        )
        self._compute(arrays, used, 0 if parameters is None else parameters.ctypes.data)
        for target, made in zip(wanted, used, strict=True):
            if target is not made:
                target[...] = made
        return wanted

    def _targets(self, out: Any, batch: int) -> tuple[np.ndarray, ...]:
        """The arrays given as `out`, checked."""
        targets = tuple(out) if isinstance(out, tuple | list) else (out,)
        if len(targets) != len(self.native.outputs):
            raise InvalidModelError(f"out has {len(targets)} arrays, the model has {len(self.native.outputs)} outputs")
        for target, kind in zip(targets, self.native.outputs, strict=True):
            shape = (batch, *kind.shape)
            if not isinstance(target, np.ndarray):
                raise InvalidModelError(f"out must be a numpy array, not {type(target).__name__}")
            if target.dtype != kind.dtype or target.shape != shape:
                raise InvalidModelError(
                    f"out must have shape {shape} and dtype {np.dtype(kind.dtype).name}, not {target.shape} and "
                    f"{target.dtype.name}"
                )
            if not target.flags.writeable:
                raise InvalidModelError("out must be writeable")
        for (i, one), (k, other) in itertools.combinations(enumerate(targets), 2):
            if np.may_share_memory(one, other, max_work=_WORK):  # type: ignore[arg-type]  # any number, in fact
                raise InvalidModelError(f"out has the same memory for outputs {i} and {k}; give each its own")
        return targets

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[np.ndarray]:
        """The input arrays from a call's arguments, checked."""
        args = tuple(map(_imported, args))
        kwargs = {name: _imported(value) for name, value in kwargs.items()}
        if self.signature is not None:
            return self.signature.bind(args, kwargs)
        if kwargs:
            raise InvalidModelError(f"unexpected argument {next(iter(kwargs))!r}")
        if len(args) != len(self.native.inputs):
            raise InvalidModelError(f"{len(args)} inputs given, the function takes {len(self.native.inputs)}")
        arrays = []
        for i, (value, kind) in enumerate(zip(args, self.native.inputs, strict=True)):
            array = np.asarray(value)
            if array.dtype != kind.dtype or array.shape[1:] != tuple(kind.shape) or not array.ndim:
                sizes = ", ".join(("batch", *map(str, kind.shape)))
                raise InvalidModelError(
                    f"{self._name(i)} must be {np.dtype(kind.dtype).name}[{sizes}], not "
                    f"{array.dtype.name}[{', '.join(map(str, array.shape))}]"
                )
            arrays.append(array)
        return arrays

    def _name(self, index: int) -> str:
        return f"input {self.signature.inputs[index].name!r}" if self.signature is not None else f"input {index}"


def measured(function: Native) -> float:
    """Nanoseconds per sample of a native function, on zeros."""
    room = np.zeros(function.arena + 64, np.uint8)
    arena = room.ctypes.data + -room.ctypes.data % 64
    parameters = aligned(function.parameters)
    run, pointer = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, ctypes.c_int64)(function.address), ctypes.c_void_p
    batch = function.grain
    while True:
        sides = [[np.zeros((batch, *k.shape), k.dtype) for k in kinds] for kinds in (function.inputs, function.outputs)]
        given, made = ((pointer * len(arrays))(*(a.ctypes.data for a in arrays)) for arrays in sides)
        best = math.inf
        for _ in range(4):
            start = time.perf_counter_ns()
            run(given, made, parameters.ctypes.data, arena, batch)
            best = min(best, time.perf_counter_ns() - start)
        if best > 40_000 or batch >= 4096:  # long beside the call itself
            return best / batch
        batch *= max(2, min(16, math.ceil(50_000 / best)))


def _number_of(function: Native) -> int:
    """A positive number of 63 bits that names a function and what it takes; chance where there is no key."""
    kinds = repr([(kind.shape, np.dtype(kind.dtype).name) for kind in (*function.inputs, *function.outputs)])
    digest = hashlib.sha256((function.key or os.urandom(32)) + kinds.encode())
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def _is_direct(target: np.ndarray, inputs: Sequence[np.ndarray]) -> bool:
    """Whether the native function may write to an array: it is laid out as it should, and no input is inside."""
    if type(target) is not np.ndarray or not (target.flags.c_contiguous and target.flags.aligned):
        return False
    return not any(np.may_share_memory(target, array) for array in inputs)


def _in_order(array: np.ndarray) -> np.ndarray:
    """The array, or a copy of it in C order at an address that fits its dtype."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.array(array, order="C")


def _plain(value: Any) -> Any:
    """An argument as the entry takes it, where that is possible without looking at the signature; else itself."""
    if type(value) is np.ndarray:
        return _in_order(value)
    if isinstance(value, np.ma.MaskedArray) or not (hasattr(value, "__array__") or hasattr(value, "__dlpack__")):
        return value
    try:
        return _in_order(_imported(value))
    except InvalidModelError:  # the slow way says it with the name of the input
        return value


def _imported(value: Any) -> Any:
    """An argument as something that NumPy reads: objects that say how become arrays, of DLPack alone without a copy."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise InvalidModelError("a masked array has no values at some places; fill them first: x.filled(0)")
    if not (hasattr(value, "__array__") or hasattr(value, "__dlpack__")):
        return value
    try:
        return np.asarray(value) if hasattr(value, "__array__") else np.from_dlpack(value)
    except Exception as error:  # the object's own code, which may raise whatever it likes
        raise InvalidModelError(f"this {type(value).__name__} is no array for NumPy: {first_line(error)}") from error


@functools.cache
def _dispatch() -> Any:
    """`dispatch` through ctypes, which releases Python's lock."""
    pointer = ctypes.c_void_p
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.POINTER(Call), pointer, pointer, pointer, ctypes.c_int64)
    return kind(native.library().address("dispatch"))


class _MethodDefinition(ctypes.Structure):
    """PyMethodDef."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


@functools.cache
def _definition() -> _MethodDefinition:
    """One for all builtins, kept for ever: they read it until they are gone."""
    address = native.library().address("entry")
    return _MethodDefinition(b"run", address, _METH_FASTCALL | _METH_KEYWORDS, b"Runs the model on its inputs.")


def _builtin(description: Call) -> Callable[..., tuple[np.ndarray, ...]]:
    """A builtin function whose `self` is the description; it keeps that alive."""
    new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
    make = new(("PyCFunction_NewEx", ctypes.pythonapi))
    function: Callable[..., tuple[np.ndarray, ...]] = make(ctypes.addressof(_definition()), description, None)
    return function
