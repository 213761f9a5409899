"""The structure of a flat graph: which modules follow one another, which are residual blocks, what is left a graph.

Two steps. `parts_of` reads a graph's scopes and values and describes it as nested parts; nothing is computed, and the
view prints it. `nested` builds the layers of such a description: Chain, SkipConnection, and Graph for the rest. They
compute what the flat graph does, in the same order, from the same trees.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from . import trees
from .errors import InvalidModelError
from .graph import ByMode, Graph, ModuleCall, Node, Unavailable
from .layer import Composite, Layer
from .layers.basic import Constant, Operator, Stored
from .layers.containers import Chain, SkipConnection
from .model import Dimension, Model, Signature, TensorSpec
from .trees import Path

NODE, CHAIN, SKIP, GRAPH = "node", "chain", "skip", "graph"
JOINS = ("Add", "Concat")  # what joins a residual block with its shortcut
MAINS = 16  # inputs of a module that are tried as the one that goes through it


@dataclass(frozen=True, eq=False)
class Part:
    """A piece of a graph: a node, or several pieces of one module or within one.

    Arguments:
        kind: NODE; CHAIN (each piece feeds the next one, and nothing else); SKIP (the first piece, and perhaps a second
            one on the way around, joined by `node`); GRAPH (anything else).
        inputs: the values that it reads, without constants and stored arrays, each once.
        outputs: the values that others read.
        parts: the pieces, in the order in which they are computed.
        node: of NODE and SKIP.
        call: the module call whose whole body this is; None for a piece within a module.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: tuple[Part, ...] = ()
    node: Node | None = None
    call: ModuleCall | None = None

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes in the order in which they are computed."""
        own = () if self.node is None else (self.node,)
        return (*(node for part in self.parts for node in part.nodes), *own)

    @cached_property
    def paths(self) -> frozenset[Path]:
        """The arrays that its nodes are bound to."""
        return frozenset(path for node in self.nodes for _, path in (*node.params, *node.states))


def written_paths(graph: Graph) -> set[Path]:
    """The states that nodes of a graph may write."""
    return {path for node in graph.nodes if not isinstance(node.layer, Stored) for _, path in node.states}


def free_nodes(graph: Graph) -> dict[str, Node]:
    """The constants of a graph and its stored arrays that nothing writes, by the value that they make."""
    written = written_paths(graph)
    return {
        node.outputs[0]: node
        for node in graph.nodes
        if isinstance(node.layer, Constant)
        or (isinstance(node.layer, Stored) and not any(p in written for _, p in (*node.params, *node.states)))
    }


def _hoisted(graph: Graph, nodes: list[Node], free: Mapping[str, Node]) -> list[Node]:
    """The nodes, with those in front of all modules that compute from the sizes of the graph's inputs what several
    modules read: a size belongs to the module that happens to need it first only because it is computed once."""
    sizes: dict[str | None, Node] = {}
    needed: dict[str, Node] = {}

    def hoist(node: Node) -> None:
        if node.name not in needed:
            needed[node.name] = replace(node, scope=())
            for value in node.inputs:
                if value in sizes:
                    hoist(sizes[value])

    for node in nodes:
        for value in node.inputs:
            if value in sizes and node.scope[: len(sizes[value].scope)] != sizes[value].scope:
                hoist(sizes[value])
        if not isinstance(node.layer, Operator):
            continue
        is_size = node.layer.op_type == "Shape" and node.inputs[0] in graph.inputs
        derived = any(v in sizes for v in node.inputs) and all(v in sizes or v in free or not v for v in node.inputs)
        if is_size or derived:
            sizes.update(dict.fromkeys(node.outputs, node))
    if not needed:
        return nodes
    first = [needed[node.name] for node in nodes if node.name in needed]
    return first + [node for node in nodes if node.name not in needed]


def parts_of(graph: Graph) -> Part:
    """The description of a graph; the part of the whole."""
    return _Reader(graph).whole()


class _Reader:
    def __init__(self, graph: Graph):
        self.graph = graph
        self.free = free_nodes(graph)
        self.written = written_paths(graph)
        self.nodes = _hoisted(
            graph, [n for n in graph.nodes if not (n.outputs and n.outputs[0] in self.free)], self.free
        )
        self.last_use: dict[str, int] = {}
        for i, node in enumerate(self.nodes):
            self.last_use.update((value, i) for value in node.inputs if value is not None)
        self.last_use.update(dict.fromkeys(graph.outputs, len(self.nodes)))

    def whole(self) -> Part:
        return _body(self._arranged(self._items(0, len(self.nodes), 0), self.graph.inputs, self.graph.outputs))

    def _items(self, start: int, stop: int, depth: int) -> list[Part]:
        """The nodes of a range, those of one call of a module together."""
        items = []
        i = start
        while i < stop:
            scope = self.nodes[i].scope
            call = scope[depth] if len(scope) > depth else None
            end = i + 1
            while call is not None and end < stop and self.nodes[end].scope[depth : depth + 1] == (call,):
                end += 1
            items.append(self._node(i) if call is None else self._call(call, i, end, depth))
            i = end
        return items

    def _node(self, i: int) -> Part:
        node = self.nodes[i]
        inputs = dict.fromkeys(value for value in node.inputs if value is not None and value not in self.free)
        outputs = tuple(value for value in node.outputs if self.last_use.get(value, -1) > i)
        return Part(NODE, tuple(inputs), outputs, node=node)

    def _call(self, call: ModuleCall, start: int, stop: int, depth: int) -> Part:
        items = self._items(start, stop, depth + 1)
        outputs = [v for item in items for v in item.outputs if self.last_use[v] >= stop]
        return replace(_body(self._arranged(items, _reads(items), tuple(outputs))), call=call)

    def _arranged(self, items: Sequence[Part], inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Part:
        """Items as one part: a single one, a chain, a residual block, or a graph."""
        if len(items) == 1 and (items[0].inputs, items[0].outputs) == (inputs, outputs):
            return items[0]
        if len(outputs) == 1:
            flows = [self._flow(items, main, inputs, outputs[0]) for main in inputs[:MAINS]]
            if found := [flow for flow in flows if flow is not None]:
                return max(found, key=lambda flow: sum(part.kind == SKIP for part in flow.parts))
        return Part(GRAPH, inputs, outputs, tuple(items))

    def _flow(self, items: Sequence[Part], main: str, inputs: tuple[str, ...], output: str) -> Part | None:
        """The items cut wherever a single value goes on that is computed from `main`; None if that says nothing."""
        flowing = {main}
        for item in items:
            if not flowing.isdisjoint(item.inputs):
                flowing.update(item.outputs)
        stream = [item for item in items if not flowing.isdisjoint(item.inputs)]
        if output == main or output not in flowing:
            return None
        segments = self._cut(stream, main, output)
        aside = self._settled(items, stream, segments, output)
        order = {id(item): i for i, item in enumerate(items)}
        for segment in segments:
            segment.sort(key=lambda item: order[id(item)])
        computed = [*aside, *(item for segment in segments for item in segment)]
        if not self._in_order(items, computed):
            return None
        parts = []
        start = main
        last = {v: i for i, segment in enumerate(segments) for item in segment for v in item.inputs}
        last[output] = len(segments)
        for i, segment in enumerate(segments):
            end = next(v for item in segment for v in item.outputs if v in flowing and last.get(v, -1) > i)
            parts.append(self._segment(segment, (start, *(v for v in _reads(segment) if v != start)), end))
            start = end
        if not aside and inputs == (main,) and all(part.inputs == part_in for part, part_in in _links(parts, main)):
            return parts[0] if len(parts) == 1 else Part(CHAIN, inputs, (output,), tuple(parts))
        if all(part.kind != SKIP or part.call is not None for part in parts):
            return None
        pieces = [p for part in parts for p in (part.parts if part.kind == GRAPH and part.call is None else (part,))]
        return Part(GRAPH, inputs, (output,), (*aside, *pieces))

    @staticmethod
    def _cut(stream: Sequence[Part], main: str, output: str) -> list[list[Part]]:
        last = {v: k for k, item in enumerate(stream) for v in item.inputs}
        last[output] = len(stream)
        live = {main}
        segments: list[list[Part]] = [[]]
        for k, item in enumerate(stream):
            segments[-1].append(item)
            live = {v for v in (*live, *item.outputs) if last.get(v, -1) > k}
            if len(live) == 1 and live <= set(item.outputs) and k + 1 < len(stream) and output not in live:
                segments.append([])
        return segments

    @staticmethod
    def _settled(items: Sequence[Part], stream: Sequence[Part], segments: list[list[Part]], output: str) -> list[Part]:
        """Puts items that don't depend on the stream where they are read. Returns those read in several places."""
        home = {id(item): i for i, segment in enumerate(segments) for item in segment}
        in_stream = {id(item) for item in stream}
        readers: dict[str, set[int]] = {}
        aside: list[Part] = []
        for item in reversed(items):
            if id(item) not in in_stream:
                places = {place for value in item.outputs for place in readers.get(value, {-1})}
                place = places.pop() if len(places) == 1 else -1
                home[id(item)] = place
                if place < 0:
                    aside.insert(0, item)
                else:
                    segments[place].append(item)
            for value in item.inputs:
                readers.setdefault(value, set()).add(home[id(item)])
        return aside

    def _segment(self, items: Sequence[Part], inputs: tuple[str, ...], output: str) -> Part:
        if len(items) == 1 and (items[0].inputs, items[0].outputs) == (inputs, (output,)):
            return items[0]
        return self._residual(items, inputs, output) or Part(GRAPH, inputs, (output,), tuple(items))

    def _is_weighted(self, item: Part) -> bool:
        """Whether an item has parameters, or reads some; sums within a formula are no residual blocks."""
        stored = (self.free[v] for node in item.nodes for v in node.inputs if v in self.free)
        return any(node.params for node in (*item.nodes, *stored))

    def _in_order(self, items: Sequence[Part], computed: Sequence[Part]) -> bool:
        """Whether every state is read and written in the same order, e.g. the seed of random numbers."""

        def users(parts: Sequence[Part]) -> dict[Path, list[int]]:
            found: dict[Path, list[int]] = {}
            for part in parts:
                for path in part.paths & self.written:
                    found.setdefault(path, []).append(id(part))
            return found

        return users(items) == users(computed)

    def _residual(self, items: Sequence[Part], inputs: tuple[str, ...], output: str) -> Part | None:
        """Items that end by joining what weights made of their first input with the input, or with a shorter way."""
        *rest, last = items
        node = last.node
        if last.kind != NODE or last.call is not None or node is None or not isinstance(node.layer, Operator):
            return None
        if node.layer.op_type not in JOINS or node.outputs != (output,) or len(node.inputs) != 2:
            return None
        ways = [_ancestors(rest, value) for value in last.inputs]
        start = inputs[0]
        if len(ways) != 2 or sum(map(len, ways)) != len(rest) or {*map(id, ways[0])} & {*map(id, ways[1])}:
            return None
        around = min((0, 1), key=lambda k: len([n for item in ways[k] for n in item.nodes]))
        body, shortcut = ways[1 - around], ways[around]
        if start not in _reads(body) or not any(self._is_weighted(item) for item in body):
            return None
        reads = (start, *(v for v in _reads(body) if v != start))
        if set(reads) != set(inputs) or not self._in_order(rest, [*body, *shortcut]):
            return None
        if shortcut:
            if _reads(shortcut) != (start,) or sum(len(i.nodes) for i in shortcut) >= sum(len(i.nodes) for i in body):
                return None
        elif last.inputs[around] != start:
            return None
        made = [self._arranged(body, inputs, (last.inputs[1 - around],))]
        if shortcut:
            made.append(self._arranged(shortcut, (start,), (last.inputs[around],)))
        return Part(SKIP, inputs, (output,), tuple(made), node)


def _body(content: Part) -> Part:
    """The content of a module; one that only calls another is a chain of one."""
    if content.call is None:
        return content
    return Part(CHAIN, content.inputs, content.outputs, (content,))


def _reads(items: Iterable[Part]) -> tuple[str, ...]:
    """The values that items read and don't make, in the order of their first use."""
    made: set[str] = set()
    reads: dict[str, None] = {}
    for item in items:
        reads.update(dict.fromkeys(value for value in item.inputs if value not in made))
        made.update(item.outputs)
    return tuple(reads)


def _links(parts: Sequence[Part], start: str) -> Iterator[tuple[Part, tuple[str, ...]]]:
    """Each part with what it reads if the parts form a chain."""
    for part in parts:
        yield part, (start,)
        start = part.outputs[0]


def _ancestors(items: Sequence[Part], value: str) -> list[Part]:
    """The items that a value is computed from, in their order."""
    wanted = {value}
    found: list[Part] = []
    for item in reversed(items):
        if not wanted.isdisjoint(item.outputs):
            wanted.update(item.inputs)
            found.insert(0, item)
    return found


# --- layers


class _Names:
    """How the arrays of a model are called within one of its modules."""

    def __init__(self, model: Model):
        self.model = model
        self.params = {path for path, _ in trees.leaves(model.params)}
        self._other: dict[Path, list[Path]] = {}
        for alias, path in model.aliases.items():
            self._other.setdefault(path, []).append(alias)
        self._known = [*self.params, *(path for path, _ in trees.leaves(model.states)), *model.aliases]
        self._keys: dict[Path, set[str]] = {}

    def within(self, module: Path, path: Path) -> Path:
        """An array's path from a module: its own name there, or the whole path of one that is not the module's."""
        own = next((p for p in (path, *self._other.get(path, ())) if p[: len(module)] == module != p), None)
        if own is not None:
            return own[len(module) :]
        if module not in self._keys:
            size = len(module)
            self._keys[module] = {p[size] for p in self._known if p[:size] == module and len(p) > size}
        return path if path[0] not in self._keys[module] else ("(model)", *path)

    def is_param(self, path: Path) -> bool:
        return path in self.params


class _Writer:
    """Makes the layers of parts. The arrays of a layer are named from its module on; `module` is the one around it."""

    def __init__(self, graph: Graph, names: _Names):
        self.values = graph.values
        self.names = names
        self.free = free_nodes(graph)

    def content(self, part: Part, module: Path) -> Layer:
        if part.kind == CHAIN:
            children = [self.child(p, module) for p in part.parts]
            modules = {name for p, (name, _) in zip(part.parts, children, strict=True) if p.call is not None}
            names: list[str] = []
            for p, (name, _) in zip(part.parts, children, strict=True):
                taken = name and p.call is None and (name in modules or name in names)
                names.append(f"{name} (operator {len(names)})" if taken else name)
            return Chain(*(layer for _, layer in children), names=names)
        if part.kind == SKIP:
            return self._skip(part, module)
        if part.kind == NODE and part.node is not None and self._is_plain(part, module):
            return part.node.layer
        inner = part.parts if part.kind == GRAPH else (replace(part, call=None),)
        return self.graph(inner, part.inputs, part.outputs, module)

    def _skip(self, part: Part, module: Path) -> Layer:
        assert part.node is not None
        assert isinstance(part.node.layer, Operator)
        pieces = [self.child(p, module, part.inputs if i == 0 else part.inputs[:1]) for i, p in enumerate(part.parts)]
        (first, body), (second, shortcut) = (*pieces, ("shortcut", None))[:2]
        shortcut_first = part.node.inputs[1] == part.parts[0].outputs[0]
        return SkipConnection(body, part.node.layer, shortcut, shortcut_first, (first, second))  # type: ignore[arg-type]

    def child(self, part: Part, module: Path, inputs: tuple[str, ...] | None = None) -> tuple[str, Layer]:
        """A part as the child of a container: the name of its branch, and its layer."""
        inputs = part.inputs if inputs is None else inputs
        if part.call is None:
            if part.kind == NODE and part.node is not None and not self._paths(part.nodes):
                return part.node.name.replace(".", "_"), self.content(part, module)
            return "", self.content(part, module)
        own = trees.path_of(part.call.path)
        name = own[len(module) :]
        within = [(self.names.within(module, path), self.names.within(own, path)) for path in self._paths(part.nodes)]
        if own[: len(module)] == module and name and all(outer == (*name, *inner) for outer, inner in within):
            return trees.name_of(name), self.content(part, own)
        return "", self.graph((part,), inputs, part.outputs, module)

    def _is_plain(self, part: Part, module: Path) -> bool:
        """Whether a node's layer alone does what the node does: same inputs and outputs, arrays under its slots."""
        node = part.node
        assert node is not None
        names = self.names
        return (
            (node.inputs, node.outputs) == (part.inputs, part.outputs)
            and all(names.is_param(p) and names.within(module, p) == (slot,) for slot, p in node.params)
            and all(not names.is_param(p) and names.within(module, p) == (slot,) for slot, p in node.states)
        )

    def graph(self, parts: Sequence[Part], inputs: Sequence[str], outputs: Sequence[str], module: Path) -> Graph:
        taken: dict[str, int] = {}
        nodes = [self.bound(node, module) for node in self._needed(parts, outputs)]
        nodes += [self._node(part, module) for part in parts]
        named = []
        for node in nodes:
            number = taken[node.name] = taken.get(node.name, -1) + 1
            named.append(replace(node, name=f"{node.name} (call {number + 1})") if number else node)
        made = {*inputs, *(value for node in named for value in node.outputs)}
        values = {name: info for name, info in self.values.items() if name in made}
        return Graph(tuple(inputs), tuple(outputs), tuple(named), values)

    def _needed(self, parts: Sequence[Part], outputs: Sequence[str]) -> list[Node]:
        """The constants and stored arrays that a graph's own nodes read or that it returns."""
        read = [v for part in parts if part.kind == NODE and part.node and not part.call for v in part.node.inputs]
        return [self.free[v] for v in dict.fromkeys((*read, *outputs)) if v in self.free]

    def _node(self, part: Part, module: Path) -> Node:
        if part.kind == NODE and part.call is None and part.node is not None:
            return self.bound(part.node, module)
        own = module if part.call is None else trees.path_of(part.call.path)
        if part.call is None:
            name = f"({part.kind})"
        else:
            name = trees.name_of(own[len(module) :] if own[: len(module)] == module != own else own)
            node = part.node
            if part.kind == NODE and node and (node.inputs, node.outputs) == (part.inputs, part.outputs):
                return replace(self.bound(node, module), name=name)
        bound = [
            (self.names.is_param(path), (trees.name_of(self.names.within(own, path)), self.names.within(module, path)))
            for path in self._paths(part.nodes)
        ]
        params = tuple(pair for is_param, pair in bound if is_param)
        states = tuple(pair for is_param, pair in bound if not is_param)
        return Node(name, self.content(part, own), part.inputs, part.outputs, params, states)

    def bound(self, node: Node, module: Path) -> Node:
        """A node whose arrays are named from a module on."""

        def within(pairs: Iterable[tuple[str, Path]]) -> tuple[tuple[str, Path], ...]:
            return tuple((slot, self.names.within(module, path)) for slot, path in pairs)

        return replace(node, params=within(node.params), states=within(node.states))

    def _paths(self, nodes: Sequence[Node]) -> list[Path]:
        """The arrays that nodes use, those that they read as values included."""
        reads = dict.fromkeys(v for node in nodes for v in node.inputs if v in self.free)
        used = (*nodes, *(self.free[v] for v in reads if v is not None))
        return list(dict.fromkeys(path for node in used for _, path in (*node.params, *node.states)))


def structured(model: Model) -> Model:
    """The same model with nested layers: see `Model.structured`."""
    names = _Names(model)

    def layer(flat: Layer) -> Layer:
        return _Writer(flat, names).content(parts_of(flat), ()) if isinstance(flat, Graph) else flat

    if isinstance(model.layer, ByMode):
        return replace(model, layer=ByMode(layer(model.layer.training), layer(model.layer.evaluation)))
    return replace(model, layer=layer(model.layer))


# --- a part alone


def part_of(model: Model, path: str, call: int) -> Model:
    """One module of a model: see `Model.part`."""
    if not path and not call:
        return model
    if not any(_in_call(node, path, call) for graph in _graphs(model.layer) for node in graph.nodes):
        return _child_of(model, path, call)
    names, module = _Names(model), trees.path_of(path)
    both = [_graph_of_part(mode, names, path, call) for mode in _modes(model.layer)]
    graph = both[-1]
    if not isinstance(graph, Graph):
        raise InvalidModelError(f"{path!r} is called in training only; it is no part of the model in evaluation")
    layer: Layer = graph
    if len(both) == 2:
        training = both[0]
        if isinstance(training, Graph) and [*map(len, (training.inputs, training.outputs))] != [
            *map(len, (graph.inputs, graph.outputs))
        ]:
            training = Unavailable(f"{path!r} has other inputs or outputs in training")
        layer = ByMode(training, graph)
    used = {p for flat in _graphs(model.layer) for p in _paths_of(flat, path, call)}

    def own(tree: trees.Tree) -> trees.Tree:
        leaves = ((p, leaf) for p, leaf in trees.leaves(tree) if p in used or p[: len(module)] == module)
        return trees.from_leaves((names.within(module, p), leaf) for p, leaf in leaves)

    aliases = {
        alias[len(module) :]: names.within(module, p)
        for alias, p in model.aliases.items()
        if alias[: len(module)] == module and names.within(module, p) != alias[len(module) :]
    }
    start = f"{path}."
    keys = [key[len(start) :] for key in model.metadata.get("state_dict", ()) if key.startswith(start)]
    metadata = {**model.metadata, "name": f"{model.metadata.get('name', 'model')}.{path}", "state_dict": keys}
    if "complex" in metadata:
        metadata["complex"] = [key[len(start) :] for key in metadata["complex"] if key.startswith(start)]
    signature = _signature(graph, model)
    return Model(layer, own(model.params), own(model.states), signature, aliases, metadata)


def _modes(layer: Layer) -> tuple[Layer, ...]:
    return (layer.training, layer.evaluation) if isinstance(layer, ByMode) else (layer,)


def _graphs(layer: Layer) -> list[Graph]:
    return [mode for mode in _modes(layer) if isinstance(mode, Graph)]


def _in_call(node: Node, path: str, number: int) -> bool:
    return any(call.path == path and call.number == number for call in node.scope)


def _paths_of(graph: Graph, path: str, call: int) -> Iterator[Path]:
    free = free_nodes(graph)
    for node in graph.nodes:
        if _in_call(node, path, call):
            for used in (node, *(free[v] for v in node.inputs if v in free)):
                yield from (p for _, p in (*used.params, *used.states))


def _graph_of_part(layer: Layer, names: _Names, path: str, call: int) -> Layer:
    """The graph of one call of a module; Unavailable where it has none."""
    if not isinstance(layer, Graph):
        return layer
    inside = [node for node in layer.nodes if _in_call(node, path, call)]
    if not inside:
        return Unavailable(f"{path!r} is not called in this mode")
    own = {id(node) for node in inside}
    made = {value for node in inside for value in node.outputs}
    read = {v for node in layer.nodes if id(node) not in own for v in node.inputs} | set(layer.outputs)
    free = free_nodes(layer)
    inputs = dict.fromkeys(v for node in inside for v in node.inputs if v not in made and v not in free)
    needed = dict.fromkeys(v for node in inside for v in node.inputs if v in free and v not in made)
    outputs = [v for node in inside for v in node.outputs if v in read]
    writer = _Writer(layer, names)
    nodes = [writer.bound(node, trees.path_of(path)) for node in (*(free[v] for v in needed if v), *inside)]
    known = {*inputs, *needed, *made}
    values = {name: info for name, info in layer.values.items() if name in known}
    return Graph(tuple(v for v in inputs if v), tuple(outputs), tuple(nodes), values)


def _signature(graph: Graph, model: Model) -> Signature | None:
    """How a part is called, if the dtypes and shapes of its inputs and outputs are known."""
    if any(value not in graph.values for value in (*graph.inputs, *graph.outputs)):
        return None
    inputs, outputs = (
        tuple(TensorSpec(v, graph.values[v].dtype, graph.values[v].shape) for v in values)
        for values in (graph.inputs, graph.outputs)
    )
    dims = {d for spec in inputs for d in spec.shape or () if isinstance(d, str)}
    ranges = {} if model.signature is None else model.signature.dims
    known = {name: ranges.get(name, Dimension()) for name in sorted(dims)}
    return Signature(inputs, outputs, known)


def _child_of(model: Model, path: str, call: int) -> Model:
    """A layer inside a composite one, with the arrays that it is given there."""
    layer = _modes(model.layer)[-1]
    if call or not isinstance(layer, Composite) or any(node.scope for graph in _graphs(layer) for node in graph.nodes):
        where = f"call {call + 1} of {path!r}" if call else repr(path)
        raise InvalidModelError(f"the model has no {where}; {_nearby(model, path)}")
    params, states = model.params, model.states
    for place in layer.places(path):
        params, states = arrays_of_child(layer, place, params, states)
        layer = layer.children()[place][1]
    return Model(layer, params, states)


def _nearby(model: Model, path: str) -> str:
    """What to give instead of a path that is no module that is called: the modules inside it."""
    scopes = (call.path for graph in _graphs(model.layer) for node in graph.nodes for call in node.scope)
    inside = {p: None for p in scopes if p.startswith(f"{path}.")}
    children = [p for p in inside if not any(p.startswith(f"{other}.") for other in inside)]
    if not children:
        return "print(model) shows its modules"
    more = f" and {len(children) - 5} more" if len(children) > 5 else ""
    return f"it is only a list of these: {', '.join(map(repr, children[:5]))}{more}"


def arrays_of_child(layer: Layer, place: int, params: trees.Tree, states: trees.Tree) -> tuple[trees.Tree, trees.Tree]:
    """The parameters and states that a composite layer gives to one of its children."""
    name = layer.children()[place][0]
    if isinstance(layer, Graph):
        node = layer.nodes[place]
        return _slots(node.params, params, states), _slots(node.states, states, params)
    if isinstance(layer, ByMode) or not name:
        return params, states
    return _branch(params, name), _branch(states, name)


def _slots(pairs: Sequence[tuple[str, Path]], *collections: trees.Tree) -> trees.Tree:
    def stored(path: Path) -> Any:
        return next(v for tree in collections if (v := trees.find(tree, path)) is not None)

    return trees.from_leaves((trees.path_of(slot), stored(path)) for slot, path in pairs)


def _branch(tree: trees.Tree, name: str) -> trees.Tree:
    branch = trees.find(tree, trees.path_of(name))
    return dict(branch) if isinstance(branch, Mapping) else {}
