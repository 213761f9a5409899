"""Containers of tensors, as ONNX has them: the names by which values and signatures say what they are."""

from __future__ import annotations

SEQUENCE, OPTIONAL, OPTIONAL_SEQUENCE = "sequence", "optional", "optional sequence"
