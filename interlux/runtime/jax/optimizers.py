"""PyTorch's optimisers as optax transformations, with PyTorch's arithmetic.

optax's own sgd, adam and rmsprop are other algorithms in what a continued run shows: one step count for all parameters
(PyTorch has one each, and parameters that are unfrozen late have fewer), bias corrections as 1 - β^t in float32 (5e-5
off in the first steps), a first momentum that is dampened, no RMSprop that is centred, with momentum and ε outside the
root. So the arithmetic is here; optax.partition gives each group its own.

Source: PyTorch's documentation of torch.optim.SGD, Adam, AdamW and RMSprop, and the papers named there: Sutskever et
al. 2013 (momentum), Kingma and Ba 2015 (Adam), Reddi et al. 2018 (AMSGrad), Loshchilov and Hutter 2019 (AdamW), Graves
2013 (centred RMSprop).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...ir import trees
from ...ir.errors import InvalidModelError
from ...ir.optimizer import Optimizer, slots_of
from ...ir.trees import Path, Tree

Rate = float | Callable[[Any], Any]
Arrays = Mapping[str, jax.Array]
Rule = Callable[[Mapping[str, Any], Any, jax.Array, jax.Array, jax.Array, Arrays], tuple[jax.Array, dict[str, Any]]]

_GROUP = "group {}"
_KEPT = "not trained"


class GroupState(NamedTuple):
    """The state of one group of parameters.

    Arguments:
        updates: int32, those made since the conversion; what a learning rate schedule gets.
        step: for each parameter, int32, the updates it has had in its life (see `ir.optimizer.Optimizer.steps`).
        slots: trees like the parameters, under PyTorch's names: momentum_buffer, exp_avg, …
    """

    updates: jax.Array
    step: Any
    slots: dict[str, Any]


def to_optax(
    optimizer: Optimizer, params: Tree, learning_rate: Rate | Sequence[Rate | None] | None = None
) -> tuple[optax.GradientTransformation, Any]:
    """An optimiser as an optax transformation and its state.

    Arguments:
        optimizer: what to continue.
        params: the tree of all parameters of the model, those that are not trained included.
        learning_rate: in place of the groups' own: see `interlux.api.optimizer_from_torch`.

    Returns:
        The transformation for trees like `params`, and its state, of numpy arrays.
    """
    rates = _rates(optimizer, learning_rate)
    transforms = {
        _GROUP.format(i): _group(optimizer.kind, options, rate)
        for i, (options, rate) in enumerate(zip(optimizer.groups, rates, strict=True))
    }
    transforms[_KEPT] = optax.set_to_zero()
    label = {path: _GROUP.format(i) for path, i in optimizer.group_of.items()}
    tx = optax.partition(transforms, trees.map_with_path(lambda path, _: label.get(path, _KEPT), params))
    with jax.enable_x64(True):  # float64 parameters have float64 states, whatever JAX is set to
        shapes = jax.eval_shape(tx.init, params)
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)  # all start from zero
    inner = dict(fresh.inner_states)
    for i in range(len(optimizer.groups)):
        name = _GROUP.format(i)
        inner[name] = inner[name]._replace(inner_state=_filled(inner[name].inner_state, optimizer))
    return tx, fresh._replace(inner_states=inner)


def from_optax(opt_state: Any) -> tuple[dict[Path, int], dict[Path, int], dict[Path, dict[str, Any]]]:
    """`group_of`, `steps` and `slots` of an Optimizer from a state of `to_optax`, on whatever device it is."""
    group_of: dict[Path, int] = {}
    steps: dict[Path, int] = {}
    slots: dict[Path, dict[str, Any]] = {}
    inner = getattr(opt_state, "inner_states", None)
    groups = {} if inner is None else {k: getattr(v, "inner_state", None) for k, v in inner.items() if k != _KEPT}
    if inner is None or not all(isinstance(group, GroupState) for group in groups.values()):
        raise InvalidModelError(
            f"a {type(opt_state).__name__} is no state of optimizer_from_torch's transformation; of a chain with it "
            "give only its part, e.g. opt_state[1]"
        )
    for i in range(len(groups)):
        group: GroupState = groups[_GROUP.format(i)]  # type: ignore[assignment]
        for path, step in _present(group.step):
            group_of[path], steps[path], slots[path] = i, int(step), {}
        for name, tree in group.slots.items():
            for path, array in _present(tree):
                slots[path][name] = array
    return group_of, steps, slots


def _rates(optimizer: Optimizer, given: Rate | Sequence[Rate | None] | None) -> list[Rate]:
    own = [options["lr"] for options in optimizer.groups]
    if given is None:
        return own
    if not isinstance(given, list | tuple):
        return [given] * len(own)  # type: ignore[list-item]
    if len(given) != len(own):
        raise InvalidModelError(f"{len(given)} learning rates for {len(own)} groups of parameters")
    return [mine if rate is None else rate for rate, mine in zip(given, own, strict=True)]


def _present(tree: Any) -> list[tuple[Path, Any]]:
    return [(path, leaf) for path, leaf in trees.leaves(tree) if not isinstance(leaf, optax.MaskedNode)]


def _filled(state: GroupState, optimizer: Optimizer) -> GroupState:
    """A fresh state with the arrays of the optimiser."""

    def fill(tree: Any, value: Callable[[Path], Any]) -> Tree:
        found = ((path, value(path)) for path, _ in _present(tree))
        return trees.updated(tree, {path: array for path, array in found if array is not None})

    return state._replace(
        step=fill(state.step, lambda path: np.asarray(optimizer.steps.get(path, 0), np.int32)),
        slots={
            name: fill(tree, lambda path, name=name: optimizer.slots.get(path, {}).get(name))  # type: ignore[misc]
            for name, tree in state.slots.items()
        },
    )


# --- one group


def _group(kind: str, options: Mapping[str, Any], learning_rate: Rate) -> optax.GradientTransformation:
    rule, slots = _RULES[kind], slots_of(kind, options)

    def init(params: Any) -> GroupState:
        return GroupState(
            jnp.zeros((), jnp.int32),
            jax.tree.map(lambda _: jnp.zeros((), jnp.int32), params),
            {name: jax.tree.map(jnp.zeros_like, params) for name in slots},
        )

    def update(grads: Any, state: GroupState, params: Any = None) -> tuple[Any, GroupState]:
        if params is None:
            raise InvalidModelError("tx.update needs the parameters: tx.update(grads, opt_state, params)")
        rate = learning_rate(state.updates) if callable(learning_rate) else learning_rate
        form: Any
        weights, form = jax.tree.flatten(params)
        columns = [form.flatten_up_to(tree) for tree in (grads, state.step, *(state.slots[name] for name in slots))]
        updates, steps = [], []
        kept: dict[str, list[Any]] = {name: [] for name in slots}
        for p, g, step, *own in zip(weights, *columns, strict=True):
            arrays = dict(zip(slots, own, strict=True))
            change, new = _one(rule, options, rate, p, g, step + 1, arrays)
            updates.append(change)
            steps.append(step + 1)
            for name in slots:
                kept[name].append(new[name])
        new_slots = {name: form.unflatten(kept[name]) for name in slots}
        return form.unflatten(updates), GroupState(state.updates + 1, form.unflatten(steps), new_slots)

    return optax.GradientTransformation(init, update)


def _one(
    rule: Rule, options: Mapping[str, Any], rate: Any, p: Any, g: Any, step: Any, slots: Mapping[str, Any]
) -> tuple[jax.Array, dict[str, Any]]:
    """The update of one parameter, and its new slots.

    Half precision is computed in float32 and rounded when it is stored, as PyTorch's fused Adam does: β₂ = 0.999 is 1
    in bfloat16 and ε = 1e-8 is 0 in float16. The update stays in float32, so that `optax.apply_updates` rounds once.
    """
    dtype = jnp.float32 if np.dtype(p.dtype).itemsize < 4 else p.dtype
    # a Python number stays one: products with others are then rounded once, from double precision, as in PyTorch
    rate = float(rate) if isinstance(rate, float | int) else jnp.asarray(rate, dtype)
    g = jnp.asarray(g, dtype)
    wide = {name: jnp.asarray(array, dtype) for name, array in slots.items()}
    change, new = rule(options, rate, jnp.asarray(p, dtype), -g if options["maximize"] else g, step, wide)
    return change, {name: array.astype(slots[name].dtype) for name, array in new.items()}


def _sgd(
    o: Mapping[str, Any], rate: Any, p: jax.Array, g: jax.Array, step: jax.Array, slots: Arrays
) -> tuple[jax.Array, dict[str, Any]]:
    if o["weight_decay"] != 0:
        g = g + o["weight_decay"] * p
    if o["momentum"] == 0:
        return -rate * g, {}
    # unlike optax.trace, which starts from zeros: the first buffer is the gradient, not dampened
    later = slots["momentum_buffer"] * o["momentum"] + (1 - o["dampening"]) * g
    buffer = jnp.where(step == 1, g, later)
    g = g + o["momentum"] * buffer if o["nesterov"] else buffer
    return -rate * g, {"momentum_buffer": buffer}


def _adam(
    o: Mapping[str, Any], rate: Any, p: jax.Array, g: jax.Array, step: jax.Array, slots: Arrays
) -> tuple[jax.Array, dict[str, Any]]:
    beta1, beta2 = o["betas"]
    decayed: Any = 0
    if o["weight_decay"] != 0:
        if o["decoupled_weight_decay"]:
            decayed = -(rate * o["weight_decay"]) * p
        else:
            g = g + o["weight_decay"] * p
    mean = _lerp(slots["exp_avg"], g, 1 - beta1)
    square = slots["exp_avg_sq"] * beta2 + (1 - beta2) * g * g
    new = {"exp_avg": mean, "exp_avg_sq": square}
    if o["amsgrad"]:  # the largest second moment before its bias is corrected; optax.amsgrad takes it after
        square = new["max_exp_avg_sq"] = jnp.maximum(slots["max_exp_avg_sq"], square)
    scale = jnp.sqrt(square) / jnp.sqrt(_bias_correction(beta2, step, g.dtype)) + o["eps"]
    return decayed - (rate / _bias_correction(beta1, step, g.dtype)) * mean / scale, new


def _rmsprop(
    o: Mapping[str, Any], rate: Any, p: jax.Array, g: jax.Array, step: jax.Array, slots: Arrays
) -> tuple[jax.Array, dict[str, Any]]:
    if o["weight_decay"] != 0:
        g = g + o["weight_decay"] * p
    square = slots["square_avg"] * o["alpha"] + (1 - o["alpha"]) * g * g
    new = {"square_avg": square}
    if o["centered"]:
        mean = new["grad_avg"] = _lerp(slots["grad_avg"], g, 1 - o["alpha"])
        square = square - mean * mean
    scale = jnp.sqrt(square) + o["eps"]
    if o["momentum"] > 0:
        buffer = new["momentum_buffer"] = slots["momentum_buffer"] * o["momentum"] + g / scale
        return -rate * buffer, new
    return -rate * g / scale, new


_RULES: dict[str, Rule] = {"sgd": _sgd, "adam": _adam, "rmsprop": _rmsprop}


def _lerp(start: jax.Array, end: jax.Array, weight: float) -> jax.Array:
    """torch.lerp, which goes from the nearer end."""
    return start + weight * (end - start) if abs(weight) < 0.5 else end - (end - start) * (1 - weight)


def _bias_correction(beta: float, step: jax.Array, dtype: Any) -> jax.Array:
    """1 - β^step with all digits, which PyTorch gets from double precision."""
    if beta == 0:
        return jnp.ones((), dtype)
    return -jnp.expm1(step.astype(dtype) * math.log(beta))
