"""What the tests of several folders share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

import interlux as ix
from interlux.converters.torch.arrays import to_numpy


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
    check_batches(module, model, [inputs], backends, limit)


def check_batches(
    module: torch.nn.Module,
    model: ix.Model,
    batches: Iterable[Iterable[torch.Tensor]],
    backends: tuple[str, ...] = ("jax", "onnxruntime"),
    limit: float = 4.0,
) -> None:
    """As `check_outputs`, for the inputs of several batches; the source's error of an output is the largest of the
    batches, since that of a few numbers can be small by chance."""
    source = ix.api.source_of(module, model)
    runs = []
    for inputs in batches:
        arrays = [x.numpy() for x in inputs]
        runs.append((arrays, source.run(arrays), source.run_float64(arrays)))
    errors = [
        [max(_error(mine, mine, exact), _floor(mine)) for mine, exact in zip(own, exacts, strict=True)]
        for _, own, exacts in runs
    ]
    allowed = [limit * max(of_output) for of_output in zip(*errors, strict=True)]
    for backend in backends:
        runner = ix.compile(model, backend)
        for arrays, own, exact in runs:
            results = runner.run(arrays)
            assert len(results) == len(own)
            for result, mine, reference, most in zip(results, own, exact, allowed, strict=True):
                _check_result(backend, result, mine, reference, most)


def _floor(own: np.ndarray) -> float:
    """Of the relative error: half a unit in the last place."""
    return 2.0 ** -(11 if own.dtype.itemsize == 2 else 24 if own.dtype.itemsize == 4 else 50)


def _error(result: np.ndarray, own: np.ndarray, exact: np.ndarray) -> float:
    """Relative to the exact values, where the source's own are finite."""
    if own.dtype.kind in "iub":
        return 0.0
    finite = np.isfinite(own)
    return relative(result[finite], exact[finite])


def _check_result(backend: str, result: np.ndarray, own: np.ndarray, exact: np.ndarray, most: float) -> None:
    assert result.shape == own.shape and result.dtype == own.dtype, (backend, result.dtype, own.dtype)
    if own.dtype.kind in "iub":
        np.testing.assert_array_equal(result, own, err_msg=backend)
        return
    np.testing.assert_array_equal(np.isnan(result), np.isnan(own), err_msg=backend)
    finite = np.isfinite(own)
    np.testing.assert_array_equal(result[~finite], own[~finite], err_msg=backend)
    error = _error(result, own, exact)
    assert error <= most, (backend, error, most)


def in_order(model: ix.Model, arguments: Mapping[str, Any]) -> list[torch.Tensor]:
    """Keyword arguments in the order of the signature."""
    given = {name: to_numpy(value) for name, value in arguments.items()}
    return [torch.from_numpy(np.asarray(a)) for a in model.require_signature().bind((), given)]


def check_training(
    module: torch.nn.Module,
    model: ix.Model,
    inputs: Iterable[torch.Tensor] | Mapping[str, torch.Tensor],
    tolerance: float = 1e-10,
) -> None:
    """Outputs, gradients of all parameters and the states after one step in training, against PyTorch; needs
    float64."""
    import jax

    layer, params, states = model
    module.train()
    if isinstance(inputs, Mapping):
        arrays = [x.numpy() for x in in_order(model, inputs)]
        made = module(**inputs)
    else:
        inputs = list(inputs)
        arrays = [x.numpy() for x in inputs]
        made = module(*inputs)
    outputs = [y for y in tensors(made) if y.is_floating_point()]
    weights = [np.random.default_rng(i).standard_normal(tuple(y.shape)) for i, y in enumerate(outputs)]
    if any(p.requires_grad for p in module.parameters()):
        sum((y * torch.tensor(w)).sum() for y, w in zip(outputs, weights, strict=True)).backward()

    def loss(params: Any) -> Any:
        results, new = layer.apply(params, states, *arrays, train=True)
        results = results if isinstance(results, tuple) else (results,)
        floats = [y for y in results if y.dtype.kind == "f"]
        return sum((y * w).sum() for y, w in zip(floats, weights, strict=True)), (floats, new)

    with jax.enable_x64(True):
        gradients, (floats, new) = jax.jit(jax.grad(loss, has_aux=True))(params)
    for mine, expected in zip(floats, outputs, strict=True):
        assert relative(mine, expected.detach()) <= tolerance
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
            error = np.abs(np.asarray(value, np.float64) - expected).max(initial=0)
            assert error <= tolerance * np.abs(expected).max(initial=0), ix.trees.name_of(path)
