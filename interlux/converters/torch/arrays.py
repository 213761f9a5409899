"""Between torch tensors and numpy arrays, bfloat16 and float8 included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...ir.dtypes import dtype_named
from ...ir.errors import UnsupportedError

if TYPE_CHECKING:
    import torch


def dtype_of(dtype: torch.dtype) -> np.dtype[Any]:
    """numpy's dtype of a torch dtype."""
    import torch

    name = str(dtype).removeprefix("torch.")
    if dtype in (torch.qint8, torch.quint8, torch.qint32) or name == "complex32":
        raise UnsupportedError(f"tensors of dtype {dtype} are not supported")
    return dtype_named(name)


def real_view(tensor: torch.Tensor) -> torch.Tensor:
    """A complex tensor with its real and imaginary parts along a last axis of size 2, as models store it; another as
    it is."""
    import torch

    return torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor


def to_numpy(tensor: torch.Tensor, *, copy: bool = True) -> np.ndarray:
    """A tensor as numpy. It is copied unless told otherwise: `Tensor.numpy` would follow the live module."""
    import torch

    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    dtype = dtype_of(tensor.dtype)
    if dtype.kind == "V":  # numpy has no such type; ml_dtypes has
        bits = {1: torch.uint8, 2: torch.int16}[dtype.itemsize]
        array = tensor.contiguous().view(bits).numpy().view(dtype)
    else:
        array = tensor.numpy()
    return np.array(array) if copy else array


def to_torch(array: Any) -> torch.Tensor:
    """A new tensor with the values of an array of numpy or JAX."""
    import torch

    array = np.array(array)
    if array.dtype.kind == "V":
        bits = array.view({1: np.uint8, 2: np.int16}[array.dtype.itemsize])
        return torch.from_numpy(bits).view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array)
