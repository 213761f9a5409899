"""Building the graphs inside control flow: what they use of the graph around them is captured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..ir.graph import Graph
from .builder import LARGEST_CONSTANT, GraphBuilder, Value


class BodyBuilder(GraphBuilder):
    """Records a graph inside another one.

    Arguments:
        outer: the builder of the graph around it.
    """

    def __init__(self, outer: GraphBuilder):
        super().__init__()
        self._outer = outer
        self.captured: dict[Value, Value] = {}  # of the outer graph -> an input of this one

    def const(self, array: Any, like: Value | None = None) -> Value:
        made = np.asarray(array) if like is None else np.asarray(array).astype(like.dtype)
        if made.size > LARGEST_CONSTANT and made.dtype != np.dtype(object):
            return self.capture(self._outer.const(made))
        return super().const(made)

    def capture(self, value: Value) -> Value:
        """A value of the outer graph in this one."""
        if value.array is not None and value.path is None:
            return self.const(value.array)  # constants stay known
        if value not in self.captured:
            name = value.name or ".".join(value.path or ("value",))
            inner = Value(value.dtype, value.shape, self._unique(f"outer {name}"), container=value.container)
            self.captured[value] = inner
        return self.captured[value]

    def body(self, outputs: Sequence[Value], captured: Iterable[Value]) -> Graph:
        """The graph, whose inputs are its own and then those that stand for `captured`, all of the outer graph."""
        self.inputs += [self.capture(value) for value in captured]
        return self.build(outputs)
