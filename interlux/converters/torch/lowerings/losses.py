"""Losses, as modules compute them while they train."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ....ir.errors import UnsupportedError
from ....ir.trees import is_float
from ...builder import Value
from ..builder import Size, TorchBuilder
from .reductions import norm
from .registry import aten
from .special import log_sigmoid, xlogy
from .terms import Term, formula, product, sizes_of, working_dtype

NONE, MEAN, SUM = 0, 1, 2  # torch's numbers of reductions


def _reduced(losses: Term, reduction: int) -> Term:
    if reduction == NONE:
        return losses
    return losses.reduced("Mean" if reduction == MEAN else "Sum")


# --- regression


@formula("mse_loss")
def mse_loss(x: Term, target: Term, reduction: int = MEAN) -> Term:
    difference = x - target
    return _reduced(difference * difference, reduction)


@formula("l1_loss")
def l1_loss(x: Term, target: Term, reduction: int = MEAN) -> Term:
    return _reduced((x - target).Abs(), reduction)


@formula("smooth_l1_loss")
def smooth_l1_loss(x: Term, target: Term, reduction: int = MEAN, beta: float = 1) -> Term:
    size = (x - target).Abs()
    if beta != 0:
        size = (size < beta).where(size * size * (0.5 / beta), size - 0.5 * beta)
    return _reduced(size, reduction)


@formula("huber_loss")
def huber_loss(x: Term, target: Term, reduction: int = MEAN, delta: float = 1) -> Term:
    size = (x - target).Abs()
    return _reduced((size < delta).where(size * size * 0.5, (size - 0.5 * delta) * delta), reduction)


@formula("poisson_nll_loss")
def poisson_nll_loss(x: Term, target: Term, log_input: bool, full: bool, eps: float, reduction: int) -> Term:
    loss = x.Exp() - target * x if log_input else x - target * (x + eps).Log()
    if full:  # Stirling's approximation of log target!
        large = target > 1
        count = large.where(target, 1)
        loss = loss + large.where(count * count.Log() - count + (count * (2 * math.pi)).Log() * 0.5, 0)
    return _reduced(loss, reduction)


@formula("kl_div")
def kl_div(x: Term, target: Term, reduction: int = MEAN, *, log_target: bool = False) -> Term:
    return _reduced(target.Exp() * (target - x) if log_target else xlogy(target, target) - target * x, reduction)


# --- probabilities


@formula("binary_cross_entropy")
def binary_cross_entropy(x: Term, target: Term, weight: Term | None = None, reduction: int = MEAN) -> Term:
    """With the logarithms limited to -100, and torch's derivative (x - target) / max(x (1 - x), 1e-12)."""
    saturated = x * (1 - x) < 1e-12
    fixed = x.stopped()
    safe = saturated.where(0.5, x)

    def logarithm(p: Term, inside: Term) -> Term:
        return saturated.where(p.Log().Max(-100).stopped(), inside.Log())

    losses = (target - 1) * logarithm(1 - fixed, 1 - safe) - target * logarithm(fixed, safe)
    slope = ((fixed - target.stopped()) * 1e12) * (x - fixed)
    losses = losses + saturated.where(slope, 0)
    return _reduced(losses if weight is None else losses * weight, reduction)


@formula("binary_cross_entropy_with_logits")
def binary_cross_entropy_with_logits(
    x: Term, target: Term, weight: Term | None = None, pos_weight: Term | None = None, reduction: int = MEAN
) -> Term:
    logarithm = log_sigmoid(x)
    if pos_weight is not None:
        logarithm = ((pos_weight - 1) * target + 1) * logarithm
    losses = (1 - target) * x - logarithm
    return _reduced(losses if weight is None else losses * weight, reduction)


# --- classes


def _class_losses(
    scores: Term, labels: Term, weight: Term | None, ignored_label: int, axis: int
) -> tuple[Term, Term, Term]:
    """-weight * score at the labels, the weights themselves (both 0 at ignored labels), and where labels count.

    Arguments:
        scores: [..., classes, ...], the classes on `axis`.
        labels: int64, of the scores' shape without that axis.
    """
    counted = labels.differs(ignored_label)
    safe = counted.where(labels, 0)
    picked = scores.taken(safe.unsqueezed(axis), axis).squeezed(axis)
    if weight is None:
        weights = counted.cast(scores.dtype)
    else:
        rows = Term(scores.op, scores.op.Gather(weight.value, safe.value, axis=0), labels.rank)
        weights = counted.where(rows, 0)
    return counted.where(-picked * weights, 0), weights, counted


def _class_reduced(losses: Term, weights: Term, reduction: int) -> Term:
    if reduction == NONE:
        return losses
    return losses.total() if reduction == SUM else losses.total() / weights.total()


def _class_axis(scores: Term) -> int:
    return 0 if scores.rank == 1 else 1


def _working(op: TorchBuilder, x: Value | None, dtype: Any) -> Term | None:
    return None if x is None else Term.of(op, x, working_dtype(dtype))


@aten("nll_loss", "nll_loss_nd", "nll_loss2d")
def nll_loss(
    op: TorchBuilder,
    x: Value,
    target: Value,
    weight: Value | None = None,
    reduction: int = MEAN,
    ignored_label: int = -100,
) -> Value:
    scores, labels = Term.of(op, x, working_dtype(x.dtype)), Term.of(op, target, np.int64)
    scores.rank = op.rank_of(x)
    losses, weights, _ = _class_losses(
        scores, labels, _working(op, weight, x.dtype), ignored_label, _class_axis(scores)
    )
    return op.cast(_class_reduced(losses, weights, reduction).value, op.result_dtype)


@aten("cross_entropy_loss")
def cross_entropy_loss(
    op: TorchBuilder,
    x: Value,
    target: Value,
    weight: Value | None = None,
    reduction: int = MEAN,
    ignored_label: int = -100,
    label_smoothing: float = 0.0,
) -> Value:
    scores = Term(op, op.cast(x, working_dtype(x.dtype)), op.rank_of(x))
    axis, sizes = _class_axis(scores), sizes_of(op, 0)
    logarithms = Term(op, op.LogSoftmax(scores.value, axis=axis), scores.rank)
    weights = _working(op, weight, x.dtype)
    if is_float(target.dtype):
        found = _soft_labels(logarithms, Term.of(op, target, scores.dtype), weights, reduction, label_smoothing, sizes)
    else:
        labels = Term(op, op.cast(target, np.int64), op.rank_of(target))
        found = _hard_labels(logarithms, labels, weights, reduction, ignored_label, label_smoothing, sizes[axis])
    return op.cast(found.value, op.result_dtype)


def _by_class(weight: Term, rank: int, axis: int) -> Term:
    return weight.unsqueezed(*range(1, rank - axis)) if rank - axis > 1 else weight


def _soft_labels(
    logarithms: Term, target: Term, weight: Term | None, reduction: int, smoothing: float, sizes: list[Size]
) -> Term:
    axis = _class_axis(logarithms)
    if smoothing > 0:
        target = target * (1 - smoothing) + logarithms.like(smoothing) / logarithms.like(sizes[axis])
    products = logarithms * target
    if weight is not None:
        products = products * _by_class(weight, logarithms.rank, axis)
    losses = -products.total(axis)
    if reduction == MEAN:
        return losses.total() / losses.like(product([s for a, s in enumerate(sizes) if a != axis]))
    return _reduced(losses, reduction)


def _hard_labels(
    logarithms: Term,
    labels: Term,
    weight: Term | None,
    reduction: int,
    ignored_label: int,
    smoothing: float,
    classes: Size,
) -> Term:
    axis = _class_axis(logarithms)
    losses, weights, counted = _class_losses(logarithms, labels, weight, ignored_label, axis)
    if smoothing > 0:
        scaled = logarithms if weight is None else logarithms * _by_class(weight, logarithms.rank, axis)
        spread = counted.where(-scaled.total(axis), 0)
        losses = losses * (1 - smoothing) + spread * (losses.like(smoothing) / losses.like(classes))
    return _class_reduced(losses, weights, reduction)


# --- margins


@formula("hinge_embedding_loss")
def hinge_embedding_loss(x: Term, target: Term, margin: float = 1, reduction: int = MEAN) -> Term:
    apart = target.differs(1).where((margin - x).Clip(0), 0)
    return _reduced(apart + target.differs(-1).where(x, 0), reduction)


@formula("margin_ranking_loss")
def margin_ranking_loss(x: Term, y: Term, target: Term, margin: float = 0, reduction: int = MEAN) -> Term:
    return _reduced((-target * (x - y) + margin).Clip(0), reduction)


@formula("soft_margin_loss")
def soft_margin_loss(x: Term, target: Term, reduction: int = MEAN) -> Term:
    return _reduced((-target * x).Softplus(), reduction)


@formula("cosine_embedding_loss")
def cosine_embedding_loss(x: Term, y: Term, target: Term, margin: float = 0, reduction: int = MEAN) -> Term:
    axis = target.rank
    lengths = ((x * x).total(axis) + 1e-12) * ((y * y).total(axis) + 1e-12)
    cosine = (x * y).total(axis) / lengths.Sqrt()
    alike = target.equals(1).where(1 - cosine, 0)
    return _reduced(alike + target.equals(-1).where((cosine - margin).Clip(0), 0), reduction)


@formula("triplet_margin_loss")
def triplet_margin_loss(
    anchor: Term,
    positive: Term,
    negative: Term,
    margin: float = 1,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: int = MEAN,
) -> Term:
    def distance(x: Term, y: Term) -> Term:
        return norm(x - y + eps, float(p), -1)

    apart = distance(anchor, negative)
    if swap:
        apart = apart.Min(distance(positive, negative))
    return _reduced((distance(anchor, positive) - apart + margin).Clip(0), reduction)


@aten("multi_margin_loss")
def multi_margin_loss(
    op: TorchBuilder,
    x: Value,
    target: Value,
    p: int = 1,
    margin: float = 1,
    weight: Value | None = None,
    reduction: int = MEAN,
) -> Value:
    scores = Term(op, op.cast(x, working_dtype(x.dtype)), op.rank_of(x))
    labels = Term(op, op.cast(target, np.int64), op.rank_of(target))
    classes = sizes_of(op, 0)[-1]
    if scores.rank == 1:
        scores = scores.unsqueezed(0)
        labels = labels.reshaped([1])
    places = labels.unsqueezed(-1)
    excess = (scores - scores.taken(places, 1) + margin).Relu()
    if p == 2:
        excess = excess * excess
    if weight is not None:
        weights = op.Gather(op.cast(weight, scores.dtype), labels.value, axis=0)
        excess = excess * Term(op, weights, 1).unsqueezed(-1)
    own = _class_numbers(scores, classes).equals(places)
    losses = own.where(0, excess).total(1) / scores.like(classes)
    return op.cast(_reduced(losses, reduction).reshaped(list(op.result.shape)).value, op.result_dtype)


def _class_numbers(scores: Term, classes: Size) -> Term:
    op = scores.op
    if not isinstance(classes, int):
        raise UnsupportedError(f"{op.operator} with a dynamic number of classes{op.where()}; fix that size")
    return Term(op, op.const(np.arange(classes)), 1)


@aten("multilabel_margin_loss")
def multilabel_margin_loss(op: TorchBuilder, x: Value, target: Value, reduction: int = MEAN) -> Value:
    """Over the labels of each row up to the first -1, against all other classes."""
    scores = Term(op, op.cast(x, working_dtype(x.dtype)), op.rank_of(x))
    labels = Term(op, op.cast(target, np.int64), op.rank_of(target))
    classes = sizes_of(op, 0)[-1]
    if scores.rank == 1:
        scores, labels = scores.unsqueezed(0), labels.unsqueezed(0)
    ended = Term(op, op.CumSum((labels < 0).cast(np.int64).value, op.value(1)), 2)
    listed = ended.equals(0)
    safe = listed.where(labels, 0)
    numbers = _class_numbers(scores, classes)
    is_label = (listed.unsqueezed(2) & safe.unsqueezed(2).equals(numbers)).any(1)
    excess = (scores.unsqueezed(1) - scores.taken(safe, 1).unsqueezed(2) + 1).Relu()  # [batch, labels, classes]
    counted = listed.unsqueezed(2) & ~is_label.unsqueezed(1)
    losses = counted.where(excess, 0).total((1, 2)) / scores.like(classes)
    return op.cast(_reduced(losses, reduction).reshaped(list(op.result.shape)).value, op.result_dtype)
