"""Sequences, which are Python lists of arrays, and optional values: NOTHING where there is no element."""

from __future__ import annotations

import numpy as np

from ....ir.errors import InvalidModelError
from .registry import NOTHING, Value, integers, library, primitive, scalar


def _position(sequence: list[Value], position: Value, end: int) -> int:
    """A position in a sequence, counted from the front; it must be in [-count, end)."""
    count = len(sequence)
    place = scalar(position, "a position in a sequence")
    if not -count <= place < end:
        raise InvalidModelError(f"position {place} is outside a sequence of {count}")
    return place + count if place < 0 else place


@primitive
def SequenceConstruct(*xs: Value) -> list[Value]:
    return list(xs)


@primitive
def SequenceEmpty(*, dtype: int = 1) -> list[Value]:
    return []


@primitive
def SequenceAt(sequence: list[Value], position: Value) -> Value:
    return sequence[_position(sequence, position, len(sequence))]


@primitive
def SequenceErase(sequence: list[Value], position: Value | None = None) -> list[Value]:
    place = _position(sequence, np.array(-1) if position is None else position, len(sequence))
    return sequence[:place] + sequence[place + 1 :]


@primitive
def SequenceInsert(sequence: list[Value], x: Value, position: Value | None = None) -> list[Value]:
    place = len(sequence) if position is None else _position(sequence, position, len(sequence) + 1)
    return [*sequence[:place], x, *sequence[place:]]


@primitive
def SequenceLength(sequence: list[Value]) -> Value:
    return np.array(len(sequence), np.int64)


@primitive
def SplitToSequence(x: Value, split: Value | None = None, *, axis: int = 0, keepdims: int = 1) -> list[Value]:
    xp, total = library(x), x.shape[axis]
    if split is None:
        parts = [1] * total
    else:
        given = integers(split, "the sizes of SplitToSequence")
        parts = list(given)
        if split.ndim == 0:
            size = given[0]
            if size < 1:
                raise InvalidModelError(f"SplitToSequence into parts of {size}")
            parts = [min(size, total - start) for start in range(0, total, size)]
    if sum(parts) != total or min(parts, default=0) < 0:
        raise InvalidModelError(f"SplitToSequence: {parts} don't add up to {total}")
    ends = np.cumsum(parts, dtype=np.int64).tolist()
    lead = (slice(None),) * (axis % x.ndim)
    pieces = [x[(*lead, slice(end - part, end))] for end, part in zip(ends, parts, strict=True)]
    return pieces if keepdims or split is not None else [xp.squeeze(piece, axis) for piece in pieces]


@primitive
def ConcatFromSequence(sequence: list[Value], *, axis: int, new_axis: int = 0) -> Value:
    if not sequence:
        raise InvalidModelError("ConcatFromSequence of an empty sequence")
    xp = library(*sequence)
    return xp.stack(sequence, axis) if new_axis else xp.concatenate(sequence, axis)


@primitive
def Optional(x: Value | None = None, *, type: object = None) -> Value:
    return NOTHING if x is None else x


@primitive
def OptionalGetElement(x: Value | None) -> Value:
    if x is None or x is NOTHING:
        raise InvalidModelError("OptionalGetElement of an optional value without an element")
    return x


@primitive
def OptionalHasElement(x: Value | None = None) -> Value:
    return np.array(x is not None and x is not NOTHING)
