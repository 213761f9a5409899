"""LLVM IR from Python: typed values, loops, functions; and their way to machine code.

    module = Module(target)
    f = module.function("axpy", [("x", PTR), ("y", PTR), ("n", I64)])
    x, y = f["x"].of(F32), f["y"].of(F32)          # pointers know what they point to
    with f.loop(0, f["n"], 16) as i:               # i is a Value or, where known, an int
        a = f.load(x + i, 16)                      # <16 x float>
        f.store(a * 2.0 + f.load(y + i, 16), y + i)
    f.ret()
    library = load(assemble(module.text(), target), ["axpy"])
    library.address("axpy")

A vector of one lane is a scalar, so that code written for `target.lanes(dtype)` lanes runs everywhere. Python numbers
are constants wherever a value is expected; integer arithmetic on Python ints is done while generating.
"""

from __future__ import annotations

import functools
import itertools
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir.errors import InvalidModelError, UnsupportedError
from .target import Target


@dataclass(frozen=True, slots=True)
class Type:
    """A scalar type, or a vector of `lanes` of them (1 is the scalar itself)."""

    name: str
    lanes: int = 1

    def __str__(self) -> str:
        return self.name if self.lanes == 1 else f"<{self.lanes} x {self.name}>"

    def vector(self, lanes: int) -> Type:
        return Type(self.name, lanes)

    @property
    def scalar(self) -> Type:
        return Type(self.name)

    @property
    def is_float(self) -> bool:
        return self.name in ("float", "double")

    @property
    def bits(self) -> int:
        """Of one element."""
        return _BITS[self.name]

    @property
    def bytes(self) -> int:
        """Of the whole value in memory."""
        return max(1, self.bits // 8) * self.lanes

    @property
    def integer(self) -> Type:
        """The integer type of the same size."""
        return Type(f"i{self.bits}", self.lanes)

    @property
    def suffix(self) -> str:
        """As in the names of intrinsics: v16f32."""
        short = {"float": "f32", "double": "f64", "ptr": "p0"}.get(self.name, self.name)
        return short if self.lanes == 1 else f"v{self.lanes}{short}"


VOID, PTR = Type("void"), Type("ptr")
I1, I8, I16, I32, I64 = Type("i1"), Type("i8"), Type("i16"), Type("i32"), Type("i64")
F32, F64 = Type("float"), Type("double")
BF16 = Type("bfloat")  # in memory only: loads make float of it
_BITS = {
    "i1": 1,
    "i8": 8,
    "i16": 16,
    "i32": 32,
    "i64": 64,
    "bfloat": 16,
    "float": 32,
    "double": 64,
    "ptr": 64,
    "void": 0,
}
_OF_DTYPE = {
    "float32": F32,
    "float64": F64,
    "int64": I64,
    "int32": I32,
    "int16": I16,
    "int8": I8,
    "uint8": I8,
    "bool": I8,
}


def type_of(dtype: Any) -> Type:
    """The type of an array's elements. Raises UnsupportedError for one that has none here."""
    name = np.dtype(dtype).name
    if name not in _OF_DTYPE:
        raise UnsupportedError(f"the fused engine has no {name}; use float32 or float64")
    return _OF_DTYPE[name]


class Value:
    """An SSA value or a constant: its text in IR and its type; a pointer also knows the type it points to.

    `+ - * / & | ^ << < > <= >=` and unary `-` work between values and Python numbers; `pointer + n` moves by n
    elements.
    """

    __slots__ = ("f", "text", "to", "type")

    def __init__(self, f: Function, text: str, type: Type, to: Type | None = None):
        self.f, self.text, self.type, self.to = f, text, type, to

    def of(self, element: Type) -> Value:
        """This pointer, as one to elements of a scalar type."""
        return Value(self.f, self.text, self.type, element)

    def __repr__(self) -> str:
        return f"{self.type} {self.text}"

    def __add__(self, other: Operand) -> Value:
        if self.to is not None and not isinstance(other, float):
            return self.f.offset(self, other)
        return self.f.add(self, other)

    def __radd__(self, other: Operand) -> Value:
        return self.__add__(other)

    def __sub__(self, other: Operand) -> Value:
        return self.f.sub(self, other)

    def __rsub__(self, other: Operand) -> Value:
        return self.f.sub(other, self)

    def __mul__(self, other: Operand) -> Value:
        return self.f.mul(self, other)

    def __rmul__(self, other: Operand) -> Value:
        return self.f.mul(self, other)

    def __truediv__(self, other: Operand) -> Value:
        return self.f.div(self, other)

    def __rtruediv__(self, other: Operand) -> Value:
        return self.f.div(other, self)

    def __neg__(self) -> Value:
        return self.f.neg(self)

    def __and__(self, other: Operand) -> Value:
        return self.f.op("and", self, other)

    def __or__(self, other: Operand) -> Value:
        return self.f.op("or", self, other)

    def __xor__(self, other: Operand) -> Value:
        return self.f.op("xor", self, other)

    def __lshift__(self, other: Operand) -> Value:
        return self.f.op("shl", self, other)

    def __lt__(self, other: Operand) -> Value:
        return self.f.compare("lt", self, other)

    def __gt__(self, other: Operand) -> Value:
        return self.f.compare("gt", self, other)

    def __le__(self, other: Operand) -> Value:
        return self.f.compare("le", self, other)

    def __ge__(self, other: Operand) -> Value:
        return self.f.compare("ge", self, other)


Operand = Value | int | float
Index = Value | int


class Variable:
    """A value that changes: an accumulator of loops. LLVM turns it into a register (SROA)."""

    __slots__ = ("_slot", "f", "type")

    def __init__(self, f: Function, slot: Value, type: Type):
        self.f, self._slot, self.type = f, slot, type

    def get(self) -> Value:
        return self.f.load(self._slot, align=_alignment(self.type))

    def set(self, value: Operand) -> None:
        self.f.store(self.f.value(value, self.type), self._slot, align=_alignment(self.type))


class Function:
    """One function under construction; made by `Module.function`. Finish it with `ret`."""

    def __init__(self, module: Module, name: str, arguments: Sequence[tuple[str, Type]], result: Type, header: str):
        self.module, self.target, self.name, self.result = module, module.target, name, result
        self._header = header
        self._arguments = {n: Value(self, f"%{n}", t) for n, t in arguments}
        self._lines: list[str] = []
        self._slots: list[str] = []  # allocas belong into the first block
        self._count = 0
        self._block = "entry"

    def __getitem__(self, argument: str) -> Value:
        return self._arguments[argument]

    def argument(self, type: Type) -> Value:
        """One more argument of a part."""
        name = f"a{len(self._arguments)}"
        self._arguments[name] = Value(self, f"%{name}", type)
        return self._arguments[name]

    # Text

    def emit(self, text: str, type: Type, to: Type | None = None) -> Value:
        """An instruction by its text, for what has no method here; returns its result."""
        self._count += 1
        name = f"%v{self._count}"
        self._lines.append(f"  {name} = {text}")
        return Value(self, name, type, to)

    def statement(self, text: str) -> None:
        """An instruction without a result."""
        self._lines.append("  " + text)

    def text(self) -> str:
        return "\n".join([self._header + " {", "entry:", *self._slots, *self._lines, "}", ""])

    # Constants

    def const(self, number: float | int | bool, type: Type) -> Value:
        """A constant, the same in every lane."""
        if type.name == "ptr":
            return Value(self, "null", type)
        literal = _literal(number, type)
        if type.lanes == 1:
            return Value(self, literal, type)
        if literal in ("0", "0x0000000000000000"):
            return Value(self, "zeroinitializer", type)
        return Value(self, f"splat ({type.name} {literal})", type)

    def vector(self, numbers: Sequence[float | int | bool], scalar: Type) -> Value:
        """A constant vector of different numbers."""
        if len(numbers) == 1:
            return self.const(numbers[0], scalar)
        lanes = ", ".join(f"{scalar} {_literal(n, scalar)}" for n in numbers)
        return Value(self, f"<{lanes}>", scalar.vector(len(numbers)))

    def value(self, operand: Operand, type: Type) -> Value:
        """An operand as a value of a type: numbers become constants, scalars are spread over the lanes."""
        if not isinstance(operand, Value):
            return self.const(operand, type)
        if operand.type.lanes == 1 and type.lanes > 1:
            return self.splat(operand, type.lanes)
        return operand

    def _pair(self, a: Operand, b: Operand) -> tuple[Value, Value]:
        if isinstance(a, Value):
            if not isinstance(b, Value):
                return a, self.const(b, a.type)
            if a.type.lanes < b.type.lanes:
                return self.splat(a, b.type.lanes), b
            return a, self.value(b, a.type)
        if isinstance(b, Value):
            return self.const(a, b.type), b
        raise TypeError("one operand must be a Value")

    # Arithmetic

    def op(self, name: str, a: Operand, b: Operand) -> Value:
        """A binary instruction by LLVM's name: and, or, xor, shl, lshr, ashr, udiv, urem, frem, …"""
        a, b = self._pair(a, b)
        return self.emit(f"{name} {a.type} {a.text}, {b.text}", a.type)

    def add(self, a: Operand, b: Operand) -> Any:
        """a + b; a number where both are numbers."""
        if not isinstance(a, Value) and not isinstance(b, Value):
            return a + b
        if _is(b, 0):
            return a
        if _is(a, 0):
            return b
        a, b = self._pair(a, b)
        return self.op("fadd" if a.type.is_float else "add", a, b)

    def sub(self, a: Operand, b: Operand) -> Any:
        if not isinstance(a, Value) and not isinstance(b, Value):
            return a - b
        if _is(b, 0):
            return a
        a, b = self._pair(a, b)
        return self.op("fsub" if a.type.is_float else "sub", a, b)

    def mul(self, a: Operand, b: Operand) -> Any:
        if not isinstance(a, Value) and not isinstance(b, Value):
            return a * b
        if _is(b, 1):
            return a
        if _is(a, 1):
            return b
        a, b = self._pair(a, b)
        return self.op("fmul" if a.type.is_float else "mul", a, b)

    def div(self, a: Operand, b: Operand) -> Value:
        """a / b; of integers the signed quotient towards 0."""
        a, b = self._pair(a, b)
        return self.op("fdiv" if a.type.is_float else "sdiv", a, b)

    def neg(self, a: Value) -> Value:
        return self.emit(f"fneg {a.type} {a.text}", a.type) if a.type.is_float else self.op("sub", 0, a)

    def not_(self, a: Value) -> Value:
        return self.op("xor", a, -1 if a.type.name != "i1" else True)

    def fma(self, a: Operand, b: Operand, c: Operand) -> Value:
        """a·b + c: one rounding where the target has the instruction (`target.fma`), else two."""
        lead = max((v for v in (a, b, c) if isinstance(v, Value)), key=lambda v: v.type.lanes)
        a, b, c = (self.value(v, lead.type) for v in (a, b, c))
        if self.target.fma:
            return self.intrinsic("fma", a, b, c)
        return self.op("fadd", self.op("fmul", a, b), c)

    def intrinsic(self, name: str, *operands: Value, result: Type | None = None) -> Value:
        """An intrinsic that is overloaded on its first operand's type: fma, sqrt, fabs, floor, ceil, trunc, roundeven,
        copysign, minimum, maximum, ctpop, …"""
        kind = result or operands[0].type
        return self.call(f"llvm.{name}.{operands[0].type.suffix}", kind, *operands)

    def sqrt(self, a: Value) -> Value:
        return self.intrinsic("sqrt", a)

    def abs(self, a: Value) -> Value:
        return self.intrinsic("fabs", a)

    def floor(self, a: Value) -> Value:
        return self.intrinsic("floor", a)

    def round(self, a: Value) -> Value:
        """To the nearest integer, halves to the even one."""
        if self.target.name not in ("sse2",) or a.type.lanes == 1:
            return self.intrinsic("roundeven", a)
        # SSE2 has no such instruction: adding and subtracting 2^23 (2^52) rounds; larger numbers are integers already.
        big = float(2 ** (23 if a.type.name == "float" else 52))
        shift = self.copysign(self.const(big, a.type), a)
        near = self.copysign(self.sub(self.add(a, shift), shift), a)
        return self.select(self.abs(a) < big, near, a)

    def copysign(self, magnitude: Value, sign: Value) -> Value:
        return self.intrinsic("copysign", magnitude, sign)

    def min(self, a: Operand, b: Operand) -> Value:
        """The smaller of two, b where either is NaN (one instruction on x86)."""
        a, b = self._pair(a, b)
        return self.select(a < b, a, b)

    def max(self, a: Operand, b: Operand) -> Value:
        """The larger of two, b where either is NaN (one instruction on x86)."""
        a, b = self._pair(a, b)
        return self.select(a > b, a, b)

    def minimum(self, a: Operand, b: Operand) -> Value:
        """The smaller of two, NaN where either is NaN."""
        a, b = self._pair(a, b)
        return self.select(self.is_nan(a), a, self.min(a, b))

    def maximum(self, a: Operand, b: Operand) -> Value:
        """The larger of two, NaN where either is NaN."""
        a, b = self._pair(a, b)
        return self.select(self.is_nan(a), a, self.max(a, b))

    # Comparison

    def compare(self, relation: str, a: Operand, b: Operand) -> Value:
        """lt, le, gt, ge, eq, ne: i1 or a vector of i1. Ordered (false on NaN) but for ne; signed for integers."""
        a, b = self._pair(a, b)
        if a.type.is_float:
            return self.emit(
                f"fcmp {'u' if relation == 'ne' else 'o'}{relation} {a.type} {a.text}, {b.text}",
                I1.vector(a.type.lanes),
            )
        sign = "" if relation in ("eq", "ne") else "s"
        return self.emit(f"icmp {sign}{relation} {a.type} {a.text}, {b.text}", I1.vector(a.type.lanes))

    def eq(self, a: Operand, b: Operand) -> Value:
        return self.compare("eq", a, b)

    def ne(self, a: Operand, b: Operand) -> Value:
        return self.compare("ne", a, b)

    def is_nan(self, a: Value) -> Value:
        return self.emit(f"fcmp uno {a.type} {a.text}, {a.text}", I1.vector(a.type.lanes))

    def select(self, condition: Value, a: Operand, b: Operand) -> Value:
        """a where the condition holds, else b."""
        if not isinstance(a, Value) and not isinstance(b, Value):
            raise TypeError("one of the alternatives must be a Value")
        a, b = self._pair(a, b)
        if condition.type.lanes > a.type.lanes:
            a, b = self.splat(a, condition.type.lanes), self.splat(b, condition.type.lanes)
        return self.emit(
            f"select {condition.type} {condition.text}, {a.type} {a.text}, {b.type} {b.text}", a.type, a.to
        )

    # Conversions

    def cast(self, name: str, a: Value, to: Type) -> Value:
        """By LLVM's name: bitcast, trunc, zext, sext, fptosi, sitofp, uitofp, fpext, fptrunc, ptrtoint, inttoptr."""
        to = to if name == "bitcast" else to.vector(a.type.lanes)
        return self.emit(f"{name} {a.type} {a.text} to {to}", to)

    def bits(self, a: Value) -> Value:
        """The bits of floating-point numbers as integers."""
        return self.cast("bitcast", a, a.type.integer)

    def from_bits(self, a: Value, scalar: Type) -> Value:
        """Integers as the floating-point numbers with these bits."""
        return self.cast("bitcast", a, scalar.vector(a.type.lanes))

    # Vectors

    def splat(self, a: Value, lanes: int) -> Value:
        """A scalar in every lane."""
        if lanes == 1 or a.type.lanes == lanes:
            return a
        kind = a.type.vector(lanes)
        if a.text[0] not in "%@":
            return Value(self, f"splat ({a.type} {a.text})", kind)
        one = self.emit(f"insertelement {kind} poison, {a.type} {a.text}, i64 0", kind)
        return self.emit(f"shufflevector {kind} {one.text}, {kind} poison, <{lanes} x i32> zeroinitializer", kind)

    def shuffle(self, a: Value, b: Value | None, indices: Sequence[int]) -> Value:
        """Lanes picked from a followed by b; -1 is any value. Of scalars (vectors of one lane) as well."""
        if a.type.lanes == 1:
            picks = [(a, b)[i] if i >= 0 else a for i in indices]
            return self.join([p for p in picks if p is not None])
        if len(indices) == 1:
            lane = max(indices[0], 0)
            return self.extract(a, lane) if lane < a.type.lanes or b is None else self.extract(b, lane - a.type.lanes)
        mask = ", ".join("i32 poison" if i < 0 else f"i32 {i}" for i in indices)
        other = "poison" if b is None else b.text
        kind = a.type.vector(len(indices))
        return self.emit(f"shufflevector {a.type} {a.text}, {a.type} {other}, <{len(indices)} x i32> <{mask}>", kind)

    def extract(self, a: Value, lane: Index) -> Value:
        if a.type.lanes == 1:
            return a
        return self.emit(f"extractelement {a.type} {a.text}, i64 {_text(lane)}", a.type.scalar)

    def insert(self, a: Value, scalar: Value, lane: Index) -> Value:
        if a.type.lanes == 1:
            return scalar
        return self.emit(f"insertelement {a.type} {a.text}, {scalar.type} {scalar.text}, i64 {_text(lane)}", a.type)

    def join(self, parts: Sequence[Value]) -> Value:
        """Values of the same type one after the other as one vector; their number is a power of 2 unless scalars."""
        if len(parts) == 1:
            return parts[0]
        if parts[0].type.lanes == 1:
            kind = parts[0].type.vector(len(parts))
            whole = Value(self, "poison", kind)
            for i, part in enumerate(parts):
                whole = self.insert(whole, part, i)
            return whole
        halves = [self.shuffle(a, b, range(2 * a.type.lanes)) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return self.join(halves)

    def part(self, a: Value, start: int, lanes: int) -> Value:
        """Neighbouring lanes of a vector."""
        if lanes == 1:
            return self.extract(a, start)
        return a if lanes == a.type.lanes else self.shuffle(a, None, range(start, start + lanes))

    def reduce(self, combine: Callable[[Value, Value], Any], a: Value) -> Value:
        """All lanes combined into a scalar, halves with halves: always in the same order."""
        lanes = a.type.lanes
        while lanes > 1:
            lanes //= 2
            a = combine(self.part(a, 0, lanes), self.part(a, lanes, lanes))
        return a

    # Memory

    def offset(self, pointer: Value, elements: Index) -> Value:
        """The pointer moved by a number of elements."""
        if _is(elements, 0):
            return pointer
        if pointer.to is None:
            raise TypeError("this pointer has no element type: use pointer.of(type)")
        size = pointer.to.integer if pointer.to == BF16 else pointer.to
        return self.emit(f"getelementptr inbounds {size}, ptr {pointer.text}, i64 {_text(elements)}", PTR, pointer.to)

    def load(self, pointer: Value, lanes: int = 1, align: int = 0, count: int | None = None) -> Value:
        """Reads one element, or a vector of neighbouring ones.

        Arguments:
            align: in bytes, of the value that is made; that of one element by default.
            count: only that many lanes are read, the others are 0.
        """
        element = _element(pointer)
        if element == BF16:  # the upper half of a float
            upper = self.load(pointer.of(I16), lanes, align // 2, count)
            return self.from_bits(self.cast("zext", upper, I32.vector(lanes)) << 16, F32)
        if count is not None and count < lanes:
            return self.load_masked(pointer, self._first(count, lanes), align)
        kind = element.vector(lanes) if lanes > 1 else element
        return self.emit(f"load {kind}, ptr {pointer.text}, align {align or element.scalar.bytes}", kind)

    def store(self, value: Value, pointer: Value, align: int = 0, count: int | None = None) -> None:
        """Writes a value; with `count` only its first lanes."""
        if count is not None and count < value.type.lanes:
            return self.store_masked(value, pointer, self._first(count, value.type.lanes), align)
        align = align or value.type.scalar.bytes
        self.statement(f"store {value.type} {value.text}, ptr {pointer.text}, align {align}")

    def load_masked(self, pointer: Value, mask: Value, align: int = 0) -> Value:
        """Reads the lanes whose mask is set; the others are 0 and their memory is not touched."""
        element = _element(pointer)
        kind = element.vector(mask.type.lanes)
        zero = self.const(0, kind)
        return self.call(
            f"llvm.masked.load.{kind.suffix}.p0", kind, pointer, self.const(align or element.bytes, I32), mask, zero
        )

    def store_masked(self, value: Value, pointer: Value, mask: Value, align: int = 0) -> None:
        self.call(
            f"llvm.masked.store.{value.type.suffix}.p0",
            VOID,
            value,
            pointer,
            self.const(align or value.type.scalar.bytes, I32),
            mask,
        )

    def _first(self, count: int, lanes: int) -> Value:
        return self.vector([i < count for i in range(lanes)], I1)

    def broadcast(self, pointer: Value, lanes: int) -> Value:
        """One element of memory in every lane."""
        return self.splat(self.load(pointer), lanes)

    def variable(self, initial: Operand, type: Type | None = None) -> Variable:
        """A value that loops change."""
        if type is None:
            if not isinstance(initial, Value):
                raise TypeError("the type of a constant must be given")
            type = initial.type
        variable = Variable(self, self._slot(str(type), type, _alignment(type)), type)
        variable.set(initial)
        return variable

    def scratch(self, element: Type, count: int, align: int = 64) -> Value:
        """A small array on the stack."""
        return self._slot(f"[{count} x {element}]", element, align)

    def _slot(self, kind: str, element: Type, align: int) -> Value:
        self._count += 1
        self._slots.append(f"  %v{self._count} = alloca {kind}, align {align}")
        return Value(self, f"%v{self._count}", PTR, element)

    # Control

    @contextmanager
    def loop(self, start: Index, stop: Index, step: int = 1) -> Iterator[Any]:
        """Counts from start to below stop; the counter is a plain int where there is exactly one round.

        Nothing is executed if start >= stop.
        """
        known = isinstance(start, int) and isinstance(stop, int)
        if isinstance(start, int) and isinstance(stop, int) and 0 < stop - start <= step:
            yield start
            return
        end = self._label()
        if not known or start >= stop:
            enter = self._label()
            some = self.compare("lt", self.value(start, I64), self.value(stop, I64))
            self.statement(f"br i1 {some.text}, label %{enter}, label %{end}")
            self._begin(enter)
        head, before = self._label(), self._block
        self.statement(f"br label %{head}")
        self._begin(head)
        self._count += 3
        counter, added, following = (f"%v{self._count - i}" for i in (2, 1, 0))
        place = len(self._lines)
        self._lines.append("")
        yield Value(self, counter, I64)
        self._lines.append(f"  {added} = add nuw nsw i64 {counter}, {step}")
        if self.target.vector_bits:
            # An empty piece of assembly hides that this is a sum from LLVM's loop strength reduction, which takes a
            # third of the time to compile and makes the code no faster: addresses are simple already.
            self._lines.append(f'  {following} = call i64 asm "", "=r,0"(i64 {added})')
        else:  # what becomes C as well
            following = added
        self._lines[place] = f"  {counter} = phi i64 [ {_text(start)}, %{before} ], [ {following}, %{self._block} ]"
        again = self.emit(f"icmp slt i64 {following}, {_text(stop)}", I1)
        self.statement(f"br i1 {again.text}, label %{head}, label %{end}")
        self._begin(end)

    def unrolled(self, count: int, unroll: int, body: Callable[[Index, int], None]) -> None:
        """A loop of a known number of rounds, `unroll` at a time: body(start of the block, static offset in it)."""
        if count <= unroll:
            for i in range(count):
                body(0, i)
            return
        whole = count // unroll * unroll
        with self.loop(0, whole, unroll) as i:
            for u in range(unroll):
                body(i, u)
        for i in range(whole, count):
            body(0, i)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Executes its body if an i1 is true."""
        then, end = self._label(), self._label()
        self.statement(f"br i1 {condition.text}, label %{then}, label %{end}")
        self._begin(then)
        yield
        self.statement(f"br label %{end}")
        self._begin(end)

    def branch(self, condition: Value, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
        """Executes one of two bodies."""
        yes, no, end = self._label(), self._label(), self._label()
        self.statement(f"br i1 {condition.text}, label %{yes}, label %{no}")
        for label, body in ((yes, then), (no, otherwise)):
            self._begin(label)
            body()
            self.statement(f"br label %{end}")
        self._begin(end)

    @contextmanager
    def repeat(self, condition: Callable[[], Value]) -> Iterator[None]:
        """Executes its body as long as the condition, computed before each round, is true."""
        head, body, end = self._label(), self._label(), self._label()
        self.statement(f"br label %{head}")
        self._begin(head)
        test = condition()
        self.statement(f"br i1 {test.text}, label %{body}, label %{end}")
        self._begin(body)
        yield
        self.statement(f"br label %{head}")
        self._begin(end)

    def call(self, name: str, result: Type, *operands: Value) -> Value:
        """Calls a function of this module, an intrinsic or an external one, which is declared by its use."""
        self.module.declare(name, result, [o.type for o in operands])
        arguments = ", ".join(f"{o.type} {o.text}" for o in operands)
        if result.name == "void":
            self.statement(f"call void @{name}({arguments})")
            return Value(self, "poison", VOID)
        return self.emit(f"call {result} @{name}({arguments})", result)

    def ret(self, value: Value | None = None) -> None:
        """Returns; in the middle of a function what follows is a new block that is never reached unless branched to."""
        self.statement("ret void" if value is None else f"ret {value.type} {value.text}")

    def unreachable(self) -> None:
        """Begins a block that is never reached: for what is written behind a `ret` inside of a body."""
        self._begin(self._label())

    def exit_when(self, condition: Value, value: Value | None = None) -> None:
        """Returns from the function if an i1 is true."""
        out, on = self._label(), self._label()
        self.statement(f"br i1 {condition.text}, label %{out}, label %{on}")
        self._begin(out)
        self.ret(value)
        self._begin(on)

    def _label(self) -> str:
        self._count += 1
        return f"L{self._count}"

    def _begin(self, label: str) -> None:
        self._lines.append(f"{label}:")
        self._block = label


class Module:
    """Functions that are compiled together for one target."""

    def __init__(self, target: Target):
        self.target = target
        self._functions: dict[str, Function] = {}
        self._declared: dict[str, str] = {}
        self._globals: dict[str, str] = {}
        self._parts: dict[str, str] = {}

    def function(
        self,
        name: str,
        arguments: Sequence[tuple[str, Type]],
        result: Type = VOID,
        *,
        internal: bool = False,
        inline: bool | None = None,
        noalias: bool = True,
    ) -> Function:
        """A new function.

        Arguments:
            arguments: (name, type) pairs.
            internal: callable only in this module; then LLVM may drop or change it.
            inline: True always, False never, None as LLVM likes.
            noalias: whether no two pointer arguments overlap.
        """
        words = ["nounwind", '"no-trapping-math"="true"']
        if inline is not None:
            words.insert(0, "alwaysinline" if inline else "noinline")
        if self.target.vector_bits:
            bits = self.target.vector_bits
            words += [f'"prefer-vector-width"="{bits}"', f'"min-legal-vector-width"="{bits}"']
        declared = ", ".join(f"{t}{' noalias' if noalias and t == PTR else ''} %{n}" for n, t in arguments)
        linkage = "internal " if internal else ""
        header = f"define {linkage}{result} @{name}({declared}) {' '.join(words)}"
        function = Function(self, name, arguments, result, header)
        self._functions[name] = function
        return function

    def part(self) -> Function:
        """A function that gets its arguments while it is written (`Function.argument`); finish it with `settle`."""
        return Function(self, "", [], VOID, "")

    def settle(self, part: Function) -> str:
        """Adds a part to the module, only once if there is one with the same code. Returns its name."""
        arguments = [(name, value.type) for name, value in part._arguments.items()]
        key = "\n".join([*(f"{t} {name}" for name, t in arguments), *part._slots, *part._lines])
        if key not in self._parts:
            self._parts[key] = name = f"part{len(self._parts)}"
            made = self.function(name, arguments, internal=True, inline=False)
            made._slots, made._lines = part._slots, part._lines
        return self._parts[key]

    def declare(self, name: str, result: Type, arguments: Sequence[Type], variadic: bool = False) -> None:
        """An external function; done by `Function.call` itself where arguments are as in the call."""
        if name not in self._declared:
            kinds = ", ".join([*map(str, arguments), *(["..."] if variadic else [])])
            self._declared[name] = f"declare {result} @{name}({kinds})"

    def constant(self, f: Function, name: str, data: bytes | np.ndarray, align: int = 64) -> Value:
        """A read-only array in the module; returns a pointer to it (to its element type for arrays)."""
        if isinstance(data, np.ndarray):
            element = type_of(data.dtype)
            raw = np.ascontiguousarray(data).tobytes()
        else:
            element, raw = I8, data
        if name not in self._globals:
            text = "".join(f"\\{byte:02X}" for byte in raw)
            self._globals[name] = f'@{name} = private unnamed_addr constant [{len(raw)} x i8] c"{text}", align {align}'
        return Value(f, f"@{name}", PTR, element)

    def external(self, f: Function, name: str, element: Type = I8) -> Value:
        """The address of data defined elsewhere, by its symbol."""
        self._globals.setdefault(name, f"@{name} = external global {element}")
        return Value(f, f"@{name}", PTR, element)

    def text(self) -> str:
        declared = [line for name, line in self._declared.items() if name not in self._functions]
        parts = set(self._parts.values())  # before those that call them, for readers that want it so
        functions = sorted(self._functions.values(), key=lambda function: function.name not in parts)
        return "\n".join([*self._globals.values(), *declared, *(function.text() for function in functions)])


def _literal(number: float | int | bool, type: Type) -> str:
    if type.is_float:
        # LLVM wants the bits of the double that equals the number, of floats as well
        double = float(np.float32(number)) if type.name == "float" else float(number)
        return f"0x{struct.unpack('<Q', struct.pack('<d', double))[0]:016X}"
    return str(int(number)) if type.name != "i1" else ("true" if number else "false")


def _text(index: Index) -> str:
    return index.text if isinstance(index, Value) else str(index)


def _is(operand: Any, number: int) -> bool:
    return isinstance(operand, int) and not isinstance(operand, bool) and operand == number


def _element(pointer: Value) -> Type:
    if pointer.to is None:
        raise TypeError("this pointer has no element type: use pointer.of(type)")
    return pointer.to


def _alignment(type: Type) -> int:
    return min(64, type.bytes & -type.bytes)


# From text to machine code


@functools.cache
def binding() -> Any:
    """llvmlite's binding, initialised."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    lock = getattr(llvm.ffi.lib, "_lock", None)
    if lock is not None and hasattr(os, "register_at_fork"):
        # llvmlite takes it for each call: a child that is forked while another thread holds it could never compile
        release = functools.partial(lock.__exit__, None, None, None)
        os.register_at_fork(before=lock.__enter__, after_in_parent=release, after_in_child=release)
    return llvm


@functools.cache
def _machine(target: Target, level: int) -> Any:
    llvm = binding()
    triple = target.triple or llvm.get_process_triple()
    # "small": constants are read relative to the code; by default llvmlite loads the address of each first
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=level, reloc="pic", codemodel="small", jit=False
    )


def assemble(text: str, target: Target, level: int = 1) -> bytes:
    """An object file from LLVM IR.

    Arguments:
        text: the IR, as `Module.text` gives it.
        target: what it is compiled for.
        level: effort of code generation, 1 or 2. Optimisation proper is light: the generators leave little to do.

    Raises InvalidModelError if LLVM refuses the text, which is a mistake in a generator.
    """
    llvm = binding()
    machine = _machine(target, level)
    try:
        module = llvm.parse_assembly(text)
    except RuntimeError as error:
        raise InvalidModelError(f"the fused engine made wrong LLVM IR: {' '.join(str(error).split())}") from error
    module.triple = target.triple or llvm.get_process_triple()
    module.data_layout = str(machine.target_data)
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=1))
    passes = llvm.create_new_module_pass_manager()
    passes.add_sroa_pass()
    passes.run(module, builder)
    return machine.emit_object(module)


_numbers = itertools.count()  # of libraries: names are never used again
_GENERATION = 256  # libraries


@functools.lru_cache(maxsize=1)
def _linker(generation: int) -> Any:
    """What puts objects into this process.

    One serves for a number of libraries: each leaves some kilobytes in it, which go when all of them are gone.

    JITLink, not MCJIT: an object's sections lie in one piece of memory. MCJIT asks for a piece for each kind, and ends
    the process if the code cannot reach its constants, when the kernel puts them more than 2 GiB apart.
    """
    llvm = binding()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    return llvm.create_lljit_compiler(machine, use_jit_link=True, suppress_errors=True)


class Library:
    """Machine code in memory; it lives as long as this object."""

    def __init__(self, tracker: Any, functions: Iterable[str]):
        self._tracker = tracker
        self._addresses = {name: int(tracker[name]) for name in functions}

    def address(self, name: str) -> int:
        """The address of a function, one of those that were asked for."""
        return self._addresses[name]


def load(object_file: bytes, functions: Sequence[str], symbols: Mapping[str, int] | None = None) -> Library:
    """Machine code from an object file for this machine.

    Arguments:
        object_file: from `assemble`.
        functions: the names of those that are called from outside.
        symbols: addresses of external functions and data by name; those of the process (libm, Python) are found anyway.

    Raises InvalidModelError for an object that has no such functions, or needs what is not there.
    """
    builder = binding().JITLibraryBuilder().add_object_img(object_file).add_current_process()
    for name, address in (symbols or {}).items():
        builder.import_symbol(name, address)
    for name in functions:
        builder.export_symbol(name)
    number = next(_numbers)
    try:
        return Library(builder.link(_linker(number // _GENERATION), f"interlux {number}"), functions)
    except RuntimeError as error:
        raise InvalidModelError(f"compiled code cannot be loaded: {' '.join(str(error).split())}") from error
