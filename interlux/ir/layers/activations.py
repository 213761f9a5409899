"""Activations that are layers because their derivative differs from the operator's that computes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..interpreter import Interpreter, Value
from ..layer import Layer


@dataclass(frozen=True)
class HardTanh(Layer):
    """x limited to low..high; its derivative is 0 at both ends, where that of Clip (torch's clamp) is 1.

    Arguments:
        low, high: the ends; 0 and 6 for ReLU6.

    Inputs: x, any shape
    Returns: the same shape

    Source: aten.hardtanh, aten.relu6; ONNX Clip.
    """

    low: float = -1.0
    high: float = 1.0

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        (x,) = inputs
        low, high = op.const(self.low, like=x), op.const(self.high, like=x)
        outside = op.Or(op.LessOrEqual(x, low), op.GreaterOrEqual(x, high))
        return op.Where(outside, op.StopGradient(self.limited(op, x)), x), states

    def limited(self, op: Interpreter, x: Value) -> Value:
        return op.Clip(x, op.const(self.low, like=x), op.const(self.high, like=x))
