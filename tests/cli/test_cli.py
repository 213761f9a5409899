"""The command as a user and a pipeline meet it: exit codes, one-line errors, JSON, files that are whole or absent."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file

import interlux as ix
import interlux.converters.torch as torch_converter
from interlux.cli.app import interlux as group
from interlux.cli.sources import parse_example
from interlux.ir import trees
from interlux.ir.layers import BatchNorm, Operator
from tests.cli.conftest import Command, Done

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"
NAMES = ("digits_lenet", "digits_resnet", "digits_lstm", "digits_transformer")
NETWORKS = """
import torch
from torch import nn

def example_inputs():
    return (torch.ones(2, 6),)

def trained(module):
    generator = torch.Generator().manual_seed(0)
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_floating_point():
            value.data = torch.rand(value.shape, generator=generator) * 0.02 + 0.01
            if "mean" not in name and "var" not in name:
                value.data = torch.randn(value.shape, generator=generator)
    return module.eval()

def mlp():
    return trained(nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)))

class Sorted(nn.Module):
    def forward(self, x):
        return x.sort().values

def sorted_rows():
    return Sorted()

def pair():
    return mlp(), (torch.ones(3, 6),)

def noisy():
    print("hello from the factory")
    return mlp()

def fails():
    raise RuntimeError("first\\nsecond")

def number():
    return 3

def hungry():
    raise MemoryError

def stops():
    raise KeyboardInterrupt

def leaves():
    raise SystemExit(0)

class Leaving(nn.Module):
    def forward(self, input):
        raise SystemExit(0)

class LeavingWhenRun(nn.Linear):
    def forward(self, input):
        if not torch.compiler.is_compiling():
            raise SystemExit(0)
        return super().forward(input)

def leaves_when_run():
    return LeavingWhenRun(6, 6)

class Depending(nn.Module):
    def forward(self, input):
        return input if input.sum() > 0 else -input

def leaves_forward():
    return Leaving()

def depends():
    return Depending()

def broken():
    raise SystemError("in native code")
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A small valid ONNX file: y = relu(x)."""
    return onnx_file(tmp_path / "tiny.onnx", helper.make_node("Relu", ["x"], ["y"], "step"))


def onnx_file(path: Path, *nodes: onnx.NodeProto, domain: str = "") -> Path:
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in ("x", "y")]
    graph = helper.make_graph(list(nodes), "tiny", tensors[:1], tensors[1:])
    opsets = [helper.make_opsetid("", 20)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    return path


def one_line(done: Done) -> str:
    """The one line of stderr that an error is."""
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("interlux: ")
    assert "Traceback" not in done.err
    return done.err


def files(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.name not in {"networks.py", "__pycache__"}}


# --- convert


@pytest.mark.parametrize("name", NAMES)
def test_each_fixture_converts_to_onnx_and_to_a_folder(name: str, command: Command, tmp_path: Path) -> None:
    done = command("convert", FIXTURES / f"{name}.pt2", "made.onnx", "--json")
    assert done.code == 0, done.err
    found = done.json
    assert found["ok"]
    assert found["verification"]["passed"]
    assert {row["backend"] for row in found["verification"]["rows"]} == {
        "jax", "onnxruntime", "onnxruntime (file)", "jax (file)",
    }  # fmt: skip
    assert found["written"]["opset"] == 20
    onnx.checker.check_model(str(tmp_path / "made.onnx"))
    done = command("convert", "made.onnx", "made", "--no-verify")
    assert done.code == 0, done.err
    assert ix.load(tmp_path / "made").signature is not None
    assert files(tmp_path) == {"made.onnx", "made"}


def test_what_is_shown_and_written(command: Command, tmp_path: Path) -> None:
    done = command("convert", "networks:mlp", "mlp.onnx", "--opset", 17, "--report", "r.html", "--name", "small")
    assert done.code == 0, done.err
    assert not done.err, "progress on a stderr that is no terminal"
    assert "passed" in done.out
    assert "wrote mlp.onnx (ONNX, opset 17" in done.out
    assert "<html" in (tmp_path / "r.html").read_text()
    assert onnx.load(tmp_path / "mlp.onnx").opset_import[0].version == 17
    assert files(tmp_path) == {"mlp.onnx", "r.html"}


def test_a_folder_is_a_saved_model_and_is_replaced(command: Command, tmp_path: Path) -> None:
    for _ in range(2):
        done = command("convert", "networks:pair", "saved/", "--backend", "onnxruntime")
        assert done.code == 0, done.err
    assert trees.count(ix.load(tmp_path / "saved").params) > 0
    assert files(tmp_path) == {"saved"}
    assert command("convert", "saved", "again.onnx", "--backend", "onnxruntime").code == 0


def test_weights_go_to_safetensors_by_the_names_of_the_state_dict(command: Command, tmp_path: Path) -> None:
    done = command("convert", FIXTURES / "digits_lenet.pt2", "w.safetensors", "--backend", "onnxruntime")
    assert done.code == 0, done.err
    made, source = load_file(tmp_path / "w.safetensors"), load_file(FIXTURES / "digits_lenet.safetensors")
    assert made.keys() == source.keys()
    assert all(np.array_equal(made[name], source[name]) for name in source)


@pytest.mark.parametrize("kind", ["pt", "checkpoint", "safetensors"])
def test_weights_with_an_architecture(kind: str, command: Command, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    weights = {k: torch.from_numpy(v) for k, v in load_file(FIXTURES / "digits_lenet.safetensors").items()}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file({k: v.numpy() for k, v in weights.items()}, path)
    else:
        torch.save(weights if kind == "pt" else {"state_dict": weights, "epoch": 3}, path)
    done = command(
        "convert", path, "m.onnx", "--arch", "fixtures.models:lenet5", "--input", "images=float32[batch,1,32,32]",
        "--backend", "onnxruntime",
    )  # fmt: skip
    assert done.code == 0, done.err
    shape = onnx.load(tmp_path / "m.onnx").graph.input[0].type.tensor_type.shape
    assert [d.dim_param or d.dim_value for d in shape.dim] == ["batch", 1, 32, 32]


def test_own_inputs_decide(command: Command, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", input=np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32))
    done = command("convert", "networks:mlp", "m.onnx", "--inputs", "x.npz", "--backend", "onnxruntime", "--json")
    assert done.code == 0, done.err
    assert done.json["verification"]["probes"] == ["your inputs"]


# --- wrong conversions


def _layers(model: ix.Model, change: Callable[[Any], Any]) -> ix.Model:
    assert isinstance(model.layer, ix.Graph)
    nodes = tuple(dataclasses.replace(node, layer=change(node.layer)) for node in model.layer.nodes)
    assert nodes != model.layer.nodes, "the mutation changed nothing"
    return dataclasses.replace(model, layer=dataclasses.replace(model.layer, nodes=nodes))


def _arrays(tree: Any, change: Callable[[str, np.ndarray], np.ndarray]) -> Any:
    changed = trees.map_with_path(lambda path, leaf: change(trees.name_of(path), leaf), tree)
    pairs = zip(trees.leaves(tree), trees.leaves(changed), strict=True)
    assert any(not np.array_equal(a, b) for (_, a), (_, b) in pairs), "the mutation changed nothing"
    return changed


def wrong_epsilon(model: ix.Model) -> ix.Model:
    return _layers(model, lambda x: dataclasses.replace(x, epsilon=1e-3) if isinstance(x, BatchNorm) else x)


def tanh_gelu(model: ix.Model) -> ix.Model:
    approximate = Operator("Gelu", (("approximate", "tanh"),))
    return _layers(model, lambda x: approximate if isinstance(x, Operator) and x.op_type == "Gelu" else x)


def transposed_square_weight(model: ix.Model) -> ix.Model:
    def change(name: str, a: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(a.T) if a.ndim == 2 and a.shape[0] == a.shape[1] else a

    return dataclasses.replace(model, params=_arrays(model.params, change))


def dropped_statistics(model: ix.Model) -> ix.Model:
    def change(name: str, a: np.ndarray) -> np.ndarray:
        return np.zeros_like(a) if "running_mean" in name else np.ones_like(a) if "running_var" in name else a

    return dataclasses.replace(model, states=_arrays(model.states, change))


def one_weight(model: ix.Model) -> ix.Model:
    def change(name: str, a: np.ndarray) -> np.ndarray:
        a = a.copy()
        if name == "4.weight":
            a[1, 2] *= 1.001
        return a

    return dataclasses.replace(model, params=_arrays(model.params, change))


@pytest.mark.parametrize("destination", ["m.onnx", "m", "m.safetensors"])
@pytest.mark.parametrize(
    "mutation", [wrong_epsilon, tanh_gelu, transposed_square_weight, dropped_statistics, one_weight]
)
def test_a_wrong_conversion_is_rejected(
    mutation: Callable[[ix.Model], ix.Model],
    destination: str,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = torch_converter.from_torch
    monkeypatch.setattr(torch_converter, "from_torch", lambda *a, **k: mutation(original(*a, **k)))
    done = command("convert", "networks:mlp", destination, "--backend", "onnxruntime")
    assert done.code == 1, done.out + done.err
    assert "verification failed" in one_line(done)
    assert "FAILED" in done.out
    assert files(tmp_path) == set()


def test_an_earlier_file_stays_when_verification_fails(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"earlier")
    original = torch_converter.from_torch
    monkeypatch.setattr(torch_converter, "from_torch", lambda *a, **k: one_weight(original(*a, **k)))
    done = command("convert", "networks:mlp", "m.onnx", "--backend", "onnxruntime", "--json", "--report", "r.html")
    assert done.code == 1
    assert not done.json["ok"]
    assert done.json["error"]["type"] == "VerificationError"
    assert not done.json["verification"]["passed"]
    assert (tmp_path / "m.onnx").read_bytes() == b"earlier"
    assert files(tmp_path) == {"m.onnx", "r.html"}, "the report says what failed"


def test_a_written_file_that_differs_is_rejected(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file itself is verified, not only the model that it was made of."""
    import interlux.runtime.onnx as emitter

    original = emitter.to_onnx
    monkeypatch.setattr(emitter, "to_onnx", lambda model, *rest: original(one_weight(model), *rest))
    done = command("convert", "networks:mlp", "m.onnx", "--backend", "jax", "--json")
    assert done.code == 1
    verdicts = {row["backend"]: row["passed"] for row in done.json["verification"]["rows"]}
    assert verdicts == {"jax": True, "onnxruntime (file)": False, "jax (file)": False}
    assert files(tmp_path) == set()


# --- verify


def test_verify_alone_and_against_another(command: Command) -> None:
    lenet = FIXTURES / "digits_lenet.pt2"
    done = command("verify", lenet, "--backend", "onnxruntime")
    assert (done.code, done.err) == (0, "")
    done = command("verify", lenet, FIXTURES / "digits_lenet.onnx", "--backend", "onnxruntime", "--json")
    assert done.code == 0, done.err
    assert {row["backend"] for row in done.json["verification"]["rows"]} == {
        "onnxruntime (file)", "onnxruntime (import)",
    }  # fmt: skip
    assert "order" in done.json["notes"][0], "outputs have other names, and the user is told"


@pytest.mark.parametrize("name", NAMES)
def test_the_fused_engine_is_verified(name: str, command: Command) -> None:
    done = command("verify", FIXTURES / f"{name}.pt2", "--backend", "fused", "--json")
    assert done.code == 0, done.err
    assert [row["backend"] for row in done.json["verification"]["rows"]] == ["fused"]


def test_what_the_fused_engine_does_not_take_is_a_failed_row(command: Command) -> None:
    done = command("verify", "networks:sorted_rows", "--backend", "jax,fused", "--json")
    assert done.code == 1
    passed = {row["backend"]: row["passed"] for row in done.json["verification"]["rows"]}
    assert passed == {"jax": True, "fused": False}
    assert "the fused engine has no" in str(done.json["verification"]["rows"])


def test_verify_tells_different_networks_apart(command: Command) -> None:
    done = command("verify", FIXTURES / "digits_lenet.pt2", FIXTURES / "digits_resnet.pt2", "--backend", "onnxruntime")
    assert done.code == 1
    assert "torch (file)" in done.out
    one_line(done)
    done = command("verify", FIXTURES / "digits_lenet.pt2", FIXTURES / "digits_lstm.onnx", "--backend", "onnxruntime")
    assert done.code == 1
    assert "cannot be compared" in one_line(done)


def test_inputs_and_outputs_are_matched_by_name(command: Command, tmp_path: Path) -> None:
    names = ["a", "b"]
    for path, order in (("one.onnx", names), ("two.onnx", names[::-1])):
        graph = helper.make_graph(
            [helper.make_node("Sub", ["a", "b"], ["d"]), helper.make_node("Exp", ["d"], ["e"])],
            "g",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in order],
            [helper.make_tensor_value_info({"a": "d", "b": "e"}[n], TensorProto.FLOAT, [4]) for n in order],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, tmp_path / path)
    done = command("verify", "one.onnx", "two.onnx", "--json", "--backend", "jax")
    assert done.code == 0, done.err
    assert "notes" not in done.json


# --- inspect, run, doctor


def test_inspect(command: Command) -> None:
    done = command("inspect", FIXTURES / "digits_lenet.onnx")
    assert (done.code, done.err) == (0, "")
    assert "61,706 parameters" in done.out
    found = command("inspect", FIXTURES / "digits_lenet.onnx", "--json").json
    assert found["model"]["inputs"] == [{"name": "images", "dtype": "float32", "shape": ["batch", 1, 32, 32]}]
    assert found["model"]["parameters"] == 61706
    assert any(node["layer"].startswith("Conv(") for node in found["nodes"])
    assert {"name": "conv1.weight", "dtype": "float32", "shape": [6, 1, 5, 5]} in found["params"]


@pytest.mark.parametrize("backend", ["jax", "onnxruntime", "fused"])
def test_run(backend: str, tiny: Path, command: Command, tmp_path: Path) -> None:
    x = np.array([[-1, 0, 2.5]], np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    done = command("run", tiny, "--input", "x.npz", "--output", "y.npz", "--backend", backend)
    assert (done.code, done.err) == (0, "")
    assert "[1, 3]" in done.out
    with np.load(tmp_path / "y.npz") as made:
        assert np.array_equal(made["y"], np.maximum(x, 0))
    found = command("run", tiny, "--input", "x.npz", "--backend", backend, "--json").json
    assert found["outputs"] == [
        {"name": "y", "dtype": "float32", "shape": [1, 3], "min": 0.0, "mean": pytest.approx(2.5 / 3), "max": 2.5}
    ]


def test_doctor(command: Command) -> None:
    done = command("doctor", "--json")
    assert done.code == 0
    found = done.json
    assert found["packages"]["numpy"] == np.__version__
    assert found["backends"]["jax"]["devices"]["cpu"] == {"works": True}
    assert found["backends"]["onnxruntime"]["devices"]["cpu"] == {"works": True}
    assert found["missing"] == []
    assert "works" in command("doctor").out


def test_doctor_says_what_is_missing(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from interlux.cli import doctor

    found = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name in ("torch", "jax") else found(name))
    done = command("doctor")
    assert done.code == 0
    assert "pip install 'interlux[torch,jax]'" in done.out


def test_doctor_knows_the_extras() -> None:
    import tomllib

    from interlux.cli.doctor import EXTRAS

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, (_, packages) in EXTRAS.items():
        names = {requirement.partition(">")[0] for requirement in declared[extra]}
        assert names == set(packages) - {"jaxlib"}


# --- exit codes and one-line errors


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["convert"], 2, "missing argument 'SRC'; see 'interlux convert --help'"),
        (["convert", "a", "b", "--wrong"], 2, "--wrong"),
        (["nothing"], 2, "nothing"),
        (["verify", "networks:mlp", "--backend", "abacus"], 2, "abacus"),
        (["convert", "networks:mlp", "m.onnx", "--no-verify", "--report", "r.html"], 2, "--no-verify"),
        (["inspect", "networks:mlp", "--input", "x=float32"], 2, "NAME=DTYPE[SHAPE]"),
        (["inspect", "networks:mlp", "--arch", "networks:mlp"], 2, "--arch"),
        (["inspect", str(FIXTURES / "digits_lenet.safetensors")], 2, "--arch"),
        (["bisect", "a", "b"], 3, "not part of this version"),
        (["bench", "a", "--fast"], 3, "not part of this version"),
        (["bundle", "a", "b"], 3, "not part of this version"),
        (["inspect", str(FIXTURES / "digits_lenet.keras")], 3, "Keras"),
        (["inspect", "networks.py"], 3, ".onnx"),
        (["convert", "networks:mlp", "m.pb"], 3, ".safetensors"),
        (["convert", "networks:mlp", "m.onnx", "--opset", "3"], 3, "opset 3"),
        (["convert", "networks:mlp", "m", "--opset", "17"], 3, "--opset"),
        (["inspect", "absent.onnx"], 4, "no such file"),
        (["inspect", "absent.keras"], 4, "no such file"),
        (["inspect", "absent:function"], 4, "absent"),
        (["inspect", "networks:absent"], 4, "absent"),
        (["inspect", "networks:number"], 4, "returned a int"),
        (["inspect", "networks:fails"], 4, "RuntimeError: first second"),
        (["inspect", "networks:mlp", "--input", "y=float32[2,6]"], 4, "Sequential.forward"),
        (["convert", "networks:mlp", "networks.py/m.onnx"], 4, "networks.py/m.onnx"),
        (["convert", "networks:mlp", "m.onnx", "--report", "networks.py/r.html"], 4, "networks.py/r.html"),
        (["convert", "networks:mlp", "m.onnx", "--report", "/dev/null"], 4, "/dev/null"),
        (["convert", "networks:mlp", ""], 2, "DST is empty"),
        (["convert", "networks:mlp", "m.onnx", "--report", "m.onnx"], 2, "would overwrite DST"),
        (["convert", "networks:mlp", "m", "--report", "m/r.html"], 2, "lies in DST"),
        (["verify", "networks:leaves_when_run"], 4, "sys.exit"),
        (["inspect", "networks:leaves"], 4, "networks:leaves() raised SystemExit"),
        (["convert", "networks:leaves_forward", "m.onnx"], 4, "sys.exit"),
        (["convert", "networks:depends", "m.onnx"], 3, "data-dependent"),
        (["convert", "networks:mlp", "m.onnx", "--inputs", "absent.npz", "--backend", "jax"], 4, "absent.npz"),
        (["inspect", "networks:hungry"], 5, "out of memory"),
        (["inspect", "networks:stops"], 130, "interrupted"),
    ],
)
def test_exit_codes(arguments: list[str], code: int, words: str, command: Command, tmp_path: Path) -> None:
    done = command(*arguments)
    assert done.code == code, done.err
    assert words in one_line(done)
    assert done.out == ""
    assert files(tmp_path) == set()
    done = command(*arguments, "--json")
    assert done.code == code
    assert done.json["exit_code"] == code
    assert not done.json["ok"]
    assert words in done.json["error"]["message"] or code == 2


def test_what_nobody_expected_is_an_internal_error(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(torch_converter, "from_torch", broken)
    done = command("inspect", "networks:mlp")
    assert done.code == 70
    assert "internal error: ZeroDivisionError: division by zero; run again with -v" in one_line(done)
    for verbose in (["-v", "inspect", "networks:mlp"], ["inspect", "networks:mlp", "-v"]):
        assert "Traceback" in command(*verbose).err


def test_without_a_command_there_is_help_on_stderr(command: Command) -> None:
    done = command()
    assert (done.code, done.out) == (2, "")
    assert "Usage: interlux" in done.err


def test_hostile_and_damaged_files(command: Command, tmp_path: Path, tiny: Path) -> None:
    content = (FIXTURES / "digits_lenet.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.pt2").write_text("hello")
    (tmp_path / "text.pt").write_text("hello")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    np.savez(tmp_path / "shape.npz", x=np.zeros((2, 4), np.float32))
    np.savez(tmp_path / "dtype.npz", x=np.zeros((2, 3)))
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "names.npz", z=np.zeros((2, 3), np.float32))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "shape.npz").read_bytes()[:100])
    (tmp_path / "folder").mkdir()
    before = files(tmp_path)
    assert "truncated" in one_line(command("convert", "cut.onnx", "m.onnx"))
    for arguments, words in (
        (["convert", "text.pt2", "m.onnx"], "text"),
        (["inspect", "text.pt", "--arch", "networks:mlp"], "torch.save"),
        (["inspect", "whole.pt", "--arch", "networks:mlp"], "run code"),
        (["inspect", "folder"], "model.json"),
        *((["run", tiny, "--input", f"{n}.npz"], n) for n in ("objects", "cut")),
        (["run", tiny, "--input", "text.pt2"], "text.pt2"),
        (["run", tiny, "--input", "shape.npz"], "shape (batch, 3)"),
        (["run", tiny, "--input", "dtype.npz"], "float64"),
        (["run", tiny, "--input", "names.npz"], "'z'"),
        (["run", tiny, "--input", "one.npy"], ".npy"),
    ):
        done = command(*arguments)
        assert done.code == 4, done
        assert words in one_line(done)
    assert files(tmp_path) == before


def test_cuda_is_refused_where_there_is_none(command: Command, tiny: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3), np.float32))
    for backend in ("jax", "onnxruntime"):
        if not ix_has_cuda(backend):
            done = command("run", tiny, "--input", "x.npz", "--device", "cuda", "--backend", backend)
            assert done.code == 3
            assert "cuda" in one_line(done).lower()


def ix_has_cuda(backend: str) -> bool:
    from interlux.cli.doctor import works

    return not works(backend, "cuda")


def test_every_unknown_operator_is_named(command: Command, tmp_path: Path) -> None:
    onnx_file(
        tmp_path / "u.onnx",
        helper.make_node("Teleport", ["x"], ["h"], "first", domain="acme"),
        helper.make_node("Rewind", ["h"], ["y"], "second", domain="acme"),
        domain="acme",
    )
    done = command("convert", "u.onnx", "m.onnx", "--json")
    assert done.code == 3
    items = " ".join(done.json["error"]["items"])
    assert "Teleport" in items
    assert "Rewind" in items
    assert files(tmp_path) == {"u.onnx"}


def test_hostile_names_do_not_reach_the_terminal(command: Command, tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    onnx_file(tmp_path / "n.onnx", helper.make_node("Relu", ["x"], ["y"], evil))
    onnx_file(tmp_path / "u.onnx", helper.make_node(f"No{evil}", ["x"], ["y"], evil))
    proto = onnx.load(tmp_path / "n.onnx")
    proto.graph.name = evil
    proto.graph.input[0].name = proto.graph.node[0].input[0] = f"x{evil}"
    onnx.save(proto, tmp_path / "n.onnx")
    for arguments in (
        ["inspect", "n.onnx"],
        ["inspect", "n.onnx", "--json"],
        ["convert", "n.onnx", "m.onnx"],
        ["inspect", "u.onnx"],
        ["inspect", f"{evil}.onnx"],
        ["verify", "n.onnx", "--backend", f"{evil}"],
    ):
        done = command(*arguments)
        for text in (done.out, done.err):
            assert not set(evil) - {"]", "0", ";", *"owned", "[", "2", "J"} & set(text)


def test_stdout_has_the_json_and_nothing_else(command: Command) -> None:
    done = command("inspect", "networks:noisy", "--json")
    assert done.code == 0
    assert done.json["ok"]
    assert "hello from the factory" in done.err


# --- processes


def process(*arguments: Any, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""}
    command = [sys.executable, "-m", "interlux", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_process_gives_the_exit_code_and_clean_streams(tmp_path: Path) -> None:
    running = process("convert", FIXTURES / "digits_lenet.pt2", "m.onnx", "--backend", "onnxruntime", cwd=tmp_path)
    out, err = running.communicate(timeout=300)
    assert (running.returncode, err) == (0, "")
    assert "wrote m.onnx" in out
    running = process("inspect", "absent.onnx", "--json", cwd=tmp_path)
    out, err = running.communicate(timeout=300)
    assert running.returncode == 4
    assert json.loads(out)["exit_code"] == 4


def test_version_and_completion(tmp_path: Path) -> None:
    running = process("--version", cwd=tmp_path)
    assert running.communicate(timeout=60)[0] == f"interlux {ix.__version__}\n"
    env = os.environ | {"PYTHONPATH": str(ROOT), "_INTERLUX_COMPLETE": "bash_source"}
    done = subprocess.run([sys.executable, "-m", "interlux"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "complete" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_conversion_leaves_nothing(number: int, code: int, tmp_path: Path) -> None:
    """The signal comes while the file is written, but not in its place."""
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("the signal is ignored, as under nohup, and the command leaves that as it is")
    (tmp_path / "slow.py").write_text(
        "import time\nimport interlux.runtime.verify as v\n"
        "def wait(*a, **k):\n    print('verifying', flush=True)\n    time.sleep(60)\n"
        "v.verify = wait\nfrom networks import mlp\n"
    )
    (tmp_path / "networks.py").write_text(NETWORKS)
    running = process("convert", "slow:mlp", "m.onnx", "--input", "input=float32[batch,6]", cwd=tmp_path)
    assert running.stdout is not None
    assert running.stdout.readline() == "verifying\n"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".m.onnx-")], "written beside its place"
    time.sleep(0.2)
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == code
    assert "nothing was written" in err
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == {"slow.py", "networks.py"}


def test_a_reader_that_leaves_is_no_failure(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    inspect = f"{sys.executable} -m interlux inspect {FIXTURES / 'digits_resnet.onnx'}"
    script = f"{inspect} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 141
    assert done.stderr == ""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_signal_that_other_code_swallows_stops_the_command(tmp_path: Path) -> None:
    """The verification goes on, and nothing is written after it."""
    (tmp_path / "late.py").write_text(
        "import os, signal\nimport interlux.runtime.verify as v\noriginal = v.verify\n"
        "def swallowed(*a, **k):\n    try:\n        os.kill(os.getpid(), signal.SIGTERM)\n        signal.pause()\n"
        "    except BaseException:\n        pass\n    return original(*a, **k)\n"
        "v.verify = swallowed\nfrom networks import mlp\n"
    )
    (tmp_path / "networks.py").write_text(NETWORKS)
    running = process(
        "convert", "late:mlp", "new/m.onnx", "--input", "input=float32[batch,6]", "--report", "r.html", cwd=tmp_path
    )
    _, err = running.communicate(timeout=120)
    assert (running.returncode, err) == (143, "interlux: terminated; nothing was written\n")
    assert files(tmp_path) == {"late.py"}


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_signal_that_python_forgets_comes_again(tmp_path: Path) -> None:
    """As in the callbacks that JAX registers with the garbage collector: what they raise is printed and forgotten."""
    (tmp_path / "collected.py").write_text(
        "import os, signal, time\nimport interlux.runtime.verify as v\n"
        "class Collected:\n    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n        time.sleep(1)\n"
        "def wait(*a, **k):\n    Collected()\n    time.sleep(60)\n"
        "v.verify = wait\nfrom networks import mlp\n"
    )
    (tmp_path / "networks.py").write_text(NETWORKS)
    running = process("convert", "collected:mlp", "m.onnx", "--input", "input=float32[batch,6]", cwd=tmp_path)
    _, err = running.communicate(timeout=50)
    assert (running.returncode, err) == (143, "interlux: terminated; nothing was written\n")
    assert files(tmp_path) == {"collected.py"}


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("delay", [0.3, 1.1])
def test_a_signal_while_jax_compiles(delay: float, tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(
        "import interlux.runtime.verify as v\noriginal = v.verify\n"
        "def told(*a, **k):\n    print('verifying', flush=True)\n    return original(*a, **k)\n"
        "v.verify = told\nimport sys\nfrom interlux.cli import main\n"
        f"sys.argv = ['interlux', 'convert', {str(FIXTURES / 'digits_resnet.pt2')!r}, 'm.onnx', '--backend', 'jax']\n"
        "sys.exit(main())\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    running = subprocess.Popen([sys.executable, "told.py"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline() == "verifying\n"
    time.sleep(delay)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=120)
    assert running.returncode == 143
    assert files(tmp_path) == {"told.py"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("redirection", "code"),
    [(">&-", 5), (">/dev/full", 5), ("--json >/dev/full", 5), ("2>&-", 0), ("2>/dev/full", 0), (">&- 2>&-", 5)],
)
def test_streams_that_cannot_be_written(redirection: str, code: int, tiny: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    script = f"{sys.executable} -m interlux inspect {tiny} {redirection}"
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    assert done.stderr.count("\n") <= 1
    assert done.stderr.startswith("interlux: stdout") or not done.stderr


# --- what may be written


def test_nothing_that_is_read_is_overwritten(command: Command, tiny: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3), np.float32))
    (tmp_path / "link.onnx").symlink_to(tiny)
    before = {name: (tmp_path / name).read_bytes() for name in ("tiny.onnx", "x.npz")}
    for arguments in (
        ["convert", tiny, tiny],
        ["convert", tiny, "link.onnx"],
        ["convert", tiny, "m.onnx", "--report", tiny],
        ["convert", tiny, "m.onnx", "--inputs", "x.npz", "--report", "x.npz"],
        ["verify", tiny, "--report", "./tiny.onnx"],
        ["verify", tiny, "--inputs", "x.npz", "--report", "x.npz"],
        ["run", tiny, "--input", "x.npz", "--output", "x.npz"],
        ["run", tiny, "--input", "x.npz", "--output", tiny],
    ):
        done = command(*arguments)
        assert done.code == 2, done
        assert "would overwrite" in one_line(done)
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    assert files(tmp_path) == {"tiny.onnx", "x.npz", "link.onnx"}


def test_missing_folders_are_made_and_removed_with_a_failure(
    command: Command, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = command("convert", tiny, "a/b/m.onnx", "--backend", "onnxruntime", "--report", "c/r.html")
    assert done.code == 0, done.err
    assert (tmp_path / "a/b/m.onnx").is_file()
    assert (tmp_path / "c/r.html").is_file()
    before = files(tmp_path)
    original = torch_converter.from_torch
    monkeypatch.setattr(torch_converter, "from_torch", lambda *a, **k: one_weight(original(*a, **k)))
    assert command("convert", "networks:mlp", "d/e/m.onnx", "--backend", "onnxruntime").code == 1
    assert files(tmp_path) == before


def test_outputs_with_hostile_names_get_others(command: Command, tmp_path: Path) -> None:
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in ("x", "../../y", ".._.._y")]
    nodes = [helper.make_node("Relu", ["x"], ["../../y"]), helper.make_node("Neg", ["x"], [".._.._y"])]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "h.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones(3, np.float32))
    done = command("run", "h.onnx", "--input", "x.npz", "--output", "new/y.npz", "--backend", "onnxruntime", "--json")
    assert done.code == 0, done.err
    assert done.json["written"] == "new/y.npz"
    assert "'../../y' is named" in done.json["notes"][0]
    with np.load(tmp_path / "new/y.npz") as made:
        assert len(made.files) == 2
        assert not any(set(name) & set("/\\") or name.startswith(".") for name in made.files)


def test_json_is_taken_before_the_sub_command(command: Command, tiny: Path) -> None:
    assert command("--json", "inspect", tiny).json == command("inspect", tiny, "--json").json


# --- options


@pytest.mark.parametrize(
    ("text", "shape", "dtype", "dims"),
    [
        ("x=float32[2,3]", (2, 3), "float32", {}),
        ("x=int64[batch, 7]", (2, 7), "int64", {0: "batch"}),
        ("x=bfloat16[batch=4,length=9]", (4, 9), "bfloat16", {0: "batch", 1: "length"}),
        ("a.b=bool[]", (), "bool", {}),
        ("x=float16[n,n]", (2, 2), "float16", {0: "n", 1: "n"}),
    ],
)
def test_example_inputs(text: str, shape: tuple[int, ...], dtype: str, dims: dict[int, str]) -> None:
    name, array, found = parse_example(text, {})
    assert name == text.partition("=")[0]
    assert (array.shape, array.dtype.name, found) == (shape, dtype, dims)


@pytest.mark.parametrize(
    "text", ["x", "x=float32", "x=float32[2", "x=float32[,]", "x=float32[-1]", "x=float99[2]", "x=float32[=3]"]
)
def test_example_inputs_that_are_none(text: str) -> None:
    with pytest.raises(click.UsageError, match=r"NAME=DTYPE\[SHAPE\]|unknown dtype"):
        parse_example(text, {})


def test_every_command_has_help() -> None:
    for name, each in group.commands.items():
        assert each.get_short_help_str(200), name
        for option in each.params:
            if isinstance(option, click.Option):
                assert option.help or option.name == "device", (name, option.name)
