"""Fourier transforms, windows, mel filters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ....ir import dtypes
from ....ir.errors import InvalidModelError
from .registry import Value, define, library, primitive, scalar


def _complex(x: Value) -> Value:
    """The last axis, of size 1 (real) or 2 (real and imaginary), as complex numbers of double precision.

    In single precision, frequencies that cancel to 0 would come out as the rounding errors of the largest ones.
    """
    wide = x.astype(np.float64)
    if wide.shape[-1] == 1:
        return wide[..., 0].astype(np.complex128)
    if wide.shape[-1] != 2:
        raise InvalidModelError(f"the last axis of a signal must have size 1 or 2, not {wide.shape[-1]}")
    return wide[..., 0] + wide[..., 1] * np.asarray(1j)


def _pairs(z: Value, dtype: Any) -> Value:
    """Complex numbers as a last axis of real and imaginary parts."""
    return library(z).stack((z.real, z.imag), -1).astype(dtype)


@primitive
def DFT(
    x: Value, length: Value | None = None, axis: Value | None = None, *, inverse: int = 0, onesided: int = 0
) -> Value:
    along = -2 if axis is None else scalar(axis, "the axis of DFT")
    along = along % x.ndim
    if along == x.ndim - 1:
        raise InvalidModelError("the axis of a DFT cannot be the last one, which holds real and imaginary parts")
    n = None if length is None else scalar(length, "the length of DFT")
    z = _complex(x)
    fft = library(z).fft
    if inverse and onesided:  # the spectrum is a half: the signal is real
        if n is None:
            n = 2 * (z.shape[along] - 1)
        return fft.irfft(z, n, along)[..., None].astype(x.dtype)
    if inverse:
        # in the precision of the input, as numpy does it: ONNX's tests compare numbers that should be 0 with that
        narrow = z if x.dtype == np.float64 else z.astype(np.complex64)
        return _pairs(fft.ifft(narrow, n, along), x.dtype)
    spectrum = fft.fft(z, n, along)
    if onesided:
        half = spectrum.shape[along] // 2 + 1
        spectrum = spectrum[tuple(slice(half) if i == along else slice(None) for i in range(spectrum.ndim))]
    return _pairs(spectrum, x.dtype)


@primitive
def STFT(
    signal: Value, step: Value, window: Value | None = None, length: Value | None = None, *, onesided: int = 1
) -> Value:
    """signal [batch, time, 1 or 2] -> [batch, frames, frequencies, 2]."""
    hop = scalar(step, "the step of STFT")
    if length is not None:
        size = scalar(length, "the frame length of STFT")
    elif window is not None:
        size = window.shape[0]
    else:
        raise InvalidModelError("STFT needs a window or a frame length")
    z = _complex(signal if signal.ndim == 3 else signal[..., None])
    count = (z.shape[1] - size) // hop + 1
    places = np.arange(count)[:, None] * hop + np.arange(size)
    frames = z[:, places]
    if window is not None:
        frames = frames * window.astype(frames.real.dtype)
    spectrum = library(frames).fft.fft(frames, axis=-1)
    if onesided:
        spectrum = spectrum[..., : size // 2 + 1]
    return _pairs(spectrum, signal.dtype)


def _window(*weights: float) -> Callable[..., Value]:
    """A sum of cosines of rising frequency: w0 - w1 cos + w2 cos 2 - …"""

    def window(size: Value, *, output_datatype: int = 1, periodic: int = 1) -> Value:
        n = scalar(size, "the size of a window")
        positions = np.arange(n) * (2 * np.pi / (n if periodic else max(n - 1, 1)))
        terms = [(-1) ** k * w * np.cos(k * positions) for k, w in enumerate(weights)]
        return np.sum(terms, axis=0).astype(dtypes.from_onnx(output_datatype))

    return window


define(
    HannWindow=_window(0.5, 0.5),
    HammingWindow=_window(25 / 46, 21 / 46),
    BlackmanWindow=_window(0.42, 0.5, 0.08),
)


@primitive
def MelWeightMatrix(
    bins: Value, length: Value, rate: Value, lowest: Value, highest: Value, *, output_datatype: int = 1
) -> Value:
    """Weights [length // 2 + 1, bins] of triangles that are equally spaced on the mel scale."""
    count, size = scalar(bins, "the number of mel bins"), scalar(length, "the length of the DFT")
    hertz = np.array([np.asarray(lowest).reshape(()), np.asarray(highest).reshape(())], np.float64)
    low, high = 2595 * np.log10(1 + hertz / 700)
    mels = np.arange(count + 2) * ((high - low) / (count + 2)) + low
    edges = np.floor((size + 1) * (700 * (10 ** (mels / 2595) - 1)) / scalar(rate, "the sample rate")).astype(np.int64)
    weights = np.zeros((size // 2 + 1, count), np.float64)
    for i, (left, centre, right) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        rise = centre - left
        if rise == 0:
            weights[centre, i] = 1
        else:
            weights[left : centre + 1, i] = np.arange(rise + 1) / rise
        if right > centre:
            weights[centre:right, i] = (right - np.arange(centre, right)) / (right - centre)
    return weights.astype(dtypes.from_onnx(output_datatype))
