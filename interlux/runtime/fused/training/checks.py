"""Arguments from outside, checked: every error says in one line what was expected."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ....ir.errors import InvalidModelError


def number(name: str, value: Any, low: float = 0.0, high: float = math.inf, *, inside: bool = False) -> float:
    """A finite number in low..high, or, if `inside`, above low. Raises InvalidModelError for anything else."""
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not low <= value <= high or (inside and value == low):
        bounds = f"above {low:g}" if inside else f"of at least {low:g}"
        raise InvalidModelError(f"{name} must be a finite number {bounds}{_most(high)}, not {shown(value)}")
    return float(value)


def whole(name: str, value: Any, low: int = 0, high: float = math.inf) -> int:
    """A whole number in low..high. Raises InvalidModelError for anything else."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidModelError(f"{name} must be a whole number of at least {low}{_most(high)}, not {shown(value)}")
    return int(value)


def shown(value: Any) -> str:
    """A strange value in an error, on one line."""
    line = " ".join(repr(value).split())
    return line if len(line) <= 60 else line[:57] + "..."


def _most(high: float) -> str:
    return "" if high == math.inf else f" and at most {high}"


def truth(name: str, value: Any) -> bool:
    """Raises InvalidModelError for anything but True and False."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidModelError(f"{name} must be True or False, not {shown(value)}")
    return bool(value)


def known_options(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises InvalidModelError for the first option that `what` does not have."""
    known = tuple(known)
    for name in given:
        if name not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise InvalidModelError(f"{what} has no option {name!r}; {there}")


def array_of(value: Any, what: str) -> np.ndarray:
    """What numpy makes of a value, in this machine's byte order. Raises InvalidModelError if it makes nothing of it."""
    try:
        array = np.asarray(value)
    except Exception as error:  # noqa: BLE001  of whatever library, as of PyTorch for what requires a gradient
        reason = str(error).partition("\n")[0]
        raise InvalidModelError(f"{what} cannot be read as an array: {reason}") from None
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def samples_of(value: Any, shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> np.ndarray:
    """A contiguous array [batch, *shape]. Raises InvalidModelError for another dtype or shape."""
    array = array_of(value, what)
    _check_dtype(array, dtype, what)
    if array.ndim != len(shape) + 1 or array.shape[1:] != shape:
        wanted = ", ".join(("batch", *map(str, shape)))
        raise InvalidModelError(f"{what} must have shape ({wanted}), not {array.shape}")
    return np.ascontiguousarray(array)


def vector_of(value: Any, count: int, dtype: np.dtype[Any], what: str) -> np.ndarray:
    """An array [count]; the same memory if it has the right byte order. Raises InvalidModelError for anything else."""
    array = array_of(value, what)
    _check_dtype(array, dtype, what)
    if array.shape != (count,):
        raise InvalidModelError(f"{what} must have shape ({count},), not {array.shape}")
    return array


def _check_dtype(array: np.ndarray, dtype: np.dtype[Any], what: str) -> None:
    if array.dtype != dtype:
        raise InvalidModelError(f"{what} must be {dtype.name}, not {array.dtype.name}")
