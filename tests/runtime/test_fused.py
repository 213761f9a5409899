"""The fused engine: every covered layer against the same model in float64, on all targets that this machine runs."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

pytest.importorskip("llvmlite")

import interlux as ix
from interlux.ir.errors import InvalidModelError, UnsupportedError
from interlux.ir.model import Dimension
from interlux.runtime.fused import target as targets

TARGETS = [t.name for t in targets.executable()]
ACTIVATIONS = [
    nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.Softplus, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh, nn.Mish, nn.Softsign, nn.LogSigmoid, nn.Identity, nn.ReLU6, nn.PReLU,
    lambda: nn.GELU(approximate="tanh"), lambda: nn.Softmax(1), lambda: nn.LogSoftmax(1),
]  # fmt: skip
sizes = st.integers(1, 9)


def compiled(module: nn.Module, *examples: torch.Tensor, target: str | None = None):
    return ix.compile(ix.from_torch(module, examples), backend="fused", target=target, threads=1)


def results(module: nn.Module, inputs: list[torch.Tensor]) -> list[np.ndarray]:
    with torch.inference_mode():
        made = module(*inputs)
    return [y.numpy() for y in (made if isinstance(made, tuple) else (made,))]


def check(module: nn.Module, shapes: list[tuple[int, ...]], batch: int, dtype: str, target: str, rows: int = 0) -> None:
    """Compares with PyTorch in float64: at most 4 times the error of PyTorch in the model's own dtype."""
    torch.manual_seed(batch)
    module = module.eval().to(getattr(torch, dtype))
    for buffer in [p for p in module.buffers() if p.is_floating_point()]:
        buffer.data.uniform_(0.5, 1.5)

    def inputs(n: int) -> list[torch.Tensor]:
        if rows:
            return [torch.randint(0, rows, (n, *shape)) for shape in shapes]
        return [torch.randn(n, *shape, dtype=getattr(torch, dtype)) for shape in shapes]

    runner = compiled(module, *inputs(3), target=target)
    given = inputs(batch)
    made = runner(*(x.numpy() for x in given))
    plain = results(module, given)
    wide = [x.double() if x.is_floating_point() else x for x in given]
    exact = results(module.double(), wide)
    depth = sum(1 for _ in module.modules())
    for y, own, truth in zip(made, plain, exact, strict=True):
        assert y.shape == truth.shape and y.dtype == own.dtype
        size = np.linalg.norm(truth)
        if dtype == "float64":
            assert np.linalg.norm(y - truth) <= 1e-13 * np.sqrt(depth) * size + 1e-300
            continue
        error, reference = np.linalg.norm(y - truth), np.linalg.norm(own - truth)
        assert error <= 4 * max(reference, 2.0**-24 * np.sqrt(depth) * size)


def cases(**more: st.SearchStrategy):
    """Hypothesis's arguments of one kind of layer."""

    def decorate(test):
        strategies = {
            "batch": st.one_of(st.integers(1, 20), st.integers(1, 70)),
            "dtype": st.sampled_from(["float32", "float32", "float64"]),
            "target": st.sampled_from(TARGETS),
            **more,
        }
        configured = settings(max_examples=26, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        return configured(given(**strategies)(test))

    return decorate


@cases(
    widths=st.lists(st.integers(1, 70), min_size=2, max_size=4), act=st.sampled_from(ACTIVATIONS), bias=st.booleans()
)
def test_dense(widths, act, bias, batch, dtype, target):
    parts = [p for a, b in itertools.pairwise(widths) for p in (nn.Linear(a, b, bias=bias), act())]
    check(nn.Sequential(*parts), [(widths[0],)], batch, dtype, target)


@cases(
    groups=st.integers(1, 3), channels=st.integers(1, 4), outs=st.integers(1, 7), kernel=st.integers(1, 4),
    stride=st.integers(1, 3), padding=st.integers(0, 2), dilation=st.integers(1, 2), size=st.integers(8, 13),
    dims=st.integers(1, 2), act=st.sampled_from([nn.ReLU, nn.Tanh, nn.Identity]),
)  # fmt: skip
def test_convolution(groups, channels, outs, kernel, stride, padding, dilation, size, dims, act, batch, dtype, target):
    layer = (nn.Conv1d, nn.Conv2d)[dims - 1]
    conv = layer(groups * channels, groups * outs * 2, kernel, stride, padding, dilation, groups)
    norm = (nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1](groups * outs * 2)
    check(nn.Sequential(conv, norm, act()), [(groups * channels, *(size, size + 1)[:dims])], batch, dtype, target)


@cases(channels=st.integers(1, 18), size=st.integers(5, 11), act=st.sampled_from([nn.ReLU, nn.Sigmoid, nn.Identity]))
def test_depthwise_and_transposed(channels, size, act, batch, dtype, target):
    parts = [
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels), act(),
        nn.ConvTranspose2d(channels, channels + 1, 3, 2, 1, 1), nn.Upsample(scale_factor=2),
    ]  # fmt: skip
    check(nn.Sequential(*parts), [(channels, size, size)], batch, dtype, target)


@cases(
    kernel=st.integers(1, 3), stride=st.integers(1, 3), padding=st.integers(0, 1), channels=st.integers(1, 20),
    ceil=st.booleans(), conv=st.booleans(), kind=st.sampled_from(["max", "mean", "both"]),
)  # fmt: skip
def test_pools(kernel, stride, padding, channels, ceil, conv, kind, batch, dtype, target):
    padding = min(padding, kernel // 2)
    parts = [nn.Conv2d(channels, channels, 2), nn.ReLU()] if conv else []
    if kind != "mean":
        parts.append(nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil))
    if kind != "max":
        parts.append(nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil, count_include_pad=conv))
    net = nn.Sequential(*parts, nn.Flatten())
    features = net(torch.zeros(1, channels, 13, 12)).shape[1]
    check(nn.Sequential(net, nn.Linear(features, 3)), [(channels, 13, 12)], batch, dtype, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "pool",
    [nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((3, 2)), nn.AdaptiveMaxPool2d(1), nn.AdaptiveMaxPool2d((7, 2))],
    ids=str,
)
def test_adaptive_pools(pool, target):
    check(nn.Sequential(nn.Conv2d(3, 9, 3), pool), [(3, 9, 8)], 21, "float32", target)


class Normalized(nn.Module):
    def __init__(self, layer: nn.Module, features: int):
        super().__init__()
        self.layer, self.weight = layer, nn.Parameter(torch.randn(features))

    def forward(self, x):
        return self.layer(x) * self.weight.reshape(1, -1, 1, 1)


@cases(
    groups=st.integers(1, 3), channels=st.integers(1, 9), size=st.integers(1, 7), conv=st.booleans(),
    kind=st.sampled_from(["group", "instance", "batch", "layer"]),
)  # fmt: skip
def test_normalizations(groups, channels, size, conv, kind, batch, dtype, target):
    features = groups * channels
    shape = (features, size, size + 1)
    layer = {
        "group": lambda: nn.GroupNorm(groups, features), "instance": lambda: nn.InstanceNorm2d(features, affine=True),
        "batch": lambda: nn.BatchNorm2d(features), "layer": lambda: nn.LayerNorm(shape[-2:]),
    }[kind]()  # fmt: skip
    parts = [nn.Conv2d(features, features, 1)] if conv else []
    check(nn.Sequential(*parts, Normalized(layer, features)), [shape], batch, dtype, target)


class Rearranged(nn.Module):
    """Views, joins, broadcasts and reductions of all kinds."""

    def __init__(self, features: int):
        super().__init__()
        self.first, self.second = nn.Linear(features, features), nn.Linear(features, 2 * features)
        self.scale = nn.Parameter(torch.randn(5, 1))

    def forward(self, x, y):  # [batch, 5, features], [batch, features]
        a = self.first(x).transpose(1, 2)
        b = self.second(y).chunk(2, -1)
        c = torch.cat([a * b[0].unsqueeze(-1), a + 1, (x * self.scale).transpose(1, 2)], 2)
        d = functional.pad(c[:, :, 1::2], (1, 2), value=0.5).flatten(1)
        e = torch.where(d > 0.1, d, b[1].mean(-1, keepdim=True)).clamp(-1, 2)
        return torch.cat([e, b[1] - b[0].square()], -1), c.amax(1), c.sum((1, 2), keepdim=True), e.log_softmax(-1)


@cases(features=st.integers(1, 20))
def test_rearrangements(features, batch, dtype, target):
    check(Rearranged(features), [(5, features), (features,)], batch, dtype, target)


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm, self.second = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        y = functional.relu(self.norm(self.first(x)))
        return functional.relu(self.second(y) + x)


@cases(channels=st.integers(1, 20), size=st.integers(3, 8))
def test_residual_networks(channels, size, batch, dtype, target):
    parts = [nn.Conv2d(2, channels, 3, padding=1), Residual(channels), Residual(channels), nn.AdaptiveAvgPool2d(1)]
    check(nn.Sequential(*parts, nn.Flatten(), nn.Linear(channels, 3)), [(2, size, size + 2)], batch, dtype, target)


@cases(
    channels=st.sampled_from([8, 16, 32]), outs=st.sampled_from([16, 32, 48]), height=st.integers(2, 19),
    width=st.integers(2, 19), padding=st.integers(0, 1), residual=st.booleans(),
)  # fmt: skip
def test_convolutions_by_fewer_products(channels, outs, height, width, padding, residual, batch, dtype, target):
    """Winograd's way, for one sample: an image is as large as the arena for many is not."""
    first = nn.Conv2d(channels, outs, 3, padding=1)
    second = Residual(outs) if residual else nn.Conv2d(outs, channels, 3, padding=padding)
    if min(height, width) > 2:
        check(nn.Sequential(first, nn.ReLU(), second), [(channels, height, width)], min(batch, 3), dtype, target)


def test_infinities_stay_where_they_are_in_convolutions():
    net = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3)).eval()
    x = torch.randn(3, 16, 9, 8)
    x[0, 3, 4, 4], x[1, 0, 0, 0], x[2, 15, 8, 7] = torch.inf, torch.nan, 3e38
    y, expected = compiled(net, x)(x.numpy())[0], results(net, [x])[0]
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(y), np.isinf(expected))
    np.testing.assert_allclose(y[np.isfinite(y)], expected[np.isfinite(y)], rtol=1e-4, atol=1e-5)


class OverTime(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        y, states = self.layer(x)
        last = states[0] if isinstance(states, tuple) else states
        return y, last.transpose(0, 1)


@cases(
    kind=st.sampled_from([nn.RNN, nn.GRU, nn.LSTM]), features=st.integers(1, 9), hidden=st.integers(1, 19),
    layers=st.integers(1, 2), both=st.booleans(), time=st.integers(1, 6),
)  # fmt: skip
def test_recurrent(kind, features, hidden, layers, both, time, batch, dtype, target):
    layer = kind(features, hidden, layers, bidirectional=both, batch_first=True)
    check(OverTime(layer), [(time, features)], batch, dtype, target)


class Classifier(nn.Module):
    def __init__(self, rows: int, features: int, heads: int, length: int):
        super().__init__()
        block = nn.TransformerEncoderLayer(features, heads, 2 * features, batch_first=True, activation="gelu")
        self.table, self.place = nn.Embedding(rows, features), nn.Parameter(torch.randn(length, features))
        self.block, self.head = nn.TransformerEncoder(block, 1, enable_nested_tensor=False), nn.Linear(features, 3)

    def forward(self, x):
        return self.head(self.block(self.table(x) + self.place).mean(1))


@cases(heads=st.integers(1, 3), each=st.integers(1, 7), length=st.integers(1, 9), rows=st.integers(1, 11))
def test_transformers(heads, each, length, rows, batch, dtype, target):
    check(Classifier(rows, heads * each, heads, length), [(length,)], batch, dtype, target, rows)


@cases(
    size=st.integers(1, 7), out=st.integers(1, 13), mode=st.sampled_from(["nearest", "bilinear"]), align=st.booleans()
)
def test_resizing(size, out, mode, align, batch, dtype, target):
    class Resized(nn.Module):
        def forward(self, x):
            more = {"align_corners": align} if mode == "bilinear" else {}
            return functional.interpolate(x * 1.5, (out, size + 1), mode=mode, **more)

    check(Resized(), [(3, size, size)], batch, dtype, target)


@pytest.mark.parametrize("target", TARGETS)
def test_layers_built_by_hand(target):
    layers = ix.layers
    block = layers.SkipConnection(layers.Dense(12, 12, activation=layers.gelu))
    head = layers.Maxout(layers.Dense(12, 4), layers.Dense(12, 4))
    first = layers.Chain(layers.Conv(2, 3, (3,), pads=(1, 1)), layers.flatten, layers.Dense(18, 12))
    net = layers.Chain(first, block, layers.LayerNorm((12,)), layers.Dropout(0.5), head)
    params, states = ix.setup(net, 0)
    model = ix.Model.from_layer(net, params, states, {"x": ("float32", ("batch", 2, 6))})
    x = np.random.default_rng(0).standard_normal((19, 2, 6)).astype(np.float32)
    (y,) = ix.compile(model, backend="fused", target=target)(x)
    np.testing.assert_allclose(y, np.asarray(net.apply(params, states, x)[0]), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_numbers_that_are_none(target):
    """NaN and infinities come out where PyTorch has them; denormal numbers are kept."""
    module = nn.Sequential(
        nn.MaxPool1d(2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 5), nn.LeakyReLU(), nn.Softmax(1)
    ).eval()
    pools = nn.Sequential(nn.Conv2d(1, 9, 2), nn.ReLU(), nn.MaxPool2d(2)).eval()
    for net, shape in ((module, (3, 4)), (pools, (1, 5, 5))):
        x = torch.randn(40, *shape)
        flat = x.reshape(40, -1)
        flat[0, 3], flat[5, 1], flat[17, 2], flat[33, 0] = torch.nan, torch.inf, -torch.inf, torch.nan
        flat[7] = 1e-42
        y, expected = compiled(net, x, target=target)(x.numpy())[0], results(net, [x])[0]
        np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)
    same = nn.ReLU()
    tiny = torch.tensor([[1e-42, -1e-42, 3e-45, 0.0]]).repeat(20, 1)
    np.testing.assert_array_equal(compiled(same, tiny, target=target)(tiny.numpy())[0], same(tiny).numpy())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("batch", [0, 1, 3, 4, 5, 15, 16, 17, 31, 32, 33, 64, 70])
def test_batches(batch, target):
    """Every sample has the same bits in whatever batch it comes with the same schedule, and none is left out."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).eval()
    model = ix.from_torch(net, (torch.zeros(2, 5),))
    assert model.signature is not None
    dims = {name: Dimension(0) for name in model.signature.dims}
    model = dataclasses.replace(model, signature=dataclasses.replace(model.signature, dims=dims))
    x = torch.randn(batch, 5)
    (y,) = ix.compile(model, backend="fused", target=target)(x.numpy())
    assert y.shape == (batch, 3)
    np.testing.assert_allclose(y, results(net, [x])[0], rtol=1e-5, atol=1e-6)


def test_a_model_without_a_batch():
    net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).eval()
    x = torch.randn(1, 2, 5)
    model = ix.from_torch(net, (x,), dynamic_shapes=None)
    np.testing.assert_allclose(
        ix.compile(model, backend="fused")(x.numpy())[0], results(net, [x])[0], rtol=1e-5, atol=1e-6
    )


def test_row_numbers_out_of_range_give_nan():
    table = nn.Embedding(5, 3).eval()
    model = ix.from_torch(table, (torch.zeros(2, 4, dtype=torch.int64),))
    runner = ix.compile(model, backend="fused")
    numbers = np.array([[0, -1, 4, 5], [-6, 2**40, 1, 1]])
    y = runner.entry.call(numbers)[0]
    weight = table.weight.detach().numpy()
    np.testing.assert_array_equal(y[0, :3], weight[[0, 4, 4]])
    assert np.isnan(y[0, 3]).all() and np.isnan(y[1, :2]).all()


def test_what_is_unsupported_is_named():
    class Sorted(nn.Module):
        def forward(self, x):
            return x.topk(2, 1).values.sum(1) + torch.cumsum(x, 1)[:, 0]

    with pytest.raises(UnsupportedError, match=r"does not take these layers.*topk.*CumSum"):
        compiled(Sorted(), torch.randn(3, 4))
    with pytest.raises(UnsupportedError, match="float32 or float64 throughout, not in bfloat16"):
        compiled(nn.Linear(2, 2).bfloat16(), torch.randn(3, 2).bfloat16())

    class OverBatch(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    with pytest.raises(UnsupportedError, match="ReduceMean along the batch's axis"):
        compiled(OverBatch(), torch.randn(3, 4))
    with pytest.raises(UnsupportedError, match="there is no target 'z80'"):
        compiled(nn.Linear(2, 2), torch.randn(3, 2), target="z80")
    with pytest.raises(UnsupportedError, match="runs on the CPU"):
        ix.compile(ix.from_torch(nn.Linear(2, 2), (torch.randn(3, 2),)), backend="fused", device="cuda")


def test_wrong_inputs_are_named():
    runner = compiled(nn.Linear(4, 2).eval(), torch.randn(3, 4))
    with pytest.raises(InvalidModelError, match="float32"):
        runner(np.zeros((3, 4)))
    with pytest.raises(InvalidModelError, match="shape"):
        runner(np.zeros((3, 5), np.float32))


class Counted(nn.Module):
    """Images as bytes, classes as row numbers, and what is true of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 5, 3), nn.Linear(80, 6)

    def forward(self, images, mask):
        x = torch.relu(self.first(images.float() / 255))
        y = self.second(x.flatten(1)) * mask.float()
        best = y.argmax(1)
        return best, y.argmin(1, keepdim=True).float() + y, y > 0.1, (y * 7).long(), (y * 3).to(torch.int32)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("batch", [1, 3, 16, 37])
def test_integers_and_truths(batch, target):
    torch.manual_seed(0)
    net = Counted().eval()
    x, mask = torch.randint(0, 256, (batch, 2, 6, 6), dtype=torch.uint8), torch.rand(batch, 6) > 0.3
    example = torch.zeros(3, 2, 6, 6, dtype=torch.uint8), torch.zeros(3, 6, dtype=torch.bool)
    made = compiled(net, *example, target=target)(x.numpy(), mask.numpy())
    for y, expected in zip(made, results(net, [x, mask]), strict=True):
        assert y.dtype == expected.dtype
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@cases(kind=st.sampled_from(["tan", "asin", "acos", "sinh", "cosh", "asinh", "acosh", "atanh", "pow", "trunc"]))
def test_more_functions(kind, batch, dtype, target):
    class Applied(nn.Module):
        def forward(self, x, y):
            x = torch.sigmoid(x) * 0.9
            if kind == "pow":
                return torch.pow(x, y)
            return getattr(torch, kind)(x + (1.1 if kind == "acosh" else 0) if kind != "trunc" else y * 3)

    check(Applied(), [(5,), (5,)], batch, dtype, target)


@cases(width=st.integers(130, 140), outs=st.integers(1, 40), act=st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU]))
def test_wide_layers(width, outs, act, batch, dtype, target):
    """Weights are read for several samples at a time: in tiles of two vectors, and by blocks of eight."""
    parts = [nn.Linear(7, width), act(), nn.Linear(width, width), act(), nn.Linear(width, outs), nn.Softmax(1)]
    check(nn.Sequential(*parts), [(7,)], batch, dtype, target)
