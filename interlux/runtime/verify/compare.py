"""The criterion: how large an error is, measured in the errors that the source itself makes.

For every part of an output (the whole of it in one probe, one index along axis 0 of it, one channel over all probes of
a kind) the RMS error of the target against the source's run in float64 is divided by the RMS error that the source
makes there in its own dtype. Correct conversions are near 1, whatever the scale and the dtype; wrong ones far above.

The source's error is one draw of a random variable, and may be small by luck, down to exact. Three things guard against
a false alarm from that: the source is also run on inputs moved by one unit in the last place, which draws again and
shows how sensitive it is; a part is judged at the error that is usual among parts of its size, and half of the largest
one; and no error below unit roundoff · √depth counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...ir import trees
from .probes import LARGE, NONFINITE, NORMAL, SPECIAL, SUBNORMAL, USER, Probe

LIMIT = 4.0
# Below this many values a pooled error may still be small by luck.
ENOUGH_VALUES = 16
# A channel whose size rests on fewer values than this (participation number) is judged at the size of the whole.
ENOUGH_SIZEABLE = 8
# Special inputs are all but one point: all their rows round alike, one draw, which may be far out. What they are there
# to find (an epsilon that matters for small inputs, a division by zero) is larger by orders of magnitude.
SPECIAL_ROOM = 4.0
# So may large inputs, where they saturate: few values, with one error each.
ROOMY = SPECIAL | {LARGE}
# Inputs of integers alone cannot be moved by a unit, so that the source's error is known from one draw only.
SINGLE_DRAW_ROOM = 1.5
# A channel smaller than this many unit roundoffs of the whole may be the residue of a cancellation, unless the source's
# own error says that it is not.
RESIDUE = 16
RESIDUE_ERROR = 1 / 64
# A source whose own error is larger than this says too little to judge a conversion.
HOPELESS = 0.25
MAX_CHANNELS = 65536
_HUGE = 1e150  # beyond this squares overflow; counted as not finite


@dataclass(frozen=True)
class Expected:
    """What the source says for one probe.

    Arguments:
        reference: outputs in float64.
        own: outputs in the source's own dtypes.
        draws: for each draw of the source's rounding error, the errors of all outputs (None: not known for an output).
        moved: all outputs on inputs moved by one unit in the last place: an integer may be any of them.
    """

    reference: list[np.ndarray]
    own: list[np.ndarray]
    draws: list[list[np.ndarray | None]]
    moved: list[list[np.ndarray]] = field(default_factory=list)


@dataclass(frozen=True)
class Finding:
    """The judgement of one output on one backend. Numbers are NaN where they do not apply."""

    ratio: float = math.nan
    slice_ratio: float = math.nan
    slice_name: str = ""
    source_error: float = math.nan
    target_error: float = math.nan
    probe: str = ""
    reason: str = ""
    top1: float = math.nan
    kl: float = math.nan


@dataclass
class _Part:
    """Mean squares of the reference and of both errors over some parts of an output: arrays with one entry each."""

    size: np.ndarray  # of the reference
    own: np.ndarray  # of the source's error, the largest draw
    pooled: np.ndarray  # of the source's error, all draws
    target: np.ndarray
    values: np.ndarray  # how many there are in a part

    def root(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return np.sqrt(self.size), np.sqrt(self.own), np.sqrt(self.pooled), np.sqrt(self.target)


@dataclass
class _Channels:
    """Sums over all probes of a kind, for every index of one axis."""

    square: np.ndarray
    fourth: np.ndarray
    own: np.ndarray
    target: np.ndarray
    draws: int
    values: int = 0

    @classmethod
    def of(cls, n: int, draws: int) -> _Channels:
        return cls(np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n), draws)


@dataclass
class _Measured:
    """One probe of a floating-point output."""

    probe: Probe
    whole: _Part
    rows: _Part | None
    draws: int


@dataclass
class Comparison:
    """Collects one output of one backend over the probes, then judges it.

    Attributes:
        exact_values: how many integers and booleans were compared.
        notes: differences that are not held against a conversion.
    """

    exact_values: int = 0
    notes: list[str] = field(default_factory=list)
    _unit: float = 0.0
    _tiny: float = 0.0
    _measured: list[_Measured] = field(default_factory=list)
    _channels: dict[tuple[str, int, int], _Channels] = field(default_factory=dict)
    _failure: Finding | None = None
    _spread: Finding | None = None  # not the first reason that a reader should see
    _probes: int = 0
    _agreeing: int = 0
    _ranked: int = 0
    _divergence: float = 0.0
    _empty: bool = True  # no finite value was compared
    _exact: bool = False

    def add(self, probe: Probe, alternatives: Sequence[tuple[Expected, int]], target: np.ndarray) -> None:
        """One probe.

        Arguments:
            alternatives: what the source says, and the number of the output in it; the target may agree with either.
            target: the backend's output.
        """
        self._probes += 1
        if self._failure is not None:
            return
        if probe.kind == NONFINITE:
            self._add_nonfinite(probe, alternatives, target)
            return
        reasons = []
        candidates = []
        for expected, k in alternatives:
            reference, own = expected.reference[k], expected.own[k]
            moved = [outputs[k] for outputs in expected.moved]
            reason = exact_difference(reference, own, target, probe.kind == LARGE, moved)
            if reason:
                reasons.append(reason)
            elif not trees.is_float(own.dtype) and own.dtype.kind != "c":
                self._exact, self._empty = True, False
                self.exact_values += own.size
                return
            else:
                draws = [error for errors in expected.draws if (error := errors[k]) is not None]
                candidates.append((reference, own, draws))
        if not candidates:
            if probe.kind == SUBNORMAL and _same_form(alternatives, target):
                self.notes.append(f"{reasons[0]} (inputs: {probe.name}): not judged, hardware may take them for 0")
                return
            self._failure = Finding(probe=probe.name, reason=reasons[0])
            return
        self._set_unit(candidates[0][1].dtype)
        measured = [self._measure(probe, *candidate, target) for candidate in candidates]
        best = min(measured, key=lambda m: float(m.whole.target[0]))
        self._measured.append(best)
        reference, own, draws = candidates[measured.index(best)]
        if probe.kind not in SPECIAL:
            self._add_channels(probe.kind, *_comparable(reference, own, target, draws))
            if probe.kind != LARGE:
                self._add_ranking(own, target)

    def _add_nonfinite(self, probe: Probe, alternatives: Sequence[tuple[Expected, int]], target: np.ndarray) -> None:
        """NaN and infinity in the first sample may come out otherwise, but must not reach the other samples."""
        expected, k = alternatives[0]
        own = expected.own[k]
        if not _same_form(alternatives, target) or not own.ndim or all(len(a) < 2 for a in probe.arrays if a.ndim):
            return
        differ = _kind_of(target) != _kind_of(own)
        per_row = differ.reshape(len(own), -1).any(axis=1) if own.size else np.zeros(len(own), bool)
        if not per_row.any():
            return
        per_sample = all(len(own) == len(a) for a in probe.arrays if a.ndim)
        clean: Any = (_kind_of(own) == 0).reshape(len(own), -1).all(axis=1)
        spread: np.ndarray = per_row & clean & (np.arange(len(own)) > 0)
        if per_sample and clean[1:].all() and spread.any():
            row = int(np.argmax(spread))
            reason = f"NaN or infinity in row {row}, where the input has none and the source gives none"
            self._spread = Finding(probe=probe.name, reason=reason)
        else:
            self.notes.append("NaN or infinity in the inputs comes out at other places than in the source: not judged")

    def judge(self, depth: float) -> Finding:
        """The finding; its `reason` is empty if the output passed.

        Arguments:
            depth: how many roundings follow one another on the way to this output.
        """
        finding = self._judge(depth)
        return self._spread if self._spread is not None and not finding.reason else finding

    def _judge(self, depth: float) -> Finding:
        if self._failure is not None:
            return self._failure
        if self._exact or not self._measured:
            return Finding()
        if all(m.whole.values[0] == 0 for m in self._measured):
            return Finding()
        if self._empty:
            return Finding(reason="no finite value could be compared: the source gives NaN or infinity everywhere")
        floor = self._unit * math.sqrt(max(depth, 1))
        usual = self._usual(floor)
        base = usual.get(NORMAL) or usual.get(USER) or next(iter(usual.values()))
        worst = Finding(ratio=-1.0)
        worst_slice, slice_name, slice_probe = -1.0, "", ""
        for m in self._measured:
            size_of_kind, relative = usual[m.probe.kind]
            if m.probe.kind in SPECIAL:
                size_of_kind, relative = max(size_of_kind, base[0]), SPECIAL_ROOM * max(relative, base[1])
            elif m.probe.kind == LARGE:
                relative = SPECIAL_ROOM * max(relative, base[1])
            else:
                relative = max(relative, base[1])
            size, own, _, target = (float(v[0]) for v in m.whole.root())
            usual_here = _few(m.whole.values)[0] * relative * max(size, size_of_kind)
            allowed = max(own, usual_here, self._tiny)
            if target / allowed > worst.ratio:
                scale = max(size, self._tiny)
                worst = Finding(
                    target / allowed, source_error=own / scale, target_error=target / scale, probe=m.probe.name
                )
            if m.rows is not None:
                ratios = self._row_ratios(m, size_of_kind, relative, floor)
                i = int(np.argmax(ratios))
                if ratios[i] > worst_slice:
                    worst_slice, slice_name, slice_probe = float(ratios[i]), f"row {i}", m.probe.name
        for (kind, axis, _), channels in self._channels.items():
            room = SPECIAL_ROOM if kind in ROOMY else 1.0
            found = self._channel_ratios(channels, usual[kind], floor, room)
            i = int(np.argmax(found))
            if found[i] > worst_slice:
                worst_slice, slice_name = float(found[i]), f"index {i} of axis {axis}"
                slice_probe = f"all {kind} inputs"
        reason = ""
        if base[1] > HOPELESS:
            reason = f"the source's own error is {base[1]:.0%} of its output: too inexact to judge a conversion by"
        elif worst.ratio > LIMIT:
            reason = (
                f"error {worst.target_error:.1e} where the source's own is {worst.source_error:.1e}: "
                f"{worst.ratio:.3g} times what rounding explains, the limit is {LIMIT:g}"
            )
        elif worst_slice > LIMIT:
            reason = (
                f"{slice_name} ({slice_probe}): error {worst_slice:.3g} times what rounding explains, "
                f"the limit is {LIMIT:g}"
            )
        return Finding(
            worst.ratio,
            worst_slice if worst_slice >= 0 else worst.ratio,
            slice_name,
            worst.source_error,
            worst.target_error,
            worst.probe,
            reason,
            self._agreeing / self._ranked if self._ranked else math.nan,
            self._divergence / self._ranked if self._ranked else math.nan,
        )

    # --- measuring

    def _set_unit(self, dtype: np.dtype[Any]) -> None:
        import ml_dtypes

        info = ml_dtypes.finfo(dtype if trees.is_float(dtype) else np.zeros(0, dtype).real.dtype)
        self._unit, self._tiny = float(info.eps) / 2, float(info.tiny)
        if info.bits == 64:  # the reference is no better than the source: both err, and neither error is known
            self._unit *= 4

    def _measure(
        self, probe: Probe, reference: np.ndarray, own: np.ndarray, draws: list[np.ndarray], target: np.ndarray
    ) -> _Measured:
        r, t, errors = _comparable(reference, own, target, draws)
        if t.size and np.any(np.isfinite(np.asarray(target).astype(r.dtype))):
            self._empty = False

        def part(axes: tuple[int, ...] | None) -> _Part:
            def mean(x: np.ndarray) -> np.ndarray:
                squares = (x * x.conj()).real
                return np.atleast_1d(squares.mean(axis=axes)) if squares.size else np.zeros(1)

            means = [mean(e) for e in errors] or [np.zeros_like(mean(r))]
            size = mean(r)
            values = np.full(size.shape, r.size // max(size.size, 1))
            return _Part(size, np.max(means, axis=0), np.mean(means, axis=0), mean(t), values)

        sliced = r.ndim >= 2 and r.shape[0] > 1 and r.size > 0
        return _Measured(probe, part(None), part(tuple(range(1, r.ndim))) if sliced else None, len(errors))

    def _add_channels(self, kind: str, r: np.ndarray, t: np.ndarray, errors: list[np.ndarray]) -> None:
        if not r.size:
            return
        for axis in range(1, r.ndim):
            n = r.shape[axis]
            if not 2 <= n <= MAX_CHANNELS:
                continue
            other = tuple(a for a in range(r.ndim) if a != axis)
            sums = self._channels.setdefault((kind, axis, n), _Channels.of(n, max(len(errors), 1)))
            square = (r * r.conj()).real
            sums.square += square.sum(axis=other)
            sums.fourth += (square * square).sum(axis=other)
            sums.own += sum(((e * e.conj()).real.sum(axis=other) for e in errors), np.zeros(n))
            sums.target += (t * t.conj()).real.sum(axis=other)
            sums.values += r.size // n

    def _add_ranking(self, own: np.ndarray, target: np.ndarray) -> None:
        """Top-1 agreement and KL divergence of softmax along the last axis."""
        if own.ndim < 2 or own.shape[-1] < 2 or own.dtype.kind == "c":
            return
        p, q = (x.astype(np.float64).reshape(-1, own.shape[-1]) for x in (own, target))
        finite = np.isfinite(p).all(axis=1) & np.isfinite(q).all(axis=1)
        p, q = p[finite], q[finite]
        log_p, log_q = _log_softmax(p), _log_softmax(q)
        self._ranked += len(p)
        self._agreeing += int((p.argmax(axis=1) == q.argmax(axis=1)).sum()) if len(p) else 0
        self._divergence += float((np.exp(log_p) * (log_p - log_q)).sum())

    # --- judging

    @property
    def _room(self) -> float:
        return 1.0 if any(m.draws > 1 for m in self._measured) else SINGLE_DRAW_ROOM

    def _usual(self, floor: float) -> dict[str, tuple[float, float]]:
        """By kind, the RMS of the reference, and the relative error that is usual for the source."""
        result = {}
        for kind in dict.fromkeys(m.probe.kind for m in self._measured):
            parts = [m.whole for m in self._measured if m.probe.kind == kind]
            values = np.array([float(p.values[0]) for p in parts])
            weights = values if values.any() else np.ones_like(values)
            size = math.sqrt(np.average([p.size[0] for p in parts], weights=weights))
            error = math.sqrt(np.average([p.pooled[0] for p in parts], weights=weights))
            largest = max(math.sqrt(p.own[0]) / max(math.sqrt(p.size[0]), size, self._tiny) for p in parts)
            result[kind] = (size, max(self._room * max(error / max(size, self._tiny), largest / 2), floor))
        return result

    def _row_ratios(self, m: _Measured, size_of_kind: float, relative: float, floor: float) -> np.ndarray:
        """Error ratios of the indices along axis 0.

        A row is judged at the source's error among all rows of its decade of size, if they are many; else at the usual
        error of the whole: a row of few values may be near 0 by cancellation, and then has a large relative error.
        """
        assert m.rows is not None
        size, own, _, target = m.rows.root()
        largest, room = _largest_of(len(size)) * _few(m.rows.values), self._room
        sizes, pooled, tops, counts = self._rows_of(m.probe.kind)
        usual = np.maximum(largest * relative * np.maximum(size, size_of_kind), room * tops.max() / 2)
        if m.probe.kind not in ROOMY:
            decades, own_decades = _decade(sizes), _decade(size)
            for decade in np.unique(own_decades[size > self._tiny]):
                same, here = decades == decade, own_decades == decade
                if counts[same].sum() >= ENOUGH_VALUES and same.sum() >= ENOUGH_SIZEABLE:
                    error = largest[here] * math.sqrt(np.average(pooled[same], weights=counts[same]))
                    usual[here] = np.maximum(floor * size[here], room * np.maximum(error, tops[same].max() / 2))
        return target / np.maximum(np.maximum(own, usual), self._tiny)

    def _rows_of(self, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """All rows of a kind: size, mean square error of all draws, largest error of a draw, number of values."""
        rows = [m.rows for m in self._measured if m.probe.kind == kind and m.rows is not None]
        return (
            np.sqrt(np.concatenate([r.size for r in rows])),
            np.concatenate([r.pooled for r in rows]),
            np.sqrt(np.concatenate([r.own for r in rows])),
            np.concatenate([r.values for r in rows]),
        )

    def _channel_ratios(self, c: _Channels, usual: tuple[float, float], floor: float, room: float) -> np.ndarray:
        """Error ratios of the indices of one axis over all probes of a kind: sees a wrong channel among larger ones."""
        size, own, target = (np.sqrt(v / max(c.values, 1)) for v in (c.square, c.own / c.draws, c.target))
        sizeable = np.divide(c.square**2, c.fourth, out=np.zeros_like(size), where=c.fourth > 0)
        whole = usual[0] * usual[1]
        sound = (size > RESIDUE * self._unit * usual[0]) | ((c.draws > 1) & (own < RESIDUE_ERROR * size))
        trusted = (sizeable >= ENOUGH_SIZEABLE) & (c.values >= ENOUGH_VALUES) & sound & (room == 1)
        allowed = np.where(trusted, floor * size, room * np.maximum(whole, floor * size))
        allowed = np.maximum(allowed, self._room * own) * _largest_of(len(size))
        return target / np.maximum(allowed, self._tiny)


def _same_form(alternatives: Sequence[tuple[Expected, int]], target: np.ndarray) -> bool:
    """Whether a target has the source's dtype and shape, and they are those of floating-point numbers."""
    own = [expected.own[k] for expected, k in alternatives]
    return all(
        y.dtype == target.dtype and y.shape == target.shape and (trees.is_float(y.dtype) or y.dtype.kind == "c")
        for y in own
    )


def exact_difference(
    reference: np.ndarray,
    own: np.ndarray,
    target: np.ndarray,
    large: bool = False,
    moved: Sequence[np.ndarray] = (),
) -> str:
    """What differs that must be equal, in words; empty if nothing does.

    Arguments:
        reference, own, target: one output of the source in float64, of the source, of the target.
        large: whether the inputs are so large that a float may overflow on the way: then the target may be finite where
            the source has overflowed and float64 has not.
        moved: the same output of the source on inputs moved by one unit in the last place.
    """
    if target.dtype != own.dtype:
        return f"dtype {target.dtype.name}, the source has {own.dtype.name}"
    if target.shape != own.shape:
        return f"shape {target.shape}, the source has {own.shape}"
    if not trees.is_float(own.dtype) and own.dtype.kind != "c":
        wrong = (target != own) & (target != reference)
        for other in moved:
            wrong &= target != other if other.shape == target.shape else True
        if (n := int(np.count_nonzero(wrong))) == 0:
            return ""
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        return f"{n} of {wrong.size} values differ, e.g. {target[at]} instead of {own[at]} at {list(at)}"
    kinds_own, kinds_target = _kind_of(own), _kind_of(target)
    wrong = kinds_own != kinds_target
    if large:
        wrong &= ~((kinds_own != 0) & np.isfinite(reference))
    if (n := int(np.count_nonzero(wrong))) == 0:
        return ""
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    example = f"{target[at]} instead of {own[at]} at {list(at)}"
    return f"NaN or infinity at other places ({n} of {wrong.size}), e.g. {example}"


def _kind_of(x: np.ndarray) -> np.ndarray:
    """0 finite, 1 NaN, 2 +∞, 3 -∞."""
    if x.dtype.kind == "c":
        return 4 * _kind_of(x.real) + _kind_of(x.imag)
    wide = x.astype(np.float64)
    return np.isnan(wide) * 1 + np.isposinf(wide) * 2 + np.isneginf(wide) * 3


def _comparable(
    reference: np.ndarray, own: np.ndarray, target: np.ndarray, draws: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The reference, the target's error and the source's errors, with 0 where one of the results is not finite."""
    wide = np.complex128 if own.dtype.kind == "c" else np.float64
    r, s, t = (x.astype(wide) for x in (reference, own, target))
    with np.errstate(invalid="ignore", over="ignore"):
        usable = np.isfinite(r) & np.isfinite(s) & np.isfinite(t) & (np.abs(r) < _HUGE) & (np.abs(t) < _HUGE)
        error = np.where(usable, t - r, 0)
        errors = [np.where(usable & np.isfinite(d), d, 0) for d in draws]
    return np.where(usable, r, 0), error, errors


def _largest_of(n: int) -> float:
    """How much larger the largest of n errors may be; 1 for the few that `LIMIT` itself has room for."""
    return max(1.0, math.sqrt(2 * math.log(max(n, 1))) / 2)


def _few(values: np.ndarray) -> np.ndarray:
    """How much larger the RMS of a few errors may be than the usual one: that of 1 by 1.7, of 16 by 1.06."""
    return np.asarray(np.sqrt(1 + 2 / np.maximum(values, 1)))


def _decade(x: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.floor(np.log10(x))


def _log_softmax(x: np.ndarray) -> np.ndarray:
    if not x.size:
        return x
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
