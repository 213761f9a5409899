"""onnxruntime's own operators for onnx's reference evaluator, in the precision of what they are given.

Written from onnxruntime's schemas and from what its CPU kernels compute, without anything of the importer, so that the
two can be compared. `CONTRIB_OPS` lists them for `ReferenceEvaluator(new_ops=…)`; `EARLY_OPS` are
those that onnxruntime writes in ONNX's domain before ONNX had them.
"""

from __future__ import annotations

from . import attention, fused, misc, normalization, quantized  # noqa: F401 - each registers its operators
from .common import CONTRIB_OPS
from .normalization import EARLY_OPS

__all__ = ["CONTRIB_OPS", "EARLY_OPS"]
