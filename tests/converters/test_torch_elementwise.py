"""Element-wise ATen operators, activations and losses: outputs on both backends, derivatives against PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import interlux as ix
from tests.helpers import Calls, check_outputs
from tests.torch_cases import Inputs, check_operator, pairs, rows
from tests.torch_derivatives import check_derivative

S = torch.special
INF, NAN = math.inf, math.nan


def positives(b: int) -> tuple[torch.Tensor, ...]:
    return torch.rand(b, 6) + 0.05, torch.rand(b, 6) + 0.05


def small(b: int) -> tuple[torch.Tensor, ...]:
    """Of every size between 1e-30 and 1, where a formula that cancels has no digit left."""
    return (torch.logspace(-30, -0.01, b * 60).reshape(b, 60) * torch.tensor([1.0, -1.0]).repeat(30),)


def large(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.linspace(-30, 30, b * 40).reshape(b, 40),)


def unit(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.linspace(-0.999, 0.999, b * 40).reshape(b, 40),)


def integers(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randint(-9, 9, (b, 6)), torch.randint(1, 9, (b, 6))


def kinds_of_integers(b: int) -> tuple[torch.Tensor, ...]:
    i = torch.randint(-9, 9, (b, 6))
    return i.int(), i.short(), i.char(), i.abs().byte()


def flags(b: int) -> tuple[torch.Tensor, ...]:
    return torch.rand(b, 6) > 0.5, torch.rand(b, 6) > 0.5


def halves(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.linspace(-3, 3, b * 300).half().reshape(b, 300),)


def odd(b: int) -> tuple[torch.Tensor, ...]:
    """Zeros of both signs, infinities, NaN, and common numbers, against each other."""
    values = torch.tensor([0.0, -0.0, INF, -INF, NAN, 1.5, -2.5, 0.5])
    return values.repeat(b, 8), values.repeat_interleave(8).repeat(b, 1)


CASES: dict[str, tuple[Callable[..., Any], Inputs]] = {
    # exponentials and logarithms
    "log1p, expm1 near 0": (lambda m, x: (torch.log1p(x), torch.expm1(x)), small),
    "log1p, expm1 of small parts": (lambda m, x: (torch.log1p(x) / x, torch.expm1(x) / x), small),
    "log1p, expm1 far from 0": (lambda m, x: (torch.log1p(x.abs()), torch.expm1(x / 3), torch.expm1(-x.abs())), large),
    "log1p, expm1 at the ends": (lambda m, x, y: (torch.log1p(x), torch.expm1(x), torch.log1p(y - 1)), odd),
    "logarithms": (lambda m, x, y: (x.log2(), x.log10(), x.log(), S.log1p(y)), positives),
    "powers of 2": (lambda m, x: (torch.exp2(x), S.exp2(x.round()), S.expm1(x)), rows),
    "logarithms of integers": (lambda m, i, j: (j.log(), j.log2(), j.log1p(), i.exp2(), i.exp(), j.sqrt()), integers),
    "logaddexp": (lambda m, x, y: (torch.logaddexp(x * 30, y * 30), torch.logaddexp2(x, y)), pairs),
    "logaddexp of infinities": (lambda m, x, y: (torch.logaddexp(x, y), torch.logaddexp2(x, y)), odd),
    "logit": (
        lambda m, x, y: (torch.logit(x.clamp(max=0.99)), torch.logit(y, 0.2), S.logit(x.clamp(max=0.9)), S.expit(x)),
        positives,
    ),
    "xlogy": (lambda m, x, y: (torch.xlogy(x, y), S.xlog1py(x, y), torch.xlogy(2, y), S.xlogy(x, 3)), positives),
    "xlogy at the ends": (lambda m, x, y: (torch.xlogy(x, y), S.xlog1py(x, y)), odd),
    "entropy": (lambda m, x: (S.entr(x), S.entr(x * 0)), rows),
    # special functions
    "erfc": (lambda m, x: (torch.erfc(x / 4), S.erfc(x), S.erf(x / 9)), large),
    "erfc, every element": (lambda m, x: torch.erfc(x.abs() / 4) * torch.exp(x * x / 16), large),
    "erfcx": (lambda m, x: (S.erfcx(x.abs()), S.erfcx(x / 8)), large),
    "erfinv": (lambda m, x: (torch.erfinv(x), S.erfinv(x * 0.1)), unit),
    "erfinv at the ends": (lambda m, x, y: torch.erfinv(x / 1.5), odd),
    "normal distribution": (lambda m, x: (S.ndtr(x / 3), S.log_ndtr(x), S.log_ndtr(x / 8)), large),
    "lgamma": (lambda m, x: (torch.lgamma(x), S.gammaln(x.abs() + 0.01), torch.lgamma(x.abs() * 100)), large),
    "digamma": (lambda m, x: (torch.digamma(x.abs() + 0.1), S.digamma(x + 0.123), S.psi(x.abs() * 50 + 1)), large),
    "polygamma": (lambda m, x: (torch.polygamma(1, x.abs() + 0.1), torch.polygamma(0, x.abs() + 1)), large),
    "trigamma below 0": (lambda m, x: torch.polygamma(1, x * 0.97), lambda b: (torch.linspace(-3, -0.2, b * 8),)),
    "mvlgamma": (lambda m, x: (torch.mvlgamma(x.abs() + 2, 3), S.multigammaln(x.abs() + 1, 2)), rows),
    "gamma functions at the ends": (lambda m, x, y: (torch.lgamma(x), torch.digamma(x)), odd),
    "sinc": (lambda m, x: (torch.sinc(x), torch.sinc(x * 0)), rows),
    # trigonometry
    "hyperbolic": (lambda m, x: (torch.asinh(x), torch.atanh(x), torch.acosh(1 + x.abs()), torch.arcsinh(x)), unit),
    "inverse": (lambda m, x: (x.asin(), x.acos(), x.atan(), x.arcsin(), x.arccos(), x.arctan(), x.tan()), unit),
    "atan beyond 1": (lambda m, x: (x.atan(), (x * 1e5).atan()), large),
    "atan2": (lambda m, x, y: (torch.atan2(x, y), torch.arctan2(x, y * 0.01)), pairs),
    "atan2 at the ends": (lambda m, x, y: torch.atan2(x, y), odd),
    "hypot": (lambda m, x, y: (torch.hypot(x, y), torch.hypot(x * 1e30, y * 1e30), torch.hypot(x * 1e-30, y)), pairs),
    "hypot at the ends": (lambda m, x, y: torch.hypot(x, y), odd),
    "degrees": (lambda m, x: (torch.deg2rad(x * 90), torch.rad2deg(x)), rows),
    "degrees of integers": (lambda m, i, j: (torch.deg2rad(i), torch.rad2deg(j), i.sin(), i.sigmoid()), integers),
    # parts and signs
    "parts": (lambda m, x: ((x * 3).trunc(), (x * 3).fix(), (x * 3).frac()), rows),
    "parts at the ends": (lambda m, x, y: (x.trunc(), x.floor(), x.round(), x.ceil()), odd),
    "round to decimals": (
        lambda m, x: (x.round(decimals=2), (x * 100).round(decimals=-1), S.round(x, decimals=1), S.round(x * 3)),
        rows,
    ),
    "round to even": (lambda m, x, y: torch.round(x + y.nan_to_num(0, 1, 2)), odd),
    "signs": (lambda m, x, y: (x.sign(), x.sgn(), x.signbit(), torch.copysign(y, x), torch.copysign(x, -1.5)), odd),
    "signs of integers": (
        lambda m, i, j: (i.sign(), i.signbit(), (-i).abs(), i.sgn(), i.neg(), i.positive()),
        integers,
    ),
    "heaviside": (lambda m, x, y: torch.heaviside(x, y), odd),
    "kinds of numbers": (
        lambda m, x, y: (x.isfinite(), x.isinf(), x.isposinf(), x.isneginf(), x.isnan(), torch.isreal(x)),
        odd,
    ),
    "kinds of integers": (lambda m, i, j: (i.isfinite(), i.isinf(), i.isnan(), i.isposinf()), integers),
    "kinds of halves": (lambda m, h: ((1 / (h - h[:, :1])).isinf(), (h / 0).isneginf(), (h * 0).isfinite()), halves),
    "isclose": (
        lambda m, x, y: (torch.isclose(x, y), torch.isclose(x, y, 0.5, 1.0), torch.isclose(x, y, equal_nan=True)),
        odd,
    ),
    "isclose exactly": (lambda m, x, y: torch.isclose(x, y, rtol=0, atol=0), odd),
    "isclose of integers": (lambda m, i, j: (torch.isclose(i, j), torch.isclose(i, j, 0.5, 1)), integers),
    "nan_to_num": (
        lambda m, x, y: (
            torch.nan_to_num(x) > 3e38,
            torch.nan_to_num(x) < -3e38,
            torch.nan_to_num(y, 1.0, 2.0, -3.0),
            x.nan_to_num(7.0, 1e4, -1e4),
        ),
        odd,
    ),
    "nan_to_num of others": (lambda m, i, j: torch.nan_to_num(i), integers),
    # arithmetic
    "addcmul, addcdiv": (
        lambda m, x, y: (torch.addcmul(x, x, y, value=0.3), torch.addcdiv(x, y, x, value=-2), x.addcdiv(x, y)),
        positives,
    ),
    "addcmul of integers": (lambda m, i, j: torch.addcmul(i, i, j, value=3), integers),
    "lerp": (lambda m, x, y: (torch.lerp(x, y, 0.25), torch.lerp(x, y, 0.75), torch.lerp(x, y, y)), pairs),
    "lerp to the end": (lambda m, x, y: torch.lerp(x * 1e6, y, 1.0) - y, pairs),
    "ldexp": (lambda m, x: (torch.ldexp(x, torch.tensor(3)), torch.ldexp(x, x.round())), rows),
    "float_power": (
        lambda m, i, j: (i.float_power(2), torch.float_power(2, j), torch.float_power(j, j / 2), j.float_power(0.5)),
        integers,
    ),
    "integer powers": (
        lambda m, i, j: (i**2, i**3, i**7, i**0, i**j, 2**j, i.square(), (i * 3037000493) ** 2),
        integers,
    ),
    "powers": (lambda m, x, y: (x**y, x**-0.5, x**-1, x**-2, y**0.3, 0.5**x, x.rsqrt(), x.reciprocal()), positives),
    "powers at the ends": (lambda m, x, y: (x**y, x**2, x**3, x**0, x**-1.0, x**0.5), odd),
    "other names": (
        lambda m, x, y: (
            torch.subtract(x, y, alpha=2),
            torch.multiply(x, y),
            torch.divide(x, y, rounding_mode="floor"),
            torch.true_divide(x, 3),
            torch.negative(x),
            torch.absolute(x),
            torch.greater(x, y),
            torch.less_equal(x, 0),
            torch.not_equal(x, y),
            torch.clip(x, -0.3, 0.3),
        ),
        pairs,
    ),
    "extremes of numbers": (lambda m, x, y: (torch.fmax(x, y), torch.fmin(x, y)), odd),
    "extremes with NaN": (lambda m, x, y: (torch.maximum(x, y), torch.minimum(x, y)), odd),
    "clamp at the ends": (lambda m, x, y: (x.clamp(-1, 1), x.clamp(min=y), torch.clamp(x, y, y + 1)), odd),
    "clamp of integers": (
        lambda m, i, j: (i.clamp(-2, 3), i.clamp(min=j), i.clamp(-1.5, 2.5), i.clamp_max(2), i.clamp_min(1)),
        integers,
    ),
    "shifts": (lambda m, i, j: (i << 2, i >> 1, i << j, i >> j, torch.bitwise_left_shift(3, j), i >> 70), integers),
    "shifts of small integers": (lambda m, i, s, c, u: (i << 3, s >> 2, c << 6, u >> 1, u << 7), kinds_of_integers),
    "bits of small integers": (
        lambda m, i, s, c, u: (i & 3, s | 4, c ^ 5, ~u, torch.bitwise_xor(7, i)),
        kinds_of_integers,
    ),
    "small integers": (
        lambda m, i, s, c, u: (i + 3, s * 2, c - 100, u + 250, -s, -u, s.abs(), u.sign(), i.relu(), i // 2, s % 3),
        kinds_of_integers,
    ),
    "choices of small integers": (
        lambda m, i, s, c, u: (
            torch.where(i > 0, s, 2),
            torch.where(i > 0, u, 7),
            s.clamp(-2, 2),
            c.masked_fill(i > 0, 1),
            torch.maximum(s, s * 2),
            s > c,
        ),
        kinds_of_integers,
    ),
    "rounding of integers": (lambda m, i, j: (i.floor(), i.ceil(), i.trunc()), integers),
    "bools": (
        lambda m, p, q: (p + q, p * q, torch.maximum(p, q), p & q, p ^ q, ~p, p == q, p > q, p.sign()),
        flags,
    ),
    "bools with numbers": (lambda m, p, q: (p + 1, p * 2.5, p / q.add(True), p**2, p.square(), -p.int()), flags),
    "choices of bools": (lambda m, p, q: (torch.where(p, q, ~q), q.masked_fill(p, True), p.where(q, False)), flags),
    "logic of numbers": (
        lambda m, x, y: (torch.logical_and(x, y), torch.logical_or(x, y), torch.logical_xor(x, y), x.logical_not()),
        odd,
    ),
    "in place": (
        lambda m, x, y: (
            x.clone().mul_(2).add_(y, alpha=3).clamp_(-1, 1),
            x.clone().relu_().exp_().log1p_(),
            y.clone().addcmul_(x, y).lerp_(x, 0.3).nan_to_num_(),
            y.clone().sub_(1).div_(3, rounding_mode="floor").neg_().masked_fill_(x > 0, 2),
            F.elu_(x.clone()) + torch.threshold_(x.clone(), 0.1, 20),
        ),
        pairs,
    ),
    "in place keeps the dtype": (
        lambda m, h: (h.clone().mul_(h.float() * 1.001), h.clone().add_(h.float(), alpha=0.1), h.clone().pow_(2)),
        halves,
    ),
    "in place, other overloads": (
        lambda m, x, y: (
            x.clone().pow_(y),
            x.clone().floor_divide_(y),
            x.clone().double().float_power_(y),
            x.clone().ldexp_(y),
            (x + 1).polygamma_(1),
            x.clone().clamp_(min=y).copysign_(y).xlogy_(y).remainder_(0.3),
        ),
        positives,
    ),
    "membership": (
        lambda m, i, j: (
            torch.isin(i, j[0]),
            torch.isin(i, 3, invert=True),
            torch.isin(i.double(), j[:1]),
            torch.isin(2, j),
        ),
        integers,
    ),
    "angles of real numbers": (lambda m, x, y: (x.angle(), x.real, x.conj()), odd),
    # halves are rounded once, as torch's
    "halves": (
        lambda m, h: (F.silu(h), F.gelu(h), h.log1p(), h.expm1(), F.softplus(h), F.mish(h), F.hardswish(h), F.celu(h)),
        halves,
    ),
    "more halves": (
        lambda m, h: (h.erfc(), h.sinc(), F.hardsigmoid(h), F.log_softmax(h, -1), h.softmax(-1), F.elu(h), F.selu(h)),
        halves,
    ),
    # activations
    "threshold": (lambda m, x: (F.threshold(x, 0.1, 20.0), F.hardshrink(x), F.hardshrink(x, 0.2)), rows),
    "shrinks": (lambda m, x: (F.softshrink(x), F.softshrink(x, 0.1), F.tanhshrink(x), F.softsign(x)), rows),
    "exponential units": (
        lambda m, x: (F.celu(x), F.celu(x, 0.3), F.elu(x, 0.7), F.selu(x), F.rrelu(x), F.rrelu(x, 0.1, 0.2)),
        rows,
    ),
    "elu with scales": (lambda m, x: torch.ops.aten.elu(x, 0.7, 1.3, 0.4), rows),
    "glu": (lambda m, x: (F.glu(x), F.glu(x.unsqueeze(1), -1), F.glu(x.T, 0)), rows),
    "sigmoids": (lambda m, x: (F.logsigmoid(x * 30), F.hardsigmoid(x * 3), F.softmin(x, 1), F.silu(x * 9)), rows),
    "softplus": (lambda m, x: (F.softplus(x, 0.5), F.softplus(x, 2, 5)), large),
    "activations at the ends": (
        lambda m, x, y: (
            *(f(x) for f in (F.relu, F.silu, F.elu, F.softplus, F.hardtanh, F.relu6, F.logsigmoid)),
            *(f(x) for f in (F.leaky_relu, F.hardshrink, F.softsign, torch.sigmoid)),
            F.threshold(x, 0.1, 2.0),
        ),
        odd,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_elementwise(name: str) -> None:
    function, inputs = CASES[name]
    check_operator(function, inputs, batches=(3,) if name == "glu" else (3, 2))


# --- derivatives


LINE = torch.linspace(-4, 4, 33, dtype=torch.float64)  # with 0, ±0.5, ±1 and ±3
POSITIVE = torch.linspace(0.05, 12, 40, dtype=torch.float64)
INSIDE = torch.linspace(-0.95, 0.95, 21, dtype=torch.float64)
OTHER = torch.linspace(3, -5, 33, dtype=torch.float64)

DERIVATIVES: dict[str, tuple[Callable[..., Any], torch.Tensor]] = {
    "log1p": (lambda w: torch.log1p(w), POSITIVE - 0.9),
    "expm1": (lambda w: torch.expm1(w), LINE),
    "logarithms and powers of 2": (lambda w: (w.log2(), w.log10(), w.exp2()), POSITIVE),
    "logaddexp": (lambda w: (torch.logaddexp(w, OTHER), torch.logaddexp2(w, w)), LINE),
    "logit": (lambda w: (torch.logit(w), torch.logit(w, 0.1)), torch.linspace(0.05, 0.95, 19)),
    "xlogy": (lambda w: (torch.xlogy(w, w + 0.1), S.xlog1py(w - 0.05, w), S.entr(w)), POSITIVE),
    "xlogy at 0": (
        lambda w: torch.xlogy(w, torch.tensor([0.0, 2.0, 3.0], dtype=torch.float64)),
        torch.tensor([0.0, 0, 1]),
    ),
    "erfc": (lambda w: (torch.erfc(w), S.erfcx(w), S.erf(w)), LINE),
    "erfinv": (lambda w: torch.erfinv(w), INSIDE),
    "normal distribution": (lambda w: (S.ndtr(w), S.log_ndtr(w)), LINE * 2),
    "lgamma": (lambda w: torch.lgamma(w), POSITIVE),
    "lgamma below 0": (lambda w: torch.lgamma(w), LINE[:16] + 0.1),
    "mvlgamma": (lambda w: torch.mvlgamma(w + 2, 3), POSITIVE),
    "sinc": (lambda w: torch.sinc(w), LINE),
    "hyperbolic": (lambda w: (torch.asinh(w), torch.atanh(w), torch.acosh(w.abs() + 1.2)), INSIDE),
    "atan2": (lambda w: (torch.atan2(w, OTHER + 0.1), torch.atan2(OTHER + 0.1, w)), LINE),
    "hypot": (lambda w: torch.hypot(w, OTHER + 0.1), LINE),
    "abs, sign, copysign at 0": (lambda w: (w.abs(), w.sign() * w, torch.copysign(w, OTHER)), LINE),
    "parts": (lambda w: (w.frac() * w, w.trunc() * w, w.round(decimals=1) * w), LINE),
    "nan_to_num": (lambda w: torch.nan_to_num(w, 0.0, 5.0) * 2, torch.tensor([1.0, -2.0, 3.0])),
    "addcdiv, addcmul": (lambda w: (torch.addcdiv(w, w, w + 1, value=0.3), torch.addcmul(w, w, w * 2)), POSITIVE),
    "lerp": (lambda w: (torch.lerp(w, OTHER, 0.7), torch.lerp(OTHER, w, w)), LINE),
    "remainders": (
        lambda w: (torch.fmod(w, 0.7), torch.remainder(w, -0.7)),
        OTHER + 0.11,
    ),
    "powers": (lambda w: (w**w, w**1.5, w**-2, 2**w, w.rsqrt(), w.float_power(0.3)), POSITIVE),
    "powers at 0": (lambda w: (w**2, w**3, w**1, w**0, w**1.5), torch.tensor([0.0, 1.0])),
    "extremes at ties": (lambda w: (torch.maximum(w, w * 1), torch.minimum(w, -w), torch.fmin(w, OTHER)), LINE),
    "clamp at its ends": (lambda w: (w.clamp(-1, 3), w.clamp(min=OTHER), torch.clamp(OTHER, w - 1, w)), LINE),
    "relu, hardtanh, relu6 at the kinks": (lambda w: (F.relu(w), F.hardtanh(w), F.relu6(w * 2)), LINE),
    "hardswish": (lambda w: F.hardswish(w + 0.01), LINE),
    "shrinks at the kinks": (lambda w: (F.hardshrink(w), F.softshrink(w), F.tanhshrink(w), F.softsign(w)), LINE),
    "threshold": (lambda w: (F.threshold(w, 0.5, 2.0), F.leaky_relu(w, 0.3), F.rrelu(w, training=False)), LINE),
    "exponential units": (lambda w: (F.elu(w, 0.7), F.celu(w, 0.5), F.selu(w), F.silu(w), F.gelu(w)), LINE),
    "elu with scales": (lambda w: torch.ops.aten.elu(w, 0.7, 1.3, 0.4), LINE),
    "soft units": (lambda w: (F.softplus(w, 2, 5), F.logsigmoid(w), F.mish(w), F.glu(w[1:], 0)), LINE),
    "gelu by tanh": (lambda w: F.gelu(w, approximate="tanh"), LINE),
    "where": (lambda w: (torch.where(w > 0, w, w * 3), w.masked_fill(w > 1, 0.0)), LINE),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivative(name: str) -> None:
    function, values = DERIVATIVES[name]
    check_derivative(function, values)


def test_derivatives_that_torch_rounds() -> None:
    """1/6 is a float32 in torch's kernel, and its trigamma has nine digits."""
    check_derivative(F.hardsigmoid, LINE, tolerance=1e-7)
    check_derivative(torch.digamma, POSITIVE, tolerance=1e-8)


# --- losses


def soft_labels(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 5), torch.rand(b, 5)


def labels(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 5), torch.randint(0, 5, (b,))


def ignored(b: int) -> tuple[torch.Tensor, ...]:
    marks = torch.randint(0, 5, (b,))
    marks[0] = -100
    return torch.randn(b, 5), marks


def maps(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 5, 4, 3), torch.randint(0, 5, (b, 4, 3))


def signs(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 5), torch.randn(b, 5), torch.randint(0, 2, (b,)) * 2 - 1


def sign_table(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 5), (torch.randint(0, 2, (b, 5)) * 2 - 1).float()


def triplets(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 5), torch.randn(b, 5), torch.randn(b, 5)


def label_lists(b: int) -> tuple[torch.Tensor, ...]:
    lists = torch.stack([torch.randperm(5) for _ in range(b)])
    lists[:, 3] = -1
    lists[0, 0] = -1
    return torch.randn(b, 5), lists


W = torch.tensor([0.2, 1.0, 0.5, 2.0, 1.5], dtype=torch.float64)


def w(x: torch.Tensor) -> torch.Tensor:
    return W.to(x.dtype)


def each(loss: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A loss with every reduction."""
    return lambda x, *rest: tuple(loss(x, *rest, reduction=r, **options) for r in ("none", "mean", "sum"))


LOSSES: dict[str, tuple[Callable[..., Any], Inputs]] = {
    "mse_loss": (each(F.mse_loss), soft_labels),
    "l1_loss": (each(F.l1_loss), soft_labels),
    "smooth_l1_loss": (each(F.smooth_l1_loss), soft_labels),
    "smooth_l1_loss, beta": (each(F.smooth_l1_loss, beta=0.3), soft_labels),
    "smooth_l1_loss, beta 0": (each(F.smooth_l1_loss, beta=0.0), soft_labels),
    "huber_loss": (each(F.huber_loss, delta=0.4), soft_labels),
    "nll_loss": (lambda x, y: each(F.nll_loss)(x.log_softmax(1), y), labels),
    "nll_loss, weights": (lambda x, y: each(F.nll_loss, weight=w(x))(x.log_softmax(1), y), labels),
    "nll_loss, ignored": (lambda x, y: each(F.nll_loss, weight=w(x), ignore_index=-100)(x, y), ignored),
    "nll_loss of maps": (lambda x, y: each(F.nll_loss, weight=w(x), ignore_index=2)(x, y), maps),
    "nll_loss of one": (lambda x, y: F.nll_loss(x[0], y[0]), labels),
    "cross_entropy": (each(F.cross_entropy), labels),
    "cross_entropy, ignored": (each(F.cross_entropy), ignored),
    "cross_entropy, weights": (lambda x, y: each(F.cross_entropy, weight=w(x), ignore_index=3)(x, y), labels),
    "cross_entropy, smoothing": (each(F.cross_entropy, label_smoothing=0.2), ignored),
    "cross_entropy, smoothing and weights": (
        lambda x, y: each(F.cross_entropy, label_smoothing=0.2, weight=w(x))(x, y),
        ignored,
    ),
    "cross_entropy of maps": (
        lambda x, y: each(F.cross_entropy, weight=w(x), label_smoothing=0.1, ignore_index=1)(x, y),
        maps,
    ),
    "cross_entropy of one": (lambda x, y: F.cross_entropy(x[0], y[0], label_smoothing=0.1), labels),
    "cross_entropy of probabilities": (each(F.cross_entropy), soft_labels),
    "cross_entropy of probabilities, all": (
        lambda x, y: each(F.cross_entropy, weight=w(x), label_smoothing=0.3)(x, y.softmax(1)),
        soft_labels,
    ),
    "binary_cross_entropy": (lambda x, y: each(F.binary_cross_entropy)(x.sigmoid(), y), soft_labels),
    "binary_cross_entropy, weights": (
        lambda x, y: each(F.binary_cross_entropy, weight=w(x))(x.sigmoid(), y),
        soft_labels,
    ),
    "bce with logits": (each(F.binary_cross_entropy_with_logits), soft_labels),
    "bce with logits, all": (
        lambda x, y: each(F.binary_cross_entropy_with_logits, weight=w(x), pos_weight=w(x) + 1)(x * 20, y),
        soft_labels,
    ),
    "kl_div": (lambda x, y: each(F.kl_div)(x.log_softmax(1), y), soft_labels),
    "kl_div, batchmean": (lambda x, y: F.kl_div(x.log_softmax(1), y.softmax(1), reduction="batchmean"), soft_labels),
    "kl_div, log_target": (lambda x, y: each(F.kl_div, log_target=True)(x, y.log()), soft_labels),
    "poisson_nll_loss": (each(F.poisson_nll_loss), soft_labels),
    "poisson_nll_loss, full": (lambda x, y: each(F.poisson_nll_loss, full=True)(x, y * 9), soft_labels),
    "poisson_nll_loss, not log": (
        lambda x, y: each(F.poisson_nll_loss, log_input=False, eps=1e-3)(x.exp(), y),
        soft_labels,
    ),
    "hinge_embedding_loss": (each(F.hinge_embedding_loss, margin=0.4), sign_table),
    "soft_margin_loss": (each(F.soft_margin_loss), sign_table),
    "multilabel_soft_margin_loss": (
        lambda x, y: each(F.multilabel_soft_margin_loss, weight=w(x))(x, (y > 0).to(x.dtype)),
        sign_table,
    ),
    "margin_ranking_loss": (
        lambda x, y, s: each(F.margin_ranking_loss, margin=0.3)(x, y, s[:, None].expand(-1, 5)),
        signs,
    ),
    "cosine_embedding_loss": (each(F.cosine_embedding_loss, margin=0.2), signs),
    "triplet_margin_loss": (each(F.triplet_margin_loss), triplets),
    "triplet_margin_loss, all": (each(F.triplet_margin_loss, margin=0.4, p=1.5, eps=1e-3, swap=True), triplets),
    "triplet_margin_with_distance_loss": (each(F.triplet_margin_with_distance_loss, swap=True), triplets),
    "multi_margin_loss": (each(F.multi_margin_loss), labels),
    "multi_margin_loss, all": (lambda x, y: each(F.multi_margin_loss, p=2, margin=0.7, weight=w(x))(x, y), labels),
    "multi_margin_loss of one": (lambda x, y: F.multi_margin_loss(x[0], y[0]), labels),
    "multilabel_margin_loss": (each(F.multilabel_margin_loss), label_lists),
    "multilabel_margin_loss of one": (lambda x, y: F.multilabel_margin_loss(x[0], y[0]), label_lists),
}


@pytest.mark.filterwarnings("ignore:reduction:UserWarning")  # torch's own, about kl_div's mean
@pytest.mark.parametrize("name", LOSSES)
def test_loss(name: str) -> None:
    function, inputs = LOSSES[name]
    check_operator(lambda m, *given: function(*given), inputs, batches=(4, 3))


@pytest.mark.parametrize("name", LOSSES)
def test_derivative_of_loss(name: str) -> None:
    function, inputs = LOSSES[name]
    torch.manual_seed(0)
    x, *rest = (t.double() if t.is_floating_point() else t for t in inputs(4))
    check_derivative(function, x, *rest)


def test_saturated_binary_cross_entropy() -> None:
    probabilities = torch.tensor([0.0, 1.0, 1e-14, 0.5, 0.0, 1.0])
    target = torch.tensor([0.0, 1.0, 0.3, 0.3, 1.0, 0.2], dtype=torch.float64)
    # torch's 1e-12 is a float32
    check_derivative(lambda p: F.binary_cross_entropy(p, target, reduction="none"), probabilities, tolerance=1e-7)


def test_all_labels_ignored() -> None:
    module = Calls(lambda m, x, y: (F.cross_entropy(x, y), F.cross_entropy(x, y, reduction="sum")))
    given = (torch.randn(3, 5), torch.full((3,), -100))
    check_outputs(module, ix.from_torch(module, given, None), given)


# --- what is refused

REFUSED: dict[str, tuple[Callable[..., Any], Inputs, str]] = {
    "polygamma": (lambda m, x: torch.polygamma(2, x), rows, "polygamma of order 2"),
    "random rrelu": (lambda m, x: F.rrelu(x, training=True), rows, "rrelu in training"),
    "bessel": (lambda m, x: S.i0(x), rows, "i0"),
    "gcd": (lambda m, i, j: torch.gcd(i, j), integers, "gcd"),
    "ctc_loss": (
        lambda m, x: F.ctc_loss(
            x.log_softmax(-1)[:, None], torch.ones(1, 2).long(), torch.tensor([3]), torch.tensor([2])
        ),
        lambda b: (torch.randn(3, 6),),
        "ctc_loss",
    ),
    "complex": (lambda m, x: torch.complex(x, x).log1p().abs(), rows, "log1p.default of complex tensors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, inputs, words = REFUSED[name]
    with pytest.raises(ix.UnsupportedError, match=words):
        ix.from_torch(Calls(function), inputs(3), None)
