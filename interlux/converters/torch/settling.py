"""Modules that change themselves when they are called: they set flags, keep caches, exchange parts."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

_TABLES = ("_parameters", "_buffers", "_modules")
Attributes = dict[torch.nn.Module, tuple[dict[str, Any], dict[str, dict[str, Any]]]]


def _attributes(module: torch.nn.Module) -> Attributes:
    """What the module and its parts hold under their attributes' names."""
    return {
        part: (dict(vars(part)), {table: dict(vars(part)[table]) for table in _TABLES})
        for part in module.modules()
        if not isinstance(part, torch.jit.ScriptModule)  # keeps its attributes elsewhere
    }


@contextmanager
def as_it_was(module: torch.nn.Module) -> Iterator[None]:
    """Afterwards takes back what attributes of the module and its parts were assigned: code that is traced must not
    leave its traces (a flag that says a thing was done, a cache of fake tensors)."""
    before = _attributes(module)
    try:
        yield
    finally:
        for part, (plain, tables) in before.items():
            vars(part).clear()
            vars(part).update(plain)
            for table, content in tables.items():
                vars(part)[table].clear()
                vars(part)[table].update(content)


def settled(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[torch.nn.Module, list[str]] | None:
    """A module as it is after its first call.

    Returns a copy that was called in evaluation, and the names of the attributes that the call assigned; None if it
    assigned none, changed parameters or buffers, or failed.
    """
    try:
        called = copy.deepcopy(module).eval()
        tensors = {name: tensor.clone() for name, tensor in called.state_dict().items()}
        before = _attributes(called)
        with torch.no_grad():
            called(*args, **kwargs)
    except Exception:  # noqa: BLE001  # whatever the module's code raises: there is an error already, which is told
        return None
    after = called.state_dict()
    if list(after) != list(tensors) or not all(_same(after[name], tensors[name]) for name in tensors):
        return None
    modes = {name: part.training for name, part in module.named_modules()}
    changed = []
    for name, part in called.named_modules():
        part.training = modes.get(name, module.training)
        if part not in before:
            continue
        plain, tables = before[part]
        held = {**plain, **tables["_modules"]}
        now = {**vars(part), **vars(part)["_modules"]}
        changed += [f"{name}.{key}".lstrip(".") for key in now if key != "training" and now[key] is not held.get(key)]
    return (called, changed) if changed else None


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
