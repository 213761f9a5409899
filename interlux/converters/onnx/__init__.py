"""ONNX into the IR: `from_onnx`, and the source that conversions are verified against.

Importing this sub-package imports onnx; nothing else in interlux.converters does. onnxruntime is imported when a source
is first run.
"""

from .importer import from_onnx
from .reference import OnnxSource

__all__ = ["OnnxSource", "from_onnx"]
