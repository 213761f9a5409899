"""The primitives: ONNX's operators (newest opset), and the few that ONNX lacks.

`vocabulary.json` is generated from onnx by tools/make_vocabulary.py. A primitive is known by its name; operators of
domain ai.onnx.ml carry the domain in front (`ai.onnx.ml.Scaler`), those of interlux are listed here.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from .errors import UnsupportedError


@dataclass(frozen=True)
class Formal:
    """A formal input or output: its name, its type (a type variable such as `T`, or a type) and how often it occurs."""

    name: str
    type: str
    option: str = "single"  # single | optional | variadic


@dataclass(frozen=True)
class Signature:
    """What a primitive takes and gives. `fixed_types` maps the type variables that stand for one type only."""

    op_type: str
    domain: str
    since: int
    inputs: tuple[Formal, ...]
    outputs: tuple[Formal, ...]
    attributes: dict[str, tuple[str, bool, Any]]  # name -> (type, required, default)
    fixed_types: dict[str, str]

    def formal(self, formals: tuple[Formal, ...], index: int) -> Formal | None:
        """The formal that the argument at an index belongs to; the last one repeats if it is variadic."""
        if index < len(formals):
            return formals[index]
        return formals[-1] if formals and formals[-1].option == "variadic" else None

    def check(self, inputs: int, attributes: Iterable[str], outputs: int) -> None:
        """Raises UnsupportedError for too many inputs or outputs, unknown or missing attributes."""
        names = set(attributes)
        problems = [f"unknown attribute {name!r}" for name in sorted(names - self.attributes.keys())]
        problems += [
            f"missing attribute {name!r}"
            for name, (_, required, _) in self.attributes.items()
            if required and name not in names
        ]
        if inputs and self.formal(self.inputs, inputs - 1) is None:
            problems.append(f"{inputs} inputs, takes at most {len(self.inputs)}")
        needed = sum(f.option == "single" for f in self.inputs)
        if inputs < needed:
            problems.append(f"{inputs} inputs, needs {needed}")
        if outputs and self.formal(self.outputs, outputs - 1) is None:
            problems.append(f"{outputs} outputs, gives at most {len(self.outputs)}")
        if problems:
            raise UnsupportedError(f"{self.op_type} does not fit its definition (opset {self.since})", problems)


OWN_DOMAIN = "interlux"


def _own(op_type: str, inputs: str, outputs: str, **attributes: tuple[str, bool, Any]) -> Signature:
    def formals(text: str) -> tuple[Formal, ...]:
        return tuple(Formal(*item.split(":")) for item in text.split())

    return Signature(op_type, OWN_DOMAIN, 1, formals(inputs), formals(outputs), attributes, {})


# What training and random numbers need and ONNX has no operator for.
OWN = {
    s.op_type: s
    for s in (
        # The value, with no gradient flowing back.
        _own("StopGradient", "x:T", "y:T"),
        # The value of one tensor with the derivative of another: a straight-through estimate.
        _own("StraightThrough", "value:T estimate:T", "y:T"),
        # A table whose one row takes no gradient (torch's padding_idx).
        _own("StopRowGradient", "table:T", "same:T", row=("INT", True, None)),
        # float32 numbers in [0, 1) of a given shape, drawn from a counter-based generator, and the next seed.
        _own(
            "SeededUniform", "seed:tensor(uint32) shape:tensor(int64)", "numbers:tensor(float) next_seed:tensor(uint32)"
        ),
    )
}


@cache
def _table() -> dict[str, Signature]:
    # not importlib.resources: it imports zipfile, tempfile and more, and this runs at `import interlux`
    content = json.loads(pkgutil.get_data(__package__, "vocabulary.json") or b"{}")
    table = dict(OWN)
    for domain, operators in content["domains"].items():
        for name, s in operators.items():
            table[f"{domain}.{name}" if domain else name] = Signature(
                name,
                domain,
                s["since"],
                tuple(Formal(*f) for f in s["inputs"]),
                tuple(Formal(*f) for f in s["outputs"]),
                {a: tuple(v) for a, v in s["attributes"].items()},
                s["fixed_types"],
            )
    return table


def known(op_type: str) -> bool:
    return op_type in _table()


def signature(op_type: str) -> Signature:
    """The signature of a primitive. Raises UnsupportedError if there is none of that name."""
    try:
        return _table()[op_type]
    except KeyError:
        raise UnsupportedError(f"{op_type!r} is neither an ONNX operator nor a primitive of interlux") from None
