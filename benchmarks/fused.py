"""The fused engine beside its peers on small networks: inference, calls of all contenders in turns.

Each window times as many calls as fit into a few milliseconds; contenders alternate from window to window, and the
figures are the least and the median of their windows in microseconds for a call. `peak` is the share of the measured
FMA rate of as many cores. onnxruntime runs with I/O binding; the fused engine is called as users call it, with an
output given. All have one thread, or as many as `--threads` says; then the fused engine is there with one as well. (JAX
takes all cores of the process: `taskset -c 0` gives it one.)
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import itertools
import os
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import interlux as ix
from interlux.runtime.fused import target as targets
from interlux.runtime.fused.llvm import I64, PTR, Module, assemble, load, type_of

WINDOW = 0.004  # seconds


class LeNet(nn.Module):
    """LeCun et al. 1998, on 28x28 images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.head = nn.Sequential(nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.first(x)), 2)
        x = functional.max_pool2d(functional.relu(self.second(x)), 2)
        return self.head(x.flatten(1))


class Block(nn.Module):
    """A residual block of two 3x3 convolutions; with another number of channels it halves the image."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        stride = 1 if out == channels else 2
        self.first, self.norm1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.second, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.short = nn.Identity() if stride == 1 else nn.Conv2d(channels, out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.first(x)))
        return functional.relu(self.norm2(self.second(y)) + self.short(x))


def residual() -> nn.Module:
    """ResNet-20 (He et al. 2015): 272,000 parameters, 32x32 images."""
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Block(a, b) for a, b in itertools.pairwise(widths)]
    start = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*start, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(32, 64, batch_first=True), nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Classifier(nn.Module):
    """Two blocks of a transformer on 16 tokens."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, activation="gelu", norm_first=True)
        self.table, self.place = nn.Embedding(50, 64), nn.Parameter(torch.randn(16, 64))
        self.blocks, self.head = nn.TransformerEncoder(block, 2, enable_nested_tensor=False), nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.table(x) + self.place).mean(1))


def perceptron(*sizes: int, activation: Callable[[], nn.Module]) -> nn.Module:
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


def _floats(*shape: int) -> Callable[[int], torch.Tensor]:
    return lambda batch: torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))


# name: (module, inputs, multiplications of a sample, {batch: times faster than the best peer that is asked for})
NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], torch.Tensor], float, dict[int, float]]] = {
    "mlp-4-32-32-2": (
        lambda: perceptron(4, 32, 32, 2, activation=nn.Tanh), _floats(4), 1216, {1: 20, 32: 7, 1024: 2.5}
    ),
    "mlp-128-256-256-10": (
        lambda: perceptron(128, 256, 256, 10, activation=nn.ReLU), _floats(128), 100864,
        {1: 2.5, 8: 1.5, 64: 1.15, 1024: 1.0},
    ),
    "lenet": (LeNet, _floats(1, 28, 28), 281640, {1: 3.5, 64: 3, 1024: 3.5}),
    "gru": (Recurrent, _floats(100, 32), 1843456, {1: 3, 32: 1.5}),
    "transformer": (Classifier, lambda batch: torch.randint(0, 50, (batch, 16)), 1115000, {1: 2}),
    "resnet": (residual, _floats(3, 32, 32), 40.8e6, {1: 1.5, 32: 1.2}),
}  # fmt: skip


def peak() -> float:
    """Multiply-adds of this core in a nanosecond: 20 independent chains."""
    target = targets.host()
    module = Module(target)
    f = module.function("run", [("x", PTR), ("n", I64)])
    element, lanes = type_of("float32"), target.lanes("float32")
    x = f["x"].of(element)
    factor, start = f.load(x, lanes), f.load(x + lanes, lanes)
    chains = [f.variable(start) for _ in range(20 if target.registers > 16 else 10)]
    with f.loop(0, f["n"]):
        for chain in chains:
            chain.set(f.fma(chain.get(), factor, start))
    for i, chain in enumerate(chains):
        f.store(chain.get(), x + (i + 2) * lanes)
    f.ret()
    library = load(assemble(module.text(), target), ["run"])
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(library.address("run"))
    memory = np.full(64 * 32, 0.5, np.float32)
    rounds = 100_000
    function(memory.ctypes.data, rounds)
    times = []
    for _ in range(20):
        begin = time.perf_counter_ns()
        function(memory.ctypes.data, rounds)
        times.append(time.perf_counter_ns() - begin)
    return rounds * len(chains) * lanes / min(times)


def fused(model: ix.Model, x: np.ndarray, threads: int) -> Callable[[], Any]:
    runner = ix.compile(model, backend="fused", threads=threads)
    call = runner.entry.call  # type: ignore[attr-defined]
    (y,) = call(x)
    out = np.empty_like(y)
    return lambda: call(x, out=out)


def onnxruntime(model: ix.Model, x: np.ndarray, threads: int) -> Callable[[], Any]:
    import tempfile
    from pathlib import Path

    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ix.to_onnx(model, path)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(x))
    binding.bind_ortvalue_output(session.get_outputs()[0].name, ort.OrtValue.ortvalue_from_numpy(np.empty_like(y)))
    return lambda: session.run_with_iobinding(binding)


def eager(module: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return module(x)

    return run


def compiled_torch(module: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    """torch.compile with its own C++ code, which needs a compiler."""
    torch._dynamo.reset()
    function = torch.compile(module, dynamic=False)

    def run() -> Any:
        with torch.inference_mode():
            return function(x)

    run()
    return run


def openvino(model: ix.Model, x: np.ndarray, threads: int) -> Callable[[], Any]:
    import tempfile
    from pathlib import Path

    import openvino as ov

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ix.to_onnx(model, path)
        options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        ready = ov.Core().compile_model(path, "CPU", {**options, "INFERENCE_PRECISION_HINT": "f32"})
    request = ready.create_infer_request()
    request.set_input_tensor(ov.Tensor(x, shared_memory=True))
    return request.infer


def available() -> list[str]:
    """The peers that are installed; torch.compile only beside a C++ compiler."""
    found = ["onnxruntime", "eager", "jax"]
    if shutil.which(os.environ.get("CXX", "g++")):
        found.append("compile")
    return [*found, *(["openvino"] if importlib.util.find_spec("openvino") else [])]


def jax_jit(model: ix.Model, x: np.ndarray) -> Callable[[], Any]:
    import jax

    layer, params, states = model
    function = jax.jit(lambda params, x: layer.apply(params, states, x)[0])
    arrays, given = jax.device_put(params), jax.device_put(x)
    return lambda: jax.block_until_ready(function(arrays, given))


def windows(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds for a call, of each contender in each of its windows; contenders take turns."""
    counts = {}
    for name, call in contenders.items():
        for _ in range(3):
            call()
        begin = time.perf_counter()
        call()
        counts[name] = max(1, int(WINDOW / max(time.perf_counter() - begin, 1e-7)))
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            begin = time.perf_counter()
            for _ in range(counts[name]):
                call()
            found[name].append((time.perf_counter() - begin) / counts[name])
    return found


def check_names(parser: argparse.ArgumentParser, given: Sequence[str], known: Iterable[str]) -> None:
    """Ends the program with an error for a name that is not there."""
    for name in given:
        if name not in known:
            parser.error(f"there is no {name!r}; choose from {', '.join(known)}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks fused", description=__doc__)
    parser.add_argument("nets", nargs="*", help=f"of {', '.join(NETS)}; all by default")
    parser.add_argument(
        "--peers",
        default=",".join(available()),
        help="those that are installed, of onnxruntime, eager, compile, openvino, jax",
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    check_names(parser, options.nets, NETS)
    threads = options.threads
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    rate = peak()
    print(f"peak of this core: {2 * rate:.0f} GFLOP/s")
    missed = 0
    for name in options.nets or NETS:
        make, inputs, work, wanted = NETS[name]
        torch.manual_seed(0)
        module = make().eval()
        model = ix.from_torch(module, (inputs(4),))
        for batch in options.batch or wanted:
            x = inputs(batch)
            array = x.numpy()
            contenders = {"fused": fused(model, array, threads)}
            if threads > 1:
                contenders["fused 1T"] = fused(model, array, 1)
            peers = {
                "onnxruntime": lambda model=model, array=array: onnxruntime(model, array, threads),
                "eager": lambda module=module, x=x: eager(module, x),
                "compile": lambda module=module, x=x: compiled_torch(module, x),
                "openvino": lambda model=model, array=array: openvino(model, array, threads),
                "jax": lambda model=model, array=array: jax_jit(model, array),
            }
            contenders |= {peer: peers[peer]() for peer in options.peers.split(",") if peer}
            found = windows(contenders, options.rounds)
            best = {c: min(times) * 1e6 for c, times in found.items()}
            middle = {c: statistics.median(times) * 1e6 for c, times in found.items()}
            ratio = min((t for c, t in best.items() if not c.startswith("fused")), default=0) / best["fused"]
            share = work * batch / (best["fused"] * 1000) / (rate * threads)
            target = wanted.get(batch, 0)
            missed += ratio < target
            times = " | ".join(f"{c} {best[c]:.2f} ({middle[c]:.2f})" for c in found)
            print(f"{name} {batch}: {times} us; {ratio:.2f}x, asked {target}x; {share:.0%} of the peak", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
