"""PyTorch: import through torch.export, weights back, and the source as the verifier's reference."""

from .convert import from_torch
from .reference import TorchSource
from .weights import torch_state_dict

__all__ = ["TorchSource", "from_torch", "torch_state_dict"]
