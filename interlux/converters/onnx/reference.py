"""An ONNX model as the source that its conversion is verified against: run as it is, and in float64.

Neither uses interlux's importer or its primitives: onnxruntime runs the model itself, onnx's reference evaluator runs
it with every float made a double.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, inliner, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ...ir.errors import InvalidModelError, UnsupportedError
from ..archive import shown
from .checks import place
from .reading import MAX_PROTOBUF, Source, TensorReader, read
from .reference_contrib import CONTRIB_OPS, EARLY_OPS

# what becomes float64; types of 8 bits and below are quantisation, which is part of what a model computes
_WIDENED = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16))
_NARROW = ("float32", "float16", "bfloat16")
_TYPE_ATTRIBUTES = frozenset(("to", "dtype", "output_datatype", "output_dtype", "softmax_precision", "stash_type"))
# operators whose output type is an attribute that defaults to float32
_DEFAULTS = {
    "BlackmanWindow": "output_datatype",
    "HammingWindow": "output_datatype",
    "HannWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
    "RandomNormal": "dtype",
    "RandomUniform": "dtype",
    "GroupNormalization": "stash_type",
}
_IN_INPUT_TYPE = frozenset(("LayerNormalization", "RMSNormalization"))
# operators that the reference evaluator computes in float32 whatever it is given
_FLOAT32_ONLY = frozenset(
    ("AffineGrid", "CausalConvWithState", "DequantizeLinear", "DynamicQuantizeLinear", "GridSample", "LinearAttention")
)
# what the reference evaluator ignores: attributes with the values that may be ignored, and inputs by position
_IGNORED = {
    "LSTM": ({"activation_alpha", "activation_beta", "activations", "clip", "input_forget"}, {4}),
    "GRU": ({"activation_alpha", "activation_beta", "activations", "clip"}, {4}),
    "RNN": ({"activation_alpha", "activation_beta", "activations", "clip"}, {4}),
}
_USUAL = {
    "LSTM": ["Sigmoid", "Tanh", "Tanh"] * 2,
    "GRU": ["Sigmoid", "Tanh"] * 2,
    "RNN": ["Tanh"] * 2,
}


class OnnxSource:
    """The model that was converted, as the verifier's source.

    Arguments:
        source: path, bytes or ModelProto, as for `from_onnx`.
        threads: onnxruntime's threads within an operator, 0 for its own choice.

    Raises as `from_onnx` does for what cannot be read.
    """

    def __init__(self, source: Source, *, threads: int = 0):
        self._file = read(source)
        self._threads = threads
        self._reader = TensorReader(self._file)
        graph = self._file.proto.graph
        stored = {tensor.name for tensor in graph.initializer}
        self._external = any(t.data_location == TensorProto.EXTERNAL for t in graph.initializer)
        for tensor in graph.initializer:
            self._reader.array(tensor)  # what onnxruntime is given was checked
        self._inputs = [value.name for value in graph.input if value.name not in stored]
        self.description = f"ONNX model {self._file.proto.graph.name or 'without a name'!r} ({self._file.name})"

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """The outputs for input arrays in the order of the signature, in the model's own dtypes.

        Computed by onnxruntime on the CPU, by onnx's reference evaluator where onnxruntime refuses the model.
        """
        feed = self._feed(arrays)
        runner = self._runner
        try:
            with np.errstate(all="ignore"):
                return [np.asarray(y) for y in runner.run(None, feed)]
        except Exception as error:  # onnxruntime's own exceptions derive from Exception alone
            raise InvalidModelError(f"{self._file.name} cannot be run on these inputs: {_line(error)}") from error

    def run_float64(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """The outputs with every float of the model and of the inputs made a double; other dtypes stay.

        Raises UnsupportedError for operators that the reference evaluator cannot compute in float64, or at all.
        """
        feed = self._feed([a.astype(np.float64) if a.dtype.name in _NARROW else a for a in arrays])
        try:
            with np.errstate(all="ignore"):
                results: Any = self._wide.run(None, feed, intermediate=True)
        except Exception as error:  # whatever the evaluator's operators raise
            raise UnsupportedError(
                f"{self._file.name} cannot be run in float64 by onnx's reference evaluator: {_line(error)}"
            ) from error
        narrow = [shown(n) for n, v in results.items() if getattr(getattr(v, "dtype", None), "name", "") in _NARROW]
        if narrow:
            raise UnsupportedError("onnx's reference evaluator computes these values in less than float64", narrow)
        return [np.asarray(results[value.name]) for value in self._file.proto.graph.output]

    def _feed(self, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
        if len(arrays) != len(self._inputs):
            raise InvalidModelError(f"{self._file.name} takes {len(self._inputs)} inputs, not {len(arrays)}")
        return {name: np.asarray(a, order="C") for name, a in zip(self._inputs, arrays, strict=True)}

    @cached_property
    def _runner(self) -> Any:
        """An onnxruntime session, or the reference evaluator if onnxruntime is not installed or refuses the model."""
        try:
            return self._session()
        except UnsupportedError as error:
            refusal = error
        try:
            return self._evaluate(self._copy(wide=False))
        except UnsupportedError as error:
            raise UnsupportedError(f"{refusal}; {error}") from error

    def _session(self) -> Any:
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise UnsupportedError("onnxruntime is not installed") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = self._threads
        whole = not self._external and self._file.proto.ByteSize() <= MAX_PROTOBUF
        model = self._file.proto.SerializeToString() if whole else str(self._file.path)
        try:
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions derive from Exception alone
            raise UnsupportedError(f"onnxruntime refuses {self._file.name}: {_line(error)}") from error

    @cached_property
    def _wide(self) -> ReferenceEvaluator:
        return self._evaluate(self._copy(wide=True))

    def _evaluate(self, model: onnx.ModelProto) -> ReferenceEvaluator:
        opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
        _refuse_ignored(model.graph.node, opset)
        own: list[type[OpRun]] = [Gelu, GatherElements, *CONTRIB_OPS]
        if opset < 17:
            own += EARLY_OPS
        if opset < 14:
            own.append(BatchNormalization)
        if opset < 13:
            own += [Softmax, LogSoftmax, Hardmax]
        try:
            return ReferenceEvaluator(model, new_ops=own)
        except Exception as error:  # whatever the evaluator raises for operators it lacks
            raise UnsupportedError(f"onnx's reference evaluator refuses {self._file.name}: {_line(error)}") from error

    def _copy(self, wide: bool) -> onnx.ModelProto:
        """The model with all its tensors inside; with `wide`, in float64."""
        source = self._file.proto
        model = onnx.ModelProto(ir_version=source.ir_version)
        model.opset_import.extend(source.opset_import)
        model.functions.extend(source.functions)
        graph = model.graph
        graph.name = source.graph.name
        graph.node.extend(source.graph.node)
        graph.input.extend(source.graph.input)
        graph.output.extend(source.graph.output)
        if model.functions:
            model = inliner.inline_local_functions(model)
            graph = model.graph
        for tensor in source.graph.initializer:
            array = self._reader.array(tensor)
            if wide and tensor.data_type in _WIDENED:
                array = array.astype(np.float64)
            graph.initializer.append(numpy_helper.from_array(array, tensor.name))
        if wide:
            self._widen(graph)
        opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
        for node in graph.node:
            absent = all(attribute.name != "axis" for attribute in node.attribute)
            if opset < 13 and node.op_type in ("Softmax", "LogSoftmax", "Hardmax") and absent:
                node.attribute.append(helper.make_attribute("axis", 1))  # the evaluator takes the newest default
        return model

    def _widen(self, graph: onnx.GraphProto) -> None:
        """Makes every float of a graph a double, in place."""
        del graph.value_info[:]
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in _WIDENED:
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
        for node in graph.node:
            if node.op_type in _FLOAT32_ONLY and node.domain in ("", "ai.onnx"):
                raise UnsupportedError(
                    f"onnx's reference evaluator computes {place(node)} in float32 only, so there is no float64 to "
                    "compare with"
                )
            names = {attribute.name for attribute in node.attribute}
            if node.op_type == "ConstantOfShape" and not names:
                node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
            if node.op_type in _DEFAULTS and _DEFAULTS[node.op_type] not in names:
                node.attribute.append(helper.make_attribute(_DEFAULTS[node.op_type], TensorProto.DOUBLE))
            for attribute in node.attribute:
                self._widen_attribute(node, attribute)

    def _widen_attribute(self, node: onnx.NodeProto, attribute: AttributeProto) -> None:
        if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            numbers = attribute.f if attribute.type == AttributeProto.FLOAT else list(attribute.floats)
            attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(np.array(numbers, np.float64))))
        elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type in _WIDENED:
            array = self._reader.array(attribute.t).astype(np.float64)
            attribute.t.CopyFrom(numpy_helper.from_array(array, attribute.t.name))
        elif attribute.name in _TYPE_ATTRIBUTES and attribute.i in _WIDENED:
            # the evaluator takes no other stash_type for these, and computes in the type of the input whatever it says
            if node.op_type not in _IN_INPUT_TYPE or attribute.name != "stash_type":
                attribute.i = TensorProto.DOUBLE
        elif attribute.type == AttributeProto.GRAPH:
            self._widen_inner(attribute.g)
        else:
            for graph in attribute.graphs:
                self._widen_inner(graph)

    def _widen_inner(self, graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.data_type in _WIDENED:
                tensor.CopyFrom(numpy_helper.from_array(self._reader.array(tensor).astype(np.float64), tensor.name))
        self._widen(graph)


def _refuse_ignored(nodes: Iterable[onnx.NodeProto], opset: int) -> None:
    """Raises UnsupportedError for what the reference evaluator silently leaves out or takes for something newer."""
    items = []
    for node in nodes:
        older = {"RoiAlign": 16, "GroupNormalization": 21, "AveragePool": 7}
        if opset < older.get(node.op_type, 0):
            items.append(f"the older meaning of {place(node)}")
        names, inputs = _IGNORED.get(node.op_type, (set(), set()))
        usual = [name.encode() for name in _USUAL.get(node.op_type, ())]
        items += [
            f"{attribute.name} of {place(node)}"
            for attribute in node.attribute
            if attribute.name in names
            and not (attribute.name == "input_forget" and attribute.i == 0)
            and not (attribute.name == "activations" and list(attribute.strings) == usual[: len(attribute.strings)])
        ]
        items += [f"input {i} of {place(node)}" for i in inputs if len(node.input) > i and node.input[i]]
    if items:
        raise UnsupportedError("onnx's reference evaluator ignores these", items)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return shown(text, 300)[1:-1]


_erf = np.vectorize(math.erf, otypes=[np.float64])


class Gelu(OpRun):
    """Gelu with constants in double precision; the evaluator would expand it with constants of float32."""

    op_domain = ""

    def _run(self, x: np.ndarray, approximate: str | None = None) -> tuple[np.ndarray]:
        wide = x.astype(np.float64)
        if approximate == "tanh":
            bell = np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))
        else:
            bell = _erf(wide / math.sqrt(2)) if x.size else wide
        return ((0.5 * wide * (1 + bell)).astype(x.dtype),)


class BatchNormalization(OpRun):
    """Inference before opset 14. The evaluator mixes the batch's statistics in, whatever the number of outputs."""

    op_domain = ""

    def _run(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray,
        mean: np.ndarray,
        variance: np.ndarray,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        training_mode: int = 0,
    ) -> tuple[np.ndarray]:
        column = (-1, *(1,) * (x.ndim - 2))
        factor = (weight / np.sqrt(variance + epsilon)).reshape(column)
        return (((x - mean.reshape(column)) * factor + bias.reshape(column)).astype(x.dtype),)


def _rows(x: np.ndarray, axis: int) -> np.ndarray:
    """x as a matrix, as the operators of the softmax family took it before opset 13."""
    axis = axis % x.ndim if x.ndim else 0
    return x.reshape(math.prod(x.shape[:axis]), -1)


class GatherElements(OpRun):
    """The evaluator's own chooses among at most 64 arrays."""

    op_domain = ""

    def _run(self, data: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
        other = tuple(slice(None) if i == axis % data.ndim else slice(n) for i, n in enumerate(indices.shape))
        return (np.take_along_axis(data[other], np.where(indices < 0, indices + data.shape[axis], indices), axis),)


class Softmax(OpRun):
    """Before opset 13: over all axes from `axis` on. The evaluator takes that axis alone, whatever the opset."""

    op_domain = ""

    def _run(self, x: np.ndarray, axis: int = 1) -> tuple[np.ndarray]:
        rows = _rows(x, axis)
        unnormalised = np.exp(rows - rows.max(1, keepdims=True))
        return ((unnormalised / unnormalised.sum(1, keepdims=True)).reshape(x.shape).astype(x.dtype),)


class LogSoftmax(OpRun):
    """As Softmax."""

    op_domain = ""

    def _run(self, x: np.ndarray, axis: int = 1) -> tuple[np.ndarray]:
        rows = _rows(x, axis)
        shifted = rows - rows.max(1, keepdims=True)
        return ((shifted - np.log(np.exp(shifted).sum(1, keepdims=True))).reshape(x.shape).astype(x.dtype),)


class Hardmax(OpRun):
    """As Softmax."""

    op_domain = ""

    def _run(self, x: np.ndarray, axis: int = 1) -> tuple[np.ndarray]:
        rows = _rows(x, axis)
        return ((np.arange(rows.shape[1]) == rows.argmax(1)[:, None]).astype(x.dtype).reshape(x.shape),)
