"""Operators of ai.onnx.ml that ONNX has replaced, by what replaced them: the older ensembles of trees, and LabelEncoder
of version 1.

The scores and labels are those of onnxruntime, on which such models run; its ways with two classes are in
`_Pair`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir.errors import InvalidModelError, UnsupportedError
from ..builder import GraphBuilder, Value
from .upgrades.form import Form, before

DOMAIN = "ai.onnx.ml"
Lowering = Callable[[GraphBuilder, Form], tuple[Value, ...]]

_MODES = {"BRANCH_LEQ": 0, "BRANCH_LT": 1, "BRANCH_GTE": 2, "BRANCH_GT": 3, "BRANCH_EQ": 4, "BRANCH_NEQ": 5}
_AGGREGATES = {"AVERAGE": 0, "SUM": 1, "MIN": 2, "MAX": 3}
_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
_EXACT = {"float32": 2**24, "float64": 2**53}  # up to which integers are exact


# --- the trees as they are written


@dataclass(frozen=True)
class _Trees:
    """An older ensemble, its nodes in the form of the newer one.

    Arguments:
        attributes: of TreeEnsemble, but those of its leaves.
        leaf_trees: the tree of each leaf.
        votes: leaves × targets, what each leaf adds to each target.
        voted: leaves × targets, whether it does.
        dtype: in which thresholds are compared and votes added.
    """

    attributes: dict[str, Any]
    leaf_trees: np.ndarray
    votes: np.ndarray
    voted: np.ndarray
    dtype: np.dtype[Any]

    @property
    def trees(self) -> int:
        return len(self.attributes["tree_roots"])

    def always(self) -> np.ndarray:
        """Which targets get a vote for whatever input: from all leaves of some tree."""
        whole = np.ones((self.trees, self.voted.shape[1]), bool)
        np.logical_and.at(whole, self.leaf_trees, self.voted)
        return np.asarray(whole.any(0))


def _column(form: Form, name: str, count: int | None = None, default: Any = None) -> list[Any]:
    """A list among the attributes, which must have the right length."""
    values = list(form.attributes.get(name) or (default if default is not None else ()))
    if count is not None and len(values) != count:
        raise InvalidModelError(f"{form.op_type}: {name} has {len(values)} entries, not {count}")
    return values


def _reals(form: Form, name: str, count: int | None = None) -> np.ndarray:
    """A list of floats, or the tensor in place of it (version 3)."""
    tensor = form.attributes.get(f"{name}_as_tensor")
    listed = np.asarray(form.attributes.get(name) or (), np.float32)
    if tensor is not None and tensor.size and listed.size:
        raise InvalidModelError(f"{form.op_type} has {name} as a list and as a tensor")
    array = listed if tensor is None or not tensor.size else tensor.reshape(-1)
    if count is not None and array.size != count:
        raise InvalidModelError(f"{form.op_type}: {name} has {array.size} entries, not {count}")
    return array


def _read(form: Form, x: Value, votes_of: str, ids: str, targets: int) -> _Trees:
    """Reads the trees.

    Arguments:
        votes_of: prefix of the attributes with the votes, `target` or `class`.
        ids: the attribute with the targets of the votes.
        targets: how many there are.
    """
    numbers = _column(form, "nodes_nodeids")
    count = len(numbers)
    trees = _column(form, "nodes_treeids", count)
    modes = _column(form, "nodes_modes", count)
    features = _column(form, "nodes_featureids", count)
    tracks = _column(form, "nodes_missing_value_tracks_true", count, [0] * count)
    children = list(
        zip(_column(form, "nodes_falsenodeids", count), _column(form, "nodes_truenodeids", count), strict=True)
    )
    splits, weights = _reals(form, "nodes_values", count), _reals(form, f"{votes_of}_weights")
    dtype = np.result_type(
        np.float64 if x.dtype == np.float64 else np.float32, splits, weights, _reals(form, "base_values")
    )
    if unknown := sorted(set(modes) - _MODES.keys() - {"LEAF"}):
        raise InvalidModelError(f"{form.op_type} has nodes of the unknown mode {unknown[0]}")
    places = {name: i for i, name in enumerate(zip(trees, numbers, strict=True))}
    if len(places) < count:
        raise InvalidModelError(f"{form.op_type} has two nodes of one number in a tree")
    inner: dict[int, int] = {}
    leaves: dict[int, int] = {}
    for i, mode in enumerate(modes):
        kind = leaves if mode == "LEAF" else inner
        kind[i] = len(kind)
    rows: list[tuple[int, ...]] = []  # of nodes: feature, mode, missing, false and true child, which of them are leaves
    for i in inner:
        ends = []
        for child in children[i]:
            if (trees[i], child) not in places:
                raise InvalidModelError(f"{form.op_type}: node {numbers[i]} of tree {trees[i]} has no child {child}")
            ends.append(places[trees[i], child])
        which = [end in leaves for end in ends]
        at = [leaves[end] if leaf else inner[end] for end, leaf in zip(ends, which, strict=True)]
        rows.append((features[i], _MODES[modes[i]], tracks[i] == 1, *at, *which))
    thresholds = [splits[i] for i in inner]
    starts = [i for i in range(count) if i == 0 or trees[i] != trees[i - 1]]  # as onnxruntime finds the roots
    if len(starts) != len(set(trees)):
        raise InvalidModelError(f"{form.op_type}: the nodes of a tree are not in one piece")
    roots = []
    for start in starts:
        if start in leaves:  # a tree that is a leaf: a node with this leaf on both sides
            rows.append((0, 0, 0, leaves[start], leaves[start], 1, 1))
            thresholds.append(splits.dtype.type(0))
        roots.append(len(rows) - 1 if start in leaves else inner[start])
    table = np.array(rows, np.int64).reshape(-1, 7)
    lists = ("nodes_featureids", "nodes_falsenodeids", "nodes_truenodeids", "nodes_falseleafs", "nodes_trueleafs")
    attributes: dict[str, Any] = {
        name: tuple(table[:, k].tolist()) for name, k in zip(lists, (0, 3, 4, 5, 6), strict=True)
    }
    attributes["nodes_modes"] = table[:, 1].astype(np.uint8)
    attributes["nodes_splits"] = np.array(thresholds).astype(dtype)
    attributes["tree_roots"] = tuple(roots)
    if table[:, 2].any():
        attributes["nodes_missing_value_tracks_true"] = tuple(table[:, 2].tolist())
    order = {tree: k for k, tree in enumerate(dict.fromkeys(trees))}
    votes, voted = np.zeros((len(leaves), targets), dtype), np.zeros((len(leaves), targets), bool)
    owners = zip(
        _column(form, f"{votes_of}_treeids", weights.size),
        _column(form, f"{votes_of}_nodeids", weights.size),
        _column(form, ids, weights.size),
        weights,
        strict=True,
    )
    aggregate = form.attributes.get("aggregate_function", "SUM")
    for tree, number, target, weight in owners:
        if not 0 <= target < targets or (tree, number) not in places:
            raise InvalidModelError(f"{form.op_type}: a vote for {target} of node {number} in tree {tree} is nobody's")
        leaf = leaves.get(places[tree, number])
        if leaf is None:
            continue  # old converters wrote votes of inner nodes, which never count
        if voted[leaf, target] and aggregate in ("MIN", "MAX"):
            weight = (min if aggregate == "MIN" else max)(votes[leaf, target], weight)
        elif voted[leaf, target]:
            weight = votes[leaf, target] + weight
        votes[leaf, target], voted[leaf, target] = weight, True
    if not voted.any(1).all():
        raise InvalidModelError(f"{form.op_type} has a leaf without a vote")
    return _Trees(attributes, np.array([order[trees[i]] for i in leaves], np.int64), votes, voted, np.dtype(dtype))


# --- scores


def _ensemble(op: GraphBuilder, x: Value, trees: _Trees, targets: Sequence[int], weights: np.ndarray, n: int) -> Any:
    """A TreeEnsemble whose leaves have one vote each."""
    return op.primitive(
        f"{DOMAIN}.TreeEnsemble",
        [x],
        {
            **trees.attributes,
            "leaf_targetids": tuple(int(t) for t in targets),
            "leaf_weights": weights.astype(trees.dtype),
            "n_targets": n,
        },
    )


def _reached(op: GraphBuilder, x: Value, trees: _Trees) -> Value:
    """The leaf of each tree that each row reaches, n × trees, int64."""
    first = np.searchsorted(trees.leaf_trees, np.arange(trees.trees))
    inside = np.arange(len(trees.leaf_trees)) - first[trees.leaf_trees]
    if inside.max() >= _EXACT[trees.dtype.name]:
        raise UnsupportedError(f"a tree of {inside.max()} leaves with several votes each")
    numbers = _ensemble(op, x, trees, trees.leaf_trees.tolist(), inside, trees.trees)
    return op.Add(op.cast(numbers, np.int64), op.const(first.astype(np.int64)[None]))


def _scores(op: GraphBuilder, x: Value, trees: _Trees, aggregate: str) -> tuple[Value, Value | None]:
    """The votes of all trees by target, n × targets, 0 without one; and who got one, None if all always do.

    Leaves with one vote are those of a TreeEnsemble; with several, it says which leaf each tree reaches, and their
    votes are looked up.
    """
    if aggregate not in _AGGREGATES:
        raise InvalidModelError(f"aggregate_function {aggregate!r} is not one of {', '.join(_AGGREGATES)}")
    targets = trees.votes.shape[1]
    everyone = bool(trees.always().all())
    if (trees.voted.sum(1) == 1).all():
        best = trees.voted.argmax(1)
        weights = trees.votes[np.arange(len(best)), best]
        scores = op.primitive(
            f"{DOMAIN}.TreeEnsemble",
            [x],
            {
                **trees.attributes,
                "leaf_targetids": tuple(best.tolist()),
                "leaf_weights": weights,
                "n_targets": targets,
                "aggregate_function": _AGGREGATES[aggregate],
            },
        )
        if everyone:
            return scores, None
        counts = _ensemble(op, x, trees, best.tolist(), np.ones(len(best)), targets)
        return scores, op.Greater(counts, op.const(np.zeros((), trees.dtype)))
    leaves, axis = _reached(op, x, trees), op.ints(1)
    if aggregate in ("MIN", "MAX"):
        worst = np.asarray(np.inf if aggregate == "MIN" else -np.inf, trees.dtype)
        votes = op.Gather(op.const(np.where(trees.voted, trees.votes, worst)), leaves)
        scores = (op.ReduceMin if aggregate == "MIN" else op.ReduceMax)(votes, axis, keepdims=0)
    else:
        scores = op.ReduceSum(op.Gather(op.const(trees.votes), leaves), axis, keepdims=0)
        if aggregate == "AVERAGE":
            scores = op.Div(scores, op.const(np.asarray(trees.trees, trees.dtype)))
    if everyone:
        return scores, None
    count = op.ReduceSum(op.Gather(op.const(trees.voted.astype(np.int64)), leaves), axis, keepdims=0)
    voted = op.Greater(count, op.const(np.zeros((), np.int64)))
    return op.Where(voted, scores, op.const(np.zeros((), trees.dtype))), voted


def _input(op: GraphBuilder, form: Form) -> Value:
    """The input as rows; integers are compared as float32."""
    x = form.input(0)
    if x.shape is not None and len(x.shape) == 1:
        x = op.Unsqueeze(x, op.ints(0))
    return x if x.dtype == np.float64 else op.cast(x, np.float32)


def _transformed(op: GraphBuilder, scores: Value, kind: str, width: int) -> Value:
    """Scores after post_transform. Of a single score per row, only PROBIT changes anything."""
    if kind not in _TRANSFORMS:
        raise InvalidModelError(f"post_transform {kind!r} is not one of {', '.join(_TRANSFORMS)}")
    if kind == "PROBIT":
        return _probit(op, scores)
    if width == 1 or kind == "NONE":
        return scores
    if kind == "SOFTMAX":
        return op.Softmax(scores, axis=-1)
    return op.Sigmoid(scores) if kind == "LOGISTIC" else _softmax_zero(op, scores)


def _softmax_zero(op: GraphBuilder, scores: Value) -> Value:
    """The softmax of the scores that are not zero; the others stay (almost) zero."""

    def number(value: float) -> Value:
        return op.const(np.asarray(value, scores.dtype))

    axis = op.ints(-1)
    largest = op.ReduceMax(scores, axis, keepdims=1)
    counted = op.Greater(op.Abs(scores), number(1e-7))
    powers = op.Where(counted, op.Exp(op.Sub(scores, largest)), number(0))
    total = op.ReduceSum(powers, axis, keepdims=1)
    return op.Div(op.Where(counted, powers, op.Mul(scores, op.Exp(op.Neg(largest)))), total)


def _probit(op: GraphBuilder, scores: Value) -> Value:
    """The approximation of the inverse normal distribution function that runtimes of ONNX share.

    Source: S. Winitzki, A handy approximation for the error function and its inverse (2008), with a = 0.147.
    """

    def number(value: float) -> Value:
        return op.const(np.asarray(value, scores.dtype))

    y = op.Sub(op.Mul(scores, number(2)), number(1))
    log = op.Log(op.Mul(op.Sub(number(1), y), op.Add(number(1), y)))
    v = op.Add(op.Mul(log, number(0.5)), number(2 / (3.14159 * 0.147)))
    root = op.Sqrt(op.Sub(op.Sqrt(op.Sub(op.Mul(v, v), op.Div(log, number(0.147)))), v))
    return op.Mul(op.Where(op.Less(y, number(0)), op.Neg(root), root), number(2**0.5))


# --- regression


def tree_regressor(op: GraphBuilder, form: Form) -> tuple[Value, ...]:
    """TreeEnsembleRegressor: the trees' votes, the base values added, the transform applied."""
    x, targets = _input(op, form), form.attributes.get("n_targets", 1)
    trees = _read(form, x, "target", "target_ids", targets)
    scores, voted = _scores(op, op.cast(x, trees.dtype), trees, form.attributes.get("aggregate_function", "SUM"))
    base = _reals(form, "base_values")
    if base.size not in (0, targets):
        raise InvalidModelError(f"{form.op_type} has {base.size} base values for {targets} targets")
    if base.size:
        shifted = op.Add(scores, op.const(base.astype(trees.dtype)))
        scores = shifted if voted is None else op.Where(voted, shifted, scores)  # a target without a vote stays 0
    scores = _transformed(op, scores, form.attributes.get("post_transform", "NONE"), targets)
    return (op.cast(scores, np.float32),)


# --- classification


@dataclass(frozen=True)
class _Labels:
    """Class labels: texts or numbers."""

    values: tuple[Any, ...]

    def of(self, op: GraphBuilder, index: Value) -> Value:
        """The labels by their index (int64)."""
        if isinstance(self.values[0], str):
            numbers = tuple(range(len(self.values)))
            attributes = {"keys_int64s": numbers, "values_strings": self.values}
            return op.primitive(f"{DOMAIN}.LabelEncoder", [index], attributes)
        if self.values == tuple(range(len(self.values))):
            return index
        return op.Gather(op.const(np.array(self.values, np.int64)), index)

    def one_or_zero(self, op: GraphBuilder, index: Value) -> Value:
        """Labels by an index of 0 or 1 where onnxruntime takes 0 and 1 for labels if these are numbers."""
        return self.of(op, index) if isinstance(self.values[0], str) else index


def tree_classifier(op: GraphBuilder, form: Form) -> tuple[Value, ...]:
    """TreeEnsembleClassifier: the label of the highest score before the transform, and the scores after it."""
    get = form.attributes.get
    labels = _Labels(tuple(get("classlabels_strings") or get("classlabels_int64s") or ()))
    classes = len(labels.values)
    if not classes:
        raise InvalidModelError(f"{form.op_type} has no class labels")
    x = _input(op, form)
    trees = _read(form, x, "class", "class_ids", classes)
    base, kind = _reals(form, "base_values").astype(trees.dtype), get("post_transform", "NONE")
    if base.size > classes or (classes > 2 and base.size not in (0, classes)):
        raise UnsupportedError(f"{form.op_type} with {base.size} base values for {classes} classes")
    scores, voted = _scores(op, op.cast(x, trees.dtype), trees, "SUM")
    if classes < 3:
        all_positive = bool((_reals(form, "class_weights") >= 0).all())
        if classes == 1:
            label, scores = _one_class(op, trees, scores, base, kind, labels)
        else:
            label, scores = _Pair(trees, scores, voted, base, kind, all_positive).decide(op, labels)
    else:
        if base.size:
            scores, voted = op.Add(scores, op.const(base)), None
        lowest = op.const(np.asarray(-np.inf, trees.dtype))
        known = scores if voted is None else op.Where(voted, scores, lowest)
        label = labels.of(op, op.ArgMax(known, axis=1, keepdims=0))
        scores = _transformed(op, scores, kind, classes)
    return label, op.cast(scores, np.float32)


def _one_class(
    op: GraphBuilder, trees: _Trees, scores: Value, base: np.ndarray, kind: str, labels: _Labels
) -> tuple[Value, Value]:
    """One label: 1 if the score is positive, else 0."""
    if isinstance(labels.values[0], str):
        raise UnsupportedError("TreeEnsembleClassifier with one text as label; name both classes")
    if base.size:
        scores = op.Add(scores, op.const(base))
    positive = op.cast(op.Greater(scores, op.const(np.zeros((), trees.dtype))), np.int64)
    return op.Squeeze(positive, op.ints(1)), _transformed(op, scores, kind, 1)


@dataclass(frozen=True)
class _Pair:
    """Two classes and their scores, as onnxruntime decides between them.

    If all votes are for one class, its score is that of the second label, which wins above 0.5 if no vote is negative
    (a probability), else above 0. If both get votes, the second one's score alone decides, and labels that are numbers
    are 1 and 0. A row in which the second class has no vote gets the scores -s and s (1 - s and s of a probability).

    Arguments:
        scores: n × 2, before base values.
        voted: n × 2, which class has a vote; None if both always have.
        base: no, one or two base values.
        kind: of the transform.
        positive: whether no vote is negative.
    """

    trees: _Trees
    scores: Value
    voted: Value | None
    base: np.ndarray
    kind: str
    positive: bool

    def decide(self, op: GraphBuilder, labels: _Labels) -> tuple[Value, Value]:
        """The labels and the scores."""
        voters, always = np.asarray(self.trees.voted.any(0)), self.trees.always()
        lone = int(voters.sum()) == 1
        if always[1]:
            decisive, scores = self._with_second(op)
        elif not voters[1]:
            decisive, scores = self._without_second(op, lone)
        else:
            second = self._column(op, self.voted, 1)
            both, one = self._with_second(op), self._without_second(op, lone)
            decisive, scores = (op.Where(second, a, b) for a, b in zip(both, one, strict=True))
        limit = 0.5 if lone and self.positive else 0
        won = op.Squeeze(op.Greater(decisive, op.const(np.asarray(limit, self.trees.dtype))), op.ints(1))
        index = op.cast(won, np.int64)
        return (labels.of if lone else labels.one_or_zero)(op, index), scores

    @staticmethod
    def _column(op: GraphBuilder, values: Value | None, k: int) -> Value:
        return op.Slice(values, op.ints(k), op.ints(k + 1), op.ints(1))

    def _with_second(self, op: GraphBuilder) -> tuple[Value, Value]:
        """The score that decides and the scores, of rows in which the second class has a vote."""
        low, high = self._column(op, self.scores, 0), self._column(op, self.scores, 1)
        if self.base.size == 2:
            high = op.Add(low, op.const(self.base[1:]))
            shifted = op.Neg(high)
        else:
            shifted = op.Add(low, op.const(self.base)) if self.base.size else low
        if self.trees.always()[0]:
            low = shifted
        elif self.trees.voted[:, 0].any():
            low = op.Where(self._column(op, self.voted, 0), shifted, low)
        return high, _transformed(op, op.Concat(low, high, axis=1), self.kind, 2)

    def _without_second(self, op: GraphBuilder, lone: bool) -> tuple[Value, Value]:
        """The same, of rows in which it has none: the first class's score alone."""
        score = self._column(op, self.scores, 0)
        if self.base.size:
            score = op.Add(score, op.const(self.base[:1]))
        if self.base.size == 2:
            return score, _transformed(op, op.Concat(score, self._column(op, self.scores, 1), axis=1), self.kind, 2)
        if self.kind == "PROBIT" or (self.base.size and not lone):
            what = "PROBIT" if self.kind == "PROBIT" else "one base value"
            raise UnsupportedError(
                f"TreeEnsembleClassifier with {what} and one score for two classes, which is undefined"
            )
        if self.kind == "LOGISTIC":
            return score, op.Sigmoid(op.Concat(op.Neg(score), score, axis=1))
        probability = lone and self.positive
        other = op.Sub(op.const(np.ones((), self.trees.dtype)), score) if probability else op.Neg(score)
        return score, op.Concat(other, score, axis=1)


# --- labels


def label_encoder(op: GraphBuilder, form: Form) -> tuple[Value, ...]:
    """LabelEncoder of version 1: texts to their places in a list, or back."""
    classes = tuple(form.attributes.get("classes_strings") or ())
    places = tuple(range(len(classes)))
    x = form.input(0)
    if x.dtype == object:
        attributes = {"keys_strings": classes, "values_int64s": places}
        attributes["default_int64"] = form.attributes.get("default_int64", -1)
    else:
        attributes = {"keys_int64s": places, "values_strings": classes}
        attributes["default_string"] = form.attributes.get("default_string", "_Unused")
    return (op.primitive(f"{DOMAIN}.LabelEncoder", [x], attributes),)


# by operator: the version from which it is no longer needed, and what it records
CLASSICAL: dict[str, tuple[int, Lowering]] = {
    f"{DOMAIN}.TreeEnsembleClassifier": (6, tree_classifier),
    f"{DOMAIN}.TreeEnsembleRegressor": (6, tree_regressor),
    f"{DOMAIN}.LabelEncoder": (2, label_encoder),
}


def _rule(lowering: Lowering) -> Callable[[GraphBuilder, Form], None]:
    def rule(op: GraphBuilder, form: Form) -> None:
        form.made = lowering(op, form)

    return rule


for _name, (_version, _lowering) in CLASSICAL.items():
    before(_version, _name)(_rule(_lowering))
