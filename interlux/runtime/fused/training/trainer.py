"""Training as one native function: `ix.fused_trainer(model, loss="mse", optimizer="adam")`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ....ir import trees
from ....ir.errors import InvalidModelError
from ....ir.model import Model
from ....ir.trees import Tree
from ..target import Target
from ..threads import cores
from .code import Plan
from .context import INPUTS, Context
from .losses import COTANGENT, Loss
from .native import Compiled, allocated, sized
from .optimizers import Optimizer
from .recorder import tape_of
from .steps import BatchNormalization, Tape


class _Function:
    """What trainers and gradient functions share: a tape, parameters in one vector, checked arguments."""

    def __init__(self, model: Model, loss: Loss, threads: int | None, target: str | Target | None):
        from ..engine import target_named

        self._model, self._loss = model, loss
        self._tape: Tape = tape_of(model)
        if len(self._tape.inputs) > INPUTS:
            raise InvalidModelError(f"the fused engine trains models with at most {INPUTS} inputs")
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise InvalidModelError(f"threads must be a positive number or None, not {threads!r}")
        self._threads = cores() if threads is None else min(threads, cores())
        self._target = target_named(target)
        tape = self._tape
        self._weights = allocated(tape.values.size, tape.dtype)
        self._weights[:] = tape.values
        self._statistics = allocated(tape.statistics.size, tape.dtype)
        self._statistics[:] = tape.statistics
        self._compiled: dict[Any, Compiled] = {}
        self._sized: dict[Any, Compiled] = {}  # by what is asked for
        self._context = Context()
        self._context["weights"] = self._weights
        self._context["statistics"] = self._statistics

    @property
    def flat(self) -> np.ndarray:
        """All trained parameters as one vector [n]; a view: changes are seen by the trainer and by `params`."""
        return self._weights[: self._tape.trained]

    @property
    def params(self) -> Tree:
        """The parameters under the model's own names: views of the same memory, no copies."""
        return self._tree(self.flat)

    def _tree(self, flat: np.ndarray) -> Tree:
        """A vector like `flat` as a tree like the model's parameters."""
        own = {path: (shape, offset) for path, shape, offset in self._tape.places}

        def part(path: tuple[str, ...], array: Any) -> Any:
            if path not in own:
                return array
            shape, offset = own[path]
            size = int(np.prod(shape, dtype=np.int64))
            return flat[offset : offset + size].reshape(shape)

        return trees.map_with_path(part, self._model.params)

    def _arrays(self, x: Any) -> list[np.ndarray]:
        """The model's inputs, checked and contiguous."""
        given = list(x) if isinstance(x, tuple | list) else [x]
        signature = self._model.require_signature()
        if len(given) != len(signature.inputs):
            raise InvalidModelError(f"{len(given)} inputs given, the model takes {len(signature.inputs)}")
        arrays = []
        for spec, array in zip(signature.inputs, given, strict=True):
            shape = tuple(int(d) for d in (spec.shape or ())[1:] if isinstance(d, int))
            arrays.append(_checked(array, shape, self._tape.dtype, f"input {spec.name!r}"))
        if len({len(a) for a in arrays}) > 1:
            raise InvalidModelError(f"inputs have different numbers of samples: {[len(a) for a in arrays]}")
        return arrays

    def _targets(self, y: Any, samples: int) -> tuple[np.ndarray, bool]:
        """The targets, checked, and whether they are class numbers."""
        y = np.asarray(y)
        labels = self._loss.kind == "cross_entropy" and y.dtype.kind in "iu"
        shape, dtype = self._loss.targets(self._tape.output, labels, self._tape.dtype)
        targets = _checked(y.astype(np.int64) if labels else y, shape, dtype, "targets")
        if len(targets) != samples:
            raise InvalidModelError(f"{len(targets)} targets for {samples} samples")
        classes = self._tape.output.size
        if labels and samples and (targets.min() < 0 or targets.max() >= classes):
            raise InvalidModelError(f"class numbers must lie in 0..{classes - 1}, not {targets.min()}..{targets.max()}")
        return targets, labels

    def _function(self, labels: bool, batch: int, optimizer: Optimizer | None = None, wanted: bool = False) -> Compiled:
        """The machine code for batches of about this size; `wanted`: of the input's gradient and the output too."""
        known = (labels, batch)
        if known in self._sized:
            return self._sized[known]
        plan = Plan(self._tape, self._loss, labels, optimizer, 1, wanted, wanted)
        plan = sized(plan, self._target, batch, self._threads)
        key = (labels, plan.vectors, plan.by_lane)
        if key not in self._compiled:
            self._compiled[key] = Compiled(plan, self._target)
        self._sized[known] = self._compiled[key]
        return self._compiled[key]


def _checked(array: Any, shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype != dtype:
        raise InvalidModelError(f"{what} must be {dtype.name}, not {array.dtype.name}")
    if array.ndim != len(shape) + 1 or array.shape[1:] != shape:
        wanted = ", ".join(("batch", *map(str, shape)))
        raise InvalidModelError(f"{what} must have shape ({wanted}), not {array.shape}")
    return np.ascontiguousarray(array)


class FusedTrainer(_Function):
    """Forward pass, backward pass and optimiser as one native function. Made by `fused_trainer`.

    Arguments:
        model, loss, optimizer, threads, seed, target: see `fused_trainer`.
    """

    def __init__(
        self, model: Model, loss: Loss, optimizer: Optimizer, threads: int | None, seed: int,
        target: str | Target | None,
    ):  # fmt: skip
        super().__init__(model, loss, threads, target)
        self.optimizer = optimizer
        self.learning_rate = optimizer.learning_rate
        self.batches = 0  # steps that were made
        nothing = np.zeros(0, np.int64)
        self._order = (0, 0, 0), nothing, nothing  # of the last call without shuffling
        # whether a batch of one sample has too little for a BatchNorm
        self._single = any(
            isinstance(s, BatchNormalization) and s.shape[1] == 1 and s.running for s in self._tape.steps
        )
        count = Plan(self._tape, loss, False, optimizer, 1).count
        self._moments = [allocated(count, self._tape.dtype) for _ in range(2)]
        self._context["first"], self._context["second"] = self._moments
        self._context["power1"] = self._context["power2"] = 1.0
        self._context["updates"] = 0
        self._context["seed"] = seed & 0xFFFFFFFF

    def step(self, x: Any, y: Any) -> float:
        """One step on a batch.

        Arguments:
            x: the input [batch, …] in the model's dtype; a tuple of arrays if the model has several inputs.
            y: targets [batch, …] as the loss wants them: of the output's shape, or class numbers [batch].

        Returns: the loss before the step.

        Raises InvalidModelError for a wrong dtype or shape.
        """
        return float(self.run(x, y, steps=1)[0])

    def run(
        self, x: Any, y: Any, *, steps: int | None = None, epochs: int | None = None, batch_size: int | None = None,
        shuffle: int | bool | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Many steps in one native call.

        Arguments:
            x, y: all samples and targets, as for `step`.
            steps: how many batches; samples are used again from the first one on when all have been.
            epochs: in place of steps, how often all samples are used; the last batch of an epoch may be smaller.
            batch_size: samples of a batch; None is all.
            shuffle: a seed: samples are put into another order in each epoch. False or None: they are not.

        Returns: the loss of each step before its update, float64 [steps].

        Raises InvalidModelError for a wrong dtype or shape, or if there are no samples.
        """
        arrays = self._arrays(x)
        samples = len(arrays[0])
        targets, labels = self._targets(y, samples)
        if samples == 0:
            raise InvalidModelError("there are no samples to train on")
        if steps is not None and epochs is not None:
            raise InvalidModelError("give steps or epochs, not both")
        for name, number in (("steps", steps), ("epochs", epochs), ("batch_size", batch_size)):
            if number is not None and (not isinstance(number, int | np.integer) or number < (name == "batch_size")):
                raise InvalidModelError(f"{name} must be a whole number, not {number!r}")
        size = samples if batch_size is None else min(int(batch_size), samples)
        per_epoch = -(-samples // size)
        count = per_epoch * (1 if epochs is None else epochs) if steps is None else steps
        order = (samples, size, count)
        if shuffle is None or shuffle is False:
            if self._order[0] != order:
                self._order = order, *_schedule(samples, size, count, None)
            _, index, schedule = self._order
        else:
            index, schedule = _schedule(samples, size, count, shuffle)
        if self._single and np.any(schedule == 1):
            raise InvalidModelError("BatchNorm in training needs more than one value per channel in each batch")
        compiled = self._function(labels, size, optimizer=self.optimizer)
        context = self._context
        losses = np.zeros(count, np.float64)
        for number, array in enumerate(arrays):
            context[f"x{number}"] = array
        context["y"], context["index"], context["schedule"], context["losses"] = targets, index, schedule, losses
        context["rate"] = float(self.learning_rate)
        compiled.prepare(context, size, self._threads)
        compiled.train(context.address, count)
        self.batches += count
        return losses

    @property
    def states(self) -> Tree:
        """The model's states, running statistics as they are now (copies)."""
        changes: dict[Any, Any] = {}
        for path, shape, offset in self._tape.running:
            size = int(np.prod(shape, dtype=np.int64))
            changes[path] = self._statistics[offset : offset + size].reshape(shape).copy()
        for path in self._tape.counters:
            old = np.asarray(trees.find(self._model.states, path))
            changes[path] = np.asarray(old + self.batches, old.dtype)
        return trees.updated(self._model.states, changes) if changes else self._model.states

    def model(self) -> Model:
        """The model with the parameters and running statistics as they are now (copies)."""
        return self._model.replace(self.params, self.states)


def _schedule(samples: int, size: int, count: int, shuffle: int | bool | None) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of samples in the order in which they are used, and how many each step takes."""
    per_epoch = -(-samples // size)
    epochs = max(1, -(-count // per_epoch))
    sizes = np.full(per_epoch, size, np.int64)
    sizes[-1] = samples - size * (per_epoch - 1)
    schedule = np.tile(sizes, epochs)[:count]
    if shuffle is None or shuffle is False:
        index = np.tile(np.arange(samples, dtype=np.int64), epochs)
    else:
        rng = np.random.default_rng(int(shuffle))
        index = np.concatenate([rng.permutation(samples) for _ in range(epochs)]).astype(np.int64)
    return index, schedule


def fused_trainer(
    model: Model,
    loss: str | Loss = "mse",
    optimizer: str | Optimizer = "adam",
    *,
    learning_rate: float | None = None,
    l2: float | None = None,
    threads: int | None = 1,
    seed: int = 0,
    target: str | None = None,
    **options: Any,
) -> FusedTrainer:
    """Trains a model on the CPU: forward pass, backward pass and optimiser are one native function.

        trainer = ix.fused_trainer(model, loss="cross_entropy", optimizer="adam", learning_rate=1e-3, threads=2)
        losses = trainer.run(x, y, epochs=10, batch_size=128, shuffle=0)
        trained = trainer.model()

    Arguments:
        model: with a signature whose inputs have the batch first and fixed sizes behind it; float32 or float64.
        loss: mse, cross_entropy, bce or huber, or a `Loss`.
        optimizer: sgd, momentum, adam or adamw, or an `Optimizer`.
        learning_rate, l2: of the optimizer.
        threads: at most so many compute a batch; None is all cores. Results depend on the number, but not on chance:
            with the same seed and the same number they are the same to the last bit.
        seed: of dropout.
        target: avx512, avx2, sse2, neon or scalar in place of what this machine has.
        options: further ones of loss (reduction, delta, logits, label_smoothing) and optimizer (momentum, dampening,
            nesterov, betas, eps, weight_decay).

    Returns: a `FusedTrainer`. The model itself stays as it is.

    Raises UnsupportedError naming the layers that the engine does not train, InvalidModelError for a strange option.
    """
    own = {name: options.pop(name) for name in ("reduction", "delta", "logits", "label_smoothing") if name in options}
    more: dict[str, Any] = {"learning_rate": learning_rate, "l2": l2}
    more.update({name: options.pop(name) for name in _OPTIMIZER if name in options})
    more = {name: value for name, value in more.items() if value is not None}
    if options:
        raise InvalidModelError(f"a fused trainer has no option {next(iter(options))!r}")
    what = replace(loss, **own) if isinstance(loss, Loss) else Loss(loss, **own)
    how = replace(optimizer, **more) if isinstance(optimizer, Optimizer) else Optimizer(optimizer, **more)
    return FusedTrainer(model, what, how, threads, seed, target)


_OPTIMIZER: Sequence[str] = ("momentum", "dampening", "nesterov", "betas", "eps", "weight_decay")


class FusedGradient(_Function):
    """Gradients of a model by its parameters and its first input, as a native function. Made by `fused_gradient`."""

    def value_and_grad(self, x: Any, y: Any, params: np.ndarray | None = None) -> tuple[float, np.ndarray, np.ndarray]:
        """The loss and its gradients.

        Arguments:
            x, y: as for `FusedTrainer.step`.
            params: the vector of parameters [n]; None: those of `flat`.

        Returns: the loss, its gradient by the parameters [n], and by the first input, of that one's shape.
        """
        value, flat, inputs, _ = self._computed(x, y, params)
        return value, flat, inputs

    def vjp(
        self, x: Any, cotangent: Any, params: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The model's output, and a cotangent of the output taken back to parameters and first input.

        Arguments:
            x: as for `FusedTrainer.step`.
            cotangent: of the output's shape.
            params: the vector of parameters [n]; None: those of `flat`.

        Returns: the output, the gradient by the parameters [n], and by the first input.
        """
        if self._loss.kind != COTANGENT:
            raise InvalidModelError("vjp is of a fused gradient that was made without a loss")
        _, flat, inputs, output = self._computed(x, cotangent, params)
        return output, flat, inputs

    def tree(self, flat: np.ndarray) -> Tree:
        """A vector of parameters or their gradients as a tree under the model's names; views."""
        return self._tree(flat)

    def _computed(self, x: Any, y: Any, params: np.ndarray | None) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        arrays = self._arrays(x)
        samples = len(arrays[0])
        targets, labels = self._targets(y, samples)
        if params is not None:
            flat = np.asarray(params)
            if flat.shape != self.flat.shape or flat.dtype != self._tape.dtype:
                raise InvalidModelError(f"params must be {self._tape.dtype.name} [{self.flat.size}]")
            self.flat[:] = flat
        dtype = self._tape.dtype
        inputs = np.zeros(arrays[0].shape, dtype)
        output = np.zeros((samples, *self._tape.output.shape[1:]), dtype)
        if samples == 0:
            return 0.0, np.zeros(self._tape.trained, dtype), inputs, output
        compiled = self._function(labels, samples, wanted=True)
        context = self._context
        for number, array in enumerate(arrays):
            context[f"x{number}"] = array
        context["y"], context["index"] = targets, np.arange(samples, dtype=np.int64)
        context["batch"], context["scale"] = samples, self._loss.scale(self._tape.output, samples)
        context["input_gradient"], context["output"], context["seed"] = inputs, output, 0
        compiled.prepare(context, samples, self._threads)
        compiled.gradients(context.address)
        chunks = context["chunks"]
        return compiled.loss(chunks), compiled.summed(chunks), inputs, output


def fused_gradient(
    model: Model, loss: str | Loss | None = None, *, threads: int | None = 1, target: str | None = None, **options: Any
) -> FusedGradient:
    """Gradients of a model on the CPU as a native function: for optimisers of one's own and for neural ODEs.

        function = ix.fused_gradient(model)
        y, by_params, by_x = function.vjp(x, cotangent)
        function = ix.fused_gradient(model, "mse")
        loss, by_params, by_x = function.value_and_grad(x, y)

    Arguments:
        model, threads, target: as for `fused_trainer`.
        loss: mse, cross_entropy, bce, huber or a `Loss`; None for `vjp`.
        options: of the loss (reduction, delta, logits, label_smoothing).

    The model is computed in training mode. Running statistics that change are those of the function, not the model's.
    """
    if loss is None:
        if options:
            raise InvalidModelError(f"without a loss there is no option {next(iter(options))!r}")
        return FusedGradient(model, Loss(COTANGENT), threads, target)
    unknown = [name for name in options if name not in ("reduction", "delta", "logits", "label_smoothing")]
    if unknown:
        raise InvalidModelError(f"a fused gradient has no option {unknown[0]!r}")
    return FusedGradient(
        model, replace(loss, **options) if isinstance(loss, Loss) else Loss(loss, **options), threads, target
    )
