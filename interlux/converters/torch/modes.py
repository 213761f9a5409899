"""Training and evaluation: how the layers of two exports of one module pair up.

A module is exported twice, in training and in evaluation. Where both programs are the same but for training flags and
dropout probabilities, one graph serves both, and each flag becomes a mode: follow, always or never. Where the module's
own code branches on `self.training`, both graphs are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ...ir.layer import ALWAYS, FOLLOW, NEVER

# the training flag and the dropout probability among the arguments of an ATen operator
_DROPOUTS = [
    f"aten.{name}{in_place}.default"
    for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
    for in_place in ("", "_")
]
_RECURRENT = ["aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input"]
FLAGS = {
    "aten.batch_norm.default": "training",
    "aten.instance_norm.default": "use_input_stats",
    **dict.fromkeys([*_DROPOUTS, *_RECURRENT], "train"),
}
PROBABILITIES = {
    **dict.fromkeys(_DROPOUTS, "p"),
    **dict.fromkeys(_RECURRENT, "dropout"),
    "aten.scaled_dot_product_attention.default": "dropout_p",
}
# their flags say nothing where there are no running statistics: the input's own are then used in both modes
_NORMALISATIONS = ("aten.batch_norm.default", "aten.instance_norm.default")


def target_name(node: torch.fx.Node) -> str:
    return str(node.target)


def arguments(node: torch.fx.Node) -> dict[str, Any]:
    """All arguments of an operator by name, those at their defaults too; by position where it has no schema."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {**{str(i): a for i, a in enumerate(node.args)}, **node.kwargs}
    given = {formal.name: formal.default_value for formal in schema.arguments if formal.has_default_value()}
    given |= dict(zip((formal.name for formal in schema.arguments), node.args, strict=False))
    return given | node.kwargs


def counts_batches(node: torch.fx.Node) -> bool:
    """Whether a node is nn.BatchNorm's own counting, which the layer does."""
    if target_name(node) not in ("aten.add_.Tensor", "aten.add_.Scalar", "aten.add.Tensor"):
        return False
    counter = node.args[0]
    while isinstance(counter, torch.fx.Node) and counter.op == "call_function" and counts_batches(counter):
        counter = counter.args[0]  # a module that is called again counts on
    if not isinstance(counter, torch.fx.Node) or counter.op != "placeholder":
        return False
    return counter.name in _counters(node.graph)


_COUNTERS: WeakKeyDictionary[torch.fx.Graph, set[str]] = WeakKeyDictionary()


def _counters(graph: torch.fx.Graph) -> set[str]:
    """The names under which a graph knows the counters of its batch normalisations."""
    if graph not in _COUNTERS:
        means = [
            n.args[3]
            for n in graph.nodes
            if target_name(n) == "aten.batch_norm.default" and len(n.args) > 3 and n.args[3]
        ]
        _COUNTERS[graph] = {
            m.name.replace("running_mean", "num_batches_tracked") for m in means if isinstance(m, torch.fx.Node)
        }
    return _COUNTERS[graph]


def all_nodes(graph: torch.fx.Graph) -> Iterator[torch.fx.Node]:
    """The nodes of a graph, and of the graphs inside it (of higher-order operators) where they are named."""
    for node in graph.nodes:
        inner = getattr(graph.owning_module, str(node.target), None) if node.op == "get_attr" else None
        if isinstance(inner, torch.fx.GraphModule):
            yield from all_nodes(inner.graph)
        yield node


def _steps(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    return [n for n in all_nodes(graph) if n.op == "call_function" and not counts_batches(n)]


# graphs that are executed as if they stood outside
_INLINED = ("wrap", "invoke_subgraph", "tag_activation_checkpoint", "hints_wrapper")


def _in_branches(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """The nodes inside control flow, where no layer can follow the mode."""
    found: set[torch.fx.Node] = set()
    for node in graph.nodes:
        for argument in node.args if node.op == "call_function" else ():
            if not isinstance(argument, torch.fx.Node) or argument.op != "get_attr":
                continue
            inner = getattr(graph.owning_module, str(argument.target), None)
            if isinstance(inner, torch.fx.GraphModule):
                inlined = target_name(node).startswith(_INLINED)
                found.update(_in_branches(inner.graph) if inlined else all_nodes(inner.graph))
    return found


def _same(a: torch.fx.Graph, b: torch.fx.Graph) -> bool:
    """Whether two graphs do the same, training flags and dropout probabilities aside."""
    steps_a, steps_b = _steps(a), _steps(b)
    if len(steps_a) != len(steps_b):
        return False
    number = {n: i for graph_steps in (steps_a, steps_b) for i, n in enumerate(graph_steps)}
    inside = _in_branches(a)

    def key(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return (value.op, number.get(value, value.name))
        if isinstance(value, list | tuple):
            return tuple(key(v) for v in value)
        return (type(value).__name__, str(value))

    for x, y in zip(steps_a, steps_b, strict=True):
        if x.target != y.target:
            return False
        masked = {FLAGS.get(target_name(x)), PROBABILITIES.get(target_name(x))}
        of_x, of_y = ({k: key(v) for k, v in arguments(n).items() if k not in masked} for n in (x, y))
        if of_x != of_y:
            return False
        flag = FLAGS.get(target_name(x))
        if flag is not None and not arguments(x)[flag] and arguments(y)[flag]:
            return False  # active in evaluation only: no mode says that
        if x in inside and any(name and arguments(x)[name] != arguments(y)[name] for name in masked):
            return False
        chance = PROBABILITIES.get(target_name(x))
        if chance is not None and arguments(y)[chance] not in (0, arguments(x)[chance]):
            return False  # active in evaluation with another probability
    outs = [[key(n.args) for n in all_nodes(graph) if n.op == "output"] for graph in (a, b)]
    return outs[0] == outs[1]


@dataclass
class SingleMode:
    """The modes of one exported program on its own.

    Arguments:
        follows: the flag of layers that follow the `train` keyword; None where the program serves one mode only, so
            that
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
        other = arguments(self.evaluation[node])[FLAGS[target_name(node)]]
        return {(True, False): FOLLOW, (True, True): ALWAYS, (False, False): NEVER}.get((training, bool(other)), NEVER)

    def dropout_rate(self, node: torch.fx.Node, probability: float) -> tuple[float, str]:
        other = arguments(self.evaluation[node])[PROBABILITIES[target_name(node)]]
        if not probability:
            return 0.0, NEVER
        return probability, ALWAYS if other else FOLLOW


def single(graph: torch.fx.Graph) -> SingleMode:
    """The modes of a program that comes alone. If all its layers were exported in one mode they follow `train` again;
    of a mixture nobody can say which were frozen, so that each stays as it was."""
    flags = set()
    for node in all_nodes(graph):
        name = target_name(node)
        if node.op != "call_function":
            continue
        if name in FLAGS and not (name in _NORMALISATIONS and arguments(node)["running_mean"] is None):
            flags.add(bool(arguments(node)[FLAGS[name]]))
        elif name in PROBABILITIES and arguments(node)[PROBABILITIES[name]]:
            flags.add(True)
    return SingleMode(None if len(flags) == 2 else True in flags)
