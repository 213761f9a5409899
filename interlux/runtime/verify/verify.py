"""Runs source and targets on the probes and reports."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...ir import trees
from ...ir.dtypes import dtype_named
from ...ir.errors import InterluxError, InvalidModelError, ResourceLimitError, UnsupportedError
from ...ir.model import Model, Signature, TensorSpec, check_model
from ..runner import first_line
from . import probes as _probes
from .bounds import integer_bounds
from .compare import Comparison, Expected
from .depth import path_lengths
from .probes import BOUNDARY, CORRELATED, LARGE, NONFINITE, NORMAL, SMALL, SUBNORMAL, USER, Probe
from .report import Report, Row, describe_model, environment
from .source import Source

Run = Callable[[list[np.ndarray]], Sequence[Any]]
Makers = Mapping[str, Callable[[], Run]]
JITTERS = 2  # draws of the source's error besides its own run
# How much smaller float64's rounding error is than float32's
_DOUBLE_PER_SINGLE = 2.0**-29
MAX_SKIPPED = 3  # that are named in the notes
UNVERIFIABLE = "unverifiable: no output depends on the inputs, so that nothing can be compared"


def verify(
    source: Source,
    model: Model,
    backends: Sequence[str] | str = ("jax", "onnxruntime"),
    *,
    runners: Mapping[str, Run] | None = None,
    inputs: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    seeds: int = 3,
) -> Report:
    """Compares a converted model on some backends with its source, against the source's own run in float64.

    Arguments:
        source: what was converted.
        model: the result; its signature says how both are called.
        backends: of jax, onnxruntime and fused; one string names them with commas between.
        runners: more targets by label: functions of the input arrays, in the order of the signature, that return the
            outputs in order.
        inputs: arrays by input name, or the path of an .npz file with them, instead of the generated inputs.
        seeds: how many draws of normal numbers for each combination of dynamic sizes.

    Returns:
        A report. A backend that cannot be made or run is a row that did not pass.

    Raises UnsupportedError for an unknown backend, InvalidModelError if `inputs` don't fit the signature or the source
    itself runs on none of the inputs.
    """
    check_model(model, "verify")
    signature = model.require_signature()
    _refuse_containers(signature, inputs is not None)
    if isinstance(backends, str):
        backends = [name for part in backends.split(",") if (name := part.strip())]
    makers = {name: _maker(name, model) for name in backends}
    if runners:
        makers |= {label: lambda run=run: run for label, run in runners.items()}  # type: ignore[misc]
    if not makers:
        raise UnsupportedError("there is nothing to verify: name a backend (jax, onnxruntime, fused)")
    judged = _Judged(source, model)
    notes: list[str] = []
    if inputs is not None:
        judged.run([_probes.own(signature, inputs)], makers)
        judged.vary()
    else:
        judged.generate(makers, seeds, notes)
    if not judged.done:
        raise InvalidModelError(f"the source cannot be run, so that nothing can be verified: {judged.skipped[0][1]}")
    for name, reason in judged.skipped[:MAX_SKIPPED]:
        notes.append(f"inputs {name!r} were left out, the source does not take them: {reason}")
    if len(judged.skipped) > MAX_SKIPPED:
        notes.append(f"{len(judged.skipped) - MAX_SKIPPED} more inputs were left out for such reasons")
    return judged.report(tuple(notes))


@dataclass
class _Target:
    """One backend: how it runs (None when it has failed), and the comparison of each output."""

    run: Run | None
    outputs: list[Comparison]
    failure: tuple[str, str] | None = None  # (probe, reason)


@dataclass
class _Judged:
    """The state of one verification."""

    source: Source
    model: Model
    done: list[Probe] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    targets: dict[str, _Target] = field(default_factory=dict)
    seen: dict[tuple[Any, ...], list[np.ndarray]] = field(default_factory=dict)  # references by input shapes
    depends: set[int] = field(default_factory=set)  # outputs that differed between inputs of the same shapes

    def generate(self, makers: Makers, seeds: int, notes: list[str]) -> None:
        """Runs all generated probes, at sizes and with integers that the source takes."""
        signature = self.model.require_signature()
        bounds = integer_bounds(self.model)
        unknown = _probes.unbounded(signature, bounds)
        sizes = None
        for wanted in _probes.SIZE_SETS:
            combinations = list(_probes.combinations(signature, wanted))
            tried = dict(bounds)
            if unknown:
                limits = self._limits(combinations, bounds, unknown)
                tried |= dict.fromkeys(unknown, limits)
            for combination in combinations:
                if self.run(_probes.normals(signature, tried, seeds, combination), makers):
                    sizes = combination
            if sizes is not None or not _is_dynamic(signature.inputs):
                break
        if sizes is None:
            return
        self.run(_probes.specials(signature, tried, seeds, sizes), makers)
        exact = all(dtype_named(spec.dtype).kind in "iub" for spec in signature.outputs)
        rows = _probes.WIDE_INTEGERS if exact else _probes.WIDE
        for probes in _probes.wide(signature, tried, seeds + 1, sizes, rows):
            if self.run(probes, makers):
                break
        if unknown:
            low, high = limits
            notes.append(
                f"the range of integer input {', '.join(unknown)} is not known: numbers from {low} to {high} were used"
            )

    def _limits(
        self, combinations: list[dict[str, int]], bounds: Mapping[str, tuple[int, int]], unknown: list[str]
    ) -> tuple[int, int]:
        """The widest range of integers that the source takes."""
        signature = self.model.require_signature()
        for limits in _probes.INTEGER_RANGES[:-1]:
            ranges = {
                spec.name: (0, limits[1]) if dtype_named(spec.dtype).kind == "u" else limits
                for spec in signature.inputs
                if spec.name in unknown
            }
            for sizes in reversed(combinations):
                tests = [
                    *_probes.normals(signature, {**bounds, **ranges}, 1, sizes),
                    *(p for p in _probes.specials(signature, {**bounds, **ranges}, 0, sizes) if p.kind == BOUNDARY),
                ]
                try:
                    outputs = [y for p in tests for y in _guarded("the source", self.source.run, p.arrays)]
                except InterluxError:
                    continue
                # some frameworks give NaN for rows that a table doesn't have
                if all(np.isfinite(y).all() for y in map(np.asarray, outputs) if trees.is_float(y.dtype)):
                    return limits
        return _probes.INTEGER_RANGES[-1]

    def run(self, probes: Iterable[Probe], makers: Makers) -> int:
        """Runs source and targets. Returns how many of the probes the source takes."""
        before = len(self.done)
        for probe in probes:
            try:
                expected = self._expected(probe)
            except InterluxError as error:
                if probe.kind != NONFINITE:
                    self.skipped.append((probe.name, first_line(error)))
                continue
            self.done.append(probe)
            if probe.kind != NONFINITE:
                self._see(probe.arrays, expected.reference)
            alternatives = [expected]
            if probe.kind == SUBNORMAL:
                alternatives.append(self._expected(Probe(probe.name, probe.kind, probe.flushed())))
            for label, make in makers.items():
                self._compare(label, make, probe, alternatives)
        return len(self.done) - before

    def vary(self) -> None:
        """Runs the source on other inputs than the user's, to see which outputs depend on them."""
        for probe in list(self.done):
            arrays = _probes.varied(probe.arrays)
            try:
                self._see(arrays, self._checked(_guarded("the source in float64", self.source.run_float64, arrays)))
            except InterluxError:  # cannot be told, and is not held against the model
                self.depends.update(range(len(self.model.require_signature().outputs)))

    def report(self, notes: tuple[str, ...]) -> Report:
        signature = self.model.require_signature()
        names = [spec.name for spec in signature.outputs]
        constant = [name for k, name in enumerate(names) if k not in self.depends]
        unverifiable = len(constant) == len(names)
        if constant and not unverifiable:
            notes += (f"output {', '.join(constant)} is the same for all inputs: its computation is not verified",)
        depths = path_lengths(self.model, [[a.shape for a in probe.arrays] for probe in self.done])
        rows = []
        for label, target in self.targets.items():
            if target.failure is not None:
                rows.append(Row(label, "", False, probe=target.failure[0], reason=target.failure[1]))
                continue
            for spec, comparison, depth in zip(signature.outputs, target.outputs, depths, strict=True):
                finding = comparison.judge(depth)
                notes += tuple(f"{label}, output {spec.name}: {note}" for note in comparison.notes)
                if comparison.exact_values and all(dtype_named(o.dtype).kind in "iub" for o in signature.outputs):
                    notes += (
                        f"{label}, output {spec.name}: {comparison.exact_values} integers or truth values were "
                        "compared; what changes none of them is not seen",
                    )
                reason = finding.reason or (UNVERIFIABLE if unverifiable else "")
                rows.append(
                    Row(
                        label,
                        spec.name,
                        not reason,
                        finding.ratio,
                        finding.slice_ratio,
                        finding.slice_name,
                        finding.source_error,
                        finding.target_error,
                        finding.probe,
                        reason,
                        finding.top1,
                        finding.kl,
                    )
                )
        return Report(
            passed=bool(rows) and all(row.passed for row in rows),
            rows=tuple(rows),
            notes=notes + tuple(self.model.notes),
            source=self.source.description,
            model=describe_model(self.model),
            probes=tuple(probe.name for probe in self.done),
            environment=environment(),
            tree=str(self.model),
        )

    # --- the source

    def _expected(self, probe: Probe) -> Expected:
        arrays = probe.arrays
        own = self._checked(_guarded("the source", self.source.run, arrays))
        reference = self._checked(_guarded("the source in float64", self.source.run_float64, arrays))
        # An output whose shape depends on the data may have another one in float64: then the source's own serves.
        reference = [r if r.shape == s.shape else s for r, s in zip(reference, own, strict=True)]
        draws: list[list[np.ndarray | None]] = [
            [None if _is_double(s) else _error(s, r) for s, r in zip(own, reference, strict=True)]
        ]
        single = getattr(self.source, "run_float32", None)
        if single is not None and any(map(_is_double, own)):
            rough = self._checked(_guarded("the source in float32", single, arrays))
            draws.append(
                [
                    None if not _is_double(s) or (e := _error(x, r)) is None else e * _DOUBLE_PER_SINGLE
                    for x, s, r in zip(rough, own, reference, strict=True)
                ]
            )
        outputs = []
        if probe.kind in (NORMAL, CORRELATED, SMALL, LARGE, USER) and any(trees.is_float(a.dtype) for a in arrays):
            for seed in range(JITTERS):
                moved = self._checked(_guarded("the source", self.source.run, probe.jittered(seed)))
                draws.append([_error(m, r) for m, r in zip(moved, reference, strict=True)])
                outputs.append(moved)
        return Expected(reference, own, draws, outputs)

    def _checked(self, outputs: Sequence[Any]) -> list[np.ndarray]:
        """The source's outputs as arrays. Raises InvalidModelError if their number is not the signature's."""
        expected = len(self.model.require_signature().outputs)
        if len(outputs) != expected:
            raise InvalidModelError(f"the source gives {len(outputs)} outputs, the model's signature has {expected}")
        return [np.asarray(y) for y in outputs]

    def _see(self, arrays: list[np.ndarray], reference: list[np.ndarray]) -> None:
        shapes = tuple(a.shape for a in arrays)
        before = self.seen.setdefault(shapes, reference)
        for k, (x, y) in enumerate(zip(before, reference, strict=True)):
            if x.shape != y.shape or not np.array_equal(x, y, equal_nan=x.dtype.kind in "fc"):
                self.depends.add(k)

    # --- the targets

    def _compare(self, label: str, make: Callable[[], Run], probe: Probe, alternatives: list[Expected]) -> None:
        signature = self.model.require_signature()
        target = self.targets.get(label)
        try:
            if target is None:
                comparisons = [Comparison() for _ in signature.outputs]
                target = self.targets[label] = _Target(None, comparisons)
                target.run = make()
                self._check_names(target.run)
            if target.run is None:
                return
            outputs = [np.asarray(y) for y in _guarded(label, target.run, probe.arrays)]
            if len(outputs) != len(signature.outputs):
                raise InvalidModelError(f"{len(outputs)} outputs, the source has {len(signature.outputs)}")
        except InterluxError as error:
            assert target is not None
            target.run, target.failure = None, (probe.name, first_line(error))
            return
        for k, (comparison, output) in enumerate(zip(target.outputs, outputs, strict=True)):
            with np.errstate(all="ignore"):
                comparison.add(probe, [(expected, k) for expected in alternatives], output)

    def _check_names(self, run: Run) -> None:
        """A runner that knows the names of its outputs says so by an attribute `output_names`."""
        names = getattr(run, "output_names", None)
        expected = [spec.name for spec in self.model.require_signature().outputs]
        if names is not None and list(names) != expected:
            raise InvalidModelError(f"outputs are named {', '.join(names)}, the source has {', '.join(expected)}")


def _maker(name: str, model: Model) -> Callable[[], Run]:
    """What makes a backend's runner when it is needed first."""

    def jax() -> Run:
        from ..jax import JaxRunner

        return JaxRunner(model).run

    def onnxruntime() -> Run:
        from ..onnx import OnnxRunner

        return OnnxRunner(model).run

    def fused() -> Run:
        from ..fused.engine import FusedRunner

        return FusedRunner(model, threads=1).run

    makers = {"jax": jax, "onnxruntime": onnxruntime, "fused": fused}
    if name not in makers:
        raise UnsupportedError(f"backend {name!r} is not known; use {', '.join(makers)}")

    def make() -> Run:
        try:
            return makers[name]()
        except ImportError as error:
            raise UnsupportedError(f"backend {name!r} is not installed ({first_line(error)})") from None

    return make


def _guarded(what: str, run: Run, arrays: list[np.ndarray]) -> Sequence[Any]:
    """Runs foreign code. Its own exceptions become InterluxErrors; numpy's warnings about NaN and overflow are off."""
    try:
        with np.errstate(all="ignore"):
            return run([a.copy() for a in arrays])
    except InterluxError:
        raise
    except MemoryError as error:
        raise ResourceLimitError(f"{what} ran out of memory: {first_line(error)}") from error
    except Exception as error:  # frameworks raise what they like, some of it derived from Exception alone
        raise InvalidModelError(f"{what} cannot run: {first_line(error)}") from error


def _is_double(x: np.ndarray) -> bool:
    return x.dtype in (np.dtype(np.float64), np.dtype(np.complex128))


def _error(result: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    if result.shape != reference.shape or not (trees.is_float(result.dtype) or result.dtype.kind == "c"):
        return None
    wide = np.complex128 if result.dtype.kind == "c" else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(result.astype(wide) - reference.astype(wide))


def _refuse_containers(signature: Signature, given: bool) -> None:
    """Raises UnsupportedError for what is not compared, or, unless inputs are given, not drawn at random."""
    specs = (*signature.inputs, *signature.outputs)
    strange = [str(s) for s in specs if s.container or s.dtype == "object"]
    if strange:
        raise UnsupportedError(
            "the verifier compares tensors of numbers; run the model by ix.compile and compare these yourself", strange
        )
    unknown = [str(spec) for spec in signature.inputs if spec.shape is None]
    if unknown and not given:
        raise UnsupportedError("inputs of unknown rank cannot be drawn: give inputs=", unknown)


def _is_dynamic(specs: Sequence[TensorSpec]) -> bool:
    return any(not isinstance(size, int) for spec in specs for size in spec.shape or ())
