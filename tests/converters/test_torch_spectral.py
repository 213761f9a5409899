"""Complex tensors and Fourier transforms of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fft, nn

import interlux as ix
from tests.helpers import Calls, check_outputs
from tests.torch_cases import Inputs, check_layer, check_layer_in_training, check_operator

parts = torch.view_as_real


def even(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(b, 3, 8),)


def odd(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(b, 3, 7),)


def pairs(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 3, 8), torch.randn(b, 3, 8)


def signals(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(b, 48),)


def one_signal(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(50),)


def z(x: torch.Tensor) -> torch.Tensor:
    """A complex tensor made from a real one."""
    return torch.complex(x, x.flip(-1) * 0.7)


def each(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(parts(v.resolve_conj()) for v in values)


CASES: dict[str, tuple[Callable[..., Any], Inputs]] = {
    # transforms
    "fft": (lambda m, x: each(fft.fft(x), fft.fft(z(x)), fft.fft(x, dim=1), fft.fft(z(x), dim=-2)), odd),
    "fft of a length": (lambda m, x: each(fft.fft(x, n=5), fft.fft(z(x), n=10), fft.fft(x, n=1)), odd),
    "norms": (
        lambda m, x: each(fft.fft(x, norm="ortho"), fft.fft(x, norm="forward"), fft.ifft(z(x), norm="ortho")),
        odd,
    ),
    "ifft": (lambda m, x: each(fft.ifft(x), fft.ifft(z(x), n=5, dim=1), fft.ifft(z(x), norm="forward")), odd),
    "ifft of a power of two": (lambda m, x: each(fft.ifft(z(x)), fft.ifft(z(x), n=4, norm="backward")), even),
    "rfft": (lambda m, x: each(fft.rfft(x), fft.rfft(x, n=5, dim=1), fft.rfft(x, norm="ortho")), odd),
    "rfft of an even length": (lambda m, x: each(fft.rfft(x), fft.rfft(x, n=6)), even),
    "irfft": (lambda m, x: (fft.irfft(z(x)), fft.irfft(z(x), n=9), fft.irfft(z(x), n=4, dim=1, norm="ortho")), odd),
    "irfft of short lengths": (lambda m, x: (fft.irfft(z(x), n=1), fft.irfft(z(x), n=2), fft.irfft(z(x), n=3)), odd),
    "irfft of a real spectrum": (lambda m, x: (fft.irfft(x), fft.irfft(x, n=7, norm="forward")), odd),
    "there and back": (lambda m, x: (fft.irfft(fft.rfft(x), n=7), fft.ifft(fft.fft(x)).real), odd),
    "fft2": (lambda m, x: each(fft.fft2(x), fft.ifft2(z(x)), fft.fft2(x, s=(4, 5)), fft.fft2(z(x), dim=(2, 1))), odd),
    "rfft2": (lambda m, x: (*each(fft.rfft2(x), fft.rfft2(x, s=(4, 6), norm="ortho")), fft.irfft2(z(x))), even),
    "fftn": (lambda m, x: each(fft.fftn(x, dim=(1, 2)), fft.ifftn(z(x), s=(4, -1)), fft.rfftn(x, dim=(2, 1))), even),
    "irfftn": (lambda m, x: (fft.irfftn(z(x), dim=(1, 2)), fft.irfftn(z(x), s=(2, 5), norm="forward")), even),
    "over the batch": (lambda m, x: each(fft.fft(x, dim=0), fft.fftn(x), fft.ifft(z(x), dim=0, norm="ortho")), odd),
    "hfft": (lambda m, x: (fft.hfft(z(x)), fft.hfft(z(x), n=5, norm="ortho"), fft.hfft2(z(x))), odd),
    "ihfft": (lambda m, x: each(fft.ihfft(x), fft.ihfft(x, n=5, norm="forward"), fft.ihfftn(x, dim=(1, 2))), odd),
    "shifts": (
        lambda m, x: (
            fft.fftshift(x, dim=-1),
            fft.ifftshift(x, dim=(1, 2)),
            *each(fft.fftshift(z(x)), fft.ifftshift(z(x))),
        ),
        odd,
    ),
    "frequencies": (lambda m, x: (fft.fftfreq(7) + x, fft.rfftfreq(12, 0.5) + x), odd),
    "integers": (lambda m, i: each(fft.fft(i), fft.rfft(i)), lambda b: (torch.randint(-9, 9, (b, 6)),)),
    # made and taken apart
    "parts": (lambda m, x: (z(x).real, z(x).imag, x.real * 2, *each(z(x).conj(), z(x).conj().conj())), even),
    "view_as_complex": (lambda m, x: each(torch.view_as_complex(x.reshape(x.shape[0], 3, 4, 2)) * 1j), even),
    "length and angle": (lambda m, x: (z(x).abs(), z(x).angle(), *each(z(x).sgn())), even),
    "lengths beyond a square": (lambda m, x: (z(x * 1e25).abs(), z(x * 1e-30).abs(), z(x * 1e25).angle()), even),
    "lengths of zero": (lambda m, x: (z(x * 0).abs(), z(x * 0).angle(), *each(z(x * 0).sgn())), even),
    "lengths without end": (
        lambda m, x: (
            torch.complex(x / 0, x).abs(),
            torch.complex(x / 0, x / 0).angle(),
            torch.complex(x, x / 0).angle(),
        ),
        even,
    ),
    "angles on the axes": (
        lambda m, x: (
            torch.complex(torch.tensor([1.0, -1, 0, 0, -1, -0.0]), torch.tensor([0.0, 0, 1, -1, -0.0, 0])).angle()
            + x[..., :1]
        ),
        even,
    ),
    "polar": (lambda m, x, y: each(torch.polar(x.abs(), y), torch.polar(torch.ones_like(x), y[:, :1])), pairs),
    "complex from real": (lambda m, x: each(x.to(torch.complex64), x + 0j, torch.complex(x, torch.zeros(3, 8))), even),
    "real from complex": (lambda m, x: (z(x).abs().half(), z(x).real.double()), even),
    # arithmetic
    "sums": (lambda m, x, y: each(z(x) + z(y), z(x) + y, x - z(y), z(x) - 1j, torch.add(z(x), z(y), alpha=2)), pairs),
    "products": (lambda m, x, y: each(z(x) * z(y), z(x) * y, 1j * x, z(x) * 2, z(x) * (2 - 1j), -z(x)), pairs),
    "quotients": (lambda m, x, y: each(z(x) / z(y), z(x) / 3, 2 / z(x), x / z(y), z(x).reciprocal(), z(x) / 2j), pairs),
    "quotients of large numbers": (lambda m, x, y: each(z(x * 1e25) / z(y * 1e25)), pairs),
    "powers": (lambda m, x: each(z(x).square(), z(x) ** 2, z(x) ** 3), even),
    "exp and log": (lambda m, x: each(z(x).exp(), z(x).log(), torch.exp(1j * x)), even),
    "matmul": (lambda m, x, y: each(z(x) @ z(y).mT, torch.bmm(z(x), z(y).transpose(1, 2)), z(x) @ z(y).mH), pairs),
    "einsum": (
        lambda m, x, y: each(
            torch.einsum("bij,bkj->bik", z(x), z(y)),
            torch.einsum("bij,bij->bj", z(x), z(y)),
            torch.einsum("bij->bji", z(x)),
        ),
        pairs,
    ),
    "linear": (lambda m, x: each(F.linear(z(x), m.weight, m.bias)), even),
    # moves
    "slices": (lambda m, x: each(z(x)[:, 1:], z(x)[..., 2], z(x)[:, ::2], z(x)[:, None], z(x)[:, :, [1, 0]]), even),
    "shapes": (
        lambda m, x: each(z(x).flatten(1), z(x).reshape(-1, 2, 4), z(x).transpose(-1, -2), z(x).permute(2, 0, 1)),
        even,
    ),
    "joined": (
        lambda m, x, y: each(torch.cat([z(x), z(y)], -1), torch.stack([z(x), y], 1), torch.cat([x, z(y)])),
        pairs,
    ),
    "split": (lambda m, x: each(*z(x).chunk(2, -1), *z(x).unbind(1), *z(x).split([1, 2], 1)), even),
    "spread": (
        lambda m, x: each(z(x)[:, :1].expand(-1, 4, -1), z(x).repeat(1, 2, 1), z(x).flip(-1), z(x).roll(1, -1)),
        even,
    ),
    "filled": (
        lambda m, x: each(
            z(x).masked_fill(x > 0, 1j),
            torch.where(x > 0, z(x), 0),
            torch.full((2,), 1 + 2j) * z(x)[..., :2],
            torch.zeros_like(z(x)) + torch.ones(8, dtype=torch.cfloat),
        ),
        even,
    ),
    "padded": (lambda m, x: each(F.pad(z(x), (1, 2)), F.pad(z(x), (1, 0), value=2.0)), even),
    "reduced": (lambda m, x: each(z(x).sum(-1), z(x).mean(1, keepdim=True), z(x).sum(), z(x).cumsum(1)), even),
    # short-time transforms
    "stft": (lambda m, x: torch.stft(x, 8, 2, window=torch.hann_window(8), return_complex=True).abs(), signals),
    "stft of one signal": (lambda m, x: parts(torch.stft(x, 8, window=m.window, return_complex=True)), one_signal),
    "stft with a short window": (
        lambda m, x: parts(
            torch.stft(
                x, 9, 3, 6, torch.hamming_window(6), center=False, normalized=True, onesided=False, return_complex=True
            )
        ),
        signals,
    ),
    "stft padded with zeros": (
        lambda m, x: parts(torch.stft(x, 8, 3, pad_mode="constant", window=m.window, return_complex=True)),
        signals,
    ),
    "stft of a complex signal": (
        lambda m, x: parts(torch.stft(z(x), 8, 4, window=m.window, center=False, return_complex=True)),
        signals,
    ),
    "windows": (
        lambda m, x: tuple(
            x * w
            for w in (
                *(torch.hann_window(48), torch.hann_window(48, periodic=False), torch.hamming_window(48, True, 0.6)),
                *(torch.blackman_window(48), torch.bartlett_window(48), torch.kaiser_window(48, True, 5.0)),
            )
        ),
        signals,
    ),
    "istft": (
        lambda m, x: torch.istft(torch.stft(x, 8, 2, window=m.window, return_complex=True), 8, 2, window=m.window),
        signals,
    ),
    "istft of a length": (
        lambda m, x: torch.istft(
            torch.stft(x, 8, 3, window=m.wide, normalized=True, return_complex=True),
            8,
            3,
            None,
            m.wide,
            True,
            True,
            None,
            46,
        ),
        signals,
    ),
    "istft of whole spectra": (
        lambda m, x: torch.istft(
            torch.stft(x, 8, 2, window=m.wide, onesided=False, center=False, return_complex=True),
            8,
            2,
            None,
            m.wide,
            False,
            onesided=False,
        ),
        signals,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_operators(name):
    function, inputs = CASES[name]
    torch.manual_seed(0)
    module = {
        "window": torch.hann_window(8),
        "wide": torch.hamming_window(8),
        "weight": torch.randn(5, 8, dtype=torch.cfloat),
        "bias": torch.randn(5, dtype=torch.cfloat),
    }
    batches = (3,) if inputs is one_signal else (3, 2)
    source = Calls(function, **module)
    model = ix.from_torch(source, inputs(3), "batch" if len(batches) > 1 else None)
    for batch in batches:
        check_outputs(source, model, inputs(batch))


class Spectral(nn.Module):
    """The layer of a Fourier neural operator: complex weights, the low frequencies written into zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 3, dtype=torch.cfloat))
        self.register_buffer("turn", torch.polar(torch.ones(5), torch.arange(5.0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spectrum = fft.rfft(x)
        low = torch.zeros(x.shape[0], 3, spectrum.shape[-1], dtype=spectrum.dtype)
        low[:, :, :3] = torch.einsum("bix,iox->box", spectrum[:, :, :3], self.weight)
        return fft.irfft(low * self.turn, n=x.size(-1))


class Rotary(nn.Module):
    """Rotary positions by complex numbers, as LLaMA's first code has them."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)
        turns = torch.outer(torch.arange(5.0), 1 / 100 ** (torch.arange(4) / 4))
        self.register_buffer("turns", torch.polar(torch.ones_like(turns), turns), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = torch.view_as_complex(self.project(x).float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(q * self.turns).flatten(-2).type_as(x)


class Mixing(nn.Module):
    """FNet's mixing, and a spectrogram that is learned from."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> Any:
        y = fft.fft2(self.project(x)).real
        lengths = torch.stft(y.flatten(1), 8, 4, window=torch.hann_window(8, dtype=x.dtype), return_complex=True).abs()
        return y, lengths, fft.irfft(fft.rfft(y) * torch.polar(torch.sigmoid(y[..., :5]), y[..., 1:6]), n=8)


def tokens(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(b, 5, 8),)


@pytest.mark.parametrize(("make", "inputs"), [(Spectral, even), (Rotary, tokens), (Mixing, tokens)])
def test_layers(make, inputs):
    check_layer(make, inputs)


def test_gradients():
    check_layer_in_training(Mixing, tokens)


def test_gradients_at_zero():
    class Lengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(4))

        def forward(self, x: torch.Tensor) -> Any:
            made = torch.complex(x * self.scale, x * self.scale * 2)
            return made.abs(), made.sgn().real + torch.complex(x, self.scale).angle()

    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64)
    module = Lengths().double()
    found, _ = module(x)
    found.sum().backward()
    import jax

    model = ix.from_torch(module, (x,), None)
    with jax.enable_x64(True):
        gradient = jax.grad(lambda p: model.layer.apply(p, model.states, x.numpy(), train=True)[0][0].sum())(
            model.params
        )
    np.testing.assert_array_equal(np.asarray(gradient["scale"]), module.scale.grad.numpy())


def test_complex_parameters_are_stored_as_pairs_and_go_back():
    torch.manual_seed(0)
    module = Spectral().eval()
    model = ix.from_torch(module, even(3))
    assert model.params["weight"].shape == (3, 3, 3, 2) and model.params["weight"].dtype == np.float32
    back = ix.torch_state_dict(model)
    assert back["weight"].dtype == torch.complex64 and torch.equal(back["weight"], module.weight)
    Spectral().load_state_dict(back)


def test_gradients_of_complex_parameters():
    import jax

    torch.manual_seed(0)
    module = Spectral()
    (x,) = even(3)
    model = ix.from_torch(module, (x,), None)
    module(x).square().sum().backward()
    loss = lambda p: (model.layer.apply(p, model.states, x.numpy(), train=True)[0] ** 2).sum()  # noqa: E731
    with jax.enable_x64(True):  # DFT computes in float64
        found = np.asarray(jax.grad(loss)(model.params)["weight"])
    np.testing.assert_allclose(found, torch.view_as_real(module.weight.grad).numpy(), rtol=1e-4, atol=1e-5)


def test_writes_into_complex_tensors():
    def write(m: Any, x: torch.Tensor) -> Any:
        y = z(x)
        y[:, 0] *= 2
        y.real[:, 1] = 5.0
        torch.view_as_real(y)[:, 2].mul_(3)
        y[..., 1:3].imag.add_(x[..., 1:3])
        y.transpose(1, 2)[:, 4] = 1j
        flat = x.clone().reshape(-1, 4, 2)
        torch.view_as_complex(flat).mul_(1j)
        return parts(y), flat

    check_operator(write, even)


REFUSED: dict[str, tuple[Callable[..., Any], Callable[[int], Any], str]] = {
    "complex inputs": (lambda m, x: x.abs(), lambda b: (torch.randn(b, 4, dtype=torch.cfloat),), "is complex; give"),
    "complex results": (lambda m, x: fft.fft(x), even, "result 0 of the module is complex; return"),
    "other operators": (lambda m, x: fft.fft(x).tanh().abs(), even, r"aten\.tanh\.default of complex tensors"),
    "other powers": (lambda m, x: (z(x) ** 0.5).abs(), even, "complex numbers to the power 0.5"),
    "einsum of three": (
        lambda m, x: torch.einsum("bij,bij,bij->bi", z(x), z(x), z(x)).abs(),
        even,
        "einsum of more than two complex tensors",
    ),
    "complex windows": (
        lambda m, x: torch.stft(x, 8, 4, window=torch.ones(8) * 1j, onesided=False, return_complex=True).abs(),
        signals,
        "stft with a complex window",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    function, inputs, message = REFUSED[name]
    with pytest.raises(ix.UnsupportedError, match=message):
        ix.from_torch(Calls(function), inputs(3), None)
