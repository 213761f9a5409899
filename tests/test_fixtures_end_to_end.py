"""The main job on the bundled trained models: every hop judged against float64, accuracy kept, weights back,
training."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

import interlux as ix
from fixtures import digits, models
from tests.helpers import check_outputs, check_training

ROOT = Path(__file__).parents[1] / "fixtures"
TABLE = json.loads((ROOT / "fixtures.json").read_text())
NAMES = sorted(models.FACTORIES)


def record(name: str) -> dict[str, Any]:
    return TABLE[name]


@functools.cache
def held_out(name: str) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = digits.load_test()
    return getattr(digits, record(name)["input"]["made_by"].rpartition(".")[2])(pixels), labels


def example(name: str, batch: int, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    shape = (batch, 64) if "tokens" in record(name)["input"]["argument"] else (batch, 1, 32, 32)
    return torch.randint(0, 17, shape) if len(shape) == 2 else torch.randn(shape)


def imported(name: str, source: str) -> ix.Model:
    module = models.load(name)
    return ix.from_torch(module, example(name, 2)) if source == "module" else ix.from_torch(ROOT / f"{name}.pt2")


@pytest.mark.parametrize("source", ["module", "pt2"])
@pytest.mark.parametrize("name", NAMES)
def test_every_hop(name: str, source: str, tmp_path: Path) -> None:
    module, model = models.load(name), imported(name, source)
    ix.to_onnx(model, tmp_path / "m.onnx")
    back = ix.from_onnx(tmp_path / "m.onnx")
    ix.save(model, tmp_path / "saved")
    saved = ix.load(tmp_path / "saved")
    assert saved.layer == model.layer
    for batch in (1, 2, 5):
        inputs = [example(name, batch, batch)]
        check_outputs(module, model, inputs)
        check_outputs(module, back, inputs, backends=("jax",))
        check_outputs(module, saved, inputs, backends=("jax",))


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_is_the_same_everywhere(name: str, tmp_path: Path) -> None:
    model = imported(name, "pt2")
    ix.to_onnx(model, tmp_path / "m.onnx")
    inputs, labels = held_out(name)
    runs = {
        "jax": ix.compile(model, "jax"),
        "onnxruntime": ix.compile(model, "onnxruntime"),
        "onnx file on jax": ix.compile(ix.from_onnx(tmp_path / "m.onnx"), "jax"),
    }
    correct = {label: int((run(inputs)[0].argmax(-1) == labels).sum()) for label, run in runs.items()}
    assert set(correct.values()) == {record(name)["test"]["correct"]}, correct


@pytest.mark.parametrize("opset", [13, 17, 18, 21, 25])
@pytest.mark.parametrize("name", NAMES)
def test_opsets(name: str, opset: int, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    model = imported(name, "pt2")
    ix.to_onnx(model, tmp_path / "m.onnx", opset=opset)
    proto = onnx.load(tmp_path / "m.onnx")
    assert proto.opset_import[0].version == opset
    stored = {ix.trees.name_of(p) for p, _ in ix.trees.leaves(model.params)}
    assert stored <= {i.name for i in proto.graph.initializer}  # names survive
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = example(name, 3).numpy()
    (found,) = session.run(None, {model.signature.inputs[0].name: x})
    np.testing.assert_allclose(found, ix.compile(model)(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_weights_go_back_also_after_training_in_jax(name: str) -> None:
    module = models.load(name)
    model = ix.from_torch(module, example(name, 2))
    state = module.state_dict()
    found = ix.torch_state_dict(model)
    assert list(found) == list(state)
    assert all(torch.equal(found[k], state[k]) and found[k].dtype == state[k].dtype for k in state)

    layer, params, states = model
    x, labels = (a[:32] for a in held_out(name))

    def loss(params: Any, states: Any) -> Any:
        y, states = layer.apply(params, states, x, train=True)
        return -jax.numpy.take_along_axis(jax.nn.log_softmax(y), labels[:, None], 1).mean(), states

    @jax.jit
    def step(params: Any, states: Any) -> Any:
        (value, states), gradients = jax.value_and_grad(loss, has_aux=True)(params, states)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradients), states, value

    for _ in range(2):
        params, states, value = step(params, states)
    assert np.isfinite(value)
    trained = model.replace(params, states)
    fresh = models.load(name)
    fresh.load_state_dict(ix.torch_state_dict(trained), strict=True)
    moved = [k for k, v in fresh.state_dict().items() if not torch.equal(v, state[k])]
    # the backward direction of the last layer has run one step where the classifier reads it: no gradient there
    assert set(moved) >= {n for n, _ in module.named_parameters()} - {"lstm.weight_hh_l1_reverse"}
    check_outputs(fresh.eval(), trained, [example(name, 4)])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_and_statistics_equal_pytorchs_in_float64(name: str) -> None:
    module = models.load(name).double()
    for part in module.modules():  # random masks differ between the frameworks
        for attribute in ("p", "dropout", "dropout_p"):
            if isinstance(getattr(part, attribute, None), float):
                setattr(part, attribute, 0.0)
    x = example(name, 3)
    x = x.double() if x.is_floating_point() else x
    check_training(module, ix.from_torch(module, x), [x], tolerance=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_verify_passes(name: str) -> None:
    report = ix.verify(models.load(name), imported(name, "module"))
    assert report.passed, str(report)
