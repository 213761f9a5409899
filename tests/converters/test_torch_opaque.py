"""What torch.export or the import cannot follow: named with its place, or kept in PyTorch as a layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch import nn

import interlux as ix
from interlux.converters.torch.opaque import Parts, TorchLayer
from interlux.ir.graph import ByMode, Graph, graph_of
from tests.helpers import Calls, check_outputs, check_training
from tests.torch_cases import perturbed

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


# --- what torch.export cannot follow


class Deciding(nn.Module):
    """Control flow that depends on the data, with parameters and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.linear(x))
        if y[0, 0] > 0:
            return y * 2
        return torch.sin(y)


class Counting(nn.Module):
    """A Python number from the data."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = int((x > 0).sum().item())
        return x * [0.5, 2.0, 3.0][count % 3]


@torch.library.custom_op("interlux_tests::cube", mutates_args=())
def cube(x: torch.Tensor) -> torch.Tensor:
    return x**3


cube.register_autograd(
    lambda ctx, g: 3 * ctx.saved_tensors[0] ** 2 * g,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


@torch.library.custom_op("interlux_tests::described", mutates_args=())
def described(x: torch.Tensor) -> torch.Tensor:
    return x**3


described.register_fake(torch.empty_like)
described.register_autograd(
    lambda ctx, g: 3 * ctx.saved_tensors[0] ** 2 * g,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


class Cubing(nn.Module):
    """An operator of the user's own, which torch.export cannot even describe."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cube(x * self.scale)


class Described(Cubing):
    """An operator of the user's own, which torch.export takes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return described(x * self.scale)


class Rounded(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


class Rounding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Rounded.apply(self.linear(x) * 4)


class Through(torch.autograd.Function):
    """One that torch.export cannot trace."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.exp(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.saved_tensors[0].exp()


class InNumpy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Through.apply(self.linear(x))


class Between(nn.Module):
    """Two layers around a part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.part = part
        self.last = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.part(torch.tanh(self.first(x)))))


def foreign(model: ix.Model) -> list[TorchLayer]:
    graph = graph_of(model.layer)
    assert graph is not None
    return [node.layer for node in graph.nodes if isinstance(node.layer, TorchLayer)]


def wrapped(part: nn.Module, *inputs: torch.Tensor, dynamic: Any = "batch") -> tuple[nn.Module, ix.Model]:
    module = perturbed(Between(part)).eval()
    return module, ix.from_torch(module, inputs or (X,), dynamic, opaque="wrap")


PARTS: list[Callable[[], nn.Module]] = [Deciding, Counting, Cubing, Described, InNumpy]


@pytest.mark.parametrize("make", PARTS, ids=lambda make: make.__name__)
def test_the_smallest_part_stays_in_pytorch(make: Callable[[], nn.Module]) -> None:
    module, model = wrapped(make())
    assert [layer.path for layer in foreign(model)] == ["part"]
    for batch in (3, 1, 2, 5):
        check_outputs(module, model, (torch.randn(batch, 4),), ("jax",))
    report = ix.verify(module, model, "jax")
    assert report.passed, str(report)
    assert any(note.startswith(f"part ({make.__name__}) stays in PyTorch") for note in report.notes)
    assert f"TorchLayer[{make.__name__}]" in str(model)


@pytest.mark.parametrize("make", [*PARTS, Rounding], ids=lambda make: make.__name__)
def test_gradients_and_states_in_training(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = perturbed(Between(make())).double()
    model = ix.from_torch(module, (X.double(),), None, opaque="wrap")
    check_training(module, model, (X.double(),))


@pytest.mark.parametrize("make", PARTS, ids=lambda make: make.__name__)
def test_weights_go_back(make: Callable[[], nn.Module]) -> None:
    module, model = wrapped(make())
    found, expected = ix.torch_state_dict(model), module.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[k], expected[k]) and found[k].dtype == expected[k].dtype for k in expected)


def test_both_modes_share_one_graph_where_they_differ_by_flags_only() -> None:
    _, model = wrapped(Deciding())
    assert isinstance(model.layer, Graph)


# --- forms of calls


class Many(nn.Module):
    """Several arguments, constants among them, and a dict of results."""

    def forward(self, x: torch.Tensor, pair: list[torch.Tensor], *, power: float, mask: Any = None) -> dict[str, Any]:
        scale = 2.0 if x.sum() > 0 else 3.0
        return {"sum": scale * x + pair[0] ** power, "none": None, "both": (pair[1].sum(1), (x > 0).to(torch.int64))}


def of_many(m: Any, x: torch.Tensor) -> Any:
    found = m.part(x, [x + 1, x * 3], power=2.0)
    again = m.part(x * 2, [x - 1, x], power=3.0)
    return found["sum"], found["both"][0], found["both"][1], again["sum"], again["both"][1]


def test_arguments_and_results_nest() -> None:
    module = Calls(of_many, part=Many()).eval()
    model = ix.from_torch(module, (X,), opaque="wrap")
    assert [layer.path for layer in foreign(model)] == ["part", "part"]
    for batch in (3, 1, 4):
        check_outputs(module, model, (torch.randn(batch, 4),), ("jax",))


class Resizing(nn.Module):
    """Results whose sizes are sums of those of the arguments, dynamic along two axes."""

    def forward(self, x: torch.Tensor) -> Any:
        if x.mean() > 100:
            x = x + 1
        joined = torch.cat([x, x[:, :1]], 1)
        return torch.cat([joined, joined], 0), x.sum((1, 2)), torch.zeros(3, x.shape[2])


def test_sizes_of_results_follow_those_of_arguments() -> None:
    module = nn.Sequential(Resizing()).eval()
    x = torch.randn(3, 5, 4)
    shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2)},)
    model = ix.from_torch(module, (x,), shapes, opaque="wrap")
    outputs = model.require_signature().outputs
    assert [o.shape for o in outputs] == [("2*batch", "length + 1", 4), ("batch",), (3, 4)]
    for batch, length in ((3, 5), (1, 2), (4, 7)):
        check_outputs(module, model, (torch.randn(batch, length, 4),), ("jax",))


class Numbering(nn.Module):
    """A part that gives a Python number to the module around it."""

    def forward(self, x: torch.Tensor) -> int:
        return int((x > 0).sum().item()) % 2


class Numbered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.number = Numbering()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * [2.0, 3.0][self.number(x)]


class Rows(nn.Module):
    """A result whose size depends on the data, given to the module around it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = x[x[:, 0] > 0] if x.sum() > -1e9 else x
        return chosen


class OfRows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = Rows()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.rows(x).sum(0)


class Writing(nn.Module):
    """A part that writes to its argument."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            x.mul_(2)
        return x + 1


class AroundWriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.writing = Writing()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 1
        return self.writing(y) + y


class Holder:
    def __init__(self, x: torch.Tensor):
        self.x = x


class OfObject(nn.Module):
    def forward(self, holder: Holder) -> torch.Tensor:
        return holder.x * 2 if holder.x.sum() > 0 else holder.x


class GivesObject(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = OfObject()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(Holder(x))


@pytest.mark.parametrize("make", [Numbered, OfRows, AroundWriting, GivesObject], ids=lambda make: make.__name__)
def test_what_cannot_be_a_node_takes_the_module_around_it_along(make: Callable[[], nn.Module]) -> None:
    module, model = wrapped(make())
    assert [layer.path for layer in foreign(model)] == ["part"]
    for batch in (3, 1, 5):
        check_outputs(module, model, (torch.randn(batch, 4),), ("jax",))


class Specialising(nn.Module):
    """Python's numbers from sizes, which torch.export takes as fixed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = int(x.shape[0])
        return x.reshape(rows * 2, 2).reshape(rows, 4) * 2


class Decomposing(nn.Module):
    """An operator without a lowering."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.linalg.eigvals(x.T @ x).abs().sum()


def scripted() -> nn.Module:
    return torch.jit.script(Deciding())  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of copies of ScriptModules, in torch itself
@pytest.mark.parametrize("make", [Specialising, Decomposing, scripted], ids=lambda make: make.__name__)
def test_other_reasons_to_stay(make: Callable[[], nn.Module]) -> None:
    module, model = wrapped(make())
    assert [layer.path for layer in foreign(model)] == ["part"]
    for batch in (3, 1, 5):
        check_outputs(module, model, (torch.randn(batch, 4),), ("jax",))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_in_training() -> None:
    torch.manual_seed(0)
    module = perturbed(Between(scripted())).double()
    check_training(module, ix.from_torch(module, (X.double(),), None, opaque="wrap"), (X.double(),))


def test_several_parts_each_at_its_place() -> None:
    module = nn.Sequential(Between(Deciding()), nn.Linear(2, 4), Between(nn.Sequential(Cubing(), Counting()))).eval()
    model = ix.from_torch(perturbed(module), (X,), opaque="wrap")
    assert [layer.path for layer in foreign(model)] == ["0.part", "2.part.0", "2.part.1"]
    assert len([note for note in model.notes if "stays in PyTorch" in note]) == 3
    check_outputs(module, model, (torch.randn(4, 4),), ("jax",))


def test_a_whole_module_may_stay() -> None:
    module = perturbed(Deciding()).eval()
    model = ix.from_torch(module, (X,), opaque="wrap")
    assert [layer.path for layer in foreign(model)] == [""]
    assert any(note.startswith("the whole module (Deciding) stays in PyTorch") for note in model.notes)
    check_outputs(module, model, (torch.randn(4, 4),), ("jax",))


def test_a_part_that_is_shared_and_tied() -> None:
    part = Deciding()
    module = perturbed(nn.Sequential(part, nn.Linear(4, 4), part)).eval()
    module[1].weight = part.linear.weight
    model = ix.from_torch(module, (X,), opaque="wrap")
    assert [layer.path for layer in foreign(model)] == ["0", "0"]
    check_outputs(module, model, (torch.randn(4, 4),), ("jax",))
    twin = copy.deepcopy(module).double()
    check_training(twin, ix.from_torch(twin, (X.double(),), None, opaque="wrap"), (X.double(),))


def test_a_part_whose_weight_is_computed_by_hooks() -> None:
    part = Deciding()
    torch.nn.utils.parametrizations.weight_norm(part.linear)
    module = perturbed(Between(part)).double()
    check_training(module, ix.from_torch(module, (X.double(),), None, opaque="wrap"), (X.double(),))


class InPlace(nn.Module):
    """A part that may return its argument, which is then written to."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.part, self.again = Calls(lambda m, x: x if x.sum() > -1e9 else -x), again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 1
        z = self.part(y).relu_()
        return z + y if self.again else z


def test_writing_to_what_may_be_the_argument_of_a_part() -> None:
    module = InPlace(False)
    check_outputs(module, ix.from_torch(module, (X,), opaque="wrap"), (X,), ("jax",))
    with pytest.raises(ix.UnsupportedError, match=r"part stays in PyTorch and may return its argument.*relu_"):
        ix.from_torch(InPlace(True), (X,), opaque="wrap")


# --- states and random numbers


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.dropout(self.linear(x), 0.5, self.training)
        return y * 2 if y.sum() > 1e9 else y


def test_random_numbers_come_from_the_seed() -> None:
    module, model = wrapped(Dropping())
    layer, params, states = model
    check_outputs(module, model, (X,), ("jax",))
    x = torch.randn(3, 4).numpy()
    first, new = layer.apply(params, states, x, train=True)
    again, _ = layer.apply(params, states, x, train=True)
    other, _ = layer.apply(params, new, x, train=True)
    assert np.array_equal(first, again) and not np.array_equal(first, other)

    def loss(params: Any) -> Any:
        return layer.apply(params, states, x, train=True)[0].sum()

    gradient = jax.grad(loss)(params)["part"]["linear"]["bias"]
    step = 1e-2  # the loss is linear in it as long as the same elements are dropped
    moved = {**params, "part": {"linear": {**params["part"]["linear"]}}}
    moved["part"]["linear"]["bias"] = params["part"]["linear"]["bias"] + step * np.asarray(gradient)
    small = float(loss(moved) - loss(params)) / step
    assert abs(small - float((gradient**2).sum())) <= 0.05 * abs(small)


class Remembering(nn.Module):
    """A buffer that is written to in evaluation too."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count = self.count + 1
        return x * self.count if x.sum() > -1e9 else x


def test_states_written_in_evaluation_come_back_from_apply_only() -> None:
    _, model = wrapped(Remembering())
    layer, params, states = model
    _, new = layer.apply(params, states, X.numpy())
    assert new["part"]["count"] == 1 and new["part"]["count"].dtype == np.int64
    with pytest.raises(ix.UnsupportedError, match="part.count"):
        ix.compile(model)(X.numpy())


class Surprising(nn.Module):
    """Writes to a buffer for some inputs only, none of which are near the example."""

    total: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 1e6:
            self.total += 1
        return x * 2


def test_what_the_example_did_not_show_is_an_error() -> None:
    _, model = wrapped(Surprising(), X)
    module = nn.Sequential(Surprising())
    model = ix.from_torch(module, (X,), opaque="wrap")
    run = ix.compile(model)
    run(X.numpy())
    with pytest.raises(ix.InvalidModelError, match="total"):
        run(np.full((3, 4), 1e7, np.float32))


def test_a_frozen_weight_is_a_state() -> None:
    part = Deciding()
    part.linear.weight.requires_grad_(False)
    module = perturbed(Between(part)).double()
    model = ix.from_torch(module, (X.double(),), None, opaque="wrap")
    assert "weight" in model.states["part"]["linear"] and "weight" not in model.params["part"]["linear"]
    check_training(module, model, (X.double(),))


# --- JAX around it


def test_jit_grad_and_vmap() -> None:
    module, model = wrapped(Cubing())
    layer, params, states = model
    x = X.numpy()

    def loss(params: Any, x: Any) -> Any:
        return (layer.apply(params, states, x)[0] ** 2).sum()

    value, (of_params, of_x) = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)
    given = X.clone().requires_grad_()
    expected = (module(given) ** 2).sum()
    expected.backward()  # type: ignore[no-untyped-call]
    assert given.grad is not None
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(of_x, given.grad.numpy(), rtol=1e-4, atol=1e-6)
    scale = module.get_parameter("part.scale").grad
    assert scale is not None
    np.testing.assert_allclose(of_params["part"]["scale"], scale.numpy(), rtol=1e-4, atol=1e-6)
    batch = np.stack([x, x * 2])
    each = jax.vmap(lambda x: layer.apply(params, states, x)[0])(batch)
    np.testing.assert_allclose(each[1], module(X * 2).detach().numpy(), rtol=1e-5, atol=1e-6)


class Wide(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        flip = -1 if x.sum() < -1e9 else 1
        return flip * x.double() / 3, x.argmax(1) + 2**40, x.half(), x > 0, x.bfloat16()


def test_every_dtype_comes_through() -> None:
    module = nn.Sequential(Wide())
    model = ix.from_torch(module, (X,), opaque="wrap")
    expected = module(X)
    for found, wanted in zip(ix.compile(model)(X.numpy()), expected, strict=True):
        assert found.dtype.name == str(wanted.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(found.astype(np.float64), wanted.double().numpy())


def test_large_arrays_do_not_block() -> None:
    part = nn.Sequential(nn.Linear(1024, 1024), Counting())
    module = Calls(lambda m, x: m.part(x) + 1, part=Calls(lambda m, x: m.inner(x) if x.sum() > -1e9 else x, inner=part))
    model = ix.from_torch(module.eval(), (torch.randn(512, 1024),), None, opaque="wrap")
    layer, params, states = model
    x = torch.randn(512, 1024).numpy()
    gradient = jax.jit(jax.grad(lambda params: layer.apply(params, states, x)[0].sum()))
    for _ in range(5):
        jax.block_until_ready(gradient(params))


def test_training_elsewhere_and_back() -> None:
    module, model = wrapped(Deciding())
    layer, params, states = model
    gradient = jax.grad(lambda p: layer.apply(p, states, X.numpy(), train=True)[0].sum())(params)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    _, states = layer.apply(params, states, X.numpy(), train=True)
    trained = model.replace(params, states)
    module.load_state_dict(ix.torch_state_dict(trained))
    check_outputs(module, trained, (X,), ("jax",))


def test_the_module_is_left_as_it_is() -> None:
    module = perturbed(Between(Deciding())).train()
    before = copy.deepcopy(module.state_dict())
    model = ix.from_torch(module, (X,), opaque="wrap")
    model.layer.apply(model.params, model.states, X.numpy(), train=True)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert module.training and all(p.grad is None for p in module.parameters())
    assert "_compiled_call_impl" not in vars(module.part)


def test_an_error_without_a_place_is_searched_for() -> None:
    parts = Parts(nn.Sequential(Between(nn.Linear(4, 4)), nn.Linear(2, 4), Between(Deciding())))
    assert parts.narrowed(lambda path: "2.part.norm".startswith(path)) == "2.part.norm"
    assert parts.narrowed(lambda path: False) == ""
    with parts.tried("2"):
        assert list(parts.paths) == ["2"]
    assert not parts.paths


class Caching(nn.Module):
    """A memory that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = torch.zeros(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + self.cache
        self.cache = y.detach().mean(0)
        return y * 2 if y.sum() > 0 else y


def test_a_part_with_a_memory_of_its_own_is_no_function() -> None:
    with pytest.raises(ix.UnsupportedError, match="other results when it is called again"):
        ix.from_torch(Between(Caching()).eval(), (X,), opaque="wrap")


def test_a_tensor_that_is_assigned_is_no_constant() -> None:
    class Plain(nn.Module):
        def __init__(self, read: bool) -> None:
            super().__init__()
            self.cache, self.read = torch.zeros(4), read

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x + self.cache if self.read else x * 2
            self.cache = y.detach().mean(0)
            return y

    with pytest.raises(
        ix.UnsupportedError, match=r"tensor part.cache, .*register it as a buffer \(in part \(Plain\)\)"
    ):
        ix.from_torch(Between(Plain(True)).eval(), (X,))
    module = Between(Plain(False)).eval()
    check_outputs(module, ix.from_torch(module, (X,)), (X,))


def test_a_part_under_no_grad() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.last = Deciding(), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                y = self.part(x)
            return self.last(y)

    module = perturbed(Frozen()).double()
    model = ix.from_torch(module, (X.double(),), None, opaque="wrap")
    assert [layer.path for layer in foreign(model)] == ["part"]
    check_training(module, model, (X.double(),))


# --- where it cannot go


def test_no_file_holds_it(tmp_path: Path) -> None:
    _, model = wrapped(Deciding())
    with pytest.raises(ix.UnsupportedError, match=r"TorchLayer\[Deciding\] at 'part' cannot be saved"):
        ix.save(model, tmp_path / "saved")
    with pytest.raises(ix.UnsupportedError, match=r"ONNX cannot hold TorchLayer\[Deciding\] at 'part'"):
        ix.to_onnx(model, tmp_path / "model.onnx")


def test_the_report_says_so(tmp_path: Path) -> None:
    module, model = wrapped(Cubing())
    report = ix.verify(module, model, "jax")
    assert report.passed
    assert "part (Cubing) stays in PyTorch" in report.to_html()
    failed = ix.verify(module, model, "onnxruntime")
    assert not failed.passed and "TorchLayer[Cubing]" in str(failed)


def test_a_backward_of_its_own_in_one_mode_only() -> None:
    module = perturbed(Between(Rounding())).eval()
    model = ix.from_torch(module, (X,), opaque="wrap")
    assert isinstance(model.layer, ByMode) and not foreign(model)  # evaluation needs no PyTorch
    check_outputs(module, model, (X,))
    plain = ix.from_torch(module, (X,))
    assert any("Rounded has a backward of its own (in part (Rounding)" in note for note in plain.notes)
    with pytest.raises(ix.UnsupportedError, match="Rounded"):
        plain.layer.apply(plain.params, plain.states, X.numpy(), train=True)


# --- what is refused, and where it is

REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (Deciding, r"decides by the data .*\(in part \(Deciding\), .*test_torch_opaque.py:\d+ `if y\[0, 0\] > 0:`\)"),
    (Numbered, r"in part.number \(Numbering\), .*test_torch_opaque.py:\d+ `return int"),
    (Cubing, r"interlux_tests.*cube.*\(in part \(Cubing\), .*test_torch_opaque.py:\d+ `return cube"),
    (Described, r"interlux_tests.described.default in part \(Described, .*test_torch_opaque.py:\d+\)"),
    (InNumpy, r"in part \(InNumpy\), .*test_torch_opaque.py:\d+ `"),
    (Specialising, r"in part \(Specialising\), .*test_torch_opaque.py:\d+ `rows = int\(x.shape\[0\]\)`"),
    (Decomposing, r"aten.linalg_eigvals.default in part \(Decomposing, .*test_torch_opaque.py:\d+\)"),
    (scripted, r"TorchScript \(part\) cannot be exported \(in part \(Deciding\)"),
    (GivesObject, r"in part.inner \(OfObject\)"),
]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[make.__name__ for make, _ in REFUSED])
def test_refusals_name_the_place(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ix.UnsupportedError, match=message) as caught:
        ix.from_torch(Between(make()).eval(), (X,))
    assert "opaque='wrap'" in str(caught.value) and "\n" not in str(caught.value)


def test_wrapping_what_cannot_run() -> None:
    class Failing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("first\nsecond")

    with pytest.raises(ix.UnsupportedError, match=r"cannot be run on the example inputs: RuntimeError: first second"):
        ix.from_torch(Between(Failing()), (X,), opaque="wrap")


def test_wrapping_a_data_dependent_size_that_leaves_the_module() -> None:
    with pytest.raises(ix.UnsupportedError, match="depend on the data"):
        ix.from_torch(nn.Sequential(Rows()), (X,), opaque="wrap")


def test_options_are_checked() -> None:
    with pytest.raises(ix.InvalidModelError, match="opaque"):
        ix.from_torch(nn.Linear(4, 2), (X,), opaque="keep")
    program = torch.export.export(nn.Linear(4, 2), (X,))
    with pytest.raises(ix.InvalidModelError, match="needs the module itself"):
        ix.from_torch(program, opaque="wrap")
