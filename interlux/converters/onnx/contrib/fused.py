"""Products, convolutions and activations with what onnxruntime's optimizer fuses into them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....ir import trees
from ....ir.layers import Dense
from ...builder import GraphBuilder, Value
from ..upgrades import Form
from .rules import (
    REQUIRED,
    Rules,
    channels_first,
    channels_last,
    entering,
    inputs,
    node,
    refuse,
    settings,
    shaped,
    sizes,
    wanted,
)

RULES: Rules = {}
rule = entering(RULES)


# --- activations


def activated(op: GraphBuilder, form: Form, x: Value, name: str | None, numbers: dict[str, float]) -> Value:
    """An activation by the name of its operator.

    Arguments:
        numbers: its attributes by the names of ONNX (alpha, beta, gamma); min and max of Clip are alpha and beta.
    """
    taken = {
        "Relu": (),
        "Sigmoid": (),
        "Tanh": (),
        "Softplus": (),
        "Softsign": (),
        "HardSwish": (),
        "LeakyRelu": ("alpha",),
        "Elu": ("alpha",),
        "ThresholdedRelu": ("alpha",),
        "HardSigmoid": ("alpha", "beta"),
        "Clip": ("alpha", "beta"),
        "Selu": ("alpha", "gamma"),
    }
    if not name:
        return x
    if name not in taken or set(numbers) != set(taken[name]):
        raise refuse(form, f"activation={name!r} and {len(numbers)} parameters")
    if name == "Clip":
        return op.Clip(x, op.const(numbers["alpha"], like=x), op.const(numbers["beta"], like=x))
    return op.primitive(name, [x], dict(numbers))


def _positional(numbers: tuple[float, ...] | None) -> dict[str, float]:
    """Parameters of an activation given as a list."""
    return dict(zip(("alpha", "beta", "gamma"), numbers or (), strict=False))


def _named(**numbers: float | None) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if value is not None}


@rule("Gelu")
def _gelu(op: GraphBuilder, form: Form) -> Value:
    settings(form)
    return shaped(op.Gelu(form.input(0)), form.input(0))


@rule("BiasGelu")
def _bias_gelu(op: GraphBuilder, form: Form) -> Value:
    settings(form)
    return shaped(op.Gelu(op.Add(form.input(0), form.input(1))), form.input(0))


@rule("FastGelu")
def _fast_gelu(op: GraphBuilder, form: Form) -> Value:
    settings(form)
    x, bias = inputs(form, 2)
    x = form.input(0) if bias is None else op.Add(x, bias)
    return shaped(op.Gelu(x, approximate="tanh"), form.input(0))


@rule("GemmFastGelu")
def _gemm_fast_gelu(op: GraphBuilder, form: Form) -> Value:
    settings(form)
    _, _, bias = inputs(form, 3)
    return op.Gelu(product(op, form.input(0), form.input(1), bias), approximate="tanh")


@rule("QuickGelu")
def _quick_gelu(op: GraphBuilder, form: Form) -> Value:
    alpha, x = settings(form, alpha=1.7020000219345093), form.input(0)
    return shaped(op.Mul(x, op.Sigmoid(op.Mul(x, op.const(alpha, like=x)))), x)


@rule("BiasAdd")
def _bias_add(op: GraphBuilder, form: Form) -> Value:
    settings(form)
    return shaped(op.Add(op.Add(form.input(0), form.input(1)), form.input(2)), form.input(0))


@rule("BiasSplitGelu")
def _bias_split_gelu(op: GraphBuilder, form: Form) -> Value:
    settings(form)
    left, right = op.Split(op.Add(form.input(0), form.input(1)), axis=-1, num_outputs=2, outputs=2)
    return op.Mul(left, op.Gelu(right))


def _not_training(form: Form, training: Value | None) -> None:
    if training is not None and (training.array is None or training.array.any()):
        raise refuse(form, "training_mode that is not a constant false", "export the model for inference")


@rule("BiasDropout", "BitmaskBiasDropout")
def _bias_dropout(op: GraphBuilder, form: Form) -> list[Value | None]:
    """At inference: data + bias + residual, and a mask of ones."""
    settings(form, seed=None)
    x, bias, residual, _, training = inputs(form, 5)
    _not_training(form, training)
    y = op.Add(x, bias)
    y = shaped(y if residual is None else op.Add(y, residual), form.input(0))
    return [y, _ones(op, form, form.input(0))]


@rule("BitmaskDropout")
def _bitmask_dropout(op: GraphBuilder, form: Form) -> list[Value | None]:
    settings(form, seed=None)
    x, _, training = inputs(form, 3)
    _not_training(form, training)
    return [op.Identity(x), _ones(op, form, form.input(0))]


def _ones(op: GraphBuilder, form: Form, x: Value) -> Value | None:
    if not wanted(form, 1):
        return None
    if "Bitmask" in form.op_type:
        raise refuse(form, "the output mask, whose bits are packed")
    return op.Expand(op.const(np.array(True)), op.Shape(x))


# --- products


def product(op: GraphBuilder, x: Value, weight: Value, bias: Value | None = None, *, in_first: bool = True) -> Value:
    """x · weight (or its transpose) + bias: a Dense layer where weight and bias are stored floating-point arrays."""
    shape = weight.shape
    stored = weight.path is not None and trees.is_float(weight.dtype) and weight.dtype == x.dtype and x.path is None
    if stored and shape is not None and len(shape) == 2:
        rows, columns = (int(str(n)) for n in (shape[::-1] if in_first else shape))
        fits = bias is None or (bias.path is not None and bias.shape == (rows,) and bias.dtype == weight.dtype)
        layer = Dense(columns, rows, use_bias=fits and bias is not None, in_first=in_first)
        y: Value = op.add(layer, x, params={"weight": weight, "bias": bias if fits else None})
        if x.shape is not None:
            y.shape = (*x.shape[:-1], rows)
    else:
        y, fits = op.MatMul(x, weight if in_first else op.Transpose(weight, perm=(1, 0))), bias is None
    return y if fits or bias is None else op.Add(y, bias)


def _arranged(op: GraphBuilder, x: Value, batch: int, matrix: int) -> Value:
    """A factor of FusedMatMul: with `batch`, its first axis moves behind the others but one; with `matrix`, its last
    two axes are swapped. A vector stays."""
    if x.shape is not None and len(x.shape) < 2:
        return x
    if not batch:
        return op.Einsum(x, equation="...ij->...ji") if matrix else x
    rank = op.rank_of(x)
    perm = (*range(1, rank - 1), 0, rank - 1)
    return op.Transpose(x, perm=(*perm[:-2], perm[-1], perm[-2]) if matrix else perm)


@rule("FusedMatMul", "TransposeMatMul")
def _fused_mat_mul(op: GraphBuilder, form: Form) -> Value:
    return _mat_mul(op, form)


def _mat_mul(op: GraphBuilder, form: Form) -> Value:
    batch_a, batch_b, a, b, alpha = settings(form, transBatchA=0, transBatchB=0, transA=0, transB=0, alpha=1.0)
    x, y = form.input(0), form.input(1)
    x = _arranged(op, x, batch_a, a)
    if y.path is not None and y.shape is not None and len(y.shape) == 2:
        made = product(op, x, y, in_first=not b)  # transBatchB moves nothing in a matrix
    else:
        made = op.MatMul(x, _arranged(op, y, batch_b, b))
    return made if alpha == 1 else op.Mul(made, op.const(alpha, like=made))


@rule("FusedMatMulActivation")
def _fused_mat_mul_activation(op: GraphBuilder, form: Form) -> Value:
    names = ("activation", "activation_alpha", "activation_beta", "activation_gamma", "activation_axis")
    given = {name: form.attributes.get(name) for name in names}
    rest = {name: value for name, value in form.attributes.items() if name not in names}
    y = _mat_mul(op, Form("FusedMatMul", form.inputs, rest))
    if given["activation"] == "Softmax":
        if any(given[name] is not None for name in names[1:4]):
            raise refuse(form, "parameters of Softmax")
        axis = given["activation_axis"]
        return op.Softmax(y, axis=-1 if axis is None else axis)
    if given["activation_axis"] is not None:
        raise refuse(form, f"activation_axis and activation={given['activation']!r}")
    numbers = _named(alpha=given["activation_alpha"], beta=given["activation_beta"], gamma=given["activation_gamma"])
    return activated(op, form, y, given["activation"], numbers)


@rule("FusedGemm")
def _fused_gemm(op: GraphBuilder, form: Form) -> Value:
    name, alpha, beta, gamma, *rest = settings(
        form,
        activation="",
        activation_alpha=None,
        activation_beta=None,
        activation_gamma=None,
        alpha=1.0,
        beta=1.0,
        transA=0,
        transB=0,
    )
    attributes = dict(zip(("alpha", "beta", "transA", "transB"), rest, strict=True))
    y = node(op, "Gemm", *inputs(form, 3), **attributes)
    return activated(op, form, y, name, _named(alpha=alpha, beta=beta, gamma=gamma))


# --- convolutions

_WINDOW: dict[str, Any] = {
    "auto_pad": None,
    "dilations": None,
    "group": None,
    "kernel_shape": None,
    "pads": None,
    "strides": None,
}


@rule("FusedConv", "NhwcFusedConv", "NhwcConv")
def _fused_conv(op: GraphBuilder, form: Form) -> Value:
    """activation(Conv(x, weight, bias) + residual); the operators with Nhwc have the channels last."""
    name, numbers, *window = settings(form, activation="", activation_params=None, **_WINDOW)
    attributes = dict(zip(_WINDOW, window, strict=True))
    x, weight, bias, residual = inputs(form, 4)
    last = "Nhwc" in form.op_type
    rank = op.rank_of(form.input(1) if form.input(1).shape is not None else form.input(0)) if last else 0
    y = node(op, "Conv", channels_first(op, form.input(0), rank) if last else x, weight, bias, **attributes)
    y = channels_last(op, y, rank) if last else y
    y = y if residual is None else op.Add(y, residual)
    return activated(op, form, y, name, _positional(numbers))


@rule("ConvTransposeWithDynamicPads")
def _conv_transpose(op: GraphBuilder, form: Form) -> Value:
    names = ("auto_pad", "dilations", "group", "kernel_shape", "output_padding", "strides")
    attributes = dict(zip(names, settings(form, **dict.fromkeys(names)), strict=True))
    x, weight, pads, bias = inputs(form, 4)
    if pads is not None:
        if pads.array is None:
            raise refuse(form, "pads that are computed", "make them a constant")
        attributes["pads"] = tuple(pads.array.reshape(-1).tolist())
    return node(op, "ConvTranspose", x, weight, bias, **attributes)


@rule("ComplexMul", "ComplexMulConj")
def _complex_product(op: GraphBuilder, form: Form) -> Value:
    """Real and imaginary parts are along the last axis."""
    settings(form)
    (a, b), (c, d) = (op.Split(form.input(i), axis=-1, num_outputs=2, outputs=2) for i in (0, 1))
    if form.op_type.endswith("Conj"):
        d = op.Neg(d)
    real, imaginary = op.Sub(op.Mul(a, c), op.Mul(b, d)), op.Add(op.Mul(a, d), op.Mul(b, c))
    return op.Concat(real, imaginary, axis=-1)


@rule("CDist")
def _distances(op: GraphBuilder, form: Form) -> Value:
    metric = settings(form, metric="sqeuclidean")
    if metric not in ("sqeuclidean", "euclidean"):
        raise refuse(form, f"metric={metric!r}")
    difference = op.Sub(op.Unsqueeze(form.input(0), op.ints(1)), op.Unsqueeze(form.input(1), op.ints(0)))
    squares = op.ReduceSum(op.Mul(difference, difference), op.ints(-1), keepdims=0)
    return op.Sqrt(squares) if metric == "euclidean" else squares


@rule("TorchEmbedding")
def _embedding(op: GraphBuilder, form: Form) -> Value:
    settings(form)
    table, indices, padding, by_frequency = inputs(form, 4)
    del padding, by_frequency  # they scale gradients only
    return node(op, "Gather", table, indices)


@rule("BiasSoftmax")
def _bias_softmax(op: GraphBuilder, form: Form) -> Value:
    """Softmax over all axes from `axis` on, of data + bias, which is broadcast at the front or before `axis`."""
    axis, inner = settings(form, axis=1, is_inner_broadcast=REQUIRED)
    x, bias, rank = form.input(0), form.input(1), op.rank_of(form.input(0))
    axis = axis + rank if axis < 0 else axis
    if inner and (bias.shape is None or len(bias.shape) != rank):
        raise refuse(form, "is_inner_broadcast=1 and a bias of another rank")
    y = op.Add(x, bias)
    if axis == rank - 1:
        return shaped(op.Softmax(y, axis=-1), x)
    rows = op.Concat(op.Shape(x, start=0, end=axis), op.ints(-1), axis=0)
    return shaped(op.Reshape(op.Softmax(op.Reshape(y, rows), axis=-1), op.Shape(x)), x)


@rule("MulInteger")
def _mul_integer(op: GraphBuilder, form: Form) -> Value:
    settings(form)
    factors = []
    for value, zero in (form.inputs[:2], [*form.inputs, None][2:4]):
        if value is None:
            raise refuse(form, "an absent factor")
        wide = op.cast(value, np.int32)
        factors.append(wide if zero is None else op.Sub(wide, op.cast(zero, np.int32)))
    return op.Mul(*factors)


@rule("MatMulInteger16")
def _mat_mul_integer(op: GraphBuilder, form: Form) -> Value:
    """The sums fit 32 bits, as the operator demands; they are unsigned if both factors are."""
    settings(form)
    a, b = form.input(0), form.input(1)
    kind = np.uint32 if a.dtype.kind == b.dtype.kind == "u" else np.int32
    return op.MatMul(op.cast(a, kind), op.cast(b, kind))


@rule("ReduceSumInteger")
def _reduce_sum_integer(op: GraphBuilder, form: Form) -> Value:
    axes, keep = settings(form, axes=REQUIRED, keepdims=REQUIRED)
    x = form.input(0)
    total = op.ReduceSum(op.cast(x, np.int32), op.ints(*axes), keepdims=keep)
    return op.cast(total, np.uint32 if x.dtype.kind == "u" else np.int32)


@rule("UnfoldTensor")
def _unfold(op: GraphBuilder, form: Form) -> Value:
    """Windows of `size` along an axis, every `step`, in a new last axis."""
    axis, length, step = settings(form, dim=-1, size=REQUIRED, step=1)
    x, rank = form.input(0), op.rank_of(form.input(0))
    axis = axis + rank if axis < 0 else axis
    starts = op.Range(
        op.const(np.array(0, np.int64)),
        op.Squeeze(op.Sub(sizes(op, x, axis), op.ints(length - 1))),
        op.const(np.array(step, np.int64)),
    )
    places = op.Add(op.Unsqueeze(starts, op.ints(1)), op.const(np.arange(length, dtype=np.int64)))
    windows = op.Gather(x, places, axis=axis)
    return op.Transpose(windows, perm=(*range(axis + 1), *range(axis + 2, rank + 1), axis + 1))
