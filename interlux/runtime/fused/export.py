"""A model as C: an object file and a shared library for a chosen target, or C99 source; with a header and an example.

    to_c(model, "lenet")                        lenet.o, liblenet.so, lenet.h, main.c, CMakeLists.txt, interlux.json
    to_c(model, "lenet", target="neon")         the same for another processor, without the shared library
    to_c(model, "lenet", source=True)           lenet.c in place of lenet.o and liblenet.so

The object is the code that `ix.compile(model, backend="fused", target=…)` runs, with the weights as constants inside:
its results are the same, bit for bit. It allocates nothing, opens nothing and writes no globals; it needs memcpy, and
libm where the processor lacks an instruction. The C source is the scalar target's code; what it computes differs from
the vectorised code in the order of sums, in fused multiplications, and by what a C compiler makes of it.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ...ir.dtypes import dtype_named
from ...ir.errors import InvalidModelError, ResourceLimitError, UnsupportedError
from ...ir.model import Dimension, Model, Signature, TensorSpec, check_model
from . import target as targets
from .csource import translated
from .export_names import Interface, Port, identifier, is_name, name_like
from .export_source import c_source
from .export_text import cmake, example, header
from .generate import Code, generate
from .llvm import I8, I32, I64, PTR, VOID, Function, Module, Value, assemble, binding, type_of
from .passes import optimised
from .program import check_first, program_of
from .steps import Program
from .target import Target

FORMAT = "interlux C export"
DESCRIPTION = "interlux.json"
LARGEST = 1 << 30  # bytes of weights: the code reaches them by 32-bit offsets
STACK = 1 << 20  # bytes of arena that `<name>_run` takes from the stack
OK, POINTER, BATCH, ARENA = 0, 1, 2, 3  # what the functions return


def to_c(
    model: Model,
    folder: str | os.PathLike[str],
    target: str | Target | None = None,
    *,
    name: str | None = None,
    source: bool = False,
    weights: str | None = None,
) -> tuple[Path, ...]:
    """Writes a model as C, all of it or nothing.

    Arguments:
        model: any model that the fused engine takes.
        folder: where it goes. An earlier export there is replaced if nothing was added to it or changed in it; anything
            else is refused. Of several exports to one folder at once, the last one stays.
        target: host (this machine's processor, the default), avx512, avx2, sse2, neon or scalar. The shared library is
            linked by this machine's C compiler: for this machine's architecture, and if there is a compiler.
        name: a C identifier that all names in the header begin with, without an underscore at its end or two in a row;
            by default made of the folder's.
        source: C99 in place of machine code, for compilers that LLVM does not target.
        weights: bfloat16: large weights are rounded to it and take half the space; None: they stay as they are.

    Returns: the files that were written.

    Raises UnsupportedError naming every layer that the engine has no code for, or for an unknown target;
    InvalidModelError for what is no model, a bad name, or a folder that holds something else or cannot be written;
    ResourceLimitError if the weights are too large.
    """
    check_model(model, "to_c")
    if not isinstance(source, bool):
        raise InvalidModelError(f"source must be True or False, not {source!r}")
    try:
        return _exported(model, _place(folder), target, name, source, weights)
    except OSError as error:
        raise InvalidModelError(f"{str(folder)!r} cannot be written: {error.strerror or error}") from None


def _exported(
    model: Model, place: Path, target: str | Target | None, name: str | None, source: bool, weights: str | None
) -> tuple[Path, ...]:
    _check(place)
    if source and target is not None:
        raise UnsupportedError("source=True gives C for every processor: leave out the target")
    if name is not None and not (isinstance(name, str) and is_name(name)):
        raise InvalidModelError(
            f"{name!r} cannot be a C identifier and the name of a file beside C's own; choose letters, digits and "
            "single underscores inside"
        )
    chosen = targets.named("scalar") if source else _target(target)
    program = optimised(program_of(model, weights))
    check_first(program)
    code = generate(program, chosen)
    if code.parameters.size > LARGEST:
        raise ResourceLimitError(f"the weights take {code.parameters.size} bytes; an object holds at most {LARGEST}")
    described = _interface(model, program, code, name or name_like(place.resolve().name), chosen, source)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        _write(temporary, described, code, chosen, source)
        names = sorted(file.name for file in temporary.iterdir())
        hashes = {file: _hash(temporary / file) for file in names}
        text = {"format": FORMAT, "version": 1, "name": described.name, "target": described.target, "files": hashes}
        (temporary / DESCRIPTION).write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        _check(place)
        _replace(place, temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return tuple(place / file for file in sorted([*names, DESCRIPTION]))


def _place(folder: str | os.PathLike[str]) -> Path:
    try:
        place = Path(folder)
        if b"\0" in os.fsencode(place):
            raise ValueError("it holds a null character")
    except (TypeError, ValueError) as error:
        raise InvalidModelError(f"{folder!r} cannot be the folder of an export: {error}") from None
    return place


def _check(place: Path) -> None:
    """Raises InvalidModelError if a folder holds what is not an earlier export."""
    if not place.name:
        raise InvalidModelError(f"{str(place)!r} cannot be replaced by an export; choose a folder with a name")
    if place.is_symlink():
        raise InvalidModelError(f"{str(place)!r} is a link; choose another folder or remove it")
    while True:
        number = _number(place)
        if number is None:
            return
        if not place.is_dir():
            raise InvalidModelError(f"{str(place)!r} exists and is no folder; choose another one or remove it")
        with suppress(FileNotFoundError):
            others = _others(place)
            if not others:
                return
            if number == _number(place):  # else another export has replaced it meanwhile
                named = ", ".join(map(repr, others[:3]))
                raise InvalidModelError(
                    f"{str(place)!r} holds {named}, not written by an export or changed since; "
                    "choose another folder or remove it"
                )


def _number(place: Path) -> int | None:
    """What tells a folder from another one of the same name; None if there is none."""
    try:
        return place.stat().st_ino
    except FileNotFoundError:
        return None


def _others(place: Path) -> list[str]:
    """The names of what an earlier export has not written."""
    found = {file.name for file in place.iterdir()}
    try:
        text = json.loads((place / DESCRIPTION).read_text(encoding="utf-8")) if DESCRIPTION in found else {}
        written = text["files"].items() if text.get("format") == FORMAT else ()
        own = {file for file, known in written if file in found and _hash(place / file) == known}
        own |= {DESCRIPTION} if written else set()
    except (ValueError, OSError, AttributeError, KeyError, TypeError, RecursionError):
        own = set()
    return sorted(found - own)


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _replace(place: Path, new: Path) -> None:
    """Puts a folder in the place of another one; of several exports at once the last one stays."""
    old = Path(tempfile.mkdtemp(prefix=f"{new.name}-", dir=place.parent))
    try:
        for number in itertools.count():
            with suppress(FileNotFoundError):
                place.rename(old / str(number))
            try:
                new.rename(place)
            except OSError as error:  # another export was faster
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                return
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _target(target: str | Target | None) -> Target:
    return target if isinstance(target, Target) else targets.named("host" if target is None else target)


# What the C functions take and give


def _interface(model: Model, program: Program, code: Code, name: str, target: Target, source: bool) -> Interface:
    signature = model.require_signature()
    first = 1 if program.batched else 0
    taken = {"batch", "arena", *(f"{name}_{word}".lower() for word in ("run", "run_in", "arena_bytes", "version"))}
    inputs = tuple(
        _port(spec, np.dtype(b.dtype), tuple(spec.shape or ())[first:], taken)
        for spec, b in zip(signature.inputs, program.inputs, strict=True)
    )
    kinds = {t.dtype for t in program.outputs} | {b.dtype for b in program.inputs if b.dtype.itemsize < 4}
    if kinds - {program.dtype}:
        raise UnsupportedError(f"exported models have no inputs or outputs of {_named(kinds - {program.dtype})}")
    names = [spec.name for spec in signature.outputs]
    outputs = tuple(
        _port(TensorSpec(own, program.dtype.name, None), program.dtype, t.shape[first:], taken)
        for own, t in zip(names, program.outputs, strict=True)
    )
    return Interface(
        name=name,
        inputs=inputs,
        outputs=outputs,
        batches=_batches(signature) if program.batched else None,
        arena=code.arena,
        alignment=8 if source else 64,
        stack=STACK,
        grain=code.grain,
        target="c99" if source else target.name,
        processor="any" if source else _harmless(target.cpu or "generic"),
        version=_version(source, target),
        weights=int(code.parameters.size),
    )


def _named(kinds: set[np.dtype[Any]]) -> str:
    return ", ".join(sorted(kind.name for kind in kinds))


def _port(spec: TensorSpec, dtype: np.dtype[Any], shape: tuple[Any, ...], taken: set[str]) -> Port:
    return Port(spec.name, identifier(spec.name, taken), tuple(int(d) for d in shape), dtype.name, spec.bounds)


def _batches(signature: Signature) -> Dimension:
    """The range of batches that all inputs allow."""
    low, high, multiple = 0, None, 1
    for spec in signature.inputs:
        size = (spec.shape or (None,))[0]
        own = signature.dims.get(size, Dimension()) if isinstance(size, str) else Dimension()
        low, multiple = max(low, own.minimum), math.lcm(multiple, own.multiple_of)
        high = own.maximum if high is None else high if own.maximum is None else min(high, own.maximum)
    return Dimension(low, high, multiple)


def _version(source: bool, target: Target) -> str:
    try:
        own = metadata.version("interlux")
    except metadata.PackageNotFoundError:
        own = "(not installed)"
    llvm = ".".join(map(str, binding().llvm_version_info))
    text = "C99" if source else f"{target.name} ({target.cpu or 'generic'}), LLVM {llvm}"
    return _harmless(f"interlux {own}, {text}")


def _harmless(text: str) -> str:
    """As comments and texts in C may hold it."""
    return re.sub(r"[^A-Za-z0-9_ .,()+-]", "_", text)


# Files


def _write(folder: Path, described: Interface, code: Code, target: Target, source: bool) -> None:
    name, parts = described.name, {}
    linked = ""
    if source:
        words = code.parameters.view(np.uint64 if _has_doubles(described) else np.uint32)
        parts[f"{name}.c"] = c_source(described, translated(code.text), words)
    else:
        text = _object_text(described, code, target)
        (folder / f"{name}.o").write_bytes(assemble(text, target))
        linked = _link(folder, name, target)
    parts[f"{name}.h"] = header(described, None if source else linked)
    parts["main.c"] = example(described)
    parts["CMakeLists.txt"] = cmake(described, source)
    for file, content in parts.items():
        (folder / file).write_text(content, encoding="ascii")


def _has_doubles(described: Interface) -> bool:
    return dtype_named(described.outputs[0].dtype).itemsize == 8


def _link(folder: Path, name: str, target: Target) -> str:
    """Makes the shared library; returns "" or why there is none."""
    if target.triple.partition("-")[0] != targets.host().triple.partition("-")[0]:
        return f"it is for {target.triple.partition('-')[0]}, and the machine that wrote it links for another processor"
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return "there was no C compiler to link it"
    command = [
        compiler, "-shared", "-nostdlib", f"-Wl,-soname,lib{name}.so", "-Wl,-z,noexecstack", "-Wl,-z,relro",
        "-Wl,-z,defs", "-Wl,--build-id=none", "-Wl,--as-needed", "-o", f"lib{name}.so", f"{name}.o", "-lm", "-lc",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise UnsupportedError(f"{compiler} could not link lib{name}.so: {lines[-1] if lines else done.returncode}")
    return ""


# The functions around `run` in an object


def _object_text(described: Interface, code: Code, target: Target) -> str:
    """The program's IR with its weights and the functions of the header; `run` is known only inside."""
    module = Module(target)
    name = described.name
    weights = f"{name}_weights"
    _run_in(module, described, weights)
    if described.arena <= described.stack:
        _run(module, described)
    _facts(module, described)
    # A large arena on the stack is touched page by page: behind the stack's end is no other memory
    text = module.text().replace(" nounwind ", ' nounwind "probe-stack"="inline-asm" ')
    own = [line for line in text.splitlines() if not line.startswith("declare")]  # they call only each other and `run`
    if code.text.count("define void @run(") != 1:
        raise InvalidModelError("the fused engine made no function run")
    inner = code.text.replace("define void @run(", "define internal void @run(")
    raw = code.parameters.tobytes()
    data = "\\" + raw.hex("\\").upper() if raw else ""
    constant = f'@{weights} = internal unnamed_addr constant [{len(raw)} x i8] c"{data}", align 64'
    return "\n".join([constant, inner, *own, ""])


def _arguments(described: Interface) -> list[tuple[str, Any]]:
    ports = [(f"input{i}", PTR) for i in range(len(described.inputs))]
    ports += [(f"output{i}", PTR) for i in range(len(described.outputs))]
    return [*ports, *([("batch", I64)] if described.batches is not None else [])]


def _run_in(module: Module, described: Interface, weights: str) -> None:
    """int <name>_run_in(inputs…, outputs…, batch, arena): checks what can be checked and runs."""
    f = module.function(f"{described.name}_run_in", [*_arguments(described), ("arena", PTR)], I32, noalias=False)
    batch: Value | int = 1
    if described.batches is not None:
        batch, allowed = f["batch"], described.batches
        f.exit_when(batch < max(0, allowed.minimum), f.const(BATCH, I32))
        if allowed.maximum is not None:
            f.exit_when(batch > allowed.maximum, f.const(BATCH, I32))
        if allowed.multiple_of > 1:
            f.exit_when(f.ne(f.op("srem", batch, allowed.multiple_of), 0), f.const(BATCH, I32))
        f.exit_when(f.eq(batch, 0), f.const(OK, I32))
    tables = []
    for word, ports in (("input", described.inputs), ("output", described.outputs)):
        table = f.scratch(PTR, len(ports))
        tables.append(table)
        for i, port in enumerate(ports):
            pointer = f[f"{word}{i}"]
            _exit_unless_aligned(f, pointer, type_of(port.dtype).bytes, POINTER)
            f.store(pointer, table + i)
    if described.arena:
        _exit_unless_aligned(f, f["arena"], described.alignment, ARENA)
    parameters = Value(f, f"@{weights}", PTR, I8)
    f.call("run", VOID, *tables, parameters, f["arena"], f.value(batch, I64))
    f.ret(f.const(OK, I32))


def _exit_unless_aligned(f: Function, pointer: Value, alignment: int, error: int) -> None:
    address = f.cast("ptrtoint", pointer, I64)
    f.exit_when(f.eq(address, 0), f.const(error, I32))
    f.exit_when(f.ne(address & (alignment - 1), 0), f.const(error, I32))


def _run(module: Module, described: Interface) -> None:
    """int <name>_run(inputs…, outputs…, batch): with the arena on the stack."""
    f = module.function(f"{described.name}_run", _arguments(described), I32, noalias=False)
    arena = f.scratch(I8, max(1, described.arena), described.alignment)
    given = [f[name] for name, _ in _arguments(described)]
    f.ret(f.call(f"{described.name}_run_in", I32, *given, arena))


def _facts(module: Module, described: Interface) -> None:
    f = module.function(f"{described.name}_arena_bytes", [], I64)
    f.ret(f.const(described.arena, I64))
    f = module.function(f"{described.name}_version", [], PTR)
    f.ret(module.constant(f, f"{described.name}_version_text", described.version.encode("ascii", "replace") + b"\0", 1))
