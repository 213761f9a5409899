"""C99 from the LLVM IR that the builder writes for the scalar target: for compilers that LLVM does not target.

    translated(code.text)  ->  static functions ix__one(…), ix__run(…), and the helpers that they use

The builder's IR is a small subset: scalars, loops with one counter, variables on the stack, no structures. Every value
becomes a local constant, a block a label, a branch a goto; what is not used is left out, so that compilers don't warn.
Each floating-point operation is a statement of its own, because C lets compilers fuse operations or keep extra digits
within one expression only. Memory is read and written by memcpy, which compilers turn into one instruction; it makes no
promise about the types behind addresses that the code would not keep.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ...ir.errors import UnsupportedError

_C_TYPES = {
    "float": "float", "double": "double", "ptr": "char *", "void": "void", "i1": "int", "i8": "int8_t",
    "i16": "int16_t", "i32": "int32_t", "i64": "int64_t", "i128": "ix__i128",
}  # fmt: skip
_SHORT = {"float": "f32", "double": "f64", "ptr": "pointer"}
_BYTES = {"float": "4", "double": "8", "ptr": "(int64_t)sizeof(char *)", "i8": "1", "i16": "2", "i32": "4", "i64": "8"}
_FLOATING = {"fadd": "+", "fsub": "-", "fmul": "*", "fdiv": "/"}
_WRAPPING = {"add": "+", "sub": "-", "mul": "*"}  # in IR integers wrap around; in C only unsigned ones do
_PLAIN = {f"plain_{name}": symbol for name, symbol in _WRAPPING.items()}
_BITWISE = {"and": "&", "or": "|", "xor": "^"}
_SIGNED = {"sdiv": "/", "srem": "%", "ashr": ">>"}
_UNSIGNED = {"udiv": "/", "urem": "%", "lshr": ">>", "shl": "<<"}
_RELATIONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_OPPOSITES = {"eq": "!=", "ne": "==", "lt": ">=", "le": ">", "gt": "<=", "ge": "<"}
_MATH = {"fabs": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "copysign": "copysign",
         "roundeven": "rint", "rint": "rint", "nearbyint": "nearbyint", "fma": "fma"}  # fmt: skip
# Integers of 128 bits, which C99 has not, as pairs of 64; each function after those it calls
_WIDE = {
    "i128": "typedef struct {\n    uint64_t high, low;\n} ix__i128;\n",
    "of": """static ix__i128 ix__i128_of(uint64_t high, uint64_t low)
{
    ix__i128 v;
    v.high = high;
    v.low = low;
    return v;
}
""",
    "add": """static ix__i128 ix__i128_add(ix__i128 a, ix__i128 b)
{
    const uint64_t low = a.low + b.low;
    return ix__i128_of(a.high + b.high + (low < a.low), low);
}
""",
    "sub": """static ix__i128 ix__i128_sub(ix__i128 a, ix__i128 b)
{
    return ix__i128_of(a.high - b.high - (a.low < b.low), a.low - b.low);
}
""",
    "mul": """static ix__i128 ix__i128_mul(ix__i128 a, ix__i128 b)
{
    const uint64_t a0 = a.low & 0xffffffffu, a1 = a.low >> 32, b0 = b.low & 0xffffffffu, b1 = b.low >> 32;
    const uint64_t first = a0 * b0, second = a1 * b0 + (first >> 32), third = a0 * b1 + (second & 0xffffffffu);
    const uint64_t high = a1 * b1 + (second >> 32) + (third >> 32);
    return ix__i128_of(high + a.high * b.low + a.low * b.high, third << 32 | (first & 0xffffffffu));
}
""",
    "shl": """static ix__i128 ix__i128_shl(ix__i128 a, ix__i128 b)
{
    const unsigned n = (unsigned)(b.low & 127u);
    if (n >= 64) {
        return ix__i128_of(a.low << (n - 64), 0);
    }
    return n == 0 ? a : ix__i128_of(a.high << n | a.low >> (64 - n), a.low << n);
}
""",
    "lshr": """static ix__i128 ix__i128_lshr(ix__i128 a, ix__i128 b)
{
    const unsigned n = (unsigned)(b.low & 127u);
    if (n >= 64) {
        return ix__i128_of(0, a.high >> (n - 64));
    }
    return n == 0 ? a : ix__i128_of(a.high >> n, a.low >> n | a.high << (64 - n));
}
""",
    "slt": """static int ix__i128_slt(ix__i128 a, ix__i128 b)
{
    const uint64_t sign = (uint64_t)1 << 63;
    return a.high == b.high ? a.low < b.low : (a.high ^ sign) < (b.high ^ sign);
}
""",
    "ctlz": """static ix__i128 ix__i128_ctlz(ix__i128 a)
{
    uint64_t n = 0;
    while (n < 128 && !((n < 64 ? a.high << n : a.low << (n - 64)) >> 63)) {
        n++;
    }
    return ix__i128_of(0, n);
}
""",
}
_FLAGS = re.compile(r" (?:nuw|nsw|exact|disjoint|inbounds|nneg|samesign)\b")
_DEFINE = re.compile(r"define (?:internal )?(\w+) @([\w.]+)\((.*?)\)")
_NAME = re.compile(r"%[\w.]+")
_CHEAP = frozenset({"getelementptr", "icmp", "sext", "zext", "trunc", *_WRAPPING, *_PLAIN, *_BITWISE})
_LONGEST = 60  # characters of an expression that is written where it is used


@dataclass
class _Instruction:
    """One line of IR: its result ("" if none), operation, and text behind the operation without flags."""

    result: str
    operation: str
    rest: str

    @property
    def uses(self) -> list[str]:
        return _NAME.findall(self.rest)

    @property
    def is_pure(self) -> bool:
        """Whether it may be left out if nothing uses it."""
        return bool(self.result)


@dataclass
class _Block:
    label: str
    instructions: list[_Instruction] = field(default_factory=list)

    def targets(self) -> list[str]:
        last = self.instructions[-1] if self.instructions else None
        return re.findall(r"label %([\w.]+)", last.rest) if last is not None and last.operation == "br" else []


def translated(text: str) -> str:
    """C functions of the same computation.

    Arguments:
        text: IR of a program for the scalar target, as `generate` gives it.

    Returns: `static` functions named `ix__<name>` whose pointers are all `char *`, after the helpers that they need.
        They want <stdint.h>, <stddef.h>, <string.h> and <math.h>.

    Raises UnsupportedError for an instruction that has no translation here.
    """
    helpers = _tables(text)
    parts = re.findall(r"^define .*?^}", text, re.MULTILINE | re.DOTALL)
    functions = [_Function(part.splitlines(), helpers).text() for part in _called_first(parts)]
    return "\n".join([*helpers.values(), *functions])


def _called_first(parts: Sequence[str]) -> list[str]:
    """Functions in an order in which each is defined before it is called."""
    named = {match[2]: part for part in parts if (match := _DEFINE.match(part))}
    ordered: dict[str, None] = {}

    def add(part: str) -> None:
        for name in re.findall(r" call \w+ @([\w.]+)\(", part):
            if name in named and named[name] not in ordered:
                add(named[name])
        ordered.setdefault(part)

    for part in parts:
        add(part)
    return list(ordered)


def _tables(text: str) -> dict[str, str]:
    """The constant arrays of a module as arrays of numbers, so that the order of bytes does not matter."""
    found = {}
    for name, raw in re.findall(r'^@([\w.]+) = .*constant \[\d+ x i8\] c"(.*)"', text, re.MULTILINE):
        kinds = set(re.findall(rf"(\w+), ptr @{re.escape(name)}\b", text))
        if not kinds <= {"i64", "double"}:
            raise UnsupportedError(f"there is no C for the table {name!r} of {', '.join(sorted(kinds))}")
        words = struct.unpack(f"<{len(raw) // 24}Q", bytes.fromhex(raw.replace("\\", "")))
        rows = [", ".join(f"UINT64_C(0x{word:016x})" for word in words[i : i + 4]) for i in range(0, len(words), 4)]
        body = ",\n    ".join(rows)
        found[f"@{name}"] = f"static const uint64_t ix__{name}[{len(words)}] = {{\n    {body}\n}};\n"
    return found


class _Function:
    """One function on its way from IR to C."""

    def __init__(self, lines: Sequence[str], helpers: dict[str, str]):
        self._helpers = helpers
        header = _DEFINE.match(lines[0])
        if header is None:
            raise UnsupportedError(f"there is no C for {lines[0]!r}")
        self._result, self._name, arguments = header.groups()
        self._arguments = [(a.split()[0], a.split()[-1], "noalias" in a) for a in arguments.split(", ") if a]
        self._blocks = _live(_blocks(lines[1:-1]))
        self._uses = _used(self._blocks)
        self._types = {name: kind for kind, name, _ in self._arguments}
        self._inlined: dict[str, str] = {}
        self._variables = self._scalars()
        self._user = {u: b.label for b in self._blocks for i in b.instructions for u in i.uses}
        self._phis = {b.label: [_phi(i) for i in b.instructions if i.operation == "phi"] for b in self._blocks}

    def text(self) -> str:
        arguments = ", ".join(
            f"{_C_TYPES[kind]}{'restrict ' if alone else ''}{'' if kind == 'ptr' else ' '}{name[1:]}"
            for kind, name, alone in self._arguments
        )
        body: list[str] = []
        entered = {target for block in self._blocks for target in block.targets()}
        for block in self._blocks:
            if block.label in entered:
                body.append(f"{block.label}:;")
            for instruction in block.instructions:
                body += [f"    {line}" for line in self._statement(block, instruction)]
        # What changes is declared at the begin; everything else where it is computed.
        top = [f"    {_C_TYPES[kind]} {name};" for name, kind in self._variables.items()]
        top += [f"    {_declared(kind, name[1:])};" for phis in self._phis.values() for name, kind, _ in phis]
        top += [f"    (void){name[1:]};" for _, name, _ in self._arguments if not self._uses[name]]
        return "\n".join([f"static {_C_TYPES[self._result]} ix__{self._name}({arguments})", "{", *top, *body, "}", ""])

    def _scalars(self) -> dict[str, str]:
        """The slots on the stack that are only read and written as what they are: C's local variables."""
        found = {}
        for block in self._blocks:
            for i in block.instructions:
                if i.operation == "alloca" and "[" not in i.rest:
                    found[i.result] = i.rest.split(",")[0]
        for block in self._blocks:
            for i in block.instructions:
                for used in set(i.uses) & found.keys():
                    kind = found[used]
                    plain = i.operation == "load" and i.rest.startswith(f"{kind}, ptr {used},")
                    plain |= i.operation == "store" and re.match(rf"{kind} [^,]+, ptr {used},", i.rest) is not None
                    if not plain or i.uses.count(used) > 1:
                        del found[used]
        return {name[1:]: kind for name, kind in found.items()}

    # Operands

    def _operand(self, text: str, kind: str) -> str:
        text = text.strip()
        if text.startswith("%"):
            return self._inlined.get(text, text[1:])
        if text in ("poison", "undef", "zeroinitializer", "null"):
            return "NULL" if kind == "ptr" else "0"
        if text in self._helpers:
            return f"(char *)ix__{text[1:]}"
        if kind == "i1":
            return "1" if text in ("true", "1", "-1") else "0"
        if kind in ("float", "double"):
            return self._number(text, kind)
        if not re.fullmatch(r"-?\d+", text):
            raise UnsupportedError(f"there is no C for the constant {text!r}")
        if kind == "i128":
            high, low = divmod(int(text) % 2**128, 2**64)
            return f"{self._wide('of')}(UINT64_C({high}), UINT64_C({low}))"
        return _integer(int(text), kind)

    def _number(self, text: str, kind: str) -> str:
        """A floating-point constant: hexadecimal digits, which are exact, or the bits of what has none."""
        if not re.fullmatch(r"0x[0-9A-F]{16}", text):
            raise UnsupportedError(f"there is no C for the constant {text!r}")
        bits = int(text, 16)
        (number,) = struct.unpack("<d", struct.pack("<Q", bits))
        if bits >> 52 & 0x7FF == 0x7FF:
            if kind == "float":
                bits = struct.unpack("<I", struct.pack("<f", number))[0]
            integer = _integer(_signed(bits, 32 if kind == "float" else 64), "i32" if kind == "float" else "i64")
            return f"{self._bitcast('i32' if kind == 'float' else 'i64', kind)}({integer})"
        suffix = "f" if kind == "float" else ""
        digits = number.hex().replace(".0000000000000p", "p")
        digits = re.sub(r"(\.[0-9a-f]*?)0+p", r"\1p", digits)
        return f"({digits}{suffix})" if digits.startswith("-") else digits + suffix

    # Helpers

    def _load(self, kind: str) -> str:
        name, c = f"ix__load_{_short(kind)}", _C_TYPES[kind]
        self._helpers.setdefault(
            name,
            f"static {_declared(kind, f'{name}(const char *p)')}\n{{\n#ifdef INTERLUX_TYPED_ACCESS\n"
            f"    return *({c}{'' if kind == 'ptr' else ' '}const *)(const void *)p;\n#else\n"
            f"    {_declared(kind, 'v')};\n    memcpy(&v, p, sizeof v);\n    return v;\n#endif\n}}\n",
        )
        return name

    def _store(self, kind: str) -> str:
        name, c = f"ix__store_{_short(kind)}", _C_TYPES[kind]
        self._helpers.setdefault(
            name,
            f"static void {name}(char *p, {_declared(kind, 'v')})\n{{\n#ifdef INTERLUX_TYPED_ACCESS\n"
            f"    *({c} *)(void *)p = v;\n#else\n    memcpy(p, &v, sizeof v);\n#endif\n}}\n",
        )
        return name

    def _wide(self, operation: str) -> str:
        """The function for an operation on integers of 128 bits."""
        name = operation.removeprefix("plain_")
        if name not in _WIDE:
            raise UnsupportedError(f"there is no C for the instruction {name} of i128")
        for part in ("i128", "of", name):
            self._helpers.setdefault(part, _WIDE[part])
        return f"ix__i128_{name}"

    def _bitcast(self, source: str, target: str) -> str:
        name = f"ix__{_short(target)}_of_{_short(source)}"
        header = _declared(target, f"{name}({_declared(source, 'v')})")
        self._helpers.setdefault(
            name,
            f"static {header}\n{{\n    {_declared(target, 'w')};\n    memcpy(&w, &v, sizeof w);\n    return w;\n}}\n",
        )
        return name

    # Statements

    def _statement(self, block: _Block, i: _Instruction) -> list[str]:
        """The C of an instruction: none for what is written elsewhere."""
        match i.operation:
            case "phi":
                return []
            case "alloca":
                return self._slot(i)
            case "br":
                return self._branch(block, i)
            case "ret":
                kind, _, value = i.rest.partition(" ")
                return ["return;" if kind == "void" else f"return {self._operand(value, kind)};"]
            case "unreachable":
                return ["return;"]
            case "store":
                kind, value, pointer = _match(r"(\w+) ([^,]+), ptr ([^,]+), align \d+", i)
                if pointer[1:] in self._variables:
                    return [f"{pointer[1:]} = {self._operand(value, kind)};"]
                return [f"{self._store(kind)}({self._operand(pointer, 'ptr')}, {self._operand(value, kind)});"]
        if i.operation == "call" and not i.result:
            return [f"{self._call(i)[1]};"]
        kind, expression = self._call(i) if i.operation == "call" else self._expression(i)
        self._types[i.result] = kind
        once = self._uses[i.result] == 1 and self._user.get(i.result) == block.label
        if i.operation in _CHEAP and once and len(expression) < _LONGEST:
            self._inlined[i.result] = f"({expression})"
            return []
        name = i.result[1:]
        constant = f"char *const {name}" if kind == "ptr" else f"const {_C_TYPES[kind]} {name}"
        return [f"{constant} = {expression};"]

    def _slot(self, i: _Instruction) -> list[str]:
        name = i.result[1:]
        if name in self._variables:
            return []
        kind, count = i.rest.split(",")[0], "1"
        if kind.startswith("["):
            count, kind = _match(r"\[(\d+) x (\w+)\].*", i)
        # A union, so that the addresses suit every type that is kept there
        return [f"union {{ {_C_TYPES[kind]} v[{count}]; double d; int64_t i; }} {name}_room;",
                f"char *const {name} = (char *)&{name}_room;"]  # fmt: skip

    def _branch(self, block: _Block, i: _Instruction) -> list[str]:
        if i.rest.startswith("label"):
            return self._jump(block.label, i.rest[len("label %") :])
        condition, yes, no = _match(r"i1 ([^,]+), label %([\w.]+), label %([\w.]+)", i)
        then, otherwise = self._jump(block.label, yes), self._jump(block.label, no)
        test = self._operand(condition, "i1")
        test = test[1:-1] if condition in self._inlined else test
        if len(then) == 1:
            return [f"if ({test}) {then[0]}", *otherwise]
        return [f"if ({test}) {{", *(f"    {line}" for line in then), "}", *otherwise]

    def _jump(self, source: str, target: str) -> list[str]:
        """Goes to another block, after its counters have got their values."""
        moves = [(name[1:], kind, self._operand(values[source], kind)) for name, kind, values in self._phis[target]]
        if len(moves) > 1:  # all are read before one is written
            raise UnsupportedError("there is no C for blocks with several counters")
        return [*(f"{name} = {value};" for name, _, value in moves), f"goto {target};"]

    def _call(self, i: _Instruction) -> tuple[str, str]:
        kind, name, given = _match(r"(\w+) @([\w.]+)\((.*)\)", i)
        arguments = [a.strip().split(" ", 1) for a in given.split(", ")] if given else []
        values = [self._operand(value, of) for of, value in arguments]
        if name.startswith(("llvm.memcpy.", "llvm.memmove.")):
            return kind, f"{name.split('.')[1]}({values[0]}, {values[1]}, (size_t)({values[2]}))"
        if name.startswith("llvm.memset."):
            return kind, f"memset({values[0]}, {values[1]}, (size_t)({values[2]}))"
        if name == "llvm.ctlz.i128":
            return kind, f"{self._wide('ctlz')}({values[0]})"
        if name.startswith("llvm."):
            own = name.split(".")[1]
            if own not in _MATH or kind not in ("float", "double"):
                raise UnsupportedError(f"there is no C for the intrinsic {name}")
            return kind, f"{_MATH[own]}{'f' if kind == 'float' else ''}({', '.join(values)})"
        return kind, f"ix__{name}({', '.join(values)})"

    def _expression(self, i: _Instruction) -> tuple[str, str]:
        """Type and C text of what an instruction computes."""
        operation = i.operation
        if operation in ("icmp", "fcmp"):
            return "i1", self._comparison(i)
        if operation == "load":
            kind, pointer = _match(r"(\w+), ptr ([^,]+), align \d+", i)
            if pointer[1:] in self._variables:
                return kind, pointer[1:]
            return kind, f"{self._load(kind)}({self._operand(pointer, 'ptr')})"
        if operation == "getelementptr":
            of, pointer, _, index = _match(r"(\w+), ptr ([^,]+), (i64|i32) (.+)", i)
            base, size = self._operand(pointer, "ptr"), _BYTES[of]
            if index.startswith("%") or not size.isdigit():
                return "ptr", f"{base} + {size} * {self._operand(index, 'i64')}"
            return "ptr", f"{base} + {_integer(int(size) * int(index), 'i64')}"
        if operation == "select":
            condition, kind, yes, kind_, no = _match(r"i1 ([^,]+), (\w+) ([^,]+), (\w+) ([^,]+)", i)
            return kind, (f"{self._operand(condition, 'i1')} ? {self._operand(yes, kind)} : {self._operand(no, kind_)}")
        if operation == "fneg":
            kind, a = _match(r"(\w+) (.+)", i)
            return kind, f"-{self._operand(a, kind)}"
        if " to " in i.rest:
            return self._conversion(i)
        kind, a, b = _match(r"(\w+) ([^,]+), (.+)", i)
        return kind, self._arithmetic(operation, kind, self._operand(a, kind), self._operand(b, kind))

    def _arithmetic(self, operation: str, kind: str, a: str, b: str) -> str:
        if kind == "i128":
            return f"{self._wide(operation)}({a}, {b})"
        if operation in _FLOATING:
            return f"{a} {_FLOATING[operation]} {b}"
        if operation == "frem":
            return f"fmod{'f' if kind == 'float' else ''}({a}, {b})"
        if operation in _BITWISE:
            return f"{a} {_BITWISE[operation]} {b}"
        c = _C_TYPES[kind]
        if operation in _SIGNED:
            return f"({c})({a} {_SIGNED[operation]} {b})"
        if operation in _PLAIN:
            return f"{a} {_PLAIN[operation]} {b}"
        symbol = _WRAPPING.get(operation) or _UNSIGNED.get(operation)
        if symbol is None or kind == "i1":
            raise UnsupportedError(f"there is no C for the instruction {operation} of {kind}")
        return f"({c})((u{c}){a} {symbol} (u{c}){b})"

    def _comparison(self, i: _Instruction) -> str:
        relation, kind, a, b = _match(r"(\w+) (\w+) ([^,]+), (.+)", i)
        a, b = self._operand(a, kind), self._operand(b, kind)
        if kind == "i128":
            return f"{self._wide(relation)}({a}, {b})"
        if i.operation == "icmp":
            if relation in _RELATIONS:
                return f"{a} {_RELATIONS[relation]} {b}"
            if kind == "ptr":
                raise UnsupportedError(f"there is no C for the comparison {relation} of pointers")
            cast = f"(u{_C_TYPES[kind]})" if relation[0] == "u" else ""
            return f"{cast}{a} {_RELATIONS[relation[1:]]} {cast}{b}"
        if relation in ("uno", "ord"):
            test = f"{a} != {a} || {b} != {b}" if a != b else f"{a} != {a}"
            return test if relation == "uno" else f"!({test})"
        ordered, rest = relation[0] == "o", relation[1:]
        if ordered and rest != "ne":
            return f"{a} {_RELATIONS[rest]} {b}"
        if not ordered and rest != "eq":  # also true if one is NaN: the opposite is false then
            return f"{a} != {b}" if rest == "ne" else f"!({a} {_OPPOSITES[rest]} {b})"
        raise UnsupportedError(f"there is no C for the comparison {relation}")

    def _conversion(self, i: _Instruction) -> tuple[str, str]:
        source, value, target = _match(r"(\w+) (.+) to (\w+)", i)
        a, c = self._operand(value, source), _C_TYPES[target]
        match i.operation:
            case "zext" if target == "i128" and source == "i64":
                return target, f"{self._wide('of')}(0, (uint64_t){a})"
            case "trunc" if source == "i128" and target == "i64":
                return target, f"({c}){a}.low"
            case _ if "i128" in (source, target):
                pass
            case "bitcast" | "freeze":
                return target, a if source == target else f"{self._bitcast(source, target)}({a})"
            case "sext" if source == "i1":
                return target, f"({c})-{a}"
            case "zext" if source != "i1":
                return target, f"({c})(u{_C_TYPES[source]}){a}"
            case "uitofp" if source != "i1":
                return target, f"({c})(u{_C_TYPES[source]}){a}"
            case "trunc" if target == "i1":
                return target, f"(int)({a} & 1)"
            case "trunc":
                return target, f"({c})(u{c}){a}"
            case "sext" | "zext" | "sitofp" | "uitofp" | "fptosi" | "fpext" | "fptrunc":
                return target, f"({c}){a}"
            case "ptrtoint":
                return target, f"({c})(intptr_t){a}"
        raise UnsupportedError(f"there is no C for the conversion {i.operation}")


def _blocks(lines: Iterable[str]) -> list[_Block]:
    blocks: list[_Block] = []
    ended = True
    for line in lines:
        text = line.strip()
        if text.endswith(":"):
            blocks.append(_Block(text[:-1]))
            ended = False
        elif text and not ended:
            result, _, rest = text.partition(" = ") if text.startswith("%") else ("", "", text)
            operation, _, rest = rest.partition(" ")
            plain = operation in _WRAPPING and " nsw " in f" {rest}"  # it does not wrap around
            operation = f"plain_{operation}" if plain else operation
            instruction = _Instruction(result, operation, _FLAGS.sub("", " " + rest).strip())
            blocks[-1].instructions.append(instruction)
            ended = operation in ("br", "ret", "unreachable")
    return blocks


def _live(blocks: Sequence[_Block]) -> list[_Block]:
    """The blocks that are reached from the first, without the instructions that nothing uses."""
    named = {block.label: block for block in blocks}
    reached, waiting = {blocks[0].label}, [blocks[0]]
    while waiting:
        for target in waiting.pop().targets():
            if target not in reached:
                reached.add(target)
                waiting.append(named[target])
    found = [block for block in blocks if block.label in reached]
    for block in found:
        for i in block.instructions:
            if i.operation == "phi":  # ways from blocks that are never reached
                kind, _, values = i.rest.partition(" ")
                ways = re.findall(r"\[ ([^,]+), %([\w.]+) \]", values)
                i.rest = kind + " " + ", ".join(f"[ {v}, %{label} ]" for v, label in ways if label in reached)
    while True:
        used = _used(found)
        before = sum(len(block.instructions) for block in found)
        for block in found:
            block.instructions = [i for i in block.instructions if not i.is_pure or used[i.result]]
        if sum(len(block.instructions) for block in found) == before:
            return found


def _used(blocks: Iterable[_Block]) -> Counter[str]:
    return Counter(name for block in blocks for i in block.instructions for name in i.uses)


def _phi(i: _Instruction) -> tuple[str, str, Mapping[str, str]]:
    """Name, type, and the value for each block that one comes from."""
    kind, _, values = i.rest.partition(" ")
    return i.result, kind, {label: value for value, label in re.findall(r"\[ ([^,]+), %([\w.]+) \]", values)}


def _match(pattern: str, i: _Instruction) -> tuple[str, ...]:
    found = re.fullmatch(pattern, i.rest)
    if found is None:
        raise UnsupportedError(f"there is no C for the instruction {i.operation} {i.rest}")
    return found.groups()


def _short(kind: str) -> str:
    return _SHORT.get(kind, kind)


def _declared(kind: str, name: str) -> str:
    """A declaration: `float x`, `char *x`."""
    return f"{_C_TYPES[kind]}{'' if kind == 'ptr' else ' '}{name}"


def _integer(number: int, kind: str) -> str:
    """An integer constant, in parentheses if it is negative."""
    bits = int(kind[1:])
    number = _signed(number % 2**bits, bits)
    if bits < 64:
        return str(number) if number >= 0 else f"(-{-number - 1} - 1)" if number == -(2**31) else f"({number})"
    if number == -(2**63):
        return "(-INT64_C(9223372036854775807) - 1)"
    if abs(number) < 2**31:
        return str(number) if number >= 0 else f"({number})"
    return f"INT64_C({number})" if number >= 0 else f"(-INT64_C({-number}))"


def _signed(bits: int, width: int) -> int:
    return bits - 2**width if bits >> width - 1 else bits
