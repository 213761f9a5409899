"""Layers that the native trainer takes beside dense ones and convolutions, beside PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite")
pytest.importorskip("torch")

import torch
from torch import nn
from torch.nn import functional

import interlux as ix
from interlux.ir.errors import InvalidModelError, UnsupportedError
from interlux.ir.layers import Attention, Chain, Dropout, Embedding, Operator
from interlux.ir.model import Model
from interlux.runtime.fused.training import fused_gradient, fused_trainer
from tests.runtime.test_fused_training import TARGETS, Function, Own, close, imported, weights

# samples, threads: one sample, a tile and one more, two chunks, and many tiles (then gradients are kept lane by lane)
SIZES = [(1, 1), (9, 1), (40, 2), (1100, 2)]


def check(
    module: nn.Module, xs: Sequence[np.ndarray], target: str | None = None, threads: int = 1, tolerance: float = 1e-10
) -> None:
    """Outputs, and gradients of parameters and of all inputs but those of integers."""
    module = module.double().train()
    model = ix.from_torch(module, tuple(torch.tensor(x[:2] if len(x) > 1 else np.repeat(x, 2, 0)) for x in xs))
    inputs = [torch.tensor(x, requires_grad=x.dtype.kind == "f") for x in xs]
    module.zero_grad()
    y = module(*inputs)
    cotangent = np.random.default_rng(0).standard_normal(tuple(y.shape))
    (y * torch.tensor(cotangent)).sum().backward()
    function = fused_gradient(model, target=target, threads=threads)
    output, flat, found = function.vjp(tuple(xs), cotangent)
    close(output, y.detach().numpy(), tolerance)
    expected = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    close(flat, np.concatenate([np.zeros(0), *(g.numpy().ravel() for g in expected)]), tolerance)
    by_inputs = found if isinstance(found, tuple) else (found,)
    for by_input, t in zip(by_inputs, inputs, strict=True):
        if not t.requires_grad:
            assert by_input is None
            continue
        assert by_input is not None
        close(by_input, np.zeros(t.shape) if t.grad is None else t.grad.numpy(), tolerance)


def normal(shape: tuple[int, ...], batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, *shape))


Case = tuple[str, Callable[[], nn.Module], tuple[int, ...]]


def of(name: str, cases: Sequence[Case]) -> tuple[Callable[[], nn.Module], tuple[int, ...]]:
    torch.manual_seed(0)
    return next((make, shape) for n, make, shape in cases if n == name)


# Products of two values, attention


class SelfAttention(nn.Module):
    def __init__(self, size: int, heads: int, **options: Any):
        super().__init__()
        self.into, self.out, self.heads, self.options = nn.Linear(size, 3 * size), nn.Linear(size, size), heads, options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, d = x.shape
        q, k, v = self.into(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v, **self.options)
        return self.out(y.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    def __init__(self, size: int, heads: int):
        super().__init__()
        self.attention, self.norms = SelfAttention(size, heads), nn.ModuleList(nn.LayerNorm(size) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


def classifier() -> nn.Module:
    return nn.Sequential(Block(8, 2), Block(8, 2), nn.LayerNorm(8), Function(lambda x: x.mean(1)), nn.Linear(8, 3))


PRODUCTS: list[Case] = [
    ("gram", lambda: Own(lambda s, x: x @ x.transpose(1, 2), w=weights(1)), (3, 5)),
    ("square", lambda: Own(lambda s, x: x @ x, w=weights(1)), (5, 5)),
    ("two-paths", lambda: Own(lambda s, x: s.a(x).transpose(1, 2) @ torch.tanh(s.b(x)), a=nn.Linear(5, 7),
                              b=nn.Linear(5, 9)), (11, 5)),
    ("shared-left", lambda: Own(lambda s, x: x[:, :1] @ s.a(x).transpose(2, 3), a=nn.Linear(5, 5)), (3, 4, 5)),
    ("columns", lambda: Own(lambda s, x: s.a(x)[:, :, :1] @ x[:, :1], a=nn.Linear(5, 5)), (4, 5)),
    ("parameters-left", lambda: Own(lambda s, x: s.w @ x, w=weights(4, 3)), (3, 5)),
    ("stack-of-parameters", lambda: Own(lambda s, x: x @ s.w, w=weights(3, 5, 4)), (3, 2, 5)),
    ("parameters-by-parameters", lambda: Own(lambda s, x: x * (s.v @ s.w), w=weights(3, 5), v=weights(4, 3)), (4, 5)),
    ("vector", lambda: Own(lambda s, x: x @ s.w, w=weights(5)), (3, 5)),
    ("numbers-left", lambda: Own(lambda s, x: s.w @ s.a(x), w=torch.randn(4, 3), a=nn.Linear(5, 5)), (3, 5)),
    ("attention", lambda: SelfAttention(6, 3), (5, 6)),
    ("causal", lambda: SelfAttention(6, 2, is_causal=True), (5, 6)),
    ("numbers-by-parameters", lambda: Own(lambda s, x: x * (s.v @ s.w), w=weights(3, 5), v=torch.randn(4, 3)), (4, 5)),
    ("parameters-by-numbers", lambda: Own(lambda s, x: x * (s.w @ s.v), w=weights(4, 3), v=torch.randn(3, 5)), (4, 5)),
    ("norms", lambda: Own(lambda s, x: s.a(x).norm(dim=2, keepdim=True) * s.b(x).norm(1, 2, True), a=nn.Linear(5, 4),
                          b=nn.Linear(5, 4)), (3, 5)),
    ("norm-of-zeros", lambda: Own(lambda s, x: s.a(x) * (x * 0).norm(dim=1, keepdim=True), a=nn.Linear(5, 4)), (5,)),
    ("prod", lambda: Own(lambda s, x: s.a(x).prod(2, True) * (x.relu() * s.b).prod(1, True), a=nn.Linear(5, 7),
                         b=weights(5)), (3, 5)),
    ("zeros", lambda: Own(lambda s, x: torch.cat([x.new_zeros(x.shape[0], 2), s.a(x)], 1), a=nn.Linear(5, 4)), (5,)),
    ("baddbmm", lambda: Own(lambda s, x: torch.addmm(s.b, x, s.w, beta=0.5, alpha=2), w=weights(5, 4), b=weights(4)),
     (5,)),
    ("mask", lambda: SelfAttention(6, 1, attn_mask=torch.randn(5, 5, dtype=torch.float64)), (5, 6)),
    ("classifier", classifier, (6, 8)),
    ("multihead", lambda: Own(lambda s, x: s.a(x, x, x, need_weights=False)[0],
                              a=nn.MultiheadAttention(8, 2, batch_first=True)), (6, 8)),
    ("encoder-layer", lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), (5, 8)),
]  # fmt: skip


@pytest.mark.parametrize(("batch", "threads"), SIZES)
@pytest.mark.parametrize("name", [name for name, _, _ in PRODUCTS])
def test_products_of_two_values(name: str, batch: int, threads: int) -> None:
    make, shape = of(name, PRODUCTS)
    check(make(), [normal(shape, batch)], threads=threads)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["two-paths", "classifier"])
def test_products_on_all_targets(name: str, target: str) -> None:
    make, shape = of(name, PRODUCTS)
    check(make(), [normal(shape, 21)], target)


@pytest.mark.parametrize("layer", [
    Attention(), Attention(causal=True), Attention(scale=0.3, masked="float"), Attention(groups=2),
], ids=["plain", "causal", "masked", "groups"])  # fmt: skip
def test_the_attention_layer(layer: Attention) -> None:
    keys = (4 // layer.groups, 6, 3)
    shapes = [(4, 6, 3), keys, keys, *([(1, 6, 6)] if layer.masked != "none" else [])]
    signature = {f"x{i}": ("float64", ("batch", *shape)) for i, shape in enumerate(shapes)}
    xs = [normal(shape, 9 + i)[:9] for i, shape in enumerate(shapes)]
    q, k, v, *mask = inputs = [torch.tensor(x, requires_grad=True) for x in xs]
    y = functional.scaled_dot_product_attention(
        q, k, v, mask[0] if mask else None, is_causal=layer.causal, scale=layer.scale, enable_gqa=layer.groups > 1
    )
    cotangent = np.random.default_rng(0).standard_normal(tuple(y.shape))
    (y * torch.tensor(cotangent)).sum().backward()
    output, _, found = fused_gradient(Model.from_layer(layer, {}, {}, signature)).vjp(xs, cotangent)
    close(output, y.detach().numpy())
    assert isinstance(found, tuple)
    for by_input, t in zip(found, inputs, strict=True):
        assert by_input is not None and t.grad is not None
        close(by_input, t.grad.numpy())


def test_attention_drops_weights() -> None:
    layer = Attention(dropout=0.25)
    _, states = ix.setup(layer, 0)
    signature = dict.fromkeys("qkv", ("float64", ("batch", 4, 30, 30)))
    function = fused_gradient(Model.from_layer(layer, {}, states, signature))
    q, v = np.zeros((20, 4, 30, 30)), np.broadcast_to(np.eye(30), (20, 4, 30, 30)).copy()
    y, _, _ = function.vjp((q, q, v), np.ones_like(q))
    np.testing.assert_allclose(np.unique(y), [0, 1 / 30 / 0.75])
    assert abs((y == 0).mean() - 0.25) < 0.02


@pytest.mark.parametrize("channels", [False, True])
def test_alpha_dropout(channels: bool) -> None:
    layer = Dropout(0.3, alpha=True, channels=channels)
    _, states = ix.setup(layer, 0)
    x = normal((40, 30), 200)
    model = Model.from_layer(layer, {}, states, {"x": ("float64", ("batch", 40, 30))})
    y, _, by_x = fused_gradient(model).vjp(x, np.ones_like(x))
    gone = np.asarray(by_x) == 0
    scale, shift = np.polyfit(x[~gone], y[~gone], 1)
    close(y, np.where(gone, y[gone][0], x * scale + shift))
    close(np.asarray(by_x), np.where(gone, 0.0, scale))
    assert abs(gone.mean() - 0.3) < 0.02 and abs(y.mean()) < 0.03 and abs(y.std() - 1) < 0.03
    assert (gone.all(2) == gone.any(2)).all() == channels


def test_a_classifier_trains_as_in_torch() -> None:
    torch.manual_seed(0)
    module = classifier()
    model = imported(module, (6, 8))
    x, labels = normal((6, 8), 70), np.arange(70) % 3
    trainer = fused_trainer(model, "cross_entropy", "adam", learning_rate=1e-3, threads=2)
    losses = trainer.run(x, labels, epochs=3, batch_size=32)
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    expected = []
    for start in [0, 32, 64] * 3:
        optimizer.zero_grad()
        part = slice(start, start + 32)
        loss = functional.cross_entropy(module(torch.tensor(x[part])), torch.tensor(labels[part]))
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    np.testing.assert_allclose(losses, expected, rtol=1e-8)
    close(trainer.flat, np.concatenate([p.detach().numpy().ravel() for p in module.parameters()]), 1e-7)


# Embeddings


def tokens(batch: int, rows: int = 7, shape: tuple[int, ...] = (5,), dtype: str = "int64") -> np.ndarray:
    return np.random.default_rng(batch).integers(0, rows, (batch, *shape)).astype(dtype)


def summed(table: nn.Module) -> nn.Module:
    return nn.Sequential(table, nn.Linear(table.embedding_dim, 4), nn.Tanh(), nn.Flatten())  # type: ignore[arg-type]


class Both(nn.Module):
    """A function of itself and of two inputs."""

    def __init__(self, function: Callable[..., torch.Tensor], **parts: nn.Module):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.function(self, x, y)


EMBEDDINGS: list[Case] = [
    ("plain", lambda: nn.Embedding(7, 3), (5,)),
    ("of-one", lambda: nn.Embedding(7, 19), ()),
    ("single-feature", lambda: summed(nn.Embedding(7, 1)), (5,)),
    ("eight", lambda: summed(nn.Embedding(7, 8)), (5,)),
    ("wide", lambda: summed(nn.Embedding(7, 21)), (2, 3)),
    ("padding", lambda: summed(nn.Embedding(7, 5, padding_idx=2)), (5,)),
    ("padding-last", lambda: summed(nn.Embedding(7, 13, padding_idx=-1)), (5,)),
    ("one-of-many", lambda: Own(lambda s, x: s.e(x[:, 3]) + s.f(x[:, [0, 4, 1]]).sum(1), e=nn.Embedding(7, 6),
                                f=nn.Embedding(9, 6)), (5,)),
    ("tied", lambda: Own(lambda s, x: s.e(x) @ s.e.weight.T, e=nn.Embedding(7, 6)), (5,)),
    ("tied-padding", lambda: Own(lambda s, x: s.e(x) @ s.e.weight.T, e=nn.Embedding(7, 6, padding_idx=1)), (5,)),
    ("table-that-is-made", lambda: Own(lambda s, x: functional.embedding(x, torch.tanh(s.w)), w=weights(7, 4)), (5,)),
    ("turned-table", lambda: Own(lambda s, x: functional.embedding(x, s.w.T), w=weights(4, 7)), (5,)),
    ("positions", lambda: Own(lambda s, x: s.e(x) + s.p(torch.arange(5)), e=nn.Embedding(7, 6),
                              p=nn.Embedding(5, 6)), (5,)),
    ("frozen", lambda: Own(lambda s, x: s.a(functional.embedding(x, s.w)), w=torch.randn(7, 4), a=nn.Linear(4, 2)),
     (5,)),
    ("transformer", lambda: nn.Sequential(nn.Embedding(7, 8), classifier()), (6,)),
]  # fmt: skip


@pytest.mark.parametrize(("batch", "threads"), SIZES)
@pytest.mark.parametrize("name", [name for name, _, _ in EMBEDDINGS])
def test_embeddings(name: str, batch: int, threads: int) -> None:
    make, shape = of(name, EMBEDDINGS)
    check(make(), [tokens(batch, shape=shape)], threads=threads)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["padding", "padding-last"])
def test_embeddings_on_all_targets(name: str, target: str) -> None:
    make, shape = of(name, EMBEDDINGS)
    check(make(), [tokens(21, shape=shape)], target)


def test_tokens_beside_numbers() -> None:
    both = Both(lambda s, x, i: torch.tanh(s.linear(x)) * s.table(i), table=nn.Embedding(7, 3), linear=nn.Linear(2, 3))
    check(both, [normal((2,), 13), tokens(13, shape=(), dtype="int32")])


def embedded(dtype: str = "float32", integers: str = "int64", **options: Any) -> Model:
    layer = Chain(Embedding(7, 3, **options))
    params, states = ix.setup(layer, 0, np.dtype(dtype))
    return Model.from_layer(layer, params, states, {"tokens": (integers, ("batch", 5))})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("integers", ["int32", "int64"])
def test_a_padding_row_stays(dtype: str, integers: str) -> None:
    model = embedded(dtype, integers, padding_row=2)
    x, y = tokens(3300, dtype="int32"), normal((5, 3), 3300).astype(dtype)
    trainer = fused_trainer(model, optimizer="sgd", learning_rate=0.1, threads=2)
    trainer.run(x, y, epochs=3, batch_size=1100)  # small and with many tiles: gradients of each lane
    before, after = (tree["0"]["weight"] for tree in (model.params, trainer.params))
    assert (np.asarray(before)[2] == after[2]).all() and (np.asarray(before) != after).any(1).sum() == 6
    again = fused_trainer(model, optimizer="sgd", learning_rate=0.1, threads=2)
    again.run(x.astype("int64"), y, epochs=3, batch_size=1100)
    assert np.array_equal(trainer.flat, again.flat)


def test_negative_row_numbers_count_from_the_end() -> None:
    function = fused_gradient(embedded("float64", padding_row=2))
    x, cotangent = tokens(50), normal((5, 3), 50)
    first, second = function.vjp(x, cotangent), function.vjp(x - 7, cotangent)
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])
    assert first[2] is None


@pytest.mark.parametrize(("x", "what"), [
    (np.array([[0, 1, 2, 3, 7]]), r"input 'tokens' holds row numbers, which must lie in -7..6, not 0..7$"),
    (np.array([[0, 1, -8, 3, 6]]), r"-7..6, not -8..6$"),
    (np.zeros((1, 5)), "input 'tokens' must be int64, not float64"),
    (np.zeros((1, 5), bool), "must be int64, not bool"),
    (np.zeros((1, 5), np.uint64), "must be int64, not uint64"),
    (np.zeros((1, 4), int), r"\(batch, 5\), not \(1, 4\)"),
])  # fmt: skip
def test_wrong_row_numbers_are_named_in_one_line(x: np.ndarray, what: str) -> None:
    with pytest.raises(InvalidModelError, match=what) as caught:
        fused_trainer(embedded()).step(x, np.zeros((1, 5, 3), np.float32))
    assert "\n" not in str(caught.value)


def _attended(s: Any, x: torch.Tensor) -> torch.Tensor:
    """Attention in which padding has no part."""
    y = s.e(x)
    return s.a(y, y, y, key_padding_mask=(x == 0) & (torch.arange(5) > 0), need_weights=False)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("function", [
    lambda s, x: s.e(x) * x[..., None], lambda s, x: s.e(x) + x.to(torch.float64)[..., None],
    lambda s, x: torch.where(x[..., None] == 2, s.e(x), 0.0), lambda s, x: (s.e(x) * (x != 0)[..., None]).sum(1),
    _attended,
], ids=["product", "cast", "comparison", "mask", "attention"])  # fmt: skip
def test_integers_as_numbers_and_masks(function: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    for batch, threads in ((13, 1), (1100, 2)):
        module = Own(function, e=nn.Embedding(7, 4), a=nn.MultiheadAttention(4, 2, batch_first=True))
        check(module, [tokens(batch)], threads=threads)


def test_booleans_as_masks() -> None:
    module = Both(
        lambda s, x, mask: torch.where(mask, s.a(x), -s.a(x)) * (~mask).double().sum(1, True), a=nn.Linear(3, 3)
    )
    check(module, [normal((3,), 21), normal((3,), 21) > 0])


@pytest.mark.parametrize("function", [lambda s, x: s.e(x + 1), lambda s, x: s.e(x.clamp(0, 3))], ids=["sum", "clamp"])
def test_row_numbers_are_not_computed(function: Callable[..., Any]) -> None:
    module = Own(function, e=nn.Embedding(7, 3)).double()
    model = ix.from_torch(module, (torch.zeros((2, 5), dtype=torch.int64),))
    with pytest.raises(UnsupportedError, match=r"(int64|integers).*\(in "):
        fused_trainer(model)


# Transposed convolutions, images in other sizes, normalisation of instances


def up(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Upsample(**options))


IMAGES: list[Case] = [
    ("transposed", lambda: nn.ConvTranspose2d(2, 3, 3), (2, 4, 5)),
    ("transposed-1d", lambda: nn.Sequential(nn.ConvTranspose1d(3, 5, 4, 2, 1), nn.ReLU()), (3, 7)),
    ("transposed-stride", lambda: nn.ConvTranspose2d(3, 9, 3, (2, 3), 1, output_padding=(1, 2)), (3, 4, 3)),
    ("transposed-dilation", lambda: nn.ConvTranspose2d(3, 2, (2, 3), 2, dilation=(2, 1), bias=False), (3, 4, 5)),
    ("transposed-groups", lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), (4, 4, 5)),
    ("transposed-depthwise", lambda: nn.ConvTranspose2d(4, 8, 3, 2, 1, groups=4), (4, 4, 5)),
    ("transposed-cut", lambda: nn.ConvTranspose2d(2, 3, 2, 2, 2), (2, 5, 5)),
    ("decoder", lambda: nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 4, 4, 2, 1),
                                      nn.Tanh(), nn.ConvTranspose2d(4, 1, 3, padding=1)), (1, 6, 8)),
    ("weight-norm", lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, (2, 3), (2, 1), 1)), (2, 5, 6)),
    ("made-weights", lambda: Own(lambda s, x: functional.conv2d(x, s.w * s.v, s.c.tanh(), 2, 1, (1, 2), 2),
                                 w=weights(4, 2, 2, 3), v=weights(4, 1, 1, 1), c=weights(4)), (4, 5, 8)),
    ("turned-weights", lambda: Own(lambda s, x: functional.conv1d(x, s.w.transpose(0, 1).flip(2)), w=weights(2, 4, 3)),
     (2, 7)),
    ("nearest", lambda: up(scale_factor=2), (2, 4, 5)),
    ("nearest-size", lambda: up(size=(7, 3)), (2, 4, 5)),
    ("linear", lambda: nn.Sequential(nn.Conv1d(2, 3, 1), nn.Upsample(scale_factor=2.5, mode="linear")), (2, 6)),
    ("bilinear", lambda: up(scale_factor=2, mode="bilinear"), (2, 4, 5)),
    ("bilinear-aligned", lambda: up(size=(7, 3), mode="bilinear", align_corners=True), (2, 4, 5)),
    ("instances", lambda: nn.Sequential(nn.Conv2d(2, 5, 3), nn.InstanceNorm2d(5, affine=True), nn.ReLU()), (2, 6, 6)),
    ("instances-plain", lambda: nn.Sequential(nn.Conv1d(2, 5, 3), nn.InstanceNorm1d(5)), (2, 9)),
]  # fmt: skip


@pytest.mark.parametrize(("batch", "threads"), SIZES[:3])
@pytest.mark.parametrize("name", [name for name, _, _ in IMAGES])
def test_images(name: str, batch: int, threads: int) -> None:
    make, shape = of(name, IMAGES)
    check(make(), [normal(shape, batch)], threads=threads)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["transposed-groups", "bilinear", "instances"])
def test_images_on_all_targets(name: str, target: str) -> None:
    make, shape = of(name, IMAGES)
    check(make(), [normal(shape, 21)], target)


def test_row_numbers_are_an_input() -> None:
    model = imported(Own(lambda s, x: s.e(x.long()), e=nn.Embedding(7, 3)), (5,))
    with pytest.raises(UnsupportedError, match=r"not as they are an input of dtype=.*\(in "):
        fused_trainer(model)


def test_weights_of_a_convolution_that_depend_on_the_input_are_refused() -> None:
    signature = {"x": ("float64", ("batch", 2, 5, 5)), "w": ("float64", ("batch", 2, 3, 3))}
    with pytest.raises(UnsupportedError, match="weights that depend on the input"):
        fused_gradient(Model.from_layer(Operator("Conv"), {}, {}, signature))
