"""What happens to steps between recording and code: folding, fusion, and the planning of memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from ...ir.errors import InvalidModelError
from .steps import (
    LIGHT,
    Conv,
    Dense,
    Elementwise,
    Expression,
    Instruction,
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
from .tensors import Buffer, Tensor, whole

_CARRIERS = (Dense, Conv, MatMul, Normalize, Softmax, Reduce, Pool, Elementwise)  # steps that can have an epilogue


def optimised(program: Program) -> Program:
    """All passes in their order."""
    steps = without_dead(program.steps, program.outputs)
    steps = fused(steps, program.outputs)
    steps = pooled(steps, program.outputs)
    if program.stored is not None:
        steps = rounded(steps, program.stored)
    steps, outputs = settled(steps, program.outputs, program.dtype)
    return replace(program, steps=without_dead(steps, outputs), outputs=outputs)


def rounded(steps: list[Step], dtype: np.dtype[Any]) -> list[Step]:
    """With the large weights rounded to a dtype, the same for all schedules; offsets stay as they are.

    Raises InvalidModelError naming the layer if a weight is too large for the dtype.
    """
    result = []
    for step in steps:
        match step:
            case Dense() | Conv():
                step = replace(step, weight=_rounded(step.weight, dtype, step.place))
            case Lookup():
                step = replace(step, table=_rounded(step.table, dtype, step.place))
            case Repeat():
                step = replace(step, body=rounded(step.body, dtype))
        result.append(step)
    return result


def _rounded(weight: np.ndarray, dtype: np.dtype[Any], place: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        result = weight.astype(dtype).astype(np.float64)
    lost = np.isinf(result) & np.isfinite(weight)
    if lost.any():
        raise InvalidModelError(f"the weight {weight[lost][0]:.4g} of {place} is too large for {dtype.name}; compile "
                                "with weights=None")  # fmt: skip
    return result


def without_dead(steps: list[Step], outputs: list[Tensor]) -> list[Step]:
    """Without steps whose results nothing reads."""
    live = {t.source for t in outputs}
    kept = []
    for step in reversed(steps):
        made = [step.output, *(step.states if isinstance(step, Repeat) else [])]
        if any(buffer in live for buffer in made):
            kept.append(step)
            live.update(t.source for t in step.reads())
    return kept[::-1]


def _uses(steps: list[Step], outputs: list[Tensor]) -> Counter[object]:
    """In how many places each source is read."""
    return Counter([t.source for step in steps for t in step.reads()] + [t.source for t in outputs])


def fused(steps: list[Step], outputs: list[Tensor]) -> list[Step]:
    """Scalar operations move into the steps that make their operands, constant scales into weights."""
    uses = _uses(steps, outputs)
    made: dict[object, Step] = {}
    result: list[Step] = []
    for step in steps:
        current: Step = step
        while isinstance(current, Elementwise):
            found = _producer(current, made, uses, result)
            if found is None:
                break
            producer, positions = found
            following = _absorbed(producer, current, positions)
            if following is None:
                break
            result.remove(producer)
            current = following
            uses = _uses([*result, current, *steps[steps.index(step) + 1 :]], outputs)
            if not isinstance(current, Elementwise):
                break
        result.append(current)
        made[current.output] = current
    return result


def _producer(
    step: Elementwise, made: dict[object, Step], uses: Counter[object], done: list[Step]
) -> tuple[Step, list[int]] | None:
    """The last step that makes an operand which only this step reads, element by element."""
    best: tuple[int, Step, list[int]] | None = None
    for tensor in step.operands:
        producer = made.get(tensor.source)
        if producer is None or not isinstance(producer, _CARRIERS) or (isinstance(producer, Conv) and producer.pool):
            continue
        positions = [i for i, t in enumerate(step.operands) if t.source is tensor.source]
        if uses[tensor.source] != len(positions) or not all(step.operands[i].is_whole() for i in positions):
            continue
        if producer.size != step.size or producer not in done:
            continue
        place = done.index(producer)
        if best is None or place > best[0]:
            best = place, producer, positions
    return None if best is None else best[1:]


def _absorbed(producer: Step, step: Elementwise, positions: list[int]) -> Step | None:
    """The producer with the step's operation behind it; None if its operands can't be read in the producer's order."""
    expression = _shared(step.expression, positions)
    if isinstance(producer, Elementwise):
        reshaped = [t.reshaped(producer.shape) for t in expression.operands[1:]]
        joined = Expression([expression.operands[0], *reshaped], expression.code).fused(0, producer.expression)
        return Elementwise(producer.place, joined.operands, step.output, producer.shape, joined.code)
    if isinstance(producer, Dense | Conv) and producer.epilogue is None:
        folded = _scaled(producer, step, expression)
        if folded is not None:
            return folded
    if any(c.op not in LIGHT for c in expression.code):
        return None  # long code, written out for every register of a kernel, would take long to compile
    others = [t.reshaped(producer.shape).plain() for t in expression.operands[1:]]
    if any(t.access() is None for t in others):
        return None
    behind = Expression([expression.operands[0], *others], expression.code)
    if producer.epilogue is not None:
        behind = behind.fused(0, producer.epilogue)
    return replace(producer, output=step.output, epilogue=behind)


def _shared(expression: Expression, positions: list[int]) -> Expression:
    """With the operands at some positions, which are the same, as operand 0."""
    order = [positions[0], *(i for i in range(len(expression.operands)) if i not in positions)]
    places = {old: new for new, old in enumerate(order)} | dict.fromkeys(positions, 0)
    before, now = len(expression.operands), len(order)
    code = [
        Instruction(c.op, tuple(places[a] if a < before else a - before + now for a in c.arguments), c.attributes)
        for c in expression.code
    ]
    return Expression([expression.operands[i] for i in order], code)


def _scaled(producer: Dense | Conv, step: Elementwise, expression: Expression) -> Step | None:
    """A scale and a shift of each output, both constant, go into weights and bias."""
    if expression.code[-1].op not in ("ScaleShift", "Add", "Mul", "Sub") or len(expression.code) != 1:
        return None
    code = expression.code[0]
    channel = len(producer.shape) - 1 if isinstance(producer, Dense) or producer.channels_last else 0
    values = []
    for argument in code.arguments[1:]:
        tensor = expression.operands[argument]
        if argument == 0 or not tensor.is_constant or tensor.index.min() < 0:
            return None
        by_channel = np.moveaxis(tensor.values().reshape(producer.shape), channel, 0).reshape(
            producer.shape[channel], -1
        )
        if not np.array_equal(by_channel, np.broadcast_to(by_channel[:, :1], by_channel.shape)):
            return None
        values.append(by_channel[:, 0].astype(np.float64))
    if code.arguments[0] != 0:
        return None
    ones, zeros = np.ones(len(values[0])), np.zeros(len(values[0]))
    scale, shift = {
        "ScaleShift": (values[0], values[-1]),
        "Add": (ones, values[0]),
        "Sub": (ones, -values[0]),
        "Mul": (values[0], zeros),
    }[code.op]
    if not (np.all(np.isfinite(scale)) and np.all(np.isfinite(shift))):
        return None
    column = (-1,) + (1,) * (producer.weight.ndim - 1)
    weight = producer.weight * np.reshape(scale, column)
    return replace(producer, output=step.output, weight=weight, bias=producer.bias * scale + shift)


def pooled(steps: list[Step], outputs: list[Tensor]) -> list[Step]:
    """A maximum pool whose windows don't overlap becomes part of the convolution before it."""
    uses = _uses(steps, outputs)
    made: dict[object, Step] = {step.output: step for step in steps}
    result: list[Step] = []
    for step in steps:
        if isinstance(step, Pool) and step.kind == "max":
            x = step.operands[0]
            conv = made.get(x.source)
            if isinstance(conv, Conv) and uses[x.source] == 1 and _fits(conv, step, x):
                result.remove(conv)
                shape = (*step.shape[:-1], len(conv.weight)) if step.channels_last else step.shape
                result.append(replace(conv, output=step.output, shape=shape, pool=step.kernel))
                continue
        result.append(step)
    return result


def _fits(conv: Conv, step: Pool, x: Tensor) -> bool:
    spatial = conv.shape[:-1] if conv.channels_last else conv.shape[1:]
    own = whole(conv.output, conv.shape, x.dtype).index
    expected = np.moveaxis(own, -1, 0) if conv.channels_last else own
    inside = tuple(slice(None) for _ in range(expected.ndim))
    return (
        step.kernel == step.strides
        and all(d == 1 for d in step.dilations)
        and prod(step.kernel) <= 4
        and step.epilogue is None
        and conv.channels_last == step.channels_last
        and (conv.epilogue is None or len(conv.epilogue.operands) == 1)
        and x.shape == expected[inside].shape
        and np.array_equal(x.index, expected)
        and len(spatial) == len(step.kernel)
    )


def settled(steps: list[Step], outputs: list[Tensor], dtype: np.dtype) -> tuple[list[Step], list[Tensor]]:
    """Operands that no affine access describes are copied first; outputs become contiguous."""
    result: list[Step] = []
    for step in steps:
        if isinstance(step, Repeat):
            body, _ = settled(fused(step.body, []), [], dtype)
            step = replace(step, body=body)
        elif isinstance(step, Elementwise):
            step.operands = [t.plain() for t in step.operands]
            for i, t in enumerate(step.operands):
                if t.access() is None:
                    step.operands[i] = _stored(t, step.place, result, dtype)
        elif not isinstance(step, Rearrange):
            assert all(t.access() is not None for t in step.reads()), step
        result.append(step)
    settled_outputs = []
    for t in outputs:
        access = t.access((t.size,)) if t.size else None
        contiguous = access is not None and (access.strides[0] == 1 or t.size == 1) and not t.is_constant
        settled_outputs.append(t if contiguous else replace(_stored(t, "output", result, dtype), axis=t.axis))
    return result, settled_outputs


def _stored(t: Tensor, place: str, steps: list[Step], dtype: np.dtype) -> Tensor:
    output = Buffer(t.size, dtype)
    steps.append(Rearrange(place, [t], output, t.shape))
    return whole(output, t.shape, t.dtype, None)


def arena(program: Program, kept: set[Buffer], granule: int = 16) -> tuple[dict[Buffer, int], int]:
    """Where buffers lie so that those alive at the same time don't overlap.

    Arguments:
        kept: buffers that lie elsewhere.
        granule: offsets and sizes are multiples of it, in elements.

    Returns: the offset of each in elements of one sample, and the size of all.
    """
    last: dict[Buffer, int] = {}
    first: dict[Buffer, int] = {}
    for number, step in enumerate(program.steps):
        inner = step.scratch() if isinstance(step, Repeat) else []
        for buffer in [step.output, *inner, *(t.source for t in step.reads() if isinstance(t.source, Buffer))]:
            first.setdefault(buffer, number)
            last[buffer] = number
    for buffer in program.inputs:
        first[buffer] = -1
    for t in program.outputs:
        if isinstance(t.source, Buffer):
            first.setdefault(t.source, -1)
            last[t.source] = len(program.steps)
    places: dict[Buffer, int] = {}
    end = 0
    for buffer in sorted((b for b in last if b not in kept), key=lambda b: (-b.size, b.number)):
        busy = sorted(
            (places[other], places[other] + -(-other.size // granule) * granule)
            for other in places
            if first[other] <= last[buffer] and first[buffer] <= last[other]
        )
        offset = 0
        for start, stop in busy:
            if offset + buffer.size <= start:
                break
            offset = max(offset, stop)
        places[buffer] = offset
        end = max(end, offset + -(-buffer.size // granule) * granule)
    return places, end
