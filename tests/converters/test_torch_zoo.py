"""Architectures of transformers through every backend: outputs at two batch sizes, names of the state_dict, and for
some of them gradients and states of a training step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import interlux as ix
from interlux.converters.torch.arrays import to_numpy
from tests.helpers import check_outputs, check_training
from tests.zoo.architectures import ALL, TRAINED, Architecture

pytestmark = pytest.mark.zoo


def arrays_of(model: ix.Model, arguments: dict[str, Any]) -> list[torch.Tensor]:
    """Keyword arguments in the order of the signature."""
    given = {name: to_numpy(value) for name, value in arguments.items()}
    return [torch.from_numpy(np.asarray(a)) for a in model.require_signature().bind((), given)]


@pytest.mark.parametrize("architecture", ALL, ids=str)
def test_outputs(architecture: Architecture) -> None:
    module = architecture.build()
    model = ix.from_torch(module, architecture.arguments(2))
    for batch in (2, 3):
        check_outputs(module, model, arrays_of(model, architecture.arguments(batch)))
    expected = module.state_dict()
    found = ix.torch_state_dict(model)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("architecture", [a for a in ALL if a.model_type in TRAINED], ids=str)
def test_a_training_step(architecture: Architecture) -> None:
    module = _without_dropout(architecture.build()).double()
    arguments = {k: v.double() if v.is_floating_point() else v for k, v in architecture.arguments(2).items()}
    model = ix.from_torch(module, arguments, None)
    check_training(module, model, arrays_of(model, arguments))


def _without_dropout(module: nn.Module) -> nn.Module:
    """PyTorch and JAX draw different random numbers."""
    for part in module.modules():
        for name, value in vars(part).items():
            if "drop" in name and isinstance(value, float):
                setattr(part, name, 0.0)
            if isinstance(part, nn.Dropout):
                part.p = 0.0
    return module
