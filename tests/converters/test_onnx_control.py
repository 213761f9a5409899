"""Control flow, sequences, texts and data-dependent shapes: from ONNX, on JAX, out again, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser
from onnx.reference import ReferenceEvaluator

import interlux as ix
from interlux.ir.layers import If, Loop, Scan
from interlux.runtime.onnx import emit

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'


def model(text: str) -> onnx.ModelProto:
    return parser.parse_model(HEAD + text)


X = np.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]], np.float32)
W = "float[3,3] w = {1, 0.5, 0, -1, 2, 0.25, 0, 0, 1}"
BRANCH = model(
    """g (float[N,3] x, bool c) => (float[N,3] y) <float[3,3] w = {1, 0.5, 0, -1, 2, 0.25, 0, 0, 1}> {
        h = Relu(x)
        y = If (c) <
            then_branch = t () => (float[A,3] z) { z = MatMul(h, w) },
            else_branch = e () => (float[B,3] z2) { k = Constant <value_float = 3.0> ()  z2 = Mul(h, k) }
        >
    }"""
)
UNLIKE = model(
    """g (float[N,3] x, bool c) => (float[M,3] y) {
        y = If (c) <
            then_branch = t () => (float[A,3] z) { z = Concat<axis = 0>(x, x) },
            else_branch = e () => (float[B,3] z2) { z2 = Identity(x) }
        >
    }"""
)
COUNTED = model(
    """g (float[N,3] x) => (float[N,3] y, float[T,N,3] all) {
        n = Constant <value_int = 5> ()
        y, all = Loop (n, , x) <body = b (int64 i, bool go, float[N,3] v) => (bool go2, float[N,3] v2, float[N,3] s) {
            go2 = Identity(go)
            one = Constant <value_float = 1.0> ()
            step = Cast <to = 1> (i)
            v1 = Add(v, one)
            v2 = Mul(v1, x)
            s = Add(v2, step)
        }>
    }"""
)
UNTIL = model(
    """g (float[N,3] x, float limit) => (float[N,3] y) {
        n = Constant <value_int = 100> ()
        yes = Constant <value = bool {1}> ()
        y = Loop (n, yes, x) <body = b (int64 i, bool go, float[N,3] v) => (bool go2, float[N,3] v2) {
            two = Constant <value_float = 2.0> ()
            v2 = Mul(v, two)
            top = ReduceMax <keepdims = 0> (v2)
            go2 = Less(top, limit)
        }>
    }"""
)
GROWING = model(
    """g (float[N,3] x, int64 n) => (float[M,3] y) {
        y = Loop (n, , x) <body = b (int64 i, bool go, float[K,3] v) => (bool go2, float[L,3] v2) {
            go2 = Identity(go)
            v2 = Concat <axis = 0> (v, x)
        }>
    }"""
)
SCANNED = model(
    """g (float[T,3] x, float[3] s) => (float[3] last, float[3,T] sums) <float[3] w = {1, 0.5, -2}> {
        last, sums = Scan <num_scan_inputs = 1, scan_output_axes = [1], scan_input_directions = [1],
            body = b (float[3] a, float[3] r) => (float[3] a2, float[3] out) {
                p = Mul(r, w)
                a2 = Add(a, p)
                out = Identity(a2)
            }> (s, x)
    }"""
)
NONZERO = model(
    """g (float[N,3] x) => (float[K] y, int64 count, float[N,3] z) {
        z = Tanh(x)
        zero = Constant <value_float = 0.0> ()
        positive = Greater(z, zero)
        where = NonZero(positive)
        t = Transpose <perm = [1, 0]> (where)
        y = GatherND(z, t)
        size = Shape <start = 1> (where)
        axis = Constant <value_ints = [0]> ()
        count = Squeeze(size, axis)
    }"""
)
SEQUENCES = model(
    """g (seq(float[N,3]) xs, float[N,3] y) => (seq(float[N,3]) more, float[N,3] first, int64 n) {
        more = SequenceInsert(xs, y)
        zero = Constant <value_int = 0> ()
        first = SequenceAt(more, zero)
        n = SequenceLength(more)
    }"""
)
TEXTS = model(
    """g (string[N] words, float[N] x) => (string[N] marked, float[N] y) {
        mark = Constant <value_string = "!ß"> ()
        marked = StringConcat(words, mark)
        y = Neg(x)
    }"""
)
CASES: dict[str, tuple[onnx.ModelProto, list[dict[str, Any]]]] = {
    "if": (BRANCH, [{"x": X, "c": np.array(c)} for c in (True, False)]),
    "if of unlike shapes": (UNLIKE, [{"x": X, "c": np.array(c)} for c in (True, False)]),
    "counted loop": (COUNTED, [{"x": X}, {"x": X[:1]}]),
    "loop until": (UNTIL, [{"x": X, "limit": np.array(v, np.float32)} for v in (1.0, 70.0)]),
    "growing loop": (GROWING, [{"x": X, "n": np.array(n)} for n in (0, 1, 4)]),
    "scan": (SCANNED, [{"x": X, "s": X[0]}, {"x": X[:1], "s": X[1]}]),
    "nonzero": (NONZERO, [{"x": X}, {"x": -np.abs(X)}, {"x": np.abs(X)}]),
    "sequences": (SEQUENCES, [{"xs": [X, 2 * X], "y": 3 * X}, {"xs": [], "y": X}]),
    "texts": (TEXTS, [{"words": np.array(["a", "", "ü"], object), "x": X[0]}]),
}


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for f, e in zip(found, expected, strict=True):
            same(f, e)
        return
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    else:
        assert found.tolist() == expected.tolist()


def expectation(proto: onnx.ModelProto, feed: dict[str, Any]) -> list[Any]:
    """By onnxruntime; by the reference evaluator for an empty list, which onnxruntime's binding does not take.

    The evaluator stops a Loop without a condition at once, and knows Scan with its defaults only.
    """
    if feed.get("xs") == []:
        return list(ReferenceEvaluator(proto).run(None, feed))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


@pytest.mark.parametrize("name", CASES)
def test_a_model_keeps_its_meaning(name: str, tmp_path: Path) -> None:
    proto, feeds = CASES[name]
    imported = ix.from_onnx(proto)
    ix.save(imported, tmp_path / "m")
    runs = {
        "jax": ix.compile(imported, "jax"),
        "loaded": ix.compile(ix.load(tmp_path / "m"), "jax"),
        "onnxruntime": ix.compile(imported, "onnxruntime"),
        "again": ix.compile(ix.from_onnx(emit(imported)), "jax"),
    }
    for feed in feeds:
        expected = expectation(proto, feed)
        for label, run in runs.items():
            if label == "onnxruntime" and feed.get("xs") == []:
                continue  # its Python binding takes no empty list
            for found, wanted in zip(run(**feed), expected, strict=True):
                same(found, np.asarray(wanted) if not isinstance(wanted, list) else wanted)


@pytest.mark.parametrize("name", ["if", "if of unlike shapes", "counted loop", "loop until", "growing loop", "nonzero"])
def test_layers_with_control_flow_are_applied_like_others(name: str) -> None:
    proto, feeds = CASES[name]
    layer, params, states = ix.from_onnx(proto)
    for feed in feeds:
        found, _ = layer.apply(params, states, *feed.values())
        expected = expectation(proto, feed)
        for f, e in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
            same(f, np.asarray(e))


def test_weights_inside_are_parameters_and_take_gradients() -> None:
    layer, params, states = ix.from_onnx(BRANCH)
    assert params["w"].shape == (3, 3)

    def loss(params: Any, c: bool) -> Any:
        return layer.apply(params, states, jnp.asarray(X), jnp.asarray(c))[0].sum()

    taken = jax.jit(jax.grad(loss), static_argnums=())(params, True)
    np.testing.assert_allclose(taken["w"], np.repeat(np.maximum(X, 0).sum(0)[:, None], 3, 1), rtol=1e-6)
    assert not np.asarray(jax.grad(loss)(params, False)["w"]).any()


def test_loops_stay_loops_where_shapes_allow_it() -> None:
    kinds = {
        type(node.layer)
        for proto in (BRANCH, COUNTED, SCANNED)
        for node in ix.from_onnx(proto).layer.nodes
        if isinstance(node.layer, If | Loop | Scan)
    }
    assert kinds == {If, Loop, Scan}
    layer, params, states = ix.from_onnx(COUNTED)
    traced = str(jax.make_jaxpr(lambda x: layer.apply(params, states, x)[0])(X))
    assert "scan[" in traced
    layer, params, states = ix.from_onnx(UNTIL)
    traced = str(jax.make_jaxpr(lambda x, n: layer.apply(params, states, x, n)[0])(X, np.float32(1)))
    assert "while[" in traced


def test_what_depends_on_data_cannot_be_jitted_and_says_so() -> None:
    layer, params, states = ix.from_onnx(NONZERO)
    with pytest.raises(ix.UnsupportedError, match="depends on the data"):
        jax.jit(lambda x: layer.apply(params, states, x)[0])(X)


def test_only_what_depends_on_data_runs_outside_the_program() -> None:
    run = ix.compile(ix.from_onnx(NONZERO), "jax")
    run(X)
    (program,) = run._programs.values()  # type: ignore[attr-defined]
    assert all(node.name != "z" for node in program.late)
    assert "z" in program.traced


def test_a_missing_or_wrong_sequence_is_one_line() -> None:
    run = ix.compile(ix.from_onnx(SEQUENCES), "jax")
    with pytest.raises(ix.InvalidModelError, match="must be a list of arrays"):
        run(xs=X, y=X)
    with pytest.raises(ix.InvalidModelError, match="must have dtype float32"):
        run(xs=[X.astype(np.float64)], y=X)
    with pytest.raises(ix.UnsupportedError, match="the verifier compares tensors"):
        ix.verify(SEQUENCES, ix.from_onnx(SEQUENCES))


def test_64_bit_integers_keep_their_meaning() -> None:
    proto = model("g (int64[N] x) => (int64[N] y) { one = Constant <value_int = 1> ()  y = Add(x, one) }")
    big = np.array([2**40, -(2**62)])
    imported = ix.from_onnx(proto)
    assert ix.compile(imported, "jax")(big)[0].tolist() == [2**40 + 1, -(2**62) + 1]
    layer, params, states = imported
    assert layer.apply(params, states, big)[0].tolist() == [2**40 + 1, -(2**62) + 1]
    assert not jax.config.read("jax_enable_x64")


def test_sparse_initialisers_become_dense(tmp_path: Path) -> None:
    proto = model("g (float[N,3] x, float[3,2] w) => (float[N,2] y) { y = MatMul(x, w) }")
    values = onnx.numpy_helper.from_array(np.array([2.0, -1.0], np.float32), "w")
    indices = onnx.numpy_helper.from_array(np.array([1, 4], np.int64), "i")
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [3, 2]))
    del proto.graph.input[1]
    dense = np.array([[0, 2], [0, 0], [-1, 0]], np.float32)
    imported = ix.from_onnx(proto)
    np.testing.assert_array_equal(imported.params["w"], dense)
    same(ix.compile(imported, "jax")(X)[0], X @ dense)


def test_several_external_files_are_mapped_and_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from interlux.runtime.onnx import files

    proto = model("g (float[N,64] x) => (float[N,64] y) { h = MatMul(x, a)  y = MatMul(h, b) }")
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((64, 64)).astype(np.float32) for name in "ab"}
    for name, array in arrays.items():
        (tmp_path / f"{name}.bin").write_bytes(b"12345678" + array.tobytes())
        tensor = onnx.TensorProto(name=name, data_type=1, dims=array.shape, data_location=1)
        for key, text in (("location", f"{name}.bin"), ("offset", "8"), ("length", str(array.nbytes))):
            tensor.external_data.add(key=key, value=text)
        proto.graph.initializer.append(tensor)
    proto.metadata_props.add(key="licence", value="grüße")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    imported = ix.from_onnx(tmp_path / "m.onnx")
    assert not imported.params["a"].flags.owndata  # mapped, not read
    monkeypatch.setattr(files, "EXTERNAL_ABOVE", 1)
    ix.to_onnx(imported, tmp_path / "out" / "o.onnx")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["o.onnx", "o.onnx.data"]
    x = rng.standard_normal((2, 64)).astype(np.float32)
    written = onnx.load(tmp_path / "out" / "o.onnx")
    same(ReferenceEvaluator(written).run(None, {"x": x})[0], x @ arrays["a"] @ arrays["b"])
    assert {p.key: p.value for p in written.metadata_props} == {"licence": "grüße"}
    assert [t.name for t in written.graph.initializer] == ["a", "b"]
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    back = ix.from_onnx(tmp_path / "out" / "o.onnx")
    assert back.metadata["properties"] == {"licence": "grüße"}
