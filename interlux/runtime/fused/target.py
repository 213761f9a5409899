"""What a machine offers to generated code: everything that depends on the processor asks its Target."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...ir.errors import UnsupportedError

AVX512, AVX2, SSE2, NEON, SCALAR = "avx512", "avx2", "sse2", "neon", "scalar"


@dataclass(frozen=True)
class Target:
    """A processor family for which code is generated.

    Arguments:
        name: avx512, avx2, sse2, neon or scalar.
        triple: LLVM's name of architecture and system; "" is this machine's.
        cpu: LLVM's name of the processor that instructions are scheduled for.
        features: LLVM's list of instruction sets, "+fma,-prefer-256-bit".
        vector_bits: width of a SIMD register; 0 if there is none.
        registers: number of SIMD registers (of floating-point registers for scalar).
        fma: whether a multiply and add in one instruction exists.
    """

    name: str
    triple: str
    cpu: str
    features: str
    vector_bits: int
    registers: int
    fma: bool

    def lanes(self, dtype: Any) -> int:
        """How many numbers of a dtype a SIMD register holds; 1 without SIMD."""
        return max(1, self.vector_bits // (8 * np.dtype(dtype).itemsize))

    @property
    def vector_bytes(self) -> int:
        return self.vector_bits // 8


_FAMILIES = {
    # x86-64-v4 and -v3 are LLVM's names of what AVX-512 and AVX2 processors have in common
    AVX512: Target(AVX512, "x86_64-unknown-linux-gnu", "x86-64-v4", "-prefer-256-bit", 512, 32, True),
    AVX2: Target(AVX2, "x86_64-unknown-linux-gnu", "x86-64-v3", "", 256, 16, True),
    SSE2: Target(SSE2, "x86_64-unknown-linux-gnu", "x86-64", "", 128, 16, False),
    NEON: Target(NEON, "aarch64-unknown-linux-gnu", "generic", "", 128, 32, True),
    SCALAR: Target(SCALAR, "", "generic", "", 0, 16, False),
}
_X86 = ("x86_64", "amd64", "i686")
_NEEDED = {
    AVX512: ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx2", "fma", "bmi2", "f16c"),
    AVX2: ("avx2", "fma", "bmi2", "f16c"),
    SSE2: ("sse2",),
    NEON: ("neon",),
    SCALAR: (),
}


def named(name: str) -> Target:
    """A family by its name, as every processor of the family has it.

    Raises UnsupportedError for an unknown name.
    """
    if name == "host":
        return host()
    if not isinstance(name, str) or name not in _FAMILIES:
        raise UnsupportedError(f"there is no target {name!r}; choose host, {', '.join(_FAMILIES)}")
    target = _FAMILIES[name]
    triple = _host()[0]
    # A family of this machine's architecture is compiled for this machine's system (object format, calling convention).
    same = not target.triple or _architecture(target.triple) == _architecture(triple)
    return replace(target, triple=triple) if same else target


@functools.cache
def host() -> Target:
    """This machine: its widest family, instructions scheduled for its own processor."""
    triple, cpu, features = _host()
    best = executable()[0]
    own = ",".join(f"{'+' if on else '-'}{name}" for name, on in sorted(features.items()) if name != "prefer-256-bit")
    if best.name == AVX512:
        own += ",-prefer-256-bit"  # full width: the kernels count on it
    return replace(best, triple=triple, cpu=cpu, features=own)


@functools.cache
def executable() -> tuple[Target, ...]:
    """The families that this machine can run, widest first; the last is scalar."""
    triple, _, features = _host()
    architecture = _architecture(triple)
    families = []
    for name, target in _FAMILIES.items():
        own = not target.triple or _architecture(target.triple) == architecture
        implied = name == NEON  # part of every 64-bit ARM processor; not listed by all systems
        if own and (implied or all(features.get(feature, False) for feature in _NEEDED[name])):
            families.append(named(name))
    return tuple(families)


def _architecture(triple: str) -> str:
    first = triple.partition("-")[0]
    if first in _X86:
        return "x86_64"
    return "aarch64" if first in ("aarch64", "arm64") else first


@functools.cache
def _host() -> tuple[str, str, dict[str, bool]]:
    """This machine's triple, processor and features, from LLVM."""
    from .llvm import binding

    llvm = binding()
    return llvm.get_process_triple(), llvm.get_host_cpu_name(), dict(llvm.get_host_cpu_features())
