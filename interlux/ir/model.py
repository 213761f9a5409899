"""The model: a layer, its parameters and its states, and the signature by which it is called."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as _replace
from typing import Any

import numpy as np

from . import trees
from .conditions import Condition
from .containers import OPTIONAL, OPTIONAL_SEQUENCE, SEQUENCE
from .dtypes import dtype_named
from .errors import InvalidModelError
from .graph import graph_of
from .layer import Layer
from .trees import Path, Tree

Shape = tuple[int | str | None, ...]
_PRIMES = (3, 5, 11, 17, 29, 41)  # sizes that stand for dynamic dimensions while shapes are found

# nested: int (index of a tensor) | {"tuple"|"list": [...]} | {"dict": {...}} | {"value": constant}; a named tuple is
# {"dict": {...}, "named": its class}
Structure = Any


def filled(structure: Structure, tensors: Sequence[Any]) -> Any:
    """A structure with tensors in place of their indices."""
    if isinstance(structure, int):
        return tensors[structure]
    if "value" in structure:
        return structure["value"]
    if "dict" in structure:
        fields = {key: filled(inner, tensors) for key, inner in structure["dict"].items()}
        return namedtuple(structure["named"], fields)(**fields) if "named" in structure else fields
    items = [filled(inner, tensors) for inner in structure.get("tuple", structure.get("list"))]
    return tuple(items) if "tuple" in structure else items


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: a tensor, or a container of tensors.

    Arguments:
        name: as callers know it.
        dtype: numpy's or ml_dtypes' name; `object` for texts. Of a container, that of its tensors.
        shape: sizes; a string is a named dynamic dimension (or an expression of those, in outputs), None is unknown.
            None as a whole if the rank is unknown.
        bounds: smallest and largest meaningful value of an integer input (row numbers of a table), if known.
        container: "" for a tensor; SEQUENCE (a list), OPTIONAL (None is allowed), OPTIONAL_SEQUENCE, or maps (dicts):
            `map from KEY` and `sequence of maps from KEY`.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None
    bounds: tuple[int, int] | None = None
    container: str = ""

    def __str__(self) -> str:
        sizes = "…" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        tensor = f"{self.dtype}[{sizes}]"
        return f"{self.name}: {f'{self.container}({tensor})' if self.container else tensor}"

    def holds(self, value: Any) -> list[Any]:
        """The arrays in a value of this input or output."""
        if value is None and self.container.startswith(OPTIONAL):
            return []
        if self.container in (SEQUENCE, OPTIONAL_SEQUENCE):
            if not isinstance(value, list | tuple):
                raise InvalidModelError(f"input {self.name!r} must be a list of arrays, not {type(value).__name__}")
            return list(value)
        return [value]


@dataclass(frozen=True)
class Dimension:
    """The range of a named dynamic dimension; `maximum` None is unbounded, `multiple_of` a divisibility that is
    needed."""

    minimum: int = 0
    maximum: int | None = None
    multiple_of: int = 1

    def check(self, size: int, what: str) -> None:
        if size < self.minimum or (self.maximum is not None and size > self.maximum):
            upper = "" if self.maximum is None else f"..{self.maximum}"
            raise InvalidModelError(f"{what} is {size}, must be in {self.minimum}{upper or ' or more'}")
        if size % self.multiple_of:
            raise InvalidModelError(f"{what} is {size}, must be a multiple of {self.multiple_of}")


@dataclass(frozen=True)
class Signature:
    """How a model is called.

    Arguments:
        inputs, outputs: the tensors in order.
        dims: the named dynamic dimensions with their ranges.
        in_structure: how positional and keyword arguments nest: {"args": [...], "kwargs": {...}} of structures; None if
            the arguments are just the inputs.
        out_structure: how the outputs nest in what the source returns; None if they are just the outputs.
        conditions: on the sizes of dims, beside their ranges.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dims: Mapping[str, Dimension] = field(default_factory=dict)
    in_structure: Structure = None
    out_structure: Structure = None
    conditions: tuple[Condition, ...] = ()

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The input arrays in order from a call's arguments, checked against names, dtypes, shapes and ranges; lists of
        arrays for sequences, None for optional inputs that are absent.

        Arguments come by position, by the source's own argument structure (nested tuples and dicts), or by the names
        of the inputs.
        """
        if self.in_structure is not None and not self._flat_call(args, kwargs):
            given = self._from_structure(args, kwargs)
        else:
            given = dict(zip((spec.name for spec in self.inputs), args, strict=False))
            if len(args) > len(self.inputs):
                raise InvalidModelError(
                    f"{len(args)} inputs given, the model takes {len(self.inputs)}: {self._names()}"
                )
            for name, value in kwargs.items():
                if name in given:
                    raise InvalidModelError(f"input {name!r} is given twice")
                given[name] = value
        unknown = sorted(given.keys() - {spec.name for spec in self.inputs})
        optional = [spec.name for spec in self.inputs if spec.container.startswith(OPTIONAL)]
        given = {**dict.fromkeys(optional), **given}
        missing = [spec.name for spec in self.inputs if spec.name not in given]
        if unknown or missing:
            what = f"unknown input {unknown[0]!r}" if unknown else f"input {missing[0]!r} is missing"
            raise InvalidModelError(f"{what}; the model takes {self._names()}")
        arrays = [_as_input(spec, given[spec.name]) for spec in self.inputs]
        self.check(arrays)
        return arrays

    def check(self, arrays: list[Any]) -> dict[str, int]:
        """Checks input arrays. Returns the sizes of the dynamic dimensions. Raises InvalidModelError naming the
        input."""
        sizes: dict[str, int] = {}
        origin: dict[str, str] = {}
        tensors = [(s, a) for s, value in zip(self.inputs, arrays, strict=True) for a in s.holds(value)]
        for spec, array in tensors:
            if array.dtype != dtype_named(spec.dtype):
                raise InvalidModelError(f"input {spec.name!r} must have dtype {spec.dtype}, not {array.dtype.name}")
            if spec.shape is None:
                continue
            if array.ndim != len(spec.shape):
                raise InvalidModelError(f"input {spec.name!r} must have shape {_show(spec.shape)}, not {array.shape}")
            for axis, (want, size) in enumerate(zip(spec.shape, array.shape, strict=True)):
                where = f"axis {axis} of input {spec.name!r}"
                if isinstance(want, int) and want != size:
                    raise InvalidModelError(
                        f"input {spec.name!r} must have shape {_show(spec.shape)}, not {array.shape}"
                    )
                if isinstance(want, str):
                    if sizes.setdefault(want, size) != size:
                        raise InvalidModelError(f"{where} is {size}, but {want} is {sizes[want]} on {origin[want]}")
                    origin.setdefault(want, where)
                    self.dims.get(want, Dimension()).check(size, f"{where} ({want})")
        for condition in self.conditions:
            if not self.allows(condition, sizes):
                given = ", ".join(f"{name} is {size}" for name, size in sizes.items())
                raise InvalidModelError(f"{given}: the model was traced where {condition.text}")
        return sizes

    @staticmethod
    def allows(condition: Condition, sizes: Mapping[str, int]) -> bool:
        """Whether a condition holds for sizes by dimension, some of which may be multiples ("2*batch")."""
        known = dict(sizes)
        for name, size in sizes.items():
            factor, star, symbol = name.partition("*")
            if star and factor.isdigit():
                known.setdefault(symbol, size // int(factor))
        return not condition.names() <= known.keys() or condition.holds(known)

    def _names(self) -> str:
        return ", ".join(map(str, self.inputs)) or "none"

    def _flat_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        if args:  # just the tensors, one after the other
            nested = any(isinstance(a, tuple | list | Mapping) or a is None for a in args)
            return not kwargs and not nested and len(args) == len(self.inputs)
        return kwargs.keys() <= {spec.name for spec in self.inputs}

    def _from_structure(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        given: dict[str, Any] = {}

        def walk(structure: Structure, value: Any, where: str) -> None:
            if isinstance(structure, int):
                given[self.inputs[structure].name] = value
            elif "value" in structure:
                if value is not None and (hasattr(value, "shape") or value != structure["value"]):
                    raise InvalidModelError(
                        f"{where} was {structure['value']!r} when the model was imported and is fixed"
                    )
            elif "dict" in structure:
                value = value._asdict() if hasattr(value, "_asdict") else value
                if not isinstance(value, Mapping) or value.keys() != structure["dict"].keys():
                    raise InvalidModelError(f"{where} must be a dict with keys {', '.join(structure['dict'])}")
                for key, inner in structure["dict"].items():
                    walk(inner, value[key], f"{where}[{key!r}]")
            else:
                items = structure.get("tuple", structure.get("list"))
                if not isinstance(value, tuple | list) or len(value) != len(items):
                    raise InvalidModelError(f"{where} must hold {len(items)} values")
                for i, (inner, item) in enumerate(zip(items, value, strict=True)):
                    walk(inner, item, f"{where}[{i}]")

        positional: dict[str, Structure] = self.in_structure["args"]
        by_name: dict[str, Structure] = self.in_structure["kwargs"]
        if len(args) > len(positional):
            raise InvalidModelError(f"{len(args)} positional arguments given, the model takes {len(positional)}")
        arguments = dict(zip(positional, args, strict=False))
        for name, value in kwargs.items():
            if name in arguments or (name not in positional and name not in by_name):
                raise InvalidModelError(f"unexpected argument {name!r}; the model takes {self._names()}")
            arguments[name] = value
        for name, structure in {**positional, **by_name}.items():
            if name in arguments:
                walk(structure, arguments[name], f"argument {name!r}")
        return given

    def nest_outputs(self, outputs: tuple[Any, ...]) -> Any:
        """The outputs in the structure that the source returns."""
        return outputs if self.out_structure is None else filled(self.out_structure, outputs)


def _as_input(spec: TensorSpec, value: Any) -> Any:
    """A value given for an input: an array, a list of arrays, or None."""
    if value is None and spec.container.startswith(OPTIONAL):
        return None
    if spec.container in (SEQUENCE, OPTIONAL_SEQUENCE):
        return [_as_array(spec.name, item) for item in spec.holds(value)]
    return _as_array(spec.name, value)


def _as_array(name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, tensors that require a gradient
        raise InvalidModelError(f"input {name!r} is no array: {str(error).splitlines()[0]}") from None
    if array.dtype.kind in "SU":
        return array.astype(str).astype(object)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _show(shape: tuple[int | str | None, ...]) -> str:
    return "(" + ", ".join("?" if d is None else str(d) for d in shape) + ("," if len(shape) == 1 else "") + ")"


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A layer with trained arrays and a signature; unpacks as `layer, params, states = model`.

    Arguments:
        layer: what is computed.
        params: the trainable arrays, a tree.
        states: all other arrays, a tree.
        signature: how it is called; None for a layer built by hand that was never given inputs.
        aliases: other names of stored arrays (tied weights): alias path -> path.
        metadata: where the model comes from: `source` (torch, onnx, …), `name`, and what weights need to go back.
        notes: what a user should know about the import, one sentence each.
    """

    layer: Layer
    params: Tree
    states: Tree
    signature: Signature | None = None
    aliases: Mapping[Path, Path] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        graph = graph_of(self.layer)
        if graph is None:
            return
        for node in graph.nodes:
            shapes = node.layer.param_shapes()
            for slot, path in (*node.params, *node.states):
                array = self.array(path)
                if array is None:
                    raise InvalidModelError(f"{trees.name_of(path)!r}, used by node {node.name!r}, is not stored")
                if slot in shapes and tuple(array.shape) != shapes[slot]:
                    raise InvalidModelError(
                        f"{trees.name_of(path)!r} has shape {tuple(array.shape)}, {node.layer} needs {shapes[slot]}"
                    )

    @classmethod
    def from_layer(
        cls, layer: Layer, params: Tree, states: Tree, inputs: Mapping[str, tuple[str, Shape]], name: str | None = None
    ) -> Model:
        """A model from a layer built by hand.

        Arguments:
            layer, params, states: as `setup` gives them.
            inputs: name -> (dtype, shape); a string in a shape is a named dynamic dimension.
            name: of the model.

        The outputs' dtypes and shapes are found by applying the layer to zeros of two sizes.
        """
        specs = tuple(TensorSpec(key, dtype, tuple(shape)) for key, (dtype, shape) in inputs.items())
        dims = list(dict.fromkeys(d for spec in specs for d in spec.shape or () if isinstance(d, str)))

        def outputs(offset: int) -> tuple[Any, ...]:
            sizes = {dim: _PRIMES[i % len(_PRIMES)] + offset for i, dim in enumerate(dims)}
            zeros = [
                np.zeros(
                    [sizes[d] if isinstance(d, str) else d or 1 for d in spec.shape or ()], dtype_named(spec.dtype)
                )
                for spec in specs
            ]
            y, _ = layer.apply(params, states, *zeros)
            return y if isinstance(y, tuple) else (y,)

        small, large = outputs(0), outputs(2)
        made = tuple(
            TensorSpec(
                "output" if len(small) == 1 else f"output_{i}",
                a.dtype.name,
                tuple(
                    m if m == n else next((d for j, d in enumerate(dims) if m == _PRIMES[j % len(_PRIMES)]), None)
                    for m, n in zip(a.shape, b.shape, strict=True)
                ),
            )
            for i, (a, b) in enumerate(zip(small, large, strict=True))
        )
        ranges = {dim: Dimension(1) for dim in dims}
        metadata = {"name": name or type(layer).__name__}
        return cls(layer, params, states, Signature(specs, made, ranges), metadata=metadata)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.layer, self.params, self.states))

    def array(self, path: Path) -> Any | None:
        """The stored array at a path or an alias of it, None if there is none."""
        path = self.aliases.get(path, path)
        for tree in (self.params, self.states):
            if (value := trees.find(tree, path)) is not None:
                return value
        return None

    def replace(self, params: Tree | None = None, states: Tree | None = None) -> Model:
        """The same model with other arrays, e.g. after training; they are copied to numpy.

        Arrays get their original dtype back (JAX shortens 64-bit types).
        Raises InvalidModelError if names or shapes differ from the present ones.
        """

        def adopt(old: Tree, new: Tree | None, what: str) -> Tree:
            if new is None:
                return old
            trees.check_same(old, new, what)

            def convert(path: Path, leaf: Any) -> np.ndarray:
                array, before = np.array(leaf), trees.find(old, path)
                if before is None or array.dtype == before.dtype:
                    return array
                if trees.is_float(array.dtype) and trees.is_float(before.dtype):
                    return array.astype(before.dtype)
                cast = array.astype(before.dtype)
                if not np.array_equal(cast, array):
                    raise InvalidModelError(f"{trees.name_of(path)} of {array.dtype} does not fit {before.dtype.name}")
                return cast

            return trees.map_with_path(convert, new)

        return _replace(
            self, params=adopt(self.params, params, "parameters"), states=adopt(self.states, states, "states")
        )

    def structured(self) -> Model:
        """The same model with the modules of its source as nested layers.

            layer, params, states = model.structured()
            layer["features"]                           # a Chain, of what was an nn.Sequential
            layer["layer1.0.conv1"], layer["layer1"][0]
            layer.replaced("features.1", ix.layers.gelu).apply(params, states, x)

        A module whose parts follow one another is a Chain, what goes around some layers and is added or joined to their
        result a SkipConnection, anything else a Graph of named layers. It computes what the flat graph does in the same
        order, with the same parameters and states, so that a trained tree of one fits the other. Layers that were built
        by hand are nested already and stay as they are.
        """
        from .structure import structured

        return structured(self)

    def part(self, path: str, call: int = 0) -> Model:
        """One module of the model as a model of its own.

            sub, params, states = model.part("layer1.0")

        Arguments:
            path: of the module in the source, as print(model) shows it; "" is the whole.
            call: which of its calls, from 0.

        Returns: a model with the parameters and states of the module under the names that they have in the module's
        own state_dict. Arrays that it uses and that are not its own (seeds of random numbers) keep their whole path.
        Inputs and outputs are the values that cross its border, in the order in which they are used and made.

        Raises InvalidModelError if the model has no such call.
        """
        from .structure import part_of

        return part_of(self, path, call)

    def require_signature(self) -> Signature:
        if self.signature is None:
            raise InvalidModelError(
                "the model has no signature: make it with ix.Model.from_layer(layer, params, states, inputs)"
            )
        return self.signature

    def __str__(self) -> str:
        from .view import render

        return render(self)

    def __repr__(self) -> str:
        name = self.metadata.get("name", type(self.layer).__name__)
        return f"<interlux.Model {name}: {trees.count(self.params)} parameters>"


def check_model(model: Any, taker: str) -> None:
    """Raises InvalidModelError unless this is a Model.

    Arguments:
        taker: what takes it, for the error: "compile".
    """
    if not isinstance(model, Model):
        raise InvalidModelError(
            f"{taker} takes a Model, not {type(model).__name__}; ix.from_torch, ix.from_onnx and ix.Model.from_layer "
            "make one"
        )
