"""From an exported program (torch.export's training IR, before any decomposition) to a graph of the IR."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from ...ir.errors import InvalidModelError, UnsupportedError
from ...ir.graph import Graph, ModuleCall
from ...ir.layer import ALWAYS, FOLLOW, NEVER
from ...ir.layers import Assign
from ...ir.trees import Path
from ..builder import LARGEST_CONSTANT, Place, Value
from .arrays import dtype_of, real_view, to_numpy
from .builder import Modes, OwnStates, TorchBuilder
from .complex import Complex, each_part
from .lowerings import LOWERINGS
from .lowerings.control import HIGHER_ORDER, autocast, unneeded
from .lowerings.spectral import COMPLEX, COMPLEX_VIEW_WRITES, COMPLEX_VIEWS, as_pairs, is_complex, split_pairs
from .lowerings.views import EACH_A_VIEW, MAYBE_VIEWS, PART_WRITES, PASSING, VIEW_WRITES, VIEWS, estimated
from .modes import FLAGS, arguments, counts_batches, target_name
from .places import short_file

Node = torch.fx.Node
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
# they change what a name views, not the data: the views that the name then is
_RESHAPED_IN_PLACE = {
    "t_.default": "t.default",
    "transpose_.default": "transpose.int",
    "swapaxes_.default": "swapaxes.default",
    "swapdims_.default": "swapdims.default",
    "unsqueeze_.default": "unsqueeze.default",
    "squeeze_.default": "squeeze.default",
    "squeeze_.dim": "squeeze.dim",
    "squeeze_.dims": "squeeze.dims",
}
_MOVED_IN_PLACE = frozenset(("as_strided_", "resize_", "resize_as_", "set_"))  # to other memory, or more of it
_NUMBERS = {  # their dtypes, as results
    **dict.fromkeys((int, torch.SymInt), np.dtype(np.int64)),
    **dict.fromkeys((float, torch.SymFloat), np.dtype(np.float64)),
    **dict.fromkeys((bool, torch.SymBool), np.dtype(np.bool_)),
}
_IGNORED = tuple(f"aten.{n}" for n in ("_assert", "sym_constrain", "sym_size", "sym_numel", "_check", "promote_types"))


def source_line(stack_trace: str | None) -> str:
    """The innermost frame of a stack trace as file:line, without the folders of this machine."""
    frames = _FRAME.findall(stack_trace or "")
    if not frames:
        return ""
    file, line = frames[-1]
    return short_file(file, int(line))


def outs(node: Node) -> dict[str, Node]:
    """The tensors that an operator writes its results to, by the names of its `out=` arguments."""
    schema = getattr(node.target, "_schema", None)
    return {a.name: node.kwargs[a.name] for a in schema.arguments if a.is_out} if schema is not None else {}  # type: ignore[misc]


def functional_name(node: Node) -> str:
    """The operator, with its overload, that gives what an operator in place or with `out=` writes."""
    operation, _, overload = target_name(node).removeprefix("aten.").partition(".")
    if not outs(node):
        return f"{operation[:-1]}.{overload}"

    target: Any = node.target
    wanted = [(a.name, str(a.type)) for a in target._schema.arguments if not a.is_out]
    for name in target._overloadpacket.overloads():
        formals = getattr(target._overloadpacket, name)._schema.arguments
        if any(a.is_out for a in formals) or not all(a.has_default_value() for a in formals[len(wanted) :]):
            continue
        if [(a.name, str(a.type)) for a in formals[: len(wanted)]] == wanted:
            return f"{operation}.{name}"
    return f"{operation}.{overload}"


def view_name(node: Node) -> str:
    """The operator of a view; of one that is made in place, that which makes the same otherwise."""
    name = target_name(node).removeprefix("aten.")
    return _RESHAPED_IN_PLACE.get(name, name)


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


UNIMPORTABLE = "PyTorch operators that cannot be imported"


class Unimportable(UnsupportedError):
    """Operators that cannot be imported; `modules` has the paths of the modules that they are in, "" for the root."""

    def __init__(self, modules: Mapping[str, Iterable[str]]):
        super().__init__(UNIMPORTABLE, list(dict.fromkeys(text for texts in modules.values() for text in texts)))
        self.modules = modules

    def reason(self, path: str) -> str:
        """What there is in one module."""
        return f"{UNIMPORTABLE}: {'; '.join(self.modules[path])}"


class RefusedInside(UnsupportedError):
    """What a graph inside another one cannot do has been collected."""


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
            path: TorchBuilder.stored(path, _Described(real_view(self.tensors[name])))
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
        self.stale: set[Node] = set()  # views of what was written to since they were made
        self.buffers: dict[Node, Path] = {}
        self.fresh = fresh
        self.order = {node: i for i, node in enumerate(program.graph.nodes)}
        self.unsupported: dict[str, dict[str, None]] = {}  # by the path of the module
        self.refusals = 0
        self.opaque: Callable[..., Any] | None = None  # makes the layer of a call that stays in PyTorch
        self.written: dict[Path, Any] = {}
        self.inlined: dict[Node, list[Any]] = {}  # higher-order operators -> the outputs of their graphs
        self.captured: set[Node] = set()  # inputs of graphs inside control flow
        self.calls: tuple[ModuleCall, ...] = ()  # around the graph inside that is being executed
        self.autocast = ""  # the device type, in a block under torch.autocast
        self.untracked: torch.fx.Graph | None = None  # the block under torch.no_grad that is being executed

    def run(self) -> Graph:
        """The graph. Raises UnsupportedError naming every operator that cannot be imported, with its place."""
        for spec in self.program.graph_signature.input_specs:
            if hasattr(spec.arg, "name") and spec.kind == InputKind.CUSTOM_OBJ:
                raise UnsupportedError(f"the program takes a custom object ({spec.arg.name})")
        placeholders = {n.name: n for n in self.program.graph.find_nodes(op="placeholder")}
        for spec in self.program.graph_signature.input_specs:
            name = getattr(spec.arg, "name", None)
            if name in placeholders:
                self._bind(placeholders[name], spec)
        outputs = self._execute(self.program.graph)
        results, problems = self._results(outputs)
        if self.unsupported:
            for problem in problems:
                self.unsupported.setdefault("", {})[problem] = None
            raise Unimportable(self.unsupported)
        if problems:
            raise UnsupportedError("results of the module that cannot be imported", problems)
        if not results:
            raise UnsupportedError("the module returns no tensor, so that there is nothing to compute; return one")
        with self.op.at(Place("write")):
            for path, written in self.written.items():
                rank = len(written.shape or ())
                value = as_pairs(self.op, written, rank) if isinstance(written, Complex) else written
                self.op.add(Assign(ALWAYS), value, states={"value": self.op.stored(path, _Described(value))}, outputs=0)
        return self.op.build(results)

    def _results(self, outputs: Sequence[Any]) -> tuple[list[Value], list[str]]:
        """The tensors that the module returns, and what it returns that cannot be one. Dynamic sizes and numbers of
        `item()` are tensors of rank 0; constants are none, they are part of the structure."""
        results, problems = [], []
        for i, output in enumerate(outputs):
            if not isinstance(output, Node):
                continue
            place = Place(
                output.name, (), f"{target_name(output)} {source_line(output.meta.get('stack_trace'))}".strip()
            )
            with self.op.at(place):
                try:
                    result = self._resolved(output)
                    if isinstance(result, Complex):
                        raise UnsupportedError("complex; return torch.view_as_real of it")
                    if not isinstance(result, Value):
                        kind = _NUMBERS.get(type(result))
                        if kind is None:
                            raise UnsupportedError(f"a {type(result).__name__}; return a tensor")
                        result = self.op.named(self.op.value(result, kind), output.name, ())
                    results.append(result)
                except UnsupportedError as error:
                    problems.append(f"result {i} of the module is {error} ({place.source})")
        return results, problems

    def _bind(self, node: Node, spec: Any) -> None:
        val = node.meta.get("val")
        if spec.kind == InputKind.USER_INPUT:
            if isinstance(val, torch.Tensor):
                if val.is_complex():
                    raise UnsupportedError(
                        f"input {node.name!r} of the module is complex; give torch.view_as_real of it, and call "
                        "torch.view_as_complex inside"
                    )
                value = self.op.input(node.name, dtype_of(val.dtype), self.op.shape(val.shape))
                self.op.bind_symbols(value, val.shape)
                self.values[node] = value
            else:
                self.values[node] = val
            return
        tensor = self.tensors[spec.target]
        small = spec.kind == InputKind.CONSTANT_TENSOR and tensor.numel() <= LARGEST_CONSTANT
        if small:
            self.values[node] = each_part(lambda x: self.op.const(to_numpy(x)), _in_parts(tensor))
        else:
            self.buffers[node] = self.canonical[spec.target]
            stored = self.op.stored(self.buffers[node], _Described(real_view(tensor)))
            self.values[node] = split_pairs(self.op, stored) if tensor.is_complex() else stored

    # --- execution

    def _execute(self, graph: torch.fx.Graph) -> list[Any]:
        left_out = unneeded(graph)
        for node in graph.nodes:
            if node.op == "output":
                return list(node.args[0]) if isinstance(node.args[0], list | tuple) else [node.args[0]]
            if node.op != "call_function" or node in left_out:
                continue
            calls, line = module_calls(node) or self.calls, source_line(node.meta.get("stack_trace"))
            place = Place(node.name, calls, " ".join(w for w in (target_name(node), line) if w))
            with self.op.at(place):
                self.op.node_now = node
                self._step(node, place)
        return []

    def _step(self, node: Node, place: Place) -> None:
        name, val = target_name(node), node.meta.get("val")
        if counts_batches(node):
            self.alias[node] = node.args[0]  # type: ignore[assignment]
        elif name.startswith(_IGNORED) or isinstance(val, torch.SymInt | torch.SymFloat | torch.SymBool | int | float):
            self.values[node] = val  # sizes are lowered from their expressions where they are used
            if name == "aten.item.default" and isinstance(val, torch.SymInt | torch.SymFloat | torch.SymBool):
                self.op.bind_number(val, self._resolved(node.args[0]))
        elif node.target is operator.getitem:
            source = node.args[0]
            self.values[node] = self._resolved(source)[node.args[1]]
            if source in self.inlined:
                self.alias[node] = self.inlined[source][node.args[1]]  # type: ignore[index]
            if isinstance(source, Node) and source in self.view_of:  # a part of a split
                self.view_of[node] = source
                self.views.setdefault(source, []).append(node)
        elif self.opaque is not None and name == "interlux.opaque.default":
            self.values[node] = self.opaque(self.op, *self._arguments(node.args))
        elif (higher_order := HIGHER_ORDER.get(getattr(node.target, "__name__", name))) is not None:
            try:
                self.values[node] = self._described(higher_order(self, node), val, node.name)
            except RefusedInside:
                self._unknown(node)
            except UnsupportedError as error:
                self._refused(place, error)
                self._unknown(node)
        elif self._is_in_place(node):
            self._in_place(node, place)
        else:
            key = name.removeprefix("aten.")
            if key not in self._table(node):
                self._refuse(place, name + (" of complex tensors" if key in LOWERINGS else ""))
                self._unknown(node)
                return
            try:
                self.values[node] = self._lower(node, key)
            except UnsupportedError as error:  # collected, so that the user sees everything at once
                self._refused(place, error)
                self._unknown(node)
            self._note_view(node, key)

    def _refuse(self, place: Place, name: str) -> None:
        module = place.scope[-1].path if place.scope else "the top module"
        words = (place.scope[-1].module_class if place.scope else "", place.source.removeprefix(name).strip())
        where = ", ".join(word for word in words if word)
        self._collect(place, f"{name} in {module}" + (f" ({where})" if where else ""))

    def _refused(self, place: Place, error: UnsupportedError) -> None:
        self._collect(place, f"{place.source}: {error}" if place.source not in str(error) else str(error))

    def _collect(self, place: Place, text: str) -> None:
        self.refusals += 1
        self.unsupported.setdefault(place.scope[-1].path if place.scope else "", {})[text] = None

    def _unknown(self, node: Node) -> None:
        """A stand-in for what could not be lowered, so that the rest is examined too."""
        val = node.meta.get("val")

        def stand_in(tensor: Any) -> Any:
            if isinstance(tensor, torch.Tensor) and tensor.is_complex():
                return Complex(stand_in(tensor.real), stand_in(tensor.real))
            return (
                Value(dtype_of(tensor.dtype), self.op.shape(tensor.shape))
                if isinstance(tensor, torch.Tensor)
                else tensor
            )

        self.values[node] = tuple(map(stand_in, val)) if isinstance(val, list | tuple) else stand_in(val)

    def _table(self, node: Node) -> Mapping[str, Any]:
        return COMPLEX if is_complex(node) else LOWERINGS

    def _lower(self, node: Node, key: str) -> Any:
        args = self._arguments(node.args)
        kwargs = self._arguments({name: value for name, value in node.kwargs.items() if name not in outs(node)})
        if self.autocast:
            args, kwargs = autocast(self.op, node, (args, kwargs), self.autocast)
        try:
            result = self._table(node)[key](self.op, *args, **kwargs)
        except (TypeError, KeyError, IndexError, ValueError) as error:  # a form of the operator that has no lowering
            if isinstance(error, InvalidModelError):
                raise
            raise UnsupportedError(f"{target_name(node)} with these arguments: {error}") from error
        except GuardOnDataDependentSymNode as error:
            raise UnsupportedError(f"{target_name(node)} of sizes that depend on the data") from error
        return self._described(result, node.meta.get("val"), node.name)

    def _described(self, result: Any, val: Any, name: str) -> Any:
        """Names results and gives them the shapes that torch knows."""
        if not isinstance(result, tuple | Value | Complex):  # a number that is passed on
            return result
        if isinstance(result, Complex):
            return Complex(*(self._described(getattr(result, p), val, f"{name}.{p}") for p in ("real", "imag")))
        if isinstance(result, tuple):
            return tuple(
                self._described(r, v, f"{name}.{i}") for i, (r, v) in enumerate(zip(result, val, strict=False))
            )
        return self.op.named(result, name, self.op.shape(val.shape))

    def _resolved(self, node: Any) -> Any:
        while node in self.alias:
            node = self.alias[node]
        if node in self.stale:
            self._derive(node)
        return self.values.get(node, node)

    def _arguments(self, arguments: Any) -> Any:
        return torch.fx.node.map_arg(arguments, self._resolved)

    def resolved(self, arguments: Any) -> Any:
        """The values of nodes, in whatever nests them."""
        return self._arguments(arguments)

    # --- graphs inside

    def _inside(self, node: Node | None, graph: torch.fx.Graph) -> list[Any]:
        for i, inner in enumerate(graph.nodes, len(self.order)):
            self.order.setdefault(inner, i)
        outer = self.calls, self.op.node_now
        self.calls = module_calls(node) or self.calls if node is not None else self.calls
        try:
            return self._execute(graph)
        finally:
            self.calls, self.op.node_now = outer

    def inline(self, node: Node, module: torch.fx.GraphModule, operands: Sequence[Any]) -> list[Any]:
        """Executes a graph as if its nodes stood where the higher-order operator does. Returns its outputs' nodes."""
        for placeholder, operand in zip(module.graph.find_nodes(op="placeholder"), operands, strict=True):
            if isinstance(operand, Node):
                self.alias[placeholder] = operand
            else:
                self.values[placeholder] = operand
        self.inlined[node] = self._inside(node, module.graph)
        return self.inlined[node]

    def inline_untracked(self, node: Node, module: torch.fx.GraphModule, operands: Sequence[Any]) -> list[Any]:
        """Executes a graph as autograd does not see it: no gradient flows through what it computes, and what it writes
        to keeps the derivative that it had. Returns its outputs' nodes."""
        outer, self.untracked = self.untracked, module.graph
        try:
            outputs = self.inline(node, module, operands)
        finally:
            self.untracked = outer
        given = {self._root(operand) for operand in operands if isinstance(operand, Node)}
        for output in outputs:
            root = self._root(output) if isinstance(output, Node) else None
            if root is None or self._passed_on(root) in given:
                continue
            value = each_part(lambda x: self.op.StopGradient(x), self._resolved(root))
            self.values[root] = self._described(value, root.meta["val"], root.name)
        return outputs

    def _passed_on(self, node: Node) -> Node:
        """The tensor that operators gave back itself, where they had nothing to change."""
        while view_name(node) in PASSING and not is_complex(node) and not arguments(node).get("copy"):
            base = self._root(node.args[0])  # type: ignore[arg-type]
            if _layout(node.meta["val"]) != _layout(base.meta["val"]):
                break
            node = base
        return node

    def run_inside(self, module: torch.fx.GraphModule, operands: Sequence[Any], builder: TorchBuilder) -> list[Any]:
        """Executes a graph on values, recorded by a builder. Returns the values of its outputs."""
        outer, self.op = self.op, builder
        for placeholder, operand in zip(module.graph.find_nodes(op="placeholder"), operands, strict=True):
            self.values[placeholder] = operand
            self.captured.add(placeholder)
        before = self.refusals
        try:
            results = [self._resolved(o) for o in self._inside(outer.node_now, module.graph)]
            if self.refusals > before:
                raise RefusedInside("a graph inside cannot be imported")
            return results
        finally:
            self.op = outer

    # --- writes in place

    def _is_in_place(self, node: Node) -> bool:
        name = target_name(node).removeprefix("aten.").partition(".")[0]
        return (name.endswith("_") and not name.startswith("__")) or bool(outs(node))

    def _in_place(self, node: Node, place: Place) -> None:
        name = target_name(node).removeprefix("aten.")
        written: list[Any] = list(outs(node).values()) or [node.args[0]]
        results = node.meta["val"] if isinstance(node.meta["val"], list | tuple) else [node.meta["val"]]
        reshaped = name in _RESHAPED_IN_PLACE
        renamed = reshaped or any(
            self.op.shape(each.meta["val"].shape) != self.op.shape(result.shape)
            for each, result in zip(written, results, strict=True)
        )
        key = view_name(node) if reshaped else functional_name(node)
        if any(self._root(each) in self.captured for each in written):
            self._collect(place, f"{target_name(node)} writes to a tensor outside its branch or loop{self.op.where()}")
        elif key not in self._table(node) or name.partition(".")[0] in _MOVED_IN_PLACE:
            self._refuse(place, target_name(node))
        else:
            try:
                if renamed:
                    self._check_renaming(node, written, reshaped)
                values = self._lower(node, key)
                if renamed:  # from here on it is this node that stands for the tensor
                    self.values[node] = values
                    if reshaped:
                        self._note(node, self._root(written[0]))
                    return
                for each, value in zip(written, values if len(written) > 1 else [values], strict=True):
                    self._write(each, value, node)
            except UnsupportedError as error:
                self._refused(place, error)
        if renamed:
            self._unknown(node)
        elif len(written) > 1:
            self.values[node], self.inlined[node] = tuple(map(self._resolved, written)), written
        else:
            self.alias[node] = written[0]

    def _check_renaming(self, node: Node, written: Sequence[Node], reshaped: bool) -> None:
        """Refuses an operator that gives a tensor another shape, where that does not just rename it."""
        does = f"{target_name(node)} changes the shape of"
        for root in map(self._root, written):
            names = [root, *(alias for alias in self.alias if self._root(alias) is root)]
            if root in self.buffers:
                raise UnsupportedError(f"{does} a buffer or parameter{self.op.where()}; give another tensor its shape")
            if root.graph is not node.graph:
                raise UnsupportedError(f"{does} a tensor from outside its block{self.op.where()}; do it outside")
            if any(user.graph is node.graph and self.order[user] > self.order[node] for n in names for user in n.users):
                raise UnsupportedError(
                    f"{does} a tensor that has two names{self.op.where()}; use the one that is not in place"
                )
            if not reshaped and (root in self.view_of or root in self.views):
                raise UnsupportedError(
                    f"{does} a tensor that shares its memory{self.op.where()}; give it one of the right shape"
                )

    def _root(self, node: Node) -> Node:
        while node in self.alias:
            node = self.alias[node]
        return node

    def _note_view(self, node: Node, key: str) -> None:
        """Remembers that a node's result shares memory with its first argument, if it does or may."""
        base = node.args[0] if node.args else None
        if key in EACH_A_VIEW and isinstance(base, list | tuple):
            for each in base:
                self._note(node, self._root(each))
        if not isinstance(base, Node):
            return
        if key not in VIEWS and key not in COMPLEX_VIEWS:
            mode = NEVER if self._is_same_tensor(node, base) else self._dropout_mode(node)
            if mode == FOLLOW:  # in evaluation it gives its argument itself, in training a new tensor
                self.doubtful.add(node)
            if mode != ALWAYS:
                self._note(node, self._root(base))
            return
        if key in MAYBE_VIEWS:  # a reshape is a view or a copy, by strides
            if node.meta["val"].dtype != base.meta["val"].dtype:
                return
            if not self.fresh:
                self.doubtful.add(node)
            elif not _share_storage(node, base):
                return
        self._note(node, self._root(base))

    def _note(self, node: Node, base: Node) -> None:
        self.view_of[node] = base
        self.views.setdefault(base, []).append(node)

    def _is_same_tensor(self, node: Node, base: Node) -> bool:
        """Whether an operator that is no view gave back its argument itself."""
        val, given = node.meta.get("val"), base.meta.get("val")
        if not self.fresh or not isinstance(val, torch.Tensor) or not isinstance(given, torch.Tensor):
            return False
        return _share_storage(node, base) and _layout(val) == _layout(given)

    def _dropout_mode(self, node: Node) -> str:
        """When a dropout is active; of other operators always: they give a new tensor."""
        name = target_name(node)
        if "dropout" not in name or name not in FLAGS:
            return ALWAYS
        given = arguments(node)
        return self.op.modes.mode(node, given[FLAGS[name]]) if given["p"] else NEVER

    def _is_read_later(self, base: Node, view: Node, cause: Node) -> bool:
        """Whether a tensor is read after a write through one of its views, itself or through another view."""
        if base in self.buffers or cause not in self.order:  # blocks under no_grad are not looked through
            return True
        family, found = [base], {base}
        while family:
            for other in self.views.get(family.pop(), ()):
                if other is not view and other not in found:
                    found.add(other)
                    family.append(other)
        later = (n for n, place in self.order.items() if place > self.order[cause])
        outer = self.view_of.get(base)
        if outer is not None and self._is_read_later(outer, base, cause):
            return True
        return any(self._root(a) in found for n in later for a in n.all_input_nodes)

    def _write(self, node: Node, value: Value, cause: Node, kept: Node | None = None) -> None:
        """Gives a tensor a new value: through the view that it is also to its base, and to all other views of that."""
        node = self._root(node)
        value = each_part(self.op.read, value)
        if self.untracked not in (None, node.graph) and not target_name(cause).startswith("aten.detach_."):
            value = estimated(self.op, value, self._resolved(node))
        value = self._described(value, node.meta["val"], "")
        self.values[node] = value
        self.stale.discard(node)
        base = self.view_of.get(node)
        if base is None:
            if node in self.buffers:
                self.written[self.buffers[node]] = value
        elif node.target is operator.getitem:
            self._write_part(node, base, value, cause)
        else:
            key = view_name(node)
            writes = COMPLEX_VIEW_WRITES if is_complex(node) else VIEW_WRITES
            if node in self.doubtful:
                if self._is_read_later(base, node, cause):
                    self._cannot_follow(cause, node)
                self._outdate(node, cause, kept)
                return
            if key not in VIEWS and key not in COMPLEX_VIEWS:  # the tensor itself
                whole = value
            elif key not in writes:
                self._cannot_follow(cause, node)
            else:
                sizes = list(base.meta["val"].shape)
                rest, options = self._arguments(node.args[1:]), self._arguments(node.kwargs)
                whole = writes[key](self.op, self._resolved(base), value, sizes, *rest, **options)
            self._write(base, whole, cause, kept=node)
        self._outdate(node, cause, kept)

    def _write_part(self, node: Node, split: Node, value: Value, cause: Node) -> None:
        """Brings what was written to one part of a split to the tensor that was split."""
        key = target_name(split).removeprefix("aten.")
        if key in EACH_A_VIEW:
            bases: Any = split.args[0]
            each = self._root(bases[node.args[1]])
            form = "view.default" if key.startswith("atleast") else "expand.default"
            whole = VIEW_WRITES[form](self.op, self._resolved(each), value, list(each.meta["val"].shape))
            self._write(each, whole, cause, kept=node)
            return
        if key not in PART_WRITES:
            self._cannot_follow(cause, split)
        base = self.view_of[split]
        sizes, shapes = list(base.meta["val"].shape), [part.shape for part in split.meta["val"]]
        rest = (sizes, node.args[1], shapes, *self._arguments(split.args[1:]))
        whole = each_part(
            lambda old, part: PART_WRITES[key](self.op, key.partition(".")[0], old, part, *rest),
            self._resolved(base),
            value,
        )
        self._write(base, whole, cause, kept=node)

    def _outdate(self, node: Node, cause: Node, kept: Node | None) -> None:
        """Marks the views of a written tensor, to be derived anew if they are read again."""
        for view in self.views.get(node, ()):
            if view is kept:
                continue
            if view not in self.doubtful:
                self.stale.add(view)
                self._outdate(view, cause, kept)
            elif any(self.order[user] > self.order[cause] for user in view.users):
                self._cannot_follow(cause, view)

    def _derive(self, view: Node) -> None:
        """Derives a view anew from what its base is now."""
        self.stale.remove(view)
        outer, self.op.node_now = self.op.node_now, view
        try:
            if view.target is operator.getitem:
                self.values[view] = self._resolved(view.args[0])[view.args[1]]
            else:
                made = self._lower(view, view_name(view))
                if view_name(view) == "detach.default":  # what was computed in its place has a derivative of its own
                    made = self._described(estimated(self.op, made, self.values[view]), view.meta["val"], "")
                self.values[view] = made
        finally:
            self.op.node_now = outer

    def _cannot_follow(self, cause: Node, view: Node) -> None:
        reason = "which may be a view or a copy" if view in self.doubtful else "which cannot be followed"
        raise UnsupportedError(
            f"{target_name(cause)} writes through {target_name(view)}, {reason}{self.op.where()}; "
            "write it without the in-place operator"
            + (", or import the module instead of the .pt2" if not self.fresh else "")
        )


def _layout(tensor: torch.Tensor) -> tuple[str, ...]:
    return tuple(str(part) for part in (tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()))


def _share_storage(a: Node, b: Node) -> bool:
    if any(torch._C._functorch.is_functorch_wrapped_tensor(n.meta["val"]) for n in (a, b)):
        return False  # inside torch.vmap, which is refused
    first, second = (n.meta["val"].untyped_storage()._cdata for n in (a, b))
    return bool(first == second)


def _in_parts(tensor: torch.Tensor) -> Any:
    return Complex(tensor.real, tensor.imag) if tensor.is_complex() else tensor  # type: ignore[arg-type]


class _Described:
    """dtype and shape of a tensor or value, as numpy says them."""

    def __init__(self, tensor: Any):
        self.dtype = tensor.dtype if isinstance(tensor.dtype, np.dtype) else dtype_of(tensor.dtype)
        self.shape = tuple(tensor.shape)
