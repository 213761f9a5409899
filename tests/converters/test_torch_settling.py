"""Modules that change themselves when they are called."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import interlux as ix
from tests.helpers import check_batches


class Exchanges(nn.Module):
    """Replaces a part in its first call, weights kept; the new part is initialised first, as new parts are."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.ready = nn.Linear(4, 3), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.ready:
            made = nn.Linear(4, 3)
            made.weight, made.bias = self.inner.weight, self.inner.bias
            self.inner, self.ready = made, True
        return self.inner(x)


class Looks(nn.Module):
    """Looks at its first input, which cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.ready = nn.Linear(4, 3), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.ready:
            if x.abs().max() > 1e9:
                raise ValueError("too large")
            self.ready = True
        return self.inner(x)


class Rescales(nn.Module):
    """Divides its weight in the first call in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.done = nn.Linear(4, 3), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and not self.done:
            with torch.no_grad():
                self.inner.weight.div_(2)
            self.done = True
        return self.inner(x)


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last, self.calls = nn.Linear(4, 3), None, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.last = self.inner(x)
        return self.last * 2


@pytest.mark.parametrize("kind", [Exchanges, Looks])
def test_what_only_the_first_call_does(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module: Any = kind().eval()
    part = module.inner
    model = ix.from_torch(module, torch.randn(2, 4))
    assert module.inner is part and not module.ready
    said = [note for note in model.notes if "changes itself when it is called" in note and "ready" in note]
    assert len(said) == (kind is Looks)
    check_batches(module, model, [(torch.randn(b, 4),) for b in (2, 3)])
    assert list(ix.torch_state_dict(model)) == ["inner.weight", "inner.bias"]


def test_weights_changed_in_the_first_call_are_refused_and_stay() -> None:
    module = Rescales().eval()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ix.UnsupportedError, match=r"writes to its parameters .* call it once before"):
        ix.from_torch(module, torch.randn(2, 4))
    assert not module.done
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    x = torch.randn(3, 4)
    module(x)
    check_batches(module, ix.from_torch(module, x), [(x,)])


def test_a_trace_leaves_no_traces() -> None:
    module = Remembers().eval()
    model = ix.from_torch(module, torch.randn(2, 4))
    assert module.calls == 0 and module.last is None
    check_batches(module, model, [(torch.randn(3, 4),)])
