"""onnxruntime's own operators (domain com.microsoft), which its optimizer and several exporters write, in primitives.

A rule of the table takes a node and records what it computes. It refuses attributes and inputs that it does not take
into account, so that none is lost.

Source: onnxruntime's operator schemas and CPU kernels, version 1.31; for operators that have none there, the schemas.
"""

from __future__ import annotations

import onnx

from ....ir.errors import UnsupportedError
from ...builder import GraphBuilder, Value
from ..upgrades import Form
from . import attention, fused, misc, normalization, quantized
from .rules import Rule, name_of, wanted

DOMAIN = "com.microsoft"
CONTRIB: dict[str, Rule] = {
    **attention.RULES,
    **fused.RULES,
    **misc.RULES,
    **normalization.RULES,
    **quantized.RULES,
}
# onnxruntime writes these in the domain of ONNX: one that ONNX never had, one before the opset that brought it
MISPLACED = {"SimplifiedLayerNormalization": 1_000_000, "LayerNormalization": 17}

__all__ = ("CONTRIB", "DOMAIN", "MISPLACED", "for_checks", "known", "lower", "takes")


def known(domain: str, op_type: str, opset: int) -> bool:
    """Whether an operator is one of these, refused ones included: they say why.

    Arguments:
        domain: of the operator, "" for ONNX's.
        opset: of ai.onnx.
    """
    return (op_type in CONTRIB and domain == DOMAIN) or (domain == "" and opset < MISPLACED.get(op_type, 0))


def for_checks(model: onnx.ModelProto, opset: int) -> None:
    """Puts these operators where onnx's checker and type inference do not look for them in ONNX's domain, in place."""
    moved = False
    pending = [model.graph]
    while pending:
        for node in pending.pop().node:
            if node.domain in ("", "ai.onnx") and known("", node.op_type, opset):
                node.domain, moved = DOMAIN, True
            pending += [graph for a in node.attribute for graph in ([a.g] if a.HasField("g") else a.graphs)]
    if moved and all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))


def takes(form: Form) -> bool:
    """Whether there is a rule for a node, its operator named with its domain in front."""
    domain, _, op_type = form.op_type.rpartition(".")
    return op_type in CONTRIB and (domain == DOMAIN or (domain == "" and op_type in MISPLACED))


def lower(op: GraphBuilder, form: Form) -> tuple[Value, ...]:
    """Records what a node computes and returns its outputs.

    Raises UnsupportedError for what is not supported of the operator.
    """
    made = CONTRIB[name_of(form)](op, form)
    values = (made,) if isinstance(made, Value) else tuple(made)
    missing = [i for i in range(len(form.outputs)) if wanted(form, i) and (i >= len(values) or values[i] is None)]
    if missing:
        raise UnsupportedError(f"output {missing[0]} of {name_of(form)} is not supported")
    first = next(value for value in values if value is not None)
    return tuple(first if value is None else value for value in values)
