"""Parameters and states as trees: nested dicts whose leaves are arrays.

A *path* is the tuple of keys that leads to a leaf. Its dotted *name* joins the keys, so that torch's
`layer1.0.conv1.weight` is the path `("layer1", "0", "conv1", "weight")`. Every function here is pure and takes arrays
of any library (numpy, JAX, torch): it only moves leaves around, except `cast` and the flat vector, which compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from .errors import InvalidModelError

Path = tuple[str, ...]
Tree = dict[str, Any]

_EMPTY: Mapping[str, Any] = {}


def name_of(path: Path) -> str:
    """The dotted name of a path. `path_of` reverses it."""
    return ".".join(path)


def path_of(name: str) -> Path:
    return tuple(name.split("."))


def leaves(tree: Mapping[str, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The (path, leaf) pairs in the order of insertion."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def from_leaves(items: Iterable[tuple[Path, Any]]) -> Tree:
    """The tree that has exactly these leaves; the reverse of `leaves`.

    Raises InvalidModelError if a path is empty, occurs twice, or runs through another leaf.
    """
    tree: Tree = {}
    for path, value in items:
        if not path:
            raise InvalidModelError("a parameter or state needs a name of at least one key")
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise InvalidModelError(f"{name_of(path)!r} runs through another array's name; rename one of the two")
        if path[-1] in node:
            raise InvalidModelError(f"{name_of(path)!r} is there twice, or is also the prefix of another array's name")
        node[path[-1]] = value
    return tree


def find(tree: Mapping[str, Any], path: Path) -> Any | None:
    """The leaf or sub-tree at a path, None if there is none."""
    node: Any = tree
    for key in path:
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    return node


def updated(tree: Mapping[str, Any], changes: Mapping[Path, Any]) -> Tree:
    """A tree with some leaves replaced. Untouched branches are shared with the original, which stays as it was."""
    new = dict(tree)
    fresh: dict[Path, Tree] = {(): new}  # the branches that are already copied
    for path, value in changes.items():
        if find(tree, path) is None:
            raise InvalidModelError(f"no array is named {name_of(path)!r}")
        for depth in range(1, len(path)):
            prefix = path[:depth]
            if prefix not in fresh:
                parent = fresh[prefix[:-1]]
                fresh[prefix] = parent[prefix[-1]] = dict(parent[prefix[-1]])
        fresh[path[:-1]][path[-1]] = value
    return new


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Path]:
    """The paths whose leaves are not the same objects in two trees."""
    return [path for path, leaf in leaves(new) if find(old, path) is not leaf]


def map_with_path(function: Callable[[Path, Any], Any], tree: Mapping[str, Any]) -> Tree:
    """The tree of `function(path, leaf)`; empty branches are kept."""

    def walk(node: Mapping[str, Any], prefix: Path) -> Tree:
        return {
            key: walk(value, (*prefix, key)) if isinstance(value, Mapping) else function((*prefix, key), value)
            for key, value in node.items()
        }

    return walk(tree, ())


def map_leaves(function: Callable[[Any], Any], tree: Mapping[str, Any]) -> Tree:
    return map_with_path(lambda _, leaf: function(leaf), tree)


def count(tree: Mapping[str, Any]) -> int:
    """The number of array elements in a tree."""
    return sum(int(np.prod(np.shape(leaf), dtype=np.int64)) for _, leaf in leaves(tree))


def size_in_bytes(tree: Mapping[str, Any]) -> int:
    return sum(int(leaf.nbytes) for _, leaf in leaves(tree))


def is_float(dtype: Any) -> bool:
    """Whether a dtype is a real floating-point type, those of ml_dtypes (bfloat16, float8_…) included."""
    dtype = np.dtype(dtype)
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


def cast(tree: Mapping[str, Any], dtype: Any) -> Tree:
    """Floating-point leaves in another floating-point dtype; integers, booleans and strings stay as they are."""
    if not is_float(dtype):
        raise InvalidModelError(f"cast takes a floating-point dtype, not {np.dtype(dtype).name!r}")
    return map_leaves(lambda leaf: leaf.astype(dtype) if is_float(leaf.dtype) else leaf, tree)


def ravel(tree: Mapping[str, Any]) -> tuple[np.ndarray, Callable[[Any], Tree]]:
    """One flat vector of all leaves, and the function that makes a tree of such a vector again.

    Returns:
        vector: numpy, one-dimensional, in the common dtype of the leaves (they must share it), in the order of
            `leaves`.
        unravel: takes a vector of the same length, of any array library, and returns views of it as a tree.
    """
    pairs = list(leaves(tree))
    dtypes = {np.dtype(leaf.dtype) for _, leaf in pairs}
    if len(dtypes) > 1:
        raise InvalidModelError(
            f"a flat vector needs one dtype, the tree has {', '.join(sorted(d.name for d in dtypes))}: cast it first"
        )
    shapes = [tuple(leaf.shape) for _, leaf in pairs]
    ends = np.cumsum([0] + [int(np.prod(shape, dtype=np.int64)) for shape in shapes])
    vector = (
        np.concatenate([np.asarray(leaf).reshape(-1) for _, leaf in pairs])
        if pairs
        else np.zeros(0, dtypes.pop() if dtypes else np.float32)
    )

    def unravel(flat: Any) -> Tree:
        if tuple(flat.shape) != (int(ends[-1]),):
            raise InvalidModelError(f"the flat vector must have shape ({ends[-1]},), not {tuple(flat.shape)}")
        return from_leaves(
            (path, flat[ends[i] : ends[i + 1]].reshape(shape))
            for i, ((path, _), shape) in enumerate(zip(pairs, shapes, strict=True))
        )

    return vector, unravel


def check_same(expected: Mapping[str, Any], given: Mapping[str, Any], what: str) -> None:
    """Raises InvalidModelError unless both trees have the same paths and shapes; names every difference."""
    wanted, found = dict(leaves(expected)), dict(leaves(given))
    problems = [f"{name_of(p)} is missing" for p in wanted if p not in found]
    problems += [f"{name_of(p)} is unknown" for p in found if p not in wanted]
    problems += [
        f"{name_of(p)} has shape {tuple(np.shape(found[p]))}, not {tuple(np.shape(wanted[p]))}"
        for p in wanted
        if p in found and np.shape(found[p]) != np.shape(wanted[p])
    ]
    if problems:
        raise InvalidModelError(f"the {what} don't fit the model: " + "; ".join(problems))
