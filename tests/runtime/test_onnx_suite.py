"""ONNX's own node tests, as far as the primitives reach: what is converted and run must be right; the rest is
refused."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import onnx
import pytest

import interlux as ix

PARTS = 12
# These sum in bfloat16 (8 bits) and are compared at 1e-3; XLA rounds intermediate results less often.
LOOSE = {f"test_attention_{case}_bf16_expanded" for case in ("3d_causal", "4d_causal", "4d_padded_kv")} | {
    "test_attention_4d_causal_padded_kv_bf16_expanded",
    "test_attention_4d_attn_mask_causal_bf16_expanded",
}


@functools.cache
def cases() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generators divide by zero on purpose
        return collect_testcases(None)


def as_array(value: Any) -> Any:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def difference(case: Any) -> str | None:
    """What is wrong with a case; None if it is right. Raises UnsupportedError if it is refused."""
    run = ix.compile(ix.from_onnx(case.model), "jax")
    names = [i.name for i in case.model.graph.input]
    for inputs, outputs in case.data_sets:
        found = run(**dict(zip(names, map(as_array, inputs), strict=False)))
        for got, expected in zip(found, map(as_array, outputs), strict=True):
            if got.dtype != expected.dtype or got.shape != expected.shape:
                return f"{got.dtype}{got.shape} for {expected.dtype}{expected.shape}"
            wide = np.float64 if expected.dtype.kind not in "bc" else expected.dtype
            tolerance = 2e-2 if case.name in LOOSE else case.rtol
            if not np.allclose(got.astype(wide), expected.astype(wide), tolerance, case.atol, equal_nan=True):
                return f"off by {np.abs(got.astype(wide) - expected.astype(wide)).max()}"
    return None


@pytest.mark.parametrize("part", range(PARTS))
def test_node_cases(part: int) -> None:
    wrong, right, refused = {}, 0, 0
    for case in cases()[part::PARTS]:
        try:
            problem = difference(case)
        except ix.UnsupportedError:
            refused += 1
            continue
        except ix.InterluxError as error:
            problem = str(error)
        right += problem is None
        if problem is not None:
            wrong[case.name] = problem
    assert not wrong
    assert right >= 0.4 * (right + refused)  # what this version reaches of each part
