"""Recurrent layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidModelError
from ..interpreter import Interpreter, Value
from ..layer import FOLLOW, Layer, active, check_mode, positive, uniform
from ..trees import Tree
from .random import dropout, fresh_seed

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class Recurrent(Layer):
    """One recurrent layer with its arrays as ONNX stores them: directions stacked, gates in ONNX's order.

    Arguments:
        kind: LSTM, GRU or RNN.
        input_size, hidden_size: features of the input and of the hidden state.
        direction: forward, reverse or bidirectional.
        use_bias, use_peepholes: whether there are those arrays.
        attributes: further attributes of the operator, (name, value) pairs sorted by name.
        outputs: how many of the operator's outputs are made.

    Inputs: x [time, batch, input_size]; lengths, h0, c0 as the operator takes them, None where absent
    Returns: y [time, directions, batch, hidden_size], h [directions, batch, hidden_size], c likewise
    Parameters, with g gates: weight [directions, g · hidden_size, input_size],
        recurrence [directions, g · hidden_size, hidden_size], bias [directions, 2g · hidden_size],
        peepholes [directions, 3 · hidden_size]

    Source: ONNX LSTM, GRU and RNN.
    """

    kind: str
    input_size: int
    hidden_size: int
    direction: str = "forward"
    use_bias: bool = True
    use_peepholes: bool = False
    attributes: tuple[tuple[str, Any], ...] = ()
    outputs: int = 1

    def __post_init__(self) -> None:
        if self.kind not in GATES:
            raise InvalidModelError(f"Recurrent: kind must be one of {', '.join(GATES)}, not {self.kind!r}")
        positive("Recurrent", input_size=self.input_size, hidden_size=self.hidden_size)

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        count, rows = 2 if self.direction == "bidirectional" else 1, GATES[self.kind] * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight": (count, rows, self.input_size),
            "recurrence": (count, rows, self.hidden_size),
        }
        if self.use_bias:
            shapes["bias"] = (count, 2 * rows)
        return shapes | ({"peepholes": (count, 3 * self.hidden_size)} if self.use_peepholes else {})

    def init_params(self, rng: np.random.Generator) -> Tree:
        return {name: uniform(rng, shape, self.hidden_size) for name, shape in self.param_shapes().items()}

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        x, lengths, h0, c0 = (*inputs, None, None, None)[:4]
        given = [x, params["weight"], params["recurrence"], params.get("bias"), lengths, h0]
        if self.kind == "LSTM":
            given += [c0, params.get("peepholes")]
        settings = {"hidden_size": self.hidden_size, "direction": self.direction, **dict(self.attributes)}
        return op.primitive(self.kind, given, settings, self.outputs), states


@dataclass(frozen=True)
class LSTM(Layer):
    """A stack of long short-term memory layers.

    Arguments:
        input_size, hidden_size: features of the input and of the hidden state.
        num_layers: layers in the stack.
        bidirectional: whether each layer also runs backwards; both outputs are concatenated.
        batch_first: whether the batch is axis 0 of input and output (else axis 1).
        use_bias: whether there are biases.
        dropout: probability of dropping an element between two layers in training.
        mode: follow | always | never: when dropout is active.

    Inputs: x [time, batch, input_size], and optionally h0, c0 [num_layers · directions, batch, hidden_size]
    Returns: y [time, batch, directions · hidden_size], h, c (as h0, c0, after the last step)
    Parameters, for each layer k and direction ("" or "_reverse"), gates in PyTorch's order input, forget, cell, output:
        weight_ih_lk [4 · hidden_size, features], weight_hh_lk [4 · hidden_size, hidden_size],
        bias_ih_lk, bias_hh_lk [4 · hidden_size]
    States: seed, uint32 [2], if dropout is not 0

    Source: ONNX LSTM, aten.lstm; Hochreiter & Schmidhuber 1997.
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    use_bias: bool = True
    dropout: float = 0.0
    mode: str = FOLLOW

    def __post_init__(self) -> None:
        check_mode(self.mode, "LSTM")

    @property
    def directions(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        gates = 4 * self.hidden_size
        for k in range(self.num_layers):
            features = self.input_size if k == 0 else len(self.directions) * self.hidden_size
            for d in self.directions:
                shapes |= {f"weight_ih_l{k}{d}": (gates, features), f"weight_hh_l{k}{d}": (gates, self.hidden_size)}
                if self.use_bias:
                    shapes |= {f"bias_ih_l{k}{d}": (gates,), f"bias_hh_l{k}{d}": (gates,)}
        return shapes

    def init_params(self, rng: np.random.Generator) -> Tree:
        return {name: uniform(rng, shape, self.hidden_size) for name, shape in self.param_shapes().items()}

    def init_states(self, rng: np.random.Generator) -> Tree:
        return {"seed": fresh_seed(rng)} if self.drops else {}

    @property
    def drops(self) -> bool:
        return bool(self.dropout) and self.num_layers > 1

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        x, h0, c0 = (*inputs, None, None)[:3]
        n = len(self.directions)
        if self.batch_first:
            x = op.Transpose(x, perm=(1, 0, 2))
        last_h, last_c = [], []
        for k in range(self.num_layers):
            y, h, c = op.LSTM(
                x,
                self._both_directions(op, params, f"weight_ih_l{k}"),
                self._both_directions(op, params, f"weight_hh_l{k}"),
                self._biases(op, params, k),
                None,
                None if h0 is None else self._states_of_layer(op, h0, k),
                None if c0 is None else self._states_of_layer(op, c0, k),
                hidden_size=self.hidden_size,
                direction="bidirectional" if self.bidirectional else "forward",
                outputs=3,
            )
            # [time, directions, batch, hidden] -> [time, batch, directions · hidden]
            x = op.Reshape(op.Transpose(y, perm=(0, 2, 1, 3)), op.ints(0, 0, n * self.hidden_size))
            last_h.append(h)
            last_c.append(c)
            if self.drops and k < self.num_layers - 1 and active(self.mode, train):
                x, seed = dropout(op, x, self.dropout, states["seed"])
                states = {"seed": seed}
        if self.batch_first:
            x = op.Transpose(x, perm=(1, 0, 2))
        return (x, self._stacked(op, last_h), self._stacked(op, last_c)), states

    def _states_of_layer(self, op: Interpreter, stacked: Value, k: int) -> Value:
        n = len(self.directions)
        return stacked if self.num_layers == 1 else op.Slice(stacked, op.ints(k * n), op.ints(k * n + n), op.ints(0))

    def _both_directions(self, op: Interpreter, params: Mapping[str, Any], name: str) -> Value:
        return self._stacked(
            op, [op.Unsqueeze(self._onnx_gates(op, params[name + d]), op.ints(0)) for d in self.directions]
        )

    def _biases(self, op: Interpreter, params: Mapping[str, Any], k: int) -> Value | None:
        if not self.use_bias:
            return None
        return op.Concat(
            *(self._both_directions(op, params, f"{name}_l{k}") for name in ("bias_ih", "bias_hh")), axis=1
        )

    def _onnx_gates(self, op: Interpreter, stacked: Value) -> Value:
        """Gates in ONNX's order: input, output, forget, cell."""
        h = self.hidden_size
        i, f, c, o = op.Split(stacked, op.ints(h, h, h, h), axis=0, outputs=4)
        return op.Concat(i, o, f, c, axis=0)

    @staticmethod
    def _stacked(op: Interpreter, parts: list[Value]) -> Value:
        return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)
