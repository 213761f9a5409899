"""The builder of LLVM IR and the targets: what it emits computes what Python and numpy compute."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from interlux.ir.errors import InvalidModelError, UnsupportedError
from interlux.runtime.fused import target as targets
from interlux.runtime.fused.llvm import F32, F64, I1, I32, I64, PTR, Function, Module, assemble, load, type_of

TARGETS = targets.executable()


def run(module: Module, name: str, *arguments):
    library = load(assemble(module.text(), module.target), [name])
    kinds = [ctypes.c_int64 if isinstance(a, int) else ctypes.c_void_p for a in arguments]
    function = ctypes.CFUNCTYPE(None, *kinds)(library.address(name))
    function(*(a if isinstance(a, int) else a.ctypes.data for a in arguments))


def elementwise(target, dtype, body, *arrays):
    """body(f, *vectors) over arrays of a whole number of vectors; returns the result."""
    element, lanes = type_of(dtype), target.lanes(dtype)
    module = Module(target)
    f = module.function("run", [*((f"x{i}", PTR) for i in range(len(arrays))), ("y", PTR), ("n", I64)])
    with f.loop(0, f["n"], lanes) as i:
        xs = [f.load(f[f"x{k}"].of(element) + i, lanes) for k in range(len(arrays))]
        f.store(body(f, *xs), f["y"].of(element) + i)
    f.ret()
    y = np.zeros_like(arrays[0])
    run(module, "run", *arrays, y, y.size)
    return y


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arithmetic(target, dtype):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 64)).astype(dtype) * 10
    np.testing.assert_array_equal(
        elementwise(target, dtype, lambda f, a, b: (a + b) * 0.5 - a / b, x, y),
        (x + y) * np.asarray(0.5, dtype) - x / y,
    )
    np.testing.assert_array_equal(elementwise(target, dtype, lambda f, a, b: -f.sqrt(f.abs(a)), x, y), -np.sqrt(abs(x)))
    np.testing.assert_array_equal(elementwise(target, dtype, lambda f, a: f.floor(a), x), np.floor(x))
    halves = np.round(x) + np.asarray(0.5, dtype)
    np.testing.assert_array_equal(elementwise(target, dtype, lambda f, a: f.round(a), halves), np.round(halves))
    both = elementwise(target, dtype, lambda f, a, b: f.fma(a, b, 1.0), x, y)
    np.testing.assert_allclose(both, x.astype(float) * y + 1, rtol=1e-5)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_round_keeps_special_values(target):
    x = np.array([np.inf, -np.inf, np.nan, -0.0, 0.0, 1e30, -0.25, 8388609.0] * 8, np.float32)
    y = elementwise(target, "float32", lambda f, a: f.round(a), x)
    np.testing.assert_array_equal(y, np.round(x))
    np.testing.assert_array_equal(np.signbit(y), np.signbit(np.round(x)))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_comparison_min_max_and_nan(target):
    x = np.array([1, 2, np.nan, 4] * 16, np.float32)
    y = np.array([2, 1, 3, np.nan] * 16, np.float32)
    np.testing.assert_array_equal(
        elementwise(target, "float32", lambda f, a, b: f.maximum(a, b), x, y), np.maximum(x, y)
    )
    np.testing.assert_array_equal(
        elementwise(target, "float32", lambda f, a, b: f.minimum(a, b), x, y), np.minimum(x, y)
    )
    np.testing.assert_array_equal(
        elementwise(target, "float32", lambda f, a, b: f.max(a, b), x, y), [2, 2, 3, np.nan] * 16
    )
    picked = elementwise(target, "float32", lambda f, a, b: f.select((a < b) | f.is_nan(a), 1.0, a), x, y)
    np.testing.assert_array_equal(picked, [1, 2, 1, 4] * 16)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_bits(target):
    x = np.array([1.0, -2.0, 0.0, np.inf] * 16, np.float32)
    doubled = elementwise(target, "float32", lambda f, a: f.from_bits(f.add(f.bits(a), 1 << 23), F32), x)
    np.testing.assert_array_equal(doubled[:2], [2.0, -4.0])
    there_and_back = elementwise(
        target, "float32", lambda f, a: f.cast("sitofp", f.cast("fptosi", a, I32), F32), x[:1].repeat(64)
    )
    np.testing.assert_array_equal(there_and_back, 1)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("n", [0, 1, 2, 7, 13])
def test_loops_variables_and_branches(target, n):
    module = Module(target)
    f = module.function("run", [("out", PTR), ("n", I64)])
    out = f["out"].of(I64)
    total, odd = f.variable(0, I64), f.variable(0, I64)
    with f.loop(0, f["n"]) as i, f.loop(0, 3) as j:
        total.set(total.get() + i * 10 + j)
        with f.when(f.eq(i & 1, 1)):
            odd.set(odd.get() + 1)
    f.store(total.get(), out)
    f.store(odd.get(), out + 1)
    left = f.variable(f["n"])
    with f.repeat(lambda: left.get() > 3):
        left.set(left.get() - 3)
    f.store(left.get(), out + 2)
    f.branch(f["n"] > 5, lambda: f.store(f.const(1, I64), out + 3), lambda: f.store(f.const(2, I64), out + 3))
    steps = f.variable(0, I64)
    f.unrolled(13, 4, lambda base, offset: steps.set(steps.get() + f.add(base, offset)))
    f.store(steps.get(), out + 4)
    with f.loop(0, 1) as once, f.loop(5, 5):
        assert once == 0
        f.store(f.const(99, I64), out + 4)
    f.exit_when(f["n"] > 5)
    f.store(f.const(7, I64), out + 5)
    f.ret()
    out_array = np.zeros(6, np.int64)
    run(module, "run", out_array, n)
    expected = sum(i * 10 + j for i in range(n) for j in range(3))
    rest = n
    while rest > 3:
        rest -= 3
    assert out_array.tolist() == [expected, 3 * (n // 2), rest, 1 if n > 5 else 2, sum(range(13)), 0 if n > 5 else 7]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_partial_vectors_shuffles_and_reductions(target, dtype):
    element, lanes = type_of(dtype), target.lanes(dtype)
    x = np.arange(1, 65, dtype=dtype)
    for count in {1, (lanes + 1) // 2, lanes}:
        module = Module(target)
        f = module.function("run", [("x", PTR), ("y", PTR)])
        vector = f.load(f["x"].of(element), lanes, count=count)
        f.store(vector, f["y"].of(element), count=count)
        f.store(f.reduce(f.add, vector), f["y"].of(element) + 32)
        backwards = f.shuffle(vector, None, range(lanes)[::-1])
        f.store(backwards, f["y"].of(element) + 40)
        f.store(f.join([vector, vector]), f["y"].of(element) + 16) if lanes <= 8 else None
        f.store(f.extract(vector, 0), f["y"].of(element) + 33)
        f.ret()
        y = np.zeros(64, dtype)
        run(module, "run", x, y)
        np.testing.assert_array_equal(y[:16], np.where(np.arange(16) < count, x[:16], 0)[:16] * (np.arange(16) < lanes))
        assert y[32] == x[:count].sum() and y[33] == 1
        np.testing.assert_array_equal(y[40 : 40 + lanes], np.pad(x[:count], (0, lanes - count))[::-1])


def test_masks_constants_and_calls():
    target = targets.host()
    lanes = target.lanes("float32")
    module = Module(target)
    table = np.arange(10, dtype=np.float32)
    inner = module.function("third", [("v", F64)], F64, internal=True)
    inner.ret(inner["v"] / 3.0)
    f = module.function("run", [("y", PTR), ("n", I64)])
    y = f["y"].of(F32)
    f.store(f.load(module.constant(f, "table", table) + f["n"]), y)
    f.store(f.cast("fptrunc", f.call("third", F64, f.const(6.0, F64)), F32), y + 1)
    f.store(f.cast("fptrunc", f.call("cos", F64, f.const(0.0, F64)), F32), y + 2)
    mask = f.vector([i % 2 == 0 for i in range(lanes)], I1)
    if lanes > 1:
        f.store_masked(f.const(5.0, F32.vector(lanes)), y + 16, mask)
    f.ret()
    result = np.zeros(48, np.float32)
    run(module, "run", result, 7)
    assert result[:3].tolist() == [7, 2, 1]
    if lanes > 1:
        assert result[16 : 16 + lanes].tolist() == [5.0, 0.0] * (lanes // 2)


def test_constants_are_exact():
    f = Module(targets.host()).function("run", [])
    assert isinstance(f, Function)
    assert f.const(0.1, F32).text == "0x3FB99999A0000000"
    assert f.const(-0.0, F64.vector(2)).text == "splat (double 0x8000000000000000)"
    assert f.const(0.0, F32.vector(4)).text == "zeroinitializer"
    assert f.add(2, 3) == 5 and f.mul(2, 3) == 6


def test_targets():
    assert TARGETS[-1].name == "scalar" and TARGETS[-1].lanes("float64") == 1
    assert targets.named("avx512").lanes("float32") == 16 and targets.named("avx2").lanes("float64") == 4
    assert targets.host().name == TARGETS[0].name
    with pytest.raises(UnsupportedError, match="there is no target 'mmx'; choose host, avx512"):
        targets.named("mmx")
    with pytest.raises(UnsupportedError, match="the fused engine has no complex64"):
        type_of("complex64")


def test_code_for_other_machines():
    module = Module(targets.named("neon"))
    f = module.function("run", [("x", PTR)])
    x = f["x"].of(F32)
    f.store(f.fma(f.load(x, 4), 2.0, 1.0), x)
    f.ret()
    assert assemble(module.text(), module.target)[18] == 183  # e_machine of an ELF header: AArch64


def test_wrong_text_is_a_one_line_error():
    with pytest.raises(InvalidModelError, match="the fused engine made wrong LLVM IR"):
        assemble("define void @run() { nonsense }", targets.host())
    module = Module(targets.host())
    module.function("run", []).ret()
    with pytest.raises(InvalidModelError, match=r"cannot be loaded: .*walk"):
        load(assemble(module.text(), module.target), ["walk"])
