"""Compiled models kept whole: found by what they are, before any code is generated for them.

    native = saved(key_of_layer(target, layer, params, states, kinds), make)

Generating code takes tens of milliseconds and compiling it a hundred; the hash of a small model takes a tenth of one,
and what belongs to it on disk is ready after one more.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import struct
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import trees
from ...ir.dtypes import dtype_named
from ...ir.foreign import Kind
from ...ir.graph import Node
from ...ir.layer import Layer
from ...ir.trees import Tree
from .cache import ObjectCache, key_of
from .entry import Native, measured
from .llvm import Library, load
from .target import Target

_IGNORED: dict[Any, tuple[str, ...]] = {Node: ("scope", "source")}  # fields that only errors quote
_libraries: weakref.WeakValueDictionary[bytes, Library] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Built:
    """What compiling a model gives, before it is loaded.

    Arguments:
        object: an object file with the function `run`.
        inputs, outputs, parameters, arena, grain, arranged: see `entry.Native`.
    """

    object: bytes
    inputs: tuple[Kind, ...]
    outputs: tuple[Kind, ...]
    parameters: np.ndarray
    arena: int
    grain: int
    arranged: tuple[tuple[int, ...] | None, ...] = ()


def loaded(built: Built, nanoseconds: float | None = None) -> Native:
    """The native function of a compiled model; the same code is in memory once."""
    key = hashlib.sha256(built.object).digest()
    library = _libraries.get(key)
    if library is None:
        library = _libraries[key] = load(built.object, ["run"])
    return Native(
        library.address("run"), built.inputs, built.outputs, built.parameters, built.arena, built.grain, nanoseconds,
        key=key, owner=library, arranged=built.arranged,
    )  # fmt: skip


def saved(key: bytes | None, make: Callable[[], Built], objects: ObjectCache | None = None) -> Native:
    """The native function of a key: from disk, or made and kept there.

    Arguments:
        key: from `key_of_layer`; None: it is made each time.
        make: compiles the model.
        objects: where it is kept; the user's cache by default.
    """
    if key is None:
        return loaded(make())
    objects = ObjectCache() if objects is None else objects
    found = objects.get(key)
    if found is not None:
        built = _unpacked(found.data, found.facts)
        return loaded(built, found.facts["nanoseconds"])
    built = make()
    native = loaded(built)
    native = dataclasses.replace(native, nanoseconds=measured(native))
    code = built.object
    padding = bytes(-len(code) % 64)  # parameters are used where they are read
    facts = {
        "code": len(code),
        "inputs": [(list(kind.shape), kind.dtype.name) for kind in built.inputs],
        "outputs": [(list(kind.shape), kind.dtype.name) for kind in built.outputs],
        "arena": built.arena,
        "grain": built.grain,
        "arranged": [None if shape is None else list(shape) for shape in built.arranged],
        "nanoseconds": native.nanoseconds,
    }
    objects.put(key, code + padding + built.parameters.tobytes(), facts)
    return native


def _unpacked(raw: np.ndarray, facts: Mapping[str, Any]) -> Built:
    inputs, outputs = (
        tuple(Kind(tuple(shape), dtype_named(name)) for shape, name in facts[port]) for port in ("inputs", "outputs")
    )
    code = facts["code"]
    parameters = raw[code + -code % 64 :]
    arranged = tuple(None if shape is None else tuple(shape) for shape in facts["arranged"])
    return Built(raw[:code].tobytes(), inputs, outputs, parameters, facts["arena"], facts["grain"], arranged)


def key_of_layer(
    target: Target, layer: Layer, params: Tree, states: Tree, inputs: Sequence[Kind], *options: object
) -> bytes | None:
    """The key of a compiled layer with its arrays; None if the layer holds something that cannot be compared.

    Arguments:
        inputs: shapes and dtypes that it is compiled for.
        options: whatever else the code follows from; numbers, texts and tuples of them.
    """
    described = bytearray()
    try:
        _describe(layer, described)
        for kind in inputs:
            _describe((kind.shape, kind.dtype.name), described)
        _describe(options, described)
    except TypeError:
        return None
    digest = hashlib.sha256(described)
    for name, tree in (("params", params), ("states", states)):
        digest.update(name.encode())
        for path, leaf in trees.leaves(tree):
            array = np.ascontiguousarray(leaf)
            if array.dtype.hasobject:
                return None
            digest.update(f"{path!r} {array.dtype.str} {np.shape(leaf)};".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
    return key_of(target, "layer", digest.digest())


def _describe(value: Any, into: bytearray) -> None:
    """Appends bytes that differ for values that compile differently (a list is as good as a tuple).

    Raises TypeError for what it does not know.
    """
    kind: Any = type(value)
    if value is None or kind in _PLAIN:
        raw = f"{kind.__name__} {value!r}".encode()
        into += struct.pack("<q", len(raw)) + raw
    elif kind is tuple or kind is list:
        into += b"tuple" + struct.pack("<q", len(value))
        for item in value:
            _describe(item, into)
    elif kind is float:
        into += b"float" + struct.pack("<d", value)
    elif kind is bytes:
        into += b"bytes" + struct.pack("<q", len(value)) + value
    elif isinstance(value, Mapping):
        into += b"dict" + struct.pack("<q", len(value))
        for pair in value.items():
            _describe(pair, into)
    elif isinstance(value, np.dtype):
        _describe(("dtype", value.str), into)
    else:
        name, fields = _fields_of(kind)
        into += name
        for field in fields:
            _describe(getattr(value, field), into)


_PLAIN = frozenset((bool, int, str))


@functools.cache
def _fields_of(kind: type) -> tuple[bytes, tuple[str, ...]]:
    """A class's name as bytes, and the fields that count. Raises TypeError for a class that is not interlux's own."""
    full = f"{kind.__module__}.{kind.__qualname__}"
    if not dataclasses.is_dataclass(kind) or not kind.__module__.startswith("interlux."):
        raise TypeError(f"{full} cannot be compared: its name does not say what code it is")
    ignored = _IGNORED.get(kind, ())
    raw = full.encode()
    names = tuple(field.name for field in dataclasses.fields(kind) if field.name not in ignored)
    return b"class" + struct.pack("<q", len(raw)) + raw, names
