"""Running torch.export: example inputs, dynamic shapes, the two modes of a module, and where it fails."""

from __future__ import annotations

import inspect
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ...ir.errors import InvalidModelError, UnsupportedError
from .guards import decisions_on_one
from .hooks import gradients_noted, inference_as_no_grad
from .places import Spot, causes, class_name, scripted, spot_of
from .settling import as_it_was
from .watching import Watching

# what torch's errors add for its own developers
_HINTS = re.compile(
    r" *(For more information, run with TORCH_LOGS=\S*|For more information about this error, see: \S*"
    r"|Please file an issue on github\.?|To fix the error, insert .*|\(Size-like symbols: .*\))"
)
Args = tuple[Any, ...]
Keeping = Callable[[Args, Mapping[str, Any]], AbstractContextManager[None]]


class ExportError(UnsupportedError):
    """torch.export cannot export a module.

    Arguments:
        module: the name of its class.
        reason: what torch.export says.
        spot: where in the user's code.
    """

    def __init__(self, module: str, reason: str, spot: Spot):
        where = f" (in {spot})" if str(spot) else ""
        super().__init__(
            f"torch.export cannot export {module}: {reason}{where}; "
            "ix.from_torch(…, opaque='wrap') keeps that part in PyTorch"
        )
        self.reason = reason + (f" ({spot.source})" if spot.source else "")
        self.spot = spot


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


def _signature(module: torch.nn.Module, kwargs: Mapping[str, Any]) -> inspect.Signature:
    """How a forward is called: of its `**kwargs` each one that is given, by name."""
    signature = inspect.signature(module.forward)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    if len(own) == len(signature.parameters):
        return signature
    names = {p.name for p in own}
    given = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in kwargs if name not in names]
    return signature.replace(parameters=[*own, *given])


@contextmanager
def _each_by_name(module: torch.nn.Module, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Shows torch.export each of a forward's `**kwargs` by name: as a dict torch 2.13 counts them twice,
    and no dynamic shapes fit."""
    signature, forward = _signature(module, kwargs), module.forward
    if signature.parameters.keys() == inspect.signature(forward).parameters.keys():
        yield
        return

    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    call.__signature__ = signature  # type: ignore[attr-defined]
    own = vars(module).get("forward")
    module.forward = call
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def arguments_by_name(module: torch.nn.Module, args: Args, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return dict(_signature(module, kwargs).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise InvalidModelError(f"the example inputs don't fit {type(module).__name__}.forward: {error}") from None


def _each_its_own(arguments: Any) -> Any:
    """The arguments with a copy of each tensor that is there twice: torch.export would take both for one input."""
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or id(leaf) not in seen:
            seen.add(id(leaf))
            return leaf
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)

    return pytree.tree_map(own, arguments)


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


def prepared(
    module: torch.nn.Module, args: Args, kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> tuple[Args, dict[str, Any], Any]:
    """The arguments to export a module with, and the dynamic shapes in torch's form.

    Arguments:
        dynamic_shapes: "batch", "auto", None (all sizes fixed), or what torch.export.export takes.
    """
    args, kwargs = _each_its_own((args, dict(kwargs)))
    if dynamic_shapes == "batch":
        shapes, named = batch_shapes(arguments_by_name(module, args, kwargs))
        if named is not None:
            bound = _signature(module, kwargs).bind(*args, **kwargs)
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
        rest = [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind is p.VAR_KEYWORD]
        if isinstance(shapes, dict) and rest and rest[0] in shapes and rest[0] not in kwargs:
            shapes = {k: v for k, v in shapes.items() if k != rest[0]} | (shapes[rest[0]] or {})
    return args, dict(kwargs), shapes


def export(
    module: torch.nn.Module,
    args: Args,
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
    keeping: Keeping | None = None,
    backwards: dict[str, Spot] | None = None,
    not_one: dict[str, str] | None = None,
) -> torch.export.ExportedProgram:
    """torch.export of a module as it stands (in its present mode).

    Arguments:
        dynamic_shapes: see `prepared`.
        keeping: around the export, given its arguments: makes nodes of the parts that stay in PyTorch.
        backwards: gets what changes gradients and is not in an exported program (functions with a backward of their
            own, hooks of tensors), with its place.
        not_one: gets the symbols of sizes whose code decides by whether they are 1, which it forgets as well.

    Raises ExportError with torch.export's reason and the place in the user's code.
    """
    args, kwargs, shapes = prepared(module, args, kwargs, dynamic_shapes)
    said = io.StringIO()
    watching = Watching(module)
    with nullcontext() if keeping is None else keeping(args, kwargs), _each_by_name(module, kwargs):
        try:
            with (
                warnings.catch_warnings(record=True) as warned,
                _torch_quiet(said),
                gradients_noted(module, {} if backwards is None else backwards),
                inference_as_no_grad(),
                decisions_on_one(module, {} if not_one is None else not_one),
                as_it_was(module),
                watching,
            ):
                warnings.simplefilter("always")  # they are not shown: torch's own, about its future and such
                program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # torch.export raises whatever the module's code raises
            if text := said.getvalue().strip():
                error.add_note(f"torch.export printed:\n{text}")
            reason, spot = watching.explained(_reason(error), spot_of(error, module))
            outer = spot.modules[0][0] if spot.modules else ""
            scripts = [(path, name) for path, name in scripted(module).items() if f"{path}.".startswith(outer)]
            if scripts and not any(isinstance(cause, UnsupportedError) for cause in causes(error)):
                spot = Spot((*scripts, *spot.modules), spot.file, spot.line)
                reason = f"TorchScript ({', '.join(path for path, _ in scripts)}) cannot be exported"
            raise ExportError(type(module).__name__, reason, spot) from error
    if (hidden := watching.hidden(program)) is not None:
        raise ExportError(type(module).__name__, *hidden)
    if backwards is not None:
        backwards |= watching.not_further
    for each in warned:
        _refuse_memory(module, program, str(each.message))
    return program


def _refuse_memory(module: torch.nn.Module, program: torch.export.ExportedProgram, warning: str) -> None:
    """Raises ExportError if torch.export warns of a tensor, kept as a plain attribute, that the forward assigns, and
    also reads: in the program it is a constant."""
    head, found, _ = warning.partition(" assigned during export")
    assigned = set(re.findall(r"self\.([\w.]+)", head)) if found else set()
    users = {node.name: node.users for node in program.graph.find_nodes(op="placeholder")}
    for spec in program.graph_signature.input_specs:
        if spec.target in assigned and users.get(getattr(spec.arg, "name", "")):
            owner = str(spec.target).rpartition(".")[0]
            spot = Spot(((owner, class_name(module.get_submodule(owner))),))
            reason = f"its forward assigns the tensor {spec.target}, which it also reads; register it as a buffer"
            raise ExportError(type(module).__name__, reason, spot)


def _reason(error: BaseException) -> str:
    """What an error of torch.export says, in one line."""
    for cause in causes(error):
        if isinstance(cause, UnsupportedError):  # of a part that is to stay in PyTorch
            return str(cause)
    lines = [line.strip() for line in _HINTS.sub("", str(error)).splitlines() if line.strip()]
    reason = " ".join(lines[:2])[:400] if lines else type(error).__name__
    if "PackedParams" in reason:
        return (
            "modules of eager-mode quantisation keep packed weights, which only PyTorch's own kernels read; quantise "
            "the exported program instead (prepare_pt2e, convert_pt2e)"
        )
    if "ata-dependent" in reason:
        return f"its code decides by the data ({reason.partition(' (unhinted')[0]})"
    if "pecializ" in str(error) or "Constraints violated" in str(error):
        reason += " (sizes are specialised: give dynamic_shapes=None, or torch.export's own form)"
    return reason


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
