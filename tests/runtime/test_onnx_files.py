"""ONNX files that are written piece by piece hold what protobuf would write."""

from __future__ import annotations

import io
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import interlux as ix
from interlux.runtime.onnx import to_onnx
from interlux.runtime.onnx.assembly import Emission
from interlux.runtime.onnx.emitter import emission
from interlux.runtime.onnx.files import stream

ARRAYS = {
    "matrix": np.arange(300 * 70, dtype=np.float32).reshape(300, 70),
    "transposed": np.arange(300 * 70, dtype=np.float64).reshape(300, 70).T,
    "strided": np.arange(4000, dtype=np.int64)[::2],
    "bfloat16": np.arange(2000).astype(ml_dtypes.bfloat16),
    "flags": np.arange(2000) % 3 == 0,
    "scalar": np.array(3.0, np.float32),
    "empty": np.zeros((0, 5), np.float32),
}


def model_of(arrays: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The first output of each node is one of the arrays."""
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in arrays]
    outs = [
        helper.make_tensor_value_info(f"{name}_out", helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in arrays.items()
    ]
    held = [numpy_helper.from_array(np.ascontiguousarray(a).reshape(a.shape), name) for name, a in arrays.items()]
    graph = helper.make_graph(nodes, "graph", [], outs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("aside", [(), ("matrix", "transposed"), tuple(ARRAYS)])
def test_a_stream_is_the_model(aside: tuple[str, ...]) -> None:
    expected = model_of(ARRAYS)
    proto = onnx.ModelProto()
    proto.CopyFrom(expected)
    for tensor in proto.graph.initializer:
        if tensor.name in aside:
            tensor.ClearField("raw_data")
    file = io.BytesIO()
    stream(Emission(proto, {name: ARRAYS[name] for name in aside}), file)
    found = onnx.load_from_string(file.getvalue())
    for model in (expected, found):
        held = sorted(model.graph.initializer, key=lambda tensor: tensor.name)
        del model.graph.initializer[:]
        model.graph.initializer.extend(held)
    assert found == expected


def test_a_file_is_what_was_emitted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((64, 64)).astype(np.float32), "weight")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 64]) for n in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "weight"], ["y"])], "graph", [x], [y], [weight])
    model = ix.from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    to_onnx(model, tmp_path / "model.onnx")
    written, made = onnx.load(tmp_path / "model.onnx"), emission(model)
    assert made.arrays  # else nothing is streamed
    assert written == made.whole()
