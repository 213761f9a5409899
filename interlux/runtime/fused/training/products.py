"""Products: fully connected layers forward and backward, and what convolutions share with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..kernels.elementwise import FUNCTIONS
from ..kernels.rearranging import _transposed
from ..kernels.schedule import Blocks, access_of
from ..llvm import I1, I32, Function, Index, Value, Variable
from ..steps import Instruction
from .schedule import Gradients, TrainingSchedule, through_activation
from .steps import Convolution, Linear


def activated(s: TrainingSchedule, activation: Instruction | None, value: Value) -> Value:
    if activation is None:
        return value
    return FUNCTIONS[activation.op](s.f, value, **dict(activation.attributes))


def linear(s: TrainingSchedule, step: Linear) -> None:
    """activation(x · weightᵀ + bias)."""
    f = s.f
    (x,) = step.operands
    rows, outs = step.shape
    access, weight = access_of(x), access_of(step.weight)
    bias = None if step.bias is None else access_of(step.bias)

    def start(o: Index) -> Value:
        if bias is None:
            return s.constant(0.0)
        return s.broadcast(s.at(s.tape.weights, s.index(bias, [o])))

    def finish(row: Index, o: Index, group: Index, value: Value) -> None:
        place = f.offset(s.at(step.output, f.add(f.mul(row, outs), o)), group)
        s.put(activated(s, step.activation, value), place)

    with f.loop(0, rows) as row:
        begin = s.at(x.source, s.index(access, [row, 0]))
        place = s.at(s.tape.weights, weight.offset)
        distance = access.strides[1] * s.stride(x.source)
        product(s, outs, x.shape[1], begin, distance, place, weight.strides, start, lambda *a, r=row: finish(r, *a))


def product(
    s: TrainingSchedule,
    outs: int,
    inner: int,
    begin: Value,
    distance: int,
    weights: Value,
    strides: Sequence[int],
    start: Callable[[Index], Value],
    finish: Callable[[Index, Index, Value], None],
    once: bool = False,
) -> None:
    """start(o) + Σ_k weight[o, k] · value[k] for all outputs and samples, in blocks that stay in registers.

    Arguments:
        begin, distance: the first value, and how many numbers lie between two.
        weights, strides: the first weight, and the numbers between two along o and k.
        finish: is given the output's number, the first sample of a vector, and the vector.
        once: blocks overlap, and where one repeats an output of another it gives 0, for results that are added.
    """
    f = s.f
    vectors = min(s.vectors, 2 if outs > 6 else 4)
    while s.vectors % vectors:
        vectors -= 1
    blocks = Blocks.of(outs, max(1, s.accumulators // vectors))
    with f.loop(0, blocks.count) as block, f.loop(0, s.tile, vectors * s.lanes) as group:
        first = blocks.first(f, block)
        w = f.offset(weights, f.mul(first, strides[0]))
        x = f.offset(begin, group)
        sums: list[list[Variable]] = []
        for o in range(blocks.size):
            initial = start(f.add(first, o))
            sums.append([f.variable(initial) for _ in range(vectors)])

        def accumulate(k: Index, offset: int) -> None:
            at = f.offset(f.offset(x, f.mul(k, distance)), offset * distance)
            values = [s.vector(at, n * s.lanes) for n in range(vectors)]
            row = f.offset(f.offset(w, f.mul(k, strides[1])), offset * strides[1])
            for o in range(blocks.size):
                weight = s.broadcast(f.offset(row, o * strides[0]))
                for total, value in zip(sums[o], values, strict=True):
                    total.set(f.fma(weight, value, total.get()))

        f.unrolled(inner, 2 if blocks.size * vectors >= 16 else 4, accumulate)
        for o in range(blocks.size):
            for n in range(vectors):
                value = sums[o][n].get()
                if once:
                    value = unseen(s, value, o, first, block, blocks)
                finish(f.add(first, o), f.add(group, n * s.lanes), value)


def unseen(s: TrainingSchedule, value: Value, offset: int, first: Index, block: Index, blocks: Blocks) -> Value:
    """A result of a block, 0 where the block before it gave the same one."""
    f = s.f
    if blocks.count * blocks.size == blocks.total or not isinstance(block, Value):
        return value
    return f.select(f.sub(f.mul(block, blocks.size), first) > offset, f.const(0.0, value.type), value)


def linear_backward(s: TrainingSchedule, g: Gradients, step: Linear, parameters: bool = True) -> None:
    """The gradients of x, and of weight and bias unless they are computed for many executions at once."""
    f = s.f
    (x,) = step.operands
    rows, outs = step.shape
    access, weight = access_of(x), access_of(step.weight)
    finish_gradient(s, g, step)
    delta = g.of(step.output)
    if parameters:
        linear_parameters(s, g, step)
    if not g.wanted(x):
        return
    sink = g.sink(x)
    with f.loop(0, rows) as row:
        begin = s.at(delta, f.mul(row, outs))
        place = s.at(s.tape.weights, weight.offset)

        def finish(k: Index, group: Index, value: Value, row: Index = row) -> None:
            sink.put(value, s.index(access, [row, k]), group)

        zero = s.constant(0.0)
        product(s, x.shape[1], outs, begin, s.tile, place, weight.strides[::-1], lambda _: zero, finish, sink.adds)


def linear_parameters(s: TrainingSchedule, g: Gradients, step: Linear, count: int = 1, apart: int = 0) -> None:
    """The gradients of weight and bias.

    Arguments:
        count: of executions of the step, whose results lie one behind the other.
        apart: numbers of a sample between their inputs.
    """
    f = s.f
    (x,) = step.operands
    rows, outs = step.shape
    inner = x.shape[1]
    access, weight = access_of(x), access_of(step.weight)
    delta = g.of(step.output)
    if weight.offset < s.tape.trained:
        distance = access.strides[1] * s.stride(x.source)

        def places(position: Sequence[Index]) -> tuple[Value, Value]:
            number, row = position
            left = s.at(delta, f.mul(f.add(f.mul(number, rows), row), outs))
            return left, s.at(x.source, f.add(s.index(access, [row, 0]), f.mul(number, apart)))

        if transposes(s, step):
            with s.nest((count, rows)) as position:
                left, right = places(position)
                _outer_rows(s, left, right, outs, inner, distance, weight.offset, weight.strides[0])
        else:
            outer(s, (count, rows), places, (outs, s.tile), (inner, distance), weight.offset, weight.strides)
    bias_gradient(s, step, delta, count * rows, lambda row, o: f.add(f.mul(row, outs), o))


def transposes(s: TrainingSchedule, step: Linear) -> bool:
    """Whether the gradient of a layer's weights is computed with inputs in the lanes in place of samples: then nothing
    has to be summed over lanes, but the inputs are transposed first, which pays where there are many outputs."""
    outs, inner = step.shape[1], step.operands[0].shape[1]
    return not s.by_lane and 1 < s.lanes <= inner and outs >= 8 and access_of(step.weight).strides[1] == 1


def _outer_rows(
    s: TrainingSchedule, delta: Value, x: Value, outs: int, inner: int, apart: int, gradient: int, stride: int
) -> None:
    """gradient[o, k] += Σ over samples of delta[o] · x[k], neighbouring k in the lanes."""
    f, lanes = s.f, s.lanes
    size = -(-inner // lanes) * lanes
    rows = s.at(s.transposed, 0)  # [tile, size]
    columns = Blocks(inner, lanes, -(-inner // lanes))
    with f.loop(0, columns.count) as block, s.groups() as group:
        first = columns.first(f, block)
        features = [s.vector(f.offset(f.offset(x, f.mul(first, apart)), k * apart), group) for k in range(lanes)]
        for i, row in enumerate(_transposed(s, features)):
            place = f.offset(f.offset(rows, f.mul(f.add(group, i), size)), f.mul(block, lanes))
            f.store(row, place, s.alignment)
    many = min(columns.count, 4)
    o_blocks = Blocks.of(outs, max(1, s.accumulators // many))

    def blocks(start: Index, many: int) -> None:
        """A number of vectors of inputs, from vector `start` on, times a block of outputs."""
        with f.loop(0, o_blocks.count) as o_block:
            o = o_blocks.first(f, o_block)
            sums = [[f.variable(s.constant(0.0)) for _ in range(many)] for _ in range(o_blocks.size)]
            left = f.offset(delta, f.mul(o, s.tile))

            def accumulate(sample: Index, offset: int) -> None:
                at = f.offset(f.offset(rows, f.mul(sample, size)), f.mul(start, lanes))
                values = [s.vector(at, offset * size + v * lanes) for v in range(many)]
                for p in range(o_blocks.size):
                    factor = f.broadcast(f.offset(f.offset(left, sample), p * s.tile + offset), lanes)
                    for v, value in enumerate(values):
                        sums[p][v].set(f.fma(factor, value, sums[p][v].get()))

            f.unrolled(s.tile, 2, accumulate)
            for p in range(o_blocks.size):
                for v in range(many):
                    first = columns.first(f, f.add(start, v))
                    place = s.weight_gradient(f.add(f.add(f.mul(f.add(o, p), stride), first), gradient))
                    value = unseen(s, sums[p][v].get(), p, o, o_block, o_blocks)
                    value = _unseen_lanes(s, value, f.add(start, v), first, columns)
                    f.store(f.load(place, lanes) + value, place)

    whole = columns.count // many * many
    with f.loop(0, whole, many) as start:
        blocks(start, many)
    if columns.count - whole:
        blocks(whole, columns.count - whole)


def _unseen_lanes(s: TrainingSchedule, value: Value, block: Index, first: Index, columns: Blocks) -> Value:
    """Zero in the lanes that the vector before this one had as well."""
    f = s.f
    if columns.count * columns.size == columns.total:
        return value
    seen = f.sub(f.mul(block, columns.size), first)
    zero = f.const(0.0, value.type)
    if not isinstance(seen, Value):
        return value if seen <= 0 else f.select(f.vector([i < seen for i in range(s.lanes)], I1), zero, value)
    number = f.vector(list(range(s.lanes)), I32)
    return f.select(f.splat(f.cast("trunc", seen, I32), s.lanes) > number, zero, value)


def finish_gradient(s: TrainingSchedule, g: Gradients, step: Linear | Convolution) -> None:
    """Multiplies the derivative of the step's activation into its output's gradient, unless that is done already."""
    f = s.f
    if step.activation is None or step.output in g.finished:
        return
    with f.loop(0, step.size) as i, s.groups():
        place = s.at(g.of(step.output), i)
        y = s.vector(s.at(step.output, i))
        s.put(through_activation(s, step.activation, s.vector(place), y), place)


def bias_gradient(
    s: TrainingSchedule,
    step: Linear | Convolution,
    delta: object,
    rows: int,
    feature: Callable[[Index, Index], Index],
) -> None:
    """Sums the output's gradient over rows and samples."""
    f = s.f
    if step.bias is None:
        return
    access = access_of(step.bias)
    if access.offset >= s.tape.trained:
        return
    with f.loop(0, step.bias.size) as o:
        total = f.variable(s.constant(0.0))
        with f.loop(0, rows) as row:
            place = s.at(delta, feature(row, o))  # type: ignore[arg-type]

            def add(i: Index, offset: int, place: Value = place) -> None:
                at = f.offset(f.offset(place, f.mul(i, s.lanes)), offset * s.lanes)
                total.set(total.get() + s.vector(at))

            f.unrolled(s.vectors, 8, add)
        s.add_to_weight(s.index(access, [o]), total.get())


def outer(
    s: TrainingSchedule,
    positions: Sequence[int],
    places: Callable[[Sequence[Index]], tuple[Value, Value]],
    left: tuple[int, int],
    right: tuple[int, int],
    gradient: Index,
    strides: Sequence[int],
) -> None:
    """gradient[i, j] += Σ over positions and samples of left[i] · right[j].

    Blocks of as many products as a vector has lanes stay in registers over all positions and samples, so that their
    lanes are summed all together, once.

    Arguments:
        places: at a position the addresses of left[0] and right[0].
        left, right: how many there are, and the numbers between two.
        gradient: number of the first parameter.
        strides: numbers between two gradients along i and j.
    """
    if strides[1] != 1 and strides[0] == 1:

        def turned(position: Sequence[Index]) -> tuple[Value, Value]:
            a, b = places(position)
            return b, a

        outer(s, positions, turned, right, left, gradient, (strides[1], strides[0]))
        return
    f, lanes = s.f, s.lanes
    columns = min(right[0], max(1, lanes // min(left[0], 4)))
    rows = min(left[0], max(1, lanes // columns))
    columns = min(right[0], max(1, lanes // rows), 8)
    i_blocks, j_blocks = Blocks.of(left[0], rows), Blocks.of(right[0], columns)
    rows, columns = i_blocks.size, j_blocks.size
    with f.loop(0, i_blocks.count) as i_block, f.loop(0, j_blocks.count) as j_block:
        i, j = i_blocks.first(f, i_block), j_blocks.first(f, j_block)
        sums = [[f.variable(s.constant(0.0)) for _ in range(columns)] for _ in range(rows)]
        with s.nest(tuple(positions)) as position:
            a, b = places(position)
            a, b = f.offset(a, f.mul(i, left[1])), f.offset(b, f.mul(j, right[1]))

            def accumulate(n: Index, offset: int, a: Value = a, b: Value = b) -> None:
                group = f.add(f.mul(n, lanes), offset * lanes)
                others = [s.vector(f.offset(b, q * right[1]), group) for q in range(columns)]
                for p in range(rows):
                    value = s.vector(f.offset(a, p * left[1]), group)
                    for q in range(columns):
                        sums[p][q].set(f.fma(value, others[q], sums[p][q].get()))

            f.unrolled(s.vectors, 2, accumulate)
        number = f.add(gradient, f.add(f.mul(i, strides[0]), f.mul(j, strides[1])))
        _add_block(s, _Block(i, j, i_block, j_block, i_blocks, j_blocks), sums, number, strides)


@dataclass(frozen=True)
class _Block:
    """Where a block of products begins, and the number of the block on each side."""

    i: Index
    j: Index
    i_block: Index
    j_block: Index
    i_blocks: Blocks
    j_blocks: Blocks


def _add_block(
    s: TrainingSchedule, b: _Block, sums: list[list[Variable]], number: Index, strides: Sequence[int]
) -> None:
    """Adds a block's sums to the gradients; `number` is that of its first parameter.

    The last block overlaps the one before it: what that has summed is not added again.
    """
    f = s.f
    rows, columns = b.i_blocks.size, b.j_blocks.size
    if s.by_lane:
        for p in range(rows):
            for q in range(columns):
                value = unseen(s, sums[p][q].get(), p, b.i, b.i_block, b.i_blocks)
                value = unseen(s, value, q, b.j, b.j_block, b.j_blocks)
                s.add_lanes(f.add(number, p * strides[0] + q * strides[1]), value)
        return
    summed = lane_sums(f, [sums[p][q].get() for p in range(rows) for q in range(columns)])
    seen_rows = f.sub(f.mul(b.i_block, rows), b.i)
    seen_columns = f.sub(f.mul(b.j_block, columns), b.j)
    for p in range(rows):
        place = s.weight_gradient(f.add(number, p * strides[0]))
        part = f.part(summed, p * columns, columns) if columns > 1 else f.extract(summed, p)
        part = _unseen(s, part, p, seen_rows, seen_columns, b.i_blocks, b.j_blocks)
        if strides[1] == 1:
            f.store(f.load(place, columns) + part, place)
            continue
        for q in range(columns):
            at = f.offset(place, q * strides[1])
            f.store(f.load(at) + f.extract(part, q), at)


def _unseen(
    s: TrainingSchedule, part: Value, p: int, rows: Index, columns: Index, i_blocks: Blocks, j_blocks: Blocks
) -> Value:
    """Zero in place of the sums of row p that another block has added."""
    f = s.f
    count = part.type.lanes
    zero = f.const(0.0, part.type)
    if i_blocks.count * i_blocks.size != i_blocks.total and isinstance(rows, Value):
        part = f.select(rows > p, zero, part)
    if j_blocks.count * j_blocks.size != j_blocks.total and isinstance(columns, Value):
        number = f.vector(list(range(count)), I32)
        part = f.select(f.splat(f.cast("trunc", columns, I32), count) > number, zero, part)
    return part


def lane_sums(f: Function, vectors: Sequence[Value]) -> Value:
    """A vector whose lane i is the sum of all lanes of the i-th vector; at most as many as there are lanes."""
    lanes = vectors[0].type.lanes
    if lanes == 1:
        return vectors[0]
    zero = f.const(0.0, vectors[0].type)
    found = [*vectors, *[zero] * (lanes - len(vectors))]
    half = lanes // 2
    while half:
        count = len(found) // 2
        joined = []
        for a, b in zip(found[:count], found[count:], strict=True):
            low = f.shuffle(a, b, [k if not k & half else lanes + (k ^ half) for k in range(lanes)])
            high = f.shuffle(a, b, [(k | half) if not k & half else lanes + k for k in range(lanes)])
            joined.append(low + high)
        found = joined
        half //= 2
    return found[0]
