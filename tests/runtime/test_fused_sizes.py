"""Sizes of the batch in the fused engine: taken where they are shapes, refused where they would be data; outputs whose
batch is not their first axis; boolean inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import interlux as ix
from interlux.runtime.fused import engine

Inputs = Callable[[int], tuple[torch.Tensor, ...]]


class Computes(nn.Module):
    """A function of the module and its inputs; tensors are buffers."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | nn.Parameter | torch.Tensor):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(self, *inputs)


def rows(batch: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(batch, 4),)


def tokens(batch: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(batch, 3, 8),)


def chosen(batch: int) -> tuple[torch.Tensor, ...]:
    return torch.rand(batch, 4) > 0.5, torch.randn(batch, 4), torch.randn(batch, 4)


def attention(**options: Any) -> nn.Module:
    return nn.MultiheadAttention(8, 2, batch_first=True, **options)


CLASS = nn.Parameter(torch.linspace(-1, 1, 8).reshape(1, 1, 8))
# name -> function of (module, *inputs), inputs of a batch, parts of the module
TAKEN: dict[str, tuple[Callable[..., Any], Inputs, dict[str, Any]]] = {
    "a class token": (lambda m, x: torch.cat([m.cls.expand(x.shape[0], -1, -1), x], 1), tokens, {"cls": CLASS}),
    "a token repeated": (lambda m, x: torch.cat([m.cls.repeat(x.shape[0], 1, 1), x], 1), tokens, {"cls": CLASS}),
    "zeros like": (lambda m, x: torch.zeros_like(x) + x, rows, {}),
    "a new tensor": (lambda m, x: torch.cat([x, x.new_full((x.shape[0], 3), 2.5)], 1), rows, {}),
    "another size": (lambda m, x: x * x.shape[1], rows, {}),
    "keys for all": (
        lambda m, x: m.attention(x, x, x)[0],
        tokens,
        {"attention": attention(add_bias_kv=True, add_zero_attn=True)},
    ),
    "masked keys": (
        lambda m, x, mask: m.attention(x, x, x, key_padding_mask=mask)[0],
        lambda b: (*tokens(b), torch.arange(3).repeat(b, 1) > 1),
        {"attention": attention()},
    ),
    "a vector": (lambda m, x: x.reshape(-1), rows, {}),
    "rows of a sample": (lambda m, x: m.linear(x.reshape(-1, 4)), tokens, {"linear": nn.Linear(4, 5)}),
    "rows, columns taken": (lambda m, x: x.reshape(-1, 4)[:, [2, 0, 0]], tokens, {}),
    "an axis in front": (lambda m, x: torch.tanh(x).unsqueeze(0), rows, {}),
    "several behind it": (lambda m, x: torch.tanh(x).reshape(1, -1, 2, 2), rows, {}),
    "all states": (lambda m, x: m.gru(x), tokens, {"gru": nn.GRU(8, 6, batch_first=True)}),
    "where": (lambda m, mask, x, y: torch.where(mask, x, y), chosen, {}),
    "masked": (lambda m, mask, x, y: x.masked_fill(mask, -1e9) + y, chosen, {}),
    "logic": (lambda m, mask, x, y: (~mask & (x > 0)) | (mask == (y > 0)), chosen, {}),
    "mask as numbers": (lambda m, mask, x, y: mask * x + y, chosen, {}),
    "a padding mask": (
        lambda m, i: m.embed(i) * (i != 0).unsqueeze(-1) + (i <= 2).unsqueeze(-1),
        lambda b: (torch.randint(0, 5, (b, 6)),),
        {"embed": nn.Embedding(5, 4)},
    ),
    "large integers": (
        lambda m, i: (i == 2**24 - 1).float(),
        lambda b: (torch.randint(2**24 - 3, 2**24 + 3, (b, 6)),),
        {},
    ),
    "joined masks": (lambda m, mask, x, y: torch.cat([x > 0, mask, y > 0], 1).float(), chosen, {}),
}
REFUSED: dict[str, tuple[Callable[..., Any], Inputs, dict[str, Any]]] = {
    "a divisor": (lambda m, x: x / x.size(0), rows, {}),
    "a factor": (lambda m, x: x * x.shape[0], rows, {}),
    "row numbers": (lambda m, x: x + torch.arange(x.shape[0]).reshape(-1, 1), rows, {}),
    "the smaller size": (lambda m, x: x[:, :2] * min(x.shape[0], 2), rows, {}),
    "samples joined": (lambda m, x: torch.cat([x, x], 0), rows, {}),
    "integers that float32 lacks": (
        lambda m, i: (i == 2**24).float(),
        lambda b: (torch.randint(2**24 - 3, 2**24 + 3, (b, 6)),),
        {},
    ),
    "a table of integers": (
        lambda m, x: m.table[x],
        lambda b: (torch.randint(0, 7, (b, 4)),),
        {"table": torch.arange(10, 17)},
    ),
}


def imported(case: tuple[Callable[..., Any], Inputs, dict[str, Any]]) -> tuple[nn.Module, ix.Model]:
    function, inputs, parts = case
    torch.manual_seed(0)
    module = Computes(function, **parts).eval()
    return module, ix.from_torch(module, inputs(3))


def check(module: nn.Module, run: Callable[..., tuple[np.ndarray, ...]], inputs: Inputs) -> None:
    for batch in (1, 2, 7, 16, 33):
        given = inputs(batch)
        expected = module(*given)
        wanted_outputs = expected if isinstance(expected, tuple) else (expected,)
        for y, wanted in zip(run(*(x.numpy() for x in given)), wanted_outputs, strict=True):
            assert (y.shape, y.dtype) == (wanted.shape, wanted.detach().numpy().dtype)
            np.testing.assert_allclose(y, wanted.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TAKEN)
def test_they_are_shapes(name: str) -> None:
    module, model = imported(TAKEN[name])
    check(module, ix.compile(model, "fused"), TAKEN[name][1])
    check(module, ix.compile(model, "fused"), TAKEN[name][1])  # from the disk


@pytest.mark.parametrize("name", REFUSED)
def test_they_are_no_data(name: str) -> None:
    module, model = imported(REFUSED[name])
    with pytest.raises(ix.UnsupportedError, match="the fused engine does not take"):
        ix.compile(model, "fused")
    with pytest.warns(UserWarning, match="onnxruntime computes"):
        run = ix.compile(model, "fused", fallback="onnxruntime")
    check(module, run, REFUSED[name][1])


@pytest.mark.parametrize("name", ["a vector", "an axis in front", "all states"])
def test_layers_and_c_need_the_batch_first(name: str, tmp_path: Any) -> None:
    _, model = imported(TAKEN[name])
    with pytest.raises(ix.UnsupportedError, match="must have the batch first, and once"):
        ix.to_c(model, tmp_path / "out")
    shape = TAKEN[name][1](2)[0].shape[1:]
    with pytest.raises(ix.UnsupportedError, match="must have the batch first, and once"):
        ix.to_fused(model.layer, tuple(shape), model.params, model.states)


@pytest.mark.parametrize(
    ("function", "x"),
    [
        (lambda m, x: torch.cat([x, x.tanh()]), torch.randn(3, 4)),
        (lambda m, x: torch.stack([x, x * 2]), torch.randn(3, 4)),
        (lambda m, x: x * 2, torch.tensor(1.5)),
    ],
    ids=["joined", "stacked", "a number"],
)
def test_without_a_batch(function: Callable[..., Any], x: torch.Tensor) -> None:
    module = Computes(function).eval()
    (y,) = ix.compile(ix.from_torch(module, x, None), "fused")(x.numpy())
    np.testing.assert_allclose(y, module(x).numpy(), rtol=1e-6)


def test_code_of_layers_from_elsewhere_is_not_kept_by_name() -> None:
    """Two classes of one name, as after an edit, in two modules of a user."""

    def computes(number: float) -> ix.Model:
        class Shifted(ix.layers.Dense):
            def forward(self, op: Any, params: Any, states: Any, *inputs: Any, train: bool) -> Any:
                y, states = super().forward(op, params, states, *inputs, train=train)
                return op.Add(y, op.const(np.float32(number))), states

        layer = Shifted(4, 3)
        params, states = ix.setup(layer, 0)
        return ix.Model.from_layer(layer, params, states, {"x": ("float32", ("batch", 4))})

    x = np.ones((2, 4), np.float32)
    first, second = (engine.FusedRunner(computes(number)).run([x])[0] for number in (1, 100))
    np.testing.assert_allclose(second - first, 99, rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (ix.layers.Dense(4, 3), (5,)),
        (ix.layers.Chain(ix.layers.Dense(4, 16), ix.layers.Dense(15, 3)), (4,)),
        (ix.layers.Conv(3, 4, (3, 3)), (2, 8, 8)),
        (ix.layers.Conv(4, 4, (3, 3), groups=2), (2, 8, 8)),
        (ix.layers.Conv(3, 4, (3, 3)), (3, 2, 8)),
        (ix.layers.Conv(3, 4, (3, 3)), (3, 8)),
    ],
    ids=["more features", "layers that do not fit", "channels", "groups", "a small image", "rank"],
)
def test_weights_must_fit(layer: ix.Layer, shape: tuple[int, ...]) -> None:
    with pytest.raises(ix.InterluxError) as caught:
        ix.to_fused(layer, shape)
    assert "\n" not in str(caught.value)
