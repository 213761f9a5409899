"""Complex tensors as two real values: ONNX's operators have none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..builder import Shape, Value


@dataclass(frozen=True)
class Complex:
    """The real and the imaginary part of a tensor, of one shape and dtype."""

    real: Value
    imag: Value

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the parts."""
        return self.real.dtype

    @property
    def shape(self) -> Shape | None:
        return self.real.shape


def each_part(function: Callable[..., Any], *values: Any) -> Any:
    """A function of real values, applied to the real and to the imaginary parts; to real values alone once."""
    if not any(isinstance(v, Complex) for v in values):
        return function(*values)
    real = (v.real if isinstance(v, Complex) else v for v in values)
    imag = (v.imag if isinstance(v, Complex) else v for v in values)
    return Complex(function(*real), function(*imag))


def parts(values: Iterable[Any]) -> list[Value]:
    """Values with the two parts of complex ones in their place."""
    return [part for v in values for part in ((v.real, v.imag) if isinstance(v, Complex) else (v,))]
