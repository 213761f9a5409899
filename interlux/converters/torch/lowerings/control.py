"""Higher-order operators: graphs inside the graph.

`cond`, `while_loop`, `scan`, `map` and `associative_scan` become layers of control flow, whose graphs take what they
use of the surrounding graph, weights included, as captured values. The others only say how a part of the graph is
executed (without gradients, with autocast, recomputed, compiled once): their graphs are inlined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ....ir.errors import UnsupportedError
from ....ir.layer import NEVER, Layer
from ....ir.layers import If, Loop, Scan
from ....ir.layers.control import Control
from ....ir.layers.random import Dropout
from ....ir.trees import is_float
from ...bodies import BodyBuilder
from ...builder import Value
from ..arrays import dtype_of
from ..builder import OwnStates, TorchBuilder
from ..complex import Complex, parts
from .registry import LOWERINGS

if TYPE_CHECKING:
    from ..importer import ProgramImporter

Node = torch.fx.Node
HigherOrder = Callable[["ProgramImporter", Node], Any]
HIGHER_ORDER: dict[str, HigherOrder] = {}


def higher_order(*names: str) -> Callable[[HigherOrder], HigherOrder]:
    """Enters the import of higher-order operators: a function of the importer and the node, which returns the node's
    value."""

    def enter(function: HigherOrder) -> HigherOrder:
        HIGHER_ORDER.update(dict.fromkeys(names, function))
        return function

    return enter


def graph_in(argument: Any) -> torch.fx.GraphModule:
    """The graph that an argument of a higher-order operator names."""
    if not isinstance(argument, Node) or argument.op != "get_attr":
        raise UnsupportedError(f"a higher-order operator whose graph is {argument!r}")
    found: Any = argument.graph.owning_module
    for name in str(argument.target).split("."):
        found = getattr(found, name)
    if not isinstance(found, torch.fx.GraphModule):
        raise UnsupportedError(f"a higher-order operator whose graph is a {type(found).__name__}")
    return found


class TorchBody(BodyBuilder, TorchBuilder):
    """Records a graph inside that of an exported program.

    Arguments:
        outer: the builder of the graph around it.
    """

    def __init__(self, outer: TorchBuilder):
        # what BodyBuilder sets up, on the base that TorchBuilder needs
        TorchBuilder.__init__(self, outer.dim_names, outer.modes, {}, OwnStates(""))
        self._outer: TorchBuilder = outer
        self.captured: dict[Value, Value] = {}
        self._place = outer._place

    def read(self, value: Value) -> Value:
        """Stored arrays are read outside: graphs inside hold none."""
        return value if value.path is None else self.capture(self._outer.read(value))

    def _expr(self, expr: Any) -> Value:
        own = {*self._symbols, *self._sizes}
        if own.isdisjoint(str(s) for s in expr.free_symbols):
            return self.capture(self._outer._expr(expr))
        return super()._expr(expr)

    def add(
        self,
        layer: Layer,
        *inputs: Value | None,
        params: Mapping[str, Value | None] | None = None,
        states: Mapping[str, Value | None] | None = None,
        outputs: int = 1,
        dtype: Any = None,
    ) -> Any:
        bound = {slot: v for slot, v in {**(params or {}), **(states or {})}.items() if v is not None}
        mode = getattr(layer, "mode", None)
        if isinstance(layer, Dropout) and mode == NEVER:
            return self.Identity(inputs[0])
        if not bound:
            return super().add(layer, *inputs, outputs=outputs, dtype=dtype)
        if states and any(v is not None for v in states.values()) and mode != NEVER:
            raise UnsupportedError(
                f"{type(layer).__name__} inside a branch or loop in training: it would have to write to its states "
                f"there{self.where()}; move it out, or import the module's evaluation"
            )
        values = {slot: self.read(v) for slot, v in bound.items()}
        result, _ = layer.forward(
            self, values, values, *(None if i is None else self.read(i) for i in inputs), train=False
        )
        return result

    def bound(self, operand: Any) -> Any:
        """An operand of the operator around this graph, as this graph knows it; sizes are the same everywhere."""
        if isinstance(operand, Complex):
            return Complex(self.bound(operand.real), self.bound(operand.imag))
        return self.capture(self._outer.read(operand)) if isinstance(operand, Value) else operand

    def formal(self, name: str, example: torch.Tensor) -> Any:
        """An input of this graph."""
        if not isinstance(example, torch.Tensor):
            raise UnsupportedError(f"a loop that carries a number ({example}); carry a tensor{self.where()}")
        if example.is_complex():
            return Complex(self.formal(f"{name}.real", example.real), self.formal(f"{name}.imag", example.real))
        return self.input(name, dtype_of(example.dtype), self.shape(example.shape))


def _examples(module: torch.fx.GraphModule) -> list[Any]:
    """torch's descriptions of a graph's inputs."""
    return [n.meta.get("val") for n in module.graph.find_nodes(op="placeholder")]


def _tensors(op: TorchBuilder, operator: str, values: Sequence[Any]) -> list[Value]:
    """The values of a graph's results, all of which must be tensors; a complex one is two."""
    for value in values:
        if not isinstance(value, Value | Complex):
            raise UnsupportedError(f"{operator} that carries or returns a number ({value}); use a tensor{op.where()}")
    return parts(values)


def _recorded(
    importer: ProgramImporter, node: Node, layer: Control, inputs: Sequence[Value | None], captured: Sequence[Value]
) -> tuple[Any, ...]:
    """A layer of control flow with the outputs that torch says it has."""
    made = importer.op.add(layer, *inputs, *captured, outputs=layer.outputs)
    values = list(made) if isinstance(made, tuple) else [made]
    results, examples = [], [v for v in node.meta["val"] if v is not None]
    for example in examples:
        count = 2 if example.is_complex() else 1
        own, values = values[:count], values[count:]
        for value in own:
            value.dtype = dtype_of(example.real.dtype if example.is_complex() else example.dtype)
        results.append(Complex(*own) if example.is_complex() else own[0])
    return tuple(results)


@higher_order("cond")
def cond(importer: ProgramImporter, node: Node) -> Any:
    """torch.cond(condition, true, false, operands)."""
    condition, *graphs, operands = node.args
    op = importer.op
    given = importer.resolved(operands)
    branches = []
    for graph in graphs:
        body = TorchBody(op)
        results = importer.run_inside(graph_in(graph), [body.bound(v) for v in given], body)
        branches.append((body, _tensors(op, "torch.cond", results)))
    (then, then_made), (other, other_made) = branches
    captured = list(dict.fromkeys((*then.captured, *other.captured)))
    layer = If(then.body(then_made, captured), other.body(other_made, captured))
    return _recorded(importer, node, layer, [op.value(importer.resolved(condition))], captured)


@higher_order("while_loop")
def while_loop(importer: ProgramImporter, node: Node) -> Any:
    """torch.while_loop(condition, body, carried, additional inputs)."""
    test, step = (graph_in(a) for a in node.args[:2])
    start, extra = (list(importer.resolved(a)) for a in (*node.args[2:], ())[:2])
    op = importer.op
    _tensors(op, "torch.while_loop", start)
    (going,) = importer.run_inside(test, [*start, *extra], op)
    body = TorchBody(op)
    body.input("turn", np.int64, ())
    body.input("going", bool, ())
    examples = _examples(step)[: len(start)]
    carried = [body.formal(f"carried.{i}", example) for i, example in enumerate(examples)]
    captured = [body.bound(v) for v in extra]
    following = importer.run_inside(step, [*carried, *captured], body)
    (further,) = importer.run_inside(test, [*following, *captured], body)
    results = _tensors(op, "torch.while_loop", following)
    outside = list(body.captured)
    layer = Loop(body.body([body.value(further, bool), *results], outside), len(results))
    return _recorded(importer, node, layer, [None, op.value(going, bool), *parts(start)], outside)


def _scanned(
    importer: ProgramImporter, node: Node, graph: Any, start: Sequence[Any], rows: Sequence[Any], extra: Sequence[Any]
) -> tuple[Layer, list[Value], list[Value]]:
    """A Scan over the first axis, its own inputs and the captured ones."""
    module, op = graph_in(graph), importer.op
    _tensors(op, str(node.target), [*start, *rows])
    if not rows:
        raise UnsupportedError(f"{node.target} over no tensors{op.where()}")
    body = TorchBody(op)
    examples = _examples(module)[: len(start) + len(rows)]
    formals = [body.formal(f"carried.{i}", e) for i, e in enumerate(examples[: len(start)])]
    formals += [body.formal(f"row.{i}", e) for i, e in enumerate(examples[len(start) :])]
    results = importer.run_inside(module, [*formals, *(body.bound(v) for v in extra)], body)
    made = _tensors(op, str(node.target), results)
    captured = list(body.captured)
    own = parts([*start, *rows])
    return Scan(body.body(made, captured), len(parts(rows)), captured=len(captured)), own, captured


@higher_order("scan")
def scan(importer: ProgramImporter, node: Node) -> Any:
    """scan(body, initial values, scanned tensors, additional inputs) along axis 0."""
    graph, *rest = node.args
    start, rows, extra = (list(importer.resolved(a)) for a in rest)
    layer, own, captured = _scanned(importer, node, graph, start, rows, extra)
    return _recorded(importer, node, layer, own, captured)  # type: ignore[arg-type]


@higher_order("map_impl")
def map_(importer: ProgramImporter, node: Node) -> Any:
    """map(body, mapped tensors, other arguments): the body for every row."""
    graph, rows, extra = node.args
    layer, own, captured = _scanned(importer, node, graph, [], importer.resolved(rows), importer.resolved(extra))
    return _recorded(importer, node, layer, own, captured)  # type: ignore[arg-type]


@higher_order("associative_scan")
def associative_scan(importer: ProgramImporter, node: Node) -> Any:
    """Running combinations along axis 0: the first row, and each next one combined with what came before."""
    graph, rows, extra = (*node.args, ())[:3]
    tensors, op = list(importer.resolved(rows)), importer.op
    if any(isinstance(t, Complex) for t in tensors):
        raise UnsupportedError(f"associative_scan of complex tensors{op.where()}")
    first = [op.Gather(t, op.value(0), axis=0) for t in tensors]
    for value, example in zip(first, node.meta["val"], strict=True):
        value.shape = op.shape(example.shape[1:])
    module = graph_in(graph)
    body = TorchBody(op)
    formals = [
        body.formal(f"{word}.{i}", example[0])
        for word in ("carried", "row")
        for i, example in enumerate(node.meta["val"])
    ]
    results = importer.run_inside(module, [*formals, *(body.bound(v) for v in importer.resolved(extra))], body)
    captured = list(body.captured)
    again = [body.Identity(r) for r in results]  # carried on, and an element of the output
    later = [op.Slice(t, op.ints(1), op.ints(2**63 - 1), op.ints(0)) for t in tensors]
    layer = Scan(body.body([*results, *again], captured), len(tensors), captured=len(captured))
    made = op.add(layer, *first, *later, *captured, outputs=layer.outputs)[len(tensors) :]
    for value, tensor in zip(made, tensors, strict=True):
        value.dtype = tensor.dtype
    return tuple(
        op.Concat(op.Unsqueeze(start, op.ints(0)), rest, axis=0) for start, rest in zip(first, made, strict=True)
    )


# --- inlined


def _inlined(importer: ProgramImporter, node: Node, graph: Any, operands: Sequence[Any]) -> Any:
    outputs = importer.inline(node, graph_in(graph), operands)
    results = tuple(importer.resolved(o) for o in outputs)
    return results if isinstance(node.meta["val"], list | tuple) else results[0]


@higher_order("wrap", "tag_activation_checkpoint", "wrap_activation_checkpoint")
def wrap(importer: ProgramImporter, node: Node) -> Any:
    """wrap(graph, *operands): what is computed does not depend on when it is recomputed."""
    graph, *operands = node.args
    return _inlined(importer, node, graph, operands)


@higher_order("invoke_subgraph")
def invoke_subgraph(importer: ProgramImporter, node: Node) -> Any:
    """invoke_subgraph(graph, identifier, *operands)."""
    graph, _, *operands = node.args
    return _inlined(importer, node, graph, operands)


@higher_order("hints_wrapper")
def hints_wrapper(importer: ProgramImporter, node: Node) -> Any:
    """hints_wrapper(graph, operands, keywords, hints=…): hints for a compiler."""
    graph, operands, keywords = node.args[:3]
    if keywords:
        raise UnsupportedError(f"hints_wrapper with keyword arguments{importer.op.where()}")
    return _inlined(importer, node, graph, operands)  # type: ignore[arg-type]


@higher_order("wrap_with_set_grad_enabled")
def set_grad_enabled(importer: ProgramImporter, node: Node) -> Any:
    """A block under torch.no_grad (or enable_grad): its results have no gradient, what it writes to keeps its own."""
    enabled, graph, *operands = node.args
    inline = importer.inline if enabled else importer.inline_untracked
    outputs = inline(node, graph_in(graph), operands)
    return tuple(importer.resolved(o) for o in outputs)


@higher_order("wrap_with_autocast")
def wrap_with_autocast(importer: ProgramImporter, node: Node) -> Any:
    """A block under torch.autocast. The casts are not in the graph: they happen as its operators are dispatched."""
    device, _, enabled, _, graph, *operands = node.args
    outer, importer.autocast = importer.autocast, str(device) if enabled else ""
    try:
        return _inlined(importer, node, graph, operands)
    finally:
        importer.autocast = outer


# composed operators: torch casts what they are composed of
_OF_PRODUCTS = frozenset(("einsum", "inner", "tensordot", "bilinear", "chain_matmul", "linalg_multi_dot"))
_CAST = frozenset(("to", "type_as", "_to_copy", "float", "half", "bfloat16", "double", "copy_", "copy", "view"))


def autocast(op: TorchBuilder, node: Node, arguments: Any, device: str) -> Any:
    """Arguments of an operator as autocast gives them: floating-point tensors, other than float64, in the dtype that
    its list (lower precision, float32, the widest) prescribes, which is that of its result."""
    target: Any = node.target
    schema = target._schema
    name = f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name
    results = node.meta["val"]
    found = [t for t in (results if isinstance(results, list | tuple) else [results]) if isinstance(t, torch.Tensor)]
    kinds = [dtype_of(t.real.dtype if t.is_complex() else t.dtype) for t in found]
    wanted = next((kind for kind in kinds if is_float(kind)), None)
    if wanted is None or wanted == np.float64:
        return arguments
    listed = torch._C._dispatch_has_kernel_for_dispatch_key(name, f"Autocast{device.upper()}")
    operation = schema.name.partition("::")[2]
    if not listed and operation not in _OF_PRODUCTS:
        given = [v.dtype for v in torch.utils._pytree.tree_leaves(arguments) if isinstance(v, Value)]
        floats = {kind for kind in given if is_float(kind)}
        explicit = operation in _CAST or any(isinstance(a, torch.dtype) for a in (*node.args, *node.kwargs.values()))
        if floats and wanted not in floats and not explicit:
            raise UnsupportedError(f"{target} under autocast: it is composed of operators that are cast{op.where()}")
        return arguments

    def cast(x: Any) -> Any:
        narrow = isinstance(x, Value) and is_float(x.dtype) and x.dtype != np.float64
        return op.cast(x, wanted) if narrow else x

    return torch.utils._pytree.tree_map(cast, arguments)


# --- attention with functions of scores

_POINTWISE = frozenset(
    (
        *("add", "sub", "rsub", "mul", "div", "true_divide", "floor_divide", "remainder", "fmod", "neg", "abs", "sign"),
        *("pow", "exp", "log", "log2", "log1p", "exp2", "sqrt", "rsqrt", "square", "reciprocal", "tanh", "sigmoid"),
        *("sin", "cos", "relu", "gelu", "silu", "softplus", "erf", "floor", "ceil", "round", "trunc"),
        *("eq", "ne", "lt", "le", "gt", "ge", "where", "masked_fill", "maximum", "minimum", "clamp", "clamp_min"),
        *("clamp_max", "logical_and", "logical_or", "logical_not", "logical_xor", "bitwise_and", "bitwise_or"),
        *("bitwise_xor", "bitwise_not", "__and__", "__or__", "__xor__", "to", "_to_copy", "scalar_tensor", "full"),
        *("full_like", "zeros_like", "ones_like", "new_ones", "new_zeros", "new_full", "clone", "alias", "detach"),
        *("lift_fresh_copy", "lift_fresh", "isnan"),
    )
)


def _indexed(op: TorchBuilder, buffer: Value, sizes: Sequence[Any], indices: Sequence[Any]) -> Value:
    """Elements of a buffer at indices that broadcast against each other, one for each axis. Negative ones count from
    the end."""
    given, rank = len(indices), len(sizes)
    if given != rank:
        raise UnsupportedError(f"flex_attention that indexes {given} of a buffer's {rank} axes at a time{op.where()}")
    place: Value | None = None
    for index, size in zip(indices, sizes, strict=True):
        extent, at = op.value(size, np.int64), op.value(index, np.int64)
        at = op.Where(op.Less(at, op.value(0, np.int64)), op.Add(at, extent), at)
        place = at if place is None else op.Add(op.Mul(place, extent), at)
    return op.Gather(op.Reshape(buffer, op.ints(-1)), place, axis=0)


def _function_of_scores(importer: ProgramImporter, module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
    """The result of a score_mod or mask_mod, written for one score, on arrays that broadcast."""
    op, outer = importer.op, importer.op.node_now
    values: dict[Node, Any] = dict(zip(module.graph.find_nodes(op="placeholder"), inputs, strict=True))
    for node in module.graph.nodes:
        if node.op == "output":
            result = node.args[0]
            op.node_now = outer
            return values[result[0] if isinstance(result, list | tuple) else result]
        if node.op != "call_function" or str(node.target).startswith(("aten._assert", "aten.sym_")):
            continue
        name = str(node.target)
        args = torch.fx.node.map_arg(node.args, lambda n: values.get(n, n))
        kwargs = torch.fx.node.map_arg(node.kwargs, lambda n: values.get(n, n))
        key = name.removeprefix("aten.")
        op.node_now = node
        if name == "flat_apply" and str(node.args[2]).endswith("ModIndex"):
            values[node] = _indexed(op, args[3], node.args[3].meta["val"].shape, args[4:])
        elif key == "index.Tensor":
            values[node] = _indexed(op, args[0], node.args[0].meta["val"].shape, args[1])
        elif key.partition(".")[0] in _POINTWISE and key in LOWERINGS:
            values[node] = LOWERINGS[key](op, *args, **kwargs)
        else:
            raise UnsupportedError(f"flex_attention with {name} in its score_mod or mask_mod{op.where()}")
    raise UnsupportedError(f"flex_attention whose function has no result{op.where()}")


@higher_order("flex_attention")
def flex_attention(importer: ProgramImporter, node: Node) -> tuple[Value, Value, Value]:
    """Attention whose scores pass through a function. The blocks of a block mask say what may be skipped, its function
    what is masked: the latter decides.

    q [batch, heads, m, e], k [batch or 1, heads / g, n, e], v [batch or 1, heads / g, n, f].
    """
    query, key, value, score_mod, blocks, scale, _, score_extra, mask_extra = node.args
    op = importer.op
    q, k, v = (importer.resolved(t) for t in (query, key, value))
    sizes = [list(t.meta["val"].shape) for t in (query, key, value)]  # type: ignore[union-attr]
    groups = sizes[0][1] // sizes[1][1]
    if not isinstance(groups, int):
        raise UnsupportedError(f"flex_attention with a dynamic number of heads{op.where()}")
    k, v = (_repeated(op, t, s, groups) for t, s in ((k, sizes[1]), (v, sizes[2])))
    wide = np.dtype(np.float64 if q.dtype == np.float64 else np.float32)
    scores = op.MatMul(op.cast(q, wide), op.Transpose(op.cast(k, wide), perm=(0, 1, 3, 2)))
    scores = op.Mul(scores, op.const(np.array(scale, wide)))
    places = []
    for axis, size in enumerate((*sizes[0][:3], sizes[1][2])):
        numbers = op.Range(*(op.value(n, np.int32) for n in (0, size, 1)))
        places.append(op.Reshape(numbers, op.ints(*(-1 if i == axis else 1 for i in range(4)))))
    mask_mod = blocks[-1]  # type: ignore[index]
    allowed = _function_of_scores(importer, graph_in(mask_mod), [*places, *importer.resolved(mask_extra)])
    changed = _function_of_scores(importer, graph_in(score_mod), [scores, *places, *importer.resolved(score_extra)])
    low = op.const(np.array(-np.inf, wide))
    scores = op.Where(op.value(allowed, bool), op.value(changed, wide), low)
    most = op.ReduceMax(scores, op.ints(3), keepdims=1)
    nothing = op.Equal(most, low)  # a row that is masked as a whole attends to nothing
    safe = op.Where(nothing, op.const(np.array(0, wide)), scores)
    weights = op.Where(nothing, op.const(np.array(0, wide)), op.Softmax(safe, axis=-1))
    total = op.Where(nothing, low, op.ReduceLogSumExp(safe, op.ints(3), keepdims=1))
    made = op.MatMul(op.cast(weights, q.dtype), op.cast(v, q.dtype))
    log2 = op.const(np.array(np.log(2.0), wide))
    return made, *(op.Squeeze(op.Div(x, log2), op.ints(3)) for x in (total, most))


def _repeated(op: TorchBuilder, x: Value, sizes: Sequence[Any], times: int) -> Value:
    """x with each head (axis 1) repeated."""
    if times == 1:
        return x
    spread = op.Expand(op.Unsqueeze(x, op.ints(2)), op.ints(1, 1, times, 1, 1))
    return op.reshape(spread, [sizes[0], sizes[1] * times, *sizes[2:]])


_CREATED = ("aten.new_zeros.", "aten.zeros.", "aten.new_empty.", "aten.empty.", "aten.zeros_like.", "aten.new_ones.")
_BOOKKEEPING = ("aten._assert", "<function lazy_load", "<function _vmap_")


def unneeded(graph: torch.fx.Graph) -> set[Node]:
    """The nodes that only make the blocks of flex_attention's masks, which say what may be skipped, not what is
    computed. They are traced through vmap, in operators that exist nowhere else."""
    if not any(str(n.target) == "flex_attention" for n in graph.nodes):
        return set()
    writers: dict[Node, list[Node]] = {}  # tensors that were made here -> what writes to them
    needed: set[Node] = set()
    waiting: list[Node] = []
    for node in graph.nodes:
        name = str(node.target)
        written = name.startswith("aten.") and name.split(".")[1].endswith("_") and not name.startswith("aten.__")
        base = node.args[0] if node.args else None
        if written and isinstance(base, Node) and str(base.target).startswith(_CREATED):
            writers.setdefault(base, []).append(node)
        elif written or node.op == "output" or (node.meta.get("val") is None and not name.startswith(_BOOKKEEPING)):
            waiting.append(node)
    while waiting:
        node = waiting.pop()
        if node in needed:
            continue
        needed.add(node)
        waiting += writers.get(node, [])
        blocks = str(node.target) == "flex_attention"
        args: list[Any] = [a[-1] if blocks and i == 4 else a for i, a in enumerate(node.args)]  # type: ignore[index]
        waiting += _nodes_in([args, dict(node.kwargs)])
    return {n for n in graph.nodes if n.op == "call_function" and n not in needed}


def _nodes_in(argument: Any) -> list[Node]:
    found: list[Node] = []
    torch.fx.node.map_arg(argument, found.append)
    return found


# --- the others


@higher_order("out_dtype")
def out_dtype(importer: ProgramImporter, node: Node) -> Value:
    """out_dtype(operator, dtype, *arguments): the operator computed on arguments of the promoted dtype."""
    operation, dtype, *operands = node.args
    op = importer.op
    result = dtype_of(dtype)  # type: ignore[arg-type]
    values = [importer.resolved(o) for o in operands]
    tensors = [v for v in values if isinstance(v, Value)]
    kinds = {"aten.mm.default": "MatMul", "aten.matmul.default": "MatMul", "aten.bmm.default": "MatMul"}
    kinds |= {"aten.mul.Tensor": "Mul", "aten.add.Tensor": "Add", "aten.sub.Tensor": "Sub"}
    if str(operation) not in kinds or len(tensors) != 2 or len(values) != 2:
        raise UnsupportedError(f"out_dtype of {operation}{op.where()}")
    given = [torch.empty((), dtype=o.meta["val"].dtype) for o in operands]  # type: ignore[union-attr]
    both = torch.promote_types(given[0].dtype, given[1].dtype)
    promoted = dtype_of(torch.promote_types(both, dtype))  # type: ignore[arg-type]
    x, y = (op.cast(t, promoted) for t in tensors)
    return op.cast(op.primitive(kinds[str(operation)], (x, y), {}), result)


@higher_order("_add_batch_dim", "_remove_batch_dim", "_vmap_increment_nesting", "_vmap_decrement_nesting")
def vmap(importer: ProgramImporter, node: Node) -> Any:
    raise UnsupportedError("torch.vmap inside the module's forward; write it for the whole batch")


@higher_order("lazy_load_decompositions")
def lazy_load(importer: ProgramImporter, node: Node) -> Any:
    """What torch.vmap starts with."""
    return None


@higher_order("auto_functionalized", "auto_functionalized_v2")
def auto_functionalized(importer: ProgramImporter, node: Node) -> Any:
    raise UnsupportedError(
        f"the custom operator {node.args[0]}, which writes to its arguments; only PyTorch's own operators can be "
        f"imported{importer.op.where()}"
    )
