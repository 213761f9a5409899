"""Parameters and states as trees."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlux.ir import trees
from interlux.ir.errors import InvalidModelError

KEYS = st.text(min_size=1, max_size=4).filter(lambda k: "." not in k)
ARRAYS = st.lists(st.integers(0, 3), max_size=3).map(
    lambda shape: np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
)
TREES = st.recursive(
    st.dictionaries(KEYS, ARRAYS, max_size=3),
    lambda inner: st.dictionaries(KEYS, st.one_of(ARRAYS, inner.filter(bool)), max_size=3),
    max_leaves=8,
)


@given(TREES)
def test_leaves_and_names_go_both_ways(tree: trees.Tree) -> None:
    pairs = list(trees.leaves(tree))
    again = trees.from_leaves(pairs)
    assert [p for p, _ in trees.leaves(again)] == [p for p, _ in pairs]
    assert all(trees.path_of(trees.name_of(path)) == path for path, _ in pairs)
    assert trees.count(tree) == sum(a.size for _, a in pairs)


@given(TREES)
def test_the_flat_vector_goes_both_ways(tree: trees.Tree) -> None:
    vector, unravel = trees.ravel(tree)
    assert vector.shape == (trees.count(tree),)
    for (path, found), (expected_path, expected) in zip(trees.leaves(unravel(vector)), trees.leaves(tree), strict=True):
        assert path == expected_path
        np.testing.assert_array_equal(found, expected)


def test_the_flat_vector_gives_views_and_checks_its_length() -> None:
    vector, unravel = trees.ravel({"a": np.zeros((2, 3)), "b": {"c": np.ones(4)}})
    vector[6] = 7
    assert unravel(vector)["b"]["c"][0] == 7
    with pytest.raises(InvalidModelError, match=r"shape \(10,\), not \(9,\)"):
        unravel(vector[:9])


def test_the_flat_vector_needs_one_dtype() -> None:
    with pytest.raises(InvalidModelError, match="float32, float64"):
        trees.ravel({"a": np.zeros(2, np.float32), "b": np.zeros(2)})


def test_names_that_clash_are_refused() -> None:
    one = np.zeros(1)
    for pairs in (
        [(("a",), one), (("a", "b"), one)],
        [(("a", "b"), one), (("a",), one)],
        [(("a",), one)] * 2,
        [((), one)],
    ):
        with pytest.raises(InvalidModelError):
            trees.from_leaves(pairs)


def test_updates_leave_the_original_alone_and_share_the_rest() -> None:
    tree = {"a": {"x": np.zeros(1), "y": np.zeros(1)}, "b": {"z": np.zeros(1)}}
    new = trees.updated(tree, {("a", "x"): 1, ("a", "y"): 2})
    assert new["a"] == {"x": 1, "y": 2} and tree["a"]["x"].shape == (1,)
    assert new["b"] is tree["b"]
    assert trees.changed(tree, new) == [("a", "x"), ("a", "y")]
    with pytest.raises(InvalidModelError, match="no array is named 'a.q'"):
        trees.updated(tree, {("a", "q"): 1})


def test_cast_touches_floats_only() -> None:
    tree = {"f": np.ones(2, np.float32), "i": np.arange(2), "b": np.array([True]), "h": np.ones(1, ml_dtypes.bfloat16)}
    dtypes = {k: v.dtype.name for k, v in trees.cast(tree, np.float64).items()}
    assert dtypes == {"f": "float64", "i": "int64", "b": "bool", "h": "float64"}
    with pytest.raises(InvalidModelError, match="not 'int32'"):
        trees.cast(tree, np.int32)


def test_every_difference_is_named() -> None:
    with pytest.raises(InvalidModelError, match=r"a is missing; c is unknown; b has shape \(2,\), not \(3,\)"):
        trees.check_same({"a": np.zeros(1), "b": np.zeros(3)}, {"b": np.zeros(2), "c": np.zeros(1)}, "parameters")
