"""The framework-neutral representation: layers, parameter and state trees, graphs, models, and their saved form.

Nothing here imports a machine-learning framework: numpy computes, safetensors and ml_dtypes save.
"""

if not __name__.startswith(
    "interlux."
):  # the root's `ir` is a link for the eye; a second copy of every module is a trap
    raise ImportError("import interlux.ir, not the link 'ir' at the root of the repository")
