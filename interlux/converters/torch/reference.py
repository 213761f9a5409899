"""A PyTorch network as the source that conversions are compared with, in its own dtype and in float64."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ...ir.errors import InvalidModelError
from ...ir.graph import graph_of
from ...ir.layers.control import Control
from ...ir.model import Model, filled
from .arrays import to_numpy, to_torch

_WIDER = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    torch.complex64: torch.complex128,
}


class _InFloat64(TorchDispatchMode):
    """Makes code that names a float type itself (x.float(), zeros(…, dtype=float32)) compute in float64.

    Without it, a model that casts to float32 inside would have a "float64" reference that is wrong in the 8th digit.
    """

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def widen(value: Any) -> Any:
            return _WIDER.get(value, value) if isinstance(value, torch.dtype) else value

        if isinstance(func, torch._ops.HigherOrderOperator):
            return func(*args, **(kwargs or {}))
        args, kwargs = (pytree.tree_map(widen, part) for part in (args, kwargs or {}))
        if "fake_quantize" in str(func):  # their scales are float32 whatever they are applied to
            rest = (a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args[1:])
            return func(args[0], *rest, **kwargs)
        if func.namespace == "quantized_decomposed":  # these take nothing wider than float32
            narrow = (
                a.float() if i == 0 and isinstance(a, torch.Tensor) and a.is_floating_point() else a
                for i, a in enumerate(args)
            )
            return pytree.tree_map(_double, func(*narrow, **kwargs))
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype is torch.float64:
            return _grouped_mm(*args, **kwargs)
        return func(*args, **kwargs)


def _grouped_mm(
    x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor, bias: None = None, dtype: object = None
) -> torch.Tensor:
    """`torch._grouped_mm` of rows [rows, features] by matrices [groups, features, units] (what is imported of it),
    which has no kernel for float64."""
    products = x.new_zeros(x.shape[0], weight.shape[2])
    start = 0
    for matrix, end in zip(weight, ends.tolist(), strict=True):
        products[start:end] = x[start:end] @ matrix
        start = end
    return products


@contextmanager
def _default_float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def without_fast_path() -> Iterator[None]:
    """torch.export doesn't take nn.TransformerEncoder's fast path, whose results differ at padded positions."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _double(value: Any) -> Any:
    return value.to(_WIDER[value.dtype]) if isinstance(value, torch.Tensor) and value.dtype in _WIDER else value


class TorchSource:
    """A module or exported program as a reference.

    Arguments:
        source: an nn.Module, or an exported program.
        model: what was imported from it; its signature says how to call the source.
    """

    def __init__(self, source: torch.nn.Module | torch.export.ExportedProgram, model: Model):
        self._arguments = None  # how they nest, where their classes matter
        if isinstance(source, torch.export.ExportedProgram):
            self._arguments = source.call_spec.in_spec
            self.description = "the exported program in PyTorch"
            self._module: torch.nn.Module = source.module(check_guards=False)
            with warnings.catch_warnings():
                # torch's own, about copying its pytree specifications
                warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec")
                twin = copy.deepcopy(source)
            self._wide: torch.nn.Module = _widened(twin).module(check_guards=False)
        else:
            self.description = f"{type(source).__name__} in PyTorch"
            self._module, self._wide = copy.deepcopy(source), copy.deepcopy(source)
            for module in (self._module, self._wide):
                if module.training:  # else as it was found, layers that stay active included
                    module.eval()
            _widen_module(self._wide)
        self._signature = model.require_signature()
        graph = graph_of(model.layer)
        # torch.cond and its like compile themselves, which a mode prevents, and then fail when they are called again
        self._compiles = graph is not None and any(isinstance(node.layer, Control) for node in graph.nodes)

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """The source's outputs in its own dtype, in the order of the signature."""
        return self._call(self._module, [to_torch(a) for a in arrays])

    def run_float64(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """The same computed in float64 throughout; integers stay."""
        tensors = [_double(to_torch(a)) for a in arrays]  # not inside: it reads bits as bfloat16
        if self._compiles:
            with _default_float64():
                return self._call(self._wide, tensors)
        with _default_float64(), _InFloat64(), torch.compiler.set_stance("force_eager"):
            return self._call(self._wide, tensors)

    def _call(self, module: torch.nn.Module, tensors: list[torch.Tensor]) -> list[np.ndarray]:
        form = self._signature.in_structure
        args: list[Any] = tensors
        kwargs: dict[str, Any] = {}
        if form is not None:
            args = [filled(s, tensors) for s in form["args"].values()]
            kwargs = {name: filled(s, tensors) for name, s in form["kwargs"].items()}
            if self._arguments is not None:
                args, kwargs = pytree.tree_unflatten(pytree.tree_leaves((args, kwargs)), self._arguments)
        with torch.no_grad(), without_fast_path():
            results = [x for x in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(x, torch.Tensor)]
        if len(results) != len(self._signature.outputs):
            raise InvalidModelError(
                f"the source gives {len(results)} tensors, the model {len(self._signature.outputs)}"
            )
        return [to_numpy(r) for r in results]


def _widen_module(module: torch.nn.Module) -> None:
    module._apply(_double)  # as double() does, complex tensors too
    for part in module.modules():  # tensors that are plain attributes are not moved
        for name, value in list(vars(part).items()):
            if isinstance(value, torch.Tensor):
                setattr(part, name, _double(value))


def _widened(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    for store in (program.state_dict, program.constants):
        for name, value in store.items():
            wide = _double(value)
            if isinstance(value, torch.nn.Parameter) and wide is not value:
                wide = torch.nn.Parameter(wide.detach(), value.requires_grad)
            store[name] = wide
    return program
