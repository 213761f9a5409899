"""Losses: what they are, their values, and their gradients with respect to the model's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from ....ir.errors import InvalidModelError, UnsupportedError
from ..kernels.elementwise import FUNCTIONS
from ..kernels.schedule import access_of
from ..llvm import I64, Index, Value
from ..tensors import Buffer, Tensor
from .checks import known_options, number, shown, truth
from .schedule import Gradients, TrainingSchedule


@dataclass(frozen=True)
class Loss:
    """What is minimised.

    Arguments:
        kind: mse, cross_entropy (of logits), bce (of probabilities, or of logits), or huber.
        reduction: mean or sum, over samples and, but for cross_entropy, over the output's elements.
        delta: huber: from where on the loss is linear.
        logits: bce: whether outputs are logits in place of probabilities.
        label_smoothing: cross_entropy: how much of each label is spread over all classes.
    """

    kind: str = "mse"
    reduction: str = "mean"
    delta: float = 1.0
    logits: bool = False
    label_smoothing: float = 0.0

    options: ClassVar[Mapping[str, tuple[str, ...]]] = {  # those of each kind
        "mse": ("reduction",),
        "cross_entropy": ("reduction", "label_smoothing"),
        "bce": ("reduction", "logits"),
        "huber": ("reduction", "delta"),
    }

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in self.options:
            raise UnsupportedError(f"there is no loss {shown(self.kind)}; choose {', '.join(self.options)}")
        if not isinstance(self.reduction, str) or self.reduction not in ("mean", "sum"):
            raise InvalidModelError(f"the reduction of a loss must be mean or sum, not {shown(self.reduction)}")
        number("delta", self.delta, inside=True)
        number("label_smoothing", self.label_smoothing, 0, 1)
        truth("logits", self.logits)
        given = [f.name for f in fields(self) if f.name != "kind" and getattr(self, f.name) != f.default]
        known_options(f"the loss {self.kind}", given, self.options[self.kind])

    def targets(self, output: Tensor, labels: bool, dtype: np.dtype[Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of one sample's targets.

        Arguments:
            labels: whether they are class numbers.
        """
        if self.kind == "cross_entropy":
            if len(output.shape) != 2:
                raise UnsupportedError(f"cross_entropy takes outputs [batch, classes], not {output.shape[1:]} a sample")
            if labels:
                return (), np.dtype(np.int64)
        return output.shape[1:], dtype

    def scale(self, output: Tensor, batch: int) -> float:
        """The weight of one sample's sum."""
        if self.reduction == "sum":
            return 1.0
        return 1.0 / (batch * (1 if self.kind == "cross_entropy" else output.size))

    def per_sample(self, output: Tensor) -> float:
        """What the scale is multiplied by the batch: native code divides by the batch itself."""
        return self.scale(output, 1)


@dataclass(frozen=True)
class Cotangent(Loss):
    """In place of a loss: the sum of the output times numbers that are given."""

    kind: str = "cotangent"
    reduction: str = "sum"

    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"cotangent": ()}


def loss(
    s: TrainingSchedule, g: Gradients | None, what: Loss, output: Tensor, target: Buffer, labels: bool, weight: Value
) -> None:
    """Adds a tile's loss to the sums and stores the output's gradient.

    Arguments:
        g: None where only the loss is wanted.
        target: the targets of the tile.
        labels: whether those are class numbers.
        weight: of a sample: the address of a feature that is 0 for what the tile is filled up with.
    """
    f = s.f
    access = access_of(output, (output.size,))
    sink = None if g is None else g.sink(output)
    with s.groups() as group:
        valid = s.vector(weight, group)
        total = f.variable(s.constant(0.0))

        def give(i: Index, gradient: Value) -> None:
            if sink is not None:
                # what fills the tile up is a sample again, whose gradient may be infinite
                given = f.select(f.compare("ne", valid, 0.0), gradient * valid, s.constant(0.0))
                sink.put(given, s.index(access, [i]))

        def read(i: Index) -> Value:
            return s.vector(s.at(output.source, s.index(access, [i])))

        if what.kind == "cross_entropy":
            _cross_entropy(s, what, output.size, read, target, labels, total, give)
        else:
            with f.loop(0, output.size) as i:
                value, gradient = _LOSSES[what.kind](s, what, read(i), s.vector(s.at(target, i)))
                total.set(total.get() + value)
                give(i, gradient)
        found = f.select(f.compare("ne", valid, 0.0), total.get() * valid, s.constant(0.0))
        s.add_to_sum(0, 0, found)


def _mse(s: TrainingSchedule, what: Loss, z: Value, y: Value) -> tuple[Value, Value]:
    d = z - y
    return d * d, d + d


def _huber(s: TrainingSchedule, what: Loss, z: Value, y: Value) -> tuple[Value, Value]:
    f = s.f
    d = z - y
    size = f.abs(d)
    near = size <= what.delta
    value = f.select(near, d * d * 0.5, (size - 0.5 * what.delta) * what.delta)
    return f.select(f.is_nan(d), d, value), f.select(near, d, f.copysign(f.const(what.delta, d.type), d))


def _bce(s: TrainingSchedule, what: Loss, z: Value, y: Value) -> tuple[Value, Value]:
    f = s.f
    if what.logits:
        positive = f.maximum(z, 0.0)
        value = positive - z * y + FUNCTIONS["Log1p"](f, FUNCTIONS["Exp"](f, -f.abs(z)))
        return value, FUNCTIONS["Sigmoid"](f, z) - y
    # As PyTorch: logarithms are at least -100, and the gradient's divisor at least 1e-12.
    one, other = (f.maximum(FUNCTIONS["Log"](f, p), -100.0) for p in (z, 1.0 - z))
    return -(y * one + (1.0 - y) * other), (z - y) / f.maximum(z * (1.0 - z), 1e-12)


def _cotangent(s: TrainingSchedule, what: Loss, z: Value, y: Value) -> tuple[Value, Value]:
    return z * y, y


def _cross_entropy(
    s: TrainingSchedule, what: Loss, classes: int, read: Callable[[Index], Value], target: Buffer, labels: bool,
    total: Any, give: Callable[[Index, Value], None],
) -> None:  # fmt: skip
    """log Σ exp z - Σ t z; its gradient is softmax(z) Σ t - t."""
    f = s.f
    greatest = f.variable(read(0))
    with f.loop(1, classes) as i:
        greatest.set(f.maximum(greatest.get(), read(i)))
    norm = f.variable(s.constant(0.0))
    with f.loop(0, classes) as i:
        norm.set(norm.get() + FUNCTIONS["Exp"](f, read(i) - greatest.get()))
    mass = f.variable(s.constant(1.0 if labels else 0.0))
    if not labels:
        with f.loop(0, classes) as i:
            mass.set(mass.get() + s.vector(s.at(target, i)))
    log = FUNCTIONS["Log"](f, norm.get())
    label = s.vector(s.at(target, 0)) if labels else None
    even = what.label_smoothing / classes
    with f.loop(0, classes) as i:
        z = read(i) - greatest.get()
        if label is not None:
            number = f.cast("sitofp", f.value(i, I64), s.element)
            own = f.select(f.eq(label, number), f.const(1.0, z.type), f.const(0.0, z.type))
        else:
            own = s.vector(s.at(target, i))
        if what.label_smoothing:
            own = own * (1 - what.label_smoothing) + (even if labels else mass.get() * even)
        # a class that is not wanted costs nothing, however impossible it is
        cost = f.select(f.eq(own, 0.0), s.constant(0.0), own * (log - z))
        total.set(total.get() + f.select(f.is_nan(z), z, cost))
        give(i, FUNCTIONS["Exp"](f, z) / norm.get() * mass.get() - own)


_LOSSES: Mapping[str, Any] = {
    "mse": _mse,
    "cross_entropy": _cross_entropy,
    "bce": _bce,
    "huber": _huber,
    "cotangent": _cotangent,
}
