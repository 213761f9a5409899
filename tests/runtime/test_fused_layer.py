"""Layers that run natively: the same as the layer itself, whatever happens to the parameters."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("llvmlite")
import interlux as ix
from interlux.ir.errors import InvalidModelError, UnsupportedError
from interlux.runtime.fused import ffi
from interlux.runtime.fused import layer as fused_layer
from interlux.runtime.fused.layer import Fused, to_fused
from tests.runtime.fused_compilers import Compiler

DENSE = ix.layers.Dense(5, 3)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Compiler()
    monkeypatch.setattr(fused_layer, "_compiler", lambda: made)
    fused_layer._functions.cache_clear()
    jax.clear_caches()
    yield made
    fused_layer._functions.cache_clear()
    jax.clear_caches()


@pytest.fixture
def folding(compiler: Compiler) -> Compiler:
    compiler._folds = True
    return compiler


def inputs(batch: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 5)).astype(dtype)


def close(a: Any, b: Any) -> None:
    assert np.asarray(a).dtype == np.asarray(b).dtype
    rtol = 1e-5 if np.asarray(a).dtype == np.float32 else 1e-12
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, rtol), a, b)


def test_it_is_a_layer(compiler: Compiler) -> None:
    fused = to_fused(DENSE, (5,))
    assert isinstance(fused, Fused) and fused == to_fused(DENSE, [5]) and hash(fused) == hash(to_fused(DENSE, (5,)))
    params, states = ix.setup(fused, 3)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, ix.setup(DENSE, 3)[0]))
    assert states == {} and fused.param_shapes() == DENSE.param_shapes() and fused.children() == ()


def test_unsupported_layers_are_named_at_once(compiler: Compiler) -> None:
    with pytest.raises(UnsupportedError, match="Embedding"):
        to_fused(ix.layers.Embedding(3, 4), (), dtype="int64")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch", [0, 1, 7, 100])
def test_numpy(compiler: Compiler, dtype: Any, batch: int) -> None:
    fused = to_fused(DENSE, (5,))
    params, states = ix.setup(fused, 0, dtype)
    x = inputs(batch, dtype)
    y, new = fused.apply(params, states, x)
    assert type(y) is np.ndarray and new == states
    close(y, DENSE.apply(params, states, x)[0])
    assert ffi.supported() is None


def test_changed_parameters_are_never_ignored(compiler: Compiler) -> None:
    fused = to_fused(DENSE, (5,))
    params, states = ix.setup(fused, 0)
    x = inputs(4)
    expected = lambda: x @ params["weight"].T + params["bias"]  # noqa: E731
    close(fused.apply(params, states, x)[0], expected())
    params["weight"][1, 2] += 1  # in place
    close(fused.apply(params, states, x)[0], expected())
    params["bias"] *= 2
    close(fused.apply(params, states, x)[0], expected())
    params["weight"] = np.asfortranarray(params["weight"] * 3)  # another array, in another order
    close(fused.apply(params, states, x)[0], expected())
    calls = compiler.calls
    for i in range(5):
        params["weight"] = params["weight"] + i
        close(fused.apply(params, states, x)[0], expected())
        close(fused.apply(params, states, x)[0], expected())
    assert compiler.calls == calls  # packing is a gather by now
    params["weight"][0, 0] = -0.0
    params["bias"][0] = np.nan
    assert np.isnan(fused.apply(params, states, x)[0][:, 0]).all()


def test_changed_parameters_of_a_folding_compiler(folding: Compiler) -> None:
    fused = to_fused(DENSE, (5,))
    params, states = ix.setup(fused, 0)
    x = inputs(4)
    for i in range(3):
        params["weight"] = params["weight"] + i
        close(fused.apply(params, states, x)[0], x @ params["weight"].T + params["bias"])
    jitted = jax.jit(lambda p, x: fused.apply(p, states, x)[0])
    close(np.asarray(jitted(params, x)), x @ params["weight"].T + params["bias"])
    assert "ffi_call" not in str(jax.make_jaxpr(jitted)(params, x))
    assert "ffi_call" in str(jax.make_jaxpr(lambda x: fused.apply(params, states, x)[0])(x))


def test_a_new_dtype_or_a_missing_bias_is_another_function(compiler: Compiler) -> None:
    fused = to_fused(DENSE, (5,))
    params, states = ix.setup(fused, 0)
    double = ix.setup(fused, 0, np.float64)[0]
    close(fused.apply(params, states, inputs(3))[0], DENSE.apply(params, states, inputs(3))[0])
    x = inputs(3, np.float64)
    close(fused.apply(double, states, x)[0], DENSE.apply(double, states, x)[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_jax(compiler: Compiler, dtype: Any) -> None:
    with jax.enable_x64(dtype is np.float64):
        fused = to_fused(DENSE, (5,))
        params, states = jax.tree.map(jnp.asarray, ix.setup(fused, 0, dtype))
        for batch in (1, 6, 0):
            x = jnp.asarray(inputs(batch, dtype))
            y, _ = fused.apply(params, states, x)
            assert isinstance(y, jax.Array)
            close(y, DENSE.apply(params, states, x)[0])
            close(jax.jit(lambda p, x: fused.apply(p, {}, x)[0])(params, x), y)
            close(jax.jit(lambda x: fused.apply(params, {}, x)[0])(x), y)
    text = str(jax.make_jaxpr(lambda p, x: fused.apply(p, {}, x)[0])(params, x))
    assert "ffi_call" in text and "dot_general" not in text


def test_new_parameters_in_one_program(compiler: Compiler) -> None:
    fused = to_fused(DENSE, (5,))
    params, states = ix.setup(fused, 0)
    x = inputs(4)
    jitted = jax.jit(lambda p, x: fused.apply(p, states, x)[0])
    for i in range(4):
        new = jax.tree.map(lambda a: a * i, params)  # noqa: B023
        close(jitted(new, x), x @ new["weight"].T + new["bias"])
    assert jitted._cache_size() == 1


def test_derivatives(compiler: Compiler) -> None:
    fused = to_fused(DENSE, (5,))
    params, _ = jax.tree.map(jnp.asarray, ix.setup(fused, 0))
    x = jnp.asarray(inputs(6))

    def loss(layer: Any) -> Any:
        return lambda p, x: (jnp.tanh(layer.apply(p, {}, x)[0]) ** 2).sum()

    for wrap in (lambda f: f, jax.jit):
        for argument in (0, 1, (0, 1)):
            close_trees(wrap(jax.grad(loss(fused), argument))(params, x), jax.grad(loss(DENSE), argument)(params, x))
    close_trees(jax.grad(jax.jit(loss(fused)))(params, x), jax.grad(loss(DENSE))(params, x))
    close_trees(jax.hessian(loss(fused))(params, x), jax.hessian(loss(DENSE))(params, x))
    close_trees(jax.jacfwd(loss(fused), 1)(params, x), jax.jacfwd(loss(DENSE), 1)(params, x))
    closed = jax.grad(lambda x: fused.apply(params, {}, x)[0].sum())
    close(closed(x), jnp.broadcast_to(params["weight"].sum(0), x.shape))
    value, gradient = jax.value_and_grad(loss(fused))(params, x)
    close(value, loss(DENSE)(params, x))


def close_trees(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 2e-4, 1e-5), a, b)


def test_vmap(compiler: Compiler) -> None:
    fused = to_fused(DENSE, (5,))
    params, _ = jax.tree.map(jnp.asarray, ix.setup(fused, 0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 6, 5)).astype(np.float32))
    expected = jnp.stack([DENSE.apply(params, {}, row)[0] for row in x])
    apply = lambda p, x: fused.apply(p, {}, x)[0]  # noqa: E731
    mapped = jax.vmap(apply, (None, 0))
    close(mapped(params, x), expected)
    close(jax.jit(mapped)(params, x), expected)
    close(jax.vmap(apply, (None, 1), 1)(params, x.swapaxes(0, 1)), expected.swapaxes(0, 1))
    close(jax.vmap(mapped, (None, 0))(params, x[None]), expected[None])
    program = str(jax.make_jaxpr(mapped)(params, x))
    assert program.count("ffi_call[") == 1 and "scan" not in program and "while" not in program
    many = jax.tree.map(lambda a: jnp.stack([a, 2 * a, -a, a + 1]), params)
    ensemble = [DENSE.apply(jax.tree.map(lambda a: a[i], many), {}, x[i])[0] for i in range(4)]  # noqa: B023
    close(jax.vmap(apply)(many, x), jnp.stack(ensemble))
    per_sample = jax.vmap(jax.grad(lambda p, x: (apply(p, x[None]) ** 2).sum()), (None, 0))(params, x[0])
    plain = jax.vmap(jax.grad(lambda p, x: (DENSE.apply(p, {}, x[None])[0] ** 2).sum()), (None, 0))(params, x[0])
    close_trees(per_sample, plain)
    close(mapped(params, x[:, :0]), expected[:, :0])


def test_loops_and_remat(compiler: Compiler) -> None:
    square = ix.layers.Dense(5, 5)
    fused = to_fused(square, (5,))
    params, _ = jax.tree.map(jnp.asarray, ix.setup(fused, 0))
    x = jnp.asarray(inputs(3))
    step = lambda layer: lambda c, _: (jnp.tanh(layer.apply(params, {}, c)[0]), None)  # noqa: E731
    close(jax.lax.scan(step(fused), x, None, 7)[0], jax.lax.scan(step(square), x, None, 7)[0])
    loss = lambda layer: jax.grad(lambda p: jax.checkpoint(lambda q: layer.apply(q, {}, x)[0])(p).sum())  # noqa: E731
    close_trees(loss(fused)(params), loss(square)(params))


def test_training_mode_is_the_layer_itself(compiler: Compiler) -> None:
    fused = to_fused(DENSE, (5,))
    params, states = ix.setup(fused, 0)
    y, new = fused.apply(params, states, inputs(3), train=True)
    close(y, DENSE.apply(params, states, inputs(3), train=True)[0])
    with pytest.raises(InvalidModelError, match="train must be"):
        fused.apply(params, states, inputs(3), train=np.bool_(False))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", [np.asarray, jnp.asarray])
def test_wrong_inputs(compiler: Compiler, wrap: Any) -> None:
    fused = to_fused(DENSE, (5,))
    params, states = jax.tree.map(wrap, ix.setup(fused, 0))
    for shape in ((3, 4), (5,), (), (1, 3, 5)):
        x = np.zeros(shape, np.float32)
        with pytest.raises(InvalidModelError, match=r"input 0 of the fused layer must have shape \(batch, 5\)"):
            fused.apply(params, states, wrap(x))
    with pytest.raises(InvalidModelError, match="2 inputs given, the fused layer takes 1"):
        fused.apply(params, states, wrap(inputs(2)), wrap(inputs(2)))


def test_inside_another_layer(compiler: Compiler) -> None:
    chain = ix.layers.Chain(ix.layers.Dense(2, 5, activation=ix.layers.relu), to_fused(DENSE, (5,)))
    plain = ix.layers.Chain(ix.layers.Dense(2, 5, activation=ix.layers.relu), DENSE)
    params, states = ix.setup(chain, 0)
    x = np.ones((4, 2), np.float32)
    close(chain.apply(params, states, x)[0], plain.apply(params, states, x)[0])
    model = ix.Model.from_layer(chain, params, states, {"x": ("float32", ("batch", 2))})
    close(ix.compile(model, "jax")(x)[0], plain.apply(params, states, x)[0])


_WITHOUT_FFI = """
import jax, numpy as np, jax.numpy as jnp
import interlux as ix
from interlux.runtime.fused import ffi, layer
from tests.runtime.fused_compilers import Compiler
layer._compiler = lambda made=Compiler(): made
assert ffi.supported() == "INTERLUX_FUSED_FFI=callback"
dense = ix.layers.Dense(5, 3)
fused = layer.to_fused(dense, (5,))
for dtype in (np.float32, np.float64):
    with jax.enable_x64(dtype is np.float64):
        params, states = ix.setup(dense, 0, dtype)
        x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 5)).astype(dtype))
        apply = lambda p, x: fused.apply(p, states, x)[0]
        for got, want in [
            (jax.jit(apply)(params, x[0]), dense.apply(params, states, x[0])[0]),
            (jax.vmap(apply, (None, 0))(params, x), jax.vmap(lambda x: dense.apply(params, states, x)[0])(x)),
            (apply(params, x[0, :0]), dense.apply(params, states, x[0, :0])[0]),
        ]:
            assert got.dtype == dtype
            np.testing.assert_allclose(got, want, 1e-5, 1e-6)
        assert "pure_callback" in str(jax.make_jaxpr(apply)(params, x[0]))
        g = jax.grad(lambda p: (apply(p, x[0]) ** 2).sum())(params)
        h = jax.grad(lambda p: (dense.apply(p, states, x[0])[0] ** 2).sum())(params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), g, h)
"""


def test_without_the_foreign_function_interface() -> None:
    environment = {**os.environ, "INTERLUX_FUSED_FFI": "callback", "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-W", "error", "-c", _WITHOUT_FFI], check=True, env=environment)


def test_layouts_of_xla_that_differ() -> None:
    from pathlib import Path

    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text()
    assert ffi.compare(header) is None
    for old, new, message in [
        ("XLA_FFI_API_MAJOR 0", "XLA_FFI_API_MAJOR 1", "version 1, not 0"),
        ("  void* data;\n  int64_t rank;", "  int64_t rank;\n  void* data;", "XLA_FFI_Buffer"),
        ("  const XLA_FFI_Api* api;", "", "XLA_FFI_CallFrame"),
        ("_EXECUTE = 3", "_EXECUTE = 4", "numbered otherwise"),
        ("struct XLA_FFI_Args {", "struct Args {", "XLA_FFI_Args of XLA has other members: none"),
    ]:
        assert old in header
        assert message in str(ffi.compare(header.replace(old, new)))
    assert ffi.compare("") is not None


def test_a_function_that_is_not_there() -> None:
    """An executable that was kept on disk may ask for a function of another process."""
    assert ffi.supported() is None
    ask = jax.ffi.ffi_call(ffi.TARGET, [jax.ShapeDtypeStruct((2, 3), np.float32)])
    x = jnp.zeros((2, 3))
    with pytest.raises(jax.errors.JaxRuntimeError, match="has not compiled the fused function"):
        jax.block_until_ready(jax.jit(lambda x: ask(x, x, function=np.int64(12345)))(x))
    with pytest.raises(jax.errors.JaxRuntimeError, match="one attribute"):
        jax.block_until_ready(jax.jit(lambda x: ask(x, x))(x))


def test_buffers_that_do_not_fit() -> None:
    from interlux.runtime.fused import native
    from interlux.runtime.fused.entry import Entry
    from tests.runtime.fused_functions import affine

    entry = Entry(affine())
    native.register(entry.number, entry.description)
    assert ffi.supported() is None

    def ask(x: Any, result: Any, *more: Any) -> Any:
        call = jax.ffi.ffi_call(ffi.TARGET, result)
        return jax.block_until_ready(jax.jit(lambda x, *m: call(x, *m, function=np.int64(entry.number)))(x, *more))

    x, p = jnp.ones((2, 4)), jnp.array([2.0, 1.0])
    good = [jax.ShapeDtypeStruct((2, 4), np.float32)]
    assert (ask(x, good, p)[0] == 3).all()
    for wrong in (jnp.ones((2, 5)), jnp.ones((3, 4)), jnp.ones(4), jnp.ones((2, 4), jnp.int32), jnp.ones((1, 2, 4))):
        with pytest.raises(jax.errors.JaxRuntimeError, match="another shape or dtype"):
            ask(wrong, good, p)
    with pytest.raises(jax.errors.JaxRuntimeError, match="another number of operands"):
        ask(x, good)
    with pytest.raises(jax.errors.JaxRuntimeError, match="another number of results"):
        ask(x, good * 2, p)


# With the engine itself.

_MLP = ix.layers.Chain(ix.layers.Dense(4, 9, activation=ix.layers.tanh), ix.layers.Dense(9, 3))
_CNN = ix.layers.Chain(
    ix.layers.Conv(1, 3, (3, 3)),
    ix.layers.BatchNorm(3),
    ix.layers.relu,
    ix.layers.Operator.of("MaxPool", kernel_shape=(2, 2), strides=(2, 2)),
    ix.layers.Operator.of("Flatten", axis=1),
    ix.layers.Dense(27, 2),
)


def warm(layer: Any, seed: int = 0, dtype: Any = np.float32) -> tuple[Any, Any]:
    """Parameters, and states that are not all 0 and 1."""
    params, states = ix.setup(layer, seed, dtype)
    rng = np.random.default_rng(seed)
    return params, jax.tree.map(lambda a: np.asarray(a + rng.uniform(0.1, 0.9, a.shape), a.dtype), states)


@pytest.mark.parametrize(("layer", "shape"), [(_MLP, (4,)), (_CNN, (1, 8, 8))])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_engine(layer: Any, shape: tuple[int, ...], dtype: Any) -> None:
    fused = ix.to_fused(layer, shape)
    params, states = warm(layer, 0, dtype)
    rng = np.random.default_rng(1)
    with jax.enable_x64(dtype is np.float64):
        for batch in (1, 5, 40):
            x = rng.standard_normal((batch, *shape)).astype(dtype)
            expected = np.asarray(layer.apply(params, states, x)[0])
            close(fused.apply(params, states, x)[0], expected)
            close(fused.apply(params, states, jnp.asarray(x))[0], jnp.asarray(expected))
            close(jax.jit(lambda p, s, x: fused.apply(p, s, x)[0])(params, states, x), expected)
            close(jax.jit(lambda x: fused.apply(params, states, x)[0])(x), expected)
            close(jax.vmap(lambda x: fused.apply(params, states, x)[0])(x[None])[0], expected)
        loss = lambda layer: lambda p, x: (layer.apply(p, states, x)[0] ** 2).sum()  # noqa: E731
        close_trees(jax.grad(loss(fused), (0, 1))(params, x), jax.grad(loss(layer), (0, 1))(params, x))
        params["0"]["bias"] += 1  # in place
        close(fused.apply(params, states, x)[0], np.asarray(layer.apply(params, states, x)[0]))
        for states_of_one in states.values():
            states_of_one["running_var"] *= 2
        close(fused.apply(params, states, x)[0], np.asarray(layer.apply(params, states, x)[0]))


def test_engine_trains() -> None:
    """A few steps of gradient descent, the parameters as arguments of one program: those of the plain layer."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32))

    def trained(layer: Any) -> Any:
        params = jax.tree.map(jnp.asarray, ix.setup(_MLP, 0)[0])
        step = jax.jit(jax.grad(lambda p: ((layer.apply(p, {}, x)[0] - 1) ** 2).mean()))
        for _ in range(20):
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, step(params))
        return params

    close_trees(trained(ix.to_fused(_MLP, (4,))), trained(_MLP))


def test_engine_on_row_numbers() -> None:
    layer = ix.layers.Chain(ix.layers.Embedding(7, 4), ix.layers.Dense(4, 2))
    fused = ix.to_fused(layer, (3,), dtype=np.int32)
    params, states = ix.setup(layer, 0)
    x = np.random.default_rng(0).integers(0, 7, (20, 3)).astype(np.int32)
    close(fused.apply(params, states, x)[0], layer.apply(params, states, x)[0])
    jitted = jax.jit(lambda p, x: fused.apply(p, states, x)[0])
    close(np.asarray(jitted(params, x)), layer.apply(params, states, x)[0])
    loss = lambda layer: lambda p: (layer.apply(p, states, x)[0] ** 2).sum()  # noqa: E731
    close_trees(jax.grad(loss(fused))(params), jax.grad(loss(layer))(params))


@pytest.mark.parametrize("shape", [(4, 0), (-1,), ("a",), (2.0,), 4, "4", (True,), ((4,), 4), None])
def test_wrong_shapes(shape: Any) -> None:
    with pytest.raises(InvalidModelError, match="input_shape must be positive sizes"):
        ix.to_fused(_MLP, shape)


L = ix.layers


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (L.Dense(4, 3), (5,)),
        (L.Dense(4, 3), (3,)),
        (L.Dense(4, 3), (3_000_000,)),
        (L.Chain(L.Dense(4, 16), L.Dense(15, 3)), (4,)),
        (L.Conv(3, 4, (2, 2)), (2, 5, 5)),
        (L.Conv(3, 4, (2, 2)), (6, 5, 5)),
        (L.Conv(4, 4, (2, 2), groups=2), (6, 5, 5)),
        (L.Conv(3, 4, (2, 2)), (3, 5)),
        (L.LayerNorm((4,)), (5,)),
        (L.GroupNorm(2, 4), (6, 3)),
        (L.BatchNorm(4), (5,)),
        (L.GRU(4, 5), (6, 3)),
        (L.Dense(4, 3), ((4,), (4,))),
    ],
)
def test_inputs_that_the_layer_does_not_take(layer: Any, shape: Any) -> None:
    with pytest.raises(
        InvalidModelError, match=r"^the layer does not take float32\[batch, .*: JAX cannot run .*[^\n]*$"
    ):
        ix.to_fused(layer, shape)


def test_an_output_without_elements() -> None:
    with pytest.raises(InvalidModelError, match=r"without elements for float32\[batch, 3, 5, 5\]"):
        ix.to_fused(L.Conv(3, 4, (7, 7)), (3, 5, 5))


_MODEL = ix.Model.from_layer(_MLP, *ix.setup(_MLP, 0), {"x": ("float32", ("batch", 4))})


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (_MODEL, {}, r"model\.layer, with params=model\.params"),
        (len, {}, "takes a layer, not builtin_function"),
        (_MLP, {"dtype": "foo"}, "unknown dtype 'foo'"),
        (_MLP, {"dtype": 3}, "unknown dtype 3"),
        (_MLP, {"dtype": ("float32", "float32")}, "2 dtypes for 1 inputs"),
        (_MLP, {"threads": "2"}, "threads must be a positive integer"),
        (_MLP, {"params": {}, "states": {}}, "there is no array 'weight'"),
        (L.Chain(L.Embedding(7, 4), L.Dense(4, 2)), {}, 'row numbers need dtype="int64"'),
    ],
)
def test_wrong_arguments(layer: Any, options: Any, message: str) -> None:
    with pytest.raises(InvalidModelError, match=message):
        ix.to_fused(layer, (4,), **options)


def test_lists_are_no_inputs() -> None:
    with pytest.raises(InvalidModelError, match="input 0 of the fused layer must be an array, not list"):
        ix.to_fused(_MLP, (4,)).apply(*ix.setup(_MLP, 0), [[1.0] * 4])


def test_the_other_byte_order() -> None:
    params, states = ix.setup(_MLP, 0)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    swapped = jax.tree.map(lambda a: a.astype(">f4"), params)
    for dtype in (None, ">f4"):
        fused = ix.to_fused(_MLP, (4,), swapped, states, dtype=dtype)
        close(fused.apply(swapped, states, x.astype(">f4"))[0], _MLP.apply(params, states, x)[0])


def _number(op: Any, value: float) -> Any:
    return op.const(np.float32(value))


# name -> what is computed from x, w [4, 4] and b [4]
_COMPUTED: dict[str, Any] = {
    "clip": lambda op, x, w, b: op.MatMul(x, op.Clip(w, _number(op, -10))),
    "clip of moved": lambda op, x, w, b: op.MatMul(x, op.Clip(op.Transpose(w, perm=(1, 0)), _number(op, -10))),
    "moves of clipped": lambda op, x, w, b: op.MatMul(x, op.Gather(op.Max(w, _number(op, -9)), op.ints(3, 2, 1, 0))),
    "where": lambda op, x, w, b: op.MatMul(x, op.Where(op.Less(w, _number(op, -10)), _number(op, 5), w)),
    "bias": lambda op, x, w, b: op.Add(op.MatMul(x, w), op.Max(b, _number(op, -10))),
    "greatest": lambda op, x, w, b: op.Add(op.MatMul(x, w), op.Max(b, op.Gather(w, op.const(np.array(0))))),
    "method": lambda op, x, w, b: op.MatMul(x, w.clip(-10)),
    "operator": lambda op, x, w, b: op.MatMul(x, w + abs(w) / 2),
}
_MOVED: dict[str, Any] = {
    "plain": lambda op, x, w, b: op.Add(op.MatMul(x, w), b),
    "moved": lambda op, x, w, b: op.MatMul(x, op.Gather(op.Transpose(w, perm=(1, 0)), op.ints(3, 2, 1, 0))),
    "parts": lambda op, x, w, b: op.MatMul(x, op.Concat(*op.Split(w, op.ints(1, 3), outputs=2)[::-1], axis=0)),
    "limits": lambda op, x, w, b: op.Min(op.Max(op.MatMul(x, w), b), _number(op, 30)),
    "tied": lambda op, x, w, b: op.MatMul(op.MatMul(x, w), op.Transpose(w, perm=(1, 0))),
    "spread": lambda op, x, w, b: op.Max(x, op.Expand(b, op.Shape(op.MatMul(x, w)))),
}


@dataclass(frozen=True)
class Weighted(ix.Layer):
    """One of these."""

    form: str

    def init_params(self, rng: np.random.Generator) -> Any:
        return {
            "w": np.linspace(-40, 40, 16, dtype=np.float32).reshape(4, 4),
            "b": np.linspace(-20, 10, 4, dtype=np.float32),
        }

    def forward(self, op: Any, params: Any, states: Any, *inputs: Any, train: bool) -> Any:
        compute = {**_COMPUTED, **_MOVED}[self.form]
        return compute(op, inputs[0], params["w"], params["b"]), states


@pytest.mark.parametrize("form", [*_COMPUTED, *_MOVED])
def test_weights_that_are_computed_are_not_gathered(form: str) -> None:
    layer = Weighted(form)
    fused = ix.to_fused(layer, (4,))
    params, states = ix.setup(layer, 0)
    x = np.eye(4, dtype=np.float32)
    for _ in range(3):
        params = jax.tree.map(lambda a: a[::-1] * np.float32(1.5), params)
        close(fused.apply(params, states, x)[0], layer.apply(params, states, x)[0])
    jitted = jax.jit(lambda p, x: fused.apply(p, states, x)[0])
    close(np.asarray(jitted(params, x)), layer.apply(params, states, x)[0])
    assert ("ffi_call" in str(jax.make_jaxpr(jitted)(params, x))) == (form in _MOVED)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (_MLP, (4,)),
        (L.Conv(3, 9, (2, 2)), (3, 5, 5)),
        (L.Chain(L.Dense(4, 5), L.LayerNorm((5,))), (4,)),
        (L.Chain(L.Conv(3, 4, (2, 2)), L.GroupNorm(2, 4)), (3, 5, 5)),
        (L.RepeatedLayer(L.Dense(4, 4), 3), (4,)),
        (L.SkipConnection(L.Dense(4, 4)), (4,)),
    ],
)
def test_packing_of_usual_layers_is_a_gather(layer: Any, shape: Any) -> None:
    fused = ix.to_fused(layer, shape)
    params, states = ix.setup(layer, 0)
    x = np.zeros((2, *shape), np.float32)
    assert "ffi_call" in str(jax.make_jaxpr(lambda p, x: fused.apply(p, states, x)[0])(params, x))


def test_unsupported_layers_are_named_in_a_program_too() -> None:
    layer = L.Chain(L.Dense(4, 4), L.Operator.of("NonZero"))
    params, states = ix.setup(layer, 0)
    with pytest.raises(UnsupportedError, match="NonZero"):
        jax.jit(lambda p, x: Fused(layer, ((4,),)).apply(p, states, x)[0])(params, np.zeros((2, 4), np.float32))


_WITHOUT_JAX = """
import sys
sys.modules["jax"] = sys.modules["jaxlib"] = None
import numpy as np
import interlux as ix
dense = ix.layers.Dense(5, 3)
params, states = ix.setup(dense, 0)
fused = ix.to_fused(dense, (5,))
x = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
for i in range(3):
    np.testing.assert_allclose(fused.apply(params, states, x)[0], x @ params["weight"].T + params["bias"], 1e-5, 1e-5)
    params["weight"] += i
for layer, shape in [
    (dense, (4,)), (dense, (300,)), (ix.layers.LayerNorm((4,)), (5,)), (ix.layers.BatchNorm(4), (5,)),
    (ix.layers.Conv(3, 4, (2, 2)), (6, 5, 5)), (ix.layers.Conv(3, 4, (7, 7)), (3, 5, 5)),
]:
    try:
        ix.to_fused(layer, shape)
    except ix.InvalidModelError as error:
        assert len(str(error).splitlines()) == 1
    else:
        raise AssertionError((layer, shape))
"""


def test_without_jax() -> None:
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-W", "error", "-c", _WITHOUT_JAX], check=True, env=environment)
