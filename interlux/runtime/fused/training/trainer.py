"""Training as one native function: `ix.fused_trainer(model, loss="mse", optimizer="adam")`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from threading import RLock
from typing import Any, NoReturn, TypeVar

import numpy as np

from ....ir import trees
from ....ir.errors import InvalidModelError, UnsupportedError
from ....ir.model import Model, check_model
from ....ir.trees import Tree
from ..target import Target
from ..threads import cores
from .checks import array_of, known_options, number, samples_of, vector_of, whole
from .code import Plan, check_derivatives
from .context import INPUTS, Context
from .draws import following
from .lookups import check as check_rows
from .losses import Cotangent, Loss
from .native import Compiled, allocated, sized
from .optimizers import Optimizer
from .recorder import tape_of
from .steps import BatchNormalization, Tape

_INDEX = 1 << 17  # about as many numbers of samples are put in order at a time
_MOST_STEPS = 1 << 30  # of a call, which returns a loss of each


class _Function:
    """What trainers and gradient functions share: a tape, parameters in one vector, checked arguments.

    Several threads may call one object: each call waits for the one before it. `flat` and `params` are views: who
    writes to them while another thread computes changes numbers under its hands.

    Arguments:
        by_inputs: whether gradients of the inputs are wanted.
    """

    def __init__(
        self, model: Model, loss: Loss, threads: int | None, seed: int, target: str | Target | None, by_inputs: bool
    ):
        from ..engine import target_named

        check_model(model, "native training")
        if target is not None and not isinstance(target, str | Target):
            raise InvalidModelError(f"target must be a name, not {target!r}")
        self._target = target_named(target)
        self._threads = cores() if threads is None else min(whole("threads", threads, 1), cores())
        self._model, self._loss = model, loss
        self._tape: Tape = tape_of(model)
        if len(self._tape.inputs) > INPUTS:
            raise UnsupportedError(f"the fused engine trains models with at most {INPUTS} inputs")
        check_derivatives(self._tape, by_inputs)
        self._by_inputs = by_inputs
        self._lock = RLock()
        # whether a batch of one sample has too little for a BatchNorm
        self._single = any(isinstance(s, BatchNormalization) and s.shape[1] == 1 for s in self._tape.steps)
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
        self._context["seed"] = whole("seed", seed, 0, (1 << 32) - 1)

    def __reduce__(self) -> NoReturn:
        raise UnsupportedError("native training is not copied or pickled; keep its `params`, or make another one")

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
            arrays.append(self._array(array, shape, spec.dtype, f"input {spec.name!r}"))
        for numbers in self._tape.numbers:
            check_rows(arrays[numbers.input], numbers, f"input {signature.inputs[numbers.input].name!r}")
        if len({len(a) for a in arrays}) > 1:
            raise InvalidModelError(f"inputs have different numbers of samples: {[len(a) for a in arrays]}")
        return arrays

    def _array(self, value: Any, shape: tuple[int, ...], dtype: Any, what: str) -> np.ndarray:
        """One input; integers, which may be of any integer dtype, and booleans as int64."""
        if np.dtype(dtype) == self._tape.dtype:
            return samples_of(value, shape, self._tape.dtype, what)
        if np.dtype(dtype) == bool:
            return samples_of(value, shape, np.dtype(bool), what).astype(np.int64)
        given = array_of(value, what)
        wide = given.dtype.kind in "iu" and np.can_cast(given.dtype, np.int64)
        return samples_of(given.astype(np.int64, copy=False) if wide else given, shape, np.dtype(np.int64), what)

    def _targets(self, y: Any, samples: int) -> tuple[np.ndarray, bool]:
        """The targets, checked, and whether they are class numbers."""
        y = array_of(y, "targets")
        labels = self._loss.kind == "cross_entropy" and y.dtype.kind in "iu"
        shape, dtype = self._loss.targets(self._tape.output, labels, self._tape.dtype)
        targets = samples_of(y.astype(np.int64) if labels else y, shape, dtype, "targets")
        if len(targets) != samples:
            raise InvalidModelError(f"{len(targets)} targets for {samples} samples")
        classes = self._tape.output.size
        if labels and samples and (targets.min() < 0 or targets.max() >= classes):
            raise InvalidModelError(f"class numbers must lie in 0..{classes - 1}, not {targets.min()}..{targets.max()}")
        return targets, labels

    def _check_batch(self, smallest: int) -> None:
        if self._single and smallest == 1:
            raise InvalidModelError("BatchNorm in training needs more than one value per channel in each batch")

    def _function(self, labels: bool, batch: int, optimizer: Optimizer | None = None) -> Compiled:
        """The machine code for batches of about this size, where gradients of the inputs are wanted for the output
        too."""
        known = (labels, batch)
        if known in self._sized:
            return self._sized[known]
        plan = Plan(self._tape, self._loss, labels, optimizer, 1, self._by_inputs, self._by_inputs)
        plan = sized(plan, self._target, batch, self._threads)
        key = (labels, plan.vectors, plan.by_lane)
        if key not in self._compiled:
            self._compiled[key] = Compiled(plan, self._target)
        self._sized[known] = self._compiled[key]
        return self._compiled[key]


class FusedTrainer(_Function):
    """Forward pass, backward pass and optimiser as one native function. Made by `fused_trainer`.

    Arguments:
        model, loss, optimizer, threads, seed, target: see `fused_trainer`.
    """

    def __init__(
        self, model: Model, loss: Loss, optimizer: Optimizer, threads: int | None, seed: int,
        target: str | Target | None,
    ):  # fmt: skip
        super().__init__(model, loss, threads, seed, target, False)
        self.optimizer = optimizer
        self._rate = float(optimizer.learning_rate)
        self.batches = 0  # steps that were made
        nothing = np.zeros(0, np.int64)
        self._order = (0, 0, 0), nothing, nothing  # of the last call
        count = Plan(self._tape, loss, False, optimizer, 1).count
        self._moments = [allocated(count, self._tape.dtype) for _ in range(2)]
        self._context["first"], self._context["second"] = self._moments
        self._context["power1"] = self._context["power2"] = 1.0
        self._context["updates"] = 0

    @property
    def learning_rate(self) -> float:
        """May be changed between calls. Raises InvalidModelError for what is no number of at least 0."""
        return self._rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._rate = number("learning_rate", value)

    def step(self, x: Any, y: Any) -> float:
        """One step on a batch.

        Arguments:
            x: the input [batch, …] in the model's dtype, integers as integers; a tuple of arrays if the model has
                several inputs.
            y: targets [batch, …] as the loss wants them: of the output's shape, or class numbers [batch].

        Returns: the loss before the step.

        Raises InvalidModelError for a wrong dtype or shape, and for row numbers that an embedding does not have.
        """
        return float(self.run(x, y, steps=1)[0])

    def run(
        self, x: Any, y: Any, *, steps: int | None = None, epochs: int | None = None, batch_size: int | None = None,
        shuffle: int | bool | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Many steps in one native call, or in a few where all samples' order takes much memory.

        Arguments:
            x, y: all samples and targets, as for `step`.
            steps: how many batches; samples are used again from the first one on when all have been.
            epochs: in place of steps, how often all samples are used; the last batch of an epoch may be smaller.
            batch_size: samples of a batch; None is all.
            shuffle: a seed of at least 0: samples are put into another order in each epoch. False or None: they stay in
                theirs.

        Returns: the loss of each step before its update, float64 [steps].

        Raises InvalidModelError for a wrong dtype, shape or number, or if there are no samples.
        """
        arrays = self._arrays(x)
        samples = len(arrays[0])
        targets, labels = self._targets(y, samples)
        if samples == 0:
            raise InvalidModelError("there are no samples to train on")
        if steps is not None and epochs is not None:
            raise InvalidModelError("give steps or epochs, not both")
        size = samples if batch_size is None else min(whole("batch_size", batch_size, 1), samples)
        per_epoch = -(-samples // size)
        count = per_epoch * (1 if epochs is None else whole("epochs", epochs))
        count = whole("steps", count if steps is None else steps, 0, _MOST_STEPS)
        unordered = shuffle is None or shuffle is False
        random = (
            None if unordered else np.random.default_rng(whole("shuffle", int(shuffle) if shuffle is True else shuffle))
        )
        losses = np.zeros(count, np.float64)
        with self._lock:
            index, schedule = self._ordered(samples, size, count)
            if self._single:
                self._check_batch(int(schedule.min(initial=samples)))
            compiled = self._function(labels, size, self.optimizer)
            context = self._context
            for n, array in enumerate(arrays):
                context[f"x{n}"] = array
            context["y"], context["schedule"], context["rate"] = targets, schedule, self._rate
            compiled.prepare(context, size, self._threads)
            for first in range(0, count, max(1, len(schedule))):
                part = min(len(schedule), count - first)
                if random is not None:
                    index = np.concatenate([random.permutation(samples) for _ in range(-(-part // per_epoch))])
                context["index"], context["losses"] = index, losses[first:]
                compiled.train(context.address, part)
                self.batches += part
        return losses

    def _ordered(self, samples: int, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of samples in their order, as often as they fit into a part of all steps, and how many each step of
        that part takes."""
        if self._order[0] != (samples, size, count):
            per_epoch = -(-samples // size)
            epochs = max(1, min(-(-count // per_epoch), _INDEX // samples))
            sizes = np.full(per_epoch, size, np.int64)
            sizes[-1] = samples - size * (per_epoch - 1)
            index = np.tile(np.arange(samples, dtype=np.int64), epochs)
            self._order = (samples, size, count), index, np.tile(sizes, epochs)[:count]
        return self._order[1:]

    @property
    def states(self) -> Tree:
        """The model's states, running statistics as they are now (copies)."""
        changes: dict[Any, Any] = {}
        with self._lock:
            for path, shape, offset in self._tape.running:
                size = int(np.prod(shape, dtype=np.int64))
                changes[path] = self._statistics[offset : offset + size].reshape(shape).copy()
            for path in self._tape.counters:  # one that is used twice counts twice
                old = np.asarray(changes.get(path, trees.find(self._model.states, path)))
                changes[path] = np.asarray(old + self.batches, old.dtype)
        return trees.updated(self._model.states, changes) if changes else self._model.states

    def model(self) -> Model:
        """The model with the parameters and running statistics as they are now (copies)."""
        with self._lock:
            return self._model.replace(trees.map_leaves(np.array, self.params), self.states)


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

    Trained are dense, convolutional, transposed convolutional and recurrent layers, attention and products of matrices,
    embeddings, batch, layer, group, instance and RMS normalisation, dropout, pools, reductions, resizing (nearest and
    linear), activations and other elementwise operators with a derivative, and all that moves elements.

    Arguments:
        model: with a signature whose inputs have the batch first and fixed sizes behind it; float32 or float64. Inputs
            may be int32, int64 or bool as well: row numbers of embeddings (negative ones count from the last row) and
            masks.
        loss: mse, cross_entropy, bce or huber, or a `Loss`.
        optimizer: sgd, momentum, adam or adamw, or an `Optimizer`.
        learning_rate, l2: of the optimizer.
        threads: at most so many compute a batch; None is all cores. Results depend on the number, but not on chance:
            with the same seed and the same number they are the same to the last bit.
        seed: of dropout, 0 to 2³² - 1.
        target: avx512, avx2, sse2, neon or scalar in place of what this machine has.
        options: further ones of loss (reduction, delta, logits, label_smoothing) and optimizer (momentum, dampening,
            nesterov, betas, eps, weight_decay).

    Returns: a `FusedTrainer`. The model itself stays as it is. Threads that share a trainer wait for each other.

    Raises UnsupportedError naming the layers that the engine does not train, InvalidModelError for a strange option.
    """
    given = {"learning_rate": learning_rate, "l2": l2}
    given = {**{name: value for name, value in given.items() if value is not None}, **options}
    of_optimizer = {name: given.pop(name) for name in _options(Optimizer) if name in given}
    how = _made(Optimizer, "optimizer", optimizer, of_optimizer)
    return FusedTrainer(model, _made(Loss, "loss", loss, given), how, threads, seed, target)


_Choice = TypeVar("_Choice", Loss, Optimizer)


def _options(choice: type[Loss | Optimizer]) -> dict[str, None]:
    """The names of all options, of whatever kind."""
    return dict.fromkeys(name for names in choice.options.values() for name in names)


def _made(choice: type[_Choice], what: str, given: Any, options: Mapping[str, Any]) -> _Choice:
    """A loss or optimiser by its name, or one that is made already, with some options of its kind."""
    made = given if isinstance(given, choice) else choice(given)
    known_options(f"the {what} {made.kind}", options, made.options[made.kind])
    return replace(made, **options)


ByInputs = np.ndarray | None | tuple[np.ndarray | None, ...]


class FusedGradient(_Function):
    """Gradients of a model by its parameters and its inputs, as a native function. Made by `fused_gradient`.

    Arguments:
        model, loss, threads, seed, target: see `fused_gradient`.
    """

    def __init__(self, model: Model, loss: Loss, threads: int | None, seed: int, target: str | Target | None):
        super().__init__(model, loss, threads, seed, target, True)
        self._given: np.ndarray | None = None  # weights in place of those of `flat`

    def value_and_grad(self, x: Any, y: Any, params: np.ndarray | None = None) -> tuple[float, np.ndarray, ByInputs]:
        """The loss and its gradients.

        Arguments:
            x, y: as for `FusedTrainer.step`.
            params: the vector of parameters [n] of this call; None: `flat`, which stays as it is.

        Returns: the loss, its gradient by the parameters [n], and by the input, of that one's shape: a tuple of arrays
            if the model has several inputs; None by an input of integers.

        Raises InvalidModelError for a wrong dtype or shape, or if the function was made without a loss.
        """
        if isinstance(self._loss, Cotangent):
            raise InvalidModelError("value_and_grad is of a fused gradient that was made with a loss")
        value, flat, inputs, _ = self._computed(x, y, params)
        return value, flat, inputs

    def vjp(self, x: Any, cotangent: Any, params: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, ByInputs]:
        """The model's output, and a cotangent of the output taken back to parameters and inputs.

        Arguments:
            x: as for `FusedTrainer.step`.
            cotangent: of the output's shape.
            params: the vector of parameters [n] of this call; None: `flat`, which stays as it is.

        Returns: the output, the gradient by the parameters [n], and by the input, of that one's shape: a tuple of
            arrays if the model has several inputs; None by an input of integers.

        Raises InvalidModelError for a wrong dtype or shape, or if the function was made with a loss.
        """
        if not isinstance(self._loss, Cotangent):
            raise InvalidModelError("vjp is of a fused gradient that was made without a loss")
        _, flat, inputs, output = self._computed(x, cotangent, params)
        return output, flat, inputs

    def tree(self, flat: np.ndarray) -> Tree:
        """A vector of parameters or their gradients [n] as a tree under the model's names; views.

        Raises InvalidModelError for a wrong dtype or shape.
        """
        return self._tree(vector_of(flat, self._tape.trained, self._tape.dtype, "a vector of parameters"))

    def _computed(self, x: Any, y: Any, params: np.ndarray | None) -> tuple[float, np.ndarray, ByInputs, np.ndarray]:
        arrays = self._arrays(x)
        samples = len(arrays[0])
        targets, labels = self._targets(y, samples)
        self._check_batch(samples)
        dtype = self._tape.dtype
        by_inputs = tuple(np.zeros(array.shape, dtype) if array.dtype == dtype else None for array in arrays)
        gradients = by_inputs if len(by_inputs) > 1 else by_inputs[0]
        output = np.zeros((samples, *self._tape.output.shape[1:]), dtype)
        with self._lock:
            context = self._context
            context["weights"] = self._weights if params is None else self._weights_with(params)
            if samples == 0:
                return 0.0, np.zeros(self._tape.trained, dtype), gradients, output
            compiled = self._function(labels, samples)
            for n, (array, by_input) in enumerate(zip(arrays, by_inputs, strict=True)):
                context[f"x{n}"], context[f"by_x{n}"] = array, by_input
            context["y"], context["index"], context["output"] = targets, np.arange(samples, dtype=np.int64), output
            context["batch"], context["scale"] = samples, self._loss.scale(self._tape.output, samples)
            compiled.prepare(context, samples, self._threads)
            compiled.gradients(context.address)
            context["seed"] = following(context["seed"])
            chunks = context["chunks"]
            return compiled.loss(chunks), compiled.summed(chunks), gradients, output

    def _weights_with(self, params: Any) -> np.ndarray:
        """All weights with other parameters than those of `flat`."""
        flat = vector_of(params, self._tape.trained, self._tape.dtype, "params")
        if self._given is None:
            self._given = allocated(self._weights.size, self._tape.dtype)
            self._given[:] = self._weights
        self._given[: self._tape.trained] = flat
        return self._given


def fused_gradient(
    model: Model, loss: str | Loss | None = None, *, threads: int | None = 1, seed: int = 0, target: str | None = None,
    **options: Any,
) -> FusedGradient:  # fmt: skip
    """Gradients of a model on the CPU as a native function: for optimisers of one's own and for neural ODEs.

        function = ix.fused_gradient(model)
        y, by_params, by_x = function.vjp(x, cotangent)
        function = ix.fused_gradient(model, "mse")
        loss, by_params, by_x = function.value_and_grad(x, y)

    Arguments:
        model, threads, target: as for `fused_trainer`.
        loss: mse, cross_entropy, bce, huber or a `Loss`; None for `vjp`.
        seed: of dropout, 0 to 2³² - 1: the draws of call n are those of step n of a trainer with the same seed.
        options: of the loss (reduction, delta, logits, label_smoothing).

    The model is computed in training mode. Running statistics that change are those of the function, not the model's.
    Threads that share a function wait for each other.

    Raises UnsupportedError naming the layers that the engine does not train, InvalidModelError for a strange option.
    """
    if loss is None:
        known_options("a fused gradient without a loss", options, ())
    return FusedGradient(
        model, Cotangent() if loss is None else _made(Loss, "loss", loss, options), threads, seed, target
    )
