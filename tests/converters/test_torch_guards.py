"""What a trace assumed of sizes is kept and enforced: a model is never run where its source would do something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import interlux as ix
from interlux.ir.conditions import Condition, from_lists
from tests.helpers import Calls, check_outputs

Case = tuple[Callable[..., Any], tuple[int, ...], str, list[tuple[int, ...]], list[tuple[int, ...]]]

# function, example's shape, dynamic shapes, shapes that are right, shapes that must be refused
CASES: dict[str, Case] = {
    "even or odd": (
        lambda m, x: x * 2 if x.shape[1] % 2 == 0 else x * 3,
        (2, 4, 6),
        "auto",
        [(3, 8, 5)],
        [(2, 5, 6), (2, 7, 6)],
    ),
    "a root of a size": (
        lambda m, x: x.view(x.shape[0], int(x.shape[1] ** 0.5), -1),
        (2, 12, 6),
        "auto",
        [(3, 12, 4), (2, 15, 6)],
        [(2, 6, 6), (2, 18, 6)],
    ),
    "more than four": (lambda m, x: x * 2 if x.shape[0] > 4 else x * 3, (5, 4), "auto", [(7, 4)], [(3, 4)]),
    "squeeze": (lambda m, x: x.squeeze(), (2, 4, 1), "batch", [(3, 4, 1)], [(1, 4, 1)]),
    "squeeze of the batch": (lambda m, x: x.squeeze(0) + 1, (2, 4), "batch", [(3, 4)], [(1, 4)]),
    "equal to one": (lambda m, x: x * 2 if x.shape[0] == 1 else x * 3, (2, 4), "batch", [(3, 4)], [(1, 4)]),
    "more than one": (lambda m, x: x * 2 if x.shape[0] > 1 else x * 3, (2, 4), "batch", [(3, 4)], [(1, 4)]),
    "any batch": (
        lambda m, x: x.reshape(-1, 3).view(x.shape[0], -1).transpose(0, 1).contiguous().sum(1),
        (2, 6),
        "batch",
        [(1, 6), (2, 6), (5, 6)],
        [],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sizes_outside_the_trace_are_refused(case: Case, tmp_path: Path) -> None:
    function, example, dynamic, right, wrong = case
    module = Calls(function)
    model = ix.from_torch(module, torch.randn(example), dynamic)
    ix.save(model, tmp_path / "model")
    saved = ix.load(tmp_path / "model")
    for shape in (example, *right):
        x = torch.randn(shape)
        check_outputs(module, model, (x,))
        ix.compile(saved, "onnxruntime")(x.numpy())
    for each in (model, saved):
        for backend in ("jax", "onnxruntime"):
            run = ix.compile(each, backend)
            for shape in wrong:
                with pytest.raises(ix.InvalidModelError, match="traced where|must be in"):
                    run(np.zeros(shape, np.float32))
    assert ix.verify(module, model, backends=("onnxruntime",)).passed


@pytest.mark.parametrize("saved", [False, True])
def test_guards_of_a_program_and_of_its_file(saved: bool, tmp_path: Path) -> None:
    auto = torch.export.Dim.AUTO
    module = Calls(lambda m, x: x * 2 if x.shape[1] % 2 == 0 else x * 3)
    program = torch.export.export(module, (torch.randn(2, 4),), dynamic_shapes=(({0: auto, 1: auto},),), strict=False)
    source: Any = program
    if saved:
        source = tmp_path / "model.pt2"
        torch.export.save(program, source)
    run = ix.compile(ix.from_torch(source), "jax")
    np.testing.assert_array_equal(run(np.ones((3, 6), np.float32))[0], np.full((3, 6), 2, np.float32))
    with pytest.raises(ix.InvalidModelError, match="traced where .*(% 2|Mod)"):
        run(np.ones((3, 5), np.float32))


def test_layers_of_torch_take_a_batch_of_one() -> None:
    for module, shape in (
        (nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), (2, 4, 6)),
        (nn.LSTM(6, 4, batch_first=True), (2, 4, 6)),
        (nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2)), (2, 2, 6, 6)),
    ):
        model = ix.from_torch(module.eval(), torch.randn(shape))
        assert model.signature is not None and model.signature.conditions == ()
        check_outputs(module, model, (torch.randn(1, *shape[1:]),))


@given(st.integers(0, 50), st.integers(0, 50))
def test_conditions_are_what_python_computes(a: int, b: int) -> None:
    tree = from_lists(["and", ["eq", ["mod", "a", 3], ["floordiv", "b", 5]], ["lt", ["mul", "a", 2], ["add", "b", 7]]])
    assert Condition("", tree).holds({"a": a, "b": b}) == (a % 3 == b // 5 and a * 2 < b + 7)
    assert not Condition("", ("eq", ("mod", "a", 0), 0)).holds({"a": a})
    assert Condition("", tree).names() == {"a", "b"}


@pytest.mark.parametrize("tree", [["system", "a"], [], {"a": 1}, [["eq"], 1], None])
def test_what_is_no_condition_is_refused(tree: Any) -> None:
    with pytest.raises(ValueError, match="no condition"):
        from_lists(tree)
