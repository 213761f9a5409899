"""Whether a layer only moves its parameters before steps use them, so that packing them may be a gather.

Trials with numbers cannot tell: max(w, -10) leaves most numbers as they are. Here the layer is executed with parameters
that nobody can look into. Primitives that move elements give such parameters again; whatever else is known without the
layer's inputs was computed from them. What steps read is then packed by sums and products at most (a BatchNorm folded
into a convolution), and these one trial tells from moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ...ir import trees
from ...ir.errors import UnsupportedError
from ...ir.foreign import Kind
from ...ir.interpreter import Interpreter
from ...ir.layer import Layer
from ...ir.trees import Tree
from .program import record
from .tensors import Tensor

# operators that move elements of their first input (Concat: of all)
_MOVING = frozenset(
    (
        *("Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze"),
        *("StopGradient", "StopRowGradient", "Tile", "Transpose", "Unsqueeze"),
    )
)
# operators whose further inputs say what is computed, not with which numbers
_DESCRIBED = _MOVING - {"Concat"} | {"Pad", "Pow", "Resize"}


def only_moves(
    layer: Layer, params: Tree, states: Tree, kinds: Sequence[Kind], is_parameter: Callable[[np.ndarray], bool]
) -> bool:
    """Whether steps get the parameters' elements as they are.

    Arguments:
        params, states: of the layer.
        kinds: shape of one sample and dtype of each input.
        is_parameter: says which arrays are meant; the others are constants.

    Raises UnsupportedError naming the layers that the engine does not take.
    """
    one = [Kind((1, *kind.shape), kind.dtype) for kind in kinds]
    try:
        record(_Blind(layer, is_parameter), params, states, one, True)
    except _Computed:
        return False
    except UnsupportedError:
        record(layer, params, states, one, True)  # names all layers that are not taken
        raise
    return True


class _Computed(TypeError):
    """A parameter was looked into."""


def _refuse(*_: Any) -> NoReturn:
    raise _Computed


class _Parameter:
    """An array or constant tensor of which only shape and dtype can be seen: its elements are those of parameters."""

    def __init__(self, value: np.ndarray | Tensor):
        self.value = value
        self.shape, self.dtype, self.size = tuple(value.shape), np.dtype(value.dtype), int(value.size)
        self.ndim = len(self.shape)

    __getattr__ = __bool__ = __eq__ = __len__ = __iter__ = __getitem__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __abs__ = __float__ = __int__ = __matmul__ = __rmatmul__ = __pow__ = _refuse


@dataclass(frozen=True)
class _Blind(Layer):
    """A layer that is executed by `_Mover`."""

    layer: Layer
    is_parameter: Callable[[np.ndarray], bool]

    def forward(
        self, op: Interpreter, params: Mapping[str, Any], states: Mapping[str, Any], *inputs: Any, train: bool
    ) -> tuple[Any, Mapping[str, Any]]:
        hidden = [
            trees.map_leaves(lambda a: _Parameter(a) if self.is_parameter(a) else a, tree) for tree in (params, states)
        ]
        outputs, _ = _Mover(op).layer(self.layer, *hidden, *inputs, train=train)
        if any(isinstance(y, _Parameter) for y in (outputs if isinstance(outputs, tuple) else (outputs,))):
            raise _Computed  # an output that is a parameter itself
        return outputs, states


class _Mover(Interpreter):
    """Has another interpreter compute, and raises `_Computed` where that computes numbers of parameters."""

    def __init__(self, op: Interpreter):
        super().__init__()
        self._op, self.name = op, op.name  # type: ignore[misc]

    def const(self, array: Any, like: Any = None) -> Any:
        if isinstance(array, _Parameter):
            return array if like is None or self.dtype_of(like) == array.dtype else _refuse()
        return self._op.const(array, like)

    def dtype_of(self, value: Any) -> np.dtype[Any]:
        return self._op.dtype_of(_seen(value))

    def shape_of(self, value: Any) -> tuple[int | str | None, ...] | None:
        return self._op.shape_of(_seen(value))

    def call(self, op_type: str, inputs: Sequence[Any], attributes: dict[str, Any], outputs: int) -> Any:
        places = [i for i, value in enumerate(inputs) if isinstance(value, _Parameter)]
        if any(places) and op_type in _DESCRIBED:
            raise _Computed
        made = self._op.call(op_type, [_seen(value) for value in inputs], attributes, outputs)
        if not places or op_type in ("Shape", "Size"):
            return made
        results = made if isinstance(made, tuple) else (made,)
        kept = tuple(_Parameter(y) if _is_known(y) else y for y in results)
        if op_type not in _MOVING and any(isinstance(y, _Parameter) for y in kept):
            raise _Computed
        return kept if isinstance(made, tuple) else kept[0]


def _seen(value: Any) -> Any:
    return value.value if isinstance(value, _Parameter) else value


def _is_known(value: Any) -> bool:
    """Whether a value is the same for all inputs."""
    return isinstance(value, np.ndarray) or (isinstance(value, Tensor) and value.is_constant)
