"""The backends of this version. Imports nothing, so that the command starts fast."""

from __future__ import annotations

from collections.abc import Mapping

# backend: the extra that has its packages
BACKENDS: Mapping[str, str] = {"jax": "jax", "onnxruntime": "onnx"}
