"""Layers and containers built by hand: on JAX, through ONNX, with gradients, by the one definition that they have."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import numpy as np
import pytest

import interlux as ix
from interlux.ir import layers as l
from interlux.ir.interpreter import EVAL, Override
from interlux.runtime.jax import JaxInterpreter

F4 = (("float32", ("batch", 4)),)
IMAGE = (("float32", ("batch", 4, 6, 5)),)
SEQUENCE = (("float32", ("batch", 7, 4)),)

TABLE: dict[str, tuple[ix.Layer, tuple[tuple[str, tuple[Any, ...]], ...]]] = {
    "Dense": (l.Dense(4, 3, activation=l.tanh), F4),
    "Dense without bias, 3-D": (l.Dense(4, 3, use_bias=False), SEQUENCE),
    "Conv": (l.Conv(4, 6, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2), 2), IMAGE),
    "ConvTranspose": (l.ConvTranspose(4, 6, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2), (1, 0)), IMAGE),
    "BatchNorm": (l.BatchNorm(4, 1e-3, 0.3), IMAGE),
    "BatchNorm, never": (l.BatchNorm(4, mode="never"), IMAGE),
    "LayerNorm": (l.LayerNorm((7, 4), 1e-3), SEQUENCE),
    "GroupNorm": (l.GroupNorm(2, 4, 1e-3), IMAGE),
    "InstanceNorm": (l.InstanceNorm(4, 1e-3), IMAGE),
    "InstanceNorm, tracking": (l.InstanceNorm(4, 1e-3, 0.3, track=True), IMAGE),
    "RMSNorm": (l.RMSNorm((7, 4), 1e-3), SEQUENCE),
    "Embedding": (l.Embedding(5, 3, 0), (("int64", ("batch", 6)),)),
    "LSTM": (l.LSTM(4, 3, 2, True, True), SEQUENCE),
    "LSTM, projected": (l.LSTM(4, 3, 2, True, True, proj_size=2), SEQUENCE),
    "GRU": (l.GRU(4, 3, 2, True, True), SEQUENCE),
    "RNN": (l.RNN(4, 3, 2, True, True), SEQUENCE),
    "Attention": (l.Attention(causal=True), (("float32", ("batch", 2, 5, 4)),) * 3),
    "Attention, grouped": (
        l.Attention(groups=2),
        (("float32", ("batch", 4, 5, 4)), ("float32", ("batch", 2, 5, 4)), ("float32", ("batch", 2, 5, 4))),
    ),
    "HardTanh": (l.HardTanh(-0.5, 0.5), F4),
    "Dropout": (l.Dropout(0.5), F4),
    "Dropout of channels": (l.Dropout(0.5, channels=True), IMAGE),
    "pools": (
        l.Chain(l.max_pool((2, 2), (1, 1), (0, 1, 1, 0)), l.mean_pool((2, 2)), l.global_mean_pool, l.flatten),
        IMAGE,
    ),
    "Chain": (l.Chain(l.Dense(4, 8, activation=l.gelu), l.LayerNorm((8,)), l.Dense(8, 2)), F4),
    "SkipConnection": (l.SkipConnection(l.Dense(4, 4, activation=l.relu)), F4),
    "SkipConnection, concat": (l.SkipConnection(l.Dense(4, 2), l.Operator.of("Concat", axis=-1)), F4),
    "BranchLayer": (l.BranchLayer(l.Dense(4, 2), l.Dense(4, 3)), F4),
    "Parallel": (l.Parallel(l.Dense(4, 2), l.Dense(4, 3)), F4 * 2),
    "PairwiseFusion": (l.PairwiseFusion(l.Operator("Add"), l.Dense(4, 4), l.Dense(4, 2)), F4 * 2),
    "Maxout": (l.Maxout(l.Dense(4, 3), l.Dense(4, 3)), F4),
    "RepeatedLayer": (l.RepeatedLayer(l.Dense(4, 4, activation=l.tanh), 3), F4),
}


def arrays(inputs: Any, batch: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal([batch if s == "batch" else s for s in shape]).astype(dtype)
        if dtype.startswith("float")
        else rng.integers(0, 5, [batch if s == "batch" else s for s in shape])
        for dtype, shape in inputs
    ]


def scrambled(tree: Any, seed: int) -> Any:
    """Arrays that are not what fresh ones are: no zeros, no ones, positive variances."""
    rng = np.random.default_rng(seed)
    return ix.trees.map_leaves(
        lambda a: (np.abs(rng.standard_normal(a.shape)) + 0.5).astype(a.dtype) if ix.trees.is_float(a.dtype) else a,
        tree,
    )


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("opset", [13, 28])
def test_on_jax_and_through_onnx(name: str, opset: int) -> None:
    import onnxruntime

    from interlux.runtime.onnx import emit

    layer, inputs = TABLE[name]
    params, states = (scrambled(tree, 1) for tree in ix.setup(layer, 0))
    given = arrays(inputs, 3)
    outputs, new = layer.apply(params, states, *given)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert ix.trees.changed(states, new) == [] or all(
        np.array_equal(a, ix.trees.find(new, p)) for p, a in ix.trees.leaves(states)
    )
    specs = tuple(ix.TensorSpec(f"x{i}", d, s) for i, (d, s) in enumerate(inputs))
    made = tuple(ix.TensorSpec(f"y{i}", y.dtype.name, (None,) * y.ndim) for i, y in enumerate(outputs))
    model = ix.Model(layer, params, states, ix.Signature(specs, made))
    proto = emit(model, opset)
    assert proto.opset_import[0].version == opset
    names = {ix.trees.name_of(p) for p, _ in ix.trees.leaves(params)}
    assert names <= {i.name for i in proto.graph.initializer}
    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = 4
    if opset > 26:  # newer than onnxruntime; onnx's own evaluator runs it
        from onnx.reference import ReferenceEvaluator

        run = ReferenceEvaluator(proto).run
    else:
        run = onnxruntime.InferenceSession(
            proto.SerializeToString(), session_options, providers=["CPUExecutionProvider"]
        ).run
    for batch in (1, 3):
        given = arrays(inputs, batch, batch)
        expected = ix.compile(model)(*given)
        for a, b in zip(run(None, {s.name: g for s, g in zip(specs, given, strict=True)}), expected, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", TABLE)
def test_shapes_say_what_fresh_parameters_are(name: str) -> None:
    def check(layer: ix.Layer, params: Any) -> None:
        found = {k: v.shape for k, v in params.items() if not isinstance(v, dict)}
        assert found == layer.param_shapes()
        for key, child in layer.children():
            check(child, params.get(key, {}))

    layer, _ = TABLE[name]
    params, states = ix.setup(layer, 0)
    check(layer, params)
    again = ix.setup(layer, 0)
    assert all(
        np.array_equal(a, b)
        for tree, other in ((params, again[0]), (states, again[1]))
        for (_, a), (_, b) in zip(ix.trees.leaves(tree), ix.trees.leaves(other), strict=True)
    )
    assert all(a.dtype == np.float64 for _, a in ix.trees.leaves(ix.setup(layer, 0, np.float64)[0]))


@pytest.mark.parametrize("name", TABLE)
def test_jit_grad_and_vmap(name: str) -> None:
    layer, inputs = TABLE[name]
    params, states = ix.setup(layer, 0)
    given = arrays(inputs, 2)

    def total(params: Any) -> Any:
        y, new = layer.apply(params, states, *given, train=True)
        return sum((y * y).sum() for y in (y if isinstance(y, tuple) else (y,)))

    if params:
        gradients = jax.jit(jax.grad(total))(params)
        ix.trees.check_same(params, gradients, "gradients")
        assert any(np.abs(g).max() > 0 for _, g in ix.trees.leaves(gradients))
    single = jax.vmap(lambda *x: layer.apply(params, states, *(v[None] for v in x))[0])(*given)
    together, _ = layer.apply(params, states, *given)
    axis = 1 if "LSTM" in name else 0
    first, whole = (y[0] if isinstance(y, tuple) else y for y in (single, together))
    if axis == 0:
        np.testing.assert_allclose(np.asarray(first)[:, 0], whole, rtol=1e-4, atol=1e-5)


def test_states_go_from_call_to_call() -> None:
    layer = l.Chain(l.RepeatedLayer(l.BatchNorm(4), 3), l.Dropout(0.5))
    params, states = ix.setup(layer, 0)
    x = arrays(F4, 8)[0]
    y1, new = layer.apply(params, states, x, train=True)
    y2, newer = layer.apply(params, new, x, train=True)
    assert new["0"]["layer"]["num_batches_tracked"] == 3 and newer["0"]["layer"]["num_batches_tracked"] == 6
    assert not np.array_equal(y1 == 0, y2 == 0)
    y3, _ = layer.apply(params, states, x, train=True)
    np.testing.assert_array_equal(y1, y3)


def test_64_bit_numbers_keep_their_meaning_without_touching_jax() -> None:
    big = np.array([2**40], np.int64)
    y, _ = l.Operator("Add").apply({}, {}, big, np.array([1]))
    assert y.dtype == np.int64 and y[0] == 2**40 + 1
    y, _ = l.Operator("Mul").apply({}, {}, np.array([1 / 3]), np.array([3.0]))
    assert y.dtype == np.float64 and y[0] == 1.0
    assert not jax.config.read("jax_enable_x64")
    y, _ = l.Operator("Add").apply({}, {}, jax.numpy.ones(2), np.ones(2, np.float32))
    assert y.dtype == np.float32


def test_an_override_is_not_used_outside_its_modes() -> None:
    calls = []

    class Marked(JaxInterpreter):
        overrides: ClassVar[dict[type[ix.Layer], Override]] = {
            l.Dense: Override(
                lambda op, layer, params, states, x, *, train: (calls.append(train), (x, states))[1], frozenset({EVAL})
            )
        }

    layer = l.Dense(4, 3)
    params, states = ix.setup(layer, 0)
    x = np.ones((2, 4), np.float32)
    assert Marked().layer(layer, params, states, x, train=False)[0].shape == (2, 4)
    assert Marked().layer(layer, params, states, x, train=True)[0].shape == (2, 3)
    assert calls == [False]


def test_a_model_from_a_layer_knows_its_outputs() -> None:
    layer = l.BranchLayer(l.Dense(4, 3), l.Operator.of("ArgMax", axis=-1, keepdims=0), l.Operator("Shape"))
    model = ix.Model.from_layer(layer, *ix.setup(layer, 0), {"x": ("float32", ("batch", "time", 4))})
    assert [str(spec) for spec in model.signature.outputs] == [
        "output_0: float32[batch, time, 3]",
        "output_1: int64[batch, time]",
        "output_2: int64[3]",
    ]
    x = np.ones((2, 7, 4), np.float32)
    for a, b in zip(ix.compile(model, "jax")(x), ix.compile(model, "onnxruntime")(x=x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


ERRORS = {
    "mode": (lambda: l.BatchNorm(3, mode="sometimes"), "BatchNorm: mode must be one of follow, always, never"),
    "groups": (lambda: l.Conv(3, 4, (3, 3), groups=2), "don't divide into 2 groups"),
    "pads": (lambda: l.Conv(3, 4, (3, 3), pads=(1, 1)), "needs 4 entries"),
    "groups of a transposed convolution": (
        lambda: l.ConvTranspose(3, 4, (3, 3), groups=2),
        "don't divide into 2 groups",
    ),
    "groups of channels": (lambda: l.GroupNorm(3, 4), "4 channels don't divide into 3 groups"),
    "nonlinearity": (lambda: l.RNN(3, 4, nonlinearity="sigmoid"), "must be tanh or relu"),
    "operator": (lambda: l.Operator("Convolve"), "neither an ONNX operator nor a primitive"),
    "not a layer": (lambda: l.Chain(l.relu, 3), "takes layers, not int"),
    "probability": (lambda: l.Dropout(1.5), "must lie in 0..1"),
    "train as array": (lambda: l.relu.apply({}, {}, np.ones(1), train=np.True_), "must be True or False"),
    "inputs of Parallel": (lambda: l.Parallel(l.relu, l.relu).apply({}, {}, np.ones(1)), "takes as many inputs, not 1"),
    "unknown attribute": (
        lambda: l.Operator.of("Relu", alpha=1.0).apply({}, {}, np.ones(1)),
        "unknown attribute 'alpha'",
    ),
    "too few inputs": (lambda: l.Operator("Add").apply({}, {}, np.ones(1)), "1 inputs, needs 2"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_mistakes_are_one_line(name: str) -> None:
    make, message = ERRORS[name]
    with pytest.raises(ix.InterluxError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_printing_a_model() -> None:
    layer = l.Chain(l.Dense(4, 8, activation=l.relu), l.SkipConnection(l.Dense(8, 8, use_bias=False)))
    text = str(ix.Model(layer, *ix.setup(layer, 0), metadata={"name": "two\x1b[2J"}))
    assert "104 parameters in 3 arrays" in text and "\x1b" not in text
    assert "└─ layer: Dense(8, 8, use_bias=False)" in text and "weight [8, 8]" in text
