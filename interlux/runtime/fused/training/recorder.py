"""From a model to a tape: its layers in training mode, executed by an interpreter that records steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, ClassVar

import numpy as np

from ....ir import trees
from ....ir.errors import InvalidModelError, UnsupportedError
from ....ir.foreign import Kind
from ....ir.graph import ByMode, Graph
from ....ir.interpreter import TRAIN, Override
from ....ir.layer import Layer, active
from ....ir.layers import BatchNorm, Dropout
from ....ir.layers.random import alpha_terms
from ....ir.model import Model
from ....ir.trees import Path, Tree
from ....ir.windows import Window
from ..builder import Builder, NotMade, Value, is_missing, is_recorded, reshape
from ..derivatives import DERIVATIVES
from ..folding import fold
from ..operators import OPERATORS, matmul, numbers, padded
from ..program import dtype_of, kind_of
from ..resizing import Resize
from ..steps import Convert, Elementwise, Rearrange, Step
from ..tensors import Buffer, Shape, Tensor, broadcast, constant, whole
from .elementwise import BINARY
from .fusion import fused
from .images import conv_transpose, convolved, made_weights, multiplied
from .lookups import INTEGERS, gather, moving, stop_row_gradient
from .norms import reduce_l1, reduce_l2, reduce_product, reduce_squares
from .recurrence import TRAINED
from .steps import BatchNormalization, Draws, Linear, Normalization, RowNumbers, Tape, Weights

_ALIGNMENT = 64  # numbers: the vector of trained parameters is filled up to a multiple of it
# What only moves elements, or is made of what is here: as in inference.
_SHARED = frozenset(
    ["ArgMax", "AveragePool", "Cast", "Clip", "Concat", "ConstantOfShape", "DepthToSpace", "Equal", "Expand", "Flatten",
     "GatherElements", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "Identity", "Less",
     "LessOrEqual", "LogSoftmax", "Max", "MaxPool", "Mean", "Min", "Pad", "Pow", "ReduceMax", "ReduceMean", "ReduceMin",
     "ReduceSum", "Reshape", "Shape", "Size", "Slice", "Softmax", "SpaceToDepth", "Split", "Squeeze", "Sum", "Tile",
     "Transpose", "Unsqueeze"]
)  # fmt: skip
FLAT = frozenset(  # their derivative is 0 or they have none
    ["And", "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor"]
)


def _batch_norm(b: Recorder, layer: BatchNorm, params: Any, states: Any, x: Tensor, *, train: bool) -> Any:
    """BatchNorm with the batch's own statistics."""
    if layer.track and not active(layer.mode, train):
        return None
    if x.axis != 0 or x.shape[0] != 1:
        raise b.refuse("BatchNorm whose batch is not the first axis")
    b.check_float(x)
    shape = (x.shape[1], prod(x.shape[2:]))
    weight, bias = (b.weights(params[name]) for name in ("weight", "bias")) if layer.affine else (None, None)
    running = None
    if layer.track:
        running = (b.statistic(states["running_mean"]), b.statistic(states["running_var"]))
        if layer.counted:
            b.counters.append(b.paths[id(states["num_batches_tracked"])])
    number = (b.scratch_statistics(4 * shape[0]), b.sums)
    b.sums += 2 * shape[0]
    operand = b.reach(x, shape)
    made = b.result(
        BatchNormalization, [operand], shape, x, weight, bias, layer.epsilon, layer.momentum, running, number
    )
    return b.back(made, made.index.reshape(x.shape), x, x.axis), states


def _dropout(b: Recorder, layer: Dropout, params: Any, states: Any, x: Tensor, *, train: bool) -> Any:
    """Dropout with draws of the engine's own."""
    if not layer.probability or not active(layer.mode, train):
        return None
    if x.axis is None:
        raise b.refuse("dropout of what does not depend on the input")  # a mask would be the same for all samples
    b.check_float(x)
    shared = prod(x.shape[2:]) if layer.channels else 1
    alpha = layer.alpha and layer.probability < 1
    operand = b.stored(constant(np.ones(x.size, b.dtype))) if alpha else b.reach(x, (x.size,))
    b.draws += 1
    made = b.result(Draws, [operand], (x.size,), x, layer.probability, b.draws, shared)
    dropped = b.back(made, made.index.reshape(x.shape), x, x.axis)
    if not alpha:
        return dropped, states
    scale, shift, low = (np.asarray(term, b.dtype) for term in alpha_terms(layer.probability))
    kept = b.elementwise("Add", [b.elementwise("Mul", [x, scale], {}), shift], {})
    gone = b.elementwise("Equal", [dropped, np.zeros((), b.dtype)], {})
    return b.elementwise("Where", [gone, low, kept], {}), states


class Recorder(Builder):
    """Values are numpy arrays (known), tensors of samples, and tensors of parameters (their source is `vector`)."""

    name: ClassVar[str] = "the fused engine in training"
    overrides: ClassVar[Mapping[type[Layer], Override]] = {
        BatchNorm: Override(_batch_norm, frozenset([TRAIN])),
        Dropout: Override(_dropout, frozenset([TRAIN])),
    }

    def __init__(self, dtype: np.dtype[Any], graph: Graph | None = None):
        super().__init__(dtype, graph)
        self.vector = Weights(0, dtype)
        self.places: list[tuple[Path, tuple[int, ...], int]] = []
        self.paths: dict[int, Path] = {}  # of states, by identity
        self.running: list[tuple[Path, tuple[int, ...], int]] = []
        self.counters: list[Path] = []
        self.stopped: set[Buffer] = set()  # through which no gradient goes
        self.numbers: list[RowNumbers] = []  # what must hold of integer inputs
        self.sums = self.draws = self.trained = 0
        self._parts: list[np.ndarray] = []
        self._starts: list[int] = []
        self._statistics: list[np.ndarray] = []

    # Parameters and states

    def parameters(self, params: Tree) -> Tree:
        """All parameters as tensors of the vector, in the order of the tree."""

        def take(path: Path, array: np.ndarray) -> Any:
            if not trees.is_float(array.dtype):
                return array
            if array.dtype != self.dtype:
                raise InvalidModelError(
                    f"{trees.name_of(path)} is {array.dtype.name}, the model's dtype is {self.dtype}"
                )
            self.places.append((path, array.shape, self.vector.size))
            return self._appended(array)

        made = trees.map_with_path(take, params)
        self.trained = self.vector.size
        self._appended(np.zeros(-self.trained % _ALIGNMENT))
        return made

    def _appended(self, array: np.ndarray) -> Tensor:
        start = self.vector.size
        self._starts.append(start)
        self._parts.append(np.asarray(array, self.dtype).ravel())
        self.vector.size += array.size
        index = np.arange(start, start + array.size, dtype=np.int64).reshape(array.shape)
        return Tensor(self.vector, index, self.dtype, None)

    def values(self) -> np.ndarray:
        return np.concatenate([np.zeros(0, self.dtype), *self._parts])

    def weights(self, value: Value, what: str = "weights") -> Tensor:
        """A value as a part of the vector; known numbers are appended to it."""
        if isinstance(value, Tensor) and value.source is self.vector:
            if value.access() is None:
                raise self.refuse(f"{what} that are rearranged parameters")
            return value
        if isinstance(value, Tensor) and value.axis is None and not value.is_constant:
            raise self.refuse(f"{what} that steps compute from parameters")
        return self._appended(self.numbers_of(value, what))

    def statistic(self, array: np.ndarray) -> int:
        """Where a running statistic lies among the statistics."""
        path = self.paths[id(array)]
        for known, _, offset in self.running:
            if known == path:
                return offset
        offset = self._kept(np.asarray(array, self.dtype).ravel())
        self.running.append((path, array.shape, offset))
        return offset

    def scratch_statistics(self, count: int) -> int:
        return self._kept(np.zeros(count, self.dtype))

    def _kept(self, numbers: np.ndarray) -> int:
        offset = sum(part.size for part in self._statistics)
        self._statistics.append(np.concatenate([numbers, np.zeros(-numbers.size % 16, self.dtype)]))
        return offset

    def statistics(self) -> np.ndarray:
        return np.concatenate([np.zeros(0, self.dtype), *self._statistics])

    # Primitives

    def call(self, op_type: str, inputs: Sequence[Value | None], attributes: dict[str, Any], outputs: int) -> Any:
        given = {name: value for name, value in attributes.items() if value is not None}
        for value in inputs:
            if is_missing(value):
                raise _not_trained(self.unsupported)
            if isinstance(value, NotMade) and op_type != "GatherElements":
                raise self.refuse(f"use of {value.what}")
        if op_type != "Gather":
            inputs = [moving(self, value) for value in inputs]
        result: Any = None
        if not is_recorded(op_type, inputs):
            result = fold(op_type, list(inputs), given)
        elif op_type in _TRAINING:
            result = _TRAINING[op_type](self, *inputs, **given)
        elif op_type in _SHARED:
            result = OPERATORS[op_type](self, *inputs, **given)
        elif op_type in BINARY or op_type in FLAT or op_type in DERIVATIVES:
            result = self.elementwise(op_type, [i for i in inputs if i is not None], given)
        if result is None:
            raise UnsupportedError(f"the fused engine does not train {op_type}")
        results = result if isinstance(result, tuple) else (result,)
        if op_type == "MaxPool":
            results = (*results, NotMade("the indices of MaxPool"))
        if outputs > len(results):
            raise UnsupportedError(f"the fused engine makes {len(results)} outputs of {op_type}, not {outputs}")
        return results[0] if outputs == 1 else results[:outputs]

    def elementwise(
        self, op_type: str, inputs: Sequence[Value], attributes: Mapping[str, Any], dtype: Any = None
    ) -> Tensor:
        if op_type == "ScaleShift":  # one step forward, but two derivatives
            x, scale, shift = inputs
            return self.elementwise("Add", [self.elementwise("Mul", [x, scale], {}, dtype), shift], {}, dtype)
        reached = [
            self.stored(i) if isinstance(i, Tensor) and i.access() is None else i for i in inputs if i is not None
        ]
        made = super().elementwise(op_type, reached, attributes, dtype)
        step = self.steps[-1]
        assert isinstance(step, Elementwise)
        if op_type in FLAT:
            self.stopped.add(step.output)
        for i, t in enumerate(step.operands):
            if t.access() is None:
                step.operands[i] = t.plain() if t.is_constant else self._before(step, t)
        return made

    def _before(self, step: Elementwise, tensor: Tensor) -> Tensor:
        """A copy of an operand, made before the last step."""
        self.steps.pop()
        made = self.stored(tensor)
        self.steps.append(step)
        return made

    # Scalar operations, and weights of products, add to the gradient of a parameter; all other steps have to that of
    # what other steps made.

    def result(self, step_type: type[Step], operands: list[Tensor], shape: Shape, like: Tensor, *more: Any) -> Tensor:
        if step_type is Convert:  # tiles hold integers as floating-point numbers already
            made = super().result(Rearrange, [replace(t, dtype=self.dtype) for t in operands], shape, like)
            assert isinstance(made.source, Buffer)
            self.stopped.add(made.source)
            return made
        reached = [self.own(t) for t in operands]
        reached = [t if t.access() is not None else self.stored(t) for t in reached]
        return super().result(step_type, reached, shape, like, *more)

    def stored(self, tensor: Tensor) -> Tensor:
        return super().stored(self.own(tensor))

    def joined(self, tensors: Sequence[Tensor], axis: int, shape: Shape, like: Tensor) -> Tensor:
        fixed = [t.source is self.vector or (t.is_constant and t.axis is None) for t in tensors]
        if all(fixed) and any(t.source is self.vector for t in tensors):  # still parameters, perhaps of a recurrence
            parts = [t if t.source is self.vector else self.weights(t) for t in tensors]
            return parts[0].moved(np.concatenate([t.index for t in parts], axis), like.axis)
        return super().joined([self.own(t) for t in tensors], axis, shape, like)

    def own(self, tensor: Tensor) -> Tensor:
        """Parameters as a value of every sample, made by a step; any other tensor as it is."""
        if tensor.source is not self.vector:
            return tensor
        inside = tensor.index[tensor.index >= 0]
        if not inside.size:
            return replace(constant(np.full(tensor.shape, tensor.fill, self.dtype)), axis=tensor.axis)
        array = np.searchsorted(self._starts, inside, "right")
        parts = [np.arange(own.min(), own.max() + 1) for own in (inside[array == n] for n in np.unique(array))]
        ranges = [Tensor(self.vector, part, self.dtype, None) for part in parts]
        copies = [Builder.elementwise(self, "Identity", [t], {}) for t in ranges]
        taken = np.concatenate(parts)
        made = copies[0] if len(copies) == 1 else super().joined(copies, 0, taken.shape, copies[0])
        index = np.where(tensor.index < 0, -1, np.searchsorted(taken, tensor.index))
        return replace(tensor, source=made.source, index=index)


# Operators with parameters


def _linear(b: Recorder, x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in] · weight [out, in]ᵀ."""
    b.check_float(x)
    if x.axis == len(x.shape) - 1:
        raise b.refuse("a product along the batch's axis")
    rows = prod(x.shape[:-1])
    operand = b.reach(x, (rows, x.shape[-1]))
    made = b.result(Linear, [operand], (rows, weight.shape[0]), x, weight)
    return b.back(made, made.index.reshape(*x.shape[:-1], weight.shape[0]), x, x.axis)


def _matmul(b: Recorder, x: Value, y: Value) -> Tensor:
    """A product with a matrix of parameters, or one of values of the sample."""
    left, right = b.tensor(x), b.tensor(y)
    b.check_float(left, right)
    left = b.stored(left) if left.is_constant else left
    if (right.is_constant or right.source is b.vector) and right.axis is None and len(right.shape) in (1, 2):
        columns = right.moved(right.index.reshape(right.shape[0], -1), None)
        if columns.is_constant or columns.access() is not None:
            weight = b.weights(columns)
            product = _linear(b, left, weight.moved(weight.index.T, None))
            return product if len(right.shape) == 2 else reshape(b, product, product.logical()[:-1])
    if len(left.shape) < 2 or len(right.shape) < 2:
        raise b.refuse("MatMul of vectors that depend on the input")
    return matmul(b, b.own(left), b.stored(right) if right.is_constant else b.own(right))


def _gemm(
    b: Recorder, x: Tensor, w: Value, c: Value | None = None, *, alpha: float = 1.0, beta: float = 1.0,
    transA: int = 0, transB: int = 0,
) -> Tensor:  # fmt: skip
    if transA:
        raise b.refuse("Gemm with a transposed input")
    right = b.tensor(w)
    product = _scaled(b, _matmul(b, x, right.moved(right.index.T, None) if transB else right), alpha)
    return product if c is None else b.elementwise("Add", [product, _scaled(b, b.tensor(c), beta)], {})


def _scaled(b: Recorder, x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else b.elementwise("Mul", [x, np.asarray(factor, b.dtype)], {})


def _conv(
    b: Recorder, x: Tensor, w: Value, bias: Value | None = None, *, kernel_shape: Any = None, strides: Any = None,
    pads: Any = None, dilations: Any = None, group: int = 1, auto_pad: str = "NOTSET",
) -> Tensor:  # fmt: skip
    b.check_float(x)
    if x.axis != 0 or x.shape[0] != 1:
        raise b.refuse("Conv whose batch is not the first axis")
    made_by_steps = made_weights(b, w)
    weight = b.weights(w) if made_by_steps is None else made_by_steps
    image = x.reshaped(x.shape[1:])
    window = Window.of(image.shape[1:], weight.shape[2:], strides, pads, dilations, auto_pad)
    grown = padded(b, image, [(0, 0), *window.pads], 0.0)
    if made_by_steps is not None:
        return multiplied(b, grown, x, weight, bias, window, group)
    offsets = None if bias is None else b.weights(bias)
    made = convolved(b, grown, x, weight, offsets, tuple(window.strides), tuple(window.dilations), group)
    return b.back(made, made.index[None], x, x.axis)


def _batch_normalization(
    b: Recorder, x: Tensor, scale: Value, shift: Value, mean: Value, variance: Value, *, epsilon: float = 1e-5,
    momentum: float = 0.9, training_mode: int = 0,
) -> Tensor:  # fmt: skip
    """With known statistics, that is of a layer that stays in evaluation mode."""
    column = (-1,) + (1,) * (len(x.shape) - 2)
    m, v = (
        b.numbers_of(a, "BatchNormalization with statistics").astype(np.float64).reshape(column)
        for a in (mean, variance)
    )
    root = 1 / np.sqrt(v + epsilon)
    y = b.elementwise("Mul", [b.elementwise("Sub", [x, m.astype(b.dtype)], {}), root.astype(b.dtype)], {})
    s, t = (w.moved(w.index.reshape(column), None) for w in (b.weights(scale), b.weights(shift)))
    return b.elementwise("Add", [b.elementwise("Mul", [y, s], {}), t], {})


def _normalized(
    b: Recorder, x: Tensor, groups: int, scale: Value | None, shift: Value | None, epsilon: float, centred: bool
) -> Tensor:
    """x normalised over consecutive elements, groups of equal size; scale and shift broadcast to x."""
    b.check_float(x)
    shape = (groups, x.size // groups)
    found: list[Tensor | None] = []
    for w in (scale, shift):
        if w is None:
            found.append(None)
            continue
        spread = broadcast(b.weights(w), x.shape).reshaped(shape)
        if spread.access() is None:
            raise b.refuse("normalisation with weights that vary inside of a group")
        found.append(spread)
    made = b.result(Normalization, [b.reach(x, shape)], shape, x, *found, epsilon, centred)
    return b.back(made, made.index.reshape(x.shape), x, x.axis)


def _layer_normalization(
    b: Recorder, x: Tensor, scale: Value | None = None, shift: Value | None = None, *, axis: int = -1,
    epsilon: float = 1e-5, stash_type: int = 1,
) -> Tensor:  # fmt: skip
    axis %= len(x.shape)
    if x.axis is not None and x.axis >= axis:
        raise b.refuse("LayerNormalization along the batch's axis")
    return _normalized(b, x, prod(x.shape[:axis]), scale, shift, epsilon, True)


def _rms_normalization(
    b: Recorder, x: Tensor, scale: Value, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    axis %= len(x.shape)
    if x.axis is not None and x.axis >= axis:
        raise b.refuse("RMSNormalization along the batch's axis")
    return _normalized(b, x, prod(x.shape[:axis]), scale, None, epsilon, False)


def _group_normalization(
    b: Recorder, x: Tensor, scale: Value, shift: Value, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    if x.axis != 0:
        raise b.refuse("GroupNormalization whose batch is not the first axis")
    y = _normalized(b, x, x.shape[0] * num_groups, None, None, epsilon, True)
    column = (-1,) + (1,) * (len(x.shape) - 2)
    s, t = (w.moved(w.index.reshape(column), None) for w in (b.weights(scale), b.weights(shift)))
    return b.elementwise("Add", [b.elementwise("Mul", [y, s], {}), t], {})


def _instance_normalization(b: Recorder, x: Tensor, scale: Value, shift: Value, *, epsilon: float = 1e-5) -> Tensor:
    return _group_normalization(b, x, scale, shift, num_groups=x.shape[1], epsilon=epsilon)


def _stop_gradient(b: Recorder, x: Tensor) -> Tensor:
    made = b.stored(x)
    assert isinstance(made.source, Buffer)
    b.stopped.add(made.source)
    return made


_TRAINING: dict[str, Any] = {
    "MatMul": _matmul,
    "Gather": gather,
    "StopRowGradient": stop_row_gradient,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": conv_transpose,
    "InstanceNormalization": _instance_normalization,
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
    "RMSNormalization": _rms_normalization,
    "GroupNormalization": _group_normalization,
    "StopGradient": _stop_gradient,
    **TRAINED,
    "Resize": Resize,
    "ReduceL1": reduce_l1,
    "ReduceL2": reduce_l2,
    "ReduceSumSquare": reduce_squares,
    "ReduceProd": reduce_product,
}


# The whole model


def tape_of(model: Model) -> Tape:
    """A model in training mode as steps.

    Raises UnsupportedError naming every layer that the engine does not train.
    """
    signature = model.require_signature()
    kinds = [kind_of(spec, True) for spec in signature.inputs]
    return record(model.layer, model.params, model.states, kinds)


def record(layer: Layer, params: Tree, states: Tree, kinds: Sequence[Kind]) -> Tape:
    """The steps of a layer in training mode; `kinds` are those of its inputs with a batch of 1."""
    params, states = (trees.map_leaves(np.asarray, tree) for tree in (params, states))
    states = trees.map_leaves(lambda array: array.copy(), states)  # each has an identity of its own
    dtype = dtype_of(kinds, params, states)
    for kind in kinds:
        if kind.dtype not in (dtype, np.bool_) and kind.dtype.name not in INTEGERS:
            takes = f"{dtype}, {', '.join(INTEGERS)} and bool"
            raise UnsupportedError(f"the fused engine trains models with inputs of {takes}, not {kind.dtype}")
    inputs = [Buffer(prod(kind.shape), kind.dtype, i) for i, kind in enumerate(kinds)]
    values = [whole(buffer, kind.shape, kind.dtype, 0) for buffer, kind in zip(inputs, kinds, strict=True)]
    layer = layer.training if isinstance(layer, ByMode) else layer
    b = Recorder(dtype, layer if isinstance(layer, Graph) else None)
    b.paths = {id(array): path for path, array in trees.leaves(states)}
    values = [numbers(b, x) if x.dtype == bool else x for x in values]  # booleans are 0.0 and 1.0 inside
    outputs = _execute(b, layer, b.parameters(params), states, values)
    if len(outputs) != 1 or not isinstance(outputs[0], Tensor):
        raise UnsupportedError(f"the fused engine trains models with one output, not {len(outputs)}")
    output = outputs[0]
    if output.axis != 0 or output.shape[0] != 1 or output.dtype != dtype:
        raise UnsupportedError("the fused engine trains models whose output has the batch as its first axis")
    if (
        output.access((output.size,)) is None
        or not isinstance(output.source, Buffer)
        or output.source is b.vector
        or output.source.input is not None
    ):
        output = Tensor(*_contiguous(b, b.own(output)), output.dtype, 0)
    tape = Tape(
        dtype, inputs, output, b.steps, b.vector, b.trained, b.values(), b.places, b.statistics(), b.running, b.sums,
        b.counters, b.stopped, b.numbers,
    )  # fmt: skip
    return fused(tape)


def _contiguous(b: Recorder, t: Tensor) -> tuple[Buffer, np.ndarray]:
    output = Buffer(t.size, b.dtype)
    b.steps.append(Rearrange("output", [t], output, t.shape))
    return output, np.arange(t.size, dtype=np.int64).reshape(t.shape)


def _execute(b: Recorder, layer: Layer, params: Tree, states: Tree, inputs: list[Tensor]) -> list[Any]:
    """The outputs of a layer in training.

    Raises UnsupportedError naming what is not trained, and states that are written beside those of BatchNorm.
    """
    if isinstance(layer, Graph):
        layer = layer.pruned()
    y, new = b.layer(layer, params, states, *inputs, train=True)
    outputs = list(y) if isinstance(y, tuple) else [y]
    if b.unsupported or any(is_missing(o) for o in outputs):
        raise _not_trained(b.unsupported)
    written = [trees.name_of(path) for path in trees.changed(states, new)]
    if written:
        raise UnsupportedError("the fused engine keeps no other states than BatchNorm's; train with JAX", written)
    return outputs


def _not_trained(unsupported: list[str]) -> UnsupportedError:
    return UnsupportedError("the fused engine does not train these layers; train with JAX", unsupported)
