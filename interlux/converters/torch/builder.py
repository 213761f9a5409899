"""What the lowerings of ATen operators are written against: the graph builder, with torch's dtypes and symbolic
sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import sympy
import torch

from ...ir.errors import UnsupportedError
from ...ir.trees import Path
from ..builder import GraphBuilder, Shape, Value
from .arrays import dtype_of
from .size_expressions import lower_expression

Size = int | torch.SymInt
MAX_INT64 = 2**63 - 1


class Modes(Protocol):
    """What is known of a node's behaviour in training and in evaluation."""

    def mode(self, node: torch.fx.Node, training: bool) -> str:
        """follow, always or never, for a node exported with this training flag."""

    def dropout_rate(self, node: torch.fx.Node, probability: float) -> tuple[float, str]:
        """The probability and mode of dropout that has no flag of its own, exported with this probability."""


@dataclass
class OwnStates:
    """The states that the import adds to those of the module: large constants, and the seed of random numbers.

    Arguments:
        branch: the key of their branch, which no name of the module starts with.
        constants: shared by the graphs of one model.
    """

    branch: str
    constants: dict[Path, np.ndarray] = field(default_factory=dict)

    @property
    def seed(self) -> Path:
        return (self.branch, "seed")


class TorchBuilder(GraphBuilder):
    """A graph builder for one exported program.

    `node` is the fx node that is being lowered; `result` what torch says of its result.
    """

    def __init__(self, dim_names: dict[str, str], modes: Modes, stored: Mapping[Path, Value], own: OwnStates):
        super().__init__(own.constants, own.branch)
        self.node_now: torch.fx.Node | None = None
        self.modes = modes
        self.seed = GraphBuilder.stored(own.seed, np.zeros(2, np.uint32))
        self._stored = stored
        self.dim_names = dim_names  # of torch's symbols
        self._symbols: dict[str, tuple[Value, int, int, int]] = {}  # symbol -> tensor, axis, factor, offset
        self._sizes: dict[str, Value] = {}
        self.not_one: dict[str, str] = {}  # symbols of sizes that must not be 1 -> where

    # --- sizes

    def bind_symbols(self, value: Value, sizes: Sequence[Size]) -> None:
        """Says on which axes of a tensor the symbols are found: of an input, or of a result whose size depends on the
        data."""
        for axis, size in enumerate(sizes):
            if isinstance(size, torch.SymInt):
                offset, rest = size.node.expr.as_coeff_Add()
                factor, symbol = rest.as_coeff_Mul()
                if symbol.is_Symbol and factor.is_Integer:
                    self._symbols.setdefault(str(symbol), (value, axis, int(factor), int(offset)))

    def shape(self, sizes: Iterable[Size]) -> Shape:
        """Sizes as the IR keeps them: ints, or expressions of named dimensions."""
        return tuple(s if isinstance(s, int) else self.expression(s) for s in sizes)

    def expression(self, size: torch.SymInt) -> int | str:
        expr = size.node.expr
        if expr.is_Integer:
            return int(expr)
        names = {s: sympy.Symbol(self.dim_names.get(str(s), str(s)), integer=True) for s in expr.free_symbols}
        return str(expr.xreplace(names))

    def size(self, size: Size) -> Value:
        """A size as an int64 vector of one element. int(SymInt) would silently take the example's size."""
        if isinstance(size, int):
            return self.ints(size)
        return self._expr(size.node.expr)

    def _expr(self, expr: sympy.Expr) -> Value:
        key = str(expr)
        if key not in self._sizes:
            self._sizes[key] = self._lower_expr(expr)
        return self._sizes[key]

    def _lower_expr(self, expr: sympy.Expr) -> Value:
        if not expr.is_Symbol:
            return lower_expression(self, expr, self._expr)
        if str(expr) not in self._symbols:
            raise UnsupportedError(f"a size that depends on the data ({expr}){self.where()}")
        value, axis, factor, offset = self._symbols[str(expr)]
        size = self.Shape(value, start=axis, end=axis + 1)
        if offset:
            size = self.Sub(size, self.ints(offset))
        return size if factor == 1 else self.Div(size, self.ints(factor))

    def bind_number(self, number: torch.SymInt | torch.SymFloat | torch.SymBool, value: Value) -> None:
        """Says that a number that torch knows by a symbol only is the one element of a tensor (`item()`)."""
        symbols = number.node.expr.free_symbols
        if len(symbols) == 1:
            kind = np.float64 if isinstance(number, torch.SymFloat) else np.int64
            self._sizes[str(*symbols)] = self.Reshape(self.cast(value, kind), self.ints(1))

    def sizes(self, sizes: Sequence[Size]) -> Value:
        """Sizes as an int64 vector, all of them explicit."""
        if all(isinstance(s, int) for s in sizes):
            return self.ints(*(int(s) for s in sizes))
        parts: list[Value] = []
        static: list[int] = []
        for s in sizes:
            if isinstance(s, int):
                static.append(s)
                continue
            if static:
                parts.append(self.ints(*static))
                static = []
            parts.append(self.size(s))
        if static:
            parts.append(self.ints(*static))
        return parts[0] if len(parts) == 1 else self.Concat(*parts, axis=0)

    def reshape(self, x: Value, sizes: Sequence[Size]) -> Value:
        """x in another shape; a single dynamic size is left to Reshape (-1)."""
        dynamic = [i for i, s in enumerate(sizes) if not isinstance(s, int)]
        if len(dynamic) == 1 and 0 not in sizes:
            return self.Reshape(x, self.ints(*(-1 if i in dynamic else int(s) for i, s in enumerate(sizes))))
        allow = {"allowzero": 1} if 0 in sizes else {}
        return self.Reshape(x, self.sizes(sizes), **allow)

    @property
    def fx_node(self) -> torch.fx.Node:
        """The fx node that is being lowered."""
        if self.node_now is None:
            raise UnsupportedError("nothing is being lowered")
        return self.node_now

    @property
    def operator(self) -> str:
        """The name of the operator that is being lowered, without namespace and overload."""
        return str(self.fx_node.target).split(".")[1]

    # --- training and evaluation

    def mode(self, training: bool) -> str:
        return self.modes.mode(self.fx_node, training)

    def dropout_rate(self, probability: float) -> tuple[float, str]:
        return self.modes.dropout_rate(self.fx_node, probability)

    def batch_counter(self, running_mean: Value | None) -> Value | None:
        """The counter of batches that torch keeps beside a running mean."""
        if running_mean is None or running_mean.path is None:
            return None
        return self._stored.get((*running_mean.path[:-1], "num_batches_tracked"))

    # --- values

    @property
    def result(self) -> Any:
        """torch's description of the present node's result: a tensor without data, or a tuple of them."""
        return self.fx_node.meta["val"]

    @property
    def result_dtype(self) -> np.dtype[Any]:
        return dtype_of(self.result.dtype)

    def value(self, x: Any, dtype: Any = None) -> Value:
        """A tensor, number or size as a value of a dtype."""
        if isinstance(x, Value):
            return x if dtype is None else self.cast(x, dtype)
        if isinstance(x, torch.SymInt | torch.SymFloat | torch.SymBool):
            scalar = self.Squeeze(self._expr(x.node.expr), self.ints(0))
            return scalar if dtype is None else self.cast(scalar, dtype)
        return self.const(np.array(x, dtype))

    def axis(self, axis: int, rank: int) -> int:
        return axis + rank if axis < 0 else axis
