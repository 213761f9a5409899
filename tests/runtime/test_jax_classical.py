"""The operators of ai.onnx.ml against onnxruntime, older ones through their lowering."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx.reference.ops.aionnxml.op_tree_ensemble import TreeEnsemble

import interlux as ix
from interlux.converters.builder import GraphBuilder
from interlux.converters.onnx.classical import CLASSICAL
from interlux.converters.onnx.upgrades.form import Form
from interlux.ir import trees
from interlux.ir.errors import InvalidModelError, UnsupportedError
from interlux.ir.graph import execute
from interlux.ir.model import Signature, TensorSpec
from interlux.runtime.jax.interpreter import JaxInterpreter
from interlux.runtime.jax.primitives import PRIMITIVES
from interlux.runtime.jax.primitives.registry import DataDependent

Arrays = list[np.ndarray]
TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
NEWEST = {"TreeEnsemble": 5, "LabelEncoder": 4}


def one_node(
    op_type: str, inputs: Arrays, attributes: dict[str, Any], outputs: int, version: int
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one node, and what it is fed."""
    names, made = [f"x{i}" for i in range(len(inputs))], [f"y{i}" for i in range(outputs)]
    held = {k: numpy_helper.from_array(v, k) if isinstance(v, np.ndarray) else v for k, v in attributes.items()}
    node = helper.make_node(op_type, names, made, domain="ai.onnx.ml", **held)
    kinds = [helper.np_dtype_to_tensor_dtype(x.dtype) for x in inputs]
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info(n, k, x.shape) for n, k, x in zip(names, kinds, inputs, strict=True)],
        [helper.make_empty_tensor_value_info(n) for n in made],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", version)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), dict(zip(names, inputs, strict=True))


def by_onnxruntime(op_type: str, inputs: Arrays, attributes: dict[str, Any], outputs: int, version: int) -> list[Any]:
    """What onnxruntime makes of one node."""
    model, fed = one_node(op_type, inputs, attributes, outputs, version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, fed)


def by_jax(op_type: str, inputs: Arrays, attributes: dict[str, Any], *, traced: bool = False) -> tuple[Any, ...]:
    function = PRIMITIVES[f"ai.onnx.ml.{op_type}"]
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in attributes.items()}
    with jax.enable_x64(True):
        call = jax.jit(lambda *xs: function(*xs, **kept)) if traced else lambda *xs: function(*xs, **kept)
        made = call(*inputs)
    return made if isinstance(made, tuple) else (made,)


def same(found: Any, expected: Any, rtol: float = 2e-4, atol: float = 2e-5) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    if expected.dtype.kind in "OUS":
        assert found.dtype == object
        assert found.tolist() == expected.tolist()
        return
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol, atol)


def check(op_type: str, inputs: Any, outputs: int = 1, traced: bool = True, **attributes: Any) -> None:
    """Compares with onnxruntime: with numpy's arrays, and traced where no texts are involved."""
    inputs = inputs if isinstance(inputs, list) else [inputs]
    expected = by_onnxruntime(op_type, inputs, attributes, outputs, NEWEST.get(op_type, 3))
    texts = any(np.asarray(a).dtype.kind in "OUS" for a in (*inputs, *expected))
    for jitted in (False, True) if traced and not texts else (False,):
        for found, wanted in zip(by_jax(op_type, inputs, attributes, traced=jitted), expected, strict=True):
            same(found, wanted)


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def reals(*shape: int, seed: int = 0) -> np.ndarray:
    return rng(seed, *shape).standard_normal(shape).astype(np.float32)


def listed(array: np.ndarray) -> list[float]:
    return [float(v) for v in array.reshape(-1)]


def texts(*words: str) -> np.ndarray:
    return np.array(words, object)


# --- features

X = reals(5, 4) * 3
DTYPES = (np.float32, np.float64, np.int64, np.int32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_features(dtype: Any) -> None:
    x = X.astype(dtype)
    check("Scaler", x, offset=[0.1, 0.2, -3.0, 0.0], scale=[1.0, 2.0, 3.0, -4.0])
    check("Scaler", x, offset=[0.5], scale=[2.0])
    for norm in ("MAX", "L1", "L2"):
        check("Normalizer", np.concatenate([x, np.zeros((1, 4), dtype)]), norm=norm)
    check("ArrayFeatureExtractor", [x, np.array([[2, 0]])])
    check("ArrayFeatureExtractor", [x[0], np.array([2, 0, 1])])
    check("FeatureVectorizer", [x, x[:, :2]], inputdimensions=[4, 2])
    check("FeatureVectorizer", [x, x[:, :2]], inputdimensions=[3, 4])
    check("FeatureVectorizer", [x[0]], inputdimensions=[4])
    if dtype != np.int32:  # which onnxruntime lacks
        check("OneHotEncoder", x, cats_int64s=[0, 2, -3, 5])
        check("OneHotEncoder", x, cats_int64s=[0, 2, 0])
    if dtype == np.float32:
        check("Binarizer", x, threshold=0.5)
    for threshold in (-0.5, 0.0, 0.5, 1.0):
        (found,) = by_jax("Binarizer", [x], {"threshold": threshold})
        same(found, (x > threshold).astype(dtype))


def test_imputer() -> None:
    x = X.copy()
    x[0, 1], x[1] = np.nan, 7
    check("Imputer", x, imputed_value_floats=[1.0, 2.0, 3.0, 4.0], replaced_value_float=float("nan"))
    check("Imputer", x, imputed_value_floats=[9.0], replaced_value_float=7.0)
    check("Imputer", np.array([[1, 0, 2], [0, 0, 5]]), imputed_value_int64s=[7, 8, 9], replaced_value_int64=0)
    with pytest.raises(InvalidModelError, match="2 numbers for 4 features"):
        by_jax("Imputer", [x], {"imputed_value_floats": [1.0, 2.0]})


def test_texts_as_categories() -> None:
    words = texts("a", "q", "b")
    check("ArrayFeatureExtractor", [words[None], np.array([2, 0])])
    check("OneHotEncoder", words, cats_strings=["b", "a"])
    maps = {"cats_strings": ["b", "a", "b"], "cats_int64s": [4, 5, 6]}
    check("CategoryMapper", words, **maps, default_int64=-7)
    check("CategoryMapper", np.array([[4, 9, 5]]), **maps, default_string="?")
    with pytest.raises(InvalidModelError, match="does not know"):
        by_jax("OneHotEncoder", [words], {"cats_strings": ["b", "a"], "zeros": 0})
    with pytest.raises(DataDependent):
        by_jax("OneHotEncoder", [X], {"cats_int64s": [0], "zeros": 0}, traced=True)


KEYS: dict[str, np.ndarray] = {
    "strings": texts("a", "b", "c"),
    "int64s": np.array([3, 1, 2]),
    "floats": np.array([1.5, np.nan, -0.0], np.float32),
}
LOOKED_UP: dict[str, np.ndarray] = {
    "strings": texts("b", "zz", "a"),
    "int64s": np.array([1, 7, 2]),
    "floats": np.array([1.5, 2, np.nan, 0], np.float32),
}


@pytest.mark.parametrize(("keys", "values"), list(itertools.product(KEYS, KEYS)))
def test_label_encoder(keys: str, values: str) -> None:
    lists = {f"keys_{keys}": KEYS[keys].tolist(), f"values_{values}": KEYS[values].tolist()}
    defaults = {"default_int64": 9, "default_float": 2.5, "default_string": "dd"}
    x = LOOKED_UP[keys]
    if (keys, values) != ("int64s", "int64s") and keys != values:  # onnxruntime has not all pairs of the same type
        check("LabelEncoder", x, **lists)
    expected = [defaults[f"default_{values.removesuffix('s')}"]] * len(x)
    for i, item in enumerate(x.tolist()):
        for k, v in zip(KEYS[keys].tolist(), KEYS[values].tolist(), strict=True):
            if k == item or (k != k and item != item):
                expected[i] = v
    (found,) = by_jax("LabelEncoder", [x[None]], {**lists, **defaults})
    same(found, np.array([expected], KEYS[values].dtype))


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64, np.int32, np.int16])
def test_label_encoder_of_tensors(dtype: Any) -> None:
    x, attributes = (
        np.array([3, 1, 9], dtype),
        {"keys_tensor": np.array([1, 2, 3], dtype), "values_tensor": np.array([7, 8, 9], np.int16)},
    )
    for traced in (False, True):
        same(by_jax("LabelEncoder", [x], attributes, traced=traced)[0], np.array([9, 7, -1], np.int16))
    attributes["default_tensor"] = np.array([4], np.int16)
    same(by_jax("LabelEncoder", [x], attributes)[0], np.array([9, 7, 4], np.int16))


def test_the_last_of_equal_keys_counts() -> None:
    (found,) = by_jax("LabelEncoder", [np.array([3, 1])], {"keys_int64s": [3, 1, 3], "values_int64s": [5, 6, 7]})
    assert found.tolist() == [7, 6]
    with pytest.raises(InvalidModelError, match="2 keys have 1 values"):
        by_jax("LabelEncoder", [np.array([3, 1])], {"keys_int64s": [3, 1], "values_int64s": [5]})


# --- maps


def test_maps() -> None:
    x = X[:2, :2]
    for labels in ({"classlabels_int64s": [4, 9]}, {"classlabels_strings": ["a", "b"]}):
        (expected,) = by_onnxruntime("ZipMap", [x], labels, 1, 1)
        (found,) = by_jax("ZipMap", [x], labels)
        assert found == expected
    vectorize = PRIMITIVES["ai.onnx.ml.DictVectorizer"]
    same(vectorize({"a": 4, "c": 8, "?": 1}, string_vocabulary=("a", "c", "b")), np.array([[4, 8, 0]]))
    same(vectorize({1: 0.5}, int64_vocabulary=(0, 1)), np.array([[0, 0.5]], np.float32))
    same(vectorize({1: "x"}, int64_vocabulary=(0, 1)), np.array([["", "x"]], object))
    cast = PRIMITIVES["ai.onnx.ml.CastMap"]
    same(cast({3: 0.5, 1: 2.0}), np.array([[2, 0.5]], np.float32))
    same(cast({3: "7"}, cast_to="TO_INT64", map_form="SPARSE", max_map=5), np.array([[0, 0, 0, 7, 0]]))
    same(cast({1: 2.0}, cast_to="TO_STRING"), np.array([["2.000000"]], object))
    with pytest.raises(InvalidModelError, match="CastMap"):
        cast({1: "seven"}, cast_to="TO_INT64")


# --- linear and support vector models


@pytest.mark.parametrize("post_transform", TRANSFORMS)
def test_linear(post_transform: str) -> None:
    post = {"post_transform": post_transform}
    for targets in (1, 3):
        weights = {"coefficients": listed(reals(targets, 4)), "intercepts": listed(reals(targets))}
        check("LinearRegressor", X, targets=targets, **weights, **post)
    for dtype, labels in itertools.product(
        DTYPES, ({"classlabels_ints": [4, 5, 9]}, {"classlabels_strings": list("abc")})
    ):
        check("LinearClassifier", X.astype(dtype), 2, **weights, **labels, **post)
    one = {"coefficients": listed(reals(4)), "intercepts": [0.3], "classlabels_ints": [7, 8], **post}
    if post_transform == "PROBIT":
        with pytest.raises(UnsupportedError, match="no PROBIT"):
            by_jax("LinearClassifier", [X], one)
    else:
        check("LinearClassifier", X, 2, **one)


def test_linear_without_intercepts() -> None:
    (found,) = by_jax("LinearRegressor", [X.astype(np.float64)], {"coefficients": listed(reals(4))})
    same(found, (X @ reals(4)).reshape(-1, 1))
    label, scores = by_jax("LinearClassifier", [X], {"coefficients": listed(reals(2, 4)), "classlabels_ints": [6, 3]})
    same(scores, X @ reals(2, 4).T)
    assert label.tolist() == [(6, 3)[i] for i in scores.argmax(1)]


@pytest.mark.parametrize(
    ("kernel", "post_transform"), list(zip(("LINEAR", "POLY", "RBF", "SIGMOID", "RBF"), TRANSFORMS, strict=True))
)
def test_support_vectors(kernel: str, post_transform: str) -> None:
    shared = {
        "kernel_type": kernel,
        "kernel_params": [0.3, 0.2, 3.0],
        "support_vectors": listed(reals(6, 4, seed=1)),
        "post_transform": post_transform,
    }
    for one_class in (0, 1):
        one = {"coefficients": listed(reals(6)), "n_supports": 6, "rho": [0.3], "one_class": one_class, **shared}
        if post_transform != "PROBIT":
            check("SVMRegressor", X, **one)
    for counts in ([2, 1, 3], [2, 4]):
        pairs = len(counts) * (len(counts) - 1) // 2
        model = {
            **shared,
            "coefficients": listed(reals(len(counts) - 1, 6)),
            "vectors_per_class": counts,
            "rho": listed(reals(pairs, seed=2)),
        }
        labels = [5, 3, 9][: len(counts)]
        probabilities = {"prob_a": listed(reals(pairs, seed=3)), "prob_b": listed(reals(pairs, seed=4))}
        check("SVMClassifier", X, 2, classlabels_ints=labels, **model, **probabilities)
        if post_transform == "PROBIT" and pairs == 1:
            with pytest.raises(UnsupportedError, match="PROBIT"):
                by_jax("SVMClassifier", [X], {"classlabels_ints": labels, **model})
            continue
        check("SVMClassifier", X.astype(np.float64), 2, classlabels_strings=["u", "v", "w"][: len(counts)], **model)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("positive", [False, True])
def test_support_vectors_of_hyperplanes(classes: int, positive: bool) -> None:
    weights = np.abs(reals(classes, 4)) if positive else reals(classes, 4)
    shared = {"rho": [0.2], "kernel_params": [0.0, 0.0, 0.0]}
    labels = [3, 4, 5][:classes]
    check("SVMClassifier", X, 2, coefficients=listed(weights), classlabels_ints=labels, **shared)
    check("SVMRegressor", X, coefficients=listed(reals(4)), n_supports=0, **shared)


# --- trees


class Forest:
    """Random trees in the form of versions 1 and 3. Leaves have the given numbers of votes."""

    def __init__(self, seed: int, trees: int, depth: int, targets: tuple[int, ...], modes: tuple[str, ...], votes: str):
        self.rng = rng(seed)
        self.modes, self.targets, self.votes, self.depth = modes, targets, votes, depth
        self.nodes: list[tuple[Any, ...]] = []  # tree, node, feature, mode, value, true, false, missing
        self.ballots: list[tuple[int, int, int, float]] = []  # tree, node, target, weight
        for tree in range(trees):
            self.count = 0
            self._grow(tree, 0)

    def _grow(self, tree: int, depth: int) -> int:
        me, at = self.count, len(self.nodes)
        self.count += 1
        self.nodes.append(())
        if depth == self.depth or (depth and self.rng.random() < 0.2):
            self.nodes[at] = (tree, me, 0, "LEAF", 0.0, 0, 0, 0)
            chosen = {"one": self.rng.choice(self.targets, 1), "all": self.targets}.get(self.votes)
            some = self.rng.choice(self.targets, self.rng.integers(1, len(self.targets) + 1), replace=False)
            for target in sorted(some if chosen is None else chosen):
                self.ballots.append((tree, me, int(target), float(np.float32(self.rng.normal()))))
            return me
        feature, mode = int(self.rng.integers(4)), str(self.rng.choice(self.modes))
        value = float(self.rng.integers(-2, 3)) / 2
        missing = int(self.rng.integers(2))
        yes, no = self._grow(tree, depth + 1), self._grow(tree, depth + 1)
        self.nodes[at] = (tree, me, feature, mode, value, yes, no, missing)
        return me

    def attributes(self, prefix: str, *, tracks: bool = True) -> dict[str, Any]:
        names = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids")
        found: dict[str, Any] = {
            f"nodes_{name}": list(column) for name, column in zip(names, zip(*self.nodes, strict=True), strict=False)
        }
        if tracks:
            found["nodes_missing_value_tracks_true"] = [node[-1] for node in self.nodes]
        for name, column in zip(("treeids", "nodeids", "ids", "weights"), zip(*self.ballots, strict=True), strict=True):
            found[f"{prefix}_{name}"] = list(column)
        return found


MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
ROWS = np.round(reals(40, 4, seed=7) * 2) / 2
ROWS[::5, 1] = np.nan


def lowered(op_type: str, x: np.ndarray, attributes: dict[str, Any], outputs: int) -> ix.Model:
    """An older operator's lowering as a model."""
    op = GraphBuilder()
    form = Form(
        f"ai.onnx.ml.{op_type}",
        [op.input("x", x.dtype, x.shape)],
        {k: tuple(v) if isinstance(v, list) else v for k, v in attributes.items()},
        [f"y{i}" for i in range(outputs)],
    )
    made = CLASSICAL[form.op_type][1](op, form)
    results = tuple(TensorSpec(f"y{i}", value.dtype.name, None) for i, value in enumerate(made))
    signature = Signature((TensorSpec("x", x.dtype.name, x.shape),), results)
    return ix.Model(op.build(made), {}, trees.from_leaves(op.extra_states.items()), signature)


def check_lowered(
    op_type: str, x: np.ndarray, outputs: int = 1, version: int = 3, compiled: bool = False, **attributes: Any
) -> None:
    """Compares with onnxruntime. Without `compiled`, the operators are executed one by one."""
    expected = by_onnxruntime(op_type, [x], attributes, outputs, version)
    model = lowered(op_type, x, attributes, outputs)
    if compiled:
        found = ix.compile(model, "jax")(x)
    else:
        graph, values = model.layer, {None: None, "x": x}
        with jax.enable_x64(True):
            execute(graph.nodes, JaxInterpreter(), model.params, model.states, values, train=False)
        found = [values[name] for name in graph.outputs]
    for mine, wanted in zip(found, expected, strict=True):
        same(mine, wanted, 1e-4, 5e-5)  # onnxruntime transforms the scores of doubles in 32 bits


def test_a_compiled_forest() -> None:
    attributes = Forest(1, 7, 4, (0, 1), MODES, "all").attributes("class")
    check_lowered("TreeEnsembleClassifier", ROWS, 2, compiled=True, classlabels_int64s=[3, 4], **attributes)
    check_lowered("TreeEnsembleClassifier", ROWS, 2, compiled=True, classlabels_strings=["a", "b"], **attributes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("votes", ["one", "all", "some"])
@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
def test_older_regressors(dtype: Any, votes: str, aggregate: str) -> None:
    for targets, base in ((1, [0.25]), (3, []), (3, [0.5, -0.25, 1.0])):
        forest = Forest(targets, 7, 4, tuple(range(targets)), MODES, votes)
        attributes = {**forest.attributes("target"), "n_targets": targets, "aggregate_function": aggregate}
        check_lowered(
            "TreeEnsembleRegressor", ROWS.astype(dtype), **attributes, **({"base_values": base} if base else {})
        )


@pytest.mark.parametrize("post_transform", TRANSFORMS)
@pytest.mark.parametrize("version", [1, 3])
def test_transforms_of_older_regressors(post_transform: str, version: int) -> None:
    for targets in (1, 3):
        attributes = {**Forest(3, 3, 2, tuple(range(targets)), MODES[:1], "all").attributes("target")}
        attributes["target_weights"] = listed(np.abs(np.array(attributes["target_weights"])) / 9)
        check_lowered(
            "TreeEnsembleRegressor",
            ROWS,
            version=version,
            n_targets=targets,
            post_transform=post_transform,
            **attributes,
        )


def test_older_trees_in_double() -> None:
    """Thresholds that float32 would round, and votes that it would lose."""
    attributes = Forest(5, 6, 3, (0, 1), MODES[:2], "all").attributes("target")
    for name in ("nodes_values", "target_weights"):
        attributes[f"{name}_as_tensor"] = np.array(attributes.pop(name)) + 1e-12
    attributes["base_values_as_tensor"] = np.array([1e-9, 0.5])
    check_lowered("TreeEnsembleRegressor", ROWS.astype(np.float64), n_targets=2, **attributes)


@pytest.mark.parametrize("labels", [[4, 9, 2], ["a", "b", "c"], [0, 1, 2]])
@pytest.mark.parametrize("votes", ["one", "all", "some"])
def test_older_classifiers(labels: list[Any], votes: str) -> None:
    named = {"classlabels_strings" if isinstance(labels[0], str) else "classlabels_int64s": labels}
    for dtype, base in itertools.product(DTYPES, ([], [0.5, -0.25, 1.0])):
        x = np.nan_to_num(ROWS).astype(dtype) if np.dtype(dtype).kind == "i" else ROWS.astype(dtype)
        for post_transform in TRANSFORMS:
            attributes = Forest(11, 5, 3, (0, 1, 2), MODES, votes).attributes("class")
            if post_transform == "PROBIT":
                attributes["class_weights"] = listed(np.abs(np.array(attributes["class_weights"])) / 20)
            given = {**attributes, **named, "post_transform": post_transform, **({"base_values": base} if base else {})}
            check_lowered("TreeEnsembleClassifier", x, 2, **given)


@pytest.mark.parametrize("classes", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("positive", [False, True])
def test_two_classes(classes: tuple[int, ...], positive: bool) -> None:
    for labels, base, post_transform in itertools.product(([4, 9], ["a", "b"]), ([], [0.1], [0.1, 0.25]), TRANSFORMS):
        attributes = Forest(2, 3, 2, classes, MODES[:3], "all").attributes("class")
        if positive:
            attributes["class_weights"] = listed(np.abs(np.array(attributes["class_weights"])) / 9)
        attributes["classlabels_strings" if isinstance(labels[0], str) else "classlabels_int64s"] = labels
        attributes["post_transform"] = post_transform
        if base:
            attributes["base_values"] = base
        single = 1 not in classes and len(base) < 2
        if single and post_transform == "PROBIT":
            with pytest.raises(UnsupportedError, match="undefined"):
                lowered("TreeEnsembleClassifier", ROWS, attributes, 2)
        else:
            check_lowered("TreeEnsembleClassifier", ROWS, 2, **attributes)


@pytest.mark.parametrize("base", [[], [0.1, 0.25]])
def test_two_classes_of_which_some_leaves_leave_out_one(base: list[float]) -> None:
    for post_transform in TRANSFORMS[:4]:
        attributes = Forest(2, 1, 3, (0, 1), MODES[:1], "one").attributes("class")
        given = {**attributes, "classlabels_strings": ["a", "b"], "post_transform": post_transform}
        check_lowered("TreeEnsembleClassifier", ROWS, 2, **given, **({"base_values": base} if base else {}))
    with pytest.raises(UnsupportedError, match="one base value"):
        lowered("TreeEnsembleClassifier", ROWS, {**given, "base_values": [0.1]}, 2)


def test_one_class() -> None:
    attributes = Forest(2, 3, 2, (0,), MODES[:3], "one").attributes("class")
    for base, post_transform in itertools.product(([], [0.1]), TRANSFORMS[:4]):
        given = {**attributes, "classlabels_int64s": [5], "post_transform": post_transform}
        check_lowered("TreeEnsembleClassifier", ROWS, 2, **given, **({"base_values": base} if base else {}))
    with pytest.raises(UnsupportedError, match="name both classes"):
        lowered("TreeEnsembleClassifier", ROWS, {**attributes, "classlabels_strings": ["a"]}, 2)


def test_trees_that_are_leaves() -> None:
    attributes = Forest(2, 3, 0, (0, 1), MODES[:1], "all").attributes("target")
    check_lowered("TreeEnsembleRegressor", ROWS, n_targets=2, **attributes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes_truenodeids": [9] * 7}, "has no child 9"),
        ({"nodes_modes": ["BRANCH_MEMBER"] + ["LEAF"] * 6}, "unknown mode"),
        ({"nodes_values": [0.0]}, "1 entries, not 7"),
        ({"target_ids": [5] * 4}, "nobody's"),
        ({"post_transform": "EXP"}, "EXP"),
    ],
)
def test_damaged_trees(change: dict[str, Any], message: str) -> None:
    attributes = {
        "nodes_treeids": [0] * 7,
        "nodes_nodeids": list(range(7)),
        "nodes_featureids": [0] * 7,
        "nodes_modes": ["BRANCH_LEQ"] * 3 + ["LEAF"] * 4,
        "nodes_values": [0.0] * 7,
        "nodes_truenodeids": [1, 3, 5, 0, 0, 0, 0],
        "nodes_falsenodeids": [2, 4, 6, 0, 0, 0, 0],
        "target_treeids": [0] * 4,
        "target_nodeids": [3, 4, 5, 6],
        "target_ids": [0] * 4,
        "target_weights": [1.0, 2.0, 3.0, 4.0],
    }
    check_lowered("TreeEnsembleRegressor", ROWS, n_targets=1, **attributes)
    with pytest.raises(InvalidModelError, match=message):
        lowered("TreeEnsembleRegressor", ROWS, {**attributes, **change}, 1)


def test_label_encoder_of_version_1() -> None:
    attributes = {"classes_strings": ["a", "b", "c"], "default_int64": -7, "default_string": "none"}
    check_lowered("LabelEncoder", np.array([[2, 5, 0]]), version=1, **attributes)
    op = GraphBuilder()
    form = Form("ai.onnx.ml.LabelEncoder", [op.input("x", object, (3,))], attributes, ["y"])
    (made,) = CLASSICAL[form.op_type][1](op, form)
    assert made.dtype == np.int64


# --- the newer TreeEnsemble


class NewForest:
    """Random trees of TreeEnsemble, sets of members among their nodes."""

    def __init__(self, seed: int, trees: int, depth: int, targets: int, modes: tuple[int, ...], dtype: Any):
        self.rng, self.depth, self.targets, self.modes = rng(seed), depth, targets, modes
        self.rows: list[list[Any]] = []
        self.leaves: list[tuple[int, float]] = []
        self.members: list[float] = []
        self.roots = [self._grow(0)[0] for _ in range(trees)]
        self.dtype = dtype

    def _grow(self, depth: int) -> tuple[int, int]:
        if depth == self.depth or (depth and self.rng.random() < 0.2):
            self.leaves.append((int(self.rng.integers(self.targets)), float(np.float32(self.rng.normal()))))
            return len(self.leaves) - 1, 1
        at, mode = len(self.rows), int(self.rng.choice(self.modes))
        feature, value = int(self.rng.integers(4)), float(self.rng.integers(-2, 3)) / 2
        self.rows.append([feature, mode, value, int(self.rng.integers(2))])
        if mode == 6:
            self.members += [*self.rng.choice((-1, -0.5, 0.5, 1, 1.5), self.rng.integers(1, 5), replace=False), np.nan]
        yes, no = self._grow(depth + 1), self._grow(depth + 1)
        self.rows[at] += [*yes, *no]
        return at, 0

    def attributes(self) -> dict[str, Any]:
        feature, mode, value, missing, true, true_leaf, false, false_leaf = map(list, zip(*self.rows, strict=True))
        found: dict[str, Any] = {
            "nodes_featureids": feature,
            "nodes_modes": np.array(mode, np.uint8),
            "nodes_splits": np.array(value, self.dtype),
            "nodes_missing_value_tracks_true": missing,
            "nodes_truenodeids": true,
            "nodes_trueleafs": true_leaf,
            "nodes_falsenodeids": false,
            "nodes_falseleafs": false_leaf,
            "tree_roots": self.roots,
            "leaf_targetids": [target for target, _ in self.leaves],
            "leaf_weights": np.array([weight for _, weight in self.leaves], self.dtype),
            "n_targets": self.targets,
        }
        return {**found, "membership_values": np.array(self.members, self.dtype)} if self.members else found


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("modes", [(0,), (3,), (0, 1, 2, 3, 4, 5)])
def test_tree_ensemble(dtype: Any, modes: tuple[int, ...]) -> None:
    for targets, aggregate in itertools.product((1, 3), range(4)):
        attributes = NewForest(targets + aggregate, 9, 5, targets, modes, dtype).attributes()
        check("TreeEnsemble", ROWS.astype(dtype), traced=targets == 3, aggregate_function=aggregate, **attributes)


@pytest.mark.parametrize("modes", [(6,), tuple(range(7))])
def test_sets_of_members(modes: tuple[int, ...]) -> None:
    """Against onnx's reference: onnxruntime refuses some of these trees."""
    for targets, aggregate in itertools.product((1, 3), (0, 1)):
        attributes = NewForest(targets, 5, 4, targets, modes, np.float64).attributes()
        attributes["aggregate_function"] = aggregate
        x = ROWS.astype(np.float64)
        expected = TreeEnsemble._run(None, x, **attributes)[0]
        for traced in (False, True):
            same(by_jax("TreeEnsemble", [x], attributes, traced=traced)[0], expected)


@pytest.mark.parametrize("post_transform", range(5))
def test_transforms_of_tree_ensemble(post_transform: int) -> None:
    for targets in (1, 3):
        attributes = NewForest(4, 5, 3, targets, (0,), np.float32).attributes()
        attributes["leaf_weights"] = np.abs(attributes["leaf_weights"]) / 20
        # onnxruntime takes 1 for LOGISTIC and 2 for SOFTMAX, against the specification
        theirs = {**attributes, "post_transform": {1: 2, 2: 1}.get(post_transform, post_transform)}
        (expected,) = by_onnxruntime("TreeEnsemble", [ROWS], theirs, 1, 5)
        same(by_jax("TreeEnsemble", [ROWS], {**attributes, "post_transform": post_transform})[0], expected)


def test_tree_ensemble_in_half_precision() -> None:
    attributes = NewForest(4, 5, 3, 2, (0, 3), np.float16).attributes()
    wide = {k: v.astype(np.float32) if getattr(v, "dtype", None) == np.float16 else v for k, v in attributes.items()}
    (found,) = by_jax("TreeEnsemble", [ROWS.astype(np.float16)], attributes)
    (expected,) = by_onnxruntime("TreeEnsemble", [ROWS], wide, 1, 5)
    same(found, expected.astype(np.float16))


def test_a_forest_of_hundreds() -> None:
    attributes = NewForest(4, 300, 8, 1, (0,), np.float32).attributes()
    x = reals(500, 4)
    check("TreeEnsemble", x, **attributes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes_falsenodeids": [99]}, "none of its nodes"),
        ({"nodes_falseleafs": [0], "nodes_falsenodeids": [0]}, "round in a circle"),
        ({"nodes_featureids": [7]}, "feature 7, the input has 4"),
        ({"nodes_modes": np.array([6], np.uint8)}, "fewer sets"),
        ({"leaf_targetids": [0, 4]}, "other targets"),
        ({"post_transform": 9}, "unknown"),
    ],
)
def test_damaged_ensembles(change: dict[str, Any], message: str) -> None:
    attributes = NewForest(4, 1, 1, 1, (0,), np.float32).attributes()
    with pytest.raises(InvalidModelError, match=message):
        by_jax("TreeEnsemble", [ROWS], {**attributes, **change})


@pytest.mark.parametrize("default", [None, 7, "none"])
@pytest.mark.parametrize("x", [texts("b", "a", "q", "c"), np.array([2, 0, 3, -1])], ids=["texts", "places"])
def test_the_first_label_encoder(x: np.ndarray, default: Any) -> None:
    attributes: dict[str, Any] = {"classes_strings": ["a", "b", "c"]}
    if default is not None:
        attributes["default_string" if isinstance(default, str) else "default_int64"] = default
    model, fed = one_node("LabelEncoder", [x], attributes, 1, 1)
    (expected,) = by_onnxruntime("LabelEncoder", [x], attributes, 1, 1)
    same(ix.compile(ix.from_onnx(model), "jax")(**fed)[0], expected)
