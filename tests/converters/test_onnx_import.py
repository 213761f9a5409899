"""from_onnx: what an ONNX model becomes, and that it computes the same."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, defs, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from interlux.converters.onnx import OnnxSource, checks, from_onnx
from interlux.converters.onnx.scopes import scope_of
from interlux.converters.onnx.weights import paths_of
from interlux.ir import trees
from interlux.ir.errors import InterluxError, InvalidModelError, ResourceLimitError, UnsafeInputError, UnsupportedError
from interlux.ir.graph import Graph, ModuleCall
from interlux.ir.layer import setup
from interlux.ir.layers import (
    LSTM,
    BatchNorm,
    Chain,
    Constant,
    Conv,
    Dense,
    Dropout,
    Embedding,
    LayerNorm,
    Operator,
    SkipConnection,
    Stored,
    flatten,
    gelu,
    max_pool,
    relu,
)
from interlux.ir.model import Model, Signature, TensorSpec
from interlux.runtime.jax import JaxRunner
from interlux.runtime.onnx import emit

FIXTURES = Path(__file__).parents[2] / "fixtures"
NEWEST = defs.onnx_opset_version()
F32, I64 = TensorProto.FLOAT, TensorProto.INT64


def proto(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any] | None]],
    outputs: dict[str, tuple[int, list[Any] | None]],
    opset: int = 20,
    **initialisers: np.ndarray,
) -> onnx.ModelProto:
    """A model of these nodes. Initialisers are named by keyword, with `__` for a dot."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in outputs.items()],
        [numpy_helper.from_array(a, n.replace("__", ".")) for n, a in initialisers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def graph_of(model: Model) -> Graph:
    assert isinstance(model.layer, Graph)
    return model.layer


def layers_of(model: Model) -> list[Any]:
    return [n.layer for n in graph_of(model).nodes if not isinstance(n.layer, Stored | Constant)]


def operators_of(model: Model) -> list[str]:
    return [layer.op_type for layer in layers_of(model) if isinstance(layer, Operator)]


def stored_names(model: Model) -> set[str]:
    return {trees.name_of(path) for tree in (model.params, model.states) for path, _ in trees.leaves(tree)}


def run_jax(model: Model, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    return JaxRunner(model).run(list(arrays))


def same(got: np.ndarray, wanted: np.ndarray, tolerance: float = 2e-6) -> None:
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


# --- round trips of hand-built models


def hand_built(layer: Any, *specs: TensorSpec, outputs: int = 1) -> Model:
    params, states = setup(layer, 1)
    results = tuple(TensorSpec(f"y{i}", "float32", ("batch", *[None] * 1)) for i in range(outputs))
    return Model(layer, params, states, Signature(specs, results), metadata={"name": "hand built"})


def images(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.standard_normal((3, 2, 12, 12)).astype(np.float32)]


def tokens(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.integers(0, 11, (3, 5))]


def vectors(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.standard_normal((3, 8)).astype(np.float32)]


IMAGES = TensorSpec("images", "float32", ("batch", 2, 12, 12))
TOKENS = TensorSpec("tokens", "int64", ("batch", 5))
VECTORS = TensorSpec("x", "float32", ("batch", 8))
flat = Operator.of("Flatten", axis=1)
last = Operator.of("ReduceMean", keepdims=1)
HAND_BUILT = {
    "dense": (Chain(Dense(8, 16), relu, Dropout(0.3), Dense(16, 1)), VECTORS, vectors),
    "dense without bias": (Chain(Dense(8, 4, use_bias=False), gelu), VECTORS, vectors),
    "conv": (
        Chain(
            Conv(2, 6, (3, 3), pads=(1, 1, 1, 1)),
            BatchNorm(6),
            relu,
            SkipConnection(Conv(6, 6, (3, 3), pads=(2, 2, 2, 2), dilations=(2, 2), groups=3), Operator("Add")),
            max_pool((2, 2)),
            flatten,
            Dense(216, 10),
        ),
        IMAGES,
        images,
    ),
    "tokens": (Chain(Embedding(11, 8), LayerNorm((8,)), Dense(8, 12), gelu, Dense(12, 4), flat), TOKENS, tokens),
    "reduction": (Chain(Embedding(11, 8), last, flat), TOKENS, tokens),
    "lstm": (Chain(Embedding(11, 8), LSTM(8, 6), Operator.of("Concat", axis=2)), TOKENS, tokens),
}


@pytest.mark.parametrize("opset", [13, 17, 20, NEWEST])
@pytest.mark.parametrize("case", [name for name in HAND_BUILT if name != "lstm"])
def test_round_trip(case: str, opset: int) -> None:
    layer, spec, make = HAND_BUILT[case]
    model = hand_built(layer, spec)
    written = emit(model, opset)
    back = from_onnx(written.SerializeToString())
    arrays = make(np.random.default_rng(3))
    (wanted,), (got,) = run_jax(model, *arrays), run_jax(back, *arrays)
    same(got, wanted)
    same(OnnxSource(emit(back, opset)).run(arrays)[0], wanted, 1e-5)
    for path, array in trees.leaves(model.params):
        np.testing.assert_array_equal(back.array(path), array, strict=True)
    assert back.signature is not None
    assert back.signature.inputs == (spec,)
    assert back.metadata["opset"] == opset


@pytest.mark.parametrize("opset", [13, 17, 20, NEWEST])
def test_round_trip_lstm(opset: int) -> None:
    layer = LSTM(8, 6, num_layers=2)
    params, states = setup(layer, 1)
    outputs = tuple(TensorSpec(n, "float32", (None, None, 6)) for n in ("y", "h", "c"))
    model = Model(layer, params, states, Signature((TensorSpec("x", "float32", ("time", "batch", 8)),), outputs))
    back = from_onnx(emit(model, opset))
    x = floats(7, 3, 8)
    for got, wanted in zip(run_jax(back, x), run_jax(model, x), strict=True):
        same(got, wanted)
    assert stored_names(back) == stored_names(model)


def test_round_trip_reads_like_the_network() -> None:
    layer, spec, _ = HAND_BUILT["tokens"]
    back = from_onnx(emit(hand_built(layer, spec), 20))
    kinds = [type(found).__name__ for found in layers_of(back)]
    assert kinds == ["Embedding", "LayerNorm", "Dense", "Operator", "Dense", "Operator"]
    assert layers_of(back)[2] == Dense(8, 12)


def test_scopes_survive_a_round_trip() -> None:
    first = from_onnx(FIXTURES / "digits_transformer.onnx")
    back = from_onnx(emit(first, 20))
    calls = {node.scope for node in graph_of(first).nodes}
    assert {node.scope for node in graph_of(back).nodes} <= calls
    assert any(scope and scope[-1].path == "blocks.0.attention.qkv" for scope in calls)


# --- models that torch exported


@pytest.mark.parametrize("name", ["lenet", "resnet", "transformer", "lstm"])
def test_fixture(name: str) -> None:
    path = FIXTURES / f"digits_{name}.onnx"
    model, source = from_onnx(path), OnnxSource(path)
    assert model.signature is not None
    (spec,) = model.signature.inputs
    assert spec.shape[0] == "batch"
    assert model.signature.outputs == (TensorSpec("logits", "float32", ("batch", 10)),)
    run = JaxRunner(model)
    for batch in (1, 2, 5):
        rng = np.random.default_rng(batch)
        shape = (batch, *spec.shape[1:])
        x = rng.standard_normal(shape).astype(np.float32) if spec.dtype == "float32" else rng.integers(0, 17, shape)
        (exact,) = source.run_float64([x])
        assert exact.dtype == np.float64
        size = np.linalg.norm(exact)
        own = np.linalg.norm(source.run([x])[0] - exact) / size
        got = np.linalg.norm(run(x)[0] - exact) / size
        assert got <= 4 * max(own, 2.0**-24 * 8)  # rounding of some 64 steps


@pytest.mark.parametrize("name", ["lenet", "resnet", "transformer", "lstm"])
def test_fixture_accuracy(name: str) -> None:
    from fixtures import digits

    pixels, labels = digits.load_test()
    make = {"lenet": digits.lenet_input, "resnet": digits.resnet_input}.get(name, digits.token_input)
    (logits,) = JaxRunner(from_onnx(FIXTURES / f"digits_{name}.onnx"))(make(pixels))
    expected = json.loads((FIXTURES / "fixtures.json").read_text())[f"digits_{name}"]["test"]
    assert int((logits.argmax(1) == labels).sum()) == expected["correct"]


@pytest.mark.parametrize("name", ["lenet", "resnet", "transformer", "lstm"])
def test_names_and_values_of_initialisers_survive(name: str) -> None:
    path = FIXTURES / f"digits_{name}.onnx"
    model = from_onnx(path)
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    kept = {n: a for n, a in weights.items() if a.dtype.kind == "f" and a.size > 1}
    assert stored_names(model) == kept.keys()
    for key, array in kept.items():
        np.testing.assert_array_equal(model.array(trees.path_of(key)), array, strict=True)


def test_fixture_reads_like_the_network() -> None:
    model = from_onnx(FIXTURES / "digits_lenet.onnx")
    assert [type(layer).__name__ for layer in layers_of(model)].count("Dense") == 3
    text = str(model)
    assert "conv1: Conv2d = Conv(" in text
    assert "fc3: Linear = Dense(" in text
    nodes = {node.name: node for node in graph_of(model).nodes}
    assert nodes["node_conv2d"].outputs == ("conv2d",)
    assert nodes["node_conv2d"].source == "Conv node_conv2d"
    assert model.metadata["producer"].startswith("pytorch")


# --- older operators


def upgrade_case(op_type: str, opset: int, arrays: dict[str, np.ndarray], outputs: int = 1, **attributes: Any) -> Any:
    return pytest.param(op_type, opset, arrays, outputs, attributes, id=f"{op_type}-{opset}-{len(attributes)}")


REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
UPGRADE_CASES = [
    *(upgrade_case(f"Reduce{k}", 13, {"x": np.abs(floats(2, 3, 4))}, axes=[0, -1], keepdims=0) for k in REDUCTIONS),
    *(upgrade_case(f"Reduce{k}", 17, {"x": np.abs(floats(2, 3, 4))}) for k in REDUCTIONS),
    upgrade_case("Split", 13, {"x": floats(6, 4)}, 3),
    upgrade_case("Split", 17, {"x": floats(2, 6)}, 2, axis=1),
    upgrade_case("Split", 13, {"x": floats(2, 6), "sizes": ints(4, 2)}, 2, axis=1),
    upgrade_case(
        "GroupNormalization", 18, {"x": floats(2, 6, 4), "s": floats(3), "b": floats(3, seed=1)}, num_groups=3
    ),
    upgrade_case(
        "GroupNormalization", 20, {"x": floats(2, 6, 4), "s": floats(2), "b": floats(2, seed=1)}, num_groups=2
    ),
    upgrade_case("GridSample", 16, {"x": floats(1, 2, 5, 5), "g": np.tanh(floats(1, 3, 3, 2))}, mode="bicubic"),
    upgrade_case("GridSample", 16, {"x": floats(1, 2, 5, 5), "g": np.tanh(floats(1, 3, 3, 2))}),
    upgrade_case("GridSample", 16, {"x": floats(1, 2, 5, 5), "g": np.tanh(floats(1, 3, 3, 2))}, mode="nearest"),
    upgrade_case("DFT", 17, {"x": floats(2, 5, 3, 1)}),
    upgrade_case("DFT", 19, {"x": floats(2, 5, 3, 2)}, axis=2, inverse=1),
    upgrade_case(
        "RoiAlign",
        13,
        {"x": floats(1, 2, 6, 6), "rois": np.array([[0.7, 0.6, 4.3, 5.2]], np.float32), "batch": ints(0)},
        output_height=3,
        output_width=3,
        sampling_ratio=2,
    ),
    upgrade_case("BatchNormalization", 13, {"x": floats(2, 3, 4), **{k: np.abs(floats(3)) for k in "sbmv"}}),
    upgrade_case("Shape", 13, {"x": floats(2, 3)}),
    upgrade_case("Dropout", 13, {"x": floats(2, 3)}),
    upgrade_case("Pad", 13, {"x": floats(2, 3), "pads": ints(1, 0, 0, 2)}, mode="edge"),
    upgrade_case("AveragePool", 13, {"x": floats(1, 2, 5)}, kernel_shape=[2], ceil_mode=1, pads=[1, 0]),
    upgrade_case("Softmax", 13, {"x": floats(2, 3)}, axis=0),
]


@pytest.mark.parametrize(("op_type", "opset", "arrays", "outputs", "attributes"), UPGRADE_CASES)
def test_upgrade(
    op_type: str, opset: int, arrays: dict[str, np.ndarray], outputs: int, attributes: dict[str, Any]
) -> None:
    """The newest form of a node computes what onnxruntime computes for the old one."""
    names = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op_type, list(arrays), names, **attributes)
    numbers = {n: helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in arrays.items()}
    fixed = {n: a for n, a in arrays.items() if a.dtype.kind == "i"}
    fed = {n: a for n, a in arrays.items() if n not in fixed}
    kind = I64 if op_type == "Shape" else F32
    old = proto(
        [node],
        {n: (numbers[n], list(a.shape)) for n, a in fed.items()},
        dict.fromkeys(names, (kind, None)),
        opset,
        **fixed,
    )
    wanted = OnnxSource(old).run(list(fed.values()))
    model = from_onnx(old)
    for got, right in zip(OnnxSource(emit(model, 21)).run(list(fed.values())), wanted, strict=True):
        same(np.asarray(got), np.asarray(right), 1e-5)
    for got, right in zip(run_jax(model, *fed.values()), wanted, strict=True):
        same(got, np.asarray(right), 1e-5)


def group_normalised(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """GroupNormalization of opset 18, which neither onnxruntime nor onnx's evaluator runs."""
    grouped = x.astype(np.float64).reshape(x.shape[0], len(scale), -1)
    normal = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(grouped.var(2, keepdims=True) + 1e-5)
    return (normal * scale[:, None] + bias[:, None]).reshape(x.shape).astype(np.float32)


@pytest.mark.parametrize(("opset", "groups"), [(18, 1), (18, 3), (20, 2), (20, 6), (21, 6)])
def test_group_normalization(opset: int, groups: int) -> None:
    node = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=groups)
    scale, bias = floats(groups), floats(groups, seed=1)
    shape = [2, 6, 4]
    model = from_onnx(proto([node], {"x": (F32, shape)}, {"y": (F32, shape)}, opset, s=scale, b=bias))
    x = floats(*shape)
    same(run_jax(model, x)[0], group_normalised(x, scale, bias), 1e-5)
    same(OnnxSource(emit(model, 21)).run([x])[0], group_normalised(x, scale, bias), 1e-5)


def test_group_normalization_with_unknown_channels() -> None:
    node = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)
    old = proto([node], {"x": (F32, ["n", "c", 4])}, {"y": (F32, ["n", "c", 4])}, 18, s=floats(2), b=floats(2, seed=1))
    x = floats(2, 6, 4)
    same(run_jax(from_onnx(old), x)[0], group_normalised(x, floats(2), floats(2, seed=1)), 1e-5)


def test_training_by_outputs_is_refused() -> None:
    node = helper.make_node("BatchNormalization", ["x", *"sbmv"], ["y", "m2", "v2", "m3", "v3"], "bn")
    outputs = {"y": (F32, [2, 3])}
    old = proto([node], {"x": (F32, [2, 3])}, outputs, 13, **{k: np.abs(floats(3)) for k in "sbmv"})
    with pytest.raises(UnsupportedError, match=r"BatchNormalization 'bn': .*opset 14"):
        from_onnx(old)


# --- richer layers


def layer_case(
    name: str,
    node: onnx.NodeProto | list[onnx.NodeProto],
    x: np.ndarray,
    wanted: Any,
    opset: int = 20,
    **initialisers: np.ndarray,
) -> Any:
    nodes = node if isinstance(node, list) else [node]
    return pytest.param(nodes, x, wanted, opset, initialisers, id=name)


def N(op_type: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


X2, X3, IMAGE = floats(3, 4), floats(2, 3, 4), floats(2, 4, 7, 6)
W, B = floats(5, 4), floats(5)
NORMS = {k: np.abs(floats(4, seed=i)) for i, k in enumerate("sbmv")}
TRANSPOSED = N("Transpose", "w", "wt", perm=[1, 0])
LAYER_CASES = [
    layer_case("gemm", N("Gemm", "x w b", transB=1), X2, Dense(4, 5), w=W, b=B),
    layer_case("gemm-one-output", N("Gemm", "x w b", transB=1), X2, Dense(4, 1), w=W[:1], b=B[:1]),
    layer_case("gemm-no-bias", N("Gemm", "x w", transB=1, beta=3.0), X2, Dense(4, 5, use_bias=False), w=W),
    layer_case("gemm-alpha", N("Gemm", "x w b", transB=1, alpha=0.5), X2, "Gemm", w=W, b=B),
    layer_case("gemm-beta", N("Gemm", "x w b", transB=1, beta=0.5), X2, "Gemm", w=W, b=B),
    layer_case("gemm-not-transposed", N("Gemm", "x w b"), X2, Dense(4, 5, in_first=True), w=W.T.copy(), b=B),
    layer_case("gemm-transA", N("Gemm", "x w b", transA=1, transB=1), floats(4, 3), "Gemm", w=W, b=B),
    layer_case("gemm-broadcast", N("Gemm", "x w b", transB=1), X2, "Gemm", w=W, b=B[:1]),
    layer_case("gemm-row", N("Gemm", "x w b", transB=1), X2, "Gemm", w=W, b=B[None]),
    layer_case("matmul", N("MatMul", "x w"), X3, Dense(4, 5, use_bias=False, in_first=True), w=W.T.copy()),
    layer_case(
        "matmul-add", [N("MatMul", "x w", "z"), N("Add", "b z")], X3, Dense(4, 5, in_first=True), w=W.T.copy(), b=B
    ),
    layer_case("matmul-transposed", [TRANSPOSED, N("MatMul", "x wt")], X3, Dense(4, 5, use_bias=False), w=W),
    layer_case(
        "matmul-transposed-add", [TRANSPOSED, N("MatMul", "x wt", "z"), N("Add", "z b")], X3, Dense(4, 5), w=W, b=B
    ),
    layer_case("matmul-add-first", [TRANSPOSED, N("MatMul", "x wt", "z"), N("Add", "b z")], X3, Dense(4, 5), w=W, b=B),
    layer_case(
        "matmul-add-no-bias",
        [TRANSPOSED, N("MatMul", "x wt", "z"), N("Add", "z b")],
        X3,
        Dense(4, 5, use_bias=False),
        w=W,
        b=floats(3, 5),
    ),
    layer_case(
        "matmul-twice",
        [TRANSPOSED, N("MatMul", "x wt", "z"), N("Add", "z b", "a"), N("Mul", "z a")],
        X3,
        Dense(4, 5, use_bias=False),
        w=W,
        b=B,
    ),
    layer_case("conv", N("Conv", "x w b"), IMAGE, Conv(4, 6, (3, 2)), w=floats(6, 4, 3, 2), b=floats(6)),
    layer_case(
        "conv-all",
        N("Conv", "x w", strides=[2, 1], pads=[1, 0, 2, 3], dilations=[1, 2], group=2, kernel_shape=[3, 2]),
        IMAGE,
        Conv(4, 6, (3, 2), (2, 1), (1, 0, 2, 3), (1, 2), 2, use_bias=False),
        w=floats(6, 2, 3, 2),
    ),
    layer_case(
        "conv-valid",
        N("Conv", "x w", auto_pad="VALID"),
        IMAGE,
        Conv(4, 6, (3, 2), use_bias=False),
        w=floats(6, 4, 3, 2),
    ),
    layer_case(
        "conv-same", N("Conv", "x w", auto_pad="SAME_LOWER", strides=[2, 2]), IMAGE, "Conv", w=floats(6, 4, 3, 2)
    ),
    layer_case("conv-1d", N("Conv", "x w"), floats(2, 3, 9), Conv(3, 2, (4,), use_bias=False), w=floats(2, 3, 4)),
    layer_case(
        "batch-norm",
        N("BatchNormalization", "x s b m v", epsilon=0.125),
        IMAGE,
        BatchNorm(4, 0.125, 0.1, counted=False, mode="never"),
        **NORMS,
    ),
    layer_case(
        "layer-norm",
        N("LayerNormalization", "x s b", axis=1, epsilon=0.25),
        X3,
        LayerNorm((3, 4), 0.25),
        s=floats(3, 4),
        b=floats(3, 4, seed=1),
    ),
    layer_case("layer-norm-no-bias", N("LayerNormalization", "x s"), X3, LayerNorm((4,), use_bias=False), s=floats(4)),
    layer_case("layer-norm-broadcast", N("LayerNormalization", "x s", axis=1), X3, "LayerNormalization", s=floats(4)),
    layer_case("embedding", N("Gather", "w x"), ints(1, 0, 4, -1), Embedding(5, 4), w=W),
    layer_case("gather-columns", N("Gather", "w x", axis=1), ints(1, 0, 3), "Gather", w=W),
    layer_case("gather-3d", N("Gather", "w x"), ints(1, 0), "Gather", w=X3),
    layer_case("dropout", N("Dropout", "x r"), X2, Dropout(0.25, "never"), r=np.array(0.25, np.float32)),
    layer_case("dropout-mask", N("Dropout", "x", "y mask"), X2, "Dropout"),
    layer_case("dropout-off", N("Dropout", "x r t"), X2, Dropout(0.1, "never"), r=np.float32(0.1), t=np.array(False)),
]


@pytest.mark.parametrize(("nodes", "x", "wanted", "opset", "initialisers"), LAYER_CASES)
def test_layer(
    nodes: list[onnx.NodeProto], x: np.ndarray, wanted: Any, opset: int, initialisers: dict[str, np.ndarray]
) -> None:
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    arrays = {k: np.asarray(v) for k, v in initialisers.items()}
    source = proto(nodes, {"x": (kind, ["n", *x.shape[1:]])}, {"y": (F32, None)}, opset, **arrays)
    for node in source.graph.node:
        node.name = f"/block/layer/{node.op_type}"
    model = from_onnx(source)
    found = layers_of(model)
    if isinstance(wanted, str):
        assert operators_of(model) == [wanted]
    else:
        assert wanted in found
    expected = OnnxSource(source).run([x])[0]
    same(run_jax(model, x)[0], expected, 5e-6)
    same(ReferenceEvaluator(emit(model, 20)).run(None, {"x": x})[0], expected, 5e-6)
    for name, array in arrays.items():
        if array.size > 1:
            np.testing.assert_array_equal(model.array((name,)), array, strict=True)
    scopes = {node.scope for node in graph_of(model).nodes if not isinstance(node.layer, Stored | Constant)}
    assert scopes == {(ModuleCall("block", 0, ""), ModuleCall("block.layer", 0, ""))}


def test_batch_norm_in_training_stays_an_operator() -> None:
    node = N("BatchNormalization", "x s b m v", "y m2 v2", training_mode=1)
    outputs = {"y": (F32, None), "m2": (F32, [4]), "v2": (F32, [4])}
    source = proto([node], {"x": (F32, list(IMAGE.shape))}, outputs, **NORMS)
    model = from_onnx(source)
    assert operators_of(model) == ["BatchNormalization"]
    assert {trees.name_of(p) for p, _ in trees.leaves(model.states)} == {"m", "v"}
    for got, right in zip(run_jax(model, IMAGE), ReferenceEvaluator(source).run(None, {"x": IMAGE}), strict=True):
        same(got, right, 1e-5)


def test_unused_nodes_of_a_pattern_are_gone() -> None:
    source = proto([TRANSPOSED, N("MatMul", "x wt")], {"x": (F32, [2, 3, 4])}, {"y": (F32, None)}, w=W)
    assert len(layers_of(from_onnx(source))) == 1


def test_constants_at_their_default_are_left_out() -> None:
    node = N("MaxPool", "x", kernel_shape=[2, 2], ceil_mode=0, storage_order=0, auto_pad="NOTSET", strides=[2, 2])
    (layer,) = layers_of(from_onnx(proto([node], {"x": (F32, [1, 4, 7, 6])}, {"y": (F32, None)})))
    assert dict(layer.attributes) == {"kernel_shape": (2, 2), "strides": (2, 2)}


# --- parameters, states, constants, names


def test_what_tensors_become() -> None:
    nodes = [
        N("Mul", "x block.scale", "a"),
        N("Mul", "a val_1", "b"),
        N("Add", "b offset", "c"),
        N("Gather", "c index", "d", axis=0),
        N("Gather", "d table", "e", axis=0),
        N("Clip", "e low", "f"),
        N("Constant", "", "k", value_floats=[1.0, 2.0, 3.0]),
        N("Constant", "", "K", value=numpy_helper.from_array(floats(100, 3))),
        N("Add", "f k", "g"),
        N("Add", "g K"),
    ]
    model = from_onnx(
        proto(
            nodes,
            {"x": (F32, [100, 3])},
            {"y": (F32, None)},
            block__scale=np.array([2.0], np.float32),
            val_1=np.array(0.5, np.float32),
            offset=floats(3),
            index=np.arange(64),
            table=np.arange(100) % 64,
            low=np.array(-1, np.float32),
        )
    )
    assert {trees.name_of(p) for p, _ in trees.leaves(model.params)} == {"block.scale", "offset"}
    assert {trees.name_of(p) for p, _ in trees.leaves(model.states)} == {"table", "K"}


def test_names_that_are_prefixes_of_others() -> None:
    assert paths_of(["a", "a.b", "a.b.c", "d.e", "d.f"]) == {
        "a": ("a",),
        "a.b": ("a.b",),
        "a.b.c": ("a.b.c",),
        "d.e": ("d", "e"),
        "d.f": ("d", "f"),
    }
    nodes = [N("Add", "x w", "z"), N("Add", "z w.b")]
    model = from_onnx(proto(nodes, {"x": (F32, [2, 4])}, {"y": (F32, None)}, w=floats(4), w__b=floats(4, seed=1)))
    assert stored_names(model) == {"w", "w.b"}
    same(run_jax(model, X2[:2])[0], X2[:2] + floats(4) + floats(4, seed=1))


def test_shared_arrays_stay_shared_and_equal_ones_apart() -> None:
    nodes = [N("Gemm", "x w", "a", transB=1), N("Gemm", "a w", "b", transB=1), N("Gemm", "b w2", transB=1)]
    model = from_onnx(proto(nodes, {"x": (F32, [2, 4])}, {"y": (F32, None)}, w=floats(4, 4), w2=floats(4, 4)))
    assert stored_names(model) == {"w", "w2"}
    bound = [dict(node.params)["weight"] for node in graph_of(model).nodes]
    assert bound == [("w",), ("w",), ("w2",)]


def test_identities_of_initialisers_are_aliases() -> None:
    nodes = [N("Identity", "s", "bn.running_var"), N("Identity", "bn.running_var", "t")]
    nodes += [N("BatchNormalization", "x a b m bn.running_var", "z"), N("Mul", "z t")]
    vectors = {k: np.abs(floats(4, seed=i)) for i, k in enumerate("sabm")}
    source = proto(nodes, {"x": (F32, [2, 4, 6, 4])}, {"y": (F32, None)}, **vectors)
    model = from_onnx(source)
    assert model.aliases == {("bn", "running_var"): ("s",), ("t",): ("s",)}
    assert {trees.name_of(p) for p, _ in trees.leaves(model.states)} == {"s", "m"}
    assert any(isinstance(layer, BatchNorm) for layer in layers_of(model))
    x = floats(2, 4, 6, 4)
    same(run_jax(model, x)[0], OnnxSource(source).run([x])[0], 1e-5)


def test_overridable_initialisers_become_stored_arrays_with_a_note() -> None:
    source = proto(
        [N("Gemm", "x w b", transB=1)],
        {"x": (F32, ["n", 4]), "w": (F32, [5, 4]), "b": (F32, [5])},
        {"y": (F32, None)},
        w=W,
        b=B,
    )
    model = from_onnx(source)
    assert model.signature is not None
    assert [spec.name for spec in model.signature.inputs] == ["x"]
    assert stored_names(model) == {"w", "b"}
    assert model.notes == ("2 inputs with default values became stored arrays or constants: 'w', 'b'.",)
    same(run_jax(model, X2)[0], X2 @ W.T + B)


def test_outputs_that_are_inputs_and_initialisers() -> None:
    source = proto(
        [N("Relu", "x", "y")], {"x": (F32, ["n", 4])}, {"y": (F32, None), "x": (F32, None), "w": (F32, None)}, w=W
    )
    del source.graph.output[1:2]
    model = from_onnx(source)
    y, w = run_jax(model, X2)
    same(y, np.maximum(X2, 0))
    same(w, W)


def test_dimensions() -> None:
    inputs = {"x": (F32, ["n", None, 4, -1]), "z": (F32, ["n", "x_dim1"])}
    source = proto([N("Relu", "x"), N("Relu", "z", "q")], inputs, {"y": (F32, ["n", "?", 4, None]), "q": (F32, None)})
    model = from_onnx(source)
    assert model.signature is not None
    assert model.signature.inputs[0].shape == ("n", "x_dim1_1", 4, "x_dim3")
    assert model.signature.dims.keys() == {"n", "x_dim1_1", "x_dim3", "x_dim1"}
    assert model.signature.outputs[1].shape == ("n", "x_dim1")
    assert model.signature.outputs[0].shape[2] == 4
    assert "?" not in model.signature.outputs[0].shape


def test_local_functions_are_inlined() -> None:
    body = [N("Mul", "a a", "t"), N("Add", "t b", "c")]
    square = helper.make_function("mine", "SquareAdd", ["a", "b"], ["c"], body, [helper.make_opsetid("", 20)])
    node = helper.make_node("SquareAdd", ["x", "w"], ["y"], domain="mine")
    source = proto([node], {"x": (F32, [3, 4])}, {"y": (F32, None)}, w=floats(4))
    source.opset_import.append(helper.make_opsetid("mine", 1))
    source.functions.append(square)
    same(run_jax(from_onnx(source), X2)[0], X2 * X2 + floats(4))
    same(OnnxSource(source).run_float64([X2])[0], X2.astype(float) ** 2 + floats(4).astype(float))


def test_functions_that_explode_or_recurse() -> None:
    def function(name: str, calls: str) -> onnx.FunctionProto:
        nodes = [
            helper.make_node(calls, ["a" if i == 0 else "t"], ["t" if i == 0 else "c"], domain="m") for i in range(2)
        ]
        return helper.make_function("m", name, ["a"], ["c"], nodes, [helper.make_opsetid("m", 1)])

    def model(functions: list[onnx.FunctionProto]) -> onnx.ModelProto:
        node = helper.make_node("F0", ["x"], ["y"], domain="m")
        source = proto([node], {"x": (F32, [3, 4])}, {"y": (F32, None)})
        source.opset_import.append(helper.make_opsetid("m", 1))
        source.functions.extend(functions)
        return source

    with pytest.raises(ResourceLimitError, match="expand into"):
        from_onnx(model([function(f"F{i}", f"F{i + 1}") for i in range(40)]))
    with pytest.raises(InvalidModelError, match="calls itself"):
        from_onnx(model([function("F0", "F1"), function("F1", "F0")]))


# --- scopes


@pytest.mark.parametrize(
    ("name", "properties", "wanted"),
    [
        ("/layer1/0/conv/Conv", {}, [("layer1", ""), ("layer1.0", ""), ("layer1.0.conv", "")]),
        ("/layer1/layer1.0/conv/Conv", {}, [("layer1", ""), ("layer1.0", ""), ("layer1.0.conv", "")]),
        ("/Conv", {}, []),
        ("Conv_7", {}, []),
        ("n", {"interlux.scope": '[["a.b", 1, "C"]]'}, [("a.b", "C")]),
        ("n", {"interlux.scope": '[["a.b", 1]]'}, []),
        ("n", {"interlux.scope": "[" * 5000}, []),
        (
            "n",
            {
                "pkg.torch.onnx.name_scopes": "['', 'a', 'a.b', 'conv2d']",
                "pkg.torch.onnx.class_hierarchy": "['m.Net', 'm.Block', 'torch.nn.Conv2d', 'aten.conv2d.default']",
            },
            [("a", "Block"), ("a.b", "Conv2d")],
        ),
        ("n", {"pkg.torch.onnx.name_scopes": "__import__('os').system('x')"}, []),
        ("n", {"pkg.torch.onnx.name_scopes": "(" * 10_000}, []),
        ("n", {"pkg.torch.onnx.name_scopes": "['', 3]"}, []),
    ],
)
def test_scope(name: str, properties: dict[str, str], wanted: list[tuple[str, str]]) -> None:
    node = helper.make_node("Conv", ["x"], ["y"], name)
    for key, value in properties.items():
        node.metadata_props.add(key=key, value=value)
    assert [(call.path, call.module_class) for call in scope_of(node)] == wanted


# --- what is refused


def simple(opset: int = 20) -> onnx.ModelProto:
    return proto([N("Gemm", "x w b", transB=1)], {"x": (F32, ["n", 4])}, {"y": (F32, ["n", 5])}, opset, w=W, b=B)


@pytest.mark.parametrize(
    ("opset", "error", "match"),
    [(NEWEST + 1, UnsupportedError, "upgrade onnx"), (0, InvalidModelError, "opset 0"), (-1, InvalidModelError, "-1")],
)
def test_opsets_out_of_range(opset: int, error: type[InterluxError], match: str) -> None:
    source = simple()
    source.opset_import[0].version = opset
    with pytest.raises(error, match=match):
        from_onnx(source)


def test_unsupported_parts_are_listed_together() -> None:
    unknown = helper.make_node("Unheard", ["x"], ["r"], "inside")
    branch = helper.make_graph([unknown], "b", [], [helper.make_tensor_value_info("r", F32, None)])
    nodes = [
        helper.make_node("If", ["c"], ["a"], "choice", then_branch=branch, else_branch=branch),
        helper.make_node("Unscaler", ["x"], ["s"], "scaler", domain="ai.onnx.ml"),
        helper.make_node("Custom", ["x"], ["t"], "mine\x1b[31m\n", domain="com.evil"),
        helper.make_node("Nonsense", ["x"], ["u"], "odd"),
        N("Relu", "x"),
    ]
    source = proto(nodes, {"x": (F32, [2, 4]), "c": (TensorProto.BOOL, [])}, {"y": (F32, None)})
    source.opset_import.extend([helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("com.evil", 1)])
    with pytest.raises(UnsupportedError) as caught:
        from_onnx(source)
    assert len(caught.value.items) == 5  # the one inside is in both branches
    text = str(caught.value)
    for word in ("'inside'", "'scaler'", "com.evil", "'odd'"):
        assert word in text
    assert text.isprintable()


def broken(**changes: Any) -> onnx.ModelProto:
    source = simple()
    for key, value in changes.items():
        setattr(source.graph.initializer[0], key, value)
    return source


def cyclic() -> onnx.ModelProto:
    return proto([N("Add", "x b", "a"), N("Relu", "a", "b"), N("Relu", "b")], {"x": (F32, [2])}, {"y": (F32, [2])})


def unsorted() -> onnx.ModelProto:
    return proto([N("Relu", "a"), N("Relu", "x", "a")], {"x": (F32, [2])}, {"y": (F32, [2])})


def undefined() -> onnx.ModelProto:
    return proto([N("Add", "x nowhere")], {"x": (F32, [2])}, {"y": (F32, [2])})


def doubled_value() -> onnx.ModelProto:
    return proto([N("Relu", "x"), N("Neg", "x")], {"x": (F32, [2])}, {"y": (F32, [2])})


def doubled_initialiser() -> onnx.ModelProto:
    source = simple()
    source.graph.initializer.append(source.graph.initializer[0])
    return source


def missing_output() -> onnx.ModelProto:
    return proto([N("Relu", "x")], {"x": (F32, [2])}, {"y": (F32, [2]), "z\x1b[2J": (F32, [2])})


def mistyped() -> onnx.ModelProto:
    return proto([N("Add", "x i")], {"x": (F32, [2]), "i": (I64, [2])}, {"y": (F32, [2])})


def bad_attribute() -> onnx.ModelProto:
    return proto([N("Gelu", "x", approximate=b"\xff\xfe")], {"x": (F32, [2])}, {"y": (F32, [2])})


def unknown_attribute() -> onnx.ModelProto:
    return proto([N("Relu", "x", colour=3)], {"x": (F32, [2])}, {"y": (F32, [2])})


def bad_kernel() -> onnx.ModelProto:
    node = N("Conv", "x w", group=3)
    return proto([node], {"x": (F32, [1, 4, 7, 6])}, {"y": (F32, None)}, w=floats(6, 2, 3, 2))


INVALID = {
    "short bytes": broken(raw_data=b"\0" * 79),
    "long bytes": broken(raw_data=b"\0" * 84),
    "no bytes": broken(raw_data=b""),
    "unknown type": broken(data_type=77),
    "undefined type": broken(data_type=0),
    "cyclic": cyclic(),
    "unsorted": unsorted(),
    "undefined": undefined(),
    "doubled value": doubled_value(),
    "doubled initialiser": doubled_initialiser(),
    "missing output": missing_output(),
    "mistyped": mistyped(),
    "bad attribute": bad_attribute(),
    "unknown attribute": unknown_attribute(),
    "bad kernel": bad_kernel(),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_model(case: str) -> None:
    with pytest.raises(InvalidModelError) as caught:
        from_onnx(INVALID[case].SerializeToString())
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 700


@pytest.mark.parametrize("dims", [(-1, 4), (2**40, 2**40), (5, 5), (2**62, 0)])
def test_impossible_dimensions(dims: tuple[int, ...]) -> None:
    source = simple()
    source.graph.initializer[0].dims[:] = dims
    with pytest.raises(InvalidModelError):
        from_onnx(source)


def test_wrong_number_of_entries() -> None:
    source = simple()
    tensor = source.graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0] * 4)
    with pytest.raises(InvalidModelError, match="float_data"):
        from_onnx(source)
    tensor.float_data.append(2.0)
    np.testing.assert_array_equal(from_onnx(source).params["b"], np.array([1, 1, 1, 1, 2], np.float32))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"ir_version: 8\nproducer_name: 'text'\n", "text"),
        (b"PK\x03\x04" + b"\0" * 60, "not"),
        (simple().SerializeToString()[:100], "truncated"),
        (b"\x08\x08", "no version or no graph"),
        (onnx.ModelProto().SerializeToString() + b"\xc2\x3e\x01a", "not an ONNX model"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "model\n.onnx"
    path.write_bytes(content)
    with pytest.raises(InvalidModelError, match=match) as caught:
        from_onnx(path)
    assert str(caught.value).isprintable()
    assert "model\\n.onnx" in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="there is no file"):
        from_onnx(tmp_path / "absent.onnx")
    with pytest.raises(InvalidModelError, match=r"not a regular file|is a folder"):
        from_onnx(tmp_path)
    with pytest.raises(InvalidModelError, match="cannot be read"):
        from_onnx("a\0b.onnx")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidModelError, match="not a regular file"):
        from_onnx(tmp_path / "pipe")
    with pytest.raises(InvalidModelError, match="not int"):
        from_onnx(3)  # type: ignore[arg-type]


def test_names_that_are_not_utf8() -> None:
    content = simple().SerializeToString().replace(b"Gemm", b"Ge\xffm")
    with pytest.raises(InvalidModelError, match="a op_type of its NodeProto is not UTF-8"):
        from_onnx(content)


def test_damaged_bytes_are_refused_cleanly() -> None:
    """Whatever bytes change, there is a model or an error of ours."""
    content = (FIXTURES / "digits_lenet.onnx").read_bytes()
    graph = content.index(b"conv1.weight")
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(150):
        damaged = bytearray(content)
        for position in rng.integers(0, graph + 6000, rng.integers(1, 8)):
            damaged[position] = rng.integers(256)
        try:
            from_onnx(bytes(damaged))
        except InterluxError as error:
            messages.append(str(error))
    assert all(message.isprintable() for message in messages)
    assert len(messages) > 20


def test_every_truncation_is_refused_cleanly() -> None:
    content = simple().SerializeToString()
    for length in range(0, len(content) - 1, 7):
        with pytest.raises((InvalidModelError, UnsupportedError)):
            from_onnx(content[:length])


# --- external data


def external(folder: Path, **entries: str) -> Path:
    """A model whose weight lies in `weights.bin`, with entries of its external data replaced."""
    source = simple()
    tensor = source.graph.initializer[0]
    (folder / "weights.bin").write_bytes(b"\0" * 3 + tensor.raw_data + b"tail")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": "weights.bin", "offset": "3", "length": "80"} | entries).items():
        if value:
            tensor.external_data.add(key=key, value=value)
    path = folder / "model.onnx"
    path.write_bytes(source.SerializeToString())
    return path


def test_external_data(tmp_path: Path) -> None:
    path = external(tmp_path)
    model = from_onnx(path)
    np.testing.assert_array_equal(model.params["w"], W, strict=True)
    same(run_jax(model, X2)[0], X2 @ W.T + B)
    exact = X2.astype(float) @ W.T.astype(float) + B.astype(float)
    np.testing.assert_allclose(OnnxSource(path).run_float64([X2])[0], exact, rtol=1e-14)


def test_external_data_written_by_onnx(tmp_path: Path) -> None:
    source = onnx.load(FIXTURES / "digits_lenet.onnx")
    options = {"save_as_external_data": True, "location": "w.data", "size_threshold": 64}
    onnx.save_model(source, str(tmp_path / "model.onnx"), **options)
    model = from_onnx(tmp_path / "model.onnx")
    for (path, got), (_, wanted) in zip(
        trees.leaves(model.params), trees.leaves(from_onnx(FIXTURES / "digits_lenet.onnx").params), strict=True
    ):
        np.testing.assert_array_equal(got, wanted, err_msg=trees.name_of(path))
    x = floats(2, 1, 32, 32)
    same(run_jax(model, x)[0], OnnxSource(tmp_path / "model.onnx").run([x])[0], 1e-5)


@pytest.mark.parametrize(
    ("entries", "error", "match"),
    [
        ({"location": "../weights.bin"}, UnsafeInputError, "only relative paths inside"),
        ({"location": "/etc/passwd"}, UnsafeInputError, "only relative paths inside"),
        ({"location": "a/../../weights.bin"}, UnsafeInputError, "only relative paths inside"),
        ({"location": "C:\\x"}, UnsafeInputError, "only relative paths inside"),
        ({"location": "we\x1bights.bin"}, UnsafeInputError, "only relative paths inside"),
        ({"location": ""}, UnsafeInputError, "only relative paths inside"),
        ({"location": "."}, UnsafeInputError, "only relative paths inside"),
        ({"location": "absent.bin"}, InvalidModelError, "not beside the model"),
        ({"location": "link.bin"}, UnsafeInputError, "leads through a link"),
        ({"location": "folder/inner.bin"}, UnsafeInputError, "leads through a link"),
        ({"location": "real"}, UnsafeInputError, "not a regular file"),
        ({"location": "pipe"}, UnsafeInputError, "not a regular file"),
        ({"location": "hard.bin"}, UnsafeInputError, "several names"),
        ({"offset": "8"}, InvalidModelError, "takes bytes 8 to 88"),
        ({"offset": "-3"}, InvalidModelError, "not a number of bytes"),
        ({"offset": "1e3"}, InvalidModelError, "not a number of bytes"),
        ({"offset": "9" * 30}, InvalidModelError, "not a number of bytes"),
        ({"length": "79"}, InvalidModelError, "takes 79 bytes"),
        ({"length": "800"}, InvalidModelError, "takes 800 bytes"),
        ({"length": "", "offset": "9"}, InvalidModelError, "takes bytes 9 to 89"),
    ],
)
def test_external_data_attacks(tmp_path: Path, entries: dict[str, str], error: type[Exception], match: str) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\0" * 200)
    folder = tmp_path / "model"
    (folder / "real").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "inner.bin").write_bytes(b"\0" * 200)
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    (folder / "folder").symlink_to(tmp_path / "outside")
    os.link(tmp_path / "weights.bin", folder / "hard.bin")
    os.mkfifo(folder / "pipe")
    with pytest.raises(error, match=match) as caught:
        from_onnx(external(folder, **entries))
    assert str(caught.value).isprintable()
    with pytest.raises(error, match=match):
        OnnxSource(folder / "model.onnx")


def test_external_data_needs_a_path(tmp_path: Path) -> None:
    content = external(tmp_path).read_bytes()
    with pytest.raises(InvalidModelError, match="give the path of the model"):
        from_onnx(content)


# --- the source in float64


@pytest.mark.parametrize(
    ("nodes", "opset"),
    [
        ([N("Cast", "x", "a", to=TensorProto.FLOAT16), N("Cast", "a", to=F32)], 20),
        ([N("Constant", "", "c", value_float=0.1), N("Mul", "x c")], 20),
        ([N("Shape", "x", "s"), N("ConstantOfShape", "s", "z"), N("Exp", "z", "e"), N("Div", "x e")], 20),
        ([N("LayerNormalization", "x k")], 17),
        ([N("GroupNormalization", "x k k", num_groups=2)], 21),
        ([N("RMSNormalization", "x k")], 23),
        ([N("Gelu", "x")], 20),
        ([N("Gelu", "x", approximate="tanh")], 20),
        ([N("Swish", "x")], 24),
        ([N("Mish", "x")], 18),
        ([N("HardSwish", "x")], 20),
        ([N("Elu", "x")], 20),
        ([N("Softplus", "x")], 20),
        ([N("Softmax", "x")], 13),
        ([N("EyeLike", "x", "i"), N("Mul", "x i")], 20),
    ],
    ids=lambda v: "-".join(n.op_type for n in v) if isinstance(v, list) else str(v),
)
def test_float64(nodes: list[onnx.NodeProto], opset: int) -> None:
    """Float64 is float64: no intermediate result is rounded to less."""
    source = proto(nodes, {"x": (F32, [4, 4])}, {"y": (F32, [4, 4])}, opset, k=floats(4, seed=5))
    x = floats(4, 4)
    (wide,) = OnnxSource(source).run_float64([x])
    (own,) = OnnxSource(source).run([x])
    assert wide.dtype == np.float64
    assert own.dtype == np.float32
    tolerance = 2e-3 if nodes[0].op_type == "Cast" else 2e-6
    np.testing.assert_allclose(own, wide, rtol=tolerance, atol=tolerance)
    assert np.abs(wide - wide.astype(np.float32)).max() > 0 or nodes[0].op_type in ("Cast", "EyeLike", "Shape")


def test_float64_refuses_what_the_evaluator_ignores() -> None:
    node = N("LSTM", "x w r", hidden_size=3, clip=0.5)
    source = proto([node], {"x": (F32, [2, 1, 4])}, {"y": (F32, None)}, w=floats(1, 12, 4), r=floats(1, 12, 3))
    with pytest.raises(UnsupportedError, match="clip of LSTM"):
        OnnxSource(source).run_float64([floats(2, 1, 4)])


def test_source_passes_integers_through() -> None:
    source = OnnxSource(proto([N("ArgMax", "x")], {"x": (F32, [2, 4])}, {"y": (I64, None)}))
    assert source.run([X2[:2]])[0].dtype == source.run_float64([X2[:2]])[0].dtype == np.int64
    assert "test" in source.description
    with pytest.raises(InvalidModelError, match="takes 1 inputs, not 2"):
        source.run([X2, X2])
    with pytest.raises(InvalidModelError, match="cannot be run"):
        source.run([floats(3, 3, 3)])


def test_float64_agrees_with_torch() -> None:
    import torch
    from safetensors.torch import load_file

    from fixtures import models

    for name, make in (("lenet", models.lenet5), ("transformer", models.transformer), ("lstm", models.lstm)):
        module = make()
        module.load_state_dict(load_file(FIXTURES / f"digits_{name}.safetensors"))
        module.double().eval()
        rng = np.random.default_rng(0)
        x = rng.standard_normal((2, 1, 32, 32)).astype(np.float32) if name == "lenet" else rng.integers(0, 17, (2, 64))
        tensor = torch.from_numpy(x)
        with torch.no_grad():
            wanted = module(tensor.double() if name == "lenet" else tensor).numpy()
        (got,) = OnnxSource(FIXTURES / f"digits_{name}.onnx").run_float64([x])
        # torch's exporter rounds the scale of attention to float32
        np.testing.assert_allclose(got, wanted, rtol=1e-12 if name != "transformer" else 1e-6, atol=1e-12)


def test_outline_keeps_large_tensors_out() -> None:
    plan = checks.outline(onnx.load(FIXTURES / "digits_resnet.onnx"), "resnet")
    assert all(np.prod(t.dims) <= checks.OUTLINE_ELEMENTS for t in plan.graph.initializer)
    assert plan.kinds[()].values["mean"].shape == ("batch", 64, 1, 1)
