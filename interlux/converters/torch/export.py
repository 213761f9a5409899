"""Running torch.export: example inputs, dynamic shapes, and the two modes of a module."""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ...ir.errors import InvalidModelError, UnsupportedError

Args = tuple[Any, ...]


def as_call(example_inputs: Any) -> tuple[Args, dict[str, Any]]:
    """Example inputs as positional and keyword arguments: a tensor, a tuple or list of arguments, a dict of keywords,
    or a pair (tuple, dict)."""
    if isinstance(example_inputs, dict):
        return (), example_inputs
    if (
        isinstance(example_inputs, tuple)
        and len(example_inputs) == 2
        and isinstance(example_inputs[0], tuple)
        and isinstance(example_inputs[1], dict)
    ):
        return example_inputs
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def arguments_by_name(module: torch.nn.Module, args: Args, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise InvalidModelError(f"the example inputs don't fit {type(module).__name__}.forward: {error}") from None


def _is_batched(leaf: Any, size: int) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] == size


def batch_shapes(arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    """Dynamic shapes with axis 0 of every input as `batch`.

    Returns:
        The shapes, in torch's form, and the arguments; an example batch of 1 is repeated to 2, because torch would take
        a size of 1 as fixed.
    """
    leaves = [x for x in pytree.tree_leaves(arguments) if isinstance(x, torch.Tensor) and x.dim() > 0]
    if not leaves:
        return None, arguments
    size = leaves[0].shape[0]
    if size == 1:
        arguments = pytree.tree_map(lambda x: torch.cat([x, x]) if _is_batched(x, 1) else x, dict(arguments))
        size = 2
    batch = torch.export.Dim("batch", min=1)
    return pytree.tree_map(lambda x: {0: batch} if _is_batched(x, size) else None, dict(arguments)), arguments


def export(
    module: torch.nn.Module, args: Args, kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    """torch.export of a module as it stands (in its present mode).

    Arguments:
        dynamic_shapes: "batch", "auto", None (all sizes fixed), or what torch.export.export takes.
    """
    if dynamic_shapes == "batch":
        shapes, named = batch_shapes(arguments_by_name(module, args, kwargs))
        if named is not None:
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
            bound.arguments.update(named)
            args, kwargs = bound.args, bound.kwargs
    elif dynamic_shapes == "auto":
        auto = torch.export.Dim.AUTO
        shapes = pytree.tree_map(
            lambda x: dict.fromkeys(range(x.dim()), auto) if isinstance(x, torch.Tensor) else None,
            arguments_by_name(module, args, kwargs),
        )
    elif isinstance(dynamic_shapes, str):
        raise InvalidModelError(
            f'dynamic_shapes is "batch", "auto", None or what torch.export takes, not {dynamic_shapes!r}'
        )
    else:
        shapes = dynamic_shapes
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), _torch_quiet(said):
            warnings.simplefilter("ignore")  # torch's own, about its future and about LSTM's flat weights
            return torch.export.export(module, args, dict(kwargs), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises whatever the module's code raises
        if text := said.getvalue().strip():
            error.add_note(f"torch.export printed:\n{text}")
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2])[:400] if lines else type(error).__name__
        hint = (
            " (sizes are specialised: give dynamic_shapes=None, or torch.export's own form)"
            if "pecializ" in str(error) or "Constraints violated" in str(error)
            else ""
        )
        raise UnsupportedError(f"torch.export cannot export {type(module).__name__}: {reason}{hint}") from error


@contextmanager
def _torch_quiet(said: io.StringIO) -> Iterator[None]:
    """What torch prints and logs meanwhile (of a failed export the whole graph) goes to a buffer."""
    handler = logging.StreamHandler(said)
    loggers = [
        each
        for name, each in logging.root.manager.loggerDict.items()
        if name.partition(".")[0] == "torch" and isinstance(each, logging.Logger) and (each.handlers or name == "torch")
    ]
    before = [(each, each.handlers, each.propagate) for each in loggers]
    try:
        for each in loggers:
            each.handlers, each.propagate = [handler], False
        with redirect_stdout(said), redirect_stderr(said):
            yield
    finally:
        for each, handlers, propagate in before:
            each.handlers, each.propagate = handlers, propagate


def dimension_names(
    dynamic_shapes: Any, module: torch.nn.Module, args: Args, kwargs: Mapping[str, Any]
) -> dict[tuple[int, int], str]:
    """The names that a user's own `dynamic_shapes` gives: (number of the input tensor, axis) -> name. An exported
    program keeps symbols only."""
    names: dict[tuple[int, int], str] = {}
    count = 0

    def walk(argument: Any, shape: Any) -> None:
        nonlocal count
        if isinstance(argument, torch.Tensor):
            for axis, dim in shape.items() if isinstance(shape, dict) else enumerate(shape or ()):
                if isinstance(dim, torch.export.Dim):
                    names[count, int(axis)] = dim.__name__
            count += 1
        elif isinstance(argument, dict):
            for key, inner in argument.items():
                walk(inner, shape.get(key) if isinstance(shape, dict) else None)
        elif isinstance(argument, tuple | list):
            for i, inner in enumerate(argument):
                walk(inner, shape[i] if isinstance(shape, tuple | list) else None)

    if dynamic_shapes is not None and not isinstance(dynamic_shapes, str):
        arguments = arguments_by_name(module, args, kwargs)
        if not isinstance(dynamic_shapes, dict):
            dynamic_shapes = dict(zip(arguments, dynamic_shapes, strict=False))
        walk(arguments, dynamic_shapes)
    return names


@contextmanager
def in_mode(module: torch.nn.Module, train: bool) -> Iterator[None]:
    """The module in training or evaluation. If it is in that mode already it stays as it was found, frozen or active
    sub-modules included; afterwards every sub-module has its own mode again."""
    before = {m: m.training for m in module.modules()}
    try:
        if module.training != train:
            module.train(train)
        yield
    finally:
        for m, training in before.items():
            m.training = training
