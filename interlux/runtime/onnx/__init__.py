"""ONNX out: the emitter, files, and onnxruntime as the runner."""

from .emitter import emit
from .files import to_onnx
from .session import OnnxRunner

__all__ = ["OnnxRunner", "emit", "to_onnx"]
