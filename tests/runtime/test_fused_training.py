"""Training on the CPU as one native function, beside PyTorch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from threading import Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite")
pytest.importorskip("torch")

import torch
from torch import nn
from torch.nn import functional

import interlux as ix
from interlux.ir.errors import InvalidModelError, UnsupportedError
from interlux.ir.layers import BatchNorm, Chain, Dense, Dropout, tanh
from interlux.ir.model import Model
from interlux.runtime.fused.target import executable
from interlux.runtime.fused.training import FusedGradient, FusedTrainer, Optimizer, fused_gradient, fused_trainer
from interlux.runtime.fused.training.recorder import tape_of
from interlux.runtime.fused.training.steps import Linear

TARGETS = [t.name for t in executable()]


class Residual(nn.Module):
    """A sum of two paths."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class Joined(nn.Module):
    """Two paths one after the other."""

    def __init__(self, *inner: nn.Module):
        super().__init__()
        self.inner = nn.ModuleList(inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(x) for part in self.inner], 1)


class Function(nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class Own(nn.Module):
    """A function of itself and of the input, with parameters, buffers and modules by name."""

    def __init__(self, function: Callable[..., torch.Tensor], **parts: Any):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def weights(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


class Products(nn.Module):
    """Parameters in scalar operations."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(3, 1))
        self.own = nn.Parameter(torch.randn(3, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.scale - self.shift) / (2 + self.own**2) + x * x


def _convolutions() -> list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]]:
    return [
        ("conv2d", lambda: nn.Conv2d(3, 5, 3), (3, 7, 6)),
        ("conv2d-relu", lambda: nn.Sequential(nn.Conv2d(2, 7, (3, 5), padding=(1, 2)), nn.ReLU()), (2, 6, 9)),
        ("conv2d-stride", lambda: nn.Conv2d(4, 6, 3, stride=(2, 3), padding=1), (4, 9, 11)),
        ("conv2d-dilation", lambda: nn.Conv2d(2, 3, 3, dilation=(2, 1), padding=2, stride=2, bias=False), (2, 9, 10)),
        ("conv2d-groups", lambda: nn.Conv2d(6, 4, 3, groups=2, padding=1), (6, 5, 5)),
        ("depthwise", lambda: nn.Conv2d(5, 10, 3, groups=5, padding=1), (5, 6, 6)),
        ("pointwise", lambda: nn.Sequential(nn.Conv2d(9, 7, 1), nn.Tanh(), nn.Conv2d(7, 3, 1)), (9, 3, 4)),
        (
            "conv1d",
            lambda: nn.Sequential(nn.Conv1d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv1d(8, 2, 2, stride=2)),
            (3, 13),
        ),
        ("conv2d-wide", lambda: nn.Conv2d(2, 2, 3, padding=1), (2, 3, 40)),
        ("two-convs", lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 17, 3, padding=1)), (1, 8, 8)),
    ]


def _pools() -> list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]]:
    conv = lambda: nn.Conv2d(2, 3, 3, padding=1)  # noqa: E731
    return [
        ("max", lambda: nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2)), (2, 8, 6)),
        ("max-odd", lambda: nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2)), (2, 7, 9)),
        ("max-overlapping", lambda: nn.Sequential(conv(), nn.MaxPool2d(3, 2, 1)), (2, 8, 7)),
        ("max-large", lambda: nn.Sequential(conv(), nn.MaxPool2d(5, 2, 2)), (2, 9, 7)),
        ("max1d", lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.MaxPool1d(3)), (2, 14)),
        ("mean", lambda: nn.Sequential(conv(), nn.AvgPool2d(2)), (2, 8, 6)),
        ("mean-padded", lambda: nn.Sequential(conv(), nn.AvgPool2d(3, 2, 1)), (2, 8, 7)),
        ("mean-uncounted", lambda: nn.Sequential(conv(), nn.AvgPool2d(3, 2, 1, count_include_pad=False)), (2, 8, 7)),
        ("global", lambda: nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), (2, 5, 5)),
        ("global-max", lambda: nn.Sequential(conv(), nn.AdaptiveMaxPool2d(1), nn.Flatten()), (2, 5, 5)),
    ]


def _others() -> list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]]:
    return [
        ("linear", lambda: nn.Linear(7, 13), (7,)),
        ("linear-no-bias", lambda: nn.Sequential(nn.Linear(1, 3, bias=False), nn.Sigmoid(), nn.Linear(3, 1)), (1,)),
        ("linear-wide", lambda: nn.Sequential(nn.Linear(37, 50), nn.ReLU(), nn.Linear(50, 19)), (37,)),
        ("linear-rows", lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3)), (5, 6)),
        ("residual", lambda: nn.Sequential(nn.Linear(5, 5), Residual(nn.Sequential(nn.Linear(5, 5), nn.Tanh()))), (5,)),
        ("residual-13", lambda: nn.Sequential(nn.Linear(13, 13), Residual(nn.Linear(13, 13))), (13,)),
        ("residual2d", lambda: nn.Sequential(nn.Conv2d(5, 5, 1), Residual(nn.Conv2d(5, 5, 3, padding=1))), (5, 7, 7)),
        ("concat", lambda: Joined(nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 2), nn.ReLU()), nn.Identity()), (4,)),
        ("slice", lambda: nn.Sequential(nn.Linear(6, 8), Function(lambda x: x[:, ::3] * x[:, 1:4])), (6,)),
        ("products", lambda: nn.Sequential(nn.Linear(5, 5), Products()), (3, 5)),
        ("layernorm", lambda: nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 2)), (6,)),
        ("layernorm-rows", lambda: nn.Sequential(nn.Linear(6, 7), nn.LayerNorm((3, 7))), (3, 6)),
        ("layernorm-plain", lambda: nn.LayerNorm(6, elementwise_affine=False), (3, 6)),
        ("groupnorm", lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6), nn.ReLU()), (2, 6, 6)),
        ("batchnorm", lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), (5,)),
        ("batchnorm2d", lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3),
                                              nn.BatchNorm2d(3, affine=False)), (2, 7, 7)),
        ("softmax", lambda: nn.Sequential(nn.Linear(4, 5), nn.Softmax(1), nn.Linear(5, 2), nn.LogSoftmax(1)), (4,)),
        ("transpose", lambda: nn.Sequential(Function(lambda x: x.transpose(1, 2)), nn.Linear(3, 2)), (3, 4)),
        ("prelu", lambda: nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, 2), nn.PReLU(2)), (4,)),
        ("sums", lambda: nn.Sequential(nn.Linear(4, 6), Function(lambda x: x.sum(1, True) * x.mean(1, True))), (4,)),
        ("clamp", lambda: nn.Sequential(nn.Linear(4, 6), Function(lambda x: x.clamp(-0.3, 0.4))), (4,)),
    ]  # fmt: skip


def _parameters() -> list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]]:
    """Sums of a product that is read elsewhere too, and parameters that go into steps other than products."""
    plus = lambda h, b: (h + b) * h  # noqa: E731
    both = lambda h, b: torch.cat([h + b, h], 1)  # noqa: E731
    return [
        ("sum-of-a-used-product", lambda: Own(lambda s, x: plus(x @ s.w, s.b), w=weights(4, 5), b=weights(5)), (4,)),
        ("concat-of-a-used-product", lambda: Own(lambda s, x: both(x @ s.w, s.b), w=weights(4, 5), b=weights(5)), (4,)),
        ("scalar-bias", lambda: Own(lambda s, x: x @ s.w + s.b, w=weights(4, 5), b=weights()), (4,)),
        ("bias-of-rows", lambda: Own(lambda s, x: x @ s.w + s.b, w=weights(4, 5), b=weights(3, 5)), (3, 4)),
        ("softmax-of", lambda: Own(lambda s, x: x * s.w.softmax(0), w=weights(4)), (4,)),
        ("log-softmax-of", lambda: Own(lambda s, x: x * s.w.log_softmax(0), w=weights(4)), (4,)),
        ("sum-of", lambda: Own(lambda s, x: x * s.w.sum(), w=weights(4)), (4,)),
        ("mean-of", lambda: Own(lambda s, x: x * s.w.mean(0), w=weights(3, 4)), (4,)),
        ("amax-of", lambda: Own(lambda s, x: x * s.w.amax(0), w=weights(3, 4)), (4,)),
        ("layernorm-of", lambda: Own(lambda s, x: x * functional.layer_norm(s.w, (4,)), w=weights(4)), (4,)),
        ("layernorm-module-of", lambda: Own(lambda s, x: x * s.n(s.w), w=weights(4), n=nn.LayerNorm(4)), (4,)),
        ("product-of", lambda: Own(lambda s, x: x * s.a(s.w), w=weights(4), a=nn.Linear(4, 4)), (4,)),
        ("padding-of", lambda: Own(lambda s, x: x * functional.pad(s.w, (1, 2)), w=weights(1)), (4,)),
        ("repetition-of", lambda: Own(lambda s, x: x * s.w.repeat(2), w=weights(2)), (4,)),
        ("reversed", lambda: Own(lambda s, x: x * torch.cat([s.w, s.v, s.w.flip(0)]), w=weights(1), v=weights(2)),
         (4,)),
        ("apart", lambda: Own(lambda s, x: x * torch.cat([s.v, s.w]), w=weights(1), u=nn.Linear(2, 2), v=weights(3)),
         (4,)),
        ("token", lambda: Own(lambda s, x: torch.cat([s.w.expand(x.shape[0], -1), x], 1), w=weights(1, 2)), (4,)),
        ("expansion", lambda: Own(lambda s, x: s.w.expand(x.shape[0], -1), w=weights(1, 2)), (4,)),
        ("constant", lambda: Own(lambda s, x: x + s.w.detach() * s.w, w=weights(4)), (4,)),
    ]  # fmt: skip


def _half_frozen(layer: nn.Module) -> nn.Module:
    layer.bias_hh_l0.requires_grad_(False)  # type: ignore[union-attr,operator]
    return layer


def _recurrences() -> list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]]:
    all_steps = lambda s, x: s.r(x)[0]  # noqa: E731
    states = lambda s, x: torch.cat([*s.r(x)[1]], 1)  # noqa: E731
    both = lambda s, x: torch.cat([*s.r(x)[1][0], *s.r(x)[1][1]], 1)  # noqa: E731
    start = lambda s, x: s.r(x, x[:, :2, :4].transpose(0, 1).contiguous())[0]  # noqa: E731
    learned = lambda s, x: s.r(x, s.w.expand(-1, x.shape[0], -1).contiguous())[0]  # noqa: E731
    twice = lambda s, x: s.r(torch.tanh(s.r(x)[0]))[0] * x  # noqa: E731
    return [
        ("gru", lambda: Own(all_steps, r=nn.GRU(5, 7, batch_first=True)), (6, 5)),
        ("lstm", lambda: Own(all_steps, r=nn.LSTM(5, 17, batch_first=True)), (6, 5)),
        ("rnn", lambda: Own(all_steps, r=nn.RNN(5, 9, batch_first=True)), (4, 5)),
        ("rnn-relu", lambda: Own(all_steps, r=nn.RNN(5, 9, nonlinearity="relu", bias=False, batch_first=True)), (4, 5)),
        ("one-unit", lambda: Own(all_steps, r=nn.GRU(1, 1, batch_first=True)), (3, 1)),
        ("one-step", lambda: Own(all_steps, r=nn.LSTM(3, 4, batch_first=True)), (1, 3)),
        ("gru-stack", lambda: Own(all_steps, r=nn.GRU(3, 4, 2, bidirectional=True, batch_first=True)), (5, 3)),
        ("lstm-stack", lambda: Own(all_steps, r=nn.LSTM(3, 4, 2, bidirectional=True, bias=False, batch_first=True)),
         (5, 3)),
        ("last-states", lambda: Own(states, r=nn.GRU(3, 4, 2, bidirectional=True, batch_first=True)), (5, 3)),
        ("last-states-of-two", lambda: Own(both, r=nn.LSTM(3, 4, batch_first=True)), (5, 3)),
        ("given-states", lambda: Own(start, r=nn.GRU(4, 4, 2, batch_first=True)), (5, 4)),
        ("learned-states", lambda: Own(learned, r=nn.GRU(4, 4, 2, batch_first=True), w=weights(2, 1, 4)), (5, 4)),
        ("shared", lambda: Own(twice, r=nn.GRU(4, 4, batch_first=True)), (5, 4)),
        ("frozen-bias", lambda: Own(all_steps, r=_half_frozen(nn.GRU(3, 4, batch_first=True))), (5, 3)),
        ("head", lambda: Own(lambda s, x: s.a(s.r(x)[0].flatten(1)), r=nn.GRU(3, 8, batch_first=True),
                             a=nn.Linear(40, 2)), (5, 3)),
    ]  # fmt: skip


ACTIVATIONS = [
    nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Softplus(), nn.ELU(),
    nn.SELU(), nn.CELU(0.7), nn.LeakyReLU(0.2), nn.Hardtanh(), nn.Hardswish(), nn.Hardsigmoid(), nn.Softsign(),
    nn.ReLU6(), nn.LogSigmoid(), nn.Tanhshrink(), nn.Hardshrink(), nn.Softshrink(),
    Function(torch.exp), Function(torch.sin), Function(torch.cos), Function(torch.erf), Function(torch.abs),
    Function(lambda x: torch.sqrt(x * x + 1)), Function(lambda x: torch.log(x * x + 1)),
    Function(lambda x: 1 / (x + 9)),
    Function(lambda x: x**3), Function(lambda x: torch.atan(x)), Function(torch.square), Function(lambda x: -x),
]  # fmt: skip


def imported(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Model:
    return ix.from_torch(module.to(dtype), (torch.randn(2, *shape, dtype=dtype),))


def torch_gradients(module: nn.Module, x: Any, cotangent: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The output, and its product with a cotangent by parameters and by the input."""
    module.train()
    inputs = torch.tensor(x, requires_grad=True)
    module.zero_grad()
    y = module(inputs)
    (y * torch.tensor(cotangent)).sum().backward()
    found = [
        torch.zeros_like(t) if t.grad is None else t.grad for t in (*module.parameters(), inputs) if t.requires_grad
    ]
    flat = [np.zeros(0), *(gradient.numpy().ravel() for gradient in found[:-1])]
    return y.detach().numpy(), np.concatenate(flat), found[-1].numpy()


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-10) -> None:
    assert a.shape == b.shape
    scale = max(1.0, float(np.abs(b).max(initial=0)))
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def check_gradients(
    module: nn.Module,
    shape: tuple[int, ...],
    batch: int,
    target: str | None = None,
    threads: int = 1,
    tolerance: float = 1e-10,
) -> None:
    rng = np.random.default_rng(batch)
    function = fused_gradient(imported(module, shape), target=target, threads=threads)
    x = rng.standard_normal((batch, *shape))
    out = module(torch.tensor(rng.standard_normal((3, *shape))))
    cotangent = rng.standard_normal((batch, *out.shape[1:]))
    for found, expected in zip(function.vjp(x, cotangent), torch_gradients(module, x, cotangent), strict=True):
        close(found, expected, tolerance)


CASES = [*_convolutions(), *_pools(), *_others(), *_parameters(), *_recurrences()]


@pytest.mark.parametrize("name", [name for name, _, _ in CASES])
def test_gradients_are_those_of_torch(name: str) -> None:
    torch.manual_seed(0)
    make, shape = next((make, shape) for n, make, shape in CASES if n == name)
    check_gradients(make(), shape, 13)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: str(a).replace(" ", "")[:24])
def test_activations(activation: nn.Module) -> None:
    torch.manual_seed(0)
    # PyTorch's own derivatives of these two have constants in float32, of float64 numbers as well
    tolerance = 1e-7 if isinstance(activation, nn.Hardsigmoid | nn.CELU) else 1e-10
    check_gradients(nn.Sequential(nn.Linear(3, 5), activation, nn.Linear(5, 2)), (3,), 19, tolerance=tolerance)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "name", ["linear-wide", "conv2d-stride", "max-overlapping", "batchnorm2d", "layernorm-rows", "gru-stack", "lstm"]
)
def test_targets(target: str, name: str) -> None:
    torch.manual_seed(0)
    make, shape = next((make, shape) for n, make, shape in CASES if n == name)
    check_gradients(make(), shape, 21, target)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.lists(st.integers(1, 40), min_size=2, max_size=4), st.integers(1, 3))
def test_perceptrons_of_any_size(batch: int, sizes: list[int], threads: int) -> None:
    torch.manual_seed(batch)
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
    check_gradients(nn.Sequential(*layers), (sizes[0],), batch, threads=threads)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_convolutions_of_any_size(data: st.DataObject) -> None:
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups, kernel = draw(1, 2), (draw(1, 3), draw(1, 4))
    stride, dilation = (draw(1, 2), draw(1, 3)), (draw(1, 2), draw(1, 2))
    shape = (groups * draw(1, 4), draw(6, 10), draw(8, 14))
    torch.manual_seed(0)
    conv = nn.Conv2d(shape[0], groups * draw(1, 9), kernel, stride, (draw(0, 1), draw(0, 2)), dilation, groups)
    check_gradients(nn.Sequential(conv, nn.ReLU()), shape, draw(1, 40))


def test_the_bias_of_a_product_is_part_of_it() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    steps = tape_of(imported(module, (3,))).steps
    assert [type(step) for step in steps] == [Linear, Linear]
    assert all(step.bias is not None for step in steps if isinstance(step, Linear))


def test_code_that_differs_in_training() -> None:
    module = Own(lambda s, x: s.a(x) * (2 if s.training else 3), a=nn.Linear(4, 3))
    check_gradients(module, (4,), 5)
    with pytest.raises(UnsupportedError, match="evaluation only"):
        fused_gradient(imported(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, momentum=None)), (4,)))


def test_states_that_are_written_are_refused() -> None:
    def counted(s: Any, x: torch.Tensor) -> torch.Tensor:
        s.n.add_(1.0)
        return s.a(x)  # type: ignore[no-any-return]

    module = Own(counted, a=nn.Linear(4, 4), n=torch.zeros(()))
    with pytest.raises(UnsupportedError, match=r"no other states than BatchNorm's.*: n$"):
        fused_trainer(imported(module, (4,)))


LOSSES: dict[str, tuple[dict[str, Any], Callable[..., torch.Tensor]]] = {
    "mse": ({"loss": "mse"}, functional.mse_loss),
    "mse-sum": ({"loss": "mse", "reduction": "sum"}, lambda z, y: functional.mse_loss(z, y, reduction="sum")),
    "huber": ({"loss": "huber", "delta": 0.3}, lambda z, y: functional.huber_loss(z, y, delta=0.3)),
    "bce": ({"loss": "bce"}, lambda z, y: functional.binary_cross_entropy(z, y)),
    "bce-logits": ({"loss": "bce", "logits": True}, functional.binary_cross_entropy_with_logits),
    "cross-entropy": ({"loss": "cross_entropy"}, functional.cross_entropy),
    "cross-entropy-sum": (
        {"loss": "cross_entropy", "reduction": "sum"}, lambda z, y: functional.cross_entropy(z, y, reduction="sum")
    ),
    "smoothing": (
        {"loss": "cross_entropy", "label_smoothing": 0.1},
        lambda z, y: functional.cross_entropy(z, y, label_smoothing=0.1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("probabilities", [False, True])
def test_losses(name: str, probabilities: bool) -> None:
    options, reference = LOSSES[name]
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid() if name == "bce" else nn.Identity())
    function = fused_gradient(imported(module, (4,)), **options)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((23, 4))
    y: Any = rng.uniform(0, 1, (23, 6))
    if "cross" in name or name == "smoothing":
        y = y / y.sum(1, keepdims=True) if probabilities else rng.integers(0, 6, 23)
    elif probabilities:
        y = np.round(y)
    inputs = torch.tensor(x, requires_grad=True)
    expected = reference(module(inputs), torch.tensor(y))
    expected.backward()
    value, flat, by_input = function.value_and_grad(x, y)
    assert value == pytest.approx(expected.item(), rel=1e-12)
    close(flat, np.concatenate([p.grad.numpy().ravel() for p in module.parameters()]))
    close(by_input, inputs.grad.numpy())


OPTIMIZERS: dict[str, tuple[dict[str, Any], Callable[..., torch.optim.Optimizer]]] = {
    "sgd": ({"optimizer": "sgd", "learning_rate": 0.05}, lambda p: torch.optim.SGD(p, 0.05)),
    "sgd-l2": ({"optimizer": "sgd", "learning_rate": 0.05, "l2": 0.1},
               lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.1)),
    "momentum": ({"optimizer": "momentum", "learning_rate": 0.02, "momentum": 0.8, "dampening": 0.3},
                 lambda p: torch.optim.SGD(p, 0.02, 0.8, 0.3)),
    "no-momentum": ({"optimizer": "momentum", "learning_rate": 0.02, "momentum": 0.0, "dampening": 0.3},
                    lambda p: torch.optim.SGD(p, 0.02, 0.0, 0.3)),
    "nesterov": ({"optimizer": "momentum", "learning_rate": 0.02, "nesterov": True},
                 lambda p: torch.optim.SGD(p, 0.02, 0.9, nesterov=True)),
    "adam": ({"optimizer": "adam", "learning_rate": 1e-3}, lambda p: torch.optim.Adam(p, 1e-3)),
    "adam-options": ({"optimizer": "adam", "learning_rate": 2e-3, "betas": (0.8, 0.95), "eps": 1e-5, "l2": 0.02},
                     lambda p: torch.optim.Adam(p, 2e-3, (0.8, 0.95), 1e-5, 0.02)),
    "adamw": ({"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1},
              lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.1)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("threads", [1, 2])
def test_200_steps_are_those_of_torch(name: str, threads: int) -> None:
    options, make = OPTIMIZERS[name]
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 4))
    model = imported(module, (4,), torch.float32)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((300, 4)).astype(np.float32) for _ in range(2))
    trainer = fused_trainer(model, threads=threads, **options)
    losses = np.concatenate([trainer.run(x, y, steps=150), trainer.run(x, y, steps=50)])
    optimizer = make(module.parameters())
    expected = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = functional.mse_loss(module(torch.tensor(x)), torch.tensor(y))
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    flat = np.concatenate([p.detach().numpy().ravel() for p in module.parameters()])
    np.testing.assert_allclose(trainer.flat, flat, rtol=0, atol=1e-5)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.head = nn.Sequential(nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.first(x)), 2)
        x = functional.max_pool2d(functional.relu(self.second(x)), 2)
        return self.head(x.flatten(1))


def test_lenet_is_that_of_torch() -> None:
    torch.manual_seed(0)
    module = LeNet()
    model = imported(module, (1, 28, 28), torch.float32)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((90, 1, 28, 28)).astype(np.float32), rng.integers(0, 10, 90)
    trainer = fused_trainer(model, "cross_entropy", "adam", learning_rate=3e-4)
    trainer.run(x, y, epochs=4, batch_size=40)
    optimizer = torch.optim.Adam(module.parameters(), 3e-4)
    for _ in range(4):
        for start in range(0, 90, 40):
            optimizer.zero_grad()
            part = slice(start, start + 40)
            functional.cross_entropy(module(torch.tensor(x[part])), torch.tensor(y[part])).backward()
            optimizer.step()
    for (path, found), expected in zip(ix.trees.leaves(trainer.params), module.parameters(), strict=True):
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=0, atol=2e-5, err_msg=str(path))


def test_running_statistics_are_those_of_torch() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3))
    model = imported(module, (2, 7, 7))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 2, 7, 7)), rng.standard_normal((50, 3))
    trainer = fused_trainer(model, optimizer="sgd", learning_rate=0.01, threads=2)
    trainer.run(x, y, epochs=2, batch_size=20)
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    for _ in range(2):
        for start in range(0, 50, 20):
            optimizer.zero_grad()
            part = slice(start, start + 20)
            functional.mse_loss(module(torch.tensor(x[part])), torch.tensor(y[part])).backward()
            optimizer.step()
    trained = trainer.model()
    for name, expected in module.state_dict().items():
        close(np.asarray(trained.array(tuple(name.split(".")))), expected.numpy())
    module.eval()
    close(np.asarray(ix.compile(trained, backend="jax")(x)[0]), module(torch.tensor(x)).detach().numpy(), 1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_same_seed_same_bits(threads: int) -> None:
    layer = Chain(Dense(4, 20, activation=tanh), Dropout(0.3), Dense(20, 3))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((500, 4)).astype(np.float32), rng.integers(0, 3, 500)

    def trained(seed: int, shuffle: int) -> np.ndarray:
        trainer = fused_trainer(built(layer, (4,)), "cross_entropy", seed=seed, threads=threads)
        trainer.run(x, y, epochs=3, batch_size=130, shuffle=shuffle)
        return trainer.flat.copy()

    first = trained(1, 2)
    for _ in range(3):
        assert np.array_equal(first, trained(1, 2))
    assert not np.array_equal(first, trained(2, 2))
    assert not np.array_equal(first, trained(1, 3))


def built(layer: Any, shape: tuple[int, ...], dtype: str = "float32") -> Model:
    params, states = ix.setup(layer, 0, np.dtype(dtype))
    return Model.from_layer(layer, params, states, {"x": (dtype, ("batch", *shape))})


@pytest.mark.parametrize("affine", [True, False])
def test_larger_batches_have_room_without_parameters(affine: bool) -> None:
    module = nn.BatchNorm1d(512, affine=affine).train()
    function = fused_gradient(imported(module, (512,)), threads=2)
    rng = np.random.default_rng(0)
    for batch in (4, 17, 70, 5):
        x = rng.standard_normal((batch, 512))
        for found, expected in zip(function.vjp(x, x), torch_gradients(module, x, x), strict=True):
            close(found, expected, 1e-9)


def test_dropout_between_recurrences() -> None:
    """Against differences: the same seed zeroes the same elements."""
    torch.manual_seed(0)
    module = Own(lambda s, x: s.r(x)[0], r=nn.LSTM(3, 4, 3, batch_first=True, dropout=0.4)).double()
    model = imported(module, (5, 3))
    x = np.random.default_rng(0).standard_normal((9, 5, 3))
    cotangent = np.random.default_rng(1).standard_normal((9, 5, 4))
    make = lambda: fused_gradient(model, seed=7)  # noqa: E731
    function = make()
    y, by_params, by_x = function.vjp(x, cotangent)
    assert np.abs(y - module.eval()(torch.tensor(x)).detach().numpy()).max() > 1e-3  # something is dropped
    step = 1e-6
    for array, gradient in ((function.flat.copy(), by_params), (x, by_x)):
        direction = np.random.default_rng(2).standard_normal(array.shape)
        ends = []
        for sign in (step, -step):
            moved = array + sign * direction
            given = (x, cotangent, moved) if gradient is by_params else (moved, cotangent)
            ends.append(float((make().vjp(*given)[0] * cotangent).sum()))
        close(np.array((ends[0] - ends[1]) / (2 * step)), np.array((gradient * direction).sum()), 1e-6)


def test_dropout_zeroes_as_many_as_it_says() -> None:
    function = fused_gradient(built(Chain(Dense(40, 40, use_bias=False), Dropout(0.25)), (40,), "float64"))
    function.params["0"]["weight"][:] = np.eye(40)
    x = np.ones((300, 40))
    y, _, by_x = function.vjp(x, x)
    assert set(np.unique(y)) == {0, 1 / 0.75}
    assert np.array_equal(y, by_x)  # the same elements backward
    assert abs((y == 0).mean() - 0.25) < 0.02
    assert (y == 0).mean(0).min() > 0.15 and (y == 0).mean(0).max() < 0.35 and len(np.unique(y, axis=0)) == 300


def test_parameters_are_views_under_their_names() -> None:
    model = built(Chain(Dense(4, 3, activation=tanh), Dense(3, 2)), (4,))
    trainer = fused_trainer(model, optimizer="sgd")
    names = [path for path, _ in ix.trees.leaves(trainer.params)]
    assert names == [path for path, _ in ix.trees.leaves(model.params)]
    assert all(np.shares_memory(leaf, trainer.flat) for _, leaf in ix.trees.leaves(trainer.params))
    trainer.flat[:] = 0
    assert all((leaf == 0).all() for _, leaf in ix.trees.leaves(trainer.params))
    assert any((leaf != 0).any() for _, leaf in ix.trees.leaves(model.params))
    trainer.params["1"]["bias"][:] = 2
    out = np.asarray(ix.compile(trainer.model(), backend="jax")(np.ones((3, 4), np.float32)))
    assert (out == 2).all()


def test_epochs_with_a_smaller_last_batch() -> None:
    model = built(Dense(3, 2), (3,), "float64")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((10, 3)), rng.standard_normal((10, 2))
    together = fused_trainer(model, optimizer="sgd", learning_rate=0.1)
    losses = together.run(x, y, epochs=2, batch_size=4)
    apart = fused_trainer(model, optimizer="sgd", learning_rate=0.1)
    single = [apart.step(x[a : a + 4], y[a : a + 4]) for _ in range(2) for a in (0, 4, 8)]
    assert losses.shape == (6,) and np.array_equal(losses, single)
    assert np.array_equal(together.flat, apart.flat)
    assert together.batches == 6
    assert together.run(x, y, steps=0).shape == (0,)


def test_learning_rate_can_change() -> None:
    model = built(Dense(3, 2), (3,), "float64")
    trainer = fused_trainer(model, optimizer="sgd", learning_rate=0.1)
    before = trainer.flat.copy()
    trainer.learning_rate = 0.0
    trainer.step(np.ones((5, 3)), np.ones((5, 2)))
    assert np.array_equal(before, trainer.flat)


@pytest.mark.parametrize("loss", ["mse", "huber", "bce", "cross_entropy"])
def test_nan_reaches_the_loss_and_the_parameters(loss: str) -> None:
    model = built(Dense(3, 2), (3,))
    trainer = fused_trainer(model, loss, "sgd")
    x = np.ones((20, 3), np.float32)
    x[7, 1] = np.nan
    y: Any = np.zeros(20, np.int64) if loss == "cross_entropy" else np.ones((20, 2), np.float32)
    assert np.isnan(trainer.step(x, y))
    assert np.isnan(trainer.flat).any()


def test_wrong_arguments_are_named() -> None:
    model = built(Chain(Dense(3, 2)), (3,))
    trainer = fused_trainer(model)
    x, y = np.ones((5, 3), np.float32), np.ones((5, 2), np.float32)
    for bad, what in (
        ((x.astype(np.float64), y), "float32, not float64"),
        ((x[:, :2], y), r"\(batch, 3\), not \(5, 2\)"),
        ((x, y[:, :1]), "targets must have shape"),
        ((x, y[:3]), "3 targets for 5 samples"),
        ((x, y.astype(np.int64)), "targets must be float32"),
        ((x[:0], y[:0]), "no samples"),
    ):
        with pytest.raises(InvalidModelError, match=what):
            trainer.step(*bad)
    with pytest.raises(InvalidModelError, match="batch_size"):
        trainer.run(x, y, batch_size=0)
    with pytest.raises(InvalidModelError, match="not both"):
        trainer.run(x, y, steps=1, epochs=1)
    with pytest.raises(InvalidModelError, match="0..1, not 0..2"):
        fused_trainer(model, "cross_entropy").step(x, np.array([0, 1, 2, 0, 1]))
    with pytest.raises(UnsupportedError, match="no loss 'hinge'"):
        fused_trainer(model, "hinge")
    with pytest.raises(UnsupportedError, match="no optimizer 'lion'"):
        fused_trainer(model, optimizer="lion")
    with pytest.raises(InvalidModelError, match="no option 'delta'"):
        fused_trainer(model, "mse", delta=2.0)
    with pytest.raises(InvalidModelError, match="no option 'speed'"):
        fused_trainer(model, speed=2.0)


def _trainer(**options: Any) -> FusedTrainer:
    return fused_trainer(built(Dense(3, 2), (3,)), **options)


X, Y = np.ones((5, 3), np.float32), np.ones((5, 2), np.float32)
NAN = float("nan")
WRONG: list[tuple[str, Callable[[], Any]]] = [
    *((f"{name} must be a finite number", lambda name=name, kind=kind, value=value: _trainer(
        optimizer=kind, **{name: value}))
      for name, kind in (("learning_rate", "sgd"), ("l2", "adam"), ("momentum", "momentum"), ("dampening", "momentum"),
                         ("eps", "adam"), ("weight_decay", "adamw"))
      for value in (-1.0, NAN, "0.1", np.ones(2))),
    *(("betas", lambda value=value: _trainer(betas=value)) for value in (0.9, "ab", (0.5, 1), (NAN, 0.9), (0.9,))),
    *(("nesterov", lambda value=value: _trainer(optimizer="momentum", nesterov=value)) for value in ("no", 1)),
    *(("delta", lambda value=value: _trainer(loss="huber", delta=value)) for value in (0, NAN, "a", float("inf"))),
    *(("smoothing", lambda value=value: _trainer(loss="cross_entropy", label_smoothing=value)) for value in (2, None)),
    ("logits", lambda: _trainer(loss="bce", logits=3)),
    *(("no loss", lambda value=value: _trainer(loss=value)) for value in ("cotangent", None, ["mse"])),
    *(("no optimizer", lambda value=value: _trainer(optimizer=value)) for value in (None, ["adam"])),
    *(("seed", lambda value=value: _trainer(seed=value)) for value in ("a", None, -1, 1.5, 1 << 32, True)),
    *(("threads", lambda value=value: _trainer(threads=value)) for value in (0, "2", True)),
    ("target", lambda: _trainer(target=3)),
    *((name, lambda name=name, value=value: _trainer().run(X, Y, **{name: value}))
      for name in ("steps", "epochs", "batch_size", "shuffle") for value in (-1, 1.5, "a", NAN)),
    ("steps", lambda: _trainer().run(X, Y, epochs=1 << 62)),
    *(("learning_rate", lambda value=value: setattr(_trainer(), "learning_rate", value)) for value in (-1, NAN, "a")),
    *(("takes a Model", lambda value=value: fused_trainer(value)) for value in ("model", nn.Linear(3, 2))),
    ("requires grad", lambda: _trainer().step(torch.ones(5, 3, requires_grad=True), Y)),
    ("vector of parameters", lambda: fused_gradient(built(Dense(3, 2), (3,))).tree(np.zeros(3, np.float32))),
    ("params must have", lambda: fused_gradient(built(Dense(3, 2), (3,))).vjp(X, Y, np.zeros(3, np.float32))),
    ("made with a loss", lambda: fused_gradient(built(Dense(3, 2), (3,))).value_and_grad(X, Y)),
    # options of another kind, were they given with their default
    *((f"has no option '{name}'", lambda kind=kind, name=name, value=value: _trainer(optimizer=kind, **{name: value}))
      for kind, name, value in (("sgd", "momentum", 0.9), ("sgd", "betas", (0.9, 0.999)), ("sgd", "weight_decay", 0.1),
                                ("adam", "weight_decay", 0.1), ("adam", "nesterov", True))),
    ("has no option 'momentum'", lambda: Optimizer("sgd", momentum=0.5)),
    *(("more than one value", lambda track=track: fused_gradient(
        built(Chain(Dense(3, 2), BatchNorm(2, track=track)), (3,))).vjp(X[:1], Y[:1])) for track in (True, False)),
    ("more than one value", lambda: fused_trainer(built(Chain(Dense(3, 2), BatchNorm(2)), (3,))).run(
        X, Y, batch_size=2)),
]  # fmt: skip


@pytest.mark.parametrize(("what", "call"), WRONG, ids=[f"{i}-{what}" for i, (what, _) in enumerate(WRONG)])
def test_a_wrong_argument_is_named_in_one_line(what: str, call: Callable[[], Any]) -> None:
    with pytest.raises((InvalidModelError, UnsupportedError), match=what) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_big_endian_arrays() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 3)).astype(np.float32), rng.standard_normal((5, 2)).astype(np.float32)
    assert _trainer().step(x.astype(">f4"), y.astype(">f4")) == _trainer().step(x, y)


@pytest.mark.parametrize(("function", "what"), [
    (lambda s, x: (x * x + 0.1) ** s.w, r"Pow \(in"),
    (lambda s, x: 2 ** (s.w * x), r"Pow \(in"),
    (lambda s, x: s.w * x.logsumexp(1, True), "ReduceLogSumExp"),
])  # fmt: skip
def test_what_has_no_derivative_is_named(function: Callable[..., Any], what: str) -> None:
    with pytest.raises(UnsupportedError, match=what):
        fused_trainer(imported(Own(function, w=weights(4)), (4,)))


def test_a_nan_does_not_outlive_its_batch() -> None:
    torch.manual_seed(0)
    module = Own(lambda s, x: torch.where(torch.tanh(s.a(x)) > 0, s.b(x), x), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    function = fused_gradient(imported(module, (4,)))
    x = np.random.default_rng(0).standard_normal((7, 4))
    first = function.vjp(x, np.ones_like(x))[1]
    poisoned = x.copy()
    poisoned[0] = NAN
    function.vjp(poisoned, np.ones_like(x))
    close(function.vjp(x, np.ones_like(x))[1], first, 0)
    close(first, torch_gradients(module, x, np.ones_like(x))[1])


@pytest.mark.parametrize("inner", [
    torch.relu, lambda x: x.clamp(0, 1), nn.Hardtanh(0.0, 1.0), nn.Hardsigmoid(), nn.Threshold(0.0, 0.0),
    nn.Hardshrink(40),
])  # fmt: skip
def test_where_pytorch_selects_an_infinite_gradient_ends(inner: Callable[..., Any]) -> None:
    module = Own(lambda s, x: inner(x).sqrt() + s.a(x), a=nn.Linear(4, 4))
    function = fused_gradient(imported(module, (4,)))
    x = np.random.default_rng(0).uniform(0.1, 0.4, (9, 4)) * 9
    x[::2] *= -9
    x[1::2] = 0.7
    cotangent = np.ones_like(x)
    for found, expected in zip(function.vjp(x, cotangent), torch_gradients(module, x, cotangent), strict=True):
        assert not np.isnan(expected).any()
        close(found, expected, 1e-7)  # PyTorch's hardsigmoid has a float32 factor


def test_several_threads_share_one_object() -> None:
    model = built(Chain(Dense(3, 20, activation=tanh), Dense(20, 2)), (3,))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((400, 3)).astype(np.float32), rng.standard_normal((400, 2)).astype(np.float32)
    gradient, trainer = fused_gradient(model, "mse"), fused_trainer(model)
    sizes = (3, 50, 400)
    expected = {n: gradient.value_and_grad(x[:n], y[:n]) for n in sizes}
    wrong = []

    def work(number: int) -> None:
        for i in range(60):
            n = sizes[(i + number) % 3]
            found = gradient.value_and_grad(x[:n], y[:n])
            wrong.extend([n] * (not all(map(np.array_equal, found, expected[n]))))
            trainer.run(x[:n].copy(), y[:n].copy(), batch_size=1 + i % 40, shuffle=i)

    threads = [Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and np.isfinite(trainer.flat).all()
    with pytest.raises(UnsupportedError, match="not copied"):
        copy.deepcopy(trainer)


def test_the_draws_of_a_gradient_are_those_of_the_trainers_steps() -> None:
    model = built(Chain(Dense(6, 8), Dropout(0.5)), (6,), "float64")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 6)), rng.standard_normal((20, 8))
    trainer, function = (
        fused_trainer(model, "mse", "sgd", learning_rate=0.1, seed=7),
        fused_gradient(model, "mse", seed=7),
    )
    flat = trainer.flat.copy()
    losses = trainer.run(x, y, steps=4)
    for expected in losses:
        value, gradient, _ = function.value_and_grad(x, y, flat)
        assert value == expected
        flat -= 0.1 * gradient
    close(trainer.flat, flat)
    assert fused_gradient(model, "mse", seed=8).value_and_grad(x, y)[0] != losses[0]


def test_given_parameters_are_those_of_one_call() -> None:
    function = fused_gradient(built(Dense(3, 2), (3,)))
    before = function.flat.copy()
    first = function.vjp(X, Y)
    assert np.array_equal(function.vjp(X, Y, np.zeros_like(before))[0], np.zeros_like(Y))
    assert np.array_equal(function.flat, before)
    assert all(map(np.array_equal, first, function.vjp(X, Y)))


def test_the_gradients_of_all_inputs() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    shapes = (3,), (2, 3), (5,)
    linear = nn.Linear(3, 3).double()

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return self.linear(a) * b.sum(1) + c.detach().sum(1, keepdim=True)

    model = ix.from_torch(Several(), tuple(torch.randn(2, *shape, dtype=torch.float64) for shape in shapes))
    xs = [rng.standard_normal((11, *shape)) for shape in shapes]
    cotangent = rng.standard_normal((11, 3))
    inputs = [torch.tensor(x, requires_grad=True) for x in xs]
    (Several()(*inputs) * torch.tensor(cotangent)).sum().backward()
    _, _, found = fused_gradient(model).vjp(xs, cotangent)
    assert isinstance(found, tuple)
    for by_input, t in zip(found, inputs, strict=True):
        close(by_input, np.zeros(t.shape) if t.grad is None else t.grad.numpy())


@pytest.mark.parametrize("shuffle", [None, 3])
def test_many_epochs_keep_no_long_order(shuffle: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 3)).astype(np.float32), rng.standard_normal((30, 2)).astype(np.float32)
    trainers, losses = [], []
    for most in (1 << 17, 70):
        monkeypatch.setattr("interlux.runtime.fused.training.trainer._INDEX", most)
        trainers.append(_trainer())
        losses.append(trainers[-1].run(x, y, epochs=7, batch_size=8, shuffle=shuffle))
    assert np.array_equal(*losses) and np.array_equal(trainers[0].flat, trainers[1].flat)
    assert trainers[1].batches == 28 and trainers[1]._order[1].size == 60


def test_batch_norms_that_are_used_twice_or_not_at_all() -> None:
    torch.manual_seed(0)
    module = Own(
        lambda s, x: (s.unused(x), s.twice(torch.tanh(s.twice(x))))[1],
        twice=nn.BatchNorm1d(4), unused=nn.BatchNorm1d(4),
    )  # fmt: skip
    model = imported(module, (4,))
    x = np.random.default_rng(0).standard_normal((9, 4))
    trainer = fused_trainer(model, optimizer="sgd", learning_rate=0.0)
    trainer.run(x, x, steps=3)
    module.train()
    for _ in range(3):
        module(torch.tensor(x))
    trained = trainer.model()
    for name, expected in module.state_dict().items():
        close(np.asarray(trained.array(tuple(name.split(".")))), expected.numpy())


def test_unsupported_layers_are_named() -> None:
    model = imported(nn.Sequential(nn.Linear(3, 4), Function(lambda x: x.cumsum(1).sort(1)[0])), (5, 3))
    with pytest.raises(UnsupportedError, match=r"CumSum.*\(cumsum\).*; .*\(sort"):  # what follows is judged too
        fused_trainer(model)
    with pytest.raises(UnsupportedError, match=r"CumSum.*\(cumsum\).*; .*\(sort"):
        ix.compile(model, "fused")


def test_non_contiguous_and_read_only_arrays() -> None:
    model = built(Dense(3, 2), (3,), "float64")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((3, 40)).T, rng.standard_normal((80, 2))[::2]
    x.flags.writeable = False
    trainers = [fused_trainer(model, optimizer="sgd") for _ in range(2)]
    assert trainers[0].step(x, y) == trainers[1].step(np.ascontiguousarray(x), np.ascontiguousarray(y))


def test_frozen_parameters_stay() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    module[0].weight.requires_grad_(False)
    model = imported(module, (3,))
    trainer = fused_trainer(model, optimizer="sgd")
    before = copy.deepcopy(module[0].weight.numpy())
    rng = np.random.default_rng(0)
    trainer.run(rng.standard_normal((9, 3)), rng.standard_normal((9, 2)), steps=3)
    trained = trainer.model()
    if ix.trees.find(model.params, ("0", "weight")) is None:
        assert np.array_equal(np.asarray(trained.array(("0", "weight"))), before)


def test_a_gradient_is_repeatable() -> None:
    function: FusedGradient = fused_gradient(built(Chain(Dense(3, 7, activation=tanh), Dense(7, 2)), (3,)), "mse")
    x, y = np.ones((33, 3), np.float32), np.zeros((33, 2), np.float32)
    first = function.value_and_grad(x, y)
    again = function.value_and_grad(x, y, function.flat * 1)
    assert first[0] == again[0]
    assert all(np.array_equal(a, b) for a, b in zip(first[1:], again[1:], strict=True))
    assert set(function.tree(first[1])) == {"0", "1"}
