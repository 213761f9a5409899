"""Atomic memory operations and the processor's pause, in terms of the builder."""

from __future__ import annotations

from .llvm import I1, I32, I64, PTR, VOID, Function, Type, Value


def load(f: Function, pointer: Value, type: Type, order: str = "seq_cst") -> Value:
    """Reads eight or four bytes that other threads write. `order`: monotonic, acquire or seq_cst."""
    return f.emit(f"load atomic {type}, ptr {pointer.text} {order}, align {type.bytes}", type)


def store(f: Function, value: Value, pointer: Value, order: str = "seq_cst") -> None:
    """Writes what other threads read. `order`: monotonic, release or seq_cst."""
    f.statement(f"store atomic {value.type} {value.text}, ptr {pointer.text} {order}, align {value.type.bytes}")


def exchange(f: Function, pointer: Value, value: Value) -> Value:
    """Writes a value and returns the one before."""
    return f.emit(f"atomicrmw xchg ptr {pointer.text}, {value.type} {value.text} seq_cst", value.type)


def add(f: Function, pointer: Value, value: Value) -> Value:
    """Adds to a number and returns the one before."""
    return f.emit(f"atomicrmw add ptr {pointer.text}, {value.type} {value.text} seq_cst", value.type)


def replace(f: Function, pointer: Value, old: Value, new: Value) -> Value:
    """Writes a value if the one before is `old`; returns whether it did (i1)."""
    pair = f.emit(
        f"cmpxchg ptr {pointer.text}, {old.type} {old.text}, {new.type} {new.text} seq_cst seq_cst", Type("pair")
    )
    return f.emit(f"extractvalue {{ {old.type}, i1 }} {pair.text}, 1", I1)


def pause(f: Function) -> None:
    """Tells the processor that this is a loop that waits."""
    if f.target.triple.startswith(("x86_64", "amd64")):
        f.call("llvm.x86.sse2.pause", VOID)
    elif f.target.triple.startswith(("aarch64", "arm64")):
        f.call("llvm.aarch64.hint", VOID, f.const(1, I32))


def field(f: Function, pointer: Value, offset: int, type: Type = I64) -> Value:
    """Reads the field of a structure that lies at a byte offset."""
    return f.load(place(f, pointer, offset).of(type))


def pointer_at(f: Function, pointer: Value, offset: int, to: Type | None = None) -> Value:
    """Reads a field that is a pointer."""
    value = field(f, pointer, offset, PTR)
    return value if to is None else value.of(to)


def place(f: Function, pointer: Value, offset: int | Value) -> Value:
    """The address that lies a number of bytes behind a pointer."""
    return f.offset(pointer.of(Type("i8")), offset)
