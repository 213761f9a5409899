"""ONNX files on a CPU: interlux's JAX backend, jaxonnxruntime, PyTorch and onnxruntime side by side.

`python -m benchmarks onnx_on_jax [--models vit bert] [--threads 1 2] [--batch 1 8] [--rounds 15] [--json out.json]`

Each number of threads is a process of its own, pinned to that many cores before anything is imported, with all
contenders in it. They take turns in short windows, in alternating order, so that what else the machine does falls on
all alike. A time is the median over the windows of the median call, from numpy arrays to numpy arrays; a ratio is the
median over the rounds of a contender's window against onnxruntime's. Weights are random, see `onnx_models`. Every
output is compared with onnxruntime's first. jaxonnxruntime takes part where it can be imported.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONTENDERS = ("interlux", "onnxruntime", "jaxonnxruntime", "torch")
WINDOW = 0.25  # seconds; a call that takes longer is a window
AGREES = 1e-3  # relative distance from onnxruntime's output above which a result counts as wrong
# what a peer raises for a model that it does not take: it has no exception of its own
REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
Call = Callable[[], Any]


@dataclass
class Result:
    """One contender on one model, batch and number of threads; times in seconds, None where it did not take part.

    Arguments:
        contender: of CONTENDERS.
        first: from the file to the first output; for onnxruntime, to the session.
        call: the median call.
        ratio: to onnxruntime's.
        distance: of the output from onnxruntime's, relative L2.
        note: why it did not take part.
    """

    contender: str
    first: float | None = None
    call: float | None = None
    ratio: float | None = None
    distance: float | None = None
    note: str = ""


@dataclass
class Row:
    """All contenders on one model, batch and number of threads."""

    model: str
    parameters: int
    batch: int
    threads: int
    results: list[Result] = field(default_factory=list)


def main(arguments: Sequence[str] = ()) -> int:
    """Exports what is missing, runs a process for each number of threads, prints a table."""
    options = _parser().parse_args(arguments)
    if options.worker:
        return _worker(options)
    with tempfile.TemporaryDirectory() as temporary:
        options.cache = options.cache or temporary
        _export(options)
        rows: list[Row] = []
        for threads in options.threads:
            rows += _process(options, threads)
    print(table(rows))
    notes = [f"{row.model}: {r.contender} is left out, {r.note}" for row in rows for r in row.results if r.note]
    print("", *dict.fromkeys(notes), sep="\n")
    if options.json:
        content = {"environment": environment(), "rows": [asdict(row) for row in rows]}
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    distances = [x.distance for row in rows for x in row.results if x.distance is not None]
    return int(not all(distance <= AGREES for distance in distances))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks onnx_on_jax")
    parser.add_argument("--models", nargs="+", help="names; all by default")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--opset", type=int, default=20, help="of the exported files")
    parser.add_argument("--size", choices=("small", "full"), default="full")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--cache", help="folder that keeps the exported files")
    parser.add_argument("--json", help="file for all numbers")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def _export(options: argparse.Namespace) -> None:
    from . import onnx_models as zoo

    known = (*zoo.ARCHITECTURES, *zoo.LIGHT)
    options.models = options.models or list(known)
    unknown = [name for name in options.models if name not in known]
    if unknown:
        raise SystemExit(f"there is no model {unknown[0]!r}; choose from {', '.join(known)}")
    Path(options.cache).mkdir(parents=True, exist_ok=True)
    for name in options.models:
        zoo.made(name, options.size, options.opset, Path(options.cache))


def _process(options: argparse.Namespace, threads: int) -> list[Row]:
    """The rows for one number of threads, from a process of its own."""
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        print(f"{threads} threads: left out, there are {len(cores)} cores", file=sys.stderr)
        return []
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": str(threads),
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}",
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks", "onnx_on_jax", "--worker", str(out), "--models", *options.models]
        command += ["--threads", str(threads), "--batch", *map(str, options.batch), "--rounds", str(options.rounds)]
        command += [
            "--opset",
            str(options.opset),
            "--size",
            options.size,
            "--cache",
            str(Path(options.cache).resolve()),
        ]
        command += ["--contenders", *options.contenders]
        subprocess.run(command, env=env, cwd=ROOT, check=True)
        rows = json.loads(out.read_text(encoding="utf-8"))
    return [Row(**row | {"results": [Result(**r) for r in row["results"]]}) for row in rows]


def _worker(options: argparse.Namespace) -> int:
    """In the pinned process: measures all models and batches, writes the rows."""
    (threads,) = options.threads
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # before any pool of threads is made
    import torch

    from . import onnx_models as zoo

    torch.set_num_threads(threads)
    rows = []
    for name in options.models:
        path = zoo.file_of(name, options.size, options.opset, Path(options.cache))
        module = zoo.module_of(name, options.size) if name in zoo.ARCHITECTURES else None
        for batch in options.batch:
            print(f"{name}, batch {batch}, {threads} threads", file=sys.stderr, flush=True)
            rows.append(_measure(name, path, module, batch, threads, options))
    Path(options.worker).write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")
    return 0


def _measure(name: str, path: Path, module: Any, batch: int, threads: int, options: argparse.Namespace) -> Row:
    import numpy as np
    import onnx

    from . import onnx_models as zoo

    proto = onnx.load(path)
    row = Row(name, sum(int(np.prod(t.dims)) for t in proto.graph.initializer if t.data_type == 1), batch, threads)
    if module is None:
        if batch != 1:
            row.results = [Result(c, note="the file has a batch of 1") for c in options.contenders]
            return row
        inputs = dict([zoo.light_inputs(proto, 1)])
    else:
        tensors = zoo.inputs_of(name, options.size, batch)
        inputs = {key: tensor.numpy() for key, tensor in zip(zoo.ARCHITECTURES[name].names, tensors, strict=True)}
    makers: dict[str, Callable[[], tuple[Call, float]]] = {
        "interlux": lambda: _interlux(path, inputs),
        "onnxruntime": lambda: _onnxruntime(path, inputs, threads),
        "jaxonnxruntime": lambda: _jaxonnxruntime(path, inputs),
        "torch": lambda: _torch(module, inputs),
    }
    calls: dict[str, Call] = {}
    for contender in options.contenders:
        result = Result(contender)
        row.results.append(result)
        if contender == "torch" and module is None:
            result.note = "there is only the file"
            continue
        if contender == "jaxonnxruntime" and importlib.util.find_spec("jaxonnxruntime") is None:
            result.note = "it is not installed (pip install --no-deps jaxonnxruntime)"
            continue
        try:
            calls[contender], result.first = makers[contender]()
        except REFUSALS as error:
            result.note = f"it refuses the model: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    _compare(row, calls)
    _race(row, calls, options.rounds)
    return row


def _compare(row: Row, calls: dict[str, Call]) -> None:
    import numpy as np

    if "onnxruntime" not in calls:
        return
    expected = np.asarray(calls["onnxruntime"](), np.float64)
    for result in row.results:
        if result.contender in calls:
            found = np.asarray(calls[result.contender](), np.float64)
            result.distance = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _race(row: Row, calls: dict[str, Call], rounds: int) -> None:
    """Windows in turn; fills in the times."""
    windows: dict[str, list[float]] = {contender: [] for contender in calls}
    order = list(calls)
    for _ in range(rounds):
        for contender in order:
            windows[contender].append(_window(calls[contender]))
        order.reverse()
    for result in row.results:
        if result.contender in windows:
            mine = windows[result.contender]
            result.call = statistics.median(mine)
            if "onnxruntime" in windows:
                result.ratio = statistics.median(a / b for a, b in zip(mine, windows["onnxruntime"], strict=True))


def _window(call: Call) -> float:
    """The median call within WINDOW seconds."""
    times: list[float] = []
    while not times or sum(times) < WINDOW:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _timed(call: Call, start: float) -> tuple[Call, float]:
    call()
    return call, time.perf_counter() - start


def _interlux(path: Path, inputs: dict[str, Any]) -> tuple[Call, float]:
    import jax  # noqa: F401  the first import is not interlux's

    import interlux as ix

    start = time.perf_counter()
    run = ix.compile(ix.from_onnx(path), "jax")
    return _timed(lambda: run(**inputs)[0], start)


def _onnxruntime(path: Path, inputs: dict[str, Any], threads: int) -> tuple[Call, float]:
    import onnxruntime

    start = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)[0], time.perf_counter() - start


def _jaxonnxruntime(path: Path, inputs: dict[str, Any]) -> tuple[Call, float]:
    import jax
    import numpy as np
    import onnx

    peer = importlib.import_module("jaxonnxruntime")
    convert = importlib.import_module("jaxonnxruntime.call_onnx").call_onnx_model
    # without it, every file that computes a shape is refused
    peer.config.update("jaxort_only_allow_initializers_as_static_args", False)
    warnings.filterwarnings("ignore", message="Explicitly requested dtype int64")  # it works with 32 bits
    start = time.perf_counter()
    function, parameters = convert(onnx.load(path), inputs)
    compiled = jax.jit(function)
    parameters = jax.device_put(parameters)
    return _timed(lambda: np.asarray(compiled(parameters, inputs)[0]), start)


def _torch(module: Any, inputs: dict[str, Any]) -> tuple[Call, float]:
    import torch

    def call() -> Any:
        with torch.inference_mode():
            return module(*map(torch.from_numpy, inputs.values())).numpy()

    return _timed(call, time.perf_counter())


def environment() -> dict[str, str]:
    """Versions of what took part, and the processor."""
    from importlib import metadata

    found = {}
    for package in ("interlux", "jax", "jaxlib", "onnx", "onnxruntime", "torch", "transformers", "jaxonnxruntime"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [x for x in information.read_text(encoding="utf-8").splitlines() if x.startswith("model name")]
        found["processor"] = names[0].partition(":")[2].strip() if names else ""
    return found


def table(rows: Iterable[Row]) -> str:
    """The rows in Markdown: milliseconds, in brackets the ratio to onnxruntime; then the seconds of the first call."""
    rows = list(rows)
    names = list(dict.fromkeys(result.contender for row in rows for result in row.results))
    head = ["model", "params", "batch", "threads", *(f"{n} ms" for n in names), *(f"{n} first s" for n in names)]
    head.append("distance")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        results = {result.contender: result for result in row.results}
        cells = [row.model, f"{row.parameters / 1e6:.1f} M", str(row.batch), str(row.threads)]
        cells += [_speed(results[n]) for n in names]
        cells += ["–" if (first := results[n].first) is None else f"{first:.2f}" for n in names]
        distances = [r.distance for r in row.results if r.distance is not None]
        cells.append(f"{max(distances):.0e}" if distances else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _speed(result: Result) -> str:
    if result.call is None:
        return "–"
    wrong = " WRONG" if result.distance is not None and not result.distance <= AGREES else ""
    ratio = "" if result.ratio is None else f" ({result.ratio:.2f})"
    return f"{1e3 * result.call:.1f}{ratio}{wrong}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
