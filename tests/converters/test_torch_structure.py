"""The structure of imported modules: chains, residual blocks and graphs of named layers that compute what the flat
graph does, bit by bit, from the same trees; parts of a model alone; the hierarchy in ONNX files; named results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import pytest
import torch
from torch import nn

import interlux as ix
from interlux.ir.graph import ByMode, Call, Graph, graph_of
from interlux.ir.layers import BatchNorm, Chain, Conv, Dense, Dropout, Embedding, LayerNorm, SkipConnection
from tests.helpers import Calls, tensors


class BasicBlock(nn.Module):
    """As in torchvision: one ReLU used twice, the input or a strided convolution on the way around."""

    def __init__(self, inside: int, outside: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.layer1 = nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 8, 2))
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer1(torch.relu(self.conv1(x)))
        return self.fc(self.drop(x.mean((2, 3))))


class SelfAttention(nn.Module):
    def __init__(self, features: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(features, 3 * features), nn.Linear(features, features)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, mask)
        return self.out(y.transpose(1, 2).flatten(2))


class PreNorm(nn.Module):
    """A transformer block with two residual connections; the mask goes past the first of them."""

    def __init__(self, features: int = 8):
        super().__init__()
        self.ln1, self.attn, self.ln2 = nn.LayerNorm(features), SelfAttention(features, 2), nn.LayerNorm(features)
        self.mlp = nn.Sequential(
            nn.Linear(features, 12), nn.GELU(), nn.Dropout(0.2), nn.Linear(12, features), nn.Dropout(0.2)
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attn(self.ln1(x), mask)
        return x + self.mlp(self.ln2(x))


class Tied(nn.Module):
    """A language model whose head has the weights of its embedding, with a learned table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(11, 8)
        self.wpe = nn.Embedding(6, 8)
        self.blocks = nn.ModuleList([PreNorm(), PreNorm()])
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(6))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Scaled(nn.Module):
    """A parameter of its own beside a module, and a weight that another module reads."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.fc = nn.Parameter(torch.rand(6)), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gamma * self.fc(x) @ self.fc.weight


class Outputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.body(x)
        return {"logits": self.head(hidden), "hidden": hidden}


class Dense2(nn.Module):
    """A layer of a DenseNet."""

    def __init__(self, features: int):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(features), nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], 1)


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        self.net[0].requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Counting(nn.Module):
    """Writes a buffer, and reads it after that."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.register_buffer("total", torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        self.total += y.sum(0).detach()
        return y + self.total


def shared() -> nn.Module:
    block = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh())
    return Calls(lambda m, x: m.block(m.block(x) * 2 + 1), block=block)


def lists() -> nn.Module:
    return Calls(
        lambda m, x: m.heads["b"](m.parts[1](m.parts[0](x))) + m.heads["a"](x),
        parts=nn.ModuleList([nn.Linear(6, 6), nn.ReLU()]),
        heads=nn.ModuleDict({"a": nn.Linear(6, 2), "b": nn.Linear(6, 2)}),
    )


def tied_in_sequence() -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 6))
    module[2].weight = module[0].weight
    return module


def nested() -> nn.Module:
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))
    return Calls(
        lambda m, x: m.classifier(torch.flatten(m.features(x), 1)),
        features=features,
        classifier=nn.Sequential(nn.Linear(144, 8), nn.Dropout(0.5), nn.Linear(8, 2)),
    )


def images(channels: int = 3, size: int = 8) -> torch.Tensor:
    return torch.randn(2, channels, size, size)


def rows() -> torch.Tensor:
    return torch.randn(3, 6)


# name -> module, inputs, the class at each path of the structured layer, the paths of modules to take as parts
Case = tuple[Callable[[], nn.Module], Callable[[], tuple[torch.Tensor, ...]], dict[str, type], tuple[str, ...]]
CASES: dict[str, Case] = {
    "Sequential": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3)),
        lambda: (rows(),),
        {"": Chain, "0": Dense, "2": Dropout, "3": Dense},
        ("0", "2", "3"),
    ),
    "nested Sequential": (
        nested,
        lambda: (images(),),
        {"": Chain, "features": Chain, "features.0": Conv, "features.2": Chain, "classifier": Chain},
        ("features", "features.2", "features.2.0", "classifier"),
    ),
    "ResNet": (
        ResNet,
        lambda: (images(),),
        {
            "": Chain,
            "layer1": Chain,
            "layer1.0": Chain,
            "layer1.0.conv1": Conv,
            "layer1.1.bn2": BatchNorm,
            "layer1.1.downsample": Chain,
        },
        ("layer1", "layer1.0", "layer1.1", "layer1.1.downsample", "fc"),
    ),
    "pre-norm": (
        PreNorm,
        lambda: (torch.randn(2, 5, 8),),
        {"": Chain, "mlp": Chain, "mlp.2": Dropout, "attn.qkv": Dense},
        ("attn", "mlp", "ln1"),
    ),
    "pre-norm with a mask": (
        PreNorm,
        lambda: (torch.randn(2, 5, 8), torch.randn(2, 1, 5, 5)),
        {"": Graph, "mlp": Chain, "attn": Graph, "ln2": LayerNorm},
        ("attn", "mlp", "mlp.0"),
    ),
    "tied weights": (
        Tied,
        lambda: (torch.randint(0, 11, (2, 6)),),
        {"wte": Embedding, "blocks.0": Chain, "blocks.1.mlp": Chain, "head": Dense},
        ("wte", "blocks.0", "blocks.1.attn", "head"),
    ),
    "tied weights in a Sequential": (
        tied_in_sequence,
        lambda: (rows(),),
        {"": Chain, "0": Dense, "1": Dropout, "2": Dense},
        ("0", "1", "2"),
    ),
    "shared": (shared, lambda: (rows(),), {"": Chain, "block": Chain, "block.1": BatchNorm}, ("block", "block.0")),
    "lists": (
        lists,
        lambda: (rows(),),
        {"": SkipConnection, "parts.0": Dense, "heads.b": Dense},
        ("parts.0", "heads.a"),
    ),
    "dict of results": (Outputs, lambda: (rows(),), {"": Graph, "body": Chain, "head": Dense}, ("body", "head")),
    "DenseNet": (
        lambda: nn.Sequential(Dense2(2), Dense2(5)),
        lambda: (images(2),),
        {"": Chain, "0": SkipConnection, "1.norm": BatchNorm},
        ("0", "1", "1.conv"),
    ),
    "own parameter": (Scaled, lambda: (rows(),), {"": SkipConnection, "fc": Dense}, ("fc",)),
    "frozen": (Frozen, lambda: (rows(),), {"": Chain, "net": Chain, "net.0": Dense, "net.2": Dense}, ("net", "net.0")),
    "buffer": (Counting, lambda: (rows(),), {"": Chain, "fc": Dense}, ("fc",)),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[torch.Tensor, ...], ix.Model, Case]:
    torch.manual_seed(0)
    case = CASES[request.param]
    module, inputs = case[0](), case[1]()
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return module, inputs, ix.from_torch(module, inputs), case


def same(a: Any, b: Any) -> None:
    """Bitwise."""
    leaves, others = jax.tree.leaves(a), jax.tree.leaves(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(leaves, others, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def at(layer: Any, path: str) -> Any:
    layer = getattr(layer, "evaluation", layer)
    return layer[path] if path else layer


def test_nested_layers_compute_what_the_flat_graph_does(case: Any, tmp_path: Path) -> None:
    module, inputs, model, (_, _, classes, _) = case
    arrays = [x.numpy() for x in inputs]
    nested = model.structured()
    assert {path: type(at(nested.layer, path)) for path in classes} == classes
    assert nested.params is model.params
    assert nested.states is model.states
    for train in (False, True):

        def loss(params: Any, layer: Any, train: bool = train) -> Any:
            y, states = layer.apply(params, model.states, *arrays, train=train)
            return sum((leaf * leaf).sum() for leaf in jax.tree.leaves(y)), (y, states)

        same(*(layer.apply(model.params, model.states, *arrays, train=train) for layer in (model.layer, nested.layer)))
        same(*(jax.grad(loss, has_aux=True)(model.params, layer) for layer in (model.layer, nested.layer)))
    ix.save(nested, tmp_path / "nested")
    loaded = ix.load(tmp_path / "nested")
    assert loaded.layer == nested.layer
    layer, params, states = loaded
    same(layer.apply(params, states, *arrays)[0], model.layer.apply(model.params, model.states, *arrays)[0])


def test_names_of_arrays_stay(case: Any) -> None:
    module, _, model, _ = case
    back = ix.torch_state_dict(model.structured())
    assert list(back) == list(module.state_dict())
    module.load_state_dict(back)


def test_nested_layers_become_onnx(case: Any, tmp_path: Path) -> None:
    _, inputs, model, _ = case
    if model.metadata["name"] == "Counting":
        pytest.skip("it writes a buffer in evaluation, which ONNX cannot hold")
    arrays = [x.numpy() for x in inputs]
    nested = model.structured()
    ix.to_onnx(nested, tmp_path / "nested.onnx")
    names = {tensor.name for tensor in onnx.load(tmp_path / "nested.onnx").graph.initializer}
    used = {ix.trees.name_of(path) for path, _ in ix.trees.leaves(model.params)}
    assert used <= names
    for a, b in zip(*(ix.compile(m, "onnxruntime").run(arrays) for m in (model, nested)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(*(ix.compile(m).run(arrays) for m in (model, nested)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_hierarchy_survives_onnx(case: Any, tmp_path: Path) -> None:
    _, _, model, _ = case
    if model.metadata["name"] == "Counting":
        pytest.skip("it writes a buffer in evaluation, which ONNX cannot hold")

    def calls(items: Any) -> list[Any]:
        return [(item.module, calls(item.body)) for item in items if isinstance(item, Call)]

    ix.to_onnx(model, tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx")
    back = ix.from_onnx(tmp_path / "m.onnx")
    first, second = graph_of(model.layer), graph_of(back.layer)
    assert first is not None
    assert second is not None
    wanted = [node for node in first.nodes if not isinstance(node.layer, Dropout)]  # which does nothing here
    alone = Graph((), (), tuple(dataclasses.replace(node, inputs=()) for node in wanted))
    assert calls(second.nested()) == calls(alone.nested())
    names = {tensor.name for tensor in proto.graph.initializer}
    assert {ix.trees.name_of(path) for path, _ in ix.trees.leaves(model.params)} <= names


def test_parts_compute_what_the_modules_do(case: Any) -> None:
    module, inputs, model, (_, _, _, paths) = case
    module.eval()
    for path in paths:
        sub = module.get_submodule(path)
        seen: list[tuple[Any, Any]] = []
        handle = sub.register_forward_hook(lambda _, args, y, seen=seen: seen.append((args, y)))
        module(*inputs)
        handle.remove()
        for number, (args, expected) in enumerate(seen):
            part = model.part(path, number)
            layer, params, states = part
            assert list(ix.torch_state_dict(part)) == list(sub.state_dict())
            given = [x.detach().numpy() for x in tensors(args)]
            y, _ = layer.apply(params, states, *given)
            np.testing.assert_allclose(y, expected.detach(), rtol=1e-4, atol=1e-5)
            same(y, part.structured().layer.apply(params, states, *given)[0])
            (run,) = ix.compile(part).run(given)
            np.testing.assert_allclose(run, expected.detach(), rtol=1e-4, atol=1e-5)


def test_residual_blocks_read_as_such() -> None:
    block = ix.from_torch(BasicBlock(4, 8, 2), images(4)).structured().layer
    skip = block[0]
    assert isinstance(skip, SkipConnection)
    assert [name for name, _ in skip.layer.children()] == ["conv1", "bn1", "relu", "conv2", "bn2"]
    assert isinstance(skip.shortcut, Chain)
    assert [name for name, _ in block.children()] == ["", "relu"]
    plain = ix.from_torch(BasicBlock(4, 4), images(4)).structured().layer
    assert plain[0].shortcut is None
    block = ix.from_torch(PreNorm(), torch.randn(2, 5, 8)).structured().layer
    assert [type(layer) for layer in block] == [SkipConnection, SkipConnection]
    assert [type(layer) for layer in block[1].layer] == [LayerNorm, Chain]
    assert block["mlp"] is block[1].layer[1]
    masked = ix.from_torch(PreNorm(), (torch.randn(2, 5, 8), torch.randn(2, 1, 5, 5))).structured().layer
    assert [type(layer) for layer in masked] == [SkipConnection, SkipConnection]


def test_sizes_that_blocks_share_are_computed_around_them() -> None:
    module = nn.Sequential(PreNorm(), PreNorm()).eval()
    x = torch.randn(2, 5, 8)
    model = ix.from_torch(module, x, dynamic_shapes=({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},))
    layer, params, states = model.structured()
    for name in ("0", "1"):
        assert [type(inner) for inner in layer[name]] == [SkipConnection, SkipConnection]
    for size in (3, 7):
        y = torch.randn(4, size, 8)
        same(*(each.apply(params, states, y.numpy())[0] for each in (layer, model.layer)))
    ix.verify(module, model.structured()).raise_if_failed()


def test_the_tree_shows_chains_and_residual_blocks() -> None:
    text = str(ix.from_torch(ResNet(), images()))
    lines = [line.split("  ")[0] if not line.startswith("│") else line for line in text.splitlines()]
    assert lines[0] == "ResNet = Chain (from torch)"
    assert any(line.endswith("layer1: Sequential = Chain") for line in lines)
    assert any(line.strip("│├└─ ") == "0: BasicBlock = Chain" for line in lines)
    assert sum(line.strip("│├└─ ") == "SkipConnection" for line in lines) == 2
    assert any(line.strip("│├└─ ") == "shortcut downsample: Sequential = Chain" for line in lines)


def test_a_layer_is_replaced() -> None:
    module = nested().eval()
    x = images()
    model = ix.from_torch(module, x).structured()
    layer, params, states = model
    gelu = layer.replaced("features.1", ix.layers.gelu).replaced("classifier.1", ix.layers.identity)
    module.features[1] = nn.GELU()
    np.testing.assert_allclose(gelu.apply(params, states, x.numpy())[0], module(x).detach(), rtol=1e-5, atol=1e-6)
    assert layer["features.1"] == layer["features"][1] == ix.layers.relu
    assert layer["classifier"][-1] is layer["classifier.2"]
    with pytest.raises(ix.InvalidModelError, match="no layer 'features.9'; it has features, "):
        layer["features.9"]
    with pytest.raises(ix.InvalidModelError, match="5 layers, none is number 7|3 layers, none is number 7"):
        layer["features"][7]


def test_a_part_of_nested_layers() -> None:
    module = nested().eval()
    x = images()
    model = ix.from_torch(module, x).structured()
    sub, params, states = model.part("features.2")
    y = torch.randn(2, 4, 5, 5)
    np.testing.assert_allclose(
        sub.apply(params, states, y.numpy())[0], module.features[2](y).detach(), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ix.InvalidModelError, match=r"print\(model\)"):
        ix.from_torch(module, x).part("features.7")
    with pytest.raises(ix.InvalidModelError, match="call 2 of 'features'"):
        ix.from_torch(module, x).part("features", 1)


def test_modules_whose_code_differs_in_training() -> None:
    module = Calls(
        lambda m, x: (m.net(x), m.aux(x)) if m.training else m.net(x),
        net=nn.Sequential(nn.Linear(6, 6), nn.ReLU()),
        aux=nn.Linear(6, 2),
    )
    x = rows()
    model = ix.from_torch(module, x)
    layer, params, states = model.structured()
    assert isinstance(layer, ByMode)
    assert isinstance(layer["net"], Chain)
    for train in (False, True):
        same(*(each.apply(params, states, x.numpy(), train=train) for each in (layer, model.layer)))
    tanh = layer.replaced("net.1", ix.layers.tanh)
    module.net[1] = nn.Tanh()
    for train in (False, True):
        expected = tensors(module.train(train)(x))
        for mine, reference in zip(
            tensors_of(tanh.apply(params, states, x.numpy(), train=train)), expected, strict=True
        ):
            np.testing.assert_allclose(mine, reference.detach(), rtol=1e-5, atol=1e-6)
    part = model.part("net")
    same(
        part.layer.apply(part.params, part.states, x.numpy(), train=True)[0],
        model.layer.apply(params, states, x.numpy())[0],
    )
    with pytest.raises(ix.InvalidModelError, match="in training only"):
        model.part("aux")


def tensors_of(result: tuple[Any, Any]) -> tuple[Any, ...]:
    return result[0] if isinstance(result[0], tuple) else (result[0],)


def test_a_shared_module_is_stored_once() -> None:
    model = ix.from_torch(shared(), rows())
    layer, params, _ = model.structured()
    assert [name for name, _ in layer.children() if name.startswith("block")] == ["block", "block"]
    assert len(list(ix.trees.leaves(params))) == 4


def test_training_with_nested_layers_gives_weights_back() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model = ix.from_torch(module, rows())
    layer, params, states = model.structured()
    x = rows().numpy()
    gradient = jax.grad(lambda p: (layer.apply(p, states, x, train=True)[0] ** 2).sum())(params)
    trained = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    module.load_state_dict(ix.torch_state_dict(model.replace(params=trained)))
    np.testing.assert_allclose(layer.apply(trained, states, x)[0], module(torch.tensor(x)).detach(), rtol=1e-5)


# --- results with names


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda m, x: x.sort(), ["values", "indices"]),
        (lambda m, x: torch.topk(x, 2), ["values", "indices"]),
        (lambda m, x: (x.max(1), x.min(0)), None),
        (lambda m, x: {"largest": x.max(-1), "all": x}, None),
    ],
)
def test_torch_s_named_results(function: Any, names: list[str] | None) -> None:
    x = rows()
    model = ix.from_torch(Calls(function), x)
    found = model.signature.nest_outputs(ix.compile(model)(x.numpy()))
    expected = function(None, x)
    if names is not None:
        assert list(found) == names
        assert [spec.name for spec in model.signature.outputs] == names
    for mine, reference in zip(
        jax.tree.leaves(found, is_leaf=lambda v: hasattr(v, "shape")), _leaves(found, expected), strict=True
    ):
        np.testing.assert_array_equal(mine, reference)


def _leaves(form: Any, value: Any) -> list[Any]:
    """The tensors of a result in the order of jax's leaves of its form (keys are sorted)."""
    if isinstance(form, dict):
        get = value.__getitem__ if isinstance(value, dict) else lambda key: getattr(value, key)
        return [leaf for key in sorted(form) for leaf in _leaves(form[key], get(key))]
    if isinstance(form, tuple | list):
        return [leaf for inner, v in zip(form, value, strict=True) for leaf in _leaves(inner, v)]
    return [value]
