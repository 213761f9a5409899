"""Names and shapes of a C export. Names come from models and are hostile: here they become harmless."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from math import prod

from ...ir.model import Dimension

_LONGEST = 40  # characters of an identifier; C99 promises 31 to 63
_RESERVED = frozenset(
    """auto break case char const continue default do double else enum extern float for goto if inline int long register
    restrict return short signed sizeof static struct switch typedef union unsigned void volatile while asm typeof main
    alignas alignof bool catch class concept constexpr decltype delete dynamic_cast explicit export false friend mutable
    namespace new noexcept nullptr operator private protected public reinterpret_cast requires static_assert static_cast
    template this thread_local throw true try typeid typename using virtual wchar_t and and_eq bitand bitor compl not
    not_eq or or_eq xor xor_eq char8_t char16_t char32_t consteval constinit co_await co_return co_yield const_cast
    errno stdin stdout stderr complex imaginary noreturn unix linux i386 near far interrupt small interface main
    int8_t int16_t int32_t int64_t uint8_t uint16_t uint32_t uint64_t size_t intptr_t uintptr_t""".split()  # noqa: SIM905  a list would be three times as long
)
# Names of files that others look for: <name>.h before a header of C, lib<name>.so before a library, main.c
_FILES = frozenset(
    """assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdalign stdarg stdatomic
    stdbool stddef stdint stdio stdlib stdnoreturn string strings tgmath threads time uchar unistd wchar wctype
    c dl gcc m pthread rt stdc util main""".split()  # noqa: SIM905
)
_C_TYPES = {"float32": "float", "float64": "double", "int32": "int32_t", "int64": "int64_t"}


def is_name(text: str) -> bool:
    """Whether a name is one that files, functions and macros can begin with: no name has two underscores in a row then,
    which C++ keeps for itself, and the functions inside of C source begin with."""
    return bool(re.fullmatch(r"(?=.{1,63}\Z)[A-Za-z](_?[A-Za-z0-9])*", text)) and text.lower() not in _FILES


def name_like(text: str) -> str:
    """A name for files, functions and macros like any text."""
    name = _plain(text) or "model"
    name = name if name[0].isalpha() else f"n{name}"
    return name if is_name(name) else f"{name}_model"


def identifier(text: str, taken: set[str]) -> str:
    """An identifier for an argument, like any text and unlike those taken, to which it is added.

    It is in lower case: macros of C's headers are not.
    """
    name = _plain(text).lower() or "value"
    name = name if name[0].isalpha() else f"n{name}"
    found, number = name, 2
    while found in taken or found in _RESERVED:
        found, number = f"{name}_{number}", number + 1
    taken.add(found)
    return found


def _plain(text: str) -> str:
    """The letters, digits and single underscores of a text, as far as ASCII has them."""
    letters = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9]+", "_", letters)[:_LONGEST].strip("_")


def comment(text: str) -> str:
    """A name in quotes as a comment may hold it: ASCII, on one line, without what ends or nests a comment."""
    shown = ascii(text if len(text) <= 200 else text[:200] + "…")
    return shown.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?")


@dataclass(frozen=True)
class Port:
    """An input or output.

    Arguments:
        name: as the model has it.
        identifier: as C has it.
        shape: of one sample.
        bounds: smallest and largest meaningful value of an integer input.
    """

    name: str
    identifier: str
    shape: tuple[int, ...]
    dtype: str
    bounds: tuple[int, int] | None

    @property
    def c_type(self) -> str:
        return _C_TYPES[self.dtype]

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Interface:
    """What is exported.

    Arguments:
        name: that all names begin with.
        batches: which batches are allowed; None: the model has no batch.
        arena: bytes of scratch memory; alignment: of its address.
        stack: `<name>_run` is there if the arena is not larger.
        grain: samples that are computed together in a large batch.
        target, processor, version: what the code is for and what made it.
        weights: their bytes.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    batches: Dimension | None
    arena: int
    alignment: int
    stack: int
    grain: int
    target: str
    processor: str
    version: str
    weights: int

    @property
    def macro(self) -> str:
        return self.name.upper()

    @property
    def ports(self) -> tuple[Port, ...]:
        return (*self.inputs, *self.outputs)

    @property
    def on_stack(self) -> bool:
        return self.arena <= self.stack

    def size(self, port: Port) -> str:
        """The macro of a port's size."""
        return f"{self.macro}_{'INPUT' if port in self.inputs else 'OUTPUT'}_{port.identifier.upper()}_SIZE"

    def declaration(self, function: str, arena: bool) -> str:
        """The head of a C function."""
        parts = [f"const {p.c_type} *{p.identifier}" for p in self.inputs]
        parts += [f"{p.c_type} *{p.identifier}" for p in self.outputs]
        parts += ["int64_t batch"] if self.batches is not None else []
        parts += ["void *arena"] if arena else []
        return f"int {self.name}_{function}({', '.join(parts)})"
