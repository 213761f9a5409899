"""Fully connected layers and lookup tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidModelError
from ..interpreter import Interpreter, Value
from ..layer import Layer, positive, uniform
from ..trees import Tree
from .basic import Operator, identity


@dataclass(frozen=True)
class Dense(Layer):
    """A fully connected layer: activation(x · weightᵀ + bias).

    Arguments:
        in_features, out_features: sizes of the last axis before and after.
        use_bias: whether there is a bias.
        activation: an element-wise operator without parameters.
        in_first: whether weight is stored as [in_features, out_features], as by Keras and by ONNX's MatMul.

    Inputs: x [..., in_features]
    Returns: [..., out_features]
    Parameters: weight [out_features, in_features], bias [out_features]

    Source: ONNX Gemm and MatMul, aten.linear, Keras Dense.
    """

    in_features: int
    out_features: int
    use_bias: bool = True
    activation: Operator = identity
    in_first: bool = False

    def __post_init__(self) -> None:
        positive("Dense", in_features=self.in_features, out_features=self.out_features)
        if not isinstance(self.activation, Layer):
            raise InvalidModelError(
                f"Dense: activation must be a layer such as interlux.layers.relu, not {self.activation!r}"
            )

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        weight = (self.out_features, self.in_features)
        shapes: dict[str, tuple[int, ...]] = {"weight": weight[::-1] if self.in_first else weight}
        return shapes | ({"bias": (self.out_features,)} if self.use_bias else {})

    def init_params(self, rng: np.random.Generator) -> Tree:
        return {name: uniform(rng, shape, self.in_features) for name, shape in self.param_shapes().items()}

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        (x,) = inputs
        weight = params["weight"] if self.in_first else op.Transpose(params["weight"], perm=(1, 0))
        y = op.MatMul(x, weight)
        if self.use_bias:
            y = op.Add(y, params["bias"])
        return self.activate(op, y, train=train), states

    def activate(self, op: Interpreter, y: Value, *, train: bool) -> Value:
        return y if self.activation == identity else op.layer(self.activation, {}, {}, y, train=train)[0]


@dataclass(frozen=True)
class Embedding(Layer):
    """Rows of a table by index.

    Arguments:
        rows, features: size of the table.
        padding_row: a row that takes no gradient, None if every row does.

    Inputs: indices, int32 or int64, any shape
    Returns: [*indices.shape, features]
    Parameters: weight [rows, features]

    Source: ONNX Gather (axis 0), aten.embedding.
    """

    rows: int
    features: int
    padding_row: int | None = None

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.rows, self.features)}

    def init_params(self, rng: np.random.Generator) -> Tree:
        weight = rng.standard_normal((self.rows, self.features)).astype(np.float32)
        if self.padding_row is not None:
            weight[self.padding_row] = 0
        return {"weight": weight}

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        table = params["weight"]
        if self.padding_row is not None:
            table = op.StopRowGradient(table, row=self.padding_row)
        return op.Gather(table, inputs[0], axis=0), states
