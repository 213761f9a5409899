"""onnxruntime's own operators: what is imported computes what onnxruntime and an independent reference compute."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import interlux as ix
from interlux.converters.onnx import from_onnx
from interlux.converters.onnx.contrib import CONTRIB
from interlux.converters.onnx.reference_contrib import CONTRIB_OPS, EARLY_OPS
from interlux.ir.errors import UnsupportedError
from interlux.ir.layers import Conv, Dense, LayerNorm, Operator
from interlux.runtime.jax.primitives import PRIMITIVES

Arrays = list[np.ndarray | None]


def f(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def i32(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def i64(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def u8(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).integers(0, 256, shape).astype(np.uint8)


def i8(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).integers(-128, 128, shape).astype(np.int8)


def s(number: float) -> np.ndarray:
    return np.array(number, np.float32)


def z(number: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.array(number, dtype)


@dataclass
class Case:
    """A node and what it is tried on.

    Arguments:
        arrays: its inputs.
        attributes: of the node.
        stored: which inputs are initialisers.
        outputs: names, "" for absent ones.
        ort: whether onnxruntime computes it on the CPU.
        steps: how many quantization steps may lie between two results.
        tolerance: for floats.
        domain: of the node.
    """

    arrays: Arrays
    attributes: dict[str, Any] = field(default_factory=dict)
    stored: tuple[int, ...] = ()
    outputs: tuple[str, ...] = ("y",)
    ort: bool = True
    steps: int = 0
    tolerance: float = 2e-5
    domain: str = "com.microsoft"
    opset: int = 21


def model_of(op_type: str, case: Case, *, symbolic: bool = False) -> onnx.ModelProto:
    """A model of one node; with `symbolic`, the sizes of its inputs have names."""
    names = [f"i{k}" if a is not None else "" for k, a in enumerate(case.arrays)]
    node = helper.make_node(op_type, names, case.outputs, domain=case.domain, **case.attributes)
    given, kept = [], []
    for k, array in enumerate(case.arrays):
        if array is None:
            continue
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        if k in case.stored:
            kept.append(numpy_helper.from_array(array, f"i{k}"))
            continue
        shape = [f"n{size}" for size in array.shape] if symbolic else array.shape
        given.append(helper.make_tensor_value_info(f"i{k}", kind, shape))
    made = [helper.make_empty_tensor_value_info(name) for name in case.outputs if name]
    graph = helper.make_graph([node], "test", given, made, kept)
    imports = [helper.make_opsetid("", case.opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def feeds(case: Case) -> dict[str, np.ndarray]:
    return {f"i{k}": a for k, a in enumerate(case.arrays) if a is not None and k not in case.stored}


def by_onnxruntime(model: onnx.ModelProto, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, given)


def by_reference(model: onnx.ModelProto, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ReferenceEvaluator(model, new_ops=CONTRIB_OPS).run(None, given)


def close(found: Any, wanted: Any, case: Case, what: str) -> None:
    assert len(found) == len(wanted)
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), f"{what}, output {i}"
        if a.dtype.kind in "iu":
            assert np.abs(a.astype(np.int64) - b.astype(np.int64)).max(initial=0) <= case.steps, f"{what}, output {i}"
        else:
            np.testing.assert_allclose(a, b, case.tolerance, case.tolerance, err_msg=f"{what}, output {i}")


def heads(batch: int, count: int, length: int, size: int, seed: int = 0) -> np.ndarray:
    return f(batch, count, length, size, seed=seed)


def seen(*shape: int) -> np.ndarray:
    """A mask for two sequences that leaves something to every query."""
    mask = (f(2, *shape) > 0).astype(np.int32)
    mask[..., 0] = 1
    return mask


Q, K, V = f(2, 3, 8), f(2, 3, 8, seed=1), f(2, 3, 8, seed=2)
MASK = np.array([[1, 1, 0], [0, 1, 1]], np.int32)
COS, SIN = np.cos(f(20, 8)), np.sin(f(20, 8))
GQ, GK, GV = f(1, 5, 64), f(1, 5, 32, seed=1), f(1, 5, 32, seed=2)
G = {"num_heads": 4, "kv_num_heads": 2}
GROUP: Arrays = [GQ, GK, GV, None, None, i32(4), z(5, np.int32)]
DECODE: Arrays = [
    f(2, 1, 64),
    f(2, 1, 32, seed=1),
    f(2, 1, 32, seed=2),
    heads(2, 2, 7, 16),
    heads(2, 2, 7, 16, 1),
    i32(4, 6),
    z(7, np.int32),
    COS,
    SIN,
]
GOUT = ("y", "k", "v")
A8, S1, S2 = u8(2, 3, 5, 5), s(0.05), s(0.03)
EMBED: Arrays = [i32(0, 1, 4, 3, 2, 2).reshape(2, 3), i32(0, 1, 0, 1, 1, 0).reshape(2, 3), f(5, 8), f(7, 8), f(2, 8)]
EMBED += [f(8), f(8, seed=1)]
EXPERTS: Arrays = [f(2, 3, 8), f(6, 4), f(4, 12, 8), f(4, 12), f(4, 8, 12), f(4, 8)]
SWIGLU: Arrays = [f(6, 8), f(6, 4), f(4, 12, 8), f(4, 12), f(4, 8, 6), f(4, 8)]

CASES: dict[str, list[Case]] = {
    "FusedMatMul": [
        Case([f(2, 3, 4), f(2, 4, 5)], {"alpha": 0.3}),
        Case([f(2, 4, 3), f(2, 5, 4)], {"transA": 1, "transB": 1}),
        Case([f(4, 2, 3), f(4, 2, 5)], {"transBatchA": 1, "transA": 1, "transBatchB": 1}),
        Case([f(2, 3, 4), f(5, 4)], {"transB": 1, "alpha": 0.125}, (1,)),
        Case([f(4), f(4, 2)], {"transA": 1}),
    ],
    "TransposeMatMul": [Case([f(2, 4, 3), f(2, 4, 5)], {"transA": 1, "alpha": 2.0})],
    "FusedMatMulActivation": [
        Case([f(3, 4), f(4, 5)], {"activation": "LeakyRelu", "activation_alpha": 0.3, "alpha": 0.5}, ort=False),
        Case([f(3, 4), f(5, 4)], {"activation": "Softmax", "activation_axis": 0, "transB": 1}, ort=False),
    ],
    "FusedGemm": [
        Case([f(3, 4), f(4, 5), f(5)], {"activation": "Relu"}, (1, 2)),
        Case(
            [f(4, 3), f(5, 4), f(5)],
            {"activation": "Elu", "activation_alpha": 0.3, "transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0},
        ),
        Case([f(3, 4), f(4, 5)], {"activation": "HardSigmoid", "activation_alpha": 0.3, "activation_beta": 0.1}),
        Case([f(3, 4), f(4, 5)], {"activation": "Selu", "activation_alpha": 1.5, "activation_gamma": 2.0}),
        Case([f(3, 4), f(4, 5)], {"activation": "ThresholdedRelu", "activation_alpha": 0.5}),
        *(Case([f(3, 4), f(4, 5)], {"activation": name}) for name in ("Sigmoid", "Tanh", "Softplus", "Softsign")),
    ],
    "FusedConv": [
        Case([f(1, 4, 6, 6), f(4, 2, 3, 3), f(4)], {"activation": "Relu", "group": 2, "pads": [1, 0, 1, 0]}, (1, 2)),
        Case(
            [f(1, 2, 6, 6), f(4, 2, 3, 3), None, f(1, 4, 3, 3)],
            {"activation": "Clip", "activation_params": [-0.5, 0.7], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        ),
        Case([f(1, 2, 6), f(4, 2, 3)], {"activation": "LeakyRelu", "activation_params": [0.2], "dilations": [2]}, (1,)),
        Case([f(1, 2, 6, 6), f(4, 2, 3, 3)], {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]}),
        Case([f(1, 2, 6, 6), f(4, 2, 3, 3), f(4), f(1, 4, 4, 4)], {"activation": "HardSwish"}),
        Case([f(1, 2, 6, 6), f(4, 2, 3, 3)]),
    ],
    "NhwcFusedConv": [
        Case([f(1, 6, 6, 2), f(4, 2, 3, 3), f(4), f(1, 4, 4, 4)], {"activation": "Tanh"}, (1, 2), ort=False)
    ],
    "NhwcConv": [Case([f(1, 6, 6, 4), f(4, 2, 3, 3)], {"group": 2, "pads": [1, 1, 0, 0]}, (1,), ort=False)],
    "Gelu": [Case([f(3, 4)])],
    "BiasGelu": [Case([f(3, 4), f(4)])],
    "FastGelu": [Case([f(3, 4), f(4)]), Case([f(3, 4)])],
    "GemmFastGelu": [Case([f(3, 4), f(4, 5), f(5)], ort=False)],
    "QuickGelu": [Case([f(3, 4)], {"alpha": 0.7}), Case([f(3, 4)])],
    "BiasAdd": [Case([f(2, 3, 4), f(4), f(2, 3, 4, seed=1)], ort=False)],
    "BiasSplitGelu": [Case([f(2, 3, 8), f(8)], ort=False)],
    "BiasDropout": [Case([f(2, 3), f(3), f(2, 3, seed=1), s(0.4)], {"seed": 3}, (3,), ("y", "mask"), ort=False)],
    "BitmaskBiasDropout": [Case([f(2, 3), f(3)], ort=False)],
    "BitmaskDropout": [Case([f(2, 3), s(0.5), z(0, bool)], {}, (1, 2), ort=False)],
    "BiasSoftmax": [
        Case([f(2, 3, 4), f(2, 1, 4)], {"axis": 2, "is_inner_broadcast": 1}, ort=False),
        Case([f(2, 3, 4), f(3, 4)], {"axis": 1, "is_inner_broadcast": 0}, ort=False),
    ],
    "SimplifiedLayerNormalization": [
        Case([f(2, 3, 4), f(4)], {"epsilon": 1e-3, "axis": -1}, (1,), domain=""),
        Case([f(2, 3, 4), f(3, 4)], {"axis": 1}, outputs=("y", "inverse"), domain=""),
    ],
    "SkipLayerNormalization": [
        Case([f(2, 3, 8), f(2, 3, 8, seed=1), f(8), f(8, seed=1), f(8, seed=2)], {"epsilon": 1e-3}, (2, 3, 4)),
        Case([f(2, 3, 8), f(3, 8), f(8)], outputs=("y", "", "", "sum")),
    ],
    "SkipSimplifiedLayerNormalization": [
        Case([f(2, 3, 8), f(2, 3, 8, seed=1), f(8), f(8, seed=1)], {"epsilon": 1e-3}, (2,), ("y", "", "", "sum"))
    ],
    "GroupNorm": [
        Case([f(2, 4, 3, 6), f(6), f(6, seed=1)], {"groups": 3, "activation": 1, "epsilon": 1e-3}, (1, 2), ort=False),
        Case([f(2, 6, 3, 4), f(6), f(6, seed=1)], {"groups": 2, "activation": 0, "channels_last": 0}, ort=False),
    ],
    "SkipGroupNorm": [
        Case(
            [f(2, 4, 3, 6), f(6), f(6, seed=1), f(2, 6), f(6, seed=2)],
            {"groups": 3, "activation": 1},
            outputs=("y", "sum"),
            ort=False,
        )
    ],
    "EmbedLayerNormalization": [
        Case([*EMBED, MASK], {"epsilon": 1e-3}, (2, 3, 4, 5, 6), ("y", "count", "sum")),
        Case(
            [EMBED[0], None, EMBED[2], EMBED[3], None, *EMBED[5:], None, i32(3, 1, 2).reshape(1, 3)],
            stored=(2, 3, 5, 6),
            outputs=("y", "count", "sum"),
        ),
    ],
    "Attention": [
        Case([f(2, 3, 5), f(5, 24), f(24), MASK], {"num_heads": 2, "mask_filter_value": -50.0}, (1, 2)),
        Case([f(2, 3, 5), f(5, 24), f(24), i32(1, 2)], {"num_heads": 2, "scale": 0.3, "unidirectional": 1}),
        Case([f(2, 3, 5), f(5, 24), f(24), i32(2, 3, 0, 1)], {"num_heads": 2}),
        Case([f(2, 3, 5), f(5, 24)], {"num_heads": 2}, ort=False),  # it ends the process without a bias
        Case([f(2, 3, 5), f(5, 24), f(24), None, None, f(1, 2, 3, 3)], {"num_heads": 2}),
        Case(
            [f(2, 3, 5), f(5, 24), f(24), seen(3, 7), f(2, 2, 2, 4, 4)],
            {"num_heads": 2, "unidirectional": 1},
            outputs=("y", "present"),
        ),
        Case([f(2, 3, 5), f(5, 28), f(28)], {"num_heads": 2, "qkv_hidden_sizes": [8, 8, 12]}),
        Case([f(2, 3, 5), f(5, 24), f(24), i32(1, 2, 0, 3, 6, 0, 3, 6)], {"num_heads": 2}),
    ],
    "MultiHeadAttention": [
        Case([Q, K, V, f(24), MASK], {"num_heads": 2, "scale": 0.3}),
        Case([Q, f(2, 4, 8), f(2, 4, 12), f(28), i32(2, 4)], {"num_heads": 2, "mask_filter_value": -20.0}),
        Case([Q, K, V, None, None, f(1, 2, 3, 3)], {"num_heads": 2, "unidirectional": 1}),
        Case(
            [Q, K, V, None, seen(5), None, heads(2, 2, 2, 4), heads(2, 2, 2, 4, 1)],
            {"num_heads": 2},
            outputs=("y", "k", "v"),
        ),
        Case([Q, heads(2, 2, 4, 4), heads(2, 2, 4, 4, 1)], {"num_heads": 2}),
        Case([f(2, 3, 2, 3, 4), None, None, f(24)], {"num_heads": 2}, ort=False),
        Case([Q, f(2, 5, 2, 2, 4)], {"num_heads": 2}, outputs=("y", "k", "v", "qk"), ort=False),
        Case([Q, K, V, None, seen(3, 3)], {"num_heads": 2}),
    ],
    "DecoderMaskedMultiHeadAttention": [
        Case(
            [Q[:, :1], K[:, :1], V[:, :1], None, None, heads(2, 2, 4, 4), heads(2, 2, 4, 4, 1)],
            {"num_heads": 2, "scale": 0.4},
            outputs=("y", "k", "v"),
            ort=False,
        ),
        Case([Q[:, :1], heads(2, 2, 4, 4), heads(2, 2, 4, 4, 1), MASK.repeat(2, 1)[:, 1:5]], {"num_heads": 2}),
        Case([f(2, 1, 24), *[None] * 9, f(24)], {"num_heads": 2, "output_qk": 1}, ort=False),
    ],
    "RotaryEmbedding": [
        Case([f(2, 4, 3, 16), i64(3, 1, 2, 9, 0, 5).reshape(2, 3), COS, SIN]),
        Case([f(2, 3, 64), i64(2), COS, SIN], {"interleaved": 1}),
        Case([f(2, 3, 96), i64(7), COS, SIN], {"num_heads": 4, "rotary_embedding_dim": 16}),
        Case([f(2, 3, 96), i64(7), COS, SIN], {"num_heads": 4, "rotary_embedding_dim": 16, "interleaved": 1}, (2, 3)),
    ],
    "GroupQueryAttention": [
        Case(GROUP, G | {"scale": 0.3, "local_window_size": 2}, outputs=GOUT),
        Case(
            [np.concatenate((GQ, GK, GV), 2), None, None, *GROUP[3:]],
            G | {"softcap": 0.5, "smooth_softmax": 1},
            outputs=GOUT,
        ),
        Case([*GROUP, COS, SIN, i64(3, 1, 2, 5, 9).reshape(1, 5)], G | {"do_rotary": 1}, outputs=GOUT),
        Case(
            [*GROUP, COS, SIN, None, f(1, 4, 5, 5), f(4)],
            G | {"do_rotary": 1, "rotary_interleaved": 1, "qk_output": 1},
            outputs=(*GOUT, "qk"),
        ),
        Case([*GROUP, *[None] * 3, f(1, 1, 5, 5)], G | {"causal": 0, "qk_output": 2}, outputs=(*GOUT, "qk")),
        Case([*GROUP, *[None] * 7, f(16), f(16)], G | {"qk_norm_epsilon": 1e-3}, outputs=GOUT, ort=False),
        Case(DECODE, G | {"do_rotary": 1}, (6,), outputs=GOUT),
        Case(DECODE, G | {"local_window_size": 3, "do_rotary": 1}, (6,), outputs=GOUT),
        Case([*DECODE[:5], i32(7, 7), z(8, np.int32), COS, SIN], G | {"do_rotary": 1}, (6,), outputs=GOUT),
        Case([*DECODE[:5], i32(4, 4), z(5, np.int32)], G | {"qk_output": 2}, (6,), outputs=(*GOUT, "qk")),
        Case(
            [GQ, GK, GV, heads(1, 2, 7, 16), heads(1, 2, 7, 16, 1), i32(11), z(12, np.int32), COS, SIN],
            G | {"do_rotary": 1},
            (6,),
            outputs=GOUT,
        ),
        Case(
            [f(2, 4, 64), f(2, 4, 32), f(2, 4, 32, seed=1), *DECODE[3:5], i32(2, 3), z(4, np.int32), COS, SIN],
            G | {"do_rotary": 1},
            (6,),
            outputs=GOUT,
        ),
    ],
    "RelativePositionBias": [
        Case([f(32, 4), i64(40), i64(40)], {"max_distance": 20, "is_bidirectional": 1}, (0, 1, 2), ort=False),
        Case([f(8, 4), i64(12), i64(12)], {"max_distance": 10}, (0, 1, 2), ort=False),
    ],
    "MatMulNBits": [
        Case([f(2, 3, 40), u8(6, 3, 8), f(6, 3)], {"K": 40, "N": 6, "block_size": 16}, (1, 2)),
        Case([f(3, 48), u8(6, 3, 8), f(18), u8(12), None, f(6)], {"K": 48, "N": 6, "block_size": 16}, (1, 2, 3, 5)),
        Case([f(3, 32), u8(6, 2, 16), f(6, 2), u8(6, 2)], {"K": 32, "N": 6, "block_size": 16, "bits": 8}, (1, 2, 3)),
        Case([f(3, 32), u8(6, 2, 8), f(6, 2), f(6, 2)], {"K": 32, "N": 6, "block_size": 16}, (1, 2, 3)),
        Case(
            [f(3, 32), u8(6, 2, 8), f(6, 2), None, (np.arange(32) % 2).astype(np.int32)],
            {"K": 32, "N": 6, "block_size": 16},
            (1, 2, 4),
        ),
        Case([f(3, 32), u8(6, 1, 8), f(6, 1)], {"K": 32, "N": 6, "block_size": 32, "bits": 2}, (1, 2), ort=False),
    ],
    "GatherBlockQuantized": [
        Case(
            [u8(5, 16), i64(4, -1, 0, 2).reshape(2, 2), f(5, 2), u8(5, 1)],
            {"block_size": 16, "bits": 4},
            (0, 2, 3),
        ),
        Case([u8(5, 32), i32(1, 3), f(5, 2)], {"block_size": 16, "bits": 8}, (0, 2)),
        Case(
            [u8(5, 32).view(np.int8).astype(ml_dtypes.int4), i64(1, 3), f(5, 2)],
            {"block_size": 16},
            (0, 2),
        ),
    ],
    "QLinearAdd": [
        Case([A8, S1, z(100), u8(3, 1, 5), S2, z(7), s(0.1), z(90)], stored=(1, 2, 4, 5, 6, 7), steps=1),
        Case([i8(4, 5), S1, None, i8(4, 5, seed=1), S2, None, s(0.1)], steps=1, ort=False),
    ],
    "QLinearMul": [Case([A8, S1, z(100), u8(3, 1, 5), S2, z(7), s(0.2), z(90)], steps=1)],
    "QLinearLeakyRelu": [
        Case([i8(4, 5), S1, z(3, np.int8), S2, z(-5, np.int8)], {"alpha": 0.3}, (1, 2, 3, 4), steps=1)
    ],
    "QLinearSigmoid": [Case([A8, S1, z(100), s(1 / 256), z(0)], {}, (1, 2, 3, 4), steps=1)],
    "QLinearSoftmax": [
        Case([A8, S1, z(100), s(1 / 256), z(0)], {"axis": 1, "opset": 13}, (1, 2, 3, 4), steps=1),
        Case([u8(2, 3, 4), S1, z(100), s(1 / 256), z(0)], {"axis": 1, "opset": 12}, (1, 2, 3, 4), steps=1),
    ],
    "QLinearReduceMean": [
        Case([A8, S1, z(100), S2, z(7)], {"axes": [1, -1], "keepdims": 0}, (1, 2, 3, 4), steps=1, ort=False)
    ],
    "QLinearGlobalAveragePool": [
        Case([A8, S1, z(100), S2, z(7)], steps=1),
        Case([A8, S1, z(100), S2, z(7)], {"channels_last": 1}, steps=1),
    ],
    "QLinearAveragePool": [
        Case(
            [A8, S1, z(100), S2, z(7)],
            {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1], "count_include_pad": 1},
            steps=1,
        ),
        Case(
            [u8(1, 5, 5, 3), S1, z(100), S2, z(7)],
            {"kernel_shape": [2, 2], "channels_last": 1, "ceil_mode": 1, "strides": [2, 2]},
            steps=1,
        ),
    ],
    "QLinearConcat": [
        Case([s(0.1), z(9), u8(2, 3), S1, z(100), u8(2, 2), S2, z(7)], {"axis": 1}, (0, 1, 3, 4, 6, 7), steps=1)
    ],
    "QLinearWhere": [
        Case([f(2, 3) > 0, u8(2, 3), S1, z(100), u8(3), S2, z(7), s(0.1), z(9)], {}, (2, 3, 5, 6, 7, 8), steps=1)
    ],
    "QLinearConv": [
        Case(
            [u8(1, 5, 5, 4), S1, z(100), i8(6, 2, 3, 3), f(6) ** 2, np.zeros(6, np.int8), s(20), z(9), i32(*range(6))],
            {"channels_last": 1, "group": 2, "pads": [1, 0, 1, 0]},
            (1, 2, 3, 4, 5, 6, 7, 8),
            steps=1,
        ),
        Case([u8(1, 4, 5, 5), S1, z(100), u8(6, 4, 3, 3), S2, z(7), s(9), z(9)], {}, (1, 2, 3, 4, 5, 6, 7), steps=1),
    ],
    "NhwcMaxPool": [
        Case([i8(1, 5, 5, 2)], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 0, 1]}),
    ],
    "QuantizeLinear": [
        Case([f(3, 4), s(0.02), z(100)], {}, (1, 2)),
        Case([f(3, 4), np.abs(f(3)) / 1000, np.zeros(3, np.int16)], {"axis": 0}, (1, 2)),
    ],
    "DequantizeLinear": [
        Case([u8(3, 4), s(0.02), z(100)], {}, (1, 2)),
        Case([i8(3, 4).astype(np.int16), f(4), np.arange(4, dtype=np.int16)], {"axis": 1}, (1, 2)),
    ],
    "MatMulIntegerToFloat": [
        Case(
            [u8(2, 3, 4), i8(4, 5), S1, f(5), z(100), np.arange(5, dtype=np.int8), f(5, seed=1)], stored=(1, 2, 3, 4, 5)
        ),
        Case([u8(3, 4), u8(4, 5), S1, S2]),
    ],
    "DynamicQuantizeMatMul": [
        Case([f(3, 4), i8(4, 5), f(5), np.arange(5, dtype=np.int8), f(5, seed=1)], stored=(1, 2, 3, 4)),
        Case([f(2, 3, 4), u8(4, 5), S1]),
    ],
    "QGemm": [
        Case(
            [u8(4, 3), S1, z(100), i8(5, 4), f(5), np.zeros(5, np.int8), i32(1, 2, 3, 4, 5)],
            {"transA": 1, "transB": 1, "alpha": 0.5},
            (1, 2, 3, 4, 5, 6),
        ),
        Case(
            [u8(3, 4), S1, z(100), i8(4, 5), S2, z(3, np.int8), None, s(2), z(90)], {}, (1, 2, 3, 4, 5, 7, 8), steps=1
        ),
    ],
    "QAttention": [
        Case(
            [u8(2, 3, 5), u8(5, 24), f(24), S1, S2, i32(2, 3), z(120), z(130)],
            {"num_heads": 2, "unidirectional": 1},
            (1, 2, 3, 4, 6, 7),
            ("y", "present"),
        ),
        Case(
            [u8(2, 3, 5), i8(5, 24), f(24), S1, np.abs(f(24)) / 30, None, z(120), None, f(2, 2, 2, 2, 4)],
            {"num_heads": 2},
            (1, 2, 3, 4, 6),
            ("y", "present"),
        ),
    ],
    "MulInteger": [Case([u8(3, 4), z(5), u8(4), z(9)], ort=False), Case([i8(3, 4), None, i8(4)], ort=False)],
    "MatMulInteger16": [Case([i8(3, 4).astype(np.int16) * 100, i8(4, 5).astype(np.int16) * 90])],
    "ReduceSumInteger": [Case([u8(3, 4, 5)], {"axes": [0, 2], "keepdims": 1}, ort=False)],
    "Trilu": [Case([f(2, 3, 4), i64(1).reshape(())], {"upper": 0}), Case([f(3, 3)])],
    "Unique": [Case([np.array([2, 1, 1, 3, 4, 3], np.float32)], outputs=("y", "index", "count"))],
    "Pad": [
        Case([f(3, 4), i64(1, 0, -1, 2).reshape(1, 4), f(1)], {"mode": "constant"}, (1,)),
        Case([f(3, 4), i64(1, 0, 1, 2)], {"mode": "reflect"}, (1,)),
    ],
    "ExpandDims": [Case([f(3, 4), z(-1, np.int32)], stored=(1,))],
    "GatherND": [Case([f(3, 4, 2), i32(0, 1, 2, -1).reshape(2, 2)])],
    "Range": [Case([s(1), s(4), s(0.5)], {}, (0, 1, 2)), Case([i64(1), i64(4)], {}, (0, 1))],
    "GridSample": [
        Case(
            [f(1, 2, 4, 5), np.clip(f(1, 3, 3, 2), -1.3, 1.3)], {"mode": mode, "padding_mode": pad, "align_corners": 1}
        )
        for mode, pad in (("bilinear", "border"), ("nearest", "zeros"), ("bicubic", "zeros"))
    ],
    "IsAllFinite": [
        Case([f(3), np.array([np.inf, 1], np.float32)], ort=False),
        Case([f(3), np.array([np.inf, 1], np.float32)], {"isnan_only": 1}, ort=False),
        Case([f(3), np.array([np.nan, 1], np.float32)], {"isinf_only": 1}, ort=False),
    ],
    "ComplexMul": [Case([f(3, 4, 2), f(3, 4, 2, seed=1)], ort=False)],
    "ComplexMulConj": [Case([f(3, 4, 2), f(3, 4, 2, seed=1)], ort=False)],
    "Rfft": [Case([f(3, 8)], {"signal_ndim": 1, "onesided": 1}, ort=False)],
    "Irfft": [Case([f(3, 5, 2)], {"signal_ndim": 1}, ort=False)],
    "Inverse": [Case([f(2, 3, 4, 4)], tolerance=1e-3)],
    "CropAndResize": [
        Case(
            [f(2, 3, 6, 7), np.array([[0.1, 0, 0.9, 1.2], [-0.2, 0.3, 0.5, 0.8]], np.float32), i32(1, 0), i32(3, 4)],
            {"mode": mode, "extrapolation_value": 2.0},
            (3,),
        )
        for mode in ("bilinear", "nearest")
    ],
    "CDist": [Case([f(3, 4), f(5, 4)], {"metric": metric}, tolerance=1e-4) for metric in ("euclidean", "sqeuclidean")],
    "TorchEmbedding": [Case([f(5, 3), i64(1, 4, 0)], stored=(0,), ort=False)],
    "UnfoldTensor": [Case([f(3, 9, 2)], {"dim": 1, "size": 3, "step": 2})],
    "ConvTransposeWithDynamicPads": [
        Case([f(1, 2, 4, 4), f(2, 3, 3, 3), i64(1, 0, 1, 1), f(3)], {"strides": [2, 1]}, (1, 2, 3))
    ],
    "MoE": [
        Case(EXPERTS, {"k": 2, "activation_type": "gelu", "normalize_routing_weights": 1}),
        Case(EXPERTS, {"k": 1, "activation_type": "silu"}),
        Case(
            SWIGLU,
            {
                "k": 2,
                "activation_type": "swiglu",
                "swiglu_fusion": 1,
                "activation_alpha": 1.7,
                "activation_beta": 1.0,
                "swiglu_limit": 0.5,
            },
        ),
    ],
}
ALL = [pytest.param(name, case, id=f"{name}-{i}") for name, cases in CASES.items() for i, case in enumerate(cases)]
FIXED_SIZES = {"Inverse", "RelativePositionBias"}
NO_REFERENCE = {"ConvTransposeWithDynamicPads", "GridSample"}  # onnxruntime has both


def needs_jax(model: ix.Model) -> None:
    """Skips the test where a primitive of the model is not written for JAX."""
    layers = [node.layer for node in model.layer.nodes]  # type: ignore[attr-defined]
    missing = {layer.op_type for layer in layers if isinstance(layer, Operator)} - PRIMITIVES.keys()
    if missing:
        pytest.skip(f"JAX has no primitive {', '.join(sorted(missing))}")


@pytest.mark.parametrize(("op_type", "case"), ALL)
def test_jax(op_type: str, case: Case) -> None:
    model, given = model_of(op_type, case), feeds(case)
    imported = from_onnx(model)
    needs_jax(imported)
    found = ix.compile(imported, "jax")(**given)
    if op_type not in NO_REFERENCE:
        close(found, by_reference(model, given), case, "JAX and the reference")
    if case.ort:
        close(found, by_onnxruntime(model, given), case, "JAX and onnxruntime")


@pytest.mark.parametrize(("op_type", "case"), ALL)
def test_emitted(op_type: str, case: Case) -> None:
    model, given = model_of(op_type, case), feeds(case)
    found = ix.compile(from_onnx(model), "onnxruntime")(**given)
    wanted = by_onnxruntime(model, given) if case.ort else by_reference(model, given)
    close(found, wanted, case, "what is emitted and the node itself")


@pytest.mark.parametrize(("op_type", "case"), [param for param in ALL if param.values[0] not in NO_REFERENCE])
def test_reference(op_type: str, case: Case) -> None:
    """The reference computes what onnxruntime does, and in float64 what it is given in float64."""
    model, given = model_of(op_type, case), feeds(case)
    if case.ort:
        close(by_reference(model, given), by_onnxruntime(model, given), case, "the reference and onnxruntime")
    wide = Case([a.astype(np.float64) if a is not None and a.dtype == np.float32 else a for a in case.arrays])
    wide.stored, wide.outputs, wide.attributes, wide.domain = case.stored, case.outputs, case.attributes, case.domain
    found = by_reference(model_of(op_type, wide), feeds(wide))
    assert all(np.asarray(y).dtype not in (np.float32, np.float16) for y in found)


@pytest.mark.parametrize(("op_type", "case"), [param for param in ALL if param.values[0] not in FIXED_SIZES])
def test_named_sizes(op_type: str, case: Case) -> None:
    """Nothing has to be known of the sizes of the inputs."""
    model, given = model_of(op_type, case, symbolic=True), feeds(case)
    found = ix.compile(from_onnx(model), "onnxruntime")(**given)
    wanted = by_onnxruntime(model, given) if case.ort else by_reference(model, given)
    close(found, wanted, case, "what is emitted and the node itself")


# --- whole models, as onnxruntime's optimizers write them


def transformer(layers: int = 2, hidden: int = 8, heads: int = 2) -> onnx.ModelProto:
    """A small BERT as exporters write it: ids and a mask to hidden states, in operators of ONNX alone."""
    nodes: list[onnx.NodeProto] = []
    arrays: dict[str, np.ndarray] = {}
    names = iter(range(10_000))

    def add(op_type: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        given = []
        for value in inputs:
            if isinstance(value, np.ndarray):
                name = f"w{next(names)}"
                arrays[name], value = value, name
            given.append(value)
        made = f"v{next(names)}"
        nodes.append(helper.make_node(op_type, given, [made], name=made, **attributes))
        return made

    def weight(*shape: int) -> np.ndarray:
        return f(*shape, seed=next(names)) / 2

    def dense(x: str, rows: int, columns: int) -> str:
        return add("Add", add("MatMul", x, weight(rows, columns)), weight(columns))

    def norm(x: str) -> str:
        return add("LayerNormalization", x, weight(hidden), weight(hidden), axis=-1, epsilon=1e-5)

    def apart(x: str, perm: list[int]) -> str:
        return add("Transpose", add("Reshape", x, i64(0, 0, heads, hidden // heads)), perm=perm)

    mask = add("Cast", add("Unsqueeze", add("Unsqueeze", "mask", i64(1)), i64(2)), to=1)
    mask = add("Mul", add("Sub", s(1), mask), s(-10000))
    x = add("Add", add("Gather", weight(11, hidden), "ids"), weight(5, hidden))
    x = norm(x)
    for _ in range(layers):
        q, k, v = (dense(x, hidden, hidden) for _ in range(3))
        scores = add("MatMul", apart(q, [0, 2, 1, 3]), apart(k, [0, 2, 3, 1]))
        scores = add("Add", add("Div", scores, s((hidden / heads) ** 0.5)), mask)
        y = add("MatMul", add("Softmax", scores, axis=-1), apart(v, [0, 2, 1, 3]))
        y = add("Reshape", add("Transpose", y, perm=[0, 2, 1, 3]), i64(0, 0, hidden))
        x = norm(add("Add", dense(y, hidden, hidden), x))
        y = dense(x, hidden, 4 * hidden)
        gelu = add("Mul", y, add("Add", add("Erf", add("Div", y, s(2**0.5))), s(1)))
        x = norm(add("Add", dense(add("Mul", gelu, s(0.5)), 4 * hidden, hidden), x))
    nodes.append(helper.make_node("Identity", [x], ["y"]))
    given = [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", 5]) for name in ("ids", "mask")]
    made = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 5, hidden])]
    kept = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "bert", given, made, kept)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def optimized(model: onnx.ModelProto, path: Path, level: Any) -> onnx.ModelProto:
    """The model as onnxruntime's session writes it after its optimizations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.graph_optimization_level = 4, level
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


BERT_INPUTS = {
    "ids": np.random.default_rng(0).integers(0, 11, (3, 5)),
    "mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]),
}


def test_session_optimized_transformer(tmp_path: Path) -> None:
    source = transformer()
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    fused = optimized(source, tmp_path / "fused.onnx", level)
    kinds = {node.op_type for node in fused.graph.node if node.domain == "com.microsoft"}
    assert kinds >= {"SkipLayerNormalization", "BiasGelu"}
    (wanted,) = by_onnxruntime(source, BERT_INPUTS)
    model = from_onnx(fused)
    layers = [node.layer for node in model.layer.nodes]  # type: ignore[attr-defined]
    assert sum(isinstance(layer, LayerNorm) for layer in layers) == 5
    for backend in ("jax", "onnxruntime"):
        (found,) = ix.compile(model, backend)(**BERT_INPUTS)
        np.testing.assert_allclose(found, wanted, 1e-4, 1e-4)
    assert model.signature is not None
    assert model.signature.outputs[0].shape == ("batch", 5, 8)


def test_transformer_optimizer(tmp_path: Path) -> None:
    """Its fusions of BERT: Attention or MultiHeadAttention, SkipLayerNormalization and BiasGelu."""
    optimizer = pytest.importorskip("onnxruntime.transformers.optimizer")
    source = transformer()
    onnx.save(source, tmp_path / "source.onnx")
    made = optimizer.optimize_model(
        str(tmp_path / "source.onnx"), model_type="bert", num_heads=2, hidden_size=8, opt_level=0
    )
    made.save_model_to_file(str(tmp_path / "fused.onnx"))
    fused = onnx.load(tmp_path / "fused.onnx")
    kinds = {node.op_type for node in fused.graph.node if node.domain == "com.microsoft"}
    assert kinds >= {"Attention", "SkipLayerNormalization", "BiasGelu"}
    (wanted,) = by_onnxruntime(source, BERT_INPUTS)
    model = from_onnx(fused)
    for backend in ("jax", "onnxruntime"):
        (found,) = ix.compile(model, backend)(**BERT_INPUTS)
        np.testing.assert_allclose(found, wanted, 1e-4, 1e-4)
    (found,) = by_reference(fused, BERT_INPUTS)
    np.testing.assert_allclose(found, wanted, 1e-4, 1e-4)


def test_session_optimized_network(tmp_path: Path) -> None:
    """Convolutions and a product with their activations."""
    arrays = {"w": f(4, 2, 3, 3), "b": f(4), "u": f(4, 4, 3, 3), "c": f(4), "d": f(16, 3), "e": f(3)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["v1"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["v1"], ["v2"]),
        helper.make_node("Conv", ["v2", "u", "c"], ["v3"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["v3", "v2"], ["v4"]),
        helper.make_node("Relu", ["v4"], ["v5"]),
        helper.make_node("MaxPool", ["v5"], ["v6"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["v6"], ["v7"]),
        helper.make_node("Gemm", ["v7", "d", "e"], ["v8"]),
        helper.make_node("LeakyRelu", ["v8"], ["y"], alpha=0.2),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, ["n", 2, 4, 4])],
        [helper.make_tensor_value_info("y", kind, ["n", 3])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    fused = optimized(source, tmp_path / "fused.onnx", level)
    kinds = [node.op_type for node in fused.graph.node]
    assert "FusedConv" in kinds and "FusedGemm" in kinds
    given = {"x": f(2, 2, 4, 4)}
    model = from_onnx(fused)
    layers = [type(node.layer) for node in model.layer.nodes]  # type: ignore[attr-defined]
    assert layers.count(Conv) == 2 and Dense in layers
    for backend in ("jax", "onnxruntime"):
        close(ix.compile(model, backend)(**given), by_onnxruntime(source, given), Case([]), backend)


def test_layer_normalization_before_onnx_had_it() -> None:
    case = Case([f(2, 3, 4), f(4), f(4, seed=1)], {"axis": -1, "epsilon": 1e-3}, (1, 2), domain="", opset=12)
    model, given = model_of("LayerNormalization", case), feeds(case)
    wanted = by_onnxruntime(model, given)
    close(ReferenceEvaluator(model, new_ops=[*CONTRIB_OPS, *EARLY_OPS]).run(None, given), wanted, case, "reference")
    for backend in ("jax", "onnxruntime"):
        close(ix.compile(from_onnx(model), backend)(**given), wanted, case, backend)


# --- the table


REFUSED = [
    ("MurmurHash3", Case([i64(1, 2)]), "hashes"),
    ("SampleOp", Case([f(2)]), "sample"),
    ("Attention", Case([f(2, 3, 5), f(5, 24), f(24)], {"num_heads": 2, "do_rotary": 1}), "do_rotary"),
    ("Attention", Case([f(2, 3, 5), f(5, 24), f(24), i32(1, 2, 3)], {"num_heads": 2}), "length 3 for a batch of 2"),
    ("GroupQueryAttention", Case(GROUP, G | {"sliding_window_cache": 1}), "sliding_window_cache"),
    ("MatMulNBits", Case([f(3, 32), u8(6, 1, 4), f(6)], {"K": 32, "N": 6, "block_size": 32, "bits": 3}), "bits=3"),
    ("FusedConv", Case([f(1, 2, 6), f(4, 2, 3)], {"activation": "Mish"}), "Mish"),
    ("FusedConv", Case([f(1, 2, 6), f(4, 2, 3)], {"activation": "LeakyRelu"}), "LeakyRelu"),
    ("BiasDropout", Case([f(2, 3), f(3), None, s(0.5), z(1, bool)], stored=(3, 4)), "training_mode"),
    ("SkipLayerNormalization", Case([f(1, 2, 8), f(1, 2, 8), f(8)], outputs=("y", "mean")), "mean"),
    ("Gelu", Case([f(3)], {"mystery": 1}), "mystery"),
    ("NotThere", Case([f(3)]), "com.microsoft"),
]


@pytest.mark.parametrize(("op_type", "case", "message"), REFUSED, ids=[f"{r[0]}-{r[2]}" for r in REFUSED])
def test_refused(op_type: str, case: Case, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        from_onnx(model_of(op_type, case))


def test_every_rule_is_tried() -> None:
    tried = CASES.keys() | {name for name, _, _ in REFUSED}
    assert CONTRIB.keys() - tried == {"DynamicQuantizeLSTM", "EPContext", "QMoE", "SparseToDenseMatMul", "Tokenizer"}
    assert CONTRIB.keys() >= CASES.keys()


def test_every_operator_has_a_reference() -> None:
    known = {kind.__name__ for kind in CONTRIB_OPS}
    assert CASES.keys() - known == NO_REFERENCE
