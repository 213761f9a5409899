"""The inputs that a conversion is tested on: deterministic, made from the signature, or the user's own."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir import trees
from ...ir.dtypes import dtype_named
from ...ir.errors import InvalidModelError
from ...ir.model import Dimension, Signature, TensorSpec

# Kinds. Errors of one kind are of one size, so that they are judged together.
NORMAL, SMALL, LARGE, ZEROS, SUBNORMAL, BOUNDARY, USER = (
    "normal", "small", "large", "zeros", "subnormal", "boundary", "user",
)  # fmt: skip
# Too few and too special to say what error is usual; judged at the size of the normal outputs. A target may be exact to
# the normal size only: onnxruntime's Elu is exp(x) - 1.
SPECIAL = frozenset({SMALL, ZEROS, SUBNORMAL, BOUNDARY})
# Wanted sizes of dynamic dimensions, tried in turn until the source takes one: a model may need 32 pixels unsaid.
SIZE_SETS = ((1, 2, 5), (16, 33), (64, 97), (224, 257))
Bounds = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Probe:
    """One set of inputs.

    Arguments:
        name: in words, e.g. "normal, batch=2, seed 1".
        kind: normal | small | large | zeros | subnormal | boundary | user.
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


def generated(signature: Signature, bounds: Bounds, seeds: int, wanted: tuple[int, ...]) -> Iterator[Probe]:
    """Probes for a signature, those of one shape together.

    Arguments:
        bounds: smallest and largest value of integer inputs by name; others draw 0 and 1.
        seeds: how many draws of normal numbers for each combination of sizes.
        wanted: sizes of the dynamic dimensions, each moved into the dimension's own range.
    """
    combinations = list(_combinations(signature, wanted))
    dtypes = [dtype_named(spec.dtype) for spec in signature.inputs]
    has_float = any(trees.is_float(d) for d in dtypes)
    has_discrete = any(d.kind in "iub" for d in dtypes)
    for number, sizes in enumerate(combinations):
        where = "".join(f", {name}={size}" for name, size in sizes.items())

        def probe(kind: str, seed: int, label: str, end: int | None = None, sizes: dict[str, int] = sizes) -> Probe:
            rng = np.random.default_rng([seed, *sizes.values()])
            return Probe(label, kind, [_draw(spec, sizes, bounds, kind, rng, end) for spec in signature.inputs])

        for seed in range(max(seeds, 1)):
            yield probe(NORMAL, seed, f"normal{where}, seed {seed}")
        if number < len(combinations) - 1:
            continue
        if has_float:
            for kind in (SMALL, LARGE, ZEROS, SUBNORMAL):
                yield probe(kind, seeds, f"{kind}{where}")
        if has_discrete:
            for end, label in ((0, "smallest integers, all false"), (1, "largest integers, all true")):
                yield probe(BOUNDARY, seeds, f"{label}{where}", end)


def own(signature: Signature, inputs: Mapping[str, Any] | str | os.PathLike[str]) -> Probe:
    """The user's inputs as a probe.

    Arguments:
        inputs: arrays by input name, or the path of an .npz file that holds them.

    Raises InvalidModelError if names, dtypes or shapes don't fit the signature.
    """
    if isinstance(inputs, Mapping):
        return Probe("your inputs", USER, signature.bind((), dict(inputs)))
    try:
        with np.load(inputs, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise InvalidModelError(f"{os.fspath(inputs)} holds one array without a name: use numpy.savez")
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, InvalidModelError):
            raise
        raise InvalidModelError(f"{os.fspath(inputs)} cannot be read as .npz: {error}") from None
    return Probe(os.fspath(inputs), USER, signature.bind((), arrays))


def varied(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Other inputs made of the same values, to see whether the outputs depend on them."""
    rng = np.random.default_rng(0)

    def vary(a: np.ndarray) -> np.ndarray:
        shuffled = rng.permutation(a.reshape(-1)).reshape(a.shape)
        return (shuffled.astype(np.float64) * 0.9).astype(a.dtype) if trees.is_float(a.dtype) else shuffled

    return [vary(a) for a in arrays]


def _axes(spec: TensorSpec) -> Iterator[int | str]:
    """Sizes and dimension names; an unknown size is a dimension of its own."""
    for axis, size in enumerate(spec.shape):
        yield f"axis {axis} of {spec.name}" if size is None else size


def _combinations(signature: Signature, wanted: tuple[int, ...]) -> Iterator[dict[str, int]]:
    """Sizes of the dynamic dimensions: all at the first wanted size, all at the second, …, then two mixtures."""
    names = list(dict.fromkeys(a for spec in signature.inputs for a in _axes(spec) if isinstance(a, str)))
    choices = {n: _sizes(signature.dims.get(n, Dimension()), wanted, i) for i, n in enumerate(names)}
    longest = max((len(c) for c in choices.values()), default=1)
    rows = [[0] * len(names)] if not names else [[k] * len(names) for k in range(longest)]
    if len(names) > 1:  # sizes that differ between dimensions, so that swapped ones are seen
        rows[-1:-1] = [[(i + shift) % longest for i in range(len(names))] for shift in (0, 1)]
    seen = set()
    for row in rows:
        sizes = {n: choices[n][min(k, len(choices[n]) - 1)] for n, k in zip(names, row, strict=True)}
        if tuple(sizes.items()) not in seen:
            seen.add(tuple(sizes.items()))
            yield sizes


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


def _draw(
    spec: TensorSpec, sizes: Mapping[str, int], bounds: Bounds, kind: str, rng: np.random.Generator, end: int | None
) -> np.ndarray:
    """One input array. `end` 0 or 1 sets integers and booleans to their smallest or largest value."""
    dtype = dtype_named(spec.dtype)
    shape = tuple(sizes[a] if isinstance(a, str) else a for a in _axes(spec))
    if dtype.kind == "b":
        return rng.random(shape) < 0.5 if end is None else np.full(shape, bool(end))
    if dtype.kind in "iu":
        low, high = spec.bounds or bounds.get(spec.name, (0, 1))
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
    elif kind == SUBNORMAL:
        numbers = np.clip(numbers / 4, -0.9, 0.9) * float(_finfo(dtype).tiny)
    elif kind in (SMALL, LARGE):
        # 1000 times a normal number, squared or summed, has left the range of float16
        factor = 16.0 if dtype == np.float16 else 1000.0
        numbers = numbers * factor if kind == LARGE else numbers / factor
    return np.asarray(numbers).astype(dtype)
