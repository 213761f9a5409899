"""The fused engine behind `ix.compile(model, backend="fused")` and `ix.to_fused`."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np

from ...ir.errors import UnsupportedError
from ...ir.foreign import Kind
from ...ir.graph import graph_of
from ...ir.layer import Layer
from ...ir.model import Model
from ...ir.trees import Tree
from ..runner import Runner
from . import target as targets
from .cache import ObjectCache, key_of
from .entry import Entry, Native, checked_threads
from .generate import generate
from .llvm import assemble
from .passes import optimised
from .program import arrangement, check_first, program_of, record
from .saved import Built, key_of_layer, loaded, saved
from .split import split
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
    arranged = tuple(arrangement(t) for t in program.outputs)
    outputs = tuple(
        Kind(t.shape[first:] if own is None else (t.size,), t.dtype)
        for t, own in zip(program.outputs, arranged, strict=True)
    )
    return Built(binary, inputs, outputs, code.parameters, code.arena, code.grain, arranged if any(arranged) else ())


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
    program = record(layer, params, states, kinds, True)
    check_first(program)
    made = built(program, targets.host())
    return loaded(replace(made, inputs=tuple(inputs)))


class FusedRunner(Runner):
    """A model as one native function on the CPU.

    Arguments:
        model: any model with a signature and fixed sizes behind the batch.
        device: cpu.
        threads: at most so many compute one batch; None is all cores.
        target: avx512, avx2, sse2, neon or scalar in place of what this machine has.
        weights: bfloat16: large weights are rounded to it and take half the memory. `notes` states the error: how far
            outputs then are from those with all digits, on normal inputs.
    """

    backend = "fused"

    def __init__(
        self,
        model: Model,
        device: str = "cpu",
        threads: int | None = None,
        target: str | None = None,
        weights: str | None = None,
    ):
        super().__init__(model, device)
        if device != "cpu":
            raise UnsupportedError(f"the fused engine runs on the CPU, not on {device!r}")
        self.target = target_named(target)
        key = key_of_layer(
            self.target, model.layer, model.params, model.states, (), str(self.signature.inputs), weights
        )
        self.native = _shaped(saved(key, lambda: built(program_of(model, weights), self.target)), model)
        self._batched = any(not isinstance((s.shape or (0,))[0], int) for s in self.signature.inputs)
        self.entry = Entry(self.native, self.signature if self._batched else None, threads)
        if self._batched and not self.native.arranged:
            self.entry.attach(self)
        self.notes: tuple[str, ...] = ()
        if weights is not None:
            self.notes = (_stated(self, FusedRunner(model, device, threads, target)),)

    def __copy__(self) -> FusedRunner:
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise UnsupportedError("a compiled model is code in this process's memory; save the model with ix.save and "
                               "compile it again")  # fmt: skip

    def run(self, arrays: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        if not self._batched:
            return tuple(y[0] for y in self.entry.call(*(np.asarray(a, order="C")[None] for a in arrays)))
        outputs = self.entry.call(*arrays)
        if not self.native.arranged:
            return tuple(outputs)
        pairs = zip(outputs, self.native.arranged, strict=True)
        return tuple(y if shape is None else _batched(y, shape) for y, shape in pairs)


def _batched(output: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An output [batch, n] in the model's shape, which has -1 on the batch's axis."""
    rows = output.size // math.prod(d for d in shape if d != -1) if output.size else 0
    return output.reshape([rows if d == -1 else d for d in shape])


def _stated(rounded: FusedRunner, exact: FusedRunner) -> str:
    """How far the outputs with rounded weights are from the others, in words."""
    from ..verify.probes import SIZE_SETS, combinations, normals

    signature = rounded.signature
    sizes = list(combinations(signature, SIZE_SETS[1]))[-1]
    parts = []
    probes = list(normals(signature, {}, 2, sizes))
    results = [(rounded.run(probe.arrays), exact.run(probe.arrays)) for probe in probes]
    for i, spec in enumerate(signature.outputs):
        if np.dtype(spec.dtype).kind != "f":
            continue
        found, wanted = (np.concatenate([np.ravel(result[k][i]) for result in results]) for k in (0, 1))
        error, size = (float(np.sqrt(np.mean(np.square(a, dtype=np.float64)))) for a in (found - wanted, wanted))
        parts.append(f"{spec.name} {error:.1e} (root mean square; its own is {size:.1e})")
    about = "; ".join(parts) or "no output is a floating-point number"
    return f"large weights are rounded to bfloat16, by up to 0.2 %; error of the outputs on normal inputs: {about}"


class SplitRunner(Runner):
    """A model of which the fused engine takes a part and onnxruntime the rest.

    Arguments:
        model, device, threads, target, weights: as for `FusedRunner`.

    `parts` says what is computed where, in order; `notes` says it in words.
    """

    backend = "fused"

    def __init__(
        self,
        model: Model,
        device: str = "cpu",
        threads: int | None = None,
        target: str | None = None,
        weights: str | None = None,
    ):
        from ..onnx import OnnxRunner

        super().__init__(model, device)
        self.parts = split(model)
        self._runners = [
            FusedRunner(part.model, device, threads, target, weights)
            if part.backend == "fused"
            else OnnxRunner(part.model, device, threads or 0)
            for part in self.parts
        ]
        graph = graph_of(model.layer)
        whole = graph is None or self.parts[0].model is model  # then values have the names of the signature
        self._inputs = [s.name for s in self.signature.inputs] if whole or graph is None else graph.inputs
        self._outputs = [s.name for s in self.signature.outputs] if whole or graph is None else graph.outputs
        others = [part for part in self.parts if part.backend != "fused"]
        count, total = (sum(len(part.layers) for part in parts) for parts in (others, self.parts))
        reasons = "; ".join(reason for part in others for reason in part.reasons)
        self.notes = (f"onnxruntime computes {count} of {total} layers; the fused engine does not take {reasons}",)
        self.notes += tuple(note for runner in self._runners for note in getattr(runner, "notes", ()))

    def run(self, arrays: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        values = dict(zip(self._inputs, arrays, strict=True))
        for part, runner in zip(self.parts, self._runners, strict=True):
            signature = part.model.require_signature()
            made = runner.run([values[spec.name] for spec in signature.inputs])
            values.update(zip((spec.name for spec in signature.outputs), made, strict=True))
        return tuple(values[name] for name in self._outputs)


def runner_of(
    model: Model,
    device: str = "cpu",
    threads: int | None = None,
    target: str | None = None,
    weights: str | None = None,
    fallback: str | None = None,
) -> FusedRunner | SplitRunner:
    """What `ix.compile(model, backend="fused")` returns.

    Arguments:
        model, device, threads, target, weights: see `FusedRunner`.
        fallback: None, or onnxruntime for the layers that the engine does not take. Then a warning names them, and the
            runner's `parts` and `notes` say what is computed where.

    Raises UnsupportedError naming every layer that is not taken, without a fallback.
    """
    if fallback not in (None, "onnxruntime"):
        raise UnsupportedError(f"there is no fallback {fallback!r}; choose onnxruntime or None")
    if not isinstance(target, str | Target | None):
        raise UnsupportedError(f"target is the name of one, or None for this machine, not {target!r}")
    threads = checked_threads(threads)
    try:
        return FusedRunner(model, device, threads, target, weights)
    except UnsupportedError:
        if fallback is None or device != "cpu":
            raise
        target_named(target)  # what is wrong with it is not the model's fault
    runner = SplitRunner(model, device, threads, target, weights)
    warnings.warn(runner.notes[0], stacklevel=3)
    return runner


def _shaped(native: Native, model: Model) -> Native:
    """The function with the shapes of the model's inputs."""
    signature = model.require_signature()
    batched = any(not isinstance((s.shape or (0,))[0], int) for s in signature.inputs)
    inputs = tuple(
        Kind(tuple(spec.shape or ())[1 if batched else 0 :], kind.dtype)  # type: ignore[arg-type]
        for spec, kind in zip(signature.inputs, native.inputs, strict=True)
    )
    return Native(**{**native.__dict__, "inputs": inputs})
