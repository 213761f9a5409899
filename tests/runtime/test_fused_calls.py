"""Whole models of the engine through its callers: threads change no bit, special numbers go through, nothing leaks."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

pytest.importorskip("llvmlite")

import interlux as ix
from interlux.ir.errors import InvalidModelError
from interlux.runtime.fused.engine import FusedRunner
from tests.runtime.test_fused_layer import _CNN, _MLP, warm
from tests.runtime.test_fused_threads import split

SHAPES = {"mlp": (4,), "cnn": (1, 8, 8)}


def runner_of(name: str, dtype: Any = np.float32, **options: Any) -> FusedRunner:
    layer = {"mlp": _MLP, "cnn": _CNN}[name]
    params, states = warm(layer, 0, dtype)
    inputs = {"x": (np.dtype(dtype).name, ("batch", *SHAPES[name]))}
    runner = ix.compile(ix.Model.from_layer(layer, params, states, inputs), "fused", **options)
    assert isinstance(runner, FusedRunner)
    return runner


@pytest.fixture(scope="module", params=["mlp", "cnn"])
def pair(request: pytest.FixtureRequest) -> tuple[FusedRunner, FusedRunner, tuple[int, ...]]:
    """A model in one thread, and the same in up to three."""
    one, several = (runner_of(request.param, threads=1) for _ in range(2))
    split(several.entry, several.native.grain, 3)
    return one, several, SHAPES[request.param]


@hypothesis.settings(max_examples=60)
@hypothesis.given(batch=st.integers(1, 300), special=st.booleans(), seed=st.integers(0, 9))
def test_threads_change_no_bit(pair: Any, batch: int, special: bool, seed: int) -> None:
    one, several, shape = pair
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, *shape)).astype(np.float32)
    if special:
        places = rng.random(x.shape) < 0.02
        x[places] = rng.choice(np.array([np.nan, np.inf, -np.inf, 1e-40, -0.0, 3e38], np.float32), places.sum())
    (expected,), (y,) = one(x), several(x)
    np.testing.assert_array_equal(y, expected)
    finite = np.isfinite(x.reshape(batch, -1)).all(1) & (np.abs(x.reshape(batch, -1)) < 1e30).all(1)
    assert np.isfinite(y[finite]).all()  # a sample's NaN stays in that sample
    assert np.isnan(y[np.isnan(x.reshape(batch, -1)).any(1)]).any(1).all() or shape != (4,)


def test_any_layout(pair: Any) -> None:
    one, _, shape = pair
    x = np.random.default_rng(0).standard_normal((20, *shape)).astype(np.float32)
    (expected,) = one(x)
    wide = np.zeros((20, *shape, 2), np.float32)
    wide[..., 1] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    for given in (np.asfortranarray(x), x[::-1][::-1], wide[..., 1], frozen, x.astype(">f4")):
        np.testing.assert_array_equal(one(given)[0], expected)
    # samples behind the last whole tile are computed by other code
    np.testing.assert_allclose(one(x[::-1])[0], expected[::-1], rtol=1e-5, atol=1e-6)
    assert one(x=x)[0].shape == expected.shape
    for wrong in (x.astype(np.float64), x[:, :0], x[0], x[None], None, x[:0]):
        with pytest.raises(InvalidModelError):
            one(wrong)


def test_eight_threads(pair: Any) -> None:
    for runner in pair[:2]:
        inputs = [np.random.default_rng(i).standard_normal((70 + i, *pair[2])).astype(np.float32) for i in range(8)]
        expected = [pair[0](x)[0] for x in inputs]
        wrong: list[int] = []

        def work(i: int, runner: Any = runner, wrong: Any = wrong, x: Any = inputs, y: Any = expected) -> None:
            wrong.extend(i for _ in range(50) if not np.array_equal(runner(x[i])[0], y[i]))

        workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not wrong


@pytest.mark.parametrize("backend", ["jax", "onnxruntime", "fused"])
def test_what_backends_do_not_know_is_one_line(backend: str) -> None:
    model = ix.Model.from_layer(_MLP, *warm(_MLP), {"x": ("float32", ("batch", 4))})
    with pytest.raises(ix.UnsupportedError, match=f"^backend '{backend}' has no option 'foo'; it has [a-z ,]+$"):
        ix.compile(model, backend, foo=1)
    for wrong in (_MLP, len, None):
        with pytest.raises(InvalidModelError, match=r"^compile takes a Model, not .*from_layer make one$"):
            ix.compile(wrong, backend)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": ["avx2"]}, "target is the name of one"),
        ({"target": 3}, "target is the name of one"),
        ({"target": "AVX2"}, "there is no target 'AVX2'"),
        ({"weights": ["bfloat16"]}, "keeps no weights in"),
        ({"weights": np.float32}, "keeps no weights in"),
        ({"fallback": True}, "there is no fallback True"),
        ({"threads": True}, "threads must be a positive integer or None, not True"),
        ({"threads": [2]}, "threads must be a positive integer or None"),
    ],
)
def test_wrong_options(options: Any, message: str) -> None:
    with pytest.raises(ix.InterluxError, match=message):
        runner_of("mlp", **options)


def test_threads_as_numpy_counts_them() -> None:
    assert runner_of("mlp", threads=np.int64(1)).entry.description.threads == 1


def test_copies() -> None:
    runner = runner_of("mlp", threads=1)
    assert copy.copy(runner) is runner
    for wrong in (pickle.dumps, copy.deepcopy):
        with pytest.raises(ix.UnsupportedError, match=r"^a compiled model is code .* save the model with ix\.save"):
            wrong(runner)


_FORK = """
import os
import numpy as np
from tests.runtime.test_fused_calls import runner_of, split
runner = runner_of("cnn", threads=2)
split(runner.entry, runner.native.grain, 2)
x = np.random.default_rng(0).standard_normal((200, 1, 8, 8)).astype(np.float32)
y = runner(x)[0]
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(0 if all(np.array_equal(runner(x)[0], y) for _ in range(5)) else 1)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_fork_after_use() -> None:
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-W", "ignore::RuntimeWarning", "-c", _FORK]
    subprocess.run(command, check=True, env=environment, timeout=120)


_FORK_WHILE_COMPILING = """
import os, sys, threading
from interlux.runtime.fused.llvm import assemble, load
from tests.runtime.fused_functions import affine_text
from interlux.runtime.fused.target import host
text = affine_text()
work = lambda: load(assemble(text, host()), ["run"])
def compile_for_ever():
    while True:
        work()
for _ in range(2):
    threading.Thread(target=compile_for_ever, daemon=True).start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_fork_while_others_compile() -> None:
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORK_WHILE_COMPILING]
    subprocess.run(command, check=True, env=environment, timeout=120)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_through_ctypes(dtype: Any) -> None:
    program = (
        "import sys, numpy as np\n"
        "from tests.runtime.test_fused_calls import runner_of\n"
        f"runner = runner_of('mlp', np.{dtype.__name__}, threads=1)\n"
        "assert not runner.entry.fast\n"
        f"x = np.random.default_rng(0).standard_normal((37, 4)).astype(np.{dtype.__name__})\n"
        "sys.stdout.buffer.write(runner(x)[0].tobytes())\n"
    )
    environment = {**os.environ, "INTERLUX_FUSED_ENTRY": "ctypes", "PYTHONPATH": os.getcwd()}
    raw = subprocess.run([sys.executable, "-c", program], check=True, env=environment, stdout=subprocess.PIPE).stdout
    x = np.random.default_rng(0).standard_normal((37, 4)).astype(dtype)
    np.testing.assert_array_equal(np.frombuffer(raw, dtype).reshape(37, 3), runner_of("mlp", dtype, threads=1)(x)[0])
