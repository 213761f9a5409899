"""The backends of this version. Imports nothing, so that the command starts fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Backend(NamedTuple):
    """What the command knows of a backend.

    Arguments:
        extra: that has its packages.
        package: without which it cannot run.
        devices: that it runs on.
        by_default: whether verification takes it without being told; a backend for some networks only is named.
    """

    extra: str
    package: str
    devices: tuple[str, ...]
    by_default: bool


BACKENDS: Mapping[str, Backend] = {
    "jax": Backend("jax", "jax", ("cpu", "cuda"), by_default=True),
    "onnxruntime": Backend("onnx", "onnxruntime", ("cpu", "cuda"), by_default=True),
    "fused": Backend("fused", "llvmlite", ("cpu",), by_default=False),
}
