"""ONNX's own backend test suite: all its cases, and what becomes of each on the way through interlux.

The table `onnx_suite.tsv` has a row for each case and a column for each way:

    jax            imported, run by the JAX backend
    reference      imported, emitted again, run by onnx's reference evaluator
    onnxruntime    imported, emitted again, run by onnxruntime

A cell is `pass`; `-` where the original itself is not run right there (never for jax); or `xfail: ` and the reason,
which stands in REASONS. Write it anew, after a change that is meant, from the root of the repository:

    python -m tests.runtime.onnx_suite
"""

from __future__ import annotations

import fnmatch
import functools
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

import interlux as ix
from interlux.runtime.onnx import emit

TABLE = Path(__file__).with_suffix(".tsv")
COLUMNS = ("jax", "reference", "onnxruntime")
# why cases are not right: (pattern of their names, columns, reason)
REASONS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "test_attention_*_bf16*",
        ("jax",),
        "sums in bfloat16 (8 bits) are compared at 1e-3; XLA rounds at other places, by one unit in the last place",
    ),
    (
        "test_attention_4d_causal_fp16_expanded",
        ("jax",),
        "softmax is computed in float32 and rounded once, as PyTorch does; the reference rounds each step to float16, "
        "two units in the last place away",
    ),
    ("test_bernoulli*", ("jax",), "random numbers: ONNX does not say which, interlux draws its own from a seed"),
    (
        "test_bernoulli*",
        ("reference", "onnxruntime"),
        "interlux's random numbers are drawn from a seed in its states, for which ONNX has no operator",
    ),
    ("test_training_dropout*", ("jax",), "random numbers: ONNX's active dropout has no seed that could go on; refused"),
)
KINDS = ("pytorch-converted", "pytorch-operator", "simple")


@dataclass(frozen=True)
class Case:
    """One case: a model, and pairs of inputs and expected outputs."""

    name: str
    kind: str
    rtol: float
    atol: float
    model: onnx.ModelProto
    data: Sequence[tuple[list[Any], list[Any]]]

    def feed(self, inputs: list[Any]) -> dict[str, Any]:
        stored = {tensor.name for tensor in self.model.graph.initializer}
        return dict(zip((v.name for v in self.model.graph.input if v.name not in stored), inputs, strict=False))


def as_value(stored: Any) -> Any:
    """A stored input or output: an array, a list of them, None, a dict."""
    if isinstance(stored, onnx.TensorProto):
        return numpy_helper.to_array(stored)
    if isinstance(stored, onnx.SequenceProto):
        return numpy_helper.to_list(stored)
    if isinstance(stored, onnx.OptionalProto):
        return numpy_helper.to_optional(stored)
    return stored


def _read(file: Path, kind: onnx.TypeProto) -> Any:
    content = file.read_bytes()
    match kind.WhichOneof("value"):
        case "sequence_type":
            return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
        case "optional_type":
            return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))


def _stored_cases(kind: str) -> Iterator[Case]:
    from onnx.backend.test.loader import load_model_tests

    for test in load_model_tests(kind=kind):
        folder = Path(test.model_dir)
        model = onnx.load(folder / "model.onnx")
        values = [v for v in model.graph.input if v.name not in {t.name for t in model.graph.initializer}]
        data = []
        for part in sorted(folder.glob("test_data_set_*")):
            inputs = [_read(part / f"input_{i}.pb", v.type) for i, v in enumerate(values)]
            outputs = [_read(part / f"output_{i}.pb", v.type) for i, v in enumerate(model.graph.output)]
            data.append((inputs, outputs))
        yield Case(test.name, kind, test.rtol, test.atol, model, data)


@functools.cache
def cases() -> tuple[Case, ...]:
    """All cases in the suite's order: those that are generated for each operator, and those with stored data."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generators divide by zero on purpose
        found = [
            Case(
                case.name,
                "node",
                case.rtol,
                case.atol,
                case.model,
                [([as_value(i) for i in inputs], [as_value(o) for o in outputs]) for inputs, outputs in case.data_sets],
            )
            for case in collect_testcases(None)
        ]
    found += _light_cases()
    for kind in KINDS:
        found += _stored_cases(kind)
    return tuple(found)


def _light_cases() -> Iterator[Case]:
    """Nine networks for images whose weights are constants: their input is made, their output is stored."""
    from onnx.backend.test.loader import load_model_tests
    from onnx.backend.test.runner import Runner

    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    for test in load_model_tests(kind="real"):
        path = folder / f"light_{test.name.removeprefix('test_')}.onnx"
        model = onnx.load(path)
        stored = {t.name for t in model.graph.initializer}
        inputs = [
            Runner.generate_dummy_data(value, seed=0, name=test.model_name, random=False)
            for value in model.graph.input
            if value.name not in stored
        ]
        output = numpy_helper.to_array(
            onnx.TensorProto.FromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
        )
        yield Case(test.name, "light", test.rtol, test.atol, model, [(inputs, [output])])


def difference(found: Any, expected: Any, rtol: float, atol: float) -> str | None:
    """What is wrong with an output, in dtype, shape or values; None if it is right."""
    if isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return f"{type(found).__name__} for a sequence of {len(expected)}"
        return next(filter(None, (difference(f, e, rtol, atol) for f, e in zip(found, expected, strict=True))), None)
    if expected is None or found is None:
        return None if found is None and expected is None else f"{type(found).__name__} for {type(expected).__name__}"
    if isinstance(expected, dict):
        return None if found == expected else f"{found} for {expected}"
    found, expected = np.asarray(found), np.asarray(expected)
    if expected.dtype.kind in "OSU":
        same = found.shape == expected.shape and (found.astype(str) == expected.astype(str)).all()
        return None if same else f"{found.tolist()} for {expected.tolist()}"
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return f"{found.dtype}{list(found.shape)} for {expected.dtype}{list(expected.shape)}"
    wide = np.float64 if expected.dtype.kind not in "bc" else expected.dtype
    a, b = found.astype(wide), expected.astype(wide)
    if not np.allclose(a, b, rtol, atol, equal_nan=True):
        with np.errstate(invalid="ignore"):
            return f"off by {np.nanmax(np.abs(a - b)):.3g}"
    return None


def outcome(case: Case, run: Any) -> str | None:
    """What is wrong with the outputs of a function of the inputs by name; None if all are right."""
    for inputs, outputs in case.data:
        found = run(case.feed(inputs))
        for got, expected in zip(found, outputs, strict=True):
            if (problem := difference(got, expected, case.rtol, case.atol)) is not None:
                return problem
    return None


def on_jax(case: Case, model: ix.Model) -> str | None:
    run = ix.compile(model, "jax")
    return outcome(case, lambda feed: run(**feed))


def on_reference(case: Case, model: onnx.ModelProto) -> str | None:
    evaluator = ReferenceEvaluator(model)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return outcome(case, lambda feed: evaluator.run(None, feed))


def on_onnxruntime(case: Case, model: onnx.ModelProto) -> str | None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return outcome(case, lambda feed: session.run(None, feed))


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def states(case: Case) -> dict[str, str]:
    """What becomes of a case, by column: "pass", or what is wrong.

    jax: imported and run by JAX. reference, onnxruntime: imported, emitted again and run there; "-" where the original
    does not run right there.
    """
    try:
        model = ix.from_onnx(case.model)
    except ix.InterluxError as error:
        return dict.fromkeys(("jax", "reference", "onnxruntime"), f"import: {_one_line(error)}")
    result = {}
    try:
        result["jax"] = on_jax(case, model) or "pass"
    except ix.InterluxError as error:
        result["jax"] = _one_line(error)
    try:
        emitted, refusal = emit(model), None
    except ix.InterluxError as error:
        emitted, refusal = None, f"emit: {_one_line(error)}"
    for name, runner in (("reference", on_reference), ("onnxruntime", on_onnxruntime)):
        try:
            runs = runner(case, case.model) is None
        except Exception:  # noqa: BLE001  whatever a runtime raises for what it does not run
            runs = False
        if not runs:
            result[name] = "-"
        elif refusal is not None:
            result[name] = refusal
        else:
            try:
                result[name] = runner(case, emitted) or "pass"
            except Exception as error:  # noqa: BLE001
                result[name] = _one_line(error)
    return result


def kind_of(result: str) -> str:
    """pass, - or xfail."""
    return result if result in ("pass", "-") else "xfail"


def reason(name: str, column: str) -> str | None:
    """Why a case is known not to be right."""
    return next(
        (why for pattern, columns, why in REASONS if column in columns and fnmatch.fnmatch(name, pattern)), None
    )


def table() -> dict[str, dict[str, str]]:
    """The stored states: case -> column -> cell."""
    rows = [line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines()[1:]]
    return {name: dict(zip(COLUMNS, cells, strict=True)) for name, *cells in rows}


def main() -> None:
    """Writes the table; cases without a reason are listed, and nothing is written."""
    lines, unexplained = ["\t".join(("case", *COLUMNS))], []
    for case in cases():
        found, cells = states(case), []
        for column in COLUMNS:
            kind = kind_of(found[column])
            why = reason(case.name, column) if kind == "xfail" else ""
            if why is None:
                unexplained.append(f"{case.name} {column}: {found[column]}")
            cells.append(f"xfail: {why}" if kind == "xfail" else kind)
        lines.append("\t".join((case.name, *cells)))
    if unexplained:
        sys.exit("\n".join([*unexplained, f"{len(unexplained)} without a reason"]))
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{TABLE.name}: {len(lines) - 1} cases")


if __name__ == "__main__":
    main()
