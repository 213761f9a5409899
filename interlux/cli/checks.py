"""Which hops are verified: the model on the backends, and files as they lie on disk."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..api import needs
from ..ir.errors import UnsupportedError, VerificationError
from ..ir.model import Model, Signature, TensorSpec
from .backends import BACKENDS

Run = Callable[[list[np.ndarray]], Sequence[Any]]


def installed_backends() -> tuple[str, ...]:
    """The backends for all networks whose packages are there. Raises UnsupportedError if none is."""
    names = tuple(
        name for name, b in BACKENDS.items() if b.by_default and importlib.util.find_spec(b.package) is not None
    )
    if not names:
        raise UnsupportedError("no backend is installed; pip install 'interlux[jax,onnx]', or see 'interlux doctor'")
    return names


class Hop:
    """Something that is run beside the source: called with its inputs, returns its outputs.

    It is made when it is first called, so that its failure counts as its own.

    Arguments:
        make: makes the function of arrays, and the names of its outputs in order (None if it has none of its own).
        inputs: which of the source's inputs it takes, in its order.
        outputs: which of its outputs the source's are, in the source's order.
    """

    def __init__(
        self,
        make: Callable[[], tuple[Run, Sequence[str] | None]],
        inputs: Sequence[int] | None = None,
        outputs: Sequence[int] | None = None,
    ):
        self._make, self._inputs, self._outputs = make, inputs, outputs
        self._made: tuple[Run, Sequence[str] | None] | None = None

    @property
    def _ready(self) -> tuple[Run, Sequence[str] | None]:
        if self._made is None:
            self._made = self._make()
        return self._made

    @property
    def output_names(self) -> Sequence[str] | None:
        return self._ready[1] if self._outputs is None else None

    def __call__(self, arrays: list[np.ndarray]) -> Sequence[Any]:
        given = arrays if self._inputs is None else [arrays[i] for i in self._inputs]
        made = self._ready[0](given)
        return made if self._outputs is None else [made[i] for i in self._outputs]


def onnx_file(path: Path) -> tuple[Run, Sequence[str]]:
    """An ONNX file as it lies there, on onnxruntime."""
    with needs("onnx"):
        from ..runtime.onnx.session import session
    made = session(str(path), "cpu")
    names = [value.name for value in made.get_inputs()]

    def run(arrays: list[np.ndarray]) -> Sequence[Any]:
        feed = {name: np.asarray(array, order="C") for name, array in zip(names, arrays, strict=True)}
        outputs: Sequence[Any] = made.run(None, feed)
        return outputs

    return run, [value.name for value in made.get_outputs()]


def compiled(model: Model, backend: str) -> tuple[Run, Sequence[str]]:
    """A model on a backend."""
    from ..api import compile

    return compile(model, backend).run, [spec.name for spec in model.require_signature().outputs]


def written_onnx(path: Path, backends: Sequence[str]) -> dict[str, Hop]:
    """The hops of an ONNX file that was just written: onnxruntime on it, and interlux reading it again."""
    hops = {"onnxruntime (file)": Hop(lambda: onnx_file(path))}
    if "jax" in backends:

        def again() -> tuple[Run, Sequence[str]]:
            with needs("onnx"):
                from ..converters.onnx import from_onnx
            return compiled(from_onnx(path), "jax")

        hops["jax (file)"] = Hop(again)
    return hops


def matched(wanted: Sequence[TensorSpec], given: Sequence[TensorSpec], what: str) -> tuple[list[int], str]:
    """For each tensor of `given` its place in `wanted`: by name, else by order where dtypes and shapes agree.

    Returns:
        The places, and a sentence for the user if names were not enough.

    Raises VerificationError if they cannot be matched.
    """

    def agree(a: TensorSpec, b: TensorSpec) -> bool:
        if a.shape is None or b.shape is None:
            return a.dtype == b.dtype and a.container == b.container
        sizes = zip(a.shape, b.shape, strict=False)
        fits = all(x == y or not (isinstance(x, int) and isinstance(y, int)) for x, y in sizes)
        return a.dtype == b.dtype and len(a.shape) == len(b.shape) and fits

    def listed(specs: Sequence[TensorSpec]) -> str:
        return ", ".join(map(str, specs)) or "none"

    if len(wanted) != len(given):
        raise VerificationError(
            f"A and B cannot be compared: A has {len(wanted)} {what}s ({listed(wanted)}), B has {len(given)} "
            f"({listed(given)})"
        )
    names = [spec.name for spec in wanted]
    by_name = {spec.name for spec in given} == set(names)
    order = [names.index(spec.name) for spec in given] if by_name else list(range(len(given)))
    for spec, at in zip(given, order, strict=True):
        if not agree(wanted[at], spec):
            raise VerificationError(f"A and B cannot be compared: {what} {wanted[at]} of A is {spec} in B")
    if by_name:
        return order, ""
    pairs = ", ".join(f"{wanted[at].name} = {spec.name}" for spec, at in zip(given, order, strict=True))
    return order, f"{what}s of A and B have other names and were matched by their order: {pairs}"


def matched_signatures(a: Signature, b: Signature) -> tuple[list[int], list[int], list[str]]:
    """Which of A's inputs each of B's is, which of B's outputs each of A's is, and notes."""
    inputs, first = matched(a.inputs, b.inputs, "input")
    of_given, second = matched(a.outputs, b.outputs, "output")
    outputs = [of_given.index(at) for at in range(len(a.outputs))]
    return inputs, outputs, [note for note in (first, second) if note]
