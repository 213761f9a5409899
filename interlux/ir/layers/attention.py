"""Scaled dot-product attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidModelError, UnsupportedError
from ..interpreter import Interpreter, Value
from ..layer import FOLLOW, Layer, check_mode
from ..trees import Tree
from .random import Dropout, fresh_seed


@dataclass(frozen=True)
class Attention(Layer):
    """softmax(query · keyᵀ · scale + mask) · value. A row whose keys are all hidden gives zeros, as in PyTorch.

    Arguments:
        scale: factor of the products; None for 1/√features.
        causal: position i sees keys 0..i only (aligned at the first of both).
        masked: none | bool (True = may attend) | float (added): kind of the fourth input.
        groups: query heads that share one key head (grouped-query attention).
        dropout: probability of dropping an attention weight in training.
        mode: follow | always | never: when dropout is active.

    Inputs: query [..., heads, length, features], key [..., heads / groups, keys, features],
        value [..., heads / groups, keys, features'], mask broadcastable to [..., heads, length, keys]
    Returns: [..., heads, length, features']
    States: seed, uint32 [2], if dropout is not 0

    Source: aten.scaled_dot_product_attention, ONNX Attention; Vaswani et al. 2017.
    """

    scale: float | None = None
    causal: bool = False
    masked: str = "none"
    groups: int = 1
    dropout: float = 0.0
    mode: str = FOLLOW

    def __post_init__(self) -> None:
        check_mode(self.mode, "Attention")
        if self.masked not in ("none", "bool", "float"):
            raise InvalidModelError(f"Attention: masked must be none, bool or float, not {self.masked!r}")

    def init_states(self, rng: np.random.Generator) -> Tree:
        return {"seed": fresh_seed(rng)} if self.dropout else {}

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        query, key, value, *mask = inputs
        if self.groups > 1:
            key, value = (self._repeat_heads(op, x) for x in (key, value))
        rank = op.rank_of(query)
        swapped = (*range(rank - 2), rank - 1, rank - 2)
        scores = op.MatMul(op.Mul(query, op.const(self._scale(op, query), like=query)), op.Transpose(key, perm=swapped))
        bias = self._bias(op, query, key, rank, mask)
        empty = None
        if bias is not None:
            if self.masked != "none":  # without a mask every position sees the first key
                # of the mask, which is smaller than the scores, and shared by the layers of a network
                hidden = op.const(-math.inf, like=query)
                empty = op.Equal(op.ReduceMax(bias, op.ints(-1), keepdims=1), hidden)
                bias = op.Where(empty, op.const(0, like=query), bias)  # softmax of a row of -inf is NaN
            scores = op.Add(scores, bias)
        weights = op.Softmax(scores, axis=-1)
        if self.dropout:  # as a layer, which backends have a form of their own for
            weights, states = op.layer(Dropout(self.dropout, self.mode), {}, states, weights, train=train)
        made = op.MatMul(weights, value)
        return made if empty is None else op.Where(empty, op.const(0, like=query), made), states

    def _bias(self, op: Interpreter, query: Value, key: Value, rank: int, mask: list[Value]) -> Value | None:
        """What is added to the scores: -inf where a key is hidden."""
        seen = mask[0] if self.masked == "bool" else None
        if self.causal:
            earlier = self._causal_mask(op, query, key, rank)
            seen = earlier if seen is None else op.And(seen, earlier)
        if seen is not None:
            seen = op.Where(seen, op.const(0, like=query), op.const(-math.inf, like=query))
        if self.masked != "float":
            return seen
        return mask[0] if seen is None else op.Add(mask[0], seen)

    def _scale(self, op: Interpreter, query: Value) -> float:
        if self.scale is not None:
            return self.scale
        features = (op.shape_of(query) or (None,))[-1]
        if not isinstance(features, int):
            raise UnsupportedError(f"Attention: features of the query must be known, or a scale given{op.where()}")
        return 1 / math.sqrt(features)

    def _causal_mask(self, op: Interpreter, query: Value, key: Value, rank: int) -> Value:
        def positions(x: Value) -> Value:
            length = op.Squeeze(op.Shape(x, start=rank - 2, end=rank - 1), op.ints(0))
            return op.Range(op.const(np.array(0)), length, op.const(np.array(1)))

        return op.LessOrEqual(op.Unsqueeze(positions(key), op.ints(0)), op.Unsqueeze(positions(query), op.ints(1)))

    def _repeat_heads(self, op: Interpreter, x: Value) -> Value:
        rank = op.rank_of(x)
        split = op.Unsqueeze(x, op.ints(rank - 2))
        repeated = op.Expand(split, op.ints(*(1,) * (rank - 2), self.groups, 1, 1))
        heads = op.Mul(op.Shape(x, start=rank - 3, end=rank - 2), op.ints(self.groups))
        shape = op.Concat(op.Shape(x, start=0, end=rank - 3), heads, op.Shape(x, start=rank - 2, end=rank), axis=0)
        return op.Reshape(repeated, shape)
