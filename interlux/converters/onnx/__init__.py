"""ONNX into the IR: `from_onnx`, and the source that conversions are verified against.

Importing this sub-package imports onnx; nothing else in interlux.converters does.
"""

try:
    import onnx
except ImportError as error:
    from ...ir.errors import UnsupportedError

    raise UnsupportedError("ONNX models need the package onnx: pip install 'interlux[onnx]'") from error

from .importer import from_onnx
from .reference import OnnxSource

del onnx
__all__ = ["OnnxSource", "from_onnx"]
