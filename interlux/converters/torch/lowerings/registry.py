"""The table of lowerings by ATen operator and overload, e.g. `linear.default`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Lowering = Callable[..., Any]
Mode = str
LOWERINGS: dict[str, Lowering] = {}


def aten(*names: str) -> Callable[[Lowering], Lowering]:
    """Enters a lowering under names of ATen operators; a name without overload means `.default`.

    Raises ValueError if there is one of that name."""

    def enter(function: Lowering) -> Lowering:
        for name in names:
            key = name if "." in name else f"{name}.default"
            if key in LOWERINGS:
                raise ValueError(f"two lowerings of {key}: {LOWERINGS[key].__name__} and {function.__name__}")
            LOWERINGS[key] = function
        return function

    return enter
