"""Control flow: layers whose parts are graphs.

The graphs hold no parameters: what they use of the surrounding graph, weights included, comes in as captured values
behind their own inputs. How they are executed is each interpreter's own (`Interpreter.control`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidModelError
from ..graph import Graph
from ..interpreter import Interpreter, Value
from ..layer import Layer


@dataclass(frozen=True)
class Control(Layer):
    """Base of the layers that execute graphs."""

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        outputs = op.control(self, inputs, train=train)
        return (outputs[0] if len(outputs) == 1 else outputs), states

    def graphs(self) -> tuple[tuple[str, Graph], ...]:
        """The graphs inside, by the names of ONNX's attributes."""
        raise NotImplementedError

    @property
    def own_inputs(self) -> int:
        """How many inputs the layer has before the captured values."""
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        """How many outputs the layer has."""
        raise NotImplementedError


@dataclass(frozen=True)
class If(Control):
    """One of two graphs, by a condition.

    Arguments:
        then_branch, else_branch: graphs with the same inputs (the captured values) and as many outputs.

    Inputs: condition, bool with one element; the captured values
    Returns: the outputs of the branch that was taken

    Source: ONNX If.
    """

    then_branch: Graph
    else_branch: Graph

    def __post_init__(self) -> None:
        if len(self.then_branch.outputs) != len(self.else_branch.outputs):
            raise InvalidModelError("the branches of an If must have the same number of outputs")
        if len(self.then_branch.inputs) != len(self.else_branch.inputs):
            raise InvalidModelError("the branches of an If must have the same number of inputs")

    def graphs(self) -> tuple[tuple[str, Graph], ...]:
        return ("then_branch", self.then_branch), ("else_branch", self.else_branch)

    @property
    def own_inputs(self) -> int:
        return 1

    @property
    def outputs(self) -> int:
        return len(self.then_branch.outputs)


@dataclass(frozen=True)
class Loop(Control):
    """A graph executed again and again, as long as a condition holds and at most a number of times.

    Arguments:
        body: takes the number of the iteration (int64 scalar), the condition, the carried values and the captured
            ones; returns the next condition, the carried values, and one element of each scanned output.
        carried: how many values are carried from one iteration to the next.

    Inputs: number of iterations (int64, one element) or None, condition (bool) or None, the carried values' initial
        values, the captured values
    Returns: the carried values after the last iteration; the scanned outputs, stacked along a new first axis

    Source: ONNX Loop.
    """

    body: Graph
    carried: int

    def __post_init__(self) -> None:
        if len(self.body.outputs) < 1 + self.carried or len(self.body.inputs) < 2 + self.carried:
            raise InvalidModelError("the body of a Loop lacks inputs or outputs for its condition and carried values")

    def graphs(self) -> tuple[tuple[str, Graph], ...]:
        return (("body", self.body),)

    @property
    def own_inputs(self) -> int:
        return 2 + self.carried

    @property
    def outputs(self) -> int:
        return len(self.body.outputs) - 1


@dataclass(frozen=True)
class Scan(Control):
    """A graph executed for every slice of its scanned inputs.

    Arguments:
        body: takes the carried values, a slice of each scanned input, and the captured values; returns the carried
            values and a slice of each scanned output.
        scanned: how many inputs are scanned.
        input_axes, output_axes: along which axis, for each scanned input and output; empty for 0.
        input_directions, output_directions: 1 where it is scanned, or stacked, from the end; empty for 0.

    Inputs: initial values of the carried values, the scanned inputs, the captured values
    Returns: the carried values after the last slice, the scanned outputs

    Source: ONNX Scan (opset 9).
    """

    body: Graph
    scanned: int
    input_axes: tuple[int, ...] = ()
    output_axes: tuple[int, ...] = ()
    input_directions: tuple[int, ...] = ()
    output_directions: tuple[int, ...] = ()
    captured: int = 0

    @property
    def carried(self) -> int:
        return len(self.body.inputs) - self.scanned - self.captured

    def __post_init__(self) -> None:
        if self.scanned < 1 or self.carried < 0 or len(self.body.outputs) < self.carried:
            raise InvalidModelError("the body of a Scan lacks inputs or outputs for its carried and scanned values")

    def graphs(self) -> tuple[tuple[str, Graph], ...]:
        return (("body", self.body),)

    @property
    def own_inputs(self) -> int:
        return self.carried + self.scanned

    @property
    def outputs(self) -> int:
        return len(self.body.outputs)


@dataclass(frozen=True)
class Gradient(Control):
    """The gradient of the sum of a graph's one output.

    Arguments:
        body: takes the values of both kinds and the captured ones.
        wrt: with respect to how many of the first inputs.
        given: how many inputs there are before the captured values.

    Inputs: floating-point arrays, the captured values
    Returns: the gradient with respect to each of the first `wrt` inputs, in its shape and dtype

    Source: ONNX Gradient (ai.onnx.preview.training).
    """

    body: Graph
    wrt: int
    given: int

    def __post_init__(self) -> None:
        if len(self.body.outputs) != 1 or not 1 <= self.wrt <= self.given <= len(self.body.inputs):
            raise InvalidModelError("the graph of a Gradient needs one output, and the inputs that it is taken for")

    def graphs(self) -> tuple[tuple[str, Graph], ...]:
        return (("body", self.body),)

    @property
    def own_inputs(self) -> int:
        return self.given

    @property
    def outputs(self) -> int:
        return self.wrt


@dataclass(frozen=True)
class SequenceMap(Control):
    """A graph executed for every element of a sequence.

    Arguments:
        body: takes an element of each sequence, the other inputs as they are, and the captured values; returns an
            element of each resulting sequence.
        sequences: for every input but the captured ones, whether it is a sequence.

    Inputs: sequences and other values, the captured values
    Returns: sequences

    Source: ONNX SequenceMap.
    """

    body: Graph
    sequences: tuple[bool, ...]

    def __post_init__(self) -> None:
        if not self.sequences or not self.sequences[0]:
            raise InvalidModelError("the first input of a SequenceMap must be a sequence")

    def graphs(self) -> tuple[tuple[str, Graph], ...]:
        return (("body", self.body),)

    @property
    def own_inputs(self) -> int:
        return len(self.sequences)

    @property
    def outputs(self) -> int:
        return len(self.body.outputs)
