"""Compiled inference gives what the plain interpreter gives, and chooses the forms that it is meant to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import interlux as ix
from interlux.ir.windows import Window
from interlux.runtime.jax import JaxRunner
from interlux.runtime.jax.channels_last import ChannelsLast, stored, stored_axis
from interlux.runtime.jax.convolution_forms import form_of
from interlux.runtime.jax.inference import INFERENCE, InferenceInterpreter, Packs
from interlux.runtime.jax.interpreter import JaxInterpreter
from interlux.runtime.jax.item_by_item import item_by_item
from interlux.runtime.jax.primitives import PRIMITIVES

FIXTURES = Path(__file__).parents[2] / "fixtures"
Function = Callable[..., Any]
ROUNDING = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-14}


def random(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def computed(op: JaxInterpreter, function: Function, *inputs: np.ndarray) -> list[np.ndarray]:
    def run(*values: Any) -> list[Any]:
        result = function(op, *values)
        return [op.plain(y) for y in (result if isinstance(result, tuple) else (result,))]

    with jax.enable_x64(True):
        return [np.asarray(y) for y in jax.jit(run)(*inputs)]


def assert_same(function: Function, *inputs: np.ndarray) -> None:
    """What both interpreters compute is equal but for rounding."""
    plain, fast = (computed(op, function, *inputs) for op in (JaxInterpreter(), InferenceInterpreter()))
    assert len(plain) == len(fast)
    for a, b in zip(plain, fast, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if a.dtype.kind != "f" or not a.size:
            assert np.array_equal(a, b)
            continue
        assert np.array_equal(np.isnan(a), np.isnan(b))
        finite = np.isfinite(a)
        assert np.array_equal(a[~finite], b[~finite], equal_nan=True)
        scale = np.abs(a[finite]).max(initial=0)
        assert np.abs(a[finite] - b[finite]).max(initial=0) <= ROUNDING.get(a.dtype, 1e-2) * scale


CONVOLUTIONS = [
    # form, spatial sizes, channels, features, kernel, attributes
    ("general", (10, 11), 8, 12, (3, 3), {}),
    ("general", (17, 16), 8, 12, (3, 3), {"pads": (0, 1, 2, 3)}),
    ("general", (24, 23), 5, 6, (3, 3), {"strides": (2, 1), "pads": (1, 1, 1, 1)}),
    ("general", (20, 20), 5, 6, (3, 3), {"dilations": (2, 3), "pads": (2, 3, 2, 3)}),
    ("general", (32, 32), 3, 8, (7, 7), {"strides": (2, 2), "pads": (3, 3, 3, 3)}),
    ("general", (19, 20), 5, 6, (3, 3), {"auto_pad": "SAME_UPPER", "strides": (2, 2)}),
    ("general", (19, 20), 5, 6, (4, 4), {"auto_pad": "SAME_LOWER"}),
    ("general", (70,), 5, 6, (3,), {"pads": (1, 1)}),
    ("general", (5, 6, 7), 5, 6, (3, 3, 3), {"pads": (1, 1, 1, 1, 1, 1)}),
    ("general", (200,), 8, 8, (65,), {"group": 8}),
    ("general", (9, 9), 8, 6, (1, 1), {"pads": (1, 1, 1, 1)}),
    ("columns", (32, 31), 3, 8, (3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
    ("columns", (7, 7), 16, 12, (3, 3), {"pads": (1, 1, 1, 1)}),
    ("columns", (2, 2), 16, 12, (3, 3), {"pads": (1, 1, 1, 1)}),
    ("columns", (9, 9), 4, 6, (3, 3), {"dilations": (2, 2)}),
    ("columns", (30,), 2, 6, (5,), {"pads": (2, 2)}),
    ("pointwise", (9, 11), 8, 12, (1, 1), {}),
    ("pointwise", (9, 11), 8, 12, (1, 1), {"strides": (2, 3)}),
    ("pointwise", (5, 4, 3), 8, 12, (1, 1, 1), {}),
    ("patches", (16, 24), 3, 10, (4, 4), {"strides": (4, 4)}),
    ("patches", (17, 25), 6, 10, (2, 4), {"strides": (2, 4)}),
    ("patches", (31,), 6, 10, (5,), {"strides": (5,)}),
    ("depthwise", (15, 14), 8, 8, (3, 3), {"group": 8, "pads": (1, 1, 1, 1)}),
    ("depthwise", (15, 14), 8, 8, (5, 5), {"group": 8, "pads": (2, 1, 2, 1), "strides": (2, 2)}),
    ("depthwise", (15, 14), 8, 24, (3, 3), {"group": 8, "pads": (1, 1, 1, 1), "dilations": (2, 1)}),
    ("depthwise", (30,), 6, 6, (4,), {"group": 6, "pads": (3, 0)}),
    ("depthwise", (6, 7, 8), 4, 8, (3, 2, 1), {"group": 4}),
    ("grouped", (15, 14), 8, 12, (3, 3), {"group": 2, "pads": (1, 1, 1, 1)}),
    ("grouped", (15, 14), 12, 9, (3, 3), {"group": 3, "strides": (2, 2)}),
    ("grouped", (15, 14), 8, 12, (1, 1), {"group": 4}),
    ("grouped", (40,), 8, 8, (7,), {"group": 2, "pads": (3, 3)}),
]


@pytest.mark.parametrize(("batch", "dtype"), [(3, np.float32), (1, np.float64)])
@pytest.mark.parametrize(("form", "spatial", "channels", "features", "kernel", "attributes"), CONVOLUTIONS)
def test_convolutions(
    form: str, spatial: Any, channels: int, features: int, kernel: Any, attributes: Any, batch: int, dtype: Any
) -> None:
    geometry = {k: attributes.get(k) for k in ("strides", "pads", "dilations")}
    window = Window.of(spatial, kernel, **geometry, auto_pad=attributes.get("auto_pad", "NOTSET"))
    group = attributes.get("group", 1)
    assert form_of(channels, features, group, window) == form
    weight, bias = random(features, channels // group, *kernel, dtype=dtype), random(features, dtype=dtype)
    x = random(batch, channels, *spatial, dtype=dtype)
    mixed = random(4, features, *(1,) * len(kernel), dtype=dtype)
    assert_same(
        lambda op, x: (op.Conv(x, weight, bias, **attributes), op.Conv(op.Conv(x, weight, **attributes), mixed)), x
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32"])
def test_convolutions_of_other_dtypes_are_plain(dtype: str) -> None:
    weight = random(4, 3, 3, 3).astype(jax.numpy.dtype(dtype))
    assert_same(lambda op, x: op.Conv(x, weight), random(2, 3, 8, 8).astype(weight.dtype))


def test_a_computed_weight_is_taken() -> None:
    assert_same(lambda op, x, w: op.Conv(x, op.Relu(w)), random(2, 3, 8, 8), random(4, 3, 3, 3))
    assert_same(lambda op, x, w: op.MatMul(x, op.Relu(w)), random(2, 3, 8), random(8, 5))


def image(op: JaxInterpreter, x: Any) -> Any:
    """A value that compiled inference stores channels-last."""
    return op.Conv(x, np.eye(x.shape[1], dtype=x.dtype).reshape(x.shape[1], x.shape[1], *(1,) * (x.ndim - 2)))


POOLS: list[dict[str, Any]] = [
    {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
    {"kernel_shape": (2, 2), "strides": (2, 2)},
    {"kernel_shape": (3, 2), "pads": (0, 1, 2, 0)},
    {"kernel_shape": (2, 2), "strides": (2, 2), "ceil_mode": 1},
    {"kernel_shape": (3, 3), "strides": (3, 2), "pads": (1, 1, 1, 1), "ceil_mode": 1},
    {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (0, 1, 2, 2), "ceil_mode": 1},
    {"kernel_shape": (3, 3), "strides": (2, 2), "auto_pad": "SAME_UPPER"},
    {"kernel_shape": (2, 3), "dilations": (2, 2)},
    {"kernel_shape": (9, 9), "pads": (4, 4, 4, 4)},
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("attributes", POOLS)
def test_pools(attributes: Any, dtype: Any) -> None:
    x = random(3, 5, 13, 11, dtype=dtype)

    def pools(op: JaxInterpreter, x: Any) -> Any:
        y = image(op, x)
        return (
            op.MaxPool(y, **attributes),
            *op.MaxPool(y, **attributes, outputs=2),
            *(op.AveragePool(y, **attributes, count_include_pad=include) for include in (0, 1)),
        )

    assert_same(pools, x)


def test_pools_of_nan_and_infinity() -> None:
    x = random(1, 2, 6, 6)
    x[0, 0, 2, 2], x[0, 1, 3, 3], x[0, 1, 0] = np.nan, np.inf, -np.inf
    for attributes in POOLS[:3]:
        assert_same(lambda op, x: op.MaxPool(op.Relu(image(op, x)), **attributes), x)  # noqa: B023


def test_pools_of_other_ranks() -> None:
    assert_same(lambda op, x: op.MaxPool(image(op, x), kernel_shape=(3,), strides=(2,)), random(2, 4, 15))
    assert_same(lambda op, x: op.AveragePool(image(op, x), kernel_shape=(3, 2, 1)), random(2, 4, 5, 6, 7))
    assert_same(lambda op, x: (op.GlobalAveragePool(image(op, x)), op.GlobalMaxPool(image(op, x))), random(2, 4, 5, 6))


AXES = [np.array(a) for a in ([2, 3], [-1, -2], [1], [0], [3], [0, 2, 3], [1, 2, 3])]
W = random(5, 5, 3, 3)
STATISTICS = (random(5), random(6)[:5], random(7)[:5], np.abs(random(8)[:5]) + 0.5)
NETWORKS: dict[str, Function] = {
    "batch norm": lambda op, x: op.BatchNormalization(image(op, x), *STATISTICS),
    "batch norm of a plain value": lambda op, x: op.BatchNormalization(x, *STATISTICS, epsilon=1e-3),
    "residual": lambda op, x: op.Relu(op.Add(op.Conv(x, W, pads=(1, 1, 1, 1)), x)),
    "residual of a plain value first": lambda op, x: op.Add(x, op.Conv(x, W, pads=(1, 1, 1, 1))),
    "concat": lambda op, x: op.Concat(image(op, x), x, image(op, x), axis=1),
    "concat along the width": lambda op, x: op.Concat(image(op, x), x, axis=-1),
    "concat along the batch": lambda op, x: op.Concat(image(op, x), x, axis=0),
    "concat with a constant": lambda op, x: op.Concat(image(op, x), random(3, 2, 6, 7), axis=1),
    "split": lambda op, x: op.Split(image(op, x), np.array([2, 3]), axis=1, outputs=2),
    "split equally": lambda op, x: op.Split(image(op, x), axis=2, num_outputs=2, outputs=2),
    "slice": lambda op, x: op.Slice(image(op, x), np.array([1, -3]), np.array([4, 99]), np.array([1, 3])),
    "slice of the first axes": lambda op, x: op.Slice(image(op, x), np.array([1, 2]), np.array([3, 4])),
    "slice backwards": lambda op, x: op.Slice(
        image(op, x), np.array([-1]), np.array([-99]), np.array([-2]), np.array([-2])
    ),
    "pad": lambda op, x: op.Pad(image(op, x), np.array([0, 1, 2, 0, 1, 0, 0, 3]), np.float32(2)),
    "pad along an axis": lambda op, x: op.Pad(image(op, x), np.array([1, 2]), None, np.array([-1]), mode="reflect"),
    "flatten": lambda op, x: op.Flatten(image(op, x)),
    "reshape": lambda op, x: op.Reshape(image(op, x), np.array([0, -1, 6])),
    "squeeze": lambda op, x: op.Squeeze(op.GlobalAveragePool(image(op, x)), np.array([2, 3])),
    "squeeze-excite": lambda op, x: op.Mul(
        image(op, x), op.Sigmoid(op.Conv(op.GlobalAveragePool(image(op, x)), W[..., :1, :1]))
    ),
    "channels by a computed vector": lambda op, x: op.Mul(
        image(op, x), op.Reshape(op.ReduceMax(x, np.array([0, 2, 3])), np.array([-1, 1, 1]))
    ),
    "constants": lambda op, x: op.Add(
        op.Mul(image(op, x), random(5, 1, 1)), op.Add(image(op, x), op.Sub(random(7), image(op, x)))
    ),
    "scalars": lambda op, x: op.Div(op.Add(image(op, x), np.float32(2)), np.array([3], np.float32)),
    "a higher rank": lambda op, x: op.Add(image(op, x), random(2, 3, 5, 6, 7)),
    "clip": lambda op, x: op.Clip(image(op, x), None, np.float32(0.5)),
    "where": lambda op, x: op.Where(op.Greater(image(op, x), np.float32(0)), x, np.float32(-1)),
    "prelu": lambda op, x: op.PRelu(image(op, x), random(5, 1, 1)),
    "cast": lambda op, x: op.Cast(image(op, x), to=11),
    "activations": lambda op, x: tuple(
        getattr(op, n)(image(op, x))
        for n in ("HardSwish", "HardSigmoid", "Gelu", "Elu", "Erf", "Softplus", "Swish", "Mish", "Identity", "Neg")
    ),
    "dropout": lambda op, x: op.Relu(op.Dropout(image(op, x))),
    "to channels last": lambda op, x: op.Transpose(image(op, x), perm=(0, 2, 3, 1)),
    "there and back": lambda op, x: op.Transpose(
        op.LayerNormalization(op.Transpose(image(op, x), perm=(0, 2, 3, 1)), random(5)), perm=(0, 3, 1, 2)
    ),
    "another transposition": lambda op, x: op.Transpose(image(op, x), perm=(1, 0, 3, 2)),
    "transposition without perm": lambda op, x: op.Transpose(image(op, x)),
    "softmax over channels": lambda op, x: op.Softmax(image(op, x), axis=1),
    "softmax": lambda op, x: op.Softmax(image(op, x)),
    "matmul": lambda op, x: op.MatMul(image(op, x), random(7, 4)),
    "shape": lambda op, x: op.Shape(image(op, x)),
    "a shape that is computed": lambda op, x: op.Expand(op.GlobalMaxPool(image(op, x)), op.Shape(image(op, x))),
    "mean of all": lambda op, x: op.ReduceMean(image(op, x)),
    "reductions": lambda op, x: tuple(
        reduction(image(op, x), axes, keepdims=keep)
        for reduction in (op.ReduceMean, op.ReduceMax, op.ReduceSum, op.ReduceL2)
        for axes in AXES
        for keep in (0, 1)
    ),
    "an operator without a form": lambda op, x: op.ArgMax(image(op, x), axis=1),
    "several outputs": lambda op, x: (image(op, x), op.Relu(image(op, x)), op.Flatten(image(op, x))),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    assert_same(NETWORKS[name], random(3, 5, 6, 7))


def test_elementwise_forms_are_of_operators_that_exist() -> None:
    assert set(INFERENCE) <= set(PRIMITIVES)


GEMMS: list[dict[str, Any]] = [
    {},
    {"transB": 1},
    {"transA": 1},
    {"alpha": 0.5, "beta": 2.0},
    {"beta": 0.0, "transA": 1, "transB": 1},
]


@pytest.mark.parametrize("attributes", GEMMS)
def test_gemm(attributes: Any) -> None:
    x = random(6, 4).T if attributes.get("transA") else random(4, 6)
    w = random(5, 6) if attributes.get("transB") else random(6, 5)
    x = np.ascontiguousarray(x.T) if attributes.get("transA") and x.shape[0] == 4 else x
    assert_same(lambda op, x: op.Gemm(x, w, random(5), **attributes), x)


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (2, 3, 4, 6), (0, 6)])
def test_matmul(shape: Any) -> None:
    assert_same(lambda op, x: op.MatMul(x, random(6, 5)), random(*shape))
    assert_same(lambda op, x: op.MatMul(random(5, 6), x), random(6, 4))


def test_what_is_stored_channels_last_has_its_own_shape() -> None:
    value = ChannelsLast(np.zeros((2, 5, 6, 7), np.float32))
    assert (value.shape, value.ndim, value.dtype, value.size) == ((2, 7, 5, 6), 4, np.float32, 420)
    assert [stored_axis(a, 4) for a in (0, 1, 2, 3, -1, -3)] == [0, 3, 1, 2, 2, 3]
    x = random(2, 3, 4, 5)
    assert np.array_equal(ChannelsLast(stored(x)).plain(), x)


def test_packs_are_made_once() -> None:
    packs, made = Packs(), []
    weight = random(3, 4)

    def pack(w: np.ndarray) -> np.ndarray:
        made.append(w)
        return w.T

    assert packs("a", pack, weight) is packs("a", pack, weight)
    assert packs("b", pack, weight) is not packs("a", pack, weight)
    assert len(made) == 2 and packs("a", pack, weight).flags.c_contiguous


@pytest.mark.parametrize("name", ["digits_lenet", "digits_resnet", "digits_lstm", "digits_transformer"])
def test_fixtures(name: str) -> None:
    model = ix.from_onnx(FIXTURES / f"{name}.onnx")
    runner = JaxRunner(model)
    (spec,) = model.require_signature().inputs
    for batch in (1, 4):
        shape = [n if isinstance(n, int) else batch for n in spec.shape or ()]
        x = random(*shape).astype(spec.dtype)
        plain, _ = model.layer.apply(model.params, model.states, x, train=False)
        np.testing.assert_allclose(runner(x)[0], plain, rtol=0, atol=2e-6 * np.abs(plain).max())


class Small(nn.Module):
    """Convolutions of several forms, a residual, squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 5, padding=2, groups=16), nn.BatchNorm2d(16), nn.ReLU())
        self.squeeze, self.mix = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 128, 3, padding=1)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x)
        y = self.depthwise(x)
        z = self.mix(x + y * torch.sigmoid(self.squeeze(y.mean((2, 3), keepdim=True))))
        return self.head(nn.functional.max_pool2d(z, 3, 2, 1).mean((2, 3))), z


@pytest.fixture(scope="module")
def small() -> ix.Model:
    torch.manual_seed(0)
    return ix.from_torch(Small().eval(), torch.randn(2, 3, 40, 40))


def test_every_batch_size_shares_the_packed_parameters(small: ix.Model) -> None:
    runner = JaxRunner(small)
    counts = set()
    for batch in (1, 2, 5):
        x = random(batch, 3, 40, 40)
        (plain, z), _ = small.layer.apply(small.params, small.states, x, train=False)
        result, image = runner(x)
        np.testing.assert_allclose(result, plain, rtol=0, atol=2e-6 * np.abs(plain).max())
        np.testing.assert_allclose(image, z, rtol=0, atol=2e-6 * np.abs(z).max())
        counts.add(len(runner._constants))
    assert len(counts) == 1


def looped(function: Function, *inputs: np.ndarray) -> bool:
    """Whether a function is computed item by item; if so, checks that the results are the same."""
    closed = jax.make_jaxpr(function)(*inputs)
    loop = item_by_item(closed, large=0)
    if loop is None:
        return False
    whole = jax.tree.leaves(jax.jit(function)(*inputs))
    items = jax.jit(loop)(closed.consts, inputs)
    for a, b in zip(whole, items, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    return True


X = random(4, 4, 6, 8)
M = random(8, 8)
APART: dict[str, Function] = {
    "elementwise": lambda x: jax.nn.relu(x) * 2 + jnp.where(x > 0, x, -1),
    "a bias": lambda x: x + random(8) + random(4, 1, 1),
    "a row for all items": lambda x: x * jnp.broadcast_to(random(1, 4, 1, 1), x.shape),
    "a dense layer": lambda x: jnp.reshape(jnp.reshape(x, (-1, 8)) @ M + random(8), x.shape),
    "attention": lambda x: jax.nn.softmax(x @ jnp.swapaxes(x, -1, -2)) @ x,
    "a product from the left": lambda x: jnp.einsum("ij,bcjw->bciw", random(6, 6), x),
    "a product that moves the batch": lambda x: jnp.moveaxis(jnp.tensordot(random(8, 6), x, (1, 2)), 1, 0),
    "transpositions": lambda x: jnp.transpose(jnp.transpose(x, (3, 0, 1, 2)), (1, 0, 2, 3)),
    "reductions": lambda x: (jnp.mean(x, (1, 2)), jnp.max(x, 3), jnp.argmax(x, 1)),
    "slices": lambda x: jnp.pad(x[:, 1:3, ::2], [(0, 0), (1, 1), (0, 0), (0, 0)]),
    "concatenation": lambda x: jnp.concatenate([x, x * 2], 1),
    "reshape": lambda x: jnp.reshape(jnp.reshape(x, (4, 2, 2, 48)), (4, 4, 48)),
    "merged with the axis behind": lambda x: jnp.reshape(x, (16, 48)),
    "convolution": lambda x: jax.lax.conv(x, jnp.asarray(random(5, 4, 3, 3)), (1, 1), "SAME"),
    "several outputs": lambda x: (x, x + 1),
}
MIXED: dict[str, Function] = {
    "a sum over the batch": lambda x: x - jnp.sum(x, 0, keepdims=True),
    "a mean over all": lambda x: x - jnp.mean(x),
    "softmax over the batch": lambda x: jax.nn.softmax(x, 0),
    "the batch backwards": lambda x: x[::-1],
    "a part of the batch": lambda x: x[:2],
    "twice the batch": lambda x: jnp.concatenate([x, x], 0),
    "padding of the batch": lambda x: jnp.pad(x, [(0, 1), (0, 0), (0, 0), (0, 0)]),
    "a product over the batch": lambda x: jnp.einsum("bchw,dchw->bd", x, x),
    "a number for every item": lambda x: x + random(4, 1, 1, 1),
    "a constant for every item": lambda x: x + random(4, 4, 6, 8),
    "channels for items": lambda x: x + jnp.swapaxes(x, 0, 1),
    "a transposed output": lambda x: jnp.swapaxes(x, 0, 1),
    "a merged axis in front": lambda x: jnp.reshape(jnp.swapaxes(x, 0, 1), (16, 6, 8)),
    "items among the channels": lambda x: jnp.reshape(jnp.swapaxes(jnp.reshape(x, (2, 2, 4, 6, 8)), 0, 1), x.shape),
    "a shape of another batch": lambda x: jnp.reshape(x, (2, 8, 6, 8)),
    "an output without the batch": lambda x: (x, jnp.ones(3)),
    "cumulative sum": lambda x: jnp.cumsum(x, 0),
    "a matrix of items": lambda x: jnp.reshape(x, (4, -1)).T @ jnp.ones((4, 3)),
}


@pytest.mark.parametrize("name", APART)
def test_items_that_are_treated_apart(name: str) -> None:
    assert looped(APART[name], X)


@pytest.mark.parametrize("name", MIXED)
def test_items_that_are_not_treated_apart(name: str) -> None:
    assert not looped(MIXED[name], X)


def test_items_of_several_inputs() -> None:
    assert looped(lambda x, y: x + jnp.reshape(y, (4, 4, 1, 1)), X, random(4, 4))
    assert not looped(lambda x, y: x + y, X, random(6, 8))
    assert not looped(lambda x: x + 1, X[:1])
    assert item_by_item(jax.make_jaxpr(lambda x: x + 1)(X)) is None  # it is small


EDGES = np.concatenate([np.linspace(-8, 8, 4001), [np.nan, np.inf, -np.inf, 1e-30, -1e30, 0.0, -0.0, 1.0, -1.0] * 8])
UNARY = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp"),
    *("Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round"),
    *("Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh"),
)


@pytest.mark.parametrize("op_type", UNARY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_with_the_options_of_the_compiler(op_type: str, dtype: Any) -> None:
    """They are those of numpy's scale, also in vectors of the widest kind (whose arc tangent XLA has wrong)."""
    x = EDGES.astype(dtype)
    spec = ix.TensorSpec("x", x.dtype.name, x.shape)
    layer = ix.layers.Operator.of(op_type)
    model = ix.Model(layer, {}, {}, ix.Signature((spec,), (ix.TensorSpec("y", x.dtype.name, x.shape),)))
    (found,) = ix.compile(model, "jax")(x)
    with np.errstate(all="ignore"), jax.enable_x64(True):
        expected = np.asarray(PRIMITIVES[op_type](jnp.asarray(x)))
    tolerance = 2e-6 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
