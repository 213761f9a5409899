"""Writes the table of what is supported, from the code's own tables, between two markers in README.md.

python tools/make_support_table.py           writes
python tools/make_support_table.py --check   only says whether it is up to date
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- support table: begin -->", "<!-- support table: end -->"


def names(title: str, items: list[str]) -> list[str]:
    """A collapsed list."""
    listed = " ".join(f"`{item}`" for item in items)
    return [f"<details><summary>{title}</summary>", "", listed, "", "</details>", ""]


def render() -> str:
    from onnx import defs

    from interlux import layers
    from interlux.cli.app import BACKENDS
    from interlux.cli.sources import KERAS, READ
    from interlux.cli.targets import WRITTEN
    from interlux.converters.onnx.upgrades import OLDEST_OPSET as OLDEST_READ
    from interlux.converters.torch.lowerings.registry import LOWERINGS
    from interlux.ir import vocabulary
    from interlux.ir.layer import Layer
    from interlux.runtime.jax.primitives import PRIMITIVES
    from interlux.runtime.onnx.emitter import DEFAULT_OPSET, OLDEST_OPSET

    classes = sorted(n for n in layers.__all__ if inspect.isclass(v := getattr(layers, n)) and issubclass(v, Layer))
    own = sorted(n for n in PRIMITIVES if vocabulary.signature(n).domain not in ("", "ai.onnx", "ai.onnx.ml"))
    onnx_operators = sorted(set(PRIMITIVES) - set(own))
    rows = [
        ("sources", READ),
        ("not yet", ", ".join(KERAS)),
        ("destinations", WRITTEN),
        ("backends", ", ".join(BACKENDS)),
        ("layers", str(len(classes))),
        ("ATen operators (PyTorch import)", str(len(LOWERINGS))),
        ("ONNX operators that JAX runs", f"{len(onnx_operators)}, and {len(own)} of interlux's own"),
        ("ONNX opsets read", f"{OLDEST_READ} to {defs.onnx_opset_version()}"),
        ("ONNX opsets written", f"{OLDEST_OPSET} to {defs.onnx_opset_version()}, {DEFAULT_OPSET} by default"),
    ]
    lines = ["| what | supported |", "|---|---|", *(f"| {what} | {text} |" for what, text in rows), ""]
    lines += names(f"Layers ({len(classes)})", classes)
    lines += names(f"ATen operators ({len(LOWERINGS)})", sorted(n.removesuffix(".default") for n in LOWERINGS))
    lines += names(f"ONNX operators on JAX ({len(onnx_operators)})", onnx_operators)
    lines += names(f"interlux's own primitives ({len(own)})", own)
    return "\n".join(lines).strip()


def updated(text: str) -> str:
    """The README with the present table."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{render()}\n{END}{after}"


def main() -> int:
    old = README.read_text(encoding="utf-8")
    new = updated(old)
    if "--check" in sys.argv:
        print("README.md is up to date" if new == old else "README.md is not up to date: make_support_table.py")
        return int(new != old)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
