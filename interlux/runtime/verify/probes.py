"""The inputs that a conversion is tested on: deterministic, made from the signature, or the user's own."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import trees
from ...ir.dtypes import dtype_named
from ...ir.errors import InvalidModelError
from ...ir.model import Dimension, Signature, TensorSpec
from ..npz import read_npz

# Kinds. Errors of one kind are of one size, so that they are judged together.
NORMAL, CORRELATED, SMALL, LARGE, ZEROS, SUBNORMAL, BOUNDARY, FADING, NONFINITE, USER = (
    "normal", "correlated", "small", "large", "zeros", "subnormal", "boundary", "fading", "nonfinite", "user",
)  # fmt: skip
# Too few and too special to say what error is usual; judged at the size of the normal outputs. A target may be exact to
# the normal size only: onnxruntime's Elu is exp(x) - 1.
SPECIAL = frozenset({SMALL, ZEROS, SUBNORMAL, BOUNDARY, FADING})
# Wanted sizes of dynamic dimensions, tried in turn until the source takes one: a model may need 32 pixels unsaid.
SIZE_SETS = ((1, 2, 5), (16, 33), (64, 97), (224, 257))
# One more size: a ReLU that no white noise activates is seen in some of this many correlated samples.
WIDE = 33
# Integers say little about what they were computed from: they are compared on this many samples.
WIDE_INTEGERS = 400
MAX_WIDE_VALUES = 2**21  # in all inputs of a probe of the wide size
CHEAP_VALUES = 2**17  # up to these there are two such probes
SEARCHED = 400  # sizes that are tried for a signature's conditions
MAX_REPEATS = 4  # probes of a fixed size instead of one wide one
# Ranges of integers of 16 bits and more of which nothing is known, tried in turn until the source takes one.
INTEGER_RANGES = ((-1000, 1000), (0, 100), (0, 1))
_NOISE = 0.1
_FADING = (1e-4, 1e-6, 1e-8, 1e-10, 1e-12)  # scales of rows, where an epsilon added to or compared with a norm shows
Bounds = Mapping[str, tuple[int, int]]
Sizes = Mapping[str, int]  # of dynamic dimensions


@dataclass(frozen=True, eq=False)
class Probe:
    """One set of inputs.

    Arguments:
        name: in words, e.g. "normal, batch=2, seed 1".
        kind: one of the kinds above.
        arrays: in the order of the signature.
    """

    name: str
    kind: str
    arrays: list[np.ndarray]

    def flushed(self) -> list[np.ndarray]:
        """The inputs with subnormal numbers as zeros of their sign, as hardware may read them."""
        return [
            np.where(np.abs(a) < _finfo(a.dtype).tiny, a * a.dtype.type(0), a) if trees.is_float(a.dtype) else a
            for a in self.arrays
        ]

    def jittered(self, seed: int) -> list[np.ndarray]:
        """The inputs with each float moved by one unit in the last place, up or down at random.

        Whole numbers (0 and 1 of a mask, numbers that are cast to an index) stay, as do those that are not finite.
        """
        rng = np.random.default_rng([seed, 0x1A7E])
        return [_jitter(a, rng) if trees.is_float(a.dtype) else a for a in self.arrays]


def _finfo(dtype: Any) -> Any:
    import ml_dtypes

    return ml_dtypes.finfo(dtype)


def _jitter(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    bits = array.astype(array.dtype, copy=True).reshape(-1)
    wide = bits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        movable = np.isfinite(wide) & (wide != np.round(wide))
    step = rng.choice(np.array([-1, 1]), bits.shape)
    # sign and magnitude: one more in the bits is one unit away from zero
    whole = bits.view(f"i{array.dtype.itemsize}")
    whole += np.where(movable, step, 0).astype(whole.dtype)
    return bits.reshape(array.shape)


def normals(signature: Signature, bounds: Bounds, seeds: int, sizes: Sizes) -> Iterator[Probe]:
    """Normal numbers, independent of each other.

    Arguments:
        bounds: smallest and largest value of integer inputs by name; others draw 0 and 1, or all values of 8 bits.
        seeds: how many draws.
        sizes: of the dynamic dimensions.
    """
    for seed in range(max(seeds, 1)):
        yield _probe(signature, bounds, sizes, NORMAL, seed, f", seed {seed}")


def specials(signature: Signature, bounds: Bounds, seed: int, sizes: Sizes) -> Iterator[Probe]:
    """Inputs at the ends of what a model may get."""
    dtypes = [dtype_named(spec.dtype) for spec in signature.inputs]
    if any(map(trees.is_float, dtypes)):
        for kind in (SMALL, LARGE, ZEROS, SUBNORMAL):
            yield _probe(signature, bounds, sizes, kind, seed)
        rows = max((a.shape[0] for a in _probe(signature, bounds, sizes, ZEROS, 0).arrays if a.ndim), default=1)
        count = -(-len(_FADING) // max(rows, 1))
        for k in range(count):
            more = f", {k + 1} of {count}" if count > 1 else ""
            yield _probe(signature, bounds, sizes, FADING, seed, more, part=k * rows)
        yield _probe(signature, bounds, sizes, NONFINITE, seed)
    if any(d.kind in "iub" for d in dtypes):
        for end, label in ((0, "smallest integers, all false"), (1, "largest integers, all true")):
            probe = _probe(signature, bounds, sizes, BOUNDARY, seed, end=end)
            yield Probe(probe.name.replace(BOUNDARY, label, 1), BOUNDARY, probe.arrays)


def wide(signature: Signature, bounds: Bounds, seed: int, sizes: Sizes, rows: int) -> Iterator[list[Probe]]:
    """Correlated samples, as many as fit. Each list is an attempt: the first that the source takes will do.

    Arguments:
        sizes: that the source is known to take.
        rows: how many samples there are to be.
    """
    batches = {spec.shape[0] for spec in signature.inputs if spec.shape and isinstance(spec.shape[0], str)}
    has_float = any(trees.is_float(dtype_named(spec.dtype)) for spec in signature.inputs)
    attempts = []
    for dynamic in (list(sizes), [name for name in sizes if name in batches]):
        attempt = dict(sizes)
        for number, name in enumerate(dynamic):
            dim = signature.dims.get(name, Dimension())
            want = rows if name in batches else WIDE + 2 * (number % 4)
            attempt[name] = max(sizes[name], _at_most(dim, want))
        while _values(signature, attempt) > MAX_WIDE_VALUES:
            smaller = {
                n: max(sizes[n], _at_most(signature.dims.get(n, Dimension()), attempt[n] // 2))
                for n in attempt
                if n in batches
            }
            if all(attempt[n] == size for n, size in smaller.items()):
                break
            attempt |= smaller
        if _values(signature, attempt) <= MAX_WIDE_VALUES and attempt not in attempts:
            attempts.append(attempt)
    attempts = [a for a in attempts if _is_allowed(signature, a)]
    if dict(sizes) not in attempts:
        attempts.append(dict(sizes))
    for attempt in attempts:
        count = min((_sizes_of(spec, attempt) or (1,))[0] for spec in signature.inputs)
        repeats = min(max(-(-(WIDE - 1) // max(count, 1)), 1), MAX_REPEATS)
        if _values(signature, attempt) <= CHEAP_VALUES:
            repeats = max(repeats, 2)
        probes = [
            _probe(signature, bounds, attempt, CORRELATED, seed, f", {k + 1} of {repeats}" if repeats > 1 else "", k)
            for k in range(repeats if has_float else 0)
        ]
        if rows > WIDE or not has_float:
            probes.append(_probe(signature, bounds, attempt, NORMAL, seed, f", seed {seed}"))
        yield probes


def _at_most(dim: Dimension, want: int) -> int:
    step = max(dim.multiple_of, 1)
    size = want if dim.maximum is None else min(want, dim.maximum)
    return max(size // step * step, -(-max(dim.minimum, 1) // step) * step)


def _sizes_of(spec: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
    return tuple(sizes[a] if isinstance(a, str) else a for a in _axes(spec))


def _values(signature: Signature, sizes: Sizes) -> int:
    return sum(math.prod(_sizes_of(spec, sizes)) for spec in signature.inputs)


def _probe(
    signature: Signature,
    bounds: Bounds,
    sizes: Sizes,
    kind: str,
    seed: int,
    label: str = "",
    part: int = 0,
    end: int | None = None,
) -> Probe:
    where = "".join(f", {name}={size}" for name, size in sizes.items())
    rng = np.random.default_rng([seed, *sizes.values(), *([part] if part else [])])
    arrays = [_draw(spec, sizes, bounds, kind, rng, end, seed, part) for spec in signature.inputs]
    return Probe(f"{kind}{where}{label}", kind, arrays)


def own(signature: Signature, inputs: Mapping[str, Any] | str | os.PathLike[str]) -> Probe:
    """The user's inputs as a probe.

    Arguments:
        inputs: arrays by input name, or the path of an .npz file that holds them.

    Raises InvalidModelError if names, dtypes or shapes don't fit the signature.
    """
    if isinstance(inputs, Mapping):
        return Probe("your inputs", USER, signature.bind((), dict(inputs)))
    return Probe(os.fspath(inputs), USER, signature.bind((), read_npz(inputs)))


def varied(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Other inputs made of the same values, to see whether the outputs depend on them."""
    rng = np.random.default_rng(0)

    def vary(a: np.ndarray) -> np.ndarray:
        shuffled = rng.permutation(a.reshape(-1)).reshape(a.shape)
        return (shuffled.astype(np.float64) * 0.9).astype(a.dtype) if trees.is_float(a.dtype) else shuffled

    return [vary(a) for a in arrays]


def _axes(spec: TensorSpec) -> Iterator[int | str]:
    """Sizes and dimension names; an unknown size is a dimension of its own."""
    for axis, size in enumerate(spec.shape or ()):
        yield f"axis {axis} of {spec.name}" if size is None else size


def combinations(signature: Signature, wanted: tuple[int, ...]) -> Iterator[dict[str, int]]:
    """Sizes of the dynamic dimensions: all at the first wanted size, all at the second, …, and one mixture."""
    names = list(dict.fromkeys(a for spec in signature.inputs for a in _axes(spec) if isinstance(a, str)))
    choices = {n: _sizes(signature.dims.get(n, Dimension()), wanted, i) for i, n in enumerate(names)}
    longest = max((len(c) for c in choices.values()), default=1)
    rows = [[0] * len(names)] if not names else [[k] * len(names) for k in range(longest)]
    if len(names) > 1:  # sizes that differ between dimensions, so that swapped ones are seen
        rows[-1:-1] = [[(i + 1) % longest for i in range(len(names))]]
    seen = set()
    for row in rows:
        sizes = {n: choices[n][min(k, len(choices[n]) - 1)] for n, k in zip(names, row, strict=True)}
        if signature.conditions:
            sizes = _allowed(signature, sizes) or sizes
        if tuple(sizes.items()) not in seen:
            seen.add(tuple(sizes.items()))
            yield sizes


def _allowed(signature: Signature, sizes: dict[str, int]) -> dict[str, int] | None:
    """The nearest sizes above these for which the signature's conditions hold: with one dimension larger, or with all
    a little; None if there are none among those that are tried."""
    dims = {name: signature.dims.get(name, Dimension()) for name in sizes}
    few = range(round(SEARCHED ** (1 / len(sizes)))) if sizes else range(1)
    steps = [dict.fromkeys(sizes, 0) | {name: n} for n in range(SEARCHED) for name in sizes]
    steps += [dict(zip(sizes, by, strict=True)) for by in sorted(itertools.product(few, repeat=len(sizes)), key=sum)]
    tried = ({n: _at_most(dims[n], sizes[n] + by[n] * dims[n].multiple_of) for n in sizes} for by in steps)
    return next((s for s in tried if _is_allowed(signature, s)), None)


def _is_allowed(signature: Signature, sizes: Sizes) -> bool:
    return all(signature.allows(condition, sizes) for condition in signature.conditions)


def _sizes(dim: Dimension, wanted: tuple[int, ...], number: int) -> list[int]:
    """The wanted sizes moved into a dimension's range. The last one differs between dimensions: 5, 7, 9, …"""
    step = max(dim.multiple_of, 1)
    sizes: list[int] = []
    for k, want in enumerate(wanted):
        if k == len(wanted) - 1:
            want += 2 * (number % 4)
        low = max(want, dim.minimum, sizes[-1] + 1 if sizes else 1)
        size = -(-low // step) * step
        if k == len(wanted) - 1 and size % 2 == 0 and step % 2 and (dim.maximum is None or size + step <= dim.maximum):
            size += step
        if dim.maximum is None or size <= dim.maximum:
            sizes.append(size)
    return sizes or [max((dim.maximum or 0) // step * step, dim.minimum)]


def _range(spec: TensorSpec, dtype: np.dtype[Any], bounds: Bounds, seed: int) -> tuple[int, int]:
    """The values that an integer input may take. A mask is one of 0 and 1; of 8 bits it may also be an image."""
    known = spec.bounds or bounds.get(spec.name)
    if known is not None:
        return known
    masked = "mask" in spec.name.lower()
    if dtype.itemsize == 1 and dtype.name in ("int8", "uint8") and not (masked and seed % 2 == 0):
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    return 0, 1


def unbounded(signature: Signature, bounds: Bounds) -> list[str]:
    """The integer inputs of 16 bits and more of which no range is known; masks are 0 and 1."""
    return [
        spec.name
        for spec in signature.inputs
        if spec.bounds is None
        and spec.name not in bounds
        and dtype_named(spec.dtype).kind in "iu"
        and dtype_named(spec.dtype).itemsize > 1
        and "mask" not in spec.name.lower()
    ]


def _draw(
    spec: TensorSpec,
    sizes: Sizes,
    bounds: Bounds,
    kind: str,
    rng: np.random.Generator,
    end: int | None,
    seed: int,
    part: int,
) -> np.ndarray:
    """One input array.

    Arguments:
        end: 0 or 1 sets integers and booleans to their smallest or largest value.
        part: the number of the probe among those of its kind (correlated), of its first row (fading).
    """
    dtype = dtype_named(spec.dtype)
    shape = _sizes_of(spec, sizes)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5 if end is None else np.full(shape, bool(end))
    if dtype.kind in "iu":
        low, high = _range(spec, dtype, bounds, seed)
        if end is not None:
            return np.full(shape, (low, high)[end], dtype)
        return rng.integers(low, high, shape, endpoint=True).astype(dtype)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    if not trees.is_float(dtype):
        raise InvalidModelError(f"input {spec.name!r} of {spec.dtype} cannot be made up: give inputs of your own")
    numbers = rng.standard_normal(shape)
    if kind == ZEROS:
        numbers = np.zeros(shape)
    elif kind == CORRELATED:
        numbers = _correlated(shape, rng, part)
    elif kind == SUBNORMAL:
        numbers = np.clip(numbers / 4, -0.9, 0.9) * float(_finfo(dtype).tiny)
    elif kind in (SMALL, LARGE):
        # 1000 times a normal number, squared or summed, has left the range of float16
        factor = 16.0 if dtype == np.float16 else 1000.0
        numbers = numbers * factor if kind == LARGE else numbers / factor
    elif kind == FADING and numbers.ndim:
        possible = [s for s in _FADING if s > 16 * float(_finfo(dtype).tiny)] or [1.0]
        scales = np.array([possible[(part + i) % len(possible)] for i in range(shape[0])])
        numbers = numbers * scales.reshape(-1, *[1] * (numbers.ndim - 1))
    elif kind == NONFINITE and numbers.size:
        first = numbers[:1].reshape(-1) if numbers.ndim else numbers.reshape(-1)
        first[len(first) // 2] = np.inf
        first[0] = np.nan
        numbers = np.concatenate([first.reshape(numbers[:1].shape), numbers[1:]]) if numbers.ndim else first.reshape(())
    return np.asarray(numbers).astype(dtype)


def _correlated(shape: tuple[int, ...], rng: np.random.Generator, part: int) -> np.ndarray:
    """Samples of blocks of like numbers, 4 or 8 along an axis, or mixtures of three patterns; half of them scaled and
    shifted. Units of a network that white noise never activates are, as they are on images and measurements."""
    if not shape or math.prod(shape) == 0:
        return rng.standard_normal(shape)
    count, sample = (shape[0], shape[1:]) if len(shape) > 1 else (1, shape)
    patterns = rng.standard_normal((3, *sample))
    samples = []
    for i in range(part * count, part * count + count):
        if i % 4 == 3 and len(sample) < 2:
            values = np.tensordot(rng.standard_normal(3), patterns, 1)
        else:
            values = _blocks(sample, 8 if i % 4 in (1, 2) else 4, rng)
        if i % 2:
            values = values * 2.0 ** rng.uniform(-2, 2) + rng.standard_normal()
        # a little noise: the same number added over and over is rounded the same way each time
        samples.append(values + _NOISE * rng.standard_normal(sample))
    return np.stack(samples).reshape(shape)


def _blocks(shape: tuple[int, ...], number: int, rng: np.random.Generator) -> np.ndarray:
    """Random numbers, the same over blocks of the last two axes."""
    axes = range(max(len(shape) - 2, 0), len(shape))
    coarse = [min(n, number) if axis in axes else n for axis, n in enumerate(shape)]
    values = rng.standard_normal(coarse)
    for axis in axes:
        values = np.take(values, np.arange(shape[axis]) * coarse[axis] // shape[axis], axis=axis)
    return values
