"""Writes interlux/ir/vocabulary.json: the signatures of every ONNX operator, so that the IR can check a primitive
without onnx being installed. Run it after raising the pinned onnx; a test compares the file with the installed onnx.

    python tools/make_vocabulary.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
from onnx import defs

TARGET = Path(__file__).resolve().parent.parent / "interlux" / "ir" / "vocabulary.json"
DOMAINS = ("", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training")


def default_of(attribute: defs.OpSchema.Attribute) -> Any:
    """The default as JSON, None if there is none (tensors and graphs have no defaults worth keeping)."""
    if not attribute.default_value.type:
        return None
    value = onnx.helper.get_attribute_value(attribute.default_value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [item.decode() if isinstance(item, bytes) else item for item in value]
    return value if isinstance(value, int | float) else None


def signature(schema: defs.OpSchema) -> dict[str, Any]:
    def formals(parameters: Any) -> list[list[str]]:
        return [[p.name, p.type_str, p.option.name.lower()] for p in parameters]

    return {
        "since": schema.since_version,
        "inputs": formals(schema.inputs),
        "outputs": formals(schema.outputs),
        "attributes": {
            name: [a.type.name, bool(a.required), default_of(a)] for name, a in sorted(schema.attributes.items())
        },
        # A type variable that stands for one type only fixes the dtype of what it marks.
        "fixed_types": {
            c.type_param_str: c.allowed_type_strs[0] for c in schema.type_constraints if len(c.allowed_type_strs) == 1
        },
    }


def vocabulary() -> dict[str, Any]:
    newest: dict[str, dict[str, Any]] = {domain: {} for domain in DOMAINS}
    for schema in defs.get_all_schemas():
        if schema.domain in newest and not schema.deprecated:
            newest[schema.domain][schema.name] = signature(schema)
    return {"opset": defs.onnx_opset_version(), "domains": {d: dict(sorted(ops.items())) for d, ops in newest.items()}}


def render() -> str:
    """One operator a line: small, and readable in a diff."""
    content = vocabulary()
    blocks = []
    for domain, operators in content["domains"].items():
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(sig)}" for name, sig in operators.items())
        blocks.append(f" {json.dumps(domain)}: {{\n{rows}\n }}")
    return f'{{"opset": {content["opset"]}, "domains": {{\n' + ",\n".join(blocks) + "\n}}\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    print(f"{TARGET.name}: opset {vocabulary()['opset']}, {sum(map(len, vocabulary()['domains'].values()))} operators")
