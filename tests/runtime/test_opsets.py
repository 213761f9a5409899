"""One network with most operators, emitted at every opset: what older ones lack is expressed by what they have."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import interlux as ix
from interlux.runtime.onnx import emit
from interlux.runtime.onnx.emitter import OLDEST_OPSET

NEWEST = onnx.defs.onnx_opset_version()


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.group = (
            nn.Conv2d(3, 4, 3, padding_mode="reflect", padding=1),
            nn.BatchNorm2d(4),
            nn.GroupNorm(2, 4),
        )
        self.lstm, self.layer_norm = nn.LSTM(8, 6, batch_first=True), nn.LayerNorm(6)
        self.rms, self.head = nn.RMSNorm(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.gelu(self.group(self.norm(self.conv(F.pad(x, (1, 2), value=0.3)))))
        y = F.avg_pool2d(F.mish(F.hardswish(F.max_pool2d(y, 2))), 2)
        y = y.mean(2).amax(1, keepdim=True).expand(-1, 5, -1)
        y = F.silu(F.pad(y, (0, 8 - y.shape[-1])))
        y, _ = self.lstm(y)
        y = F.gelu(self.rms(self.layer_norm(y)), approximate="tanh")
        q = F.leaky_relu(y, 0.3)[:, None]
        return self.head(F.scaled_dot_product_attention(q, q, q, is_causal=True)[:, 0]).softmax(-1)


@pytest.fixture(scope="module")
def model() -> ix.Model:
    torch.manual_seed(0)
    return ix.from_torch(Everything(), torch.randn(2, 3, 12, 14))


@pytest.mark.parametrize("opset", range(OLDEST_OPSET, NEWEST + 1))
def test_every_opset(model: ix.Model, opset: int) -> None:
    x = torch.randn(3, 3, 12, 14).numpy()
    (expected,) = ix.compile(model, "jax")(x)
    proto = emit(model, opset)
    assert proto.opset_import[0].version == opset
    if opset <= 26:  # what the pinned onnxruntime reads
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-6)
    (again,) = ix.compile(ix.from_onnx(proto), "jax")(x)
    np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-6)


def test_outside_the_range() -> None:
    layer = ix.layers.relu
    one = ix.Model.from_layer(layer, {}, {}, {"x": ("float32", ("n",))})
    for opset in (OLDEST_OPSET - 1, NEWEST + 1):
        with pytest.raises(
            ix.UnsupportedError, match=f"opset {opset} cannot be emitted; choose {OLDEST_OPSET} to {NEWEST}"
        ):
            emit(one, opset)


def test_the_default_opset_rises_to_what_the_model_needs() -> None:
    layer = ix.layers.Conv(2, 2, (3,))
    params, states = ix.setup(layer, 0)
    half = ix.Model.from_layer(layer, ix.trees.cast(params, ml_dtypes.bfloat16), states, {"x": ("bfloat16", (1, 2, 5))})
    with pytest.raises(ix.UnsupportedError, match="no bfloat16"):
        emit(half, 20)
    assert emit(half).opset_import[0].version == 22


@pytest.mark.parametrize("opset", [13, 18, 20])
@pytest.mark.parametrize(
    "form",
    [
        "(float[a, b, c] x, int64[n] shape, int64[k] axes, int64[m] pads) => (float[d, e, f] y) "
        "{ y = Pad (x, pads, , axes) }",
        "(float[a, b, c] x, int64[n] shape, int64[k] axes, int64[m] pads) => (float[d, e, f] y) "
        "<int64[2] some = {-1, 0}> { z = Reshape(x, shape)  y = Pad (z, pads, , some) }",
    ],
    ids=["computed axes", "a rank that nothing tells"],
)
def test_some_axes_are_padded(form: str, opset: int) -> None:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> pads {form}')
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    given = {"x": x, "shape": np.array([2, 3, 4]), "axes": np.array([-1, 0]), "pads": np.array([1, 0, 2, 3])}
    again = emit(ix.from_onnx(proto), opset)
    session = onnxruntime.InferenceSession(again.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {i.name: given[i.name] for i in session.get_inputs()})
    np.testing.assert_array_equal(y, np.pad(x, [(0, 3), (0, 0), (1, 2)]))
