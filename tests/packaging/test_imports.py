"""What an import brings along: no framework, few modules, and never a second copy under a bare name.

Counted, not timed: the budgets (0.15 s for the import, 0.3 s for --help) are kept by not importing, and a count is the
same on every machine.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FRAMEWORKS = {
    "torch", "jax", "jaxlib", "keras", "onnx", "onnxruntime", "onnxscript", "llvmlite", "matplotlib", "tensorflow",
    "h5py", "jinja2", "scipy", "sklearn",
}  # fmt: skip
# numpy, safetensors and ml_dtypes come to 150 modules above Python itself, the smallest framework (onnx) to 300.
MOST_MODULES = 300


def python(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    base = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONSAFEPATH"}}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=base | (env or {}), capture_output=True, text=True, timeout=120)


def imported(code: str, cwd: Path) -> set[str]:
    """The modules that running this code imports, by Python's own account (-X importtime)."""
    done = python("-X", "importtime", "-c", code, cwd=cwd, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {row.rpartition("|")[2].strip() for row in rows}


def frameworks(modules: set[str]) -> set[str]:
    return FRAMEWORKS & {name.partition(".")[0] for name in modules}


def test_the_account_shows_a_framework(tmp_path: Path) -> None:
    """Without this the tests below would pass where no framework is installed."""
    missing = [name for name in ("torch", "jax", "keras", "onnx", "onnxruntime") if not importlib.util.find_spec(name)]
    assert not missing
    assert "onnx" in frameworks(imported("import onnx", tmp_path))


def test_importing_interlux_is_light(tmp_path: Path) -> None:
    modules = imported("import interlux", tmp_path)
    assert "interlux" in modules
    assert not frameworks(modules)
    assert not modules & {"click", "rich", "interlux.cli"}, "the command, in a program that only imports the package"
    foreign = {name for name in modules if not name.startswith("interlux")}
    assert len(foreign) <= MOST_MODULES, sorted(foreign)


@pytest.mark.parametrize("part", ["ir", "converters", "runtime", "cli"])
def test_importing_a_part_brings_no_framework(part: str, tmp_path: Path) -> None:
    modules = imported(f"import interlux.{part}", tmp_path)
    assert f"interlux.{part}" in modules
    assert not frameworks(modules)


def test_help_brings_no_framework(tmp_path: Path) -> None:
    modules = imported("from interlux.cli import main; main(['--help'])", tmp_path)
    assert "interlux.cli" in modules
    assert not frameworks(modules)


@pytest.mark.parametrize("part", ["ir", "converters", "runtime"])
def test_the_bare_name_is_refused(part: str) -> None:
    """From the root, where a link of that name stands; from inside the package, where a checkout has no links."""
    folders = [ROOT / "interlux", *([ROOT] if (ROOT / part).is_dir() else [])]
    for folder in folders:
        done = python("-c", f"import {part}", cwd=folder)
        last = done.stderr.strip().rpartition("\n")[2]
        assert done.returncode == 1, folder
        assert last.startswith("ImportError: "), done.stderr
        assert f"interlux.{part}" in last, done.stderr


@pytest.mark.parametrize("part", ["ir", "converters", "runtime"])
def test_the_links_at_the_root_are_relative(part: str) -> None:
    link = ROOT / part
    if not link.is_symlink():
        pytest.skip("a checkout without symbolic links, or the sdist")
    assert os.readlink(link) == f"interlux/{part}"
