"""What happens to a tape between recording and code: biases and activations go into the steps before them, dead steps
away."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from ..steps import Elementwise, Step
from .recurrence import Recurrence, made_by
from .steps import BatchNormalization, Convolution, Linear, Tape

# Activations whose derivative follows from their value alone, so that what goes in need not be kept.
FROM_VALUE = frozenset(["Tanh", "Sigmoid", "Relu", "Exp", "LeakyRelu"])


def fused(tape: Tape) -> Tape:
    """All passes."""
    return replace(tape, steps=_absorbed(_alive(tape), tape))


def _alive(tape: Tape) -> list[Step]:
    """The steps that the output depends on, and those that keep running statistics."""
    wanted = {tape.output.source}
    kept = []
    for step in reversed(tape.steps):
        used = any(buffer in wanted for buffer in made_by(step))
        if used or (isinstance(step, BatchNormalization) and step.running is not None):
            wanted.update([*(t.source for t in step.operands), *made_by(step)])
            kept.append(step)
    return kept[::-1]


def _absorbed(steps: list[Step], tape: Tape) -> list[Step]:
    """Biases and activations as part of the product or convolution whose result they, and nothing else, read."""
    uses = Counter(t.source for step in steps for t in step.operands)
    uses[tape.output.source] += 1
    makers: dict[object, Linear | Convolution] = {}
    kept: list[Step] = []
    for step in steps:
        if isinstance(step, Recurrence):
            step.body = _absorbed(step.body, tape)
        if isinstance(step, Linear | Convolution):
            makers[step.output] = step
        elif isinstance(step, Elementwise) and len(step.code) == 1:
            for number, t in enumerate(step.operands):
                maker = makers.get(t.source)
                if maker is None or uses[t.source] != 1 or maker.activation is not None or not t.is_whole():
                    continue
                if _is_bias(step, number, maker, tape) or _is_activation(step, maker):
                    maker.output = step.output
                    makers[step.output] = maker
                    break
            else:
                kept.append(step)
            continue
        kept.append(step)
    return kept


def _is_bias(step: Elementwise, number: int, maker: Linear | Convolution, tape: Tape) -> bool:
    """Whether a step adds the same parameters to every row of a product, its operand `number`; puts them into it."""
    if step.code[0].op != "Add" or not isinstance(maker, Linear) or maker.bias is not None:
        return False
    other = step.operands[1 - number]
    rows = other.index.reshape(maker.shape)
    bias = other.moved(rows[0], None)
    if other.source is not tape.weights or bias.access() is None or np.any(rows != rows[0]):
        return False
    maker.bias = bias
    return True


def _is_activation(step: Elementwise, maker: Linear | Convolution) -> bool:
    """Whether a step is an activation whose derivative follows from its value; puts it into its operand's maker."""
    (code,) = step.code
    falling = code.op == "LeakyRelu" and dict(code.attributes).get("alpha", 0.01) <= 0
    if code.op not in FROM_VALUE or len(step.operands) != 1 or falling:
        return False
    maker.activation = code
    return True
