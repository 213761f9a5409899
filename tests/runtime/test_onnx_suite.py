"""ONNX's own backend test suite, case by case: none may start to fail, or to pass, unnoticed."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.runtime import onnx_suite as suite

PARTS = 24


@pytest.mark.parametrize("part", range(PARTS))
def test_cases_are_in_the_state_that_the_table_says(part: int) -> None:
    expected, changed = suite.table(), []
    for case in suite.cases()[part::PARTS]:
        for column, result in suite.states(case).items():
            if suite.kind_of(result) != suite.kind_of(expected[case.name][column].split(":")[0]):
                changed.append(f"{case.name} {column}: {result}, the table says {expected[case.name][column]}")
    assert not changed, "\n".join(changed)


def test_the_table_covers_the_suite_and_every_failure_has_its_reason() -> None:
    table = suite.table()
    assert list(table) == [case.name for case in suite.cases()]
    for name, cells in table.items():
        for column, cell in cells.items():
            assert cell in ("pass", "-") or cell == f"xfail: {suite.reason(name, column)}"
        assert cells["jax"] != "-"


def test_how_much_of_the_suite_passes() -> None:
    table = suite.table()
    assert len(table) == 2033
    counts = {
        column: Counter(suite.kind_of(cells[column].split(":")[0]) for cells in table.values())
        for column in suite.COLUMNS
    }
    assert counts["jax"]["pass"] >= 2010
    assert counts["reference"]["xfail"] <= 10
    assert counts["onnxruntime"]["xfail"] <= 10
