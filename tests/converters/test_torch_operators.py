"""One small module for each ATen operator and argument that is imported: outputs on both backends, at two batch
sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import interlux as ix
from tests.helpers import check_outputs
from tests.torch_cases import (
    Inputs,
    check_layer,
    check_layer_in_training,
    check_operator,
    images,
    integers,
    pairs,
    rows,
    sequences,
    tokens,
)


def halves(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.linspace(-3, 3, b * 500).half().reshape(b, 500),)


def heads(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 4, 5, 8), torch.randn(b, 4, 7, 8), torch.randn(b, 4, 7, 6)


def masked_heads(b: int) -> tuple[torch.Tensor, ...]:
    return (*heads(b), torch.rand(b, 1, 5, 7) > 0.4)


CASES: dict[str, tuple[Callable[..., Any], Inputs]] = {
    # arithmetic and promotion
    "scalars": (lambda m, x: 2 * x - 1 / (x * x + 0.5) + (3 - x), rows),
    "alpha": (lambda m, x, y: torch.add(x, y, alpha=0.3) + torch.sub(x, y, alpha=2) + torch.rsub(x, y, alpha=3), pairs),
    "integers with floats": (lambda m, i: (i * 2.5, i / 2, i + True, i.float().mean(-1), i > 2.5), integers),
    "integer division": (
        lambda m, i: (i // 4, i % 4, torch.div(i, 4, rounding_mode="trunc"), torch.fmod(i, 4), i // -3, i % -3),
        integers,
    ),
    "float division": (
        lambda m, x, y: (x // y, x % y, torch.div(x, y, rounding_mode="trunc"), torch.fmod(x, y), x % -0.7),
        pairs,
    ),
    "half scalars": (lambda m, h: (h * 3.7, h + 0.1, h / 3, 1.7 - h, h.add(h, alpha=0.3)), halves),
    "mixed dtypes": (lambda m, x, y: x.double() + y * x.half().float() + (x > 0) * y, pairs),
    "powers": (lambda m, x: (x**2, x**3, (x * x + 0.1) ** 0.5, (x * x + 0.1) ** -1.5, 2**x, x**1), rows),
    "comparisons": (lambda m, x, y: (x < y, x <= 0, x > 0.5, x >= y, x == x, x != y, (x > 0) == (y > 0)), pairs),
    "logic": (lambda m, x, y: ((x > 0) & (y > 0), (x > 0) | (y > 0), ~(x > 0), (x > 0) ^ (y > 0)), pairs),
    "logical functions": (lambda m, x, y: (torch.logical_and(x, y > 0), torch.logical_not(x > 0)), pairs),
    "bits": (lambda m, i: (i & 3, i | 4, i ^ 5, ~i), integers),
    "extremes of two": (lambda m, x, y: (torch.maximum(x, y), torch.minimum(x, y)), pairs),
    "clamps": (
        lambda m, x: (x.clamp(-0.5, 0.5), x.clamp(min=0.1), x.clamp_max(0.2), F.hardtanh(x), F.relu6(x * 9)),
        rows,
    ),
    "clamp by tensors": (lambda m, x, y: torch.clamp(x, y - 1, y + 1), pairs),
    "where": (
        lambda m, x, y: (torch.where(x > 0, x, y), torch.where(x > 0, x, 0.5), x.masked_fill(y > 0, -1e9)),
        pairs,
    ),
    "unary": (
        lambda m, x: (
            *(f(x) for f in (torch.exp, torch.sin, torch.cos, torch.tanh, torch.erf, torch.abs, torch.neg, torch.sign)),
            *(f(x) for f in (torch.floor, torch.ceil, torch.round, torch.atan, torch.sinh, torch.square)),
            *(f(x * x + 0.1) for f in (torch.sqrt, torch.rsqrt, torch.log, torch.reciprocal)),
        ),
        rows,
    ),
    "activations": (
        lambda m, x: (
            *(
                f(x * 3)
                for f in (F.relu, F.gelu, F.silu, F.mish, F.elu, F.selu, F.softplus, F.hardswish, F.hardsigmoid)
            ),
            F.gelu(x * 3, approximate="tanh"),
            F.leaky_relu(x, 0.3),
            F.elu(x, 0.5),
            F.softplus(x * 30, beta=2),
            torch.sigmoid(x * 4),
        ),
        rows,
    ),
    "isnan": (lambda m, x: torch.isnan(x / (x > 0)), rows),
    "addcmul and lerp": (lambda m, x, y: (torch.addcmul(x, x, y, value=0.3), torch.lerp(x, y, 0.25)), pairs),
    # shapes
    "reshapes": (
        lambda m, x: (x.view(-1, 3), x.reshape(x.shape[0], 2, 15), x.flatten(1), x.unflatten(-1, (2, 3))),
        sequences,
    ),
    "axes": (
        lambda m, x: (x.transpose(-1, 1), x.permute(2, 0, 1), x.unsqueeze(-1), x[:, :1].squeeze(1), x.mT),
        sequences,
    ),
    "squeeze all": (lambda m, x: x[:, :1].squeeze(), sequences),
    "slices": (lambda m, x: (x[:, 1:4], x[:, ::2], x[:, -2:], x[..., 3], x[:, None], x[:, 1:-1, -3:-1]), sequences),
    "narrow": (lambda m, x: x.narrow(1, 1, 3), sequences),
    "expand": (lambda m, x: (x[:, :1].expand(-1, 4, -1), x[:, 0].expand(3, -1, -1), x[:1].expand_as(x)), sequences),
    "cat and stack": (
        lambda m, x, y: (torch.cat([x, y], -1), torch.stack([x, y], 1), torch.cat([x, y.half()], 0)),
        pairs,
    ),
    "splits": (lambda m, x: (*x.split(4, -1), *x.split([1, 2, 3], -1), *x.chunk(4, 1), *x.unbind(1)), sequences),
    "repeat and flip": (lambda m, x: (x.repeat(1, 2, 1), x.repeat(2, 1, 1, 1), x.flip(1, 2)), sequences),
    "triangles": (lambda m, x: (x.tril(), x.triu(1), torch.tril(x, -2)), sequences),
    "pads": (
        lambda m, x: (
            F.pad(x, (1, 2)),
            F.pad(x, (1, 2, 0, 3), value=0.7),
            F.pad(x, (-1, 1)),
            F.pad(x, (2, 1, 1, 2), mode="reflect"),
            F.pad(x, (2, 1, 1, 2), mode="replicate"),
        ),
        images,
    ),
    "sizes as numbers": (
        lambda m, x: x * x.shape[0] + x.size(1) / 2 + torch.arange(x.shape[1])[None, :, None],
        sequences,
    ),
    "creation": (
        lambda m, x: (
            torch.zeros(x.shape[0], 3) + torch.ones_like(x)[:, :3],
            torch.full((x.shape[0], 2), 2.5),
            x.new_zeros(2, x.shape[0]),
            torch.arange(1, x.shape[0] + 1),
            torch.arange(0, 1, 0.25),
            torch.full_like(x, 7),
        ),
        rows,
    ),
    "indexing": (
        lambda m, x: (
            x[:, torch.tensor([2, 0, 2])],
            x.index_select(-1, torch.tensor([1, 1])),
            x[torch.tensor([0]), torch.tensor([1])],
        ),
        sequences,
    ),
    "gather": (lambda m, x: x.gather(1, (x > 0).long()), sequences),
    "scatter": (lambda m, x: x.scatter(1, torch.zeros_like(x, dtype=torch.long), x * 2), rows),
    # reductions
    "means and sums": (
        lambda m, x: (
            x.mean(),
            x.sum(),
            x.mean(1),
            x.sum((0, 2)),
            x.mean(-1, keepdim=True),
            x.sum(1, dtype=torch.float64),
        ),
        sequences,
    ),
    "integer sums": (lambda m, i: (i.sum(), i.sum(-1), (i > 0).sum(1), i.cumsum(1)), integers),
    "extremes": (lambda m, x: (x.amax(1), x.amin((1, 2)), x.max(), *x.max(-1), *x.min(1, keepdim=True)), sequences),
    "positions": (lambda m, x: (x.argmax(-1), x.argmin(1, keepdim=True), x[0].argmax()), sequences),
    "spread": (
        lambda m, x: (x.var(-1), x.std(1, unbiased=False), x.var((1, 2), correction=2, keepdim=True)),
        sequences,
    ),
    "norms": (lambda m, x: (x.norm(dim=-1), torch.linalg.vector_norm(x, 1, dim=(1, 2))), sequences),
    "quantifiers": (lambda m, x: ((x > 0).any(), (x > 0).all(1), (x > 2).any(-1, keepdim=True)), sequences),
    "softmax": (lambda m, x: (x.softmax(-1), F.log_softmax(x, 1), x.softmax(0), x.logsumexp(-1)), sequences),
    "cumsum": (lambda m, x: (x.cumsum(1), torch.diff(x, dim=1)), sequences),
    # products
    "matmul": (lambda m, x: (x @ x.transpose(1, 2), x @ torch.ones(6), torch.bmm(x, x.mT), x[0] @ x[0].T), sequences),
    "addmm": (lambda m, x: torch.addmm(torch.ones(6), x, torch.eye(6), beta=0.5, alpha=2), rows),
    "einsum": (lambda m, x: torch.einsum("b i j, b k j -> b i k", x, x), sequences),
    # functional layers with computed weights
    "linear with computed weight": (lambda m, x: F.linear(x, torch.ones(3, 6) * x.mean()), rows),
    "layer_norm without weights": (lambda m, x: F.layer_norm(x, (5, 6), eps=1e-3), sequences),
    "sdpa": (lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v), heads),
    "sdpa causal, scaled": (
        lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3),
        heads,
    ),
    "sdpa bool mask": (lambda m, q, k, v, a: F.scaled_dot_product_attention(q, k, v, a), masked_heads),
    "sdpa float mask": (lambda m, q, k, v, a: F.scaled_dot_product_attention(q, k, v, a.float() * 3), masked_heads),
    "sdpa grouped": (
        lambda m, q, k, v: F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True),
        heads,
    ),
    "max pools": (
        lambda m, x: (
            F.max_pool2d(x, 2),
            F.max_pool2d(x, 3, 2, 1),
            F.max_pool2d(x, (3, 2), (2, 1), (1, 0), ceil_mode=True),
            F.max_pool2d(x, 2, 1, 0, 2),
            F.max_pool1d(x[..., 0], 3),
        ),
        images,
    ),
    "mean pools": (
        lambda m, x: (
            F.avg_pool2d(x, 2),
            F.avg_pool2d(x, 3, 2, 1),
            F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
            F.avg_pool2d(x, (3, 2), (2, 2), (1, 0), ceil_mode=True),
            F.adaptive_avg_pool2d(x, 1),
            F.adaptive_avg_pool2d(x, (3, 7)),
        ),
        images,
    ),
}

LAYERS: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "Linear": (lambda: nn.Linear(6, 3), rows),
    "Linear without bias, 3-D": (lambda: nn.Linear(6, 3, bias=False), sequences),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3), images),
    "Conv2d, all arguments": (lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (2, 1), (2, 1), groups=2, bias=False), images),
    "Conv2d same": (lambda: nn.Conv2d(4, 4, (4, 3), padding="same", groups=4), images),
    "Conv2d depthwise, reflect": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4, padding_mode="reflect"), images),
    "Conv1d": (lambda: nn.Conv1d(5, 3, 3, 2, 1), sequences),
    "Conv3d": (lambda: nn.Conv3d(4, 2, (1, 3, 3)), lambda b: (torch.randn(b, 4, 2, 5, 5),)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6, eps=1e-3, momentum=0.3), rows),
    "BatchNorm1d over sequences": (lambda: nn.BatchNorm1d(5), sequences),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), images),
    "BatchNorm2d, no affine": (lambda: nn.BatchNorm2d(4, affine=False), images),
    "BatchNorm2d, no statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), images),
    "LayerNorm": (lambda: nn.LayerNorm((5, 6), eps=1e-3), sequences),
    "LayerNorm without bias": (lambda: nn.LayerNorm(6, bias=False), sequences),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), images),
    "RMSNorm": (lambda: nn.RMSNorm(6), sequences),
    "Embedding": (lambda: nn.Embedding(11, 4, padding_idx=2), tokens),
    "LSTM": (lambda: nn.LSTM(6, 4), sequences),
    "LSTM, all arguments": (lambda: nn.LSTM(6, 4, 2, bidirectional=True, batch_first=True), sequences),
    "LSTM without bias": (lambda: nn.LSTM(6, 4, 2, bias=False, batch_first=True), sequences),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(6, 2, batch_first=True), lambda b: sequences(b) * 3),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(6, 2, 16, 0.0, batch_first=True), sequences),
    "TransformerEncoderLayer, norm first": (
        lambda: nn.TransformerEncoderLayer(6, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True),
        sequences,
    ),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), rows),
    "PReLU": (lambda: nn.Sequential(nn.Linear(6, 6), nn.PReLU()), rows),
}


@pytest.mark.parametrize("name", CASES)
def test_operator(name: str) -> None:
    check_operator(*CASES[name], batches=(3,) if "expand" in name else (3, 2, 5))


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str) -> None:
    check_layer(*LAYERS[name], batches=(3,) if name == "LSTM" else (3, 1, 2, 5))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_in_training(name: str) -> None:
    check_layer_in_training(*LAYERS[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_layers_in_other_dtypes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = (
        nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4), nn.Softmax(-1)).to(dtype).eval()
    )
    x = torch.randn(3, 6).to(dtype)
    model = ix.from_torch(module, x)
    assert model.signature.inputs[0].dtype == str(dtype).removeprefix("torch.")
    assert {leaf.dtype.name for _, leaf in ix.trees.leaves(model.params)} == {str(dtype).removeprefix("torch.")}
    if dtype == torch.bfloat16:  # onnxruntime gives numpy no bfloat16
        y, _ = model.layer.apply(model.params, model.states, _bfloat16(x))
        expected = module(x).float().detach().numpy()
        assert np.abs(np.asarray(y, np.float32) - expected).max() < 0.02
    else:
        check_outputs(module, model, [x], backends=("jax", "onnxruntime") if dtype != torch.float64 else ("jax",))


def _bfloat16(x: torch.Tensor) -> np.ndarray:
    from interlux.converters.torch.arrays import to_numpy

    return to_numpy(x)
