"""The texts around exported code: the header, the example, the CMake file."""

from __future__ import annotations

from ...ir.model import Dimension
from .export_names import Interface, Port, comment


def header(described: Interface, unlinked: str | None) -> str:
    """<name>.h.

    Arguments:
        unlinked: why there is no shared library beside the object; "" if there is one, None for C source.
    """
    d, m = described, described.macro
    lines = [
        f"/* {d.name}.h: a neural network as C functions.",
        f"   Made by {comment(d.version)}.",
        "",
        *(f"   {line}" for line in _files(d, unlinked)),
        "",
        "   Arrays lie in C order (the last axis is contiguous)" + _batch_words(d),
        *(f"     {'input ' if p in d.inputs else 'output'} {p.identifier}: {_kind(d, p)}" for p in d.ports),
        "   They are aligned to their type, and outputs overlap nothing. NaN and infinities are computed like numbers.",
        "   Integers are row numbers of tables: negative ones count from the end, one that is too large gives NaN.",
        "",
        "   The functions allocate no memory, take no locks, open no files and write no globals: any number of threads",
        "   may call them at once, each with outputs and an arena of its own. They return",
        f"     {m}_OK             done",
        f"     {m}_ERROR_POINTER  a pointer is NULL or not aligned to its type",
        f"     {m}_ERROR_BATCH    the batch is out of range",
        f"     {m}_ERROR_ARENA    the arena is NULL or not aligned to {m}_ARENA_ALIGNMENT",
        "   and write outputs only if they return 0. */",
        "",
        f"#ifndef {m}_H",
        f"#define {m}_H",
        "",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
        f'#define {m}_VERSION "{d.version}"',
        f'#define {m}_TARGET "{d.target}"',
        "",
        "/* numbers in one sample */" if d.batches is not None else "/* numbers in an array */",
        *(f"#define {d.size(p)} {p.size}" for p in d.ports),
        "",
    ]
    if d.batches is not None:
        lines += [f"#define {m}_BATCH_MINIMUM {d.batches.minimum}"]
        lines += [f"#define {m}_BATCH_MAXIMUM {d.batches.maximum}"] if d.batches.maximum is not None else []
        lines += [f"#define {m}_BATCH_MULTIPLE_OF {d.batches.multiple_of}"] if d.batches.multiple_of > 1 else []
        lines += [f"#define {m}_GRAIN {d.grain} /* a batch split at multiples of it gives the same bits */", ""]
    lines += [
        f"#define {m}_ARENA_BYTES {d.arena} /* whatever the batch */",
        f"#define {m}_ARENA_ALIGNMENT {d.alignment}",
        "",
        f"#define {m}_OK 0",
        f"#define {m}_ERROR_POINTER 1",
        f"#define {m}_ERROR_BATCH 2",
        f"#define {m}_ERROR_ARENA 3",
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
    ]
    if d.on_stack:
        lines += [f"/* Runs the model, with {d.arena} bytes of scratch memory on the stack. */"]
        lines += [d.declaration("run", False) + ";", ""]
    else:
        lines += [f"/* There is no {d.name}_run: {d.arena} bytes of scratch memory are too much for the stack. */", ""]
    lines += [
        f"/* Runs the model in scratch memory of the caller: {m}_ARENA_BYTES, any contents, for one call at a time. */",
        d.declaration("run_in", True) + ";",
        "",
        f"/* {m}_ARENA_BYTES and {m}_VERSION of the code that is linked. */",
        f"size_t {d.name}_arena_bytes(void);",
        f"const char *{d.name}_version(void);",
        "",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "",
        "#endif",
        "",
    ]
    return "\n".join(lines)


def _files(d: Interface, unlinked: str | None) -> list[str]:
    size = f"The weights, {d.weights:,} bytes, are inside."
    if unlinked is None:
        return [f"{d.name}.c is C99 for every processor with IEEE 754 numbers; it uses the C library's math.h. {size}"]
    lines = [f"{d.name}.o is code for {d.target}, processor {d.processor}; link it with -lm. {size}"]
    if d.processor not in ("x86-64", "x86-64-v3", "x86-64-v4", "generic"):
        lines.append("It needs the instructions of the machine that made it; a named target, those of its family.")
    lines.append(f"lib{d.name}.so is the same, linked." if not unlinked else f"There is no lib{d.name}.so: {unlinked}.")
    return lines


def _batch_words(d: Interface) -> str:
    if d.batches is None:
        return ". The model has no batch: sizes are fixed."
    allowed = f"{d.batches.minimum} to {d.batches.maximum}" if d.batches.maximum is not None else (
        f"{d.batches.minimum} or more"
    )  # fmt: skip
    multiple = f", a multiple of {d.batches.multiple_of}" if d.batches.multiple_of > 1 else ""
    return f", one sample after the other; batch: {allowed}{multiple}."


def _kind(d: Interface, port: Port) -> str:
    sizes = ", ".join([*(["batch"] if d.batches is not None else []), *map(str, port.shape)])
    bounds = f" from {port.bounds[0]} to {port.bounds[1]}" if port.bounds else ""
    own = f", called {comment(port.name)} in the model" if port.name != port.identifier else ""
    return f"{port.c_type}[{sizes}]{bounds}{own}"


def example(described: Interface) -> str:
    """main.c: runs the model on some numbers and prints what it makes of them."""
    d, m = described, described.macro
    batched = d.batches is not None
    size = "(size_t)batch * " if batched else ""
    lines = [
        f"/* Runs {d.name} on some numbers and prints its outputs, a line for each sample. */",
        "",
        "#include <stdio.h>",
        "#include <stdlib.h>",
        "",
        f'#include "{d.name}.h"',
        "",
        "int main(int argc, char **argv)" if batched else "int main(void)",
        "{",
        "    size_t i;",
        "    int status;",
    ]
    if batched and d.batches is not None:
        fewest = _two(d.batches)
        lines += [f"    const int64_t batch = argc > 1 ? (int64_t)strtol(argv[1], NULL, 10) : {fewest};"]
    for word, ports in (("input", d.inputs), ("output", d.outputs)):
        for n, p in enumerate(ports):
            lines.append(f"    {p.c_type} *{word}{n};")
    if not d.on_stack:
        lines += ["    unsigned char *room;", "    void *arena;"]
    if batched:
        lines += _failing("batch < 0", '"a batch is 0 or more\\n"')
    names = [f"{word}{n}" for word, ports in (("input", d.inputs), ("output", d.outputs)) for n, _ in enumerate(ports)]
    for name, p in zip(names, d.ports, strict=True):
        lines.append(f"    {name} = calloc({size}{d.size(p)} + 1, sizeof *{name});")
    if not d.on_stack:
        lines.append(f"    room = malloc({m}_ARENA_BYTES + {m}_ARENA_ALIGNMENT);")
    allocated = [*names, *([] if d.on_stack else ["room"])]
    lines += _failing(" || ".join(f"{name} == NULL" for name in allocated), '"out of memory\\n"')
    if not d.on_stack:
        lines.append(f"    arena = room + ({m}_ARENA_ALIGNMENT - (uintptr_t)room % {m}_ARENA_ALIGNMENT);")
    for n, p in enumerate(d.inputs):
        lines += [f"    for (i = 0; i < {size}{d.size(p)}; i++) {{", f"        input{n}[i] = {_number(p)};", "    }"]
    given = [*names, *(["batch"] if batched else []), *([] if d.on_stack else ["arena"])]
    function = "run" if d.on_stack else "run_in"
    lines += [f"    status = {d.name}_{function}({', '.join(given)});"]
    lines += _failing(f"status != {m}_OK", f'"{d.name}_{function} returned %d\\n", status')
    for n, p in enumerate(d.outputs):
        if p.size == 0:
            continue
        digits = 9 if p.dtype == "float32" else 17  # enough to tell all numbers apart
        lines += [
            f"    for (i = 0; i < {size}{d.size(p)}; i++) {{",
            f"        if (i % {d.size(p)} == 0) {{",
            f'            printf("{p.identifier} %lu:", (unsigned long)(i / {d.size(p)}));',
            "        }",
            f'        printf(" %.{digits}g%s", {"(double)" if digits == 9 else ""}output{n}[i], '
            f'(i + 1) % {d.size(p)} == 0 ? "\\n" : "");',
            "    }",
        ]
    lines += [*(f"    free({name});" for name in allocated), "    return 0;", "}", ""]
    return "\n".join(lines)


def _failing(condition: str, message: str) -> list[str]:
    return [f"    if ({condition}) {{", f"        fprintf(stderr, {message});", "        return 1;", "    }"]


def _two(batches: Dimension) -> int:
    """An allowed batch, 2 if that is one."""
    start = max(2, batches.minimum)
    size = -(-start // batches.multiple_of) * batches.multiple_of
    return size if batches.maximum is None or size <= batches.maximum else batches.maximum


def _number(port: Port) -> str:
    """What the example gives an input's i-th element: numbers that C and others compute exactly."""
    if port.dtype.startswith("float"):
        return f"({port.c_type})((int)(i % 17) - 8) / 8"
    low, high = port.bounds or (0, 0)
    first = f"({low})" if low < 0 else str(low)
    return f"({port.c_type})({first} + (int)(i % {min(high - low + 1, 1000)}))"


def cmake(described: Interface, source: bool) -> str:
    """CMakeLists.txt: the model as a library for add_subdirectory, and the example."""
    name = described.name
    file = f"{name}.{'c' if source else 'o'}"
    library = f"{name}_model"
    lines = [
        "# A neural network as a static library, and an example.",
        f"# In another project: add_subdirectory, and link {library}.",
        "cmake_minimum_required(VERSION 3.10)",
        f"project({name}_export C)",
        "",
        f"add_library({library} STATIC {file})",
    ]
    if source:
        lines += [
            f"set_target_properties({library} PROPERTIES C_STANDARD 99 POSITION_INDEPENDENT_CODE ON)",
            'if(CMAKE_C_COMPILER_ID MATCHES "GNU|Clang")',
            f"  target_compile_options({library} PRIVATE -ffp-contract=off)  # rounding as in the engine's scalar code",
            "endif()",
        ]
    else:
        lines += [
            f"set_source_files_properties({file} PROPERTIES EXTERNAL_OBJECT TRUE)",
            f"set_target_properties({library} PROPERTIES LINKER_LANGUAGE C)",
        ]
    lines += [
        f"target_include_directories({library} PUBLIC ${{CMAKE_CURRENT_SOURCE_DIR}})",
        "if(UNIX)",
        f"  target_link_libraries({library} PUBLIC m)",
        "endif()",
        "",
        f"add_executable({name}_example main.c)",
        f"target_link_libraries({name}_example PRIVATE {library})",
        f"set_target_properties({name}_example PROPERTIES C_STANDARD 99)",
        "",
    ]
    return "\n".join(lines)
