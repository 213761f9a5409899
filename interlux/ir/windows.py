"""Windows that slide over spatial axes: of pools and convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from .errors import InvalidModelError

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """A kernel that slides over the spatial axes.

    Arguments:
        spatial: the sizes of the input's spatial axes.
        kernel, strides, dilations: for each spatial axis.
        pads: (begin, end) of each spatial axis, grown by what `ceil_mode` adds.
        declared: the pads without that.
        sizes: of the result's spatial axes.
    """

    spatial: Ints
    kernel: Ints
    strides: Ints
    dilations: Ints
    pads: tuple[tuple[int, int], ...]
    declared: tuple[tuple[int, int], ...]
    sizes: Ints

    @classmethod
    def of(
        cls,
        spatial: Ints,
        kernel: Ints,
        strides: Ints | None = None,
        pads: Ints | None = None,
        dilations: Ints | None = None,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
    ) -> Window:
        """From an operator's attributes and the sizes of its input's spatial axes."""
        n = len(kernel)
        strides, dilations = strides or (1,) * n, dilations or (1,) * n
        declared = _pads(spatial, kernel, strides, dilations, pads, auto_pad)
        grown, sizes = [], []
        for i, (begin, end) in enumerate(declared):
            room = spatial[i] + begin + end - (kernel[i] - 1) * dilations[i] - 1
            count = room // strides[i] + 1
            # no window starts in the end padding
            if ceil_mode and room % strides[i] and count * strides[i] < spatial[i] + begin:
                count += 1
                end += (count - 1) * strides[i] - room
            grown.append((begin, end))
            sizes.append(count)
        return cls(spatial, kernel, strides, dilations, tuple(grown), tuple(declared), tuple(sizes))

    @property
    def taps(self) -> int:
        """How many elements the kernel has."""
        return prod(self.kernel)

    @property
    def is_padded(self) -> bool:
        return any(map(any, self.pads))

    def places(self, axis: int) -> np.ndarray:
        """Where on the input's spatial axis every element of every window lies [sizes[axis], kernel[axis]]; what is
        below 0 or not below spatial[axis] lies on the padding."""
        starts = np.arange(self.sizes[axis]) * self.strides[axis] - self.pads[axis][0]
        return starts[:, None] + np.arange(self.kernel[axis]) * self.dilations[axis]

    def slices(self, tap: Ints) -> tuple[slice, ...]:
        """What the kernel's element `tap` meets in all windows, as an index into the padded spatial axes."""
        begin = [t * d for t, d in zip(tap, self.dilations, strict=True)]
        ends = [b + (m - 1) * s + 1 for b, m, s in zip(begin, self.sizes, self.strides, strict=True)]
        return tuple(slice(b, e, s) for b, e, s in zip(begin, ends, self.strides, strict=True))

    def counts(self, include_pad: bool) -> np.ndarray:
        """By how many elements the average of every window divides [*sizes]; what `ceil_mode` adds never counts.

        Arguments:
            include_pad: whether the declared padding does.
        """
        result = np.ones((), np.int64)
        for axis, size in enumerate(self.spatial):
            first, last = 0, size
            if include_pad:
                first, last = -self.declared[axis][0], size + self.declared[axis][1]
            places = self.places(axis)
            result = np.multiply.outer(result, np.sum((first <= places) & (places < last), axis=1))
        return result


def _pads(
    spatial: Ints,
    kernel: Ints,
    strides: Ints,
    dilations: Ints,
    pads: Ints | None,
    auto_pad: str,
) -> list[tuple[int, int]]:
    """(begin, end) of every spatial axis from ONNX's `pads` or `auto_pad`."""
    n = len(kernel)
    if auto_pad in ("NOTSET", "VALID"):
        flat = (0,) * (2 * n) if pads is None or auto_pad == "VALID" else pads
        return list(zip(flat[:n], flat[n:], strict=True))
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise InvalidModelError(f"unknown auto_pad {auto_pad!r}")
    result = []
    for size, k, s, d in zip(spatial, kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        result.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
    return result
