"""From the IR to something that runs: jax, the ONNX emitter, onnxruntime, and the verifier."""

if not __name__.startswith("interlux."):
    raise ImportError("import interlux.runtime, not the link 'runtime' at the root of the repository")
