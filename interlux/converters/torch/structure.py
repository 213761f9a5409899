"""How the arguments and results of a program nest, in the IR's form."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

from ...ir.errors import UnsupportedError
from ...ir.model import Structure


def keys_of(spec: Any) -> list[str] | None:
    """The names of a node's children where it has any: dicts, named tuples, torch's named results, dataclasses."""
    count = spec.num_children
    if spec.type is namedtuple:  # the type of all of them; the class is the context
        return list(spec.context._fields)
    if spec.type is dict or (isinstance(spec.type, type) and issubclass(spec.type, dict)):
        keys = spec.context if isinstance(spec.context, list) else spec.context[-1] if spec.context else []
        return [str(k) for k in keys] if len(keys) == count else [str(i) for i in range(count)]
    fields = getattr(spec.type, "_fields", None)
    if getattr(spec.type, "__module__", "") == "torch.return_types":  # sort, max, topk, …: sequences with names
        fields = spec.type.__match_args__
    if fields and len(fields) == count:
        return list(fields)
    for candidate in (spec.context, *(spec.context if isinstance(spec.context, tuple | list) else ())):
        if (
            isinstance(candidate, tuple | list)
            and len(candidate) == count
            and all(isinstance(k, str) for k in candidate)
        ):
            return list(candidate)
    return None


def structure(spec: Any, leaves: list[Any]) -> Structure:
    """The nesting of a tree specification over its leaves; consumes `leaves`, each an index of a tensor or a constant
    wrapped as {"value": …}."""
    if spec.is_leaf():
        return leaves.pop(0)
    names = keys_of(spec)
    children = [structure(child, leaves) for child in spec.children()]
    if names is not None and spec.type not in (tuple, list):
        form = {"dict": dict(zip(names, children, strict=True))}
        return form | ({"named": spec.context.__name__} if spec.type is namedtuple else {})
    if spec.type in (tuple, list):
        return {spec.type.__name__: children}
    if spec.type is type(None):
        return {"value": None}
    raise UnsupportedError(
        f"arguments or results of type {getattr(spec.type, '__name__', spec.type)}; register it as a dataclass"
    )


def leaf_names(form: Structure, prefix: str = "") -> dict[int, str]:
    """Names of the tensors of a structure, from its keys and positions."""
    if isinstance(form, int):
        return {form: prefix or "output"}
    if "value" in form:
        return {}
    items = form["dict"].items() if "dict" in form else enumerate(form.get("tuple", form.get("list")))
    found: dict[int, str] = {}
    for key, inner in items:
        start = prefix or ("" if "dict" in form else "output")
        found |= leaf_names(inner, f"{start}_{key}" if start else str(key))
    return found
