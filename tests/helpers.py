"""What the tests of several folders share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

import interlux as ix


def relative(a: Any, b: Any) -> float:
    """Relative L2 distance of a from b."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    scale = np.linalg.norm(b)
    return float(np.linalg.norm(a - b) / scale) if scale else float(np.linalg.norm(a - b))


class Calls(torch.nn.Module):
    """A module whose forward is a function of itself and the inputs."""

    def __init__(self, function: Callable[..., Any], **parts: Any):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, torch.nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def tensors(tree: Any) -> list[torch.Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


def check_outputs(
    module: torch.nn.Module,
    model: ix.Model,
    inputs: Iterable[torch.Tensor],
    backends: tuple[str, ...] = ("jax", "onnxruntime"),
    limit: float = 4.0,
) -> None:
    """The error ratio of every output on every backend, integers exactly; the source in its own dtype is the
    measure."""
    arrays = [x.numpy() for x in inputs]
    source = ix.api.source_of(module, model)
    own, exact = source.run(arrays), source.run_float64(arrays)
    for backend in backends:
        results = ix.compile(model, backend).run(arrays)
        assert len(results) == len(own)
        for result, mine, reference in zip(results, own, exact, strict=True):
            assert result.shape == mine.shape and result.dtype == mine.dtype, (backend, result.dtype, mine.dtype)
            if mine.dtype.kind in "iub":
                np.testing.assert_array_equal(result, mine, err_msg=backend)
                continue
            np.testing.assert_array_equal(np.isnan(result), np.isnan(mine), err_msg=backend)
            finite = np.isfinite(mine)
            floor = 2.0 ** -(11 if mine.dtype.itemsize == 2 else 24 if mine.dtype.itemsize == 4 else 50)
            error = relative(result[finite], reference[finite])
            assert error <= limit * max(relative(mine[finite], reference[finite]), floor), (backend, error)


def check_training(
    module: torch.nn.Module, model: ix.Model, inputs: Iterable[torch.Tensor], tolerance: float = 1e-10
) -> None:
    """Gradients of all parameters and the states after one step in training, against PyTorch; needs float64."""
    import jax

    inputs = list(inputs)
    layer, params, states = model
    arrays = [x.numpy() for x in inputs]
    module.train()
    outputs = [y for y in tensors(module(*inputs)) if y.is_floating_point()]
    found, _ = layer.apply(params, states, *arrays, train=True)
    floats = [y for y in (found if isinstance(found, tuple) else (found,)) if y.dtype.kind == "f"]
    for mine, expected in zip(floats, outputs, strict=True):
        assert relative(mine, expected.detach()) <= tolerance
    weights = [np.random.default_rng(i).standard_normal(tuple(y.shape)) for i, y in enumerate(outputs)]
    if any(p.requires_grad for p in module.parameters()):
        sum((y * torch.tensor(w)).sum() for y, w in zip(outputs, weights, strict=True)).backward()

    def loss(params: Any) -> Any:
        results, new = layer.apply(params, states, *arrays, train=True)
        results = results if isinstance(results, tuple) else (results,)
        floats = [y for y in results if y.dtype.kind == "f"]
        return sum((y * w).sum() for y, w in zip(floats, weights, strict=True)), new

    with jax.enable_x64(True):
        gradients, new = jax.jit(jax.grad(loss, has_aux=True))(params)
    found = {ix.trees.name_of(p): np.asarray(g) for p, g in ix.trees.leaves(gradients)}
    largest = max((float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None), default=1.0)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            expected = np.zeros(tuple(parameter.shape)) if parameter.grad is None else parameter.grad.numpy()
            assert np.abs(found[name] - expected).max(initial=0) <= tolerance * largest, name
    buffers = dict(module.named_buffers())
    for path, value in ix.trees.leaves(new):
        if ix.trees.name_of(path) in buffers:
            expected = buffers[ix.trees.name_of(path)].numpy()
            np.testing.assert_allclose(np.asarray(value), expected, rtol=tolerance, err_msg=ix.trees.name_of(path))
