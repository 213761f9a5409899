"""How the tables of PyTorch operators and modules are tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import interlux as ix
from tests.helpers import Calls, check_batches, check_training

Inputs = Callable[[int], tuple[torch.Tensor, ...]]  # of a batch size


def rows(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(b, 6),)


def sequences(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(b, 5, 6),)


def pairs(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 6), torch.randn(b, 6)


def images(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(b, 4, 9, 7),)


def tokens(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randint(0, 11, (b, 5)),)


def integers(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randint(-9, 9, (b, 6)),)


def perturbed(module: nn.Module) -> nn.Module:
    """Weights and statistics that are not what a fresh module has: no zeros, no ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator) + 0.5
                tensor.copy_(noise if "var" in name else tensor + 0.3 * (noise - 1))
    return module


def check_operator(function: Callable[..., Any], inputs: Inputs, batches: Sequence[int] = (3, 2, 5)) -> None:
    """A function of (module, *inputs) on both backends. Of several batch sizes the first is exported, with a dynamic
    batch; with one, all sizes are fixed."""
    torch.manual_seed(0)
    module = Calls(function)
    model = ix.from_torch(module, inputs(batches[0]), "batch" if len(batches) > 1 else None)
    check_batches(module, model, [inputs(batch) for batch in batches])


def check_layer(make: Callable[[], nn.Module], inputs: Inputs, batches: Sequence[int] = (3, 1, 2, 5)) -> None:
    """A module on both backends, and its state_dict back again."""
    torch.manual_seed(0)
    module = perturbed(make()).eval()
    model = ix.from_torch(module, inputs(batches[0]), "batch" if len(batches) > 1 else None)
    check_batches(module, model, [inputs(batch) for batch in batches])
    expected = module.state_dict()
    found = ix.torch_state_dict(model)
    assert list(found) == list(expected)
    assert all(torch.equal(found[k], expected[k]) and found[k].dtype == expected[k].dtype for k in expected)


def check_layer_in_training(make: Callable[[], nn.Module], inputs: Inputs) -> None:
    """Outputs, gradients of all parameters and new states in training, in float64 on JAX."""
    torch.manual_seed(0)
    module = perturbed(make()).double()
    given = tuple(x.double() if x.is_floating_point() else x for x in inputs(3))
    check_training(module, ix.from_torch(module, given, None), given)
