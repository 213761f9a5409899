"""<name>.c of a C export: what `csource` makes of the code, the weights as numbers, and the functions of the header."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .export_names import Interface


def c_source(described: Interface, functions: str, words: np.ndarray) -> str:
    """<name>.c.

    Arguments:
        functions: `ix__run` and what it calls.
        words: the parameters as uint32, or uint64 in a model of float64.
    """
    d, m = described, described.macro
    wide = words.dtype.itemsize == 8
    lines = [
        f"/* {d.name}.c: a neural network as C99; {d.name}.h says how it is called.",
        "   Compile it with optimisation, without -ffast-math; with -ffp-contract=off where there is such an option.",
        "   Memory is accessed through memcpy of a few bytes. If your compiler makes calls of these, and does not",
        "   assume that pointers of different types point to different memory, define INTERLUX_TYPED_ACCESS. */",
        "",
        f'#include "{d.name}.h"',
        "",
        "#include <math.h>",
        "#include <string.h>",
        "",
        "#ifdef __FAST_MATH__",
        '#error "compile this without -ffast-math: it counts on the rules of IEEE 754"',
        "#endif",
        "#ifdef __clang__",
        "#pragma STDC FP_CONTRACT OFF",
        "#endif",
        "",
    ]
    if wide:  # 32-bit tables between the weights would be read in pairs the wrong way round
        lines += [
            "#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__",
            '#error "a model of float64 needs a processor that stores the low byte first"',
            "#endif",
            "",
        ]
    lines += [functions, _words(words), _wrapper(d), ""]
    lines += [f"size_t {d.name}_arena_bytes(void)", "{", f"    return {m}_ARENA_BYTES;", "}", ""]
    lines += [f"const char *{d.name}_version(void)", "{", f"    return {m}_VERSION;", "}", ""]
    return "\n".join(lines)


def _words(words: np.ndarray) -> str:
    """The parameters as an array of numbers, so that the order of bytes does not matter."""
    wide = words.dtype.itemsize == 8
    texts = [f"UINT64_C(0x{w:016x})" if wide else f"0x{w:08x}u" for w in words.tolist()] or ["0"]
    per_line = 4 if wide else 8
    rows = [", ".join(texts[i : i + per_line]) for i in range(0, len(texts), per_line)]
    body = ",\n".join(f"    {row}" for row in rows)
    return f"static const uint{64 if wide else 32}_t ix__parameters[{len(texts)}] = {{\n{body}\n}};\n"


def _wrapper(d: Interface) -> str:
    m = d.macro
    lines = [d.declaration("run_in", True), "{"]
    inputs, outputs = ([p.identifier for p in ports] for ports in (d.inputs, d.outputs))
    lines += [
        f"    const void *ix__inputs[{len(inputs)}];",
        f"    void *ix__outputs[{len(outputs)}];",
    ]
    if d.batches is not None:
        tests = [f"batch < {max(0, d.batches.minimum)}"]
        tests += [f"batch > {d.batches.maximum}"] if d.batches.maximum is not None else []
        tests += [f"batch % {d.batches.multiple_of} != 0"] if d.batches.multiple_of > 1 else []
        lines += [f"    if ({' || '.join(tests)}) {{", f"        return {m}_ERROR_BATCH;", "    }"]
        lines += ["    if (batch == 0) {", f"        return {m}_OK;", "    }"]
    for p in d.ports:
        lines += [
            f"    if ({p.identifier} == NULL || (uintptr_t){p.identifier} % sizeof *{p.identifier} != 0) {{",
            f"        return {m}_ERROR_POINTER;",
            "    }",
        ]
    if d.arena:
        lines += [
            f"    if (arena == NULL || (uintptr_t)arena % {m}_ARENA_ALIGNMENT != 0) {{",
            f"        return {m}_ERROR_ARENA;",
            "    }",
        ]
    lines += [f"    ix__inputs[{i}] = {name};" for i, name in enumerate(inputs)]
    lines += [f"    ix__outputs[{i}] = {name};" for i, name in enumerate(outputs)]
    batch = "batch" if d.batches is not None else "1"
    lines += [
        f"    ix__run((char *)ix__inputs, (char *)ix__outputs, (char *)ix__parameters, (char *)arena, {batch});",
        f"    return {m}_OK;",
        "}",
    ]
    if d.on_stack:
        given = _joined([*inputs, *outputs], "batch" if d.batches is not None else None, "ix__arena.room")
        lines += [
            "",
            d.declaration("run", False),
            "{",
            f"    union {{ unsigned char room[{max(1, d.arena)}]; double d; int64_t i; }} ix__arena;",
            f"    return {d.name}_run_in({given});",
            "}",
        ]
    return "\n".join(lines)


def _joined(names: Sequence[str], *more: str | None) -> str:
    return ", ".join([*names, *(name for name in more if name is not None)])
