"""Recurrent stacks and single steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ....ir import layers as ir
from ....ir.errors import UnsupportedError
from ...builder import Value
from ..builder import TorchBuilder
from .layers import dropout_of
from .registry import aten


def _initial(op: TorchBuilder, values: Sequence[Value]) -> list[Value]:
    """The initial states, none if they are the zeros that torch makes where none are given."""
    nodes = op.fx_node.args[1]
    given = list(nodes) if isinstance(nodes, list | tuple) else [nodes]
    if all(isinstance(n, torch.fx.Node) and str(n.target) == "aten.zeros.default" for n in given):
        return []
    return list(values)


def _size_of(op: TorchBuilder, x: Value, what: str) -> int:
    size = (x.shape or (None,))[-1]
    if not isinstance(size, int):
        raise UnsupportedError(f"{op.operator} with an unknown number of {what}{op.where()}")
    return size


def _run(
    op: TorchBuilder,
    kind: type[Any],
    x: Value,
    initial: Sequence[Value],
    weights: Sequence[Value],
    settings: Sequence[Any],
    **more: Any,
) -> tuple[Value, ...]:
    """A stack with torch's flat list of weights.

    Arguments:
        settings: has_biases, num_layers, dropout, train, bidirectional, batch_first.
        more: further fields of the layer.
    """
    has_biases, num_layers, probability, training, bidirectional, batch_first = settings
    features, rows = _size_of(op, x, "features"), (weights[0].shape or (None,))[0]
    if not isinstance(rows, int):
        raise UnsupportedError(f"{op.operator} with weights of unknown shape{op.where()}")
    rate, mode = dropout_of(op, probability, training)
    hidden = rows // len(kind.gates)
    layer = kind(features, hidden, num_layers, bidirectional, batch_first, has_biases, rate, mode, **more)
    params = dict(zip(layer.param_shapes(), weights, strict=True))
    start = _initial(op, initial)
    if not layer.drops and any(w.path is None for w in weights):  # computed weights, such as normalised ones
        read = {slot: op.read(value) for slot, value in params.items()}
        result: tuple[Value, ...] = layer.forward(op, read, {}, x, *start, train=False)[0]
        return result
    states = {"seed": op.seed} if layer.drops else None
    result = op.add(layer, x, *start, params=params, states=states, outputs=1 + kind.state_count)
    return result


@aten("lstm.input")
def lstm(
    op: TorchBuilder, x: Value, initial: Sequence[Value], weights: Sequence[Value], *settings: Any
) -> tuple[Value, ...]:
    has_biases, num_layers, _, _, bidirectional, _ = settings
    arrays = len(weights) // (num_layers * (2 if bidirectional else 1))
    projected = arrays > (4 if has_biases else 2)
    size = _size_of(op, weights[1], "projected features") if projected else 0
    return _run(op, ir.LSTM, x, initial, weights, settings, proj_size=size)


@aten("gru.input")
def gru(op: TorchBuilder, x: Value, initial: Value, weights: Sequence[Value], *settings: Any) -> tuple[Value, ...]:
    return _run(op, ir.GRU, x, [initial], weights, settings)


@aten("rnn_tanh.input", "rnn_relu.input")
def rnn(op: TorchBuilder, x: Value, initial: Value, weights: Sequence[Value], *settings: Any) -> tuple[Value, ...]:
    nonlinearity = "relu" if "relu" in op.operator else "tanh"
    return _run(op, ir.RNN, x, [initial], weights, settings, nonlinearity=nonlinearity)


@aten("lstm.data", "gru.data", "rnn_tanh.data", "rnn_relu.data", "_pack_padded_sequence", "_pad_packed_sequence")
def packed(op: TorchBuilder, *arguments: Any) -> Value:
    raise UnsupportedError(
        f"packed sequences, whose sizes depend on the data{op.where()}; give the layer the padded sequences"
    )


# --- single steps


def _linear(op: TorchBuilder, x: Value, weight: Value, bias: Value | None) -> Value:
    rows, features = (int(s) for s in weight.shape or () if isinstance(s, int))
    return op.add(ir.Dense(features, rows, bias is not None), x, params={"weight": weight, "bias": bias})


def _split(op: TorchBuilder, gates: Value, parts: int) -> tuple[Value, ...]:
    size = op.result if isinstance(op.result, torch.Tensor) else op.result[0]
    result: tuple[Value, ...] = op.Split(gates, op.ints(*(size.shape[-1],) * parts), axis=-1, outputs=parts)
    return result


@aten("rnn_tanh_cell", "rnn_relu_cell")
def rnn_cell(
    op: TorchBuilder, x: Value, h: Value, w: Value, r: Value, w_bias: Value | None = None, r_bias: Value | None = None
) -> Value:
    gates = op.Add(_linear(op, x, w, w_bias), _linear(op, h, r, r_bias))
    return op.Relu(gates) if "relu" in op.operator else op.Tanh(gates)


@aten("gru_cell")
def gru_cell(
    op: TorchBuilder, x: Value, h: Value, w: Value, r: Value, w_bias: Value | None = None, r_bias: Value | None = None
) -> Value:
    of_x, of_h = _split(op, _linear(op, x, w, w_bias), 3), _split(op, _linear(op, h, r, r_bias), 3)
    reset, update = (op.Sigmoid(op.Add(a, b)) for a, b in zip(of_x[:2], of_h[:2], strict=True))
    new = op.Tanh(op.Add(of_x[2], op.Mul(reset, of_h[2])))
    return op.Add(new, op.Mul(update, op.Sub(h, new)))


@aten("lstm_cell")
def lstm_cell(
    op: TorchBuilder,
    x: Value,
    states: Sequence[Value],
    w: Value,
    r: Value,
    w_bias: Value | None = None,
    r_bias: Value | None = None,
) -> tuple[Value, Value]:
    h, c = states
    i, f, g, o = _split(op, op.Add(_linear(op, x, w, w_bias), _linear(op, h, r, r_bias)), 4)
    cell = op.Add(op.Mul(op.Sigmoid(f), c), op.Mul(op.Sigmoid(i), op.Tanh(g)))
    return op.Mul(op.Sigmoid(o), op.Tanh(cell)), cell
