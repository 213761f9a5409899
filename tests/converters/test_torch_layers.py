"""Neural layers of PyTorch with every argument: outputs on both backends, gradients and states in training, and what is
refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, rnn

import interlux as ix
from tests.helpers import Calls, check_outputs
from tests.torch_cases import (
    Inputs,
    check_layer,
    check_layer_in_training,
    check_operator,
    images,
    rows,
    sequences,
    tokens,
)

# torch's words about its own implementations of some of these layers
pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning"),
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask:UserWarning"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning"),
]

Make = Callable[[], nn.Module]


def signals(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(b, 4, 11),)


def volumes(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(b, 4, 5, 6, 4),)


def behind(first: nn.Module, function: Callable[[torch.Tensor], Any]) -> nn.Module:
    """A function of a layer's output, so that gradients pass through it."""
    return Calls(lambda m, x: function(m.first(x)), first=first)


def of_image(function: Callable[[torch.Tensor], Any]) -> Make:
    return lambda: behind(nn.Conv2d(4, 4, 1), function)


def of_signal(function: Callable[[torch.Tensor], Any]) -> Make:
    return lambda: behind(nn.Conv1d(4, 4, 1), function)


def of_volume(function: Callable[[torch.Tensor], Any]) -> Make:
    return lambda: behind(nn.Conv3d(4, 4, 1), function)


def unbatched(make: Make) -> Make:
    return lambda: Calls(lambda m, x: m.layer(x[0]), layer=make())


@torch.no_grad()
def materialised(module: nn.Module, inputs: Inputs) -> nn.Module:
    """A lazy module after its first call."""
    module(*inputs(2))
    return module


Row = tuple[Make, Inputs]

CONVOLUTIONS: dict[str, Row] = {
    "Conv1d, all": (lambda: nn.Conv1d(4, 6, 3, 2, 4, 3, 2, bias=False), signals),
    "Conv3d, all": (lambda: nn.Conv3d(4, 6, (2, 3, 1), (1, 2, 1), (2, 1, 0), (2, 1, 1), 2), volumes),
    "Conv2d, padding wider than the kernel": (lambda: nn.Conv2d(4, 2, 2, 3, 5), images),
    "Conv1d same, even kernel": (lambda: nn.Conv1d(4, 3, 4, padding="same"), signals),
    "Conv2d same, even kernels and dilation": (
        lambda: nn.Conv2d(4, 4, (4, 2), padding="same", dilation=(1, 3), groups=2),
        images,
    ),
    "Conv3d same": (lambda: nn.Conv3d(4, 2, (2, 3, 2), padding="same"), volumes),
    "Conv2d valid": (lambda: nn.Conv2d(4, 2, 3, padding="valid", stride=2), images),
    **{
        f"Conv{n}d {mode}": (
            lambda n=n, mode=mode: getattr(nn, f"Conv{n}d")(4, 2, 3, 2, 2, padding_mode=mode),
            inputs,
        )
        for n, inputs in ((1, signals), (2, images), (3, volumes))
        for mode in ("reflect", "replicate", "circular")
    },
    "Conv2d same, circular, even kernel": (
        lambda: nn.Conv2d(4, 2, (4, 3), padding="same", padding_mode="circular"),
        images,
    ),
    "Conv1d unbatched": (unbatched(lambda: nn.Conv1d(4, 3, 3, padding=1)), signals),
    "Conv2d unbatched": (unbatched(lambda: nn.Conv2d(4, 3, 3)), images),
    "Conv3d unbatched": (unbatched(lambda: nn.Conv3d(4, 3, 2)), volumes),
    "Conv2d, computed weight": (
        lambda: Calls(
            lambda m, x: F.conv2d(x, m.w.tanh(), m.b * 2, 2),
            w=nn.Parameter(torch.randn(3, 4, 2, 2)),
            b=nn.Parameter(torch.randn(3)),
        ),
        images,
    ),
    "torch.convolution": (
        lambda: Calls(
            lambda m, x: torch.convolution(x, m.w, m.b, [2, 1], [1, 0], [1, 2], False, [0, 0], 2),
            w=nn.Parameter(torch.randn(6, 2, 3, 2)),
            b=nn.Parameter(torch.randn(6)),
        ),
        images,
    ),
    "torch.convolution, transposed": (
        lambda: Calls(
            lambda m, x: torch.convolution(x, m.w, None, [2, 1], [1, 0], [1, 2], True, [1, 0], 2),
            w=nn.Parameter(torch.randn(4, 3, 3, 2)),
        ),
        images,
    ),
    "conv_tbc": (
        lambda: Calls(
            lambda m, x: torch.conv_tbc(x.permute(2, 0, 1).contiguous(), m.w, m.b, 2),
            w=nn.Parameter(torch.randn(3, 4, 5)),
            b=nn.Parameter(torch.randn(5)),
        ),
        signals,
    ),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3), signals),
    "ConvTranspose1d, all": (lambda: nn.ConvTranspose1d(4, 6, 4, 3, 2, 2, 2, False, 2), signals),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 2, 2), images),
    "ConvTranspose2d, all": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 2), 2, True, (2, 1)),
        images,
    ),
    "ConvTranspose2d depthwise": (lambda: nn.ConvTranspose2d(4, 4, 4, 2, 1, groups=4, bias=False), images),
    "ConvTranspose2d, groups that widen": (lambda: nn.ConvTranspose2d(4, 12, 3, 2, groups=4), images),
    "ConvTranspose2d, output padding below dilation": (
        lambda: nn.ConvTranspose2d(4, 3, 3, 1, 1, 1, dilation=2),
        images,
    ),
    "ConvTranspose3d, all": (
        lambda: nn.ConvTranspose3d(4, 2, (2, 3, 2), (1, 2, 2), (1, 1, 0), (0, 1, 1), 2),
        volumes,
    ),
    "ConvTranspose2d, output_size": (
        lambda: Calls(lambda m, x: m.layer(x, output_size=[18, 13]), layer=nn.ConvTranspose2d(4, 3, 3, 2, 1)),
        images,
    ),
    "ConvTranspose2d unbatched": (unbatched(lambda: nn.ConvTranspose2d(4, 3, 3, 2)), images),
    "LazyConv2d": (lambda: materialised(nn.LazyConv2d(3, 3, 2), images), images),
    "LazyConvTranspose2d": (lambda: materialised(nn.LazyConvTranspose2d(3, 3, 2), images), images),
    "Unfold": (of_image(lambda x: F.unfold(x, (3, 2), (2, 1), (2, 1), (1, 3))), images),
    "Unfold unbatched": (of_image(lambda x: F.unfold(x[0], 3)), images),
    "Fold": (
        of_image(lambda x: F.fold(F.unfold(x, (3, 2), 1, 1, 2), (9, 7), (3, 2), padding=1, stride=2)),
        images,
    ),
    "Fold, dilation": (
        lambda: behind(nn.Linear(20, 20), lambda x: F.fold(x, (7, 8), 2, dilation=3)),
        lambda b: (torch.randn(b, 8, 20),),
    ),
}

POOLS: dict[str, Row] = {
    "MaxPool1d, all": (of_signal(lambda x: F.max_pool1d(x, 3, 2, 1, 2, True)), signals),
    "MaxPool3d, all": (of_volume(lambda x: F.max_pool3d(x, (2, 3, 2), (2, 2, 1), (1, 1, 0), 1, True)), volumes),
    "MaxPool2d unbatched": (of_image(lambda x: F.max_pool2d(x[0], 3, 2, 1)), images),
    "MaxPool2d of equal values": (of_image(lambda x: F.max_pool2d(x.round(), 3, 2, 1)), images),
    "MaxPool1d, indices": (of_signal(lambda x: F.max_pool1d(x, 3, 2, 1, return_indices=True)), signals),
    "MaxPool2d, indices": (
        of_image(lambda x: F.max_pool2d(x, (3, 2), (2, 1), (1, 0), 2, True, return_indices=True)),
        images,
    ),
    "MaxPool3d, indices": (of_volume(lambda x: F.max_pool3d(x, 2, return_indices=True)), volumes),
    "MaxPool2d, indices, unbatched": (of_image(lambda x: F.max_pool2d(x[1], 2, return_indices=True)), images),
    "MaxUnpool1d": (of_signal(lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2)), signals),
    "MaxUnpool2d": (
        of_image(lambda x: F.max_unpool2d(*F.max_pool2d(x[..., :8, :6], 2, return_indices=True), 2)),
        images,
    ),
    "MaxUnpool2d, output_size": (
        of_image(
            lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2, output_size=[x.shape[0], 4, 9, 7])
        ),
        images,
    ),
    "MaxUnpool2d of overlapping windows": (
        of_image(lambda x: F.max_unpool2d(*F.max_pool2d(x, 3, 2, return_indices=True), 3, 2, output_size=(9, 7))),
        images,
    ),
    "MaxUnpool3d": (
        of_volume(lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2, output_size=(5, 6, 4))),
        volumes,
    ),
    "AvgPool1d, all": (of_signal(lambda x: F.avg_pool1d(x, 4, 3, 2, True, False)), signals),
    "AvgPool3d, all": (of_volume(lambda x: F.avg_pool3d(x, (2, 3, 2), (2, 2, 3), 1, True, True)), volumes),
    "AvgPool2d unbatched": (of_image(lambda x: F.avg_pool2d(x[0], 3, 2, 1)), images),
    "AvgPool2d, divisor": (of_image(lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5)), images),
    "AvgPool2d, divisor, rounded up": (
        of_image(lambda x: F.avg_pool2d(x, (3, 2), (4, 4), (1, 1), True, False, divisor_override=2)),
        images,
    ),
    "AvgPool3d, divisor": (of_volume(lambda x: F.avg_pool3d(x, 2, divisor_override=-3)), volumes),
    "LPPool1d": (of_signal(lambda x: F.lp_pool1d(x.abs() + 0.1, 3, 3, 2, True)), signals),
    "LPPool2d": (of_image(lambda x: F.lp_pool2d(x.abs() + 0.1, 2, (3, 2), 2)), images),
    "LPPool3d": (of_volume(lambda x: F.lp_pool3d(x, 2, 2)), volumes),
    "AdaptiveAvgPool1d": (of_signal(lambda x: F.adaptive_avg_pool1d(x, 4)), signals),
    "AdaptiveAvgPool1d to more": (of_signal(lambda x: F.adaptive_avg_pool1d(x, 17)), signals),
    "AdaptiveAvgPool2d": (of_image(lambda x: F.adaptive_avg_pool2d(x, (4, 3))), images),
    "AdaptiveAvgPool2d, one axis": (of_image(lambda x: F.adaptive_avg_pool2d(x, (None, 3))), images),
    "AdaptiveAvgPool2d, to a row": (of_image(lambda x: F.adaptive_avg_pool2d(x, (1, 5))), images),
    "AdaptiveAvgPool2d unbatched": (of_image(lambda x: F.adaptive_avg_pool2d(x[0], (2, 3))), images),
    "AdaptiveAvgPool3d": (of_volume(lambda x: F.adaptive_avg_pool3d(x, (2, 4, 3))), volumes),
    "AdaptiveMaxPool1d": (of_signal(lambda x: F.adaptive_max_pool1d(x, 4, return_indices=True)), signals),
    "AdaptiveMaxPool2d": (of_image(lambda x: F.adaptive_max_pool2d(x, (4, 5), return_indices=True)), images),
    "AdaptiveMaxPool2d, equal values": (of_image(lambda x: F.adaptive_max_pool2d(x.round(), (2, 3))), images),
    "AdaptiveMaxPool2d, equal windows": (
        of_image(lambda x: F.adaptive_max_pool2d(x, (3, 7), return_indices=True)),
        images,
    ),
    "AdaptiveMaxPool2d to 1": (
        of_image(lambda x: F.adaptive_max_pool2d(x.round(), 1, return_indices=True)),
        images,
    ),
    "AdaptiveMaxPool3d": (of_volume(lambda x: F.adaptive_max_pool3d(x, (2, 4, 3), return_indices=True)), volumes),
    "AdaptiveMaxPool2d unbatched": (of_image(lambda x: F.adaptive_max_pool2d(x[0], (4, 2))), images),
}


def _interpolations() -> dict[str, Row]:
    found: dict[str, Row] = {}
    ranks: list[tuple[Callable[..., Make], Inputs, str, list[Any], list[Any]]] = [
        (of_signal, signals, "1d", [5, 23], [2.0, 0.7]),
        (of_image, images, "2d", [(4, 15), (3, 4)], [2.0, (1.3, 2.6), 0.45]),
        (of_volume, volumes, "3d", [(3, 9, 4)], [2.0, (0.6, 1.7, 1.5)]),
    ]
    smooth = {"1d": ["linear"], "2d": ["bilinear", "bicubic"], "3d": ["trilinear"]}
    for of, inputs, name, sizes, factors in ranks:
        for mode in ("nearest", "nearest-exact", "area", *smooth[name]):
            for align in (None,) if mode not in smooth[name] else (False, True):
                found[f"{mode} {name}, align {align}"] = (
                    of(
                        lambda x, sizes=sizes, factors=factors, mode=mode, align=align: (
                            *(F.interpolate(x, size, None, mode, align) for size in sizes),
                            *(F.interpolate(x, None, factor, mode, align) for factor in factors),
                        )
                    ),
                    inputs,
                )
    for mode in ("nearest", "bilinear", "bicubic", "nearest-exact"):
        found[f"{mode}, factor recomputed"] = (
            of_image(lambda x, m=mode: F.interpolate(x, scale_factor=(1.3, 0.7), mode=m, recompute_scale_factor=True)),
            images,
        )
    for mode in ("bilinear", "bicubic"):
        for align in (False, True):
            found[f"{mode}, antialias, align {align}"] = (
                of_image(
                    lambda x, m=mode, a=align: (
                        F.interpolate(x, (4, 3), mode=m, align_corners=a, antialias=True),
                        F.interpolate(x, (5, 12), mode=m, align_corners=a, antialias=True),
                        F.interpolate(x, scale_factor=0.45, mode=m, align_corners=a, antialias=True),
                    )
                ),
                images,
            )
    return found


def grids(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 4, 9, 7), torch.rand(b, 5, 6, 2) * 3 - 1.5


def volume_grids(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 4, 5, 6, 4), torch.rand(b, 3, 2, 4, 3) * 3 - 1.5


def _samplings() -> dict[str, Row]:
    found: dict[str, Row] = {}
    for inputs, n in ((grids, 2), (volume_grids, 3)):
        for mode in ("bilinear", "nearest", "bicubic")[: 5 - n]:
            for padding in ("zeros", "border", "reflection"):
                found[f"grid_sample {n}d {mode} {padding}"] = (
                    lambda n=n, mode=mode, padding=padding: Calls(
                        lambda m, x, g: tuple(
                            F.grid_sample(m.first(x), g * m.stretch, mode, padding, align) for align in (False, True)
                        ),
                        first=nn.Conv2d(4, 2, 1) if n == 2 else nn.Conv3d(4, 2, 1),
                        stretch=nn.Parameter(torch.full((n,), 1.1)),
                    ),
                    inputs,
                )
    return found


RESIZING: dict[str, Row] = {
    **_interpolations(),
    **_samplings(),
    "nn.Upsample": (lambda: nn.Sequential(nn.Conv2d(4, 2, 1), nn.Upsample(scale_factor=(2, 3))), images),
    "affine_grid": (
        lambda: Calls(
            lambda m, x: F.grid_sample(
                x, F.affine_grid(m.theta.expand(x.shape[0], 2, 3), x.shape, False), align_corners=False
            ),
            theta=nn.Parameter(torch.randn(1, 2, 3)),
        ),
        images,
    ),
    "affine_grid, aligned": (
        lambda: Calls(
            lambda m, x: F.affine_grid(m.theta.expand(x.shape[0], 2, 3), [x.shape[0], 4, 5, 3], True),
            theta=nn.Parameter(torch.randn(1, 2, 3)),
        ),
        images,
    ),
    "affine_grid, 3-D with one slice": (
        lambda: Calls(
            lambda m, x: F.affine_grid(m.theta.expand(x.shape[0], 3, 4), [x.shape[0], 4, 1, 3, 2], False),
            theta=nn.Parameter(torch.randn(1, 3, 4)),
        ),
        volumes,
    ),
}


def states_for(layers: int, features: int, cell: int = 0) -> Inputs:
    """A batch-first sequence with initial states."""

    def inputs(b: int) -> tuple[torch.Tensor, ...]:
        made = (torch.randn(b, 5, 6), torch.randn(layers, b, features))
        return (*made, torch.randn(layers, b, cell)) if cell else made

    return inputs


def with_states(layer: nn.Module) -> nn.Module:
    return Calls(lambda m, x, *s: m.layer(x, tuple(s) if len(s) > 1 else s[0]), layer=layer)


def cells(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 6), torch.randn(b, 4), torch.randn(b, 4)


def time_first(make: Make) -> Make:
    return lambda: Calls(lambda m, x: m.layer(x.movedim(1, 0)), layer=make())


RECURRENT: dict[str, Row] = {
    "RNN": (lambda: nn.RNN(6, 4, batch_first=True), sequences),
    "RNN relu, all": (
        lambda: nn.RNN(6, 4, 2, nonlinearity="relu", bias=False, batch_first=True, bidirectional=True),
        sequences,
    ),
    "RNN, time on axis 0": (time_first(lambda: nn.RNN(6, 4, bidirectional=True)), sequences),
    "RNN with states": (
        lambda: with_states(nn.RNN(6, 4, 2, batch_first=True, bidirectional=True)),
        states_for(4, 4),
    ),
    "GRU": (lambda: nn.GRU(6, 4, batch_first=True), sequences),
    "GRU, all": (lambda: nn.GRU(6, 4, 3, bias=False, batch_first=True, bidirectional=True), sequences),
    "GRU, time on axis 0": (time_first(lambda: nn.GRU(6, 4, 2)), sequences),
    "GRU with states": (lambda: with_states(nn.GRU(6, 4, 2, batch_first=True)), states_for(2, 4)),
    "GRU unbatched": (unbatched(lambda: nn.GRU(6, 4, 2, bidirectional=True)), sequences),
    "LSTM with states": (
        lambda: with_states(nn.LSTM(6, 4, 2, batch_first=True, bidirectional=True)),
        states_for(4, 4, 4),
    ),
    "LSTM unbatched": (unbatched(lambda: nn.LSTM(6, 4)), sequences),
    "LSTM projected": (lambda: nn.LSTM(6, 5, batch_first=True, proj_size=3), sequences),
    "LSTM projected, all": (
        lambda: nn.LSTM(6, 5, 2, bias=False, batch_first=True, bidirectional=True, proj_size=3),
        sequences,
    ),
    "LSTM projected with states": (
        lambda: with_states(nn.LSTM(6, 5, 2, batch_first=True, proj_size=3)),
        states_for(2, 3, 5),
    ),
    "LSTM projected both ways with states": (
        lambda: with_states(nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True, proj_size=3)),
        states_for(4, 3, 5),
    ),
    "LSTM with ones and zeros": (
        lambda: Calls(
            lambda m, x: m.layer(x, [make(1, x.shape[0], 4, dtype=x.dtype) for make in (torch.zeros, torch.ones)]),
            layer=nn.LSTM(6, 4, batch_first=True),
        ),
        sequences,
    ),
    "GRU with normalised weights": (
        lambda: parametrizations.weight_norm(nn.GRU(6, 4, batch_first=True), "weight_hh_l0"),
        sequences,
    ),
    "RNNCell": (lambda: nn.RNNCell(6, 4), lambda b: cells(b)[:2]),
    "RNNCell relu, no bias": (lambda: nn.RNNCell(6, 4, False, "relu"), lambda b: cells(b)[:2]),
    "GRUCell": (lambda: nn.GRUCell(6, 4), lambda b: cells(b)[:2]),
    "GRUCell without state or bias": (lambda: nn.GRUCell(6, 4, False), rows),
    "LSTMCell": (lambda: Calls(lambda m, x, h, c: m.layer(x, (h, c)), layer=nn.LSTMCell(6, 4)), cells),
    "LSTMCell unbatched, no bias": (unbatched(lambda: nn.LSTMCell(6, 4, False)), rows),
    "LSTMCell unrolled": (
        lambda: Calls(_unrolled, layer=nn.LSTMCell(6, 4)),
        sequences,
    ),
}


def _unrolled(m: Any, x: torch.Tensor) -> torch.Tensor:
    state = None
    for step in x.unbind(1):
        state = m.layer(step, state)
    return state[0]


NORMALISATIONS: dict[str, Row] = {
    "BatchNorm3d": (lambda: nn.BatchNorm3d(4, 1e-2, 0.7), volumes),
    "BatchNorm1d, nothing": (lambda: nn.BatchNorm1d(6, affine=False, track_running_stats=False), rows),
    "BatchNorm2d frozen": (lambda: _frozen(nn.BatchNorm2d(4)), images),
    "LazyBatchNorm2d": (lambda: materialised(nn.LazyBatchNorm2d(), images), images),
    "batch_norm of computed statistics": (
        lambda: Calls(
            lambda m, x: F.batch_norm(x, m.mean * 2, m.var.exp(), m.weight.cos(), m.bias, False, 0.1, 1e-3),
            mean=torch.randn(4),
            var=torch.randn(4),
            weight=nn.Parameter(torch.randn(4)),
            bias=nn.Parameter(torch.randn(4)),
        ),
        images,
    ),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(4), signals),
    "InstanceNorm2d, affine": (lambda: nn.InstanceNorm2d(4, 1e-2, affine=True), images),
    "InstanceNorm2d, tracking": (lambda: nn.InstanceNorm2d(4, momentum=0.3, track_running_stats=True), images),
    "InstanceNorm3d, all": (lambda: nn.InstanceNorm3d(4, 1e-3, 0.2, True, True), volumes),
    "InstanceNorm2d unbatched": (unbatched(lambda: nn.InstanceNorm2d(4, affine=True)), images),
    "InstanceNorm2d frozen": (lambda: _frozen(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), images),
    "GroupNorm of rank 2": (lambda: nn.GroupNorm(3, 6, 1e-3), rows),
    "GroupNorm of rank 3, not affine": (
        lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.GroupNorm(2, 4, affine=False)),
        signals,
    ),
    "GroupNorm of rank 5": (lambda: nn.GroupNorm(4, 4), volumes),
    "GroupNorm of one group": (lambda: nn.GroupNorm(1, 4), images),
    "LayerNorm over three axes": (lambda: nn.LayerNorm((4, 9, 7), 1e-2), images),
    "LayerNorm not affine": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6, elementwise_affine=False)),
        sequences,
    ),
    "layer_norm with a bias alone": (
        lambda: Calls(lambda m, x: F.layer_norm(x, (6,), None, m.bias), bias=nn.Parameter(torch.randn(6))),
        sequences,
    ),
    "RMSNorm over two axes": (lambda: nn.RMSNorm((5, 6), 1e-2), sequences),
    "RMSNorm not affine": (lambda: nn.Sequential(nn.Linear(6, 6), nn.RMSNorm(6, elementwise_affine=False)), sequences),
    "LocalResponseNorm": (of_image(nn.LocalResponseNorm(3, 0.3, 0.6, 2.0)), images),
    "LocalResponseNorm of rank 3, even size": (of_signal(nn.LocalResponseNorm(2)), signals),
    "normalize": (of_image(lambda x: (F.normalize(x), F.normalize(x, 1, -1, 0.5), F.normalize(x, 3, (2, 3)))), images),
    "weight_norm of a convolution": (lambda: parametrizations.weight_norm(nn.Conv2d(4, 3, 3), dim=1), images),
    "weight_norm as a whole": (lambda: parametrizations.weight_norm(nn.Linear(6, 3), dim=None), rows),
    "weight_norm by hook": (lambda: materialised(nn.utils.weight_norm(nn.Conv2d(4, 3, 3)), images), images),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(6, 3)), rows),
    "spectral_norm of a convolution": (
        lambda: parametrizations.spectral_norm(nn.Conv2d(4, 3, 3), n_power_iterations=2),
        images,
    ),
    "spectral_norm by hook": (lambda: nn.utils.spectral_norm(nn.Linear(6, 3)), rows),
    "tied weights": (lambda: _tied(), tokens),
}


def _frozen(module: nn.Module) -> nn.Module:
    """A layer that stays in evaluation."""
    module.eval()
    module.train = lambda mode=True: module  # type: ignore[method-assign]
    return module


def _tied() -> nn.Module:
    table, head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
    head.weight = table.weight
    return nn.Sequential(table, head)


def bags(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randint(0, 11, (12,)), torch.tensor([0, 3, 3, 7, 12])[: b + 2]


def weighted_bags(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randint(0, 11, (b, 5)), torch.randn(b, 5)


LOOKUPS: dict[str, Row] = {
    "Embedding, sparse": (lambda: nn.Embedding(11, 4, sparse=False, padding_idx=-1), tokens),
    "Embedding of int32": (lambda: nn.Embedding(11, 4), lambda b: (torch.randint(0, 11, (b, 2, 3)).int(),)),
    "EmbeddingBag, mean": (lambda: nn.EmbeddingBag(11, 4), tokens),
    "EmbeddingBag, sum": (lambda: nn.EmbeddingBag(11, 4, mode="sum", padding_idx=3), tokens),
    "EmbeddingBag, mean with padding": (lambda: nn.EmbeddingBag(4, 3, padding_idx=-2), lambda b: (tokens(b)[0] % 4,)),
    "EmbeddingBag, max": (lambda: nn.EmbeddingBag(11, 4, mode="max"), tokens),
    "EmbeddingBag, max with padding": (
        lambda: nn.EmbeddingBag(3, 4, mode="max", padding_idx=0),
        lambda b: (torch.tensor([[0, 0, 0], [0, 1, 1], [1, 0, 2], [0, 0, 2], [2, 2, 0]])[:b],),
    ),
    "EmbeddingBag, weighted": (
        lambda: Calls(lambda m, i, w: m.bag(i, per_sample_weights=w), bag=nn.EmbeddingBag(11, 4, mode="sum")),
        weighted_bags,
    ),
    "EmbeddingBag of offsets, mean": (lambda: nn.EmbeddingBag(11, 4), bags),
    "EmbeddingBag of offsets, sum with padding": (lambda: nn.EmbeddingBag(11, 4, mode="sum", padding_idx=2), bags),
    "EmbeddingBag of offsets, mean with padding": (lambda: nn.EmbeddingBag(11, 4, padding_idx=2), bags),
    "EmbeddingBag of offsets with the last": (
        lambda: nn.EmbeddingBag(11, 4, include_last_offset=True),
        lambda b: bags(3),
    ),
    "Bilinear": (lambda: nn.Bilinear(6, 5, 3), lambda b: (torch.randn(b, 6), torch.randn(b, 5))),
    "Bilinear of rank 3, no bias": (
        lambda: nn.Bilinear(6, 5, 3, bias=False),
        lambda b: (torch.randn(b, 4, 6), torch.randn(b, 4, 5)),
    ),
    "linear to a number": (
        lambda: Calls(
            lambda m, x: F.linear(x, m.w, m.b), w=nn.Parameter(torch.randn(6)), b=nn.Parameter(torch.randn(()))
        ),
        sequences,
    ),
    "LazyLinear": (lambda: materialised(nn.LazyLinear(3), sequences), sequences),
}


def attended(**settings: Any) -> Make:
    """A MultiheadAttention called with all its masks."""
    call = {k: settings.pop(k) for k in ("need_weights", "average_attn_weights", "is_causal") if k in settings}

    def make() -> nn.Module:
        layer = nn.MultiheadAttention(6, 2, batch_first=True, **settings)
        return Calls(lambda m, q, k, v: m.layer(q, k, v, **call), layer=layer)

    return make


def queries(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 5, 6), torch.randn(b, 7, 6), torch.randn(b, 7, 6)


def padded(b: int) -> tuple[torch.Tensor, ...]:
    lengths = torch.arange(b)[:, None] % 4 + 4
    return (*queries(b), torch.arange(7)[None] >= lengths)


def masked_layer(mask: torch.Tensor | None, **call: Any) -> Make:
    return lambda: Calls(
        lambda m, q, k, v, p: m.layer(q, k, v, key_padding_mask=p, attn_mask=mask, **call),
        layer=nn.MultiheadAttention(6, 2, batch_first=True),
    )


SEEN = torch.rand(5, 7, generator=torch.Generator().manual_seed(3)) > 0.6
SEEN[:, 0] = False  # every query sees the first key


def sentences(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 5, 6), torch.randn(b, 4, 6)


def sentences_padded(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 5, 6), torch.arange(5)[None] >= torch.arange(b)[:, None] % 3 + 3


def split(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (2, 3)).transpose(1, 2)


def projected(function: Callable[..., Any]) -> Make:
    """Scaled dot-product attention of projected queries and keys."""
    return lambda: Calls(
        lambda m, q, k, v: function(split(m.query(q)), split(m.key(k)), split(v)),
        query=nn.Linear(6, 6),
        key=nn.Linear(6, 6),
    )


ATTENTION: dict[str, Row] = {
    "MultiheadAttention": (attended(), queries),
    "MultiheadAttention without weights": (attended(need_weights=False), queries),
    "MultiheadAttention, weights of each head": (attended(average_attn_weights=False), queries),
    "MultiheadAttention, bias_kv": (attended(add_bias_kv=True), queries),
    "MultiheadAttention, zero_attn": (attended(add_zero_attn=True, need_weights=False), queries),
    "MultiheadAttention, bias_kv, zero_attn, no bias": (
        attended(add_bias_kv=True, add_zero_attn=True, bias=False),
        queries,
    ),
    "MultiheadAttention, kdim and vdim": (
        lambda: nn.MultiheadAttention(6, 3, kdim=4, vdim=5, batch_first=True),
        lambda b: (torch.randn(b, 5, 6), torch.randn(b, 7, 4), torch.randn(b, 7, 5)),
    ),
    "MultiheadAttention, time first": (lambda: nn.MultiheadAttention(6, 2), lambda b: sequences(b) * 3),
    "MultiheadAttention, unbatched": (
        lambda: Calls(lambda m, q, k, v: m.layer(q[0], k[0], v[0]), layer=nn.MultiheadAttention(6, 2)),
        queries,
    ),
    "MultiheadAttention, padding": (masked_layer(None), padded),
    "MultiheadAttention, padding, no weights": (masked_layer(None, need_weights=False), padded),
    "MultiheadAttention, bool mask": (masked_layer(SEEN), padded),
    "MultiheadAttention, float mask": (masked_layer(SEEN.float() * -2, need_weights=False), padded),
    "MultiheadAttention, mask for each head": (
        lambda: Calls(
            lambda m, q, k, v: m.layer(q, k, v, attn_mask=SEEN.expand(q.shape[0] * 2, 5, 7)),
            layer=nn.MultiheadAttention(6, 2, batch_first=True),
        ),
        queries,
    ),
    "MultiheadAttention, causal": (
        lambda: Calls(
            lambda m, q: m.layer(
                q, q, q, attn_mask=nn.Transformer.generate_square_subsequent_mask(5), is_causal=True, need_weights=False
            ),
            layer=nn.MultiheadAttention(6, 2, batch_first=True),
        ),
        sequences,
    ),
    "sdpa, causal with unequal lengths": (
        projected(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
        queries,
    ),
    "sdpa, more queries than keys, causal": (
        projected(lambda q, k, v: F.scaled_dot_product_attention(k, q, q, is_causal=True, scale=0.2)),
        queries,
    ),
    "sdpa, mask of rank 2": (projected(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, ~SEEN)), queries),
    "sdpa, mask of rank 3": (
        projected(
            lambda q, k, v: F.scaled_dot_product_attention(
                q, k, v, SEEN.expand(2, 5, 7) * 1.5 + q[:1, :, :, :1].squeeze(0) * 0
            )
        ),
        queries,
    ),
    "sdpa, nothing seen": (
        projected(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.arange(5)[:, None] > torch.arange(7))),
        queries,
    ),
    "sdpa of rank 3": (projected(lambda q, k, v: F.scaled_dot_product_attention(q[:, 0], k[:, 0], v[:, 0])), queries),
    "sdpa of rank 5": (
        projected(lambda q, k, v: F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])),
        queries,
    ),
    "sdpa, grouped, masked": (
        projected(
            lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], ~SEEN, scale=0.7, enable_gqa=True)
        ),
        queries,
    ),
    "Transformer": (lambda: nn.Transformer(6, 2, 1, 2, 8, 0.0, batch_first=True), sentences),
    "Transformer, time first, norm first": (
        lambda: nn.Transformer(6, 2, 1, 1, 8, 0.0, "gelu", norm_first=True, bias=False),
        lambda b: (torch.randn(5, 3, 6), torch.randn(4, 3, 6)),
    ),
    "Transformer, causal": (
        lambda: Calls(
            lambda m, x, y: m.layer(
                x, y, tgt_mask=nn.Transformer.generate_square_subsequent_mask(4), tgt_is_causal=True
            ),
            layer=nn.Transformer(6, 2, 1, 1, 8, 0.0, batch_first=True),
        ),
        sentences,
    ),
    "TransformerEncoder, padding": (
        lambda: Calls(
            lambda m, x, p: m.layer(x, src_key_padding_mask=p),
            layer=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True), 2, enable_nested_tensor=False
            ),
        ),
        sentences_padded,
    ),
    "TransformerEncoder, causal, norm first": (
        lambda: Calls(
            lambda m, x: m.layer(x, nn.Transformer.generate_square_subsequent_mask(5), is_causal=True),
            layer=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True, norm_first=True),
                2,
                nn.LayerNorm(6),
                enable_nested_tensor=False,
            ),
        ),
        sequences,
    ),
    "TransformerDecoder, masks": (
        lambda: Calls(
            lambda m, x, p: m.layer(
                x[:, :4], x, tgt_mask=torch.ones(4, 4).triu(1).bool(), tgt_is_causal=True, memory_key_padding_mask=p
            ),
            layer=nn.TransformerDecoder(nn.TransformerDecoderLayer(6, 2, 8, 0.0, batch_first=True), 2, nn.LayerNorm(6)),
        ),
        sentences_padded,
    ),
}

TABLE: dict[str, Row] = {
    **CONVOLUTIONS,
    **POOLS,
    **RESIZING,
    **RECURRENT,
    **NORMALISATIONS,
    **LOOKUPS,
    **ATTENTION,
}
# their first axis is time, or their sizes are not multiples of it
FIXED = frozenset(
    name
    for name in TABLE
    if any(word in name for word in ("unbatched", "tbc", "with states", "with zeros", "offsets", "time first"))
)


@pytest.mark.parametrize("name", TABLE)
def test_layer(name: str) -> None:
    check_layer(*TABLE[name], batches=(3,) if name in FIXED else (3, 2))


@pytest.mark.parametrize("name", TABLE)
def test_layer_in_training(name: str) -> None:
    check_layer_in_training(*TABLE[name])


# --- sizes that are dynamic besides the batch


DYNAMIC: dict[str, Callable[[torch.Tensor], Any]] = {
    "max_pool with indices": lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True),
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool, divisor": lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=4),
    "adaptive to 1": lambda x: (F.adaptive_avg_pool2d(x.abs(), 1), F.adaptive_max_pool2d(x, 1)),
    "adaptive of one axis": lambda x: F.adaptive_avg_pool2d(x, (None, 1)),
    "unfold": lambda x: F.unfold(x, 3, 1, 1, 2),
    "nearest by 2": lambda x: F.interpolate(x, scale_factor=2),
    "nearest to a size": lambda x: F.interpolate(x, size=(5, 13)),
    "nearest-exact to a size": lambda x: F.interpolate(x, size=(5, 13), mode="nearest-exact"),
    "nearest to another's size": lambda x: F.interpolate(x[:, :, 1:, 2:], size=x.shape[2:]),
    "bilinear by 2": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear to another's size": lambda x: F.interpolate(x[:, :, 1:, 2:], size=x.shape[2:], mode="bilinear"),
    "bicubic by 2, aligned": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=True),
    "conv_transpose": lambda x: F.conv_transpose2d(x, torch.ones(4, 2, 3, 3), stride=2, output_padding=1),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_spatial_sizes(name: str) -> None:
    torch.manual_seed(0)
    function = DYNAMIC[name]
    module = Calls(lambda m, x: function(x))
    x = torch.randn(2, 4, 9, 12)
    shapes = (
        {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=4), 3: torch.export.Dim("width", min=4)},
    )
    model = ix.from_torch(module, x, (shapes,))
    for given in (x, torch.randn(3, 4, 10, 7), torch.randn(1, 4, 17, 30)):
        check_outputs(module, model, (given,))


# --- other dtypes

HALVES: dict[str, Row] = {
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 2, 3, 2), images),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((4, 3)), images),
    "AvgPool2d, divisor": (lambda: nn.AvgPool2d(3, divisor_override=5), images),
    "bilinear": (lambda: nn.Upsample((5, 11), mode="bilinear"), images),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), images),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4), images),
    "RMSNorm of small numbers": (
        lambda: Calls(lambda m, x: m.norm(x * 2e-3), norm=nn.RMSNorm(6)),
        sequences,
    ),
    "GRU": (lambda: nn.GRU(6, 4, batch_first=True), sequences),
    "sdpa, float mask": (
        projected(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, SEEN.float() * -1e9)),
        queries,
    ),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(11, 4), tokens),
}


@pytest.mark.parametrize("name", HALVES)
def test_half_precision(name: str) -> None:
    torch.manual_seed(0)
    make, inputs = HALVES[name]
    module = make().half().eval()
    given = tuple(x.half() if x.is_floating_point() else x for x in inputs(3))
    model = ix.from_torch(module, given, "batch")
    check_outputs(module, model, given)
    again = inputs(2)
    check_outputs(module, model, tuple(x.half() if x.is_floating_point() else x for x in again))


def test_nearest_of_bytes() -> None:
    check_operator(
        lambda m, x: (
            F.interpolate(x, scale_factor=2),
            F.interpolate(x, size=(5, 4)),
            F.interpolate(x, (4, 5), mode="nearest-exact"),
        ),
        lambda b: (torch.randint(0, 255, (b, 3, 6, 7), dtype=torch.uint8),),
        (2, 3),
    )


def test_synchronised_batch_norm_in_evaluation() -> None:
    check_layer(lambda: nn.Sequential(nn.Conv2d(4, 3, 1), nn.SyncBatchNorm(3)), images, (3, 2))


def test_the_only_element_of_an_axis_lies_in_the_middle() -> None:
    theta = torch.randn(2, 2, 3)
    module = Calls(lambda m, t: F.affine_grid(t, [2, 1, 1, 4], align_corners=False))
    check_outputs(module, ix.from_torch(module, theta, None), (theta,))


# --- randomness


def drawn(layer: nn.Module, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The output in evaluation, in training, and of the next call in training."""
    graph, params, states = ix.from_torch(layer, x, None)
    still, same = graph.apply(params, states, x.numpy())
    for (_, before), (_, after) in zip(ix.trees.leaves(states), ix.trees.leaves(same), strict=True):
        np.testing.assert_array_equal(before, after)
    first, following = graph.apply(params, states, x.numpy(), train=True)
    second, _ = graph.apply(params, following, x.numpy(), train=True)
    return still, first, second


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Dropout(0.3), (400, 30)),
        (lambda: nn.Dropout(0.3, inplace=True), (400, 30)),
        (lambda: nn.Dropout1d(0.3), (60, 200, 3)),
        (lambda: nn.Dropout2d(0.3), (60, 200, 3, 2)),
        (lambda: nn.Dropout3d(0.3), (60, 200, 3, 1, 2)),
        (lambda: nn.Dropout1d(0.3), (9000, 3)),
        (lambda: Calls(lambda m, x: F.dropout(x, 0.3 if m.training else 0.0)), (400, 30)),
    ],
)
def test_dropout_in_training(make: Make, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape) + 0.5
    still, first, second = drawn(make(), x)
    np.testing.assert_array_equal(still, x.numpy())
    kept = first != 0
    np.testing.assert_allclose(first[kept], (x.numpy() / 0.7)[kept], rtol=1e-6)
    assert abs(kept.mean() - 0.7) < 0.02
    assert not np.array_equal(kept, second != 0)
    if "Dropout" in type(make()).__name__ and type(make()).__name__ != "Dropout":  # whole channels
        axes = tuple(range(1 if len(shape) == 2 else 2, len(shape)))
        assert set(np.unique(kept.mean(axes))) == {0.0, 1.0}


@pytest.mark.parametrize("make", [lambda: nn.AlphaDropout(0.2), lambda: nn.FeatureAlphaDropout(0.2)])
def test_alpha_dropout_in_training(make: Make) -> None:
    # no number lies where what is dropped is put: the draws would tell one such case in five
    x = torch.randn(100, 300, 4, generator=torch.Generator().manual_seed(0))
    still, first, _ = drawn(make(), x)
    np.testing.assert_array_equal(still, x.numpy())
    floor = -1.7580993408473766
    scale = 1 / math.sqrt(0.8 * (1 + 0.2 * floor**2))
    shift = -scale * 0.2 * floor
    lost = np.isclose(first, scale * floor + shift, rtol=1e-6, atol=0)
    assert not np.isclose(x.numpy(), floor, rtol=1e-5, atol=0).any()
    np.testing.assert_allclose(first[~lost], (x.numpy() * scale + shift)[~lost], rtol=1e-5, atol=1e-6)
    assert abs(lost.mean() - 0.2) < 0.02
    assert abs(first.mean()) < 0.05 and abs(first.std() - 1) < 0.05
    whole = set(np.unique(lost.mean(2)).tolist()) == {0.0, 1.0}
    assert whole == isinstance(make(), nn.FeatureAlphaDropout)


@pytest.mark.parametrize("kind", [nn.Dropout, nn.AlphaDropout, nn.Dropout1d])
def test_dropout_of_everything(kind: type[nn.Module]) -> None:
    _, first, _ = drawn(kind(1.0), torch.randn(3, 4, 5))
    np.testing.assert_array_equal(first, np.zeros((3, 4, 5), np.float32))


def test_dropout_between_recurrent_layers() -> None:
    layer = nn.GRU(6, 40, 2, dropout=0.5, batch_first=True)
    x = torch.randn(3, 5, 6)
    graph, params, states = ix.from_torch(layer, x, None)
    (still, *_), _ = graph.apply(params, states, x.numpy())
    np.testing.assert_allclose(still, layer.eval()(x)[0].detach().numpy(), rtol=1e-5, atol=1e-6)
    (first, *_), new = graph.apply(params, states, x.numpy(), train=True)
    (second, *_), _ = graph.apply(params, new, x.numpy(), train=True)
    assert not np.allclose(first, still) and not np.allclose(first, second)


class DropPath(nn.Module):
    """Stochastic depth: whole samples are dropped in training."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        if keep > 0.0:
            mask.div_(keep)
        return x * mask


def test_stochastic_depth() -> None:
    x = torch.rand(500, 3, 2) + 0.5
    still, first, second = drawn(DropPath(0.25), x)
    np.testing.assert_array_equal(still, x.numpy())
    kept = (first != 0).mean((1, 2))
    assert set(np.unique(kept)) == {0.0, 1.0} and abs(kept.mean() - 0.75) < 0.08
    np.testing.assert_allclose(first[kept == 1], x.numpy()[kept == 1] / 0.75, rtol=1e-6)
    assert not np.array_equal(first, second)


def test_a_probability_of_evaluation_is_kept() -> None:
    module = Calls(lambda m, x: F.dropout(x, 0.5 if m.training else 0.1))
    x = torch.rand(200, 50) + 0.5
    graph, params, states = ix.from_torch(module, x, None)
    for train, rate in ((True, 0.5), (False, 0.1)):
        y, _ = graph.apply(params, states, x.numpy(), train=train)
        assert abs((y == 0).mean() - rate) < 0.03


# --- what is refused

REFUSED: dict[str, tuple[Make, Inputs, str]] = {
    "max_norm": (lambda: nn.Embedding(11, 4, max_norm=1.0), tokens, "max_norm=None"),
    "gradients by frequency": (
        lambda: nn.Embedding(11, 4, scale_grad_by_freq=True),
        tokens,
        "scale_grad_by_freq=False",
    ),
    "gradients of bags by frequency": (
        lambda: nn.EmbeddingBag(11, 4, scale_grad_by_freq=True),
        tokens,
        "scale_grad_by_freq=False",
    ),
    "largest of ragged bags": (lambda: nn.EmbeddingBag(11, 4, mode="max"), bags, "one row for each bag"),
    "fractional pools": (lambda: nn.FractionalMaxPool2d(2, 3), images, "use max_pool"),
    "bytes resized smoothly": (
        lambda: nn.Upsample((4, 5), mode="bilinear"),
        lambda b: (torch.randint(0, 255, (b, 3, 6, 7), dtype=torch.uint8),),
        "use float",
    ),
    "one aligned element": (
        lambda: Calls(lambda m, x: F.affine_grid(x, [x.shape[0], 1, 1, 4], align_corners=True)),
        lambda b: (torch.randn(b, 2, 3),),
        "use align_corners=False",
    ),
    "packed sequences": (
        lambda: Calls(
            lambda m, x: m.layer(rnn.pack_padded_sequence(x, torch.tensor([5, 3, 2]), batch_first=True))[1],
            layer=nn.GRU(6, 4, batch_first=True),
        ),
        sequences,
        "pack",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, inputs, message = REFUSED[name]
    with pytest.raises(ix.UnsupportedError, match=message):
        ix.from_torch(make(), inputs(3), "batch" if "packed" not in name else None)


def test_a_cumulative_average_is_refused_in_training_only() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, momentum=None))
    (x,) = images(3)
    model = ix.from_torch(module, x, None)
    check_outputs(module.eval(), model, (x,))
    with pytest.raises(ix.UnsupportedError, match="evaluation only"):
        model.layer.apply(model.params, model.states, x.numpy(), train=True)
