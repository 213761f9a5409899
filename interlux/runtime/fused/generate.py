"""From a program to code: one function for each schedule, and `run`, which picks among them by the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from .kernels.convolution import convolution
from .kernels.dense import dense, matmul
from .kernels.elementwise import elementwise
from .kernels.normalization import normalize, reduce, softmax
from .kernels.pooling import pool
from .kernels.rearranging import load_samples, lookup, rearrange, store_samples
from .kernels.schedule import Parameters, Schedule
from .llvm import I64, PTR, Function, Index, Module, Value, type_of
from .passes import arena
from .steps import (
    Conv, Dense, Elementwise, Lookup, MatMul, Normalize, Pool, Program, Rearrange, Reduce, Softmax, Step,
)  # fmt: skip
from .target import Target
from .tensors import Access, Buffer

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
}
CACHE = 1 << 20  # bytes: from an arena larger than that, samples in the lanes are slower than one after the other


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
    places, size = arena(program, set(program.inputs))
    tiles: list[int] = []
    if program.batched and lanes > 1:
        tiles = [blocks for blocks in (2, 1) if _tile_bytes(program, size, lanes * blocks) <= CACHE]
    scratch = 0
    for blocks in tiles:
        own, own_size = arena(program, {b for b in program.inputs if b.dtype != program.dtype})
        scratch = max(scratch, own_size * lanes * blocks * element.bytes)
        _tile(module, program, target, parameters, lanes, blocks, own)
    outside = _direct_outputs(program)
    places, size = arena(program, {*program.inputs, *outside})
    scratch = max(scratch, size * element.bytes)
    _one(module, program, target, parameters, places, outside)
    _run(module, program, target, lanes, tiles)
    blob = np.frombuffer(parameters.bytes(), np.uint8)
    return Code(module.text(), blob, -(-scratch // 64) * 64, lanes * max(tiles, default=1) if tiles else 1)


def _tile_bytes(program: Program, size: int, tile: int) -> int:
    return (size + sum(b.size for b in program.inputs)) * tile * program.dtype.itemsize


def _arguments(program: Program) -> list[tuple[str, object]]:
    inputs = [(f"input{i}", PTR) for i in range(len(program.inputs))]
    outputs = [(f"output{i}", PTR) for i in range(len(program.outputs))]
    return [*inputs, *outputs, ("parameters", PTR), ("arena", PTR)]


def _function(module: Module, program: Program, name: str) -> Function:
    return module.function(name, _arguments(program), internal=True, inline=False)  # type: ignore[arg-type]


def _tile(
    module: Module, program: Program, target: Target, parameters: Parameters, lanes: int, blocks: int,
    places: dict[Buffer, int],
) -> None:
    """Samples in the lanes: transposed, computed, transposed back."""
    f = _function(module, program, f"tile{lanes * blocks}")
    external = {
        b: f[f"input{i}"].of(type_of(b.dtype)) for i, b in enumerate(program.inputs) if b.dtype != program.dtype
    }
    s = Schedule(f, target, program.dtype, lanes, blocks, parameters, places, external)
    used = {t.source for step in program.steps for t in step.reads()} | {t.source for t in program.outputs}
    for i, buffer in enumerate(program.inputs):
        if buffer not in external and buffer in used:
            load_samples(s, f[f"input{i}"].of(s.element), buffer.size, s.base(buffer))
    for step in program.steps:
        GENERATORS[type(step)](s, step)
    for i, t in enumerate(program.outputs):
        first = _flat(t.access((t.size,))).offset
        store_samples(s, s.at(t.source, first), 1, t.size, f[f"output{i}"].of(s.element))
    f.ret()


def _flat(access: Access | None) -> Access:
    assert access is not None, "passes.settled makes outputs contiguous"
    return access


def _direct_outputs(program: Program) -> dict[Buffer, int]:
    """Buffers that can lie in an output's memory."""
    found: dict[Buffer, int] = {}
    for i, t in enumerate(program.outputs):
        source = t.source
        if isinstance(source, Buffer) and source.input is None and t.is_whole() and source not in found:
            found[source] = i
    return found


def _one(
    module: Module, program: Program, target: Target, parameters: Parameters, places: dict[Buffer, int],
    outside: dict[Buffer, int],
) -> None:
    """One sample, computed where it lies."""
    f = _function(module, program, "one")
    external = {b: f[f"input{i}"].of(type_of(b.dtype)) for i, b in enumerate(program.inputs)}
    external |= {b: f[f"output{i}"].of(type_of(b.dtype)) for b, i in outside.items()}
    s = Schedule(f, target, program.dtype, 1, 1, parameters, places, external)
    for step in program.steps:
        GENERATORS[type(step)](s, step)
    for i, t in enumerate(program.outputs):
        if outside.get(t.source) == i:  # type: ignore[call-overload]
            continue
        source, target_ = s.at(t.source, _flat(t.access((t.size,))).offset), f[f"output{i}"].of(s.element)
        with f.loop(0, t.size) as k:
            f.store(f.load(source + k), target_ + k)
    f.ret()


def _run(module: Module, program: Program, target: Target, lanes: int, tiles: list[int]) -> None:
    """`run(inputs, outputs, parameters, arena, batch)`: tiles from the largest down; the last one overlaps the one
    before it, so that no tile is partly filled."""
    names = [("inputs", PTR), ("outputs", PTR), ("parameters", PTR), ("arena", PTR), ("batch", I64)]
    f = module.function("run", names, noalias=False)
    f.exit_when(f["batch"] < 1)
    kinds = [(b.size, type_of(b.dtype)) for b in program.inputs]
    inputs = [_pointer(f, f["inputs"], i).of(kind) for i, (_, kind) in enumerate(kinds)]
    element = type_of(program.dtype)
    sizes = [prod(t.shape) for t in program.outputs]
    outputs = [_pointer(f, f["outputs"], i).of(element) for i in range(len(sizes))]

    def call(name: str, sample: Index) -> None:
        own = [p + f.mul(sample, size) for p, (size, _) in zip(inputs, kinds, strict=True)]
        made = [p + f.mul(sample, size) for p, size in zip(outputs, sizes, strict=True)]
        module_call(f, name, [*own, *made, f["parameters"], f["arena"]])

    if not program.batched:
        call("one", 0)
        f.ret()
        return
    done = f.variable(0, I64)
    if tiles:
        smallest = lanes * tiles[-1]

        def by_tiles() -> None:
            for blocks in tiles:
                size = lanes * blocks
                with f.repeat(lambda size=size: done.get() + size <= f["batch"]):  # type: ignore[misc]
                    call(f"tile{size}", done.get())
                    done.set(done.get() + size)
            with f.when(done.get() < f["batch"]):
                call(f"tile{smallest}", f["batch"] - smallest)
                done.set(f["batch"])

        f.branch(f["batch"] >= smallest, by_tiles, lambda: None)
    with f.loop(done.get(), f["batch"]) as sample:
        call("one", sample)
    f.ret()


def module_call(f: Function, name: str, operands: list[Value]) -> None:
    from .llvm import VOID

    f.call(name, VOID, *operands)


def _pointer(f: Function, table: Value, index: int) -> Value:
    return f.load(table.of(PTR) + index)
