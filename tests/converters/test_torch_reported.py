"""What a reader of the PyTorch import found: what it now computes, and what it says of the rest."""

from __future__ import annotations

import collections
import typing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch import nn

import interlux as ix
from tests.helpers import Calls, check_batches, check_outputs, check_training

BIG = torch.tensor([[2**31 + 1, 2**30 + 1, 5, -(2**33)], [3, 2**40, -(2**40) - 1, 2**55 + 1]])
OVER = torch.tensor([[3, 9, 1, 5], [7, 1, 4, 2**31 + 6]]) + 2**33  # they differ in the lower half only

# --- 64-bit integers on onnxruntime

LONG = {
    "max of all": lambda m, x: x.max(),
    "max along axes": lambda m, x: (x.amax(1), x.amax(0), x.amax((0, 1), keepdim=True)),
    "min": lambda m, x: (x.min(), x.amin(1), x.amin((0, 1))),
    "fmod": lambda m, x: (torch.fmod(x, 7), torch.fmod(x, -7), torch.fmod(x, 10 - x.flip(1))),
}


@pytest.mark.parametrize("x", [BIG, OVER], ids=["spread", "close"])
@pytest.mark.parametrize("name", LONG)
def test_long_integers_are_exact(name: str, x: torch.Tensor) -> None:
    module = Calls(LONG[name])
    check_batches(module, ix.from_torch(module, x), [[x], [x[:1]], [torch.cat([x, -x])]])


# --- arguments and results


class ByKeywords(nn.Module):
    def forward(self, x: torch.Tensor, **more: Any) -> torch.Tensor:
        return x * more["scale"] + more["shift"]["by"]


class ByBoth(nn.Module):
    def forward(self, x: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        return x * rest[0] + rest[1][0] * rest[1][1] - more["last"]


def _keywords(n: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.randn(n, 3),), {"scale": torch.randn(n, 3), "shift": {"by": torch.randn(n, 3)}}


def _both(n: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    pair = (torch.randn(n, 3), torch.randn(n, 3))
    return (torch.randn(n, 3), torch.randn(n, 3), pair), {"last": torch.randn(n, 3)}


@pytest.mark.parametrize("dynamic", ["batch", "auto", None, "own"])
@pytest.mark.parametrize(("module", "make"), [(ByKeywords(), _keywords), (ByBoth(), _both)], ids=["kwargs", "both"])
def test_arguments_without_names_in_the_signature(module: nn.Module, make: Any, dynamic: Any) -> None:
    torch.manual_seed(0)  # a result near zero has no digits to compare
    if dynamic == "own":
        rows = torch.export.Dim("rows", min=1)
        dynamic = torch.utils._pytree.tree_map(
            lambda _: {0: rows}, ({"x": 0, "more": make(1)[1]} | ({"rest": make(1)[0][1:]} if make is _both else {}))
        )
    model = ix.from_torch(module, make(3), dynamic)
    assert "forward" not in vars(module)
    leaves = [torch.utils._pytree.tree_leaves(make(n)) for n in ([3] if dynamic is None else [3, 5])]
    check_batches(module, model, leaves)
    args, kwargs = torch.utils._pytree.tree_map(lambda x: x.numpy(), make(3))
    torch_args, torch_kwargs = torch.utils._pytree.tree_map(torch.from_numpy, (args, kwargs))
    np.testing.assert_allclose(ix.compile(model)(*args, **kwargs)[0], module(*torch_args, **torch_kwargs), rtol=1e-5)


def test_one_tensor_given_twice_is_two_inputs() -> None:
    module, x = Calls(lambda m, a, b, c: a * b + c), torch.randn(3, 4)
    model = ix.from_torch(module, (x, x, x))
    check_outputs(module, model, [torch.randn(3, 4) for _ in range(3)])


class Pair(typing.NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


Plain = collections.namedtuple("Plain", ["first", "second"])


class Pairs(nn.Module):
    def __init__(self, kind: Any):
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor, pair: Any) -> Any:
        return self.kind(x * pair.first, {"more": pair.second + 1})


@pytest.mark.parametrize("kind", [Pair, Plain])
def test_named_tuples(kind: Any, tmp_path: Path) -> None:
    module, x = Pairs(kind), torch.randn(3, 4)
    given = (x, kind(torch.randn(3, 4), torch.randn(3, 4)))
    model = ix.from_torch(module, given)
    assert model.signature is not None
    assert [spec.name for spec in model.signature.outputs] == ["first", "second_more"]
    assert [spec.name for spec in model.signature.inputs] == ["x", "pair_first", "pair_second"]
    check_batches(module, model, [[torch.randn(n, 4) for _ in range(3)] for n in (3, 5)])
    ix.save(model, tmp_path / "model")
    for each in (model, ix.load(tmp_path / "model")):
        arrays = given[1].first.numpy(), given[1].second.numpy()
        results = ix.compile(each)(x.numpy(), kind(*arrays))
        nested = each.require_signature().nest_outputs(results)
        np.testing.assert_allclose(nested.first, x * given[1].first, rtol=1e-6)
        assert type(nested).__name__ == kind.__name__ and nested.second["more"].shape == (3, 4)
        by_dict = ix.compile(each)(x.numpy(), dict(zip(("first", "second"), arrays, strict=True)))
        np.testing.assert_array_equal(by_dict[0], results[0])
        with pytest.raises(ix.InvalidModelError, match="must be a dict with keys first, second"):
            ix.compile(each)(x.numpy(), arrays)
    program = torch.export.export(module, given, strict=False)
    assert ix.verify(program, ix.from_torch(program), backends=("jax",)).passed


# --- functions that an exported program cannot hold


def _pack(m: Any, x: torch.Tensor) -> torch.Tensor:
    packed = nn.utils.rnn.pack_padded_sequence(x, m.lengths, batch_first=True, enforce_sorted=False)
    return nn.utils.rnn.pad_packed_sequence(m.lstm(packed)[0], batch_first=True)[0]


def _assigned(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = x * 1
    y.data = x * 2
    return y


def _graded(m: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        return torch.autograd.grad((m.linear(x) ** 3).sum(), x)[0]


def _backward(m: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        m.linear(x).sum().backward()
    return x


REFUSED = {
    "func.grad": (lambda m, x: torch.func.grad(lambda y: (y**3).sum())(x), r"torch\.func .* inside forward"),
    "func.jacrev": (lambda m, x: torch.func.jacrev(lambda y: y.sum(0))(x), r"torch\.func .* inside forward"),
    "func.vjp": (lambda m, x: torch.func.vjp(torch.sin, x)[0], r"torch\.func .* inside forward"),
    "data": (lambda m, x: x * m.weight.data, r"`\.data` hides a tensor .* use \.detach\(\)"),
    "data assigned": (_assigned, r"an assignment to `\.data` cannot be exported"),
    "autograd.grad": (_graded, r"torch\.autograd\.grad inside forward reads tensors"),
    "backward": (_backward, r"backward\(\) inside forward writes gradients"),
    "packed sequences": (_pack, "packed sequences cannot be exported; give the recurrent layer the padded sequences"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_program_cannot_hold_is_said_in_one_line(name: str) -> None:
    function, reason = REFUSED[name]
    parts = {"linear": nn.Linear(4, 4), "weight": nn.Parameter(torch.ones(4)), "lengths": torch.tensor([5, 2, 3])}
    module = Calls(function, lstm=nn.LSTM(4, 5, batch_first=True), **parts)
    with pytest.raises(ix.UnsupportedError, match=reason) as raised:
        ix.from_torch(module, torch.randn(3, 5, 4))
    text = str(raised.value)
    assert "test_torch_reported.py:" in text and not any(w in text for w in ("\n", "github", "TORCH_LOGS", "storage"))


def test_torch_func_stays_in_pytorch() -> None:
    class Slope(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.func.grad(lambda y: (y**3).sum())(x)

    module = nn.Sequential(nn.Linear(4, 4), Slope())
    model = ix.from_torch(module, torch.randn(3, 4), opaque="wrap")
    assert "1 (Slope) stays in PyTorch" in model.notes[0]
    check_outputs(module, model, [torch.randn(3, 4)], backends=("jax",))


def test_gradients_in_forward_that_go_no_further_are_for_evaluation() -> None:
    def forward(m: Any, x: torch.Tensor, further: bool = False) -> torch.Tensor:
        with torch.enable_grad():
            return torch.autograd.grad((x * m.weight * m.weight).sum(), m.weight, create_graph=further)[0] + x

    x = torch.randn(3, 4).double()
    module = Calls(forward, weight=nn.Parameter(torch.rand(4).double()))
    model = ix.from_torch(module, x)
    check_outputs(module, model, [x])
    assert "create_graph=True has no gradient" in model.notes[0]
    with pytest.raises(ix.UnsupportedError, match="create_graph=True has no gradient"):
        model.layer.apply(model.params, model.states, x.numpy(), train=True)
    module = Calls(lambda m, x: forward(m, x, True), weight=module.weight)
    check_training(module, ix.from_torch(module, x), [x])


def test_cdist_of_a_dynamic_number_of_rows() -> None:
    module = Calls(lambda m, x, y: (torch.cdist(x, x + 1), torch.cdist(x, y, p=1.0), torch.cdist(y, x)))
    model = ix.from_torch(module, (torch.randn(3, 5), torch.randn(7, 5)))
    check_batches(module, model, [(torch.randn(n, 5), torch.randn(7, 5)) for n in (3, 2, 30)])


# --- derivatives and empty batches


class Products(nn.Module):
    def __init__(self, rows: bool, include_self: bool):
        super().__init__()
        self.rows, self.include_self = rows, include_self
        self.x = nn.Parameter(torch.tensor([[1.0, 2, 3], [0, 2, 3], [4, 0, 3]]).double())
        self.source = nn.Parameter(torch.tensor([[1.0, 2, 0, 4], [0, 0, 3, 2], [5, 1, 2, 0]]).double())

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        if self.rows:
            return self.x.index_reduce(1, index[0], self.source, "prod", include_self=self.include_self)
        return self.x.scatter_reduce(1, index, self.source, "prod", include_self=self.include_self)


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("include_self", [False, True])
def test_gradients_of_scattered_products(rows: bool, include_self: bool) -> None:
    index = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 0], [1, 0, 0, 0]])
    module = Products(rows, include_self)
    check_training(module, ix.from_torch(module, index, None), [index])


EMPTY = {
    "softmax": lambda m, x: (x.softmax(0), x.softmax(1)),
    "log_softmax": lambda m, x: (x.log_softmax(0), x.log_softmax(1)),
    "logsumexp": lambda m, x: (x.logsumexp(0), x.logsumexp(1)),
    "amax": lambda m, x: x.amax(1),
}


@pytest.mark.parametrize("name", EMPTY)
def test_batches_of_nothing(name: str) -> None:
    model = ix.from_torch(Calls(EMPTY[name]), torch.randn(3, 4))
    expected = torch.utils._pytree.tree_leaves(EMPTY[name](None, torch.randn(0, 4)))
    runner = ix.compile(model)
    for result, own in zip(runner.run([np.zeros((0, 4), np.float32)]), expected, strict=True):
        np.testing.assert_array_equal(result, own.numpy())


# --- notes and messages


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "other."])
def test_names_of_wrapped_networks(prefix: str, tmp_path: Path) -> None:
    module, x = Checkpointed().eval(), torch.randn(2, 4)
    torch.save({prefix + key: value for key, value in module.state_dict().items()}, tmp_path / "weights.pt")
    if prefix == "other.":
        with pytest.raises(ix.InvalidModelError, match=r"unexpected: other\.inner"):
            ix.from_torch(tmp_path / "weights.pt", x, arch=Checkpointed)
        return
    model = ix.from_torch(tmp_path / "weights.pt", x, arch=Checkpointed)
    assert f"begin with {prefix!r}" in model.notes[0]
    check_outputs(module, model, [x])


def test_a_network_whose_own_names_begin_so_keeps_them(tmp_path: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(x)

    torch.save(Wrapper().state_dict(), tmp_path / "weights.pt")
    model = ix.from_torch(tmp_path / "weights.pt", torch.randn(2, 4), arch=Wrapper)
    assert not model.notes and list(model.params) == ["module"]


RANDOM = {
    "randn_like": lambda m, x: x + torch.randn_like(x),
    "dropout": lambda m, x: torch.nn.functional.dropout(x, 0.5, True),
    "rand": lambda m, x: x + torch.rand(4),
    "bernoulli": lambda m, x: torch.bernoulli(x.sigmoid()),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_in_evaluation_are_noted(name: str) -> None:
    model = ix.from_torch(Calls(RANDOM[name]).eval(), torch.randn(3, 4))
    assert any("random numbers are drawn in evaluation too" in note and name in note for note in model.notes)


def test_dropout_that_follows_the_mode_needs_no_note() -> None:
    assert not ix.from_torch(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), torch.randn(3, 4)).notes


VALUELESS = {
    "meta": (lambda: nn.Linear(4, 2, device="meta"), "meta device and have no values; .*: 1.weight; 1.bias"),
    "lazy": (lambda: nn.LazyLinear(3), "call the module once on example inputs: 1.weight; 1.bias"),
}


@pytest.mark.parametrize("name", VALUELESS)
def test_modules_without_values(name: str) -> None:
    make, reason = VALUELESS[name]
    with pytest.raises(ix.UnsupportedError, match=reason):
        ix.from_torch(nn.Sequential(nn.Linear(4, 4), make()), torch.randn(3, 4))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(7)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_parts_that_are_no_modules() -> None:
    model = ix.from_torch(Blocks(), torch.randn(3, 4))
    assert model.part("") is model
    with pytest.raises(
        ix.InvalidModelError, match=r"no 'blocks'; it is only a list of these: 'blocks.0', .* and 2 more"
    ):
        model.part("blocks")
    with pytest.raises(ix.InvalidModelError, match=r"no 'block'; print\(model\)"):
        model.part("block")


def test_second_derivatives_of_scattered_products() -> None:
    index = np.array([[0, 0, 1]])
    layer, params, states = ix.from_torch(Twice(), torch.from_numpy(index), None)

    def ours(p: Any) -> Any:
        return layer.apply(p, states, index, train=False)[0].sum()

    with jax.enable_x64(True):
        found = jax.hessian(ours)(params)["source"]["source"]
    expected = torch.autograd.functional.hessian(
        lambda s: torch.ones(1, 2).double().scatter_reduce(1, torch.from_numpy(index), s, "prod").sum(),
        Twice().source.detach(),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Parameter(torch.tensor([[2.0, 3.0, 5.0]]).double())

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return torch.ones(1, 2).double().scatter_reduce(1, index, self.source, "prod")
