"""The public API: what is named exists and is documented, what is missing says so, and the README tells the truth."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import interlux as ix
from interlux.ir.layers import Dense
from interlux.ir.model import Model, Signature, TensorSpec

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


@pytest.fixture
def model() -> Model:
    layer = Dense(3, 2)
    params, states = ix.setup(layer, 0)
    x, y = TensorSpec("x", "float32", ("batch", 3)), TensorSpec("y", "float32", ("batch", 2))
    return Model(layer, params, states, Signature((x,), (y,)))


def test_all_public_names_exist_and_are_documented() -> None:
    assert len(set(ix.__all__)) == len(ix.__all__)
    assert ix.__all__ == sorted(ix.__all__)
    for name in ix.__all__:
        value = getattr(ix, name)
        if name != "__version__":
            assert (inspect.getdoc(value) or "").strip(), f"{name} has no docstring"
    assert dir(ix) == sorted(ix.__all__)
    with pytest.raises(AttributeError, match="no attribute 'from_caffe'"):
        ix.from_caffe  # noqa: B018


def test_all_layers_are_documented() -> None:
    for name in ix.layers.__all__:
        assert (inspect.getdoc(getattr(ix.layers, name)) or "").strip(), name


def test_the_version_is_that_of_the_package() -> None:
    import tomllib

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == ix.__version__
    assert f"[{ix.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    "call",
    [
        lambda m: ix.from_keras(None),
        lambda m: ix.assign_keras_weights(None, m),
        lambda m: ix.to_stablehlo(m, "x"),
        lambda m: ix.bundle(m, "x"),
    ],
)
def test_what_is_not_there_yet_says_so(call: Callable[[Model], Any], model: Model) -> None:
    with pytest.raises(ix.UnsupportedError, match=r"not part of this version|not yet|yet") as caught:
        call(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "abacus"},
        {"backend": "jax", "device": "toaster"},
        {"backend": "onnxruntime", "device": "toaster"},
    ],
)
def test_compile_errors_are_one_line(options: dict[str, str], model: Model) -> None:
    with pytest.raises(ix.UnsupportedError) as caught:
        ix.compile(model, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ["jax", "onnxruntime"])
def test_cuda_without_a_device_is_one_line(backend: str, model: Model) -> None:
    from interlux.cli.doctor import works

    problem = works(backend, "cuda")
    if not problem:
        pytest.skip("this machine has one")
    with pytest.raises(ix.UnsupportedError, match=r"(?i)cuda") as caught:
        ix.compile(model, backend=backend, device="cuda")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"z": np.zeros((1, 3), np.float32)}, "unknown input 'z'"),
        ({}, "'x' is missing"),
        ({"x": np.zeros((1, 3))}, "float64"),
        ({"x": np.zeros((1, 4), np.float32)}, "shape"),
    ],
)
def test_wrong_inputs_are_named(arguments: dict[str, Any], words: str, model: Model) -> None:
    for backend in ("jax", "onnxruntime"):
        with pytest.raises(ix.InvalidModelError, match=words):
            ix.compile(model, backend=backend)(**arguments)


@pytest.mark.parametrize("name", ["to_onnx", "save", "to_c"])
def test_what_is_no_model_is_refused(name: str, model: Model, tmp_path: Path) -> None:
    for wrong in (model.layer, None, "net"):
        with pytest.raises(ix.InvalidModelError, match=f"^{name} takes a Model, not .*from_layer make one$"):
            getattr(ix, name)(wrong, tmp_path / "out")
        with pytest.raises(ix.InvalidModelError, match="takes a Model"):
            ix.verify(model, wrong)
    assert not list(tmp_path.iterdir())


def test_a_missing_framework_is_one_line(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n == "onnx" or n.startswith(("onnx.", "interlux.runtime.onnx"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ix.UnsupportedError, match=re.escape("pip install 'interlux[onnx]'")):
        ix.to_onnx(model, "m.onnx")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_tour_in_the_readme_runs(tmp_path: Path) -> None:
    tour = "\n".join(blocks("python"))
    code = "import warnings\nwarnings.simplefilter('error')\n" + tour
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "67 parameters" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"mlp", "mlp.onnx"}


def test_the_commands_in_the_readme_exist() -> None:
    from interlux.cli.app import interlux

    used = re.findall(r"^\$ interlux (\w+)(.*)$", "\n".join(blocks("console")), re.MULTILINE)
    assert len(used) >= 6
    for name, rest in used:
        known = {option for p in interlux.commands[name].params for option in p.opts}
        assert set(re.findall(r"--[a-z]+", rest)) <= known, name


def test_the_support_table_in_the_readme_is_up_to_date() -> None:
    path = ROOT / "tools" / "make_support_table.py"
    if not path.is_file():
        pytest.skip("the sdist has no tools")
    spec = importlib.util.spec_from_file_location("make_support_table", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = README.read_text(encoding="utf-8")
    assert tool.updated(text) == text, "run tools/make_support_table.py"


def test_the_readme_names_every_exit_code() -> None:
    from interlux import cli

    table = dict(re.findall(r"^\| (\d+) \| (.*) \|$", README.read_text(encoding="utf-8"), re.MULTILINE))
    codes = {cli.OK, cli.FAILED, cli.USAGE, cli.UNSUPPORTED, cli.INVALID, cli.RESOURCE, cli.INTERNAL, cli.INTERRUPTED}
    assert {int(code) for code in table} == codes
    public = [getattr(ix, name) for name in ix.__all__]
    errors = [e for e in public if inspect.isclass(e) and issubclass(e, ix.InterluxError)]
    assert {e.exit_code for e in errors} <= codes


def test_the_readme_is_of_no_machine() -> None:
    text = README.read_text(encoding="utf-8")
    assert not re.search(r"/(work|root|home|tmp)/|https?://", text)


def test_the_demo_needs_its_fixtures(tmp_path: Path) -> None:
    """In a process of its own, from a folder without them."""
    code = f"import sys; sys.path.append({str(ROOT)!r}); sys.modules['fixtures'] = None\n" + (
        "import importlib.util as u; old = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'fixtures' else old(n, *a)\n"
        "from interlux.demo import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "make demo" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.zoo
def test_the_demo_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from interlux import demo

    monkeypatch.chdir(tmp_path)
    assert demo.main() == 0
    shown = capsys.readouterr().out
    assert shown.count("passed") >= 21
    for name, correct in (("lenet", 352), ("resnet", 358), ("lstm", 345), ("transformer", 343)):
        assert shown.count(f"({correct}/360)") == 6, name
    out = tmp_path / "out" / "demo"
    assert "digits_transformer" in (out / "report.html").read_text()
    assert ix.load(out / "digits_lenet").signature is not None
    assert (out / "digits_lenet.onnx").is_file()
