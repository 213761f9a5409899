"""Attention in onnxruntime's forms, as products, a softmax and masks."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ....ir.errors import UnsupportedError
from ...builder import GraphBuilder, Value
from ..upgrades import Form
from .fused import product
from .quantized import integer_product
from .rules import (
    REQUIRED,
    Rules,
    counting,
    entering,
    heads,
    inputs,
    joined,
    known_size,
    refuse,
    refuse_inputs,
    scalar,
    settings,
    shaped,
    size,
    sizes,
    wanted,
)

RULES: Rules = {}
rule = entering(RULES)
_MASKED = -10000.0  # what is added to the scores of masked keys, unless the node says otherwise


# --- what all forms share


@dataclass(frozen=True)
class Heads:
    """What is attended with: [batch, heads, sequence, size] each, and `past` [1], how many keys precede the others."""

    query: Value
    key: Value
    value: Value
    past: Value


def _scores(op: GraphBuilder, query: Value, key: Value, scale: float | None) -> Value:
    """scale · query · keyᵀ, with 1 / sqrt(size of a head) by default (None and 0)."""
    products = op.MatMul(query, op.Transpose(key, perm=(0, 1, 3, 2)))
    if scale:
        return op.Mul(products, op.const(scale, like=products))
    return op.Div(products, op.Sqrt(op.cast(sizes(op, query, 3), query.dtype)))


def _only(op: GraphBuilder, allowed: Value, scores: Value) -> Value:
    """The scores where allowed, elsewhere the lowest number."""
    return op.Where(allowed, scores, op.const(ml_dtypes.finfo(scores.dtype).min, like=scores))


def _places(op: GraphBuilder, x: Value, first: Value | None = None) -> Value:
    """Positions of the queries [sequence, 1] (or [batch, sequence, 1]); `first` [batch or 1] is that of the first."""
    places = op.Unsqueeze(counting(op, size(op, x, 2)), op.ints(1))
    return places if first is None else op.Add(op.Unsqueeze(first, op.ints(1, 2)), places)


def _columns(op: GraphBuilder, key: Value) -> Value:
    return counting(op, size(op, key, 2))


def _attended(
    op: GraphBuilder, given: Heads, scale: float | None, mask: Value | None, bias: Value | None, causal: bool
) -> tuple[Value, Value]:
    """The result [batch, sequence, heads·size] and the attention's weights.

    Arguments:
        mask: 0 or the value of masked keys, to be added to the scores.
        bias: added as well.
        causal: whether a query sees no keys behind its own.
    """
    scores = _scores(op, given.query, given.key, scale)
    if mask is not None:
        scores = op.Add(scores, mask)
    if causal:
        rows = op.Add(_places(op, given.query), given.past)
        scores = _only(op, op.LessOrEqual(_columns(op, given.key), rows), scores)
    if bias is not None:
        scores = op.Add(scores, bias)
    weights = op.Softmax(scores, axis=-1)
    return joined(op, op.MatMul(weights, given.value)), weights


def _mask(op: GraphBuilder, form: Form, mask: Value | None, given: Heads, batch: Value, masked: float) -> Value | None:
    """What a mask adds to the scores, broadcast to [batch, heads, sequence, keys].

    Arguments:
        mask: int32, 1 for keys that are seen [batch, keys] or [batch, sequence, keys]; or how many keys are seen
            [batch], or the ends and then the starts of what is seen [2·batch], or those numbers followed by cumulated
            lengths, which say nothing more [3·batch + 2].
        batch: a tensor whose first axis is the batch's.
    """
    if mask is None:
        return None
    rank = op.rank_of(mask)
    if rank == 1:
        seen = _within_lengths(op, form, mask, given, batch)
    elif rank in (2, 3):
        if rank == 2 and known_size(mask, 1) == 1 and known_size(given.key, 2) != 1:
            raise refuse(form, "a mask of one column, which means nothing")
        seen = op.Unsqueeze(op.Greater(mask, op.const(0, like=mask)), op.ints(1, 2) if rank == 2 else op.ints(1))
    else:
        raise refuse(form, f"a mask of {rank} axes")
    kind = given.query.dtype
    return op.Where(seen, op.const(np.zeros((), kind)), op.const(np.full((), masked).astype(kind)))


def _within_lengths(op: GraphBuilder, form: Form, mask: Value, given: Heads, batch: Value) -> Value:
    columns = _columns(op, given.key)
    length = None if mask.shape is None else mask.shape[0]
    count = None if batch.shape is None else batch.shape[0]
    if isinstance(length, int) and isinstance(count, int) and length not in (count, 2 * count, 3 * count + 2):
        raise refuse(form, f"a mask of length {length} for a batch of {count}")
    lengths, batches = op.cast(mask, np.int64), sizes(op, batch, 0)

    def each(values: Value) -> Value:
        return op.Unsqueeze(values, op.ints(1, 2, 3))

    within = op.Less(columns, each(op.Slice(lengths, op.ints(0), batches, op.ints(0))))
    if length is not None and length == count:
        return within
    twice = op.Mul(batches, op.ints(2))
    places = op.Add(counting(op, op.Squeeze(batches)), batches)
    second = op.Gather(lengths, op.Min(places, op.Sub(op.Shape(mask), op.ints(1))), axis=0)
    starts = op.Where(op.Equal(op.Shape(mask), twice), second, op.ints(0))
    return op.And(within, op.GreaterOrEqual(columns, each(starts)))


def _past_of(op: GraphBuilder, past: Value | None) -> Value:
    """How many keys a past [batch, heads, keys, size] has, as a vector [1]."""
    return op.ints(0) if past is None else sizes(op, past, 2)


def _after(op: GraphBuilder, past: Value | None, new: Value) -> Value:
    return new if past is None else op.Concat(past, new, axis=2)


# --- Attention: with the projections


def _project(op: GraphBuilder, form: Form, projected: Value, count: int, parts: tuple[int, ...] | None) -> list[Value]:
    """query, key and value by heads from [batch, sequence, the three side by side]."""
    if parts is None:
        split = op.Split(projected, axis=-1, num_outputs=3, outputs=3)
    else:
        if len(parts) != 3:
            raise refuse(form, f"qkv_hidden_sizes={parts}")
        split = op.Split(projected, op.ints(*parts), axis=-1, outputs=3)
    return [heads(op, part, count) for part in split]


def _self_attention(
    op: GraphBuilder,
    form: Form,
    projected: Value,
    count: int,
    parts: tuple[int, ...] | None,
    mask: Value | None,
    past: Value | None,
    bias: Value | None,
    scale: float | None,
    masked: float,
    causal: int,
) -> list[Value | None]:
    query, key, value = _project(op, form, projected, count, parts)
    pasts = [None if past is None else op.Gather(past, op.const(np.array(i, np.int64)), axis=0) for i in (0, 1)]
    given = Heads(query, _after(op, pasts[0], key), _after(op, pasts[1], value), _past_of(op, pasts[0]))
    added = _mask(op, form, mask, given, form.input(0), masked)
    y, _ = _attended(op, given, scale, added, bias, bool(causal))
    present = None
    if wanted(form, 1):
        present = op.Concat(*(op.Unsqueeze(x, op.ints(0)) for x in (given.key, given.value)), axis=0)
    return [y, present]


@rule("Attention")
def _attention(op: GraphBuilder, form: Form) -> list[Value | None]:
    count, scale, masked, causal, parts, rotary, dim, shared = settings(
        form,
        num_heads=REQUIRED,
        scale=None,
        mask_filter_value=_MASKED,
        unidirectional=0,
        qkv_hidden_sizes=None,
        do_rotary=0,
        rotary_embedding_dim=0,
        past_present_share_buffer=0,
    )
    del dim  # says something with do_rotary only
    if rotary:
        raise refuse(form, "do_rotary=1", "fuse the model into RotaryEmbedding and MultiHeadAttention")
    if shared:
        raise refuse(form, "past_present_share_buffer=1", "export with past and present apart")
    _, _, bias, mask, past, added, length = inputs(form, 7)
    if length is not None:
        raise refuse(form, "past_sequence_length", "export with past and present apart")
    projected = product(op, form.input(0), form.input(1), bias)
    return _self_attention(op, form, projected, count, parts, mask, past, added, scale, masked, causal)


@rule("QAttention")
def _quantized_attention(op: GraphBuilder, form: Form) -> list[Value | None]:
    """Attention whose projection is a product of 8-bit integers."""
    count, scale, masked, causal, rotary, shared = settings(
        form,
        num_heads=REQUIRED,
        scale=None,
        mask_filter_value=_MASKED,
        unidirectional=0,
        do_rotary=0,
        past_present_share_buffer=0,
    )
    if rotary or shared:
        raise refuse(form, "do_rotary=1" if rotary else "past_present_share_buffer=1")
    x, weights, bias, _, weight_scale, mask, x_zero, weight_zero, past = inputs(form, 9)
    sums = op.cast(integer_product(op, x, weights, x_zero, weight_zero), form.input(3).dtype)
    projected = op.Add(op.Mul(sums, op.Mul(scalar(op, form.input(3)), weight_scale)), bias)
    return _self_attention(op, form, projected, count, None, mask, past, None, scale, masked, causal)


# --- MultiHeadAttention: without


def _biased(op: GraphBuilder, x: Value, bias: Value | None) -> Value:
    return x if bias is None else op.Add(x, bias)


def _unpacked(op: GraphBuilder, x: Value, index: int) -> Value:
    """[batch, sequence, heads, several, size] at one of the several, as [batch, sequence, heads·size]."""
    return op.Reshape(op.Gather(x, op.const(np.array(index, np.int64)), axis=3), op.ints(0, 0, -1))


def _biases(op: GraphBuilder, bias: Value | None, query: Value) -> list[Value | None]:
    """The bias in its parts for query, key and value; the first two are as long as the query's last axis."""
    if bias is None:
        return [None, None, None]
    hidden = sizes(op, query, 2)
    rest = op.Sub(op.Shape(bias), op.Mul(hidden, op.ints(2)))
    return list(op.Split(bias, op.Concat(hidden, hidden, rest, axis=0), axis=0, outputs=3))


def _first_three(form: Form) -> list[Value | None]:
    return [*form.inputs, None, None][:3]


def _by_heads(op: GraphBuilder, form: Form, count: int, bias: Value | None, packed: bool) -> Heads:
    """The heads of the inputs query, key and value, with the bias; past keys and values are not in them yet.

    Arguments:
        packed: whether a query alone, of three axes, has key and value behind its own features.
    """
    query, (_, key, value) = form.input(0), _first_three(form)
    no_past = op.ints(0)
    if key is None:
        if value is not None:
            raise refuse(form, "a value and no key")
        if packed:
            query, key, value = op.Split(query, axis=-1, num_outputs=3, outputs=3)
        else:
            query, key, value = (_unpacked(op, query, i) for i in range(3))
    elif value is None:
        if bias is not None:
            raise refuse(form, "packed keys and values and a bias")
        key, value = (_unpacked(op, key, i) for i in range(2))
    elif op.rank_of(key) == 4:  # keys and values of another sequence, already by heads: they have their bias
        return Heads(heads(op, _biased(op, query, _biases(op, bias, query)[0]), count), key, value, no_past)
    parts = (_biased(op, x, b) for x, b in zip((query, key, value), _biases(op, bias, query), strict=True))
    query, key, value = (heads(op, part, count) for part in parts)
    return Heads(query, key, value, no_past)


@rule("MultiHeadAttention")
def _multi_head(op: GraphBuilder, form: Form) -> list[Value | None]:
    count, scale, masked, causal = settings(
        form, num_heads=REQUIRED, scale=None, mask_filter_value=_MASKED, unidirectional=0
    )
    refuse_inputs(form, past_sequence_length=8, cache_indirection=9)
    _, _, _, bias, mask, added, past_key, past_value = inputs(form, 8)
    given = _by_heads(op, form, count, bias, packed=False)
    return _with_past(op, form, given, mask, added, past_key, past_value, scale, masked, bool(causal))


@rule("DecoderMaskedMultiHeadAttention")
def _decoder_multi_head(op: GraphBuilder, form: Form) -> list[Value | None]:
    """MultiHeadAttention for one query; its inputs have another order."""
    count, scale, masked, shared, scores = settings(
        form, num_heads=REQUIRED, scale=None, mask_filter_value=_MASKED, past_present_share_buffer=0, output_qk=0
    )
    if shared:
        raise refuse(form, "past_present_share_buffer=1", "use MultiHeadAttention, with past and present apart")
    if wanted(form, 3) and not scores:
        raise refuse(form, "the output qk and output_qk=0")
    refuse_inputs(form, past_sequence_length=7, beam_width=8, cache_indirection=9)
    _, _, _, mask, added, past_key, past_value, _, _, _, bias = inputs(form, 11)
    given = _by_heads(op, form, count, bias, packed=True)
    return _with_past(op, form, given, mask, added, past_key, past_value, scale, masked, False)


def _with_past(
    op: GraphBuilder,
    form: Form,
    given: Heads,
    mask: Value | None,
    added: Value | None,
    past_key: Value | None,
    past_value: Value | None,
    scale: float | None,
    masked: float,
    causal: bool,
) -> list[Value | None]:
    if (past_key is None) != (past_value is None):
        raise refuse(form, "only one of past_key and past_value")
    whole = Heads(
        given.query,
        _after(op, past_key, given.key),
        _after(op, past_value, given.value),
        _past_of(op, past_key),
    )
    extra = _mask(op, form, mask, whole, form.input(0), masked)
    y, weights = _attended(op, whole, scale, extra, added, causal)
    query, _, value = _first_three(form)
    shapes = [() if x is None or x.shape is None else x.shape for x in (query, value)]
    if len(shapes[0]) == len(shapes[1]) == 3:
        y.shape = (*shapes[0][:2], shapes[1][2])
    return [y, whole.key, whole.value, weights]


# --- rotary embeddings


def rotated(
    op: GraphBuilder, x: Value, cos: Value, sin: Value, places: Value, interleaved: int, whole: bool = False
) -> Value:
    """Rotary embedding of the first features of each head; those beyond the caches' stay.

    Arguments:
        x: [batch, heads, sequence, size]; its dtype.
        cos, sin: [positions, pairs].
        places: [batch or 1, sequence], int64.
        interleaved: whether the features of a pair are next to each other, not half of the features apart.
        whole: whether it is known that all features are rotated.
    """
    pairs = sizes(op, cos, 1)
    rotary = op.Mul(pairs, op.ints(2))
    last = op.ints(-1)
    part = x if whole else op.Slice(x, op.ints(0), rotary, last)
    angles = [op.Unsqueeze(op.Gather(cache, places, axis=0), op.ints(1)) for cache in (cos, sin)]
    if interleaved:
        first, second = (op.Slice(part, op.ints(i), rotary, last, op.ints(2)) for i in (0, 1))
    else:
        first, second = op.Slice(part, op.ints(0), pairs, last), op.Slice(part, pairs, rotary, last)
    turned = [
        op.Sub(op.Mul(first, angles[0]), op.Mul(second, angles[1])),
        op.Add(op.Mul(first, angles[1]), op.Mul(second, angles[0])),
    ]
    if interleaved:
        pairwise = op.Concat(*(op.Unsqueeze(t, last) for t in turned), axis=-1)
        made = op.Reshape(pairwise, op.ints(0, 0, 0, -1))
    else:
        made = op.Concat(*turned, axis=-1)
    if whole:
        return made
    return op.Concat(made, op.Slice(x, rotary, op.ints(np.iinfo(np.int64).max), last), axis=-1)


@rule("RotaryEmbedding")
def _rotary(op: GraphBuilder, form: Form) -> Value:
    interleaved, count, dim, packed, scale = settings(
        form, interleaved=0, num_heads=0, rotary_embedding_dim=0, is_packed_batching=0, scale=1.0
    )
    del packed  # allows sequences longer than the caches, nothing else
    if scale not in (0, 1):
        raise refuse(form, f"scale={scale}", "onnxruntime ignores it")
    x, places, cos, sin = (form.input(i) for i in range(4))
    four = op.rank_of(x) == 4
    if dim and not count and not four:
        raise refuse(form, "rotary_embedding_dim and no num_heads")
    if four:
        apart = x
    elif dim:
        apart = heads(op, x, count)
    else:  # each head has twice as many features as the caches
        features = op.Mul(sizes(op, cos, 1), op.ints(2))
        target = op.Concat(op.ints(0, 0), op.ints(-1), features, axis=0)
        apart = op.Transpose(op.Reshape(x, target), perm=(0, 2, 1, 3))
    if places.shape is None or len(places.shape) != 2:
        if places.shape is None:
            raise refuse(form, "position_ids whose number of axes is unknown")
        steps = counting(op, size(op, apart, 2))
        places = op.Unsqueeze(op.Add(steps, places), op.ints(0))  # they begin with this one
    made = rotated(op, apart, cos, sin, places, interleaved, whole=not dim)
    return shaped(made if four else joined(op, made), x)


# --- GroupQueryAttention

_CACHE = {"kv_cache_bit_width": 0, "k_quant_type": "NONE", "v_quant_type": "NONE", "sliding_window_cache": 0}


@rule("GroupQueryAttention")
def _group_query(op: GraphBuilder, form: Form) -> list[Value | None]:
    """Groups of query heads share a key head. Keys are kept from call to call: `seqlens_k` [batch] says how many there
    are with the new ones, less one; `total_sequence_length` is the largest number of them. If that is the number of
    queries, it is the first call, and nothing of the past is read."""
    unusual = [name for name, usual in _CACHE.items() if form.attributes.get(name, usual) != usual]
    if unusual:
        raise refuse(form, f"{unusual[0]}={form.attributes[unusual[0]]!r}", "keep the cache in floating point, whole")
    plain = Form(form.op_type, form.inputs, {k: v for k, v in form.attributes.items() if k not in _CACHE}, form.outputs)
    count, groups, scale, softcap, window, causal, rotary, interleaved, smooth, shown, epsilon = settings(
        plain,
        num_heads=REQUIRED,
        kv_num_heads=REQUIRED,
        scale=None,
        softcap=0.0,
        local_window_size=-1,
        causal=1,
        do_rotary=0,
        rotary_interleaved=0,
        smooth_softmax=-1,
        qk_output=0,
        qk_norm_epsilon=9.999999974752427e-07,
    )
    refuse_inputs(form, k_scale=12, v_scale=13)
    _, _, _, past_key, past_value, _, _, cos, sin, positions, bias, sink, _, _, q_norm, k_norm = inputs(form, 16)
    if smooth == 1 and sink is not None:
        raise refuse(form, "both smooth_softmax and head_sink")
    if not causal and window > 0:
        raise refuse(form, "local_window_size and causal=0")
    query, key, value = _grouped(op, form, count, groups)
    if q_norm is not None and k_norm is not None:
        query = op.RMSNormalization(query, q_norm, axis=-1, epsilon=epsilon)
        key = op.RMSNormalization(key, k_norm, axis=-1, epsilon=epsilon)
    elif q_norm is not None or k_norm is not None:
        raise refuse(form, "only one of q_norm_weight and k_norm_weight")

    new = size(op, query, 2)
    total = new if past_key is None else op.cast(scalar(op, form.input(6)), np.int64)
    ends = op.Add(op.Reshape(op.cast(form.input(5), np.int64), op.ints(-1)), op.ints(1))  # [batch]
    fresh = op.Equal(new, total)
    past = op.ints(0) if past_key is None else op.Where(fresh, op.ints(0), op.Sub(ends, new))
    if rotary:
        if cos is None or sin is None:
            raise refuse(form, "do_rotary=1 and no caches")
        places = op.Squeeze(_places(op, query, past), op.ints(2))
        if positions is not None:
            first = op.Slice(positions, op.ints(0, 0), op.ints(1, 1), op.ints(0, 1))
            places = op.Where(fresh, op.Add(first, op.Unsqueeze(counting(op, new), op.ints(0))), positions)
        query, key = (rotated(op, x, cos, sin, places, interleaved) for x in (query, key))
    present = [_kept(op, old, x, past, total) for old, x in ((past_key, key), (past_value, value))]
    keys, values = (op.Slice(x, op.ints(0), op.Reshape(total, op.ints(1)), op.ints(2)) for x in present)
    columns, rows = counting(op, total), _places(op, query, past)
    allowed = op.Less(columns, op.Unsqueeze(ends, op.ints(1, 2)))
    if causal:
        allowed = op.And(allowed, op.LessOrEqual(columns, rows))
    if window > 0:
        allowed = op.And(allowed, op.Greater(columns, op.Sub(rows, op.ints(window))))
    allowed = op.Unsqueeze(allowed, op.ints(1))

    scores = _scores(op, query, _repeated(op, keys, groups, count), scale)
    if softcap:
        cap = op.const(softcap, like=scores)
        scores = op.Mul(op.Tanh(op.Div(scores, cap)), cap)
    scores = scores if bias is None else op.Add(scores, bias)
    weights = _softmax(op, _only(op, allowed, scores), sink, smooth == 1, count)
    nothing = op.const(0, like=weights)
    weights = op.Where(allowed, weights, nothing)
    y = joined(op, op.MatMul(weights, _repeated(op, values, groups, count)))
    if wanted(form, 3) and shown not in (1, 2):
        raise refuse(form, f"the output output_qk and qk_output={shown}")
    raw = op.Where(allowed, scores, nothing) if shown == 1 else weights
    return [shaped(y, form.input(0)) if form.inputs[1] is not None else y, *present, raw]


def _grouped(op: GraphBuilder, form: Form, count: int, groups: int) -> tuple[Value, Value, Value]:
    """query, key and value by heads, from three inputs or from one that has them side by side."""
    query, key, value = form.input(0), *form.inputs[1:3]
    if key is not None and value is not None:
        return heads(op, query, count), heads(op, key, groups), heads(op, value, groups)
    if key is not None or value is not None:
        raise refuse(form, "only one of key and value")
    apart = heads(op, query, count + 2 * groups)
    made: tuple[Value, Value, Value] = op.Split(apart, op.ints(count, groups, groups), axis=1, outputs=3)
    return made


def _repeated(op: GraphBuilder, x: Value, groups: int, count: int) -> Value:
    """[batch, groups, keys, size] with each group as often as it has query heads."""
    if groups == count:
        return x
    if count % groups:
        raise UnsupportedError(f"{count} query heads are not a multiple of {groups} key heads")
    wide = op.Expand(op.Unsqueeze(x, op.ints(2)), op.ints(1, 1, count // groups, 1, 1))
    return op.Reshape(wide, op.Concat(op.ints(0, count), op.Shape(x, start=2, end=4), axis=0))


def _kept(op: GraphBuilder, old: Value | None, new: Value, past: Value, total: Value) -> Value:
    """The keys (or values) to keep: `past` [batch] old ones, then the new ones, then zeros.

    As many as there are in all, or as the past has place for.
    """
    if old is None:
        return new
    room = size(op, old, 2)
    length = op.Max(room, total)
    columns = counting(op, length)
    missing = op.Reshape(op.Sub(length, room), op.ints(1))
    shape = op.Concat(op.Shape(old, start=0, end=2), missing, sizes(op, old, 3), axis=0)
    zero = op.const(0, like=old)
    longer = op.Concat(old, op.Expand(zero, shape), axis=2)
    first = op.Unsqueeze(past, op.ints(1))  # [batch, 1]
    index = op.Sub(columns, first)
    count = size(op, new, 2)
    one, none = op.const(np.array(1, np.int64)), op.const(np.array(0, np.int64))
    inside = op.And(op.GreaterOrEqual(index, none), op.Less(index, count))
    bounded = op.Unsqueeze(op.Clip(index, none, op.Sub(count, one)), op.ints(1, 3))
    target = op.Concat(op.Shape(new, start=0, end=2), op.Reshape(length, op.ints(1)), sizes(op, new, 3), axis=0)
    placed = op.GatherElements(new, op.Expand(bounded, target), axis=2)
    before = op.Unsqueeze(op.Less(index, none), op.ints(1, 3))
    return op.Where(before, longer, op.Where(op.Unsqueeze(inside, op.ints(1, 3)), placed, zero))


def _softmax(op: GraphBuilder, scores: Value, sink: Value | None, smooth: bool, count: int) -> Value:
    """Softmax over the keys; with a sink, of the keys and one more score for each head, which is 0 if it is smooth."""
    if sink is None and not smooth:
        return op.Softmax(scores, axis=-1)
    extra = op.const(0, like=scores)
    if sink is not None:
        extra = op.Reshape(op.cast(sink, scores.dtype), op.ints(1, count, 1, 1))
    column = op.Expand(extra, op.Concat(op.Shape(scores, start=0, end=3), op.ints(1), axis=0))
    weights = op.Softmax(op.Concat(scores, column, axis=-1), axis=-1)
    return op.Slice(weights, op.ints(0), op.ints(-1), op.ints(-1))


# --- biases of attention


@rule("RelativePositionBias")
def _relative_positions(op: GraphBuilder, form: Form) -> Value:
    """T5's: a table by buckets of distances, which are exact up to half of the buckets and then logarithmic."""
    farthest, both = settings(form, max_distance=REQUIRED, is_bidirectional=0)
    table = form.input(0)
    buckets = known_size(table, 0)
    if buckets is None:
        raise refuse(form, "a table whose number of buckets is unknown")
    ends = [scalar(op, form.input(i)) for i in (1, 2)]
    rows, columns = (counting(op, end) for end in ends)
    behind = op.Sub(op.Unsqueeze(rows, op.ints(1)), columns)  # how far a key is behind its query
    zero = op.const(np.array(0, np.int64))
    offset = None
    if both:
        buckets //= 2
        offset = op.Mul(op.cast(op.Less(behind, zero), np.int64), op.const(np.array(buckets, np.int64)))
        behind = op.Abs(behind)
    else:
        behind = op.Max(behind, zero)
    exact = buckets // 2
    wide = op.cast(op.Max(behind, op.const(np.array(1, np.int64))), np.float32)
    scaled = op.Div(op.Log(op.Div(wide, op.const(np.float32(exact)))), op.const(np.float32(np.log(farthest / exact))))
    far = op.cast(op.Mul(scaled, op.const(np.float32(buckets - exact))), np.int64)
    limit = op.const(np.array(buckets - 1, np.int64))
    far = op.Min(op.Add(far, op.const(np.array(exact, np.int64))), limit)
    bucket = op.Where(op.Less(behind, op.const(np.array(exact, np.int64))), behind, far)
    bucket = bucket if offset is None else op.Add(bucket, offset)
    return op.Unsqueeze(op.Transpose(op.Gather(table, bucket, axis=0), perm=(2, 0, 1)), op.ints(0))
