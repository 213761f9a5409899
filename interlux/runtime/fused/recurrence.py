"""RNN, GRU and LSTM as a loop over steps: the inputs' part of the gates is one product before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .builder import Builder, Value
from .operators import OPERATORS, dense
from .steps import Rearrange, Repeat, Shift, Step
from .tensors import Buffer, Constant, Tensor, constant, whole

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_NAMES = ("Sigmoid", "Tanh", "Relu", "Softsign", "Softplus", "HardSigmoid", "LeakyRelu", "Elu")


@dataclass(frozen=True)
class Parts:
    """What differs between engines that execute these layers.

    Arguments:
        weights: (builder, value, what it is in words) to an array that `part_of` cuts.
        product: (builder, x [rows, in], weight [out, in], bias [out] or None) to a tensor [rows, out] that is
            contiguous.
        loop: (builder, cell, gates [time, gates · hidden], initial states, whether it runs backwards) to the hidden
            states [time, hidden], and the last states [1, hidden].
    """

    weights: Callable[[Any, Value, str], Any]
    product: Callable[[Any, Tensor, Any, Any], Tensor]
    loop: Callable[[Any, Cell, Tensor, list[Tensor], bool], tuple[Tensor, list[Tensor]]]


def part_of(array: Any, key: Any) -> Any:
    """array[key], of an array or of a tensor."""
    return array.moved(array.index[key], None) if isinstance(array, Tensor) else array[key]


class Cell:
    """One direction's arrays and formulas, ONNX's.

    Arguments:
        b: the builder.
        product: see `Parts`.
        kind: LSTM, GRU or RNN.
        recurrence: [gates · hidden, hidden].
        bias: of the recurrence [gates · hidden], None if there is none.
        activations: names of operators.
        before_reset: GRU's linear_before_reset.
    """

    def __init__(
        self, b: Builder, product: Callable[..., Tensor], kind: str, recurrence: Any, bias: Any,
        activations: Sequence[str], before_reset: bool,
    ):  # fmt: skip
        self._b, self._make, self.kind, self._recurrence, self._bias = b, product, kind, recurrence, bias
        self._activations, self._before_reset = activations, before_reset
        self.hidden: int = recurrence.shape[1]

    def __call__(self, gates: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The new states from the inputs' part of the gates [1, gates · hidden] and the states [1, hidden]."""
        formula: Any = {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[self.kind]
        made: tuple[Tensor, ...] = formula(gates, *states)
        return made

    def _op(self, name: str, *inputs: Value) -> Tensor:
        return self._b.elementwise(name, inputs, {})

    def _part(self, gates: Tensor, first: int, count: int = 1) -> Tensor:
        h = self.hidden
        return gates.moved(gates.index[:, first * h : (first + count) * h], None)

    def _product(self, h: Tensor, first: int, count: int = 1) -> Tensor:
        rows = slice(first * self.hidden, (first + count) * self.hidden)
        bias = None if self._bias is None else part_of(self._bias, rows)
        return self._make(self._b, h, part_of(self._recurrence, rows), bias)

    def _rnn(self, gates: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        return (self._op(self._activations[0], self._op("Add", self._product(h, 0), gates)),)

    def _gru(self, gates: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        first, second = self._activations
        both = self._op(first, self._op("Add", self._product(h, 0, 2), self._part(gates, 0, 2)))
        update, reset = self._part(both, 0), self._part(both, 1)
        if self._before_reset:
            own = self._op("Mul", self._product(h, 2), reset)
        else:
            own = self._product(self._op("Mul", h, reset), 2)
        new = self._op(second, self._op("Add", own, self._part(gates, 2)))
        return (self._op("Add", new, self._op("Mul", update, self._op("Sub", h, new))),)

    def _lstm(self, gates: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        first, second, third = self._activations
        total = self._op("Add", self._product(h, 0, 4), gates)
        three = self._op(first, self._part(total, 0, 3))  # input, output, forget
        enter, leave, keep = (self._part(three, i) for i in range(3))
        new = self._op(second, self._part(total, 3))
        cell = self._op("Add", self._op("Mul", keep, c), self._op("Mul", enter, new))
        return self._op("Mul", leave, self._op(third, cell)), cell


def recurrent(kind: str, parts: Parts) -> Callable[..., tuple[Tensor, ...]]:
    """The operator of a kind."""

    def run(
        b: Builder, x: Tensor, w: Value, r: Value, bias: Value | None = None, lengths: Value | None = None,
        *given: Value | None, hidden_size: int | None = None, direction: str = "forward",
        activations: Sequence[str] | None = None, activation_alpha: Any = None, activation_beta: Any = None,
        clip: float | None = None, layout: int = 0, linear_before_reset: int = 0, input_forget: int = 0,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        weight, recurrence = (parts.weights(b, a, f"{kind} with weights") for a in (w, r))
        directions, _, hidden = recurrence.shape
        names = tuple(activations or ACTIVATIONS[kind] * directions)
        initial = (*given, None, None)[: 2 if kind == "LSTM" else 1]
        if (
            any(v is not None for v in (activation_alpha, activation_beta, clip, lengths))
            or input_forget or len(given) > 2 or not set(names) <= set(_NAMES)
        ):  # fmt: skip
            raise b.refuse(f"{kind} with lengths, peepholes, a clip or parameters of activations")
        time_axis, batch_axis = (1, 0) if layout else (0, 1)
        if x.axis not in (None, batch_axis) or x.shape[batch_axis] != 1:
            raise b.refuse(f"{kind} whose batch is not axis {batch_axis}")
        b.check_float(x)
        steps = x.reshaped((x.shape[time_axis], x.shape[2]))
        biases = None if bias is None else parts.weights(b, bias, f"{kind} with biases")
        made = []
        for d in range(directions):
            own = names[d * len(ACTIVATIONS[kind]) : (d + 1) * len(ACTIVATIONS[kind])]
            halves = slice(GATES[kind] * hidden), slice(GATES[kind] * hidden, None)
            outer, inner = (None if biases is None else part_of(biases, (d, half)) for half in halves)
            cell = Cell(b, parts.product, kind, part_of(recurrence, d), inner, own, bool(linear_before_reset))
            start = [_start(b, state, d, batch_axis if layout else 1, hidden) for state in initial]
            gates = parts.product(b, steps, part_of(weight, d), outer)
            made.append(parts.loop(b, cell, gates, start, direction == "reverse" or d == 1))
        axis = None if x.axis is None else 1
        y = [t.moved(t.index[:, None, None, :], None if axis is None else 2) for t, _ in made]
        outputs = [_joined(b, y, 1)]
        for number in range(len(initial)):
            last = [states[number] for _, states in made]
            outputs.append(_joined(b, [t.moved(t.index.reshape(1, 1, -1), axis) for t in last], 0))
        if layout:
            transposed = OPERATORS["Transpose"]
            return (
                transposed(b, outputs[0], perm=(2, 0, 1, 3)),
                *(transposed(b, o, perm=(1, 0, 2)) for o in outputs[1:]),
            )
        return tuple(outputs)

    return run


def _joined(b: Builder, parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else OPERATORS["Concat"](b, *parts, axis=axis)


def _start(b: Builder, state: Value | None, direction: int, batch_axis: int, hidden: int) -> Tensor:
    """The initial state of a direction, [1, hidden]."""
    if state is None:
        return constant(np.zeros((1, hidden), b.dtype))
    tensor = b.tensor(state)
    if tensor.axis not in (None, batch_axis) or tensor.shape[batch_axis] != 1:
        raise b.refuse(f"initial state whose batch is not axis {batch_axis}")
    index = np.take(tensor.index, direction, 0 if batch_axis else 1)
    return tensor.moved(index.reshape(1, hidden), None)


def _loop(b: Builder, cell: Cell, gates: Tensor, start: Sequence[Tensor], reverse: bool) -> tuple[Tensor, list[Tensor]]:
    """The hidden states of all steps [time, hidden], and the last states [1, hidden]."""
    count, width, hidden = gates.shape[0], gates.shape[1], cell.hidden
    states = [Buffer(hidden, b.dtype) for _ in start]
    kept = [whole(buffer, (1, hidden), b.dtype, None) for buffer in states]
    for tensor, buffer in zip(start, states, strict=True):
        b.steps.append(Rearrange(b.here, [tensor], buffer, (1, hidden)))
    outside, b.steps = b.steps, []
    now = Tensor(gates.source, np.arange(width, dtype=np.int64)[None], b.dtype, None)
    made = cell(now, kept)
    output = Buffer(count * hidden, b.dtype)
    for tensor, buffer in zip(made, states, strict=True):
        b.steps.append(Rearrange(b.here, [tensor], buffer, (1, hidden)))
    b.steps.append(Rearrange(b.here, [kept[0]], output, (1, hidden), np.arange(hidden, dtype=np.int64)[None]))
    body, b.steps = b.steps, outside
    first, sign = (count - 1, -1) if reverse else (0, 1)
    shifts = [
        Shift(source, first * size, sign * size)
        for source, size in ((gates.source, width), (output, hidden))
        if isinstance(source, Buffer)
    ]
    b.steps.append(Repeat(b.here, _outer(body), output, (count, hidden), count, body, shifts, states))
    return whole(output, (count, hidden), b.dtype, None), kept


def _outer(body: list[Step]) -> list[Tensor]:
    """What steps read that none of them makes, and the states."""
    inside = {step.output for step in body}
    read = [t for step in body for t in step.reads()]
    return [
        whole(t.source, (t.source.size,), t.dtype, None)
        for t in read
        if not isinstance(t.source, Constant) and (t.source not in inside or _early(body, t.source))
    ]


def _early(body: list[Step], source: Any) -> bool:
    """Whether a buffer is read before it is made: it keeps a value from the round before."""
    for step in body:
        if any(t.source is source for t in step.reads()):
            return True
        if step.output is source:
            return False
    return False


def _numbers(b: Builder, value: Value, what: str) -> np.ndarray:
    return b.numbers_of(value, what).astype(np.float64)


OPERATORS.update({kind: recurrent(kind, Parts(_numbers, dense, _loop)) for kind in GATES})
