"""From a model to a program: its layers executed by the builder, its inputs as buffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from ...ir import trees
from ...ir.errors import InvalidModelError, UnsupportedError
from ...ir.foreign import Kind
from ...ir.graph import execute, graph_of
from ...ir.layer import Layer
from ...ir.model import Model, TensorSpec
from ...ir.trees import Tree
from .builder import Builder, NotMade, is_missing
from .operators import numbers
from .steps import Program
from .tensors import Buffer, Shape, Tensor, whole

_FLOATS = ("float32", "float64")
_INTEGERS = ("int32", "int64", "uint8", "int8", "bool")  # of inputs that are row numbers, or cast


def program_of(model: Model, weights: str | None = None) -> Program:
    """The steps of a model in evaluation mode.

    Arguments:
        weights: bfloat16, or None for the dtype of the model: how large weights lie in memory.

    Raises UnsupportedError naming every layer that the engine has no code for.
    """
    signature = model.require_signature()
    batched = any(not isinstance((spec.shape or (None,))[0], int) for spec in signature.inputs if spec.shape != ())
    kinds = [kind_of(spec, batched) for spec in signature.inputs]
    program = record(model.layer, model.params, model.states, kinds, batched)
    if weights is None:
        return program
    if weights != "bfloat16":
        raise UnsupportedError(f"the fused engine keeps no weights in {weights!r}; choose bfloat16 or None")
    if program.dtype != np.float32:
        raise UnsupportedError(f"weights in bfloat16 are for models in float32, not in {program.dtype}")
    return replace(program, stored=np.dtype(ml_dtypes.bfloat16))


def kind_of(spec: TensorSpec, batched: bool) -> Kind:
    """Shape and dtype of one sample of an input, in a model without a batch of the whole input."""
    if spec.container or spec.shape is None:
        raise UnsupportedError(f"the fused engine takes arrays of known rank; input {spec} is none")
    sizes = spec.shape
    if batched:
        if not sizes or isinstance(sizes[0], int):
            raise UnsupportedError(f"the fused engine needs the batch as the first axis of every input, not {spec}")
        sizes = (1, *sizes[1:])
    dynamic = [str(d) for d in sizes if not isinstance(d, int)]
    if dynamic:
        raise UnsupportedError(f"the fused engine needs fixed sizes behind the batch; {spec} has {', '.join(dynamic)}")
    return Kind(tuple(int(d) for d in sizes if d is not None), np.dtype(spec.dtype))


def record(layer: Layer, params: Tree, states: Tree, kinds: Sequence[Kind], batched: bool) -> Program:
    """The steps of a layer.

    Arguments:
        kinds: of its inputs; with a batch the first size is 1.
    """
    params, states = (trees.map_leaves(np.asarray, tree) for tree in (params, states))
    dtype = dtype_of(kinds, params, states)
    inputs = []
    for number, kind in enumerate(kinds):
        if kind.dtype != dtype and kind.dtype.name not in _INTEGERS:
            raise UnsupportedError(f"the fused engine has no inputs of {kind.dtype} beside {dtype}; use one of float32 "
                                   f"and float64, and {', '.join(_INTEGERS)}")  # fmt: skip
        inputs.append(Buffer(int(np.prod(kind.shape, dtype=np.int64)), kind.dtype, number))
    builder = Builder(dtype, graph_of(layer))
    values = [
        whole(buffer, kind.shape, kind.dtype, 0 if batched else None)
        for buffer, kind in zip(inputs, kinds, strict=True)
    ]
    values = [numbers(builder, x) if x.dtype == bool else x for x in values]  # booleans are 0.0 and 1.0 inside
    outputs = _execute(builder, layer, params, states, values)
    return Program(
        dtype, inputs, [_output(builder, o, batched, i) for i, o in enumerate(outputs)], builder.steps, batched
    )


def dtype_of(kinds: Sequence[Kind], params: Tree, states: Tree) -> np.dtype[Any]:
    """The one floating-point dtype of inputs and parameters."""
    found = {k.dtype.name for k in kinds if k.dtype.kind not in "iub"}
    found |= {a.dtype.name for _, a in trees.leaves(params) if trees.is_float(a.dtype)}
    if not found:
        found = {a.dtype.name for _, a in trees.leaves(states) if trees.is_float(a.dtype)} or {"float32"}
    if len(found) > 1 or not found <= set(_FLOATS):
        raise UnsupportedError(
            f"the fused engine computes in float32 or float64 throughout, not in {', '.join(sorted(found))}"
        )
    return np.dtype(found.pop())


def _execute(builder: Builder, layer: Layer, params: Tree, states: Tree, inputs: list[Tensor]) -> list[Any]:
    graph = graph_of(layer)
    if graph is not None:
        graph = graph.pruned()
        if len(inputs) != len(graph.inputs):
            raise InvalidModelError(f"{len(graph.inputs)} inputs are needed, not {len(inputs)}")
        environment: dict[str | None, Any] = {None: None, **dict(zip(graph.inputs, inputs, strict=True))}
        written = execute(graph.nodes, builder, params, states, environment, train=False)
        changed = [trees.name_of(path) for path in written]
        outputs = [environment[name] for name in graph.outputs]
    else:
        y, new = builder.layer(layer, params, states, *inputs, train=False)
        changed = [trees.name_of(path) for path in trees.changed(states, new)]
        outputs = list(y) if isinstance(y, tuple) else [y]
    if builder.unsupported:
        raise UnsupportedError(
            "the fused engine does not take these layers; use backend='jax' or 'onnxruntime'", builder.unsupported
        )
    if changed:
        raise UnsupportedError("the fused engine keeps no states, but evaluation writes to", changed)
    assert not any(is_missing(o) for o in outputs)
    return outputs


def _output(builder: Builder, value: Any, batched: bool, number: int) -> Tensor:
    """An output as a tensor whose samples lie one behind the other."""
    if isinstance(value, NotMade) and value.make is None:
        raise UnsupportedError(f"the fused engine does not make {value.what} (output {number})")
    tensor = builder.tensor(builder.made(value))
    raw = isinstance(tensor.source, Buffer) and tensor.source.dtype != builder.dtype
    if raw or tensor.dtype not in (builder.dtype, np.int64, np.int32, np.bool_):
        raise UnsupportedError(f"the fused engine has no outputs of {tensor.dtype.name} (output {number})")
    if batched and tensor.axis is None:
        raise UnsupportedError(f"output {number} does not depend on the batch; the fused engine needs one that does")
    if batched and tensor.batch_rank()[0] != 1:
        raise UnsupportedError(f"the batch must be the first axis of output {number}, not axis {tensor.axis}")
    return tensor


def arrangement(output: Tensor) -> Shape | None:
    """The shape of an output with -1 on the batch's axis, if it is another one than [batch, …]: [1, batch, …], or
    several rows for each sample. None if it is that."""
    if output.axis is None or (output.axis == 0 and output.shape[0] == 1):
        return None
    return tuple(-1 if i == output.axis else d for i, d in enumerate(output.shape))


def check_first(program: Program) -> None:
    """Raises UnsupportedError for an output that is not [batch, …], for callers that need it so."""
    for i, output in enumerate(program.outputs):
        if (shape := arrangement(output)) is not None:
            sizes = ", ".join("batch" if d == -1 else str(d) for d in shape)
            raise UnsupportedError(f"output {i} must have the batch first, and once: it is ({sizes})")
