"""From a program to code: one function for each schedule, and `run`, which picks among them by the batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from .kernels.convolution import convolution
from .kernels.dense import dense, matmul
from .kernels.elementwise import elementwise
from .kernels.normalization import normalize, reduce, softmax
from .kernels.pooling import pool
from .kernels.rearranging import as_output, convert, load_samples, lookup, rearrange, store_samples
from .kernels.schedule import Parameters, Schedule
from .llvm import I1, I8, I64, PTR, VOID, Function, Index, Module, Type, Value, type_of
from .passes import arena
from .steps import (
    Conv,
    Convert,
    Dense,
    Elementwise,
    Lookup,
    MatMul,
    Normalize,
    Pool,
    Program,
    Rearrange,
    Reduce,
    Repeat,
    Softmax,
    Step,
)  # fmt: skip
from .target import Target
from .tensors import Access, Buffer, Source

GENERATORS: dict[type[Step], Callable] = {
    Elementwise: elementwise,
    Rearrange: rearrange,
    Dense: dense,
    MatMul: matmul,
    Conv: convolution,
    Pool: pool,
    Reduce: reduce,
    Normalize: normalize,
    Softmax: softmax,
    Lookup: lookup,
    Convert: convert,
}
CACHE = 1 << 20  # bytes: if more of the arena is in use, samples in the lanes are slower than one after the other
ROWS = 8  # samples for which a small batch reads the weights once
MANY = 1 << 14  # weights of fully connected layers from which that pays
APART = 6  # steps from which each is a function


def repeat(s: Schedule, step: Repeat) -> None:
    """A loop around steps."""
    f = s.f
    with f.loop(0, step.count) as t:
        outer = s.shifts
        moved: dict[Source, Index] = {shift.source: f.add(f.mul(t, shift.stride), shift.start) for shift in step.shifts}
        s.shifts = {**outer, **moved}
        for inner in step.body:
            GENERATORS[type(inner)](s, inner)
        s.shifts = outer


GENERATORS[Repeat] = repeat


@dataclass(frozen=True)
class Code:
    """A program's native function before it is compiled.

    Arguments:
        text: LLVM IR with a function `run`.
        parameters: the packed weights, uint8.
        arena: bytes of scratch memory.
        grain: batches are split at multiples of it.
    """

    text: str
    parameters: np.ndarray
    arena: int
    grain: int


def generate(program: Program, target: Target) -> Code:
    """The code of a program for a target."""
    module = Module(target)
    parameters = Parameters()
    element = type_of(program.dtype)
    lanes = target.lanes(program.dtype)
    own, size = arena(program, {b for b in program.inputs if b.dtype != program.dtype})
    blocks = _blocks(program, target)
    tile = lanes * blocks
    scratch = size * tile * element.bytes
    by_tiles = program.batched and lanes > 1 and scratch - _passing(program) * tile * element.bytes <= CACHE
    if by_tiles:
        _tile(module, program, target, parameters, lanes, blocks, own)
    outside = _direct_outputs(program)
    places, size = arena(program, {*program.inputs, *outside})
    spare = _one(module, program, target, parameters, places, size, outside)
    tile_scratch = _aligned(scratch) if by_tiles else 0
    rows = ROWS if program.batched and lanes > 1 and _dense_weights(program) >= MANY else 0
    if by_tiles and rows >= tile:
        rows = 0
    if rows:
        used = _few(module, program, target, parameters, places, size, outside, rows)
        tile_scratch = _aligned(max(tile_scratch, (rows * size + used) * element.bytes))
    partial = _run(module, program, tile if by_tiles else 0, rows, tile_scratch)
    blob = np.frombuffer(parameters.bytes(), np.uint8)
    scratch = max(tile_scratch + partial, _aligned((size + spare) * element.bytes))
    return Code(module.text(), blob, scratch, tile if by_tiles else max(rows, 1))


def _passing(program: Program) -> int:
    """Numbers in the arena of a sample of which a loop needs a part in each round, but for that part."""
    loops = [step for step in program.steps if isinstance(step, Repeat)]
    return max((sum(s.source.size - abs(s.stride) for s in step.shifts) for step in loops), default=0)


def _blocks(program: Program, target: Target) -> int:
    """Vectors of samples in a tile. Two where fully connected layers take the time: then weights, whose reading bounds
    them, are read half as often; `few` takes what is less than a tile."""
    simple = all(isinstance(step, Dense | Elementwise | Softmax | Rearrange) for step in program.steps)
    return 2 if simple and target.registers >= 32 and _dense_weights(program) >= MANY else 1


def _dense_weights(program: Program) -> int:
    """Numbers in the weights of fully connected layers that are applied once for each sample."""
    return sum(step.weight.size for step in program.steps if isinstance(step, Dense) and step.shape[0] == 1)


def _aligned(size: int) -> int:
    return -(-size // 64) * 64


def _arguments(program: Program) -> list[tuple[str, Type]]:
    inputs = [(f"input{i}", PTR) for i in range(len(program.inputs))]
    outputs = [(f"output{i}", PTR) for i in range(len(program.outputs))]
    return [*inputs, *outputs, ("parameters", PTR), ("arena", PTR)]


def _function(module: Module, program: Program, name: str) -> Function:
    return module.function(name, _arguments(program), internal=True, inline=False)


def _steps(s: Schedule, program: Program) -> None:
    """Every step; in long programs each is a function of its own, so that equal layers share one."""
    for step in program.steps:
        with s.apart() if len(program.steps) >= APART else nullcontext():
            GENERATORS[type(step)](s, step)


def _tile(
    module: Module,
    program: Program,
    target: Target,
    parameters: Parameters,
    lanes: int,
    blocks: int,
    places: dict[Buffer, int],
) -> None:
    """Samples in the lanes: transposed, computed, transposed back."""
    f = _function(module, program, f"tile{lanes * blocks}")
    external = {
        b: f[f"input{i}"].of(type_of(b.dtype)) for i, b in enumerate(program.inputs) if b.dtype != program.dtype
    }
    s = Schedule(f, target, program.dtype, lanes, blocks, parameters, places, external, stored=program.stored)
    used = {t.source for step in program.steps for t in step.reads()} | {t.source for t in program.outputs}
    for i, buffer in enumerate(program.inputs):
        if buffer not in external and buffer in used:
            load_samples(s, f[f"input{i}"].of(s.element), buffer.size, s.base(buffer))
    _steps(s, program)
    for i, t in enumerate(program.outputs):
        first = _flat(t.access((t.size,))).offset
        store_samples(s, s.at(t.source, first), 1, t.size, f[f"output{i}"].of(type_of(t.dtype)))
    f.ret()


def _flat(access: Access | None) -> Access:
    assert access is not None, "passes.settled makes outputs contiguous"
    return access


def _direct_outputs(program: Program) -> dict[Buffer, int]:
    """Buffers that can lie in an output's memory."""
    found: dict[Buffer, int] = {}
    for i, t in enumerate(program.outputs):
        source = t.source
        if (
            isinstance(source, Buffer)
            and source.input is None
            and t.is_whole()
            and source not in found
            and t.dtype == source.dtype
        ):
            found[source] = i
    return found


def _one(
    module: Module,
    program: Program,
    target: Target,
    parameters: Parameters,
    places: dict[Buffer, int],
    end: int,
    outside: dict[Buffer, int],
) -> int:
    """One sample, computed where it lies. Returns how many numbers are used behind the buffers, which end at `end`."""
    f = _function(module, program, "one")
    external = {b: f[f"input{i}"].of(type_of(b.dtype)) for i, b in enumerate(program.inputs)}
    external |= {b: f[f"output{i}"].of(type_of(b.dtype)) for b, i in outside.items()}
    s = Schedule(f, target, program.dtype, 1, 1, parameters, places, external, end=end, stored=program.stored)
    _steps(s, program)
    for i, t in enumerate(program.outputs):
        if isinstance(t.source, Buffer) and outside.get(t.source) == i:
            continue
        source, to = s.at(t.source, _flat(t.access((t.size,))).offset), f[f"output{i}"].of(type_of(t.dtype))
        with f.loop(0, t.size) as k:
            f.store(as_output(f, f.load(source + k), type_of(t.dtype)), to + k)
    f.ret()
    return s.spare


def _few(
    module: Module,
    program: Program,
    target: Target,
    parameters: Parameters,
    places: dict[Buffer, int],
    end: int,
    outside: dict[Buffer, int],
    rows: int,
) -> int:
    """A few samples, one behind the other: fully connected layers read their weights once for all of them.

    Returns as `_one`.
    """
    f = _function(module, program, "few")
    external = {b: f[f"input{i}"].of(type_of(b.dtype)) for i, b in enumerate(program.inputs)}
    external |= {b: f[f"output{i}"].of(type_of(b.dtype)) for b, i in outside.items()}
    s = Schedule(f, target, program.dtype, 1, 1, parameters, places, external, rows, end, program.stored)
    for step in program.steps:
        if isinstance(step, Dense) and step.shape[0] == 1:
            dense(s, step)
            continue
        with f.loop(0, rows) as sample:
            s.sample = sample
            GENERATORS[type(step)](s, step)
            s.sample = 0
    for i, t in enumerate(program.outputs):
        if isinstance(t.source, Buffer) and outside.get(t.source) == i:
            continue
        with f.loop(0, rows) as sample, f.loop(0, t.size) as k:
            s.sample = sample
            source = s.at(t.source, _flat(t.access((t.size,))).offset)
            s.sample = 0
            value = as_output(f, f.load(source + k), type_of(t.dtype))
            f.store(value, f[f"output{i}"].of(type_of(t.dtype)) + f.mul(sample, t.size) + k)
    f.ret()
    return s.spare


def _run(module: Module, program: Program, tile: int, rows: int, scratch: int) -> int:
    """`run(inputs, outputs, parameters, arena, batch)`.

    A batch is cut into tiles; the last one overlaps the one before it, or, if little is left, `few` computes it, or it
    is computed sample by sample. Less than a tile is copied to where a whole tile has room, or, if it is little,
    computed sample by sample.

    Arguments:
        tile: samples in a tile; 0: none.
        rows: samples that `few` takes; 0: there is no such function.
        scratch: bytes at the begin of the arena that tiles use.

    Returns: how many bytes are used behind those.
    """
    names = [("inputs", PTR), ("outputs", PTR), ("parameters", PTR), ("arena", PTR), ("batch", I64)]
    f = module.function("run", names, noalias=False)
    batch = f["batch"]
    f.exit_when(batch < 1)
    inputs = [_Port(_pointer(f, f["inputs"], i).of(type_of(b.dtype)), b.size) for i, b in enumerate(program.inputs)]
    outputs = [_Port(_pointer(f, f["outputs"], i).of(type_of(t.dtype)), t.size) for i, t in enumerate(program.outputs)]

    def call(name: str, ports: list[Value]) -> None:
        f.call(name, VOID, *ports, f["parameters"], f["arena"])

    if not program.batched:
        call("one", [port.pointer for port in (*inputs, *outputs)])
        f.ret()
        return 0
    ports = (*inputs, *outputs)

    def in_blocks(name: str, size: int, begin: Index = 0) -> None:
        """All samples from one on; the last block overlaps the one before it."""
        with f.loop(begin, batch, size) as sample:
            call(name, [port.at(f, f.min(sample, batch - size)) for port in ports])
        f.ret()
        f.unreachable()

    def one_by_one(begin: Index = 0) -> None:
        """All samples from one on."""
        with f.loop(begin, batch) as sample:
            call("one", [port.at(f, sample) for port in ports])
        f.ret()

    def partly(name: str, size: int) -> int:
        """Computes where a whole block has room; returns how many bytes that takes."""
        used = 0
        room = f.offset(f["arena"].of(I8), scratch)
        moved = []
        for port in ports:
            moved.append(f.offset(room, used).of(port.element))
            used += _aligned(port.size * size * port.element.bytes)
        for port, place in zip(inputs, moved, strict=False):
            port.copy(f, port.pointer, place, batch)
        call(name, moved)
        for port, place in zip(outputs, moved[len(inputs) :], strict=True):
            port.copy(f, place, port.pointer, batch)
        f.ret()
        f.unreachable()
        return used

    used = 0
    if tile:
        with f.when(batch > tile - 1):
            # little that is left behind whole tiles takes less in smaller blocks, or sample by sample
            rest = f.op("urem", batch, tile)
            with f.when((rest > 0) & (rest < tile // (2 if rows else 4) + 1)):
                with f.loop(0, batch - rest, tile) as sample:
                    call(f"tile{tile}", [port.at(f, sample) for port in ports])
                if rows:
                    in_blocks("few", rows, batch - rest)
                else:
                    one_by_one(batch - rest)
                    f.unreachable()
            in_blocks(f"tile{tile}", tile)
    if rows:
        with f.when(batch > rows - 1):
            in_blocks("few", rows)
        with f.when(batch > rows // 4):
            used = partly("few", rows)
    elif tile:
        with f.when(batch > tile // 4):
            used = partly(f"tile{tile}", tile)
    one_by_one()
    return used


@dataclass(frozen=True)
class _Port:
    """An input or output: its first number, and how many belong to a sample."""

    pointer: Value
    size: int

    @property
    def element(self) -> Type:
        assert self.pointer.to is not None
        return self.pointer.to

    def at(self, f: Function, sample: Index) -> Value:
        return f.offset(self.pointer, f.mul(sample, self.size))

    def copy(self, f: Function, source: Value, target: Value, samples: Value) -> None:
        size = samples * (self.size * self.element.bytes)
        f.call("llvm.memcpy.p0.p0.i64", VOID, target, source, size, f.const(False, I1))


def _pointer(f: Function, table: Value, index: int) -> Value:
    return f.load(table.of(PTR) + index)
