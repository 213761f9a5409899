"""Recorded nodes in the forms in which onnxruntime finds what it can fuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...ir.trees import is_float
from .assembly import Emitted, EmittedNode

if TYPE_CHECKING:
    from .emitter import OnnxInterpreter


def tidy(op: OnnxInterpreter, outputs: Sequence[Emitted]) -> list[EmittedNode]:
    """The nodes of an interpreter without those that nothing reads.

    Root-mean-square normalisations, which networks write in many ways, get the one that onnxruntime knows: the mean of
    Pow(x, 2), and x divided by the root. Both give the same numbers as x · x and x · (1 / root), or nearer ones.
    """
    for node in op.nodes:
        if node.op_type == "Mul":
            _as_quotient(node)
    readers = Counter(id(value) for node in op.nodes for value in node.read())
    for node in op.nodes:
        if node.op_type == "ReduceMean" and node.inputs[0] is not None:
            _as_power(op, node.inputs[0], readers)
    needed = {id(value) for value in outputs}
    kept = []
    for node in reversed(op.nodes):
        if any(id(value) in needed for value in node.outputs):
            kept.append(node)
            needed.update(id(value) for value in node.read())
    return kept[::-1]


def _as_quotient(node: EmittedNode) -> None:
    for x, factor in (node.inputs, node.inputs[::-1]):
        inverse = factor.made_by if factor is not None else None
        if x is None or inverse is None or inverse.op_type != "Reciprocal" or inverse.inputs[0] is None:
            continue
        root = inverse.inputs[0].made_by
        if root is not None and root.op_type == "Sqrt":
            node.op_type, node.inputs = "Div", [x, inverse.inputs[0]]
            return


def _as_power(op: OnnxInterpreter, square: Emitted, readers: Counter[int]) -> None:
    node = square.made_by
    if node is None or node.op_type != "Mul" or node.inputs[0] is not node.inputs[1] or readers[id(square)] != 1:
        return
    if is_float(square.dtype):
        node.op_type, node.inputs = "Pow", [node.inputs[0], op.const(2, like=square)]
