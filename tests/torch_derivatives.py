"""Derivatives of functions of one tensor, at chosen values, against PyTorch's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import interlux as ix
from tests.helpers import check_training


class Through(nn.Module):
    """A function of a parameter of given values."""

    def __init__(self, function: Callable[..., Any], values: torch.Tensor):
        super().__init__()
        self.function = function
        self.w = nn.Parameter(values)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(self.w, *inputs)


def check_derivative(
    function: Callable[..., Any], values: Any, *inputs: torch.Tensor, tolerance: float = 1e-10
) -> None:
    values = values if isinstance(values, torch.Tensor) else torch.tensor(values)
    module = Through(function, values.double().clone())
    given = inputs or (torch.zeros(1, dtype=torch.float64),)
    if not inputs:
        module.function = lambda w, unused: function(w)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_training(module, ix.from_torch(module, given, None), given, tolerance)
