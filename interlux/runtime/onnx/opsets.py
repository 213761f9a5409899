"""Primitives in older opsets: what an operator of the newest opset was before it existed, or had that form.

A rule is entered with the version from which the operator has its present form; below that, the rule's function emits
the older one. Operators without a rule are emitted as they are, or refused where an attribute or input did not exist
yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ir import dtypes
from ...ir.errors import UnsupportedError

if TYPE_CHECKING:
    from .emitter import Emitted, OnnxInterpreter


class NeedsOpset(UnsupportedError):
    """What is to be emitted exists from a later opset on."""

    def __init__(self, message: str, opset: int):
        super().__init__(message)
        self.opset = opset


EVERY = 1 << 30  # the version of a rule for all opsets
Rule = Callable[..., Any]
_RULES: dict[str, tuple[int, Rule]] = {}


def _below(version: int, *op_types: str) -> Callable[[Rule], Rule]:
    """Enters a rule `(op, op_type, inputs, attributes) -> outputs` for opsets below a version."""

    def enter(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(op_types, (version, rule)))
        return rule

    return enter


def lower(
    op: OnnxInterpreter, op_type: str, inputs: Sequence[Emitted | None], attributes: dict[str, Any], outputs: int
) -> Any | None:
    """The outputs of an operator in the older form that the target opset needs; None where it needs none."""
    if op_type in _ALWAYS:
        return _ALWAYS[op_type](op, op_type, inputs, attributes)
    if op_type in _LONG and inputs[0] is not None and inputs[0].dtype in (np.int64, np.uint64):
        exact = _LONG[op_type](op, op_type, inputs, attributes)
        if exact is not None:
            return exact
    if op_type in _EPSILON and inputs[0] is not None and inputs[0].dtype == np.float64:
        version, rule = EVERY, _EPSILON[op_type]  # attributes are float32: an epsilon would lose digits
    else:
        version, rule = _RULES.get(op_type, (0, None))  # type: ignore[assignment]
    if rule is None or op.opset >= version:
        return None
    if outputs > 1:
        raise NeedsOpset(f"{op_type} with {outputs} outputs needs opset {version}{op.where()}", version)
    return rule(op, op_type, inputs, attributes)


def _identity(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    return inputs[0]


def _refuse_random(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    raise UnsupportedError(
        f"ONNX has no seeded random numbers: dropout that stays active cannot be emitted{op.where()}"
    )


_ALWAYS: dict[str, Rule] = {
    "StopGradient": _identity,  # ONNX carries no gradients
    "StraightThrough": _identity,
    "StopRowGradient": _identity,
    "SeededUniform": _refuse_random,
}


@_below(
    18,
    *(f"Reduce{name}" for name in ("Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")),
)
def _reduction(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    kept = dict(attributes)
    noop = kept.pop("noop_with_empty_axes", 0)
    if len(inputs) == 1 or inputs[1] is None:
        if noop:
            raise NeedsOpset(f"{op_type} with noop_with_empty_axes needs opset 18{op.where()}", 18)
        return op.emit(op_type, inputs[:1], kept)
    if inputs[1].array is None:
        raise NeedsOpset(f"{op_type} with computed axes needs opset 18{op.where()}", 18)
    if inputs[1].array.size == 0:  # below opset 18 no axes are all of them
        if noop:
            raise NeedsOpset(f"{op_type} with noop_with_empty_axes needs opset 18{op.where()}", 18)
        return op.emit(op_type, inputs[:1], kept)
    return op.emit(op_type, inputs[:1], {**kept, "axes": tuple(inputs[1].array.tolist())})


@_below(EVERY, "Pad")
def _pad(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """The amounts of all axes: opset 18 could name some, but onnxruntime (1.31) misreads them when it moves a Transpose
    through the Pad."""
    x, pads, constant, axes = (*inputs, None, None)[:4]
    if axes is None:
        return op.emit("Pad", inputs, attributes)
    rest = [] if constant is None else [constant]
    return op.emit("Pad", [x, _pads_of_all_axes(op, x, pads, axes), *rest], attributes)


def _pads_of_all_axes(op: OnnxInterpreter, x: Any, pads: Any, axes: Any) -> Any:
    shape = op.shape_of(x)
    if shape is None or axes.array is None:  # the amounts are laid into zeros, two for each axis
        rank = op.Size(op.Shape(x))
        places = op.Mod(op.cast(axes, np.int64), rank)
        none = op.ConstantOfShape(op.Mul(op.ints(2), rank), value=np.zeros(1, np.int64))
        return op.ScatterElements(none, op.Concat(places, op.Add(places, rank), axis=0), pads, axis=0)
    some, rank = axes.array.tolist(), len(shape)
    chosen = np.full((2, rank), 2 * len(some))  # of the amounts in the list of those given, then 0
    chosen[:, [a % rank for a in some]] = np.arange(2 * len(some)).reshape(2, len(some))
    none = np.zeros(1, np.int64)
    if pads.array is not None:
        return op.const(np.concatenate([pads.array, none])[chosen.reshape(-1)])
    listed = op.Concat(pads, none, axis=0)
    return op.Gather(listed, chosen.reshape(-1), axis=0)


@_below(14, "Trilu")
def _trilu(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    raise NeedsOpset(f"Trilu needs opset 14{op.where()}", 14)


def _leaky_relu(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    (x,) = inputs
    below = op.Mul(x, op.const(attributes.get("alpha", 0.01), like=x))
    return op.Where(op.Greater(x, op.const(0, like=x)), x, below)


@_below(15, "Shape")
def _shape(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    whole = op.emit("Shape", inputs, {})
    start, end = attributes.get("start", 0), attributes.get("end")
    if start == 0 and end is None:
        return whole
    return op.Slice(whole, op.ints(start), op.ints(2**31 - 1 if end is None else end), op.ints(0))


@_below(15, "CastLike")
def _cast_like(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    return op.Cast(inputs[0], to=dtypes.to_onnx(inputs[1].dtype))


@_below(20, "Gelu")
def _gelu(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    (x,) = inputs

    def c(number: float) -> Any:
        return op.const(number, like=x)

    if attributes.get("approximate", "none") == "tanh":
        cubic = op.Add(x, op.Mul(c(0.044715), op.Mul(x, op.Mul(x, x))))
        bell = op.Tanh(op.Mul(c(math.sqrt(2 / math.pi)), cubic))
    else:
        bell = op.Erf(op.Mul(x, c(math.sqrt(0.5))))
    return op.Mul(op.Mul(x, c(0.5)), op.Add(bell, c(1)))


@_below(14, "HardSwish")
def _hard_swish(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    return op.Mul(inputs[0], op.HardSigmoid(inputs[0], alpha=1 / 6, beta=0.5))


@_below(18, "Mish")
def _mish(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    return op.Mul(inputs[0], op.Tanh(op.Softplus(inputs[0])))


@_below(24, "Swish")
def _swish(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    (x,) = inputs
    alpha = attributes.get("alpha", 1.0)
    return op.Mul(x, op.Sigmoid(x if alpha == 1 else op.Mul(x, op.const(alpha, like=x))))


def _normalised_axes(op: OnnxInterpreter, x: Emitted, attributes: dict[str, Any]) -> Any:
    """The axes from `axis` to the last one, counted from the end."""
    axis = attributes.get("axis", -1)
    return op.ints(*range(axis if axis < 0 else axis - op.rank_of(x), 0))


@_below(17, "LayerNormalization")
def _layer_norm(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    x, weight, *bias = inputs
    wide = op.cast(x, np.float32) if x.dtype.itemsize == 2 else x  # statistics in float32 at least
    axes = _normalised_axes(op, x, attributes)
    centred = op.Sub(wide, op.ReduceMean(wide, axes))
    variance = op.ReduceMean(op.Mul(centred, centred), axes)
    deviation = op.Sqrt(op.Add(variance, op.const(attributes.get("epsilon", 1e-5), like=wide)))
    y = op.Mul(op.cast(op.Div(centred, deviation), x.dtype), weight)
    return op.Add(y, bias[0]) if bias and bias[0] is not None else y


@_below(23, "RMSNormalization")
def _rms_norm(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    x, weight = inputs
    wide = op.cast(x, np.float32) if x.dtype.itemsize == 2 else x
    square = op.ReduceMean(op.Mul(wide, wide), _normalised_axes(op, x, attributes))
    root = op.Sqrt(op.Add(square, op.const(attributes.get("epsilon", 1e-5), like=wide)))
    return op.Mul(op.cast(op.Div(wide, root), x.dtype), weight)


@_below(21, "GroupNormalization")
def _group_norm(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    x, weight, bias = inputs  # below 21, weight and bias were per group
    groups = attributes["num_groups"]
    grouped = op.Reshape(x, op.ints(0, groups, -1))
    one, zero = op.const(np.ones(groups), like=x), op.const(np.zeros(groups), like=x)
    normal = op.InstanceNormalization(grouped, one, zero, epsilon=attributes.get("epsilon", 1e-5))
    column = op.ints(-1, *(1,) * (op.rank_of(x) - 2))
    scaled = op.Mul(op.Reshape(normal, op.Shape(x)), op.Reshape(weight, column))
    return op.Add(scaled, op.Reshape(bias, column))


@_below(16, "RoiAlign")
@_below(20, "GridSample")
def _other_meaning(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    version = _RULES[op_type][0]
    raise NeedsOpset(f"{op_type} meant something else before opset {version}; choose that{op.where()}", version)


def _batch_norm(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    x, weight, bias, mean, variance = inputs
    factor = op.Div(weight, op.Sqrt(op.Add(variance, op.const(attributes.get("epsilon", 1e-5), like=variance))))
    column = op.ints(-1, *(1,) * (op.rank_of(x) - 2))
    centred = op.Sub(x, op.Reshape(mean, column))
    return op.Add(op.Mul(centred, op.Reshape(factor, column)), op.Reshape(bias, column))


def _long_extreme(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """The largest or smallest of 64-bit integers, one axis after the other: onnxruntime's (1.31) ReduceMax and
    ReduceMin compare the upper halves only where they are vectorised, its TopK the whole."""
    x, axes, *_ = (*inputs, None)
    if x.dtype != np.int64:
        return None  # onnxruntime has none, nor a TopK
    if axes is not None and axes.array is None:
        raise UnsupportedError(
            f"{op_type} of int64 along computed axes: onnxruntime is wrong there from 2**31 on; cast to int32"
            f"{op.where()}"
        )
    some = [] if axes is None else axes.array.tolist()
    if not some and attributes.get("noop_with_empty_axes", 0):
        return op.Identity(x)
    y = x if some else op.Reshape(x, op.ints(-1))
    for axis in some or [0]:
        y, _ = op.call("TopK", [y, op.ints(1)], {"axis": axis, "largest": int(op_type == "ReduceMax")}, 2)
    if not attributes.get("keepdims", 1):
        return op.Squeeze(y, op.ints(*(some or [0])))
    return y if some else op.Reshape(y, op.Expand(op.ints(1), op.Shape(op.Shape(x))))


def _long_mod(op: OnnxInterpreter, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """The remainder with the sign of the dividend, of the one with that of the divisor: for the former onnxruntime
    (1.31) goes through float64, which has no 64 bits."""
    if not attributes.get("fmod", 0):
        return None
    x, y = inputs
    rest = op.Mod(x, y)
    if x.dtype == np.uint64:
        return rest
    zero = op.const(0, like=x)
    differs = op.And(op.Not(op.Equal(rest, zero)), op.Xor(op.Less(rest, zero), op.Less(x, zero)))
    return op.Where(differs, op.Sub(rest, y), rest)


# 64-bit integers that onnxruntime computes wrong
_LONG: dict[str, Rule] = {"ReduceMax": _long_extreme, "ReduceMin": _long_extreme, "Mod": _long_mod}


# The same in primitives, for float64: ONNX's attributes are float32
_EPSILON: dict[str, Rule] = {
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "Gelu": _gelu,
    "LeakyRelu": _leaky_relu,
}
