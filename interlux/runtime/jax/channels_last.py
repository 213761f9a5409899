"""Arrays whose channels are stored last, behind the interface of the arrays [batch, channels, *spatial] they stand for.

XLA's convolutions on a CPU are fastest with channels last. Operators that understand this class work on the stored
array; for all others the interpreter's `plain` puts the channels back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .primitives.registry import Value, is_static

RANKS = (3, 4, 5)


def stored_axis(axis: int, rank: int) -> int:
    """Where an axis of [batch, channels, *spatial] lies in [batch, *spatial, channels]."""
    axis %= rank
    return 0 if axis == 0 else rank - 1 if axis == 1 else axis - 1


def to_last(rank: int) -> tuple[int, ...]:
    """The permutation that puts the channels last."""
    return (0, *range(2, rank), 1)


def to_second(rank: int) -> tuple[int, ...]:
    """The permutation that puts them back."""
    return (0, rank - 1, *range(1, rank - 1))


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class ChannelsLast:
    """An array [batch, channels, *spatial] of rank 3 to 5, stored as [batch, *spatial, channels].

    Arguments:
        array: the stored array.
    """

    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        stored = self.array.shape
        return (stored[0], stored[-1], *stored[1:-1])

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def size(self) -> int:
        return self.array.size

    def plain(self) -> jax.Array:
        """The array as [batch, channels, *spatial]."""
        return jnp.transpose(self.array, to_second(self.ndim))

    __jax_array__ = plain  # jax.numpy's functions take it too

    def tree_flatten(self) -> tuple[tuple[Any], None]:
        return (self.array,), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any]) -> ChannelsLast:
        return cls(*children)


def plain(value: Value) -> Value:
    """The value as an array in its own layout."""
    return value.plain() if isinstance(value, ChannelsLast) else value


def stored(value: Value) -> Value:
    """The array [batch, *spatial, channels] of a value [batch, channels, *spatial]."""
    if isinstance(value, ChannelsLast):
        return value.array
    return (np if is_static(value) else jnp).transpose(value, to_last(value.ndim))


def aligned(values: Sequence[Value]) -> list[Value] | None:
    """Operands of an elementwise operator, so that they broadcast against each other as stored.

    Returns: arrays of the rank of the values that are stored channels-last, or scalars; None if there are no such
        values, or if an operand has a higher rank than they do.
    """
    ranks = {value.ndim for value in values if isinstance(value, ChannelsLast)}
    if len(ranks) != 1 or any(value.ndim > max(ranks) for value in values):
        return None
    rank = max(ranks)

    def lifted(value: Value) -> Value:
        if isinstance(value, ChannelsLast):
            return value.array
        if value.ndim == 0:
            return value
        xp: Any = np if is_static(value) else jnp
        return stored(xp.reshape(value, (1,) * (rank - value.ndim) + tuple(value.shape)))

    return [lifted(value) for value in values]
