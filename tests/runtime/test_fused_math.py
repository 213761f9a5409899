"""The fused engine's elementary functions: units in the last place against wider arithmetic, edges, and derivatives,
on every target that this machine can run."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy import special

from interlux.runtime.fused import target as targets
from interlux.runtime.fused.activations import ACTIVATIONS, SELU_ALPHA, SELU_GAMMA
from interlux.runtime.fused.derivatives import DERIVATIVES
from interlux.runtime.fused.llvm import I64, PTR, Module, Value, assemble, load, type_of
from interlux.runtime.fused.vectormath import exp_nonpositive, expm1_nonpositive

pytest.importorskip("llvmlite")
LIMIT = 2.0
WIDE = np.finfo(np.longdouble).nmant >= 63  # the reference of float64
TARGETS = [t.name for t in targets.executable()]
Array = np.ndarray


@functools.cache
def compiled(function: Callable[..., Value], dtype: str, target: str, lanes: int = 0) -> Any:
    """The address of a function over arrays (x, y, count), and what keeps it alive."""
    machine = targets.named(target)
    lanes = lanes or machine.lanes(dtype)
    module = Module(machine)
    f = module.function("run", [("x", PTR), ("y", PTR), ("n", I64)])
    x, y = f["x"].of(type_of(dtype)), f["y"].of(type_of(dtype))
    with f.loop(0, f["n"], lanes) as i:
        f.store(function(f, f.load(x + i, lanes, align=4)), y + i, align=4)
    f.ret()
    library = load(assemble(module.text(), machine), ["run"])
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    return kind(library.address("run")), library


def run(function: Callable[..., Value], x: Array, target: str, lanes: int = 0) -> Array:
    call, _library = compiled(function, x.dtype.name, target, lanes)
    padded = np.zeros(-(-x.size // 48) * 48 if lanes == 3 else -(-x.size // 64) * 64, x.dtype)
    padded[: x.size] = x
    y = np.empty_like(padded)
    call(padded.ctypes.data, y.ctypes.data, padded.size)
    return y[: x.size]


# --- references, for arrays of any floating-point type


def sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def mish(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return x * np.where(x < 0, e * (e + 2) / (e * e + 2 * e + 2), (1 + 2 * e) / (1 + 2 * e + 2 * e * e))


def gelu_tanh(x: Array) -> Array:
    two = x.dtype.type(2)
    return x * sigmoid(two * np.sqrt(two / x.dtype.type(np.longdouble("3.14159265358979323846264338"))) * cubic(x))


def cubic(x: Array) -> Array:
    return x + x.dtype.type(np.longdouble("0.044715")) * x**3


def negative_part(x: Array) -> Array:
    return np.minimum(x, 0)


def exactly(scalar: Callable[[Any], Any], narrow: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A function that numpy has in float64 only; in wider arithmetic by mpmath."""

    def reference(x: Array) -> Array:
        if x.dtype == np.float64:
            return narrow(x)
        result = np.empty_like(x)
        with mpmath.workprec(150):
            for i, number in enumerate(x):
                value = scalar(mpmath.mpf(float(number))) if abs(number) < 100 else mpmath.nan
                result[i] = np.longdouble(float(value)) + np.longdouble(float(value - mpmath.mpf(float(value))))
        return np.where(np.abs(x) < 100, result, narrow(x.astype(np.float64)))

    return reference


def gelu(x: Array) -> Array:
    return x * special.ndtr(x)


def of_attribute(number: float, x: Array) -> Any:
    """An attribute in the type of the function: the float32 tests compute their references in float64."""
    return x.dtype.type(np.float32(number)) if x.dtype == np.float64 else x.dtype.type(number)


a = of_attribute
# name, attributes, reference
CASES: dict[str, tuple[str, dict[str, Any], Callable[[Array], Array]]] = {
    "Exp": ("Exp", {}, np.exp),
    "Exp2": ("Exp2", {}, np.exp2),
    "Expm1": ("Expm1", {}, np.expm1),
    "Log": ("Log", {}, np.log),
    "Log1p": ("Log1p", {}, np.log1p),
    "Log2": ("Log2", {}, np.log2),
    "Log10": ("Log10", {}, np.log10),
    "Sqrt": ("Sqrt", {}, np.sqrt),
    "Rsqrt": ("Rsqrt", {}, lambda x: 1 / np.sqrt(x)),
    "Reciprocal": ("Reciprocal", {}, lambda x: 1 / x),
    "Tanh": ("Tanh", {}, np.tanh),
    "Sigmoid": ("Sigmoid", {}, sigmoid),
    "LogSigmoid": ("LogSigmoid", {}, lambda x: -softplus(-x)),
    "Softplus": ("Softplus", {}, softplus),
    "Softplus, beta": ("Softplus", {"beta": 2.0}, lambda x: softplus(2 * x) / 2),
    "Softplus, threshold": (
        "Softplus", {"beta": 0.5, "threshold": 3.0}, lambda x: np.where(x / 2 > 3, x, softplus(x / 2) * 2)
    ),
    "Erf": ("Erf", {}, exactly(mpmath.erf, special.erf)),
    "Erfc": ("Erfc", {}, exactly(mpmath.erfc, special.erfc)),
    "Gelu": ("Gelu", {}, exactly(lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2, gelu)),
    "Gelu, tanh": ("Gelu", {"approximate": "tanh"}, gelu_tanh),
    "Swish": ("Swish", {}, lambda x: x * sigmoid(x)),
    "Swish, alpha": ("Swish", {"alpha": 1.702}, lambda x: x * sigmoid(a(1.702, x) * x)),
    "Swish, small": ("Swish", {"alpha": -0.01}, lambda x: x * sigmoid(a(-0.01, x) * x)),
    "Mish": ("Mish", {}, mish),
    "Elu": ("Elu", {}, lambda x: np.where(x > 0, x, np.expm1(negative_part(x)))),
    "Elu, alpha": ("Elu", {"alpha": 0.3}, lambda x: np.where(x > 0, x, a(0.3, x) * np.expm1(negative_part(x)))),
    "Selu": (
        "Selu",
        {},
        lambda x: np.where(x > 0, x, np.expm1(negative_part(x)) * x.dtype.type(SELU_ALPHA)) * x.dtype.type(SELU_GAMMA),
    ),
    "Celu, alpha": (
        "Celu", {"alpha": 0.7}, lambda x: np.where(x > 0, x, a(0.7, x) * np.expm1(negative_part(x) / a(0.7, x)))
    ),
    "Softsign": ("Softsign", {}, lambda x: x / (1 + np.abs(x))),
    "HardSigmoid": ("HardSigmoid", {}, lambda x: np.clip(x * a(0.2, x) + a(0.5, x), 0, 1)),
    "HardSwish": ("HardSwish", {}, lambda x: np.where(x <= -3, x * 0, np.where(x >= 3, x, x * (x + 3) / 6))),
    "HardTanh": ("HardTanh", {}, lambda x: np.clip(x, -1, 1)),
    "ReLU6": ("HardTanh", {"low": 0.0, "high": 6.0}, lambda x: np.clip(x, 0, 6)),
    "Relu": ("Relu", {}, lambda x: np.maximum(x, 0)),
    "LeakyRelu": ("LeakyRelu", {"alpha": 0.1}, lambda x: np.where(x > 0, x, a(0.1, x) * x)),
    "ThresholdedRelu": ("ThresholdedRelu", {}, lambda x: np.where(x > 1, x, 0)),
    "Shrink": ("Shrink", {"lambd": 0.5, "bias": 0.5}, lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0)),
    "Abs": ("Abs", {}, np.abs),
    "Neg": ("Neg", {}, np.negative),
    "Sign": ("Sign", {}, np.sign),
    "Floor": ("Floor", {}, np.floor),
    "Ceil": ("Ceil", {}, np.ceil),
    "Round": ("Round", {}, np.round),
    "Atan": ("Atan", {}, np.arctan),
    "Sin": ("Sin", {}, np.sin),
    "Cos": ("Cos", {}, np.cos),
    "Tan": ("Tan", {}, np.tan),
    "Asin": ("Asin", {}, np.arcsin),
    "Acos": ("Acos", {}, np.arccos),
    "Sinh": ("Sinh", {}, np.sinh),
    "Cosh": ("Cosh", {}, np.cosh),
    "Asinh": ("Asinh", {}, np.arcsinh),
    "Acosh": ("Acosh", {}, np.arccosh),
    "Atanh": ("Atanh", {}, np.arctanh),
    "Pow, 0.5": ("Pow", {"exponent": 0.5}, lambda x: np.where(x == -np.inf, np.inf, np.sqrt(x + 0))),
    "Pow, 1/3": ("Pow", {"exponent": 1 / 3}, lambda x: x ** x.dtype.type(1 / 3)),
    "Pow, 2": ("Pow", {"exponent": 2.0}, lambda x: x * x),
    "Pow, 3": ("Pow", {"exponent": 3.0}, lambda x: x * x * x),
    "Pow, 7": ("Pow", {"exponent": 7.0}, lambda x: x ** x.dtype.type(7)),
    "Pow, -2": ("Pow", {"exponent": -2.0}, lambda x: x ** x.dtype.type(-2)),
    "Pow, -2.7": ("Pow", {"exponent": -2.7}, lambda x: x ** x.dtype.type(-2.7)),
}  # fmt: skip


ODD = (
    "Tanh", "Erf", "Expm1", "Log1p", "Atan", "Sin", "Tan", "Sinh", "Asin", "Asinh", "Atanh", "Softsign", "Neg", "Gelu"
)  # fmt: skip


@functools.cache
def emitter(case: str) -> Callable[..., Value]:
    name, attributes, _ = CASES[case]
    return lambda f, x: ACTIVATIONS[name](f, x, **attributes)


def spread(dtype: str, count: int) -> Array:
    """Numbers of all exponents and both signs, NaN, infinities and denormals among them, and more of the usual ones."""
    rng = np.random.default_rng(5)
    bits = 32 if dtype == "float32" else 64
    step = 2**bits // count
    patterns = np.arange(count, dtype=np.uint64) * np.uint64(step) + rng.integers(0, step, count, np.uint64)
    reach = 110 if dtype == "float32" else 800
    edges = np.array([0, 0.29, 0.35, 0.41421356, 0.5, 0.7, 1, 2, 3, 9, 10, 11, 14.6, 20, 27.5, 38.8, 88.7, 104, 709.7])
    near = np.concatenate([e + np.linspace(-1e-3, 1e-3, 101) for e in edges])
    with np.errstate(all="ignore"):  # signalling NaN
        return np.concatenate(
            [
                patterns.astype(f"u{bits // 8}").view(dtype),
                *(x.astype(dtype) for x in (rng.normal(size=count // 4), rng.uniform(-40, 40, count // 4))),
                rng.uniform(-reach, reach, count // 8).astype(dtype),
                *(x.astype(dtype) for x in (near, -near)),
                np.array([0, -0.0, np.inf, -np.inf, np.nan], dtype),
            ]
        )


def distance(y: Array, exact: Array) -> Array:
    """How many units in the last place y is off; infinite where only one is NaN, or infinite and not nearly so."""
    most = np.finfo(y.dtype).max
    rounded = exact.astype(y.dtype)
    unit = np.spacing(np.minimum(np.abs(rounded), most)).astype(exact.dtype)
    off = np.abs(y.astype(exact.dtype) - exact) / unit
    off = np.where(np.isinf(rounded) & (np.abs(y) >= most * (1 - 1e-7)) & (np.sign(y) == np.sign(rounded)), 1, off)
    off = np.where(np.isinf(y) & (np.abs(exact) >= most * (1 - 1e-7)) & (np.sign(y) == np.sign(rounded)), 1, off)
    off = np.where((rounded == y) & np.isinf(y), 0, off)
    nan = np.isnan(rounded), np.isnan(y)
    return np.where(nan[0] & nan[1], 0, np.where(nan[0] | nan[1], np.inf, off))


def check(case: str, x: Array, target: str, wide: type) -> None:
    with np.errstate(all="ignore"):
        y = run(emitter(case), x, target)
        exact = CASES[case][2](x.astype(wide))
        off = distance(y, exact)
    worst = int(np.argmax(off))
    assert off[worst] <= LIMIT, f"{case} of {x[worst]!r} is {y[worst]!r}, not {exact[worst]!r}: {off[worst]:.2f} ulp"


@functools.cache
def sample(dtype: str, count: int) -> Array:
    return spread(dtype, count)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_float32_is_within_two_units(case: str, target: str) -> None:
    x = sample("float32", 2**16)
    check(case, x, target, np.float64)


DENSE = (
    "Exp", "Expm1", "Tanh", "Sigmoid", "Swish", "Gelu", "Gelu, tanh", "Mish", "Softplus", "Log", "Erf", "Selu",
    "Celu, alpha",
)  # fmt: skip


@pytest.mark.parametrize("case", DENSE)
def test_float32_densely(case: str) -> None:
    check(case, sample("float32", 2**22), TARGETS[0], np.float64)


@pytest.mark.skipif(not WIDE, reason="no wider arithmetic in numpy here")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_float64_is_within_two_units(case: str, target: str) -> None:
    x = sample("float64", 4000)
    check(case, x, target, np.longdouble)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("function", "exact"), [(exp_nonpositive, np.exp), (expm1_nonpositive, np.expm1)])
def test_forms_for_numbers_below_0(function: Callable[..., Value], exact: Callable[[Array], Array], dtype: str) -> None:
    x = -np.abs(sample(dtype, 4000))
    with np.errstate(all="ignore"):
        off = distance(run(function, x, TARGETS[0]), exact(x.astype(np.longdouble)))
    assert off.max() <= LIMIT


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", ODD)
def test_zeros_keep_their_sign(case: str, dtype: str, target: str) -> None:
    y = run(emitter(case), np.array([0.0, -0.0], dtype), target)
    assert np.array_equal(np.signbit(y), [False, True] if case != "Neg" else [True, False])
    assert not y.any()


@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 32])
@pytest.mark.parametrize("case", ["Exp", "Tanh", "Gelu", "Mish", "Sin", "Log2", "Round"])
def test_any_number_of_lanes_gives_the_same(case: str, lanes: int) -> None:
    x = np.random.default_rng(0).normal(size=96).astype(np.float32) * 5
    vector, scalar = (run(emitter(case), x, t, n) for t, n in ((TARGETS[-2], lanes), (TARGETS[-1], 1)))
    assert TARGETS[-2:] != ["sse2", "scalar"] or np.array_equal(vector, scalar, equal_nan=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_power_of_values_follows_c(dtype: str) -> None:
    edges = np.array([0, -0.0, 1, -1, 0.5, -0.5, 2, -2, 3, -3, 2.5, 1e30, -1e30, np.inf, -np.inf, np.nan], dtype)
    for exponent in edges:
        with np.errstate(all="ignore"):
            y = run(lambda f, x, e=float(exponent): ACTIVATIONS["Pow"](f, x, _opaque(f, x, e)), edges, TARGETS[0])
            assert distance(y, edges.astype(np.longdouble) ** np.longdouble(exponent)).max() <= LIMIT, exponent


def _opaque(f: Any, like: Value, number: float) -> Value:
    """A number that the generator does not know."""
    return f.emit(f"select i1 true, {like.type} {f.const(number, like.type).text}, {like.type} poison", like.type)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extremes_propagate_nan(dtype: str) -> None:
    x = np.array([np.nan, 1, -1, np.inf], dtype)
    for name in ("Max", "Min"):
        y = run(lambda f, x, n=name: ACTIVATIONS[n](f, x, f.const(0.5, x.type)), x, TARGETS[0])
        assert np.array_equal(y, (np.maximum if name == "Max" else np.minimum)(x, x.dtype.type(0.5)), equal_nan=True)
    y = run(lambda f, x: ACTIVATIONS["Clip"](f, x, 0.0, 2.0), x, TARGETS[0])
    assert np.array_equal(y, np.array([np.nan, 1, 0, 2], dtype), equal_nan=True)


# --- derivatives

SLOPES: dict[str, tuple[str, dict[str, Any], Callable[[torch.Tensor], torch.Tensor]]] = {
    "Tanh": ("Tanh", {}, torch.tanh),
    "Sigmoid": ("Sigmoid", {}, torch.sigmoid),
    "LogSigmoid": ("LogSigmoid", {}, torch.nn.functional.logsigmoid),
    "Softplus": ("Softplus", {"beta": 2.0, "threshold": 20.0}, torch.nn.Softplus(2.0)),
    "Relu": ("Relu", {}, torch.relu),
    "LeakyRelu": ("LeakyRelu", {"alpha": 0.1}, torch.nn.LeakyReLU(0.1)),
    "Elu": ("Elu", {"alpha": 0.5}, torch.nn.ELU(0.5)),
    "Selu": ("Selu", {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}, torch.nn.SELU()),
    "Celu": ("Celu", {"alpha": 0.5}, torch.nn.CELU(0.5)),
    "Gelu": ("Gelu", {}, torch.nn.GELU()),
    "Gelu, tanh": ("Gelu", {"approximate": "tanh"}, torch.nn.GELU("tanh")),
    "Swish": ("Swish", {}, torch.nn.SiLU()),
    "Swish, alpha": ("Swish", {"alpha": 1.5}, lambda x: x * torch.sigmoid(1.5 * x)),
    "Mish": ("Mish", {}, torch.nn.Mish()),
    "Softsign": ("Softsign", {}, torch.nn.Softsign()),
    "HardSigmoid": ("HardSigmoid", {"alpha": 1 / 6}, torch.nn.Hardsigmoid()),
    "HardSwish": ("HardSwish", {}, torch.nn.Hardswish()),
    "HardTanh": ("HardTanh", {}, torch.nn.Hardtanh()),
    "Shrink": ("Shrink", {"lambd": 0.5}, torch.nn.Hardshrink(0.5)),
    "Abs": ("Abs", {}, torch.abs),
    "Exp": ("Exp", {}, torch.exp),
    "Exp2": ("Exp2", {}, torch.exp2),
    "Expm1": ("Expm1", {}, torch.expm1),
    "Erf": ("Erf", {}, torch.erf),
    "Erfc": ("Erfc", {}, torch.erfc),
    "Sin": ("Sin", {}, torch.sin),
    "Cos": ("Cos", {}, torch.cos),
    "Atan": ("Atan", {}, torch.atan),
    "Tan": ("Tan", {}, torch.tan),
    "Asin": ("Asin", {}, torch.asin),
    "Acos": ("Acos", {}, torch.acos),
    "Sinh": ("Sinh", {}, torch.sinh),
    "Cosh": ("Cosh", {}, torch.cosh),
    "Asinh": ("Asinh", {}, torch.asinh),
    "Acosh": ("Acosh", {}, torch.acosh),
    "Atanh": ("Atanh", {}, torch.atanh),
    "Pow": ("Pow", {"exponent": 3.0}, lambda x: x**3),
    "Reciprocal": ("Reciprocal", {}, torch.reciprocal),
    "Floor": ("Floor", {}, torch.floor),
    "Neg": ("Neg", {}, torch.neg),
    "Sqrt": ("Sqrt", {}, torch.sqrt),
    "Rsqrt": ("Rsqrt", {}, torch.rsqrt),
    "Log": ("Log", {}, torch.log),
    "Log1p": ("Log1p", {}, torch.log1p),
    "Log2": ("Log2", {}, torch.log2),
    "Log10": ("Log10", {}, torch.log10),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", SLOPES)
def test_derivatives_are_torchs(case: str, dtype: str) -> None:
    name, attributes, function = SLOPES[case]
    if name == "HardSigmoid" and dtype == "float64":
        pytest.skip("PyTorch's 1/6 is a float32 number there")
    kinks = [] if name in ("Reciprocal", "Sqrt", "Rsqrt", "Log", "Log2", "Log10") else [0.0]
    if name in ("HardSigmoid", "HardSwish", "HardTanh", "Relu"):
        kinks += [-3.0, 3.0, -1.0, 1.0]
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(size=400), rng.uniform(-12, 12, 400), kinks, [-90.0, 60.0]]).astype(dtype)
    if name in ("Sqrt", "Rsqrt", "Log", "Log1p", "Log2", "Log10"):
        x = np.abs(x)
    if name in ("Exp", "Exp2", "Expm1", "Sinh", "Cosh"):
        x = x[np.abs(x) < 20]
    if name in ("Asin", "Acos", "Atanh"):
        x = x[np.abs(x) < 0.99]
    if name == "Acosh":
        x = np.abs(x) + x.dtype.type(1.01)
    if name == "Tan":
        x = x[np.abs(np.cos(x)) > 0.1]

    def slope(f: Any, value: Value) -> Value:
        return DERIVATIVES[name](f, value, ACTIVATIONS[name](f, value, **attributes), **attributes)

    y = run(slope, x, TARGETS[0]).astype(np.float64)
    leaf = torch.tensor(x.astype(np.float64), requires_grad=True)
    function(leaf).sum().backward()
    assert leaf.grad is not None
    exact = leaf.grad.numpy()
    eps = float(np.finfo(dtype).eps) * (4 if case in ("Gelu, tanh", "Acosh") else 1)  # PyTorch loses more itself
    tolerance = 8 * eps * (np.abs(exact) if name in ("Reciprocal", "Rsqrt") else np.maximum(np.abs(exact), 1))
    worst = int(np.argmax(np.abs(y - exact) - tolerance))
    assert abs(y[worst] - exact[worst]) <= tolerance[worst], (x[worst], y[worst], exact[worst])


def test_every_activation_that_trains_has_a_derivative() -> None:
    several = {"Max", "Min", "Sum", "Mean"}
    assert set(ACTIVATIONS) - several <= set(DERIVATIVES)
