"""Randomness: a seed in the states, a counter-based generator, the same numbers on every backend.

The generator is Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"),
written once against array operators, so that numpy and JAX run the same code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..dtypes import dtype_named
from ..errors import InvalidModelError, ResourceLimitError
from ..interpreter import Interpreter, Value
from ..layer import FOLLOW, Layer, active, check_mode
from ..trees import Tree

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def threefry(key: Any, x0: Any, x1: Any) -> tuple[Any, Any]:
    """Two streams of random uint32 from a key [2] and two counters of one shape (numpy or JAX, all uint32)."""
    k0, k1 = key[0], key[1]
    keys = (k0, k1, k0 ^ k1 ^ _PARITY)
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2³²
        x0, x1 = x0 + keys[0], x1 + keys[1]
        for group in range(5):
            for rotation in _ROTATIONS[group % 2]:
                x0 = x0 + x1
                x1 = (x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))
                x1 = x1 ^ x0
            x0 = x0 + keys[(group + 1) % 3]
            x1 = x1 + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x0, x1


def seeded_uniform(seed: Any, shape: tuple[int, ...], counter: Any) -> tuple[Any, Any]:
    """Uniform float32 in [0, 1) with 24 random bits, and the next seed.

    Arguments:
        seed: uint32 [2].
        shape: of the numbers.
        counter: `np.arange` or `jnp.arange`: makes the counters in the array library of the caller.
    """
    size = prod(shape)
    if size >= 2**32:
        raise ResourceLimitError(f"one draw of {size} random numbers; at most 2**32 - 1 at once")
    index = counter(size, dtype=np.uint32)
    bits, _ = threefry(seed, index, index * np.uint32(0))
    numbers = (bits >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
    step = counter(2, dtype=np.uint32)
    following, _ = threefry(seed, step, step * np.uint32(0) + np.uint32(1))  # counters that no draw uses
    return numbers.reshape(shape), following


def fresh_seed(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 2**32, 2, np.uint32)


def dropout(
    op: Interpreter, x: Value, probability: float, seed: Value, shape: Value | None = None
) -> tuple[Value, Value]:
    """x with elements zeroed at random and the others scaled by 1 / (1 - probability), and the next seed.

    Arguments:
        shape: of the draws, broadcastable to x; None for one draw for each element.
    """
    keep, following = _kept(op, op.Shape(x) if shape is None else shape, probability, seed)
    scale = 1 / (1 - probability) if probability < 1 else 0.0
    return op.Where(keep, op.Mul(x, op.const(scale, like=x)), op.const(0, like=x)), following


def _kept(op: Interpreter, shape: Value, probability: float, seed: Value) -> tuple[Value, Value]:
    """Which draws are kept, booleans of a shape, and the next seed."""
    numbers, following = op.SeededUniform(seed, shape, outputs=2)
    return op.GreaterOrEqual(numbers, op.const(np.float32(probability))), following


_SELU_FLOOR = -1.7580993408473766  # SELU of minus infinity: what alpha dropout puts in place of an element


def _alpha_dropout(op: Interpreter, x: Value, probability: float, seed: Value, shape: Value) -> tuple[Value, Value]:
    """Alpha dropout of x, and the next seed: mean 0 and variance 1 stay what they are."""
    keep, following = _kept(op, shape, probability, seed)
    scale, shift, low = alpha_terms(probability)
    kept = op.Add(op.Mul(x, op.const(scale, like=x)), op.const(shift, like=x))
    return op.Where(keep, kept, op.const(low, like=x)), following


def alpha_terms(probability: float) -> tuple[float, float, float]:
    """Of alpha dropout: factor and shift of what stays, and what stands in place of the rest."""
    scale = 1 / math.sqrt((1 - probability) * (1 + probability * _SELU_FLOOR**2))
    shift = -scale * probability * _SELU_FLOOR
    return scale, shift, scale * _SELU_FLOOR + shift


@dataclass(frozen=True)
class Uniform(Layer):
    """Random numbers, uniform in [0, 1).

    Inputs: shape, int64, a vector
    Returns: float32 of that shape
    States: seed, uint32 [2]

    Source: aten.rand; ONNX RandomUniform (which has no seed that can go on).
    """

    def init_states(self, rng: np.random.Generator) -> Tree:
        return {"seed": fresh_seed(rng)}

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        numbers, seed = op.SeededUniform(states["seed"], inputs[0], outputs=2)
        return numbers, {"seed": seed}


@dataclass(frozen=True)
class Dropout(Layer):
    """Zeroes elements at random in training.

    Arguments:
        probability: of an element to be zeroed.
        mode: follow | always | never (see `interlux.ir.layer`).
        channels: whether whole channels are zeroed: one draw for each of [batch, channels].
        alpha: whether elements become the lower end of SELU instead of zero, all shifted and scaled so that mean 0 and
            variance 1 stay.

    Inputs: x, any shape; [batch, channels, ...] for channels
    Returns: the same shape
    States: seed, uint32 [2]

    Source: ONNX Dropout, aten.dropout, feature_dropout, alpha_dropout, feature_alpha_dropout; Srivastava et al. 2014,
        Tompson et al. 2015 (channels), Klambauer et al. 2017 (alpha).
    """

    probability: float
    mode: str = FOLLOW
    channels: bool = False
    alpha: bool = False

    def __post_init__(self) -> None:
        check_mode(self.mode, "Dropout")
        if not 0 <= self.probability <= 1:
            raise InvalidModelError(f"Dropout: probability must lie in 0..1, not {self.probability}")

    def init_states(self, rng: np.random.Generator) -> Tree:
        return {"seed": fresh_seed(rng)}

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        if not self.probability or not active(self.mode, train):
            return inputs[0], states
        (x,) = inputs
        shape = op.Shape(x)
        if self.channels:
            shape = op.Concat(op.Shape(x, start=0, end=2), op.ints(*(1,) * (op.rank_of(x) - 2)), axis=0)
        draw = _alpha_dropout if self.alpha and self.probability < 1 else dropout
        y, seed = draw(op, x, self.probability, states["seed"], shape)
        return y, {"seed": seed}


@dataclass(frozen=True)
class RandomTensor(Layer):
    """Random numbers of a distribution.

    Arguments:
        kind: uniform in [a, b), or normal with mean a and standard deviation b.
        a, b: see there.
        dtype: of the numbers, a floating-point type; they are drawn in float32.
        mode: follow | always | never: when the seed goes on. While it does not, each call gives the same numbers.

    Inputs: shape, int64, a vector
    Returns: numbers of that shape
    States: seed, uint32 [2]

    Source: ONNX RandomUniform, RandomNormal and their Like forms; Box and Muller 1958.
    """

    kind: str
    a: float
    b: float
    dtype: str = "float32"
    mode: str = FOLLOW

    def __post_init__(self) -> None:
        check_mode(self.mode, "RandomTensor")
        if self.kind not in ("uniform", "normal"):
            raise InvalidModelError(f"RandomTensor: kind must be uniform or normal, not {self.kind!r}")

    def init_states(self, rng: np.random.Generator) -> Tree:
        return {"seed": fresh_seed(rng)}

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        (shape,) = inputs
        if self.kind == "uniform":
            numbers, seed = op.SeededUniform(states["seed"], shape, outputs=2)
            first, second = self.a, self.b - self.a
        else:
            pairs, seed = op.SeededUniform(states["seed"], op.Concat(op.ints(2), shape, axis=0), outputs=2)
            radius, angle = (op.Gather(pairs, op.const(np.array(i)), axis=0) for i in range(2))
            # 1 - u is in (0, 1], where the logarithm is finite
            length = op.Sqrt(op.Mul(op.Log(op.Sub(op.const(np.float32(1)), radius)), op.const(np.float32(-2))))
            numbers = op.Mul(length, op.Cos(op.Mul(angle, op.const(np.float32(2 * np.pi)))))
            first, second = self.a, self.b
        y = op.Add(op.Mul(numbers, op.const(np.float32(second))), op.const(np.float32(first)))
        return op.cast(y, dtype_named(self.dtype)), ({"seed": seed} if active(self.mode, train) else states)


@dataclass(frozen=True)
class Bernoulli(Layer):
    """1 with the probability that its input says, else 0.

    Arguments:
        dtype: of the output.
        mode: follow | always | never: when the seed goes on.

    Inputs: probabilities, floats of any shape
    Returns: the same shape
    States: seed, uint32 [2]

    Source: ONNX Bernoulli.
    """

    dtype: str
    mode: str = FOLLOW

    def __post_init__(self) -> None:
        check_mode(self.mode, "Bernoulli")

    def init_states(self, rng: np.random.Generator) -> Tree:
        return {"seed": fresh_seed(rng)}

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        (probabilities,) = inputs
        numbers, seed = op.SeededUniform(states["seed"], op.Shape(probabilities), outputs=2)
        drawn = op.Less(numbers, op.cast(probabilities, np.float32))
        return op.cast(drawn, dtype_named(self.dtype)), ({"seed": seed} if active(self.mode, train) else states)


@dataclass(frozen=True)
class Multinomial(Layer):
    """Classes drawn by their unnormalised log-probabilities.

    Arguments:
        sample_size: how many are drawn from each row.
        dtype: int32 or int64.
        mode: follow | always | never: when the seed goes on.

    Inputs: logits, floats [batch, classes]
    Returns: class numbers [batch, sample_size]
    States: seed, uint32 [2]

    Source: ONNX Multinomial; the largest of the logits plus Gumbel noise (Gumbel 1954).
    """

    sample_size: int
    dtype: str = "int32"
    mode: str = FOLLOW

    def __post_init__(self) -> None:
        check_mode(self.mode, "Multinomial")

    def init_states(self, rng: np.random.Generator) -> Tree:
        return {"seed": fresh_seed(rng)}

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Value, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        logits = op.cast(inputs[0], np.float32)
        rows, classes = op.Shape(logits, start=0, end=1), op.Shape(logits, start=1, end=2)
        numbers, seed = op.SeededUniform(
            states["seed"], op.Concat(rows, op.ints(self.sample_size), classes, axis=0), outputs=2
        )
        tiny = op.const(np.float32(2.0**-25))  # numbers are multiples of 2^-24, 0 among them
        noise = op.Neg(op.Log(op.Neg(op.Log(op.Add(numbers, tiny)))))
        drawn = op.ArgMax(op.Add(op.Unsqueeze(logits, op.ints(1)), noise), axis=2, keepdims=0)
        return op.cast(drawn, dtype_named(self.dtype)), ({"seed": seed} if active(self.mode, train) else states)
