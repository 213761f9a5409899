"""Applying layers with JAX: `Layer.apply`, and compiled models.

64-bit types keep their meaning whatever JAX is set to: everything is traced and run inside `jax.enable_x64(True)`, a
context that leaves the user's setting alone. Nothing is promoted by that, because the IR's constants carry their
dtypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...ir import dtypes, trees
from ...ir.errors import InvalidModelError, UnsupportedError
from ...ir.graph import Graph, graph_of
from ...ir.layer import Layer
from ...ir.model import Model
from ...ir.trees import Path, Tree, is_float
from ..runner import Runner, refuse_written_states, run_in
from .interpreter import JaxInterpreter
from .primitives import PRIMITIVES

Trees = Mapping[str, Any]


def forward(layer: Layer, params: Trees, states: Trees, inputs: tuple[Any, ...], train: bool) -> tuple[Any, Tree]:
    """Traces a layer. States that are computed keep the dtype in which they came, so that a training loop is stable."""
    params, states = (trees.map_leaves(jnp.asarray, tree) for tree in (params, states))
    graph = graph_of(layer)
    declared = [None] * len(inputs) if graph is None else [graph.values.get(name) for name in graph.inputs]
    trained = {leaf.dtype for _, leaf in trees.leaves(params) if is_float(leaf.dtype)}
    values = [jnp.asarray(value) for value in inputs]
    for i, (value, info) in enumerate(zip(values, declared, strict=False)):
        if info is None or value.dtype == info.dtype:
            continue
        wanted = dtypes.dtype_named(info.dtype)
        if value.dtype.kind in "iu" and wanted.kind in "iu":
            values[i] = value.astype(wanted)  # an outer jit without 64-bit types has shortened it
        elif not (is_float(value.dtype) and {value.dtype} == trained and value.dtype.itemsize > wanted.itemsize):
            hint = ""
            if wanted == np.float64:
                hint = "; JAX has 64-bit types switched off here: wrap the call in jax.enable_x64(True)"
            name = graph.inputs[i] if graph is not None else str(i)
            raise InvalidModelError(f"input {name!r} must have dtype {info.dtype}, not {value.dtype.name}{hint}")
    outputs, new = JaxInterpreter().layer(layer, params, states, *values, train=train)
    kept = trees.map_with_path(lambda path, leaf: jnp.asarray(leaf).astype(_dtype_at(states, path, leaf)), new)
    return jax.tree.map(jnp.asarray, outputs), kept


def _dtype_at(tree: Trees, path: Path, leaf: Any) -> Any:
    before = trees.find(tree, path)
    return leaf.dtype if before is None else before.dtype


def _hashable(layer: Layer) -> bool:
    try:
        hash(layer)
    except TypeError:  # a layer of a user's own with a list among its fields: run, but not compiled once for all
        return False
    return True


@lru_cache(maxsize=64)
def _compiled(layer: Layer, train: bool) -> Any:
    return jax.jit(lambda params, states, inputs: forward(layer, params, states, inputs, train))


def apply(layer: Layer, params: Trees, states: Trees, inputs: tuple[Any, ...], train: bool) -> tuple[Any, Tree]:
    """What `Layer.apply` calls; see there."""
    if not isinstance(params, Mapping) or not isinstance(states, Mapping):
        raise InvalidModelError("apply takes the trees of parameters and states first, then the inputs")
    params, states = dict(params), dict(states)
    found = jax.tree.leaves((params, states, inputs))
    strange = next(
        (leaf for leaf in found if not isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int)), None
    )
    if strange is not None:
        raise InvalidModelError(
            f"apply takes arrays of numpy or JAX, not {type(strange).__module__}.{type(strange).__name__}"
        )
    wide = jax.config.read("jax_enable_x64")
    with run_in("JAX"), jax.enable_x64(True):
        if any(isinstance(leaf, jax.core.Tracer) for leaf in found) or not _hashable(layer):
            result = forward(layer, params, states, inputs, train)
        else:
            result = _compiled(layer, train)(params, states, inputs)
        if not any(isinstance(leaf, jax.Array) for leaf in found):
            # inside an outer jit even constants give tracers
            return jax.tree.map(lambda y: y if isinstance(y, jax.core.Tracer) else np.asarray(y), result)
        if wide:
            return result
        narrow = {"i": jnp.int32, "u": jnp.uint32, "f": jnp.float32, "c": jnp.complex64}
        return jax.tree.map(
            lambda leaf: (
                leaf.astype(narrow[leaf.dtype.kind])
                if leaf.dtype.itemsize == (16 if leaf.dtype.kind == "c" else 8) and leaf.dtype.kind in narrow
                else leaf
            ),
            result,
        )


class JaxRunner(Runner):
    """A model compiled by XLA, one program for each combination of input sizes. Parameters stay on the device."""

    backend = "jax"

    def __init__(self, model: Model, device: str = "cpu"):
        super().__init__(model, device)
        try:
            self._device = jax.devices("gpu" if device == "cuda" else device)[0]
        except RuntimeError:
            raise UnsupportedError(
                f"JAX has no device {device!r} here; use device='cpu', or install JAX's plugin for it"
            ) from None
        graph = graph_of(model.layer)
        check_supported(graph)
        used = graph.paths().keys() if graph is not None else None
        known = graph.values if graph is not None else None

        def place(tree: Tree) -> list[tuple[Path, Any]]:
            return [
                (path, jax.device_put(leaf, self._device))
                for path, leaf in trees.leaves(tree)
                if used is None or path in used
            ]

        with jax.enable_x64(True):
            params, states = place(model.params), place(model.states)
        self._paths = [p for p, _ in params], [p for p, _ in states]
        self._arrays = [a for _, a in params], [a for _, a in states]

        def program(params: list[Any], states: list[Any], inputs: list[Any]) -> tuple[Any, ...]:
            trees_of = [
                trees.from_leaves(zip(paths, arrays, strict=True))
                for paths, arrays in zip(self._paths, (params, states), strict=True)
            ]
            y, new = JaxInterpreter(known).layer(model.layer, *trees_of, *inputs, train=False)
            refuse_written_states(trees_of[1], new)
            return tuple(map(jnp.asarray, y)) if isinstance(y, tuple) else (jnp.asarray(y),)

        self._program = jax.jit(program)

    def run(self, arrays: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        with run_in(self.backend), jax.enable_x64(True):
            inputs = [jax.device_put(a, self._device) for a in arrays]
            return tuple(np.asarray(y) for y in self._program(*self._arrays, inputs))


def check_supported(graph: Graph | None) -> None:
    """Raises UnsupportedError with every operator of a graph that JAX has no primitive for."""
    if graph is None:
        return
    missing = [
        f"{node.layer.op_type} {node.place()}"
        for node in graph.nodes
        if hasattr(node.layer, "op_type") and node.layer.op_type not in PRIMITIVES
    ]
    if missing:
        raise UnsupportedError("the JAX backend has no primitive for these operators", missing)
