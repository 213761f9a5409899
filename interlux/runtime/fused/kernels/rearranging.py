"""Copies: of parts, with borders, by a table; between rows of samples and samples in lanes; rows of tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..llvm import I8, I64, Function, Index, Type, Value
from ..steps import Convert, Instruction, Lookup, Rearrange
from ..tensors import Access, Tensor
from .elementwise import apply
from .schedule import Schedule, access_of, coalesced

_COPY = [Instruction("Identity", (0,))]


def rearrange(s: Schedule, step: Rearrange) -> None:
    """A copy in as few loops as the accesses allow; what no access describes goes by a table."""
    (x,) = step.operands
    target = step.target if step.target is not None else np.arange(x.size, dtype=np.int64).reshape(x.shape)
    to = Tensor(step.output, target, x.dtype, None)
    if copied(s, x, to):
        return
    inside = x.index >= 0
    if not inside.all():
        box = _box(inside)
        if box is not None and (x.moved(x.index[box], None).access() is not None) and inside[box].all():
            _fill(s, to, x.fill)
            copied(s, x.moved(x.index[box], None), to.moved(target[box], None))
            return
    _by_table(s, x, to)


def copied(s: Schedule, x: Tensor, to: Tensor) -> bool:
    """Copies x where `to` says, if both are affine; whether they are."""
    source, target = x.access(), to.access()
    if source is None or target is None:
        return False
    # The axis whose elements are neighbours in both comes last.
    order = sorted(range(len(x.shape)), key=lambda i: (-target.strides[i], -source.strides[i]))
    shape = tuple(x.shape[i] for i in order)
    turned = [Access(a.offset, tuple(a.strides[i] for i in order)) for a in (target, source)]
    shape, accesses = coalesced(shape, turned)
    apply(s, _COPY, shape, to, accesses[0], [x], accesses[1:])
    return True


def _box(inside: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box around what is true."""
    box = []
    for axis in range(inside.ndim):
        found = np.flatnonzero(inside.any(axis=tuple(i for i in range(inside.ndim) if i != axis)))
        if not len(found):
            return None
        box.append(slice(int(found[0]), int(found[-1]) + 1))
    return tuple(box)


def _fill(s: Schedule, to: Tensor, number: float) -> None:
    access = to.access()
    if access is None:
        raise AssertionError("only whole buffers and blocks of them are filled")
    shape, accesses = coalesced(to.shape, [access])
    apply(s, [Instruction("Constant", (), (("value", number),))], shape, to, accesses[0], [], [])


def _by_table(s: Schedule, x: Tensor, to: Tensor) -> None:
    """Element by element; -1 in the table is the fill."""
    f = s.f
    source = s.table(x.index.ravel())
    target = s.table(to.index.ravel())
    fills = bool(np.any(x.index < 0))
    with f.loop(0, x.size) as i:
        index = f.cast("sext", f.load(source + i), I64)
        place = f.cast("sext", f.load(target + i), I64)
        safe = f.select(index < 0, f.const(0, I64), index) if fills else index
        at = s.at(x.source, safe)
        values = [s.broadcast(at)] * s.blocks if x.is_constant else s.load(at)
        if fills:
            values = [f.select(index < 0, f.const(x.fill, v.type), v) for v in values]
        s.store(values, s.at(to.source, place))


def lookup(s: Schedule, step: Lookup) -> None:
    """Rows of a table; negative numbers count from its end, NaN where there is no such row."""
    f = s.f
    (numbers,) = step.operands
    access = access_of(numbers)
    count, features = step.shape
    rows = len(step.table)
    table = s.matrix(step.table, (step, "table"))

    def row_of(position: Index, sample: Index) -> tuple[Value, Value]:
        """A row's address, and whether there is one."""
        index = f.add(s.index(access, [position]), f.mul(f.add(s.sample, sample), numbers.source.size))
        raw = f.load(f.offset(s.base(numbers.source), index))
        number = raw if raw.type == I64 else f.cast("sext", raw, I64)
        number = f.select(number < 0, number + rows, number)
        valid = (number > -1) & (number < rows)
        return f.offset(table, f.select(valid, number, f.const(0, I64)) * features), valid

    with f.loop(0, count) as position, f.loop(0, s.tile) as sample:
        row, valid = row_of(position, sample)
        with (
            f.loop(0, features) if not (s.by_sample and features % s.width == 0) else f.loop(0, features, s.width) as i
        ):
            lanes = s.width if s.by_sample and features % s.width == 0 else 1
            value = f.load(row + i, lanes)
            nan = f.const(float("nan"), value.type)
            value = f.select(valid, value, nan)
            target = s.at(step.output, f.add(f.mul(position, features), i)) + sample
            f.store(value, target)


def convert(s: Schedule, step: Convert) -> None:
    """Integers of an input, which lie one sample behind the other, as floating-point numbers."""
    f = s.f
    (x,) = step.operands
    access = access_of(x)
    name = "sitofp" if x.dtype.kind == "i" else "uitofp"
    with f.loop(0, step.shape[0]) as position, f.loop(0, s.tile) as sample:
        index = f.add(s.index(access, [position]), f.mul(f.add(s.sample, sample), x.source.size))
        value = f.cast(name, f.load(f.offset(s.base(x.source), index)), s.element)
        f.store(value, s.at(step.output, position) + sample)


# Between [sample][feature] outside and [feature][sample] inside


def _transposed(s: Schedule, rows: Sequence[Value]) -> list[Value]:
    """The transpose of as many vectors as each has lanes: blocks on the diagonal's sides change places."""
    f = s.f
    n = len(rows)
    found = list(rows)
    half = n // 2
    while half:
        turned = list(found)
        for i in range(n):
            if i & half:
                continue
            a, b = found[i], found[i | half]
            turned[i] = f.shuffle(a, b, [k if not k & half else n + (k ^ half) for k in range(n)])
            turned[i | half] = f.shuffle(a, b, [(k | half) if not k & half else n + k for k in range(n)])
        found = turned
        half //= 2
    return found


def load_samples(s: Schedule, outside: Value, size: int, inside: Value) -> None:
    """`tile` rows of `size` numbers become features."""
    f, lanes = s.f, s.lanes
    align = lanes * s.element.bytes

    def block(rows: Value, target: Value, count: int) -> None:
        loaded = [f.load(rows + i * size, lanes, count=count) for i in range(lanes)]
        for k, feature in enumerate(_transposed(s, loaded)[:count]):
            f.store(feature, target + k * s.tile, align)

    for n in range(s.blocks):
        rows, target = outside + n * lanes * size, inside + n * lanes
        if size <= 4:
            numbers = f.load(rows, lanes * size)
            for k in range(size):
                f.store(f.shuffle(numbers, None, [i * size + k for i in range(lanes)]), target + k * s.tile, align)
            continue
        with f.loop(0, size // lanes) as i:
            block(rows + f.mul(i, lanes), target + f.mul(i, lanes * s.tile), lanes)
        if size % lanes:
            first = size // lanes * lanes
            block(rows + first, target + first * s.tile, size % lanes)


def as_output(f: Function, value: Value, element: Type) -> Value:
    """Floating-point numbers as what an output consists of: themselves, integers, or bytes 0 and 1."""
    if element.is_float:
        return value
    if element == I8:
        return f.cast("zext", f.compare("ne", value, 0.0), I8)
    kind = element.vector(value.type.lanes)
    return f.call(f"llvm.fptosi.sat.{kind.suffix}.{value.type.suffix}", kind, value)


def store_samples(s: Schedule, inside: Value, stride: int, size: int, outside: Value) -> None:
    """Features, `stride` apart, become `tile` rows of `size` numbers, of the type that `outside` points to."""
    f, lanes = s.f, s.lanes
    element = outside.to or s.element
    align = lanes * s.element.bytes
    step = stride * s.tile

    def block(source: Value, rows: Value, count: int) -> None:
        zero = f.const(0, s.element.vector(lanes))
        features = [f.load(source + k * step, lanes, align) if k < count else zero for k in range(lanes)]
        for i, row in enumerate(_transposed(s, features)):
            f.store(as_output(f, row, element), rows + i * size, count=count)

    for n in range(s.blocks):
        source, rows = inside + n * lanes, outside + n * lanes * size
        if size in (1, 2, 4):
            joined = f.join([f.load(source + k * step, lanes, align) for k in range(size)])
            row = f.shuffle(joined, None, [(i % size) * lanes + i // size for i in range(lanes * size)])
            f.store(as_output(f, row, element), rows)
            continue
        with f.loop(0, size // lanes) as i:
            block(source + f.mul(i, lanes * step), rows + f.mul(i, lanes), lanes)
        if size % lanes:
            first = size // lanes * lanes
            block(source + first * step, rows + first, size % lanes)
