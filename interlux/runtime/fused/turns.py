"""Reduction of large angles by π/2 (Payne and Hanek): of x · 2/π only the digits around the point are computed."""

from __future__ import annotations

import math

import numpy as np

from .llvm import F64, I64, PTR, VOID, Function, Type, Value
from .pairs import quick_two_sum, two_product

NAME = "fused_quarter_turns"
I128 = Type("i128")

# 64 zeros, then 2/π: bits after the binary point, most significant first
TWO_OVER_PI = (
    0x0000000000000000, 0xA2F9836E4E441529, 0xFC2757D1F534DDC0, 0xDB6295993C439041, 0xFE5163ABDEBBC561,
    0xB7246E3A424DD2E0, 0x06492EEA09D1921C, 0xFE1DEB1CB129A73E, 0xE88235F52EBB4484, 0xE99C7026B45F7E41,
    0x3991D639835339F4, 0x9C845F8BBDF9283B, 0x1FF897FFDE05980F, 0xEF2F118B5A0A6D1F, 0x6D367ECF27CB09B7,
    0x4F463F669E5FEA2D, 0x7527BAC7EBE5F17B, 0x3D0739F78A5292EA, 0x6BFB5FB11F8D5D08, 0x56033046FC7B6BAB,
    0xF0CFBC209AF4361D,
)  # fmt: skip


def large_turns(f: Function, x: Value) -> tuple[Value, Value, Value]:
    """r, low and an integer q (of which the lowest two bits count) with x = r + low + q π/2, |r| <= π/4.

    Arguments:
        x: scalar float64, at least 2^20 in size; for other numbers the results are numbers without meaning.
    """
    module = f.module
    if NAME not in module._functions:
        define = module.function(NAME, [("x", F64), ("result", PTR)], internal=True, inline=False)
        _define(define)
    result = f.scratch(F64, 3)
    f.call(NAME, VOID, x, result)
    return f.load(result), f.load(result + 1), f.bits(f.load(result + 2))


def _define(f: Function) -> None:
    x, result = f["x"], f["result"].of(F64)
    bits = f.bits(x)
    mantissa = (bits & ((1 << 52) - 1)) | (1 << 52)
    exponent = f.op("lshr", bits, 52) & 0x7FF  # |x| = mantissa · 2^(exponent - 1075)
    # From this bit on, the digits of 2/π give parts of the product below 4; 192 of them, 137 more than x has.
    position = exponent - (1075 - 62)
    position = f.select(position > 0, position, f.const(0, I64))
    words = f.module.constant(f, f"{NAME}_table", np.array(TWO_OVER_PI, np.uint64).view(np.int64))
    start = words + f.op("lshr", position, 6)
    shift = position & 63
    raw = [f.load(start + i) for i in range(4)]
    digits = [(raw[i] << shift) | f.op("lshr", f.op("lshr", raw[i + 1], 1), f.sub(63, shift)) for i in range(3)]
    m, *d = (f.cast("zext", word, I128) for word in (mantissa, *digits))
    # the product modulo 2^192, without its lowest 64 bits: 2 bits before the point and 126 after it
    v = f.op("shl", f.op("mul", m, d[0]), 64) + f.op("mul", m, d[1]) + f.op("lshr", f.op("mul", m, d[2]), 64)
    n = f.op("lshr", v + (1 << 125), 126)
    rest = v - f.op("shl", n, 126)
    negative = rest < 0
    size = f.select(negative, -rest, rest)
    zeros = f.call("llvm.ctlz.i128", I128, size, f.const(False, Type("i1")))
    size = f.op("shl", size, zeros)
    first = f.cast("trunc", f.op("lshr", size, 75), I64)  # 53 bits, and 53 more
    second = f.cast("trunc", f.op("lshr", size, 22), I64) & ((1 << 53) - 1)
    scale = f.from_bits((1023 - 51 - f.cast("trunc", zeros, I64)) << 52, F64)
    high = f.cast("sitofp", first, F64) * scale
    low = f.cast("sitofp", second, F64) * scale * 2.0**-53
    r, error = two_product(f, high, math.pi / 2)
    r, error = quick_two_sum(r, error + (high * 6.123233995736766e-17 + low * (math.pi / 2)))
    below = x < 0.0
    turned = f.op("xor", negative, below)
    n = f.cast("trunc", n, I64)
    f.store(f.select(turned, -r, r), result)
    f.store(f.select(turned, -error, error), result + 1)
    f.store(f.from_bits(f.select(below, -n, n), F64), result + 2)
    f.ret()
