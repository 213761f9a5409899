"""Models exported to C: compiled by this machine's compiler, run, and compared with the engine bit for bit."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import json
import platform
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

pytest.importorskip("llvmlite")

import interlux as ix
from interlux.ir.errors import InvalidModelError, UnsupportedError
from interlux.ir.model import Dimension, Model
from interlux.runtime.fused import export
from interlux.runtime.fused import target as targets
from interlux.runtime.fused.csource import translated
from interlux.runtime.fused.export_names import comment, identifier, is_name, name_like
from interlux.runtime.fused.llvm import F32, I64, PTR, Module

CC = shutil.which("cc")
needs_cc = pytest.mark.skipif(CC is None, reason="no C compiler")
TARGETS = [t.name for t in targets.executable()]
BATCHES = (0, 1, 3, 17, 70)
STRICT = ["-O2", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"]
SAME_ROUNDING = platform.machine() in ("x86_64", "aarch64")  # C computes float in float, as the scalar target does


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.start, self.norm = nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(channels, 5)

    def forward(self, x):
        x = functional.relu(self.norm(self.start(x)))
        x = functional.relu(self.second(functional.relu(self.first(x))) + x)
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 8)
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.block, self.head = nn.TransformerEncoder(block, 1, enable_nested_tensor=False), nn.Linear(8, 3)

    def forward(self, x):
        return functional.log_softmax(self.head(self.block(self.table(x)).mean(1)), -1)


class Several(nn.Module):
    """Inputs and outputs of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.left, self.right = nn.Embedding(9, 4), nn.Linear(6, 4), nn.Linear(4, 6)

    def forward(self, rows, x):
        y = functional.silu(self.table(rows) + self.left(x))
        return y, self.right(y).reshape(-1, 2, 3), y.sum(1, keepdim=True)


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 19), nn.LayerNorm(19), nn.GELU(), nn.Linear(19, 11), nn.Softmax(-1))


def functions() -> nn.Module:
    """Elementary functions one after the other, and a recurrent layer."""
    kinds = (nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Mish, nn.ELU, nn.Hardswish, nn.GELU, nn.LogSigmoid, nn.Softsign)
    return nn.Sequential(*(part for kind in kinds for part in (nn.Linear(6, 6), kind())))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm = nn.GRU(3, 5, batch_first=True), nn.LSTM(5, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(self.gru(x)[0])[0]


# name -> module, shapes of a sample's inputs; an integer in place of sizes: row numbers below it
MODELS: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]], list[int], torch.dtype]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2)), [(4,)], [0], torch.float32),
    "lenet": (lenet, [(1, 28, 28)], [0], torch.float32),
    "residual": (lambda: Residual(8), [(3, 8, 9)], [0], torch.float32),
    "normalized": (normalized, [(7,)], [0], torch.float32),
    "normalized64": (normalized, [(7,)], [0], torch.float64),
    "functions": (functions, [(6,)], [0], torch.float32),
    "functions64": (functions, [(6,)], [0], torch.float64),
    "recurrent": (Recurrent, [(5, 3)], [0], torch.float32),
    "tokens": (Tokens, [(6,)], [30], torch.float32),
    "several": (Several, [(), (6,)], [9, 0], torch.float32),
    "several64": (Several, [(), (6,)], [9, 0], torch.float64),
}


@functools.cache
def made(name: str) -> tuple[Model, nn.Module]:
    """A model that takes any batch, and the module that it came from."""
    module, shapes, rows, dtype = MODELS[name]
    torch.manual_seed(0)
    net = module().eval().to(dtype)
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.data.uniform_(0.5, 1.5)
    examples = tuple(
        torch.randint(0, n, (3, *shape)) if n else torch.randn(3, *shape, dtype=dtype)
        for shape, n in zip(shapes, rows, strict=True)
    )
    return any_batch(ix.from_torch(net, examples)), net


def any_batch(model: Model, batch: Dimension | None = None) -> Model:
    signature = model.require_signature()
    dims = {name: batch or Dimension(0) for name in signature.dims}
    return dataclasses.replace(model, signature=dataclasses.replace(signature, dims=dims))


def inputs_of(name: str, batch: int, seed: int = 0) -> list[np.ndarray]:
    _, shapes, rows, dtype = MODELS[name]
    generator = np.random.default_rng(seed)
    floats = np.float64 if dtype == torch.float64 else np.float32
    return [
        generator.integers(0, n, (batch, *shape)) if n else generator.standard_normal((batch, *shape)).astype(floats)
        for shape, n in zip(shapes, rows, strict=True)
    ]


def example_inputs(model: Model, batch: int) -> list[np.ndarray]:
    """What main.c gives the model."""
    found = []
    for spec in model.require_signature().inputs:
        shape = tuple(batch if not isinstance(size, int) else size for size in spec.shape or ())
        i = np.arange(int(np.prod(shape)))
        if spec.dtype.startswith("float"):
            found.append(((i % 17 - 8) / 8).astype(spec.dtype).reshape(shape))
        else:
            low, high = spec.bounds or (0, 0)
            found.append((low + i % min(high - low + 1, 1000)).astype(spec.dtype).reshape(shape))
    return found


def cc(folder: Path, *arguments: str | Path) -> Path:
    """Compiles strictly; returns the program."""
    assert CC is not None
    program = folder / "program"
    command = [CC, *STRICT, "-o", program, *arguments, "-lm"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    return program


def printed(program: Path, outputs: list[np.dtype], *arguments: object) -> list[np.ndarray]:
    """The numbers that an example prints, by output."""
    command = [str(program), *map(str, arguments)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    rows: dict[str, list[list[float]]] = {}
    for line in lines:
        name, _, numbers = line.partition(":")
        rows.setdefault(name.split()[0], []).append([float(n) for n in numbers.split()])
    return [np.array(values, dtype) for values, dtype in zip(rows.values(), outputs, strict=True)]


def load(folder: Path, name: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(folder / f"lib{name}.so"))


def call(
    library: ctypes.CDLL, name: str, inputs: list[np.ndarray], outputs: list[np.ndarray], batch: int | None
) -> int:
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*inputs, *outputs)]
    last = [] if batch is None else [ctypes.c_int64(batch)]
    return int(getattr(library, f"{name}_run")(*pointers, *last))


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


@needs_cc
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_objects_agree_with_the_engine_bit_for_bit(name, target, tmp_path):
    model, _ = made(name)
    engine = ix.compile(model, backend="fused", target=target, threads=1)
    folder = tmp_path / "out"
    files = ix.to_c(model, folder, target, name="net")
    names = {"net.o", "libnet.so", "net.h", "main.c", "CMakeLists.txt", "interlux.json"}
    assert {f.name for f in files} == names == {f.name for f in folder.iterdir()}

    program = cc(tmp_path, folder / "main.c", folder / "net.o")
    for batch in (1, 17):
        expected = engine(*example_inputs(model, batch))
        found = printed(program, [y.dtype for y in expected], batch)
        assert all(same(a, b.reshape(batch, -1)) for a, b in zip(found, expected, strict=True))

    library = load(folder, "net")
    for batch in BATCHES:
        given = inputs_of(name, batch, batch)
        expected = engine(*given)
        outputs = [np.full_like(y, 7) for y in expected]
        assert call(library, "net", given, outputs, batch) == 0
        assert all(same(a, b) for a, b in zip(outputs, expected, strict=True)), batch


@needs_cc
@pytest.mark.parametrize("source", [False, True])
def test_weights_in_bfloat16(source, tmp_path):
    model, _ = made("mlp")
    ix.to_c(model, tmp_path / "out", name="net", source=source, weights="bfloat16")
    if source:
        cc(tmp_path / "out", "-shared", "-fPIC", tmp_path / "out" / "net.c", "-o", tmp_path / "out" / "libnet.so")
    engine = ix.compile(model, "fused", threads=1, target="scalar" if source else None, weights="bfloat16")
    given = inputs_of("mlp", 17)
    expected = engine(*given)
    outputs = [np.full_like(y, 7) for y in expected]
    assert call(load(tmp_path / "out", "net"), "net", given, outputs, 17) == 0
    for a, b in zip(outputs, expected, strict=True):
        assert np.allclose(a, b, rtol=1e-5, atol=1e-6) if source else same(a, b)


@needs_cc
def test_this_machine_is_the_default(tmp_path):
    model, _ = made("mlp")
    ix.to_c(model, tmp_path / "mlp")
    ix.to_c(model, tmp_path / "again", "host", name="mlp")
    objects = [(tmp_path / folder / "mlp.o").read_bytes() for folder in ("mlp", "again")]
    assert objects[0] == objects[1]
    x = inputs_of("mlp", 33)[0]
    (y,) = ix.compile(model, backend="fused", threads=1)(x)
    made_ = np.zeros_like(y)
    assert call(load(tmp_path / "mlp", "mlp"), "mlp", [x], [made_], 33) == 0
    assert same(made_, y)
    cpu = re.search(r"code for (\w+), processor ([\w-]+);", (tmp_path / "mlp" / "mlp.h").read_text())
    assert cpu is not None and cpu.groups() == (targets.host().name, targets.host().cpu)


@needs_cc
@pytest.mark.parametrize("name", MODELS)
def test_c_source_is_as_exact_as_the_engine(name, tmp_path):
    """Within 4 times the error of PyTorch; where C rounds as the engine's scalar code does, the bits are the same.

    The vectorised code adds in another order and fuses multiplications with additions, so its bits differ.
    """
    model, net = made(name)
    ix.to_c(model, tmp_path / "out", name="net", source=True)
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "CMakeLists.txt", "interlux.json", "main.c", "net.c", "net.h",
    ]  # fmt: skip
    assert CC is not None
    shared = [CC, *STRICT, "-ffp-contract=off", "-shared", "-fPIC", "-o", "libnet.so", "net.c", "-lm"]
    done = subprocess.run(shared, cwd=tmp_path / "out", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    scalar = ix.compile(model, backend="fused", target="scalar", threads=1)
    library = load(tmp_path / "out", "net")
    for batch in BATCHES:
        given = inputs_of(name, batch, batch)
        expected = scalar(*given)
        outputs = [np.full_like(y, 7) for y in expected]
        assert call(library, "net", given, outputs, batch) == 0
        if SAME_ROUNDING:
            assert all(same(a, b) for a, b in zip(outputs, expected, strict=True)), batch
        if batch:
            check_exact(net, given, outputs)

    program = cc(tmp_path, "-ffp-contract=off", tmp_path / "out" / "main.c", tmp_path / "out" / "net.c")
    expected = scalar(*example_inputs(model, 5))
    found = printed(program, [y.dtype for y in expected], 5)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b.reshape(5, -1), rtol=1e-4, atol=1e-6)
        assert not SAME_ROUNDING or same(a, b.reshape(5, -1))


def check_exact(net: nn.Module, given: list[np.ndarray], outputs: list[np.ndarray]) -> None:
    tensors = [torch.from_numpy(x) for x in given]
    with torch.inference_mode():
        plain = net(*tensors)
        kind = next(net.parameters()).dtype
        exact = net.double()(*(x.double() if x.is_floating_point() else x for x in tensors))
        net.to(kind)
    several = isinstance(plain, tuple)
    for y, own, truth in zip(outputs, plain if several else [plain], exact if several else [exact], strict=True):
        reference, size = np.linalg.norm(own.numpy() - truth.numpy()), np.linalg.norm(truth.numpy())
        floor = (2.0**-53 if y.dtype == np.float64 else 2.0**-24) * 8 * size
        assert np.linalg.norm(y - truth.numpy()) <= 4 * max(reference, floor)


@needs_cc
def test_c_source_with_typed_access_and_without_optimisation(tmp_path):
    model, _ = made("several")
    ix.to_c(model, tmp_path / "net", source=True)
    expected = ix.compile(model, backend="fused", target="scalar", threads=1)(*example_inputs(model, 4))
    for options in (["-fno-strict-aliasing", "-DINTERLUX_TYPED_ACCESS"], ["-O0"], ["-O3"]):
        files = [tmp_path / "net" / "main.c", tmp_path / "net" / "net.c"]
        found = printed(cc(tmp_path, "-ffp-contract=off", *options, *files), [y.dtype for y in expected], 4)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b.reshape(4, -1), rtol=1e-5, atol=1e-6)
            assert not SAME_ROUNDING or same(a, b.reshape(4, -1))


@needs_cc
@pytest.mark.parametrize("name", ["functions", "functions64", "several", "tokens", "lenet"])
def test_c_source_has_no_undefined_behaviour(name, tmp_path):
    assert CC is not None
    options = ["-fsanitize=undefined,address", "-fno-sanitize-recover=all"]
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }")
    probe = subprocess.run([CC, *options, "empty.c"], cwd=tmp_path, capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("the C compiler has no sanitizers")
    ix.to_c(made(name)[0], tmp_path / "net", source=True)
    program = cc(tmp_path, *options, tmp_path / "net" / "main.c", tmp_path / "net" / "net.c")
    command, environment = [str(program), "5"], {"ASAN_OPTIONS": "detect_leaks=0"}  # finding leaks takes ptrace
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr[:3000]


@needs_cc
@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_row_numbers(kind, tmp_path):
    """Negative numbers count from the end; those that are no row give NaN."""
    layer = ix.layers.Embedding(5, 3)
    params, states = ix.setup(layer, 0)
    model = ix.Model.from_layer(layer, params, states, {"x": (kind, ("batch", 4))})
    rows = np.array([[0, 4, -1, -5], [5, -6, 2**31 - 1, -(2**31)]], kind)
    folder = tmp_path / "net"
    for source in (False, True):
        ix.to_c(model, folder, source=source)
        assert f"const {kind}_t *x" in (folder / "net.h").read_text()
        if source:
            assert CC is not None
            subprocess.run([CC, *STRICT, "-shared", "-fPIC", "-o", "libc99.so", "net.c", "-lm"], cwd=folder, check=True)
        (expected,) = ix.compile(model, backend="fused", target="scalar" if source else None)(rows)
        y = np.zeros_like(expected)
        assert call(load(folder, "c99" if source else "net"), "net", [rows], [y], 2) == 0
        np.testing.assert_array_equal(y, expected)
        assert np.isnan(y[1]).all() and not np.isnan(y[0]).any()
        if source:
            (folder / "libc99.so").unlink()


@needs_cc
def test_c_source_refuses_fast_math(tmp_path):
    ix.to_c(made("mlp")[0], tmp_path / "net", source=True)
    assert CC is not None
    command = [CC, "-ffast-math", "-c", "net.c", "-o", "net.o"]
    done = subprocess.run(command, cwd=tmp_path / "net", capture_output=True, text=True, check=False)
    assert done.returncode and "IEEE 754" in done.stderr


@needs_cc
@pytest.mark.parametrize("source", [False, True])
def test_two_models_in_one_program(source, tmp_path):
    names = ("mlp", "normalized")
    for name in names:
        ix.to_c(made(name)[0], tmp_path / name, source=source)
    (tmp_path / "both.c").write_text(
        """#include <stdio.h>
#include "mlp.h"
#include "normalized.h"
int main(void)
{
    float x[3 * MLP_INPUT_INPUT_SIZE], y[3 * MLP_OUTPUT_OUTPUT_SIZE];
    float u[3 * NORMALIZED_INPUT_INPUT_SIZE], v[3 * NORMALIZED_OUTPUT_OUTPUT_SIZE];
    int i;
    for (i = 0; i < 3 * MLP_INPUT_INPUT_SIZE; i++) x[i] = (float)(i % 17 - 8) / 8;
    for (i = 0; i < 3 * NORMALIZED_INPUT_INPUT_SIZE; i++) u[i] = (float)(i % 17 - 8) / 8;
    if (mlp_run(x, y, 3) || normalized_run(u, v, 3)) return 1;
    if (mlp_arena_bytes() != MLP_ARENA_BYTES || normalized_arena_bytes() != NORMALIZED_ARENA_BYTES) return 2;
    for (i = 0; i < 3 * MLP_OUTPUT_OUTPUT_SIZE; i++) printf("a: %.9g\\n", y[i]);
    for (i = 0; i < 3 * NORMALIZED_OUTPUT_OUTPUT_SIZE; i++) printf("b: %.9g\\n", v[i]);
    return 0;
}
"""
    )
    files = [tmp_path / name / f"{name}.{'c' if source else 'o'}" for name in names]
    includes = [f"-I{tmp_path / name}" for name in names]
    program = cc(tmp_path, "-ffp-contract=off", *includes, "both.c", *files)
    found = printed(program, [np.dtype(np.float32)] * 2)
    for name, values in zip(names, found, strict=True):
        model = made(name)[0]
        runner = ix.compile(model, backend="fused", target="scalar" if source else None, threads=1)
        (expected,) = runner(*example_inputs(model, 3))
        assert (source and not SAME_ROUNDING) or same(values.ravel(), expected.ravel())


@pytest.mark.parametrize("target", TARGETS)
def test_objects_need_nothing_but_libm(target, tmp_path):
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm")
    math = "fmod floor ceil trunc rint nearbyint roundeven round sqrt fabs copysign fma".split()  # noqa: SIM905
    allowed = {"memcpy", "memset", "memmove", *math, *(f"{word}f" for word in math)}
    for name in ("lenet", "functions", "functions64", "tokens"):
        folder = tmp_path / name
        ix.to_c(made(name)[0], folder, target, name="net")
        lines = subprocess.run(
            [nm, "net.o"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        missing = {line.split()[-1] for line in lines if " U " in line}
        assert missing <= allowed
        # nothing else is seen from outside, and nothing is written to
        assert {line.split()[-1] for line in lines if re.search(r" [A-TV-Z] ", line)} == {
            "net_run", "net_run_in", "net_arena_bytes", "net_version",
        }  # fmt: skip
        assert not [line for line in lines if re.search(r" [dDbBcC] ", line)]


@pytest.mark.parametrize("target", ["avx512", "avx2", "sse2", "neon", "scalar"])
def test_objects_are_for_their_target(target, tmp_path):
    for name in ("mlp", "lenet", "several64"):
        files = {f.name: f for f in ix.to_c(made(name)[0], tmp_path / name, target)}
        raw = files[f"{name}.o"].read_bytes()
        kind, machine = struct.unpack_from("<HH", raw, 16)
        assert raw[:5] == b"\x7fELF\x02" and kind == 1  # relocatable
        triple = targets.named(target).triple
        assert machine == {"x86_64": 62, "aarch64": 183}[triple.partition("-")[0]]
        if triple.partition("-")[0] != targets.host().triple.partition("-")[0]:
            assert f"lib{name}.so" not in files
            assert f"There is no lib{name}.so: it is for {triple.partition('-')[0]}" in files[f"{name}.h"].read_text()


def test_without_a_compiler_there_is_no_library(tmp_path, monkeypatch):
    monkeypatch.setattr(export.shutil, "which", lambda name: None)
    files = {f.name for f in ix.to_c(made("mlp")[0], tmp_path / "mlp")}
    assert "mlp.o" in files and "libmlp.so" not in files
    assert "There is no libmlp.so: there was no C compiler" in (tmp_path / "mlp" / "mlp.h").read_text()


@needs_cc
@pytest.mark.parametrize("source", [False, True])
def test_what_is_wrong_is_a_number(source, tmp_path):
    model = any_batch(made("mlp")[0], Dimension(2, 8, 2))
    ix.to_c(model, tmp_path / "net", source=source)
    if source:
        assert CC is not None
        command = [CC, *STRICT, "-shared", "-fPIC", "-o", "libnet.so", "net.c", "-lm"]
        subprocess.run(command, cwd=tmp_path / "net", check=True)
    library = load(tmp_path / "net", "net")
    library.net_version.restype = ctypes.c_char_p
    library.net_arena_bytes.restype = ctypes.c_size_t
    head = (tmp_path / "net" / "net.h").read_text()
    constants = dict(re.findall(r'^#define NET_(\w+) "?([^"\n]*?)"?(?: /\*.*)?$', head, re.MULTILINE))
    assert library.net_version().decode() == constants["VERSION"]
    assert library.net_arena_bytes() == int(constants["ARENA_BYTES"])
    assert [constants[f"BATCH_{word}"] for word in ("MINIMUM", "MAXIMUM", "MULTIPLE_OF")] == ["2", "8", "2"]
    x, y = np.ones((9, 4), np.float32), np.full((9, 2), 7, np.float32)
    error = {word: int(constants[f"ERROR_{word}"]) for word in ("POINTER", "BATCH", "ARENA")}
    for batch in (-1, 0, 1, 3, 9, 10, -(2**63)):
        assert call(library, "net", [x], [y], batch) == error["BATCH"]
    null, address = ctypes.c_void_p(None), ctypes.c_void_p(x.ctypes.data)
    assert library.net_run(null, address, ctypes.c_int64(2)) == error["POINTER"]
    assert library.net_run(address, null, ctypes.c_int64(2)) == error["POINTER"]
    assert library.net_run(ctypes.c_void_p(x.ctypes.data + 1), address, ctypes.c_int64(2)) == error["POINTER"]
    arguments = (address, ctypes.c_void_p(y.ctypes.data), ctypes.c_int64(2))
    assert library.net_run_in(*arguments, null) == error["ARENA"]
    alignment, size = int(constants["ARENA_ALIGNMENT"]), int(constants["ARENA_BYTES"])
    room = np.full(size + 3 * alignment, 255, np.uint8)
    start = -room.ctypes.data % alignment + alignment
    assert library.net_run_in(*arguments, ctypes.c_void_p(room.ctypes.data + start + 4)) == error["ARENA"]
    assert (y == 7).all() and (room == 255).all()
    assert library.net_run_in(*arguments, ctypes.c_void_p(room.ctypes.data + start)) == 0
    assert (y[:2] != 7).all() and (y[2:] == 7).all()
    assert (room[:start] == 255).all() and (room[start + size :] == 255).all()


@needs_cc
@pytest.mark.parametrize("source", [False, True])
def test_a_model_without_a_batch(source, tmp_path):
    net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).eval()
    model = ix.from_torch(net, (torch.zeros(1, 2, 5),), dynamic_shapes=None)
    assert not model.require_signature().dims
    ix.to_c(model, tmp_path / "net", source=source)
    assert "int net_run(const float *input, float *output);" in (tmp_path / "net" / "net.h").read_text()
    target = "scalar" if source else None
    (expected,) = ix.compile(model, backend="fused", target=target)(*example_inputs(model, 1))
    files = [tmp_path / "net" / "main.c", tmp_path / "net" / f"net.{'c' if source else 'o'}"]
    (found,) = printed(cc(tmp_path, "-ffp-contract=off", *files), [np.dtype(np.float32)])
    assert (source and not SAME_ROUNDING) or same(found.ravel(), expected.ravel())


@needs_cc
@pytest.mark.parametrize("source", [False, True])
def test_a_large_arena_is_the_callers(source, tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.Tanh(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten())  # fmt: skip
    torch.manual_seed(0)
    model = ix.from_torch(net.eval(), (torch.zeros(2, 1, 110, 110),))
    ix.to_c(model, tmp_path / "net", source=source)
    head = (tmp_path / "net" / "net.h").read_text()
    assert "There is no net_run:" in head and "int net_run_in(" in head and "int net_run(" not in head
    runner = ix.compile(model, backend="fused", target="scalar" if source else None, threads=1)
    (expected,) = runner(*example_inputs(model, 2))
    files = [tmp_path / "net" / "main.c", tmp_path / "net" / f"net.{'c' if source else 'o'}"]
    (found,) = printed(cc(tmp_path, "-ffp-contract=off", *files), [np.dtype(np.float32)], 2)
    assert (source and not SAME_ROUNDING) or same(found, expected)


HOSTILE = (
    "*/ int evil(void); /*", 'a"b\\', "int", "x\n#error y", "%s%n", "batch", "ARENA", "arena", "??/", "模型", "9 lives",
    "errno", "NULL", "", "Ünï", "a" * 300, "net_run_in", "ix__run", "$(rm)", "\x00",
)  # fmt: skip


@needs_cc
@pytest.mark.parametrize("source", [False, True])
def test_awkward_names(source, tmp_path):
    class Sum(nn.Module):
        def forward(self, *xs):
            return sum(x * (i + 1.5) for i, x in enumerate(xs)), torch.tanh(xs[0])

    net = ix.from_torch(Sum(), tuple(torch.zeros(2, 3) for _ in HOSTILE))
    signature = net.require_signature()
    inputs = tuple(dataclasses.replace(s, name=n) for s, n in zip(signature.inputs, HOSTILE, strict=True))
    outputs = tuple(
        dataclasses.replace(s, name=n) for s, n in zip(signature.outputs, (HOSTILE[0], "double"), strict=True)
    )
    signature = dataclasses.replace(signature, inputs=inputs, outputs=outputs, in_structure=None)
    model = dataclasses.replace(net, signature=signature)
    folder = tmp_path / "a strange * näme"
    files = ix.to_c(model, folder, source=source)
    header = next(f for f in files if f.suffix == ".h")
    assert header.name == "a_strange_name.h"
    assert len(re.findall(r"evil", header.read_text())) >= 1  # in the comment and as part of identifiers
    code = folder / f"{header.stem}.{'c' if source else 'o'}"
    program = cc(tmp_path, "-ffp-contract=off", folder / "main.c", code)
    x = example_inputs(model, 2)
    expected = ix.compile(net, backend="fused", target="scalar" if source else None, threads=1)(*x)
    found = printed(program, [np.dtype(np.float32)] * 2)
    for a, b in zip(found, expected, strict=True):
        assert (source and not SAME_ROUNDING) or same(a, b)


def test_names_become_identifiers():
    taken = {"batch"}
    found = [identifier(name, taken) for name in (*HOSTILE, *HOSTILE)]
    assert len(set(found)) == len(found) and "batch" not in found
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) and "__" not in name for name in found)
    for name in HOSTILE:
        assert is_name(name_like(name))
        shown = comment(name)
        assert shown.isascii() and shown.isprintable() and not re.search(r"\*/|/\*|\?\?", shown)
    assert [name_like(name) for name in ("math", "main", "M", "stdio", "ix", "int", "3d", "LeNet-5")] == [
        "math_model", "main_model", "M_model", "stdio_model", "ix", "int", "n3d", "LeNet_5",
    ]  # fmt: skip


def test_folders(tmp_path):
    model, _ = made("mlp")
    folder = tmp_path / "made" / "on" / "the" / "way"
    ix.to_c(model, folder)
    ix.to_c(model, folder, source=True)  # replaces what is there
    assert sorted(f.name for f in folder.iterdir()) == ["CMakeLists.txt", "interlux.json", "main.c", "way.c", "way.h"]
    (folder / "mine.c").write_text("int mine;")
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    with pytest.raises(InvalidModelError, match=r"holds 'mine.c', not written by an export"):
        ix.to_c(model, folder)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    (tmp_path / "empty").mkdir()
    ix.to_c(model, tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidModelError, match="is no folder"):
        ix.to_c(model, tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(InvalidModelError, match="is a link"):
        ix.to_c(model, tmp_path / "link")
    for text in ("[]", "{", json.dumps({"format": "interlux C export", "files": 3}), json.dumps({"format": "other"})):
        (tmp_path / "empty" / "interlux.json").write_text(text)
        with pytest.raises(InvalidModelError, match="not written by an export"):
            ix.to_c(model, tmp_path / "empty")
    assert not list(tmp_path.rglob(".*"))  # nothing temporary is left


def test_an_edited_export_is_kept(tmp_path):
    model, _ = made("mlp")
    ix.to_c(model, tmp_path / "net", source=True)
    (tmp_path / "net" / "main.c").write_text("/* mine */")
    with pytest.raises(InvalidModelError, match=r"holds 'main.c', not written by an export or changed since"):
        ix.to_c(model, tmp_path / "net", source=True)
    assert (tmp_path / "net" / "main.c").read_text() == "/* mine */"


def test_exports_to_one_folder_at_once(tmp_path):
    model, _ = made("mlp")
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(ix.to_c, model, tmp_path / "net", source=True) for _ in range(16)]
        assert all(len(future.result()) == 5 for future in done)
    assert [f.name for f in tmp_path.iterdir()] == ["net"] and len(list((tmp_path / "net").iterdir())) == 5


@pytest.mark.parametrize(("options", "what"), [
    ({"folder": None}, "cannot be the folder"),
    ({"folder": b"bytes"}, "cannot be the folder"),
    ({"folder": "null\0"}, "null character"),
    ({"folder": "a" * 300}, "cannot be written"),
    ({"folder": "file/x"}, "cannot be written"),
    ({"name": 3}, "cannot be a C identifier"),
    ({"name": "ix_"}, "single underscores inside"),
    ({"name": "net\n"}, "cannot be a C identifier"),
    ({"target": ["avx2"]}, "no target"),
    ({"target": ""}, "no target"),
    ({"target": 3}, "no target"),
    ({"source": "yes"}, "True or False"),
    ({"weights": 3}, "no weights in 3"),
    ({"model": "net"}, "to_c takes a Model"),
    ({"model": nn.Linear(2, 2)}, "to_c takes a Model"),
])  # fmt: skip
def test_a_wrong_argument_is_named_in_one_line(options, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises((InvalidModelError, UnsupportedError), match=what) as caught:
        ix.to_c(**{"model": made("mlp")[0], "folder": "net", **options})
    assert "\n" not in str(caught.value)
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


@needs_cc
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angles_of_any_size_in_c_source(dtype, tmp_path):
    class Angles(nn.Module):
        def forward(self, x):
            return torch.cat([x.sin(), x.cos(), x.tan()], 1)

    model = any_batch(ix.from_torch(Angles(), (torch.zeros(2, 3, dtype=dtype),)))
    ix.to_c(model, tmp_path / "net", source=True)
    command = [CC, *STRICT, "-ffp-contract=off", "-shared", "-fPIC", "-o", "libnet.so", "net.c", "-lm"]
    subprocess.run(command, cwd=tmp_path / "net", check=True)
    kind = torch.zeros(0, dtype=dtype).numpy().dtype
    rng = np.random.default_rng(0)
    largest = np.log10(np.finfo(kind).max)
    x = (rng.uniform(1, 9, (900, 3)) * 10 ** rng.uniform(-largest, largest - 1, (900, 3))).astype(kind)
    x[0] = np.inf, np.nan, np.finfo(kind).max
    x[1::2] *= -1
    (expected,) = ix.compile(model, backend="fused", target="scalar")(x)
    found = np.zeros_like(expected)
    assert call(load(tmp_path / "net", "net"), "net", [x], [found], len(x)) == 0
    np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-6)
    assert not SAME_ROUNDING or np.array_equal(found, expected, equal_nan=True)
    np.testing.assert_allclose(found[1:, :3], np.sin(x[1:].astype(np.float64)), rtol=0, atol=np.finfo(kind).eps)


def test_all_of_it_or_nothing(tmp_path, monkeypatch):
    model, _ = made("mlp")
    ix.to_c(model, tmp_path / "net")
    before = {f.name: f.read_bytes() for f in (tmp_path / "net").iterdir()}

    def interrupted(*args: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "assemble", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ix.to_c(model, tmp_path / "net")
    assert {f.name: f.read_bytes() for f in (tmp_path / "net").iterdir()} == before
    assert [f.name for f in tmp_path.iterdir()] == ["net"]


def test_same_model_same_bytes(tmp_path):
    for options in ({}, {"source": True}):
        made_ = []
        for folder in ("a", "b"):
            files = ix.to_c(made("several")[0], tmp_path / folder, name="net", **options)
            made_.append({f.name: f.read_bytes() for f in files})
        assert made_[0] == made_[1]


def test_options_that_do_not_fit(tmp_path, monkeypatch):
    model, _ = made("mlp")
    for name in ("9x", "a b", "", "a__b", "stdio", "x" * 64, "main"):
        with pytest.raises(InvalidModelError, match="cannot be a C identifier"):
            ix.to_c(model, tmp_path / "x", name=name)
    with pytest.raises(UnsupportedError, match="leave out the target"):
        ix.to_c(model, tmp_path / "x", "avx2", source=True)
    with pytest.raises(UnsupportedError, match="there is no target 'z80'"):
        ix.to_c(model, tmp_path / "x", "z80")
    monkeypatch.setattr(export, "LARGEST", 16)
    with pytest.raises(ix.ResourceLimitError, match="the weights take"):
        ix.to_c(model, tmp_path / "x")
    monkeypatch.undo()

    class Sorted(nn.Module):
        def forward(self, x):
            return torch.cumsum(x, 1)

    with pytest.raises(UnsupportedError, match="CumSum"):
        ix.to_c(ix.from_torch(Sorted(), (torch.zeros(2, 3),)), tmp_path / "x")
    assert not (tmp_path / "x").exists()


@needs_cc
@pytest.mark.parametrize("source", [False, True])
def test_cmake_builds_the_example(source, tmp_path):
    program = shutil.which("cmake")
    if program is None:
        pytest.skip("no cmake")
    model, _ = made("several")
    ix.to_c(model, tmp_path / "net", source=source)
    for command in (
        [program, "-S", "net", "-B", "build", "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_C_FLAGS=-Wall -Wextra -Werror"],
        [program, "--build", "build"],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    runner = ix.compile(model, backend="fused", target="scalar" if source else None, threads=1)
    expected = runner(*example_inputs(model, 2))
    found = printed(tmp_path / "build" / "net_example", [y.dtype for y in expected])
    for a, b in zip(found, expected, strict=True):
        assert (source and not SAME_ROUNDING) or same(a, b.reshape(2, -1))


@needs_cc
def test_many_threads_call_one_library(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    model, _ = made("residual")
    ix.to_c(model, tmp_path / "net")
    library = load(tmp_path / "net", "net")
    runner = ix.compile(model, backend="fused", threads=1)

    def work(seed: int) -> bool:
        given = inputs_of("residual", 20, seed)
        outputs = [np.zeros((20, 5), np.float32)]
        return call(library, "net", given, outputs, 20) == 0 and same(outputs[0], runner(*given)[0])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(32)))


def test_numbers_that_are_none(tmp_path):
    if CC is None:
        pytest.skip("no C compiler")
    net = nn.Sequential(nn.ReLU(), nn.Hardtanh(-2, 3), nn.Softplus()).eval()
    model = any_batch(ix.from_torch(net, (torch.zeros(2, 6),)))
    ix.to_c(model, tmp_path / "net", source=True)
    command = [CC, *STRICT, "-ffp-contract=off", "-shared", "-fPIC", "-o", "libnet.so", "net.c", "-lm"]
    subprocess.run(command, cwd=tmp_path / "net", check=True)
    x = np.array([[np.nan, np.inf, -np.inf, 1e-42, -0.0, 3e38]], np.float32)
    y = np.zeros_like(x)
    assert call(load(tmp_path / "net", "net"), "net", [x], [y], 1) == 0
    (expected,) = ix.compile(model, backend="fused", target="scalar")(x)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
    np.testing.assert_array_equal(y, expected)


def test_what_has_no_translation_is_named():
    module = Module(targets.named("scalar"))
    f = module.function("f", [("x", PTR), ("n", I64)])
    x = f["x"].of(F32)
    f.store(f.intrinsic("exp", f.load(x)), x)
    f.ret()
    with pytest.raises(UnsupportedError, match=r"no C for the intrinsic llvm\.exp\.f32"):
        translated(module.text())
    module = Module(targets.named("avx2"))
    f = module.function("f", [("x", PTR)])
    x = f["x"].of(F32)
    f.store(f.load(x, 8) * 2.0, x)
    f.ret()
    with pytest.raises(UnsupportedError, match="no C for"):
        translated(module.text())
