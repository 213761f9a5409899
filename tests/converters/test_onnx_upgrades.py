"""Nodes of older opsets compute what they meant there. One row for each change of an operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, defs, helper, numpy_helper

import interlux as ix
from interlux.converters.onnx import from_onnx
from interlux.converters.onnx.classical import CLASSICAL
from interlux.converters.onnx.upgrades import OLDEST_OPSET, UNCHANGED, UPGRADES
from interlux.ir.errors import InvalidModelError, UnsupportedError
from interlux.ir.graph import Graph
from interlux.ir.layers import Dense, Operator
from interlux.runtime.jax.primitives import PRIMITIVES
from interlux.runtime.onnx import emit

Arrays = dict[str, np.ndarray]
Wanted = Callable[..., Any]


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def f32(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def model_of(
    op_type: str,
    opset: int,
    arrays: Arrays,
    fixed: frozenset[str],
    outputs: tuple[str, ...],
    attributes: dict[str, Any],
    before: str = "",
    symbolic: bool = False,
) -> onnx.ModelProto:
    """A model of one node. The `fixed` arrays are initialisers; a node `before` it may make its first input; with
    `symbolic`, the inputs have no known sizes."""
    names = list(arrays)
    if before:
        names[0] = "made"
    node = helper.make_node(op_type, [n if n in ("made", *arrays) else "" for n in names], outputs, **attributes)
    first = [helper.make_node(before, [next(iter(arrays))], ["made"])] if before else []
    graph = helper.make_graph(
        [*first, node],
        "test",
        [
            helper.make_tensor_value_info(
                n,
                helper.np_dtype_to_tensor_dtype(a.dtype),
                [f"{n}{i}" for i in range(a.ndim)] if symbolic else a.shape,
            )
            for n, a in arrays.items()
            if n not in fixed
        ],
        [helper.make_empty_tensor_value_info(n) for n in outputs if n],
        [numpy_helper.from_array(a, n) for n, a in arrays.items() if n in fixed],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def by_onnxruntime(source: onnx.ModelProto, fed: Arrays) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(source.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(a) for a in session.run(None, fed)]


@dataclass(frozen=True)
class Row:
    """An old node.

    Arguments:
        op_type, opset: which operator.
        arrays: its inputs by name, in order.
        wanted: the outputs from the inputs; None for what onnxruntime computes.
        fixed: the names of inputs that are initialisers; integers always are.
        outputs: names.
        before: a node that makes the first input from it: in the oldest opsets, its rank is then unknown.
        attributes: of the node.
    """

    op_type: str
    opset: int
    arrays: Arrays
    wanted: Wanted | None = None
    fixed: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("y",)
    before: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)

    def model(self, symbolic: bool = False) -> onnx.ModelProto:
        return model_of(
            self.op_type, self.opset, self.arrays, self.constant, self.outputs, self.attributes, self.before, symbolic
        )

    @property
    def constant(self) -> frozenset[str]:
        whole = [n for n, a in self.arrays.items() if a.dtype == np.int64 and n != next(iter(self.arrays))]
        return frozenset((*self.fixed, *whole))

    @property
    def fed(self) -> Arrays:
        return {n: a for n, a in self.arrays.items() if n not in self.constant}


def row(op_type: str, opset: int, arrays: Arrays, wanted: Wanted | None = None, **options: Any) -> Any:
    known = {name: options.pop(name) for name in ("fixed", "outputs", "before") if name in options}
    found = Row(op_type, opset, arrays, wanted, attributes=options, **known)
    words = [op_type, str(opset), *(f"{k}={v}" for k, v in options.items()), known.get("before", "")]
    return pytest.param(found, id="-".join(filter(None, words)).replace(" ", ""))


def today(op_type: str, opset: int = 20, outputs: int = 1, **attributes: Any) -> Wanted:
    """What onnxruntime computes for the operator of a newer opset."""

    def compute(*arrays: np.ndarray) -> list[np.ndarray]:
        named = {f"i{k}": a for k, a in enumerate(arrays)}
        names = tuple(f"y{k}" for k in range(outputs))
        return by_onnxruntime(model_of(op_type, opset, named, frozenset(), names, attributes), named)

    return compute


X, X4 = floats(2, 3, 4), floats(1, 2, 4, 5)
POSITIVE = np.abs(X) + 0.1
CHANNELS = {k: np.abs(floats(3, seed=i)) + 0.1 for i, k in enumerate("sbmv")}
PLACES = {k: np.abs(floats(3, 4, seed=i)) + 0.1 for i, k in enumerate("sbmv")}
BITS = {"a": X > 0, "b": f32(1, 0, 1) > 0}
WHOLE = {"a": (X * 3).astype(np.int32), "b": np.array([0, 1, 2], np.int32)}


def flattened(function: Wanted, axis: int) -> Wanted:
    def compute(x: np.ndarray) -> np.ndarray:
        return function(x.reshape(int(np.prod(x.shape[:axis])), -1)).reshape(x.shape)

    return compute


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return np.log(softmax(x))


def hardmax(x: np.ndarray) -> np.ndarray:
    return np.eye(x.shape[1], dtype=x.dtype)[x.argmax(1)]


def selu(alpha: float, gamma: float) -> Wanted:
    return lambda x: np.where(x > 0, gamma * x, gamma * alpha * np.expm1(x)).astype(np.float32)


def normalised(x: np.ndarray, s: np.ndarray, b: np.ndarray, m: np.ndarray, v: np.ndarray) -> np.ndarray:
    if s.ndim == 1:
        s, b, m, v = (a[:, None] for a in (s, b, m, v))
    return (x - m) / np.sqrt(v + np.float32(1e-5)) * s + b


BROADCASTS: dict[str, Wanted] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Equal": np.equal,
    "Greater": np.greater,
    "Less": np.less,
    "Pow": np.power,
}
HINTED = ("Abs", "Ceil", "Elu", "Exp", "Floor", "HardSigmoid", "LeakyRelu", "Log", "Neg", "Reciprocal", "Relu")
POOLED = np.abs(floats(1, 2, 5, 5))
SEQUENCE = floats(4, 2, 3)


def recurrent(gates: int, directions: int = 1) -> Arrays:
    return {
        "x": SEQUENCE,
        "w": floats(directions, gates * 5, 3),
        "r": floats(directions, gates * 5, 5),
        "b": floats(directions, gates * 10),
    }


def operands(op_type: str) -> Arrays:
    if op_type in ("And", "Or", "Xor"):
        return BITS
    return WHOLE if op_type == "Equal" else {"a": POSITIVE, "b": f32(0.5, 2, 3)}


def along_the_second(function: Wanted) -> Wanted:
    return lambda a, b: function(a, b[:, None])


ROWS = [
    # below 6: hints and defaults
    *(row(name, 5, {"x": POSITIVE}, today(name), consumed_inputs=[0]) for name in (*HINTED, "Sigmoid", "Sqrt", "Tanh")),
    *(row(name, 5, {"a": X, "b": POSITIVE}, today(name), consumed_inputs=[0, 0]) for name in ("Max", "Min", "Sum")),
    *(row(name, 5, {"a": X, "b": POSITIVE}, BROADCASTS[name], consumed_inputs=[0, 0]) for name in ("Add", "Sub")),
    *(row(name, 5, {"a": X, "b": POSITIVE}, BROADCASTS[name], consumed_inputs=[0, 0]) for name in ("Mul", "Div")),
    row("Mean", 5, {"a": X, "b": POSITIVE}, today("Mean"), consumed_inputs=[0, 0]),
    row("Elu", 1, {"x": X}, today("Elu", alpha=0.3), alpha=0.3),
    row("Clip", 5, {"x": X}, lambda x: x.clip(-0.5, 0.7), consumed_inputs=[0], min=-0.5, max=0.7),
    row(
        "InstanceNormalization",
        5,
        {"x": X, "s": floats(3), "b": floats(3)},
        today("InstanceNormalization", 17),
        consumed_inputs=[0, 0, 0],
    ),
    row("BatchNormalization", 5, {"x": X, **CHANNELS}, normalised, consumed_inputs=[0] * 5, is_test=1),
    row("Dropout", 5, {"x": X}, lambda x: x, consumed_inputs=[0], is_test=1, ratio=0.3),
    row("PRelu", 5, {"x": X, "s": floats(3)}, lambda x, s: np.where(x < 0, x * s[:, None], x), consumed_inputs=[0, 0]),
    row("Selu", 5, {"x": X}, selu(1.6732, 1.0507), consumed_inputs=[0]),
    row("Selu", 1, {"x": X}, selu(0.5, 2), alpha=0.5, gamma=2.0),
    row("Selu", 6, {"x": X}, today("Selu")),
    row("Cast", 5, {"x": X * 3}, lambda x: x.astype(np.int32), to="INT32"),
    row("Cast", 1, {"x": X}, lambda x: x.astype(np.float16), to="float16"),
    row("Cast", 6, {"x": X * 3}, to=TensorProto.INT64),
    # below 7: broadcasting
    *(row(k, 6, operands(k), along_the_second(f), broadcast=1, axis=1) for k, f in BROADCASTS.items()),
    *(row(k, 1, operands(k), along_the_second(f), broadcast=1, axis=1) for k, f in BROADCASTS.items()),
    row("Add", 6, {"a": X, "b": floats(3, 4)}, np.add, broadcast=1),
    row("Add", 6, {"a": X, "b": floats(4)}, np.add, broadcast=1, axis=-1),
    row("Add", 6, {"a": X, "b": floats(2, 3)}, lambda a, b: a + b[..., None], broadcast=1, axis=0),
    row("Add", 6, {"a": X, "b": floats(1, 1)}, np.add, broadcast=1),
    row("Add", 6, {"a": X, "b": floats(1)}, np.add, broadcast=1, axis=0),
    row("Add", 6, {"a": X, "b": np.array(2, np.float32)}, np.add, broadcast=1),
    row("Add", 6, {"a": X, "b": floats(2, 1)}, lambda a, b: a + b[..., None], broadcast=1, axis=0),
    row("Add", 1, {"a": X, "b": floats(3)}, lambda a, b: abs(a) + b[:, None], before="Abs", broadcast=1, axis=1),
    row("Gemm", 6, {"a": X[0], "b": floats(5, 4), "c": floats(5)}, lambda a, b, c: a @ b.T + c, broadcast=1, transB=1),
    row(
        "Gemm",
        6,
        {"a": X[0], "b": floats(4, 5), "c": floats(3, 1)},
        lambda a, b, c: 0.5 * (a @ b) + 2 * c,
        broadcast=1,
        alpha=0.5,
        beta=2.0,
    ),
    row("Gemm", 1, {"a": X[0], "b": floats(4, 5), "c": floats(3, 5)}, lambda a, b, c: a @ b + c),
    row("PRelu", 6, {"x": X, "s": floats(3)}, lambda x, s: np.where(x < 0, x * s[:, None], x)),
    row("PRelu", 6, {"x": X, "s": f32(0.3)}, lambda x, s: np.where(x < 0, x * s, x)),
    row("PRelu", 6, {"x": X[0], "s": floats(4)}, lambda x, s: np.where(x < 0, x * s, x)),
    row("PRelu", 1, {"x": X, "s": floats(3)}, lambda x, s: abs(x), before="Abs"),
    row("PRelu", 7, {"x": X, "s": floats(4)}),
    # below 7: what said that it does not train
    row("BatchNormalization", 6, {"x": X, **CHANNELS}, normalised, is_test=1),
    row("Dropout", 6, {"x": X}, lambda x: x, is_test=1),
    row("Dropout", 6, {"x": X}, lambda x: (x, np.ones_like(x)), outputs=("y", "mask"), is_test=1, ratio=0.1),
    # normalisation and dropout
    row("BatchNormalization", 7, {"x": X, **CHANNELS}),
    row("BatchNormalization", 8, {"x": X, **PLACES}, normalised, spatial=0),
    row("BatchNormalization", 8, {"x": X, **CHANNELS}, spatial=1),
    row("BatchNormalization", 9, {"x": X, **CHANNELS}),
    row("Dropout", 9, {"x": X}, lambda x: (x, np.ones_like(x)), outputs=("y", "mask"), ratio=0.1),
    row("Dropout", 10, {"x": X}, lambda x: (x, np.ones(x.shape, bool)), outputs=("y", "mask"), ratio=0.1),
    row("Dropout", 11, {"x": X}, ratio=0.2),
    # attributes that became inputs
    row("Clip", 6, {"x": f32(-np.inf, -1, 2, np.inf)}, lambda x: np.clip(x, -3.4028235e38, 3.4028235e38)),
    row("Clip", 6, {"x": X}, min=0.1),
    row("Clip", 10, {"x": X}, max=0.1, min=-0.1),
    row("Clip", 6, {"x": X.astype(np.float16)}, lambda x: x),
    row("Clip", 11, {"x": X, "low": np.array(0.1, np.float32)}, fixed=("low",)),
    row("Reshape", 4, {"x": X}, lambda x: x.reshape(2, 2, 6), consumed_inputs=[0, 0], shape=[0, 2, -1]),
    row("Reshape", 5, {"x": X, "shape": ints(0, 2, -1)}),
    row("Concat", 3, {"a": X, "b": X[:, :2]}, lambda a, b: np.concatenate([a, b], 1)),
    row("Concat", 3, {"a": X, "b": X}, lambda a, b: np.concatenate([a, b], 0), axis=0),
    row("Concat", 4, {"a": X, "b": X}, axis=2),
    row("Tile", 5, {"x": X, "n": f32(3), "axis": f32(1)}, lambda x: np.tile(x, (1, 3, 1)), fixed=("n", "axis")),
    row("Tile", 6, {"x": X, "n": ints(1, 3, 2)}),
    row("Slice", 9, {"x": X}, starts=[1, -3], ends=[2**31 - 1, -1]),
    row("Slice", 1, {"x": X}, starts=[-100, 1], ends=[100, 2**63 - 1], axes=[2, 1]),
    row("Slice", 10, {"x": X, "b": ints(3), "e": ints(-9), "a": ints(2), "s": ints(-2)}),
    row("Split", 1, {"x": X, "n": f32(1, 2)}, lambda x: (x[:, :1], x[:, 1:]), fixed=("n",), outputs=("y", "z"), axis=1),
    row("Split", 1, {"x": X}, lambda x: (x[:, :1], x[:, 1:]), outputs=("y", "z"), axis=1, split=[1, 2]),
    row("Split", 2, {"x": X}, outputs=("y", "z")),
    row("Split", 12, {"x": X}, outputs=("y", "z"), axis=-2, split=[1, 2]),
    row("Pad", 2, {"x": X}, pads=[0, 1, 0, 0, 0, 2], value=0.5),
    row("Pad", 10, {"x": X}, pads=[0, 1, 2, 0, 0, 2], mode="reflect", value=0.5),
    row("Pad", 10, {"x": X}, pads=[0, -1, 2, 0, 0, 2], mode="edge"),
    row("Pad", 10, {"x": X}, pads=[0, -1, 2, 0, 0, -2]),
    row("TopK", 9, {"x": X}, outputs=("y", "i"), k=2),
    row("TopK", 1, {"x": X}, outputs=("y", "i"), k=2, axis=1),
    row("TopK", 10, {"x": X, "k": ints(2)}, outputs=("y", "i"), axis=1),
    row("Squeeze", 12, {"x": X[:1, :, :1]}, axes=[0, -1]),
    row("Squeeze", 1, {"x": X[:1, :, :1]}),
    row("Unsqueeze", 12, {"x": X}, axes=[0, -1]),
    row("Unsqueeze", 1, {"x": X}, axes=[4, 1]),
    row("ReduceSum", 12, {"x": X}, axes=[0, -1], keepdims=0),
    row("ReduceSum", 1, {"x": X}),
    *(
        row(f"Reduce{kind}", 1, {"x": POSITIVE}, axes=[0, 2], keepdims=0)
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
    ),
    # other meanings
    *(
        row(name, opset, {"x": floats(2, 3, 4, 2)}, flattened(f, axis % 4), **({} if axis == 1 else {"axis": axis}))
        for name, f in (("Softmax", softmax), ("LogSoftmax", log_softmax), ("Hardmax", hardmax))
        for opset, axis in ((1, 1), (12, 0), (12, 2), (12, 3), (11, -3))
    ),
    row("Softmax", 1, {"x": X}, lambda x: flattened(softmax, 1)(abs(x)), before="Abs"),
    row("Softmax", 12, {"x": np.zeros((3, 0, 4, 5), np.float32)}, lambda x: x, axis=2),
    row(
        "OneHot",
        10,
        {"i": ints(1, -1, 3, 0), "n": ints(3), "v": f32(5, 7)},
        lambda i: np.where(i[:, None] == np.arange(3), 7, 5).astype(np.float32),
        fixed=("v",),
    ),
    row(
        "OneHot",
        9,
        {"i": f32(1, -1, 2, 0), "n": f32(3), "v": f32(5, 7)},
        lambda i: np.where(i == np.arange(3)[:, None], 7, 5).astype(np.float32),
        fixed=("n", "v"),
        axis=0,
    ),
    row("OneHot", 11, {"i": ints(1, -1, 3, 0), "n": ints(3), "v": f32(5, 7)}, fixed=("v",)),
    row("Scatter", 10, {"x": X[0], "i": np.array([[1, 0, 2, 0]]), "u": floats(1, 4, seed=5)}),
    row("Scatter", 9, {"x": X[0], "i": np.array([[1], [0], [3]]), "u": floats(3, 1, seed=5)}, axis=1),
    row("Upsample", 6, {"x": X4}, today("Upsample", 8, scales=[1.0, 1.0, 2.0, 3.0]), height_scale=2.0, width_scale=3.0),
    row(
        "Upsample",
        1,
        {"x": X4},
        today("Upsample", 8, scales=[1.0, 1.0, 2.0, 1.5], mode="linear"),
        height_scale=2.0,
        width_scale=1.5,
        mode="bilinear",
    ),
    row("Upsample", 7, {"x": X4}, scales=[1.0, 1.0, 1.7, 2.3]),
    row("Upsample", 8, {"x": X4}, scales=[1.0, 1.0, 1.7, 2.3], mode="linear"),
    row("Upsample", 9, {"x": X4, "s": f32(1, 1, 2, 1.6)}, fixed=("s",), mode="linear"),
    row("Upsample", 9, {"x": X4, "s": f32(1, 1, 2, 3)}, fixed=("s",)),
    *(
        row("Resize", 10, {"x": X4, "s": f32(1, 1, *scales)}, fixed=("s",), mode=mode)
        for mode in ("nearest", "linear")
        for scales in ((2, 3), (0.6, 0.7), (1.3, 0.6), (0.6, 1.7))
    ),
    row("Resize", 10, {"x": X4, "s": f32(1, 1, 0.6, 1.7)}, before="Abs"),
    row("Resize", 11, {"x": X4, "roi": f32(), "s": f32(), "n": ints(1, 2, 7, 3)}, fixed=("roi", "s"), mode="linear"),
    row("Resize", 12, {"x": X4, "roi": f32(), "s": f32(1, 1, 2, 0.5)}, fixed=("roi", "s"), nearest_mode="floor"),
    # layers
    row("LpPool", 1, {"x": POOLED}, today("LpPool", 11, p=3, kernel_shape=[2, 2]), p=3.0, kernel_shape=[2, 2]),
    row("GlobalLpPool", 1, {"x": POOLED}, today("GlobalLpPool", p=3), p=3.0),
    row(
        "AveragePool",
        1,
        {"x": POOLED},
        today("AveragePool", kernel_shape=[2, 2], pads=[1, 0, 0, 1]),
        kernel_shape=[2, 2],
        pads=[1, 0, 0, 1],
    ),
    row("AveragePool", 7, {"x": POOLED}, kernel_shape=[2, 2], pads=[1, 0, 0, 1], count_include_pad=1),
    row("MaxPool", 1, {"x": POOLED}, kernel_shape=[3, 2], auto_pad="SAME_UPPER", strides=[2, 2]),
    row("LSTM", 6, recurrent(4), today("LSTM", hidden_size=5), hidden_size=5, output_sequence=1),
    row("GRU", 3, recurrent(3), today("GRU", hidden_size=5), hidden_size=5, output_sequence=1),
    row(
        "GRU",
        1,
        recurrent(3),
        today("GRU", outputs=2, hidden_size=5),
        outputs=("y", "h"),
        hidden_size=5,
        direction="foward",
    ),
    row("RNN", 6, recurrent(1), today("RNN", hidden_size=5), hidden_size=5, output_sequence=0),
    # unchanged
    row("Flatten", 1, {"x": X}, axis=2),
    row("DepthToSpace", 1, {"x": floats(1, 8, 2, 3)}, blocksize=2),
    row("ArgMax", 1, {"x": X}, axis=1, keepdims=0),
    row("Gather", 1, {"x": X, "i": ints(1, 0)}, axis=1),
    row("Mod", 10, {"a": WHOLE["a"], "b": np.array([-2, 3, 5, 7], np.int32)}),
    row("Where", 9, {"c": BITS["a"], "a": X, "b": POSITIVE}),
    row("MatMul", 1, {"a": X, "b": floats(4, 5)}),
]


def operators_of(model: ix.Model) -> set[str]:
    assert isinstance(model.layer, Graph)
    return {node.layer.op_type for node in model.layer.nodes if isinstance(node.layer, Operator)}


def same(got: Any, wanted: list[np.ndarray]) -> None:
    for one, other in zip(got, wanted, strict=True):
        one = np.asarray(one)
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        tolerance = 1e-3 if one.dtype == np.float16 else 1e-5
        np.testing.assert_allclose(one.astype(float), other.astype(float), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("symbolic", [False, True], ids=["sizes", "symbols"])
@pytest.mark.parametrize("case", ROWS)
def test_older_node(case: Row, symbolic: bool) -> None:
    """It computes the same in the newest form, on JAX and emitted again, with and without known sizes."""
    source = case.model(symbolic)
    wanted = by_onnxruntime(source, case.fed) if case.wanted is None else case.wanted(*case.fed.values())
    expected = [np.asarray(a) for a in (wanted if isinstance(wanted, list | tuple) else [wanted])]
    model = from_onnx(source)
    same(by_onnxruntime(emit(model, 21), case.fed), expected)
    if operators_of(model) <= PRIMITIVES.keys():
        same(ix.compile(model, "jax")(**case.fed), expected)


def test_every_rule_has_a_row() -> None:
    rows = [param.values[0] for param in ROWS]
    for op_type, rules in UPGRADES.items():
        if op_type in CLASSICAL:  # tests/runtime/test_jax_classical.py has theirs
            continue
        for low, high in pairwise([0, *(version for version, _ in rules if version <= 13)]):
            tested = any(r.op_type == op_type and low <= r.opset < high for r in rows)
            assert tested or (op_type, high) in {("Pad", 2)}, f"{op_type} below {high}"


def test_every_operator_that_changed_is_reviewed() -> None:
    """A new onnx that changes an operator again must be looked at before its models are taken."""
    versions: dict[str, set[int]] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "":
            versions.setdefault(schema.name, set()).add(schema.since_version)
    changed = {name for name, found in versions.items() if len(found) > 1}
    assert changed - {"Scan"} == UNCHANGED | UPGRADES.keys() - CLASSICAL.keys()
    assert not UNCHANGED & UPGRADES.keys()
    assert OLDEST_OPSET == 1


def test_no_attribute_vanished() -> None:
    """What an older version of an unchanged operator has, the newest one has with the same default."""
    newest = {s.name: s for s in defs.get_all_schemas() if s.domain == ""}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain or schema.name not in UNCHANGED or schema.deprecated:
            continue
        last = newest[schema.name]
        assert schema.attributes.keys() <= last.attributes.keys(), schema.name
        for name, attribute in schema.attributes.items():
            assert attribute.default_value == last.attributes[name].default_value, (schema.name, name)
        assert len(schema.inputs) <= len(last.inputs), schema.name


REFUSED = [
    row("BatchNormalization", 6, {"x": X, **CHANNELS}),
    row("BatchNormalization", 8, {"x": X, **PLACES}, outputs=("y", "m1", "v1", "m2", "v2"), spatial=0),
    row("Dropout", 6, {"x": X}),
    row("Pad", 1, {"x": X}, paddings=[0, 1, 0, 0, 0, 2]),
    row("Split", 1, {"x": X}, outputs=("y", "z")),
    row("LpPool", 1, {"x": POOLED}, p=1.5, kernel_shape=[2, 2]),
    row("LpPool", 1, {"x": POOLED}),
    row("Scatter", 11, {"x": X[0], "i": np.array([[1, 0, 2, 0]]), "u": floats(1, 4, seed=5)}),
    row("Upsample", 10, {"x": X4, "s": f32(1, 1, 2, 3)}),
    row("ATen", 6, {"x": X}, operator="relu"),
    row("GivenTensorFill", 1, {"x": X}),
]


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: Row) -> None:
    with pytest.raises(UnsupportedError, match=case.op_type):
        from_onnx(case.model())


INVALID = [
    row("Add", 6, {"a": X, "b": floats(4)}),
    row("Add", 6, {"a": X, "b": floats(3)}, broadcast=1),
    row("Add", 6, {"a": X, "b": floats(4)}, broadcast=1, axis=1),
    row("Add", 6, {"a": X, "b": floats(4)}, broadcast=1, axis=-2),
    row("Add", 6, {"a": floats(4), "b": X}, broadcast=1),
    row("Gemm", 6, {"a": X[0], "b": floats(4, 5), "c": floats(5)}),
    row("Cast", 5, {"x": X}, to="quaternion"),
    row("Softmax", 12, {"x": X[0, 0]}),
    row("Reshape", 4, {"x": X}),
    row("Resize", 11, {"x": X4, "roi": f32(), "s": f32()}, fixed=("roi", "s")),
]


@pytest.mark.parametrize("case", INVALID)
def test_invalid(case: Row) -> None:
    with pytest.raises(InvalidModelError, match=case.op_type):
        from_onnx(case.model())


def test_aligned_addition_is_no_bias() -> None:
    """MatMul(x, Transpose(w)) + b is a Dense only where b lies along the last axis."""
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"], broadcast=1, axis=0),
    ]
    x, w, b = floats(4, 3), floats(4, 3, seed=1), floats(4)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [4, 3]), ("y", [4, 4]))]
    tensors = [numpy_helper.from_array(a, n) for n, a in (("w", w), ("b", b))]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    model = from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 6)], ir_version=8))
    (got,) = ix.compile(model, "jax")(x)
    np.testing.assert_allclose(got, x @ w.T + b[:, None], rtol=1e-5)


def test_old_linear_layer_is_a_dense() -> None:
    gemm = model_of(
        "Gemm",
        6,
        {"x": X[0], "w": floats(5, 4), "b": floats(5)},
        frozenset("wb"),
        ("y",),
        {"broadcast": 1, "transB": 1},
    )
    layer = from_onnx(gemm).layer
    assert isinstance(layer, Graph)
    assert Dense(4, 5) in [node.layer for node in layer.nodes]


def test_old_nodes_inside_control_flow() -> None:
    """The graphs inside have the opset of the model."""
    make = helper.make_node
    branches = {
        "then_branch": [make("Softmax", ["x"], ["s"], axis=1), make("Slice", ["s"], ["t"], starts=[1], ends=[9])],
        "else_branch": [make("Pad", ["x"], ["p"], pads=[-1, 1, 0, 0, -1, 0], value=2.0), make("Clip", ["p"], ["e"])],
    }
    graphs = {
        name: helper.make_graph(nodes, name, [], [helper.make_empty_tensor_value_info(nodes[-1].output[0])])
        for name, nodes in branches.items()
    }
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    for graph in graphs.values():
        graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    whole = helper.make_graph([make("If", ["c"], ["y"], **graphs)], "g", values[:2], values[2:])
    source = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 9)], ir_version=8)
    run = ix.compile(from_onnx(source), "jax")
    for choice in (True, False):
        fed = {"x": X, "c": np.array(choice)}
        same(run(**fed), by_onnxruntime(source, fed))
