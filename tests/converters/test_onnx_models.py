"""Published architectures as PyTorch's exporter writes them, and the CNNs of ONNX's own suite: imported, then compared
in float64 with the file and with the module that it was exported from."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import interlux as ix
from tests.helpers import check_outputs, relative

zoo = pytest.importorskip("benchmarks.onnx_models", reason="the sdist has no benchmarks")

# hundreds of MB each: of these, the suite's own files only
HUGE = ("light_bvlc_alexnet", "light_vgg19", "light_zfnet512")

pytestmark = pytest.mark.zoo


@cache
def module_of(name: str) -> torch.nn.Module:
    return zoo.module_of(name, "small")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(params=zoo.ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def outputs_of(name: str, seed: int) -> np.ndarray:
    with torch.no_grad():
        return module_of(name)(*zoo.inputs_of(name, "small", 3, seed)).numpy()


def test_calibrated_networks_tell_inputs_apart(name: str) -> None:
    first, second = outputs_of(name, 1), outputs_of(name, 2)
    assert 0.1 < first.std() < 10
    assert relative(first, second) > 0.2
    assert relative(first[0], first[1]) > 0.2


@pytest.mark.parametrize("opset", zoo.OPSETS)
def test_an_exported_network(name: str, opset: int, folder: Path) -> None:
    path = zoo.file_of(name, "small", opset, folder)
    zoo.export(name, module_of(name), "small", opset, path)
    model = ix.from_onnx(path)
    assert [spec.name for spec in model.require_signature().inputs] == list(zoo.ARCHITECTURES[name].names)
    check_outputs(module_of(name), model, zoo.inputs_of(name, "small", 1))
    inputs = zip(zoo.ARCHITECTURES[name].names, zoo.inputs_of(name, "small", 3), strict=True)
    report = ix.verify(path, model, inputs={key: value.numpy() for key, value in inputs})
    report.raise_if_failed()
    assert {row.backend for row in report.rows} == {"jax", "onnxruntime"}
    assert all(row.worst <= 4 for row in report.rows)


@pytest.mark.parametrize("name", zoo.LIGHT)
def test_the_suites_own_file(name: str) -> None:
    """Weights are constants, the input is a ramp, the expected output lies beside the model."""
    path = zoo.light_file(name)
    expected = onnx.TensorProto.FromString(path.with_name(f"{name}_output_0.pb").read_bytes())
    _, value = zoo.light_inputs(onnx.load(path))
    model = ix.from_onnx(path)
    for backend in ("jax", "onnxruntime"):
        (found,) = ix.compile(model, backend).run([value])
        np.testing.assert_allclose(found, numpy_helper.to_array(expected), rtol=1e-3, atol=1e-7, err_msg=backend)


@pytest.mark.parametrize("name", [name for name in zoo.LIGHT if name not in HUGE])
def test_the_suites_network_with_weights(name: str) -> None:
    proto = zoo.lit(name)
    key, value = zoo.light_inputs(proto, 5)
    report = ix.verify(proto, ix.from_onnx(proto), inputs={key: value})
    report.raise_if_failed()
    assert all(row.worst <= 4 for row in report.rows)
