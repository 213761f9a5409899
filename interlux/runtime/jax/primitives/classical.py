"""The operators of ai.onnx.ml: trees, linear and support vector models, and what prepares their inputs.

Where the specification leaves something open (scores of two classes, transforms of a single score, rows of one
dimension), they do what onnxruntime does. Texts and maps are Python values: what reads or makes them needs concrete
arrays. Maps are dicts, sequences of maps are lists of dicts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ....ir.errors import InvalidModelError, UnsupportedError
from .linear import MatMul
from .registry import Value, concrete, is_static, library, primitive_of

classical = primitive_of("ai.onnx.ml")

LEQ, LT, GTE, GT, EQ, NEQ, MEMBER = range(7)  # TreeEnsemble's nodes_modes
AVERAGE, SUM, MIN, MAX = range(4)  # its aggregate_function
TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")  # its post_transform, by number


def _rows(x: Value) -> Value:
    """The input as rows of features; one dimension is one row."""
    return x.reshape(1, -1) if x.ndim == 1 else x


def _single(x: Value) -> Value:
    """The input as float32 or float64: integers are computed with as float32."""
    return x if x.dtype == np.float64 else x.astype(np.float32)


def _floats(numbers: Sequence[float] | None, dtype: Any) -> np.ndarray:
    """A list of floats, which attributes hold as float32, in the dtype that is computed with."""
    return np.asarray(() if numbers is None else numbers, np.float32).astype(dtype)


# --- transforms of scores


def _softmax(scores: Value) -> Value:
    xp = library(scores)
    powers = xp.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _softmax_zero(scores: Value) -> Value:
    """The softmax of the scores that are not zero; the others stay (almost) zero."""
    xp = library(scores)
    largest = scores.max(-1, keepdims=True)
    counted = xp.abs(scores) > np.asarray(1e-7, scores.dtype)
    powers = xp.where(counted, xp.exp(scores - largest), np.asarray(0, scores.dtype))
    return xp.where(counted, powers, scores * xp.exp(-largest)) / powers.sum(-1, keepdims=True)


def logistic(scores: Value) -> Value:
    xp = library(scores)
    half = 1 / (1 + xp.exp(-xp.abs(scores)))
    return xp.where(scores < 0, 1 - half, half)


def _probit(scores: Value) -> Value:
    """The inverse of the normal distribution function, by the approximation that runtimes of ONNX share.

    Source: S. Winitzki, A handy approximation for the error function and its inverse (2008), with a = 0.147.
    """
    xp = library(scores)

    def number(value: float) -> np.ndarray:
        return np.asarray(value, scores.dtype)

    with np.errstate(divide="ignore", invalid="ignore"):
        y = 2 * scores - 1
        log = xp.log((1 - y) * (1 + y))
        v = number(2 / (3.14159 * 0.147)) + number(0.5) * log
        root = xp.sqrt(xp.sqrt(v * v - log / number(0.147)) - v)
    return number(2**0.5) * xp.where(y < 0, -root, root)


def transformed(scores: Value, kind: str) -> Value:
    """Scores (n × classes) after post_transform. Of a single score per row, only PROBIT changes anything."""
    if kind not in TRANSFORMS:
        raise InvalidModelError(f"post_transform {kind!r} is not one of {', '.join(TRANSFORMS)}")
    if scores.shape[1] == 1 and kind != "PROBIT":
        return scores
    functions: dict[str, Callable[[Value], Value]] = {
        "SOFTMAX": _softmax,
        "LOGISTIC": logistic,
        "SOFTMAX_ZERO": _softmax_zero,
        "PROBIT": _probit,
    }
    return functions[kind](scores) if kind != "NONE" else scores


# --- trees


class _Forest:
    """The nodes and leaves of a TreeEnsemble in one table: leaves come after the nodes and lead to themselves.

    Arguments:
        feature, split, mode, missing, branches: of nodes and leaves, `branches` (count × 2) the next node by the
            outcome of the comparison.
        nodes: how many nodes there are.
        depth: the longest way from a root to a leaf.
        roots: of the trees.
        members: sorted values of all sets; `inside` (sets × values) says which belong to a set, `sets` which one a
            node has.
    """

    def __init__(self, dtype: Any, attributes: dict[str, Any]):
        def column(name: str, kind: Any = np.int64) -> np.ndarray:
            return np.asarray(attributes[name], kind).reshape(-1)

        self.feature, self.mode = column("nodes_featureids"), column("nodes_modes")
        self.split, self.roots = column("nodes_splits", dtype), column("tree_roots")
        self.nodes, leaves = len(self.feature), len(attributes["leaf_targetids"])
        tracks = attributes["nodes_missing_value_tracks_true"]
        self.missing = np.asarray(tracks or np.zeros(self.nodes), bool)
        children = np.stack([column("nodes_falsenodeids"), column("nodes_truenodeids")], 1)
        is_leaf = np.stack([column("nodes_falseleafs"), column("nodes_trueleafs")], 1) != 0
        if not (len(self.mode) == len(self.split) == len(self.missing) == len(children) == self.nodes):
            raise InvalidModelError("the lists of a TreeEnsemble's nodes differ in length")
        limits = np.where(is_leaf, leaves, self.nodes)
        if ((children < 0) | (children >= limits)).any() or ((self.roots < 0) | (self.roots >= self.nodes)).any():
            raise InvalidModelError("a TreeEnsemble has a branch or root that is none of its nodes or leaves")
        if len(self.feature) and (self.feature.min() < 0 or self.mode.max() > MEMBER):
            raise InvalidModelError("a TreeEnsemble has a negative feature or an unknown mode")
        itself = np.arange(self.nodes, self.nodes + leaves)
        following = np.where(is_leaf, children + self.nodes, children)
        self.branches = np.concatenate([following, np.stack([itself, itself], 1)]).astype(np.int32)
        self.depth = self._depth()
        self._sets(attributes["membership_values"], dtype)
        self.modes = sorted(set(self.mode.tolist()))
        features, modes = self.feature.astype(np.int32), self.mode.astype(np.int8)
        self.feature, self.mode, self.split, self.missing = (
            np.concatenate([a, np.zeros(leaves, a.dtype)]) for a in (features, modes, self.split, self.missing)
        )

    def _depth(self) -> int:
        level = np.unique(self.roots)
        depth = 0
        while (level < self.nodes).any():
            level = np.unique(self.branches[level[level < self.nodes]])
            depth += 1
            if depth > self.nodes:
                raise InvalidModelError("the branches of a TreeEnsemble go round in a circle")
        return depth

    def _sets(self, values: np.ndarray | None, dtype: Any) -> None:
        owners = np.flatnonzero(self.mode == MEMBER)
        flat = np.asarray(() if values is None else values, dtype).reshape(-1)
        numbers = np.cumsum(np.isnan(flat)) - np.isnan(flat)  # of the set that a value belongs to
        kept = ~np.isnan(flat)
        if len(owners) > np.isnan(flat).sum() + bool(len(flat) and kept[-1]):
            raise InvalidModelError("a TreeEnsemble has fewer sets of members than nodes that test for one")
        self.members, which = np.unique(flat[kept], return_inverse=True)
        self.inside = np.zeros((len(owners) + 1, max(len(self.members), 1)), bool)
        known = numbers[kept] < len(owners)
        self.inside[numbers[kept][known], which[known]] = True
        self.sets = np.full(len(self.branches), len(owners))
        self.sets[owners] = np.arange(len(owners))

    def leaves(self, x: Value) -> Value:
        """The leaf of each tree for each row: n × trees."""
        xp = library(x)
        n, trees = x.shape[0], len(self.roots)
        if self.nodes and self.feature.max() >= x.shape[1]:
            raise InvalidModelError(f"a tree reads feature {self.feature.max()}, the input has {x.shape[1]}")
        rank = found = None
        if MEMBER in self.modes and len(self.members):
            rank = xp.minimum(xp.searchsorted(self.members, x), len(self.members) - 1)
            found = _at(self.members, rank) == x

        def step(_: Any, at: Value) -> Value:
            column = _at(self.feature, at)
            value = _in_row(x, column)
            threshold = _at(self.split, at)
            outcomes: dict[int, Callable[[], Value]] = {
                LEQ: lambda: value <= threshold,
                LT: lambda: value < threshold,
                GTE: lambda: value >= threshold,
                GT: lambda: value > threshold,
                EQ: lambda: value == threshold,
                NEQ: lambda: value != threshold,
                MEMBER: lambda: member(at, column),
            }
            taken = outcomes[self.modes[0]]()
            for kind in self.modes[1:]:
                taken = xp.where(_at(self.mode, at) == kind, outcomes[kind](), taken)
            if self.missing.any():
                taken = taken | (_at(self.missing, at) & xp.isnan(value))
            return _at(self.branches.reshape(-1), 2 * at + taken)

        def member(at: Value, column: Value) -> Value:
            if rank is None:
                return xp.zeros(at.shape, bool)
            place = _at(self.sets, at) * self.inside.shape[1] + _in_row(rank, column)
            return _at(self.inside.reshape(-1), place) & _in_row(found, column)

        at = xp.broadcast_to(xp.asarray(self.roots.astype(np.int32)), (n, trees))
        if is_static(x):
            for _ in range(self.depth):
                at = step(None, at)
        elif self.depth:
            at = lax.fori_loop(0, self.depth, step, at)
        return at - np.int32(self.nodes)


def _at(table: np.ndarray, index: Value) -> Value:
    """Elements of a constant table, at indices that are known to be inside."""
    return table[index] if is_static(index) else jnp.asarray(table).at[index].get(mode="promise_in_bounds")


def _in_row(rows: Value, columns: Value) -> Value:
    """The elements of each row at the given columns, which are known to be inside."""
    if is_static(rows, columns):
        return np.take_along_axis(rows, columns, 1)
    return jnp.take_along_axis(jnp.asarray(rows), columns, 1, mode="promise_in_bounds")


def _aggregated(weights: Value, targets: Value, n_targets: int, function: int, trees: int) -> Value:
    """The weights of the leaves (n × trees) gathered by target: n × n_targets. A target that no leaf has is 0."""
    weights, targets = jnp.asarray(weights), jnp.asarray(targets)
    if function in (SUM, AVERAGE):
        if n_targets == 1:
            total = weights.sum(1, keepdims=True)
        else:
            empty = jnp.zeros((weights.shape[0], n_targets), weights.dtype)
            total = empty.at[jnp.arange(weights.shape[0])[:, None], targets].add(weights)
        return total / np.asarray(trees, weights.dtype) if function == AVERAGE else total
    rows = jnp.arange(weights.shape[0])[:, None]
    start = np.inf if function == MIN else -np.inf
    table = jnp.full((weights.shape[0], n_targets), start, weights.dtype).at[rows, targets]
    best = table.min(weights) if function == MIN else table.max(weights)
    seen = jnp.zeros((weights.shape[0], n_targets), bool).at[rows, targets].set(True)
    return jnp.where(seen, best, np.asarray(0, weights.dtype))


@classical
def TreeEnsemble(
    x: Value,
    *,
    leaf_targetids: Sequence[int],
    leaf_weights: np.ndarray,
    nodes_splits: np.ndarray,
    aggregate_function: int = SUM,
    n_targets: int | None = None,
    nodes_hitrates: np.ndarray | None = None,  # popularity, for runtimes that order nodes by it
    nodes_missing_value_tracks_true: Sequence[int] | None = None,
    membership_values: np.ndarray | None = None,
    post_transform: int = 0,
    **nodes: Any,
) -> Value:
    if aggregate_function not in range(4) or post_transform not in range(len(TRANSFORMS)):
        raise InvalidModelError("TreeEnsemble with an unknown aggregate_function or post_transform")
    forest = _Forest(
        x.dtype,
        {
            **nodes,
            "leaf_targetids": leaf_targetids,
            "nodes_splits": nodes_splits,
            "nodes_missing_value_tracks_true": nodes_missing_value_tracks_true,
            "membership_values": membership_values,
        },
    )
    targets = np.asarray(leaf_targetids, np.int64)
    count = int(targets.max()) + 1 if n_targets is None else n_targets
    # sums in 16 bits would lose what the leaves of many trees add
    weights = np.asarray(leaf_weights).reshape(-1).astype(np.promote_types(x.dtype, np.float32))
    if len(weights) != len(targets) or targets.min() < 0 or targets.max() >= count:
        raise InvalidModelError("the leaves of a TreeEnsemble have other targets or weights than it says")
    leaves = forest.leaves(_rows(x))
    scores = _aggregated(_at(weights, leaves), _at(targets, leaves), count, aggregate_function, len(forest.roots))
    return transformed(scores, TRANSFORMS[post_transform]).astype(x.dtype)


# --- linear and support vector models


def _labelled(index: Value, texts: Sequence[str] | None, numbers: Sequence[int] | None) -> Value:
    """Class labels by their index."""
    if texts:
        return np.array(texts, object)[concrete(index, "the class of a classifier with texts as labels")]
    return library(index).asarray(np.asarray(numbers, np.int64))[index]


@classical
def LinearClassifier(
    x: Value,
    *,
    coefficients: Sequence[float],
    intercepts: Sequence[float] | None = None,
    classlabels_ints: Sequence[int] | None = None,
    classlabels_strings: Sequence[str] | None = None,
    multi_class: int = 0,  # how the model was trained
    post_transform: str = "NONE",
) -> Any:
    x = _single(_rows(x))
    weight = _floats(coefficients, x.dtype).reshape(-1, x.shape[1])
    scores = MatMul(x, weight.T)
    if intercepts:
        scores = scores + _floats(intercepts, x.dtype)
    labels = classlabels_strings or classlabels_ints or ()
    xp = library(scores)
    if len(weight) > 1:
        if len(labels) < len(weight):
            raise InvalidModelError(f"LinearClassifier has {len(weight)} classes and {len(labels)} labels")
        label = _labelled(xp.argmax(scores, 1), classlabels_strings, classlabels_ints)
        return label, transformed(scores, post_transform).astype(np.float32)
    if len(labels) != 2 or post_transform == "PROBIT":
        raise UnsupportedError("LinearClassifier with one score needs two class labels and no PROBIT")
    label = _labelled((scores[:, 0] > 0).astype(np.int64), classlabels_strings, classlabels_ints)
    return label, _two_scores(scores, post_transform, positive=True).astype(np.float32)


def _two_scores(score: Value, kind: str, *, positive: bool) -> Value:
    """The scores of two classes, of which only the second has one (n × 1): 1 - s and s if it counts as a probability,
    else -s and s."""
    xp = library(score)
    if kind == "LOGISTIC":
        return xp.concatenate([logistic(-score), logistic(score)], 1)
    return xp.concatenate([1 - score if positive else -score, score], 1)


@classical
def LinearRegressor(
    x: Value,
    *,
    coefficients: Sequence[float] | None = None,
    intercepts: Sequence[float] | None = None,
    targets: int = 1,
    post_transform: str = "NONE",
) -> Value:
    x = _single(_rows(x))
    scores = MatMul(x, _floats(coefficients, x.dtype).reshape(targets, -1).T)
    if intercepts:
        scores = scores + _floats(intercepts, x.dtype)
    return transformed(scores, post_transform).astype(np.float32)


def _kernel(x: Value, vectors: np.ndarray, kind: str, params: Sequence[float] | None) -> Value:
    """What x (n × features) and the support vectors (count × features) have in common: n × count."""
    gamma, coef0, degree = _floats(params or (0, 0, 0), x.dtype)
    xp = library(x)
    if kind == "RBF":
        squares = ((x[:, None, :] - vectors[None]) ** 2).sum(-1)
        return xp.exp(-gamma * squares)
    product = MatMul(x, vectors.T)
    if kind == "LINEAR":
        return product
    if kind == "POLY":
        return (product * gamma + coef0) ** degree
    if kind == "SIGMOID":
        return xp.tanh(product * gamma + coef0)
    raise InvalidModelError(f"kernel_type {kind!r} is not LINEAR, POLY, RBF or SIGMOID")


@classical
def SVMRegressor(
    x: Value,
    *,
    coefficients: Sequence[float] | None = None,
    kernel_params: Sequence[float] | None = None,
    kernel_type: str = "LINEAR",
    n_supports: int = 0,
    one_class: int = 0,
    post_transform: str = "NONE",
    rho: Sequence[float] | None = None,
    support_vectors: Sequence[float] | None = None,
) -> Value:
    if post_transform == "PROBIT":
        raise UnsupportedError("SVMRegressor with PROBIT: no runtime of ONNX applies it; append the operators instead")
    x = _single(_rows(x))
    weight = _floats(coefficients, x.dtype).reshape(-1, 1)
    if n_supports > 0:
        x = _kernel(x, _floats(support_vectors, x.dtype).reshape(n_supports, -1), kernel_type, kernel_params)
    scores = MatMul(x, weight) + (_floats(rho, x.dtype)[0] if rho else np.asarray(0, x.dtype))
    if one_class:
        one = np.asarray(1, x.dtype)
        scores = library(scores).where(scores > 0, one, -one)
    return scores.astype(np.float32)


@classical
def SVMClassifier(
    x: Value,
    *,
    classlabels_ints: Sequence[int] | None = None,
    classlabels_strings: Sequence[str] | None = None,
    coefficients: Sequence[float] | None = None,
    kernel_params: Sequence[float] | None = None,
    kernel_type: str = "LINEAR",
    post_transform: str = "NONE",
    prob_a: Sequence[float] | None = None,
    prob_b: Sequence[float] | None = None,
    rho: Sequence[float] | None = None,
    support_vectors: Sequence[float] | None = None,
    vectors_per_class: Sequence[int] | None = None,
) -> Any:
    x = _single(_rows(x))
    classes = len(classlabels_strings or classlabels_ints or ())
    weights, offsets = _floats(coefficients, x.dtype), _floats(rho, x.dtype)
    if not classes or not weights.size or not offsets.size:
        raise InvalidModelError("SVMClassifier needs class labels, coefficients and rho")
    all_positive = bool((weights >= 0).all())
    if not sum(vectors_per_class or ()):  # one hyperplane for each class
        scores = MatMul(x, weights.reshape(classes, -1).T) + offsets[0]
        best, highest = library(scores).argmax(scores, 1), scores.max(1)
        if classes == 2:  # the threshold counts for the higher of the two scores
            best = library(scores).where(highest >= 0.5 if all_positive else highest > 0, 1, best)
        return _labelled(best, classlabels_strings, classlabels_ints), transformed(scores, post_transform).astype(
            np.float32
        )
    if classes < 2:
        raise InvalidModelError("SVMClassifier with support vectors needs two classes")
    vectors = _floats(support_vectors, x.dtype).reshape(sum(vectors_per_class or ()), -1)
    pairs, mixing = _pairs(tuple(vectors_per_class or ()), weights.reshape(classes - 1, len(vectors)))
    kernel = _kernel(x, vectors, kernel_type, kernel_params)
    scores = (MatMul(kernel.astype(np.float64), mixing) + offsets[: len(pairs)]).astype(x.dtype)
    won = library(scores).where(scores > 0, *pairs.T)
    votes = (won[:, :, None] == np.arange(classes)).sum(1)
    label = _labelled(library(votes).argmax(votes, 1), classlabels_strings, classlabels_ints)
    if prob_a:
        a, b = (_floats(p, x.dtype)[: len(pairs)] for p in (prob_a, prob_b))
        scores = _probabilities(1 - logistic(scores * a + b), pairs, classes)
    elif classes == 2:
        if post_transform == "PROBIT":
            raise UnsupportedError("SVMClassifier with PROBIT of one score for two classes is left open by ONNX")
        positive = post_transform != "NONE"
        return label, _two_scores(scores, post_transform, positive=positive).astype(np.float32)
    return label, transformed(scores, post_transform).astype(np.float32)


def _pairs(counts: tuple[int, ...], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of classes, (pairs × 2), and how each weighs the support vectors, (vectors × pairs), float64."""
    ends = np.cumsum(counts)
    spans = [slice(int(end) - count, int(end)) for end, count in zip(ends, counts, strict=True)]
    pairs = [(i, j) for i in range(len(counts)) for j in range(i + 1, len(counts))]
    mixing = np.zeros((weights.shape[1], len(pairs)))
    for k, (i, j) in enumerate(pairs):
        mixing[spans[i], k] = weights[j - 1, spans[i]]
        mixing[spans[j], k] = weights[i, spans[j]]
    return np.array(pairs), mixing


def _probabilities(pairwise: Value, pairs: np.ndarray, classes: int) -> Value:
    """The probabilities of all classes from those of each pair, by at most 100 iterations as in LIBSVM.

    Arguments:
        pairwise: probability of the first class of each pair, n × pairs.

    Source: T.-F. Wu, C.-J. Lin, R. C. Weng, Probability estimates for multi-class classification by pairwise coupling
        (2004), algorithm 2.
    """
    first, second = pairs.T
    p = jnp.clip(pairwise, np.asarray(1e-7, pairwise.dtype), np.asarray(1 - 1e-7, pairwise.dtype))
    r = jnp.zeros((p.shape[0], classes, classes), p.dtype).at[:, first, second].set(p).at[:, second, first].set(1 - p)
    q = -jnp.swapaxes(r, 1, 2) * r
    q = q.at[:, np.arange(classes), np.arange(classes)].set((r**2).sum(1))

    def one_row(q: Value) -> Value:
        def sweep(state: Any) -> Any:
            k, p, done = state
            qp = MatMul(q, p)
            pqp = p @ qp
            done = jnp.abs(qp - pqp).max() < np.asarray(0.005 / classes, p.dtype)
            new = p
            for t in range(classes):
                diff = (pqp - qp[t]) / q[t, t]
                new = new.at[t].add(diff) / (1 + diff)
                pqp = (pqp + diff * (diff * q[t, t] + 2 * qp[t])) / (1 + diff) / (1 + diff)
                qp = (qp + diff * q[t]) / (1 + diff)
            return k + 1, jnp.where(done, p, new), done

        start = jnp.full(classes, 1 / classes, q.dtype)
        return lax.while_loop(lambda s: (s[0] < 100) & ~s[2], sweep, (0, start, False))[1]

    return jax.vmap(one_row)(q)


# --- features


def _per_feature(numbers: Any, x: Value, what: str) -> np.ndarray:
    """An attribute with one number for all features or one for each, to be combined with x."""
    array = np.asarray(numbers)
    if array.size not in (1, x.shape[-1]):
        raise InvalidModelError(f"{what} has {array.size} numbers for {x.shape[-1]} features")
    return array


@classical
def Scaler(x: Value, *, offset: Sequence[float] | None = None, scale: Sequence[float] | None = None) -> Value:
    x = _single(x)
    if offset:
        x = x - _per_feature(_floats(offset, x.dtype), x, "the offset of Scaler")
    if scale:
        x = x * _per_feature(_floats(scale, x.dtype), x, "the scale of Scaler")
    return x.astype(np.float32)


@classical
def Normalizer(x: Value, *, norm: str = "MAX") -> Value:
    if x.ndim > 2:
        raise UnsupportedError("Normalizer is defined for one or two dimensions")
    x = _single(x)
    xp = library(x)
    if norm == "L2":
        squares = x * x
        total = squares.sum(-1, keepdims=True)
        scaled = xp.sqrt(squares / xp.where(total == 0, 1, total).astype(x.dtype))
        result = xp.where(x < 0, -scaled, scaled)
    elif norm in ("MAX", "L1"):
        total = x.max(-1, keepdims=True) if norm == "MAX" else xp.abs(x).sum(-1, keepdims=True)
        result = x / xp.where(total == 0, 1, total).astype(x.dtype)
    else:
        raise InvalidModelError(f"the norm {norm!r} of Normalizer is not MAX, L1 or L2")
    return xp.where(total == 0, x, result).astype(np.float32)


@classical
def Imputer(
    x: Value,
    *,
    imputed_value_floats: Sequence[float] | None = None,
    imputed_value_int64s: Sequence[int] | None = None,
    replaced_value_float: float = 0.0,
    replaced_value_int64: int = 0,
) -> Value:
    floating = x.dtype.kind == "f"
    values, old = (
        (imputed_value_floats, replaced_value_float) if floating else (imputed_value_int64s, replaced_value_int64)
    )
    if not values:
        raise InvalidModelError(f"Imputer has no values to put into a tensor of {x.dtype.name}")
    new = np.asarray(_per_feature(values, x, "Imputer")).astype(x.dtype)
    xp = library(x)
    replaced = xp.isnan(x) if floating and np.isnan(old) else x == np.asarray(old, x.dtype)
    return xp.where(replaced, new, x)


@classical
def Binarizer(x: Value, *, threshold: float = 0.0) -> Value:
    # an integer is above a number if it is above the integer below that
    limit = threshold if x.dtype.kind == "f" else np.clip(np.floor(threshold), *_limits(x.dtype))
    return (x > np.asarray(limit, x.dtype)).astype(x.dtype)


def _limits(dtype: Any) -> tuple[int, int]:
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


@classical
def ArrayFeatureExtractor(x: Value, indices: Value) -> Value:
    shape = (1, indices.size) if x.ndim == 1 else (*x.shape[:-1], indices.size)
    flat = indices.reshape(-1)
    if isinstance(flat, np.ndarray) and flat.size and (flat.min() < 0 or flat.max() >= x.shape[-1]):
        raise InvalidModelError(f"ArrayFeatureExtractor reads a feature outside the {x.shape[-1]} that there are")
    if is_static(x, flat) or x.dtype == object:
        return np.take(concrete(x, "a tensor of texts"), concrete(flat, "the place of a text"), -1).reshape(shape)
    # an index out of range reads NaN (floats) or the smallest integer, never another feature
    return jnp.take(x, jnp.where(flat < 0, x.shape[-1], flat), -1, mode="fill").reshape(shape)


@classical
def FeatureVectorizer(*xs: Value, inputdimensions: Sequence[int] | None = None) -> Value:
    xp = library(*xs)
    columns = []
    for i, x in enumerate(xs):
        rows = (x.reshape(1, -1) if x.ndim == 1 else x.reshape(x.shape[0], -1)).astype(np.float32)
        size = inputdimensions[i] if inputdimensions else rows.shape[1]
        padding = ((0, 0), (0, max(size - rows.shape[1], 0)))
        columns.append(xp.pad(rows[:, :size], padding))
    return xp.concatenate(columns, 1)


# --- categories


def _index(x: Value, keys: np.ndarray) -> tuple[Value, Value]:
    """The place of each element of x among the keys, and whether it is there. Of equal keys, the last one counts; all
    NaNs are equal."""
    if keys.dtype == object:
        places = {key: i for i, key in enumerate(keys)}
        texts = concrete(x, "a tensor of texts")
        index = np.array([places.get(text, -1) for text in texts.reshape(-1)], np.int64).reshape(texts.shape)
        return np.maximum(index, 0), index >= 0
    xp = library(x)
    # np.unique keeps the first of equal keys, and takes NaNs as equal
    ordered, order = np.unique(keys[::-1], return_index=True)
    order = len(keys) - 1 - order
    index = xp.minimum(xp.searchsorted(ordered, x), len(ordered) - 1)
    found = xp.asarray(ordered)[index] == x
    if ordered.dtype.kind == "f" and np.isnan(ordered[-1]):
        index = xp.where(xp.isnan(x), len(ordered) - 1, index)
        found = found | xp.isnan(x)
    return xp.asarray(order)[index], found


def _mapped(x: Value, keys: np.ndarray, values: np.ndarray, default: Any) -> Value:
    """Each element of x replaced by the value of its key; the default where it is no key."""
    if len(keys) != len(values):
        raise InvalidModelError(f"{len(keys)} keys have {len(values)} values")
    if not len(keys):
        return np.full(x.shape, default, values.dtype)
    index, found = _index(x, keys)
    if values.dtype == object:
        index, found = concrete(index, "a text that depends on"), concrete(found, "a text that depends on")
    xp = library(index)
    return xp.where(found, xp.asarray(values)[index] if xp is jnp else values[index], np.asarray(default, values.dtype))


def _texts(texts: Sequence[str] | None) -> np.ndarray:
    array = np.empty(len(texts or ()), object)
    array[:] = texts or ()
    return array


def _list(kind: str, **lists: Any) -> np.ndarray:
    """The one of several attributes that is there, as an array; they are called texts, ints, floats and tensor."""
    given = {name: value for name, value in lists.items() if value is not None and len(value)}
    if len(given) != 1:
        raise InvalidModelError(f"LabelEncoder needs one list of {kind}, it has {len(given)}")
    ((name, value),) = given.items()
    if name == "texts" or (name == "tensor" and value.dtype.kind in "OUS"):
        return _texts([str(text) for text in np.asarray(value).reshape(-1)] if name == "tensor" else value)
    if name == "tensor":
        return np.asarray(value).reshape(-1)
    return np.asarray(value, np.int64 if name == "ints" else np.float32)


@classical
def LabelEncoder(
    x: Value,
    *,
    default_float: float = -0.0,
    default_int64: int = -1,
    default_string: str = "_Unused",
    default_tensor: np.ndarray | None = None,
    keys_floats: Sequence[float] | None = None,
    keys_int64s: Sequence[int] | None = None,
    keys_strings: Sequence[str] | None = None,
    keys_tensor: np.ndarray | None = None,
    values_floats: Sequence[float] | None = None,
    values_int64s: Sequence[int] | None = None,
    values_strings: Sequence[str] | None = None,
    values_tensor: np.ndarray | None = None,
) -> Value:
    keys = _list("keys", texts=keys_strings, ints=keys_int64s, floats=keys_floats, tensor=keys_tensor)
    values = _list("values", texts=values_strings, ints=values_int64s, floats=values_floats, tensor=values_tensor)
    if keys.dtype != x.dtype:
        raise InvalidModelError(f"LabelEncoder has keys of {keys.dtype.name} for a tensor of {x.dtype.name}")
    default: Any = {"O": default_string, "i": default_int64, "f": default_float}[values.dtype.kind]
    if default_tensor is not None and default_tensor.size:
        default = default_tensor.reshape(-1)[0]
    return _mapped(x, keys, values, default)


@classical
def CategoryMapper(
    x: Value,
    *,
    cats_int64s: Sequence[int] | None = None,
    cats_strings: Sequence[str] | None = None,
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> Value:
    texts, numbers = _texts(cats_strings), np.asarray(cats_int64s or (), np.int64)
    if x.dtype == object:
        return _mapped(x, texts, numbers, default_int64)
    return _mapped(x, numbers, texts, default_string)


@classical
def OneHotEncoder(
    x: Value, *, cats_int64s: Sequence[int] | None = None, cats_strings: Sequence[str] | None = None, zeros: int = 1
) -> Value:
    keys = _texts(cats_strings) if cats_strings else np.asarray(cats_int64s or (), np.int64)
    if not keys.size or (keys.dtype == object) != (x.dtype == object):
        raise InvalidModelError(f"OneHotEncoder has no categories for a tensor of {x.dtype.name}")
    whole = x if x.dtype.kind != "f" else library(x).where(library(x).isfinite(x), x, np.asarray(0, x.dtype))
    index, found = _index(whole if x.dtype == object else whole.astype(np.int64), keys)
    if x.dtype.kind == "f":
        found = found & library(x).isfinite(x)
    if not zeros and not concrete(found, "whether OneHotEncoder knows a category").all():
        raise InvalidModelError("OneHotEncoder met a category that it does not know, and zeros is 0")
    return ((index[..., None] == np.arange(len(keys))) & found[..., None]).astype(np.float32)


# --- maps


def _is_map(value: Any, what: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise InvalidModelError(f"{what} takes a map; give a dict")
    return value


@classical
def DictVectorizer(
    x: Any, *, int64_vocabulary: Sequence[int] | None = None, string_vocabulary: Sequence[str] | None = None
) -> Value:
    """Numbers and texts of Python are float32, int64 and texts: ONNX's types of maps are not known here."""
    entries = _is_map(x, "DictVectorizer")
    kinds = {_dtype_of(value) for value in entries.values()}
    if len(kinds) > 1:
        raise InvalidModelError("DictVectorizer takes a map with values of one type")
    dtype = kinds.pop() if kinds else np.dtype(np.float32)
    empty: Any = "" if dtype.kind == "O" else 0
    vocabulary = string_vocabulary or int64_vocabulary or ()
    return np.array([[entries.get(key, empty) for key in vocabulary]], dtype)


def _dtype_of(value: Any) -> np.dtype[Any]:
    if isinstance(value, np.generic | np.ndarray):
        return value.dtype if value.dtype.kind not in "US" else np.dtype(object)
    kinds = {str: object, int: np.int64, float: np.float32}
    if type(value) not in kinds:
        raise InvalidModelError(f"a map with values of {type(value).__name__} is none of ONNX")
    return np.dtype(kinds[type(value)])


@classical
def CastMap(x: Any, *, cast_to: str = "TO_FLOAT", map_form: str = "DENSE", max_map: int = 1) -> Value:
    entries = _is_map(x, "CastMap")
    casts: dict[str, tuple[Any, Callable[[Any], Any], Any]] = {
        "TO_FLOAT": (np.float32, float, 0),
        "TO_INT64": (np.int64, int, 0),
        "TO_STRING": (object, lambda v: v if isinstance(v, str) else f"{float(v):f}", "0.f"),
    }
    if cast_to not in casts or map_form not in ("DENSE", "SPARSE"):
        raise InvalidModelError(f"CastMap with cast_to {cast_to!r} and map_form {map_form!r}")
    dtype, cast, empty = casts[cast_to]
    try:
        made = {int(key): cast(value) for key, value in sorted(entries.items())}
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidModelError(f"CastMap: {error}") from None
    if map_form == "DENSE":
        return np.array([list(made.values())], dtype).reshape(1, len(made))
    if made and min(made) < 0:
        raise InvalidModelError("CastMap takes no negative keys for a sparse map")
    return np.array([[made.get(i, empty) for i in range(max_map)]], dtype).reshape(1, max_map)


@classical
def ZipMap(
    x: Value, *, classlabels_int64s: Sequence[int] | None = None, classlabels_strings: Sequence[str] | None = None
) -> list[dict[Any, Any]]:
    keys = classlabels_strings or classlabels_int64s or ()
    rows = _rows(concrete(x, "a map"))
    if rows.ndim != 2 or rows.shape[1] != len(keys):
        raise InvalidModelError(f"ZipMap has {len(keys)} keys for a tensor of shape {tuple(x.shape)}")
    return [dict(zip(keys, row, strict=True)) for row in rows]
