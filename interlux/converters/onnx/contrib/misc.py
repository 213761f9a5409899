"""Operators that ai.onnx has in another form, and those that are refused."""

from __future__ import annotations

import numpy as np

from ....ir.errors import UnsupportedError
from ...builder import GraphBuilder, Value
from ..upgrades import Form
from .rules import (
    Rules,
    counting,
    entering,
    inputs,
    known_size,
    name_of,
    refuse,
    scalar,
    settings,
    shaped,
    size,
    sizes,
)

RULES: Rules = {}
rule = entering(RULES)
LARGEST_INVERSE = 16  # rows of a matrix to invert; the elimination is written out


@rule("Trilu")
def _triangle(op: GraphBuilder, form: Form) -> Value:
    upper = settings(form, upper=1)
    x, k = inputs(form, 2)
    return shaped(op.Trilu(x, k, upper=upper), form.input(0))


@rule("Unique")
def _unique(op: GraphBuilder, form: Form) -> list[Value | None]:
    """In the order in which they occur."""
    settings(form)
    values, _, inverse, counts = op.Unique(form.input(0), sorted=0, outputs=4)
    return [values, inverse, counts]


@rule("Pad")
def _pad(op: GraphBuilder, form: Form) -> Value:
    mode = settings(form, mode="constant")
    x, pads, value = inputs(form, 3)
    flat = op.Reshape(pads, op.ints(-1))  # it may be a row
    return op.Pad(x, flat, None if value is None else scalar(op, value), mode=mode)


@rule("ExpandDims")
def _expand_dims(op: GraphBuilder, form: Form) -> Value:
    settings(form)
    return op.Unsqueeze(form.input(0), op.Reshape(op.cast(form.input(1), np.int64), op.ints(-1)))


@rule("GatherND")
def _gather_nd(op: GraphBuilder, form: Form) -> Value:
    settings(form)
    return op.GatherND(form.input(0), op.cast(form.input(1), np.int64))


@rule("Range")
def _range(op: GraphBuilder, form: Form) -> Value:
    settings(form)
    _, _, step = inputs(form, 3)
    one = op.const(1, like=form.input(0)) if step is None else scalar(op, step)
    return op.Range(scalar(op, form.input(0)), scalar(op, form.input(1)), one)


@rule("GridSample")
def _grid_sample(op: GraphBuilder, form: Form) -> Value:
    """ai.onnx calls the modes otherwise."""
    mode, padding, corners = settings(form, mode="bilinear", padding_mode="zeros", align_corners=0)
    modes = {"bilinear": "linear", "nearest": "nearest", "bicubic": "cubic"}
    if mode not in modes:
        raise refuse(form, f"mode={mode!r}")
    return op.GridSample(form.input(0), form.input(1), mode=modes[mode], padding_mode=padding, align_corners=corners)


@rule("IsAllFinite")
def _all_finite(op: GraphBuilder, form: Form) -> Value:
    only_infinite, only_nan = settings(form, isinf_only=0, isnan_only=0)
    if only_infinite and only_nan:
        raise refuse(form, "both isinf_only and isnan_only")
    bad = []
    for i in range(len(form.inputs)):
        x = form.input(i)
        found = [] if only_infinite else [op.IsNaN(x)]
        found += [] if only_nan else [op.IsInf(x)]
        either = found[0] if len(found) == 1 else op.Or(*found)
        bad.append(op.ReduceMax(op.cast(either, np.int32), keepdims=0))
    highest = bad[0] if len(bad) == 1 else op.Max(*bad)
    return op.Equal(highest, op.const(0, like=highest))


# --- Fourier transforms of real numbers


def _transform(form: Form) -> None:
    onesided, normalized, axes = settings(form, onesided=1, normalized=0, signal_ndim=1)
    if (onesided, normalized, axes) != (1, 0, 1):
        raise refuse(form, f"onesided={onesided}, normalized={normalized}, signal_ndim={axes}")


@rule("Rfft")
def _rfft(op: GraphBuilder, form: Form) -> Value:
    _transform(form)
    return op.DFT(op.Unsqueeze(form.input(0), op.ints(-1)), None, op.const(np.array(-2, np.int64)), onesided=1)


@rule("Irfft")
def _irfft(op: GraphBuilder, form: Form) -> Value:
    """Of a spectrum [..., length/2 + 1, 2]; the half that is left out is the conjugate of the other, backwards."""
    _transform(form)
    x, place = form.input(0), op.ints(-2)
    last = op.Sub(sizes(op, x, op.rank_of(x) - 2), op.ints(1))
    backwards = op.Slice(x, op.Sub(last, op.ints(1)), op.ints(0), place, op.ints(-1))
    conjugate = op.Mul(backwards, op.const(np.array([1, -1]), like=x))
    whole = op.Concat(x, conjugate, axis=-2)
    made = op.DFT(whole, None, op.const(np.array(-2, np.int64)), inverse=1)
    return op.Squeeze(op.Slice(made, op.ints(0), op.ints(1), op.ints(-1)), op.ints(-1))


# --- matrices


@rule("Inverse")
def _inverse(op: GraphBuilder, form: Form) -> Value:
    """Gauss-Jordan elimination with pivots by rows, written out."""
    settings(form)
    x, count = form.input(0), known_size(form.input(0), -1)
    count = known_size(x, -2) if count is None else count
    if count is None or count > LARGEST_INVERSE:
        raise refuse(form, f"matrices of {count or 'unknown'} rows; up to {LARGEST_INVERSE} are written out")
    flat = op.Reshape(x, op.ints(-1, count, count))
    shape = op.Concat(sizes(op, flat, 0), op.ints(count, count), axis=0)
    both = op.Concat(flat, op.Expand(op.const(np.eye(count), like=x), shape), axis=2)
    whole = op.Concat(sizes(op, flat, 0), op.ints(count, 2 * count), axis=0)
    rows = op.const(np.arange(count, dtype=np.int64))
    for k in range(count):
        below = op.Abs(op.Slice(both, op.ints(k, k), op.ints(count, k + 1), op.ints(1, 2)))
        pivot = op.Add(op.Reshape(op.ArgMax(below, axis=1, keepdims=0), op.ints(-1, 1)), op.ints(k))
        order = op.Where(op.Equal(rows, pivot), op.ints(k), op.Unsqueeze(rows, op.ints(0)))
        order = op.Where(op.Equal(rows, op.ints(k)), pivot, order)
        both = op.GatherElements(both, op.Expand(op.Unsqueeze(order, op.ints(2)), whole), axis=1)
        row = op.Slice(both, op.ints(k), op.ints(k + 1), op.ints(1))
        row = op.Div(row, op.Slice(row, op.ints(k), op.ints(k + 1), op.ints(2)))
        column = op.Slice(both, op.ints(k), op.ints(k + 1), op.ints(2))
        here = op.const(np.arange(count).reshape(1, -1, 1) == k)
        both = op.Where(here, row, op.Sub(both, op.Mul(column, row)))
    right = op.Slice(both, op.ints(count), op.ints(2 * count), op.ints(2))
    return shaped(op.Reshape(right, op.Shape(x)), x)


@rule("CropAndResize")
def _crop_and_resize(op: GraphBuilder, form: Form) -> Value:
    """Boxes of images, sampled at corners that are aligned. x [batch, channels, height, width], boxes [n, 4] as y1, x1,
    y2, x2 in the units of the image; samples outside the image have the extrapolation value."""
    mode, outside = settings(form, mode="bilinear", extrapolation_value=0.0)
    if mode not in ("bilinear", "nearest"):
        raise refuse(form, f"mode={mode!r}")
    x, boxes, images = (form.input(i) for i in range(3))
    kind, one = x.dtype, op.const(1, like=x)
    chosen = op.Gather(x, images, axis=0)  # [n, channels, height, width]
    weights, places, inside = [], [], []
    for axis in (0, 1):
        length = op.cast(size(op, x, axis + 2), kind)
        count = op.Squeeze(op.cast(op.Slice(form.input(3), op.ints(axis), op.ints(axis + 1), op.ints(0)), np.int64))
        low, high = (op.Slice(boxes, op.ints(axis + i), op.ints(axis + i + 1), op.ints(1)) for i in (0, 2))  # [n, 1]
        end = op.Sub(length, one)
        steps = op.Max(op.cast(op.Sub(count, op.const(np.array(1, np.int64))), kind), one)
        several = op.Greater(count, op.const(np.array(1, np.int64)))
        spread = op.Add(
            op.Mul(low, end),
            op.Mul(op.cast(counting(op, count), kind), op.Div(op.Mul(op.Sub(high, low), end), steps)),
        )
        middle = op.Mul(op.Mul(op.Add(low, high), op.const(0.5, like=x)), end)
        at = op.Where(several, spread, middle)  # [n, count]
        inside.append(op.And(op.GreaterOrEqual(at, op.const(0, like=x)), op.LessOrEqual(at, end)))
        bounded = op.Clip(at, op.const(0, like=x), end)
        if mode == "nearest":  # halves away from zero
            bounded = op.Floor(op.Add(bounded, op.const(0.5, like=x)))
        below = op.Floor(bounded)
        weights.append(op.Sub(bounded, below))
        places.append([op.cast(v, np.int64) for v in (below, op.Ceil(bounded))])

    def taken(values: Value, index: Value, axis: int) -> Value:
        """Along an axis, for each box its own places."""
        lined = op.Unsqueeze(index, op.ints(1, 3 if axis == 2 else 2))
        shape = op.Shape(values)
        parts = [op.Slice(shape, op.ints(0), op.ints(axis), op.ints(0)), sizes(op, index, 1)]
        parts += [op.Slice(shape, op.ints(3), op.ints(4), op.ints(0))] if axis == 2 else []
        return op.GatherElements(values, op.Expand(lined, op.Concat(*parts, axis=0)), axis=axis)

    def mixed(values: Value, axis: int) -> Value:
        lower, upper = (taken(values, place, axis) for place in places[axis - 2])
        weight = op.Unsqueeze(weights[axis - 2], op.ints(1, 3 if axis == 2 else 2))
        return op.Add(lower, op.Mul(op.Sub(upper, lower), weight))

    found = mixed(mixed(chosen, 2), 3)
    seen = op.And(op.Unsqueeze(inside[0], op.ints(1, 3)), op.Unsqueeze(inside[1], op.ints(1, 2)))
    return op.Where(seen, found, op.const(outside, like=x))


# --- mixtures of experts


@rule("MoE")
def _experts(op: GraphBuilder, form: Form) -> Value:
    """Each token goes to the k experts with the highest router scores; their results are added with those weights.

    All experts are computed for all tokens and weighted with zeros where they are not chosen.
    """
    k, name, normalised, sparse, fusion, alpha, beta, limit = settings(
        form,
        k=1,
        activation_type="relu",
        normalize_routing_weights=0,
        use_sparse_mixer=0,
        swiglu_fusion=0,
        activation_alpha=1.0,
        activation_beta=0.0,
        swiglu_limit=None,
    )
    if sparse:
        raise refuse(form, "use_sparse_mixer=1")
    if name not in ("relu", "gelu", "silu", "swiglu", "identity") or (name == "swiglu" and fusion not in (1, 2)):
        raise refuse(form, f"activation_type={name!r} and swiglu_fusion={fusion}")
    x, router, first, first_bias, second, second_bias, third, third_bias = inputs(form, 8)
    if third is not None or third_bias is not None:
        raise refuse(form, "the inputs fc3_experts_weights and fc3_experts_bias")
    tokens = op.Reshape(x, op.Concat(op.ints(-1), sizes(op, form.input(2), 2), axis=0))

    scores = op.Softmax(router, axis=-1)
    highest, chosen = op.TopK(scores, op.ints(k), axis=-1, outputs=2)
    if normalised:
        highest = op.Div(highest, op.ReduceSum(highest, op.ints(-1), keepdims=1))
    nothing = op.Expand(op.const(0, like=scores), op.Shape(scores))
    shares = op.ScatterElements(nothing, chosen, highest, axis=-1)  # [tokens, experts]

    def layer(values: Value, weight: Value | None, bias: Value | None) -> Value:
        y = op.MatMul(values, op.Transpose(weight, perm=(0, 2, 1)))
        return y if bias is None else op.Add(y, op.Unsqueeze(bias, op.ints(1)))

    hidden = layer(op.Unsqueeze(tokens, op.ints(0)), first, first_bias)  # [experts, tokens, inner]
    y = layer(_moe_activation(op, hidden, name, fusion, alpha, beta, limit), second, second_bias)
    y = op.Mul(y, op.Unsqueeze(op.Transpose(shares, perm=(1, 0)), op.ints(2)))
    return shaped(op.Reshape(op.ReduceSum(y, op.ints(0), keepdims=0), op.Shape(x)), form.input(0))


def _moe_activation(
    op: GraphBuilder, x: Value, name: str, fusion: int, alpha: float, beta: float, limit: float | None
) -> Value:
    if name == "identity":
        return x
    if name == "relu":
        return op.Relu(x)
    if name == "gelu":
        return op.Gelu(x, approximate="tanh")
    if name == "silu":
        return op.Mul(x, op.Sigmoid(x))
    if fusion == 2:
        gate, linear = op.Split(x, axis=-1, num_outputs=2, outputs=2)
    else:
        far = op.ints(np.iinfo(np.int64).max)
        gate, linear = (op.Slice(x, op.ints(i), far, op.ints(-1), op.ints(2)) for i in (0, 1))
    if limit is not None:
        gate = op.Min(gate, op.const(limit, like=x))
        linear = op.Clip(linear, op.const(-limit, like=x), op.const(limit, like=x))
    swish = op.Mul(gate, op.Sigmoid(op.Mul(gate, op.const(alpha, like=x))))
    return op.Mul(swish, op.Add(linear, op.const(beta, like=x)))


# --- what is refused

REFUSED = {
    "DynamicQuantizeLSTM": "it quantizes the hidden state anew at every step; export the LSTM in floating point",
    "EPContext": "it holds a program compiled for one device; export the model before that",
    "MurmurHash3": "no primitive computes hashes; hash before the model",
    "QMoE": "its expert weights are packed for single devices; export with MoE or with plain products",
    "SampleOp": "it is a sample for writing operators",
    "SparseToDenseMatMul": "no primitive takes sparse tensors; make them dense",
    "Tokenizer": "no primitive splits texts like it; tokenize before the model",
}


def _refused(op: GraphBuilder, form: Form) -> Value:
    raise UnsupportedError(f"{name_of(form)} is not supported: {REFUSED[name_of(form)]}")


RULES.update(dict.fromkeys(REFUSED, _refused))
