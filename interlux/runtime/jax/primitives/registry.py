"""The table of primitives, and what their functions share."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from ....ir.errors import UnsupportedError

Value = Any
PRIMITIVES: dict[str, Callable[..., Any]] = {}


def primitive(function: Callable[..., Any]) -> Callable[..., Any]:
    """Enters a function into the table under its own name."""
    PRIMITIVES[function.__name__] = function
    return function


def define(**functions: Callable[..., Any]) -> None:
    """Enters short functions under the given names."""
    PRIMITIVES.update(functions)


def is_static(*values: Value | None) -> bool:
    """Whether values are known while tracing."""
    return all(v is None or isinstance(v, np.ndarray | np.generic) for v in values)


def library(*values: Value | None) -> ModuleType:
    """numpy if all values are static, else jax.numpy."""
    return np if is_static(*values) else jnp


def integers(value: Value, what: str) -> tuple[int, ...]:
    """A static vector of integers. Raises UnsupportedError if it depends on data."""
    if not is_static(value):
        raise UnsupportedError(f"{what} depends on the data; a jitted function needs it fixed by the shapes")
    return tuple(int(i) for i in np.asarray(value).reshape(-1))


def scalar(value: Value, what: str) -> int:
    (number,) = integers(value, what)
    return number
