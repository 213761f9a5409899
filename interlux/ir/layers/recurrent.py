"""Recurrent layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import InvalidModelError
from ..interpreter import Interpreter, Value
from ..layer import FOLLOW, Layer, check_mode, positive, uniform
from ..trees import Tree
from .random import Dropout, fresh_seed

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
class _Stack(Layer):
    """What stacks of recurrent layers share. PyTorch keeps the arrays of every layer and direction apart, ONNX stacks
    directions and has the gates in another order."""

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    use_bias: bool = True
    dropout: float = 0.0
    mode: str = FOLLOW

    gates: ClassVar[tuple[int, ...]] = (0,)  # PyTorch's gates in ONNX's order
    state_count: ClassVar[int] = 1  # a hidden state, and for LSTM a cell state

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_mode(self.mode, name)
        positive(name, input_size=self.input_size, hidden_size=self.hidden_size, num_layers=self.num_layers)

    @property
    def directions(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    @property
    def output_size(self) -> int:
        """Features of the output of one direction."""
        return self.hidden_size

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for k in range(self.num_layers):
            features = self.input_size if k == 0 else len(self.directions) * self.output_size
            for d in self.directions:
                shapes |= self._shapes_of_one(f"l{k}{d}", features)
        return shapes

    def _shapes_of_one(self, place: str, features: int) -> dict[str, tuple[int, ...]]:
        rows = len(self.gates) * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            f"weight_ih_{place}": (rows, features),
            f"weight_hh_{place}": (rows, self.output_size),
        }
        return shapes | ({f"bias_ih_{place}": (rows,), f"bias_hh_{place}": (rows,)} if self.use_bias else {})

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
        x, *given = inputs
        initial = (*given, *(None,) * self.state_count)[: self.state_count]
        if self.batch_first:
            x = op.Transpose(x, perm=(1, 0, 2))
        last: list[tuple[Value, ...]] = []
        for k in range(self.num_layers):
            start = tuple(None if state is None else self._of_layer(op, state, k) for state in initial)
            y, *final = self._run(op, params, k, x, start)
            last.append(tuple(final))
            # [time, directions, batch, hidden] -> [time, batch, directions · hidden]
            width = len(self.directions) * self.output_size
            x = op.Reshape(op.Transpose(y, perm=(0, 2, 1, 3)), op.ints(0, 0, width))
            if self.drops and k < self.num_layers - 1:
                x, states = op.layer(Dropout(self.dropout, self.mode), {}, states, x, train=train)
        if self.batch_first:
            x = op.Transpose(x, perm=(1, 0, 2))
        return (x, *(_stacked(op, parts) for parts in zip(*last, strict=True))), states

    def _run(
        self, op: Interpreter, params: Mapping[str, Any], k: int, x: Value, start: tuple[Value | None, ...]
    ) -> tuple[Value, ...]:
        """Layer k: y [time, directions, batch, hidden_size] and the last states [directions, batch, hidden_size]."""
        weight, recurrence = (self._directed(op, params, f"{name}_l{k}") for name in ("weight_ih", "weight_hh"))
        return self._primitive(op, x, weight, recurrence, self._biases(op, params, k), start)

    def _primitive(
        self,
        op: Interpreter,
        x: Value,
        weight: Value,
        recurrence: Value,
        biases: Value | None,
        start: tuple[Value | None, ...],
    ) -> tuple[Value, ...]:
        """ONNX's operator of this layer's name."""
        settings = {
            "hidden_size": self.hidden_size,
            "direction": "bidirectional" if self.bidirectional else "forward",
            **self._settings(),
        }
        given = (x, weight, recurrence, biases, None, *start)
        results: tuple[Value, ...] = op.primitive(type(self).__name__, given, settings, 1 + self.state_count)
        return results

    def _settings(self) -> dict[str, Any]:
        """Further attributes of the operator."""
        return {}

    def _of_layer(self, op: Interpreter, stacked: Value, k: int) -> Value:
        n = len(self.directions)
        return stacked if self.num_layers == 1 else op.Slice(stacked, op.ints(k * n), op.ints(k * n + n), op.ints(0))

    def _directed(self, op: Interpreter, params: Mapping[str, Any], name: str) -> Value:
        """The arrays of both directions, one on the other."""
        parts = [op.Unsqueeze(self._in_order(op, params[name + d]), op.ints(0)) for d in self.directions]
        return _stacked(op, parts)

    def _biases(self, op: Interpreter, params: Mapping[str, Any], k: int) -> Value | None:
        if not self.use_bias:
            return None
        return op.Concat(*(self._directed(op, params, f"{name}_l{k}") for name in ("bias_ih", "bias_hh")), axis=1)

    def _in_order(self, op: Interpreter, stacked: Value) -> Value:
        """The rows of the gates in ONNX's order."""
        n = len(self.gates)
        if n == 1:
            return stacked
        parts = op.Split(stacked, op.ints(*(self.hidden_size,) * n), axis=0, outputs=n)
        return op.Concat(*(parts[gate] for gate in self.gates), axis=0)


def _stacked(op: Interpreter, parts: Sequence[Value]) -> Value:
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)


@dataclass(frozen=True)
class LSTM(_Stack):
    """A stack of long short-term memory layers.

    Arguments:
        input_size, hidden_size: features of the input and of the cell state.
        num_layers: layers in the stack.
        bidirectional: whether each layer also runs backwards; both outputs are concatenated.
        batch_first: whether the batch is axis 0 of input and output (else axis 1).
        use_bias: whether there are biases.
        dropout: probability of dropping an element between two layers in training.
        mode: follow | always | never: when dropout is active.
        proj_size: features of the hidden state, which is then a product of what a layer gives; 0: hidden_size of them,
            no product.

    Inputs: x [time, batch, input_size], and optionally h0 [num_layers · directions, batch, proj_size or hidden_size],
        c0 [num_layers · directions, batch, hidden_size]
    Returns: y [time, batch, directions · (proj_size or hidden_size)], h, c (as h0, c0, after the last step)
    Parameters, for each layer k and direction ("" or "_reverse"), gates in PyTorch's order input, forget, cell, output:
        weight_ih_lk [4 · hidden_size, features], weight_hh_lk [4 · hidden_size, proj_size or hidden_size],
        bias_ih_lk, bias_hh_lk [4 · hidden_size], weight_hr_lk [proj_size, hidden_size] if there is a projection
    States: seed, uint32 [2], if dropout is not 0

    Source: ONNX LSTM, aten.lstm; Hochreiter & Schmidhuber 1997, Sak et al. 2014 (projection).
    """

    proj_size: int = 0

    gates: ClassVar[tuple[int, ...]] = (0, 3, 1, 2)  # input, output, forget, cell
    state_count: ClassVar[int] = 2

    @property
    def output_size(self) -> int:
        return self.proj_size or self.hidden_size

    def _shapes_of_one(self, place: str, features: int) -> dict[str, tuple[int, ...]]:
        shapes = super()._shapes_of_one(place, features)
        return shapes | ({f"weight_hr_{place}": (self.proj_size, self.hidden_size)} if self.proj_size else {})

    def _run(
        self, op: Interpreter, params: Mapping[str, Any], k: int, x: Value, start: tuple[Value | None, ...]
    ) -> tuple[Value, ...]:
        if not self.proj_size:
            return super()._run(op, params, k, x, start)
        # ONNX has no projection P: the operator runs on what comes before it, with the recurrence R·P, and P is applied
        # to its results. Only the initial state is given behind P: the first step takes R·h0 as further inputs.
        weight, recurrence = (self._directed(op, params, f"{name}_l{k}") for name in ("weight_ih", "weight_hh"))
        each = [op.Unsqueeze(params[f"weight_hr_l{k}{d}"], op.ints(0)) for d in self.directions]
        projection = _stacked(op, each)  # [directions, proj_size, hidden_size]
        h0, c0 = start
        if h0 is not None:
            x, weight = self._with_start(op, x, weight, recurrence, h0)
        product = op.MatMul(recurrence, projection)
        y, h, c = self._primitive(op, x, weight, product, self._biases(op, params, k), (None, c0))
        turned = op.Transpose(projection, perm=(0, 2, 1))
        return op.MatMul(y, turned), op.MatMul(h, turned), c

    def _with_start(
        self, op: Interpreter, x: Value, weight: Value, recurrence: Value, h0: Value
    ) -> tuple[Value, Value]:
        """x with h0 as further features of each direction's first step, zeros later, and the weights of all."""
        n = len(self.directions)
        steps = op.Squeeze(op.Shape(x, start=0, end=1), op.ints(0))
        one = op.const(np.array(1, np.int64))
        step = op.Unsqueeze(op.Range(op.const(np.array(0, np.int64)), steps, one), op.ints(1, 2))
        firsts = [op.const(np.array(0, np.int64)), op.Sub(steps, one)]
        states = [h0] if n == 1 else op.Split(h0, op.ints(1, 1), axis=0, outputs=2)
        more = [
            op.Where(op.Equal(step, first), state, op.const(0, like=h0))
            for first, state in zip(firsts, states, strict=False)
        ]
        if n == 1:
            return op.Concat(x, more[0], axis=2), op.Concat(weight, recurrence, axis=2)
        forward, backward = op.Split(recurrence, op.ints(1, 1), axis=0, outputs=2)
        shape = op.ints(1, len(self.gates) * self.hidden_size, self.proj_size)
        zero = op.ConstantOfShape(shape, value=np.zeros(1, op.dtype_of(recurrence)))
        rows = [op.Concat(forward, zero, axis=2), op.Concat(zero, backward, axis=2)]
        return op.Concat(x, *more, axis=2), op.Concat(weight, op.Concat(*rows, axis=0), axis=2)


@dataclass(frozen=True)
class GRU(_Stack):
    """A stack of gated recurrent layers.

    Arguments: those of LSTM, without proj_size.

    Inputs: x [time, batch, input_size], and optionally h0 [num_layers · directions, batch, hidden_size]
    Returns: y [time, batch, directions · hidden_size], h (as h0, after the last step)
    Parameters, for each layer k and direction ("" or "_reverse"), gates in PyTorch's order reset, update, new:
        weight_ih_lk [3 · hidden_size, features], weight_hh_lk [3 · hidden_size, hidden_size],
        bias_ih_lk, bias_hh_lk [3 · hidden_size]
    States: seed, uint32 [2], if dropout is not 0

    Source: ONNX GRU with linear_before_reset, aten.gru; Cho et al. 2014.
    """

    gates: ClassVar[tuple[int, ...]] = (1, 0, 2)  # update, reset, hidden

    def _settings(self) -> dict[str, Any]:
        return {"linear_before_reset": 1}


@dataclass(frozen=True)
class RNN(_Stack):
    """A stack of simple recurrent layers.

    Arguments: those of LSTM, without proj_size, and
        nonlinearity: tanh | relu.

    Inputs: x [time, batch, input_size], and optionally h0 [num_layers · directions, batch, hidden_size]
    Returns: y [time, batch, directions · hidden_size], h (as h0, after the last step)
    Parameters, for each layer k and direction ("" or "_reverse"):
        weight_ih_lk [hidden_size, features], weight_hh_lk [hidden_size, hidden_size], bias_ih_lk, bias_hh_lk
        [hidden_size]
    States: seed, uint32 [2], if dropout is not 0

    Source: ONNX RNN, aten.rnn_tanh, aten.rnn_relu; Elman 1990.
    """

    nonlinearity: str = "tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nonlinearity not in ("tanh", "relu"):
            raise InvalidModelError(f"RNN: nonlinearity must be tanh or relu, not {self.nonlinearity!r}")

    def _settings(self) -> dict[str, Any]:
        return {"activations": (self.nonlinearity.capitalize(),) * len(self.directions)}
