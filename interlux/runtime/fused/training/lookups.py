"""Integer inputs: row numbers of tables of parameters, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ....ir.errors import InvalidModelError
from ..builder import Value
from ..operators import OPERATORS
from ..tensors import Buffer, Tensor, whole
from .steps import RowNumbers, Rows

if TYPE_CHECKING:
    from .recorder import Recorder

INTEGERS = ("int32", "int64")  # of inputs
_EXACT = {"float32": 1 << 24, "float64": 1 << 53}  # up to there all whole numbers are floating-point ones


@dataclass(frozen=True, eq=False)
class StillTable(Tensor):
    """A table of parameters, one row of which takes no gradient: known to lookups, for all else see `moving`."""

    row: int = 0

    def plain_table(self) -> Tensor:
        return Tensor(self.source, self.index, self.dtype, self.axis, self.outer, self.fill)


def stop_row_gradient(b: Recorder, table: Tensor, *, row: int) -> Tensor:
    return StillTable(table.source, table.index, table.dtype, table.axis, table.outer, table.fill, row % table.shape[0])


def moving(b: Recorder, value: Any) -> Any:
    """A table with a row that takes no gradient as steps make it; any other value as it is."""
    if not isinstance(value, StillTable):
        return value
    t = b.own(value.plain_table())
    parts = [t.moved(part, t.axis) for part in np.split(t.index, [value.row, value.row + 1]) if part.size]
    still = min(value.row, 1)
    parts[still] = b.call("StopGradient", [parts[still]], {}, 1)
    return b.joined(parts, 0, t.shape, t)


def gather(b: Recorder, x: Value, indices: Value, *, axis: int = 0) -> Tensor:
    if not isinstance(indices, Tensor) or indices.is_constant:
        made: Tensor = OPERATORS["Gather"](b, moving(b, x), indices, axis=axis)
        return made
    source = indices.source
    if not isinstance(source, Buffer) or source.input is None or source.dtype.name not in INTEGERS:
        raise b.refuse('Gather by numbers that are not as they are an input of dtype="int64" or "int32"')
    table, still = _table(b, x, axis)
    count, rest = table.shape[0], table.shape[1:]
    inside = indices.index >= 0
    low, high = -count, count - 1
    if not inside.all() and not low <= indices.fill <= high:
        raise b.refuse(f"Gather by {indices.fill:g} of {count} rows")
    b.numbers.append(RowNumbers(source.input, np.unique(indices.index[inside]), low, high))
    numbers = b.reach(replace(indices, dtype=b.dtype), (indices.size,))
    output = Buffer(indices.size * int(np.prod(rest, dtype=np.int64)), b.dtype)
    b.steps.append(Rows(b.here, [numbers, table], output, (indices.size, *rest), still))
    index = whole(output, (*indices.shape, *rest), b.dtype).index
    rank = len(indices.shape)
    place = axis % (len(rest) + 1)
    index = np.moveaxis(index, range(rank), range(place, place + rank))
    return Tensor(output, index, b.dtype, None if indices.axis is None else indices.axis + place, indices.outer)


def _table(b: Recorder, x: Value, axis: int) -> tuple[Tensor, int | None]:
    """The rows that are looked up, first axis first, and which of them takes no gradient."""
    still = x.row if isinstance(x, StillTable) and axis == 0 else None
    x = x.plain_table() if isinstance(x, StillTable) and axis == 0 else moving(b, x)
    if x.dtype != b.dtype:
        raise b.refuse(f"Gather from a table of {x.dtype.name} (the model's dtype is {b.dtype.name})")
    table = x if isinstance(x, Tensor) and not x.is_constant else b.weights(x)
    if table.axis is not None:
        raise b.refuse("Gather from what depends on the input")
    table = table.moved(np.moveaxis(table.index, axis, 0), None)
    if table.shape[0] > _EXACT[b.dtype.name]:
        raise b.refuse(f"Gather from {table.shape[0]} rows in {b.dtype.name}")
    return (table if table.access() is not None else b.stored(table)), still


def check(array: np.ndarray, numbers: RowNumbers, name: str) -> None:
    """Raises InvalidModelError for row numbers [batch, …] of an input that the table does not have."""
    flat = array.reshape(len(array), -1)
    used = flat if len(numbers.features) == flat.shape[1] else flat[:, numbers.features]
    if used.size and (used.min() < numbers.low or used.max() > numbers.high):
        raise InvalidModelError(
            f"{name} holds row numbers, which must lie in {numbers.low}..{numbers.high}, not {used.min()}..{used.max()}"
        )
