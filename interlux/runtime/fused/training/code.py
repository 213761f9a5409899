"""From a tape to native code: what a tile of samples goes through, in chunks of the batch, step after step.

    tile0(…)      a tile from its inputs to its gradients; at every BatchNorm it ends and tile1 … go on
    chunk0(…)     the tiles of one part of the batch, with memory, gradients and sums of their own
    gradients(…)  all chunks of a batch, by several threads where there are some
    train(…)      gradients and an update, for each of many batches

Which tiles belong to a chunk depends on the batch and the number of chunks alone, and chunks' gradients are added up in
their order: so results don't depend on which thread was faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....ir.errors import UnsupportedError
from ..kernels.rearranging import _transposed
from ..kernels.schedule import Parameters
from ..llvm import F64, I1, I8, I32, I64, PTR, VOID, Function, Module, Value, type_of
from ..steps import Elementwise, Instruction, MatMul, Pool, Rearrange, Reduce, Softmax, Step
from ..target import Target
from ..tensors import Buffer, Tensor, whole
from . import batchnorm
from .context import get, put
from .convolutions import convolution, convolution_backward
from .draws import draws, draws_backward, mixed
from .elementwise import elementwise, elementwise_backward, has_derivative, rearrange, rearrange_backward
from .losses import Loss, loss
from .matrices import matmul, matmul_backward
from .optimizers import Optimizer, update
from .products import lane_sums, linear, linear_backward
from .recurrence import History, Recurrence, made_by, recurrence, recurrence_backward, with_bodies
from .reductions import (
    REDUCTIONS,
    normalize,
    normalize_backward,
    pool,
    pool_backward,
    reduce,
    reduce_backward,
    softmax,
    softmax_backward,
)
from .rows import rows, rows_backward
from .schedule import Gradients, TrainingSchedule
from .steps import BatchNormalization, Convolution, Draws, Linear, Normalization, Rows, Tape, Weights

KERNELS: dict[type, tuple[Callable[..., None], Callable[..., None]]] = {
    Linear: (linear, linear_backward),
    Convolution: (convolution, convolution_backward),
    MatMul: (matmul, matmul_backward),
    Rows: (rows, rows_backward),
    Elementwise: (elementwise, elementwise_backward),
    Rearrange: (rearrange, rearrange_backward),
    Pool: (pool, pool_backward),
    Reduce: (reduce, reduce_backward),
    Softmax: (softmax, softmax_backward),
    Normalization: (normalize, normalize_backward),
    Draws: (draws, draws_backward),
    Recurrence: (
        lambda s, step: recurrence(s, step, KERNELS),
        lambda s, g, step: recurrence_backward(s, g, step, KERNELS),
    ),
}
_VECTOR = 64  # numbers: gradients are filled up to a multiple of it


@dataclass(frozen=True)
class Plan:
    """What a native function is made for.

    Arguments:
        tape: the model.
        loss: what is minimised.
        labels: whether targets are class numbers.
        optimizer: None where only gradients are wanted.
        vectors: of samples in a tile.
        inputs: whether the gradients of the inputs are wanted.
        output: whether the model's output is wanted.
        by_lane: whether gradients have a number for each lane until a chunk is done: for small networks.
    """

    tape: Tape
    loss: Loss
    labels: bool
    optimizer: Optimizer | None
    vectors: int
    inputs: bool = False
    output: bool = False
    by_lane: bool = False

    def stride(self, lanes: int) -> int:
        """Numbers between the gradients of two chunks."""
        return self.count * (1 + lanes if self.by_lane else 1)

    @property
    def count(self) -> int:
        """Numbers of one chunk's gradients."""
        return -(-self.tape.trained // _VECTOR) * _VECTOR


@dataclass(frozen=True)
class Code:
    """LLVM IR with its constants and needs.

    Arguments:
        text: LLVM IR with functions `gradients(context)` and `train(context, steps)`.
        parameters: constants, uint8.
        tile: samples.
        arena: bytes of scratch memory for a chunk, or for a tile of the batch if `by_tile`.
    """

    text: str
    parameters: np.ndarray
    tile: int
    arena: int
    by_tile: bool


def arena_size(plan: Plan) -> int:
    """Numbers that a tile keeps of each sample."""
    return _Layout(plan).size


class _Layout:
    """Where buffers lie, in features."""

    def __init__(self, plan: Plan):
        tape = plan.tape
        self.places: dict[Buffer, int] = {}
        self.size = 0
        self.weight = Buffer(1, tape.dtype)
        size = 1 if plan.labels else tape.output.size
        self.target = Buffer(size, tape.dtype)
        self.gradients = gradients_of(plan.tape, plan.inputs)
        linear = [s for s in with_bodies(tape.steps) if isinstance(s, Linear) and s.shape[1] >= 8]
        inner = max((s.operands[0].shape[1] for s in linear), default=0)
        self.transposed = Buffer(-(-inner // _VECTOR) * _VECTOR, tape.dtype)
        rounds: dict[Buffer, int] = {}
        inside: dict[Buffer, tuple[Buffer, int]] = {}  # another buffer that one lies in, and where
        for step in tape.steps:
            if isinstance(step, Recurrence):
                rounds.update((part.output, step.count) for part in step.body)
                for history in step.histories:
                    self._alias(inside, history)
        values = dict.fromkeys([*tape.inputs, *(step.output for step in with_bodies(tape.steps)), *rounds])
        for buffer in (*values, self.weight, self.transposed, self.target, *self.gradients.values()):
            if buffer not in inside:
                self.places[buffer] = self.size
                self.size += buffer.size * rounds.get(buffer, 1)
        self.places.update((buffer, self.places[whole] + start) for buffer, (whole, start) in inside.items())

    def _alias(self, inside: dict[Buffer, tuple[Buffer, int]], history: History) -> None:
        """A round's states and their gradients lie in the history and its gradient."""
        for buffer, start in ((history.before, 0), (history.after, history.after.size)):
            inside[buffer] = history.kept, start
            if buffer in self.gradients:
                inside[self.gradients[buffer]] = self.gradients[history.kept], start


def gradients_of(tape: Tape, inputs: bool) -> dict[Buffer, Buffer]:
    """Room for the gradients of all that depends on trained parameters, and on the inputs if theirs are wanted."""
    needed: dict[Buffer, Buffer] = {}
    if inputs:
        needed.update((x, Buffer(x.size, tape.dtype)) for x in tape.inputs if x.dtype == tape.dtype)
    for step in tape.steps:
        parts = step.body if isinstance(step, Recurrence) else [step]
        read = [t for part in parts for t in (getattr(part, "weight", None), getattr(part, "bias", None))]
        if step.output in tape.stopped or not (
            any(isinstance(t, Tensor) and _has_gradient(tape, needed, t) for t in (*read, *step.operands))
            or (isinstance(step, Recurrence) and any(buffer in needed for buffer in made_by(step)))
        ):
            continue
        made = {buffer: buffer.size for buffer in made_by(step)}
        if isinstance(step, Recurrence):
            made.update((buffer, buffer.size) for h in step.histories for buffer in (h.before, h.after))
            # those of products are kept for all rounds, for the gradients of their weights
            counts = ((part, step.count if isinstance(part, Linear) else 1) for part in parts)
            made.update((part.output, part.output.size * count) for part, count in counts)
        for buffer, size in made.items():
            needed.setdefault(buffer, Buffer(size, tape.dtype))
    return needed


def _has_gradient(tape: Tape, needed: dict[Buffer, Buffer], t: Tensor) -> bool:
    return t.index.min() < tape.trained if isinstance(t.source, Weights) else t.source in needed


def check_derivatives(tape: Tape, inputs: bool) -> None:
    """Raises UnsupportedError naming every step that cannot be computed, or that a gradient cannot go through.

    Arguments:
        inputs: whether gradients of the inputs are wanted.
    """
    needed = gradients_of(tape, inputs)
    strange = []
    for step in with_bodies(tape.steps):
        what = type(step).__name__
        fine = isinstance(step, BatchNormalization) or type(step) in KERNELS
        if isinstance(step, Elementwise) and step.output in needed:
            code = step.code[-1]
            what = code.op
            wanted = [i for i, t in enumerate(step.operands) if _has_gradient(tape, needed, t)]
            fine = all(has_derivative(what, code.arguments.index(i)) for i in wanted)
        if isinstance(step, Reduce) and step.output in needed:
            what, fine = f"a reduction by {step.kind}", step.kind in REDUCTIONS
        if not fine:
            strange.append(f"{what} (in {step.place})")
    if strange:
        raise UnsupportedError("the fused engine has no derivative of these; train with JAX", strange)


_ARGUMENTS = [
    ("context", PTR), ("parameters", PTR), ("arena", PTR), ("weights", PTR), ("gradients", PTR), ("sums", PTR),
    ("statistics", PTR), ("tile", I64), ("seed", I32),
]  # fmt: skip


def generate(plan: Plan, target: Target) -> Code:
    """The code of a plan."""
    module = Module(target)
    parameters = Parameters()
    layout = _Layout(plan)
    phases, between = _phases(plan, layout)
    tile = plan.vectors * target.lanes(plan.tape.dtype)
    lane = plan.count if plan.by_lane else 0
    for number, actions in enumerate(phases):
        f = module.function(f"tile{number}", _ARGUMENTS, internal=True, inline=False)
        s = TrainingSchedule(f, target, plan.tape, tile, parameters, layout.places, lane, layout.transposed)
        for action in actions:
            action(s)
        f.ret()
    size = -(-layout.size * tile * type_of(plan.tape.dtype).bytes // 64) * 64
    by_tile = len(phases) > 1
    for number in range(len(phases)):
        _chunk(module, plan, target, number, number == len(phases) - 1, tile, size, by_tile)
    _gradients(module, plan, target, len(phases), between)
    if plan.optimizer is not None:
        _train(module, plan, target)
    return Code(module.text(), np.frombuffer(parameters.bytes(), np.uint8), tile, size, by_tile)


Action = Callable[[TrainingSchedule], None]
Between = Callable[[Function, Target], None]


def _phases(plan: Plan, layout: _Layout) -> tuple[list[list[Action]], list[Between]]:
    """What a tile goes through, cut where it waits for all others, and what is done there."""
    tape = plan.tape
    state: dict[str, Gradients] = {}
    phases: list[list[Action]] = [[lambda s: _load(s, plan, layout)]]
    between: list[Between] = []

    def barrier(combine: Callable[..., None], step: BatchNormalization) -> None:
        between.append(lambda f, target: combine(f, tape, target, step))
        phases.append([])

    def valid(s: TrainingSchedule) -> Value:
        weight = s.vector(s.at(layout.weight, 0))
        return s.f.select(s.f.compare("ne", weight, 0.0), s.constant(1.0), s.constant(0.0))

    for step in tape.steps:
        if isinstance(step, BatchNormalization):
            sums, squares, apply = batchnorm.forward(step, valid)
            phases[-1].append(sums)  # type: ignore[arg-type]
            barrier(batchnorm.combine_mean, step)
            phases[-1].append(squares)  # type: ignore[arg-type]
            barrier(batchnorm.combine_variance, step)
            phases[-1].append(apply)  # type: ignore[arg-type]
        else:
            phases[-1].append(lambda s, step=step: KERNELS[type(step)][0](s, step))  # type: ignore[misc]
    if plan.output:
        phases[-1].append(lambda s: _store(s, plan.tape.output, "output"))

    readers = Counter(t.source for step in with_bodies(tape.steps) for t in step.operands)
    readers[tape.output.source] += 1
    made: dict[Buffer, Instruction] = {
        step.output: step.activation
        for step in with_bodies(tape.steps)
        if isinstance(step, Linear | Convolution) and step.activation is not None
    }

    def gradients(s: TrainingSchedule) -> Gradients:
        if "g" not in state:
            state["g"] = Gradients(s, layout.gradients, readers, made)
        state["g"].use(s)
        return state["g"]

    def last(s: TrainingSchedule) -> None:
        g = gradients(s) if layout.gradients.get(tape.output.source) else None  # type: ignore[arg-type]
        weight = s.at(layout.weight, 0)
        loss(s, g, plan.loss, tape.output, layout.target, plan.labels, weight)

    def back(s: TrainingSchedule, step: Step) -> None:
        if any(gradients(s).has(buffer) for buffer in made_by(step)):
            KERNELS[type(step)][1](s, gradients(s), step)

    def to_input(s: TrainingSchedule, number: int, x: Buffer) -> None:
        if gradients(s).has(x):
            _store(s, whole(layout.gradients[x], (x.size,), tape.dtype), f"by_x{number}")

    phases[-1].append(last)
    for step in reversed(tape.steps):
        if step.output not in layout.gradients:
            continue
        if isinstance(step, BatchNormalization):
            current: dict[str, TrainingSchedule] = {}
            sums, apply = batchnorm.backward(step, lambda current=current: gradients(current["s"]), valid)  # type: ignore[misc]

            def run(
                s: TrainingSchedule,
                action: Any,
                current: dict[str, TrainingSchedule] = current,
                output: Buffer = step.output,
            ) -> None:
                current["s"] = s
                if gradients(s).has(output):
                    action(s)

            phases[-1].append(lambda s, a=sums, run=run: run(s, a))  # type: ignore[misc]
            barrier(batchnorm.combine_gradients, step)
            phases[-1].append(lambda s, a=apply, run=run: run(s, a))  # type: ignore[misc]
        else:
            phases[-1].append(lambda s, step=step: back(s, step))  # type: ignore[misc]
    for number, x in enumerate(tape.inputs if plan.inputs else ()):
        phases[-1].append(lambda s, *, number=number, x=x: to_input(s, number, x))  # type: ignore[misc]
    return phases, between


# Between arrays outside and features inside


def _load(s: TrainingSchedule, plan: Plan, layout: _Layout) -> None:
    """Gathers the samples of a tile, their targets and weights; what is left of the tile repeats the last sample."""
    f = s.f
    batch, index = get(f, "batch"), get(f, "index").of(I64)
    start = f["tile"] * s.tile
    scale = get(f, "scale")
    weight = scale if s.element == F64 else f.cast("fptrunc", scale, s.element)
    room = f.scratch(I64, s.tile)
    place = s.at(layout.weight, 0)
    samples = f.variable(f.offset(index, start))

    def part() -> None:
        with f.loop(0, s.tile) as i:
            position = start + i
            inside = position < batch
            clamped = f.select(inside, position, batch - 1)
            f.store(f.load(f.offset(index, clamped)), f.offset(room, i))
            f.store(f.select(inside, weight, f.const(0.0, s.element)), f.offset(place, i))
        samples.set(room)

    def full() -> None:
        with f.loop(0, s.tile, s.lanes) as i:
            s.put(weight, f.offset(place, i))

    f.branch(start + s.tile > batch, part, full)
    numbers = samples.get().of(I64)
    for number, buffer in enumerate(plan.tape.inputs):
        _gather(s, get(f, f"x{number}").of(s.element if buffer.dtype == s.dtype else I64), buffer, numbers)
    if not plan.labels:
        _gather(s, get(f, "y").of(s.element), layout.target, numbers)
        return
    labels = get(f, "y").of(I64)
    with f.loop(0, s.tile) as i:
        label = f.load(f.offset(labels, f.load(f.offset(numbers, i))))
        f.store(f.cast("sitofp", label, s.element), f.offset(s.at(layout.target, 0), i))


def _gather(s: TrainingSchedule, outside: Value, buffer: Buffer, samples: Value) -> None:
    """Rows of an array, by their numbers, become features; integers as floating-point numbers."""
    f, lanes, size = s.f, s.lanes, buffer.size
    kind = s.element.vector(lanes)
    with s.groups() as group:
        numbers = [f.load(f.offset(samples, f.add(group, i))) for i in range(lanes)]
        rows = [f.offset(outside, number * size) for number in numbers]

        def block(first: Any, count: int) -> None:
            loaded = [f.load(f.offset(row, first), lanes, count=count) for row in rows]
            if outside.to != s.element:
                loaded = [f.cast("sitofp", row, kind) for row in loaded]
            for k, feature in enumerate(_transposed(s, loaded)[:count]):
                s.put(feature, s.at(buffer, f.add(first, k)))

        with f.loop(0, size // lanes * lanes, lanes) as first:
            block(first, lanes)
        if size % lanes:
            block(size // lanes * lanes, size % lanes)


def _store(s: TrainingSchedule, t: Tensor, name: str) -> None:
    """Features become rows of an array, one for each sample of the batch."""
    f = s.f
    access = t.access((t.size,))
    assert access is not None, "outputs are contiguous"
    outside = get(f, name).of(s.element)
    count = f.min(get(f, "batch") - f["tile"] * s.tile, f.const(s.tile, I64))
    with f.when(f.ne(f.cast("ptrtoint", outside, I64), 0)):
        rows = f.offset(outside, f["tile"] * (s.tile * t.size))
        with f.loop(0, count) as i, f.loop(0, t.size) as k:
            value = f.load(f.offset(s.at(t.source, s.index(access, [k])), i))
            f.store(value, f.offset(rows, f.add(f.mul(i, t.size), k)))


# Chunks, batches and steps


def _chunk(
    module: Module, plan: Plan, target: Target, number: int, is_last: bool, tile: int, size: int, by_tile: bool
) -> None:
    """`chunk(context, i)`: the tiles of a part of the batch."""
    f = module.function(f"chunk{number}", [("context", PTR), ("chunk", I64)], internal=True, noalias=False)
    element = type_of(plan.tape.dtype)
    chunk, chunks = f["chunk"], get(f, "chunks")
    tiles = f.div(get(f, "batch") + (tile - 1), tile)
    first, last = f.div(tiles * chunk, chunks), f.div(tiles * (chunk + 1), chunks)
    numbers = plan.stride(target.lanes(plan.tape.dtype))
    gradients = f.offset(get(f, "gradients").of(element), chunk * numbers)
    stride = plan.tape.sums + 1
    sums = f.offset(get(f, "sums").of(F64), chunk * stride)
    if number == 0:
        for pointer, count in ((gradients, numbers * element.bytes), (sums, stride * 8)):
            f.call("llvm.memset.p0.i64", VOID, pointer, f.const(0, I8), f.const(count, I64), f.const(False, I1))
    seed = f.cast("trunc", get(f, "seed"), I32)
    with f.loop(first, last) as i:
        arena = f.offset(get(f, "arena").of(I8), (i if by_tile else chunk) * size)
        values = (
            f["context"], get(f, "parameters"), arena, get(f, "weights"), gradients, sums, get(f, "statistics"), i, seed
        )  # fmt: skip
        f.call(f"tile{number}", VOID, *values)
    if is_last and plan.by_lane:
        _fold(f, plan, target, gradients)
    f.ret()


def _fold(f: Function, plan: Plan, target: Target, gradients: Value) -> None:
    """Sums the gradients of all lanes."""
    element = type_of(plan.tape.dtype)
    lanes = target.lanes(plan.tape.dtype)
    align = lanes * element.bytes
    with f.loop(0, plan.count, lanes) as i:
        start = f.offset(gradients, f.add(f.mul(i, lanes), plan.count))
        vectors = [f.load(f.offset(start, k * lanes), lanes, align) for k in range(lanes)]
        place = f.offset(gradients, i)
        f.store(f.load(place, lanes, align) + lane_sums(f, vectors), place, align)


def _gradients(module: Module, plan: Plan, target: Target, phases: int, between: list[Between]) -> None:
    """`gradients(context)`: all chunks of a batch."""
    f = module.function("gradients", [("context", PTR)], noalias=False)
    chunks = get(f, "chunks")
    for number in range(phases):

        def alone(number: int = number) -> None:
            with f.loop(0, chunks) as chunk:
                f.call(f"chunk{number}", VOID, f["context"], chunk)

        def together(number: int = number, alone: Callable[[], None] = alone) -> None:
            run, shared = get(f, "pool_run"), get(f, "pool")
            context, threads = f["context"], get(f, "threads")
            done = f.emit(
                f"call i64 {run.text}(ptr {shared.text}, ptr @chunk{number}, ptr {context.text}, i64 {chunks.text}, "
                f"i64 {threads.text})",
                I64,
            )
            with f.when(f.eq(done, 0)):
                alone()

        f.branch((get(f, "threads") > 1) & (chunks > 1), together, alone)
        if number < len(between):
            between[number](f, target)
    f.ret()


def _train(module: Module, plan: Plan, target: Target) -> None:
    """`train(context, steps)`: gradients and an update for each step's batch."""
    f = module.function("train", [("context", PTR), ("steps", I64)], noalias=False)
    assert plan.optimizer is not None
    stride = plan.tape.sums + 1
    mean = plan.loss.reduction == "mean"
    part = plan.loss.per_sample(plan.tape.output)
    with f.loop(0, f["steps"]) as step:
        batch = f.load(f.offset(get(f, "schedule").of(I64), step))
        put(f, "batch", batch)
        scale = f.const(part, F64)
        put(f, "scale", scale / f.cast("sitofp", batch, F64) if mean else scale)
        f.call("gradients", VOID, f["context"])
        total = f.variable(f.const(0.0, F64))
        with f.loop(0, get(f, "chunks")) as chunk:
            total.set(total.get() + f.load(f.offset(get(f, "sums").of(F64), chunk * stride)))
        f.store(total.get(), f.offset(get(f, "losses").of(F64), step))
        update(f, target, plan.tape, plan.optimizer, plan.count, plan.stride(target.lanes(plan.tape.dtype)))
        put(f, "index", f.offset(get(f, "index").of(I64), batch))
        seed = mixed(f, f.cast("trunc", get(f, "seed") + 1, I32))
        put(f, "seed", f.cast("zext", seed, I64))
    f.ret()
