"""Conversions that numpy and JAX do otherwise than ONNX, or not at all: types below 16 bits, and strings.

Floats of 8 bits saturate on request, integers of 4 and 2 bits keep their lowest bits, and strings are parsed. A traced
computation gives the same bits as numpy: where XLA or ml_dtypes go astray, the reason is beside the detour.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

from ....ir.errors import InvalidModelError, UnsupportedError
from .registry import Value, concrete, is_static, library

DType = np.dtype[Any]
_FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
_E8M0 = "float8_e8m0fnu"
_FLOAT4 = "float4_e2m1fn"
_INTEGERS = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2}  # bits
_ROUND_MODES = ("up", "down", "nearest")


def is_narrow_float(dtype: DType) -> bool:
    """Whether a dtype is a float of 8 or 4 bits."""
    return dtype.name in (*_FLOAT8, _E8M0, _FLOAT4)


def bit_width(dtype: DType) -> int:
    """Bits of an element; those of ml_dtypes' small types, which fill a byte in memory, too."""
    return _INTEGERS.get(dtype.name, 4 if dtype.name == _FLOAT4 else dtype.itemsize * 8)


def converted(x: Value, dtype: DType, *, saturate: bool = True, round_mode: str = "up") -> Value:
    """ONNX's Cast.

    Arguments:
        x: an array of any dtype; object for strings.
        dtype: of the result.
        saturate: whether floats of 8 bits become the largest number instead of infinity or NaN.
        round_mode: up, down or nearest; for float8_e8m0 only.

    Returns:
        an array of x's shape. Values outside of a small integer type keep their lowest bits.

    Raises:
        InvalidModelError for another round_mode, UnsupportedError for strings that are not numbers, and DataDependent
        for strings while tracing.

    Source: the operator's tables in ONNX's documentation. (For float8_e8m0, ONNX's reference implementation departs
    from them: infinity, and numbers below the smallest one.) The sign is dropped where the target has none.
    """
    if x.dtype == dtype:
        return x
    if dtype.kind == "O":
        return _to_strings(concrete(x, "a text made from numbers"))
    if x.dtype.kind == "O":
        return _from_strings(concrete(x, "a number read from a text"), dtype, saturate, round_mode)
    if is_narrow_float(x.dtype):  # exact; XLA's own conversion from float4 to integers saturates wrongly
        x = x.astype(np.float32)
    if dtype.name in _FLOAT8:
        return _to_float8(x, dtype, saturate)
    if dtype.name == _E8M0:
        return _to_e8m0(x, dtype, saturate, round_mode)
    if dtype.name == _FLOAT4:
        xp, wide = library(x), _wide(x)
        return xp.where(xp.isnan(wide), np.asarray(0, wide.dtype), wide).astype(dtype)  # XLA's NaN becomes -0
    if dtype.name in _INTEGERS:
        return _to_small_integer(x, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(dtype)


def _wide(x: Value) -> Value:
    """x in float32, or in float64 while tracing if it was so; further rounding to few bits is exact."""
    if x.dtype == np.float64:
        return _rounded_to_odd(x) if is_static(x) else x  # ml_dtypes would round twice
    return x.astype(np.float32)


def _bits(x: Value, dtype: Any) -> Value:
    """The bits of x as another dtype of the same width."""
    return np.ascontiguousarray(x).view(dtype).reshape(x.shape) if is_static(x) else lax.bitcast_convert_type(x, dtype)


def _rounded_to_odd(x: Value) -> Value:
    """float64 to float32; inexact results get an odd last bit, so that rounding them again rounds x itself.

    Source: Boldo and Melquiond, "When double rounding is odd", 2005.
    """
    xp = library(x)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        near = x.astype(np.float32)
        back = near.astype(np.float64)
    bits = _bits(near, np.uint32)
    truncated = xp.where(abs(back) > abs(x), bits - np.uint32(1), bits)  # towards zero; infinity: the largest number
    odd = xp.where((back != x) & ~xp.isnan(x), truncated | np.uint32(1), bits)
    return _bits(odd.astype(np.uint32), np.float32)


def _to_float8(x: Value, dtype: DType, saturate: bool) -> Value:
    wide = _wide(x)
    if saturate:
        limit = np.asarray(ml_dtypes.finfo(dtype).max, wide.dtype)
        wide = library(wide).clip(wide, -limit, limit)  # NaN stays
    with np.errstate(over="ignore", invalid="ignore"):
        return wide.astype(dtype)


def _to_e8m0(x: Value, dtype: DType, saturate: bool, round_mode: str) -> Value:
    """A power of two: the exponent of float32, rounded by the fraction. The sign is dropped."""
    if round_mode not in _ROUND_MODES:
        raise InvalidModelError(f"unknown round_mode {round_mode!r}; ONNX has {', '.join(_ROUND_MODES)}")
    xp = library(x)
    bits = _bits(_rounded_to_odd(x) if x.dtype == np.float64 else x.astype(np.float32), np.uint32)
    exponent, fraction = (bits >> np.uint32(23)) & np.uint32(255), bits & np.uint32(0x7FFFFF)
    # the smallest power, 2^-127, is a denormal of float32: exponent 0, fraction 0x400000
    normal, least = exponent > 0, np.uint32(0x400000)
    if round_mode == "up":
        more = fraction > xp.where(normal, np.uint32(0), least)
    elif round_mode == "nearest":  # ties go up
        more = fraction >= xp.where(normal, least, np.uint32(0x600000))
    else:
        more = xp.zeros(fraction.shape, bool)
    result = exponent + more
    if saturate:
        result = xp.minimum(result, np.uint32(254))
    else:
        result = xp.where(normal | (fraction >= least), result, np.uint32(255))  # below the range: NaN
    is_nan = (exponent == 255) & (fraction > 0)
    above = np.uint32(254 if saturate else 255)
    result = xp.where(exponent == 255, xp.where(is_nan, np.uint32(255), above), result)
    return _bits(result.astype(np.uint8), dtype)


def _to_small_integer(x: Value, dtype: DType) -> Value:
    """The lowest bits of the integer part."""
    bits = _INTEGERS[dtype.name]
    if not np.issubdtype(x.dtype, np.integer) and x.dtype.name not in _INTEGERS:
        with np.errstate(invalid="ignore"):
            x = x.astype(np.int32)
    low = x.astype(np.int32) & np.int32(2**bits - 1)
    if dtype.name.startswith("int"):
        sign = np.int32(2 ** (bits - 1))
        low = (low ^ sign) - sign
    return low.astype(np.int8).astype(dtype)


def _to_strings(x: np.ndarray) -> np.ndarray:
    texts = np.empty(x.size, object)
    texts[:] = [str(number) for number in x.reshape(-1)]
    return texts.reshape(x.shape)


def _number(text: Any, dtype: DType) -> int | float:
    words = text.decode() if isinstance(text, bytes) else str(text)
    try:
        if np.issubdtype(dtype, np.integer) or dtype.name in _INTEGERS:
            try:
                return int(words)
            except ValueError:
                return int(float(words))
        if dtype == np.bool_ and words in ("True", "False"):  # what ONNX's reference writes
            return words == "True"
        return float(words)
    except (ValueError, OverflowError):
        raise UnsupportedError(
            f"the text {words!r} cannot be cast to {dtype.name}; ONNX leaves this undefined"
        ) from None


def _from_strings(x: np.ndarray, dtype: DType, saturate: bool, round_mode: str) -> np.ndarray:
    numbers = [_number(text, dtype) for text in x.reshape(-1)]
    if np.issubdtype(dtype, np.integer) or dtype.name in _INTEGERS:
        numbers = [int(number) & (2**64 - 1) for number in numbers]  # higher bits are dropped
        return converted(np.array(numbers, np.uint64).reshape(x.shape), dtype)
    return converted(np.array(numbers, np.float64).reshape(x.shape), dtype, saturate=saturate, round_mode=round_mode)


def bits_as(x: Value, dtype: DType) -> Value:
    """The bits of x read as another dtype of the same width. Works on small types, bool and complex numbers, too."""
    if x.dtype == dtype:
        return x
    xp = library(x)
    if x.dtype == np.bool_:
        x = x.astype(np.uint8)
    if dtype == np.bool_:
        return _bits(x, np.uint8) != 0
    if bit_width(dtype) < 8:
        return _small_bits(x, dtype)
    if xp is np:
        return _bits(x, dtype)
    if x.dtype == np.complex64:
        x = lax.bitcast_convert_type(jnp.stack([x.real, x.imag], -1), np.uint64)  # little endian
    if dtype == np.complex64:
        parts = lax.bitcast_convert_type(x, np.float32)
        return lax.complex(parts[..., 0], parts[..., 1])
    return lax.bitcast_convert_type(x, dtype)


def _small_bits(x: Value, dtype: DType) -> Value:
    if not is_static(x):
        return lax.bitcast_convert_type(x, dtype)
    low = _bits(x, np.uint8) & np.uint8(2 ** bit_width(dtype) - 1)  # ml_dtypes extends the sign in the byte
    return _bits(low, dtype) if dtype.name == _FLOAT4 else _to_small_integer(low, dtype)
