"""Optimisers: what they are, and one update of all parameters, with PyTorch's arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

from ....ir.errors import InvalidModelError, UnsupportedError
from ..llvm import F64, Function, Value, type_of
from ..target import Target
from .checks import known_options, number, shown, truth
from .context import get, put
from .steps import Tape


@dataclass(frozen=True)
class Optimizer:
    """How parameters are updated; names and defaults are PyTorch's.

    Arguments:
        kind: sgd, momentum, adam or adamw.
        learning_rate: may be changed between calls: `FusedTrainer.learning_rate`.
        momentum, dampening, nesterov: of momentum.
        betas, eps: of adam and adamw.
        weight_decay: of adamw: parameters shrink by learning_rate · weight_decay each step.
        l2: weight of the penalty l2 / 2 · Σ p², whose gradient is added (what PyTorch calls weight_decay elsewhere).
    """

    kind: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    dampening: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    l2: float = 0.0

    options: ClassVar[Mapping[str, tuple[str, ...]]] = {  # those of each kind
        "sgd": ("learning_rate", "l2"),
        "momentum": ("learning_rate", "l2", "momentum", "dampening", "nesterov"),
        "adam": ("learning_rate", "l2", "betas", "eps"),
        "adamw": ("learning_rate", "l2", "betas", "eps", "weight_decay"),
    }

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in self.options:
            raise UnsupportedError(f"there is no optimizer {shown(self.kind)}; choose {', '.join(self.options)}")
        for name in ("learning_rate", "momentum", "eps", "weight_decay", "l2"):
            number(name, getattr(self, name))
        number("dampening", self.dampening, 0, 1)
        truth("nesterov", self.nesterov)
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise InvalidModelError(f"betas must be two numbers in 0 <= beta < 1, not {shown(self.betas)}")
        if max(number("each of betas", beta, 0, 1) for beta in self.betas) == 1:
            raise InvalidModelError(f"betas must be two numbers in 0 <= beta < 1, not {shown(self.betas)}")
        given = [f.name for f in fields(self) if f.name != "kind" and getattr(self, f.name) != f.default]
        known_options(f"the optimizer {self.kind}", given, self.options[self.kind])
        if self.nesterov and (self.momentum <= 0 or self.dampening):
            raise InvalidModelError("nesterov needs a momentum and no dampening")


def update(f: Function, target: Target, tape: Tape, optimizer: Optimizer, count: int, stride: int) -> None:
    """One update of `count` parameters, a multiple of a vector; chunks' gradients, `stride` numbers apart, are added up
    in their order."""
    element = type_of(tape.dtype)
    lanes = target.lanes(tape.dtype)
    kind = element.vector(lanes)
    align = lanes * element.bytes

    def narrow(value: Value) -> Value:
        return f.splat(value if element == F64 else f.cast("fptrunc", value, element), lanes)

    rate = get(f, "rate")
    first_step = f.eq(get(f, "updates"), 0)
    factor, root, shrink = rate, f.const(1.0, F64), None
    if optimizer.kind in ("adam", "adamw"):
        powers = []
        for name, beta in zip(("power1", "power2"), optimizer.betas, strict=True):
            power = get(f, name) * beta
            put(f, name, power)
            powers.append(1.0 - power)
        factor, root = rate / powers[0], f.sqrt(powers[1])
    if optimizer.kind == "adamw":
        shrink = narrow(1.0 - rate * optimizer.weight_decay)
    factor, root = narrow(factor), narrow(1.0 / root)
    put(f, "updates", f.add(get(f, "updates"), 1))
    gradients, weights = get(f, "gradients").of(element), get(f, "weights").of(element)
    first, second = get(f, "first").of(element), get(f, "second").of(element)
    chunks = get(f, "chunks")
    with f.loop(0, count, lanes) as i:
        total = f.variable(f.load(f.offset(gradients, i), lanes, align))
        with f.loop(1, chunks) as chunk:
            place = f.offset(gradients, f.add(f.mul(chunk, stride), i))
            total.set(total.get() + f.load(place, lanes, align))
        gradient = total.get()
        p_at, m_at, v_at = (f.offset(pointer, i) for pointer in (weights, first, second))
        p = f.load(p_at, lanes, align)
        if optimizer.l2:
            gradient = f.fma(p, f.const(optimizer.l2, kind), gradient)
        if shrink is not None:
            p = p * shrink
        if optimizer.kind == "sgd" or (optimizer.kind == "momentum" and not optimizer.momentum):
            step = gradient  # without a momentum dampening means nothing
        elif optimizer.kind == "momentum":
            m = f.load(m_at, lanes, align)
            m = f.select(first_step, gradient, f.fma(m, optimizer.momentum, gradient * (1 - optimizer.dampening)))
            f.store(m, m_at, align)
            step = f.fma(m, optimizer.momentum, gradient) if optimizer.nesterov else m
        else:
            m, v = f.load(m_at, lanes, align), f.load(v_at, lanes, align)
            m = f.fma(gradient - m, 1 - optimizer.betas[0], m)
            v = f.fma(gradient * gradient, 1 - optimizer.betas[1], v * optimizer.betas[1])
            f.store(m, m_at, align)
            f.store(v, v_at, align)
            step = m / f.fma(f.sqrt(v), root, optimizer.eps)
        f.store(f.fma(-factor, step, p), p_at, align)
