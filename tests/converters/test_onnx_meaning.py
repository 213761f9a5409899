"""ONNX models whose meaning is easily lost: what a function, an inner graph, a half-precision sum or a fractional scale
really gives. The expected values are written out or those of onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import interlux as ix
from interlux.ir.errors import UnsupportedError
from interlux.runtime.jax import runner
from interlux.runtime.onnx import emit

F = TensorProto.FLOAT
Arrays = dict[str, np.ndarray]


def info(name: str, dtype: int = F, shape: Any = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model_of(
    nodes: Sequence[onnx.NodeProto], inputs: Arrays, held: Arrays, outputs: Sequence[str] = ("y",), **rest: Any
) -> onnx.ModelProto:
    opset = rest.pop("opset", 20)
    given = [info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in inputs.items()]
    dtypes = rest.pop("dtypes", [F] * len(outputs))
    graph = helper.make_graph(
        nodes,
        "graph",
        given,
        [info(name, dtype) for name, dtype in zip(outputs, dtypes, strict=True)],
        [numpy_helper.from_array(a, n) for n, a in held.items()],
    )
    imports = [helper.make_opsetid("", opset), *rest.pop("imports", ())]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, **rest)


def by_onnxruntime(model: onnx.ModelProto, inputs: Arrays) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, inputs
    )


def check(
    model: onnx.ModelProto, inputs: Arrays, expected: Sequence[Any] | None = None, opset: int | None = None
) -> None:
    """On JAX, and emitted again on onnxruntime."""
    wanted = by_onnxruntime(model, inputs) if expected is None else expected
    imported = ix.from_onnx(model)
    emitted = by_onnxruntime(emit(imported, opset), inputs)
    for found in (ix.compile(imported, "jax").run(list(inputs.values())), emitted):
        for one, other in zip(found, wanted, strict=True):
            assert one.shape == np.shape(other)
            np.testing.assert_allclose(one, other, rtol=2e-3 if one.dtype == np.float16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("own", [20, 17])
@pytest.mark.parametrize("given", [{}, {"slope": 0.25}])
def test_the_defaults_of_a_functions_attributes(own: int, given: dict[str, float]) -> None:
    leaky = helper.make_node("LeakyRelu", ["a"], ["b"])
    leaky.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    function = helper.make_function(
        "own",
        "F",
        ["a"],
        ["b"],
        [leaky],
        [helper.make_opsetid("", own)],
        attribute_protos=[helper.make_attribute("slope", 0.5)],
    )
    x = np.array([-2.0, 3.0], np.float32)
    model = model_of(
        [helper.make_node("F", ["x"], ["y"], domain="own", **given)],
        {"x": x},
        {},
        functions=[function],
        imports=[helper.make_opsetid("own", 1)],
    )
    check(model, {"x": x}, [np.where(x < 0, x * given.get("slope", 0.5), x)])


def test_a_function_whose_opset_means_something_else_is_refused() -> None:
    body = [helper.make_node("ReduceMax", ["a"], ["b"], axes=[0], keepdims=0)]
    function = helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    x = np.ones((2, 3), np.float32)
    model = model_of(
        [helper.make_node("F", ["x"], ["y"], domain="own")],
        {"x": x},
        {},
        functions=[function],
        imports=[helper.make_opsetid("own", 1)],
    )
    with pytest.raises(UnsupportedError, match="F of domain 'own'|F '.*' of domain"):
        ix.from_onnx(model)


def constant(name: str, value: float) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value, np.float32)))


def branch(name: str, nodes: list[onnx.NodeProto], output: str, held: Sequence[onnx.TensorProto] = ()) -> Any:
    return helper.make_graph(nodes, name, [], [info(output)], held)


@pytest.mark.parametrize("chosen", [True, False])
def test_a_later_constant_of_the_same_name(chosen: bool) -> None:
    branches = {
        f"{name}_branch": branch(name, [constant("k", k), helper.make_node("Mul", ["x", "k"], [name])], name)
        for name, k in (("then", 5.0), ("else", 7.0))
    }
    nodes = [
        helper.make_node("If", ["c"], ["q"], **branches),
        constant("k", 100.0),
        helper.make_node("Add", ["q", "k"], ["y"]),
    ]
    x = np.array([1.0, -2.0], np.float32)
    inputs = {"x": x, "c": np.array(chosen)}
    check(model_of(nodes, inputs, {}), inputs, [(5 if chosen else 7) * x + 100])


def test_a_product_whose_bias_is_added_in_a_branch() -> None:
    x = np.random.default_rng(0).standard_normal((2, 2)).astype(np.float32)
    then = branch("then", [helper.make_node("Add", ["p", "b"], ["o1"])], "o1")
    other = branch("else", [helper.make_node("Identity", ["x"], ["o2"])], "o2")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    inputs = {"x": x, "c": np.array(True)}
    check(model_of(nodes, inputs, {"w": x.T.copy(), "b": np.ones(2, np.float32)}), inputs)


def test_group_normalization_of_opset_18_in_a_branch() -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    scale = np.array([1.5, -2.0], np.float32)
    node = helper.make_node("GroupNormalization", ["x", "s", "s"], ["o1"], num_groups=2)
    other = branch("else", [helper.make_node("Neg", ["x"], ["o2"])], "o2")
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch("then", [node], "o1"), else_branch=other)]
    inputs = {"x": x, "c": np.array(True)}
    check(model_of(nodes, inputs, {"s": scale}, opset=18), inputs)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("convert", [False, True])
def test_external_data_of_inner_graphs_and_constants(tmp_path: Path, large: bool, convert: bool) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((2, 40 if large else 4)).astype(np.float32)
    held = [numpy_helper.from_array(weight, "w")]
    then = branch("then", [helper.make_node("MatMul", ["x", "w"], ["o1"])], "o1", held)
    kept = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(weight * 2))
    other = branch("else", [kept, helper.make_node("MatMul", ["x", "k"], ["o2"])], "o2")
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    x = rng.standard_normal((3, 2)).astype(np.float32)
    model = model_of([node], {"x": x, "c": np.array(True)}, {})
    onnx.save_model(
        model,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        size_threshold=0,
        convert_attribute=convert,
        location="w",
    )
    imported = ix.from_onnx(tmp_path / "m.onnx")
    for chosen, factor in ((True, 1), (False, 2)):
        (y,) = ix.compile(imported, "jax")(x, np.array(chosen))
        np.testing.assert_allclose(y, x @ (weight * factor), rtol=1e-5)


@pytest.mark.parametrize("op_type", ["ReduceL2", "ReduceLogSumExp", "Softmax", "LogSoftmax"])
def test_sums_of_half_precision_do_not_overflow(op_type: str) -> None:
    x = np.full((1, 70_000), 20, np.float16)
    wide = x.astype(np.float64)
    expected = {
        "ReduceL2": np.sqrt((wide**2).sum(1, keepdims=True)),
        "ReduceLogSumExp": np.log(np.exp(wide - 20).sum(1, keepdims=True)) + 20,
        "Softmax": np.full_like(wide, 1 / 70_000),
        "LogSoftmax": np.full_like(wide, -np.log(70_000)),
    }[op_type]
    reduces = op_type.startswith("Reduce")
    node = helper.make_node(op_type, ["x", "axes"] if reduces else ["x"], ["y"])
    model = model_of([node], {"x": x}, {"axes": np.array([1])} if reduces else {}, dtypes=[TensorProto.FLOAT16])
    (y,) = ix.compile(ix.from_onnx(model), "jax")(x)
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=2e-3)


@pytest.mark.parametrize("reverse", [0, 1])
def test_an_exclusive_sum_is_no_difference(reverse: int) -> None:
    node = helper.make_node("CumSum", ["x", "axis"], ["y"], exclusive=1, reverse=reverse)
    for x in ([1, 1e8, 2], [1, np.inf, 2]):
        inputs = {"x": np.array(x, np.float32)}
        check(model_of([node], inputs, {"axis": np.array(-1)}), inputs)


def test_no_axes_below_opset_18() -> None:
    x = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)
    held = {"axes": np.zeros(0, np.int64)}
    noop = ix.from_onnx(
        model_of([helper.make_node("ReduceMean", ["x", "axes"], ["y"], noop_with_empty_axes=1)], {"x": x}, held)
    )
    with pytest.raises(UnsupportedError, match="noop_with_empty_axes needs opset 18"):
        emit(noop, 13)
    check(
        model_of([helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)], {"x": x}, held),
        {"x": x},
        [2.75],
        13,
    )


@pytest.mark.parametrize("scale", [0.7, 0.9, 0.55, 1.9, 1.3, 2.0])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_fractional_scales(scale: float, mode: str) -> None:
    x = np.arange(200, dtype=np.float32).reshape(1, 1, 20, 10)
    held = {"scales": np.array([1, 1, scale, scale], np.float32)}
    check(model_of([helper.make_node("Resize", ["x", "", "scales"], ["y"], mode=mode)], {"x": x}, held), {"x": x})


@pytest.mark.parametrize(("start", "end", "step"), [(-100, -200, -1), (100, -200, -2), (-2, -100, -1), (-100, 2, 1)])
def test_slices_beyond_the_ends(start: int, end: int, step: int) -> None:
    inputs = {"x": np.arange(5, dtype=np.float32)}
    held = {"s": np.array([start]), "e": np.array([end]), "a": np.array([0]), "t": np.array([step])}
    check(model_of([helper.make_node("Slice", ["x", "s", "e", "a", "t"], ["y"])], inputs, held), inputs)


def test_an_index_out_of_range_is_never_another_row() -> None:
    inputs = {"x": np.array([1, 2, 3], np.float32), "i": np.array([[7], [-1]])}
    model = model_of([helper.make_node("GatherND", ["x", "i"], ["y"])], inputs, {})
    (y,) = ix.compile(ix.from_onnx(model), "jax")(*inputs.values())
    assert np.isnan(y[0]) and y[1] == 3


def test_one_sided_is_the_default_of_stft() -> None:
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 32, 1)).astype(np.float32)}
    held = {"step": np.array(8), "window": np.hanning(8).astype(np.float32)}
    check(model_of([helper.make_node("STFT", ["x", "step", "window"], ["y"])], inputs, held), inputs)


@pytest.mark.parametrize("power", [-1, -2, 0, 3])
def test_integer_powers(power: int) -> None:
    x = np.array([1, -1, 2, -3, 7], np.int32)
    expected = np.array([int(float(b) ** power) for b in x], np.int32)
    model = model_of(
        [helper.make_node("Pow", ["x", "p"], ["y"])],
        {"x": x},
        {"p": np.array(power, np.int32)},
        dtypes=[TensorProto.INT32],
    )
    (y,) = ix.compile(ix.from_onnx(model), "jax")(x)
    np.testing.assert_array_equal(y, expected)


def test_a_product_over_nothing() -> None:
    inputs = {"x": np.zeros((2, 0), np.float32)}
    check(
        model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], inputs, {"w": np.zeros((0, 3), np.float32)}), inputs
    )


def test_outputs_of_split_without_a_name() -> None:
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    weight = np.random.default_rng(1).standard_normal((6, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Split", ["c"], ["y", "z", ""], axis=1, num_outputs=3),
    ]
    model = model_of(nodes, inputs, {"w": weight}, outputs=("y", "z"))
    imported = ix.from_onnx(model)
    plain, _ = imported.layer.apply(imported.params, imported.states, *inputs.values())
    for one, other in zip(ix.compile(imported, "jax").run(list(inputs.values())), plain, strict=True):
        np.testing.assert_allclose(one, np.asarray(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("op_type", "attribute", "value", "opset"),
    [("Pad", "mode", "wrap", 19), ("ScatterElements", "reduction", "max", 18)],
)
def test_values_of_attributes_that_are_younger(op_type: str, attribute: str, value: str, opset: int) -> None:
    inputs = {"x": np.arange(5, dtype=np.float32)}
    held = {"p": np.array([1, 1])} if op_type == "Pad" else {"p": np.array([1]), "u": np.array([9], np.float32)}
    model = ix.from_onnx(model_of([helper.make_node(op_type, ["x", *held], ["y"], **{attribute: value})], inputs, held))
    emit(model, opset)
    with pytest.raises(UnsupportedError, match=f"{attribute}='{value}'"):
        emit(model, opset - 1)


def test_descriptions_and_names_of_nodes_are_kept() -> None:
    inputs = {"x": np.ones((2, 3), np.float32)}
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="my relu"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="m"),
    ]
    source = model_of(nodes, inputs, {"w": np.ones((3, 2), np.float32)})
    source.doc_string, source.domain, source.model_version = "what it is for", "org.example", 7
    source.graph.doc_string = "of the graph"
    made = emit(ix.from_onnx(source))
    assert (made.doc_string, made.domain, made.model_version) == ("what it is for", "org.example", 7)
    assert made.graph.doc_string == "of the graph"
    assert [node.name for node in made.graph.node] == ["my relu", "m"]


def test_programs_of_old_shapes_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PROGRAMS", 2)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [info("x", F, ["n"])], [info("y", F, ["n"])]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    run = ix.compile(ix.from_onnx(model), "jax")
    for size in (1, 2, 1, 3, 1):
        (y,) = run(np.full(size, -1, np.float32))
        assert y.shape == (size,)
    assert [key[0][0] for key in run._programs] == [(3,), (1,)]
