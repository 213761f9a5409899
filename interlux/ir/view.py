"""A model as a readable tree: modules, layers, shapes, counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from . import trees
from .foreign import Foreign
from .graph import Call, Graph, Node, graph_of
from .layer import Layer
from .layers.basic import Constant, Operator, Stored
from .layers.control import Control
from .model import Model
from .text import escaped

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

    lines = [
        f"{name}" + (f" (from {source})" if source else ""),
        f"  {amount(model.params, 'parameters')}, {amount(model.states, 'state values')}, {size / 1e6:.2f} MB",
    ]
    if model.signature is not None:
        lines += [f"  input   {spec}" for spec in model.signature.inputs]
        lines += [f"  output  {spec}" for spec in model.signature.outputs]
    lines += [f"  tied    {trees.name_of(alias)} = {trees.name_of(path)}" for alias, path in model.aliases.items()]
    lines += [f"  note    {note}" for note in model.notes]
    graph = graph_of(model.layer)
    rows = list(_graph_rows(model, graph) if graph is not None else _layer_rows(model.layer, model.params))
    width = min(max((len(left) for left, _ in rows), default=0), WIDTH)
    lines += [f"{left:<{width}}  {right}".rstrip() for left, right in rows]
    return "\n".join(escaped(line) for line in lines)


def _graph_rows(model: Model, graph: Graph) -> Iterator[tuple[str, str]]:
    def text(node: Node) -> tuple[str, str]:
        slots = [
            f"{slot} {list(np.shape(np.asarray(model.array(path))))}"
            for slot, path in (*node.params, *node.states)
            if slot != "seed"
        ]
        made = ", ".join(str(graph.values[o]) for o in node.outputs if o in graph.values)
        return brief(node.layer), "  ".join([*slots, f"-> {made}" if made else ""])

    def shown(item: Node | Call) -> bool:
        return isinstance(item, Call) or not isinstance(item.layer, Constant | Stored)

    def walk(items: tuple[Node | Call, ...], indent: str, parent: str) -> Iterator[tuple[str, str]]:
        visible = [item for item in items if shown(item)]
        for i, item in enumerate(visible):
            last = i == len(visible) - 1
            branch, deeper = indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  ")
            if isinstance(item, Node):
                left, right = text(item)
                yield branch + left, right
                inside = item.layer.graphs() if isinstance(item.layer, Control) else ()
                for k, (name, inner_graph) in enumerate(inside):
                    end = k == len(inside) - 1
                    yield deeper + ("└─ " if end else "├─ ") + f"{name}({', '.join(inner_graph.inputs)})", ""
                    yield from walk(inner_graph.nested(), deeper + ("   " if end else "│  "), parent)
                continue
            path = item.module.path
            label = path[len(parent) + 1 :] if parent and path.startswith(parent + ".") else path
            label += f" (call {item.module.number + 1})" if item.module.number else ""
            label += f": {item.module.module_class.rpartition('.')[2]}"
            inner = [b for b in item.body if shown(b)]
            if len(inner) == 1 and isinstance(inner[0], Node):  # a module that is one layer fits on one line
                left, right = text(inner[0])
                yield f"{branch}{label} = {left}", right
            else:
                yield branch + label, ""
                yield from walk(item.body, deeper, path)

    yield from walk(graph.nested(), "", "")


def _layer_rows(layer: Layer, params: trees.Tree, name: str = "", indent: str = "") -> Iterator[tuple[str, str]]:
    children = layer.children()
    label = type(layer).__name__ if children else brief(layer)
    shapes = "  ".join(f"{k} {list(np.shape(v))}" for k, v in params.items() if not isinstance(v, dict))
    yield indent + (f"{name}: " if name else "") + label, shapes
    inner = indent.replace("├─ ", "│  ").replace("└─ ", "   ")
    for i, (key, child) in enumerate(children):
        branch = inner + ("└─ " if i == len(children) - 1 else "├─ ")
        yield from _layer_rows(child, params.get(key, {}), key, branch)
