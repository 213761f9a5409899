"""What makes importers of PyTorch silently wrong, each as a test. The numbers are those of the study of
torch.export."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import interlux as ix
from interlux.ir.graph import ByMode, graph_of
from interlux.ir.layers import Attention, BatchNorm, Dropout
from tests.helpers import Calls, check_outputs, check_training, relative


def layers_of(model: ix.Model, kind: type) -> list[Any]:
    graph = graph_of(model.layer)
    assert graph is not None
    return [node.layer for node in graph.nodes if isinstance(node.layer, kind)]


def scopes_of(model: ix.Model) -> list[tuple[str, int]]:
    graph = graph_of(model.layer)
    assert graph is not None
    return list(dict.fromkeys((c.path, c.number) for node in graph.nodes for c in node.scope))


# --- structure


def test_01_repeated_calls_keep_their_path_and_count() -> None:
    block = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh())
    module = Calls(lambda m, x: m.block(m.block(x) * 2 + 1), block=block).double()
    x = torch.randn(4, 6).double()
    model = ix.from_torch(module, x)
    assert {("block", 0), ("block", 1), ("block.0", 0), ("block.0", 1)} <= set(scopes_of(model))
    assert len(list(ix.trees.leaves(model.params))) == 4  # stored once
    check_training(module, model, [x])  # two batches counted, statistics updated twice


def test_02_module_lists_are_part_of_the_path_only() -> None:
    module = Calls(lambda m, x: m.parts[1](m.parts[0](x)), parts=nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)]))
    model = ix.from_torch(module, torch.randn(2, 6))
    assert scopes_of(model) == [("parts.0", 0), ("parts.1", 0)]
    assert list(ix.torch_state_dict(model)) == list(module.state_dict())


def test_04_a_child_whose_forward_is_called_directly_keeps_its_names() -> None:
    module = Calls(lambda m, x: m.child.forward(x), child=nn.Linear(6, 3))
    model = ix.from_torch(module, torch.randn(2, 6))
    assert model.params["child"]["weight"].shape == (3, 6)
    check_outputs(module, model, [torch.randn(5, 6)])


# --- writes


class MovingAverage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((6,), 0.5))
        self.mean: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = self.mean * 0.9 + x.mean(0).detach() * 0.1
        return x - self.mean


def test_05_buffers_that_forward_assigns_are_states() -> None:
    module, x = MovingAverage(), torch.randn(4, 6)
    model = ix.from_torch(module, x)
    assert isinstance(model.layer, ByMode)
    y, states = model.layer.apply(model.params, model.states, x.numpy(), train=True)
    module.train()
    expected = module(x)
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(states["mean"], module.mean.numpy(), rtol=1e-6)
    y, states = model.layer.apply(model.params, model.states, x.numpy())
    np.testing.assert_array_equal(states["mean"], model.states["mean"])


def test_05_a_state_written_in_evaluation_is_returned_and_never_dropped() -> None:
    module = Calls(lambda m, x: (m.steps.add_(1), x * m.steps)[1], steps=torch.zeros(()))
    model = ix.from_torch(module, torch.randn(2, 3))
    x = np.ones((2, 3), np.float32)
    y, states = model.layer.apply(model.params, model.states, x)
    y, states = model.layer.apply(model.params, states, x)
    assert y[0, 0] == 2 and states["steps"] == 2
    for backend in ("jax", "onnxruntime"):
        with pytest.raises(ix.UnsupportedError, match="writes to its states.*steps"):
            ix.compile(model, backend)(x)


WRITES = {
    "in place": lambda m, x: (x * 1).add_(1).mul_(2).relu_(),
    "to a slice": lambda m, x: (lambda y: (y[:, 1:3].mul_(3), y[:, 0].zero_(), y)[2])(x.clone()),
    "negative index": lambda m, x: (lambda y: (y[:, -1].add_(1), y[:, -3:-1].zero_(), y)[2])(x.clone()),
    "through a transpose": lambda m, x: (lambda y: (y.t()[1].add_(2), y)[1])(x * 1),
    "through a view": lambda m, x: (lambda y: (y.view(-1, 2, 3)[:, 1, 2].fill_(7.0), y)[1])(x * 1),
    "through a reshape that is a view": lambda m, x: (lambda y: (y.reshape(-1).add_(1), y)[1])(x * 1),
    "through a reshape that is a copy": lambda m, x: (lambda y: (y.t().reshape(-1).add_(1), y)[1])(x * 1),
    "a view made before": lambda m, x: (lambda y: (lambda v: (y.mul_(5), v + 0)[1])(y[:, 2:]))(x * 1),
    "a view of a view": lambda m, x: (lambda y: (lambda v: (v[:, 0].zero_(), y + 0)[1])(y[:, 1:][:, 1:]))(x * 1),
    "sum of both": lambda m, x: (lambda y: (lambda v: (y.add_(1), v.mul_(2), y * 1 + 0)[2])(y[:, :2]))(x * 1),
    "assignment": lambda m, x: (lambda y: (y.__setitem__((slice(None), 1), 0.5), y)[1])(x.clone()),
    "augmented": lambda m, x: (lambda y, i: (y.add_(i), i + y)[1])(m.part(x), x * 2),
}


@pytest.mark.parametrize("name", WRITES)
def test_07_writes_in_place_reach_every_alias(name: str) -> None:
    module = Calls(WRITES[name], part=nn.Linear(6, 6))
    model = ix.from_torch(module, torch.randn(3, 6))
    check_outputs(module, model, [torch.randn(5, 6)])


def test_07_a_doubtful_view_in_a_loaded_program_is_refused(tmp_path: Path) -> None:
    module = Calls(lambda m, x: (lambda y: (y.reshape(-1).add_(1), y)[1])(x * 1))
    torch.export.save(torch.export.export(module, (torch.randn(2, 3),), strict=False), tmp_path / "doubtful.pt2")
    with pytest.raises(
        ix.UnsupportedError, match=r"aten.add_.Tensor writes through aten.reshape.default, which may be"
    ):
        ix.from_torch(tmp_path / "doubtful.pt2")


def test_07_a_write_to_parameters_is_refused() -> None:
    def forward(module: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            module.weight.mul_(0.9)
        return x * module.weight

    with pytest.raises(ix.UnsupportedError, match=r"writes to its parameters .*: weight"):
        ix.from_torch(Calls(forward, weight=nn.Parameter(torch.ones(3))), torch.randn(2, 3))


# --- gradients


def test_06_blocks_without_gradient() -> None:
    def forward(module: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = module.part(x)
        return y * module.scale + x.detach() * module.scale

    module = Calls(forward, part=nn.Linear(4, 4), scale=nn.Parameter(torch.randn(4))).double()
    x = torch.randn(3, 4).double()
    check_training(module, ix.from_torch(module, x), [x])


POINTS = torch.tensor([[-3.0, -1.0, 0.0, 1.0, 3.0, 6.0]], dtype=torch.float64)
KINKS = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(-1, 1),
    "abs": torch.abs,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "elu": lambda x: F.elu(x, 0.7),
    "max of two": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "square": lambda x: x**2.0,
    "cube": lambda x: x**3,
    "where with a NaN branch": lambda x: torch.where(x > 0.5, x, x * 2),
    "amax": lambda x: torch.relu(x).amax(-1),
    "max.dim": lambda x: torch.relu(-x).max(-1).values,
    "max_pool": lambda x: F.max_pool1d(torch.relu(-x)[None], 3),
    "softplus": F.softplus,
    "hardswish": F.hardswish,
}


@pytest.mark.parametrize("name", KINKS)
def test_13_derivatives_at_kinks_are_torchs(name: str) -> None:
    """jnp.maximum gives 0.5 at 0, jnp.clip 0.5 at its edges, jnp.abs 1 at 0."""
    module = Calls(lambda m, x: KINKS[name](x + m.shift), shift=nn.Parameter(torch.zeros(6, dtype=torch.float64)))
    model = ix.from_torch(module, POINTS, None)
    check_training(module, model, [POINTS])


def test_14_the_padding_row_takes_no_gradient() -> None:
    module = nn.Embedding(5, 3, padding_idx=1).double()
    x = torch.tensor([[0, 1, 1], [4, 2, 1]])
    check_training(module, ix.from_torch(module, x), [x])
    assert torch.equal(module.weight.grad[1], torch.zeros(3).double())


def test_frozen_parameters_are_states_and_take_no_gradient() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    module[0].weight.requires_grad_(False)
    model = ix.from_torch(module, torch.randn(2, 4))
    assert {ix.trees.name_of(p) for p, _ in ix.trees.leaves(model.params)} == {"0.bias", "1.weight", "1.bias"}
    assert {ix.trees.name_of(p) for p, _ in ix.trees.leaves(model.states)} == {"0.weight"}
    check_outputs(module, model, [torch.randn(3, 4)])
    assert list(ix.torch_state_dict(model)) == list(module.state_dict())


# --- numbers


def test_08_the_reference_is_float64_even_where_the_source_casts_to_float32() -> None:
    module = Calls(
        lambda m, x: m.part(x.float()).to(torch.float32) + torch.zeros(3, dtype=torch.float32), part=nn.Linear(6, 3)
    )
    x = torch.randn(4, 6)
    source = ix.api.source_of(module, ix.from_torch(module, x))
    (reference,) = source.run_float64([x.numpy()])
    weight, bias = (p.detach().double() for p in module.part.parameters())
    assert reference.dtype == np.float64
    assert relative(reference, x.double() @ weight.T + bias) < 1e-14


def test_09_running_variance_is_unbiased_and_normalisation_biased() -> None:
    module = nn.BatchNorm1d(3, momentum=0.4).double()
    x = torch.randn(5, 3).double() * 3
    check_training(module, ix.from_torch(module, x), [x])


def test_10_half_precision_scalars_are_not_rounded_first() -> None:
    x = torch.linspace(-3, 3, 4001).half()
    module = Calls(lambda m, x: (x * 3.7, x / 3.3, x + 0.1))
    model = ix.from_torch(module, x, None)
    for backend in ("jax", "onnxruntime"):
        for found, expected in zip(ix.compile(model, backend)(x.numpy()), module(x), strict=True):
            np.testing.assert_array_equal(found, expected.numpy())
    assert not torch.equal(x * 3.7, x * torch.tensor(3.7).half())  # the trap is there


def test_11_integer_division_floors() -> None:
    module = Calls(lambda m, i: (i // 2, i % 3, i // -2, i % -3, torch.div(i, 2, rounding_mode="trunc")))
    i = torch.arange(-9, 9)
    check_outputs(module, ix.from_torch(module, i, None), [i])


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_12_a_fully_masked_row_attends_to_nothing(kind: str) -> None:
    mask = torch.tensor([[True, False, True], [False, False, False]])
    given = mask if kind == "bool" else torch.zeros(2, 3).masked_fill(~mask, -torch.inf)
    module = Calls(lambda m, q, k: F.scaled_dot_product_attention(q, k, k, m.mask), mask=given)
    q, k = torch.randn(2, 1, 2, 4), torch.randn(2, 1, 3, 4)
    assert torch.equal(module(q, k)[0, 0, 1], torch.zeros(4))
    check_outputs(module, ix.from_torch(module, (q, k)), [q, k])


def test_nan_and_infinity_pass_through() -> None:
    module = nn.Sequential(nn.ReLU(), nn.MaxPool1d(2), nn.LeakyReLU(), nn.Hardtanh(-2, 2))
    x = torch.tensor([[1.0, torch.nan, -torch.inf, 2.0, torch.inf, 0.0]])  # channels and time, no batch
    model = ix.from_torch(module, x, None)
    np.testing.assert_array_equal(ix.compile(model, "jax")(x.numpy())[0], module(x).numpy())


def test_15_the_model_does_not_follow_the_live_module() -> None:
    module = nn.BatchNorm1d(3)
    model = ix.from_torch(module, torch.randn(4, 3))
    before = copy.deepcopy(model.states)
    module.train()(torch.randn(4, 3))
    with torch.no_grad():
        module.weight.fill_(9)
    assert np.array_equal(model.states["running_mean"], before["running_mean"])
    assert np.array_equal(model.params["weight"], np.ones(3))


# --- shapes


def test_16_sizes_are_not_baked_in() -> None:
    module = Calls(lambda m, x: x.reshape(x.shape[0] * x.shape[1]) * x.shape[1] + torch.arange(x.shape[0] * x.shape[1]))
    both = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    model = ix.from_torch(module, torch.randn(3, 6), (({0: both[0], 1: both[1]},),))
    assert model.signature.inputs[0].shape == ("batch", "time")
    for shape in ((1, 1), (2, 7), (5, 3)):
        check_outputs(module, model, [torch.randn(shape)])


def test_17_an_example_batch_of_one_stays_dynamic() -> None:
    module = nn.Linear(4, 2)
    model = ix.from_torch(module, torch.randn(1, 4))
    assert model.signature.inputs[0].shape == ("batch", 4)
    check_outputs(module, model, [torch.randn(7, 4)])


def test_18_automatic_dimensions() -> None:
    module = Calls(lambda m, x, y: x + y)
    model = ix.from_torch(module, (torch.randn(3, 4), torch.randn(3, 4)), "auto")
    check_outputs(module, model, [torch.randn(5, 2), torch.randn(5, 2)])
    with pytest.raises(ix.InvalidModelError, match="axis 0 of input 'inputs_1' is 4, but batch is 5"):
        ix.compile(model)(np.zeros((5, 2), np.float32), np.zeros((4, 2), np.float32))


def test_19_divisibility_is_enforced_at_run_time() -> None:
    half = torch.export.Dim("half", min=1)
    module = Calls(lambda m, x: x.view(x.shape[0] // 2, 2, -1).sum(1))
    model = ix.from_torch(module, torch.randn(4, 6), (({0: 2 * half},),))
    check_outputs(module, model, [torch.randn(6, 6)])
    with pytest.raises(ix.InvalidModelError, match="multiple of 2"):
        ix.compile(model)(np.zeros((5, 6), np.float32))


def test_ranges_and_dtypes_are_enforced_at_run_time() -> None:
    module = nn.Linear(4, 2)
    model = ix.from_torch(module, torch.randn(3, 4), ({0: torch.export.Dim("batch", min=2, max=5)},))
    run = ix.compile(model)
    with pytest.raises(ix.InvalidModelError, match=r"axis 0 of input 'input' \(batch\) is 6, must be in 2..5"):
        run(np.zeros((6, 4), np.float32))
    with pytest.raises(ix.InvalidModelError, match="must have dtype float32, not float64"):
        run(np.zeros((3, 4)))
    with pytest.raises(ix.InvalidModelError, match=r"must have shape \(batch, 4\), not \(3, 5\)"):
        run(np.zeros((3, 5), np.float32))


def test_sizes_may_depend_on_the_data() -> None:
    module, x = Calls(lambda m, x: x[x > 0]), torch.randn(6)
    model = ix.from_torch(module, x, None)
    for given in (x, -x, x.abs(), -x.abs()):
        check_outputs(module, model, (given,))


def test_python_that_depends_on_the_data_is_refused_with_its_place() -> None:
    with pytest.raises(ix.UnsupportedError, match="decides by the data"):
        ix.from_torch(Calls(lambda m, x: x * 2 if x.sum() > 0 else x), torch.randn(6), None)


# --- identity


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, i: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(i))


@pytest.mark.parametrize("through_file", [False, True])
def test_20_tied_weights_are_stored_once(tmp_path: Path, through_file: bool) -> None:
    module, i = Tied().double(), torch.randint(0, 7, (3, 5))
    if through_file:
        program = torch.export.export(module, (i,), strict=False)
        torch.export.save(program, tmp_path / "tied.pt2")
        model = ix.from_torch(tmp_path / "tied.pt2")
    else:
        model = ix.from_torch(module, i)
    assert [ix.trees.name_of(p) for p, _ in ix.trees.leaves(model.params)] == ["encoder.weight"]
    assert model.aliases == {("decoder", "weight"): ("encoder", "weight")}
    check_training(module, model, [i])
    state = ix.torch_state_dict(model.replace(params=ix.trees.map_leaves(lambda a: a * 2, model.params)))
    assert torch.equal(state["decoder.weight"], state["encoder.weight"])
    module.load_state_dict(state, strict=True)
    assert module.decoder.weight is module.encoder.weight


def test_20_partly_shared_memory_is_refused() -> None:
    whole = nn.Parameter(torch.randn(8, 4))
    module = Calls(lambda m, x: x @ m.whole.T + (x @ m.part.T).sum(), whole=whole, part=nn.Parameter(whole.data[2:5]))
    with pytest.raises(ix.UnsupportedError, match="'whole' and 'part' share part of their memory"):
        ix.from_torch(module, torch.randn(2, 4))


class Constants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.rand(6))
        self.register_buffer("passing", torch.rand(6), persistent=False)
        self.plain = torch.arange(6.0) / 6
        self.table = torch.rand(20, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.kept + self.passing * self.plain + torch.tensor([1.0, -1.0] * 3) + self.table.sum(0)


def test_21_buffers_attributes_and_lifted_constants() -> None:
    module = Constants()
    model = ix.from_torch(module, torch.randn(2, 6))
    check_outputs(module, model, [torch.randn(3, 6)])
    assert list(ix.torch_state_dict(model)) == ["kept"]


# --- modes


class InlineDropout(nn.Module):
    def forward(self, q: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, q, q, dropout_p=0.5 if self.training else 0.0)


def test_22_dropout_that_only_training_code_names() -> None:
    q = torch.randn(2, 2, 16, 8)
    model = ix.from_torch(InlineDropout(), q)
    (attention,) = layers_of(model, Attention)
    assert attention.dropout == 0.5 and attention.mode == "follow"
    evaluated, _ = model.layer.apply(model.params, model.states, q.numpy())
    trained, states = model.layer.apply(model.params, model.states, q.numpy(), train=True)
    again, _ = model.layer.apply(model.params, model.states, q.numpy(), train=True)
    other, _ = model.layer.apply(model.params, states, q.numpy(), train=True)
    np.testing.assert_array_equal(trained, again)  # same seed, same numbers
    assert np.abs(trained - evaluated).max() > 0.01 and np.abs(trained - other).max() > 0.01


def test_23_frozen_and_always_active_layers_keep_their_mode() -> None:
    module = Calls(
        lambda m, x: F.dropout(m.free(m.frozen(x)), 0.5, True), frozen=nn.BatchNorm1d(3), free=nn.BatchNorm1d(3)
    )
    module.train()
    module.frozen.eval()
    model = ix.from_torch(module, torch.randn(4, 3))
    assert [layer.mode for layer in layers_of(model, BatchNorm)] == ["never", "follow"]
    assert [layer.mode for layer in layers_of(model, Dropout)] == ["always"]
    assert module.training and not module.frozen.training  # found as it was
    x = torch.randn(4, 3).numpy()
    _, states = model.layer.apply(model.params, model.states, x, train=True)
    assert np.array_equal(states["frozen"]["running_mean"], model.states["frozen"]["running_mean"])
    assert not np.array_equal(states["free"]["running_mean"], model.states["free"]["running_mean"])
    with pytest.raises(ix.UnsupportedError, match="dropout that stays active|writes to its states"):
        ix.compile(model, "onnxruntime")


def test_24_training_that_cannot_be_exported_refuses_training_only() -> None:
    module = nn.BatchNorm1d(3, momentum=None)
    module(torch.randn(8, 3))
    model = ix.from_torch(module.eval(), torch.randn(4, 3))
    check_outputs(module, model, [torch.randn(5, 3)])
    if isinstance(model.layer, ByMode):
        assert "evaluation only" in model.notes[0]
        with pytest.raises(ix.UnsupportedError, match="evaluation only"):
            model.layer.apply(model.params, model.states, np.zeros((4, 3), np.float32), train=True)


def test_dropout_keeps_the_mean_and_the_share_of_zeros() -> None:
    model = ix.from_torch(nn.Dropout(0.3), torch.ones(2, 50_000))
    y, _ = model.layer.apply(model.params, model.states, np.ones((2, 50_000), np.float32), train=True)
    assert abs((y == 0).mean() - 0.3) < 0.01 and abs(y.mean() - 1) < 0.01
    assert abs(np.corrcoef(y[0], y[1])[0, 1]) < 0.02


# --- calling


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    extra: dict[str, torch.Tensor]


torch.export.register_dataclass(Result, serialized_type_name="interlux_tests.Result")


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(6, 3)

    def forward(self, batch: dict[str, torch.Tensor], *, gain: float = 2.0, flag: bool = True) -> Result:
        y = self.part(batch["x"]) * gain
        return Result(y, {"sum": y.sum(-1) + batch["y"].sum(-1), "best": y.argmax(-1)})


def test_nested_arguments_and_results() -> None:
    module = Nested()
    given = {"x": torch.randn(3, 6), "y": torch.randn(3, 2)}
    model = ix.from_torch(module, ((given,), {"gain": 3.0}))
    assert [spec.name for spec in model.signature.outputs] == ["logits", "extra_sum", "extra_best"]
    arrays = {k: v.numpy() for k, v in given.items()}
    by_structure = ix.compile(model)(arrays, gain=3.0)
    by_name = ix.compile(model)(
        **{spec.name: a for spec, a in zip(model.signature.inputs, arrays.values(), strict=True)}
    )
    expected = module(given, gain=3.0)
    np.testing.assert_allclose(by_structure[0], expected.logits.detach().numpy(), rtol=1e-5)
    np.testing.assert_array_equal(by_structure[2], expected.extra["best"].numpy())
    np.testing.assert_array_equal(by_structure[1], by_name[1])
    nested = model.signature.nest_outputs(by_structure)
    assert set(nested) == {"logits", "extra"} and set(nested["extra"]) == {"sum", "best"}
    with pytest.raises(ix.InvalidModelError, match="'gain' was 3.0 when the model was imported"):
        ix.compile(model)(arrays, gain=2.0)
    check_outputs(module, model, [torch.randn(4, 6), torch.randn(4, 2)])


def test_everything_unsupported_is_listed_at_once_with_its_place() -> None:
    inner = Calls(lambda m, x: torch.special.i0(x))
    module = Calls(lambda m, x: torch.linalg.eigvals(m.inner(x) @ x.mT).real + torch.special.i1(x).sum(), inner=inner)
    with pytest.raises(ix.UnsupportedError) as raised:
        ix.from_torch(module, torch.randn(2, 3, 3))
    text = str(raised.value)
    assert "\n" not in text
    assert all(
        name in text for name in ("aten.special_i0", "aten.linalg_eigvals", "special_i1", "in inner", "helpers.py:")
    )


def test_a_jitted_step_keeps_dtypes_stable() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.1))
    x = torch.randn(8, 4)
    layer, params, states = ix.from_torch(module, x)

    @jax.jit
    def step(carry: Any, _: Any) -> Any:
        params, states = carry
        gradients, states = jax.grad(
            lambda p: (lambda y, s: ((y**2).mean(), s))(*layer.apply(p, states, x.numpy(), train=True)), has_aux=True
        )(params)
        return (jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), states), None

    (params, states), _ = jax.lax.scan(step, jax.tree.map(jax.numpy.asarray, (params, states)), None, length=3)
    assert int(states["1"]["num_batches_tracked"]) == 3


class Branches(nn.Module):
    """Large constants that differ between the modes, and names that the import would like to have."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("interlux", torch.rand(3))
        self.register_buffer("seed", torch.rand(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = torch.arange(300.0).reshape(100, 3) * (2 if self.training else 3)
        return F.dropout(x + table.sum(0) * self.interlux + self.seed, 0.5, self.training)


def test_constants_of_both_modes_are_kept_apart_and_names_never_clash() -> None:
    module, x = Branches(), torch.randn(4, 3)
    model = ix.from_torch(module, x)
    check_outputs(module, model, [x])
    trained, _ = model.layer.apply(model.params, model.states, x.numpy(), train=True)
    expected = 2 * (x + torch.arange(300.0).reshape(100, 3).sum(0) * 2 * module.interlux + module.seed).numpy()
    kept = trained != 0
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(trained[kept], expected[kept], rtol=1e-5)
    assert list(ix.torch_state_dict(model)) == ["interlux", "seed"]


# --- found by reviews


class ConstantsByMode(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return x * torch.tensor([float(i) for i in range(100)])
        return x + torch.tensor([float(-i) for i in range(100)])


def test_lifted_constants_of_both_modes_are_kept_apart() -> None:
    x = torch.randn(2, 100)
    model = ix.from_torch(ConstantsByMode(), x)
    check_outputs(ConstantsByMode(), model, [x])
    y, _ = model.layer.apply(model.params, model.states, x.numpy(), train=True)
    np.testing.assert_allclose(y, ConstantsByMode().train()(x).numpy(), rtol=1e-6)


@pytest.mark.parametrize("change", [lambda y: y.t_(), lambda y: y.unsqueeze_(0), lambda y: y.transpose_(0, 1)])
def test_changing_a_view_in_place_leaves_other_views(change: Any) -> None:
    def forward(module: Any, x: torch.Tensor) -> Any:
        y = x * 1
        row = y[0]
        change(y)
        return row, y.add_(1)

    module = Calls(forward)
    check_outputs(module, ix.from_torch(module, torch.randn(3, 3), None), [torch.randn(3, 3)])


def test_statistics_read_after_the_layer_are_the_new_ones() -> None:
    def forward(module: Any, x: torch.Tensor) -> Any:
        before = module.bn.running_mean + 0
        y = module.bn(x)
        return y + module.bn.running_mean, before, module.bn.num_batches_tracked * 1.0

    module = Calls(forward, bn=nn.BatchNorm1d(3)).double()
    x = torch.randn(4, 3).double() + 2
    check_training(module, ix.from_torch(module, x), [x])


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        return x * self.num_batches_tracked


def test_a_counter_that_only_has_the_name_is_counted_too() -> None:
    model = ix.from_torch(Counting(), torch.randn(2, 3))
    _, states = model.layer.apply(model.params, model.states, np.ones((2, 3), np.float32), train=True)
    assert states["num_batches_tracked"] == 1


def test_a_parameter_that_is_also_a_buffer_is_trained() -> None:
    part = nn.Linear(3, 3)
    module = Calls(lambda m, x: m.part(x) @ m.same, part=part, same=part.weight.data)
    model = ix.from_torch(module, torch.randn(2, 3))
    assert {ix.trees.name_of(p) for p, _ in ix.trees.leaves(model.params)} == {"part.weight", "part.bias"}
    assert list(ix.torch_state_dict(model)) == list(module.state_dict())


SINGULAR = {
    "norm": lambda p: p.norm(dim=1),
    "vector_norm": lambda p: torch.linalg.vector_norm(p),
    "normalize": lambda p: F.normalize(p, dim=1),
    "norm of order 1": lambda p: p.norm(p=1, dim=1),
    "std": lambda p: p.std(-1),
    "clamp by tensors": lambda p: torch.clamp(p, torch.zeros_like(p), torch.ones_like(p)),
}


@pytest.mark.parametrize("name", SINGULAR)
def test_13_derivatives_at_singular_points_are_torchs(name: str) -> None:
    weight = nn.Parameter(torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, -3.0], [2.0, 2.0, 2.0]]).double())
    module = Calls(lambda m, x: SINGULAR[name](m.weight) * x.sum(), weight=weight)
    x = torch.ones(1).double()
    check_training(module, ix.from_torch(module, x, None), [x])


def exported(module: nn.Module, path: Path, x: torch.Tensor) -> ix.Model:
    torch.export.save(torch.export.export(module, (x,), strict=False), path)
    return ix.from_torch(path)


def test_modes_of_a_program_that_comes_alone(tmp_path: Path) -> None:
    x = torch.randn(4, 3)
    always = Calls(lambda m, x: F.dropout(m.bn(x), 0.5, True), bn=nn.BatchNorm1d(3)).eval()
    model = exported(always, tmp_path / "mixed.pt2", x)
    assert [layer.mode for layer in layers_of(model, BatchNorm)] == ["never"]
    assert [layer.mode for layer in layers_of(model, Dropout)] == ["always"]
    assert "layers of both modes" in model.notes[0]
    untracked = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3), nn.Dropout(0.5)).eval()
    model = exported(untracked, tmp_path / "untracked.pt2", x)
    assert [layer.mode for layer in layers_of(model, Dropout)] == ["follow"]
    assert layers_of(model, BatchNorm)[1].mode == "follow"
    in_place = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5, inplace=True)).train()
    model = exported(in_place, tmp_path / "training.pt2", x)
    assert [layer.mode for layer in layers_of(model, Dropout)] == ["follow"]
    assert not any("exported in evaluation" in note for note in model.notes)


def test_in_place_dropout_needs_no_second_graph() -> None:
    model = ix.from_torch(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5, inplace=True)), torch.randn(2, 3))
    assert not isinstance(model.layer, ByMode)


EDGES = {
    "any and all of nothing": (lambda m, x: (x[:, :0].any(1), x[:, :0].all(1)), torch.ones(2, 3)),
    "floor of floats": (lambda m, x: x // 0.3, torch.tensor([1.5, 3.0, -1.5, 0.9, 0.0])),
    "division by zero": (lambda m, x: x // torch.zeros(3), torch.tensor([1.5, -3.0, 0.0])),
    "selu": (lambda m, x: F.selu(x), torch.randn(9).double()),
    "hardswish": (lambda m, x: F.hardswish(x), torch.tensor([-torch.inf, torch.inf, torch.nan, -3.0, 3.0])),
    "ceil_mode that adds nothing": (lambda m, x: F.max_pool2d(x, 2, 2, 1, ceil_mode=True), torch.randn(1, 2, 5, 5)),
    "ceil_mode of means": (lambda m, x: F.avg_pool1d(x, 2, 3, ceil_mode=True), torch.randn(1, 2, 7)),
    "same padding without batch": (lambda m, x: F.conv1d(x, torch.ones(2, 3, 4), padding="same"), torch.randn(3, 7)),
    "results that are inputs": (lambda m, x: (x, x, x * 2, torch.ones(2)), torch.randn(3)),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges(name: str) -> None:
    function, x = EDGES[name]
    module = Calls(function)
    backends = ("jax",) if name == "selu" else ("jax", "onnxruntime")
    check_outputs(module, ix.from_torch(module, x, None), [x], backends=backends)


def test_running_variance_of_many_half_precision_values() -> None:
    module = nn.BatchNorm2d(3).half()
    x = torch.randn(8, 3, 96, 96).half()
    model = ix.from_torch(module, x)
    _, states = model.layer.apply(model.params, model.states, x.numpy(), train=True)
    module.train()(x)
    np.testing.assert_allclose(states["running_var"], module.running_var.numpy(), rtol=2e-3)
    single = nn.BatchNorm1d(3)
    model = ix.from_torch(single, torch.randn(4, 3))
    with pytest.raises(ix.InvalidModelError, match="more than one value per channel"):
        model.layer.apply(model.params, model.states, np.ones((1, 3), np.float32), train=True)


def test_apply_does_not_promote() -> None:
    layer, params, states = ix.from_torch(nn.Linear(3, 2), torch.randn(2, 3))
    for array in (np.ones((2, 3), np.float16), np.ones((2, 3), bool), np.ones((2, 3), np.int32), np.ones((2, 3))):
        with pytest.raises(ix.InvalidModelError, match=f"must have dtype float32, not {array.dtype.name}"):
            layer.apply(params, states, array)
    wide = ix.trees.cast(params, np.float64)  # the whole model in a wider type is the user's own wish
    assert layer.apply(wide, states, np.ones((2, 3)))[0].dtype == np.float64
    layer, params, states = ix.from_torch(nn.Linear(3, 2).double(), torch.randn(2, 3).double())
    with pytest.raises(ix.InvalidModelError, match="jax.enable_x64"):
        jax.jit(lambda p, x: layer.apply(p, states, x)[0])(params, np.ones((2, 3)))


def test_names_of_results_are_unique() -> None:
    module = Calls(lambda m, output: {"a": {"b": output * 2}, "a_b": output * 3})
    model = ix.from_torch(module, torch.randn(2))
    assert [spec.name for spec in model.signature.outputs] == ["a_b", "a_b_1"]

    class Named(nn.Module):
        def forward(self, output: torch.Tensor) -> torch.Tensor:
            return output * 2

    assert ix.from_torch(Named(), torch.randn(2, 3)).signature.outputs[0].name == "output_1"


def test_the_source_is_not_run_on_torchs_fast_path() -> None:
    module = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 1).eval()
    wrapped = Calls(lambda m, x, mask: m.encoder(x, src_key_padding_mask=mask), encoder=module).eval()
    x, mask = torch.randn(2, 4, 8), torch.tensor([[False] * 4, [False, False, True, True]])
    model = ix.from_torch(wrapped, (x, mask))
    check_outputs(wrapped, model, [x, mask])
    assert "fast path" in model.notes[0]
    assert torch.backends.mha.get_fastpath_enabled()


ARRAYS_THAT_ARE_NONE = {
    "ragged": lambda: [[1.0, 2.0, 3.0], [1.0]],
    "requires a gradient": lambda: torch.ones(2, 3, requires_grad=True),
}


@pytest.mark.parametrize("name", ARRAYS_THAT_ARE_NONE)
def test_inputs_that_are_no_arrays(name: str) -> None:
    run = ix.compile(ix.from_torch(nn.Linear(3, 2), torch.randn(2, 3)))
    with pytest.raises(ix.InvalidModelError, match="input 'input' is no array"):
        run(ARRAYS_THAT_ARE_NONE[name]())
    assert run(np.ones((2, 3), ">f4"))[0].shape == (2, 2)
