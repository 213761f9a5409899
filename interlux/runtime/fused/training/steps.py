"""Steps of a training program beside those of inference: their weights are parts of the vector of all parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..steps import Instruction, Ints, Step
from ..tensors import Buffer, Tensor


@dataclass(eq=False)
class Weights(Buffer):
    """The vector of all parameters: the same for all samples."""


@dataclass(eq=False)
class Linear(Step):
    """activation(x · weightᵀ + bias). operand: x [rows, in]; shape [rows, out].

    Arguments:
        weight: of the parameters [out, in].
        bias: of the parameters [out], if there is one.
        activation: what is applied to each result; its derivative follows from its value.
    """

    weight: Tensor
    bias: Tensor | None = None
    activation: Instruction | None = None


@dataclass(eq=False)
class Convolution(Step):
    """activation(convolution + bias). operand: x [in, *spatial], padded already; shape [out, *spatial'].

    Arguments:
        weight: of the parameters [out, in / groups, *kernel].
        bias: of the parameters [out], if there is one.
    """

    weight: Tensor
    bias: Tensor | None
    strides: Ints
    dilations: Ints
    groups: int
    activation: Instruction | None = None


@dataclass(eq=False)
class Normalization(Step):
    """(x - mean) / √(variance + epsilon) · weight + bias over the last axis. operand: x [groups, n]; shape [groups, n].

    Arguments:
        weight, bias: of the parameters [groups, n], if there are any.
        centred: whether the mean is subtracted.
    """

    weight: Tensor | None
    bias: Tensor | None
    epsilon: float
    centred: bool = True


@dataclass(eq=False)
class BatchNormalization(Step):
    """Normalisation of each channel by the statistics of the batch. operand: x [channels, n]; the same shape.

    Arguments:
        weight, bias: of the parameters [channels], if there are any.
        momentum: weight of the new statistics in the running ones.
        running: where the running mean and variance lie among the statistics; None if they are not kept.
        number: where the batch's own begin among the statistics, and its sums among the sums.
    """

    weight: Tensor | None
    bias: Tensor | None
    epsilon: float
    momentum: float
    running: tuple[int, int] | None
    number: tuple[int, int]


@dataclass(eq=False)
class Rows(Step):
    """Rows of a table. operands: row numbers [count], then the table [rows, *rest], of the parameters or made from
    them; shape [count, *rest].

    Arguments:
        still: the row that takes no gradient, if there is one.
    """

    still: int | None


@dataclass(frozen=True, eq=False)
class RowNumbers:
    """What must hold of an integer input.

    Arguments:
        input: which one.
        features: which elements of a sample are row numbers of a table.
        low, high: between which they lie.
    """

    input: int
    features: np.ndarray
    low: int
    high: int


@dataclass(eq=False)
class Draws(Step):
    """Elements zeroed at random, the others scaled. operand: x [n]; shape [n].

    Arguments:
        probability: of an element to be zeroed.
        number: of this step among those that draw.
        shared: how many neighbouring elements share a draw.
    """

    probability: float
    number: int
    shared: int = 1


@dataclass(eq=False)
class Tape:
    """A model in training as steps.

    Arguments:
        dtype: of all floating-point values.
        inputs: the model's inputs as buffers.
        output: the model's output for one sample.
        steps: in the order of computation.
        weights: the vector of parameters.
        trained: how many numbers of it are trained; the rest is constant.
        values: float64 or the dtype itself: its initial contents.
        places: (path, shape, offset) of each trained parameter.
        statistics: initial contents of the batch statistics, and (path, shape, offset) of the running ones.
        sums: how many numbers are summed over the batch beside the loss.
        counters: paths of states that count batches.
        stopped: buffers through which no gradient goes.
        numbers: what must hold of integer inputs.
    """

    dtype: np.dtype[Any]
    inputs: list[Buffer]
    output: Tensor
    steps: list[Step]
    weights: Weights
    trained: int
    values: np.ndarray
    places: list[tuple[tuple[str, ...], tuple[int, ...], int]]
    statistics: np.ndarray
    running: list[tuple[tuple[str, ...], tuple[int, ...], int]] = field(default_factory=list)
    sums: int = 0
    counters: list[tuple[str, ...]] = field(default_factory=list)
    stopped: set[Buffer] = field(default_factory=set)
    numbers: list[RowNumbers] = field(default_factory=list)
