"""The table of primitives, and what their functions share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ....ir.errors import InvalidModelError, UnsupportedError

Value = Any  # an array of numpy (static) or JAX; a list of them (a sequence); NOTHING (an optional without element)
PRIMITIVES: dict[str, Callable[..., Any]] = {}


class DataDependent(UnsupportedError):
    """A size or a choice depends on the data: the computation cannot be traced, only run on concrete arrays."""


@jax.tree_util.register_static
class Nothing:
    """An optional value without an element."""

    dtype = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Nothing)

    def __hash__(self) -> int:
        return 0


NOTHING = Nothing()


def primitive(function: Callable[..., Any]) -> Callable[..., Any]:
    """Enters a function into the table under its own name."""
    PRIMITIVES[function.__name__] = function
    return function


def primitive_of(domain: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters a function into the table as an operator of a domain other than ai.onnx."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        PRIMITIVES[f"{domain}.{function.__name__}"] = function
        return function

    return enter


def define(**functions: Callable[..., Any]) -> None:
    """Enters short functions under the given names."""
    PRIMITIVES.update(functions)


def is_text(value: Any) -> bool:
    """Whether a value is an array of texts, which XLA has not."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "OSU"


def moving(function: Callable[..., Any]) -> Callable[..., Any]:
    """For functions that only move elements, with one output: of texts they move the numbers. What a function fills
    in by itself, 0, stands for the empty text."""

    @wraps(function)
    def of_texts(*inputs: Value | None, **attributes: Any) -> Value:
        texts: list[Any] = [i for i in inputs if is_text(i)]
        if not texts:
            return function(*inputs, **attributes)
        known = np.unique(np.concatenate([t.reshape(-1) for t in texts])).astype(object)
        known = np.concatenate([np.array([""], object), known])
        numbers = {text: number for number, text in enumerate(known) if number}
        numbered = [np.vectorize(numbers.get, otypes=[np.int64])(i) if is_text(i) else i for i in inputs]
        moved = concrete(function(*numbered, **attributes), "a tensor of texts")
        if moved.min(initial=0) < 0:  # what jax.numpy gives for an index that is out of range
            raise InvalidModelError(f"{function.__name__}: an index is out of range")
        return known[moved]

    return of_texts


def is_static(*values: Value | None) -> bool:
    """Whether values are known while tracing."""
    return all(v is None or isinstance(v, np.ndarray | np.generic) for v in values)


def library(*values: Value | None) -> ModuleType:
    """numpy if all values are static, else jax.numpy."""
    return np if is_static(*values) else jnp


def widened(x: Value) -> Value:
    """x in float32 at least, if it holds floats: in half precision, sums and squares overflow."""
    return x.astype(jnp.promote_types(x.dtype, np.float32)) if jnp.issubdtype(x.dtype, np.floating) else x


def is_traced(*values: Value | None) -> bool:
    """Whether any array in the values, sequences included, is being traced."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def concrete(value: Value, what: str) -> np.ndarray:
    """The value as a numpy array. Raises DataDependent while tracing, if it depends on the inputs' data.

    Arguments:
        value: an array.
        what: words for it in the error.
    """
    if is_traced(value):
        raise DataDependent(f"{what} depends on the data; a jitted function needs it fixed by the shapes")
    return np.asarray(value)


def integers(value: Value, what: str) -> tuple[int, ...]:
    """A vector of integers that must be known. Raises DataDependent if it is not."""
    return tuple(int(i) for i in concrete(value, what).reshape(-1))


def scalar(value: Value, what: str) -> int:
    (number,) = integers(value, what)
    return number
