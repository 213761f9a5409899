"""From PyTorch to an ONNX file, by interlux and by torch.onnx: time and peak memory beyond torch.export, and how fast
the two files run on onnxruntime.

Both start from one exported program: torch.export is what both need, and its time is given beside. Each conversion is
in a process of its own, whose memory before is subtracted; the processes of both take turns. The time is that to the
ONNX model in memory, of interlux with the copy of the weights; writing the file, which is the disk's work, is a column
of its own. `memory` is the peak of both, in bytes of the model's weights: interlux holds a copy of them (1.0, so that
training the module further does not change the model), and what it takes beyond is extra. The files are timed in one
process with one thread, calls alternating.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import onnx_models

ROOT = Path(__file__).resolve().parent.parent
CONTENDERS = ("interlux", "torch.onnx")
LIMITS = {"time": 0.15, "median latency": 0.95, "latency": 1.05}
LATENCY_ROUNDS = 15
WINDOW = 0.005  # seconds
COLUMNS = (  # words, widths and digits
    ("MB", 7, 0), ("nodes", 7, 0), ("export s", 10, 2), ("interlux s", 12, 3), ("torch.onnx s", 14, 2), ("ratio", 7, 3),
    ("file s", 8, 2), ("theirs", 8, 2), ("memory", 8, 2), ("theirs", 8, 2), ("ms", 9, 2), ("theirs", 9, 2),
    ("ratio", 7, 2),
)  # fmt: skip

Made = tuple[nn.Module, tuple[torch.Tensor, ...]]


def _of_zoo(name: str, size: str) -> Callable[[], Made]:
    return lambda: (onnx_models.module_of(name, size), onnx_models.inputs_of(name, size, 2))


def _transformer(model: str, config: str, **sizes: Any) -> Callable[[], Made]:
    def make() -> Made:
        import transformers

        settings = getattr(transformers, config)(**sizes)
        settings.use_cache = False
        tokens = torch.randint(5, settings.vocab_size, (2, 32), generator=torch.Generator().manual_seed(1))
        return getattr(transformers, model)(settings), (tokens,)

    return make


def _perceptron() -> Made:
    layers = [part for _ in range(4) for part in (nn.Linear(256, 256), nn.ReLU())]
    return nn.Sequential(*layers), (torch.randn(2, 256, generator=torch.Generator().manual_seed(1)),)


# by the bytes of their weights
MODELS: dict[str, Callable[[], Made]] = {
    "perceptron": _perceptron,
    "mobilenet_v3_small": _of_zoo("mobilenet_v3_small", "full"),
    "efficientnet_b0": _of_zoo("efficientnet_b0", "full"),
    "bilstm": _of_zoo("bilstm", "full"),
    "densenet121": _of_zoo("densenet121", "full"),
    "vit": _of_zoo("vit", "full"),
    "resnet18": _of_zoo("resnet18", "full"),
    "gpt2": _of_zoo("gpt2", "full"),
    "llama": _of_zoo("llama", "full"),
    "convnext": _of_zoo("convnext", "full"),
    "swin": _of_zoo("swin", "full"),
    "bert base": _transformer("BertModel", "BertConfig"),
    "gpt2 medium": _transformer("GPT2Model", "GPT2Config", n_embd=1024, n_layer=24, n_head=16),
}


def _memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _quiet() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def _convert(contender: str, program: torch.export.ExportedProgram) -> Callable[[Path], None]:
    """Converts; returns what writes the file. For interlux both are `ix.to_onnx(ix.from_torch(program), path)`."""
    if contender == "interlux":
        import interlux as ix
        from interlux.runtime.onnx.emitter import emission
        from interlux.runtime.onnx.files import write

        emitted = emission(ix.from_torch(program))
        return lambda path: write(emitted, path)
    made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None
    return lambda path: made.save(path, external_data=_size(program) > 1 << 30)


def _size(program: torch.export.ExportedProgram) -> int:
    return sum(t.numel() * t.element_size() for t in program.state_dict.values())


def _warm(contender: str, folder: Path) -> None:
    """A tiny conversion first: imports and caches are paid once by whoever converts."""
    module, inputs = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), (torch.randn(2, 4),)
    _convert(contender, torch.export.export(module, inputs, strict=False))(folder / "warm.onnx")


def _conversion(name: str, contender: str, folder: str) -> dict[str, Any]:
    """One conversion in this process: seconds of torch.export and of the rest, and memory."""
    _quiet()
    torch.set_num_threads(1)
    module, inputs = MODELS[name]()
    module.eval()
    _warm(contender, Path(folder))
    start = time.perf_counter()
    program = torch.export.export(module, inputs, strict=False)
    exported = time.perf_counter() - start
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, start = _memory("VmRSS:"), time.perf_counter()
    write = _convert(contender, program)
    spent, start = time.perf_counter() - start, time.perf_counter()
    write(Path(folder) / f"{contender}.onnx")
    written = time.perf_counter() - start
    return {
        "export": exported,
        "seconds": spent,
        "writing": written,
        "memory": (_memory("VmHWM:") - before) / _size(program),
        "bytes": _size(program),
        "nodes": len(program.graph.nodes),
    }


def _latencies(name: str, folder: str) -> dict[str, float]:
    """Milliseconds of the two files on onnxruntime, medians of alternating calls."""
    import onnxruntime

    _quiet()
    _, inputs = MODELS[name]()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    sessions = {
        contender: onnxruntime.InferenceSession(
            Path(folder) / f"{contender}.onnx", options, providers=["CPUExecutionProvider"]
        )
        for contender in CONTENDERS
    }
    feeds = {
        contender: dict(zip((i.name for i in session.get_inputs()), (x.numpy() for x in inputs), strict=True))
        for contender, session in sessions.items()
    }
    found: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    calls = 1  # in a row: as many as take a few milliseconds
    for turn in range(LATENCY_ROUNDS + 2):
        for contender in CONTENDERS if turn % 2 else CONTENDERS[::-1]:
            start = time.perf_counter()
            for _ in range(calls):
                sessions[contender].run(None, feeds[contender])
            taken = (time.perf_counter() - start) / calls
            if turn >= 2:
                found[contender].append(taken)
        if turn == 1:
            calls = max(1, int(WINDOW / taken))
    return {contender: 1000 * statistics.median(times) for contender, times in found.items()}


def _process(*arguments: str) -> Any:
    command = [sys.executable, "-m", "benchmarks.from_torch", "--worker", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks from_torch")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3, help="conversions of each model by each")
    parser.add_argument("--folder", help="where the files are written for the time being")
    parser.add_argument("--json", help="file for all numbers")
    options = parser.parse_args(arguments)
    print(f"{'model':<20}" + "".join(f"{word:>{width}}" for word, width, _ in COLUMNS))
    rows = []
    for name in options.models:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            runs: dict[str, list[dict[str, Any]]] = {contender: [] for contender in CONTENDERS}
            for turn in range(options.rounds):
                for contender in CONTENDERS if turn % 2 else CONTENDERS[::-1]:
                    runs[contender].append(_process("convert", name, contender, folder))
            ours, theirs = (
                {key: statistics.median(run[key] for run in runs[contender]) for key in runs[contender][0]}
                for contender in CONTENDERS
            )
            latency = _process("latency", name, folder)
        row = {
            "model": name,
            "bytes": ours["bytes"],
            "nodes": ours["nodes"],
            "export": statistics.median([ours["export"], theirs["export"]]),
            "seconds": {"interlux": ours["seconds"], "torch.onnx": theirs["seconds"]},
            "writing": {"interlux": ours["writing"], "torch.onnx": theirs["writing"]},
            "memory": {"interlux": ours["memory"], "torch.onnx": theirs["memory"]},
            "milliseconds": latency,
        }
        rows.append(row)
        mine, other = latency["interlux"], latency["torch.onnx"]
        cells = (
            ours["bytes"] / 1e6, ours["nodes"], row["export"],
            ours["seconds"], theirs["seconds"], ours["seconds"] / theirs["seconds"],
            ours["writing"], theirs["writing"], ours["memory"], theirs["memory"], mine, other, mine / other,
        )  # fmt: skip
        written = (f"{cell:>{width}.{digits}f}" for cell, (_, width, digits) in zip(cells, COLUMNS, strict=True))
        print(f"{name:<20}" + "".join(written), flush=True)
    ratios = [row["milliseconds"]["interlux"] / row["milliseconds"]["torch.onnx"] for row in rows]
    times = [row["seconds"]["interlux"] / row["seconds"]["torch.onnx"] for row in rows]
    print(f"latency: median {statistics.median(ratios):.2f}, largest {max(ratios):.2f}; time: largest {max(times):.3f}")
    print("wanted: " + ", ".join(f"{what} ≤ {limit}" for what, limit in LIMITS.items()))
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] != ["--worker"]:
        sys.exit(main(sys.argv[1:]))
    kind, *rest = sys.argv[2:]
    print(json.dumps(_conversion(*rest) if kind == "convert" else _latencies(*rest)))
