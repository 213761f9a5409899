"""Architectures of transformers through every backend: outputs at two batch sizes, names of the state_dict, and for
some of them gradients and states of a training step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import interlux as ix
from tests.helpers import check_batches, check_training, in_order
from tests.zoo.architectures import Architecture
from tests.zoo.table import ALL, LONG, REFUSED, TRAINED

pytestmark = pytest.mark.zoo


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, marks=[pytest.mark.long] if a.model_type in LONG else []) for a in ALL],
    ids=[str(a) for a in ALL],
)
def test_outputs(architecture: Architecture) -> None:
    module = architecture.build()
    model = ix.from_torch(module, architecture.arguments(2))
    check_batches(module, model, [in_order(model, architecture.arguments(batch)) for batch in (2, 3)])
    expected = module.state_dict()
    found = ix.torch_state_dict(model)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("architecture", [a for a in ALL if a.model_type in TRAINED], ids=str)
def test_a_training_step(architecture: Architecture) -> None:
    module = _without_dropout(architecture.build()).double()
    arguments = {k: v.double() if v.is_floating_point() else v for k, v in architecture.arguments(2).items()}
    model = ix.from_torch(module, arguments, None)
    check_training(module, model, arguments, TRAINED[architecture.model_type])


@pytest.mark.parametrize(("architecture", "reason"), REFUSED, ids=str)
def test_what_cannot_be_exported_is_refused_in_one_line(architecture: Architecture, reason: str) -> None:
    with pytest.raises(ix.UnsupportedError, match=reason) as raised:
        ix.from_torch(architecture.build(), architecture.arguments(2))
    assert "\n" not in str(raised.value)


def test_the_table_is_wide() -> None:
    assert len({a.model_type for a in ALL} - LONG) >= 120
    assert len({a.family for a in ALL}) >= 25
    assert len(TRAINED) >= 30
    assert {a.model_type for a in ALL} >= LONG | set(TRAINED)


def _without_dropout(module: nn.Module) -> nn.Module:
    """PyTorch and JAX draw different random numbers."""
    for part in module.modules():
        for name, value in vars(part).items():
            if "drop" in name and isinstance(value, float):
                setattr(part, name, 0.0)
            if isinstance(part, nn.Dropout):
                part.p = 0.0
    return module
