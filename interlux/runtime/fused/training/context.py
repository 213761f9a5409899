"""What the native training function is told: a table of 64-bit slots, and how code reads and writes them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ..llvm import F64, I64, PTR, Function, Type, Value

_NAMES = (
    "y",  # targets
    "index",  # int64: numbers of the samples, in the order in which they are used
    "batch",  # samples of the present step
    "parameters",  # constants
    "weights",
    "gradients",  # of the first chunk; those of others follow
    "sums",  # float64, the same
    "statistics",
    "arena",
    "chunks",
    "output",  # where the output goes; 0: nowhere
    "seed",
    "scale",  # float64: weight of a sample in the loss
    "rate",  # float64: learning rate
    "power1",  # float64: first and second decay to the power of the number of steps
    "power2",
    "first",  # the optimiser's vectors
    "second",
    "schedule",  # int64: samples of each step
    "losses",  # float64: of each step
    "pool",
    "pool_run",
    "threads",
    "updates",  # how often parameters have been updated
    "x0",
    "x1",
    "x2",
    "x3",
    "by_x0",  # where the gradients of the inputs go
    "by_x1",
    "by_x2",
    "by_x3",
)
INPUTS = 4
_PLACES = {name: i for i, name in enumerate(_NAMES)}
_FLOATS = frozenset(["scale", "rate", "power1", "power2"])


def type_of_slot(name: str) -> Type:
    if name in ("batch", "chunks", "seed", "threads", "updates"):
        return I64
    return F64 if name in _FLOATS else PTR


def slot(f: Function, name: str) -> Value:
    """The address of a slot, in a function with an argument `context`."""
    kind = type_of_slot(name)
    return (f["context"].of(I64) + _PLACES[name]).of(kind)


def get(f: Function, name: str) -> Value:
    return f.load(slot(f, name))


def put(f: Function, name: str, value: Value) -> None:
    f.store(value, slot(f, name))


class Context:
    """The table on Python's side; it keeps the arrays alive whose addresses it holds."""

    def __init__(self) -> None:
        self._table = np.zeros(len(_NAMES), np.int64)
        self._floats = self._table.view(np.float64)
        self._kept: dict[str, Any] = {}
        self.address = int(self._table.ctypes.data)

    def __setitem__(self, name: str, value: Any) -> None:
        # finding an array's address takes a microsecond; only that of `index` is moved on by native code
        if value is self._kept.get(name) and isinstance(value, np.ndarray) and name != "index":
            return
        self._kept[name] = value
        place = _PLACES[name]
        if isinstance(value, np.ndarray):
            self._table[place] = value.__array_interface__["data"][0]  # half as long as by ctypes
        elif name in _FLOATS:
            self._floats[place] = value
        else:
            self._table[place] = value if value is not None else 0

    def __getitem__(self, name: str) -> Any:
        """A number that native code may have changed."""
        place = _PLACES[name]
        return float(self._floats[place]) if name in _FLOATS else int(self._table[place])


def function_at(address: int, *kinds: Any) -> Any:
    return ctypes.CFUNCTYPE(None, *kinds)(address)
