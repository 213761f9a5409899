"""Higher-order operators of PyTorch: control flow, blocks that are inlined, flex_attention."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._higher_order_ops.associative_scan import associative_scan_op
from torch._higher_order_ops.map import map as torch_map
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

import interlux as ix
from interlux.ir.layers import If, Loop, Scan
from tests.helpers import Calls, check_outputs
from tests.torch_cases import Inputs, check_layer, check_layer_in_training, check_operator


def rows(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(b, 4),)


def sequences(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(b, 5, 4),)


class Parts(nn.Module):
    """A module whose forward is a function of itself, with two layers."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(4)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def both(m: Parts, x: torch.Tensor) -> Any:
    return torch.cond(x.sum() > 0, lambda x: (m.first(x), x + 1), lambda x: (x * 2, m.second(x) - x), (x,))


def nested(m: Parts, x: torch.Tensor) -> Any:
    def positive(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.mean() > 0.3, lambda x: m.first(x), lambda x: x.sin() * m.second.bias, (x,))

    return torch.cond(x.sum() > 0, positive, lambda x: x.new_zeros(x.shape[0], 4), (x,))


def captured(m: Parts, x: torch.Tensor) -> Any:
    y = m.first(x)
    return torch.cond(x[0, 0] > 0, lambda a: a * y + m.second.weight[0], lambda a: (a - y).tanh(), (x,)) + y


def looped(m: Parts, x: torch.Tensor) -> Any:
    return while_loop(
        lambda i, y: (i < 6) & (y.abs().sum() < 300), lambda i, y: (i + 1, m.first(y).abs() + y), (torch.tensor(0), x)
    )


def loop_in_branch(m: Parts, x: torch.Tensor) -> Any:
    def run(x: torch.Tensor) -> torch.Tensor:
        return while_loop(
            lambda i, y: i < 3, lambda i, y: (i + 1, m.first(y)), (torch.zeros((), dtype=torch.int64), x)
        )[1]

    return torch.cond(x.sum() > 0, run, lambda x: x.clone(), (x,))


def recurrent(m: Parts, x: torch.Tensor) -> Any:
    return scan(lambda c, a: (m.first(c).tanh() + a, c * a), x[:, 0] * 0.5, x, dim=1)


def backwards(m: Parts, x: torch.Tensor) -> Any:
    return scan(lambda c, a: (m.first(c).tanh() + a, c * a), x[:, 0] * 0.5, x, dim=1, reverse=True)


def two_carried(m: Parts, x: torch.Tensor) -> Any:
    start = (x[:, 0] * 0.5, x[:, 1] + 1)
    steps = (x.transpose(0, 1), x.flip(1).transpose(0, 1))
    return scan(
        lambda c, a: ((m.first(c[0]) + a[1], c[1] * 0.5 + a[0]), (c[0] * a[0], (c[1] - a[1]).relu())), start, steps
    )


def branch_in_scan(m: Parts, x: torch.Tensor) -> Any:
    def step(c: torch.Tensor, a: torch.Tensor) -> Any:
        new = torch.cond(a.sum() > 0, lambda c, a: m.first(c) + a, lambda c, a: c - a, (c, a))
        return new, new * 2

    return scan(step, x[:, 0] * 0.5, x.transpose(0, 1))


def mapped(m: Parts, x: torch.Tensor) -> Any:
    return torch_map(lambda a, y: m.first(a) * y, x, m.second.bias * 2)


CONTROL: dict[str, tuple[Callable[..., Any], Inputs]] = {
    "cond": (both, rows),
    "cond by a size": (lambda m, x: torch.cond(x.shape[0] > 2, lambda x: m.first(x), lambda x: x * 2, (x,)), rows),
    "cond in a branch": (nested, rows),
    "cond with captured values": (captured, rows),
    "evaluated layers in a branch": (
        lambda m, x: torch.cond(x.sum() > 0, lambda x: m.norm(m.drop(m.first(x))), lambda x: m.second(x), (x,)),
        rows,
    ),
    "while_loop": (looped, rows),
    "while_loop in a branch": (loop_in_branch, rows),
    "scan": (recurrent, sequences),
    "scan from the end": (backwards, sequences),
    "scan of several": (two_carried, sequences),
    "cond in a scan": (branch_in_scan, sequences),
    "map": (mapped, rows),
    "map of matrices": (mapped, sequences),
}


@pytest.mark.parametrize("name", CONTROL)
def test_control_flow(name):
    function, inputs = CONTROL[name]
    check_layer(lambda: Parts(function), inputs, (3, 2, 4))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, of captured tensors
@pytest.mark.parametrize(
    "name",
    [
        *("cond", "cond by a size", "cond in a branch", "cond with captured values", "scan", "scan from the end"),
        *("scan of several", "cond in a scan", "map"),
    ],
)
def test_gradients_of_control_flow(name):
    function, inputs = CONTROL[name]
    check_layer_in_training(lambda: Parts(function), inputs)


@pytest.mark.parametrize(
    ("function", "layer"), [(both, If), (nested, If), (looped, Loop), (recurrent, Scan), (mapped, Scan)]
)
def test_the_layers_of_control_flow(function, layer):
    inputs = sequences(3) if function is recurrent else rows(3)
    model = ix.from_torch(Parts(function).eval(), inputs)
    found = ix.ir.graph.graph_of(model.layer)
    assert [type(n.layer) for n in found.nodes if isinstance(n.layer, If | Loop | Scan)] == [layer]
    graphs = [g for n in found.nodes if isinstance(n.layer, layer) for _, g in n.layer.graphs()]
    assert not any(node.params or node.states for g in graphs for node in g.nodes)


def test_complex_values_in_branches_and_loops():
    def turned(m: Any, x: torch.Tensor) -> torch.Tensor:
        z = torch.fft.fft(x)
        z = torch.cond(x.sum() > 0, lambda z: z * 1j, lambda z: z.conj().resolve_conj() + 1, (z,))
        return torch.view_as_real(scan(lambda c, a: (c * a, c + a), z[:, 0].contiguous(), z, dim=1)[1])

    check_operator(turned, sequences)


def test_what_the_module_does_in_training_only_stays_in_its_branch():
    def scaled(m: Parts, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda x: m.first(x) * (2 if m.training else 3), lambda x: m.second(x), (x,))

    check_layer(lambda: Parts(scaled), rows)
    check_layer_in_training(lambda: Parts(scaled), rows)


def test_dropout_in_a_branch_is_for_evaluation_only():
    def dropped(m: Parts, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda x: m.drop(m.first(x)), lambda x: m.second(x), (x,))

    module = Parts(dropped)
    model = ix.from_torch(module, rows(3))
    assert "Dropout inside a branch or loop in training" in model.notes[0]
    check_outputs(module.eval(), model, rows(2))
    with pytest.raises(ix.UnsupportedError, match="evaluation only"):
        model.layer.apply(model.params, model.states, rows(3)[0].numpy(), train=True)


def test_what_is_refused_inside_a_branch_is_named():
    function = Calls(
        lambda m, x: torch.cond(x.sum() > 0, lambda x: torch.fft.fft(x).tanh().abs(), lambda x: x * 2, (x,))
    )
    with pytest.raises(ix.UnsupportedError, match=r"aten\.tanh\.default of complex tensors"):
        ix.from_torch(function, rows(3))


def test_a_loop_that_carries_a_number_is_refused():
    counted = Calls(lambda m, x: while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 2), (0, x))[1])
    with pytest.raises(ix.UnsupportedError, match="carries or returns a number"):
        ix.from_torch(counted, rows(3), None)


def test_vmap_is_refused():
    with pytest.raises(ix.UnsupportedError, match=r"torch\.vmap inside the module's forward"):
        ix.from_torch(Calls(lambda m, x: torch.vmap(lambda row: row.sum())(x)), rows(3))


def test_associative_scan_of_the_operator_itself():
    """torch.associative_scan reaches the operator on a GPU only: elsewhere it is traced in steps."""

    class Running(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x

    program = torch.export.export(Running(), (torch.randn(5, 3),), strict=False)
    graph = program.graph
    (x,) = (n for n in graph.nodes if n.op == "placeholder")
    combine = torch.fx.Graph()
    a, b = (combine.placeholder(name) for name in ("a", "b"))
    for node in (a, b):
        node.meta["val"] = x.meta["val"][0]
    product = combine.call_function(torch.ops.aten.mul.Tensor, (a, b))
    product.meta["val"] = a.meta["val"]
    combine.output([product])
    program.graph_module.add_module("combine", torch.fx.GraphModule(nn.Module(), combine))
    (output,) = (n for n in graph.nodes if n.op == "output")
    with graph.inserting_before(output):
        inner = graph.get_attr("combine")
        found = graph.call_function(associative_scan_op, (inner, [x], ()))
        found.meta["val"] = [x.meta["val"]]
        first = graph.call_function(operator.getitem, (found, 0))
        first.meta["val"] = x.meta["val"]
    output.args = ((first,),)
    program.graph_signature.output_specs[0].arg = type(program.graph_signature.output_specs[0].arg)(name=first.name)
    model = ix.from_torch(program)
    given = torch.randn(5, 3)
    for backend in ("jax", "onnxruntime"):
        (y,) = ix.compile(model, backend).run([given.numpy()])
        torch.testing.assert_close(torch.from_numpy(y.copy()), given.cumprod(0))


# --- inlined


def autocast(m: Parts, x: torch.Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.float16):
        y = m.first(x) * 2
        return y, torch.einsum("bi,bj->bij", y, x), torch.cat([y, x], -1), torch.softmax(y, -1), x @ m.second.weight


def autocast_in_parts(m: Parts, x: torch.Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.relu(m.first(x))
        with torch.autocast("cpu", enabled=False):
            exact = m.second(y.float())
        return y.float(), exact, nn.functional.mse_loss(y, x)


def without_gradient(m: Parts, x: torch.Tensor) -> Any:
    with torch.no_grad():
        y = m.first(x)
        flat = y.view(-1)
    flat.add_(1)  # through a view made inside
    return m.second(y) * x


def with_gradient(m: Parts, x: torch.Tensor) -> Any:
    with torch.no_grad():
        y = m.first(x)
        with torch.enable_grad():
            z = m.second(x) * 2
    return y + z


INLINED: dict[str, Callable[..., Any]] = {
    "no_grad": without_gradient,
    "enable_grad": with_gradient,
    "checkpoint": lambda m, x: checkpoint(lambda y: m.first(y).tanh(), x, use_reentrant=False),
    "normalised without gradient": lambda m, x: torch.no_grad()(lambda y: m.norm(m.first(y)))(x) + m.second(x),
}


@pytest.mark.parametrize("name", INLINED)
def test_inlined_blocks(name):
    check_layer(lambda: Parts(INLINED[name]), rows)
    check_layer_in_training(lambda: Parts(INLINED[name]), rows)


def test_autocast_casts_what_torch_casts():
    check_layer(lambda: Parts(autocast), rows)


def test_autocast_to_bfloat16():
    module = Parts(autocast_in_parts).eval()
    model = ix.from_torch(module, rows(3))
    for batch in (3, 2):
        check_outputs(module, model, rows(batch), backends=("jax",))  # onnxruntime has no kernels for it


def test_batches_are_counted_once_under_autocast():
    def normalised(m: Parts, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            return m.norm(x)

    module = Parts(normalised)
    model = ix.from_torch(module, rows(3))
    _, new = model.layer.apply(model.params, model.states, rows(3)[0].numpy(), train=True)
    assert int(new["norm"]["num_batches_tracked"]) == 1


# --- flex_attention


def heads(b: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(b, 4, 5, 8) for _ in range(3))


def grouped_heads(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 4, 5, 8), torch.randn(b, 2, 7, 8), torch.randn(b, 2, 7, 6)


class Attends(nn.Module):
    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function
        self.slope = nn.Parameter(torch.randn(4))
        self.relative = nn.Parameter(torch.randn(4, 9))
        self.register_buffer("document", torch.tensor([0, 0, 1, 1, 1]))

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(self, *inputs)


def masked(mask: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    def attend(m: Attends, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        blocks = create_block_mask(
            lambda b, h, i, j: mask(m, b, h, i, j), None, None, q.shape[2], k.shape[2], device="cpu"
        )
        return flex_attention(q, k, v, block_mask=blocks, **options)

    return attend


def scored(score: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return lambda m, q, k, v: flex_attention(q, k, v, score_mod=lambda *s: score(m, *s), **options)


FLEX: dict[str, tuple[Callable[..., Any], Inputs]] = {
    "plain": (lambda m, q, k, v: flex_attention(q, k, v), heads),
    "slopes": (scored(lambda m, s, b, h, i, j: s + (i - j) * m.slope[h]), heads),
    "relative": (scored(lambda m, s, b, h, i, j: 5 * torch.tanh(s / 5) + m.relative[h, i - j], scale=0.3), heads),
    "grouped": (
        scored(lambda m, s, b, h, i, j: torch.where(i >= j - 2, s, -float("inf")), enable_gqa=True),
        grouped_heads,
    ),
    "by batch": (scored(lambda m, s, b, h, i, j: s * (1 + b) + (j % 2)), heads),
    "window": (masked(lambda m, b, h, i, j: (i >= j) & (i - j < 3)), heads),
    "documents": (masked(lambda m, b, h, i, j: m.document[i] == m.document[j]), heads),
    "rows without anything": (masked(lambda m, b, h, i, j: (j < 3) & (i > 1), return_lse=True), heads),
}


@pytest.mark.parametrize("name", FLEX)
def test_flex_attention(name):
    function, inputs = FLEX[name]
    check_layer(lambda: Attends(function), inputs, (3, 2))


@pytest.mark.parametrize("name", ["slopes", "relative"])
def test_gradients_of_flex_attention(name):
    function, inputs = FLEX[name]
    check_layer_in_training(lambda: Attends(function), inputs)


def test_flex_attention_with_other_operators_is_refused():
    function = scored(lambda m, s, b, h, i, j: torch.atan2(s, s + 1))
    with pytest.raises(ix.UnsupportedError, match=r"flex_attention with aten\.atan2\.default in its score_mod"):
        ix.from_torch(Attends(function).eval(), heads(2))
