"""The verifier's own test: correct conversions pass at every scale and dtype, broken ones fail."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fixtures.digits
import fixtures.models
import interlux as ix
from interlux.ir import layers, trees
from interlux.ir.errors import InvalidModelError, UnsupportedError, VerificationError
from interlux.ir.graph import Graph, Node, ValueInfo
from interlux.ir.layers import ArrayData, Chain, Constant, Dense, Embedding, Operator, Stored
from interlux.ir.model import Dimension, Model, Signature, TensorSpec
from interlux.runtime.jax import JaxRunner
from interlux.runtime.npz import read_npz
from interlux.runtime.verify import ModelSource, Report, verify
from interlux.runtime.verify.bounds import integer_bounds
from interlux.runtime.verify.compare import LIMIT
from interlux.runtime.verify.probes import SIZE_SETS, combinations, normals, specials, wide
from tests.helpers import Calls

BOTH = ("jax", "onnxruntime")


class TorchSource:
    """A module as the source; float64 is a copy of it."""

    description = "torch module of the test"

    def __init__(self, module: nn.Module):
        self._own = module.eval()
        self._double = copy.deepcopy(module).double()

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return self._outputs(self._own, [torch.from_numpy(a) for a in arrays])

    def run_float64(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        given = [torch.from_numpy(a) for a in arrays]
        return self._outputs(self._double, [x.double() if x.is_floating_point() else x for x in given])

    @staticmethod
    def _outputs(module: nn.Module, inputs: list[torch.Tensor]) -> list[np.ndarray]:
        with torch.no_grad():
            y = module(*inputs)
        return [t.numpy() for t in (y if isinstance(y, tuple) else (y,))]


class FunctionSource:
    """A numpy function as the source."""

    description = "numpy function"

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        y = self._function(*arrays)
        return list(y) if isinstance(y, tuple) else [y]

    def run_float64(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return self.run([a.astype(np.float64) if trees.is_float(a.dtype) else a for a in arrays])


def converted(module: nn.Module, *parts: layers.Operator | Any, sizes: tuple[int, ...], outputs: int) -> Model:
    """The chain of `parts` with the module's arrays; input [batch, *sizes], output [batch, outputs]."""
    params = trees.from_leaves((trees.path_of(k), v.detach().numpy().copy()) for k, v in module.named_parameters())
    states = trees.from_leaves((trees.path_of(k), v.numpy().copy()) for k, v in module.named_buffers())
    dtype = next(module.parameters()).detach().numpy().dtype.name
    signature = Signature((TensorSpec("x", dtype, ("batch", *sizes)),), (TensorSpec("y", dtype, ("batch", outputs)),))
    return Model(Chain(*parts), params, states, signature)


def scaled(module: nn.Sequential, scale: float) -> nn.Sequential:
    with torch.no_grad():
        for p in module[-1].parameters():
            p.mul_(scale)
    return module


def norm_net(scale: float = 1.0, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 5))
    return scaled(net, scale)


def norm_parts(epsilon: float = 1e-5, gelu: Operator = layers.gelu) -> tuple[Any, ...]:
    return Dense(12, 16), layers.LayerNorm((16,), epsilon), gelu, Dense(16, 16), layers.tanh, Dense(16, 5)


def conv_net(scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    )
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.3, 2)
    return scaled(net, scale)


def conv_parts(epsilon: float = 1e-5) -> tuple[Any, ...]:
    conv = layers.Conv(3, 4, (3, 3), pads=(1, 1, 1, 1))
    return conv, layers.BatchNorm(4, epsilon), layers.relu, layers.max_pool((2, 2)), layers.flatten, Dense(36, 5)


def norm_model(net: nn.Sequential, **changes: Any) -> Model:
    return converted(net, *norm_parts(**changes), sizes=(12,), outputs=5)


def conv_model(net: nn.Sequential, **changes: Any) -> Model:
    return converted(net, *conv_parts(**changes), sizes=(3, 6, 6), outputs=5)


def with_array(model: Model, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Model:
    path = trees.path_of(name)
    in_params = trees.find(model.params, path)
    if in_params is not None:
        return replace(model, params=trees.updated(model.params, {path: change(in_params)}))
    in_states: Any = trees.find(model.states, path)
    return replace(model, states=trees.updated(model.states, {path: change(in_states)}))


def one_changed(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    """Changes the largest element."""

    def change(array: np.ndarray) -> np.ndarray:
        new = array.copy()
        new[np.unravel_index(np.abs(new).argmax(), new.shape)] *= factor
        return new

    return change


def plain(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], **dims: Dimension) -> Model:
    """A model whose signature alone matters."""
    return Model(layers.identity, {}, {}, Signature(tuple(inputs), tuple(outputs), dims))


def judge(
    function: Callable[..., Any],
    target: Callable[..., Any],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> Report:
    """A numpy function against another one."""

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        y = target(*arrays)
        return list(y) if isinstance(y, tuple) else [y]

    return verify(FunctionSource(function), plain(inputs, outputs), (), runners={"target": run})


X = TensorSpec("x", "float32", ("batch", 6))
Y = TensorSpec("y", "float32", ("batch", 4))
W = np.random.default_rng(5).standard_normal((6, 4))


def product(x: np.ndarray) -> np.ndarray:
    return x @ W.astype(x.dtype)


# --- correct conversions


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize(("make", "model_of"), [(norm_net, norm_model), (conv_net, conv_model)], ids=["norm", "conv"])
def test_correct_conversions_pass_at_every_scale(make: Any, model_of: Any, scale: float) -> None:
    net = make(scale)
    report = verify(TorchSource(net), model_of(net), BOTH)
    report.raise_if_failed()
    assert [row.backend for row in report.rows] == ["jax", "onnxruntime"]
    assert all(row.worst < 0.75 * LIMIT and row.top1 == 1 and row.kl < 1e-9 for row in report.rows)
    assert len(report.probes) == 3 * 3 + 6 + 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_are_judged_by_their_own_rounding(dtype: torch.dtype) -> None:
    net = norm_net().to(dtype)
    model = norm_model(net)
    report = verify(TorchSource(net), model, ("jax",))
    report.raise_if_failed()
    error = report.rows[0].target_error
    assert 1e-4 < error < 1e-2 if dtype == torch.float16 else error < 1e-14
    change = one_changed(1.5 if dtype == torch.float16 else 1 + 1e-9)
    assert not verify(TorchSource(net), with_array(model, "3.weight", change), ("jax",)).passed


def test_a_saved_model_is_a_source() -> None:
    for dtype in ("float32", "float64", "bfloat16"):
        model = norm_model(norm_net())
        specs = (*model.require_signature().inputs, *model.require_signature().outputs)
        tensors = [replace(spec, dtype=dtype, shape=(4, spec.shape[1])) for spec in specs]
        named = np.dtype(getattr(ml_dtypes, dtype, dtype))
        params = trees.cast(model.params, named)
        model = replace(model, params=params, signature=Signature((tensors[0],), (tensors[1],)))
        source = ModelSource(model)
        assert verify(source, model, ("jax",), seeds=1).passed
        broken = with_array(model, "3.weight", lambda w: (w.astype(np.float64) * 1.1).astype(w.dtype))
        assert not verify(source, broken, ("jax",), seeds=1).passed


def test_float64_stays_float64_through_casts_and_constants() -> None:
    third = Constant(ArrayData.of(np.float32(1 / 3)))
    nodes = (
        Node("third", third, (), ("third",)),
        Node("half", Operator.of("Cast", to=10), ("x",), ("half",)),  # float16
        Node("back", Operator.of("Cast", to=1), ("half",), ("back",)),
        Node("y", Operator("Mul"), ("back", "third"), ("y",)),
    )
    spec = Signature((TensorSpec("x", "float32", (3,)),), (TensorSpec("y", "float32", (3,)),))
    x = np.array([0.1, 0.2, 0.3], np.float32)
    (y,) = ModelSource(Model(Graph(("x",), ("y",), nodes), {}, {}, spec)).run_float64([x])
    assert y.dtype == np.float64
    assert np.array_equal(y, x.astype(np.float64) * np.float64(np.float32(1 / 3)))


def test_linear_models_without_bias_survive_subnormal_inputs() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 3, bias=False))
    verify(TorchSource(net), converted(net, Dense(8, 3, False), sizes=(8,), outputs=3), BOTH).raise_if_failed()


def test_overflow_on_both_sides_is_fine() -> None:
    report = judge(lambda x: np.exp(product(x)), lambda x: np.exp(product(x)), [X], [Y])
    report.raise_if_failed()


@settings(max_examples=8)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 24), min_size=2, max_size=4), st.booleans(), st.integers(-6, 3))
def test_random_networks_pass(seed: int, widths: list[int], bias: bool, power: int) -> None:
    net, model = random_network(seed, widths, bias, 10.0**power)
    verify(TorchSource(net), model, BOTH, seeds=2).raise_if_failed()


@settings(max_examples=8)
@given(st.integers(0, 2**31), st.lists(st.integers(2, 16), min_size=2, max_size=4), st.integers(-6, 3))
def test_random_networks_with_a_changed_weight_fail(seed: int, widths: list[int], power: int) -> None:
    net, model = random_network(seed, widths, True, 10.0**power)
    changed = with_array(model, f"{2 * (seed % (len(widths) - 1))}.weight", lambda w: (w * (1 + 1e-4)).astype(w.dtype))
    assert not verify(TorchSource(net), changed, ("jax",), seeds=2).passed


def random_network(seed: int, widths: list[int], bias: bool, scale: float) -> tuple[nn.Sequential, Model]:
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    parts: list[Any] = []
    for a, b in pairwise(widths):
        modules += [nn.Linear(a, b, bias=bias), nn.Tanh()]
        parts += [Dense(a, b, bias), layers.tanh]
    net = scaled(nn.Sequential(*modules[:-1]), scale)
    return net, converted(net, *parts[:-1], sizes=(widths[0],), outputs=widths[-1])


# --- mutants

MUTANTS: dict[str, Callable[[], tuple[nn.Sequential, Model]]] = {
    "LayerNorm's epsilon": lambda: (n := norm_net(), norm_model(n, epsilon=1e-6)),
    "LayerNorm's epsilon, small outputs": lambda: (n := norm_net(1e-6), norm_model(n, epsilon=1e-6)),
    "LayerNorm's epsilon, large outputs": lambda: (n := norm_net(1e3), norm_model(n, epsilon=1e-6)),
    "BatchNorm's epsilon": lambda: (n := conv_net(), conv_model(n, epsilon=1e-3)),
    "BatchNorm's epsilon, nearly right": lambda: (n := conv_net(), conv_model(n, epsilon=2e-5)),
    "tanh GELU": lambda: (n := norm_net(), norm_model(n, gelu=Operator.of("Gelu", approximate="tanh"))),
    "one weight by 1 %": lambda: (n := norm_net(), with_array(norm_model(n), "3.weight", one_changed(1.01))),
    "transposed weight": lambda: (n := norm_net(), with_array(norm_model(n), "3.weight", lambda w: w.T.copy())),
    "no running mean": lambda: (n := conv_net(), with_array(conv_model(n), "1.running_mean", np.zeros_like)),
    "no running variance": lambda: (n := conv_net(), with_array(conv_model(n), "1.running_var", np.ones_like)),
    "weights in float16": lambda: (
        n := norm_net(),
        with_array(norm_model(n), "0.weight", lambda w: w.astype(np.float16).astype(np.float32)),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_fail(name: str) -> None:
    net, model = MUTANTS[name]()
    report = verify(TorchSource(net), model, BOTH)
    assert not any(row.passed for row in report.rows)
    assert all(row.worst > 2 * LIMIT for row in report.rows)
    with pytest.raises(VerificationError, match="output 'y' on") as caught:
        report.raise_if_failed()
    assert "\n" not in str(caught.value)


def test_swapped_outputs_fail() -> None:
    pair = (lambda x: (product(x), product(x) * 2)), (lambda x: (product(x) * 2, product(x)))
    report = judge(*pair, [X], [Y, replace(Y, name="z")])
    assert [row.output for row in report.rows if not row.passed] == ["y", "z"]


def test_swapped_outputs_of_a_graph_fail() -> None:
    torch.manual_seed(0)
    heads = nn.ModuleList([nn.Linear(6, 4), nn.Linear(6, 4)])

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = heads

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.heads[0](x), self.heads[1](x)

    base = converted(Two(), Dense(6, 4), sizes=(6,), outputs=4)

    def model(outputs: tuple[str, str]) -> Model:
        nodes = tuple(
            Node(
                f"head{k}",
                Dense(6, 4),
                ("x",),
                (f"y{k}",),
                tuple((slot, ("heads", str(k), slot)) for slot in ("weight", "bias")),
            )
            for k in range(2)
        )
        signature = Signature((X,), (Y, replace(Y, name="z")))
        return replace(base, layer=Graph(("x",), outputs, nodes), signature=signature)

    assert verify(TorchSource(Two()), model(("y0", "y1")), BOTH).passed
    assert not any(row.passed for row in verify(TorchSource(Two()), model(("y1", "y0")), BOTH).rows)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (lambda x: product(x).astype(np.float64), "dtype float64"),
        (lambda x: product(x)[:, :3], "shape"),
        (lambda x: (product(x), product(x)), "2 outputs"),
        (lambda x: np.where(product(x) > 2, np.float32(np.nan), product(x)), "NaN or infinity"),
        (lambda x: np.where(product(x) > 2, np.float32(np.inf), product(x)), "NaN or infinity"),
        (lambda x: 1 // 0, "division"),
    ],
    ids=["dtype", "shape", "number", "NaN", "infinity", "exception"],
)
def test_what_must_be_equal(target: Callable[..., Any], reason: str) -> None:
    report = judge(product, target, [X], [Y])
    assert not report.passed
    assert reason in report.rows[0].reason


def test_integer_outputs_are_exact() -> None:
    top = TensorSpec("top", "int64", ("batch",))

    def best(x: np.ndarray) -> np.ndarray:
        return product(x).argmax(axis=1)

    assert judge(best, best, [X], [top]).passed
    report = judge(best, lambda x: best(x) + 1, [X], [top])
    assert "values differ" in report.rows[0].reason
    # a near tie that the source decides otherwise than float64: either is right
    near = lambda x: np.full(x.shape[0], x.dtype == np.float64, np.int64) + best(x)  # noqa: E731
    assert judge(near, best, [X], [top]).passed
    assert judge(near, lambda x: best(x) + 1, [X], [top]).passed


def test_boolean_outputs_are_exact() -> None:
    positive = TensorSpec("positive", "bool", ("batch", 4))
    assert judge(lambda x: product(x) > 0, lambda x: product(x) > 0, [X], [positive]).passed
    assert not judge(lambda x: product(x) > 0, lambda x: product(x) <= 0, [X], [positive]).passed


def test_a_wrong_row_among_many_is_seen() -> None:
    def target(x: np.ndarray) -> np.ndarray:
        y = product(x)
        y[500] *= np.float32(1 + 3e-6)
        return y

    x = np.random.default_rng(0).standard_normal((1000, 6)).astype(np.float32)
    source, model = FunctionSource(product), plain([X], [Y])
    runners = {"right": lambda a: [product(a[0])], "wrong": lambda a: [target(a[0])]}
    right, wrong = verify(source, model, (), runners=runners, inputs={"x": x}).rows
    assert right.passed
    assert wrong.slice_name == "row 500"
    assert not wrong.passed
    assert wrong.ratio < LIMIT


def test_a_wrong_channel_among_larger_ones_is_seen() -> None:
    size = np.array([1e3, 1, 1e-2, 1])

    def right(x: np.ndarray) -> np.ndarray:
        return product(x) * size.astype(x.dtype)

    def wrong(x: np.ndarray) -> np.ndarray:
        return right(x) * np.array([1, 1, 1 + 1e-4, 1], x.dtype)

    assert judge(right, right, [X], [Y]).passed
    row = judge(right, wrong, [X], [Y]).rows[0]
    assert not row.passed
    assert row.slice_name == "index 2 of axis 1"


def test_a_source_exact_by_luck_does_not_alarm() -> None:
    """Powers of two: the source makes no error at all, the target rounds once."""
    rounded = lambda x: x * np.float32(4) * np.float32(1 + 2**-23)  # noqa: E731
    judge(lambda x: x * 4, rounded, [X], [replace(Y, shape=X.shape)]).raise_if_failed()


# --- what cannot be verified


def test_a_constant_model_is_unverifiable() -> None:
    report = judge(lambda x: np.ones((len(x), 4), x.dtype), lambda x: np.ones((len(x), 4), x.dtype), [X], [Y])
    assert not report.passed
    assert "unverifiable" in report.rows[0].reason
    # also with the user's own inputs
    model = plain([X], [Y])
    same = {"same": lambda a: [np.ones((len(a[0]), 4), np.float32)]}
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    source = FunctionSource(lambda x: np.ones((len(x), 4), x.dtype))
    assert "unverifiable" in verify(source, model, (), runners=same, inputs={"x": x}).rows[0].reason


def test_one_constant_output_is_a_note() -> None:
    report = judge(
        lambda x: (product(x), np.ones(3, x.dtype)),
        lambda x: (product(x), np.ones(3, x.dtype)),
        [X],
        [Y, TensorSpec("z", "float32", (3,))],
    )
    assert report.passed
    assert any("output z is the same for all inputs" in note for note in report.notes)


def test_nothing_but_nan_is_not_passed() -> None:
    def function(x: np.ndarray) -> np.ndarray:
        return np.concatenate([product(x)[:, :3], product(x)[:, 3:]], 1) * np.array(np.nan, x.dtype)

    assert not judge(function, function, [X], [Y]).passed


def test_a_source_without_correct_digits_is_not_passed() -> None:
    def chaos(x: np.ndarray) -> np.ndarray:
        for _ in range(60):
            x = 4 * np.abs(x % 1) * (1 - np.abs(x % 1))
        return x

    report = judge(chaos, chaos, [X], [replace(Y, shape=X.shape)])
    assert "too inexact" in report.rows[0].reason


def test_a_source_that_cannot_run_is_an_error() -> None:
    def broken(x: np.ndarray) -> np.ndarray:
        raise RuntimeError("no kernel\nat all")

    with pytest.raises(InvalidModelError, match="nothing can be verified") as caught:
        judge(broken, product, [X], [Y])
    assert "\n" not in str(caught.value)


def test_sizes_that_the_source_refuses_are_left_out() -> None:
    def picky(x: np.ndarray) -> np.ndarray:
        if len(x) < 16:
            raise ValueError("too small")
        return product(x)

    report = judge(picky, product, [X], [Y])
    assert report.passed
    assert "normal, batch=16, seed 0" in report.probes
    assert any("too small" in note for note in report.notes)


def test_unknown_backends() -> None:
    model = plain([X], [Y])
    with pytest.raises(UnsupportedError, match="not known"):
        verify(FunctionSource(product), model, ("tvm",))
    with pytest.raises(UnsupportedError, match="name a backend"):
        verify(FunctionSource(product), model, ())


def test_a_backend_that_refuses_the_model_is_a_failed_row() -> None:
    layer = Chain(layers.Dropout(0.5, mode="always"))  # neither keeps the seed that it writes
    states = {"0": {"seed": np.array([1, 2], np.uint32)}}
    model = Model(layer, {}, states, Signature((X,), (replace(Y, shape=X.shape),)))
    report = verify(FunctionSource(lambda x: x), model, BOTH)
    assert [row.backend for row in report.rows] == ["jax", "onnxruntime"]
    assert all(row.reason and not row.output and not row.passed for row in report.rows)


# --- inputs


def embedding_model(rows: int = 7) -> tuple[nn.Module, Model]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(rows, 4), nn.Linear(4, 3))
    model = converted(net, Embedding(rows, 4), Dense(4, 3), sizes=("time",), outputs=3)  # type: ignore[arg-type]
    inputs = (TensorSpec("ids", "int64", ("batch", "time")),)
    return net, replace(model, signature=Signature(inputs, (TensorSpec("y", "float32", ("batch", "time", 3)),)))


def test_integer_inputs_reach_every_row_and_no_further() -> None:
    net, model = embedding_model()
    assert integer_bounds(model) == {"ids": (0, 6)}
    seen: set[int] = set()

    class Watching(TorchSource):
        def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
            seen.update(arrays[0].reshape(-1).tolist())
            return super().run(arrays)

    report = verify(Watching(net), model, BOTH)
    report.raise_if_failed()
    assert seen == set(range(7))
    assert any("largest integers" in name for name in report.probes)

    def last_row_wrong(w: np.ndarray) -> np.ndarray:
        return np.concatenate([w[:-1], w[-1:] * np.float32(1.001)])

    assert not verify(TorchSource(net), with_array(model, "0.weight", last_row_wrong), BOTH).passed


def test_integer_bounds_through_a_graph() -> None:
    table = np.zeros((9, 2), np.float32)
    nodes = (
        Node("axes", Constant(ArrayData.of(np.array([0]))), (), ("axes",)),
        Node("cast", Operator.of("Cast", to=7), ("ids",), ("wide",)),
        Node("unsqueeze", Operator("Unsqueeze"), ("wide", "axes"), ("row",)),
        Node("table", Stored(), (), ("table",), (("value", ("table",)),)),
        Node("gather", Operator.of("Gather", axis=0), ("table", "row"), ("y",)),
        Node("small", Embedding(5, 2), ("kind",), ("z",), (("weight", ("kinds",)),)),
        Node("other", Operator.of("Gather", axis=1), ("known", "place"), ("w",)),
    )
    inputs = tuple(
        TensorSpec(name, dtype, shape)
        for name, dtype, shape in (
            ("ids", "int32", ("n",)), ("kind", "int64", ("n",)), ("place", "int64", ("n",)), ("free", "int64", ()),
            ("known", "float32", (2, 3)),
        )
    )  # fmt: skip
    outputs = tuple(TensorSpec(name, "float32", (None, None)) for name in "yzw")
    values = {"known": ValueInfo("float32", (2, 3))}
    graph = Graph(tuple(spec.name for spec in inputs), ("y", "z", "w"), nodes, values)
    params = {"table": table, "kinds": table[:5]}
    model = Model(graph, params, {}, Signature(inputs, outputs))
    assert integer_bounds(model) == {"ids": (0, 8), "kind": (0, 4), "place": (0, 2)}


def test_sizes_respect_the_ranges_of_dimensions() -> None:
    def sizes(**dims: Dimension) -> list[tuple[int, ...]]:
        spec = TensorSpec("x", "float32", tuple(dims))
        signature = plain([spec], [spec], **dims).require_signature()
        found = list(combinations(signature, SIZE_SETS[0]))
        attempts = [probes[0].arrays[0].shape for probes in wide(signature, {}, 1, found[-1], 33)]
        shapes = [next(normals(signature, {}, 1, sizes)).arrays[0].shape for sizes in found]
        return list(dict.fromkeys((*shapes, attempts[0])))

    assert sizes(n=Dimension()) == [(1,), (2,), (5,), (33,)]
    assert sizes(n=Dimension(4)) == [(4,), (5,), (7,), (33,)]
    assert sizes(n=Dimension(1, None, 8)) == [(8,), (16,), (24,), (32,)]
    assert sizes(n=Dimension(1, 2)) == [(1,), (2,)]
    assert sizes(n=Dimension(3, 3)) == [(3,)]
    two = sizes(a=Dimension(), b=Dimension())
    assert {(1, 1), (2, 2), (5, 7), (33, 35)} <= set(two)
    assert len(two) == 5


def test_probes_are_deterministic() -> None:
    def draw() -> list[bytes]:
        signature = plain([X, TensorSpec("i", "int64", (3,)), TensorSpec("b", "bool", (3,))], [Y]).require_signature()
        probes = [*normals(signature, {}, 2, {"batch": 3}), *specials(signature, {}, 2, {"batch": 3})]
        probes += [p for attempt in wide(signature, {}, 2, {"batch": 3}, 33) for p in attempt]
        return [a.tobytes() for p in probes for a in (*p.arrays, *p.jittered(0))]

    assert draw() == draw()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_jitter_is_one_unit_and_keeps_whole_numbers(dtype: str) -> None:
    from interlux.runtime.verify.probes import Probe

    named = np.dtype(getattr(ml_dtypes, dtype, dtype))
    x = np.array([0.0, 1.0, -3.0, np.inf, np.nan, 0.3, -0.7], named)
    (moved,) = Probe("p", "normal", [x]).jittered(0)
    assert moved.dtype == named
    assert np.array_equal(moved[:5], x[:5], equal_nan=True)
    step = np.abs((moved[5:].astype(np.float64) - x[5:].astype(np.float64)) / x[5:].astype(np.float64))
    assert (step > 0).all()
    assert (step <= 1.01 * float(ml_dtypes.finfo(named).eps)).all()


def test_own_inputs(tmp_path: Path) -> None:
    net = norm_net()
    model, source = norm_model(net), TorchSource(net)
    x = np.random.default_rng(0).standard_normal((40, 12)).astype(np.float32)
    file = tmp_path / "inputs.npz"
    np.savez(file, x=x)
    assert verify(source, model, ("jax",), inputs=file).passed
    report = verify(source, with_array(model, "3.weight", one_changed(1.01)), ("jax",), inputs={"x": x})
    assert report.probes == ("your inputs",)
    assert not report.passed
    np.savez(file, x=x.astype(">f4"))
    assert read_npz(file)["x"].dtype.isnative
    assert verify(source, model, "jax", inputs=file).passed
    with pytest.raises(InvalidModelError, match="unknown input 'z'"):
        verify(source, model, ("jax",), inputs={"z": x})
    with pytest.raises(InvalidModelError, match="float32, not float64"):
        verify(source, model, ("jax",), inputs={"x": x.astype(np.float64)})
    file.write_bytes(b"not a zip file")
    with pytest.raises(InvalidModelError, match="cannot be read"):
        verify(source, model, ("jax",), inputs=file)
    np.save(tmp_path / "one.npy", x)
    with pytest.raises(InvalidModelError, match="one array without a name"):
        read_npz(tmp_path / "one.npy")
    np.savez(file, x=np.array([{}]))
    with pytest.raises(InvalidModelError, match="Python objects"):
        read_npz(file)
    with pytest.raises(InvalidModelError, match="no such file"):
        read_npz(tmp_path / "none.npz")


# --- the report


def test_the_report(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\x1b[2J"
    specs = [X], [replace(Y, name=hostile)]
    passed = judge(product, product, *specs)
    failed = judge(product, lambda x: product(x) * np.float32(1.01), *specs)
    assert (passed.passed, failed.passed) == (True, False)
    for report in (passed, failed):
        content = json.loads(report.to_json())
        assert content["passed"] is report.passed
        assert content["rows"][0]["backend"] == "target"
        extra = [("Accuracy <b>", [("on", "value"), ("jax", 0.98)])]
        page = report.to_html(tmp_path / "report.html", extra_sections=extra)
        assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
        assert "<script" not in page
        assert "\x1b" not in page
        assert "http" not in page.replace("http-equiv", "")  # self-contained
        assert "Accuracy &lt;b&gt;" in page
        assert "\x1b" not in str(report)
    with pytest.raises(VerificationError) as caught:
        failed.raise_if_failed()
    assert "\x1b" not in str(caught.value)
    assert "FAILED" in str(failed)
    passed.raise_if_failed()


def test_a_report_of_nan_is_valid_json() -> None:
    report = judge(product, lambda x: 1 // 0, [X], [Y])
    assert json.loads(report.to_json())["rows"][0]["ratio"] is None
    report.to_html()


def test_names_of_outputs() -> None:
    class Named:
        output_names = ("other",)

        def __call__(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
            return [product(arrays[0])]

    report = verify(FunctionSource(product), plain([X], [Y]), (), runners={"file": Named()})
    assert "named other" in report.rows[0].reason


def test_a_runner_is_judged_under_its_label() -> None:
    net = norm_net()
    model = norm_model(net)
    report = verify(TorchSource(net), model, (), runners={"b.onnx": JaxRunner(model).run})
    assert report.passed
    assert report.rows[0].backend == "b.onnx"


# --- networks from PyTorch, through the importer


def from_torch(module: nn.Module, example: torch.Tensor) -> tuple[Any, Model]:
    model = ix.from_torch(module.eval(), example, "batch")
    return ix.api.source_of(module, model), model


def test_units_that_only_images_activate_are_verified() -> None:
    """Negated biases, rows and columns of LeNet that change a logit of the test set are rejected."""
    net = fixtures.models.load("digits_lenet").eval()
    source, model = from_torch(net, torch.zeros(2, 1, 32, 32))
    images = fixtures.digits.lenet_input(fixtures.digits.load_test()[0])[:90]
    rng = np.random.default_rng(0)
    before = net(torch.from_numpy(images)).detach()
    runners: dict[str, Any] = {}
    while len(runners) < 80:
        name = f"fc{rng.integers(1, 4)}"
        axis = int(rng.integers(3))
        mutant = copy.deepcopy(net)
        with torch.no_grad():
            layer = getattr(mutant, name)
            part = layer.bias if axis == 2 else layer.weight if axis == 0 else layer.weight.T
            k = int(rng.integers(len(part)))
            part[k] *= -1
            if (mutant(torch.from_numpy(images)) - before).abs().max() > 0.01 * before.abs().max():
                runners[f"{name} {axis} {k}"] = TorchSource(mutant).run
    rows = verify(source, model, (), runners=runners).rows
    assert sum(not row.passed for row in rows) >= 0.97 * len(rows)


def test_a_bfloat16_network() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).bfloat16()
    source, model = from_torch(net, torch.zeros(2, 16, dtype=torch.bfloat16))
    on_jax, on_onnxruntime = verify(source, model, "jax, onnxruntime").rows
    assert on_jax.passed
    assert 1e-4 < on_jax.source_error < 1e-1
    assert not on_onnxruntime.passed
    assert on_onnxruntime.reason
    broken = with_array(model, "2.weight", lambda w: (np.asarray(w, np.float32) * 1.5).astype(w.dtype))
    assert not verify(source, broken, "jax").passed


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x.mean((2, 3)), (2, 4, 112, 112)),
        (lambda x: x.cumsum(-1), (2, 5000)),
        (lambda x: x.mean(-1), (2, 50000)),
        (lambda x: x.softmax(-1), (2, 10000)),
        (lambda x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True), (2, 16)),
        (lambda x: nn.functional.layer_norm(x, x.shape[1:]), (2, 3, 64, 64)),
    ],
    ids=["mean", "cumsum", "long mean", "softmax", "standardise", "layer norm"],
)
def test_long_sums_pass(function: Any, shape: tuple[int, ...]) -> None:
    source, model = from_torch(Calls(lambda _, x: function(x)), torch.zeros(shape))
    verify(source, model, seeds=1).raise_if_failed()
    wrong = lambda arrays: [source.run(arrays)[0] * np.float32(1.001)]  # noqa: E731
    assert not verify(source, model, (), runners={"wrong": wrong}, seeds=1).passed


@pytest.mark.parametrize(("width", "seeds"), [(1, 30), (16, 6)])
def test_scalar_networks_that_saturate_pass(width: int, seeds: int) -> None:
    for seed in range(seeds):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 1))
        model = converted(
            net, Dense(1, 64), layers.tanh, Dense(64, width), layers.tanh, Dense(width, 1), sizes=(1,), outputs=1
        )
        verify(TorchSource(net), model, ("jax",)).raise_if_failed()


# --- kinds of inputs


def test_integers_of_unknown_range() -> None:
    image = TensorSpec("image", "uint8", ("batch", 6))
    y = replace(Y, shape=image.shape)

    def right(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float32) / np.float32(255)

    assert judge(right, right, [image], [y]).passed
    assert not judge(right, lambda x: right(np.minimum(x, 200)), [image], [y]).passed
    assert not judge(right, lambda x: right(x.view(np.int8)), [image], [y]).passed

    def picky(x: np.ndarray) -> np.ndarray:
        return np.arange(150, dtype=np.float32)[x] if x.min() >= 0 else right(x[:0, :0, None][0])

    ids = TensorSpec("ids", "int64", ("batch", 6))
    report = judge(picky, picky, [ids], [y])
    assert report.passed
    assert any("numbers from 0 to 100 were used" in note for note in report.notes)
    assert not judge(picky, lambda x: picky(np.minimum(x, 90)), [ids], [y]).passed
    mask = TensorSpec("attention_mask", "int64", ("batch", 6))
    assert set(np.unique(next(normals(plain([mask], [y]).require_signature(), {}, 1, {"batch": 9})).arrays[0])) == {
        0,
        1,
    }


@pytest.mark.parametrize("epsilon", [1e-6, 1e-9, 1e-11])
def test_a_small_epsilon_is_verified(epsilon: float) -> None:
    def unit(x: np.ndarray, epsilon: float = 1e-12) -> np.ndarray:
        return x / np.maximum(np.sqrt((x * x).sum(-1, keepdims=True)), x.dtype.type(epsilon))

    y = replace(Y, shape=X.shape)
    assert judge(unit, unit, [X], [y]).passed
    assert not judge(unit, lambda x: unit(x, epsilon), [X], [y]).passed


def test_small_scores_beside_large_boxes() -> None:
    def detect(x: np.ndarray, factor: float = 1) -> np.ndarray:
        y = product(x)
        return np.concatenate([300 + 100 * np.tanh(y), x.dtype.type(factor * 1e-4) / (1 + np.exp(-y))], -1)

    y = replace(Y, shape=("batch", 8))
    assert judge(detect, detect, [X], [y]).passed
    assert not judge(detect, lambda x: detect(x, 1.01).astype(x.dtype), [X], [y]).passed


def test_sizes_above_those_of_most_probes() -> None:
    assert not judge(product, lambda x: product(x) * np.float32(1 + (len(x) > 8)), [X], [Y]).passed


def test_integers_alone_are_compared_on_many_samples() -> None:
    top = TensorSpec("top", "int64", ("batch",))
    best = lambda x: product(x).argmax(axis=1)  # noqa: E731
    report = judge(best, best, [X], [top])
    assert any(int(note.split(":")[1].split()[0]) > 400 for note in report.notes if "were compared" in note)

    def rarely(x: np.ndarray) -> np.ndarray:
        return np.where(product(x).max(axis=1) > 9, 0, best(x))

    assert not judge(best, rarely, [X], [top]).passed


def test_nan_must_stay_in_its_sample() -> None:
    def leaking(x: np.ndarray) -> np.ndarray:
        return product(x) + x[:1, :1] * np.float32(0)

    report = judge(product, leaking, [X], [Y])
    assert "row 1" in report.rows[0].reason

    def within(x: np.ndarray) -> np.ndarray:
        return np.nan_to_num(product(x))

    report = judge(product, within, [X], [Y])
    assert report.passed
    assert any("NaN or infinity in the inputs" in note for note in report.notes)


def test_specials_come_at_a_size_that_the_source_takes() -> None:
    def picky(x: np.ndarray) -> np.ndarray:
        if len(x) > 2:
            raise ValueError("too large")
        return np.where(x == 0, 0, 1 / x).astype(x.dtype)

    def target(x: np.ndarray) -> np.ndarray:
        return (1 / np.where(x == 0, 1, x)).astype(x.dtype)

    y = replace(Y, shape=X.shape)
    report = judge(picky, picky, [X], [y])
    assert "zeros, batch=2" in report.probes
    assert not judge(picky, target, [X], [y]).passed


def test_what_only_subnormal_inputs_change_is_a_note() -> None:
    def within(x: np.ndarray) -> np.ndarray:
        return x / np.where(np.abs(x) > 1e-37, x, 0) if (x != 0).all() and np.abs(x).max() < 1e-37 else x / x

    y = replace(Y, shape=X.shape)
    report = judge(lambda x: x / x * x.dtype.type(1) + x, lambda x: within(x) + x, [X], [y])
    assert report.passed


def test_an_empty_output_is_not_nan() -> None:
    report = judge(
        lambda x: (product(x), x[:, :0]),
        lambda x: (product(x), x[:, :0]),
        [X],
        [Y, replace(Y, name="z", shape=("batch", 0))],
    )
    assert report.passed
