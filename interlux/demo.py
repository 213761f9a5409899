"""`python -m interlux.demo`: converts four small trained networks, verifies every hop, measures the accuracy.

    PyTorch -> IR -> JAX, onnxruntime, fused engine
    PyTorch -> IR -> ONNX file -> onnxruntime
    PyTorch -> IR -> ONNX file -> IR -> JAX

The networks are those of fixtures/ in a checkout. The reports, an ONNX file and a saved model go to out/demo/.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli.state import State
from .cli.text import table

if TYPE_CHECKING:
    import numpy as np

    from .runtime.verify import Report

OUT = Path("out") / "demo"
# fixture: what it is, and which function of fixtures.digits makes its input
NETWORKS = {
    "digits_lenet": ("LeNet-5", "lenet_input"),
    "digits_resnet": ("ResNet-18, an eighth as wide", "resnet_input"),
    "digits_lstm": ("two-layer bidirectional LSTM", "token_input"),
    "digits_transformer": ("transformer encoder", "token_input"),
}
FIRST = next(iter(NETWORKS))
SOURCE = "PyTorch"
Run = Callable[[list["np.ndarray"]], Sequence[Any]]


@dataclass(frozen=True)
class Result:
    """One network: its verification, and correct answers on the test images by hop."""

    name: str
    report: Report
    correct: Mapping[str, int]
    images: int

    @property
    def passed(self) -> bool:
        """Verified, and no hop answers fewer images correctly than the source."""
        return self.report.passed and min(self.correct.values()) >= self.correct[SOURCE]

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(hop, worst error ratio, accuracy, verdict) for the source and each hop."""
        rows = []
        for hop, correct in self.correct.items():
            accuracy = f"{100 * correct / self.images:.1f} % ({correct}/{self.images})"
            if hop == SOURCE:
                rows.append((hop, "", accuracy, "the reference"))
                continue
            own = [row for row in self.report.rows if row.backend == hop]
            worst = max((row.worst for row in own if not math.isnan(row.worst)), default=math.nan)
            good = bool(own) and all(row.passed for row in own) and correct >= self.correct[SOURCE]
            rows.append((hop, "-" if math.isnan(worst) else f"{worst:.2f}", accuracy, "passed" if good else "FAILED"))
        return rows


def convert(name: str, folder: Path, out: Path, state: State) -> Result:
    """Takes one fixture through all hops."""
    import numpy as np

    import interlux as ix
    from fixtures import digits

    from .cli.checks import compiled, onnx_file
    from .cli.sources import open_source
    from .runtime.verify import verify

    with state.step(f"{name}: import"):
        opened = open_source(str(folder / f"{name}.pt2"))
        source, model = opened.source(), opened.model
    onnx = out / f"{name}.onnx"
    ix.to_onnx(model, onnx)
    if name == FIRST:
        ix.save(model, out / name)
    hops: dict[str, Run] = {
        "IR -> JAX": compiled(model, "jax")[0],
        "IR -> onnxruntime": compiled(model, "onnxruntime")[0],
        "IR -> fused engine": compiled(model, "fused")[0],
        "IR -> ONNX file -> onnxruntime": onnx_file(onnx)[0],
        "IR -> ONNX file -> IR -> JAX": compiled(ix.from_onnx(onnx), "jax")[0],
    }
    with state.step(f"{name}: verify {len(hops)} hops"):
        report = verify(source, model, (), runners=hops)
    pixels, labels = digits.load_test()
    images = getattr(digits, NETWORKS[name][1])(pixels)
    with state.step(f"{name}: accuracy on {len(labels)} test images"):
        correct = {
            hop: int(np.sum(np.argmax(run([images])[0], axis=-1) == labels))
            for hop, run in {SOURCE: source.run, **hops}.items()
        }
    return Result(name, report, correct, len(labels))


def show(results: Sequence[Result]) -> str:
    """The table of all results as text."""
    head = ("network", "hop from PyTorch", "error ratio", "accuracy", "verdict")
    return table(head, [(result.name, *row) for result in results for row in result.rows()])


def write_reports(results: Sequence[Result], out: Path) -> Path:
    """One page for each network; `report.html` is the first one's and leads to the others."""
    from markupsafe import Markup

    def page(i: int) -> str:
        return "report.html" if i == 0 else f"report_{results[i].name}.html"

    def coloured(verdict: str) -> Any:  # as in the report's own table
        kind = {"passed": "good", "FAILED": "bad"}.get(verdict)
        return Markup('<span class="{}">{}</span>').format(kind, verdict.lower()) if kind else verdict

    head = ("Hop from PyTorch", "Error ratio", "Accuracy", "Verdict")
    overview: list[tuple[Any, ...]] = [("Network", "Kind", "Worst error ratio", "Accuracy", "Verdict")]
    for i, result in enumerate(results):
        worst = max((row.worst for row in result.report.rows if not math.isnan(row.worst)), default=math.nan)
        link = Markup('<a href="{}">{}</a>').format(page(i), result.name)
        accuracy = f"{100 * min(result.correct.values()) / result.images:.1f} %"
        verdict = "passed" if result.passed else "FAILED"
        overview.append((link, NETWORKS[result.name][0], f"{worst:.2f}", accuracy, coloured(verdict)))
    for i, result in enumerate(results):
        accuracy_table = (
            f"Accuracy on {result.images} test images",
            [head, *((*row[:-1], coloured(row[-1])) for row in result.rows())],
        )
        result.report.to_html(out / page(i), [accuracy_table, ("All networks of the demo", overview)])
    return out / page(0)


def main() -> int:
    """Runs the demo. Returns the exit code: 1 if anything failed, 2 without fixtures."""
    spec = importlib.util.find_spec("fixtures")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    if folder is None or not (folder / "digits_lenet.pt2").is_file():
        print("interlux: the demo needs the folder fixtures/; run `make demo` in a checkout", file=sys.stderr)
        return 2
    from .ir.errors import InterluxError

    state, start = State(), time.perf_counter()
    OUT.mkdir(parents=True, exist_ok=True)
    print("Four trained networks: PyTorch to JAX, onnxruntime, the fused engine, to ONNX files and back.", flush=True)
    try:
        results = [convert(name, folder, OUT, state) for name in NETWORKS]
        report = write_reports(results, OUT)
    except InterluxError as error:
        state.fail(str(error), type(error).__name__, ())
        return 1
    passed = all(result.passed for result in results)
    print()
    print(show(results))
    print()
    print("error ratio: error against PyTorch in float64, over PyTorch's own error; up to 4 passes, about 1 is no loss")
    print(f"{'passed' if passed else 'FAILED'} in {time.perf_counter() - start:.0f} s")
    print(f"report:      {report}")
    print(f"ONNX files:  {OUT}/*.onnx")
    print(f"saved model: {OUT / FIRST}/")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
