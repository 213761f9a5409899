"""An optimiser in the middle of a training run, in no framework's form: what `optimizer_from_torch` moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .trees import Path


@dataclass(frozen=True)
class Optimizer:
    """Hyperparameters and state of an optimiser at one moment.

    Arguments:
        kind: sgd, adam or rmsprop. AdamW is adam with `decoupled_weight_decay`.
        groups: for each group of parameters its hyperparameters under PyTorch's names, as Python numbers and booleans.
        group_of: the number of the group of each parameter that is trained; the others stay as they are.
        steps: of each trained parameter, how many updates it has had. SGD does not count: there 1 says that the
            parameter has a momentum buffer.
        slots: of each parameter that has had updates, its arrays under PyTorch's names (`slots_of`), each with the
            shape and dtype of the parameter.
    """

    kind: str
    groups: tuple[Mapping[str, Any], ...]
    group_of: Mapping[Path, int]
    steps: Mapping[Path, int]
    slots: Mapping[Path, Mapping[str, np.ndarray]]


def slots_of(kind: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The arrays that an optimiser with these hyperparameters keeps for each parameter, in PyTorch's order."""
    if kind == "sgd":
        kept = {"momentum_buffer": options["momentum"] != 0}
    elif kind == "adam":
        kept = {"exp_avg": True, "exp_avg_sq": True, "max_exp_avg_sq": options["amsgrad"]}
    else:
        kept = {"square_avg": True, "momentum_buffer": options["momentum"] > 0, "grad_avg": options["centered"]}
    return tuple(name for name, needed in kept.items() if needed)
