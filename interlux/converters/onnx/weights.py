"""What each tensor of a model is: a parameter, a state, or a small constant; and the path under which it is stored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
import onnx

from ...ir import trees
from ...ir.trees import Path
from ..builder import LARGEST_CONSTANT

PARAMETER, STATE, CONSTANT = "parameter", "state", "constant"

# inputs that take trained arrays, by operator
_TRAINED = {
    "Gemm": {1, 2},
    "MatMul": {0, 1},
    "Einsum": {0, 1, 2},
    "Conv": {1, 2},
    "ConvTranspose": {1, 2},
    "BatchNormalization": {1, 2},
    "LayerNormalization": {1, 2},
    "InstanceNormalization": {1, 2},
    "GroupNormalization": {1, 2},
    "RMSNormalization": {1},
    "PRelu": {1},
    "Gather": {0},
    "LSTM": {1, 2, 3, 7},
    "GRU": {1, 2, 3},
    "RNN": {1, 2, 3},
    "FusedMatMul": {0, 1},
    "FusedGemm": {1, 2},
    "FusedConv": {1, 2},
    "Attention": {1, 2},
    "SkipLayerNormalization": {2, 3, 4},
}
# inputs that take floats as settings: they must be known when a program is compiled, and no gradient is wanted
_SETTINGS = {
    "Resize": {1, 2},
    "Upsample": {1},
    "Tile": {1, 2},
    "Split": {1},
    "Range": {0, 1, 2},
    "Dropout": {1},
    "Clip": {1, 2},
    "Pad": {2},
    "OneHot": {2},
    "NonMaxSuppression": {3, 4},
}
# inputs that take floats which training does not change by gradients
_STATES = {
    "BatchNormalization": {3, 4},
    "QuantizeLinear": {1},
    "DequantizeLinear": {1},
    "QLinearConv": {1, 4, 6},
    "QLinearMatMul": {1, 4, 6},
    "MatMulNBits": {2, 3},
    "GatherBlockQuantized": {2},
    "MatMulIntegerToFloat": {2, 3},
    "DynamicQuantizeMatMul": {2},
    "QAttention": {3, 4},
    "QGemm": {1, 4, 7},
}
# torch's names of parameters: identifiers and numbers, joined by dots ("layer1.0.scale")
_MODULE_PATH = re.compile(r"[^\W\d]\w*(\.\w+)+")


class Uses:
    """Which inputs of which operators read each value, through Identity nodes as well.

    Arguments:
        nodes: of the graph.
    """

    def __init__(self, nodes: Iterable[onnx.NodeProto]):
        self._by_value: dict[str, list[tuple[str, int]]] = {}
        self.producer: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        nodes = list(nodes)
        same_as: dict[str, str] = {}
        for node in nodes:
            if node.op_type == "Identity":
                same_as[node.output[0]] = same_as.get(node.input[0], node.input[0])
            for i, name in enumerate(node.input):
                self._by_value.setdefault(same_as.get(name, name), []).append((node.op_type, i))
                self.readers.setdefault(name, []).append(node)
            self.producer.update((name, node) for name in node.output if name)
        # what is added to a product is its bias
        self._biases = {
            name
            for node in nodes
            if node.op_type == "Add" and len(node.input) == 2
            for name, other in (node.input, reversed(node.input))
            if other in self.producer and self.producer[other].op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose")
        }

    def any(self, name: str, table: Mapping[str, set[int]]) -> bool:
        return any(index in table.get(op_type, ()) for op_type, index in self._by_value.get(name, ()))

    def trained(self, name: str) -> bool:
        """Whether a value is read where trained arrays belong."""
        return name in self._biases or self.any(name, _TRAINED)


def kind_of(name: str, array: np.ndarray, uses: Uses, initialiser: bool = True) -> str:
    """What a tensor is.

    Arguments:
        name: of the initialiser, or of the output of a Constant node.
        array: its value.
        uses: of the graph.
        initialiser: False for a Constant node: its exporter did not take it for a weight.

    Returns:
        CONSTANT for small integers, for floats that are settings, and for single floats that nothing marks as trained;
        PARAMETER for other floats; STATE for running statistics, quantisation scales, and large arrays of other dtypes.
    """
    small = array.size <= LARGEST_CONSTANT
    if not trees.is_float(array.dtype):
        return CONSTANT if small else STATE
    if small and uses.any(name, _SETTINGS):
        return CONSTANT
    if uses.any(name, _STATES):
        return STATE
    if uses.trained(name):
        return PARAMETER
    if array.size <= 1 and not (initialiser and _MODULE_PATH.fullmatch(name)):
        return CONSTANT
    if initialiser:
        return PARAMETER
    return CONSTANT if small else STATE


def paths_of(names: Iterable[str]) -> dict[str, Path]:
    """The path of each name: split at its dots, or the whole name as one key where another name is a prefix of it."""
    known = set(names)

    def path(name: str) -> Path:
        parts = trees.path_of(name)
        shadowed = any(".".join(parts[:i]) in known for i in range(1, len(parts)))
        return (name,) if shadowed else parts

    return {name: path(name) for name in known}
