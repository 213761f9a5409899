"""Quantisation, narrow casts and losses on JAX against ONNX's reference implementation."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper
from onnx.reference import ReferenceEvaluator

import interlux as ix
from interlux.runtime.jax.primitives import PRIMITIVES
from interlux.runtime.jax.primitives.low_precision import converted

RNG = np.random.default_rng(0)
FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")


def dtype(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def noise(*shape, kind="float32"):
    return (RNG.standard_normal(shape) * 3).astype(dtype(kind))


def whole(kind, *shape):
    limits = ml_dtypes.iinfo(dtype(kind))
    return RNG.integers(int(limits.min), int(limits.max) + 1, shape).astype(dtype(kind))


def scales(*shape, kind="float32"):
    return (0.1 + RNG.random(shape)).astype(dtype(kind))


def s32(number):
    return np.float32(number)


QUANTISED = [
    ("QuantizeLinear", [noise(3, 4, 5), scales(4), whole(kind, 4)], {"axis": -2})
    for kind in ("uint8", "int8", "uint16", "int16", "uint4", "int4", "uint2", "int2")
]
QUANTISED += [
    ("QuantizeLinear", [noise(3, 4) * 2000, scales(3, 2)], {"axis": 1, "block_size": 3, "output_dtype": number, **more})
    for number in (T.FLOAT8E4M3FN, T.FLOAT8E5M2, T.FLOAT8E4M3FNUZ, T.FLOAT8E5M2FNUZ, T.FLOAT4E2M1, T.INT4, T.UINT16)
    for more in ({}, {"saturate": 0})
]
QUANTISED += [
    ("QuantizeLinear", [noise(4, 6, kind="float16"), scales(4, kind="float16"), whole("int8", 4)], {"axis": 0}),
    ("QuantizeLinear", [noise(50), scales(1)[0]], {"precision": T.FLOAT16, "output_dtype": T.FLOAT8E5M2}),
    ("QuantizeLinear", [np.arange(-99, 99, dtype=np.float32) * s32(0.037) / 2, s32(0.037), np.uint8(3)], {}),  # ties
]
QUANTISED += [
    ("DequantizeLinear", [whole(kind, 5, 4), scales(3, 4), whole(kind, 3, 4)], {"axis": 0, "block_size": 2})
    for kind in ("uint8", "int8", "uint16", "int16", "uint4", "int4", "uint2", "int2")
]
QUANTISED += [
    (
        "DequantizeLinear",
        [noise(5, 4).astype(dtype(kind)), scales(4, kind="float16")],
        {"axis": -1, "output_dtype": T.FLOAT},
    )
    for kind in (*FLOAT8, "float4_e2m1fn")
]
QUANTISED += [
    ("DequantizeLinear", [whole("int32", 6), s32(0.01)], {"output_dtype": T.FLOAT16}),
    ("DynamicQuantizeLinear", [noise(5, 7)], {}),
    ("DynamicQuantizeLinear", [np.zeros(3, np.float32)], {}),
    ("MatMulInteger", [whole("uint8", 2, 3, 4), whole("int8", 4, 5), np.uint8(9), whole("int8", 5)], {}),
    ("MatMulInteger", [whole("int8", 2, 3, 4), whole("uint8", 4, 5), whole("int8", 2, 3, 1)], {}),
]
QCONV_END = [s32(3.1), np.uint8(100), RNG.integers(-999, 999, 6).astype(np.int32)]
QMATMUL_END = [whole("uint8", 5), s32(97.3), np.int8(-5)]
CONV = {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2], "group": 2}
QUANTISED += [
    ("ConvInteger", [whole("uint8", 2, 4, 7, 6), whole("uint8", 6, 2, 3, 2), np.uint8(5), whole("uint8", 6)], CONV),
    ("ConvInteger", [whole("uint8", 1, 3, 5, 5), whole("uint8", 2, 3, 3, 3)], {"auto_pad": "SAME_LOWER"}),
    (
        "QLinearConv",
        [
            whole("uint8", 2, 4, 7, 6),
            s32(0.021),
            np.uint8(7),
            whole("int8", 6, 2, 3, 2),
            scales(6),
            whole("int8", 6),
            *QCONV_END,
        ],
        CONV,
    ),
    (
        "QLinearMatMul",
        [
            whole("int8", 2, 3, 4),
            scales(2, 3, 1),
            whole("int8", 2, 3, 1),
            whole("uint8", 4, 5),
            scales(5),
            *QMATMUL_END,
        ],
        {},
    ),
]
LABELS = RNG.integers(0, 4, (3, 2, 5))
LABELS[0, 0, 0] = LABELS[2, 1, 1] = 9
LOSSES = [
    (name, [noise(3, 4, 2, 5), LABELS, *weights], {"reduction": reduction, "ignore_index": 9})
    for name in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
    for weights in ([], [scales(4)])
    for reduction in ("none", "sum", "mean")
]
LOSSES += [
    ("Hardmax", [np.round(noise(3, 4, 5))], {"axis": 1}),
    ("Shrink", [noise(20)], {"bias": 1.5, "lambd": 0.7}),
    ("Shrink", [whole("int8", 20)], {"bias": 1.5, "lambd": 2.5}),
    ("SwiGLU", [noise(4, 5), noise(4, 5)], {"alpha": 1.7}),
    ("MeanVarianceNormalization", [noise(3, 4, 5)], {"axes": [0, 2]}),
    ("LpNormalization", [abs(noise(3, 4)) * np.float32([[1], [0], [1]])], {"axis": 1, "p": 1}),
    ("LpNormalization", [noise(3, 4)], {"axis": 0}),
    ("BitCast", [noise(6)], {"to": T.UINT32}),
    ("BitCast", [whole("int64", 6)], {"to": T.COMPLEX64}),
    ("BitCast", [whole("uint8", 6)], {"to": T.FLOAT8E5M2}),
]
SPECIAL = np.float32([0, -0.0, np.nan, np.inf, -np.inf, 448, 464, 465, 1e9, -1e9, 57344, 61441, 1e-3, 2e-5, -3.3, 2.5])


def special(kind):
    with np.errstate(over="ignore", invalid="ignore"):
        return np.concatenate([SPECIAL, noise(40)]).astype(dtype(kind))


CASTS = [
    ("Cast", [special(source)], {"to": number, "saturate": saturate})
    for source in ("float32", "float16", "bfloat16")
    for number in (T.FLOAT8E4M3FN, T.FLOAT8E5M2, T.FLOAT8E4M3FNUZ, T.FLOAT8E5M2FNUZ, T.FLOAT4E2M1)
    for saturate in (0, 1)
]
CASTS += [("Cast", [whole("int16", 40)], {"to": number}) for number in (T.INT4, T.UINT4, T.INT2, T.UINT2)]
CASTS += [("Cast", [noise(9).astype(dtype("float4_e2m1fn"))], {"to": number}) for number in (T.INT8, T.FLOAT8E5M2)]
CASTS += [
    ("Cast", [2 ** noise(40)], {"to": T.FLOAT8E8M0, "round_mode": mode, "saturate": saturate})
    for mode in ("up", "down", "nearest")
    for saturate in (0, 1)
]


def model_of(name, inputs, attributes):
    inputs = [np.asarray(x) for x in inputs]
    names = [f"x{i}" for i in range(len(inputs))]
    outputs = ["y", "scale", "zero"] if name == "DynamicQuantizeLinear" else ["y"]
    outputs += ["log_prob"] if name == "SoftmaxCrossEntropyLoss" else []
    node = helper.make_node(name, names, outputs, **attributes)
    values = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for n, x in zip(names, inputs, strict=True)
    ]
    graph = helper.make_graph(
        [node], "g", values, [helper.make_tensor_value_info(n, T.UNDEFINED, None) for n in outputs]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 28)]), dict(zip(names, inputs, strict=True))


@pytest.mark.parametrize(
    ("name", "inputs", "attributes"),
    [pytest.param(*case, id=f"{case[0]}-{i}") for i, case in enumerate(QUANTISED + LOSSES + CASTS)],
)
def test_against_reference(name, inputs, attributes):
    model, feed = model_of(name, inputs, attributes)
    with np.errstate(all="ignore"):
        expected = ReferenceEvaluator(model).run(None, feed)
    attributes = {k: tuple(v) if isinstance(v, list) else v for k, v in attributes.items()}

    def traced(*xs):
        result = PRIMITIVES[name](*xs, **attributes)
        return result if isinstance(result, tuple) else (result,)

    with jax.enable_x64(True):
        for found in (jax.jit(traced)(*feed.values()), traced(*feed.values())):
            for y, e in zip(found, map(np.asarray, expected), strict=True):
                y = np.asarray(y)
                assert y.dtype == e.dtype and y.shape == e.shape
                if name in ("Cast", "BitCast", "QuantizeLinear"):
                    np.testing.assert_array_equal(y.astype(np.complex128), e.astype(np.complex128))
                else:
                    np.testing.assert_allclose(y.astype(np.float64), e.astype(np.float64), 2e-6, 1e-6)


@pytest.mark.parametrize(
    ("saturate", "mode", "expected"),
    [
        (True, "up", [0, 0, 0, 1, 127, 128, 254, 254, 255]),
        (True, "nearest", [0, 0, 0, 1, 127, 128, 254, 254, 255]),
        (False, "nearest", [255, 255, 0, 1, 127, 128, 255, 255, 255]),
    ],
)
def test_e8m0_follows_the_table_of_the_documentation(saturate, mode, expected):
    x = np.float32([0, 1e-45, 2.0**-127, 1.8 * 2.0**-127, 1, 1.5, 1.9 * 2.0**127, np.inf, np.nan])
    for run in (lambda v: v, jax.jit):
        cast = run(lambda v: converted(v, dtype("float8_e8m0fnu"), saturate=saturate, round_mode=mode))
        np.testing.assert_array_equal(np.asarray(cast(x)).view(np.uint8), expected)


def test_float64_is_rounded_once():
    x = np.float64([1.0625 + 2**-40, 1.1875 - 2**-40, 1e-300, 1e300, -np.inf, np.nan])
    expected = np.float64([1.125, 1.125, 0, 448, -448, np.nan])
    with jax.enable_x64(True):
        for run in (lambda v: v, jax.jit):
            found = run(lambda v: converted(v, dtype("float8_e4m3fn")))(x)
            np.testing.assert_array_equal(np.asarray(found).astype(np.float64), expected)


def test_strings():
    texts = np.array([["1e-5", "INF"], ["-inf", "NaN"]], object)
    np.testing.assert_array_equal(converted(texts, dtype("float32")), np.float32([[1e-5, np.inf], [-np.inf, np.nan]]))
    integers = np.array(["100.5", "-3", "9007199254740993"], object)
    assert converted(integers, dtype("int64")).tolist() == [100, -3, 2**53 + 1]
    assert converted(integers, dtype("int4")).astype(np.int8).tolist() == [4, -3, 1]
    assert converted(np.float32([314.5, 0.1]), np.dtype(object)).tolist() == ["314.5", "0.1"]
    with pytest.raises(ix.UnsupportedError, match="cannot be cast"):
        converted(np.array(["Hello World!"], object), dtype("float32"))


@pytest.mark.parametrize(("source", "target"), [("int4", "uint4"), ("uint4", "int4"), ("float4_e2m1fn", "int4")])
def test_bits_of_small_types(source, target):
    x = (np.arange(16) - 8 * (source != "uint4")).astype(dtype(source))
    number = {"uint4": T.UINT4, "int4": T.INT4}[target]
    found = np.asarray(jax.jit(lambda v: PRIMITIVES["BitCast"](v, to=number))(x))
    static = PRIMITIVES["BitCast"](x, to=number)
    assert found.dtype == static.dtype == dtype(target)
    np.testing.assert_array_equal(found.astype(np.int8), static.astype(np.int8))
    np.testing.assert_array_equal(static.astype(np.int8) & 15, x.view(np.uint8) & 15)


def test_losses_have_derivatives():
    x, labels = noise(3, 4), np.array([1, 9, 2])
    gradient = jax.grad(lambda v: PRIMITIVES["SoftmaxCrossEntropyLoss"](v, labels, ignore_index=9)[0])(jnp.asarray(x))
    assert np.isfinite(gradient).all() and not gradient[1].any() and gradient[0].any()
