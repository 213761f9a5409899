"""Formulas: values with the operators of Python, so that a composed lowering reads as its definition does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch

from ....ir.trees import is_float
from ...builder import Value
from ..builder import MAX_INT64, Size, TorchBuilder
from .registry import aten

DType = np.dtype[Any]
Axes = int | Sequence[int] | None
_Function = TypeVar("_Function", bound=Callable[..., Any])


def working_dtype(dtype: DType) -> DType:
    """The dtype in which a formula is computed: half precision in float32 and rounded once, as torch's kernels do."""
    return np.dtype(np.float32) if is_float(dtype) and dtype.itemsize == 2 else dtype


class Term:
    """A value in a formula: `(x * 2 + y).Exp()`.

    Numbers take the dtype of the term beside them; terms must have the same one. A method with a capital is the
    primitive of that name, element by element, with the term as its first input.

    Arguments:
        op: the builder that records the formula.
        value: of the graph.
        rank: of the value; the builder knows it for arguments only.
    """

    def __init__(self, op: TorchBuilder, value: Value, rank: int):
        self.op, self.value, self.rank = op, value, rank

    @classmethod
    def of(cls, op: TorchBuilder, x: Any, dtype: Any = None) -> Term:
        """A tensor, number or size as a term of a dtype."""
        value = op.value(x, dtype)
        return cls(op, value, op.rank_of(x) if isinstance(x, Value) else 0)

    @property
    def dtype(self) -> DType:
        return self.value.dtype

    def like(self, x: Any) -> Term:
        """A number as a term of this one's dtype; a term as it is."""
        if isinstance(x, Term):
            return x
        if isinstance(x, torch.SymInt):
            return Term(self.op, self.op.value(x, self.dtype), 0)
        return Term(self.op, self.op.const(np.asarray(x), like=self.value), 0)

    def primitive(self, name: str, *others: Any, **attributes: Any) -> Term:
        """An element-wise primitive of this term and others."""
        terms = [self, *(self.like(o) for o in others)]
        value = self.op.primitive(name, [t.value for t in terms], attributes)
        return Term(self.op, value, max(t.rank for t in terms))

    def __getattr__(self, name: str) -> Callable[..., Term]:
        if not name[:1].isupper():
            raise AttributeError(name)

        def primitive(*others: Any, **attributes: Any) -> Term:
            return self.primitive(name, *others, **attributes)

        return primitive

    def __add__(self, y: Any) -> Term:
        return self.primitive("Add", y)

    def __radd__(self, y: Any) -> Term:
        return self.like(y) + self

    def __sub__(self, y: Any) -> Term:
        return self.primitive("Sub", y)

    def __rsub__(self, y: Any) -> Term:
        return self.like(y) - self

    def __mul__(self, y: Any) -> Term:
        return self.primitive("Mul", y)

    def __rmul__(self, y: Any) -> Term:
        return self.like(y) * self

    def __truediv__(self, y: Any) -> Term:
        return self.primitive("Div", y)

    def __rtruediv__(self, y: Any) -> Term:
        return self.like(y) / self

    def __neg__(self) -> Term:
        return self.primitive("Neg")

    def __lt__(self, y: Any) -> Term:
        return self.primitive("Less", y)

    def __le__(self, y: Any) -> Term:
        return self.primitive("LessOrEqual", y)

    def __gt__(self, y: Any) -> Term:
        return self.primitive("Greater", y)

    def __ge__(self, y: Any) -> Term:
        return self.primitive("GreaterOrEqual", y)

    def __and__(self, y: Any) -> Term:
        return self.primitive("And", y)

    def __or__(self, y: Any) -> Term:
        return self.primitive("Or", y)

    def __invert__(self) -> Term:
        return self.primitive("Not")

    def equals(self, y: Any) -> Term:
        return self.primitive("Equal", y)

    def differs(self, y: Any) -> Term:
        return ~self.primitive("Equal", y)

    def cast(self, dtype: Any) -> Term:
        return Term(self.op, self.op.cast(self.value, dtype), self.rank)

    def stopped(self) -> Term:
        """The same value, without gradient."""
        return self.primitive("StopGradient")

    def where(self, x: Any, y: Any) -> Term:
        """x where this term is true, else y; one of them may be a number."""
        x = x if isinstance(x, Term) else y.like(x)
        return self.primitive("Where", x, x.like(y))

    def is_nan(self) -> Term:
        return self.primitive("IsNaN")

    def is_infinite(self) -> Term:
        return self.primitive("IsInf")

    def is_negative(self) -> Term:
        """Whether the sign is negative, that of zero included; False for NaN."""
        if not is_float(self.dtype):
            return self < 0
        # no Where before the quotient: onnxruntime's forgets the sign of zero
        return (self < 0) | (self.equals(0) & (1 / self < 0))

    # --- along axes

    def axes(self, axes: Axes) -> list[int]:
        """Axes counted from the front; all for None and for an empty list."""
        given = [axes] if isinstance(axes, int) else list(axes or range(self.rank))
        return [self.op.axis(a, self.rank) for a in given] if self.rank else []

    def reduced(self, primitive: str, axes: Axes = None, keepdim: bool = False) -> Term:
        """A reduction: Sum, Mean, Max, Min, Prod, LogSumExp, L1, L2, …"""
        if self.rank == 0:  # onnxruntime takes no axes of a scalar
            whole = Term(self.op, self.op.Reshape(self.value, self.op.ints(1)), 1)
            return whole.reduced(primitive, 0, False)
        along = self.axes(axes)
        some = None if len(along) == self.rank else self.op.ints(*along)
        value = self.op.primitive(f"Reduce{primitive}", (self.value, some), {"keepdims": int(keepdim)})
        return Term(self.op, value, self.rank if keepdim else self.rank - len(along))

    def total(self, axes: Axes = None, keepdim: bool = False) -> Term:
        return self.reduced("Sum", axes, keepdim)

    def any(self, axes: Axes = None, keepdim: bool = False) -> Term:
        """Of a bool term: whether any is true; False over no elements."""
        return self.cast(np.int32).total(axes, keepdim) > 0

    def unsqueezed(self, *axes: int) -> Term:
        rank = self.rank + len(axes)
        value = self.op.Unsqueeze(self.value, self.op.ints(*(self.op.axis(a, rank) for a in axes)))
        return Term(self.op, value, rank)

    def squeezed(self, axis: int) -> Term:
        return Term(self.op, self.op.Squeeze(self.value, self.op.ints(self.op.axis(axis, self.rank))), self.rank - 1)

    def reshaped(self, sizes: Sequence[Size]) -> Term:
        return Term(self.op, self.op.reshape(self.value, sizes), len(sizes))

    def transposed(self, order: Sequence[int]) -> Term:
        return Term(self.op, self.op.Transpose(self.value, perm=tuple(order)), self.rank)

    def sliced(self, axis: int, start: Size, end: Size = MAX_INT64, step: int = 1) -> Term:
        op = self.op
        where = op.ints(op.axis(axis, self.rank))
        return Term(op, op.Slice(self.value, op.size(start), op.size(end), where, op.ints(step)), self.rank)

    def taken(self, indices: Term, axis: int) -> Term:
        """The elements at the indices along an axis (torch's gather)."""
        value = self.op.GatherElements(self.value, indices.value, axis=self.op.axis(axis, self.rank))
        return Term(self.op, value, self.rank)

    def row(self, index: Any, axis: int) -> Term:
        """The part at one index of an axis, or at a list of them, which keeps the axis."""
        value = self.op.Gather(self.value, self.op.value(index, np.int64), axis=self.op.axis(axis, self.rank))
        return Term(self.op, value, self.rank if np.ndim(index) else self.rank - 1)

    def expanded(self, sizes: Sequence[Size]) -> Term:
        return Term(self.op, self.op.Expand(self.value, self.op.sizes(sizes)), max(self.rank, len(sizes)))

    def matmul(self, y: Term) -> Term:
        rank = max(self.rank, y.rank, 2) - (self.rank == 1) - (y.rank == 1)
        return Term(self.op, self.op.MatMul(self.value, y.value), rank)

    def joined(self, *others: Term, axis: int) -> Term:
        values = [self.value, *(o.value for o in others)]
        return Term(self.op, self.op.Concat(*values, axis=self.op.axis(axis, self.rank)), self.rank)


def formula(*names: str) -> Callable[[_Function], _Function]:
    """Enters a lowering that is written in terms.

    Tensors among its arguments arrive as terms of the result's dtype (half precision in float32), those that are not
    floats beside a result of floats included; the term that it returns is rounded to the result's dtype. Under its
    own name the function stays one of terms.
    """

    def enter(function: _Function) -> _Function:
        @wraps(function)
        def lowering(op: TorchBuilder, *args: Any, **kwargs: Any) -> Value:
            dtype = working_dtype(op.result_dtype)

            def term(x: Any) -> Any:
                return Term.of(op, x, dtype) if isinstance(x, Value) else x

            result = function(*map(term, args), **{k: term(v) for k, v in kwargs.items()})
            return op.cast(result.value, op.result_dtype)

        aten(*names)(lowering)
        return function

    return enter


def described(op: TorchBuilder, index: int) -> Any:
    """torch's description of an argument that is a tensor: its sizes, which may be symbolic, and its dtype."""
    return op.fx_node.args[index].meta["val"]  # type: ignore[union-attr]


def sizes_of(op: TorchBuilder, index: int) -> list[Size]:
    return list(described(op, index).shape)


def product(sizes: Sequence[Size]) -> Size:
    result: Size = 1
    for size in sizes:
        result = result * size
    return result
