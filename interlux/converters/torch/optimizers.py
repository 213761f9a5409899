"""The state of torch.optim's optimisers, read and written by the names of the module's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...ir import trees
from ...ir.errors import InvalidModelError, UnsupportedError
from ...ir.graph import ByMode, Graph, graph_of
from ...ir.layers import Operator
from ...ir.model import Model
from ...ir.optimizer import Optimizer, slots_of
from ...ir.trees import Path
from .arrays import real_view, to_numpy, to_torch

StateDict = Mapping[str, Any]
Names = Sequence[Sequence[str]] | None  # of the parameters, group by group

KINDS = {
    torch.optim.SGD: "sgd",
    torch.optim.Adam: "adam",
    torch.optim.AdamW: "adamw",
    torch.optim.RMSprop: "rmsprop",
}
_REQUIRED = object()
# the hyperparameters with what PyTorch takes for those that an old checkpoint lacks
_OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {
        **dict.fromkeys(("lr", "momentum", "dampening", "weight_decay"), _REQUIRED),
        **dict.fromkeys(("nesterov", "maximize"), False),
    },
    "adam": {
        **dict.fromkeys(("lr", "betas", "eps", "weight_decay"), _REQUIRED),
        **dict.fromkeys(("amsgrad", "maximize", "decoupled_weight_decay"), False),
    },
    "rmsprop": {
        **dict.fromkeys(("lr", "alpha", "eps", "weight_decay"), _REQUIRED),
        **dict.fromkeys(("momentum", "centered", "maximize"), False),
    },
}
_HOW_IT_RUNS = {"foreach", "fused", "capturable", "differentiable"}  # not what it computes


def read_optimizer(
    optimizer: torch.optim.Optimizer | StateDict,
    module: torch.nn.Module,
    model: Model,
    kind: str | None = None,
    parameter_names: Names = None,
) -> Optimizer:
    """An optimiser of PyTorch, or its state_dict, by the paths of the model. The arguments are those of
    `interlux.api.optimizer_from_torch`."""
    kind, state = _kind(optimizer, kind), _state_dict(optimizer)
    family = "adam" if kind == "adamw" else kind
    groups = tuple(_options(kind, i, group) for i, group in enumerate(state["param_groups"]))
    names = _names(optimizer, state, module, parameter_names)
    parameters, used = dict(module.named_parameters(remove_duplicate=False)), _used(model)
    group_of: dict[Path, int] = {}
    steps: dict[Path, int] = {}
    slots: dict[Path, dict[str, np.ndarray]] = {}
    for number, (group, members) in enumerate(zip(state["param_groups"], names, strict=True)):
        for index, name in zip(group["params"], members, strict=True):
            path = _path(name, model)
            if not _is_trained(name, path, parameters, model) or path not in used:
                continue
            group_of[path] = number
            entry = {key: value for key, value in state["state"].get(index, {}).items() if value is not None}
            wanted = slots_of(family, groups[number])
            if not entry or (family == "sgd" and "momentum_buffer" not in entry):
                steps[path] = 0
                continue
            missing = [key for key in (*wanted, *(() if family == "sgd" else ("step",))) if key not in entry]
            if missing:
                raise InvalidModelError(
                    f"the optimizer's state of {name!r} has no {missing[0]!r}, so PyTorch could not continue either: "
                    "was an option changed after the first step?"
                )
            steps[path] = 1 if family == "sgd" else int(_number(entry["step"]))
            slots[path] = {key: _array(entry[key], key, name, model.array(path)) for key in wanted}
    return Optimizer(family, groups, group_of, steps, slots)


def write_optimizer(
    group_of: Mapping[Path, int],
    steps: Mapping[Path, int],
    slots: Mapping[Path, Mapping[str, Any]],
    optimizer: torch.optim.Optimizer | StateDict,
    module: torch.nn.Module,
    model: Model,
    kind: str | None = None,
    parameter_names: Names = None,
) -> dict[str, Any]:
    """The state_dict of an optimiser with other steps and slots (as in `Optimizer`; arrays of numpy or JAX). What they
    don't have, the parameters that are not trained and everything in the groups, is as the optimiser has it."""
    kind, state = _kind(optimizer, kind), _state_dict(optimizer)
    names = _names(optimizer, state, module, parameter_names)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    left = dict(group_of)
    entries = {key: _copied(entry) for key, entry in state["state"].items()}
    for number, (group, members) in enumerate(zip(state["param_groups"], names, strict=True)):
        wanted = slots_of("adam" if kind == "adamw" else kind, _options(kind, number, group))
        for index, name in zip(group["params"], members, strict=True):
            path = _path(name, model)
            if (found := left.pop(path, None)) is None:
                continue
            if found != number:
                raise InvalidModelError(
                    f"{name!r} is in group {number} of the optimizer, in group {found} of opt_state"
                )
            if set(slots[path]) != set(wanted):
                raise InvalidModelError(
                    f"opt_state keeps {', '.join(slots[path]) or 'nothing'} for {name!r}, the optimizer with its "
                    f"present options {', '.join(wanted) or 'nothing'}; set the options of the conversion"
                )
            if steps[path] == 0:
                entries.pop(index, None)
                continue
            entry = entries.pop(index, {})
            made = {} if kind == "sgd" else {"step": _step(steps[path], entry.get("step"), group, parameters[name])}
            made |= {key: _tensor(slots[path][key], key, name, parameters[name]) for key in wanted}
            if entry | made:
                entries[index] = made | {key: value for key, value in entry.items() if key not in made}
    if left:
        raise InvalidModelError(f"opt_state has {trees.name_of(next(iter(left)))!r}, which is not in the optimizer")
    members = [index for group in state["param_groups"] for index in group["params"] if index in entries]
    return {
        **state,
        "state": {key: entries[key] for key in dict.fromkeys((*members, *entries))},
        "param_groups": [{**group, "params": list(group["params"])} for group in state["param_groups"]],
    }


# --- what the optimiser is


def _kind(optimizer: Any, given: str | None) -> str:
    known = ", ".join(KINDS.values())
    if given is not None and given not in KINDS.values():
        raise UnsupportedError(f"there is no kind of optimizer {given!r}; it can be one of {known}")
    if isinstance(optimizer, Mapping):
        if given is None:
            raise InvalidModelError(f"a state_dict does not say which optimizer it is of: give kind=, one of {known}")
        return given
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidModelError(f"a torch optimizer or its state_dict is needed, not {type(optimizer).__name__}")
    own = KINDS.get(type(optimizer))
    classes = ", ".join(c.__name__ for c in KINDS)
    if own is None and given is None:
        raise UnsupportedError(
            f"the optimizer is a {type(optimizer).__module__}.{type(optimizer).__qualname__}; supported are "
            f"torch.optim's {classes}"
            + (
                ", and their subclasses that step alike if you give kind="
                if isinstance(optimizer, tuple(KINDS))
                else ""
            )
        )
    if own is None and not isinstance(optimizer, tuple(c for c, k in KINDS.items() if k == given)):
        raise UnsupportedError(
            f"the optimizer is a {type(optimizer).__qualname__}, no {given}; supported are torch.optim's {classes}"
        )
    if own is not None and given not in (None, own):
        raise InvalidModelError(f"the optimizer is a {type(optimizer).__name__}, not kind={given!r}")
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise UnsupportedError(
            "the optimizer has step hooks, Python code that cannot be converted; remove them, or give its state_dict "
            "and kind= and do in JAX what they do"
        )
    kind = own or str(given)
    known_options = {*_OPTIONS["adam" if kind == "adamw" else kind], *_HOW_IT_RUNS}
    if own and (unknown := sorted(optimizer.defaults.keys() - known_options)):
        raise UnsupportedError(f"the option {unknown[0]!r} of {type(optimizer).__name__} is not known here")
    return kind


def _state_dict(optimizer: Any) -> StateDict:
    if isinstance(optimizer, torch.optim.Optimizer):
        return optimizer.state_dict()
    if not {"state", "param_groups"} <= optimizer.keys():
        raise InvalidModelError("a state_dict of an optimizer has 'state' and 'param_groups'; is it the module's?")
    return dict(optimizer)


def _options(kind: str, number: int, group: Mapping[str, Any]) -> dict[str, Any]:
    family = "adam" if kind == "adamw" else kind
    found = {key: group.get(key, default) for key, default in _OPTIONS[family].items()}
    missing = [key for key, value in found.items() if value is _REQUIRED]
    if missing:
        raise InvalidModelError(f"group {number} of the optimizer has no {missing[0]!r}: its kind is not {kind!r}")
    if kind == "adamw":
        found["decoupled_weight_decay"] = True
    return {key: value if isinstance(value, bool) else _number(value) for key, value in found.items()}


def _number(value: Any) -> Any:
    """A hyperparameter or step, perhaps a tensor of one element, as a Python number; pairs of them as tuples."""
    if isinstance(value, tuple | list):
        return tuple(map(_number, value))
    return float(value.item() if isinstance(value, torch.Tensor) else value)


# --- whose state it is


def _names(optimizer: Any, state: StateDict, module: torch.nn.Module, given: Names) -> list[list[str]]:
    """The names of the parameters, group by group, in the order of the optimiser."""
    groups = state["param_groups"]
    if isinstance(optimizer, torch.optim.Optimizer):
        known: dict[int, str] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            known.setdefault(id(parameter), name)
        names = []
        for number, group in enumerate(optimizer.param_groups):
            strange = [tuple(p.shape) for p in group["params"] if id(p) not in known]
            if strange:
                raise InvalidModelError(
                    f"group {number} of the optimizer holds a parameter of shape {strange[0]} that is not the module's"
                )
            names.append([known[id(p)] for p in group["params"]])
        return names
    if given is None and all("param_names" in group for group in groups):
        given = [group["param_names"] for group in groups]
    if given is None and len(groups) == 1:
        every = list(module.named_parameters())
        trained = [(name, p) for name, p in every if p.requires_grad]
        fitting = next((found for found in (every, trained) if len(found) == len(groups[0]["params"])), None)
        given = None if fitting is None else [[name for name, _ in fitting]]
    if given is None:
        raise InvalidModelError(
            "the state_dict does not name its parameters: give parameter_names=, a list of names for each group, or "
            "load it into an optimizer and give that"
        )
    sizes, wanted = [len(part) for part in given], [len(group["params"]) for group in groups]
    if sizes != wanted:
        raise InvalidModelError(f"names for groups of {sizes} parameters, the optimizer has groups of {wanted}")
    known_names = dict(module.named_parameters(remove_duplicate=False))
    unknown = [name for part in given for name in part if name not in known_names]
    if unknown:
        raise InvalidModelError(f"the module has no parameter {unknown[0]!r}")
    return [list(part) for part in given]


def _path(name: str, model: Model) -> Path:
    path = trees.path_of(name)
    return model.aliases.get(path, path)


def _is_trained(name: str, path: Path, parameters: Mapping[str, torch.nn.Parameter], model: Model) -> bool:
    """Whether PyTorch would update a parameter. Raises where JAX could not do the same."""
    parameter, array = parameters[name], model.array(path)
    if array is None:
        raise InvalidModelError(f"the model has no array {name!r}; was it imported from this module?")
    shape = tuple(real_view(parameter).shape)
    if tuple(array.shape) != shape:
        raise InvalidModelError(f"{name!r} has shape {shape}, in the model {tuple(array.shape)}")
    if not parameter.requires_grad:
        return False
    if trees.find(model.params, path) is None:
        raise InvalidModelError(f"{name!r} requires a gradient now, but did not at the import: import the module again")
    same = [path, *(alias for alias, target in model.aliases.items() if target == path)]
    other = next((key for key in map(trees.name_of, same) if parameters.get(key) is not parameter), None)
    if other is not None:
        raise UnsupportedError(
            f"{name!r} and {other!r} are two tensors in one memory, which have gradients of their own in PyTorch but "
            "one in JAX; make them the same nn.Parameter"
        )
    return True


def _used(model: Model) -> set[Path]:
    """The parameters from which a gradient path leads to an output in training: PyTorch gives the others no gradient
    at all, and so no weight decay, where JAX gives zeros."""
    layer = model.layer.training if isinstance(model.layer, ByMode) else model.layer
    graph = layer if isinstance(layer, Graph) else graph_of(model.layer)
    if graph is None:
        return {path for path, _ in trees.leaves(model.params)}
    live, used = set(graph.outputs), set[Path]()
    for node in reversed(graph.nodes):
        made = [output for output in node.outputs if output in live and _is_float(graph, output)]
        operator = node.layer.op_type if isinstance(node.layer, Operator) else ""
        if made and operator != "StopGradient":
            inputs = node.inputs[1:] if operator == "StraightThrough" else node.inputs
            live.update(name for name in inputs if name is not None)
            used.update(path for _, path in (*node.params, *node.states))
    return used


def _is_float(graph: Graph, value: str) -> bool:
    info = graph.values.get(value)
    return info is None or "float" in info.dtype or "complex" in info.dtype


# --- its arrays


def _array(tensor: Any, key: str, name: str, parameter: Any) -> np.ndarray:
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        raise UnsupportedError(f"the {key} of {name!r} is no dense tensor")
    tensor = real_view(tensor)  # PyTorch's optimisers take complex parameters as pairs, too
    if tuple(tensor.shape) != tuple(parameter.shape):
        raise InvalidModelError(
            f"the {key} of {name!r} has shape {tuple(tensor.shape)}, not {tuple(parameter.shape)}; the parameters of "
            "the optimizer are in another order"
        )
    return to_numpy(tensor).astype(parameter.dtype)


def _tensor(array: Any, key: str, name: str, parameter: torch.nn.Parameter) -> torch.Tensor:
    """With the dtype, device and strides of the parameter, as PyTorch makes them."""
    made = torch.empty_like(parameter, requires_grad=False)
    pairs = real_view(made)
    if tuple(array.shape) != tuple(pairs.shape):
        raise InvalidModelError(f"the {key} of {name!r} has shape {tuple(array.shape)}, not {tuple(pairs.shape)}")
    pairs.copy_(to_torch(array))
    return made


def _step(count: int, before: Any, group: Mapping[str, Any], parameter: torch.nn.Parameter) -> Any:
    """The step count as PyTorch keeps it: a float tensor on the CPU, except where kernels read it."""
    if before is not None and not isinstance(before, torch.Tensor):
        return type(before)(count)  # a checkpoint of PyTorch before 1.12
    if before is not None:
        return torch.full_like(before, count)
    if group.get("capturable") or group.get("fused"):
        return torch.tensor(float(count), dtype=torch.float32, device=parameter.device)
    wide = torch.get_default_dtype() == torch.float64
    return torch.tensor(float(count), dtype=torch.float64 if wide else torch.float32)


def _copied(entry: Any) -> Any:
    if isinstance(entry, Mapping):
        return {key: _copied(value) for key, value in entry.items()}
    return entry.detach().clone() if isinstance(entry, torch.Tensor) else entry
