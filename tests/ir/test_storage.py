"""Models as folders: the same bytes for the same model, and nothing read that is not one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import interlux as ix
from interlux.ir import layers as l
from interlux.ir.graph import Node
from interlux.ir.layers import ArrayData
from interlux.ir.storage import layer_classes

X = ix.Signature((ix.TensorSpec("x", "float32", ("batch", 4)),), (ix.TensorSpec("y", "float32", ("batch", 2)),))
ODD = ArrayData.of(np.array([np.nan, -np.inf, 0.1], np.float32))


def graph(*layers: ix.Layer, inputs: tuple[str, ...] = ("x",), outputs: tuple[str, ...] = ()) -> ix.Graph:
    """A graph that applies the layers one after the other to its first input."""
    names = [inputs[0], *(f"y{i}" for i in range(len(layers)))]
    nodes = tuple(
        Node(f"n{i}", layer, (a,), (b,)) for i, (layer, a, b) in enumerate(zip(layers, names, names[1:], strict=False))
    )
    return ix.Graph(inputs, outputs or (names[-1],), nodes)


LOOPED = graph(l.relu, inputs=("i", "going", "x"), outputs=("going", "x", "y0"))
EXAMPLES = [
    l.Dense(4, 2, activation=l.gelu),
    l.Dense(4, 2, in_first=True),
    l.Recurrent("GRU", 4, 2, "bidirectional", attributes=(("linear_before_reset", 1),), outputs=2),
    l.Chain(l.Conv(4, 6, (3, 2), (2, 1), (1, 0, 1, 0), (1, 1), 2), l.BatchNorm(6, mode="never"), l.Dropout(0.1)),
    l.Chain(l.Dense(4, 4)),
    l.SkipConnection(l.Dense(4, 4), l.Operator("Mul")),
    l.PairwiseFusion(l.Operator("Add"), l.Dense(4, 4), l.Dense(4, 2)),
    l.RepeatedLayer(l.LayerNorm((4,)), 3),
    l.Parallel(l.Embedding(3, 4, 1), l.LSTM(4, 2, 2, True, dropout=0.5)),
    l.BranchLayer(l.Attention(0.3, True, "bool", 2, 0.1), l.Maxout(l.Dense(4, 2), l.Dense(4, 2))),
    l.Constant(ODD),
    l.Operator.of("ConstantOfShape", value=np.array([np.inf])),
    l.Operator.of("Clip"),
    l.HardTanh(0.0, float("inf")),
    l.Constant(ArrayData.of(np.array([["", "grüße"]], object))),
    l.If(graph(l.relu), graph(l.tanh, l.Constant(ODD))),
    l.Loop(LOOPED, 1),
    l.Scan(graph(l.relu, inputs=("a", "x", "c"), outputs=("a", "y0")), 1, (1,), (-1,), (1,), (), captured=1),
    l.SequenceMap(graph(l.relu), (True,)),
    l.RandomTensor("normal", 1.0, 2.0, "float64"),
    l.Chain(l.Bernoulli("bool"), l.Multinomial(3)),
    l.Gradient(graph(l.relu), 1, 1),
    l.Chain(l.Dense(4, 4), l.relu, l.Dense(4, 4), names=("first", "", "deep.last")),
    l.SkipConnection(l.Dense(4, 2), l.Operator.of("Concat", axis=1), l.Dense(4, 3), True, ("", "around")),
    l.Chain(l.ConvTranspose(4, 6, (3,), (2,), output_pads=(1,)), l.GroupNorm(2, 6), l.InstanceNorm(6, track=True)),
    l.Chain(l.RMSNorm((4,)), l.GRU(4, 2, bidirectional=True), l.RNN(4, 2, nonlinearity="relu")),
]


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("layer", EXAMPLES, ids=lambda layer: type(layer).__name__)
def test_layers_survive(layer: ix.Layer, tmp_path: Path) -> None:
    params, states = ix.setup(layer, 3)
    model = ix.Model(layer, params, states, X, metadata={"name": "ünïcode \x1b[31m"}, notes=("a note",))
    ix.save(model, tmp_path / "a")
    again = ix.load(tmp_path / "a")
    assert again.layer == layer and again.signature == X and again.notes == model.notes
    for tree, other in ((params, again.params), (states, again.states)):
        assert [p for p, _ in ix.trees.leaves(tree)] == [p for p, _ in ix.trees.leaves(other)]
        for (_, a), (_, b) in zip(ix.trees.leaves(tree), ix.trees.leaves(other), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    ix.save(again, tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "uint16", "bool", "complex64", "int4"]
)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_dtypes_and_odd_shapes_survive(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    array = np.asarray(np.arange(np.prod(shape)).reshape(shape) % 2).astype(kind)
    ix.save(ix.Model(l.identity, {}, {"deep": {"er": array[..., ::-1] if array.ndim else array}}), tmp_path / "m")
    found = ix.load(tmp_path / "m").states["deep"]["er"]
    assert found.dtype == kind and found.shape == shape
    assert (found == (array[..., ::-1] if array.ndim else array)).all()


def test_an_existing_model_is_replaced_and_anything_else_is_kept(tmp_path: Path) -> None:
    model = ix.Model(l.identity, {}, {})
    ix.save(model, tmp_path / "m")
    ix.save(model, tmp_path / "m")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("other", "file"):
        with pytest.raises(ix.InvalidModelError, match="exists and is not a saved model"):
            ix.save(model, tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "m", "other"]


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ix.UnsupportedError):
        ix.save(ix.Model(l.identity, {"a": np.array(["text"])}, {}), tmp_path / "m")
    with pytest.raises(ix.InvalidModelError, match="JSON"):
        ix.save(ix.Model(l.identity, {}, {}, metadata={"x": object()}), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Double(ix.Layer):
    times: int = 2

    def forward(self, op: Any, params: Any, states: Any, *inputs: Any, train: bool) -> Any:
        return op.Mul(inputs[0], op.const(self.times, like=inputs[0])), states


def test_layers_of_the_users_own(tmp_path: Path) -> None:
    ix.save(ix.Model(l.Chain(Double(3), l.relu), {}, {}), tmp_path / "m")
    with pytest.raises(ix.InvalidModelError, match="unknown layer 'Double'.*ix.load"):
        ix.load(tmp_path / "m")
    layer, params, states = ix.load(tmp_path / "m", layers=[Double])
    y, _ = layer.apply(params, states, np.array([1.0, -1.0], np.float32))
    assert y.tolist() == [3.0, 0.0]


def edited(folder: Path, **changes: Any) -> None:
    file = folder / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_broken_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    layer = l.Dense(4, 2)
    folder = tmp_path / "m"

    def fresh() -> None:
        ix.save(ix.Model(layer, *ix.setup(layer, 0), X), folder)

    def refused(match: str, error: type[Exception] = ix.InvalidModelError) -> None:
        with pytest.raises(error, match=match) as raised:
            ix.load(folder)
        assert "\n" not in str(raised.value)
        fresh()

    with pytest.raises(ix.InvalidModelError, match="no model.json"):
        ix.load(tmp_path / "absent")
    fresh()
    edited(folder, version=2)
    refused("written in format 2 by a newer interlux")
    edited(folder, format="other")
    refused("does not describe an interlux model")
    edited(folder, layer={"class": "os.system"})
    refused("unknown layer 'os.system'")
    edited(folder, layer={"class": "Dense", "in_features": 4})
    refused("fields")
    edited(folder, arrays={"params": [[["weight"], "float64", [2, 4]]], "states": []})
    refused("model.json says float64")
    edited(folder, arrays={"params": [], "states": []})
    refused("does not name")
    edited(folder, signature=[1])
    refused("does not follow the format")
    (folder / "model.json").write_text("{")
    refused("not valid JSON")
    (folder / "model.json").write_text('{"a":' * 100_000)
    refused("not valid JSON")
    (folder / "params.safetensors").write_bytes(b"\xff" * 20)
    refused("cannot be read as safetensors")
    (folder / "params.safetensors").unlink()
    (folder / "params.safetensors").symlink_to(tmp_path / "elsewhere")
    refused("is a link", ix.UnsafeInputError)


def test_a_container_saved_without_its_later_fields_is_read(tmp_path: Path) -> None:
    layer = l.Chain(l.Dense(4, 4), l.SkipConnection(l.Dense(4, 4)))
    ix.save(ix.Model(layer, *ix.setup(layer, 0)), tmp_path / "m")
    description = tmp_path / "m" / "model.json"
    content = json.loads(description.read_text())
    del content["layer"]["names"]
    for name in ("names", "shortcut", "shortcut_first"):
        del content["layer"]["layers"][1][name]
    description.write_text(json.dumps(content))
    assert ix.load(tmp_path / "m").layer == layer


def test_every_layer_has_an_example_here() -> None:
    def inner(layer: ix.Layer) -> set[str]:
        return {type(layer).__name__}.union(*(inner(child) for _, child in layer.children()))

    covered = set().union(*map(inner, EXAMPLES)) | {
        "Stored",
        "Assign",
        "ByMode",
        "Unavailable",
        "Uniform",
    }  # imported only
    assert layer_classes().keys() - covered == set()
