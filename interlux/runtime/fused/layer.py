"""Layers that run as one native function: `ix.to_fused(layer, input_shape=…)`.

    fused = to_fused(layer, (4,))
    params, states = ix.setup(fused, 0)            # those of the layer
    y, states = fused.apply(params, states, x)     # numpy: a native call; JAX: the same inside jit, vmap and grad

Parameters come with every call, as everywhere in interlux, and the native function wants them packed. What is packed is
kept and used again only if every byte of the arrays is as it was, so that no change is missed, made in place or not.
Most packings only move numbers (`moving` says so): where to is found out with arrays of numbered elements, and then
packing is one gather, which also works on parameters that JAX traces. Where it is more (a BatchNorm folded into a
convolution) and the parameters are traced, JAX computes the layer itself.

Derivatives are those of the layer as JAX computes it, forward and reverse, of any order. In training mode JAX computes
the layer too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...ir import trees
from ...ir.dtypes import dtype_named
from ...ir.errors import InvalidModelError, UnsupportedError
from ...ir.foreign import Kind
from ...ir.graph import Graph
from ...ir.interpreter import Interpreter
from ...ir.layer import Layer, setup
from ...ir.model import Model
from ...ir.trees import Path, Tree
from ..runner import run_in
from .entry import Entry, Native, aligned, checked_threads

Shape = tuple[int, ...]
Value = Any
Name = tuple[str, Path]  # of an array: params or states, and its path
Stored = Mapping[Name, Any]
_NUMBERED = {"float32": 2**24, "float64": 2**53}  # up to there a dtype holds all whole numbers
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Compiler(Protocol):
    """What makes native functions of layers."""

    def __call__(self, layer: Layer, params: Tree, states: Tree, inputs: tuple[Kind, ...]) -> Native:
        """The native function of a layer in evaluation mode, with its packed parameters.

        Two results with the same `key` have the same code, and differ in nothing but their parameters. Raises
        UnsupportedError naming the layers that it does not take.
        """


@dataclass(frozen=True)
class Fused(Layer):
    """A layer that runs as one native function on the CPU. Made by `to_fused`.

    Arguments:
        layer: what is computed; parameters and states are its own.
        input_shapes: of one sample (without the batch), for each input.
        threads: at most so many compute one batch; None is all cores that this process may use.
    """

    layer: Layer
    input_shapes: tuple[Shape, ...]
    threads: int | None = None

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return self.layer.param_shapes()

    def init_params(self, rng: np.random.Generator) -> Tree:
        return self.layer.init_params(rng)

    def init_states(self, rng: np.random.Generator) -> Tree:
        return self.layer.init_states(rng)

    def children(self) -> tuple[tuple[str, Layer], ...]:
        return self.layer.children()

    def apply(
        self, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Any, train: bool = False
    ) -> tuple[Any, Tree]:
        if train is False and isinstance(params, Mapping) and isinstance(states, Mapping):
            stored = _arrays_of(params, states)
            if _are_known(stored.values()):  # they can be packed now
                if _are_known(inputs):
                    return self._computed(stored, inputs), dict(states)
                if _are_arrays(inputs):
                    return self._traced(params, states, stored, inputs), dict(states)
        return super().apply(params, states, *inputs, train=train)

    def _computed(self, stored: Stored, inputs: Sequence[Any]) -> Any:
        """The output for arrays of numpy or JAX."""
        self._check(inputs)
        arrays = [_numpy(x) for x in inputs]
        packed = _functions(self).packed({name: _numpy(array) for name, array in stored.items()}, arrays)
        outputs = packed.entry.run(arrays, parameters=packed.parameters)
        if not all(isinstance(array, np.ndarray | np.generic) for array in (*stored.values(), *inputs)):
            import jax.numpy as jnp

            outputs = tuple(jnp.asarray(y) for y in outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _traced(self, params: Mapping[str, Any], states: Mapping[str, Any], stored: Stored, inputs: Any) -> Any:
        """The output for inputs that JAX traces; the arrays are known."""
        import jax

        def reference(stored: Stored, inputs: Sequence[Value]) -> tuple[Value, ...]:
            outputs, _ = self.layer.apply(params, states, *inputs)
            return outputs if isinstance(outputs, tuple) else (outputs,)

        self._check(inputs)
        with jax.enable_x64(True):
            outputs = _functions(self).traced(stored, inputs, reference)
        return outputs[0] if len(outputs) == 1 else outputs

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        if train or op.name != "JAX":
            return op.layer(self.layer, params, states, *inputs, train=train)
        inputs = tuple(op.plain(x) for x in inputs)
        self._check(inputs)
        stored = _arrays_of(params, states)

        def reference(stored: Stored, inputs: Sequence[Value]) -> tuple[Value, ...]:
            """What the layer computes, in terms of JAX."""
            trees_of = _trees_of(stored, params, states)
            outputs, _ = op.layer(self.layer, *trees_of, *inputs, train=False)
            return outputs if isinstance(outputs, tuple) else (outputs,)

        outputs = _functions(self).traced(stored, inputs, reference)
        return (outputs[0] if len(outputs) == 1 else outputs), states

    def _check(self, inputs: Sequence[Any]) -> None:
        if len(inputs) != len(self.input_shapes):
            raise InvalidModelError(f"{len(inputs)} inputs given, the fused layer takes {len(self.input_shapes)}")
        for i, (x, shape) in enumerate(zip(inputs, self.input_shapes, strict=True)):
            if not hasattr(x, "shape"):
                raise InvalidModelError(f"input {i} of the fused layer must be an array, not {type(x).__name__}")
            if tuple(x.shape[1:]) != shape or not x.ndim or x.shape[0] != inputs[0].shape[0]:
                sizes = ", ".join(("batch", *map(str, shape)))
                raise InvalidModelError(f"input {i} of the fused layer must have shape ({sizes}), not {tuple(x.shape)}")


def to_fused(
    layer: Layer,
    input_shape: Sequence[int] | Sequence[Sequence[int]],
    params: Mapping[str, Any] | None = None,
    states: Mapping[str, Any] | None = None,
    threads: int | None = None,
    dtype: Any = None,
) -> Layer:
    """A layer that runs as one native function on the CPU; it takes the same parameters, states and inputs.

    Arguments:
        layer: any layer that the fused engine takes.
        input_shape: of one sample, without the batch: (28, 28, 1); a sequence of shapes for several inputs.
        params, states: arrays that it will be used with, so that it is compiled now; without them it is compiled for
            fresh ones, or, where a layer has none of its own (one that was imported), when it is first applied.
        threads: at most so many compute one batch; None is all cores that this process may use.
        dtype: of the inputs, one or a sequence, that it is compiled for now; None is that of the parameters. Row
            numbers need "int32" or "int64".

    Returns: a layer whose `apply` runs natively with numpy and inside jax.jit, jax.vmap and jax.grad. Inputs have the
    batch first, of any size.

    Raises UnsupportedError naming the layers that the engine does not take; InvalidModelError if the layer does not
    take such inputs or parameters.
    """
    if isinstance(layer, Model):
        raise InvalidModelError("to_fused takes a layer: model.layer, with params=model.params, states=model.states")
    if not isinstance(layer, Layer):
        raise InvalidModelError(f"to_fused takes a layer, not {type(layer).__name__}; ix.from_torch imports modules")
    fused = Fused(layer, _shapes(input_shape), checked_threads(threads))
    if params is None and states is None:
        if _is_imported(layer):
            return fused
        params, states = setup(layer, 0)
    stored = _arrays_of(params or {}, states or {})
    kept = {name: _numpy(array) for name, array in stored.items()}
    own = next((a.dtype for a in kept.values() if trees.is_float(a.dtype)), np.dtype(np.float32))
    given = list(dtype) if isinstance(dtype, tuple | list) else [dtype] * len(fused.input_shapes)
    if len(given) != len(fused.input_shapes):
        raise InvalidModelError(f"{len(given)} dtypes for {len(fused.input_shapes)} inputs")
    dtypes = [own if name is None else dtype_named(name) for name in given]
    _functions(fused).packed(kept, [np.empty(0, d.newbyteorder("=")) for d in dtypes])
    return fused


def _is_imported(layer: Layer) -> bool:
    """Whether a layer, or one inside it, has parameters that only its model has."""
    if isinstance(layer, Graph) and layer.paths():
        return True
    return any(_is_imported(child) for _, child in layer.children())


def _shapes(given: Sequence[Any]) -> tuple[Shape, ...]:
    """The shapes of all inputs, from that of one or from a sequence of them."""
    listed = (tuple, list, np.ndarray)
    shapes = tuple(given) if isinstance(given, listed) and len(given) and isinstance(given[0], listed) else (given,)
    for shape in shapes:
        if not (isinstance(shape, listed) and all(_is_size(size) for size in shape)):
            raise InvalidModelError(f"input_shape must be positive sizes without the batch, not {given!r}")
    return tuple(tuple(map(int, shape)) for shape in shapes)


def _is_size(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value > 0)


def _numpy(array: Any) -> np.ndarray:
    """An array of numpy or JAX as one of numpy in this machine's byte order."""
    found = np.asarray(array)
    return found if found.dtype.isnative else found.astype(found.dtype.newbyteorder("="))


def _arrays_of(params: Mapping[str, Any], states: Mapping[str, Any]) -> dict[Name, Any]:
    """All arrays, by their tree and path."""
    found = {("params", path): array for path, array in trees.leaves(params)}
    return {**found, **{("states", path): array for path, array in trees.leaves(states)}}


def _are_known(arrays: Iterable[Any]) -> bool:
    """Whether these are arrays of numpy, or of JAX on a CPU, with values that are known now."""
    return all(isinstance(array, np.ndarray | np.generic) or _is_jax(array, known=True) for array in arrays)


def _are_arrays(arrays: Iterable[Any]) -> bool:
    """Whether these are arrays of numpy or JAX, traced or not."""
    return all(isinstance(array, np.ndarray | np.generic) or _is_jax(array, known=False) for array in arrays)


def _is_jax(array: Any, known: bool) -> bool:
    """Whether this is an array of JAX; with `known`, one whose values are in this process's memory."""
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(array, jax.Array):
        return False
    if not known or isinstance(array, jax.core.Tracer):
        return not known
    return array.is_fully_addressable and all(device.platform == "cpu" for device in array.devices())


def _trees_of(stored: Stored, params: Mapping[str, Any], states: Mapping[str, Any]) -> tuple[Tree, Tree]:
    """The trees with the stored arrays as their leaves."""
    own = trees.map_with_path(lambda path, _: stored["params", path], params)
    return own, trees.map_with_path(lambda path, _: stored["states", path], states)


@functools.lru_cache(maxsize=64)
def _functions(layer: Fused) -> _Functions:
    return _Functions(layer, _compiler())


def _compiler() -> Compiler:
    """The engine."""
    try:
        from .engine import compile_layer
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"this needs {error.name}: pip install 'interlux[fused]'") from None
    compiler: Compiler = compile_layer
    return compiler


@dataclass(frozen=True, eq=False)
class _Packed:
    """A function with parameters that it can use, and copies of the arrays that they come from."""

    entry: Entry
    parameters: np.ndarray
    sources: Stored

    def is_of(self, stored: Stored) -> bool:
        """Whether the arrays have the same bytes as those that were packed."""
        return all(_same_bytes(array, self.sources[name]) for name, array in stored.items())


@dataclass(frozen=True, eq=False)
class _Gather:
    """A packing that only moves numbers: packed[i] = concatenated[index[i]].

    Arguments:
        entry: the function.
        names: of the arrays whose elements are moved, in the order in which they are concatenated.
        constants: what is concatenated last: numbers that are the same for all parameters.
        index: int32.
        others: the remaining arrays. For other contents of them the packing is another one.
    """

    entry: Entry
    names: tuple[Name, ...]
    constants: np.ndarray
    index: np.ndarray
    others: Stored

    def packed(self, stored: Stored) -> np.ndarray:
        parts = [stored[name].reshape(-1) for name in self.names]
        return aligned(np.concatenate([*parts, self.constants])[self.index])

    def traced(self, stored: Stored) -> Value:
        """The same in terms of JAX."""
        import jax.numpy as jnp

        parts = [jnp.asarray(stored[name]).reshape(-1) for name in self.names]
        return jnp.concatenate([*parts, self.constants]).at[self.index].get(mode="promise_in_bounds")


class _Functions:
    """The native functions of one layer: one for each combination of shapes and dtypes of its arrays."""

    def __init__(self, layer: Fused, compiler: Compiler):
        self._layer, self._compiler = layer, compiler
        self._last: dict[Any, _Packed] = {}
        self._gathers: dict[Any, _Gather | None] = {}
        self._entries: dict[bytes, Entry] = {}
        self._checked: set[Any] = set()

    def packed(self, stored: Stored, inputs: Sequence[Value]) -> _Packed:
        """The function and its parameters for arrays of numpy; of the inputs only the dtypes matter."""
        key = _key(stored, inputs)
        last = self._last.get(key)
        if last is not None and last.is_of(stored):
            return last
        sources = {name: np.array(array, order="C") for name, array in stored.items()}
        gather = None if last is None else self._gather(sources, inputs)  # made when parameters have changed
        if gather is None:
            entry, parameters = self._compiled(sources, inputs)
            packed = _Packed(entry, parameters, sources)
        else:
            packed = _Packed(gather.entry, gather.packed(sources), sources)
        self._last[key] = packed
        return packed

    def traced(
        self, stored: Stored, inputs: Sequence[Value], reference: Callable[[Stored, Sequence[Value]], tuple[Value, ...]]
    ) -> tuple[Value, ...]:
        """The outputs, where JAX traces the inputs or the arrays.

        Arguments:
            reference: computes the outputs with JAX, of the stored arrays and inputs.
        """
        import jax

        from . import ffi

        if jax.default_backend() != "cpu":
            return reference(stored, inputs)
        names = [name for name, array in stored.items() if isinstance(array, jax.core.Tracer)]
        known = {name: _numpy(array) for name, array in stored.items() if name not in names}
        if names:
            moving = all(_is_numbered(stored[name]) for name in names)
            zeros = {name: np.zeros(array.shape, array.dtype) for name, array in stored.items() if name in names}
            gather = self._gather({**zeros, **known}, inputs) if moving else None
            if gather is None:
                return reference(stored, inputs)
            entry = gather.entry
        else:
            constant = self.packed(known, inputs)
            entry = constant.entry

        @jax.custom_jvp
        def call(moved: list[Value], inputs: list[Value]) -> tuple[Value, ...]:
            given = {**known, **dict(zip(names, moved, strict=True))}
            return ffi.run(entry, gather.traced(given) if names else constant.parameters, inputs)  # type: ignore[union-attr]

        def compute(moved: list[Value], inputs: list[Value]) -> tuple[Value, ...]:
            return reference({**known, **dict(zip(names, moved, strict=True))}, inputs)

        @call.defjvp
        def derivative(primals: Any, tangents: Any) -> Any:
            with jax.enable_x64(True):  # it may be wanted when the call of `apply` is over
                return call(*primals), jax.jvp(compute, primals, tangents)[1]

        return tuple(call([stored[name] for name in names], list(inputs)))

    def _compiled(self, stored: Stored, inputs: Sequence[Value]) -> tuple[Entry, np.ndarray]:
        """A function and its parameters from the engine."""
        kinds, params, states = self._arguments(stored, inputs)
        key = _key(stored, inputs)
        if key not in self._checked:
            _check_by_reference(self._layer.layer, params, states, kinds)
            self._checked.add(key)
        with run_in("the fused engine"), np.errstate(all="ignore"):  # what is folded may be anything: numbers, NaN
            function = self._compiler(self._layer.layer, params, states, kinds)
        entry = self._entries.get(function.key)
        if entry is None or not function.key:
            entry = self._entries[function.key] = Entry(function, threads=self._layer.threads)
        return entry, aligned(function.parameters)

    def _arguments(self, stored: Stored, inputs: Sequence[Value]) -> tuple[tuple[Kind, ...], Tree, Tree]:
        """What compilers take: kinds of the inputs, params, states."""
        kinds = tuple(Kind(shape, np.dtype(x.dtype)) for shape, x in zip(self._layer.input_shapes, inputs, strict=True))
        params, states = (
            trees.from_leaves((path, array) for (tree, path), array in stored.items() if tree == wanted)
            for wanted in ("params", "states")
        )
        return kinds, params, states

    def _gather(self, stored: Stored, inputs: Sequence[Value]) -> _Gather | None:
        """The packing as a gather; None if it is more than that."""
        key = _key(stored, inputs)
        found = self._gathers.get(key)
        if key not in self._gathers or (found is not None and not _same(found.others, stored)):
            found = self._gathers[key] = self._find_gather(stored, inputs)
        return found

    def _find_gather(self, stored: Stored, inputs: Sequence[Value]) -> _Gather | None:
        """Packs arrays whose elements are numbered, upwards and downwards, and looks where the numbers went."""
        from .moving import only_moves

        names = tuple(name for name, array in stored.items() if _is_numbered(array))
        dtypes = {stored[name].dtype for name in names}
        sizes = [stored[name].size for name in names]
        if len(dtypes) != 1 or sum(sizes) >= _NUMBERED[(dtype := dtypes.pop()).name] // 2:
            return None
        kinds, params, states = self._arguments(stored, inputs)
        if not only_moves(self._layer.layer, params, states, kinds, _is_numbered):
            return None
        others = {name: array for name, array in stored.items() if name not in names}
        total = sum(sizes)

        def pack(numbers: np.ndarray) -> tuple[Entry, np.ndarray]:
            parts = np.split(numbers.astype(dtype), np.cumsum(sizes)[:-1])
            given = {name: part.reshape(stored[name].shape) for name, part in zip(names, parts, strict=True)}
            return self._compiled({name: given.get(name, array) for name, array in stored.items()}, inputs)

        up = np.arange(total, dtype=np.int64)
        entry, blob = pack(up + 1)
        other, reverse = pack(total - up)
        if other is not entry or blob.size % dtype.itemsize:
            return None
        first, second = (np.nan_to_num(b.view(dtype), posinf=0, neginf=0) for b in (blob, reverse))
        moved = (first >= 1) & (first <= total) & (first == np.rint(first)) & (first + second == total + 1)
        fixed = np.flatnonzero(~moved)
        index = np.where(moved, first - 1, 0).astype(np.int32)
        index[fixed] = total + np.arange(fixed.size)
        gather = _Gather(entry, names, blob.view(dtype)[fixed], index, others)
        trial = np.random.default_rng(0).standard_normal(total).astype(dtype)
        last, expected = pack(trial)
        parts = dict(zip(names, np.split(trial, np.cumsum(sizes)[:-1]), strict=True))
        return gather if last is entry and np.array_equal(gather.packed(parts), expected) else None


def _check_by_reference(layer: Layer, params: Tree, states: Tree, kinds: Sequence[Kind]) -> None:
    """Raises InvalidModelError if JAX does not compute a layer on such inputs, or gives nothing."""
    try:
        import jax
    except ModuleNotFoundError:  # the engine does not need it; then what its own operators check is all there is
        return

    def shapes(kinds: Sequence[Kind]) -> Any:
        """Those of the outputs for a batch of two."""
        given = [jax.ShapeDtypeStruct((2, *kind.shape), kind.dtype) for kind in kinds]
        with jax.enable_x64(True):
            return jax.eval_shape(lambda p, s, *x: layer.apply(p, s, *x)[0], params, states, *given)

    listed = ", ".join(f"{kind.dtype.name}[{', '.join(('batch', *map(str, kind.shape)))}]" for kind in kinds)
    try:
        found = shapes(kinds)
    except UnsupportedError:  # JAX cannot say without data; the engine may
        return
    except InvalidModelError as error:
        hint = ""
        if all(trees.is_float(kind.dtype) for kind in kinds):
            with contextlib.suppress(InvalidModelError, UnsupportedError):
                shapes([Kind(kind.shape, np.dtype(np.int64)) for kind in kinds])
                hint = '; row numbers need dtype="int64"'
        raise InvalidModelError(f"the layer does not take {listed} with these parameters{hint}: {error}") from error
    if any(0 in y.shape for y in jax.tree.leaves(found)):
        raise InvalidModelError(f"the layer gives an output without elements for {listed}")


def _is_numbered(array: Any) -> bool:
    """Whether an array's elements can be numbered."""
    return np.dtype(array.dtype).name in _NUMBERED and array.size > 0


def _key(stored: Stored, inputs: Sequence[Value]) -> Any:
    kinds = tuple((name, tuple(array.shape), np.dtype(array.dtype).str) for name, array in stored.items())
    return kinds, tuple(np.dtype(x.dtype).str for x in inputs)


def _same(others: Stored, stored: Stored) -> bool:
    return all(_same_bytes(stored[name], copy) for name, copy in others.items())


def _same_bytes(array: np.ndarray, copy: np.ndarray) -> bool:
    """Whether an array of the same shape and dtype has the same bytes as a copy in C order."""
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return not copy.nbytes or _memcmp(array.ctypes.data, copy.ctypes.data, copy.nbytes) == 0
