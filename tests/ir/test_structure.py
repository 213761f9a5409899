"""The structure of a flat graph, made by hand: what is a chain, what a residual block, and what neither; names and
places of layers inside others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import interlux as ix
from interlux.ir.graph import Graph, ModuleCall, Node, ValueInfo
from interlux.ir.layers import (
    ArrayData,
    Assign,
    BatchNorm,
    Chain,
    Constant,
    Dense,
    Dropout,
    Operator,
    SkipConnection,
    Stored,
    relu,
)
from interlux.ir.structure import CHAIN, GRAPH, NODE, SKIP, Part, parts_of

add, mul = Operator("Add"), Operator("Mul")


def node(name: str, layer: ix.Layer, *inputs: str, module: str = "", **bound: str) -> Node:
    """A node that makes the value of its own name; arrays by slot, "?" in front of states' paths."""
    calls = tuple(ModuleCall(path, 0, "M") for path in _prefixes(module))
    params = tuple((slot, ix.trees.path_of(path)) for slot, path in bound.items() if not path.startswith("?"))
    states = tuple((slot, ix.trees.path_of(path[1:])) for slot, path in bound.items() if path.startswith("?"))
    return Node(name, layer, inputs, (name,), params, states, calls)


def _prefixes(module: str) -> list[str]:
    keys = module.split("/") if module else []
    return [".".join(keys[: i + 1]) for i in range(len(keys))]


def dense(name: str, x: str, module: str = "") -> Node:
    path = (module or name).replace("/", ".")
    return node(name, Dense(4, 4), x, module=module or name, weight=f"{path}.weight", bias=f"{path}.bias")


def model_of(nodes: Sequence[Node], outputs: Sequence[str], inputs: Sequence[str] = ("x",)) -> ix.Model:
    rng = np.random.default_rng(0)
    params: dict[ix.trees.Path, np.ndarray] = {}
    states: dict[ix.trees.Path, np.ndarray] = {}
    for each in nodes:
        fresh, own = ix.setup(each.layer, 1)
        params |= {path: fresh.get(slot, rng.random(4, np.float32)) for slot, path in each.params}
        states |= {path: own.get(slot, rng.random(4, np.float32)) for slot, path in each.states}
    values = dict.fromkeys(inputs, ValueInfo("float32", ("batch", 4)))
    graph = Graph(tuple(inputs), tuple(outputs), tuple(nodes), values)
    return ix.Model(graph, ix.trees.from_leaves(params.items()), ix.trees.from_leaves(states.items()))


def show(part: Part) -> object:
    """A part in short: names of nodes and modules, lists for chains, sets of letters for the other kinds."""
    path = part.call.path if part.call else ""
    if part.kind == NODE and part.node is not None:
        return path or part.node.name
    content = {CHAIN: "chain", SKIP: "skip", GRAPH: "graph"}[part.kind], *map(show, part.parts)
    return (f"{path}:{content[0]}", *content[1:]) if path else content


GRAPHS: dict[str, tuple[list[Node], Sequence[str], object]] = {
    "chain": ([dense("a", "x"), node("r", relu, "a"), dense("b", "r")], ["b"], ("chain", "a", "r", "b")),
    "residual": ([dense("a", "x"), node("s", add, "x", "a")], ["s"], ("skip", "a")),
    "residual of a chain": (
        [dense("a", "x"), node("r", relu, "a"), dense("b", "r"), node("s", add, "b", "x"), node("t", relu, "s")],
        ["t"],
        ("chain", ("skip", ("chain", "a", "r", "b")), "t"),
    ),
    "with a shortcut": (
        [dense("a", "x"), dense("b", "x"), node("r", relu, "b"), node("s", add, "a", "r")],
        ["s"],
        ("skip", ("chain", "b", "r"), "a"),
    ),
    "two ways of one length": (
        [dense("a", "x"), dense("b", "x"), node("s", add, "a", "b")],
        ["s"],
        ("graph", "a", "b", "s"),
    ),
    "a formula is no residual block": (
        [node("r", relu, "x"), node("s", add, "x", "r")],
        ["s"],
        ("graph", "r", "s"),
    ),
    "joined": (
        [dense("a", "x"), node("s", Operator.of("Concat", axis=1), "x", "a")],
        ["s"],
        ("skip", "a"),
    ),
    "nested residual": (
        [dense("a", "x"), dense("b", "a"), node("s", add, "a", "b"), dense("c", "s"), node("t", add, "x", "c")],
        ["t"],
        ("skip", ("chain", "a", ("skip", "b"), "c")),
    ),
    "a value in the middle is an output": (
        [dense("a", "x"), node("r", relu, "a")],
        ["r", "a"],
        ("graph", "a", "r"),
    ),
    "a value goes past the next": (
        [dense("a", "x"), node("r", relu, "a"), node("t", Operator("Tanh"), "a"), node("m", mul, "r", "t")],
        ["m"],
        ("chain", "a", ("graph", "r", "t", "m")),
    ),
    "modules": (
        [dense("a", "x", "f/0"), node("r", relu, "a", module="f/1"), dense("b", "r", "g")],
        ["b"],
        ("chain", ("f:chain", "f.0", "f.1"), "g"),
    ),
    "a module with two results": (
        [dense("a", "x", "f/0"), node("r", relu, "a", module="f/1"), node("s", mul, "a", "r")],
        ["s"],
        ("graph", ("f:graph", "f.0", "f.1"), "s"),
    ),
    "a module that calls one": ([dense("a", "x", "f/g")], ["a"], ("chain", ("f:chain", "f.g"))),
    "constants belong to who reads them": (
        [
            node("two", Constant(ArrayData.of(np.float32(2)))),
            node("m", mul, "x", "two"),
            dense("a", "m"),
            node("n", mul, "a", "two"),
        ],
        ["n"],
        ("chain", "m", "a", "n"),
    ),
    "drawn in order": (
        [
            node("d", Dropout(0.5), "x", seed="?seed"),
            dense("a", "x"),
            node("e", Dropout(0.5), "a", seed="?seed"),
            node("f", Dropout(0.5), "e", seed="?seed"),
            node("s", add, "d", "f"),
        ],
        ["s"],
        ("graph", "d", "a", "e", "f", "s"),  # a shortcut would come last, and get other random numbers
    ),
    "written and read": (
        [
            dense("a", "x"),
            Node("w", Assign("always"), ("a",), (), (), (("value", ("mean",)),)),
            node("v", Stored(), value="mean"),
            node("s", add, "a", "v"),
        ],
        ["s"],
        None,
    ),
    "a frozen weight and a tied one": (
        [
            node("a", Dense(4, 4, use_bias=False), "x", module="a", weight="b.weight"),
            node(
                "b", BatchNorm(4), "a", module="b", weight="b.scale", bias="b.bias", running_mean="?m", running_var="?v"
            ),
        ],
        ["b"],
        ("chain", "a", "b"),
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_structure(name: str) -> None:
    nodes, outputs, wanted = GRAPHS[name]
    model = model_of(nodes, outputs)
    assert isinstance(model.layer, Graph)
    if wanted is not None:
        assert show(parts_of(model.layer)) == wanted
    layer, params, states = model.structured()
    x = np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)
    for train in (False, True):
        if name == "a frozen weight and a tied one" and train:
            continue
        mine, flat = (each.apply(params, states, x, train=train) for each in (layer, model.layer))
        for (path, a), (other, b) in zip(_leaves(mine), _leaves(flat), strict=True):
            assert path == other
            np.testing.assert_array_equal(a, b)


def _leaves(result: tuple[object, dict[str, object]]) -> list[tuple[object, object]]:
    y, states = result
    return [*enumerate(y if isinstance(y, tuple) else (y,)), *ix.trees.leaves(states)]


def test_names_in_a_chain() -> None:
    layer = Chain(Dense(4, 3), relu, Chain(Dense(3, 2), Dropout(0.5)), names=("first", "act", "rest.deep"))
    params, states = ix.setup(layer, 0)
    assert params["rest"]["deep"]["0"]["weight"].shape == (2, 3)
    assert states["rest"]["deep"].keys() == {"1"}
    assert layer["first"] is layer[0]
    assert layer["rest.deep.1"] is layer["rest.deep"][-1]
    x = np.ones((2, 4), np.float32)
    y, new = layer.apply(params, states, x, train=True)
    assert y.shape == (2, 2)
    assert (new["rest"]["deep"]["1"]["seed"] != states["rest"]["deep"]["1"]["seed"]).any()
    assert Chain(relu, relu, names=("0", "1")) == Chain(relu, relu)
    with pytest.raises(ix.InvalidModelError, match="1 names for 2 layers"):
        Chain(relu, relu, names=("a",))


def test_layers_of_one_name_share_their_arrays() -> None:
    layer = Chain(BatchNorm(4), relu, BatchNorm(4), names=("norm", "act", "norm"))
    params, states = ix.setup(layer, 0)
    assert list(params) == ["norm"]
    _, new = layer.apply(params, states, np.ones((2, 4), np.float32), train=True)
    assert new["norm"]["num_batches_tracked"] == 2


def test_a_skip_connection_with_a_shortcut() -> None:
    for first in (False, True):
        layer = SkipConnection(Dense(4, 3), Operator("Sub"), Dense(4, 3, use_bias=False), first)
        params, states = ix.setup(layer, 0)
        assert list(params) == ["layer", "shortcut"]
        x = np.ones((2, 4), np.float32)
        y, around = (part.apply(params[name], {}, x)[0] for name, part in layer.children())
        np.testing.assert_array_equal(layer.apply(params, states, x)[0], around - y if first else y - around)


def test_layers_are_replaced() -> None:
    layer = Chain(Dense(4, 4), SkipConnection(Dense(4, 4)), ix.layers.RepeatedLayer(Dense(4, 4), 2))
    other = Dense(4, 4, activation=relu)
    changed = layer.replaced("1.layer", other).replaced(0, other).replaced("2.layer", other)
    assert (changed[0], changed["1.layer"], changed["2.layer"]) == (other, other, other)
    assert layer[0] == layer["1.layer"] == Dense(4, 4)
    for key, words in (
        ("3", "no layer '3'; it has 0, 1, 2"),
        (5, "3 layers, none is number 5"),
        ("0.x", "no layer '0.x'"),
    ):
        with pytest.raises(ix.InvalidModelError, match=words):
            layer[key]
    assert [type(child).__name__ for child in layer] == ["Dense", "SkipConnection", "RepeatedLayer"]


def test_a_part_of_layers_built_by_hand() -> None:
    layer = Chain(Dense(4, 4), SkipConnection(Dense(4, 4)))
    params, states = ix.setup(layer, 0)
    part, own, _ = ix.Model(layer, params, states).part("1.layer")
    assert part == Dense(4, 4)
    assert own is params["1"]["layer"] or own == params["1"]["layer"]
    assert ix.Model(layer, params, states).structured().layer is layer


def test_names_that_meet_keep_apart() -> None:
    """A module's own `w` and the model's `w` that it reads."""
    nodes = [
        node("own", Stored(), value="a.w"),
        node("whole", Stored(), value="w"),
        node("m", mul, "x", "own", module="a"),
        node("n", mul, "m", "whole", module="a"),
    ]
    model = model_of(nodes, ["n"])
    x = np.ones((2, 4), np.float32)
    part, params, states = model.part("a")
    wanted = model.layer.apply(model.params, model.states, x)[0]
    assert {ix.trees.name_of(path) for path, _ in ix.trees.leaves(params)} == {"w", "(model).w"}
    np.testing.assert_array_equal(part.apply(params, states, x)[0], wanted)
    np.testing.assert_array_equal(model.structured().layer.apply(model.params, model.states, x)[0], wanted)
