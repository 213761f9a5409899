"""Quantised numbers in PyTorch's exported programs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # enters the operators
from torch import nn

import interlux as ix
from tests.helpers import Calls, check_outputs
from tests.torch_cases import Inputs, check_layer, check_layer_in_training

Q = torch.ops.quantized_decomposed
I8, U8, I16, I32, LIMIT = torch.int8, torch.uint8, torch.int16, torch.int32, 2**31 - 1


def rows(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(b, 6) * 3,)


def images(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(b, 3, 6) * 3,)


def ties(b: int) -> tuple[torch.Tensor, ...]:
    """Halves of a step, and what lies beside them."""
    steps = torch.arange(-140, 140).float() + 0.5
    exact = steps * 0.1
    up = torch.nextafter(exact, torch.tensor(torch.inf))
    return (
        torch.stack([exact, up, torch.nextafter(exact, -torch.tensor(torch.inf)), steps])[:, : 40 * b].T.contiguous(),
    )


def there(x: torch.Tensor, scale: Any, point: Any, low: int, high: int, dtype: torch.dtype) -> Any:
    """Quantised, and back again."""
    q = Q.quantize_per_tensor(x, scale, point, low, high, dtype)
    return q, Q.dequantize_per_tensor(q, scale, point, low, high, dtype)


def by_channel(x: torch.Tensor, *arguments: Any) -> Any:
    q = Q.quantize_per_channel(x, *arguments)
    return q, Q.dequantize_per_channel(q, *arguments)


def chosen(x: torch.Tensor, choose: Any, low: int, high: int, dtype: torch.dtype) -> Any:
    scale, point = choose(x, low, high, 1e-6, dtype)
    return scale, point, *there(x, scale, point, low, high, dtype)


def by_token(x: torch.Tensor, choose: Any) -> Any:
    scales, points = choose(x, I8)
    q = Q.quantize_per_token(x, scales, points, -128, 127, I8)
    return q, Q.dequantize_per_token(q, scales, points, -128, 127, I8, torch.float32)


CASES: dict[str, tuple[Callable[..., Any], Inputs]] = {
    "int8": (lambda m, x: there(x, 0.037, -3, -128, 127, I8), images),
    "uint8": (lambda m, x: there(x, 0.05, 128, 0, 255, U8), images),
    "int16": (lambda m, x: there(x, 0.001, 9, -32768, 32767, I16), images),
    "int32": (lambda m, x: there(x, 0.001, 5, -LIMIT - 1, LIMIT, I32), images),
    "int32 of a narrow range": (lambda m, x: there(x, 0.001, 5, -2000, 1000, I32), images),
    "ties": (lambda m, x: (there(x, 0.1, 0, -128, 127, I8), there(x, 1.0, 3, -128, 127, I8)), ties),
    "ties of other scales": (lambda m, x: (there(x, 0.3, 0, -128, 127, I8), there(x, 0.07, 100, 0, 255, U8)), ties),
    "narrow int8": (lambda m, x: there(x, 0.037, 3, -100, 90, I8), images),
    "narrow uint8": (lambda m, x: there(x, 0.1, 9, 2, 127, U8), images),
    "symmetric": (lambda m, x: there(x, 0.02, 0, -127, 127, I8), images),
    "half": (lambda m, x: Q.quantize_per_tensor(x.half(), 0.037, -3, -128, 127, I8), images),
    "back to half": (
        lambda m, x: Q.dequantize_per_tensor(x.to(I8), 0.037, -3, -128, 127, I8, out_dtype=torch.float16),
        images,
    ),
    "tensors as parameters": (lambda m, x: there(x, m.scale, m.point, -128, 127, I8), images),
    "channels": (lambda m, x: by_channel(x, m.scales, m.points, 1, -128, 127, I8), images),
    "channels from the end": (lambda m, x: by_channel(x, m.scales, m.points, x.dim() - 2, -100, 99, I8), images),
    "channels of uint8": (lambda m, x: by_channel(x, m.scales, m.points + 20, 1, 0, 200, U8), images),
    "channels without zero points": (
        lambda m, x: Q.dequantize_per_channel(x.to(I8), m.scales, None, 1, -128, 127, I8),
        images,
    ),
    "channels to half": (
        lambda m, x: Q.dequantize_per_channel(x.to(I8), m.scales, m.points, 1, -128, 127, I8, out_dtype=torch.float16),
        images,
    ),
    "channels of int32": (
        lambda m, x: Q.dequantize_per_channel((x * 1e6).to(I32), m.scales, m.points, 1, -LIMIT, LIMIT, I32),
        images,
    ),
    "dynamic": (lambda m, x: chosen(x, Q.choose_qparams, -128, 127, I8), images),
    "dynamic uint8": (lambda m, x: chosen(x.abs(), Q.choose_qparams, 0, 255, U8), images),
    "dynamic symmetric": (lambda m, x: chosen(x, Q.choose_qparams_symmetric, -127, 127, I8), images),
    "dynamic symmetric uint8": (lambda m, x: chosen(x, Q.choose_qparams_symmetric, 0, 255, U8), images),
    "tokens": (lambda m, x: by_token(x, Q.choose_qparams_per_token), images),
    "asymmetric tokens": (lambda m, x: by_token(x, Q.choose_qparams_per_token_asymmetric), images),
    "groups": (
        lambda m, x: (
            x @ Q.dequantize_per_channel_group(m.weight, m.grouped, m.group_points, -8, 7, I8, 3, torch.float32).T,
            x @ Q.dequantize_per_channel_group(m.weight, m.grouped, None, -8, 7, I8, 3, torch.float32).T,
        ),
        rows,
    ),
    "integer products": (
        lambda m, x: torch._int_mm((x * 9).to(I8), torch.arange(-24, 24, dtype=I8).reshape(6, 8)),
        lambda b: (torch.randn(17 + b, 6),),
    ),
}


def parts() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "scale": torch.tensor(0.07, dtype=torch.float64),
        "point": torch.tensor(-5),
        "scales": torch.tensor([0.02, 0.05, 0.1]),
        "points": torch.tensor([0, 3, -5]),
        "weight": torch.randint(-8, 8, (4, 6), dtype=torch.int8),
        "grouped": torch.rand(4, 2),
        "group_points": torch.randint(-2, 2, (4, 2), dtype=torch.int32),
        "fake_scale": torch.tensor(0.05),
        "fake_point": torch.tensor(1, dtype=torch.int32),
    }


@pytest.mark.parametrize("name", CASES)
def test_operators(name):
    function, inputs = CASES[name]
    module = Calls(function, **parts())
    model = ix.from_torch(module, inputs(3))
    for batch in (3, 2, 5):
        check_outputs(module, model, inputs(batch))


FAKE: dict[str, Callable[..., Any]] = {
    "a tensor": lambda m, x: torch.fake_quantize_per_tensor_affine(x, 0.03, 2, -10, 100),
    "the ties": lambda m, x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127),
    "by tensors": lambda m, x: torch.fake_quantize_per_tensor_affine(x, m.fake_scale, m.fake_point, 0, 255),
    "channels": lambda m, x: torch.fake_quantize_per_channel_affine(x, m.scales, m.points.int(), 1, -20, 20),
}


@pytest.mark.parametrize("name", FAKE)
def test_fake_quantisation(name):
    module = Calls(FAKE[name], **parts())
    (x,) = ties(1) if name == "the ties" else images(3)
    check_outputs(module, ix.from_torch(module, (x,), None), (x,))  # torch exports it with fixed sizes only


def test_gradients_of_fake_quantisation():
    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.register_buffer("points", torch.zeros(6, dtype=torch.int32))

        def forward(self, x: torch.Tensor) -> Any:
            scales = torch.full((6,), 0.01)
            weight = torch.fake_quantize_per_channel_affine(self.first.weight, scales, self.points, 0, -20, 20)
            return torch.fake_quantize_per_tensor_affine(self.first(x), 0.03, 2, -10, 20) * 2, x @ weight

    check_layer_in_training(Trained, rows)


class Converted(nn.Module):
    """What convert_pt2e leaves of a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.randint(-127, 128, (4, 3, 3), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(4) * 0.01 + 0.001)
        self.register_buffer("points", torch.zeros(4, dtype=torch.int64))
        self.register_buffer("weight", torch.randint(-127, 128, (5, 16), dtype=torch.int8))
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, x = there(x, 0.05, 4, -128, 127, I8)
        kernel = Q.dequantize_per_channel(self.kernel, self.scales, self.points, 0, -127, 127, I8)
        _, y = there(nn.functional.conv1d(x, kernel).relu(), 0.03, -128, -128, 127, I8)
        weight = Q.dequantize_per_tensor(self.weight, 0.004, 0, -127, 127, I8)
        return there(nn.functional.linear(y.flatten(1), weight, self.bias), 0.11, 2, -128, 127, I8)[1]


def test_converted_layers():
    check_layer(Converted, images)
    model = ix.from_torch(Converted().eval(), images(2))
    assert model.states["kernel"].dtype == "int8" and model.states["weight"].dtype == "int8"


def test_eager_quantisation_is_refused():
    from torch.ao import quantization

    network = nn.Sequential(nn.Linear(6, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its future
        network = quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ix.UnsupportedError, match="eager-mode quantisation keep packed weights.*prepare_pt2e"):
        ix.from_torch(network, rows(3))


def test_dynamic_quantisation_of_halves_is_refused():
    module = Calls(lambda m, x: Q.choose_qparams(x.half(), -128, 127, 1e-6, I8)[0])
    with pytest.raises(ix.UnsupportedError, match="dynamic quantisation of float16"):
        ix.from_torch(module, rows(3))
