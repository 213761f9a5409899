"""Sequences, optional values, texts and optimisers of the JAX backend: onnx's own cases, and others in tables."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from interlux.ir.errors import InvalidModelError, UnsupportedError
from interlux.runtime.jax.primitives import PRIMITIVES
from interlux.runtime.jax.primitives.registry import NOTHING, DataDependent

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from onnx.backend.test.case.node import collect_testcases

    ALL = collect_testcases(None)

OPERATORS = {
    *("TreeEnsemble", "LabelEncoder", "ArrayFeatureExtractor", "Binarizer", "Adagrad", "Adam", "Momentum"),
    *("SequenceInsert", "SplitToSequence", "OptionalGetElement", "OptionalHasElement"),
    *("StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "TfIdfVectorizer"),
}
CASES = {c.name: c for c in ALL if {n.op_type for n in c.model.graph.node} <= OPERATORS}


def op(name: str, *inputs: Any, **attributes: Any) -> Any:
    with jax.enable_x64(True):
        return PRIMITIVES[name](*inputs, **attributes)


def texts(*words: Any) -> np.ndarray:
    return np.array(words, object)


def same(found: Any, expected: Any, rtol: float = 1e-6, atol: float = 1e-7) -> None:
    if isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
        return
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    if expected.dtype.kind in "OUS":
        assert found.dtype == object
        assert found.tolist() == expected.tolist()
        return
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol, atol)


def plain(value: Any) -> Any:
    """Inputs, outputs and attributes of onnx's cases as this backend has them."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return NOTHING if value is None else value


@pytest.mark.parametrize("name", CASES)
def test_node(name: str) -> None:
    case = CASES[name]
    (node,) = case.model.graph.node
    attributes = {a.name: plain(helper.get_attribute_value(a)) for a in node.attribute}
    attributes = {k: tuple(map(plain, v)) if isinstance(v, list) else v for k, v in attributes.items()}
    for inputs, outputs in case.data_sets:
        given = dict(zip((i.name for i in case.model.graph.input), map(plain, inputs), strict=True))
        op_type = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        found = op(op_type, *(given.get(i) for i in node.input), **attributes)
        for one, other in zip(found if isinstance(found, tuple) else (found,), outputs, strict=True):
            same(one, plain(other), case.rtol, case.atol)


# --- sequences and optional values

A, B, C = (np.full((2, 3), float(k), np.float32) for k in range(3))


def at(position: int) -> np.ndarray:
    return np.array(position)


SEQUENCES: list[tuple[Any, Any]] = [
    (lambda: op("SequenceConstruct", A, B), [A, B]),
    (lambda: op("SequenceEmpty", dtype=7), []),
    (lambda: op("SequenceAt", [A, B, C], at(-1)), C),
    (lambda: op("SequenceAt", [A, B, C], at(1)), B),
    (lambda: op("SequenceErase", [A, B, C]), [A, B]),
    (lambda: op("SequenceErase", [A, B, C], at(-3)), [B, C]),
    (lambda: op("SequenceInsert", [A, B], C), [A, B, C]),
    (lambda: op("SequenceInsert", [A, B], C, at(-1)), [A, C, B]),
    (lambda: op("SequenceInsert", [A, B], C, at(2)), [A, B, C]),
    (lambda: op("SequenceLength", [A, B]), np.array(2)),
    (lambda: op("SplitToSequence", A, axis=1), [A[:, :1]] * 3),
    (lambda: op("SplitToSequence", A, axis=-1, keepdims=0), [A[:, 0]] * 3),
    (lambda: op("SplitToSequence", A, at(2), axis=1, keepdims=0), [A[:, :2], A[:, 2:]]),
    (lambda: op("SplitToSequence", A, np.array([1, 0, 2]), axis=1), [A[:, :1], A[:, :0], A[:, 1:]]),
    (lambda: op("SplitToSequence", texts("a", "b"), at(1)), [texts("a"), texts("b")]),
    (lambda: op("ConcatFromSequence", [A, B], axis=1), np.concatenate([A, B], 1)),
    (lambda: op("ConcatFromSequence", [A, B], axis=-1, new_axis=1), np.stack([A, B], -1)),
    (lambda: op("ConcatFromSequence", [texts("a"), texts("b")], axis=0), texts("a", "b")),
    (lambda: op("Identity", [A, B]), [A, B]),
    (lambda: op("Optional", A), A),
    (lambda: op("OptionalGetElement", op("Optional", [A])), [A]),
    (lambda: op("OptionalHasElement", op("Optional", type="tensor(float)")), np.array(False)),
    (lambda: op("OptionalHasElement"), np.array(False)),
    (lambda: op("OptionalHasElement", [A]), np.array(True)),
]


@pytest.mark.parametrize(("make", "expected"), SEQUENCES)
def test_sequences(make: Any, expected: Any) -> None:
    same(make(), expected)


def test_sequences_of_traced_values() -> None:
    def compute(x: Any) -> Any:
        parts = op("SplitToSequence", x, np.array([1, 2]), axis=1)
        return op("ConcatFromSequence", op("SequenceInsert", parts, x, at(0)), axis=1)

    same(jax.jit(compute)(B), np.concatenate([B, B], 1))
    with pytest.raises(DataDependent, match="a position in a sequence"):
        jax.jit(lambda i: op("SequenceAt", [A, B], i))(at(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: op("SequenceAt", [A], at(1)), "position 1 is outside a sequence of 1"),
        (lambda: op("SequenceInsert", [A], B, at(2)), "position 2"),
        (lambda: op("SequenceErase", []), "position -1"),
        (lambda: op("ConcatFromSequence", [], axis=0), "empty sequence"),
        (lambda: op("SplitToSequence", A, np.array([1, 1]), axis=1), "don't add up to 3"),
        (lambda: op("SplitToSequence", A, at(0)), "parts of 0"),
        (lambda: op("OptionalGetElement", NOTHING), "without an element"),
    ],
)
def test_what_sequences_refuse(make: Any, message: str) -> None:
    with pytest.raises(InvalidModelError, match=message):
        make()


# --- texts


def by_onnxruntime(op_type: str, x: np.ndarray, outputs: int = 1, **attributes: Any) -> list[Any]:
    made = [f"y{i}" for i in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x"], made, **attributes)],
        "test",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [helper.make_empty_tensor_value_info(name) for name in made],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})


def check(op_type: str, x: np.ndarray, outputs: int = 1, **attributes: Any) -> None:
    expected = by_onnxruntime(op_type, x, outputs, **attributes)
    found = op(op_type, x, **{k: tuple(v) if isinstance(v, list) else v for k, v in attributes.items()})
    for one, other in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
        same(one, other)


@pytest.mark.parametrize(
    "attributes",
    [{}, {"maxsplit": 1}, {"delimiter": ","}, {"delimiter": ",", "maxsplit": 1}, {"delimiter": ",,"}, {"maxsplit": 0}],
)
def test_string_split(attributes: dict[str, Any]) -> None:
    words = texts("  a  b  c  ", "", "a,,b,,,c", " ", "é,ü ß,")
    check("StringSplit", words, 2, **attributes)
    check("StringSplit", words[:4].reshape(2, 2), 2, **attributes)
    check("StringSplit", texts(), 2, **attributes)


def test_string_split_at_any_whitespace() -> None:
    parts, counts = op("StringSplit", texts("a\tb\n c", "d"))
    same(parts, np.array([["a", "b", "c"], ["d", "", ""]], object))
    same(counts, np.array([3, 1]))


@pytest.mark.parametrize("case", ["NONE", "UPPER", "LOWER"])
@pytest.mark.parametrize("sensitive", [0, 1])
def test_string_normalizer(case: str, sensitive: int) -> None:
    words = texts("été", "A", "a", "Été", "straße", "İΣς", "ᾳ", "ǆ", "ı", "K")
    for stopwords in ([], ["ÉTÉ", "a"], list(words)):
        attributes = {"case_change_action": case, "is_case_sensitive": sensitive, "locale": "C.UTF-8"}
        for x in (words, words[None]):
            check("StringNormalizer", x, **attributes, **({"stopwords": stopwords} if stopwords else {}))


def test_locales_of_string_normalizer() -> None:
    check("StringNormalizer", texts("éa"), case_change_action="UPPER", locale="C")
    with pytest.raises(UnsupportedError, match="tr_TR"):
        op("StringNormalizer", texts("i"), case_change_action="UPPER", locale="tr_TR.UTF-8")
    with pytest.raises(InvalidModelError, match=r"\[2, 1\]"):
        op("StringNormalizer", texts("a", "b").reshape(2, 1))


WORDS = texts(
    *(
        "",
        "a",
        "K",
        "a\n",
        "12",
        "\x0b",
        "a{,2}",
        "aa",
        "A",
        "été",
        "a.b",
        "aB",
        "ab",
        "s",
        "a\nb",
        "&",
        "-",
        "x@y.org",
    ),
    *("]", "[", "\\", "٣", "_", " a", "a b", "\t", "aaa", "^", "é"),
)


@pytest.mark.parametrize(
    "pattern",
    [
        *("a$", "^a", "(?i)k", r"\d+", r"\s", r"a{,2}", r"\x{41}", "[[:alpha:]]+", "(?P<n>a)b?", "(?<n>a)", r"\Qa.b\E"),
        *(r"a\z", r"\Aa", r"\bé", r"a\b.*", r"a\B.", r"(?i)\w", r"(?i:A)b", "(?i)[^a]+", "[a&&b]", r"\141", r"[^\d\s]"),
        *(
            r"[\]\[]",
            "[]a]",
            "[a-]",
            r"\W",
            r"\D+",
            r"\S*",
            "a{2}",
            "a{1,}?",
            "(a|b)*",
            "(?s).*",
            "(?s:a.b)",
            "a|",
            ".",
        ),
        *(
            r"(\W|^)[\w.\-]{0,25}@(y|z)\.org(\W|$)",
            r"[[:punct:]]",
            "a??b*?",
            r"[\x61-\x63]+",
            r"\\",
            r"[\\a]",
            "{",
            "a{",
        ),
    ],
)
def test_regex_full_match(pattern: str) -> None:
    check("RegexFullMatch", WORDS, pattern=pattern)


@pytest.mark.parametrize(
    "pattern",
    [r"\pL", r"(?=a)a", r"a*+", r"a**", r"\1", r"\Z", r"\h", r"[\b]", "(?U)a", "(?m)a$", "(a)(?i)b", r"\C", "(?<=a)b"],
)
def test_regular_expressions_that_are_refused(pattern: str) -> None:
    with pytest.raises(UnsupportedError, match="RegexFullMatch"):
        op("RegexFullMatch", WORDS, pattern=pattern)


# --- n-grams

POOL = {
    "ngram_counts": (0, 3, 9),
    "ngram_indexes": (4, 0, 2, 1, 3, 6, 5),
    "pool_int64s": (2, 3, 5, 2, 3, 3, 5, 5, 3, 2, 3, 5),
    "weights": (0.5, 2.0, 3.0, 1.5, 0.25, 7.0, 9.0),
}


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize(("shortest", "longest"), [(1, 1), (1, 3), (2, 2), (2, 3)])
@pytest.mark.parametrize("skips", [0, 1, 4])
def test_tf_idf(mode: str, shortest: int, longest: int, skips: int) -> None:
    lengths = {"min_gram_length": shortest, "max_gram_length": longest, "max_skip_count": skips, "mode": mode}
    x = np.random.default_rng(0).integers(1, 6, (4, 9))
    numbers = {**POOL, **lengths}
    words = {k: v for k, v in numbers.items() if k != "pool_int64s"} | {
        "pool_strings": tuple(map(str, POOL["pool_int64s"]))
    }
    for rows in (x, x[0], x.astype(np.int32)):
        check("TfIdfVectorizer", rows, **numbers)
        if skips != 1 or rows.ndim == 1:
            continue
        with jax.enable_x64(True):
            traced = jax.jit(lambda rows: PRIMITIVES["TfIdfVectorizer"](rows, **numbers))(rows)
        same(traced, by_onnxruntime("TfIdfVectorizer", rows, **numbers)[0])
    check("TfIdfVectorizer", x.astype(str).astype(object), **words)


# --- optimisers


def test_optimisers_in_double_and_with_their_attributes() -> None:
    x, g, h = np.array([1.0, 2.0]), np.array([0.5, -1.0]), np.array([2.0, 0.25])
    rate, pulled = np.array(0.1), 0.01 * x + g
    domain = "ai.onnx.preview.training."
    new, squares = op(f"{domain}Adagrad", rate, at(3), x, g, h, decay_factor=0.5, epsilon=1e-3, norm_coefficient=0.01)
    same(squares, h + pulled**2)
    same(new, x - 0.1 / 2.5 * pulled / (np.sqrt(squares) + 1e-3))
    for steps in (0, 3):
        made = op(
            f"{domain}Adam",
            *(rate, at(steps), x, g, x * 0, h),
            alpha=0.8,
            beta=0.9,
            epsilon=1e-3,
            norm_coefficient=0.01,
            norm_coefficient_post=0.1,
        )
        r = 0.1 * np.sqrt(1 - 0.9**steps) / (1 - 0.8**steps) if steps else 0.1
        square = 0.9 * h + 0.1 * pulled**2
        same(made[1], 0.2 * pulled)
        same(made[2], square)
        same(made[0], 0.9 * (x - r * made[1] / (np.sqrt(square) + 1e-3)))
        both = {"alpha": 0.8, "beta": 0.5, "norm_coefficient": 0.01}
        velocity = 0.8 * h + (0.5 if steps else 1) * pulled
        for mode, way in (("standard", velocity), ("nesterov", pulled + 0.8 * velocity)):
            made = op(f"{domain}Momentum", rate, at(steps), x, g, h, mode=mode, **both)
            same(made[1], velocity)
            same(made[0], x - 0.1 * way)
    with pytest.raises(InvalidModelError, match="3 values"):
        op(f"{domain}Adagrad", rate, at(0), x, g)


SOME = texts("b", "", "a", "é", "a", "zz").reshape(2, 3)
MOVES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Gather", [SOME, np.array([[2, -1], [0, 0]])], {"axis": 1}),
    ("GatherElements", [SOME, np.array([[1], [-1]])], {"axis": 1}),
    ("GatherElements", [SOME, np.array([[1, 0]])], {}),
    ("GatherND", [SOME, np.array([[1, 0], [0, -1]])], {}),
    ("GatherND", [SOME, np.array([[1], [0]])], {"batch_dims": 1}),
    ("ScatterElements", [SOME, np.array([[1], [2]]), texts("new", "a").reshape(2, 1)], {"axis": 1}),
    ("ScatterND", [SOME, np.array([[1, 1]]), texts("new")], {}),
    ("Where", [np.array([True, False, True]), SOME, texts("other")], {}),
    ("OneHot", [np.array([0, 2]), np.array(3), texts("off", "on")], {"axis": 0}),
    ("Pad", [SOME, np.array([0, 1, 1, -1]), texts("fill").reshape(())], {}),
    ("Pad", [SOME, np.array([1, 0, 0, 2])], {}),
    ("Pad", [SOME, np.array([0, 1, 0, 2])], {"mode": "reflect"}),
    ("Expand", [SOME, np.array([2, 2, 3])], {}),
    ("Concat", [SOME, SOME[:1]], {"axis": 0}),
    ("Slice", [SOME, np.array([-1]), np.array([0]), np.array([1]), np.array([-1])], {}),
    ("Gather", [SOME[:, :0], np.zeros((0,), np.int64)], {"axis": 0}),
]


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(("kind", "inputs", "attributes"), MOVES)
def test_texts_are_moved_as_numbers_are(
    kind: str, inputs: list[Any], attributes: dict[str, Any], on_device: bool
) -> None:
    names = ["", *sorted({text for i in inputs if i.dtype == object for text in i.reshape(-1) if text})]
    numbers = [
        np.array([names.index(t) for t in i.reshape(-1)], np.int64).reshape(i.shape) if i.dtype == object else i
        for i in inputs
    ]
    with jax.enable_x64(True):
        if on_device and kind in ("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Where"):
            inputs = [i if i.dtype == object else jax.numpy.asarray(i) for i in inputs]
        moved = np.asarray(op(kind, *numbers, **attributes))
        found = op(kind, *inputs, **attributes)
    same(found, np.array(names, object)[moved])


@pytest.mark.parametrize("index", [np.array([7]), jax.numpy.array([7])])
def test_an_index_beyond_the_texts(index: Any) -> None:
    for kind in ("Gather", "GatherElements"):
        with pytest.raises(InvalidModelError, match="out of"):
            op(kind, SOME.reshape(-1), index)


def test_texts_are_not_moved_by_a_traced_index() -> None:
    with pytest.raises(DataDependent):
        jax.eval_shape(lambda i: op("Gather", SOME, i), np.array([0]))
