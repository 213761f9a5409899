"""The entry from XLA: a handler of its typed foreign function interface in LLVM IR, one for all native functions.

XLA calls it with the inputs and the parameters (last) as buffers, and the attribute `function`, the number under which
the description of the native function is registered (`functions` in `native`). Numbers come from contents, never from
addresses, so that an executable that XLA has kept on disk finds its function or fails with an error.

The layout is that of xla/ffi/api/c_api.h, version 0.x; `ffi.supported` compares the declarations there with what is
written here.
"""

from __future__ import annotations

import zlib

from . import atomic
from .descriptor import at, port_at
from .dispatch import pointers, port
from .llvm import I1, I8, I32, I64, PTR, VOID, Function, Module, Value

MAJOR, MINOR = 0, 1  # the version that the handler is written for; XLA takes handlers of older minor versions
SLOTS = 4096  # of the table of functions
_EXECUTE = 3  # XLA_FFI_ExecutionStage_EXECUTE
_METADATA = 1  # XLA_FFI_Extension_Metadata
_INTERNAL, _EXHAUSTED = 13, 8  # XLA_FFI_Error_Code

# The members of C structures that are used, in order; every member has 8 bytes, but for those of structure type.
STRUCTS = {
    "XLA_FFI_CallFrame": (
        *("struct_size", "extension_start", "api", "ctx", "stage", "args", "rets", "attrs", "future"),
    ),
    "XLA_FFI_Args": ("struct_size", "extension_start", "size", "types", "args"),
    "XLA_FFI_Rets": ("struct_size", "extension_start", "size", "types", "rets"),
    "XLA_FFI_Attrs": ("struct_size", "extension_start", "size", "types", "names", "attrs"),
    "XLA_FFI_Buffer": ("struct_size", "extension_start", "dtype", "data", "rank", "dims"),
    "XLA_FFI_Scalar": ("dtype", "value"),
    "XLA_FFI_Error_Create_Args": ("struct_size", "extension_start", "message", "errc"),
    "XLA_FFI_Extension_Base": ("struct_size", "type", "next"),
    "XLA_FFI_Metadata_Extension": ("extension_base", "metadata"),
    "XLA_FFI_Metadata": ("struct_size", "api_version", "traits", "state_type_id"),
    "XLA_FFI_Api_Version": ("struct_size", "extension_start", "major_version", "minor_version"),
}
_EXTENSION, _API, _STAGE, _ARGS, _RETS, _ATTRS = 8, 16, 32, 40, 80, 120  # in a call frame
_SIZE, _MEMBERS, _ATTRIBUTES = 16, 32, 40  # in XLA_FFI_Args and _Rets; in XLA_FFI_Attrs
_DTYPE, _DATA, _RANK, _DIMS = 16, 24, 32, 40  # in a buffer
_CREATE_ERROR = 48  # in XLA_FFI_Api, behind its version


def emit_handler(module: Module) -> None:
    """Adds `handler`, a function for `jax.ffi`, to a module that has `dispatch`."""
    _find(module)
    _fits(module)
    _error(module)
    f = module.function("handler", [("frame", PTR)], PTR, noalias=False)
    frame, null = f["frame"], f.const(0, PTR)
    _answer_question(f)

    def refuse_when(condition: Value, message: str, code: int = _INTERNAL) -> None:
        with f.when(condition):
            text = module.constant(f, f"message_{zlib.crc32(message.encode()):08x}", message.encode() + b"\0", 1)
            f.ret(f.call("error", PTR, atomic.pointer_at(f, frame, _API), text, f.const(code, I32)))

    wrong_stage = f.ne(atomic.field(f, frame, _STAGE, I32), _EXECUTE)
    refuse_when(wrong_stage, "interlux: called in another stage than execution")
    refuse_when(f.ne(atomic.field(f, frame, _ATTRS + _SIZE), 1), "interlux: one attribute was expected")
    scalar = f.load(atomic.pointer_at(f, frame, _ATTRS + _ATTRIBUTES, PTR))
    call = f.call("find", PTR, f.load(atomic.pointer_at(f, scalar, 8, I64)))
    refuse_when(f.eq(call, null), "interlux: this process has not compiled the fused function that was asked for")
    given, made = atomic.field(f, call, at("inputs")), atomic.field(f, call, at("outputs"))
    counts = f.ne(atomic.field(f, frame, _ARGS + _SIZE), given + 1)
    refuse_when(counts, "interlux: another number of operands was expected")
    counts = f.ne(atomic.field(f, frame, _RETS + _SIZE), made)
    refuse_when(counts, "interlux: another number of results was expected")
    operands = atomic.pointer_at(f, frame, _ARGS + _MEMBERS, PTR)
    results = atomic.pointer_at(f, frame, _RETS + _MEMBERS, PTR)
    batch = f.load(atomic.pointer_at(f, f.load(operands), _DIMS, I64))
    inputs, outputs = pointers(f, given), pointers(f, made)
    wrong = f.variable(False, I1)
    for arrays, buffers, count, first in ((inputs, operands, given, None), (outputs, results, made, given)):
        with f.loop(0, count) as i:
            buffer = f.load(buffers + i)
            fits = f.call("fits_buffer", I1, buffer, port(f, call, i if first is None else i + first), batch)
            wrong.set(wrong.get() | f.not_(fits))
            f.store(atomic.pointer_at(f, buffer, _DATA), arrays + i)
    refuse_when(wrong.get(), "interlux: an operand or result has another shape or dtype than the fused function's")
    f.exit_when(f.eq(batch, 0), null)

    given_parameters = atomic.pointer_at(f, f.load(operands + given), _DATA)
    parameters = f.variable(given_parameters)
    copy = f.variable(null)
    aligned = f.eq(f.cast("ptrtoint", given_parameters, I64) & 63, 0)
    with f.when(f.not_(aligned)):  # constants of XLA may lie anywhere
        size = atomic.field(f, call, at("blob"))
        copy.set(f.call("aligned_alloc", PTR, f.const(64, I64), (size + 63) & -64))
        refuse_when(f.eq(copy.get(), null), "interlux: there is no memory for the parameters", _EXHAUSTED)
        f.call("llvm.memcpy.p0.p0.i64", VOID, copy.get(), given_parameters, size, f.const(False, I1))
        parameters.set(copy.get())
    failed = f.call("dispatch", I64, call, inputs, outputs, parameters.get(), batch)
    f.call("free", VOID, copy.get())
    refuse_when(f.ne(failed, 0), "interlux: there is no memory for the arena", _EXHAUSTED)
    f.ret(null)


def _answer_question(f: Function) -> None:
    """Where XLA only asks for the version that the handler is written for: says it and returns."""
    extension = atomic.pointer_at(f, f["frame"], _EXTENSION)
    null = f.const(0, PTR)
    with f.when(f.ne(extension, null)), f.when(f.eq(atomic.field(f, extension, 8, I32), _METADATA)):
        metadata = atomic.pointer_at(f, extension, 24)
        f.store(f.const(MAJOR, I32), atomic.place(f, metadata, 24).of(I32))
        f.store(f.const(MINOR, I32), atomic.place(f, metadata, 28).of(I32))
        f.store(f.const(0, I32), atomic.place(f, metadata, 32).of(I32))
        f.ret(null)


def _find(module: Module) -> None:
    """`Call *find(number)`: a registered function; null if there is none. The table has always a free slot."""
    f = module.function("find", [("number", I64)], PTR, noalias=False)
    table = module.external(f, "interlux_functions")
    slot = f.variable(f["number"] & (SLOTS - 1))
    call = f.variable(f.const(0, PTR))

    def another() -> Value:
        entry = atomic.place(f, table, slot.get() * 16)
        call.set(atomic.load(f, atomic.place(f, entry, 8), PTR, "acquire"))
        found = f.eq(atomic.field(f, entry, 0), f["number"])
        return f.not_(found | f.eq(call.get(), f.const(0, PTR)))

    with f.repeat(another):
        slot.set((slot.get() + 1) & (SLOTS - 1))
    f.ret(call.get())


def _fits(module: Module) -> None:
    """`bool fits_buffer(buffer, port, batch)`: whether a buffer is as a port wants it."""
    f = module.function("fits_buffer", [("buffer", PTR), ("port", PTR), ("batch", I64)], I1, noalias=False)
    no = f.const(False, I1)
    dtype = f.cast("sext", atomic.field(f, f["buffer"], _DTYPE, I32), I64)
    f.exit_when(f.ne(dtype, atomic.field(f, f["port"], port_at("xla_type"))), no)
    rank = atomic.field(f, f["buffer"], _RANK)
    f.exit_when(f.ne(rank, atomic.field(f, f["port"], port_at("ndim"))), no)
    dims = atomic.pointer_at(f, f["buffer"], _DIMS, I64)
    wanted = atomic.pointer_at(f, f["port"], port_at("shape"), I64)
    with f.loop(1, rank) as i:
        f.exit_when(f.ne(f.load(dims + i), f.load(wanted + i)), no)
    f.ret(f.eq(f.load(dims), f["batch"]))


def _error(module: Module) -> None:
    """`XLA_FFI_Error *error(api, message, code)`."""
    f = module.function("error", [("api", PTR), ("message", PTR), ("code", I32)], PTR, noalias=False)
    arguments = f.scratch(I8, 32, 8)
    f.store(f.const(28, I64), arguments.of(I64))
    f.store(f.const(0, PTR), atomic.place(f, arguments, 8).of(PTR))
    f.store(f["message"], atomic.place(f, arguments, 16).of(PTR))
    f.store(f["code"], atomic.place(f, arguments, 24).of(I32))
    create = atomic.pointer_at(f, f["api"], _CREATE_ERROR)
    f.ret(f.emit(f"call ptr {create.text}(ptr {arguments.text})", PTR))
