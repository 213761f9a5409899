"""Products of grouped rows, as mixtures of experts in transformers have them."""

from __future__ import annotations

import pytest
import torch
import transformers.integrations.moe  # noqa: F401  # registers its operator
from torch import nn

from tests.torch_cases import check_layer, check_layer_in_training


class Experts(nn.Module):
    """Rows times the matrix of their group; the groups end where the input says."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6, 5))

    def forward(self, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return torch.ops.transformers.grouped_mm_fallback(x, self.weight, ends)


ENDS = [[2, 2, 5, 7], [0, 3, 3, 6], [7, 7, 7, 7], [0, 0, 0, 0]]


@pytest.mark.parametrize("ends", ENDS)
def test_rows_meet_the_matrix_of_their_group(ends: list[int]) -> None:
    def inputs(_: int) -> tuple[torch.Tensor, ...]:
        return torch.randn(7, 6), torch.tensor(ends)

    check_layer(Experts, inputs, batches=(1,))
    check_layer_in_training(Experts, inputs)
