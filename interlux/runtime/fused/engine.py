"""The fused engine behind `ix.compile(model, backend="fused")` and `ix.to_fused`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...ir.errors import UnsupportedError
from ...ir.foreign import Kind
from ...ir.layer import Layer
from ...ir.model import Model
from ...ir.trees import Tree
from ..runner import Runner
from . import target as targets
from .cache import ObjectCache, key_of
from .entry import Entry, Native
from .generate import generate
from .llvm import assemble
from .passes import optimised
from .program import program_of, record
from .saved import Built, key_of_layer, loaded, saved
from .steps import Program
from .target import Target


def built(program: Program, target: Target) -> Built:
    """A program compiled for a target; its code from the cache on disk where it was compiled before."""
    program = optimised(program)
    code = generate(program, target)
    objects, key = ObjectCache(), key_of(target, code.text)
    found = objects.get(key)
    binary = assemble(code.text, target) if found is None else found.object
    if found is None:
        objects.put(key, binary)
    first = 1 if program.batched else 0
    inputs = tuple(Kind((b.size,), b.dtype) for b in program.inputs)
    outputs = tuple(Kind(t.shape[first:], program.dtype) for t in program.outputs)
    return Built(binary, inputs, outputs, code.parameters, code.arena, code.grain)


def target_named(name: str | Target | None) -> Target:
    """A target that this machine can execute. Raises UnsupportedError for another one."""
    target = name if isinstance(name, Target) else targets.named(name or "host")
    if target.name not in [t.name for t in targets.executable()]:
        names = ", ".join(t.name for t in targets.executable())
        raise UnsupportedError(f"this machine cannot run code for {target.name}; choose host, {names}")
    return target


def compile_layer(layer: Layer, params: Tree, states: Tree, inputs: tuple[Kind, ...]) -> Native:
    """The native function of a layer in evaluation mode, with its packed parameters: see `layer.Compiler`."""
    kinds = [Kind((1, *kind.shape), kind.dtype) for kind in inputs]
    made = built(record(layer, params, states, kinds, True), targets.host())
    return loaded(replace(made, inputs=tuple(inputs)))


class FusedRunner(Runner):
    """A model as one native function on the CPU.

    Arguments:
        model: any model with a signature and fixed sizes behind the batch.
        device: cpu.
        threads: at most so many compute one batch; None is all cores.
        target: avx512, avx2, sse2, neon or scalar in place of what this machine has.
    """

    backend = "fused"

    def __init__(self, model: Model, device: str = "cpu", threads: int | None = None, target: str | None = None):
        super().__init__(model, device)
        if device != "cpu":
            raise UnsupportedError(f"the fused engine runs on the CPU, not on {device!r}")
        self.target = target_named(target)
        key = key_of_layer(self.target, model.layer, model.params, model.states, (), str(self.signature.inputs))
        self.native = _shaped(saved(key, lambda: built(program_of(model), self.target)), model)
        self._batched = any(not isinstance((s.shape or (0,))[0], int) for s in self.signature.inputs)
        self.entry = Entry(self.native, self.signature if self._batched else None, threads)
        if self._batched:
            self.entry.attach(self)

    def run(self, arrays: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        if not self._batched:
            return tuple(y[0] for y in self.entry.call(*(np.ascontiguousarray(a)[None] for a in arrays)))
        return tuple(self.entry.call(*arrays))


def _shaped(native: Native, model: Model) -> Native:
    """The function with the shapes of the model's inputs."""
    signature = model.require_signature()
    batched = any(not isinstance((s.shape or (0,))[0], int) for s in signature.inputs)
    inputs = tuple(
        Kind(tuple(spec.shape or ())[1 if batched else 0 :], kind.dtype)  # type: ignore[arg-type]
        for spec, kind in zip(signature.inputs, native.inputs, strict=True)
    )
    return Native(**{**native.__dict__, "inputs": inputs})
