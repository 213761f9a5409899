"""The interpreter that turns layers into steps: primitives on tensors are recorded, those on known numbers computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, ClassVar

import numpy as np

from ...ir.errors import InvalidModelError, UnsupportedError
from ...ir.graph import Graph, Node, ValueInfo
from ...ir.inference import output_dtype
from ...ir.interpreter import Interpreter
from .folding import Sizes, fold
from .steps import Elementwise, Instruction, Rearrange, Step
from .tensors import BATCH, Buffer, Shape, Tensor, broadcast, common, constant, whole

Value = np.ndarray | Sizes | Tensor

# operators that give a value its batch
_SPREADING = frozenset(("ConstantOfShape", "Expand", "Tile"))


def is_recorded(op_type: str, inputs: Sequence[Value | None]) -> bool:
    """Whether an operator becomes steps or tensors; otherwise its result is known now."""
    if any(isinstance(i, Tensor) for i in inputs):
        return True
    return op_type in _SPREADING and isinstance(inputs[-1], Sizes)


class Builder(Interpreter):
    """Values are numpy arrays (known) or tensors. Collects `steps`.

    Arguments:
        dtype: of the program's floating-point numbers.
        graph: which is recorded, if it is one.
    """

    name: ClassVar[str] = "the fused engine"

    def __init__(self, dtype: np.dtype[Any], graph: Graph | None = None):
        super().__init__()
        self.dtype = dtype
        self._graph = graph
        self._own = {id(node) for node in graph.nodes} if graph is not None else set()
        self.steps: list[Step] = []
        self.unsupported: list[str] = []
        self._node: Node | None = None

    # What an interpreter defines.

    def const(self, array: Any, like: Value | None = None) -> np.ndarray:
        return np.asarray(array) if like is None else np.asarray(array).astype(like.dtype)

    def dtype_of(self, value: Value) -> np.dtype[Any]:
        return np.dtype(value.dtype)

    def shape_of(self, value: Value) -> tuple[int | str | None, ...]:
        if not isinstance(value, Tensor):
            return tuple(value.shape)
        return tuple(("batch" if d == 1 else None) if i == value.axis else d for i, d in enumerate(value.shape))

    def call(self, op_type: str, inputs: Sequence[Value | None], attributes: dict[str, Any], outputs: int) -> Any:
        from . import recurrence, resizing  # noqa: F401  their operators register themselves
        from .operators import OPERATORS

        given = {name: value for name, value in attributes.items() if value is not None}
        if op_type != "GatherElements":
            inputs = [self.made(value) for value in inputs]
        result: Any = None
        if not is_recorded(op_type, inputs):
            result = fold(op_type, list(inputs), given)
        elif op_type in OPERATORS:
            result = OPERATORS[op_type](self, *inputs, **given)
        if result is None:
            raise UnsupportedError(f"the fused engine has no operator {op_type}")
        results = result if isinstance(result, tuple) else (result,)
        if op_type == "MaxPool":
            results = (*results, NotMade("the indices of MaxPool"))
        if outputs > len(results):
            raise UnsupportedError(f"the fused engine makes {len(results)} outputs of {op_type}, not {outputs}")
        return results[0] if outputs == 1 else results[:outputs]

    def node(
        self, node: Node, params: Mapping[str, Any], states: Mapping[str, Any], inputs: Sequence[Any], *, train: bool
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """One node; what is unsupported is noted, so that all of it can be named at once."""
        if any(i is _MISSING for i in inputs):
            return self.stand_ins(node), states
        self._node = node
        try:
            return super().node(node, params, states, inputs, train=train)
        except UnsupportedError as error:
            self.unsupported.append(f"{node.layer!r} {node.place()}: {error}")
        except InvalidModelError:
            if not self.unsupported:  # else it may be that of a stand-in
                raise
        return self.stand_ins(node), states

    def stand_ins(self, node: Node) -> tuple[Value, ...]:
        """In place of a node's results, so that what follows can be judged: values of the dtypes and shapes that the
        graph knows, or nothing."""
        values = self._graph.values if self._graph is not None and id(node) in self._own else {}
        return tuple(self._stand_in(values.get(name)) for name in node.outputs)

    def _stand_in(self, info: ValueInfo | None) -> Value:
        if info is None or not info.shape or isinstance(info.shape[0], int):
            return missing()
        if any(not isinstance(d, int) for d in info.shape[1:]) or info.dtype not in (self.dtype.name, "int32", "int64"):
            return missing()
        dtype, shape = np.dtype(info.dtype), (1, *(int(d) for d in info.shape[1:] if d is not None))
        return whole(Buffer(prod(shape), dtype), shape, dtype, 0)

    # What operators use.

    @property
    def here(self) -> str:
        """The layer that is being recorded, in words."""
        return self._node.place() if self._node is not None else "/".join(self.place) or "model"

    def refuse(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"the fused engine has no {what}{self.where()}")

    def made(self, value: Any) -> Any:
        """A value that steps make. Raises UnsupportedError if there are none for it."""
        if not isinstance(value, NotMade):
            return value
        if value.make is None:
            raise self.refuse(f"use of {value.what}")
        return value.make()

    def tensor(self, value: Value) -> Tensor:
        """A value as a tensor; known numbers become a constant."""
        if isinstance(value, Sizes):
            raise self.refuse("data computed from the size of the batch")
        return value if isinstance(value, Tensor) else constant(value)

    def sizes_of(self, value: Value | None, what: str) -> np.ndarray:
        """A known value, with BATCH in place of the size of the batch."""
        if not isinstance(value, Sizes):
            return self.numbers_of(value, what)
        if np.any(value.of_batch & ~value.multiples()):
            raise self.refuse(f"{what} that are no multiple of the size of the batch")
        return value.numbers

    def numbers_of(self, value: Value | None, what: str) -> np.ndarray:
        """A value that must be known. Raises UnsupportedError if it depends on the inputs or their batch."""
        if isinstance(value, Sizes):
            raise self.refuse(f"{what} computed from the size of the batch")
        if isinstance(value, Tensor) and value.is_constant and value.axis is None:
            return value.values()
        if value is None or isinstance(value, Tensor):
            raise self.refuse(f"{what} that depends on the inputs")
        return np.asarray(value)

    def check_float(self, *tensors: Tensor) -> None:
        for t in tensors:
            if t.dtype != self.dtype and t.dtype != bool and not t.is_constant:
                raise self.refuse(f"arithmetic on {t.dtype.name} (the model's dtype is {self.dtype.name})")

    def result(self, step_type: type[Step], operands: list[Tensor], shape: Shape, like: Tensor, *more: Any) -> Tensor:
        """Records a step; returns its result as a tensor of the step's shape with `like`'s dtype and no batch axis."""
        output = Buffer(prod(shape), self.dtype)
        self.steps.append(step_type(self.here, operands, output, shape, *more))
        return whole(output, shape, like.dtype, None)

    def elementwise(
        self, op_type: str, inputs: Sequence[Value], attributes: Mapping[str, Any], dtype: Any = None
    ) -> Tensor:
        """Records one scalar operation on broadcast operands; its dtype is ONNX's unless given."""
        tensors = [self.tensor(i) for i in inputs]
        self.check_float(*tensors)
        shape, axis, outer = common(tensors, op_type)
        literal = {i: t for i, t in enumerate(tensors) if t.is_constant and t.size == 1 and t.dtype.kind in "fbiu"}
        operands = [broadcast(t, shape) for i, t in enumerate(tensors) if i not in literal]
        code: list[Instruction] = []
        arguments = []
        position = 0
        for i in range(len(tensors)):
            if i in literal:
                code.append(Instruction("Constant", (), (("value", float(literal[i].values().item())),)))
                arguments.append(len(operands) + len(code) - 1)
            else:
                arguments.append(position)
                position += 1
        code.append(Instruction(op_type, tuple(arguments), tuple(sorted(attributes.items()))))
        if dtype is None:
            dtype = output_dtype(op_type, 0, [t.dtype for t in tensors], attributes)
        dtype = np.dtype(bool) if dtype == np.dtype(bool) else self.dtype
        order = _storage_order(operands, shape)
        operands = [t.moved(t.index.transpose(order), None) for t in operands]
        turned = tuple(shape[i] for i in order)
        output = Buffer(prod(shape), self.dtype)
        self.steps.append(Elementwise(self.here, operands, output, turned, code))
        index = whole(output, turned, dtype).index.transpose(np.argsort(order))
        return Tensor(output, index, np.dtype(dtype), axis, outer)

    def stored(self, tensor: Tensor) -> Tensor:
        """The same values contiguous in a buffer of their own."""
        order = _storage_order([tensor], tensor.shape)
        turned = tensor.moved(tensor.index.transpose(order), None)
        if tensor.dtype != self.dtype and tensor.dtype != bool and not tensor.is_constant:
            raise self.refuse(f"rearrangement of {tensor.dtype.name}")
        output = Buffer(tensor.size, self.dtype)
        self.steps.append(Rearrange(self.here, [turned], output, turned.shape))
        index = whole(output, turned.shape, tensor.dtype).index.transpose(np.argsort(order))
        return Tensor(output, index, tensor.dtype, tensor.axis, tensor.outer)

    def joined(self, tensors: Sequence[Tensor], axis: int, shape: Shape, like: Tensor) -> Tensor:
        """Tensors one after the other along an axis, copied into a buffer of their own."""
        output = Buffer(prod(shape), self.dtype)
        index = np.arange(prod(shape), dtype=np.int64).reshape(shape)
        ends = np.cumsum([t.shape[axis] for t in tensors])[:-1]
        for t, target in zip(tensors, np.split(index, ends, axis), strict=True):
            self.steps.append(Rearrange(self.here, [t], output, t.shape, target))
        return Tensor(output, index, like.dtype, like.axis, like.outer)

    def reach(self, tensor: Tensor, shape: Shape) -> Tensor:
        """A tensor in another shape whose elements are an affine function of the coordinates: copied if need be."""
        plain = tensor.reshaped(shape)
        return plain if plain.access() is not None else self.stored(plain)

    def back(self, made: Tensor, index: np.ndarray, like: Tensor, axis: int | None, outer: int | None = None) -> Tensor:
        """A step's result in the model's arrangement: its index, and where the batch is."""
        return Tensor(made.source, index, made.dtype, axis, like.outer if outer is None else outer)


def _storage_order(operands: Sequence[Tensor], shape: Shape) -> tuple[int, ...]:
    """The order of axes in which the first operand of the full shape lies in memory: results are stored likewise."""
    for t in operands:
        if t.is_constant or t.size != prod(shape) or np.bincount(t.index[t.index >= 0], minlength=1).max() > 1:
            continue
        steps = []
        for axis, size in enumerate(shape):
            pair = (
                t.index.take(range(min(size, 2)), axis) if size < 3 else t.index.take((size // 2, size // 2 + 1), axis)
            )
            middle = tuple(d // 2 for i, d in enumerate(pair.shape) if i != axis)
            line = np.moveaxis(pair, axis, 0)[(slice(None), *middle)]
            steps.append(abs(int(line[1]) - int(line[0])) if size > 1 and line.min() >= 0 else 0)
        order = sorted((i for i in range(len(shape)) if shape[i] > 1), key=lambda i: (-steps[i], i))
        return (*(i for i in range(len(shape)) if shape[i] == 1), *order)
    return tuple(range(len(shape)))


class NotMade:
    """In place of a result that steps don't make, as long as nothing uses it.

    Arguments:
        what: in words, for errors.
        greatest: of a row number, the tensor and the axis along which it is that of the greatest element.
    """

    dtype = np.dtype(np.int64)

    def __init__(self, what: str, greatest: tuple[Tensor, int] | None = None):
        self.what, self.greatest = what, greatest
        self.make: Callable[[], Tensor] | None = None  # records the steps after all


class _Missing:
    """In place of what an unsupported node would have made."""

    dtype = np.dtype(np.float32)
    shape: tuple[int, ...] = ()


_MISSING: Any = _Missing()


def missing() -> Any:
    """In place of a value of which nothing is known."""
    return _MISSING


def is_missing(value: Any) -> bool:
    return value is _MISSING


def logical_shape(builder: Builder, value: Value) -> np.ndarray:
    """The shape of a value as numbers, of the batch too."""
    if not isinstance(value, Tensor):
        return np.array(value.shape, np.int64)
    return np.array(value.logical(), np.int64)


def reshape(builder: Builder, x: Tensor, target: Sequence[int]) -> Tensor:
    """x with another shape of the model, BATCH in place of the batch and -1 for one size that follows."""
    total = x.size * (BATCH if x.axis is not None else 1)
    known = prod(d for d in target if d != -1)
    if -1 in target:
        if known == 0 or total % known:
            raise builder.refuse(f"Reshape of {x.shape} to {tuple(target)}, which depends on the batch's size")
        target = [total // known if d == -1 else d for d in target]
    elif known != total:
        raise builder.refuse(f"Reshape of {x.shape} to {tuple(target)}, which fixes the batch's size")
    if x.axis is None:
        return x.moved(x.index.reshape(target), None)
    axes = [i for i, d in enumerate(target) if d and d % BATCH == 0]
    before, _ = x.batch_rank()
    for axis in axes:
        shape = tuple(d // BATCH if i == axis else d for i, d in enumerate(target))
        ahead = prod(shape[:axis])
        if before % ahead == 0 and shape[axis] % (before // ahead) == 0:
            return x.moved(x.index.reshape(shape), axis, before // ahead)
    raise builder.refuse(f"Reshape that mixes samples of the batch: {x.shape} to {tuple(target)}")
