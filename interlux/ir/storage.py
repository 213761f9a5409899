"""A model as a folder: model.json and two safetensors files. Same model, same bytes.

    model.json            {"format": "interlux", "version": 1, "layer": …, "signature": …, "arrays": …, …}
    params.safetensors    the parameters, by dotted name
    states.safetensors    the states

A reader MUST refuse a version above its own, an unknown layer, and arrays whose dtype or shape differs from the table
in model.json. Nothing in the folder is code; loading runs none.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from . import layers as _layers
from . import trees
from .conditions import Condition, from_lists
from .dtypes import dtype_named
from .errors import InvalidModelError, UnsafeInputError, UnsupportedError
from .foreign import Foreign
from .graph import ByMode, Graph, ModuleCall, Node, Unavailable, ValueInfo
from .layer import Layer
from .layers.basic import ArrayData
from .model import Dimension, Model, Signature, TensorSpec, check_model
from .trees import Path, Tree

FORMAT, VERSION = "interlux", 1
MAX_JSON_BYTES = 1 << 30

# dtypes that safetensors writes and reads with numpy; others are stored as unsigned integers of the same width
_NATIVE = frozenset(
    {"bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"}
    | {"float16", "float32", "float64", "bfloat16", "complex64"}
)
# fields that came after models had been saved without them
_LATER = {"Chain": frozenset({"names"}), "SkipConnection": frozenset({"shortcut", "shortcut_first", "names"})}


def layer_classes(extra: Iterable[type[Layer]] = ()) -> dict[str, type[Layer]]:
    """The layers that a saved model may name: those of interlux, and those given."""
    own = [value for value in vars(_layers).values() if isinstance(value, type) and issubclass(value, Layer)]
    return {c.__name__: c for c in (*own, ByMode, Unavailable, *extra)}


# --- layers as JSON


def _encode(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"float": repr(value)}
        case ArrayData(dtype=dtype, shape=shape, data=data):
            plain = value.array().reshape(-1).tolist() if dtype in ("bool", "int64", "int32") else data.hex()
            return {"array": dtype, "shape": list(shape), "data": plain}
        case Graph():
            return _encode_graph(value)
        case Foreign():
            raise UnsupportedError(f"{value!r} cannot be saved: it is code of its framework, and a folder holds none")
        case Layer():
            fields = {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return {"class": type(value).__name__, **fields}
        case tuple():
            return [_encode(item) for item in value]
    raise UnsupportedError(f"a layer's field of type {type(value).__name__} cannot be saved")


def _decode(value: Any, classes: Mapping[str, type[Layer]]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, classes) for item in value)
    if not isinstance(value, dict):
        return value
    if "class" not in value:  # a word that no field can have
        return _decode_value(value, classes)
    name = str(value["class"])
    if name not in classes:
        raise InvalidModelError(f"unknown layer {name!r}; a layer of your own is given as ix.load(path, layers=[…])")
    fields = {key: _decode(item, classes) for key, item in value.items() if key != "class"}
    cls = classes[name]
    known = {f.name for f in dataclasses.fields(cls)}
    needed = known - _LATER.get(name, frozenset())
    if not needed <= fields.keys() <= known:
        raise InvalidModelError(f"layer {name}: fields {sorted(fields)} are stored, {sorted(known)} are needed")
    if "layers" in fields:  # the containers take their layers as positional arguments
        first, names = [v for k, v in fields.items() if k not in ("layers", "names")], fields.get("names")
        return cls(*first, *fields["layers"], **({"names": names} if names else {}))
    return cls(**fields)


def _decode_value(value: dict[str, Any], classes: Mapping[str, type[Layer]]) -> Any:
    if "float" in value:
        return float(value["float"])
    if "array" in value:
        dtype, shape, data = dtype_named(value["array"]), tuple(value["shape"]), value["data"]
        raw = bytes.fromhex(data) if isinstance(data, str) else np.array(data, dtype).tobytes()
        if dtype == np.dtype(object):
            texts = ArrayData("object", shape, raw)
            texts.array()  # raises if it is damaged
            return texts
        if len(raw) != math.prod(shape) * dtype.itemsize:
            raise InvalidModelError(f"a constant of {dtype.name}{list(shape)} has {len(raw)} bytes")
        return ArrayData(dtype.name, shape, raw)
    if "graph" in value:
        return _decode_graph(value["graph"], classes)
    raise InvalidModelError(f"a layer's field holds {sorted(value)[:3]}")


def _encode_graph(graph: Graph) -> dict[str, Any]:
    calls = {call: i for i, call in enumerate(dict.fromkeys(c for node in graph.nodes for c in node.scope))}
    nodes = [
        {
            "name": node.name,
            "layer": _encode(node.layer),
            "inputs": list(node.inputs),
            "outputs": list(node.outputs),
            "params": [[slot, list(path)] for slot, path in node.params],
            "states": [[slot, list(path)] for slot, path in node.states],
            "scope": [calls[call] for call in node.scope],
            "source": node.source,
        }
        for node in graph.nodes
    ]
    return {
        "graph": {
            "inputs": list(graph.inputs),
            "outputs": list(graph.outputs),
            "calls": [[c.path, c.number, c.module_class] for c in calls],
            "nodes": nodes,
            "values": {name: [info.dtype, list(info.shape)] for name, info in graph.values.items()},
        }
    }


def _decode_graph(content: dict[str, Any], classes: Mapping[str, type[Layer]]) -> Graph:
    calls = [ModuleCall(path, number, name) for path, number, name in content["calls"]]
    nodes = tuple(
        Node(
            n["name"],
            _decode(n["layer"], classes),
            tuple(n["inputs"]),
            tuple(n["outputs"]),
            tuple((slot, tuple(path)) for slot, path in n["params"]),
            tuple((slot, tuple(path)) for slot, path in n["states"]),
            tuple(calls[i] for i in n["scope"]),
            n["source"],
        )
        for n in content["nodes"]
    )
    values = {name: ValueInfo(dtype, tuple(shape)) for name, (dtype, shape) in content["values"].items()}
    return Graph(tuple(content["inputs"]), tuple(content["outputs"]), nodes, values)


# --- signatures as JSON


def _encode_signature(signature: Signature) -> dict[str, Any]:
    def specs(tensors: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [
            {"name": t.name, "dtype": t.dtype, "shape": None if t.shape is None else list(t.shape)}
            | ({"bounds": list(t.bounds)} if t.bounds else {})
            | ({"container": t.container} if t.container else {})
            for t in tensors
        ]

    return {
        "inputs": specs(signature.inputs),
        "outputs": specs(signature.outputs),
        "dims": {k: [d.minimum, d.maximum, d.multiple_of] for k, d in signature.dims.items()},
        "in_structure": signature.in_structure,
        "out_structure": signature.out_structure,
    } | ({"conditions": [[c.text, c.tree] for c in signature.conditions]} if signature.conditions else {})


def _decode_signature(content: dict[str, Any]) -> Signature:
    def specs(items: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                t["name"],
                t["dtype"],
                None if t["shape"] is None else tuple(t["shape"]),
                tuple(t["bounds"]) if "bounds" in t else None,
                t.get("container", ""),
            )
            for t in items
        )

    return Signature(
        specs(content["inputs"]),
        specs(content["outputs"]),
        {name: Dimension(*dim) for name, dim in content["dims"].items()},
        content["in_structure"],
        content["out_structure"],
        tuple(Condition(str(text), from_lists(tree)) for text, tree in content.get("conditions", ())),
    )


# --- arrays


def _array_table(tree: Tree, what: str) -> tuple[dict[str, np.ndarray], list[list[Any]]]:
    """Arrays by dotted name as safetensors takes them, and the table of [path, dtype, shape]."""
    stored: dict[str, np.ndarray] = {}
    table = []
    for path, leaf in trees.leaves(tree):
        name, array = trees.name_of(path), np.ascontiguousarray(leaf).reshape(np.shape(leaf))
        if name in stored or name == "__metadata__":
            raise InvalidModelError(f"{what}: the name {name!r} cannot be saved, it is ambiguous or reserved")
        if array.dtype.kind in "OSU":
            raise UnsupportedError(f"{what} {name!r} of dtype {array.dtype} cannot be saved")
        table.append([list(path), array.dtype.name, list(array.shape)])
        stored[name] = array if array.dtype.name in _NATIVE else array.view(f"u{array.dtype.itemsize}")
    return stored, table


def _read_arrays(file: FilePath, table: list[list[Any]]) -> Tree:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(str(file))
    except (SafetensorError, OSError, KeyError, AttributeError) as error:
        raise InvalidModelError(f"{file} cannot be read as safetensors: {error}") from None

    def leaf(path: list[str], dtype_name: str, shape: list[int]) -> tuple[Path, np.ndarray]:
        name, dtype = trees.name_of(tuple(path)), dtype_named(dtype_name)
        if name not in arrays:
            raise InvalidModelError(f"{file.name} lacks the array {name!r}")
        array = arrays.pop(name)
        if dtype.name not in _NATIVE and array.dtype == np.dtype(f"u{dtype.itemsize}"):
            array = array.view(dtype)
        if array.dtype != dtype or list(array.shape) != shape:
            raise InvalidModelError(
                f"{file.name}: {name!r} is {array.dtype.name}{list(array.shape)}, model.json says {dtype_name}{shape}"
            )
        return tuple(path), array

    tree = trees.from_leaves([leaf(*row) for row in table])
    if arrays:
        raise InvalidModelError(
            f"{file.name} holds arrays that model.json does not name: {', '.join(sorted(arrays)[:5])}"
        )
    return tree


# --- folders


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Saves a model as a folder, all of it or nothing.

    Arguments:
        model: any model whose layers are interlux's own (or are given to `load` again).
        path: the folder; an earlier saved model there is replaced, anything else is refused.
    """
    import shutil
    import tempfile

    from safetensors.numpy import save_file

    check_model(model, "save")
    target = FilePath(path)
    if target.exists() and not (target / "model.json").is_file() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidModelError(f"{target} exists and is not a saved model; choose another folder or remove it")
    params, params_table = _array_table(model.params, "parameter")
    states, states_table = _array_table(model.states, "state")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "layer": _encode(model.layer),
        "signature": None if model.signature is None else _encode_signature(model.signature),
        "arrays": {"params": params_table, "states": states_table},
        "aliases": [[list(a), list(p)] for a, p in model.aliases.items()],
        "metadata": model.metadata,
        "notes": list(model.notes),
    }
    try:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidModelError(f"the model's metadata or signature cannot be saved as JSON: {error}") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = FilePath(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        (temporary / "model.json").write_text(text + "\n", encoding="utf-8")
        save_file(params, str(temporary / "params.safetensors"))
        save_file(states, str(temporary / "states.safetensors"))
        temporary.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load(path: str | os.PathLike[str], layers: Iterable[type[Layer]] = ()) -> Model:
    """Loads a saved model.

    Arguments:
        path: the folder that `save` made.
        layers: your own layer classes that the model uses, by class name.

    Raises InvalidModelError if the folder is not a model of a version that this interlux reads, UnsafeInputError if a
    file in it is a link.
    """
    folder = FilePath(path)
    description = folder / "model.json"
    if not description.is_file():
        raise InvalidModelError(f"{folder} is not a saved model: it has no model.json")
    for file in (description, folder / "params.safetensors", folder / "states.safetensors"):
        if file.is_symlink():
            raise UnsafeInputError(f"{file} is a link; a model's files must be regular files in its folder")
    if description.stat().st_size > MAX_JSON_BYTES:
        raise UnsafeInputError(f"{description} has {description.stat().st_size} bytes, more than {MAX_JSON_BYTES}")
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(f"{description} is not valid JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InvalidModelError(f"{description} does not describe an interlux model")
    version = content.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise InvalidModelError(
            f"{folder} was written in format {version!r} by a newer interlux; this one reads up to {VERSION}: "
            "upgrade interlux"
        )
    try:
        layer = _decode(content["layer"], layer_classes(layers))
        signature = None if content["signature"] is None else _decode_signature(content["signature"])
        params = _read_arrays(folder / "params.safetensors", content["arrays"]["params"])
        states = _read_arrays(folder / "states.safetensors", content["arrays"]["states"])
        aliases = {tuple(a): tuple(p) for a, p in content["aliases"]}
        return Model(layer, params, states, signature, aliases, content["metadata"], tuple(content["notes"]))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        if isinstance(error, InvalidModelError):
            raise
        raise InvalidModelError(f"{description} does not follow the format: {type(error).__name__} {error}") from None
