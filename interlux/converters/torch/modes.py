"""Training and evaluation: how the layers of two exports of one module pair up.

A module is exported twice, in training and in evaluation. Where both programs are the same but for training flags and
dropout probabilities, one graph serves both, and each flag becomes a mode: follow, always or never. Where the module's own
code branches on `self.training`, both graphs are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ...ir.layer import ALWAYS, FOLLOW, NEVER

# position of the training flag and of the dropout probability among the arguments of an ATen operator
FLAGS = {"aten.batch_norm.default": 5, "aten.dropout.default": 2, "aten.feature_dropout.default": 2, "aten.lstm.input": 6}
PROBABILITIES = {"aten.dropout.default": 1, "aten.scaled_dot_product_attention.default": 4, "aten.lstm.input": 5}
_ATTENTION = "aten.scaled_dot_product_attention.default"


def target_name(node: torch.fx.Node) -> str:
    return str(node.target)


def argument(node: torch.fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def counts_batches(node: torch.fx.Node) -> bool:
    """Whether a node is nn.BatchNorm's own counting, which the layer does."""
    if target_name(node) not in ("aten.add_.Tensor", "aten.add_.Scalar", "aten.add.Tensor"):
        return False
    counter = node.args[0]
    return isinstance(counter, torch.fx.Node) and counter.op == "placeholder" and counter.name.endswith("num_batches_tracked")


def _steps(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    return [n for n in graph.nodes if n.op == "call_function" and not counts_batches(n)]


def _same(a: torch.fx.Graph, b: torch.fx.Graph) -> bool:
    """Whether two graphs do the same, training flags and dropout probabilities aside."""
    steps_a, steps_b = _steps(a), _steps(b)
    if len(steps_a) != len(steps_b):
        return False
    number = {n: i for graph_steps in (steps_a, steps_b) for i, n in enumerate(graph_steps)}

    def key(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return (value.op, number.get(value, value.name))
        if isinstance(value, list | tuple):
            return tuple(key(v) for v in value)
        return (type(value).__name__, str(value))

    for x, y in zip(steps_a, steps_b, strict=True):
        if x.target != y.target or len(x.args) != len(y.args):
            return False
        name = target_name(x)
        masked = {FLAGS.get(name), PROBABILITIES.get(name)}
        if any(i not in masked and key(p) != key(q) for i, (p, q) in enumerate(zip(x.args, y.args, strict=True))):
            return False
        kwargs_x, kwargs_y = ({k: key(v) for k, v in n.kwargs.items() if k != "dropout_p"} for n in (x, y))
        if kwargs_x != kwargs_y:
            return False
    outs = [next(n for n in graph.nodes if n.op == "output") for graph in (a, b)]
    return key(outs[0].args) == key(outs[1].args)


@dataclass
class SingleMode:
    """The modes of one exported program on its own.

    Arguments:
        follows: the flag of layers that follow the `train` keyword; None where the program serves one mode only, so that
            every layer does what it was exported to do.
    """

    follows: bool | None

    def mode(self, node: torch.fx.Node, training: bool) -> str:
        if self.follows is not None and training == self.follows:
            return FOLLOW
        return ALWAYS if training else NEVER

    def dropout_rate(self, node: torch.fx.Node, probability: float) -> tuple[float, str]:
        return (probability, FOLLOW if self.follows is not None else ALWAYS) if probability else (0.0, NEVER)


@dataclass
class PairedModes:
    """The modes of a training program, beside the evaluation program that does the same."""

    evaluation: dict[torch.fx.Node, torch.fx.Node] = field(default_factory=dict)

    @classmethod
    def of(cls, training: torch.fx.Graph, evaluation: torch.fx.Graph) -> PairedModes | None:
        """The pairing, None if the programs differ."""
        if not _same(training, evaluation):
            return None
        return cls(dict(zip(_steps(training), _steps(evaluation), strict=True)))

    def mode(self, node: torch.fx.Node, training: bool) -> str:
        other = argument(self.evaluation[node], FLAGS[target_name(node)], "training", False)
        return {(True, False): FOLLOW, (True, True): ALWAYS, (False, False): NEVER}.get((training, bool(other)), NEVER)

    def dropout_rate(self, node: torch.fx.Node, probability: float) -> tuple[float, str]:
        other = argument(self.evaluation[node], PROBABILITIES[_ATTENTION], "dropout_p", 0.0)
        if not probability:
            return 0.0, NEVER
        return probability, ALWAYS if other else FOLLOW


def single(graph: torch.fx.Graph) -> SingleMode:
    """The modes of a program that comes alone: the majority of its kind follows. A program with any layer in training
    was exported in training."""
    flags = [
        bool(argument(n, FLAGS[target_name(n)], "training", False))
        for n in graph.nodes
        if n.op == "call_function" and target_name(n) in FLAGS
    ]
    return SingleMode(any(flags))
