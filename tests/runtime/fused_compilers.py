"""Compilers of a single Dense layer, made by hand, in place of the engine's where only its callers are tested."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from interlux.ir.errors import UnsupportedError
from interlux.ir.foreign import Kind
from interlux.ir.layers import Dense
from interlux.runtime.fused.entry import Native
from interlux.runtime.fused.llvm import PTR, type_of
from tests.runtime.fused_functions import finish, start


@functools.cache
def dense(features: int, outputs: int, dtype: str) -> Native:
    """y = x·Wᵀ + b by two loops; parameters: W transposed, then a constant 7 that nothing reads, then b."""
    f, kind = start(), type_of(dtype)
    x, y = (f.load(f[name].of(PTR)).of(kind) for name in ("inputs", "outputs"))
    weight = f["parameters"].of(kind)
    bias = weight + (features * outputs + 1)
    with f.loop(0, f["batch"]) as row, f.loop(0, outputs + 1) as j, f.when(j < outputs):
        total = f.variable(0.0, kind)
        total.set(f.load(bias + j))
        with f.loop(0, features + 1) as i, f.when(i < features):
            total.set(total.get() + f.load(x + (row * features + i)) * f.load(weight + (i * outputs + j)))
        f.store(total.get(), y + (row * outputs + j))
    ports = [Kind((n,), np.dtype(dtype)) for n in (features, outputs)]
    key = f"dense {features} {outputs} {dtype}".encode()
    return finish(f, ports[:1], ports[1:], np.zeros(0), nanoseconds=1e3, key=key)


class Compiler:
    """Compiles Dense layers; counts how often it is asked.

    With `folds` the packed weights are computed, as where a BatchNorm is folded into them: here as (3·W) / 3.
    """

    def __init__(self, folds: bool = False):
        self.calls, self._folds = 0, folds

    def __call__(self, layer: Any, params: Any, states: Any, inputs: tuple[Kind, ...]) -> Native:
        self.calls += 1
        if type(layer) is not Dense:
            raise UnsupportedError("the fused engine does not take these layers", [type(layer).__name__])
        dtype = inputs[0].dtype
        function = dense(layer.in_features, layer.out_features, dtype.name)
        weight = np.asarray(params["weight"])
        if self._folds:
            weight = weight * dtype.type(3) / dtype.type(3)
        seven = np.full(1, 7, dtype)
        bias = params.get("bias", np.zeros(layer.out_features, dtype))
        blob = np.concatenate([weight.T.reshape(-1), seven, bias]).astype(dtype)
        return Native(
            function.address, function.inputs, function.outputs, blob, nanoseconds=1e3,
            key=function.key, owner=function.owner,
        )  # fmt: skip
