"""Normalisations with what is added before them."""

from __future__ import annotations

import numpy as np

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
    size,
    wanted,
)

RULES: Rules = {}
rule = entering(RULES)
_BERT = 9.999999960041972e-13  # the default epsilon, a float32


@rule("SimplifiedLayerNormalization")
def _simplified(op: GraphBuilder, form: Form) -> list[Value | None]:
    """RMSNormalization before ONNX had it; onnxruntime writes it in ONNX's own domain."""
    axis, epsilon, stash = settings(form, axis=-1, epsilon=9.999999747378752e-06, stash_type=1)
    if stash != 1:
        raise refuse(form, f"stash_type={stash}")
    x, scale = form.input(0), form.input(1)
    if not wanted(form, 1):
        wide = x.dtype == np.float64  # stash_type would round to float32, which onnxruntime does not
        y = _by_root_mean_square(op, x, scale, axis, epsilon)[0] if wide else _rms(op, x, scale, axis, epsilon)
        return [shaped(y, x)]
    y, inverse = _by_root_mean_square(op, x, scale, axis, epsilon)
    return [shaped(y, x), inverse]


def _rms(op: GraphBuilder, x: Value, scale: Value, axis: int, epsilon: float) -> Value:
    return op.cast(op.RMSNormalization(x, scale, axis=axis, epsilon=epsilon), scale.dtype)


def _by_root_mean_square(op: GraphBuilder, x: Value, scale: Value, axis: int, epsilon: float) -> tuple[Value, Value]:
    """The normalised value and 1 / (root mean square), both computed in at least float32."""
    kind = np.promote_types(x.dtype, np.float32) if x.dtype.kind == "f" else np.dtype(np.float32)
    wide = op.cast(x, kind)
    axes = op.ints(-1) if axis == -1 else op.ints(*range(axis % op.rank_of(x), op.rank_of(x)))
    mean = op.ReduceMean(op.Mul(wide, wide), axes, keepdims=1)
    inverse = op.Reciprocal(op.Sqrt(op.Add(mean, op.const(epsilon, like=mean))))
    y = op.cast(op.Mul(wide, inverse), scale.dtype)
    return op.Mul(y, scale), inverse


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def _skip(op: GraphBuilder, form: Form) -> list[Value | None]:
    """The normalisation of input + skip + bias; that sum is the fourth output."""
    epsilon = settings(form, epsilon=_BERT)
    if wanted(form, 1) or wanted(form, 2):
        raise refuse(form, "the outputs mean and inv_std_var", "onnxruntime leaves them unset at inference")
    simplified = "Simplified" in form.op_type
    x, skip, gamma, *rest = inputs(form, 4 if simplified else 5)
    beta, bias = (None, rest[0]) if simplified else (rest[0], rest[1])
    total = op.Add(x, skip)
    total = total if bias is None else op.Add(total, bias)
    total = shaped(total, form.input(0))
    added = form.input(1).shape
    if total.shape is None and added is not None and len(added) == 3:
        total.shape = (None, *added[1:])  # only its first size may be 1 where the sum's is not
    if simplified:
        y = _rms(op, total, form.input(2), -1, epsilon)
    else:
        y = node(op, "LayerNormalization", total, gamma, beta, axis=-1, epsilon=epsilon)
    return [shaped(y, total), None, None, total]


@rule("GroupNorm", "SkipGroupNorm")
def _group_norm(op: GraphBuilder, form: Form) -> list[Value | None]:
    """Over groups of channels of images; statistics and scales in float32, the activation is x · sigmoid(x)."""
    last, activation, groups, epsilon = settings(
        form, channels_last=1, activation=REQUIRED, groups=REQUIRED, epsilon=9.999999747378752e-06
    )
    if activation not in (0, 1):
        raise refuse(form, f"activation={activation}")
    _, _, _, skip, bias = inputs(form, 5)
    total = form.input(0)
    if skip is not None:
        if not last:
            raise refuse(form, "channels_last=0")
        if op.rank_of(skip) == 2:
            skip = op.Unsqueeze(skip, op.ints(1, 2))
        total = shaped(op.Add(total, skip), total)
        total = total if bias is None else shaped(op.Add(total, bias), total)
    y = op.cast(channels_first(op, total, 4) if last else total, np.float32)
    scales = [op.cast(form.input(i), np.float32) for i in (1, 2)]
    y = op.GroupNormalization(y, *scales, num_groups=groups, epsilon=epsilon)
    y = op.Mul(y, op.Sigmoid(y)) if activation else y
    y = op.cast(y, total.dtype)
    return [shaped(channels_last(op, y, 4) if last else y, total), total]


@rule("EmbedLayerNormalization")
def _embed(op: GraphBuilder, form: Form) -> list[Value | None]:
    """The normalised sum of the embeddings of words, positions and segments, and how many words the mask leaves."""
    epsilon, kind = settings(form, epsilon=_BERT, mask_index_type=None)
    if kind not in (None, 0, 1):
        raise refuse(form, f"mask_index_type={kind}")
    ids, segments, words, places, parts, gamma, beta, mask, positions = inputs(form, 9)
    total = node(op, "Gather", words, ids)
    if positions is None:
        length = size(op, form.input(0), 1)
        placed = op.Slice(places, op.ints(0), op.Reshape(length, op.ints(1)), op.ints(0))
    else:
        placed = node(op, "Gather", places, positions)
    total = op.Add(total, placed)
    if parts is not None:
        if segments is None:
            raise refuse(form, "segment_embedding without segment_ids")
        total = op.Add(total, node(op, "Gather", parts, segments))
    table = form.input(2)
    if form.input(0).shape is not None and table.shape is not None:
        total.shape = (*form.input(0).shape, table.shape[-1])  # type: ignore[misc]
    y = shaped(node(op, "LayerNormalization", total, gamma, beta, axis=-1, epsilon=epsilon), total)
    count: Value | None = None
    if wanted(form, 1):
        if mask is None:
            count = op.Expand(op.const(np.array(0, np.int32)), op.Shape(ids, start=0, end=1))
        else:
            ones = op.cast(op.Equal(mask, op.const(1, like=mask)), np.int32)
            count = op.ReduceSum(ones, op.ints(1), keepdims=0)
    return [y, count, total]
