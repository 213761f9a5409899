"""Models that the fused engine takes in part: onnxruntime computes the rest, and the runner says so."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("llvmlite")
pytest.importorskip("onnxruntime")

import interlux as ix
from interlux.ir.errors import UnsupportedError


class Sorted(nn.Module):
    """Takes turns: native, sorted by onnxruntime, native again, with a value that goes around the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.tanh(self.first(x))
        z = torch.cumsum(y, 1) + y
        return self.second(torch.relu(z).reshape(z.shape[0], 2, 4).flatten(1)), z.argmax(1)


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(torch.exp(torch.cumsum(x * 2, 1)) * 0.5, 1).values - 1


def check(module: nn.Module, x: torch.Tensor) -> ix.Model:
    model = ix.from_torch(module.eval(), (x,))
    with pytest.warns(UserWarning, match="onnxruntime computes"):
        runner = ix.compile(model, backend="fused", fallback="onnxruntime", threads=1)
    for batch in (1, 2, 17, 40):
        given = torch.randn(batch, *x.shape[1:])
        with torch.inference_mode():
            expected = module(given)
        made = runner(given.numpy())
        for y, truth in zip(made, expected if isinstance(expected, tuple) else (expected,), strict=True):
            np.testing.assert_allclose(y, truth.numpy(), rtol=1e-5, atol=1e-6)
    return runner


def test_what_is_not_taken_is_computed_by_onnxruntime():
    runner = check(Sorted(), torch.randn(3, 6))
    assert [part.backend for part in runner.parts][:3] == ["fused", "onnxruntime", "fused"]
    assert "CumSum" in runner.notes[0] and "second" not in runner.notes[0]


def test_parts_take_turns():
    runner = check(Twice(), torch.randn(3, 5))
    assert [part.backend for part in runner.parts] == ["fused", "onnxruntime", "fused", "onnxruntime", "fused"]


def test_a_model_of_another_dtype_is_onnxruntimes():
    model = ix.from_torch(nn.Linear(2, 3).half().eval(), (torch.randn(3, 2).half(),))
    with pytest.warns(UserWarning, match="float32 or float64 throughout"):
        runner = ix.compile(model, backend="fused", fallback="onnxruntime")
    assert [part.backend for part in runner.parts] == ["onnxruntime"]
    assert runner(np.ones((4, 2), np.float16))[0].shape == (4, 3)


def test_without_need_nothing_is_said():
    model = ix.from_torch(nn.Linear(2, 3).eval(), (torch.randn(3, 2),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runner = ix.compile(model, backend="fused", fallback="onnxruntime")
    assert not hasattr(runner, "parts")


def test_wrong_options_are_one_line():
    model = ix.from_torch(nn.Linear(2, 3).eval(), (torch.randn(3, 2),))
    with pytest.raises(UnsupportedError, match="no fallback 'magic'"):
        ix.compile(model, backend="fused", fallback="magic")
    with pytest.raises(UnsupportedError, match="no target 'z80'"):
        ix.compile(model, backend="fused", fallback="onnxruntime", target="z80")
    with pytest.raises(UnsupportedError, match="runs on the CPU"):
        ix.compile(model, backend="fused", fallback="onnxruntime", device="cuda")
