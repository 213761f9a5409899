"""Which module call of the original network a node came from.

Written into a node's metadata by interlux and by torch.onnx; else guessed from its name ("/layer1/0/conv/Conv").
"""

from __future__ import annotations

import ast
import json
from typing import Any

import onnx

from ...ir.graph import ModuleCall

MAX_TEXT = 20_000  # characters of a scope's text that are parsed
MAX_DEPTH = 64
# What runtime assertions of torch.export are entered under; no module of the network.
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"


def scope_of(node: onnx.NodeProto) -> tuple[ModuleCall, ...]:
    """The module calls around a node, outermost first; the whole network itself is left out."""
    properties = {entry.key: entry.value for entry in node.metadata_props}
    if "interlux.scope" in properties:
        return _from_interlux(properties["interlux.scope"])
    if "pkg.torch.onnx.name_scopes" in properties:
        return _from_torch(
            properties["pkg.torch.onnx.name_scopes"], properties.get("pkg.torch.onnx.class_hierarchy", "")
        )
    if "interlux.source" in properties:
        return ()  # interlux writes both, or a node outside all modules
    return _from_name(node.name)


def source_of(node: onnx.NodeProto) -> str:
    """The source's own words for a node: what interlux kept of an earlier source, else its operator and name."""
    kept = next((entry.value for entry in node.metadata_props if entry.key == "interlux.source"), "")
    return kept or f"{node.op_type} {node.name}".strip()


def _from_interlux(text: str) -> tuple[ModuleCall, ...]:
    try:
        calls = json.loads(text) if len(text) <= MAX_TEXT else []
    except (ValueError, RecursionError):
        return ()
    if not isinstance(calls, list) or len(calls) > MAX_DEPTH:
        return ()
    found = []
    for call in calls:
        match call:
            case [str(path), int(number), str(module_class)] if not isinstance(number, bool):
                found.append(ModuleCall(path, number, module_class))
            case _:
                return ()
    return tuple(found)


def _from_torch(scopes: str, classes: str) -> tuple[ModuleCall, ...]:
    """Two lists: paths of the modules and then the operator, and their classes."""
    paths, names = _list(scopes), _list(classes)
    if len(names) != len(paths):
        names = [""] * len(paths)
    pairs = list(zip(paths, names, strict=True))[:-1]  # the last entry is the operator
    return tuple(ModuleCall(path, 0, name.rpartition(".")[2]) for path, name in pairs if path and path != _NO_MODULE)


def _list(text: str) -> list[str]:
    try:
        value: Any = ast.literal_eval(text) if len(text) <= MAX_TEXT else []
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return []
    if not isinstance(value, list) or len(value) > MAX_DEPTH or not all(isinstance(item, str) for item in value):
        return []
    return value


def _from_name(name: str) -> tuple[ModuleCall, ...]:
    """The parts of a name before the operator. torch's older exporter writes a child of a container with the
    container's path in front ("/layer1/layer1.0/conv/Conv"); interlux writes single keys ("/layer1/0/conv/Conv")."""
    if not name.startswith("/") or len(name) > MAX_TEXT:
        return ()
    parts = [part for part in name.split("/")[:-1] if part]
    if len(parts) > MAX_DEPTH:
        return ()
    calls: list[ModuleCall] = []
    for i, part in enumerate(parts):
        path = calls[-1].path if calls else ""
        if i and part.startswith(parts[i - 1] + "."):
            path = path.removesuffix(parts[i - 1]) + part
        else:
            path = f"{path}.{part}" if path else part
        calls.append(ModuleCall(path, 0, ""))
    return tuple(calls)
