"""From an exported program (torch.export's training IR, before any decomposition) to a graph of the IR."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind

from ...ir.errors import InvalidModelError, UnsupportedError
from ...ir.graph import Graph, ModuleCall
from ...ir.layer import ALWAYS
from ...ir.layers import Assign
from ...ir.trees import Path
from ..builder import LARGEST_CONSTANT, Place, Value
from .arrays import dtype_of, to_numpy
from .builder import Modes, OwnStates, TorchBuilder
from .lowerings import LOWERINGS
from .lowerings.shapes import MAYBE_VIEWS, VIEW_WRITES, VIEWS
from .modes import counts_batches, target_name

Node = torch.fx.Node
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
# they change what a name views, not the data
_RESHAPED_IN_PLACE = frozenset(
    (
        "t_",
        "transpose_",
        "swapaxes_",
        "swapdims_",
        "unsqueeze_",
        "squeeze_",
        "as_strided_",
        "resize_",
        "resize_as_",
        "set_",
    )
)
_IGNORED = ("aten._assert", "aten.sym_constrain", "aten.sym_size", "aten.sym_numel", "aten._check")


def source_line(stack_trace: str | None) -> str:
    """The innermost frame of a stack trace as file:line, without the folders of this machine."""
    frames = _FRAME.findall(stack_trace or "")
    if not frames:
        return ""
    file, line = frames[-1]
    path = file.replace("\\", "/").rpartition("site-packages/")[2]
    if path.startswith("/") or ":" in path[:3]:
        path = "/".join(PurePosixPath(path).parts[-2:])
    return f"{path}:{line}"


def module_calls(node: Node) -> tuple[ModuleCall, ...]:
    """The module calls that a node came from, outermost first, without the root."""
    calls = []
    for key, (path, module_class) in (node.meta.get("nn_module_stack") or {}).items():
        if not path or path.startswith("_empty"):
            continue
        name = (
            module_class if isinstance(module_class, str) else f"{module_class.__module__}.{module_class.__qualname__}"
        )
        _, _, number = key.rpartition("@")
        calls.append(ModuleCall(path, int(number) if "@" in key and number.isdigit() else 0, name.rpartition(".")[2]))
    return tuple(calls)


class ProgramImporter:
    """Imports one exported program.

    Arguments:
        program: of torch.export, not decomposed.
        modes: how its layers behave in training and evaluation.
        canonical: the path under which each named tensor is stored (tied weights share one).
        dim_names: names of torch's symbols.
        fresh: whether the program was exported in this process, so that it knows which tensors share memory.
        own: the states that the import adds.
    """

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        modes: Modes,
        canonical: Mapping[str, Path],
        dim_names: dict[str, str],
        fresh: bool,
        own: OwnStates,
    ):
        self.program = program
        self.tensors = {**program.constants, **program.state_dict}
        stored = {
            path: TorchBuilder.stored(path, _Described(self.tensors[name]))
            for name, path in canonical.items()
            if name in self.tensors
        }
        self.op = TorchBuilder(dim_names, modes, stored, own)
        self.canonical = canonical
        self.values: dict[Node, Any] = {}
        self.alias: dict[Node, Node] = {}  # results of in-place operators, which are their first argument
        self.view_of: dict[Node, Node] = {}
        self.views: dict[Node, list[Node]] = {}
        self.doubtful: set[Node] = set()  # may be views or copies
        self.buffers: dict[Node, Path] = {}
        self.fresh = fresh
        self.order = {node: i for i, node in enumerate(program.graph.nodes)}
        self.unsupported: dict[str, None] = {}
        self.written: dict[Path, Value] = {}

    def run(self) -> Graph:
        """The graph. Raises UnsupportedError naming every operator that cannot be imported, with its place."""
        for spec in self.program.graph_signature.input_specs:
            if hasattr(spec.arg, "name") and spec.kind == InputKind.CUSTOM_OBJ:
                raise UnsupportedError(f"the program takes a custom object ({spec.arg.name})")
        placeholders = {n.name: n for n in self.program.graph.nodes if n.op == "placeholder"}
        for spec in self.program.graph_signature.input_specs:
            name = getattr(spec.arg, "name", None)
            if name in placeholders:
                self._bind(placeholders[name], spec)
        outputs = self._execute(self.program.graph)
        if self.unsupported:
            raise UnsupportedError("PyTorch operators that cannot be imported", list(self.unsupported))
        with self.op.at(Place("write")):
            for path, value in self.written.items():
                self.op.add(Assign(ALWAYS), value, states={"value": self.op.stored(path, _Described(value))}, outputs=0)
        results = [self._resolved(o) for o in outputs if isinstance(o, Node)]
        for i, result in enumerate(results):
            if not isinstance(result, Value):
                raise UnsupportedError(f"result {i} of the module is a size or number ({result}), not a tensor")
        return self.op.build(results)

    def _bind(self, node: Node, spec: Any) -> None:
        val = node.meta.get("val")
        if spec.kind == InputKind.USER_INPUT:
            if isinstance(val, torch.Tensor):
                value = self.op.input(node.name, dtype_of(val.dtype), self.op.shape(val.shape))
                self.op.bind_symbols(value, val.shape)
                self.values[node] = value
            else:
                self.values[node] = val
            return
        tensor = self.tensors[spec.target]
        small = spec.kind == InputKind.CONSTANT_TENSOR and tensor.numel() <= LARGEST_CONSTANT
        if small:
            self.values[node] = self.op.const(to_numpy(tensor))
        else:
            self.buffers[node] = self.canonical[spec.target]
            self.values[node] = self.op.stored(self.buffers[node], _Described(tensor))

    # --- execution

    def _execute(self, graph: torch.fx.Graph) -> list[Any]:
        for node in graph.nodes:
            if node.op == "output":
                return list(node.args[0]) if isinstance(node.args[0], list | tuple) else [node.args[0]]
            if node.op != "call_function":
                continue
            calls, line = module_calls(node), source_line(node.meta.get("stack_trace"))
            place = Place(node.name, calls, " ".join(w for w in (target_name(node), line) if w))
            with self.op.at(place):
                self.op.node_now = node
                self._step(node, place)
        return []

    def _step(self, node: Node, place: Place) -> None:
        name, val = target_name(node), node.meta.get("val")
        if counts_batches(node):
            self.alias[node] = node.args[0]  # type: ignore[assignment]
        elif name.startswith(_IGNORED) or isinstance(val, torch.SymInt | int | torch.SymBool | bool):
            self.values[node] = val  # sizes are lowered from their expressions where they are used
        elif node.target is operator.getitem:
            source = node.args[0]
            self.values[node] = self._resolved(source)[node.args[1]]
            if isinstance(source, Node) and source in self.view_of:  # a part of a split
                self.view_of[node] = source
                self.views.setdefault(source, []).append(node)
        elif name == "wrap_with_set_grad_enabled":
            self._without_gradient(node)
        elif self._is_in_place(node):
            self._in_place(node, place)
        else:
            key = name.removeprefix("aten.")
            if key not in LOWERINGS or not name.startswith("aten."):
                self._refuse(place, name)
                self._unknown(node)
                return
            try:
                self.values[node] = self._lower(node, key)
            except UnsupportedError as error:  # collected, so that the user sees everything at once
                self.unsupported[f"{place.source}: {error}" if place.source not in str(error) else str(error)] = None
                self._unknown(node)
            self._note_view(node, key)

    def _refuse(self, place: Place, name: str) -> None:
        module = place.scope[-1].path if place.scope else "the top module"
        line = place.source.removeprefix(name).strip()
        self.unsupported[f"{name} in {module}" + (f" ({line})" if line else "")] = None

    def _unknown(self, node: Node) -> None:
        """A stand-in for what could not be lowered, so that the rest is examined too."""
        val = node.meta.get("val")

        def stand_in(tensor: Any) -> Any:
            return (
                Value(dtype_of(tensor.dtype), self.op.shape(tensor.shape))
                if isinstance(tensor, torch.Tensor)
                else tensor
            )

        self.values[node] = tuple(map(stand_in, val)) if isinstance(val, list | tuple) else stand_in(val)

    def _lower(self, node: Node, key: str) -> Any:
        try:
            result = LOWERINGS[key](self.op, *self._arguments(node.args), **self._arguments(node.kwargs))
        except (TypeError, KeyError, IndexError, ValueError) as error:  # a form of the operator that has no lowering
            if isinstance(error, InvalidModelError):
                raise
            raise UnsupportedError(f"{target_name(node)} with these arguments: {error}") from error
        return self._described(result, node.meta.get("val"), node.name)

    def _described(self, result: Any, val: Any, name: str) -> Any:
        """Names results and gives them the shapes that torch knows."""
        if isinstance(result, tuple):
            return tuple(
                self._described(r, v, f"{name}.{i}") for i, (r, v) in enumerate(zip(result, val, strict=False))
            )
        return self.op.named(result, name, self.op.shape(val.shape))

    def _resolved(self, node: Any) -> Any:
        while node in self.alias:
            node = self.alias[node]
        return self.values.get(node, node)

    def _arguments(self, arguments: Any) -> Any:
        return torch.fx.node.map_arg(arguments, self._resolved)

    def _without_gradient(self, node: Node) -> None:
        """A block under torch.no_grad (or enable_grad): inlined, its results without gradient."""
        enabled, sub, *operands = node.args
        inner: torch.fx.GraphModule = getattr(self.program.graph_module, sub.target)  # type: ignore[union-attr,arg-type]
        names = [n for n in inner.graph.nodes if n.op == "placeholder"]
        for placeholder, operand in zip(names, operands, strict=True):
            self.alias[placeholder] = operand  # type: ignore[assignment]
        outputs = self._execute(inner.graph)
        self.op.node_now = node
        results = [self._resolved(o) for o in outputs]
        self.values[node] = tuple(
            r if enabled or not isinstance(r, Value) else self._described(self.op.StopGradient(r), o.meta["val"], "")
            for r, o in zip(results, outputs, strict=True)
        )

    # --- writes in place

    def _is_in_place(self, node: Node) -> bool:
        name = target_name(node).removeprefix("aten.").partition(".")[0]
        return name.endswith("_") and not name.startswith("__")

    def _in_place(self, node: Node, place: Place) -> None:
        written = node.args[0]
        assert isinstance(written, Node)
        if target_name(node).removeprefix("aten.").partition(".")[0] in _RESHAPED_IN_PLACE:
            self._refuse(place, target_name(node))
            self.alias[node] = written
            return
        operation, _, overload = target_name(node).removeprefix("aten.").partition(".")
        key = f"{operation[:-1]}.{overload}"
        if key not in LOWERINGS:
            self._refuse(place, target_name(node))
        else:
            try:
                self._write(written, self._lower(node, key), node)
            except UnsupportedError as error:
                self.unsupported[f"{place.source}: {error}" if place.source not in str(error) else str(error)] = None
        self.alias[node] = written

    def _root(self, node: Node) -> Node:
        while node in self.alias:
            node = self.alias[node]
        return node

    def _note_view(self, node: Node, key: str) -> None:
        """Remembers that a node's result shares memory with its first argument, if it does or may."""
        base = node.args[0] if node.args else None
        if not isinstance(base, Node) or key not in VIEWS:
            return
        if key in MAYBE_VIEWS:  # a reshape is a view or a copy, by strides
            if node.meta["val"].dtype != base.meta["val"].dtype:
                return
            if not self.fresh:
                self.doubtful.add(node)
            elif not _share_storage(node, base):
                return
        base = self._root(base)
        self.view_of[node] = base
        self.views.setdefault(base, []).append(node)

    def _write(self, node: Node, value: Value, cause: Node, kept: Node | None = None) -> None:
        """Gives a tensor a new value: through the view that it is also to its base, and to all other views of that."""
        node = self._root(node)
        value = self._described(self.op.read(value), node.meta["val"], "")
        self.values[node] = value
        base = self.view_of.get(node)
        if base is None:
            if node in self.buffers:
                self.written[self.buffers[node]] = value
        else:
            key = target_name(node).removeprefix("aten.")
            if key not in VIEW_WRITES or node in self.doubtful:
                self._cannot_follow(cause, node)
            sizes = list(base.meta["val"].shape)
            whole = VIEW_WRITES[key](self.op, self._resolved(base), value, sizes, *self._arguments(node.args[1:]))
            self._write(base, whole, cause, kept=node)
        self._refresh(node, cause, kept)

    def _refresh(self, node: Node, cause: Node, kept: Node | None) -> None:
        """Derives the views of a written tensor anew."""
        outer = self.op.node_now
        for view in self.views.get(node, ()):
            if view is kept:
                continue
            if view in self.doubtful:
                if any(self.order[user] > self.order[cause] for user in view.users):
                    self._cannot_follow(cause, view)
                continue
            self.op.node_now = view
            if view.target is operator.getitem:
                self.values[view] = self._resolved(view.args[0])[view.args[1]]
            else:
                self.values[view] = self._lower(view, target_name(view).removeprefix("aten."))
            self._refresh(view, cause, None)
        self.op.node_now = outer

    def _cannot_follow(self, cause: Node, view: Node) -> None:
        reason = "which may be a view or a copy" if view in self.doubtful else "which cannot be followed"
        raise UnsupportedError(
            f"{target_name(cause)} writes through {target_name(view)}, {reason}{self.op.where()}; "
            "write it without the in-place operator"
            + (", or import the module instead of the .pt2" if not self.fresh else "")
        )


def _share_storage(a: Node, b: Node) -> bool:
    first, second = (n.meta["val"].untyped_storage()._cdata for n in (a, b))
    return bool(first == second)


class _Described:
    """dtype and shape of a tensor or value, as numpy says them."""

    def __init__(self, tensor: Any):
        self.dtype = tensor.dtype if isinstance(tensor.dtype, np.dtype) else dtype_of(tensor.dtype)
        self.shape = tuple(tensor.shape)
