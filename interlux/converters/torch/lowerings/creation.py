"""Tensors made from sizes and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir.errors import UnsupportedError
from ....ir.layers.random import Uniform
from ...builder import Value
from ..builder import Size, TorchBuilder
from .registry import aten


def _full(op: TorchBuilder, value: Any) -> Value:
    if isinstance(value, Value):
        return op.Expand(op.cast(value, op.result_dtype), op.sizes(op.result.shape))
    return op.ConstantOfShape(op.sizes(op.result.shape), value=np.array([value], op.result_dtype))


@aten("zeros", "zeros_like", "new_zeros", "empty.memory_format", "empty_like", "new_empty")
def zeros(op: TorchBuilder, *arguments: Any, **options: Any) -> Value:
    return _full(op, 0)  # what is in an empty tensor is undefined; zeros are as good as any


@aten("ones", "ones_like", "new_ones")
def ones(op: TorchBuilder, *arguments: Any, **options: Any) -> Value:
    return _full(op, 1)


@aten("full", "full_like", "new_full")
def full(op: TorchBuilder, like: Any, value: Any, *more: Any, **options: Any) -> Value:
    return _full(op, more[0] if isinstance(value, list | tuple) else value)


@aten("eye", "eye.m")
def eye(op: TorchBuilder, *sizes: Size, **options: Any) -> Value:
    if not all(isinstance(s, int) for s in sizes):
        raise UnsupportedError(f"eye of dynamic size{op.where()}")
    return op.const(np.eye(*(int(s) for s in sizes), dtype=op.result_dtype))


@aten("rand", "rand_like")
def rand(op: TorchBuilder, *arguments: Any, **options: Any) -> Value:
    numbers = op.add(Uniform(), op.sizes(op.result.shape), states={"seed": op.seed}, dtype=np.float32)
    return op.cast(numbers, op.result_dtype)


@aten("scalar_tensor")
def scalar_tensor(op: TorchBuilder, value: Any, **options: Any) -> Value:
    return op.value(value, op.result_dtype)


@aten("arange", "arange.start", "arange.start_step")
def arange(op: TorchBuilder, *bounds: Size | float, **options: Any) -> Value:
    start, end, step = (0, bounds[0], 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    return op.Range(*(op.value(b, op.result_dtype) for b in (start, end, step)))
