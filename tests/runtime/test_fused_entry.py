"""The entry from Python: what it takes, what it refuses, and that nothing it is given crashes it."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from interlux.ir.errors import InvalidModelError, ResourceLimitError
from interlux.ir.model import Dimension, Signature, TensorSpec
from interlux.runtime.fused import abi
from interlux.runtime.fused.entry import Entry, _plain
from tests.runtime.fused_functions import affine, pair, through_arena

SPEC = TensorSpec("x", "float32", ("batch", 4))


def signed(*specs: TensorSpec, **dims: Dimension) -> Signature:
    return Signature(specs or (SPEC,), (), dims)


@pytest.fixture(params=["fast", "slow"])
def call(request: pytest.FixtureRequest) -> Any:
    """y = 2x + 1 over four features, through the generated entry and through ctypes."""
    entry = Entry(affine(), signed(), threads=1)
    return entry.call if request.param == "fast" else entry.slow


def test_this_python_and_numpy_are_known() -> None:
    assert isinstance(abi.layout(), abi.Layout)
    assert type(Entry(affine()).call) is type(len)


@pytest.mark.parametrize("batch", [0, 1, 2, 15, 16, 17, 1000])
def test_results(call: Any, batch: int) -> None:
    x = np.random.default_rng(0).standard_normal((batch, 4)).astype(np.float32)
    (y,) = call(x)
    assert y.dtype == np.float32 and y.flags.owndata and y.flags.c_contiguous
    np.testing.assert_array_equal(y, 2 * x + 1)


def test_several_inputs_and_outputs() -> None:
    entry = Entry(pair(), signed(TensorSpec("x", "float32", ("n", 3)), TensorSpec("k", "int64", ("n", 2))))
    x, k = np.ones((5, 3), np.float32), np.arange(10).reshape(5, 2)
    for u, v in (entry.call(x, k), entry.call(k=k, x=x), entry.slow(x, k)):
        np.testing.assert_array_equal(u, x + 10)
        np.testing.assert_array_equal(v, 2 * k)
    out = np.empty((5, 3), np.float32), np.empty((5, 2), np.int64)
    assert entry.call(x, k, out=out)[1] is out[1]
    np.testing.assert_array_equal(out[0], x + 10)
    with pytest.raises(InvalidModelError, match="5 on axis 0 of input 'x'"):
        entry.call(x, k[:4].copy())
    with pytest.raises(InvalidModelError, match="out has 1 arrays, the model has 2"):
        entry.call(x, k, out=out[0])


def test_out(call: Any) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    y = np.zeros_like(x)
    assert call(x, out=y)[0] is y
    np.testing.assert_array_equal(y, 2 * x + 1)
    strided = np.zeros((2, 8), np.float32)
    call(x, out=strided[:, ::2])
    np.testing.assert_array_equal(strided, np.stack([2 * x + 1, 0 * x], -1).reshape(2, 8))


def test_out_over_the_input(call: Any) -> None:
    memory = np.arange(44, dtype=np.float32)
    x, y = memory[:40].reshape(10, 4), memory[4:].reshape(10, 4)
    expected = 2 * x + 1
    call(x, out=y)
    np.testing.assert_array_equal(y, expected)
    call(y, out=y)
    np.testing.assert_array_equal(y, 2 * expected + 1)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((2, 4)), "dtype float32, not .* float64"),
        (np.zeros((3, 4), np.float32), r"shape \(2, 4\)"),
        (np.zeros(8, np.float32), r"shape \(2, 4\)"),
        ([[0.0] * 4] * 2, "2 arrays, the model has 1"),
        ("text", "numpy array, not str"),
        (np.zeros((2, 4), np.float32).view(np.matrix), None),
    ],
)
def test_wrong_out(call: Any, out: Any, message: str | None) -> None:
    x = np.ones((2, 4), np.float32)
    if message is None:
        assert call(x, out=out)[0] is out
        assert (out == 3).all()
        return
    with pytest.raises(InvalidModelError, match=message):
        call(x, out=out)


def test_read_only_out(call: Any) -> None:
    y = np.zeros((2, 4), np.float32)
    y.flags.writeable = False
    with pytest.raises(InvalidModelError, match="writeable"):
        call(np.ones((2, 4), np.float32), out=y)
    assert not y.any()


def two(memory: np.ndarray) -> Any:
    """Two outputs float32 [5, 3] and int64 [5, 2] of `pair` in pieces of one memory."""
    raw = memory.view(np.uint8)
    return lambda a, b: (raw[a : a + 60].view(np.float32).reshape(5, 3), raw[b : b + 80].view(np.int64).reshape(5, 2))


@pytest.mark.parametrize(("places", "shared"), [((0, 0), True), ((56, 0), True), ((16, 72), True), ((0, 64), False)])
def test_outs_in_one_memory(places: tuple[int, int], shared: bool) -> None:
    entry = Entry(pair())
    x, k, out = np.ones((5, 3), np.float32), np.arange(10).reshape(5, 2), two(np.zeros(40))(*places)
    if not shared:
        assert entry.call(x, k, out=out)[0] is out[0]
        np.testing.assert_array_equal(out[0], x + 10)
        np.testing.assert_array_equal(out[1], 2 * k)
        return
    with pytest.raises(InvalidModelError, match="same memory for outputs 0 and 1"):
        entry.call(x, k, out=out)
    assert not out[0].any()


def test_outs_between_each_other() -> None:
    entry = Entry(pair())
    x, k = np.ones((5, 3), np.float32), np.arange(10).reshape(5, 2)
    memory = np.zeros((5, 6), np.int64)
    u, v = memory.view(np.float32)[:, 0:12:4], memory[:, 1:4:2]
    entry.call(x, k, out=(u, v))
    np.testing.assert_array_equal(u, x + 10)
    np.testing.assert_array_equal(v, 2 * k)
    given = np.ones((5, 3), np.float32)
    entry.call(given, k, out=(given, k))
    np.testing.assert_array_equal(given, x + 10)
    np.testing.assert_array_equal(k, 2 * np.arange(10).reshape(5, 2))


def test_an_input_named_out() -> None:
    entry = Entry(pair(), signed(TensorSpec("x", "float32", ("n", 3)), TensorSpec("out", "int64", ("n", 2))))
    x, k = np.ones((5, 3), np.float32), np.arange(10).reshape(5, 2)
    target = np.empty((5, 3), np.float32), np.empty((5, 2), np.int64)
    for u, v in (entry.call(x=x, out=k), entry.call(x, out=k), entry.slow(out=k, x=x), entry.call(x, k, out=target)):
        np.testing.assert_array_equal(u, x + 10)
        np.testing.assert_array_equal(v, 2 * k)
    assert (target[0] == x + 10).all()
    alone = Entry(affine(), signed(TensorSpec("out", "float32", ("n", 4))))
    y, z = np.ones((2, 4), np.float32), np.empty((2, 4), np.float32)
    np.testing.assert_array_equal(alone.call(out=y)[0], 3 * y)
    assert alone.call(y, out=z)[0] is z


@pytest.mark.parametrize("error", [KeyError, ZeroDivisionError, TypeError, AttributeError, Exception])
@pytest.mark.parametrize("protocol", ["__dlpack__", "__array__"])
def test_objects_whose_own_code_fails(call: Any, protocol: str, error: type[Exception]) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error("boo\nand more")

    broken = type("Broken", (), {protocol: fail, "__dlpack_device__": lambda _: (1, 0)})()
    for args, kwargs in (((broken,), {}), ((), {"x": broken})):
        with pytest.raises(InvalidModelError, match="this Broken is no array for NumPy: [^\n]*$"):
            call(*args, **kwargs)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, np.True_, [2]])
def test_wrong_threads(threads: Any) -> None:
    with pytest.raises(InvalidModelError, match="threads must be a positive integer or None"):
        Entry(affine(), threads=threads)


def test_threads_as_numpy_counts_them() -> None:
    assert Entry(affine(), threads=np.int64(2)).description.threads == 2  # type: ignore[arg-type]


def unaligned(x: np.ndarray) -> np.ndarray:
    raw = np.zeros(x.nbytes + 1, np.uint8)
    view = raw[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


class OnlyDlpack:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, array: np.ndarray):
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


@pytest.mark.parametrize(
    "form",
    [
        read_only,
        unaligned,
        np.asfortranarray,
        lambda x: x[::-1],
        lambda x: x[:, ::-1],
        lambda x: np.repeat(x, 1000, 0)[::1000],
        lambda x: np.lib.stride_tricks.as_strided(x, x.shape, (x.strides[0], 4)),
        lambda x: np.broadcast_to(x[:1], x.shape),
        lambda x: x.astype(">f4"),
        lambda x: x.view(np.matrix),
        lambda x: x.view(np.recarray),
        lambda x: np.ma.masked_array(x, np.zeros(x.shape, bool)),
        memoryview,
        OnlyDlpack,
        lambda x: np.array(x, dtype=np.dtype("f4", align=True)),
    ],
)
def test_any_memory_layout(call: Any, form: Any) -> None:
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    given = form(x)
    (y,) = call(given)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, 2 * np.asarray(x if isinstance(given, OnlyDlpack) else given) + 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((2, 4)), "'x' must have dtype float32, not float64"),
        (np.zeros((2, 4), np.int32), "float32, not int32"),
        (np.zeros((2, 4), object), "float32, not object"),
        (np.array([["a"] * 4] * 2), "float32, not object"),
        (np.zeros((2, 4), np.dtype([("a", "f4")])), "float32"),
        (np.zeros((2, 4), "M8[s]"), "float32"),
        (np.zeros((2, 4), np.complex64), "float32, not complex64"),
        (np.zeros((2, 5), np.float32), r"shape \(batch, 4\), not \(2, 5\)"),
        (np.zeros(4, np.float32), r"shape \(batch, 4\), not \(4,\)"),
        (np.zeros((1, 2, 4), np.float32), "shape"),
        (np.float32(3), "shape"),
        (np.array(3, np.float32), r"not \(\)"),
        (3.0, "dtype"),
        ("text", "dtype"),
        (None, "dtype|inputs|missing"),
        (object(), "dtype"),
        ([[1.0, 2.0], [3.0]], "is no array"),
        (np.ma.masked_array(np.zeros((2, 4), np.float32), [[1, 0, 0, 0]] * 2), "masked"),
        (np.ma.masked, "masked|shape|dtype"),
    ],
)
def test_wrong_inputs(call: Any, value: Any, message: str) -> None:
    with pytest.raises(InvalidModelError, match=message):
        call(value)


def test_wrong_calls(call: Any) -> None:
    x = np.ones((1, 4), np.float32)
    for args, kwargs in [((), {}), ((x, x), {}), ((x,), {"x": x}), ((x,), {"z": x}), ((), {"z": x}), ((), {"out": x})]:
        with pytest.raises(InvalidModelError):
            call(*args, **kwargs)
    np.testing.assert_array_equal(call(x=x)[0], 3 * x)
    np.testing.assert_array_equal(call(x=x, out=None)[0], 3 * x)
    np.testing.assert_array_equal(call(x, **{"".join(["o", "ut"]): np.empty_like(x)})[0], 3 * x)


def test_ranges_of_the_batch() -> None:
    at_least_two = Entry(affine(), signed(batch=Dimension(2, 5)))
    even = Entry(affine(), signed(batch=Dimension(0, None, 2)))
    fixed = Entry(affine(), signed(TensorSpec("x", "float32", (3, 4))))
    for entry, good, bad in ((at_least_two, (2, 5), (0, 1, 6)), (even, (0, 2, 8), (1, 7)), (fixed, (3,), (0, 2, 4))):
        for batch in good:
            assert entry.call(np.ones((batch, 4), np.float32))[0].shape == (batch, 4)
        for batch in bad:
            with pytest.raises(InvalidModelError):
                entry.call(np.ones((batch, 4), np.float32))


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (1, 2, 1, 2, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shapes_and_dtypes(shape: tuple[int, ...], dtype: Any) -> None:
    entry = Entry(affine(shape, dtype))
    x = np.random.default_rng(1).standard_normal((7, *shape)).astype(dtype)
    np.testing.assert_array_equal(entry.call(x)[0], 2 * x + 1)
    with pytest.raises(InvalidModelError, match="input 0 must be"):
        entry.call(x.astype(np.int8))


def test_special_numbers() -> None:
    x = np.array([[np.nan, np.inf, -np.inf, -0.0], [1e-45, 3e38, -3e38, 1e-38]], np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(Entry(affine()).call(x)[0], 2 * x + 1)


def test_jax_and_torch_arrays_without_a_copy() -> None:
    jnp, torch = pytest.importorskip("jax.numpy"), pytest.importorskip("torch")
    entry = Entry(affine(), signed())
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    a, b = jnp.asarray(x), torch.tensor(x)
    for given, address in [
        (a, a.unsafe_buffer_pointer()),
        (b, b.data_ptr()),
        (OnlyDlpack(x), x.ctypes.data),
        (x.view(np.matrix), x.ctypes.data),
    ]:
        assert _plain(given).ctypes.data == address
        np.testing.assert_array_equal(entry.call(given)[0], 2 * x + 1)
        np.testing.assert_array_equal(entry.call(x=given)[0], 2 * x + 1)
        np.testing.assert_array_equal(entry.call(given, out=np.empty_like(x))[0], 2 * x + 1)
    transposed = torch.tensor(x.T.copy()).T
    np.testing.assert_array_equal(entry.call(transposed)[0], 2 * x + 1)
    with pytest.raises(InvalidModelError, match="requires grad"):
        entry.call(b.clone().requires_grad_())
    with pytest.raises(InvalidModelError, match="float64"):
        entry.call(b.double())
    with pytest.raises(InvalidModelError, match="bfloat16|no array"):
        entry.call(b.bfloat16())


@hypothesis.settings(max_examples=300)
@hypothesis.given(data=st.data())
def test_whatever_array_comes(data: st.DataObject) -> None:
    """Right or a clear error, for arrays of any dtype, shape and strides."""
    entry = _shared()
    dtype = data.draw(st.sampled_from(["f4", ">f4", "f8", "i4", "O", "U3", "?", "c8", "f2", "M8[s]", "V4"]))
    shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=3)))
    if data.draw(st.booleans()):
        shape = (data.draw(st.integers(0, 20)), 4)
    whole = tuple(2 * s for s in shape)
    steps = tuple(slice(None, None, data.draw(st.sampled_from([2, -2]))) for _ in shape)
    base = np.arange(int(np.prod(whole))).reshape(whole)
    array = base.astype(dtype)[(*steps, ...)] if dtype != "V4" else np.zeros(whole, dtype)[(*steps, ...)]
    if data.draw(st.booleans()):
        array = array.copy(order=data.draw(st.sampled_from("CFK")))
    array.flags.writeable = data.draw(st.booleans())
    out = data.draw(st.sampled_from([None, "same", "other", "wrong"]))
    target = {"same": array, "other": np.zeros(shape, "f4"), "wrong": np.zeros((1, 2), "i8")}.get(out or "")
    options = {} if target is None else {"out": target}
    before = array.copy()
    try:
        (y,) = entry.call(array, **options)
    except InvalidModelError:
        good_input = dtype in ("f4", ">f4") and len(shape) == 2 and shape[1] == 4
        assert not good_input or out == "wrong" or (out == "same" and (dtype == ">f4" or not array.flags.writeable))
    else:
        np.testing.assert_array_equal(y, 2 * before.astype("f4") + 1)
        assert target is None or y is target


def _shared(made: list[Entry] = []) -> Entry:  # noqa: B006 - made once
    if not made:
        made.append(Entry(affine(), signed()))
    return made[0]


def test_no_reference_leaks() -> None:
    entry = Entry(affine(), signed())
    x, y, bad = np.ones((3, 4), np.float32), np.ones((3, 4), np.float32), np.ones((3, 5), np.float32)
    dtype = x.dtype
    watched = (x, y, bad, dtype, entry.description, np.ndarray)

    def everything() -> None:
        for _ in range(1000):
            entry.call(x)
            entry.call(x, out=y)
            entry.call(x=x)
            with contextlib.suppress(InvalidModelError):
                entry.call(bad)

    everything()
    gc.collect()
    before = [sys.getrefcount(thing) for thing in watched]
    everything()
    gc.collect()
    after = [sys.getrefcount(thing) for thing in watched]
    assert all(abs(a - b) < 20 for a, b in zip(after, before, strict=True)), (before, after)
    result = entry.call(x)
    counts = sys.getrefcount(result), sys.getrefcount(result[0])
    assert counts == (2, 2)


def test_memory_stays_level() -> None:
    resource = pytest.importorskip("resource")
    entry = Entry(through_arena(40_000), threads=1)
    x = np.ones(16)

    def peak() -> int:
        for _ in range(300):
            entry.call(x)
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    peak()
    assert peak() - peak() == 0 or abs(peak() - peak()) < 2000  # kB


def test_entries_are_collected() -> None:
    entry = Entry(through_arena(40_000))
    entry.call(np.ones(3))
    freed: list[int] = []
    import weakref

    weakref.finalize(entry.native, freed.append, 1)
    call = entry.call
    del entry
    gc.collect()
    assert not freed
    np.testing.assert_array_equal(call(np.ones(2))[0], [40_000, 40_000])
    del call
    gc.collect()
    assert freed == [1]


@pytest.mark.parametrize("words", [8, 40_000])
def test_eight_threads_call_one_model(words: int) -> None:
    """Each has its own arena: on the stack, or taken from the model's."""
    entry = Entry(through_arena(words, rounds=3))
    entry.description.release_from = 1
    wrong: list[Any] = []

    def work(number: int) -> None:
        x = np.full(11, float(number))
        for _ in range(40):
            (y,) = entry.call(x)
            if not (y == words * number).all():
                wrong.append((number, y))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_other_threads_run_meanwhile() -> None:
    """Python's lock is released for long work only."""
    entry = Entry(through_arena(1000, rounds=2000), threads=1)
    assert entry.description.release_from <= 2
    short = Entry(affine(), threads=1)
    assert 50 < short.description.release_from < 10**7


def test_no_memory() -> None:
    entry = Entry(through_arena(8), threads=1)
    entry.description.arena = 2**62
    for call in (entry.call, entry.slow):
        with pytest.raises(ResourceLimitError, match="arena"):
            call(np.ones(3))


def test_without_the_entry() -> None:
    """Where the memory layout is unknown all calls go through ctypes."""
    program = (
        "import numpy as np\n"
        "from tests.runtime.fused_functions import affine\n"
        "from interlux.runtime.fused.entry import Entry\n"
        "entry = Entry(affine())\n"
        "assert not entry.fast\n"
        "x = np.ones((3, 4), np.float32)\n"
        "assert (entry.call(x)[0] == 3).all() and (entry.call(x, out=x)[0] == 3).all()\n"
    )
    environment = {**os.environ, "INTERLUX_FUSED_ENTRY": "ctypes", "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_layouts_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abi.sys, "abiflags", "t")
    assert "free-threaded" in str(abi.layout.__wrapped__())
    monkeypatch.undo()
    monkeypatch.setattr(abi, "_word", lambda thing, offset: 7)
    assert "lie" in str(abi.layout.__wrapped__())
    monkeypatch.undo()
    monkeypatch.setattr(abi, "_ABI_VERSIONS", ())
    assert "unknown" in str(abi.layout.__wrapped__())
    monkeypatch.undo()
    monkeypatch.setattr(abi.sys.implementation, "name", "pypy")
    assert "CPython" in str(abi.layout.__wrapped__())


def test_attached_to_a_runner() -> None:
    class Runner:
        """Runs."""

        def __init__(self) -> None:
            self.entry = Entry(affine(), signed())
            self.entry.attach(self)

    runner, other = Runner(), Runner()
    x = np.ones((2, 4), np.float32)
    for each in (runner, other):
        assert isinstance(each, Runner) and type(each).__name__ == "Runner" and type(each).__doc__ == "Runs."
        assert (each(x)[0] == 3).all() and (each(x=x)[0] == 3).all()  # type: ignore[operator]
        assert type(type(each).__call__) is type(len)
    with pytest.raises(InvalidModelError, match="float64"):
        runner(x.astype(float))  # type: ignore[operator]
    import weakref

    gone = weakref.ref(runner)
    del runner, each
    gc.collect()
    assert gone() is None
