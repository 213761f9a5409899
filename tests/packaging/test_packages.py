"""What is installed is the package and nothing else: wheel, sdist, the wheel made from the sdist, a bare venv."""

from __future__ import annotations

import email
import email.message
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGED = {".py", ".json", ".j2", ".typed"}
FRAMEWORKS = ("torch", "jax", "jaxlib", "onnx", "onnxruntime", "keras", "llvmlite", "matplotlib")
EXTRAS = ("torch", "onnx", "keras", "jax", "fused", "report")

# One worker builds, once, for all of these tests.
pytestmark = pytest.mark.xdist_group("packages")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command as a user would who has no Python settings of his own, and return its standard output."""
    env = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    out.mkdir()
    run(sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", out, source, cwd=out)
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel") / "out")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist") / "out")


@pytest.fixture(scope="module")
def wheel_from_sdist(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("from_sdist")
    with tarfile.open(sdist) as tar:
        tar.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    return build("wheel", source, folder / "out")


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as z:
        assert len(set(z.namelist())) == len(z.namelist())
        return {name: z.read(name) for name in z.namelist()}


def metadata(wheel: Path) -> email.message.Message:
    (text,) = (data for name, data in contents(wheel).items() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(text)


def requirements(wheel: Path, extra: str | None) -> set[str]:
    """The names required without an extra, or with that one."""
    names = set()
    for line in metadata(wheel).get_all("Requires-Dist", []):
        requirement, _, marker = line.partition(";")
        asked = re.search(r"extra == ['\"](\w+)['\"]", marker)
        if (asked.group(1) if asked else None) == extra:
            names.add(re.sub(r"[<>=!~].*", "", requirement).strip().replace("-", "_").lower())
    return names


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in contents(wheel)}
    assert tops == {"interlux", "interlux-0.1.0.dist-info"}


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "interlux").rglob("*")
        if path.is_file() and path.suffix in PACKAGED and "__pycache__" not in path.parts
    }
    found = {name for name in contents(wheel) if name.startswith("interlux/")}
    assert {"interlux/__init__.py", "interlux/py.typed"} <= expected
    for part in ("ir", "converters", "runtime"):
        assert f"interlux/{part}/__init__.py" in expected
    assert not expected - found, "left out of the wheel"
    assert not [name for name in found if name.endswith(".pyc")]


def test_the_sdist_makes_the_same_wheel(wheel: Path, wheel_from_sdist: Path) -> None:
    direct, again = contents(wheel), contents(wheel_from_sdist)
    assert direct.keys() == again.keys()
    assert not [name for name in direct if direct[name] != again[name]], "differ"


def test_the_sdist_holds_what_it_takes_to_test(sdist: Path) -> None:
    with tarfile.open(sdist) as tar:
        members = tar.getmembers()
    assert all(m.isfile() for m in members), "links or folders in the sdist"
    names = {m.name.partition("/")[2] for m in members}
    assert {m.name.partition("/")[0] for m in members} == {"interlux-0.1.0"}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "requirements.lock"} <= names
    assert {"tests/conftest.py", "fixtures/__init__.py"} <= names
    assert not {n.split("/")[0] for n in names} & {"ir", "converters", "runtime", "out", "shared"}
    assert not [n for n in names if n.endswith(".pyc")]


def test_the_metadata(wheel: Path) -> None:
    meta = metadata(wheel)
    assert (meta["Name"], meta["Version"], meta["License-Expression"]) == ("interlux", "0.1.0", "MIT")
    assert meta["Requires-Python"] == ">=3.11"
    assert requirements(wheel, None) == {"click", "ml_dtypes", "numpy", "rich", "safetensors"}
    assert set(meta.get_all("Provides-Extra", [])) == {*EXTRAS, "all", "dev"}
    assert requirements(wheel, "all") == set().union(*(requirements(wheel, extra) for extra in EXTRAS))
    assert {"torch", "onnx", "onnxruntime", "keras", "jax", "llvmlite", "jinja2"} <= requirements(wheel, "all")
    (scripts,) = (data for name, data in contents(wheel).items() if name.endswith("/entry_points.txt"))
    assert "interlux = interlux.cli:main" in scripts.decode()


@pytest.mark.network
def test_installed_alone_it_is_complete(wheel: Path, tmp_path: Path) -> None:
    """In a new environment, with the core dependencies only, from a folder whose own `ir` and `runtime` lie in wait."""
    elsewhere = tmp_path / "elsewhere"
    for name in ("ir", "converters", "runtime"):
        (elsewhere / name).mkdir(parents=True)
        (elsewhere / name / "__init__.py").write_text("raise SystemExit('the folder of the user, not ours')\n")
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv, cwd=elsewhere)
    bin_ = venv / ("Scripts" if os.name == "nt" else "bin")
    lock = ROOT / "requirements.lock"
    run(bin_ / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", lock, wheel, cwd=elsewhere)

    installed = {line.partition("==")[0] for line in run(bin_ / "python", "-m", "pip", "freeze", cwd=elsewhere).split()}
    assert not installed & set(FRAMEWORKS), "a framework is a core dependency"

    code = """
import json, sys
import interlux, interlux.ir, interlux.converters, interlux.runtime, interlux.cli
print(json.dumps({name: module.__file__ for name, module in sys.modules.items() if name.startswith("interlux")}))
"""
    files = json.loads(run(bin_ / "python", "-c", code, cwd=elsewhere))
    assert {"interlux", "interlux.ir", "interlux.converters", "interlux.runtime", "interlux.cli"} <= files.keys()
    strangers = {name: file for name, file in files.items() if venv.resolve() not in Path(file).resolve().parents}
    assert not strangers, "not from the new environment"

    usage = run(bin_ / "interlux", "--help", cwd=elsewhere)
    assert "Usage: interlux" in usage
    assert "convert" in usage
