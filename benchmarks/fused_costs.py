"""What the fused engine costs beside its calls: compiling, loading what is compiled, and memory.

Each time is that of `ix.compile` and a first call in a process of its own, after all imports, the least and the median
of some processes: `cold` with an empty cache (and `once` of it for code that all models share), `cached` in a new
process, `again` in one that has loaded a model before. Memory is in multiples of the model's parameters: `packed` are
they as the code reads them, `scratch` is what one thread works in, `code` is machine code.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

BUDGETS = {"cold": 150.0, "cached": 2.0, "again": 2.0}  # milliseconds
ROOT = Path(__file__).resolve().parent.parent


def child(folder: str) -> None:
    """Prints the times and sizes of a saved model as JSON."""
    import interlux as ix
    from interlux.ir import trees
    from interlux.runtime.fused import engine, llvm, native  # noqa: F401  imports are not what is measured

    llvm.binding()
    compile = ix.compile
    model = ix.load(folder)
    (spec,) = model.require_signature().inputs
    x = np.zeros((1, *(d for d in (spec.shape or ())[1:] if isinstance(d, int))), spec.dtype)
    begin = time.perf_counter()
    native.library()
    once = time.perf_counter()
    shared = _stored()
    resumed = time.perf_counter()
    runner = compile(model, backend="fused", threads=1)
    runner(x)
    first = time.perf_counter()
    again = compile(model, backend="fused", threads=1)
    again(x)
    second = time.perf_counter()
    own = runner.native  # type: ignore[attr-defined]
    print(
        json.dumps(
            {
                "once": (once - begin) * 1e3,
                "first": (first - resumed + once - begin) * 1e3,
                "stored": _stored() - shared,
                "again": (second - first) * 1e3,
                "parameters": sum(np.asarray(array).nbytes for _, array in trees.leaves(model.params)),
                "packed": own.parameters.nbytes,
                "scratch": own.arena,
            }
        )
    )


def _stored() -> int:
    """Bytes in the cache."""
    return sum(file.stat().st_size for file in (Path(os.environ["INTERLUX_CACHE"]) / "fused").iterdir())


def run(folder: Path, cache: Path) -> dict[str, float]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "INTERLUX_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", f"from benchmarks.fused_costs import child; child({str(folder)!r})"]
    done = subprocess.run(command, env=env, cwd=ROOT, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    import torch

    import interlux as ix

    from .fused import NETS, check_names

    parser = argparse.ArgumentParser(prog="benchmarks fused_costs", description=__doc__)
    parser.add_argument("nets", nargs="*", help=f"of {', '.join(NETS)}; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    check_names(parser, options.nets, NETS)
    missed = 0
    with tempfile.TemporaryDirectory() as room:
        for name in options.nets or NETS:
            make, inputs, _, _ = NETS[name]
            torch.manual_seed(0)
            folder = Path(room) / name
            ix.save(ix.from_torch(make().eval(), (inputs(4),)), folder)
            times: dict[str, list[float]] = {"cold": [], "once": [], "cached": [], "again": []}
            for i in range(options.rounds):
                cache = Path(room) / f"cache-{name}-{i}"
                cold, cached = run(folder, cache), run(folder, cache)
                times["cold"].append(cold["first"])
                times["once"].append(cold["once"])
                times["cached"].append(cached["first"])
                times["again"].append(cached["again"])
            shown = ", ".join(f"{n} {min(t):.1f} ({statistics.median(t):.1f})" for n, t in times.items())
            sizes = {"packed": cached["packed"], "scratch": cached["scratch"], "code": cold["stored"] - cold["packed"]}
            part = ", ".join(f"{n} {size / cached['parameters']:.2f}" for n, size in sizes.items())
            print(f"{name}: {shown} ms; parameters {cached['parameters'] / 1e3:.1f} kB, {part}", flush=True)
            for which in (n for n, most in BUDGETS.items() if min(times[n]) > most):
                print(f"{name}: {which} is over its {BUDGETS[which]:g} ms")
                missed = 1
    return missed


if __name__ == "__main__":
    sys.exit(main())
