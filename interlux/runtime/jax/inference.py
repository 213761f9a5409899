"""The interpreter of compiled inference: the same values as JaxInterpreter's, computed in forms that are fast on a CPU.

Images are kept channels-last, weights are packed with numpy while tracing. What has no form here, or is not float32 or
float64, is computed as everywhere else. Training keeps the plain forms, which are all differentiable.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ...ir.graph import ValueInfo
from ...ir.layers.control import Control
from ...ir.windows import Ints, Window
from ..memory import contiguous, release
from .channels_last import RANKS, ChannelsLast, aligned, plain, stored, stored_axis, to_last, to_second
from .convolution_forms import FORMS, MOST_TAPS, average, form_of, largest
from .interpreter import JaxInterpreter
from .primitives import PRIMITIVES
from .primitives.linear import EXACT
from .primitives.registry import Value, integers, is_static

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def memory(array: np.ndarray) -> Hashable:
    """The place and layout of an array: the same for every view that shows the same elements."""
    return array.__array_interface__["data"][0], array.shape, array.strides, array.dtype


class Packs:
    """What has been computed with numpy from parameters: once for all the programs of a model, so that they share it.

    An array is known by its memory, and kept so that its memory stays its own.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], tuple[tuple[Any, ...], np.ndarray]] = {}

    def __call__(self, purpose: Hashable, pack: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
        """pack(*arrays), C-contiguous and aligned.

        Arguments:
            purpose: tells apart what is made of the same arrays; hashable.
        """
        key = (purpose, *map(memory, arrays))
        if key not in self._made:
            made = contiguous(pack(*arrays))
            self._made[key] = arrays, made
            for array in arrays:
                if not np.may_share_memory(array, made):
                    release(array)  # of the two, the program needs the packed one
        return self._made[key][1]


class InferenceInterpreter(JaxInterpreter):
    """JaxInterpreter with `INFERENCE` forms before the plain ones.

    Arguments:
        packs: of the model.

    Attributes:
        convolves: whether a convolution has been computed. Then the items of a batch may be computed one by one.
        wide_vectors: whether XLA may compute in vectors of 512 bits; its atan is wrong there.
    """

    def __init__(self, known: Mapping[str, ValueInfo] | None = None, packs: Packs | None = None):
        super().__init__(known)
        self.packs = packs or Packs()
        self.convolves = False
        self.wide_vectors = True

    def plain(self, value: Value) -> Value:
        return [plain(item) for item in value] if isinstance(value, list) else plain(value)

    def control(self, layer: Control, inputs: Sequence[Value | None], *, train: bool) -> tuple[Value, ...]:
        return super().control(layer, [self.plain(i) for i in inputs], train=train)

    def call(self, op_type: str, inputs: Sequence[Value | None], attributes: dict[str, Any], outputs: int) -> Any:
        self.convolves = self.convolves or op_type in _CONVOLUTIONS
        self.wide_vectors = self.wide_vectors and op_type != "Atan"
        form = INFERENCE.get(op_type) if outputs == 1 or op_type == "Split" else None
        if form is not None:
            result = form(self.packs, *inputs, **attributes)
            if result is not NotImplemented:
                return result[:outputs] if isinstance(result, tuple) else result
        return super().call(op_type, [self.plain(i) for i in inputs], attributes, outputs)


# Forms: like primitives, with `packs` in front. Each returns its first output (Split: all), or NotImplemented where the
# plain form is the right one.

INFERENCE: dict[str, Callable[..., Any]] = {}
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv"})


def form(function: Callable[..., Any]) -> Callable[..., Any]:
    """Enters a function into the table under its own name."""
    INFERENCE[function.__name__] = function
    return function


def _is_image(x: Value) -> bool:
    """Whether a value is computed while running, in floats, with one to three spatial axes."""
    return not is_static(x) and not isinstance(x, list) and x.ndim in RANKS and np.dtype(x.dtype) in FLOATS


# --- convolutions and pools


@form
def Conv(
    packs: Packs,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    *,
    kernel_shape: Ints | None = None,
    strides: Ints | None = None,
    pads: Ints | None = None,
    dilations: Ints | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Value:
    if not _is_image(x) or not is_static(weight):
        return NotImplemented
    window = Window.of(x.shape[2:], weight.shape[2:], strides, pads, dilations, auto_pad)
    if min(window.sizes) < 1 or min(weight.shape) < 1:
        return NotImplemented
    name = form_of(x.shape[1], weight.shape[0], group, window)
    pack, apply = FORMS[name]
    y = apply(stored(x), packs((name, group), lambda w: pack(w, group), weight), window, group)
    return ChannelsLast(y if bias is None else y + plain(bias))


@form
def MaxPool(
    packs: Packs,
    x: Value,
    *,
    kernel_shape: Ints,
    strides: Ints | None = None,
    pads: Ints | None = None,
    dilations: Ints | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    storage_order: int = 0,
) -> Value:
    window = _pooling(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    return ChannelsLast(largest(x.array, window)) if window is not None else NotImplemented


@form
def AveragePool(
    packs: Packs,
    x: Value,
    *,
    kernel_shape: Ints,
    strides: Ints | None = None,
    pads: Ints | None = None,
    dilations: Ints | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> Value:
    window = _pooling(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    if window is None:
        return NotImplemented
    return ChannelsLast(average(x.array, window, bool(count_include_pad)))


def _pooling(x: Value, kernel: Ints, *rest: Any) -> Window | None:
    """The window of a pool that is computed channels-last; None for others."""
    if not isinstance(x, ChannelsLast) or np.dtype(x.dtype) not in FLOATS:
        return None
    window = Window.of(x.shape[2:], kernel, *rest)
    return window if window.taps <= MOST_TAPS and min(window.sizes) > 0 else None


def _global_pool(op_type: str) -> Callable[..., Value]:
    def pool(packs: Packs, x: Value) -> Value:
        if not isinstance(x, ChannelsLast):
            return NotImplemented
        return ChannelsLast(getattr(jnp, op_type)(x.array, tuple(range(1, x.ndim - 1)), keepdims=True))

    return pool


INFERENCE["GlobalAveragePool"] = _global_pool("mean")
INFERENCE["GlobalMaxPool"] = _global_pool("max")


@form
def BatchNormalization(
    packs: Packs,
    x: Value,
    weight: Value,
    bias: Value,
    mean: Value,
    variance: Value,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Value:
    """One multiplication and one addition for each channel; their factors are computed in float64."""
    statistics = (weight, bias, mean, variance)
    if training_mode or x.ndim < 2 or np.dtype(x.dtype) not in FLOATS or not is_static(*statistics):
        return NotImplemented

    def factor(weight: np.ndarray, _: np.ndarray, __: np.ndarray, variance: np.ndarray) -> np.ndarray:
        return weight.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)

    def folded(*arrays: np.ndarray) -> np.ndarray:
        scale = factor(*arrays)
        return np.stack([scale, arrays[1] - arrays[2] * scale]).astype(x.dtype)

    scale, shift = packs(("BatchNormalization", epsilon, x.dtype), folded, *statistics)
    if isinstance(x, ChannelsLast):
        return ChannelsLast(x.array * scale + shift)
    column = (-1,) + (1,) * (x.ndim - 2)
    return x * scale.reshape(column) + shift.reshape(column)


# --- element by element


def _elementwise(op_type: str) -> Callable[..., Value]:
    def compute(packs: Packs, *inputs: Value | None, **attributes: Any) -> Value:
        operands = [i for i in inputs if i is not None]
        arrays = None if any(isinstance(i, list) for i in operands) else aligned(operands)
        if arrays is None:
            return NotImplemented
        left = iter(arrays)
        return ChannelsLast(PRIMITIVES[op_type](*(None if i is None else next(left) for i in inputs), **attributes))

    return compute


_ELEMENTWISE = (
    *("Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip", "Cos"),
    *("Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid"),
    *("HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min"),
    *("Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink"),
    *("Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "StopGradient", "Sub", "Sum", "Swish"),
    *("StraightThrough", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor"),
)
INFERENCE.update({name: _elementwise(name) for name in _ELEMENTWISE if name in PRIMITIVES})


@form
def Dropout(packs: Packs, x: Value, ratio: Value | None = None, training: Value | None = None, **_: Any) -> Value:
    switched_off = training is None or (is_static(training) and not bool(training))
    return x if isinstance(x, ChannelsLast) and switched_off else NotImplemented


# --- axes


def _by_axis(op_type: str, default: int | None = None) -> Callable[..., Value]:
    """An operator along the one axis that its attribute `axis` names, which keeps the ranks of its inputs."""

    def compute(packs: Packs, *inputs: Value, axis: int | None = default, **attributes: Any) -> Value:
        images = [i for i in inputs if isinstance(i, ChannelsLast)]
        if not images or axis is None:
            return NotImplemented
        rank = images[0].ndim
        others = [i for i in inputs if not isinstance(i, ChannelsLast)]
        if op_type == "Concat":
            if any(isinstance(i, list) or i.ndim != rank for i in inputs):
                return NotImplemented
            arrays = [stored(i) for i in inputs]
        elif is_static(*others):
            arrays = [i.array if isinstance(i, ChannelsLast) else i for i in inputs]
        else:
            return NotImplemented
        result = PRIMITIVES[op_type](*arrays, axis=stored_axis(axis, rank), **attributes)
        return tuple(map(ChannelsLast, result)) if isinstance(result, tuple) else ChannelsLast(result)

    return compute


INFERENCE["Concat"] = _by_axis("Concat")
INFERENCE["Split"] = _by_axis("Split", default=0)
INFERENCE["Softmax"] = _by_axis("Softmax", default=-1)


def _by_axes(op_type: str, place: int) -> Callable[..., Value]:
    """An operator along axes that are its input number `place` (absent: the first ones), which keeps the rank."""

    def compute(packs: Packs, x: Value, *inputs: Value | None, **attributes: Any) -> Value:
        if not isinstance(x, ChannelsLast) or not is_static(*inputs):
            return NotImplemented
        rest = [*inputs, *(None,) * (place - len(inputs))]
        given = rest[place - 1]
        if given is None:
            given = np.arange(x.ndim if op_type == "Pad" or rest[0] is None else rest[0].size)
        rest[place - 1] = np.array([stored_axis(a, x.ndim) for a in integers(given, "axes")], np.int64)
        return ChannelsLast(PRIMITIVES[op_type](x.array, *rest, **attributes))

    return compute


INFERENCE["Slice"] = _by_axes("Slice", 3)
INFERENCE["Pad"] = _by_axes("Pad", 3)


def _reduction(op_type: str) -> Callable[..., Value]:
    def compute(
        packs: Packs, x: Value, axes: Value | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Value:
        if not isinstance(x, ChannelsLast) or axes is None or not is_static(axes) or not axes.size:
            return NotImplemented
        along = [stored_axis(a, x.ndim) for a in integers(axes, "the axes of a reduction")]
        if not keepdims and sorted(along) != list(range(1, x.ndim - 1)):  # the other axes would be out of order
            return NotImplemented
        y = PRIMITIVES[op_type](x.array, np.array(along, np.int64), keepdims=keepdims)
        return ChannelsLast(y) if keepdims else y

    return compute


INFERENCE.update({name: _reduction(name) for name in PRIMITIVES if name.startswith("Reduce")})


@form
def Transpose(packs: Packs, x: Value, *, perm: Ints | None = None) -> Value:
    """Between the two layouts nothing moves."""
    if perm is None:
        return NotImplemented
    if isinstance(x, ChannelsLast) and tuple(perm) == to_last(x.ndim):
        return x.array
    if _is_image(x) and not isinstance(x, ChannelsLast) and tuple(perm) == to_second(x.ndim):
        return ChannelsLast(x)
    return NotImplemented


@form
def Shape(packs: Packs, x: Value, *, start: int = 0, end: int | None = None) -> Value:
    return PRIMITIVES["Shape"](x, start=start, end=end)


# --- matrix products


@form
def MatMul(packs: Packs, x: Value, y: Value) -> Value:
    """With a matrix of parameters: one product of two matrices, whatever the rank of the other factor."""
    x = plain(x)
    if is_static(x) or not is_static(y) or y.ndim != 2 or x.ndim < 2 or np.dtype(x.dtype) not in FLOATS:
        return NotImplemented
    return _product(x, packs("MatMul", np.asarray, y))


@form
def Gemm(
    packs: Packs,
    a: Value,
    b: Value,
    c: Value | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Value:
    if is_static(a) or not is_static(b) or np.dtype(a.dtype) not in FLOATS:
        return NotImplemented
    y = _product(a.T if transA else a, packs(("Gemm", transB), np.transpose if transB else np.asarray, b))
    if alpha != 1:
        y = y * np.asarray(alpha, y.dtype)
    if c is None or beta == 0:
        return y
    return y + (c if beta == 1 else c * np.asarray(beta, y.dtype))


def _product(x: Value, matrix: np.ndarray) -> Value:
    """x [..., k] times a matrix [k, n]."""
    rows = jnp.reshape(x, (prod(x.shape[:-1]), matrix.shape[0]))
    return jnp.reshape(lax.dot(rows, matrix, precision=EXACT), (*x.shape[:-1], matrix.shape[1]))


# For programs on a CPU. XLA's fusion by YNN makes convolutional networks up to three times slower, and transformers on
# one thread by a tenth; wide vectors make exp, tanh and erf up to twice as fast, where the processor has them.
COMPILER_OPTIONS: dict[str, Any] = {"xla_cpu_experimental_ynn_fusion_type": ""}
WIDE_VECTORS: dict[str, Any] = {"xla_cpu_prefer_vector_width": 512}
