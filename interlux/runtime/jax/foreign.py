"""Layers that are code of another framework, called back from XLA, with gradients by a second callback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...ir.errors import UnsupportedError
from ...ir.foreign import Foreign, Kind
from ...ir.trees import is_float
from .primitives.registry import is_static

Value = Any
_WORDS = np.dtype(np.uint32)


def foreign(
    layer: Foreign, params: Mapping[str, Value], states: Mapping[str, Value], inputs: Sequence[Value], *, train: bool
) -> tuple[Any, Mapping[str, Any]]:
    """The outputs of a foreign layer (a tuple if there are several) and its states.

    Gradients flow to the parameters and inputs that are floating-point; the states are constants. Arrays that are known
    while tracing are not handed to XLA and back.
    """
    leaves, tree = jax.tree.flatten((dict(params), dict(states), list(inputs)))
    kinds = [Kind(tuple(np.shape(leaf)), np.dtype(leaf.dtype)) for leaf in leaves]
    of_params, of_states, of_inputs = jax.tree.unflatten(tree, kinds)
    made, written = layer.results(of_params, of_states, of_inputs, train)
    moving = [i for i, leaf in enumerate(leaves) if not is_static(leaf)]
    constant = set(jax.tree.leaves(jax.tree.unflatten(tree, range(len(leaves)))[1]))
    trained = [i for i in moving if i not in constant and _is_continuous(leaves[i].dtype)]

    def arguments(arrays: Sequence[Any]) -> Any:
        whole = [np.asarray(leaf) if is_static(leaf) else None for leaf in leaves]
        for i, array in zip(moving, arrays, strict=True):
            whole[i] = _received(array, np.dtype(leaves[i].dtype))
        return jax.tree.unflatten(tree, whole)

    def compute(*arrays: Any) -> tuple[np.ndarray, ...]:
        own, kept, given = arguments(arrays)
        outputs, new = layer.compute(own, kept, given, train)
        return tuple(map(_sent, (*outputs, *(new[name] for name in written))))

    def gradients(*arrays: Any) -> tuple[np.ndarray, ...]:
        own, kept, given = arguments(arrays[: len(moving)])
        received = iter(arrays[len(moving) :])
        cotangents = [_received(next(received), kind.dtype) if _is_continuous(kind.dtype) else None for kind in made]
        of_own, of_given = layer.gradients(own, kept, given, cotangents, train)
        found = jax.tree.leaves((of_own, kept, of_given), is_leaf=_is_none)
        return tuple(_sent(found[i]) for i in trained)

    @jax.custom_vjp
    def run(*arrays: Value) -> tuple[Value, ...]:
        results = [*made, *(of_states[name] for name in written)]
        return _call(compute, results, arrays)

    def backward(arrays: tuple[Value, ...], cotangents: tuple[Value, ...]) -> tuple[Value, ...]:
        known = [c for c, kind in zip(cotangents, made, strict=False) if _is_continuous(kind.dtype)]
        wanted = [kinds[i] for i in trained]
        found = dict(zip(trained, _call(gradients, wanted, (*arrays, *known)), strict=True))
        return tuple(found.get(i, _zero(array)) for i, array in zip(moving, arrays, strict=True))

    run.defvjp(lambda *arrays: (run(*arrays), arrays), backward)
    if moving:
        results = run(*(leaves[i] for i in moving))
    else:
        outputs, new = layer.compute(dict(params), dict(states), list(inputs), train)
        results = (*outputs, *(new[name] for name in written))
    outputs = results[: len(made)]
    new = {**states, **dict(zip(written, results[len(made) :], strict=True))}
    return (outputs[0] if len(outputs) == 1 else outputs), new


def _is_continuous(dtype: Any) -> bool:
    return is_float(dtype) or np.dtype(dtype).kind == "c"


def _is_none(value: Any) -> bool:
    return value is None


def _zero(array: Value) -> Value:
    """The cotangent of what no gradient flows to."""
    if _is_continuous(array.dtype):
        return jnp.zeros(array.shape, array.dtype)
    return np.zeros(array.shape, jax.dtypes.float0)


# A callback runs in a thread of XLA's, where 64-bit types are switched off whatever they are here: such arrays travel
# as pairs of 32-bit words.


def _call(function: Any, results: Sequence[Kind], arrays: Sequence[Value]) -> tuple[Value, ...]:
    shapes = [jax.ShapeDtypeStruct(*_as_words(kind.shape, kind.dtype)) for kind in results]
    sent = (lax.bitcast_convert_type(x, _WORDS) if _is_wide(x.dtype) else x for x in arrays)
    received = jax.pure_callback(function, tuple(shapes), *sent, vmap_method="sequential")
    return tuple(
        lax.bitcast_convert_type(x, kind.dtype) if _is_wide(kind.dtype) else x
        for x, kind in zip(received, results, strict=True)
    )


def _is_wide(dtype: Any) -> bool:
    dtype = np.dtype(dtype)
    if dtype == np.complex128:
        raise UnsupportedError("arrays of complex128 cannot be handed to another framework by JAX; split them")
    return dtype.itemsize == 8 and dtype.kind != "c"


def _as_words(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    return ((*shape, 2), _WORDS) if _is_wide(dtype) else (shape, dtype)


def _sent(array: np.ndarray) -> np.ndarray:
    shape, dtype = _as_words(array.shape, array.dtype)
    return np.frombuffer(array.tobytes(), dtype).reshape(shape) if _is_wide(array.dtype) else array


def _received(array: Any, dtype: np.dtype[Any]) -> np.ndarray:
    words = np.asarray(array)
    return np.frombuffer(words.tobytes(), dtype).reshape(words.shape[:-1]) if _is_wide(dtype) else words
