"""What computes `Layer.apply`: told to the IR from outside, so that it depends on no runtime. Imports nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import UnsupportedError

Evaluator = Callable[..., tuple[Any, dict[str, Any]]]  # (layer, params, states, inputs, train) -> (outputs, states)


def _none() -> Evaluator:
    raise UnsupportedError("layers are applied by a runtime: import interlux, not interlux.ir alone")


_load: Callable[[], Evaluator] = _none


def set_evaluator(load: Callable[[], Evaluator]) -> None:
    """Says how to get the function that applies layers; the package does this on import."""
    global _load
    _load = load


def evaluator() -> Evaluator:
    return _load()
