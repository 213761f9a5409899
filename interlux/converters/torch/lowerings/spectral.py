"""Complex tensors and Fourier transforms.

A complex tensor is two real values (`Complex`), so that all of it can be said in ONNX's operators; DFT and STFT take
and give the parts along a last axis of size 2. `COMPLEX` is the table of lowerings for nodes that read or make complex
tensors: what only moves elements is done by the lowering for real tensors, on each part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ....ir.errors import UnsupportedError
from ....ir.trees import is_float
from ...builder import Value
from ..arrays import dtype_of
from ..builder import MAX_INT64, Size, TorchBuilder
from ..complex import Complex, each_part
from .registry import LOWERINGS, Lowering, aten
from .views import VIEW_WRITES

COMPLEX: dict[str, Lowering] = {}
DType = np.dtype[Any]


def complex_aten(*names: str) -> Callable[[Lowering], Lowering]:
    """Enters a lowering of complex tensors; a name without overload means `.default`."""

    def enter(function: Lowering) -> Lowering:
        COMPLEX.update({(n if "." in n else f"{n}.default"): function for n in names})
        return function

    return enter


def is_complex(node: torch.fx.Node) -> bool:
    """Whether a node reads or makes complex tensors or numbers."""
    leaves = torch.utils._pytree.tree_leaves((node.args, node.kwargs, node.meta.get("val")))
    described = [leaf.meta.get("val") if isinstance(leaf, torch.fx.Node) else leaf for leaf in leaves]
    return any(
        isinstance(v, complex)
        or (isinstance(v, torch.dtype) and v.is_complex)
        or (isinstance(v, torch.Tensor) and v.is_complex())
        for v in torch.utils._pytree.tree_leaves(described)
    )


def real_dtype(dtype: torch.dtype) -> DType:
    """The dtype of the parts of a complex dtype; a real one as it is."""
    if dtype == torch.complex32:
        raise UnsupportedError("tensors of dtype torch.complex32 are not supported; use complex64")
    return dtype_of(dtype.to_real() if dtype.is_complex else dtype)


def _kind(op: TorchBuilder) -> DType:
    """The dtype of the parts of the present node's result."""
    first = op.result[0] if isinstance(op.result, list | tuple) else op.result
    return real_dtype(first.dtype)


def split_pairs(op: TorchBuilder, pairs: Value) -> Complex:
    """The parts that lie along the last axis, of size 2."""
    shape = None if pairs.shape is None else pairs.shape[:-1]
    made = [op.Gather(pairs, op.value(i), axis=-1) for i in range(2)]
    for value in made:
        value.shape = shape
    return Complex(*made)


def as_pairs(op: TorchBuilder, x: Any, rank: int) -> Value:
    """A tensor of a rank with its parts along a new last axis: of size 2 if it is complex, else of size 1."""
    last = op.ints(rank)
    if not isinstance(x, Complex):
        return op.Unsqueeze(x, last)
    return op.Concat(op.Unsqueeze(x.real, last), op.Unsqueeze(x.imag, last), axis=rank)


def _zeros_like(op: TorchBuilder, x: Value) -> Value:
    return op.Expand(op.const(np.array(0, x.dtype)), op.Shape(x))


def _promoted(op: TorchBuilder, x: Any, dtype: DType) -> Complex:
    """A tensor or number as a complex tensor with parts of a dtype."""
    if isinstance(x, Complex):
        return Complex(op.cast(x.real, dtype), op.cast(x.imag, dtype))
    if isinstance(x, complex | float | int) and not isinstance(x, torch.SymInt):
        return Complex(op.const(np.array(complex(x).real, dtype)), op.const(np.array(complex(x).imag, dtype)))
    real = op.value(x, dtype)
    return Complex(real, _zeros_like(op, real))


# --- made of and taken apart into real tensors


@complex_aten("view_as_complex")
def view_as_complex(op: TorchBuilder, x: Value) -> Complex:
    return split_pairs(op, x)


@complex_aten("view_as_real")
def view_as_real(op: TorchBuilder, z: Complex) -> Value:
    return as_pairs(op, z, len(op.result.shape) - 1)


@complex_aten("complex")
def make_complex(op: TorchBuilder, real: Value, imag: Value) -> Complex:
    sizes = list(op.result.shape)
    return Complex(_spread(op, real, sizes), _spread(op, imag, sizes))


def _spread(op: TorchBuilder, x: Value, sizes: Sequence[Size]) -> Value:
    return x if x.shape == op.shape(sizes) else op.Expand(x, op.sizes(sizes))


@complex_aten("polar")
def polar(op: TorchBuilder, length: Value, angle: Value) -> Complex:
    return Complex(op.Mul(length, op.Cos(angle)), op.Mul(length, op.Sin(angle)))


@complex_aten("real")
def real(op: TorchBuilder, z: Complex) -> Value:
    return z.real


@complex_aten("imag")
def imag(op: TorchBuilder, z: Complex) -> Value:
    return z.imag


@complex_aten("_conj", "conj", "_conj_physical", "conj_physical")
def conj(op: TorchBuilder, z: Complex) -> Complex:
    return Complex(z.real, op.Neg(z.imag))


@aten("real", "_conj", "conj", "_conj_physical", "conj_physical", "resolve_conj", "resolve_neg")
def same(op: TorchBuilder, x: Value) -> Value:
    """What these are of real tensors."""
    return op.Identity(x)


@complex_aten("mH", "adjoint", "matrix_H")
def conjugate_transpose(op: TorchBuilder, z: Complex) -> Complex:
    order = list(range(len(op.result.shape)))
    order[-2:] = order[:-3:-1]
    swapped: Complex = each_part(lambda x: op.Transpose(x, perm=tuple(order)), z)
    return conj(op, swapped)


@complex_aten("abs")
def absolute(op: TorchBuilder, z: Complex) -> Value:
    """Without overflow where a square would; its derivative at 0 is 0, as torch's is."""
    return _length(op, z)


def _length(op: TorchBuilder, z: Complex) -> Value:
    one, zero = (op.const(np.array(n, z.dtype)) for n in (1, 0))
    most = op.StopGradient(op.Max(op.Abs(z.real), op.Abs(z.imag)))  # a scale: the result does not depend on it
    endless = op.Or(op.IsInf(z.real), op.IsInf(z.imag))
    nothing = op.Equal(most, zero)
    scale = op.Where(op.Or(nothing, endless), one, most)
    x, y = (op.Where(op.Or(nothing, endless), one, op.Div(part, scale)) for part in (z.real, z.imag))
    length = op.Mul(scale, op.Sqrt(op.Add(op.Mul(x, x), op.Mul(y, y))))
    return op.Where(nothing, zero, op.Where(endless, op.const(np.array(np.inf, z.dtype)), length))


@complex_aten("angle")
def angle(op: TorchBuilder, z: Complex) -> Value:
    return arctangent(op, z.imag, z.real)


def arctangent(op: TorchBuilder, y: Value, x: Value) -> Value:
    """atan2(y, x): the angle of the point (x, y), with the signs of zeros as IEEE 754 has them; derivative 0 at 0."""

    def number(n: float) -> Value:
        return op.const(np.array(n, x.dtype))

    def negative(v: Value) -> Value:  # -0 as well
        below = op.Less(v, number(0))
        return op.Or(below, op.And(op.Equal(v, number(0)), op.Less(op.Reciprocal(op.StopGradient(v)), number(0))))

    width, height = op.Abs(x), op.Abs(y)
    steep = op.Greater(height, width)
    long, short = op.Where(steep, height, width), op.Where(steep, width, height)
    nowhere = op.Equal(long, number(0))
    both_endless = op.And(op.IsInf(x), op.IsInf(y))
    plain = op.Not(op.Or(nowhere, both_endless))
    slope = op.Div(op.Where(plain, short, number(0)), op.Where(plain, long, number(1)))
    slope = op.Where(both_endless, number(1), slope)
    found = op.Atan(slope)
    found = op.Where(steep, op.Sub(number(np.pi / 2), found), found)
    found = op.Where(negative(x), op.Sub(number(np.pi), found), found)
    found = op.Where(negative(y), op.Neg(found), found)
    return op.Where(op.Or(op.IsNaN(x), op.IsNaN(y)), op.Add(x, y), found)


@complex_aten("sgn")
def sgn(op: TorchBuilder, z: Complex) -> Complex:
    length = _length(op, z)
    nothing = op.Equal(length, op.const(np.array(0, z.dtype)))
    safe = op.Where(nothing, op.const(np.array(1, z.dtype)), length)
    return Complex(op.Div(z.real, safe), op.Div(z.imag, safe))


# --- arithmetic


def _product(op: TorchBuilder, a: Complex, b: Complex, multiply: Callable[[Value, Value], Value]) -> Complex:
    real = op.Sub(multiply(a.real, b.real), multiply(a.imag, b.imag))
    return Complex(real, op.Add(multiply(a.real, b.imag), multiply(a.imag, b.real)))


@complex_aten("mul.Tensor", "mul.Scalar")
def mul(op: TorchBuilder, x: Any, y: Any) -> Complex:
    a, b = (_promoted(op, v, _kind(op)) for v in (x, y))
    return _product(op, a, b, lambda u, v: op.Mul(u, v))


def _sum(primitive: str) -> Lowering:
    def lowering(op: TorchBuilder, x: Any, y: Any, *, alpha: Any = 1) -> Complex:
        a, b = (_promoted(op, v, _kind(op)) for v in (x, y))
        if alpha != 1:
            b = _product(op, b, _promoted(op, alpha, _kind(op)), lambda u, v: op.Mul(u, v))
        result: Complex = each_part(lambda u, v: op.primitive(primitive, (u, v), {}), a, b)
        return result

    return lowering


complex_aten("add.Tensor", "add.Scalar")(_sum("Add"))
complex_aten("sub.Tensor", "sub.Scalar")(_sum("Sub"))


@complex_aten("rsub.Tensor", "rsub.Scalar")
def rsub(op: TorchBuilder, x: Any, y: Any, alpha: Any = 1) -> Complex:
    result: Complex = _sum("Sub")(op, y, x, alpha=alpha)
    return result


def _quotient(op: TorchBuilder, a: Complex, b: Complex) -> Complex:
    """a / b, scaled so that no square overflows."""
    scale = op.StopGradient(op.Max(op.Abs(b.real), op.Abs(b.imag)))
    a, b = (each_part(lambda x: op.Div(x, scale), z) for z in (a, b))
    square = op.Add(op.Mul(b.real, b.real), op.Mul(b.imag, b.imag))
    product = _product(op, a, conj(op, b), lambda u, v: op.Mul(u, v))
    result: Complex = each_part(lambda x: op.Div(x, square), product)
    return result


@complex_aten("div.Tensor", "div.Scalar", "true_divide.Tensor")
def div(op: TorchBuilder, x: Any, y: Any) -> Complex:
    if not isinstance(y, Complex | complex):
        divisor = op.value(y, _kind(op))
        result: Complex = each_part(lambda part: op.Div(part, divisor), _promoted(op, x, _kind(op)))
        return result
    return _quotient(op, _promoted(op, x, _kind(op)), _promoted(op, y, _kind(op)))


@complex_aten("reciprocal")
def reciprocal(op: TorchBuilder, z: Complex) -> Complex:
    one = each_part(lambda x: x, _promoted(op, 1, z.dtype))
    return _quotient(op, one, z)


@complex_aten("neg")
def neg(op: TorchBuilder, z: Complex) -> Complex:
    result: Complex = each_part(lambda x: op.Neg(x), z)
    return result


@complex_aten("square")
def square(op: TorchBuilder, z: Complex) -> Complex:
    return _product(op, z, z, lambda u, v: op.Mul(u, v))


@complex_aten("pow.Tensor_Scalar")
def power(op: TorchBuilder, z: Complex, exponent: Any) -> Complex:
    if exponent not in (1, 2, 3):
        raise UnsupportedError(f"complex numbers to the power {exponent}; use exp and log{op.where()}")
    result = z
    for _ in range(int(exponent) - 1):
        result = _product(op, result, z, lambda u, v: op.Mul(u, v))
    return result


@complex_aten("exp")
def exp(op: TorchBuilder, z: Complex) -> Complex:
    return polar(op, op.Exp(z.real), z.imag)


@complex_aten("log")
def log(op: TorchBuilder, z: Complex) -> Complex:
    return Complex(op.Log(_length(op, z)), arctangent(op, z.imag, z.real))


@complex_aten("matmul", "mm", "bmm", "mv", "dot")
def matmul(op: TorchBuilder, x: Any, y: Any) -> Complex:
    a, b = (_promoted(op, v, _kind(op)) for v in (x, y))
    return _product(op, a, b, lambda u, v: op.MatMul(u, v))


@complex_aten("linear")
def linear(op: TorchBuilder, x: Any, weight: Any, bias: Any = None) -> Complex:
    kind = _kind(op)
    a, b = _promoted(op, x, kind), _promoted(op, weight, kind)
    b = each_part(lambda w: op.Transpose(op.read(w), perm=(1, 0)), b)
    made = _product(op, a, b, lambda u, v: op.MatMul(u, v))
    if bias is None:
        return made
    result: Complex = each_part(lambda u, v: op.Add(u, v), made, _promoted(op, bias, kind))
    return result


@complex_aten("einsum")
def einsum(op: TorchBuilder, equation: str, operands: Sequence[Any], **options: Any) -> Complex:
    kind, einsum_of = _kind(op), LOWERINGS["einsum.default"]
    values = [_promoted(op, v, kind) if isinstance(v, Complex) else op.cast(v, kind) for v in operands]
    count = sum(isinstance(v, Complex) for v in values)
    if count > 2:
        raise UnsupportedError(f"einsum of more than two complex tensors; write it in steps{op.where()}")

    def product(*chosen: Value) -> Value:
        rest = iter(chosen)
        given = [next(rest) if isinstance(v, Complex) else v for v in values]
        return _as_real(op, lambda: einsum_of(op, equation, given, **options))

    found = [v for v in values if isinstance(v, Complex)]
    if count == 1:
        return Complex(product(found[0].real), product(found[0].imag))
    return _product(op, found[0], found[1], product)


# --- what is done to each part


class _RealNode:
    """Stands for an fx node whose result is the real part of the real one's."""

    def __init__(self, node: torch.fx.Node):
        self._node = node

        def part(val: Any) -> Any:
            return val.real if isinstance(val, torch.Tensor) and val.is_complex() else val

        self.meta = {**node.meta, "val": torch.utils._pytree.tree_map(part, node.meta["val"])}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)


def _as_real(op: TorchBuilder, function: Callable[[], Any]) -> Any:
    """Calls the lowering of a real tensor, which asks for the node's result."""
    node: Any = op.fx_node
    op.node_now = _RealNode(node)  # type: ignore[assignment]
    try:
        return function()
    finally:
        op.node_now = node


def _on_parts(op: TorchBuilder, key: str, real: tuple[Any, Any], imag: tuple[Any, Any]) -> Any:
    """A real lowering on the arguments (positional, by name) of each part."""
    if key not in LOWERINGS:
        raise UnsupportedError(f"aten.{key} of complex tensors{op.where()}")
    first, second = (_as_real(op, partial(LOWERINGS[key], op, *args, **options)) for args, options in (real, imag))
    if isinstance(first, tuple):
        return tuple(Complex(x, y) for x, y in zip(first, second, strict=True))
    return Complex(first, second)


def _key(op: TorchBuilder) -> str:
    return str(op.fx_node.target).removeprefix("aten.")


def moved(op: TorchBuilder, *arguments: Any, **options: Any) -> Any:
    """What only moves elements, or sums them."""

    def part(which: str) -> Any:
        return torch.utils._pytree.tree_map(
            lambda x: getattr(x, which) if isinstance(x, Complex) else x,
            (arguments, {k: v for k, v in options.items() if k != "dtype"}),
            is_leaf=lambda x: isinstance(x, Complex),
        )

    return _on_parts(op, _key(op), part("real"), part("imag"))


complex_aten(
    *("view", "reshape", "flatten.using_ints", "unflatten.int", "_unsafe_view", "view_as", "reshape_as", "ravel"),
    *("unsqueeze", "squeeze", "squeeze.dim", "squeeze.dims", "permute", "transpose.int", "swapaxes", "t", "numpy_T"),
    *(
        "mT",
        "expand",
        "expand_as",
        "broadcast_to",
        "slice.Tensor",
        "narrow",
        "select.int",
        "split.Tensor",
        "movedim.int",
    ),
    *("movedim.intlist", "moveaxis.int", "moveaxis.intlist", "swapdims", "matrix_transpose", "squeeze_copy.dim"),
    *("split_with_sizes", "split.sizes", "chunk", "tensor_split.sections", "unbind.int", "repeat", "flip", "roll"),
    *("tril", "triu", "index.Tensor", "index_select", "gather", "contiguous", "clone", "alias", "lift_fresh_copy"),
    *("lift_fresh", "detach", "resolve_conj", "resolve_neg", "sum", "sum.dim_IntList", "mean", "mean.dim", "cumsum"),
    *(
        "diff",
        "diagonal",
        "hstack",
        "vstack",
        "repeat_interleave.self_int",
        "take_along_dim",
        "tile",
        "fliplr",
        "flipud",
    ),
)(moved)


@complex_aten("to.dtype", "to.dtype_layout", "to.device", "to.other", "_to_copy", "type_as")
def converted(op: TorchBuilder, x: Any, *rest: Any, **options: Any) -> Any:
    if op.result.is_complex():
        return _promoted(op, x, _kind(op))
    if not is_float(op.result_dtype) and op.result_dtype.kind == "b":
        raise UnsupportedError(f"complex numbers as truth values{op.where()}")
    return op.cast(x.real if isinstance(x, Complex) else x, op.result_dtype)  # the imaginary part is dropped


@complex_aten("cat", "stack", "concat", "concatenate")
def joined(op: TorchBuilder, tensors: Sequence[Any], *rest: Any, **options: Any) -> Any:
    given = [_promoted(op, t, _kind(op)) for t in tensors]
    key = _key(op)
    return _on_parts(op, key, (([z.real for z in given], *rest), options), (([z.imag for z in given], *rest), options))


@complex_aten("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def where(op: TorchBuilder, condition: Value, x: Any, y: Any) -> Complex:
    a, b = (_promoted(op, v, _kind(op)) for v in (x, y))
    result: Complex = each_part(lambda u, v: op.Where(condition, u, v), a, b)
    return result


@complex_aten("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(op: TorchBuilder, z: Any, mask: Value, fill: Any) -> Complex:
    return where(op, mask, fill, z)


@complex_aten("copy")
def copy_into(op: TorchBuilder, z: Any, source: Any, non_blocking: bool = False) -> Complex:
    """copy_: the source in z's dtype and shape."""
    value, sizes = _promoted(op, source, _kind(op)), list(op.result.shape)
    return Complex(_spread(op, value.real, sizes), _spread(op, value.imag, sizes))


@complex_aten("fill.Scalar", "fill.Tensor")
def fill(op: TorchBuilder, z: Any, value: Any) -> Complex:
    return copy_into(op, z, value)


@complex_aten("zeros", "zeros_like", "new_zeros", "empty.memory_format", "empty_like", "new_empty", "zero")
def zeros(op: TorchBuilder, *arguments: Any, **options: Any) -> Complex:
    return _filled(op, 0)


@complex_aten("ones", "ones_like", "new_ones")
def ones(op: TorchBuilder, *arguments: Any, **options: Any) -> Complex:
    return _filled(op, 1)


@complex_aten("full", "full_like", "new_full")
def full(op: TorchBuilder, like: Any, value: Any, *more: Any, **options: Any) -> Complex:
    return _filled(op, more[0] if isinstance(value, list | tuple) else value)


@complex_aten("scalar_tensor")
def scalar_tensor(op: TorchBuilder, value: Any, **options: Any) -> Complex:
    return _filled(op, value)


def _filled(op: TorchBuilder, value: Any) -> Complex:
    number, sizes = _promoted(op, value, _kind(op)), op.sizes(list(op.result.shape))
    return Complex(op.Expand(number.real, sizes), op.Expand(number.imag, sizes))


@complex_aten("constant_pad_nd")
def constant_pad(op: TorchBuilder, z: Complex, pads: Sequence[Size], value: Any = 0) -> Any:
    fill = complex(value)
    return _on_parts(op, "constant_pad_nd.default", ((z.real, pads, fill.real), {}), ((z.imag, pads, fill.imag), {}))


@complex_aten("pad")
def pad(op: TorchBuilder, z: Complex, pads: Sequence[Size], mode: str = "constant", value: Any = None) -> Any:
    if mode == "constant":
        return constant_pad(op, z, pads, 0 if value is None else value)
    return _on_parts(op, "pad.default", ((z.real, pads, mode), {}), ((z.imag, pads, mode), {}))


# --- writes through views: (op, base, written, sizes of the base, *arguments of the view) -> the new base

ViewWrite = Callable[..., Any]


def _each(write: ViewWrite) -> ViewWrite:
    """A write to a real tensor, for each part."""

    def lowering(op: TorchBuilder, base: Any, written: Any, *rest: Any, **options: Any) -> Any:
        return each_part(lambda x, y: write(op, x, y, *rest, **options), base, written)

    return lowering


def _conjugate_back(op: TorchBuilder, base: Complex, written: Complex, sizes: Sequence[Size]) -> Any:
    return conj(op, each_part(lambda x, y: VIEW_WRITES["mT.default"](op, x, y, sizes), base, written))


_OF_PARTS: dict[str, ViewWrite] = {
    "view_as_real.default": lambda op, base, written, sizes: split_pairs(op, written),
    "view_as_complex.default": lambda op, base, written, sizes: as_pairs(op, written, len(sizes) - 1),
    "real.default": lambda op, base, written, sizes: Complex(written, base.imag),
    "imag.default": lambda op, base, written, sizes: Complex(base.real, written),
    "_conj.default": lambda op, base, written, sizes: conj(op, written),
}
COMPLEX_VIEW_WRITES: dict[str, ViewWrite] = {
    **{key: _each(write) for key, write in VIEW_WRITES.items()},
    **_OF_PARTS,
    **{f"{name}.default": _conjugate_back for name in ("mH", "adjoint", "matrix_H")},
}
COMPLEX_VIEWS = frozenset((*_OF_PARTS, "conj.default", "resolve_conj.default", "resolve_neg.default"))


# --- Fourier transforms


def _given_sizes(op: TorchBuilder) -> list[Size]:
    """The sizes of the present node's first argument."""
    node: Any = op.fx_node.args[0]
    return list(node.meta["val"].shape)


def _same_size(a: Size, b: Size) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return isinstance(a, torch.SymInt) and isinstance(b, torch.SymInt) and a.node.expr == b.node.expr


def _resized(op: TorchBuilder, pairs: Value, axis: int, have: Size, want: Size) -> Value:
    """An axis cut, or filled up with zeros."""
    if _same_size(have, want):
        return pairs
    static = isinstance(have, int) and isinstance(want, int)
    if not static or have > want:
        pairs = op.Slice(pairs, op.ints(0), op.size(want), op.ints(axis))
    if not static or have < want:
        here = op.Shape(pairs, start=axis, end=axis + 1)
        missing = op.ints(int(want) - int(have)) if static else op.Sub(op.size(want), here)
        amounts = op.Concat(op.ints(0), missing, axis=0)
        pairs = op.Pad(pairs, amounts, op.const(np.array(0, pairs.dtype)), op.ints(axis), mode="constant")
    return pairs


def _scaled(op: TorchBuilder, x: Value, lengths: Sequence[Size], norm: str | None, inverse: bool) -> Value:
    """What a normalisation changes: ONNX divides by the length in the inverse transform, as "backward" does."""
    if norm in (None, "backward"):
        return x
    power = {"ortho": 0.5, "forward": 1.0}[str(norm)]
    if all(isinstance(n, int) for n in lengths):
        total = float(np.prod([float(n) for n in lengths])) ** power
        return op.Mul(x, op.const(np.array(total if inverse else 1 / total, x.dtype)))
    count = op.value(lengths[0], x.dtype)
    for n in lengths[1:]:
        count = op.Mul(count, op.value(n, x.dtype))
    count = op.Sqrt(count) if norm == "ortho" else count
    return op.Mul(x, count) if inverse else op.Div(x, count)


def _dft(
    op: TorchBuilder, pairs: Value, axis: int, length: Size, *, inverse: bool = False, onesided: bool = False
) -> Value:
    """The transform of an axis of a length. It is computed in float64: onnxruntime's in float32 loses half of the
    digits where the length is no power of 2. There its inverse divides by a length in float32 besides, so that it is
    the conjugate of the transform of the conjugate here."""
    wide, options = op.cast(pairs, np.float64), {"onesided": 1} if onesided else {}
    if not inverse:
        return op.cast(op.DFT(wide, None, op.value(axis), **options), pairs.dtype)
    if isinstance(length, int) and length & (length - 1) == 0:
        return op.cast(op.DFT(wide, None, op.value(axis), inverse=1), pairs.dtype)
    signs = op.const(np.array([1.0, -1.0]))
    made = op.Mul(op.DFT(op.Mul(wide, signs), None, op.value(axis)), signs)
    return op.cast(op.Div(made, op.value(length, np.float64)), pairs.dtype)


def _half_inverse(op: TorchBuilder, pairs: Value, axis: int, have: Size, length: Size) -> Value:
    """The real signal [..., 1 part less] of a length, whose spectrum is given up to half of it."""
    half = _resized(op, pairs, axis, have, length // 2 + 1)
    along = op.ints(axis)
    mirrored = op.Slice(half, op.size((length + 1) // 2 - 1), op.ints(0), along, op.ints(-1))
    mirrored = op.Mul(mirrored, op.const(np.array([1, -1], half.dtype)))
    whole = op.Concat(half, mirrored, axis=axis)
    return op.Gather(_dft(op, whole, axis, length, inverse=True), op.value(0), axis=-1)


def _transformed(
    op: TorchBuilder,
    x: Any,
    sizes: Sequence[Size],
    axes: Sequence[int],
    lengths: Sequence[Size],
    norm: str | None,
    kind: str,
) -> Any:
    """The transform of x along axes, each with its length.

    Arguments:
        kind: fft, ifft (complex to complex), rfft (of a real signal, half of the spectrum along the last of the axes)
            or irfft (its inverse).
    """
    rank, dtype = len(sizes), _kind(op)
    x = each_part(lambda part: op.cast(part, dtype), x)
    inverse = kind in ("ifft", "irfft")
    if inverse and not isinstance(x, Complex):
        x = _promoted(op, x, dtype)
    pairs = as_pairs(op, x, rank)
    *others, last = axes
    if kind == "rfft":
        pairs = _resized(op, pairs, last, sizes[last], lengths[-1])
        pairs = _dft(op, pairs, last, lengths[-1], onesided=True)
    for axis, length in zip(others if kind in ("rfft", "irfft") else axes, lengths, strict=False):
        pairs = _dft(op, _resized(op, pairs, axis, sizes[axis], length), axis, length, inverse=inverse)
    if kind == "irfft":
        return _scaled(op, _half_inverse(op, pairs, last, sizes[last], lengths[-1]), lengths, norm, inverse)
    scaled = _scaled(op, pairs, lengths, norm, inverse)
    scaled.shape = (*op.shape(op.result.shape), 2)
    return split_pairs(op, scaled)


def _swapped(norm: str | None) -> str:
    """The normalisation of the opposite direction."""
    return {None: "forward", "backward": "forward", "forward": "backward", "ortho": "ortho"}[norm]


def _of_several(op: TorchBuilder, kind: str, x: Any, s: Any, dim: Any, norm: str | None) -> Any:
    """A transform over several axes."""
    sizes = _given_sizes(op)
    rank = len(sizes)
    if dim is None:
        dim = range(rank) if s is None else range(rank - len(s), rank)
    axes = [op.axis(a, rank) for a in dim]
    lengths: list[Size] = [sizes[a] for a in axes]
    if kind == "irfft":
        lengths[-1] = 2 * (sizes[axes[-1]] - 1)
    if s is not None:
        lengths = [own if isinstance(n, int) and n == -1 else n for n, own in zip(s, lengths, strict=True)]
    return _transformed(op, x, sizes, axes, lengths, norm, kind)


def _fft(name: str, kind: str, hermitian: bool = False) -> None:
    """Enters a family: along one axis, along the last two, along several."""

    def run(op: TorchBuilder, x: Any, s: Any, dim: Any, norm: str | None) -> Any:
        if not hermitian:
            return _of_several(op, kind, x, s, dim, norm)
        if kind == "irfft":
            x = conj(op, x) if isinstance(x, Complex) else x
            return _of_several(op, kind, x, s, dim, _swapped(norm))
        return conj(op, _of_several(op, kind, x, s, dim, _swapped(norm)))

    def one(op: TorchBuilder, x: Any, n: Size | None = None, dim: int = -1, norm: str | None = None) -> Any:
        return run(op, x, None if n is None else [n], [dim], norm)

    def two(op: TorchBuilder, x: Any, s: Any = None, dim: Any = (-2, -1), norm: str | None = None) -> Any:
        return run(op, x, s, dim, norm)

    def several(op: TorchBuilder, x: Any, s: Any = None, dim: Any = None, norm: str | None = None) -> Any:
        return run(op, x, s, dim, norm)

    for suffix, lowering in (("", one), ("2", two), ("n", several)):
        aten(f"fft_{name}{suffix}")(lowering)
        complex_aten(f"fft_{name}{suffix}")(lowering)


_fft("fft", "fft")
_fft("ifft", "ifft")
_fft("rfft", "rfft")
_fft("irfft", "irfft")
_fft("hfft", "irfft", hermitian=True)
_fft("ihfft", "rfft", hermitian=True)


@aten("fft_fftshift", "fft_ifftshift")
@complex_aten("fft_fftshift", "fft_ifftshift")
def shift(op: TorchBuilder, x: Any, dim: Any = None) -> Any:
    """The frequency 0 to the middle of an axis, or back."""
    sizes = _given_sizes(op)
    axes = range(len(sizes)) if dim is None else [dim] if isinstance(dim, int) else dim
    back = op.operator == "fft_ifftshift"
    for axis in (op.axis(a, len(sizes)) for a in axes):
        middle = op.size(sizes[axis] // 2 if back else (sizes[axis] + 1) // 2)

        def turned(part: Value, axis: int = axis, middle: Value = middle) -> Value:
            later = op.Slice(part, middle, op.ints(MAX_INT64), op.ints(axis))
            return op.Concat(later, op.Slice(part, op.ints(0), middle, op.ints(axis)), axis=axis)

        x = each_part(turned, x)
    return x


@aten("fft_fftfreq", "fft_rfftfreq")
def frequencies(op: TorchBuilder, n: Size, d: float = 1.0, **options: Any) -> Value:
    if not isinstance(n, int):
        raise UnsupportedError(f"the frequencies of an axis of dynamic size{op.where()}")
    make = torch.fft.fftfreq if op.operator == "fft_fftfreq" else torch.fft.rfftfreq
    return op.const(make(n, d, dtype=op.result.dtype).numpy())


# --- short-time transforms


def _window(op: TorchBuilder, window: Value | None, length: int, n_fft: int, dtype: DType) -> Value:
    """The window of a frame, in the middle of it."""
    value = op.const(np.ones(length, dtype)) if window is None else op.cast(window, dtype)
    if length == n_fft:
        return value
    left = (n_fft - length) // 2
    return op.Pad(value, op.ints(left, n_fft - length - left), op.const(np.array(0, dtype)), mode="constant")


@complex_aten("stft")
@aten("stft")
def stft(
    op: TorchBuilder,
    x: Any,
    n_fft: int,
    hop: int | None = None,
    win_length: int | None = None,
    window: Value | None = None,
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Any:
    """[batch, time] -> [batch, frequencies, frames]."""
    if isinstance(window, Complex):
        raise UnsupportedError(f"stft with a complex window{op.where()}")
    if align_to_window:
        raise UnsupportedError(f"stft with align_to_window{op.where()}")
    dtype, hop = _kind(op), n_fft // 4 if hop is None else hop
    rank = len(_given_sizes(op))
    x = each_part(lambda part: op.cast(part, dtype), x)
    if rank == 1:
        x = each_part(lambda part: op.Unsqueeze(part, op.ints(0)), x)
    half = not isinstance(x, Complex) if onesided is None else onesided
    frame = _window(op, window, n_fft if win_length is None else win_length, n_fft, dtype)
    signal, frame = op.cast(as_pairs(op, x, 2), np.float64), op.cast(frame, np.float64)  # as in _dft
    spectrum = op.cast(op.STFT(signal, op.value(hop), frame, op.value(n_fft), onesided=int(half)), dtype)
    made = op.Transpose(spectrum, perm=(0, 2, 1, 3))  # [batch, frequencies, frames, 2]
    if normalized:
        made = op.Mul(made, op.const(np.array(1 / np.sqrt(n_fft), dtype)))
    if rank == 1:
        made = op.Squeeze(made, op.ints(0))
    return split_pairs(op, made) if op.result.is_complex() else made


@complex_aten("stft.center")
@aten("stft.center")
def stft_centred(
    op: TorchBuilder,
    x: Any,
    n_fft: int,
    hop: int | None = None,
    win_length: int | None = None,
    window: Value | None = None,
    center: bool = True,
    pad_mode: str = "reflect",
    *rest: Any,
    **options: Any,
) -> Any:
    """stft of the signal with half a frame on both sides."""
    if center:
        kinds = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
        reach, axis = n_fft // 2, len(_given_sizes(op)) - 1
        if pad_mode not in kinds:
            raise UnsupportedError(f"stft with padding {pad_mode!r}{op.where()}")
        x = each_part(lambda part: op.Pad(part, op.ints(reach, reach), None, op.ints(axis), mode=kinds[pad_mode]), x)
    return stft(op, x, n_fft, hop, win_length, window, *rest, **options)


_MOST_PIECES = 64


def _overlapped(op: TorchBuilder, frames: Value, n_fft: int, hop: int, count: Size) -> Value:
    """The sum of frames [batch, n_fft, frames], each `hop` after the one before: [batch, time]."""
    pieces = -(-n_fft // hop)
    total = op.size(n_fft + hop * (count - 1))
    if pieces > _MOST_PIECES:
        laid = op.Col2Im(frames, op.Concat(op.ints(1), total, axis=0), op.ints(1, n_fft), strides=(1, hop))
        return op.Squeeze(laid, op.ints(1, 2))
    zero = op.const(np.array(0, frames.dtype))
    made: Value | None = None
    for k in range(pieces):  # the k-th piece of each frame lies k steps after its first
        size = min(hop, n_fft - k * hop)
        piece = op.Slice(frames, op.ints(k * hop), op.ints(k * hop + size), op.ints(1))
        laid = op.Pad(piece, op.ints(0, k, hop - size, pieces - 1 - k), zero, op.ints(1, 2), mode="constant")
        made = laid if made is None else op.Add(made, laid)
    line = op.Reshape(op.Transpose(made, perm=(0, 2, 1)), op.ints(0, -1))
    return op.Slice(line, op.ints(0), total, op.ints(1))


@complex_aten("istft")
def istft(
    op: TorchBuilder,
    z: Complex,
    n_fft: int,
    hop: int | None = None,
    win_length: int | None = None,
    window: Value | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Value:
    """[batch, frequencies, frames] -> [batch, time]: the frames added where they overlap, over the windows' squares."""
    if return_complex or isinstance(window, Complex):
        raise UnsupportedError(f"istft to a complex signal{op.where()}")
    dtype, hop = _kind(op), n_fft // 4 if hop is None else hop
    sizes = _given_sizes(op)
    rank, bins, count = len(sizes), sizes[-2], sizes[-1]
    if rank == 2:
        z = each_part(lambda part: op.Unsqueeze(part, op.ints(0)), z)
    half = bool(bins != n_fft) if onesided is None else onesided
    pairs = as_pairs(op, z, 3)  # [batch, frequencies, frames, 2]
    if half:
        frames = _half_inverse(op, pairs, 1, bins, n_fft)
    else:
        frames = op.Gather(_dft(op, pairs, 1, n_fft, inverse=True), op.value(0), axis=-1)
    if normalized:
        frames = op.Mul(frames, op.const(np.array(np.sqrt(n_fft), dtype)))
    column = op.Unsqueeze(_window(op, window, n_fft if win_length is None else win_length, n_fft, dtype), op.ints(0, 2))
    total = n_fft + hop * (count - 1)
    signal = _overlapped(op, op.Mul(frames, column), n_fft, hop, count)
    squares = op.Expand(op.Mul(column, column), op.Concat(op.ints(1, n_fft), op.size(count), axis=0))
    weight = _overlapped(op, squares, n_fft, hop, count)
    start = n_fft // 2 if center else 0
    end: Size = total - (n_fft // 2 if center else 0) if length is None else start + length
    signal, weight = (op.Slice(v, op.ints(start), op.size(end), op.ints(1)) for v in (signal, weight))
    made = op.Div(signal, weight)
    if length is not None:
        made = _resized(op, made, 1, torch.sym_min(end, total) - start, length)
    return op.Squeeze(made, op.ints(0)) if rank == 2 else made


def _made_window(name: str) -> Lowering:
    def lowering(op: TorchBuilder, size: Size, *arguments: Any, **options: Any) -> Value:
        if not isinstance(size, int):
            raise UnsupportedError(f"a window of dynamic size{op.where()}")
        make = getattr(torch, name)
        return op.const(make(size, *arguments, dtype=op.result.dtype).numpy())

    return lowering


_OVERLOADS = {
    "hann_window": ("default", "periodic"),
    "hamming_window": ("default", "periodic", "periodic_alpha", "periodic_alpha_beta"),
    "blackman_window": ("default", "periodic"),
    "bartlett_window": ("default", "periodic"),
    "kaiser_window": ("default", "periodic", "beta"),
}
for _name, _overloads in _OVERLOADS.items():
    aten(*(f"{_name}.{_overload}" for _overload in _overloads))(_made_window(_name))
