"""Applying layers with JAX: `Layer.apply`.

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
from ...ir.errors import InvalidModelError
from ...ir.graph import graph_of
from ...ir.layer import Layer
from ...ir.trees import Path, Tree, is_float
from ..runner import run_in
from .interpreter import JaxInterpreter
from .primitives.registry import NOTHING, DataDependent, is_text, is_traced

Trees = Mapping[str, Any]


def forward(layer: Layer, params: Trees, states: Trees, inputs: tuple[Any, ...], train: bool) -> tuple[Any, Tree]:
    """Traces a layer. States that are computed keep the dtype in which they came, so that a training loop is stable."""
    params, states = (trees.map_leaves(jnp.asarray, tree) for tree in (params, states))
    graph = graph_of(layer)
    declared = [None] * len(inputs) if graph is None else [graph.values.get(name) for name in graph.inputs]
    trained = {leaf.dtype for _, leaf in trees.leaves(params) if is_float(leaf.dtype)}
    values = [_as_value(value) for value in inputs]
    for i, (value, info) in enumerate(zip(values, declared, strict=False)):
        if info is None or not hasattr(value, "shape") or value.dtype == info.dtype:
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
    return jax.tree.map(_as_value, outputs), kept


def _as_value(value: Any) -> Any:
    """An input or output as a value of the JAX interpreter: texts stay arrays of numpy."""
    if value is None or value is NOTHING:
        return NOTHING
    if isinstance(value, list):
        return [_as_value(item) for item in value]
    return value if is_text(value) else jnp.asarray(value)


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
    with run_in("JAX"), jax.enable_x64(True), np.errstate(all="ignore"):  # numpy computes here as XLA does
        result = _apply(layer, params, states, inputs, train, found)
        if not any(isinstance(leaf, jax.Array) for leaf in found):
            # inside an outer jit even constants give tracers
            return jax.tree.map(lambda y: np.asarray(y) if isinstance(y, jax.Array) and not is_traced(y) else y, result)
        return result if wide else jax.tree.map(_narrow, result)


def _apply(
    layer: Layer, params: Trees, states: Trees, inputs: tuple[Any, ...], train: bool, found: list[Any]
) -> tuple[Any, Tree]:
    if is_traced(found) or any(map(is_text, found)) or not _hashable(layer) or (layer, train) in _UNTRACEABLE:
        return forward(layer, params, states, inputs, train)
    try:
        return _compiled(layer, train)(params, states, inputs)
    except DataDependent:
        _UNTRACEABLE.add((layer, train))
        return forward(layer, params, states, inputs, train)


_UNTRACEABLE: set[tuple[Layer, bool]] = set()  # layers that are executed on concrete arrays only


def _narrow(leaf: Any) -> Any:
    """A 64-bit array as JAX makes it where 64-bit types are switched off."""
    narrow = {"i": jnp.int32, "u": jnp.uint32, "f": jnp.float32, "c": jnp.complex64}
    if not isinstance(leaf, jax.Array) or leaf.dtype.kind not in narrow:
        return leaf
    wide = leaf.dtype.itemsize == (16 if leaf.dtype.kind == "c" else 8)
    return leaf.astype(narrow[leaf.dtype.kind]) if wide else leaf
