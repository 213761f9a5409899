"""Files of weights as sources, with an architecture: from Python and from the command."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import interlux as ix
from tests.cli.conftest import Command

NETWORKS = """
import torch
from torch import nn

def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.BatchNorm1d(5), nn.Linear(5, 3))

def with_inputs():
    return mlp(), (torch.ones(3, 6),)

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, input):
        return self.decode(torch.tanh(self.encode(input)))

def number():
    return 3
"""
INPUT = "input=float32[batch,6]"


class Runs:
    """What, unpickled, makes a file."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch attacked",))


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.BatchNorm1d(5), nn.Linear(5, 3))


def written(name: str, state: Any) -> str:
    if name.endswith(".safetensors"):
        save_file(dict(state), name)
    else:
        torch.save(state, name)
    return name


ENDINGS = (".safetensors", ".pt", ".pth", ".bin")


@pytest.mark.parametrize("ending", ENDINGS)
def test_convert_and_the_weights_are_those_of_the_file(ending: str, command: Command) -> None:
    module = mlp()
    path = written(f"w{ending}", module.state_dict())
    code, _, err = command("convert", path, "made", "--arch", "networks:mlp", "--input", INPUT)
    assert code == 0, err
    model = ix.load("made")
    np.testing.assert_array_equal(model.params["0"]["weight"], module.get_parameter("0.weight").detach().numpy())
    assert model.require_signature().inputs[0].shape == ("batch", 6)


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_same_from_python(ending: str, command: Command) -> None:
    module = mlp().eval()
    path = written(f"w{ending}", module.state_dict())
    x = torch.randn(4, 6)
    for arch in ("networks:mlp", mlp):
        model = ix.from_torch(path, (x,), arch=arch)
        np.testing.assert_allclose(ix.compile(model)(x.numpy())[0], module(x).detach().numpy(), atol=1e-6)
    assert str(ix.from_torch(path, arch="networks:with_inputs").require_signature().inputs[0].shape[0]) == "batch"


def test_all_commands_take_them(command: Command) -> None:
    path = written("w.safetensors", mlp().state_dict())
    np.savez("x.npz", input=np.ones((2, 6), np.float32))
    arch = ("--arch", "networks:mlp")
    assert command("inspect", path, *arch, "--input", INPUT)[0] == 0
    assert command("verify", path, *arch, "--input", INPUT, "--backend", "jax")[0] == 0
    assert command("run", path, *arch, "--input", "x.npz")[0] == 0
    assert command("inspect", path, "--arch", "networks:with_inputs")[0] == 0


@pytest.mark.parametrize("wrapping", ["state_dict", "model_state_dict", "model"])
def test_checkpoints(wrapping: str, command: Command) -> None:
    path = written("w.bin", {wrapping: mlp().state_dict(), "epoch": 3})
    assert command("inspect", path, "--arch", "networks:with_inputs")[0] == 0


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_dtypes_are_those_of_the_file(ending: str, command: Command) -> None:
    state = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in mlp().state_dict().items()}
    path = written(f"w{ending}", state)
    model = ix.from_torch(path, (torch.ones(2, 6, dtype=torch.bfloat16),), arch="networks:mlp")
    assert model.params["0"]["weight"].dtype.name == "bfloat16"
    found = ix.torch_state_dict(model)
    assert all(torch.equal(found[k], v) for k, v in state.items())


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_what_does_not_fit_is_listed(ending: str, command: Command) -> None:
    state = mlp().state_dict()
    del state["0.bias"]
    state["extra\nkey"] = torch.zeros(2)
    path = written(f"w{ending}", state)
    code, _, err = command("inspect", path, "--arch", "networks:with_inputs")
    assert code == 4 and err.count("\n") == 1
    assert "missing: 0.bias; unexpected: extra\\nkey" in err
    state = mlp().state_dict()
    state["3.weight"] = torch.zeros(4, 5)
    code, _, err = command("inspect", written(f"w{ending}", state), "--arch", "networks:with_inputs")
    assert code == 4 and err.count("\n") == 1
    assert "of another shape: 3.weight [4, 5] instead of [3, 5]" in err and "missing" not in err
    many = {f"layer.{i}": torch.zeros(1) for i in range(30)}
    code, _, err = command("inspect", written(f"w{ending}", many), "--arch", "networks:with_inputs")
    assert code == 4 and " and 20 more" in err and "missing: 0.weight" in err


def test_tied_weights(command: Command) -> None:
    one, other = torch.randn(6, 6), torch.randn(6, 6)
    for state in ({"encode.weight": one}, {"decode.weight": one}, {"encode.weight": one, "decode.weight": one.clone()}):
        path = written("w.safetensors", state)
        model = ix.from_torch(path, (torch.ones(2, 6),), arch="networks:Tied")
        assert list(model.aliases) == [("decode", "weight")]
        np.testing.assert_array_equal(model.params["encode"]["weight"], one.numpy())
    path = written("w.safetensors", {"encode.weight": one, "decode.weight": other})
    with pytest.raises(ix.InvalidModelError, match=r"encode.weight and decode.weight are one tensor .* differ"):
        ix.from_torch(path, (torch.ones(2, 6),), arch="networks:Tied")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["inspect", "w.safetensors"], 2, "--arch"),
        (["inspect", "w.bin"], 2, "--arch"),
        (["inspect", "w.pt", "--arch", "nothing"], 2, "package.module:function"),
        (["inspect", "w.pt", "--arch", "absent:mlp"], 4, "absent"),
        (["inspect", "w.pt", "--arch", "networks:absent"], 4, "absent"),
        (["inspect", "w.pt", "--arch", "networks:number"], 4, "returned a int"),
        (["inspect", "w.pt", "--arch", "networks:mlp"], 2, "example inputs"),
        (["inspect", "networks:mlp", "--trust"], 2, "--trust"),
        (["inspect", "w.safetensors", "--arch", "networks:mlp", "--trust"], 2, "--trust"),
        (["inspect", "text.bin", "--arch", "networks:with_inputs"], 4, "torch.save"),
        (["inspect", "text.safetensors", "--arch", "networks:with_inputs"], 4, "safetensors"),
        (["inspect", "list.pt", "--arch", "networks:with_inputs"], 4, "no state_dict"),
        (["inspect", "whole.pt", "--arch", "networks:with_inputs"], 4, "run code"),
        (["inspect", "whole.pt", "--input", INPUT], 2, "--arch"),
        (["inspect", "pipe.pt", "--arch", "networks:with_inputs"], 4, "not a regular file"),
        (["inspect", "pipe.safetensors", "--arch", "networks:with_inputs"], 4, "not a regular file"),
    ],
)
def test_errors(arguments: list[str], code: int, words: str, command: Command, tmp_path: Path) -> None:
    for ending in ENDINGS:
        written(f"w{ending}", mlp().state_dict())
        (tmp_path / f"text{ending}").write_text("hello")
    torch.save(nn.Linear(6, 2), "whole.pt")
    torch.save([torch.zeros(2)], "list.pt")
    for ending in (".pt", ".safetensors"):
        os.mkfifo(f"pipe{ending}")
    found, out, err = command(*arguments)
    assert (found, out) == (code, ""), err
    assert words in err and err.count("\n") == 1


# --- pickles


def test_a_whole_module_is_loaded_if_it_is_trusted(command: Command) -> None:
    module = mlp().eval()
    torch.save(module, "whole.pt")
    code, _, err = command("convert", "whole.pt", "made.onnx", "--trust", "--input", INPUT, "--backend", "onnxruntime")
    assert code == 0, err
    x = torch.randn(2, 6)
    model = ix.from_torch("whole.pt", (x,), trust=True)
    np.testing.assert_allclose(ix.compile(model)(x.numpy())[0], module(x).detach().numpy(), atol=1e-6)
    with pytest.raises(ix.InvalidModelError, match="weights only"):
        ix.from_torch(written("w.pt", module.state_dict()), (x,), trust=True)
    with pytest.raises(ix.UnsafeInputError, match="run code"):
        ix.from_torch("whole.pt", (x,))


def _hostile_zip() -> bytes:
    torch.save({"0.weight": torch.zeros(2), "evil": Runs()}, file := io.BytesIO())
    return file.getvalue()


def _hostile_pickle() -> bytes:
    return pickle.dumps({"0.weight": Runs()}, 2)


def _hostile_legacy() -> bytes:
    torch.save({"evil": Runs()}, file := io.BytesIO(), _use_new_zipfile_serialization=False)
    return file.getvalue()


def _bomb() -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", pickle.dumps({}))
        archive.writestr("w/data/0", bytes(8 << 20))
    return file.getvalue()


def _escaping() -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("../w/data.pkl", pickle.dumps({}))
    return file.getvalue()


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("make", [_hostile_zip, _hostile_pickle, _hostile_legacy, _bomb, _escaping])
def test_hostile_pickles_are_refused(make: Callable[[], bytes], ending: str, command: Command, tmp_path: Path) -> None:
    path = tmp_path / f"w{ending}"
    path.write_bytes(make())
    code, out, err = command("convert", path, "made.onnx", "--arch", "networks:with_inputs")
    assert (code, out) == (4, "") and err.count("\n") == 1, err
    with pytest.raises((ix.UnsafeInputError, ix.InvalidModelError)):
        ix.from_torch(path, arch="networks:with_inputs")
    assert not (tmp_path / "attacked").exists() and not (tmp_path / "made.onnx").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_named(command: Command) -> None:
    torch.jit.script(nn.Linear(6, 2)).save("w.pt")  # type: ignore[no-untyped-call]
    code, _, err = command("inspect", "w.pt", "--arch", "networks:with_inputs")
    assert code == 3 and "TorchScript" in err


def test_safetensors_cannot_lie_about_its_size(command: Command, tmp_path: Path) -> None:
    path = written("w.safetensors", mlp().state_dict())
    content = Path(path).read_bytes()
    for damaged in (content[:-8], content[:20], b"\xff" * 8 + content[8:], content + b"\0" * 8):
        Path("damaged.safetensors").write_bytes(damaged)
        code, _, err = command("inspect", "damaged.safetensors", "--arch", "networks:with_inputs")
        assert code == 4 and err.count("\n") == 1, err
    assert len(load_file(path)) == 9
