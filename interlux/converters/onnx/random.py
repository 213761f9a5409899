"""ONNX's random operators as layers that draw from a seed in the states: same inputs, same outputs."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from ...ir import dtypes
from ...ir.errors import UnsupportedError
from ...ir.layer import Layer
from ...ir.layers import Bernoulli, Multinomial, RandomTensor
from ..bodies import BodyBuilder
from ..builder import GraphBuilder, Value
from .upgrades import Form


def _drawn(op: GraphBuilder, form: Form, layer: Layer, given: Value | None, dtype: np.dtype) -> tuple[Value, ...]:
    """Records a layer with a seed of its own: from the node's attribute, else from the name of its output."""
    if isinstance(op, BodyBuilder):
        raise UnsupportedError("random numbers inside control flow are not supported: every turn would have the same")
    name = form.outputs[0]
    number = form.attributes.get("seed")
    first = zlib.crc32(name.encode()) if number is None else int(np.float32(number).view(np.uint32))
    path = ("random", name, "seed")
    seed = np.array([first, 0], np.uint32)
    op.extra_states[path] = seed
    return (op.add(layer, given, states={"seed": op.stored(path, seed)}, dtype=dtype),)


def _kind(form: Form) -> tuple[str, float, float]:
    get = form.attributes.get
    if form.op_type.startswith("RandomUniform"):
        return "uniform", get("low", 0.0), get("high", 1.0)
    return "normal", get("mean", 0.0), get("scale", 1.0)


def _tensor(op: GraphBuilder, form: Form) -> tuple[Value, ...]:
    dtype = dtypes.from_onnx(form.attributes.get("dtype", 1))
    shape = op.ints(*form.attributes["shape"])
    return _drawn(op, form, RandomTensor(*_kind(form), dtype.name), shape, dtype)


def _like(op: GraphBuilder, form: Form) -> tuple[Value, ...]:
    (x,) = form.inputs
    number = form.attributes.get("dtype")
    dtype = x.dtype if number is None and x is not None else dtypes.from_onnx(number or 1)
    return _drawn(op, form, RandomTensor(*_kind(form), dtype.name), op.Shape(x), dtype)


def _bernoulli(op: GraphBuilder, form: Form) -> tuple[Value, ...]:
    (x,) = form.inputs
    number = form.attributes.get("dtype")
    dtype = x.dtype if number is None and x is not None else dtypes.from_onnx(number or 1)
    return _drawn(op, form, Bernoulli(dtype.name), x, dtype)


def _multinomial(op: GraphBuilder, form: Form) -> tuple[Value, ...]:
    dtype = dtypes.from_onnx(form.attributes.get("dtype", 6))
    layer = Multinomial(form.attributes.get("sample_size", 1), dtype.name)
    return _drawn(op, form, layer, form.inputs[0], dtype)


RANDOM: dict[str, Callable[[GraphBuilder, Form], tuple[Value, ...]]] = {
    "RandomUniform": _tensor,
    "RandomNormal": _tensor,
    "RandomUniformLike": _like,
    "RandomNormalLike": _like,
    "Bernoulli": _bernoulli,
    "Multinomial": _multinomial,
}
