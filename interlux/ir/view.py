"""A model as a readable tree: modules, layers, shapes, counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from . import trees
from .foreign import Foreign
from .graph import ByMode, Graph, Node
from .layer import Composite, Layer, is_level
from .layers.basic import Constant, Operator, Stored
from .layers.containers import SkipConnection
from .layers.control import Control
from .model import Model
from .structure import CHAIN, NODE, SKIP, Part, arrays_of_child, parts_of
from .text import escaped

_ADD = Operator("Add")
WIDTH = 72  # of the tree's first column; a longer line pushes its second to the right


def brief(layer: Layer) -> str:
    """A layer with the fields that have no default, and those that differ from theirs."""
    if isinstance(layer, Control):
        plain = [
            f"{f.name}={value!r}"
            for f in dataclasses.fields(layer)
            if not isinstance(value := getattr(layer, f.name), Graph) and value != f.default
        ]
        return f"{type(layer).__name__}({', '.join(plain)})"
    if not dataclasses.is_dataclass(layer) or isinstance(layer, Operator | Constant | Foreign) or layer.children():
        return repr(layer)
    needed = {f.name: getattr(layer, f.name) for f in dataclasses.fields(layer) if f.default is dataclasses.MISSING}
    usual = type(layer)(**needed)
    changed = {
        f.name: getattr(layer, f.name)
        for f in dataclasses.fields(layer)
        if f.name not in needed and getattr(layer, f.name) != getattr(usual, f.name)
    }
    parts = [f"{v!r}" for v in needed.values()] + [f"{k}={v!r}" for k, v in changed.items()]
    return f"{type(layer).__name__}({', '.join(parts)})"


def render(model: Model) -> str:
    """The tree of a model as text: inputs and outputs, then every module with its layers, shapes and counts."""
    name = model.metadata.get("name", type(model.layer).__name__)
    source = model.metadata.get("source")
    size = trees.size_in_bytes(model.params) + trees.size_in_bytes(model.states)

    def amount(tree: trees.Tree, what: str) -> str:
        return f"{trees.count(tree):,} {what} in {len(list(trees.leaves(tree)))} arrays"

    layer = model.layer.evaluation if isinstance(model.layer, ByMode) else model.layer
    graph = layer if isinstance(layer, Graph) and not _is_nested(layer) else None
    form = "" if graph is None else _form(parts_of(graph))
    lines = [
        name + (f" = {form}" if form else "") + (f" (from {source})" if source else ""),
        f"  {amount(model.params, 'parameters')}, {amount(model.states, 'state values')}, {size / 1e6:.2f} MB",
    ]
    if model.signature is not None:
        lines += [f"  input   {spec}" for spec in model.signature.inputs]
        lines += [f"  output  {spec}" for spec in model.signature.outputs]
    lines += [f"  tied    {trees.name_of(alias)} = {trees.name_of(path)}" for alias, path in model.aliases.items()]
    lines += [f"  note    {note}" for note in model.notes]
    rows = list(_layer_rows(model, layer) if graph is None else _graph_rows(model, graph))
    width = min(max((len(left) for left, _ in rows), default=0), WIDTH)
    lines += [f"{left:<{width}}  {right}".rstrip() for left, right in rows]
    return "\n".join(escaped(line) for line in lines)


def _is_nested(graph: Graph) -> bool:
    return any(isinstance(node.layer, Composite) for node in graph.nodes)


def _graph_rows(model: Model, graph: Graph) -> Iterator[tuple[str, str]]:
    def text(node: Node) -> tuple[str, str]:
        slots = [
            f"{slot} {list(np.shape(np.asarray(model.array(path))))}"
            for slot, path in (*node.params, *node.states)
            if slot != "seed"
        ]
        made = ", ".join(str(graph.values[o]) for o in node.outputs if o in graph.values)
        return brief(node.layer), "  ".join([*slots, f"-> {made}" if made else ""])

    def rows(items: list[tuple[str, Part]], indent: str, parent: str) -> Iterator[tuple[str, str]]:
        for i, (label, part) in enumerate(items):
            last = i == len(items) - 1
            branch, deeper = indent + ("└─ " if last else "├─ ") + label, indent + ("   " if last else "│  ")
            path, inner = parent, _pieces(part)
            if part.call is not None:
                path = part.call.path
                name = path[len(parent) + 1 :] if parent and path.startswith(parent + ".") else path
                name += f" (call {part.call.number + 1})" if part.call.number else ""
                kind = part.call.module_class.rpartition(".")[2]
                branch += f"{name}: {kind}" if kind else name
                if len(inner) == 1 and inner[0][1].kind == NODE and inner[0][1].call is None:
                    part, branch = inner[0][1], f"{branch} = "  # a module that is one layer fits on one line
            if part.kind == NODE and part.node is not None:
                left, right = text(part.node)
                yield branch + left, right
                yield from inner_graphs(part.node, deeper, path)
                continue
            form = _form(part)
            yield branch + (f" = {form}" if form and part.call is not None else form), ""
            yield from rows(inner, deeper, path)

    def inner_graphs(node: Node, indent: str, parent: str) -> Iterator[tuple[str, str]]:
        inside = node.layer.graphs() if isinstance(node.layer, Control) else ()
        for i, (name, inner) in enumerate(inside):
            last = i == len(inside) - 1
            yield indent + ("└─ " if last else "├─ ") + f"{name}({', '.join(inner.inputs)})", ""
            yield from rows(_spliced(parts_of(inner)), indent + ("   " if last else "│  "), parent)

    yield from rows(_pieces(parts_of(graph)), "", "")


def _form(part: Part) -> str:
    """What a part is besides a graph."""
    if part.kind == SKIP and part.node is not None:
        return "SkipConnection" + ("" if part.node.layer == _ADD else f"({part.node.layer!r})")
    return "Chain" if part.kind == CHAIN else ""


def _pieces(part: Part) -> list[tuple[str, Part]]:
    """What is shown inside a part: a label in front, and the piece."""
    if part.kind == NODE:
        return [("", replace(part, call=None))]
    if part.kind == SKIP:
        body, *around = part.parts
        way = [piece for each in around for piece in _spliced(each)]
        return _spliced(body) + [("shortcut " + label, piece) for label, piece in way]
    return [piece for each in part.parts for piece in _spliced(each)]


def _spliced(part: Part) -> list[tuple[str, Part]]:
    """A part as it is shown: chains and graphs that are no module of their own by their pieces."""
    if part.kind == NODE and part.call is None and part.node is not None and isinstance(part.node.layer, Stored):
        return []
    if part.call is not None or part.kind in (NODE, SKIP):
        return [("", part)]
    return _pieces(part)


def _layer_rows(model: Model, layer: Layer) -> Iterator[tuple[str, str]]:
    def rows(
        layer: Layer, params: trees.Tree, states: trees.Tree, name: str, branch: str, deeper: str
    ) -> Iterator[tuple[str, str]]:
        children = [
            (place, "" if is_level(key) else key, child)
            for place, (key, child) in enumerate(layer.children())
            if not isinstance(child, Constant | Stored)
        ]
        arrays = {**params, **states}
        shapes = "  ".join(
            f"{key} {list(np.shape(leaf))}"
            for key, leaf in arrays.items()
            if not isinstance(leaf, dict) and key != "seed"
        )
        if isinstance(layer, Graph) and len(children) == 1:  # one layer, with its constants and where its arrays are
            place, own, only = children[0]
            yield from rows(only, *arrays_of_child(layer, place, params, states), name or own, branch, deeper)
            return
        label = brief(layer)
        if children:
            label, shapes = type(layer).__name__, ""
        if isinstance(layer, SkipConnection) and layer.connection != _ADD:
            label += f"({layer.connection!r})"
        yield branch + (f"{name}: " if name else "") + label, shapes
        for i, (place, key, child) in enumerate(children):
            last = i == len(children) - 1
            inner = arrays_of_child(layer, place, params, states)
            yield from rows(
                child, *inner, key, deeper + ("└─ " if last else "├─ "), deeper + ("   " if last else "│  ")
            )

    yield from rows(layer, model.params, model.states, "", "", "")
