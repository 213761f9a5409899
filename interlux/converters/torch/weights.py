"""Weights back into PyTorch."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from ...ir.errors import InvalidModelError, UnsupportedError
from ...ir.model import Model
from ...ir.trees import path_of
from .arrays import to_torch

if TYPE_CHECKING:
    import torch


def torch_state_dict(model: Model) -> OrderedDict[str, torch.Tensor]:
    """The `state_dict` of the module that a model was imported from, with the model's present arrays.

    Arguments:
        model: imported by `from_torch`, perhaps trained elsewhere since (`model.replace(params, states)`).

    Returns:
        New tensors in the order of the module's own state_dict, tied weights under each of their names. It loads with
        `module.load_state_dict(…)`, strictly.
    """
    import torch

    names = model.metadata.get("state_dict")
    if model.metadata.get("source") != "torch" or names is None:
        raise UnsupportedError("the model was not imported from PyTorch, so it has no state_dict to go back to")
    result: OrderedDict[str, torch.Tensor] = OrderedDict()
    for name in names:
        array = model.array(path_of(name))
        if array is None:
            raise InvalidModelError(f"the model has lost the array {name!r}")
        tensor = to_torch(array)
        pairs = name in model.metadata.get("complex", ())
        result[name] = torch.view_as_complex(tensor) if pairs else tensor
    return result
