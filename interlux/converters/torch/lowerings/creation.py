"""Tensors made from sizes and numbers, and random ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ....ir.errors import UnsupportedError
from ....ir.layer import ALWAYS
from ....ir.layers.random import Bernoulli, Multinomial, RandomTensor, Uniform
from ....ir.trees import is_float
from ...builder import Value
from ..arrays import to_numpy
from ..builder import Size, TorchBuilder
from .registry import aten
from .sizes import is_one, positions

LARGEST_RANDOM_RANGE = 2**24  # what float32 numbers in [0, 1) can tell apart
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


def _full(op: TorchBuilder, value: Any) -> Value:
    if isinstance(value, Value | torch.SymInt | torch.SymFloat | torch.SymBool):
        return op.Expand(op.value(value, op.result_dtype), op.sizes(op.result.shape))
    return op.ConstantOfShape(op.sizes(op.result.shape), value=np.array([value]).astype(op.result_dtype))


@aten("zeros", "zeros_like", "new_zeros", "empty.memory_format", "empty_like", "new_empty")
@aten("empty_strided", "new_empty_strided")
def zeros(op: TorchBuilder, *arguments: Any, **options: Any) -> Value:
    return _full(op, 0)  # what is in an empty tensor is undefined; zeros are as good as any


@aten("ones", "ones_like", "new_ones")
def ones(op: TorchBuilder, *arguments: Any, **options: Any) -> Value:
    return _full(op, 1)


@aten("full", "full_like", "new_full")
def full(op: TorchBuilder, like: Any, value: Any, *more: Any, **options: Any) -> Value:
    return _full(op, more[0] if isinstance(value, list | tuple) else value)


@aten("scalar_tensor")
def scalar_tensor(op: TorchBuilder, value: Any, **options: Any) -> Value:
    return op.value(value, op.result_dtype)


@aten("eye", "eye.m")
def eye(op: TorchBuilder, *sizes: Size, **options: Any) -> Value:
    rows, columns = (positions(op, size) for size in op.result.shape)
    on = op.Equal(op.Unsqueeze(rows, op.ints(1)), op.Unsqueeze(columns, op.ints(0)))
    return op.cast(on, op.result_dtype)


# --- sequences of numbers


@aten("tril_indices", "triu_indices", "range", "range.step")
def by_torch(op: TorchBuilder, *arguments: Any, **options: Any) -> Value:
    """What torch computes from numbers alone."""
    if any(isinstance(a, _SYMBOLS) for a in arguments):
        raise UnsupportedError(f"{op.operator} of a dynamic size{op.where()}; export with that size fixed")
    dtype = op.result.dtype
    return op.const(to_numpy(op.fx_node.target(*arguments, dtype=dtype)))  # type: ignore[operator]


@aten("arange", "arange.start", "arange.start_step")
def arange(op: TorchBuilder, *bounds: Any, **options: Any) -> Value:
    start, _, step = (0, bounds[0], 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    dtype, (size,) = op.result_dtype, op.result.shape
    whole = not any(isinstance(b, float | torch.SymFloat) for b in bounds)
    if whole:
        return op.cast(positions(op, size, step, start), dtype)
    if not any(isinstance(b, _SYMBOLS) for b in bounds):
        return by_torch(op, *bounds, **options)
    if not is_float(dtype):
        raise UnsupportedError(f"arange of {dtype} with bounds that are dynamic fractions{op.where()}")
    numbers = op.cast(positions(op, size), np.float64)
    return op.cast(op.Add(op.value(start, np.float64), op.Mul(numbers, op.value(step, np.float64))), dtype)


@aten("linspace", "linspace.Tensor_Tensor", "linspace.Tensor_Scalar", "linspace.Scalar_Tensor")
def linspace(op: TorchBuilder, start: Any, end: Any, steps: Size, **options: Any) -> Value:
    if not any(isinstance(a, (Value, *_SYMBOLS)) for a in (start, end, steps)):
        return by_torch(op, start, end, steps)
    return op.cast(_between(op, start, end, steps), op.result_dtype)


def _between(op: TorchBuilder, start: Any, end: Any, steps: Size) -> Value:
    """As torch computes them: the first half from the start, the second from the end."""
    dtype = op.result_dtype
    if not is_float(dtype):
        raise UnsupportedError(f"linspace of {dtype} between computed numbers{op.where()}")
    # torch gives the ends no gradient
    start, end = (
        op.StopGradient(op.value(e, dtype)) if isinstance(e, Value) else op.value(e, dtype) for e in (start, end)
    )
    if is_one(steps):
        return op.Reshape(start, op.ints(1))
    numbers = positions(op, steps)
    last = op.value(steps - 1, np.int64)
    step = op.Div(op.Sub(end, start), op.cast(last, dtype))
    rising = op.Add(start, op.Mul(step, op.cast(numbers, dtype)))
    falling = op.Sub(end, op.Mul(step, op.cast(op.Sub(last, numbers), dtype)))
    return op.Where(op.Less(numbers, op.value(steps // 2, np.int64)), rising, falling)


@aten("logspace", "logspace.Tensor_Tensor", "logspace.Tensor_Scalar", "logspace.Scalar_Tensor")
def logspace(op: TorchBuilder, start: Any, end: Any, steps: Size, base: float = 10.0, **options: Any) -> Value:
    if not any(isinstance(a, (Value, *_SYMBOLS)) for a in (start, end, steps)):
        return by_torch(op, start, end, steps, base)
    exponents = _between(op, start, end, steps)
    return op.Pow(op.const(base, like=exponents), exponents)


# --- random numbers: of the layers that keep their seed in the states


def _no_generator(op: TorchBuilder, generator: Any) -> None:
    if generator is not None:
        raise UnsupportedError(f"random numbers of a torch.Generator{op.where()}; use the default one")


def _uniform(op: TorchBuilder, sizes: Sequence[Size] | Value | None = None) -> Value:
    """float32 in [0, 1), in the shape of the result or another."""
    shape = sizes if isinstance(sizes, Value) else op.sizes(list(op.result.shape) if sizes is None else sizes)
    return op.add(Uniform(), shape, states={"seed": op.seed}, dtype=np.float32)


def _normal(op: TorchBuilder, mean: float = 0.0, std: float = 1.0) -> Value:
    layer = RandomTensor("normal", mean, std, "float32", ALWAYS)
    return op.add(layer, op.sizes(op.result.shape), states={"seed": op.seed}, dtype=np.float32)


def _below_one(op: TorchBuilder, numbers: Value) -> Value:
    """float32 in [0, 1) in the result's dtype, where a half would round up to 1."""
    dtype = op.result_dtype
    if dtype.itemsize < 4:
        steps = op.const(np.float32(2**8 if dtype.name == "bfloat16" else 2**11))
        numbers = op.Div(op.Floor(op.Mul(numbers, steps)), steps)
    return op.cast(numbers, dtype)


@aten("rand", "rand_like", "rand.generator", "rand_like.generator")
def rand(op: TorchBuilder, *arguments: Any, generator: Any = None, **options: Any) -> Value:
    _no_generator(op, generator)
    return _below_one(op, _uniform(op))


@aten("randn", "randn_like", "randn.generator", "randn_like.generator")
def randn(op: TorchBuilder, *arguments: Any, generator: Any = None, **options: Any) -> Value:
    _no_generator(op, generator)
    return op.cast(_normal(op), op.result_dtype)


@aten("uniform")
def uniform(op: TorchBuilder, x: Value, low: float = 0.0, high: float = 1.0, *, generator: Any = None) -> Value:
    _no_generator(op, generator)
    numbers, dtype = _below_one(op, _uniform(op)), op.result_dtype
    if low == 0 and high == 1:
        return numbers
    return op.Add(op.Mul(numbers, op.const(np.array(high - low, dtype))), op.const(np.array(low, dtype)))


@aten("normal")
def normal_like(op: TorchBuilder, x: Value, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Value:
    _no_generator(op, generator)
    return op.cast(_normal(op, float(mean), float(std)), op.result_dtype)


@aten("normal.float_float")
def normal_of_numbers(op: TorchBuilder, mean: float, std: float, *sizes: Any, generator: Any = None, **o: Any) -> Value:
    return normal_like(op, None, mean, std, generator=generator)


@aten("normal.Tensor_float", "normal.float_Tensor", "normal.Tensor_Tensor")
def normal_of_tensors(op: TorchBuilder, mean: Any, std: Any = 1.0, *, generator: Any = None) -> Value:
    _no_generator(op, generator)
    dtype = op.result_dtype
    return op.Add(op.Mul(op.cast(_normal(op), dtype), op.value(std, dtype)), op.value(mean, dtype))


@aten("log_normal")
def log_normal(op: TorchBuilder, x: Value, mean: float = 1.0, std: float = 2.0, *, generator: Any = None) -> Value:
    return op.Exp(normal_like(op, x, mean, std, generator=generator))


def _exponential(op: TorchBuilder, numbers: Value) -> Value:
    """Of uniform numbers, never 0: the logarithm of what is drawn is often taken."""
    rest = op.Neg(op.Log(op.Sub(op.const(np.float32(1)), numbers)))
    return op.Max(rest, op.const(np.float32(2.0**-24)))


@aten("exponential")
def exponential(op: TorchBuilder, x: Value, rate: float = 1.0, *, generator: Any = None) -> Value:
    _no_generator(op, generator)
    return op.cast(op.Div(_exponential(op, _uniform(op)), op.const(np.float32(rate))), op.result_dtype)


@aten("cauchy")
def cauchy(op: TorchBuilder, x: Value, median: float = 0.0, sigma: float = 1.0, *, generator: Any = None) -> Value:
    _no_generator(op, generator)
    angle = op.Mul(op.Sub(_uniform(op), op.const(np.float32(0.5))), op.const(np.float32(math.pi)))
    scaled = op.Mul(op.Tan(angle), op.const(np.float32(sigma)))
    return op.cast(op.Add(scaled, op.const(np.float32(median))), op.result_dtype)


@aten("geometric")
def geometric(op: TorchBuilder, x: Value, p: float, *, generator: Any = None) -> Value:
    _no_generator(op, generator)
    tries = op.Ceil(op.Div(_exponential(op, _uniform(op)), op.const(np.float32(-math.log1p(-p)))))
    return op.cast(tries, op.result_dtype)


@aten("randint", "randint_like", "randint.generator", "randint_like.generator")
def randint(op: TorchBuilder, *arguments: Any, generator: Any = None, **options: Any) -> Value:
    _no_generator(op, generator)
    return _integers(op, 0, arguments[1] if op.operator == "randint_like" else arguments[0])


@aten("randint.low", "randint_like.low_dtype", "randint.low_generator", "randint_like.low_generator_dtype")
def randint_from(op: TorchBuilder, *arguments: Any, generator: Any = None, **options: Any) -> Value:
    _no_generator(op, generator)
    low, high = arguments[1:3] if op.operator == "randint_like" else arguments[:2]
    return _integers(op, low, high)


@aten("random.from", "random.to")
def random_integers(op: TorchBuilder, x: Value, *bounds: Any, generator: Any = None) -> Value:
    _no_generator(op, generator)
    low, high = (0, *bounds) if len(bounds) == 1 else bounds
    if high is None:
        raise UnsupportedError(f"random_ without an upper bound{op.where()}")
    return _integers(op, low, high)


def _integers(op: TorchBuilder, low: Size, high: Size) -> Value:
    """Integers of low..high - 1."""
    span = high - low
    if isinstance(span, int) and not 0 < span <= LARGEST_RANDOM_RANGE:
        raise UnsupportedError(f"random integers of a range of {span}, at most {LARGEST_RANDOM_RANGE}{op.where()}")
    drawn = op.Floor(op.Mul(_uniform(op), op.value(span, np.float32)))
    return op.cast(op.Add(op.cast(drawn, np.int64), op.value(low, np.int64)), op.result_dtype)


@aten("bernoulli", "bernoulli.p", "bernoulli.float", "bernoulli.Tensor")
def bernoulli(op: TorchBuilder, x: Value, p: Any = None, *, generator: Any = None) -> Value:
    """Of the tensor's own probabilities, or of others in its shape (`bernoulli_`: 0.5)."""
    _no_generator(op, generator)
    if p is None and op.fx_node.args[0] is not None and op.fx_node.target == torch.ops.aten.bernoulli_.float:
        p = 0.5
    probabilities = x
    if p is not None:
        probabilities = op.Expand(
            op.value(p) if isinstance(p, Value) else op.value(p, np.float32), op.sizes(op.result.shape)
        )
    layer = Bernoulli(op.result_dtype.name, ALWAYS)
    return op.add(layer, probabilities, states={"seed": op.seed}, dtype=op.result_dtype)


@aten("multinomial")
def multinomial(op: TorchBuilder, x: Value, count: Size, replacement: bool = False, *, generator: Any = None) -> Value:
    _no_generator(op, generator)
    logits = op.Log(op.cast(x, np.float32))
    single = op.rank_of(x) == 1
    if not isinstance(count, int):
        raise UnsupportedError(f"multinomial with a dynamic number of samples{op.where()}")
    if replacement or count == 1:
        rows = op.Unsqueeze(logits, op.ints(0)) if single else logits
        drawn = op.add(Multinomial(count, "int64", ALWAYS), rows, states={"seed": op.seed}, dtype=np.int64)
        return op.Squeeze(drawn, op.ints(0)) if single else drawn
    # the largest of the logits plus Gumbel noise: as drawing one after the other without putting back
    noise = op.Neg(op.Log(_exponential(op, _uniform(op, op.Shape(logits)))))
    return op.TopK(op.Add(logits, noise), op.ints(count), axis=-1, outputs=2)[1]


@aten("randperm", "randperm.generator")
def randperm(op: TorchBuilder, n: Size, *, generator: Any = None, **options: Any) -> Value:
    _no_generator(op, generator)
    return op.cast(op.TopK(_uniform(op), op.size(n), axis=0, outputs=2)[1], op.result_dtype)
