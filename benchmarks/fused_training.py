"""Whole training steps of the fused engine beside PyTorch and JAX: forward pass, backward pass and Adam.

Contenders take turns in windows of some milliseconds; the figures are the least and the median of their windows, in
microseconds for a step (for a sample, of LeNet). JAX is given twice: one jitted step with optax, and as many steps in a
fori_loop as a call of the fused engine makes: ten, a hundred of the smallest. Each contender is given with the number
of threads that it is fastest with; JAX takes what it wants. `taskset -c 0` gives one core to all.

    python -m benchmarks.fused_training [mlp-10000 mlp-64 lenet-2048 lenet-128 epochs]

`epochs` is the published example of SimpleChains: LeNet5 on 60,000 images of 28x28 for 10 epochs, end to end.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import interlux as ix
from interlux.runtime.fused.training import fused_trainer

from .fused import LeNet, check_names, perceptron

WINDOW = 0.006  # seconds
STEPS = {"mlp-64": 100}  # of one call, where a contender takes several; ten of the others
RATE = 1e-3

# name: (module, shape of a sample, batch, classes, times faster than JAX, than PyTorch, than the best of both)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int, tuple[float, float, float]]] = {
    "mlp-10000": (lambda: perceptron(4, 32, 16, 4, activation=nn.Tanh), (4,), 10_000, 0, (5, 12, 0)),
    "mlp-64": (lambda: perceptron(4, 32, 16, 4, activation=nn.Tanh), (4,), 64, 0, (8, 0, 0)),
    "lenet-2048": (LeNet, (1, 28, 28), 2048, 10, (0, 0, 10)),
    "lenet-128": (LeNet, (1, 28, 28), 128, 10, (0, 0, 6)),
}


def data(shape: tuple[int, ...], batch: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *shape)).astype(np.float32)
    y = rng.integers(0, classes, batch) if classes else rng.standard_normal((batch, 4)).astype(np.float32)
    return x, y


def fused(model: ix.Model, x: np.ndarray, y: np.ndarray, threads: int, steps: int) -> Callable[[], Any]:
    loss = "cross_entropy" if y.ndim == 1 else "mse"
    trainer = fused_trainer(model, loss, "adam", learning_rate=RATE, threads=threads)
    return lambda: trainer.run(x, y, steps=steps)


def eager(module: nn.Module, x: np.ndarray, y: np.ndarray, threads: int, **options: Any) -> Callable[[], Any]:
    loss = functional.cross_entropy if y.ndim == 1 else functional.mse_loss
    optimizer = torch.optim.Adam(module.parameters(), RATE, **options)
    inputs, targets = torch.tensor(x), torch.tensor(y)

    def step() -> None:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        optimizer.zero_grad(set_to_none=True)
        loss(module(inputs), targets).backward()
        optimizer.step()

    return step


def with_jax(model: ix.Model, x: np.ndarray, y: np.ndarray, steps: int) -> Callable[[], Any]:
    """One step, or several in a fori_loop."""
    import jax
    import jax.numpy as jnp
    import optax

    layer, params, states = model
    optimizer = optax.adam(RATE)
    inputs, targets = jnp.asarray(x), jnp.asarray(y)

    def loss(params: Any) -> Any:
        out = layer.apply(params, states, inputs, train=True)[0]
        if y.ndim == 1:
            return optax.softmax_cross_entropy_with_integer_labels(out, targets).mean()
        return jnp.mean((out - targets) ** 2)

    def step(_: Any, carry: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    run = jax.jit(lambda carry: step(0, carry) if steps == 1 else jax.lax.fori_loop(0, steps, step, carry))
    carry = [(jax.device_put(params), optimizer.init(params))]

    def call() -> None:
        carry[0] = jax.block_until_ready(run(carry[0]))

    return call


def windows(contenders: dict[str, tuple[Callable[[], Any], int]], rounds: int) -> dict[str, list[float]]:
    """Seconds for a step, of each contender in each of its windows."""
    counts = {}
    for name, (call, _) in contenders.items():
        call()
        begin = time.perf_counter()
        call()
        counts[name] = max(1, int(WINDOW / max(time.perf_counter() - begin, 1e-7)))
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (call, steps) in contenders.items():
            begin = time.perf_counter()
            for _ in range(counts[name]):
                call()
            found[name].append((time.perf_counter() - begin) / counts[name] / steps)
    return found


def compare(name: str, rounds: int, threads: Sequence[int], peers: Sequence[str]) -> bool:
    """Prints one case; whether all that is asked was reached."""
    make, shape, batch, classes, asked = CASES[name]
    torch.manual_seed(0)
    module = make()
    model = ix.from_torch(module, (torch.zeros(2, *shape),))
    x, y = data(shape, batch, classes)
    steps = STEPS.get(name, 10)
    contenders: dict[str, tuple[Callable[[], Any], int]] = {}
    for count in threads:
        contenders[f"fused {count}T"] = fused(model, x, y, count, steps), steps
        if "torch" in peers:
            contenders[f"torch {count}T"] = eager(make(), x, y, count), 1
            contenders[f"torch fused-adam {count}T"] = eager(make(), x, y, count, fused=True), 1
    if "jax" in peers:
        contenders["jax jit"] = with_jax(model, x, y, 1), 1
        contenders["jax fori_loop"] = with_jax(model, x, y, steps), steps
    found = windows(contenders, rounds)
    unit = batch if classes else 1
    best = {c: min(times) * 1e6 / unit for c, times in found.items()}
    middle = {c: statistics.median(times) * 1e6 / unit for c, times in found.items()}

    def least(kind: str) -> float:
        return min((t for c, t in best.items() if c.startswith(kind)), default=float("nan"))

    own, jax, eager_ = least("fused"), least("jax"), least("torch")
    ratios = jax / own, eager_ / own, min(jax, eager_) / own
    times = " | ".join(f"{c} {best[c]:.2f} ({middle[c]:.2f})" for c in found)
    shown = ", ".join(
        f"{what} {ratio:.1f}x (asked {wanted}x)" if wanted else f"{what} {ratio:.1f}x"
        for what, ratio, wanted in zip(("jax", "torch", "best"), ratios, asked, strict=True)
    )
    print(f"{name}: {times} us{' for a sample' if classes else ''}; {shown}", flush=True)
    return all(ratio >= wanted or np.isnan(ratio) for ratio, wanted in zip(ratios, asked, strict=True) if wanted)


def epochs(threads: int, count: int = 10) -> None:
    """SimpleChains' example; its images are drawn here, since only their shape matters for the time."""
    x, y = data((1, 28, 28), 60_000, 10)
    torch.manual_seed(0)
    model = ix.from_torch(LeNet(), (torch.zeros(2, 1, 28, 28),))
    trainer = fused_trainer(model, "cross_entropy", "adam", learning_rate=3e-4, threads=threads)
    begin, used = time.perf_counter(), time.process_time()
    losses = trainer.run(x, y, epochs=count, batch_size=2048, shuffle=0)
    wall, core = time.perf_counter() - begin, time.process_time() - used
    print(
        f"SimpleChains' example, {count} epochs of 60,000 images, {threads} threads: {wall:.2f} s, "
        f"{core:.2f} core-seconds (published: 3.08 s on 32 cores); loss {losses[0]:.3f} -> {losses[-1]:.3f}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks fused_training", description=__doc__)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join((*CASES, 'epochs'))}; all by default")
    parser.add_argument("--peers", default="torch,jax", help="torch, jax; separated by commas")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, action="append", help="1 and all cores by default; may be repeated")
    options = parser.parse_args(arguments)
    check_names(parser, options.cases, (*CASES, "epochs"))
    warnings.simplefilter("ignore")
    threads = options.threads or sorted({1, len(os.sched_getaffinity(0))})
    missed = 0
    for name in options.cases or (*CASES, "epochs"):
        if name == "epochs":
            epochs(max(threads))
        else:
            missed += not compare(name, options.rounds, threads, options.peers.split(","))
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
