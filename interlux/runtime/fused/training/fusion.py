"""What happens to a tape between recording and code: activations go into the steps before them, dead steps away."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ..steps import Elementwise, Step
from .steps import Convolution, Linear, Tape

# Activations whose derivative follows from their value alone, so that what goes in need not be kept.
FROM_VALUE = frozenset(["Tanh", "Sigmoid", "Relu", "Exp", "LeakyRelu"])


def fused(tape: Tape) -> Tape:
    """All passes."""
    return replace(tape, steps=_activated(_alive(tape), tape))


def _alive(tape: Tape) -> list[Step]:
    wanted = {tape.output.source}
    kept = []
    for step in reversed(tape.steps):
        if step.output in wanted:
            wanted.update(t.source for t in step.operands)
            kept.append(step)
    return kept[::-1]


def _activated(steps: list[Step], tape: Tape) -> list[Step]:
    """Activations as part of the product or convolution that makes what they are applied to."""
    uses = Counter(t.source for step in steps for t in step.operands)
    uses[tape.output.source] += 1
    makers = {step.output: step for step in steps}
    kept: list[Step] = []
    for step in steps:
        if isinstance(step, Elementwise) and len(step.code) == 1 and len(step.operands) == 1:
            (x,), code = step.operands, step.code[0]
            maker = makers.get(x.source)  # type: ignore[arg-type]
            positive = code.op != "LeakyRelu" or dict(code.attributes).get("alpha", 0.01) > 0
            if (
                isinstance(maker, Linear | Convolution)
                and maker.activation is None
                and uses[x.source] == 1
                and x.is_whole()
                and code.op in FROM_VALUE
                and positive
            ):
                maker.activation = code
                maker.output = step.output
                makers[step.output] = maker
                continue
        kept.append(step)
    return kept
