"""Weights in bfloat16: what is computed is the network with rounded weights, at half the size."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import interlux as ix
from interlux.runtime.fused import target as targets

TARGETS = [target.name for target in targets.executable()]


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru = nn.Embedding(11, 24), nn.GRU(24, 32, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(self.embed(x))[0]


# name -> (network, inputs of a batch)
NETWORKS = {
    "dense": (
        lambda: nn.Sequential(nn.Linear(13, 130), nn.ReLU(), nn.Linear(130, 260), nn.Tanh(), nn.Linear(260, 5)),
        lambda b: torch.randn(b, 13),
    ),
    "narrow": (lambda: nn.Sequential(nn.Linear(3, 7), nn.GELU(), nn.Linear(7, 2)), lambda b: torch.randn(b, 3)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 5, 1), nn.Flatten(), nn.Linear(80, 3),
        ),
        lambda b: torch.randn(b, 3, 12, 12),
    ),
    "tokens": (Tokens, lambda b: torch.randint(0, 11, (b, 9))),
}  # fmt: skip


def networks(name: str) -> tuple[ix.Model, ix.Model]:
    """The network, and the same with its weights rounded by PyTorch."""
    torch.manual_seed(0)
    module = NETWORKS[name][0]().eval()
    rounded = copy.deepcopy(module)
    with torch.no_grad():
        for path, parameter in rounded.named_parameters():
            if "weight" in path:
                parameter.copy_(parameter.bfloat16().float())
    x = NETWORKS[name][1](2)
    return ix.from_torch(module, x), ix.from_torch(rounded, x)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_they_are_rounded_and_nothing_else_is(name: str, target: str) -> None:
    model, rounded = networks(name)
    runner = ix.compile(model, "fused", weights="bfloat16", target=target)
    expected = ix.compile(rounded, "fused", target=target)
    for batch in (1, 2, 7, 16, 33, 70):
        x = NETWORKS[name][1](batch).numpy()
        np.testing.assert_array_equal(runner(x)[0], expected(x)[0])
    assert runner.native.parameters.size < 0.85 * expected.native.parameters.size  # type: ignore[attr-defined]


def test_the_error_is_stated() -> None:
    model, _ = networks("dense")
    runner = ix.compile(model, "fused", weights="bfloat16")
    (note,) = runner.notes  # type: ignore[attr-defined]
    x = NETWORKS["dense"][1](500).numpy()
    difference = runner(x)[0] - ix.compile(model, "fused")(x)[0]
    stated = float(note.partition("output ")[2].split()[0])
    assert 0 < stated < 1
    assert 0.5 < stated / np.sqrt(np.mean(difference**2)) < 2


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Linear(4, 3), torch.zeros(2, 4)),
        (nn.Conv2d(2, 3, 2), torch.zeros(2, 2, 3, 3)),
        (nn.Embedding(5, 3), torch.zeros(2, 4, dtype=torch.int64)),
        (nn.GRU(4, 3, batch_first=True), torch.zeros(2, 5, 4)),
    ],
)
def test_weights_that_it_does_not_hold(module: nn.Module, x: torch.Tensor) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.inner(x)
            return y[0] if isinstance(y, tuple) else y

    with torch.no_grad():
        next(module.parameters()).view(-1)[1] = 3.4e38
    model = ix.from_torch(Named().eval(), (x,))
    ix.compile(model, "fused")
    with pytest.raises(ix.InvalidModelError, match=r"^the weight 3\.4e\+38 of inner.* is too large for bfloat16"):
        ix.compile(model, "fused", weights="bfloat16")


def test_they_are_for_float32() -> None:
    model = ix.from_torch(nn.Linear(3, 2).double().eval(), torch.randn(2, 3, dtype=torch.float64))
    with pytest.raises(ix.UnsupportedError, match="for models in float32, not in float64"):
        ix.compile(model, "fused", weights="bfloat16")
    with pytest.raises(ix.UnsupportedError, match="keeps no weights in 'int8'"):
        ix.compile(model, "fused", weights="int8")
