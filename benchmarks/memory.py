"""Peak memory of what is done with an ONNX model of more than 2 GB, as a ratio to its size; each step in a process of
its own, so that one step's memory is not another's.

The model's weights lie in two files of external data. What the libraries themselves need, which a run with a model of
a few kilobytes shows, is subtracted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
LAYERS = 8
# Peak resident memory of a process that has run another before it starts with that one's, so the kernel is asked.
PEAK = "VmHWM:"


def make(folder: Path, width: int) -> Path:
    """Writes a model of `LAYERS` square Gemm, every other one transposed: [tokens, width] -> [tokens, width]."""
    import onnx
    from onnx import helper

    folder.mkdir()
    nodes, weights = [], []
    rng = np.random.default_rng(0)
    for i in range(LAYERS):
        weight = rng.standard_normal((width, width), dtype=np.float32) / np.float32(np.sqrt(width))
        location = f"{i % 2}.data"
        with (folder / location).open("ab") as file:
            offset = file.tell()
            file.write(memoryview(weight).cast("B"))
        tensor = onnx.TensorProto(name=f"block.{i}.weight", data_type=1, dims=weight.shape, data_location=1)
        for key, value in (("location", location), ("offset", offset), ("length", weight.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        weights.append(tensor)
        nodes.append(helper.make_node("Gemm", [f"h{i}", tensor.name], [f"m{i}"], transB=i % 2))
        nodes.append(helper.make_node("Tanh", [f"m{i}"], [f"h{i + 1}"]))
    shape = ["tokens", width]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("h0", f"h{LAYERS}")]
    graph = helper.make_graph(nodes, "big", ends[:1], ends[1:], weights)
    path = folder / "model.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    )
    return path


def _input(width: int) -> np.ndarray:
    return np.ones((1, width), np.float32)


def _imported(path: Path, width: int, out: Path) -> Any:
    import interlux as ix

    return ix.from_onnx(path)


def _saved(path: Path, width: int, out: Path) -> None:
    import interlux as ix

    ix.save(ix.from_onnx(path), out / "saved")


def _exported(path: Path, width: int, out: Path) -> None:
    import interlux as ix

    ix.to_onnx(ix.from_onnx(path), out / "exported.onnx")


def _run(backend: str) -> Callable[[Path, int, Path], None]:
    def run(path: Path, width: int, out: Path) -> None:
        import interlux as ix

        ix.compile(ix.from_onnx(path), backend)(_input(width))

    return run


def _onnxruntime(path: Path, width: int, out: Path) -> None:
    import onnxruntime

    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"h0": _input(width)})


def _onnx(path: Path, width: int, out: Path) -> None:
    import onnx

    onnx.save(onnx.load(path), out / "copy.onnx", save_as_external_data=True)


STEPS: dict[str, Callable[[Path, int, Path], Any]] = {
    "from_onnx": _imported,
    "from_onnx, save": _saved,
    "from_onnx, to_onnx": _exported,
    "from_onnx, run on JAX": _run("jax"),
    "from_onnx, run on onnxruntime": _run("onnxruntime"),
    "onnxruntime on the file": _onnxruntime,
    "onnx.load, onnx.save": _onnx,
}


def peak(step: str, path: Path, width: int) -> int:
    """Bytes that a process needs for one step, at most."""
    with tempfile.TemporaryDirectory(dir=path.parent) as out:
        arguments = [sys.executable, "-m", "benchmarks.memory", "--step", step, str(path), str(width), out]
        return int(
            subprocess.run(arguments, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--width", type=int, default=8192, help=f"{LAYERS} weights of width × width; 8192 is 2.1 GB")
    parser.add_argument("--folder", type=Path, help="where the models are written for the time being")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        small, large = make(Path(folder) / "small", 16), make(Path(folder) / "large", options.width)
        size = LAYERS * options.width**2 * 4
        print(f"peak memory over the model's {size / 1e9:.2f} GB")
        for step in STEPS:
            needed = peak(step, large, options.width) - peak(step, small, 16)
            print(f"{step:<32}{needed / size:>6.2f}", flush=True)
    return 0


def _step(step: str, path: str, width: str, out: str) -> None:
    kept = STEPS[step](Path(path), int(width), Path(out))
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith(PEAK)))
    del kept


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        _step(*sys.argv[2:])
    else:
        sys.exit(main())
