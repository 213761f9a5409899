"""What the lowerings over spatial axes share: convolutions, pools, resizing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ....ir.errors import UnsupportedError
from ...builder import Value
from ..builder import Size, TorchBuilder

Ints = Sequence[int]


def all_axes(value: int | Ints, n: int) -> tuple[int, ...]:
    """torch's argument for n axes: a number, or a list of one or n numbers."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values


def static_shape(op: TorchBuilder, value: Value, what: str) -> tuple[int, ...]:
    """The shape of a weight. Raises UnsupportedError if it is dynamic."""
    if value.shape is None or not all(isinstance(s, int) for s in value.shape):
        raise UnsupportedError(f"{what} of unknown shape{op.where()}")
    return tuple(int(s) for s in value.shape if isinstance(s, int))


def channels_of(op: TorchBuilder, x: Value, what: str) -> int:
    """The size of axis 1. Raises UnsupportedError if it is dynamic."""
    features = (x.shape or (None, None))[1]
    if not isinstance(features, int):
        raise UnsupportedError(f"{what} over an unknown number of channels{op.where()}")
    return features


def spatial_rank(op: TorchBuilder) -> int:
    """Of operators that are named by it: conv2d, max_pool1d_with_indices, …"""
    found = re.search(r"(\d)d", op.operator)
    if found is None:
        raise UnsupportedError(f"{op.operator} does not say over how many axes{op.where()}")
    return int(found[1])


def sizes_before(op: TorchBuilder, n: int) -> list[Size]:
    """The sizes of the last n axes of the operator's first argument."""
    source = op.fx_node.args[0]
    assert isinstance(source, torch.fx.Node)
    return list(source.meta["val"].shape[-n:])


def sizes_after(op: TorchBuilder, n: int) -> list[Size]:
    """The sizes of the last n axes of the operator's first result."""
    first = op.result if isinstance(op.result, torch.Tensor) else op.result[0]
    return list(first.shape[-n:])


def with_batch(op: TorchBuilder, x: Value, spatial: int, layer: Callable[[Value], Any]) -> Any:
    """A layer over [batch, channels, *spatial] applied to x, which may lack the batch."""
    if op.rank_of(x) == spatial + 2:
        return layer(x)
    made = layer(op.named(op.Unsqueeze(x, op.ints(0)), "", (1, *(x.shape or ()))))
    if isinstance(made, tuple):
        return tuple(op.Squeeze(part, op.ints(0)) for part in made)
    return op.Squeeze(made, op.ints(0))
