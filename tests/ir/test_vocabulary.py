"""The vocabulary of primitives is that of the installed onnx."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import interlux.ir
from interlux.ir import vocabulary
from interlux.ir.errors import UnsupportedError
from interlux.runtime.jax.primitives import PRIMITIVES

ROOT = Path(__file__).parents[2]


def test_the_file_is_what_the_installed_onnx_says() -> None:
    spec = importlib.util.spec_from_file_location("make_vocabulary", ROOT / "tools" / "make_vocabulary.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    stored = Path(interlux.ir.__file__).with_name("vocabulary.json").read_text(encoding="utf-8")
    assert stored == tool.render(), "run: python tools/make_vocabulary.py"


def test_every_primitive_of_jax_is_in_it() -> None:
    assert all(vocabulary.known(name) for name in PRIMITIVES)


def test_misuse_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="missing attribute 'axis'"):
        vocabulary.signature("Concat").check(2, (), 1)
    with pytest.raises(UnsupportedError, match="gives at most 1"):
        vocabulary.signature("Relu").check(1, (), 2)
    with pytest.raises(UnsupportedError, match="takes at most 1"):
        vocabulary.signature("Relu").check(2, (), 1)
    vocabulary.signature("Concat").check(9, ("axis",), 1)
