"""From a framework into the IR, and weights back: torch, onnx (keras comes later)."""

if not __name__.startswith("interlux."):
    raise ImportError("import interlux.converters, not the link 'converters' at the root of the repository")
